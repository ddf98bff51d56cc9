//! Readiness, sockets, `sendfile`, files: the only room with unsafe code and raw system calls.
//!
//! A worker reaches the outside through [`Io`] alone. [`poll::Poll`] is the real one (epoll, kqueue);
//! the simulated twin runs the same worker over invented sockets and an invented clock.

pub mod descriptors;
pub mod files;
pub mod kernel_tls;
#[cfg(target_vendor = "apple")]
mod launchd;
pub mod listen;
#[cfg(any(target_vendor = "apple", test))]
mod mapped;
pub mod poll;
pub mod ring;
#[cfg(test)]
pub mod simulated;
pub mod socket;
pub mod tls;
pub mod wal_index;

use std::fmt;
use std::fs::File;
use std::io::{IoSlice, Result};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use files::Residency;

/// What a worker sees of the outside: sockets, readiness, and the time.
///
/// Readiness is by edges: an event says that something changed, and holds until a call would block.
pub trait Io {
    /// A connected socket.
    type Socket;

    /// The time, as everything in one loop turn sees it.
    fn now(&self) -> Instant;

    /// Waits for readiness or a wake, at most `limit`, and appends what is ready to `events`.
    ///
    /// # Errors
    /// Only those that end the worker.
    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> Result<()>;

    /// Watches a socket for both directions; its events carry `key`.
    ///
    /// # Errors
    /// When the kernel has no room for another watch.
    fn watch(&mut self, socket: &Self::Socket, key: usize) -> Result<()>;

    /// Who is at the other end.
    fn peer(&self, socket: &Self::Socket) -> Peer;

    /// What [`Io::read`] would begin with, before any encryption, left where it is; `Ok(0)` is the peer's end.
    ///
    /// # Errors
    /// As the system call: `WouldBlock` until the next readable event.
    fn peek(&self, socket: &Self::Socket, into: &mut [u8]) -> Result<usize>;

    /// Takes as many bytes as there is room for, before any encryption.
    ///
    /// # Errors
    /// As the system call.
    fn discard(&self, socket: &Self::Socket, into: &mut [u8]) -> Result<usize>;

    /// Reads what is there; `Ok(0)` is the peer's end. Less than there is room for means that nothing more is there.
    ///
    /// # Errors
    /// As the system call: `WouldBlock` until the next readable event.
    fn read(&mut self, socket: &mut Self::Socket, into: &mut [u8]) -> Result<usize>;

    /// Writes the parts, none of them empty, in one call; one alone costs less than two. `more` tells the kernel that more
    /// follows at once, so that a head and the first bytes of a file leave in one packet.
    ///
    /// # Errors
    /// As the system call: `WouldBlock` until the next writable event.
    fn write(&mut self, socket: &mut Self::Socket, parts: &[IoSlice<'_>], more: bool) -> Result<usize>;

    /// Sends a range of a file, without copying it through the process where the process does not encrypt it; 0 means
    /// that the file ended.
    ///
    /// # Errors
    /// As the system call: `WouldBlock` until the next writable event.
    fn send_file(&mut self, socket: &mut Self::Socket, file: &File, offset: u64, len: u64) -> Result<usize>;

    /// Sends what an encrypted socket has taken and not sent yet: an answer has gone only after this.
    ///
    /// # Errors
    /// As the system call: `WouldBlock` until the next writable event.
    fn flush(&mut self, socket: &mut Self::Socket) -> Result<()>;

    /// Whether a range of a file can be sent without waiting for a disk.
    fn residency(&mut self, file: &File, offset: u64, len: u64) -> Residency;

    /// How many small files may be read at a time where their contents are in memory.
    fn resident_files(&mut self) -> usize;

    /// Ends the sending side; the peer sees a clean end.
    fn finish(&mut self, socket: &mut Self::Socket);

    /// Closes the connection.
    fn close(&mut self, socket: Self::Socket);

    /// Closes the connection with a reset, so that the peer cannot take what it has for the whole.
    fn abort(&mut self, socket: Self::Socket);
}

/// Who is at the other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody with an address; one of IPv4 is told as such, whatever socket it came by.
    Tcp(IpAddr),
    /// Somebody on this machine, by a unix socket.
    Unix,
    /// Somebody who has left already.
    Gone,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix => f.write_str("unix"),
            Self::Gone => f.write_str("-"),
        }
    }
}

/// Wakes whoever sleeps in a poll, from any thread.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A socket that became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key given to [`Io::watch`].
    pub key: usize,
    /// There may be something to read, or the peer's end.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// The peer has ended or reset: reading on shows it, and no further event will.
    pub hung_up: bool,
    /// The connection is broken in both directions: nothing can be sent any more.
    pub broken: bool,
}
