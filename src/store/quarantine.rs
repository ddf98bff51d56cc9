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
    pub fn set(&self, damage: &Damage) -> Result<(), StoreError> {
        let path = self.0.join(damage.path.as_str());
        // No store path begins so: whoever reads the folder meanwhile passes it over.
        let new = self.0.join(format!(".{}.new", damage.path));
        let write = || {
            make_folder(&self.0)?;
            let mut file = File::create(&new)?;
            // Whoever runs `store verify` need not be whom the server runs as.
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(to_text(damage).as_bytes())?;
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
    pub fn end(&self, mark: &Damage) -> Result<bool, StoreError> {
        let path = self.0.join(mark.path.as_str());
        let end = || -> io::Result<_> {
            let _alone = self.lock();
            let text = fs::read_to_string(&path)?;
            let is_there = from_text(mark.path.clone(), &text).is_some_and(|there| is_same(&there, mark));
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
    pub fn read(&self) -> Result<Vec<Damage>, StoreError> {
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

fn to_text(damage: &Damage) -> String {
    let Damage { registered, found, origin, .. } = damage;
    let Origin { inode, changed: (seconds, nanoseconds), .. } = origin;
    let mut mark = json!({
        "registered": registered.to_string(),
        "inode": inode,
        "changed": [seconds, nanoseconds],
    });
    match found {
        Evidence::Hash(found) => mark["found"] = found.to_string().into(),
        Evidence::Size { planned, registered } => mark["sizes"] = json!([planned, registered]),
    }
    format!("{mark}\n")
}

fn from_text(path: StorePath, text: &str) -> Option<Damage> {
    let mark: Value = serde_json::from_str(text).ok()?;
    let hash = |key: &str| Sha256::parse(mark[key].as_str()?).ok();
    let changed = (mark["changed"][0].as_i64()?, mark["changed"][1].as_i64()?);
    let origin = Origin { device: 0, inode: mark["inode"].as_u64()?, changed };
    let found = match hash("found") {
        Some(found) => Evidence::Hash(found),
        None => {
            Evidence::Size { planned: mark["sizes"][0].as_u64()?, registered: mark["sizes"][1].as_u64()? }
        }
    };
    Some(Damage { path, registered: hash("registered")?, found, origin })
}

/// Whether both are the same mark.
fn is_same(one: &Damage, other: &Damage) -> bool {
    let of = |mark: &Damage| (mark.path.hash(), mark.registered, mark.found);
    of(one) == of(other) && is_same_tree(&one.origin, &other.origin)
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
    marks: BTreeMap<StorePath, Damage>,
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
        loop {
            match damages.recv_timeout(limits::QUARANTINE_LOOK) {
                Ok(damage) => self.add(damage),
                Err(Silence::Quiet) => self.look(),
                Err(Silence::Closed) => return,
            }
        }
    }

    /// A path was found to be damaged.
    fn add(&mut self, damage: Damage) {
        let is_known =
            self.marks.get(&damage.path).is_some_and(|known| is_same_tree(&known.origin, &damage.origin));
        // It may have been repaired while it was read.
        if is_known || !self.holds(&damage) {
            return;
        }
        tell(&damage);
        match self.folder.set(&damage) {
            Ok(()) => drop(self.unkept.remove(&damage.path)),
            Err(error) => {
                self.unkept.insert(damage.path.clone());
                self.warn(&error);
            }
        }
        self.marks.insert(damage.path.clone(), damage);
        self.publish();
    }

    /// Follows what others have done to the folder and to the trees.
    fn look(&mut self) {
        let healed: Vec<_> = self.marks.values().filter(|mark| !self.holds(mark)).cloned().collect();
        for mark in &healed {
            tracing::info!(path = %mark.path, "no longer quarantined: another tree is in its place, or none");
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
        marks.values().filter(|mark| !self.marks.contains_key(&mark.path)).for_each(tell);
        for path in self.marks.keys().filter(|path| !marks.contains_key(path)) {
            tracing::info!(%path, "no longer quarantined: its mark was cleared");
        }
        let told = |marks: &BTreeMap<_, Damage>| -> Vec<_> {
            marks.values().map(|mark| (mark.path.hash(), mark.registered)).collect()
        };
        let is_other = told(&marks) != told(&self.marks);
        self.marks = marks;
        is_other
    }

    /// Whether a mark is of the tree that is there. One that cannot be looked at may be.
    fn holds(&self, mark: &Damage) -> bool {
        match Origin::of(&self.real_store.join(mark.path.as_str())) {
            Ok(origin) => is_same_tree(&origin, &mark.origin),
            Err(NarError::Missing { .. }) => false,
            Err(_) => true,
        }
    }

    fn drop_mark(&mut self, mark: &Damage) {
        if self.marks.get(&mark.path).is_some_and(|known| is_same(known, mark)) {
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
fn tell(mark: &Damage) {
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
        assert_eq!(kept, [Damage { origin: Origin { device: 0, ..damage.origin }, ..damage.clone() }]);
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
        bench.folder().set(&one).expect("writable");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(1));
        // At once: within one step of the folder's time.
        bench.folder().set(&other).expect("writable");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(2));
        assert!(bench.folder().end(&one).expect("writable"));
        assert!(!bench.folder().end(&one).expect("writable"));
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

    /// Another tree takes the place of the one that `damage` is of, and is damaged, too.
    fn damage_again(bench: &Bench, damage: &Damage) -> Damage {
        let other = bench.scratch.path().join("other");
        fs::write(&other, "spoilt otherwise").expect("the folder is ours");
        fs::rename(&other, bench.scratch.path().join(damage.path.as_str())).expect("the folder is ours");
        let origin = Origin::of(&bench.scratch.path().join(damage.path.as_str())).expect("it is there");
        let found = Evidence::Size { planned: 24, registered: 16 };
        Damage { path: damage.path.clone(), registered: Sha256::of(b"sound otherwise"), found, origin }
    }

    #[test]
    fn a_mark_that_ends_takes_no_newer_one_with_it() {
        let mut bench = Bench::new();
        let first = bench.damage("1");
        bench.quarantine.add(first.clone());
        assert_eq!(bench.told(), Some(1));
        // Before anybody looks, the path is made anew, and somebody else finds that damaged as well.
        let second = damage_again(&bench, &first);
        bench.folder().set(&second).expect("writable");
        bench.quarantine.look();
        let kept = bench.folder().read().expect("readable");
        assert!(matches!(&kept[..], [mark] if is_same(mark, &second)), "{kept:?}");
        assert_eq!(bench.quarantine.marks[&first.path].registered, second.registered);
        assert_eq!(bench.told(), Some(1));

        // So does one in the folder that has long been of no tree, where the newer one could not be written.
        let third = damage_again(&bench, &second);
        bench.quarantine.marks.insert(third.path.clone(), third.clone());
        bench.quarantine.unkept.insert(third.path.clone());
        bench.quarantine.seen = None;
        bench.quarantine.look();
        assert!(is_same(&bench.quarantine.marks[&third.path], &third));
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
        bench.folder().set(&bench.damage("2")).expect("writable");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(2));
        fs::remove_file(bench.scratch.path().join(format!("{}-path", "1".repeat(32)))).expect("it is ours");
        bench.quarantine.look();
        assert_eq!(bench.told(), Some(1));
    }
}
