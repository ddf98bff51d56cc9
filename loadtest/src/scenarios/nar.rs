//! `nar`: every NAR once.

use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::queries::status_kind;
use crate::catalogue::Nar;
use crate::engine::{Judged, Outcome, Step, Verdict, Workload};
use crate::lane::{Job, Sink};
use crate::unpack::{Unpack, Unpacked};

/// Every NAR of a list once, in its order.
#[derive(Debug)]
pub struct Nars {
    nars: Arc<[Nar]>,
    lanes: usize,
    verify: bool,
    at: usize,
}

impl Nars {
    pub fn new(nars: Arc<[Nar]>, lanes: usize, verify: bool) -> Self {
        Self { nars, lanes, verify, at: 0 }
    }
}

/// The request for a NAR, whole.
pub fn whole(nar: &Nar, verify: bool) -> Job {
    let sink = match (verify, nar.packed) {
        (false, _) => Sink::Drop,
        (true, None) => Sink::Hash(Box::new(Sha256::new())),
        (true, Some(_)) => Sink::Unpack(Box::new(Unpack::new())),
    };
    Job { sink, ..Job::get(0, nar.url.clone()) }
}

/// Whether this is the NAR, as far as it was looked at: its length always, its hash where it was taken.
pub fn judge(nar: &Nar, outcome: Outcome) -> Judged {
    match outcome {
        Err(failure) => Judged::Bad(failure.kind()),
        Ok(answer) if answer.status != 200 => Judged::Bad(status_kind(answer.status)),
        Ok(answer) if nar.size.is_some_and(|size| size != answer.body) => {
            Judged::Wrong("NAR of another length")
        }
        Ok(answer) => match answer.sink {
            Sink::Hash(hasher) => check(nar, *hasher),
            Sink::Unpack(unpack) => check_unpacked(nar, &unpack.finish()),
            _ => Judged::Good,
        },
    }
}

/// Compares the hash of all that came.
pub fn check(nar: &Nar, hasher: Sha256) -> Judged {
    let sha256: [u8; 32] = hasher.finalize().into();
    match nar.sha256 {
        Some(expected) if expected != sha256 => Judged::Wrong("NAR of another hash"),
        _ => Judged::Good,
    }
}

/// Compares a compressed file's own hash, and that of the NAR in it.
fn check_unpacked(nar: &Nar, found: &Unpacked) -> Judged {
    if nar.sha256.is_some_and(|expected| expected != found.file) {
        return Judged::Wrong("file of another hash");
    }
    match found.content {
        None => Judged::Wrong("file that does not decompress"),
        content if content != nar.packed => Judged::Wrong("file of another NAR"),
        Some(_) => Judged::Good,
    }
}

impl Workload for Nars {
    fn lanes(&self) -> usize {
        self.lanes
    }

    fn series(&self) -> Vec<&'static str> {
        vec!["nar"]
    }

    fn next(&mut self, _lane: usize, _now: Instant) -> Step {
        let Some(nar) = self.nars.get(self.at) else {
            return Step::End;
        };
        let job = Job { tag: self.at, ..whole(nar, self.verify) };
        self.at += 1;
        Step::Send(job)
    }

    fn done(&mut self, _lane: usize, job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        judge(&self.nars[job.tag], outcome).into()
    }
}
