//! Any bytes as what a proxy says of a connection, and as a head that names clients.
#![no_main]

use harmonia::http::forwarded;
use harmonia::http::proxy::{Header, parse};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(Header::Complete { len, .. }) = parse(data) {
        // What follows is the client's: it must not change where it begins.
        assert_eq!(parse(&data[..len]), parse(data));
        assert_eq!(parse(&data[..len - 1]), Ok(Header::Partial));
    }
    let _ = forwarded::client(data, |address| address.is_loopback());
});
