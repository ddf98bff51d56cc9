//! Paths that are not what the database says of them: marked, and a 404 until they are repaired.
//!
//! A mark is a file, named by the store path, in a folder of the server's own. So it outlives the server, and
//! `harmonia store verify` can set and clear marks beside one that runs. It is of one tree: a path that was repaired,
//! or collected and fetched again, has another root, and the mark of the former one is dropped.
//!
//! One thread keeps the marks, looks every second whether folder or trees have changed, and tells the store's actor,
//! for which a marked path is as good as absent. So a request costs no more than before: what workers remember of a
//! path is what the actor answered, and a new mark makes them ask again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::StoreError;
use super::actor::Request;
use crate::causes::with_causes;
use crate::formats::hash::Sha256;
use crate::formats::store_path::{StorePath, StorePathHash};
use crate::limits;
use crate::mailbox::{Receiver, Sender, Silence};
use crate::nar::{Damage, Evidence, Generation, NarError, Origin};

/// The mark of a valid path that is not what the Nix database says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The path.
    pub path: StorePath,
    /// The hash that the database had.
    pub registered: Sha256,
    /// What is in its place.
    pub found: Found,
}

/// What is in the place of a damaged path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A tree whose NAR is another.
    Tree {
        /// Which tree: once it is another, the mark says nothing of it.
        origin: Origin,
        /// What shows it.
        evidence: Evidence,
    },
    /// Nothing.
    Nothing,
}

impl From<Damage> for Mark {
    fn from(damage: Damage) -> Self {
        let Damage { path, registered, found: evidence, origin } = damage;
        Self { path, registered, found: Found::Tree { origin, evidence } }
    }
}

impl Mark {
    /// Whether both say the same: that the same tree has not the same hash, whatever shows it, or that there is none.
    fn is_same(&self, other: &Self) -> bool {
        let is_same_found = match (&self.found, &other.found) {
            (Found::Tree { origin: one, .. }, Found::Tree { origin: other, .. }) => is_same_tree(one, other),
            (Found::Nothing, Found::Nothing) => true,
            (Found::Tree { .. }, Found::Nothing) | (Found::Nothing, Found::Tree { .. }) => false,
        };
        (&self.path, self.registered) == (&other.path, other.registered) && is_same_found
    }
}

/// What is not as registered, in one line.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, registered, found } = self;
        match found {
            Found::Tree { evidence: Evidence::Hash(hash), .. } => {
                write!(f, "{path} hashes to {hash}, the Nix database says {registered}")
            }
            Found::Tree { evidence: Evidence::Size { planned, registered }, .. } => {
                write!(f, "{path} makes a NAR of {planned} bytes, the Nix database says {registered}")
            }
            Found::Nothing => write!(f, "{path} is not on disk, and the Nix database says that it is valid"),
        }
    }
}

/// The marked paths, each with the hash that the database had when it was marked: it is the mark of no other.
pub type Marked = HashMap<StorePathHash, Sha256>;

