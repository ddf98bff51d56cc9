//! Stores that the real Nix makes and reads, away from the machine's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{COMMAND_LIMIT, Scratch, lossy, poll, run, succeed};

/// Which of Nix's two ways to have a store in a folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// StoreDir `/nix/store`, files under `<folder>/nix/store`: what `--store <folder>` makes.
    Chroot,
    /// A StoreDir of its own, where it says it is. Derivations can be built here without privileges.
    OtherDir,
}

/// A store to serve from.
pub struct Store {
    kind: Kind,
    scratch: Scratch,
}

/// The Nix configuration of every command here; nothing of the machine's own is read.
const NIX_CONFIG: &str = "experimental-features = nix-command flakes ca-derivations\n\
    sandbox = false\nbuild-users-group =\nsubstituters =\nrequire-sigs = true\nconnect-timeout = 20\n";

/// A Nix command with an environment of its own below `home`.
fn nix_command(program: &str, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", home).env("XDG_CACHE_HOME", home.join("cache")).env("XDG_CONFIG_HOME", home);
    command.env("XDG_DATA_HOME", home.join("share")).env("NIX_CONF_DIR", home);
    command.env("NIX_CONFIG", NIX_CONFIG).env("LC_ALL", "C.UTF-8").current_dir(home);
    command
}

impl Store {
    pub fn new(kind: Kind) -> Self {
        let store = Self { kind, scratch: Scratch::new() };
        fs::create_dir(store.home()).expect("the scratch folder is ours");
        // Any command that opens the store makes its folders and its database.
        succeed(store.nix("nix-store").args(["--query", "--requisites"]));
        store
    }

    fn home(&self) -> PathBuf {
        self.scratch.path().join("home")
    }

    /// The scratch folder that the store is in: room for a test's own files too.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The folder that holds the store's files.
    pub fn real_dir(&self) -> PathBuf {
        match self.kind {
            Kind::Chroot => self.scratch.path().join("root/nix/store"),
            Kind::OtherDir => self.scratch.path().join("own/store"),
        }
    }

    /// The StoreDir: what store paths begin with.
    pub fn dir(&self) -> String {
        match self.kind {
            Kind::Chroot => "/nix/store".into(),
            Kind::OtherDir => self.real_dir().to_str().expect("the scratch folder's name is text").into(),
        }
    }

    /// `…/var/nix`.
    pub fn state_dir(&self) -> PathBuf {
        self.real_dir().parent().expect("a store is in a folder").join("var/nix")
    }

    pub fn database(&self) -> PathBuf {
        self.state_dir().join("db/db.sqlite")
    }

