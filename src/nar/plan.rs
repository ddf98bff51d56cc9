//! A tree's NAR as a plan: framing in one piece, and which file's contents go where in it.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

use super::NarError;
use super::pack::{Held, Pack};
use super::tree::{Kind, NodeId, ROOT, Tree};
use super::walk::{Walked, nar_name, walk};
use crate::formats::listing::Writer;
use crate::io::files;
use crate::limits::{FRAMING_SENT_MAX, SENDFILE_MIN};

/// A tree's NAR, complete but for the contents of its files. Immutable; made by one walk of the tree.
///
/// The NAR is the framing with the contents of the files put in at their places. Byte N is found by binary
/// search among the files.
#[derive(Debug)]
pub struct Plan {
    tree: Tree,
    framing: Box<[u8]>,
    contents: Box<[Contents]>,
    /// The files that no pack holds, in order.
    large: Box<[Large]>,
    size: u64,
    origin: Origin,
    /// Whether files are opened without waiting where their names are in memory.
    opens_at_once: bool,
    case_hack: bool,
    /// The `.ls` document, while anyone is being sent it.
    listing: Mutex<Weak<[u8]>>,
    /// Where its pack is kept, once it has been made.
    pack: Mutex<Option<Arc<dyn Pack>>>,
    /// Whoever asks for a plan of this tree gets a new one.
    is_given_up: AtomicBool,
}

/// Which tree a plan was made of. A path that was deleted and made again, or repaired, has another root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The device that the root is on.
    pub device: u64,
    /// The root's inode.
    pub inode: u64,
    /// When the inode last changed: seconds since 1970, and nanoseconds.
    pub changed: (i64, i64),
}

impl Origin {
    /// What the system says of the root now.
    ///
    /// # Errors
    /// When there is no such root, or it cannot be looked at.
    pub fn of(root: &Path) -> Result<Self, NarError> {
        let found = std::fs::symlink_metadata(root).map_err(|error| NarError::root(root, &error))?;
        Ok(Self { device: found.dev(), inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) })
    }
}

/// The contents of one regular file in a NAR.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents {
    /// The file's place in the tree.
    pub(super) node: NodeId,
    /// Whether its owner may execute it.
    pub(super) executable: bool,
    /// Where its bytes begin, from the start of the NAR.
    pub(super) offset: u64,
    /// How many bytes it has.
    pub(super) size: u64,
    /// How much framing comes before them.
    pub(super) framing: u64,
}

/// A file that is sent from the store even where the NAR has a pack.
#[derive(Clone, Copy, Debug)]
struct Large {
    /// Its place among the contents.
    contents: u32,
    /// How many bytes of the pack come before it.
    packed: u64,
}

