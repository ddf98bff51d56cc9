//! What the cache has: learned from a list, from the closure of roots, or from a store on disk.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::database::{self, DatabaseError};
use crate::engine::{self, Bounds, Judged, Outcome, Progress, Step, Verdict, Workload};
use crate::lane::{Failure, Job, Sink};
use crate::narinfo::{NarInfo, NarInfoError, hash_part, is_cache_info};
use crate::random::Random;
use crate::target::Target;

/// Connections that narinfos are learned by.
const LANES: usize = 16;
/// How long learning may take.
const LEARN_MAX: Duration = Duration::from_secs(600);

/// A NAR of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nar {
    /// Relative to the cache.
    pub url: String,
    /// Bytes on the way, where the narinfo tells it.
    pub size: Option<u64>,
    /// Of the bytes on the way, where the narinfo tells it.
    pub sha256: Option<[u8; 32]>,
    /// Hash and size of what is in it, where it is compressed by zstd.
    pub packed: Option<([u8; 32], u64)>,
}

/// Where the paths are learned from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file with a store path, basename or hash part a line; `-` is standard input.
    List(PathBuf),
    /// These paths and all they refer to, by the cache's own narinfos.
    Roots(Vec<String>),
    /// The database of a store whose files are below this folder's `nix/store`.
    Store(PathBuf),
}

/// Why nothing can be asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("cannot read {0}: {1}")]
    List(PathBuf, io::Error),
    #[error("{0}: not a store path, a basename or a hash part")]
    NotAPath(String),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("{0} has no paths")]
    Empty(String),
    #[error("cannot poll: {0}")]
    Poll(io::Error),
    #[error("{url} is not a binary cache that can be reached: nix-cache-info: {why}")]
    NoCache { url: String, why: &'static str },
    #[error("the cache gave no narinfo of use for {failed} of {asked} paths (first: {first})")]
    NarInfos { failed: usize, asked: usize, first: String },
    #[error("WRONG ANSWERS: {wrong} of {asked} narinfos (first: {first})")]
    Wrong { wrong: usize, asked: usize, first: String },
    #[error("interrupted")]
    Interrupted,
}

/// Checks that the target is a binary cache.
pub fn greet(url: &str, target: &Target, timeout: Duration, stop: &AtomicBool) -> Result<(), CatalogueError> {
    let mut greeting = Greeting { answer: Err("no answer") };
    let bounds = Bounds { duration: timeout, requests: 1, timeout };
    engine::run(target, &mut greeting, bounds, stop, &mut |_| {}).map_err(CatalogueError::Poll)?;
    greeting.answer.map_err(|why| CatalogueError::NoCache { url: url.to_owned(), why })
}

/// The hash parts to ask for, in a random order that the seed fixes; `limit` of them.
pub fn hashes(source: &Source, limit: usize, random: &mut Random) -> Result<Vec<String>, CatalogueError> {
    let mut hashes = match source {
        Source::List(file) => read_list(file)?,
        Source::Roots(roots) => parse_paths(roots.iter().map(String::as_str))?,
        Source::Store(folder) => database::hash_parts(folder)?,
    };
    if hashes.is_empty() {
        return Err(CatalogueError::Empty(match source {
            Source::List(place) | Source::Store(place) => place.display().to_string(),
            Source::Roots(_) => "the list of roots".to_owned(),
        }));
    }
    // From a database they come in an order of its own.
    hashes.sort_unstable();
    hashes.dedup();
    random.shuffle(&mut hashes);
    hashes.truncate(limit);
    Ok(hashes)
}

/// Asks the cache for the narinfo of each, and with `follow` of all that they refer to. Gives the hash parts that
/// it has, and their NARs.
pub fn learn(
    target: &Target,
    hashes: Vec<String>,
    follow: bool,
    limit: usize,
    timeout: Duration,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Progress),
) -> Result<(Vec<String>, Arc<[Nar]>), CatalogueError> {
    let seen = hashes.iter().cloned().collect();
    let mut learning = Learning {
        queue: hashes.into(),
        seen,
        follow,
        limit,
        asking: vec![String::new(); LANES],
        in_flight: 0,
        found: Vec::new(),
        failed: Vec::new(),
    };
    let bounds = Bounds { duration: LEARN_MAX, requests: u64::MAX, timeout };
    let measured = engine::run(target, &mut learning, bounds, stop, tell).map_err(CatalogueError::Poll)?;
    if measured.interrupted {
        return Err(CatalogueError::Interrupted);
    }
    if !learning.failed.is_empty() {
        return Err(useless(&learning.failed, learning.found.len() + learning.failed.len()));
    }
    // In the order of their hashes, then the same shuffle: answers come in an order of chance.
    learning.found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut random = Random::new(learning.found.len() as u64);
    random.shuffle(&mut learning.found);
    let (hashes, nars): (Vec<_>, Vec<_>) = learning.found.into_iter().unzip();
    Ok((hashes, nars.into()))
}

