//! The names of a tree in compact form, and its folders opened one step at a time.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, retry_on_intr};

use crate::limits::{FOLDERS_HELD, PLAN_NODES};

/// The number of a file, folder or link in its [`Tree`]; the root is [`ROOT`].
pub(super) type NodeId = u32;

/// The root of every tree.
pub(super) const ROOT: NodeId = 0;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A folder; what it holds follows it.
    Folder,
    /// A symbolic link; its target lies in the names from here to the next node's name.
    Symlink { target: u32 },
    /// A regular file; its contents are those of this number in the plan.
    File { contents: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Node {
    parent: NodeId,
    name: u32,
    kind: Kind,
}

/// Every name of a tree, in the order of its NAR (each folder before what it holds). 16 bytes a node, and
/// the names, as they are on disk.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    names: Vec<u8>,
}

/// The tree has no room for another node.
#[derive(Debug)]
pub(super) struct Full;

impl Tree {
    /// Adds a folder.
    pub(super) fn add_folder(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, Full> {
        let start = self.add_name(name)?;
        self.add(parent, start, Kind::Folder)
    }

    /// Adds a symbolic link.
    pub(super) fn add_symlink(&mut self, parent: NodeId, name: &[u8], to: &[u8]) -> Result<NodeId, Full> {
        let start = self.add_name(name)?;
        let target = self.add_name(to)?;
        self.add(parent, start, Kind::Symlink { target })
    }

    /// Adds a regular file whose contents are the plan's number `contents`.
    pub(super) fn add_file(&mut self, parent: NodeId, name: &[u8], contents: u32) -> Result<NodeId, Full> {
        let start = self.add_name(name)?;
        self.add(parent, start, Kind::File { contents })
    }

    fn add(&mut self, parent: NodeId, name: u32, kind: Kind) -> Result<NodeId, Full> {
        if self.nodes.len() >= PLAN_NODES as usize {
            return Err(Full);
        }
        self.nodes.push(Node { parent, name, kind });
        Ok(self.nodes.len() as NodeId - 1)
    }

    fn add_name(&mut self, name: &[u8]) -> Result<u32, Full> {
        let start = u32::try_from(self.names.len()).map_err(|_| Full)?;
        self.names.extend_from_slice(name);
        Ok(start)
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> u32 {
        self.nodes.len() as u32
    }

    pub(super) fn kind(&self, node: NodeId) -> Kind {
        self.nodes[node as usize].kind
    }

    pub(super) fn parent(&self, node: NodeId) -> NodeId {
        self.nodes[node as usize].parent
    }

    /// The name on disk, one component; empty for the root.
    pub(super) fn name(&self, node: NodeId) -> &[u8] {
        let Node { name, kind, .. } = self.nodes[node as usize];
        let end = match kind {
            Kind::Symlink { target } => target as usize,
            Kind::Folder | Kind::File { .. } => self.end(node),
        };
        &self.names[name as usize..end]
    }

    /// What a symbolic link whose [`Kind`] names `target` points to.
    pub(super) fn target(&self, node: NodeId, target: u32) -> &[u8] {
        &self.names[target as usize..self.end(node)]
    }

    fn end(&self, node: NodeId) -> usize {
        self.nodes.get(node as usize + 1).map_or(self.names.len(), |next| next.name as usize)
    }

    /// Where the node is on disk, for messages: it may be longer than the system lets a path be.
    pub(super) fn path(&self, root: &Path, node: NodeId) -> PathBuf {
        let mut up = Vec::new();
        let mut at = node;
        while at != ROOT {
            up.push(at);
            at = self.parent(at);
        }
        let mut path = root.to_path_buf();
        path.extend(up.iter().rev().map(|&node| OsStr::from_bytes(self.name(node))));
        path
    }

    /// Appends the node's path below the root; nothing for the root itself.
    pub(super) fn path_below(&self, node: NodeId, path: &mut Vec<u8>) {
        let start = path.len();
        let mut at = node;
        while at != ROOT {
            // From its end to its beginning, each name turned round, and the whole turned round at last: no second
            // list, and no call a folder.
            if at != node {
                path.push(b'/');
            }
            path.extend(self.name(at).iter().rev());
            at = self.parent(at);
        }
        path[start..].reverse();
    }

    /// Gives back the memory kept for growing.
    pub(super) fn shrink(&mut self) {
        self.nodes.shrink_to_fit();
        self.names.shrink_to_fit();
    }

    /// Bytes of memory held.
    pub(super) fn memory(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.names.capacity()
    }
}

/// The folders of one tree that are open now: a chain, each in the one before it, of at most
/// [`FOLDERS_HELD`]. Neighbours in a NAR are mostly in one folder or one step apart, so most files cost one
/// `openat` of one name.
///
/// Every component below the root is opened by itself and never through a symbolic link, so no change to
/// the tree leads out of it, and no path is too long or too deep. The root's own last component is not
/// followed either; the folders above it are the operator's, and may be links.
pub(super) struct Folders<'r> {
    root: &'r Path,
    held: VecDeque<(NodeId, OwnedFd)>,
}

impl<'r> Folders<'r> {
    pub(super) fn new(root: &'r Path) -> Self {
        Self { root, held: VecDeque::new() }
    }

