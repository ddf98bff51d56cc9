//! From a request to its answer, one step at a time: each step ends in a reply or in a question to one
//! actor, and goes on when that has answered. Nothing here waits, sends or keeps anything.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustix::io::Errno;

use super::answer::{Document, Reply, Writer};
use super::compressed::{self, Memory};
use super::exchange::Exchange;
use super::faults::Faults;
use super::route::{LogName, Route};
use super::transfer::Source;
use super::{Site, VERSION, document, pages};
use crate::cache::actor::{self as cache, When};
use crate::cache::compress::Wanted;
use crate::formats::hash::Sha256;
use crate::formats::realisation::OutputId;
use crate::formats::store_path::{StorePath, StorePathHash};
use crate::http::date::DATE_LEN;
use crate::http::{Method, Status, Version};
use crate::metrics;
use crate::metrics::{Route as Label, WorkerMetrics};
use crate::nar::actor as nar;
use crate::nar::{NarError, Segment};
use crate::store::actor::Info;
use crate::store::browse::Search;
use crate::store::debuginfo::BuildId;
use crate::store::logs::{LogBody, LogError, LogReader};
use crate::store::serve::{ServeAnswer, ServeError, Walk};
use crate::store::served::Served;
use crate::store::view::{Find, View};
use crate::store::{browse, files, logs};

/// What a step knows besides the request.
pub struct Desk<'d> {
    /// What does not change while the server runs.
    pub site: &'d Site,
    /// The public keys of those that sign, as clients list them.
    pub public_keys: &'d [String],
    /// The worker's view of the store; fresh where the route needs it.
    pub view: &'d mut View,
    /// Where the head of the answer is written.
    pub head: &'d mut Vec<u8>,
    /// The time, for the Date field.
    pub date: &'d [u8; DATE_LEN],
    /// What the worker remembers of compressed NARs.
    pub memory: &'d mut Memory,
    /// The worker's counters.
    pub metrics: &'d WorkerMetrics,
    /// What the operator is told.
    pub faults: &'d mut Faults,
    /// The time, as this turn sees it.
    pub now: Instant,
    /// The day, counted from 1970, where what is asked for is kept.
    pub day: Option<u32>,
    /// Paths that were asked for, for the first time that day.
    pub asked: &'d mut Vec<Arc<Served>>,
}

/// What a request was waiting for.
#[derive(Debug)]
pub enum Arrival {
    /// Nothing: it has just come, or the view has become fresh.
    Asked,
    /// An actor cannot answer, or not in time.
    Unavailable,
    /// What the database has on the path.
    Info(Info),
    /// A document from the database.
    Document(Option<Bytes>),
    /// The derivation whose log is asked for.
    Deriver(Option<StorePath>),
    /// A plan, or what is made of one.
    Nar(nar::Answer),
    /// A compressed NAR.
    Cache(cache::Answer),
    /// What people look at.
    Browse(browse::Answer),
    /// A file.
    Files(files::Answer),
}

/// What follows.
#[derive(Debug)]
pub enum Step {
    /// The answer: its head has been written.
    Reply(Reply),
    /// A question to an actor.
    Ask(Question),
}

/// A question to an actor, without the ticket.
#[derive(Debug)]
pub enum Question {
    /// What the database has on a path.
    Info(StorePathHash),
    /// A signed realisation.
    Realisation(OutputId),
    /// The derivation that a hash part names, or that made the path it names.
    Deriver(StorePathHash),
    /// A temporary root.
    Root(StorePath),
    /// The plan of a path's NAR.
    Open(Arc<Served>),
    /// A path's listing.
    Listing(Arc<Served>),
    /// The size of a NAR whose size the database does not have.
    Measure {
        /// The path.
        path: StorePath,
        /// What its NAR must hash to.
        nar_hash: Sha256,
    },
    /// A compressed NAR that was made before.
    Find {
        /// The path.
        served: Arc<Served>,
        /// The id of the encoding.
        encoding: String,
        /// Of which bytes the first frames are wanted with the answer.
        first: Option<(u64, u64)>,
    },
    /// A compressed NAR that is to be made.
    Compress {
        /// Of what, and how.
        wanted: Wanted,
        /// When to answer.
        when: When,
    },
    /// How large the store is, and what it is asked.
    Overview,
    /// Which paths have a name.
    Search(Search),
    /// What hangs together with a path.
    About(Arc<Served>),
    /// A build log.
    Log {
        /// Which one.
        name: logs::LogName,
        /// Encoded, where it is large.
        encoded: bool,
    },
    /// The length of a packed one.
    LogLength(LogReader),
    /// A document that is to be encoded.
    Encode(Bytes),
    /// A file of a store path.
    Serve(Walk),
    /// Where the debug information of a build id is.
    DebugInfo(BuildId),
}

