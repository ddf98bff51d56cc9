//! What the simulated clients find, what they ask, and what they may be told.

use std::path::Path;
use std::sync::Arc;

use crate::formats::signature::SecretKey;
use crate::formats::store_path::{StoreDir, StorePath};
use crate::limits::SENDFILE_MIN;
use crate::store::add::{Output, Writer};
use crate::{nar, store};

/// What is served: made once, used by every seed.
pub(super) struct Shop {
    _folder: tempfile::TempDir,
    pub(super) settings: store::Settings,
    pub(super) key: SecretKey,
    writer: Writer,
    pub(super) goods: Vec<Good>,
    source: std::path::PathBuf,
}

/// A store path and its NAR.
pub(super) struct Good {
    pub(super) path: StorePath,
    pub(super) nar: Vec<u8>,
    digits: String,
}

/// The least that is sent from the file itself.
const LARGE: usize = SENDFILE_MIN as usize;

/// The one that comes and goes.
pub(super) const FLICKERING: usize = 2;

impl Shop {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let settings = store::Settings {
            store_dir: StoreDir::new("/nix/store").unwrap(),
            real_store: root.join("nix/store"),
            database: root.join("nix/var/nix/db/db.sqlite"),
            state_dir: root.join("nix/var/nix"),
            log_dir: root.join("nix/var/log/nix"),
            daemon_socket: root.join("none"),
        };
        let mut writer = Writer::open(settings.clone()).unwrap();
        let source = root.join("source");
        std::fs::create_dir_all(source.join("bin")).unwrap();
        std::fs::write(source.join("bin/large"), pattern(LARGE + 1_000)).unwrap();
        std::fs::write(source.join("small"), pattern(3_001)).unwrap();
        std::os::unix::fs::symlink("small", source.join("link")).unwrap();
        let single = root.join("single");
        std::fs::write(&single, pattern(LARGE + 1)).unwrap();
        let goods = vec![
            good(&writer.add_source(&source, "tree").unwrap().path, &source),
            good(&writer.add_source(&single, "single").unwrap().path, &single),
            good(&writer.add_output(&source, &flickering()).unwrap().path, &source),
        ];
        let key = SecretKey::generate("simulated-1").unwrap();
        Self { _folder: folder, settings, key, writer, goods, source }
    }

    pub(super) fn register(&mut self, valid: bool) {
        if valid {
            self.writer.add_output(&self.source, &flickering()).unwrap();
        } else {
            self.writer.forget(&self.goods[FLICKERING].path).unwrap();
        }
    }
}

pub(super) fn flickering() -> Output<'static> {
    let inputs = crate::formats::hash::Sha256::of(b"flickering");
    Output { name: "flickering", inputs, references: &[], self_reference: false }
}

pub(super) fn good(path: &StorePath, root: &Path) -> Good {
    let nar = dump(root);
    let digits = crate::formats::hash::Sha256::of(&nar).to_base32();
    Good { path: path.clone(), nar, digits }
}

