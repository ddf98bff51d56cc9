//! The room as a whole, on real trees; Nix itself is the witness.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use tempfile::TempDir;

use super::plan::Piece;
use super::{Cursor, Fetcher, NarError, Pack, Plan, Reader, Segment, nar_hash};
use crate::formats::hash::Sha256;
use crate::formats::listing;
use crate::formats::nar::{Event, Parser};
use crate::limits::{FETCH_BYTES, FETCH_FILES, SENDFILE_MIN, WALK_AHEAD_FROM};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

/// Not where temporary files are, as that may be a file system that cannot say what it has in memory.
fn folder_on_disk() -> TempDir {
    let program = std::env::current_exe().expect("this program");
    tempfile::tempdir_in(program.parent().expect("a program is in a folder")).expect("a folder for the test")
}

fn cursor(root: &Path) -> Cursor {
    let plan = Plan::build(root, false).expect("the tree can be planned");
    Cursor::new(Arc::new(plan), Arc::from(root))
}

fn rest(cursor: Cursor) -> Result<Vec<u8>, NarError> {
    let mut reader = Reader::new(cursor);
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 100_000];
    loop {
        match reader.fill(&mut buffer)? {
            0 => return Ok(bytes),
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

/// What Nix makes of the tree.
fn nix_dump(root: &Path) -> Vec<u8> {
    let elsewhere = folder();
    let output = Command::new("nix-store")
        .arg("--dump")
        .arg(root)
        .env("HOME", elsewhere.path())
        .env("NIX_STATE_DIR", elsewhere.path().join("var"))
        .env("NIX_STORE_DIR", elsewhere.path().join("store"))
        .output()
        .expect("nix-store is installed: scripts/test sees to it");
    assert!(output.status.success(), "nix-store --dump: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("the test can write");
}

fn make_executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the test can chmod");
}

/// Bytes in which a piece in the wrong place shows.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 251) as u8 ^ seed).collect()
}

/// A tree with everything a NAR can hold, and sizes around every bound.
fn odd_tree(root: &Path) {
    fs::create_dir_all(root.join("empty")).expect("mkdir");
    for size in 0..=16 {
        write(&root.join(format!("size-{size}")), &pattern(size, size as u8));
    }
    for (number, size) in [SENDFILE_MIN - 1, SENDFILE_MIN, SENDFILE_MIN + 1, FETCH_BYTES, 3 * FETCH_BYTES + 5]
        .iter()
        .enumerate()
    {
        write(&root.join(format!("large-{number}")), &pattern(*size as usize, number as u8));
    }
    write(&root.join("run"), b"#!/bin/sh\n");
    make_executable(&root.join("run"));
    for name in ["Case", "case", "CASE"] {
        write(&root.join(name), name.as_bytes());
    }
    write(&root.join(OsStr::from_bytes(b"not\xffutf8\x80")), b"bytes");
    write(&root.join("a~nix~case~hack~1"), b"kept as it is here");
    symlink("size-1", root.join("link")).expect("symlink");
    symlink(OsStr::from_bytes(b"/no/\xfe/where"), root.join("dangling")).expect("symlink");
    for name in ["a", "a.b", "a-b", "a0", "aa"] {
        fs::create_dir(root.join(name)).expect("mkdir");
        write(&root.join(name).join("in"), name.as_bytes());
    }
    let mut deep = root.join("deep");
    for _ in 0..60 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).expect("mkdir");
    write(&deep.join("bottom"), b"60 below");
    let many = root.join("many");
    fs::create_dir(&many).expect("mkdir");
    for number in 0..10_000 {
        write(&many.join(number.to_string()), number.to_string().as_bytes());
    }
}

#[test]
fn an_odd_tree_is_dumped_as_nix_dumps_it_whole_and_in_ranges() {
    let folder = folder();
    let root = folder.path().join("tree");
    odd_tree(&root);
    let expected = nix_dump(&root);
    let whole = cursor(&root);
    assert_eq!(whole.remaining(), expected.len() as u64);
    assert!(rest(whole.clone()).expect("readable") == expected, "the whole NAR is Nix's");

    let mut range = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..60 {
        range = range.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let start = range % expected.len() as u64;
        let end = (start + (range >> 40) % (2 * FETCH_BYTES)).min(expected.len() as u64);
        let mut part = whole.clone();
        part.set_range(start, end);
        let bytes = rest(part).expect("readable");
        assert!(bytes == expected[start as usize..end as usize], "bytes {start} to {end} are Nix's");
    }
    let hash = nar_hash(&root, false).expect("readable");
    assert_eq!(hash, (Sha256::of(&expected), expected.len() as u64));
}