    /// The folder `node` of `tree`, open.
    ///
    /// # Errors
    /// Which folder could not be opened, and why.
    pub(super) fn open(&mut self, tree: &Tree, node: NodeId) -> Result<BorrowedFd<'_>, (NodeId, Errno)> {
        let mut missing = Vec::new();
        let mut at = node;
        let held = loop {
            if let Some(place) = self.held.iter().rposition(|&(held, _)| held == at) {
                break place + 1;
            }
            missing.push(at);
            if at == ROOT {
                break 0;
            }
            at = tree.parent(at);
        };
        self.held.truncate(held);
        for &folder in missing.iter().rev() {
            let opened = match self.held.back() {
                Some((_, above)) => open_folder(above.as_fd(), tree.name(folder)),
                None => open_folder(CWD, self.root.as_os_str().as_bytes()),
            };
            self.held.push_back((folder, opened.map_err(|errno| (folder, errno))?));
            if self.held.len() > FOLDERS_HELD {
                self.held.pop_front();
            }
        }
        // The loop above left `node` as the last one held.
        let (_, folder) = self.held.back().ok_or((node, Errno::BADF))?;
        Ok(folder.as_fd())
    }
}

fn open_folder(above: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| openat(above, name, flags, Mode::empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_folders_are_open_however_deep_and_each_is_the_one_asked_for() {
        const DEPTH: u32 = 5 * FOLDERS_HELD as u32;
        let temporary = tempfile::tempdir().expect("a folder");
        let mut tree = Tree::default();
        let mut at = tree.add_folder(ROOT, b"").expect("there is room");
        for _ in 0..DEPTH {
            at = tree.add_folder(at, b"d").expect("there is room");
        }
        std::fs::create_dir_all(tree.path(temporary.path(), at)).expect("mkdir");
        let mut folders = Folders::new(temporary.path());
        for node in (0..=DEPTH).chain((0..=DEPTH).rev()).chain([0, DEPTH, 3, DEPTH - 1, DEPTH / 2]) {
            let opened = rustix::fs::fstat(folders.open(&tree, node).expect("it is there")).expect("fstat");
            let expected = rustix::fs::stat(tree.path(temporary.path(), node)).expect("stat");
            assert_eq!(opened.st_ino, expected.st_ino, "folder {node}");
            assert!(folders.held.len() <= FOLDERS_HELD);
        }
        std::fs::remove_dir(tree.path(temporary.path(), DEPTH)).expect("remove");
        let mut folders = Folders::new(temporary.path());
        assert_eq!(folders.open(&tree, DEPTH).expect_err("it is gone"), (DEPTH, Errno::NOENT));
        folders.open(&tree, DEPTH - 1).expect("the one above is there");
    }
}
