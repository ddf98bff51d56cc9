//! Files as the sender and the cold file engine reach them: opened below a folder through no symbolic link,
//! and, where that is asked for, without ever waiting for a disk.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

/// Whether a call on a file may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It may.
    Allowed,
    /// It fails with `AGAIN` instead.
    Never,
}

/// Whether a stretch of a file can be sent without waiting for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// It is in the page cache.
    Resident,
    /// It is not.
    Cold,
    /// The system or the file system does not say.
    Unknown,
}

/// How a file is opened to be read: never through a symbolic link, and not waiting for the writer of a fifo that has
/// taken a file's place.
pub const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Opens the folder `path` to open files below it with [`open_below`]. Its last name may not be a symbolic link; the
/// folders above may.
///
/// # Errors
/// As the system says; `AGAIN` where it would have to wait and may not.
pub fn open_folder(path: &Path, wait: Wait) -> Result<OwnedFd, Errno> {
    open_root(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, wait)
}

/// Opens the file `path` for reading. Its last name may not be a symbolic link; the folders above may.
///
/// # Errors
/// As the system says; `AGAIN` where it would have to wait and may not.
pub fn open_file(path: &Path, wait: Wait) -> Result<File, Errno> {
    open_root(path, READ, wait).map(File::from)
}

fn open_root(path: &Path, flags: OFlags, wait: Wait) -> Result<OwnedFd, Errno> {
    match wait {
        Wait::Allowed => retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())),
        Wait::Never => system::open_cached(path, flags),
    }
}

/// Opens the file at `path`, of any number of names, below `folder`, for reading. No name of it may be a symbolic
/// link.
///
/// # Errors
/// As the system says; `AGAIN` where it would have to wait and may not, `LOOP` for a symbolic link. [`Errno::NOSYS`]
/// where the system cannot do it in one call, or is not allowed to.
pub fn open_below(folder: BorrowedFd<'_>, path: &[u8], wait: Wait) -> Result<File, Errno> {
    system::open_below(folder, path, wait).map(File::from)
}

/// Holds the file at `path`, to be asked what it is without its name being looked up each time. It cannot be read; and
/// unlike any other descriptor, to close it leaves this process's locks on the file alone. No name of the path may be a
/// symbolic link, which somebody could turn elsewhere and leave the file as it is.
///
/// # Errors
/// As the system says; [`Errno::NOSYS`] where it has no such thing.
pub fn hold(path: &Path) -> Result<File, Errno> {
    system::hold(path).map(File::from)
}

/// Whether `path` is on a file system that opens a file whose name it has in memory without waiting, and says what it
/// has of its contents: a local one. Where files come by a network or from another process, opening one is a question
/// to that. Waits for the disk.
pub fn opens_at_once(path: &Path) -> bool {
    system::opens_at_once(path)
}

/// Whether `path` is on a file system of this machine's own, where the time of a file's last write stays as it was told
/// after that write. A server may have a clock of its own, and tell another time later. Waits for the disk.
pub fn tells_time(path: &Path) -> bool {
    system::tells_time(path)
}

/// Reads what is in the page cache: fewer bytes than there is room for where the file ends or the rest is not there.
///
/// # Errors
/// `AGAIN` where nothing of it is; `OPNOTSUPP` where the file system does not say, and on systems that cannot.
pub fn read_resident(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    system::read_resident(file, into, offset)
}

/// Whether the `len` bytes of `file` from `offset` on are in the page cache, told by the first and the last of them:
/// what the system reads or drops at once is longer than what is sent at once.
pub fn residency(file: &File, offset: u64, len: u64) -> Residency {
    for at in [offset + len.saturating_sub(1), offset] {
        match system::is_resident(file, at) {
            Ok(true) => {}
            Ok(false) => return Residency::Cold,
            Err(_) => return Residency::Unknown,
        }
    }
    Residency::Resident
}