/// A pack in one file, until it is dropped.
#[derive(Debug)]
struct InFile(Mutex<Option<Arc<File>>>);

impl Pack for InFile {
    /// In ranges of an odd size, so that their bounds fall everywhere.
    fn hold(&self) -> Option<Vec<Segment>> {
        let file = self.0.lock().expect("no test panics with it").clone()?;
        let size = file.metadata().expect("it is open").len();
        let range = |offset: u64| Segment::File {
            file: Arc::clone(&file),
            offset,
            len: (size - offset).min(100_003),
        };
        Some((0..size).step_by(100_003).map(range).collect())
    }
}

fn pack_of(mut cursor: Cursor) -> InFile {
    let file = tempfile::tempfile().expect("a file for the test");
    let mut size = 0;
    while cursor.remaining() > 0 {
        for segment in cursor.fetch_with(&mut Fetcher::batching()).expect("readable") {
            // Large files come open.
            let Segment::Bytes(bytes) = segment else { continue };
            file.write_all_at(&bytes, size).expect("write");
            size += bytes.len() as u64;
        }
    }
    assert_eq!(size, cursor.plan().packed_size());
    InFile(Mutex::new(Some(Arc::new(file))))
}

#[test]
fn a_packed_nar_is_the_same_whole_and_in_ranges() {
    let folder = folder();
    let root = folder.path().join("tree");
    odd_tree(&root);
    let expected = nix_dump(&root);
    let live = cursor(&root);
    assert!(!live.is_packed() && live.plan().has_small_files());
    let pack = Arc::new(pack_of(live.clone()));
    live.plan().set_pack(pack.clone());
    let packed = Cursor::new(Arc::clone(live.plan()), Arc::clone(live.root()));
    assert!(packed.is_packed());
    let mut once = packed.clone();
    while once.remaining() > 0 {
        for segment in once.fetch().expect("readable") {
            if let Segment::Bytes(bytes) = segment {
                let framing = packed.plan().framing();
                assert!(memchr::memmem::find(framing, &bytes).is_some(), "no contents are read into memory");
            }
        }
    }
    assert!(rest(packed.clone()).expect("readable") == expected, "the whole NAR is Nix's");
    let mut range = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200 {
        range = range.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let start = range % expected.len() as u64;
        let end = (start + (range >> 40) % (2 * FETCH_BYTES)).min(expected.len() as u64);
        let mut part = packed.clone();
        part.set_range(start, end);
        let bytes = rest(part).expect("readable");
        assert!(bytes == expected[start as usize..end as usize], "bytes {start} to {end} are Nix's");
    }

    pack.0.lock().expect("no test panics with it").take();
    assert!(rest(packed).expect("readable") == expected, "what is held stays");
    let after = Cursor::new(Arc::clone(live.plan()), Arc::clone(live.root()));
    assert!(!after.is_packed() && rest(after).expect("readable") == expected, "live again");
}

#[test]
fn a_pack_of_another_size_is_not_used() {
    let folder = folder();
    let root = folder.path().join("tree");
    fs::create_dir(&root).expect("mkdir");
    write(&root.join("small"), b"contents");
    let live = cursor(&root);
    let pack = pack_of(live.clone());
    pack.0.lock().expect("no test panics with it").as_ref().expect("made").set_len(90).expect("cut");
    live.plan().set_pack(Arc::new(pack));
    assert!(!Cursor::new(Arc::clone(live.plan()), Arc::clone(live.root())).is_packed());
}

#[test]
fn a_listing_is_what_its_nar_lists() {
    let folder = folder();
    let root = folder.path().join("tree");
    odd_tree(&root);
    for root in [&root, &root.join("run"), &root.join("link"), &root.join("empty"), &root.join("deep")] {
        let cursor = cursor(root);
        let listing = cursor.plan().listing();
        assert!(listing == listing::of_nar(&rest(cursor).expect("readable")[..]).expect("a NAR"), "{root:?}");
    }
}

