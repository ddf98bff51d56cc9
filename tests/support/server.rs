//! The built server as a child process.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::store::hash_of;
use super::{Connection, Response, Scratch, Store, copy_program, nar_url_in, poll};

/// How long the server may take to begin, and to end once asked with nothing in flight.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Runs `$@` where the folder `$0` is read-only, with no rights but those of whoever runs the tests: in namespaces
/// that `unshare` made.
const READ_ONLY: &str = r#"mount --bind "$0" "$0" && mount --options remount,bind,ro "$0" &&
exec setpriv --bounding-set=-all --inh-caps=-all "$@""#;

/// What the server is started with.
pub struct Settings {
    lines: Vec<String>,
    /// The folder of the store and of its state.
    store: PathBuf,
    wrapper: Vec<String>,
    environment: Vec<(String, String)>,
    unprivileged: bool,
    input: Option<OwnedFd>,
}

impl Settings {
    /// The settings for serving `store` from the folder it is in, on a free port of this machine.
    pub fn of(store: &Store) -> Self {
        Self::of_dirs(&store.dir(), &store.real_dir())
    }

    /// The settings for serving StoreDir `dir` from the folder `real`, on a free port of this machine.
    pub fn of_dirs(dir: &str, real: &Path) -> Self {
        let settings = Self {
            lines: Vec::new(),
            store: real.parent().expect("a store is in a folder").to_owned(),
            wrapper: Vec::new(),
            environment: Vec::new(),
            unprivileged: false,
            input: None,
        };
        settings
            .line("bind = \"127.0.0.1:0\"")
            .line("workers = 2")
            .line(&format!("virtual_nix_store = {dir:?}"))
            .line(&format!("real_nix_store = {real:?}"))
    }

    /// One more line of the configuration file, or another for the same key.
    pub fn line(mut self, line: &str) -> Self {
        let key = |line: &str| line.split('=').next().map(|key| key.trim().to_owned());
        self.lines.retain(|old| key(old) != key(line));
        self.lines.push(line.into());
        self
    }

    /// Signs with these secret keys.
    pub fn keys(self, files: &[&Path]) -> Self {
        self.line(&format!("sign_key_paths = {files:?}"))
    }

    /// Starts the server by way of another command.
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.into()).collect();
        self
    }

    /// Starts the server so that it may read the store and write nothing there: as `nobody`, where the tests run as
    /// root; else below a read-only mount of its own.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        if super::is_root() {
            self.through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        } else {
            let store = self.store.to_str().expect("the scratch folder's name is text").to_owned();
            self.through(&["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, &store])
        }
    }

    /// What the server, or the command that starts it, has as standard input.
    pub fn input(mut self, input: OwnedFd) -> Self {
        self.input = Some(input);
        self
    }

    /// One variable of the server's environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The command, its configuration written into `folder`.
    fn command(&self, folder: &Path) -> Command {
        let file = folder.join("settings.toml");
        fs::write(&file, self.lines.join("\n") + "\n").expect("the scratch folder is ours");
        let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_harmonia"));
        if self.unprivileged {
            // The folder it was built in may be closed to others.
            let copy = folder.join("harmonia");
            copy_program(&binary, &copy);
            binary = copy;
        }
        let mut command = match self.wrapper.split_first() {
            None => Command::new(binary),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(binary);
                command
            }
        };
        command.arg("serve").arg("--config").arg(file);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("CACHE_DIRECTORY", folder.join("cache"));
        command.env("RUST_LOG", "info").env("RUST_BACKTRACE", "1").current_dir(folder);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the server and waits until it says where it listens.
    pub fn start(self) -> Server {
        self.start_when(|log| {
            let (_, after) = log.split_once("listening on http")?;
            let after = after.trim_start_matches("s").strip_prefix("://")?;
            let (address, _) = after.split_once(|c: char| c.is_whitespace())?;
            address.trim_end_matches(['/', '\x1b']).parse().ok()
        })
    }

    /// Starts a server that cannot say where it listens: on a port that was free a moment ago.
    pub fn start_silent(self) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        self.line(&format!("bind = \"{address}\"")).start_at(address)
    }

    /// Starts the server and waits until somebody listens at `address`.
    pub fn start_at(self, address: SocketAddr) -> Server {
        self.start_when(|_| TcpStream::connect(address).is_ok().then_some(address))
    }

    fn start_when(mut self, address: impl Fn(&str) -> Option<SocketAddr>) -> Server {
        let scratch = Scratch::new();
        let mut child = self.spawn(scratch.path());
        let log = scratch.path().join("log");
        let address = poll("the server to listen", START_LIMIT, || {
            let text = read_log(&log);
            if let Some(status) = child.try_wait().expect("the child is ours") {
                panic!("the server ended with {status}:\n{text}");
            }
            address(&text)
        });
        Server { child: Some(child), address, scratch }
    }

    /// Starts the server where it must refuse to; what it said.
    pub fn refuses(mut self) -> String {
        let scratch = Scratch::new();
        let mut child = self.spawn(scratch.path());
        let log = scratch.path().join("log");
        let status =
            poll("the server to refuse", START_LIMIT, || child.try_wait().expect("the child is ours"));
        let text = read_log(&log);
        assert!(!status.success() && !text.contains("panicked"), "{status}:\n{text}");
        text
    }

    fn spawn(&mut self, folder: &Path) -> Child {
        let log = File::create(folder.join("log")).expect("the scratch folder is ours");
        let mut command = self.command(folder);
        command.stdin(self.input.take().map_or_else(Stdio::null, Stdio::from));
        command.stdout(log.try_clone().expect("a descriptor can be had")).stderr(log);
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }
}

