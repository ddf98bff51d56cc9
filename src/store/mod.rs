//! The local Nix store: database, index of valid paths, freshness, temporary roots, build logs.
//!
//! Metadata that clients wait for is read by one actor ([`actor`]); what people look at, by another ([`browse`]). A
//! worker holds a [`view`]: a snapshot of which paths are valid, a bounded cache of rendered narinfos, and a connection
//! on which it asks nothing but whether the database has changed.

pub mod actor;
pub mod add;
pub mod browse;
pub mod database;
pub mod debuginfo;
pub mod files;
pub mod index;
pub mod keep;
pub mod logs;
pub mod named;
pub mod pins;
pub mod quarantine;
mod realisations;
mod rendered;
pub mod roots;
pub mod rows;
pub mod serve;
pub mod served;
pub mod valid;
pub mod view;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::formats::store_path::StoreDir;

/// Where the store's parts are. Plain paths; nothing is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The store directory that paths are named by, such as `/nix/store`.
    pub store_dir: StoreDir,
    /// Where the store directory's files really are; differs from `store_dir` in a chroot store.
    pub real_store: PathBuf,
    /// Nix's database, `db.sqlite`.
    pub database: PathBuf,
    /// Nix's state, `<…>/var/nix`: locks, temporary roots, the collector's socket.
    pub state_dir: PathBuf,
    /// Nix's build logs, `<…>/var/log/nix`.
    pub log_dir: PathBuf,
    /// The Nix daemon's socket, for temporary roots that this process may not make itself.
    pub daemon_socket: PathBuf,
}

/// Why the store cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no database file.
    #[error("no Nix database at {0}: set nix_db_path, or make a store to try with `harmonia demo`", .path.display())]
    NoDatabase {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// What is in the database's place is no file.
    #[error("the Nix database {0} is not a file: set nix_db_path to db.sqlite itself", .path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// The database answered with an error.
    #[error("the Nix database {0} cannot be read", .path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The database was locked all the time that it was waited for.
    #[error("the Nix database {0} is locked; or this user may not read the -wal and -shm beside it", .path.display())]
    Locked {
        /// The database file.
        path: PathBuf,
    },
    /// The file is a database, but not Nix's.
    #[error("{0} is not a Nix database: it has no table {table}", .path.display())]
    NotNix {
        /// The database file.
        path: PathBuf,
        /// What was looked for in it.
        table: &'static str,
    },
    /// A file or folder of the store could not be used.
    #[error("cannot use {0}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
