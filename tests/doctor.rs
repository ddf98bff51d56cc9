//! `harmonia doctor`: each trouble is made, and seen. Beside the real server stand ones that are not as they should be.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::authority::{Authority, ECDSA};
use support::doctor::{Case, Seat, Told, has};
use support::fake::{Fake, Sent, response};
use support::store::hash_of;
use support::{Scratch, Server, Settings, copy_program, is_root, lossy, poll, write};

#[test]
fn all_is_well_in_words_and_in_json() {
    let case = Case::new();
    let url = case.server.url();
    let seat = case.client_of(&url);
    let told = seat.json(&[&url]);
    assert_eq!((told.status, told.codes()), (0, vec![]), "{:#}", told.json);
    assert_eq!(told.json["settings"], "nix show-config");
    assert_eq!(told.unseen(), "[]");

    let output = seat.run(&[]);
    let text = lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for part in [
        &*format!("\n{url}\n"),
        &format!("  well     it answers, and is a binary cache for {}, priority 30\n", case.store.dir()),
        "  well     what it serves is signed by cache.example-1, which this client trusts\n",
        &format!("  well     the NAR of {} came: 293 KiB in ", case.path),
        "  well     a download that is cut can be resumed\n",
        "\nNothing is wrong.\n",
    ] {
        assert!(text.contains(part), "no “{part}” in:\n{text}");
    }
    assert!(!text.contains("TROUBLE") && !text.contains("unseen"), "{text}");
}

#[test]
fn what_cannot_be_reached_is_told_by_its_cause() {
    let seat = |url: &str| {
        Seat::fresh("/nix/store").conf(&format!("substituters = {url}")).json(&["--seconds", "1", url])
    };
    // Longer than any label may be: no name server is asked.
    let unknown = format!("http://{}.example:5000", "a".repeat(64));
    has(seat(&unknown).only("name-unknown"), "remedy", &["DNS", "/etc/hosts"]);

    // Held, so that no other test's server is given it; and nobody listens.
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be had");
    held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port is free");
    let closed = held.local_addr().expect("it is bound").as_socket().expect("it is one of IP");
    let told = seat(&format!("http://{closed}"));
    has(told.only("port-closed"), "message", &["127.0.0.1", &closed.port().to_string(), "refused"]);
    has(told.only("port-closed"), "remedy", &["`bind`"]);

    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let told = seat(&format!("http://{}", silent.local_addr().expect("it is bound")));
    has(told.only("no-answer"), "message", &["nothing came within 1 s"]);
    has(told.only("no-answer"), "remedy", &["firewall"]);
}

#[test]
fn what_speaks_no_http_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let told = Seat::fresh("/nix/store").conf(&format!("substituters = {url}")).json(&[&url]);
    has(told.only("not-http"), "message", &["takes the connection", "no HTTP answer"]);
}

#[test]
fn what_is_no_cache_is_not_taken_for_one() {
    let answering = |status, headers: &'static [(&str, &str)], body: &'static str| {
        let fake = Fake::answering(move |_| Sent::Whole(response(status, headers, body.as_bytes())));
        Seat::fresh("/nix/store").conf(&format!("substituters = {}", fake.url())).json(&[&fake.url()])
    };
    has(answering(404, &[], "").only("not-a-cache"), "message", &["answers 404"]);
    has(answering(200, &[], "<html>Sign in").only("not-a-cache"), "message", &["no StoreDir"]);
    has(answering(401, &[], "").only("denied"), "remedy", &["netrc"]);
    let told = answering(200, &[], "StoreDir: /nix/store\nPriority: high\n");
    assert_eq!(told.codes()[0], "bad-priority", "{:#}", told.json);
    has(&told.cache()["findings"][0], "message", &["“high”"]);
}

