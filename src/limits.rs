//! Every bound, with its reason; the relations between bounds are asserted at compile time.

mod doctor;
mod store;

use std::time::Duration;

pub use doctor::*;
pub use store::*;

// HTTP: what a request may ask of the parser.

/// The longest request head, in bytes, final empty line included; longer is 431. Nix sends about 200 bytes;
/// browsers behind proxies with cookies and tokens stay under 16 KiB, which is what nginx and Apache allow.
pub const HEAD_MAX: usize = 16 * 1024;

/// The longest request target, in bytes; longer is 414. RFC 9112 section 3 asks for request lines of at least
/// 8000 bytes; the longest path a store can hold, every byte percent-encoded, is far above any that was seen.
pub const TARGET_MAX: usize = 8 * 1024;

/// The most header lines; more is 431. Nix sends 4 to 8. Their slots are on the stack of the parser: 2 KiB.
pub const HEADERS_MAX: usize = 64;

/// How many different heads a worker remembers but for their targets: each client program and name of the server has
/// its own, and all are compared with one that is new.
pub const HEADS_REMEMBERED: usize = 4;

/// No longer head is remembered, in bytes. Nix's have under 200, a browser's some 500.
pub const REMEMBERED_HEAD_MAX: usize = 1024;

/// The most bytes of a request body, chunk framing included, that are read and dropped to keep a connection
/// for its next request. Beyond it, closing costs both sides less than reading on.
pub const BODY_DISCARD_MAX: u64 = 64 * 1024;

/// The most bytes of extensions after one chunk size. Nobody sends any; without a bound they are a way to
/// send much that counts as nothing.
pub const CHUNK_EXTENSION_MAX: u32 = 256;

/// The longest line of the PROXY protocol's version 1, its end included; from its specification.
pub const PROXY_LINE_MAX: usize = 107;

/// The longest header of its version 2, in bytes. Addresses take 232 at most; what proxies add about TLS and the like is
/// some hundred more.
pub const PROXY_HEADER_MAX: usize = 1024;

// A request line with the longest target leaves at least half of the head to the headers.
const _: () = assert!(TARGET_MAX <= HEAD_MAX / 2);

// Settings.

/// The most workers. More than cores gains nothing, and no machine has more cores; a [`crate::mailbox::Ticket`]
/// counts workers in 16 bits.
pub const WORKERS_MAX: usize = 1024;

/// The longest file of settings, of a key or of certificates, in bytes: what has no end, such as a device, is not read to
/// it. A chain of certificates has some ten KB, a narinfo with 20,000 references a megabyte.
pub const FILE_BYTES: u64 = 4 << 20;

const _: () = assert!(WORKERS_MAX <= u16::MAX as usize);

// Connections.

/// What one read takes from a socket. One buffer a worker, not one a connection: an idle one owns no buffer at all. A Nix
/// client's request head is under 300 bytes.
pub const READ_BYTES: usize = 16 << 10;

/// The most one connection sends before the worker turns to the next. At 10 Gbit/s it is 0.4 ms, so that a narinfo
/// never waits longer than that behind each busy transfer, and a system call still moves enough to be cheap.
pub const TURN_BYTES: u64 = 512 << 10;

/// A body of at most this many bytes is copied behind its head, so that one plain `send` takes both. Most narinfos
/// are under 2 KiB; to copy one takes some 20 ns, and gathering two parts costs the kernel more.
pub const JOINED_BYTES: usize = 4 << 10;

/// How long a connection without a request may stay. Nix clients drop their own after 90 s, and others keep them up to
/// 120 s: the server must not be the first, or a request crosses its close.
pub const IDLE_TIME: Duration = Duration::from_secs(130);

/// From the first byte of a request to the end of its head. It fits in one packet; who needs longer is gone or hostile.
pub const HEAD_TIME: Duration = Duration::from_secs(20);

/// A transfer must move [`SEND_MIN_BYTES`] in each stretch of this length, or it is cut. Clients wait up
/// to 300 s on a stalled transfer, and pause one while they unpack; so the stretch is as long as that.
pub const SEND_WINDOW: Duration = Duration::from_secs(300);

