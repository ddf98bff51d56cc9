//! What it costs to read a tree of small files from the disk and from memory: one by one, by threads, and in batches
//! by io_uring. `docs/decisions/cold-files.md` says how to run it.
//!
//! No harness times it: before each pass the page cache is emptied, and each pass is long.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use harmonia::nar::{Cursor, Fetcher, Plan};

/// A name, and how a NAR is fetched.
type Way = (&'static str, fn(&Cursor) -> u64);

const WAYS: [Way; 5] = [
    ("one by one", |whole| fetch(whole.clone(), Fetcher::default())),
    ("io_uring, one ring", |whole| fetch(whole.clone(), Fetcher::batching())),
    ("4 threads", |whole| fetch_parts(whole, 4, Fetcher::default)),
    ("16 threads", |whole| fetch_parts(whole, 16, Fetcher::default)),
    ("4 rings", |whole| fetch_parts(whole, 4, Fetcher::batching)),
];

fn main() {
    // Under `cargo test` it is run once through, small.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (folders, files, passes) = if measured { (100, 100, 3) } else { (4, 20, 1) };
    // On the disk, where temporary files often are not.
    let program = std::env::current_exe().expect("this program");
    let folder = tempfile::tempdir_in(program.parent().expect("a folder")).expect("a scratch folder");
    let root = folder.path().join("tree");
    let bytes = tree(&root, folders, files);
    let plan = Arc::new(Plan::build(&root, false).expect("the tree was just made"));
    let whole = Cursor::new(plan, Arc::from(root.as_path()));
    let mut out = std::io::stdout();
    let _ = writeln!(
        out,
        "{} files, {} MB; wall and processor seconds, medians of {passes}",
        folders * files,
        bytes >> 20
    );
    for (state, drop) in [("cold", Some(&root)), ("contents cold, names warm", Some(&root)), ("warm", None)] {
        for (name, way) in WAYS {
            let mut taken: Vec<_> = (0..passes).map(|_| pass(&whole, way, drop, state == "cold")).collect();
            taken.sort();
            let (wall, cpu) = taken[passes / 2];
            let _ =
                writeln!(out, "{state:26} {name:20} {:7.3} {:7.3}", wall.as_secs_f64(), cpu.as_secs_f64());
        }
    }
}

fn tree(root: &Path, folders: usize, files: usize) -> usize {
    let mut bytes = 0;
    for folder in 0..folders {
        let folder = root.join(format!("folder-{folder}"));
        fs::create_dir_all(&folder).expect("the scratch folder is ours");
        for file in 0..files {
            // From nothing to 27 KB, 6.7 KB in the middle, as in a store.
            let contents = vec![b'x'; (file * file * 27_000) / (100 * 100).min(files * files)];
            bytes += contents.len();
            fs::write(folder.join(format!("file-{file}")), contents).expect("the scratch folder is ours");
        }
    }
    rustix::fs::sync();
    bytes
}

/// Wall and processor time of one pass.
fn pass(
    whole: &Cursor,
    way: fn(&Cursor) -> u64,
    drop: Option<&PathBuf>,
    names: bool,
) -> (Duration, Duration) {
    if let Some(root) = drop {
        forget(root, names);
    }
    let (begun, cpu) = (Instant::now(), cpu_time());
    assert_eq!(way(whole), whole.remaining());
    (begun.elapsed(), cpu_time() - cpu)
}

/// Has the system forget the contents of the files, and with `names` all that it knows of them.
fn forget(root: &Path, names: bool) {
    // Root alone may; others drop the contents file by file.
    let what = if names { "3" } else { "1" };
    if fs::write("/proc/sys/vm/drop_caches", what).is_ok() {
        return;
    }
    for folder in fs::read_dir(root).expect("it is there").flatten() {
        for file in fs::read_dir(folder.path()).expect("it is there").flatten() {
            let file = File::open(file.path()).expect("it is there");
            #[cfg(target_os = "linux")]
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            std::mem::drop(file);
        }
    }
}

fn cpu_time() -> Duration {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(usage.tv_sec.unsigned_abs(), usage.tv_nsec as u32)
}

fn fetch(mut cursor: Cursor, mut fetcher: Fetcher) -> u64 {
    let mut given = 0;
    while cursor.remaining() > 0 {
        let segments = cursor.fetch_with(&mut fetcher).expect("the tree is as it was made");
        given += segments.iter().map(harmonia::nar::Segment::len).sum::<u64>();
    }
    given
}

/// The NAR in so many parts, each by a thread of its own.
fn fetch_parts(whole: &Cursor, threads: u64, fetcher: fn() -> Fetcher) -> u64 {
    let size = whole.remaining();
    let part = |number: u64| {
        let mut cursor = whole.clone();
        cursor.set_range(number * size / threads, (number + 1) * size / threads);
        cursor
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let cursor = part(number);
                scope.spawn(move || fetch(cursor, fetcher()))
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
    })
}
