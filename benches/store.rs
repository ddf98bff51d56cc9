//! What a worker's questions to its view of the store cost.

use std::fs;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use harmonia::io::files;

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
    identity(criterion);
}

/// What a look asks of the system: whether two names still stand for the same files, by the names and by what is held.
fn identity(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a scratch folder");
    // As deep as Nix's own.
    let folder = folder.path().join("nix/var/nix/db");
    fs::create_dir_all(&folder).expect("the scratch folder is ours");
    let names = ["db.sqlite", "db.sqlite-wal"].map(|name| folder.join(name));
    names.iter().for_each(|name| fs::write(name, "x").expect("the scratch folder is ours"));
    criterion.bench_function("store/two names", |b| {
        b.iter(|| names.each_ref().map(|name| fs::metadata(black_box(name)).is_ok()));
    });
    // Not every system can.
    if let [Ok(one), Ok(other)] = names.each_ref().map(|name| files::hold(name)) {
        criterion.bench_function("store/two files held", |b| {
            b.iter(|| [&one, &other].map(|file| black_box(file).metadata().is_ok()));
        });
    }
}

criterion_group!(benches, store);
criterion_main!(benches);
