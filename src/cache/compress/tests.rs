//! Compressing real trees, as workers ask for it. The programs `zstd` and `xz` are the witnesses.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::cache::actor::{Actor, Answer, Request, When};
use crate::cache::encode::Format;
use crate::cache::folder::Sizes;
use crate::cache::tests::opened;
use crate::cache::{Interest, Stream, Tree};
use crate::limits::COMPRESSING_OPEN;
use crate::mailbox::{Outlet, Ticket};
use crate::nar::{CASE_HACK, NarError, Pack, Plan, Reader};

const ZSTD: fn() -> Encoding = || Encoding::new(Format::Zstd, 3);

/// So large that nothing is evicted.
const LARGE: Sizes = Sizes { whole: 1 << 30, volume: 64 << 20 };

/// A compressor, its actor, and the answers.
struct Bench {
    actor: Actor,
    answers: mpsc::Receiver<(Ticket, Answer)>,
    compressor: Compressor,
    metrics: Arc<CompressMetrics>,
    threads: Vec<JoinHandle<()>>,
    folder: TempDir,
}

impl Bench {
    fn new(threads: usize, sizes: Sizes) -> Self {
        Self::within(tempfile::tempdir().expect("a folder"), threads, sizes)
    }

    fn within(folder: TempDir, threads: usize, sizes: Sizes) -> Self {
        let cache = Arc::new(opened(&folder.path().join("cache"), sizes, Arc::default()));
        let metrics = Arc::<CompressMetrics>::default();
        let compressor = Compressor::new(Some(cache), None, Arc::clone(&metrics));
        let threads = compressor.spawn(threads).expect("threads");
        let (sender, answers) = mpsc::channel();
        let sender = Mutex::new(sender);
        let outlet = Outlet::new(move |ticket, answer| {
            let _ = sender.lock().expect("no test panics while it holds this").send((ticket, answer));
        });
        Self { actor: Actor::new(compressor.clone(), outlet), answers, compressor, metrics, threads, folder }
    }

    /// Ends it; its folder stays.
    fn end(self) -> TempDir {
        self.compressor.end();
        for thread in self.threads {
            thread.join().expect("it ends by itself");
        }
        self.folder
    }

    fn ask(&self, request: Request) -> Answer {
        self.actor.handle(request);
        self.answers.recv_timeout(Duration::from_secs(120)).expect("an answer").1
    }

    fn open(&self, tree: &Made, encoding: Encoding, when: When) -> Result<Stream, CompressError> {
        match self.ask(Request::Open { ticket: TICKET, wanted: tree.wanted(encoding), when }) {
            Answer::Opened(stream) => stream,
            other => panic!("{other:?}"),
        }
    }

    /// All that is left of a stream.
    fn read(&self, mut stream: Stream) -> Result<Vec<u8>, Box<(Vec<u8>, CompressError)>> {
        let mut bytes: Vec<u8> = stream.take_ready().iter().flat_map(bytes_of).collect();
        loop {
            let answer = self.ask(Request::Fetch { ticket: TICKET, stream });
            let Answer::Fetched { stream: moved, segments } = answer else { panic!("{answer:?}") };
            stream = moved;
            match segments {
                Ok(segments) if segments.is_empty() => return Ok(bytes),
                Ok(segments) => segments.iter().for_each(|segment| bytes.extend(bytes_of(segment))),
                Err(error) => return Err(Box::new((bytes, error))),
            }
        }
    }

    /// Compresses a tree for a client that comes first.
    fn compress(&self, tree: &Made, encoding: Encoding) -> Vec<u8> {
        self.read(self.open(tree, encoding, When::Begun).expect("begun")).expect("compressed")
    }

    fn cache(&self) -> &Cache {
        self.compressor.cache().expect("it has one")
    }

    /// How many bytes of NARs were compressed so far.
    fn compressed(&self) -> u64 {
        self.metrics.plain_bytes()
    }
}

const TICKET: Ticket = Ticket { worker: 0, slot: 0, serial: 0 };

fn bytes_of(segment: &Segment) -> Vec<u8> {
    match segment {
        Segment::Bytes(bytes) => bytes.to_vec(),
        Segment::File { file, offset, len } => {
            let mut bytes = vec![0; *len as usize];
            file.read_exact_at(&mut bytes, *offset).expect("it stays readable");
            bytes
        }
    }
}

/// A tree to be compressed, and its NAR.
struct Made {
    _folder: TempDir,
    root: PathBuf,
    nar: Vec<u8>,
}

