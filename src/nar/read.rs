//! A NAR as a stream, for those who want one: restoring, hashing. Answers are never sent this way.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use sha2::Digest;

use super::{Cursor, Fetcher, NarError, Plan, Segment};
use crate::formats::hash::Sha256;
use crate::io::files;

/// How much is read at a time to be hashed, in bytes: beyond this, larger reads gain nothing.
const READ: usize = 128 * 1024;

/// The SHA-256 of the NAR of the tree at `root`, and its size in bytes. Reads every file.
///
/// `case_hack`: see [`Plan::build`].
///
/// # Errors
/// Where the tree cannot be read, cannot be in a NAR, or changes meanwhile.
pub fn nar_hash(root: &Path, case_hack: bool) -> Result<(Sha256, u64), NarError> {
    let plan = Arc::new(Plan::build(root, case_hack)?);
    let size = plan.size();
    Ok((plan_hash(plan, root, |_| ())?, size))
}

/// The SHA-256 of the NAR of the tree at `root`, of which `plan` was made. Reads every file; `seen` is told how many
/// bytes at a time.
///
/// # Errors
/// Where the tree cannot be read, or is not as planned.
pub fn plan_hash(plan: Arc<Plan>, root: &Path, mut seen: impl FnMut(usize)) -> Result<Sha256, NarError> {
    let mut hasher = sha2::Sha256::new();
    read_all(plan, root, |bytes| {
        hasher.update(bytes);
        seen(bytes.len());
        true
    })?;
    Ok(Sha256(hasher.finalize().into()))
}

/// The same, as long as `goes_on`; `None` where that has ended it.
///
/// # Errors
/// As [`plan_hash`].
pub(super) fn plan_hash_while(
    plan: Arc<Plan>,
    root: &Path,
    goes_on: impl Fn() -> bool,
) -> Result<Option<Sha256>, NarError> {
    let mut hasher = sha2::Sha256::new();
    let whole = read_all(plan, root, |bytes| {
        hasher.update(bytes);
        goes_on()
    })?;
    Ok(whole.then(|| Sha256(hasher.finalize().into())))
}

/// Reads a NAR for as long as `each` wants another piece; whether that was all of it.
fn read_all(plan: Arc<Plan>, root: &Path, mut each: impl FnMut(&[u8]) -> bool) -> Result<bool, NarError> {
    let mut reader = Reader::new(Cursor::new(plan, Arc::from(root)));
    let mut buffer = vec![0; READ];
    loop {
        match reader.fill(&mut buffer)? {
            0 => return Ok(true),
            read if each(&buffer[..read]) => {}
            _ => return Ok(false),
        }
    }
}

/// What remains of a cursor, to be read. Errors carry the [`NarError`](super::NarError).
#[derive(Debug)]
pub struct Reader {
    cursor: Cursor,
    fetcher: Fetcher,
    /// Fetched and not yet read, from byte `position` of the NAR.
    segments: VecDeque<Segment>,
    position: u64,
}

impl Reader {
    /// A reader of what remains of `cursor`.
    pub fn new(cursor: Cursor) -> Self {
        let (position, fetcher) = (cursor.position(), Fetcher::batching());
        Self { cursor, fetcher, segments: VecDeque::new(), position }
    }

    /// Reads what comes next into `buffer`: how many bytes, 0 at the end.
    ///
    /// # Errors
    /// When a file is not as planned or cannot be read.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, NarError> {
        self.fill_part(buffer).map(|(read, _)| read)
    }

    /// As [`fill`](Self::fill), and whether what was read came open, as large files do and what comes from a pack.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn fill_part(&mut self, buffer: &mut [u8]) -> Result<(usize, bool), NarError> {
        if buffer.is_empty() {
            return Ok((0, false));
        }
        if self.segments.is_empty() {
            self.segments = self.cursor.fetch_with(&mut self.fetcher)?.into();
        }
        let is_open = matches!(self.segments.front(), Some(Segment::File { .. }));
        let read = match self.segments.front() {
            None => return Ok((0, false)),
            Some(Segment::Bytes(bytes)) => {
                let len = bytes.len().min(buffer.len());
                buffer[..len].copy_from_slice(&bytes[..len]);
                len
            }
            Some(Segment::File { file, offset, len }) => {
                // No longer than the buffer, so it fits.
                let wanted = (buffer.len() as u64).min(*len) as usize;
                let at = || self.cursor.file_at(self.position).unwrap_or_default();
                match files::read_full(file, &mut buffer[..wanted], *offset) {
                    Ok(read) if read == wanted => wanted,
                    // An end that comes early is a changed file.
                    Ok(_) => return Err(NarError::Changed { file: at() }),
                    Err(errno) => return Err(NarError::Unreadable { file: at(), doing: "read", errno }),
                }
            }
        };
        self.advance(read);
        Ok((read, is_open))
    }

    /// Takes `len` bytes off the first segment.
    fn advance(&mut self, len: usize) {
        self.position += len as u64;
        let finished = match self.segments.front_mut() {
            Some(Segment::Bytes(bytes)) => {
                bytes::Buf::advance(bytes, len);
                bytes.is_empty()
            }
            Some(Segment::File { offset, len: left, .. }) => {
                *offset += len as u64;
                *left -= len as u64;
                *left == 0
            }
            None => false,
        };
        if finished {
            self.segments.pop_front();
        }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer).map_err(io::Error::other)
    }
}

/// Hashes and counts what is read through it.
pub struct Hashing<R> {
    inner: R,
    hasher: sha2::Sha256,
    size: u64,
}

impl<R> Hashing<R> {
    /// Hashes what is read of `inner` from here on.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: sha2::Sha256::new(), size: 0 }
    }

    /// The hash and the number of the bytes read.
    pub fn finish(self) -> (Sha256, u64) {
        (Sha256(self.hasher.finalize().into()), self.size)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.size += read as u64;
        Ok(read)
    }
}
