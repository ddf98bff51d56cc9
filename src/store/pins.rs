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
use super::named::{self, NamedError};
use super::roots::Roots;
use super::{Settings, StoreError, rows};
use crate::formats::store_path::{StorePath, is_name_byte};
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

/// A pin that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// What it leads to.
    pub path: StorePath,
    /// What the name stood for before.
    pub before: Option<PathBuf>,
    /// Whether a collection that was running while it was made is certain to spare the path, too.
    pub is_certain: bool,
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
    /// What was given names no store path.
    #[error(transparent)]
    Named(#[from] NamedError),
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

    /// Pins the store path that `given` is, is in, or leads to.
    ///
    /// # Errors
    /// Where that is no valid path, or the link cannot be made. What the name stood for before, it still does.
    pub fn pin(&self, name: &str, given: &Path) -> Result<Pinned, PinError> {
        self.link(name)?;
        let path = named::resolve(&self.settings, given)?;
        // A collection that has read its roots already would take the path in spite of the link. So a temporary root
        // first, which a running collector hears of; then the link; and what is valid after that stays so.
        let mut roots = Roots::new(&self.settings, Arc::default());
        let lease = roots.take(path.clone(), Instant::now());
        let before = self.link_to(name, &path, || self.is_valid(&path))?;
        Ok(Pinned { path, before, is_certain: lease.is_rooted() })
    }

    /// Makes the link to a path that `is_valid`, before and after; gives what it led to before.
    fn link_to(
        &self,
        name: &str,
        path: &StorePath,
        is_valid: impl Fn() -> Result<bool, PinError>,
    ) -> Result<Option<PathBuf>, PinError> {
        let full = self.settings.store_dir.display(path).to_string();
        let check = || if is_valid()? { Ok(()) } else { Err(PinError::NotValid(full.clone())) };
        check()?;
        let link = self.link(name)?;
        let failed = |source| PinError::Folder { path: link.clone(), source };
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let before = fs::read_link(&link).ok();
        self.replace(name, Path::new(&full)).map_err(failed)?;
        check().inspect_err(|_| {
            // Where even this fails, what is said is that it is not pinned; the list tells what it stands for.
            let _ = match &before {
                Some(before) => self.replace(name, before),
                None => fs::remove_file(&link),
            };
        })?;
        Ok(before)
    }

    /// Makes the link `name` lead to `target`. One that led elsewhere never leads nowhere in between.
    fn replace(&self, name: &str, target: &Path) -> io::Result<()> {
        self.sweep(name);
        let making = self.folder.join(format!(".{name}.{}", std::process::id()));
        symlink(target, &making)?;
        fs::rename(&making, self.folder.join(name)).inspect_err(|_| {
            // The next one of this name removes what cannot be removed now.
            let _ = fs::remove_file(&making);
        })
    }

    /// Removes what a process that was ended left half-made of this name: it would be a root that no list shows.
    fn sweep(&self, name: &str) {
        let is_half_made = |file: &str| {
            let number = file.strip_prefix('.').and_then(|file| file.strip_prefix(name)?.strip_prefix('.'));
            number.is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()))
        };
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(is_half_made) {
                let _ = fs::remove_file(entry.path());
            }
        }
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
        self.sweep(name);
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
            let is_valid = path.map_or(Ok(false), |path| self.is_valid(&path))?;
            pins.push(Pin { name, target, is_valid });
        }
        pins.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(pins)
    }

    fn link(&self, name: &str) -> Result<PathBuf, PinError> {
        if is_name(name) { Ok(self.folder.join(name)) } else { Err(PinError::Name(name.to_owned())) }
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
    (1..=limits::PIN_NAME_MAX).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(is_name_byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::store_path::StoreDir;
    use std::cell::Cell;

    fn pins(folder: &Path) -> Pins {
        let settings = Settings {
            store_dir: StoreDir::new("/nix/store").expect("it is one"),
            real_store: folder.join("store"),
            database: folder.join("db.sqlite"),
            state_dir: folder.join("state"),
            log_dir: folder.join("log"),
            daemon_socket: folder.join("daemon"),
        };
        Pins::new(settings, folder)
    }

    fn path(digit: &str) -> StorePath {
        StorePath::from_basename(&format!("{}-path", digit.repeat(32))).expect("it is one")
    }

    fn files(pins: &Pins) -> Vec<String> {
        let entries = fs::read_dir(&pins.folder).expect("it was made");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_pin_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let pins = pins(folder.path());
        let (one, other) = (path("1"), path("2"));
        // Collected between the two looks.
        let goes = || {
            let asked = Cell::new(0);
            move || Ok(asked.replace(asked.get() + 1) == 0)
        };
        let refused = pins.link_to("release", &one, goes()).expect_err("it is not valid any more");
        assert!(matches!(refused, PinError::NotValid(_)));
        assert_eq!(files(&pins), Vec::<String>::new());
        assert_eq!(pins.link_to("release", &one, || Ok(true)).expect("made"), None);
        pins.link_to("release", &other, goes()).expect_err("it is not valid any more");
        let target = fs::read_link(pins.folder.join("release")).expect("it is still there");
        assert_eq!(target, Path::new("/nix/store").join(one.as_str()));
        fs::create_dir_all(pins.folder.join("folder/in-the-way")).expect("the folder is ours");
        let refused = pins.link_to("folder", &one, || Ok(true)).expect_err("a folder has the name");
        assert!(matches!(refused, PinError::Folder { .. }));
        assert_eq!(files(&pins), ["folder", "release"]);
    }

    #[test]
    fn what_was_left_half_made_goes_with_the_next_of_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let pins = pins(folder.path());
        fs::create_dir(&pins.folder).expect("the folder is ours");
        for name in [".a.123", ".a.4", ".a.b.5", ".ab.6"] {
            symlink("/nix/store/x", pins.folder.join(name)).expect("the folder is ours");
        }
        pins.link_to("a", &path("1"), || Ok(true)).expect("made");
        assert_eq!(files(&pins), [".a.b.5", ".ab.6", "a"]);
        pins.link_to("a.b", &path("1"), || Ok(true)).expect("made");
        symlink("/nix/store/x", pins.folder.join(".a.7")).expect("the folder is ours");
        pins.unpin("a").expect("it is there");
        assert_eq!(files(&pins), [".ab.6", "a.b"]);
    }
}
