//! `harmonia serve`, and `harmonia` with no argument: serves the store of the configuration.

use std::io::{ErrorKind, Write as _};
use std::net::ToSocketAddrs as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use super::accounts::{self, UnknownAccount};
use super::certificates::Certificates;
use super::keys::{KeysError, LoadedKey, load_secret_key};
use super::log::{Log, Stream};
use super::requests::Requests;
use super::service;
use crate::cache::encode::{Encoding, Format};
use crate::causes::with_causes;
use crate::config::{self, Bind, Config, ConfigError, Overrides};
use crate::formats::signature::SecretKey;
use crate::formats::store_path::{StoreDir, StorePathError};
use crate::io::listen::{Address, Rights};
use crate::io::tls::TlsError;
use crate::limits;
use crate::server::compressed::Cold;
use crate::server::journal::{Journal, Trust};
use crate::server::start::{CompressionPlan, Plan, Server, StartError};
use crate::store;

/// Serve this machine's Nix store, or the one that the settings name.
#[derive(Debug, Default, clap::Args)]
pub struct Serve {
    /// The settings; without it $CONFIG_FILE, ./settings.toml, /etc/harmonia/settings.toml or defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen: HOST:PORT, [IPV6]:PORT or unix:/PATH; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    bind: Vec<String>,
    /// Threads that serve; as many as cores is best.
    #[arg(long, value_name = "COUNT")]
    workers: Option<usize>,
    /// Rank among a client's caches; the lowest is asked first.
    #[arg(long, value_name = "NUMBER")]
    priority: Option<i32>,
}

