//! A place in one NAR, and the bytes that come next.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;

use super::opener::Opener;
use super::pack::Held;
use super::plan::{Contents, Piece, Plan};
use super::{NarError, Segment};
use crate::io::files::{self, Wait};
use crate::io::ring::Ring;
use crate::limits::{FETCH_BYTES, FETCH_FILES, READ_AHEAD, SENDFILE_MIN};

/// A place in one NAR and where to stop. It opens nothing until it is asked to [`fetch`](Self::fetch), so
/// an answer that waits costs no descriptor and no buffer; from then on it keeps the root's folder open.
#[derive(Clone, Debug)]
pub struct Cursor {
    plan: Arc<Plan>,
    root: Arc<Path>,
    pack: Option<Held>,
    position: u64,
    end: u64,
    /// The root's folder, once files were opened below it.
    folder: Option<Arc<OwnedFd>>,
}

impl Cursor {
    /// The whole NAR of the tree at `root`, of which `plan` was made; from its pack, if that is there.
    pub fn new(plan: Arc<Plan>, root: Arc<Path>) -> Self {
        let (pack, end) = (plan.hold_pack(), plan.size());
        Self { plan, root, pack, position: 0, end, folder: None }
    }

    /// The same read from the tree itself: what is found so is of the tree.
    #[must_use]
    pub fn without_pack(self) -> Self {
        Self { pack: None, ..self }
    }

    /// Whether its small files come from a pack.
    pub fn is_packed(&self) -> bool {
        self.pack.is_some()
    }

    /// Where the tree is.
    pub fn root(&self) -> &Arc<Path> {
        &self.root
    }

    /// The plan it goes by.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Where it is: bytes from the start of the NAR.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes there are from here to where it stops.
    pub fn remaining(&self) -> u64 {
        self.end - self.position
    }

    /// Goes to byte `position`, or to where it stops if that comes first. Nothing is open after that.
    pub fn seek(&mut self, position: u64) {
        self.folder = None;
        self.position = position.min(self.end);
    }

    /// Confines it to the bytes from `start` up to and without `end`, and goes to `start`.
    pub fn set_range(&mut self, start: u64, end: u64) {
        self.end = end.min(self.plan.size());
        self.position = start.min(self.end);
    }

    /// The file whose contents hold byte `position`, for messages.
    pub fn file_at(&self, position: u64) -> Option<PathBuf> {
        self.plan.file_at(&self.root, position)
    }

    /// The bytes that come next, at least one unless nothing remains: framing and small files together, and
    /// large files open. Every file is checked against the plan when it is opened. Waits for the disk.
    ///
    /// # Errors
    /// When a file is not as planned or cannot be read; the cursor stays where it was.
    pub fn fetch(&mut self) -> Result<Vec<Segment>, NarError> {
        self.fetch_with(&mut Fetcher::default())
    }

    /// [`fetch`](Self::fetch), with memory that is used again.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn fetch_with(&mut self, fetcher: &mut Fetcher) -> Result<Vec<Segment>, NarError> {
        let fetched = self.run(fetcher, Wait::Allowed, usize::MAX);
        // Whoever asks from now on would be broken off as well; by a plan of the tree as it is, one of another size is
        // known as damaged, and refused before the head.
        if matches!(fetched, Err(NarError::Changed { .. })) {
            self.plan.give_up();
        }
        fetched
    }

    /// What of the bytes that come next is in memory, as [`fetch`](Self::fetch) gives it, with no more than `files`
    /// small files in it. Waits for no disk. Empty where the next file's contents or name must be waited for, where
    /// the system cannot say, and where anything is wrong: [`fetch`](Self::fetch) then does it, or says what it is.
    pub fn fetch_resident(&mut self, fetcher: &mut Fetcher, files: usize) -> Vec<Segment> {
        // What needs no file needs none of these either, but comes with one sooner or later.
        if files == 0 || !(self.plan.opens_at_once() || self.is_packed()) {
            return Vec::new();
        }
        self.run(fetcher, Wait::Never, files).unwrap_or_default()
    }

    fn run(
        &mut self,
        fetcher: &mut Fetcher,
        wait: Wait,
        small_files: usize,
    ) -> Result<Vec<Segment>, NarError> {
        let Self { plan, root, pack, position, end, folder } = self;
        let remaining = *end - *position;
        fetcher.begin(remaining);
        let mut fetch = Fetch {
            opener: Opener::new(plan, root, folder),
            fetcher,
            wait,
            small_files,
            remaining,
            segments: Vec::new(),
            given: 0,
            free: 0,
            files: 0,
        };
        match pack {
            Some(pack) => fetch.take_all(plan.packed_pieces(pack, *position))?,
            None => fetch.take_all(plan.pieces(*position))?,
        }
        let (segments, given) = fetch.finish()?;
        *position += given;
        Ok(segments)
    }
}

