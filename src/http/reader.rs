//! Reads request heads, faster where one is like the one before.
//!
//! A client says the same in the header lines of each request: who it is, what it accepts, the server's name. So a
//! reader keeps the last few heads from the version on, byte by byte, with what they mean; where a head goes on like
//! one of them, only its target is left to be read: a fifth of the instructions. What is remembered was
//! read by [`parse`] before and is equal in every byte, so that both say the same of any bytes; a test holds them to
//! that.

use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

use super::request::{Body, Method, Parsed, Request, RequestError, Version, parse};
use super::target::Target;
use crate::limits::{HEAD_MAX, HEADS_REMEMBERED, REMEMBERED_HEAD_MAX, TARGET_MAX};

/// Reads request heads as [`parse`] does, and remembers the last few that were the same as one shortly before. Allocates
/// when it sees one for the second time.
#[derive(Debug, Default)]
pub struct HeadReader {
    known: Vec<Known>,
    /// Which one the next new head takes the place of.
    oldest: usize,
    /// Hashes of the last heads that are not known: one that has what differs each time is not worth a place.
    seen: [u64; HEADS_REMEMBERED],
    /// Which of them the next one takes the place of.
    seen_oldest: usize,
}

/// A head that was read before, but for its target.
#[derive(Debug)]
struct Known {
    /// From the version to the empty line.
    lines: Vec<u8>,
    version: Version,
    keep_alive: bool,
    body: Body,
    expect_continue: bool,
    /// Where Host is in `lines`.
    host: Option<Range<usize>>,
}

/// What a head that can be known begins with.
const GET: &[u8] = b"GET ";

impl HeadReader {
    /// Reads a request head from the beginning of `bytes`, as [`parse`] does.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn read<'b>(&mut self, bytes: &'b [u8]) -> Result<Parsed<'b>, RequestError> {
        if let Some(parsed) = self.read_known(bytes) {
            return Ok(parsed);
        }
        let parsed = parse(bytes)?;
        if let Parsed::Complete { request, len } = &parsed {
            self.remember(&bytes[..*len], request);
        }
        Ok(parsed)
    }

    /// A head whose lines are known. Whatever is out of the ordinary is left to [`parse`].
    fn read_known<'b>(&self, bytes: &'b [u8]) -> Option<Parsed<'b>> {
        let rest = bytes.strip_prefix(GET)?;
        let space = memchr::memchr(b' ', rest)?;
        let (target, lines) = (&rest[..space], &rest[space + 1..]);
        let known = self.known.iter().find(|known| lines.starts_with(&known.lines))?;
        let len = GET.len() + space + 1 + known.lines.len();
        if target.len() > TARGET_MAX || len > HEAD_MAX {
            return None;
        }
        let request = Request {
            method: Method::Get,
            target: Target::parse(target)?,
            version: known.version,
            keep_alive: known.keep_alive,
            body: known.body,
            host: known.host.clone().map(|host| &lines[host]),
            expect_continue: known.expect_continue,
            range: None,
            if_range: None,
            if_match: None,
            if_none_match: None,
            head: &bytes[..len],
        };
        Some(Parsed::Complete { request, len })
    }

    /// Whether these lines are among the last that were read and are not known; from now on they are.
    fn is_seen(&mut self, lines: &[u8]) -> bool {
        let mut hasher = DefaultHasher::new();
        hasher.write(lines);
        let hash = hasher.finish();
        // Two heads with one hash would be remembered the sooner, each as what it is.
        let is_seen = self.seen.contains(&hash);
        if !is_seen {
            self.seen[self.seen_oldest] = hash;
            self.seen_oldest = (self.seen_oldest + 1) % HEADS_REMEMBERED;
        }
        is_seen
    }

    /// Keeps a head that is read for the second time, unless it has what differs from request to request.
    fn remember(&mut self, head: &[u8], request: &Request<'_>) {
        let is_plain = request.range.is_none()
            && request.if_range.is_none()
            && request.if_match.is_none()
            && request.if_none_match.is_none();
        let Some(rest) = head.strip_prefix(GET).filter(|_| is_plain) else { return };
        let Some(space) = memchr::memchr(b' ', rest) else { return };
        let lines = &rest[space + 1..];
        if lines.len() > REMEMBERED_HEAD_MAX || !self.is_seen(lines) {
            return;
        }
        let known = Known {
            lines: lines.to_vec(),
            version: request.version,
            keep_alive: request.keep_alive,
            body: request.body,
            expect_continue: request.expect_continue,
            host: request.host.map(|host| place(lines, host)),
        };
        if self.known.len() < HEADS_REMEMBERED {
            self.known.push(known);
        } else {
            self.known[self.oldest] = known;
            self.oldest = (self.oldest + 1) % HEADS_REMEMBERED;
        }
    }
}

