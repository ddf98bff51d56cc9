//! What the database says of valid paths, for commands that go through many of them.

use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;

use rusqlite::Connection;

use super::database::{Database, Trouble};
use super::rows;
use super::{Settings, StoreError};
use crate::formats::hash::Sha256;
use crate::formats::store_path::{StoreDir, StorePath};
use crate::limits;

/// A valid path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Valid {
    /// The path.
    pub path: StorePath,
    /// The hash of its NAR.
    pub nar_hash: Sha256,
    /// The NAR's size in bytes; 0 where the database has none.
    pub nar_size: u64,
    /// When it was registered, in seconds since 1970.
    pub registered: i64,
}

/// The database, asked by a command.
pub struct Inquiry {
    store_dir: StoreDir,
    settings: Settings,
    database: Database,
}

impl Inquiry {
    /// Asks the database of `settings`. Nothing is opened yet.
    pub fn new(settings: Settings) -> Self {
        let database = Database::new(&settings.database);
        Self { store_dir: settings.store_dir.clone(), settings, database }
    }

    /// Every valid path, the one registered last at the end. Rows that are malformed are left out: no server serves
    /// them.
    ///
    /// # Errors
    /// Where the database cannot be read, or is locked for too long.
    pub fn all(&mut self) -> Result<Vec<Valid>, StoreError> {
        let (mut found, mut last) = (Vec::new(), 0);
        loop {
            // Piece by piece: where the journal is no WAL, no writer can commit while one is read.
            let rows = self.read(|connection, _| rows::contents(connection, last, limits::INDEX_SLICE))?;
            let is_last = rows.len() < limits::INDEX_SLICE;
            for row in rows {
                last = row.id;
                found.extend(self.understand(&row));
            }
            if is_last {
                return Ok(found);
            }
        }
    }

    /// The highest row's number; 0 where there is none.
    ///
    /// # Errors
    /// As [`Inquiry::all`].
    pub fn newest(&mut self) -> Result<i64, StoreError> {
        self.read(|connection, _| rows::newest(connection))
    }

    /// Rows above `last`, some at a time, each with its number; `None` for one that is malformed.
    ///
    /// # Errors
    /// As [`Inquiry::all`].
    pub fn above(&mut self, last: i64) -> Result<Vec<(i64, Option<Valid>)>, StoreError> {
        let rows = self.read(|connection, _| rows::contents(connection, last, limits::AHEAD_ROWS))?;
        Ok(rows.into_iter().map(|row| (row.id, self.understand(&row))).collect())
    }

    /// A path, if it is valid.
    ///
    /// # Errors
    /// As [`Inquiry::all`].
    pub fn one(&mut self, path: &StorePath) -> Result<Option<Valid>, StoreError> {
        let row = self.read(|connection, dir| rows::by_hash(connection, dir, &path.hash()))?;
        Ok(row.and_then(|row| self.understand(&row)).filter(|valid| valid.path == *path))
    }

    /// A path with everything it refers to, and what that refers to.
    ///
    /// # Errors
    /// As [`Inquiry::all`].
    pub fn closure(&mut self, path: &StorePath) -> Result<Vec<Valid>, StoreError> {
        let (mut found, mut seen, mut open) = (Vec::new(), BTreeSet::new(), vec![path.clone()]);
        while let Some(path) = open.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let (row, references) = self.read(|connection, dir| {
                let row = rows::by_hash(connection, dir, &path.hash())?;
                let id = row.as_ref().map(|row| row.id);
                let references = id.map_or(Ok(Vec::new()), |id| rows::references(connection, id))?;
                Ok((row, references))
            })?;
            open.extend(references.iter().filter_map(|full| self.store_dir.parse(full).ok()));
            found.extend(row.and_then(|row| self.understand(&row)));
        }
        Ok(found)
    }

    fn understand(&self, row: &rows::Row) -> Option<Valid> {
        let (path, nar_hash) = row.identity(&self.store_dir).ok()?;
        let nar_size = row.known_size().unwrap_or(0);
        Some(Valid { path, nar_hash, nar_size, registered: row.registration_time })
    }

    /// A locked database is tried again for a while.
    fn read<T>(
        &mut self,
        query: impl Fn(&Connection, &StoreDir) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let Self { store_dir, settings, database } = self;
        let begun = Instant::now();
        loop {
            match database.read(|connection| query(connection, store_dir)) {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Unreadable(error)) => return Err(error),
                Err(Trouble::Busy) if begun.elapsed() < limits::DATABASE_PATIENCE => {
                    thread::sleep(limits::DATABASE_PAUSE);
                }
                Err(Trouble::Busy) => return Err(StoreError::Locked { path: settings.database.clone() }),
            }
        }
    }
}
