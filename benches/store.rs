//! What a worker's questions to its view of the store cost.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;
use support::{ABSENT, Warm, hash};

fn store(criterion: &mut Criterion) {
    let mut warm = Warm::new();
    let (present, absent) = (hash(&warm.present), hash(ABSENT));
    let view = &mut warm.view;
    criterion.bench_function("store/index hit", |b| b.iter(|| view.snapshot().find(black_box(&present))));
    criterion.bench_function("store/index miss", |b| b.iter(|| view.snapshot().find(black_box(&absent))));
    criterion.bench_function("store/find hit", |b| b.iter(|| view.find(black_box(&present))));
    criterion.bench_function("store/find miss", |b| b.iter(|| view.find(black_box(&absent))));
    // Once a turn, for all requests of the turn.
    criterion.bench_function("store/look", |b| b.iter(|| view.look()));
}

criterion_group!(benches, store);
criterion_main!(benches);
