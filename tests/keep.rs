//! Roots for good, and the real collector: what was asked for, and what is pinned, is spared.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::server::Settings;
use support::store::{base_name, hash_of};
use support::{Kind, Server, Store, fail, lossy, poll, succeed, wait_until, write};

const LIMIT: Duration = Duration::from_secs(60);

fn collect(store: &Store) {
    store.collect(&["--gc"]);
}

fn is_there(store: &Store, path: &str) -> bool {
    store.real(path).exists()
}

fn link(store: &Store, path: &str) -> PathBuf {
    store.state_dir().join("gcroots/harmonia/served").join(base_name(path))
}

fn keeping(store: &Store) -> Server {
    Settings::of(store).line("keep_served = \"30d\"").start()
}

#[test]
fn what_was_asked_for_is_spared_for_its_time() {
    let store = Store::new(Kind::Chroot);
    let library = store.add("library", |file| write(file, "a part"));
    let program = store.register("program", &[&library], |file, _| write(file, "refers to it"));
    let fetched = store.add("fetched", |file| write(file, "by its NAR"));
    let looked_at = store.add("looked-at", |file| write(file, "by a person"));
    let server = keeping(&store);
    // As `harmonia cache warm` and `doctor --config` do: no client has asked.
    let mut connection = server.connect();
    let narinfo = format!("/{}.narinfo", hash_of(&looked_at));
    for target in [&narinfo, &format!("/nar/{}.nar", hash_of(&looked_at))] {
        connection.request("HEAD", target, &[]);
        assert_eq!(connection.read("HEAD").status, 200);
    }
    assert_eq!(server.get(&format!("{narinfo}?look")).status, 200);
    for _ in 0..3 {
        assert_eq!(server.get(&format!("/{}.narinfo", hash_of(&program))).status, 200);
    }
    assert_eq!(server.get(&format!("/nar/{}.nar", hash_of(&fetched))).status, 200);
    assert_eq!(server.get(&format!("/serve/{}", hash_of(&looked_at))).status, 200);
    assert_eq!(server.get(&format!("/{}.ls", hash_of(&looked_at))).status, 200);
    for path in [&program, &fetched] {
        let target = poll("the root of a path", LIMIT, || fs::read_link(link(&store, path)).ok());
        assert_eq!(target, Path::new(path));
    }
    assert_eq!(server.metric("harmonia_kept_roots_total", &["made"]), 2.0, "once each");
    // The temporary root of what was sent just now lingers for a moment.
    wait_until("what was looked at to be collected", LIMIT, || {
        collect(&store);
        !is_there(&store, &looked_at)
    });
    assert_eq!([&library, &program, &fetched].map(|path| is_there(&store, path)), [true, true, true]);

    // Forty days later, when the server starts anew.
    drop(server);
    succeed(Command::new("touch").args(["-h", "-d", "40 days ago"]).arg(link(&store, &program)));
    let server = keeping(&store);
    wait_until("the root to expire", LIMIT, || !link(&store, &program).is_symlink());
    collect(&store);
    assert_eq!([&library, &program, &fetched].map(|path| is_there(&store, path)), [false, false, true]);

    // And when nothing is to be kept any more.
    drop(server);
    let _server = Server::of(&store);
    wait_until("the last root to go", LIMIT, || !link(&store, &fetched).is_symlink());
    collect(&store);
    assert!(!is_there(&store, &fetched));
}

#[test]
fn a_folder_that_cannot_be_written_is_one_warning_and_no_failed_request() {
    let store = Store::new(Kind::Chroot);
    let paths: Vec<String> =
        (0..3).map(|number| store.add(&format!("served-{number}"), |file| write(file, "contents"))).collect();
    let server = Settings::of(&store).line("keep_served = \"1d\"").unprivileged().start();
    let warnings = || server.log().lines().filter(|line| line.contains("keep_served")).count();
    wait_until("the warning", LIMIT, || warnings() > 0);
    for path in &paths {
        assert_eq!(server.get(&format!("/{}.narinfo", hash_of(path))).status, 200);
        assert_eq!(server.get(&format!("/nar/{}.nar", hash_of(path))).body, store.dump(path));
    }
    wait_until("the attempts to be counted", LIMIT, || {
        server.metric("harmonia_kept_roots_total", &["failed"]) >= 3.0
    });
    assert_eq!(warnings(), 1, "{}", server.log());
}

/// A `harmonia` command about the store.
fn harmonia(store: &Store, words: &[&str]) -> Command {
    let file = store.folder().join("settings.toml");
    write(&file, format!("real_nix_store = {:?}\n", store.real_dir()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_harmonia"));
    command.args(words).arg("--config").arg(file).current_dir(store.folder());
    command
}

fn said(store: &Store, words: &[&str]) -> String {
    lossy(&succeed(&mut harmonia(store, words)))
}

#[test]
fn pins_spare_a_closure_until_they_go() {
    let store = Store::new(Kind::Chroot);
    let library = store.add("library", |file| write(file, "a part"));
    let program = store.register("program", &[&library], |folder, _| write(folder.join("bin/x"), "x"));
    let later = store.add("later", |file| write(file, "the next release"));
    assert_eq!(said(&store, &["pins"]), "");
    let name = base_name(&program);
    assert_eq!(said(&store, &["pin", "release", &program]), format!("release keeps {name}\n"));
    assert_eq!(said(&store, &["pins"]), format!("release\t{program}\n"));
    // By the link that a build leaves, and by a file inside.
    let result = store.folder().join("result");
    std::os::unix::fs::symlink(format!("{later}/"), &result).expect("it is ours");
    said(&store, &["pin", "by-link", "./result"]);
    said(&store, &["pin", "by-file", &format!("{}/bin/x", store.real(&program).display())]);
    assert_eq!(
        said(&store, &["pins"]),
        format!("by-file\t{program}\nby-link\t{later}\nrelease\t{program}\n")
    );
    collect(&store);
    assert!([&library, &program, &later].iter().all(|path| is_there(&store, path)));
    let roots = lossy(&store.collect(&["--gc", "--print-roots"]));
    assert!(roots.contains("gcroots/harmonia/pins/release"), "{roots}");

    // A name moves, and goes.
    let moved = said(&store, &["pin", "release", &later]);
    assert!(moved.contains(&format!("it kept {program} before")), "{moved}");
    assert_eq!(said(&store, &["unpin", "by-file"]), format!("by-file no longer keeps {program}\n"));
    collect(&store);
    assert_eq!([&library, &program, &later].map(|path| is_there(&store, path)), [false, false, true]);

    // What cannot be.
    let told = fail(&mut harmonia(&store, &["pin", "gone", &program]));
    assert!(told.contains(&format!("{program} is not a valid path of this store")), "{told}");
    let told = fail(&mut harmonia(&store, &["unpin", "by-file"]));
    assert!(told.contains("there is no pin called by-file: `harmonia pins`"), "{told}");
    let told = fail(&mut harmonia(&store, &["pin", "../up", &later]));
    assert!(told.contains("a pin cannot be called \"../up\""), "{told}");
    let told = fail(&mut harmonia(&store, &["pin", "x", "."]));
    assert!(told.contains("is not in the store /nix/store, nor does it lead there"), "{told}");
    let told = fail(&mut harmonia(&store, &["pin", "x", "absent"]));
    assert!(told.contains("cannot look at absent: No such file"), "{told}");
    // Nothing half-made is left.
    let left = fs::read_dir(store.state_dir().join("gcroots/harmonia/pins")).expect("it was made");
    assert_eq!(left.count(), 2);
}
