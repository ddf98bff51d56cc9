//! Metrics: names in one file, per-worker counters, rendering.
//!
//! Each actor counts into an instance of its own, which it alone writes; [`Metrics::render`] adds the instances
//! up. Counting takes no lock, no allocation and no locked instruction; a reading may be a moment old.
//! A room keeps its instance in a field called `metrics`: a test reads the source to see that everything here
//! that can be counted is counted somewhere.

mod actors;
mod counter;
mod labels;
pub mod names;
mod rates;
mod render;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use actors::{
    CacheMetrics, CompressMetrics, KeepMetrics, ListenerMetrics, NarMetrics, PackMetrics, RootsMetrics,
    StoreMetrics, WorkerMetrics,
};
pub use labels::{Actor, Closed, Kept, Method, NarAbort, Query, Route, STATUS_CODES, Way};
pub use rates::{Rates, Recent};
pub use render::CONTENT_TYPE;

/// Everything that is counted; made once, before the actors, and shared by all who may be asked for it.
pub struct Metrics {
    workers: Vec<Arc<WorkerMetrics>>,
    listener: Arc<ListenerMetrics>,
    store: Arc<StoreMetrics>,
    roots: Arc<RootsMetrics>,
    keep: Arc<KeepMetrics>,
    nar: Arc<NarMetrics>,
    pack: Arc<PackMetrics>,
    cache: Arc<CacheMetrics>,
    compress: Arc<CompressMetrics>,
    depths: Vec<(Actor, Depth)>,
    unlogged: Arc<AtomicU64>,
}

/// Asks a mailbox how many messages wait in it.
type Depth = Box<dyn Fn() -> usize + Send + Sync>;

impl Metrics {
    /// Counters at zero, for so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            listener: Arc::default(),
            store: Arc::default(),
            roots: Arc::default(),
            keep: Arc::default(),
            nar: Arc::default(),
            pack: Arc::default(),
            cache: Arc::default(),
            compress: Arc::default(),
            depths: Vec::new(),
            unlogged: Arc::default(),
        }
    }

    /// Shows a mailbox's depth under the name of its actor; several of one actor are added up.
    pub fn watch(&mut self, actor: Actor, depth: impl Fn() -> usize + Send + Sync + 'static) {
        self.depths.push((actor, Box::new(depth)));
    }

    /// Shows how many requests are missing in the log of requests, which is counted there.
    pub fn watch_log(&mut self, unlogged: Arc<AtomicU64>) {
        self.unlogged = unlogged;
    }

    /// The instances of the workers, in their order.
    pub fn workers(&self) -> &[Arc<WorkerMetrics>] {
        &self.workers
    }

    /// How many requests were answered.
    fn requests(&self) -> u64 {
        self.workers.iter().map(|worker| worker.answers.count()).sum()
    }

    /// How many bytes were sent.
    fn sent_bytes(&self) -> u64 {
        self.workers.iter().map(|worker| worker.sent.get()).sum()
    }

    /// How many connections are open.
    fn connections(&self) -> u64 {
        self.workers.iter().map(|worker| worker.connections.get()).sum()
    }

    /// The listener's instance.
    pub fn listener(&self) -> Arc<ListenerMetrics> {
        Arc::clone(&self.listener)
    }

    /// The store actor's instance.
    pub fn store(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.store)
    }

    /// The instance of the actor that holds temporary roots.
    pub fn roots(&self) -> Arc<RootsMetrics> {
        Arc::clone(&self.roots)
    }

    /// The instance of the actor that keeps what is asked for.
    pub fn keep(&self) -> Arc<KeepMetrics> {
        Arc::clone(&self.keep)
    }

    /// The instance that the threads of the NAR pool share.
    pub fn nar(&self) -> Arc<NarMetrics> {
        Arc::clone(&self.nar)
    }

    /// The cache's instance.
    pub fn cache(&self) -> Arc<CacheMetrics> {
        Arc::clone(&self.cache)
    }

    /// The instance that all threads that compress share.
    pub fn compress(&self) -> Arc<CompressMetrics> {
        Arc::clone(&self.compress)
    }

    /// The instance of the actor that makes packs.
    pub fn pack(&self) -> Arc<PackMetrics> {
        Arc::clone(&self.pack)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}
