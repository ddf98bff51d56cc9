//! The Debian package, made by its script of the program under test, and looked at by dpkg's own tools and systemd's.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use harmonia::config::Config;
use support::{Scratch, lossy, succeed, write};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_debian_package_has_all_that_belongs_beside_the_program() {
    let scratch = Scratch::new();
    let script = repository().join("scripts/package");
    succeed(
        Command::new(script)
            .args(["deb", env!("CARGO_BIN_EXE_harmonia")])
            .env("CARGO_TARGET_DIR", scratch.path().join("target")),
    );
    let made = fs::read_dir(scratch.path().join("target/dist")).expect("the script made it");
    let [package] = &made.map(|entry| entry.expect("it is there").path()).collect::<Vec<_>>()[..] else {
        panic!("one package is made");
    };
    let field = |name| {
        let text = succeed(Command::new("dpkg-deb").arg("--field").arg(package).arg(name));
        lossy(&text).trim().to_owned()
    };
    assert_eq!(field("Package"), "harmonia");
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
    assert!(field("Depends").contains("adduser"), "for the service's user");

    let root = scratch.path().join("root");
    succeed(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&root));
    let shared = root.join("usr/share");
    for file in [
        "man/man1/harmonia.1.gz",
        "man/man1/harmonia-keys-generate.1.gz",
        "bash-completion/completions/harmonia",
        "zsh/vendor-completions/_harmonia",
        "fish/vendor_completions.d/harmonia.fish",
        "doc/harmonia/copyright",
        "doc/harmonia/docs/operating.md",
        "doc/harmonia/docs/settings.md",
        "doc/harmonia/docs/alerts.yml",
    ] {
        assert!(fs::metadata(shared.join(file)).is_ok_and(|file| file.len() > 0), "{file}");
    }
    let texts = shared.join("doc/harmonia/licenses.txt.gz");
    let texts = lossy(&succeed(Command::new("gzip").args(["--decompress", "--stdout"]).arg(texts)));
    for library in ["rustls ", "aws-lc-sys ", "zstd-sys ", "rusqlite ", "ed25519-dalek "] {
        let at = texts.find(&format!("\n==== {library}")).expect(library);
        let of_it = &texts[at + 5..];
        let of_it = &of_it[..of_it.find("\n==== ").unwrap_or(of_it.len())];
        assert!(of_it.contains("\n-- "), "{library}has no text");
    }
    for name in ["harmonia", "harmonia-cache"] {
        let told = succeed(Command::new(root.join("usr/bin").join(name)).arg("--version"));
        assert_eq!(lossy(&told), format!("harmonia {}\n", env!("CARGO_PKG_VERSION")));
    }
    // Nobody but root may write to any of it.
    let listing = lossy(&succeed(Command::new("dpkg-deb").arg("--contents").arg(package)));
    for line in listing.lines() {
        assert!(line.contains(" root/root "), "{line}");
        assert!(line.starts_with('l') || !line[5..10].contains('w'), "{line}");
    }
    check_unit(&root);
    check_settings(&root.join("etc/harmonia/settings.toml"));
}

/// systemd takes the unit, with the program that it names, and has nothing to say about it.
fn check_unit(root: &Path) {
    let unit = root.join("usr/lib/systemd/system/harmonia.service");
    let text = fs::read_to_string(&unit).expect("it is there");
    let program = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("it starts something");
    let program = root.join(program.trim_start_matches('/'));
    assert!(program.is_file(), "{}", program.display());
    let here = root.join("harmonia-here.service");
    write(&here, text.replace("ExecStart=/", &format!("ExecStart={}/", root.display())));
    let mut verify = Command::new("systemd-analyze");
    let output = support::run(verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&here));
    assert_eq!((output.status.code(), lossy(&output.stderr)), (Some(0), String::new()));
}

/// The example is the defaults: as it is, and with every line of a key and its default taken in.
fn check_settings(file: &Path) {
    let load = |file: &Path| {
        let variable = |name: &str| (name == "CACHE_DIRECTORY").then(|| "/var/cache/harmonia".to_owned());
        let mut config = Config::load(Some(file), &variable).expect("the program takes it");
        config.source = None;
        config
    };
    let scratch = Scratch::new();
    let empty = scratch.path().join("empty.toml");
    write(&empty, "");
    let expected = load(&empty);
    assert_eq!(load(file), expected);

    let text = fs::read_to_string(file).expect("it is there");
    let is_key = |line: &&str| line.starts_with(|char: char| char.is_ascii_lowercase());
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix('#')).filter(is_key).collect();
    // Where there is no default, the line is an example.
    let (examples, defaults): (Vec<&str>, Vec<&str>) =
        lines.into_iter().partition(|line| line.starts_with("tls_"));
    assert_eq!(examples.len(), 2);
    let full = scratch.path().join("full.toml");
    write(&full, defaults.join("\n"));
    assert_eq!(load(&full), expected);
    let keys: BTreeSet<_> =
        defaults.iter().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key).collect();
    assert_eq!(keys.len(), defaults.len(), "each once");
}
