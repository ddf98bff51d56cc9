//! The threads that compress, and what they are to do.
//!
//! A NAR is read and cut by one thread at a time, in order, and hashed on the way; its chunks are compressed by all.
//! Between two chunks of one NAR the others get their turn, so that a large one holds nobody up. What a thread has in
//! hand is one chunk and its frame; what is in the middle holds the rest that was cut off, a folder and a file, and only
//! so many are (`COMPRESSING_OPEN`, and one a thread of those that nobody waits for).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use sha2::Digest;

use super::encode::{EncodeError, Encoder, Encoding};
use super::job::{CompressError, Input, Job, Made};
use super::manifest::Manifest;
use super::{Cache, CacheError, Key, ManifestKey};
use crate::causes::with_causes;
use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePath;
use crate::limits::{CACHE_LOOK, COMPRESSING_ALONE, COMPRESSING_BEHIND, COMPRESSING_OPEN, WARNING_PAUSE};
use crate::mailbox::Sender;
use crate::metrics::CompressMetrics;
use crate::nar::{Cursor, Damage, NarError, Segment};

/// A NAR that is to be compressed.
#[derive(Debug)]
pub struct Wanted {
    /// The store path, for messages.
    pub path: StorePath,
    /// The hash that the NAR must have.
    pub nar_hash: Sha256,
    /// At the NAR's start.
    pub nar: Cursor,
    /// Into what.
    pub encoding: Encoding,
    /// Somebody waits for it: it goes before those that nobody waits for.
    pub is_urgent: bool,
}

/// What becomes of a wish.
#[derive(Debug)]
pub enum Compressing {
    /// It has been done before.
    Done(Arc<Manifest>),
    /// It is under way.
    Job(Arc<Job>),
}

/// The threads that compress; clones share them.
#[derive(Clone, Debug)]
pub struct Compressor(Arc<Shared>);

struct Shared {
    cache: Option<Arc<Cache>>,
    metrics: Arc<CompressMetrics>,
    /// Hears of paths that are not what the database says.
    damages: Option<Sender<Damage>>,
    state: Mutex<State>,
    wake: Condvar,
    /// How many manifests were put.
    finished: AtomicU64,
    /// When it was last told that the cache cannot be used.
    told: Mutex<Option<Instant>>,
    /// Has a clone with each client that frames are made for alone.
    alone: Arc<()>,
}

#[derive(Debug, Default)]
struct State {
    /// NARs that somebody waits for and that have had no turn yet.
    waiting: VecDeque<Task>,
    /// Those that have, at most [`COMPRESSING_OPEN`], while none of their chunks is being read.
    urgent: VecDeque<Task>,
    /// Those that nobody waits for: the first is finished before the second is begun.
    behind: VecDeque<Task>,
    /// Has a clone in each task that was begun while somebody waited for it.
    turns: Arc<()>,
    /// Every NAR under way, so that whoever wants the same shares it.
    jobs: HashMap<(Sha256, Encoding), Arc<Job>>,
    is_ending: bool,
}

/// The part of a job that one thread at a time has.
#[derive(Debug)]
struct Task {
    job: Arc<Job>,
    input: Input,
    hasher: sha2::Sha256,
    /// The number of the next chunk.
    next: usize,
    /// See [`State::turns`].
    turn: Option<Arc<()>>,
}

impl Compressor {
    /// A compressor that keeps its frames in `cache`; without one, it can only compress for one client at a time.
    /// Who receives `damages` hears of paths that turned out not to be what the database says. Nothing is done before
    /// [`Compressor::spawn`].
    pub fn new(
        cache: Option<Arc<Cache>>,
        damages: Option<Sender<Damage>>,
        metrics: Arc<CompressMetrics>,
    ) -> Self {
        let (state, wake, finished) = (Mutex::default(), Condvar::new(), AtomicU64::new(0));
        let (told, alone) = (Mutex::default(), Arc::default());
        Self(Arc::new(Shared { cache, metrics, damages, state, wake, finished, told, alone }))
    }

    /// How many NARs were compressed so far: while it is the same, nothing that was not there is.
    pub fn finished(&self) -> u64 {
        self.0.finished.load(Ordering::Acquire)
    }

