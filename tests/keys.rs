//! `harmonia keys` against Nix's own tools: what one signs, the other takes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn harmonia(folder: &Path, arguments: &[&dyn AsRef<OsStr>]) -> Output {
    let arguments = arguments.iter().map(AsRef::as_ref);
    Command::new(env!("CARGO_BIN_EXE_harmonia"))
        .arg("keys")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("the program runs")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// The output of a command that must succeed.
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    stdout(&output).to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("the file is there")
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).expect("the file is there").permissions().mode() & 0o7777
}

/// A Nix installation of its own, which needs neither a daemon nor build users.
struct Nix {
    folder: TempDir,
}

impl Nix {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("conf")).expect("a new folder");
        let settings =
            "build-users-group =\nsandbox = false\nsubstituters =\nexperimental-features = nix-command\n";
        fs::write(folder.path().join("conf/nix.conf"), settings).expect("a new file");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a Nix command on the store of this name. All have the same store directory, as to Nix; the files of
    /// all but `main` are elsewhere.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(arguments[0])
            .args(&arguments[1..])
            .env("NIX_STORE_DIR", self.path("store"))
            .env("NIX_STATE_DIR", self.path("state"))
            .env("NIX_LOG_DIR", self.path("log"))
            .env("NIX_CONF_DIR", self.path("conf"))
            .env("HOME", self.folder.path())
            .env_remove("NIX_REMOTE")
            .output()
            .expect("Nix is installed: scripts/test does it")
    }

    /// Builds an input-addressed path with references to itself and another, which only a signature makes
    /// trustworthy.
    fn build(&self) -> String {
        let expression = r#"
            let make = name: script: derivation {
              inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ];
            };
            in make "self" "echo $out ${make "dep" "echo dep > $out"} > $out""#;
        done(self.run(&["nix-build", "--no-out-link", "-E", expression])).trim().to_owned()
    }

    /// Copies a path's closure into a cache of files, and gives its narinfo's place.
    fn cache(&self, path: &str, options: &str) -> PathBuf {
        done(self.run(&["nix", "copy", "--to", &self.cache_url(options), path]));
        let hash = &path.rsplit_once('/').expect("a full path").1[..32];
        self.path("cache").join(format!("{hash}.narinfo"))
    }

    fn cache_url(&self, options: &str) -> String {
        format!("file://{}?compression=none{options}", self.path("cache").display())
    }

    /// Copies a path out of the cache into a fresh store that demands signatures of `trusted`.
    fn fetch(&self, path: &str, trusted: &str) -> Output {
        let fresh = TempDir::new_in(self.folder.path()).expect("a temporary folder");
        let to = format!("local?root={}&store={}", fresh.path().display(), self.path("store").display());
        let arguments = ["--option", "trusted-public-keys", trusted, "--option", "require-sigs", "true"];
        self.run(
            &[&["nix", "copy", "--from", &self.cache_url(""), "--to", &to, path], &arguments[..]].concat(),
        )
    }
}

/// As `head` does.
#[test]
fn who_reads_no_further_ends_it_without_a_complaint() {
    use std::os::unix::process::ExitStatusExt as _;
    let folder = tempfile::tempdir().expect("a temporary folder");
    done(harmonia(folder.path(), &[&"generate", &"k-1"]));
    for words in [&["keys", "public", "k-1.secret"][..], &["generate", "completions", "bash"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_harmonia"));
        let ended = command.args(words).current_dir(folder.path()).stdout(writer).output().expect("it runs");
        assert_eq!(
            ended.status.signal(),
            Some(signal_hook::consts::SIGPIPE),
            "{words:?}: {}",
            stderr(&ended)
        );
        assert_eq!(stderr(&ended), "", "{words:?}");
    }
}

#[test]
fn a_pair_is_made_as_nix_makes_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let shown = done(harmonia(folder.path(), &[&"generate", &"cache.example.org-1"]));
    let secret = read(file("cache.example.org-1.secret"));
    let public = read(file("cache.example.org-1.public"));
    assert_eq!(shown, format!("{public}\n"));
    assert_eq!(mode(file("cache.example.org-1.secret")), 0o600);
    assert_eq!(done(harmonia(folder.path(), &[&"public", &"cache.example.org-1.secret"])), shown);
    fs::create_dir(file("etc")).expect("a new folder");
    done(harmonia(folder.path(), &[&"generate", &"beside-1", &"--secret-file", &"etc/cache.secret"]));
    assert!(file("etc/beside-1.public").exists() && !file("beside-1.public").exists());

    let nix = Nix::new();
    let (sk, pk) = (file("sk"), file("pk"));
    let pair = ["nix-store", "--generate-binary-cache-key", "cache.example.org-1"];
    done(nix.run(&[&pair[..], &[sk.to_str().unwrap(), pk.to_str().unwrap()]].concat()));
    assert_eq!((read(&sk).len(), read(&pk).len()), (secret.len(), public.len()));
    assert_eq!(mode(&sk), 0o600);
    assert_eq!(done(harmonia(folder.path(), &[&"public", &sk])), format!("{}\n", read(&pk)));
}