/// The folder of marks. It need not be there: then there is no mark.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The marks in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Marks a path, in place of an older mark.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, mark: &Mark) -> Result<(), StoreError> {
        let path = self.0.join(mark.path.as_str());
        // No store path begins so: whoever reads the folder meanwhile passes it over. Another process may be marking the
        // same path.
        let new = self.0.join(format!(".{}.{}.new", mark.path, std::process::id()));
        let write = || {
            make_folder(&self.0)?;
            let mut file = File::create(&new)?;
            // Whoever runs `store verify` need not be whom the server runs as.
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(to_text(mark).as_bytes())?;
            file.sync_all()?;
            let _alone = self.lock();
            fs::rename(&new, &path)
        };
        write().map_err(|source| StoreError::File { path: path.clone(), source })
    }

    /// Takes this mark away, and no other: whoever found the path damaged again has put a newer one in its place. Says
    /// whether it was there.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn end(&self, mark: &Mark) -> Result<bool, StoreError> {
        let path = self.0.join(mark.path.as_str());
        let end = || -> io::Result<_> {
            let _alone = self.lock();
            let text = fs::read_to_string(&path)?;
            let is_there = from_text(mark.path.clone(), &text).is_some_and(|there| there.is_same(mark));
            if is_there {
                fs::remove_file(&path)?;
            }
            Ok(is_there)
        };
        match end() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            ended => ended.map_err(|source| StoreError::File { path: path.clone(), source }),
        }
    }

    /// Keeps other processes from putting marks into the folder or taking them away, until it is dropped. Where there
    /// can be no lock, marks are kept all the same: two that come within microseconds of each other are rare.
    fn lock(&self) -> Option<File> {
        let folder = File::open(&self.0).ok()?;
        folder.lock().ok()?;
        Some(folder)
    }

    /// Every mark. What is no mark in the folder is passed over.
    ///
    /// # Errors
    /// When the folder is there and cannot be read.
    pub fn read(&self) -> Result<Vec<Mark>, StoreError> {
        let read = || -> io::Result<_> {
            let mut marks = Vec::new();
            for entry in fs::read_dir(&self.0)? {
                let name = entry?.file_name();
                let path = name.to_str().and_then(|name| StorePath::from_basename(name).ok());
                let Some(path) = path else { continue };
                // One that was cleared just now is none.
                let text = fs::read_to_string(self.0.join(path.as_str())).ok();
                marks.extend(text.and_then(|text| from_text(path, &text)));
            }
            Ok(marks)
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|source| StoreError::File { path: self.0.clone(), source }),
        }
    }

    /// When a mark was last set or cleared, as far as the system tells; `None` where there is no folder.
    fn changed(&self) -> Option<SystemTime> {
        fs::metadata(&self.0).and_then(|folder| folder.modified()).ok()
    }
}

/// Makes the folder where it is not there. Made by root, it is given to whom the folder that it is in belongs: the
/// server, which is to clear marks.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    if let Some(owner) = folder.parent().and_then(|parent| fs::metadata(parent).ok())
        && owner.uid() != fs::metadata(folder)?.uid()
    {
        // Without the right to, it stays whose it is.
        let _ = chown(folder, Some(owner.uid()), Some(owner.gid()));
    }
    Ok(())
}

fn to_text(mark: &Mark) -> String {
    let mut text = json!({ "registered": mark.registered.to_string(), "found": null });
    if let Found::Tree { origin: Origin { inode, changed: (seconds, nanoseconds), .. }, evidence } =
        &mark.found
    {
        text["inode"] = (*inode).into();
        text["changed"] = json!([seconds, nanoseconds]);
        text["found"] = match evidence {
            Evidence::Hash(hash) => hash.to_string().into(),
            Evidence::Size { planned, registered } => json!([planned, registered]),
        };
    }
    format!("{text}\n")
}

fn from_text(path: StorePath, text: &str) -> Option<Mark> {
    let mark: Value = serde_json::from_str(text).ok()?;
    let hash = |text: &str| Sha256::parse(text).ok();
    let evidence = match mark.get("found")? {
        Value::Null => None,
        Value::String(text) => Some(Evidence::Hash(hash(text)?)),
        sizes => Some(Evidence::Size { planned: sizes[0].as_u64()?, registered: sizes[1].as_u64()? }),
    };
    let found = match evidence {
        None => Found::Nothing,
        Some(evidence) => {
            let changed = (mark["changed"][0].as_i64()?, mark["changed"][1].as_i64()?);
            let origin = Origin { device: 0, inode: mark["inode"].as_u64()?, changed };
            Found::Tree { origin, evidence }
        }
    };
    Some(Mark { path, registered: hash(mark["registered"].as_str()?)?, found })
}

/// Whether both are of one tree. Devices have other numbers after a restart of the machine.
fn is_same_tree(one: &Origin, other: &Origin) -> bool {
    (one.inode, one.changed) == (other.inode, other.changed)
}