/// Goes on with a request.
pub fn step(exchange: &mut Exchange, arrival: Arrival, desk: &mut Desk<'_>) -> Step {
    if exchange.method == Method::Other {
        return Step::Reply(desk.writer(exchange).method_not_allowed());
    }
    match arrival {
        Arrival::Asked => begin(exchange, desk),
        Arrival::Unavailable if exchange.document.is_some() => document::encoded(exchange, desk, None),
        // What is in memory is told all the same.
        Arrival::Unavailable if exchange.route == Route::Landing => landing(exchange, desk, None),
        Arrival::Unavailable => unavailable(exchange, desk),
        Arrival::Info(Info::Absent) => absent(exchange, desk),
        Arrival::Info(Info::Served(served)) => found(exchange, desk, served),
        Arrival::Info(Info::Unsized { path, nar_hash }) => Step::Ask(Question::Measure { path, nar_hash }),
        Arrival::Document(None) => absent(exchange, desk),
        Arrival::Document(Some(body)) => {
            Step::Reply(desk.writer(exchange).document("application/json", &[], body))
        }
        Arrival::Deriver(drv) => log_of(exchange, desk, drv),
        Arrival::Nar(nar::Answer::Opened(Ok(nar))) if matches!(exchange.route, Route::Compressed { .. }) => {
            compressed::planned(exchange, desk, nar)
        }
        Arrival::Nar(answer) => planned(exchange, desk, answer),
        Arrival::Cache(answer) => compressed::answered(exchange, desk, answer),
        Arrival::Browse(answer) => browsed(exchange, desk, answer),
        Arrival::Files(answer) => filed(exchange, desk, answer),
    }
}

/// A request that depends on nothing yet.
fn begin(exchange: &mut Exchange, desk: &mut Desk<'_>) -> Step {
    match &exchange.route {
        Route::Narinfo { path, .. }
        | Route::Nar { path, .. }
        | Route::Compressed { path, .. }
        | Route::Serve { path, .. }
        | Route::Path(path)
        | Route::Listing(path) => {
            let path = *path;
            look_up(exchange, desk, path)
        }
        Route::Log(LogName::Path(drv)) if drv.is_derivation() => {
            let name = logs::LogName::Derivation(drv.clone());
            log(exchange, desk, name)
        }
        Route::Log(LogName::Path(output)) => Step::Ask(Question::Deriver(output.hash())),
        Route::Log(LogName::Hash(hash)) => Step::Ask(Question::Deriver(*hash)),
        Route::Realisation(id) => Step::Ask(Question::Realisation(id.clone())),
        Route::DebugInfo(id) => Step::Ask(Question::DebugInfo(*id)),
        Route::Landing => Step::Ask(Question::Overview),
        Route::Search(search) if search.words.trim().is_empty() => {
            let page = pages::found(search, None);
            document::send(exchange, desk, Document::page(page))
        }
        Route::Search(search) => Step::Ask(Question::Search(search.clone())),
        Route::CacheInfo | Route::Version | Route::Health | Route::Metrics => {
            Step::Reply(page(exchange, desk))
        }
        Route::Absent(_) => absent(exchange, desk),
    }
}

/// The answers that need no actor.
fn page(exchange: &Exchange, desk: &mut Desk<'_>) -> Reply {
    let site = desk.site;
    match exchange.route {
        Route::CacheInfo => {
            desk.writer(exchange).document("text/x-nix-cache-info", &[], site.cache_info.clone())
        }
        Route::Version => {
            desk.writer(exchange).document("text/plain", &[], Bytes::from_static(VERSION.as_bytes()))
        }
        Route::Health => desk.writer(exchange).document("text/plain", &[], Bytes::from_static(b"OK\n")),
        _ => {
            let text = site.metrics.render();
            desk.writer(exchange).document(metrics::CONTENT_TYPE, &[], text.into())
        }
    }
}

