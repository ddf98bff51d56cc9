//! One connection and the request in flight on it.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use sha2::{Digest as _, Sha256};

use crate::http::{ContentRange, Exchange, HttpError};
use crate::unpack::Unpack;

/// Most bytes dropped in the kernel by one call.
pub const DROP_MAX: usize = 1 << 20;
/// Most bytes read by one call: what is looked at stays in the second-level cache.
const READ_MAX: usize = 128 << 10;
/// Most bytes of a body that is kept; narinfos and listings are far smaller.
const KEEP_MAX: usize = 64 << 20;
/// Calls on one connection before the others have their turn.
const TURN_MAX: usize = 16;
/// A paced reader takes this much time's worth at once.
const PACE: Duration = Duration::from_millis(20);
/// Readers slower than this get a small kernel buffer, so that the server feels them.
const SLOW_READER: u64 = 1 << 20;
/// That buffer, in bytes; the kernel doubles it.
const SLOW_READER_BUFFER: usize = 4096;

/// What becomes of a body.
#[derive(Debug)]
pub enum Sink {
    /// Dropped, on Linux without leaving the kernel.
    Drop,
    Keep(Vec<u8>),
    Hash(Box<Sha256>),
    /// Decompressed and hashed.
    Unpack(Box<Unpack>),
}

/// A request to make.
#[derive(Debug)]
pub struct Job {
    /// Index of the series it counts in.
    pub series: usize,
    /// Relative to the cache.
    pub path: String,
    /// `Range: bytes=N-`.
    pub from: Option<u64>,
    /// On a connection of its own.
    pub close: bool,
    pub sink: Sink,
    /// When it should be sent; its latency counts from then. None: at once.
    pub due: Option<Instant>,
    /// Cut the connection after so many body bytes.
    pub cut_after: Option<u64>,
    /// Body bytes read a second, at most.
    pub read_rate: Option<u64>,
    /// Request bytes sent a second, at most.
    pub send_rate: Option<u64>,
    /// Part of a crowd: neither counted nor waited for at the end.
    pub background: bool,
    /// The workload's own.
    pub tag: usize,
}

impl Job {
    /// A plain GET whose body is dropped.
    pub fn get(series: usize, path: String) -> Self {
        Self {
            series,
            path,
            from: None,
            close: false,
            sink: Sink::Drop,
            due: None,
            cut_after: None,
            read_rate: None,
            send_rate: None,
            background: false,
            tag: 0,
        }
    }
}

/// A response that ended as it should, or that the job cut.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Body bytes.
    pub body: u64,
    pub content_range: Option<ContentRange>,
    pub sink: Sink,
    /// The job's `cut_after` ended it.
    pub cut: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("connection refused")]
    Refused,
    #[error("connection reset")]
    Reset,
    #[error("closed without an answer")]
    Closed,
    #[error("timed out")]
    TimedOut,
    #[error("no local port or descriptor left")]
    NoRoom,
    #[error("bytes after the answer")]
    Stray,
    #[error("body too long to keep")]
    TooLong,
    #[error("{0}")]
    Http(HttpError),
    #[error("network error")]
    Other,
}

impl Failure {
    /// Its kind, as tables show it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Refused => "connection refused",
            Self::Reset => "connection reset",
            Self::Closed => "closed without an answer",
            Self::TimedOut => "timed out",
            Self::NoRoom => "no local port or descriptor left",
            Self::Stray => "bytes after the answer",
            Self::TooLong => "body too long to keep",
            Self::Http(HttpError::CutShort) => "body cut short",
            Self::Http(_) => "malformed response",
            Self::Other => "network error",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Self::NoRoom,
            // EMFILE and ENFILE have no kind of their own.
            _ if matches!(error.raw_os_error(), Some(23 | 24)) => Self::NoRoom,
            _ => Self::Other,
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Flight {
    pub job: Job,
    request: Vec<u8>,
    sent: usize,
    exchange: Exchange,
    /// When it was due, or begun.
    pub begun: Instant,
    /// When bytes last moved.
    pub moved: Instant,
    /// It was sent again after its kept-alive connection turned out closed.
    pub again: bool,
    body_begun: Option<Instant>,
}

impl Flight {
    pub fn new(job: Job, request: Vec<u8>, now: Instant) -> Self {
        let begun = job.due.unwrap_or(now);
        let exchange = Exchange::new(false);
        Self { job, request, sent: 0, exchange, begun, moved: now, again: false, body_begun: None }
    }

    /// Body bytes the pace and the cut allow now, or when to look again.
    fn allowance(&mut self, now: Instant) -> Result<u64, Instant> {
        let body = self.exchange.body();
        let to_cut = self.job.cut_after.map_or(u64::MAX, |cut| cut.saturating_sub(body));
        let Some(rate) = self.job.read_rate else {
            return Ok(to_cut);
        };
        let begun = *self.body_begun.get_or_insert(now);
        let portion = (rate as f64 * PACE.as_secs_f64()).max(1.0);
        let allowed = (now - begun).as_secs_f64() * rate as f64 + portion - body as f64;
        if allowed >= 1.0 {
            return Ok(to_cut.min(allowed as u64));
        }
        Err(now + Duration::from_secs_f64(portion / rate as f64))
    }

