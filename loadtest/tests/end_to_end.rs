//! The program as people run it, against caches of this file's own making.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// How long something may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

const HASHES: [&str; 3] = [
    "00000000000000000000000000000000",
    "11111111111111111111111111111111",
    "22222222222222222222222222222222",
];

/// A binary cache of three paths, the first of which refers to the second, and that to the third.
#[derive(Default)]
struct Cache {
    files: HashMap<String, Vec<u8>>,
    /// Ranges are answered with the whole.
    ignores_ranges: bool,
    /// All requests from this one on wait until the stall is over.
    stall: Option<(u64, Duration)>,
    asked: Arc<AtomicU64>,
}

impl Cache {
    fn new() -> Self {
        let mut cache = Self::default();
        cache.files.insert("/nix-cache-info".into(), b"StoreDir: /nix/store\nWantMassQuery: 1\n".to_vec());
        for (index, hash) in HASHES.iter().enumerate() {
            let nar: Vec<u8> = (0..50_000 * (index + 1)).map(|at| (at * 7 + index) as u8).collect();
            let sha256: String = Sha256::digest(&nar).iter().map(|byte| format!("{byte:02x}")).collect();
            let reference = HASHES.get(index + 1).map(|hash| format!("{hash}-x")).unwrap_or_default();
            let info = format!(
                "StorePath: /nix/store/{hash}-x\nURL: nar/{index}.nar\nCompression: none\n\
                 NarHash: sha256:{sha256}\nNarSize: {}\nReferences: {reference}\n",
                nar.len()
            );
            cache.files.insert(format!("/{hash}.narinfo"), info.into_bytes());
            cache.files.insert(format!("/nar/{index}.nar"), nar);
        }
        cache
    }

    /// Serves until the test's process ends; gives the URL.
    fn serve(self) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback has a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let cache = Arc::new(self);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let cache = Arc::clone(&cache);
                // A client that cuts the connection is what some of the tests are about.
                thread::spawn(move || drop(cache.converse(stream)));
            }
        });
        url
    }

    fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                    break at + 4;
                }
                let mut piece = [0; 4096];
                let count = stream.read(&mut piece)?;
                if count == 0 {
                    return Ok(());
                }
                buffer.extend_from_slice(&piece[..count]);
            };
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end);
            let number = self.asked.fetch_add(1, Ordering::SeqCst);
            if let Some((from, span)) = self.stall
                && number == from
            {
                thread::sleep(span);
            }
            stream.write_all(&self.answer(&head))?;
            if head.contains("Connection: close") {
                return Ok(());
            }
        }
    }

    fn answer(&self, head: &str) -> Vec<u8> {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let Some(body) = self.files.get(path) else {
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
        };
        let from =
            head.lines().find_map(|line| line.strip_prefix("Range: bytes=")?.strip_suffix('-')?.parse().ok());
        let (status, part) = match from.filter(|_| !self.ignores_ranges) {
            Some(from) => {
                let (last, total) = (body.len() - 1, body.len());
                let status = format!("206 Partial Content\r\nContent-Range: bytes {from}-{last}/{total}");
                (status, &body[from..])
            }
            None => ("200 OK".to_owned(), &body[..]),
        };
        let mut answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", part.len()).into_bytes();
        answer.extend_from_slice(part);
        answer
    }
}

fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().expect("it was built")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A file with the hash parts of all three.
fn list(folder: &Path) -> String {
    let file = folder.join("paths");
    fs::write(&file, HASHES.map(|hash| format!("/nix/store/{hash}-x\n")).concat())
        .expect("the folder is ours");
    file.display().to_string()
}

/// Runs, with `--json`, and gives what was measured.
fn measured(folder: &Path, arguments: &[&str]) -> Value {
    let file = folder.join("out.json");
    let mut all = arguments.to_vec();
    let name = file.display().to_string();
    all.extend(["--json", &name]);
    let output = loadtest(&all);
    assert_eq!(code(&output), 0, "{}", printed(&output));
    let text = fs::read_to_string(file).expect("--json writes it");
    serde_json::from_str(&text).expect("it is JSON")
}

