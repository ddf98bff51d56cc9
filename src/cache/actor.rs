//! What workers ask about compressed NARs: a pool of threads on one mailbox that waits for disks in their place.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::CacheError;
use super::compress::{Compressing, Compressor, Wanted};
use super::encode::Encoding;
use super::job::{CompressError, Job, Waiter};
use super::manifest::Manifest;
use super::stream::{Fetched, Stream, Tree};
use crate::formats::hash::Sha256;
use crate::mailbox::{Outlet, Receiver, Ticket};
use crate::nar::{Cursor, Segment};

/// What this room is asked.
#[derive(Debug)]
pub enum Request {
    /// Whether a NAR was compressed before. Answered by [`Answer::Found`].
    Find {
        /// Who asks.
        ticket: Ticket,
        /// The id of the encoding.
        encoding: String,
        /// The NAR's hash.
        nar_hash: Sha256,
        /// Where the path really is, should a frame have to be made again.
        root: Arc<Path>,
        /// Of which bytes, from and up to, the first frames are wanted at once, as far as they are there. Those beyond
        /// the end do not count.
        first: Option<(u64, u64)>,
    },
    /// Compress a NAR that nobody waits for. Not answered.
    Behind(Wanted),
    /// Compress a NAR. Answered by [`Answer::Opened`].
    Open {
        /// Who asks.
        ticket: Ticket,
        /// What.
        wanted: Wanted,
        /// When to answer.
        when: When,
    },
    /// What comes next of a compressed NAR. Answered by [`Answer::Fetched`].
    Fetch {
        /// Who asks.
        ticket: Ticket,
        /// From where.
        stream: Stream,
    },
}

/// When a request to compress is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once: it is sent as it is made.
    Begun,
    /// When all of it is there, so that its length is known.
    Done,
}

/// What this room answers.
#[derive(Debug)]
pub enum Answer {
    /// The whole file, if it was made before and can still be had.
    Found(Option<Stream>),
    /// The compressed NAR, from its start.
    Opened(Result<Stream, CompressError>),
    /// The stream, moved on by what was fetched.
    Fetched {
        /// The stream that was asked with.
        stream: Stream,
        /// What comes next; empty at the end.
        segments: Result<Vec<Segment>, CompressError>,
    },
}

/// One of the pool's actors.
#[derive(Clone)]
pub struct Actor {
    compressor: Compressor,
    outlet: Outlet<Answer>,
}

/// A request that waits for a job. The job may have moved on before it is put here.
enum Slot<R> {
    Empty,
    Called,
    Waits(R),
}

impl Actor {
    /// An actor whose answers go to `outlet`.
    pub fn new(compressor: Compressor, outlet: Outlet<Answer>) -> Self {
        Self { compressor, outlet }
    }

    /// The same with another compressor.
    #[cfg(test)]
    pub(super) fn with(self, compressor: Compressor) -> Self {
        Self { compressor, ..self }
    }