    /// Starts `threads` threads, which go on until [`Compressor::end`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(&self, threads: usize) -> std::io::Result<Vec<JoinHandle<()>>> {
        let start = |number| {
            let compressor = self.clone();
            let name = format!("compress-{number}");
            thread::Builder::new().name(name).spawn(move || compressor.run())
        };
        (0..threads).map(start).collect()
    }

    /// Has the threads end after the chunk that each is at. Who waits for a job is told; frames made so far are kept.
    pub fn end(&self) {
        let mut state = self.0.state();
        state.is_ending = true;
        state.waiting.clear();
        state.urgent.clear();
        state.behind.clear();
        let jobs: Vec<_> = state.jobs.drain().map(|(_, job)| job).collect();
        drop(state);
        self.0.wake.notify_all();
        for job in jobs {
            job.fail(CompressError::Ended);
            job.wake();
        }
    }

    /// The frames' cache.
    pub fn cache(&self) -> Option<&Arc<Cache>> {
        self.0.cache.as_ref()
    }

    /// What is known of a NAR in an encoding, now or of before, by the encoding's id.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn find(&self, encoding: &str, nar_hash: &Sha256) -> Result<Option<Arc<Manifest>>, CacheError> {
        let Some(cache) = &self.0.cache else { return Ok(None) };
        let body = cache.manifest(&ManifestKey::of(encoding, nar_hash))?;
        Ok(body.and_then(|body| Manifest::from_bytes(&body)).map(Arc::new))
    }

    /// Has a NAR compressed, unless that was done or is under way. Returns at once but for the cache's database.
    ///
    /// # Errors
    /// When the cache cannot be read, or the threads are about to end.
    pub fn compress(&self, wanted: Wanted) -> Result<Compressing, CompressError> {
        let Wanted { path, nar_hash, nar, encoding, is_urgent } = wanted;
        if self.0.cache.is_none() {
            return Err(CompressError::NoCache);
        }
        // Held throughout: a job leaves the table only after its manifest was put.
        let mut state = self.0.state();
        if let Some(job) = state.jobs.get(&(nar_hash, encoding)) {
            let job = Arc::clone(job);
            if is_urgent && !job.is_urgent.swap(true, Ordering::Relaxed) {
                state.hasten(&job);
            }
            self.0.metrics.shared();
            return Ok(Compressing::Job(job));
        }
        if let Some(manifest) = self.find(&encoding.to_string(), &nar_hash).map_err(Arc::new)? {
            return Ok(Compressing::Done(manifest));
        }
        if state.is_ending {
            return Err(CompressError::Ended);
        }
        if !is_urgent && state.behind.len() >= COMPRESSING_BEHIND {
            return Err(CompressError::TooMany);
        }
        let job = Arc::new(Job::new(path, nar.plan().origin(), nar_hash, encoding, is_urgent));
        let input = Input::new(nar);
        state.push(Task { job: Arc::clone(&job), input, hasher: sha2::Sha256::new(), next: 0, turn: None });
        state.jobs.insert((nar_hash, encoding), Arc::clone(&job));
        drop(state);
        self.0.metrics.begun();
        self.0.wake.notify_one();
        Ok(Compressing::Job(job))
    }

    /// Has a NAR compressed, and waits until it is, or cannot be, which is told where it failed. Says whether it is worth
    /// going on with others.
    pub fn compress_to_the_end(&self, wanted: Wanted) -> bool {
        let job = match self.compress(wanted) {
            Ok(Compressing::Job(job)) => job,
            Ok(Compressing::Done(_)) => return true,
            Err(error) => return !matches!(error, CompressError::Ended | CompressError::NoCache),
        };
        let (sender, ended) = mpsc::sync_channel(1);
        let waiter = move || {
            // There is room for the one.
            let _ = sender.try_send(());
        };
        if job.end(Box::new(waiter)).is_none() {
            // The job calls it at its end, whatever that is.
            let _ = ended.recv();
        }
        !matches!(job.error(), Some(CompressError::Ended))
    }

    fn run(&self) {
        let mut encoder = None;
        while let Some(task) = self.0.next() {
            self.step(task, &mut encoder);
        }
    }

    /// One chunk of one NAR.
    fn step(&self, mut task: Task, encoder: &mut Option<Encoder>) {
        let job = Arc::clone(&task.job);
        if job.has_ended() {
            return self.finish(&job);
        }
        let chunk = match task.input.next(|bytes| task.hasher.update(bytes)) {
            Ok(Some(chunk)) => chunk,
            // A NAR is never empty, and its last chunk is not put back.
            Ok(None) => return,
            Err(error) => return self.failed(&job, error.into()),
        };
        let index = task.next;
        let is_last = task.input.is_at_end();
        let nar_hash = is_last.then(|| Sha256(task.hasher.clone().finalize().into()));
        if !is_last {
            task.next += 1;
            self.0.put_back(task);
        }
        let made = match frame(&self.0, job.encoding, &chunk, encoder) {
            Ok((key, segment)) => Made { key, chunk: chunk.len(), segment, nar_hash },
            Err(error) => return self.failed(&job, error),
        };
        if let Some(manifest) = job.made(index, made) {
            self.keep(&job, &manifest);
        }
        self.finish(&job);
    }

    fn keep(&self, job: &Job, manifest: &Manifest) {
        let Some(cache) = &self.0.cache else { return };
        let key = ManifestKey::of(&job.encoding.to_string(), &job.nar_hash);
        if let Err(error) = cache.put_manifest(key, Bytes::from(manifest.to_bytes())) {
            // The file is whole; only whoever asks for it next has to wait for it again.
            self.0.cache_failed(&error);
        }
        self.0.finished.fetch_add(1, Ordering::Release);
    }

    fn failed(&self, job: &Job, error: CompressError) {
        job.fail(error);
        self.finish(job);
    }

    /// Tells those who wait, and forgets the job if it has ended.
    fn finish(&self, job: &Job) {
        if job.has_ended() {
            let mut state = self.0.state();
            let key = (job.nar_hash, job.encoding);
            if state.jobs.get(&key).is_some_and(|kept| std::ptr::eq(&**kept, job)) {
                state.jobs.remove(&key);
                self.0.metrics.ended();
                let is_last = state.jobs.is_empty();
                drop(state);
                match job.error() {
                    None => {}
                    Some(CompressError::Cache(error)) => self.0.cache_failed(&error),
                    Some(CompressError::Nar(error)) if self.report(job, &error) => {}
                    Some(error) => {
                        tracing::warn!(path = %job.path, error = with_causes(&error), "not compressed");
                    }
                }
                // With nothing more to come, what was made should survive a power failure.
                if is_last && let Some(Err(error)) = self.0.cache.as_ref().map(|cache| cache.sync()) {
                    self.0.cache_failed(&error);
                }
            }
        }
        job.wake();
    }

    /// Reports damage, which whoever hears of it tells the operator; says whether somebody does.
    fn report(&self, job: &Job, error: &NarError) -> bool {
        let Some(damage) = Damage::of(error, job.nar_hash, job.origin) else { return false };
        // What a full mailbox refuses is found again with the next request for it.
        self.0.damages.as_ref().is_some_and(|damages| damages.try_send(damage).is_ok())
    }
}

