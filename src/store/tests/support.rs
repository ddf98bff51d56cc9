//! A store with Nix's own schema, somebody who writes to it, and a worker who asks.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tempfile::TempDir;

use crate::formats::hash::Sha256;
use crate::formats::signature::SecretKey;
use crate::formats::store_path::{StoreDir, StorePath, StorePathHash};
use crate::limits;
use crate::mailbox::{Outlet, Ticket};
use crate::metrics::Metrics;
use crate::store::Settings;
use crate::store::actor::{Answer, Info, Request, Store};
use crate::store::served::Served;
use crate::store::view::{Find, Look, View};

pub(super) const DIR: &str = "/nix/store";

/// How the database is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journal {
    Wal,
    /// As Nix since 2.22 does: `-wal` and `-shm` stay behind, empty, when the last writer closes.
    PersistentWal,
    Delete,
}

/// A path of the tests' store: the number says which.
pub(super) fn path(number: u64) -> StorePath {
    let mut hash = [0; StorePathHash::LEN];
    hash.copy_from_slice(&Sha256::of(&number.to_le_bytes()).0[..StorePathHash::LEN]);
    StorePath::from_parts(StorePathHash(hash), &format!("path-{number}")).expect("the name is plain")
}

fn full(number: u64) -> String {
    format!("{DIR}/{}", path(number))
}

/// A database as `nix-store --init` makes it, with the tables for content-addressed derivations.
pub(super) fn nix_database() -> &'static Path {
    static DATABASE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DATABASE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let nix = |program: &str, arguments: &[&str]| {
            let status = Command::new(program)
                .args(arguments)
                .env("NIX_STORE_DIR", folder.path().join("store"))
                .env("NIX_STATE_DIR", folder.path().join("var"))
                .env("NIX_LOG_DIR", folder.path().join("log"))
                .env("NIX_CONF_DIR", folder.path())
                .env_remove("NIX_REMOTE")
                .output()
                .expect("Nix is installed");
            assert!(status.status.success(), "{program}: {}", String::from_utf8_lossy(&status.stderr));
        };
        nix("nix-store", &["--init"]);
        nix("nix", &["--extra-experimental-features", "nix-command ca-derivations", "store", "ping"]);
        let path = folder.path().join("var/db/db.sqlite");
        // Whatever is in its WAL goes into the file.
        let connection = Connection::open(&path).expect("the database opens");
        connection.pragma_update(None, "journal_mode", "delete").expect("nobody else has it open");
        (folder, path)
    });
    path
}

/// A store folder with a database in it.
pub(super) struct Nix {
    pub(super) folder: TempDir,
    pub(super) journal: Journal,
}

impl Nix {
    pub(super) fn new(journal: Journal) -> Self {
        let nix = Self { folder: tempfile::tempdir().expect("a folder"), journal };
        fs::copy(nix_database(), nix.database()).expect("the database is copied");
        nix
    }

    pub(super) fn database(&self) -> PathBuf {
        self.folder.path().join("db.sqlite")
    }

    pub(super) fn settings(&self) -> Settings {
        settings(&self.database())
    }

    /// A connection that writes as Nix does.
    pub(super) fn writer(&self) -> Writer {
        writer_of(&self.database(), self.journal)
    }
}

pub(super) fn settings(database: &Path) -> Settings {
    Settings {
        store_dir: StoreDir::new(DIR).expect("it is one"),
        real_store: DIR.into(),
        database: database.to_owned(),
        state_dir: "/nowhere".into(),
        log_dir: "/nowhere".into(),
        daemon_socket: "/nowhere".into(),
    }
}

pub(super) fn writer_of(database: &Path, journal: Journal) -> Writer {
    let connection = Connection::open(database).expect("the database opens");
    let mode = if journal == Journal::Delete { "delete" } else { "wal" };
    connection.pragma_update(None, "journal_mode", mode).expect("the mode is set");
    connection.pragma_update(None, "foreign_keys", true).expect("it is known");
    Writer { connection, database: database.to_owned(), persistent: journal == Journal::PersistentWal }
}

/// Writes as Nix does.
pub(super) struct Writer {
    pub(super) connection: Connection,
    database: PathBuf,
    persistent: bool,
}

impl Writer {
    pub(super) fn register(&self, number: u64, references: &[u64]) {
        let sql = "INSERT INTO ValidPaths (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) \
                   VALUES (?1, ?2, 1700000000, NULL, ?3, NULL, NULL, NULL)";
        let hash = format!("sha256:{}", Sha256::of(full(number).as_bytes()).to_hex());
        let transaction = self.connection.unchecked_transaction().expect("nobody else writes");
        transaction.execute(sql, params![full(number), hash, 1000 + number as i64]).expect("it is new");
        for &reference in references {
            let sql = "INSERT INTO Refs SELECT a.id, b.id FROM ValidPaths a, ValidPaths b \
                       WHERE a.path = ?1 AND b.path = ?2";
            transaction.execute(sql, [full(number), full(reference)]).expect("both are valid");
        }
        transaction.commit().expect("it commits");
    }

    /// Registers many at once.
    pub(super) fn register_all(&self, numbers: std::ops::Range<u64>) {
        let sql = "INSERT INTO ValidPaths (path, hash, registrationTime, narSize) VALUES (?1, ?2, 0, 96)";
        let hash = format!("sha256:{}", Sha256::of(b"").to_hex());
        let transaction = self.connection.unchecked_transaction().expect("nobody else writes");
        for number in numbers {
            transaction.execute(sql, [&full(number), &hash]).expect("it is new");
        }
        transaction.commit().expect("it commits");
    }

