//! Many connections: the cap, who is closed for whom, descriptors, memory.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::time::Duration;

use support::server::Settings;
use support::store::hash_of;
use support::wire::Cut;
use support::{Connection, Kind, Store, noise, raise_descriptors, wait_until, write};

/// Descriptors of the server's own, besides connections and what they send.
const OWN_DESCRIPTORS: usize = 100;

fn store_with(size: usize) -> (Store, String) {
    let store = Store::new(Kind::Chroot);
    let path = store.add("served", |tree| write(tree.join("large"), noise(3, size)));
    (store, path)
}

fn is_well(connection: &mut Connection) -> bool {
    connection.request("GET", "/health", &[]).try_read("GET").is_ok_and(|answer| answer.status == 200)
}

#[test]
fn ten_thousand_connections_over_the_cap() {
    const CAP: usize = 200;
    const CONNECTIONS: usize = 10_000 + CAP;

    raise_descriptors(CONNECTIONS as u64 + 200);
    let (store, path) = store_with(100_000);
    let server = Settings::of(&store).line("workers = 2").line("max_connection_rate = 100").start();
    let url = server.nar_url(&path);
    let nar = store.dump(&path);
    let mut held = Vec::with_capacity(CONNECTIONS);
    for number in 0..CONNECTIONS {
        let mut connection = server.connect();
        // Every kind of silence: nothing, part of a head, an answered request.
        match number % 3 {
            0 => {}
            1 => drop(connection.send("GET /hea")),
            _ => assert!(is_well(&mut connection), "connection {number} was not answered"),
        }
        held.push(connection);
        if number % 1000 == 0 {
            assert!(server.connect().get(&url).body == nar, "at connection {number}");
            let open = server.descriptors();
            assert!(open <= CAP + OWN_DESCRIPTORS, "{open} descriptors at connection {number}");
        }
    }
    assert!(is_well(held.last_mut().expect("there are many")), "the newest was not the one to make room");
    assert!(held[0].closes_within(Duration::from_secs(20)), "the oldest made room");
    let (first, last) = (held.remove(0), held.pop());
    drop((first, last));
    drop(held);
    assert!(server.connect().get(&url).body == nar);
}

#[test]
fn the_longest_idle_connection_makes_room() {
    let (store, _) = store_with(1);
    let server = Settings::of(&store).line("workers = 1").line("max_connection_rate = 4").start();
    let mut four: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for connection in &mut four {
        assert!(is_well(connection));
    }
    // The first is used again: now the second is the longest idle.
    assert!(is_well(&mut four[0]));
    let mut fifth = server.connect();
    assert!(is_well(&mut fifth));
    assert!(four[1].closes_within(Duration::from_secs(20)));
    for number in [0, 2, 3] {
        assert!(is_well(&mut four[number]), "connection {number} should have stayed");
    }
    assert!(is_well(&mut fifth));
}

#[test]
fn a_transfer_is_never_closed_to_make_room() {
    let (store, path) = store_with(30_000_000);
    let server = Settings::of(&store).line("workers = 1").line("max_connection_rate = 4").start();
    let url = server.nar_url(&path);
    let nar = store.dump(&path);
    let mut busy: Vec<_> = (0..4).map(|_| Connection::narrow(server.address)).collect();
    for connection in &mut busy {
        assert_eq!(connection.request("GET", &url, &[]).read_head().status, 200);
    }
    // Full, and every connection has an answer in flight: the next waits in the backlog.
    let mut waiting = server.connect();
    waiting.request("GET", "/health", &[]);
    assert!(!waiting.closes_within(Duration::from_secs(2)), "the waiting connection was closed");
    for connection in &mut busy {
        let part = connection.take(10_000).expect("the transfer goes on");
        assert!(part == nar[..10_000]);
    }
    busy.truncate(3);
    assert_eq!(waiting.read("GET").text(), "OK\n");
}

