//! `churn`: paths come and go in the store under load, and every answer is checked for freshness.
//!
//! A path whose registration was committed before a request was sent must be found; one whose deletion was
//! committed before must not. An answer to a request that a change overlapped may be either.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::queries::Queries;
use crate::database::{Churner, DatabaseError};
use crate::engine::{Judged, Outcome, Step, Verdict, Workload};
use crate::lane::Job;
use crate::random::Random;

/// How many paths come and go.
const PATHS: usize = 16;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(5);
/// Series.
const FRESH: usize = 0;
const OTHER: usize = 1;

/// A path's state, counted up by each change: 0 absent, 1 being registered, 2 valid, 3 being deleted, 4 absent …
#[derive(Debug, Default)]
struct Phase(AtomicU64);

impl Phase {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// What an answer must be if nothing changed from `then` to now; None where something did.
    fn expected(&self, then: u64) -> Option<u16> {
        match (then == self.now(), then % 4) {
            (true, 0) => Some(404),
            (true, 2) => Some(200),
            _ => None,
        }
    }
}

/// Half of the connections ask for paths that come and go, half for paths that stay.
pub struct Churn {
    hashes: Vec<String>,
    phases: Arc<[Phase]>,
    writer: Option<JoinHandle<Result<u64, DatabaseError>>>,
    stop: Arc<AtomicBool>,
    lanes: usize,
    others: Queries,
    random: Random,
    /// By lane: the phase its path was in when the request was made.
    sent: Vec<u64>,
    checked: u64,
    trouble: Option<String>,
}

impl Churn {
    /// Starts to change the store below `store`.
    pub fn start(store: &Path, lanes: usize, others: Queries, random: Random) -> Result<Self, DatabaseError> {
        let churner = Churner::open(store, PATHS)?;
        let hashes = churner.hashes();
        let phases: Arc<[Phase]> = (0..PATHS).map(|_| Phase::default()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let (phases, stop) = (Arc::clone(&phases), Arc::clone(&stop));
            let random = random.clone();
            thread::spawn(move || write(churner, &phases, &stop, random))
        };
        let sent = vec![0; lanes];
        Ok(Self {
            hashes,
            phases,
            writer: Some(writer),
            stop,
            lanes,
            others,
            random,
            sent,
            checked: 0,
            trouble: None,
        })
    }

    fn judge(&mut self, lane: usize, job: &Job, outcome: &Outcome) -> Judged {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(failure) => return Judged::Bad(failure.kind()),
        };
        let Some(expected) = self.phases[job.tag].expected(self.sent[lane]) else {
            return Judged::Good;
        };
        self.checked += 1;
        match (answer.status, expected) {
            (status, expected) if status == expected => Judged::Good,
            (404, _) => Judged::Wrong("404 for a path registered before"),
            (200, _) => Judged::Wrong("200 for a path deleted before"),
            (status, _) => Judged::Bad(super::queries::status_kind(status)),
        }
    }

    fn end_writer(&mut self) -> Option<Result<u64, String>> {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.writer.take()?.join();
        Some(match ended {
            Ok(Ok(changes)) => Ok(changes),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the writer panicked".to_owned()),
        })
    }
}

/// Changes one path after the other until it is told to stop, then deletes all. Gives the number of changes.
fn write(
    mut churner: Churner,
    phases: &[Phase],
    stop: &AtomicBool,
    mut random: Random,
) -> Result<u64, DatabaseError> {
    let mut changes = 0;
    while !stop.load(Ordering::SeqCst) {
        let index = random.below(phases.len() as u64) as usize;
        let phase = &phases[index].0;
        let before = phase.fetch_add(1, Ordering::SeqCst);
        if before.is_multiple_of(4) {
            churner.register(index)?;
        } else {
            churner.delete(index)?;
        }
        phase.fetch_add(1, Ordering::SeqCst);
        changes += 1;
        thread::sleep(PAUSE);
    }
    churner.clean()?;
    Ok(changes)
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.end_writer();
    }
}

impl Workload for Churn {
    fn lanes(&self) -> usize {
        self.lanes
    }

    fn series(&self) -> Vec<&'static str> {
        vec!["coming and going", "staying"]
    }

    fn next(&mut self, lane: usize, now: Instant) -> Step {
        if lane % 2 == 1
            && let Some(job) = self.others.job(OTHER, now)
        {
            return Step::Send(job);
        }
        if self.writer.as_ref().is_none_or(JoinHandle::is_finished) {
            return Step::End;
        }
        let tag = self.random.below(self.hashes.len() as u64) as usize;
        self.sent[lane] = self.phases[tag].now();
        Step::Send(Job { tag, ..Job::get(FRESH, format!("{}.narinfo", self.hashes[tag])) })
    }

    fn done(&mut self, lane: usize, job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        if job.series == OTHER {
            return self.others.judge(&job, &outcome).into();
        }
        self.judge(lane, &job, &outcome).into()
    }

    fn notes(&mut self) -> Vec<String> {
        let changes = match self.end_writer() {
            Some(Ok(changes)) => format!("{changes} registrations and deletions"),
            Some(Err(error)) => {
                self.trouble = Some(error.clone());
                format!("the store could not be changed any more: {error}")
            }
            None => String::new(),
        };
        vec![changes, format!("{} answers had to be fresh and were checked", self.checked)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_be_fresh_only_if_nothing_changed_meanwhile() {
        let phase = Phase::default();
        assert_eq!(phase.expected(0), Some(404));
        for (state, expected) in [(1, None), (2, Some(200)), (3, None), (4, Some(404))] {
            let before = phase.now();
            phase.0.store(state, Ordering::SeqCst);
            assert_eq!(phase.expected(state), expected);
            assert_eq!(phase.expected(before), None);
        }
    }
}
