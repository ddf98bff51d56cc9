//! `closure`: many Nix clients at once. Each asks the mass of narinfos on 25 connections (Nix's
//! `http-connections`), most of them misses, then fetches NARs 16 at a time (its `max-substitution-jobs`).

use std::sync::Arc;
use std::time::Instant;

use super::nar;
use super::queries::{Queries, Subject};
use crate::catalogue::Nar;
use crate::engine::{Judged, Outcome, Step, Verdict, Workload};
use crate::lane::{Job, Sink};
use crate::random::Random;

/// Nix's default `http-connections`.
pub const CONNECTIONS: usize = 25;
/// Nix's default `max-substitution-jobs`.
const TRANSFERS: usize = 16;
/// Series.
const NARINFO: usize = 0;
const MISS: usize = 1;
const NAR: usize = 2;

/// How a client stands in its one pass.
#[derive(Debug)]
struct Client {
    /// What it asks for: hits by index, misses as None.
    queries: Vec<Option<usize>>,
    asked: usize,
    answered: usize,
    fetched: usize,
    transfers: usize,
}

/// Clients that each copy the whole list once, all at the same time.
#[derive(Debug)]
pub struct Closure {
    hashes: Vec<String>,
    nars: Arc<[Nar]>,
    clients: Vec<Client>,
    verify: bool,
    random: Random,
    hits: Queries,
    misses: Queries,
}

impl Closure {
    /// `miss_share`: how much of the narinfo queries is for paths that the cache lacks.
    pub fn new(
        hashes: Vec<String>,
        nars: Arc<[Nar]>,
        clients: usize,
        miss_share: f64,
        verify: bool,
        mut random: Random,
    ) -> Self {
        let hits = hashes.len();
        let misses = (hits as f64 * miss_share / (1.0 - miss_share)).round() as usize;
        let client = |_| {
            let mut queries: Vec<_> = (0..hits).map(Some).chain(std::iter::repeat_n(None, misses)).collect();
            random.shuffle(&mut queries);
            Client { queries, asked: 0, answered: 0, fetched: 0, transfers: 0 }
        };
        let clients = (0..clients).map(client).collect();
        let asked = Queries::new(Subject::Hits(hashes.clone()), 0, random.clone());
        let absent = Queries::new(Subject::Misses, 0, random.clone());
        Self { hashes, nars, clients, verify, random, hits: asked, misses: absent }
    }
}

impl Workload for Closure {
    fn lanes(&self) -> usize {
        self.clients.len() * CONNECTIONS
    }

    fn series(&self) -> Vec<&'static str> {
        vec!["narinfo", "miss", "nar"]
    }

    fn next(&mut self, lane: usize, _now: Instant) -> Step {
        let client = &mut self.clients[lane / CONNECTIONS];
        if let Some(query) = client.queries.get(client.asked) {
            client.asked += 1;
            return Step::Send(match query {
                Some(hit) => Job {
                    sink: if self.verify { Sink::Keep(Vec::new()) } else { Sink::Drop },
                    tag: *hit,
                    ..Job::get(NARINFO, format!("{}.narinfo", self.hashes[*hit]))
                },
                None => Job::get(MISS, format!("{}.narinfo", self.random.hash_part())),
            });
        }
        if client.fetched == self.nars.len() {
            return Step::End;
        }
        if client.answered < client.queries.len() || client.transfers == TRANSFERS {
            return Step::Park;
        }
        let tag = client.fetched;
        client.fetched += 1;
        client.transfers += 1;
        Step::Send(Job { series: NAR, tag, ..nar::whole(&self.nars[tag], self.verify) })
    }

    fn done(&mut self, lane: usize, job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        let client = &mut self.clients[lane / CONNECTIONS];
        match job.series {
            NAR => {
                client.transfers -= 1;
                let wake = client.fetched == self.nars.len();
                Verdict { judged: nar::judge(&self.nars[job.tag], outcome), wake }
            }
            series => {
                client.answered += 1;
                let subject = if series == MISS { &self.misses } else { &self.hits };
                let judged: Judged = subject.judge(&job, &outcome);
                Verdict { judged, wake: client.answered == client.queries.len() }
            }
        }
    }
}
