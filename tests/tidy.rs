//! The repository's rules, checked by reading its files.

#[path = "support/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;

use source::{Source, code_of, files, line_of, root, sources, words};

/// What each room of `src/` may use of the others; `limits` belongs to all.
const ROOMS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("causes", &[]),
    ("config", &[]),
    ("formats", &[]),
    ("http", &[]),
    ("io", &[]),
    // A mailbox wakes a poll.
    ("mailbox", &["io"]),
    ("metrics", &[]),
    ("nar", &["formats", "io", "mailbox", "metrics"]),
    ("cache", &["causes", "nar", "formats", "io", "mailbox", "metrics"]),
    ("store", &["causes", "nar", "formats", "io", "mailbox", "metrics"]),
    ("web", &["formats", "http"]),
    (
        "server",
        &["cache", "causes", "config", "formats", "http", "io", "mailbox", "metrics", "nar", "store", "web"],
    ),
    (
        "cli",
        &[
            "cache", "causes", "config", "formats", "http", "io", "mailbox", "metrics", "nar", "server",
            "store", "web",
        ],
    ),
];

/// External crates that only some rooms may use.
const FENCES: &[(&str, &[&str])] = &[
    ("rusqlite", &["cache", "io", "store"]),
    ("bzip2", &["store"]),
    ("blake3", &["cache"]),
    ("sd_notify", &["cli", "io"]),
    ("zstd_safe", &["cache"]),
    ("liblzma", &["cache"]),
    ("fastcdc", &["cache"]),
    ("ed25519_dalek", &["formats"]),
    // In `io` and `cli`, by the name that rustls gives it.
    ("aws_lc_rs", &["cli", "formats", "io"]),
    ("data_encoding", &["formats"]),
    ("toml", &["config"]),
    ("httparse", &["http"]),
    ("httpdate", &["http"]),
    ("maud", &["web"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("mio", &["io"]),
    ("socket2", &["io", "store"]),
    ("io_uring", &["io"]),
    // The doctor asks as a client does.
    ("ureq", &["cli"]),
    ("rustls", &["cli", "io"]),
    ("libc", &["io"]),
    // Keys on their way to the kernel.
    ("zeroize", &["io"]),
    ("tokio", &[]),
];

/// How long a file may be before its tests; longer ones are asking to be two rooms.
const LINES_MAX: usize = 600;

/// The rooms that a piece of code names: `crate::room`, and each room of `crate::{room, …}`.
fn rooms_named(code: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|char: char| char.is_alphanumeric() || char == '_' || char == '$') {
            continue;
        }
        let after = &code[at + "crate::".len()..];
        let group = after.strip_prefix('{').map(|inner| top_level(inner));
        for path in group.unwrap_or_else(|| vec![after]) {
            if let Some((_, room)) = words(path).next() {
                named.push((at, room.to_owned()));
            }
        }
    }
    named
}

/// The comma-separated parts of a group of imports, up to its closing brace.
fn top_level(inner: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, char) in inner.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&inner[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// The room in `src/` that the file belongs to; none for the roots of the crates.
fn room_of(source: &Source) -> Option<&str> {
    let inner = source.name.strip_prefix("src/")?;
    let room = inner.split('/').next()?.trim_end_matches(".rs");
    (!matches!(room, "lib" | "main")).then_some(room)
}

fn must_be_empty(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn rooms_use_only_what_they_may() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let Some(room) = room_of(&source) else { continue };
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            broken.push(format!("{}: `{room}` is in no row of the table", source.name));
            continue;
        };
        for (at, named) in rooms_named(source.product()) {
            let is_room = ROOMS.iter().any(|(name, _)| *name == named);
            if is_room && named != room && named != "limits" && !allowed.contains(&&*named) {
                broken.push(format!("{}:{}: {room} uses {named}", source.name, line_of(&source.code, at)));
            }
        }
    }
    must_be_empty("docs/ARCHITECTURE.md says which room may use which", broken);
}

#[test]
fn external_crates_stay_behind_their_fences() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let Some(room) = room_of(&source) else { continue };
        let code = source.product();
        for (at, word) in words(code) {
            let used = code[at + word.len()..].starts_with("::");
            // `http::status` may be a module of our own: only the beginning of a path names a crate.
            let begins = !code[..at].ends_with("::") || code[..at].ends_with(" ::");
            let Some((_, allowed)) = FENCES.iter().find(|(name, _)| *name == word) else { continue };
            if used && begins && !allowed.contains(&room) {
                broken.push(format!("{}:{}: {room} uses {word}", source.name, line_of(code, at)));
            }
        }
    }
    must_be_empty("some crates belong to one room", broken);
}

/// Where unsafe code may be besides `src/io/`, as no safe wrapper does it: an allocator that counts, and io_uring
/// as a contender.
const UNSAFE: &[&str] = &["tests/allocations.rs", "benches/engines/src/ring.rs"];

#[test]
fn unsafe_code_is_in_io_alone() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        if source.name.starts_with("src/io/") || UNSAFE.contains(&&*source.name) {
            continue;
        }
        for (at, _) in words(&source.code).filter(|(_, word)| *word == "unsafe") {
            broken.push(format!("{}:{}", source.name, line_of(&source.code, at)));
        }
    }
    must_be_empty("unsafe code outside src/io", broken);
}

