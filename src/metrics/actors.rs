//! What each actor counts.

use std::time::Duration;

use super::counter::{Counter, Gauge, Histogram, SharedCounter, Times, nanoseconds};
use super::labels::{Closed, Kept, Label, Method, NarAbort, Query, Route, STATUS_CODES, Way, status_place};

/// A counter for each value of a label.
#[derive(Debug)]
pub(super) struct Family<L> {
    counters: Box<[Counter]>,
    label: std::marker::PhantomData<L>,
}

impl<L: Label> Default for Family<L> {
    fn default() -> Self {
        Self {
            counters: L::ALL.iter().map(|_| Counter::default()).collect(),
            label: std::marker::PhantomData,
        }
    }
}

impl<L: Label> Family<L> {
    fn increment(&self, label: L) {
        self.counters[label.place()].add(1);
    }

    pub(super) fn get(&self, label: L) -> u64 {
        self.counters[label.place()].get()
    }
}

/// The status places: those of [`STATUS_CODES`], and one for the rest.
pub(super) const STATUSES: usize = STATUS_CODES.len() + 1;

/// Answers by route, method and status, with their times: one dense table, 100 KiB a worker, so that counting
/// is one index and never an allocation.
#[derive(Debug)]
pub(super) struct Answers(Box<[Histogram]>);

impl Default for Answers {
    fn default() -> Self {
        let cells = Route::ALL.len() * Method::ALL.len() * STATUSES;
        Self((0..cells).map(|_| Histogram::default()).collect())
    }
}

impl Answers {
    fn at(&self, route: Route, method: Method, status: usize) -> &Histogram {
        &self.0[(route.place() * Method::ALL.len() + method.place()) * STATUSES + status]
    }

    /// How many there were in all.
    pub(super) fn count(&self) -> u64 {
        let mut times = Times::default();
        self.0.iter().for_each(|histogram| histogram.add_to(&mut times));
        times.count()
    }

    pub(super) fn add_to(&self, route: Route, method: Method, status: usize, times: &mut Times) {
        self.at(route, method, status).add_to(times);
    }
}

/// What a worker counts. Aligned so that two workers never write to one cache line, nor to two that the
/// processor fetches as a pair.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerMetrics {
    pub(super) answers: Answers,
    pub(super) sent: Counter,
    pub(super) connections: Gauge,
    pub(super) closed: Family<Closed>,
    pub(super) narinfo_hits: Counter,
    pub(super) narinfo_misses: Counter,
    pub(super) compressed_hits: Counter,
    pub(super) compressed_misses: Counter,
    pub(super) aborts: Family<NarAbort>,
}

impl WorkerMetrics {
    /// An answer has ended, with its last byte sent or its connection gone; `took` counts from the last byte
    /// of its request's head.
    pub fn request(&self, method: Method, route: Route, status: u16, took: Duration) {
        self.answers.at(route, method, status_place(status)).record(took);
    }

    /// So many bytes went to clients, heads and framing included.
    pub fn sent(&self, bytes: u64) {
        self.sent.add(bytes);
    }

    /// The worker holds so many connections now.
    pub fn connections(&self, now: usize) {
        self.connections.set(now);
    }

    /// A connection ended.
    pub fn closed(&self, cause: Closed) {
        self.closed.increment(cause);
    }

    /// A narinfo was asked for that is there.
    pub fn narinfo_hit(&self) {
        self.narinfo_hits.add(1);
    }

    /// A narinfo was asked for that is not there.
    pub fn narinfo_miss(&self) {
        self.narinfo_misses.add(1);
    }

    /// A compressed NAR was asked for that had been made before.
    pub fn compressed_hit(&self) {
        self.compressed_hits.add(1);
    }

    /// A compressed NAR was asked for that had to be made.
    pub fn compressed_miss(&self) {
        self.compressed_misses.add(1);
    }

    /// An answer broke off.
    pub fn aborted(&self, cause: NarAbort) {
        self.aborts.increment(cause);
    }
}

/// What the listener counts.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    pub(super) accepted: Counter,
    pub(super) refused: Counter,
    pub(super) pauses: Counter,
}

impl ListenerMetrics {
    /// A connection was accepted.
    pub fn accepted(&self) {
        self.accepted.add(1);
    }

    /// An accepted connection was closed at once, as no worker could take it.
    pub fn refused(&self) {
        self.refused.add(1);
    }

    /// Accepting paused: every worker was full with answers in flight, or there were no descriptors left.
    pub fn paused(&self) {
        self.pauses.add(1);
    }
}

/// What the store actor counts.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    pub(super) signatures: Counter,
    pub(super) signing: Counter,
    pub(super) queries: Family<Query>,
    pub(super) refreshes: Counter,
    pub(super) busy: Counter,
    pub(super) unavailable: Counter,
    pub(super) quarantined: Gauge,
}

impl StoreMetrics {
    /// So many paths are quarantined now.
    pub fn quarantined(&self, now: usize) {
        self.quarantined.set(now);
    }

    /// So many signatures were made, in so much time.
    pub fn signed(&self, signatures: usize, took: Duration) {
        self.signatures.add(signatures as u64);
        self.signing.add(nanoseconds(took));
    }

    /// The database was asked.
    pub fn queried(&self, query: Query) {
        self.queries.increment(query);
    }

