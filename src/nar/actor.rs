//! The cold actors of this room: a pool of threads on one mailbox, the only ones that wait for the store's
//! disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use rustix::io::Errno;

use super::cache::{Found, Key, Planned, Plans};
use super::measure::{Joined, Line, Wanted};
use super::read::plan_hash_while;
use super::{Cursor, Damage, Fetcher, Generation, NarError, Origin, Plan, Segment};
use crate::formats::hash::Sha256;
use crate::formats::store_path::{StorePath, StorePathHash};
use crate::io::files;
use crate::limits::{FETCH_BYTES, READ_AHEAD};
use crate::mailbox::{Outlet, Receiver, Sender, Ticket};
use crate::metrics::NarMetrics;

/// What this room is asked.
#[derive(Debug)]
pub enum Request {
    /// Plan a NAR, or find its plan. Answered by [`Answer::Opened`].
    Open {
        /// Who asks.
        ticket: Ticket,
        /// The store path, for messages and as the plan's key.
        path: StorePath,
        /// Where it really is.
        root: PathBuf,
        /// The NAR's hash in the database.
        nar_hash: Sha256,
        /// narSize of the database, in bytes.
        nar_size: u64,
    },
    /// What comes next of a NAR. Answered by [`Answer::Fetched`].
    Fetch {
        /// Who asks.
        ticket: Ticket,
        /// From where.
        cursor: Cursor,
    },
    /// A range of an open file that is not in memory, or not known to be. Answered by [`Answer::Read`].
    Read {
        /// Who asks.
        ticket: Ticket,
        /// The file.
        file: Arc<File>,
        /// From where.
        offset: u64,
        /// How many bytes; at most [`FETCH_BYTES`].
        len: u64,
    },
    /// The tree as a `.ls` document. Answered by [`Answer::Listing`].
    Listing {
        /// Who asks.
        ticket: Ticket,
        /// The store path, for messages and as the plan's key.
        path: StorePath,
        /// Where it really is.
        root: PathBuf,
        /// The NAR's hash in the database.
        nar_hash: Sha256,
        /// narSize of the database, in bytes.
        nar_size: u64,
    },
    /// The size of a NAR, for a path whose narSize is not in the database. Reads every byte of it. Answered
    /// by [`Answer::Hashed`].
    Hash {
        /// Who asks.
        ticket: Ticket,
        /// The store path, for messages.
        path: StorePath,
        /// Where it really is.
        root: PathBuf,
        /// The NAR's hash in the database, which it must have.
        nar_hash: Sha256,
    },
}

/// What this room answers.
#[derive(Debug)]
pub enum Answer {
    /// A cursor over the whole NAR, whose size is the database's.
    Opened(Result<Cursor, NarError>),
    /// The cursor, moved on by what was fetched, or where it was after an error.
    Fetched {
        /// The cursor that was asked with.
        cursor: Cursor,
        /// What comes next; empty only where nothing remained.
        segments: Result<Vec<Segment>, NarError>,
    },
    /// What was read: fewer bytes than were asked for only where the file ends.
    Read(Result<Bytes, Errno>),
    /// The `.ls` document.
    Listing(Result<Bytes, NarError>),
    /// The NAR's size; its hash is the database's.
    Hashed(Result<Measured, NarError>),
}

/// A NAR's size, found by reading all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The path's hash part.
    pub path: StorePathHash,
    /// The NAR's hash: the one that was asked with.
    pub nar_hash: Sha256,
    /// Its size in bytes.
    pub nar_size: u64,
}

/// One of the pool's actors; clones share the plans.
#[derive(Clone)]
pub struct Actor {
    plans: Arc<Plans<Waiting>>,
    to_measure: Arc<Line>,
    outlet: Outlet<Answer>,
    /// Hears of paths that are not what the database says.
    damages: Option<Sender<Damage>>,
    generation: Generation,
    case_hack: bool,
    metrics: Arc<NarMetrics>,
}

