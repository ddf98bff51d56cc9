//! Waking the event loop at a time.

#[cfg(not(target_os = "linux"))]
pub use coarse::Alarm;
#[cfg(target_os = "linux")]
pub use precise::Alarm;

/// Waking at a time finer than a poll's milliseconds.
#[cfg(target_os = "linux")]
mod precise {
    use std::io;
    use std::os::fd::{AsRawFd as _, OwnedFd};
    use std::time::{Duration, Instant};

    use mio::unix::SourceFd;
    use mio::{Interest, Registry, Token};
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

    /// A timer that is an event of the poll. epoll_wait rounds up to a millisecond, which at a thousand requests
    /// a second would be most of the latency.
    pub struct Alarm {
        timer: OwnedFd,
        set: Option<Instant>,
    }

    impl Alarm {
        pub fn new(registry: &Registry, token: Token) -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
            registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Self { timer, set: None })
        }

        /// Sees to it that the poll wakes at `at`; gives how long it may wait at most.
        pub fn wait(&mut self, at: Instant, tick: Instant, now: Instant) -> io::Result<Duration> {
            let left = at.saturating_duration_since(now);
            if left.is_zero() {
                return Ok(Duration::ZERO);
            }
            if at < tick && self.set != Some(at) {
                let value =
                    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
                let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
                let spec = Itimerspec { it_interval: interval, it_value: value };
                rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
                self.set = Some(at);
            }
            Ok(tick.saturating_duration_since(now))
        }
    }
}

/// Waking at a time as finely as the poll can.
#[cfg(not(target_os = "linux"))]
mod coarse {
    use std::io;
    use std::time::{Duration, Instant};

    use mio::{Registry, Token};

    pub struct Alarm;

    impl Alarm {
        pub fn new(_: &Registry, _: Token) -> io::Result<Self> {
            Ok(Self)
        }

        pub fn wait(&mut self, at: Instant, tick: Instant, now: Instant) -> io::Result<Duration> {
            Ok(at.min(tick).saturating_duration_since(now))
        }
    }
}
