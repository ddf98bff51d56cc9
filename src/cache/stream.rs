//! A place in one compressed NAR, and the bytes that come next.

use std::collections::VecDeque;
use std::sync::Arc;

use super::again::{Missing, Remaking};
use super::compress::Compressor;
use super::encode::Encoding;
use super::job::{CompressError, Input, Job, Progress, Waiter};
use super::manifest::{Manifest, Part};
use crate::formats::hash::Sha256;
use crate::limits::STREAM_FRAMES;
use crate::nar::{CASE_HACK, Cursor, NarError, Plan, Segment};

/// A place in one compressed NAR and where to stop. Between two fetches it holds no descriptor and no buffer but those of
/// frames that are made again for it.
#[derive(Debug)]
pub struct Stream {
    tree: Tree,
    /// `None` for an encoding of former times: its frames are there, or cannot be had.
    encoding: Option<Encoding>,
    /// The NAR's hash, where the file is to be forgotten should it turn out not to be made again as it was.
    nar_hash: Option<Sha256>,
    work: Work,
    /// The part that comes next.
    next: usize,
    /// How much of that part is passed over, in bytes.
    skip: u64,
    /// How much is left to give, in bytes; `None` up to an end that is not known yet.
    left: Option<u64>,
    /// From and up to which byte it was confined.
    range: (u64, u64),
    /// Frames before the next one that were fetched with the first look.
    ready: Vec<Segment>,
    /// Parts from the next one on that are made again, in order.
    again: VecDeque<Pending>,
    /// The last frame that was made again could not be kept: what is made ahead would be held in memory.
    is_unkept: bool,
}

/// A frame that is made again.
#[derive(Debug)]
struct Pending {
    /// Which part it is.
    index: usize,
    remaking: Arc<Remaking>,
    /// It is made of this tree.
    is_own: bool,
}

/// Where the NAR comes from, should a frame have to be made.
#[derive(Clone, Debug)]
pub enum Tree {
    /// A plan that is there.
    Planned(Cursor),
    /// The root of a tree that has not been planned.
    Root(Arc<std::path::Path>),
}

/// What is known of the file.
#[derive(Debug)]
enum Work {
    /// All of it.
    Whole(Arc<Manifest>),
    /// What has been made of it so far.
    Job(Arc<Job>),
    /// It is made as it goes, for this client alone: frames cannot be kept.
    Alone {
        input: Box<Input>,
        /// Counts: only so many may be.
        _turn: Arc<()>,
    },
}

/// What a fetch gives.
#[derive(Debug)]
pub enum Fetched {
    /// What comes next; empty at the end.
    Segments(Vec<Segment>),
    /// Nothing yet: the waiter will be called.
    Waiting,
}

impl Stream {
    /// The whole of a file that was made before. `encoding` is `None` if this server does not make it any more.
    pub fn whole(manifest: Arc<Manifest>, encoding: Option<Encoding>, tree: Tree) -> Self {
        let (left, range) = (Some(manifest.file_size()), (0, manifest.file_size()));
        Self { left, range, ..Self::new(tree, encoding, Work::Whole(manifest)) }
    }

    /// The same, of the NAR with this hash. Should a frame that is gone not be made again as it was, the file is forgotten:
    /// so whoever asks next has the whole NAR read, and hashed.
    pub fn of(self, nar_hash: Sha256) -> Self {
        Self { nar_hash: Some(nar_hash), ..self }
    }

    /// A file that is being made, from its start to its end.
    pub fn following(job: Arc<Job>, nar: Cursor) -> Self {
        let (encoding, nar_hash) = (Some(job.encoding), Some(job.nar_hash));
        Self { nar_hash, ..Self::new(Tree::Planned(nar), encoding, Work::Job(job)) }
    }

    /// A file that is made as it is sent, for one client: there is no place for frames.
    pub fn alone(encoding: Encoding, nar: Cursor, turn: Arc<()>) -> Self {
        let work = Work::Alone { input: Box::new(Input::new(nar.clone())), _turn: turn };
        Self::new(Tree::Planned(nar), Some(encoding), work)
    }

