//! Writing answers: status, fields and framing by the contract, into the worker's buffer.

use bytes::Bytes;

use super::exchange::{Conditions, Exchange};
use super::transfer::{Body, Framing, Source};
use crate::cache::Stream;
use crate::cache::encode::Format;
use crate::http::date::DATE_LEN;
use crate::http::{Head, Method, RangeOutcome, Status, Version, range};
use crate::limits;
use crate::nar::{Cursor, Segment};
use crate::store::roots::Lease;
use crate::store::served::Served;
use crate::web;

/// An answer whose head has been written.
#[derive(Debug)]
pub struct Reply {
    /// The status that the head says.
    pub status: Status,
    /// What follows the head.
    pub body: Body,
    /// How the peer knows where it ends.
    pub framing: Framing,
}

/// Writes the answer to one request.
pub struct Writer<'w> {
    /// Where the head goes.
    head: &'w mut Vec<u8>,
    date: &'w [u8; DATE_LEN],
    version: Version,
    keep_alive: bool,
    head_only: bool,
    /// Caches on the way are told that the answer depends on Accept-Encoding.
    varies: bool,
}

/// Header lines: names and values.
type Fields<'f> = &'f [(&'f str, &'f str)];

/// A document that is made for one request.
#[derive(Debug)]
pub struct Document {
    kind: &'static str,
    fields: Fields<'static>,
    /// As it is.
    pub body: Bytes,
}

impl Document {
    /// A page of this server's own.
    pub fn page(page: String) -> Self {
        Self { kind: web::CONTENT_TYPE, fields: PAGE, body: page.into() }
    }

    /// A page about a folder of a store path.
    pub fn folder(page: String) -> Self {
        Self { kind: web::CONTENT_TYPE, fields: &[NO_SNIFFING, SANDBOX, NO_STORE], body: page.into() }
    }

    /// The listing of a store path.
    pub fn listing(body: Bytes) -> Self {
        Self { kind: "application/json", fields: &[], body }
    }
}

/// A year, the most that RFC 9111's forebears allowed; and never to be asked for again meanwhile.
const IMMUTABLE: (&str, &str) = ("Cache-Control", "max-age=31536000, immutable");
const NO_STORE: (&str, &str) = ("Cache-Control", "no-store");
/// A path's row can change: signatures are added, and a path that was collected can come back.
const DAY: (&str, &str) = ("Cache-Control", "max-age=86400");
const RANGES: (&str, &str) = ("Accept-Ranges", "bytes");

/// Of this, none can.
const NO_RANGES: (&str, &str) = ("Accept-Ranges", "none");
const VARY: (&str, &str) = ("Vary", "Accept-Encoding");
const ZSTD: (&str, &str) = ("Content-Encoding", "zstd");
const NO_SNIFFING: (&str, &str) = ("X-Content-Type-Options", "nosniff");
/// What somebody looked for is nobody else's business.
const NO_REFERRER: (&str, &str) = ("Referrer-Policy", "no-referrer");
/// What is served from a store path was written by whoever built it: it gets no scripts and no origin.
const SANDBOX: (&str, &str) = ("Content-Security-Policy", "sandbox");

/// What comes with a page for people.
const PAGE: Fields<'static> =
    &[("Content-Security-Policy", web::CONTENT_SECURITY_POLICY), NO_SNIFFING, NO_REFERRER, NO_STORE];

/// The type of a NAR.
const NAR: (&str, &str) = ("Content-Type", "application/x-nix-archive");

/// The type of a build log. Builders print what they like; it is text to be read, not to be guessed at.
const LOG: &str = "text/plain; charset=utf-8";

const RETRY_AFTER: (&str, &str) = ("Retry-After", limits::RETRY_AFTER);

impl<'w> Writer<'w> {
    /// A writer into `head`, which is emptied.
    pub fn new(head: &'w mut Vec<u8>, date: &'w [u8; DATE_LEN], exchange: &Exchange) -> Self {
        head.clear();
        Self {
            head,
            date,
            version: exchange.version,
            keep_alive: exchange.keep_alive,
            head_only: exchange.method == Method::Head,
            varies: exchange.varies,
        }
    }

