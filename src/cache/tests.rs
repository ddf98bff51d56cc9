//! The cache as a whole: in folders of its own, with volumes so small that they are evicted all the time.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::folder::Sizes;
use super::{Cache, CacheError, Frame, Key, ManifestKey};
use crate::formats::hash::Sha256;
use crate::limits::{CACHE_FRAME_MAX, CACHE_VOLUME_MIN};
use crate::metrics::CacheMetrics;
use crate::nar::Segment;

/// Four volumes of 64 KiB.
const SMALL: Sizes = Sizes { whole: 256 << 10, volume: 64 << 10 };

/// So large that nothing is evicted.
const LARGE: Sizes = Sizes { whole: 1 << 30, volume: 64 << 10 };

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

fn open(folder: &TempDir, sizes: Sizes) -> Cache {
    opened(folder.path(), sizes, Arc::default())
}

/// The cache in `folder`, which nobody else uses: but a program that another test is starting has the lock of one that
/// was open here, until it has become that program.
pub(super) fn opened(folder: &Path, sizes: Sizes, metrics: Arc<CacheMetrics>) -> Cache {
    for _ in 0..1000 {
        match Cache::open_with(folder, sizes, Arc::clone(&metrics)) {
            Err(CacheError::Locked { .. }) => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened.expect("the cache opens"),
        }
    }
    panic!("the cache stays locked")
}

/// A frame's bytes follow from its number.
fn bytes(number: u32) -> Vec<u8> {
    let mut bytes = vec![0; 500 + (number as usize * 7919) % 9000];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn key(number: u32) -> Key {
    Key::of("test", &bytes(number))
}

fn put(cache: &Cache, number: u32) -> Frame {
    cache.put(&key(number), &bytes(number)).expect("it can be kept")
}

fn read(segment: &Segment) -> Vec<u8> {
    let Segment::File { file, offset, len } = segment else { panic!("a range of a file: {segment:?}") };
    let mut bytes = vec![0; *len as usize];
    file.read_exact_at(&mut bytes, *offset).expect("it can be read");
    bytes
}

/// Whether the frame is there; if so, it has the right bytes.
fn has(cache: &Cache, number: u32) -> bool {
    let Some(frame) = cache.get(&key(number)).expect("the cache can be read") else { return false };
    let segment = frame.pin().expect("nothing is evicted meanwhile");
    assert_eq!(read(&segment), bytes(number), "frame {number}");
    true
}

fn volumes(folder: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.path()).expect("the folder can be read");
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let mut volumes: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "volume")).collect();
    volumes.sort();
    volumes
}

fn size_on_disk(folder: &TempDir) -> u64 {
    volumes(folder).iter().map(|path| fs::metadata(path).expect("it is there").len()).sum()
}

#[test]
fn what_is_put_can_be_had_now_and_by_the_next_process() {
    let folder = folder();
    let manifest = ManifestKey::of("test", &Sha256::of(b"a NAR"));
    let cache = open(&folder, LARGE);
    assert!(!has(&cache, 1));
    for number in 0..50 {
        let frame = put(&cache, number);
        assert_eq!(frame.len(), bytes(number).len() as u64);
        assert_eq!(read(&frame.pin().expect("it is there")), bytes(number));
    }
    assert_eq!(cache.manifest(&manifest).expect("readable"), None);
    cache.put_manifest(manifest, Bytes::from_static(b"first")).expect("kept");
    cache.put_manifest(manifest, Bytes::from_static(b"second")).expect("kept");
    assert_eq!(cache.manifest(&manifest).expect("readable").as_deref(), Some(&b"second"[..]));
    cache.sync().expect("written");
    assert_eq!(cache.manifest(&manifest).expect("readable").as_deref(), Some(&b"second"[..]));
    drop(cache);

    let cache = open(&folder, LARGE);
    assert!((0..50).all(|number| has(&cache, number)));
    assert!(!has(&cache, 50));
    assert_eq!(cache.manifest(&manifest).expect("readable").as_deref(), Some(&b"second"[..]));
    let contents = cache.contents().expect("readable");
    assert_eq!(contents.frames, 50);
    assert_eq!(contents.frame_bytes, (0..50).map(|number| bytes(number).len() as u64).sum::<u64>());
    assert_eq!(contents.volume_bytes, size_on_disk(&folder));
}

