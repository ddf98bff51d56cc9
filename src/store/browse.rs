//! What people look at: how large the store is, which paths have a name, and what hangs together with one.
//!
//! An actor on a thread and a connection of its own answers, so that no client's narinfo ever waits behind a person's
//! search. A search reads every path's name, in slices, so that a writer of the database is not kept waiting either.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::database::{Database, Mark, Trouble};
use super::served::Served;
use super::{Settings, logs, rows};
use crate::causes::with_causes;
use crate::formats::store_path::{StoreDir, StorePath, StorePathHash};
use crate::limits;
use crate::mailbox::{Outlet, Receiver, Silence, Ticket};
use crate::metrics::{Metrics, Rates, Recent};

/// What the actor is asked.
#[derive(Debug)]
pub enum Request {
    /// How large the store is, and what it is asked. Answered with [`Answer::Overview`].
    Overview {
        /// Who asks.
        ticket: Ticket,
    },
    /// Which paths have a name. Answered with [`Answer::Found`].
    Search {
        /// Who asks.
        ticket: Ticket,
        /// What the names are to be like.
        search: Box<Search>,
    },
    /// What hangs together with a path. Answered with [`Answer::About`].
    About {
        /// Who asks.
        ticket: Ticket,
        /// The path.
        served: Arc<Served>,
    },
}

/// What the actor answers.
#[derive(Debug)]
pub enum Answer {
    /// How large the store is, and what it is asked.
    Overview(Overview),
    /// Which paths were found.
    Found(Found),
    /// What hangs together with a path; `None` where it is no longer valid.
    About(Option<Box<About>>),
    /// The database was locked for too long, or cannot be read.
    Unavailable,
}

/// How large the store is, and what it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Overview {
    /// The NARs of all valid paths, in bytes; `None` where the database gave no answer. May be some seconds old.
    pub nar_bytes: Option<u64>,
    /// What the server did lately.
    pub recent: Recent,
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// Words that a name must all have, in any order, without regard to case; or a store path, or its hash part.
    pub words: String,
    /// Whether derivations are wanted too.
    pub derivations: bool,
    /// The path after which the list goes on.
    pub after: Option<StorePath>,
}

/// What was found, by name.
#[derive(Debug, Default)]
pub struct Found {
    /// At most [`limits::SEARCH_PAGE`] paths, each with the size of its NAR.
    pub paths: Vec<Neighbour>,
    /// How many there are in all, those before and after this page included.
    pub count: usize,
    /// Whether more follow.
    pub more: bool,
}

/// What hangs together with a path.
#[derive(Debug)]
pub struct About {
    /// What it refers to, itself left out, by name.
    pub references: Vec<Neighbour>,
    /// What refers to it, itself left out, by name: at most [`limits::REFERRERS`] of them.
    pub referrers: Vec<Neighbour>,
    /// How many refer to it.
    pub referrer_count: usize,
    /// How many paths its closure has, at most [`limits::CLOSURE_PATHS`], and the size of their NARs in bytes.
    pub closure: (usize, u64),
    /// The derivation whose build log is there.
    pub log: Option<StorePath>,
    /// Whether the derivation it was built by is valid here.
    pub has_deriver: bool,
}

/// A path, as others name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The path.
    pub path: StorePath,
    /// The size of its NAR in bytes, if the database has it.
    pub nar_size: Option<u64>,
}

/// The actor.
pub struct Browser {
    settings: Settings,
    database: Database,
    counters: Arc<Metrics>,
    rates: Rates,
    total: Option<Total>,
}

/// The size of the store when it was last added up.
#[derive(Clone, Copy)]
struct Total {
    mark: Mark,
    nar_bytes: u64,
    at: Instant,
    took: Duration,
}

impl Browser {
    /// An actor for the store of `settings`, which also tells what `counters` did lately.
    pub fn new(settings: &Settings, counters: Arc<Metrics>) -> Self {
        Self {
            settings: settings.clone(),
            database: Database::new(&settings.database),
            counters,
            rates: Rates::default(),
            total: None,
        }
    }

    /// Answers until every sender is gone.
    pub fn run(mut self, mailbox: &Receiver<Request>, outlet: &Outlet<Answer>) {
        loop {
            let due = self.rates.sample(&self.counters, Instant::now());
            match mailbox.recv_timeout(due) {
                Ok(request) => self.handle(request, outlet),
                Err(Silence::Quiet) => {}
                Err(Silence::Closed) => return,
            }
        }
    }

