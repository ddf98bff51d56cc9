//! Which frames make one NAR in one encoding.

use std::ops::Range;

use super::Key;
use crate::formats::hash::Sha256;

/// The first byte of a manifest that is kept.
const VERSION: u8 = 1;

/// Bytes before the parts: version, size and hash of the file.
const HEAD: usize = 1 + 8 + 32;

/// Bytes of one part: key, length of the chunk, length of the frame.
const PART: usize = 32 + 4 + 4;

/// A compressed NAR: a file that is the frames of all its parts, one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    file_hash: Sha256,
    parts: Box<[Part]>,
}

/// A chunk of a NAR, and the frame it became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The frame's key.
    pub key: Key,
    /// Where the chunk ends in the NAR, in bytes.
    pub nar_end: u64,
    /// Where the frame ends in the file, in bytes.
    pub file_end: u64,
}

/// A part by itself: where its chunk and its frame lie, in bytes of the NAR and of the file.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) key: Key,
    pub(super) nar: Range<u64>,
    pub(super) file: Range<u64>,
}

/// Part number `index` by itself.
pub(super) fn piece(parts: &[Part], index: usize) -> Option<Piece> {
    let part = parts.get(index)?;
    let before = index.checked_sub(1).and_then(|before| parts.get(before));
    let (nar, file) = before.map_or((0, 0), |before| (before.nar_end, before.file_end));
    Some(Piece { key: part.key, nar: nar..part.nar_end, file: file..part.file_end })
}

impl Manifest {
    /// The manifest of a file that has this hash. The parts are in order.
    pub(super) fn new(file_hash: Sha256, parts: Vec<Part>) -> Self {
        Self { file_hash, parts: parts.into() }
    }

    /// SHA-256 of the compressed file.
    pub fn file_hash(&self) -> Sha256 {
        self.file_hash
    }

    /// Size of the compressed file in bytes.
    pub fn file_size(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.file_end)
    }

    /// Size of the NAR in bytes.
    pub fn nar_size(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.nar_end)
    }

    /// Its parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Part number `index` by itself.
    pub(super) fn piece(&self, index: usize) -> Option<Piece> {
        piece(&self.parts, index)
    }

    /// Which part holds byte `position` of the file; one beyond the last at the file's end.
    pub(super) fn part_at(&self, position: u64) -> usize {
        self.parts.partition_point(|part| part.file_end <= position)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.parts.len() * PART);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.file_size().to_le_bytes());
        bytes.extend_from_slice(&self.file_hash.0);
        let (mut nar, mut file) = (0, 0);
        for part in &self.parts {
            bytes.extend_from_slice(part.key.as_bytes());
            // No chunk and no frame is longer than its limit.
            bytes.extend_from_slice(&((part.nar_end - nar) as u32).to_le_bytes());
            bytes.extend_from_slice(&((part.file_end - file) as u32).to_le_bytes());
            (nar, file) = (part.nar_end, part.file_end);
        }
        bytes
    }

    /// `None` where the bytes are not a manifest that this version has written.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (file_size, rest) = rest.split_first_chunk()?;
        let (file_hash, rest) = rest.split_first_chunk()?;
        let (parts, odd) = rest.as_chunks::<PART>();
        let (mut nar, mut file) = (0u64, 0u64);
        let parts = parts.iter().map(|part| {
            let (key, lengths) = part.split_first_chunk()?;
            let (chunk, frame) = lengths.split_first_chunk()?;
            nar += u64::from(u32::from_le_bytes(*chunk));
            file += u64::from(u32::from_le_bytes(frame.try_into().ok()?));
            Some(Part { key: Key::from_bytes(*key), nar_end: nar, file_end: file })
        });
        let manifest = Self::new(Sha256(*file_hash), parts.collect::<Option<_>>()?);
        let is_whole = *version == VERSION
            && odd.is_empty()
            && !manifest.parts.is_empty()
            && manifest.file_size() == u64::from_le_bytes(*file_size);
        is_whole.then_some(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_manifest_survives_being_kept(
            hash: [u8; 32],
            lengths in proptest::collection::vec((any::<[u8; 32]>(), 1u32.., 1u32..), 1..9),
        ) {
            let (mut nar_end, mut file_end) = (0, 0);
            let parts = lengths.into_iter().map(|(key, chunk, frame)| {
                (nar_end, file_end) = (nar_end + u64::from(chunk), file_end + u64::from(frame));
                Part { key: Key::from_bytes(key), nar_end, file_end }
            });
            let manifest = Manifest::new(Sha256(hash), parts.collect());
            let bytes = manifest.to_bytes();
            prop_assert_eq!(Manifest::from_bytes(&bytes), Some(manifest.clone()));
            for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                prop_assert_eq!(Manifest::from_bytes(&bytes[..cut]), None);
            }
            let (size, first) = (manifest.file_size(), manifest.parts[0].file_end);
            prop_assert_eq!(manifest.part_at(first - 1), 0);
            prop_assert_eq!(manifest.part_at(first), 1);
            prop_assert_eq!(manifest.part_at(size), manifest.parts.len());
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::from_bytes(&bytes);
        }
    }
}
