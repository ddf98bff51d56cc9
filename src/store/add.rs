//! Adding a path to the store: schema, hashing, registering.
//!
//! A path is added in an order that a crash at any point leaves whole: the tree is made under another name
//! beside its place, renamed into it, and registered last. What is not registered does not exist for Nix;
//! trees that a crash left half-made are removed when the store is next opened for writing.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ToSql, TransactionBehavior, params};
use thiserror::Error;

use super::Settings;
use crate::formats::hash::{HashError, Sha256};
use crate::formats::store_path::{StorePath, StorePathError, make_fixed_output_path, make_store_path};
use crate::limits;
use crate::nar::{self, Cursor, Hashing, NarError, Plan, Reader, RestoreError};

/// The schema of Nix's database, as Nix 2.8 makes it and all later versions read it, and its number in the
/// file `schema` beside the database.
const SCHEMA: &str = "
create table if not exists ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null,
    registrationTime integer not null,
    deriver          text,
    narSize          integer,
    ultimate         integer, -- null implies \"false\"
    sigs             text, -- space-separated
    ca               text -- if not null, an assertion that the path is content-addressed; see ValidPathInfo
);
create table if not exists Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);
create index if not exists IndexReferrer on Refs(referrer);
create index if not exists IndexReference on Refs(reference);
create trigger if not exists DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;
create table if not exists DerivationOutputs (
    drv  integer not null,
    id   text not null, -- symbolic output id, usually \"out\"
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);
create index if not exists IndexDerivationOutputs on DerivationOutputs(path);
";
const SCHEMA_VERSION: &str = "10";

/// What half-made trees are called in the store; no store path begins so.
const HALF_MADE: &str = ".harmonia-adding-";