/// Why serving could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key file is wrong.
    #[error("sign_key_paths: {}{}", .0, to_be_readable(.0))]
    Key(#[from] KeysError),
    /// Certificate or key cannot be used.
    #[error("tls_cert_path, tls_key_path: {0}")]
    Tls(#[from] TlsError),
    /// The store directory is wrong.
    #[error("virtual_nix_store: {0}")]
    StoreDir(#[from] StorePathError),
    /// A name to listen at is unknown.
    #[error("cannot listen at {host}: {source}")]
    Name {
        /// The name.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// Nobody is called as the owner of sockets is to be.
    #[error(transparent)]
    Owner(#[from] UnknownAccount),
    /// The server could not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Serves until a signal ends it.
pub fn run(serve: Serve) -> ExitCode {
    let Serve { config, bind, workers, priority } = serve;
    let overrides = Overrides { bind, workers, priority };
    let load = || {
        Config::load(config.as_deref(), &|name| std::env::var(name).ok())
            .and_then(|config| config.with(&overrides))
    };
    match load() {
        Ok(config) => serve_until_signal(&config, &load, None),
        Err(error) => failed(&error),
    }
}

/// Reads the settings, for the first time or again.
pub type Load<'a> = &'a dyn Fn() -> Result<Config, ConfigError>;

/// Says how the server is used, once connections are taken.
pub type Announce<'a> = &'a dyn Fn(&Server);

/// Serves what `config` says until a signal ends it. `announce` says how it is used, in place of the log; `again` is called
/// where the settings are to be read again.
pub fn serve_until_signal(config: &Config, again: Load<'_>, announce: Option<Announce<'_>>) -> ExitCode {
    end_on_panic();
    let information = if config.request_log.is_some() { Stream::Error } else { Stream::Output };
    let log = match Log::begin(information) {
        Ok(log) => log,
        Err(error) => return failed(&StartError::System(error)),
    };
    // Written to its end after the server has ended.
    let (journal, _requests) = match config.request_log.map(Requests::begin).transpose() {
        Ok(log) => log.unzip(),
        Err(error) => return failed(&StartError::System(error)),
    };
    match start(config, journal) {
        Ok((server, certificates, public_keys)) => {
            match announce {
                Some(announce) => announce(&server),
                None => log_client_lines(&server, certificates.is_some(), &public_keys),
            }
            attend(server, certificates.as_ref(), config, again)
        }
        Err(error) => {
            // Why it failed comes last.
            log.flush();
            failed(&error)
        }
    }
}

/// What to do about a key that only others may read.
fn to_be_readable(error: &KeysError) -> String {
    match error {
        KeysError::Read { path, error } if error.kind() == ErrorKind::PermissionDenied => {
            let user = accounts::own_user();
            format!(
                "; the server runs as {user}, who must be able to read it: chown {} {}, if all may enter the folders above \
                 it. Under systemd, LoadCredential= hands it over whoever may read it",
                user.number,
                path.display()
            )
        }
        _ => String::new(),
    }
}

/// The server, its certificates, and the public keys that it signs with.
type Started = (Server, Option<Certificates>, Vec<String>);

fn start(config: &Config, journal: Option<Journal>) -> Result<Started, ServeError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.sign_key_paths.is_empty()
        && let Some(file) = std::env::var_os("NIX_SECRET_KEY_FILE")
    {
        tracing::warn!(
            "NIX_SECRET_KEY_FILE is nix-serve's and has no effect: set sign_key_paths = [{file:?}]"
        );
    }
    let real_store = &config.real_nix_store;
    if !real_store.is_dir() {
        // It may be mounted later, so this is no reason not to start.
        tracing::warn!(
            "real_nix_store: there is no folder {}: every NAR will be a 404",
            real_store.display()
        );
    }
    let certificates = config.tls.as_ref().map(Certificates::load).transpose()?;
    if let Some(certificates) = &certificates {
        match certificates.tls().in_user_space() {
            None => tracing::info!("TLS by the kernel"),
            Some(reason) => tracing::info!("TLS in user space, because {reason}"),
        }
    }
    let plan = Plan { journal, ..plan(config, certificates.as_ref())? };
    let public_keys: Vec<String> = plan.keys.iter().map(|key| key.public().to_string()).collect();
    let server = Server::start(plan)?;
    for address in server.addresses() {
        tracing::info!("listening on {}", address.url(certificates.is_some()));
    }
    tracing::info!(
        "serving {} from {}, {} workers with {} connections each",
        config.virtual_nix_store,
        real_store.display(),
        config.workers,
        server.connections_per_worker(),
    );
    for key in &public_keys {
        tracing::info!("signing as {key}");
    }
    Ok((server, certificates, public_keys))
}

fn log_client_lines(server: &Server, is_encrypted: bool, public_keys: &[String]) {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    for line in client_lines(server.addresses(), is_encrypted, &host, public_keys) {
        tracing::info!("in a client's nix.conf: {line}");
    }
}

/// What a server of these settings is made of.
pub(super) fn plan(config: &Config, certificates: Option<&Certificates>) -> Result<Plan, ServeError> {
    Ok(Plan {
        store: store_settings(config)?,
        bind: addresses(&config.bind)?,
        socket_rights: socket_rights(config)?,
        workers: config.workers.get(),
        connections: config.connections_per_worker.get(),
        priority: config.priority,
        tls: certificates.map(Certificates::tls),
        keep: (config.roots_dir.clone(), config.keep_served),
        cache: config.cache.clone().map(|cache| (cache.dir, cache.max_size)),
        quarantine: config.quarantine.clone(),
        compression: compression(&config.compression),
        keys: load_keys(&config.sign_key_paths)?,
        journal: None,
        trust: Trust { proxies: config.trusted_proxies.as_slice().into(), by_header: config.proxy_protocol },
    })
}

/// What clients are to call this server, as far as it can know: by the first address that is not this machine's alone,
/// if there is one. `host` is this machine's name, for where it listens at every address.
fn client_url(addresses: &[Address], is_encrypted: bool, host: &str) -> Option<String> {
    let tcp = addresses.iter().filter_map(|address| match address {
        Address::Tcp(address) => Some(*address),
        Address::Unix(_) => None,
    });
    let address = tcp.min_by_key(|address| address.ip().is_loopback())?;
    if address.ip().is_unspecified() && !host.is_empty() {
        let scheme = if is_encrypted { "https" } else { "http" };
        return Some(format!("{scheme}://{host}:{}", address.port()));
    }
    Some(Address::Tcp(address).url(is_encrypted))
}

/// Where the store of the settings is.
///
/// # Errors
/// Where its name is none that a store can have.
pub(super) fn store_settings(config: &Config) -> Result<store::Settings, StorePathError> {
    Ok(store::Settings {
        store_dir: StoreDir::new(&config.virtual_nix_store)?,
        real_store: config.real_nix_store.clone(),
        database: config.nix_db_path.clone(),
        state_dir: config.state_dir.clone(),
        log_dir: config.log_dir.clone(),
        daemon_socket: config.daemon_socket.clone(),
    })
}

/// The lines by which a client uses this server. `host` is what others call this machine, where it listens at all of
/// its addresses.
fn client_lines(addresses: &[Address], is_encrypted: bool, host: &str, keys: &[String]) -> Vec<String> {
    let url = client_url(addresses, is_encrypted, host);
    let substituters = url.map(|url| format!("extra-substituters = {url}"));
    let keys = (!keys.is_empty()).then(|| format!("extra-trusted-public-keys = {}", keys.join(" ")));
    substituters.into_iter().chain(keys).collect()
}

/// Waits for signals: SIGTERM and SIGINT end the server when what is in flight is done, SIGHUP reads the
/// signing keys and the certificate again.
fn attend(server: Server, certificates: Option<&Certificates>, config: &Config, again: Load<'_>) -> ExitCode {
    let mut signals = match Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXFSZ]) {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "cannot wait for signals");
            return ExitCode::FAILURE;
        }
    };
    let is_ending = Arc::new(AtomicBool::new(false));
    let begun = certificates.map_or(Ok(()), Certificates::watch);
    let begun = begun.and_then(|()| service::feed_watchdog(server.pulses(), Arc::clone(&is_ending)));
    if let Err(error) = begun {
        tracing::error!(%error, "cannot start a thread");
        return ExitCode::FAILURE;
    }
    let status = status(&server, certificates.is_some());
    service::ready(&status);
    for signal in signals.forever() {
        match signal {
            SIGHUP => {
                service::reloading();
                reload(&server, config, again);
                if let Some(certificates) = certificates {
                    certificates.reload();
                }
                service::ready(&status);
            }
            // A file may not grow further (`ulimit -f`): whoever writes to it is told as well, as of a full disk.
            SIGXFSZ => {}
            _ => break,
        }
    }
    tracing::info!("ending: finishing what is in flight");
    is_ending.store(true, Ordering::Relaxed);
    service::stopping();
    server.drain();
    match server.wait() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "a part of the server failed");
            ExitCode::FAILURE
        }
    }
}

