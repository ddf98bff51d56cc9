//! The threads that compress, and what they are to do.
//!
//! A NAR is read and cut by one thread at a time, in order, and hashed on the way; its chunks are compressed by all.
//! Between two chunks of one NAR the others get their turn, so that a large one holds nobody up. What a thread has in
//! hand is one chunk and its frame; what is in the middle holds the rest that was cut off, a folder and a file, and only
//! so many are (`COMPRESSING_OPEN`, and one a thread of those that nobody waits for).
//!
//! A NAR whose last client has given up goes on behind all that somebody waits for, and gives back what it holds. What
//! was made of it stays, and who comes back finds it as far as it has come.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use sha2::Digest;

use self::queue::{State, Task, Turn};
use super::again::{Again, Missing, Remaking};
use super::encode::{EncodeError, Encoder, Encoding};
use super::job::{CompressError, Input, Interest, Job, Made};
use super::manifest::Manifest;
use super::plans::Plans;
use super::{Cache, CacheError, Key, ManifestKey};
use crate::causes::with_causes;
use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePath;
use crate::limits::{CACHE_LOOK, COMPRESSING_ALONE, COMPRESSING_BEHIND, WARNING_PAUSE};
use crate::mailbox::Sender;
use crate::metrics::CompressMetrics;
use crate::nar::{Cursor, Damage, NarError, Plan, Segment};

