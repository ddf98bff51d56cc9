//! Numbers that one thread writes and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows, written by one thread: load and store, where a locked instruction would cost
/// five times as much for a second writer that does not exist.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(count);
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that only grows, written by the threads of a pool.
#[derive(Debug, Default)]
pub(super) struct SharedCounter(AtomicU64);

impl SharedCounter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number as it is now, set by one thread.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU64);

impl Gauge {
    pub(super) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets, in nanoseconds, and as they are written, in seconds: half a decade each from a
/// cached narinfo to a long NAR on a slow link, finer where transfers take minutes.
pub(super) const BUCKETS: [(u64, &str); 15] = [
    (100_000, "0.0001"),
    (300_000, "0.0003"),
    (1_000_000, "0.001"),
    (3_000_000, "0.003"),
    (10_000_000, "0.01"),
    (30_000_000, "0.03"),
    (100_000_000, "0.1"),
    (300_000_000, "0.3"),
    (1_000_000_000, "1"),
    (3_000_000_000, "3"),
    (10_000_000_000, "10"),
    (30_000_000_000, "30"),
    (60_000_000_000, "60"),
    (120_000_000_000, "120"),
    (300_000_000_000, "300"),
];

/// How long things took, by bucket; written by one thread.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Of each bucket alone, not summed up; the last is beyond the last bound.
    cells: [Counter; BUCKETS.len() + 1],
    nanoseconds: Counter,
}

/// A histogram's numbers, or the sums of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) cells: [u64; BUCKETS.len() + 1],
    pub(super) nanoseconds: u64,
}

impl Histogram {
    pub(super) fn record(&self, took: Duration) {
        let nanoseconds = nanoseconds(took);
        let cell = BUCKETS.partition_point(|(bound, _)| *bound < nanoseconds);
        self.cells[cell].add(1);
        self.nanoseconds.add(nanoseconds);
    }

    pub(super) fn add_to(&self, times: &mut Times) {
        for (sum, cell) in times.cells.iter_mut().zip(&self.cells) {
            *sum += cell.get();
        }
        times.nanoseconds += self.nanoseconds.get();
    }
}

impl Times {
    pub(super) fn count(&self) -> u64 {
        self.cells.iter().sum()
    }
}

/// Whole nanoseconds; 584 years fit.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_rise() {
        assert!(BUCKETS.is_sorted_by(|a, b| a.0 < b.0));
        for (bound, text) in BUCKETS {
            let seconds: f64 = text.parse().expect("is a number");
            assert_eq!((seconds * 1e9).round() as u64, bound, "{text}");
        }
        let histogram = Histogram::default();
        for took in [100_000, 100_001, 300_000_000_000, 300_000_000_001] {
            histogram.record(Duration::from_nanos(took));
        }
        let mut times = Times::default();
        histogram.add_to(&mut times);
        histogram.add_to(&mut times);
        assert_eq!((times.cells[0], times.cells[1], times.cells[14], times.cells[15]), (2, 2, 2, 2));
        assert_eq!(times.count(), 8);
        assert_eq!(times.nanoseconds, 2 * 600_000_200_002);
    }
}
