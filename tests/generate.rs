//! `harmonia generate`, read by those it is for: mandoc and bash. What must be in it comes from `--help`.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use support::{Scratch, lossy, run, succeed, write};

fn harmonia(arguments: &[&str]) -> String {
    lossy(&succeed(Command::new(env!("CARGO_BIN_EXE_harmonia")).args(arguments)))
}

/// The words that stand first on the lines of a section of `--help`.
fn first_words(help: &str, section: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != section).skip(1);
    let lines = lines.take_while(|line| line.is_empty() || line.starts_with(' '));
    let indented = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    indented.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The options that its help lists, not those that the text speaks of.
fn options(help: &str) -> BTreeSet<String> {
    let section = help.lines().skip_while(|line| *line != "Options:").skip(1);
    let section = section.take_while(|line| line.is_empty() || line.starts_with(' '));
    let named = section.filter_map(|line| {
        let line = line.trim_start();
        let line =
            line.split_once(", ").map_or(line, |(short, long)| if short.len() == 2 { long } else { line });
        line.starts_with("--").then(|| line.split_whitespace().next().expect("it is not empty"))
    });
    named.map(str::to_owned).collect()
}

/// Every command with its help, from the program itself down.
fn commands() -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(command) = open.pop() {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = harmonia(&arguments);
        let below = first_words(&help, "Commands:").into_iter().filter(|name| name != "help");
        open.extend(below.map(|name| [&command[..], &[name]].concat()));
        found.push((command, help));
    }
    found
}

#[test]
fn every_command_has_a_man_page_with_all_its_options_that_mandoc_takes() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("made/man1");
    harmonia(&["generate", "man-pages", &folder.to_string_lossy()]);
    let commands = commands();
    assert!(commands.len() > 5, "the help lists the commands");
    for (command, help) in &commands {
        let name = ["harmonia"].into_iter().chain(command.iter().map(String::as_str)).collect::<Vec<_>>();
        let page = folder.join(format!("{}.1", name.join("-")));
        // Errors and worse, and none of what a page's date or language could be.
        let checked = run(Command::new("mandoc").args(["-T", "lint", "-W", "error"]).arg(&page));
        assert!(checked.status.success(), "{}", lossy(&checked.stdout));
        let shown = succeed(Command::new("mandoc").args(["-T", "ascii"]).arg(&page));
        // Bold is a letter, a step back and the letter.
        let shown = lossy(&shown).split('\u{8}').fold(String::new(), |mut text, piece| {
            text.pop();
            text + piece
        });
        let missing: Vec<_> = options(help).into_iter().filter(|option| !shown.contains(option)).collect();
        assert!(missing.is_empty(), "{}: {missing:?} of\n{shown}", page.display());
    }
    let pages = std::fs::read_dir(&folder).expect("it was made").count();
    assert_eq!(pages, commands.len(), "no page but those");
}

/// What bash offers after these words.
fn completed(script: &Path, words: &[&str]) -> BTreeSet<String> {
    let ask = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        "$(complete -p harmonia | sed 's/.*-F \([^ ]*\).*/\1/')" harmonia "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let offered = succeed(Command::new("bash").args(["-c", ask, "bash"]).arg(script).args(words));
    lossy(&offered).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_every_command_and_every_option() {
    let scratch = Scratch::new();
    let script = scratch.path().join("harmonia.bash");
    write(&script, harmonia(&["generate", "completions", "bash"]));
    for (command, help) in commands() {
        let mut words = vec!["harmonia"];
        words.extend(command.iter().map(String::as_str));
        let offered = completed(&script, &[&words[..], &["--"]].concat());
        let options = options(&help);
        assert!(offered.is_superset(&options), "{words:?}: {offered:?} of {options:?}");
        let below: BTreeSet<_> = first_words(&help, "Commands:").into_iter().collect();
        let offered = completed(&script, &[&words[..], &[""]].concat());
        assert!(offered.is_superset(&below), "{words:?}: {offered:?} of {below:?}");
    }
}

#[test]
fn other_shells_have_completions_too_and_a_folder_that_cannot_be_made_is_named() {
    for (shell, mark) in [("zsh", "#compdef harmonia"), ("fish", "complete -c harmonia")] {
        let script = harmonia(&["generate", "completions", shell]);
        assert!(script.contains(mark), "{shell}: {script}");
        assert!(script.contains("trusted"), "{shell}: options of commands below commands");
    }
    let output =
        run(Command::new(env!("CARGO_BIN_EXE_harmonia")).args(["generate", "man-pages", "/dev/null/x"]));
    assert_eq!(output.status.code(), Some(1));
    let told = lossy(&output.stderr);
    assert!(told.starts_with("harmonia: cannot write man pages into /dev/null/x: Not a directory"), "{told}");
}