/// The landing page, with what the actor knows where it has answered.
fn landing(exchange: &mut Exchange, desk: &mut Desk<'_>, overview: Option<&browse::Overview>) -> Step {
    let page = pages::landing(desk.site, exchange, desk.public_keys, desk.view.snapshot(), overview);
    document::send(exchange, desk, Document::page(page))
}

/// A page for people, now that its actor has answered.
fn browsed(exchange: &mut Exchange, desk: &mut Desk<'_>, answer: browse::Answer) -> Step {
    let page = match (answer, &exchange.route, &exchange.served) {
        (browse::Answer::Overview(overview), _, _) => return landing(exchange, desk, Some(&overview)),
        (browse::Answer::Found(found), Route::Search(search), _) => pages::found(search, Some(&found)),
        (browse::Answer::About(Some(about)), _, Some(served)) => {
            pages::path(desk.site, exchange, desk.public_keys, served, &about)
        }
        _ => return absent(exchange, desk),
    };
    document::send(exchange, desk, Document::page(page))
}

/// Goes on with what the view knows of a path.
fn look_up(exchange: &mut Exchange, desk: &mut Desk<'_>, path: StorePathHash) -> Step {
    match desk.view.find(&path) {
        Find::Absent => absent(exchange, desk),
        Find::Served(served) => found(exchange, desk, served),
        Find::Ask => Step::Ask(Question::Info(path)),
    }
}

/// Nothing valid is there.
pub(super) fn absent(exchange: &Exchange, desk: &mut Desk<'_>) -> Step {
    if matches!(exchange.route, Route::Narinfo { .. }) {
        desk.metrics.narinfo_miss();
    }
    if let Route::Path(_) | Route::Absent(Label::Path) = exchange.route {
        return Step::Reply(desk.writer(exchange).absent_page(crate::web::absent_path()));
    }
    Step::Reply(desk.writer(exchange).absent())
}

/// The path is valid.
fn found(exchange: &mut Exchange, desk: &mut Desk<'_>, served: Arc<Served>) -> Step {
    if let Some(day) = desk.day
        && exchange.route.is_fetch()
        && !exchange.is_look
        && served.is_first_on(day)
    {
        desk.asked.push(Arc::clone(&served));
    }
    match &exchange.route {
        Route::Narinfo { .. } => {
            desk.metrics.narinfo_hit();
            compressed::narinfo(exchange, desk, served)
        }
        Route::Compressed { .. } => compressed::found(exchange, desk, served),
        Route::Nar { nar_hash, .. } => {
            if nar_hash.is_some_and(|hash| hash != served.info.nar_hash) {
                return absent(exchange, desk);
            }
            exchange.varies = desk.site.compression.in_transport;
            if exchange.is_to_be_encoded() {
                return compressed::encoded(exchange, desk, served);
            }
            let etag = &served.nar_etag;
            if let Some(verdict) = exchange.verdict(etag) {
                return Step::Reply(desk.writer(exchange).instead_of_nar(verdict, etag));
            }
            // Only what is sent must be kept from the collector; and the root first, so that the validity
            // found afterwards is one that lasts.
            if exchange.lease.is_none() && !exchange.head_only() {
                return Step::Ask(Question::Root(served.info.path.clone()));
            }
            exchange.served = Some(Arc::clone(&served));
            Step::Ask(Question::Open(served))
        }
        Route::Listing(_) => Step::Ask(Question::Listing(served)),
        Route::Path(_) => {
            exchange.served = Some(Arc::clone(&served));
            Step::Ask(Question::About(served))
        }
        Route::Serve { inner, .. } => {
            let walk = match exchange.walk.take().map(|walk| *walk) {
                // Another path with the same hash part is not the one that the link names.
                Some((path, _)) if path != served.info.path => None,
                Some((path, mut walk)) => {
                    walk.confirmed(path);
                    // What is found now depends on two paths, and no tag says that.
                    exchange.served = None;
                    Some(walk)
                }
                None => {
                    let path = served.info.path.clone();
                    exchange.served = Some(served);
                    Walk::new(&desk.site.store_dir, path, inner)
                }
            };
            walk.map_or_else(|| absent(exchange, desk), |walk| Step::Ask(Question::Serve(walk)))
        }
        Route::DebugInfo(id) => {
            let json = serde_json::json!({
                "archive": format!("../{}", served.nar_url),
                "member": id.member(),
            });
            Step::Reply(desk.writer(exchange).document("application/json", &[], json.to_string().into()))
        }
        _ => absent(exchange, desk),
    }
}