    /// The store database, to look at or to change behind Nix's back.
    pub fn open_database(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.database()).expect("Nix made the database");
        connection.busy_timeout(std::time::Duration::from_secs(10)).expect("it is a plain setting");
        connection
    }

    /// A Nix program with the configuration of this store's commands, but no store chosen.
    pub fn bare(&self, program: &str) -> Command {
        nix_command(program, &self.home())
    }

    /// A Nix program at work in this store.
    pub fn nix(&self, program: &str) -> Command {
        let mut command = self.bare(program);
        match self.kind {
            Kind::Chroot => {
                command.arg("--store").arg(self.scratch.path().join("root"));
            }
            Kind::OtherDir => {
                let parent = self.scratch.path().join("own");
                command.env("NIX_STORE_DIR", self.real_dir()).env("NIX_STATE_DIR", parent.join("var/nix"));
                command.env("NIX_LOG_DIR", parent.join("var/log/nix"));
            }
        }
        command
    }

    /// Runs `nix-store` with arguments that have it look for roots. It does so among what all processes of the machine
    /// have open, and fails where that is a path longer than any may be, as other tests have: then it is run again.
    pub fn collect(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = self.nix("nix-store");
        command.args(arguments);
        poll("what others have open to be gone", COMMAND_LIMIT, || {
            let output = run(&mut command);
            let stderr = lossy(&output.stderr);
            let is_lost = !output.status.success() && stderr.contains("File name too long");
            assert!(output.status.success() || is_lost, "{command:?}: {}\n{stderr}", output.status);
            (!is_lost).then_some(output.stdout)
        })
    }

    /// Where a store path's files are.
    pub fn real(&self, path: &str) -> PathBuf {
        self.real_dir().join(base_name(path))
    }

    /// Adds what `build` makes at the path it is given, as `nix store add-path` does; the store path.
    pub fn add(&self, name: &str, build: impl FnOnce(&Path)) -> String {
        let source = tempfile::tempdir_in(self.scratch.path()).expect("the scratch folder is ours");
        let tree = source.path().join("tree");
        build(&tree);
        let mut command = self.nix("nix");
        let path = succeed(command.args(["store", "add-path", "--name", name]).arg(&tree));
        lossy(&path).trim().to_owned()
    }

    /// Registers what `build` makes as an *input-addressed* path with these references; the store path.
    /// A reference to `self` stands for the path itself. `build` gets the folder to make and the path.
    pub fn register(&self, name: &str, references: &[&str], build: impl FnOnce(&Path, &str)) -> String {
        let path = format!("{}/{}-{name}", self.dir(), hash_part(name));
        let real = self.real(&path);
        build(&real, &path);
        freeze(&real);
        let hash = lossy(&succeed(self.bare("nix-hash").args(["--type", "sha256"]).arg(&real)));
        let size = self.dump_len(&path);
        let mut lines = vec![path.clone(), hash.trim().into(), size.to_string(), String::new()];
        lines.push(references.len().to_string());
        lines.extend(references.iter().map(|to| if *to == "self" { path.clone() } else { (*to).into() }));
        self.load(&(lines.join("\n") + "\n"));
        path
    }

    /// Builds a derivation with /bin/sh, in a [`Kind::OtherDir`] store; its .drv and its output. `more` is
    /// further attributes, each with its semicolon.
    pub fn build(&self, name: &str, script: &str, more: &str) -> (String, String) {
        let file = self.folder().join(format!("{name}.nix"));
        let text = format!(
            "derivation {{ name = {name:?}; system = builtins.currentSystem; builder = \"/bin/sh\"; \
             PATH = \"/bin:/usr/bin\"; args = [ \"-c\" {script:?} ]; {more} }}"
        );
        super::write(&file, text);
        let drv = lossy(&succeed(self.nix("nix-instantiate").arg(&file))).trim().to_owned();
        let out = lossy(&succeed(self.nix("nix-store").args(["--realise", &drv]))).trim().to_owned();
        (drv, out)
    }

    /// Gives rows to `nix-store --load-db`.
    fn load(&self, rows: &str) {
        use std::io::Write;
        let mut command = self.nix("nix-store");
        command.arg("--load-db").stdin(std::process::Stdio::piped());
        let mut child = command.spawn().expect("nix-store is installed");
        child.stdin.take().expect("it is piped").write_all(rows.as_bytes()).expect("it reads to the end");
        assert!(child.wait().expect("the child is ours").success(), "nix-store --load-db:\n{rows}");
    }

    /// The NAR of a store path, by the real Nix.
    pub fn dump(&self, path: &str) -> Vec<u8> {
        succeed(self.bare("nix-store").arg("--dump").arg(self.real(path)))
    }

    fn dump_len(&self, path: &str) -> u64 {
        let script = "nix-store --dump \"$1\" | wc -c";
        let count = succeed(self.bare("sh").args(["-c", script, "sh"]).arg(self.real(path)));
        lossy(&count).trim().parse().expect("wc prints a number")
    }

    /// A new signing key: the secret key's file and the public key.
    pub fn key(&self, name: &str) -> (PathBuf, String) {
        let secret = self.folder().join(format!("{name}.secret"));
        let public = self.folder().join(format!("{name}.public"));
        let mut command = self.bare("nix-store");
        // It opens a store, though it needs none.
        command.env("NIX_REMOTE", "dummy://");
        succeed(command.args(["--generate-binary-cache-key", name]).arg(&secret).arg(&public));
        let public = fs::read_to_string(public).expect("nix-store wrote it");
        (secret, public.trim().to_owned())
    }

    /// A client of this store: another store with the same StoreDir that trusts `keys`.
    pub fn client(&self, keys: &[&str]) -> Client {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path().join("home")).expect("the scratch folder is ours");
        Client { scratch, store_dir: self.dir(), keys: keys.join(" ") }
    }
}

/// A Nix that fetches: a chroot store and a cache of its own, signatures required.
pub struct Client {
    scratch: Scratch,
    store_dir: String,
    keys: String,
}

impl Client {
    /// A Nix program with the client's configuration but no store chosen: add `--store`.
    pub fn bare(&self, program: &str) -> Command {
        let mut command = nix_command(program, &self.scratch.path().join("home"));
        command.env("NIX_CONFIG", format!("{NIX_CONFIG}trusted-public-keys = {}\n", self.keys));
        command.env("NIX_STORE_DIR", &self.store_dir);
        command
    }

    /// A Nix program at work in the client's store.
    pub fn nix(&self, program: &str) -> Command {
        let mut command = self.bare(program);
        command.arg("--store").arg(self.root());
        command
    }

    pub fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    /// `nix copy --from URL PATHS`, to be run.
    pub fn copy(&self, url: &str, paths: &[&str]) -> Command {
        let mut command = self.bare("nix");
        command.args(["copy", "--from", url, "--to"]).arg(self.root()).args(paths);
        command
    }

    /// Where a fetched path's files are.
    pub fn real(&self, path: &str) -> PathBuf {
        self.root().join("nix/store").join(base_name(path))
    }

    /// The NAR of a fetched path, by the real Nix.
    pub fn dump(&self, path: &str) -> Vec<u8> {
        succeed(self.bare("nix-store").arg("--dump").arg(self.real(path)))
    }
}

/// `<hash>-<name>` of a full store path.
pub fn base_name(path: &str) -> &str {
    path.rsplit('/').next().expect("rsplit gives at least one part")
}

/// The 32 digits that a store path begins with.
pub fn hash_of(path: &str) -> &str {
    &base_name(path)[..32]
}

/// 32 digits of Nix's base32 that depend on the name alone.
fn hash_part(name: &str) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut random =
        super::Random(name.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into())));
    (0..32).map(|_| DIGITS[random.below(32) as usize] as char).collect()
}

/// Sets what Nix sets on everything in a store: no write permission.
fn freeze(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if metadata.is_symlink() {
        return;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("the test made it") {
            freeze(&entry.expect("the test made it").path());
        }
    }
    let executable = metadata.is_dir() || metadata.permissions().mode() & 0o100 != 0;
    let mode = if executable { 0o555 } else { 0o444 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the test made it");
}
