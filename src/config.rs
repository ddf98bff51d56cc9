//! Settings: file and environment → validated data.
//!
//! TOML at `--config`, else `$CONFIG_FILE`, else `./settings.toml`, else `/etc/harmonia/settings.toml`, else defaults. The result is plain data: no
//! key, handle or socket is in it, and of the files it names only the settings file itself was opened.

mod file;
mod nearest;
mod network;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::limits::WORKERS_MAX;
use file::Settings;
pub use network::{Network, Trusted};

/// `compression_level` where nothing sets it. For zstd, frames of 4 MiB are 5 % smaller at this level than a NAR in
/// one piece at Nix's, and take a core 9 s a gigabyte.
pub const COMPRESSION_LEVEL: i32 = 6;

/// The files that are looked for where nothing names another, the first that is there: in the current folder, and where
/// packages put it.
const DEFAULT_FILES: [&str; 2] = ["settings.toml", "/etc/harmonia/settings.toml"];

const _: () = assert!(WORKERS_MAX == 1024, "messages say so");

/// Everything that can be set, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; at least one place.
    pub bind: Vec<Bind>,
    /// The mode of the files of unix sockets, if one is set.
    pub socket_mode: Option<u32>,
    /// Whose they are, if that is set.
    pub socket_owner: Option<Owner>,
    /// Worker actors, one a core.
    pub workers: NonZeroUsize,
    /// The most connections that one worker holds at a time.
    pub connections_per_worker: NonZeroUsize,
    /// `Priority` of nix-cache-info: clients ask the cache with the lowest first.
    pub priority: i32,
    /// The store directory that paths are named by: absolute, no slash at its end.
    pub virtual_nix_store: String,
    /// Where the store directory's files really are.
    pub real_nix_store: PathBuf,
    /// Nix's database.
    pub nix_db_path: PathBuf,
    /// Nix's state, such as `/nix/var/nix`.
    pub state_dir: PathBuf,
    /// Nix's build logs, such as `/nix/var/log/nix`.
    pub log_dir: PathBuf,
    /// The Nix daemon's socket.
    pub daemon_socket: PathBuf,
    /// Where the roots are that keep paths for good: those that a person pinned, and those that were asked for.
    pub roots_dir: PathBuf,
    /// How long after it was last asked for a path is kept from the garbage collector; `None` for no time.
    pub keep_served: Option<Duration>,
    /// Where what is made of NARs is kept, if anything is.
    pub cache: Option<Cache>,
    /// Where marks of damaged paths are kept; the folder need not be there.
    pub quarantine: PathBuf,
    /// The files that TLS needs, if it is spoken.
    pub tls: Option<TlsFiles>,
    /// How NARs are offered.
    pub compression: Compression,
    /// How answered requests are logged, if they are.
    pub request_log: Option<RequestLog>,
    /// Proxies whose word is taken for where a request comes from, in the log.
    pub trusted_proxies: Vec<Trusted>,
    /// Whether those begin each connection with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// The files of the secret keys that sign; each once.
    pub sign_key_paths: Vec<PathBuf>,
    /// The file that was read.
    pub source: Option<PathBuf>,
    /// What to tell whoever starts the server, once: settings without effect, and what will surprise.
    pub warnings: Vec<String>,
}

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// TCP. `::` takes IPv4 connections as well.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port; 0 lets the system choose one.
        port: u16,
    },
    /// The absolute path of a unix socket.
    Unix(PathBuf),
}

/// Whose a file is: names, or numbers as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: Option<String>,
    /// The group.
    pub group: Option<String>,
}

impl Owner {
    /// Reads `user:group`, `user` or `:group`.
    fn parse(text: &str) -> Option<Self> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let named = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
        let is_name = |name: &str| !name.contains(|char: char| char.is_whitespace() || char == ':');
        let owner = Self { user: named(user), group: group.and_then(named) };
        (is_name(user) && group.is_none_or(is_name) && owner != Self { user: None, group: None })
            .then_some(owner)
    }
}

/// The files that TLS needs; both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain of certificates, the server's own first.
    pub certificate: PathBuf,
    /// The key of the server's own.
    pub key: PathBuf,
}

/// Where what is made of NARs is kept, to be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The folder.
    pub dir: PathBuf,
    /// How much it may hold, in bytes.
    pub max_size: u64,
}

/// How NARs are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// What narinfos offer; `None` for NARs as they are.
    pub format: Option<Format>,
    /// The level, as the format counts them; of zstd where NARs are offered as they are.
    pub level: i32,
    /// How many threads compress; `None` for one a core.
    pub threads: Option<NonZeroUsize>,
    /// What becomes of a NAR that has not been compressed yet.
    pub cold: Cold,
    /// What is compressed before anybody asks.
    pub precompress: Precompress,
    /// NARs that are asked for as they are, are encoded on the way for clients that take that.
    pub in_transport: bool,
}

