//! What is measured: latencies, counts, bytes, and how they went over time.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency kept apart from longer ones, in nanoseconds: an hour.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// Digits kept of each latency.
const LATENCY_DIGITS: u8 = 3;
/// How finely time is cut at first.
const BIN_MIN: Duration = Duration::from_millis(100);
/// More bins than this, and neighbours are merged: a plot has no more points.
const BINS_MAX: usize = 600;

/// What happened within one span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bin {
    pub requests: u64,
    pub bytes: u64,
}

/// Requests and bytes over time, in bins of equal width that grow with the run.
#[derive(Debug, Clone)]
pub struct Timeline {
    pub width: Duration,
    pub bins: Vec<Bin>,
}

impl Timeline {
    fn new() -> Self {
        Self { width: BIN_MIN, bins: Vec::new() }
    }

    fn at(&mut self, since_start: Duration) -> &mut Bin {
        loop {
            let index = (since_start.as_nanos() / self.width.as_nanos()) as usize;
            if index < BINS_MAX {
                if index >= self.bins.len() {
                    self.bins.resize(index + 1, Bin::default());
                }
                return &mut self.bins[index];
            }
            self.merge();
        }
    }

    fn merge(&mut self) {
        let sum = |pair: &[Bin]| Bin {
            requests: pair.iter().map(|bin| bin.requests).sum(),
            bytes: pair.iter().map(|bin| bin.bytes).sum(),
        };
        self.bins = self.bins.chunks(2).map(sum).collect();
        self.width *= 2;
    }
}

/// One kind of request within a run.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: &'static str,
    /// Of the requests that ended well, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Requests that ended well.
    pub requests: u64,
    /// Body bytes that came, whether their request ended well or not.
    pub bytes: u64,
    pub statuses: BTreeMap<u16, u64>,
    /// By kind.
    pub errors: BTreeMap<&'static str, u64>,
    pub timeline: Timeline,
}

impl Series {
    /// An empty series.
    pub fn new(name: &'static str) -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_NS, LATENCY_DIGITS);
        Self {
            name,
            latency: latency.expect("the bounds are constants in order"),
            requests: 0,
            bytes: 0,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            timeline: Timeline::new(),
        }
    }

    /// A request ended well.
    pub fn answered(&mut self, status: u16, latency: Duration, since_start: Duration) {
        self.requests += 1;
        *self.statuses.entry(status).or_default() += 1;
        self.waited(latency);
        self.timeline.at(since_start).requests += 1;
    }

    /// A request failed; its latency says nothing.
    pub fn failed(&mut self, kind: &'static str) {
        *self.errors.entry(kind).or_default() += 1;
    }

    /// A request that was due was never sent: it waited at least this long, and that counts.
    pub fn never_sent(&mut self, waited: Duration) {
        self.failed("not sent in time");
        self.waited(waited);
    }

    /// Body bytes came.
    pub fn received(&mut self, bytes: u64, since_start: Duration) {
        self.bytes += bytes;
        self.timeline.at(since_start).bytes += bytes;
    }

    /// All its errors.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The latency that this share of requests (0 to 1) did not exceed, in microseconds.
    pub fn percentile_us(&self, share: f64) -> f64 {
        self.latency.value_at_quantile(share) as f64 / 1e3
    }

    /// The longest latency, in microseconds.
    pub fn max_us(&self) -> f64 {
        if self.latency.is_empty() { 0.0 } else { self.latency.max() as f64 / 1e3 }
    }

    fn waited(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(ns.max(1));
    }
}

/// The server's (or the client's) share of a run.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Processor time, all threads and child processes.
    pub cpu: Duration,
    /// The same by thread: its number, its name, its time.
    pub threads: Vec<(u32, String, Duration)>,
    /// The most memory it ever held, in bytes.
    pub peak_memory: u64,
}

impl Usage {
    /// What was used since an earlier look. The peak stays what it is.
    pub fn since(mut self, before: &Self) -> Self {
        self.cpu = self.cpu.saturating_sub(before.cpu);
        for (number, _, cpu) in &mut self.threads {
            let earlier = before.threads.iter().find(|(other, ..)| other == number);
            *cpu = cpu.saturating_sub(earlier.map_or(Duration::ZERO, |(_, _, cpu)| *cpu));
        }
        self.threads.sort_by_key(|(_, _, cpu)| std::cmp::Reverse(*cpu));
        self
    }
}

/// One run of one scenario.
#[derive(Debug, Clone)]
pub struct Run {
    /// The scenario, and what tells this run from its others.
    pub name: String,
    pub connections: usize,
    pub wall: Duration,
    pub series: Vec<Series>,
    pub server: Option<Usage>,
    pub client_cpu: Duration,
    /// Connections opened during it.
    pub opened: u64,
    /// Requests sent again because their kept-alive connection had been closed: no error, clients do so too.
    pub reconnects: u64,
    /// Of the requests that count (not those that only make a crowd), how many bytes were wrong.
    pub wrong: u64,
    /// What else was seen, in words.
    pub notes: Vec<String>,
    /// It was stopped by a signal.
    pub interrupted: bool,
}

impl Run {
    /// Requests that ended well, of all series.
    pub fn requests(&self) -> u64 {
        self.series.iter().map(|series| series.requests).sum()
    }

    /// Body bytes of all series.
    pub fn bytes(&self) -> u64 {
        self.series.iter().map(|series| series.bytes).sum()
    }

    /// Errors of all series.
    pub fn errors(&self) -> u64 {
        self.series.iter().map(Series::error_count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_of_any_length_stays_bounded_and_loses_nothing() {
        let mut timeline = Timeline::new();
        for second in 0..7200 {
            timeline.at(Duration::from_secs(second)).requests += 1;
        }
        assert!(timeline.bins.len() <= BINS_MAX);
        assert_eq!(timeline.bins.iter().map(|bin| bin.requests).sum::<u64>(), 7200);
        assert!(timeline.width * timeline.bins.len() as u32 >= Duration::from_secs(7199));
    }

    #[test]
    fn what_was_never_sent_is_an_error_and_a_latency() {
        let mut series = Series::new("narinfo");
        for _ in 0..9 {
            series.answered(200, Duration::from_micros(100), Duration::ZERO);
        }
        series.never_sent(Duration::from_secs(2));
        assert_eq!((series.requests, series.error_count()), (9, 1));
        assert!((series.percentile_us(0.5) - 100.0).abs() < 1.0);
        assert!(series.max_us() >= 2e6);
    }
}