    /// Answers one request.
    pub fn handle(&mut self, request: Request, outlet: &Outlet<Answer>) {
        let (ticket, answer) = match request {
            Request::Overview { ticket } => {
                let nar_bytes = self.nar_bytes().ok();
                let recent = self.rates.recent(&self.counters, Instant::now());
                (ticket, Ok(Answer::Overview(Overview { nar_bytes, recent })))
            }
            Request::Search { ticket, search } => (ticket, self.search(&search).map(Answer::Found)),
            Request::About { ticket, served } => (ticket, self.about(&served).map(Answer::About)),
        };
        let answer = answer.unwrap_or_else(|trouble| {
            if let Trouble::Unreadable(error) = &trouble {
                // The store's actor reads the same database, and warns.
                tracing::debug!(error = with_causes(error), "nothing can be looked up");
            }
            Answer::Unavailable
        });
        outlet.send(ticket, answer);
    }

    /// The size of all NARs. Added up anew when the database has changed, and so seldom that a store where it takes long
    /// spends a twentieth of its time on it.
    fn nar_bytes(&mut self) -> Result<u64, Trouble> {
        const SQL: &str = "SELECT max(id), CAST(sum(narSize) AS INTEGER), count(*) FROM \
                           (SELECT id, narSize FROM ValidPaths WHERE id > ?1 ORDER BY id LIMIT ?2)";
        let mark = self.database.look()?;
        if let Some(total) = self.total
            && (total.mark == mark || total.at.elapsed() < limits::TOTAL_PAUSE.max(20 * total.took))
        {
            return Ok(total.nar_bytes);
        }
        let begun = Instant::now();
        let (mut last, mut sum) = (0, 0_u64);
        loop {
            let (end, bytes, count) = self.database.read_patiently(|connection| {
                connection.prepare_cached(SQL)?.query_row((last, limits::INDEX_SLICE as i64), |row| {
                    let (end, bytes) = (row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?);
                    Ok((end.unwrap_or(0), bytes.unwrap_or(0), row.get::<_, i64>(2)?))
                })
            })?;
            sum = sum.saturating_add(u64::try_from(bytes).unwrap_or(0));
            if count < limits::INDEX_SLICE as i64 {
                break;
            }
            last = end;
        }
        self.total = Some(Total { mark, nar_bytes: sum, at: Instant::now(), took: begun.elapsed() });
        Ok(sum)
    }

    fn search(&mut self, search: &Search) -> Result<Found, Trouble> {
        let dir = self.settings.store_dir.clone();
        if let Some(hash) = named_hash(&dir, &search.words) {
            let row = self.database.read_patiently(|connection| rows::by_hash(connection, &dir, &hash))?;
            let path = row.as_ref().and_then(|row| dir.parse(&row.path).ok());
            let nar_size = row.as_ref().and_then(rows::Row::known_size);
            let paths: Vec<Neighbour> = path.into_iter().map(|path| Neighbour { path, nar_size }).collect();
            return Ok(Found { count: paths.len(), paths, more: false });
        }
        let mut best = Best::new(search);
        let mut last = String::new();
        loop {
            let slice = self.database.read_patiently(|connection| paths_after(connection, &last))?;
            slice.iter().filter_map(|full| dir.parse(full).ok()).for_each(|path| best.consider(path));
            match slice.into_iter().next_back() {
                Some(path) if path > last => last = path,
                // The end; or an odd row, that is no text and so comes after all that are.
                _ => break,
            }
        }
        let Best { count, heap, .. } = best;
        let mut paths: Vec<(String, StorePath)> = heap.into_sorted_vec();
        let more = paths.len() > limits::SEARCH_PAGE;
        paths.truncate(limits::SEARCH_PAGE);
        let paths = self.database.read_patiently(|connection| {
            let sized = |(_, path): &(String, StorePath)| {
                let row = rows::by_hash(connection, &dir, &path.hash())?;
                // One that was collected meanwhile has lost its size, and the link to it will say so.
                Ok(Neighbour { path: path.clone(), nar_size: row.and_then(|row| row.known_size()) })
            };
            paths.iter().map(sized).collect::<rusqlite::Result<Vec<_>>>()
        })?;
        Ok(Found { paths, count, more })
    }