/// What fetches use again: memory, and a ring for those that wait for a disk.
#[derive(Debug, Default)]
pub struct Fetcher {
    /// Whether files are asked for in batches; the ring for that is made with the first.
    batches: bool,
    ring: Option<Ring>,
    /// Framing and small files since the last large one.
    bytes: BytesMut,
    /// The small files whose contents have a place in `bytes` and are not read yet.
    wanted: Vec<Wanted>,
    /// A path below the root.
    path: Vec<u8>,
    /// Files that the last fetch opened.
    opened: usize,
}

/// A small file, or the part of one, to be read.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    of: Contents,
    /// From which byte of the file.
    offset: u64,
    /// Where in the bytes of the fetch, from and up to.
    start: usize,
    end: usize,
}

impl Fetcher {
    /// For fetches that wait for a disk: they ask it for many small files at once, where the system can.
    pub fn batching() -> Self {
        Self { batches: true, ..Self::default() }
    }

    /// How many files the last fetch opened.
    pub fn files(&self) -> usize {
        self.opened
    }

    fn begin(&mut self, remaining: u64) {
        self.bytes.clear();
        self.wanted.clear();
        self.opened = 0;
        // At most FETCH_BYTES: it fits. Where all that was taken from this memory has been sent, it is used again.
        self.bytes.reserve(remaining.min(FETCH_BYTES) as usize);
    }
}

/// One fetch as it goes.
struct Fetch<'c> {
    opener: Opener<'c>,
    fetcher: &'c mut Fetcher,
    wait: Wait,
    /// How many small files may be read.
    small_files: usize,
    remaining: u64,
    segments: Vec<Segment>,
    given: u64,
    /// How much of it costs no memory here: the pack's.
    free: u64,
    /// Large files in it.
    files: usize,
}

