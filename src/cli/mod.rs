//! The command line: one file a command. This room alone prints and exits.

mod accounts;
mod cache;
mod certificates;
mod client;
pub mod demo;
mod doctor;
pub mod generate;
pub mod keys;
pub mod log;
mod output;
pub mod pins;
mod progress;
mod reload;
mod requests;
pub mod serve;
mod service;
mod store;

use std::process::ExitCode;

use clap::Parser as _;

/// What `--help` says below the commands.
const WITHOUT_COMMAND: &str = "\
Without a command it serves, with the settings of --config, else of $CONFIG_FILE, else of ./settings.toml, else of
/etc/harmonia/settings.toml, else with defaults: the store /nix/store, on port 5000 of every address. To see it work without a Nix store: harmonia demo";

/// A Nix binary cache server: serves the store of this machine over HTTP, signed.
#[derive(Debug, clap::Parser)]
#[command(version, after_help = WITHOUT_COMMAND, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Existing unit files start it without.
    #[command(subcommand)]
    command: Option<Command>,
    /// Those of `serve`, for where no command is.
    #[command(flatten)]
    serve: serve::Serve,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(serve::Serve),
    Demo(demo::Demo),
    Keys(keys::Keys),
    Store(store::Store),
    Cache(cache::Cache),
    Doctor(doctor::Doctor),
    Generate(generate::Generate),
    Pin(pins::PinCommand),
    Unpin(pins::UnpinCommand),
    Pins(pins::PinsCommand),
    Reload(reload::Reload),
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let Arguments { command, serve } = Arguments::parse();
    match command {
        None => serve::run(serve),
        Some(Command::Serve(serve)) => serve::run(serve),
        Some(Command::Demo(demo)) => demo::run(&demo),
        Some(Command::Keys(keys)) => keys::run(&keys),
        Some(Command::Store(store)) => store::run(&store),
        Some(Command::Cache(cache)) => cache::run(&cache),
        Some(Command::Doctor(doctor)) => doctor::run(&doctor),
        Some(Command::Generate(generate)) => generate::run(&generate),
        Some(Command::Pin(pin)) => pins::pin(&pin),
        Some(Command::Unpin(unpin)) => pins::unpin(&unpin),
        Some(Command::Pins(all)) => pins::pins(&all),
        Some(Command::Reload(reload)) => reload::run(&reload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::path::Path;

    use clap::error::ErrorKind;

    /// The words of a shell's command line, up to what is not the command's: a comment, a pipe, a redirection. Quotes are
    /// only taken off, so none may hold a space.
    fn words(line: &str) -> Vec<&str> {
        let words = line.split_whitespace();
        let own = words
            .take_while(|word| !matches!(*word, "|" | ">" | "&&" | ";" | "\\") && !word.starts_with('#'));
        own.map(|word| word.trim_matches(['"', '\''])).collect()
    }

    /// The command lines of this program that a page has: lines of blocks for a shell, and what is quoted in the text.
    fn command_lines(text: &str) -> Vec<&str> {
        let parts: Vec<&str> = text.split("\n```").collect();
        let blocks = parts.iter().skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
        let lines = blocks.flat_map(str::lines);
        // What stands before the program's name: settings of variables, another user.
        let lines = lines.filter_map(|line| match line.find("harmonia ") {
            Some(at) if line[..at].split_whitespace().all(|word| word.contains('=') || word == "sudo") => {
                Some(&line[at..])
            }
            _ => None,
        });
        let quoted = parts.iter().step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
        lines.chain(quoted.filter(|line| line.starts_with("harmonia ") && !line.contains('\n'))).collect()
    }

    #[test]
    fn every_command_line_of_the_documentation_is_taken() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let pages = fs::read_dir(root.join("docs")).expect("the pages are there");
        let pages = pages.map(|page| page.expect("it can be read").path());
        let pages = pages.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
        let mut taken = 0;
        for page in pages.chain([root.join("README.md")]) {
            let text = fs::read_to_string(&page).expect("it is text");
            for line in command_lines(&text) {
                // Any one that is there will do for a metavariable that has to be one of a few.
                let line = line.replace("SHELL", "bash");
                if let Err(error) = Arguments::try_parse_from(words(&line)) {
                    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
                    // A command that is spoken of, and not given.
                    let is_group = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                        || error.kind() == ErrorKind::MissingSubcommand
                        || error.kind() == ErrorKind::MissingRequiredArgument;
                    let is_whole = line.split_whitespace().count() > 3;
                    assert!(is_help || (is_group && !is_whole), "{}: {line}\n{error}", page.display());
                }
                taken += 1;
            }
        }
        assert!(taken > 25, "{taken} command lines");
    }
}