#[test]
fn another_store_directory_is_named() {
    let case = Case::new();
    let url = case.server.url();
    let told = Seat::fresh("/nix/store").conf(&format!("substituters = {url}")).json(&[&url]);
    let finding = told.only("store-dir");
    assert_eq!((&finding["cache"], &finding["client"]), (&case.store.dir().into(), &"/nix/store".into()));
    has(finding, "remedy", &["virtual_nix_store = \"/nix/store\""]);
}

#[test]
fn tls_where_there_is_none_and_none_where_there_is() {
    let (case, authority) = (Case::new(), Authority::new());
    let url = format!("https://{}", case.server.address);
    has(case.client_of(&url).json(&[&url]).only("not-tls"), "remedy", &["http://"]);

    authority.issue("server", ECDSA);
    let secure = authority.settings(&case.store, "server").keys(&[&case.secret]).start();
    has(case.client_of(&secure.url()).json(&[&secure.url()]).only("wants-tls"), "remedy", &["https://"]);
}

#[test]
fn a_certificate_is_judged_as_the_client_would() {
    let (case, authority) = (Case::new(), Authority::new());
    authority.issue("server", ECDSA);
    authority.issue_by("ca", "other", ECDSA, "subjectAltName = DNS:cache.example", "2");
    authority.issue_by("ca", "old", ECDSA, "subjectAltName = IP:127.0.0.1", "0");
    let start = |name: &str| authority.settings(&case.store, name).keys(&[&case.secret]).start();
    let ca = authority.file("ca.pem");
    let ca = ca.to_str().expect("the scratch folder's name is text");
    let ask = |server: &Server, file: &str| {
        let url = format!("https://{}", server.address);
        case.client_of(&url).environment("NIX_SSL_CERT_FILE", file).json(&[&url])
    };

    let server = start("server");
    let good = ask(&server, ca);
    assert_eq!(good.status, 0, "{:#}", good.json);
    let told = ask(&server, "/nonexistent");
    let finding = told.only("certificate");
    assert_eq!(finding["reason"], "authority");
    has(finding, "remedy", &["whole chain", "/nonexistent", "ssl-cert-file"]);

    let other = ask(&start("other"), ca);
    assert_eq!(other.only("certificate")["reason"], "name");
    let old = start("old");
    // It ends in the second in which it began.
    let reason = || {
        let told = ask(&old, ca);
        (told.status == 1).then(|| told.only("certificate")["reason"].clone())
    };
    assert_eq!(poll("the certificate to expire", Duration::from_secs(60), reason), "expired");
}

#[test]
fn a_chain_must_be_sent_whole() {
    let (case, authority) = (Case::new(), Authority::new());
    authority.issue_by("ca", "between", ECDSA, "basicConstraints = critical, CA:TRUE", "2");
    authority.issue_by("between", "server", ECDSA, "subjectAltName = IP:127.0.0.1", "2");
    let ca = authority.file("ca.pem");
    let ask = |settings: Settings| {
        let server = settings.keys(&[&case.secret]).start();
        let url = format!("https://{}", server.address);
        let seat = case.client_of(&url).environment("NIX_SSL_CERT_FILE", ca.to_str().expect("it is text"));
        seat.json(&[&url])
    };
    let whole = ask(authority.settings(&case.store, "server"));
    assert_eq!(whole.status, 0, "{:#}", whole.json);
    let alone = format!("tls_cert_path = {:?}", authority.file("server.own"));
    let told = ask(authority.settings(&case.store, "server").line(&alone));
    assert_eq!(told.only("certificate")["reason"], "authority");
}

