//! Folders that are listed before the walk comes to them, by threads of their own: on every core, and with a disk that is
//! asked for several at once.
//!
//! Those threads only make it faster. What they cannot list, the walk lists itself, and says what is wrong with it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Scope};

use rustix::fs::Dir;

use super::list::Listing;
use crate::io::files::{self, Wait};
use crate::limits::{WALK_AHEAD, WALK_AHEAD_FROM, WALK_THREADS};

/// The number of a folder, in the order in which a tree's folders were found.
pub(super) type Number = u32;

/// The tree's root.
pub(super) const ROOT: Number = 0;

/// The longest path that the system takes, in bytes.
const PATH_MAX: usize = 4096;

/// The folders of one tree that are known by now, and what is in those that the walk has not come to.
pub(super) struct Ahead<'r> {
    root: &'r Path,
    /// Its folder, for what is listed below it, once there are threads.
    folder: OnceLock<OwnedFd>,
    /// What lets it have threads. The last of them may end after the walk, but not after this.
    turn: OnceLock<Turn>,
    case_hack: bool,
    known: Mutex<Known>,
    /// Told when there is something to do for a thread, or nothing any more.
    to_do: Condvar,
    /// Told when the folder that the walk waits for was listed.
    listed: Condvar,
}

#[derive(Default)]
struct Known {
    folders: Vec<Folder>,
    /// Folders that nobody had begun to list, the one that the walk will come to next last.
    to_list: Vec<Number>,
    /// How many entries were listed that the walk has not come to.
    entries: usize,
    /// How many threads wait for something to do.
    idle: usize,
    /// Whether the walk waits for a folder that a thread lists.
    walk_waits: bool,
    is_over: bool,
}

struct Folder {
    /// The one that it is in.
    above: Number,
    name: Box<[u8]>,
    stage: Stage,
}

enum Stage {
    /// Nobody has begun to list it.
    ToList,
    /// A thread lists it.
    Taken,
    Listed(Listed),
    /// The walk has come to it, or is to list it.
    TheWalks,
}

/// A folder that was listed.
pub(super) struct Listed {
    pub(super) listing: Listing,
    /// The number of the first folder in it; the others follow.
    pub(super) first_folder: Number,
}

impl<'r> Ahead<'r> {
    /// For a walk of the folder `root`.
    pub(super) fn new(root: &'r Path, case_hack: bool) -> Self {
        // Its root is the walk's, so that no thread is in the way where there is nothing else.
        let root_folder = Folder { above: ROOT, name: Box::default(), stage: Stage::TheWalks };
        let known = Known { folders: vec![root_folder], ..Known::default() };
        Self {
            root,
            folder: OnceLock::new(),
            turn: OnceLock::new(),
            case_hack,
            known: Mutex::new(known),
            to_do: Condvar::new(),
            listed: Condvar::new(),
        }
    }

    /// What is in folder `number`, to which the walk has come: as a thread has listed it, or as `list` does.
    ///
    /// # Errors
    /// As `list`.
    pub(super) fn listing<E>(
        &self,
        number: Number,
        list: impl FnOnce() -> Result<Listing, E>,
    ) -> Result<Listed, E> {
        if let Some(listed) = self.take_listed(number) {
            return Ok(listed);
        }
        let listing = list()?;
        let mut known = self.known();
        let first_folder = known.add_folders(number, &listing);
        self.wake_idle(&known);
        Ok(Listed { listing, first_folder })
    }

    /// What a thread has listed or is listing. While it is, the walk does what threads do: to wait would cost more.
    fn take_listed(&self, number: Number) -> Option<Listed> {
        let mut path = Vec::new();
        let mut known = self.known();
        loop {
            match std::mem::replace(known.stage(number), Stage::TheWalks) {
                taken @ Stage::Taken => {
                    *known.stage(number) = taken;
                    if let Some(next) = known.next_to_list(&mut path) {
                        drop(known);
                        self.list(next, &path);
                        known = self.known();
                        continue;
                    }
                    known.walk_waits = true;
                    known = self.listed.wait(known).unwrap_or_else(PoisonError::into_inner);
                    known.walk_waits = false;
                }
                Stage::Listed(listed) => {
                    known.entries -= listed.listing.len();
                    self.wake_idle(&known);
                    return Some(listed);
                }
                Stage::ToList | Stage::TheWalks => return None,
            }
        }
    }

    /// What a thread does: it lists what the walk will come to, until that is over.
    fn run(&self) {
        let mut path = Vec::new();
        let mut known = self.known();
        while !known.is_over {
            if let Some(next) = known.next_to_list(&mut path) {
                drop(known);
                self.list(next, &path);
                known = self.known();
            } else {
                known.idle += 1;
                known = self.to_do.wait(known).unwrap_or_else(PoisonError::into_inner);
                known.idle -= 1;
            }
        }
    }