    /// The answer to bytes that are no request.
    pub fn refusal(head: &'w mut Vec<u8>, date: &'w [u8; DATE_LEN], status: Status) -> Reply {
        head.clear();
        let writer =
            Self { head, date, version: Version::H11, keep_alive: false, head_only: false, varies: false };
        writer.status(status, &[])
    }

    /// An answer that is all in memory.
    pub fn document(self, kind: &str, fields: Fields<'_>, body: Bytes) -> Reply {
        self.whole(Status::Ok, kind, fields, body)
    }

    /// An error: its body is the status phrase, and says nothing of this machine.
    pub fn status(self, status: Status, fields: Fields<'_>) -> Reply {
        self.whole(status, "text/plain", fields, Bytes::from_static(status.phrase().as_bytes()))
    }

    /// Nothing is there, for now: the next request may find something.
    pub fn absent(self) -> Reply {
        self.status(Status::NotFound, &[NO_STORE])
    }

    /// The same, for people.
    pub fn absent_page(self, page: String) -> Reply {
        self.whole(Status::NotFound, web::CONTENT_TYPE, PAGE, page.into())
    }

    /// The method is not one that a server without uploads knows.
    pub fn method_not_allowed(self) -> Reply {
        self.status(Status::MethodNotAllowed, &[("Allow", "GET, HEAD")])
    }

    /// The store cannot answer now. A NAR that is asked for again can go on where it stopped.
    pub fn unavailable(self, resumable: bool) -> Reply {
        let fields = [RETRY_AFTER, NO_STORE, RANGES];
        self.status(Status::ServiceUnavailable, if resumable { &fields } else { &fields[..2] })
    }

    /// A narinfo, as text, of a NAR at this URL.
    pub fn narinfo(self, nar_url: &str, text: Bytes) -> Reply {
        self.document("text/x-nix-narinfo", &[("Nix-Link", nar_url), DAY], text)
    }

    /// A narinfo, as JSON, of a NAR at this URL.
    pub fn narinfo_json(self, nar_url: &str, json: String) -> Reply {
        self.document("application/json", &[("Nix-Link", nar_url), DAY], json.into())
    }

    /// What the conditions had to say instead of a NAR ([`Conditions::verdict`]).
    pub fn instead_of_nar(self, verdict: Status, etag: &str) -> Reply {
        self.instead(verdict, etag, IMMUTABLE)
    }

    fn instead(self, verdict: Status, etag: &str, lasting: (&str, &str)) -> Reply {
        match verdict {
            Status::NotModified => self.not_modified(etag, lasting),
            status => self.status(status, &[]),
        }
    }

    /// The client has it already; `lasting` is what the whole would say of how long, since a cache takes it over.
    fn not_modified(self, etag: &str, lasting: (&str, &str)) -> Reply {
        let Self { head, date, version, keep_alive, varies, .. } = self;
        let mut begun =
            Head::new(head, Status::NotModified, date).header("ETag", etag).header(lasting.0, lasting.1);
        if varies {
            begun = begun.header(VARY.0, VARY.1);
        }
        begun.finish(version, keep_alive);
        Reply { status: Status::NotModified, body: Body::Empty, framing: Framing::Length(0) }
    }

    /// A NAR, or the part of it that was asked for.
    pub fn nar(
        self,
        served: &Served,
        conditions: Option<&Conditions>,
        mut cursor: Cursor,
        lease: Option<Lease>,
    ) -> Reply {
        let fields = [NAR, IMMUTABLE, VARY];
        let fields = if self.varies { &fields } else { &fields[..2] };
        let length = cursor.remaining();
        self.part(&served.nar_etag, conditions, length, fields, |start, end| {
            cursor.set_range(start, end);
            Body::Awaited(Source::Nar(cursor), lease)
        })
    }