#[test]
fn a_file_and_a_link_can_be_the_root() {
    let folder = folder();
    let file = folder.path().join("file");
    write(&file, b"contents");
    assert_eq!(rest(cursor(&file)).expect("readable"), nix_dump(&file));
    make_executable(&file);
    assert_eq!(rest(cursor(&file)).expect("readable"), nix_dump(&file));
    let link = folder.path().join("link");
    symlink("nowhere", &link).expect("symlink");
    assert_eq!(rest(cursor(&link)).expect("readable"), nix_dump(&link));
}

#[test]
fn segments_are_bounded_and_never_empty() {
    let folder = folder();
    let root = folder.path().join("tree");
    odd_tree(&root);
    let mut cursor = cursor(&root);
    while cursor.remaining() > 0 {
        let before = cursor.position();
        let segments = cursor.fetch().expect("readable");
        let mut given = 0;
        let mut files = 0;
        let mut in_memory = 0;
        for segment in &segments {
            assert!(segment.len() > 0);
            given += segment.len();
            match segment {
                Segment::Bytes(bytes) => in_memory += bytes.len() as u64,
                Segment::File { len, .. } => {
                    files += 1;
                    assert!(*len >= SENDFILE_MIN);
                }
            }
        }
        assert!(given > 0 && files <= FETCH_FILES && in_memory <= FETCH_BYTES);
        assert_eq!(cursor.position(), before + given);
    }
    assert!(cursor.fetch().expect("nothing to read").is_empty());
}

/// Everything that can be had of a cursor without waiting, and what must be waited for in between.
fn resident(mut cursor: Cursor, mut files: impl FnMut() -> usize) -> (Vec<u8>, usize) {
    let (mut bytes, mut waited) = (Vec::new(), 0);
    let mut fetcher = Fetcher::default();
    while cursor.remaining() > 0 {
        let before = cursor.position();
        let mut segments = cursor.fetch_resident(&mut fetcher, files());
        if segments.is_empty() {
            waited += 1;
            segments = cursor.fetch().expect("readable");
        }
        assert_eq!(cursor.position(), before + segments.iter().map(Segment::len).sum::<u64>());
        for segment in segments {
            bytes.extend(contents_of(&segment));
        }
    }
    (bytes, waited)
}

fn contents_of(segment: &Segment) -> Vec<u8> {
    match segment {
        Segment::Bytes(bytes) => bytes.to_vec(),
        Segment::File { file, offset, len } => {
            let mut bytes = vec![0; *len as usize];
            file.read_exact_at(&mut bytes, *offset).expect("readable");
            bytes
        }
    }
}

#[test]
fn what_is_in_memory_is_the_same_bytes_without_waiting() {
    let folder = folder_on_disk();
    let root = folder.path().join("tree");
    odd_tree(&root);
    let whole = cursor(&root);
    let expected = rest(whole.clone()).expect("readable");
    // A name that is in memory is now and then to be waited for all the same: while somebody renames anything.
    let waits = |_| {
        let (bytes, waited) = resident(whole.clone(), || 100);
        assert!(bytes == expected, "in memory");
        waited
    };
    let least = (0..50).map(waits).find(|waited| *waited == 0);
    assert!(least.is_some() || !whole.plan().opens_at_once(), "what was just written is waited for");
    let mut turn = 0;
    let (bytes, waited) = resident(whole.clone(), || {
        turn += 1;
        turn % 3
    });
    assert!(bytes == expected && waited > 0, "few at a time, and some that have to be waited for");
    // A small file and a large one that are on the disk alone.
    for name in ["size-16", "many/5000", "large-4"] {
        let file = File::open(root.join(name)).expect("it is there");
        file.sync_all().expect("written");
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
    }
    let (bytes, waited) = resident(whole.clone(), || 100);
    assert!(bytes == expected, "partly on the disk");
    // At most: the system may keep what it was advised to drop, and reads ahead of whoever asked for what is there.
    assert!(waited <= 2 || !whole.plan().opens_at_once(), "{waited} waits for two small files");
}

