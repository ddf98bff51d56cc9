//! Compressed NARs: what narinfos offer, and the way from a request for one to its answer.
//!
//! A URL that was handed out keeps working. Its encoding's id stands for every byte; what was made under an id that
//! this server does not make any more is sent as long as all of it is there. After that, whoever wants all of it gets
//! it as it is made now, under a tag of its own, and whoever wants a part a 404: parts of two files must not be put
//! together.

use std::sync::Arc;

use quick_cache::unsync::Cache;

use super::connection::State;
use super::exchange::Exchange;
use super::resolve::{Desk, Question, Step, absent, unreadable};
use super::route::Route;
use super::worker::Worker;
use crate::cache::actor::{Answer, When};
use crate::cache::compress::{Compressor, Wanted};
use crate::cache::encode::{Encoding, Format};
use crate::cache::{CompressError, Stream};
use crate::formats::hash::Sha256;
use crate::http::{Version, range};
use crate::io::Io;
use crate::limits;
use crate::mailbox::Ticket;
use crate::nar::Cursor;
use crate::store::served::{File, Served};

/// How NARs are compressed. Does not change while the server runs.
#[derive(Clone, Debug)]
pub struct Compression {
    /// What narinfos offer; `None` for NARs as they are.
    pub offered: Option<Format>,
    /// What becomes of a NAR that has not been compressed yet.
    pub cold: Cold,
    /// A NAR that is asked for as it is, is encoded on the way for clients that take that.
    pub in_transport: bool,
    /// How `.nar.zst` is made.
    pub zstd: Encoding,
    /// How `.nar.xz` is made.
    pub xz: Encoding,
    /// The threads that do it.
    pub compressor: Compressor,
}

/// How a NAR is offered that has not been compressed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cold {
    /// Compressed: it is sent as it is made.
    Stream,
    /// As it is, and compressed behind for whoever comes next.
    Identity,
}

impl Compression {
    /// How files of a format are made.
    pub fn of(&self, format: Format) -> Encoding {
        match format {
            Format::Zstd => self.zstd,
            Format::Xz => self.xz,
        }
    }
}

/// SHA-256 and size of a compressed file.
type HashAndSize = (Sha256, u64);

/// What one worker remembers of compressed NARs, by the NAR's hash, in the encoding that is offered.
pub struct Memory(Cache<Sha256, Remembered>);

#[derive(Clone, Copy)]
enum Remembered {
    /// Once made, it stays what it is.
    Made(HashAndSize),
    /// It had not been made when so many NARs had been.
    AbsentAt(u64),
}

impl Default for Memory {
    fn default() -> Self {
        Self(Cache::new(limits::FILES_REMEMBERED))
    }
}

impl Memory {
    /// What is known of a file when `finished` NARs have been compressed: `None` where it must be asked for,
    /// `Some(None)` where there is none.
    fn get(&self, nar_hash: &Sha256, finished: u64) -> Option<Option<HashAndSize>> {
        match self.0.get(nar_hash)? {
            Remembered::Made(file) => Some(Some(*file)),
            Remembered::AbsentAt(then) => (*then == finished).then_some(None),
        }
    }

    /// Keeps what was answered to a question that was asked when `finished` NARs had been compressed, or later.
    fn remember(&mut self, nar_hash: Sha256, file: Option<HashAndSize>, finished: u64) {
        self.0.insert(nar_hash, file.map_or(Remembered::AbsentAt(finished), Remembered::Made));
    }
}

/// A narinfo, as it is offered now.
pub(super) fn narinfo(exchange: &mut Exchange, desk: &mut Desk<'_>, served: Arc<Served>) -> Step {
    let compression = &desk.site.compression;
    let Some(format) = compression.offered else { return offer(exchange, desk, &served, None) };
    let finished = compression.compressor.finished();
    match desk.memory.get(&served.info.nar_hash, finished) {
        Some(file) => offer(exchange, desk, &served, Some((format, file))),
        None => {
            exchange.served = Some(Arc::clone(&served));
            exchange.finished = finished;
            Step::Ask(Question::Find { served, encoding: compression.of(format).to_string(), first: None })
        }
    }
}