impl Made {
    /// Text of 9 MB, noise of 6 MB, and some small files, one of 1 MB that follows from `seed`.
    fn new(seed: u8) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("tree");
        fs::create_dir_all(root.join("share/doc")).expect("made");
        let text: String = (0..400_000u64).map(|line| format!("{} a line of text\n", line * line)).collect();
        let write = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).expect("written");
        write("share/text", text.as_bytes());
        write("library", &noise(1, 6_000_000));
        write("changing", &noise(seed, 1_000_000));
        for number in 0..300u32 {
            write(&format!("share/doc/{number}"), &text.as_bytes()[..number as usize * 40]);
        }
        Self::of(folder, root)
    }

    fn of(folder: TempDir, root: PathBuf) -> Self {
        let nar = dump(&root);
        Self { _folder: folder, root, nar }
    }

    fn wanted(&self, encoding: Encoding) -> Wanted {
        let plan = Arc::new(Plan::build(&self.root, CASE_HACK).expect("readable"));
        let path = StorePath::from_basename("00000000000000000000000000000000-tree").expect("a store path");
        let nar = Cursor::new(plan, Arc::from(&*self.root));
        Wanted { path, nar_hash: self.nar_hash(), nar, encoding, by: waits() }
    }

    fn nar_hash(&self) -> Sha256 {
        Sha256::of(&self.nar)
    }
}

/// Somebody who never gives up.
fn waits() -> Option<Weak<Interest>> {
    static PATIENT: LazyLock<Arc<Interest>> = LazyLock::new(Arc::default);
    Some(Arc::downgrade(&PATIENT))
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn dump(root: &Path) -> Vec<u8> {
    let plan = Arc::new(Plan::build(root, CASE_HACK).expect("readable"));
    let mut nar = vec![0; plan.size() as usize];
    let mut reader = Reader::new(Cursor::new(plan, Arc::from(root)));
    std::io::Read::read_exact(&mut reader, &mut nar).expect("readable");
    nar
}

/// What a program decompresses `file` to.
fn decompressed(program: &str, file: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("scripts/test installs it");
    let mut stdin = child.stdin.take().expect("piped");
    let file = file.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&file));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads all");
    assert!(output.status.success(), "{program}");
    output.stdout
}

#[test]
fn a_nar_is_compressed_once_whole_and_the_same_each_time() {
    let tree = Made::new(0);
    for (encoding, program) in [(ZSTD(), "zstd"), (Encoding::new(Format::Xz, 0), "xz")] {
        let bench = Bench::new(2, LARGE);
        assert!(bench.compressor.find(&encoding.to_string(), &tree.nar_hash()).expect("readable").is_none());
        let file = bench.compress(&tree, encoding);
        assert!(decompressed(program, &file) == tree.nar, "{encoding}");
        let once = bench.compressed();
        assert_eq!(once, tree.nar.len() as u64);

        let again = bench.open(&tree, encoding, When::Done).expect("it is there");
        let manifest = Arc::clone(again.manifest().expect("all of it is known"));
        assert_eq!(manifest.file_hash(), Sha256::of(&file));
        assert_eq!(manifest.file_size(), file.len() as u64);
        assert_eq!(manifest.nar_size(), tree.nar.len() as u64);
        assert!(bench.read(again).expect("readable") == file);
        assert_eq!(bench.compressed(), once);

        // By another process, without the tree, and with as many threads as there are chunks.
        let bench = Bench::within(bench.end(), 6, LARGE);
        let found = bench.compressor.find(&encoding.to_string(), &tree.nar_hash()).expect("readable");
        let stream = Stream::whole(found.expect("kept"), None, Tree::Root(Path::new("/nowhere").into()));
        assert!(bench.read(stream).expect("readable") == file);
        assert!(bench.compress(&tree, encoding) == file);
        let elsewhere = Bench::new(6, LARGE);
        assert!(elsewhere.compress(&tree, encoding) == file, "{encoding}: bytes follow from the NAR");
    }
}

#[test]
fn ranges_are_parts_of_the_whole() {
    let (bench, tree) = (Bench::new(2, LARGE), Made::new(0));
    let file = bench.compress(&tree, ZSTD());
    let ends: Vec<u64> = {
        let stream = bench.open(&tree, ZSTD(), When::Done).expect("there");
        stream.manifest().expect("known").parts().iter().map(|part| part.file_end).collect()
    };
    assert!(ends.len() >= 4);
    let len = file.len() as u64;
    let at_edges = ends.iter().flat_map(|&end| [(end - 1, end), (end - 1, end + 1), (end, len)]);
    for (start, end) in at_edges.chain([(0, 1), (0, len), (5, 5), (1, len - 1), (len - 1, len), (len, len)]) {
        let (start, end) = (start.min(len), end.min(len));
        let mut stream = bench.open(&tree, ZSTD(), When::Done).expect("there");
        stream.set_range(start, end);
        assert_eq!(stream.left(), Some(end - start));
        let part = bench.read(stream).expect("readable");
        assert!(part == file[start as usize..end as usize], "{start}..{end}");
    }
}