#[test]
fn a_file_that_has_changed_is_not_fetched_without_waiting_either() {
    let folder = folder_on_disk();
    let root = folder.path().join("tree");
    fs::create_dir(&root).expect("mkdir");
    write(&root.join("file"), b"contents");
    let mut cursor = cursor(&root);
    write(&root.join("file"), b"contents and more");
    let mut fetcher = Fetcher::default();
    while !cursor.fetch_resident(&mut fetcher, 100).is_empty() {}
    assert!(cursor.position() < cursor.plan().size());
    assert_eq!(cursor.fetch().expect_err("it grew"), NarError::Changed { file: root.join("file") });
}

#[test]
fn a_sparse_file_of_more_than_4_gib() {
    let folder = folder();
    let root = folder.path().join("tree");
    fs::create_dir(&root).expect("mkdir");
    let size = (4 << 30) + 3;
    let file = File::create(root.join("huge")).expect("create");
    file.set_len(size).expect("the file system has sparse files");
    file.write_all_at(b"end", size - 3).expect("write");
    write(&root.join("z"), b"after");

    let mut cursor = cursor(&root);
    let plan = Arc::clone(cursor.plan());
    let start = plan.file_at(&root, 300).map(|file| file.ends_with("huge"));
    assert_eq!(start, Some(true));
    let contents = plan.pieces(0).find_map(|piece| match piece {
        Piece::Contents { of, .. } if of.size == size => Some(of.offset),
        _ => None,
    });
    let contents = contents.expect("the file is in the plan");
    cursor.set_range(contents + size - 5, plan.size());
    let tail = rest(cursor).expect("readable");
    assert_eq!(tail[..5], *b"\0\0end");
    assert_eq!(tail[5..10], [0; 5], "padded to a multiple of 8");
    assert_eq!(plan.size(), contents + size + tail.len() as u64 - 5);
}

/// A path far longer than the system takes: each folder is made in the one before.
fn deep_tree(root: &Path, depth: usize) {
    fs::create_dir(root).expect("mkdir");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: OwnedFd = openat(CWD, root, flags, Mode::empty()).expect("open");
    for number in 0..depth {
        for name in ["before", "zafter"] {
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            let file = openat(&at, name, create, Mode::from_raw_mode(0o644)).expect("create");
            File::from(file).write_all_at(number.to_string().as_bytes(), 0).expect("write");
        }
        mkdirat(&at, "deeper", Mode::from_raw_mode(0o755)).expect("mkdir");
        at = openat(&at, "deeper", flags, Mode::empty()).expect("open");
    }
}

/// Removes it again: the usual way would meet paths that are too long.
fn remove_deep_tree(root: &Path) {
    let status = Command::new("rm").arg("-rf").arg(root).status().expect("rm");
    assert!(status.success());
}

#[test]
fn depth_costs_neither_stack_nor_descriptors_nor_path_length() {
    let folder = folder();
    let root = folder.path().join("tree");
    deep_tree(&root, 2000);
    let whole = rest(cursor(&root)).expect("readable");
    let end = whole.windows(6).rposition(|window| window == b"zafter").expect("the first folder's last name");
    assert!(end > whole.len() - 200);
    assert_eq!(whole.windows(6).filter(|window| *window == b"before").count(), 2000);
    remove_deep_tree(&root);
}

#[test]
fn many_folders_are_walked_in_order() {
    let folder = folder();
    let root = folder.path().join("tree");
    for number in 0..4 * WALK_AHEAD_FROM {
        let inner = root.join(format!("{}/{}", number % 7, number));
        fs::create_dir_all(&inner).expect("mkdir");
        write(&inner.join("file"), number.to_string().as_bytes());
        symlink(format!("../{number}"), inner.join("link")).expect("symlink");
    }
    // The threads ahead of a walk come to other folders first each time.
    let expected = nix_dump(&root);
    for _ in 0..20 {
        assert!(rest(cursor(&root)).expect("readable") == expected);
    }
    let fifo = root.join("6/202/fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    for _ in 0..20 {
        let refused = Plan::build(&root, false).expect_err("a fifo");
        assert_eq!(refused, NarError::Odd { file: fifo.clone(), kind: "fifo" });
    }
}

