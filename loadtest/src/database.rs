//! Nix's database of a store below a folder: read, made for scale, and changed under load.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};
use sha2::{Digest as _, Sha256};

use crate::nar;
use crate::narinfo::{HASH_DIGITS, base32, hash_part};

/// Where store paths are said to be.
pub const STORE_DIR: &str = "/nix/store";
/// How long to wait for another writer.
const BUSY: Duration = Duration::from_secs(10);
/// References of a synthetic path, at most.
const REFERENCES: u64 = 3;
/// Nix's schema, version 10 (Nix 2.0 to today), as `src/libstore/schema.sql` has it.
const SCHEMA: &str = "
    create table if not exists ValidPaths (
        id integer primary key autoincrement not null, path text unique not null, hash text not null,
        registrationTime integer not null, deriver text, narSize integer, ultimate integer, sigs text, ca text);
    create table if not exists Refs (
        referrer integer not null, reference integer not null, primary key (referrer, reference),
        foreign key (referrer) references ValidPaths(id) on delete cascade,
        foreign key (reference) references ValidPaths(id) on delete restrict);
    create index if not exists IndexReferrer on Refs(referrer);
    create index if not exists IndexReference on Refs(reference);
    create trigger if not exists DeleteSelfRefs before delete on ValidPaths
        begin delete from Refs where referrer = old.id and reference = old.id; end;
    create table if not exists DerivationOutputs (
        drv integer not null, id text not null, path text not null, primary key (drv, id),
        foreign key (drv) references ValidPaths(id) on delete cascade);
    create index if not exists IndexDerivationOutputs on DerivationOutputs(path);";
const SCHEMA_VERSION: &str = "10";

/// What went wrong with a store's database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("{path}: {source}; is it the folder that holds a store's nix/ folder?")]
    Sql { path: PathBuf, source: rusqlite::Error },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// The database of the store below `folder`.
pub fn database_of(folder: &Path) -> PathBuf {
    folder.join("nix/var/nix/db/db.sqlite")
}