    /// Lists folder `number`, which was taken, at `path` below the root. Where it cannot, it is the walk's.
    fn list(&self, number: Number, path: &[u8]) {
        let taken = Taken { ahead: self, number };
        if let Some(root) = self.folder.get()
            && let Ok(folder) = files::open_below(root.as_fd(), path, Wait::Allowed)
            && let Ok(folder) = Dir::new(folder)
            && let Ok(listing) = Listing::read(folder, self.case_hack)
        {
            taken.listed(listing);
        }
    }

    /// Opens the root for what is listed below it; whether it could, and the system opens a folder below it in one call.
    fn hold_root(&self) -> bool {
        let Ok(root) = files::open_folder(self.root, Wait::Allowed) else { return false };
        // Where it does not, threads would be woken for every folder only to fail.
        files::open_below(root.as_fd(), b".", Wait::Allowed).is_ok() && self.folder.set(root).is_ok()
    }

    /// Wakes the threads that have nothing to do, if there is something.
    fn wake_idle(&self, known: &Known) {
        if known.idle > 0 && known.has_room_for_more() {
            self.to_do.notify_all();
        }
    }

    /// Nothing panics while it is locked, and it would be whole if something did.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn stage(&mut self, number: Number) -> &mut Stage {
        &mut self.folders[number as usize].stage
    }

    /// Adds the folders that are in folder `number`: the number of the first.
    fn add_folders(&mut self, number: Number, listing: &Listing) -> Number {
        // The walk ends where a tree has more than PLAN_NODES entries, and what is listed before it is bounded: it fits.
        let first = self.folders.len() as Number;
        for name in listing.folders() {
            self.folders.push(Folder { above: number, name: name.into(), stage: Stage::ToList });
        }
        self.to_list.extend((first..self.folders.len() as Number).rev());
        first
    }

    fn has_room_for_more(&self) -> bool {
        !self.to_list.is_empty() && self.entries < WALK_AHEAD
    }

    /// Takes the next folder that nobody lists, if its path below the root, which comes to `path`, is not too long.
    fn next_to_list(&mut self, path: &mut Vec<u8>) -> Option<Number> {
        while self.has_room_for_more() {
            let number = self.to_list.pop()?;
            if matches!(self.stage(number), Stage::ToList) && self.path(number, path) {
                *self.stage(number) = Stage::Taken;
                return Some(number);
            }
        }
        None
    }

    /// Puts the folder's path below the root into `path`; whether the system would take one so long.
    fn path(&self, number: Number, path: &mut Vec<u8>) -> bool {
        path.clear();
        let mut at = number;
        while at != ROOT && path.len() < PATH_MAX {
            let Folder { above, name, .. } = &self.folders[at as usize];
            // From its end to its beginning, and turned round at last.
            if at != number {
                path.push(b'/');
            }
            path.extend(name.iter().rev());
            at = *above;
        }
        path.reverse();
        at == ROOT && path.len() < PATH_MAX
    }
}

/// A folder that is being listed. The walk, which may wait for it, does it where that fails.
struct Taken<'a> {
    ahead: &'a Ahead<'a>,
    number: Number,
}

impl Taken<'_> {
    fn listed(self, listing: Listing) {
        let mut known = self.ahead.known();
        known.entries += listing.len();
        let first_folder = known.add_folders(self.number, &listing);
        *known.stage(self.number) = Stage::Listed(Listed { listing, first_folder });
        self.ahead.wake_idle(&known);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut known = self.ahead.known();
        if let stage @ Stage::Taken = known.stage(self.number) {
            *stage = Stage::TheWalks;
        }
        // To tell nobody costs a call of the system as well.
        if known.walk_waits {
            self.ahead.listed.notify_one();
        }
    }
}

/// The threads that go ahead of one walk, if it has any. When this is dropped, they begin nothing more.
pub(super) struct Threads<'scope, 'env> {
    ahead: &'scope Ahead<'scope>,
    scope: &'scope Scope<'scope, 'env>,
    /// Whether the tree has turned out to be large; there are none even so where another walk has them.
    is_large: bool,
}

impl<'scope, 'env> Threads<'scope, 'env> {
    /// None so far; they will be of `scope`.
    pub(super) fn new(ahead: &'scope Ahead<'scope>, scope: &'scope Scope<'scope, 'env>) -> Self {
        Self { ahead, scope, is_large: false }
    }

    /// Starts them, if the walk has come to folder `number` and the tree is so large that they are worth it.
    pub(super) fn start_if_large(&mut self, number: Number) {
        if number < WALK_AHEAD_FROM || self.is_large {
            return;
        }
        self.is_large = true;
        let Some(turn) = Turn::take() else { return };
        if !self.ahead.hold_root() || self.ahead.turn.set(turn).is_err() {
            return;
        }
        for _ in 0..WALK_THREADS {
            let ahead = self.ahead;
            let thread = thread::Builder::new().name("walk".to_owned());
            if thread.spawn_scoped(self.scope, || ahead.run()).is_err() {
                // With fewer, or none, it takes longer.
                break;
            }
        }
    }
}

