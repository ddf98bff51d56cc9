//! The certificate and key of TLS: read at the start, on SIGHUP, and when the files change.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::thread;

use crate::causes::with_causes;
use crate::config::TlsFiles;
use crate::io::tls::{Tls, TlsError};
use crate::limits;

/// What tells one state of a file from another.
#[derive(PartialEq)]
struct State {
    device: u64,
    inode: u64,
    written: (i64, i64),
}

/// The files in use, and what is made of them.
#[derive(Clone)]
pub struct Certificates {
    files: TlsFiles,
    tls: Tls,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let tls = Tls::load(&files.certificate, &files.key)?;
        Ok(Self { files: files.clone(), tls })
    }

    /// What encrypts connections.
    pub fn tls(&self) -> Tls {
        self.tls.clone()
    }

    /// Reads the files again, and says what came of it.
    pub fn reload(&self) {
        match self.tls.reload(&self.files.certificate, &self.files.key) {
            Ok(()) => {
                tracing::info!("new connections get the certificate of {}", self.files.certificate.display());
            }
            Err(error) => {
                tracing::error!("the TLS certificate stays as it was: {}", with_causes(&error));
            }
        }
    }

    /// Reads the files again whenever one of them has changed, for as long as the process lives.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn watch(&self) -> std::io::Result<()> {
        let files = self.clone();
        let watch = move || {
            let mut known = files.state();
            loop {
                thread::sleep(limits::TLS_LOOK);
                let now = files.state();
                if now != known {
                    files.reload();
                    // Certificate and key are replaced one after the other: a pair that did not go together is
                    // looked at again when the second comes.
                    known = now;
                }
            }
        };
        thread::Builder::new().name("certificates".to_owned()).spawn(watch).map(drop)
    }

    /// Both files as they are now; links are followed, as renewals replace their targets.
    fn state(&self) -> [Option<State>; 2] {
        [&self.files.certificate, &self.files.key].map(|file| {
            let found = fs::metadata(file).ok()?;
            Some(State {
                device: found.dev(),
                inode: found.ino(),
                written: (found.mtime(), found.mtime_nsec()),
            })
        })
    }
}
