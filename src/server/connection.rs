//! A connection as a state machine without a socket: bytes in, requests out, and what may happen next.

use std::time::Instant;

use super::exchange::Exchange;
use super::journal::Visitor;
use super::transfer::{Pace, Transfer};
use crate::http::{self, Discard, HeadReader, Parsed, Progress, Status, forwarded};
use crate::limits;

/// A connection between reads.
#[derive(Debug)]
pub struct Connection {
    /// What it is doing.
    pub state: State,
    /// Bytes that have arrived and are not parsed; no allocation while empty.
    input: Vec<u8>,
    /// Since when it is in this state.
    since: Instant,
    /// Requests so far.
    requests: u32,
    /// The peer will send nothing more.
    ended: bool,
    /// What is noted for the log of requests, where there is one.
    pub visitor: Option<Box<Visitor>>,
    /// A trusted proxy's: what it says of its client is believed.
    pub is_proxied: bool,
}

/// What a connection is doing. Each state has only its own data; the large ones are boxed, so that an
/// idle connection stays small.
#[derive(Debug)]
pub enum State {
    /// No request: nothing of one has arrived.
    Idle,
    /// The beginning of a request's head has arrived.
    Head,
    /// The worker has a request of this connection in hand: within a turn, or until the next.
    InHand,
    /// A request is being answered by actors; the serial is that of the question asked.
    Asking(u32, Box<Exchange>),
    /// An answer is on its way out; then the request's body is to be dropped.
    Sending(Box<Transfer>, http::Body),
    /// The answer is out; the request's body is being dropped.
    Discarding(Discard),
    /// The last answer is out and the sending side ended. So many bytes may still be read and dropped:
    /// closing at once would reset the connection and could destroy the answer on its way.
    Lingering(u64),
}

impl State {
    /// The peer has ended its side. It may read on, but mostly has given up: then nothing else shows that before there is
    /// something to send. So what it waits for is compressed as if nobody did, behind what others wait for.
    pub(super) fn peer_ended(&mut self) {
        match self {
            Self::Asking(_, exchange) => exchange.interest = None,
            Self::Sending(transfer, _) => transfer.lose_interest(),
            _ => {}
        }
    }
}

/// What came of the bytes so far.
#[derive(Debug)]
pub enum Next {
    /// Nothing yet: more must arrive.
    Nothing,
    /// A request, to be answered.
    Request(Exchange),
    /// An unreadable request: to be answered with this status, and the connection closed.
    Refuse(Status),
    /// Nothing more will come: to be closed.
    Close,
}

