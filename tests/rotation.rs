//! Keys that are replaced while the server runs: `harmonia keys rotate`, SIGHUP, and clients of either key.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use support::store::hash_of;
use support::{Kind, Scratch, Server, Settings, Store, fail, lossy, noise, run, succeed, wait_until, write};

/// How long a reload may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

fn rotate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harmonia"));
    run(command.args(["keys", "rotate"]).args(arguments).current_dir(folder))
}

/// The steps of a rotation that must be possible.
fn steps(folder: &Path, arguments: &[&str]) -> String {
    let output = rotate(folder, arguments);
    assert!(output.status.success(), "{}", lossy(&output.stderr));
    assert_eq!(lossy(&output.stderr), "");
    lossy(&output.stdout)
}

/// The values of a setting in the steps, in their order.
fn settings<'a>(steps: &'a str, name: &str) -> Vec<&'a str> {
    let value = |line: &'a str| line.split_once(&format!("{name} = ")).map(|(_, value)| value);
    steps.lines().filter_map(value).collect()
}

/// A store with a path that nobody takes without a signature, and more of them.
fn store() -> (Store, Vec<String>) {
    let store = Store::new(Kind::Chroot);
    let path = |number: u64| {
        store.register(&format!("path-{number}"), &[], |tree, _| write(tree, noise(number, 5000)))
    };
    let paths = (0..4).map(path).collect();
    (store, paths)
}

/// Changes the server's settings and waits until it says that it has done what is expected.
fn reload(server: &Server, line: &str, said: &str) {
    let file = server.settings_file();
    let text = fs::read_to_string(&file).expect("the server read it");
    let rest = text.lines().filter(|line| !line.starts_with("sign_key_path"));
    write(&file, rest.chain([line]).collect::<Vec<_>>().join("\n"));
    let before = server.log().matches(said).count();
    server.signal(Signal::HUP);
    wait_until(&format!("“{said}” in the log"), LIMIT, || server.log().matches(said).count() > before);
}

/// Waits until these sign what is served of a path: the server says that it has new keys a moment before it hands them
/// on. From then on nobody is served what others signed.
fn wait_for_signers(server: &Server, path: &str, expected: &[&str]) {
    let name = |line: &str| line.strip_prefix("Sig: ")?.split(':').next().map(str::to_owned);
    wait_until(&format!("{path} to be signed by {expected:?}"), LIMIT, || {
        let signers: Vec<String> = server.narinfo(path).lines().filter_map(name).collect();
        signers == expected
    });
}

#[test]
fn what_the_steps_say_replaces_a_key_and_nobody_is_refused() {
    let (store, paths) = store();
    let (secret, old) = store.key("cache.example-1");
    let server = Settings::of(&store).keys(&[&secret]).start();
    let takes = |key: &str, path: &str| succeed(&mut store.client(&[key]).copy(&server.url(), &[path]));
    let refuses = |key: &str, path: &str| fail(&mut store.client(&[key]).copy(&server.url(), &[path]));
    takes(&old, &paths[0]);

    let steps = steps(store.folder(), &["cache.example-1"]);
    let new = fs::read_to_string(store.folder().join("cache.example-2.public")).expect("it was made");
    let server_lines = settings(&steps, "sign_key_paths");
    let trusted = settings(&steps, "nix.conf:               extra-trusted-public-keys");
    assert_eq!(trusted, [&format!("{old} {new}"), &new]);

    reload(
        &server,
        &format!("sign_key_paths = {}", server_lines[0]),
        "signing with cache.example-1, cache.example-2 from now on",
    );
    // Also what was asked for before.
    wait_for_signers(&server, &paths[0], &["cache.example-1", "cache.example-2"]);
    for key in [&old, &new, trusted[0]] {
        takes(key, &paths[1]);
    }
    reload(
        &server,
        &format!("sign_key_paths = {}", server_lines[1]),
        "signing with cache.example-2 from now on",
    );
    wait_for_signers(&server, &paths[1], &["cache.example-2"]);
    takes(trusted[0], &paths[2]);
    takes(trusted[1], &paths[2]);
    assert!(refuses(&old, &paths[2]).contains("lacks a"), "it has gone");
}

