//! The one thread that runs SQL for Nix's clients: answers workers' questions from the database.
//!
//! A question that finds the database locked is put off and tried again every few milliseconds, each to its own
//! deadline, so that one locked database does not make the questions behind it wait in turn. A big database is
//! read into the index in slices between questions; until that is done, every path is asked for, and answered
//! straight from SQL. Questions for paths that wait together are read in one transaction: looking at the file, its
//! locks and their release cost more than a row.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tracing::info;

use super::database::{Database, Mark, Trouble};
use super::index::{Index, Snapshot};
use super::quarantine::Marked;
use super::realisations;
use super::rendered::Rendered;
use super::rows::{self, Malformed, Row};
use super::served::Served;
use super::warnings::Warnings;
use super::{Settings, StoreError};
use crate::causes::with_causes;
use crate::formats::hash::Sha256;
use crate::formats::realisation::OutputId;
use crate::formats::signature::SecretKey;
use crate::formats::store_path::{StoreDir, StorePath, StorePathHash};
use crate::limits;
use crate::mailbox::{Outlet, Receiver, Silence, Ticket};
use crate::metrics::{Query, StoreMetrics};

/// What the actor can be asked.
pub enum Request {
    /// Read what has changed. Answered with [`Answer::Refreshed`].
    Refresh {
        /// Who asks.
        ticket: Ticket,
        /// When the oldest request arrived that waits for it: a locked database is waited for from then on.
        since: Instant,
    },
    /// What is to be served of a path. Answered with [`Answer::Info`].
    Info {
        /// Who asks.
        ticket: Ticket,
        /// The path's hash part.
        hash: StorePathHash,
    },
    /// What an output of a content-addressed derivation became. Answered with [`Answer::Document`].
    Realisation {
        /// Who asks.
        ticket: Ticket,
        /// The output.
        id: OutputId,
    },
    /// Which derivation a path comes from, to find its build log. Answered with [`Answer::Deriver`].
    Deriver {
        /// Who asks.
        ticket: Ticket,
        /// The hash part of an output, valid or not, or of a valid derivation.
        hash: StorePathHash,
    },
    /// The size of a path's NAR, which the database did not have; see [`Info::Unsized`]. No answer: ask for the
    /// path again.
    Computed {
        /// The path's hash part.
        hash: StorePathHash,
        /// The hash of the NAR that was measured; it must be the one that the database has.
        nar_hash: Sha256,
        /// Its size, in bytes.
        nar_size: u64,
    },
    /// Sign with these keys from now on. No answer.
    Keys(Arc<[SecretKey]>),
    /// These paths are damaged, and as good as absent; all others are not. No answer.
    Quarantine(Arc<Marked>),
}

/// What the actor answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// What is valid now.
    Refreshed(Arc<Snapshot>),
    /// What is to be served of a path.
    Info {
        /// The path's hash part.
        hash: StorePathHash,
        /// The epoch in which it was read: see [`super::view`].
        epoch: u64,
        /// What it is.
        info: Info,
    },
    /// A realisation's JSON document, signed; or none.
    Document(Option<Bytes>),
    /// The derivation, or none.
    Deriver(Option<StorePath>),
    /// The database was locked for too long, or cannot be read: answer 503.
    Unavailable,
}

/// What is to be served of a path.
#[derive(Clone, Debug)]
pub enum Info {
    /// Nothing: it is not valid, or its row is no use.
    Absent,
    /// This.
    Served(Arc<Served>),
    /// The database has no size for the path's NAR, and there is no narinfo without one. Whoever computes the
    /// NAR's hash and size sends [`Request::Computed`], if the hash is this one.
    Unsized {
        /// The path.
        path: StorePath,
        /// What its NAR must hash to.
        nar_hash: Sha256,
    },
}

/// The store's metadata: database, index, rendered narinfos and keys.
pub struct Store {
    dir: StoreDir,
    database: Database,
    /// The database's state before the index was last brought up to date.
    mark: Option<Mark>,
    index: Index,
    snapshot: Arc<Snapshot>,
    keys: Arc<[SecretKey]>,
    /// By row id, so that what did not change is not signed again.
    rendered: Arc<Rendered>,
    /// Sizes computed for rows that have none.
    sizes: HashMap<StorePathHash, (Sha256, u64)>,
    /// Paths that are not what the database says.
    marked: Arc<Marked>,
    /// Questions that found the database locked, the oldest first, each with the time it gives up.
    deferred: VecDeque<(Instant, Request)>,
    tried: Instant,
    /// Whether the database was locked then.
    locked: bool,
    warnings: Warnings,
    metrics: Arc<StoreMetrics>,
}