    fn new(tree: Tree, encoding: Option<Encoding>, work: Work) -> Self {
        Self {
            tree,
            encoding,
            nar_hash: None,
            work,
            next: 0,
            skip: 0,
            left: None,
            range: (0, 0),
            ready: Vec::new(),
            again: VecDeque::new(),
            is_unkept: false,
        }
    }

    /// The manifest, where the whole file is known.
    pub fn manifest(&self) -> Option<&Arc<Manifest>> {
        match &self.work {
            Work::Whole(manifest) => Some(manifest),
            Work::Job(_) | Work::Alone { .. } => None,
        }
    }

    /// Size of the whole file in bytes, where it is known.
    pub fn file_size(&self) -> Option<u64> {
        self.manifest().map(|manifest| manifest.file_size())
    }

    /// Confines it to the bytes from `start` up to and without `end`. Only where the whole file is known.
    pub fn set_range(&mut self, start: u64, end: u64) {
        if let Work::Whole(manifest) = &self.work {
            let end = end.min(manifest.file_size());
            let start = start.min(end);
            if self.range == (start, end) && self.left() == Some(end - start) {
                return;
            }
            (self.ready, self.again) = (Vec::new(), VecDeque::new());
            self.next = manifest.part_at(start);
            self.skip = start - begin(manifest.parts(), self.next);
            self.left = Some(end - start);
            self.range = (start, end);
        }
    }

    /// How many bytes are left; `None` while that is not known.
    pub fn left(&self) -> Option<u64> {
        self.left.map(|left| left + self.ready_bytes())
    }

    /// What was fetched already of what comes next. Waits for nothing.
    pub fn take_ready(&mut self) -> Vec<Segment> {
        std::mem::take(&mut self.ready)
    }

    fn ready_bytes(&self) -> u64 {
        self.ready.iter().map(Segment::len).sum()
    }

    /// Fetches what comes first, as far as it is there, to be had by [`Stream::take_ready`].
    pub(super) fn fetch_first(&mut self, compressor: &Compressor) {
        if let Work::Whole(manifest) = &self.work {
            let manifest = Arc::clone(manifest);
            self.ready = self.fetch_kept(compressor, &manifest);
        }
    }

    /// What comes next: frames that are there, as ranges of files, or one that is made now. Where it is being made by
    /// others, `waiter` is kept and called when there is more. Waits for disks; compresses only for one client alone.
    ///
    /// # Errors
    /// When a frame is not there and cannot be made again as it was.
    pub(super) fn fetch(
        &mut self,
        compressor: &Compressor,
        waiter: Waiter,
    ) -> Result<Fetched, CompressError> {
        let mut waiter = Some(waiter);
        loop {
            if self.left == Some(0) {
                return Ok(Fetched::Segments(Vec::new()));
            }
            let (segment, chunk) = match &mut self.work {
                Work::Whole(manifest) => {
                    let manifest = Arc::clone(manifest);
                    let waiter = waiter.take().unwrap_or_else(|| Box::new(|| ()));
                    return self.fetch_whole(compressor, &manifest, waiter);
                }
                Work::Alone { input, .. } => {
                    let Some(chunk) = input.next()? else {
                        self.left = Some(0);
                        continue;
                    };
                    let encoding = self.encoding.ok_or(CompressError::Ended)?;
                    (compressor.frame_now(encoding, &chunk)?.1, chunk.len() as u64)
                }
                // After a failure there is no second round with the job.
                Work::Job(job) => match job.part(self.next, waiter.take().unwrap_or_else(|| Box::new(|| ())))
                {
                    Progress::Ready(segment, chunk) => (segment, chunk),
                    Progress::Waiting => return Ok(Fetched::Waiting),
                    Progress::Done(manifest) => {
                        self.left = Some(manifest.file_size() - begin(manifest.parts(), self.next));
                        self.work = Work::Whole(manifest);
                        continue;
                    }
                    Progress::Failed(CompressError::Cache(_), parts) => {
                        self.go_alone(&parts, compressor.alone()?)?;
                        continue;
                    }
                    Progress::Failed(error, _) => return Err(error),
                },
            };
            self.next += 1;
            compressor.saved(chunk, segment.len());
            return Ok(Fetched::Segments(vec![segment]));
        }
    }