#[test]
fn what_a_nar_cannot_hold_is_refused_by_name() {
    let folder = folder();
    let root = folder.path().join("tree");
    fs::create_dir_all(root.join("sub")).expect("mkdir");
    let fifo = root.join("sub/pipe");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let refused = Plan::build(&root, false).expect_err("a fifo");
    assert_eq!(refused, NarError::Odd { file: fifo.clone(), kind: "fifo" });
    fs::remove_file(&fifo).expect("remove");

    let socket = root.join("sub/socket");
    let _listener = UnixListener::bind(&socket).expect("bind");
    let refused = Plan::build(&root, false).expect_err("a socket");
    assert_eq!(refused, NarError::Odd { file: socket.clone(), kind: "socket" });
    let refused = Plan::build(&socket, false).expect_err("a socket as the root");
    assert_eq!(refused, NarError::Odd { file: socket, kind: "socket" });

    let absent = folder.path().join("absent");
    assert_eq!(Plan::build(&absent, false).expect_err("absent"), NarError::Missing { root: absent });
}

/// Does `change` to the tree after it was planned; what fetching all of it says then.
fn after(change: impl FnOnce(&Path)) -> (PathBuf, Result<Vec<u8>, NarError>) {
    let folder = folder();
    let root = folder.path().join("tree");
    fs::create_dir_all(root.join("sub")).expect("mkdir");
    write(&root.join("sub/small"), b"small");
    write(&root.join("sub/large"), &pattern(SENDFILE_MIN as usize, 1));
    let cursor = cursor(&root);
    change(&root);
    (root, rest(cursor))
}

#[test]
fn a_file_that_is_not_as_planned_is_an_error_and_never_a_wrong_byte() {
    let changed = |name: &str, change: &dyn Fn(&Path)| {
        let (root, result) = after(|root| change(&root.join(name)));
        assert_eq!(result, Err(NarError::Changed { file: root.join(name) }));
    };
    for name in ["sub/small", "sub/large"] {
        changed(name, &|file| write(file, b"shorter"[..3].as_ref()));
        changed(name, &|file| write(file, &pattern(200_000, 2)));
        changed(name, &make_executable);
        changed(name, &|file| fs::remove_file(file).expect("remove"));
        changed(name, &|file| {
            fs::rename(file, file.with_extension("moved")).expect("rename");
            symlink(file.with_extension("moved"), file).expect("symlink");
        });
        changed(name, &|file| {
            fs::remove_file(file).expect("remove");
            assert!(Command::new("mkfifo").arg(file).status().expect("mkfifo").success());
        });
        changed(name, &|file| {
            fs::remove_file(file).expect("remove");
            fs::create_dir(file).expect("mkdir");
        });
    }
    // A folder on the way that became a link to the same contents elsewhere.
    changed("sub", &|sub| {
        let moved = sub.with_extension("moved");
        fs::rename(sub, &moved).expect("rename");
        symlink(moved, sub).expect("symlink");
    });
}

#[test]
fn a_fetch_that_failed_leaves_the_cursor_where_it_was() {
    let folder = folder();
    let root = folder.path().join("file");
    write(&root, b"contents");
    let mut cursor = cursor(&root);
    cursor.seek(9);
    fs::remove_file(&root).expect("remove");
    cursor.fetch().expect_err("the file is gone");
    assert_eq!(cursor.position(), 9);
    write(&root, b"contents");
    cursor.fetch().expect("it is back");
}

#[test]
fn the_case_hack_is_taken_off_where_asked() {
    let folder = folder();
    let (hacked, plain) = (folder.path().join("hacked"), folder.path().join("plain"));
    for (root, names) in
        [(&hacked, ["Makefile", "b", "makefile~nix~case~hack~1"]), (&plain, ["Makefile", "b", "makefile"])]
    {
        fs::create_dir(root).expect("mkdir");
        for (number, name) in names.iter().enumerate() {
            write(&root.join(name), number.to_string().as_bytes());
        }
    }
    let plan = Plan::build(&hacked, true).expect("readable");
    let unhacked = rest(Cursor::new(Arc::new(plan), Arc::from(&*hacked))).expect("readable");
    assert_eq!(unhacked, nix_dump(&plain));
    assert_eq!(
        rest(cursor(&hacked)).expect("readable"),
        nix_dump(&hacked),
        "elsewhere the suffix is a name's own"
    );

    write(&hacked.join("makefile"), b"another");
    let collision = Plan::build(&hacked, true).expect_err("two of one name");
    assert_eq!(collision, NarError::Collision { folder: hacked, name: "makefile".to_owned() });
}

