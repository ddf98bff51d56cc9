//! From a scenario and its settings to runs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::catalogue::{self, CatalogueError, Nar, Source};
use crate::database::DatabaseError;
use crate::engine::{self, Bounds, Progress, Workload};
use crate::process::{Tree, own_cpu};
use crate::random::Random;
use crate::scenarios::churn::Churn;
use crate::scenarios::closure::{self, Closure};
use crate::scenarios::cold::{Streams, drop_caches};
use crate::scenarios::crowd::{Beside, Crowd};
use crate::scenarios::nar::Nars;
use crate::scenarios::queries::{Queries, Subject};
use crate::scenarios::range::Ranges;
use crate::stats::Run;
use crate::target::{Target, TargetError};

/// How long a scenario that repeats goes on, unless told.
const REPEATING: Duration = Duration::from_secs(10);
/// How long one that ends by itself may take, unless told.
const ENDING: Duration = Duration::from_secs(1800);
/// A request that a slow sender takes half a minute for: about 150 bytes at this many a second.
const SLOW_SENDER: u64 = 5;

/// What to put on the cache.
#[derive(Debug, Clone, PartialEq)]
pub enum Scenario {
    Closure { clients: usize, miss_ratio: f64 },
    Narinfo,
    Miss,
    Nar,
    Range,
    Idle { idle: usize },
    Slow { slow: usize, read_rate: u64 },
    Cold { streams: usize, stream_rate: u64 },
    Churn,
    Connect,
}

impl Scenario {
    /// As on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Closure { .. } => "closure",
            Self::Narinfo => "narinfo",
            Self::Miss => "miss",
            Self::Nar => "nar",
            Self::Range => "range",
            Self::Idle { .. } => "idle",
            Self::Slow { .. } => "slow",
            Self::Cold { .. } => "cold",
            Self::Churn => "churn",
            Self::Connect => "connect",
        }
    }

    fn needs_hashes(&self) -> bool {
        !matches!(self, Self::Miss | Self::Connect | Self::Idle { .. })
    }

    fn needs_nars(&self) -> bool {
        matches!(self, Self::Closure { .. } | Self::Nar | Self::Range | Self::Slow { .. } | Self::Cold { .. })
    }

    /// Connections, each number a run of its own. Of `closure`, the clients decide.
    fn connections(&self) -> Vec<usize> {
        match self {
            Self::Closure { clients, .. } => vec![clients * closure::CONNECTIONS],
            Self::Narinfo | Self::Miss => vec![64],
            Self::Nar => vec![1, 4, 16, 64],
            Self::Range | Self::Churn | Self::Connect => vec![16],
            Self::Idle { .. } => vec![4],
            Self::Slow { .. } | Self::Cold { .. } => vec![8],
        }
    }

    /// Whether requests may be due at a fixed rate; the others ask in a closed loop alone.
    pub fn keeps_a_rate(&self) -> bool {
        match self {
            Self::Narinfo | Self::Miss | Self::Connect => true,
            Self::Idle { .. } | Self::Slow { .. } | Self::Cold { .. } => true,
            Self::Closure { .. } | Self::Nar | Self::Range | Self::Churn => false,
        }
    }

    /// Whether the number of connections can be chosen.
    pub fn takes_connections(&self) -> bool {
        !matches!(self, Self::Closure { .. })
    }

    /// Requests a second, where a closed loop would say little.
    fn rate(&self) -> Option<f64> {
        match self {
            Self::Idle { .. } => Some(200.0),
            Self::Cold { .. } => Some(500.0),
            _ => None,
        }
    }
}

