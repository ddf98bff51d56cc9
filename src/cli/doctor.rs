//! `harmonia doctor`: asks a cache what a Nix client would ask, and says in plain words what is wrong.

mod ask;
mod certificate;
mod client;
mod download;
mod finding;
mod look;
mod nix_conf;
mod place;
mod report;
mod trust;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use self::ask::{Cache, NoUrl};
use self::client::Client;
use self::finding::Upkeep;
use self::look::{Look, Paths, Side};
use self::place::Place;
use self::report::Report;
use super::cache::is_made;
use super::keys::{KeysError, load_secret_key};
use super::output;
use crate::causes::with_causes;
use crate::config::{Bind, Config, ConfigError};
use crate::formats::signature::PublicKey;
use crate::formats::store_path::{StoreDir, StorePath, StorePathError};

/// Exit status where something is wrong.
const FINDINGS: u8 = 1;
/// Exit status where it could not be looked, as clap's for a wrong command line.
const FAILED: u8 = 2;

/// What `--help` says of what is asked and what it means.
const ABOUT: &str = "\
Without URL it asks every http and https substituter of this machine's Nix settings (nix config show, else nix.conf);
with --config or $CONFIG_FILE, the server of those settings, at this machine. With both, that server at that URL.

It exits 0 where all is well, 1 where something is wrong, 2 where it could not look, be it at the keys alone. It changes nothing, and asks nobody
but the caches. What it could not look at is listed as unseen.";

/// Find out why a cache is not used, on a client or on the server.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub struct Doctor {
    /// The cache, such as http://cache.example.org:5000.
    url: Option<String>,
    /// A server's settings: looks at that server, not at what clients think of it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A store path that the cache should have; without it, some of this machine's are tried.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// The longest wait for an answer, and the longest download.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Write what was found as JSON.
    #[arg(long)]
    json: bool,
}