#[test]
fn a_message_names_the_file_and_the_cause() {
    let folder = folder();
    let root = folder.path().join("tree");
    fs::create_dir(&root).expect("mkdir");
    let long = root.join("gone");
    symlink("x", &long).expect("symlink");
    let error = NarError::Unreadable { file: long, doing: "open", errno: rustix::io::Errno::ACCESS };
    assert!(
        error.to_string().ends_with("tree/gone: cannot open: Permission denied (os error 13)"),
        "{error}"
    );
}

/// What a random tree is made of.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    File { executable: bool, contents: Vec<u8> },
    Link(Vec<u8>),
    Folder(BTreeMap<Vec<u8>, Node>),
}

impl Node {
    fn write(&self, at: &Path) {
        match self {
            Node::File { executable, contents } => {
                write(at, contents);
                if *executable {
                    make_executable(at);
                }
            }
            Node::Link(target) => symlink(OsStr::from_bytes(target), at).expect("symlink"),
            Node::Folder(entries) => {
                fs::create_dir(at).expect("mkdir");
                for (name, node) in entries {
                    node.write(&at.join(OsStr::from_bytes(name)));
                }
            }
        }
    }
}

/// The tree that a NAR holds, as the strict parser understands it.
fn parse(nar: &[u8]) -> Node {
    let mut parser = Parser::new(nar);
    let node = parse_node(&mut parser);
    assert_eq!(parser.next_event().expect("a whole NAR"), None);
    node
}

fn parse_node(parser: &mut Parser<&[u8]>) -> Node {
    match parser.next_event().expect("a valid NAR").expect("a node") {
        Event::File { executable, size, .. } => {
            let mut contents = Vec::new();
            parser.contents(&mut contents).expect("a valid NAR");
            assert_eq!(contents.len() as u64, size);
            Node::File { executable, contents }
        }
        Event::Symlink { target } => Node::Link(target),
        Event::Directory => {
            let mut entries = BTreeMap::new();
            while let Event::Entry { name } = parser.next_event().expect("a valid NAR").expect("an entry") {
                entries.insert(name, parse_node(parser));
            }
            Node::Folder(entries)
        }
        event => panic!("{event:?} in the place of a node"),
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![4 => b'a'..=b'c', 1 => 1..=255_u8].prop_filter("no separator", |byte| *byte != b'/');
    proptest::collection::vec(byte, 1..12)
        .prop_filter("no folder's own name", |name| name != b"." && name != b"..")
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let bound = SENDFILE_MIN as usize;
    let size = prop_oneof![8 => 0..40_usize, 1 => bound - 5_000..bound + 5_000, 1 => 2 * bound..3 * bound];
    (size, any::<u8>()).prop_map(|(size, seed)| pattern(size, seed))
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        4 => (any::<bool>(), contents()).prop_map(|(executable, contents)| Node::File { executable, contents }),
        1 => name().prop_map(Node::Link),
    ];
    leaf.prop_recursive(5, 40, 8, |inner| {
        proptest::collection::btree_map(name(), inner, 0..8).prop_map(Node::Folder)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_in_any_pieces_is_the_same_nar(tree in node(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let folder = folder();
        let root = folder.path().join("tree");
        tree.write(&root);
        let cursor = cursor(&root);
        let size = cursor.remaining();
        let whole = rest(cursor.clone()).expect("readable");
        prop_assert_eq!(whole.len() as u64, size);
        prop_assert_eq!(parse(&whole), tree);

        let mut places: Vec<u64> = cuts.iter().map(|cut| cut.index(size as usize + 1) as u64).collect();
        places.extend([0, size]);
        places.sort_unstable();
        let mut joined = Vec::new();
        for pair in places.windows(2) {
            let mut part = cursor.clone();
            part.set_range(pair[0], pair[1]);
            joined.extend(rest(part).expect("readable"));
        }
        prop_assert!(joined == whole);
    }
}