    /// A compressed NAR. Where its length is known, or the part of it that was asked for; else all of it, in chunks.
    pub fn compressed(
        self,
        etag: &str,
        format: Format,
        conditions: Option<&Conditions>,
        mut stream: Stream,
        lease: Option<Lease>,
    ) -> Reply {
        let kind = match format {
            Format::Zstd => "application/zstd",
            Format::Xz => "application/x-xz",
        };
        let fields = [("Content-Type", kind), IMMUTABLE];
        if let Some(length) = stream.file_size() {
            return self.part(etag, conditions, length, &fields, |start, end| {
                stream.set_range(start, end);
                Body::Awaited(Source::Compressed(Box::new(stream)), lease)
            });
        }
        let ranges = if stream.is_alone() { NO_RANGES } else { RANGES };
        let fields = [fields[0], fields[1], ranges, ("ETag", etag)];
        self.stream(&fields, Source::Compressed(Box::new(stream)), lease)
    }

    /// A NAR encoded for this transfer: all of it, and no promise that a part could be had.
    pub fn encoded_nar(self, etag: &str, stream: Stream, lease: Option<Lease>) -> Reply {
        let length = stream.file_size();
        let fields = [NAR, ZSTD, VARY, IMMUTABLE, ("ETag", etag)];
        let source = Source::Compressed(Box::new(stream));
        let Some(length) = length else { return self.stream(&fields, source, lease) };
        self.known(Status::Ok, &fields, length, Body::Awaited(source, lease))
    }

    /// A file of a store path, or the part of it that was asked for. `served` is the path whose hash is its
    /// tag, where there is one.
    pub fn file(
        self,
        served: Option<&Served>,
        conditions: Option<&Conditions>,
        kind: &str,
        file: Option<Segment>,
    ) -> Reply {
        let etag = served.map_or("", |served| &served.nar_etag);
        if let Some(verdict) = conditions.and_then(|conditions| conditions.verdict(etag)) {
            return self.instead(verdict, etag, DAY);
        }
        let fields = [("Content-Type", kind), DAY, NO_SNIFFING, SANDBOX];
        let length = file.as_ref().map_or(0, Segment::len);
        self.part(etag, conditions, length, &fields, |start, end| match file {
            Some(segment) => Body::File(segment.slice(start, end)),
            None => Body::Empty,
        })
    }

    /// A document, as it is or encoded.
    pub fn own(self, document: &Document, encoded: Option<Bytes>) -> Reply {
        let fields = [document.fields, self.coding(encoded.is_some())].concat();
        self.document(document.kind, &fields, encoded.unwrap_or_else(|| document.body.clone()))
    }