/// A format of compressed NARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// zstd
    Zstd,
    /// xz
    Xz,
}

/// How a NAR is offered that has not been compressed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cold {
    /// Compressed: it is sent as it is made.
    Stream,
    /// As it is, and compressed behind for whoever comes next.
    Identity,
}

/// How answered requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLog {
    /// The form of a line.
    pub form: LineForm,
    /// Whether a line has the client's user agent.
    pub agents: bool,
}

/// The form of a line about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineForm {
    /// Words.
    Text,
    /// A JSON object.
    Json,
}

/// What is compressed before anybody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precompress {
    /// Nothing.
    Nothing,
    /// Paths that are registered while the server runs.
    Recent,
}

/// What the command line says beside the file; it wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--bind`, as often as given; empty leaves the file's.
    pub bind: Vec<String>,
    /// `--workers`
    pub workers: Option<usize>,
    /// `--priority`
    pub priority: Option<i32>,
}

/// Why there is no configuration. Messages say where, and what to do.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that was named is not readable.
    #[error("cannot read the settings file {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the TOML reader said.
        message: String,
    },
    /// A key that does not exist.
    #[error("{place}: there is no setting `{key}`{}", hint(*.nearest))]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key as it stands.
        key: String,
        /// The known key that is most like it.
        nearest: Option<&'static str>,
    },
    /// A value that cannot be.
    #[error("{place}: `{key}` must be {expected}, not {found}")]
    Value {
        /// Where.
        place: Place,
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// One of the two TLS keys without the other.
    #[error("{place}: `{missing}` is missing: a certificate and its key are set together, or neither")]
    HalfTls {
        /// Where the other one is.
        place: Place,
        /// The key that is missing.
        missing: &'static str,
    },
    /// A relative path, and no current folder.
    #[error("`{key}` is relative, and the current folder cannot be found")]
    NoCurrentFolder {
        /// The key.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file, at a line counted from 1.
    File(PathBuf, usize),
    /// In an environment variable.
    Variable(&'static str),
    /// On the command line.
    CommandLine,
}

impl Config {
    /// Reads the file that `explicit` names, or else the environment, or else the first that is there of
    /// `./settings.toml` and `/etc/harmonia/settings.toml`.
    ///
    /// # Errors
    /// A named file that cannot be read, TOML that cannot be understood, unknown keys, values that cannot be.
    pub fn load(explicit: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let named = explicit.map(Path::to_owned).or_else(|| variable(env, "CONFIG_FILE").map(PathBuf::from));
        let (path, text) = match named {
            Some(path) => match std::fs::read_to_string(&path) {
                Ok(text) => (Some(path), text),
                Err(source) => return Err(ConfigError::Unreadable { path, source }),
            },
            None => first_of(&DEFAULT_FILES.map(Path::new))?,
        };
        let settings = Settings::read(path.as_deref().unwrap_or(Path::new(DEFAULT_FILES[0])), &text)?;
        Self::derive(settings, path, env)
    }

    /// The configuration with what the command line says in place of what the file says.
    ///
    /// # Errors
    /// Values that cannot be.
    pub fn with(mut self, overrides: &Overrides) -> Result<Self, ConfigError> {
        if !overrides.bind.is_empty() {
            self.bind = binds(&overrides.bind, &Place::CommandLine)?;
        }
        if let Some(count) = overrides.workers {
            self.workers = workers(count as u64, Place::CommandLine)?;
        }
        self.priority = overrides.priority.unwrap_or(self.priority);
        Ok(self)
    }

    fn derive(
        settings: Settings,
        source: Option<PathBuf>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let tls = settings.tls()?;
        let mut warnings = settings.without_effect();

        let virtual_nix_store = match variable(env, "NIX_STORE_DIR") {
            Some(text) => store_dir(&text, Place::Variable("NIX_STORE_DIR"))?,
            None => match &settings.virtual_nix_store {
                Some((text, place)) => store_dir(text, place.clone())?,
                None => "/nix/store".to_owned(),
            },
        };
        let real_nix_store = match &settings.real_nix_store {
            Some(path) => absolute(path, "real_nix_store")?,
            None => PathBuf::from(&virtual_nix_store),
        };
        let nix_db_path = match &settings.nix_db_path {
            Some(path) => absolute(path, "nix_db_path")?,
            None => state_of_store(&real_nix_store).join("db/db.sqlite"),
        };
        let state_dir = state_of_database(&nix_db_path).unwrap_or_else(|| state_of_store(&real_nix_store));
        // A daemon serves the store whose state folder its socket is in. Asked of another one, a temporary root
        // would be granted and protect nothing; so the default moves with the state folder.
        let daemon_socket = match &settings.daemon_socket {
            Some(path) => absolute(path, "daemon_socket")?,
            None => state_dir.join("daemon-socket/socket"),
        };
        let cache_dir = cache_dir(&settings, env)?;
        let quarantine = cache_dir.join("quarantine");
        let roots_dir = match &settings.roots_dir {
            Some(path) => absolute(path, "roots_dir")?,
            None => state_dir.join("gcroots/harmonia"),
        };
        let cache = match settings.cache_max_size {
            0 => None,
            max_size => Some(Cache { dir: cache_dir, max_size }),
        };
        if cache.is_none() && settings.compression.format.is_some() {
            warnings.push(
                "compression has no effect without a cache (`cache_max_size = 0`): NARs are sent as they are"
                    .to_owned(),
            );
        }
        let sign_key_paths = sign_key_paths(&settings, env);
        if sign_key_paths.is_empty() {
            warnings.push(
                "no signing key: clients take only paths that are signed already or content-addressed. \
                 Make one with `harmonia keys generate`, and set `sign_key_paths`"
                    .to_owned(),
            );
        }
        Ok(Self {
            bind: match &settings.bind {
                Some((texts, place)) => binds(texts, place)?,
                None => vec![Bind::Tcp { host: "::".to_owned(), port: 5000 }],
            },
            socket_mode: settings.socket_mode,
            socket_owner: settings.socket_owner,
            workers: match settings.workers {
                Some((count, place)) => workers(count, place)?,
                None => NonZeroUsize::MIN.saturating_add(3),
            },
            connections_per_worker: settings.connections_per_worker,
            priority: settings.priority,
            log_dir: state_dir.parent().unwrap_or(Path::new("/")).join("log/nix"),
            virtual_nix_store,
            real_nix_store,
            nix_db_path,
            state_dir,
            daemon_socket,
            roots_dir,
            keep_served: settings.keep_served,
            cache,
            quarantine,
            tls,
            compression: settings.compression,
            request_log: settings.request_log,
            trusted_proxies: settings.trusted_proxies,
            proxy_protocol: settings.proxy_protocol,
            sign_key_paths,
            source,
            warnings,
        })
    }
}

impl Bind {
    /// Reads `host:port`, `[address]:port`, `unix:/path` or `unix:///path`.
    fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
        let host = match host.strip_prefix('[') {
            Some(bracketed) => {
                let address = bracketed.strip_suffix(']')?;
                address.parse::<std::net::Ipv6Addr>().ok()?;
                address
            }
            // Without brackets, nobody could tell the port of an IPv6 address from its last part.
            None => Some(host).filter(|host| !host.is_empty() && !host.contains([':', '/', ' ', ']']))?,
        };
        Some(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// The first of these files that is there, and its text. Its path is told whole: in whichever folder somebody is, there
/// may be another program's.
fn first_of(files: &[&Path]) -> Result<(Option<PathBuf>, String), ConfigError> {
    for file in files {
        let path = || std::path::absolute(file).unwrap_or_else(|_| (*file).to_owned());
        match std::fs::read_to_string(file) {
            Ok(text) => return Ok((Some(path()), text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ConfigError::Unreadable { path: path(), source }),
        }
    }
    Ok((None, String::new()))
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |key| format!("; did you mean `{key}`?"))
}

/// A variable that is set and not empty: unit files often set empty ones.
fn variable(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    env(name).filter(|value| !value.is_empty())
}

fn binds(texts: &[String], place: &Place) -> Result<Vec<Bind>, ConfigError> {
    let expected = "`address:port`, `[IPv6 address]:port` or `unix:/absolute/path`, or a list of these";
    let wrong = |found: String| ConfigError::Value { place: place.clone(), key: "bind", expected, found };
    if texts.is_empty() {
        return Err(wrong("an empty list".to_owned()));
    }
    texts.iter().map(|text| Bind::parse(text).ok_or_else(|| wrong(format!("\"{text}\"")))).collect()
}

fn workers(count: u64, place: Place) -> Result<NonZeroUsize, ConfigError> {
    let possible =
        usize::try_from(count).ok().filter(|count| *count <= WORKERS_MAX).and_then(NonZeroUsize::new);
    possible.ok_or_else(|| ConfigError::Value {
        place,
        key: "workers",
        expected: "a whole number from 1 to 1024",
        found: count.to_string(),
    })
}

/// A store directory is compared with what the database and clients say, byte by byte: so one spelling only.
fn store_dir(text: &str, place: Place) -> Result<String, ConfigError> {
    let trimmed = text.trim_end_matches('/');
    let canonical = trimmed.strip_prefix('/').is_some_and(|inner| {
        inner.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
            && !inner.contains(char::is_control)
    });
    if !canonical {
        return Err(ConfigError::Value {
            place,
            key: "virtual_nix_store",
            expected: "an absolute path without `.`, `..` or double slashes",
            found: format!("{text:?}"),
        });
    }
    Ok(trimmed.to_owned())
}

fn absolute(path: &Path, key: &'static str) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|source| ConfigError::NoCurrentFolder { key, source })
}

/// `<store's parent>/var/nix`
fn state_of_store(real_store: &Path) -> PathBuf {
    real_store.parent().unwrap_or(Path::new("/")).join("var/nix")
}

/// The state folder of a database that lies in it as Nix's does, in `db/`; a copy elsewhere tells nothing, and
/// must not have temporary roots written beside it.
fn state_of_database(database: &Path) -> Option<PathBuf> {
    let folder = database.parent()?;
    (folder.file_name()? == "db").then(|| folder.parent().map(Path::to_owned))?
}

/// `cache_dir`, or where systemd, the user's settings or custom say that caches are.
fn cache_dir(settings: &Settings, env: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = &settings.cache_dir {
        return absolute(path, "cache_dir");
    }
    if let Some(list) = variable(env, "CACHE_DIRECTORY") {
        // systemd gives one folder for each that the unit's CacheDirectory= names.
        return Ok(list.split(':').next().unwrap_or(&list).into());
    }
    let of_user = variable(env, "XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let of_user = of_user.or_else(|| Some(Path::new(&variable(env, "HOME")?).join(".cache")));
    let folder = if rustix::process::geteuid().is_root() { None } else { of_user };
    Ok(folder.unwrap_or_else(|| "/var/cache".into()).join("harmonia"))
}

fn sign_key_paths(settings: &Settings, env: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let many = variable(env, "SIGN_KEY_PATHS").unwrap_or_default();
    let one = variable(env, "SIGN_KEY_PATH");
    let from_env = many.split_ascii_whitespace().map(PathBuf::from).chain(one.map(PathBuf::from));
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in settings.sign_key_paths.iter().cloned().chain(from_env) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    const FILE: &str = "/etc/harmonia.toml";

    fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let settings = Settings::read(Path::new(FILE), text)?;
        let env =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Config::derive(settings, Some(FILE.into()), &env)
    }

    fn read(text: &str) -> Config {
        with_env(text, &[]).expect("is valid")
    }

    fn refusal(text: &str) -> String {
        with_env(text, &[]).expect_err("is not valid").to_string()
    }

    fn tcp(host: &str, port: u16) -> Bind {
        Bind::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn defaults() {
        let config = read("");
        assert_eq!(config.bind, [tcp("::", 5000)]);
        assert_eq!((config.workers.get(), config.connections_per_worker.get()), (4, 256));
        assert_eq!(config.priority, 30);
        assert_eq!(config.virtual_nix_store, "/nix/store");
        assert_eq!(config.real_nix_store, Path::new("/nix/store"));
        assert_eq!(config.nix_db_path, Path::new("/nix/var/nix/db/db.sqlite"));
        assert_eq!(config.state_dir, Path::new("/nix/var/nix"));
        assert_eq!(config.log_dir, Path::new("/nix/var/log/nix"));
        assert_eq!(config.daemon_socket, Path::new("/nix/var/nix/daemon-socket/socket"));
        assert_eq!(config.roots_dir, Path::new("/nix/var/nix/gcroots/harmonia"));
        assert_eq!(config.keep_served, None);
        assert!(config.sign_key_paths.is_empty());
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
        assert!(config.warnings[0].contains("harmonia keys generate"));
    }

    /// The file that nixpkgs' module writes, and every other key.
    #[test]
    fn every_key() {
        let config = read(
            r#"
            bind = "0.0.0.0:5000"
            workers = 2
            max_connection_rate = 100
            priority = 50
            enable_compression = false
            virtual_nix_store = "/gnu/store/"
            real_nix_store = "/mnt/gnu/store"
            nix_db_path = "/mnt/state/db/db.sqlite"
            sign_key_paths = ["/run/credentials/harmonia.service/sign-key-1"]
            daemon_socket = "/run/daemon"
            roots_dir = "/mnt/roots"
            keep_served = "30d"
            cache_dir = "/var/cache/nars"
            cache_max_size = "1.5T"
            "#,
        );
        assert_eq!(config.bind, [tcp("0.0.0.0", 5000)]);
        assert_eq!((config.workers.get(), config.connections_per_worker.get()), (2, 100));
        assert_eq!(config.priority, 50);
        assert_eq!(config.virtual_nix_store, "/gnu/store");
        assert_eq!(config.real_nix_store, Path::new("/mnt/gnu/store"));
        assert_eq!(config.nix_db_path, Path::new("/mnt/state/db/db.sqlite"));
        assert_eq!(config.state_dir, Path::new("/mnt/state"));
        assert_eq!(config.log_dir, Path::new("/mnt/log/nix"));
        assert_eq!(config.daemon_socket, Path::new("/run/daemon"));
        assert_eq!(config.roots_dir, Path::new("/mnt/roots"));
        assert_eq!(config.keep_served, Some(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(config.cache, Some(Cache { dir: "/var/cache/nars".into(), max_size: 3 << 39 }));
        assert_eq!(config.sign_key_paths, [Path::new("/run/credentials/harmonia.service/sign-key-1")]);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn a_moved_store_moves_what_belongs_to_it() {
        let config = read("real_nix_store = '/srv/demo/nix/store'");
        assert_eq!(config.virtual_nix_store, "/nix/store");
        assert_eq!(config.nix_db_path, Path::new("/srv/demo/nix/var/nix/db/db.sqlite"));
        assert_eq!(config.state_dir, Path::new("/srv/demo/nix/var/nix"));
        assert_eq!(config.log_dir, Path::new("/srv/demo/nix/var/log/nix"));
        assert_eq!(config.daemon_socket, Path::new("/srv/demo/nix/var/nix/daemon-socket/socket"));
        // A virtual store alone moves the real one too.
        let config = read("virtual_nix_store = '/gnu/store'");
        assert_eq!(config.nix_db_path, Path::new("/gnu/var/nix/db/db.sqlite"));
        // A database outside any `db` folder is a copy: state stays with the store.
        let config = read("nix_db_path = '/backup/copy.sqlite'");
        assert_eq!(config.state_dir, Path::new("/nix/var/nix"));
    }

    #[test]
    fn requests_are_logged_and_proxies_trusted_only_when_asked() {
        let config = read("");
        assert_eq!(
            (config.request_log, config.trusted_proxies, config.proxy_protocol),
            (None, Vec::new(), false)
        );
        let config = read(
            "request_log = 'json'\nrequest_log_agent = true\nproxy_protocol = true\n\
             trusted_proxies = ['127.0.0.1', '10.0.0.0/8', 'unix']",
        );
        assert_eq!(config.request_log, Some(RequestLog { form: LineForm::Json, agents: true }));
        assert_eq!((config.trusted_proxies.len(), config.trusted_proxies[2]), (3, Trusted::Unix));
        assert!(config.proxy_protocol && config.warnings.len() == 1, "{:?}", config.warnings);
        assert_eq!(read("request_log = 'none'\nrequest_log_agent = true").request_log, None);
        assert!(read("proxy_protocol = true").warnings.iter().any(|told| told.contains("trusted_proxies")));
        let told = refusal("request_log = 'text'\ntrusted_proxies = ['10.0.0.0/8', '10.0.0.1/8']");
        assert!(told.contains("line 2: `trusted_proxies` must be") && told.contains("10.0.0.1/8"), "{told}");
    }

    #[test]
    fn who_may_use_a_unix_socket() {
        let config = read("bind = 'unix:/run/h'\nsocket_mode = '0660'\nsocket_owner = 'harmonia:nginx'");
        assert_eq!(config.socket_mode, Some(0o660));
        let owner = |text: &str| read(&format!("socket_owner = '{text}'")).socket_owner.expect("it is set");
        let named = |user: Option<&str>, group: Option<&str>| Owner {
            user: user.map(str::to_owned),
            group: group.map(str::to_owned),
        };
        assert_eq!(config.socket_owner, Some(named(Some("harmonia"), Some("nginx"))));
        assert_eq!((owner("a"), owner(":g")), (named(Some("a"), None), named(None, Some("g"))));
        assert_eq!(owner("0:100"), named(Some("0"), Some("100")));
        for wrong in
            ["socket_mode = '0860'", "socket_mode = '1777'", "socket_mode = 660", "socket_mode = 'rw'"]
        {
            assert!(refusal(wrong).contains("socket_mode"), "{wrong}");
        }
        for wrong in [":", "a:b:c", "a b"] {
            let told = refusal(&format!("socket_owner = '{wrong}'"));
            assert!(told.contains("`socket_owner` must be a text such as \"user:group\""), "{told}");
        }
    }

    #[test]
    fn how_long_what_is_asked_for_is_kept() {
        let keep = |value: &str| read(&format!("keep_served = {value}")).keep_served;
        let days = |days: u64| Some(Duration::from_secs(days * 24 * 3600));
        assert_eq!((keep("'1d'"), keep("'12 w'"), keep("'36500d'")), (days(1), days(84), days(36_500)));
        assert_eq!((keep("0"), keep("'0d'")), (None, None));
        for wrong in ["'30'", "30", "'d'", "'-1d'", "'1.5d'", "'36501d'", "'12h'", "'30 days'", "true"] {
            let told = refusal(&format!("keep_served = {wrong}"));
            assert!(told.contains("line 1: `keep_served` must be") && told.contains("\"30d\""), "{told}");
        }
    }

    #[test]
    fn what_may_be_kept_and_where() {
        let dir = |env: &[(&str, &str)]| with_env("", env).expect("is valid").cache.expect("kept").dir;
        assert_eq!(dir(&[("CACHE_DIRECTORY", "/var/cache/a:/var/cache/b")]), Path::new("/var/cache/a"));
        let of_user = [("XDG_CACHE_HOME", "/u/.c"), ("HOME", "/u")];
        if rustix::process::geteuid().is_root() {
            assert_eq!(dir(&of_user), Path::new("/var/cache/harmonia"));
        } else {
            assert_eq!(dir(&of_user), Path::new("/u/.c/harmonia"));
            assert_eq!(dir(&of_user[1..]), Path::new("/u/.cache/harmonia"));
        }
        assert_eq!(dir(&[]), Path::new("/var/cache/harmonia"));
        assert_eq!(read("cache_max_size = 0").cache, None);
        for (text, size) in [
            ("4096", 4096),
            ("'4096'", 4096),
            ("'10M'", 10 << 20),
            ("'512 MiB'", 512 << 20),
            ("'0.5G'", 1 << 29),
            ("'3KB'", 3 << 10),
        ] {
            let config = read(&format!("cache_max_size = {text}"));
            assert_eq!(config.cache.map(|cache| cache.max_size), Some(size), "{text}");
        }
        for wrong in ["-1", "''", "'G'", "'-1G'", "'1.G'", "'1E'", "'1.5.5G'", "'99999999T'", "true", "1.5"] {
            let message = refusal(&format!("cache_max_size = {wrong}"));
            assert!(message.contains("`cache_max_size` must be a number of bytes"), "{message}");
        }
    }

    #[test]
    fn places_to_listen() {
        for (text, bind) in [
            ("[::]:5000", tcp("::", 5000)),
            ("[::1]:0", tcp("::1", 0)),
            ("127.0.0.1:80", tcp("127.0.0.1", 80)),
            ("localhost:5000", tcp("localhost", 5000)),
            ("unix:/run/h.sock", Bind::Unix("/run/h.sock".into())),
        ] {
            assert_eq!(Bind::parse(text).as_ref(), Some(&bind), "{text}");
            assert_eq!(bind.to_string(), text);
        }
        assert_eq!(Bind::parse("unix:///run/h.sock"), Some(Bind::Unix("/run/h.sock".into())));
        for wrong in [
            "",
            "5000",
            ":5000",
            "::1:5000",
            "[::1]5000",
            "[::1]",
            "[localhost]:1",
            "h:",
            "h:+1",
            "h:65536",
            "h:1/",
            "a b:1",
            "unix:run",
            "unix://run/h",
            "unix:",
            "http://h:1",
        ] {
            assert_eq!(Bind::parse(wrong), None, "{wrong}");
        }
        let config = read("bind = ['[::]:5000', 'unix:/run/h.sock']");
        assert_eq!(config.bind, [tcp("::", 5000), Bind::Unix("/run/h.sock".into())]);
        let message = refusal("\n bind = ['[::]:5000', 'x']");
        assert!(
            message.starts_with("/etc/harmonia.toml, line 2: `bind` must be `address:port`"),
            "{message}"
        );
        assert!(message.ends_with("not \"x\""), "{message}");
        assert!(refusal("bind = []").ends_with("not an empty list"));
        assert!(refusal("bind = 5000").ends_with("not 5000"));
        assert!(refusal("bind = [5000]").ends_with("not 5000"));
    }

    #[test]
    fn connections_of_a_worker() {
        let most = |text| read(text).connections_per_worker.get();
        assert_eq!(most("max_connections = 0"), 256);
        assert_eq!(most("max_connections = 25000"), 25000);
        assert_eq!(most("max_connection_rate = 9\nmax_connections = 0"), 9);
        assert_eq!(most("max_connection_rate = 9\nmax_connections = 8"), 8);
        let both = read("max_connection_rate = 9\nmax_connections = 8");
        assert!(both.warnings.iter().any(|warning| warning.contains("`max_connection_rate` has no effect")));
        assert!(refusal("max_connection_rate = 0").contains("at least 1, not 0"));
        assert!(refusal("max_connections = -1").contains("not -1"));
    }

    #[test]
    fn numbers() {
        assert_eq!(read("priority = -5").priority, -5);
        assert_eq!(read("workers = 0x10").workers.get(), 16);
        for (text, end) in [
            ("workers = 0", "`workers` must be a whole number from 1 to 1024, not 0"),
            ("workers = -1", "not -1"),
            ("workers = 1025", "not 1025"),
            ("workers = 'four'", "not \"four\""),
            ("workers = 1.5", "not 1.5"),
            ("workers = true", "not true"),
            ("priority = 30.0", "`priority` must be a whole number of 32 bits, not 30.0"),
            ("priority = 3000000000", "not 3000000000"),
            ("priority = 99999999999999999999", "not 99999999999999999999"),
            ("priority = 2026-11-23", "not a date"),
        ] {
            let message = refusal(text);
            assert!(
                message.starts_with("/etc/harmonia.toml, line 1: ") && message.ends_with(end),
                "{message}"
            );
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        assert_eq!(
            refusal("bind = '[::]:1'\n\nsign_key_pats = []"),
            "/etc/harmonia.toml, line 3: there is no setting `sign_key_pats`; did you mean `sign_key_paths`?"
        );
        assert_eq!(refusal("hedgehog = 1"), "/etc/harmonia.toml, line 1: there is no setting `hedgehog`");
        assert_eq!(
            refusal("[zstd]\nlevle = 3"),
            "/etc/harmonia.toml, line 2: there is no setting `levle`; did you mean `level`?"
        );
        assert!(refusal("zworkers = 1\naworkers = 2").contains("line 1"), "the first in the file");
        assert!(refusal("[zstd]\n[zstdd]").contains("line 2"));
        assert!(refusal("[zstd]\n[zstd.level]").contains("`level` must be a whole number, not a table"));
    }

    #[test]
    fn what_is_no_toml() {
        let message = refusal("workers = 4\nbind =");
        assert!(message.starts_with("/etc/harmonia.toml, line 2: "), "{message}");
        assert!(refusal("workers = 4\nworkers = 5").contains("line 2"));
    }

    #[test]
    fn compression_of_old_files_and_of_new_ones() {
        let old = read(
            "enable_compression = true\n[zstd]\nlevel = 19\nlong_distance_matching = true\nwindow_log = 27\n\
             max_ldm_encoders_per_worker = 2",
        );
        let precompress = Precompress::Nothing;
        let zstd = Compression {
            format: Some(Format::Zstd),
            level: 19,
            threads: None,
            cold: Cold::Stream,
            precompress,
            in_transport: false,
        };
        assert_eq!(old.compression, zstd);
        let said = old.warnings.join("\n");
        assert!(said.contains("long_distance_matching, window_log, max_ldm_encoders_per_worker"), "{said}");
        let plain = Compression { format: None, level: 6, ..zstd };
        assert_eq!(read("").compression, plain);
        assert_eq!(read("enable_compression = true").compression.format, Some(Format::Zstd));
        assert_eq!(read("compression = 'none'\nenable_compression = true").compression, plain);
        let xz = Compression {
            format: Some(Format::Xz),
            level: 6,
            threads: None,
            cold: Cold::Identity,
            precompress,
            in_transport: false,
        };
        assert_eq!(read("compression = 'xz'\n[zstd]\nlevel = 3").compression, xz);
        let all = read(
            "compression = 'xz'\ncompression_level = 0\ncompression_threads = 3\ncompression_cold = 'stream'",
        );
        let threads = NonZeroUsize::new(3);
        assert_eq!(all.compression, Compression { level: 0, threads, cold: Cold::Stream, ..xz });
        assert!(refusal("zstd = 3").contains("`zstd` must be a table, not 3"));
        assert!(refusal("[zstd]\nlevel = 'best'").contains("line 2: `level`"));
        assert!(refusal("enable_compression = 1").contains("true or false, not 1"));
        assert!(
            refusal("compression = 'gzip'").contains("must be \"none\", \"zstd\" or \"xz\", not \"gzip\"")
        );
        assert!(refusal("compression = 'zstd'\ncompression_level = 0").contains("from 1 to 22"));
        assert!(refusal("compression = 'xz'\ncompression_level = 10").contains("from 0 to 9"));
        assert!(refusal("compression_threads = 0").contains("from 1 to 1024"));
        assert!(read("transport_compression = true").compression.in_transport);
        assert_eq!(read("precompress = 'recent'").compression.precompress, Precompress::Recent);
        assert!(refusal("precompress = 'all'").contains("must be \"none\" or \"recent\""));
        assert!(refusal("compression_cold = 'wait'").contains("`compression_cold` must be"));
        let in_vain = read("precompress = 'recent'\ncompression_level = 3").warnings.join("\n");
        assert!(
            in_vain.contains("`compression_level` has no effect")
                && in_vain.contains("`precompress` has no effect")
        );
        assert_eq!(read("transport_compression = true\ncompression_level = 3").warnings.len(), 1);
        let none = read("compression = 'zstd'\ncache_max_size = 0");
        assert!(none.warnings.iter().any(|said| said.contains("without a cache")));
    }

    #[test]
    fn certificate_and_key_come_together() {
        let both = read("tls_cert_path = '/c'\ntls_key_path = '/k'").tls;
        assert_eq!(both, Some(TlsFiles { certificate: "/c".into(), key: "/k".into() }));
        assert_eq!(read("").tls, None);
        assert!(refusal("tls_cert_path = '/c'").contains("`tls_key_path` is missing"));
        assert!(refusal("workers = 1\ntls_key_path = '/k'").contains("line 2: `tls_cert_path` is missing"));
    }

    #[test]
    fn store_directories() {
        for wrong in
            ["nix/store", "/", "/nix//store", "/nix/../store", "/nix/./store", "/nix/\\u0000store", "~/store"]
        {
            let message = refusal(&format!("virtual_nix_store = \"{wrong}\""));
            assert!(message.contains("`virtual_nix_store` must be an absolute path"), "{message}");
        }
        assert!(refusal("virtual_nix_store = ''").contains("not empty, not \"\""));
        let moved = with_env("virtual_nix_store = '/a'", &[("NIX_STORE_DIR", "/b/store")]).expect("is valid");
        assert_eq!((&*moved.virtual_nix_store, &*moved.real_nix_store), ("/b/store", Path::new("/b/store")));
        let empty = with_env("virtual_nix_store = '/a'", &[("NIX_STORE_DIR", "")]).expect("is valid");
        assert_eq!(empty.virtual_nix_store, "/a");
        let wrong = with_env("", &[("NIX_STORE_DIR", "store")]).expect_err("is relative").to_string();
        assert!(wrong.starts_with("$NIX_STORE_DIR: "), "{wrong}");
    }

    #[test]
    fn keys_of_file_and_environment() {
        let env = [("SIGN_KEY_PATHS", "/c  /a\n/d"), ("SIGN_KEY_PATH", "/e")];
        let config =
            with_env("sign_key_paths = ['/a', '/b']\nsign_key_path = '/old'", &env).expect("is valid");
        assert_eq!(config.sign_key_paths, ["/a", "/b", "/old", "/c", "/d", "/e"].map(PathBuf::from));
        assert!(config.warnings.iter().any(|warning| warning.contains("`sign_key_path` is deprecated")));
        assert_eq!(read("sign_key_paths = '/one'").sign_key_paths, [PathBuf::from("/one")]);
        assert!(refusal("sign_key_paths = [1]").contains("not 1"));
    }

    /// An empty path would be refused later, by what opens it: as a file without a name, at no line.
    #[test]
    fn what_is_empty_is_refused_with_its_line() {
        for key in ["bind", "sign_key_paths"] {
            let expected =
                format!("`{key}` must be a text in quotes that is not empty, or a list of such, not \"\"");
            for (text, line) in [("''", 1), ("['']", 1), ("[\n'/a',\n'',\n]", 3)] {
                let message = refusal(&format!("{key} = {text}"));
                assert_eq!(message, format!("{FILE}, line {line}: {expected}"));
            }
        }
        for key in [
            "virtual_nix_store",
            "real_nix_store",
            "nix_db_path",
            "sign_key_path",
            "tls_cert_path",
            "tls_key_path",
            "daemon_socket",
            "cache_dir",
        ] {
            let message = refusal(&format!("\n{key} = ''"));
            let expected =
                format!("{FILE}, line 2: `{key}` must be a text in quotes that is not empty, not \"\"");
            assert_eq!(message, expected);
        }
        assert_eq!(read("sign_key_paths = []").sign_key_paths, Vec::<PathBuf>::new());
    }

    #[test]
    fn the_command_line_wins() {
        let overrides =
            Overrides { bind: vec!["127.0.0.1:0".to_owned()], workers: Some(1), priority: Some(40) };
        let config = read("bind = '[::]:1'\nworkers = 9").with(&overrides).expect("is valid");
        assert_eq!((config.bind, config.workers.get(), config.priority), (vec![tcp("127.0.0.1", 0)], 1, 40));
        let config = read("bind = '[::]:1'\nworkers = 9");
        assert_eq!(config.clone().with(&Overrides::default()).expect("is valid"), config);
        for wrong in [
            Overrides { workers: Some(0), ..<_>::default() },
            Overrides { bind: vec!["x".to_owned()], ..<_>::default() },
        ] {
            let message = read("").with(&wrong).expect_err("cannot be").to_string();
            assert!(message.starts_with("command line: "), "{message}");
        }
    }

    #[test]
    fn which_file_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("is written");
            path
        };
        let (one, two) = (file("one.toml", "workers = 1"), file("two.toml", "workers = 2"));
        let named = two.to_string_lossy().into_owned();
        let env = move |name: &str| (name == "CONFIG_FILE").then(|| named.clone());
        let load = |explicit: Option<&Path>| Config::load(explicit, &env).expect("is valid");
        assert_eq!(load(Some(&one)).workers.get(), 1);
        assert_eq!(load(None).workers.get(), 2);
        assert_eq!(load(None).source, Some(two));

        let missing = folder.path().join("missing.toml");
        let first = |files: &[&Path]| first_of(files).expect("they can be read");
        assert_eq!(
            first(&[&missing, &one, &folder.path().join("two.toml")]),
            (Some(one.clone()), "workers = 1".into())
        );
        assert_eq!(first(&[&missing]), (None, String::new()));
        let (relative, _) = first(&[&missing, Path::new("Cargo.toml")]);
        assert!(relative.is_some_and(|path| path.is_absolute() && path.ends_with("Cargo.toml")));
        let error = Config::load(Some(&missing), &|_| None).expect_err("is not there");
        assert_eq!(error.to_string(), format!("cannot read the settings file {}", missing.display()));
        assert!(error.source().is_some());
    }
}
