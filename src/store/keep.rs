//! Roots of what is asked for: a path that a client asked for lately is not collected.
//!
//! Below a folder in Nix's `gcroots` lies one symlink a path, its time of last change being the time of last use.
//! Workers tell the actor of a path at most once a day, and never wait for it. It makes or renews the link, and now and
//! then removes those that nobody has asked for in the time that is set. The collector reads the folder itself: what is
//! linked there it spares, with all that it refers to.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::Settings;
use crate::formats::store_path::{StoreDir, StorePath};
use crate::limits;
use crate::mailbox::{Receiver, Silence};
use crate::metrics::{KeepMetrics, Kept};

/// Where in the folder of roots those of served paths are.
const SERVED: &str = "served";

/// Nobody sets days and means hours: whoever sees that a path is asked for tells of it once in each of UTC, and its link
/// is made or renewed then.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The number of a time's day in UTC, counted from 1970; 0 for a time before.
fn day(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / DAY.as_secs())
}

/// A path was asked for.
#[derive(Debug)]
pub struct Request {
    /// The path.
    pub path: StorePath,
}

/// The actor that keeps what is asked for.
pub struct Keeper {
    store_dir: StoreDir,
    real_store: PathBuf,
    folder: PathBuf,
    /// How long after its last use a path is kept.
    time: Duration,
    metrics: Arc<KeepMetrics>,
    /// It was said that links cannot be made, and none has been made since.
    warned: bool,
}

impl Keeper {
    /// An actor for the store of `settings`, with its links below `roots`; each is kept for `time` after its last use.
    pub fn new(settings: &Settings, roots: &Path, time: Duration, metrics: Arc<KeepMetrics>) -> Self {
        Self {
            store_dir: settings.store_dir.clone(),
            real_store: settings.real_store.clone(),
            folder: roots.join(SERVED),
            time,
            metrics,
            warned: false,
        }
    }

    /// Keeps what is asked for until every sender is gone. The links stay.
    pub fn run(mut self, mailbox: &Receiver<Request>) {
        self.prepare();
        let mut next_sweep = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_sweep {
                self.sweep(SystemTime::now());
                next_sweep = now + limits::KEEP_SWEEP;
            }
            match mailbox.recv_timeout(next_sweep.saturating_duration_since(now)) {
                Ok(Request { path }) => self.keep(&path, SystemTime::now()),
                Err(Silence::Quiet) => {}
                Err(Silence::Closed) => return,
            }
        }
    }

    /// Finds out at the start whether links can be made, so that the log says it before a path is lost.
    fn prepare(&mut self) {
        let writable = fs::create_dir_all(&self.folder)
            .and_then(|()| Ok(rustix::fs::access(&self.folder, rustix::fs::Access::WRITE_OK)?));
        match writable {
            Ok(()) => tracing::info!("what is asked for is kept by roots in {}", self.folder.display()),
            Err(error) => self.warn(&error),
        }
    }

    /// Makes the path's link, or renews it where it is of another day. Who tells of a path does so once a day, by the
    /// same days: a link that is younger than 24 hours would otherwise stay as it is for all of the next day.
    fn keep(&mut self, path: &StorePath, now: SystemTime) {
        let link = self.folder.join(path.as_str());
        let kept = match last_use(&link) {
            Ok(used) if day(used) == day(now) => return,
            Ok(_) => renew(&link).map(|()| Kept::Renewed),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                symlink(self.store_dir.display(path).to_string(), &link).map(|()| Kept::Made)
            }
            Err(error) => Err(error),
        };
        match kept {
            Ok(kept) => {
                self.metrics.kept(kept);
                self.warned = false;
            }
            Err(error) => {
                self.metrics.kept(Kept::Failed);
                self.warn(&error);
            }
        }
    }

    /// Removes the links of paths that nobody has asked for lately, and of those that are no more.
    fn sweep(&mut self, now: SystemTime) {
        // Links are renewed once a day, so the last use may be as much younger than it says.
        let limit = self.time + DAY;
        let expired = expire(&self.folder, |name, used| {
            age(used, now) >= limit || self.real_store.join(name).symlink_metadata().is_err()
        });
        let mut failed = None;
        for removed in expired {
            match removed {
                Ok(()) => self.metrics.kept(Kept::Expired),
                Err(error) => {
                    self.metrics.kept(Kept::Failed);
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            self.warn(&error);
        }
    }

    fn warn(&mut self, error: &io::Error) {
        if !self.warned {
            self.warned = true;
            tracing::warn!(
                "keep_served: {error}: what is asked for is not kept from the garbage collector. Let this user write to \
                 {}, or set roots_dir",
                self.folder.display()
            );
        }
    }
}

/// Removes every link below `roots` that an earlier server made for served paths: nobody would ever again, and the store
/// could only grow.
pub fn forget_all(roots: &Path) {
    for removed in expire(&roots.join(SERVED), |_, _| true) {
        if let Err(error) = removed {
            tracing::warn!(
                "{}: {error}: paths that were asked for while keep_served was set stay in the store until the links \
                 there are removed",
                roots.join(SERVED).display()
            );
            return;
        }
    }
}

/// Removes the links of store paths in `folder` that are `unwanted` by name and time of last use. What else is there is
/// somebody's who knows why.
fn expire<'f>(
    folder: &'f Path,
    unwanted: impl Fn(&str, SystemTime) -> bool + 'f,
) -> impl Iterator<Item = io::Result<()>> + 'f {
    // A folder that is not there has no links; of one that cannot be read, the next link to be made tells.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let name = entry.file_name();
        let name = name.to_str().filter(|name| StorePath::from_basename(name).is_ok())?;
        let link = entry.path();
        let used = last_use(&link).ok()?;
        unwanted(name, used).then(|| fs::remove_file(&link))
    })
}