#[test]
fn the_same_frame_is_stored_once() {
    let folder = folder();
    let cache = open(&folder, LARGE);
    // Whether it is there already, or just being put by somebody else.
    for _ in 0..2 {
        let lens = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| put(&cache, 1).len())).collect();
            threads.into_iter().map(|thread| thread.join().expect("it is kept")).collect::<Vec<_>>()
        });
        assert_eq!(lens, [bytes(1).len() as u64; 4]);
        assert_eq!(cache.contents().expect("readable").frames, 1);
    }
    let size = size_on_disk(&folder);
    drop(cache);
    put(&open(&folder, LARGE), 1);
    assert_eq!(size_on_disk(&folder), size);
}

#[test]
fn a_frame_is_neither_empty_nor_too_long() {
    let folder = folder();
    let cache = open(&folder, LARGE);
    for len in [0, CACHE_FRAME_MAX + 1] {
        let error = cache.put(&Key::of("test", b""), &vec![0; len]).expect_err("not a frame");
        assert!(matches!(error, CacheError::FrameSize { len: found } if found == len));
    }
}

#[test]
fn the_oldest_are_evicted_and_the_bound_is_kept() {
    let folder = folder();
    let cache = open(&folder, SMALL);
    for number in 0..500 {
        put(&cache, number);
        assert!(size_on_disk(&folder) <= SMALL.whole, "after frame {number}");
    }
    assert!(has(&cache, 499) && !has(&cache, 0));
    let present = (0..500).filter(|number| has(&cache, *number)).count();
    assert!(present >= 25, "three volumes and more are full: {present}");
    assert_eq!(cache.contents().expect("readable").frames, present as u64);
    drop(cache);
    // A lower bound holds from the start, and for what comes.
    for (part, sizes) in [2, 4].map(|part| (part, Sizes { whole: SMALL.whole / part, ..SMALL })) {
        let cache = open(&folder, sizes);
        assert!(has(&cache, 499), "a {part}th is left");
        assert!(size_on_disk(&folder) <= sizes.whole);
        put(&cache, 499);
        assert!(size_on_disk(&folder) <= sizes.whole);
    }
    let tiny = Sizes { whole: 40 << 10, volume: 20 << 10 };
    let cache = open(&folder, tiny);
    for number in 1000..1100 {
        put(&cache, number);
        assert!(size_on_disk(&folder) <= tiny.whole, "after frame {number}");
    }
}

#[test]
fn what_is_used_stays_and_what_is_not_goes() {
    let folder = folder();
    let metrics = Arc::<CacheMetrics>::default();
    let cache = opened(folder.path(), SMALL, Arc::clone(&metrics));
    put(&cache, 0);
    put(&cache, 1);
    for number in 2..500 {
        put(&cache, number);
        assert!(has(&cache, 0), "after frame {number}");
    }
    assert!(!has(&cache, 1));
    for number in 500..1000 {
        put(&cache, number);
    }
    assert!(!has(&cache, 0), "once it is not used any more, it goes");
    let (evicted, carried) = metrics.counted();
    assert_eq!(evicted + cache.contents().expect("readable").frames, 1000);
    assert!(carried > 0 && carried < evicted);
}

#[test]
fn a_cache_of_which_everything_is_used_still_makes_room() {
    let folder = folder();
    let cache = open(&folder, SMALL);
    for number in 0..500 {
        put(&cache, number);
        for number in 0..=number {
            has(&cache, number);
        }
        assert!(size_on_disk(&folder) <= SMALL.whole);
    }
    assert!(has(&cache, 499));
}

/// Which frames are asked for: popular ones by Zipf's law, and now and then a run of frames that nobody asks for again,
/// as when a whole store is copied. Each is a number, of which key, bytes and size follow.
fn trace(exponent: f64, len: usize) -> Vec<u32> {
    const POPULAR: u32 = 8_000;
    let mut weights: Vec<f64> = (1..=POPULAR).map(|rank| f64::from(rank).powf(-exponent)).collect();
    let whole: f64 = weights.iter().sum();
    let mut sum = 0.0;
    weights.iter_mut().for_each(|weight| {
        sum += *weight / whole;
        *weight = sum;
    });
    let mut random = blake3::Hasher::new().update(&exponent.to_le_bytes()).finalize_xof();
    let mut fraction = || {
        let mut bytes = [0; 4];
        random.fill(&mut bytes);
        f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
    };
    let (mut trace, mut once) = (Vec::new(), POPULAR);
    while trace.len() < len {
        if trace.len() % 10_000 == 5_000 {
            trace.extend(once..once + 1_000);
            once += 1_000;
        }
        trace.push(weights.partition_point(|weight| *weight < fraction()) as u32);
    }
    trace
}

