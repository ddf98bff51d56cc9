//! Whom proxies ask for, and how they were asked: `Forwarded` (RFC 7239), `X-Forwarded-For` and `X-Forwarded-Proto`.
//!
//! Anybody can send these, so each address is worth as much as whoever added it: the list is read from its end, where the
//! nearest proxy wrote, as long as those who wrote are trusted.

use std::net::IpAddr;

/// The client behind a trusted proxy: the last address in `head` that is not itself a trusted proxy's. `head` is a whole
/// request head that was understood. `None` where nothing that can be trusted says more.
///
/// Most proxies write one of `Forwarded` and `X-Forwarded-For`, and pass the other on as the client sent it. Which one
/// cannot be known: where both are there and do not name the same client, neither is believed.
pub fn client(head: &[u8], is_trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let standard: Vec<Option<IpAddr>> =
        values(head, b"forwarded").flat_map(|value| separated(value, b',')).map(for_of).collect();
    let common: Vec<Option<IpAddr>> = values(head, b"x-forwarded-for")
        .flat_map(|value| value.split(|byte| *byte == b',').map(address))
        .collect();
    if standard.is_empty() || common.is_empty() {
        return nearest([standard, common].concat(), is_trusted);
    }
    let named = nearest(standard, &is_trusted);
    named.filter(|_| named == nearest(common, is_trusted))
}

/// The last of the addresses that is not trusted; the first of all where each is.
fn nearest(addresses: Vec<Option<IpAddr>>, is_trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let mut found = None;
    for address in addresses.into_iter().rev() {
        // One who hides, or who writes what nobody understands, ends what is known.
        let address = address?;
        found = Some(address);
        if !is_trusted(address) {
            break;
        }
    }
    found
}

/// Whether the client of a trusted proxy asked by `https`, as the nearest proxy says it. `head` is a whole request head that
/// was understood. It is for what that client alone is shown: one that lies to itself is no harm.
pub fn is_encrypted(head: &[u8]) -> Option<bool> {
    let common = values(head, b"x-forwarded-proto").last();
    let common = common.and_then(|value| value.rsplit(|byte| *byte == b',').next());
    let standard = || {
        let elements = separated(values(head, b"forwarded").last()?, b',');
        pair(elements.last()?, b"proto")
    };
    let named = common.map(<[u8]>::trim_ascii).or_else(standard)?;
    let is_encrypted = named.eq_ignore_ascii_case(b"https");
    (is_encrypted || named.eq_ignore_ascii_case(b"http")).then_some(is_encrypted)
}

/// The value of the first line called `name`, in lower case, of a request head that was understood.
pub fn field<'h>(head: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    values(head, name).next()
}

/// The values of all lines called `name`.
fn values<'h>(head: &'h [u8], name: &[u8]) -> impl Iterator<Item = &'h [u8]> {
    head.split(|byte| *byte == b'\n').skip(1).filter_map(move |line| {
        let colon = memchr::memchr(b':', line)?;
        line[..colon].eq_ignore_ascii_case(name).then(|| line[colon + 1..].trim_ascii())
    })
}

/// The parts of a value; within quotes nothing separates.
fn separated(value: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    value
        .split(|&byte| {
            let separates = byte == separator && !quoted;
            quoted ^= byte == b'"' && !escaped;
            escaped = byte == b'\\' && quoted && !escaped;
            separates
        })
        .collect()
}

/// The address in an element's `for=`; `None` for one that is hidden, unknown or not there.
fn for_of(element: &[u8]) -> Option<IpAddr> {
    pair(element, b"for").and_then(address)
}

/// The value of the pair called `name` in an element of `Forwarded`.
fn pair<'e>(element: &'e [u8], name: &[u8]) -> Option<&'e [u8]> {
    separated(element, b';').into_iter().find_map(|pair| {
        let (key, value) = pair.split_at_checked(memchr::memchr(b'=', pair)?)?;
        key.trim_ascii().eq_ignore_ascii_case(name).then(|| unquoted(value[1..].trim_ascii()))
    })
}

