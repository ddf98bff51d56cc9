//! Compressing newly registered paths before anybody asks for them.
//!
//! A thread looks for rows of the Nix database above the last one that it has seen, and has their NARs compressed one
//! after another, behind all that somebody waits for. Its queue is the database itself: what is registered meanwhile
//! waits there.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::compress::{Compressor, Wanted};
use crate::cache::encode::Encoding;
use crate::limits::AHEAD_LOOK;
use crate::mailbox::{Receiver, Silence};
use crate::nar::{CASE_HACK, Cursor, NarError, Plan};
use crate::store::valid::{Inquiry, Valid};
use crate::store::{Settings, StoreError};

/// The actor that compresses ahead.
pub struct Ahead {
    inquiry: Inquiry,
    real_store: PathBuf,
    compressor: Compressor,
    encoding: Encoding,
    /// The row up to which all are compressed, or have been tried; `None` before the first look that succeeded.
    last: Option<i64>,
}

impl Ahead {
    /// Compresses what is registered in the store of `settings` from now on.
    pub fn new(settings: &Settings, compressor: Compressor, encoding: Encoding) -> Self {
        let inquiry = Inquiry::new(settings.clone());
        let real_store = settings.real_store.clone();
        let mut ahead = Self { inquiry, real_store, compressor, encoding, last: None };
        // As in `run`.
        let _ = ahead.look();
        ahead
    }

    /// Looks every [`AHEAD_LOOK`] until the sender of `life` is gone.
    pub fn run(mut self, life: &Receiver<Infallible>) {
        loop {
            // A database that is locked or cannot be read is told of where requests need it.
            let _ = self.look();
            if life.recv_timeout(AHEAD_LOOK) == Err(Silence::Closed) {
                return;
            }
        }
    }

    fn look(&mut self) -> Result<(), StoreError> {
        let newest = self.inquiry.newest()?;
        // A lower one is of another database.
        let Some(last) = self.last.filter(|last| *last <= newest) else {
            self.last = Some(newest);
            return Ok(());
        };
        for (id, valid) in self.inquiry.above(last)? {
            if let Some(valid) = valid
                && !self.compress(&valid)
            {
                return Ok(());
            }
            self.last = Some(id);
        }
        Ok(())
    }

    /// Waits until a path is compressed, or cannot be; says whether to go on.
    fn compress(&self, valid: &Valid) -> bool {
        match plan(valid, &self.real_store) {
            Ok(nar) => {
                let (path, nar_hash) = (valid.path.clone(), valid.nar_hash);
                let wanted = Wanted { path, nar_hash, nar, encoding: self.encoding, by: None };
                self.compressor.compress_to_the_end(wanted)
            }
            // Collected meanwhile, or damaged: told of when it is asked for.
            Err(error) => {
                tracing::debug!(path = %valid.path, %error, "not compressed ahead");
                true
            }
        }
    }
}

/// The NAR, which must have the registered size where the database has one.
fn plan(valid: &Valid, real_store: &Path) -> Result<Cursor, NarError> {
    let root = real_store.join(valid.path.as_str());
    let plan = Arc::new(Plan::build(&root, CASE_HACK)?);
    let (planned, registered) = (plan.size(), valid.nar_size);
    if registered != 0 && planned != registered {
        return Err(NarError::SizeMismatch { path: valid.path.clone(), planned, registered });
    }
    Ok(Cursor::new(plan, root.into()))
}
