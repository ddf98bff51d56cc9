//! A worker: one thread, one poll, a slice of the connections. It never waits for a disk, a database or
//! another actor; what needs them is asked, and the connection parked until the answer arrives.
//!
//! A turn reads first and answers afterwards. Between the two it looks, once, whether the store has
//! changed: so every request of the turn arrived before the look, and a path registered before a request
//! is served by it. To read during the second half would break that.

use std::io::{ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::compressed::Memory;
use super::connection::{Connection, Next, State};
use super::exchange::Exchange;
use super::faults::Faults;
use super::load::Load;
pub use super::message::Message;
use super::resolve::{self, Arrival, Desk, Question, Step};
use super::rooms::Rooms;
use super::slice::Slice;
use super::transfer::Source;
use super::{Site, listener};
use crate::cache::actor as cache;
use crate::http::{DateCache, HeadReader};
use crate::io::{Event, Io};
use crate::limits;
use crate::mailbox::{Receiver, Sender, Ticket};
use crate::metrics::{Closed, WorkerMetrics};
use crate::nar::{Fetcher, Segment, actor as nar};
use crate::store::served::Served;
use crate::store::view::{Look, View};
use crate::store::{actor as store, browse, files, roots};

/// A connection with its socket.
pub(super) struct Seat<S> {
    pub(super) socket: S,
    pub(super) connection: Connection,
    /// There may be something to read.
    pub(super) readable: bool,
    /// There may be room to write.
    pub(super) writable: bool,
    /// The peer has closed or reset: read on until that shows, no new event will come.
    pub(super) hung_up: bool,
    /// A trusted proxy has yet to say whom the connection is for.
    pub(super) preamble: bool,
    /// It is among those to be sent to.
    pub(super) queued: bool,
}

impl<S> Seat<S> {
    /// Puts a connection among those to be sent to: once, since each place there is a share of the turn.
    pub(super) fn queue(&mut self, key: usize, to_send: &mut Vec<usize>) {
        if !std::mem::replace(&mut self.queued, true) {
            to_send.push(key);
        }
    }
}

/// Where this worker stands with the store.
enum Freshness {
    /// Not looked in this turn.
    Unknown,
    /// Looked in this turn: what the view says holds.
    Fresh,
    /// A refresh was asked for: with which serial, whether in this turn, and who waits for it.
    Asked { serial: u32, now: bool, waiting: Vec<Parked> },
}

/// A request that waits for a refresh: its connection and its serial.
type Parked = (usize, u32);

/// The slot of a ticket that no connection stands behind.
const NO_SLOT: u32 = u32::MAX;

/// The worker actor.
pub struct Worker<I: Io> {
    pub(super) io: I,
    pub(super) number: u16,
    pub(super) seats: Slice<Seat<I::Socket>>,
    mailbox: Receiver<Message<I::Socket>>,
    pub(super) listener: Sender<listener::Message>,
    pub(super) rooms: Rooms,
    pub(super) site: Arc<Site>,
    public_keys: Arc<[String]>,
    view: View,
    memory: Memory,
    pub(super) load: Arc<Load>,
    pub(super) metrics: Arc<WorkerMetrics>,
    pub(super) faults: Faults,
    pub(super) serial: u32,
    freshness: Freshness,
    /// Requests that came too late for the refresh in flight.
    late: Vec<Parked>,
    /// Requests read in this turn, to be answered in its second half.
    pub(super) requests: Vec<(usize, Exchange)>,
    /// Connections to read from, and to send to, in the next turn whatever the poll says.
    pub(super) to_read: Vec<usize>,
    pub(super) to_send: Vec<usize>,
    events: Vec<Event>,
    pub(super) buffer: Box<[u8]>,
    heads: HeadReader,
    pub(super) head: Vec<u8>,
    pub(super) fetcher: Fetcher,
    pub(super) date: DateCache,
    /// The day, counted from 1970, where what is asked for is kept.
    day: Option<u32>,
    /// Paths that were asked for in this turn, for the first time that day.
    asked: Vec<Arc<Served>>,
    pub(super) next_tick: Instant,
    /// Draining, and until when.
    pub(super) drain: Option<Instant>,
    /// The listener has asked for room in this turn, and waits to hear of it.
    pub(super) is_to_make_room: bool,
}

/// What a worker is built from, besides its poll.
pub struct Parts<S> {
    /// Its number, from 0.
    pub number: u16,
    /// Its mailbox.
    pub mailbox: Receiver<Message<S>>,
    /// Its load, shared with the listener.
    pub load: Arc<Load>,
    /// The listener's mailbox.
    pub listener: Sender<listener::Message>,
    /// The other actors' mailboxes.
    pub rooms: Rooms,
    /// What is served, as far as it does not change.
    pub site: Arc<Site>,
    /// The public keys of those that sign, as clients list them.
    pub public_keys: Arc<[String]>,
    /// Its view of the store.
    pub view: View,
    /// Its counters.
    pub metrics: Arc<WorkerMetrics>,
}

impl<I: Io> Worker<I> {
    /// A worker without connections.
    pub fn new(io: I, parts: Parts<I::Socket>) -> Self {
        let Parts { number, mailbox, load, listener, rooms, site, public_keys, view, metrics } = parts;
        let next_tick = io.now() + limits::TICK;
        Self {
            io,
            number,
            seats: Slice::default(),
            mailbox,
            listener,
            rooms,
            site,
            public_keys,
            view,
            memory: Memory::default(),
            load,
            metrics,
            faults: Faults::default(),
            serial: 0,
            freshness: Freshness::Unknown,
            late: Vec::new(),
            requests: Vec::new(),
            to_read: Vec::new(),
            to_send: Vec::new(),
            events: Vec::new(),
            buffer: vec![0; limits::READ_BYTES].into(),
            heads: HeadReader::default(),
            head: Vec::new(),
            fetcher: Fetcher::default(),
            date: DateCache::new(),
            day: None,
            asked: Vec::new(),
            next_tick,
            drain: None,
            is_to_make_room: false,
        }
    }

    /// Turns until drained.
    ///
    /// # Errors
    /// When the poll fails; nothing that a client does causes that.
    pub fn run(mut self) -> Result<()> {
        while self.turn()? {}
        self.faults.settle();
        Ok(())
    }

    /// One turn; says whether there is another.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn turn(&mut self) -> Result<bool> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        self.io.wait(&mut events, self.patience())?;
        self.set_clocks(SystemTime::now());
        match &mut self.freshness {
            Freshness::Asked { now, .. } => *now = false,
            other => *other = Freshness::Unknown,
        }
        while let Some(message) = self.mailbox.try_recv() {
            self.take(message);
        }
        self.read_all(&events);
        self.events = events;
        self.answer_all();
        self.send_all();
        self.asked.drain(..).for_each(|served| self.rooms.keep(&served));
        self.make_room();
        self.tick();
        self.publish();
        self.give_up_room();
        Ok(self.drain.is_none() || !self.seats.is_empty())
    }

    fn set_clocks(&mut self, now: SystemTime) {
        self.date.at(now);
        if self.rooms.keep.is_some() {
            let days = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
            // A day after the year 11,000,000 is as good as any.
            self.day = Some(u32::try_from(days).unwrap_or(u32::MAX));
        }
    }

    /// How long to wait for the next event.
    fn patience(&self) -> Option<Duration> {
        // A request may be here already: it came with the last look at a connection that was to make room.
        if !self.requests.is_empty() || !self.to_read.is_empty() || !self.to_send.is_empty() {
            return Some(Duration::ZERO);
        }
        if self.seats.is_empty() && self.drain.is_none() && !self.faults.is_owing() {
            return None;
        }
        Some(self.next_tick.saturating_duration_since(self.io.now()))
    }

    // Messages.

    fn take(&mut self, message: Message<I::Socket>) {
        match message {
            Message::Connection(socket) => self.welcome(socket),
            // The end of the turn sees to it.
            Message::MakeRoom => self.is_to_make_room = true,
            Message::Drain => self.drain(),
            Message::Pulse(beats) => {
                beats.fetch_add(1, Ordering::Relaxed);
            }
            Message::Keys(public_keys) => self.public_keys = public_keys,
            Message::Store(ticket, store::Answer::Refreshed(snapshot)) => {
                self.refreshed(ticket, Some(snapshot))
            }
            Message::Store(ticket, store::Answer::Unavailable) if ticket.slot == NO_SLOT => {
                self.refreshed(ticket, None);
            }
            Message::Store(ticket, answer) => {
                let arrival = self.learn(answer);
                self.resume(ticket, arrival);
            }
            Message::Nar(ticket, nar::Answer::Fetched { cursor, segments }) => {
                let now = self.io.now();
                let segments = segments.map_err(|error| self.faults.nar_broke_off(now, &error));
                self.fetched(ticket, segments, Some(Source::Nar(cursor)));
            }
            Message::Nar(ticket, nar::Answer::Read(read)) => self.range_read(ticket, read),
            Message::Nar(ticket, answer) => {
                match &answer {
                    nar::Answer::Opened(Ok(cursor)) => {
                        self.have_packed(ticket, cursor);
                        self.have_compressed(ticket, cursor);
                    }
                    // Also where the asker has gone: to measure a large path can take longer than a request
                    // waits, and the next one would find nothing.
                    nar::Answer::Hashed(Ok(measured)) => self.rooms.tell_size(*measured),
                    _ => {}
                }
                self.resume(ticket, Arrival::Nar(answer));
            }
            Message::Cache(ticket, cache::Answer::Fetched { stream, segments }) => {
                self.streamed(ticket, stream, segments);
            }
            Message::Cache(ticket, answer) => self.resume(ticket, Arrival::Cache(answer)),
            Message::Roots(ticket, roots::Answer::Rooted(lease)) => self.rooted(ticket, lease),
            Message::Files(ticket, files::Answer::LogPart(part)) => match part {
                files::LogPart::More { bytes, reader } => {
                    self.fetched(ticket, Ok(vec![Segment::Bytes(bytes)]), Some(Source::Log(reader)));
                }
                files::LogPart::Last(bytes) if bytes.is_empty() => self.fetched(ticket, Ok(Vec::new()), None),
                files::LogPart::Last(bytes) => self.fetched(ticket, Ok(vec![Segment::Bytes(bytes)]), None),
                files::LogPart::Failed(error) => {
                    let cause = self.faults.log_broke_off(self.io.now(), &error);
                    self.fetched(ticket, Err(cause), None);
                }
            },
            Message::Files(ticket, answer) => self.resume(ticket, Arrival::Files(answer)),
            Message::Browse(ticket, browse::Answer::Unavailable) => self.resume(ticket, Arrival::Unavailable),
            Message::Browse(ticket, answer) => self.resume(ticket, Arrival::Browse(answer)),
        }
    }

    /// Keeps what the store's actor said for later requests, and turns it to the one that waits.
    fn learn(&mut self, answer: store::Answer) -> Arrival {
        match answer {
            store::Answer::Info { hash, epoch, info } => {
                self.view.remember(hash, epoch, &info);
                Arrival::Info(info)
            }
            store::Answer::Document(document) => Arrival::Document(document),
            store::Answer::Deriver(drv) => Arrival::Deriver(drv),
            store::Answer::Unavailable | store::Answer::Refreshed(_) => Arrival::Unavailable,
        }
    }

    /// The store has read what is new, or could not.
    fn refreshed(&mut self, ticket: Ticket, snapshot: Option<Arc<crate::store::index::Snapshot>>) {
        let Freshness::Asked { serial, waiting, .. } = &mut self.freshness else { return };
        if *serial != ticket.serial {
            return;
        }
        let waiting = std::mem::take(waiting);
        // These requests arrived before the refresh was asked for: the snapshot is new enough for them.
        self.freshness = Freshness::Fresh;
        let available = snapshot.is_some();
        if let Some(snapshot) = snapshot {
            self.view.refreshed(snapshot);
        }
        for (key, serial) in waiting {
            if let Some(exchange) = self.unpark(key, serial) {
                let arrival = if available { Arrival::Asked } else { Arrival::Unavailable };
                self.resolve(key, exchange, arrival);
            }
        }
        // Those that came later need a look of their own.
        self.freshness = Freshness::Unknown;
        for (key, serial) in std::mem::take(&mut self.late) {
            if let Some(exchange) = self.unpark(key, serial) {
                self.requests.push((key, exchange));
            }
        }
    }

    /// An answer for a waiting request. Late ones, whose connection has gone, are dropped with all they hold.
    fn resume(&mut self, ticket: Ticket, arrival: Arrival) {
        let key = ticket.slot as usize;
        if let Some(exchange) = self.unpark(key, ticket.serial) {
            self.resolve(key, exchange, arrival);
        }
    }

    /// A waiting request has its root. What is known of the path must be so afterwards: the second half looks again.
    fn rooted(&mut self, ticket: Ticket, lease: roots::Lease) {
        let key = ticket.slot as usize;
        if let Some(mut exchange) = self.unpark(key, ticket.serial) {
            exchange.lease = Some(lease);
            self.requests.push((key, exchange));
        }
    }

    /// Takes a request out of its connection, if it is the one that waits for `serial`.
    pub(super) fn unpark(&mut self, key: usize, serial: u32) -> Option<Exchange> {
        let seat = self.seats.get_mut(key)?;
        match &seat.connection.state {
            State::Asking(awaited, _) if *awaited == serial => {}
            _ => return None,
        }
        match std::mem::replace(&mut seat.connection.state, State::InHand) {
            State::Asking(_, exchange) => Some(*exchange),
            _ => None,
        }
    }

    fn park(&mut self, key: usize, exchange: Exchange) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        if let Some(seat) = self.seats.get_mut(key) {
            let started = exchange.started;
            let mut state = State::Asking(self.serial, Box::new(exchange));
            if seat.hung_up {
                state.peer_ended();
            }
            seat.connection.enter(state, started);
        }
        self.serial
    }

    // The first half of a turn: reading.

    fn read_all(&mut self, events: &[Event]) {
        let mut keys = std::mem::take(&mut self.to_read);
        for event in events {
            let Some(seat) = self.seats.get_mut(event.key) else { continue };
            // Whoever waits for an actor would hold a place, and what is to be sent, for nobody until it answers.
            if event.broken && matches!(seat.connection.state, State::Asking(..) | State::Sending(..)) {
                self.close(event.key, Closed::ByPeer);
                continue;
            }
            if event.hung_up && !seat.hung_up {
                seat.hung_up = true;
                seat.connection.state.peer_ended();
            }
            if event.readable {
                seat.readable = true;
                keys.push(event.key);
            }
            if event.writable {
                seat.writable = true;
                if let State::Sending(transfer, _) = &mut seat.connection.state {
                    transfer.unblocked();
                    seat.queue(event.key, &mut self.to_send);
                }
            }
        }
        for key in keys.drain(..) {
            self.read(key);
        }
        // Keep the allocation, and what was pushed meanwhile.
        keys.append(&mut self.to_read);
        self.to_read = keys;
    }

    /// Reads once and takes what comes of it.
    pub(super) fn read(&mut self, key: usize) {
        let now = self.io.now();
        let Some(seat) = self.seats.get_mut(key) else { return };
        if !seat.connection.is_unanswering() {
            return;
        }
        if seat.preamble {
            // What comes after it may be here already.
            if self.take_preamble(key) {
                self.read(key);
            }
            return;
        }
        let mut fresh = 0;
        if seat.readable && !seat.connection.has_ended() {
            match self.io.read(&mut seat.socket, &mut self.buffer) {
                Ok(0) => {
                    seat.readable = false;
                    seat.connection.peer_ended();
                }
                Ok(count) => {
                    // A short read has emptied the socket, and the next bytes come with an event; only an
                    // end that was announced already does not.
                    seat.readable = count == self.buffer.len() || seat.hung_up;
                    fresh = count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => seat.readable = false,
                Err(_) => return self.close(key, Closed::ByPeer),
            }
        }
        let next = seat.connection.advance(&self.buffer[..fresh], &mut self.heads, now);
        let again = seat.readable && seat.connection.is_unanswering();
        match next {
            Next::Nothing if again => self.to_read.push(key),
            Next::Nothing => {}
            Next::Request(exchange) => {
                self.seats.leave_idle(key);
                self.requests.push((key, exchange));
            }
            Next::Refuse(status) => self.refuse(key, status),
            Next::Close => self.close(key, Closed::ByPeer),
        }
    }

    // The second half: answering and sending.

    fn answer_all(&mut self) {
        let mut requests = std::mem::take(&mut self.requests);
        for (key, exchange) in requests.drain(..) {
            if exchange.needs_store() && !self.is_fresh(exchange.started) {
                self.await_refresh(key, exchange);
            } else {
                self.resolve(key, exchange, Arrival::Asked);
            }
        }
        self.requests = requests;
    }

    /// Whether the view holds for every request read so far; looks once a turn, and asks for a refresh when
    /// the store has changed. `since` is when the request arrived that wants to know: the oldest comes first.
    fn is_fresh(&mut self, since: Instant) -> bool {
        match self.freshness {
            Freshness::Fresh => true,
            Freshness::Asked { .. } => false,
            Freshness::Unknown => match self.view.look() {
                Look::Fresh => {
                    self.freshness = Freshness::Fresh;
                    true
                }
                Look::Stale => {
                    self.ask_refresh(since);
                    false
                }
            },
        }
    }

    fn ask_refresh(&mut self, since: Instant) {
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        let ticket = Ticket { worker: self.number, slot: NO_SLOT, serial };
        // With a full mailbox those who would wait get a 503, and the next turn looks again.
        if self.rooms.store.try_send(store::Request::Refresh { ticket, since }).is_ok() {
            self.freshness = Freshness::Asked { serial, now: true, waiting: Vec::new() };
        }
    }

    fn await_refresh(&mut self, key: usize, exchange: Exchange) {
        let waits =
            matches!(self.freshness, Freshness::Asked { .. }) && self.late.len() < limits::WAITING_MAX;
        if !waits {
            return self.resolve(key, exchange, Arrival::Unavailable);
        }
        let parked = (key, self.park(key, exchange));
        match &mut self.freshness {
            Freshness::Asked { now: true, waiting, .. } => waiting.push(parked),
            _ => self.late.push(parked),
        }
    }

    /// Goes on with a request: to its answer, or to the next question.
    pub(super) fn resolve(&mut self, key: usize, mut exchange: Exchange, arrival: Arrival) {
        exchange.keep_alive &= self.drain.is_none();
        let mut desk = Desk {
            site: &self.site,
            public_keys: &self.public_keys,
            view: &mut self.view,
            head: &mut self.head,
            date: self.date.text(),
            memory: &mut self.memory,
            metrics: &self.metrics,
            faults: &mut self.faults,
            now: self.io.now(),
            day: self.day,
            asked: &mut self.asked,
        };
        match resolve::step(&mut exchange, arrival, &mut desk) {
            Step::Reply(reply) => self.reply(key, exchange, reply),
            Step::Ask(question) => self.ask(key, exchange, question),
        }
    }

    fn ask(&mut self, key: usize, exchange: Exchange, question: Question) {
        let serial = self.park(key, exchange);
        let ticket = Ticket { worker: self.number, slot: key as u32, serial };
        if self.rooms.ask(ticket, question).is_err() {
            // Each connection has one question under way, and the mailboxes have room for all of them:
            // only answers to connections that have gone can fill them.
            if let Some(exchange) = self.unpark(key, serial) {
                self.resolve(key, exchange, Arrival::Unavailable);
            }
        }
    }
}