/// The actor that keeps the marks.
pub struct Quarantine {
    folder: Folder,
    real_store: PathBuf,
    store: Sender<Request>,
    generation: Generation,
    marks: BTreeMap<StorePath, Mark>,
    /// Those of them that could not be written: they hold as long as this process.
    unkept: BTreeSet<StorePath>,
    /// When the folder was last changed before it was read.
    seen: Option<SystemTime>,
    warned: Option<Instant>,
}

impl Quarantine {
    /// Reads the marks in `folder`, of paths whose files are in `real_store`, and tells `store` of them; with each change
    /// of them, `generation` is advanced.
    pub fn open(folder: Folder, real_store: PathBuf, store: Sender<Request>, generation: Generation) -> Self {
        let (marks, unkept) = (BTreeMap::new(), BTreeSet::new());
        let (seen, warned) = (None, None);
        let mut quarantine = Self { folder, real_store, store, generation, marks, unkept, seen, warned };
        quarantine.look();
        quarantine
    }

    /// Marks what is reported, and looks every [`limits::QUARANTINE_LOOK`], until nobody is left to report.
    pub fn run(mut self, damages: &Receiver<Damage>) {
        let mut next_look = Instant::now() + limits::QUARANTINE_LOOK;
        loop {
            match damages.recv_timeout(next_look.saturating_duration_since(Instant::now())) {
                Ok(damage) => self.add(damage),
                Err(Silence::Quiet) => {}
                Err(Silence::Closed) => return,
            }
            // By the clock: reports may come without a pause.
            if Instant::now() >= next_look {
                self.look();
                next_look = Instant::now() + limits::QUARANTINE_LOOK;
            }
        }
    }

    /// A path was found to be damaged.
    fn add(&mut self, damage: Damage) {
        let mark = Mark::from(damage);
        // The same tree may have been registered anew meanwhile: then the mark that is there is none any more.
        let is_known = self.marks.get(&mark.path).is_some_and(|known| known.is_same(&mark));
        // It may have been repaired while it was read.
        if is_known || !self.holds(&mark) {
            return;
        }
        tell(&mark);
        match self.folder.set(&mark) {
            Ok(()) => drop(self.unkept.remove(&mark.path)),
            Err(error) => {
                self.unkept.insert(mark.path.clone());
                self.warn(&error);
            }
        }
        self.marks.insert(mark.path.clone(), mark);
        self.publish();
    }

    /// Follows what others have done to the folder and to the trees.
    fn look(&mut self) {
        let healed: Vec<_> = self.marks.values().filter(|mark| !self.holds(mark)).cloned().collect();
        for mark in &healed {
            tracing::info!(path = %mark.path, "no longer quarantined: the path was replaced or deleted since");
            self.drop_mark(mark);
        }
        if self.follow_folder() || !healed.is_empty() {
            self.publish();
        }
    }

    /// Reads the folder if it has changed; says whether the marks have. Without a folder they stay: it may be deleted
    /// together with the cache, and that heals nothing.
    fn follow_folder(&mut self) -> bool {
        let Some(changed) = self.folder.changed().filter(|changed| self.seen != Some(*changed)) else {
            return false;
        };
        let read = match self.folder.read() {
            Ok(read) => read,
            Err(error) => {
                self.warn(&error);
                return false;
            }
        };
        // A second change within one step of file times would not show.
        let is_quiet = changed.elapsed().is_ok_and(|age| age >= limits::FILE_TIME_STEP);
        self.seen = is_quiet.then_some(changed);
        let (held, stale): (Vec<_>, Vec<_>) = read.into_iter().partition(|mark| self.holds(mark));
        stale.iter().for_each(|mark| self.drop_mark(mark));
        let mut marks: BTreeMap<_, _> = held.into_iter().map(|mark| (mark.path.clone(), mark)).collect();
        for path in &self.unkept {
            if let Some(mark) = self.marks.get(path) {
                marks.entry(path.clone()).or_insert_with(|| mark.clone());
            }
        }
        let is_known = |mark: &&Mark| self.marks.get(&mark.path).is_some_and(|known| known.is_same(mark));
        let are_known = marks.values().all(|mark| is_known(&mark));
        marks.values().filter(|mark| !is_known(mark)).for_each(tell);
        for path in self.marks.keys().filter(|path| !marks.contains_key(path)) {
            tracing::info!(%path, "no longer quarantined: its mark was cleared");
        }
        let is_other = !are_known || marks.len() != self.marks.len();
        self.marks = marks;
        is_other
    }

