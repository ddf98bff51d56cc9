//! What the server did lately, for people: counters read now and then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Metrics;
use crate::limits;

/// Readings of the counters over the last minute.
#[derive(Debug, Default)]
pub struct Rates(VecDeque<Reading>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    requests: u64,
    bytes: u64,
}

/// What the server did since it started, and in the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Recent {
    /// Answers since the start.
    pub requests: u64,
    /// Bytes sent since the start.
    pub bytes: u64,
    /// Answers a second, lately.
    pub requests_a_second: f64,
    /// Bytes a second, lately.
    pub bytes_a_second: f64,
    /// Connections that are open.
    pub connections: u64,
}

impl Rates {
    /// Takes a reading if it is time for one. Gives how long it is until the next.
    pub fn sample(&mut self, metrics: &Metrics, now: Instant) -> Duration {
        let passed = self.0.back().map(|last| now.saturating_duration_since(last.at));
        if let Some(left) = passed.and_then(|passed| limits::RATE_PAUSE.checked_sub(passed))
            && !left.is_zero()
        {
            return left;
        }
        if self.0.len() >= limits::RATE_READINGS {
            self.0.pop_front();
        }
        self.0.push_back(read(metrics, now));
        limits::RATE_PAUSE
    }

    /// What the counters say now, and how much more that is than a minute ago.
    pub fn recent(&self, metrics: &Metrics, now: Instant) -> Recent {
        let Reading { requests, bytes, .. } = read(metrics, now);
        let since = self.0.front().copied().unwrap_or(Reading { at: now, requests, bytes });
        let seconds = now.saturating_duration_since(since.at).as_secs_f64();
        // In the first moment there is no rate yet.
        let rate = |more: u64| if seconds < 0.1 { 0.0 } else { more as f64 / seconds };
        Recent {
            requests,
            bytes,
            requests_a_second: rate(requests.saturating_sub(since.requests)),
            bytes_a_second: rate(bytes.saturating_sub(since.bytes)),
            connections: metrics.connections(),
        }
    }
}

fn read(metrics: &Metrics, at: Instant) -> Reading {
    Reading { at, requests: metrics.requests(), bytes: metrics.sent_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Method, Route};

    #[test]
    fn the_last_minute_counts() {
        let metrics = Metrics::new(2);
        let mut rates = Rates::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rates.recent(&metrics, start), Recent::default());
        assert_eq!(rates.sample(&metrics, start), limits::RATE_PAUSE);
        // Ten requests in each second of ten minutes, half of it by each worker.
        for second in 1..=600 {
            for worker in metrics.workers() {
                (0..5).for_each(|_| worker.request(Method::Get, Route::Nar, 200, Duration::ZERO));
                worker.sent(500);
                worker.connections(3);
            }
            let due = rates.sample(&metrics, after(second));
            assert!(due > Duration::ZERO && due <= limits::RATE_PAUSE);
        }
        let recent = rates.recent(&metrics, after(600));
        assert_eq!((recent.requests, recent.bytes, recent.connections), (6000, 600_000, 6));
        assert!((recent.requests_a_second - 10.0).abs() < 1e-6, "{recent:?}");
        assert!((recent.bytes_a_second - 1000.0).abs() < 1e-6, "{recent:?}");
        // A minute of silence.
        for second in 601..=670 {
            rates.sample(&metrics, after(second));
        }
        assert_eq!(rates.recent(&metrics, after(670)).requests_a_second, 0.0);
    }
}