#[test]
fn nothing_is_overwritten_and_no_half_pair_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let generate =
        || harmonia(folder.path(), &[&"generate", &"k", &"--secret-file", &"sk", &"--public-file", &"pk"]);
    fs::write(file("pk"), "mine").unwrap();
    let refused = generate();
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(stderr(&refused), "harmonia: pk is there already and is left as it is: name another file\n");
    assert_eq!(read(file("pk")), "mine");
    assert!(!file("sk").exists());

    fs::remove_file(file("pk")).unwrap();
    done(generate());
    let before = (read(file("sk")), read(file("pk")));
    assert_eq!(generate().status.code(), Some(2));
    assert_eq!((read(file("sk")), read(file("pk"))), before);

    let bad = harmonia(folder.path(), &[&"generate", &"two words"]);
    assert_eq!(bad.status.code(), Some(2));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn nix_takes_what_we_sign() {
    let nix = Nix::new();
    let path = nix.build();
    let narinfo = nix.cache(&path, "");
    let unsigned = read(&narinfo);
    assert!(!unsigned.contains("Sig:"), "{unsigned}");
    let folder = nix.folder.path();
    let public = done(harmonia(folder, &[&"generate", &"ours-1", &"--secret-file", &"sk"]));
    let wrong = done(harmonia(folder, &[&"generate", &"ours-2"]));
    assert!(!nix.fetch(&path, &public).status.success(), "nothing is signed yet");

    let all: Vec<PathBuf> = fs::read_dir(nix.path("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new("narinfo")))
        .collect();
    assert_eq!(all.len(), 2);
    fs::set_permissions(&narinfo, fs::Permissions::from_mode(0o640)).unwrap();
    let shown = done(harmonia(folder, &[&"sign", &"--key", &"sk", &all[0], &all[1]]));
    assert_eq!(shown.matches(": signed by ours-1\n").count(), 2, "{shown}");
    assert_eq!(mode(&narinfo), 0o640);

    let refused = nix.fetch(&path, &wrong);
    assert!(!refused.status.success());
    assert!(stderr(&refused).contains("lacks a"), "{}", stderr(&refused));
    done(nix.fetch(&path, &public));

    let signed = read(&narinfo);
    let again = done(harmonia(folder, &[&"sign", &"--key", &"sk", &narinfo]));
    assert!(again.ends_with(": was signed already\n"), "{again}");
    assert_eq!(read(&narinfo), signed);
    let second = done(harmonia(
        folder,
        &[&"sign", &"--stdout", &"--key", &"ours-2.secret", &"--key", &"sk", &narinfo],
    ));
    assert!(second.starts_with(&unsigned[..unsigned.find("Deriver:").unwrap()]));
    assert_eq!(second.lines().filter(|line| line.starts_with("Sig: ours-")).count(), 2);
    assert_eq!(read(&narinfo), signed);
}

#[test]
fn we_take_what_nix_signs() {
    let nix = Nix::new();
    let path = nix.build();
    let (sk, pk) = (nix.path("sk"), nix.path("pk"));
    let pair = ["nix-store", "--generate-binary-cache-key", "theirs-1"];
    done(nix.run(&[&pair[..], &[sk.to_str().unwrap(), pk.to_str().unwrap()]].concat()));
    let narinfo = nix.cache(&path, &format!("&secret-key={}", sk.display()));
    let folder = nix.folder.path();
    let other = done(harmonia(folder, &[&"generate", &"other-1"]));
    let namesake =
        done(harmonia(folder, &[&"generate", &"theirs-1", &"--secret-file", &"s", &"--public-file", &"p"]));
    let public = read(&pk);

    let verify = |trusted: &[&str], narinfo: &dyn AsRef<OsStr>| {
        let trusted = trusted.iter().flat_map(|key| [&"--trusted" as &dyn AsRef<OsStr>, key]);
        let arguments: Vec<&dyn AsRef<OsStr>> =
            [&"verify" as &dyn AsRef<OsStr>].into_iter().chain(trusted).chain([narinfo]).collect();
        let output = harmonia(folder, &arguments);
        (output.status.code(), format!("{}{}", stdout(&output), stderr(&output)))
    };
    let shown = narinfo.display();
    let good = (Some(0), format!("{shown}: signed by theirs-1\n"));
    assert_eq!(verify(&[&public], &narinfo), good);
    assert_eq!(verify(&[&other, &public], &narinfo), good);
    assert_eq!(verify(&[&format!("{other} {namesake} {public}")], &narinfo), good);
    let untrusted = format!("{shown}: NOT verified: signed only by theirs-1, not trusted\n");
    assert_eq!(verify(&[&other], &narinfo), (Some(1), untrusted));
    let wrong = |path: &Path| {
        format!(
            "{}: NOT verified: the signature of theirs-1 is of another key or for another content\n",
            path.display()
        )
    };
    assert_eq!(verify(&[&namesake], &narinfo), (Some(1), wrong(&narinfo)));

    let changed = nix.path("changed.narinfo");
    fs::write(&changed, read(&narinfo).replace("NarSize: ", "NarSize: 1")).unwrap();
    assert_eq!(verify(&[&public], &changed), (Some(1), wrong(&changed)));
    fs::write(&changed, "StorePath: /nix/store\n").unwrap();
    assert_eq!(verify(&[&public], &changed).0, Some(2));
    assert_eq!(verify(&[&public], &"absent").0, Some(2));
    assert_eq!(verify(&["  "], &narinfo).0, Some(2));

    // The same signature, as Ed25519 is deterministic.
    let signed = done(harmonia(folder, &[&"sign", &"--key", &sk, &narinfo]));
    assert!(signed.ends_with(": was signed already\n"), "{signed}");
}

#[test]
fn one_bad_file_does_not_hide_the_others() {
    let nix = Nix::new();
    let narinfo = nix.cache(&nix.build(), "");
    let folder = nix.folder.path();
    let public = done(harmonia(folder, &[&"generate", &"k"]));
    let output = harmonia(folder, &[&"sign", &"--key", &"k.secret", &"absent", &narinfo]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("harmonia: cannot read absent: "), "{}", stderr(&output));
    assert!(stdout(&output).ends_with(": signed by k\n"), "{}", stdout(&output));
    let output = harmonia(folder, &[&"verify", &"--trusted", &public, &"absent", &narinfo]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stdout(&output).ends_with(": signed by k\n"), "{}", stdout(&output));
}

#[test]
fn a_bad_key_file_is_named_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let public = done(harmonia(folder.path(), &[&"generate", &"k"]));
    let secret = read(folder.path().join("k.secret"));
    let base64 = secret.strip_prefix("k:").unwrap();
    let damaged = secret.replacen(&base64[..4], if base64.starts_with("AAAA") { "BBBB" } else { "AAAA" }, 1);
    for content in [&secret[..40], base64, "", &damaged, &format!("k: {base64}"), &public] {
        fs::write(folder.path().join("bad"), content).unwrap();
        let output = harmonia(folder.path(), &[&"public", &"bad"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).starts_with("harmonia: bad holds no signing key: "), "{}", stderr(&output));
        assert!(!stderr(&output).contains(&base64[8..16]), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
    let output = harmonia(folder.path(), &[&"verify", &"--trusted", &secret, &"x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("is it the secret key?") && !stderr(&output).contains(&base64[..8]));
}

#[test]
fn an_open_key_file_is_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    done(harmonia(folder.path(), &[&"generate", &"k"]));
    let warning = |mode| {
        fs::set_permissions(folder.path().join("k.secret"), fs::Permissions::from_mode(mode)).unwrap();
        let output = harmonia(folder.path(), &[&"public", &"k.secret"]);
        assert!(output.status.success());
        stderr(&output).to_owned()
    };
    assert_eq!(warning(0o600), "");
    assert_eq!(warning(0o400), "");
    for mode in [0o640, 0o604, 0o644] {
        let expected = format!(
            "harmonia: others than its owner may read the signing key k.secret (mode {mode:04o}): chmod 600 k.secret\n"
        );
        assert_eq!(warning(mode), expected);
    }
}
