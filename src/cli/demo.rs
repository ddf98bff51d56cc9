//! `harmonia demo`: a small real store of this machine's own files, served, with what to try.

mod store;

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;

use thiserror::Error;

use super::progress::size;
use super::serve;
use crate::config::{Config, ConfigError};
use crate::formats::store_path::StoreDir;
use crate::io::listen::Address;
use crate::server::start::Server;
use crate::store::add::Registered;
use store::{DemoStore, DemoStoreError};

/// Exit status where the demo could not be started.
const FAILED: u8 = 2;

/// Prints the SHA-256 of what it reads.
const SHA256SUM: &str = if cfg!(target_os = "macos") { "shasum -a 256" } else { "sha256sum" };

/// What else may have the port: a Mac's receiver takes 5000 unless it is switched off.
const OR_ELSE: &str = if cfg!(target_os = "macos") { " or by AirPlay Receiver" } else { "" };

/// Make a small store of this machine's own files, serve it, and say what to try; needs no Nix.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// The demo's own folder; to remove it: chmod -R u+w FOLDER; rm -r FOLDER, as a store is read-only.
    #[arg(long, value_name = "FOLDER", default_value = "harmonia-demo")]
    dir: PathBuf,
    /// The address and port to serve on; a port alone is one of this machine.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000", value_parser = address)]
    bind: SocketAddr,
    /// Folders and files to put into the store [default: a few that most machines have].
    #[arg(value_name = "FOLDERS")]
    folders: Vec<PathBuf>,
}

/// Reads an address or a name with a port, or a port of this machine.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let found = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}: it is ADDRESS:PORT, such as 127.0.0.1:5001"))?;
    // A name may stand for several; the one that curl and people mean by localhost comes first.
    found.min_by_key(SocketAddr::is_ipv6).ok_or_else(|| "it has no address".to_owned())
}

/// Why the demo did not start.
#[derive(Debug, Error)]
enum DemoError {
    /// Something listens at the address already.
    #[error("{bind} is taken, perhaps by another demo{OR_ELSE}: choose another with --bind {next}")]
    Taken { bind: SocketAddr, next: SocketAddr },
    /// The address cannot be listened at.
    #[error("cannot listen at {bind}: {source}")]
    Bind { bind: SocketAddr, source: io::Error },
    /// There is no store to serve.
    #[error(transparent)]
    Store(#[from] DemoStoreError),
    /// The demo's settings are refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The settings file cannot be written, or cannot name the folder.
    #[error("cannot write {}: {source}", file.display())]
    Settings { file: PathBuf, source: io::Error },
}

/// Makes the demo or opens it again, and serves it until a signal ends it.
pub fn run(demo: &Demo) -> ExitCode {
    match begin(demo) {
        Ok((Ready { config, store }, _held)) => {
            let announce = |server: &Server| {
                // The one address there is: the demo's settings have no other.
                if let Some(Address::Tcp(at)) = server.addresses().first() {
                    say(&what_to_try(&store, *at));
                }
            };
            serve::serve_until_signal(&config, &|| load(&store), Some(&announce))
        }
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "harmonia demo: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// The demo, and what keeps others from serving it meanwhile.
fn begin(demo: &Demo) -> Result<(Ready, Option<File>), DemoError> {
    check_free(demo.bind)?;
    let held = store::hold(&demo.dir)?;
    let ready = prepare(demo, &mut say)?;
    // At the first start there was nothing to hold before.
    let held = held.map_or_else(|| store::hold(&demo.dir), |held| Ok(Some(held)))?;
    Ok((ready, held))
}

/// A demo that can be served.
struct Ready {
    config: Config,
    store: DemoStore,
}

fn prepare(demo: &Demo, say: &mut dyn FnMut(&str)) -> Result<Ready, DemoError> {
    check_free(demo.bind)?;
    let store = store::open(&demo.dir, &demo.folders, say)?;
    let config = config(demo.bind, &store)?;
    Ok(Ready { config, store })
}

/// Finds out before a store is made that it could not be served.
fn check_free(bind: SocketAddr) -> Result<(), DemoError> {
    match TcpListener::bind(bind) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let next = SocketAddr::new(bind.ip(), bind.port().checked_add(1).unwrap_or(5000));
            Err(DemoError::Taken { bind, next })
        }
        Err(source) => Err(DemoError::Bind { bind, source }),
    }
}

/// The configuration, by way of a settings file in the demo's folder: `harmonia serve --config` takes it too.
fn config(bind: SocketAddr, store: &DemoStore) -> Result<Config, DemoError> {
    let file = settings_file(store);
    let quoted = |path: &PathBuf| match path.to_str() {
        // JSON's quoting is TOML's.
        Some(text) => Ok(serde_json::Value::from(text).to_string()),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "the folder's name is not UTF-8")),
    };
    let write = || -> io::Result<()> {
        let text = format!(
            "# Written by `harmonia demo` at each start.\n\
             bind = \"{bind}\"\n\
             real_nix_store = {}\n\
             nix_db_path = {}\n\
             cache_dir = {}\n\
             sign_key_paths = [{}]\n",
            quoted(&store.settings.real_store)?,
            quoted(&store.settings.database)?,
            quoted(&store.key_file.with_file_name("cache"))?,
            quoted(&store.key_file)?,
        );
        std::fs::write(&file, text)
    };
    write().map_err(|source| DemoError::Settings { file: file.clone(), source })?;
    Ok(load(store)?)
}