/// One line for `systemctl status`.
fn status(server: &Server, is_encrypted: bool) -> String {
    let addresses: Vec<String> = server.addresses().iter().map(|address| address.url(is_encrypted)).collect();
    format!("listening on {}", addresses.join(", "))
}

/// Reads the settings again, and of them takes the keys: what cannot be used changes nothing.
fn reload(server: &Server, config: &Config, again: Load<'_>) {
    let fresh = match again() {
        Ok(fresh) => fresh,
        Err(error) => {
            tracing::error!("the signing keys stay as they were: {}", with_causes(&error));
            return;
        }
    };
    match load_keys(&fresh.sign_key_paths) {
        Ok(keys) => {
            let names: Vec<String> = keys.iter().map(|key| key.name().to_owned()).collect();
            server.replace_keys(keys);
            match names.is_empty() {
                true => tracing::warn!("signing with no key from now on: sign_key_paths names none"),
                false => tracing::info!("signing with {} from now on", names.join(", ")),
            }
        }
        Err(error) => tracing::error!("the signing keys stay as they were: {}", ServeError::from(error)),
    }
    let changed = changed(config, &fresh);
    if !changed.is_empty() {
        tracing::warn!("{} changed: that takes effect at the next start", changed.join(", "));
    }
}

/// Which settings are not as they were, of those that are read at the start alone.
fn changed(before: &Config, after: &Config) -> Vec<&'static str> {
    macro_rules! differing {
        ($($field:ident: $name:literal,)*) => {{
            // All there are, so that none is forgotten here.
            let Config { $($field: _,)* sign_key_paths: _, source: _, warnings: _ } = before;
            [$(($name, before.$field != after.$field)),*]
        }};
    }
    let all = differing! {
        bind: "bind",
        socket_mode: "socket_mode",
        socket_owner: "socket_owner",
        workers: "workers",
        connections_per_worker: "max_connections",
        priority: "priority",
        virtual_nix_store: "virtual_nix_store",
        real_nix_store: "real_nix_store",
        nix_db_path: "nix_db_path",
        state_dir: "the state folder",
        log_dir: "the folder of logs",
        daemon_socket: "daemon_socket",
        roots_dir: "roots_dir",
        keep_served: "keep_served",
        cache: "cache_dir or cache_max_size",
        quarantine: "the folder of marks",
        tls: "tls_cert_path or tls_key_path",
        compression: "compression",
        request_log: "request_log",
        trusted_proxies: "trusted_proxies",
        proxy_protocol: "proxy_protocol",
    };
    all.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