#[test]
fn a_bad_key_file_keeps_the_old_set_and_no_connection_is_dropped() {
    let (store, paths) = store();
    let (first, _) = store.key("cache.example-1");
    let (second, _) = store.key("cache.example-2");
    let large = store.add("large", |tree| write(tree.join("file"), noise(9, 32 << 20)));
    let server = Settings::of(&store).keys(&[&first]).start();
    let target = format!("/{}.narinfo", hash_of(&paths[0]));
    let mut kept = server.connect();
    let before = kept.get(&target).text();
    // In the middle of a transfer that the sockets cannot hold.
    let url = server.nar_url(&large);
    let mut transfer = server.connect();
    let size = transfer.request("GET", &url, &[]).read_head().content_length().expect("it is known");
    transfer.take(1000).expect("it has begun");

    let both = format!("sign_key_paths = {:?}", [&first, &second]);
    let bad = second.with_extension("bad");
    write(&bad, "cache.example-2:not a key");
    let with = |file: &Path| format!("sign_key_paths = {:?}", [&first, &file.to_owned()]);
    for (line, said) in [
        (with(&bad), format!("sign_key_paths: {} holds no signing key", bad.display())),
        (with(Path::new("/nonexistent/key")), "sign_key_paths: cannot read /nonexistent/key".to_owned()),
        ("sign_key_pathes = []".to_owned(), "there is no setting `sign_key_pathes`".to_owned()),
        ("sign_key_paths = [".to_owned(), "settings.toml, line ".to_owned()),
    ] {
        reload(&server, &line, "the signing keys stay as they were: ");
        assert!(server.log().contains(&said), "{said}: {}", server.log());
        assert_eq!(kept.get(&target).text(), before, "{line}");
    }
    assert!(!server.log().contains("not a key"), "no part of a key file is shown");

    reload(&server, &both, "signing with cache.example-1, cache.example-2 from now on");
    wait_for_signers(&server, &paths[0], &["cache.example-1", "cache.example-2"]);
    assert!(kept.get(&target).text().contains("Sig: cache.example-2:"), "on the connection of before, too");
    // Whoever sets a client up now copies both, and the doctor judges by them.
    wait_until("the page to show both keys", LIMIT, || {
        let page = kept.get("/").text();
        page.contains("cache.example-1:") && page.contains("cache.example-2:")
    });
    let rest = transfer.take(size as usize - 1000).expect("the transfer goes on");
    assert!(rest == store.dump(&large)[1000..]);
}

#[test]
fn other_settings_wait_for_the_next_start_and_that_is_said() {
    let (store, _) = store();
    let (secret, _) = store.key("cache.example-1");
    let server = Settings::of(&store).keys(&[&secret]).start();
    let line = format!("sign_key_paths = {:?}\npriority = 7", [&secret]);
    reload(&server, &line, "priority changed: that takes effect at the next start");
    assert!(server.get("/nix-cache-info").text().contains("Priority: 30\n"));
}

/// By the manager, which alone knows the process; what stands in for it here sends the signal as it would.
#[test]
fn harmonia_reload_tells_the_service_manager() {
    let (manager, words, service) = match cfg!(target_os = "macos") {
        true => ("launchctl", "kill SIGHUP system/org.nixos.harmonia", "system/org.nixos.harmonia"),
        false => ("systemctl", "reload harmonia.service", "harmonia.service"),
    };
    let (store, _) = store();
    let (secret, _) = store.key("cache.example-1");
    let server = Settings::of(&store).keys(&[&secret]).start();
    let folder = Scratch::new();
    let reload = |path: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_harmonia"));
        run(command.arg("reload").args(arguments).env("PATH", path))
    };
    let absent = reload("/nonexistent", &[]);
    assert_eq!(absent.status.code(), Some(2));
    let said = lossy(&absent.stderr);
    assert!(
        said.starts_with(&format!("harmonia: cannot run {manager}: ")) && said.contains("kill -HUP"),
        "{said}"
    );

    let script =
        format!("#!/bin/sh\ncase \"$*\" in '{words}') kill -HUP {};; *) exit 5;; esac\n", server.pid());
    write(folder.path().join(manager), script);
    fs::set_permissions(folder.path().join(manager), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let path = folder.path().to_str().expect("it is text");
    let told = reload(path, &[]);
    assert!(told.status.success(), "{}", lossy(&told.stderr));
    assert!(lossy(&told.stdout).starts_with(&format!("{service} was told ")), "{}", lossy(&told.stdout));
    let said = "signing with cache.example-1 from now on";
    wait_until("the reload", LIMIT, || server.log().contains(said));
    assert_eq!(reload(path, &["other"]).status.code(), Some(2));
}

