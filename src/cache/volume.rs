//! A file of frames, each behind a record that says what it is.
//!
//! A volume begins with a header: magic, and a secret of its own. A frame is a record of 64 bytes, then its bytes.
//! The record carries two sums keyed with the secret: of the bytes, and of the record itself. Whoever builds a store
//! path chooses what lies in a frame, but cannot write what passes for a record: without the secret, bytes left
//! behind by a torn write never do.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::error::failed;
use super::inventory::Place;
use super::{CacheError, Key};
use crate::io::files;
use crate::limits::CACHE_FRAME_MAX;

const MAGIC: &[u8; 32] = b"harmonia cache volume, version 1";

/// Bytes before the first record: the magic and the secret.
pub(super) const HEADER: u64 = 64;

/// Bytes of the record before each frame.
pub(super) const RECORD: u64 = 64;

const FRAME_MAGIC: [u8; 4] = *b"hfrm";

/// What the names of volumes end in.
const SUFFIX: &str = ".volume";

/// An open volume.
#[derive(Debug)]
pub(super) struct Volume {
    number: u64,
    path: PathBuf,
    file: Arc<File>,
    secret: [u8; 32],
    /// Where its last frame ends, in bytes from the start of the file.
    end: AtomicU64,
    /// When this process wrote to it last, as the file system says; 0 where that is not to be relied on.
    written: AtomicI64,
    /// Grows by one when a write begins and when it has ended: it is odd meanwhile.
    writes: AtomicU64,
}