#[test]
fn a_substituter_must_be_listed_before_the_others() {
    let case = Case::with(|settings| settings.line("priority = 45"));
    let url = case.server.url();
    let keys = format!("trusted-public-keys = {}", case.public);
    let seat = |substituters: &str| {
        let seat = Seat::new(&case.store.dir(), &case.store.state_dir());
        seat.conf(&format!("{substituters}\n{keys}")).json(&[&url])
    };
    let told = seat("substituters = https://cache.nixos.org");
    has(told.only("not-listed"), "remedy", &["nix.conf: extra-substituters = http://127.0.0.1"]);
    let told = seat("substituters = http://127.0.0.1:1");
    assert_eq!(told.only("not-listed")["alike"], "http://127.0.0.1:1");

    let told = seat(&format!("extra-substituters = {url}"));
    let finding = told.only("priority");
    has(finding, "message", &["https://cache.nixos.org/ is asked before", "is 40", "this one's 45"]);
    has(finding, "remedy", &["priority = 30 ", "?priority=30"]);
    assert_eq!(seat(&format!("extra-substituters = {url}?priority=39")).status, 0);
    assert_eq!(seat(&format!("substituters = {url} https://cache.nixos.org?priority=46")).status, 0);

    has(
        seat(&format!("substituters = {url}\nsubstitute = false")).only("substitute-off"),
        "remedy",
        &["substitute = true"],
    );
}

/// The daemon does for an untrusted user what the system's settings say, whatever the user's own do.
#[test]
fn settings_that_the_daemon_ignores_are_told() {
    let case = Case::new();
    let url = case.server.url();
    let own = Scratch::new();
    let file = own.path().join("own.conf");
    write(&file, format!("extra-substituters = {url}\nextra-trusted-public-keys = {}\n", case.public));
    let binary = own.path().join("harmonia");
    copy_program(Path::new(env!("CARGO_BIN_EXE_harmonia")), &binary);
    let ask = |conf: &str| {
        let seat = Seat::new(&case.store.dir(), &case.store.state_dir())
            .conf(conf)
            .environment("NIX_REMOTE", "daemon");
        let seat = seat.environment("NIX_USER_CONF_FILES", file.to_str().expect("it is text"));
        let mut command = Command::new(&binary);
        if is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        }
        Told::of(&seat.command(&mut command, &["--json", &url]))
    };
    let told = ask("substituters = http://127.0.0.1:1");
    assert_eq!(told.codes(), ["not-allowed", "key-not-trusted"], "{:#}", told.json);
    let findings = &told.cache()["findings"];
    has(&findings[0], "remedy", &["extra-trusted-substituters = http://127.0.0.1", "extra-trusted-users = "]);
    assert_eq!(findings[1]["ignored"], true);
    has(&findings[1], "remedy", &["which the daemon ignores", &case.public]);

    let user = findings[0]["user"].as_str().expect("it is text");
    let trusted = ask(&format!("substituters = http://127.0.0.1:1\ntrusted-users = {user}"));
    assert_eq!(trusted.status, 0, "{:#}", trusted.json);
}

#[test]
fn a_key_that_is_not_trusted_stands_beside_those_that_are() {
    let case = Case::new();
    let url = case.server.url();
    let (_, stranger) = case.store.key("other-1");
    let (name, bytes) = case.public.split_once(':').expect("a key has a name");
    let (_, other_bytes) = stranger.split_once(':').expect("a key has a name");
    let ask = |key: &str| {
        let seat = Seat::new(&case.store.dir(), &case.store.state_dir());
        seat.conf(&format!("substituters = {url}\ntrusted-public-keys = {key}")).json(&[&url])
    };
    let told = ask(&stranger);
    let finding = told.only("key-not-trusted");
    has(finding, "message", &[&format!("signs with  {}\n", case.public), &format!("trusts    {stranger}")]);
    has(finding, "remedy", &[&format!("nix.conf: extra-trusted-public-keys = {}", case.public)]);

    let renamed = format!("cache.example-2:{bytes}");
    let told = ask(&renamed);
    let finding = told.only("key-name");
    assert_eq!((&finding["cache"], &finding["client"]), (&(&*case.public).into(), &(&*renamed).into()));

    let namesake = format!("{name}:{other_bytes}");
    let told = ask(&namesake);
    let finding = told.only("key-bytes");
    assert_eq!((&finding["cache"], &finding["client"]), (&(&*case.public).into(), &(&*namesake).into()));
    has(finding, "remedy", &[&case.public, "in place of", &namesake]);

    let told = ask(&format!("{} broken:key", case.public));
    has(told.only("bad-trusted-key"), "message", &["“broken”"]);
}

