//! The log of requests, and whom it names behind proxies.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::server::Settings;
use support::store::hash_of;
use support::{Connection, Kind, Scratch, Server, Store, lossy, noise, poll, succeed, wait_until, write};

const LIMIT: Duration = Duration::from_secs(30);

/// The lines about requests: those that do not begin with a level behind their time.
fn lines(server: &Server) -> Vec<String> {
    let log = server.log();
    let about =
        log.lines().filter(|line| line.contains(" GET ") || line.contains(" - ") || line.starts_with('{'));
    about.map(str::to_owned).collect()
}

/// Waits for so many lines.
fn wait_for(server: &Server, count: usize) -> Vec<String> {
    let mut lines =
        poll("lines about requests", LIMIT, || Some(lines(server)).filter(|lines| lines.len() >= count));
    lines.sort();
    lines
}

#[test]
fn nothing_is_logged_unless_asked_for() {
    let store = Store::new(Kind::Chroot);
    let server = Server::of(&store);
    server.get("/health");
    assert_eq!(lines(&server), Vec::<String>::new());
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_told_of() {
    let store = Store::new(Kind::Chroot);
    let server = Settings::of(&store)
        .line("request_log = \"text\"")
        .through(&["sh", "-c", "exec \"$0\" \"$@\" >/dev/full"])
        .start();
    assert_eq!(server.get("/health").status, 200);
    wait_until("what is lost to be told", LIMIT, || {
        server.log().contains("1 requests were not logged: standard output: No space left on device")
    });
    assert!(server.metric("harmonia_requests_unlogged_total", &[]) >= 1.0);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_line_of_text_has_what_happened() {
    let store = Store::new(Kind::Chroot);
    let path = store.add("logged", |tree| write(tree.join("large"), noise(1, 20_000_000)));
    let server = Settings::of(&store).line("request_log = \"text\"").line("request_log_agent = true").start();
    let answer = server.get(&format!("/{}.narinfo?x=%20\"", hash_of(&path)));
    assert_eq!(answer.status, 200);
    let mut cut = Connection::narrow(server.address);
    cut.request("GET", &format!("/nar/{}.nar", hash_of(&path)), &["User-Agent: slow \"reader\""]).read_head();
    drop(cut);
    let mut nonsense = TcpStream::connect(server.address).expect("it listens");
    nonsense.write_all(b"nonsense\r\n\r\n").expect("it is sent");
    let mut refusal = Vec::new();
    nonsense.read_to_end(&mut refusal).expect("it is answered, and closed");

    let lines = wait_for(&server, 3);
    let words = |needle: &str| -> Vec<String> {
        let line =
            lines.iter().find(|line| line.contains(needle)).unwrap_or_else(|| panic!("{needle}: {lines:?}"));
        line.split(' ').map(str::to_owned).collect()
    };
    let narinfo = words("narinfo");
    assert_eq!(narinfo[1..5], ["127.0.0.1", "GET", &format!("/{}.narinfo?x=%20\\\"", hash_of(&path)), "200"]);
    let bytes: usize = narinfo[5].parse().expect("a number");
    assert!(bytes > answer.body.len() && bytes < answer.body.len() + 1000, "{narinfo:?}");
    assert!(narinfo[6].parse::<f64>().is_ok_and(|seconds| seconds < 60.0));
    assert_eq!(narinfo.len(), 7);
    let nar = words("/nar/");
    assert_eq!(nar[7..], ["cut", "\"slow", "\\\"reader\\\"\""]);
    assert!(nar[5].parse::<usize>().is_ok_and(|bytes| bytes > 0 && bytes < 20_000_000), "{nar:?}");
    let refused = words(" - - ");
    assert_eq!(refused[1..6], ["127.0.0.1", "-", "-", "400", &refusal.len().to_string()]);
    // The time is one that others read.
    let time = succeed(Command::new("date").args(["--utc", "+%Y-%m-%dT%H", "--date", &narinfo[0]]));
    assert!(narinfo[0].starts_with(lossy(&time).trim()), "{narinfo:?}");
}

#[test]
fn json_names_the_client_behind_trusted_proxies() {
    let store = Store::new(Kind::Chroot);
    let socket = Scratch::new();
    let socket = socket.path().join("socket");
    let settings = |trusted: &str| {
        Settings::of(&store).line("request_log = \"json\"").line(&format!("trusted_proxies = [{trusted}]"))
    };
    let clients = |server: &Server, count: usize| -> Vec<String> {
        let lines = wait_for(server, count);
        let client = |line: &String| {
            let line: Value = serde_json::from_str(line).expect("each line is JSON");
            line["client"].as_str().expect("a text").to_owned()
        };
        lines.iter().map(client).collect()
    };
    let forwarded = ["X-Forwarded-For: 6.6.6.6, 192.0.2.1, 127.0.0.2"];
    let server = settings("\"127.0.0.0/8\", \"unix\"")
        .line(&format!("bind = [\"127.0.0.1:0\", \"unix:{}\"]", socket.display()))
        .start();
    server.connect().request("GET", "/health", &forwarded).read("GET");
    assert_eq!(clients(&server, 1), ["192.0.2.1"]);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--header", "Forwarded: for=\"[2001:db8::1]:9\"", "--unix-socket"])
        .arg(&socket);
    succeed(curl.arg("http://cache/health"));
    assert!(clients(&server, 2).contains(&"2001:db8::1".to_owned()));

    let server = settings("\"192.0.2.0/24\"").start();
    server.connect().request("GET", "/health", &forwarded).read("GET");
    assert_eq!(clients(&server, 1), ["127.0.0.1"], "nobody else is believed");
}

