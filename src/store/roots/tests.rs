//! Roots against the real collector and the real daemon, and against stand-ins for what is hard to hit.

use super::*;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, flock};

/// How long somebody on this machine may have something open that collectors fail on: see [`is_lost_in_proc`].
const LOST_TIME: Duration = Duration::from_secs(300);

/// A store of its own, under a temporary folder.
struct Store {
    folder: tempfile::TempDir,
    settings: Settings,
}

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        for name in ["store", "state", "log", "conf"] {
            fs::create_dir(base.join(name)).unwrap();
        }
        let settings = Settings {
            store_dir: StoreDir::new(base.join("store").to_str().unwrap()).unwrap(),
            real_store: base.join("store"),
            database: base.join("state/db/db.sqlite"),
            state_dir: base.join("state"),
            log_dir: base.join("log"),
            daemon_socket: base.join("daemon"),
        };
        Self { folder, settings }
    }

    fn nix(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let base = self.folder.path();
        command
            .env("NIX_STORE_DIR", &self.settings.real_store)
            .env("NIX_STATE_DIR", &self.settings.state_dir)
            .env("NIX_LOG_DIR", &self.settings.log_dir)
            .env("NIX_CONF_DIR", base.join("conf"))
            .env("NIX_DAEMON_SOCKET_PATH", &self.settings.daemon_socket)
            .env("HOME", base)
            .env("NIX_REMOTE", "")
            .args(["--option", "build-users-group", ""])
            .stdin(Stdio::null());
        command
    }

    /// Adds a file of this name and gives its store path.
    fn add(&self, name: &str) -> StorePath {
        self.add_all(&[name.to_owned()]).remove(0)
    }

    fn add_all(&self, names: &[String]) -> Vec<StorePath> {
        let files: Vec<PathBuf> = names.iter().map(|name| self.folder.path().join(name)).collect();
        for file in &files {
            fs::write(file, file.to_str().unwrap()).unwrap();
        }
        let output = self.nix("nix-store").arg("--add").args(&files).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = String::from_utf8(output.stdout).unwrap();
        output.lines().map(|line| self.settings.store_dir.parse(line).unwrap()).collect()
    }

    fn collect(&self) {
        let output = || self.nix("nix-store").arg("--gc").output().unwrap();
        let until = Instant::now() + LOST_TIME;
        let mut collected = output();
        while is_lost_in_proc(&collected.stderr) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
            collected = output();
        }
        assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    }

    /// A collector that says what it deletes to nobody, and so stops in the middle: when the pipe, whose other end this
    /// gives, holds no more.
    fn stopped_collector(&self) -> (Child, PipeReader) {
        let until = Instant::now() + LOST_TIME;
        loop {
            let (mut said, pipe) = std::io::pipe().unwrap();
            let mut command = self.nix("nix-store");
            command.arg("--gc").stdout(Stdio::null()).stderr(pipe.try_clone().unwrap());
            let mut collector = command.spawn().unwrap();
            while !is_full(&pipe) && collector.try_wait().unwrap().is_none() {
                assert!(Instant::now() < until, "waited in vain until the collection is under way");
                std::thread::sleep(Duration::from_millis(10));
            }
            if is_full(&pipe) {
                return (collector, said);
            }
            drop((command, pipe));
            let mut stderr = Vec::new();
            said.read_to_end(&mut stderr).unwrap();
            collector.wait().unwrap();
            assert!(is_lost_in_proc(&stderr), "{}", String::from_utf8_lossy(&stderr));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn has(&self, path: &StorePath) -> bool {
        self.settings.real_store.join(path.as_str()).exists()
    }

    /// Those of `paths` that the database still has.
    fn valid(&self, paths: &[StorePath]) -> Vec<StorePath> {
        let full = paths.iter().map(|path| self.settings.store_dir.display(path).to_string());
        let arguments = ["--check-validity".to_owned(), "--print-invalid".to_owned()].into_iter().chain(full);
        let output = self.nix("nix-store").args(arguments).output().unwrap();
        let invalid = String::from_utf8(output.stdout).unwrap();
        let is_valid = |path: &&StorePath| !invalid.contains(path.as_str());
        paths.iter().filter(is_valid).cloned().collect()
    }

    fn root_files(&self) -> Vec<PathBuf> {
        let Ok(folder) = fs::read_dir(self.settings.state_dir.join("temproots")) else { return Vec::new() };
        folder.map(|entry| entry.unwrap().path()).collect()
    }

    fn roots(&self) -> Roots {
        Roots::new(&self.settings, Arc::default())
    }

    /// A server that may not use the state folder.
    fn roots_by_daemon(&self) -> Roots {
        let mut settings = self.settings.clone();
        settings.state_dir = self.folder.path().join("absent");
        Roots::new(&settings, Arc::default())
    }
}

/// Collectors look for roots among what all processes of the machine have open, and fail where that is a path longer
/// than any may be, as another test has.
fn is_lost_in_proc(stderr: &[u8]) -> bool {
    String::from_utf8_lossy(stderr).contains("File name too long")
}

/// Whether whoever writes to the pipe has to wait.
fn is_full(pipe: &PipeWriter) -> bool {
    let mut asked = [PollFd::new(pipe, PollFlags::OUT)];
    rustix::event::poll(&mut asked, Some(&Timespec::default())).unwrap() == 0
}

/// A daemon that is ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start(store: &Store) -> Self {
        let _ = fs::remove_file(&store.settings.daemon_socket);
        let daemon = store.nix("nix-daemon").stderr(Stdio::null()).spawn().unwrap();
        let socket = &store.settings.daemon_socket;
        wait_until("the daemon listens", || socket::connect(socket, Duration::from_secs(1)).is_ok());
        Self(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ticks past every pause, from `now` on.
fn settle(roots: &mut Roots, now: Instant) {
    for second in 0..10 {
        roots.tick(now + Duration::from_secs(second));
    }
}

#[test]
fn a_rooted_path_survives_the_collector_and_can_be_collected_after() {
    let store = Store::new();
    let (kept, lost) = (store.add("kept"), store.add("lost"));
    let mut roots = store.roots();
    let lease = roots.take(kept.clone(), Instant::now());
    assert!(lease.is_rooted());
    store.collect();
    assert!(store.has(&kept) && !store.has(&lost));

    drop(lease);
    settle(&mut roots, Instant::now());
    assert_eq!(store.root_files(), Vec::<PathBuf>::new());
    store.collect();
    assert!(!store.has(&kept));
}

#[test]
fn what_is_no_longer_wanted_goes_while_the_rest_stays() {
    let store = Store::new();
    let (long, short) = (store.add("long"), store.add("short"));
    let mut roots = store.roots();
    let start = Instant::now();
    let lease = roots.take(long.clone(), start);
    drop(roots.take(short.clone(), start));
    store.collect();
    assert!(store.has(&long) && store.has(&short), "a root lingers");
    settle(&mut roots, start);
    assert_eq!(store.root_files().len(), 1);
    store.collect();
    assert!(store.has(&long) && !store.has(&short));
    drop((lease, roots));
    assert_eq!(store.root_files(), Vec::<PathBuf>::new(), "the file goes with the actor");
}

#[test]
fn a_lingering_root_is_taken_up_again() {
    let store = Store::new();
    let path = store.add("path");
    let mut roots = store.roots();
    let start = Instant::now();
    drop(roots.take(path.clone(), start));
    roots.tick(start);
    let before = fs::read(&store.root_files()[0]).unwrap();
    let lease = roots.take(path.clone(), start + Duration::from_secs(1));
    assert_eq!(fs::read(&store.root_files()[0]).unwrap(), before, "nothing was written again");
    settle(&mut roots, start + Duration::from_secs(1));
    assert_eq!(before, format!("{}\0", store.settings.store_dir.display(&path)).into_bytes());
    assert_eq!(fs::read(&store.root_files()[0]).unwrap(), before);
    drop(lease);
}

#[test]
fn a_clone_keeps_the_root() {
    let store = Store::new();
    let path = store.add("path");
    let mut roots = store.roots();
    let lease = roots.take(path.clone(), Instant::now());
    let other = lease.clone();
    drop(lease);
    settle(&mut roots, Instant::now());
    store.collect();
    assert!(store.has(&path));
    drop(other);
}

/// The collector says a line for each path that it deletes; with nobody to read them it stops in the middle.
#[test]
fn a_root_taken_during_a_collection_is_honoured_by_it() {
    let store = Store::new();
    let names: Vec<String> = (0..1500).map(|number| format!("path-{number:0>90}")).collect();
    let paths = store.add_all(&names);
    let remaining = || paths.iter().filter(|path| store.has(path)).count();
    let (mut collector, mut said) = store.stopped_collector();
    assert!(remaining() < paths.len());

    // The one that the collector has in hand is on the disk for as long as it waits, and no longer valid. It would
    // confirm no root for it.
    let mut roots = store.roots();
    let leased: Vec<(StorePath, Lease)> = (store.valid(&paths).into_iter().take(100))
        .map(|path| (path.clone(), roots.take(path, Instant::now())))
        .collect();
    // A few more may have gone before it stopped: the server looks at that after the root, and so does this.
    let valid = store.valid(&paths);
    let leased: Vec<_> = leased.into_iter().filter(|(path, _)| valid.contains(path)).collect();
    assert!(leased.len() > 10, "only {} are left", leased.len());
    std::io::copy(&mut said, &mut std::io::sink()).unwrap();
    assert!(collector.wait().unwrap().success());
    let lost = leased.iter().filter(|(path, _)| !store.has(path)).count();
    assert_eq!(lost, 0, "of {}", leased.len());
    assert_eq!(remaining(), leased.len(), "all others are gone");

    store.collect();
    assert!(leased.iter().all(|(path, _)| store.has(path)), "the next collection finds them in the file");
    let leases: Vec<_> = leased.into_iter().map(|(_, lease)| lease).collect();
    drop(leases);
    settle(&mut roots, Instant::now());
    store.collect();
    assert_eq!(remaining(), 0);
}

/// Stands in for a running collector: holds the lock, answers `answers` roots, and ends under the next one.
fn fake_collector(store: &Store, answers: usize) -> (File, mpsc::Receiver<String>, JoinHandle<()>) {
    fs::create_dir_all(store.settings.state_dir.join("gc-socket")).unwrap();
    let lock = File::create(store.settings.state_dir.join("gc.lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let listener = UnixListener::bind(store.settings.state_dir.join("gc-socket/socket")).unwrap();
    let (told, heard) = mpsc::channel();
    let end = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream);
        for _ in 0..answers {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            told.send(line).unwrap();
            lines.get_mut().write_all(b"1").unwrap();
        }
        // What was asked beyond that gets no answer, and its line is cut.
        let _ = lines.get_mut().read(&mut [0; 100]);
    });
    (lock, heard, end)
}

#[test]
fn a_collection_that_ends_under_the_question_is_no_trouble() {
    let store = Store::new();
    let (first, second) = (store.add("first"), store.add("second"));
    let (lock, heard, asked_again) = fake_collector(&store, 1);
    let mut file = RootFile::create(&store.settings.state_dir).unwrap();
    let full = |path| store.settings.store_dir.display(path).to_string();
    assert_eq!(file.add(&full(&first)).unwrap(), Added::Certain);
    assert_eq!(heard.recv().unwrap(), format!("{}\n", full(&first)));
    // It ends when it is asked again: its socket refuses, and its lock is free a moment later.
    let end = std::thread::spawn(move || {
        asked_again.join().unwrap();
        drop(lock);
    });
    assert_eq!(file.add(&full(&second)).unwrap(), Added::Certain);
    end.join().unwrap();
    let written = fs::read_to_string(&store.root_files()[0]).unwrap();
    assert_eq!(written.matches('\0').count(), 2);
    store.collect();
    assert!(store.has(&first) && store.has(&second));
}

#[test]
fn a_collector_that_hangs_holds_up_one_root_only() {
    let store = Store::new();
    let (first, second) = (store.add("first"), store.add("second"));
    fs::create_dir_all(store.settings.state_dir.join("gc-socket")).unwrap();
    let lock = File::create(store.settings.state_dir.join("gc.lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let _listener = UnixListener::bind(store.settings.state_dir.join("gc-socket/socket")).unwrap();
    let mut file = RootFile::create(&store.settings.state_dir).unwrap();
    let full = |path| store.settings.store_dir.display(path).to_string();
    assert_eq!(file.patience(), limits::ROOT_COLLECTOR_TIME);
    assert_eq!(file.add(&full(&first)).unwrap(), Added::Later);
    assert_eq!(file.patience(), Duration::ZERO, "it is not waited for again");
    assert_eq!(file.add(&full(&second)).unwrap(), Added::Later);
    drop(lock);
    store.collect();
    assert!(store.has(&first) && store.has(&second));
}

#[test]
fn the_old_file_stays_while_a_collection_goes_on() {
    let store = Store::new();
    let (long, short) = (store.add("long"), store.add("short"));
    let mut roots = store.roots();
    let start = Instant::now();
    let _long = roots.take(long.clone(), start);
    drop(roots.take(short, start));
    let (lock, heard, _) = fake_collector(&store, 1);
    settle(&mut roots, start);
    assert_eq!(heard.recv().unwrap(), format!("{}\n", store.settings.store_dir.display(&long)));
    assert_eq!(store.root_files().len(), 2, "the collector may have read the old one only");
    drop(lock);
    settle(&mut roots, start + Duration::from_secs(20));
    assert_eq!(store.root_files().len(), 1);
    store.collect();
    assert!(store.has(&long));
}

#[test]
fn stale_files_and_files_of_others_are_left_to_the_collector() {
    let store = Store::new();
    let (ours, theirs, stale) = (store.add("ours"), store.add("theirs"), store.add("stale"));
    let folder = store.settings.state_dir.join("temproots");
    let write = |number: &str, path: &StorePath| {
        let mut file = File::create(folder.join(number)).unwrap();
        write!(file, "{}\0", store.settings.store_dir.display(path)).unwrap();
        file
    };
    let locked = write("1000000001", &theirs);
    flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(write("1000000002", &stale));
    let mut roots = store.roots();
    let lease = roots.take(ours.clone(), Instant::now());
    store.collect();
    assert!(store.has(&ours) && store.has(&theirs) && !store.has(&stale));
    assert!(!folder.join("1000000002").exists());
    drop(lease);
}

#[test]
fn a_number_that_is_taken_is_not_touched() {
    let store = Store::new();
    let path = store.settings.state_dir.join("1000000003");
    fs::write(&path, "theirs").unwrap();
    assert!(direct::create_locked(&path).unwrap().is_none());
    assert_eq!(fs::read(&path).unwrap(), b"theirs");
}

#[test]
fn every_name_is_a_number_that_the_collector_can_read_and_no_process_has() {
    for _ in 0..1000 {
        let number = direct::random_number().unwrap();
        assert!(number > 1 << 22 && number < 1 << 31, "{number}");
    }
}

#[test]
fn a_file_that_somebody_removed_is_made_again_with_all_roots() {
    let store = Store::new();
    let (first, second) = (store.add("first"), store.add("second"));
    let mut roots = store.roots();
    let _first = roots.take(first.clone(), Instant::now());
    fs::remove_dir_all(store.settings.state_dir.join("temproots")).unwrap();
    let _second = roots.take(second.clone(), Instant::now());
    store.collect();
    assert!(store.has(&first) && store.has(&second));
}

#[test]
fn the_daemon_holds_roots_and_gives_them_back() {
    let store = Store::new();
    let (long, short, lost) = (store.add("long"), store.add("short"), store.add("lost"));
    let _daemon = Daemon::start(&store);
    let mut roots = store.roots_by_daemon();
    let start = Instant::now();
    let lease = roots.take(long.clone(), start);
    assert!(lease.is_rooted());
    assert!(matches!(roots.holder, Some(Holder::Daemon(_))));
    drop(roots.take(short.clone(), start));
    store.collect();
    assert!(store.has(&long) && store.has(&short) && !store.has(&lost));
    settle(&mut roots, start);
    // The daemon's process for the old connection ends a moment after it.
    wait_until("the short one is collected", || {
        store.collect();
        !store.has(&short)
    });
    assert!(store.has(&long));
    drop(lease);
    settle(&mut roots, start + Duration::from_secs(20));
    wait_until("the long one is collected", || {
        store.collect();
        !store.has(&long)
    });
}

#[test]
fn a_daemon_that_restarts_gets_all_roots_again() {
    let store = Store::new();
    let (first, second) = (store.add("first"), store.add("second"));
    let daemon = Daemon::start(&store);
    let mut roots = store.roots_by_daemon();
    let _first = roots.take(first.clone(), Instant::now());
    // The daemon serves each connection in a process of its own, which outlives it.
    let Some(Holder::Daemon(connection)) = &mut roots.holder else { panic!("no connection") };
    connection.shut_down();
    drop(daemon);
    assert!(!roots.take(second.clone(), Instant::now()).is_rooted(), "there is no daemon");
    let _daemon = Daemon::start(&store);
    let later = Instant::now() + limits::ROOT_WAY_REST;
    roots.tick(later);
    store.collect();
    assert!(store.has(&first), "it is tried again after a while, whether anybody asks or not");
    assert!(!store.has(&second));
    let third = store.add("third");
    let _third = roots.take(third.clone(), later);
    store.collect();
    assert!(store.has(&first) && store.has(&third));
}

#[test]
fn a_root_that_cannot_be_written_takes_none_with_it() {
    let store = Store::new();
    let (first, second) = (store.add("first"), store.add("second"));
    let mut roots = store.roots();
    let start = Instant::now();
    let _first = roots.take(first.clone(), start);
    let Some(Holder::Direct(file)) = &mut roots.holder else { panic!("no file") };
    let lock = file.fill_up();
    // Nor is there any other way.
    let state_dir = std::mem::replace(&mut roots.state_dir, store.folder.path().join("absent"));
    assert!(!roots.take(second.clone(), start).is_rooted());
    assert!(roots.take(first.clone(), start).is_rooted(), "the file has it");
    store.collect();
    assert!(store.has(&first) && !store.has(&second));

    roots.state_dir = state_dir;
    let later = start + limits::ROOT_WAY_REST;
    roots.tick(later);
    assert_eq!(store.root_files().len(), 1, "another file has taken its place");
    drop(lock);
    let third = store.add("third");
    let _third = roots.take(third.clone(), later);
    store.collect();
    assert!(store.has(&first) && store.has(&third));
}

#[test]
fn a_broken_connection_is_replaced_with_nothing_lost() {
    let store = Store::new();
    let (first, second) = (store.add("first"), store.add("second"));
    let _daemon = Daemon::start(&store);
    let mut roots = store.roots_by_daemon();
    let _first = roots.take(first.clone(), Instant::now());
    let Some(Holder::Daemon(connection)) = &mut roots.holder else { panic!("no connection") };
    connection.shut_down();
    let _second = roots.take(second.clone(), Instant::now());
    store.collect();
    assert!(store.has(&first) && store.has(&second));
}

#[test]
fn a_path_that_the_daemon_refuses_gets_an_empty_lease_at_once() {
    let store = Store::new();
    let (first, second) = (store.add("first"), store.add("second"));
    let _daemon = Daemon::start(&store);
    let mut roots = store.roots_by_daemon();
    let ours = std::mem::replace(&mut roots.store_dir, StoreDir::new("/somewhere/else").unwrap());
    assert!(!roots.root(&first, Instant::now()), "a path of another store");
    roots.store_dir = ours;
    assert_eq!(roots.rests[Way::Daemon as usize], None, "the daemon is not to blame");
    let _leases = [&first, &second].map(|path| roots.take(path.clone(), Instant::now()));
    store.collect();
    assert!(store.has(&first) && store.has(&second));
    let mut connection = Connection::open(&store.settings.daemon_socket).unwrap();
    let error = connection.add("/somewhere/else").unwrap_err();
    assert!(error.to_string().contains("is not in the Nix store"), "{error}");
}

/// A daemon of today speaks 1.38 and would exchange features with a client that does too.
#[test]
fn a_newer_daemon_is_met_on_our_terms() {
    let store = Store::new();
    let listener = UnixListener::bind(&store.settings.daemon_socket).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut read = |len: usize| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(8), 0x6e69_7863_u64.to_le_bytes());
        stream.write_all(&words(&[0x6478_696f, 1 << 8 | 38])).unwrap();
        let mut read = |len: usize| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(24), words(&[1 << 8 | 35, 0, 0]));
        let release = u64::from_le_bytes(*b"2.34.0\0\0");
        stream.write_all(&words(&[6, release, 1, 0x616c_7473])).unwrap();
        let mut op = [0; 16];
        stream.read_exact(&mut op).unwrap();
        assert_eq!(op[..8], words(&[11]));
        let len = u64::from_le_bytes(op[8..].try_into().unwrap()) as usize;
        let mut path = vec![0; len.next_multiple_of(8)];
        stream.read_exact(&mut path).unwrap();
        stream.write_all(&words(&[0x616c_7473, 1])).unwrap();
        path.truncate(len);
        String::from_utf8(path).unwrap()
    });
    let path = StorePath::from_basename("00000000000000000000000000000000-x").unwrap();
    let mut roots = store.roots_by_daemon();
    assert!(roots.take(path.clone(), Instant::now()).is_rooted());
    assert_eq!(daemon.join().unwrap(), store.settings.store_dir.display(&path).to_string());
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn a_daemon_that_hangs_costs_one_wait() {
    let store = Store::new();
    let path = StorePath::from_basename("00000000000000000000000000000000-x").unwrap();
    let listener = UnixListener::bind(&store.settings.daemon_socket).unwrap();
    let mut roots = store.roots_by_daemon();
    let start = Instant::now();
    for _ in 0..3 {
        assert!(!roots.take(path.clone(), start).is_rooted());
    }
    listener.set_nonblocking(true).unwrap();
    let asked = listener.incoming().take_while(Result::is_ok).count();
    assert_eq!(asked, 1, "the daemon rests after that");
}

