//! Packs of small files: made behind the first request, used from then on, and lost without harm.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::server::Settings;
use support::{Kind, Scratch, Server, Store, noise, wait_until, write};

/// How long a pack of a small path may take on a busy machine.
const PACK_LIMIT: Duration = Duration::from_secs(30);

/// A path with small files before, between and after large ones.
fn add(store: &Store, name: &str) -> String {
    store.add(name, |tree| {
        for number in 0..40 {
            write(tree.join(format!("{number:02} small")), noise(number, 300 * number as usize));
            fs::create_dir(tree.join(format!("{number:02} t"))).expect("the tree is ours");
            write(tree.join(format!("{number:02} t/in")), noise(number + 100, 5000));
            if number % 10 == 5 {
                write(tree.join(format!("{number:02} u")), noise(number, 200_000));
            }
        }
    })
}

fn packs(server: &Server, result: &str) -> u64 {
    server.metric("harmonia_packs_total", &[&format!("result=\"{result}\"")]) as u64
}

fn wait_for(server: &Server, result: &str, count: u64) {
    wait_until(&format!("{count} packs to be {result}"), PACK_LIMIT, || packs(server, result) == count);
}

fn cached(store: &Store, cache: &Path) -> Settings {
    Settings::of(store).line(&format!("cache_dir = {cache:?}")).line("cache_max_size = '1G'")
}

fn make_writable(path: &Path) {
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the store is ours");
}

/// Puts other bytes in every small file, in place and of the same length: what is read from the store from then on
/// is wrong, what comes from a pack is right.
fn spoil_small_files(real: &Path) -> Vec<PathBuf> {
    let small: Vec<PathBuf> = (1..40).map(|number| real.join(format!("{number:02} small"))).collect();
    for file in &small {
        make_writable(file);
        let len = fs::metadata(file).expect("it is there").len() as usize;
        fs::write(file, vec![b'!'; len]).expect("the store is ours");
    }
    small
}

#[test]
fn from_the_second_request_on_small_files_come_from_the_pack_also_after_a_restart() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "packed");
    let nar = store.dump(&path);
    let url;
    {
        let server = cached(&store, cache.path()).start();
        url = server.nar_url(&path);
        assert!(server.get(&url).body == nar, "live");
        wait_for(&server, "made", 1);
        spoil_small_files(&store.real(&path));
        assert!(server.get(&url).body == nar, "packed");
        for (start, end) in [(0, 99), (1000, 20_000), (nar.len() - 7, nar.len() - 1), (100_000, 400_000)] {
            let range = format!("Range: bytes={start}-{end}");
            let part = server.connect().get_with(&url, &[&range]);
            assert_eq!(part.status, 206);
            assert!(part.body == nar[start..=end], "bytes {start} to {end}");
        }
        assert_eq!((packs(&server, "made"), packs(&server, "failed")), (1, 0));
        assert!(server.metric("harmonia_packed_bytes_total", &[]) > 200_000.0);
    }
    let server = cached(&store, cache.path()).start();
    // Live, and so with what the test spoiled; behind it the pack is found again.
    server.get(&url);
    wait_for(&server, "found", 1);
    assert!(server.get(&url).body == nar, "packed again");
    assert_eq!(packs(&server, "made"), 0);
}

#[test]
fn a_damaged_path_gets_no_pack_and_a_repaired_one_its_own() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "repaired");
    let (nar, real) = (store.dump(&path), store.real(&path));
    let good = real.with_extension("good");
    assert!(support::run(std::process::Command::new("cp").arg("-a").args([&real, &good])).status.success());
    spoil_small_files(&real);
    let server = cached(&store, cache.path()).start();
    let url = server.nar_url(&path);
    assert!(server.get(&url).body != nar, "damage that keeps every size is served as it is");
    wait_until("it to be quarantined", PACK_LIMIT, || server.get(&url).status == 404);
    assert_eq!(packs(&server, "made"), 0);

    // As Nix repairs: another tree in its place.
    make_writable(&real);
    fs::rename(&real, real.with_extension("bad")).expect("the store is ours");
    fs::rename(&good, &real).expect("the store is ours");
    wait_until("it to be served again", PACK_LIMIT, || server.get(&url).status == 200);
    assert!(server.get(&url).body == nar);
    wait_for(&server, "made", 1);
    assert!(server.get(&url).body == nar);
}

