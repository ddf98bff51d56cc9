//! Why a tree cannot be given as a NAR.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePath;

/// Why a tree cannot be given as a NAR. Messages name files of this machine: they are for the log, never for
/// a client. Cheap to clone, since all who wait for one plan are told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarError {
    /// The store path's root is not there (any more).
    #[error("{}: no such path on disk", root.display())]
    Missing {
        /// Where it should be.
        root: PathBuf,
    },
    /// A call of the operating system failed.
    #[error("{}: cannot {doing}: {errno}", file.display())]
    Unreadable {
        /// The file or folder.
        file: PathBuf,
        /// What was tried: "open", "list", "read" …
        doing: &'static str,
        /// What the system said.
        errno: Errno,
    },
    /// Neither regular file, folder nor symbolic link: a NAR cannot hold it.
    #[error("{}: a {kind} cannot be part of a store path", file.display())]
    Odd {
        /// The file.
        file: PathBuf,
        /// "fifo", "socket" …
        kind: &'static str,
    },
    /// A file is not what it was when the plan was made: size, kind or executable bit. Store paths never
    /// change: the path was collected meanwhile, or the store is damaged.
    #[error("{}: not as it was when its tree was walked", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// The tree's NAR has not the size that the database has: the store is damaged.
    #[error(
        "{path}: its NAR would have {planned} bytes, the Nix database says {registered}; run `nix-store --verify --check-contents`"
    )]
    SizeMismatch {
        /// The store path.
        path: StorePath,
        /// What the tree comes to, in bytes.
        planned: u64,
        /// narSize of the database.
        registered: u64,
    },
    /// The tree's NAR has not the hash that the database has: the store is damaged.
    #[error(
        "{path}: its NAR hashes to {found}, the Nix database says {registered}; run `nix-store --verify --check-contents`"
    )]
    HashMismatch {
        /// The store path.
        path: StorePath,
        /// What the tree hashes to.
        found: Sha256,
        /// The hash of the database.
        registered: Sha256,
    },
    /// Two names of one folder become one when the macOS case-hack suffix is taken away.
    #[error("{}: two of its names become {name:?} without the case-hack suffix", folder.display())]
    Collision {
        /// The folder.
        folder: PathBuf,
        /// The name, made printable.
        name: String,
    },
    /// More files than a plan may have ([`crate::limits::PLAN_NODES`]).
    #[error("{}: more than {} files, folders and links", root.display(), crate::limits::PLAN_NODES)]
    TooLarge {
        /// The root of the tree.
        root: PathBuf,
    },
    /// Enough wait for this tree, or to have a NAR measured ([`crate::limits::WAITING_MAX`]); it can be asked for again.
    #[error("{}: too many requests wait for it", root.display())]
    Busy {
        /// The root of the tree.
        root: PathBuf,
    },
}

impl NarError {
    /// Whether it is a [`Damage`](super::Damage): it is reported where it is found, marked, and told of once.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::HashMismatch { .. } | Self::SizeMismatch { .. })
    }

    /// The root of a tree could not be looked at.
    pub(super) fn root(root: &Path, error: &std::io::Error) -> Self {
        let root = root.to_path_buf();
        match Errno::from_io_error(error) {
            Some(Errno::NOENT) => Self::Missing { root },
            errno => Self::Unreadable { file: root, doing: "look at", errno: errno.unwrap_or(Errno::IO) },
        }
    }
}
