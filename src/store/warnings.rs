//! Warnings about the database, to a bound: clients can cause them again and again, by asking.

use std::fmt::Display;
use std::time::Instant;

use tracing::warn;

use crate::limits;

/// What was warned of lately.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    /// When something was last told; `None` where that was long ago.
    told: Option<Instant>,
    left_out: u64,
}

impl Warnings {
    /// Tells of something, unless something was told within [`limits::WARNING_PAUSE`].
    pub(super) fn tell(&mut self, message: impl Display) {
        self.tick();
        match self.told {
            Some(_) => self.left_out += 1,
            None => {
                self.told = Some(Instant::now());
                warn!("{message}");
            }
        }
    }

    /// Whether something was left out that is not told of yet.
    pub(super) fn is_owing(&self) -> bool {
        self.left_out > 0
    }

    /// Whether something was told lately.
    #[cfg(test)]
    pub(super) fn has_told(&self) -> bool {
        self.told.is_some()
    }

    /// Says how many were left out, once it is time.
    pub(super) fn tick(&mut self) {
        if self.told.is_some_and(|at| at.elapsed() >= limits::WARNING_PAUSE) {
            self.settle();
        }
    }

    /// Says how many were left out, and begins anew.
    pub(super) fn settle(&mut self) {
        let Self { left_out, .. } = std::mem::take(self);
        if left_out > 0 {
            warn!(left_out, "more of the like about the Nix database: the first is told above");
        }
    }
}