    /// Starts `threads` threads, called by this name, that answer what comes in `requests`; they end when all its senders are gone.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(
        &self,
        name: &'static str,
        threads: usize,
        requests: &Receiver<Request>,
    ) -> std::io::Result<Vec<JoinHandle<()>>> {
        let start = |number| {
            let (actor, requests) = (self.clone(), requests.clone());
            thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                while let Some(request) = requests.recv() {
                    actor.handle(request);
                }
            })
        };
        (0..threads).map(start).collect()
    }

    /// Answers one request. One that waits for a job is answered by the thread that moves the job on.
    pub fn handle(&self, request: Request) {
        match request {
            Request::Find { ticket, encoding, nar_hash, root, first } => {
                let mut found = self.find(&encoding, &nar_hash, root).unwrap_or_else(|error| {
                    self.compressor.cache_failed(&error);
                    None
                });
                if let (Some(stream), Some((start, end))) = (&mut found, first) {
                    stream.set_range(start, end);
                    stream.fetch_first(&self.compressor);
                }
                self.outlet.send(ticket, Answer::Found(found));
            }
            // Should it fail, that has been told where it failed.
            Request::Behind(wanted) => drop(self.compressor.compress(wanted)),
            Request::Open { ticket, wanted, when } => self.open(ticket, wanted, when),
            Request::Fetch { ticket, stream } => self.fetch(ticket, stream),
        }
    }

    fn find(&self, encoding: &str, nar_hash: &Sha256, root: Arc<Path>) -> Result<Option<Stream>, CacheError> {
        let Some(manifest) = self.compressor.find(encoding, nar_hash)? else { return Ok(None) };
        let makeable = Encoding::of_id(encoding);
        if let (None, Some(cache)) = (makeable, self.compressor.cache()) {
            // Nobody can make what is missing.
            for part in manifest.parts() {
                if !cache.has(&part.key)? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(Stream::whole(manifest, makeable, Tree::Root(root)).of(*nar_hash)))
    }

    fn open(&self, ticket: Ticket, wanted: Wanted, when: When) {
        let (nar, encoding, nar_hash) = (wanted.nar.clone(), wanted.encoding, wanted.nar_hash);
        let whole =
            move |manifest, nar: Cursor| Stream::whole(manifest, Some(encoding), nar.into()).of(nar_hash);
        let stream = match (self.compressor.compress(wanted), when) {
            (Ok(Compressing::Done(manifest)), _) => Ok(whole(manifest, nar)),
            (Ok(Compressing::Job(job)), When::Begun) => Ok(Stream::following(job, nar)),
            (Ok(Compressing::Job(job)), When::Done) => {
                let actor = self.clone();
                return await_end(&job, move |ended| {
                    let stream = ended.map(|manifest| whole(manifest, nar));
                    actor.outlet.send(ticket, Answer::Opened(stream));
                });
            }
            (Err(CompressError::NoCache | CompressError::Cache(_)), When::Begun) => {
                self.compressor.alone().map(|turn| Stream::alone(encoding, nar, turn))
            }
            (Err(error), _) => Err(error),
        };
        self.outlet.send(ticket, Answer::Opened(stream));
    }

    fn fetch(&self, ticket: Ticket, mut stream: Stream) {
        loop {
            let slot = Arc::new(Mutex::new(Slot::Empty));
            let (actor, called) = (self.clone(), Arc::clone(&slot));
            let waiter: Waiter = Box::new(move || {
                if let Slot::Waits((ticket, stream)) = swap(&called, Slot::Called) {
                    actor.fetch(ticket, stream);
                }
            });
            let segments = match stream.fetch(&self.compressor, waiter) {
                Ok(Fetched::Segments(segments)) => Ok(segments),
                Ok(Fetched::Waiting) => {
                    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Slot::Called = *slot {
                        continue;
                    }
                    *slot = Slot::Waits((ticket, stream));
                    return;
                }
                Err(error) => Err(error),
            };
            return self.outlet.send(ticket, Answer::Fetched { stream, segments });
        }
    }
}

/// Calls `then` with the end of a job, now or later.
fn await_end(job: &Arc<Job>, then: impl FnOnce(Result<Arc<Manifest>, CompressError>) + Send + 'static) {
    // Called by whoever comes first, the job or this.
    let then = Arc::new(Mutex::new(Some(then)));
    let (kept, ended) = (Arc::clone(&then), Arc::clone(job));
    let waiter = move || {
        let then = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(then), Some(ended)) = (then, ended.end(Box::new(|| ()))) {
            then(ended);
        }
    };
    if let Some(ended) = job.end(Box::new(waiter)) {
        let then = then.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(then) = then {
            then(ended);
        }
    }
}

fn swap<R>(slot: &Mutex<Slot<R>>, with: Slot<R>) -> Slot<R> {
    std::mem::replace(&mut slot.lock().unwrap_or_else(PoisonError::into_inner), with)
}