/// When a link was made or renewed.
fn last_use(link: &Path) -> io::Result<SystemTime> {
    let found = fs::symlink_metadata(link)?;
    if !found.is_symlink() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "something is there that is no symlink"));
    }
    found.modified()
}

/// Nothing for a time to come: a clock was wrong, then or now, and a link too many costs less than a path.
fn age(used: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(used).unwrap_or_default()
}

fn renew(link: &Path) -> io::Result<()> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    Ok(utimensat(CWD, link, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        _folder: tempfile::TempDir,
        roots: PathBuf,
        keeper: Keeper,
        metrics: Arc<KeepMetrics>,
    }

    fn bench(days: u32) -> Bench {
        let folder = tempfile::tempdir().expect("a folder");
        let nowhere = PathBuf::from("/nowhere");
        let settings = Settings {
            store_dir: StoreDir::new("/nix/store").expect("it is one"),
            real_store: folder.path().join("store"),
            database: nowhere.clone(),
            state_dir: nowhere.clone(),
            log_dir: nowhere.clone(),
            daemon_socket: nowhere,
        };
        fs::create_dir(&settings.real_store).expect("it is ours");
        let roots = folder.path().join("roots");
        let metrics = Arc::<KeepMetrics>::default();
        let mut keeper = Keeper::new(&settings, &roots, days * DAY, Arc::clone(&metrics));
        keeper.prepare();
        Bench { _folder: folder, roots, keeper, metrics }
    }

    impl Bench {
        /// A path that has files.
        fn path(&self, digit: char) -> StorePath {
            let name = format!("{}-kept", String::from(digit).repeat(32));
            fs::write(self.keeper.real_store.join(&name), "").expect("it is ours");
            StorePath::from_basename(&name).expect("it is one")
        }

        fn link(&self, path: &StorePath) -> PathBuf {
            self.roots.join(SERVED).join(path.as_str())
        }

        fn make_older(&self, path: &StorePath, by: Duration) {
            let used = last_use(&self.link(path)).expect("it is there") - by;
            self.set_use(path, used);
        }

        fn set_use(&self, path: &StorePath, used: SystemTime) {
            let since = used.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            let at = Timespec { tv_sec: since.as_secs() as i64, tv_nsec: 0 };
            let times = Timestamps { last_access: at, last_modification: at };
            utimensat(CWD, self.link(path), &times, AtFlags::SYMLINK_NOFOLLOW).expect("it is ours");
        }
    }

    #[test]
    fn a_link_is_made_once_and_renewed_once_a_day() {
        let mut bench = bench(30);
        let path = bench.path('a');
        bench.keeper.keep(&path, SystemTime::now());
        let target = fs::read_link(bench.link(&path)).expect("it is a link");
        assert_eq!(target, Path::new(&bench.keeper.store_dir.display(&path).to_string()));
        // The last day's first and last second, and this day's first.
        let midnight =
            SystemTime::UNIX_EPOCH + DAY * u32::try_from(day(SystemTime::now())).expect("a day of ours");
        let second = Duration::from_secs(1);
        for (used, asked, is_renewed) in [
            (midnight - DAY, midnight - second, false),
            (midnight - second, midnight, true),
            (midnight - DAY, midnight, true),
        ] {
            bench.set_use(&path, used);
            bench.keeper.keep(&path, asked);
            let is_same = last_use(&bench.link(&path)).expect("it is there") == used;
            assert_eq!(!is_same, is_renewed, "used {used:?}, asked for {asked:?}");
        }
        assert_eq!((bench.metrics.get(Kept::Made), bench.metrics.get(Kept::Renewed)), (1, 2));
    }

    #[test]
    fn links_expire_after_their_time_and_with_their_path() {
        let mut bench = bench(30);
        let [young, old, gone] = ['a', 'b', 'c'].map(|digit| bench.path(digit));
        for path in [&young, &old, &gone] {
            bench.keeper.keep(path, SystemTime::now());
        }
        bench.make_older(&young, 30 * DAY);
        bench.make_older(&old, 31 * DAY + Duration::from_secs(60));
        fs::remove_file(bench.keeper.real_store.join(gone.as_str())).expect("it is ours");
        let foreign = bench.roots.join(SERVED).join("a-persons-own");
        symlink("/nix/store/anything", &foreign).expect("it is ours");
        bench.keeper.sweep(SystemTime::now());
        let left = [&young, &old, &gone].map(|path| last_use(&bench.link(path)).is_ok());
        assert_eq!(left, [true, false, false]);
        assert!(foreign.is_symlink());
        assert_eq!(bench.metrics.get(Kept::Expired), 2);
        // A clock that was wrong keeps all.
        bench.keeper.sweep(SystemTime::now() - 400 * DAY);
        assert!(last_use(&bench.link(&young)).is_ok());
        forget_all(&bench.roots);
        assert!(last_use(&bench.link(&young)).is_err() && foreign.is_symlink());
    }

    #[test]
    fn what_cannot_be_kept_is_counted_and_no_more() {
        let mut bench = bench(30);
        let path = bench.path('a');
        fs::remove_dir(bench.roots.join(SERVED)).expect("it is empty");
        bench.keeper.keep(&path, SystemTime::now());
        assert!(bench.keeper.warned);
        fs::create_dir(bench.roots.join(SERVED)).expect("it is ours");
        fs::write(bench.link(&path), "a file").expect("it is ours");
        bench.keeper.keep(&path, SystemTime::now());
        assert_eq!(bench.metrics.get(Kept::Failed), 2);
        assert_eq!(fs::read(bench.link(&path)).expect("it was left alone"), b"a file");
    }
}