/// What all trust is signed by another's key besides; what was built here is not.
#[test]
fn a_path_that_others_signed_too_does_not_hide_an_untrusted_key() {
    let case = Case::new();
    let (upstream, theirs) = case.store.key("upstream-1");
    let sign = ["store", "sign", "--key-file", upstream.to_str().expect("it is text"), &case.path];
    support::succeed(case.store.nix("nix").args(sign));
    let url = case.server.url();
    let seat = Seat::new(&case.store.dir(), &case.store.state_dir());
    let told = seat.conf(&format!("substituters = {url}\ntrusted-public-keys = {theirs}")).json(&[&url]);
    assert_eq!(told.only("key-not-trusted")["cache"][0], case.public, "{:#}", told.json);
}

#[test]
fn a_further_key_is_shown_to_a_client_that_does_not_trust_it_yet() {
    let case = Case::new();
    let (next, next_public) = case.store.key("cache.example-2");
    let both = Settings::of(&case.store).keys(&[&case.secret, &next]).start();
    let (url, key) = (both.url(), format!("trusted-public-keys = {} {next_public}", case.public));
    let line = format!("nix.conf: extra-trusted-public-keys = {next_public}");
    // With a path in common, and without: then it is the page that shows the keys.
    let elsewhere = format!("substituters = {url}\nstore = local?real=/nonexistent/store");
    let seats = || [case.client_of(&url), Seat::fresh(&case.store.dir()).conf(&elsewhere)];
    let of_both = ["what it serves is signed by", "its page shows the key"];
    for (seat, well) in seats().into_iter().zip(of_both) {
        let told = seat.conf(&format!("trusted-public-keys = {}", case.public)).json(&[&url]);
        assert_eq!(told.status, 0, "{:#}", told.json);
        let notes = told.cache()["notes"].as_array().expect("a list");
        assert_eq!(notes.len(), 1, "{notes:?}");
        has(&notes[0], "message", &["does not trust", &next_public]);
        has(&notes[0], "remedy", &[&line]);
        assert!(told.cache()["well"].to_string().contains(&format!("{well} cache.example-1, which")));
    }
    for (seat, well) in seats().into_iter().zip(of_both) {
        let told = seat.conf(&key).json(&[&url]);
        assert_eq!((told.status, &told.cache()["notes"]), (0, &Value::Array(vec![])), "{:#}", told.json);
        let well = format!("{well} cache.example-1, cache.example-2, which this client trusts");
        assert!(told.cache()["well"].to_string().contains(&well), "{:#}", told.json);
    }
    let text = lossy(&case.client_of(&url).run(&[&url]).stdout);
    assert!(text.contains("  note     it signs with cache.example-2 too"), "{text}");
    assert!(
        text.contains(&format!("{line}\n\nNothing is wrong.\nAfter changing Nix's settings: ")),
        "{text}"
    );
}

