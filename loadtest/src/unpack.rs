//! A compressed NAR, decompressed as it comes: by zstd's own decoder, which both sides of a comparison must satisfy.

use std::fmt;

use sha2::{Digest as _, Sha256};
use zstd_safe::{DCtx, InBuffer, OutBuffer};

/// What is decompressed at a time, in bytes: a block of zstd's.
const PIECE: usize = 128 << 10;

/// The hashes of a file that comes piece by piece: its own, and that of what is in it.
pub struct Unpack {
    file: Sha256,
    content: Sha256,
    size: u64,
    decoder: DCtx<'static>,
    piece: Box<[u8]>,
    /// Between two frames, where the file may end.
    is_whole: bool,
    is_damaged: bool,
}

/// What came of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Of the file.
    pub file: [u8; 32],
    /// Of what was in it, if all of it was zstd to the end of a frame; with its size in bytes.
    pub content: Option<([u8; 32], u64)>,
}

impl Unpack {
    pub fn new() -> Self {
        Self {
            file: Sha256::new(),
            content: Sha256::new(),
            size: 0,
            decoder: DCtx::create(),
            piece: vec![0; PIECE].into(),
            is_whole: false,
            is_damaged: false,
        }
    }

    /// The next bytes of the file.
    pub fn update(&mut self, part: &[u8]) {
        self.file.update(part);
        let mut input = InBuffer::around(part);
        // Once more without input where the piece was filled: there may be more within the decoder.
        let mut filled = false;
        while !self.is_damaged && (input.pos < part.len() || filled) {
            let mut output = OutBuffer::around(&mut self.piece[..]);
            match self.decoder.decompress_stream(&mut output, &mut input) {
                Ok(hint) => self.is_whole = hint == 0,
                Err(_) => self.is_damaged = true,
            }
            let made = output.pos();
            filled = made == PIECE;
            self.content.update(&self.piece[..made]);
            self.size += made as u64;
        }
    }

    /// Both hashes.
    pub fn finish(self) -> Unpacked {
        let content =
            (self.is_whole && !self.is_damaged).then(|| (self.content.finalize().into(), self.size));
        Unpacked { file: self.file.finalize().into(), content }
    }
}

impl fmt::Debug for Unpack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpack").field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
        zstd_safe::compress(&mut bytes, content, 3).unwrap();
        bytes
    }

    fn unpacked(file: &[u8], step: usize) -> Unpacked {
        let mut unpack = Unpack::new();
        file.chunks(step).for_each(|part| unpack.update(part));
        unpack.finish()
    }

    #[test]
    fn frames_one_after_another_are_one_content() {
        let parts = [
            vec![0; 1_000_000],
            (0..400_000u32).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect(),
            Vec::new(),
        ];
        let file: Vec<u8> = parts.iter().flat_map(|part| compressed(part)).collect();
        let content = parts.concat();
        let expected = Some((Sha256::digest(&content).into(), content.len() as u64));
        for step in [1000, 65_536, file.len()] {
            let unpacked = unpacked(&file, step);
            assert_eq!(unpacked.content, expected, "in steps of {step}");
            assert_eq!(unpacked.file, <[u8; 32]>::from(Sha256::digest(&file)));
        }
    }

    #[test]
    fn what_is_cut_or_no_zstd_has_no_content() {
        let file = compressed(&[7; 5000]);
        assert_eq!(unpacked(&file[..file.len() - 1], 100).content, None);
        assert_eq!(unpacked(&[&file[..], b"garbage"].concat(), 100).content, None);
        assert_eq!(unpacked(b"", 1).content, None);
    }
}