/// Reads the demo's settings file; the environment is for the machine's own cache, not for this one.
fn load(store: &DemoStore) -> Result<Config, ConfigError> {
    Config::load(Some(&settings_file(store)), &|_| None)
}

fn settings_file(store: &DemoStore) -> PathBuf {
    store.key_file.with_file_name("settings.toml")
}

/// The text that says what to try with the demo that listens at `at`.
fn what_to_try(store: &DemoStore, at: SocketAddr) -> String {
    let url = format!("http://{}", reachable(at));
    let store_dir = &store.settings.store_dir;
    let count = store.paths.len();
    let bytes = size(store.paths.iter().map(|registered| registered.nar_size).sum());
    let key = store.key.public();
    // The input-addressed path comes last; there is always one.
    let Some(output) = store.paths.last() else { return String::new() };
    let curl = store.paths.iter().find(|registered| registered.path.name() == "numbers").unwrap_or(output);
    format!(
        "\n{url} serves {count} store paths ({bytes}). Ctrl-C ends it.\n\
         \n\
         What a Nix client sees:\n\
         {}\n\
         One path with everything it refers to, into a throw-away store. The path is input-addressed, so Nix takes\n\
         it only with the demo's key; try it without the last option:\n\
         {}\n\
         This cache for your own Nix, in nix.conf:\n\
         \n  extra-substituters = {url}\n  extra-trusted-public-keys = {key}\n",
        curl_lines(&url, curl),
        nix_copy(&url, store_dir, output, &key.to_string()),
    )
}

fn curl_lines(url: &str, registered: &Registered) -> String {
    let hash = registered.path.hash();
    let nar = format!("'{url}/nar/{}.nar?hash={hash}'", registered.nar_hash.to_base32());
    let hex = registered.nar_hash.to_hex();
    format!(
        "\n  curl {url}/nix-cache-info\n  \
         curl {url}/{hash}.narinfo\n  \
         curl -s {nar} | {SHA256SUM}\n    \
         # {hex}\n  \
         curl -s -r 8-20 {nar}; echo\n    \
         # nix-archive-1\n"
    )
}

/// `--refresh`: a client remembers for 30 days what it was told of a path, and a demo made anew has a new key.
fn nix_copy(url: &str, store_dir: &StoreDir, output: &Registered, key: &str) -> String {
    let path = store_dir.display(&output.path);
    format!(
        "\n  nix --extra-experimental-features nix-command copy --refresh --from {url} \\\n    \
         --to \"$(mktemp -d)\" {path} \\\n    \
         --option require-sigs true --option trusted-public-keys '{key}'\n"
    )
}

/// Where a client on this machine reaches a server that listens at `at`.
fn reachable(at: SocketAddr) -> SocketAddr {
    let ip = match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, at.port())
}