/// Why a path was not added.
#[derive(Debug, Error)]
pub enum AddError {
    /// Another process adds paths to this store.
    #[error("another harmonia is adding paths to the store; it holds {}", lock.display())]
    Busy {
        /// The file it has locked.
        lock: PathBuf,
    },
    /// The database has a schema that is not known.
    #[error("{}: the database's schema is number {found:?}, and only {SCHEMA_VERSION} is known", file.display())]
    Schema {
        /// The file that says so.
        file: PathBuf,
        /// What it says.
        found: String,
    },
    /// A file or folder of the store cannot be used.
    #[error("cannot {doing} {}: {source}", file.display())]
    File {
        /// The file or folder.
        file: PathBuf,
        /// What was tried: "create", "lock" …
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The database refused.
    #[error("{}: {source}", database.display())]
    Database {
        /// The database.
        database: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The tree to be added cannot be a store path.
    #[error(transparent)]
    Source(#[from] NarError),
    /// The tree could not be made in the store.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The name cannot be a store path's.
    #[error(transparent)]
    Name(#[from] StorePathError),
    /// A path that was to be referred to is not valid in this store.
    #[error("{reference}: cannot be referred to, it is not in the store")]
    Reference {
        /// The path.
        reference: StorePath,
    },
    /// A row of the database cannot be understood.
    #[error("{path}: its hash in the database is damaged: {source}")]
    Row {
        /// The path.
        path: String,
        /// What is wrong.
        source: HashError,
    },
}

/// A path of the store, as it was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of its NAR.
    pub nar_hash: Sha256,
    /// Size of its NAR in bytes.
    pub nar_size: u64,
    /// What says that the path is addressed by its contents; `None` for an input-addressed path.
    pub ca: Option<String>,
}

/// An input-addressed path to be added, such as a build gives.
#[derive(Clone, Debug)]
pub struct Output<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it was made from, hashed: decides the path.
    pub inputs: Sha256,
    /// The valid paths that it refers to.
    pub references: &'a [StorePath],
    /// Whether it refers to itself.
    pub self_reference: bool,
}

/// A store opened for adding paths. One process at a time has it; garbage collectors wait for it.
#[derive(Debug)]
pub struct Writer {
    settings: Settings,
    database: Connection,
    /// Locked as long as this lives.
    _locks: [File; 2],
}

impl Writer {
    /// Opens the store for writing, and makes it where there is none. Half-made trees of an earlier run that
    /// was interrupted are removed.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn open(settings: Settings) -> Result<Self, AddError> {
        let database_folder = settings.database.parent().unwrap_or(Path::new("/")).to_path_buf();
        for folder in [&settings.real_store, &settings.state_dir.join("temproots"), &database_folder] {
            fs::create_dir_all(folder).map_err(failed(folder, "create"))?;
        }
        let locks = lock(&settings.state_dir)?;
        check_schema(&database_folder)?;
        let database = open_database(&settings.database).map_err(refused(&settings.database))?;
        write_schema_number(&database_folder)?;
        let writer = Self { settings, database, _locks: locks };
        writer.remove_half_made()?;
        Ok(writer)
    }

    /// Adds the tree at `source` under `name`, addressed by its contents: the path that `nix store add-path`
    /// gives it. A path that is in the store already is left as it is.
    ///
    /// # Errors
    /// See [`AddError`]; nothing is registered then.
    pub fn add_source(&mut self, source: &Path, name: &str) -> Result<Registered, AddError> {
        let (nar_hash, nar_size) = nar::nar_hash(source, nar::CASE_HACK)?;
        let path = make_fixed_output_path(&self.settings.store_dir, &nar_hash, name, &[], false)?;
        let ca = Some(format!("fixed:r:{nar_hash}"));
        self.add(source, Registered { path, nar_hash, nar_size, ca }, &[])
    }

    /// The path that [`Writer::add_output`] gives: known before the tree is, so that the tree can name it.
    ///
    /// # Errors
    /// When the name cannot be a store path's.
    pub fn output_path(&self, output: &Output<'_>) -> Result<StorePath, AddError> {
        Ok(make_store_path(&self.settings.store_dir, "output:out", &output.inputs, output.name)?)
    }

    /// Adds the tree at `source` as an input-addressed path. A path that is in the store already is left as it
    /// is.
    ///
    /// # Errors
    /// See [`AddError`]; nothing is registered then.
    pub fn add_output(&mut self, source: &Path, output: &Output<'_>) -> Result<Registered, AddError> {
        let path = self.output_path(output)?;
        let mut references = output.references.to_vec();
        if output.self_reference {
            references.push(path.clone());
        }
        let (nar_hash, nar_size) = nar::nar_hash(source, nar::CASE_HACK)?;
        self.add(source, Registered { path, nar_hash, nar_size, ca: None }, &references)
    }

    /// Takes a path's row away, as a collector does before it deletes the files.
    #[cfg(test)]
    pub fn forget(&self, path: &StorePath) -> Result<(), AddError> {
        let full = self.settings.store_dir.display(path).to_string();
        let deleted = self.database.execute("delete from ValidPaths where path = ?", [full]);
        deleted.map(drop).map_err(refused(&self.settings.database))
    }

    /// What is registered under `path`.
    ///
    /// # Errors
    /// When the database cannot be read or holds nonsense.
    pub fn find(&self, path: &StorePath) -> Result<Option<Registered>, AddError> {
        let full = self.settings.store_dir.display(path).to_string();
        Ok(self.select("where path = ?", &[&full])?.pop())
    }

    /// All that is registered, in the order it was.
    ///
    /// # Errors
    /// When the database cannot be read or holds nonsense.
    pub fn all(&self) -> Result<Vec<Registered>, AddError> {
        self.select("order by id", &[])
    }

    fn select(&self, which: &str, values: &[&dyn ToSql]) -> Result<Vec<Registered>, AddError> {
        let query = || {
            let sql = format!("select path, hash, narSize, ca from ValidPaths {which}");
            let mut query = self.database.prepare(&sql)?;
            let rows =
                query.query_map(values, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        let rows = query().map_err(refused(&self.settings.database))?;
        let registered = |(path, hash, nar_size, ca): (String, String, Option<i64>, Option<String>)| {
            let nar_hash =
                Sha256::parse(&hash).map_err(|source| AddError::Row { path: path.clone(), source })?;
            // Never NULL where this product wrote it, and 0 is no NAR's size.
            let nar_size = nar_size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            Ok(Registered { path: self.settings.store_dir.parse(&path)?, nar_hash, nar_size, ca })
        };
        rows.into_iter().map(registered).collect()
    }

    /// Where a path's files are.
    pub fn place(&self, path: &StorePath) -> PathBuf {
        self.settings.real_store.join(path.as_str())
    }

    /// Whether the files of a registered path are what was registered. Reads all of them.
    pub fn is_intact(&self, registered: &Registered) -> bool {
        let expected = (registered.nar_hash, registered.nar_size);
        nar::nar_hash(&self.place(&registered.path), nar::CASE_HACK).is_ok_and(|found| found == expected)
    }

    fn add(
        &mut self,
        source: &Path,
        new: Registered,
        references: &[StorePath],
    ) -> Result<Registered, AddError> {
        if let Some(known) = self.find(&new.path)? {
            return Ok(known);
        }
        for reference in references.iter().filter(|&reference| *reference != new.path) {
            if self.find(reference)?.is_none() {
                return Err(AddError::Reference { reference: reference.clone() });
            }
        }
        self.put_in_place(source, &new)?;
        self.register(&new, references)?;
        Ok(new)
    }

    fn put_in_place(&self, source: &Path, new: &Registered) -> Result<(), AddError> {
        let half_made = self.settings.real_store.join(format!("{HALF_MADE}{}", new.path));
        let result = self.make_tree(source, &half_made, new).and_then(|()| {
            let place = self.place(&new.path);
            // What lies there is not registered: an earlier run ended before it was.
            remove_tree(&place)?;
            fs::rename(&half_made, &place).map_err(failed(&place, "create"))?;
            if place.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                nar::seal_folder(&place)?;
            }
            self.flush()
        });
        if result.is_err() {
            // The first error is the one to tell; what stays here, the next run removes.
            let _ = remove_tree(&half_made);
        }
        result
    }

    /// Copies the tree, and checks on the way that it is still the one that was hashed.
    fn make_tree(&self, source: &Path, to: &Path, expected: &Registered) -> Result<(), AddError> {
        remove_tree(to)?;
        let plan = Plan::build(source, nar::CASE_HACK)?;
        let mut hashing = Hashing::new(Reader::new(Cursor::new(Arc::new(plan), Arc::from(source))));
        nar::restore(&mut hashing, to)?;
        if hashing.finish() != (expected.nar_hash, expected.nar_size) {
            return Err(NarError::Changed { file: source.to_path_buf() }.into());
        }
        Ok(())
    }

    fn register(&mut self, new: &Registered, references: &[StorePath]) -> Result<(), AddError> {
        let Settings { store_dir, database: file, .. } = &self.settings;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let transaction =
            self.database.transaction_with_behavior(TransactionBehavior::Immediate).map_err(refused(file))?;
        transaction
            .execute(
                "insert into ValidPaths (path, hash, registrationTime, narSize, ca) values (?, ?, ?, ?, ?)",
                params![
                    store_dir.display(&new.path).to_string(),
                    format!("sha256:{}", new.nar_hash.to_hex()),
                    now as i64,
                    new.nar_size as i64,
                    new.ca
                ],
            )
            .map_err(refused(file))?;
        let referrer = transaction.last_insert_rowid();
        for reference in references {
            transaction
                .execute(
                    "insert or ignore into Refs (referrer, reference) select ?, id from ValidPaths where path = ?",
                    params![referrer, store_dir.display(reference).to_string()],
                )
                .map_err(refused(file))?;
        }
        transaction.commit().map_err(refused(file))
    }

    /// Has the system write the tree out: a row must not outlive a crash that its files do not.
    fn flush(&self) -> Result<(), AddError> {
        let store = &self.settings.real_store;
        let folder = File::open(store).map_err(failed(store, "open"))?;
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&folder).map_err(|errno| failed(store, "write out")(errno.into()))?;
        #[cfg(not(target_os = "linux"))]
        {
            rustix::fs::sync();
            folder.sync_all().map_err(failed(store, "write out"))?;
        }
        Ok(())
    }

    fn remove_half_made(&self) -> Result<(), AddError> {
        let store = &self.settings.real_store;
        for entry in fs::read_dir(store).map_err(failed(store, "list"))? {
            let entry = entry.map_err(failed(store, "list"))?;
            if entry.file_name().as_encoded_bytes().starts_with(HALF_MADE.as_bytes()) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Keeps other writers of this product out, and garbage collectors waiting: a tree in its place and not yet
/// registered is garbage to them.
fn lock(state_dir: &Path) -> Result<[File; 2], AddError> {
    let open = |name: &str| {
        let file = state_dir.join(name);
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(&file);
        opened.map_err(failed(&file, "open")).map(|opened| (opened, file))
    };
    let (adding, file) = open("harmonia-adding.lock")?;
    adding.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => AddError::Busy { lock: file.clone() },
        TryLockError::Error(source) => failed(&file, "lock")(source),
    })?;
    let (collecting, file) = open("gc.lock")?;
    collecting.lock_shared().map_err(failed(&file, "lock"))?;
    Ok([adding, collecting])
}

fn check_schema(folder: &Path) -> Result<(), AddError> {
    let file = folder.join("schema");
    match fs::read_to_string(&file) {
        Ok(found) if found.trim() == SCHEMA_VERSION => Ok(()),
        Ok(found) => Err(AddError::Schema { file, found: found.trim().to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(AddError::File { file, doing: "read", source }),
    }
}

/// Comes after the tables are there: without the number, Nix makes what is missing.
fn write_schema_number(folder: &Path) -> Result<(), AddError> {
    let file = folder.join("schema");
    if file.exists() {
        return Ok(());
    }
    let half_made = folder.join("schema.new");
    fs::write(&half_made, SCHEMA_VERSION).map_err(failed(&half_made, "write"))?;
    fs::rename(&half_made, &file).map_err(failed(&file, "create"))
}

fn open_database(file: &Path) -> Result<Connection, rusqlite::Error> {
    let mut database = Connection::open(file)?;
    database.busy_timeout(limits::DATABASE_WRITE_PATIENCE)?;
    database.pragma_update(None, "journal_mode", "wal")?;
    database.pragma_update(None, "synchronous", "normal")?;
    database.pragma_update(None, "foreign_keys", true)?;
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.commit()?;
    Ok(database)
}

/// Removes a file, link or tree, if it is there; folders of a store path must first be made writable.
fn remove_tree(root: &Path) -> Result<(), AddError> {
    match root.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(root).map_err(failed(root, "remove")),
        _ => {}
    }
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
            .map_err(failed(&folder, "set the mode of"))?;
        for entry in fs::read_dir(&folder).map_err(failed(&folder, "list"))? {
            let entry = entry.map_err(failed(&folder, "list"))?;
            if entry.file_type().map_err(failed(&folder, "list"))?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(root).map_err(failed(root, "remove"))
}

fn failed(file: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> AddError {
    move |source| AddError::File { file: file.to_path_buf(), doing, source }
}

fn refused(database: &Path) -> impl FnOnce(rusqlite::Error) -> AddError {
    move |source| AddError::Database { database: database.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::{Command, Output as Finished};

    use crate::formats::store_path::StoreDir;

    struct Store {
        folder: tempfile::TempDir,
    }

    impl Drop for Store {
        fn drop(&mut self) {
            // Only root may remove what is in a read-only folder.
            let _ = remove_tree(self.folder.path());
        }
    }

    impl Store {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a folder") }
        }

        fn settings(&self) -> Settings {
            let root = self.folder.path().join("root");
            let state_dir = root.join("nix/var/nix");
            Settings {
                store_dir: StoreDir::new("/nix/store").expect("a store directory"),
                real_store: root.join("nix/store"),
                database: state_dir.join("db/db.sqlite"),
                log_dir: root.join("nix/var/log/nix"),
                daemon_socket: state_dir.join("daemon-socket/socket"),
                state_dir,
            }
        }

        fn writer(&self) -> Writer {
            Writer::open(self.settings()).expect("the store opens")
        }

        /// A folder to be added.
        fn source(&self) -> PathBuf {
            let source = self.folder.path().join("source");
            fs::create_dir_all(source.join("bin")).expect("mkdir");
            fs::write(source.join("bin/run"), "#!/bin/sh\n").expect("write");
            fs::set_permissions(source.join("bin/run"), fs::Permissions::from_mode(0o750)).expect("chmod");
            fs::write(source.join("large"), vec![7; 200_000]).expect("write");
            symlink("bin/run", source.join("link")).expect("symlink");
            source
        }

        /// Runs Nix on this store.
        fn nix(&self, command: &[&str]) -> Finished {
            Command::new(command[0])
                .args(&command[1..])
                .arg("--store")
                .arg(self.folder.path().join("root"))
                .env("HOME", self.folder.path())
                .env("NIX_CONFIG", "experimental-features = nix-command\n")
                .output()
                .expect("Nix is installed: scripts/test sees to it")
        }

        fn nix_says(&self, command: &[&str]) -> String {
            let Finished { status, stdout, stderr } = self.nix(command);
            let stderr = String::from_utf8_lossy(&stderr);
            assert!(status.success(), "{command:?}: {stderr}");
            String::from_utf8_lossy(&stdout).trim().to_owned()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.settings().real_store).expect("list");
            let name = |entry: io::Result<fs::DirEntry>| {
                entry.expect("list").file_name().into_string().expect("ASCII")
            };
            let mut names: Vec<String> = entries.map(name).filter(|name| name != ".links").collect();
            names.sort();
            names
        }
    }

    #[test]
    fn nix_gives_the_same_path_and_accepts_the_store() {
        let (ours, theirs) = (Store::new(), Store::new());
        let source = ours.source();
        let added = ours.writer().add_source(&source, "sample").expect("added");
        let source = source.to_str().expect("UTF-8");
        let expected = theirs.nix_says(&["nix", "store", "add-path", "--name", "sample", source]);
        assert_eq!(format!("/nix/store/{}", added.path), expected);

        let info = |store: &Store| {
            let json = store.nix_says(&["nix", "path-info", "--json", &expected]);
            let mut json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            json[0]["registrationTime"] = 0.into();
            json
        };
        assert_eq!(info(&ours), info(&theirs));
        ours.nix_says(&["nix-store", "--verify", "--check-contents"]);
        assert_eq!(ours.nix_says(&["nix-store", "--verify-path", &expected]), "");
    }

    #[test]
    fn the_schema_is_the_one_that_nix_makes() {
        let (ours, theirs) = (Store::new(), Store::new());
        drop(ours.writer());
        theirs.nix_says(&["nix", "store", "ping"]);
        let schema = |store: &Store| -> Vec<String> {
            let database = Connection::open(store.settings().database).expect("open");
            let mut query = database
                .prepare("select sql from sqlite_master where sql not null order by name")
                .expect("SQL");
            let rows = query.query_map([], |row| row.get::<_, String>(0)).expect("rows");
            // SQLite keeps a statement as it was written, but for its first words.
            rows.map(|row| {
                row.expect("a row").to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
            })
            .collect()
        };
        assert_eq!(schema(&ours), schema(&theirs));
        let number = |store: &Store| fs::read(store.settings().state_dir.join("db/schema")).expect("read");
        assert_eq!(number(&ours), number(&theirs));
    }

    #[test]
    fn an_output_has_its_references_and_itself() {
        let store = Store::new();
        let source = store.source();
        let mut writer = store.writer();
        let library = writer.add_source(&source, "library").expect("added").path;
        let output = Output {
            name: "program-1.0",
            inputs: Sha256::of(b"how it was made"),
            references: std::slice::from_ref(&library),
            self_reference: true,
        };
        let own = writer.output_path(&output).expect("a name");
        fs::write(source.join("names"), format!("/nix/store/{own} /nix/store/{library}")).expect("write");
        let added = writer.add_output(&source, &output).expect("added");
        assert_eq!((&added.path, &added.ca), (&own, &None));
        drop(writer);

        let full = format!("/nix/store/{own}");
        let references = store.nix_says(&["nix-store", "--query", "--references", &full]);
        let mut expected = [format!("/nix/store/{library}"), full];
        expected.sort();
        let mut found: Vec<&str> = references.lines().collect();
        found.sort_unstable();
        assert_eq!(found, expected);
        store.nix_says(&["nix-store", "--verify", "--check-contents"]);
    }

    #[test]
    fn adding_again_changes_nothing_and_a_reader_may_look_meanwhile() {
        let store = Store::new();
        let source = store.source();
        let mut writer = store.writer();
        let first = writer.add_source(&source, "sample").expect("added");
        assert_eq!(writer.add_source(&source, "sample").expect("there already"), first);
        assert_eq!(writer.find(&first.path).expect("readable"), Some(first.clone()));
        assert!(writer.is_intact(&first));
        assert!(matches!(Writer::open(store.settings()), Err(AddError::Busy { .. })));
        drop(writer);
        assert_eq!(store.writer().all().expect("readable"), [first]);
    }

    #[test]
    fn what_an_interrupted_run_left_is_removed_or_replaced() {
        let store = Store::new();
        let source = store.source();
        let path = store.writer().add_source(&source, "sample").expect("added").path;
        let place = store.settings().real_store.join(path.as_str());
        // As after a crash between renaming and registering, and one while the tree was made.
        Connection::open(store.settings().database)
            .and_then(|database| database.execute("delete from ValidPaths", []))
            .expect("deleted");
        let half_made = store.settings().real_store.join(format!("{HALF_MADE}{path}"));
        fs::create_dir_all(half_made.join("sub")).expect("mkdir");
        fs::set_permissions(half_made.join("sub"), fs::Permissions::from_mode(0o555)).expect("chmod");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::write(place.join("leftover"), "half-written").expect("write");

        let mut writer = store.writer();
        assert_eq!(store.names(), [path.as_str()]);
        let added = writer.add_source(&source, "sample").expect("added");
        assert!(writer.is_intact(&added));
        assert_eq!(store.names(), [path.as_str()]);
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let store = Store::new();
        let source = store.source();
        let mut writer = store.writer();
        let pipe = source.join("bin/pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        let error = writer.add_source(&source, "sample").expect_err("a fifo");
        assert!(
            matches!(error, AddError::Source(NarError::Odd { ref file, .. }) if *file == pipe),
            "{error}"
        );
        fs::remove_file(&pipe).expect("remove");

        let absent =
            StorePath::from_basename("00000000000000000000000000000000-absent").expect("a store path");
        let output =
            Output { name: "x", inputs: Sha256::of(b""), references: &[absent], self_reference: false };
        let error = writer.add_output(&source, &output).expect_err("it refers to nothing");
        assert!(matches!(error, AddError::Reference { .. }), "{error}");
        let path = writer.output_path(&output).expect("a name");
        assert_eq!(writer.find(&path).expect("readable"), None);
        assert!(store.names().is_empty());
        assert!(matches!(writer.add_source(&source, "a name"), Err(AddError::Name(_))));
    }

    #[test]
    fn a_damaged_path_is_seen() {
        let store = Store::new();
        let source = store.source();
        let mut writer = store.writer();
        let added = writer.add_source(&source, "sample").expect("added");
        assert!(writer.is_intact(&added));
        let file = writer.place(&added.path).join("large");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
        fs::write(&file, vec![8; 200_000]).expect("write");
        assert!(!writer.is_intact(&added));
    }

    #[test]
    fn an_unknown_schema_is_refused() {
        let store = Store::new();
        drop(store.writer());
        let schema = store.settings().state_dir.join("db/schema");
        fs::write(&schema, "9\n").expect("write");
        let error = Writer::open(store.settings()).expect_err("another schema");
        assert!(matches!(error, AddError::Schema { ref found, .. } if found == "9"), "{error}");
    }
}
