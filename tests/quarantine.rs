//! Paths that are not what the database says: found on the way or by `harmonia store verify`, a 404 until they are
//! repaired, and never sent whole.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use support::server::Settings;
use support::store::hash_of;
use support::{Kind, Scratch, Server, Store, lossy, noise, run, succeed, wait_until, write};

/// How long the server may take to notice something, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn add(store: &Store, name: &str, seed: u64) -> String {
    store.add(name, |tree| {
        write(tree.join("library"), noise(seed, 3_000_000));
        write(tree.join("small"), name);
    })
}

/// Other bytes of the same length: only the hash tells.
fn damage(store: &Store, path: &str) {
    let library = store.real(path).join("library");
    fs::set_permissions(&library, fs::Permissions::from_mode(0o644)).expect("the store is ours");
    write(&library, noise(77, 3_000_000));
}

fn settings(store: &Store, cache: &Path) -> Settings {
    Settings::of(store)
        .line(&format!("cache_dir = {cache:?}"))
        .line("compression = 'zstd'")
        .line("compression_level = 1")
}

fn narinfo(server: &Server, path: &str) -> u16 {
    server.get(&format!("/{}.narinfo", hash_of(path))).status
}

fn urls(server: &Server, path: &str) -> [String; 2] {
    let narinfo = server.get(&format!("/{}.narinfo", hash_of(path)));
    let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ").map(str::to_owned));
    let link = narinfo.header("nix-link").expect("a narinfo has one").to_owned();
    let plain = link.split_once(".nar").map(|(digits, _)| format!("{digits}.nar?hash={}", hash_of(path)));
    [format!("/{}", url.expect("a narinfo has a URL")), format!("/{}", plain.expect("it is a NAR's"))]
}

fn quarantined(server: &Server) -> f64 {
    server.metric("harmonia_quarantined_paths", &[])
}

/// `harmonia store verify`, with the settings of a server.
fn verify(store: &Store, cache: &Path, paths: &[&str]) -> Output {
    let folder = Scratch::new();
    let file = folder.path().join("settings.toml");
    let (dir, real) = (store.dir(), store.real_dir());
    write(&file, format!("virtual_nix_store = {dir:?}\nreal_nix_store = {real:?}\ncache_dir = {cache:?}\n"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_harmonia"));
    command.args(["store", "verify", "--config"]).arg(&file).args(paths);
    run(command.env_remove("CONFIG_FILE"))
}

#[test]
fn damage_found_on_the_way_is_never_sent_whole_and_quarantined_until_it_is_repaired() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let (spoilt, sound) = (add(&store, "spoilt", 1), add(&store, "sound", 2));
    damage(&store, &spoilt);
    let server = settings(&store, cache.path()).start();
    let targets = urls(&server, &spoilt);
    assert_eq!(quarantined(&server), 0.0);

    let cut = server.connect().request("GET", &targets[0], &[]).try_read("GET");
    assert!(cut.is_err(), "it must not end well");
    wait_until("the path to be quarantined", LIMIT, || narinfo(&server, &spoilt) == 404);
    for target in &targets {
        assert_eq!(server.get(target).status, 404);
        assert_eq!(server.connect().head(target, &[]).status, 404);
    }
    assert_eq!(quarantined(&server), 1.0);
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("hashes to")).collect();
    assert!(matches!(*lines, [line] if line.contains(&spoilt[11..]) && line.contains("ERROR")), "{log}");
    assert_eq!(narinfo(&server, &sound), 200);
    drop(server);

    // The next server knows.
    let server = settings(&store, cache.path()).start();
    assert_eq!((narinfo(&server, &spoilt), narinfo(&server, &sound)), (404, 200));
    // As `nix-store --repair-path` does it: another tree in its place, under the same registration.
    let whole = store.real_dir().join("repaired");
    succeed(Command::new("cp").arg("--recursive").arg(store.real(&spoilt)).arg(&whole));
    succeed(Command::new("chmod").args(["-R", "u+w"]).arg(&whole).arg(store.real(&spoilt)));
    write(whole.join("library"), noise(1, 3_000_000));
    fs::set_permissions(whole.join("library"), fs::Permissions::from_mode(0o444)).expect("it is ours");
    succeed(Command::new("rm").arg("-rf").arg(store.real(&spoilt)));
    fs::rename(&whole, store.real(&spoilt)).expect("the store is ours");
    wait_until("it to be served again", LIMIT, || narinfo(&server, &spoilt) == 200);
    wait_until("it to be counted out", LIMIT, || quarantined(&server) == 0.0);
    assert_eq!(server.get(&targets[0]).status, 200);
    assert!(server.get(&targets[1]).body == store.dump(&spoilt));
}