mod queue;

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
    /// Who waits for it, and as long as they do: it goes before those that nobody waits for.
    pub by: Option<Weak<Interest>>,
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
    /// Of trees of which frames are made again.
    plans: Plans,
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
        let (told, alone, plans) = (Mutex::default(), Arc::default(), Plans::default());
        Self(Arc::new(Shared { cache, metrics, damages, state, wake, finished, told, alone, plans }))
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
        self.0.state().threads += threads;
        (0..threads).map(start).collect()
    }

    /// Has the threads end after the chunk that each is at. Who waits for a job is told; frames made so far are kept.
    pub fn end(&self) {
        let mut state = self.0.state();
        state.is_ending = true;
        state.waiting.clear();
        state.urgent.clear();
        state.behind.clear();
        state.again.clear();
        let jobs: Vec<_> = state.jobs.drain().map(|(_, job)| job).collect();
        let remaking: Vec<_> = state.remaking.drain().map(|(_, remaking)| remaking).collect();
        drop(state);
        self.0.wake.notify_all();
        remaking.iter().for_each(|remaking| remaking.ended(Err(CompressError::Ended)));
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
        self.begin(wanted, false)
    }

    /// The same for somebody who waits for the file's length: where frames cannot be kept, it is found all the same.
    ///
    /// # Errors
    /// As [`Compressor::compress`].
    pub fn compress_for_length(&self, wanted: Wanted) -> Result<Compressing, CompressError> {
        self.begin(wanted, true)
    }

    fn begin(&self, wanted: Wanted, needs_length: bool) -> Result<Compressing, CompressError> {
        let Wanted { path, nar_hash, nar, encoding, by } = wanted;
        if self.0.cache.is_none() {
            return Err(CompressError::NoCache);
        }
        // Held throughout: a job leaves the table only after its manifest was put.
        let mut state = self.0.state();
        if let Some(job) = state.jobs.get(&(nar_hash, encoding)) {
            let job = Arc::clone(job);
            if needs_length {
                job.need_length();
            }
            if let Some(by) = by {
                let was_wanted = job.is_wanted();
                job.want(by);
                if !was_wanted {
                    state.hasten(&job);
                }
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
        if by.is_none() && state.behind.len() >= COMPRESSING_BEHIND {
            return Err(CompressError::TooMany);
        }
        let job = Arc::new(Job::new(path, nar.clone(), nar_hash, encoding, by));
        if needs_length {
            job.need_length();
        }
        let input = Input::new(nar);
        let hasher = sha2::Sha256::new();
        state.push(Task { job: Arc::clone(&job), input, hasher, next: 0, turn: None, calm: None });
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
        while let Some(turn) = self.0.next() {
            match turn {
                Turn::Chunk(mut task) => {
                    let calm = task.calm.take();
                    self.step(*task, &mut encoder);
                    if calm.is_some() {
                        drop(calm);
                        // This thread may have something better to do next.
                        self.0.wake.notify_one();
                    }
                }
                Turn::Frame(again) => self.make_again(&again, &mut encoder),
            }
        }
    }

    fn make_again(&self, Again { missing, remaking }: &Again, encoder: &mut Option<Encoder>) {
        let made = missing.read().map_err(CompressError::from);
        let made = made.and_then(|chunk| frame_or_bytes(&self.0, missing.encoding, &chunk, encoder));
        let made = made.and_then(|made| missing.check(made));
        self.0.state().remaking.remove(&missing.key);
        remaking.ended(made);
    }

    /// One chunk of one NAR.
    fn step(&self, mut task: Task, encoder: &mut Option<Encoder>) {
        let job = Arc::clone(&task.job);
        if job.has_ended() {
            return self.finish(&job);
        }
        let chunk = match task.input.next() {
            Ok(Some(chunk)) => chunk,
            // A NAR is never empty, and its last chunk is not put back.
            Ok(None) => return,
            Err(error) => return self.failed(&job, error.into()),
        };
        // What was only read is not hashed yet: it may be let go, and be something else when it is read again.
        task.hasher.update(&chunk);
        let index = task.next;
        let is_last = task.input.is_at_end();
        let nar_hash = is_last.then(|| Sha256(task.hasher.clone().finalize().into()));
        if !is_last {
            task.next += 1;
            self.0.put_back(task);
        }
        let made = match job.needs_length() {
            true => frame_or_bytes(&self.0, job.encoding, &chunk, encoder),
            false => frame(&self.0, job.encoding, &chunk, encoder),
        };
        let made = match made {
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
        let Some(damage) = Damage::of_read(error, job.nar_hash, &job.nar) else { return false };
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
    let (key, segment, unkept) = found_or_made(shared, encoding, chunk, encoder)?;
    unkept.map_or(Ok((key, segment)), Err)
}

/// The same where it is sent from memory if it cannot be kept.
fn frame_or_bytes(
    shared: &Shared,
    encoding: Encoding,
    chunk: &[u8],
    encoder: &mut Option<Encoder>,
) -> Result<(Key, Segment), CompressError> {
    let (key, segment, unkept) = found_or_made(shared, encoding, chunk, encoder)?;
    if let Some(CompressError::Cache(error)) = unkept {
        shared.cache_failed(&error);
    }
    Ok((key, segment))
}

/// The frame of a chunk, and why it could not be kept, if it could not.
fn found_or_made(
    shared: &Shared,
    encoding: Encoding,
    chunk: &[u8],
    encoder: &mut Option<Encoder>,
) -> Result<(Key, Segment, Option<CompressError>), EncodeError> {
    let key = encoding.key(chunk);
    match shared.cache.as_ref().map(|cache| cache.get(&key)) {
        Some(Ok(Some(frame))) => {
            if let Some(segment) = frame.pin() {
                shared.metrics.found(chunk.len());
                return Ok((key, segment, None));
            }
        }
        Some(Err(error)) => shared.cache_failed(&error),
        Some(Ok(None)) | None => {}
    }
    let made = encode(shared, encoding, chunk, encoder)?;
    let (kept, unkept) = match shared.cache.as_ref().map(|cache| cache.put(&key, &made)) {
        // Should it be evicted at once, it is sent from memory.
        Some(Ok(frame)) => (frame.pin_unmarked(), None),
        Some(Err(error)) => (None, Some(CompressError::Cache(Arc::new(error)))),
        None => (None, Some(CompressError::NoCache)),
    };
    Ok((key, kept.unwrap_or_else(|| Segment::Bytes(made.into())), unkept))
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

    /// Has a frame made again, unless that is under way: then it may be of another path's tree. Also says whether it is
    /// not. Returns at once.
    pub(super) fn remake(&self, missing: Missing) -> (Arc<Remaking>, bool) {
        let mut state = self.0.state();
        if let Some(remaking) = state.remaking.get(&missing.key) {
            return (Arc::clone(remaking), false);
        }
        let remaking = Arc::<Remaking>::default();
        if state.is_ending {
            remaking.ended(Err(CompressError::Ended));
            return (remaking, true);
        }
        state.remaking.insert(missing.key, Arc::clone(&remaking));
        state.again.push_back(Again { missing, remaking: Arc::clone(&remaking) });
        drop(state);
        self.0.wake.notify_one();
        (remaking, true)
    }

    /// A plan of the tree at `root`, to make frames of. Waits for the disk.
    pub(super) fn plan(&self, root: &Path) -> Result<Arc<Plan>, NarError> {
        self.0.plans.of(root)
    }

    /// How many frames can be made at once.
    pub(super) fn threads(&self) -> usize {
        self.0.state().threads
    }

    /// See [`Shared::cache_failed`].
    pub(super) fn cache_failed(&self, error: &CacheError) {
        self.0.cache_failed(error);
    }

    /// A turn to hold a frame in memory for one client, until it is dropped.
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
        frame_or_bytes(&self.0, encoding, chunk, &mut None)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Shared {
    /// What to do next; `None` at the end. Every [`CACHE_LOOK`], however much there is to do, it is looked after the
    /// cache's folder first.
    fn next(&self) -> Option<Turn> {
        let mut state = self.state();
        loop {
            if state.is_ending {
                return None;
            }
            if state.looked.is_none_or(|looked| looked.elapsed() >= CACHE_LOOK) {
                state.looked = Some(Instant::now());
                drop(state);
                if let Some(Err(error)) = self.cache.as_ref().map(|cache| cache.look()) {
                    self.cache_failed(&error);
                }
                state = self.state();
                continue;
            }
            let turn = state.turn();
            state = self.forget_dropped(state);
            if let Some(turn) = turn {
                return Some(turn);
            }
            let waited = self.wake.wait_timeout(state, CACHE_LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Counts that the cache could not be used, and tells of it now and then: a full disk fails every chunk.
    fn cache_failed(&self, error: &CacheError) {
        self.metrics.cache_failed();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= WARNING_PAUSE) {
            *told = Some(Instant::now());
            let consequence = match error.is_loss() {
                true => "a part of the cache is lost",
                false => "the cache cannot be used: NARs are compressed for one client at a time",
            };
            tracing::warn!(error = with_causes(error), "{consequence}");
        }
    }

    fn put_back(&self, task: Task) {
        let mut state = self.state();
        if !state.is_ending {
            state.push(task);
            self.wake.notify_one();
        }
        drop(self.forget_dropped(state));
    }

    /// Tells whoever still listens to jobs that have no place any more: nobody but those who have given up.
    fn forget_dropped<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        if state.dropped.is_empty() {
            return state;
        }
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        for job in dropped {
            self.metrics.ended();
            job.fail(CompressError::TooMany);
            job.wake();
        }
        self.state()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
