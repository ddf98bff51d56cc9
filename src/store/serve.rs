//! `/serve`: files inside valid store paths, and no way out.
//!
//! A path is walked name by name, each opened below the one before, and never through a link: what a link
//! says is read and walked here, in terms of the store directory that paths are named by. So a link may lead
//! anywhere, but the walk goes on only inside store paths that the index has confirmed to be valid.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::formats::store_path::{StoreDir, StorePath};
use crate::limits;

/// A request for a file of a store path, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The valid store path that the walk is in.
    inside: StorePath,
    /// Where the walk is: the names from the root of the file system that store paths are named in.
    at: Vec<Vec<u8>>,
    /// The names to come, the next one last.
    ahead: Vec<Vec<u8>>,
    /// How many links were followed.
    links: usize,
    /// Whether the request ended in a slash.
    slash: bool,
    /// Whether that slash came after a name inside the store path, so that only a folder will do.
    folder_wanted: bool,
    /// The last name of the request, by which the media type is told; where it says nothing, by the file's own.
    name: Vec<u8>,
    /// Whether the walk is after a folder's `index.html`, and no longer after what was asked.
    index: bool,
}

/// Where a walk has led.
#[derive(Debug)]
pub enum ServeAnswer {
    /// To a file.
    File {
        /// Open for reading.
        file: Arc<File>,
        /// How many bytes it has; may be 0.
        len: u64,
        /// What its name says it is.
        media_type: &'static str,
    },
    /// To a folder without an `index.html`, as all who asked for it at once share it.
    Folder(Arc<Folder>),
    /// To a folder that was asked for without a slash at the end, so that its relative links would not work:
    /// the client is sent to the same address with a slash.
    Redirect,
    /// To another store path. Whoever knows whether it is valid says so with [`Walk::confirmed`] and asks
    /// again; if it is not, the answer is "absent".
    Confirm {
        /// The whole path that must be valid; another path with the same hash part is not it.
        path: StorePath,
        /// To be asked again.
        walk: Walk,
    },
    /// Nowhere that is served.
    Absent,
}

/// How far a walk has come.
#[derive(Debug)]
pub enum Step {
    /// To its answer.
    Answer(ServeAnswer),
    /// To a folder that is to be looked at; [`go_on`] takes the walk and what was found.
    Look(OpenFolder, Walk),
}

/// A folder, open.
#[derive(Debug)]
pub struct OpenFolder(File);

/// What is in a folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// By name.
    pub entries: Vec<Entry>,
    /// Whether there are more than [`limits::SERVE_ENTRIES`], and only some are here.
    pub cut: bool,
    /// What the first who asked made of it for a place, for those who asked for the same.
    pub page: OnceLock<(Vec<u8>, Bytes)>,
}

/// One name in a folder.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name; any bytes but a slash and NUL.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// For a file, its length in bytes; otherwise 0.
    pub size: u64,
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder.
    Folder,
    /// A file.
    File {
        /// Whether it can be run.
        executable: bool,
    },
    /// A link, to whatever.
    Link,
}

/// Why a file that is there cannot be served.
#[derive(Clone, Debug, Error)]
#[error("cannot read {}", .path.display())]
pub struct ServeError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: Arc<io::Error>,
}

impl Walk {
    /// A walk inside `path`, which is valid, to `inner`: the decoded rest of the address after the hash part,
    /// empty or with a slash first. `None` for what leads nowhere in any store: names `.` and `..`, NUL.
    pub fn new(store_dir: &StoreDir, path: StorePath, inner: &[u8]) -> Option<Self> {
        let names: Vec<Vec<u8>> = split(inner).map(<[u8]>::to_vec).collect();
        let odd = |name: &Vec<u8>| name == b"." || name == b".." || name.contains(&0);
        if names.len() > limits::SERVE_NAMES || names.iter().any(odd) {
            return None;
        }
        Some(Self {
            at: store_names(store_dir),
            name: names.last().cloned().unwrap_or_else(|| path.name().as_bytes().to_vec()),
            slash: inner.ends_with(b"/"),
            folder_wanted: inner.ends_with(b"/") && !names.is_empty(),
            ahead: names.into_iter().rev().chain([path.as_str().as_bytes().to_vec()]).collect(),
            inside: path,
            links: 0,
            index: false,
        })
    }

