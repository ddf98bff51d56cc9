//! The demo's store: made of the machine's own folders, or opened again and checked.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cli::progress::size;
use crate::formats::hash::Sha256;
use crate::formats::signature::{KeyError, SecretKey};
use crate::formats::store_path::{NAME_MAX, StoreDir, StorePath, StorePathError, is_name_byte};
use crate::nar::{self, Plan};
use crate::store::Settings;
use crate::store::add::{AddError, Output, Registered, Writer};

/// The store directory that the demo's paths are named by: clients copy into a store of the same name only.
const STORE_DIR: &str = "/nix/store";

/// The name that clients know the demo's key by.
const KEY_NAME: &str = "harmonia-demo-1";

/// What the demo's files are called in its folder. The key is made first: it marks the folder as a demo's.
const KEY_FILE: &str = "demo.secret";
const PUBLIC_KEY_FILE: &str = "demo.public";
/// What the key's file is called until it is whole.
const NEW_KEY_FILE: &str = "demo.new";
/// Is there once the store is complete.
const COMPLETE_FILE: &str = "complete";
const WORK_FOLDER: &str = "making";

/// Folders and files that most machines have, that anyone may read, and that are small. Of each row the first
/// that can be taken.
const SOURCES: [&[&str]; 5] = [
    &["/usr/share/zoneinfo", "/var/db/timezone/zoneinfo"],
    &["/etc/ssl/certs", "/etc/pki/ca-trust/extracted", "/private/etc/ssl"],
    &["/usr/share/terminfo", "/lib/terminfo", "/usr/lib/terminfo"],
    &["/usr/share/common-licenses", "/usr/share/licenses", "/usr/share/misc"],
    &["/bin/bash", "/bin/zsh", "/bin/sh", "/bin/busybox"],
];

/// What one of [`SOURCES`] must come to, in bytes of NAR: some systems have an empty folder in its place.
const SOURCE_MIN: u64 = 1 << 10;

/// The most that one of [`SOURCES`] and all of them together may come to, in bytes of NAR: a demo starts in
/// seconds and is small to throw away.
const SOURCE_MAX: u64 = 12 << 20;
const SOURCES_MAX: u64 = 32 << 20;

/// Lines of the file of numbers: about a mebibyte, enough to ask for ranges of.
const NUMBERS: u32 = 150_000;

/// A store to be served.
#[derive(Debug)]
pub struct DemoStore {
    /// Where it is.
    pub settings: Settings,
    /// What it holds; at least one path, the input-addressed one last.
    pub paths: Vec<Registered>,
    /// The key that signs it.
    pub key: SecretKey,
    /// The key's file.
    pub key_file: PathBuf,
}

