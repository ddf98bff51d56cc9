//! What a NAR is sent as.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

/// A piece of a NAR, ready to be sent. Never empty.
#[derive(Clone, Debug)]
pub enum Segment {
    /// Framing and the contents of small files.
    Bytes(Bytes),
    /// A range of a large file, for `sendfile`. The file was checked when it was opened; it may still be cut
    /// short while it is sent, and whoever sends it treats an early end as an error.
    File {
        /// Open for reading. Shared: only reads that name their offset may be made.
        file: Arc<File>,
        /// Where the range begins in the file, in bytes.
        offset: u64,
        /// How many bytes it has.
        len: u64,
    },
}

impl Segment {
    /// How many bytes of the NAR this is; never 0.
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// The first `len` bytes of an open file; none where that is no bytes.
    pub fn of_file(file: Arc<File>, len: u64) -> Option<Self> {
        (len > 0).then_some(Self::File { file, offset: 0, len })
    }

    /// What lies from `start` up to and without `end`, in bytes from the segment's own start; both within it.
    #[must_use]
    pub fn slice(self, start: u64, end: u64) -> Self {
        match self {
            // Within the bytes, so it fits.
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(start as usize..end as usize)),
            Self::File { file, offset, .. } => Self::File { file, offset: offset + start, len: end - start },
        }
    }
}