/// See [`SEND_WINDOW`]: together 55 bytes a second, which the slowest modem exceeds.
pub const SEND_MIN_BYTES: u64 = 16 << 10;

/// A transfer that could send nothing for so long gives back the segments it holds, which are fetched again when the
/// reader moves: a slow reader costs no more than an idle one.
pub const SHED_TIME: Duration = Duration::from_secs(2);

/// Where others wait for a place and every connection has an answer in flight, one whose reader took less than
/// [`ROOM_MIN_BYTES`] in each stretch of this length may be closed for them. Clients that pause to unpack go on where they
/// stood; without the bound, as many who read nothing as there are places would shut out everybody for [`SEND_WINDOW`].
pub const ROOM_TIME: Duration = Duration::from_secs(10);

/// See [`ROOM_TIME`]: together 400 bytes a second.
pub const ROOM_MIN_BYTES: u64 = 4 << 10;

/// After so many requests a connection is closed with its answer, so that long-lived clients spread anew over workers.
pub const REQUESTS_PER_CONNECTION: u32 = 10_000;

/// After an early answer, what still arrives is read and dropped for at most this long: closing at once would reset the
/// connection and could destroy the answer on its way.
pub const LINGER_TIME: Duration = Duration::from_secs(2);

/// See [`LINGER_TIME`]; the most that is read meanwhile.
pub const LINGER_BYTES: u64 = 256 << 10;

/// How long transfers in flight may go on after SIGTERM; under systemd's default of 90 s, after which it kills.
pub const DRAIN_TIME: Duration = Duration::from_secs(60);

/// How often a worker looks at its clocks. Every limit on time is seconds or more.
pub const TICK: Duration = Duration::from_secs(1);

/// How long a request may wait for actors, all together; then 503. Walking a tree of a million files on a slow disk
/// takes half a minute; clients wait up to 300 s.
pub const ANSWER_TIME: Duration = Duration::from_secs(60);

/// How long a client should wait before it tries again after a 503, in whole seconds as the field has them: what a
/// locked database or a full mailbox takes to clear. It is text, since that is what is sent.
pub const RETRY_AFTER: &str = "5";

/// How long a transfer whose last ready byte has gone may wait for the next; then it is cut. As [`ANSWER_TIME`]: a
/// disk that wakes or a file server that starts again is back by then, and a client that is cut asks for the rest
/// here or elsewhere, where one that waits learns nothing for 300 s.
pub const FETCH_TIME: Duration = ANSWER_TIME;

/// The same for a compressed NAR, whose next frame may have to wait for its turn at a slow encoder: with every core at
/// level 19 of zstd and many NARs at once, a minute and more. Less than the 300 s that clients wait.
pub const FRAME_TIME: Duration = Duration::from_secs(240);

/// When a transfer has no more than this ready, the next segments are fetched: half of what one fetch gives, so that the
/// wire does not wait for the disk, and no transfer holds more than one fetch and a half.
pub const FETCH_AHEAD: u64 = FETCH_BYTES / 2;

/// What an encrypted connection takes at a time, in bytes: four of TLS's records, so that each call of the kernel
/// moves enough to be cheap and a slow reader holds little.
pub const TLS_BUFFER: usize = 64 << 10;

/// How long each connection of this machine with itself may take by which it is found out whether the kernel encrypts;
/// they take microseconds, or are forbidden.
pub const TLS_PROBE: Duration = Duration::from_secs(1);

/// How often the files of certificate and key are looked at. Whoever renews them replaces them days before their end.
pub const TLS_LOOK: Duration = Duration::from_secs(10);

/// The backlog of a listening socket: what waits while accepting pauses. The kernel cuts it to its own bound, mostly 4096.
pub const BACKLOG: i32 = 4096;

/// How long accepting pauses when the process has no descriptor left, unless a connection ends first.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a poll takes from the kernel in one turn, at 32 bytes each at most; more wait for the next.
pub const POLL_EVENTS: usize = 512;

const _: () =
    assert!(IDLE_TIME.as_secs() > 120, "clients must close idle connections before the server does");