#[test]
fn who_finds_a_file_has_its_first_frames_with_it() {
    let (bench, tree) = (Bench::new(2, LARGE), Made::new(0));
    let file = bench.compress(&tree, ZSTD());
    let len = file.len() as u64;
    let find = |first| {
        let (encoding, root) = (ZSTD().to_string(), Arc::from(&*tree.root));
        let nar_hash = tree.nar_hash();
        match bench.ask(Request::Find { ticket: TICKET, encoding, nar_hash, root, first }) {
            Answer::Found(Some(stream)) => stream,
            other => panic!("{other:?}"),
        }
    };
    let given = |stream: &mut Stream| -> Vec<u8> { stream.take_ready().iter().flat_map(bytes_of).collect() };
    assert!(find(None).take_ready().is_empty());
    // All are known: there is nothing left to ask for.
    let mut stream = find(Some((0, u64::MAX)));
    assert_eq!((stream.left(), stream.file_size()), (Some(len), Some(len)));
    stream.set_range(0, len);
    assert!(given(&mut stream) == file && stream.left() == Some(0));
    for (start, end) in [(0, 1), (5, len), (1_000_000, 6_000_000), (len - 1, u64::MAX), (len, u64::MAX)] {
        let mut stream = find(Some((start, end)));
        let end = end.min(len);
        stream.set_range(start, end);
        assert_eq!(stream.left(), Some(end - start));
        assert!(given(&mut stream) == file[start as usize..end as usize], "{start}..{end}");
        assert_eq!(stream.left(), Some(0));
        // Where another range is sent than was foreseen, that is right, too.
        let mut stream = find(Some((start, end)));
        stream.set_range(3, 700_000);
        assert!(bench.read(stream).expect("readable") == file[3..700_000]);
    }
    // In the next process, one frame is read and checked, and the others are when they are asked for.
    let bench = Bench::within(bench.end(), 0, LARGE);
    let found = bench.compressor.find(&ZSTD().to_string(), &tree.nar_hash()).expect("readable");
    let manifest = found.expect("the manifest is kept");
    let tree = Tree::Root(Path::new("/nowhere").into());
    let mut stream = Stream::whole(Arc::clone(&manifest), None, tree);
    stream.fetch_first(&bench.compressor);
    let first = manifest.parts()[0].file_end;
    assert_eq!((stream.left(), given(&mut stream).len() as u64), (Some(len), first));
    assert!(bench.read(stream).expect("readable") == file[first as usize..]);
}

#[test]
fn who_comes_second_costs_nothing() {
    let (bench, tree) = (Bench::new(1, LARGE), Made::new(0));
    let first = bench.open(&tree, ZSTD(), When::Begun).expect("begun");
    let second = bench.open(&tree, ZSTD(), When::Begun).expect("joined");
    let third = bench.open(&tree, ZSTD(), When::Done).expect("joined, and waited");
    // The first gives up.
    drop(first);
    let (second, third) = (bench.read(second).expect("all"), bench.read(third).expect("all"));
    assert!(second == third && decompressed("zstd", &second) == tree.nar);
    assert_eq!(bench.compressed(), tree.nar.len() as u64);
}

