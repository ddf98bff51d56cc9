//! Any text as a key file and as a signature.
#![no_main]

use harmonia::formats::signature::{PublicKey, SecretKey, Signature};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(key) = SecretKey::parse(text) {
        assert!(key.public().verify(b"message", &key.sign(b"message")));
        assert_eq!(
            SecretKey::parse(&key.to_text()).expect("it was written as a key").to_text(),
            key.to_text()
        );
    }
    if let Ok(key) = PublicKey::parse(text) {
        assert_eq!(PublicKey::parse(&key.to_string()).expect("it was written as a key"), key);
    }
    if let Ok(signature) = Signature::parse(text) {
        assert_eq!(Signature::parse(&signature.to_string()).expect("it was written as one"), signature);
    }
});