    fn about(&mut self, served: &Served) -> Result<Option<Box<About>>, Trouble> {
        let info = &served.info;
        let (dir, hash) = (&self.settings.store_dir, info.path.hash());
        let about = self.database.read_patiently(|connection| {
            let Some(row) = rows::by_hash(connection, dir, &hash)? else { return Ok(None) };
            let has_deriver = match &info.deriver {
                Some(deriver) => rows::by_hash(connection, dir, &deriver.hash())?.is_some(),
                None => false,
            };
            Ok(Some(About {
                references: references(connection, dir, row.id)?,
                referrers: referrers(connection, dir, row.id)?,
                referrer_count: referrer_count(connection, row.id)?,
                closure: closure(connection, row.id)?,
                log: None,
                has_deriver,
            }))
        })?;
        let drv = if info.path.is_derivation() { Some(&info.path) } else { info.deriver.as_ref() };
        let log = drv.filter(|drv| logs::is_there(&self.settings.log_dir, drv)).cloned();
        Ok(about.map(|about| Box::new(About { log, ..about })))
    }
}

/// The first paths of a page, while all are looked at.
struct Best<'s> {
    words: Vec<String>,
    search: &'s Search,
    after: Option<(String, StorePath)>,
    /// The last on top, so that it is the one to go.
    heap: BinaryHeap<(String, StorePath)>,
    count: usize,
}

impl<'s> Best<'s> {
    fn new(search: &'s Search) -> Self {
        Self {
            words: search.words.split_whitespace().map(str::to_lowercase).collect(),
            search,
            after: search.after.clone().map(|path| (path.name().to_lowercase(), path)),
            heap: BinaryHeap::new(),
            count: 0,
        }
    }

    fn consider(&mut self, path: StorePath) {
        if path.is_derivation() && !self.search.derivations {
            return;
        }
        let name = path.name().to_lowercase();
        if !self.words.iter().all(|word| memchr::memmem::find(name.as_bytes(), word.as_bytes()).is_some()) {
            return;
        }
        self.count += 1;
        let found = (name, path);
        if self.after.as_ref().is_some_and(|after| found <= *after) {
            return;
        }
        if self.heap.len() <= limits::SEARCH_PAGE {
            self.heap.push(found);
        } else if self.heap.peek().is_some_and(|last| found < *last) {
            self.heap.pop();
            self.heap.push(found);
        }
    }
}

/// The hash part, where what is looked for is a store path or the beginning of one and nothing else.
fn named_hash(dir: &StoreDir, words: &str) -> Option<StorePathHash> {
    let word = words.trim();
    let inner = word.strip_prefix(dir.as_str()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(word);
    let (digits, rest) = inner.split_at_checked(StorePathHash::DIGITS)?;
    let is_path = rest.is_empty() || rest.starts_with(['-', '/']);
    StorePathHash::parse(digits.as_bytes()).filter(|_| is_path && !rest.contains(char::is_whitespace))
}

/// The next full paths, in the order of their hash parts: read from the index on `path` alone.
fn paths_after(connection: &Connection, last: &str) -> rusqlite::Result<Vec<String>> {
    const SQL: &str = "SELECT path FROM ValidPaths WHERE path > ?1 ORDER BY path LIMIT ?2";
    let limit = limits::INDEX_SLICE as i64;
    connection.prepare_cached(SQL)?.query_map((last, limit), |row| rows::text(row, 0))?.collect()
}

fn references(connection: &Connection, dir: &StoreDir, id: i64) -> rusqlite::Result<Vec<Neighbour>> {
    const SQL: &str = "SELECT path, narSize FROM Refs JOIN ValidPaths ON reference = id \
                       WHERE referrer = ?1 AND reference != ?1 LIMIT ?2";
    neighbours(connection, dir, SQL, id, limits::REFERENCES)
}

fn referrers(connection: &Connection, dir: &StoreDir, id: i64) -> rusqlite::Result<Vec<Neighbour>> {
    const SQL: &str = "SELECT path, narSize FROM Refs JOIN ValidPaths ON referrer = id \
                       WHERE reference = ?1 AND referrer != ?1 LIMIT ?2";
    neighbours(connection, dir, SQL, id, limits::REFERRERS)
}

fn neighbours(
    connection: &Connection,
    dir: &StoreDir,
    sql: &str,
    id: i64,
    limit: usize,
) -> rusqlite::Result<Vec<Neighbour>> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows =
        statement.query_map((id, limit as i64), |row| Ok((rows::text(row, 0)?, rows::number(row, 1)?)))?;
    let mut found = Vec::new();
    for row in rows {
        let (path, size) = row?;
        let Ok(path) = dir.parse(&path) else { continue };
        found.push(Neighbour { path, nar_size: size.and_then(|size| u64::try_from(size).ok()) });
    }
    found.sort_unstable_by(|one, other| (one.path.name(), &one.path).cmp(&(other.path.name(), &other.path)));
    Ok(found)
}