    /// The index followed a change of the database.
    pub fn refreshed(&self) {
        self.refreshes.add(1);
    }

    /// The database was busy, and a request waits for it.
    pub fn waited(&self) {
        self.busy.add(1);
    }

    /// A request was given up on: the database was busy for too long, or cannot be read.
    pub fn unavailable(&self) {
        self.unavailable.add(1);
    }
}

/// What the actor of temporary roots counts.
#[derive(Debug, Default)]
pub struct RootsMetrics {
    pub(super) taken: Family<Way>,
    pub(super) failed: Family<Way>,
    pub(super) unrooted: Counter,
}

impl RootsMetrics {
    /// A root was taken.
    pub fn rooted(&self, way: Way) {
        self.taken.increment(way);
    }

    /// A way to take a root was tried in vain.
    pub fn failed(&self, way: Way) {
        self.failed.increment(way);
    }

    /// A path is sent without a root, since none could be taken.
    pub fn unrooted(&self) {
        self.unrooted.add(1);
    }
}

/// What the actor that keeps what is asked for counts.
#[derive(Debug, Default)]
pub struct KeepMetrics {
    pub(super) kept: Family<Kept>,
}

impl KeepMetrics {
    /// Something became of a root.
    pub fn kept(&self, kept: Kept) {
        self.kept.increment(kept);
    }

    /// How often something became of one.
    #[cfg(test)]
    pub(crate) fn get(&self, kept: Kept) -> u64 {
        self.kept.get(kept)
    }
}

/// What the NAR pool counts. Its threads share one instance: they wait for disks, and a locked instruction is
/// nothing beside that.
#[derive(Debug, Default)]
pub struct NarMetrics {
    pub(super) plans_found: SharedCounter,
    pub(super) plans_made: SharedCounter,
}

impl NarMetrics {
    /// A plan was there, or in the making.
    pub fn plan_found(&self) {
        self.plans_found.add(1);
    }

    /// A plan was made.
    pub fn plan_made(&self) {
        self.plans_made.add(1);
    }
}

/// What the actor that makes packs counts.
#[derive(Debug, Default)]
pub struct PackMetrics {
    pub(super) made: Counter,
    pub(super) found: Counter,
    pub(super) failed: Counter,
    pub(super) bytes: Counter,
}

impl PackMetrics {
    /// A pack of so many bytes was made.
    pub fn made(&self, bytes: u64) {
        self.made.add(1);
        self.bytes.add(bytes);
    }

    /// A pack had been made before, and is still there.
    pub fn found(&self) {
        self.found.add(1);
    }

    /// A pack could not be made.
    pub fn failed(&self) {
        self.failed.add(1);
    }
}

/// What the cache counts, whoever uses it.
#[derive(Debug, Default)]
pub struct CacheMetrics {
    pub(super) evicted: SharedCounter,
    pub(super) carried: SharedCounter,
}

impl CacheMetrics {
    /// So many frames went with a volume.
    pub fn evicted(&self, frames: u64) {
        self.evicted.add(frames);
    }

    /// So many frames were carried over from a volume that went.
    pub fn carried_over(&self, frames: u64) {
        self.carried.add(frames);
    }

    /// Both numbers.
    #[cfg(test)]
    pub(crate) fn counted(&self) -> (u64, u64) {
        (self.evicted.get(), self.carried.get())
    }
}

/// What the threads that compress count; they share one instance.
#[derive(Debug, Default)]
pub struct CompressMetrics {
    pub(super) begun: SharedCounter,
    pub(super) ended: SharedCounter,
    pub(super) shared: SharedCounter,
    pub(super) cache_failed: SharedCounter,
    pub(super) found_bytes: SharedCounter,
    pub(super) plain_bytes: SharedCounter,
    pub(super) made_bytes: SharedCounter,
    pub(super) nanoseconds: SharedCounter,
    pub(super) saved_bytes: SharedCounter,
}

impl CompressMetrics {
    /// A frame of so many bytes is sent in place of a chunk of so many.
    pub fn saved(&self, chunk: u64, frame: u64) {
        self.saved_bytes.add(chunk.saturating_sub(frame));
    }

    /// A NAR is to be compressed.
    pub fn begun(&self) {
        self.begun.add(1);
    }

    /// It has been, or cannot be.
    pub fn ended(&self) {
        self.ended.add(1);
    }

    /// A NAR was wanted that is being compressed already.
    pub fn shared(&self) {
        self.shared.add(1);
    }

    /// The cache could not be read or written, or had damage.
    pub fn cache_failed(&self) {
        self.cache_failed.add(1);
    }

    /// The frame of a chunk of so many bytes was there.
    pub fn found(&self, chunk: usize) {
        self.found_bytes.add(chunk as u64);
    }

    /// How many bytes were compressed so far.
    #[cfg(test)]
    pub(crate) fn plain_bytes(&self) -> u64 {
        self.plain_bytes.get()
    }

    /// A chunk of so many bytes was compressed to so many.
    pub fn compressed(&self, chunk: usize, frame: usize, took: Duration) {
        self.plain_bytes.add(chunk as u64);
        self.made_bytes.add(frame as u64);
        self.nanoseconds.add(nanoseconds(took));
    }
}
