//! What it costs to keep what a pack is made of: its framing and small files, in frames of [`PACK_FRAME`] bytes.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use harmonia::cache::{Cache, Key};
use harmonia::limits::{CACHE_VOLUME_MIN, PACK_FRAME};

fn cache(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a scratch folder");
    // So small that old volumes are evicted all the while, as in a cache that is full.
    let cache = Cache::open(folder.path(), 2 * CACHE_VOLUME_MIN, Arc::default()).expect("the folder is ours");
    let mut group = criterion.benchmark_group("cache");
    group.throughput(Throughput::Bytes(PACK_FRAME as u64));
    let mut number = 0_u64;
    let mut fresh = || {
        number += 1;
        let mut bytes = vec![7; PACK_FRAME];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    group.bench_function("pack write", |b| {
        let put = |bytes: Vec<u8>| cache.put(&Key::of("plain", &bytes), black_box(&bytes)).is_ok();
        b.iter_batched(&mut fresh, put, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, cache);
criterion_main!(benches);
