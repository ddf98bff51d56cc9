//! Any bytes as Range and If-Range, for a representation of any length.
#![no_main]

use harmonia::http::range::{RangeOutcome, none_match, resolve};

libfuzzer_sys::fuzz_target!(|input: (u64, Option<&[u8]>, &[u8])| {
    let (len, if_range, range) = input;
    match resolve(Some(range), if_range, "\"tag\"", len) {
        RangeOutcome::Part { start, end } => assert!(start < end && end <= len),
        RangeOutcome::Whole | RangeOutcome::Unsatisfiable => {}
    }
    none_match(range, "\"tag\"");
});
