//! The end of a worker's turn: room for new connections, clocks, draining.

use super::connection::{Overdue, State};
use super::listener;
use super::resolve::Arrival;
use super::worker::Worker;
use crate::http::Status;
use crate::io::Io;
use crate::limits;
use crate::metrics::{Closed, NarAbort};

impl<I: Io> Worker<I> {
    /// Closes the connection longest without an answer in flight if the listener waits for its place.
    pub(super) fn make_room(&mut self) {
        while self.load.wanted() {
            let Some(key) = self.seats.oldest_idle() else { return };
            self.evict(key, Closed::Evicted);
            if self.seats.oldest_idle() == Some(key) {
                // It has just been answered, and no other has been so longer.
                return;
            }
        }
    }

    /// Tells a listener that has asked for room in vain: what was idle when it chose this worker has an answer in flight
    /// by now, and others may have room. After [`Worker::publish`], so that this worker is not chosen again for what it
    /// has no more.
    pub(super) fn give_up_room(&mut self) {
        if std::mem::take(&mut self.is_to_make_room) && self.load.wanted() {
            self.tell_listener();
        }
    }

    /// Closes a connection without an answer in flight, unless a request has just arrived on it. One whose last answer
    /// went out in this turn stays: what is unread would make the close a reset, and destroy the answer on its way.
    pub(super) fn evict(&mut self, key: usize, cause: Closed) {
        let Some(seat) = self.seats.get_mut(key) else { return };
        // The last look: its event may be on its way.
        seat.readable = true;
        self.read(key);
        let Some(seat) = self.seats.get_mut(key) else { return };
        let connection = &seat.connection;
        let is_fresh = matches!(connection.state, State::Lingering(_)) && connection.since() == self.io.now();
        if self.seats.is_idle(key) && !is_fresh {
            self.close(key, cause);
        }
    }

    /// Looks at every clock, once a tick.
    pub(super) fn tick(&mut self) {
        let now = self.io.now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + limits::TICK;
        self.faults.tick(now);
        let keys: Vec<usize> = self.seats.keys().collect();
        for key in keys {
            let Some(seat) = self.seats.get_mut(key) else { continue };
            match seat.connection.overdue(now) {
                None => {}
                Some(Overdue::Idle) => self.close(key, Closed::Idle),
                Some(Overdue::Lingered) => self.close(key, Closed::Finished),
                Some(Overdue::SlowBody) => self.close(key, Closed::SlowHead),
                Some(Overdue::SlowHead) => self.refuse(key, Status::RequestTimeout),
                Some(Overdue::NoAnswer(serial)) => {
                    if let Some(exchange) = self.unpark(key, serial) {
                        self.resolve(key, exchange, Arrival::Unavailable);
                    }
                }
                Some(Overdue::SlowReader) => self.abort(key, NarAbort::SlowReader),
                Some(Overdue::Stalled) => self.abort(key, NarAbort::Stalled),
            }
        }
        if self.drain.is_some_and(|until| now >= until) {
            let keys: Vec<usize> = self.seats.keys().collect();
            for key in keys {
                self.abort(key, NarAbort::Drain);
            }
        }
    }

    /// Stops waiting for new requests; answers in flight go on, within [`limits::DRAIN_TIME`].
    pub(super) fn drain(&mut self) {
        if self.drain.is_some() {
            return;
        }
        self.drain = Some(self.io.now() + limits::DRAIN_TIME);
        let keys: Vec<usize> = self.seats.keys().filter(|key| self.seats.is_idle(*key)).collect();
        for key in keys {
            self.evict(key, Closed::Drain);
        }
    }

    /// Shows the listener how full the slice is.
    pub(super) fn publish(&self) {
        let oldest = self.seats.oldest_idle().and_then(|key| self.seats.get(key));
        self.load.set_oldest_idle(oldest.map(|seat| seat.connection.since()));
    }

    pub(super) fn tell_listener(&self) {
        // A full mailbox holds the same message already.
        let _ = self.listener.try_send(listener::Message::Room);
    }
}