/// How many volumes this process holds open that were evicted.
#[cfg(target_os = "linux")]
fn evicted_and_open(folder: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").expect("there is one").flatten();
    let files = links.filter_map(|link| fs::read_link(link.path()).ok());
    let is_evicted =
        |file: &PathBuf| file.starts_with(folder) && file.to_string_lossy().ends_with(" (deleted)");
    files.filter(is_evicted).count()
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_evicted_while_it_is_made_is_not_held() {
    let bench = Bench::new(2, Sizes { whole: 20 << 20, volume: 10 << 20 });
    let tree = Made::new(0);
    fs::write(tree.root.join("much"), noise(3, 50 << 20)).expect("written");
    let tree = Made::of(tree._folder, tree.root);
    let first = bench.open(&tree, ZSTD(), When::Begun).expect("begun");
    let last = bench.open(&tree, ZSTD(), When::Done).expect("all of it was made");
    // One thread may be at its last frame still.
    assert!(evicted_and_open(bench.folder.path()) <= 1);
    let size = last.file_size().expect("known");
    let file = bench.read(first).expect("what is gone is made again");
    assert_eq!(file.len() as u64, size);
    assert!(decompressed("zstd", &file) == tree.nar);
}

#[test]
fn who_goes_back_is_given_the_same_again() {
    let (bench, tree) = (Bench::new(2, LARGE), Made::new(0));
    let file = bench.compress(&tree, ZSTD());
    let len = file.len() as u64;
    let mut stream = bench.open(&tree, ZSTD(), When::Done).expect("known");
    assert!(!stream.rewind(1), "it is at its start");
    let taken = |stream| match bench.ask(Request::Fetch { ticket: TICKET, stream }) {
        Answer::Fetched { stream, segments: Ok(segments) } => {
            (stream, segments.iter().map(Segment::len).sum::<u64>())
        }
        other => panic!("{other:?}"),
    };
    stream.set_range(1000, len - 7);
    let (mut stream, given) = taken(stream);
    assert!(given > 2000);
    let sent = given / 3;
    assert!(stream.rewind(given - sent));
    assert_eq!(stream.left(), Some(len - 7 - 1000 - sent));
    // The next time, it is counted from there.
    let (mut stream, given) = taken(stream);
    assert!(stream.rewind(given));
    assert!(bench.read(stream).expect("readable") == file[1000 + sent as usize..file.len() - 7]);
    // What goes in chunks cannot go back.
    let other = Made::new(9);
    let mut stream = bench.open(&other, ZSTD(), When::Begun).expect("begun");
    assert!(!stream.rewind(0));
}

#[test]
fn a_changed_file_costs_little_more_than_itself() {
    let bench = Bench::new(2, LARGE);
    bench.compress(&Made::new(0), ZSTD());
    let before = bench.compressed();
    let changed = Made::new(1);
    let file = bench.compress(&changed, ZSTD());
    assert!(decompressed("zstd", &file) == changed.nar);
    let again = bench.compressed() - before;
    assert!((1_000_000..8 << 20).contains(&again), "{again} bytes were compressed again");
}

#[test]
fn frames_that_are_gone_are_made_again_the_same() {
    // Room for the frames of one tree.
    let bench = Bench::new(2, Sizes { whole: 20 << 20, volume: 10 << 20 });
    let tree = Made::new(0);
    let file = bench.compress(&tree, ZSTD());
    let stream = bench.open(&tree, ZSTD(), When::Done).expect("known");
    for number in 0..20 {
        let other = noise(number + 10, 2 << 20);
        bench.cache().put(&Key::of("other", &other), &other).expect("kept");
    }
    let before = bench.compressed();
    assert!(bench.read(stream).expect("made again") == file);
    assert!(bench.compressed() > before);

    // In an encoding that nobody makes any more, that is the end.
    let found = bench.compressor.find(&ZSTD().to_string(), &tree.nar_hash()).expect("readable");
    let manifest = found.expect("the manifest is kept");
    for number in 0..20 {
        let other = noise(number + 40, 2 << 20);
        bench.cache().put(&Key::of("other", &other), &other).expect("kept");
    }
    let retired = Stream::whole(Arc::clone(&manifest), None, Tree::Root(Arc::from(&*tree.root)));
    let (_, error) = *bench.read(retired).expect_err("its frames are gone");
    assert!(matches!(error, CompressError::Retired));
    // Nor can frames of a tree that has changed be made.
    fs::write(tree.root.join("library"), noise(9, 6_000_000)).expect("written");
    let changed =
        Stream::whole(manifest, Some(ZSTD()), Tree::Root(Arc::from(&*tree.root))).of(tree.nar_hash());
    let (given, error) = *bench.read(changed).expect_err("another tree");
    assert!(matches!(error, CompressError::Nar(NarError::Changed { .. })));
    assert!(file.starts_with(&given), "no byte is wrong up to there");
    // The next one has it read whole, by which it is found out.
    assert!(bench.compressor.find(&ZSTD().to_string(), &tree.nar_hash()).expect("readable").is_none());
    let error = bench.open(&tree, ZSTD(), When::Done).expect_err("another tree");
    assert!(matches!(error, CompressError::Nar(NarError::HashMismatch { .. })), "{error}");
}

/// How long the chunk of a part is, in bytes.
fn chunk_len(manifest: &Manifest, index: usize) -> u64 {
    let piece = manifest.piece(index).expect("there is such a part");
    piece.nar.end - piece.nar.start
}

/// Has everything evicted that was put before.
fn evict(bench: &Bench, seed: u8) {
    for number in 0..20 {
        let other = noise(number + seed, 2 << 20);
        bench.cache().put(&Key::of("other", &other), &other).expect("kept");
    }
}

#[test]
fn of_frames_that_are_gone_a_range_makes_those_that_it_touches() {
    let bench = Bench::new(2, Sizes { whole: 20 << 20, volume: 10 << 20 });
    let tree = Made::new(0);
    let file = bench.compress(&tree, ZSTD());
    let manifest = {
        let stream = bench.open(&tree, ZSTD(), When::Done).expect("known");
        Arc::clone(stream.manifest().expect("all of it"))
    };
    let parts = manifest.parts();
    let begin = |index: usize| if index == 0 { 0 } else { parts[index - 1].file_end };
    let last = parts.len() - 1;
    for (seed, from, to) in [(10, 1, 1), (40, 1, 2), (70, 0, 0), (100, last - 1, last), (130, last, last)] {
        evict(&bench, seed);
        let before = bench.compressed();
        let mut stream = bench.open(&tree, ZSTD(), When::Done).expect("known");
        let (start, end) = (begin(from) + 1, parts[to].file_end - 1);
        stream.set_range(start, end);
        assert!(bench.read(stream).expect("made again") == file[start as usize..end as usize]);
        let plain: u64 = (from..=to).map(|index| chunk_len(&manifest, index)).sum();
        assert_eq!(bench.compressed() - before, plain, "parts {from} to {to}");
    }
}

/// Asks a bench that has no thread yet for the same bytes of a file whose frames are gone, from each of these trees;
/// then it gets one.
fn ask_at_once(tree: &Made, roots: &[&Path]) -> (Vec<Answer>, u64) {
    let sizes = Sizes { whole: 20 << 20, volume: 10 << 20 };
    let bench = Bench::new(2, sizes);
    let file = bench.compress(tree, ZSTD());
    evict(&bench, 10);
    let bench = Bench::within(bench.end(), 0, sizes);
    let found = bench.compressor.find(&ZSTD().to_string(), &tree.nar_hash()).expect("readable");
    let manifest = found.expect("the manifest is kept");
    // The text's last chunk: some framing comes behind it.
    let part = manifest.parts().len() - 2;
    let (begin, end) = (manifest.parts()[part - 1].file_end, manifest.parts()[part].file_end);
    for root in roots {
        let mut stream = Stream::whole(Arc::clone(&manifest), Some(ZSTD()), Tree::Root(Arc::from(*root)));
        stream.set_range(begin, end);
        bench.actor.handle(Request::Fetch { ticket: TICKET, stream });
    }
    assert!(bench.answers.try_recv().is_err(), "nobody makes it");
    let thread = bench.compressor.spawn(1).expect("a thread");
    let answer = |_| bench.answers.recv_timeout(Duration::from_secs(120)).expect("an answer").1;
    let answers: Vec<_> = roots.iter().map(answer).collect();
    for answer in &answers {
        if let Answer::Fetched { segments: Ok(segments), .. } = answer {
            let given: Vec<u8> = segments.iter().flat_map(bytes_of).collect();
            assert!(given == file[begin as usize..end as usize]);
        }
    }
    let chunks = bench.compressed() / chunk_len(&manifest, part);
    bench.end();
    thread.into_iter().for_each(|thread| thread.join().expect("it ends by itself"));
    (answers, chunks)
}

#[test]
fn a_frame_that_is_gone_is_made_again_once_however_many_ask() {
    let tree = Made::new(0);
    let (answers, chunks) = ask_at_once(&tree, &[&*tree.root; 3]);
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Fetched { segments: Ok(_), .. })));
    assert_eq!(chunks, 1);
}