const _: () = assert!(HEAD_TIME.as_secs() < IDLE_TIME.as_secs());
const _: () =
    assert!(SHED_TIME.as_secs() < ROOM_TIME.as_secs() && ROOM_TIME.as_secs() < SEND_WINDOW.as_secs());
const _: () = assert!(FETCH_TIME.as_secs() < SEND_WINDOW.as_secs(), "before the client gives up");
const _: () = assert!(FRAME_TIME.as_secs() < SEND_WINDOW.as_secs(), "before the client gives up");
const _: () = assert!(DRAIN_TIME.as_secs() < 90, "systemd kills after 90 s");
const _: () = assert!(READ_BYTES as u64 <= LINGER_BYTES);

// The log.

/// Lines that wait to be written, at some 200 bytes each: a burst, until the reader of the log goes on. What comes
/// beyond is lost, since nobody who has something to say may wait for that reader.
pub const LOG_LINES: usize = 4096;

/// Requests that wait to be logged, at some 200 bytes each: a tenth of a second of what small answers a machine can give.
/// What comes beyond is lost, and counted.
pub const RECORDS: usize = 16_384;

/// The longest method and target that are logged, in bytes; of longer ones the beginning.
pub const LOGGED_LINE_MAX: usize = 1024;

/// The longest user agent that is logged, in bytes; of a longer one the beginning.
pub const AGENT_MAX: usize = 256;

/// How long the end of the process waits for the log's last lines to be read.
pub const LOG_END_TIME: Duration = Duration::from_secs(1);

/// A fault that every request may run into (no descriptors, no database) is told at most so often.
pub const WARNING_PAUSE: Duration = Duration::from_secs(60);

/// How many damaged paths, logs and files one worker tells of in each [`WARNING_PAUSE`]; the others are counted. Enough
/// to see that it is more than one path; with a kilobyte a line, 14 MB a day and worker at the very most.
pub const FAULTS_TOLD: u32 = 10;

// Descriptors.

/// What the process holds besides connections and files being sent: standard streams, polls, wakers,
/// listening sockets, databases, the daemon's socket, temporary roots; and the cache's volumes.
pub const DESCRIPTORS_OWN: u64 = 112 + CACHE_VOLUMES;

/// A worker holds its poll, what wakes it, the Nix database with its log and its index, and the first two once more to
/// ask what they are.
pub const DESCRIPTORS_PER_WORKER: u64 = 7;

/// A connection that sends a NAR holds its socket, the folder of the store path and, at the most, these files.
pub const DESCRIPTORS_PER_CONNECTION: u64 = 2 + TRANSFER_FILES as u64;

/// The most files that one transfer holds: the one being sent and the NAR's pack, which may have left the cache
/// meanwhile, and those of one fetch ahead. The next fetch waits until so few are left.
pub const TRANSFER_FILES: usize = 2 + FETCH_FILES;

/// Threads for build logs and served files: people and debuggers ask for these, a few at a time.
pub const FILES_THREADS: usize = 2;

// Temporary roots.

/// A root stays for so long after its last lease, so that a path that many ask for, or one that is fetched in
/// ranges, costs one root and not many.
pub const ROOT_LINGER: Duration = Duration::from_secs(2);

/// Roots that nobody wants are given back at most so often, as all others must be taken anew for it: about
/// 60 µs each with a daemon, 20 µs without. With [`ROOT_LINGER`] and [`ROOT_TICK`] a path can be collected within 8 s.
pub const ROOT_RENEW: Duration = Duration::from_secs(5);

/// How often the actor looks which leases have been dropped.
pub const ROOT_TICK: Duration = Duration::from_secs(1);

/// How long a daemon may take for one answer. It answers in under a millisecond; a machine that swaps
/// answers in a second.
pub const ROOT_DAEMON_TIME: Duration = Duration::from_secs(5);

/// How long a running collector may take to confirm a root. It answers at once, except for the very path
/// that it is deleting.
pub const ROOT_COLLECTOR_TIME: Duration = Duration::from_secs(5);

/// What a collector that was silent before gets to answer.
pub const ROOT_COLLECTOR_LEAST: Duration = Duration::from_millis(100);

