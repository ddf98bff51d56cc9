//! The documentation, held to the program and to itself.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harmonia::config::Config;
use support::{Scratch, lossy, succeed, write};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every Markdown file that people read: from the root, below `docs`, and of the programs beside it.
fn pages() -> Vec<PathBuf> {
    let mut open = vec![root().join("README.md"), root().join("docs")];
    open.extend([root().join("loadtest/README.md"), root().join("benches/engines/README.md")]);
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("it can be read");
            open.extend(entries.map(|entry| entry.expect("it can be read").path()));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    assert!(found.len() > 15, "the pages are found");
    found
}

/// What stands between fences that name this language.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let begin = format!("\n```{language}\n");
    let found = text.split(begin.as_str()).skip(1);
    found.map(|rest| rest.split_once("\n```").expect("a fence is closed").0).collect()
}

/// The text without what is between fences.
fn prose(text: &str) -> String {
    text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n")
}

fn generated(what: &str) -> String {
    lossy(&succeed(Command::new(env!("CARGO_BIN_EXE_harmonia")).args(["generate", what])))
}

fn rows(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| line.starts_with("| `"))
}

#[test]
fn the_pages_of_settings_and_metrics_are_what_the_program_prints() {
    for name in ["settings", "metrics"] {
        let file = format!("docs/{name}.md");
        assert_eq!(page(&file), generated(name), "target/debug/harmonia generate {name} > {file}");
    }
    let settings = generated("settings");
    let all: BTreeSet<&str> = rows(&settings).collect();
    let readme = page("README.md");
    let short = readme.split("| key | value | default | meaning |").nth(1).expect("a short table is there");
    let short: Vec<&str> = rows(short.split("\n\n").next().expect("a first part")).collect();
    assert!(short.len() > 5);
    for row in short {
        assert!(all.contains(row), "README.md has a row that `generate settings` does not print: {row}");
    }
}

#[test]
fn examples_of_settings_are_taken() {
    let scratch = Scratch::new();
    let mut taken = 0;
    for path in pages() {
        for text in blocks(&fs::read_to_string(&path).expect("it is text"), "toml") {
            let file = scratch.path().join("settings.toml");
            write(&file, text);
            if let Err(error) = Config::load(Some(&file), &|_| None) {
                panic!("{}: {error}\n{text}", path.display());
            }
            taken += 1;
        }
    }
    assert!(taken >= 2, "{taken} examples");
}

/// What the page has a Mac's launchd run is what the module makes: the label, the logs and the limits.
#[test]
fn the_property_list_is_one_and_the_modules() {
    let page = page("docs/install.md");
    let [list] = blocks(&page, "xml")[..] else { panic!("one list is there") };
    let scratch = Scratch::new();
    let file = scratch.path().join("org.nixos.harmonia.plist");
    write(&file, list);
    let read = "import json, plistlib, sys; print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
    let json = succeed(Command::new("python3").args(["-c", read]).arg(&file));
    let list: serde_json::Value = serde_json::from_slice(&json).expect("Python writes JSON");
    let module = self::page("nix/darwin.nix");
    for key in ["Label", "ProcessType", "StandardOutPath", "StandardErrorPath"] {
        let value = list[key].as_str().expect("a text");
        assert!(module.contains(&format!("{key} = \"{value}\";")), "{key} is {value}");
    }
    for key in ["RunAtLoad", "KeepAlive"] {
        assert!(list[key] == true && module.contains(&format!("{key} = true;")), "{key}");
    }
    let waits = list["ProgramArguments"][2].as_str().expect("a text").replace('"', "\\\"");
    assert!(module.contains(&format!("\"{waits}\"")), "{waits}");
    for key in ["SoftResourceLimits", "HardResourceLimits"] {
        let files = &list[key]["NumberOfFiles"];
        assert!(module.contains(&format!("files.NumberOfFiles = {files};")), "{key}: {files}");
        assert!(module.contains(&format!("{key} = files;")));
    }
}

/// How a heading is called in a link.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.map(|char| if char == ' ' { '-' } else { char }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for path in pages() {
        let text = prose(&fs::read_to_string(&path).expect("it is text"));
        for after in text.split("](").skip(1) {
            let link = after.split_once(')').expect("a link ends").0;
            if link.contains("://") {
                continue;
            }
            let (file, heading) =
                link.split_once('#').map_or((link, None), |(file, part)| (file, Some(part)));
            let target = match file {
                "" => path.clone(),
                file => path.parent().expect("it is in a folder").join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if let Some(heading) = heading {
                let there = fs::read_to_string(&target).expect("it is text");
                let found =
                    there.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
                assert!(found, "{}: {link}", path.display());
            }
            links += 1;
        }
    }
    assert!(links > 30, "{links} links");
}

/// Every page for operators can be reached from their index.
#[test]
fn the_index_has_every_page() {
    let index = page("docs/operating.md");
    for path in fs::read_dir(root().join("docs")).expect("it is there") {
        let name = path.expect("it can be read").file_name().to_string_lossy().into_owned();
        let others = ["ARCHITECTURE.md", "LEXICON.md", "operating.md"];
        if name.ends_with(".md") && !others.contains(&&*name) {
            assert!(index.contains(&format!("]({name})")), "docs/operating.md does not link {name}");
        }
    }
}

/// The sources as one text, in which strings that go over several lines are in one piece.
fn sources() -> String {
    let (mut open, mut text) = (vec![root().join("src")], String::new());
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("it can be read");
            open.extend(entries.map(|entry| entry.expect("it can be read").path()));
        } else {
            text += &fs::read_to_string(&path).expect("sources are text");
        }
    }
    let mut whole = String::with_capacity(text.len());
    for (number, part) in text.split("\\\n").enumerate() {
        whole += if number == 0 { part } else { part.trim_start() };
    }
    whole
}

/// The messages of the program that the page of troubles quotes are in the program. What varies is `…` there.
#[test]
fn messages_are_quoted_as_they_are_printed() {
    let (text, sources) = (page("docs/troubleshooting.md"), sources());
    // What the system says, not the program.
    let foreign = ["Permission denied", "Cannot assign requested address"];
    let mut quoted = 0;
    for section in text.split("\n## ").filter(|section| !section.starts_with("A client")) {
        for row in rows(section) {
            let cell = row.trim_start_matches("| ").split(" | ").next().expect("a first cell");
            for message in cell.split('`').skip(1).step_by(2) {
                for part in message.split(['…', ':']).map(|part| part.trim_matches([' ', ',', ';', '.'])) {
                    let known = part.is_empty() || foreign.contains(&part) || sources.contains(part);
                    assert!(known, "no message has “{part}”: {message}");
                }
                quoted += 1;
            }
        }
    }
    assert!(quoted > 25, "{quoted} messages");
}