    fn is_cut(&self) -> bool {
        self.job.cut_after.is_some_and(|cut| self.exchange.body() >= cut) && !self.exchange.is_done()
    }

    /// What it came to; only once it ended well or was cut.
    fn into_answer(self) -> (Job, Answer) {
        let cut = self.is_cut();
        let head = self.exchange.head();
        let mut job = self.job;
        let sink = std::mem::replace(&mut job.sink, Sink::Drop);
        let answer = Answer {
            status: head.map_or(0, |head| head.status),
            body: self.exchange.body(),
            content_range: head.and_then(|head| head.content_range),
            sink,
            cut,
        };
        (job, answer)
    }
}

/// What a turn of a lane came to.
#[derive(Debug)]
pub enum Turn {
    /// The socket has no more for now.
    Waiting,
    /// There is more, but others have their turn first.
    More,
    /// Its pace has it wait until then.
    Until(Instant),
    /// The request ended; the flight is to be taken.
    Ended,
    /// The request failed.
    Failed(Failure),
}

/// A connection that is opened when it is needed.
#[derive(Debug, Default)]
pub struct Lane {
    stream: Option<TcpStream>,
    connected: bool,
    /// It has answered before, so that it may have been closed as idle meanwhile.
    kept: bool,
    pub peer_closed: bool,
    pub flight: Option<Box<Flight>>,
}

impl Lane {
    /// Whether there is a connection, as far as is known.
    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Lets the connection go.
    pub fn close(&mut self) {
        self.stream = None;
        self.connected = false;
        self.kept = false;
        self.peer_closed = false;
    }

    /// Begins to connect where there is no connection; says whether it did.
    pub fn open(
        &mut self,
        address: SocketAddr,
        registry: &Registry,
        token: usize,
        slow: bool,
    ) -> Result<bool, Failure> {
        if self.stream.is_some() {
            return Ok(false);
        }
        let mut stream = TcpStream::connect(address).map_err(|error| Failure::of(&error))?;
        if slow {
            // A hint: without it the reader is slow all the same, only later felt.
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&stream, SLOW_READER_BUFFER);
        }
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut stream, Token(token), interest).map_err(|error| Failure::of(&error))?;
        self.stream = Some(stream);
        Ok(true)
    }

    /// Whether a flight wants the small kernel buffer.
    pub fn wants_slow(job: &Job) -> bool {
        job.read_rate.is_some_and(|rate| rate < SLOW_READER)
    }

    /// Whether the failed flight is to be sent again on a new connection: a kept-alive one may be closed by the
    /// server at the moment that a request is sent, and every client asks again then.
    pub fn may_send_again(&self, failure: Failure) -> bool {
        let closed = matches!(failure, Failure::Reset | Failure::Closed);
        let untouched = |flight: &Flight| !flight.again && !flight.exchange.has_begun();
        closed && self.kept && self.flight.as_deref().is_some_and(untouched)
    }

    /// Makes the flight ready to be sent again.
    pub fn rewind(&mut self, now: Instant) {
        self.close();
        if let Some(flight) = &mut self.flight {
            (flight.sent, flight.again, flight.moved) = (0, true, now);
            flight.exchange = Exchange::new(false);
        }
    }

    /// Takes the flight that ended, and keeps the connection if both sides may.
    pub fn land(&mut self) -> Option<(Job, Instant, Answer)> {
        let flight = self.flight.take()?;
        let keep = flight.exchange.is_done()
            && flight.exchange.head().is_some_and(|head| head.keep_alive)
            && !flight.job.close
            && !self.peer_closed;
        self.kept = true;
        if !keep {
            self.close();
        }
        let begun = flight.begun;
        let (job, answer) = flight.into_answer();
        Some((job, begun, answer))
    }

    /// Sends and receives what it can. `meter` is told of body bytes.
    pub fn turn(&mut self, scratch: &mut [u8], now: Instant, meter: &mut dyn FnMut(u64)) -> Turn {
        let (Some(stream), Some(flight)) = (&mut self.stream, &mut self.flight) else {
            return Turn::Waiting;
        };
        if !self.connected {
            match is_connected(stream) {
                Ok(true) => self.connected = true,
                Ok(false) => return Turn::Waiting,
                Err(error) => return Turn::Failed(Failure::of(&error)),
            }
            flight.moved = now;
        }
        if flight.sent < flight.request.len() {
            match send(stream, flight, now) {
                // The answer cannot be there yet; its coming is an event.
                Ok(None) => return Turn::Waiting,
                // A slow sender may be answered before it is done.
                Ok(Some(Turn::Until(until))) => {
                    let turn = receive(stream, flight, scratch, now, meter);
                    return if matches!(turn, Turn::Waiting) { Turn::Until(until) } else { turn };
                }
                Ok(Some(turn)) => return turn,
                // A server may answer, and close, before it has read all: its answer counts.
                Err(failure) if flight.job.send_rate.is_none() => return Turn::Failed(failure),
                Err(_) => flight.sent = flight.request.len(),
            }
        }
        receive(stream, flight, scratch, now, meter)
    }
}

