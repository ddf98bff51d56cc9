//! Any bytes as a request's body in chunks, cut in two anywhere.
#![no_main]

use harmonia::http::Body;
use harmonia::http::body::{Discard, Progress};

libfuzzer_sys::fuzz_target!(|input: (u16, &[u8])| {
    let (cut, data) = input;
    let begin = || Discard::new(Body::Chunked).expect("it has no length");
    let whole = begin().feed(data);
    if let Ok(Progress::Done { used }) = whole {
        assert!(used <= data.len());
    }
    let (first, second) = data.split_at(usize::from(cut).min(data.len()));
    let mut body = begin();
    let outcome = match body.feed(first) {
        Ok(Progress::More) => body.feed(second).map(|progress| match progress {
            Progress::Done { used } => Progress::Done { used: first.len() + used },
            Progress::More => Progress::More,
        }),
        ended => ended,
    };
    assert_eq!(outcome, whole);
});