    /// Frames that are there, up to the first that is not; or that one, made again. Of what is not there, no more is
    /// made than the range touches, and not much before it is sent.
    fn fetch_whole(
        &mut self,
        compressor: &Compressor,
        manifest: &Manifest,
        waiter: Waiter,
    ) -> Result<Fetched, CompressError> {
        let mut segments = self.fetch_kept(compressor, manifest);
        if segments.is_empty() {
            let Some(segment) = self.remade(compressor, manifest, &mut Some(waiter))? else {
                return Ok(Fetched::Waiting);
            };
            segments.push(self.pass(compressor, manifest, segment));
        } else if self.left != Some(0) && !is_there(compressor, manifest, self.next) {
            // So that it is there when these have been sent. What prevents it is told when it is its turn.
            let _ = self.remake_ahead(compressor, manifest);
        }
        Ok(Fetched::Segments(segments))
    }

    /// Frames that are there, up to the first that is not. At most one of them has to be read first, to be checked.
    fn fetch_kept(&mut self, compressor: &Compressor, manifest: &Manifest) -> Vec<Segment> {
        let mut segments = Vec::new();
        while segments.len() < STREAM_FRAMES && self.left.is_some_and(|left| left > 0) && !self.is_pending() {
            let Some(segment) = kept(compressor, manifest, self.next, segments.is_empty()) else { break };
            // One volume a fetch: whoever sends this counts the files it holds.
            if segments.last().is_some_and(|last| !is_same_file(last, &segment)) {
                break;
            }
            segments.push(self.pass(compressor, manifest, segment));
        }
        segments
    }

    /// What is sent of the next frame; then the one after it is the next.
    fn pass(&mut self, compressor: &Compressor, manifest: &Manifest, segment: Segment) -> Segment {
        let left = self.left.unwrap_or_default();
        let (start, end) = (self.skip, segment.len().min(self.skip + left));
        self.left = Some(left - (end - start));
        // Of a frame that is sent in part, it is not known.
        if start == 0 && end == segment.len() {
            compressor.saved(manifest.chunk_len(self.next), end);
        }
        self.next += 1;
        self.skip = 0;
        while self.again.front().is_some_and(|pending| pending.index < self.next) {
            self.again.pop_front();
        }
        segment.slice(start, end)
    }

    /// Whether the next frame is made again.
    fn is_pending(&self) -> bool {
        self.again.front().is_some_and(|pending| pending.index == self.next)
    }

    /// The next frame, which was evicted, made again; `None` while it is made, and the waiter is kept.
    fn remade(
        &mut self,
        compressor: &Compressor,
        manifest: &Manifest,
        waiter: &mut Option<Waiter>,
    ) -> Result<Option<Segment>, CompressError> {
        loop {
            self.remake_ahead(compressor, manifest).map_err(|error| self.unmade(compressor, error))?;
            let Some(pending) = self.again.front() else { return Err(CompressError::Ended) };
            match pending.remaking.end(waiter) {
                None => return Ok(None),
                Some(Ok(segment)) => {
                    self.is_unkept = matches!(segment, Segment::Bytes(_));
                    return Ok(Some(segment));
                }
                // Another tree cannot give it, which says nothing of this one.
                Some(Err(CompressError::Nar(_))) if !pending.is_own => drop(self.again.pop_front()),
                Some(Err(error)) => return Err(self.unmade(compressor, error)),
            }
        }
    }

    /// Has the next frame made again, and of those after it up to the end of the range as many as there are threads.
    fn remake_ahead(&mut self, compressor: &Compressor, manifest: &Manifest) -> Result<(), CompressError> {
        if !self.is_pending() {
            let pending = self.remake(compressor, manifest, self.next)?;
            self.again.push_front(pending);
        }
        let end = begin(manifest.parts(), self.next) + self.skip + self.left.unwrap_or_default();
        let ahead = if self.is_unkept { 0 } else { compressor.threads().saturating_sub(1) };
        for index in self.next + 1..self.next + 1 + ahead {
            if index >= manifest.parts().len() {
                break;
            }
            let is_asked = self.again.back().is_some_and(|last| index <= last.index);
            if begin(manifest.parts(), index) < end && !is_asked && !is_there(compressor, manifest, index) {
                let pending = self.remake(compressor, manifest, index)?;
                self.again.push_back(pending);
            }
        }
        Ok(())
    }

