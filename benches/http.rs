//! What reading a request and writing a head cost.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use harmonia::http::date::DATE_LEN;
use harmonia::http::{Head, Status, Version, parse, range};

/// As Nix 2.31 sends it.
const REQUEST: &[u8] = b"GET /00bgd045z0d4icpbc2yyz4gx48ak44la.narinfo HTTP/1.1\r\n\
    Host: cache.example.org:5000\r\nUser-Agent: curl/8.14.1 Nix/2.31.2\r\nAccept: */*\r\n\
    Accept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n\r\n";

const ETAG: &str = "\"1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\"";
const DATE: &[u8; DATE_LEN] = b"Sun, 06 Nov 1994 08:49:37 GMT";

fn http(criterion: &mut Criterion) {
    criterion.bench_function("http/parse", |b| b.iter(|| parse(black_box(REQUEST)).is_ok()));
    let half = &REQUEST[..REQUEST.len() / 2];
    criterion.bench_function("http/parse half a head", |b| b.iter(|| parse(black_box(half)).is_ok()));
    criterion.bench_function("http/range", |b| {
        b.iter(|| {
            range::resolve(black_box(Some(b"bytes=4096-")), black_box(Some(ETAG.as_bytes())), ETAG, 1 << 30)
        });
    });
    criterion.bench_function("http/none match", |b| {
        b.iter(|| range::none_match(black_box(ETAG.as_bytes()), ETAG))
    });
    criterion.bench_function("http/head", |b| {
        let mut out = Vec::new();
        b.iter(|| {
            out.clear();
            Head::new(&mut out, Status::Ok, DATE)
                .header("Content-Type", "text/x-nix-narinfo")
                .header("Cache-Control", "max-age=86400")
                .content_length(black_box(600))
                .finish(Version::H11, true);
            out.len()
        });
    });
}

criterion_group!(benches, http);
criterion_main!(benches);
