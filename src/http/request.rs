//! The request head: bytes → [`Request`], as strict as RFC 9112 allows.
//!
//! `httparse` finds the pieces; whatever two readers of the same bytes could understand differently is
//! refused here: bare line feeds, folded lines, space before a colon, two lengths, a length beside a transfer
//! coding, codings other than exactly `chunked`. A cache behind a proxy must never be talked into reading a
//! second request where the proxy saw a body.
//!
//! - One empty line before the request line is skipped (section 2.2), a second one is refused.
//! - Targets are printable ASCII, fragments refused. Absolute-form is taken, its authority ignored.
//! - A repeated Range is no Range (the whole with 200). Of a repeated If-Match, If-None-Match or Accept-Encoding the
//!   first line counts: that can only cost bytes, or a 412. A repeated If-Range drops the Range too.

use std::mem::MaybeUninit;

use thiserror::Error;

use super::status::Status;
use super::target::Target;
use crate::limits::{HEAD_MAX, HEADERS_MAX, TARGET_MAX};

/// What is asked for; this server only reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// Any other valid method: 405.
    Other,
}

/// The client's version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: closes unless asked to keep, understands no chunks.
    H10,
    /// HTTP/1.1
    H11,
}

/// How the request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// No body; also `Content-Length: 0`.
    None,
    /// So many bytes, at least one.
    Length(u64),
    /// Chunks and trailers.
    Chunked,
}

/// A request head. Values are the bytes as sent, without the space around them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'b> {
    /// The method.
    pub method: Method,
    /// Path and query, still percent-encoded.
    pub target: Target<'b>,
    /// The client's version.
    pub version: Version,
    /// Whether the client will use the connection for another request.
    pub keep_alive: bool,
    /// The body that follows the head.
    pub body: Body,
    /// Host: the name that the client knows this server by. Empty or absent is legal in HTTP/1.0 and for targets
    /// without an authority.
    pub host: Option<&'b [u8]>,
    /// The client waits for `100 Continue` (or a final answer) before it sends the body.
    pub expect_continue: bool,
    /// Range, if sent once.
    pub range: Option<&'b [u8]>,
    /// If-Range.
    pub if_range: Option<&'b [u8]>,
    /// If-Match.
    pub if_match: Option<&'b [u8]>,
    /// If-None-Match.
    pub if_none_match: Option<&'b [u8]>,
    /// All of the head, for what few answers depend on.
    pub(super) head: &'b [u8],
}

impl<'b> Request<'b> {
    /// Accept-Encoding: the first line of it. Looked for each time, so that only those answers pay for it that depend on it.
    pub fn accept_encoding(&self) -> Option<&'b [u8]> {
        let name = b"accept-encoding:";
        let mut lines = self.head.split(|byte| *byte == b'\n').skip(1);
        let line = lines
            .find(|line| line.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name)))?;
        Some(line[name.len()..].trim_ascii())
    }
}

/// What [`parse`] made of the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<'b> {
    /// The head goes on: call again with more.
    Partial,
    /// A whole head.
    Complete {
        /// The head.
        request: Request<'b>,
        /// Its bytes: what follows is body, or the next request.
        len: usize,
    },
}

/// Why a head cannot be answered as it stands. The connection closes after the answer: where the next request
/// begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Not a method, a target and a version with one space between.
    #[error("malformed request line")]
    RequestLine,
    /// A target that is neither origin-form nor absolute-form.
    #[error("malformed request target")]
    Target,
    /// A header line that is not a token, a colon and a value; a folded line; a control character.
    #[error("malformed header line")]
    Header,
    /// A line that ends in LF without CR.
    #[error("a line feed without a carriage return")]
    BareLineFeed,
    /// HTTP/1.1 without Host, more than one Host, or one that names no host.
    #[error("missing, repeated or malformed Host")]
    Host,
    /// A Content-Length that is no number, or more than one.
    #[error("malformed or repeated Content-Length")]
    ContentLength,
    /// Transfer-Encoding with Content-Length, twice, or in HTTP/1.0.
    #[error("a Transfer-Encoding where none may be")]
    Framing,
    /// A transfer coding other than `chunked`.
    #[error("unknown transfer coding")]
    TransferCoding,
    /// An expectation other than `100-continue`.
    #[error("unknown expectation")]
    Expectation,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("unknown version of HTTP")]
    Version,
    /// A target beyond [`TARGET_MAX`].
    #[error("request target too long")]
    TargetTooLong,
    /// A head beyond [`HEAD_MAX`], or more than [`HEADERS_MAX`] lines.
    #[error("request head too large")]
    HeadTooLarge,
}