fn open(folder: &Path, flags: OpenFlags) -> Result<(Connection, PathBuf), DatabaseError> {
    let path = database_of(folder);
    let connection = Connection::open_with_flags(&path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let connection = connection.and_then(|connection| {
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(connection)
    });
    match connection {
        Ok(connection) => Ok((connection, path)),
        Err(source) => Err(DatabaseError::Sql { path, source }),
    }
}

/// The hash parts of all valid paths.
pub fn hash_parts(folder: &Path) -> Result<Vec<String>, DatabaseError> {
    let (connection, path) = open(folder, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let read = || {
        let mut statement = connection.prepare("select path from ValidPaths")?;
        let rows = statement.query_map([], |row| {
            let path: String = row.get(0)?;
            Ok(hash_part(&path).map(str::to_owned))
        })?;
        rows.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()
    };
    read().map_err(|source| DatabaseError::Sql { path, source })
}

/// Adds `count` synthetic paths: rows alone, without files, each with references to earlier ones.
pub fn add_synthetic(folder: &Path, count: u64) -> Result<(), DatabaseError> {
    let database = database_of(folder);
    let state = database.parent().unwrap_or(folder);
    let make = || {
        fs::create_dir_all(folder.join("nix/store"))?;
        fs::create_dir_all(state)?;
        let schema = state.join("schema");
        if schema.exists() { Ok(()) } else { fs::write(schema, SCHEMA_VERSION) }
    };
    make().map_err(|source| DatabaseError::File { path: state.to_owned(), source })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let (mut connection, path) = open(folder, flags)?;
    let mut add = || {
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.execute_batch(SCHEMA)?;
        let transaction = connection.transaction()?;
        insert_synthetic(&transaction, count)?;
        transaction.commit()?;
        connection.execute_batch("pragma wal_checkpoint(truncate)")
    };
    add().map_err(|source| DatabaseError::Sql { path, source })
}

fn insert_synthetic(connection: &Connection, count: u64) -> rusqlite::Result<()> {
    let mut row = connection.prepare(
        "insert into ValidPaths (path, hash, registrationTime, narSize, ultimate) values (?, ?, ?, ?, 1)",
    )?;
    let mut reference = connection.prepare("insert into Refs (referrer, reference) values (?, ?)")?;
    let before: i64 = connection.query_row("select count(*) from ValidPaths", [], |row| row.get(0))?;
    let before = before.unsigned_abs();
    let mut first = None;
    for index in before..before + count {
        let digest: [u8; 32] = Sha256::digest(format!("loadtest synthetic {index}")).into();
        let path = format!("{STORE_DIR}/{}-synthetic-{index:07}", base32(&digest[..HASH_DIGITS * 5 / 8]));
        row.execute(params![
            path,
            format!("sha256:{}", hex(&digest)),
            1 + index as i64,
            (120 + (index % 4096) * 8) as i64
        ])?;
        let id = connection.last_insert_rowid();
        let first = *first.get_or_insert(id);
        // References from far and near, as a package set has them.
        let mut last = 0;
        for back in (0..REFERENCES).map(|n| 1 + index.wrapping_mul(0x9e37 + n) % (1 << (4 * n + 4))) {
            let other = id - back as i64;
            if other >= first && other != last {
                reference.execute(params![id, other]).or_else(ignore_twice)?;
                last = other;
            }
        }
    }
    Ok(())
}

fn ignore_twice(error: rusqlite::Error) -> rusqlite::Result<usize> {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => Ok(0),
        _ => Err(error),
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A few small paths that come and go in a store.
pub struct Churner {
    connection: Connection,
    database: PathBuf,
    paths: Vec<ChurnPath>,
}

struct ChurnPath {
    hash: String,
    /// Within the store directory.
    name: String,
    real: PathBuf,
    sha256: [u8; 32],
    size: u64,
}

impl Churner {
    /// Makes the files; nothing is registered yet.
    pub fn open(folder: &Path, count: usize) -> Result<Self, DatabaseError> {
        let (connection, database) = open(folder, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let paths = (0..count).map(|index| churn_path(folder, index)).collect::<Result<_, _>>()?;
        let mut churner = Self { connection, database, paths };
        // What an interrupted run has left.
        churner.unregister_all()?;
        Ok(churner)
    }

    /// Hash parts, by index.
    pub fn hashes(&self) -> Vec<String> {
        self.paths.iter().map(|path| path.hash.clone()).collect()
    }

    /// Makes a path valid.
    pub fn register(&mut self, index: usize) -> Result<(), DatabaseError> {
        let path = &self.paths[index];
        let row = params![
            format!("{STORE_DIR}/{}", path.name),
            format!("sha256:{}", hex(&path.sha256)),
            path.size as i64
        ];
        let sql = "insert into ValidPaths (path, hash, registrationTime, narSize) values (?1, ?2, 1, ?3)";
        self.execute(sql, row)
    }

    /// Makes it invalid.
    pub fn delete(&mut self, index: usize) -> Result<(), DatabaseError> {
        let path = format!("{STORE_DIR}/{}", self.paths[index].name);
        self.execute("delete from ValidPaths where path = ?1", params![path])
    }

    /// Leaves the store as it was found.
    pub fn clean(&mut self) -> Result<(), DatabaseError> {
        self.unregister_all()?;
        for path in &self.paths {
            fs::remove_file(&path.real)
                .map_err(|source| DatabaseError::File { path: path.real.clone(), source })?;
        }
        Ok(())
    }

    fn unregister_all(&mut self) -> Result<(), DatabaseError> {
        (0..self.paths.len()).try_for_each(|index| self.delete(index))
    }

    fn execute(&self, sql: &str, row: &[&dyn rusqlite::ToSql]) -> Result<(), DatabaseError> {
        let executed = self.connection.execute(sql, row).map(|_| ());
        executed.map_err(|source| DatabaseError::Sql { path: self.database.clone(), source })
    }
}

fn churn_path(folder: &Path, index: usize) -> Result<ChurnPath, DatabaseError> {
    let digest = Sha256::digest(format!("loadtest churn {index}"));
    let hash = base32(&digest[..HASH_DIGITS * 5 / 8]);
    let name = format!("{hash}-loadtest-churn-{index}");
    let real = folder.join("nix/store").join(&name);
    let made = || {
        fs::write(&real, format!("comes and goes: {index}\n"))?;
        nar::hash(&real)
    };
    match made() {
        Ok((sha256, size)) => Ok(ChurnPath { hash, name, real, sha256, size }),
        Err(source) => Err(DatabaseError::File { path: real, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synthetic_paths_are_valid_ones_and_can_be_added_to() {
        let folder = tempfile::tempdir().unwrap();
        add_synthetic(folder.path(), 300).unwrap();
        add_synthetic(folder.path(), 10).unwrap();
        let mut hashes = hash_parts(folder.path()).unwrap();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), 310);
        let (connection, _) = open(folder.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let references: i64 =
            connection.query_row("select count(*) from Refs", [], |row| row.get(0)).unwrap();
        assert!(references > 300, "{references}");
        let broken: Option<String> =
            connection.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(broken.as_deref(), Some("ok"));
    }

    #[test]
    fn paths_come_and_go_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        add_synthetic(folder.path(), 3).unwrap();
        let mut churner = Churner::open(folder.path(), 2).unwrap();
        churner.register(1).unwrap();
        assert!(hash_parts(folder.path()).unwrap().contains(&churner.hashes()[1]));
        churner.delete(1).unwrap();
        churner.register(0).unwrap();
        churner.clean().unwrap();
        assert_eq!(hash_parts(folder.path()).unwrap().len(), 3);
        assert_eq!(fs::read_dir(folder.path().join("nix/store")).unwrap().count(), 0);
    }
}
