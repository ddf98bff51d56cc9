//! Documents that are made for one request: listings, and pages for people. Large ones are encoded on the way where that
//! is set, by an actor: a worker would hold up others meanwhile. They have no tag, so nothing is told apart by one; and no
//! parts, so whoever asks for one gets all of it, as it is.

use bytes::Bytes;

use super::answer::Document;
use super::exchange::Exchange;
use super::resolve::{Desk, Question, Step, absent};
use crate::limits;

/// Answers with a document, or has it encoded first.
pub(super) fn send(exchange: &mut Exchange, desk: &mut Desk<'_>, document: Document) -> Step {
    exchange.varies = desk.site.compression.in_transport && document.body.len() >= limits::ENCODED_MIN;
    if !exchange.is_to_be_encoded() {
        return Step::Reply(desk.writer(exchange).own(&document, None));
    }
    let plain = document.body.clone();
    exchange.document = Some(Box::new(document));
    Step::Ask(Question::Encode(plain))
}

/// The actor has encoded it; where it could not, it is sent as it is.
pub(super) fn encoded(exchange: &mut Exchange, desk: &mut Desk<'_>, encoded: Option<Bytes>) -> Step {
    let Some(document) = exchange.document.take() else { return absent(exchange, desk) };
    Step::Reply(desk.writer(exchange).own(&document, encoded))
}
