//! Who takes part, and how each is started: a process of its own, so that its processor time is its own.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{epoll, ring, runtimes};

/// The whole answer, head included: about what a narinfo takes.
pub const ANSWER_LEN: usize = 600;

/// Where every contender listens: a port that the system picks.
pub const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// How long a server may take to start.
const START_TIME: Duration = Duration::from_secs(10);

/// A server that runs on until its process is killed.
type Serve = fn(answer: &'static [u8]) -> io::Result<()>;

/// A server to be measured.
pub struct Contender {
    /// As the table and the command line have it.
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    /// Built in: this program runs itself.
    Engine(Serve),
    /// Another program that serves a file, where it is installed: its names, and what makes its command.
    Program(&'static [&'static str], fn(program: &str, folder: &Path, port: u16) -> io::Result<Command>),
}

/// All contenders, in the order of the table.
pub const ALL: &[Contender] = &[
    engine("epoll, direct (mio)", epoll::serve),
    engine("io_uring, direct", ring::serve),
    engine("tokio, current thread", runtimes::tokio),
    engine("monoio", runtimes::monoio),
    engine("tokio-uring", runtimes::tokio_uring),
    engine("compio", runtimes::compio),
    engine("glommio", runtimes::glommio),
    Contender {
        name: "lighttpd, static file",
        kind: Kind::Program(&["lighttpd", "/usr/sbin/lighttpd"], lighttpd),
    },
    Contender {
        name: "nginx, static file, cached handle",
        kind: Kind::Program(&["nginx", "/usr/sbin/nginx"], nginx),
    },
];

const fn engine(name: &'static str, serve: Serve) -> Contender {
    Contender { name, kind: Kind::Engine(serve) }
}

/// A contender that runs. Killed when dropped.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    _folder: Option<TempDir>,
}

impl Contender {
    /// Starts it. It runs where the calling thread may run.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] for a program that is not installed.
    pub fn start(&self) -> io::Result<Running> {
        match &self.kind {
            Kind::Engine(_) => self.start_engine(),
            Kind::Program(names, command) => start_program(names, *command),
        }
    }

    /// Serves in this process.
    ///
    /// # Errors
    /// Whatever the engine fails with.
    pub fn serve(&self) -> io::Result<()> {
        // A bench that is interrupted leaves no server behind.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        match self.kind {
            Kind::Engine(serve) => serve(answer().leak()),
            Kind::Program(..) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn start_engine(&self) -> io::Result<Running> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--serve", self.name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let address = line.trim().parse();
        // From here on it is killed whatever happens.
        let mut running = Running { address: ([0; 4], 0).into(), child, _folder: None };
        running.address = address.map_err(|_| io::Error::other("it did not start"))?;
        Ok(running)
    }
}

impl Running {
    /// The processor time it has used, in its own code and in the kernel on its behalf, over all its threads.
    ///
    /// # Errors
    /// Where the system does not tell, or it has ended.
    pub fn processor_time(&self) -> io::Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
            nanoseconds += first.ok_or_else(|| io::Error::other("schedstat has no number"))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says where the engine listens, to the process that started it.
pub fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{address}")?;
    out.flush()
}

/// Whether all of a request has come. Requests have no body, and none is sent before the last is answered.
pub fn is_request(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n\r\n")
}

fn answer() -> Vec<u8> {
    let head = |length| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    let mut answer = head(ANSWER_LEN - head(ANSWER_LEN).len());
    answer.resize(ANSWER_LEN, b'x');
    answer
}

fn start_program(
    names: &[&str],
    command: fn(&str, &Path, u16) -> io::Result<Command>,
) -> io::Result<Running> {
    let folder = TempDir::new()?;
    // As long as the other answers' bodies and the difference of the heads.
    fs::write(folder.path().join("file"), vec![b'x'; ANSWER_LEN - 200])?;
    let address = TcpListener::bind(ANY_PORT)?.local_addr()?;
    let mut last = io::ErrorKind::NotFound.into();
    for name in names {
        let mut command = command(name, folder.path(), address.port())?;
        match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => {
                let mut running = Running { address, child, _folder: Some(folder) };
                running.wait_for_port()?;
                return Ok(running);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Running {
    fn wait_for_port(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START_TIME;
        while TcpStream::connect(self.address).is_err() {
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(io::Error::other("it did not start"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn lighttpd(program: &str, folder: &Path, port: u16) -> io::Result<Command> {
    let config = folder.join("lighttpd.conf");
    let root = folder.display();
    // The most requests a connection that it can be told.
    let text = format!(
        "server.document-root = \"{root}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\n\
         server.max-keep-alive-requests = 65535\n"
    );
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    command.arg("-D").arg("-f").arg(config);
    Ok(command)
}

fn nginx(program: &str, folder: &Path, port: u16) -> io::Result<Command> {
    let config = folder.join("nginx.conf");
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let places: String = places.iter().map(|name| format!("{name}_temp_path {name};\n")).collect();
    let text = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{ {places} access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;\n\
         open_file_cache max=16; server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
        folder.display()
    );
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).arg("-c").arg(config);
    Ok(command)
}
