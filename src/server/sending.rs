//! The sending half of a worker: from an answer to the last byte, and to what the connection does next.

use std::io::{Error, ErrorKind, IoSlice};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use rustix::io::Errno;

use super::Site;
use super::answer::{Reply, Writer};
use super::connection::{Connection, State};
use super::exchange::Exchange;
use super::journal::Visitor;
use super::transfer::{Account, Body, Framing, Output, Source, Transfer};
use super::worker::Worker;
use crate::cache::{CompressError, Stream};
use crate::http::{Body as RequestBody, Discard, Method, Status};
use crate::io::Io;
use crate::io::files::Residency;
use crate::limits;
use crate::mailbox::Ticket;
use crate::metrics::{self, Closed, NarAbort, WorkerMetrics};
use crate::nar::Segment;

/// How far sending came.
enum Sent {
    /// To the end: what is accounted, and whether the connection goes on.
    All(Account, bool),
    /// The socket or the source must act first.
    Waits,
    /// The turn's share is used up.
    Share,
    /// The connection must be aborted.
    Broken(NarAbort),
    /// The peer has gone.
    Gone,
}

impl<I: Io> Worker<I> {
    /// Sends the head that was just written, and the body: in one write from where they are, if the
    /// socket takes it; what it does not take becomes a transfer.
    pub(super) fn reply(&mut self, key: usize, exchange: Exchange, reply: Reply) {
        let Reply { status, mut body, mut framing } = reply;
        let Exchange { route, method, keep_alive, body: request_body, started, interest, .. } = exchange;
        // The head has said so: only the connection's end tells the peer where the body ends.
        let keep_alive = keep_alive && framing != Framing::ToClose;
        let account = Account { route: route.label(), method, status, started };
        if let Body::Bytes(bytes) = &body
            && bytes.len() <= limits::JOINED_BYTES
        {
            self.head.extend_from_slice(bytes);
            (body, framing) = (Body::Empty, Framing::Length(0));
        }
        let Some(seat) = self.seats.get_mut(key) else { return };
        let mut head = &self.head[..];
        if let Body::Empty | Body::Bytes(_) = body {
            let bytes = match &body {
                Body::Bytes(bytes) => &bytes[..],
                _ => &[],
            };
            let parts = [IoSlice::new(head), IoSlice::new(bytes)];
            let parts = if bytes.is_empty() { &parts[..1] } else { &parts };
            let count = match self.io.write(&mut seat.socket, parts, false) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    seat.writable = false;
                    0
                }
                Err(_) => return self.gone(key, account),
            };
            self.metrics.sent(count as u64);
            seat.connection.sent(count as u64);
            if count == head.len() + bytes.len() {
                match self.io.flush(&mut seat.socket) {
                    Ok(()) => return self.answered(key, account, keep_alive, request_body),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => seat.writable = false,
                    Err(_) => return self.gone(key, account),
                }
            }
            (body, framing) = unsent(body, framing, count.saturating_sub(head.len()));
            head = &head[count.min(head.len())..];
        }
        let now = self.io.now();
        let mut transfer = Transfer::new(account, keep_alive, Bytes::copy_from_slice(head), body, framing)
            .with_interest(interest.filter(|_| !seat.hung_up));
        if seat.writable {
            seat.queue(key, &mut self.to_send);
        } else {
            transfer.blocked(now);
        }
        seat.connection.enter(State::Sending(Box::new(transfer), request_body), now);
    }

    /// Answers what could not be read as a request, and closes.
    pub(super) fn refuse(&mut self, key: usize, status: Status) {
        self.seats.leave_idle(key);
        let reply = Writer::refusal(&mut self.head, self.date.text(), status);
        self.reply(key, Exchange::unreadable(self.io.now()), reply);
    }

    /// Sends for every connection whose turn it is.
    pub(super) fn send_all(&mut self) {
        let mut keys = std::mem::take(&mut self.to_send);
        for key in keys.drain(..) {
            self.send(key);
        }
        // Keep the allocation, and what was pushed meanwhile: those have used up their share.
        keys.append(&mut self.to_send);
        self.to_send = keys;
    }

    fn send(&mut self, key: usize) {
        let Some(seat) = self.seats.get_mut(key) else { return };
        seat.queued = false;
        match self.pump(key) {
            Sent::Waits => {}
            Sent::Share => {
                let Some(seat) = self.seats.get_mut(key) else { return };
                seat.queue(key, &mut self.to_send);
            }
            Sent::Gone => self.close(key, Closed::ByPeer),
            Sent::Broken(cause) => self.abort(key, cause),
            Sent::All(account, keep_alive) => {
                let Some(seat) = self.seats.get_mut(key) else { return };
                let State::Sending(_, request_body) = seat.connection.state else { return };
                self.answered(key, account, keep_alive, request_body);
            }
        }
    }

    /// Sends until the end, until something must be waited for, or until the turn's share is used up.
    fn pump(&mut self, key: usize) -> Sent {
        let mut share = limits::TURN_BYTES;
        let now = self.io.now();
        loop {
            share = share.saturating_sub(self.fetch(key));
            let Some(seat) = self.seats.get_mut(key) else { return Sent::Waits };
            let State::Sending(transfer, _) = &mut seat.connection.state else { return Sent::Waits };
            let sent = match transfer.output() {
                Output::Done => match self.io.flush(&mut seat.socket) {
                    Ok(()) => return Sent::All(transfer.account, transfer.keep_alive),
                    Err(error) => Err(error),
                },
                Output::Broken => return Sent::Broken(NarAbort::Changed),
                // What TLS has taken is not to wait for what comes next.
                Output::Await => match self.io.flush(&mut seat.socket) {
                    Ok(()) => return Sent::Waits,
                    Err(error) => Err(error),
                },
                _ if share == 0 => return Sent::Share,
                Output::Write(bytes, more) => self.io.write(&mut seat.socket, &[IoSlice::new(bytes)], more),
                Output::File(file, offset, len) => {
                    let len = len.min(share);
                    if self.io.residency(file, offset, len) != Residency::Resident {
                        self.ask_range(key);
                        return Sent::Waits;
                    }
                    match self.io.send_file(&mut seat.socket, file, offset, len) {
                        // The file is shorter than it was when it was opened.
                        Ok(0) => return Sent::Broken(NarAbort::Truncated),
                        outcome => outcome,
                    }
                }
            };
            match sent {
                Ok(count) => {
                    transfer.sent(count);
                    share = share.saturating_sub(count as u64);
                    self.metrics.sent(count as u64);
                    seat.connection.sent(count as u64);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    seat.writable = false;
                    transfer.blocked(now);
                    return Sent::Waits;
                }
                Err(error) if is_of_the_network(&error) => return Sent::Gone,
                Err(error) => {
                    self.faults.tell(now, "sending failed", &error);
                    return Sent::Broken(NarAbort::Unreadable);
                }
            }
        }
    }

    /// Sees to what comes after the segments that are ready, when they run low: fetches what is in memory, and
    /// asks for the rest. Gives what it cost, as bytes that could have been sent meanwhile.
    fn fetch(&mut self, key: usize) -> u64 {
        let Some(seat) = self.seats.get_mut(key) else { return 0 };
        let State::Sending(transfer, _) = &mut seat.connection.state else { return 0 };
        if !transfer.wants_more() {
            return 0;
        }
        let (files, mut cost) = (self.io.resident_files(), 0);
        let taken = transfer.take_resident(|cursor| {
            let segments = cursor.fetch_resident(&mut self.fetcher, files);
            cost = self.fetcher.files() as u64 * limits::RESIDENT_FILE_COST;
            segments
        });
        match taken {
            Ok(true) => return cost,
            Ok(false) => {}
            Err(_) => self.abort(key, NarAbort::Changed),
        }
        let Some(seat) = self.seats.get_mut(key) else { return cost };
        let State::Sending(transfer, _) = &mut seat.connection.state else { return cost };
        self.serial = self.serial.wrapping_add(1);
        let Some(source) = transfer.take_source(self.serial) else { return cost };
        let ticket = Ticket { worker: self.number, slot: key as u32, serial: self.serial };
        if self.rooms.fetch(ticket, source).is_err() {
            self.abort(key, NarAbort::Overload);
        }
        cost
    }

    /// Asks for the bytes that come next of a file, as sending them from where they are could mean to wait for a disk.
    /// What comes back is sent as it is: whether the file's own pages stay in memory until then is not asked again.
    fn ask_range(&mut self, key: usize) {
        let Some(seat) = self.seats.get_mut(key) else { return };
        let State::Sending(transfer, _) = &mut seat.connection.state else { return };
        self.serial = self.serial.wrapping_add(1);
        // While the actor has the source, nothing else is asked; its answer comes back here.
        let Some((file, offset, len)) = transfer.take_range(self.serial) else {
            return transfer.waits(self.io.now());
        };
        let ticket = Ticket { worker: self.number, slot: key as u32, serial: self.serial };
        if self.rooms.read(ticket, file, offset, len).is_err() {
            self.abort(key, NarAbort::Overload);
        }
    }

    /// The bytes of a range, or why there are none.
    pub(super) fn range_read(&mut self, ticket: Ticket, read: Result<Bytes, Errno>) {
        let key = ticket.slot as usize;
        let Some(seat) = self.seats.get_mut(key) else { return };
        let State::Sending(transfer, _) = &mut seat.connection.state else { return };
        if !transfer.awaits_range(ticket.serial) {
            return;
        }
        match read {
            Ok(bytes) if bytes.is_empty() => self.abort(key, NarAbort::Truncated),
            Ok(bytes) => {
                transfer.deliver_range(bytes);
                if seat.writable {
                    seat.queue(key, &mut self.to_send);
                } else {
                    transfer.blocked(self.io.now());
                }
            }
            Err(errno) => {
                self.faults.tell(self.io.now(), "a file that is being sent cannot be read", &errno);
                self.abort(key, NarAbort::Unreadable);
            }
        }
    }

    /// Segments for a transfer, or why there are none.
    pub(super) fn fetched(
        &mut self,
        ticket: Ticket,
        segments: Result<Vec<Segment>, NarAbort>,
        more: Option<Source>,
    ) {
        let key = ticket.slot as usize;
        let Some(seat) = self.seats.get_mut(key) else { return };
        let State::Sending(transfer, _) = &mut seat.connection.state else { return };
        if !transfer.awaits_source(ticket.serial) {
            return;
        }
        match segments {
            Err(cause) => self.abort(key, cause),
            Ok(segments) => match transfer.deliver(segments, more) {
                Ok(()) if seat.writable => seat.queue(key, &mut self.to_send),
                Ok(()) => transfer.blocked(self.io.now()),
                Err(_) => self.abort(key, NarAbort::Changed),
            },
        }
    }

    /// Segments of a compressed NAR, none at its end; or why there are none.
    pub(super) fn streamed(
        &mut self,
        ticket: Ticket,
        stream: Stream,
        segments: Result<Vec<Segment>, CompressError>,
    ) {
        let segments = segments.map_err(|error| self.faults.stream_broke_off(self.io.now(), &error));
        let has_more = !segments.as_ref().is_ok_and(Vec::is_empty);
        self.fetched(ticket, segments, has_more.then(|| Source::Compressed(Box::new(stream))));
    }

    /// The last byte of an answer has gone.
    fn answered(&mut self, key: usize, account: Account, keep_alive: bool, request_body: RequestBody) {
        let now = self.io.now();
        let Some(seat) = self.seats.get_mut(key) else { return };
        let visitor = seat.connection.visitor.as_deref_mut();
        settle(&self.metrics, &self.site, now, account, visitor, true);
        if keep_alive && self.drain.is_none() {
            let next = match Discard::new(request_body) {
                Ok(discard) if request_body != RequestBody::None => State::Discarding(discard),
                // Too long to be dropped was found before the answer, and closes.
                _ => State::Idle,
            };
            seat.connection.enter(next, now);
            if seat.connection.has_news() || seat.readable {
                self.to_read.push(key);
            }
            self.seats.become_idle(key);
            return;
        }
        // Closing at once would be a reset if anything unread had arrived, and a reset can overtake the
        // answer: so the sending side ends, and the peer closes.
        self.io.finish(&mut seat.socket);
        seat.connection.enter(State::Lingering(limits::LINGER_BYTES), now);
        self.to_read.push(key);
        self.seats.become_idle(key);
    }

    /// The peer has gone before its answer could begin to be sent.
    fn gone(&mut self, key: usize, account: Account) {
        if let Some(seat) = self.seats.get_mut(key) {
            let visitor = seat.connection.visitor.as_deref_mut();
            settle(&self.metrics, &self.site, self.io.now(), account, visitor, false);
        }
        self.close(key, Closed::ByPeer);
    }

    /// Closes a connection: its answers are out, it has asked nothing, or its peer has gone.
    pub(super) fn close(&mut self, key: usize, cause: Closed) {
        let Some(seat) = self.seats.remove(key) else { return };
        // After an answer that said so it is the peer who closes, as a close from here could overtake the answer.
        let cause = match (cause, &seat.connection.state) {
            (Closed::ByPeer, State::Lingering(_)) => Closed::Finished,
            (cause, _) => cause,
        };
        self.broke_off(seat.connection, NarAbort::ByPeer);
        self.io.close(seat.socket);
        self.left(cause);
    }

    /// Resets a connection in the middle of an answer, so that the peer cannot take what it has for the
    /// whole.
    pub(super) fn abort(&mut self, key: usize, cause: NarAbort) {
        let Some(seat) = self.seats.remove(key) else { return };
        self.broke_off(seat.connection, cause);
        self.io.abort(seat.socket);
        self.left(Closed::Aborted);
    }

    /// Counts an answer that ends here, if one was on its way or waited for.
    fn broke_off(&self, mut connection: Connection, cause: NarAbort) {
        let account = match &connection.state {
            State::Sending(transfer, _) => {
                self.metrics.aborted(cause);
                transfer.account
            }
            State::Asking(_, exchange) => Account {
                route: exchange.route.label(),
                method: exchange.method,
                status: Status::ClientClosed,
                started: exchange.started,
            },
            _ => return,
        };
        let visitor = connection.visitor.as_deref_mut();
        settle(&self.metrics, &self.site, self.io.now(), account, visitor, false);
    }

    fn left(&mut self, cause: Closed) {
        self.metrics.closed(cause);
        self.metrics.connections(self.seats.len());
        if self.load.remove() {
            self.tell_listener();
        }
    }
}

