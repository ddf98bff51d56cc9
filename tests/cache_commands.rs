//! `harmonia cache warm`, `status` and `clear`, with a server beside them and without.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use support::server::Settings;
use support::{Kind, Scratch, Server, Store, lossy, noise, run, wait_until, write};

/// How long the server may take to notice something, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn add(store: &Store, name: &str, seed: u64) -> String {
    store.add(name, |tree| {
        write(tree.join("library"), noise(seed, 2_500_000));
        write(tree.join("shared"), noise(99, 2_500_000));
        write(tree.join("text"), name.repeat(20_000));
    })
}

const COMPRESSING: &str = "compression = 'zstd'\ncompression_level = 1\ncompression_threads = 2\n";

fn settings(store: &Store, cache: &Path) -> Settings {
    let settings = Settings::of(store).line(&format!("cache_dir = {cache:?}"));
    COMPRESSING.lines().fold(settings, Settings::line)
}

/// `harmonia cache …` with settings for this store.
fn command(store: &Store, cache: &Path, compressing: &str, words: &[&str]) -> Output {
    let folder = Scratch::new();
    let file = folder.path().join("settings.toml");
    let (dir, real) = (store.dir(), store.real_dir());
    // Nobody can listen at port 0.
    let text = format!(
        "bind = '127.0.0.1:0'\nvirtual_nix_store = {dir:?}\nreal_nix_store = {real:?}\ncache_dir = {cache:?}\n"
    );
    write(&file, text + compressing);
    let mut command = Command::new(env!("CARGO_BIN_EXE_harmonia"));
    command.arg("cache").args(words).arg("--config").arg(&file);
    run(command.env_remove("CONFIG_FILE"))
}

/// One that must do what it should; its standard output.
fn done(store: &Store, cache: &Path, words: &[&str]) -> String {
    let output = command(store, cache, COMPRESSING, words);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{words:?}: {}{}",
        lossy(&output.stdout),
        lossy(&output.stderr)
    );
    lossy(&output.stdout)
}

/// The line that begins with this word.
fn line<'t>(text: &'t str, word: &str) -> &'t str {
    text.lines().find(|line| line.starts_with(word)).unwrap_or_else(|| panic!("no {word} in\n{text}"))
}

fn compressed_bytes(server: &Server) -> f64 {
    server.metric("harmonia_compress_frame_bytes_total", &[])
}

#[test]
fn what_was_warmed_without_a_server_is_there_from_its_start() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let paths = [add(&store, "one", 1), add(&store, "two", 2)];
    assert!(done(&store, cache.path(), &["status"]).contains("frames      0"));
    let told = done(&store, cache.path(), &["warm", "--all"]);
    assert!(told.starts_with("2 NARs of 9.7 MiB, "), "{told}");
    let status = done(&store, cache.path(), &["status"]);
    assert!(line(&status, "size").ends_with(" of 20 GiB, 1 volume"), "{status}");
    assert!(line(&status, "NARs").contains(" 2,"), "{status}");
    // One of two files of each is the same in both.
    let shared = line(&status, "shared").split_whitespace().nth(1).expect("a ratio");
    assert!((1.2..1.5).contains(&shared.parse::<f64>().expect("a number")), "{status}");
    assert!(line(&status, "hits").contains("unknown"), "{status}");

    let server = settings(&store, cache.path()).start();
    for path in &paths {
        assert!(server.narinfo(path).contains("\nFileHash: "), "{}", server.narinfo(path));
        assert_eq!(server.get(&server.nar_url(path)).status, 200);
    }
    assert_eq!(compressed_bytes(&server), 0.0, "nothing was compressed again");
    let bind = server.address.to_string();
    assert!(done(&store, cache.path(), &["warm", "--all", "--bind", &bind]).starts_with("2 NARs"));
    assert_eq!(compressed_bytes(&server), 0.0);
}

#[test]
fn beside_a_server_it_is_the_server_that_compresses() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let (leaf, other, old) = (add(&store, "leaf", 1), add(&store, "other", 2), add(&store, "old", 3));
    let root = store.register("root", &[&leaf], |tree, _| write(tree.join("small"), "small"));
    let server = settings(&store, cache.path()).start();
    let bind = server.address.to_string();
    let is_warm = |path: &str| server.narinfo(path).contains("\nFileHash: ");
    let told = done(&store, cache.path(), &["warm", "--closure", &root, "--bind", &bind]);
    assert!(told.starts_with("2 NARs"), "{told}");
    assert_eq!([&root, &leaf, &other].map(|path| is_warm(path)), [true, true, false]);

    let sql = "update ValidPaths set registrationTime = registrationTime - 8 * 86400 where path = ?1";
    store.open_database().execute(sql, [&old]).expect("a row is changed");
    let told = done(&store, cache.path(), &["warm", "--recent", "7d", "--bind", &bind]);
    assert!(told.starts_with("3 NARs"), "{told}");
    assert_eq!([&other, &old].map(|path| is_warm(path)), [true, false]);

    // One that is damaged cannot be had; the others are all the same.
    let library = store.real(&old).join("library");
    fs::set_permissions(&library, fs::Permissions::from_mode(0o644)).expect("the store is ours");
    write(&library, noise(77, 2_500_000));
    let output = command(&store, cache.path(), COMPRESSING, &["warm", "--all", "--bind", &bind]);
    assert_eq!(output.status.code(), Some(1), "{}", lossy(&output.stderr));
    assert!(lossy(&output.stdout).starts_with("3 NARs") && lossy(&output.stderr).contains(&old[11..]));
}