impl RequestError {
    /// The status of the answer.
    pub fn status(self) -> Status {
        match self {
            Self::RequestLine
            | Self::Target
            | Self::Header
            | Self::BareLineFeed
            | Self::Host
            | Self::ContentLength
            | Self::Framing => Status::BadRequest,
            Self::TransferCoding => Status::NotImplemented,
            Self::Expectation => Status::ExpectationFailed,
            Self::Version => Status::VersionNotSupported,
            Self::TargetTooLong => Status::UriTooLong,
            Self::HeadTooLarge => Status::HeadTooLarge,
        }
    }
}

/// Reads a request head from the beginning of `bytes`: all that arrived since the last request.
///
/// Every call starts over; with [`HEAD_MAX`] bytes at most, even a head sent byte by byte costs less than the
/// system calls that fetch it.
///
/// # Errors
/// As early as the bytes allow, so that nobody waits for the end of a head that is already refused.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, RequestError> {
    let skipped = match bytes {
        [] | [b'\r'] => return Ok(Parsed::Partial),
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    let head = &bytes[skipped..];
    // httparse would skip any number of empty lines.
    match head.first() {
        None => return Ok(Parsed::Partial),
        Some(b'\r') => return Err(RequestError::RequestLine),
        Some(b'\n') => return Err(RequestError::BareLineFeed),
        Some(_) => {}
    }
    let mut slots = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut raw = httparse::Request::new(&mut []);
    let outcome = raw.parse_with_uninit_headers(head, &mut slots);
    match outcome {
        Ok(httparse::Status::Complete(len)) => {
            refuse_bare_line_feed(&head[..len])?;
            if skipped + len > HEAD_MAX {
                return Err(RequestError::HeadTooLarge);
            }
            Ok(Parsed::Complete { request: understand(&raw, &head[..len])?, len: skipped + len })
        }
        Ok(httparse::Status::Partial) => unfinished(head, bytes.len()),
        Err(httparse::Error::Version) => unknown_version(head),
        Err(httparse::Error::TooManyHeaders) => Err(RequestError::HeadTooLarge),
        Err(error) => {
            refuse_bare_line_feed(head)?;
            match error {
                httparse::Error::Token | httparse::Error::Status => Err(RequestError::RequestLine),
                _ => Err(RequestError::Header),
            }
        }
    }
}

/// A head that has not ended: refused if it is already too long, or ends a line in LF alone.
fn unfinished(head: &[u8], received: usize) -> Result<Parsed<'_>, RequestError> {
    refuse_bare_line_feed(head)?;
    let mut words = head.splitn(3, |byte| *byte == b' ');
    if words.nth(1).is_some_and(|target| target.len() > TARGET_MAX) {
        return Err(RequestError::TargetTooLong);
    }
    if received >= HEAD_MAX {
        return Err(RequestError::HeadTooLarge);
    }
    Ok(Parsed::Partial)
}

fn refuse_bare_line_feed(head: &[u8]) -> Result<(), RequestError> {
    // Without an early end, so that the compiler takes many bytes at a time.
    let pairs = head.iter().zip(head.iter().skip(1));
    let bare = |(before, byte): (&u8, &u8)| u8::from(*byte == b'\n') & u8::from(*before != b'\r');
    let found = pairs.fold(0, |found, pair| found | bare(pair));
    if found != 0 || head.first() == Some(&b'\n') { Err(RequestError::BareLineFeed) } else { Ok(()) }
}

