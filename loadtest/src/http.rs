//! The client's half of HTTP/1.1 as a state machine: bytes go in, a head and body pieces come out. No socket.
//!
//! Strict where a mistake of a server would matter to a Nix client: lengths, framing, what follows a body.

/// The longest head (status line and fields) that is taken; Nix's curl stops at 300 KiB, servers far earlier.
const HEAD_MAX: usize = 64 * 1024;
/// The longest chunk-size line, its extensions included.
const CHUNK_LINE_MAX: usize = 1024;

/// What is wrong with a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// It does not begin with `HTTP/1.x NNN`.
    #[error("malformed status line")]
    StatusLine,
    /// A field without a colon, or with a character that has no place in its name.
    #[error("malformed header")]
    Header,
    /// The head does not end within `HEAD_MAX`.
    #[error("head too long")]
    HeadTooLong,
    /// Two lengths, a length that is no number, or a length beside chunks.
    #[error("ambiguous length")]
    Length,
    /// A chunk's size or end is not as RFC 9112 has it.
    #[error("malformed chunk")]
    Chunk,
    /// The connection ended before the body did.
    #[error("body cut short")]
    CutShort,
}

/// `Content-Range: bytes first-last/total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    pub first: u64,
    pub last: u64,
    pub total: Option<u64>,
}

/// What a response's head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    /// Of the body, where the head tells it.
    pub length: Option<u64>,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    pub content_range: Option<ContentRange>,
    chunked: bool,
}

#[derive(Debug)]
enum State {
    Head,
    /// Bytes that remain of a body of known length.
    Counted(u64),
    ChunkSize,
    /// Bytes that remain of a chunk.
    ChunkData(u64),
    ChunkEnd,
    Trailer,
    /// The body ends with the connection.
    UntilClose,
    Done,
}

/// One response on its way in.
#[derive(Debug)]
pub struct Exchange {
    state: State,
    head: Option<Head>,
    /// The part of a head or of a line that has come so far.
    partial: Vec<u8>,
    to_head: bool,
    body: u64,
}

impl Exchange {
    /// The response to a GET, or (`to_head`) to a HEAD, which has no body whatever its head says.
    pub fn new(to_head: bool) -> Self {
        Self { state: State::Head, head: None, partial: Vec::new(), to_head, body: 0 }
    }

    /// The head, once it is whole.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Body bytes so far, chunk framing not counted.
    pub fn body(&self) -> u64 {
        self.body
    }

    /// Whether the response is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether any byte of it has come.
    pub fn has_begun(&self) -> bool {
        self.head.is_some() || !self.partial.is_empty()
    }

    /// How many of the bytes that come next are body and nothing else, so that they may be dropped unseen.
    pub fn droppable(&self) -> u64 {
        match self.state {
            State::Counted(remaining) => remaining,
            _ => 0,
        }
    }

    /// Counts bytes that were dropped unseen: at most [`droppable`](Self::droppable).
    pub fn dropped(&mut self, count: u64) {
        if let State::Counted(remaining) = self.state {
            let count = count.min(remaining);
            self.body += count;
            self.state = counted(remaining - count);
        }
    }

