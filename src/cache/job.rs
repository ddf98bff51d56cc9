//! One NAR that is being compressed: what has been made of it so far, and who waits for more.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sha2::Digest;

use super::encode::{EncodeError, Encoding};
use super::layout::{self, Layout};
use super::manifest::{Manifest, Part};
use super::{CacheError, Key};
use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePath;
use crate::nar::{Cursor, NarError, Origin, Reader, Segment};

/// Why a NAR is not compressed. Cheap to clone, since all who wait are told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompressError {
    /// The NAR cannot be read, or is not what the database says.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// The frames cannot be kept. The NAR can still be compressed for one client as it is sent.
    #[error(transparent)]
    Cache(#[from] Arc<CacheError>),
    /// There is no memory for it.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// There is no cache.
    #[error("there is no cache")]
    NoCache,
    /// Memory is bounded.
    #[error("too many NARs are being compressed")]
    TooMany,
    /// A frame is gone, and this server does not make frames of its encoding.
    #[error("a frame of an encoding of former times is gone")]
    Retired,
    /// Nobody is left to do it: the server is about to end.
    #[error("the server is about to end")]
    Ended,
}

/// Somebody who waits for a NAR does so as long as this lives. To drop it sends nothing and never waits: whoever
/// compresses sees at the NAR's next turn that nobody has it.
#[derive(Debug, Default)]
pub struct Interest(());

/// A NAR, chunk by chunk.
#[derive(Debug)]
pub(super) struct Input {
    nar: Cursor,
    /// At the end of `rest`, once something was read.
    reader: Option<Reader>,
    layout: Layout,
    /// Read, and not in a chunk yet.
    rest: Vec<u8>,
    /// Where `rest` begins in the NAR.
    position: u64,
}

impl Input {
    /// What remains of a NAR from the cursor on, which stands where a chunk begins.
    pub(super) fn new(cursor: Cursor) -> Self {
        let layout = Layout::new(cursor.plan().contents(), cursor.plan().size());
        Self { layout, rest: Vec::new(), position: cursor.position(), reader: None, nar: cursor }
    }

    /// The next chunk; `None` at the NAR's end. Waits for the disk.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, NarError> {
        let room = self.layout.room(self.position);
        if room == 0 {
            return Ok(None);
        }
        let mut chunk = std::mem::take(&mut self.rest);
        let mut filled = chunk.len();
        chunk.resize(room, 0);
        let reader = self.reader.get_or_insert_with(|| {
            let mut nar = self.nar.clone();
            nar.seek(self.position);
            Reader::new(nar)
        });
        while filled < room {
            // The reader gives as many bytes as the plan has, or an error.
            filled += reader.fill(&mut chunk[filled..])?;
        }
        self.rest = chunk.split_off(layout::chunk(&chunk));
        self.position += chunk.len() as u64;
        Ok(Some(chunk))
    }

    /// Gives back what it holds between two chunks, memory and open files: the next one is read anew.
    pub(super) fn let_go(&mut self) {
        (self.reader, self.rest) = (None, Vec::new());
    }

    /// Whether there is no further chunk.
    pub(super) fn is_at_end(&self) -> bool {
        self.position == self.layout.size()
    }
}

/// A NAR that is being compressed, for whoever wants it. It goes on whether or not anybody still does.
#[derive(Debug)]
pub struct Job {
    pub(super) path: StorePath,
    /// The tree that it is made of.
    pub(super) origin: Origin,
    pub(super) nar_hash: Sha256,
    pub(super) encoding: Encoding,
    /// Who waits for it.
    wanted_by: Mutex<Vec<Weak<Interest>>>,
    output: Mutex<Output>,
}

/// What is called when a part is there that was not, or the job has ended.
pub(super) type Waiter = Box<dyn FnOnce() + Send>;

struct Output {
    /// Frames that are made while one before them is not.
    early: BTreeMap<usize, Made>,
    /// All parts up to the first that is missing, with what to send.
    parts: Vec<Part>,
    segments: Vec<Segment>,
    hasher: sha2::Sha256,
    ended: Option<Result<Arc<Manifest>, CompressError>>,
    waiters: Vec<(usize, Waiter)>,
}

/// A frame that was made or found.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) key: Key,
    /// Length of the chunk in bytes.
    pub(super) chunk: usize,
    /// The frame; held, so that eviction does not take it before it was sent.
    pub(super) segment: Segment,
    /// The hash that the whole NAR turned out to have; of the last chunk only.
    pub(super) nar_hash: Option<Sha256>,
}

/// How far a job is, seen by somebody who wants one part.
#[derive(Debug)]
pub(super) enum Progress {
    /// The part is there; with the length of its chunk.
    Ready(Segment, u64),
    /// It is not there yet; the waiter is kept.
    Waiting,
    /// It is done, and has no such part or none that is held here.
    Done(Arc<Manifest>),
    /// It has failed. The parts up to there can be relied on.
    Failed(CompressError, Vec<Part>),
}