#[test]
fn narinfos_are_counted_and_reported() {
    let (url, folder) = (Cache::new().serve(), tempfile::tempdir().unwrap());
    let (paths, report) = (list(folder.path()), folder.path().join("report"));
    let report_name = report.display().to_string();
    let json = measured(
        folder.path(),
        &[
            "narinfo",
            "--target",
            &url,
            "--paths",
            &paths,
            "--requests",
            "100",
            "-c",
            "1,4",
            "--verify",
            "--report",
            &report_name,
        ],
    );
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        assert_eq!((run["requests"].as_u64(), run["errors"].as_u64()), (Some(100), Some(0)));
        assert_eq!(run["series"][0]["statuses"]["200"], 100);
        assert_eq!(run["connections_opened"], run["connections"]);
    }
    let page = fs::read_to_string(report.join("index.html")).unwrap();
    assert!(page.contains("<svg") && !page.replace(&url, "").contains("://"));
}

#[test]
fn every_nar_comes_once_by_any_number_of_connections() {
    let (url, folder) = (Cache::new().serve(), tempfile::tempdir().unwrap());
    let json =
        measured(folder.path(), &["nar", "--target", &url, "--paths", &list(folder.path()), "--verify"]);
    for run in json["runs"].as_array().unwrap() {
        assert_eq!((run["requests"].as_u64(), run["bytes"].as_u64()), (Some(3), Some(300_000)), "{run:#}");
    }
    let dropped =
        measured(folder.path(), &["nar", "--target", &url, "--paths", &list(folder.path()), "-c", "2"]);
    assert_eq!(dropped["runs"][0]["bytes"], 300_000);
}

#[test]
fn roots_bring_what_they_refer_to() {
    let (url, folder) = (Cache::new().serve(), tempfile::tempdir().unwrap());
    let closure =
        ["closure", "--target", &url, "--clients", "2", "--miss-ratio", "0.75", "--roots", HASHES[0]];
    let json = measured(folder.path(), &closure);
    let requests = |series: usize| json["runs"][0]["series"][series]["requests"].as_u64().unwrap();
    assert_eq!((requests(0), requests(1), requests(2)), (6, 18, 6), "{json:#}");
}

#[test]
fn cut_transfers_are_resumed() {
    let (url, folder) = (Cache::new().serve(), tempfile::tempdir().unwrap());
    let json = measured(folder.path(), &["range", "--target", &url, "--paths", &list(folder.path())]);
    assert_eq!(json["runs"][0]["requests"], 3);
    assert!(json["runs"][0]["bytes"].as_u64().unwrap() >= 300_000);
}

#[test]
fn crowds_do_not_count_and_do_not_hang() {
    let (url, folder) = (Cache::new().serve(), tempfile::tempdir().unwrap());
    let paths = list(folder.path());
    for scenario in ["idle", "slow"] {
        let size = if scenario == "idle" { "--idle" } else { "--slow" };
        let begun = Instant::now();
        let arguments =
            [scenario, "--target", &url, "--paths", &paths, size, "20", "--rate", "50", "--duration", "1"];
        let json = measured(folder.path(), &arguments);
        assert!(json["runs"][0]["series"][0]["requests"].as_u64().unwrap() > 0, "{json:#}");
        assert_eq!(json["runs"][0]["series"][1]["requests"], 0);
        assert!(begun.elapsed() < LIMIT);
    }
}

