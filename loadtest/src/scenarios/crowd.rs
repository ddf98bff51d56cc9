//! Normal requests beside a crowd: `idle` (thousands of kept-alive connections), `slow` (slow readers and slow
//! senders).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queries::Queries;
use crate::catalogue::Nar;
use crate::engine::{Judged, Outcome, Step, Verdict, Workload};
use crate::lane::Job;
use crate::process::Tree;

/// The series of the requests that are measured.
const NORMAL: usize = 0;
/// The series of the crowd: its bytes show, its requests do not count.
const CROWD: usize = 1;
/// Idle connections that are being opened at a time, so that the server's backlog is not what is measured.
const OPENING_MAX: usize = 64;
/// How soon a lane looks again whether it may begin.
const AGAIN: Duration = Duration::from_millis(5);
/// The server is given this long to settle before its memory is looked at.
const SETTLE: Duration = Duration::from_millis(300);

/// Who crowds.
#[derive(Debug)]
pub enum Crowd {
    /// Connections that ask once and stay.
    Idle,
    /// Half read NARs at `read_rate`, half send their requests at `send_rate`, in bytes a second.
    Slow { read_rate: u64, send_rate: u64 },
}

/// Queries on the first lanes, a crowd on the rest.
pub struct Beside {
    queries: Queries,
    normal: usize,
    crowd: Crowd,
    size: usize,
    nars: Arc<[Nar]>,
    at: usize,
    server: Option<Tree>,
    /// Idle: being opened, open, and given up.
    opening: usize,
    open: usize,
    /// By member: it has asked, and stays.
    stays: Vec<bool>,
    settled: Option<Instant>,
    /// Of the server: before, and with the crowd.
    memory: (u64, Option<u64>),
    closed: u64,
    failed: u64,
    served: u64,
}

impl Beside {
    /// `queries` on `normal` connections, the crowd on `size` more.
    pub fn new(
        queries: Queries,
        normal: usize,
        crowd: Crowd,
        size: usize,
        nars: Arc<[Nar]>,
        server: Option<Tree>,
    ) -> Self {
        let memory = (server.as_ref().map_or(0, Tree::memory), None);
        Self {
            queries,
            normal,
            crowd,
            size,
            nars,
            at: 0,
            server,
            opening: 0,
            open: 0,
            stays: vec![false; size],
            settled: None,
            memory,
            closed: 0,
            failed: 0,
            served: 0,
        }
    }

    /// The next request of one of the crowd.
    fn crowd_job(&mut self, lane: usize, now: Instant) -> Step {
        let member = lane - self.normal;
        match self.crowd {
            Crowd::Idle if self.stays[member] => Step::Park,
            Crowd::Idle if self.opening == OPENING_MAX => Step::Sleep(now + AGAIN),
            Crowd::Idle => {
                self.opening += 1;
                self.stays[member] = true;
                Step::Send(Job { background: true, ..Job::get(CROWD, "nix-cache-info".to_owned()) })
            }
            Crowd::Slow { send_rate, .. } if member % 2 == 1 => Step::Send(Job {
                background: true,
                close: true,
                send_rate: Some(send_rate),
                ..Job::get(CROWD, "nix-cache-info".to_owned())
            }),
            Crowd::Slow { read_rate, .. } => self.stream(read_rate),
        }
    }

    fn stream(&mut self, rate: u64) -> Step {
        if self.nars.is_empty() {
            return Step::End;
        }
        let nar = &self.nars[self.at % self.nars.len()];
        self.at += 1;
        Step::Send(Job { background: true, read_rate: Some(rate), ..Job::get(CROWD, nar.url.clone()) })
    }

    /// Whether the idle ones are all there, and the server's memory has been looked at.
    fn is_assembled(&mut self, now: Instant) -> bool {
        if !matches!(self.crowd, Crowd::Idle) {
            return true;
        }
        if self.open + (self.failed as usize) < self.size {
            return false;
        }
        let settled = *self.settled.get_or_insert(now + SETTLE);
        if now >= settled && self.memory.1.is_none() {
            self.memory.1 = Some(self.server.as_ref().map_or(0, Tree::memory));
        }
        now >= settled
    }
}

impl Workload for Beside {
    fn lanes(&self) -> usize {
        self.normal + self.size
    }

    fn series(&self) -> Vec<&'static str> {
        let crowd = match self.crowd {
            Crowd::Idle => "idle",
            Crowd::Slow { .. } => "slow",
        };
        let mut series = self.queries.series();
        series.push(crowd);
        series
    }

    fn next(&mut self, lane: usize, now: Instant) -> Step {
        if lane >= self.normal {
            return self.crowd_job(lane, now);
        }
        if !self.is_assembled(now) {
            return Step::Sleep(now + AGAIN);
        }
        self.queries.job(NORMAL, now).map_or(Step::End, Step::Send)
    }

    fn done(&mut self, lane: usize, job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        if lane < self.normal {
            return self.queries.judge(&job, &outcome).into();
        }
        let well = outcome.as_ref().is_ok_and(|answer| answer.status == 200);
        self.served += u64::from(well);
        match self.crowd {
            Crowd::Idle => {
                self.opening -= 1;
                self.open += usize::from(well);
                self.failed += u64::from(!well);
            }
            // A server may well show such clients the door.
            Crowd::Slow { .. } => self.failed += u64::from(!well),
        }
        Judged::Quiet.into()
    }

    fn idle_closed(&mut self, lane: usize) {
        self.closed += u64::from(lane >= self.normal);
    }

    fn overdue(&self, end: Instant) -> Box<dyn Iterator<Item = (usize, Duration)> + '_> {
        Box::new(self.queries.overdue(end).map(|(_, waited)| (NORMAL, waited)))
    }

    fn notes(&mut self) -> Vec<String> {
        match self.crowd {
            Crowd::Idle => {
                let mut notes = vec![format!(
                    "{} idle connections opened, {} failed to, {} closed by the server while idle",
                    self.open, self.failed, self.closed
                )];
                if let (before, Some(with)) = self.memory
                    && self.server.is_some()
                    && self.open > 0
                {
                    let each = with.saturating_sub(before) as f64 / self.open as f64 / 1024.0;
                    notes.push(format!("the server's memory grew by {each:.2} KiB for each"));
                }
                notes
            }
            Crowd::Slow { .. } => {
                vec![format!(
                    "slow clients: {} served whole, {} turned away or cut",
                    self.served, self.failed
                )]
            }
        }
    }
}