impl Job {
    pub(super) fn new(
        path: StorePath,
        origin: Origin,
        nar_hash: Sha256,
        encoding: Encoding,
        by: Option<Weak<Interest>>,
    ) -> Self {
        let output = Output {
            early: BTreeMap::new(),
            parts: Vec::new(),
            segments: Vec::new(),
            hasher: sha2::Sha256::new(),
            ended: None,
            waiters: Vec::new(),
        };
        let wanted_by = Mutex::new(by.into_iter().collect());
        Self { path, origin, nar_hash, encoding, wanted_by, output: Mutex::new(output) }
    }

    /// Somebody else waits for it.
    pub(super) fn want(&self, by: Weak<Interest>) {
        self.waiting().push(by);
    }

    /// Whether somebody waits for it still: then it goes before those that nobody waits for.
    pub(super) fn is_wanted(&self) -> bool {
        !self.waiting().is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Weak<Interest>>> {
        let mut waiting = self.wanted_by.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|by| by.strong_count() > 0);
        waiting
    }

    /// Part number `index`, or a place among those who wait for it.
    pub(super) fn part(&self, index: usize, waiter: Waiter) -> Progress {
        let mut output = self.output();
        match (output.segments.get(index), &output.ended) {
            (Some(segment), _) => {
                // Once all are there, they are in the manifest.
                let parts = match &output.ended {
                    Some(Ok(manifest)) => manifest.parts(),
                    _ => &output.parts,
                };
                let end = |index: usize| parts.get(index).map_or(0, |part| part.nar_end);
                let chunk = end(index) - index.checked_sub(1).map_or(0, end);
                Progress::Ready(segment.clone(), chunk)
            }
            (None, Some(Ok(manifest))) => Progress::Done(Arc::clone(manifest)),
            (None, Some(Err(error))) => Progress::Failed(error.clone(), output.parts.clone()),
            (None, None) => {
                output.waiters.push((index, waiter));
                Progress::Waiting
            }
        }
    }

    /// The whole, or a place among those who wait for the end.
    pub(super) fn end(&self, waiter: Waiter) -> Option<Result<Arc<Manifest>, CompressError>> {
        let mut output = self.output();
        if output.ended.is_none() {
            output.waiters.push((usize::MAX, waiter));
        }
        output.ended.clone()
    }

    /// Whether it has failed: then nothing more need be read.
    pub(super) fn has_ended(&self) -> bool {
        self.output().ended.is_some()
    }

    /// Why it has failed, if it has.
    pub(super) fn error(&self) -> Option<CompressError> {
        self.output().ended.clone().and_then(Result::err)
    }

    /// Chunk number `index` has become a frame. Gives the manifest with the last one. Those who wait are to be
    /// called with [`Job::wake`] afterwards.
    pub(super) fn made(&self, index: usize, made: Made) -> Option<Arc<Manifest>> {
        let mut output = self.output();
        output.early.insert(index, made);
        while output.ended.is_none()
            && let Some(next) = {
                let next = output.parts.len();
                output.early.remove(&next)
            }
        {
            output.take(next, self);
        }
        output.ended.clone().and_then(Result::ok)
    }

    /// It cannot go on.
    pub(super) fn fail(&self, error: CompressError) {
        let mut output = self.output();
        output.ended.get_or_insert(Err(error));
        output.early.clear();
    }

    /// Calls those whose part is there.
    pub(super) fn wake(&self) {
        let mut output = self.output();
        let (there, ended) = (output.segments.len(), output.ended.is_some());
        let ready = output.waiters.extract_if(.., |(index, _)| ended || *index < there);
        let ready: Vec<_> = ready.collect();
        drop(output);
        for (_, waiter) in ready {
            waiter();
        }
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    /// The next frame in order. The last one is let go only if the NAR is what the database says: without it, nobody
    /// can take what was sent for the whole.
    fn take(&mut self, made: Made, job: &Job) {
        if let Some(found) = made.nar_hash.filter(|found| *found != job.nar_hash) {
            let (path, registered) = (job.path.clone(), job.nar_hash);
            self.ended = Some(Err(NarError::HashMismatch { path, found, registered }.into()));
            return;
        }
        if let Err(error) = self.hash(&made.segment) {
            let file = "a volume of the cache".into();
            let error = CacheError::File { file, doing: "read", source: error };
            self.ended = Some(Err(Arc::new(error).into()));
            return;
        }
        let (nar, file) = self.parts.last().map_or((0, 0), |part| (part.nar_end, part.file_end));
        let (nar_end, file_end) = (nar + made.chunk as u64, file + made.segment.len());
        self.parts.push(Part { key: made.key, nar_end, file_end });
        self.segments.push(made.segment);
        if made.nar_hash.is_some() {
            let file_hash = Sha256(std::mem::take(&mut self.hasher).finalize().into());
            self.ended = Some(Ok(Arc::new(Manifest::new(file_hash, std::mem::take(&mut self.parts)))));
        }
    }

    /// The frame was written a moment ago, so it comes from memory.
    fn hash(&mut self, segment: &Segment) -> std::io::Result<()> {
        match segment {
            Segment::Bytes(bytes) => self.hasher.update(bytes),
            Segment::File { file, offset, len } => {
                // No longer than a frame may be.
                let mut bytes = vec![0; *len as usize];
                file.read_exact_at(&mut bytes, *offset)?;
                self.hasher.update(&bytes);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}
