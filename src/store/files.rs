//! The actor for file work that is not NARs: build logs, `/serve`, debuginfo.
//!
//! Its threads share one mailbox. Each request is a few opens and at most one read of a bounded piece, but for a log that
//! must be measured, and for the look at a folder, which is cheap to ask for and may have many names: of those who ask for
//! the same folder at once, the first has it looked at for all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::Settings;
use super::debuginfo::{BuildId, Catalogue};
use super::logs::{self, Decoders, Encode, LogBody, LogError, LogName, LogReader};
use super::serve::{self, Folder, ServeAnswer, ServeError, Step, Walk};
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
    looks: Looks,
    encode: Encode,
}

/// Somebody whose walk has led to a folder.
type Asker = (Ticket, Walk);

/// Who waits for what another finds in a folder, by the folder's device and inode.
type Waiting = HashMap<(u64, u64), Vec<Asker>>;

/// The folders that are being looked at.
#[derive(Clone, Default)]
struct Looks(Arc<Mutex<Waiting>>);

impl Files {
    /// An actor for the store of `settings`, with the debug symbols of `catalogue`. Documents are encoded by `encode`.
    pub fn new(settings: Settings, catalogue: Catalogue, encode: Encode) -> Self {
        Self { settings, catalogue, decoders: Decoders::default(), looks: Looks::default(), encode }
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
            Request::Serve { ticket, walk } => return self.serve(ticket, walk, outlet),
            Request::DebugInfo { ticket, build_id } => {
                (ticket, Answer::DebugInfo(self.catalogue.find(&build_id)))
            }
        };
        outlet.send(ticket, answer);
    }

    /// Answers whoever wants a file of a store path; or leaves that to the thread that looks at the same folder.
    fn serve(&self, ticket: Ticket, walk: Walk, outlet: &Outlet<Answer>) {
        let Settings { store_dir, real_store, .. } = &self.settings;
        let looked_at = match serve::resolve(store_dir, real_store, walk) {
            Ok(Step::Answer(answer)) => Err(Ok(answer)),
            Ok(Step::Look(folder, walk)) => folder.id(real_store).map(|id| (id, folder, walk)).map_err(Err),
            Err(error) => Err(Err(error)),
        };
        match looked_at {
            Err(answer) => outlet.send(ticket, Answer::Served(answer)),
            Ok((id, folder, walk)) => {
                if let Some(first) = self.looks.join(id, (ticket, walk)) {
                    self.looked(id, &folder.look(real_store), Some(first), outlet);
                }
            }
        }
    }

    /// Tells what was found in a folder, to `first` and to all who waited for it.
    fn looked(
        &self,
        id: (u64, u64),
        found: &Result<Option<Arc<Folder>>, ServeError>,
        first: Option<Asker>,
        outlet: &Outlet<Answer>,
    ) {
        let Settings { store_dir, real_store, .. } = &self.settings;
        for (ticket, walk) in first.into_iter().chain(self.looks.end(id)) {
            let answer = found.clone().and_then(|found| serve::go_on(store_dir, real_store, walk, found));
            outlet.send(ticket, Answer::Served(answer));
        }
    }
}

impl Looks {
    /// Gives `asker` back where nobody looks at this folder yet, or too many wait: it is to look itself, and to
    /// [`end`](Self::end) that.
    fn join(&self, id: (u64, u64), asker: Asker) -> Option<Asker> {
        let mut looks = self.looks();
        match looks.get_mut(&id) {
            Some(waiting) if waiting.len() < limits::WAITING_MAX => {
                waiting.push(asker);
                None
            }
            Some(_) => Some(asker),
            None => {
                looks.insert(id, Vec::new());
                Some(asker)
            }
        }
    }

    /// The folder was looked at: who waited for that.
    fn end(&self, id: (u64, u64)) -> Vec<Asker> {
        self.looks().remove(&id).unwrap_or_default()
    }

    /// Nothing panics while it is locked, and it would be whole if something did.
    fn looks(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::store_path::StoreDir;
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::mpsc;

    const BASENAME: &str = "00000000000000000000000000000000-site";

    #[test]
    fn who_asks_for_a_folder_that_is_looked_at_waits_for_that() {
        let place = tempfile::tempdir().expect("a folder");
        let real_store = place.path().join("store");
        for name in ["plain", "indexed"] {
            fs::create_dir_all(real_store.join(BASENAME).join(name)).expect("it is ours");
            fs::write(real_store.join(BASENAME).join(name).join("file"), "file").expect("it is ours");
        }
        fs::write(real_store.join(BASENAME).join("indexed/index.html"), "index").expect("it is ours");
        let settings = Settings {
            store_dir: StoreDir::new("/nix/store").expect("a store directory"),
            real_store: real_store.clone(),
            database: place.path().join("none"),
            state_dir: place.path().join("none"),
            log_dir: place.path().join("none"),
            daemon_socket: place.path().join("none"),
        };
        let (sender, answers) = mpsc::channel();
        let sender = Mutex::new(sender);
        let outlet = Outlet::new(move |ticket: Ticket, answer| {
            let sender = sender.lock().expect("no test panics while it holds this");
            let _ = sender.send((ticket.serial, answer));
        });
        let files = Files::new(settings.clone(), Catalogue::default(), |_| None);
        let ask = |serial, inner: &str| {
            let path = StorePath::from_basename(BASENAME).expect("a store path");
            let walk = Walk::new(&settings.store_dir, path, inner.as_bytes()).expect("it leads somewhere");
            let ticket = Ticket { worker: 0, slot: 0, serial };
            files.handle(Request::Serve { ticket, walk }, &outlet);
        };
        let id = |name: &str| {
            let found = fs::metadata(real_store.join(BASENAME).join(name)).expect("it is there");
            (found.dev(), found.ino())
        };
        for name in ["plain", "indexed"] {
            // As when another thread looks at it.
            files.looks.looks().insert(id(name), Vec::new());
            ask(1, &format!("/{name}/"));
            ask(2, &format!("//{name}//"));
        }
        assert!(answers.try_recv().is_err(), "they wait, and the thread is free");
        ask(3, "/plain/file");
        assert!(matches!(answers.try_recv(), Ok((3, Answer::Served(Ok(ServeAnswer::File { .. }))))));

        let found = Arc::new(Folder::default());
        files.looked(id("plain"), &Ok(Some(Arc::clone(&found))), None, &outlet);
        for serial in [1, 2] {
            match answers.try_recv() {
                Ok((at, Answer::Served(Ok(ServeAnswer::Folder(shared))))) => {
                    assert!(at == serial && Arc::ptr_eq(&shared, &found), "it is in memory once");
                }
                other => panic!("{other:?}"),
            }
        }
        let failed =
            ServeError { path: "indexed".into(), source: Arc::new(std::io::ErrorKind::Other.into()) };
        files.looked(id("indexed"), &Err(failed), None, &outlet);
        for serial in [1, 2] {
            assert!(matches!(answers.try_recv(), Ok((at, Answer::Served(Err(_)))) if at == serial));
        }

        // Nobody looks any more: the next looks itself.
        ask(4, "/plain/");
        assert!(matches!(answers.try_recv(), Ok((4, Answer::Served(Ok(ServeAnswer::Folder(_)))))));
        ask(5, "/indexed/");
        assert!(matches!(answers.try_recv(), Ok((5, Answer::Served(Ok(ServeAnswer::File { len: 5, .. }))))));
        assert!(files.looks.looks().is_empty());
    }
}