/// A way to take roots that failed is left alone for so long: without rights it will fail again.
pub const ROOT_WAY_REST: Duration = Duration::from_secs(10);

/// How long to wait before a daemon's or collector's socket with a full backlog is tried again. Whoever accepts
/// there takes microseconds for each; polling costs one system call.
pub const ROOT_BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// How long to wait before asking again whether a collector that was about to begin or end has done so: it
/// takes or gives a lock and makes or removes a socket, in under a millisecond.
pub const ROOT_COLLECTOR_PAUSE: Duration = Duration::from_millis(5);

/// How many numbers are tried for a new file of roots. They are drawn from a thousand million.
pub const ROOT_FILE_TRIES: u32 = 16;

/// The longest text a daemon may send in one piece. Its messages are lines.
pub const ROOT_TEXT: usize = 64 << 10;

/// The most log frames before an answer, and things in one frame. An answer to these questions has none.
pub const ROOT_FRAMES: u32 = 1000;

const _: () = assert!(
    ROOT_BACKLOG_PAUSE.as_millis() < ROOT_COLLECTOR_LEAST.as_millis()
        && ROOT_COLLECTOR_PAUSE.as_millis() < ROOT_COLLECTOR_LEAST.as_millis(),
    "even what was silent before is asked several times"
);
const _: () = assert!(
    ROOT_COLLECTOR_TIME.as_secs() + 3 * ROOT_DAEMON_TIME.as_secs() < ANSWER_TIME.as_secs(),
    "a root is taken or given up before its request is"
);

// Roots of what is asked for.

/// Paths that wait to be kept, each asked for the first time that day. Of those beyond it, the next request tells.
pub const KEEP_QUEUE: usize = 4096;

/// How often links are looked at that may have expired. Looking at 100,000 of them takes a fifth of a second.
pub const KEEP_SWEEP: Duration = Duration::from_secs(3600);

/// The longest time that can be set, in days: a hundred years, so that sums of times cannot overflow.
pub const KEEP_DAYS_MAX: u64 = 36_500;

/// The longest name of a pin, in bytes: with a dot, a process's number and room to spare it stays a file name.
pub const PIN_NAME_MAX: usize = 200;

// File work that is not NARs.

/// The piece in which a packed log is decoded: one turn of a thread, and what a connection holds meanwhile.
pub const LOG_PART: usize = 64 << 10;

/// The longest packed log, in bytes of text, that is decoded once for its length alone: a few seconds of a thread.
pub const LOG_MEASURED: u64 = 64 << 20;

/// How many packed logs longer than [`LOG_PART`] are sent at a time. A decoder holds about 4 MB as long as its
/// reader is slow: 128 MB. Such logs are rare, and read by people.
pub const LOG_DECODERS: usize = 32;

/// How many names are looked at for the log of a hash part. Nix spreads logs over 1024 folders, so this is
/// two hundred million builds.
pub const LOG_NAMES: usize = 200_000;

/// How many links one request for a file may go through; as many as the kernel allows.
pub const SERVE_LINKS: usize = 40;

/// The most names of a path that are still to be walked: no tree has more than its longest path; real ones under 30.
pub const SERVE_NAMES: usize = 256;

/// The most entries of a folder that are shown: a page of about half a megabyte, which a worker writes in
/// about a millisecond and a slow reader holds.
pub const SERVE_ENTRIES: usize = 4_000;

/// The most build ids that are known, at 40 bytes each: 20 MB. nixpkgs has about 100,000 in all.
pub const DEBUG_IDS: usize = 500_000;

/// How many rows of the database are looked through at once: a few milliseconds.
pub const DEBUG_ROWS: i64 = 10_000;

/// How often the store is looked at for new debug symbols. People with a debugger ask for them, some time after a build.
pub const DEBUG_REFRESH: Duration = Duration::from_secs(5);

// Documents that are encoded on the way.

/// A listing, log or page is encoded from so many bytes on, where that is set. What is shorter is with the client after
/// one round trip in any case: a connection begins with some 14 KB.
pub const ENCODED_MIN: usize = 16 << 10;

/// The level of zstd for them: some 300 MB a second.
pub const ENCODED_LEVEL: i32 = 3;

