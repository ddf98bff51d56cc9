//! The simulated twin of [`super::poll::Poll`]: invented sockets and an invented clock, driven by a seed.
//!
//! It keeps to what a kernel does: bytes arrive in pieces and in order, an event comes with each change and
//! not again, a full buffer blocks until the peer reads. An encrypted link takes bytes that it has not sent yet, and sends
//! them with the next write or [`Io::flush`]. Within that it is as unkind as it can be: pieces of
//! any size, partial writes, resets, ends and read errors at any moment.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::files::Residency;
use super::{Event, Io, Peer};
use crate::limits;

/// Numbers that look random and follow from a seed (splitmix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall as `seed` says.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// One connection, seen from both ends.
#[derive(Debug, Default)]
pub struct Link {
    key: Option<usize>,
    /// Sent by the client and on its way.
    transit: VecDeque<u8>,
    /// Arrived at the server.
    inbound: VecDeque<u8>,
    /// The client has ended its sending side, once all has arrived.
    client_ended: bool,
    reset: bool,
    unwritable: bool,
    /// Taken from the server, not yet sent, where the link is encrypted.
    held: VecDeque<u8>,
    is_encrypted: bool,
    /// Sent by the server, not yet read by the client.
    outbound: VecDeque<u8>,
    capacity: usize,
    /// The server found `outbound` full.
    blocked: bool,
    /// Changes that the server has not been told of.
    readable: bool,
    writable: bool,
    /// What the client has read.
    pub received: Vec<u8>,
    /// The server has ended its sending side.
    pub finished: bool,
    /// The server has closed the connection.
    pub closed: bool,
    /// … with a reset.
    pub aborted: bool,
}

impl Link {
    /// Whether the server may still do something with it.
    pub fn is_open(&self) -> bool {
        !self.closed && !self.aborted
    }

    /// Whether bytes are on their way to an end that is still there.
    pub fn is_moving(&self) -> bool {
        let to_server = self.is_open() && !self.finished && !self.all_taken();
        to_server || !self.outbound.is_empty() || !self.held.is_empty()
    }

    fn arrive(&mut self, count: usize) {
        let count = count.min(self.transit.len());
        self.inbound.extend(self.transit.drain(..count));
        self.readable |= count > 0;
    }

