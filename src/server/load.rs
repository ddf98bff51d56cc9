//! What the listener knows of each worker: how full its slice is, and whether it can make room.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// No connection can be closed to make room.
const NONE: u64 = u64::MAX;

/// A worker's load, written by the worker and the listener, read by the listener.
///
/// Relaxed is enough throughout: these numbers only choose among workers, and every decision taken on
/// them is a message that the worker judges for itself. The one exception is [`Load::remove`], see there.
#[derive(Debug)]
pub struct Load {
    /// The most connections this worker may hold.
    pub capacity: usize,
    connections: AtomicUsize,
    /// Milliseconds from `epoch` to when the connection longest without an answer became so.
    oldest_idle: AtomicU64,
    epoch: Instant,
    /// The listener waits for room.
    wanted: AtomicBool,
}

impl Load {
    /// The load of a worker that holds nothing.
    pub fn new(capacity: usize, epoch: Instant) -> Self {
        Self {
            capacity,
            connections: AtomicUsize::new(0),
            oldest_idle: AtomicU64::new(NONE),
            epoch,
            wanted: AtomicBool::new(false),
        }
    }

    /// How many more connections it may hold.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.connections.load(Ordering::SeqCst))
    }

    /// How many it holds.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The listener is about to hand over a connection.
    pub fn add(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
    }

    /// A connection has ended. Says whether the listener is to be told.
    ///
    /// Sequentially consistent with [`Load::want`]: either the listener sees the room after it asked to be
    /// told, or the worker sees that it asked. Otherwise accepting could stay paused beside a free place.
    #[must_use]
    pub fn remove(&self) -> bool {
        self.connections.fetch_sub(1, Ordering::SeqCst);
        self.wanted.swap(false, Ordering::SeqCst)
    }

    /// The listener asks for a place, or takes that back; it looks for room once more after asking.
    pub fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::SeqCst);
    }

    /// Whether the listener waits for a place here.
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Since when the connection longest without an answer is so.
    pub fn set_oldest_idle(&self, since: Option<Instant>) {
        let millis = since.map_or(NONE, |since| {
            let passed: Duration = since.saturating_duration_since(self.epoch);
            // Half a thousand million years fit.
            passed.as_millis() as u64
        });
        self.oldest_idle.store(millis, Ordering::Relaxed);
    }

    /// The same, comparable between workers; `None` when every connection has an answer in flight.
    pub fn oldest_idle(&self) -> Option<u64> {
        let millis = self.oldest_idle.load(Ordering::Relaxed);
        (millis != NONE).then_some(millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_and_the_wish_for_it() {
        let load = Load::new(1, Instant::now());
        assert_eq!(load.room(), 1);
        load.add();
        assert_eq!(load.room(), 0);
        load.want(true);
        assert!(load.remove(), "the listener asked");
        load.add();
        assert!(!load.remove(), "it is told once");
    }

    #[test]
    fn idle_times_compare() {
        let epoch = Instant::now();
        let (first, second) = (Load::new(1, epoch), Load::new(1, epoch));
        assert_eq!(first.oldest_idle(), None);
        first.set_oldest_idle(Some(epoch + Duration::from_secs(1)));
        second.set_oldest_idle(Some(epoch + Duration::from_secs(2)));
        assert!(first.oldest_idle() < second.oldest_idle());
        first.set_oldest_idle(None);
        assert_eq!(first.oldest_idle(), None);
    }
}
