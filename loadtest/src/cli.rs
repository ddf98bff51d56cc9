//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::catalogue::Source;
use crate::compare::{Bound, Leg};
use crate::measure::{Scenario, Settings};
use crate::peers::Compression;

/// Puts load on a Nix binary cache and says how it held.
///
/// Exit codes: 0 done; 1 a threshold was not met, or the cache gave wrong answers; 2 nothing could be measured.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Many Nix clients at once: each asks for all narinfos on 25 connections, then fetches NARs 16 at a time.
    Closure {
        /// How many clients.
        #[arg(long, default_value_t = 4, value_parser = at_least_one)]
        clients: usize,
        /// Of the narinfo queries, the share for paths that the cache lacks (0 to below 1).
        #[arg(long, default_value_t = 0.8, value_parser = share)]
        miss_ratio: f64,
        #[command(flatten)]
        load: Load,
    },
    /// Narinfos of paths that the cache has.
    Narinfo {
        #[command(flatten)]
        load: Load,
    },
    /// Narinfos of paths that it lacks.
    Miss {
        #[command(flatten)]
        load: Load,
    },
    /// Every NAR once, at 1, 4, 16 and 64 connections.
    Nar {
        #[command(flatten)]
        load: Load,
    },
    /// Every NAR once, cut at random places and resumed, its hash checked.
    Range {
        #[command(flatten)]
        load: Load,
    },
    /// Idle connections beside a trickle of requests.
    Idle {
        /// How many are idle.
        #[arg(long, default_value_t = 1000)]
        idle: usize,
        #[command(flatten)]
        load: Load,
    },
    /// Slow readers and slow senders beside normal clients.
    Slow {
        /// How many are slow.
        #[arg(long, default_value_t = 64, value_parser = at_least_one)]
        slow: usize,
        /// Bytes a second of a slow reader.
        #[arg(long, default_value_t = 16384, value_parser = clap::value_parser!(u64).range(1..))]
        read_rate: u64,
        #[command(flatten)]
        load: Load,
    },
    /// Narinfos with the page cache dropped: alone, then while cold NARs stream.
    Cold {
        /// How many NARs stream at a time.
        #[arg(long, default_value_t = 8, value_parser = at_least_one)]
        streams: usize,
        /// Million bytes a second of each.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
        stream_rate: u64,
        #[command(flatten)]
        load: Load,
    },
    /// Paths registered and deleted under load, every answer checked for freshness. It writes to --store.
    Churn {
        #[command(flatten)]
        load: Load,
    },
    /// Connections opened and closed as fast as they go.
    Connect {
        #[command(flatten)]
        load: Load,
    },
    /// Makes a store to measure on, below DIR.
    Corpus(Corpus),
    /// Starts a server and a peer on the same store and measures them in turn.
    Compare(Compare),
}

/// Which store to make.
#[derive(Debug, Args)]
pub struct Corpus {
    /// Files go to DIR/nix/store, the database to DIR/nix/var/nix/db.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Fewer and smaller packages: about 300 MB instead of 5 GB.
    #[arg(long, conflicts_with = "paths")]
    pub small: bool,
    /// No packages, but so many synthetic paths: rows of the database without files.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub paths: Option<u64>,
}

/// What to compare with what.
#[derive(Debug, Args)]
pub struct Compare {
    /// The store that both serve: the folder that holds its nix/ folder. Flat files go to DIR/flat.
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// lighttpd, nginx, or a shell command with {port} in it.
    #[arg(long, default_value = "lighttpd")]
    pub peer: String,
    /// The shell command of the server. {port}, {store} and {config} are replaced; the last is a settings file
    /// for the store on that port with two workers.
    #[arg(long, default_value = "exec harmonia serve --config {config}")]
    pub server: String,
    /// How often each scenario runs on each, in turn; once more before, to warm.
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    pub pairs: usize,
    /// Scenarios and their connections: narinfo, miss, nar, range, connect, closure.
    #[arg(long, value_delimiter = ',', default_value = "nar@16,narinfo@64,miss@64", value_parser = Leg::parse)]
    pub scenario: Vec<Leg>,
    /// Of each run of narinfo, miss and connect.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: u64,
    /// Start both anew for every run, and do not warm them: what a first request costs.
    #[arg(long)]
    pub fresh: bool,
    /// Both serve NARs compressed: the flat files are made so, and the settings file asks for it.
    #[arg(long, value_name = "FORMAT")]
    pub compression: Option<Compression>,
    /// A line more for the settings file, as 'cache_max_size = 0'; may be repeated.
    #[arg(long, value_name = "LINE")]
    pub setting: Vec<String>,
    /// Fail if a median ratio is higher: SCENARIO:cpu|wall|p50|client|both=RATIO, of a scenario that is run.
    #[arg(long, value_name = "BOUND", value_parser = Bound::parse)]
    pub at_most: Vec<Bound>,
    /// The same seed asks for the same paths in the same order.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write all that was measured to FILE.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write DIR/index.html, a page with plots.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
}

