//! `harmonia doctor` on machines with Nix settings of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::fake::{Fake, Request, Sent};
use super::{Kind, Response, Scratch, Server, Settings, Store, lossy, noise, run, write};

/// A store with one input-addressed path, and a server that signs it.
pub struct Case {
    pub store: Store,
    pub path: String,
    pub secret: PathBuf,
    pub public: String,
    pub server: Server,
}

impl Case {
    pub fn new() -> Self {
        Self::with(|settings| settings)
    }

    pub fn with(set: impl FnOnce(Settings) -> Settings) -> Self {
        let store = Store::new(Kind::OtherDir);
        let path = store.register("subject", &[], |tree, _| write(tree, noise(1, 300_000)));
        let (secret, public) = store.key("cache.example-1");
        let server = set(Settings::of(&store).keys(&[&secret])).start();
        Self { store, path, secret, public, server }
    }

    /// A client with the cache at `url` and its key in its settings.
    pub fn client_of(&self, url: &str) -> Seat {
        let seat = Seat::new(&self.store.dir(), &self.store.state_dir());
        seat.conf(&format!("substituters = {url}\ntrusted-public-keys = {}", self.public))
    }

    /// What the doctor finds where `change` is between this client and the server.
    pub fn through(&self, change: impl Fn(&Request, Response) -> Sent + Send + Sync + 'static) -> Told {
        let fake = Fake::of(self.server.address, change);
        self.client_of(&fake.url()).json(&["--seconds", "30", &fake.url()])
    }
}

/// Where the doctor sits: a machine with Nix settings of its own.
pub struct Seat {
    home: Scratch,
    conf: String,
    environment: Vec<(String, String)>,
}

/// What the doctor told.
#[derive(Debug)]
pub struct Told {
    pub status: i32,
    pub json: Value,
}

impl Seat {
    pub fn new(store_dir: &str, state_dir: &Path) -> Self {
        let state_dir = state_dir.to_str().expect("the scratch folder's name is text");
        let pairs = [("NIX_STORE_DIR", store_dir), ("NIX_STATE_DIR", state_dir)];
        let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { home: Scratch::new(), conf: String::new(), environment }
    }

    /// On a machine that has nothing of the store yet.
    pub fn fresh(store_dir: &str) -> Self {
        Self::new(store_dir, Path::new("/nonexistent/state"))
    }

    /// Lines of the system's nix.conf.
    pub fn conf(mut self, lines: &str) -> Self {
        self.conf.push_str(lines);
        self.conf.push('\n');
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(old, _)| old != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn conf_file(&self) -> PathBuf {
        self.home.path().join("nix.conf")
    }

    pub fn command(&self, program: &mut Command, arguments: &[&str]) -> Output {
        if !self.conf.is_empty() {
            write(self.conf_file(), &self.conf);
        }
        program.arg("doctor").args(arguments).env_clear().current_dir(self.home.path());
        program.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.home.path());
        program.env("NIX_CONF_DIR", self.home.path());
        program.envs(self.environment.iter().map(|(name, value)| (name, value)));
        run(program)
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(&mut Command::new(env!("CARGO_BIN_EXE_harmonia")), arguments)
    }

    pub fn json(&self, arguments: &[&str]) -> Told {
        Told::of(&self.run(&[&["--json"], arguments].concat()))
    }
}

impl Told {
    pub fn of(output: &Output) -> Self {
        let status = output.status.code().expect("it ends by itself");
        let json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", lossy(&output.stdout), lossy(&output.stderr)));
        Self { status, json }
    }

    /// The first cache's.
    pub fn cache(&self) -> &Value {
        &self.json["caches"][0]
    }

    pub fn codes(&self) -> Vec<&str> {
        let findings = self.cache()["findings"].as_array().expect("it is a list");
        findings.iter().map(|finding| finding["code"].as_str().expect("it is text")).collect()
    }

    /// The one finding there is, which must be this one.
    pub fn only(&self, code: &str) -> &Value {
        assert_eq!(self.codes(), [code], "{:#}", self.json);
        assert_eq!(self.status, 1);
        &self.cache()["findings"][0]
    }

    pub fn unseen(&self) -> String {
        self.cache()["unseen"].to_string()
    }
}

/// Whether a field of a finding has all of these in it.
#[track_caller]
pub fn has(finding: &Value, field: &str, parts: &[&str]) {
    let text = finding[field].as_str().unwrap_or_else(|| panic!("no {field} in {finding:#}"));
    for part in parts {
        assert!(text.contains(part), "no “{part}” in “{text}”");
    }
}