fn referrer_count(connection: &Connection, id: i64) -> rusqlite::Result<usize> {
    // Counted in the index alone: a libc has as many as there are paths.
    const SQL: &str = "SELECT (SELECT count(*) FROM Refs WHERE reference = ?1) \
                       - (SELECT count(*) FROM Refs WHERE reference = ?1 AND referrer = ?1)";
    let count = connection.prepare_cached(SQL)?.query_row([id], |row| row.get::<_, i64>(0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// How many paths the closure has, and the size of their NARs.
fn closure(connection: &Connection, id: i64) -> rusqlite::Result<(usize, u64)> {
    const SQL: &str = "WITH RECURSIVE closure(id) AS (\
                       SELECT ?1 UNION SELECT reference FROM Refs JOIN closure ON referrer = closure.id LIMIT ?2) \
                       SELECT count(*), CAST(sum(narSize) AS INTEGER) FROM closure JOIN ValidPaths USING (id)";
    let limit = limits::CLOSURE_PATHS as i64;
    connection.prepare_cached(SQL)?.query_row((id, limit), |row| {
        let (count, bytes) = (row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?);
        Ok((
            usize::try_from(count).unwrap_or(0),
            bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: usize, name: &str) -> StorePath {
        let hash = crate::formats::hash::Sha256::of(number.to_string().as_bytes()).to_base32();
        StorePath::from_basename(&format!("{}-{name}", &hash[..32])).expect("it is one")
    }

    fn looked_for(words: &str) -> Search {
        Search { words: words.to_owned(), derivations: false, after: None }
    }

    /// What is found of these, page by page, by a search that sees them in this order.
    fn all_pages(search: &Search, paths: &[StorePath]) -> Vec<Vec<StorePath>> {
        let (mut search, mut pages) = (search.clone(), Vec::new());
        loop {
            let mut best = Best::new(&search);
            paths.iter().for_each(|path| best.consider(path.clone()));
            let mut page: Vec<StorePath> =
                best.heap.into_sorted_vec().into_iter().map(|(_, path)| path).collect();
            let more = page.len() > limits::SEARCH_PAGE;
            page.truncate(limits::SEARCH_PAGE);
            search.after = page.last().cloned();
            pages.push(page);
            if !more {
                return pages;
            }
        }
    }

    #[test]
    fn pages_have_every_path_once_and_in_order() {
        let mut paths: Vec<StorePath> =
            (0..127).map(|number| path(number, &format!("Name-{}", number % 9))).collect();
        paths.extend((127..200).map(|number| path(number, "other")));
        let pages = all_pages(&looked_for("name"), &paths);
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [50, 50, 27]);
        let shown = pages.concat();
        let mut expected: Vec<StorePath> = paths[..127].to_vec();
        expected.sort_by(|one, other| (one.name(), one).cmp(&(other.name(), other)));
        assert_eq!(shown, expected);
        // Whatever order they are read in.
        paths.reverse();
        assert_eq!(all_pages(&looked_for("name"), &paths).concat(), expected);
    }

    #[test]
    fn words_must_all_be_there() {
        let paths =
            [path(0, "Hello-2.12"), path(1, "hello-2.10"), path(2, "world"), path(3, "hello-2.12.drv")];
        let names = |words: &str, derivations: bool| {
            let pages = all_pages(&Search { derivations, ..looked_for(words) }, &paths);
            pages.concat().iter().map(|path| path.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("HELLO", false), ["hello-2.10", "Hello-2.12"]);
        assert_eq!(names(" 2.12  hell ", true), ["Hello-2.12", "hello-2.12.drv"]);
        assert!(names("hello world", false).is_empty());
    }

    #[test]
    fn a_store_path_is_known_as_such() {
        let dir = StoreDir::new("/nix/store").expect("it is one");
        let hello = path(0, "hello");
        let full = format!("/nix/store/{hello}");
        for words in [&*hello.hash().to_string(), hello.as_str(), &full, &format!(" {full}/bin/hello ")] {
            assert_eq!(named_hash(&dir, words), Some(hello.hash()), "{words}");
        }
        for words in
            ["hello", &format!("{}x", hello.hash()), &format!("{full} hello"), "/nix/store/", "\u{e9}"]
        {
            assert_eq!(named_hash(&dir, words), None, "{words}");
        }
    }
}