impl Volume {
    /// Makes a new volume, with no frame in it.
    pub(super) fn create(folder: &Path, number: u64) -> Result<Self, CacheError> {
        let path = path(folder, number);
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)
            .map_err(|error| failed(&path, "draw a secret for it")(io::Error::other(error.to_string())))?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(failed(&path, "create"))?;
        let header = [*MAGIC, secret].concat();
        file.write_all_at(&header, 0).map_err(failed(&path, "write"))?;
        Ok(Self::new(number, path, file, secret, HEADER))
    }

    /// Opens a volume; `None` where the file is not one that this version can read.
    pub(super) fn open(folder: &Path, number: u64) -> Result<Option<Self>, CacheError> {
        let path = path(folder, number);
        let file = File::options().read(true).write(true).open(&path).map_err(failed(&path, "open"))?;
        let end = file.metadata().map_err(failed(&path, "look at"))?.len();
        let mut header = [0; HEADER as usize];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(failed(&path, "read"))?,
        }
        let Some(secret) = header.strip_prefix(MAGIC.as_slice()).and_then(|rest| rest.try_into().ok()) else {
            return Ok(None);
        };
        Ok(Some(Self::new(number, path, file, secret, end)))
    }

    fn new(number: u64, path: PathBuf, file: File, secret: [u8; 32], end: u64) -> Self {
        let tells_time = files::tells_time(&path);
        let volume = Self {
            number,
            path,
            file: Arc::new(file),
            secret,
            end: AtomicU64::new(end),
            written: AtomicI64::new(i64::from(tells_time)),
            writes: AtomicU64::new(0),
        };
        volume.note_time();
        volume
    }

    /// What is in the file by now was written by this process.
    fn note_time(&self) {
        if self.written.load(Ordering::Relaxed) != 0 {
            let time = self.file.metadata().map_or(1, |found| modified(&found));
            self.written.store(time, Ordering::Release);
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the next record would begin.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// Whether nobody but this process has written to the file since it was opened, as far as its time says, and it still
    /// reaches to where its last frame ends: what was checked before is not to be relied on else, and what is written
    /// behind a cut makes a hole of it. Waits for no disk.
    pub(super) fn is_untouched(&self) -> bool {
        let writes = self.writes.load(Ordering::Acquire);
        let (end, written) = (self.end(), self.written.load(Ordering::Acquire));
        let Ok(found) = self.file.metadata() else { return false };
        // While this process writes, nobody can say whose time it is; the next look can.
        let is_ours = || writes % 2 == 1 || self.writes.load(Ordering::Acquire) != writes;
        found.len() >= end && (written == 0 || modified(&found) == written || is_ours())
    }

    /// Appends a frame. Only one thread at a time may do so. After an error the volume is as it was.
    pub(super) fn append(&self, key: &Key, bytes: &[u8]) -> Result<Place, CacheError> {
        let at = self.end();
        let offset = at + RECORD;
        // No longer than CACHE_FRAME_MAX, so it fits.
        let len = bytes.len() as u32;
        self.writes.fetch_add(1, Ordering::AcqRel);
        // The record goes last: where it is, the frame has been written, should the process be killed here.
        let written = self
            .file
            .write_all_at(bytes, offset)
            .and_then(|()| self.file.write_all_at(&self.record(key, len, &self.sum(bytes)), at));
        if let Err(source) = written {
            // A full disk has room for others again. What cannot be cut off is overwritten by the next frame.
            let _ = self.file.set_len(at);
            self.wrote();
            return Err(CacheError::File { file: self.path.clone(), doing: "write", source });
        }
        self.end.store(offset + u64::from(len), Ordering::Relaxed);
        self.wrote();
        Ok(Place { volume: self.number, offset, len })
    }

    /// A write has ended.
    fn wrote(&self) {
        self.note_time();
        self.writes.fetch_add(1, Ordering::AcqRel);
    }

    /// Reads a frame and checks that it is what was written.
    pub(super) fn read(&self, key: &Key, place: Place) -> Result<Vec<u8>, CacheError> {
        let damaged = || CacheError::Damaged { file: self.path.clone(), offset: place.offset };
        let len = place.len as usize;
        if place.offset < HEADER + RECORD || len > CACHE_FRAME_MAX {
            return Err(damaged());
        }
        let mut record = [0; RECORD as usize];
        let mut bytes = vec![0; len];
        let read = self
            .file
            .read_exact_at(&mut record, place.offset - RECORD)
            .and_then(|()| self.file.read_exact_at(&mut bytes, place.offset));
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged()),
            read => read.map_err(failed(&self.path, "read"))?,
        }
        // The record's own sum covers its key, length and sum of the bytes: equal records are equal frames.
        let is_whole = record == self.record(key, place.len, &self.sum(&bytes));
        if is_whole { Ok(bytes) } else { Err(damaged()) }
    }

    /// The frames whose records begin at byte `from` and after it, as far as they can be read. The frames themselves
    /// are not looked at. Afterwards [`Volume::end`] is where the last of them ends, and what follows is cut off:
    /// the torn end of a write.
    pub(super) fn recover(&self, from: u64) -> Result<Vec<(Key, Place)>, CacheError> {
        let file_end = self.end();
        let (mut at, mut found) = (from.max(HEADER), Vec::new());
        let mut record = [0; RECORD as usize];
        while at + RECORD < file_end {
            self.file.read_exact_at(&mut record, at).map_err(failed(&self.path, "read"))?;
            let Some((key, len)) = self.understand(&record) else { break };
            let end = at + RECORD + u64::from(len);
            if end > file_end {
                break;
            }
            found.push((key, Place { volume: self.number, offset: at + RECORD, len }));
            at = end;
        }
        if at < file_end {
            self.file.set_len(at).map_err(failed(&self.path, "cut a torn write off"))?;
            self.note_time();
        }
        self.end.store(at, Ordering::Relaxed);
        Ok(found)
    }

    /// Takes the volume's name away. Who holds it open can still read it.
    pub(super) fn unlink(&self) -> Result<(), CacheError> {
        remove(&self.path)
    }

    /// Magic, length, key, sum of the frame, sum of the record.
    fn record(&self, key: &Key, len: u32, sum: &[u8; 16]) -> [u8; RECORD as usize] {
        let mut record = [0; RECORD as usize];
        record[..4].copy_from_slice(&FRAME_MAGIC);
        record[4..8].copy_from_slice(&len.to_le_bytes());
        record[8..40].copy_from_slice(key.as_bytes());
        record[40..56].copy_from_slice(sum);
        let own = blake3::keyed_hash(&self.secret, &record[..56]);
        record[56..].copy_from_slice(&own.as_bytes()[..8]);
        record
    }

    /// The key and the length in a record; `None` where it is not one.
    fn understand(&self, record: &[u8; RECORD as usize]) -> Option<(Key, u32)> {
        let len = u32::from_le_bytes(record[4..8].try_into().ok()?);
        let key = Key::from_bytes(record[8..40].try_into().ok()?);
        let sum = record[40..56].try_into().ok()?;
        let is_record = *record == self.record(&key, len, sum) && len as usize <= CACHE_FRAME_MAX && len > 0;
        is_record.then_some((key, len))
    }

    fn sum(&self, bytes: &[u8]) -> [u8; 16] {
        let mut sum = [0; 16];
        sum.copy_from_slice(&blake3::keyed_hash(&self.secret, bytes).as_bytes()[..16]);
        sum
    }
}

/// When a file was written to last, in nanoseconds; never 0.
fn modified(found: &Metadata) -> i64 {
    found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()).max(1)
}

/// Where a volume lies.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}{SUFFIX}"))
}

/// Removes what has the name of a volume, if it is there.
pub(super) fn unlink(folder: &Path, number: u64) -> Result<(), CacheError> {
    remove(&path(folder, number))
}

fn remove(path: &Path) -> Result<(), CacheError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "remove")(error)),
        _ => Ok(()),
    }
}

/// The numbers of the volumes in a folder, in no order.
pub(super) fn list(folder: &Path) -> Result<Vec<u64>, CacheError> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed(folder, "list"))? {
        let name = entry.map_err(failed(folder, "list"))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).map(str::parse::<u64>);
        numbers.extend(number.and_then(Result::ok));
    }
    Ok(numbers)
}
