//! The request target: path and query, still percent-encoded, and how to decode them.
//!
//! Routes match on the raw bytes, so that `%2F` never separates: it stays inside its segment, and no file
//! name holds a slash, so [`decode_segment`] refuses it.

use std::borrow::Cow;

use thiserror::Error;

use super::request::{OF_HOST, decimal};

/// Path and query of a request. The path begins with `/`, except for `OPTIONS *`, where it is `*`, and for CONNECT, where
/// it is a host and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'b> {
    path: &'b [u8],
    query: Option<&'b [u8]>,
}

/// Why a percent-encoded part of a target has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// A `%` without two hexadecimal digits after it.
    #[error("a percent sign without two hexadecimal digits")]
    Escape,
    /// `%00`: no name holds a zero byte, and system calls would end there.
    #[error("an encoded zero byte")]
    Nul,
    /// `%2F` inside a segment: no name holds a slash.
    #[error("an encoded slash")]
    Slash,
}

impl<'b> Target<'b> {
    /// Reads origin-form (`/path?query`) and absolute-form (`http://host/path?query`, whose authority is
    /// ignored: this server has one site). Printable ASCII only; a fragment never goes over the wire.
    pub(super) fn parse(raw: &'b [u8]) -> Option<Self> {
        // Without an early end, so that the compiler takes many bytes at a time.
        if !raw.iter().fold(true, |good, byte| good & byte.is_ascii_graphic() & (*byte != b'#')) {
            return None;
        }
        let rest = match raw.first()? {
            b'/' => raw,
            _ => after_authority(raw)?,
        };
        let (path, query) = match memchr::memchr(b'?', rest) {
            Some(mark) => (&rest[..mark], Some(&rest[mark + 1..])),
            None => (rest, None),
        };
        // `http://host` and `http://host?query` mean the root.
        Some(Self { path: if path.is_empty() { b"/" } else { path }, query })
    }

    /// `OPTIONS *`: about the server itself.
    pub(super) fn asterisk() -> Self {
        Self { path: b"*", query: None }
    }

    /// Reads authority-form (`host:port`), what a tunnel is to lead to.
    pub(super) fn authority(raw: &'b [u8]) -> Option<Self> {
        let colon = memchr::memrchr(b':', raw)?;
        let (host, port) = (&raw[..colon], &raw[colon + 1..]);
        let port = decimal(port).filter(|port| (1..=u64::from(u16::MAX)).contains(port));
        let good = !host.is_empty() && host.iter().all(|byte| OF_HOST[usize::from(*byte)]);
        (good && port.is_some()).then_some(Self { path: raw, query: None })
    }

    /// The path, still percent-encoded.
    pub fn path(&self) -> &'b [u8] {
        self.path
    }

    /// The query after `?`, still percent-encoded.
    pub fn query(&self) -> Option<&'b [u8]> {
        self.query
    }

    /// The path's segments, still percent-encoded: `/a//b/` has `a`, ``, `b`, ``.
    pub fn segments(&self) -> impl Iterator<Item = &'b [u8]> + use<'b> {
        self.path.strip_prefix(b"/").unwrap_or(self.path).split(|byte| *byte == b'/')
    }

    /// The value of the first parameter called `name`, still percent-encoded; empty where it has no `=`.
    pub fn parameter(&self, name: &[u8]) -> Option<&'b [u8]> {
        self.query?.split(|byte| *byte == b'&').find_map(|pair| match pair.strip_prefix(name)? {
            [] => Some(&[][..]),
            [b'=', value @ ..] => Some(value),
            _ => None,
        })
    }
}

/// What follows the authority of an absolute-form target: empty, or from its `/` or `?` on.
fn after_authority(raw: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', raw)?;
    let scheme = &raw[..colon];
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return None;
    }
    let rest = raw[colon + 1..].strip_prefix(b"//")?;
    let end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    // `http:///path` names no host: RFC 9110 section 4.2.1 has it refused.
    (end > 0).then(|| &rest[end..])
}

/// Percent-decodes one segment of a path (or a value of a query); `+` is a plus. Borrows where nothing is
/// encoded.
///
/// # Errors
/// A malformed escape, an encoded zero byte, an encoded slash.
pub fn decode_segment(raw: &[u8]) -> Result<Cow<'_, [u8]>, TargetError> {
    let Some(first) = memchr::memchr(b'%', raw) else {
        return Ok(Cow::Borrowed(raw));
    };
    decode(raw, first, false).map(Cow::Owned)
}

/// Decodes the value of a form's field, as browsers put it into a query: `+` is a blank, and a slash is like any other
/// character. Bytes that are not UTF-8 become U+FFFD.
///
/// # Errors
/// A malformed escape, an encoded zero byte.
pub fn decode_field(raw: &[u8]) -> Result<String, TargetError> {
    let spaced: Vec<u8> = raw.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    let decoded = decode(&spaced, 0, true)?;
    Ok(String::from_utf8_lossy(&decoded).into_owned())
}

/// Percent-decodes; before `first` nothing is encoded.
fn decode(raw: &[u8], first: usize, slashes: bool) -> Result<Vec<u8>, TargetError> {
    let mut decoded = Vec::with_capacity(raw.len());
    decoded.extend_from_slice(&raw[..first]);
    let mut rest = &raw[first..];
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let [high, low, after @ ..] = rest else { return Err(TargetError::Escape) };
        rest = after;
        match hex_value(*high).zip(hex_value(*low)).map(|(high, low)| high << 4 | low) {
            None => return Err(TargetError::Escape),
            Some(0) => return Err(TargetError::Nul),
            Some(b'/') if !slashes => return Err(TargetError::Slash),
            Some(byte) => decoded.push(byte),
        }
    }
    Ok(decoded)
}