/// A stretch of a NAR that has one origin.
#[derive(Debug)]
pub(super) enum Piece<'p> {
    /// Framing.
    Framing(&'p [u8]),
    /// `len` bytes of a pack, from its byte `offset`: framing and small files.
    Packed { pack: &'p Held, offset: u64, len: u64 },
    /// `len` bytes of a file, from its byte `offset`.
    Contents { of: &'p Contents, offset: u64, len: u64 },
}

impl Plan {
    /// Walks the tree at `root` (a file, a link or a folder) and plans its NAR.
    ///
    /// With `case_hack`, the suffix that Nix on macOS gives to names that differ in case only is taken off.
    ///
    /// # Errors
    /// Where something cannot be read or cannot be in a NAR; the error names the file.
    pub fn build(root: &Path, case_hack: bool) -> Result<Self, NarError> {
        // Before the walk: a tree that is put in this one's place meanwhile must not pass for it.
        let origin = Origin::of(root)?;
        let Walked { mut tree, framing, contents, bytes } = walk(root, case_hack)?;
        tree.shrink();
        Ok(Self {
            size: framing.len() as u64 + bytes,
            tree,
            framing: framing.into_boxed_slice(),
            large: large_files(&contents),
            contents: contents.into_boxed_slice(),
            origin,
            opens_at_once: files::opens_at_once(root),
            case_hack,
            listing: Mutex::new(Weak::<[u8; 0]>::new()),
            pack: Mutex::new(None),
            is_given_up: AtomicBool::new(false),
        })
    }

    /// The length of the NAR in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory that the plan holds.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.tree.memory()
            + self.framing.len()
            + size_of_val(&*self.contents)
            + size_of_val(&*self.large)
    }

    /// Which tree it was made of.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The NAR without the contents of its files.
    pub fn framing(&self) -> &[u8] {
        &self.framing
    }

    /// The length in bytes of the NAR without its large files: what a pack of it holds.
    pub fn packed_size(&self) -> u64 {
        let large = |large: &Large| self.contents[large.contents as usize].size;
        self.size - self.large.iter().map(large).sum::<u64>()
    }

    /// Whether it has small files, without which a pack has nothing to save.
    pub fn has_small_files(&self) -> bool {
        self.large.len() < self.contents.len()
    }

    /// Whether it has a pack that is still there.
    pub fn is_packed(&self) -> bool {
        self.hold_pack().is_some()
    }

    /// From now on, what is sent of this NAR is taken from `pack` while that lasts. It must be of a NAR that was read
    /// by a plan with this framing and had the hash that the database has.
    pub fn set_pack(&self, pack: Arc<dyn Pack>) {
        *self.pack.lock().unwrap_or_else(PoisonError::into_inner) = Some(pack);
    }

    /// The tree is not as it was when this was made, or the NAR that was read by it is not what was registered, which may
    /// be for the plan: nobody gets it any more who asks from now on.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// The pack's bytes, if it has one that is still there.
    pub(super) fn hold_pack(&self) -> Option<Held> {
        // Nothing panics while it is locked, and it would be whole if something did. Nobody waits for a disk
        // with it.
        let pack = self.pack.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let held = pack.hold().map(Held::new);
        held.filter(|held| held.len() == self.packed_size())
    }

    /// Where the contents of each file lie in the NAR, in order.
    pub fn contents(&self) -> impl Iterator<Item = Range<u64>> {
        self.contents.iter().map(|of| of.offset..of.offset + of.size)
    }

    /// [`Plan::listing`] in memory that all who are being sent it share, and that is given back after the
    /// last: it may be megabytes, and a crowd of slow readers must not hold one each.
    pub(super) fn shared_listing(&self) -> Bytes {
        // Nothing panics while it is locked, and it would be whole if something did. Whoever waits for the
        // lock would otherwise be making the same document.
        let mut kept = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let listing = kept.upgrade().unwrap_or_else(|| self.listing().into_bytes().into());
        *kept = Arc::downgrade(&listing);
        Bytes::from_owner(listing)
    }

    /// The tree as a `.ls` document, version 1, with each file's place in the NAR.
    pub fn listing(&self) -> String {
        let mut out = Writer::new();
        let mut open: Vec<NodeId> = Vec::new();
        for node in 0..self.tree.len() {
            // The root is its own parent, and no folder is open before it.
            while open.last().is_some_and(|&folder| folder != self.tree.parent(node)) {
                out.close_directory();
                open.pop();
            }
            if node != ROOT {
                out.entry(nar_name(self.tree.name(node), self.case_hack));
            }
            match self.tree.kind(node) {
                Kind::Folder => {
                    out.open_directory();
                    open.push(node);
                }
                Kind::Symlink { target } => out.symlink(self.tree.target(node, target)),
                Kind::File { contents } => {
                    let of = self.contents[contents as usize];
                    out.file(of.executable, of.size, of.offset);
                }
            }
        }
        open.iter().for_each(|_| out.close_directory());
        out.finish()
    }

    /// The file whose contents hold byte `position` of the NAR, for messages; `None` for framing.
    pub fn file_at(&self, root: &Path, position: u64) -> Option<PathBuf> {
        let of = self.contents.get(self.first_not_before(position))?;
        (of.offset <= position).then(|| self.path(root, of))
    }

    /// Where a file is on disk, for messages.
    pub(super) fn path(&self, root: &Path, of: &Contents) -> PathBuf {
        self.tree.path(root, of.node)
    }

    /// Whether files are opened without waiting where their names are in memory.
    pub(super) fn opens_at_once(&self) -> bool {
        self.opens_at_once
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The NAR from byte `position` to its end, in order. No piece is empty.
    pub(super) fn pieces(&self, position: u64) -> impl Iterator<Item = Piece<'_>> {
        let mut next = self.first_not_before(position);
        let mut position = position;
        std::iter::from_fn(move || {
            while let Some(of) = self.contents.get(next) {
                if position < of.offset {
                    return Some(self.framing_until(of.offset, of.framing, &mut position));
                }
                next += 1;
                let skipped = position - of.offset;
                if skipped < of.size {
                    position = of.offset + of.size;
                    return Some(Piece::Contents { of, offset: skipped, len: of.size - skipped });
                }
            }
            let end = self.framing.len() as u64;
            (position < self.size).then(|| self.framing_until(self.size, end, &mut position))
        })
    }

    /// The NAR from byte `position` to its end, in order, as it is sent from its pack and large files. Where there is
    /// nothing but a little framing between two of those, it comes from memory, and leaves with the file after it; a range of the
    /// pack would cost three calls and a packet of its own. No piece is empty.
    pub(super) fn packed_pieces<'p>(
        &'p self,
        pack: &'p Held,
        position: u64,
    ) -> impl Iterator<Item = Piece<'p>> {
        let of = |large: &Large| &self.contents[large.contents as usize];
        let mut next = self.large.partition_point(|large| of(large).offset + of(large).size <= position);
        let (mut position, packed_size) = (position, pack.len());
        std::iter::from_fn(move || {
            let index = self.large.get(next).map_or(self.contents.len(), |large| large.contents as usize);
            let is_framing = self.is_large_before(next, index);
            let Some(large) = self.large.get(next) else {
                let len = self.size - position;
                if is_framing && (1..=FRAMING_SENT_MAX).contains(&len) {
                    let end = self.framing.len() as u64;
                    return Some(self.framing_until(self.size, end, &mut position));
                }
                position = self.size;
                return (len > 0).then_some(Piece::Packed { pack, offset: packed_size - len, len });
            };
            let of = of(large);
            if position < of.offset {
                let len = of.offset - position;
                if is_framing && len <= FRAMING_SENT_MAX {
                    return Some(self.framing_until(of.offset, of.framing, &mut position));
                }
                position = of.offset;
                return Some(Piece::Packed { pack, offset: large.packed - len, len });
            }
            next += 1;
            let skipped = position - of.offset;
            position = of.offset + of.size;
            Some(Piece::Contents { of, offset: skipped, len: of.size - skipped })
        })
    }

    /// Whether no small file comes before contents number `index`, since the large file before number `next` of those.
    fn is_large_before(&self, next: usize, index: usize) -> bool {
        let since = next.checked_sub(1).map_or(0, |last| self.large[last].contents as usize + 1);
        since == index
    }

    /// The framing from `position` to byte `offset` of the NAR, which is byte `end` of the framing.
    fn framing_until(&self, offset: u64, end: u64, position: &mut u64) -> Piece<'_> {
        let start = end - (offset - *position);
        *position = offset;
        Piece::Framing(&self.framing[start as usize..end as usize])
    }

    /// The first file whose contents end after `position`.
    fn first_not_before(&self, position: u64) -> usize {
        self.contents.partition_point(|of| of.offset + of.size <= position)
    }
}

/// Those of a NAR's files that are sent from the store even where the rest comes from a pack.
fn large_files(contents: &[Contents]) -> Box<[Large]> {
    let mut bytes = 0;
    let mut large = Vec::new();
    // At most PLAN_NODES files: the number fits.
    for (number, of) in (0..).zip(contents).filter(|(_, of)| of.size >= SENDFILE_MIN) {
        large.push(Large { contents: number, packed: of.offset - bytes });
        bytes += of.size;
    }
    large.into_boxed_slice()
}
