//! Clients that mean harm, and mistakes that look like it.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;
use support::authority::{Authority, ECDSA};
use support::server::Settings;
use support::store::hash_of;
use support::{Connection, Kind, Scratch, Server, Store, noise, wait_until, write};

/// How long the server may take to notice something, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Longer than any file of settings, keys or certificates, all of it zeros, and takes no room on the disk.
fn endless(folder: &Scratch) -> std::path::PathBuf {
    let path = folder.path().join("endless");
    let file = File::create(&path).expect("the scratch folder is ours");
    file.set_len(64 << 20).expect("a file can have holes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    path
}

/// A record of TLS that warns of something. Anybody may send them before any key was agreed on.
const ALERT: &[u8] = &[21, 3, 3, 0, 2, 1, 100];

#[test]
fn alerts_do_not_fill_the_log() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    authority.issue("server", ECDSA);
    let server = authority.settings(&store, "server").start();
    let mut client = TcpStream::connect(server.address).expect("it listens");
    client.write_all(&[ALERT, ALERT].concat()).expect("it is read");
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it is read, and is no TLS");
    // Whether with a reset or not, it is closed after all of that was looked at.
    let _ = client.read_to_end(&mut Vec::new());
    server.signal(Signal::HUP);
    // Lines are written in order.
    wait_until("a later line", LIMIT, || server.log().contains("new connections get the certificate"));
    assert!(!server.log().contains("alert"), "{}", server.log());
}

#[test]
fn a_filter_that_is_none_is_told_of() {
    let store = Store::new(Kind::Chroot);
    let server = Settings::of(&store).environment("RUST_LOG", "harmonia=loud").start();
    let log = server.log();
    assert_eq!(log.matches("RUST_LOG").count(), 1, "{log}");
    assert!(log.contains("listening on"), "it says what it says without a filter: {log}");
}

#[test]
fn readers_who_take_nothing_do_not_shut_others_out() {
    let store = Store::new(Kind::Chroot);
    let path = store.add("large", |tree| write(tree.join("large"), noise(1, 30_000_000)));
    let server = Settings::of(&store).line("workers = 1").line("max_connections = 4").start();
    let url = server.nar_url(&path);
    let mut greedy: Vec<_> = (0..4).map(|_| Connection::narrow(server.address)).collect();
    for reader in &mut greedy {
        assert_eq!(reader.request("GET", &url, &[]).read_head().status, 200);
    }
    assert_eq!(server.get("/health").text(), "OK\n");
    wait_until("one of them to be closed", LIMIT, || {
        server.metric("harmonia_nar_aborts_total", &["slow_reader"]) >= 1.0
    });
}

#[test]
fn the_end_does_not_wait_for_a_measurement() {
    let store = Store::new(Kind::Chroot);
    let path = store.add("endless", |tree| {
        fs::create_dir(tree).expect("the scratch folder is ours");
        write(tree.join("a"), "a");
    });
    let real = store.real(&path);
    fs::set_permissions(&real, fs::Permissions::from_mode(0o755)).expect("the store is ours");
    // To read it takes longer than anybody waits.
    File::create(real.join("b")).and_then(|file| file.set_len(1 << 40)).expect("a file can have holes");
    store.open_database().execute("update ValidPaths set narSize = null", []).expect("a column of it");
    let mut server = Server::of(&store);
    let mut client = server.connect();
    client.request("GET", &format!("/{}.narinfo", hash_of(&path)), &[]);
    wait_until("it to be measured", LIMIT, || is_reading(&server, "/b"));
    // A client that only ends would be waited for, a minute at the most.
    socket2::SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).expect("it is a plain setting");
    drop(client);
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).success());
}

/// Whether the server has a file open whose name ends so.
fn is_reading(server: &Server, ending: &str) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("it runs");
    let mut files = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    files.any(|file| file.to_string_lossy().ends_with(ending))
}

#[test]
fn a_tunnel_is_refused_as_any_other_method() {
    let store = Store::new(Kind::Chroot);
    let server = Server::of(&store);
    for (target, status) in
        [("cache.example:80", 405), ("[::1]:443", 405), ("cache.example", 400), ("*", 400)]
    {
        let mut connection = server.connect();
        let answer = connection.request("CONNECT", target, &[]).read("CONNECT");
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(answer.header("allow"), (status == 405).then_some("GET, HEAD"), "{target}");
        // What follows may be for the other end of the tunnel already.
        assert!(connection.is_closed(), "{target}");
    }
}

#[test]
fn files_without_an_end_are_not_read_to_it() {
    let (store, folder) = (Store::new(Kind::Chroot), Scratch::new());
    let endless = endless(&folder);
    let said = Settings::of(&store).keys(&[&endless]).refuses();
    assert!(said.contains("sign_key_paths: ") && said.contains("it is longer than"), "{said}");
    let authority = Authority::new();
    authority.issue("server", ECDSA);
    for (certificate, key) in
        [(&endless, &authority.file("server.key")), (&authority.file("server.pem"), &endless)]
    {
        let settings = Settings::of(&store)
            .line(&format!("tls_cert_path = {certificate:?}"))
            .line(&format!("tls_key_path = {key:?}"));
        let said = settings.refuses();
        assert!(said.contains("endless: it is longer than"), "{said}");
    }
}

#[test]
fn a_folder_is_no_database() {
    let store = Store::new(Kind::Chroot);
    let folder = store.state_dir();
    let said = Settings::of(&store).line(&format!("nix_db_path = {folder:?}")).refuses();
    assert!(said.contains("is not a file"), "{said}");
}

#[test]
fn malformed_rows_are_counted() {
    const ROWS: usize = 5;

    let store = Store::new(Kind::Chroot);
    let paths: Vec<_> =
        (0..ROWS).map(|number| store.add(&format!("row-{number}"), |tree| write(tree, "a"))).collect();
    store.open_database().execute("update ValidPaths set hash = 'x'", []).expect("a column of it");
    let mut server = Server::of(&store);
    for path in &paths {
        assert_eq!(server.get(&format!("/{}.narinfo", hash_of(path))).status, 404);
    }
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).success());
    let log = server.log();
    assert_eq!(log.matches("is malformed").count(), 1, "{log}");
    assert!(log.contains(&format!("left_out={}", ROWS - 1)), "{log}");
}
