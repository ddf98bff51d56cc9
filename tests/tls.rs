//! TLS, as openssl, curl and the real Nix speak it.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use support::authority::{Authority, ECDSA, ED25519, RSA};
use support::store::hash_of;
use support::{Kind, Server, Settings, Store, fail, lossy, nar_url_in, noise, succeed, wait_until, write};

/// How long a certificate that was replaced may stay in use.
const LIMIT: Duration = Duration::from_secs(30);

fn secure(server: &Server) -> String {
    format!("https://{}", server.address)
}

fn add_large(store: &Store, name: &str) -> String {
    store.add(name, |tree| {
        for number in 0..30 {
            write(tree.join(format!("{number} small")), noise(number, 700));
            write(tree.join(format!("{number} large")), noise(number, 300_000));
        }
    })
}

#[test]
fn curl_gets_the_same_bytes_in_both_versions_and_with_every_kind_of_key() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    let path = add_large(&store, "encrypted");
    let nar = store.dump(&path);
    for (name, kind) in [("ecdsa", ECDSA), ("rsa", RSA), ("ed25519", ED25519)] {
        authority.issue(name, kind);
        let server = authority.settings(&store, name).start();
        let narinfo = format!("{}/{}.narinfo", secure(&server), hash_of(&path));
        let narinfo = authority.curl(&[], &narinfo);
        assert!(narinfo.status.success(), "{name}: {}", lossy(&narinfo.stderr));
        let url = secure(&server) + &nar_url_in(&lossy(&narinfo.stdout));
        for version in [&["--tlsv1.3"][..], &["--tlsv1.2", "--tls-max", "1.2"]] {
            let got = authority.curl(version, &url);
            assert!(got.status.success() && got.stdout == nar, "{name} {version:?}: {}", lossy(&got.stderr));
            let tail = authority.curl(&[version, &["--range", "1000000-"]].concat(), &url);
            assert!(tail.stdout == nar[1_000_000..], "{name} {version:?}");
        }
        let old = authority.curl(&["--tlsv1.1", "--tls-max", "1.1"], &url);
        assert!(!old.status.success(), "TLS 1.1 is refused");
    }
}

#[test]
fn nix_copies_by_tls_what_it_copies_without() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    authority.issue("server", ECDSA);
    let path = add_large(&store, "copied");
    let (secret, public) = store.key("tls-1");
    let server = authority.settings(&store, "server").keys(&[&secret]).start();
    let client = store.client(&[&public]);
    let untrusted = fail(client.copy(&secure(&server), &[&path]).env("NIX_SSL_CERT_FILE", "/dev/null"));
    assert!(untrusted.contains("certificate") || untrusted.contains("SSL"), "{untrusted}");
    succeed(client.copy(&secure(&server), &[&path]).env("NIX_SSL_CERT_FILE", authority.file("ca.pem")));
    assert!(client.dump(&path) == store.dump(&path));
}

#[test]
fn who_encrypts_is_said_once_and_is_the_kernel_where_it_can() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    authority.issue("server", ECDSA);
    let server = authority.settings(&store, "server").start();
    // The kernel's own word; Linux without the module has no such name, other systems not even the file.
    let can = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp")
        .is_ok_and(|names| names.split_whitespace().any(|name| name == "tls"));
    let wanted = if can { "TLS by the kernel" } else { "TLS in user space, because " };
    let log = server.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains(" TLS ")).collect();
    assert!(said.len() == 1 && said[0].contains(wanted), "{said:?}");
}

#[test]
fn who_speaks_http_without_tls_is_told_so() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    authority.issue("server", ECDSA);
    let server = authority.settings(&store, "server").start();
    // Also with a head that is longer than what is read of it at once.
    for length in [1, 20_000] {
        let long = format!("X-Long: {}", "x".repeat(length));
        let arguments = ["--no-fail", "--write-out", "%{http_code}", "--header", &long];
        let told = authority.curl(&arguments, &format!("http://{}/health", server.address));
        let said = lossy(&told.stdout);
        assert!(said.contains("https://") && said.ends_with("400"), "{said}{}", lossy(&told.stderr));
    }
    assert!(authority.curl(&[], &format!("{}/health", secure(&server))).status.success());
}