    /// Whether a mark is of what is there. What cannot be looked at may be it.
    fn holds(&self, mark: &Mark) -> bool {
        match (Origin::of(&self.real_store.join(mark.path.as_str())), &mark.found) {
            (Ok(there), Found::Tree { origin, .. }) => is_same_tree(&there, origin),
            (Ok(_), Found::Nothing) | (Err(NarError::Missing { .. }), Found::Tree { .. }) => false,
            (Err(_), _) => true,
        }
    }

    fn drop_mark(&mut self, mark: &Mark) {
        if self.marks.get(&mark.path).is_some_and(|known| known.is_same(mark)) {
            self.marks.remove(&mark.path);
            self.unkept.remove(&mark.path);
        }
        // Where it cannot be removed, it is found stale again by whoever reads it.
        let _ = self.folder.end(mark);
    }

    fn publish(&self) {
        // Before anybody is served a path that is not marked any more.
        self.generation.advance();
        let marked = self.marks.values().map(|mark| (mark.path.hash(), mark.registered)).collect();
        self.store.send(Request::Quarantine(Arc::new(marked)));
    }

    fn warn(&mut self, error: &StoreError) {
        if self.warned.is_none_or(|at| at.elapsed() >= limits::WARNING_PAUSE) {
            self.warned = Some(Instant::now());
            let error = with_causes(error);
            tracing::warn!(error, "marks of damaged paths are not kept: they hold until the server ends");
        }
    }
}