/// The frame of a chunk: found, or made and kept.
fn frame(
    shared: &Shared,
    encoding: Encoding,
    chunk: &[u8],
    encoder: &mut Option<Encoder>,
) -> Result<(Key, Segment), CompressError> {
    let key = encoding.key(chunk);
    let Some(cache) = &shared.cache else { return Err(CompressError::NoCache) };
    match cache.get(&key) {
        Ok(Some(frame)) => {
            if let Some(segment) = frame.pin() {
                shared.metrics.found(chunk.len());
                return Ok((key, segment));
            }
        }
        Ok(None) => {}
        Err(error) => shared.cache_failed(&error),
    }
    let made = encode(shared, encoding, chunk, encoder)?;
    let frame = cache.put(&key, &made).map_err(Arc::new)?;
    // Should it be evicted at once, it is sent from memory.
    Ok((key, frame.pin_unmarked().unwrap_or_else(|| Segment::Bytes(made.into()))))
}

fn encode(
    shared: &Shared,
    encoding: Encoding,
    chunk: &[u8],
    kept: &mut Option<Encoder>,
) -> Result<Vec<u8>, EncodeError> {
    let begun = Instant::now();
    let encoder = match kept.take() {
        Some(encoder) if encoder.encoding() == encoding => encoder,
        _ => Encoder::new(encoding)?,
    };
    let made = kept.insert(encoder).encode(chunk)?;
    shared.metrics.compressed(chunk.len(), made.len(), begun.elapsed());
    Ok(made)
}