/// Counts an answer with the time to its last byte, and logs its request where that is wanted.
fn settle(
    metrics: &WorkerMetrics,
    site: &Site,
    now: Instant,
    account: Account,
    visitor: Option<&mut Visitor>,
    whole: bool,
) {
    let Account { route, method, status, started } = account;
    let took = now.duration_since(started);
    metrics.request(label_of(method), route, status.code(), took);
    if let (Some(journal), Some(visitor)) = (&site.journal, visitor) {
        journal.hand_on(visitor.end(status.code(), took, whole, SystemTime::now()));
    }
}

/// Whether sending failed on the way to the peer, and not at the file that is sent: the one call for both does not say.
/// Laptops go to sleep and cables are pulled; nobody need be told.
fn is_of_the_network(error: &Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::PIPE
                | Errno::CONNRESET
                | Errno::CONNABORTED
                | Errno::NOTCONN
                | Errno::SHUTDOWN
                | Errno::TIMEDOUT
                | Errno::HOSTUNREACH
                | Errno::HOSTDOWN
                | Errno::NETUNREACH
                | Errno::NETDOWN
                | Errno::NETRESET
                | Errno::NOBUFS
        )
    ) || matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

fn label_of(method: Method) -> metrics::Method {
    match method {
        Method::Get => metrics::Method::Get,
        Method::Head => metrics::Method::Head,
        Method::Other => metrics::Method::Other,
    }
}

/// What is left of a small body after `count` bytes of it.
fn unsent(body: Body, framing: Framing, count: usize) -> (Body, Framing) {
    match (body, framing) {
        (Body::Bytes(bytes), Framing::Length(length)) => {
            (Body::Bytes(bytes.slice(count..)), Framing::Length(length - count as u64))
        }
        whole => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_fails_is_no_file_that_fails() {
        for errno in [Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::CONNABORTED, Errno::PIPE]
        {
            assert!(is_of_the_network(&errno.into()), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOMEM, Errno::INVAL, Errno::STALE] {
            assert!(!is_of_the_network(&errno.into()), "{errno}");
        }
        // As TLS and the simulated network say it.
        assert!(is_of_the_network(&ErrorKind::BrokenPipe.into()));
    }
}
