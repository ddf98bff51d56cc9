//! The repository's rules, checked by reading its files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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

/// A source file.
struct Source {
    /// From the repository's root.
    name: String,
    text: String,
    /// The text with comments, strings and character literals blanked out; lines stay where they are.
    code: String,
}

impl Source {
    /// The room in `src/` that the file belongs to; none for the roots of the crates.
    fn room(&self) -> Option<&str> {
        let inner = self.name.strip_prefix("src/")?;
        let room = inner.split('/').next()?.trim_end_matches(".rs");
        (!matches!(room, "lib" | "main")).then_some(room)
    }

    /// The code before the file's tests; nothing of a file that holds tests alone.
    fn product(&self) -> &str {
        if self.name.ends_with("/tests.rs") || self.name.contains("/tests/") {
            return "";
        }
        let tests = self.code.find("#[cfg(test)]\nmod ").unwrap_or(self.code.len());
        &self.code[..tests]
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below these folders (or this file) with this ending, target folders left out.
fn files(places: &[&str], endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> =
        places.iter().map(|place| root().join(place)).filter(|p| p.exists()).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let skipped = ["target", "corpus", "artifacts", ".git"];
            if skipped.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            let entries = fs::read_dir(&path).expect("the repository can be read");
            open.extend(entries.map(|entry| entry.expect("the repository can be read").path()));
        } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources(places: &[&str]) -> Vec<Source> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("sources are text");
        let name = path.strip_prefix(root()).expect("it is below").to_string_lossy().into_owned();
        Source { name, code: code_of(&text), text }
    };
    files(places, &[".rs"]).into_iter().map(read).collect()
}

/// Blanks out comments, strings and character literals.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest, code.chars().next_back()) {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len())
        } else if rest.starts_with('"') {
            quoted_end(rest, b'"')
        } else if is_character(rest) {
            quoted_end(rest, b'\'')
        } else {
            let char = rest.chars().next().expect("it is not empty");
            code.push(char);
            at += char.len_utf8();
            continue;
        };
        code.extend(rest[..end].chars().map(|char| if char == '\n' { '\n' } else { ' ' }));
        at += end;
    }
    code
}

/// How many `#` a raw string that begins here has.
fn raw_string(rest: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|char| char.is_alphanumeric() && char != 'b' || char == '_') {
        return None;
    }
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Where a literal that begins with `quote` ends.
fn quoted_end(rest: &str, quote: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Whether a character literal begins here, and not a lifetime.
fn is_character(rest: &str) -> bool {
    let Some(inner) = rest.strip_prefix('\'') else { return false };
    let mut chars = inner.chars();
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// The words of a piece of code, each with where it stands.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    code.split(move |char: char| !is_word(char))
        .filter(|word| !word.is_empty())
        .map(move |word| (word.as_ptr() as usize - code.as_ptr() as usize, word))
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

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

fn must_be_empty(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn rooms_use_only_what_they_may() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let Some(room) = source.room() else { continue };
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
        let Some(room) = source.room() else { continue };
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
    let is_limits = |source: &&Source| source.name.starts_with("src/limits");
    let others = sources.iter().filter(|source| !is_limits(source));
    let used: BTreeSet<&str> = others.flat_map(|s| words(s.product())).map(|(_, w)| w).collect();
    let limits: Vec<&Source> = sources.iter().filter(is_limits).collect();
    assert!(limits.len() > 1, "they are there");
    let bounds = limits.iter().flat_map(|limits| limits.code.split("pub const ").skip(1));
    let bounds = bounds.filter_map(|text| words(text).next());
    let unused = bounds.map(|(_, name)| name).filter(|name| {
        // A bound may be there for another's sake.
        let here = limits.iter().flat_map(|limits| words(&limits.code)).filter(|(_, word)| word == name);
        here.count() < 2 && !used.contains(name)
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
    let wanted = ["request_head", "range", "narinfo", "nar", "store_path", "key", "database_row", "proxy"];
    let missing = wanted.iter().filter(|name| !targets.contains(**name));
    must_be_empty("no fuzz target", missing.map(|name| (*name).to_owned()).collect());
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
