//! `harmonia generate`: what packages ship beside the program. It is made of the command line and of the table of
//! settings and metrics themselves, so it cannot be out of date.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::output;
use crate::causes::with_causes;
use crate::config::{KEYS, Key};
use crate::metrics::names::{self, Kind, Name};

/// Make man pages, completions for a shell, or the pages of settings and metrics.
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
    /// Print every setting, with what it may be, its default and what it means, as Markdown.
    Settings,
    /// Print every metric, with its kind and what it means, as Markdown.
    Metrics,
}

/// What stands above the table of settings.
const SETTINGS_HEAD: &str = "\
# Settings

<!-- Printed by `harmonia generate settings`: change src/config/keys.rs, and print it again. -->

The settings file is TOML. It is read from `--config`, else from `$CONFIG_FILE`, else from `settings.toml` in the current
folder, else from `/etc/harmonia/settings.toml`, where there is one; else these defaults hold. What the command line says (`--bind`, `--workers`, `--priority`) wins over the file.
A key that is not known, and a value that cannot be, stop the program with a message that names the file and the line.

SIGHUP, or `harmonia reload`, has the file read again: `sign_key_paths` is taken from it, and certificates are read anew; other
settings wait for the next start. `RUST_LOG` filters the log (`RUST_LOG=harmonia=debug`).

Nix's state folder, of which some defaults speak, is the one that `nix_db_path` lies in, such as `/nix/var/nix`.

| key | value | default | meaning |
|---|---|---|---|
";

/// What stands above the table of metrics.
const METRICS_HEAD: &str = "\
# Metrics

<!-- Printed by `harmonia generate metrics`: change src/metrics/names.rs, and print it again. -->

What `/metrics` has, for Prometheus. Counters begin at 0 with the process. Seconds and bytes are in the names. The labels of each, with
every value that they can have, are in the text of `/metrics` itself, from the start on; only `harmonia_http_requests_total` and
`harmonia_http_request_duration_seconds` get theirs (`method`, `path`, `status`) with the first request of the kind.
What to watch of them: [monitoring.md](monitoring.md).

| name | kind | meaning |
|---|---|---|
";

/// Why nothing was generated.
#[derive(Debug, thiserror::Error)]
enum GenerateError {
    #[error("cannot write man pages into {}: {source}", folder.display())]
    ManPages { folder: PathBuf, source: io::Error },
    #[error("cannot print: {0}")]
    Print(io::Error),
}

/// Runs the command.
pub fn run(generate: &Generate) -> ExitCode {
    let done = match &generate.command {
        Command::ManPages { folder } => man_pages(folder),
        Command::Completions { shell } => completions(*shell),
        Command::Settings => print(&settings()),
        Command::Metrics => print(&metrics()),
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
    output::standard().write_all(&script).map_err(GenerateError::Print)
}

fn print(page: &str) -> Result<(), GenerateError> {
    output::standard().write_all(page.as_bytes()).map_err(GenerateError::Print)
}

fn settings() -> String {
    let row = |key: &Key| {
        let Key { name, kind, default, meaning } = key;
        format!("| `{name}` | {kind} | {default} | {meaning} |\n")
    };
    SETTINGS_HEAD.to_owned() + &KEYS.iter().map(row).collect::<String>()
}

fn metrics() -> String {
    let row = |metric: &Name| {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        format!("| `{}` | {kind} | {} |\n", metric.name, metric.help.trim_end_matches('.'))
    };
    METRICS_HEAD.to_owned() + &names::ALL.iter().map(row).collect::<String>()
}