impl Drop for Threads<'_, '_> {
    fn drop(&mut self) {
        self.ahead.known().is_over = true;
        self.ahead.to_do.notify_all();
    }
}

/// The turn to have threads ahead, which one walk of this process has at a time: where there are several, they are at
/// work on several cores as it is, and threads and descriptors are bounded.
struct Turn;

static IS_TAKEN: AtomicBool = AtomicBool::new(false);

impl Turn {
    fn take() -> Option<Self> {
        (!IS_TAKEN.swap(true, Ordering::Acquire)).then_some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        IS_TAKEN.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use tempfile::TempDir;

    /// A tree of so many folders, each with a file, some of them in one another.
    fn tree(folders: usize) -> TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for number in 0..folders {
            let folder = root.path().join(format!("{}/{}/{number}", number % 3, number % 5));
            fs::create_dir_all(&folder).expect("mkdir");
            fs::write(folder.join("file"), "contents").expect("written");
        }
        root
    }

    /// What threads that have no walk to be ahead of have done of a tree; `None` on a system that has no threads ahead.
    fn listed_by_threads<'r>(root: &'r Path, until: impl Fn(&Known) -> bool) -> Option<Ahead<'r>> {
        let ahead = Ahead::new(root, false);
        let listed = ahead.listing(ROOT, || {
            let folder = Dir::new(files::open_folder(root, Wait::Allowed).expect("a folder"));
            Listing::read(folder.expect("a folder"), false)
        });
        assert_eq!(listed.expect("readable").first_folder, 1);
        let folder = files::open_folder(root, Wait::Allowed).expect("a folder");
        let is_possible = files::open_below(folder.as_fd(), b"0", Wait::Allowed).is_ok();
        assert_eq!(ahead.hold_root(), is_possible);
        if !is_possible {
            return None;
        }
        thread::scope(|scope| {
            for _ in 0..WALK_THREADS {
                scope.spawn(|| ahead.run());
            }
            while !until(&ahead.known()) {
                thread::yield_now();
            }
            drop(Threads::new(&ahead, scope));
        });
        Some(ahead)
    }

    /// Nothing is to be done, and nobody does anything.
    fn all_idle(known: &Known) -> bool {
        known.idle == WALK_THREADS && !known.has_room_for_more()
    }

    #[test]
    fn threads_list_a_whole_tree_once() {
        let root = tree(100);
        let Some(ahead) = listed_by_threads(root.path(), all_idle) else { return };
        let mut known = ahead.known();
        assert_eq!((known.folders.len(), known.entries), (1 + 3 + 15 + 100, 15 + 100 + 100));
        for number in 1..known.folders.len() as Number {
            let mut path = Vec::new();
            assert!(known.path(number, &mut path));
            let Stage::Listed(listed) = std::mem::replace(known.stage(number), Stage::TheWalks) else {
                panic!("folder {number} is not listed");
            };
            let path = root.path().join(String::from_utf8(path).expect("a name"));
            assert_eq!(listed.listing.len(), fs::read_dir(path).expect("it is there").count());
        }
    }

    #[test]
    fn no_other_walk_has_threads_before_the_last_has_ended() {
        let root = tree(1);
        for _ in 0..100 {
            let ahead = Ahead::new(root.path(), false);
            thread::scope(|scope| {
                let mut threads = Threads::new(&ahead, scope);
                threads.start_if_large(WALK_AHEAD_FROM);
                let has_turn = ahead.turn.get().is_some();
                drop(threads);
                // The walk is over, and waits for its threads at the end of the scope.
                assert!(!has_turn || Turn::take().is_none());
            });
        }
    }

    #[test]
    fn what_threads_cannot_list_is_the_walks() {
        let root = tree(10);
        std::os::unix::net::UnixListener::bind(root.path().join("0/socket")).expect("bound");
        let Some(ahead) = listed_by_threads(root.path(), all_idle) else { return };
        let mut known = ahead.known();
        assert!(matches!(known.stage(1), Stage::TheWalks), "a socket is in it");
        assert!(matches!(known.stage(2), Stage::Listed(_)) && matches!(known.stage(3), Stage::Listed(_)));
        drop(known);
        let mut asked = false;
        let listed = ahead.listing(1, || {
            asked = true;
            Err::<Listing, _>("what is wrong with it")
        });
        assert!(asked && matches!(listed, Err("what is wrong with it")));
    }

    #[test]
    fn no_more_is_listed_than_there_is_memory_for() {
        let mut known = Known { entries: WALK_AHEAD, ..Known::default() };
        known.to_list.push(ROOT);
        known.folders.push(Folder { above: ROOT, name: Box::default(), stage: Stage::ToList });
        assert_eq!(known.next_to_list(&mut Vec::new()), None);
        known.entries -= 1;
        assert_eq!(known.next_to_list(&mut Vec::new()), Some(ROOT));
    }
}