#[test]
fn a_certificate_that_is_itself_trusted_is_taken_as_nix_takes_it() {
    let (case, authority) = (Case::new(), Authority::new());
    for (name, extension) in
        [("own", "subjectAltName = IP:127.0.0.1"), ("other", "subjectAltName = DNS:x.example")]
    {
        // As `openssl req -x509` makes it unless it is told otherwise: an authority's.
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        authority
            .openssl(&["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args([
                "-days",
                "2",
                "-subj",
                "/CN=own",
                "-addext",
                extension,
                "-keyout",
                &key,
                "-out",
                &certificate,
            ])
            .expect_success();
    }
    let look = |server: &str, trusted: &str| {
        let server = authority.settings(&case.store, server).keys(&[&case.secret]).start();
        let url = format!("https://{}", server.address);
        let file = authority.file(trusted);
        let seat = case.client_of(&url).environment("NIX_SSL_CERT_FILE", file.to_str().expect("it is text"));
        // What the doctor says is what Nix does.
        let nix = case
            .store
            .nix("nix")
            .args(["store", "ping", "--store", &url])
            .env("NIX_SSL_CERT_FILE", &file)
            .output();
        (seat.json(&[&url]), nix.expect("Nix is installed").status.success())
    };
    let (told, is_taken) = look("own", "own.pem");
    assert_eq!((told.status, is_taken), (0, true), "{:#}", told.json);
    let (told, is_taken) = look("own", "ca.pem");
    assert!(!is_taken);
    assert_eq!(told.only("certificate")["reason"], "authority");
    has(
        told.only("certificate"),
        "remedy",
        &["a certificate of your own", "ssl-cert-file", "NIX_SSL_CERT_FILE"],
    );
    let (told, is_taken) = look("other", "other.pem");
    assert!(!is_taken);
    assert_eq!(told.only("certificate")["reason"], "name");
}

#[test]
fn settings_that_nix_refuses_are_told_with_its_words() {
    let case = Case::new();
    let url = case.server.url();
    let seat = case.client_of(&url).conf("foo bar");
    let told = seat.json(&[&url]);
    has(told.only("refused"), "message", &["illegal configuration line 'foo bar'", "nix.conf"]);
    assert_eq!(told.json["settings"], seat.conf_file().to_str().expect("it is text"));
}

/// `store` says where this machine's paths are.
#[test]
fn the_store_of_the_settings_is_where_paths_are_looked_for() {
    let case = Case::new();
    let url = case.server.url();
    let store = format!("store = local?store={}&real={}", case.store.dir(), case.store.real_dir().display());
    let seat = Seat::fresh("/nix/store").environment("NIX_STORE_DIR", "/nix/store").conf(&store);
    let told =
        seat.conf(&format!("substituters = {url}\ntrusted-public-keys = {}", case.public)).json(&[&url]);
    assert_eq!((told.status, told.unseen()), (0, "[]".to_owned()), "{:#}", told.json);
}

#[test]
fn what_is_not_signed_is_told() {
    let case = Case::with(|settings| settings.line("sign_key_paths = []"));
    let told = case.client_of(&case.server.url()).json(&[&case.server.url()]);
    has(told.only("unsigned"), "remedy", &["sign_key_paths"]);
    let careless =
        case.client_of(&case.server.url()).conf("require-sigs = false").json(&[&case.server.url()]);
    assert_eq!(careless.status, 0);
    assert!(careless.unseen().contains("require-sigs = false"), "{:#}", careless.json);
}

#[test]
fn clocks_that_differ_are_told() {
    let case = Case::new();
    let shifted = |by: i64| {
        case.through(move |_, mut response| {
            let now = SystemTime::now();
            let by_seconds = Duration::from_secs(by.unsigned_abs());
            let date = httpdate::fmt_http_date(if by < 0 { now - by_seconds } else { now + by_seconds });
            response.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("date"));
            response.headers.push(("Date".into(), date));
            Sent::Whole(response)
        })
    };
    let behind = shifted(-7200);
    has(behind.only("clock-skew"), "message", &["min behind this machine's"]);
    has(behind.only("clock-skew"), "remedy", &["timedatectl"]);
    assert_eq!(shifted(7 * 86_400).only("clock-skew")["ahead"], true);
    assert_eq!(shifted(60).status, 0, "a minute is no trouble");
}