impl Store {
    /// Opens the store's database, so that what is wrong with it is known at the start. Nothing is indexed yet.
    ///
    /// # Errors
    /// Where the database is missing, cannot be read, or is not Nix's. One that is locked just now is no error.
    pub fn open(
        settings: &Settings,
        keys: Arc<[SecretKey]>,
        metrics: Arc<StoreMetrics>,
    ) -> Result<Self, StoreError> {
        let mut database = Database::new(&settings.database);
        match database.read(|connection| rows::has_table(connection, "ValidPaths", &["id", "path", "hash"])) {
            Ok(true) | Err(Trouble::Busy) => {}
            Ok(false) => {
                return Err(StoreError::NotNix { path: settings.database.clone(), table: "ValidPaths" });
            }
            Err(Trouble::Unreadable(error)) => return Err(error),
        }
        Ok(Self {
            dir: settings.store_dir.clone(),
            database,
            mark: None,
            index: Index::default(),
            snapshot: Arc::new(Snapshot::unknown()),
            keys,
            rendered: Arc::new(Rendered::with_room(limits::NARINFO_CACHE_BYTES)),
            sizes: HashMap::new(),
            marked: Arc::default(),
            deferred: VecDeque::new(),
            tried: Instant::now(),
            locked: false,
            warnings: Warnings::default(),
            metrics,
        })
    }

    /// Answers questions until nobody is left to ask.
    pub fn run(mut self, mailbox: &Receiver<Request>, outlet: &Outlet<Answer>) {
        // So that a big database is being indexed before the first question.
        if let Err(trouble @ Trouble::Unreadable(_)) = self.refresh() {
            self.complain(&trouble);
        }
        loop {
            self.warnings.tick();
            match self.next(mailbox) {
                Ok(request) => {
                    self.take(request);
                    // What else came meanwhile, to be read together.
                    while self.deferred.len() < limits::INFO_BATCH
                        && let Some(request) = mailbox.try_recv()
                    {
                        self.take(request);
                    }
                    self.attend(outlet);
                }
                Err(Silence::Quiet) => self.retry(outlet),
                Err(Silence::Closed) => return self.warnings.settle(),
            }
        }
    }

    /// Answers a question, or puts it off where the database is locked.
    pub fn handle(&mut self, request: Request, outlet: &Outlet<Answer>) {
        self.take(request);
        self.attend(outlet);
    }

    /// Does what is not a question, and puts a question behind those that wait.
    ///
    /// What changes what is told takes effect on questions before it as well, if they wait: they are answered later.
    fn take(&mut self, request: Request) {
        match request {
            Request::Keys(keys) => self.replace_keys(keys),
            Request::Quarantine(marked) => self.quarantine(marked),
            Request::Computed { hash, nar_hash, nar_size } => self.learn_size(hash, nar_hash, nar_size),
            request => {
                // Questions put off earlier come first: an answer must not be older than one before it.
                let since = match request {
                    Request::Refresh { since, .. } => since,
                    _ => Instant::now(),
                };
                self.deferred.push_back((since + limits::DATABASE_PATIENCE, request));
            }
        }
    }

    /// Answers the questions that wait, unless the database was found locked a moment ago.
    fn attend(&mut self, outlet: &Outlet<Answer>) {
        if !self.locked || self.tried.elapsed() >= limits::DATABASE_PAUSE {
            self.retry(outlet);
        }
    }

    /// Tries the questions that wait, in their order, and gives up those that have waited too long.
    pub fn retry(&mut self, outlet: &Outlet<Answer>) {
        self.tried = Instant::now();
        self.locked = false;
        while !self.deferred.is_empty() {
            let (count, attempt) = if self.locked { (1, Err(Trouble::Busy)) } else { self.attempt() };
            match attempt {
                Ok(answers) => {
                    for ((_, request), answer) in self.deferred.drain(..count).zip(answers) {
                        if let Some(ticket) = request.ticket() {
                            outlet.send(ticket, answer);
                        }
                    }
                }
                Err(Trouble::Busy) if self.deferred.front().is_some_and(|&(until, _)| self.tried < until) => {
                    self.locked = true;
                    self.metrics.waited();
                    return;
                }
                Err(trouble) => {
                    self.locked = matches!(trouble, Trouble::Busy);
                    self.complain(&trouble);
                    self.metrics.unavailable();
                    // The others of a batch may have come later, and each has a time of its own.
                    if let Some((_, request)) = self.deferred.pop_front()
                        && let Some(ticket) = request.ticket()
                    {
                        outlet.send(ticket, Answer::Unavailable);
                    }
                }
            }
        }
    }

