//! The store and its database change under the server, or fail it: a clear status or a cut, never a wrong byte.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use support::server::Settings;
use support::store::hash_of;
use support::wire::Cut;
use support::{Connection, Kind, Server, Store, is_root, noise, poll, succeed, wait_until, write};

fn add(store: &Store, name: &str) -> String {
    store.add(name, |tree| write(tree.join("a"), name))
}

fn status_of(server: &Server, path: &str) -> u16 {
    server.get(&format!("/{}.narinfo", hash_of(path))).status
}

/// Lets `harm` do its worst to a store path in the middle of a transfer.
fn while_it_is_sent(harm: impl FnOnce(&Path)) {
    let store = Store::new(Kind::Chroot);
    let path = store.add("harmed", |tree| {
        for number in 0..60 {
            write(tree.join(format!("{number:02} large")), noise(number, 500_000));
            write(tree.join(format!("{number:02} small")), noise(number, 500));
        }
    });
    let server = Settings::of(&store).unprivileged().start();
    let url = server.nar_url(&path);
    let nar = store.dump(&path);
    let mut connection = Connection::narrow(server.address);
    connection.request("GET", &url, &[]).read_head();
    let begun = connection.take(50_000).expect("it is sent");

    let real = store.real(&path);
    fs::set_permissions(&real, fs::Permissions::from_mode(0o755)).expect("the store is ours");
    harm(&real);

    connection.widen();
    let (rest, whole) = match connection.take(nar.len() - begun.len()) {
        Ok(rest) => (rest, true),
        Err(Cut::Within(rest)) => (rest, false),
        Err(Cut::Closed) => (Vec::new(), false),
    };
    let sent = [begun, rest].concat();
    let differs = sent.iter().zip(&nar).position(|(sent, wanted)| sent != wanted);
    assert_eq!(differs, None, "a wrong byte was sent, of {}", sent.len());
    assert_eq!(sent.len() == nar.len(), whole);
    assert!(!whole, "what was never read cannot have been sent");

    // The same again, from a server that has made its plan before: an error before the head, or a cut.
    match server.connect().request("GET", &url, &[]).try_read("GET") {
        Ok(answer) => assert!(answer.status >= 400 || answer.body == nar, "wrong bytes were sent"),
        Err(Cut::Within(body)) => assert!(nar.starts_with(&body), "wrong bytes were sent"),
        Err(Cut::Closed) => {}
    }
    assert_eq!(server.get("/health").text(), "OK\n");
}