const _: () = assert!(ENCODED_MIN <= LOG_PART, "of a log in parts, each but the last is worth it");

// What people look at.

/// Questions of people that wait. A search among a million paths takes half a second of one thread, so these are answered
/// within some ten seconds; whoever comes then is asked to come again.
pub const BROWSE_QUEUE: usize = 16;

/// The longest text that can be looked for, in bytes: the longest store path, and room to spare.
pub const SEARCH_BYTES: usize = 512;

/// How many paths one page of a search shows.
pub const SEARCH_PAGE: usize = 50;

/// How many references a path's page shows. The largest profiles have some thousand.
pub const REFERENCES: usize = 4_000;

/// How many referrers a path's page shows: everything refers to a libc, and nobody reads on.
pub const REFERRERS: usize = 200;

/// How many paths of a closure are counted, at some microseconds each. A large system has 10,000.
pub const CLOSURE_PATHS: usize = 100_000;

/// How old the size of the store may be that the landing page tells, when the store changes all the time.
pub const TOTAL_PAUSE: Duration = Duration::from_secs(10);

/// How often counters are read for what the landing page tells of the last minute.
pub const RATE_PAUSE: Duration = Duration::from_secs(5);

/// See [`RATE_PAUSE`]: how many readings make a minute.
pub const RATE_READINGS: usize = 12;

// Mailboxes.

/// Beyond one question a connection: messages that no connection waits on (refreshes, reloads, drains).
pub const MAILBOX_SPARE: usize = 64;

/// The most messages a mailbox has room for, whatever the number of connections: a queue's memory is taken
/// at once, at some 100 bytes a message. Questions beyond it are answered 503.
pub const MAILBOX_MAX: usize = 16_384;

/// How many may wait for one thing under way (a tree's walk, a NAR's measure, the next look at the database), those who
/// left among them; beyond it, 503.
pub const WAITING_MAX: usize = MAILBOX_MAX;

const _: () = assert!(MAILBOX_SPARE < MAILBOX_MAX);

// NARs.

/// Files of at least this many bytes are sent from the store by `sendfile`; smaller ones are read into memory, or are in
/// the pack, together with the framing around them. 97 % of a store's files are smaller and hold 18 % of its bytes:
/// docs/decisions/packs.md.
pub const SENDFILE_MIN: u64 = 128 * 1024;

/// The most that one fetch reads into memory; it ends before a small file that does not fit, and after a large one:
/// enough to keep a fast link busy while the next is fetched, little enough to hold for each answer.
pub const FETCH_BYTES: u64 = 256 * 1024;

/// Framing between two large files is sent from memory up to so many bytes; more of it, as of thousands of links, comes
/// from the pack. An ordinary file's takes some 200.
pub const FRAMING_SENT_MAX: u64 = 4 * 1024;

/// The most files that one fetch gives open: a part of what [`TRANSFER_FILES`] counts.
pub const FETCH_FILES: usize = 1;

/// The most small files that a worker reads at a time, where they are in memory: at some 3 µs each, one turn of
/// [`TURN_BYTES`] takes no longer for them.
pub const RESIDENT_FILES: usize = 64;

/// What a file that a worker opens costs of its turn, in bytes that could be sent in the same time.
pub const RESIDENT_FILE_COST: u64 = 8 * 1024;

/// A file sent by `sendfile` is announced to the system's read-ahead this far, so that the sender meets
/// resident pages at first; further on, reading in order keeps the system ahead.
pub const READ_AHEAD: u64 = 4 * 1024 * 1024;

/// The piece in which a pack is kept, in bytes: long enough that ranges and keys are few, short enough to hold
/// while it is gathered.
pub const PACK_FRAME: usize = 4 << 20;

/// How long a pack is not begun after it was asked for: a first download, which asks for it, is then mostly over, and
/// does not share the machine with the making of its pack.
pub const PACK_DELAY: Duration = Duration::from_secs(5);