#[test]
fn a_frame_that_another_tree_cannot_give_is_made_of_this_one() {
    let (tree, spoilt) = (Made::new(0), Made::new(0));
    // As long as it was, and other bytes.
    let text = spoilt.root.join("share/text");
    let len = fs::metadata(&text).expect("it is there").len();
    fs::write(text, noise(9, len as usize)).expect("written");
    let (answers, _) = ask_at_once(&tree, &[&*spoilt.root, &*tree.root]);
    let is_given = |answer: &Answer| matches!(answer, Answer::Fetched { segments: Ok(_), .. });
    assert_eq!(answers.iter().filter(|answer| is_given(answer)).count(), 1);
}

#[test]
fn a_nar_that_is_not_what_the_database_says_is_never_sent_whole() {
    let (bench, mut tree) = (Bench::new(2, LARGE), Made::new(0));
    let right = bench.compress(&tree, ZSTD());
    // The database says another hash; the bytes on disk are found in the cache, all of them.
    tree.nar.push(0);
    let stream = bench.open(&tree, ZSTD(), When::Begun).expect("begun");
    let (given, error) = *bench.read(stream).expect_err("another NAR");
    assert!(matches!(error, CompressError::Nar(NarError::HashMismatch { .. })), "{error}");
    assert!(given.len() < right.len() && right.starts_with(&given));
    assert!(bench.open(&tree, ZSTD(), When::Done).is_err());
    assert!(bench.compressor.find(&ZSTD().to_string(), &tree.nar_hash()).expect("readable").is_none());
}

/// A pack of as many bytes as it must have, none of them right.
#[derive(Debug)]
struct Spoilt(Arc<fs::File>);

impl Pack for Spoilt {
    fn hold(&self) -> Option<Vec<Segment>> {
        let len = self.0.metadata().expect("it is open").len();
        Some(vec![Segment::File { file: Arc::clone(&self.0), offset: 0, len }])
    }
}