/// Why there is no demo store.
#[derive(Debug, Error)]
pub enum DemoStoreError {
    /// A file or folder of the demo cannot be used.
    #[error("cannot {doing} {}: {source}", file.display())]
    File {
        /// The file or folder.
        file: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The folder holds what is not a demo's.
    #[error("{} is not empty, and no demo made what is in it: choose another folder with --dir", folder.display())]
    NotADemo {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process serves it.
    #[error("{} is served by another demo: end that one, or choose another folder with --dir", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The key's file holds no key.
    #[error("{}: {source}; remove the file to have a new key made", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A path's files are not what was registered.
    #[error(
        "{path} is damaged: remove the demo (chmod -R u+w {0}; rm -r {0}) and start again",
        folder.display()
    )]
    Damaged {
        /// The path.
        path: StorePath,
        /// The demo's folder.
        folder: PathBuf,
    },
    /// A path could not be added.
    #[error(transparent)]
    Add(#[from] AddError),
    /// A name cannot be a store path's.
    #[error(transparent)]
    Name(#[from] StorePathError),
}

/// Opens the demo store in `folder`, or makes it: of `sources`, else of what the machine has. In a store that
/// is there already, all files are checked and `sources` are added. `say` is told what happens, a line each.
///
/// # Errors
/// See [`DemoStoreError`]. What was added until then stays, and is used by the next start.
pub fn open(
    folder: &Path,
    sources: &[PathBuf],
    say: &mut dyn FnMut(&str),
) -> Result<DemoStore, DemoStoreError> {
    // Before anything is made.
    for source in sources {
        source.symlink_metadata().map_err(failed(source, "read"))?;
        name_of(source)?;
    }
    fs::create_dir_all(folder).map_err(failed(folder, "create"))?;
    let folder = &folder.canonicalize().map_err(failed(folder, "find"))?;
    let settings = settings(folder)?;
    let key_file = folder.join(KEY_FILE);
    if !key_file.exists() && !is_fresh(folder).map_err(failed(folder, "read"))? {
        return Err(DemoStoreError::NotADemo { folder: folder.clone() });
    }
    let key = open_or_make_key(&key_file, &folder.join(PUBLIC_KEY_FILE))?;
    let mut maker = Maker { writer: Writer::open(settings.clone())?, folder, say };
    let complete = folder.join(COMPLETE_FILE);
    if complete.exists() {
        maker.check()?;
        maker.add_named(sources)?;
    } else {
        maker.make(sources)?;
        fs::write(&complete, "").map_err(failed(&complete, "write"))?;
    }
    let mut paths = maker.writer.all()?;
    paths.sort_by_key(|registered| registered.ca.is_none());
    Ok(DemoStore { settings, paths, key, key_file })
}

/// Holds the demo in `folder`, if there is one, for as long as the file is open: two servers cannot share what belongs to
/// it.
///
/// # Errors
/// Where another process holds it.
pub fn hold(folder: &Path) -> Result<Option<File>, DemoStoreError> {
    let key_file = folder.join(KEY_FILE);
    let Ok(file) = File::open(&key_file) else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(DemoStoreError::InUse { folder: folder.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(failed(&key_file, "lock")(error)),
    }
}

/// Adds paths to the demo's store.
struct Maker<'a> {
    writer: Writer,
    folder: &'a Path,
    say: &'a mut dyn FnMut(&str),
}

impl Maker<'_> {
    fn make(&mut self, sources: &[PathBuf]) -> Result<(), DemoStoreError> {
        if sources.is_empty() {
            self.add_what_there_is();
        } else {
            self.add_named(sources)?;
        }
        let work = self.folder.join(WORK_FOLDER);
        // What an interrupted start left there would become part of the paths.
        remove(&work)?;
        let made = self.make_own(&work);
        made.and(remove(&work))
    }

    fn check(&mut self) -> Result<(), DemoStoreError> {
        let all = self.writer.all()?;
        let bytes = all.iter().map(|registered| registered.nar_size).sum();
        (self.say)(&format!(
            "Checking the {} paths ({}) in {}",
            all.len(),
            size(bytes),
            self.folder.display()
        ));
        match all.iter().find(|registered| !self.writer.is_intact(registered)) {
            None => Ok(()),
            Some(Registered { path, .. }) => {
                Err(DemoStoreError::Damaged { path: path.clone(), folder: self.folder.to_path_buf() })
            }
        }
    }

    fn add_named(&mut self, sources: &[PathBuf]) -> Result<(), DemoStoreError> {
        for source in sources {
            let added = self.writer.add_source(source, &name_of(source)?)?;
            self.say_added(source, &added);
        }
        Ok(())
    }

    /// Adds what can be had of [`SOURCES`]; what is missing, unreadable or large is passed over.
    fn add_what_there_is(&mut self) {
        let mut room = SOURCES_MAX;
        for places in SOURCES {
            for place in places {
                // On some systems these are links to where the files are.
                let Ok(source) = Path::new(place).canonicalize() else { continue };
                let Ok(plan) = Plan::build(&source, nar::CASE_HACK) else { continue };
                if !(SOURCE_MIN..=SOURCE_MAX.min(room)).contains(&plan.size()) {
                    continue;
                }
                let Ok(name) = name_of(Path::new(place)) else { continue };
                match self.writer.add_source(&source, &name) {
                    Ok(added) => {
                        room -= plan.size();
                        self.say_added(&source, &added);
                        break;
                    }
                    Err(error) => (self.say)(&format!("Passing over {place}: {error}")),
                }
            }
        }
    }

    /// Adds what no machine has: a file to ask for ranges of, and an input-addressed path that refers to
    /// everything else and to itself, as the result of a build does.
    fn make_own(&mut self, work: &Path) -> Result<(), DemoStoreError> {
        let numbers = work.join("numbers");
        let lines: String = (1..=NUMBERS).map(|number| format!("{number}\n")).collect();
        write(&numbers, lines.as_bytes())?;
        let added = self.writer.add_source(&numbers, "numbers")?;
        (self.say)(&format!("Added {STORE_DIR}/{} ({}), made here", added.path, size(added.nar_size)));

        let sources = self.writer.all()?.into_iter().filter(|registered| registered.ca.is_some());
        let references: Vec<StorePath> = sources.map(|registered| registered.path).collect();
        let list: String = references.iter().map(|path| format!("{STORE_DIR}/{path}\n")).collect();
        let inputs = Sha256::of(format!("harmonia demo\n{list}").as_bytes());
        let output = Output { name: "harmonia-demo", inputs, references: &references, self_reference: true };
        let own = format!("{STORE_DIR}/{}", self.writer.output_path(&output)?);

        let tree = work.join("output");
        let program = tree.join("bin/harmonia-demo");
        let script = format!(
            "#!/bin/sh\n\
             echo 'This came through a binary cache, with everything it refers to:'\n\
             cat {own}/share/harmonia-demo/references\n"
        );
        write(&program, script.as_bytes())?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))
            .map_err(failed(&program, "set the mode of"))?;
        write(&tree.join("share/harmonia-demo/references"), format!("{list}{own}\n").as_bytes())?;
        let added = self.writer.add_output(&tree, &output)?;
        (self.say)(&format!(
            "Added {STORE_DIR}/{} ({}), which refers to all of these",
            added.path,
            size(added.nar_size)
        ));
        Ok(())
    }

    fn say_added(&mut self, source: &Path, added: &Registered) {
        let size = size(added.nar_size);
        (self.say)(&format!("Added {} as {STORE_DIR}/{} ({size})", source.display(), added.path));
    }
}