/// How long a pack is worked at at a time, and how many times as long it then rests. It takes a quarter of a core, and
/// whoever waits for that core waits for no longer than this: hardened units forbid to ask for a lower priority. (Without a
/// rest, the slowest hundredth of narinfos took up to 49 ms beside eight cold downloads on two cores.)
pub const PACK_SLICE: Duration = Duration::from_millis(1);
/// See [`PACK_SLICE`].
pub const PACK_REST: u32 = 3;

/// A pack that would take more than this part of the cache is not made: every other would lose its place to it.
pub const PACK_MAX_SHARE: u64 = 4;

/// NARs that wait to be packed. Of those beyond it, whoever is asked for again is asked for again here too.
pub const PACK_QUEUE: usize = 1024;

/// Files, folders and links of one NAR. At about 300 bytes each its plan takes 5 GB: nobody's package, and a
/// tree beyond that is refused rather than taking the server's memory.
pub const PLAN_NODES: u32 = 1 << 24;

/// Memory for plans that are kept, in bytes. The plans of a store of 85,258 files in 141 paths take about
/// 30 MB; making one again costs a walk of its tree.
pub const PLAN_CACHE_BYTES: u64 = 128 * 1024 * 1024;

/// Threads that walk trees and read what is not in memory. They mostly wait for the disk; 8 keep a solid-state disk's
/// queue filled, each with a batch, and let as many transfers less one wait for a disk that does not answer before the
/// next has to.
pub const NAR_THREADS: usize = 8;

/// Folders that a thread keeps open while it goes through a tree. Deeper trees are opened again from the
/// root, so that descriptors do not grow with depth.
pub const FOLDERS_HELD: usize = 8;

/// A walk has threads ahead of it from so many folders on: to start them takes as long as to list five.
pub const WALK_AHEAD_FROM: u32 = 64;

/// Threads that list folders ahead of one walk. With the walk itself, four wait for the disk at once, or use four cores.
pub const WALK_THREADS: usize = 3;

/// Entries that are listed ahead of a walk, at some 80 bytes each, and the targets of links: the walk is what takes less time, and
/// is seldom behind.
pub const WALK_AHEAD: usize = 1 << 17;

const _: () = assert!(SENDFILE_MIN > 0 && FETCH_BYTES >= SENDFILE_MIN, "a fetch can hold any small file");
const _: () = assert!(FETCH_FILES >= 1 && FOLDERS_HELD >= 1 && NAR_THREADS >= 1);
const _: () =
    assert!(RESIDENT_FILES as u64 * RESIDENT_FILE_COST <= TURN_BYTES, "a fetch is one turn's work at most");
const _: () = assert!(
    (NAR_THREADS * (FOLDERS_HELD + 3) + 2 * WALK_THREADS) as u64 <= DESCRIPTORS_OWN - CACHE_VOLUMES,
    "walks hold few folders, a file and a ring; those ahead of one, its root and a folder"
);

// The cache.

/// Into how many volumes the cache's size is divided: one is evicted at a time, so 1.6 % of what is cached, and
/// each costs a descriptor.
pub const CACHE_VOLUMES: u64 = 64;

/// The least size of a volume, in bytes. A cache has at least two.
pub const CACHE_VOLUME_MIN: u64 = 64 << 20;

/// The longest frame, in bytes: four times the size that chunks are cut to, and what is held in memory while one is
/// checked.
pub const CACHE_FRAME_MAX: usize = 16 << 20;

/// Carried over from an evicted volume is at most one part of a new one in so many: eviction must make room.
pub const CACHE_CARRIED_PART: u64 = 2;

/// How many uses of a frame are counted: each lets it survive one more eviction.
pub const CACHE_USES_MAX: u8 = 3;

/// After so many bytes, what was written is forced to the disk: what a power failure may cost, and what one call to
/// the system has to write at once.
pub const CACHE_SYNC_BYTES: u64 = 64 << 20;

/// See [`CACHE_SYNC_BYTES`]: after so much time it is, however little there is.
pub const CACHE_SYNC_TIME: Duration = Duration::from_secs(5);

/// How often it is looked for newly registered paths that are to be compressed ahead. What a build made is copied
/// elsewhere seconds after it at the earliest.
pub const AHEAD_LOOK: Duration = Duration::from_secs(2);

/// How many of them are held at a time; the others wait in the database.
pub const AHEAD_ROWS: usize = 256;

