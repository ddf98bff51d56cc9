//! `range`: transfers cut at random places and resumed, as a Nix client on a bad line does; the whole verified.

use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::nar::check;
use super::queries::status_kind;
use crate::catalogue::Nar;
use crate::engine::{Judged, Outcome, Step, Verdict, Workload};
use crate::lane::{Answer, Job, Sink};
use crate::random::Random;

/// Cuts of one NAR, at most.
const CUTS_MAX: u64 = 4;

/// A NAR that has come in part.
#[derive(Debug)]
struct Part {
    nar: usize,
    /// Bytes that have come.
    position: u64,
    /// Of what has come.
    hasher: Box<Sha256>,
    cuts_left: u64,
}

/// Every NAR of a list once, each in several pieces.
#[derive(Debug)]
pub struct Ranges {
    nars: Arc<[Nar]>,
    parts: Vec<Option<Part>>,
    at: usize,
    cuts: u64,
    random: Random,
}

impl Ranges {
    /// Files whose size is not known yet are left out.
    pub fn new(nars: Arc<[Nar]>, lanes: usize, random: Random) -> Self {
        let nars = nars.iter().filter(|nar| nar.size.is_some()).cloned().collect();
        Self { nars, parts: (0..lanes).map(|_| None).collect(), at: 0, cuts: 0, random }
    }

    fn job(&mut self, mut part: Part, lane: usize) -> Job {
        let remaining = size(&self.nars[part.nar]) - part.position;
        let cut_after = (part.cuts_left > 0 && remaining > 1).then(|| 1 + self.random.below(remaining - 1));
        let hasher = std::mem::replace(&mut part.hasher, Box::new(Sha256::new()));
        let job = Job {
            from: (part.position > 0).then_some(part.position),
            sink: Sink::Hash(hasher),
            cut_after,
            tag: part.nar,
            ..Job::get(0, self.nars[part.nar].url.clone())
        };
        self.parts[lane] = Some(part);
        job
    }

    fn take(&mut self, lane: usize, mut part: Part, answer: Answer) -> Judged {
        let nar = &self.nars[part.nar];
        let expected = if part.position == 0 { 200 } else { 206 };
        if answer.status != expected {
            return match answer.status {
                200 => Judged::Wrong("200 to a Range request: the client's download fails"),
                206 => Judged::Wrong("206 without a Range"),
                status => Judged::Bad(status_kind(status)),
            };
        }
        let range = answer.content_range.map(|range| (range.first, range.last + 1, range.total));
        if part.position > 0 && range != Some((part.position, size(nar), Some(size(nar)))) {
            return Judged::Wrong("Content-Range is not the range that was asked for");
        }
        part.position += answer.body;
        let Sink::Hash(hasher) = answer.sink else {
            return Judged::Bad("no hash");
        };
        if !answer.cut {
            return if part.position == size(nar) {
                check(nar, *hasher)
            } else {
                Judged::Wrong("NAR of another length")
            };
        }
        part.hasher = hasher;
        part.cuts_left -= 1;
        self.cuts += 1;
        self.parts[lane] = Some(part);
        Judged::Quiet
    }
}

/// Only those are here that have one.
fn size(nar: &Nar) -> u64 {
    nar.size.unwrap_or(0)
}

impl Workload for Ranges {
    fn lanes(&self) -> usize {
        self.parts.len()
    }

    fn series(&self) -> Vec<&'static str> {
        vec!["last piece"]
    }

    fn next(&mut self, lane: usize, _now: Instant) -> Step {
        if let Some(part) = self.parts[lane].take() {
            return Step::Send(self.job(part, lane));
        }
        if self.at == self.nars.len() {
            return Step::End;
        }
        let cuts_left = 1 + self.random.below(CUTS_MAX);
        let part = Part { nar: self.at, position: 0, hasher: Box::new(Sha256::new()), cuts_left };
        self.at += 1;
        Step::Send(self.job(part, lane))
    }

    fn done(&mut self, lane: usize, _job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        let judged = match (self.parts[lane].take(), outcome) {
            (Some(part), Ok(answer)) => self.take(lane, part, answer),
            (_, Err(failure)) => Judged::Bad(failure.kind()),
            (None, Ok(_)) => Judged::Quiet,
        };
        judged.into()
    }

    fn notes(&mut self) -> Vec<String> {
        vec![format!("{} cuts, each resumed where it stood", self.cuts)]
    }
}
