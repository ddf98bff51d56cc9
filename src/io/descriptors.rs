//! How many descriptors the process may hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on open files to the hard one, and gives what it is now. Where the system refuses, it stays.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // No limit at all is reported as none; the kernel's own bound is far above what a server needs.
    let before = current.unwrap_or(CEILING);
    let wanted = maximum.unwrap_or(CEILING).min(CEILING).max(before);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => wanted,
        Err(_) => before,
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
        let before = getrlimit(Resource::Nofile).current.unwrap_or(CEILING);
        let raised = raise_limit();
        assert!(raised >= before);
        assert_eq!(raise_limit(), raised);
    }
}