/// A value without the quotes around it.
fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        whole => whole,
    }
}

/// An address, in brackets or not, with a port or without.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Some(inner) = text.strip_prefix('[') {
        let (address, port) = inner.split_once(']')?;
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address.parse().ok().filter(|_| is_port);
    }
    let (address, port) = text.split_once(':')?;
    address.parse().ok().filter(|_| is_port(port))
}

/// Digits, or a name that stands for them (`_gazonk`).
fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// With 10.* trusted.
    fn found(lines: &str) -> Option<String> {
        let head = format!("GET /?Forwarded:for=9.9.9.9 HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n");
        let is_trusted = |address: IpAddr| address.to_string().starts_with("10.");
        client(head.as_bytes(), is_trusted).map(|address| address.to_string())
    }

    #[test]
    fn the_last_that_is_not_trusted() {
        for (lines, address) in [
            ("X-Forwarded-For: 192.0.2.1", Some("192.0.2.1")),
            ("x-forwarded-for: 6.6.6.6, 192.0.2.1, 10.0.0.1", Some("192.0.2.1")),
            ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.1", Some("192.0.2.1")),
            ("X-Forwarded-For: 10.0.0.2,10.0.0.1", Some("10.0.0.2")),
            ("X-Forwarded-For: 192.0.2.1:4711", Some("192.0.2.1")),
            ("X-Forwarded-For: [2001:db8::1]:80, 10.0.0.1", Some("2001:db8::1")),
            ("X-Forwarded-For: 2001:db8::1", Some("2001:db8::1")),
            ("X-Forwarded-For: 6.6.6.6, nonsense", None),
            ("X-Forwarded-For: ", None),
            ("Other: x", None),
            ("Forwarded: for=192.0.2.1;proto=http;by=203.0.113.43", Some("192.0.2.1")),
            ("Forwarded: proto=https ; For=\"[2001:db8:cafe::17]:4711\"", Some("2001:db8:cafe::17")),
            ("Forwarded: for=6.6.6.6, for=192.0.2.1, for=10.0.0.1", Some("192.0.2.1")),
            ("Forwarded: for=6.6.6.6, for=\"_a, for=7.7.7.7\", for=10.0.0.1", None),
            ("Forwarded: for=\"\\\"\", for=192.0.2.1", Some("192.0.2.1")),
            ("Forwarded: for=unknown", None),
            ("Forwarded: by=1.1.1.1", None),
            ("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 192.0.2.1", None),
            ("Forwarded: for=192.0.2.1\r\nX-Forwarded-For: 6.6.6.6", None),
            ("Forwarded: for=nonsense\r\nX-Forwarded-For: 192.0.2.1", None),
            ("Forwarded: for=192.0.2.1\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.1", Some("192.0.2.1")),
        ] {
            assert_eq!(found(lines).as_deref(), address, "{lines}");
        }
    }

    #[test]
    fn how_the_nearest_proxy_was_asked() {
        for (lines, expected) in [
            ("X-Forwarded-Proto: https", Some(true)),
            ("x-forwarded-proto: http, HTTPS", Some(true)),
            ("Forwarded: for=192.0.2.1;proto=https", Some(true)),
            ("Forwarded: proto=https, for=1.2.3.4;Proto=\"http\"", Some(false)),
            ("X-Forwarded-Proto: http\r\nForwarded: proto=https", Some(false)),
            ("Forwarded: for=192.0.2.1", None),
            ("X-Forwarded-Proto: javascript", None),
            ("Other: x", None),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n");
            assert_eq!(is_encrypted(head.as_bytes()), expected, "{lines}");
        }
    }

    proptest! {
        #[test]
        fn any_value_has_an_outcome(name in "(X-Forwarded-For|Forwarded)", value in "[ -~]{0,80}") {
            let _ = found(&format!("{name}: {value}"));
        }
    }
}