/// The NAR actors have answered.
fn planned(exchange: &mut Exchange, desk: &mut Desk<'_>, answer: nar::Answer) -> Step {
    let failed = match answer {
        nar::Answer::Opened(Ok(cursor)) => match exchange.served.take() {
            Some(served) => {
                let lease = exchange.lease.take();
                let conditions = exchange.conditions.take();
                let writer = desk.writer(exchange);
                return Step::Reply(writer.nar(&served, conditions.as_deref(), cursor, lease));
            }
            None => return absent(exchange, desk),
        },
        nar::Answer::Listing(Ok(listing)) => {
            return document::send(exchange, desk, Document::listing(listing));
        }
        // The worker has told the store already.
        nar::Answer::Hashed(Ok(measured)) => return Step::Ask(Question::Info(measured.path)),
        nar::Answer::Opened(Err(error))
        | nar::Answer::Listing(Err(error))
        | nar::Answer::Hashed(Err(error)) => error,
        // The worker gives these to the transfer.
        nar::Answer::Fetched { .. } | nar::Answer::Read(_) => return absent(exchange, desk),
    };
    unreadable(exchange, desk, &failed)
}

/// A valid path whose NAR cannot be had.
pub(super) fn unreadable(exchange: &Exchange, desk: &mut Desk<'_>, error: &NarError) -> Step {
    // It is quarantined, and that is told once.
    if error.is_damage() {
        return absent(exchange, desk);
    }
    damaged(exchange, desk, "a valid path cannot be served", error)
}

/// Something valid that cannot be sent. The client gets a 404 and goes to its next substituter, where a 5xx
/// would have it try here again; that it should where the cause passes. The operator reads what is wrong.
fn damaged(exchange: &Exchange, desk: &mut Desk<'_>, what: &str, error: &impl Failure) -> Step {
    desk.faults.tell(desk.now, what, error);
    if error.passes() { unavailable(exchange, desk) } else { absent(exchange, desk) }
}

/// It cannot be answered now.
fn unavailable(exchange: &Exchange, desk: &mut Desk<'_>) -> Step {
    let resumable = matches!(exchange.route, Route::Nar { .. } | Route::Compressed { .. });
    Step::Reply(desk.writer(exchange).unavailable(resumable))
}

/// Why something valid cannot be sent.
pub(super) trait Failure: Error + Sized + 'static {
    /// Whether it says nothing of the path, so that the next request may have it.
    fn passes(&self) -> bool;
}

impl Failure for NarError {
    fn passes(&self) -> bool {
        match self {
            Self::Unreadable { errno, .. } => is_shortage(*errno),
            Self::Busy { .. } => true,
            Self::Missing { .. } | Self::Odd { .. } | Self::Changed { .. } => false,
            Self::SizeMismatch { .. } | Self::HashMismatch { .. } => false,
            Self::Collision { .. } | Self::TooLarge { .. } => false,
        }
    }
}

impl Failure for LogError {
    fn passes(&self) -> bool {
        match self {
            Self::File { source, .. } => Errno::from_io_error(source).is_some_and(is_shortage),
            Self::Busy | Self::NoMemory { .. } => true,
            Self::Damaged { .. } | Self::TooLong { .. } => false,
        }
    }
}

impl Failure for ServeError {
    fn passes(&self) -> bool {
        Errno::from_io_error(&self.source).is_some_and(is_shortage)
    }
}

/// Whether the system lacked what it needed to look, and a moment later may have it. A disk that fails is none: it fails
/// again, and another substituter has the path.
fn is_shortage(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::MFILE
            | Errno::NFILE
            | Errno::NOMEM
            | Errno::NOBUFS
            | Errno::AGAIN
            | Errno::INTR
            | Errno::TIMEDOUT
    )
}

/// The derivation whose log was asked for by an output or by a hash part.
fn log_of(exchange: &mut Exchange, desk: &mut Desk<'_>, drv: Option<StorePath>) -> Step {
    match (drv, &exchange.route) {
        (Some(drv), _) => log(exchange, desk, logs::LogName::Derivation(drv)),
        // The derivation may be gone, and its log still there.
        (None, Route::Log(LogName::Hash(hash))) => {
            let name = logs::LogName::Hash(*hash);
            log(exchange, desk, name)
        }
        (None, _) => absent(exchange, desk),
    }
}