#[test]
fn only_http_1_1_is_offered() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    authority.issue("server", ECDSA);
    let server = authority.settings(&store, "server").start();
    let version = ["--http2", "--output", "/dev/null", "--write-out", "%{http_version}"];
    let got = authority.curl(&version, &format!("{}/health", secure(&server)));
    assert_eq!(lossy(&got.stdout), "1.1", "{}", lossy(&got.stderr));
}

#[test]
fn a_replaced_certificate_is_used_after_sighup_and_when_the_files_change() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    for name in ["first", "second", "third"] {
        authority.issue(name, ECDSA);
    }
    let replace = |name: &str| {
        for kind in ["key", "pem"] {
            fs::copy(authority.file(&format!("{name}.{kind}")), authority.file(&format!("live.{kind}")))
                .expect("the scratch folder is ours");
        }
    };
    replace("first");
    let server = authority.settings(&store, "live").start();
    assert_eq!(authority.subject(&server), "first");

    write(authority.file("live.pem"), "no certificate");
    server.signal(Signal::HUP);
    wait_until("the server to say what is wrong", LIMIT, || {
        server.log().contains("the TLS certificate stays as it was")
    });
    assert_eq!(authority.subject(&server), "first", "a bad file changes nothing");

    replace("second");
    server.signal(Signal::HUP);
    wait_until("the second certificate", LIMIT, || authority.subject(&server) == "second");
    replace("third");
    wait_until("the third certificate", LIMIT, || authority.subject(&server) == "third");
}

#[test]
fn what_is_no_tls_is_dropped_and_harms_nobody() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    authority.issue("server", ECDSA);
    let server = authority.settings(&store, "server").start();
    let mut silent = TcpStream::connect(server.address).expect("it listens");
    for bytes in [&b"get / http/1.1\r\n\r\n"[..], &[0; 4000], &[0x16, 3, 1, 0xff, 0xff], b"\x16\x03\x01"] {
        let mut stream = TcpStream::connect(server.address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
        stream.write_all(bytes).expect("it is taken");
        stream.shutdown(std::net::Shutdown::Write).expect("the sending side ends");
        let mut rest = Vec::new();
        // A reset or an end, after an alert at the most.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 64, "{}", lossy(&rest));
    }
    assert_eq!(lossy(&authority.curl(&[], &format!("{}/health", secure(&server))).stdout), "OK\n");
    silent.write_all(b"\x16").expect("it still waits");
}

#[test]
fn a_slow_reader_holds_little_and_gets_every_byte() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    authority.issue("server", ECDSA);
    let path = store.add("slow", |tree| write(tree.join("large"), noise(1, 6 << 20)));
    let nar = store.dump(&path);
    let server = authority.settings(&store, "server").start();
    let narinfo =
        lossy(&authority.curl(&[], &format!("{}/{}.narinfo", secure(&server), hash_of(&path))).stdout);
    let slow = authority.curl(&["--limit-rate", "3M"], &(secure(&server) + &nar_url_in(&narinfo)));
    assert!(slow.stdout == nar, "{}", lossy(&slow.stderr));
}

#[test]
fn files_that_cannot_be_used_stop_the_start_and_are_named() {
    let (store, authority) = (Store::new(Kind::Chroot), Authority::new());
    authority.issue("one", ECDSA);
    authority.issue("other", ECDSA);
    let with = |certificate: &str, key: &str| {
        Settings::of(&store)
            .line(&format!("tls_cert_path = {:?}", authority.file(certificate)))
            .line(&format!("tls_key_path = {:?}", authority.file(key)))
            .refuses()
    };
    for (certificate, key, wanted) in [
        ("absent.pem", "one.key", "absent.pem: No such file"),
        ("one.pem", "absent.key", "absent.key: No such file"),
        ("one.key", "one.key", "one.key: no certificate is in it"),
        ("one.pem", "one.pem", "one.pem: no private key is in it"),
        ("one.pem", "other.key", "other.key: the certificate is of another key"),
    ] {
        let said = with(certificate, key);
        assert!(said.contains(wanted) && said.contains("tls_cert_path"), "{said}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
        assert!(said.matches("No such file").count() < 2, "once: {said}");
    }
}
