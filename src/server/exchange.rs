//! A request that is being answered, as far as it must outlive the bytes it came in.

use std::sync::Arc;
use std::time::Instant;

use super::answer::Document;
use super::route::Route;
use crate::cache::Interest;
use crate::formats::store_path::StorePath;
use crate::http::{Body, Method, Request, Status, Version, accepts, range};
use crate::limits;
use crate::metrics::Route as Label;
use crate::store::roots::Lease;
use crate::store::serve::Walk;
use crate::store::served::Served;

/// The parameter of a target by which a GET says that it is a look, as a HEAD is.
const LOOK: &[u8] = b"look";

/// A request that is being answered.
#[derive(Debug)]
pub struct Exchange {
    /// What is asked for.
    pub route: Route,
    /// GET, HEAD or another.
    pub method: Method,
    /// The client's version of HTTP.
    pub version: Version,
    /// Whether the connection goes on after the answer.
    pub keep_alive: bool,
    /// Nobody fetches by it: a HEAD, or a look of the doctor's at the server of its machine. It does not count as a
    /// client's asking for a path.
    pub is_look: bool,
    /// The request's own body, to be dropped after the answer.
    pub body: Body,
    /// What the answer depends on besides the route; most requests have none.
    pub conditions: Option<Box<Conditions>>,
    /// When the head was complete.
    pub started: Instant,
    /// Keeps the store path from being collected, once an actor has taken it.
    pub lease: Option<Lease>,
    /// Somebody waits for what is compressed, as long as this is held.
    pub interest: Option<Arc<Interest>>,
    /// The path, while something is made of it.
    pub served: Option<Arc<Served>>,
    /// How many NARs had been compressed when a narinfo's was asked for.
    pub finished: u64,
    /// The Host that the client named, where a page shows it.
    pub host: Option<Box<str>>,
    /// Whether that was by `https`, where a proxy has said so.
    pub is_encrypted: Option<bool>,
    /// The client takes an answer that is encoded by zstd.
    pub takes_zstd: bool,
    /// Whether it does matters to the answer: caches on the way must know.
    pub varies: bool,
    /// The answer is a NAR encoded for this transfer.
    pub is_encoded: bool,
    /// What is answered, once it is encoded.
    pub document: Option<Box<Document>>,
    /// A walk to a served file that waits to hear whether this path is valid.
    pub walk: Option<Box<(StorePath, Walk)>>,
}

/// Range and the conditions beside it, as the client sent them.
#[derive(Debug, Default)]
pub struct Conditions {
    /// Range
    pub range: Option<Vec<u8>>,
    /// If-Range
    pub if_range: Option<Vec<u8>>,
    /// If-Match
    pub if_match: Option<Vec<u8>>,
    /// If-None-Match
    pub if_none_match: Option<Vec<u8>>,
}

impl Conditions {
    /// What is answered instead of the representation with this strong tag, before Range is looked at: that the client
    /// wants another one, or has it already (RFC 9110 section 13.2.2). Where there is no tag there is nothing to compare.
    pub fn verdict(&self, etag: &str) -> Option<Status> {
        if etag.is_empty() {
            return None;
        }
        if self.if_match.as_deref().is_some_and(|tags| !range::if_match(tags, etag)) {
            return Some(Status::PreconditionFailed);
        }
        let has_it = self.if_none_match.as_deref().is_some_and(|tags| range::none_match(tags, etag));
        has_it.then_some(Status::NotModified)
    }
}