    /// Whether something was told of the database.
    #[cfg(test)]
    pub(super) fn has_complained(&self) -> bool {
        self.warnings.has_told()
    }

    /// Makes every question that was put off so much older.
    #[cfg(test)]
    pub(super) fn pass_time(&mut self, time: std::time::Duration) {
        for (deadline, _) in &mut self.deferred {
            *deadline -= time;
        }
    }

    /// Reads one slice of a big database into the index. Returns whether there is more.
    ///
    /// # Errors
    /// Where the database is locked or cannot be read; the slice can be tried again.
    fn load(&mut self) -> Result<bool, Trouble> {
        self.metrics.queried(if self.index.is_complete() { Query::Additions } else { Query::Load });
        let last = self.index.last().map_or(0, |(id, _)| id);
        let rows =
            self.database.read(|connection| rows::above(connection, &self.dir, last, limits::INDEX_SLICE))?;
        let full = rows.len() == limits::INDEX_SLICE;
        if full && self.index.last().is_none() {
            self.index.reserve(self.database.read(rows::count)?);
        }
        self.index.extend(&rows, full);
        if self.index.merge() {
            info!(paths = self.index.len(), "indexed the store's paths");
            let valid = self.database.read(rows::count)?;
            if self.index.len() > 2 * valid + limits::INDEX_DELTA {
                // Mostly deleted paths. Reading anew is the one way to know which.
                self.index.clear();
                return Ok(true);
            }
        }
        Ok(full)
    }

    /// The next question; meanwhile the index is completed.
    pub(super) fn next(&mut self, mailbox: &Receiver<Request>) -> Result<Request, Silence> {
        if !self.deferred.is_empty() {
            return mailbox.recv_timeout(limits::DATABASE_PAUSE);
        }
        if self.mark.is_none() || self.index.is_complete() {
            return match self.warnings.is_owing() {
                // However long nobody asks.
                true => mailbox.recv_timeout(limits::WARNING_PAUSE),
                false => mailbox.recv().ok_or(Silence::Closed),
            };
        }
        if let Some(request) = mailbox.try_recv() {
            return Ok(request);
        }
        match self.load() {
            Ok(more) => {
                if !more {
                    self.publish();
                }
                Err(Silence::Quiet)
            }
            Err(trouble) => {
                // A lock is nothing to tell of before somebody has waited for its end.
                if matches!(trouble, Trouble::Unreadable(_)) {
                    self.complain(&trouble);
                }
                mailbox.recv_timeout(limits::DATABASE_PAUSE)
            }
        }
    }

    /// Tries the questions at the front that can be read together: how many they are, and their answers, if it had any.
    fn attempt(&mut self) -> (usize, Result<Vec<Answer>, Trouble>) {
        let hashes: Vec<StorePathHash> =
            self.deferred.iter().take(limits::INFO_BATCH).map_while(|(_, request)| request.path()).collect();
        if !hashes.is_empty() {
            return (hashes.len(), self.infos(&hashes));
        }
        let answer = match self.deferred.front() {
            Some((_, Request::Refresh { .. })) => self.refresh().map(Answer::Refreshed),
            Some((_, Request::Realisation { id, .. })) => {
                let id = id.clone();
                self.realisation(&id).map(Answer::Document)
            }
            Some((_, Request::Deriver { hash, .. })) => {
                let hash = *hash;
                self.deriver(&hash).map(Answer::Deriver)
            }
            // No questions; nobody waits for an answer.
            _ => Ok(Answer::Unavailable),
        };
        (1, answer.map(|answer| vec![answer]))
    }