fn log(exchange: &mut Exchange, desk: &Desk<'_>, name: logs::LogName) -> Step {
    exchange.varies = desk.site.compression.in_transport;
    // What is encoded has no length before its end, and a client of HTTP/1.0 needs one.
    let encoded = exchange.is_to_be_encoded() && exchange.version != Version::H10;
    Step::Ask(Question::Log { name, encoded })
}

/// The file actors have answered.
fn filed(exchange: &mut Exchange, desk: &mut Desk<'_>, answer: files::Answer) -> Step {
    match answer {
        files::Answer::Log(Ok(Some(LogBody::Plain { file, len }))) => {
            Step::Reply(desk.writer(exchange).text_file(Segment::of_file(file, len)))
        }
        // A client of HTTP/1.0 would have the end of the connection for the end of the log, which over a unix socket
        // looks the same where it was broken off.
        files::Answer::Log(Ok(Some(LogBody::Packed(reader)))) if exchange.version == Version::H10 => {
            Step::Ask(Question::LogLength(reader))
        }
        files::Answer::Measured(Ok((len, reader))) => {
            Step::Reply(desk.writer(exchange).text_of_length(len, Source::Log(reader)))
        }
        files::Answer::Measured(Err(LogError::TooLong { .. })) => {
            Step::Reply(desk.writer(exchange).status(Status::VersionNotSupported, &[]))
        }
        files::Answer::Log(Ok(Some(LogBody::Packed(reader)))) => {
            let is_encoded = reader.is_encoded();
            Step::Reply(desk.writer(exchange).text_stream(Source::Log(reader), is_encoded))
        }
        files::Answer::Log(Ok(Some(LogBody::Whole(bytes)))) => {
            Step::Reply(desk.writer(exchange).text(bytes, false))
        }
        files::Answer::Log(Ok(Some(LogBody::Encoded(bytes)))) => {
            Step::Reply(desk.writer(exchange).text(bytes, true))
        }
        files::Answer::Encoded(bytes) => document::encoded(exchange, desk, bytes),
        // Many readers are no fault to tell of.
        files::Answer::Log(Err(LogError::Busy)) => unavailable(exchange, desk),
        files::Answer::Log(Err(error)) | files::Answer::Measured(Err(error)) => {
            damaged(exchange, desk, "a build log cannot be served", &error)
        }
        files::Answer::Served(Ok(found)) => walked(exchange, desk, found),
        files::Answer::Served(Err(error)) => {
            damaged(exchange, desk, "a file of the store cannot be served", &error)
        }
        files::Answer::DebugInfo(Some(path)) => look_up(exchange, desk, path.hash()),
        files::Answer::Log(Ok(None)) | files::Answer::DebugInfo(None) => absent(exchange, desk),
        // The worker gives these to the transfer.
        files::Answer::LogPart(_) => absent(exchange, desk),
    }
}

/// Where a walk to a served file has come to.
fn walked(exchange: &mut Exchange, desk: &mut Desk<'_>, found: ServeAnswer) -> Step {
    match found {
        ServeAnswer::File { file, len, media_type } => {
            let served = exchange.served.take();
            let conditions = exchange.conditions.take();
            let file = Segment::of_file(file, len);
            let writer = desk.writer(exchange);
            Step::Reply(writer.file(served.as_deref(), conditions.as_deref(), media_type, file))
        }
        ServeAnswer::Folder(folder) => {
            let page = pages::folder(exchange, &folder);
            document::send(exchange, desk, Document::folder(page))
        }
        ServeAnswer::Redirect => {
            let location = pages::with_slash(exchange);
            Step::Reply(desk.writer(exchange).redirect(&location))
        }
        ServeAnswer::Confirm { path, walk } => {
            let hash = path.hash();
            exchange.walk = Some(Box::new((path, walk)));
            look_up(exchange, desk, hash)
        }
        ServeAnswer::Absent => absent(exchange, desk),
    }
}

impl Desk<'_> {
    pub(super) fn writer(&mut self, exchange: &Exchange) -> Writer<'_> {
        Writer::new(self.head, self.date, exchange)
    }
}
