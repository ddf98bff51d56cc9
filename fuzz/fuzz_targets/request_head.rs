//! Any bytes as a request head, and what follows as its body.
#![no_main]

use harmonia::http::HeadReader;
use harmonia::http::body::{Discard, Progress};
use harmonia::http::request::{Parsed, parse};
use harmonia::http::target::decode_segment;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(Parsed::Complete { request, len }) => {
            // What follows a head must not change it: else pipelined requests could be smuggled.
            assert_eq!(parse(&data[..len]), Ok(Parsed::Complete { request: request.clone(), len }));
            // No shorter part is a head of its own.
            assert_eq!(parse(&data[..len - 1]), Ok(Parsed::Partial));
            // Whoever remembers it reads the same again.
            let mut reader = HeadReader::default();
            (0..3).for_each(|_| assert_eq!(reader.read(data), parse(data)));
            let _ = request.target.parameter(b"hash");
            for segment in request.target.segments() {
                if let Ok(name) = decode_segment(segment) {
                    assert!(name.len() <= segment.len() && !name.contains(&0) && !name.contains(&b'/'));
                }
            }
            if let Ok(mut body) = Discard::new(request.body)
                && let Ok(Progress::Done { used }) = body.feed(&data[len..])
            {
                assert!(used <= data.len() - len);
            }
        }
        Ok(Parsed::Partial) => {}
        Err(error) => {
            error.status();
        }
    }
});
