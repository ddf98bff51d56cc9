//! What a worker knows of the store, and when that may be told.
//!
//! **The promise.** A path registered before a request arrived is served by it, and one deleted before it is
//! not. No request waits for more than one reading of the database that began after it arrived.
//!
//! **How a worker keeps it.** It reads what has arrived, then calls [`View::look`], at most once a turn and only
//! when a request needs it.
//! - [`Look::Fresh`]: nothing was committed since before the snapshot was read, so that the snapshot holds what
//!   was committed before each of those requests. [`View::find`] answers them.
//! - [`Look::Stale`]: the worker asks the actor for a refresh and sets those requests aside. Requests that arrive
//!   while it waits gather apart, without a look. When the snapshot comes, [`View::refreshed`] takes it, and the
//!   requests set aside are answered: the actor read it after it was asked, hence after they arrived. Then, in
//!   the same turn, a look for those that gathered.
//!
//! **Why a look is right.** The version it remembers is the one seen *before* the refresh was asked for. What
//! was committed by then is in the snapshot. What was committed after may or may not be; either way the version
//! has moved on from the remembered one and the next look says stale: one refresh too many, never one too few.
//! A look that sees nothing, because the database is locked or gone, remembers nothing and is stale as well.
//!
//! **Why a cached answer is right.** The actor says in which epoch it read a row: at a time when the snapshot of
//! that epoch had been read. An answer of the epoch of the view's snapshot, or of a later one, was therefore
//! read no earlier than the snapshot; and a fresh look says that nothing was committed since before that.
//! An answer of an earlier epoch is asked for again, unless another worker has been answered since. This is what tells deletions and changed signatures, which
//! the index does not.

use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::actor::Info;
use super::database::{Database, Mark};
use super::index::Snapshot;
use super::rendered::TYPICAL_BYTES;
use super::served::Served;
use crate::formats::store_path::StorePathHash;
use crate::limits;

/// Whether a view may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// What the view says holds for every request that arrived before the look.
    Fresh,
    /// The database has changed, or cannot be looked at: ask for a refresh.
    Stale,
}

/// What a view says of a hash part.
#[derive(Clone, Debug)]
pub enum Find {
    /// No valid path has it.
    Absent,
    /// This path has it.
    Served(Arc<Served>),
    /// The actor must be asked.
    Ask,
}

/// One worker's view of the store.
pub struct View {
    /// For looks alone; it never reads a row.
    database: Database,
    /// The mark before the snapshot was asked for.
    seen: Option<Mark>,
    /// What the first look saw that was stale since the last snapshot came: what `seen` becomes with the next.
    /// Of several such looks the first is kept, as it is not known which of them the refresh was asked after.
    asked: Option<Option<Mark>>,
    snapshot: Arc<Snapshot>,
    answers: Cache<StorePathHash, Answered, AnsweredWeight, BuildHasherDefault<FirstBytes>>,
}

/// What the actor answered, and in which epoch.
#[derive(Clone)]
struct Answered {
    epoch: u64,
    served: Option<Arc<Served>>,
}

impl View {
    /// A view of the database at `database`. It knows nothing: its first look is stale.
    pub fn new(database: &Path) -> Self {
        Self {
            database: Database::new(database),
            seen: None,
            asked: None,
            snapshot: Arc::new(Snapshot::unknown()),
            answers: Cache::with(
                usize::try_from(limits::VIEW_CACHE_BYTES / TYPICAL_BYTES).unwrap_or(usize::MAX),
                limits::VIEW_CACHE_BYTES,
                AnsweredWeight,
                BuildHasherDefault::default(),
                quick_cache::unsync::DefaultLifecycle::default(),
            ),
        }
    }

    /// Looks whether the database has changed: some microseconds.
    pub fn look(&mut self) -> Look {
        let mark = self.database.look().ok();
        if mark.is_some() && mark == self.seen && !self.snapshot.is_retired() {
            return Look::Fresh;
        }
        self.asked.get_or_insert(mark);
        Look::Stale
    }

    /// Takes the snapshot that was asked for after a stale look.
    pub fn refreshed(&mut self, snapshot: Arc<Snapshot>) {
        self.seen = self.asked.take().flatten();
        self.snapshot = snapshot;
    }

    /// What is known of a hash part. Allocates nothing, but where another worker was answered what this one was not.
    pub fn find(&mut self, hash: &StorePathHash) -> Find {
        let indexed = self.snapshot.find(hash);
        if indexed.is_none() && self.snapshot.complete() {
            return Find::Absent;
        }
        match self.answers.get(hash) {
            Some(answered) if answered.epoch >= self.snapshot.epoch() => match &answered.served {
                Some(served) => Find::Served(Arc::clone(served)),
                None => Find::Absent,
            },
            _ => self.find_rendered(hash, indexed),
        }
    }

    /// What another worker was answered.
    fn find_rendered(&mut self, hash: &StorePathHash, indexed: Option<i64>) -> Find {
        let Some((served, epoch)) = indexed.and_then(|id| self.snapshot.rendered(id, hash)) else {
            return Find::Ask;
        };
        self.answers.insert(*hash, Answered { epoch, served: Some(Arc::clone(&served)) });
        Find::Served(served)
    }

    /// Keeps what the actor answered in `epoch`.
    pub fn remember(&mut self, hash: StorePathHash, epoch: u64, info: &Info) {
        let served = match info {
            Info::Served(served) => Some(Arc::clone(served)),
            Info::Absent => None,
            // Soon it has a size.
            Info::Unsized { .. } => return,
        };
        self.answers.insert(hash, Answered { epoch, served });
    }

    /// Whether the looks are at an immutable connection.
    #[cfg(test)]
    pub(super) fn reads_without_locks(&self) -> bool {
        self.database.is_immutable()
    }

    /// Whether the looks are at files that are held on to.
    #[cfg(test)]
    pub(super) fn holds_files(&self) -> bool {
        self.database.is_held()
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

#[derive(Clone)]
struct AnsweredWeight;

impl Weighter<StorePathHash, Answered> for AnsweredWeight {
    fn weight(&self, _: &StorePathHash, answered: &Answered) -> u64 {
        size_of::<(StorePathHash, Answered)>() as u64
            + answered.served.as_ref().map_or(0, |served| served.weight())
    }
}

/// Hash parts are uniformly distributed already.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for (index, &byte) in bytes.iter().take(8).enumerate() {
            self.0 ^= u64::from(byte) << (8 * index);
        }
    }

    /// The length that comes before an array's bytes says nothing.
    fn write_usize(&mut self, _: usize) {}
}
