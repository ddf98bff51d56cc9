//! Any bytes as a request target.
#![no_main]

use harmonia::http::{Parsed, parse};
use harmonia::server::route::Route;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let head = [b"GET ", data, b" HTTP/1.1\r\nHost: x\r\n\r\n"].concat();
    let Ok(Parsed::Complete { request, .. }) = parse(&head) else { return };
    let route = Route::of(&request.target);
    route.label();
    if let Route::Serve { inner, .. } = &route {
        // What is walked in a store path cannot leave it.
        assert!(inner.is_empty() || inner.starts_with(b"/"));
        assert!(inner.split(|byte| *byte == b'/').all(|name| name != b".." && !name.contains(&0)));
    }
});
