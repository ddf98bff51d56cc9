//! `loadtest compare`: a server and a peer on the same store and the same machine, in turn.
//!
//! Ratios are taken pair by pair, so that what the machine did meanwhile happened to both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::catalogue::Source;
use crate::measure::{MeasureError, Scenario, Session, Settings, Tell};
use crate::output;
use crate::peers::{Compression, FlatError, Peer, WORKERS, flat_files, flat_folder};
use crate::process::Tree;
use crate::spawn::{Server, StartError, free_port};
use crate::stats::Run;

/// A leg that takes longer is cut; its ratio is then one of rates.
const LEG_MAX: Duration = Duration::from_secs(300);
/// As for every run.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server that is idle for so long, but for a fiftieth, has settled: what it does behind the first requests may begin
/// a while after them.
const SETTLE_QUIET: Duration = Duration::from_secs(8);
/// How often that is looked at.
const SETTLE_LOOK: Duration = Duration::from_millis(250);
/// How long settling is waited for.
const SETTLE_MAX: Duration = Duration::from_secs(120);

/// What is compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    pub store: PathBuf,
    pub peer: Peer,
    /// A shell command; `{port}`, `{store}` and `{config}` are replaced.
    pub server: String,
    pub pairs: usize,
    pub legs: Vec<Leg>,
    /// Of each narinfo or miss leg.
    pub requests: u64,
    pub seed: u64,
    /// Both servers are started anew for each leg, and none is warmed.
    pub fresh: bool,
    /// More lines of the server's settings file.
    pub settings: Vec<String>,
    /// What NARs are compressed with, by both.
    pub compression: Option<Compression>,
}

/// A scenario at a number of connections: `nar@16`.
#[derive(Debug, Clone, PartialEq)]
pub struct Leg {
    pub name: String,
    scenario: Scenario,
    connections: usize,
}

impl Leg {
    /// Parses `SCENARIO[@CONNECTIONS]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, count) = text.split_once('@').map_or((text, None), |(name, count)| (name, Some(count)));
        let (scenario, usual) = match name {
            "narinfo" => (Scenario::Narinfo, 64),
            "miss" => (Scenario::Miss, 64),
            "nar" => (Scenario::Nar, 16),
            "range" => (Scenario::Range, 16),
            "connect" => (Scenario::Connect, 16),
            "closure" => (Scenario::Closure { clients: 2, miss_ratio: 0.8 }, 50),
            _ => {
                return Err("one of narinfo, miss, nar, range, connect, closure, and @CONNECTIONS".to_owned());
            }
        };
        let connections = match count {
            Some(count) if name != "closure" => count.parse().ok().filter(|&count| count > 0),
            Some(_) => None,
            None => Some(usual),
        };
        let connections =
            connections.ok_or_else(|| "what follows @ is no count of connections".to_owned())?;
        Ok(Self { name: format!("{name}@{connections}"), scenario, connections })
    }

    /// Whether its cost is one of bytes.
    fn by_bytes(&self) -> bool {
        matches!(self.scenario, Scenario::Nar | Scenario::Range)
    }
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(transparent)]
    Flat(#[from] FlatError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("no free port on the loopback: {0}")]
    Port(io::Error),
    #[error("{run}: nothing to compare: {answered} requests answered, {errors} errors")]
    Nothing { run: String, answered: u64, errors: u64 },
    #[error("interrupted before any pair was complete: nothing is compared")]
    Interrupted,
}

/// One side's figures of one leg, each a request or a GiB.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub cpu: f64,
    pub wall: f64,
    pub p50: f64,
    pub client: f64,
}

impl Figures {
    fn of(run: &Run, by_bytes: bool) -> Option<Self> {
        let usage = run.server.as_ref()?;
        let units = if by_bytes { run.bytes() as f64 / output::GIB } else { run.requests() as f64 / 1e6 };
        let p50 = run.series.first()?.percentile_us(0.5);
        let figures = Self {
            cpu: usage.cpu.as_secs_f64() / units,
            wall: run.wall.as_secs_f64() / units,
            p50,
            client: run.client_cpu.as_secs_f64() / units,
        };
        (run.requests() > 0 && units > 0.0).then_some(figures)
    }