/// A server at work; it must end well and must not have panicked.
pub struct Server {
    child: Option<Child>,
    pub address: SocketAddr,
    scratch: Scratch,
}

impl Server {
    /// Serves `store`, unsigned.
    pub fn of(store: &Store) -> Self {
        Settings::of(store).start()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn connect(&self) -> Connection {
        Connection::to(self.address)
    }

    /// GET over a connection of its own.
    pub fn get(&self, target: &str) -> Response {
        self.connect().get(target)
    }

    /// The narinfo of a store path.
    pub fn narinfo(&self, path: &str) -> String {
        self.get(&format!("/{}.narinfo", hash_of(path))).text()
    }

    /// Where the NAR of a store path is, by its narinfo: what to ask for.
    pub fn nar_url(&self, path: &str) -> String {
        nar_url_in(&self.narinfo(path))
    }

    /// A metric's value, summed over the series whose line contains each of `parts`.
    pub fn metric(&self, name: &str, parts: &[&str]) -> f64 {
        let text = self.get("/metrics").text();
        let lines = text.lines().filter(|line| {
            let series = line.split(['{', ' ']).next();
            series == Some(name) && parts.iter().all(|part| line.contains(part))
        });
        lines.map(|line| line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)).sum()
    }

    pub fn log(&self) -> String {
        read_log(&self.log_file())
    }

    /// The configuration file that it read.
    pub fn settings_file(&self) -> PathBuf {
        self.scratch.path().join("settings.toml")
    }

    pub fn log_file(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it has not ended").id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a process has a number");
        kill_process(pid, signal).expect("the child is ours and not waited for");
    }

    /// Waits for the end; nothing may have panicked.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("it has not ended");
        let status = poll("the server to end", limit, || child.try_wait().expect("the child is ours"));
        self.child = None;
        assert!(!self.log().contains("panicked"), "the server panicked:\n{}", self.log());
        status
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib * 1024
    }

    /// How many descriptors are open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }
}

impl Drop for Server {
    #[expect(clippy::print_stderr, reason = "what the server said belongs to what a failed test shows")]
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if std::thread::panicking() {
            let _ = child.kill();
            let _ = child.wait();
            eprintln!("the server's log:\n{}", tail(&self.log()));
            return;
        }
        self.child = Some(child);
        self.signal(Signal::TERM);
        let status = self.wait(START_LIMIT);
        assert!(status.success(), "asked to end, the server ended with {status}:\n{}", tail(&self.log()));
    }
}

fn read_log(file: &Path) -> String {
    super::lossy(&fs::read(file).unwrap_or_default())
}

/// The last lines: a test may have made thousands.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
