//! `harmonia demo` as a stranger meets it: what it prints is done, word for word.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A demo that runs; ended when dropped.
struct Demo {
    process: Child,
    folder: tempfile::TempDir,
    /// What it printed up to the last line of what to try.
    said: String,
}

impl Demo {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("mine")).expect("mkdir");
        std::fs::write(folder.path().join("mine/file"), "contents").expect("write");
        let mut process = demo(folder.path(), "127.0.0.1:0").stdout(Stdio::piped()).spawn().expect("started");
        let mut lines = BufReader::new(process.stdout.take().expect("piped"));
        let mut said = String::new();
        while !said.contains("  extra-trusted-public-keys = ") {
            assert!(lines.read_line(&mut said).expect("readable") > 0, "it ended: {said}");
        }
        // Whoever stops reading a pipe ends its writer; this one goes on being read.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { process, folder, said }
    }

    /// The command of what it printed that begins with `start`, and the line under it.
    fn command(&self, start: &str) -> (String, String) {
        let lines: Vec<&str> = self.said.lines().collect();
        let first = lines.iter().position(|line| line.trim_start().starts_with(start)).expect("a command");
        let last = first + lines[first..].iter().position(|line| !line.ends_with('\\')).expect("its end");
        (lines[first..=last].join("\n"), lines[last + 1].trim().to_owned())
    }

    /// Does in a shell what it said.
    fn shell(&self, command: &str) -> Output {
        let home = self.folder.path().join("home");
        Command::new("sh")
            .args(["-c", command])
            .env("HOME", home)
            .env("TMPDIR", self.folder.path())
            .output()
            .expect("sh")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn demo(folder: &Path, bind: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harmonia"));
    command.current_dir(folder).args(["demo", "--bind", bind, "mine"]);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_it_says_to_try_works() {
    let mut running = Demo::start();
    let info = running.shell(&running.command("curl http").0);
    assert!(text(&info.stdout).starts_with("StoreDir: /nix/store\n"), "{info:?}");

    for start in ["curl -s 'http", "curl -s -r"] {
        let (command, expected) = running.command(start);
        let output = running.shell(&command);
        let expected = expected.trim_start_matches("# ");
        assert!(text(&output.stdout).starts_with(expected), "{command}: {output:?}");
    }

    let (copy, _) = running.command("nix --extra");
    let output = running.shell(&copy);
    assert!(output.status.success(), "{copy}: {}", text(&output.stderr));
    let without_key = copy.split(" --option trusted-public-keys").next().expect("it has the option");
    let refused = running.shell(without_key);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("lacks a valid signature"), "{}", text(&refused.stderr));

    let pid = running.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    assert!(running.process.wait().expect("it ends").success());
}

#[test]
fn a_second_one_on_its_port_says_so_in_one_line() {
    let first = Demo::start();
    let (line, _) = first.command("curl http");
    let at = line.trim().trim_start_matches("curl http://").split('/').next().expect("an address");
    let second = demo(first.folder.path(), at).output().expect("run");
    assert!(!second.status.success());
    let said = text(&second.stderr);
    assert!(said.contains(&format!("{at} is taken")), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(text(&second.stdout), "");
}

#[test]
fn a_second_one_in_its_folder_says_so_in_one_line() {
    let first = Demo::start();
    assert_eq!(first.said.matches("extra-trusted-public-keys").count(), 1, "{}", first.said);
    let second = demo(first.folder.path(), "127.0.0.1:0").output().expect("run");
    assert_eq!(second.status.code(), Some(2));
    let said = text(&second.stderr);
    assert!(said.contains("harmonia-demo is served by another demo") && said.contains("--dir"), "{said}");
    assert_eq!((said.lines().count(), text(&second.stdout)), (1, String::new()), "{said}");
}