    /// Lets the walk go on into `path`, which is valid.
    pub fn confirmed(&mut self, path: StorePath) {
        self.inside = path;
    }

    /// Puts what a link says ahead; false when it has been too much.
    fn follow(&mut self, target: &[u8]) -> bool {
        self.links += 1;
        if target.starts_with(b"/") {
            self.at.clear();
        }
        let names: Vec<&[u8]> = split(target).filter(|name| *name != b".").collect();
        self.ahead.extend(names.iter().rev().map(|name| name.to_vec()));
        self.links <= limits::SERVE_LINKS && self.ahead.len() <= limits::SERVE_NAMES
    }
}

/// Walks to where `walk` wants, in the store `store_dir` whose files are really in `real_store`: to its answer, or as far
/// as to a folder that is to be looked at.
///
/// # Errors
/// [`ServeError`] where something is there and cannot be read. What disappears on the way is absent.
pub fn resolve(store_dir: &StoreDir, real_store: &Path, walk: Walk) -> Result<Step, ServeError> {
    let mut walker = Walker { store: store_names(store_dir), real_store, walk, folder: None };
    while let Some(name) = walker.walk.ahead.pop() {
        if let Some(answer) = walker.step(name)? {
            return Ok(Step::Answer(answer));
        }
    }
    walker.arrive()
}

/// Goes on with a walk to a folder in which `found` was found; `None` where it has just been removed.
///
/// # Errors
/// As [`resolve`].
pub fn go_on(
    store_dir: &StoreDir,
    real_store: &Path,
    mut walk: Walk,
    found: Option<Arc<Folder>>,
) -> Result<ServeAnswer, ServeError> {
    let Some(folder) = found else { return Ok(ServeAnswer::Absent) };
    let has_index = |entry: &Entry| entry.name == INDEX && entry.kind != EntryKind::Folder;
    if !folder.entries.iter().any(has_index) {
        return Ok(ServeAnswer::Folder(folder));
    }
    walk.index = true;
    walk.folder_wanted = false;
    walk.name = INDEX.to_vec();
    walk.ahead.push(INDEX.to_vec());
    match resolve(store_dir, real_store, walk)? {
        Step::Answer(answer) => Ok(answer),
        // By now it is a folder.
        Step::Look(..) => Ok(ServeAnswer::Absent),
    }
}

impl OpenFolder {
    /// Its device and its inode: while it is open, no other has these.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn id(&self, real_store: &Path) -> Result<(u64, u64), ServeError> {
        let found = self.0.metadata().map_err(|source| ServeError::new(real_store, source))?;
        Ok((found.dev(), found.ino()))
    }

    /// What is in it; `None` when it has just been removed.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn look(self, real_store: &Path) -> Result<Option<Arc<Folder>>, ServeError> {
        Ok(read_folder(self.0.into(), real_store)?.map(Arc::new))
    }
}

/// Opens the folder `names` below `real_store`, through no link but `real_store` itself; `None` when it is
/// not there or no folder.
///
/// # Errors
/// [`ServeError`] when it may be there but cannot be read.
pub(super) fn open_below<N: AsRef<[u8]>>(
    real_store: &Path,
    names: &[N],
) -> Result<Option<OwnedFd>, ServeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = match rustix::fs::open(real_store, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(error) => return Err(ServeError::new(real_store, error)),
    };
    for name in names {
        let opened = rustix::fs::openat(&folder, name.as_ref(), flags | OFlags::NOFOLLOW, Mode::empty());
        match unless_absent(opened, real_store, name.as_ref())? {
            Some(next) => folder = next,
            None => return Ok(None),
        }
    }
    Ok(Some(folder))
}

/// A walk under way.
struct Walker<'a> {
    /// The names of the store directory.
    store: Vec<Vec<u8>>,
    real_store: &'a Path,
    walk: Walk,
    /// The folder that the walk is in, when it is open.
    folder: Option<OwnedFd>,
}