#[test]
fn an_idle_connection_costs_under_a_kibibyte() {
    // As many as the usual hard limit of 20,000 descriptors allows where each could be sent a NAR.
    const CONNECTIONS: usize = 3600;

    raise_descriptors(CONNECTIONS as u64 + 500);
    let (store, path) = store_with(100_000);
    let cap = format!("max_connection_rate = {CONNECTIONS}");
    let server = Settings::of(&store).line("workers = 2").line(&cap).start();
    let target = format!("/{}.narinfo", hash_of(&path));
    let url = server.nar_url(&path);
    let use_once = |held: &mut Vec<Connection>| {
        let mut connection = server.connect();
        assert_eq!(connection.get(&target).status, 200);
        assert_eq!(connection.get(&url).status, 200);
        held.push(connection);
    };
    let mut held = Vec::new();
    // What every worker needs once is there after these.
    (0..200).for_each(|_| use_once(&mut held));
    let before = server.memory();
    (0..CONNECTIONS - 200).for_each(|_| use_once(&mut held));
    let each = server.memory().saturating_sub(before) / (CONNECTIONS as u64 - 200);
    assert!(each < 1024, "{each} bytes for each idle connection");
    assert!(held.iter_mut().step_by(97).all(is_well));
}

/// After a moment without progress a transfer holds a connection and nothing else.
#[test]
fn a_slow_reader_costs_no_descriptor_but_its_connection() {
    const READERS: usize = 150;

    let (store, path) = store_with(8_000_000);
    let server = Settings::of(&store).line("workers = 2").start();
    let url = server.nar_url(&path);
    let nar = store.dump(&path);
    let before = server.descriptors();
    let mut readers: Vec<_> = (0..READERS).map(|_| Connection::narrow(server.address)).collect();
    for reader in &mut readers {
        reader.request("GET", &url, &[]).read_head();
    }
    wait_until("files to be given back", Duration::from_secs(30), || {
        server.descriptors() <= before + READERS + 16
    });
    for reader in readers.iter_mut().step_by(30) {
        reader.widen();
        assert!(reader.take(nar.len()).expect("it goes on where it stood") == nar);
    }
}

#[test]
fn a_soft_limit_of_256_descriptors_is_raised() {
    const CONNECTIONS: usize = 600;

    raise_descriptors(2000);
    let (store, path) = store_with(100_000);
    let server = Settings::of(&store)
        .line("max_connection_rate = 1000")
        .through(&["prlimit", "--nofile=256:4096", "--"])
        .start();
    let url = server.nar_url(&path);
    let mut held: Vec<_> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    for connection in &mut held {
        assert_eq!(connection.get(&url).status, 200);
    }
    assert!(held.iter_mut().all(is_well), "more connections are held than the soft limit was");
}

#[test]
fn a_hard_limit_of_256_descriptors_is_lived_with() {
    raise_descriptors(2000);
    let (store, path) = store_with(3_000_000);
    let server = Settings::of(&store)
        .line("max_connection_rate = 1000")
        .through(&["prlimit", "--nofile=256:256", "--"])
        .start();
    let url = server.nar_url(&path);
    let nar = store.dump(&path);
    let mut held = Vec::new();
    for number in 0..1000 {
        let mut connection = server.connect();
        assert!(is_well(&mut connection), "connection {number} was not answered");
        held.push(connection);
    }
    // Many transfers at once, each with a file open. A client that has said nothing yet when its place is wanted is
    // closed, and tries again; one that is being answered never is.
    let fetch = || loop {
        match server.connect().request("GET", &url, &[]).try_read("GET") {
            Ok(response) => return response.body,
            Err(Cut::Closed) => {}
            Err(Cut::Within(body)) => panic!("the answer was cut after {} bytes of its body", body.len()),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| assert!(fetch() == nar));
        }
    });
    assert!(server.descriptors() <= 256);
    assert!(is_well(&mut server.connect()));
}