fn short(number: u32) -> Vec<u8> {
    let mut bytes = vec![0; 200 + (number as usize * 7919) % 1200];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The share of what is asked for that is there.
fn hit_ratio(trace: &[u32], sizes: Sizes) -> f64 {
    let folder = folder();
    let cache = open(&folder, sizes);
    let mut hits = 0;
    for number in trace {
        let bytes = short(*number);
        let key = Key::of("trace", &bytes);
        match cache.get(&key).expect("readable") {
            Some(frame) => hits += usize::from(frame.pin().is_some()),
            None => drop(cache.put(&key, &bytes).expect("kept")),
        }
    }
    hits as f64 / trace.len() as f64
}

/// The same of a cache that evicts what was asked for the longest ago; without use, of one that evicts what was put
/// the longest ago.
fn model(trace: &[u32], room: u64, minds_use: bool) -> f64 {
    let (mut held, mut order) = (std::collections::HashMap::new(), std::collections::BTreeMap::new());
    let (mut bytes, mut hits) = (0, 0);
    for (now, number) in trace.iter().enumerate() {
        if let Some(then) = held.get_mut(number) {
            hits += 1;
            if minds_use {
                order.remove(then);
                order.insert(now, *number);
                *then = now;
            }
            continue;
        }
        held.insert(*number, now);
        order.insert(now, *number);
        bytes += short(*number).len() as u64 + 64;
        while bytes > room {
            let (_, oldest) = order.pop_first().expect("it holds something");
            held.remove(&oldest);
            bytes -= short(oldest).len() as u64 + 64;
        }
    }
    hits as f64 / trace.len() as f64
}

/// docs/decisions/eviction.md has the figures, which this prints.
#[test]
fn eviction_keeps_up_with_least_recently_used() {
    // A quarter as many volumes as a real cache has: each costs a disk's time here.
    let sizes = Sizes { whole: 2 << 20, volume: 128 << 10 };
    for exponent in [0.7, 0.9, 1.1] {
        let trace = trace(exponent, 60_000);
        let ours = hit_ratio(&trace, sizes);
        let (lru, fifo) = (model(&trace, sizes.whole, true), model(&trace, sizes.whole, false));
        let told = format!("Zipf {exponent}: {ours:.3}, LRU {lru:.3}, FIFO {fifo:.3}");
        writeln!(std::io::stderr(), "{told}").expect("the test's output");
        assert!(ours > lru - 0.03 && ours > fifo, "{told}");
    }
}

#[test]
fn a_pinned_frame_outlives_its_volume() {
    let folder = folder();
    let cache = open(&folder, SMALL);
    let frame = put(&cache, 0);
    let other = put(&cache, 1);
    let pinned = frame.pin().expect("it is there");
    for number in 2..1000 {
        put(&cache, number);
    }
    assert!(other.pin().is_none() && frame.pin().is_none(), "evicted, or lies elsewhere");
    assert_eq!(read(&pinned), bytes(0));
}

#[test]
fn many_threads_at_once() {
    let folder = folder();
    let cache = open(&folder, SMALL);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0..400 {
                    // Now the same as the others, now something else.
                    let number = (round * (thread % 2 + 1)) % 150;
                    let segment = put(cache, number).pin();
                    let found = cache.get(&key(number)).expect("readable").and_then(|frame| frame.pin());
                    for segment in segment.iter().chain(&found) {
                        assert_eq!(read(segment), bytes(number));
                    }
                }
            });
        }
    });
    assert!(size_on_disk(&folder) <= SMALL.whole);
    let contents = cache.contents();
    drop(cache);
    let reopened = open(&folder, SMALL);
    assert!(reopened.contents().expect("readable").frames >= contents.expect("readable").frames);
}

/// Overwrites bytes of a file.
fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("it is there");
    file.write_all_at(bytes, offset).expect("it can be written");
}