#[test]
fn what_is_compressed_is_the_tree_and_not_its_pack() {
    let (bench, tree) = (Bench::new(2, LARGE), Made::new(0));
    let wanted = tree.wanted(ZSTD());
    let plan = Arc::clone(wanted.nar.plan());
    let file = tempfile::tempfile().expect("a file");
    file.set_len(plan.packed_size()).expect("the disk has room");
    plan.set_pack(Arc::new(Spoilt(file.into())));
    let nar = Cursor::new(plan, Arc::clone(wanted.nar.root()));
    assert!(nar.is_packed());
    let request = Request::Open { ticket: TICKET, wanted: Wanted { nar, ..wanted }, when: When::Begun };
    let Answer::Opened(Ok(stream)) = bench.ask(request) else { panic!("not begun") };
    assert!(decompressed("zstd", &bench.read(stream).expect("a sound tree")) == tree.nar);
}

#[test]
fn a_stale_plan_says_nothing_of_the_tree() {
    let (mut tree, path) = (Made::new(7), "00000000000000000000000000000000-tree");
    std::os::unix::fs::symlink("wrong", tree.root.join("share/link")).expect("made");
    let stale = tree.wanted(ZSTD()).nar;
    fs::remove_file(tree.root.join("share/link")).expect("removed");
    std::os::unix::fs::symlink("right", tree.root.join("share/link")).expect("made");
    tree.nar = dump(&tree.root);
    let path = StorePath::from_basename(path).expect("a store path");
    let (found, registered) = (Sha256::of(b"what was read"), tree.nar_hash());
    let error = NarError::HashMismatch { path, found, registered };
    assert_eq!(Damage::of_read(&error, registered, &stale), None);
    let fresh = tree.wanted(ZSTD()).nar;
    assert!(
        Damage::of_read(&error, registered, &fresh).is_some_and(|damage| damage.registered == registered)
    );
}

#[test]
fn without_a_place_for_frames_it_is_still_sent() {
    // The first volume takes a frame or two, and there is no folder for a second one.
    let (bench, tree) = (Bench::new(2, Sizes { whole: 1 << 30, volume: 5 << 20 }), Made::new(0));
    let right = Bench::new(2, LARGE).compress(&tree, ZSTD());
    bench.cache().put(&Key::of("first", b"x"), b"x").expect("kept");
    fs::remove_dir_all(bench.folder.path().join("cache")).expect("removed");
    fs::write(bench.folder.path().join("cache"), "in the way").expect("written");
    let file = bench.compress(&tree, ZSTD());
    assert!(file == right);
    assert!(bench.compress(&tree, ZSTD()) == right, "and again");
    // Nor does it cost whoever wants a part anything but time.
    let whole = || bench.open(&tree, ZSTD(), When::Done).expect("its length is found");
    assert_eq!(whole().file_size(), Some(right.len() as u64));
    for (start, end) in [(0, right.len()), (1_000_000, right.len()), (right.len() - 5, right.len())] {
        let mut stream = whole();
        stream.set_range(start as u64, end as u64);
        assert!(bench.read(stream).expect("made again") == right[start..end], "{start}..{end}");
    }
    // Who is sent what is in memory has a turn, of which there are so many.
    let turns: Vec<_> = (0..COMPRESSING_ALONE).map(|_| bench.compressor.alone().expect("a turn")).collect();
    let Err(cut) = bench.read(whole()) else { panic!("one too many") };
    assert!(matches!(cut.1, CompressError::TooMany), "{}", cut.1);
    drop(turns);
    assert!(bench.read(whole()).expect("their memory is free") == right);
    // Nor where there never was one.
    let Bench { actor, answers, compressor, metrics, threads, folder } = Bench::new(2, LARGE);
    let none = Compressor::new(None, None, Arc::clone(&metrics));
    let bench = Bench { actor: actor.with(none), answers, compressor, metrics, threads, folder };
    assert!(bench.compress(&tree, ZSTD()) == right);
    assert!(matches!(bench.open(&tree, ZSTD(), When::Done), Err(CompressError::NoCache)));
}

#[test]
fn a_folder_that_is_deleted_is_made_again_however_much_there_is_to_do() {
    let (bench, tree) = (Bench::new(0, LARGE), Made::new(7));
    bench.cache().put(&Key::of("first", b"x"), b"x").expect("kept");
    let folder = bench.folder.path().join("cache");
    let next = || bench.compressor.0.next().expect("there is something to do");
    let want = |number: u8| {
        let nar_hash = Sha256::of(&[number]);
        bench.compressor.compress(Wanted { nar_hash, ..tree.wanted(ZSTD()) }).expect("it has a place");
    };
    (0..3).for_each(want);
    drop(next());
    fs::remove_dir_all(&folder).expect("removed");
    bench.compressor.0.state().looked = None;
    drop(next());
    assert!(folder.join("lock").exists());
}

