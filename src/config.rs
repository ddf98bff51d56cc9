//! Settings: file and environment → validated data.
//!
//! TOML at `--config`, else `$CONFIG_FILE`, else `./settings.toml`, else `/etc/harmonia/settings.toml`, else defaults. The
//! result is plain data: no key, handle or socket is in it, and of the files it names only the settings file itself was
//! opened.

mod derive;
mod error;
mod file;
mod keys;
mod nearest;
mod network;
mod reader;
#[cfg(test)]
mod tests;
mod values;

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::WORKERS_MAX;
use derive::{binds, variable, workers};
pub use error::{ConfigError, Place};
use file::Settings;
pub use keys::{KEYS, Key};
pub use network::{Network, Trusted};
pub use values::{
    Bind, Cache, Cold, Compression, Format, LineForm, Owner, Precompress, RequestLog, TlsFiles,
};

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