#[test]
fn a_damaged_frame_is_told_once_and_made_again() {
    let folder = folder();
    let cache = open(&folder, LARGE);
    let numbers = 0..8;
    for number in numbers.clone() {
        put(&cache, number);
    }
    drop(cache);
    // One byte in the middle of the first frame.
    overwrite(&volumes(&folder)[0], 64 + 64 + 100, &[bytes(0)[100] ^ 1]);
    let cache = open(&folder, LARGE);
    let error = cache.get(&key(0)).expect_err("it is damaged");
    assert!(matches!(error, CacheError::Damaged { offset: 128, .. }), "{error}");
    assert!(!has(&cache, 0));
    assert!(numbers.clone().skip(1).all(|number| has(&cache, number)));
    put(&cache, 0);
    assert!(has(&cache, 0));
    drop(cache);
    let cache = open(&folder, LARGE);
    assert!(numbers.clone().all(|number| has(&cache, number)));
}

#[cfg(target_os = "linux")]
#[test]
fn a_volume_that_somebody_wrote_to_is_given_up_and_its_frames_made_again() {
    for is_last in [true, false] {
        let folder = folder();
        let cache = open(&folder, LARGE);
        let frames: Vec<Frame> = (0..60).map(|number| put(&cache, number)).collect();
        let paths = volumes(&folder);
        assert!(paths.len() >= 3);
        assert!(frames.iter().all(|frame| frame.pin().is_some()), "what was written here is as it was");
        let path = if is_last { paths.last() } else { paths.first() }.expect("there are some");
        std::thread::sleep(Duration::from_millis(20));
        overwrite(path, 200, b"something else");
        let gone = frames.iter().filter(|frame| frame.pin().is_none()).count();
        assert!(gone > 0 && gone < 40, "{gone} frames of one volume");
        let told = (0..60).filter(|&number| cache.get(&key(number)).is_err()).count();
        assert_eq!(told, 1, "told {told} times");
        assert_eq!((0..60).filter(|&number| !has(&cache, number)).count(), gone);
        (0..60).for_each(|number| drop(put(&cache, number)));
        assert!((0..60).all(|number| has(&cache, number)));
    }
}

#[test]
fn a_volume_that_is_cut_is_given_up_and_its_frames_made_again() {
    for is_last in [true, false] {
        let folder = folder();
        let cache = open(&folder, LARGE);
        let frames: Vec<Frame> = (0..60).map(|number| put(&cache, number)).collect();
        let paths = volumes(&folder);
        assert!(paths.len() >= 3);
        let path = if is_last { paths.last() } else { paths.first() }.expect("there are some");
        let cut = File::options().write(true).open(path).expect("it is there");
        let len = cut.metadata().expect("it is open").len();
        cut.set_len(len / 2).expect("cut");
        let gone = frames.iter().filter(|frame| frame.pin().is_none()).count();
        assert!(gone > 0 && gone < 40, "{gone} frames of one volume");
        // Written to as if nothing had happened, it would be as long as before.
        (60..70).for_each(|number| drop(put(&cache, number)));
        let told = (0..60).filter(|&number| cache.get(&key(number)).is_err()).count();
        assert!(told <= 1, "told {told} times");
        assert_eq!((0..60).filter(|&number| !has(&cache, number)).count(), gone);
        (0..60).for_each(|number| drop(put(&cache, number)));
        assert!((0..70).all(|number| has(&cache, number)));
        drop(cache);
        let cache = open(&folder, LARGE);
        assert!((0..70).all(|number| has(&cache, number)));
    }
}

#[test]
fn a_volume_of_which_only_the_inventory_knows_is_in_nobodys_way() {
    let folder = folder();
    let cache = open(&folder, LARGE);
    put(&cache, 0);
    cache.sync().expect("written");
    // As it is left where its file could be removed and its row could not.
    let inventory = rusqlite::Connection::open(folder.path().join("inventory.sqlite")).expect("open");
    inventory.execute("insert into volumes values (1, 100)", []).expect("inserted");
    let gone = key(9);
    let row = rusqlite::params![gone.as_bytes(), 1, 128, 1000];
    inventory.execute("insert into frames values (?1, ?2, ?3, ?4)", row).expect("inserted");
    (1..60).for_each(|number| drop(put(&cache, number)));
    assert!((0..60).all(|number| has(&cache, number)));
}

/// What may happen to the files of a cache that nobody has open.
type Harm = fn(&TempDir);