/// Reads all of `into`, or up to the end of the file; waits for the disk.
///
/// # Errors
/// As the system says.
pub fn read_full(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut read = 0;
    while read < into.len() {
        match rustix::io::pread(file, &mut into[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(read)
}

/// All of a small file from where it is, unless there are more than `most` bytes.
///
/// # Errors
/// As the system says, and [`ErrorKind::FileTooLarge`].
pub fn read_whole(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if read as u64 > most {
        let said = format!("it is longer than {most} bytes, which no file of its kind is");
        return Err(io::Error::new(ErrorKind::FileTooLarge, said));
    }
    Ok(bytes)
}

/// Has the system begin reading. Only a hint: refused, nothing is lost.
pub fn read_ahead(file: &File, offset: u64, len: u64) {
    #[cfg(not(target_vendor = "apple"))]
    {
        use rustix::fs::{Advice, fadvise};
        let _ = fadvise(file, offset, std::num::NonZeroU64::new(len), Advice::WillNeed);
    }
    #[cfg(target_vendor = "apple")]
    let _ = rustix::fs::fcntl_rdadvise(file, offset, len);
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use super::*;
    use std::io::IoSliceMut;

    use rustix::fs::{CWD, ResolveFlags, openat2};
    use rustix::io::ReadWriteFlags;

    pub(super) fn open_cached(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        retry_on_intr(|| openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED))
    }

    pub(super) fn open_below(folder: BorrowedFd<'_>, path: &[u8], wait: Wait) -> Result<OwnedFd, Errno> {
        let resolve = match wait {
            Wait::Allowed => ResolveFlags::NO_SYMLINKS,
            // Another file system below may be one that waits.
            Wait::Never => ResolveFlags::NO_SYMLINKS | ResolveFlags::CACHED | ResolveFlags::NO_XDEV,
        };
        retry_on_intr(|| openat2(folder, path, READ, Mode::empty(), resolve)).map_err(|errno| match errno {
            // Filters of system calls refuse with PERM what they do not know. For a file to be read, the call itself
            // never does.
            Errno::PERM => Errno::NOSYS,
            errno => errno,
        })
    }

    pub(super) fn hold(path: &Path) -> Result<OwnedFd, Errno> {
        retry_on_intr(|| {
            openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        })
    }

    // Numbers of linux/magic.h, and of OpenZFS.
    const EXT4: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683e;
    const F2FS: u32 = 0xf2f5_2010;
    const TMPFS: u32 = 0x0102_1994;
    const OVERLAYFS: u32 = 0x794c_7630;
    const ZFS: u32 = 0x2fc1_2fc1;

    fn is_on(path: &Path, file_systems: &[u32]) -> bool {
        // The kernel's own type for it is wider than the numbers.
        rustix::fs::statfs(path).is_ok_and(|found| file_systems.contains(&(found.f_type as u32)))
    }

    pub(super) fn opens_at_once(path: &Path) -> bool {
        is_on(path, &[EXT4, XFS, BTRFS, F2FS])
    }

    pub(super) fn tells_time(path: &Path) -> bool {
        is_on(path, &[EXT4, XFS, BTRFS, F2FS, TMPFS, OVERLAYFS, ZFS])
    }

    pub(super) fn read_resident(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
        retry_on_intr(|| {
            rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT)
        })
    }

    pub(super) fn is_resident(file: &File, at: u64) -> Result<bool, Errno> {
        match read_resident(file, &mut [0], at) {
            // Or none, where the file has been cut short: sending it will show.
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    use super::*;

    pub(super) fn open_cached(_path: &Path, _flags: OFlags) -> Result<OwnedFd, Errno> {
        Err(Errno::NOSYS)
    }

    pub(super) fn open_below(_folder: BorrowedFd<'_>, _path: &[u8], _wait: Wait) -> Result<OwnedFd, Errno> {
        Err(Errno::NOSYS)
    }

    pub(super) fn hold(_path: &Path) -> Result<OwnedFd, Errno> {
        Err(Errno::NOSYS)
    }

    pub(super) fn opens_at_once(_path: &Path) -> bool {
        false
    }

    pub(super) fn tells_time(_path: &Path) -> bool {
        false
    }

    pub(super) fn read_resident(_file: &File, _into: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    #[cfg(target_vendor = "apple")]
    pub(super) use crate::io::mapped::is_resident;

    #[cfg(not(target_vendor = "apple"))]
    pub(super) fn is_resident(_file: &File, _at: u64) -> Result<bool, Errno> {
        Err(Errno::OPNOTSUPP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_is_opened_below_a_folder_and_through_no_link() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/file"), "contents").unwrap();
        symlink("a", folder.path().join("link")).unwrap();
        symlink("file", folder.path().join("a/b/link")).unwrap();
        let root = open_folder(folder.path(), Wait::Allowed).unwrap();
        let mut bytes = [0; 9];
        match open_below(root.as_fd(), b"a/b/file", Wait::Allowed) {
            Ok(file) => assert_eq!(read_full(&file, &mut bytes, 0), Ok(8)),
            // Not on this system, then; callers have another way.
            Err(errno) => return assert_eq!(errno, Errno::NOSYS),
        }
        for path in [&b"link/b/file"[..], b"a/b/link"] {
            assert_eq!(open_below(root.as_fd(), path, Wait::Allowed).unwrap_err(), Errno::LOOP);
        }
        assert_eq!(open_below(root.as_fd(), b"a/none", Wait::Allowed).unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn what_was_just_written_is_in_memory_or_nobody_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 10_000]).unwrap();
        let file = open_file(&path, Wait::Allowed).unwrap();
        let known = opens_at_once(&path);
        for (offset, len) in [(0, 10_000), (9_999, 1), (5_000, 1)] {
            let found = residency(&file, offset, len);
            assert!(found == Residency::Resident || (found == Residency::Unknown && !known), "{found:?}");
        }
        if known {
            let mut bytes = [0; 20_000];
            assert_eq!(read_resident(&file, &mut bytes, 1), Ok(9_999));
            assert!(open_file(&path, Wait::Never).is_ok());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_dropped_is_cold_and_then_read() {
        use rustix::fs::{Advice, fadvise};
        // Not in the folder for temporary files, which is often in memory.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let file = open_file(&path, Wait::Allowed).unwrap();
        if !opens_at_once(&path) {
            return assert_ne!(residency(&file, 0, 1), Residency::Cold);
        }
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert_eq!(residency(&file, 0, 1 << 20), Residency::Cold);
        let mut bytes = vec![0; 1 << 20];
        assert_eq!(read_resident(&file, &mut bytes, 0), Err(Errno::AGAIN));
        assert_eq!(read_full(&file, &mut bytes, 0), Ok(1 << 20));
        assert_eq!(residency(&file, 0, 1 << 20), Residency::Resident);
    }
}
