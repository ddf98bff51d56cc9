//! Readiness by the system: epoll or kqueue, through mio.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Result};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Token, Waker};

use super::files::{self, Residency};
use super::listen::Listener;
use super::socket::Socket;
use super::{Event, Io, Peer, Wake};
use crate::limits;

const WAKE: Token = Token(usize::MAX);

/// The real outside of a worker.
pub struct Poll {
    poll: mio::Poll,
    events: Events,
    waker: Arc<Waker>,
    /// A wake is on its way that no wait has ended with yet: another would say nothing more, for a system call.
    is_woken: Arc<AtomicBool>,
    now: Instant,
    /// Where files are read to that go out encrypted; made for the first.
    plain: Vec<u8>,
}

impl Poll {
    /// A poll that watches nothing yet.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> Result<Self> {
        let poll = mio::Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let events = Events::with_capacity(limits::POLL_EVENTS);
        let (is_woken, now) = (Arc::default(), Instant::now());
        Ok(Self { poll, events, waker, is_woken, now, plain: Vec::new() })
    }

    /// Ends the wait of this poll from any thread; for mailboxes.
    pub fn wake(&self) -> Wake {
        let (waker, is_woken) = (Arc::clone(&self.waker), Arc::clone(&self.is_woken));
        Arc::new(move || {
            if is_woken.swap(true, Ordering::AcqRel) {
                return;
            }
            // Where a wake does not get through, the next message tries again.
            if waker.wake().is_err() {
                is_woken.store(false, Ordering::Release);
            }
        })
    }

    /// Watches a listening socket; its events carry `key`.
    ///
    /// # Errors
    /// When the kernel has no room for another watch.
    pub fn watch_listener(&self, listener: &mut Listener, key: usize) -> Result<()> {
        self.poll.registry().register(listener, Token(key), Interest::READABLE)
    }
}

impl Io for Poll {
    type Socket = Socket;

    fn now(&self) -> Instant {
        self.now
    }

    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> Result<()> {
        match self.poll.poll(&mut self.events, limit) {
            Ok(()) => {}
            // A signal; the turn goes on with nothing.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.events.clear(),
            Err(error) => return Err(error),
        }
        self.now = Instant::now();
        for event in &self.events {
            if event.token() == WAKE {
                // From here on a message wakes again; those before are in the mailbox, which is looked at after this.
                self.is_woken.swap(false, Ordering::AcqRel);
                continue;
            }
            events.push(Event {
                key: event.token().0,
                readable: event.is_readable() || event.is_read_closed() || event.is_error(),
                writable: event.is_writable() || event.is_write_closed() || event.is_error(),
                hung_up: event.is_read_closed() || event.is_error(),
                // A unix socket whose peer has gone is closed in both directions, and that is no error.
                broken: event.is_error() || (event.is_read_closed() && event.is_write_closed()),
            });
        }
        Ok(())
    }

    fn watch(&mut self, socket: &Socket, key: usize) -> Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), Token(key), both)
    }

    fn peer(&self, socket: &Socket) -> Peer {
        socket.peer()
    }

    fn peek(&self, socket: &Socket, into: &mut [u8]) -> Result<usize> {
        retried(|| socket.raw(into, false))
    }

    fn discard(&self, socket: &Socket, into: &mut [u8]) -> Result<usize> {
        retried(|| socket.raw(into, true))
    }

    fn read(&mut self, socket: &mut Socket, into: &mut [u8]) -> Result<usize> {
        retried(|| socket.read(into))
    }

    fn write(&mut self, socket: &mut Socket, parts: &[IoSlice<'_>], more: bool) -> Result<usize> {
        retried(|| socket.write(parts, more))
    }

    fn send_file(&mut self, socket: &mut Socket, file: &File, offset: u64, len: u64) -> Result<usize> {
        retried(|| socket.send_file(file, offset, len, &mut self.plain))
    }

    fn flush(&mut self, socket: &mut Socket) -> Result<()> {
        retried(|| socket.flush().map(|()| 0)).map(drop)
    }

    fn residency(&mut self, file: &File, offset: u64, len: u64) -> Residency {
        files::residency(file, offset, len)
    }

    fn resident_files(&mut self) -> usize {
        limits::RESIDENT_FILES
    }

    fn finish(&mut self, socket: &mut Socket) {
        socket.finish();
    }

    fn close(&mut self, mut socket: Socket) {
        socket.part();
        // The kernel forgets the watch with the last descriptor.
        drop(socket);
    }

    fn abort(&mut self, socket: Socket) {
        socket.reset_on_close();
    }
}

/// A call that a signal interrupted is made again: nothing of it had happened.
fn retried(mut call: impl FnMut() -> Result<usize>) -> Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    /// What comes of a unix socket is told of once; Apple's systems tell of each direction alone.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_peer_that_has_gone_is_no_peer_that_has_ended() {
        for is_gone in [false, true] {
            let mut poll = Poll::new().unwrap();
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let socket = Socket::new(ours.into());
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            let _theirs = (!is_gone).then_some(theirs);
            poll.watch(&socket, 7).unwrap();
            let mut events = Vec::new();
            poll.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
            let told: Vec<_> = events.iter().map(|event| (event.hung_up, event.broken)).collect();
            assert_eq!(told, [(true, is_gone)]);
        }
    }

    #[test]
    fn a_socket_with_bytes_is_ready_and_a_wake_is_no_event() {
        let mut poll = Poll::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut socket = Socket::new(ours.into());
        poll.watch(&socket, 7).unwrap();
        theirs.write_all(b"x").unwrap();
        let mut events = Vec::new();
        poll.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert!(events.iter().any(|event| event.key == 7 && event.readable));
        let mut buffer = [0; 4];
        assert_eq!(poll.read(&mut socket, &mut buffer).unwrap(), 1);

        for _ in 0..3 {
            events.clear();
            // The second has nothing to add; after the wait, one is needed again.
            (0..2).for_each(|_| (poll.wake())());
            poll.wait(&mut events, Some(Duration::from_secs(100))).unwrap();
            assert!(!poll.is_woken.load(Ordering::Acquire), "it slept on: what ended the wait was the time");
            assert!(events.iter().all(|event| event.key == 7), "a wake is not a socket");
        }
    }
}
