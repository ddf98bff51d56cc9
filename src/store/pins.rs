//! Pins: roots with names that a person gives, so that a path and all that it refers to is kept until it is unpinned.
//!
//! Each is a symlink in a folder below Nix's `gcroots`, which the collector reads itself. No server takes part.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use super::database::{Database, Trouble};
use super::roots::Roots;
use super::{Settings, StoreError, rows};
use crate::formats::store_path::{StorePath, StorePathError};
use crate::limits;

/// Where in the folder of roots the pins are.
const PINS: &str = "pins";

/// The pins of a store.
pub struct Pins {
    settings: Settings,
    folder: PathBuf,
}

/// A pin as it stands in its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Its name.
    pub name: String,
    /// What it leads to: a full store path, unless somebody put something else there.
    pub target: PathBuf,
    /// Whether that is a valid path of the store.
    pub is_valid: bool,
}

/// Why a pin cannot be made, removed or listed.
#[derive(Debug, Error)]
pub enum PinError {
    /// The name cannot be a pin's.
    #[error(
        "a pin cannot be called {0:?}: 1 to {max} letters, digits and “+-._?=”, the first neither a dot nor a dash",
        max = limits::PIN_NAME_MAX
    )]
    Name(String),
    /// What was given is not in the store, nor leads there.
    #[error("{} is not in the store {store}, nor does it lead there", .given.display())]
    Outside {
        /// As it was given.
        given: PathBuf,
        /// The store directory.
        store: String,
    },
    /// It is in the store, and is not a store path.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    /// What was given cannot be looked at.
    #[error("cannot look at {}", .given.display())]
    Given {
        /// As it was given.
        given: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is not valid.
    #[error("{0} is not a valid path of this store: build it or copy it here first")]
    NotValid(String),
    /// There is no such pin.
    #[error("there is no pin called {0}: `harmonia pins` lists those that are there")]
    Absent(String),
    /// The folder of the pins cannot be used.
    #[error("cannot use {}: run this as a user who may write there, or set roots_dir", .path.display())]
    Folder {
        /// The folder or the link.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database gave no answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database is locked.
    #[error("the Nix database is locked; try again")]
    Locked,
}

impl Pins {
    /// The pins below `roots`, of the store of `settings`. Nothing is opened yet.
    pub fn new(settings: Settings, roots: &Path) -> Self {
        Self { settings, folder: roots.join(PINS) }
    }

    /// Pins the store path that `given` is, is in, or leads to. Gives it, and what the name stood for before.
    ///
    /// # Errors
    /// Where that is no valid path, or the link cannot be made.
    pub fn pin(&self, name: &str, given: &Path) -> Result<(StorePath, Option<PathBuf>), PinError> {
        let link = self.link(name)?;
        let path = self.resolve(given)?;
        // A collection that has read its roots already would take the path in spite of the link. So a temporary root
        // first, which a running collector hears of; then the link; and what is valid after that stays so.
        let mut roots = Roots::new(&self.settings, Arc::default());
        let _lease = roots.take(path.clone(), Instant::now());
        let full = self.settings.store_dir.display(&path).to_string();
        if !self.is_valid(&path)? {
            return Err(PinError::NotValid(full));
        }
        let before = fs::read_link(&link).ok();
        let folder = |source| PinError::Folder { path: link.clone(), source };
        fs::create_dir_all(&self.folder).map_err(folder)?;
        // A name that stood for another path never stands for none in between.
        let making = self.folder.join(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&making);
        symlink(&full, &making).and_then(|()| fs::rename(&making, &link)).map_err(folder)?;
        if !self.is_valid(&path)? {
            let _ = fs::remove_file(&link);
            return Err(PinError::NotValid(full));
        }
        Ok((path, before))
    }

    /// Removes a pin, and gives what it led to.
    ///
    /// # Errors
    /// Where there is none of this name, or the link cannot be removed.
    pub fn unpin(&self, name: &str) -> Result<PathBuf, PinError> {
        let link = self.link(name)?;
        let target = match fs::read_link(&link) {
            Ok(target) => target,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(PinError::Absent(name.to_owned()));
            }
            Err(source) => return Err(PinError::Folder { path: link, source }),
        };
        fs::remove_file(&link).map_err(|source| PinError::Folder { path: link, source })?;
        Ok(target)
    }

    /// Every pin, by name.
    ///
    /// # Errors
    /// Where their folder cannot be read, or the database gives no answer.
    pub fn list(&self) -> Result<Vec<Pin>, PinError> {
        let folder = |source| PinError::Folder { path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(folder(source)),
        };
        let mut pins = Vec::new();
        for entry in entries {
            let entry = entry.map_err(folder)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let (Ok(target), true) = (fs::read_link(entry.path()), is_name(&name)) else { continue };
            let path = target.to_str().and_then(|target| self.settings.store_dir.parse(target).ok());
            let is_valid = path.is_some_and(|path| self.is_valid(&path).unwrap_or(false));
            pins.push(Pin { name, target, is_valid });
        }
        pins.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(pins)
    }

    fn link(&self, name: &str) -> Result<PathBuf, PinError> {
        if is_name(name) { Ok(self.folder.join(name)) } else { Err(PinError::Name(name.to_owned())) }
    }

    /// The store path that `given` is in, or that it leads to by symlinks, as `result` does.
    fn resolve(&self, given: &Path) -> Result<StorePath, PinError> {
        let fault = |source| PinError::Given { given: given.to_owned(), source };
        let mut path = std::path::absolute(given).map_err(fault)?;
        for _ in 0..limits::SERVE_LINKS {
            if let Some(found) = self.within(&path) {
                return found;
            }
            // In a chroot store what a link leads to is not where it says, so links are followed one by one.
            match fs::read_link(&path) {
                Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
                Err(error) if error.kind() == ErrorKind::InvalidInput => break,
                Err(source) => return Err(fault(source)),
            }
        }
        // A link may be part-way, as in /run/current-system/sw.
        let path = path.canonicalize().map_err(fault)?;
        let outside =
            || PinError::Outside { given: given.to_owned(), store: self.settings.store_dir.to_string() };
        self.within(&path).ok_or_else(outside)?
    }

    /// The store path that `path` lies in by its text, by the name of the store or by where it really is.
    fn within(&self, path: &Path) -> Option<Result<StorePath, PinError>> {
        let stores = [Path::new(self.settings.store_dir.as_str()), &self.settings.real_store];
        let inner = stores.iter().find_map(|store| path.strip_prefix(store).ok())?;
        let basename = inner.components().next()?.as_os_str().to_string_lossy().into_owned();
        Some(StorePath::from_basename(&basename).map_err(PinError::from))
    }

    fn is_valid(&self, path: &StorePath) -> Result<bool, PinError> {
        let (dir, hash) = (&self.settings.store_dir, path.hash());
        let row = Database::new(&self.settings.database)
            .read_patiently(|connection| rows::by_hash(connection, dir, &hash));
        match row {
            Ok(row) => Ok(row.is_some_and(|row| row.path == dir.display(path).to_string())),
            Err(Trouble::Busy) => Err(PinError::Locked),
            Err(Trouble::Unreadable(error)) => Err(error.into()),
        }
    }
}

/// Whether a pin can be called this: as store paths are, so that it is a file's name everywhere and no option.
fn is_name(name: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
    (1..=limits::PIN_NAME_MAX).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(is_known)
}