impl Walker<'_> {
    /// Goes on to `name`, where the walk is; gives the answer once there is one.
    fn step(&mut self, name: Vec<u8>) -> Result<Option<ServeAnswer>, ServeError> {
        if name == b".." {
            self.walk.at.pop();
            self.folder = None;
            return Ok(None);
        }
        let depth = self.walk.at.len();
        match depth.cmp(&self.store.len()) {
            // Above the store there is only the way into it.
            Ordering::Less if name == self.store[depth] => {
                self.walk.at.push(name);
                return Ok(None);
            }
            Ordering::Less => return Ok(Some(ServeAnswer::Absent)),
            Ordering::Equal => match self.gate(&name) {
                None => {}
                answer => return Ok(answer),
            },
            Ordering::Greater => {}
        }
        let Some(folder) = self.open_folder()? else { return Ok(Some(ServeAnswer::Absent)) };
        let stat = rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW);
        let Some(stat) = unless_absent(stat, self.real_store, &name)? else {
            return Ok(Some(ServeAnswer::Absent));
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(&folder, &*name, flags, Mode::empty());
                self.folder = unless_absent(opened, self.real_store, &name)?;
                self.walk.at.push(name);
                Ok(self.folder.is_none().then_some(ServeAnswer::Absent))
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&folder, &*name, Vec::new());
                let target = unless_absent(target, self.real_store, &name)?;
                let followed = target.is_some_and(|target| self.walk.follow(target.as_bytes()));
                self.folder = None;
                Ok((!followed).then_some(ServeAnswer::Absent))
            }
            FileType::RegularFile => self.file(&folder, &name).map(Some),
            _ => Ok(Some(ServeAnswer::Absent)),
        }
    }

    /// Whether the walk may go from the store directory into `name`; if not yet or never, the answer.
    fn gate(&mut self, name: &[u8]) -> Option<ServeAnswer> {
        let path = std::str::from_utf8(name).ok().and_then(|name| StorePath::from_basename(name).ok());
        match path {
            Some(path) if path == self.walk.inside => None,
            Some(path) => {
                let mut walk = self.walk.clone();
                walk.ahead.push(name.to_vec());
                Some(ServeAnswer::Confirm { path, walk })
            }
            None => Some(ServeAnswer::Absent),
        }
    }

    /// The walk has ended in a folder.
    fn arrive(mut self) -> Result<Step, ServeError> {
        if self.walk.index || self.walk.at.len() <= self.store.len() {
            return Ok(Step::Answer(ServeAnswer::Absent));
        }
        if !self.walk.slash {
            return Ok(Step::Answer(ServeAnswer::Redirect));
        }
        Ok(match self.open_folder()? {
            Some(folder) => Step::Look(OpenFolder(folder.into()), self.walk),
            None => Step::Answer(ServeAnswer::Absent),
        })
    }

    /// The walk has come to a file.
    fn file(&self, folder: &OwnedFd, name: &[u8]) -> Result<ServeAnswer, ServeError> {
        if self.walk.folder_wanted || !self.walk.ahead.is_empty() {
            return Ok(ServeAnswer::Absent);
        }
        // Should it have become a FIFO since it was looked at, opening it does not wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(folder, name, flags, Mode::empty());
        let Some(file) = unless_absent(opened, self.real_store, name)?.map(File::from) else {
            return Ok(ServeAnswer::Absent);
        };
        let metadata = file.metadata().map_err(|source| ServeError::new(self.real_store, source))?;
        if !metadata.is_file() {
            return Ok(ServeAnswer::Absent);
        }
        let media_type = media_type(&[&self.walk.name, name]);
        Ok(ServeAnswer::File { file: Arc::new(file), len: metadata.len(), media_type })
    }

    /// The folder that the walk is in: the one that is open, or opened from the store down.
    fn open_folder(&mut self) -> Result<Option<OwnedFd>, ServeError> {
        match self.folder.take() {
            Some(folder) => Ok(Some(folder)),
            None => open_below(self.real_store, &self.walk.at[self.store.len()..]),
        }
    }
}

const INDEX: &[u8] = b"index.html";