#[test]
fn what_somebody_waits_for_goes_first() {
    let bench = Bench::new(0, LARGE);
    let [behind, joined, urgent] = [0, 1, 2].map(Made::new);
    for tree in [&behind, &joined] {
        bench.actor.handle(Request::Behind(Wanted { by: None, ..tree.wanted(ZSTD()) }));
    }
    let _urgent = bench.open(&urgent, ZSTD(), When::Begun).expect("begun");
    let _joined = bench.open(&joined, ZSTD(), When::Begun).expect("joined");
    let order: Vec<_> =
        (0..3).map(|_| bench.compressor.0.state().pop().expect("a task").job.nar_hash).collect();
    assert_eq!(order, [&urgent, &joined, &behind].map(Made::nar_hash));
}

#[test]
fn what_its_last_client_gave_up_goes_behind() {
    // Without threads: what is taken here, one of them would have in hand.
    let bench = Bench::new(0, LARGE);
    let [given_up, unbegun, kept, shared] = [0, 1, 2, 3].map(Made::new);
    let clients: [Arc<Interest>; 5] = Default::default();
    let want = |tree: &Made, client: usize| {
        let by = Some(Arc::downgrade(&clients[client]));
        bench.compressor.compress(Wanted { by, ..tree.wanted(ZSTD()) }).expect("it has a place");
    };
    want(&given_up, 0);
    let next = || bench.compressor.0.state().pop();
    let mut encoder = None;
    let step = |task, encoder: &mut _| bench.compressor.step(task, encoder);
    step(next().expect("the only one"), &mut encoder);
    let second = next().expect("its second chunk");
    for (tree, client) in [(&unbegun, 1), (&kept, 2), (&shared, 3), (&shared, 4)] {
        want(tree, client);
    }
    let [first, one, _kept, _left, other] = clients;
    drop((first, one, other));
    // One of them while a chunk of its NAR is in hand.
    step(second, &mut encoder);
    let mut order = Vec::new();
    while let Some(task) = next() {
        if order.last() != Some(&task.job.nar_hash) {
            order.push(task.job.nar_hash);
        }
        // To the end, so that none has a second turn.
        task.job.fail(CompressError::TooMany);
        step(task, &mut encoder);
    }
    assert_eq!(order, [&kept, &shared, &given_up, &unbegun].map(Made::nar_hash));
}

#[test]
fn what_was_given_up_is_read_on_where_it_was() {
    let (bench, tree) = (Bench::new(0, LARGE), Made::new(0));
    let right = Bench::new(2, LARGE).compress(&tree, ZSTD());
    let next = || bench.compressor.0.state().pop().expect("it is there");
    let mut encoder = None;
    let mut client = Arc::<Interest>::default();
    for _ in 0..3 {
        let by = Some(Arc::downgrade(&client));
        bench.compressor.compress(Wanted { by, ..tree.wanted(ZSTD()) }).expect("it has a place");
        bench.compressor.step(next(), &mut encoder);
        // Held between two chunks for who waits, and for nobody else.
        let task = next();
        bench.compressor.0.put_back(task);
        client = Arc::default();
        let task = next();
        assert!(task.next > 0 && task.turn.is_none());
        bench.compressor.0.put_back(task);
    }
    // Who comes back goes on with it.
    let threads = bench.compressor.spawn(2).expect("threads");
    assert!(bench.compress(&tree, ZSTD()) == right);
    assert_eq!(bench.compressed(), tree.nar.len() as u64, "nothing was compressed twice");
    bench.end();
    threads.into_iter().for_each(|thread| thread.join().expect("it ends by itself"));
}

#[test]
fn of_what_was_given_up_only_so_much_waits() {
    let (bench, tree) = (Bench::new(0, LARGE), Made::new(7));
    let wanted = |number: usize, by| {
        let nar_hash = Sha256::of(&number.to_le_bytes());
        Wanted { nar_hash, by, ..tree.wanted(ZSTD()) }
    };
    let client = Arc::<Interest>::default();
    for number in 0..COMPRESSING_BEHIND + 2 {
        let by = Some(Arc::downgrade(&client));
        bench.compressor.compress(wanted(number, by)).expect("it has a place");
    }
    let last = bench.compressor.0.state().waiting.back().map(|task| Arc::clone(&task.job)).expect("it waits");
    drop(client);
    drop(bench.compressor.0.next().expect("the first"));
    assert!(matches!(last.error(), Some(CompressError::TooMany)));
    // Its place in the table is free: who wants it again begins anew.
    let again = bench.compressor.compress(wanted(COMPRESSING_BEHIND + 1, waits())).expect("begun");
    assert!(matches!(again, Compressing::Job(job) if !Arc::ptr_eq(&job, &last)));
}

