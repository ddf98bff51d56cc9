//! The real collector at work while paths are sent.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use support::server::Settings;
use support::store::{base_name, hash_of};
use support::wire::Cut;
use support::{Connection, Kind, Server, Store, noise, poll, succeed, wait_until, write};

/// A path of many files, most of which a transfer that has just begun has not opened.
fn large(store: &Store, name: &str) -> String {
    store.add(name, |tree| {
        for number in 0..60 {
            write(tree.join(format!("{number:02} large")), noise(number, 500_000));
            write(tree.join(format!("{number:02} small")), noise(number, 500));
        }
    })
}

fn collect(store: &Store) {
    store.collect(&["--gc"]);
}

fn is_valid(store: &Store, path: &str) -> bool {
    let count =
        store
            .open_database()
            .query_row("select count(*) from ValidPaths where path = ?1", [path], |row| row.get::<_, i64>(0));
    count.expect("it is Nix's schema") == 1
}

/// Collects in the middle of a slow transfer, which must arrive whole; afterwards the path must go.
fn survives_a_collection(store: &Store, server: &Server) {
    let path = large(store, "wanted");
    let garbage = store.add("garbage", |file| write(file, "nobody wants this"));
    let nar = store.dump(&path);
    let url = server.nar_url(&path);
    let mut connection = Connection::narrow(server.address);
    connection.request("GET", &url, &[]).read_head();
    let mut body = connection.take(100_000).expect("it is sent");

    collect(store);
    assert!(!is_valid(store, &garbage), "the collector collected");
    assert!(is_valid(store, &path), "a path that is being sent was collected");

    connection.widen();
    body.extend(connection.take(nar.len() - 100_000).expect("the transfer goes on"));
    assert!(body == nar);
    // The same connection is still open: only a transfer holds a root.
    wait_until("the path to be collected", Duration::from_secs(60), || {
        collect(store);
        !store.real(&path).exists()
    });
    assert_eq!(connection.get(&url).status, 404);
}

#[test]
fn a_path_that_is_sent_is_not_collected_thanks_to_direct_roots() {
    let store = Store::new(Kind::Chroot);
    let server = Server::of(&store);
    survives_a_collection(&store, &server);
    // What the server wrote did not break the collector, and nothing of it is left after the server.
    drop(server);
    collect(&store);
    let left: Vec<_> = fs::read_dir(store.state_dir().join("temproots")).expect("Nix made it").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A real nix-daemon over a store.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn over(store: &Store) -> Self {
        let socket = store.folder().join("daemon.sock");
        let mut command = store.bare("nix-daemon");
        // The daemon takes its store from the environment alone.
        let root = store.folder().join("root");
        command.env("NIX_REMOTE", format!("local?root={}", root.display()));
        command.env("NIX_DAEMON_SOCKET_PATH", &socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("nix-daemon is installed");
        let daemon = Self { child, socket };
        poll("the daemon's socket", Duration::from_secs(30), || {
            std::os::unix::net::UnixStream::connect(&daemon.socket).ok()
        });
        daemon
    }

    fn line(&self) -> String {
        format!("daemon_socket = {:?}", self.socket)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_path_that_is_sent_is_not_collected_thanks_to_the_daemon() {
    let store = Store::new(Kind::Chroot);
    let daemon = Daemon::over(&store);
    // Without rights in the state folder the daemon is the only way.
    let server = Settings::of(&store).line(&daemon.line()).unprivileged().start();
    survives_a_collection(&store, &server);
    assert!(server.metric("harmonia_temporary_roots_total", &["daemon", "taken"]) >= 1.0);
}

#[test]
fn without_any_way_to_take_roots_it_still_serves() {
    let store = Store::new(Kind::Chroot);
    let nowhere = store.folder().join("no-daemon.sock");
    let line = format!("daemon_socket = {nowhere:?}");
    let server = Settings::of(&store).line(&line).unprivileged().start();
    let path = store.add("served", |tree| write(tree.join("a"), "contents"));
    for _ in 0..3 {
        assert_eq!(server.get(&server.nar_url(&path)).body, store.dump(&path));
    }
    let warned = server.log().lines().filter(|line| line.contains("WARN") && line.contains("root")).count();
    assert_eq!(warned, 1, "it is said, and said once:\n{}", server.log());
}

/// Ends the collecting however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Transfers begin at any moment of many collections: each is a 404, or arrives whole.
#[test]
fn collections_and_transfers_cross_at_any_moment() {
    let store = Store::new(Kind::Chroot);
    let server = Server::of(&store);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let collector = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                collect(&store);
            }
        });
        let stopped = Stop(&stop);
        for round in 0..60 {
            arrives_or_is_absent(&store, &server, round);
        }
        // The collector may have been faster each time; with nobody to take it away, a path arrives.
        drop(stopped);
        collector.join().expect("it collects well");
        assert!(arrives_or_is_absent(&store, &server, 60), "it is there, and was not sent");
    });
}

fn arrives_or_is_absent(store: &Store, server: &Server, round: u64) -> bool {
    let path = store.add(&format!("crossing-{round}"), |tree| {
        for number in 0..20 {
            write(tree.join(format!("{number}")), noise(round * 20 + number, 150_000));
        }
    });
    let narinfo = server.get(&format!("/{}.narinfo", hash_of(&path)));
    if narinfo.status == 404 {
        return false;
    }
    let narinfo = narinfo.text();
    let field =
        |name: &str| narinfo.lines().find_map(|line| line.strip_prefix(name)).expect("it has it").to_owned();
    let mut connection = server.connect();
    match connection.request("GET", &format!("/{}", field("URL: ")), &[]).try_read("GET") {
        Ok(answer) if answer.status == 200 => {
            let file = store.folder().join(format!("{}.nar", base_name(&path)));
            write(&file, &answer.body);
            assert_eq!(hash_of_file(store, &file), field("NarHash: "), "wrong bytes were sent");
            fs::remove_file(file).expect("the test wrote it");
            true
        }
        Ok(answer) => {
            assert_eq!(answer.status, 404, "gone before it was accepted");
            false
        }
        Err(Cut::Within(_) | Cut::Closed) => panic!("a path was collected after its transfer was accepted"),
    }
}

fn hash_of_file(store: &Store, file: &Path) -> String {
    let hash = succeed(store.bare("nix-hash").args(["--flat", "--type", "sha256", "--base32"]).arg(file));
    format!("sha256:{}", support::lossy(&hash).trim())
}
