//! What it costs a worker to answer, from the bytes of a request to the head and body of its answer; all but
//! the system calls.

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use harmonia::server::route::Route;

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;
use support::{ABSENT, Warm, parsed};

fn server(criterion: &mut Criterion) {
    let mut warm = Warm::new();
    let now = Instant::now();
    let hit = Warm::request(&format!("/{}.narinfo", warm.present));
    let miss = Warm::request(&format!("/{ABSENT}.narinfo"));
    let nar = Warm::request(&format!(
        "/nar/1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s.nar?hash={ABSENT}"
    ));

    for (name, request) in [("a narinfo", &hit), ("a NAR", &nar)] {
        let request = parsed(request);
        criterion.bench_function(&format!("server/route {name}"), |b| {
            b.iter(|| Route::of(black_box(&request.target)));
        });
    }
    criterion
        .bench_function("server/answer a cached narinfo", |b| b.iter(|| warm.answer(black_box(&hit), now)));
    criterion.bench_function("server/answer a miss", |b| b.iter(|| warm.answer(black_box(&miss), now)));
}

criterion_group!(benches, server);
criterion_main!(benches);
