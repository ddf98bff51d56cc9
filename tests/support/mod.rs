//! What the integration tests stand on: real stores made by the real Nix, the built server over them, and
//! plain sockets to look at every byte with.
//!
//! Nothing here uses the server's own code: a mistake shared by both sides would hide.

pub mod authority;
pub mod doctor;
pub mod fake;
pub mod proxy;
pub mod server;
pub mod store;
pub mod wire;

use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub use server::{Server, Settings};
pub use store::{Kind, Store};
pub use wire::{Connection, Response};

/// No command that a test runs takes longer on a slow and busy machine.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// A folder that vanishes with its test, folders that Nix made read-only included.
pub struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("harmonia-test-").tempdir().expect("a scratch folder");
        // A server run as another user must get through.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("the scratch folder is ours");
        Self(Some(folder))
    }

    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("it is there until it is dropped").path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(folder) = self.0.take() {
            let _ =
                Command::new("chmod").args(["-R", "u+w"]).arg(folder.path()).stderr(Stdio::null()).status();
            let _ = folder.close();
        }
    }
}

/// Runs a command to its end, within [`COMMAND_LIMIT`].
pub fn run(command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error} (scripts/test installs what the tests need)"));
    let stdout = drain(child.stdout.take().expect("it is piped"));
    let stderr = drain(child.stderr.take().expect("it is piped"));
    let deadline = Instant::now() + COMMAND_LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{shown}: did not end within {COMMAND_LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(2));
    };
    let stdout = stdout.join().expect("reading does not panic");
    let stderr = stderr.join().expect("reading does not panic");
    Output { status, stdout, stderr }
}

/// Runs a command that must succeed; its standard output.
pub fn succeed(command: &mut Command) -> Vec<u8> {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, lossy(&output.stderr));
    output.stdout
}

/// Runs a command that must fail; its standard error.
pub fn fail(command: &mut Command) -> String {
    let output = run(command);
    assert!(!output.status.success(), "{command:?} succeeded:\n{}", lossy(&output.stdout));
    lossy(&output.stderr)
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `look` gives something, asking again and again; panics after `limit`.
pub fn poll<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `holds` is true, asking again and again; panics after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    poll(what, limit, || holds().then_some(()));
}

/// Copies a program to be run. By another process: one that another test starts meanwhile would inherit a file of ours
/// that is open for writing, and what somebody may write cannot be run.
pub fn copy_program(from: &Path, to: &Path) {
    succeed(Command::new("cp").arg(from).arg(to));
}

/// Where the NAR of a narinfo is: what to ask its server for.
pub fn nar_url_in(narinfo: &str) -> String {
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: "));
    format!("/{}", url.expect("a narinfo has a URL"))
}

/// What `program`, `zstd` or `xz`, makes of a compressed file.
pub fn decompressed(program: &str, file: &[u8]) -> Vec<u8> {
    let command = Command::new(program).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = command.expect("scripts/test installs it");
    let mut stdin = child.stdin.take().expect("it is piped");
    let file = file.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&file));
    let output = child.wait_with_output().expect("the child is ours");
    writer.join().expect("writing does not panic").expect("it reads to the end");
    assert!(output.status.success(), "{program}: {}", output.status);
    output.stdout
}

/// Raises what this process may hold open, for tests that hold thousands of connections themselves.
pub fn raise_descriptors(wanted: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    assert!(
        hard >= wanted,
        "this test needs {wanted} descriptors, the hard limit is {hard}: raise it (ulimit -H -n)"
    );
    let raised =
        Rlimit { current: Some(wanted.max(limit.current.unwrap_or(u64::MAX))), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the hard limit allows it");
}

/// Whether the tests run as root, where file permissions stop nothing.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Bytes that repeat only after a long while, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// SplitMix64: small, seedable, good enough to choose test inputs.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Writes a file, with the folders above it.
pub fn write(path: impl Into<PathBuf>, contents: impl AsRef<[u8]>) {
    let path = path.into();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
    }
    fs::write(&path, contents).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