    /// Brings the index up to date and publishes it, if anything was committed since the last time.
    ///
    /// The mark is taken before the rows are read. What is committed in between may be read already; it moves
    /// the mark all the same, and the next refresh finds nothing new.
    fn refresh(&mut self) -> Result<Arc<Snapshot>, Trouble> {
        let mark = self.database.look()?;
        if self.mark == Some(mark) {
            return Ok(Arc::clone(&self.snapshot));
        }
        if !self.continues(&mark)? {
            self.index.clear();
            self.rendered.clear();
        }
        // One slice here: nearly always all there is. What remains is read between questions.
        self.load()?;
        self.mark = Some(mark);
        self.metrics.refreshed();
        self.publish();
        Ok(Arc::clone(&self.snapshot))
    }

    /// Whether the index is of the database that `mark` was taken of, so that reading additions is enough.
    ///
    /// The same inode does not say so after it was opened anew: inodes are used again, and a file can be
    /// written over. The highest row must then be the one that the index has, too.
    fn continues(&mut self, mark: &Mark) -> Result<bool, Trouble> {
        let (Some(old), Some((id, hash))) = (self.mark, self.index.last()) else { return Ok(false) };
        if old.same_opening(mark) {
            return Ok(true);
        }
        let now = self.database.read(|connection| rows::hash_of(connection, &self.dir, id))?;
        Ok(old.same_file(mark) && now == Some(hash))
    }

    fn publish(&mut self) {
        let next = Arc::new(self.index.snapshot(self.snapshot.epoch() + 1, &self.rendered));
        std::mem::replace(&mut self.snapshot, next).retire();
    }

    /// What is to be served of these paths, read in one transaction.
    fn infos(&mut self, hashes: &[StorePathHash]) -> Result<Vec<Answer>, Trouble> {
        let (dir, index, rendered) = (&self.dir, &self.index, &self.rendered);
        let found = self.database.read(|connection| {
            let find = |hash| Found::read(connection, dir, hash, index.find(hash), rendered);
            hashes.iter().map(find).collect::<Result<Vec<_>, _>>()
        })?;
        let epoch = self.snapshot.epoch();
        let answer = |(&hash, found)| {
            self.metrics.queried(Query::Info);
            Answer::Info { hash, epoch, info: self.info(&hash, found) }
        };
        Ok(hashes.iter().zip(found).map(answer).collect())
    }

    fn info(&mut self, hash: &StorePathHash, found: Option<Found>) -> Info {
        let id = self.index.find(hash);
        let Some(Found { row, references, unchanged }) = found else {
            if id.is_some() {
                self.index.forget(*hash);
            }
            return Info::Absent;
        };
        if id != Some(row.id) {
            self.index.learn(*hash, row.id);
        }
        if self.is_quarantined(hash, &row) {
            return Info::Absent;
        }
        if unchanged && let Some(served) = self.rendered.confirm(&row, self.snapshot.epoch()) {
            return Info::Served(served);
        }
        self.render(hash, row, &references).unwrap_or_else(|(path, malformed)| {
            self.warnings.tell(format_args!(
                "not serving {path}, whose row in the database is malformed: {malformed}"
            ));
            Info::Absent
        })
    }

    fn render(
        &mut self,
        hash: &StorePathHash,
        row: Row,
        references: &[String],
    ) -> Result<Info, (String, Malformed)> {
        let render = || {
            let (path, nar_hash) = row.identity(&self.dir)?;
            let computed = self.sizes.get(hash).filter(|(of, _)| *of == nar_hash).map(|&(_, size)| size);
            let Some(nar_size) = row.known_size().or(computed) else {
                return Ok(Err(Info::Unsized { path, nar_hash }));
            };
            Ok(Ok(row.interpret(&self.dir, references, nar_size)?))
        };
        match render() {
            Err(malformed) => Err((row.path, malformed)),
            Ok(Err(info)) => Ok(info),
            Ok(Ok(info)) => {
                let begun = Instant::now();
                let served = Arc::new(Served::new(&self.dir, info, &self.keys));
                self.metrics.signed(self.keys.len(), begun.elapsed());
                self.rendered.keep(row, Arc::clone(&served), self.snapshot.epoch());
                Ok(Info::Served(served))
            }
        }
    }

    fn realisation(&mut self, id: &OutputId) -> Result<Option<Bytes>, Trouble> {
        self.metrics.queried(Query::Realisation);
        let found = self.database.read(|connection| realisations::find(connection, &self.dir, id))?;
        Ok(found.map(|realisation| {
            let begun = Instant::now();
            let signatures = realisation.sign_all(&self.keys);
            self.metrics.signed(self.keys.len(), begun.elapsed());
            realisation.to_json(&signatures).into()
        }))
    }