impl Compressor {
    /// A frame of so many bytes is sent in place of a chunk of so many.
    pub(super) fn saved(&self, chunk: u64, frame: u64) {
        self.0.metrics.saved(chunk, frame);
    }

    /// Forgets how a NAR was compressed: it cannot be made so again.
    pub(super) fn forget(&self, encoding: Encoding, nar_hash: &Sha256) {
        let key = ManifestKey::of(&encoding.to_string(), nar_hash);
        if let Some(Err(error)) = self.0.cache.as_ref().map(|cache| cache.forget_manifest(&key)) {
            self.0.cache_failed(&error);
        }
    }

    /// See [`Shared::cache_failed`].
    pub(super) fn cache_failed(&self, error: &CacheError) {
        self.0.cache_failed(error);
    }

    /// A turn for one client alone, until it is dropped.
    ///
    /// # Errors
    /// [`CompressError::TooMany`] where [`COMPRESSING_ALONE`] have one.
    pub(super) fn alone(&self) -> Result<Arc<()>, CompressError> {
        let turn = Arc::clone(&self.0.alone);
        // Itself, and the one that is kept.
        if Arc::strong_count(&turn) - 2 < COMPRESSING_ALONE { Ok(turn) } else { Err(CompressError::TooMany) }
    }

    /// The frame of a chunk, for one client: kept if that is possible.
    pub(super) fn frame_now(
        &self,
        encoding: Encoding,
        chunk: &[u8],
    ) -> Result<(Key, Segment), CompressError> {
        let mut encoder = None;
        match frame(&self.0, encoding, chunk, &mut encoder) {
            Err(CompressError::Cache(_) | CompressError::NoCache) => {
                let made = encode(&self.0, encoding, chunk, &mut encoder)?;
                Ok((encoding.key(chunk), Segment::Bytes(made.into())))
            }
            other => other,
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl State {
    fn push(&mut self, task: Task) {
        let is_urgent = task.job.is_urgent.load(Ordering::Relaxed);
        match (is_urgent, &task.turn) {
            (true, Some(_)) => self.urgent.push_back(task),
            (true, None) => self.waiting.push_back(task),
            // Begun or not: what was begun holds memory, and goes on before another is.
            (false, _) if task.next > 0 => self.behind.push_front(task),
            (false, _) => self.behind.push_back(task),
        }
    }

    /// Whoever has had no turn comes first, so that its client sees a beginning; then those that have, in turn.
    fn pop(&mut self) -> Option<Task> {
        let open = Arc::strong_count(&self.turns) - 1;
        if open < COMPRESSING_OPEN
            && let Some(task) = self.waiting.pop_front()
        {
            return Some(Task { turn: Some(Arc::clone(&self.turns)), ..task });
        }
        self.urgent.pop_front().or_else(|| self.behind.pop_front())
    }

    /// Somebody waits for a job that nobody waited for.
    fn hasten(&mut self, job: &Arc<Job>) {
        let place = self.behind.iter().position(|task| Arc::ptr_eq(&task.job, job));
        self.waiting.extend(place.and_then(|place| self.behind.remove(place)));
    }
}

impl Shared {
    /// What to do next; `None` at the end. With nothing to do, it is looked after the cache's folder.
    fn next(&self) -> Option<Task> {
        let mut state = self.state();
        loop {
            if state.is_ending {
                return None;
            }
            if let Some(task) = state.pop() {
                return Some(task);
            }
            let waited = self.wake.wait_timeout(state, CACHE_LOOK).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() {
                drop(state);
                if let Some(Err(error)) = self.cache.as_ref().map(|cache| cache.look()) {
                    self.cache_failed(&error);
                }
                state = self.state();
            }
        }
    }

    /// Counts that the cache could not be used, and tells of it now and then: a full disk fails every chunk.
    fn cache_failed(&self, error: &CacheError) {
        self.metrics.cache_failed();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= WARNING_PAUSE) {
            *told = Some(Instant::now());
            let error = with_causes(error);
            tracing::warn!(error, "the cache cannot be used: NARs are compressed for one client at a time");
        }
    }

    fn put_back(&self, task: Task) {
        let mut state = self.state();
        if !state.is_ending {
            state.push(task);
            self.wake.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