/// Wrong answers are told of before those that are missing.
fn useless(failed: &[(String, Useless)], asked: usize) -> CatalogueError {
    let is_wrong = |(_, why): &&(String, Useless)| matches!(why, Useless::Wrong(_));
    let wrong = failed.iter().filter(is_wrong).count();
    let first = failed.iter().find(is_wrong).or(failed.first());
    let first = first.map(|(hash, why)| format!("{hash}: {why}")).unwrap_or_default();
    match wrong {
        0 => CatalogueError::NarInfos { failed: failed.len(), asked, first },
        wrong => CatalogueError::Wrong { wrong, asked, first },
    }
}

fn read_list(file: &Path) -> Result<Vec<String>, CatalogueError> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        fs::read_to_string(file).map(|read| text = read)
    };
    read.map_err(|error| CatalogueError::List(file.to_owned(), error))?;
    parse_paths(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')))
}

fn parse_paths<'a>(paths: impl Iterator<Item = &'a str>) -> Result<Vec<String>, CatalogueError> {
    let parse = |path: &str| {
        hash_part(path).map(str::to_owned).ok_or_else(|| CatalogueError::NotAPath(path.to_owned()))
    };
    paths.map(parse).collect()
}

/// One request for `nix-cache-info`.
struct Greeting {
    answer: Result<(), &'static str>,
}

impl Workload for Greeting {
    fn lanes(&self) -> usize {
        1
    }

    fn series(&self) -> Vec<&'static str> {
        vec!["nix-cache-info"]
    }

    fn next(&mut self, _lane: usize, _now: Instant) -> Step {
        if self.answer != Err("no answer") {
            return Step::End;
        }
        Step::Send(Job { sink: Sink::Keep(Vec::new()), ..Job::get(0, "nix-cache-info".to_owned()) })
    }

    fn done(&mut self, _lane: usize, _job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        self.answer = match outcome {
            Err(failure) => Err(failure.kind()),
            Ok(answer) if answer.status != 200 => Err("its status is not 200"),
            Ok(answer) => match answer.sink {
                Sink::Keep(body) if is_cache_info(&body) => Ok(()),
                _ => Err("it names no StoreDir"),
            },
        };
        Judged::Good.into()
    }
}

/// Why an answer tells nothing of a path.
#[derive(Debug, thiserror::Error)]
enum Useless {
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("status {0}")]
    Status(u16),
    /// 200, and no narinfo of the path.
    #[error(transparent)]
    Wrong(#[from] NarInfoError),
}

/// Narinfos to be asked for, and what came of those that were.
struct Learning {
    queue: VecDeque<String>,
    seen: HashSet<String>,
    follow: bool,
    limit: usize,
    /// By lane.
    asking: Vec<String>,
    in_flight: usize,
    found: Vec<(String, Nar)>,
    failed: Vec<(String, Useless)>,
}

impl Learning {
    fn take(&mut self, hash: &str, outcome: Outcome) -> Result<(), Useless> {
        let answer = outcome?;
        let Sink::Keep(body) = answer.sink else {
            return Ok(());
        };
        if answer.status != 200 {
            return Err(Useless::Status(answer.status));
        }
        let info = NarInfo::parse(&body, hash)?;
        for reference in info.references {
            if self.follow && self.seen.len() < self.limit && !self.seen.contains(&reference) {
                self.seen.insert(reference.clone());
                self.queue.push_back(reference);
            }
        }
        let NarInfo { url, size, sha256, packed, .. } = info;
        self.found.push((hash.to_owned(), Nar { url, size, sha256, packed }));
        Ok(())
    }
}

impl Workload for Learning {
    fn lanes(&self) -> usize {
        LANES
    }

    fn series(&self) -> Vec<&'static str> {
        vec!["narinfo"]
    }

    fn next(&mut self, lane: usize, _now: Instant) -> Step {
        match self.queue.pop_front() {
            Some(hash) => {
                let path = format!("{hash}.narinfo");
                self.asking[lane] = hash;
                self.in_flight += 1;
                Step::Send(Job { sink: Sink::Keep(Vec::new()), ..Job::get(0, path) })
            }
            None if self.in_flight > 0 => Step::Park,
            None => Step::End,
        }
    }

    fn done(&mut self, lane: usize, _job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        self.in_flight -= 1;
        let hash = std::mem::take(&mut self.asking[lane]);
        let taken = self.take(&hash, outcome);
        let judged = if taken.is_ok() { Judged::Good } else { Judged::Bad("narinfo") };
        if let Err(why) = taken {
            self.failed.push((hash, why));
        }
        Verdict { judged, wake: true }
    }
}