    /// Takes what has come; gives body pieces to `sink`. Returns how many bytes belonged to this response: less
    /// than all only when it is done.
    pub fn feed(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<usize, HttpError> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            at += self.step(&input[at..], sink)?;
        }
        Ok(at)
    }

    /// Takes the end of the connection.
    pub fn end(&mut self) -> Result<(), HttpError> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(HttpError::CutShort),
        }
    }

    fn step(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<usize, HttpError> {
        match self.state {
            State::Head => self.take_head(input),
            State::Counted(remaining) => {
                let (taken, remaining) = self.take_body(remaining, input, sink);
                self.state = counted(remaining);
                Ok(taken)
            }
            State::ChunkData(remaining) => {
                let (taken, remaining) = self.take_body(remaining, input, sink);
                self.state = if remaining == 0 { State::ChunkEnd } else { State::ChunkData(remaining) };
                Ok(taken)
            }
            State::UntilClose => Ok(self.take_body(u64::MAX, input, sink).0),
            State::ChunkSize => self.take_line(input, |exchange, line| {
                let size = chunk_size(line)?;
                exchange.state = if size == 0 { State::Trailer } else { State::ChunkData(size) };
                Ok(())
            }),
            State::ChunkEnd => self.take_line(input, |exchange, line| {
                exchange.state = State::ChunkSize;
                if line.is_empty() { Ok(()) } else { Err(HttpError::Chunk) }
            }),
            State::Trailer => self.take_line(input, |exchange, line| {
                exchange.state = if line.is_empty() { State::Done } else { State::Trailer };
                Ok(())
            }),
            State::Done => Ok(0),
        }
    }

    fn take_body(&mut self, remaining: u64, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> (usize, u64) {
        let taken = usize::try_from(remaining).unwrap_or(usize::MAX).min(input.len());
        sink(&input[..taken]);
        self.body += taken as u64;
        (taken, remaining - taken as u64)
    }

    /// Gathers a line that ends in CRLF.
    fn take_line(
        &mut self,
        input: &[u8],
        then: impl FnOnce(&mut Self, &[u8]) -> Result<(), HttpError>,
    ) -> Result<usize, HttpError> {
        let taken = input.iter().position(|&byte| byte == b'\n').map_or(input.len(), |at| at + 1);
        if self.partial.len() + taken > CHUNK_LINE_MAX {
            return Err(HttpError::Chunk);
        }
        self.partial.extend_from_slice(&input[..taken]);
        if self.partial.last() != Some(&b'\n') {
            return Ok(taken);
        }
        let line = std::mem::take(&mut self.partial);
        let line = line.strip_suffix(b"\r\n").ok_or(HttpError::Chunk)?;
        then(self, line)?;
        Ok(taken)
    }

    fn take_head(&mut self, input: &[u8]) -> Result<usize, HttpError> {
        let before = self.partial.len();
        let room = HEAD_MAX - before;
        self.partial.extend_from_slice(&input[..input.len().min(room)]);
        let from = before.saturating_sub(3);
        let Some(at) = self.partial[from..].windows(4).position(|four| four == b"\r\n\r\n") else {
            // Said early, so that a peer that speaks something else is not waited for.
            let opening = b"HTTP/1.";
            let known = self.partial.len().min(opening.len());
            if self.partial[..known] != opening[..known] {
                return Err(HttpError::StatusLine);
            }
            return if self.partial.len() == HEAD_MAX {
                Err(HttpError::HeadTooLong)
            } else {
                Ok(input.len())
            };
        };
        let end = from + at + 4;
        let head = parse_head(&self.partial[..end - 2])?;
        self.partial.clear();
        // 1xx: the real response follows.
        if head.status < 200 {
            return Ok(end - before);
        }
        self.state = self.body_of(&head);
        self.head = Some(head);
        Ok(end - before)
    }

    fn body_of(&self, head: &Head) -> State {
        if self.to_head || matches!(head.status, 204 | 304) {
            State::Done
        } else if head.chunked {
            State::ChunkSize
        } else if let Some(length) = head.length {
            counted(length)
        } else {
            State::UntilClose
        }
    }
}

fn counted(remaining: u64) -> State {
    if remaining == 0 { State::Done } else { State::Counted(remaining) }
}

/// `lines`: the status line and the fields, each ended by CRLF.
fn parse_head(lines: &[u8]) -> Result<Head, HttpError> {
    let mut rest = lines;
    let status_line = next_line(&mut rest).ok_or(HttpError::StatusLine)?;
    let (minor, status) = parse_status_line(status_line)?;
    let mut head = Head { status, length: None, keep_alive: minor >= 1, content_range: None, chunked: false };
    while let Some(line) = next_line(&mut rest) {
        let colon = line.iter().position(|&byte| byte == b':').ok_or(HttpError::Header)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(|&byte| byte <= b' ' || byte >= 0x7f) {
            return Err(HttpError::Header);
        }
        take_field(&mut head, name, value)?;
    }
    if !rest.is_empty() || (head.chunked && head.length.is_some()) {
        return Err(if rest.is_empty() { HttpError::Length } else { HttpError::Header });
    }
    if head.length.is_none() && !head.chunked && !matches!(status, 100..=199 | 204 | 304) {
        head.keep_alive = false;
    }
    Ok(head)
}

fn take_field(head: &mut Head, name: &[u8], value: &[u8]) -> Result<(), HttpError> {
    if name.eq_ignore_ascii_case(b"content-length") {
        let length = number(value).ok_or(HttpError::Length)?;
        if head.length.is_some_and(|other| other != length) {
            return Err(HttpError::Length);
        }
        head.length = Some(length);
    } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
        if !value.eq_ignore_ascii_case(b"chunked") || head.chunked {
            return Err(HttpError::Length);
        }
        head.chunked = true;
    } else if name.eq_ignore_ascii_case(b"connection") {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                head.keep_alive = false;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                head.keep_alive = true;
            }
        }
    } else if name.eq_ignore_ascii_case(b"content-range") {
        head.content_range = parse_content_range(value);
    }
    Ok(())
}