#[test]
fn nars_that_stream_beside_are_received_by_another_thread() {
    let (url, folder) = (Cache::new().serve(), tempfile::tempdir().unwrap());
    let paths = list(folder.path());
    let arguments = ["cold", "--target", &url, "--paths", &paths, "--rate", "50", "--duration", "1"];
    let json = measured(folder.path(), &arguments);
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{json:#}");
    assert_eq!(runs[0]["series"].as_array().unwrap().len(), 1, "alone");
    let beside = &runs[1]["series"];
    assert_eq!(beside[0]["requests"], 50, "{json:#}");
    assert_eq!((beside[1]["name"].as_str(), beside[1]["requests"].as_u64()), (Some("streams"), Some(0)));
    assert!(beside[1]["bytes"].as_u64().unwrap() >= 300_000, "each NAR at least once: {json:#}");
    assert_eq!(runs[1]["errors"], 0);
}

#[test]
fn wrong_bytes_fail() {
    let folder = tempfile::tempdir().unwrap();
    let paths = list(folder.path());
    let mut cache = Cache::new();
    cache.files.get_mut("/nar/1.nar").unwrap()[70_000] ^= 1;
    let url = cache.serve();
    let arguments = ["nar", "--target", &url, "--paths", &paths, "-c", "2"];
    assert_eq!(code(&loadtest(&arguments)), 0, "without --verify only the length is looked at");
    let output = loadtest(&[&arguments[..], &["--verify"]].concat());
    assert_eq!(code(&output), 1);
    assert!(printed(&output).contains("NAR of another hash"), "{}", printed(&output));

    let mut cache = Cache::new();
    cache.files.get_mut("/nar/1.nar").unwrap().pop();
    let output = loadtest(&["nar", "--target", &cache.serve(), "--paths", &paths, "-c", "1"]);
    assert_eq!(code(&output), 1);
    assert!(printed(&output).contains("NAR of another length"), "{}", printed(&output));

    let cache = Cache { ignores_ranges: true, ..Cache::new() };
    let output = loadtest(&["range", "--target", &cache.serve(), "--paths", &paths]);
    assert_eq!(code(&output), 1);
    assert!(printed(&output).contains("200 to a Range request"), "{}", printed(&output));
}

#[test]
fn wrong_narinfos_fail_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let paths = list(folder.path());
    let mut cache = Cache::new();
    let other = cache.files[&format!("/{}.narinfo", HASHES[0])].clone();
    cache.files.insert(format!("/{}.narinfo", HASHES[1]), other);
    // One that is missing does not hide one that is wrong.
    cache.files.remove(&format!("/{}.narinfo", HASHES[2]));
    let url = cache.serve();
    for scenario in ["nar", "range", "closure"] {
        let output = loadtest(&[scenario, "--target", &url, "--paths", &paths]);
        assert_eq!(code(&output), 1, "{}", printed(&output));
        let words = format!("1 of 3 narinfos (first: {}: narinfo of another path)", HASHES[1]);
        assert!(printed(&output).contains(&words), "{}", printed(&output));
    }
}

#[test]
fn compressed_nars_are_decompressed_to_be_verified() {
    let folder = tempfile::tempdir().unwrap();
    let paths = list(folder.path());
    let compressed = |spoil: fn(&mut Vec<u8>)| {
        let mut cache = Cache::new();
        for (index, hash) in HASHES.iter().enumerate() {
            let mut nar = cache.files.remove(&format!("/nar/{index}.nar")).unwrap();
            if index == 1 {
                spoil(&mut nar);
            }
            // In two frames, as a cache made of chunks has it; its narinfo does not tell the size yet.
            let mut file = Vec::new();
            for part in nar.chunks(nar.len().div_ceil(2)) {
                let mut frame = Vec::with_capacity(zstd_safe::compress_bound(part.len()));
                zstd_safe::compress(&mut frame, part, 1).unwrap();
                file.extend(frame);
            }
            let info = cache.files.get_mut(&format!("/{hash}.narinfo")).unwrap();
            *info = String::from_utf8(info.clone())
                .unwrap()
                .replace("Compression: none", "Compression: zstd")
                .into();
            cache.files.insert(format!("/nar/{index}.nar"), file);
        }
        cache.serve()
    };
    let verify = |url: &str| loadtest(&["nar", "--target", url, "--paths", &paths, "-c", "2", "--verify"]);
    let right = verify(&compressed(|_| ()));
    assert_eq!(code(&right), 0, "{}", printed(&right));
    let wrong = verify(&compressed(|nar| nar[70_000] ^= 1));
    assert_eq!(code(&wrong), 1);
    assert!(printed(&wrong).contains("file of another NAR"), "{}", printed(&wrong));
}

