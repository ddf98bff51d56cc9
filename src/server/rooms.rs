//! The other actors' mailboxes, as a worker uses them.

use super::resolve::Question;
use super::transfer::Source;
use crate::cache::compress::Wanted;
use crate::cache::{actor as cache, pack};
use crate::mailbox::{Refused, Sender, Ticket};
use crate::nar::Cursor;
use crate::nar::actor as nar;
use crate::store::served::Served;
use crate::store::{actor as store, browse, files, keep, roots};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The mailboxes of the actors that workers ask.
#[derive(Clone)]
pub struct Rooms {
    /// The database.
    pub store: Sender<store::Request>,
    /// NARs.
    pub nar: Sender<nar::Request>,
    /// Packs, where they are kept.
    pub pack: Option<Sender<pack::Request>>,
    /// Compressed NARs.
    pub cache: Sender<cache::Request>,
    /// Which of them there are: a narinfo waits for that, and not behind what is being made.
    pub find: Sender<cache::Request>,
    /// What nobody waits for is compressed; in a mailbox of its own, since nothing bounds how much that is.
    pub behind: Sender<cache::Request>,
    /// Temporary roots.
    pub roots: Sender<roots::Request>,
    /// Roots of what is asked for, where it is kept.
    pub keep: Option<Sender<keep::Request>>,
    /// What people look at.
    pub browse: Sender<browse::Request>,
    /// Build logs, served files, debug information.
    pub files: Sender<files::Request>,
    /// Where the store's files really are.
    pub real_store: Arc<Path>,
}

/// An actor's mailbox is full, or it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl<M> From<Refused<M>> for Busy {
    fn from(_: Refused<M>) -> Self {
        Self
    }
}

impl Rooms {
    /// Sends a question to its actor.
    ///
    /// # Errors
    /// When the actor has too much to do.
    pub fn ask(&self, ticket: Ticket, question: Question) -> Result<(), Busy> {
        match question {
            Question::Info(hash) => self.store.try_send(store::Request::Info { ticket, hash })?,
            Question::Realisation(id) => self.store.try_send(store::Request::Realisation { ticket, id })?,
            Question::Deriver(hash) => self.store.try_send(store::Request::Deriver { ticket, hash })?,
            Question::Root(path) => self.roots.try_send(roots::Request::Take { ticket, path })?,
            Question::Open(served) => {
                let path = served.info.path.clone();
                let root = self.real_store.join(path.as_str());
                let (nar_hash, nar_size) = (served.info.nar_hash, served.info.nar_size);
                self.nar.try_send(nar::Request::Open { ticket, path, root, nar_hash, nar_size })?;
            }
            Question::Listing(served) => {
                let path = served.info.path.clone();
                let root = self.real_store.join(path.as_str());
                let (nar_hash, nar_size) = (served.info.nar_hash, served.info.nar_size);
                self.nar.try_send(nar::Request::Listing { ticket, path, root, nar_hash, nar_size })?;
            }
            Question::Measure { path, nar_hash } => {
                let root = self.real_store.join(path.as_str());
                self.nar.try_send(nar::Request::Hash { ticket, path, root, nar_hash })?;
            }
            Question::Find { served, encoding, first } => {
                let root = self.real_store.join(served.info.path.as_str()).into();
                let nar_hash = served.info.nar_hash;
                let room = if first.is_some() { &self.cache } else { &self.find };
                room.try_send(cache::Request::Find { ticket, encoding, nar_hash, root, first })?;
            }
            Question::Compress { wanted, when } => {
                self.cache.try_send(cache::Request::Open { ticket, wanted, when })?;
            }
            Question::Overview => self.browse.try_send(browse::Request::Overview { ticket })?,
            Question::Search(search) => {
                let search = Box::new(search);
                self.browse.try_send(browse::Request::Search { ticket, search })?;
            }
            Question::About(served) => self.browse.try_send(browse::Request::About { ticket, served })?,
            Question::Log { name, encoded } => {
                self.files.try_send(files::Request::Log { ticket, name, encoded })?;
            }
            Question::LogLength(reader) => {
                self.files.try_send(files::Request::MeasureLog { ticket, reader })?;
            }
            Question::Encode(plain) => self.files.try_send(files::Request::Encode { ticket, plain })?,
            Question::Serve(walk) => self.files.try_send(files::Request::Serve { ticket, walk })?,
            Question::DebugInfo(build_id) => {
                self.files.try_send(files::Request::DebugInfo { ticket, build_id })?;
            }
        }
        Ok(())
    }

    /// Tells the store the size of a NAR, for whoever asks next.
    pub fn tell_size(&self, measured: nar::Measured) {
        let nar::Measured { path: hash, nar_hash, nar_size } = measured;
        // What a full mailbox refuses is measured again.
        let _ = self.store.try_send(store::Request::Computed { hash, nar_hash, nar_size });
    }

    /// Has a pack made for a NAR that is sent without one, for whoever asks next.
    pub fn have_packed(&self, served: &Served, nar: &Cursor, asked: Instant) {
        if let Some(pack) = &self.pack
            && !nar.is_packed()
            && nar.plan().has_small_files()
        {
            // What a full mailbox refuses is asked for again with the next request.
            let (path, nar_hash) = (served.info.path.clone(), served.info.nar_hash);
            let _ = pack.try_send(pack::Request { path, nar_hash, nar: nar.clone(), asked });
        }
    }

    /// Has a path kept that was asked for.
    pub fn keep(&self, served: &Served) {
        if let Some(keep) = &self.keep
            && keep.try_send(keep::Request { path: served.info.path.clone() }).is_err()
        {
            // What a full mailbox refuses is told again with the next request.
            served.forget_day();
        }
    }

    /// Has a NAR compressed, for whoever asks next.
    pub fn have_compressed(&self, wanted: Wanted) {
        // What a full mailbox refuses is asked for again with the next request.
        let _ = self.behind.try_send(cache::Request::Behind(wanted));
    }

    /// Hands a source to its actor, to be given back with the next segments.
    ///
    /// # Errors
    /// When the actor has too much to do; the source is lost with the transfer.
    pub fn fetch(&self, ticket: Ticket, source: Source) -> Result<(), Busy> {
        match source {
            Source::Nar(cursor) => self.nar.try_send(nar::Request::Fetch { ticket, cursor })?,
            Source::Compressed(stream) => {
                self.cache.try_send(cache::Request::Fetch { ticket, stream: *stream })?;
            }
            Source::Log(reader) => self.files.try_send(files::Request::ReadLog { ticket, reader })?,
        }
        Ok(())
    }

    /// Has a range of an open file read.
    ///
    /// # Errors
    /// When the actor has too much to do.
    pub fn read(&self, ticket: Ticket, file: Arc<File>, offset: u64, len: u64) -> Result<(), Busy> {
        Ok(self.nar.try_send(nar::Request::Read { ticket, file, offset, len })?)
    }
}
