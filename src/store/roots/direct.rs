//! Temporary roots as Nix's own processes hold them: full paths in a locked file under `temproots`.
//!
//! The collector takes `gc.lock` alone, reads every file of `temproots` that somebody has locked, and removes
//! the others. What is written after that it does not see, so while it runs a root is told to it through
//! `gc-socket`, and written down for the next collection too. (Nix: `gc.cc`, `addTempRoot`, `findTempRoots`.)

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::socket;
use crate::limits;

/// File names are numbers from here up. Collectors before 2.35 fail on a name that is no number of 31 bits,
/// and a Nix process removes a file that has its own process number for a name, locked or not: so no number
/// that a process can have (on Linux under 2^22, on macOS under 100,000).
const FIRST_NUMBER: u32 = 1_000_000_000;

/// How many numbers there are: the names stay below 2^31.
const NUMBERS: u32 = 1_000_000_000;

/// Why roots cannot be held directly.
#[derive(Debug, Error)]
pub enum DirectError {
    /// A file or folder cannot be used as it must be.
    #[error("cannot use {}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Every file that was made was taken away before it was locked.
    #[error("cannot keep a file in {}: something removes each new one", .folder.display())]
    Contended {
        /// The folder of the roots.
        folder: PathBuf,
    },
}

/// Whether a root that was added is certain to be honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// By any collection, the running one included.
    Certain,
    /// By the next collection; the running one did not say that it has heard. It may be removing the path.
    Later,
}

/// One locked file of roots. The roots end when it is dropped, which removes the file.
#[derive(Debug)]
pub struct RootFile {
    records: Records,
    lock: GcLock,
    collector: Collector,
}

impl RootFile {
    /// Makes a new file of roots for the store whose state is in `state_dir`.
    ///
    /// # Errors
    /// [`DirectError`], most likely because this user may not write there.
    pub fn create(state_dir: &Path) -> Result<Self, DirectError> {
        let lock = GcLock::open(state_dir)?;
        let folder = state_dir.join("temproots");
        make_folder(&folder)?;
        for _ in 0..limits::ROOT_FILE_TRIES {
            let path = folder.join(random_number()?.to_string());
            if let Some(file) = create_locked(&path)? {
                let records = Records { file, path, len: 0 };
                return Ok(Self { records, lock, collector: Collector::new(state_dir) });
            }
        }
        Err(DirectError::Contended { folder })
    }

    /// Adds a root for the full store path `path`.
    ///
    /// # Errors
    /// [`DirectError`] when it cannot be written; the roots before it stay as they are.
    pub fn add(&mut self, path: &str) -> Result<Added, DirectError> {
        let until = Instant::now() + self.collector.patience;
        loop {
            if let Some(_held) = self.lock.share()? {
                self.records.append(path)?;
                self.collector.gone();
                return Ok(Added::Certain);
            }
            if self.collector.tell(path, until) {
                self.records.append(path)?;
                return Ok(Added::Certain);
            }
            if Instant::now() >= until {
                self.records.append(path)?;
                self.collector.patience = Duration::ZERO;
                return Ok(Added::Later);
            }
            std::thread::sleep(limits::ROOT_COLLECTOR_PAUSE);
        }
    }

    /// Whether the file is still in its folder, where a collector finds it.
    pub fn alive(&self) -> bool {
        self.records.in_place()
    }

    /// How long the next root waits for a collector.
    #[cfg(test)]
    pub fn patience(&self) -> Duration {
        self.collector.patience
    }

    /// Nothing can be written from now on, as when the disk is full. What this gives keeps the lock.
    #[cfg(test)]
    pub fn fill_up(&mut self) -> File {
        let unwritable = File::open(&self.records.path).expect("it is there");
        std::mem::replace(&mut self.records.file, unwritable)
    }

    /// Ends the file whose roots are all in a newer one too. While a collector may be reading it must stay:
    /// the collector may have looked before the newer one was there. Then it comes back.
    pub fn retire(self) -> Option<Self> {
        let held = self.lock.share();
        let ended = matches!(held, Ok(Some(_)));
        if ended {
            remove(&self.records.path);
        }
        drop(held);
        (!ended).then_some(self)
    }
}

/// The file itself: full paths, each ended by a NUL.
#[derive(Debug)]
struct Records {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Records {
    fn in_place(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }

    /// Writes one record. A record cut short would join with the next into a path that no store has, on
    /// which the collector fails; so what a full disk leaves is cut off again.
    fn append(&mut self, path: &str) -> Result<(), DirectError> {
        let record = [path.as_bytes(), b"\0"].concat();
        match self.file.write_all(&record) {
            Ok(()) => {
                self.len += record.len() as u64;
                Ok(())
            }
            Err(source) => {
                let cut = self.file.set_len(self.len);
                cut.and(Err(source)).map_err(|source| DirectError::File { path: self.path.clone(), source })
            }
        }
    }
}

impl Drop for Records {
    /// Removes the file while it is still locked: nobody else can have it.
    fn drop(&mut self) {
        if self.in_place() {
            remove(&self.path);
        }
    }
}

/// Nix's global lock: shared to add a root, alone to collect.
#[derive(Debug)]
struct GcLock {
    file: File,
    path: PathBuf,
}

/// The lock, held shared until dropped: for one append or one removal, so that a collector is not kept
/// waiting.
struct Shared<'a>(&'a File);

impl GcLock {
    fn open(state_dir: &Path) -> Result<Self, DirectError> {
        let path = state_dir.join("gc.lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        match options.open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(DirectError::File { path, source }),
        }
    }

    /// Takes the lock shared if no collector has it.
    fn share(&self) -> Result<Option<Shared<'_>>, DirectError> {
        loop {
            return match flock(&self.file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => Ok(Some(Shared(&self.file))),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => Err(DirectError::File { path: self.path.clone(), source: error.into() }),
            };
        }
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // Giving back a lock that is held cannot fail, and closing the file would do it too.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// The way to a running collector.
#[derive(Debug)]
struct Collector {
    path: PathBuf,
    stream: Option<UnixStream>,
    /// How long the next root waits for it. Once it was silent the roots after it do not wait again, or
    /// everything would stand behind a collector that hangs.
    patience: Duration,
}

impl Collector {
    fn new(state_dir: &Path) -> Self {
        let path = state_dir.join("gc-socket/socket");
        Self { path, stream: None, patience: limits::ROOT_COLLECTOR_TIME }
    }

    /// No collector runs.
    fn gone(&mut self) {
        self.stream = None;
        self.patience = limits::ROOT_COLLECTOR_TIME;
    }

    /// Tells the collector of a root, and whether it has confirmed. When not, it has just begun or ended, or
    /// is deleting this very path, which it finishes before it answers.
    fn tell(&mut self, path: &str, until: Instant) -> bool {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => match socket::connect(&self.path, limits::ROOT_COLLECTOR_LEAST) {
                Ok(stream) => stream,
                Err(_) => return false,
            },
        };
        let heard = ask(&mut stream, path, until).is_ok();
        if heard {
            self.stream = Some(stream);
            self.patience = limits::ROOT_COLLECTOR_TIME;
        }
        heard
    }
}

fn ask(stream: &mut UnixStream, path: &str, until: Instant) -> io::Result<()> {
    let limit = until.saturating_duration_since(Instant::now()).max(limits::ROOT_COLLECTOR_LEAST);
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("{path}\n").as_bytes())?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer == *b"1" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Makes the file and locks it; `None` when the number is taken, or a collector took the file for a stale
/// one in between.
pub(super) fn create_locked(path: &Path) -> Result<Option<File>, DirectError> {
    let failed = |source| DirectError::File { path: path.to_owned(), source };
    let file = match OpenOptions::new().append(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    }
    // A collector that had the lock first has removed the file and written a mark into it. Once it is
    // locked, none removes it.
    let metadata = file.metadata().map_err(failed)?;
    Ok((metadata.len() == 0 && metadata.nlink() > 0).then_some(file))
}

fn make_folder(folder: &Path) -> Result<(), DirectError> {
    match std::fs::DirBuilder::new().mode(0o755).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(DirectError::File { path: folder.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

pub(super) fn random_number() -> Result<u32, DirectError> {
    let random = getrandom::u32().map_err(|error| DirectError::File {
        path: PathBuf::from("the system's random numbers"),
        source: io::Error::other(error),
    })?;
    Ok(FIRST_NUMBER + random % NUMBERS)
}

/// Removes a file of roots. What cannot be removed is taken for stale, and removed, by the next collector.
fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "a file of temporary roots stays behind");
    }
}
