//! The static file servers to compare with, as their own people would set them up for speed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::database::{self, DatabaseError};

/// Workers of each server.
pub const WORKERS: usize = 2;

/// Who serves the flat files, or any command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    Lighttpd,
    Nginx,
    /// A shell command with `{port}` in it.
    Command(String),
}

/// What flat files are compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    Zstd,
    Xz,
}

impl Compression {
    /// As Nix and settings files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }
}

/// The folder of a store's flat files.
pub fn flat_folder(store: &Path, compression: Option<Compression>) -> PathBuf {
    match compression {
        None => store.join("flat"),
        Some(compression) => store.join(format!("flat-{}", compression.name())),
    }
}

/// Why there are no flat files.
#[derive(Debug, thiserror::Error)]
pub enum FlatError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("cannot run nix: {0}; it comes with Debian's package nix-bin")]
    Run(io::Error),
    #[error("nix copy failed: {0}")]
    Copy(String),
}

impl Peer {
    pub fn parse(text: &str) -> Self {
        match text {
            "lighttpd" => Self::Lighttpd,
            "nginx" => Self::Nginx,
            command => Self::Command(command.to_owned()),
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Lighttpd => "lighttpd",
            Self::Nginx => "nginx",
            Self::Command(_) => "peer",
        }
    }

    /// The command that serves `flat` on `port`; its files go to `folder`.
    pub fn command(&self, port: u16, flat: &Path, folder: &Path) -> io::Result<String> {
        let (flat, place) = (flat.display(), folder.display());
        match self {
            Self::Command(command) => Ok(command.replace("{port}", &port.to_string())),
            Self::Lighttpd => {
                // Keep-alive requests are counted in 16 bits. No access log: its module is not loaded.
                let text = format!(
                    "server.document-root = \"{flat}\"\n\
                     server.bind = \"127.0.0.1\"\n\
                     server.port = {port}\n\
                     server.max-worker = {WORKERS}\n\
                     server.network-backend = \"sendfile\"\n\
                     server.max-keep-alive-requests = 65535\n\
                     server.max-keep-alive-idle = 600\n\
                     server.max-fds = 16384\n\
                     server.errorlog = \"{place}/lighttpd.log\"\n\
                     mimetype.assign = ( \".narinfo\" => \"text/x-nix-narinfo\",\n\
                     \".nar\" => \"application/x-nix-archive\", \"\" => \"text/plain\" )\n"
                );
                let file = folder.join("lighttpd.conf");
                fs::write(&file, text)?;
                Ok(format!(
                    "exec $(command -v lighttpd || echo /usr/sbin/lighttpd) -D -f '{}'",
                    file.display()
                ))
            }
            Self::Nginx => {
                // Run by root, its workers would else be nobody, who may not read everywhere.
                let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|kind| format!("{kind}_temp_path {place}/nginx-{kind};"))
                    .concat();
                let text = format!(
                    "daemon off; worker_processes {WORKERS}; {user}\n\
                     pid {place}/nginx.pid; error_log {place}/nginx.log;\n\
                     events {{ worker_connections 8192; }}\n\
                     http {{\n\
                     types {{ text/x-nix-narinfo narinfo; application/x-nix-archive nar; }}\n\
                     {temporary}\n\
                     access_log off; sendfile on; tcp_nopush on;\n\
                     open_file_cache max=200000 inactive=10m; open_file_cache_valid 10m;\n\
                     keepalive_requests 1000000000; keepalive_timeout 600s;\n\
                     server {{ listen 127.0.0.1:{port}; root \"{flat}\"; }}\n\
                     }}\n"
                );
                let file = folder.join("nginx.conf");
                fs::write(&file, text)?;
                Ok(format!(
                    "exec $(command -v nginx || echo /usr/sbin/nginx) -p '{place}' -e '{place}/nginx.log' -c '{}'",
                    file.display()
                ))
            }
        }
    }

    /// Whether it serves the flat files.
    pub fn is_flat(&self) -> bool {
        !matches!(self, Self::Command(_))
    }
}

/// The flat files of a store, made by Nix where they are not complete.
pub fn flat_files(
    store: &Path,
    compression: Option<Compression>,
    say: &mut dyn FnMut(&str),
) -> Result<PathBuf, FlatError> {
    let flat = flat_folder(store, compression);
    let hashes = database::hash_parts(store)?;
    if hashes.iter().all(|hash| flat.join(format!("{hash}.narinfo")).exists()) {
        return Ok(flat);
    }
    say(&format!("copying {} paths to flat files, by nix copy", hashes.len()));
    let from = format!("local?root={}", store.display());
    let to =
        format!("file://{}?compression={}", flat.display(), compression.map_or("none", Compression::name));
    let mut copy = Command::new("nix");
    copy.args(["--extra-experimental-features", "nix-command", "copy", "--all", "--no-check-sigs"]);
    let output =
        copy.args(["--from", &from, "--to", &to]).stdin(Stdio::null()).output().map_err(FlatError::Run)?;
    if output.status.success() {
        return Ok(flat);
    }
    Err(FlatError::Copy(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
