//! `harmonia generate`: what packages ship beside the program. It is made of the command line itself, so it cannot be
//! out of date.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::output;
use crate::causes::with_causes;

/// Make man pages, or completions for a shell.
#[derive(Debug, clap::Args)]
pub struct Generate {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write a man page for each command into a folder.
    ManPages {
        /// The folder; it is made if it is not there.
        folder: PathBuf,
    },
    /// Print what has a shell complete the command line.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Why nothing was generated.
#[derive(Debug, thiserror::Error)]
enum GenerateError {
    #[error("cannot write man pages into {}: {source}", folder.display())]
    ManPages { folder: PathBuf, source: io::Error },
    #[error("cannot print: {0}")]
    Completions(io::Error),
}

/// Runs the command.
pub fn run(generate: &Generate) -> ExitCode {
    let done = match &generate.command {
        Command::ManPages { folder } => man_pages(folder),
        Command::Completions { shell } => completions(*shell),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell when standard error is closed; the exit code says it.
            let _ = writeln!(io::stderr(), "harmonia: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn man_pages(folder: &Path) -> Result<(), GenerateError> {
    let command = super::Arguments::command().disable_help_subcommand(true);
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command, folder))
        .map_err(|source| GenerateError::ManPages { folder: folder.to_owned(), source })
}

fn completions(shell: Shell) -> Result<(), GenerateError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::Arguments::command(), "harmonia", &mut script);
    output::standard().write_all(&script).map_err(GenerateError::Completions)
}
