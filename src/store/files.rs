//! The actor for file work that is not NARs: build logs, `/serve`, debuginfo.
//!
//! Its threads share one mailbox. Each request is a few opens and at most one read of a bounded piece, but for a log that
//! must be measured.

use bytes::Bytes;

use super::Settings;
use super::debuginfo::{BuildId, Catalogue};
use super::logs::{self, Decoders, Encode, LogBody, LogError, LogName, LogReader};
use super::serve::{self, ServeAnswer, ServeError, Walk};
use crate::formats::store_path::StorePath;
use crate::limits;
use crate::mailbox::{Outlet, Receiver, Ticket};

/// What the actor is asked.
#[derive(Debug)]
pub enum Request {
    /// Find a build log.
    Log {
        /// Who asks.
        ticket: Ticket,
        /// Which log.
        name: LogName,
        /// Encoded, where it is large.
        encoded: bool,
    },
    /// Decode the next piece of a packed log.
    ReadLog {
        /// Who asks.
        ticket: Ticket,
        /// As the answer before gave it.
        reader: LogReader,
    },
    /// Find the length of a packed log of which nothing was read yet.
    MeasureLog {
        /// Who asks.
        ticket: Ticket,
        /// As the answer before gave it.
        reader: LogReader,
    },
    /// Find a file inside a store path.
    Serve {
        /// Who asks.
        ticket: Ticket,
        /// Where to.
        walk: Walk,
    },
    /// Encode a document.
    Encode {
        /// Who asks.
        ticket: Ticket,
        /// The document.
        plain: Bytes,
    },
    /// Find the debug symbols of a build.
    DebugInfo {
        /// Who asks.
        ticket: Ticket,
        /// Which build.
        build_id: BuildId,
    },
}

/// What the actor answers.
#[derive(Debug)]
pub enum Answer {
    /// The log, if there is one.
    Log(Result<Option<LogBody>, LogError>),
    /// A piece of a packed log.
    LogPart(LogPart),
    /// The length of a packed log in bytes, and the reader as it was.
    Measured(Result<(u64, LogReader), LogError>),
    /// What was found inside a store path.
    Served(Result<ServeAnswer, ServeError>),
    /// The document, encoded; `None` where there is no memory for it.
    Encoded(Option<Bytes>),
    /// Which path has the debug symbols, if any; whether it is still valid, the asker knows.
    DebugInfo(Option<StorePath>),
}

/// A piece of a packed log.
#[derive(Debug)]
pub enum LogPart {
    /// Some of it, and the reader for more.
    More {
        /// Not empty.
        bytes: Bytes,
        /// For the next piece.
        reader: LogReader,
    },
    /// The last of it; may be empty.
    Last(Bytes),
    /// It cannot be read on: what was sent is not the whole log, and must not end as if it were.
    Failed(LogError),
}

/// What the threads of the actor share.
#[derive(Clone)]
pub struct Files {
    settings: Settings,
    catalogue: Catalogue,
    decoders: Decoders,
    encode: Encode,
}

impl Files {
    /// An actor for the store of `settings`, with the debug symbols of `catalogue`. Documents are encoded by `encode`.
    pub fn new(settings: Settings, catalogue: Catalogue, encode: Encode) -> Self {
        Self { settings, catalogue, decoders: Decoders::default(), encode }
    }

    /// Answers requests until every sender is gone. Several threads may run clones on one mailbox.
    pub fn run(self, mailbox: Receiver<Request>, outlet: Outlet<Answer>) {
        while let Some(request) = mailbox.recv() {
            self.handle(request, &outlet);
        }
    }

    /// Answers one request.
    pub fn handle(&self, request: Request, outlet: &Outlet<Answer>) {
        let (ticket, answer) = match request {
            Request::Log { ticket, name, encoded } => {
                let encode = encoded.then_some(self.encode);
                (ticket, Answer::Log(logs::find(&self.settings.log_dir, &name, &self.decoders, encode)))
            }
            Request::Encode { ticket, plain } => {
                (ticket, Answer::Encoded((self.encode)(&plain).map(Bytes::from)))
            }
            Request::ReadLog { ticket, reader } => (ticket, Answer::LogPart(read(reader))),
            Request::MeasureLog { ticket, reader } => (ticket, Answer::Measured(reader.measured())),
            Request::Serve { ticket, walk } => {
                let Settings { store_dir, real_store, .. } = &self.settings;
                (ticket, Answer::Served(serve::resolve(store_dir, real_store, walk)))
            }
            Request::DebugInfo { ticket, build_id } => {
                (ticket, Answer::DebugInfo(self.catalogue.find(&build_id)))
            }
        };
        outlet.send(ticket, answer);
    }
}

fn read(mut reader: LogReader) -> LogPart {
    let part = reader.read().and_then(|part| Ok((part.len(), reader.encoded(part)?)));
    match part {
        Ok((len, bytes)) if len < limits::LOG_PART => LogPart::Last(bytes),
        Ok((_, bytes)) => LogPart::More { bytes, reader },
        Err(error) => LogPart::Failed(error),
    }
}