#[test]
fn nothing_is_left_half_done() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests", "benches", "fuzz"]) {
        for (at, word) in words(&source.code) {
            let is_macro = source.code[at + word.len()..].starts_with('!');
            if is_macro && matches!(word, "todo" | "unimplemented" | "dbg") {
                broken.push(format!("{}:{}: {word}!", source.name, line_of(&source.code, at)));
            }
        }
        for (at, _) in source.code.match_indices("#[ignore]") {
            broken.push(format!("{}:{}: a bare #[ignore]", source.name, line_of(&source.code, at)));
        }
        for (number, line) in source.text.lines().enumerate() {
            let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X ")];
            if marks.iter().any(|mark| line.contains(mark)) {
                broken.push(format!("{}:{}: {}", source.name, number + 1, line.trim()));
            }
        }
    }
    must_be_empty("left half done", broken);
}

#[test]
fn lints_are_not_allowed_wholesale() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        for (at, _) in source.code.match_indices("allow(") {
            let attribute =
                source.code[..at].trim_end().ends_with("#[") || source.code[..at].ends_with("#![");
            let end = source.code[at..].find(']').map_or(source.code.len(), |end| at + end);
            if attribute && !source.code[at..end].contains("reason") {
                broken.push(format!("{}:{}: no reason", source.name, line_of(&source.code, at)));
            }
            if source.code[..at].ends_with("#![") && source.name.starts_with("src/") {
                broken.push(format!("{}:{}: for a whole file", source.name, line_of(&source.code, at)));
            }
        }
    }
    must_be_empty("a lint is allowed where it is broken, with its reason", broken);
}

#[test]
fn files_fit_in_a_head() {
    let long = sources(&["src", "tests", "benches", "fuzz"]).into_iter().filter_map(|source| {
        let product = if source.name.starts_with("src/") { source.product() } else { &source.code };
        let lines = product.lines().count();
        (lines > LINES_MAX).then(|| format!("{}: {lines} lines", source.name))
    });
    must_be_empty("longer than 600 lines", long.collect());
}

#[test]
fn no_file_names_this_machine() {
    // Put together so that this file does not hold them.
    let machine =
        [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("../sha", "red")];
    let places = ["src", "tests", "benches", "fuzz", "docs", "scripts", ".ci", "README.md", "Cargo.toml"];
    let mut broken = Vec::new();
    for path in files(&places, &[".rs", ".md", ".toml", "/test", "/fuzz", "/run"]) {
        if path.is_dir() {
            continue;
        }
        let text = fs::read_to_string(&path).expect("it is text");
        for (number, line) in text.lines().enumerate() {
            if machine.iter().any(|name| line.contains(name)) {
                broken.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    must_be_empty("paths of one machine", broken);
}

/// A bound that no code keeps to is worse than none.
#[test]
fn every_limit_is_used() {
    let sources = sources(&["src"]);
    let (limits, others): (Vec<_>, Vec<_>) =
        sources.iter().partition(|source| room_of(source) == Some("limits"));
    let used: BTreeSet<&str> =
        others.iter().flat_map(|source| words(source.product())).map(|(_, word)| word).collect();
    let code: String = limits.iter().map(|source| &*source.code).collect();
    let bounds = code.split("pub const ").skip(1).filter_map(|text| words(text).next());
    let unused = bounds.map(|(_, name)| name).filter(|name| {
        // A bound may be there for another's sake.
        let here = words(&code).filter(|(_, word)| word == name).count();
        here < 2 && !used.contains(name)
    });
    must_be_empty("limits that nothing uses", unused.map(str::to_owned).collect());
}

#[test]
fn every_parser_has_its_fuzz_target() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).expect("it is there");
    let targets: BTreeSet<String> = files(&["fuzz/fuzz_targets"], &[".rs"])
        .iter()
        .map(|file| file.file_stem().expect("a file has a name").to_string_lossy().into_owned())
        .collect();
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "fuzz/Cargo.toml does not name {target}");
    }
    let wanted = [
        "request_head",
        "range",
        "narinfo",
        "nar",
        "store_path",
        "key",
        "database_row",
        "proxy",
        "body",
        "forwarded",
        "route",
    ];
    let missing = wanted.iter().filter(|name| !targets.contains(**name));
    must_be_empty("no fuzz target", missing.map(|name| (*name).to_owned()).collect());
}

/// What is compiled for tests alone is no product, and what comes after its declaration is.
#[test]
fn the_reader_of_sources_tells_tests_from_the_product() {
    let sources = sources(&["src"]);
    let find = |name: &str| sources.iter().find(|source| source.name == name).expect("it is there");
    for name in [
        "src/server/simulation.rs",
        "src/server/simulation/shop.rs",
        "src/nar/tests.rs",
        "src/io/simulated.rs",
    ] {
        assert_eq!(find(name).product(), "", "{name}");
    }
    for name in ["src/server/mod.rs", "src/nar/mod.rs", "src/io/mod.rs"] {
        assert_eq!(find(name).product(), find(name).code, "{name}");
    }
    assert!(!find("src/server/load.rs").product().contains("super::*"));
}

#[test]
fn the_reader_of_code_sees_code_alone() {
    let text = "let a = \"unsafe\"; // unsafe\nlet b = 'u'; /* unsafe */ fn f<'a>() { r#\"unsafe\"#; '\\''; unsafe {} }";
    let code = code_of(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(words(&code).filter(|(_, word)| *word == "unsafe").count(), 1);
    let named = rooms_named("use crate::{io::{a, b}, http}; crate::nar::x(); mycrate::store::y();");
    let rooms: Vec<_> = named.iter().map(|(_, room)| room.as_str()).collect();
    assert_eq!(rooms, ["io", "http", "nar"]);
}