impl Fetch<'_> {
    /// Takes pieces for as long as there is room.
    fn take_all<'p>(&mut self, mut pieces: impl Iterator<Item = Piece<'p>>) -> Result<(), NarError> {
        while let Some(piece) = pieces.next()
            && self.take(piece)?
        {}
        Ok(())
    }

    /// Takes what there is room for of the next piece; whether it took all and has room for more.
    fn take(&mut self, piece: Piece<'_>) -> Result<bool, NarError> {
        let wanted = self.remaining - self.given;
        let room = FETCH_BYTES.saturating_sub(self.given - self.free).min(wanted);
        if room == 0 {
            return Ok(false);
        }
        match piece {
            // It is open already, so there is always room.
            Piece::Packed { pack, offset, len } => {
                let len = len.min(wanted);
                if !self.flush()? {
                    return Ok(false);
                }
                self.segments.extend(pack.slice(offset, offset + len));
                self.given += len;
                self.free += len;
                Ok(true)
            }
            Piece::Framing(framing) => {
                // No more than the framing's own length, so it fits.
                let taken = room.min(framing.len() as u64) as usize;
                self.fetcher.bytes.extend_from_slice(&framing[..taken]);
                self.given += taken as u64;
                Ok(taken == framing.len())
            }
            Piece::Contents { of, offset, len } => {
                let len = len.min(wanted);
                if len < SENDFILE_MIN {
                    Ok(self.want(of, offset, len, room))
                } else {
                    self.hand_over(of, offset, len)
                }
            }
        }
    }

    /// Makes a place for a small file, or the small part of one that is wanted; whether there was room.
    fn want(&mut self, of: &Contents, offset: u64, len: u64, room: u64) -> bool {
        if len > room || self.fetcher.wanted.len() >= self.small_files {
            return false;
        }
        let bytes = &mut self.fetcher.bytes;
        let start = bytes.len();
        // Below SENDFILE_MIN, so it fits.
        let end = start + len as usize;
        bytes.resize(end, 0);
        self.fetcher.wanted.push(Wanted { of: *of, offset, start, end });
        self.given += len;
        true
    }

    /// Gives a large file open.
    fn hand_over(&mut self, of: &Contents, offset: u64, len: u64) -> Result<bool, NarError> {
        if self.files == FETCH_FILES || !self.flush()? {
            return Ok(false);
        }
        self.fetcher.opened += 1;
        let file = match self.opener.open(of, self.wait, &mut self.fetcher.path) {
            Ok(file) => file,
            Err(_) if self.wait == Wait::Never => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.wait == Wait::Allowed {
            files::read_ahead(&file, offset, len.min(READ_AHEAD));
        }
        self.segments.push(Segment::File { file: Arc::new(file), offset, len });
        self.given += len;
        self.files += 1;
        Ok(true)
    }

    /// Reads the small files that are wanted, and makes one segment of them and the framing; whether all were read.
    fn flush(&mut self) -> Result<bool, NarError> {
        let read = self.read_wanted()?;
        let all = read == self.fetcher.wanted.len();
        if let Some(first_missing) = self.fetcher.wanted.get(read) {
            // It ends before the first that is not in memory.
            let bytes = &mut self.fetcher.bytes;
            self.given -= (bytes.len() - first_missing.start) as u64;
            bytes.truncate(first_missing.start);
        }
        self.fetcher.wanted.clear();
        if !self.fetcher.bytes.is_empty() {
            self.segments.push(Segment::Bytes(self.fetcher.bytes.split().freeze()));
        }
        Ok(all)
    }

    /// Reads the small files that are wanted into their places: how many of them. All, where it may wait.
    fn read_wanted(&mut self) -> Result<usize, NarError> {
        self.fetcher.opened += self.fetcher.wanted.len();
        let mut read = 0;
        while read < self.fetcher.wanted.len() {
            let in_batch = self.read_batch(read);
            for number in read..read + in_batch.max(1) {
                // What the batch lacks is read by itself, which tells what is wrong with it.
                let taken = in_batch > 0 && self.take_from_batch(number, number - read);
                if !taken && !self.read_one(number)? {
                    return Ok(number);
                }
            }
            read += in_batch.max(1);
        }
        Ok(read)
    }

    /// Reads the next files that are wanted together, from number `first` on: how many of them.
    fn read_batch(&mut self, first: usize) -> usize {
        if !self.fetcher.batches || self.wait == Wait::Never || self.fetcher.wanted.len() - first < 2 {
            return 0;
        }
        if self.fetcher.ring.is_none() {
            self.fetcher.ring = Ring::new();
            self.fetcher.batches = self.fetcher.ring.is_some();
        }
        let Fetcher { ring: Some(ring), wanted, path, .. } = &mut *self.fetcher else { return 0 };
        ring.begin();
        let mut added = 0;
        for Wanted { of, offset, start, end } in &wanted[first..] {
            self.opener.path(of, path);
            let whole = *offset == 0 && (end - start) as u64 == of.size;
            if !whole || !ring.add(path, end - start) {
                break;
            }
            added += 1;
        }
        let Some(folder) = self.opener.folder() else { return 0 };
        if let Err(error) = ring.read(folder) {
            tracing::warn!(%error, "reading files in batches failed; from here on they are read one by one");
            self.fetcher.ring = None;
            self.fetcher.batches = false;
            return 0;
        }
        added
    }

    /// Puts a file that the batch has as number `in_batch` into its place, if it is there and as planned.
    fn take_from_batch(&mut self, number: usize, in_batch: usize) -> bool {
        let Fetcher { ring, wanted, bytes, path, .. } = &mut *self.fetcher;
        let Wanted { of, start, end, .. } = &wanted[number];
        let Some(contents) = ring.as_ref().and_then(|ring| ring.contents(in_batch)) else { return false };
        self.opener.path(of, path);
        if !self.opener.is_as_planned(of, path) {
            return false;
        }
        bytes[*start..*end].copy_from_slice(contents);
        true
    }

    /// Reads one file into its place; whether it could. It can, or it is an error, where it may wait.
    fn read_one(&mut self, number: usize) -> Result<bool, NarError> {
        let Fetcher { bytes, wanted, path, .. } = &mut *self.fetcher;
        let Wanted { of, offset, start, end } = &wanted[number];
        let file = match self.opener.open(of, self.wait, path) {
            Err(_) if self.wait == Wait::Never => return Ok(false),
            opened => opened?,
        };
        let place = &mut bytes[*start..*end];
        let read = match self.wait {
            Wait::Allowed => files::read_full(&file, place, *offset),
            Wait::Never => files::read_resident(&file, place, *offset),
        };
        match read {
            Ok(read) if read == place.len() => Ok(true),
            _ if self.wait == Wait::Never => Ok(false),
            Ok(_) => Err(self.opener.ended_early(of)),
            Err(errno) => Err(self.opener.read_failed(of, errno)),
        }
    }

    fn finish(mut self) -> Result<(Vec<Segment>, u64), NarError> {
        self.flush()?;
        Ok((self.segments, self.given))
    }
}
