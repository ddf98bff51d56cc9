//! A small store and one worker's warm view of it, without threads and sockets: what stands between a request
//! and its answer once the paths asked for have been asked for before.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use harmonia::cache::compress::Compressor;
use harmonia::cache::encode::{Encoding, Format};
use harmonia::formats::hash::Sha256;
use harmonia::formats::signature::SecretKey;
use harmonia::formats::store_path::{StoreDir, StorePath, StorePathHash};
use harmonia::http::date::DATE_LEN;
use harmonia::http::{HeadReader, Parsed, Request, parse};
use harmonia::limits;
use harmonia::mailbox::{Outlet, Ticket};
use harmonia::metrics::{Metrics, WorkerMetrics};
use harmonia::server::Site;
use harmonia::server::compressed::{Cold, Compression, Memory};
use harmonia::server::exchange::Exchange;
use harmonia::server::faults::Faults;
use harmonia::server::journal::Trust;
use harmonia::server::resolve::{self, Arrival, Desk, Step};
use harmonia::store::actor::{Answer, Request as Question, Store};
use harmonia::store::add::{Output, Writer};
use harmonia::store::served::Served;
use harmonia::store::view::{Look, View};
use harmonia::store::{self, StoreError};
use tempfile::TempDir;

/// The hash part of no path.
pub const ABSENT: &str = "00000000000000000000000000000000";

const DATE: &[u8; DATE_LEN] = b"Sun, 06 Nov 1994 08:49:37 GMT";
const TICKET: Ticket = Ticket { worker: 0, slot: 0, serial: 0 };

/// A worker's part of the server, with everything cached.
pub struct Warm {
    /// The hash part of a path with references and a signature, as it stands in URLs.
    pub present: String,
    /// What the worker knows of the store.
    pub view: View,
    site: Site,
    metrics: Arc<WorkerMetrics>,
    heads: HeadReader,
    head: Vec<u8>,
    memory: Memory,
    faults: Faults,
    asked: Vec<Arc<Served>>,
    _folder: TempDir,
}

impl Warm {
    /// Makes the store and asks for all its paths.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let settings = settings(folder.path());
        let paths = fill(&settings, folder.path());
        let present = paths.last().expect("there are some").hash();
        let metrics = Arc::new(Metrics::new(1));
        // A head is remembered when it is read for the second time.
        let mut heads = HeadReader::default();
        (0..2).for_each(|_| assert!(heads.read(&Self::request("/")).is_ok()));
        let view = warm_view(&settings, &metrics, &paths).expect("the store was just made");
        Self {
            present: present.to_string(),
            view,
            site: Site {
                scheme: "http",
                store_dir: settings.store_dir,
                real_store: settings.real_store,
                cache_info: "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n".into(),
                priority: 30,
                compression: Compression {
                    offered: None,
                    cold: Cold::Stream,
                    in_transport: false,
                    zstd: Encoding::new(Format::Zstd, 6),
                    xz: Encoding::new(Format::Xz, 6),
                    compressor: Compressor::new(None, None, metrics.compress()),
                },
                metrics: Arc::clone(&metrics),
                journal: None,
                trust: Trust::default(),
            },
            metrics: Arc::clone(&metrics.workers()[0]),
            heads,
            head: Vec::new(),
            memory: Memory::default(),
            faults: Faults::default(),
            asked: Vec::new(),
            _folder: folder,
        }
    }

    /// A request head as a Nix client sends it.
    pub fn request(target: &str) -> Vec<u8> {
        format!(
            "GET {target} HTTP/1.1\r\nHost: cache.example.org:5000\r\nUser-Agent: curl/8.14.1 Nix/2.31.2\r\n\
             Accept: */*\r\nAccept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n\r\n"
        )
        .into_bytes()
    }

    /// From the bytes of a request to its answer, or to the question that an actor must answer first.
    pub fn answer(&mut self, request: &[u8], now: Instant) -> Step {
        let request = match self.heads.read(request) {
            Ok(Parsed::Complete { request, .. }) => request,
            other => panic!("not a request: {other:?}"),
        };
        let mut exchange = Exchange::new(&request, false, now);
        let mut desk = Desk {
            site: &self.site,
            public_keys: &[],
            view: &mut self.view,
            head: &mut self.head,
            date: DATE,
            memory: &mut self.memory,
            metrics: &self.metrics,
            faults: &mut self.faults,
            now,
            day: None,
            asked: &mut self.asked,
        };
        resolve::step(&mut exchange, Arrival::Asked, &mut desk)
    }
}

/// A whole request head.
pub fn parsed(request: &[u8]) -> Request<'_> {
    match parse(request) {
        Ok(Parsed::Complete { request, .. }) => request,
        other => panic!("not a request: {other:?}"),
    }
}

/// A hash part.
pub fn hash(digits: &str) -> StorePathHash {
    StorePathHash::parse(digits.as_bytes()).expect("it is a hash part")
}

fn settings(folder: &Path) -> store::Settings {
    let state_dir = folder.join("var/nix");
    store::Settings {
        store_dir: StoreDir::new("/nix/store").expect("it is one"),
        real_store: folder.join("store"),
        database: state_dir.join("db/db.sqlite"),
        daemon_socket: state_dir.join("daemon-socket/socket"),
        log_dir: folder.join("var/log/nix"),
        state_dir,
    }
}

/// Ten paths, and one that refers to them all.
fn fill(settings: &store::Settings, folder: &Path) -> Vec<StorePath> {
    let source = folder.join("source");
    let mut writer = Writer::open(settings.clone()).expect("a new store");
    let mut paths = Vec::new();
    for number in 0..10 {
        std::fs::write(&source, format!("contents {number}")).expect("the scratch folder is ours");
        let added = writer.add_source(&source, &format!("library-1.{number}")).expect("it is added");
        paths.push(added.path);
    }
    let output = Output {
        name: "program-2.0",
        inputs: Sha256::of(b"inputs"),
        references: &paths,
        self_reference: true,
    };
    let added = writer.add_output(&source, &output).expect("it is added");
    paths.push(added.path);
    paths
}

/// Does what worker and store actor do together, on one thread.
fn warm_view(settings: &store::Settings, metrics: &Metrics, paths: &[StorePath]) -> Result<View, StoreError> {
    let key = SecretKey::generate("cache.example.org-1").expect("the system gives randomness");
    let mut actor = Store::open(settings, Arc::new([key]), metrics.store())?;
    let (sender, answers) = mpsc::channel();
    let outlet = Outlet::new(move |_, answer| sender.send(answer).expect("somebody listens"));
    let mut ask = |question| {
        actor.handle(question, &outlet);
        answers.try_recv().expect("an unlocked database is answered from at once")
    };
    // As a store that nobody writes to just now: what changed a moment ago is looked at more closely.
    std::thread::sleep(limits::DATABASE_QUIET);
    let mut view = View::new(&settings.database);
    while view.look() == Look::Stale {
        let Answer::Refreshed(snapshot) = ask(Question::Refresh { ticket: TICKET, since: Instant::now() })
        else {
            panic!("not a snapshot")
        };
        view.refreshed(snapshot);
    }
    for path in paths {
        let Answer::Info { hash, epoch, info } = ask(Question::Info { ticket: TICKET, hash: path.hash() })
        else {
            panic!("not what is known of a path")
        };
        view.remember(hash, epoch, &info);
    }
    Ok(view)
}
