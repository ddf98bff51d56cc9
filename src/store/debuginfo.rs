//! Build id → the path that holds its debug symbols.
//!
//! nixpkgs puts the symbols of a program in an output of their own, whose name ends in `-debug`, as
//! `lib/debug/.build-id/<first two digits>/<the rest>.debug`. A thread looks through such paths once, when they
//! appear, and keeps what it found; a request is a search in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::Settings;
use super::database::{Database, Mark, Trouble};
use super::rows;
use super::serve::{self, ServeError};
use crate::formats::store_path::{StoreDir, StorePath};
use crate::limits;
use crate::mailbox::{Receiver, Silence};

/// The longest build id, in bytes: linkers make 8, 16, 20 or 32.
const LONGEST: usize = 32;

/// What paths with debug symbols are called, as SQLite's `GLOB` has it.
const NAMES: &str = "*-debug";

/// Where debug symbols lie in a path.
const FOLDER: [&str; 3] = ["lib", "debug", ".build-id"];

/// What a linker has written into a program to name the build.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId {
    len: u8,
    bytes: [u8; LONGEST],
}

impl BuildId {
    /// From lower-case hexadecimal digits, as file names and debuggers have it, with or without `.debug` after
    /// it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits = text.strip_suffix(b".debug").unwrap_or(text);
        let (pairs, odd) = digits.as_chunks::<2>();
        let mut bytes = [0; LONGEST];
        if !(2..=LONGEST).contains(&pairs.len()) || !odd.is_empty() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = value(*high)? << 4 | value(*low)?;
        }
        Some(Self { len: pairs.len() as u8, bytes })
    }

    /// The file inside a path that has the symbols.
    pub fn member(&self) -> String {
        let digits = self.to_string();
        let (first, rest) = digits.split_at(2);
        format!("{}/{first}/{rest}.debug", FOLDER.join("/"))
    }
}

/// The value of a lower-case hexadecimal digit.
fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes[..usize::from(self.len)].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BuildId({self})")
    }
}

/// What is known, shared between the thread that looks and those that answer.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(Arc<RwLock<Arc<Index>>>);

impl Catalogue {
    /// The path that has the symbols of the build `id`, as its [`BuildId::member`].
    pub fn find(&self, id: &BuildId) -> Option<StorePath> {
        let index = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        index.find(id).cloned()
    }

    fn replace(&self, index: Arc<Index>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = index;
    }
}

/// The thread that keeps a [`Catalogue`].
pub struct Watcher {
    store_dir: StoreDir,
    real_store: PathBuf,
    database: Database,
    catalogue: Catalogue,
    index: Arc<Index>,
    /// The state of the database that was last read whole.
    mark: Option<Mark>,
    /// The row up to which the database has been looked through.
    last: i64,
    /// The rows of the valid paths that may have symbols.
    rows: BTreeMap<i64, StorePath>,
    /// Paths that could not be read, which was said of each.
    failed: BTreeSet<StorePath>,
}

impl Watcher {
    /// Looks through the store of `settings` for `catalogue`. Nothing is opened yet.
    pub fn new(settings: &Settings, catalogue: Catalogue) -> Self {
        Self {
            store_dir: settings.store_dir.clone(),
            real_store: settings.real_store.clone(),
            database: Database::new(&settings.database),
            catalogue,
            index: Arc::default(),
            mark: None,
            last: 0,
            rows: BTreeMap::new(),
            failed: BTreeSet::new(),
        }
    }

    /// Looks every few seconds until the sender of `life` is gone.
    pub fn run(mut self, life: Receiver<Infallible>) {
        loop {
            self.refresh();
            match life.recv_timeout(limits::DEBUG_REFRESH) {
                Err(Silence::Quiet) => {}
                Err(Silence::Closed) => return,
            }
        }
    }

