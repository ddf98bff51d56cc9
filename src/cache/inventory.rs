//! What lies where, in SQLite. All of it but the manifests could be made again from the volumes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};

use super::error::failed;
use super::{CacheError, Key, ManifestKey};
use crate::limits::CACHE_MANIFESTS;

/// The database file.
pub(super) const NAME: &str = "inventory.sqlite";

/// The number of [`SCHEMA`], kept as the file's `user_version`.
const VERSION: i32 = 1;

/// `indexed` is up to which byte of the volume its frames are in the table.
const SCHEMA: &str = "
create table volumes (
    number  integer primary key,
    indexed integer not null
) strict;
create table frames (
    key    blob primary key,
    volume integer not null,
    offset integer not null,
    len    integer not null
) strict, without rowid;
create index frames_by_volume on frames(volume);
create table manifests (
    id   integer primary key,
    key  blob unique not null,
    body blob not null
) strict;
";

/// How long somebody who looks at the file with other means is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The volume's number.
    pub(super) volume: u64,
    /// Where its bytes begin in the volume.
    pub(super) offset: u64,
    /// How many bytes it has.
    pub(super) len: u32,
}

/// What is to be written in one transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) frames: Vec<(Key, Place)>,
    pub(super) manifests: HashMap<ManifestKey, Bytes>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.manifests.is_empty()
    }
}

/// A connection to the database file.
pub(super) struct Inventory {
    connection: Connection,
    path: PathBuf,
}

impl Inventory {
    /// Opens the inventory in `folder`, or makes one. Also says whether it is a new one, which knows of no volume:
    /// so is one in place of a file that is damaged or of another version.
    pub(super) fn open(folder: &Path) -> Result<(Self, bool), CacheError> {
        let mut inventory = Self::connect(folder)?;
        match inventory.version() {
            Ok(VERSION) => return Ok((inventory, false)),
            Ok(0) => {}
            Err(error) if !is_damage(&error) => return Err(inventory.refused(error)),
            other => {
                let path = inventory.path.clone();
                drop(inventory);
                if let Err(error) = other {
                    tracing::warn!("{}: {error}; it is made anew from the volumes", path.display());
                }
                remove(&path)?;
                inventory = Self::connect(folder)?;
            }
        }
        inventory.create().map_err(|error| inventory.refused(error))?;
        Ok((inventory, true))
    }

    /// A further connection to an inventory that is open.
    pub(super) fn connect(folder: &Path) -> Result<Self, CacheError> {
        let path = folder.join(NAME);
        match Connection::open(&path) {
            Ok(connection) => Ok(Self { connection, path }),
            Err(source) => Err(CacheError::Inventory { file: path, source }),
        }
    }

    /// Opens the inventory in `folder` to be read alone, beside whoever writes it; `None` where there is none that this
    /// version can read.
    pub(super) fn open_to_read(folder: &Path) -> Result<Option<Self>, CacheError> {
        let path = folder.join(NAME);
        if !path.exists() {
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || {
            let connection = Connection::open_with_flags(&path, flags)?;
            connection.busy_timeout(BUSY)?;
            let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok((connection, version))
        };
        match open() {
            Ok((connection, version)) => Ok((version == VERSION).then_some(Self { connection, path })),
            Err(source) => Err(CacheError::Inventory { file: path, source }),
        }
    }

    /// The file was deleted, and another may be in its place by now: whose log SQLite would remove by its name when this
    /// connection is closed.
    pub(super) fn abandon(&self) {
        // It cannot fail for a connection that is open.
        let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }

    /// Sets the connection up and reads which version the file has; 0 where it is new.
    fn version(&self) -> rusqlite::Result<i32> {
        self.connection.busy_timeout(BUSY)?;
        // The write-ahead log is whole after a power failure even though not each commit is forced to the disk.
        self.connection.pragma_update(None, "journal_mode", "wal")?;
        self.connection.pragma_update(None, "synchronous", "normal")?;
        self.connection.pragma_query_value(None, "user_version", |row| row.get(0))
    }

    fn create(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()
    }

    /// The volumes and up to where each is known.
    pub(super) fn volumes(&self) -> Result<Vec<(u64, u64)>, CacheError> {
        self.ask(|connection| {
            let mut statement = connection.prepare("select number, indexed from volumes")?;
            statement.query_map([], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?.collect()
        })
    }

    /// Where a frame lies.
    pub(super) fn frame(&self, key: &Key) -> Result<Option<Place>, CacheError> {
        self.ask(|connection| {
            let sql = "select volume, offset, len from frames where key = ?1";
            let place = |row: &Row<'_>| {
                Ok(Place { volume: unsigned(row, 0)?, offset: unsigned(row, 1)?, len: row.get(2)? })
            };
            connection.prepare_cached(sql)?.query_row([key.as_bytes()], place).optional()
        })
    }

    /// A manifest.
    pub(super) fn manifest(&self, key: &ManifestKey) -> Result<Option<Bytes>, CacheError> {
        self.ask(|connection| {
            let mut statement = connection.prepare_cached("select body from manifests where key = ?1")?;
            let body: Option<Vec<u8>> = statement.query_row([key.as_bytes()], |row| row.get(0)).optional()?;
            Ok(body.map(Bytes::from))
        })
    }

    /// Calls `each` with every manifest.
    pub(super) fn each_manifest(&self, mut each: impl FnMut(&[u8])) -> Result<(), CacheError> {
        self.ask(|connection| {
            let mut statement = connection.prepare("select body from manifests")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                each(row.get_ref(0)?.as_blob()?);
            }
            Ok(())
        })
    }

