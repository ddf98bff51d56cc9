//! The Nix database, read-only: opening it whatever state it is in, and telling whether it has changed.
//!
//! **The ladder.** First a plain read-only open, which works in every journal mode. It fails where the database
//! is in WAL mode, its `-wal` and `-shm` are gone (the last writer closed) and this user may not make them; then
//! the file is opened with `immutable=1`. Such a connection takes no locks and ignores a WAL, so it is used only
//! while there is no `-wal` or an empty one, and what was read on it is thrown away if the file changed
//! meanwhile: a writer may open, write and close between two looks. One more state asks for that rung: where an
//! empty `-wal` and a `-shm` are left behind (Nix since 2.22) and this user may only read them, SQLite cannot
//! share the WAL index, and answers each look as if the database had changed.
//!
//! **The look.** In WAL mode the header of the WAL index moves with every commit, and is in memory; else
//! `PRAGMA data_version` does, on a connection that stays open. Both are blind on an immutable connection and to a
//! file that was replaced, so each look also compares the file's identity, and any change of that opens the file anew.
//! In WAL mode the identity is asked of the file itself where the system can hold one: see `Held`.
//!
//! The database file is never opened to be read but through SQLite: closing such a descriptor of one's own would drop
//! every POSIX lock that this process's connections hold on it.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{Stat, fstat};

use super::StoreError;
use crate::io::{files, wal_index};
use crate::limits;

/// Why the database gave no answer just now.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Somebody has it locked, or is replacing it: worth asking again in a few milliseconds.
    Busy,
    /// It is gone, corrupt, forbidden, or not Nix's: a person has to look.
    Unreadable(StoreError),
}

/// A state of the database: while the mark is the same, nothing was committed. Marks of different [`Database`]s
/// cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    file: FileId,
    /// Which opening of the file this is, counted: versions of different connections say nothing to each other.
    opening: u64,
    version: Version,
}

/// What moves with each commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// Nothing: while an immutable connection is of use, the file does not change.
    Immutable,
    /// The header of the WAL index.
    Index(wal_index::Header),
    /// `PRAGMA data_version`.
    Counted(i64),
}

impl Mark {
    /// Whether both marks are of one file, by device and inode. An inode's number may be used again.
    pub(super) fn same_file(&self, other: &Self) -> bool {
        self.file == other.file
    }

    /// Whether both marks come from one connection.
    pub(super) fn same_opening(&self, other: &Self) -> bool {
        self.opening == other.opening
    }
}

/// The database, opened when needed and again when its file changes.
pub(super) struct Database {
    path: PathBuf,
    /// `<path>-wal`.
    wal: PathBuf,
    /// `<path>-journal`.
    journal: PathBuf,
    /// Boxed, since each use takes it out and puts it back.
    link: Option<Box<Link>>,
    openings: u64,
}

/// An open connection and what the file was when it was opened.
struct Link {
    connection: Connection,
    immutable: bool,
    /// It is in WAL mode, and stays so while it is open: its lock on the file keeps others from changing that.
    has_wal: bool,
    identity: Identity,
    opening: u64,
    /// It works, but another rung would be better and may be free at the next use.
    provisional: bool,
    /// What says that the identity is still the same.
    held: Option<Held>,
    /// When it was last tried to hold on to them.
    tried: Option<Instant>,
}

impl Link {
    /// Whether the names still stand for the files that were opened, as far as that shows without looking at them.
    fn stands(&self) -> bool {
        self.held.as_ref().is_some_and(Held::stands)
    }

    /// The files by their names are what was opened: they are held on to where that will be of use.
    fn hold(&mut self, path: &Path, wal: &Path) {
        if !self.has_wal || self.provisional {
            return;
        }
        let now = Instant::now();
        let is_due = self.tried.is_none_or(|tried| now - tried >= limits::DATABASE_BY_NAME);
        self.held = match self.held.take().filter(Held::unchanged) {
            // Looked up by name just now, which is all that it lacked.
            Some(held) => Some(Held { named: now, ..held }),
            // Some files never can be, and one just written to not yet: that is not tried at each look.
            None if is_due => {
                self.tried = Some(now);
                Held::new(path, wal, &self.identity)
            }
            None => None,
        };
    }

