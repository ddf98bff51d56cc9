//! Every metric's name and help text. Units are in the names: seconds and bytes.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, but starts over with the process.
    Counter,
    /// A number as it is now.
    Gauge,
    /// Counts by bucket, with their sum.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The text after `# HELP`.
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Name {
    Name { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Name {
    Name { name, kind: Kind::Gauge, help }
}

/// Labels `method`, `path`, `status`. Name and labels are those of Harmonia before: dashboards use them.
pub const REQUESTS: Name = counter("harmonia_http_requests_total", "Requests answered.");

/// Labels `method`, `path`, `status`. Name and labels are those of Harmonia before: dashboards use them.
pub const REQUEST_SECONDS: Name = Name {
    name: "harmonia_http_request_duration_seconds",
    kind: Kind::Histogram,
    help: "Time from the end of a request's head to the last byte of its answer.",
};

/// No labels.
pub const SENT_BYTES: Name =
    counter("harmonia_http_sent_bytes_total", "Bytes sent to clients, heads and framing included.");

/// No labels.
pub const CONNECTIONS: Name = gauge("harmonia_connections", "Connections that are open.");

/// No labels.
pub const CONNECTIONS_ACCEPTED: Name =
    counter("harmonia_connections_accepted_total", "Connections accepted.");

/// No labels.
pub const CONNECTIONS_REFUSED: Name = counter(
    "harmonia_connections_refused_total",
    "Connections accepted and closed at once, as no worker could take them.",
);

/// Label `cause`.
pub const CONNECTIONS_CLOSED: Name =
    counter("harmonia_connections_closed_total", "Connections that ended, by cause.");

/// No labels.
pub const ACCEPT_PAUSES: Name = counter(
    "harmonia_accept_pauses_total",
    "Times that accepting paused: every worker full with answers in flight, or no descriptors left.",
);

/// No labels.
pub const UNLOGGED: Name = counter(
    "harmonia_requests_unlogged_total",
    "Requests that are missing in the log of requests: nobody read it fast enough, or it could not be written.",
);

/// Label `result`: `hit`, `miss`.
pub const NARINFOS: Name =
    counter("harmonia_narinfo_total", "Narinfos asked for, by whether the path is valid.");

/// Label `cause`.
pub const ABORTS: Name =
    counter("harmonia_nar_aborts_total", "NARs and logs broken off after their head was sent, by cause.");

/// Label `result`: `found`, `made`.
pub const PLANS: Name =
    counter("harmonia_nar_plans_total", "Plans of NARs wanted, by whether one was kept or had to be made.");

/// Label `result`: `made`, `found`, `failed`.
pub const PACKS: Name =
    counter("harmonia_packs_total", "Packs of small files wanted, by whether one was made, found or failed.");

/// No labels.
pub const PACKED_BYTES: Name = counter("harmonia_packed_bytes_total", "Bytes written to packs.");

/// Label `result`: `hit`, `miss`.
pub const COMPRESSED: Name = counter(
    "harmonia_compressed_nars_total",
    "Compressed NARs asked for by GET and not by the doctor, by whether one was there or had to be made.",
);

/// Label `result`: `begun`, `shared`.
pub const COMPRESSIONS: Name = counter(
    "harmonia_compressions_total",
    "NARs to be compressed, by whether it was begun or another client's was joined.",
);

/// No labels.
pub const COMPRESSING: Name = gauge("harmonia_compressing", "NARs that are being compressed.");

/// No labels.
pub const SAVED_BYTES: Name = counter(
    "harmonia_compressed_saved_bytes_total",
    "Bytes that clients did not have to fetch, as compressed frames were sent in place of chunks of NARs.",
);

/// No labels.
pub const EVICTIONS: Name =
    counter("harmonia_cache_evictions_total", "Frames evicted from the cache with their volume.");

/// No labels.
pub const REINSERTIONS: Name = counter(
    "harmonia_cache_reinsertions_total",
    "Frames carried over from an evicted volume, as they had been of use.",
);

/// No labels.
pub const CACHE_FAILURES: Name = counter(
    "harmonia_cache_failures_total",
    "Times that the cache could not be read or written for compressed NARs, or had damage.",
);

/// Label `chunks`: `compressed`, `found`.
pub const CHUNK_BYTES: Name = counter(
    "harmonia_compress_chunk_bytes_total",
    "Bytes of NARs in chunks that were compressed, or whose frame was there already.",
);

/// No labels.
pub const FRAME_BYTES: Name =
    counter("harmonia_compress_frame_bytes_total", "Bytes that chunks were compressed to.");

/// No labels.
pub const COMPRESS_SECONDS: Name =
    counter("harmonia_compress_seconds_total", "Time that threads spent on compressing chunks.");

/// No labels.
pub const SIGNATURES: Name = counter("harmonia_signatures_total", "Signatures made.");

/// No labels.
pub const SIGNING_SECONDS: Name = counter("harmonia_signing_seconds_total", "Time spent on signing.");

/// Label `kind`.
pub const QUERIES: Name = counter("harmonia_database_queries_total", "Queries of the Nix database, by kind.");

/// No labels.
pub const REFRESHES: Name = counter(
    "harmonia_database_refreshes_total",
    "Times that the index followed a change of the Nix database.",
);

/// No labels.
pub const DATABASE_BUSY: Name =
    counter("harmonia_database_busy_total", "Times that a request had to wait for a locked Nix database.");

/// No labels.
pub const DATABASE_UNAVAILABLE: Name = counter(
    "harmonia_database_unavailable_total",
    "Requests answered with 503, as the Nix database was locked for too long or cannot be read.",
);

/// No labels.
pub const QUARANTINED: Name = gauge(
    "harmonia_quarantined_paths",
    "Paths that are not what the Nix database says, and are answered with 404 until they are repaired.",
);

/// Labels `way`, `result`: `taken`, `failed`.
pub const ROOTS: Name =
    counter("harmonia_temporary_roots_total", "Temporary garbage-collector roots, by way and result.");

/// No labels.
pub const UNROOTED: Name = counter(
    "harmonia_unrooted_transfers_total",
    "Store paths sent without a temporary root, since none could be taken.",
);

/// Label `result`.
pub const KEPT_ROOTS: Name = counter(
    "harmonia_kept_roots_total",
    "Garbage-collector roots of paths that were asked for, by what became of them.",
);

/// Label `actor`.
pub const MAILBOX_DEPTH: Name = gauge("harmonia_mailbox_messages", "Messages that wait, by actor.");

/// Label `version`.
pub const BUILD_INFO: Name = gauge("harmonia_build_info", "1, with the version that runs.");

/// Every metric, in the order of the text.
pub const ALL: [Name; 36] = [
    BUILD_INFO,
    REQUESTS,
    REQUEST_SECONDS,
    SENT_BYTES,
    CONNECTIONS,
    CONNECTIONS_ACCEPTED,
    CONNECTIONS_REFUSED,
    CONNECTIONS_CLOSED,
    ACCEPT_PAUSES,
    UNLOGGED,
    NARINFOS,
    ABORTS,
    PLANS,
    PACKS,
    PACKED_BYTES,
    COMPRESSED,
    COMPRESSIONS,
    COMPRESSING,
    SAVED_BYTES,
    EVICTIONS,
    REINSERTIONS,
    CACHE_FAILURES,
    CHUNK_BYTES,
    FRAME_BYTES,
    COMPRESS_SECONDS,
    SIGNATURES,
    SIGNING_SECONDS,
    QUERIES,
    REFRESHES,
    DATABASE_BUSY,
    DATABASE_UNAVAILABLE,
    QUARANTINED,
    ROOTS,
    UNROOTED,
    KEPT_ROOTS,
    MAILBOX_DEPTH,
];