#[test]
fn a_path_is_tried_that_is_named() {
    let case = Case::new();
    let url = case.server.url();
    let seat = case.client_of(&url);
    let inside = format!("{}/bin/sh", case.path);
    let base = case.path.rsplit('/').next().expect("it has a basename");
    for path in [&*case.path, &inside, base] {
        let told = seat.json(&[&url, "--path", path]);
        assert!(told.status == 0 && told.cache()["well"].to_string().contains(&case.path), "{:#}", told.json);
    }
    let absent = case.path.replace(hash_of(&case.path), &"0".repeat(32));
    let told = seat.json(&[&url, "--path", &absent]);
    has(told.only("path-absent"), "message", &[&absent]);
    let refused = seat.run(&[&url, "--path", "/elsewhere/x"]);
    assert_eq!(refused.status.code(), Some(2), "{}", lossy(&refused.stderr));
    assert!(lossy(&refused.stderr).starts_with("harmonia doctor: --path: "), "{}", lossy(&refused.stderr));
}

#[test]
fn a_fresh_machine_is_told_that_no_path_could_be_tried() {
    let case = Case::with(|settings| settings.line("virtual_nix_store = \"/nonexistent/store\""));
    let url = case.server.url();
    let told = Seat::fresh("/nonexistent/store").conf(&format!("substituters = {url}")).json(&[&url]);
    assert!(
        told.unseen().contains("no path could be tried") && told.unseen().contains("--path"),
        "{:#}",
        told.json
    );
    // The page shows the key.
    assert_eq!(told.only("key-not-trusted")["cache"][0], case.public);
}

#[test]
fn where_the_key_could_not_be_looked_at_nobody_says_that_all_is_well() {
    // As caches of files are: no page, and none of this machine's paths.
    let fake = Fake::answering(|request| {
        let is_info = request.target == "/nix-cache-info";
        let (status, body) = if is_info { (200, "StoreDir: /nix/store\n") } else { (404, "") };
        Sent::Whole(response(status, &[], body.as_bytes()))
    });
    let url = fake.url();
    let seat = Seat::fresh("/nix/store").conf(&format!("substituters = {url}"));
    let told = seat.json(&[&url]);
    assert_eq!((told.status, told.codes()), (2, vec![]), "{:#}", told.json);
    assert_eq!(told.cache()["complete"], false);
    assert!(told.unseen().contains("whether this client trusts the key"), "{:#}", told.json);
    let text = lossy(&seat.run(&[&url]).stdout);
    assert!(text.ends_with("\nNothing is wrong in what was looked at; but not all could be.\n"), "{text}");
}

#[test]
fn without_nix_its_files_are_read_and_without_those_the_cache_is_looked_at() {
    let case = Case::new();
    let url = case.server.url();
    let seat = case.client_of(&url).environment("PATH", "/nonexistent");
    let told = seat.json(&[&url]);
    assert_eq!(told.json["settings"], seat.conf_file().to_str().expect("it is text"));
    assert_eq!(told.status, 0, "{:#}", told.json);

    let nothing = Seat::new(&case.store.dir(), &case.store.state_dir()).environment("PATH", "/nonexistent");
    let by_variable = format!("substituters = {url}\ntrusted-public-keys = {}", case.public);
    let told = nothing.json(&[&url, "--path", case.path.rsplit('/').next().expect("it has a basename")]);
    assert_eq!(told.status, 0, "{:#}", told.json);
    assert!(told.unseen().contains(&format!("a client must trust {}", case.public)), "{:#}", told.json);
    let told = nothing.environment("NIX_CONFIG", &by_variable).json(&[]);
    assert_eq!((told.status, &told.json["settings"]), (0, &"$NIX_CONFIG".into()), "{:#}", told.json);
}

/// As newer Nixes call it.
#[test]
fn nix_config_show_comes_before_show_config() {
    let case = Case::new();
    let url = case.server.url();
    let folder = Scratch::new();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' config show') echo 'store = auto'; echo 'substitute = true'; \
         echo 'require-sigs = true'; echo 'substituters = {url}'; echo 'trusted-public-keys = {}';; *) exit 1;; esac\n",
        case.public
    );
    write(folder.path().join("nix"), script);
    fs::set_permissions(folder.path().join("nix"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("the scratch folder is ours");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("there is one"));
    let seat = Seat::new(&case.store.dir(), &case.store.state_dir())
        .conf("substituters =")
        .environment("PATH", &path);
    let told = seat.json(&[]);
    assert_eq!((told.status, &told.json["settings"]), (0, &"nix config show".into()), "{:#}", told.json);
}