#[test]
fn what_nobody_waits_for_is_found_as_well() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let spoilt = add(&store, "spoilt", 1);
    damage(&store, &spoilt);
    let server = settings(&store, cache.path()).line("compression_cold = 'identity'").start();
    let [_, plain] = urls(&server, &spoilt);
    // Without a hash on the way, it is sent; the client sees for itself.
    assert_eq!(server.get(&plain).status, 200);
    wait_until("the path to be quarantined", LIMIT, || narinfo(&server, &spoilt) == 404);
}

#[test]
fn what_shows_before_anything_is_read_is_quarantined_as_well() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let (longer, unsized_) = (add(&store, "longer", 1), add(&store, "unsized", 2));
    store
        .open_database()
        .execute("update ValidPaths set narSize = null where path = ?1", [&unsized_])
        .expect("the database is ours");
    let server = Settings::of(&store).line(&format!("cache_dir = {:?}", cache.path())).start();
    let url = server.nar_url(&longer);
    damage(&store, &unsized_);
    let library = store.real(&longer).join("library");
    fs::set_permissions(&library, fs::Permissions::from_mode(0o644)).expect("the store is ours");
    write(&library, noise(1, 3_000_001));
    assert_eq!(quarantined(&server), 0.0);

    // The size is looked at before the first byte is sent, and one that is not registered is found by reading all.
    assert_eq!(server.get(&url).status, 404);
    assert_eq!(narinfo(&server, &unsized_), 404);
    wait_until("both to be quarantined", LIMIT, || quarantined(&server) == 2.0);
    assert_eq!((narinfo(&server, &longer), narinfo(&server, &unsized_)), (404, 404));
    let log = server.log();
    for (path, why) in [(&longer, "makes a NAR of"), (&unsized_, "hashes to")] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&path[11..])).collect();
        assert!(matches!(*lines, [line] if line.contains(why) && line.contains("ERROR")), "{log}");
    }
    drop(server);
    let server = Settings::of(&store).line(&format!("cache_dir = {:?}", cache.path())).start();
    assert_eq!((narinfo(&server, &longer), quarantined(&server)), (404, 2.0), "the next server knows");

    let verified = verify(&store, cache.path(), &[&longer]);
    assert_eq!(verified.status.code(), Some(1));
    assert!(lossy(&verified.stdout).contains("bytes, registered with"), "{}", lossy(&verified.stdout));
    write(&library, noise(1, 3_000_000));
    assert_eq!(verify(&store, cache.path(), &[&longer]).status.code(), Some(0));
    wait_until("it to be served again", LIMIT, || narinfo(&server, &longer) == 200);
}

#[test]
fn verify_sets_and_clears_marks_beside_a_running_server() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let (spoilt, sound) = (add(&store, "spoilt", 1), add(&store, "sound", 2));
    let server = settings(&store, cache.path()).start();
    let all = verify(&store, cache.path(), &[]);
    assert_eq!(all.status.code(), Some(0), "{}", lossy(&all.stderr));
    assert!(lossy(&all.stdout).contains("2 paths"), "{}", lossy(&all.stdout));
    assert_eq!(narinfo(&server, &spoilt), 200);

    let before = fs::read(store.real(&spoilt).join("library")).expect("it is there");
    damage(&store, &spoilt);
    let one = verify(&store, cache.path(), &[&sound]);
    assert_eq!(one.status.code(), Some(0), "{}", lossy(&one.stderr));
    let all = verify(&store, cache.path(), &[]);
    assert_eq!(all.status.code(), Some(1));
    assert!(lossy(&all.stdout).contains(&spoilt) && !lossy(&all.stdout).contains(&sound));
    wait_until("the mark to be seen", LIMIT, || narinfo(&server, &spoilt) == 404);
    assert_eq!((narinfo(&server, &sound), quarantined(&server)), (200, 1.0));

    // Put right in place, which no look at the tree shows. A file within the path names it, too.
    write(store.real(&spoilt).join("library"), before);
    assert_eq!(narinfo(&server, &spoilt), 404);
    let inside = store.real(&spoilt).join("library");
    let one = verify(&store, cache.path(), &[inside.to_str().expect("its name is text")]);
    assert_eq!(one.status.code(), Some(0), "{}", lossy(&one.stderr));
    wait_until("it to be served again", LIMIT, || narinfo(&server, &spoilt) == 200);
}

