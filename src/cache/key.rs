//! What frames and manifests are found by.

use std::fmt;

use crate::formats::hash::Sha256;

/// What a frame is found by: a BLAKE3 hash of how it was made and of the plain bytes it was made from. Whoever
/// holds the same plain bytes, from whichever path, finds the same frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of `plain` in the encoding that `encoding` names: format, encoder, level; or that it is kept as it
    /// is.
    pub fn of(encoding: &str, plain: &[u8]) -> Self {
        let mut hasher = hasher("harmonia 2026 cache frame", encoding);
        hasher.update(plain);
        Self(hasher.finalize().into())
    }

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What a manifest is found by: a NAR's hash and the encoding it describes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ManifestKey([u8; 32]);

impl ManifestKey {
    /// The key of the manifest of the NAR with this hash in the encoding that `encoding` names.
    pub fn of(encoding: &str, nar_hash: &Sha256) -> Self {
        let mut hasher = hasher("harmonia 2026 cache manifest", encoding);
        hasher.update(&nar_hash.0);
        Self(hasher.finalize().into())
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The encoding's length comes first, so that no encoding and bytes run into each other.
fn hasher(purpose: &str, encoding: &str) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    hasher.update(&(encoding.len() as u64).to_le_bytes());
    hasher.update(encoding.as_bytes());
    hasher
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", blake3::Hash::from_bytes(self.0))
    }
}

impl fmt::Debug for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManifestKey({})", blake3::Hash::from_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_encoding_and_bytes_apart() {
        let keys = [Key::of("plain", b"abc"), Key::of("plaina", b"bc"), Key::of("", b"plainabc")];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
        assert_eq!(keys[0], Key::of("plain", b"abc"));
    }

    #[test]
    fn keys_are_the_same_in_every_version() {
        // Files on disk hold them.
        assert_eq!(format!("{:?}", Key::of("plain", b"abc")), KEY);
        assert_eq!(format!("{:?}", ManifestKey::of("plain", &Sha256::of(b"abc"))), MANIFEST);
    }

    const KEY: &str = "Key(d1b14604a4b953728d8c4c9030fd0cb1f9e64362b95434d60c400b4babcaa2db)";
    const MANIFEST: &str = "ManifestKey(8747befad034e7f3a82b1588a30c12176b4934139df3a86fe4c214c01f42dacd)";
}