/// None of the frames' volumes, and all of them, stay usable after these.
const HARMS: [(&str, Harm, bool); 7] = [
    ("the inventory is gone", |folder| remove_inventory(folder), true),
    (
        "the inventory is not a database",
        |folder| {
            remove_inventory(folder);
            fs::write(folder.path().join("inventory.sqlite"), [b'x'; 10_000]).expect("written");
        },
        true,
    ),
    (
        "the inventory is of another version",
        |folder| {
            let connection = rusqlite::Connection::open(folder.path().join("inventory.sqlite"));
            connection.expect("open").pragma_update(None, "user_version", 77).expect("written");
        },
        true,
    ),
    (
        "a write was torn",
        |folder| {
            let last = volumes(folder).pop().expect("a volume");
            let end = fs::metadata(&last).expect("it is there").len();
            overwrite(&last, end, &[7; 5000]);
        },
        true,
    ),
    ("a volume is gone", |folder| fs::remove_file(&volumes(folder)[0]).expect("removed"), false),
    (
        "a volume is cut short",
        |folder| {
            let file = File::options().write(true).open(&volumes(folder)[0]).expect("open");
            file.set_len(10_000).expect("cut");
        },
        false,
    ),
    ("a volume has lost its header", |folder| overwrite(&volumes(folder)[0], 10, &[0; 10]), false),
];

fn remove_inventory(folder: &TempDir) {
    for name in ["inventory.sqlite", "inventory.sqlite-wal", "inventory.sqlite-shm"] {
        let _ = fs::remove_file(folder.path().join(name));
    }
}

#[test]
fn whatever_happens_to_the_files_no_byte_is_wrong() {
    for (what, harm, keeps_all) in HARMS {
        let folder = folder();
        let cache = open(&folder, LARGE);
        (0..60).for_each(|number| drop(put(&cache, number)));
        drop(cache);
        harm(&folder);
        let cache = open(&folder, LARGE);
        let kept = (0..60).filter(|&number| match cache.get(&key(number)) {
            Ok(None) => false,
            Ok(Some(frame)) => read(&frame.pin().expect(what)) == bytes(number) || panic!("{what}: {number}"),
            Err(CacheError::Damaged { .. }) => false,
            Err(error) => panic!("{what}: {error}"),
        });
        let kept = kept.count();
        assert!(if keeps_all { kept == 60 } else { (40..60).contains(&kept) }, "{what}: {kept} kept");
        (0..60).for_each(|number| drop(put(&cache, number)));
        assert!((0..60).all(|number| has(&cache, number)), "{what}");
        drop(cache);
        let cache = open(&folder, LARGE);
        assert!((0..60).all(|number| has(&cache, number)), "{what}");
    }
}

#[test]
fn bytes_that_look_like_a_record_are_not_taken_for_one() {
    let folder = folder();
    let cache = open(&folder, LARGE);
    put(&cache, 0);
    let volume = volumes(&folder).remove(0);
    let record_and_frame = fs::read(&volume).expect("readable").split_off(64);
    drop(cache);
    // The same bytes in another volume, where a torn write might have left them.
    let other = super::tests::folder();
    let cache = open(&other, LARGE);
    put(&cache, 1);
    drop(cache);
    let path = volumes(&other).remove(0);
    let end = fs::metadata(&path).expect("it is there").len();
    overwrite(&path, end, &record_and_frame);
    let cache = open(&other, LARGE);
    assert!(has(&cache, 1) && !has(&cache, 0));
    assert_eq!(size_on_disk(&other), end, "it was cut off");
}

/// 20 GB of volumes, all but one with nothing but holes, and 100,000 frames.
/// The bytes that this process has read until now, from wherever.
#[cfg(target_os = "linux")]
fn bytes_read() -> u64 {
    let account = fs::read_to_string("/proc/self/io").expect("it is one's own");
    let read = account.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.and_then(|read| read.parse().ok()).expect("a number")
}

