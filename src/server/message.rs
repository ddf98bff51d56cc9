//! A worker's mailbox.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::cache::actor as cache;
use crate::mailbox::Ticket;
use crate::nar::actor as nar;
use crate::store::{actor as store, browse, files, roots};

/// What a worker is told.
#[derive(Debug)]
pub enum Message<S> {
    /// A connection to look after; the listener has counted it already.
    Connection(S),
    /// The listener waits for a place: close the connection longest without an answer in flight.
    MakeRoom,
    /// Finish what is in flight, then end.
    Drain,
    /// Show that turns are taken, by counting one up.
    Pulse(Arc<AtomicUsize>),
    /// The public keys of those that sign from now on, as clients list them.
    Keys(Arc<[String]>),
    /// The store's answer.
    Store(Ticket, store::Answer),
    /// The NAR actors' answer.
    Nar(Ticket, nar::Answer),
    /// The cache actors' answer.
    Cache(Ticket, cache::Answer),
    /// A temporary root.
    Roots(Ticket, roots::Answer),
    /// What people look at.
    Browse(Ticket, browse::Answer),
    /// The file actors' answer.
    Files(Ticket, files::Answer),
}