/// Someone who wants a plan.
struct Waiting {
    ticket: Ticket,
    root: Arc<Path>,
    want: Want,
}

#[derive(Clone, Copy)]
enum Want {
    Cursor,
    Listing,
}

impl Actor {
    /// An actor whose answers go to `outlet`. Who receives `damages` hears of paths that turned out not to be what the
    /// database says, and advances `generation` whenever a mark is set or cleared. `case_hack`: see [`Plan::build`].
    pub fn new(
        outlet: Outlet<Answer>,
        damages: Option<Sender<Damage>>,
        generation: Generation,
        case_hack: bool,
        metrics: Arc<NarMetrics>,
    ) -> Self {
        let (plans, to_measure) = (Arc::new(Plans::new()), Arc::default());
        Self { plans, to_measure, outlet, damages, generation, case_hack, metrics }
    }

    /// Starts `threads` threads that answer what comes in `requests`; they end when all its senders are gone.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(
        &self,
        threads: usize,
        requests: &Receiver<Request>,
    ) -> std::io::Result<Vec<JoinHandle<()>>> {
        let start = |number| {
            let (actor, requests) = (self.clone(), requests.clone());
            thread::Builder::new().name(format!("nar-{number}")).spawn(move || actor.run(&requests))
        };
        (0..threads).map(start).collect()
    }

    /// Ends what is measured, whoever waits for it: at the server's end, since to read a whole path can take hours.
    pub fn end(&self) {
        self.to_measure.end();
    }

    /// Answers what comes in `requests` until all its senders are gone.
    pub fn run(&self, requests: &Receiver<Request>) {
        let mut fetcher = Fetcher::batching();
        while let Some(request) = requests.recv() {
            self.handle(request, &mut fetcher);
        }
    }

    /// Answers one request; what it fetches is fetched with `fetcher`. A request for a plan that another thread is making is
    /// answered by that thread.
    pub fn handle(&self, request: Request, fetcher: &mut Fetcher) {
        match request {
            Request::Open { ticket, path, root, nar_hash, nar_size } => {
                let waiting = Waiting { ticket, root: root.into(), want: Want::Cursor };
                self.plan(&path, (nar_hash, nar_size), waiting);
            }
            Request::Listing { ticket, path, root, nar_hash, nar_size } => {
                let waiting = Waiting { ticket, root: root.into(), want: Want::Listing };
                self.plan(&path, (nar_hash, nar_size), waiting);
            }
            Request::Fetch { ticket, mut cursor } => {
                let segments = cursor.fetch_with(fetcher);
                self.outlet.send(ticket, Answer::Fetched { cursor, segments });
            }
            Request::Read { ticket, file, offset, len } => {
                self.outlet.send(ticket, Answer::Read(read(&file, offset, len)));
            }
            Request::Hash { ticket, path, root, nar_hash } => {
                self.measure(Wanted { ticket, path, root, nar_hash });
            }
        }
    }

    fn plan(&self, path: &StorePath, (nar_hash, nar_size): (Sha256, u64), waiting: Waiting) {
        let root = Arc::clone(&waiting.root);
        // Before the tree is looked at: what is put right meanwhile is looked at again.
        let generation = self.generation.now();
        let key = match Origin::of(&root) {
            Ok(origin) => Key { path: path.hash(), nar_hash, size: nar_size, origin, generation },
            Err(error) => return self.answer(waiting, &Err(error)),
        };
        match self.plans.find(&key, waiting) {
            Found::Kept(plan, waiting) => {
                self.metrics.plan_found();
                self.answer(waiting, &Ok(plan));
            }
            Found::InTheMaking => self.metrics.plan_found(),
            Found::Crowded(waiting) => {
                self.answer(waiting, &Err(NarError::Busy { root: root.to_path_buf() }))
            }
            Found::ToMake => {
                self.metrics.plan_made();
                let planned = self.make(path, nar_size, &root);
                if let Err(error) = &planned {
                    self.report(error, nar_hash, key.origin);
                }
                for waiting in self.plans.made(&key, &planned) {
                    self.answer(waiting, &planned);
                }
            }
        }
    }

    fn make(&self, path: &StorePath, registered: u64, root: &Path) -> Planned {
        let plan = Plan::build(root, self.case_hack)?;
        if plan.size() != registered {
            return Err(NarError::SizeMismatch { path: path.clone(), planned: plan.size(), registered });
        }
        Ok(Arc::new(plan))
    }

    fn answer(&self, waiting: Waiting, planned: &Planned) {
        let Waiting { ticket, root, want } = waiting;
        let planned = planned.clone();
        let answer = match want {
            Want::Cursor => Answer::Opened(planned.map(|plan| Cursor::new(plan, root))),
            Want::Listing => Answer::Listing(planned.map(|plan| plan.shared_listing())),
        };
        self.outlet.send(ticket, answer);
    }

    /// Measures a NAR, and what others want measured meanwhile; or leaves it to the thread that measures.
    fn measure(&self, wanted: Wanted) {
        let mut next = match self.to_measure.join(wanted) {
            Joined::First(wanted) => Some(wanted),
            Joined::Waits => None,
            Joined::Crowded(Wanted { ticket, root, .. }) => {
                return self.outlet.send(ticket, Answer::Hashed(Err(NarError::Busy { root })));
            }
        };
        while let Some(wanted) = next {
            let measured = self.checked_size(&wanted.path, &wanted.root, wanted.nar_hash);
            let (same, after) = self.to_measure.measured(&wanted);
            for ticket in same.into_iter().chain([wanted.ticket]) {
                self.outlet.send(ticket, Answer::Hashed(measured.clone()));
            }
            next = after;
        }
    }

    fn checked_size(&self, path: &StorePath, root: &Path, registered: Sha256) -> Result<Measured, NarError> {
        let busy = || NarError::Busy { root: root.to_owned() };
        if !self.to_measure.goes_on() {
            return Err(busy());
        }
        let plan = Arc::new(Plan::build(root, self.case_hack)?);
        let (origin, nar_size) = (plan.origin(), plan.size());
        let found = plan_hash_while(plan, root, || self.to_measure.goes_on())?.ok_or_else(busy)?;
        if found != registered {
            let error = NarError::HashMismatch { path: path.clone(), found, registered };
            self.report(&error, registered, origin);
            return Err(error);
        }
        Ok(Measured { path: path.hash(), nar_hash: found, nar_size })
    }

    /// Reports an error that is damage; whoever hears of it tells the operator.
    fn report(&self, error: &NarError, registered: Sha256, origin: Origin) {
        if let (Some(damage), Some(damages)) = (Damage::of(error, registered, origin), &self.damages) {
            // What a full mailbox refuses is found again with the next request for it.
            let _ = damages.try_send(damage);
        }
    }
}

