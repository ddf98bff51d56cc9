//! The cache is killed, filled up, forbidden, deleted and spoilt under the server: what is compressed is right all the
//! same, and the operator is told once.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::server::Settings;
use support::{Kind, Random, Scratch, Server, Store, decompressed, nar_url_in, noise, wait_until, write};

/// How long the server may take for something, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A path of which most is its own, and a file that all have.
fn add(store: &Store, number: u64) -> String {
    store.add(&format!("path-{number}"), |tree| {
        write(tree.join("library"), noise(number, 3_000_000));
        write(tree.join("shared"), noise(99, 2_500_000));
        write(tree.join("text"), format!("line {number} of text\n").repeat(50_000));
    })
}

fn settings(store: &Store, cache: &Path) -> Settings {
    Settings::of(store)
        .line(&format!("cache_dir = {cache:?}"))
        .line("compression = 'zstd'")
        .line("compression_level = 1")
        .line("compression_threads = 2")
}

/// A store path, its NAR by Nix, and the URL of the compressed one.
struct Good {
    nar: Vec<u8>,
    path: String,
}

fn goods(store: &Store, count: u64) -> Vec<Good> {
    let good = |number| {
        let path = add(store, number);
        Good { nar: store.dump(&path), path }
    };
    (0..count).map(good).collect()
}

/// The URL that is offered, and whether it is of a compressed NAR.
fn offer(server: &Server, path: &str) -> (String, bool) {
    let text = server.narinfo(path);
    (nar_url_in(&text), text.contains("\nCompression: zstd\n"))
}

/// Fetches what is offered of a path; the file.
fn check(server: &Server, good: &Good) -> Vec<u8> {
    let (url, is_compressed) = offer(server, &good.path);
    let file = server.get(&url);
    assert_eq!(file.status, 200, "{url}");
    let nar = if is_compressed { decompressed("zstd", &file.body) } else { file.body.clone() };
    assert!(nar == good.nar, "{url}: another NAR");
    file.body
}

fn failures(server: &Server) -> f64 {
    server.metric("harmonia_cache_failures_total", &[])
}

fn told(server: &Server) -> u64 {
    let log = server.log();
    let told = |what: &str| log.matches(what).count() as u64;
    told("the cache cannot be used") + told("a part of the cache is lost")
}

/// How often the server may have told of the cache's troubles if it began at `begun`: once a minute.
fn may_tell(begun: Instant) -> u64 {
    1 + begun.elapsed().as_secs() / 60
}

#[test]
fn killed_at_any_moment_it_sends_nothing_wrong_afterwards() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let goods = goods(&store, 6);
    let mut random = Random(7);
    let mut files: HashMap<String, Vec<u8>> = HashMap::new();
    for round in 0..8 {
        let mut server = settings(&store, cache.path()).line("cache_max_size = '128M'").start();
        if round > 0 {
            for good in &goods[..3] {
                let file = check(&server, good);
                let first = files.entry(good.path.clone()).or_insert_with(|| file.clone());
                assert!(*first == file, "round {round}: other bytes behind the same URL");
            }
        }
        // Some begin while it dies, which may be before their first byte or long after their last.
        let is_over = AtomicBool::new(false);
        let urls: Vec<String> = goods.iter().map(|good| offer(&server, &good.path).0).collect();
        thread::scope(|scope| {
            for url in &urls {
                let (address, is_over) = (server.address, &is_over);
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let Ok(mut stream) = std::net::TcpStream::connect(address) else { return };
                        let request = format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                        let _ = stream.write_all(request.as_bytes());
                        let _ = std::io::copy(&mut stream, &mut std::io::sink());
                    }
                });
            }
            thread::sleep(Duration::from_millis(random.below(400)));
            server.signal(Signal::KILL);
            server.wait(LIMIT);
            is_over.store(true, Ordering::Relaxed);
        });
    }
    let server = settings(&store, cache.path()).line("cache_max_size = '128M'").start();
    for good in &goods {
        let file = check(&server, good);
        assert!(files.get(&good.path).is_none_or(|first| *first == file), "other bytes behind the same URL");
    }
}

#[test]
fn spoilt_volumes_are_noticed_and_their_frames_made_again() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let goods = goods(&store, 2);
    let before: Vec<Vec<u8>> = {
        let server = settings(&store, cache.path()).start();
        let files = goods.iter().map(|good| check(&server, good)).collect();
        for good in &goods {
            let is_kept = || server.narinfo(&good.path).contains("FileHash");
            wait_until("it to be kept", LIMIT, is_kept);
        }
        files
    };
    let mut spoilt = 0;
    for entry in fs::read_dir(cache.path()).expect("the cache is ours").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "volume") {
            let mut bytes = fs::read(entry.path()).expect("the cache is ours");
            // Not the header: a file without it is no volume, and passed over.
            bytes.iter_mut().skip(1000).step_by(50_000).for_each(|byte| *byte ^= 0x10);
            fs::write(entry.path(), bytes).expect("the cache is ours");
            spoilt += 1;
        }
    }
    assert!(spoilt > 0);
    let begun = Instant::now();
    let server = settings(&store, cache.path()).start();
    for _ in 0..2 {
        for (good, before) in goods.iter().zip(&before) {
            assert!(check(&server, good) == *before, "the same bytes as before");
        }
    }
    assert!(failures(&server) >= 1.0);
    let log = server.log();
    assert!((1..=may_tell(begun)).contains(&told(&server)) && log.contains("damaged at byte"), "{log}");
    let counted = failures(&server);
    check(&server, &goods[0]);
    assert_eq!(failures(&server), counted, "what was damaged has been replaced");
}