/// The narinfo with what is known of the compressed file.
fn offer(
    exchange: &Exchange,
    desk: &mut Desk<'_>,
    served: &Served,
    offered: Option<(Format, Option<HashAndSize>)>,
) -> Step {
    let json = matches!(exchange.route, Route::Narinfo { json: true, .. });
    let site = desk.site;
    let is_cold = offered.is_some_and(|(_, file)| file.is_none());
    let Some((format, hash_and_size)) = offered.filter(|_| !is_cold || site.compression.cold == Cold::Stream)
    else {
        let writer = desk.writer(exchange);
        return Step::Reply(match json {
            true => writer.narinfo_json(&served.nar_url, served.json(&site.store_dir)),
            false => writer.narinfo(&served.nar_url, served.narinfo.clone()),
        });
    };
    let url = url(served, site.compression.of(format));
    let file = File { url: &url, compression: format.name(), hash_and_size };
    let text = served.offering(&site.store_dir, &file, json);
    let writer = desk.writer(exchange);
    Step::Reply(if json { writer.narinfo_json(&url, text) } else { writer.narinfo(&url, text.into()) })
}

/// `nar/<NAR hash>.nar.zst?hash=<hash part>&e=<encoding id>`
fn url(served: &Served, encoding: Encoding) -> String {
    let (digits, path) = (served.info.nar_hash.to_base32(), served.info.path.hash());
    format!("nar/{digits}.nar.{}?hash={path}&e={encoding}", encoding.format().extension())
}

/// The tag of a compressed NAR.
fn etag(served: &Served, encoding: &str) -> String {
    format!("\"{}.{encoding}\"", served.info.nar_hash.to_base32())
}

/// A NAR is asked for as it is, by a client that takes it encoded on the way. It is the same frames; but whoever gets it so
/// cannot have a part of it.
pub(super) fn encoded(exchange: &mut Exchange, desk: &mut Desk<'_>, served: Arc<Served>) -> Step {
    let Route::Nar { path, .. } = exchange.route else { return absent(exchange, desk) };
    let (nar_hash, encoding) = (served.info.nar_hash, desk.site.compression.zstd.to_string());
    exchange.route = Route::Compressed { path, nar_hash, format: Format::Zstd, encoding };
    exchange.is_encoded = true;
    found(exchange, desk, served)
}

/// A compressed NAR is asked for, and its path is valid.
pub(super) fn found(exchange: &mut Exchange, desk: &mut Desk<'_>, served: Arc<Served>) -> Step {
    let Route::Compressed { nar_hash, encoding, .. } = &exchange.route else { return absent(exchange, desk) };
    if *nar_hash != served.info.nar_hash {
        return absent(exchange, desk);
    }
    let tag = etag(&served, encoding);
    if let Some(verdict) = exchange.verdict(&tag) {
        return Step::Reply(desk.writer(exchange).instead_of_nar(verdict, &tag));
    }
    // As for a NAR: a frame that is gone is made of the tree again.
    if exchange.lease.is_none() && !exchange.head_only() {
        return Step::Ask(Question::Root(served.info.path.clone()));
    }
    let encoding = encoding.clone();
    exchange.served = Some(Arc::clone(&served));
    // What is there is mostly sent: then one question brings where it is, too.
    let first = match &exchange.conditions {
        _ if exchange.head_only() => None,
        Some(conditions) if !exchange.is_encoded => {
            range::foresee(conditions.range.as_deref(), conditions.if_range.as_deref(), &tag)
        }
        _ => Some((0, u64::MAX)),
    };
    Step::Ask(Question::Find { served, encoding, first })
}

/// The cache's actor has answered.
pub(super) fn answered(exchange: &mut Exchange, desk: &mut Desk<'_>, answer: Answer) -> Step {
    let Some(served) = exchange.served.take() else { return absent(exchange, desk) };
    if let Route::Narinfo { .. } = exchange.route {
        let Answer::Found(stream) = answer else { return absent(exchange, desk) };
        let file = stream.as_ref().and_then(Stream::manifest);
        let file = file.map(|manifest| (manifest.file_hash(), manifest.file_size()));
        desk.memory.remember(served.info.nar_hash, file, exchange.finished);
        let offered = desk.site.compression.offered.map(|format| (format, file));
        return offer(exchange, desk, &served, offered);
    }
    match answer {
        Answer::Found(Some(stream)) => {
            if !exchange.is_look {
                desk.metrics.compressed_hit();
            }
            send(exchange, desk, &served, stream)
        }
        Answer::Opened(Ok(stream)) => send(exchange, desk, &served, stream),
        Answer::Found(None) => missing(exchange, desk, served),
        Answer::Opened(Err(CompressError::Nar(error))) => unreadable(exchange, desk, &error),
        // Without frames there are no parts.
        Answer::Opened(Err(CompressError::NoCache)) if exchange.wants_range() => absent(exchange, desk),
        Answer::Opened(Err(error)) => {
            desk.faults.tell(desk.now, "a NAR cannot be compressed", &error);
            Step::Reply(desk.writer(exchange).unavailable(true))
        }
        // The worker gives these to the transfer.
        Answer::Fetched { .. } => absent(exchange, desk),
    }
}