    /// What is said of an answer's coding, where there are two.
    fn coding(&self, is_encoded: bool) -> Fields<'static> {
        match (is_encoded, self.varies) {
            (true, _) => &[ZSTD, VARY],
            (false, true) => &[VARY],
            (false, false) => &[],
        }
    }

    /// Another URL, relative to this one.
    pub fn redirect(self, location: &str) -> Reply {
        self.status(Status::Found, &[("Location", location)])
    }

    /// A build log that is in memory.
    pub fn text(self, bytes: Bytes, is_encoded: bool) -> Reply {
        let fields = [&[NO_SNIFFING], self.coding(is_encoded)].concat();
        self.document(LOG, &fields, bytes)
    }

    /// A whole file as text: a build log.
    pub fn text_file(self, file: Option<Segment>) -> Reply {
        let length = file.as_ref().map_or(0, Segment::len);
        let fields = [&[("Content-Type", LOG), NO_SNIFFING], self.coding(false)].concat();
        self.known(Status::Ok, &fields, length, file.map_or(Body::Empty, Body::File))
    }

    /// A build log whose length is not known before it ends.
    pub fn text_stream(self, source: Source, is_encoded: bool) -> Reply {
        let fields = [&[("Content-Type", LOG), NO_SNIFFING], self.coding(is_encoded)].concat();
        self.stream(&fields, source, None)
    }

    /// A build log of so many bytes that is decoded as it goes.
    pub fn text_of_length(self, length: u64, source: Source) -> Reply {
        self.known(Status::Ok, &[("Content-Type", LOG), NO_SNIFFING], length, Body::Awaited(source, None))
    }

    /// A body of known length.
    fn known(self, status: Status, fields: Fields<'_>, length: u64, body: Body) -> Reply {
        let Self { head, date, version, keep_alive, head_only, .. } = self;
        let mut begun = Head::new(head, status, date);
        for (name, value) in fields {
            begun = begun.header(name, value);
        }
        begun.content_length(length).finish(version, keep_alive);
        if head_only || length == 0 {
            return Reply { status, body: Body::Empty, framing: Framing::Length(0) };
        }
        Reply { status, body, framing: Framing::Length(length) }
    }

    /// A body whose length is not known before it ends.
    fn stream(self, fields: Fields<'_>, source: Source, lease: Option<Lease>) -> Reply {
        let Self { head, date, version, keep_alive, head_only, .. } = self;
        let mut begun = Head::new(head, Status::Ok, date);
        for (name, value) in fields {
            begun = begun.header(name, value);
        }
        let framing = match version {
            Version::H11 => Framing::Chunked,
            Version::H10 => Framing::ToClose,
        };
        match framing {
            Framing::Chunked => begun.chunked().finish(version, keep_alive),
            _ => begun.finish(version, false),
        }
        let body = if head_only { Body::Empty } else { Body::Awaited(source, lease) };
        Reply { status: Status::Ok, body, framing }
    }

    /// A body that never changes, of which a part may be asked for: `body` makes what lies between two
    /// offsets.
    fn part(
        self,
        etag: &str,
        conditions: Option<&Conditions>,
        length: u64,
        fields: Fields<'_>,
        body: impl FnOnce(u64, u64) -> Body,
    ) -> Reply {
        let outcome = match conditions {
            Some(Conditions { range: wanted, if_range, .. }) => {
                range::resolve(wanted.as_deref(), if_range.as_deref(), etag, length)
            }
            None => RangeOutcome::Whole,
        };
        let (status, start, end) = match outcome {
            RangeOutcome::Whole => (Status::Ok, 0, length),
            RangeOutcome::Part { start, end } => (Status::PartialContent, start, end),
            RangeOutcome::Unsatisfiable => return self.unsatisfiable(length),
        };
        let Self { head, date, version, keep_alive, head_only, .. } = self;
        let mut begun = Head::new(head, status, date).header(RANGES.0, RANGES.1);
        if !etag.is_empty() {
            begun = begun.header("ETag", etag);
        }
        for (name, value) in fields {
            begun = begun.header(name, value);
        }
        if status == Status::PartialContent {
            begun = begun.content_range(start, end, length);
        }
        begun.content_length(end - start).finish(version, keep_alive);
        if head_only || start == end {
            return Reply { status, body: Body::Empty, framing: Framing::Length(0) };
        }
        Reply { status, body: body(start, end), framing: Framing::Length(end - start) }
    }

    fn unsatisfiable(self, length: u64) -> Reply {
        let status = Status::RangeNotSatisfiable;
        let Self { head, date, version, keep_alive, head_only, .. } = self;
        let phrase = status.phrase().as_bytes();
        Head::new(head, status, date)
            .header(RANGES.0, RANGES.1)
            .header("Content-Type", "text/plain")
            .unsatisfied_range(length)
            .content_length(phrase.len() as u64)
            .finish(version, keep_alive);
        small(status, head_only, Bytes::from_static(phrase))
    }

    fn whole(self, status: Status, kind: &str, fields: Fields<'_>, body: Bytes) -> Reply {
        let Self { head, date, version, keep_alive, head_only, .. } = self;
        let mut begun = Head::new(head, status, date).header("Content-Type", kind);
        for (name, value) in fields {
            begun = begun.header(name, value);
        }
        begun.content_length(body.len() as u64).finish(version, keep_alive);
        small(status, head_only, body)
    }
}

/// A reply with all of its body, or for a HEAD with none.
fn small(status: Status, head_only: bool, body: Bytes) -> Reply {
    if head_only {
        return Reply { status, body: Body::Empty, framing: Framing::Length(0) };
    }
    let framing = Framing::Length(body.len() as u64);
    Reply { status, body: Body::Bytes(body), framing }
}
