//! Bounds of the store's metadata.

use std::time::Duration;

use super::ANSWER_TIME;

/// How long a question waits for a database that somebody has locked; then 503. Nix's own writers hold the
/// lock for milliseconds.
pub const DATABASE_PATIENCE: Duration = Duration::from_secs(5);

/// How long adding a path waits for another writer of the database. Nobody waits for an answer here as a client
/// does, and a writer that holds the lock so long has stopped.
pub const DATABASE_WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How often a locked database is tried meanwhile.
pub const DATABASE_PAUSE: Duration = Duration::from_millis(5);

/// A database that can only be read without locks is left alone for so long after it was written: file times
/// move in steps of up to 10 ms, and a second write in the same step would not show.
pub const DATABASE_QUIET: Duration = Duration::from_millis(100);

/// How often the database is looked up by its name where it is held on to: for so long it may go unseen that a folder
/// above it was renamed, or a file system mounted over it.
pub const DATABASE_BY_NAME: Duration = Duration::from_millis(100);

/// How often it is looked whether marks of damaged paths were set or cleared, or their trees repaired: whoever did so
/// tries it at once.
pub const QUARANTINE_LOOK: Duration = Duration::from_secs(1);

/// Damage that waits to be marked. What comes beyond is found again with the next request for it.
pub const QUARANTINE_QUEUE: usize = 64;

/// The steps in which file times move are at most so long: 10 ms, and a second on some file systems.
pub const FILE_TIME_STEP: Duration = Duration::from_secs(2);

/// How many rows of a big database are read into the index before the next question is looked at: about 10 ms.
pub const INDEX_SLICE: usize = 16_384;

/// How many paths that are asked for are read in one transaction, and then answered together: the first waits for the
/// last to be signed, half a millisecond.
pub const INFO_BATCH: usize = 16;

/// Paths registered since the index was last merged. The part that holds them is copied at each change that
/// adds to it (150 KB, some 10 µs); a merge copies the whole index (36 MB for a million paths, under 100 ms).
pub const INDEX_DELTA: usize = 4096;

/// Memory for rendered narinfos that all workers share, in bytes: about 30,000 of them, the closures of
/// several systems. Making one again costs some 60 µs.
pub const NARINFO_CACHE_BYTES: u64 = 64 << 20;

/// What one worker may hold of them. Mostly the same ones; those it alone still holds add to the bound above.
pub const VIEW_CACHE_BYTES: u64 = 32 << 20;

/// NAR sizes that the database does not have, remembered once computed. Nix has written the size at
/// registration for over ten years, so that few paths want this.
pub const COMPUTED_SIZES: usize = 16_384;

const _: () = assert!(DATABASE_WRITE_PATIENCE.as_secs() >= DATABASE_PATIENCE.as_secs());
const _: () = assert!(DATABASE_PATIENCE.as_secs() < ANSWER_TIME.as_secs());
const _: () = assert!(DATABASE_PAUSE.as_millis() < DATABASE_QUIET.as_millis());
const _: () =
    assert!(INDEX_DELTA <= INDEX_SLICE, "catching up a slice may fill the delta, then it is merged");
