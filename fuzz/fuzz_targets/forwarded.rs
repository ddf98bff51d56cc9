//! Any bytes as a request head in which proxies say whom they ask for.
#![no_main]

use std::net::IpAddr;

use harmonia::http::forwarded::{client, field, is_encrypted};

libfuzzer_sys::fuzz_target!(|head: &[u8]| {
    let is_trusted = |address: IpAddr| address.to_string().starts_with("10.");
    // Who trusts nobody believes the last one alone, and who trusts all the first.
    for named in [client(head, is_trusted), client(head, |_| false), client(head, |_| true)] {
        assert!(named.is_none() || field(head, b"forwarded").or(field(head, b"x-forwarded-for")).is_some());
    }
    is_encrypted(head);
});