    /// Looks once. A database that is busy or cannot be read is tried again the next time; that it cannot is
    /// said where requests need it.
    fn refresh(&mut self) {
        let Ok(mark) = self.database.look() else { return };
        if self.mark == Some(mark) {
            return;
        }
        if !self.mark.is_some_and(|old| old.same_opening(&mark)) {
            // It may be another file, whose rows mean something else.
            self.rows.clear();
            self.last = 0;
        }
        self.mark = None;
        if self.read_rows().is_err() {
            return;
        }
        self.mark = Some(mark);
        let valid: BTreeSet<&StorePath> = self.rows.values().collect();
        if valid.iter().copied().eq(&self.index.paths) {
            return;
        }
        // What cannot be read is tried again whenever the database has changed, and said once.
        let mut failed = BTreeSet::new();
        let index = Arc::new(self.index.renewed(&valid, |path| match scan(&self.real_store, path) {
            Ok(ids) => Some(ids),
            Err(error) => {
                if !self.failed.contains(path) {
                    tracing::warn!(%path, %error, source = %error.source, "no debug symbols from this path");
                }
                failed.insert(path.clone());
                None
            }
        }));
        if index.is_full && !self.index.is_full {
            tracing::warn!(limit = limits::DEBUG_IDS, "too many debug symbols; some are not found");
        }
        self.failed = failed;
        self.index = Arc::clone(&index);
        self.catalogue.replace(index);
    }

    /// Brings `rows` up to date: drops those that are gone, and adds the new ones.
    fn read_rows(&mut self) -> Result<(), Trouble> {
        let Self { store_dir, database, rows: known, last, .. } = self;
        let gone: Vec<i64> = database.read(|connection| {
            let mut gone = Vec::new();
            for (id, path) in known.iter() {
                let full = store_dir.display(path).to_string();
                if rows::by_id(connection, *id)?.is_none_or(|row| row.path != full) {
                    gone.push(*id);
                }
            }
            Ok(gone)
        })?;
        // In order, as the rows are: a collection may take very many at once.
        known.retain(|id, _| gone.binary_search(id).is_err());
        let newest = database.read(rows::newest)?;
        // Piece by piece: where the journal is no WAL, no writer can commit while one is read.
        while *last < newest {
            let until = last.saturating_add(limits::DEBUG_ROWS).min(newest);
            for (id, full) in database.read(|connection| rows::matching(connection, NAMES, *last, until))? {
                if let Ok(path) = store_dir.parse(&full) {
                    known.insert(id, path);
                }
            }
            *last = until;
        }
        Ok(())
    }
}

/// Build ids in order, each with the place of its path.
#[derive(Clone, Debug, Default)]
struct Index {
    ids: Vec<(BuildId, u32)>,
    /// Those that were looked through, in order; without symbols too, so that it is done only once.
    paths: Vec<StorePath>,
    /// There was no room for the symbols of some path, which is not among `paths`.
    is_full: bool,
}

impl Index {
    fn find(&self, id: &BuildId) -> Option<&StorePath> {
        let first = self.ids.partition_point(|(other, _)| other < id);
        let (found, path) = self.ids.get(first)?;
        (found == id).then(|| &self.paths[*path as usize])
    }

    /// The index of the paths `valid`, where `scan` gives the ids of those that are new, or `None` where it cannot. A path
    /// that cannot be looked through, or for which there is no room, is left out, and so is new again the next time.
    fn renewed(
        &self,
        valid: &BTreeSet<&StorePath>,
        mut scan: impl FnMut(&StorePath) -> Option<Vec<BuildId>>,
    ) -> Self {
        let is_valid: Vec<bool> = self.paths.iter().map(|path| valid.contains(path)).collect();
        let kept = || self.ids.iter().filter(|(_, old)| is_valid[*old as usize]);
        let (mut room, mut is_full) = (limits::DEBUG_IDS - kept().count(), false);
        let mut paths = Vec::with_capacity(valid.len());
        let mut ids = Vec::new();
        for path in valid {
            if self.paths.binary_search(path).is_err() {
                // Once there was no room for one, the others wait too: each would be looked through in vain.
                let Some(found) = (!is_full).then(|| scan(path)).flatten() else { continue };
                if found.len() > room {
                    is_full = true;
                    continue;
                }
                room -= found.len();
                ids.extend(found.into_iter().map(|id| (id, paths.len() as u32)));
            }
            paths.push((*path).clone());
        }
        let place =
            |old: &u32| paths.binary_search(&self.paths[*old as usize]).ok().map(|place| place as u32);
        ids.extend(kept().filter_map(|(id, old)| Some((*id, place(old)?))));
        ids.sort_unstable();
        Self { ids, paths, is_full }
    }
}

