//! Any text as a store path, alone and with a store directory before it.
#![no_main]

use harmonia::formats::store_path::{StoreDir, StorePath};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let dir = StoreDir::new("/nix/store").expect("it is the usual one");
    if let Ok(path) = StorePath::from_basename(text) {
        assert_eq!(path.to_string(), text);
        assert_eq!(path.hash().to_string(), text[..32]);
        let full = dir.display(&path).to_string();
        assert_eq!(dir.parse(&full).expect("a full path is one"), path);
    }
    if let Ok(path) = dir.parse(text) {
        assert_eq!(dir.display(&path).to_string(), text);
    }
});
