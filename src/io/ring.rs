//! Many small files read at once: io_uring, where there is one.
//!
//! Each file is opened, read and closed by three linked entries, into a slot of the ring's own that costs the process
//! no descriptor. The disk sees all of them together, and no thread waits for each. Where io_uring is missing or
//! forbidden, as in many containers, [`Ring::new`] gives none, and files are read one after the other.

pub use system::Ring;

/// Files in one batch. A disk that is asked for so many at once is as busy as it gets.
pub const BATCH: usize = 64;

/// The longest path of a file in a batch, in bytes, with those of all others: 64 of 255 bytes.
#[cfg(target_os = "linux")]
const PATHS: usize = BATCH * 256;

#[cfg(target_os = "linux")]
mod system {
    use std::fmt;
    use std::io::{Error, ErrorKind, Result};
    use std::mem::ManuallyDrop;
    use std::os::fd::{AsRawFd, BorrowedFd};

    use io_uring::squeue::{Entry, Flags};
    use io_uring::types::{DestinationSlot, Fd, Fixed, OpenHow};
    use io_uring::{IoUring, opcode};
    use rustix::fs::{OFlags, ResolveFlags};

    use super::super::files;
    use super::{BATCH, PATHS};
    use crate::limits::FETCH_BYTES;

    /// Entries a file: opened, read, closed.
    const STEPS: usize = 3;
    const READ_STEP: u64 = 1;

    /// A ring with the memory that it reads into.
    pub struct Ring {
        /// Not dropped while the kernel may still write to what it was given.
        parts: ManuallyDrop<Parts>,
        /// Entries that the kernel has or may have.
        in_flight: usize,
    }

    struct Parts {
        ring: IoUring,
        how: Box<OpenHow>,
        /// Paths, each with a NUL at its end.
        paths: Box<[u8]>,
        contents: Box<[u8]>,
        files: Vec<Wanted>,
    }

    /// A file of the batch.
    struct Wanted {
        path: usize,
        start: usize,
        len: usize,
        /// What the read gave, as system calls do.
        read: i32,
    }

    impl Ring {
        /// A ring; none where the system has no io_uring, or it may not be used.
        pub fn new() -> Option<Self> {
            let ring = IoUring::new((BATCH * STEPS) as u32).ok()?;
            ring.submitter().register_files_sparse(BATCH as u32).ok()?;
            // A slot of the ring is not handed to other programs in any case; the kernel refuses to be told so.
            let flags = files::READ.difference(OFlags::CLOEXEC);
            let how = OpenHow::new().flags(u64::from(flags.bits())).resolve(ResolveFlags::NO_SYMLINKS.bits());
            // Each file is read with one byte more than it should have, to see that it ends.
            let contents = vec![0; FETCH_BYTES as usize + BATCH].into();
            let parts = Parts {
                ring,
                how: Box::new(how),
                paths: vec![0; PATHS].into(),
                contents,
                files: Vec::with_capacity(BATCH),
            };
            Some(Self { parts: ManuallyDrop::new(parts), in_flight: 0 })
        }

        /// Begins a new batch.
        pub fn begin(&mut self) {
            self.parts.files.clear();
        }

        /// Adds the file at `path` below the folder, which should have `len` bytes; whether there was room.
        pub fn add(&mut self, path: &[u8], len: usize) -> bool {
            let Parts { paths, contents, files, .. } = &mut *self.parts;
            let (path_start, start) = files.last().map_or((0, 0), |last| {
                (
                    last.path + paths[last.path..].iter().position(|&byte| byte == 0).unwrap_or(0) + 1,
                    last.start + last.len + 1,
                )
            });
            let path_end = path_start + path.len();
            if files.len() == BATCH || path_end >= paths.len() || start + len + 1 > contents.len() {
                return false;
            }
            paths[path_start..path_end].copy_from_slice(path);
            paths[path_end] = 0;
            files.push(Wanted { path: path_start, start, len, read: -1 });
            true
        }

        /// Reads the batch from below `folder`, through no symbolic link. What could not be read has no
        /// [`contents`](Self::contents).
        ///
        /// # Errors
        /// When the ring fails as a whole; it cannot be used again.
        pub fn read(&mut self, folder: BorrowedFd<'_>) -> Result<()> {
            if self.in_flight > 0 {
                return Err(Error::other("an earlier batch has not ended"));
            }
            // Once for the batch: to borrow the memory again would be to say that the kernel has nothing of it.
            let contents = self.parts.contents.as_mut_ptr();
            for number in 0..self.parts.files.len() {
                for entry in self.parts.entries(number, folder, contents)? {
                    // SAFETY: what the entry points to (path, how, contents) is memory of `parts` that is neither moved nor
                    // freed before the kernel is done with it: this call returns after the last completion, and where it
                    // fails before, `in_flight` is left above 0, nothing is added any more, and `parts` is never dropped.
                    let pushed = unsafe { self.parts.ring.submission().push(&entry) };
                    pushed.map_err(|_| Error::other("the ring has less room than it was made with"))?;
                    self.in_flight += 1;
                }
            }
            while self.in_flight > 0 {
                match self.parts.ring.submit_and_wait(self.in_flight) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
                let Parts { ring, files, .. } = &mut *self.parts;
                for completion in ring.completion() {
                    self.in_flight -= 1;
                    let (number, step) =
                        (completion.user_data() / STEPS as u64, completion.user_data() % STEPS as u64);
                    if let Some(file) = files.get_mut(number as usize).filter(|_| step == READ_STEP) {
                        file.read = completion.result();
                    }
                }
            }
            Ok(())
        }

