//! Under a service manager: sockets that it opened, what it is told, and its watchdog.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use support::server::Settings;
use support::{Kind, Scratch, Server, Store, write};

/// How long a message may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// It is fed twice in this time if every thread takes a turn in half of it, which may last on a busy machine.
const WATCHDOG_USEC: &str = "8000000";

fn store() -> Store {
    let store = Store::new(Kind::Chroot);
    store.add("served", |tree| write(tree.join("a"), "a"));
    store
}

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    _folder: Scratch,
    path: String,
}

impl Manager {
    fn new() -> Self {
        let folder = Scratch::new();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("the scratch folder is ours");
        socket.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
        let path = path.to_str().expect("the scratch folder's name is text").to_owned();
        Self { socket, _folder: folder, path }
    }

    /// The next message.
    fn hears(&self) -> String {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).expect("the server tells something in time");
        String::from_utf8(buffer[..len].to_vec()).expect("messages are text")
    }
}

/// A port that nobody else is given while the socket is there: whoever names the port may listen at it.
fn port() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be had");
    socket.set_reuse_address(true).expect("it is a plain setting");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port is free");
    let address = socket.local_addr().expect("it is bound").as_socket().expect("it is one of IP");
    (socket, address.port())
}

fn end(mut server: Server) {
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).success());
}

#[test]
fn the_manager_is_told_of_start_reload_and_end() {
    let (store, manager) = (store(), Manager::new());
    let server = Settings::of(&store).environment("NOTIFY_SOCKET", &manager.path).start();
    let ready = format!("READY=1\nSTATUS=listening on {}\n", server.url());
    assert_eq!(manager.hears(), ready);
    assert_eq!(server.get("/health").status, 200, "ready means that it answers");

    server.signal(Signal::HUP);
    let reloading = manager.hears();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("what notify-reload wants");
    assert!(time.trim_end().parse::<u64>().is_ok_and(|time| time > 0), "{reloading}");
    assert_eq!(manager.hears(), ready);

    end(server);
    assert!(manager.hears().starts_with("STOPPING=1\n"));
}

#[test]
fn the_watchdog_is_fed() {
    let (store, manager) = (store(), Manager::new());
    let server = Settings::of(&store)
        .environment("NOTIFY_SOCKET", &manager.path)
        .environment("WATCHDOG_USEC", WATCHDOG_USEC)
        .start();
    assert!(manager.hears().starts_with("READY=1"));
    for _ in 0..2 {
        assert_eq!(manager.hears(), "WATCHDOG=1\n");
    }
    assert!(!server.log().contains("the watchdog is not fed"), "{}", server.log());
}

#[test]
fn sockets_that_the_manager_opened_are_used_in_place_of_bind() {
    let store = store();
    let (_kept, port) = port();
    let folder = Scratch::new();
    let path = folder.path().join("socket");
    let unix = path.to_str().expect("the scratch folder's name is text");
    // It opens the sockets, waits for the first connection, and only then starts the server.
    let tcp = format!("127.0.0.1:{port}");
    let server = Settings::of(&store)
        .line("bind = '127.0.0.1:1'")
        .through(&["systemd-socket-activate", "-E", "RUST_LOG", "-l", &tcp, "-l", unix, "--fdname=web:local"])
        .start_at(([127, 0, 0, 1], port).into());
    assert_eq!(server.get("/nix-cache-info").status, 200);
    assert_eq!(over_unix(&path, "/health"), "OK\n");
    let log = server.log();
    for line in [format!("taking over the socket web at 127.0.0.1:{port}"), format!("local at unix:{unix}")] {
        assert!(log.contains(&line), "{log}");
    }
    end(server);
    assert!(path.exists(), "a socket that the manager made is the manager's to remove");
}

#[test]
fn a_connection_in_place_of_a_socket_is_refused_with_what_to_change() {
    let store = store();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
    let text = Settings::of(&store).through(&["sh", "-c", script, "sh"]).input(theirs.into()).refuses();
    assert!(
        text.contains("descriptor 3 (unknown) of socket activation is no listening stream socket"),
        "{text}"
    );
    assert!(text.contains("Accept=no"), "{text}");
    drop(ours);
}

fn over_unix(path: &Path, target: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(path).expect("the server listens");
    write!(stream, "GET {target} HTTP/1.0\r\nHost: x\r\n\r\n").expect("it takes a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers with text");
    answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
}