fn next_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}

/// `HTTP/1.1 200 OK`: the minor version and the status.
fn parse_status_line(line: &[u8]) -> Result<(u8, u16), HttpError> {
    let rest = line.strip_prefix(b"HTTP/1.").ok_or(HttpError::StatusLine)?;
    let [minor @ b'0'..=b'9', b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = rest
    else {
        return Err(HttpError::StatusLine);
    };
    if rest.first().is_some_and(|&byte| byte != b' ') {
        return Err(HttpError::StatusLine);
    }
    let digit = |byte: &u8| u16::from(byte - b'0');
    Ok((minor - b'0', digit(a) * 100 + digit(b) * 10 + digit(c)))
}

fn parse_content_range(value: &[u8]) -> Option<ContentRange> {
    let rest = value.strip_prefix(b"bytes ")?;
    let slash = rest.iter().position(|&byte| byte == b'/')?;
    let (range, total) = (&rest[..slash], &rest[slash + 1..]);
    let dash = range.iter().position(|&byte| byte == b'-')?;
    Some(ContentRange {
        first: number(&range[..dash])?,
        last: number(&range[dash + 1..])?,
        total: number(total),
    })
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn chunk_size(line: &[u8]) -> Result<u64, HttpError> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(HttpError::Chunk);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| HttpError::Chunk)?;
    u64::from_str_radix(digits, 16).map_err(|_| HttpError::Chunk)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds in pieces of these sizes, over and over; gives the body, the bytes not taken, and the exchange.
    fn read(bytes: &[u8], pieces: &[usize]) -> Result<(Vec<u8>, usize, Exchange), HttpError> {
        let mut exchange = Exchange::new(false);
        let (mut body, mut at, mut turn) = (Vec::new(), 0, 0);
        while at < bytes.len() && !exchange.is_done() {
            let piece = pieces[turn % pieces.len()].clamp(1, bytes.len() - at);
            turn += 1;
            at += exchange.feed(&bytes[at..at + piece], &mut |part| body.extend_from_slice(part))?;
        }
        Ok((body, bytes.len() - at, exchange))
    }

    fn chunked(body: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in body.chunks(size) {
            bytes.extend_from_slice(format!("{:x};a=b\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
        bytes
    }

    proptest! {
        #[test]
        fn a_counted_body_arrives_whole_in_any_pieces(
            body in proptest::collection::vec(any::<u8>(), 0..500),
            pieces in proptest::collection::vec(1usize..80, 1..8),
        ) {
            let mut bytes = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
            bytes.extend_from_slice(format!("HTTP/1.1 206 x\r\nContent-Length: {}\r\n", body.len()).as_bytes());
            bytes.extend_from_slice(b"content-range: bytes 5-9/10\r\n\r\n");
            bytes.extend_from_slice(&body);
            bytes.extend_from_slice(b"HTTP/1.1 200");
            let (read, rest, exchange) = read(&bytes, &pieces).unwrap();
            prop_assert!(exchange.is_done());
            prop_assert_eq!(read, body);
            prop_assert!(rest >= 12);
            let head = exchange.head().unwrap();
            prop_assert_eq!(head.status, 206);
            prop_assert!(head.keep_alive);
            prop_assert_eq!(head.content_range, Some(ContentRange { first: 5, last: 9, total: Some(10) }));
        }

        #[test]
        fn a_chunked_body_arrives_whole_in_any_pieces(
            body in proptest::collection::vec(any::<u8>(), 1..500),
            size in 1usize..100,
            pieces in proptest::collection::vec(1usize..80, 1..8),
        ) {
            let bytes = chunked(&body, size);
            let (read, rest, exchange) = read(&bytes, &pieces).unwrap();
            prop_assert!(exchange.is_done());
            prop_assert_eq!((read, rest), (body, 0));
        }

        #[test]
        fn what_is_cut_anywhere_is_said_to_be_cut(
            body in proptest::collection::vec(any::<u8>(), 1..100),
            at in any::<prop::sample::Index>(),
        ) {
            let bytes = chunked(&body, 7);
            let (_, _, mut exchange) = read(&bytes[..at.index(bytes.len())], &[64]).unwrap();
            prop_assert_eq!(exchange.end(), Err(HttpError::CutShort));
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, &[3]);
            let mut headed = b"HTTP/1.1 200 OK\r\n".to_vec();
            headed.extend_from_slice(&bytes);
            let _ = read(&headed, &[11]);
        }
    }

    #[test]
    fn dropping_counts_like_reading() {
        let mut exchange = Exchange::new(false);
        exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab", &mut |_| {}).unwrap();
        assert_eq!(exchange.droppable(), 8);
        exchange.dropped(8);
        assert!(exchange.is_done());
        assert_eq!(exchange.body(), 10);
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let (body, _, mut exchange) = read(b"HTTP/1.0 200 OK\r\n\r\nabc", &[5]).unwrap();
        assert_eq!(body, b"abc");
        assert!(!exchange.is_done() && !exchange.head().unwrap().keep_alive);
        assert_eq!(exchange.end(), Ok(()));
    }

    #[test]
    fn no_body_follows_a_304_or_the_answer_to_a_head() {
        let (_, rest, exchange) = read(b"HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\nabc", &[99]).unwrap();
        assert!(exchange.is_done());
        assert_eq!(rest, 3);
        let mut exchange = Exchange::new(true);
        exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &mut |_| {}).unwrap();
        assert!(exchange.is_done());
    }

    #[test]
    fn wrong_heads_are_refused_by_cause() {
        let refused = |text: &str| read(text.as_bytes(), &[7]).map(|_| ()).unwrap_err();
        assert_eq!(refused("SSH-2.0-x\r\n"), HttpError::StatusLine);
        assert_eq!(refused("HTTP/1.1 20 OK\r\n\r\n"), HttpError::StatusLine);
        assert_eq!(refused("HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), HttpError::Header);
        assert_eq!(
            refused("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            HttpError::Length
        );
        assert_eq!(refused("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n"), HttpError::Length);
        assert_eq!(
            refused("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            HttpError::Length
        );
        assert_eq!(refused("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), HttpError::Chunk);
        let long = format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(HEAD_MAX / 6));
        assert_eq!(refused(&long), HttpError::HeadTooLong);
    }
}