    /// Takes some of `bytes` to be sent: as many as a send of `room` bytes has room for, or what encryption takes at a time.
    fn take(&mut self, dice: &mut Dice, bytes: &[u8]) -> Result<usize> {
        if !self.is_encrypted {
            let count = room(self, dice, bytes.len())?;
            self.outbound.extend(&bytes[..count]);
            return Ok(count);
        }
        self.flush(dice)?;
        let count = bytes.len().min(limits::TLS_BUFFER);
        self.held.extend(&bytes[..count]);
        match self.flush(dice) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(count),
        }
    }

    /// Sends what was taken and is held.
    fn flush(&mut self, dice: &mut Dice) -> Result<()> {
        while !self.held.is_empty() {
            let count = room(self, dice, self.held.len())?;
            self.outbound.extend(self.held.drain(..count));
        }
        Ok(())
    }

    /// Copies what has arrived; 0 is the client's end.
    fn arrived(&self, into: &mut [u8]) -> Result<usize> {
        if self.reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if self.inbound.is_empty() {
            return if self.client_ended { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let count = into.len().min(self.inbound.len());
        for (place, byte) in into.iter_mut().zip(&self.inbound) {
            *place = *byte;
        }
        Ok(count)
    }

    /// Whether everything that the client has sent has been read by the server.
    pub fn all_taken(&self) -> bool {
        self.transit.is_empty() && self.inbound.is_empty()
    }
}

/// All links, the clock and the dice; clones share them.
#[derive(Clone)]
pub struct Net(Rc<RefCell<State>>);

struct State {
    links: Vec<Link>,
    now: Instant,
    dice: Dice,
    /// Reading files fails once in so many times; never with 0.
    file_errors: usize,
    /// How long the last wait would have slept at most.
    patience: Option<Duration>,
}

impl Net {
    /// No links yet.
    pub fn new(seed: u64, file_errors: usize) -> Self {
        let state = State {
            links: Vec::new(),
            now: Instant::now(),
            dice: Dice::new(seed),
            file_errors,
            patience: None,
        };
        Self(Rc::new(RefCell::new(state)))
    }

    /// A client connects; gives the server's socket.
    pub fn connect(&self, capacity: usize) -> usize {
        let links = &mut self.0.borrow_mut().links;
        links.push(Link { capacity, ..Link::default() });
        links.len() - 1
    }

    /// The same, encrypted.
    pub fn connect_encrypted(&self, capacity: usize) -> usize {
        let link = self.connect(capacity);
        self.with(link, |link| link.is_encrypted = true);
        link
    }

    /// The client sends; it arrives with [`Net::deliver`].
    pub fn send(&self, link: usize, bytes: &[u8]) {
        self.with(link, |link| link.transit.extend(bytes));
    }

    /// Up to `count` bytes arrive at the server.
    pub fn deliver(&self, link: usize, count: usize) {
        self.with(link, |link| link.arrive(count));
    }

    /// The client ends its sending side; everything has arrived before.
    pub fn end(&self, link: usize) {
        self.deliver(link, usize::MAX);
        self.with(link, |link| {
            link.client_ended = true;
            link.readable = true;
        });
    }

    /// The client resets the connection.
    pub fn reset(&self, link: usize) {
        self.with(link, |link| {
            link.reset = true;
            (link.readable, link.writable) = (true, true);
        });
    }

    /// The client reads up to `count` bytes.
    pub fn read(&self, link: usize, count: usize) {
        self.with(link, |link| {
            let count = count.min(link.outbound.len());
            let (first, second) = link.outbound.as_slices();
            let split = count.min(first.len());
            link.received.extend_from_slice(&first[..split]);
            link.received.extend_from_slice(&second[..count - split]);
            link.outbound.drain(..count);
            if count > 0 && link.blocked {
                link.blocked = false;
                link.writable = true;
            }
        });
    }

    /// Everything arrives at the server, and no event tells of it.
    pub fn deliver_untold(&self, link: usize) {
        self.with(link, |link| {
            let told = link.readable;
            link.arrive(usize::MAX);
            link.readable = told;
        });
    }

    /// The server is told that there is room to write, as a kernel does with each event.
    pub fn make_writable(&self, link: usize) {
        self.with(link, |link| link.writable = true);
    }

    /// Writing to the client fails from now on; no event has told of it.
    pub fn fail_writes(&self, link: usize) {
        self.with(link, |link| link.unwritable = true);
    }

    /// What the client has read, for the last time.
    pub fn take(&self, link: usize) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut().links[link].received)
    }

    /// The clock goes on.
    pub fn pass(&self, time: Duration) {
        self.0.borrow_mut().now += time;
    }

    /// Whether the last wait would have slept, had nothing happened.
    pub fn would_sleep(&self) -> bool {
        self.0.borrow().patience != Some(Duration::ZERO)
    }

    /// A look at a link.
    pub fn look<T>(&self, link: usize, look: impl FnOnce(&Link) -> T) -> T {
        look(&self.0.borrow().links[link])
    }

    fn with(&self, link: usize, change: impl FnOnce(&mut Link)) {
        change(&mut self.0.borrow_mut().links[link]);
    }
}

impl Io for Net {
    type Socket = usize;

    fn now(&self) -> Instant {
        self.0.borrow().now
    }

    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> Result<()> {
        let state = &mut *self.0.borrow_mut();
        // It never sleeps: what the clock does is the test's to say. That it would have is remembered.
        state.patience = limit;
        for link in &mut state.links {
            let Some(key) = link.key.filter(|_| link.is_open()) else { continue };
            if link.readable || link.writable {
                let (readable, writable) = (link.readable, link.writable);
                let hung_up = link.reset || (link.client_ended && readable);
                events.push(Event { key, readable, writable, hung_up, broken: link.reset });
                (link.readable, link.writable) = (false, false);
            }
        }
        // In no order, as a kernel gives them.
        for at in (1..events.len()).rev() {
            events.swap(at, state.dice.below(at + 1));
        }
        Ok(())
    }

    fn watch(&mut self, socket: &usize, key: usize) -> Result<()> {
        self.with(*socket, |link| {
            link.key = Some(key);
            (link.readable, link.writable) = (true, true);
        });
        Ok(())
    }

