//! Small requests over and over: `narinfo`, `miss`, `connect`, and the trickle beside other load.

use std::time::{Duration, Instant};

use super::Schedule;
use crate::engine::{Judged, Outcome, Step, Verdict, Workload};
use crate::lane::{Job, Sink};
use crate::narinfo::{NarInfo, is_cache_info};
use crate::random::Random;

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Subject {
    /// Narinfos of these hash parts, in turn.
    Hits(Vec<String>),
    /// Narinfos of paths that no store has.
    Misses,
    /// `nix-cache-info`.
    CacheInfo,
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Self::Hits(_) => "narinfo",
            Self::Misses => "miss",
            Self::CacheInfo => "nix-cache-info",
        }
    }
}

/// Requests for a subject, closed loop or at a rate.
#[derive(Debug)]
pub struct Queries {
    subject: Subject,
    lanes: usize,
    schedule: Option<Schedule>,
    /// A connection for each.
    connect: bool,
    /// Every narinfo is parsed and compared with what was asked; without it, its status alone is looked at.
    verify: bool,
    /// How many remain.
    remaining: u64,
    at: usize,
    random: Random,
}

impl Queries {
    /// Without an end of its own: the bounds end it.
    pub fn new(subject: Subject, lanes: usize, random: Random) -> Self {
        let (schedule, connect, verify, remaining) = (None, false, false, u64::MAX);
        Self { subject, lanes, schedule, connect, verify, remaining, at: 0, random }
    }

    pub fn at_rate(mut self, rate: Option<f64>) -> Self {
        self.schedule = rate.map(Schedule::new);
        self
    }

    pub fn connecting(mut self) -> Self {
        self.connect = true;
        self
    }

    pub fn verifying(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Ends after so many.
    pub fn count(mut self, count: u64) -> Self {
        self.remaining = count;
        self
    }

    fn path(&mut self) -> (String, usize) {
        match &self.subject {
            Subject::Hits(hashes) => {
                let index = self.at % hashes.len();
                self.at += 1;
                (format!("{}.narinfo", hashes[index]), index)
            }
            Subject::Misses => (format!("{}.narinfo", self.random.hash_part()), 0),
            Subject::CacheInfo => ("nix-cache-info".to_owned(), 0),
        }
    }

    /// The job a lane is to do, its series counted from `series`.
    pub fn job(&mut self, series: usize, now: Instant) -> Option<Job> {
        if self.remaining == 0 || matches!(&self.subject, Subject::Hits(hashes) if hashes.is_empty()) {
            return None;
        }
        self.remaining -= 1;
        let (path, tag) = self.path();
        let due = self.schedule.as_mut().map(|schedule| schedule.claim(now));
        let sink = if self.verify { Sink::Keep(Vec::new()) } else { Sink::Drop };
        Some(Job { due, tag, close: self.connect, sink, ..Job::get(series, path) })
    }

    /// Whether the answer is the one that the subject must get.
    pub fn judge(&self, job: &Job, outcome: &Outcome) -> Judged {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(failure) => return Judged::Bad(failure.kind()),
        };
        let body = match &answer.sink {
            Sink::Keep(body) => Some(body),
            _ => None,
        };
        match (&self.subject, answer.status) {
            (Subject::Misses, 404) => Judged::Good,
            // S3 and other object stores say so where they do not let one list.
            (Subject::Misses, 403) => Judged::Good,
            (Subject::Misses, 200) => Judged::Wrong("200 for a path that does not exist"),
            (Subject::Hits(hashes), 200) => match body.map(|body| NarInfo::parse(body, &hashes[job.tag])) {
                Some(Err(_)) => Judged::Wrong("narinfo malformed or of another path"),
                _ if answer.body == 0 => Judged::Wrong("empty narinfo"),
                _ => Judged::Good,
            },
            (Subject::CacheInfo, 200) => match body {
                Some(body) if !is_cache_info(body) => Judged::Wrong("nix-cache-info malformed"),
                _ => Judged::Good,
            },
            (_, status) => Judged::Bad(status_kind(status)),
        }
    }
}

/// An unexpected status, as tables show it.
pub fn status_kind(status: u16) -> &'static str {
    match status {
        400..=403 | 405..=499 => "status 4xx",
        404 => "status 404",
        503 => "status 503",
        500..=599 => "status 5xx",
        _ => "unexpected status",
    }
}

impl Workload for Queries {
    fn lanes(&self) -> usize {
        self.lanes
    }

    fn series(&self) -> Vec<&'static str> {
        vec![self.subject.name()]
    }

    fn next(&mut self, _lane: usize, now: Instant) -> Step {
        self.job(0, now).map_or(Step::End, Step::Send)
    }

    fn done(&mut self, _lane: usize, job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        self.judge(&job, &outcome).into()
    }

    fn overdue(&self, end: Instant) -> Box<dyn Iterator<Item = (usize, Duration)> + '_> {
        let bounded = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let waited = self.schedule.iter().flat_map(move |schedule| schedule.overdue(end));
        Box::new(waited.take(bounded).map(|waited| (0, waited)))
    }
}