fn send(exchange: &mut Exchange, desk: &mut Desk<'_>, served: &Served, stream: Stream) -> Step {
    let (lease, conditions) = (exchange.lease.take(), exchange.conditions.take());
    let Route::Compressed { format, encoding, .. } = &exchange.route else { return absent(exchange, desk) };
    let (tag, format) = (etag(served, encoding), *format);
    if exchange.is_encoded {
        return Step::Reply(desk.writer(exchange).encoded_nar(&tag, stream, lease));
    }
    Step::Reply(desk.writer(exchange).compressed(&tag, format, conditions.as_deref(), stream, lease))
}

/// It was not made before, or is gone.
fn missing(exchange: &mut Exchange, desk: &mut Desk<'_>, served: Arc<Served>) -> Step {
    let wants_range = exchange.wants_range();
    let Route::Compressed { format, encoding, .. } = &mut exchange.route else {
        return absent(exchange, desk);
    };
    let current = desk.site.compression.of(*format).to_string();
    if *encoding == current {
        if !exchange.is_look {
            desk.metrics.compressed_miss();
        }
        exchange.served = Some(Arc::clone(&served));
        return Step::Ask(Question::Open(served));
    }
    if wants_range {
        return absent(exchange, desk);
    }
    *encoding = current;
    found(exchange, desk, served)
}

/// The NAR that is to be compressed has been planned.
pub(super) fn planned(exchange: &mut Exchange, desk: &mut Desk<'_>, nar: Cursor) -> Step {
    let Route::Compressed { format, .. } = exchange.route else { return absent(exchange, desk) };
    let Some(served) = &exchange.served else { return absent(exchange, desk) };
    let (path, nar_hash) = (served.info.path.clone(), served.info.nar_hash);
    // A part of what has no length yet cannot be told: where it begins in the NAR is known only when all before it is
    // compressed, and the head has to say where it ends. The NAR is read and compressed once, for all who ask. And a client of HTTP/1.0 would have the end of the connection for
    // the end of the file, which over a unix socket looks the same where it was broken off.
    // Without a cache, each client's is made for it alone: no part can be had, and a HEAD is answered as its GET is.
    let is_kept = desk.site.compression.compressor.cache().is_some();
    let wants_length = exchange.wants_range() || (exchange.head_only() && is_kept);
    let needs_length = (wants_length && !exchange.is_encoded) || exchange.version == Version::H10;
    let when = if needs_length { When::Done } else { When::Begun };
    let encoding = desk.site.compression.of(format);
    let by = exchange.interest.insert(Arc::default());
    let by = Some(Arc::downgrade(by));
    Step::Ask(Question::Compress { wanted: Wanted { path, nar_hash, nar, encoding, by }, when })
}

/// Whether a NAR is going to be sent as it is.
fn is_sent_plain(exchange: &Exchange) -> bool {
    matches!(exchange.route, Route::Nar { .. }) && !exchange.head_only()
}

/// What is to be compressed for whoever comes next when a NAR is sent as it is.
fn behind(compression: &Compression, exchange: &Exchange, nar: &Cursor) -> Option<Wanted> {
    let format = compression.offered.filter(|_| compression.cold == Cold::Identity)?;
    let served = exchange.served.as_ref().filter(|_| is_sent_plain(exchange))?;
    let (path, nar_hash) = (served.info.path.clone(), served.info.nar_hash);
    let encoding = compression.of(format);
    Some(Wanted { path, nar_hash, nar: nar.clone(), encoding, by: None })
}

impl<I: Io> Worker<I> {
    /// Has the pack made of a NAR that is going to be sent as it is.
    pub(super) fn have_packed(&mut self, ticket: Ticket, nar: &Cursor) {
        let Some(seat) = self.seats.get_mut(ticket.slot as usize) else { return };
        if let State::Asking(serial, exchange) = &seat.connection.state
            && *serial == ticket.serial
            && is_sent_plain(exchange)
            && let Some(served) = &exchange.served
        {
            self.rooms.have_packed(served, nar, self.io.now());
        }
    }

    /// Has a NAR compressed that is going to be sent as it is, where that is how it is done.
    pub(super) fn have_compressed(&mut self, ticket: Ticket, nar: &Cursor) {
        let Some(seat) = self.seats.get_mut(ticket.slot as usize) else { return };
        if let State::Asking(serial, exchange) = &seat.connection.state
            && *serial == ticket.serial
            && let Some(wanted) = behind(&self.site.compression, exchange, nar)
        {
            self.rooms.have_compressed(wanted);
        }
    }
}