#[test]
fn a_volume_that_is_cut_under_the_server_is_noticed_and_its_frames_made_again() {
    a_volume_under_the_server_becomes(|volume, len| volume.set_len(len / 2).expect("the cache is ours"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_volume_that_is_written_to_under_the_server_is_noticed_and_its_frames_made_again() {
    a_volume_under_the_server_becomes(|volume, len| {
        for at in (1000..len - 1).step_by(50_000) {
            let mut byte = [0];
            volume.read_exact_at(&mut byte, at).expect("the cache is ours");
            volume.write_all_at(&[byte[0] ^ 0x10], at).expect("the cache is ours");
        }
    });
}

fn a_volume_under_the_server_becomes(harm: impl Fn(&fs::File, u64)) {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let goods = goods(&store, 2);
    let server = settings(&store, cache.path()).start();
    let before: Vec<Vec<u8>> = goods.iter().map(|good| check(&server, good)).collect();
    for good in &goods {
        wait_until("it to be kept", LIMIT, || server.narinfo(&good.path).contains("FileHash"));
    }
    let mut harmed = 0;
    for entry in fs::read_dir(cache.path()).expect("the cache is ours").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "volume") {
            let options = fs::OpenOptions::new().read(true).write(true).open(entry.path());
            let volume = options.expect("the cache is ours");
            harm(&volume, volume.metadata().expect("it is open").len());
            harmed += 1;
        }
    }
    assert_eq!(harmed, 1, "one volume holds all of it");
    for _ in 0..2 {
        for (good, before) in goods.iter().zip(&before) {
            assert!(check(&server, good) == *before, "the same bytes as before");
        }
    }
    assert!(server.log().contains("something else has written to it or cut it"), "{}", server.log());
    assert!(failures(&server) >= 1.0);
    let counted = failures(&server);
    check(&server, &goods[0]);
    assert_eq!(failures(&server), counted, "what was lost has been replaced");
}

/// To write beyond it ends a process that has not provided for it.
#[test]
fn a_limit_on_the_size_of_files_is_as_a_full_disk() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let goods = goods(&store, 3);
    let wrapper = ["prlimit", "--fsize=4000000", "--"];
    let server = settings(&store, cache.path()).through(&wrapper).start();
    for good in &goods {
        check(&server, good);
    }
    assert!(failures(&server) >= 1.0 && server.log().contains("File too large"), "{}", server.log());
    assert_eq!(server.get("/health").text(), "OK\n");
}

#[test]
fn a_full_disk_costs_nothing_but_time() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    // Together several times what the disk has room for.
    let goods = goods(&store, 6);
    let folder = cache.path().to_str().expect("the scratch folder's name is text");
    let script = r#"mount -t tmpfs -o size=8m none "$0" && exec "$@""#;
    let mut wrapper = vec!["unshare", "--mount"];
    if !support::is_root() {
        wrapper.extend(["--user", "--map-root-user"]);
    }
    wrapper.extend(["sh", "-c", script, folder]);
    let begun = Instant::now();
    let server = settings(&store, cache.path()).through(&wrapper).start();
    for _ in 0..2 {
        for good in &goods {
            check(&server, good);
        }
    }
    assert!(failures(&server) >= 1.0, "{}", server.log());
    let log = server.log();
    assert!((1..=may_tell(begun)).contains(&told(&server)) && log.contains("No space left"), "{log}");
    // A download that was cut goes on where it was, as it was told.
    for good in &goods {
        let url = offer(&server, &good.path).0;
        let whole = server.get(&url);
        assert_eq!(whole.header("accept-ranges"), Some("bytes"));
        let tag = whole.header("etag").expect("it has a tag").to_owned();
        let rest = server.connect().get_with(&url, &["Range: bytes=1000000-", &format!("If-Range: {tag}")]);
        assert_eq!(rest.status, 206, "{}", server.log());
        assert!(rest.body == whole.body[1_000_000..]);
        let head = server.connect().head(&url, &[]);
        assert_eq!((head.status, head.content_length()), (200, Some(whole.body.len() as u64)));
    }
    assert_eq!(server.get("/health").text(), "OK\n");
}

#[test]
fn a_folder_that_is_deleted_is_made_again() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let goods = goods(&store, 3);
    let folder = cache.path().join("folder");
    let begun = Instant::now();
    let server = settings(&store, &folder).start();
    let first = check(&server, &goods[0]);
    fs::remove_dir_all(&folder).expect("the cache is ours");
    for good in &goods {
        check(&server, good);
    }
    assert!(check(&server, &goods[0]) == first, "the same bytes behind the same URL");
    wait_until("the folder to be there again", LIMIT, || folder.join("lock").exists());
    // And in use: what is asked for is kept.
    wait_until("it to be kept", LIMIT, || {
        check(&server, &goods[1]);
        server.narinfo(&goods[1].path).contains("FileHash")
    });
    assert!(told(&server) <= may_tell(begun), "{}", server.log());
}

#[test]
fn without_the_right_to_write_a_url_of_before_still_works() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let goods = goods(&store, 1);
    let url = {
        let server = settings(&store, &cache.path().join("before")).start();
        offer(&server, &goods[0].path).0
    };
    // A file is in its way, for root as well.
    write(cache.path().join("file"), "");
    let server = settings(&store, &cache.path().join("file")).start();
    check(&server, &goods[0]);
    assert!(!offer(&server, &goods[0].path).1, "nothing is offered that cannot be kept");
    let file = server.get(&url);
    assert!(file.status == 200 && decompressed("zstd", &file.body) == goods[0].nar);
    assert_eq!(server.connect().get_with(&url, &["Range: bytes=1000-"]).status, 404);
    assert_eq!(server.log().matches("cache_dir: ").count(), 1, "{}", server.log());
}