#[test]
fn the_next_key_is_made_once_and_never_over_another_file() {
    let folder = Scratch::new();
    let file = |name: &str| folder.path().join(name);
    let made = run(Command::new(env!("CARGO_BIN_EXE_harmonia"))
        .args(["keys", "generate", "k-1", "--secret-file", "now"])
        .current_dir(folder.path()));
    assert!(made.status.success());
    let first = steps(folder.path(), &["k-1", "--key", "now"]);
    assert!(first.starts_with("k-2 takes the place of k-1; it is made.\n"), "{first}");
    let keys = ["k-2.secret", "k-2.public"].map(|name| fs::read(file(name)).expect("it was made"));

    // Some days later.
    let day = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let secret = fs::File::options().write(true).open(file("k-2.secret")).expect("it is ours");
    secret.set_modified(day).expect("it is ours");
    let again = steps(folder.path(), &["k-1", "--key", "now"]);
    assert!(again.starts_with("k-2 takes the place of k-1; it was made on Sun, 06 Nov 1994.\n"), "{again}");
    assert!(again.contains("not before Tue, 06 Dec 1994"), "{again}");
    assert_eq!(settings(&again, "sign_key_paths"), settings(&first, "sign_key_paths"));
    assert_eq!(["k-2.secret", "k-2.public"].map(|name| fs::read(file(name)).expect("it was made")), keys);

    let refused = |arguments: &[&str], said: &str| {
        let output = rotate(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{}", lossy(&output.stdout));
        assert_eq!(lossy(&output.stdout), "");
        assert!(lossy(&output.stderr).contains(said), "{}", lossy(&output.stderr));
    };
    write(file("mine"), "something else");
    refused(&["k-1", "--key", "now", "--secret-file", "mine"], "mine is there already and is left as it is");
    refused(
        &["k-1", "--key", "now", "--secret-file", "k-3", "--public-file", "mine"],
        "mine is there already",
    );
    assert!(!file("k-3").exists() && fs::read(file("mine")).expect("it is there") == b"something else");
    refused(&["k-1"], "cannot read k-1.secret: ");
    refused(&["k-9", "--key", "now"], "now holds the key k-1, not k-9");
}

#[test]
fn who_may_read_the_key_in_use_may_read_the_next() {
    let folder = Scratch::new();
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let made = run(Command::new(env!("CARGO_BIN_EXE_harmonia"))
        .args(["keys", "generate", "k-1"])
        .current_dir(folder.path()));
    assert!(made.status.success());
    fs::set_permissions(file("k-1.secret"), fs::Permissions::from_mode(0o440)).expect("it is ours");
    if support::is_root() {
        std::os::unix::fs::chown(file("k-1.secret"), Some(65534), Some(65533)).expect("root may");
    }
    let output = rotate(folder.path(), &["k-1"]);
    assert!(output.status.success(), "{}", lossy(&output.stderr));
    let [old, new] = ["k-1.secret", "k-2.secret"].map(|name| fs::metadata(file(name)).expect("it is there"));
    assert_eq!((new.uid(), new.gid(), new.mode() & 0o777), (old.uid(), old.gid(), 0o640));
}

#[test]
fn the_start_gives_the_lines_for_clients() {
    let (store, paths) = store();
    let (secret, public) = store.key("cache.example-1");
    let server = Settings::of(&store).keys(&[&secret]).start();
    let url = server.url();
    let lines = [format!("extra-substituters = {url}"), format!("extra-trusted-public-keys = {public}")];
    let shown = |line: &String| server.log().contains(&format!(" in a client's nix.conf: {line}\n"));
    wait_until("the lines in the log", LIMIT, || lines.iter().all(shown));
    // A client that has these two and nothing else.
    let client = store.client(&[]);
    let mut command = client.nix("nix-store");
    let config =
        format!("sandbox = false\nbuild-users-group =\nsubstituters =\n{}\n{}\n", lines[0], lines[1]);
    succeed(command.args(["--realise", &paths[0]]).env("NIX_CONFIG", config));
    assert!(client.real(&paths[0]).exists());
}