/// Whose time is up, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// No request for too long: close.
    Idle,
    /// A head that does not end: 408.
    SlowHead,
    /// A request's body that does not end: close.
    SlowBody,
    /// The actors did not answer the question of this serial in time: 503.
    NoAnswer(u32),
    /// The reader is too slow: abort.
    SlowReader,
    /// The disk is: abort.
    Stalled,
    /// The answer is out long enough: close.
    Lingered,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Idle,
            input: Vec::new(),
            since: now,
            requests: 0,
            ended: false,
            visitor: None,
            is_proxied: false,
        }
    }

    /// Whether no answer is in flight: what arrives is of use now, and it may be closed to make room. While
    /// a request is answered, the next one waits in the kernel.
    pub fn is_unanswering(&self) -> bool {
        !matches!(self.state, State::InHand | State::Asking(..) | State::Sending(..))
    }

    /// Whether there is something to look at without reading: a pipelined request, or the peer's end.
    pub fn has_news(&self) -> bool {
        !self.input.is_empty() || self.ended
    }

    /// Whether the peer has ended its sending side.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The peer ended its sending side. A request that was complete is still answered.
    pub fn peer_ended(&mut self) {
        self.ended = true;
    }

    /// So many bytes of an answer were sent.
    pub fn sent(&mut self, bytes: u64) {
        if let Some(visitor) = &mut self.visitor {
            visitor.sent(bytes);
        }
    }

    /// Since when it is in its state.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Enters a state.
    pub fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.since = now;
    }

    /// Takes what has arrived, and says what comes of it. `fresh` is empty when only bytes that arrived
    /// earlier are to be looked at.
    pub fn advance(&mut self, fresh: &[u8], heads: &mut HeadReader, now: Instant) -> Next {
        // While nothing waits, the worker's buffer is parsed where it is.
        if self.input.is_empty() {
            return self.consume(fresh, heads, now);
        }
        let mut bytes = std::mem::take(&mut self.input);
        bytes.extend_from_slice(fresh);
        self.consume(&bytes, heads, now)
    }

    /// Whose time is up, if anyone's. Called once a tick; lets a transfer give back what it holds.
    pub fn overdue(&mut self, now: Instant) -> Option<Overdue> {
        let passed = now.duration_since(self.since);
        let (limit, overdue) = match &mut self.state {
            State::Idle => (limits::IDLE_TIME, Overdue::Idle),
            State::Head => (limits::HEAD_TIME, Overdue::SlowHead),
            State::InHand => return None,
            State::Asking(serial, _) => (limits::ANSWER_TIME, Overdue::NoAnswer(*serial)),
            State::Discarding(_) => (limits::HEAD_TIME, Overdue::SlowBody),
            State::Lingering(_) => (limits::LINGER_TIME, Overdue::Lingered),
            State::Sending(transfer, _) => {
                return match transfer.tick(now) {
                    Pace::Fine => None,
                    Pace::TooSlow => Some(Overdue::SlowReader),
                    Pace::Stalled => Some(Overdue::Stalled),
                };
            }
        };
        (passed >= limit).then_some(overdue)
    }

    /// Goes on with `bytes`, all that has arrived and is not parsed; called with `input` empty.
    fn consume(&mut self, bytes: &[u8], heads: &mut HeadReader, now: Instant) -> Next {
        match &mut self.state {
            State::Idle | State::Head => self.parse(bytes, heads, now),
            State::Discarding(discard) => match discard.feed(bytes) {
                Ok(Progress::More) => self.unless_ended(),
                // The answer has gone already; where the next request begins cannot be known.
                Err(_) => Next::Close,
                Ok(Progress::Done { used }) => {
                    self.enter(State::Idle, now);
                    self.parse(&bytes[used..], heads, now)
                }
            },
            State::Lingering(left) => {
                *left = left.saturating_sub(bytes.len() as u64);
                if *left == 0 { Next::Close } else { self.unless_ended() }
            }
            State::InHand | State::Asking(..) | State::Sending(..) => {
                self.input = bytes.to_vec();
                Next::Nothing
            }
        }
    }

    fn parse(&mut self, bytes: &[u8], heads: &mut HeadReader, now: Instant) -> Next {
        match heads.read(bytes) {
            Ok(Parsed::Partial) => {
                // An empty line after a request's body is no beginning of the next: some clients send one, and then idle.
                if !b"\r\n".starts_with(bytes) && matches!(self.state, State::Idle) {
                    self.enter(State::Head, now);
                }
                self.input = bytes.to_vec();
                self.unless_ended()
            }
            Ok(Parsed::Complete { request, len }) => {
                self.requests += 1;
                let last = self.requests >= limits::REQUESTS_PER_CONNECTION;
                self.input = bytes[len..].to_vec();
                if let Some(visitor) = &mut self.visitor {
                    visitor.begin(&bytes[..len]);
                }
                self.enter(State::InHand, now);
                let mut exchange = Exchange::new(&request, last, now);
                if self.is_proxied && exchange.host.is_some() {
                    exchange.is_encrypted = forwarded::is_encrypted(&bytes[..len]);
                }
                Next::Request(exchange)
            }
            Err(error) => Next::Refuse(error.status()),
        }
    }

    /// A peer that has ended, and has no complete request left, is done.
    fn unless_ended(&self) -> Next {
        if self.ended { Next::Close } else { Next::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_line_begins_no_request() {
        let (mut heads, begun) = (HeadReader::default(), Instant::now());
        let mut connection = Connection::new(begun);
        let late = begun + limits::HEAD_TIME;
        for bytes in [&b"\r"[..], b"\n"] {
            assert!(matches!(connection.advance(bytes, &mut heads, begun), Next::Nothing));
            assert_eq!(connection.overdue(late), None);
        }
        assert_eq!(connection.overdue(begun + limits::IDLE_TIME), Some(Overdue::Idle));
        assert!(matches!(connection.advance(b"G", &mut heads, late), Next::Nothing));
        assert_eq!(connection.overdue(late + limits::HEAD_TIME), Some(Overdue::SlowHead));
        let rest = b"ET /health HTTP/1.1\r\nHost: x\r\n\r\n";
        assert!(matches!(connection.advance(rest, &mut heads, late), Next::Request(_)));
    }
}
