//! How many descriptors the process may hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit on descriptors, after the soft one was raised as far as it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The soft limit at start.
    pub before: u64,
    /// The soft limit now.
    pub now: u64,
}

/// Raises the soft limit on open files to the hard one. Where the system refuses, the limit stays and
/// the answer says so.
pub fn raise_limit() -> Descriptors {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // No limit at all is reported as none; the kernel's own bound is far above what a server needs.
    let before = current.unwrap_or(CEILING);
    let wanted = maximum.unwrap_or(CEILING).min(CEILING).max(before);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => Descriptors { before, now: wanted },
        Err(_) => Descriptors { before, now: before },
    }
}

/// macOS reports no hard limit but refuses more than its `kern.maxfilesperproc`, at least this; and
/// more than this serves nobody.
#[cfg(target_vendor = "apple")]
const CEILING: u64 = 10_240;
#[cfg(not(target_vendor = "apple"))]
const CEILING: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_never_falls() {
        let first = raise_limit();
        assert!(first.now >= first.before);
        let second = raise_limit();
        assert_eq!(second.before, first.now);
        assert_eq!(second.now, first.now);
    }
}
