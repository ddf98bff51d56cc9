//! The response head, written straight into the connection's buffer: no allocation beyond the buffer's own.

use super::date::DATE_LEN;
use super::request::Version;
use super::status::Status;

/// Writes one response head; ends with [`Head::finish`].
///
/// ```
/// use harmonia::http::{DateCache, Head, Status, Version};
///
/// let mut out = Vec::new();
/// Head::new(&mut out, Status::Ok, DateCache::new().at(std::time::UNIX_EPOCH))
///     .header("Content-Type", "text/plain")
///     .content_length(3)
///     .finish(Version::H11, true);
/// assert_eq!(
///     out,
///     b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\n"
/// );
/// ```
#[derive(Debug)]
#[must_use = "a head without its end reads as part of the next"]
pub struct Head<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> Head<'o> {
    /// Begins a head at the end of `out`: status line and Date.
    pub fn new(out: &'o mut Vec<u8>, status: Status, date: &[u8; DATE_LEN]) -> Self {
        out.extend_from_slice(status.line().as_bytes());
        Self { out }.header("Date", date)
    }

    /// Adds one header line. Values come from this server or from a checked request: a line end in one would be
    /// a mistake here, and is dropped so that it can never begin another line.
    pub fn header(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        debug_assert!(!value.iter().any(u8::is_ascii_control), "{name}: {}", value.escape_ascii());
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        // Without an early end, so that the compiler takes many bytes at a time.
        match value.iter().fold(false, |found, byte| found | byte.is_ascii_control()) {
            false => self.out.extend_from_slice(value),
            true => self.out.extend(value.iter().filter(|byte| !byte.is_ascii_control())),
        }
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Adds a header whose value is a number.
    pub fn number(self, name: &str, value: u64) -> Self {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        decimal(self.out, value);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// The body's length in bytes; for a HEAD the length that the GET would have.
    pub fn content_length(self, length: u64) -> Self {
        self.number("Content-Length", length)
    }

    /// The body comes in chunks. Only for HTTP/1.1: an HTTP/1.0 client reads to the close instead.
    pub fn chunked(self) -> Self {
        self.header("Transfer-Encoding", "chunked")
    }

    /// `Content-Range` of a 206: `start..end` of `length` bytes.
    pub fn content_range(self, start: u64, end: u64, length: u64) -> Self {
        self.out.extend_from_slice(b"Content-Range: bytes ");
        decimal(self.out, start);
        self.out.push(b'-');
        decimal(self.out, end.saturating_sub(1));
        self.out.push(b'/');
        decimal(self.out, length);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// `Content-Range` of a 416.
    pub fn unsatisfied_range(self, length: u64) -> Self {
        self.out.extend_from_slice(b"Content-Range: bytes */");
        decimal(self.out, length);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Ends the head; says whether the connection stays where the client's version would not know.
    pub fn finish(self, version: Version, keep_alive: bool) {
        self.out.extend_from_slice(match (version, keep_alive) {
            (Version::H11, true) => b"\r\n",
            (Version::H10, true) => b"Connection: keep-alive\r\n\r\n",
            (_, false) => b"Connection: close\r\n\r\n",
        });
    }
}

/// Appends what stands before `len` bytes of a chunked body; [`CHUNK_END`] follows them. `len` is not 0: an
/// empty chunk would end the body.
pub fn begin_chunk(out: &mut Vec<u8>, len: usize) {
    debug_assert!(len > 0);
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(len >> (4 * place)) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

/// What follows each chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// What ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends a number without a detour over a `String`.
fn decimal(out: &mut Vec<u8>, mut value: u64) {
    /// The digits of `u64::MAX`.
    const MOST: usize = 20;
    let mut digits = [0; MOST];
    let mut start = MOST;
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::date::DateCache;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    fn head(
        status: Status,
        fill: impl FnOnce(Head<'_>) -> Head<'_>,
        version: Version,
        keep_alive: bool,
    ) -> String {
        let mut out = Vec::new();
        fill(Head::new(&mut out, status, DateCache::new().at(UNIX_EPOCH))).finish(version, keep_alive);
        String::from_utf8(out).expect("heads are ASCII")
    }

    #[test]
    fn heads() {
        assert_eq!(
            head(
                Status::PartialContent,
                |head| head.content_length(6).content_range(4, 10, 20),
                Version::H11,
                true
            ),
            "HTTP/1.1 206 Partial Content\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
             Content-Length: 6\r\nContent-Range: bytes 4-9/20\r\n\r\n"
        );
        let refused =
            head(Status::RangeNotSatisfiable, |head| head.unsatisfied_range(0), Version::H11, false);
        assert!(refused.contains("\r\nContent-Range: bytes */0\r\n"));
        assert!(refused.ends_with("\r\nConnection: close\r\n\r\n"));
        let old = head(Status::Ok, |head| head.chunked(), Version::H10, true);
        assert!(old.contains("\r\nTransfer-Encoding: chunked\r\n"));
        assert!(old.ends_with("\r\nConnection: keep-alive\r\n\r\n"));
    }

    #[test]
    fn a_head_fits_what_a_client_reads() {
        let text = head(Status::Ok, |head| head.number("Age", 0).header("X", b"y"), Version::H10, false);
        let mut slots = [httparse::EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut slots);
        let parsed = response.parse(text.as_bytes()).expect("is well formed");
        assert_eq!(parsed, httparse::Status::Complete(text.len()));
        assert_eq!((response.code, response.reason), (Some(200), Some("OK")));
        let names: Vec<_> = response.headers.iter().map(|header| header.name).collect();
        assert_eq!(names, ["Date", "Age", "X", "Connection"]);
    }

    #[test]
    fn a_buffer_with_room_is_not_replaced() {
        let mut out = Vec::with_capacity(512);
        let before = out.as_ptr();
        let date = *DateCache::new().at(UNIX_EPOCH);
        Head::new(&mut out, Status::Ok, &date).content_length(u64::MAX).finish(Version::H11, true);
        assert_eq!(before, out.as_ptr());
    }

    proptest! {
        #[test]
        fn numbers(value in any::<u64>(), length in 1..=usize::MAX) {
            let mut out = Vec::new();
            decimal(&mut out, value);
            prop_assert_eq!(String::from_utf8(out).expect("digits"), value.to_string());
            let mut out = Vec::new();
            begin_chunk(&mut out, length);
            prop_assert_eq!(String::from_utf8(out).expect("digits"), format!("{length:x}\r\n"));
        }
    }
}