    /// Whether it was there and nothing else refers to it.
    pub(super) fn delete(&self, number: u64) -> bool {
        self.connection
            .execute("DELETE FROM ValidPaths WHERE path = ?1", [full(number)])
            .is_ok_and(|rows| rows > 0)
    }

    pub(super) fn set(&self, number: u64, column: &str, value: impl rusqlite::ToSql) {
        let sql = format!("UPDATE ValidPaths SET {column} = ?2 WHERE path = ?1");
        self.connection.execute(&sql, params![full(number), value]).expect("it is a column");
    }

    /// Adds a well-formed signature.
    pub(super) fn sign(&self, number: u64, key: &SecretKey) {
        let text = key.sign(&number.to_le_bytes()).to_string();
        let sql = "UPDATE ValidPaths SET sigs = coalesce(sigs || ' ', '') || ?2 WHERE path = ?1";
        self.connection.execute(sql, [full(number), text]).expect("it is updated");
    }

    /// Closes as Nix does; what is in the WAL goes into the file.
    pub(super) fn close(self) {
        let Self { connection, database, persistent } = self;
        if persistent {
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("it is a WAL");
            let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", database.display()));
            let shm = fs::read(beside("-shm")).expect("it is there while a connection is");
            connection.close().expect("nothing is in use");
            // Rusqlite cannot ask SQLite to keep the files. Where this was the last connection, they are put back.
            if !beside("-wal").exists() {
                fs::write(beside("-shm"), shm).expect("it is written");
                fs::write(beside("-wal"), b"").expect("it is written");
            }
        } else {
            connection.close().expect("nothing is in use");
        }
    }
}

/// An actor driven by hand, and the answers it has given.
pub(super) struct Actor {
    pub(super) store: Store,
    pub(super) outlet: Outlet<Answer>,
    pub(super) answers: Arc<Mutex<VecDeque<Answer>>>,
}

/// The database gave no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unavailable;

impl Actor {
    pub(super) fn new(settings: &Settings, keys: &[SecretKey]) -> Self {
        let keys = keys.iter().map(|key| SecretKey::parse(&key.to_text()).expect("it is one")).collect();
        let store = Store::open(settings, keys, Metrics::new(1).store()).expect("the database is in order");
        let answers = Arc::new(Mutex::new(VecDeque::new()));
        let queue = Arc::clone(&answers);
        let outlet = Outlet::new(move |_, answer| queue.lock().expect("no test panicked").push_back(answer));
        Self { store, outlet, answers }
    }

    pub(super) fn ask(&mut self, request: Request) {
        self.store.handle(request, &self.outlet);
    }

    pub(super) fn answer(&self) -> Option<Answer> {
        self.answers.lock().expect("no test panicked").pop_front()
    }

    /// The answer, waiting for a locked database.
    pub(super) fn answer_in_time(&mut self) -> Answer {
        loop {
            if let Some(answer) = self.answer() {
                return answer;
            }
            std::thread::sleep(crate::limits::DATABASE_PAUSE);
            self.store.retry(&self.outlet);
        }
    }

    pub(super) fn info(&mut self, number: u64) -> Info {
        self.ask(Request::Info { ticket: TICKET, hash: path(number).hash() });
        match self.answer_in_time() {
            Answer::Info { info, .. } => info,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) const TICKET: Ticket = Ticket { worker: 0, slot: 0, serial: 0 };

/// A worker that has one request at a time.
pub(super) struct Worker {
    pub(super) view: View,
}

impl Worker {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { view: View::new(&settings.database) }
    }

    /// Looks until the files of the database are held on to, as they are once it was left alone for a moment.
    pub(super) fn until_held(&mut self, actor: &mut Actor) {
        let patience = Instant::now() + Duration::from_secs(60);
        while !self.view.holds_files() {
            assert!(Instant::now() < patience, "the files are not held on to");
            thread::sleep(limits::DATABASE_PAUSE);
            self.get(actor, 1).expect("it answers");
        }
    }

    /// One request, answered as `store::view` says.
    pub(super) fn get(&mut self, actor: &mut Actor, number: u64) -> Result<Option<Arc<Served>>, Unavailable> {
        let hash = path(number).hash();
        if self.view.look() == Look::Stale {
            actor.ask(Request::Refresh { ticket: TICKET, since: Instant::now() });
            match actor.answer_in_time() {
                Answer::Refreshed(snapshot) => self.view.refreshed(snapshot),
                Answer::Unavailable => return Err(Unavailable),
                other => panic!("{other:?}"),
            }
        }
        match self.view.find(&hash) {
            Find::Absent => Ok(None),
            Find::Served(served) => Ok(Some(served)),
            Find::Ask => {
                actor.ask(Request::Info { ticket: TICKET, hash });
                match actor.answer_in_time() {
                    Answer::Info { hash, epoch, info } => {
                        self.view.remember(hash, epoch, &info);
                        match info {
                            Info::Served(served) => Ok(Some(served)),
                            Info::Absent | Info::Unsized { .. } => Ok(None),
                        }
                    }
                    Answer::Unavailable => Err(Unavailable),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