/// How to measure; what is None is the scenario's own.
#[derive(Debug, Clone)]
pub struct Settings {
    pub source: Option<Source>,
    pub limit: usize,
    pub connections: Vec<usize>,
    pub duration: Option<Duration>,
    pub requests: Option<u64>,
    pub rate: Option<f64>,
    pub passes: Option<u32>,
    pub verify: bool,
    pub seed: u64,
    pub timeout: Duration,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("cannot poll: {0}")]
    Poll(#[from] io::Error),
    #[error("{0} needs to know what the cache has: --paths FILE, --roots PATH… or --store DIR")]
    NoSource(&'static str),
    #[error("churn changes a store, and so needs --store DIR; not one that anybody uses")]
    NoStore,
}

/// A cache, and what is known of it.
pub struct Session {
    target: Target,
    tree: Option<Tree>,
    settings: Settings,
    stop: Arc<AtomicBool>,
    hashes: Vec<String>,
    nars: Arc<[Nar]>,
}

/// Told of each step: its name, and how it stands.
pub type Tell<'a> = &'a mut dyn FnMut(&str, Progress);

impl Session {
    /// Finds the cache and learns what the scenarios need of it.
    pub fn open(
        url: &str,
        scenarios: &[Scenario],
        settings: Settings,
        tree: Option<Tree>,
        stop: Arc<AtomicBool>,
        tell: Tell,
    ) -> Result<Self, MeasureError> {
        let target = Target::parse(url)?;
        catalogue::greet(url, &target, settings.timeout, &stop)?;
        let mut session = Self { target, tree, settings, stop, hashes: Vec::new(), nars: Arc::from([]) };
        let Some(needy) = scenarios.iter().find(|scenario| scenario.needs_hashes()) else {
            return Ok(session);
        };
        let source = session.settings.source.clone();
        let source = source.ok_or(MeasureError::NoSource(needy.name()))?;
        let follow = matches!(source, Source::Roots(_));
        let limit = session.settings.limit;
        let hashes = catalogue::hashes(&source, limit, &mut Random::new(session.settings.seed))?;
        if !follow && !scenarios.iter().any(Scenario::needs_nars) {
            session.hashes = hashes;
            return Ok(session);
        }
        let timeout = session.settings.timeout;
        let mut say = |progress| tell("learning", progress);
        let learned =
            catalogue::learn(&session.target, hashes, follow, limit, timeout, &session.stop, &mut say)?;
        (session.hashes, session.nars) = learned;
        Ok(session)
    }

    /// Runs a scenario as often as its settings ask: each number of connections, each pass.
    pub fn run(&self, scenario: &Scenario, tell: Tell) -> Result<Vec<Run>, MeasureError> {
        let own = scenario.connections();
        let asked = &self.settings.connections;
        let connections = if asked.is_empty() || !scenario.takes_connections() { &own } else { asked };
        let mut runs = Vec::new();
        for &count in connections {
            for pass in 1..=self.settings.passes.unwrap_or(1) {
                let mut name = scenario.name().to_owned();
                if connections.len() > 1 {
                    name += &format!(", {count}");
                }
                if self.settings.passes.is_some_and(|passes| passes > 1) {
                    name += &format!(", pass {pass}");
                }
                runs.extend(self.run_once(scenario, name, count, tell)?);
                if runs.last().is_some_and(|run| run.interrupted) {
                    return Ok(runs);
                }
            }
        }
        Ok(runs)
    }

    fn run_once(
        &self,
        scenario: &Scenario,
        name: String,
        lanes: usize,
        tell: Tell,
    ) -> Result<Vec<Run>, MeasureError> {
        if let Scenario::Cold { streams, stream_rate } = *scenario {
            return self.run_cold(streams, stream_rate, lanes, tell);
        }
        let mut workload = self.workload(scenario, lanes)?;
        Ok(vec![self.measure(name, lanes, workload.as_mut(), self.bounds(scenario), tell)?])
    }

    fn bounds(&self, scenario: &Scenario) -> Bounds {
        let ends = matches!(scenario, Scenario::Closure { .. } | Scenario::Nar | Scenario::Range)
            || (*scenario == Scenario::Narinfo && self.settings.passes.is_some())
            || self.settings.requests.is_some();
        Bounds {
            duration: self.settings.duration.unwrap_or(if ends { ENDING } else { REPEATING }),
            requests: self.settings.requests.unwrap_or(u64::MAX),
            timeout: self.settings.timeout,
        }
    }

    fn queries(&self, scenario: &Scenario, subject: Subject, lanes: usize) -> Queries {
        let rate = self.settings.rate.or(scenario.rate());
        Queries::new(subject, lanes, Random::new(self.settings.seed))
            .at_rate(rate)
            .verifying(self.settings.verify)
    }

    fn hits(&self) -> Subject {
        if self.hashes.is_empty() { Subject::CacheInfo } else { Subject::Hits(self.hashes.clone()) }
    }

    fn workload(&self, scenario: &Scenario, lanes: usize) -> Result<Box<dyn Workload>, MeasureError> {
        let (verify, nars) = (self.settings.verify, Arc::clone(&self.nars));
        let random = Random::new(self.settings.seed);
        Ok(match *scenario {
            Scenario::Narinfo => {
                let count = if self.settings.passes.is_some() { self.hashes.len() as u64 } else { u64::MAX };
                Box::new(self.queries(scenario, self.hits(), lanes).count(count))
            }
            Scenario::Miss => Box::new(self.queries(scenario, Subject::Misses, lanes)),
            Scenario::Connect => Box::new(self.queries(scenario, Subject::CacheInfo, lanes).connecting()),
            Scenario::Nar => Box::new(Nars::new(nars, lanes, verify)),
            Scenario::Range => Box::new(Ranges::new(nars, lanes, random)),
            Scenario::Closure { clients, miss_ratio } => {
                Box::new(Closure::new(self.hashes.clone(), nars, clients, miss_ratio, verify, random))
            }
            Scenario::Idle { idle } => {
                let queries = self.queries(scenario, Subject::CacheInfo, lanes);
                Box::new(Beside::new(queries, lanes, Crowd::Idle, idle, nars, self.tree.clone()))
            }
            Scenario::Slow { slow, read_rate } => {
                let queries = self.queries(scenario, self.hits(), lanes);
                let crowd = Crowd::Slow { read_rate, send_rate: SLOW_SENDER };
                Box::new(Beside::new(queries, lanes, crowd, slow, self.largest_first(), None))
            }
            // What is beside them has a thread of its own.
            Scenario::Cold { .. } => Box::new(self.queries(scenario, self.hits(), lanes)),
            Scenario::Churn => {
                let folder = self.store().ok_or(MeasureError::NoStore)?;
                let others = Queries::new(self.hits(), lanes, random.clone());
                Box::new(Churn::start(&folder, lanes, others, random)?)
            }
        })
    }

    /// Twice: narinfos alone, then beside cold NARs; the page cache dropped before each.
    fn run_cold(
        &self,
        streams: usize,
        stream_rate: u64,
        lanes: usize,
        tell: Tell,
    ) -> Result<Vec<Run>, MeasureError> {
        let scenario = Scenario::Cold { streams, stream_rate };
        let bounds = self.bounds(&scenario);
        let store = self.store();
        let dropped = drop_caches(store.as_deref());
        let mut alone = self.workload(&scenario, lanes)?;
        let mut first = self.measure("cold, alone".to_owned(), lanes, alone.as_mut(), bounds, tell)?;
        first.notes.push(dropped);
        if first.interrupted {
            return Ok(vec![first]);
        }
        let dropped = drop_caches(store.as_deref());
        let name = format!("cold, beside {streams} NARs");
        let crowd = Streams::new(streams, stream_rate, self.largest_first());
        let mut second = self.beside(crowd, bounds, || {
            self.measure(name, lanes, self.workload(&scenario, lanes)?.as_mut(), bounds, tell)
        })?;
        second.notes.push(dropped);
        let p99 = |run: &Run| run.series[0].percentile_us(0.99);
        let (alone, beside) = (p99(&first), p99(&second));
        second.notes.push(format!("narinfo p99 {:.2} × that without NARs", beside / alone.max(1e-3)));
        Ok(vec![first, second])
    }

    /// Measures, within `bounds`, while NARs stream, which a thread of its own receives: what it takes to drop a megabyte
    /// at once must not count in the latency of what is measured.
    fn beside(
        &self,
        mut crowd: Streams,
        bounds: Bounds,
        measure: impl FnOnce() -> Result<Run, MeasureError>,
    ) -> Result<Run, MeasureError> {
        let is_over = AtomicBool::new(false);
        let bounds = outlasting(bounds);
        thread::scope(|scope| {
            let streaming = scope.spawn(|| {
                engine::run(&self.target, &mut crowd, bounds, &is_over, &mut |_| ()).map(|run| (run, crowd))
            });
            let run = {
                let _over = Over(&is_over);
                measure()
            };
            let streamed = streaming.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (mut run, (streamed, mut crowd)) = (run?, streamed?);
            run.series.extend(streamed.series);
            run.opened += streamed.opened;
            run.reconnects += streamed.reconnects;
            run.wrong += streamed.wrong;
            run.notes.extend(crowd.notes());
            Ok(run)
        })
    }

    fn largest_first(&self) -> Arc<[Nar]> {
        let mut nars = self.nars.to_vec();
        nars.sort_by_key(|nar| std::cmp::Reverse(nar.size));
        nars.into()
    }

    fn store(&self) -> Option<PathBuf> {
        match &self.settings.source {
            Some(Source::Store(folder)) => Some(folder.clone()),
            _ => None,
        }
    }

    fn measure(
        &self,
        name: String,
        connections: usize,
        workload: &mut dyn Workload,
        bounds: Bounds,
        tell: Tell,
    ) -> Result<Run, MeasureError> {
        let before = (self.tree.as_ref().map(Tree::usage), own_cpu());
        let mut say = |progress| tell(&name, progress);
        let measured = engine::run(&self.target, workload, bounds, &self.stop, &mut say)?;
        let client_cpu = own_cpu().saturating_sub(before.1);
        let after = self.tree.as_ref().map(Tree::usage);
        let server = after.zip(before.0).map(|(after, before)| after.since(&before));
        Ok(Run {
            name,
            connections,
            wall: measured.wall,
            series: measured.series,
            server,
            client_cpu,
            opened: measured.opened,
            reconnects: measured.reconnects,
            wrong: measured.wrong,
            notes: workload.notes(),
            interrupted: measured.interrupted,
        })
    }
}

/// Says that something is over when it is dropped, also by a panic: the scope of a thread would wait for it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The bounds of what goes on beside a run of these bounds until that is over, however long it is.
fn outlasting(bounds: Bounds) -> Bounds {
    Bounds { duration: bounds.duration.saturating_add(ENDING), requests: u64::MAX, ..bounds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn streams_go_on_as_long_as_what_they_are_beside() {
        let hours = Bounds { duration: 10 * ENDING, requests: 5, timeout: Duration::from_secs(1) };
        assert!(outlasting(hours).duration > hours.duration && outlasting(hours).requests == u64::MAX);
    }

    #[test]
    fn streams_end_where_the_measuring_panics() {
        let settings = Settings {
            source: None,
            limit: 1,
            connections: Vec::new(),
            duration: None,
            requests: None,
            rate: None,
            passes: None,
            verify: false,
            seed: 0,
            timeout: Duration::from_secs(1),
        };
        // Nobody listens there: its one stream tries again and again.
        let target = Target::parse("http://127.0.0.1:1").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let session = Session { target, tree: None, settings, stop, hashes: Vec::new(), nars: Arc::from([]) };
        let nar = Nar { url: "nar/x".to_owned(), size: None, sha256: None, packed: None };
        let crowd = Streams::new(1, 1 << 20, Arc::from([nar]));
        let bounds = session.bounds(&Scenario::Cold { streams: 1, stream_rate: 1 << 20 });
        let ended =
            catch_unwind(AssertUnwindSafe(|| session.beside(crowd, bounds, || panic!("as it measured"))));
        assert!(ended.is_err());
    }
}