/// What every scenario takes.
#[derive(Debug, Args)]
pub struct Load {
    /// The cache: `http://HOST[:PORT][/PREFIX]`.
    #[arg(long, value_name = "URL")]
    target: String,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    pub output: Output,
}

/// Where the paths are learned from.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct SourceArgs {
    /// A file with a store path or hash part a line; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    paths: Option<PathBuf>,
    /// Store paths: these, and by the cache's narinfos all they refer to.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    roots: Vec<String>,
    /// All valid paths of the store whose files are in DIR/nix/store; `/` is this machine's own.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// How much is asked.
#[derive(Debug, Args)]
struct Shape {
    /// Connections; several numbers, separated by commas, give a run each. Not of `closure`: its clients decide.
    #[arg(short, long, value_delimiter = ',', value_name = "COUNT", value_parser = at_least_one)]
    connections: Vec<usize>,
    /// Seconds: the run ends then at the latest.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// The run ends after so many requests at the latest.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Requests a second, all connections together; each latency counts from when the request was due. Not of
    /// `closure`, `nar`, `range` and `churn`: they ask as soon as they may.
    #[arg(long, value_name = "NUMBER", value_parser = rate)]
    rate: Option<f64>,
    /// Go over the paths so many times, each a run of its own; `narinfo` else repeats until its time is over.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    passes: Option<u32>,
    /// Use so many of the paths, chosen by the seed.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = at_least_one)]
    limit: usize,
    /// Check narinfos against what was asked and NARs against their hashes.
    #[arg(long)]
    verify: bool,
    /// The same seed asks for the same paths in the same order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds in which some byte must move.
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
}

/// What is written, and what must have been reached.
#[derive(Debug, Args)]
pub struct Output {
    /// The server's process: its processor time and memory, child processes included (Linux).
    #[arg(long)]
    pub pid: Option<u32>,
    /// Write all that was measured to FILE.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write DIR/index.html, a page with plots.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
    /// Fail if a first series' 99th percentile is above so many milliseconds.
    #[arg(long, value_name = "MS")]
    pub max_p99: Option<f64>,
    /// Fail if a first series has fewer requests a second.
    #[arg(long, value_name = "NUMBER")]
    pub min_rate: Option<f64>,
    /// Fail if there are more errors.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub max_errors: u64,
}

impl Cli {
    /// Reads the command line. What its command would not heed is a mistake of its own.
    pub fn read() -> Result<Self, clap::Error> {
        Self::check(Self::try_parse()?)
    }

    fn check(self) -> Result<Self, clap::Error> {
        let refusal = match (&self.command, self.command.scenario()) {
            (_, Some((scenario, load))) => {
                load.shape.unheeded(&scenario).map(|words| refused(scenario.name(), words))
            }
            (Command::Compare(compare), _) => compare.unmeasured().map(|words| refused("compare", words)),
            _ => None,
        };
        refusal.map_or(Ok(self), Err)
    }
}

/// A usage error of a subcommand.
fn refused(subcommand: &str, words: String) -> clap::Error {
    let mut command = Cli::command();
    command.build();
    match command.find_subcommand_mut(subcommand) {
        Some(subcommand) => subcommand.error(ErrorKind::ArgumentConflict, words),
        None => command.error(ErrorKind::ArgumentConflict, words),
    }
}

impl Compare {
    /// A bound on what is not to be measured, in words.
    fn unmeasured(&self) -> Option<String> {
        let is_run = |bound: &&Bound| self.scenario.iter().any(|leg| leg.name == bound.leg);
        let bound = self.at_most.iter().find(|bound| !is_run(bound))?;
        let run: Vec<_> = self.scenario.iter().map(|leg| leg.name.as_str()).collect();
        Some(format!("--at-most {}: that scenario is not run, but {}", bound.leg, run.join(", ")))
    }
}

impl Shape {
    /// What was given that the scenario has no use for, in words.
    fn unheeded(&self, scenario: &Scenario) -> Option<String> {
        let name = scenario.name();
        if self.rate.is_some() && !scenario.keeps_a_rate() {
            return Some(format!("--rate is of no use to {name}: it asks as soon as it may"));
        }
        if !self.connections.is_empty() && !scenario.takes_connections() {
            return Some(format!("--connections is of no use to {name}: --clients decides, 25 for each"));
        }
        None
    }
}