#[test]
fn thresholds_that_are_not_met_fail() {
    let (url, folder) = (Cache::new().serve(), tempfile::tempdir().unwrap());
    let paths = list(folder.path());
    let base = ["narinfo", "--target", &url, "--paths", &paths, "--requests", "50", "-c", "1"];
    for (threshold, expected) in
        [(["--max-p99", "0.000001"], 1), (["--max-p99", "60000"], 0), (["--min-rate", "1e9"], 1)]
    {
        let output = loadtest(&[&base[..], &threshold].concat());
        assert_eq!(code(&output), expected, "{}", printed(&output));
    }
    fs::write(folder.path().join("absent"), "33333333333333333333333333333333\n").unwrap();
    let absent = folder.path().join("absent").display().to_string();
    let base = ["narinfo", "--target", &url, "--paths", &absent, "--requests", "5", "-c", "1"];
    let output = loadtest(&base);
    assert_eq!(code(&output), 1);
    assert!(printed(&output).contains("5 × status 404"), "{}", printed(&output));
    assert_eq!(code(&loadtest(&[&base[..], &["--max-errors", "5"]].concat())), 0);
}

/// A URL where nobody listens, for as long as the socket holds its port.
fn nobody() -> (OwnedFd, String) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket can be had");
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("the loopback has a free port");
    let bound =
        SocketAddr::try_from(getsockname(&socket).expect("it is bound")).expect("it is of the loopback");
    (socket, format!("http://{bound}"))
}

#[test]
fn what_cannot_be_measured_is_said() {
    let url = Cache::new().serve();
    let (_kept, nobody) = nobody();
    for (arguments, words) in [
        (&["narinfo"][..], "--target"),
        (&["miss", "--target", "https://127.0.0.1"], "only http://"),
        (&["miss", "--target", &nobody, "--timeout", "1"], "connection refused"),
        (&["narinfo", "--target", &url], "--paths FILE, --roots PATH… or --store DIR"),
        (&["narinfo", "--target", &url, "--store", "/nonexistent"], "/nonexistent/nix/var/nix/db/db.sqlite"),
        (&["narinfo", "--target", &url, "--roots", "x"], "not a store path"),
        (&["nar", "--target", &url, "--roots", "33333333333333333333333333333333"], "status 404"),
        (&["churn", "--target", &url, "--roots", HASHES[0]], "--store DIR"),
        (&["miss", "--target", &url, "-c", "0"], "at least 1"),
    ] {
        let output = loadtest(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", printed(&output));
        assert!(printed(&output).contains(words), "{arguments:?}: {}", printed(&output));
    }
}

#[test]
fn at_a_fixed_rate_a_stall_is_felt_by_all_that_were_due_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let stalling = || Cache { stall: Some((30, Duration::from_millis(800))), ..Cache::new() }.serve();
    let p90 = |json: &Value| json["runs"][0]["series"][0]["latency_us"]["p90"].as_f64().unwrap() / 1e3;
    // One connection, 100 a second for 2 s: 80 of 200 were due while the cache stood still.
    let url = stalling();
    let fixed = ["miss", "--target", &url, "-c", "1", "--rate", "100", "--duration", "2"];
    let json = measured(folder.path(), &fixed);
    assert!(p90(&json) > 300.0, "{json:#}");
    // What became due in the stall is asked for after it, as far as a busy machine comes to it in time.
    assert!(json["runs"][0]["requests"].as_u64().unwrap() > 50, "{json:#}");
    // In a closed loop, but one felt it.
    let url = stalling();
    let json = measured(folder.path(), &["miss", "--target", &url, "-c", "1", "--requests", "200"]);
    assert!(p90(&json) < 300.0, "{json:#}");
}