/// The build ids whose symbols `path` has; none when it has no such folder.
///
/// # Errors
/// [`ServeError`] when the folder cannot be read.
fn scan(real_store: &Path, path: &StorePath) -> Result<Vec<BuildId>, ServeError> {
    let names = [path.as_str(), FOLDER[0], FOLDER[1], FOLDER[2]];
    let Some(folder) = serve::open_below(real_store, &names)? else { return Ok(Vec::new()) };
    let failed = |error: Errno| ServeError { path: real_store.join(path.as_str()), source: error.into() };
    let mut ids = Vec::new();
    for first in folder_names(folder.as_fd()).map_err(failed)? {
        let names = [names[0], names[1], names[2], names[3], &first];
        let Some(folder) = serve::open_below(real_store, &names)? else { continue };
        for rest in folder_names(folder.as_fd()).map_err(failed)? {
            let Some(digits) = rest.strip_suffix(".debug") else { continue };
            let Some(id) = BuildId::parse(format!("{first}{digits}").as_bytes()) else { continue };
            // A link is no symbols: debuggers take the member out of the NAR as it is.
            let stat = rustix::fs::statat(&folder, &*rest, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && first.len() == 2 {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

fn folder_names(folder: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        if let Ok(name) = entry?.file_name().to_str() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    const ID: &str = "1f40b8a5c1f2ad3d2ebf4c2f1bc3d5b1e8a4c7f0";

    #[test]
    fn build_ids_are_lower_case_digits() {
        let id = BuildId::parse(ID.as_bytes()).unwrap();
        assert_eq!(BuildId::parse(format!("{ID}.debug").as_bytes()), Some(id));
        assert_eq!(id.to_string(), ID);
        assert_eq!(id.member(), format!("lib/debug/.build-id/1f/{}.debug", &ID[2..]));
        assert!(BuildId::parse("ab".repeat(32).as_bytes()).is_some());
        for wrong in
            ["", "1f", "1f4", "1f40b", &ID.to_uppercase(), "../../etc", &"ab".repeat(33), "1f40.debug.debug"]
        {
            assert_eq!(BuildId::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    /// A real store, with paths that Nix adds and deletes.
    struct Store {
        folder: tempfile::TempDir,
        settings: Settings,
    }

    impl Store {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let base = folder.path().canonicalize().unwrap();
            let settings = Settings {
                store_dir: StoreDir::new(base.join("store").to_str().unwrap()).unwrap(),
                real_store: base.join("store"),
                database: base.join("state/db/db.sqlite"),
                state_dir: base.join("state"),
                log_dir: base.join("log"),
                daemon_socket: base.join("daemon"),
            };
            Self { folder, settings }
        }

        fn nix_store(&self, arguments: &[&str]) -> String {
            let base = self.folder.path();
            let mut command = Command::new("nix-store");
            command
                .env("NIX_STORE_DIR", &self.settings.real_store)
                .env("NIX_STATE_DIR", &self.settings.state_dir)
                .env("NIX_LOG_DIR", &self.settings.log_dir)
                .env("NIX_CONF_DIR", base.join("conf"))
                .env("HOME", base)
                .env("NIX_REMOTE", "")
                .args(["--option", "build-users-group", ""])
                .args(arguments)
                .stdin(Stdio::null());
            let mut output = command.output().unwrap();
            // Who deletes looks at what all processes have open, and fails where that is a path longer than any may be,
            // as another test has.
            let until = Instant::now() + Duration::from_secs(300);
            while !output.status.success()
                && String::from_utf8_lossy(&output.stderr).contains("File name too long")
                && Instant::now() < until
            {
                std::thread::sleep(Duration::from_millis(100));
                output = command.output().unwrap();
            }
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        }

        /// Adds a path of this name with symbols for these builds.
        fn add(&self, name: &str, ids: &[&str]) -> StorePath {
            let source = self.folder.path().join("source").join(name);
            let symbols = source.join(FOLDER.join("/"));
            fs::create_dir_all(&symbols).unwrap();
            for id in ids {
                fs::create_dir_all(symbols.join(&id[..2])).unwrap();
                fs::write(symbols.join(&id[..2]).join(format!("{}.debug", &id[2..])), "symbols").unwrap();
                symlink("program", symbols.join(&id[..2]).join(&id[2..])).unwrap();
            }
            fs::write(symbols.join("README"), "").unwrap();
            self.settings.store_dir.parse(&self.nix_store(&["--add", source.to_str().unwrap()])).unwrap()
        }

        fn delete(&self, path: &StorePath) {
            self.nix_store(&["--delete", &self.settings.store_dir.display(path).to_string()]);
        }
    }

    fn find(catalogue: &Catalogue, id: &str) -> Option<StorePath> {
        catalogue.find(&BuildId::parse(id.as_bytes()).unwrap())
    }

    #[test]
    fn symbols_come_and_go_with_their_paths() {
        let store = Store::new();
        let first = store.add("hello-2.12-debug", &[ID, "aabbcc"]);
        store.add("hello-2.12", &["ddeeff"]);
        store.add("bare-debug", &[]);
        let catalogue = Catalogue::default();
        let mut watcher = Watcher::new(&store.settings, catalogue.clone());
        assert_eq!(find(&catalogue, ID), None);
        watcher.refresh();
        assert_eq!(find(&catalogue, ID).as_ref(), Some(&first));
        assert_eq!(find(&catalogue, "aabbcc").as_ref(), Some(&first));
        assert_eq!(find(&catalogue, "ddeeff"), None, "no path of symbols");

        // The same build in two paths: each is as good, and the other is there when one goes.
        let second = store.add("hello-again-debug", &[ID, "123456"]);
        watcher.refresh();
        assert_eq!(find(&catalogue, "123456").as_ref(), Some(&second));
        store.delete(&first);
        watcher.refresh();
        assert_eq!(find(&catalogue, ID).as_ref(), Some(&second));
        assert_eq!(find(&catalogue, "aabbcc"), None);
        store.delete(&second);
        watcher.refresh();
        assert_eq!(find(&catalogue, ID), None);
        assert_eq!(watcher.index.paths.len(), 1, "bare-debug stays");
    }

    #[test]
    fn a_path_is_looked_through_once() {
        let store = Store::new();
        let path = store.add("hello-debug", &[ID]);
        let catalogue = Catalogue::default();
        let mut watcher = Watcher::new(&store.settings, catalogue.clone());
        watcher.refresh();
        let real = store.settings.real_store.join(path.as_str());
        let symbols = real.join(FOLDER.join("/"));
        fs::set_permissions(&symbols, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::rename(&symbols, store.folder.path().join("aside")).unwrap();
        store.add("other-debug", &["aabbcc"]);
        watcher.refresh();
        assert!(find(&catalogue, ID).is_some() && find(&catalogue, "aabbcc").is_some());
    }

    /// SQLite lets a column hold anything.
    #[test]
    fn an_odd_row_hides_no_other() {
        let store = Store::new();
        let path = store.add("hello-debug", &[ID]);
        let connection = rusqlite::Connection::open(&store.settings.database).unwrap();
        let sql = "INSERT INTO ValidPaths (path, hash, registrationTime) VALUES (?1, '', 0)";
        connection.execute(sql, [b"\xff-debug".as_slice()]).unwrap();
        drop(connection);
        let catalogue = Catalogue::default();
        let mut watcher = Watcher::new(&store.settings, catalogue.clone());
        watcher.refresh();
        assert_eq!(find(&catalogue, ID).as_ref(), Some(&path));
    }

    #[test]
    fn what_could_not_be_looked_through_is_looked_through_later() {
        let [first, second, third] = [0, 4, 8].map(numbered);
        let paths = BTreeSet::from([&first, &second, &third]);
        let index = Index::default().renewed(&paths, |path| (*path != second).then(|| ids_of(path)));
        assert_eq!(index.paths, [first.clone(), third.clone()]);
        let index = index.renewed(&paths, |path| Some(ids_of(path)));
        assert_eq!(index.paths, [first.clone(), second.clone(), third.clone()]);

        // More than there is room for: all of a path's, or none.
        let id = |number: usize| BuildId::parse(format!("{number:08x}").as_bytes()).unwrap();
        let many = |path: &StorePath| {
            let start = if *path == first { 0 } else { limits::DEBUG_IDS };
            Some((start..start + limits::DEBUG_IDS / 2 + 1).map(id).collect::<Vec<_>>())
        };
        let paths = BTreeSet::from([&first, &second]);
        let full = Index::default().renewed(&paths, many);
        assert!(full.is_full && full.paths == [first.clone()]);
        assert_eq!((full.find(&id(0)), full.find(&id(limits::DEBUG_IDS))), (Some(&first), None));
        let room = full.renewed(&BTreeSet::from([&second]), many);
        assert!(!room.is_full);
        assert_eq!((room.find(&id(0)), room.find(&id(limits::DEBUG_IDS))), (None, Some(&second)));
    }

    #[test]
    fn links_are_not_symbols_and_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = StorePath::from_basename("00000000000000000000000000000000-x-debug").unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir_all(elsewhere.join("aa")).unwrap();
        fs::write(elsewhere.join("aa/bbcc.debug"), "").unwrap();
        let symbols = folder.path().join(path.as_str()).join(FOLDER.join("/"));
        fs::create_dir_all(symbols.join("dd")).unwrap();
        symlink(elsewhere.join("aa"), symbols.join("aa")).unwrap();
        symlink(elsewhere.join("aa/bbcc.debug"), symbols.join("dd/eeff.debug")).unwrap();
        fs::create_dir_all(symbols.join("ddd")).unwrap();
        fs::write(symbols.join("ddd/eeff1.debug"), "").unwrap();
        assert_eq!(scan(folder.path(), &path).unwrap(), []);
    }

    #[test]
    fn without_a_database_nothing_is_found_until_there_is_one() {
        let store = Store::new();
        let catalogue = Catalogue::default();
        let mut watcher = Watcher::new(&store.settings, catalogue.clone());
        watcher.refresh();
        assert_eq!(find(&catalogue, ID), None);
        store.add("hello-debug", &[ID]);
        watcher.refresh();
        assert!(find(&catalogue, ID).is_some());
    }

    #[test]
    fn the_thread_looks_by_itself_and_ends_with_its_sender() {
        let store = Store::new();
        store.add("hello-debug", &[ID]);
        let catalogue = Catalogue::default();
        let watcher = Watcher::new(&store.settings, catalogue.clone());
        let (life, end) = mailbox::bounded(1, None);
        let thread = std::thread::spawn(move || watcher.run(end));
        let until = Instant::now() + Duration::from_secs(20);
        while find(&catalogue, ID).is_none() {
            assert!(Instant::now() < until, "not found");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(life);
        thread.join().unwrap();
    }

    /// One of twelve paths of symbols, in an order that is not that of the numbers.
    fn numbered(number: u8) -> StorePath {
        let first = char::from(b'a' + number % 4).to_string().repeat(31);
        StorePath::from_basename(&format!("{first}{}-x-debug", number / 4)).unwrap()
    }

    /// The symbols that a [`numbered`] path has: two builds that others have too.
    fn ids_of(path: &StorePath) -> Vec<BuildId> {
        let digits = path.as_str().as_bytes();
        let id = |byte| BuildId::parse(format!("{byte:02x}").repeat(3).as_bytes()).unwrap();
        vec![id(digits[0]), id(digits[31])]
    }

    proptest! {
        /// An index that was renewed step by step knows what one made at once knows.
        #[test]
        fn steps_make_no_difference(
            steps in proptest::collection::vec(proptest::collection::btree_set(0u8..12, 0..12), 1..6),
        ) {
            let mut index = Index::default();
            for step in &steps {
                let valid: Vec<StorePath> = step.iter().map(|number| numbered(*number)).collect();
                let valid: BTreeSet<&StorePath> = valid.iter().collect();
                index = index.renewed(&valid, |path| Some(ids_of(path)));
                let whole = Index::default().renewed(&valid, |path| Some(ids_of(path)));
                prop_assert_eq!(&index.ids, &whole.ids);
                prop_assert_eq!(&index.paths, &whole.paths);
            }
        }
    }
}