impl Exchange {
    /// The exchange that a request begins. `last` closes the connection after it.
    pub fn new(request: &Request<'_>, last: bool, now: Instant) -> Self {
        // A range is defined for GET alone (RFC 9110 section 14.2).
        let range = request.range.filter(|_| request.method == Method::Get);
        let fields = [range, request.if_range, request.if_match, request.if_none_match];
        let conditional = fields.iter().any(Option::is_some);
        let conditions = conditional.then(|| {
            Box::new(Conditions {
                range: range.map(<[u8]>::to_vec),
                if_range: request.if_range.map(<[u8]>::to_vec),
                if_match: request.if_match.map(<[u8]>::to_vec),
                if_none_match: request.if_none_match.map(<[u8]>::to_vec),
            })
        });
        let route = Route::of(&request.target);
        // No other answer depends on it.
        let takes_zstd =
            may_be_encoded(&route) && request.accept_encoding().is_some_and(|field| accepts(field, "zstd"));
        let host = match route {
            Route::Landing | Route::Path(_) => request.host.map(|host| String::from_utf8_lossy(host).into()),
            _ => None,
        };
        Self {
            route,
            host,
            is_encrypted: None,
            method: request.method,
            version: request.version,
            keep_alive: request.keep_alive && !last && droppable(request),
            is_look: request.method == Method::Head || request.target.parameter(LOOK).is_some(),
            body: request.body,
            conditions,
            started: now,
            lease: None,
            interest: None,
            served: None,
            finished: 0,
            takes_zstd,
            varies: false,
            is_encoded: false,
            document: None,
            walk: None,
        }
    }

    /// An exchange for bytes that are no request.
    pub fn unreadable(now: Instant) -> Self {
        Self {
            route: Route::Absent(Label::Other),
            host: None,
            is_encrypted: None,
            method: Method::Other,
            version: Version::H11,
            keep_alive: false,
            is_look: false,
            body: Body::None,
            conditions: None,
            started: now,
            lease: None,
            interest: None,
            served: None,
            finished: 0,
            takes_zstd: false,
            varies: false,
            is_encoded: false,
            document: None,
            walk: None,
        }
    }

    /// Whether the answer depends on the store's database.
    pub fn needs_store(&self) -> bool {
        match self.route {
            Route::Narinfo { .. } | Route::Nar { .. } | Route::Compressed { .. } => true,
            Route::Listing(_) | Route::Serve { .. } | Route::Path(_) => true,
            // It says how many paths there are.
            Route::DebugInfo(_) | Route::Landing => true,
            // Actors read these anew each time.
            Route::Log(_) | Route::Realisation(_) | Route::Search(_) => false,
            Route::CacheInfo | Route::Version | Route::Health => false,
            Route::Metrics | Route::Absent(_) => false,
        }
    }

    /// Whether the answer, of which there are two forms, is to be the encoded one. A part is always of the other.
    pub fn is_to_be_encoded(&self) -> bool {
        self.varies && self.takes_zstd && !self.wants_range()
    }

    /// Whether a part of the answer is asked for.
    pub fn wants_range(&self) -> bool {
        self.conditions.as_ref().is_some_and(|conditions| conditions.range.is_some())
    }

    /// What its conditions have answered instead of what has this tag.
    pub fn verdict(&self, etag: &str) -> Option<Status> {
        self.conditions.as_ref()?.verdict(etag)
    }

    /// Whether only the head of the answer is wanted.
    pub fn head_only(&self) -> bool {
        self.method == Method::Head
    }
}

/// Whether there can be an encoded form of the answer.
fn may_be_encoded(route: &Route) -> bool {
    match route {
        Route::Nar { .. } | Route::Listing(_) | Route::Log(_) => true,
        Route::Landing | Route::Search(_) | Route::Path(_) | Route::Serve { .. } => true,
        Route::Narinfo { .. } | Route::Compressed { .. } | Route::Realisation(_) | Route::DebugInfo(_) => {
            false
        }
        Route::CacheInfo | Route::Version | Route::Health | Route::Metrics | Route::Absent(_) => false,
    }
}

/// Whether the request's body can be read and dropped, so that the next request is found behind it. One
/// announced with Expect may never be sent, now that the final answer comes first.
fn droppable(request: &Request<'_>) -> bool {
    match request.body {
        Body::None => true,
        Body::Length(length) => !request.expect_continue && length <= limits::BODY_DISCARD_MAX,
        Body::Chunked => !request.expect_continue,
    }
}