    /// Costs no call of the system in WAL mode.
    fn version(&self) -> rusqlite::Result<Version> {
        if self.immutable {
            return Ok(Version::Immutable);
        }
        let index = if self.has_wal { wal_index::header(&self.connection) } else { None };
        index.map_or_else(
            || data_version(&self.connection).map(Version::Counted),
            |header| Ok(Version::Index(header)),
        )
    }
}

impl Database {
    /// The database at `path`. Nothing is opened yet.
    pub(super) fn new(path: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut name = OsString::from(path);
            name.push(suffix);
            PathBuf::from(name)
        };
        let (wal, journal) = (beside("-wal"), beside("-journal"));
        Self { path: path.to_owned(), wal, journal, link: None, openings: 0 }
    }

    /// Says which state the database is in: a few microseconds while its file stays the same.
    pub(super) fn look(&mut self) -> Result<Mark, Trouble> {
        let link = self.link()?;
        let (file, opening) = (link.identity.file, link.opening);
        match link.version() {
            Ok(version) => Ok(Mark { file, opening, version }),
            Err(error) => Err(self.fault(error)),
        }
    }

    /// Reads through `query` in one transaction, so that what it reads belongs together. The transaction ends
    /// with it: one held open would keep writers from checkpointing.
    pub(super) fn read<T>(
        &mut self,
        mut query: impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Trouble> {
        let link = self.link()?;
        let (immutable, identity) = (link.immutable, link.identity);
        let result = link.connection.unchecked_transaction().and_then(|transaction| {
            let result = query(&transaction)?;
            transaction.finish()?;
            Ok(result)
        });
        if immutable && self.identity()? != identity {
            // Written to while it was read without locks: whatever came of it may be torn, errors too.
            self.link = None;
            return Err(Trouble::Busy);
        }
        result.map_err(|error| self.fault(error))
    }

    /// As [`Database::read`], for whoever may wait: a locked database is tried again for
    /// [`limits::DATABASE_PATIENCE`].
    pub(super) fn read_patiently<T>(
        &mut self,
        mut query: impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Trouble> {
        let begun = Instant::now();
        loop {
            match self.read(&mut query) {
                Err(Trouble::Busy) if begun.elapsed() < limits::DATABASE_PATIENCE => {
                    thread::sleep(limits::DATABASE_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    /// The rollback journal, if there is one with something in it: a transaction under way, or one whose writer died.
    pub(super) fn journal(&self) -> Option<&Path> {
        let has_content = fs::metadata(&self.journal).is_ok_and(|metadata| metadata.size() > 0);
        has_content.then_some(&*self.journal)
    }

    /// Whether the connection in use is an immutable one.
    #[cfg(test)]
    pub(super) fn is_immutable(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.immutable)
    }

    /// Whether the files are held on to.
    #[cfg(test)]
    pub(super) fn is_held(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.held.is_some())
    }

    /// The connection to the file that is there now.
    fn link(&mut self) -> Result<&Link, Trouble> {
        if let Some(link) = self.link.take_if(|link| link.stands()) {
            return Ok(self.link.insert(link));
        }
        let identity = match self.identity() {
            Ok(identity) => identity,
            Err(trouble) => {
                self.link = None;
                return Err(trouble);
            }
        };
        let mut link = match self.link.take() {
            Some(link) if link.identity == identity && !link.provisional => link,
            old => {
                drop(old);
                Box::new(self.open(identity)?)
            }
        };
        link.hold(&self.path, &self.wal);
        Ok(self.link.insert(link))
    }

    fn open(&mut self, identity: Identity) -> Result<Link, Trouble> {
        self.openings += 1;
        match self.open_plain(identity) {
            Err(Trouble::Unreadable(StoreError::Database { source, .. })) if needs_immutable(&source) => {
                self.open_immutable(identity)
            }
            Ok(link) if link.identity.wal == Wal::Empty && !shares_wal_index(&link.connection) => {
                match self.open_immutable(link.identity) {
                    Ok(immutable) => Ok(immutable),
                    Err(trouble) => Ok(Link { provisional: matches!(trouble, Trouble::Busy), ..link }),
                }
            }
            other => other,
        }
    }

    fn open_plain(&self, before: Identity) -> Result<Link, Trouble> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(Duration::ZERO)?;
            keep_plans(&connection)?;
            data_version(&connection)?;
            let has_wal = connection.pragma_query_value(None, "journal_mode", |row| {
                Ok(row.get_ref(0)?.as_str()?.eq_ignore_ascii_case("wal"))
            })?;
            Ok((connection, has_wal))
        };
        let (connection, has_wal) = open().map_err(|error| self.trouble(error))?;
        // Taken again, since opening makes the `-wal` where this user may; were it another file by now, the
        // connection would be taken for that one's.
        let identity = self.identity()?;
        if identity.file != before.file {
            return Err(Trouble::Busy);
        }
        Ok(Link {
            connection,
            immutable: false,
            has_wal,
            identity,
            opening: self.openings,
            provisional: false,
            held: None,
            tried: None,
        })
    }

    fn open_immutable(&self, before: Identity) -> Result<Link, Trouble> {
        // A journal with content is a transaction to be rolled back, by a writer. Without locks and without
        // that, what is in the file is not a database.
        if before.wal == Wal::Frames || self.journal().is_some() || !is_quiet(before.modified) {
            return Err(Trouble::Busy);
        }
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(immutable_uri(&self.path), flags)
            .and_then(|connection| keep_plans(&connection).map(|()| connection))
            .map_err(|error| self.trouble(error))?;
        if self.identity()? != before {
            return Err(Trouble::Busy);
        }
        Ok(Link {
            connection,
            immutable: true,
            has_wal: false,
            identity: before,
            opening: self.openings,
            provisional: false,
            held: None,
            tried: None,
        })
    }

    fn identity(&self) -> Result<Identity, Trouble> {
        Identity::read(&self.path, &self.wal).map_err(|source| {
            Trouble::Unreadable(match source.kind() {
                io::ErrorKind::NotFound => StoreError::NoDatabase { path: self.path.clone() },
                io::ErrorKind::InvalidInput => StoreError::NotAFile { path: self.path.clone() },
                _ => StoreError::File { path: self.path.clone(), source },
            })
        })
    }

    /// What an error on the open connection means. After any but a lock, the next use opens the file anew.
    fn fault(&mut self, error: rusqlite::Error) -> Trouble {
        let trouble = self.trouble(error);
        if let Trouble::Unreadable(_) = trouble {
            self.link = None;
        }
        trouble
    }

    fn trouble(&self, error: rusqlite::Error) -> Trouble {
        match error.sqlite_error_code() {
            // The locking protocol's failure is a race for the WAL index that somebody else keeps winning.
            Some(
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed,
            ) => Trouble::Busy,
            _ => Trouble::Unreadable(StoreError::Database { path: self.path.clone(), source: error }),
        }
    }
}

/// The database and its log, held on to: asked what they are by descriptor, which takes a third of the time that their
/// names take to be looked up. A look is made in each turn of a worker, and was an eighth of what a narinfo costs.
///
/// What a name stands for changes with the file: one that is renamed, or that another is renamed over, or that is
/// removed, has another number of links or another time of change. What the file cannot tell is that a folder above
/// was renamed, or a file system mounted there: for that, the names are looked up every
/// [`limits::DATABASE_BY_NAME`]. Symbolic links are never held on to.
struct Held {
    file: File,
    was: Stat,
    wal: File,
    wal_was: Stat,
    /// When the names were last looked up.
    named: Instant,
}

impl Held {
    /// Holds on to the files, if they are those of `identity`, and the database was left alone for so long that its next
    /// change must show in its times.
    fn new(path: &Path, wal: &Path, identity: &Identity) -> Option<Self> {
        let (file, wal) = (files::hold(path).ok()?, files::hold(wal).ok()?);
        // Before what is compared with the identity: a change between the two then shows at the next look.
        let (was, wal_was) = (fstat(&file).ok()?, fstat(&wal).ok()?);
        let (metadata, wal_metadata) = (file.metadata().ok()?, wal.metadata().ok()?);
        let is_it = Identity::of(&metadata, Some(&wal_metadata)) == *identity && was.st_nlink > 0;
        let is_quiet = is_quiet((metadata.ctime(), metadata.ctime_nsec()));
        (is_it && is_quiet).then(|| Self { file, was, wal, wal_was, named: Instant::now() })
    }

    fn stands(&self) -> bool {
        self.named.elapsed() < limits::DATABASE_BY_NAME && self.unchanged()
    }

    fn unchanged(&self) -> bool {
        fstat(&self.file).is_ok_and(|now| is_same_file(&now, &self.was))
            && fstat(&self.wal).is_ok_and(|now| is_same_log(&now, &self.wal_was))
    }
}

/// Whether all of the database file is as it was that changes with any change of its name or its contents.
fn is_same_file(now: &Stat, was: &Stat) -> bool {
    now.st_nlink == was.st_nlink
        && now.st_size == was.st_size
        && (now.st_mtime, now.st_mtime_nsec) == (was.st_mtime, was.st_mtime_nsec)
        && (now.st_ctime, now.st_ctime_nsec) == (was.st_ctime, was.st_ctime_nsec)
}

/// Whether the log is there as it was, and as empty; what it holds, the WAL index says.
fn is_same_log(now: &Stat, was: &Stat) -> bool {
    now.st_nlink == was.st_nlink && (now.st_size == 0) == (was.st_size == 0)
}

/// Whether a plain open failed for want of a `-wal` and `-shm` that this user may not make.
fn needs_immutable(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen))
}