pub(super) fn dump(root: &Path) -> Vec<u8> {
    let plan = Arc::new(nar::Plan::build(root, false).unwrap());
    let mut reader = nar::Reader::new(nar::Cursor::new(plan, root.into()));
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match reader.fill(&mut buffer).unwrap() {
            0 => return bytes,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

/// What a client asks, and what it may be told.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    Health,
    Narinfo(usize),
    Nar(usize, Option<(u64, u64)>),
    Listing(usize),
    Served(usize),
    Absent,
    Put,
    /// A HEAD for a NAR.
    Head(usize),
    /// By HTTP/1.0, asking to keep the connection or not.
    Old {
        keep: bool,
    },
    /// A GET with a body in chunks.
    Chunked,
    /// With `Connection: close`.
    Last,
    /// Bytes that are no request: the connection closes after the answer.
    Nonsense,
}

/// A wish that was sent.
pub(super) struct Asked {
    pub(super) wish: Wish,
    /// Whether the flickering path was valid and was not, since the request was sent.
    pub(super) seen: [bool; 2],
}

pub(super) fn request(wish: &Wish, goods: &[Good]) -> String {
    let get = |target: String| format!("GET {target} HTTP/1.1\r\nHost: simulated\r\n\r\n");
    match wish {
        Wish::Health => get("/health".into()),
        Wish::Narinfo(which) => get(format!("/{}.narinfo", goods[*which].path.hash())),
        Wish::Nar(which, range) => {
            let Good { path, digits, .. } = &goods[*which];
            let target = format!("/nar/{digits}.nar?hash={}", path.hash());
            match range {
                None => get(target),
                Some((start, end)) => {
                    format!("GET {target} HTTP/1.1\r\nHost: s\r\nRange: bytes={start}-{}\r\n\r\n", end - 1)
                }
            }
        }
        Wish::Listing(which) => get(format!("/{}.ls", goods[*which].path.hash())),
        Wish::Served(which) => get(format!("/serve/{}/small", goods[*which].path.hash())),
        Wish::Absent => get("/00000000000000000000000000000000.narinfo".into()),
        Wish::Head(which) => {
            let Good { path, digits, .. } = &goods[*which];
            format!("HEAD /nar/{digits}.nar?hash={} HTTP/1.1\r\nHost: s\r\n\r\n", path.hash())
        }
        Wish::Old { keep: true } => "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(),
        Wish::Old { keep: false } => "GET /health HTTP/1.0\r\n\r\n".into(),
        Wish::Chunked => {
            let body = "5;x=y\r\nhello\r\n12\r\nGET / HTTP/1.1\r\n\r\n\r\n0\r\nA: b\r\n\r\n";
            format!("GET /health HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
        }
        Wish::Last => "GET /health HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n".into(),
        Wish::Put => "PUT /x HTTP/1.1\r\nHost: s\r\nContent-Length: 5\r\n\r\nhello".into(),
        Wish::Nonsense => "GET  /x\r\n\r\n".into(),
    }
}

/// The first answer in `bytes`: status, body, and length of both; `None` while it is not whole. Of the answer to a HEAD,
/// which has no body, the head is given.
pub(super) fn answer<'b>(bytes: &'b [u8], wish: &Wish) -> Option<(u16, &'b [u8], usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).expect("a head is ASCII");
    let status = head[9..12].parse().expect("a status");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    let length: usize = length.parse().expect("a number");
    // A refusal is of no request that could be read, and has its body.
    if matches!(wish, Wish::Head(_)) && status != 408 {
        return Some((status, &bytes[..end], end));
    }
    (bytes.len() >= end + length).then(|| (status, &bytes[end..end + length], end + length))
}

/// Whether an answer is one that the request could have.
pub(super) fn check(asked: &Asked, status: u16, body: &[u8], goods: &[Good]) -> Result<(), String> {
    let expected = |right: bool| {
        if right { Ok(()) } else { Err(format!("{:?} got {status}, {} bytes", asked.wish, body.len())) }
    };
    let of = |which: usize, right: bool| match status {
        404 => expected(which == FLICKERING && asked.seen[0]),
        _ => expected(right && (which != FLICKERING || asked.seen[1])),
    };
    match &asked.wish {
        Wish::Health | Wish::Old { .. } | Wish::Chunked | Wish::Last => {
            expected(status == 200 && body == b"OK\n")
        }
        Wish::Head(which) => {
            let length = format!("\r\nContent-Length: {}\r\n", goods[*which].nar.len());
            of(*which, status == 200 && String::from_utf8_lossy(body).contains(&length))
        }
        Wish::Narinfo(which) => {
            let text = String::from_utf8_lossy(body);
            let path = format!("StorePath: /nix/store/{}\n", goods[*which].path);
            of(*which, status == 200 && text.starts_with(&path) && text.contains("Sig: simulated-1:"))
        }
        Wish::Nar(which, None) => of(*which, status == 200 && body == goods[*which].nar),
        Wish::Nar(which, Some((start, end))) => {
            let part = &goods[*which].nar[*start as usize..*end as usize];
            of(*which, status == 206 && body == part)
        }
        Wish::Listing(which) => of(*which, status == 200 && body.starts_with(b"{\"version\":1")),
        // One of them is a file, with nothing inside.
        Wish::Served(1) => expected(status == 404),
        Wish::Served(which) => of(*which, status == 200 && body == pattern(3_001)),
        Wish::Absent => expected(status == 404),
        Wish::Put => expected(status == 405),
        Wish::Nonsense => expected(status == 400),
    }
}
