//! The PROXY protocol, versions 1 and 2: what a proxy says of a connection before the client's own bytes.
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::limits::{PROXY_HEADER_MAX, PROXY_LINE_MAX};

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of version 2 before the addresses: the signature, version and command, family, length.
const FIXED: usize = SIGNATURE.len() + 4;

/// What [`parse`] made of the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// It goes on: call again with more.
    Partial,
    /// A whole header.
    Complete {
        /// The client's address; `None` where the proxy speaks for itself, or says that it does not know.
        client: Option<IpAddr>,
        /// Its bytes: what follows is the client's.
        len: usize,
    },
}

/// Bytes that are no PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// They begin like neither version.
    #[error("no PROXY header")]
    Signature,
    /// A line of version 1 that is not what it should be.
    #[error("a malformed PROXY line")]
    Line,
    /// A version or command of the binary form that does not exist.
    #[error("an unknown version or command in a PROXY header")]
    Command,
    /// Fewer bytes than the addresses need, or more than anybody sends.
    #[error("a PROXY header of an impossible length")]
    Length,
}

/// Reads a header from the beginning of a connection's bytes.
///
/// # Errors
/// As early as the bytes allow: a proxy that was promised must not be waited for in vain.
pub fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, expected)| byte == expected);
    if begins(SIGNATURE) {
        return binary(bytes);
    }
    if begins(b"PROXY ") { line(bytes) } else { Err(HeaderError::Signature) }
}

/// Version 1: `PROXY TCP4 <client> <server> <client's port> <server's port>` in one line.
fn line(bytes: &[u8]) -> Result<Header, HeaderError> {
    let within = &bytes[..bytes.len().min(PROXY_LINE_MAX)];
    let Some(end) = memchr::memchr(b'\n', within) else {
        return if bytes.len() >= PROXY_LINE_MAX { Err(HeaderError::Line) } else { Ok(Header::Partial) };
    };
    let text = within[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let mut words = text.ok_or(HeaderError::Line)?.split(' ').skip(1);
    let mut next = || words.next().ok_or(HeaderError::Line);
    let family = next()?;
    if family == "UNKNOWN" {
        // Whatever else stands there is to be ignored.
        return Ok(Header::Complete { client: None, len: end + 1 });
    }
    let (client, server) = (next()?, next()?);
    let ports = [next()?, next()?];
    let is_port =
        |port: &&str| port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if !ports.iter().all(is_port) || words.next().is_some() {
        return Err(HeaderError::Line);
    }
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| HeaderError::Line),
        "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| HeaderError::Line),
        _ => Err(HeaderError::Line),
    };
    address(server)?;
    Ok(Header::Complete { client: Some(address(client)?), len: end + 1 })
}

/// Version 2: lengths and addresses as bytes, and extensions that are skipped.
fn binary(bytes: &[u8]) -> Result<Header, HeaderError> {
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else {
        return Ok(Header::Partial);
    };
    let is_proxied = match command {
        0x20 => false,
        0x21 => true,
        _ => return Err(HeaderError::Command),
    };
    let len = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if len > PROXY_HEADER_MAX {
        return Err(HeaderError::Length);
    }
    let Some(rest) = bytes.get(FIXED..len) else { return Ok(Header::Partial) };
    let client = match family {
        _ if !is_proxied => None,
        // Client, server, two ports.
        0x11 | 0x12 if rest.len() < 12 => return Err(HeaderError::Length),
        0x21 | 0x22 if rest.len() < 36 => return Err(HeaderError::Length),
        0x11 | 0x12 => rest.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        0x21 | 0x22 => rest.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        // Unix sockets, and families to come.
        _ => None,
    };
    Ok(Header::Complete { client, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(bytes: &[u8]) -> (Option<String>, usize) {
        for cut in 0..bytes.len() - 1 {
            assert_eq!(parse(&bytes[..cut]), Ok(Header::Partial), "{cut} bytes of {bytes:?}");
        }
        let longer = [bytes, b"GET / HTTP/1.1"].concat();
        match parse(&longer) {
            Ok(Header::Complete { client, len }) => (client.map(|address| address.to_string()), len),
            other => panic!("{other:?}"),
        }
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[test]
    fn lines_of_version_1() {
        for (line, client) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", Some("192.0.2.7")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 4124 443\r\n", Some("2001:db8::7")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
        ] {
            assert_eq!(complete(line.as_bytes()), (client.map(str::to_owned), line.len()), "{line}");
        }
        for line in [
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n",
            "PROXY TCP4 2001:db8::7 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 1\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 443\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(HeaderError::Line), "{line}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(PROXY_LINE_MAX));
        assert_eq!(parse(endless.as_bytes()), Err(HeaderError::Line));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(HeaderError::Signature));
        assert_eq!(parse(b"PROXYTCP4"), Err(HeaderError::Signature));
    }

    #[test]
    fn bytes_of_version_2() {
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb];
        let header = version_2(0x21, 0x11, &four);
        assert_eq!(complete(&header), (Some("192.0.2.7".to_owned()), 28));
        // Extensions follow the addresses.
        let header = version_2(0x21, 0x11, &[&four[..], &[4, 0, 1, 9]].concat());
        assert_eq!(complete(&header), (Some("192.0.2.7".to_owned()), 32));
        let six: Vec<u8> =
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7].into_iter().chain([0; 20]).collect();
        assert_eq!(complete(&version_2(0x21, 0x21, &six)), (Some("2001:db8::7".to_owned()), 52));
        assert_eq!(complete(&version_2(0x20, 0x00, &[])), (None, 16));
        assert_eq!(complete(&version_2(0x20, 0x11, &four)), (None, 28), "a proxy's own look at this server");
        assert_eq!(complete(&version_2(0x21, 0x31, &[1; 216])), (None, 232));
        assert_eq!(parse(&version_2(0x21, 0x11, &four[..11])), Err(HeaderError::Length));
        assert_eq!(parse(&version_2(0x21, 0x21, &six[..35])), Err(HeaderError::Length));
        assert_eq!(parse(&version_2(0x31, 0x11, &four)), Err(HeaderError::Command));
        assert_eq!(parse(&version_2(0x21, 0x11, &[0; PROXY_HEADER_MAX])), Err(HeaderError::Length));
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_outcome(start in 0..3_usize, rest in prop::collection::vec(any::<u8>(), 0..300)) {
            let start: &[u8] = [&b""[..], b"PROXY ", SIGNATURE][start];
            let bytes = [start, &rest].concat();
            if let Ok(Header::Complete { len, .. }) = parse(&bytes) {
                prop_assert!(len <= bytes.len() && parse(&bytes[..len - 1]) == Ok(Header::Partial));
            }
        }
    }
}
