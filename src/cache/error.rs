//! Why the cache cannot be used, or cannot keep something.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the cache cannot be used, or cannot keep something. Messages name files of this machine: they are for the
/// log, never for a client.
#[derive(Debug, Error)]
pub enum CacheError {
    /// Another process uses the folder.
    #[error("{}: another harmonia uses this cache; give each its own cache_dir", folder.display())]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// The bound on the size is too low for a cache of any use.
    #[error("a cache of {size} bytes is too small: cache_max_size must be at least {least}")]
    TooSmall {
        /// The bound asked for, in bytes.
        size: u64,
        /// The lowest that is possible, in bytes.
        least: u64,
    },
    /// A frame is empty, or longer than [`crate::limits::CACHE_FRAME_MAX`].
    #[error("a frame of {len} bytes cannot be kept")]
    FrameSize {
        /// Its length in bytes.
        len: usize,
    },
    /// A file or folder of the cache cannot be used.
    #[error("{}: cannot {doing}: {source}", file.display())]
    File {
        /// The file or folder.
        file: PathBuf,
        /// What was tried: "create", "write" …
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The inventory refused.
    #[error("{}: {source}; should it persist, stop the server and remove the folder", file.display())]
    Inventory {
        /// The database file.
        file: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A volume was written to by somebody else, or cut: it is forgotten, and what was in it will be made again.
    #[error("{}: something else has written to it or cut it: what was in it is made again", file.display())]
    Touched {
        /// The volume.
        file: PathBuf,
    },
    /// A frame is not what was written: it is forgotten, and will be made again.
    #[error("{}: damaged at byte {offset}; the disk should be looked at", file.display())]
    Damaged {
        /// The volume.
        file: PathBuf,
        /// Where the frame begins, in bytes.
        offset: u64,
    },
}

impl CacheError {
    /// Whether something of the cache is lost, and nothing in the way of making it again.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Touched { .. })
    }
}

/// Makes a [`CacheError::File`] of what the system said.
pub(super) fn failed(file: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> CacheError {
    move |source| CacheError::File { file: file.to_owned(), doing, source }
}