    /// By the names that bounds are given by.
    pub fn measures(&self) -> [(&'static str, f64); 5] {
        [
            ("cpu", self.cpu),
            ("wall", self.wall),
            ("p50", self.p50),
            ("client", self.client),
            ("both", self.cpu + self.client),
        ]
    }
}

/// A leg's pairs: the server's figures and the peer's.
#[derive(Debug)]
pub struct Compared {
    pub leg: String,
    pub by_bytes: bool,
    pub pairs: Vec<(Figures, Figures)>,
    pub wrong: u64,
    pub errors: u64,
}

/// A ratio's middle and its ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

/// A measure of a leg: the medians of both sides, and the ratio pair by pair. None where no pair is complete.
#[derive(Debug)]
pub struct Ratio {
    pub measure: &'static str,
    pub server: Option<f64>,
    pub peer: Option<f64>,
    pub ratio: Option<Spread>,
}

impl Compared {
    /// All measures.
    pub fn ratios(&self) -> Vec<Ratio> {
        let names = ["cpu", "wall", "p50", "client", "both"];
        let ratio = |(index, measure): (usize, &'static str)| {
            let values = |side: fn(&(Figures, Figures)) -> &Figures| -> Vec<f64> {
                self.pairs.iter().map(|pair| side(pair).measures()[index].1).collect()
            };
            let (server, peer) = (values(|pair| &pair.0), values(|pair| &pair.1));
            let ratios = server.iter().zip(&peer).map(|(a, b)| a / b).collect();
            let median = |values| Spread::of(values).map(|spread| spread.median);
            Ratio { measure, server: median(server), peer: median(peer), ratio: Spread::of(ratios) }
        };
        names.into_iter().enumerate().map(ratio).collect()
    }
}

/// All that came of a comparison; `runs` are the single legs.
#[derive(Debug)]
pub struct Outcome {
    pub compared: Vec<Compared>,
    pub runs: Vec<Run>,
    /// By a signal: pairs are missing.
    pub interrupted: bool,
}

impl Outcome {
    /// Whether there is anything to compare.
    pub fn is_empty(&self) -> bool {
        self.compared.iter().all(|compared| compared.pairs.is_empty())
    }