/// Why it could not be looked.
#[derive(Debug, thiserror::Error)]
enum DoctorError {
    /// There is no cache to ask.
    #[error(
        "no cache is named, and this machine's Nix settings name no http or https substituter: harmonia doctor URL"
    )]
    NoCache,
    /// A URL that is none.
    #[error(transparent)]
    Url(#[from] NoUrl),
    /// `--path` is none.
    #[error("--path: {0}")]
    Path(#[from] StorePathError),
    /// The server's settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key of the server cannot be read.
    #[error(
        "sign_key_paths: {0}; run the doctor as a user who may read it, or without the server's settings"
    )]
    Key(#[from] KeysError),
    /// A server that cannot be asked by a URL of this machine.
    #[error("the server of these settings {0}: name it by URL, harmonia doctor --config FILE URL")]
    NoOwnUrl(&'static str),
}

/// Looks, and says what was found.
pub fn run(doctor: &Doctor) -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let client = Client::of_this_machine(&env);
    let done = own_config(doctor, &env).and_then(|config| match config {
        Some(config) => {
            let source =
                config.source.as_ref().map_or("defaults".to_owned(), |file| file.display().to_string());
            Ok((look_at_server(doctor, &config, client.as_ref(), &env)?, source))
        }
        None => {
            let source = client.as_ref().map_or("none, as there is no Nix here", |client| &client.source);
            Ok((look_as_client(doctor, client.as_ref(), &env)?, source.to_owned()))
        }
    });
    match done {
        Ok((reports, source)) => tell(doctor, &reports, &source, client.as_ref()),
        Err(error) => {
            // Nobody to tell when standard error is closed; the exit code says it.
            let _ = writeln!(io::stderr(), "harmonia doctor: {}", with_causes(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// Writes the reports; the exit code says whether all is well.
fn tell(doctor: &Doctor, reports: &[Report], source: &str, client: Option<&Client>) -> ExitCode {
    let place = client.map_or_else(|| Place::File("/etc/nix/nix.conf".into()), |client| client.place.clone());
    let text = match doctor.json {
        true => format!("{:#}\n", report::json(reports, source, &place)),
        false => report::text(reports, source, &place),
    };
    if output::standard().write_all(text.as_bytes()).is_err() {
        return ExitCode::from(FAILED);
    }
    let is_any = |of: fn(&Look) -> bool| reports.iter().any(|report| of(&report.look));
    match (is_any(|look| !look.findings.is_empty()), is_any(|look| look.is_partial)) {
        (true, _) => ExitCode::from(FINDINGS),
        (false, true) => ExitCode::from(FAILED),
        (false, false) => ExitCode::SUCCESS,
    }
}

/// The settings of the server that is to be looked at, if it is one: those that are named, or those of the environment
/// where no URL is.
fn own_config(doctor: &Doctor, env: client::Env<'_>) -> Result<Option<Config>, DoctorError> {
    let is_named = env("CONFIG_FILE").is_some_and(|file| !file.is_empty()) && doctor.url.is_none();
    match doctor.config.is_some() || is_named {
        true => Ok(Some(Config::load(doctor.config.as_deref(), env)?)),
        false => Ok(None),
    }
}

fn look_as_client(
    doctor: &Doctor,
    client: Option<&Client>,
    env: client::Env<'_>,
) -> Result<Vec<Report>, DoctorError> {
    let urls = match (&doctor.url, client) {
        (Some(url), _) => vec![url.clone()],
        (None, Some(client)) => client.http_substituters(),
        (None, None) => Vec::new(),
    };
    if urls.is_empty() {
        return Err(DoctorError::NoCache);
    }
    let authorities = client.map_or_else(|| client::authorities(env), |client| client.authorities(env));
    let store_dir = client.map_or("/nix/store", |client| &client.store_dir);
    let real_store = client.map_or(Path::new("/nix/store"), |client| &client.real_store);
    let paths = paths(doctor, store_dir, real_store)?;
    let mut looks = Vec::new();
    for url in urls {
        let cache = Cache::new(&url, authorities.as_deref(), seconds(doctor))?;
        let mut look = Look::default();
        let info = look::ask_info(&cache, &mut look);
        looks.push((url, cache, info, look));
    }
    let priority = |info: &Option<look::Info>| info.as_ref().and_then(|info| info.priority);
    let others: Vec<(String, i64)> =
        looks.iter().filter_map(|(url, _, info, _)| Some((url.clone(), priority(info)?))).collect();
    let finish = |(url, cache, info, mut look): (String, Cache, Option<look::Info>, Look)| {
        if let Some(client) = client {
            look.findings.extend(client.listing(&url, priority(&info), &others));
        }
        if let Some(info) = info {
            look::examine(&cache, &info, &Side::Client(client), &paths, seconds(doctor), &mut look);
        }
        Report { url, look }
    };
    Ok(looks.into_iter().map(finish).collect())
}

fn look_at_server(
    doctor: &Doctor,
    config: &Config,
    client: Option<&Client>,
    env: client::Env<'_>,
) -> Result<Vec<Report>, DoctorError> {
    let url = doctor.url.clone().map_or_else(|| own_url(config), Ok)?;
    let key = |file: &PathBuf| Ok(load_secret_key(file, None)?.key.public());
    let keys = config.sign_key_paths.iter().map(key).collect::<Result<Vec<PublicKey>, KeysError>>()?;
    let paths = paths(doctor, &config.virtual_nix_store, &config.real_nix_store)?;
    let authorities = client.map_or_else(|| client::authorities(env), |client| client.authorities(env));
    let cache = Cache::new(&url, authorities.as_deref(), seconds(doctor))?.of_this_machine();
    let mut look = Look::default();
    look_at_cache_dir(config, &mut look);
    if let Some(info) = look::ask_info(&cache, &mut look) {
        let side = Side::Server { store_dir: &config.virtual_nix_store, keys: &keys };
        look::examine(&cache, &info, &side, &paths, seconds(doctor), &mut look);
    }
    Ok(vec![Report { url, look }])
}

/// Whether the server can keep anything where its settings say.
fn look_at_cache_dir(config: &Config, look: &mut Look) {
    let Some(cache) = &config.cache else { return };
    let dir = cache.dir.display().to_string();
    match is_made(&cache.dir) {
        Ok(_) => {}
        // The server's own user may see more.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            look.unseen.push(format!("the cache_dir {dir}: {error}"));
        }
        Err(error) => look.findings.push(Upkeep::CacheDir { dir, reason: error.to_string() }.into()),
    }
}

/// Where this machine reaches the server of these settings.
fn own_url(config: &Config) -> Result<String, DoctorError> {
    if config.tls.is_some() {
        return Err(DoctorError::NoOwnUrl("speaks TLS, and its certificate is for a name"));
    }
    let tcp = |bind: &Bind| match bind {
        Bind::Tcp { host, port } => Some((host.clone(), *port)),
        Bind::Unix(_) => None,
    };
    let (host, port) =
        config.bind.iter().find_map(tcp).ok_or(DoctorError::NoOwnUrl("has only unix sockets"))?;
    let host = match &*host {
        "0.0.0.0" => "127.0.0.1".to_owned(),
        "::" => "[::1]".to_owned(),
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    Ok(format!("http://{host}:{port}"))
}

fn paths<'a>(doctor: &Doctor, store_dir: &str, real: &'a Path) -> Result<Paths<'a>, DoctorError> {
    let Some(path) = &doctor.path else { return Ok(Paths::In(real)) };
    // A path of a store path's inside will do, and so will a basename.
    let below = path.strip_prefix(store_dir).and_then(|path| path.strip_prefix('/'));
    match below.or((!path.contains('/')).then_some(&**path)) {
        Some(name) => Ok(Paths::Named(StorePath::from_basename(name.split('/').next().unwrap_or(name))?)),
        None => StoreDir::new(store_dir)?.parse(path).map(Paths::Named).map_err(DoctorError::Path),
    }
}

fn seconds(doctor: &Doctor) -> Duration {
    Duration::from_secs(doctor.seconds)
}