fn each_large_file(real: &Path, mut change: impl FnMut(&Path)) {
    for number in 0..60 {
        let file = real.join(format!("{number:02} large"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("the store is ours");
        change(&file);
    }
}

#[test]
fn a_path_is_removed_while_it_is_sent() {
    while_it_is_sent(|real| fs::remove_dir_all(real).expect("the store is ours"));
}

#[test]
fn files_are_truncated_while_they_are_sent() {
    while_it_is_sent(|real| {
        each_large_file(real, |file| {
            // Behind what the socket holds by now. What sendfile has put there is the page cache itself, and a
            // truncation zeroes the rest of the folio that it falls into: the price of not copying, paid only
            // by a store that is being damaged.
            let file = OpenOptions::new().write(true).open(file).expect("the store is ours");
            file.set_len(64 * 1024).expect("the store is ours");
        });
    });
}

#[test]
fn files_grow_while_they_are_sent() {
    while_it_is_sent(|real| {
        each_large_file(real, |file| {
            let grown = [fs::read(file).expect("the store is ours"), vec![b'!'; 100_000]].concat();
            fs::write(file, grown).expect("the store is ours");
        });
    });
}

#[test]
fn files_become_unreadable_while_they_are_sent() {
    while_it_is_sent(|real| {
        each_large_file(real, |file| {
            fs::set_permissions(file, fs::Permissions::from_mode(0o000)).expect("the store is ours");
        });
    });
}

#[test]
fn files_become_something_else_while_they_are_sent() {
    while_it_is_sent(|real| {
        each_large_file(real, |file| {
            fs::remove_file(file).expect("the store is ours");
            std::os::unix::fs::symlink("/etc/passwd", file).expect("the store is ours");
        });
    });
}

#[test]
fn a_tree_that_is_not_what_the_database_says_is_refused_before_the_head() {
    let store = Store::new(Kind::Chroot);
    let path = add(&store, "harmed");
    let server = Server::of(&store);
    let url = server.nar_url(&path);
    damage(&store, &path);
    let answer = server.get(&url);
    assert!(answer.status >= 400, "status {}", answer.status);
    assert!(!support::lossy(&answer.body).contains("harmed"), "an error's body names no path");
}

#[test]
fn a_locked_database_defers_only_what_needs_it() {
    let store = Store::new(Kind::Chroot);
    let path = add(&store, "locked");
    // Only without a write-ahead log does a writer stop readers.
    let writer = store.open_database();
    let mode: String = writer
        .query_row("pragma journal_mode = delete", [], |row| row.get(0))
        .expect("nobody else has it open");
    assert_eq!(mode, "delete");
    let server = Settings::of(&store).line("workers = 1").start();
    assert_eq!(status_of(&server, &path), 200);

    let lock = "begin exclusive; update ValidPaths set ultimate = 1;";
    let target = format!("/{}.narinfo", hash_of(&path));
    let waits = || server.metric("harmonia_database_busy_total", &[]);
    let given_up = || server.metric("harmonia_database_unavailable_total", &[]);
    writer.execute_batch(lock).expect("nobody else writes");
    // The only worker goes on while the database is waited for. On a busy machine all this may take longer than the
    // server waits; then once more.
    let (mut waiting, mut late) = poll("answers that wait for no database", Duration::from_secs(120), || {
        let (before, waited) = (given_up(), waits());
        let mut waiting = server.connect();
        waiting.request("GET", &target, &[]);
        wait_until("the database to be waited for", Duration::from_secs(60), || waits() > waited);
        // It arrives when the database is waited for already.
        let mut late = server.connect();
        late.request("GET", &target, &[]);
        assert_eq!(server.get("/health").text(), "OK\n");
        assert_eq!(server.get("/nix-cache-info").status, 200);
        (given_up() == before).then_some((waiting, late))
    });
    let answer = waiting.read("GET");
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(late.read("GET").status, 503);

    // Freed while a request waits: it is answered. A busy machine may free it too late; then once more.
    poll("an answer after the lock", Duration::from_secs(120), || {
        let before = given_up();
        let mut waiting = server.connect();
        waiting.request("GET", &target, &[]);
        assert_eq!(server.get("/health").text(), "OK\n");
        writer.execute_batch("commit").expect("nobody else writes");
        let status = waiting.read("GET").status;
        if status == 200 {
            return Some(());
        }
        assert!(status == 503 && given_up() > before, "{status}");
        writer.execute_batch("begin exclusive").expect("nobody else writes");
        None
    });
}

#[test]
fn a_database_that_is_replaced_is_read_anew() {
    let store = Store::new(Kind::Chroot);
    let early = add(&store, "early");
    let saved = store.folder().join("saved.sqlite");
    fs::copy(store.database(), &saved).expect("nothing is in a write-ahead log");
    let late = add(&store, "late");
    let server = Server::of(&store);
    assert_eq!((status_of(&server, &early), status_of(&server, &late)), (200, 200));

    fs::rename(&saved, store.database()).expect("the store is ours");
    assert_eq!((status_of(&server, &early), status_of(&server, &late)), (200, 404));
    // And the new one is watched as the old one was.
    let later = add(&store, "later");
    assert_eq!(status_of(&server, &later), 200);
}

/// Before Nix 2.22 the last writer removes the write-ahead log, and who may not make it anew reads without.
#[test]
fn a_reader_without_rights_sees_writers_that_come_and_go() {
    let store = Store::new(Kind::Chroot);
    let first = add(&store, "first");
    let server = Settings::of(&store).unprivileged().start();
    assert!(!store.database().with_extension("sqlite-wal").exists(), "the writer is gone, and its log");
    assert_eq!(status_of(&server, &first), 200);
    for round in 0..15 {
        let path = add(&store, &format!("round-{round}"));
        assert_eq!(status_of(&server, &path), 200, "round {round}: added");
        if round == 0 {
            assert_eq!(server.get(&server.nar_url(&path)).body, store.dump(&path));
        }
        store.collect(&["--delete", &path]);
        assert_eq!(status_of(&server, &path), 404, "round {round}: deleted");
    }
}

#[test]
fn a_full_log_disk_stops_nothing() {
    let store = Store::new(Kind::Chroot);
    let path = add(&store, "served");
    let server = Settings::of(&store)
        .environment("RUST_LOG", "trace")
        .through(&["sh", "-c", "exec \"$0\" \"$@\" >/dev/full 2>&1"])
        .start_silent();
    for _ in 0..50 {
        assert_eq!(status_of(&server, &path), 200);
        assert_eq!(server.get("/nowhere").status, 404);
        assert_eq!(server.connect().send("bad\r\n\r\n").read("GET").status, 400);
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let store = Store::new(Kind::Chroot);
    let path = add(&store, "damaged");
    // Filled by something else before: the server's first line waits already.
    let filled =
        "mkfifo unread && exec 3<>unread && { yes >&3 & sleep 1; kill $!; } && exec \"$0\" \"$@\" >&3 2>&3";
    let server = Settings::of(&store).through(&["sh", "-c", filled]).start_silent();
    let url = server.nar_url(&path);
    damage(&store, &path);
    let mut connection = server.connect();
    for _ in 0..50 {
        assert_eq!(connection.get(&url).status, 404);
    }
}

/// A client may ask for one damaged path as often as it likes.
#[test]
fn a_damaged_path_does_not_fill_the_log() {
    const ASKED: usize = 300;
    let store = Store::new(Kind::Chroot);
    let path = add(&store, "damaged");
    let mut server = Server::of(&store);
    let url = server.nar_url(&path);
    // Other damage is told of once, and the path quarantined.
    fs::set_permissions(store.real(&path), fs::Permissions::from_mode(0o755)).expect("the store is ours");
    succeed(Command::new("mkfifo").arg(store.real(&path).join("fifo")));
    let mut connection = server.connect();
    for _ in 0..ASKED {
        assert_eq!(connection.get(&url).status, 404);
    }
    server.signal(Signal::TERM);
    assert!(server.wait(Duration::from_secs(30)).success());
    let log = server.log();
    let told = log.matches("a valid path cannot be served").count();
    assert!((1..ASKED / 10).contains(&told), "{told} times:\n{log}");
    let left_out: usize = log.split("left_out=").skip(1).map(count_at).sum();
    assert_eq!(told + left_out, ASKED, "{log}");
}

/// The number that the text begins with.
fn count_at(text: &str) -> usize {
    let end = text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().expect("a number")
}

/// Makes a file of a store path longer than the database says.
fn damage(store: &Store, path: &str) {
    let file = store.real(path).join("a");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("the store is ours");
    fs::write(&file, "something longer than it was").expect("the store is ours");
}

#[test]
fn nothing_is_leaked() {
    let store = Store::new(Kind::Chroot);
    let path = store.add("leak", |tree| {
        write(tree.join("large"), noise(1, 1_000_000));
        write(tree.join("small"), "small");
    });
    let server = Server::of(&store);
    let url = server.nar_url(&path);
    let hash = hash_of(&path);
    let round = || {
        for target in [
            &*url,
            &format!("/{hash}.narinfo"),
            &format!("/{hash}.ls"),
            &format!("/serve/{hash}/large"),
            "/x",
        ] {
            server.get(target);
        }
        // Half a transfer, then gone.
        let mut cut = Connection::narrow(server.address);
        cut.request("GET", &url, &[]).read_head();
    };
    (0..100).for_each(|_| round());
    let settled = |limit: usize| {
        poll("descriptors to be given back", Duration::from_secs(30), || {
            Some(server.descriptors()).filter(|open| *open <= limit)
        })
    };
    let descriptors = settled(100);
    let memory = server.memory();
    (0..400).for_each(|_| round());
    settled(descriptors + 4);
    let grown = server.memory().saturating_sub(memory);
    assert!(grown < 8 << 20, "memory grew by {grown} bytes over 2400 requests");
}

#[test]
fn a_store_without_a_database_is_said_at_the_start() {
    let store = Store::new(Kind::Chroot);
    fs::remove_file(store.database()).expect("the store is ours");
    let said = Settings::of(&store).refuses();
    assert!(said.contains("db.sqlite") && said.contains("demo"), "{said}");
}

#[test]
fn a_broken_key_is_named_and_never_shown() {
    let store = Store::new(Kind::Chroot);
    let broken = store.folder().join("broken.secret");
    for content in ["cache.example-1:c2VjcmV0c2VjcmV0", "c2VjcmV0c2VjcmV0:cache.example-1"] {
        write(&broken, content);
        let said = Settings::of(&store).keys(&[&broken]).refuses();
        assert!(said.contains("broken.secret"), "{said}");
        assert!(!said.contains("c2VjcmV0"), "{said}");
    }
}

#[test]
fn who_may_not_read_a_key_is_named_with_what_to_do() {
    let store = Store::new(Kind::Chroot);
    let (secret, _) = store.key("cache.example-1");
    if is_root() {
        let said = Settings::of(&store).keys(&[&secret]).unprivileged().refuses();
        let expected =
            format!("cannot read {}: Permission denied (os error 13); the server runs as ", secret.display());
        assert!(said.contains(&expected), "{said}");
        assert!(
            said.contains("(uid 65534)")
                && said.contains("chown 65534 /")
                && said.contains("LoadCredential=")
        );
    }
    // nix-serve's variable.
    let server = Settings::of(&store).environment("NIX_SECRET_KEY_FILE", "/etc/key").start();
    assert!(
        server.log().contains("NIX_SECRET_KEY_FILE is nix-serve's and has no effect"),
        "{}",
        server.log()
    );
}

#[test]
fn a_taken_port_is_said_in_one_line() {
    let store = Store::new(Kind::Chroot);
    let server = Server::of(&store);
    let said = Settings::of(&store).line(&format!("bind = \"{}\"", server.address)).refuses();
    let named: Vec<_> =
        said.lines().filter(|line| line.contains(&server.address.port().to_string())).collect();
    assert_eq!(named.len(), 1, "{said}");
}