/// The line that an operator is to act upon.
fn tell(mark: &Mark) {
    tracing::error!(
        "quarantined: {mark}; it is a 404 until it is repaired: nix-store --repair-path, or `harmonia store verify` to \
         look again"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox;

    struct Bench {
        scratch: tempfile::TempDir,
        requests: Receiver<Request>,
        quarantine: Quarantine,
    }

    impl Bench {
        fn new() -> Self {
            let scratch = tempfile::tempdir().expect("a folder");
            let (store, requests) = mailbox::bounded(16, None);
            let quarantine = open(&scratch, store);
            Self { scratch, requests, quarantine }
        }

        /// How many paths the store's actor was last told of, if it was told since this was last asked.
        fn told(&self) -> Option<usize> {
            let mut told = None;
            while let Some(Request::Quarantine(marked)) = self.requests.try_recv() {
                told = Some(marked.len());
            }
            told
        }

        fn damage(&self, digit: &str) -> Damage {
            let path = StorePath::from_basename(&format!("{}-path", digit.repeat(32))).expect("it is one");
            let root = self.scratch.path().join(path.as_str());
            fs::write(&root, "spoilt").expect("the folder is ours");
            let origin = Origin::of(&root).expect("it was just made");
            Damage {
                path,
                registered: Sha256::of(b"sound"),
                found: Evidence::Hash(Sha256::of(b"spoilt")),
                origin,
            }
        }

        fn folder(&self) -> Folder {
            self.quarantine.folder.clone()
        }
    }

    fn open(scratch: &tempfile::TempDir, store: Sender<Request>) -> Quarantine {
        let folder = Folder::new(scratch.path().join("cache/quarantine"));
        Quarantine::open(folder, scratch.path().to_owned(), store, Generation::default())
    }

    #[test]
    fn a_mark_outlives_the_server_and_not_the_tree() {
        let mut bench = Bench::new();
        assert_eq!(bench.told(), None);
        let damage = bench.damage("1");
        bench.quarantine.add(damage.clone());
        bench.quarantine.add(damage.clone());
        assert_eq!(bench.told(), Some(1));
        let (store, requests) = mailbox::bounded(16, None);
        let mut next = open(&bench.scratch, store);
        assert!(matches!(requests.try_recv(), Some(Request::Quarantine(marked)) if marked.len() == 1));
        let kept = next.folder.read().expect("readable");
        let origin = Origin { device: 0, ..damage.origin };
        assert_eq!(kept, [Mark::from(Damage { origin, ..damage.clone() })]);
        // Repaired as Nix does it: another tree takes the place.
        let root = bench.scratch.path().join(damage.path.as_str());
        let repaired = bench.scratch.path().join("repaired");
        fs::write(&repaired, "sound").expect("the folder is ours");
        fs::rename(&repaired, &root).expect("the folder is ours");
        next.look();
        assert!(matches!(requests.try_recv(), Some(Request::Quarantine(marked)) if marked.is_empty()));
        assert_eq!(next.folder.read().expect("readable"), []);
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(0));
    }

    #[test]
    fn what_others_set_and_clear_is_followed() {
        let mut bench = Bench::new();
        let (one, other) = (bench.damage("1"), bench.damage("2"));
        bench.folder().set(&Mark::from(one.clone())).expect("writable");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(1));
        // At once: within one step of the folder's time.
        bench.folder().set(&Mark::from(other.clone())).expect("writable");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(2));
        assert!(bench.folder().end(&Mark::from(one.clone())).expect("writable"));
        assert!(!bench.folder().end(&Mark::from(one.clone())).expect("writable"));
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(1));
        fs::write(bench.folder().0.join(one.path.as_str()), "no mark").expect("the folder is ours");
        bench.quarantine.look();
        assert_eq!(bench.told(), None);
        fs::remove_dir_all(&bench.folder().0).expect("the folder is ours");
        bench.quarantine.look();
        assert_eq!(bench.told(), None, "that heals nothing");
        assert_eq!(bench.quarantine.marks.len(), 1);
    }

    /// Another tree takes the place of the one that `mark` is of, and is damaged, too.
    fn damage_again(bench: &Bench, mark: &Mark) -> Mark {
        let other = bench.scratch.path().join("other");
        fs::write(&other, "spoilt otherwise").expect("the folder is ours");
        fs::rename(&other, bench.scratch.path().join(mark.path.as_str())).expect("the folder is ours");
        let origin = Origin::of(&bench.scratch.path().join(mark.path.as_str())).expect("it is there");
        let found = Evidence::Size { planned: 24, registered: 16 };
        Damage { path: mark.path.clone(), registered: Sha256::of(b"sound otherwise"), found, origin }.into()
    }

    #[test]
    fn a_mark_that_ends_takes_no_newer_one_with_it() {
        let mut bench = Bench::new();
        let first = bench.damage("1");
        bench.quarantine.add(first.clone());
        let first = Mark::from(first);
        assert_eq!(bench.told(), Some(1));
        // Before anybody looks, the path is made anew, and somebody else finds that damaged as well.
        let second = damage_again(&bench, &first);
        bench.folder().set(&second).expect("writable");
        bench.quarantine.look();
        let kept = bench.folder().read().expect("readable");
        assert!(matches!(&kept[..], [mark] if mark.is_same(&second)), "{kept:?}");
        assert_eq!(bench.quarantine.marks[&first.path].registered, second.registered);
        assert_eq!(bench.told(), Some(1));

        // So does one in the folder that has long been of no tree, where the newer one could not be written.
        let third = damage_again(&bench, &second);
        bench.quarantine.marks.insert(third.path.clone(), third.clone());
        bench.quarantine.unkept.insert(third.path.clone());
        bench.quarantine.seen = None;
        bench.quarantine.look();
        assert!(bench.quarantine.marks[&third.path].is_same(&third));
        assert_eq!(bench.folder().read().expect("readable"), []);
    }

    #[test]
    fn what_cannot_be_written_holds_all_the_same() {
        let mut bench = Bench::new();
        fs::write(bench.scratch.path().join("cache"), "in the way").expect("the folder is ours");
        bench.quarantine.add(bench.damage("1"));
        assert_eq!(bench.told(), Some(1));
        bench.quarantine.look();
        fs::remove_file(bench.scratch.path().join("cache")).expect("the folder is ours");
        bench.folder().set(&Mark::from(bench.damage("2"))).expect("writable");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(2));
        fs::remove_file(bench.scratch.path().join(format!("{}-path", "1".repeat(32)))).expect("it is ours");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(1));
    }

    #[test]
    fn a_mark_of_another_hash_takes_the_place_of_one_of_the_same_tree() {
        let mut bench = Bench::new();
        let registered = |bench: &Bench| {
            let mut registered = None;
            while let Some(Request::Quarantine(marked)) = bench.requests.try_recv() {
                registered = Some(marked.values().copied().collect::<Vec<_>>());
            }
            registered
        };
        let damage = bench.damage("1");
        // By the row that there was before the path was registered anew.
        bench.quarantine.add(Damage { registered: Sha256::of(b"before"), ..damage.clone() });
        assert_eq!(registered(&bench), Some(vec![Sha256::of(b"before")]));
        bench.quarantine.add(damage.clone());
        assert_eq!(registered(&bench), Some(vec![Sha256::of(b"sound")]));
        let after = Damage { registered: Sha256::of(b"after"), ..damage };
        bench.folder().set(&Mark::from(after.clone())).expect("writable");
        bench.quarantine.look();
        assert_eq!(registered(&bench), Some(vec![Sha256::of(b"after")]));
        assert!(bench.folder().read().expect("readable")[0].is_same(&after.into()));
        bench.quarantine.look();
        assert_eq!(registered(&bench), None);
    }

    #[test]
    fn a_path_without_a_tree_is_marked_until_it_has_one() {
        let mut bench = Bench::new();
        let Damage { path, registered, .. } = bench.damage("1");
        let root = bench.scratch.path().join(path.as_str());
        fs::remove_file(&root).expect("the folder is ours");
        let mark = Mark { path, registered, found: Found::Nothing };
        bench.folder().set(&mark).expect("writable");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(1));
        assert_eq!(bench.folder().read().expect("readable"), [mark]);
        fs::write(&root, "repaired").expect("the folder is ours");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(0));
        assert_eq!(bench.folder().read().expect("readable"), []);
    }

    #[test]
    fn what_another_process_is_marking_is_left_to_it() {
        let bench = Bench::new();
        let (mark, folder) = (Mark::from(bench.damage("1")), bench.folder());
        fs::create_dir_all(&folder.0).expect("the folder is ours");
        let theirs = [format!(".{}.new", mark.path), format!(".{}.1.new", mark.path)];
        for name in &theirs {
            fs::write(folder.0.join(name), "half").expect("the folder is ours");
        }
        folder.set(&mark).expect("writable");
        for name in &theirs {
            assert_eq!(fs::read(folder.0.join(name)).expect("it is still there"), b"half");
        }
        assert_eq!(folder.read().expect("readable").len(), 1);
    }

    /// As when many clients ask for what is damaged.
    #[test]
    fn it_looks_while_it_is_told_without_a_pause() {
        let bench = Bench::new();
        let (known, mark) = (bench.damage("1"), Mark::from(bench.damage("2")));
        let Bench { scratch: _scratch, requests, quarantine } = bench;
        let folder = quarantine.folder.clone();
        let (sender, damages) = mailbox::bounded(limits::QUARANTINE_QUEUE, None);
        let thread = std::thread::spawn(move || quarantine.run(&damages));
        let is_told_of = |count: usize| {
            let until = Instant::now() + std::time::Duration::from_secs(60);
            loop {
                sender.send(known.clone());
                match requests.try_recv() {
                    Some(Request::Quarantine(marked)) if marked.len() == count => return true,
                    _ if Instant::now() > until => return false,
                    _ => {}
                }
            }
        };
        assert!(is_told_of(1));
        folder.set(&mark).expect("writable");
        assert!(is_told_of(2));
        drop(sender);
        thread.join().expect("it ends");
    }
}
