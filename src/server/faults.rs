//! Telling the operator what could not be sent, to a bound: a client may ask for one damaged path as often as it
//! likes, and must not fill the log by it.

use std::error::Error;
use std::time::Instant;

use crate::cache::CompressError;
use crate::causes::with_causes;
use crate::limits;
use crate::metrics::NarAbort;
use crate::nar::NarError;
use crate::store::logs::LogError;

/// What one worker has told of lately.
#[derive(Debug, Default)]
pub struct Faults {
    /// Since when is counted; `None` until there is something to count.
    since: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl Faults {
    /// Tells of a fault, unless enough were told lately.
    pub fn tell(&mut self, now: Instant, what: &str, error: &dyn Error) {
        if self.admits(now) {
            tracing::error!(error = with_causes(error), "{what}");
        }
    }

    /// Tells why a NAR broke off, and says what its transfer is aborted as.
    pub fn nar_broke_off(&mut self, now: Instant, error: &NarError) -> NarAbort {
        self.tell(now, "a NAR broke off", error);
        match error {
            NarError::Unreadable { .. } => NarAbort::Unreadable,
            _ => NarAbort::Changed,
        }
    }

    /// Tells why a compressed NAR broke off, and says what its transfer is aborted as.
    pub fn stream_broke_off(&mut self, now: Instant, error: &CompressError) -> NarAbort {
        match error {
            // It is quarantined, and that is told once.
            CompressError::Nar(error) if error.is_damage() => return NarAbort::Changed,
            CompressError::Nar(error) => return self.nar_broke_off(now, error),
            CompressError::Ended => return NarAbort::Drain,
            _ => {}
        }
        self.tell(now, "a compressed NAR broke off", error);
        NarAbort::Unreadable
    }

    /// Tells why a build log broke off, and says what its transfer is aborted as.
    pub fn log_broke_off(&mut self, now: Instant, error: &LogError) -> NarAbort {
        self.tell(now, "a build log broke off", error);
        NarAbort::Unreadable
    }

    /// Whether something was left out that is not told of yet.
    pub fn is_owing(&self) -> bool {
        self.left_out > 0
    }

    /// Called once a tick: begins to count anew when the time has come.
    pub fn tick(&mut self, now: Instant) {
        if self.since.is_some_and(|since| now.duration_since(since) >= limits::WARNING_PAUSE) {
            self.settle();
        }
    }

    /// Says how many were left out, and begins to count anew.
    pub fn settle(&mut self) {
        let Self { left_out, .. } = std::mem::take(self);
        if left_out > 0 {
            tracing::error!(
                left_out,
                "more of the like: paths or logs that could not be sent; the first of them are told above"
            );
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        self.tick(now);
        self.since.get_or_insert(now);
        let admitted = self.told < limits::FAULTS_TOLD;
        if admitted {
            self.told += 1;
        } else {
            self.left_out += 1;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_told_and_the_others_counted() {
        let mut faults = Faults::default();
        let begun = Instant::now();
        let told = (0..1000).filter(|_| faults.admits(begun)).count();
        assert_eq!(told as u32, limits::FAULTS_TOLD);
        assert_eq!(faults.left_out, 1000 - u64::from(limits::FAULTS_TOLD));
        assert!(faults.is_owing());
        faults.tick(begun + limits::WARNING_PAUSE / 2);
        assert!(faults.is_owing(), "it is not time yet");
        faults.tick(begun + limits::WARNING_PAUSE);
        assert!(!faults.is_owing(), "it was said");
        assert!(faults.admits(begun + limits::WARNING_PAUSE), "and the next are told");
    }
}