/// The format that is offered has the level that is set; the other one, for whoever remembers a URL of it, its
/// default.
pub(super) fn compression(config: &config::Compression) -> CompressionPlan {
    let offered = config.format.map(|format| match format {
        config::Format::Zstd => Format::Zstd,
        config::Format::Xz => Format::Xz,
    });
    let level = |format| match offered.unwrap_or(Format::Zstd) == format {
        true => config.level,
        false => config::COMPRESSION_LEVEL,
    };
    let cores = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    CompressionPlan {
        offered,
        cold: match config.cold {
            config::Cold::Stream => Cold::Stream,
            config::Cold::Identity => Cold::Identity,
        },
        zstd: Encoding::new(Format::Zstd, level(Format::Zstd)),
        xz: Encoding::new(Format::Xz, level(Format::Xz)),
        threads: config.threads.unwrap_or_else(cores).get(),
        in_transport: config.in_transport,
        is_ahead: config.precompress == config::Precompress::Recent,
    }
}

fn load_keys(paths: &[PathBuf]) -> Result<Arc<[SecretKey]>, KeysError> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let load = |path: &PathBuf| {
        let LoadedKey { key, warning } = load_secret_key(path, credentials.as_deref())?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        Ok(key)
    };
    paths.iter().map(load).collect()
}

fn socket_rights(config: &Config) -> Result<Rights, UnknownAccount> {
    let (user, group) = config.socket_owner.as_ref().map_or(Ok((None, None)), accounts::numbers)?;
    Ok(Rights { mode: config.socket_mode, user, group })
}

fn addresses(binds: &[Bind]) -> Result<Vec<Address>, ServeError> {
    let mut addresses = Vec::new();
    for bind in binds {
        match bind {
            Bind::Unix(path) => addresses.push(Address::Unix(path.clone())),
            Bind::Tcp { host, port } => {
                let found = (host.as_str(), *port).to_socket_addrs();
                let found = found.map_err(|source| ServeError::Name { host: host.clone(), source })?;
                // A name may stand for several addresses, as localhost does.
                addresses.extend(found.map(Address::Tcp));
            }
        }
    }
    addresses.dedup();
    Ok(addresses)
}

/// A panic in any actor ends the process, so that what supervises it starts it anew: half a server, which
/// takes connections and never answers, would be worse. The report waits for whoever reads standard error; the end
/// does not.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let end = || {
            thread::sleep(limits::LOG_END_TIME);
            std::process::abort();
        };
        // Without a thread that would end it, a report could last for ever.
        if thread::Builder::new().name("end".to_owned()).spawn(end).is_ok() {
            report(panic);
        }
        std::process::abort();
    }));
}