#[test]
fn an_interrupted_run_prints_what_it_measured() {
    let cache = Cache::new();
    let asked = Arc::clone(&cache.asked);
    let url = cache.serve();
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["miss", "--target", &url, "-c", "2", "--duration", "600"]).stdout(Stdio::piped());
    let begun = Instant::now();
    let child = command.spawn().unwrap();
    while asked.load(Ordering::SeqCst) < 100 {
        assert!(begun.elapsed() < LIMIT, "it asks for nothing");
        thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < 2 * LIMIT);
    assert_eq!(code(&output), 0);
    let printed = printed(&output);
    assert!(printed.contains("interrupted") && printed.contains("p99.9"), "{printed}");
}

/// A store of a few paths, made by Nix.
#[cfg(target_os = "linux")]
fn small_store(folder: &Path) {
    for index in 0..4 {
        let file = folder.join(format!("file-{index}"));
        fs::write(&file, vec![index as u8; 100_000 * (index + 1)]).expect("the folder is ours");
        let added = Command::new("nix-store").arg("--store").arg(folder).arg("--add").arg(&file).output();
        let added = added.expect("nix-store is installed (scripts/test does)");
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn servers_are_compared_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    small_store(folder.path());
    let store = folder.path().display().to_string();
    let json = folder.path().join("out.json").display().to_string();
    let server = format!("exec python3 -m http.server {{port}} --bind 127.0.0.1 --directory '{store}/flat'");
    let base = [
        "compare",
        "--store",
        &store,
        "--peer",
        "lighttpd",
        "--server",
        &server,
        "--pairs",
        "2",
        "--requests",
        "50",
        "--scenario",
        "nar@2,narinfo@4",
        "--json",
        &json,
    ];
    let output = loadtest(&[&base[..], &["--at-most", "nar@2:cpu=100000"]].concat());
    assert_eq!(code(&output), 0, "{}", printed(&output));
    let value: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    for scenario in value["comparison"]["scenarios"].as_array().unwrap() {
        assert_eq!(scenario["pairs"], 2);
        assert!(scenario["ratios"][0]["ratio"].as_f64().unwrap() > 0.0, "{scenario:#}");
    }
    // Configuration, logs and processes are gone: no command line names the store any more.
    assert!(
        fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .all(|entry| { !entry.file_name().to_string_lossy().starts_with("compare-") })
    );
    let naming = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&store)
    });
    assert_eq!(naming.count(), 0);

    let output = loadtest(&[&base[..], &["--at-most", "narinfo@4:cpu=0.000001"]].concat());
    assert_eq!(code(&output), 1, "{}", printed(&output));
    let output = loadtest(&["compare", "--store", &store, "--server", "echo no such key >&2; exit 3"]);
    assert_eq!(code(&output), 2);
    assert!(printed(&output).contains("no such key"), "{}", printed(&output));
}

#[cfg(target_os = "linux")]
#[test]
fn a_comparison_interrupted_before_a_pair_is_complete_has_no_numbers() {
    let folder = tempfile::tempdir().unwrap();
    small_store(folder.path());
    let store = folder.path().display().to_string();
    let json = folder.path().join("out.json");
    // The server's first NAR takes as long as the test likes.
    let reached = folder.path().join("reached");
    let script = format!(
        "import http.server, time\n\
         class Handler(http.server.SimpleHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       if self.path.endswith('.nar'):\n\
         \x20           open('{}', 'w').close()\n\
         \x20           time.sleep(600)\n\
         \x20       super().do_GET()\n\
         import sys\n\
         http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n",
        reached.display()
    );
    let program = folder.path().join("server.py");
    fs::write(&program, script).unwrap();
    let server = format!("cd '{store}/flat' && exec python3 '{}' {{port}}", program.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["compare", "--store", &store, "--server", &server, "--pairs", "3"]);
    command.args(["--scenario", "nar@2,miss@2", "--json"]).arg(&json);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while !reached.exists() {
        assert!(begun.elapsed() < LIMIT, "it asks for no NAR");
        thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 2, "{}", printed(&output));
    let printed = printed(&output);
    assert!(!printed.contains("NaN"), "{printed}");
    assert!(printed.contains("nar@2 0 of 3, miss@2 0 of 3"), "{printed}");
    let value: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert!(value["comparison"]["scenarios"][0]["ratios"][0]["ratio"].is_null(), "{value:#}");
}