    fn remake(
        &mut self,
        compressor: &Compressor,
        manifest: &Manifest,
        index: usize,
    ) -> Result<Pending, CompressError> {
        let part = manifest.parts()[index];
        let encoding = self.encoding.ok_or(CompressError::Retired)?;
        let mut nar = self.tree.planned(manifest.nar_size())?;
        nar.set_range(part.nar_end - manifest.chunk_len(index), part.nar_end);
        let len = part.file_end - begin(manifest.parts(), index);
        let (remaking, is_own) = compressor.remake(Missing { key: part.key, len, encoding, nar });
        Ok(Pending { index, remaking, is_own })
    }

    /// A frame cannot be made again. Where that is for what the tree is, the file is forgotten.
    fn unmade(&self, compressor: &Compressor, error: CompressError) -> CompressError {
        if let (CompressError::Nar(_), Some(nar_hash), Some(encoding)) =
            (&error, &self.nar_hash, self.encoding)
        {
            compressor.forget(encoding, nar_hash);
        }
        error
    }

    /// Goes on without the job, from where the client is.
    fn go_alone(&mut self, parts: &[Part], turn: Arc<()>) -> Result<(), CompressError> {
        let start = self.next.checked_sub(1).and_then(|last| parts.get(last)).map_or(0, |part| part.nar_end);
        let Tree::Planned(nar) = &self.tree else { return Err(CompressError::Ended) };
        let mut nar = nar.clone();
        nar.set_range(start, nar.plan().size());
        self.work = Work::Alone { input: Box::new(Input::new(nar)), _turn: turn };
        Ok(())
    }
}

impl From<Cursor> for Tree {
    fn from(nar: Cursor) -> Self {
        Self::Planned(nar)
    }
}

impl Tree {
    fn root(&self) -> &std::path::Path {
        match self {
            Self::Planned(cursor) => cursor.root(),
            Self::Root(root) => root,
        }
    }

    /// A cursor over the NAR, which must have this size.
    fn planned(&mut self, nar_size: u64) -> Result<Cursor, NarError> {
        if let Self::Root(root) = self {
            let plan = Arc::new(Plan::build(root, CASE_HACK)?);
            *self = Self::Planned(Cursor::new(plan, Arc::clone(root)));
        }
        match self {
            Self::Planned(cursor) if cursor.plan().size() == nar_size => Ok(cursor.clone()),
            _ => Err(NarError::Changed { file: self.root().to_path_buf() }),
        }
    }
}

fn is_same_file(one: &Segment, other: &Segment) -> bool {
    match (one, other) {
        (Segment::File { file: one, .. }, Segment::File { file: other, .. }) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

/// Where part `index` begins in the file.
fn begin(parts: &[Part], index: usize) -> u64 {
    index.checked_sub(1).and_then(|before| parts.get(before)).map_or(0, |part| part.file_end)
}

/// A frame of the file, if it is there, and need not be read first or `may_read`.
fn kept(compressor: &Compressor, manifest: &Manifest, index: usize, may_read: bool) -> Option<Segment> {
    let (part, cache) = (manifest.parts().get(index)?, compressor.cache()?);
    let frame = match cache.known(&part.key) {
        None if may_read => cache.get(&part.key),
        known => Ok(known),
    };
    let frame = match frame {
        Ok(frame) => frame?,
        Err(error) => {
            compressor.cache_failed(&error);
            return None;
        }
    };
    let expected = part.file_end - begin(manifest.parts(), index);
    frame.pin().filter(|segment| segment.len() == expected)
}

/// Whether a frame of the file is there, as far as the inventory says.
fn is_there(compressor: &Compressor, manifest: &Manifest, index: usize) -> bool {
    let part = manifest.parts().get(index);
    part.zip(compressor.cache()).is_some_and(|(part, cache)| cache.has(&part.key).unwrap_or(false))
}
