//! What one folder holds, in the order of its NAR.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, readlinkat, statat};
use rustix::io::{Errno, retry_on_intr};

use crate::nar::NarError;

/// What Nix on macOS adds to a name that differs from a neighbour's in case only.
const CASE_HACK: &[u8] = b"~nix~case~hack~";

/// What is in a folder, in the order of its NAR.
pub(super) struct Listing {
    /// All names, and the targets of links.
    names: Vec<u8>,
    entries: Vec<Entry>,
}

struct Entry {
    name: Range<usize>,
    what: What,
    /// Empty but for a link.
    target: Range<usize>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Folder,
    Symlink,
    /// A regular file of so many bytes.
    File {
        size: u64,
        executable: bool,
    },
}

/// Why a folder cannot be listed, or what is wrong with something in it.
#[derive(Debug)]
pub(super) enum Fault {
    /// Its names cannot be read.
    List(Errno),
    /// The entry of this name cannot be looked at.
    Unreadable { name: Vec<u8>, doing: &'static str, errno: Errno },
    /// The entry of this name cannot be in a NAR.
    Odd { name: Vec<u8>, kind: &'static str },
    /// Two entries come to this name without the suffix.
    Collision { name: Vec<u8> },
}

impl Fault {
    /// The error, of the folder that is at `folder`.
    pub(super) fn in_folder(self, folder: PathBuf) -> NarError {
        let at = |name: &[u8]| folder.join(OsStr::from_bytes(name));
        match self {
            Self::List(errno) => NarError::Unreadable { file: folder, doing: "list", errno },
            Self::Unreadable { name, doing, errno } => NarError::Unreadable { file: at(&name), doing, errno },
            Self::Odd { name, kind } => NarError::Odd { file: at(&name), kind },
            Self::Collision { name } => {
                NarError::Collision { folder, name: String::from_utf8_lossy(&name).into_owned() }
            }
        }
    }

    /// The error, where it was the tree's root that was looked at.
    pub(super) fn of_root(self, root: &Path) -> NarError {
        match self {
            Self::Unreadable { errno: Errno::NOENT, .. } => NarError::Missing { root: root.to_path_buf() },
            // The name is the root's, and it is absolute, or as it was given.
            fault => fault.in_folder(PathBuf::new()),
        }
    }
}

impl Listing {
    /// What is in a folder.
    ///
    /// # Errors
    /// Where something cannot be looked at, or cannot be in a NAR.
    pub(super) fn read(mut folder: Dir, case_hack: bool) -> Result<Self, Fault> {
        let Found { mut names, mut entries } = Found::read(&mut folder).map_err(Fault::List)?;
        sort(&names, &mut entries, case_hack)?;
        let at = folder.fd().map_err(Fault::List)?;
        let mut listing = Vec::with_capacity(entries.len());
        for (name, file_type) in entries {
            let (what, target) = look(at, &names[name.clone()], file_type)?;
            let start = names.len();
            names.extend(target);
            listing.push(Entry { name, what, target: start..names.len() });
        }
        Ok(Self { names, entries: listing })
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entry number `index`: its name on disk, what it is, and where it points to if it is a link.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], What, &[u8])> {
        let Entry { name, what, target } = self.entries.get(index)?;
        Some((&self.names[name.clone()], *what, &self.names[target.clone()]))
    }

    /// The names of the folders in it, in order.
    pub(super) fn folders(&self) -> impl Iterator<Item = &[u8]> {
        let entries = (0..self.len()).filter_map(|index| self.get(index));
        entries.filter(|(_, what, _)| *what == What::Folder).map(|(name, ..)| name)
    }
}

/// Names as the system gives them.
struct Found {
    names: Vec<u8>,
    entries: Vec<(Range<usize>, FileType)>,
}

impl Found {
    fn read(folder: &mut Dir) -> Result<Self, Errno> {
        let mut found = Self { names: Vec::new(), entries: Vec::new() };
        for entry in folder {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                let start = found.names.len();
                found.names.extend_from_slice(name);
                found.entries.push((start..found.names.len(), entry.file_type()));
            }
        }
        Ok(found)
    }
}

/// Puts entries in the NAR's order.
fn sort(names: &[u8], entries: &mut [(Range<usize>, FileType)], case_hack: bool) -> Result<(), Fault> {
    let key = |(name, _): &(Range<usize>, FileType)| nar_name(&names[name.clone()], case_hack);
    entries.sort_unstable_by(|a, b| key(a).cmp(key(b)));
    match entries.windows(2).find(|pair| case_hack && key(&pair[0]) == key(&pair[1])) {
        Some(pair) => Err(Fault::Collision { name: key(&pair[0]).to_vec() }),
        None => Ok(()),
    }
}

/// What `name` in the folder `at` is; the system has said already that it is a `file_type`, or has not. With the
/// target of a link.
///
/// # Errors
/// Where it cannot be looked at, or cannot be in a NAR.
pub(super) fn look(at: BorrowedFd<'_>, name: &[u8], file_type: FileType) -> Result<(What, Vec<u8>), Fault> {
    let unreadable = |doing| move |errno| Fault::Unreadable { name: name.to_vec(), doing, errno };
    let (file_type, stat) = match file_type {
        FileType::Directory | FileType::Symlink => (file_type, None),
        _ => {
            let stat = retry_on_intr(|| statat(at, name, AtFlags::SYMLINK_NOFOLLOW))
                .map_err(unreadable("look at"))?;
            (FileType::from_raw_mode(stat.st_mode), Some(stat))
        }
    };
    match (file_type, stat) {
        (FileType::Directory, _) => Ok((What::Folder, Vec::new())),
        (FileType::Symlink, _) => {
            let target = readlinkat(at, name, Vec::new()).map_err(unreadable("read the link"))?;
            Ok((What::Symlink, target.into_bytes()))
        }
        (FileType::RegularFile, Some(stat)) => {
            let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
            Ok((What::File { size: stat.st_size as u64, executable }, Vec::new()))
        }
        (odd, _) => Err(Fault::Odd { name: name.to_vec(), kind: kind_name(odd) }),
    }
}

/// A name as the NAR has it: up to the case-hack suffix, wherever in the name that is, as Nix does it.
pub(in crate::nar) fn nar_name(name: &[u8], case_hack: bool) -> &[u8] {
    let cut = if case_hack { memchr::memmem::find(name, CASE_HACK) } else { None };
    &name[..cut.unwrap_or(name.len())]
}

fn kind_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "file of an unknown kind",
    }
}
