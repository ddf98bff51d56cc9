//! The doctor's bounds, and those of the client's settings that it reads.

use std::time::Duration;

/// The most that is read of an answer that is text, in bytes: a page that shows keys, a narinfo. A narinfo with a
/// thousand references has some 60 KB.
pub const DOCTOR_TEXT_BYTES: u64 = 1 << 20;

/// How many of this machine's store paths a cache is asked for until it has one. Fleets share most of what they hold;
/// at 50 ms an answer, it is as long as a download may take.
pub const DOCTOR_ASKED: usize = 200;

/// How many narinfos are looked at: some may be signed by others, so one alone says little of the cache's keys.
pub const DOCTOR_NARINFOS: usize = 8;

/// The largest file that is chosen for the measured download, in bytes; a smaller one if there is none below.
pub const DOCTOR_FILE_BYTES: u64 = 64 << 20;

/// What of a NAR's beginning is asked for a second time, from its middle on, to see that ranges work.
pub const DOCTOR_SAMPLE_BYTES: usize = 32 << 10;

/// A download below so many bytes a second is slow: less than the oldest Wi-Fi carries, and a system's closure of
/// some gigabytes takes an hour.
pub const DOCTOR_SLOW: u64 = 1 << 20;

/// A download that took less time than this says nothing of the rate.
pub const DOCTOR_RATE_TIME: Duration = Duration::from_secs(2);

/// How far the clocks of cache and client may be apart: what drifts for lack of a time server is further, and
/// certificates are issued hours before they are used.
pub const DOCTOR_CLOCK: Duration = Duration::from_secs(5 * 60);

/// How deep `nix.conf` files may include each other; Nix itself would read a circle for ever.
pub const NIX_CONF_DEPTH: usize = 10;