    fn peer(&self, _: &usize) -> Peer {
        Peer::Unix
    }

    fn peek(&self, socket: &usize, into: &mut [u8]) -> Result<usize> {
        self.0.borrow().links[*socket].arrived(into)
    }

    fn discard(&self, socket: &usize, into: &mut [u8]) -> Result<usize> {
        let link = &mut self.0.borrow_mut().links[*socket];
        let count = link.arrived(into)?;
        link.inbound.drain(..count);
        Ok(count)
    }

    fn read(&mut self, socket: &mut usize, into: &mut [u8]) -> Result<usize> {
        let state = &mut *self.0.borrow_mut();
        let link = &mut state.links[*socket];
        assert!(link.is_open(), "a closed socket is read");
        // The network does not wait for the end of a turn: a look may find what no event has told of yet.
        if !link.transit.is_empty() && state.dice.once_in(4) {
            let count = 1 + state.dice.below(link.transit.len());
            link.arrive(count);
        }
        let count = link.arrived(into)?;
        link.inbound.drain(..count);
        Ok(count)
    }

    fn write(&mut self, socket: &mut usize, parts: &[IoSlice<'_>], _more: bool) -> Result<usize> {
        let state = &mut *self.0.borrow_mut();
        let link = &mut state.links[*socket];
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        assert!(parts.iter().all(|part| !part.is_empty()), "an empty part costs as much as a full one");
        link.take(&mut state.dice, &parts.concat())
    }

    fn send_file(&mut self, socket: &mut usize, file: &File, offset: u64, len: u64) -> Result<usize> {
        let state = &mut *self.0.borrow_mut();
        let link = &mut state.links[*socket];
        let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 20);
        if link.is_encrypted {
            // Before anything is read that could not be sent.
            link.flush(&mut state.dice)?;
        }
        if state.file_errors > 0 && state.dice.once_in(state.file_errors) {
            return Err(Error::other("an invented disk error"));
        }
        let mut bytes = vec![0; wanted];
        let read = file.read_at(&mut bytes, offset)?;
        if read == 0 { Ok(0) } else { link.take(&mut state.dice, &bytes[..read]) }
    }

    fn residency(&mut self, _file: &File, _offset: u64, _len: u64) -> Residency {
        let dice = &mut self.0.borrow_mut().dice;
        [Residency::Resident, Residency::Resident, Residency::Cold, Residency::Unknown][dice.below(4)]
    }

    fn resident_files(&mut self) -> usize {
        self.0.borrow_mut().dice.below(3)
    }

    fn flush(&mut self, socket: &mut usize) -> Result<()> {
        let state = &mut *self.0.borrow_mut();
        state.links[*socket].flush(&mut state.dice)
    }

    fn finish(&mut self, socket: &mut usize) {
        self.with(*socket, |link| link.finished = true);
    }

    fn close(&mut self, socket: usize) {
        self.with(socket, |link| {
            assert!(link.is_open(), "a socket is closed twice");
            let has_peer = !link.reset && !link.unwritable;
            assert!(
                link.held.is_empty() || !has_peer,
                "a socket is closed with an answer that was never sent"
            );
            link.closed = true;
            link.held.clear();
        });
    }

    fn abort(&mut self, socket: usize) {
        self.with(socket, |link| {
            assert!(link.is_open(), "a socket is closed twice");
            link.aborted = true;
            // What the client has not read yet is lost.
            link.outbound.clear();
            link.held.clear();
        });
    }
}

/// How much of `wanted` a write takes now.
fn room(link: &mut Link, dice: &mut Dice, wanted: usize) -> Result<usize> {
    assert!(link.is_open() && !link.finished, "a closed socket is written to");
    if link.reset || link.unwritable {
        return Err(ErrorKind::BrokenPipe.into());
    }
    let free = link.capacity - link.outbound.len();
    if free == 0 {
        link.blocked = true;
        return Err(ErrorKind::WouldBlock.into());
    }
    let most = free.min(wanted);
    // Kernels take less than there is room for, when memory is short.
    Ok(if dice.once_in(4) { 1 + dice.below(most.max(1)) } else { most }.min(wanted))
}
