//! The threads that compress, and what they are to do.
//!
//! A NAR is read and cut by one thread at a time, in order, and hashed on the way; its chunks are compressed by all.
//! Between two chunks of one NAR the others get their turn, so that a large one holds nobody up. What a thread has in
//! hand is one chunk and its frame; what is in the middle holds the rest that was cut off, a folder and a file, and only
//! so many are (`COMPRESSING_OPEN`, and one a thread of those that nobody waits for).
//!
//! A NAR whose last client has given up goes on behind all that somebody waits for, and gives back what it holds. What
//! was made of it stays, and who comes back finds it as far as it has come.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use sha2::Digest;

use super::again::{Again, Missing, Remaking};
use super::encode::{EncodeError, Encoder, Encoding};
use super::job::{CompressError, Input, Interest, Job, Made};
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
    /// How many threads there are.
    threads: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// NARs that somebody waits for, or did, and that have had no turn yet.
    waiting: VecDeque<Task>,
    /// Those that have, at most [`COMPRESSING_OPEN`], while none of their chunks is being read.
    urgent: VecDeque<Task>,
    /// Those that nobody waits for, or not any more: the first is finished before the second is begun.
    behind: VecDeque<Task>,
    /// Those that were given up and for which there is no place behind.
    dropped: Vec<Arc<Job>>,
    /// Frames that are to be made again.
    again: VecDeque<Again>,
    /// Those of them that are not made yet, so that whoever wants the same shares it.
    remaking: HashMap<Key, Arc<Remaking>>,
    /// The last turn was that of a frame.
    was_again: bool,
    /// Has a clone in each task that was begun while somebody waited for it.
    turns: Arc<()>,
    /// Every NAR under way, so that whoever wants the same shares it.
    jobs: HashMap<(Sha256, Encoding), Arc<Job>>,
    is_ending: bool,
}

/// What a thread does next.
#[derive(Debug)]
enum Turn {
    /// A chunk of a NAR.
    Chunk(Box<Task>),
    /// A frame that is gone.
    Frame(Again),
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
        let (told, alone, threads) = (Mutex::default(), Arc::default(), AtomicUsize::new(0));
        Self(Arc::new(Shared { cache, metrics, damages, state, wake, finished, told, alone, threads }))
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
        self.0.threads.fetch_add(threads, Ordering::Relaxed);
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
        let Wanted { path, nar_hash, nar, encoding, by } = wanted;
        if self.0.cache.is_none() {
            return Err(CompressError::NoCache);
        }
        // Held throughout: a job leaves the table only after its manifest was put.
        let mut state = self.0.state();
        if let Some(job) = state.jobs.get(&(nar_hash, encoding)) {
            let job = Arc::clone(job);
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
        let job = Arc::new(Job::new(path, nar.plan().origin(), nar_hash, encoding, by));
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
        while let Some(turn) = self.0.next() {
            match turn {
                Turn::Chunk(task) => self.step(*task, &mut encoder),
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

/// The same where it is sent from memory if it cannot be kept.
fn frame_or_bytes(
    shared: &Shared,
    encoding: Encoding,
    chunk: &[u8],
    encoder: &mut Option<Encoder>,
) -> Result<(Key, Segment), CompressError> {
    match frame(shared, encoding, chunk, encoder) {
        Err(CompressError::Cache(_) | CompressError::NoCache) => {
            let made = encode(shared, encoding, chunk, encoder)?;
            Ok((encoding.key(chunk), Segment::Bytes(made.into())))
        }
        other => other,
    }
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

    /// How many frames can be made at once.
    pub(super) fn threads(&self) -> usize {
        self.0.threads.load(Ordering::Relaxed)
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
        frame_or_bytes(&self.0, encoding, chunk, &mut None)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl State {
    fn push(&mut self, task: Task) {
        match (task.job.is_wanted(), &task.turn) {
            (true, Some(_)) => self.urgent.push_back(task),
            (true, None) => self.waiting.push_back(task),
            (false, Some(_)) => self.give_up(task),
            // Begun or not: what was begun holds memory, and goes on before another is.
            (false, _) if task.next > 0 => self.behind.push_front(task),
            (false, _) => self.behind.push_back(task),
        }
    }

    /// Frames that are made again and NARs have their turns one after the other.
    fn turn(&mut self) -> Option<Turn> {
        let frame = if self.was_again { None } else { self.again.pop_front() };
        let turn = frame.map(Turn::Frame).or_else(|| self.pop().map(|task| Turn::Chunk(task.into())));
        let turn = turn.or_else(|| self.again.pop_front().map(Turn::Frame));
        self.was_again = matches!(turn, Some(Turn::Frame(_)));
        turn
    }

    /// Whoever has had no turn comes first, so that its client sees a beginning; then those that have, in turn.
    fn pop(&mut self) -> Option<Task> {
        loop {
            let open = Arc::strong_count(&self.turns) - 1;
            let first = if open < COMPRESSING_OPEN { self.waiting.pop_front() } else { None };
            let Some(task) = first.or_else(|| self.urgent.pop_front()) else {
                return self.behind.pop_front();
            };
            if task.job.is_wanted() {
                let turn = task.turn.or_else(|| Some(Arc::clone(&self.turns)));
                return Some(Task { turn, ..task });
            }
            self.give_up(task);
        }
    }

    /// Nobody waits for it any more.
    fn give_up(&mut self, mut task: Task) {
        task.turn = None;
        task.input.let_go();
        if self.behind.len() < COMPRESSING_BEHIND {
            self.behind.push_back(task);
        } else {
            // Its frames are kept. While the table is locked, nobody comes back to it.
            self.jobs.remove(&(task.job.nar_hash, task.job.encoding));
            self.dropped.push(task.job);
        }
    }

    /// Somebody waits for a job that nobody waited for.
    fn hasten(&mut self, job: &Arc<Job>) {
        let place = self.behind.iter().position(|task| Arc::ptr_eq(&task.job, job));
        self.waiting.extend(place.and_then(|place| self.behind.remove(place)));
    }
}

impl Shared {
    /// What to do next; `None` at the end. With nothing to do, it is looked after the cache's folder.
    fn next(&self) -> Option<Turn> {
        let mut state = self.state();
        loop {
            if state.is_ending {
                return None;
            }
            let turn = state.turn();
            state = self.forget_dropped(state);
            if let Some(turn) = turn {
                return Some(turn);
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
