//! A store on a disk that does not answer: a file system of our own, whose reads wait until the test lets them go.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen,
    Request,
};
use support::server::Settings;
use support::store::hash_of;
use support::{Kind, Scratch, Server, Store, wait_until, write};

/// How long the kernel may keep what it was told of a name.
const KEPT: Duration = Duration::from_secs(600);

/// A file or folder of the mirrored tree.
struct Node {
    path: PathBuf,
    attr: FileAttr,
    /// What a folder holds.
    entries: Vec<(OsString, INodeNo)>,
}

/// The reads that wait, while the disk is held.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<Option<Vec<Waiting>>>>);

type Waiting = Box<dyn FnOnce() + Send>;

impl Gate {
    /// Has reads wait until what comes back is dropped.
    fn hold(&self) -> Held<'_> {
        self.0.lock().expect("no panic with it").get_or_insert_default();
        Held(self)
    }

    /// How many reads wait.
    fn waiting(&self) -> usize {
        self.0.lock().expect("no panic with it").as_ref().map_or(0, Vec::len)
    }

    fn pass(&self, read: Waiting) {
        match &mut *self.0.lock().expect("no panic with it") {
            Some(waiting) => waiting.push(read),
            None => read(),
        }
    }
}

/// While it is there, reads wait; also where a test fails.
struct Held<'g>(&'g Gate);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let waiting = self.0.0.lock().map(|mut gate| gate.take());
        for read in waiting.ok().flatten().unwrap_or_default() {
            read();
        }
    }
}

/// Shows a folder as it was when this was made.
struct Mirror {
    nodes: HashMap<u64, Node>,
    gate: Gate,
}

impl Mirror {
    fn of(folder: &Path, gate: Gate) -> Self {
        let mut mirror = Self { nodes: HashMap::new(), gate };
        mirror.add(folder.to_path_buf());
        mirror
    }

    fn add(&mut self, path: PathBuf) -> INodeNo {
        // The root is added first and has number 1; so its number is taken before those of what it holds.
        let number = INodeNo(self.nodes.len() as u64 + 1);
        let found = fs::symlink_metadata(&path).expect("the store is ours");
        let kind = if found.is_dir() { FileType::Directory } else { FileType::RegularFile };
        let attr = FileAttr {
            ino: number,
            size: found.len(),
            blocks: found.blocks(),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: (found.mode() & 0o777) as u16,
            nlink: 1,
            uid: found.uid(),
            gid: found.gid(),
            rdev: 0,
            flags: 0,
            blksize: 4096,
        };
        self.nodes.insert(number.0, Node { path: path.clone(), attr, entries: Vec::new() });
        if found.is_dir() {
            let listed = fs::read_dir(&path).expect("the store is ours").map(|entry| entry.expect("it is"));
            let entries = listed.map(|entry| (entry.file_name(), self.add(entry.path()))).collect();
            self.nodes.get_mut(&number.0).expect("it was just added").entries = entries;
        }
        number
    }
}

impl Filesystem for Mirror {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let entry = self.nodes[&parent.0].entries.iter().find(|(entry, _)| entry == name);
        match entry {
            Some((_, number)) => reply.entry(&KEPT, &self.nodes[&number.0].attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&KEPT, &self.nodes[&number.0].attr);
    }

    /// The kernel keeps what it has read, as it does for a disk.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let path = self.nodes[&number.0].path.clone();
        self.gate.pass(Box::new(move || {
            let mut bytes = vec![0; size as usize];
            let file = File::open(path).expect("the store is ours");
            let read = file.read_at(&mut bytes, offset).expect("the store is ours");
            reply.data(&bytes[..read]);
        }));
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = self.nodes[&number.0].entries.iter().enumerate().skip(offset as usize);
        for (place, (name, number)) in entries {
            if reply.add(*number, place as u64 + 1, self.nodes[&number.0].attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

/// The store's files again, by way of the slow disk.
fn mount(store: &Store, at: &Path, gate: &Gate) -> BackgroundSession {
    fs::create_dir(at).expect("the scratch folder is ours");
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("harmonia-test".into())];
    fuser::spawn_mount(Mirror::of(&store.real_dir(), gate.clone()), at, &config)
        .expect("/dev/fuse can be used: by root, or with fusermount")
}

/// Small files and a large one.
fn tree(store: &Store, name: &str) -> String {
    store.add(name, |root| {
        fs::create_dir(root).expect("the scratch folder is ours");
        for number in 0..20 {
            write(root.join(format!("small-{number}")), format!("{name} {number}").repeat(100));
        }
        write(root.join("z-large"), name.repeat(100_000));
    })
}

#[test]
fn a_disk_that_does_not_answer_holds_up_only_what_is_on_it() {
    // Below the threads that may wait for disks: a NAR that is in memory needs one for a moment too, as this file
    // system cannot say what it has.
    const COLD: usize = 6;

    let store = Store::new(Kind::Chroot);
    let warm = tree(&store, "warm");
    let cold: Vec<_> = (0..COLD).map(|number| tree(&store, &format!("cold-{number}"))).collect();
    let gate = Gate::default();
    let scratch = Scratch::new();
    let mounted = scratch.path().join("slow");
    let session = mount(&store, &mounted, &gate);
    let server = Settings::of_dirs(&store.dir(), &mounted)
        .line("workers = 1")
        .line(&format!("nix_db_path = {:?}", store.database()))
        .start();
    let narinfo = |path: &str| format!("/{}.narinfo", hash_of(path));
    let (warm_url, cold_urls) =
        (server.nar_url(&warm), cold.iter().map(|path| server.nar_url(path)).collect::<Vec<_>>());
    let (warm_nar, cold_nars) =
        (store.dump(&warm), cold.iter().map(|path| store.dump(path)).collect::<Vec<_>>());
    assert!(server.get(&warm_url).body == warm_nar);

    std::thread::scope(|scope| {
        let held = gate.hold();
        let server: &Server = &server;
        let slow: Vec<_> = cold_urls.iter().map(|url| scope.spawn(move || server.get(url).body)).collect();
        wait_until("a read of each to wait", Duration::from_secs(60), || gate.waiting() >= COLD);
        let mut connection = server.connect();
        // Not for long: what waits for the disk is given up after a minute.
        for _ in 0..20 {
            assert_eq!(connection.get(&narinfo(&warm)).status, 200);
            assert!(connection.get(&warm_url).body == warm_nar, "what is in memory is sent");
        }
        assert!(slow.iter().all(|thread| !thread.is_finished()), "the others still wait");
        drop(held);
        for (thread, nar) in slow.into_iter().zip(&cold_nars) {
            assert!(thread.join().expect("it is answered") == *nar);
        }
    });
    drop(server);
    session.umount_and_join().expect("nobody uses it any more");
}