/// How often it is looked whether the cache's folder was cleared or deleted: its space is
/// free only then.
pub const CACHE_LOOK: Duration = Duration::from_secs(5);

/// How many manifests are held in memory while the inventory cannot be written: some megabytes. More are forgotten.
pub const CACHE_MANIFESTS_UNSETTLED: usize = 4096;

/// How many manifests are kept, at some 250 bytes each on average: 64 MB. There is one for each NAR that was ever
/// compressed, and one for each that was packed, which share this.
pub const CACHE_MANIFESTS: i64 = 1 << 18;

// Chunks. Whoever changes these moves cuts: see `cache::encode::LAYOUT`.

/// What a chunk is cut to on average, in bytes: 4 MiB lose 1 % against a NAR in one piece, 1 MiB lose 4 %; and a NAR
/// of 64 MiB keeps 16 cores busy.
pub const CHUNK_AVERAGE: usize = 4 << 20;

/// No chunk that is cut by content is shorter.
pub const CHUNK_MIN: usize = 1 << 20;

/// No chunk is longer.
pub const CHUNK_MAX: usize = 8 << 20;

/// A file of at least this many bytes has chunks of its own. Smaller ones compress better together with their
/// neighbours.
pub const CHUNK_FILE_MIN: u64 = 2 << 20;

const _: () = assert!(CHUNK_MIN < CHUNK_AVERAGE && CHUNK_AVERAGE < CHUNK_MAX);
const _: () = assert!(CHUNK_MAX + (CHUNK_MAX >> 7) <= CACHE_FRAME_MAX, "a chunk that does not compress fits");

/// Of how many compressed NARs a worker remembers hash and size, at some 100 bytes each: the closures of several
/// systems.
pub const FILES_REMEMBERED: usize = 32_768;

/// Threads that answer what workers ask about compressed NARs. They read an inventory that is in memory, and check frames
/// before their first use.
pub const CACHE_THREADS: usize = 2;

/// How many NARs that somebody waits for are in the middle of being compressed. Each holds what was read and not cut yet,
/// [`CHUNK_MAX`] at the most, its tree's folder and a file of it; the others wait for their first turn.
pub const COMPRESSING_OPEN: usize = 32;

/// How many NARs that nobody waits for may be to be compressed, each with its plan; more are not begun.
pub const COMPRESSING_BEHIND: usize = 256;

/// How many clients at once are sent frames from memory, where they cannot be kept. Each holds a frame, and its chunk
/// where all is compressed for it alone: some 15 MB at the most. More are told to come again, or cut.
pub const COMPRESSING_ALONE: usize = 16;

/// How many frames of a compressed NAR one fetch gives, as ranges of files: some 20 MB, for one look at the inventory
/// each.
pub const STREAM_FRAMES: usize = 16;

const _: () = assert!(
    CACHE_VOLUME_MIN / CACHE_CARRIED_PART + 2 * CACHE_FRAME_MAX as u64 <= CACHE_VOLUME_MIN,
    "a new volume has room for any frame, whatever was carried over into it"
);
const _: () = assert!(CACHE_FRAME_MAX <= u32::MAX as usize, "a record has 32 bits for the length");

/// What decoding a compressed NAR reads at a time, in bytes.
pub const DECODE_BYTES: usize = 64 << 10;

// Nix's formats.

/// The longest name in a NAR, in bytes. Linux has 255 bytes; macOS 255 UTF-16 units, up to 765 bytes of UTF-8.
pub const NAR_NAME_MAX: usize = 1024;

/// The longest target of a symlink in a NAR, in bytes: Linux's PATH_MAX, the longest of the systems that Nix runs on.
pub const NAR_TARGET_MAX: usize = 4096;

/// The deepest nesting of directories in a NAR: a path of PATH_MAX bytes has no more parts, and Nix restores and dumps
/// by paths.
pub const NAR_DEPTH_MAX: usize = NAR_TARGET_MAX / 2;

/// How much of a file's contents the NAR parser holds while it hands them on, in bytes: on the stack.
pub const NAR_COPY_BYTES: usize = 16 * 1024;