/// Has a statement that was prepared once stay as it is. Else SQLite plans some anew for each value that is bound, in
/// case its statistics advise another way: a tenth of what a path costs that is asked for the first time.
fn keep_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

/// Without a share in the WAL index, SQLite cannot rule out a change, and the version moves at each look.
fn shares_wal_index(connection: &Connection) -> bool {
    match (data_version(connection), data_version(connection)) {
        (Ok(first), Ok(second)) => first == second,
        _ => true,
    }
}

fn immutable_uri(path: &Path) -> OsString {
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(char::from(byte)),
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    uri.into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// What tells one state of the file from another, as far as the file system knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    file: FileId,
    size: u64,
    /// In seconds since 1970, and nanoseconds.
    modified: (i64, i64),
    wal: Wal,
    /// A log that was removed and made anew is not the one that an open connection reads.
    wal_file: Option<FileId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wal {
    Absent,
    Empty,
    Frames,
}

impl Identity {
    fn read(path: &Path, wal: &Path) -> io::Result<Self> {
        let wal = fs::metadata(wal).ok();
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            // To open a fifo would wait for whoever writes to it.
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        Ok(Self::of(&metadata, wal.as_ref()))
    }

    fn of(metadata: &Metadata, wal: Option<&Metadata>) -> Self {
        Self {
            file: FileId::of(metadata),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            wal: Wal::of(wal),
            wal_file: wal.map(FileId::of),
        }
    }
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Wal {
    fn of(metadata: Option<&Metadata>) -> Self {
        match metadata.map(Metadata::size) {
            None => Self::Absent,
            Some(0) => Self::Empty,
            Some(_) => Self::Frames,
        }
    }
}

/// Whether a file's time, in seconds and nanoseconds since 1970, is so long ago that the next change must show in it.
fn is_quiet((seconds, nanoseconds): (i64, i64)) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
    let then = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    now.abs_diff(then) >= limits::DATABASE_QUIET.as_nanos()
}
