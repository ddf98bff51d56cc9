//! Temporary roots through the Nix daemon, for a server without rights in the store's state folder.
//!
//! A root that the daemon was asked for lives as long as the connection it was asked on.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{self, ProtocolError, Version};
use super::socket;
use crate::limits;

/// A connection to the daemon, and so a set of roots.
#[derive(Debug)]
pub struct Connection {
    line: BufReader<Line>,
    version: Version,
}

impl Connection {
    /// Connects to the daemon's socket and greets.
    ///
    /// # Errors
    /// [`ProtocolError`], of which [`ProtocolError::Connection`] has what the system says.
    pub fn open(path: &Path) -> Result<Self, ProtocolError> {
        let stream = socket::connect(path, limits::ROOT_DAEMON_TIME)?;
        stream.set_write_timeout(Some(limits::ROOT_DAEMON_TIME))?;
        let mut line = BufReader::new(Line { stream, until: Instant::now() });
        line.get_mut().send(&protocol::hello())?;
        let version = protocol::read_hello(&mut line)?;
        line.get_mut().send(&protocol::introduction())?;
        protocol::read_welcome(&mut line, version)?;
        Ok(Self { line, version })
    }

    /// Asks for a root for the full store path `path`, and waits until it is there.
    ///
    /// # Errors
    /// [`ProtocolError`], after which the connection is not to be used again.
    pub fn add(&mut self, path: &str) -> Result<(), ProtocolError> {
        self.line.get_mut().send(&protocol::add_temp_root(path))?;
        protocol::read_added(&mut self.line, self.version)
    }

    /// Whether the daemon still holds the connection. It never speaks unasked, so that anything to be read
    /// is its end.
    pub fn alive(&self) -> bool {
        let stream = &self.line.get_ref().stream;
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&at_once)), Ok(0))
    }

    /// Ends the connection as a daemon that dies does.
    #[cfg(test)]
    pub fn shut_down(&self) {
        self.line.get_ref().stream.shutdown(std::net::Shutdown::Both).expect("the stream is open");
    }
}

/// The socket, with one limit on the time for a question and its whole answer.
#[derive(Debug)]
struct Line {
    stream: UnixStream,
    until: Instant,
}

impl Line {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.until = Instant::now() + limits::ROOT_DAEMON_TIME;
        self.stream.write_all(bytes)
    }
}

impl Read for Line {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(bytes)
    }
}