#[test]
fn a_server_is_looked_at_by_its_settings() {
    let case = Case::new();
    let folder = Scratch::new();
    let file = folder.path().join("settings.toml");
    let (next, next_public) = case.store.key("cache.example-2");
    let look = |keys: &[&Path]| {
        let real = case.store.real_dir();
        let bind = case.server.address;
        write(
            &file,
            format!(
                "bind = \"{bind}\"\nvirtual_nix_store = {:?}\nreal_nix_store = {real:?}\nsign_key_paths = {keys:?}\n",
                case.store.dir()
            ),
        );
        Seat::fresh(&case.store.dir()).json(&["--config", file.to_str().expect("it is text")])
    };
    let told = look(&[&case.secret]);
    assert_eq!(told.status, 0, "{:#}", told.json);
    assert!(told.cache()["well"].to_string().contains(&case.public), "{:#}", told.json);
    let told = look(&[&case.secret, &next]);
    let finding = told.only("key-not-in-use");
    assert_eq!(finding["key"], next_public);
    has(finding, "remedy", &["harmonia reload", "SIGHUP"]);
    write(
        &file,
        fs::read_to_string(&file).expect("it is there")
            + &format!("cache_dir = {:?}\n", folder.path().join("settings.toml")),
    );
    let told = Seat::fresh(&case.store.dir()).json(&["--config", file.to_str().expect("it is text")]);
    assert_eq!(told.codes(), ["cache-dir", "key-not-in-use"], "{:#}", told.json);
    has(&told.cache()["findings"][0], "remedy", &["cache_max_size = 0"]);
    look(&[&case.secret, &next]);
    let by_variable =
        Seat::fresh(&case.store.dir()).environment("CONFIG_FILE", file.to_str().expect("it is text"));
    assert_eq!(by_variable.json(&[]).codes(), ["key-not-in-use"]);
}

#[test]
fn where_it_cannot_look_it_says_so_and_exits_with_2() {
    let refused = |seat: Seat, arguments: &[&str], part: &str| {
        let output = seat.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", lossy(&output.stdout));
        assert!(lossy(&output.stderr).contains(part), "{}", lossy(&output.stderr));
        assert_eq!(lossy(&output.stdout), "");
    };
    let seat = || Seat::fresh("/nix/store").conf("substituters =");
    refused(seat(), &["ftp://cache.example"], "“ftp://cache.example” is not the URL of a cache");
    refused(seat(), &["cache.example:5000"], "is not the URL of a cache");
    refused(seat(), &[], "no cache is named");
    refused(
        seat(),
        &["--config", "/nonexistent/settings.toml"],
        "cannot read the settings file /nonexistent/settings.toml: No such file",
    );
    refused(seat(), &["--seconds", "0", "http://127.0.0.1:1"], "--seconds");
}

#[test]
fn several_substituters_are_asked_and_compared() {
    let (case, other) = (Case::new(), Case::with(|settings| settings.line("priority = 10")));
    let urls = [case.server.url(), other.server.url()];
    let seat = case.client_of(&format!("{} file:///nonexistent {}", urls[0], urls[1]));
    let output = seat.run(&["--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let asked: Vec<&str> =
        json["caches"].as_array().expect("a list").iter().filter_map(|cache| cache["url"].as_str()).collect();
    assert_eq!(asked, urls);
    // The other's store directory is another.
    assert_eq!(json["caches"][0]["findings"].as_array().map(Vec::len), Some(0), "{json:#}");
    assert_eq!(json["caches"][1]["findings"][0]["code"], "store-dir", "{json:#}");
}