/// What is read is told for a process as a whole, so this is one of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_large_cache_is_opened_without_reading_it() {
    const VOLUMES: i64 = 63;
    const LEN: i64 = 320 << 20;
    let len = LEN.unsigned_abs();
    let sizes = Sizes { whole: 64 * len, volume: len };
    if let Some(folder) = std::env::var_os(PART) {
        let before = bytes_read();
        let cache = opened(Path::new(&folder), sizes, Arc::default());
        assert!(has(&cache, 1));
        let read = bytes_read() - before;
        // Of 20 GB in volumes, and of 10 MB that say what lies where.
        assert!(read < 1 << 20, "{read} bytes were read to have one frame");
        return;
    }
    let folder = folder();
    put(&open(&folder, sizes), 1);
    let header = fs::read(&volumes(&folder)[0]).expect("readable")[..64].to_vec();
    let inventory = rusqlite::Connection::open(folder.path().join("inventory.sqlite")).expect("open");
    inventory.execute_batch("begin").expect("begun");
    for volume in 1..=VOLUMES {
        let file = File::create(folder.path().join(format!("{volume:08}.volume"))).expect("made");
        file.write_all_at(&header, 0).expect("written");
        file.set_len(len).expect("grown");
        inventory.execute("insert into volumes values (?1, ?2)", [volume, LEN]).expect("inserted");
        for number in 0..1600i64 {
            let key = blake3::hash(&(volume << 32 | number).to_le_bytes());
            let row = rusqlite::params![key.as_bytes(), volume, 128 + number * 200_000, 199_000];
            inventory.execute("insert into frames values (?1, ?2, ?3, ?4)", row).expect("inserted");
        }
    }
    inventory.execute_batch("commit").expect("written");
    drop(inventory);
    let size = fs::metadata(folder.path().join("inventory.sqlite")).expect("it is there").len();
    assert!(size > 5 << 20, "an inventory of {size} bytes may be read without anybody noticing");
    let name = "a_large_cache_is_opened_without_reading_it";
    let output = in_a_process(Command::new("env"), name, &folder).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let cache = open(&folder, sizes);
    let contents = cache.contents().expect("readable");
    assert_eq!((contents.frames, contents.volumes), (1600 * 63 + 1, 64));
    // What is made up is not what the volumes hold.
    let made_up = Key::from_bytes(blake3::hash(&(1i64 << 32).to_le_bytes()).into());
    assert!(matches!(cache.get(&made_up), Err(CacheError::Damaged { .. })));
}

#[test]
fn a_deleted_folder_costs_no_more_than_the_cache() {
    let folder = folder();
    let cache = open(&folder, SMALL);
    put(&cache, 0);
    fs::remove_dir_all(folder.path()).expect("removed");
    assert!(has(&cache, 0), "it is still open");
    let refused = (1..200).filter(|&number| cache.put(&key(number), &bytes(number)).is_err()).count();
    assert!(refused > 0, "there is no folder for another volume");
    assert!(has(&cache, 0));
    cache.look().expect("there is room");
    for number in 0..200 {
        assert!(!has(&cache, number));
        put(&cache, number);
    }
    cache.look().expect("nothing has happened");
    cache.sync().expect("writable");
    let kept = (0..200).filter(|&number| has(&cache, number)).count();
    drop(cache);
    let again = open(&folder, SMALL);
    assert_eq!((0..200).filter(|&number| has(&again, number)).count(), kept);
}

#[test]
fn a_folder_that_another_has_taken_is_left_to_it() {
    let folder = folder();
    let first = open(&folder, SMALL);
    put(&first, 0);
    fs::remove_dir_all(folder.path()).expect("removed");
    let second = open(&folder, SMALL);
    put(&second, 1);
    second.sync().expect("writable");
    assert!(matches!(first.look(), Err(CacheError::Locked { .. })));
    drop(first);
    put(&second, 2);
    drop(second);
    let third = open(&folder, SMALL);
    assert!(has(&third, 1) && has(&third, 2) && !has(&third, 0));
}

#[test]
fn what_cannot_be_a_cache_is_an_error_that_says_so() {
    let folder = folder();
    let _cache = open(&folder, LARGE);
    let error = Cache::open_with(folder.path(), LARGE, Arc::default()).expect_err("in use");
    assert!(matches!(error, CacheError::Locked { .. }));
    let error =
        Cache::open(&folder.path().join("other"), CACHE_VOLUME_MIN, Arc::default()).expect_err("too small");
    assert!(matches!(error, CacheError::TooSmall { .. }));
    fs::write(folder.path().join("file"), "").expect("written");
    let error =
        Cache::open_with(&folder.path().join("file/below"), LARGE, Arc::default()).expect_err("not a folder");
    assert!(matches!(error, CacheError::File { doing: "create", .. }), "{error}");
}

/// Set in the processes that the tests below start: the folder in which to do their part.
const PART: &str = "HARMONIA_TEST_CACHE_FOLDER";

/// Set too: which process of several it is.
const ROUND: &str = "HARMONIA_TEST_CACHE_ROUND";