fn is_connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => {
            // Requests are written whole: there is nothing to wait for.
            let _ = stream.set_nodelay(true);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

/// None: all is sent.
fn send(stream: &mut TcpStream, flight: &mut Flight, now: Instant) -> Result<Option<Turn>, Failure> {
    while flight.sent < flight.request.len() {
        let mut end = flight.request.len();
        if let Some(rate) = flight.job.send_rate {
            let allowed = ((now - flight.begun).as_secs_f64() * rate as f64) as usize + 1;
            if allowed <= flight.sent {
                let next = Duration::from_secs_f64(flight.sent as f64 / rate as f64);
                return Ok(Some(Turn::Until(flight.begun + next)));
            }
            end = end.min(allowed);
        }
        match stream.write(&flight.request[flight.sent..end]) {
            Ok(count) => {
                flight.sent += count;
                flight.moved = now;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(Turn::Waiting)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::of(&error)),
        }
    }
    Ok(None)
}

fn receive(
    stream: &mut TcpStream,
    flight: &mut Flight,
    scratch: &mut [u8],
    now: Instant,
    meter: &mut dyn FnMut(u64),
) -> Turn {
    for _ in 0..TURN_MAX {
        let allowed = match flight.allowance(now) {
            Ok(allowed) => usize::try_from(allowed).unwrap_or(usize::MAX),
            Err(until) => return Turn::Until(until),
        };
        let before = flight.exchange.body();
        let result = receive_once(stream, flight, scratch, allowed);
        meter(flight.exchange.body() - before);
        match result {
            Ok(0) => {
                let begun = flight.exchange.has_begun();
                return match flight.exchange.end() {
                    Ok(()) => Turn::Ended,
                    Err(_) if !begun => Turn::Failed(Failure::Closed),
                    Err(error) => Turn::Failed(Failure::Http(error)),
                };
            }
            Ok(_) => flight.moved = now,
            Err(Received::Blocked) => return Turn::Waiting,
            Err(Received::Failed(failure)) => return Turn::Failed(failure),
        }
        if flight.exchange.is_done() || flight.is_cut() {
            return Turn::Ended;
        }
    }
    Turn::More
}

enum Received {
    Blocked,
    Failed(Failure),
}

/// One call: how many bytes came, 0 at the connection's end.
fn receive_once(
    stream: &mut TcpStream,
    flight: &mut Flight,
    scratch: &mut [u8],
    allowed: usize,
) -> Result<usize, Received> {
    let droppable = usize::try_from(flight.exchange.droppable()).unwrap_or(usize::MAX);
    if droppable > 0 && matches!(flight.job.sink, Sink::Drop) {
        let count = drop_bytes(stream, scratch, droppable.min(allowed))?;
        flight.exchange.dropped(count as u64);
        return Ok(count);
    }
    // Body bytes that come with the head are few; the allowance is for what follows.
    let most =
        if flight.exchange.head().is_some() { allowed.min(READ_MAX) } else { 4096.min(allowed.max(1)) };
    let count = read_bytes(stream, &mut scratch[..most])?;
    let job = &mut flight.job;
    let mut too_long = false;
    let taken = flight.exchange.feed(&scratch[..count], &mut |part| match &mut job.sink {
        Sink::Drop => {}
        Sink::Keep(kept) if kept.len() + part.len() > KEEP_MAX => too_long = true,
        Sink::Keep(kept) => kept.extend_from_slice(part),
        Sink::Hash(hasher) => hasher.update(part),
        Sink::Unpack(unpack) => unpack.update(part),
    });
    match taken {
        Err(error) => Err(Received::Failed(Failure::Http(error))),
        Ok(taken) if taken < count => Err(Received::Failed(Failure::Stray)),
        Ok(_) if too_long => Err(Received::Failed(Failure::TooLong)),
        Ok(_) => Ok(count),
    }
}

fn read_bytes(stream: &mut TcpStream, scratch: &mut [u8]) -> Result<usize, Received> {
    loop {
        match stream.read(scratch) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(received(&error)),
        }
    }
}

fn received(error: &io::Error) -> Received {
    if error.kind() == io::ErrorKind::WouldBlock {
        Received::Blocked
    } else {
        Received::Failed(Failure::of(error))
    }
}

/// Drops up to `most` bytes: the kernel frees them without copying a byte (tcp(7), `MSG_TRUNC`).
#[cfg(target_os = "linux")]
fn drop_bytes(stream: &mut TcpStream, scratch: &mut [u8], most: usize) -> Result<usize, Received> {
    let most = most.min(scratch.len());
    loop {
        match rustix::net::recv(&*stream, &mut scratch[..most], rustix::net::RecvFlags::TRUNC) {
            Ok((_, count)) => return Ok(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(received(&error.into())),
        }
    }
}

/// Drops up to `most` bytes.
#[cfg(not(target_os = "linux"))]
fn drop_bytes(stream: &mut TcpStream, scratch: &mut [u8], most: usize) -> Result<usize, Received> {
    let most = most.min(scratch.len());
    read_bytes(stream, &mut scratch[..most])
}