    /// How many frames there are, and their bytes.
    pub(super) fn totals(&self) -> Result<(u64, u64), CacheError> {
        self.ask(|connection| {
            let sql = "select count(*), coalesce(sum(len), 0) from frames";
            connection.query_row(sql, [], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))
        })
    }

    /// Adds a volume with no frame, in place of one of the same number: which is known where it could not be taken out
    /// when its file was.
    pub(super) fn add_volume(&mut self, number: u64) -> Result<(), CacheError> {
        self.transact(|transaction| {
            transaction.execute("delete from frames where volume = ?1", [signed(number)])?;
            let sql = "insert or replace into volumes (number, indexed) values (?1, 0)";
            transaction.execute(sql, [signed(number)]).map(drop)
        })
    }

    /// Adds frames and manifests. All frames of the volume up to its byte `indexed` are in the table then.
    pub(super) fn commit(&mut self, batch: &Batch, indexed: Option<(u64, u64)>) -> Result<(), CacheError> {
        self.transact(|transaction| {
            for (key, place) in &batch.frames {
                insert(transaction, key, *place)?;
            }
            for (key, body) in &batch.manifests {
                let sql = "insert or replace into manifests (key, body) values (?1, ?2)";
                transaction.prepare_cached(sql)?.execute(params![key.as_bytes(), &**body])?;
            }
            if !batch.manifests.is_empty() {
                let sql = "delete from manifests where id <= (select max(id) from manifests) - ?1";
                transaction.prepare_cached(sql)?.execute([CACHE_MANIFESTS])?;
            }
            if let Some((volume, end)) = indexed {
                let sql = "update volumes set indexed = ?2 where number = ?1";
                transaction.prepare_cached(sql)?.execute([signed(volume), signed(end)])?;
            }
            Ok(())
        })
    }

    /// Takes a volume out with all its frames, but for those that lie elsewhere now: how many went.
    pub(super) fn evict(&mut self, volume: u64, moved: &[(Key, Place)]) -> Result<u64, CacheError> {
        self.transact(|transaction| {
            for (key, place) in moved {
                insert(transaction, key, *place)?;
            }
            let gone = transaction.execute("delete from frames where volume = ?1", [signed(volume)])?;
            transaction.execute("delete from volumes where number = ?1", [signed(volume)])?;
            Ok(gone as u64)
        })
    }

    /// Forgets a frame that is not where it should be.
    pub(super) fn forget(&self, key: &Key, place: Place) -> Result<(), CacheError> {
        self.ask(|connection| {
            let sql = "delete from frames where key = ?1 and volume = ?2 and offset = ?3";
            let at = params![key.as_bytes(), signed(place.volume), signed(place.offset)];
            connection.prepare_cached(sql)?.execute(at).map(drop)
        })
    }

    /// Forgets a manifest.
    pub(super) fn forget_manifest(&self, key: &ManifestKey) -> Result<(), CacheError> {
        self.ask(|connection| {
            let sql = "delete from manifests where key = ?1";
            connection.prepare_cached(sql)?.execute([key.as_bytes()]).map(drop)
        })
    }

    fn ask<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, CacheError> {
        query(&self.connection).map_err(|error| self.refused(error))
    }

    fn transact<T>(
        &mut self,
        write: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, CacheError> {
        let result = self.connection.transaction().and_then(|transaction| {
            let written = write(&transaction)?;
            transaction.commit()?;
            Ok(written)
        });
        result.map_err(|error| self.refused(error))
    }

    fn refused(&self, source: rusqlite::Error) -> CacheError {
        CacheError::Inventory { file: self.path.clone(), source }
    }
}

fn insert(connection: &Connection, key: &Key, place: Place) -> rusqlite::Result<()> {
    let sql = "insert or replace into frames (key, volume, offset, len) values (?1, ?2, ?3, ?4)";
    let row = params![key.as_bytes(), signed(place.volume), signed(place.offset), place.len];
    connection.prepare_cached(sql)?.execute(row).map(drop)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// Removes a database with what SQLite keeps beside it.
pub(super) fn remove(path: &Path) -> Result<(), CacheError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(Path::new(&name), "remove")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// SQLite's integers are signed. Numbers of volumes and places in files are far below 2^63.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}
