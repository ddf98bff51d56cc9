//! Whether a page of a file is in memory, told by mapping it: what Apple's systems offer. Compiled for tests elsewhere.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

use rustix::io::Errno;

/// Whether the page of `file` that the byte at `at` is in is in memory. Waits for no disk.
///
/// # Errors
/// Where it cannot be mapped.
pub fn is_resident(file: &File, at: u64) -> Result<bool, Errno> {
    // SAFETY: it asks for a number and has no other effect.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).map_err(|_| Errno::INVAL)?;
    let start = libc::off_t::try_from(at - at % page as u64).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: it is a new mapping, where the system chooses, so it takes the place of none; its memory is never
    // touched, so that a file that is cut short meanwhile does no harm.
    let mapped = unsafe {
        libc::mmap(ptr::null_mut(), page, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), start)
    };
    if mapped == libc::MAP_FAILED {
        return Err(last_error());
    }
    let mut found = [0u8];
    // SAFETY: one page was mapped above, and one byte is written for each page.
    let asked = unsafe { libc::mincore(mapped, page, found.as_mut_ptr().cast()) };
    let outcome = if asked == 0 { Ok(found[0] & IN_MEMORY != 0) } else { Err(last_error()) };
    // SAFETY: the page was mapped above, and nothing refers to it.
    unsafe { libc::munmap(mapped, page) };
    outcome
}

/// `MINCORE_INCORE`, which Linux has no name for.
const IN_MEMORY: u8 = 1;

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_written_is_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; 200_000]).unwrap();
        let file = File::open(&path).unwrap();
        for at in [0, 1, 100_000, 199_999] {
            assert_eq!(is_resident(&file, at), Ok(true), "at {at}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_dropped_is_not() {
        use rustix::fs::{Advice, fadvise};
        // Not in the folder for temporary files, which is often in memory.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; 200_000]).unwrap();
        if !super::super::files::opens_at_once(&path) {
            return;
        }
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert_eq!(is_resident(&file, 100_000), Ok(false));
    }
}