impl Load {
    /// The cache's URL, and the settings.
    pub fn settings(&self) -> (String, Settings) {
        let source = match &self.source {
            SourceArgs { paths: Some(file), .. } => Some(Source::List(file.clone())),
            SourceArgs { store: Some(folder), .. } => Some(Source::Store(folder.clone())),
            SourceArgs { roots, .. } if !roots.is_empty() => Some(Source::Roots(roots.clone())),
            _ => None,
        };
        let shape = &self.shape;
        let settings = Settings {
            source,
            limit: shape.limit,
            connections: shape.connections.clone(),
            duration: shape.duration,
            requests: shape.requests,
            rate: shape.rate,
            passes: shape.passes,
            verify: shape.verify,
            seed: shape.seed,
            timeout: shape.timeout,
        };
        (self.target.clone(), settings)
    }
}

impl Command {
    /// The scenario and its load, of those commands that are one.
    pub fn scenario(&self) -> Option<(Scenario, &Load)> {
        Some(match self {
            Self::Closure { clients, miss_ratio, load } => {
                (Scenario::Closure { clients: *clients, miss_ratio: *miss_ratio }, load)
            }
            Self::Narinfo { load } => (Scenario::Narinfo, load),
            Self::Miss { load } => (Scenario::Miss, load),
            Self::Nar { load } => (Scenario::Nar, load),
            Self::Range { load } => (Scenario::Range, load),
            Self::Idle { idle, load } => (Scenario::Idle { idle: *idle }, load),
            Self::Slow { slow, read_rate, load } => {
                (Scenario::Slow { slow: *slow, read_rate: *read_rate }, load)
            }
            Self::Cold { streams, stream_rate, load } => {
                (Scenario::Cold { streams: *streams, stream_rate: stream_rate * 1_000_000 }, load)
            }
            Self::Churn { load } => (Scenario::Churn, load),
            Self::Connect { load } => (Scenario::Connect, load),
            Self::Corpus(_) | Self::Compare(_) => return None,
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.trim_end_matches('s').parse().map_err(|_| "not a number of seconds".to_owned())?;
    // A day: whatever else was meant, the run ends.
    if !(0.001..=86400.0).contains(&seconds) {
        return Err("not between 0.001 and 86400".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.001..=10_000_000.0).contains(&rate) {
        Ok(rate)
    } else {
        Err("not between 0.001 and 10000000".to_owned())
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=0.999).contains(&share) { Ok(share) } else { Err("not between 0 and 0.999".to_owned()) }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("not a count of at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' ')).and_then(Cli::check)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
    #[test]
    fn what_a_scenario_would_not_heed_is_refused() {
        for (scenario, option) in [
            ("closure", "--rate"),
            ("nar", "--rate"),
            ("range", "--rate"),
            ("churn", "--rate"),
            ("closure", "--connections"),
        ] {
            let error = read(&format!("loadtest {scenario} --target http://a {option} 5")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains(&format!("{option} is of no use to {scenario}")), "{text}");
            assert!(text.contains(&format!("Usage: loadtest {scenario}")), "{text}");
        }
        for scenario in ["narinfo", "miss", "connect", "idle", "slow", "cold"] {
            assert!(
                read(&format!("loadtest {scenario} --target http://a --rate 5 -c 5")).is_ok(),
                "{scenario}"
            );
        }
        for scenario in ["nar", "range", "churn"] {
            assert!(read(&format!("loadtest {scenario} --target http://a -c 5")).is_ok(), "{scenario}");
        }
        assert!(read("loadtest closure --target http://a").is_ok());
    }
    #[test]
    fn a_crowd_of_nobody_is_refused() {
        for (scenario, option) in [("cold", "--streams"), ("slow", "--slow")] {
            let error = read(&format!("loadtest {scenario} --target http://a {option} 0")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("not a count of at least 1"), "{error}");
            assert!(read(&format!("loadtest {scenario} --target http://a {option} 1")).is_ok(), "{scenario}");
        }
    }

    #[test]
    fn bounds_on_what_is_not_run_are_refused() {
        for (arguments, words) in [
            (
                "--at-most range:cpu=1",
                "--at-most range@16: that scenario is not run, but nar@16, narinfo@64, miss@64",
            ),
            ("--scenario nar@1 --at-most nar:cpu=1", "--at-most nar@16: that scenario is not run, but nar@1"),
            ("--at-most nar:gpu=1", "cpu|wall|p50|client|both"),
            ("--at-most nar:cpu=nan", "cpu|wall|p50|client|both"),
        ] {
            let error = read(&format!("loadtest compare --store /nonexistent {arguments}")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(words), "{error}");
        }
        for arguments in ["--at-most nar:cpu=1", "--scenario nar@1,miss --at-most miss@64:p50=2"] {
            assert!(
                read(&format!("loadtest compare --store /nonexistent {arguments}")).is_ok(),
                "{arguments}"
            );
        }
    }
}
