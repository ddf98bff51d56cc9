//! Certificates by the real openssl, for servers on this machine.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use super::{Scratch, Server, Settings, Store, lossy, run, succeed, write};

/// An authority of its own, and what it issued for 127.0.0.1.
pub struct Authority {
    folder: Scratch,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self { folder: Scratch::new() };
        authority
            .openssl(&[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
            ])
            .args(["2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"])
            .expect_success();
        authority
    }

    pub fn openssl(&self, arguments: &[&str]) -> Openssl {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.folder.path());
        Openssl(command)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Issues `name.pem`, with the authority's behind it, and `name.key`, for this machine.
    pub fn issue(&self, name: &str, kind: &[&str]) {
        self.issue_by("ca", name, kind, "subjectAltName = IP:127.0.0.1", "2");
    }

    /// As [`Authority::issue`], by the holder of another certificate, with another extension, for so many days. The
    /// certificate alone is in `name.own`.
    pub fn issue_by(&self, by: &str, name: &str, kind: &[&str], extension: &str, days: &str) {
        let [request, key, own, chain] =
            ["csr", "key", "own", "pem"].map(|ending| format!("{name}.{ending}"));
        let [issuer, issuer_key] = ["pem", "key"].map(|ending| format!("{by}.{ending}"));
        let subject = format!("/CN={name}");
        self.openssl(&["req", "-new", "-nodes", "-newkey"])
            .args(kind.iter().copied())
            .args(["-subj", &subject, "-keyout", &key, "-out", &request])
            .expect_success();
        write(self.file("extensions"), format!("{extension}\n"));
        self.openssl(&[
            "x509",
            "-req",
            "-days",
            days,
            "-CA",
            &issuer,
            "-CAkey",
            &issuer_key,
            "-CAcreateserial",
        ])
        .args(["-extfile", "extensions", "-in", &request, "-out", &own])
        .expect_success();
        let parts = [own, issuer].map(|part| fs::read(self.file(&part)).expect("openssl wrote it"));
        write(self.file(&chain), parts.concat());
    }

    pub fn settings(&self, store: &Store, name: &str) -> Settings {
        Settings::of(store)
            .line(&format!("tls_cert_path = {:?}", self.file(&format!("{name}.pem"))))
            .line(&format!("tls_key_path = {:?}", self.file(&format!("{name}.key"))))
    }

    pub fn curl(&self, arguments: &[&str], url: &str) -> Output {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"]);
        run(command.arg(self.file("ca.pem")).args(arguments).arg(url))
    }

    /// The name of whom the server shows a certificate.
    pub fn subject(&self, server: &Server) -> String {
        let address = server.address.to_string();
        let shown =
            self.openssl(&["s_client", "-connect", &address, "-CAfile", "ca.pem", "-verify_return_error"]);
        let Openssl(mut command) = shown;
        let output = run(command.stdin(std::process::Stdio::null()));
        let text = lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.trim().strip_prefix("0 s:CN"));
        line.unwrap_or_else(|| panic!("no certificate: {text}{}", lossy(&output.stderr)))
            .replace([' ', '='], "")
    }
}

pub struct Openssl(Command);

impl Openssl {
    pub fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.args(arguments);
        self
    }

    pub fn expect_success(mut self) {
        succeed(&mut self.0);
    }
}

pub const ECDSA: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
pub const RSA: &[&str] = &["rsa:2048"];
pub const ED25519: &[&str] = &["ed25519"];