fn say(line: &str) {
    // A demo whose output nobody reads serves all the same.
    let _ = writeln!(io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Command;

    use crate::formats::signature::SecretKey;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        demo: Demo,
    }

    /// The demo in `folder` with further words of the command line.
    fn demo(folder: &Path, words: &[&str]) -> Demo {
        let dir = folder.join("demo").into_os_string().into_string().expect("UTF-8");
        let line = [&["demo", "--bind", "127.0.0.1:0", "--dir", &dir], words].concat();
        Line::try_parse_from(line).expect("a command line").demo
    }

    fn prepared(demo: &Demo) -> (Ready, Vec<String>) {
        let mut said = Vec::new();
        let ready = prepare(demo, &mut |line| said.push(line.to_owned())).expect("the demo can be served");
        (ready, said)
    }

    fn nix(folder: &Path, command: &[&str]) -> String {
        let output = Command::new(command[0])
            .args(&command[1..])
            .arg("--store")
            .arg(folder.join("demo"))
            .env("HOME", folder)
            .env("NIX_CONFIG", "experimental-features = nix-command\n")
            .output()
            .expect("Nix is installed: scripts/test sees to it");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn names(ready: &Ready) -> Vec<&str> {
        ready.store.paths.iter().map(|registered| registered.path.name()).collect()
    }

    /// A folder to put into the store, under a name that a store path cannot have.
    fn sample(folder: &Path) -> String {
        let source = folder.join(".a folder");
        fs::create_dir(&source).expect("mkdir");
        fs::write(source.join("file"), "contents").expect("write");
        source.into_os_string().into_string().expect("UTF-8")
    }

    #[test]
    fn the_default_store_is_accepted_by_nix_and_used_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ready, said) = prepared(&demo(folder.path(), &[]));
        assert!(names(&ready).contains(&"numbers"), "{said:?}");
        assert_eq!(names(&ready).last(), Some(&"harmonia-demo"));
        nix(folder.path(), &["nix-store", "--verify", "--check-contents"]);
        let output = ready.store.paths.last().expect("a path");
        assert_eq!(output.ca, None);
        let full = format!("/nix/store/{}", output.path);
        let closure = nix(folder.path(), &["nix", "path-info", "--recursive", &full]);
        assert_eq!(closure.lines().count(), ready.store.paths.len(), "it refers to everything and itself");

        let (again, said) = prepared(&demo(folder.path(), &[]));
        assert_eq!(again.store.paths, ready.store.paths);
        assert_eq!(again.store.key.to_text(), ready.store.key.to_text());
        assert_eq!(said.len(), 1, "it was only checked: {said:?}");
        assert!(!folder.path().join("demo/making").exists());
    }

    #[test]
    fn named_folders_are_what_nix_would_add_and_can_come_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = sample(folder.path());
        let (ready, _) = prepared(&demo(folder.path(), &[&source]));
        assert_eq!(names(&ready), ["a-folder", "numbers", "harmonia-demo"]);
        let theirs = folder.path().join("theirs");
        let output = Command::new("nix")
            .args(["--extra-experimental-features", "nix-command", "store", "add-path", "--name", "a-folder"])
            .args([&source, "--store"])
            .arg(&theirs)
            .env("HOME", folder.path())
            .output()
            .expect("Nix is installed: scripts/test sees to it");
        let expected = format!("/nix/store/{}\n", ready.store.paths[0].path);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);

        fs::write(format!("{source}/another"), "more").expect("write");
        let (later, _) = prepared(&demo(folder.path(), &[&source]));
        assert_eq!(names(&later), ["a-folder", "numbers", "a-folder", "harmonia-demo"]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named_before_anything_is_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = folder.path().join("missing").into_os_string().into_string().expect("UTF-8");
        let outcome = prepare(&demo(folder.path(), &[&missing]), &mut |_| {});
        let error = outcome.err().expect("it cannot be made").to_string();
        assert!(error.contains(&missing), "{error}");
        assert!(!folder.path().join("demo").exists());
    }

    #[test]
    fn an_interrupted_start_is_gone_on_with() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = sample(folder.path());
        let (first, _) = prepared(&demo(folder.path(), &[&source]));
        fs::remove_file(folder.path().join("demo/complete")).expect("remove");
        fs::create_dir_all(folder.path().join("demo/making/output/left")).expect("mkdir");
        let (second, _) = prepared(&demo(folder.path(), &[&source]));
        assert_eq!(first.store.paths, second.store.paths);
    }

    #[test]
    fn the_key_is_secret_and_the_settings_are_the_demos() {
        let folder = tempfile::tempdir().expect("a folder");
        let (Ready { config, store }, _) = prepared(&demo(folder.path(), &[&sample(folder.path())]));
        let mode = fs::metadata(&store.key_file).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(&store.key_file).expect("read");
        assert_eq!(SecretKey::parse(&text).expect("a key").public(), store.key.public());
        assert_eq!(config.sign_key_paths, std::slice::from_ref(&store.key_file));
        assert_eq!(config.real_nix_store, store.settings.real_store);
        assert_eq!(config.nix_db_path, store.settings.database);
        assert_eq!(config.state_dir, store.settings.state_dir);
        assert_eq!(config.virtual_nix_store, store.settings.store_dir.as_str());

        fs::write(&store.key_file, "harmonia-demo-1:damaged").expect("write");
        let error = prepare(&demo(folder.path(), &[]), &mut |_| {}).err().expect("no key").to_string();
        assert!(error.contains("demo.secret") && !error.contains("damaged:"), "{error}");
    }

    #[test]
    fn a_damaged_store_and_one_that_is_no_demo_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ready, _) = prepared(&demo(folder.path(), &[&sample(folder.path())]));
        let damaged = ready.store.settings.real_store.join(ready.store.paths[0].path.as_str()).join("file");
        fs::set_permissions(&damaged, fs::Permissions::from_mode(0o644)).expect("chmod");
        fs::write(&damaged, "CONTENTS").expect("write");
        let error = prepare(&demo(folder.path(), &[]), &mut |_| {}).err().expect("it is damaged");
        assert!(matches!(error, DemoError::Store(DemoStoreError::Damaged { .. })), "{error}");

        fs::remove_file(&ready.store.key_file).expect("remove");
        let error = prepare(&demo(folder.path(), &[]), &mut |_| {}).err().expect("it is not a demo's");
        assert!(matches!(error, DemoError::Store(DemoStoreError::NotADemo { .. })), "{error}");
    }

    #[test]
    fn places_to_serve_on() {
        let at = |text: &str| address(text).ok().map(|address| address.to_string());
        assert_eq!(at("5001").as_deref(), Some("127.0.0.1:5001"));
        assert_eq!(at("localhost:5001").as_deref(), Some("127.0.0.1:5001"));
        assert_eq!(at("[::1]:0").as_deref(), Some("[::1]:0"));
        for wrong in ["", "127.0.0.1", "65536", "127.0.0.1:x", "unix:/s"] {
            assert!(address(wrong).is_err_and(|told| told.contains("ADDRESS:PORT")), "{wrong}");
        }
    }

    #[test]
    fn a_folder_of_somebody_elses_is_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("demo/settings.toml");
        fs::create_dir(folder.path().join("demo")).expect("mkdir");
        fs::write(&own, "# mine").expect("write");
        let error = prepare(&demo(folder.path(), &[]), &mut |_| {}).err().expect("it is not a demo's");
        assert!(matches!(error, DemoError::Store(DemoStoreError::NotADemo { .. })), "{error}");
        assert_eq!(fs::read_to_string(&own).expect("it is there"), "# mine");
        assert_eq!(fs::read_dir(folder.path().join("demo")).expect("it is there").count(), 1);
        // What a start left that was interrupted before it had a key is no person's.
        fs::rename(&own, own.with_file_name("demo.public")).expect("it is ours");
        prepared(&demo(folder.path(), &[&sample(folder.path())]));
    }

    #[test]
    fn a_taken_port_is_told_in_one_line_before_anything_is_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let other = TcpListener::bind("127.0.0.1:0").expect("listen");
        let at = other.local_addr().expect("an address");
        let mut demo = demo(folder.path(), &[]);
        demo.bind = at;
        let error = prepare(&demo, &mut |_| {}).err().expect("it is taken").to_string();
        assert!(error.starts_with(&format!("{at} is taken")) && error.contains("--bind"), "{error}");
        assert_eq!(error.lines().count(), 1);
        assert!(!folder.path().join("demo").exists());
    }

    #[test]
    fn what_to_try_names_the_key_and_the_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ready, _) = prepared(&demo(folder.path(), &[&sample(folder.path())]));
        let text = what_to_try(&ready.store, "0.0.0.0:5000".parse().expect("an address"));
        let key = ready.store.key.public();
        let [_, numbers, output] = &ready.store.paths[..] else { panic!("{:?}", ready.store.paths) };
        for part in [
            format!("curl http://127.0.0.1:5000/{}.narinfo\n", numbers.path.hash()),
            format!("/nar/{}.nar?hash={}'", numbers.nar_hash.to_base32(), numbers.path.hash()),
            format!("# {}\n", numbers.nar_hash.to_hex()),
            format!("--from http://127.0.0.1:5000 \\\n    --to \"$(mktemp -d)\" /nix/store/{} ", output.path),
            format!("--option trusted-public-keys '{key}'\n"),
            "  extra-substituters = http://127.0.0.1:5000\n".to_owned(),
            format!("  extra-trusted-public-keys = {key}\n"),
        ] {
            assert!(text.contains(&part), "{part} in {text}");
        }
    }
}