#[test]
fn without_a_folder_to_keep_packs_in_everything_is_served_live() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "live");
    let nar = store.dump(&path);
    let off = Settings::of(&store).line("cache_max_size = 0").start();
    let url = off.nar_url(&path);
    // A file where the folder should be, and a folder in use by another server.
    write(cache.path().join("file"), "");
    let file = cached(&store, &cache.path().join("file")).start();
    let first = cached(&store, &cache.path().join("folder")).start();
    let second = cached(&store, &cache.path().join("folder")).start();
    for server in [&off, &file, &first, &second] {
        for _ in 0..2 {
            assert!(server.get(&url).body == nar);
        }
    }
    wait_for(&first, "made", 1);
    for server in [&off, &file, &second] {
        assert_eq!(packs(server, "made") + packs(server, "failed"), 0);
    }
    for (server, reason) in [(&file, "Not a directory"), (&second, "another harmonia uses this cache")] {
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains("cache_dir: ")).count();
        assert!(lines == 1 && (log.contains(reason) || log.contains("File exists")), "{log}");
    }
    assert!(!off.log().contains("cache"), "{}", off.log());
}

#[test]
fn a_cache_that_fails_or_is_deleted_under_the_server_costs_nothing_but_speed() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let paths: Vec<String> = (0..4).map(|number| add(&store, &format!("kept-{number}"))).collect();
    let nars: Vec<Vec<u8>> = paths.iter().map(|path| store.dump(path)).collect();
    let folder = cache.path().join("folder");
    let server = cached(&store, &folder).start();
    let urls: Vec<String> = paths.iter().map(|path| server.nar_url(path)).collect();
    assert!(server.get(&urls[0]).body == nars[0]);
    wait_for(&server, "made", 1);
    fs::remove_dir_all(&folder).expect("the cache is ours");
    for _ in 0..3 {
        for (url, nar) in urls.iter().zip(&nars) {
            assert!(server.get(url).body == *nar);
        }
    }
    let warned = server.log().matches("the cache cannot be used").count();
    assert!(warned <= 1, "told {warned} times:\n{}", server.log());
}

#[test]
fn a_volume_that_is_cut_under_the_server_breaks_nothing_off() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "cut");
    let nar = store.dump(&path);
    let server = cached(&store, cache.path()).start();
    let url = server.nar_url(&path);
    server.get(&url);
    wait_for(&server, "made", 1);
    assert!(server.get(&url).body == nar, "packed");
    let mut cut = 0;
    for entry in fs::read_dir(cache.path()).expect("the cache is ours").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "volume") {
            let volume = fs::OpenOptions::new().write(true).open(entry.path()).expect("the cache is ours");
            volume.set_len(1000).expect("the cache is ours");
            cut += 1;
        }
    }
    assert_eq!(cut, 1, "one volume holds the pack");
    for _ in 0..3 {
        assert!(server.get(&url).body == nar, "read from the store again");
    }
}

#[test]
fn a_damaged_volume_is_noticed_before_its_first_use() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "damaged");
    let nar = store.dump(&path);
    let url = {
        let server = cached(&store, cache.path()).start();
        let url = server.nar_url(&path);
        server.get(&url);
        wait_for(&server, "made", 1);
        url
    };
    let mut flipped = 0;
    for entry in fs::read_dir(cache.path()).expect("the cache is ours").flatten() {
        let mut bytes = fs::read(entry.path()).expect("the cache is ours");
        // The contents of a small file, as the volume has them.
        let wanted = &noise(39, 300 * 39)[..1000];
        if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) {
            bytes[at + 10] ^= 1;
            fs::write(entry.path(), bytes).expect("the cache is ours");
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1, "the volume holds the file once");
    let server = cached(&store, cache.path()).start();
    assert!(server.get(&url).body == nar, "from the store");
    // Behind it the pack is looked for, the damage found and told, and another made.
    wait_for(&server, "made", 1);
    assert_eq!((packs(&server, "found"), packs(&server, "failed")), (0, 0));
    assert!(server.log().contains("damaged at byte"), "{}", server.log());
    assert!(server.get(&url).body == nar, "never the flipped bit");
}