/// httparse refused what stands where the version should: tells another version of HTTP from nonsense.
fn unknown_version(head: &[u8]) -> Result<Parsed<'_>, RequestError> {
    let word = head.splitn(3, |byte| *byte == b' ').nth(2).unwrap_or_default();
    let pattern = b"HTTP/d.d\r";
    let fits = word.iter().zip(pattern).all(|(byte, expected)| match expected {
        b'd' => byte.is_ascii_digit(),
        _ => byte == expected,
    });
    match fits {
        true if word.len() >= pattern.len() => Err(RequestError::Version),
        // `HTTP/2` may become `HTTP/2.0`, and then the answer is another.
        true => Ok(Parsed::Partial),
        false => Err(RequestError::RequestLine),
    }
}

fn understand<'b>(raw: &httparse::Request<'_, 'b>, head: &'b [u8]) -> Result<Request<'b>, RequestError> {
    // httparse has all three of a complete head.
    let method_name = raw.method.unwrap_or_default();
    let path = raw.path.unwrap_or_default();
    let version = if raw.version == Some(1) { Version::H11 } else { Version::H10 };

    if path.len() > TARGET_MAX {
        return Err(RequestError::TargetTooLong);
    }
    let method = match method_name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        _ => Method::Other,
    };
    let target = match path {
        "*" if method_name == "OPTIONS" => Target::asterisk(),
        path => Target::parse(path.as_bytes()).ok_or(RequestError::Target)?,
    };
    let headers = Headers::collect(raw.headers);
    headers.check_host(version)?;
    Ok(Request {
        method,
        target,
        version,
        keep_alive: !headers.close && (version == Version::H11 || headers.keep_alive),
        body: headers.body(version)?,
        host: headers.host.first,
        expect_continue: headers.expects_continue(version)?,
        range: if headers.if_range.repeated { None } else { headers.range.once() },
        if_range: headers.if_range.first,
        if_match: headers.if_match.first,
        if_none_match: headers.if_none_match.first,
        head,
    })
}

/// A header's first line, and whether there was another.
#[derive(Default)]
struct Field<'b> {
    first: Option<&'b [u8]>,
    repeated: bool,
}

impl<'b> Field<'b> {
    fn add(&mut self, value: &'b [u8]) {
        match self.first {
            None => self.first = Some(value),
            Some(_) => self.repeated = true,
        }
    }

    fn once(&self) -> Option<&'b [u8]> {
        if self.repeated { None } else { self.first }
    }
}

/// The headers that mean something here.
#[derive(Default)]
struct Headers<'b> {
    host: Field<'b>,
    content_length: Field<'b>,
    transfer_encoding: Field<'b>,
    expect: Field<'b>,
    range: Field<'b>,
    if_range: Field<'b>,
    if_match: Field<'b>,
    if_none_match: Field<'b>,
    close: bool,
    keep_alive: bool,
}

impl<'b> Headers<'b> {
    fn collect(lines: &[httparse::Header<'b>]) -> Self {
        let mut headers = Self::default();
        for line in lines {
            let value = line.value.trim_ascii();
            if line.name.eq_ignore_ascii_case("connection") {
                headers.read_connection(value);
            } else if let Some(field) = headers.field(line.name) {
                field.add(value);
            }
        }
        headers
    }

    fn field(&mut self, name: &str) -> Option<&mut Field<'b>> {
        // The length tells these names apart, so that at most one is compared letter by letter.
        let (known, field) = match name.len() {
            4 => ("host", &mut self.host),
            5 => ("range", &mut self.range),
            6 => ("expect", &mut self.expect),
            8 if name.as_bytes()[3] | 0x20 == b'm' => ("if-match", &mut self.if_match),
            8 => ("if-range", &mut self.if_range),
            13 => ("if-none-match", &mut self.if_none_match),
            14 => ("content-length", &mut self.content_length),
            17 => ("transfer-encoding", &mut self.transfer_encoding),
            _ => return None,
        };
        name.eq_ignore_ascii_case(known).then_some(field)
    }

