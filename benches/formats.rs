//! What Nix's formats cost: names, narinfos and their signatures.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ed25519_dalek::Signer;
use harmonia::formats::hash::Sha256;
use harmonia::formats::narinfo::{self, NarInfo, PathInfo};
use harmonia::formats::signature::SecretKey;
use harmonia::formats::store_path::{StoreDir, StorePath, StorePathHash};

const DIGITS: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

/// A path with ten references, as most have some.
fn info() -> PathInfo {
    let path =
        |number| StorePath::from_basename(&format!("{DIGITS}-library-1.{number}")).expect("it is a name");
    PathInfo {
        path: path(10),
        nar_hash: Sha256::of(b"a NAR"),
        nar_size: 123_456,
        references: (0..10).map(path).collect(),
        deriver: Some(StorePath::from_basename(&format!("{DIGITS}-library.drv")).expect("it is a name")),
        signatures: Vec::new(),
        ca: None,
        registration_time: 1,
    }
}

fn formats(criterion: &mut Criterion) {
    let dir = StoreDir::new("/nix/store").expect("it is one");
    let key = SecretKey::generate("cache.example.org-1").expect("the system gives randomness");
    let keys = [key];
    let info = info();
    let fingerprint = narinfo::fingerprint(&dir, &info);
    let signatures = narinfo::sign_all(&dir, &info, &keys);
    let url = format!("nar/{}.nar?hash={DIGITS}", info.nar_hash.to_base32());
    let printed = NarInfo {
        info: &info,
        url: &url,
        compression: "none",
        file_hash: Some(info.nar_hash),
        file_size: Some(info.nar_size),
        signatures: &signatures,
    };
    let text = printed.render(&dir);
    let public = keys[0].public();

    criterion.bench_function("formats/hash part", |b| {
        b.iter(|| StorePathHash::parse(black_box(DIGITS.as_bytes())));
    });
    criterion
        .bench_function("formats/fingerprint", |b| b.iter(|| narinfo::fingerprint(&dir, black_box(&info))));
    criterion.bench_function("formats/sign", |b| b.iter(|| keys[0].sign(black_box(fingerprint.as_bytes()))));
    // The library that verifies: why it does not sign as well.
    let peer = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    criterion.bench_function("formats/sign, ed25519-dalek", |b| {
        b.iter(|| peer.sign(black_box(fingerprint.as_bytes())));
    });
    let signature = keys[0].sign(fingerprint.as_bytes());
    criterion.bench_function("formats/verify", |b| {
        b.iter(|| public.verify(black_box(fingerprint.as_bytes()), &signature));
    });
    criterion.bench_function("formats/narinfo render", |b| b.iter(|| black_box(&printed).render(&dir)));
    criterion.bench_function("formats/narinfo parse", |b| {
        b.iter(|| narinfo::parse(&dir, black_box(&text)).is_ok())
    });
}

criterion_group!(benches, formats);
criterion_main!(benches);