    /// What an interruption left, in words.
    pub fn interruption(&self, pairs: usize) -> Option<String> {
        let count = |compared: &Compared| format!("{} {} of {pairs}", compared.leg, compared.pairs.len());
        let counts: Vec<_> = self.compared.iter().map(count).collect();
        self.interrupted
            .then(|| format!("interrupted; pairs that were complete by then: {}", counts.join(", ")))
    }
}

/// Runs the comparison: ends by itself, and with it the servers it started.
pub fn run(
    comparison: &Comparison,
    stop: &Arc<AtomicBool>,
    say: &mut dyn FnMut(&str),
    tell: Tell,
) -> Result<Outcome, CompareError> {
    let folder = comparison.store.join(format!("compare-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|source| CompareError::File { path: folder.clone(), source })?;
    let outcome = run_in(comparison, &folder, stop, say, tell);
    // Configuration and logs; what mattered of them is in the errors.
    let _ = fs::remove_dir_all(&folder);
    outcome
}

fn run_in(
    comparison: &Comparison,
    folder: &Path,
    stop: &Arc<AtomicBool>,
    say: &mut dyn FnMut(&str),
    tell: Tell,
) -> Result<Outcome, CompareError> {
    let store = std::path::absolute(&comparison.store)
        .map_err(|source| CompareError::File { path: comparison.store.clone(), source })?;
    let folder = std::path::absolute(folder)
        .map_err(|source| CompareError::File { path: folder.to_owned(), source })?;
    let compression = comparison.compression;
    let flat = match comparison.peer.is_flat() {
        true => flat_files(&store, compression, say)?,
        false => flat_folder(&store, compression),
    };
    let sides = [
        Side {
            name: "server".to_owned(),
            peer: None,
            comparison,
            store: &store,
            flat: &flat,
            folder: &folder,
        },
        Side {
            name: comparison.peer.name().to_owned(),
            peer: Some(&comparison.peer),
            comparison,
            store: &store,
            flat: &flat,
            folder: &folder,
        },
    ];
    let running = if comparison.fresh { None } else { Some([sides[0].start()?, sides[1].start()?]) };
    let mut outcome = Outcome { compared: Vec::new(), runs: Vec::new(), interrupted: false };
    for leg in &comparison.legs {
        let mut compared = Compared {
            leg: leg.name.clone(),
            by_bytes: leg.by_bytes(),
            pairs: Vec::new(),
            wrong: 0,
            errors: 0,
        };
        // Pair 0 warms: plans, caches, the kernel's own.
        for pair in usize::from(comparison.fresh)..=comparison.pairs {
            let ran = match stop.load(Ordering::Relaxed) {
                true => None,
                false => run_pair(&sides, running.as_ref(), leg, pair, stop, tell)?,
            };
            let Some([server, peer]) = ran else {
                outcome.interrupted = true;
                break;
            };
            for run in [&server, &peer] {
                compared.wrong += run.wrong;
                compared.errors += run.errors();
            }
            let figures = (figures(&server, leg)?, figures(&peer, leg)?);
            if pair > 0 {
                compared.pairs.push(figures);
            }
            outcome.runs.extend([server, peer]);
        }
        outcome.compared.push(compared);
    }
    Ok(outcome)
}

fn figures(run: &Run, leg: &Leg) -> Result<Figures, CompareError> {
    Figures::of(run, leg.by_bytes()).ok_or_else(|| CompareError::Nothing {
        run: run.name.clone(),
        answered: run.requests(),
        errors: run.errors(),
    })
}

/// One leg on the one side, then on the other. None if it was interrupted.
fn run_pair(
    sides: &[Side<'_>; 2],
    running: Option<&[Server; 2]>,
    leg: &Leg,
    pair: usize,
    stop: &Arc<AtomicBool>,
    tell: Tell,
) -> Result<Option<[Run; 2]>, CompareError> {
    let mut one = |index: usize| -> Result<Option<Run>, CompareError> {
        let side = &sides[index];
        let name = format!("{}, {}, {pair}", leg.name, side.name);
        let started;
        let server = match running {
            Some(servers) => &servers[index],
            None => {
                started = side.start()?;
                &started
            }
        };
        let mut told = |step: &str, progress| tell(if step == "learning" { step } else { &name }, progress);
        let run = side.leg(leg, server, stop, &mut told)?;
        if pair == 0 {
            settle(&server.tree, stop);
        }
        Ok(run.map(|run| Run { name, ..run }))
    };
    let Some(server) = one(0)? else { return Ok(None) };
    let Some(peer) = one(1)? else { return Ok(None) };
    Ok(Some([server, peer]))
}

/// Waits until the server no longer works at what the warming leg made it begin, in the background.
fn settle(tree: &Tree, stop: &AtomicBool) {
    let begun = Instant::now();
    let (mut busy, mut before) = (begun, tree.usage().cpu);
    while busy.elapsed() < SETTLE_QUIET && begun.elapsed() < SETTLE_MAX && !stop.load(Ordering::Relaxed) {
        thread::sleep(SETTLE_LOOK);
        let now = tree.usage().cpu;
        if now.saturating_sub(before) >= SETTLE_LOOK / 50 {
            busy = Instant::now();
        }
        before = now;
    }
}

/// One of the two that are compared.
struct Side<'a> {
    name: String,
    /// None: the server itself.
    peer: Option<&'a Peer>,
    comparison: &'a Comparison,
    store: &'a Path,
    flat: &'a Path,
    folder: &'a Path,
}

impl Side<'_> {
    fn start(&self) -> Result<Server, CompareError> {
        let port = free_port().map_err(CompareError::Port)?;
        let file = |source| CompareError::File { path: self.folder.to_owned(), source };
        let command = match self.peer {
            Some(peer) => peer.command(port, self.flat, self.folder).map_err(file)?,
            None => self.own_command(port).map_err(file)?,
        };
        Ok(Server::start(&command, port, &self.folder.join(format!("{}.out", self.name)))?)
    }

    /// `{config}` is a settings file for the store on the port, with as many workers as the peer has.
    fn own_command(&self, port: u16) -> io::Result<String> {
        let (store, config) = (self.store.display().to_string(), self.folder.join("settings.toml"));
        let own = format!(
            "bind = \"127.0.0.1:{port}\"\nworkers = {WORKERS}\nreal_nix_store = \"{store}/nix/store\"\n"
        );
        let compression =
            self.comparison.compression.map(|format| format!("compression = \"{}\"\n", format.name()));
        fs::write(&config, own + &compression.unwrap_or_default() + &self.comparison.settings.join("\n"))?;
        let command = self.comparison.server.replace("{port}", &port.to_string());
        let command = command.replace("{store}", &store).replace("{config}", &config.display().to_string());
        // What it keeps is for this start alone, so that a fresh one has seen nothing.
        let cache = self.folder.join(format!("cache-{port}"));
        Ok(format!("export CACHE_DIRECTORY='{}'; {command}", cache.display()))
    }

    /// None if it was interrupted.
    fn leg(
        &self,
        leg: &Leg,
        server: &Server,
        stop: &Arc<AtomicBool>,
        tell: Tell,
    ) -> Result<Option<Run>, CompareError> {
        let counted = matches!(leg.scenario, Scenario::Narinfo | Scenario::Miss | Scenario::Connect);
        let settings = Settings {
            source: Some(Source::Store(self.store.to_owned())),
            limit: usize::MAX,
            connections: vec![leg.connections],
            duration: Some(LEG_MAX),
            requests: counted.then_some(self.comparison.requests),
            rate: None,
            passes: None,
            verify: false,
            seed: self.comparison.seed,
            timeout: TIMEOUT,
        };
        let url = format!("http://127.0.0.1:{}", server.port);
        let scenarios = std::slice::from_ref(&leg.scenario);
        let tree = Some(server.tree.clone());
        let measured = Session::open(&url, scenarios, settings, tree, Arc::clone(stop), tell)
            .and_then(|session| session.run(&leg.scenario, tell));
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        Ok(measured?.pop())
    }
}

/// The table of ratios.
pub fn table(outcome: &Outcome, peer: &str) -> String {
    let head = ["scenario", "measure", "server", peer, "ratio", "least", "most", "pairs"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for compared in &outcome.compared {
        for (index, ratio) in compared.ratios().iter().enumerate() {
            let shown = |value: f64| match (ratio.measure, compared.by_bytes) {
                ("p50", _) => output::time(value),
                (_, true) => format!("{value:.3} s/GiB"),
                (_, false) => format!("{value:.2} µs/req"),
            };
            let times =
                |part: fn(Spread) -> f64| or_dash(ratio.ratio.map(part), |value| format!("{value:.3}"));
            let what = match ratio.measure {
                "cpu" => "server's cpu",
                "client" => "client's cpu",
                "both" => "both's cpu",
                other => other,
            };
            rows.push(vec![
                if index == 0 { compared.leg.clone() } else { String::new() },
                what.to_owned(),
                or_dash(ratio.server, shown),
                or_dash(ratio.peer, shown),
                times(|spread| spread.median),
                times(|spread| spread.min),
                times(|spread| spread.max),
                compared.pairs.len().to_string(),
            ]);
        }
    }
    output::aligned(&rows, 2)
}

/// `–` for what was not measured, and for a ratio to nothing.
fn or_dash(value: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    value.filter(|value| value.is_finite()).map_or_else(|| "–".to_owned(), shown)
}

/// For programs. What was not measured is null.
pub fn to_json(outcome: &Outcome, peer: &str) -> Value {
    let ratio = |ratio: Ratio| {
        json!({
            "measure": ratio.measure, "server": ratio.server, "peer": ratio.peer,
            "ratio": ratio.ratio.map(|spread| spread.median),
            "min": ratio.ratio.map(|spread| spread.min),
            "max": ratio.ratio.map(|spread| spread.max),
        })
    };
    let compared = |compared: &Compared| {
        json!({
            "scenario": compared.leg,
            "unit": if compared.by_bytes { "s/GiB" } else { "us/request" },
            "pairs": compared.pairs.len(),
            "errors": compared.errors,
            "wrong": compared.wrong,
            "ratios": compared.ratios().into_iter().map(ratio).collect::<Vec<_>>(),
        })
    };
    json!({
        "peer": peer,
        "interrupted": outcome.interrupted,
        "scenarios": outcome.compared.iter().map(compared).collect::<Vec<_>>(),
    })
}

/// A bound on a median ratio: `nar@16:cpu=1.05`.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    pub leg: String,
    measure: String,
    most: f64,
}

impl Bound {
    /// Parses `SCENARIO[@CONNECTIONS]:MEASURE=RATIO`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || "of the form SCENARIO[@CONNECTIONS]:cpu|wall|p50|client|both=RATIO".to_owned();
        let (leg, rest) = text.split_once(':').ok_or_else(form)?;
        let (measure, most) = rest.split_once('=').ok_or_else(form)?;
        let most = most.parse().ok().filter(|most: &f64| !most.is_nan()).ok_or_else(form)?;
        if !["cpu", "wall", "p50", "client", "both"].contains(&measure) {
            return Err(form());
        }
        Ok(Self { leg: Leg::parse(leg)?.name, measure: measure.to_owned(), most })
    }

    /// In words, where it is not kept, or where nothing was measured that it bounds.
    pub fn missed(&self, outcome: &Outcome) -> Option<String> {
        let Self { leg, measure, most } = self;
        let compared = outcome.compared.iter().find(|compared| compared.leg == *leg);
        let ratios = compared.map(Compared::ratios).unwrap_or_default();
        let ratio = ratios.into_iter().find(|ratio| ratio.measure == measure);
        let Some(median) = ratio.and_then(|ratio| ratio.ratio).map(|spread| spread.median) else {
            return Some(format!("{leg}: {measure} was not measured"));
        };
        // Nor is a ratio that is no number within the bound.
        (median.is_nan() || median > *most)
            .then(|| format!("{leg}: {measure} ratio {median:.3}, more than {most}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cpu: f64) -> Figures {
        Figures { cpu, wall: 1.0, p50: 1.0, client: 1.0 }
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let pairs = [(1.0, 2.0), (30.0, 20.0), (4.0, 4.0)].map(|(a, b)| (figures(a), figures(b))).to_vec();
        let compared = Compared { leg: "nar@16".into(), by_bytes: true, pairs, wrong: 0, errors: 0 };
        let cpu = &compared.ratios()[0];
        assert_eq!(cpu.ratio, Some(Spread { median: 1.0, min: 0.5, max: 1.5 }));
        let outcome = Outcome { compared: vec![compared], runs: Vec::new(), interrupted: false };
        assert_eq!(Bound::parse("nar:cpu=1.0").unwrap().missed(&outcome), None);
        assert!(Bound::parse("nar@16:cpu=0.99").unwrap().missed(&outcome).is_some());
        assert!(Bound::parse("miss:cpu=9").unwrap().missed(&outcome).is_some());
    }

    #[test]
    fn without_a_complete_pair_there_are_no_numbers() {
        let compared =
            |leg: &str, pairs| Compared { leg: leg.into(), by_bytes: true, pairs, wrong: 0, errors: 0 };
        let none = compared("nar@16", Vec::new());
        let mut outcome = Outcome { compared: vec![none], runs: Vec::new(), interrupted: true };
        assert!(outcome.is_empty());
        let ratio = &to_json(&outcome, "nginx")["scenarios"][0]["ratios"][0];
        assert!(ratio["ratio"].is_null() && ratio["server"].is_null(), "{ratio:#}");
        let missed = Bound::parse("nar@16:cpu=9").unwrap().missed(&outcome).unwrap();
        assert_eq!(missed, "nar@16: cpu was not measured");
        // One pair, whose peer cost nothing that could be measured.
        outcome.compared.push(compared("nar@1", vec![(figures(1.0), figures(0.0))]));
        assert!(!outcome.is_empty());
        let table = table(&outcome, "nginx");
        assert!(!table.contains("NaN") && !table.contains("inf"), "{table}");
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let first = table.lines().find(|line| line.starts_with("nar@16")).unwrap();
        assert_eq!(cells(first), ["nar@16", "server's", "cpu", "–", "–", "–", "–", "–", "0"]);
        let words = outcome.interruption(5).unwrap();
        assert!(words.ends_with("complete by then: nar@16 0 of 5, nar@1 1 of 5"), "{words}");
    }

    #[test]
    fn legs_and_bounds_are_parsed() {
        assert_eq!(Leg::parse("nar").unwrap().name, "nar@16");
        assert_eq!(Leg::parse("narinfo@1").unwrap().connections, 1);
        for wrong in ["nar@0", "nar@x", "narr", "closure@3"] {
            assert!(Leg::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["nar", "nar:cpu", "nar:gpu=1", "nar:cpu=x"] {
            assert!(Bound::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }
}