    fn read_connection(&mut self, value: &[u8]) {
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// HTTP/1.1 has exactly one Host, HTTP/1.0 at most one; an empty one is legal (RFC 9112 section 3.2).
    fn check_host(&self, version: Version) -> Result<(), RequestError> {
        match (self.host.repeated, self.host.first) {
            (false, Some(host)) if host.iter().all(|byte| OF_HOST[usize::from(*byte)]) => Ok(()),
            (false, None) if version == Version::H10 => Ok(()),
            _ => Err(RequestError::Host),
        }
    }

    fn body(&self, version: Version) -> Result<Body, RequestError> {
        let length = match (self.content_length.repeated, self.content_length.first) {
            (true, _) => return Err(RequestError::ContentLength),
            (false, None) => None,
            (false, Some(digits)) => Some(decimal(digits).ok_or(RequestError::ContentLength)?),
        };
        let Some(coding) = self.transfer_encoding.first else {
            return Ok(length.filter(|length| *length > 0).map_or(Body::None, Body::Length));
        };
        if length.is_some() || self.transfer_encoding.repeated || version == Version::H10 {
            return Err(RequestError::Framing);
        }
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(RequestError::TransferCoding);
        }
        Ok(Body::Chunked)
    }

    /// HTTP/1.0 knows no expectations: they are ignored there (RFC 9110 section 10.1.1).
    fn expects_continue(&self, version: Version) -> Result<bool, RequestError> {
        match self.expect.first {
            Some(_) if version == Version::H10 => Ok(false),
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
            Some(_) => Err(RequestError::Expectation),
            None => Ok(false),
        }
    }
}