#[test]
fn only_so_many_are_in_the_middle() {
    // Without threads: what is taken here, one of them would have in hand.
    let (bench, tree) = (Bench::new(0, LARGE), Made::new(7));
    // Each under another hash, so that none is shared.
    let wanted = |number: usize, by| {
        let nar_hash = Sha256::of(&number.to_le_bytes());
        Wanted { nar_hash, by, ..tree.wanted(ZSTD()) }
    };
    let count = COMPRESSING_OPEN + 3;
    for number in 0..count {
        bench.compressor.compress(wanted(number, waits())).expect("begun");
    }
    let next = || bench.compressor.0.state().pop();
    let mut taken: Vec<Task> = std::iter::from_fn(next).collect();
    assert_eq!(taken.len(), COMPRESSING_OPEN, "the others wait");
    // One goes on: nobody else begins. One ends: the next does.
    bench.compressor.0.put_back(taken.pop().expect("there are some"));
    taken.push(next().expect("it is there again"));
    assert!(next().is_none());
    drop(taken.pop());
    taken.push(next().expect("one that waited"));
    assert!(next().is_none());

    // Of those that nobody waits for, what was begun goes on first, and there is a bound.
    drop(taken);
    std::iter::from_fn(next).for_each(drop);
    let behind = |number| bench.compressor.compress(wanted(count + number, None));
    (0..COMPRESSING_BEHIND).for_each(|number| drop(behind(number).expect("it has a place")));
    assert!(matches!(behind(COMPRESSING_BEHIND), Err(CompressError::TooMany)));
    let first = next().expect("the first");
    let job = Arc::clone(&first.job);
    bench.compressor.0.put_back(Task { next: 1, ..first });
    assert!(next().is_some_and(|task| Arc::ptr_eq(&task.job, &job)), "the one that was begun");
}

#[test]
fn what_nobody_waits_for_leaves_threads_for_who_comes() {
    let bench = Bench::new(0, LARGE);
    for (threads, most) in [(1, 1), (2, 1), (3, 1), (8, 4)] {
        let trees: Vec<_> =
            (0..most + 2).map(|number| Made::new(10 * threads as u8 + number as u8)).collect();
        bench.compressor.0.state().threads = threads;
        let next = || bench.compressor.0.state().pop();
        for tree in &trees[1..] {
            bench.compressor.compress(Wanted { by: None, ..tree.wanted(ZSTD()) }).expect("it has a place");
        }
        let mut taken: Vec<Task> = std::iter::from_fn(next).collect();
        assert_eq!(taken.len(), most, "of {threads}");
        let _urgent = bench.open(&trees[0], ZSTD(), When::Begun).expect("begun");
        let urgent = next().expect("somebody waits");
        assert_eq!(urgent.job.nar_hash, trees[0].nar_hash());
        drop(urgent);
        drop(taken.pop());
        drop(next().expect("the one that is left"));
        drop(taken);
    }
}

#[test]
fn clients_alone_are_counted() {
    let compressor = Compressor::new(None, None, Arc::default());
    let mut turns: Vec<_> = (0..COMPRESSING_ALONE).map(|_| compressor.alone().expect("a turn")).collect();
    assert!(matches!(compressor.alone(), Err(CompressError::TooMany)));
    turns.pop();
    assert!(compressor.alone().is_ok());
}

#[test]
fn many_at_once_all_come_through() {
    let bench = Bench::new(2, LARGE);
    let trees: Vec<_> = (0..8).map(Made::new).collect();
    let streams: Vec<_> =
        trees.iter().map(|tree| bench.open(tree, ZSTD(), When::Begun).expect("begun")).collect();
    for (stream, tree) in streams.into_iter().zip(&trees) {
        assert!(decompressed("zstd", &bench.read(stream).expect("all")) == tree.nar);
    }
    // What the trees have in common is compressed once, or by two threads that were at it together.
    let most = 2 * (trees[0].nar.len() as u64) + 8 * (8 << 20);
    assert!(bench.compressed() < most, "{} bytes", bench.compressed());
}

#[test]
fn at_the_end_those_who_wait_are_told() {
    let (bench, tree) = (Bench::new(0, LARGE), Made::new(0));
    let stream = bench.open(&tree, ZSTD(), When::Begun).expect("begun");
    bench.actor.handle(Request::Fetch { ticket: TICKET, stream });
    bench.actor.handle(Request::Open { ticket: TICKET, wanted: tree.wanted(ZSTD()), when: When::Done });
    assert!(bench.answers.try_recv().is_err(), "nobody compresses");
    bench.compressor.end();
    let answers: Vec<_> = bench.answers.try_iter().map(|(_, answer)| answer).collect();
    assert!(matches!(answers[0], Answer::Fetched { segments: Err(CompressError::Ended), .. }));
    assert!(matches!(answers[1], Answer::Opened(Err(CompressError::Ended))));
    assert!(bench.open(&tree, ZSTD(), When::Begun).is_err());
}
