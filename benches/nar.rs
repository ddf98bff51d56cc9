//! What it costs to plan a NAR, to find a byte of it, and to fetch it.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use harmonia::nar::{Cursor, Plan};

/// Folders, and small files in each: most of a store's files are small.
const FOLDERS: u64 = 16;
const FILES: u64 = 64;

fn tree(root: &Path) {
    for folder in 0..FOLDERS {
        let folder = root.join(format!("folder-{folder}"));
        fs::create_dir_all(&folder).expect("the scratch folder is ours");
        for file in 0..FILES {
            let contents = vec![b'x'; (file * 97) as usize];
            fs::write(folder.join(format!("file-{file}")), contents).expect("the scratch folder is ours");
        }
    }
}

fn nar(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let root = folder.path().join("tree");
    tree(&root);
    let plan = Arc::new(Plan::build(&root, false).expect("the tree was just made"));
    let whole = Cursor::new(Arc::clone(&plan), Arc::from(root.as_path()));

    criterion
        .bench_function("nar/plan 1024 files", |b| b.iter(|| Plan::build(black_box(&root), false).is_ok()));
    criterion.bench_function("nar/find a byte", |b| {
        let mut position = 0;
        b.iter(|| {
            // Spread over the NAR, and the same each time.
            position = (position + 1_000_003) % plan.size();
            plan.file_at(black_box(Path::new("")), position)
        });
    });
    criterion.bench_function("nar/one fetch from the middle", |b| {
        let middle = || {
            let mut cursor = whole.clone();
            cursor.seek(plan.size() / 2);
            cursor
        };
        b.iter_batched(middle, |mut cursor| cursor.fetch().is_ok(), BatchSize::SmallInput);
    });
    criterion.bench_function("nar/listing", |b| b.iter(|| black_box(&plan).listing()));
}

criterion_group!(benches, nar);
criterion_main!(benches);