/// This test in a process of its own, which finds [`PART`] set.
fn in_a_process(mut command: Command, test: &str, folder: &TempDir) -> Command {
    command.arg(std::env::current_exe().expect("its own file"));
    command.args([&format!("{}::{test}", module_path!().split_once("::").expect("a module").1), "--exact"]);
    command.args(["--nocapture", "--test-threads=1"]).env(PART, folder.path());
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

/// The first frame of a process that is going to be killed; the others count on from it.
fn first_of(round: u32) -> u32 {
    round * 100_000
}

fn manifest(number: u32) -> ManifestKey {
    ManifestKey::of("test", &Sha256::of(&number.to_le_bytes()))
}

/// Puts frames for ever, some of them again, uses some, and says after which a sync has ended.
fn put_for_ever(folder: &Path) -> ! {
    let cache = opened(folder, SMALL, Arc::default());
    let round = std::env::var(ROUND).expect("set").parse().expect("a number");
    for number in first_of(round).. {
        put(&cache, number);
        put(&cache, number - number % 7);
        if number % 3 == 0 {
            drop(cache.get(&key(number - number % 10)).expect("readable").and_then(|frame| frame.pin()));
        }
        cache.put_manifest(manifest(number), bytes(number).into()).expect("kept");
        if number % 10 == 9 {
            cache.sync().expect("written");
            writeln!(std::io::stdout(), "synced {number}").expect("the parent reads");
        }
    }
    unreachable!("it is killed")
}

#[test]
fn killed_at_any_moment_it_serves_nothing_wrong() {
    if let Some(folder) = std::env::var_os(PART) {
        put_for_ever(Path::new(&folder));
    }
    let folder = folder();
    let name = "killed_at_any_moment_it_serves_nothing_wrong";
    for round in 0..30u32 {
        let mut command = in_a_process(Command::new("env"), name, &folder);
        let mut child = command.env(ROUND, round.to_string()).spawn().expect("it starts");
        let mut synced = BufReader::new(child.stdout.take().expect("piped"))
            .lines()
            .filter_map(|line| line.ok()?.rsplit_once("synced ")?.1.parse::<u32>().ok());
        let first = synced.next().expect("it gets as far as a sync");
        // Anywhere in what it does: a few milliseconds are an eviction.
        std::thread::sleep(Duration::from_micros(u64::from(round * round * 97 % 50_000)));
        child.kill().expect("it was running");
        child.wait().expect("it ends");
        let last = synced.last().unwrap_or(first);

        let cache = open(&folder, SMALL);
        assert!(has(&cache, last), "round {round}: what was synced last is there");
        assert_eq!(cache.manifest(&manifest(last)).expect("readable"), Some(bytes(last).into()));
        // What was evicted, what is there, and what was under way.
        let present = (first_of(round)..last + 20).filter(|&number| has(&cache, number)).count();
        assert!(present >= 10, "round {round}: {present} frames up to {last}");
        for number in first_of(round)..last + 20 {
            let found = cache.manifest(&manifest(number)).expect("readable");
            assert!(found.is_none_or(|body| body == bytes(number)));
        }
        assert!(size_on_disk(&folder) <= SMALL.whole, "round {round}");
    }
}

#[test]
fn a_full_disk_is_an_error_and_what_is_there_stays_usable() {
    let name = "a_full_disk_is_an_error_and_what_is_there_stays_usable";
    if let Some(folder) = std::env::var_os(PART) {
        return fill_up(Path::new(&folder));
    }
    let folder = folder();
    // No file may grow beyond 32 blocks of 1 KiB: half a volume. Ignored, the signal becomes an error.
    let mut shell = Command::new("bash");
    shell.args(["-c", r#"trap '' XFSZ; ulimit -f 32; exec "$@""#, "bash"]);
    let output = in_a_process(shell, name, &folder).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // With room again, all goes on.
    let cache = open(&folder, SMALL);
    (0..100).for_each(|number| drop(put(&cache, number)));
    assert!(has(&cache, 99));
}

fn fill_up(folder: &Path) {
    let cache = opened(folder, SMALL, Arc::default());
    let mut kept = Vec::new();
    let mut refused = 0;
    for number in 0..200 {
        match cache.put(&key(number), &bytes(number)) {
            Ok(_) => kept.push(number),
            Err(CacheError::File { doing: "write", .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0 && !kept.is_empty(), "{refused} refused, {} kept", kept.len());
    assert!(kept.iter().all(|number| has(&cache, *number)));
}
