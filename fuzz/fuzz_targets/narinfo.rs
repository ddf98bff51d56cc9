//! Any text as a narinfo: what is read and rendered again reads as the same.
#![no_main]

use harmonia::formats::narinfo::{NarInfo, parse};
use harmonia::formats::store_path::StoreDir;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let dir = StoreDir::new("/nix/store").expect("it is the usual one");
    let Ok(parsed) = parse(&dir, text) else { return };
    let rendered = NarInfo {
        info: &parsed.info,
        url: &parsed.url,
        compression: &parsed.compression,
        file_hash: parsed.file_hash,
        file_size: parsed.file_size,
        signatures: &parsed.info.signatures,
    };
    assert_eq!(parse(&dir, &rendered.render(&dir)).as_ref(), Ok(&parsed));
    rendered.to_json(&dir);
});
