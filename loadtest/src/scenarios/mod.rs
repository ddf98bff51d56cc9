//! What is asked of the cache: one file a scenario.

pub mod churn;
pub mod closure;
pub mod cold;
pub mod crowd;
pub mod nar;
pub mod queries;
pub mod range;

use std::time::{Duration, Instant};

/// Requests at a fixed rate: when each is due, whoever sends it.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: Duration,
    start: Option<Instant>,
    claimed: u32,
}

impl Schedule {
    /// `rate` requests a second.
    pub fn new(rate: f64) -> Self {
        Self { interval: Duration::from_secs_f64(1.0 / rate), start: None, claimed: 0 }
    }

    /// When the next request is due; it is the caller's to send, however late it is by now.
    pub fn claim(&mut self, now: Instant) -> Instant {
        let start = *self.start.get_or_insert(now);
        let due = start + self.interval * self.claimed;
        self.claimed += 1;
        due
    }

    /// How long those that were due before `end` and never claimed have waited.
    pub fn overdue(&self, end: Instant) -> impl Iterator<Item = Duration> {
        let (start, interval) = (self.start, self.interval);
        let waited = move |slot: u32| end.checked_duration_since(start? + interval * slot);
        (self.claimed..=u32::MAX).map_while(waited).filter(|waited| !waited.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_due_at_the_rate_however_late_they_are_claimed() {
        let start = Instant::now();
        let mut schedule = Schedule::new(100.0);
        assert_eq!(schedule.claim(start), start);
        let late = start + Duration::from_secs(1);
        assert_eq!(schedule.claim(late) - start, Duration::from_millis(10));
        assert_eq!(schedule.claim(late) - start, Duration::from_millis(20));
        assert_eq!(schedule.overdue(start + Duration::from_millis(30)).count(), 0);
        let overdue: Vec<_> = schedule.overdue(start + Duration::from_millis(55)).collect();
        assert_eq!(overdue, [25, 15, 5].map(Duration::from_millis));
    }
}
