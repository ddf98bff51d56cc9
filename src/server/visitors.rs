//! Where a worker's connections come from: the peer, or whom a trusted proxy names.

use std::io::ErrorKind;

use super::connection::Connection;
use super::worker::{Seat, Worker};
use crate::http::proxy::{self, Header};
use crate::io::{Io, Peer};
use crate::limits;
use crate::metrics::Closed;

impl<I: Io> Worker<I> {
    /// Takes a connection over from the listener.
    pub(super) fn welcome(&mut self, socket: I::Socket) {
        let (mut connection, mut preamble) = (Connection::new(self.io.now()), false);
        let trust = &self.site.trust;
        if self.site.journal.is_some() || !trust.proxies.is_empty() {
            let peer = self.io.peer(&socket);
            connection.is_proxied = trust.trusts(peer);
            preamble = trust.by_header && connection.is_proxied;
            connection.visitor =
                self.site.journal.as_ref().map(|journal| Box::new(journal.visitor(peer, trust)));
        }
        let seat = Seat {
            socket,
            connection,
            readable: true,
            writable: true,
            hung_up: false,
            preamble,
            queued: false,
        };
        let key = self.seats.insert(seat);
        self.metrics.connections(self.seats.len());
        self.seats.become_idle(key);
        let watched = match self.seats.get(key) {
            Some(seat) => self.io.watch(&seat.socket, key),
            None => Ok(()),
        };
        match watched {
            // The listener handed it over before it heard of the end; without a request it would be waited for.
            Ok(()) if self.drain.is_some() => self.evict(key, Closed::Drain),
            Ok(()) => self.to_read.push(key),
            Err(error) => {
                self.faults.tell(self.io.now(), "cannot watch a connection", &error);
                self.close(key, Closed::Failed);
            }
        }
    }

    /// Takes the header with which a trusted proxy begins a connection. Says whether what follows can be read. Only the
    /// header is taken from the socket: what follows may be for TLS.
    pub(super) fn take_preamble(&mut self, key: usize) -> bool {
        let Some(seat) = self.seats.get_mut(key) else { return false };
        let buffer = &mut self.buffer[..limits::PROXY_HEADER_MAX];
        let seen = match self.io.peek(&seat.socket, buffer) {
            Ok(0) => {
                self.close(key, Closed::ByPeer);
                return false;
            }
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                seat.readable = false;
                return false;
            }
            Err(_) => {
                self.close(key, Closed::ByPeer);
                return false;
            }
        };
        match proxy::parse(&buffer[..seen]) {
            Ok(Header::Complete { client, len }) => {
                seat.preamble = false;
                if let Some(client) = client {
                    seat.connection.is_proxied = self.site.trust.trusts(Peer::Tcp(client.to_canonical()));
                    if let Some(visitor) = &mut seat.connection.visitor {
                        visitor.is(client);
                    }
                }
                let taken = self.io.discard(&seat.socket, &mut buffer[..len]);
                // It was there a moment ago, and nobody else reads.
                if !matches!(taken, Ok(count) if count == len) {
                    self.close(key, Closed::ByPeer);
                    return false;
                }
                true
            }
            // More brings an event, unless it has ended already.
            Ok(Header::Partial) if !seat.hung_up => {
                seat.readable = false;
                false
            }
            Ok(Header::Partial) => {
                self.close(key, Closed::ByPeer);
                false
            }
            Err(error) => {
                self.faults.tell(
                    self.io.now(),
                    "one of trusted_proxies began a connection without a PROXY header",
                    &error,
                );
                self.close(key, Closed::Failed);
                false
            }
        }
    }
}