/// Changes a path in place, which its root does not show: a small file's bytes, or where a link leads.
fn change_within(real: &Path, contents: &str, target: &str) {
    let (small, link) = (real.join("share/deep/small"), real.join("share/deep/link"));
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the store is ours");
    };
    mode(&small, 0o644);
    write(&small, contents);
    mode(&small, 0o444);
    mode(&real.join("share/deep"), 0o755);
    fs::remove_file(&link).expect("the store is ours");
    std::os::unix::fs::symlink(target, &link).expect("the store is ours");
    mode(&real.join("share/deep"), 0o555);
}

#[test]
fn damage_that_is_put_right_in_place_is_never_sent_again() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let settings = || Settings::of(&store).line(&format!("cache_dir = {:?}", cache.path()));
    let packed = |server: &Server, result: &str| {
        server.metric("harmonia_packs_total", &[&format!("result=\"{result}\"")])
    };
    let add = |(seed, contents, target)| {
        let path = store.add(&format!("spoilt-{seed}"), |tree| {
            write(tree.join("library"), noise(seed, 300_000));
            fs::create_dir_all(tree.join("share/deep")).expect("the tree is ours");
            write(tree.join("share/deep/small"), "right");
            std::os::unix::fs::symlink("right", tree.join("share/deep/link")).expect("the tree is ours");
        });
        let nar = store.dump(&path);
        change_within(&store.real(&path), contents, target);
        (path, nar)
    };
    let paths = [(1, "wrong", "right"), (2, "right", "wrong")].map(add);
    let server = settings().start();
    let urls = paths.each_ref().map(|(path, _)| server.nar_url(path));
    for (number, ((path, nar), url)) in paths.iter().zip(&urls).enumerate() {
        // The first that is sent is read whole behind it, to be packed.
        assert!(server.get(url).body != *nar, "without a hash on the way, it is sent");
        wait_until("the path to be quarantined", LIMIT, || server.get(url).status == 404);
        change_within(&store.real(path), "right", "right");
        assert_eq!(server.get(url).status, 404, "nobody has looked yet");
        let verified = verify(&store, cache.path(), &[path]);
        assert_eq!(verified.status.code(), Some(0), "{}", lossy(&verified.stderr));
        wait_until("it to be served again", LIMIT, || narinfo(&server, path) == 200);
        assert!(server.get(url).body == *nar);
        wait_until("it to be packed", LIMIT, || packed(&server, "made") == 1.0 + number as f64);
        assert!(server.get(url).body == *nar, "from the pack");
    }
    drop(server);
    let server = settings().start();
    for (number, ((_, nar), url)) in paths.iter().zip(&urls).enumerate() {
        assert!(server.get(url).body == *nar);
        wait_until("the pack to be found", LIMIT, || packed(&server, "found") == 1.0 + number as f64);
        assert!(server.get(url).body == *nar);
    }
}

#[test]
fn verify_says_what_it_cannot_do() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "gone", 1);
    for (named, why) in [("/etc/passwd", "not in the store"), ("/nix/store/0", "store path's hash")] {
        let refused = verify(&store, cache.path(), &[named]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(lossy(&refused.stderr).contains(why), "{}", lossy(&refused.stderr));
    }
    let absent = path.replace("gone", "went");
    let refused = verify(&store, cache.path(), &[&absent]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(lossy(&refused.stderr).contains("not valid"), "{}", lossy(&refused.stderr));
    // A tree that is not there is damage, too: until it is there again, its narinfo is no more to be had than its NAR.
    let server = settings(&store, cache.path()).start();
    assert_eq!(narinfo(&server, &path), 200);
    let kept = Scratch::new();
    succeed(Command::new("cp").arg("--recursive").arg(store.real(&path)).arg(kept.path().join("tree")));
    succeed(Command::new("chmod").args(["-R", "u+w"]).arg(store.real(&path)));
    succeed(Command::new("rm").arg("-rf").arg(store.real(&path)));
    let gone = verify(&store, cache.path(), &[]);
    assert_eq!(gone.status.code(), Some(1), "{}", lossy(&gone.stderr));
    let told = lossy(&gone.stdout);
    assert!(told.contains(&format!("{path}: no such path on disk; quarantined")), "{told}");
    wait_until("the mark to be seen", LIMIT, || narinfo(&server, &path) == 404);
    succeed(Command::new("cp").arg("--recursive").arg(kept.path().join("tree")).arg(store.real(&path)));
    wait_until("it to be served again", LIMIT, || narinfo(&server, &path) == 200);
}