/// Says why it failed, on standard error.
fn failed(error: &dyn std::error::Error) -> ExitCode {
    // Nobody to tell when standard error is closed; the exit code says it.
    let _ = writeln!(std::io::stderr(), "harmonia: {}", with_causes(error));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// Tells the process below that it is the one to panic.
    const PANICS: &str = "HARMONIA_TEST_PANICS";

    /// Not a test but another process's main function.
    #[test]
    fn panicking() {
        if std::env::var_os(PANICS).is_some() {
            end_on_panic();
            panic!("as it was told to");
        }
    }

    #[test]
    fn a_panic_ends_the_process_though_nobody_reads_standard_error() {
        let (mut error, _unread) = UnixStream::pair().expect("a pair");
        error.set_nonblocking(true).expect("it is ours");
        for piece in [4096, 1] {
            let full = loop {
                if let Err(full) = error.write(&vec![b'x'; piece]) {
                    break full;
                }
            };
            assert_eq!(full.kind(), ErrorKind::WouldBlock);
        }
        error.set_nonblocking(false).expect("it is ours");
        let mut command = Command::new(std::env::current_exe().expect("it is known"));
        command.args(["--exact", "cli::serve::tests::panicking", "--nocapture"]).env(PANICS, "1");
        let mut child = command.stderr(OwnedFd::from(error)).spawn().expect("it starts");
        let ended = (0..300).find_map(|_| {
            thread::sleep(limits::LOG_END_TIME / 10);
            child.try_wait().expect("it is ours")
        });
        if ended.is_none() {
            child.kill().expect("it is ours");
        }
        let status = ended.expect("the process ends");
        assert_eq!(status.signal(), Some(signal_hook::consts::SIGABRT), "{status}");
    }

    #[test]
    fn clients_are_given_the_lines_that_lead_here() {
        let tcp = |text: &str| Address::Tcp(text.parse().expect("an address"));
        let lines = |addresses: &[Address], is_encrypted, keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
            client_lines(addresses, is_encrypted, "cache", &keys)
        };
        let unix = Address::Unix("/run/socket".into());
        assert_eq!(
            lines(&[unix.clone(), tcp("[::]:5000")], false, &["a:1", "b:2"]),
            ["extra-substituters = http://cache:5000", "extra-trusted-public-keys = a:1 b:2"]
        );
        assert_eq!(lines(&[tcp("0.0.0.0:443")], true, &[]), ["extra-substituters = https://cache:443"]);
        assert_eq!(lines(&[tcp("127.0.0.1:1")], false, &[]), ["extra-substituters = http://127.0.0.1:1"]);
        assert_eq!(lines(&[unix], false, &["a:1"]), ["extra-trusted-public-keys = a:1"]);
    }

    #[test]
    fn what_changed_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let load = |text: &str| {
            let file = folder.path().join("settings.toml");
            std::fs::write(&file, text).expect("it is ours");
            Config::load(Some(&file), &|_| None).expect("it is valid")
        };
        let before = load("cache_dir = '/c'");
        assert_eq!(changed(&before, &load("sign_key_paths = ['/k']\ncache_dir = '/c'")), Vec::<&str>::new());
        assert_eq!(
            changed(&before, &load("priority = 3\ncache_dir = '/c'\nbind = 'a:1'")),
            ["bind", "priority"]
        );
    }

    #[test]
    fn clients_are_told_an_address_that_they_can_reach() {
        let tcp = |address: &str| Address::Tcp(address.parse().expect("an address"));
        let socket = Address::Unix("/run/h".into());
        let url = |addresses: &[Address], is_encrypted| client_url(addresses, is_encrypted, "office");
        assert_eq!(url(&[socket.clone(), tcp("[::]:5000")], false).as_deref(), Some("http://office:5000"));
        let both = [tcp("127.0.0.1:5000"), tcp("192.0.2.1:443")];
        assert_eq!(url(&both, true).as_deref(), Some("https://192.0.2.1:443"));
        assert_eq!(url(&both[..1], false).as_deref(), Some("http://127.0.0.1:5000"));
        assert_eq!(url(&[socket], false), None);
    }

    #[test]
    fn each_cause_is_told_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let absent = folder.path().join("absent.toml");
        let error = Config::load(Some(&absent), &|_| None).expect_err("it is not there");
        let told = with_causes(&ServeError::from(error));
        let expected =
            format!("cannot read the settings file {}: No such file or directory", absent.display());
        assert!(told.starts_with(&expected), "{told}");
        assert_eq!(told.matches("No such file").count(), 1, "{told}");
    }
}
