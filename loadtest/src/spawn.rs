//! Starting the servers that are compared, and ending them.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::process::Tree;

/// How long a server may take to listen; one with a million paths is to be there within 2 s.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to end when asked.
const END_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start `{command}`: {source}")]
    Spawn { command: String, source: io::Error },
    #[error("`{command}` ended ({status}) before it listened; its last words:\n{words}")]
    Ended { command: String, status: std::process::ExitStatus, words: String },
    #[error("`{command}` does not listen on 127.0.0.1:{port} after {START_MAX:?}; its last words:\n{words}")]
    Silent { command: String, port: u16, words: String },
}

/// A server that was started here, and that ends with this value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pub port: u16,
    pub tree: Tree,
}

impl Server {
    /// Runs a shell command in a process group of its own, and waits until it listens on `port`. What it prints
    /// goes to `log`.
    pub fn start(command: &str, port: u16, log: &Path) -> Result<Self, StartError> {
        let spawn = || {
            let out = File::create(log)?;
            let mut shell = Command::new("sh");
            // `exec` would break compound commands; the tree is measured and ended as a whole.
            shell.arg("-c").arg(command).process_group(0).stdin(Stdio::null());
            shell.stdout(out.try_clone()?).stderr(out).spawn()
        };
        let child = spawn().map_err(|source| StartError::Spawn { command: command.to_owned(), source })?;
        let tree = Tree::of(&child);
        let mut server = Self { child, port, tree };
        let begun = Instant::now();
        loop {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(server);
            }
            let words = || last_words(log);
            let command = command.to_owned();
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(StartError::Ended { command, status, words: words() });
            }
            if begun.elapsed() > START_MAX {
                return Err(StartError::Silent { command, port, words: words() });
            }
            thread::sleep(LOOK);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}

impl Drop for Server {
    /// Ends the group that was started, by its number: first asking, then not.
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < END_MAX {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                break;
            }
            thread::sleep(LOOK);
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// A port of the loopback that is free now.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_start_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let error = Server::start("echo no such key >&2; exit 3", 1, &log).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no such key") && text.contains('3'), "{text}");
    }
}