/// Percent-encodes one name as a segment of a path: everything but unreserved characters (RFC 3986 section 2.3), so
/// that a slash separates nothing, a colon makes no scheme and a question mark no query.
pub fn encode_segment(name: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(name.len());
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push('%');
            text.push(DIGITS[usize::from(byte >> 4)].into());
            text.push(DIGITS[usize::from(byte & 15)].into());
        }
    }
    text
}

/// Whether a *decoded* segment is `.` or `..`, which never name an entry of a store path.
pub fn is_dot_segment(decoded: &[u8]) -> bool {
    matches!(decoded, b"." | b"..")
}

/// The value of one hexadecimal digit.
pub(super) fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(raw: &str) -> Option<(&str, Option<&str>)> {
        let text = |bytes| std::str::from_utf8(bytes).expect("ASCII");
        Target::parse(raw.as_bytes()).map(|target| (text(target.path()), target.query().map(text)))
    }

    #[test]
    fn fields_of_forms() {
        for (raw, text) in
            [("a+b%2Fc%2B", "a b/c+"), ("", ""), ("caf%E9", "caf\u{fffd}"), ("%C3%A9", "\u{e9}")]
        {
            assert_eq!(decode_field(raw.as_bytes()).as_deref(), Ok(text), "{raw}");
        }
        assert_eq!(decode_field(b"%0"), Err(TargetError::Escape));
        assert_eq!(decode_field(b"a%00"), Err(TargetError::Nul));
    }

    #[test]
    fn origin_and_absolute_form() {
        assert_eq!(target("/"), Some(("/", None)));
        assert_eq!(target("/a?b?c"), Some(("/a", Some("b?c"))));
        assert_eq!(target("/a?"), Some(("/a", Some(""))));
        assert_eq!(
            target("/realisations/sha256:ab!out.doi"),
            Some(("/realisations/sha256:ab!out.doi", None))
        );
        assert_eq!(target("http://cache.example:80/a?b"), Some(("/a", Some("b"))));
        assert_eq!(target("HTTPS://cache.example"), Some(("/", None)));
        assert_eq!(target("http://cache.example?json"), Some(("/", Some("json"))));
        assert_eq!(target("//evil.example/a"), Some(("//evil.example/a", None)));
        for refused in
            ["", "a", "*", "host:443", "ftp://host/", "http:/a", "http:///a", "/a#b", "/\u{e9}", "/a b"]
        {
            assert_eq!(target(refused), None, "{refused}");
        }
    }

    #[test]
    fn segments_keep_what_is_encoded() {
        let target = Target::parse(b"/serve/x/a%2Fb//c/").expect("is a target");
        let segments: Vec<_> = target.segments().collect();
        assert_eq!(segments, [&b"serve"[..], b"x", b"a%2Fb", b"", b"c", b""]);
    }

    #[test]
    fn parameters() {
        let target = Target::parse(b"/nar/x.nar?hashes=no&hash=abc&hash=def&json&e=").expect("is a target");
        assert_eq!(target.parameter(b"hash"), Some(&b"abc"[..]));
        assert_eq!(target.parameter(b"json"), Some(&b""[..]));
        assert_eq!(target.parameter(b"e"), Some(&b""[..]));
        assert_eq!(target.parameter(b"has"), None);
        assert_eq!(Target::parse(b"/x").expect("is a target").parameter(b"json"), None);
    }

    #[test]
    fn decoding() {
        assert_eq!(decode_segment(b"a+b").expect("decodes"), Cow::Borrowed(b"a+b"));
        assert_eq!(decode_segment(b"%61%ffz%2e").expect("decodes").as_ref(), b"a\xffz.");
        assert_eq!(decode_segment(b"a%20b").expect("decodes").as_ref(), b"a b");
        assert_eq!(decode_segment(b"%2e%2E").map(|name| is_dot_segment(&name)), Ok(true));
        for (raw, error) in [
            (&b"%"[..], TargetError::Escape),
            (b"a%4", TargetError::Escape),
            (b"%+1", TargetError::Escape),
            (b"%g0", TargetError::Escape),
            (b"%00", TargetError::Nul),
            (b"..%2f..", TargetError::Slash),
        ] {
            assert_eq!(decode_segment(raw), Err(error));
        }
        // Decoded once, not twice.
        assert_eq!(decode_segment(b"%252f").expect("decodes").as_ref(), b"%2f");
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(name in proptest::collection::vec(prop_oneof![1u8..b'/', b'0'..=255], 0..40)) {
            for encoded in [encode_segment(&name), name.iter().map(|byte| format!("%{byte:02x}")).collect()] {
                let address = format!("/{encoded}");
                let target = Target::parse(address.as_bytes()).expect("has only ASCII");
                prop_assert_eq!(target.path(), address.as_bytes());
                let decoded = decode_segment(encoded.as_bytes()).expect("is well encoded");
                prop_assert_eq!(decoded.as_ref(), &name[..]);
            }
        }

        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode_segment(&raw);
            if let Some(target) = Target::parse(&raw) {
                let _ = (target.segments().count(), target.parameter(b"hash"));
            }
        }
    }
}