    fn deriver(&mut self, hash: &StorePathHash) -> Result<Option<StorePath>, Trouble> {
        self.metrics.queried(Query::Deriver);
        let id = self.index.find(hash);
        let found = self.database.read(|connection| {
            let row = find_row(connection, &self.dir, id, hash)?;
            let by_output = rows::deriver_by_output(connection, &self.dir, hash)?;
            Ok((row, by_output))
        })?;
        let (row, by_output) = found;
        let parse = |full: &String| self.dir.parse(full).ok();
        let itself = row.as_ref().and_then(|row| parse(&row.path)).filter(StorePath::is_derivation);
        let registered = || row.as_ref().and_then(|row| row.deriver.as_ref()).and_then(parse);
        Ok(itself.or_else(registered).or_else(|| by_output.as_ref().and_then(parse)))
    }

    fn replace_keys(&mut self, keys: Arc<[SecretKey]>) {
        self.keys = keys;
        self.rendered.clear();
        self.publish();
    }

    /// Workers ask anew for all that they know.
    fn quarantine(&mut self, marked: Arc<Marked>) {
        self.metrics.quarantined(marked.len());
        self.marked = marked;
        self.publish();
    }

    /// Whether the path is marked, with the hash that its row has.
    fn is_quarantined(&self, hash: &StorePathHash, row: &Row) -> bool {
        let registered = self.marked.get(hash);
        registered.is_some_and(|registered| Sha256::parse(&row.hash).is_ok_and(|hash| hash == *registered))
    }

    fn learn_size(&mut self, hash: StorePathHash, nar_hash: Sha256, nar_size: u64) {
        if self.sizes.len() >= limits::COMPUTED_SIZES {
            self.sizes.clear();
        }
        self.sizes.insert(hash, (nar_hash, nar_size));
    }

    fn complain(&mut self, trouble: &Trouble) {
        match trouble {
            Trouble::Busy => match self.database.journal().map(Path::to_owned) {
                Some(journal) => self.warnings.tell(format_args!(
                    "the Nix database has been locked for too long; if nothing writes to it, a writer died and left {}, \
                     which Nix rolls back when it next writes, as with `nix-store --verify`",
                    journal.display()
                )),
                None => self.warnings.tell(
                    "the Nix database has been locked for too long; or this user may not read the -wal and -shm beside it",
                ),
            },
            Trouble::Unreadable(error) => self.warnings.tell(with_causes(error)),
        }
    }
}

impl Request {
    /// Who waits for the answer.
    fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Refresh { ticket, .. }
            | Self::Info { ticket, .. }
            | Self::Realisation { ticket, .. }
            | Self::Deriver { ticket, .. } => Some(*ticket),
            Self::Computed { .. } | Self::Keys(_) | Self::Quarantine(_) => None,
        }
    }

    /// The path that is asked for.
    fn path(&self) -> Option<StorePathHash> {
        match self {
            Self::Info { hash, .. } => Some(*hash),
            _ => None,
        }
    }
}

/// What the database has of a path.
struct Found {
    row: Row,
    /// Full paths; none where the row is unchanged.
    references: Vec<String>,
    /// Whether it was rendered as it is, so that its references need not be read.
    unchanged: bool,
}

impl Found {
    fn read(
        connection: &rusqlite::Connection,
        dir: &StoreDir,
        hash: &StorePathHash,
        id: Option<i64>,
        rendered: &Rendered,
    ) -> rusqlite::Result<Option<Self>> {
        let Some(row) = find_row(connection, dir, id, hash)? else { return Ok(None) };
        let unchanged = rendered.has(&row);
        let references = if unchanged { Vec::new() } else { rows::references(connection, row.id)? };
        Ok(Some(Self { row, references, unchanged }))
    }
}

/// The row of the path with this hash part, which the index says is `id`.
fn find_row(
    connection: &rusqlite::Connection,
    dir: &StoreDir,
    id: Option<i64>,
    hash: &StorePathHash,
) -> rusqlite::Result<Option<Row>> {
    if let Some(id) = id
        && let Some(row) = rows::by_id(connection, id)?.filter(|row| row.has_hash(dir, hash))
    {
        return Ok(Some(row));
    }
    rows::by_hash(connection, dir, hash)
}
