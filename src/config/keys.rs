//! Every key of the settings file: what its value may be, what holds without it, and what it means.
//!
//! The messages about wrong values and the operator's page (`harmonia generate settings`) are made of these, so that
//! neither can say other than the program does.

/// A key of the settings file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// What its value may be, so that "must be" may stand before it.
    pub kind: &'static str,
    /// What holds where it is not set, as Markdown: a value in backticks, as the file would have it, or words.
    pub default: &'static str,
    /// What it means, as Markdown.
    pub meaning: &'static str,
}

const fn key(name: &'static str, kind: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key { name, kind, default, meaning }
}

const PATH: &str = "a path in quotes";
const BOOLEAN: &str = "true or false";
const WHOLE: &str = "a whole number";

/// Every key, in the order of the documentation.
pub const KEYS: [Key; 31] = [
    key(
        "bind",
        "`address:port`, `[IPv6 address]:port` or `unix:/absolute/path` in quotes, or a list of these",
        "`\"[::]:5000\"`",
        "Where to listen; `[::]` takes IPv4 as well. Sockets that systemd opened take its place",
    ),
    key(
        "socket_mode",
        "a text of octal digits such as \"0660\"",
        "as the umask says",
        "The mode of unix sockets; systemd's own have that of their unit",
    ),
    key(
        "socket_owner",
        "a text such as \"user:group\", \"user\" or \":group\"",
        "this user",
        "Whose unix sockets are; systemd's own are whose their unit says",
    ),
    key("workers", "a whole number from 1 to 1024", "`4`", "Threads that serve; as many as cores is best"),
    key(
        "max_connection_rate",
        "a whole number of at least 1",
        "`256`",
        "The most connections that one worker holds at a time",
    ),
    key(
        "max_connections",
        "a whole number, 0 for none",
        "`0`",
        "Takes the place of `max_connection_rate` where it is set and not 0",
    ),
    key(
        "priority",
        "a whole number of 32 bits",
        "`30`",
        "Rank among a client's caches: the lowest is asked first, and cache.nixos.org has 40",
    ),
    key(
        "compression",
        "\"none\", \"zstd\" or \"xz\"",
        "`\"none\"`",
        "How NARs are offered to clients; each is compressed once and kept in `cache_dir`",
    ),
    key("enable_compression", BOOLEAN, "`false`", "`true`, in older files, means `compression = \"zstd\"`"),
    key(
        "compression_level",
        "a whole number from 1 to 22 for zstd, from 0 to 9 for xz",
        "`6`",
        "How hard to compress; for zstd, `level` in `[zstd]` overrides it",
    ),
    key("compression_threads", "a whole number from 1 to 1024", "one a core", "Threads that compress"),
    key(
        "compression_cold",
        "\"stream\" or \"identity\"",
        "`\"stream\"`; with xz, `\"identity\"`",
        "A NAR that is not compressed yet is sent as it is made, or plain and compressed behind for the next",
    ),
    key(
        "precompress",
        "\"none\" or \"recent\"",
        "`\"none\"`",
        "`recent`: paths that are registered while the server runs are compressed before anybody asks",
    ),
    key(
        "transport_compression",
        BOOLEAN,
        "`false`",
        "Plain NARs are sent with `Content-Encoding: zstd` to clients that take that, and so are listings, build logs and pages of 16 KiB and more; such a transfer cannot be resumed",
    ),
    key(
        "zstd",
        "a table",
        "none",
        "Of older files. `level` is the level of zstd; `long_distance_matching`, `window_log` and \
         `max_ldm_encoders_per_worker` have no effect",
    ),
    key(
        "virtual_nix_store",
        "an absolute path in quotes, without `.`, `..` or double slashes",
        "`\"/nix/store\"`",
        "The store directory that paths are named by; `$NIX_STORE_DIR` overrides it",
    ),
    key("real_nix_store", PATH, "`virtual_nix_store`", "Where the store directory's files really are"),
    key("nix_db_path", PATH, "`var/nix/db/db.sqlite` beside the real store", "Nix's database"),
    key(
        "sign_key_paths",
        "a path in quotes, or a list of such",
        "`[]`",
        "Files of the secret keys that sign, all of them; those in `$SIGN_KEY_PATHS`, separated by spaces, as well",
    ),
    key(
        "sign_key_path",
        PATH,
        "none",
        "Deprecated: one more of `sign_key_paths`; that in `$SIGN_KEY_PATH` as well",
    ),
    key(
        "daemon_socket",
        PATH,
        "`daemon-socket/socket` in Nix's state folder",
        "The Nix daemon's socket: through it, what is being sent is kept from the garbage collector",
    ),
    key(
        "keep_served",
        "a text such as \"30d\" or \"4w\" (days or weeks, up to a hundred years; 0 for none)",
        "`0`",
        "How long after a client last asked for it a path is kept from the garbage collector",
    ),
    key(
        "roots_dir",
        PATH,
        "`gcroots/harmonia` in Nix's state folder",
        "Where the links are that keep paths: those asked for, and pins",
    ),
    key(
        "cache_dir",
        PATH,
        "`$CACHE_DIRECTORY`, else `/var/cache/harmonia`; a user's: `~/.cache/harmonia`",
        "Where what is made of NARs is kept, to send them cheaply; may be deleted at any time",
    ),
    key(
        "cache_max_size",
        "a number of bytes or a text such as \"20G\" (units K, M, G, T of 1024 each; 0 for none)",
        "`\"20G\"`",
        "How much may be kept there; 0 for nothing",
    ),
    key(
        "tls_cert_path",
        PATH,
        "none",
        "The chain of certificates, PEM, with `tls_key_path`: what comes by TCP is then TLS 1.2 or 1.3. \
         Both are read again on SIGHUP and when they change",
    ),
    key("tls_key_path", PATH, "none", "The secret key of the first of these certificates, PEM"),
    key(
        "request_log",
        "\"none\", \"text\" or \"json\"",
        "`\"none\"`",
        "A line for each request, on standard output; all else that is logged is then on standard error",
    ),
    key("request_log_agent", BOOLEAN, "`false`", "Whether that line has the client's user agent"),
    key(
        "trusted_proxies",
        "addresses, networks such as \"10.0.0.0/8\", or \"unix\", in quotes, as a list",
        "`[]`",
        "Proxies that say, by `Forwarded` or `X-Forwarded-For`, whom that line names, and by `X-Forwarded-Proto` \
         whether the lines to copy begin with `https`",
    ),
    key(
        "proxy_protocol",
        BOOLEAN,
        "`false`",
        "Whether those proxies begin each connection with a PROXY header, version 1 or 2",
    ),
];

/// The keys of `[zstd]`, of older files.
pub(super) const ZSTD_KEYS: [Key; 4] = [
    key("level", WHOLE, "`6`", "The level of zstd"),
    key("long_distance_matching", BOOLEAN, "none", "Without effect"),
    key("window_log", WHOLE, "none", "Without effect"),
    key("max_ldm_encoders_per_worker", WHOLE, "none", "Without effect"),
];

/// What the value of a key may be.
pub(super) fn kind(name: &str) -> &'static str {
    let key = KEYS.iter().chain(&ZSTD_KEYS).find(|key| key.name == name);
    debug_assert!(key.is_some(), "a key that is in no table: {name}");
    key.map_or("another value", |key| key.kind)
}