/// Who copies a line with `http:` from a page that came by `https:` has a cache that redirects, or answers nothing.
#[test]
fn the_lines_to_copy_begin_as_the_proxy_was_asked() {
    let store = Store::new(Kind::Chroot);
    let scheme = |trusted: &str, headers: &[&str]| {
        let server = Settings::of(&store).line(&format!("trusted_proxies = {trusted:?}")).start();
        let page = server.connect().get_with("/", headers).text();
        let (before, _) = page.split_once("://").expect("the page has a URL");
        before.rsplit(|char: char| !char.is_alphanumeric()).next().expect("there is one").to_owned()
    };
    for header in ["X-Forwarded-Proto: https", "Forwarded: for=192.0.2.1;proto=https"] {
        assert_eq!(scheme("127.0.0.1", &[header]), "https");
        assert_eq!(scheme("192.0.2.1", &[header]), "http", "nobody else is believed");
    }
    assert_eq!(scheme("127.0.0.1", &[]), "http");
}

/// Sends bytes on a connection of their own and gives all that comes back.
fn raw(server: &Server, parts: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(server.address).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).expect("it is a plain setting");
    for part in parts {
        stream.set_nodelay(true).expect("it is a plain setting");
        // They arrive one by one, or not; the simulation sees to each.
        stream.write_all(part).expect("it is sent");
    }
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut answer);
    lossy(&answer)
}

#[test]
fn a_trusted_proxy_says_by_header_whom_a_connection_is_for() {
    let store = Store::new(Kind::Chroot);
    let proxied = |trusted: &str| {
        let settings = Settings::of(&store).line("request_log = \"text\"").line("proxy_protocol = true");
        settings.line(&format!("trusted_proxies = {trusted:?}")).start()
    };
    let server = proxied("127.0.0.1");
    let request = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 4124 443\r\n";
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f".to_vec();
    binary.extend([192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb, 4, 0, 0]);
    let ok = |answer: String| assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Two workers log in no order, so each line is waited for.
    ok(raw(&server, &[&[&line[..], request].concat()]));
    wait_for(&server, 1);
    ok(raw(&server, &[&line[..7], &line[7..], &request[..]]));
    wait_for(&server, 2);
    ok(raw(&server, &[&[&binary[..5]].concat(), &[&binary[5..], &request[..9]].concat(), &request[9..]]));
    let lines = wait_for(&server, 3);
    let mut clients: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    // The clock that lines are sorted by may have been set back meanwhile.
    clients.sort_unstable();
    assert_eq!(clients, ["192.0.2.7", "2001:db8::7", "2001:db8::7"]);
    // It must, and nobody else may.
    assert_eq!(raw(&server, &[request]), "");
    wait_until("a line in the log", LIMIT, || server.log().contains("without a PROXY header"));
    succeed(
        Command::new("curl").args(["--silent", "--fail", "--haproxy-protocol"]).arg(server.url() + "/health"),
    );
    let server = proxied("192.0.2.1");
    ok(raw(&server, &[request]));
    let refused = raw(&server, &[&[&line[..], request].concat()]);
    assert!(refused.starts_with("HTTP/1.1 400") && !refused.contains("200 OK"), "{refused}");
}

#[test]
fn the_header_comes_before_encryption() {
    let store = Store::new(Kind::Chroot);
    let scratch = Scratch::new();
    let (certificate, key) = (scratch.path().join("certificate.pem"), scratch.path().join("key.pem"));
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    make.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]);
    succeed(make.arg(&key).arg("-out").arg(&certificate));
    let server = Settings::of(&store)
        .line("request_log = \"text\"")
        .line("trusted_proxies = \"127.0.0.1\"")
        .line("proxy_protocol = true")
        .line(&format!("tls_cert_path = {certificate:?}"))
        .line(&format!("tls_key_path = {key:?}"))
        .start();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--haproxy-protocol", "--cacert"]).arg(&certificate);
    let version = succeed(curl.arg(format!("https://{}/version", server.address)));
    assert!(lossy(&version).trim().contains('.'));
    assert!(wait_for(&server, 1)[0].contains(" 127.0.0.1 GET /version 200 "));
}

/// A log that nobody reads holds up no request; what is lost is counted.
#[test]
fn a_reader_that_stops_stops_nothing() {
    let store = Store::new(Kind::Chroot);
    let held = Scratch::new();
    let fifo = held.path().join("fifo");
    succeed(Command::new("mkfifo").arg(&fifo));
    let script = "exec \"$@\" >\"$0\"";
    let settings = Settings::of(&store).line("request_log = \"text\"");
    // Opened for both directions, so that nobody waits for the other side; and never read.
    let reader = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("it is ours");
    let server = settings.through(&["sh", "-c", script, fifo.to_str().expect("text")]).start_silent();
    wait_until("records to be lost", Duration::from_secs(120), || {
        // One connection takes 10,000.
        let mut connection = server.connect();
        for _ in 0..5_000 {
            assert_eq!(connection.get("/health").status, 200);
        }
        server.metric("harmonia_requests_unlogged_total", &[]) > 0.0
    });
    // It ends in time all the same, which the end of the test sees.
    drop(server);
    drop(reader);
}