/// What is in a folder; `None` when it has just been removed.
fn read_folder(folder: OwnedFd, real_store: &Path) -> Result<Option<Folder>, ServeError> {
    let failed = |error: Errno| ServeError::new(real_store, error);
    let mut names = Vec::new();
    let mut found = Folder::default();
    for entry in Dir::read_from(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() == limits::SERVE_ENTRIES && name != INDEX {
            found.cut = true;
            continue;
        }
        names.push(name.to_vec());
    }
    names.sort_unstable();
    for name in names {
        let stat = rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW);
        let Some(stat) = unless_absent(stat, real_store, &name)? else { continue };
        let (kind, size) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => (EntryKind::Folder, 0),
            FileType::Symlink => (EntryKind::Link, 0),
            FileType::RegularFile => {
                let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
                (EntryKind::File { executable }, u64::try_from(stat.st_size).unwrap_or(0))
            }
            _ => continue,
        };
        found.entries.push(Entry { name, kind, size });
    }
    Ok(Some(found))
}

impl ServeError {
    pub(super) fn new(path: &Path, source: impl Into<io::Error>) -> Self {
        Self { path: path.to_owned(), source: Arc::new(source.into()) }
    }
}

/// The outcome, or `None` where what was named is not there, or is something else by now.
fn unless_absent<T>(
    outcome: Result<T, Errno>,
    real_store: &Path,
    name: &[u8],
) -> Result<Option<T>, ServeError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO) => Ok(None),
        Err(error) => Err(ServeError::new(&real_store.join(OsStr::from_bytes(name)), error)),
    }
}

fn store_names(store_dir: &StoreDir) -> Vec<Vec<u8>> {
    split(store_dir.as_str().as_bytes()).map(<[u8]>::to_vec).collect()
}

/// The names of a path; what lies between two slashes that follow each other is none.
fn split(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

/// What a file is by the end of one of its names, in any case, the first that says something; bytes where none
/// does. Nothing looks inside.
fn media_type(names: &[&[u8]]) -> &'static str {
    let by_ending = |name: &&[u8]| {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let (_, ending) = name.rsplit_once('.')?;
        MEDIA_TYPES.iter().find(|(endings, _)| endings.contains(&ending))
    };
    names.iter().find_map(by_ending).map_or("application/octet-stream", |(_, media_type)| media_type)
}

/// Media types as registered with IANA, for what packages have: documentation, sources, what a web page needs.
const MEDIA_TYPES: &[(&[&str], &str)] = &[
    (&["html", "htm"], "text/html; charset=utf-8"),
    (&["xhtml"], "application/xhtml+xml"),
    (&["css"], "text/css; charset=utf-8"),
    (&["js", "mjs"], "text/javascript; charset=utf-8"),
    (&["json", "map"], "application/json"),
    (&["wasm"], "application/wasm"),
    (&["xml", "xsl", "xsd"], "application/xml"),
    (&["svg"], "image/svg+xml"),
    (&["png"], "image/png"),
    (&["jpg", "jpeg"], "image/jpeg"),
    (&["gif"], "image/gif"),
    (&["webp"], "image/webp"),
    (&["avif"], "image/avif"),
    (&["ico"], "image/vnd.microsoft.icon"),
    (&["woff"], "font/woff"),
    (&["woff2"], "font/woff2"),
    (&["ttf"], "font/ttf"),
    (&["otf"], "font/otf"),
    (&["mp4"], "video/mp4"),
    (&["webm"], "video/webm"),
    (&["mp3"], "audio/mpeg"),
    (&["ogg", "oga"], "audio/ogg"),
    (&["wav"], "audio/wav"),
    (&["pdf"], "application/pdf"),
    (&["ps", "eps"], "application/postscript"),
    (&["epub"], "application/epub+zip"),
    (&["zip"], "application/zip"),
    (&["gz", "tgz"], "application/gzip"),
    (&["bz2"], "application/x-bzip2"),
    (&["xz"], "application/x-xz"),
    (&["zst"], "application/zstd"),
    (&["tar"], "application/x-tar"),
    (&["iso", "img"], "application/octet-stream"),
    (&["csv"], "text/csv; charset=utf-8"),
    (&["md", "markdown"], "text/markdown; charset=utf-8"),
    (
        &[
            "txt", "text", "log", "nix", "drv", "conf", "cfg", "ini", "toml", "yaml", "yml", "sh", "bash",
            "py", "pl", "rb", "lua", "c", "h", "cc", "cpp", "hh", "hpp", "rs", "go", "java", "hs", "patch",
            "diff", "service", "desktop", "rst", "tex", "cmake", "pc", "la", "el",
        ],
        "text/plain; charset=utf-8",
    ),
];

#[cfg(test)]
mod tests;