#[test]
fn without_any_way_leases_are_empty_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let settings = Settings {
        state_dir: folder.path().join("absent"),
        daemon_socket: folder.path().join("none"),
        ..store.settings.clone()
    };
    let metrics = crate::metrics::Metrics::new(1);
    let roots = Roots::new(&settings, metrics.roots());
    let (sender, mailbox) = crate::mailbox::bounded(4, None);
    let (answers, answered) = mpsc::channel();
    let outlet = Outlet::new(move |ticket, Answer::Rooted(lease)| answers.send((ticket, lease)).unwrap());
    let actor = std::thread::spawn(move || roots.run(mailbox, outlet));
    let ticket = Ticket { worker: 1, slot: 2, serial: 3 };
    let path = StorePath::from_basename("00000000000000000000000000000000-x").unwrap();
    sender.send(Request::Take { ticket, path });
    let (to, lease) = answered.recv().unwrap();
    assert!(to == ticket && !lease.is_rooted());
    drop(sender);
    actor.join().unwrap();
    assert!(metrics.render().contains("\nharmonia_unrooted_transfers_total 1\n"));
}

/// As the actor runs in the server: nobody calls it, and still what is dropped is given back.
#[test]
fn the_actor_gives_back_by_itself() {
    let store = Store::new();
    let path = store.add("path");
    let (sender, mailbox) = crate::mailbox::bounded(4, None);
    let (answers, answered) = mpsc::channel();
    let outlet = Outlet::new(move |_, Answer::Rooted(lease)| answers.send(lease).unwrap());
    let roots = store.roots();
    let actor = std::thread::spawn(move || roots.run(mailbox, outlet));
    sender.send(Request::Take { ticket: Ticket { worker: 0, slot: 0, serial: 0 }, path: path.clone() });
    let lease = answered.recv().unwrap();
    store.collect();
    assert!(store.has(&path));
    drop(lease);
    wait_until("the root is given back", || store.root_files().is_empty());
    store.collect();
    assert!(!store.has(&path));
    drop(sender);
    actor.join().unwrap();
}
