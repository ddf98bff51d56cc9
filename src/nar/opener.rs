//! The files of one tree, opened and checked against its plan.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, Stat, openat, statat};
use rustix::io::{Errno, retry_on_intr};

use super::NarError;
use super::plan::{Contents, Plan};
use super::tree::{Folders, ROOT};
use crate::io::files::{self, Wait};

/// Opens the files of one tree: each in one call, below the root's folder, where the system can; else one folder
/// after the other. Either way no name below the root may be a symbolic link, so no change to the tree leads out of
/// it.
pub(super) struct Opener<'c> {
    plan: &'c Plan,
    root: &'c Path,
    /// The root's folder while it is open; the cursor keeps it.
    folder: &'c mut Option<Arc<OwnedFd>>,
    /// The other way.
    folders: Folders<'c>,
}

impl<'c> Opener<'c> {
    pub(super) fn new(plan: &'c Plan, root: &'c Path, folder: &'c mut Option<Arc<OwnedFd>>) -> Self {
        Self { plan, root, folder, folders: Folders::new(root) }
    }

    /// Opens a file and checks that it is what the plan says. `path` is memory that is used again.
    ///
    /// # Errors
    /// When it is not, or cannot be opened; also where that would take waiting and must not.
    pub(super) fn open(&mut self, of: &Contents, wait: Wait, path: &mut Vec<u8>) -> Result<File, NarError> {
        let file = self.open_unchecked(of, wait, path)?;
        self.check(of, &file)?;
        Ok(file)
    }

    /// Whether an open file is what the plan says.
    pub(super) fn check(&self, of: &Contents, file: &File) -> Result<(), NarError> {
        let found = rustix::fs::fstat(file).map_err(|errno| self.read_failed(of, errno))?;
        if is_as_planned(of, &found) {
            Ok(())
        } else {
            Err(NarError::Changed { file: self.plan.path(self.root, of) })
        }
    }

    /// The root's folder; none where it cannot be opened.
    pub(super) fn folder(&mut self) -> Option<BorrowedFd<'_>> {
        self.root_folder(Wait::Allowed).ok()?;
        self.folder.as_ref().map(|folder| folder.as_fd())
    }

    /// Puts the file's path below the root into `path`.
    pub(super) fn path(&self, of: &Contents, path: &mut Vec<u8>) {
        path.clear();
        self.plan.tree().path_below(of.node, path);
    }

    /// Whether a file that was read at `path` below the root is what the plan says. By its name: it was open only
    /// while it was read. That it has no bytes but those that were read, the reading has shown.
    pub(super) fn is_as_planned(&self, of: &Contents, path: &[u8]) -> bool {
        let Some(folder) = self.folder.as_ref() else { return false };
        statat(folder, path, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|found| is_as_planned(of, &found))
    }

    fn open_unchecked(&mut self, of: &Contents, wait: Wait, path: &mut Vec<u8>) -> Result<File, NarError> {
        if wait == Wait::Never && !self.plan.opens_at_once() {
            return Err(self.open_failed(of, Errno::AGAIN));
        }
        if of.node == ROOT {
            return files::open_file(self.root, wait).map_err(|errno| self.open_failed(of, errno));
        }
        let opened = self.root_folder(wait).and_then(|()| {
            let folder = self.folder.as_ref().ok_or(Errno::BADF)?;
            path.clear();
            self.plan.tree().path_below(of.node, path);
            files::open_below(folder.as_fd(), path, wait)
        });
        match opened {
            // Where it cannot be done in one call, or to see which name is at fault.
            Err(_) if wait == Wait::Allowed => self.open_by_steps(of),
            opened => opened.map_err(|errno| self.open_failed(of, errno)),
        }
    }

    fn root_folder(&mut self, wait: Wait) -> Result<(), Errno> {
        if self.folder.is_none() {
            *self.folder = Some(Arc::new(files::open_folder(self.root, wait)?));
        }
        Ok(())
    }

    fn open_by_steps(&mut self, of: &Contents) -> Result<File, NarError> {
        let tree = self.plan.tree();
        let folder = self.folders.open(tree, tree.parent(of.node));
        let folder = folder.map_err(|(node, errno)| open_failed(tree.path(self.root, node), errno))?;
        retry_on_intr(|| openat(folder, tree.name(of.node), files::READ, Mode::empty()))
            .map(File::from)
            .map_err(|errno| self.open_failed(of, errno))
    }

    fn open_failed(&self, of: &Contents, errno: Errno) -> NarError {
        open_failed(self.plan.path(self.root, of), errno)
    }

    /// A file that could not be read.
    pub(super) fn read_failed(&self, of: &Contents, errno: Errno) -> NarError {
        NarError::Unreadable { file: self.plan.path(self.root, of), doing: "read", errno }
    }

    /// A file that ended early.
    pub(super) fn ended_early(&self, of: &Contents) -> NarError {
        NarError::Changed { file: self.plan.path(self.root, of) }
    }
}

fn is_as_planned(of: &Contents, found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
        && found.st_size as u64 == of.size
        && Mode::from_raw_mode(found.st_mode).contains(Mode::XUSR) == of.executable
}

/// A planned file or folder that is gone, or a link now, has changed; else it cannot be opened.
fn open_failed(file: PathBuf, errno: Errno) -> NarError {
    match errno {
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO => NarError::Changed { file },
        errno => NarError::Unreadable { file, doing: "open", errno },
    }
}
