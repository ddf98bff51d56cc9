//! What a file says → the configuration: defaults that follow from other settings or from the environment.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::Config;
use super::error::{ConfigError, Place};
use super::file::Settings;
use super::values::{Bind, Cache};
use crate::limits::WORKERS_MAX;

impl Config {
    pub(super) fn derive(
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
        // Both are made of the cache's frames.
        let in_vain = [
            ("compression", settings.compression.format.is_some()),
            ("transport_compression", settings.compression.in_transport),
        ];
        if let Some((what, _)) = in_vain.iter().find(|(_, is_set)| *is_set && cache.is_none()) {
            warnings.push(format!(
                "{what} has no effect without a cache (`cache_max_size = 0`): NARs are sent as they are"
            ));
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

/// A variable that is set and not empty: unit files often set empty ones.
pub(super) fn variable(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    env(name).filter(|value| !value.is_empty())
}

pub(super) fn binds(texts: &[String], place: &Place) -> Result<Vec<Bind>, ConfigError> {
    let wrong = |found: String| ConfigError::Value { place: place.clone(), key: "bind", found };
    if texts.is_empty() {
        return Err(wrong("an empty list".to_owned()));
    }
    texts.iter().map(|text| Bind::parse(text).ok_or_else(|| wrong(format!("\"{text}\"")))).collect()
}

pub(super) fn workers(count: u64, place: Place) -> Result<NonZeroUsize, ConfigError> {
    let possible =
        usize::try_from(count).ok().filter(|count| *count <= WORKERS_MAX).and_then(NonZeroUsize::new);
    possible.ok_or_else(|| ConfigError::Value { place, key: "workers", found: count.to_string() })
}

/// A store directory is compared with what the database and clients say, byte by byte: so one spelling only.
fn store_dir(text: &str, place: Place) -> Result<String, ConfigError> {
    let trimmed = text.trim_end_matches('/');
    let canonical = trimmed.strip_prefix('/').is_some_and(|inner| {
        inner.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
            && !inner.contains(char::is_control)
    });
    if !canonical {
        return Err(ConfigError::Value { place, key: "virtual_nix_store", found: format!("{text:?}") });
    }
    Ok(trimmed.to_owned())
}

pub(super) fn absolute(path: &Path, key: &'static str) -> Result<PathBuf, ConfigError> {
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