#[test]
fn clear_beside_a_server_frees_the_space_and_changes_no_byte() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "cleared", 1);
    let server = settings(&store, cache.path()).start();
    let url = server.nar_url(&path);
    let file = server.get(&url).body;
    wait_until("it to be kept", LIMIT, || server.narinfo(&path).contains("FileHash"));
    let told = done(&store, cache.path(), &["clear"]);
    assert!(told.starts_with("removed 4.8 MiB "), "{told}");
    let held = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("it runs");
        let names = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        names.filter(|name| name.to_string_lossy().contains(".volume")).count()
    };
    wait_until("the space to be free", LIMIT, || held() == 0);
    assert!(server.get(&url).body == file);
    wait_until("it to be kept again", LIMIT, || {
        let status = done(&store, cache.path(), &["status"]);
        line(&status, "NARs").contains(" 1,")
    });
    assert_eq!(server.get(&url).body.len(), file.len());
}

#[test]
fn what_cannot_be_done_is_said() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    add(&store, "one", 1);
    let refused = |settings: &str, words: &[&str]| {
        let output = command(&store, cache.path(), settings, words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        lossy(&output.stderr)
    };
    assert!(refused("", &["warm", "--all"]).contains("nothing is compressed"));
    assert!(refused("cache_max_size = 0", &["status"]).contains("cache_max_size is 0"));
    assert!(refused(COMPRESSING, &["warm"]).contains("--recent"));
    assert!(refused(COMPRESSING, &["warm", "--recent", "soon"]).contains("7d"));
    assert!(refused(COMPRESSING, &["warm", "--closure", "/etc/passwd"]).contains("not in the store"));
    let file = cache.path().join("file");
    write(&file, "no folder");
    for place in [file.clone(), file.join("below")] {
        let output = command(&store, &place, COMPRESSING, &["status"]);
        let told = lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{}", lossy(&output.stdout));
        let expected = format!("cache_dir: nothing can be kept in {}: ", place.display());
        assert!(told.contains(&expected), "{told}");
    }
    let absent = cache.path().join("a/b");
    let status = done(&store, &absent, &["status"]);
    assert!(line(&status, "folder").ends_with("/a/b, which is not there: a server makes it"), "{status}");
    assert!(!absent.exists(), "it was only looked at");
    let _server = settings(&store, cache.path()).start();
    let elsewhere = refused(COMPRESSING, &["warm", "--all"]);
    assert!(elsewhere.contains("another harmonia") && elsewhere.contains("--bind"), "{elsewhere}");
}

#[test]
fn a_server_without_a_cache_is_not_asked_for_ever() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    (0..5).for_each(|number| drop(add(&store, &format!("path-{number}"), number)));
    write(cache.path().join("file"), "no folder");
    let server = settings(&store, &cache.path().join("file/cache")).start();
    let bind = server.address.to_string();
    let output = command(&store, cache.path(), COMPRESSING, &["warm", "--all", "--bind", &bind]);
    assert_eq!(output.status.code(), Some(2), "{}", lossy(&output.stdout));
    let told = lossy(&output.stderr);
    assert!(told.contains(&bind) && told.contains("its log says why"), "{told}");
    assert!(server.log().contains("file/cache"), "{}", server.log());
}

#[test]
fn another_users_cache_is_left_alone_where_no_server_runs() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    add(&store, "one", 1);
    if !support::is_root() {
        // Nobody else's folder can be made then; root has one that everybody may look at.
        let output = command(&store, Path::new("/usr"), COMPRESSING, &["warm", "--all"]);
        assert!(lossy(&output.stderr).contains("sudo -u '#0'"), "{}", lossy(&output.stderr));
        return;
    }
    let theirs = cache.path().join("service");
    fs::create_dir(&theirs).expect("the folder is ours");
    std::os::unix::fs::chown(&theirs, Some(65534), None).expect("root may");
    for folder in [theirs.clone(), theirs.join("cache")] {
        let output = command(&store, &folder, COMPRESSING, &["warm", "--all"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(lossy(&output.stderr).contains("sudo -u '#65534'"), "{}", lossy(&output.stderr));
    }
    assert_eq!(fs::read_dir(&theirs).expect("it is there").count(), 0);
}
