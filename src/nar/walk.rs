//! The walk of a tree: every name in it, in the order of its NAR, and the framing that they come to.
//!
//! A folder is listed when the walk comes to it; where there are many, some are listed before, by threads that go
//! [ahead].

mod ahead;
mod list;

use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{CWD, Dir, FileType};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use self::ahead::{Ahead, Listed, Number, Threads};
pub(super) use self::list::nar_name;
use self::list::{Fault, Listing, What};
use super::NarError;
use super::plan::Contents;
use super::tree::{Folders, Full, NodeId, ROOT, Tree};
use crate::formats::nar;

/// A tree that has been walked.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) tree: Tree,
    /// The NAR without the contents of its files.
    pub(super) framing: Vec<u8>,
    /// The files, in order.
    pub(super) contents: Vec<Contents>,
    /// The sizes of all files together.
    pub(super) bytes: u64,
}

/// Walks the tree at `root`: a file, a link or a folder. `case_hack`: see [`Plan::build`](super::Plan::build).
///
/// # Errors
/// Where something cannot be read or cannot be in a NAR; the error names the file.
pub(super) fn walk(root: &Path, case_hack: bool) -> Result<Walked, NarError> {
    let mut walk = Walk { root, case_hack, walked: Walked::default() };
    walk.run()?;
    Ok(walk.walked)
}

struct Walk<'r> {
    root: &'r Path,
    case_hack: bool,
    walked: Walked,
}

/// A folder that is gone through. Those in progress are on a stack of the walk's own, so depth costs no call stack.
struct Open {
    node: NodeId,
    listing: Listing,
    /// How many of its entries have been added.
    added: usize,
    /// The number of the next folder in it.
    next_folder: Number,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), NarError> {
        nar::begin(&mut self.walked.framing);
        let root = self.root.as_os_str().as_encoded_bytes();
        let found = list::look(CWD, root, FileType::Unknown);
        let (what, target) = found.map_err(|fault| fault.of_root(self.root))?;
        match self.add(ROOT, b"", what, &target)? {
            Some(folder) => self.go_through(folder),
            None => Ok(()),
        }
    }

    /// Adds all that is in the root, which is a folder.
    fn go_through(&mut self, root: NodeId) -> Result<(), NarError> {
        let ahead = Ahead::new(self.root, self.case_hack);
        thread::scope(|scope| {
            let mut threads = Threads::new(&ahead, scope);
            let mut folders = Folders::new(self.root);
            let mut open = vec![self.open(&ahead, ahead::ROOT, &mut folders, root)?];
            while let Some(folder) = open.last_mut() {
                if let Some((number, node)) = self.go_on(folder)? {
                    threads.start_if_large(number);
                    open.push(self.open(&ahead, number, &mut folders, node)?);
                } else {
                    nar::close_directory(&mut self.walked.framing);
                    open.pop();
                    if !open.is_empty() {
                        nar::close_entry(&mut self.walked.framing);
                    }
                }
            }
            Ok(())
        })
    }

    /// Adds what comes next in a folder, up to the next folder in it and with that, or to the end.
    fn go_on(&mut self, folder: &mut Open) -> Result<Option<(Number, NodeId)>, NarError> {
        while let Some((name, what, target)) = folder.listing.get(folder.added) {
            folder.added += 1;
            nar::open_entry(&mut self.walked.framing, nar_name(name, self.case_hack));
            if let Some(node) = self.add(folder.node, name, what, target)? {
                let number = folder.next_folder;
                folder.next_folder += 1;
                return Ok(Some((number, node)));
            }
            nar::close_entry(&mut self.walked.framing);
        }
        Ok(None)
    }

    /// What folder `node` holds, which has the number `number` for those who go ahead.
    fn open(
        &self,
        ahead: &Ahead<'_>,
        number: Number,
        folders: &mut Folders<'_>,
        node: NodeId,
    ) -> Result<Open, NarError> {
        let Listed { listing, first_folder } = ahead.listing(number, || {
            let at = folders.open(&self.walked.tree, node);
            let at = at.map_err(|(failed, errno)| self.unreadable(failed, "open", errno))?;
            // A second descriptor, which is read to its end here. To open "." anew would take a permission more than the
            // threads ahead need, and two calls.
            let folder = fcntl_dupfd_cloexec(at, 0).and_then(Dir::new).map_err(Fault::List);
            let listing = folder.and_then(|folder| Listing::read(folder, self.case_hack));
            listing.map_err(|fault| fault.in_folder(self.place(node)))
        })?;
        Ok(Open { node, listing, added: 0, next_folder: first_folder })
    }

    fn place(&self, node: NodeId) -> PathBuf {
        self.walked.tree.path(self.root, node)
    }

    fn unreadable(&self, node: NodeId, doing: &'static str, errno: Errno) -> NarError {
        NarError::Unreadable { file: self.place(node), doing, errno }
    }

    /// See [`Walked::add`].
    fn add(
        &mut self,
        parent: NodeId,
        name: &[u8],
        what: What,
        target: &[u8],
    ) -> Result<Option<NodeId>, NarError> {
        let added = self.walked.add(parent, name, what, target);
        added.map_err(|Full| NarError::TooLarge { root: self.root.to_path_buf() })
    }
}

impl Walked {
    /// Adds a node. A folder's number comes back: what is in it, and its end, are still to come.
    fn add(
        &mut self,
        parent: NodeId,
        name: &[u8],
        what: What,
        target: &[u8],
    ) -> Result<Option<NodeId>, Full> {
        match what {
            What::Folder => {
                let node = self.tree.add_folder(parent, name)?;
                nar::open_directory(&mut self.framing);
                return Ok(Some(node));
            }
            What::Symlink => {
                self.tree.add_symlink(parent, name, target)?;
                nar::symlink(&mut self.framing, target);
            }
            What::File { size, executable } => {
                // At most PLAN_NODES files: the number fits.
                let node = self.tree.add_file(parent, name, self.contents.len() as u32)?;
                nar::open_file(&mut self.framing, executable, size);
                let framing = self.framing.len() as u64;
                self.contents.push(Contents {
                    node,
                    executable,
                    offset: framing + self.bytes,
                    size,
                    framing,
                });
                self.bytes += size;
                nar::close_file(&mut self.framing, size);
            }
        }
        Ok(None)
    }
}