/// Reads what is to be sent next, and has the system begin with what comes after.
fn read(file: &File, offset: u64, len: u64) -> Result<Bytes, Errno> {
    // No more than FETCH_BYTES, so it fits.
    let mut bytes = vec![0; len.min(FETCH_BYTES) as usize];
    files::read_ahead(file, offset, READ_AHEAD);
    let read = files::read_full(file, &mut bytes, offset)?;
    bytes.truncate(read);
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::Mutex;
    use std::sync::mpsc;
    use std::time::Duration;

    use crate::limits::WAITING_MAX;
    use crate::mailbox;
    use crate::nar::{Evidence, nar_hash};

    /// The hash of the database, where it does not matter.
    const HASH: Sha256 = Sha256([7; 32]);

    const BASENAME: &str = "00000000000000000000000000000000-test";

    fn path() -> StorePath {
        StorePath::from_basename(BASENAME).expect("a store path")
    }

    fn ticket(serial: u32) -> Ticket {
        Ticket { worker: 0, slot: 0, serial }
    }

    fn actor() -> (Actor, mpsc::Receiver<(Ticket, Answer)>) {
        let (sender, answers) = mpsc::channel();
        let sender = Mutex::new(sender);
        let outlet = Outlet::new(move |ticket, answer| {
            let sender = sender.lock().expect("no test panics while it holds this");
            let _ = sender.send((ticket, answer));
        });
        (Actor::new(outlet, None, Generation::default(), false, Arc::default()), answers)
    }

    fn open(
        actor: &Actor,
        answers: &mpsc::Receiver<(Ticket, Answer)>,
        root: &Path,
        nar_size: u64,
    ) -> Result<Cursor, NarError> {
        let request = Request::Open {
            ticket: ticket(1),
            path: path(),
            root: root.to_path_buf(),
            nar_hash: HASH,
            nar_size,
        };
        actor.handle(request, &mut Fetcher::default());
        match answers.try_recv().expect("an answer") {
            (at, Answer::Opened(cursor)) if at == ticket(1) => cursor,
            other => panic!("{other:?}"),
        }
    }

    fn tree(contents: &str) -> (tempfile::TempDir, PathBuf, u64) {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join(BASENAME);
        fs::write(&root, contents).expect("write");
        let size = Plan::build(&root, false).expect("readable").size();
        (folder, root, size)
    }

    #[test]
    fn a_plan_is_made_once_and_a_replaced_root_is_planned_again() {
        let (actor, answers) = actor();
        let (_folder, root, size) = tree("contents");
        let first = open(&actor, &answers, &root, size).expect("opened");
        let again = open(&actor, &answers, &root, size).expect("opened");
        assert!(Arc::ptr_eq(first.plan(), again.plan()));

        fs::rename(&root, root.with_extension("old")).expect("rename");
        fs::write(&root, "CONTENTS").expect("write");
        let replaced = open(&actor, &answers, &root, size).expect("opened");
        assert!(!Arc::ptr_eq(first.plan(), replaced.plan()));
    }

    #[test]
    fn a_plan_is_made_anew_once_it_may_be_of_a_damaged_tree() {
        let (actor, answers) = actor();
        let (_folder, root, nar_size) = tree("contents");
        let plan = |nar_hash| {
            let request =
                Request::Open { ticket: ticket(1), path: path(), root: root.clone(), nar_hash, nar_size };
            actor.handle(request, &mut Fetcher::default());
            match answers.try_recv() {
                Ok((_, Answer::Opened(Ok(cursor)))) => Arc::clone(cursor.plan()),
                other => panic!("{other:?}"),
            }
        };
        let first = plan(HASH);
        assert!(Arc::ptr_eq(&first, &plan(HASH)));
        assert!(!Arc::ptr_eq(&first, &plan(Sha256([8; 32]))), "a pack that it gets is of one NAR");
        first.give_up();
        let second = plan(HASH);
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &plan(HASH)));
        actor.generation.advance();
        assert!(!Arc::ptr_eq(&second, &plan(HASH)));
    }

    #[test]
    fn once_a_file_was_found_changed_the_next_is_refused_before_any_byte() {
        let (actor, answers) = actor();
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join(BASENAME);
        fs::create_dir(&root).expect("a folder");
        fs::write(root.join("file"), "contents").expect("write");
        let size = Plan::build(&root, false).expect("readable").size();
        open(&actor, &answers, &root, size).expect("opened");
        // In place, so that the root says nothing of it.
        fs::write(root.join("file"), "contents, and a block more").expect("write");
        let cursor = open(&actor, &answers, &root, size).expect("by the plan of before");
        actor.handle(Request::Fetch { ticket: ticket(2), cursor }, &mut Fetcher::default());
        match answers.try_recv().expect("an answer") {
            (_, Answer::Fetched { segments: Err(NarError::Changed { .. }), .. }) => {}
            other => panic!("{other:?}"),
        }
        let error = open(&actor, &answers, &root, size).expect_err("it grew");
        assert!(matches!(error, NarError::SizeMismatch { .. }));
    }

    #[test]
    fn a_wrong_size_is_an_error_before_any_byte_and_is_not_kept() {
        let (actor, answers) = actor();
        let (_folder, root, size) = tree("contents");
        let wrong = open(&actor, &answers, &root, size + 1).expect_err("another size");
        assert_eq!(wrong, NarError::SizeMismatch { path: path(), planned: size, registered: size + 1 });
        fs::write(&root, "contents, and a block more").expect("write");
        let error = open(&actor, &answers, &root, size).expect_err("it grew");
        assert!(matches!(error, NarError::SizeMismatch { .. }));
        fs::write(&root, "contents").expect("write");
        open(&actor, &answers, &root, size).expect("right again");
        fs::remove_file(&root).expect("remove");
        assert_eq!(open(&actor, &answers, &root, size).expect_err("gone"), NarError::Missing { root });
    }

    #[test]
    fn who_asks_for_a_plan_in_the_making_is_answered_by_its_maker() {
        let (actor, answers) = actor();
        let (_folder, root, size) = tree("contents");
        let origin = Origin::of(&root).expect("it is there");
        let key = Key { path: path().hash(), nar_hash: HASH, size, origin, generation: 0 };
        let waiting =
            |serial| Waiting { ticket: ticket(serial), root: Arc::from(&*root), want: Want::Cursor };
        assert!(matches!(actor.plans.find(&key, waiting(7)), Found::ToMake));
        let request = Request::Listing {
            ticket: ticket(8),
            path: path(),
            root: root.clone(),
            nar_hash: HASH,
            nar_size: size,
        };
        actor.handle(request, &mut Fetcher::default());
        assert!(answers.try_recv().is_err(), "it waits, and its thread is free");
        (2..WAITING_MAX)
            .for_each(|_| assert!(matches!(actor.plans.find(&key, waiting(9)), Found::InTheMaking)));
        let request = Request::Open {
            ticket: ticket(10),
            path: path(),
            root: root.clone(),
            nar_hash: HASH,
            nar_size: size,
        };
        actor.handle(request, &mut Fetcher::default());
        let crowded = NarError::Busy { root: root.clone() };
        let (at, answer) = answers.try_recv().expect("an answer at once");
        assert!(at == ticket(10) && matches!(answer, Answer::Opened(Err(error)) if error == crowded));
        let failed = Err(NarError::TooLarge { root: root.clone() });
        for waiting in actor.plans.made(&key, &failed) {
            actor.answer(waiting, &failed);
        }
        let (first, second) = (answers.try_recv().expect("answer"), answers.try_recv().expect("answer"));
        assert!(matches!(first, (at, Answer::Opened(Err(_))) if at == ticket(7)));
        assert!(matches!(second, (at, Answer::Listing(Err(_))) if at == ticket(8)));
        assert_eq!(answers.try_iter().count(), WAITING_MAX - 2, "each of the others, too");
        open(&actor, &answers, &root, size).expect("a failure is not kept");
    }

    #[test]
    fn a_listing_is_in_memory_once_however_many_read_it() {
        let (actor, answers) = actor();
        let (_folder, root, nar_size) = tree("contents");
        let listing = || {
            let request = Request::Listing {
                ticket: ticket(1),
                path: path(),
                root: root.clone(),
                nar_hash: HASH,
                nar_size,
            };
            actor.handle(request, &mut Fetcher::default());
            match answers.try_recv().expect("an answer") {
                (_, Answer::Listing(listing)) => listing.expect("a listing"),
                other => panic!("{other:?}"),
            }
        };
        let (first, second) = (listing(), listing());
        assert_eq!(first.as_ptr(), second.as_ptr(), "shared while it is sent");
    }

    #[test]
    fn a_hash_is_the_registered_one_or_an_error() {
        let (actor, answers) = actor();
        let (_folder, root, size) = tree("contents");
        let (found, _) = nar_hash(&root, false).expect("readable");
        let registered = Sha256::of(b"another");
        let measured = Measured { path: path().hash(), nar_hash: found, nar_size: size };
        for (nar_hash, expected) in [
            (found, Ok(measured)),
            (registered, Err(NarError::HashMismatch { path: path(), found, registered })),
        ] {
            let request = Request::Hash { ticket: ticket(1), path: path(), root: root.clone(), nar_hash };
            actor.handle(request, &mut Fetcher::default());
            let (_, answer) = answers.try_recv().expect("an answer");
            assert!(matches!(answer, Answer::Hashed(result) if result == expected));
        }
    }

    #[test]
    fn what_is_measured_ends_with_the_server() {
        let (actor, answers) = actor();
        let (_folder, root, _) = tree("contents");
        // A hole of a terabyte: to read it takes longer than anybody waits.
        fs::File::create(&root).and_then(|file| file.set_len(1 << 40)).expect("a file can have holes");
        let (requests, receiver) = mailbox::bounded(4, None);
        let threads = actor.spawn(1, &receiver).expect("a thread");
        let hash = |serial| Request::Hash {
            ticket: ticket(serial),
            path: path(),
            root: root.clone(),
            nar_hash: Sha256([0; 32]),
        };
        requests.send(hash(1));
        requests.send(hash(2));
        actor.end();
        drop(requests);
        for _ in 0..2 {
            let (_, answer) = answers.recv_timeout(Duration::from_secs(60)).expect("it ends");
            assert!(matches!(answer, Answer::Hashed(Err(NarError::Busy { .. }))));
        }
        for thread in threads {
            thread.join().expect("it ends by itself");
        }
    }

    #[test]
    fn what_is_not_as_registered_is_reported() {
        let (mut actor, answers) = actor();
        let (damages, reported) = mailbox::bounded(4, None);
        actor.damages = Some(damages);
        let (_folder, root, size) = tree("contents");
        let (hash, _) = nar_hash(&root, false).expect("readable");
        let origin = Origin::of(&root).expect("it is there");
        let damage = |found| Damage { path: path(), registered: HASH, found, origin };

        open(&actor, &answers, &root, size).expect("as registered, as far as anybody looks");
        open(&actor, &answers, &root, size + 1).expect_err("another size");
        let found = Evidence::Size { planned: size, registered: size + 1 };
        assert_eq!(reported.try_recv(), Some(damage(found)));
        let request = Request::Hash { ticket: ticket(1), path: path(), root: root.clone(), nar_hash: HASH };
        actor.handle(request, &mut Fetcher::default());
        assert!(matches!(answers.try_recv(), Ok((_, Answer::Hashed(Err(_))))));
        assert_eq!(reported.try_recv(), Some(damage(Evidence::Hash(hash))));

        // A tree that is not there says nothing of the one that was.
        fs::remove_file(&root).expect("remove");
        open(&actor, &answers, &root, size).expect_err("gone");
        assert_eq!(reported.try_recv(), None);
    }

    #[test]
    fn the_pool_serves_a_nar_and_ends_with_its_senders() {
        let (actor, answers) = actor();
        let (_folder, root, size) = tree("contents");
        let (requests, receiver) = mailbox::bounded(4, None);
        let threads = actor.spawn(3, &receiver).expect("threads");
        requests.send(Request::Open {
            ticket: ticket(1),
            path: path(),
            root,
            nar_hash: HASH,
            nar_size: size,
        });
        let limit = Duration::from_secs(20);
        let Ok((_, Answer::Opened(Ok(mut cursor)))) = answers.recv_timeout(limit) else {
            panic!("not opened")
        };
        let mut given = 0;
        while cursor.remaining() > 0 {
            requests.send(Request::Fetch { ticket: ticket(2), cursor });
            let Ok((_, Answer::Fetched { cursor: moved, segments })) = answers.recv_timeout(limit) else {
                panic!("not fetched")
            };
            given += segments.expect("readable").iter().map(Segment::len).sum::<u64>();
            cursor = moved;
        }
        assert_eq!(given, size);
        drop(requests);
        for thread in threads {
            thread.join().expect("it ends by itself");
        }
    }
}