        /// The bytes of the file that was added as number `number`, from 0, if it could be read and has as many as
        /// it should.
        pub fn contents(&self, number: usize) -> Option<&[u8]> {
            let Wanted { start, len, read, .. } = *self.parts.files.get(number)?;
            (usize::try_from(read) == Ok(len)).then(|| &self.parts.contents[start..start + len])
        }
    }

    impl Parts {
        /// What the kernel is to do for a file; `contents` is where those are.
        fn entries(
            &self,
            number: usize,
            folder: BorrowedFd<'_>,
            contents: *mut u8,
        ) -> Result<[Entry; STEPS]> {
            let Wanted { path, start, len, .. } = self.files[number];
            let slot = number as u32;
            let target = DestinationSlot::try_from_slot_target(slot)
                .map_err(|_| Error::other("the ring has no such slot"))?;
            let path = self.paths[path..].as_ptr().cast();
            // It was added where there is room for it and one byte more. At most FETCH_BYTES: it fits.
            let (place, room) = (contents.wrapping_add(start), len as u32 + 1);
            let user_data = (number * STEPS) as u64;
            let open = opcode::OpenAt2::new(Fd(folder.as_raw_fd()), path, &raw const *self.how)
                .file_index(Some(target))
                .build()
                .flags(Flags::IO_LINK)
                .user_data(user_data);
            // It ends early, as it should: the file is closed all the same.
            let read = opcode::Read::new(Fixed(slot), place, room)
                .build()
                .flags(Flags::IO_HARDLINK)
                .user_data(user_data + READ_STEP);
            let close = opcode::Close::new(Fixed(slot)).build().user_data(user_data + 2);
            Ok([open, read, close])
        }
    }

    impl fmt::Debug for Ring {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
        }
    }

    impl Drop for Ring {
        fn drop(&mut self) {
            if self.in_flight == 0 {
                // SAFETY: `parts` is not used again, and the kernel has nothing of it.
                unsafe { ManuallyDrop::drop(&mut self.parts) };
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io::Result;
    use std::os::fd::BorrowedFd;

    /// No ring: there is none on this system.
    #[derive(Debug)]
    pub enum Ring {}

    impl Ring {
        /// None.
        pub fn new() -> Option<Self> {
            None
        }

        /// Never called.
        pub fn begin(&mut self) {
            match *self {}
        }

        /// Never called.
        pub fn add(&mut self, _path: &[u8], _len: usize) -> bool {
            match *self {}
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub fn read(&mut self, _folder: BorrowedFd<'_>) -> Result<()> {
            match *self {}
        }

        /// Never called.
        pub fn contents(&self, _number: usize) -> Option<&[u8]> {
            match *self {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::io::files::{Wait, open_folder};
    use std::os::fd::AsFd;

    #[test]
    fn a_batch_has_the_contents_of_each_file_that_is_as_it_should_be() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        std::os::unix::fs::symlink("in", folder.path().join("link")).unwrap();
        let contents = |number: usize| vec![number as u8; number * 31];
        for number in 0..BATCH {
            std::fs::write(folder.path().join(format!("in/{number}")), contents(number)).unwrap();
        }
        let root = open_folder(folder.path(), Wait::Allowed).unwrap();
        // Forbidden here: what that means is seen where the server runs without.
        let Some(mut ring) = Ring::new() else { return };
        for _ in 0..3 {
            ring.begin();
            for number in 0..BATCH {
                let (path, len) = match number % 8 {
                    5 => (format!("in/{number}"), number * 31 + 1),
                    6 => (format!("in/{number}"), number * 31 - 1),
                    7 => (format!("link/{number}"), number * 31),
                    _ => (format!("in/{number}"), number * 31),
                };
                assert!(ring.add(path.as_bytes(), len));
            }
            assert!(!ring.add(b"in/0", 0), "no more than a batch");
            ring.read(root.as_fd()).unwrap();
            for number in 0..BATCH {
                let expected = (number % 8 < 5).then(|| contents(number));
                assert_eq!(ring.contents(number), expected.as_deref(), "file {number}");
            }
        }
        ring.begin();
        assert!(!ring.add(b"in/0", 1 << 20), "no more than there is memory for");
        assert!(ring.add(b"in/none", 7));
        assert!(ring.add(b"in", 7));
        ring.read(root.as_fd()).unwrap();
        assert_eq!((ring.contents(0), ring.contents(1), ring.contents(2)), (None, None, None));
    }
}