/// The bytes that a host and port can have (RFC 3986 section 3.2).
const OF_HOST: [bool; 256] = {
    let mut of_host = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        of_host[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"-._~!$&'()*+,;=:%[]";
    let mut index = 0;
    while index < marks.len() {
        of_host[marks[index] as usize] = true;
        index += 1;
    }
    of_host
};

/// A number of digits alone: no sign, no space, no list.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(bytes: &[u8]) -> (Request<'_>, usize) {
        match parse(bytes).expect("is well formed") {
            Parsed::Complete { request, len } => (request, len),
            Parsed::Partial => panic!("has an end: {}", bytes.escape_ascii()),
        }
    }

    fn refusal(bytes: &[u8]) -> RequestError {
        parse(bytes).map(|parsed| panic!("{}: {parsed:?}", bytes.escape_ascii())).expect_err("panicked")
    }

    /// A GET with these header lines beside Host.
    fn get(lines: &str) -> Vec<u8> {
        format!("GET /x HTTP/1.1\r\nHost: h\r\n{lines}\r\n").into_bytes()
    }

    #[test]
    fn an_ordinary_get() {
        let bytes = b"GET /nar/a.nar?hash=b HTTP/1.1\r\nHost: localhost:5000\r\nuser-agent: curl/7.88 Nix/2.8\r\n\
            RANGE:  bytes=5- \r\nif-range: \"t\"\r\nIf-None-Match:\"t\"\r\nAccept-Encoding: zstd, br\r\n\r\nGET /next";
        let (request, len) = complete(bytes);
        assert_eq!(&bytes[len..], b"GET /next");
        assert_eq!(request.method, Method::Get);
        assert_eq!(request.target.path(), b"/nar/a.nar");
        assert_eq!(request.target.parameter(b"hash"), Some(&b"b"[..]));
        assert_eq!((request.version, request.keep_alive), (Version::H11, true));
        assert_eq!((request.body, request.expect_continue), (Body::None, false));
        assert_eq!(request.host, Some(&b"localhost:5000"[..]));
        assert_eq!(request.range, Some(&b"bytes=5-"[..]));
        assert_eq!(request.if_range, Some(&b"\"t\""[..]));
        assert_eq!((request.if_match, request.if_none_match), (None, Some(&b"\"t\""[..])));
        let conditional = get("IF-MATCH: \"t\"\r\n");
        assert_eq!(complete(&conditional).0.if_match, Some(&b"\"t\""[..]));
        assert_eq!(request.accept_encoding(), Some(&b"zstd, br"[..]));
    }

    #[test]
    fn keep_alive_from_version_and_connection() {
        let keep = |version: &str, line: &str| {
            let bytes = format!("HEAD / HTTP/{version}\r\nHost: h\r\n{line}\r\n");
            complete(bytes.as_bytes()).0.keep_alive
        };
        assert!(keep("1.1", ""));
        assert!(!keep("1.1", "Connection: close\r\n"));
        assert!(!keep("1.1", "Connection: te, Close\r\n"));
        assert!(!keep("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
        assert!(!keep("1.0", ""));
        assert!(keep("1.0", "Connection: Keep-Alive\r\n"));
        assert!(!keep("1.0", "Connection: keep-alive, close\r\n"));
    }

    #[test]
    fn bodies() {
        assert_eq!(complete(&get("Content-Length: 0\r\n")).0.body, Body::None);
        assert_eq!(complete(&get("Content-Length: 007\r\n")).0.body, Body::Length(7));
        assert_eq!(complete(&get("Transfer-Encoding: Chunked\r\n")).0.body, Body::Chunked);
        let put = b"PUT /x HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 9\r\n\r\n";
        let (request, _) = complete(put);
        assert_eq!(
            (request.method, request.body, request.expect_continue),
            (Method::Other, Body::Length(9), true)
        );
        let old = b"PUT /x HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
        assert!(!complete(old).0.expect_continue);
    }

    #[test]
    fn repeated_conditions() {
        let range = |lines| complete(&get(lines)).0.range.map(<[u8]>::to_vec);
        assert_eq!(range("Range: bytes=0-1\r\nRange: bytes=0-1\r\n"), None);
        assert_eq!(range("Range: bytes=0-1\r\nIf-Range: \"a\"\r\nIf-Range: \"b\"\r\n"), None);
        assert!(range("Range: bytes=0-1\r\nIf-None-Match: \"a\"\r\nIf-None-Match: \"b\"\r\n").is_some());
    }

    #[test]
    fn forms_of_target() {
        let (request, _) = complete(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!((request.method, request.target.path()), (Method::Other, &b"*"[..]));
        let (request, _) = complete(b"GET http://other/x?y HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(request.target.path(), b"/x");
        assert_eq!(refusal(b"GET * HTTP/1.1\r\nHost: h\r\n\r\n"), RequestError::Target);
        assert_eq!(refusal(b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n"), RequestError::Target);
    }

    #[test]
    fn one_empty_line_may_come_first() {
        let (_, len) = complete(b"\r\nGET / HTTP/1.0\r\n\r\n");
        assert_eq!(len, 20);
        assert_eq!(refusal(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n"), RequestError::RequestLine);
        assert_eq!(refusal(b"\nGET / HTTP/1.0\r\n\r\n"), RequestError::BareLineFeed);
    }

    #[test]
    fn hosts() {
        for lines in ["", "Host: a\r\nHost: a\r\n", "Host: a b\r\n", "Host: a/b\r\n", "Host: user@a\r\n"] {
            let bytes = format!("GET / HTTP/1.1\r\n{lines}\r\n");
            assert_eq!(refusal(bytes.as_bytes()), RequestError::Host, "{lines}");
        }
        assert_eq!(refusal(b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"), RequestError::Host);
        for lines in ["Host:\r\n", "Host: [::1]:5000\r\n", "Host: cache.example\r\n"] {
            complete(format!("GET / HTTP/1.1\r\n{lines}\r\n").as_bytes());
        }
    }

    #[test]
    fn versions() {
        for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3.0"] {
            let bytes = format!("GET / {version}\r\nHost: h\r\n\r\n");
            assert_eq!(refusal(bytes.as_bytes()), RequestError::Version, "{version}");
        }
        for version in ["HTTP/1.10", "http/1.1", "HTTP/1", "HTCPCP/1.0", "HTTP/1.1 ", ""] {
            let bytes = format!("GET / {version}\r\nHost: h\r\n\r\n");
            assert_eq!(refusal(bytes.as_bytes()).status(), Status::BadRequest, "{version}");
        }
        assert_eq!(refusal(b"GET /\r\n\r\n").status(), Status::BadRequest);
        assert_eq!(refusal(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\n"), RequestError::Version);
    }

    /// Heads that two servers in a row might frame differently.
    #[test]
    fn smuggling() {
        use RequestError::{BareLineFeed, ContentLength, Framing, Header, TransferCoding};
        let corpus: &[(&str, RequestError)] = &[
            ("Content-Length: 5\r\nContent-Length: 5\r\n", ContentLength),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", ContentLength),
            ("Content-Length: 5, 5\r\n", ContentLength),
            ("Content-Length: +5\r\n", ContentLength),
            ("Content-Length: -5\r\n", ContentLength),
            ("Content-Length: 0x5\r\n", ContentLength),
            ("Content-Length: 5 5\r\n", ContentLength),
            ("Content-Length: \"5\"\r\n", ContentLength),
            ("Content-Length:\r\n", ContentLength),
            ("Content-Length: 18446744073709551616\r\n", ContentLength),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Framing),
            ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Framing),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Framing),
            ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", Framing),
            ("Transfer-Encoding: gzip, chunked\r\n", TransferCoding),
            ("Transfer-Encoding: chunked, identity\r\n", TransferCoding),
            ("Transfer-Encoding: xchunked\r\n", TransferCoding),
            ("Transfer-Encoding: chunked;q=1\r\n", TransferCoding),
            ("Transfer-Encoding: \"chunked\"\r\n", TransferCoding),
            ("Transfer-Encoding:\r\n", TransferCoding),
            ("Transfer-Encoding: \u{b}chunked\r\n", Header),
            ("Transfer-Encoding : chunked\r\n", Header),
            ("Content-Length : 5\r\n", Header),
            ("Transfer-Encoding\t: chunked\r\n", Header),
            (" Transfer-Encoding: chunked\r\n", Header),
            ("X: a\r\n Content-Length: 5\r\n", Header),
            ("X: a\r\n\tb\r\n", Header),
            ("X: a\0b\r\n", Header),
            ("X: a\u{7f}b\r\n", Header),
            ("X: a\rContent-Length: 5\r\n", Header),
            ("X: a\r\rContent-Length: 5\r\n", Header),
            ("X\0: a\r\n", Header),
            ("Content-Length\r\n", Header),
            (": 5\r\n", Header),
            ("X: a\nContent-Length: 5\r\n", BareLineFeed),
            ("X: a\n", BareLineFeed),
            ("X: a\n\n", BareLineFeed),
            ("X: a\r\n\n", BareLineFeed),
        ];
        for (lines, error) in corpus {
            assert_eq!(refusal(&get(lines)), *error, "{lines:?}");
        }
        for bytes in [
            &b"GET /x HTTP/1.1\nHost: h\r\n\r\n"[..],
            b"GET /x HTTP/1.1\r\nHost: h\r\n\n",
            b"GET /x HTTP/1.1\r\nHost: h\n\r\n",
        ] {
            assert_eq!(refusal(bytes), BareLineFeed, "{}", bytes.escape_ascii());
        }
        assert_eq!(refusal(b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Framing);
    }

    #[test]
    fn request_lines() {
        for line in [
            "GET  /x HTTP/1.1",
            "GET /x  HTTP/1.1",
            " GET /x HTTP/1.1",
            "GET\t/x HTTP/1.1",
            "GET /x\tHTTP/1.1",
            "GET /x\0 HTTP/1.1",
            "G\u{e9}T /x HTTP/1.1",
            "GET /x y HTTP/1.1",
            "G(T /x HTTP/1.1",
            "GET /\u{e9} HTTP/1.1",
            "GET /x#y HTTP/1.1",
            "GET HTTP/1.1",
            "GET /x\rHTTP/1.1",
            "\u{16}\u{3}\u{1}",
        ] {
            let bytes = format!("{line}\r\nHost: h\r\n\r\n");
            assert_eq!(refusal(bytes.as_bytes()).status(), Status::BadRequest, "{line:?}");
        }
        // A TLS client at the plain port is told at once, not after the head's time limit.
        assert_eq!(refusal(b"\x16\x03\x01"), RequestError::RequestLine);
    }

    #[test]
    fn long_targets() {
        let head = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(length - 1));
        complete(head(TARGET_MAX).as_bytes());
        assert_eq!(refusal(head(TARGET_MAX + 1).as_bytes()), RequestError::TargetTooLong);
        let partial = head(TARGET_MAX + 1);
        assert_eq!(refusal(&partial.as_bytes()[..TARGET_MAX + 5]), RequestError::TargetTooLong);
        assert_eq!(parse(&partial.as_bytes()[..TARGET_MAX + 4]), Ok(Parsed::Partial));
    }

    #[test]
    fn long_heads() {
        let head = |length: usize| {
            let rest = "GET / HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(length - rest))
        };
        assert_eq!(complete(head(HEAD_MAX).as_bytes()).1, HEAD_MAX);
        let long = head(HEAD_MAX + 1);
        assert_eq!(refusal(long.as_bytes()), RequestError::HeadTooLarge);
        assert_eq!(refusal(&long.as_bytes()[..HEAD_MAX]), RequestError::HeadTooLarge);
        assert_eq!(parse(&long.as_bytes()[..HEAD_MAX - 1]), Ok(Parsed::Partial));

        let many = |count: usize| get(&"X: y\r\n".repeat(count - 1));
        complete(&many(HEADERS_MAX));
        assert_eq!(refusal(&many(HEADERS_MAX + 1)), RequestError::HeadTooLarge);
    }

    /// Whatever the cut, a prefix says the same as the whole, or that it wants more.
    fn check_prefixes(bytes: &[u8]) {
        let whole = parse(bytes);
        for end in 0..bytes.len() {
            match parse(&bytes[..end]) {
                Ok(Parsed::Partial) => {}
                Ok(complete) => assert_eq!(Ok(complete), whole, "cut at {end}"),
                Err(_) => assert!(whole.is_err(), "cut at {end}: {}", bytes.escape_ascii()),
            }
        }
    }

    #[test]
    fn versions_cut_anywhere() {
        check_prefixes(b"GET / HTTP/2.0\r\n\r\n");
        check_prefixes(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(parse(b"GET / HTTP/2"), Ok(Parsed::Partial));
    }

    fn header_line() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("Host: h\r\n".to_owned()),
            Just("Connection: close\r\n".to_owned()),
            Just("Transfer-Encoding: chunked\r\n".to_owned()),
            Just("Content-Length: 3\r\n".to_owned()),
            "[A-Za-z-]{1,12}:[ \t]{0,2}[ -~]{0,20}\r\n",
            "[ -~]{0,10}[\r\n\0]{0,3}",
        ]
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            check_prefixes(&bytes);
        }

        #[test]
        fn a_prefix_agrees_with_the_whole(
            start in "(\r\n)?(GET|HEAD|PUT|OPTIONS) (/[!-~]{0,12}|\\*|http://h/x) HTTP/[0-2]\\.[0-2]\r\n",
            lines in proptest::collection::vec(header_line(), 0..6),
            rest in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut bytes = start.into_bytes();
            lines.iter().for_each(|line| bytes.extend_from_slice(line.as_bytes()));
            bytes.extend_from_slice(b"\r\n");
            bytes.extend_from_slice(&rest);
            check_prefixes(&bytes);
        }

        /// What is accepted reads the same to a simple reader that splits at CRLF and the first colon.
        #[test]
        fn a_simple_reader_agrees(lines in proptest::collection::vec(header_line(), 0..6)) {
            let bytes = get(&lines.concat());
            if let Ok(Parsed::Complete { request, len }) = parse(&bytes) {
                let text = std::str::from_utf8(&bytes[..len]).expect("the strategy makes ASCII");
                prop_assert!(text.ends_with("\r\n\r\n") && text.find("\r\n\r\n") == Some(len - 4));
                let values = |name: &str| -> Vec<&str> {
                    let headers = text.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
                    headers.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
                };
                let body = match (&values("content-length")[..], &values("transfer-encoding")[..]) {
                    ([], []) => Body::None,
                    ([length], []) => Body::Length(length.parse().expect("was accepted")),
                    ([], ["chunked"]) => Body::Chunked,
                    other => panic!("accepted {other:?}"),
                };
                prop_assert_eq!(request.body, body);
            }
        }
    }
}
