//! `loadtest`: puts load on a Nix binary cache and says how it held. See README.md.

mod alarm;
mod catalogue;
mod cli;
mod compare;
mod corpus;
mod database;
mod engine;
mod http;
mod lane;
mod measure;
mod nar;
mod narinfo;
mod output;
mod peers;
mod process;
mod random;
mod report;
mod scenarios;
mod spawn;
mod stats;
mod target;
mod unpack;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};

use catalogue::CatalogueError;
use cli::{Cli, Command, Compare, Corpus, Load, Output};
use compare::{CompareError, Comparison};
use corpus::CorpusError;
use database::DatabaseError;
use measure::{MeasureError, Scenario, Session};
use output::ProgressLine;
use peers::Peer;
use process::Tree;
use stats::Run;

/// A threshold was not met, or the cache gave wrong answers.
const FAILED: u8 = 1;
/// Nothing could be measured. clap's own code for a wrong command line, too.
const UNUSABLE: u8 = 2;

/// Why nothing could be measured or written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("process {0}: {1}")]
    Pid(u32, io::Error),
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, io::Error),
    #[error("cannot catch signals: {0}")]
    Signal(io::Error),
}

impl Error {
    /// Wrong answers are a failure of the cache, also where they are met before anything is measured.
    fn code(&self) -> u8 {
        match self {
            Self::Measure(error) | Self::Compare(CompareError::Measure(error)) => match error {
                MeasureError::Catalogue(CatalogueError::Wrong { .. }) => FAILED,
                _ => UNUSABLE,
            },
            _ => UNUSABLE,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::read().unwrap_or_else(|error| error.exit());
    process::raise_descriptors();
    let ended = match &cli.command {
        Command::Corpus(corpus) => make_corpus(corpus).map(|()| true),
        Command::Compare(args) => compare(args),
        command => run(command),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            // Nobody may be listening any more.
            let _ = writeln!(io::stderr(), "loadtest: {error}");
            ExitCode::from(error.code())
        }
    }
}

fn make_corpus(corpus: &Corpus) -> Result<(), Error> {
    match corpus.paths {
        Some(count) => database::add_synthetic(&corpus.folder, count)?,
        None => corpus::make(&corpus.folder, corpus.small, &mut |step| say(&format!("{step}\n")))?,
    }
    say(&format!("done: --store {}\n", corpus.folder.display()));
    Ok(())
}

/// Whether all bounds were kept.
fn compare(args: &Compare) -> Result<bool, Error> {
    let stop = stop_on_signals().map_err(Error::Signal)?;
    let comparison = Comparison {
        store: args.store.clone(),
        peer: Peer::parse(&args.peer),
        server: args.server.clone(),
        pairs: args.pairs,
        legs: args.scenario.clone(),
        requests: args.requests,
        seed: args.seed,
        fresh: args.fresh,
        settings: args.setting.clone(),
        compression: args.compression,
    };
    let peer = comparison.peer.name();
    let mut line = ProgressLine::new(args.quiet);
    let mut tell = |name: &str, progress| line.tell(name, progress);
    let outcome = compare::run(&comparison, &stop, &mut |step| say(&format!("{step}\n")), &mut tell)?;
    line.clear();
    say(&compare::table(&outcome, peer));
    if let Some(words) = outcome.interruption(args.pairs) {
        say(&format!("{words}\n"));
    }
    let json = output::to_json("127.0.0.1", &outcome.runs, Some(compare::to_json(&outcome, peer)));
    write_results(&json, args.json.as_deref(), args.report.as_deref())?;
    if outcome.interrupted && outcome.is_empty() {
        return Err(CompareError::Interrupted.into());
    }
    let mut missed: Vec<_> = args.at_most.iter().filter_map(|bound| bound.missed(&outcome)).collect();
    for compared in outcome.compared.iter().filter(|compared| compared.wrong + compared.errors > 0) {
        missed
            .push(format!("{}: {} wrong answers, {} errors", compared.leg, compared.wrong, compared.errors));
    }
    Ok(all_kept(&missed))
}

/// Says what was missed.
fn all_kept(missed: &[String]) -> bool {
    for threshold in missed {
        say(&format!("FAILED: {threshold}\n"));
    }
    missed.is_empty()
}

fn write_results(json: &Value, file: Option<&Path>, report: Option<&Path>) -> Result<(), Error> {
    if let Some(file) = file {
        write(file, &format!("{json:#}\n"))?;
    }
    if let Some(folder) = report {
        fs::create_dir_all(folder).map_err(|error| Error::Write(folder.to_owned(), error))?;
        write(&folder.join("index.html"), &report::page(json))?;
    }
    Ok(())
}

/// Runs a scenario.
fn run(command: &Command) -> Result<bool, Error> {
    let stop = stop_on_signals().map_err(Error::Signal)?;
    match command.scenario() {
        Some((scenario, load)) => measure(&scenario, load, stop),
        None => Ok(true),
    }
}

/// The first signal stops the run, which is then printed; a second ends the program.
fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Whether all was as it must be.
fn measure(scenario: &Scenario, load: &Load, stop: Arc<AtomicBool>) -> Result<bool, Error> {
    let tree = load.output.pid.map(|pid| Tree::new(pid).map_err(|error| Error::Pid(pid, error)));
    let (url, settings) = load.settings();
    let mut line = ProgressLine::new(load.output.quiet);
    let mut tell = |name: &str, progress| line.tell(name, progress);
    let scenarios = std::slice::from_ref(scenario);
    let session = Session::open(&url, scenarios, settings, tree.transpose()?, stop, &mut tell)?;
    let runs = session.run(scenario, &mut tell)?;
    line.clear();
    say(&output::table(&runs));
    let json = output::to_json(&url, &runs, None);
    write_results(&json, load.output.json.as_deref(), load.output.report.as_deref())?;
    Ok(all_kept(&missed(&runs, &load.output)))
}

/// What was not as it must be, in words.
fn missed(runs: &[Run], output: &Output) -> Vec<String> {
    let mut missed = Vec::new();
    for run in runs {
        let name = &run.name;
        if run.wrong > 0 {
            missed.push(format!("{name}: {} wrong answers", run.wrong));
        }
        if run.errors() > output.max_errors {
            missed.push(format!("{name}: {} errors, more than {}", run.errors(), output.max_errors));
        }
        let Some(series) = run.series.first() else {
            continue;
        };
        let p99 = series.percentile_us(0.99) / 1e3;
        if let Some(most) = output.max_p99.filter(|&most| p99 > most) {
            missed.push(format!("{name}: p99 {p99:.3} ms, more than {most}"));
        }
        let rate = series.requests as f64 / run.wall.as_secs_f64().max(1e-9);
        if let Some(least) = output.min_rate.filter(|&least| rate < least) {
            missed.push(format!("{name}: {rate:.1} requests a second, fewer than {least}"));
        }
    }
    missed
}

fn say(text: &str) {
    // Whoever read it may be gone; the exit code still tells.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(|error| Error::Write(file.to_owned(), error))
}
