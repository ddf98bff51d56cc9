//! Any bytes as a request target.
#![no_main]

use harmonia::http::Target;
use harmonia::server::route::Route;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(target) = Target::parse(data) else { return };
    let route = Route::of(&target);
    route.label();
    if let Route::Serve { inner, .. } = &route {
        // What is walked in a store path cannot leave it.
        assert!(inner.is_empty() || inner.starts_with(b"/"));
        assert!(inner.split(|byte| *byte == b'/').all(|name| name != b".." && !name.contains(&0)));
    }
});