/// Whether nothing is in the folder but what is there before the key is: what is a person's own must not be written over,
/// nor removed with the demo.
fn is_fresh(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if ![PUBLIC_KEY_FILE, NEW_KEY_FILE]
            .iter()
            .any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name))
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn settings(folder: &Path) -> Result<Settings, DemoStoreError> {
    let state_dir = folder.join("nix/var/nix");
    Ok(Settings {
        store_dir: StoreDir::new(STORE_DIR)?,
        real_store: folder.join("nix/store"),
        database: state_dir.join("db/db.sqlite"),
        log_dir: folder.join("nix/var/log/nix"),
        daemon_socket: state_dir.join("daemon-socket/socket"),
        state_dir,
    })
}

fn open_or_make_key(file: &Path, public: &Path) -> Result<SecretKey, DemoStoreError> {
    let damaged = |source| DemoStoreError::Key { file: file.to_path_buf(), source };
    match fs::read_to_string(file) {
        Ok(text) => return SecretKey::parse(&text).map_err(damaged),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed(file, "read")(source)),
    }
    let key = SecretKey::generate(KEY_NAME).map_err(damaged)?;
    fs::write(public, key.public().to_string()).map_err(failed(public, "write"))?;
    // Under another name until it is whole: a half-written key would never be made again.
    let half_made = file.with_file_name(NEW_KEY_FILE);
    let write = || {
        let mut out = File::options().write(true).create(true).truncate(true).mode(0o600).open(&half_made)?;
        out.set_permissions(Permissions::from_mode(0o600))?;
        out.write_all(key.to_text().as_bytes())?;
        out.sync_all()?;
        fs::rename(&half_made, file)
    };
    write().map_err(failed(file, "write"))?;
    Ok(key)
}

/// The name that a source has in the store: its own, with what a store path's name cannot hold made dashes.
fn name_of(source: &Path) -> Result<String, DemoStoreError> {
    let whole = match source.file_name() {
        Some(_) => source.to_path_buf(),
        // `.` or `..`: the folder's real name.
        None => source.canonicalize().map_err(failed(source, "find"))?,
    };
    let name = whole.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let allowed = |letter: char| u8::try_from(letter).is_ok_and(is_name_byte);
    let name: String = name.chars().map(|letter| if allowed(letter) { letter } else { '-' }).collect();
    // Older versions of Nix refuse names that begin with a dot.
    let name = name.trim_start_matches('.');
    let name = &name[..name.len().min(NAME_MAX)];
    Ok(if name.is_empty() { "source".to_owned() } else { name.to_owned() })
}

/// Writes a file and the folders above it.
fn write(file: &Path, bytes: &[u8]) -> Result<(), DemoStoreError> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(failed(folder, "create"))?;
    }
    fs::write(file, bytes).map_err(failed(file, "write"))
}

/// Removes a folder, if it is there.
fn remove(folder: &Path) -> Result<(), DemoStoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(folder, "remove")(error)),
        _ => Ok(()),
    }
}

fn failed(file: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> DemoStoreError {
    move |source| DemoStoreError::File { file: file.to_path_buf(), doing, source }
}