/// Where `part`, which is a part of `whole`, is in it.
fn place(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINES: &str =
        "HTTP/1.1\r\nHost: cache:5000\r\nUser-Agent: curl/8.14.1 Nix/2.31.2\r\nAccept: */*\r\n\r\n";

    /// Has the reader remember a head.
    fn learn(reader: &mut HeadReader, head: &str) {
        for _ in 0..2 {
            reader.read(head.as_bytes()).expect("a good head");
        }
    }

    /// Whether the last head was one that is known.
    fn is_known(reader: &HeadReader, head: &str) -> bool {
        reader.read_known(head.as_bytes()).is_some()
    }

    #[test]
    fn what_was_read_twice_is_known_with_any_target() {
        let mut reader = HeadReader::default();
        let first = format!("GET /a {LINES}");
        assert!(!is_known(&reader, &first));
        reader.read(first.as_bytes()).expect("a good head");
        assert!(
            !is_known(&reader, &first) && reader.known.capacity() == 0,
            "it may be the only one of its kind"
        );
        reader.read(first.as_bytes()).expect("a good head");
        let second = format!("GET /nar/b.nar?hash=c {LINES}GET /d HTTP/1.1\r\n");
        assert!(is_known(&reader, &second));
        let read = reader.read(second.as_bytes());
        assert_eq!(read, parse(second.as_bytes()));
        let Ok(Parsed::Complete { request, .. }) = read else { panic!("a whole head") };
        assert_eq!((request.target.path(), request.host), (&b"/nar/b.nar"[..], Some(&b"cache:5000"[..])));
    }

    #[test]
    fn what_differs_from_request_to_request_is_not_kept() {
        let mut reader = HeadReader::default();
        for line in ["Range: bytes=1-", "If-Range: \"a\"", "If-None-Match: \"a\""] {
            let head = format!("GET /a HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n");
            learn(&mut reader, &head);
            assert!(!is_known(&reader, &head), "{line}");
        }
        let head = format!("HEAD /a {LINES}");
        learn(&mut reader, &head);
        let long = format!("GET /a HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(REMEMBERED_HEAD_MAX));
        learn(&mut reader, &long);
        assert!(reader.known.is_empty());
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut reader = HeadReader::default();
        let head = |number| format!("GET /a HTTP/1.1\r\nHost: h{number}\r\n\r\n");
        for number in 0..=HEADS_REMEMBERED {
            learn(&mut reader, &head(number));
        }
        assert_eq!(reader.known.len(), HEADS_REMEMBERED);
        assert!(!is_known(&reader, &head(0)));
        assert!((1..=HEADS_REMEMBERED).all(|number| is_known(&reader, &head(number))));
    }

    /// A line that differs each time, as what proxies and tracers add, takes nobody's place.
    #[test]
    fn what_is_read_once_displaces_nothing() {
        let mut reader = HeadReader::default();
        let head = |number| format!("GET /a HTTP/1.1\r\nHost: h\r\nTrace: {number}\r\n\r\n");
        let plain = format!("GET /a {LINES}");
        learn(&mut reader, &plain);
        for number in 0..1000 {
            reader.read(head(number).as_bytes()).expect("a good head");
        }
        assert!(is_known(&reader, &plain) && reader.known.len() == 1);
        // Several that take turns are seen again before they are forgotten.
        for _ in 0..2 {
            for number in 0..HEADS_REMEMBERED {
                reader.read(head(number).as_bytes()).expect("a good head");
            }
        }
        assert!((1..HEADS_REMEMBERED).all(|number| is_known(&reader, &head(number))));
    }

    #[test]
    fn bounds_hold_for_what_is_known() {
        let mut reader = HeadReader::default();
        learn(&mut reader, &format!("GET /a {LINES}"));
        for target in [format!("/{}", "x".repeat(TARGET_MAX)), "/a#b".into(), "a".into(), "/\u{7f}".into()] {
            let head = format!("GET {target} {LINES}");
            assert_eq!(reader.read(head.as_bytes()), parse(head.as_bytes()), "{target}");
            assert!(parse(head.as_bytes()).is_err());
        }
    }

    #[test]
    fn every_byte_of_a_target_is_judged_alike() {
        let mut reader = HeadReader::default();
        learn(&mut reader, &format!("GET /a {LINES}"));
        for byte in 0..=u8::MAX {
            let head = [b"GET /", &[byte][..], b" ", LINES.as_bytes()].concat();
            assert_eq!(reader.read(&head), parse(&head), "{byte}");
        }
    }

    /// Few enough different lines that heads are seen again.
    fn head() -> impl Strategy<Value = Vec<u8>> {
        let start = "(\r\n)?(GET|GET|GET|HEAD|PUT) (/[!-~]{0,6}|http://h/x|\\*) HTTP/1\\.[0-2]\r\n";
        let line = prop_oneof![
            "Host: [ab]\r\n",
            "Host: a\r\n",
            Just("Connection: close\r\n".to_owned()),
            Just("Content-Length: 3\r\n".to_owned()),
            Just("Range: bytes=1-\r\n".to_owned()),
            "Accept-Encoding: [xy]\r\n",
        ];
        (start, proptest::collection::vec(line, 0..3), "[ -~]{0,4}", 0..4_usize).prop_map(
            |(start, lines, rest, cut)| {
                let mut bytes = format!("{start}{}\r\n{rest}", lines.concat()).into_bytes();
                // Now and then the end is missing.
                bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(2) * 3));
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn a_reader_says_what_parse_says(heads in proptest::collection::vec(head(), 1..40)) {
            let mut reader = HeadReader::default();
            for head in heads {
                prop_assert_eq!(reader.read(&head), parse(&head), "{}", head.escape_ascii());
            }
        }
    }
}
