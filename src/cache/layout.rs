//! Where a NAR is cut into chunks.
//!
//! A file of at least [`CHUNK_FILE_MIN`] bytes is cut off from what is around it, so that its chunks are the same in
//! every NAR that holds the file. Between such files, framing and small files run together. What is longer than a
//! chunk may be is cut by content (FastCDC), so that a change moves the cuts near it and no others. All of this
//! follows from the bytes of the NAR alone.

use std::ops::Range;
use std::sync::LazyLock;

use fastcdc::v2020::{self, Normalization};

use crate::limits::{CHUNK_AVERAGE, CHUNK_FILE_MIN, CHUNK_MAX, CHUNK_MIN};

/// Where one NAR is cut whatever its bytes are: at both ends of each large file, and at its own end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In ascending order; the last is the NAR's size.
    ends: Box<[u64]>,
}

impl Layout {
    /// The layout of a NAR of `size` bytes whose files have their contents at `contents`, in order.
    pub fn new(contents: impl Iterator<Item = Range<u64>>, size: u64) -> Self {
        let large = contents.filter(|file| file.end - file.start >= CHUNK_FILE_MIN);
        let mut ends: Vec<u64> = large.flat_map(|file| [file.start, file.end]).chain([size]).collect();
        ends.dedup();
        Self { ends: ends.into() }
    }

    /// The NAR's size in bytes.
    pub fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// How many bytes from `position` on can at most be one chunk; 0 at the end. What [`chunk`] wants to see.
    pub fn room(&self, position: u64) -> usize {
        let next = self.ends.partition_point(|&end| end <= position);
        let left = self.ends.get(next).map_or(0, |end| end - position);
        // Bounded by CHUNK_MAX, so it fits.
        left.min(CHUNK_MAX as u64) as usize
    }
}

/// How long the chunk is that begins where `bytes` do. They are all that [`Layout::room`] said.
pub fn chunk(bytes: &[u8]) -> usize {
    static MASKS: LazyLock<(u64, u64)> =
        LazyLock::new(|| v2020::select_masks(CHUNK_AVERAGE, Normalization::Level1));
    let (strict, relaxed) = *MASKS;
    let (_, len) =
        v2020::cut(bytes, CHUNK_MIN, CHUNK_AVERAGE, CHUNK_MAX, strict, relaxed, strict << 1, relaxed << 1);
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The chunks of a NAR, as ranges.
    fn chunks(nar: &[u8], contents: &[Range<u64>]) -> Vec<Range<usize>> {
        let layout = Layout::new(contents.iter().cloned(), nar.len() as u64);
        let (mut at, mut chunks) = (0, Vec::new());
        loop {
            let room = layout.room(at as u64);
            if room == 0 {
                return chunks;
            }
            let len = chunk(&nar[at..at + room]);
            chunks.push(at..at + len);
            at += len;
        }
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn large_files_are_cut_off_and_small_ones_run_together() {
        let nar = noise(1, 5_000_000);
        let large = 1_000..1_000 + CHUNK_FILE_MIN;
        let small = large.end + 100..large.end + 1100;
        let found = chunks(&nar, &[0..10, large.clone(), small]);
        let large = large.start as usize..large.end as usize;
        assert_eq!(found, [0..large.start, large.clone(), large.end..5_000_000]);
        // One at the very start or the very end leaves no empty chunk.
        let all = 0..5_000_000;
        assert_eq!(Layout::new(std::iter::once(all.clone()), 5_000_000).ends.len(), 2);
        assert_eq!(chunks(&nar, std::slice::from_ref(&all)), chunks(&nar, &[]));
    }

    #[test]
    fn a_change_moves_only_the_cuts_near_it() {
        let before = noise(2, 60_000_000);
        let mut after = before.clone();
        after.splice(30_000_000..30_000_010, noise(3, 1_000));
        let keys = |nar: &[u8]| -> Vec<blake3::Hash> {
            chunks(nar, &[]).into_iter().map(|chunk| blake3::hash(&nar[chunk])).collect()
        };
        let (before, after) = (keys(&before), keys(&after));
        let changed = after.iter().filter(|key| !before.contains(key)).count();
        assert!(after.len() > 8 && changed <= 2, "{changed} of {}", after.len());
    }

    /// Cuts are part of what an encoding id stands for: were they to move, so must [`super::super::encode::LAYOUT`].
    #[test]
    fn cuts_stay_where_they_are() {
        let ends: Vec<usize> = chunks(&noise(4, 24_000_000), &[]).iter().map(|chunk| chunk.end).collect();
        assert_eq!(ends, [3_057_133, 9_784_313, 14_439_321, 20_092_193, 24_000_000]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn chunks_cover_the_nar_and_keep_their_bounds(
            parts in proptest::collection::vec((any::<bool>(), 1usize..6_000_000), 1..6),
            seed: u64,
        ) {
            let (mut nar, mut contents) = (Vec::new(), Vec::new());
            for (number, (is_file, len)) in parts.into_iter().enumerate() {
                // Some of it without any cut of its own.
                let bytes = if number % 3 == 2 { vec![0; len] } else { noise(seed ^ number as u64, len) };
                if is_file {
                    contents.push(nar.len() as u64..(nar.len() + len) as u64);
                }
                nar.extend(bytes);
            }
            let found = chunks(&nar, &contents);
            prop_assert_eq!(found.first().map(|chunk| chunk.start), Some(0));
            prop_assert_eq!(found.last().map(|chunk| chunk.end), Some(nar.len()));
            prop_assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start));
            prop_assert!(found.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_MAX));
            for file in contents.iter().filter(|file| file.end - file.start >= CHUNK_FILE_MIN) {
                let ends: Vec<u64> = found.iter().map(|chunk| chunk.end as u64).collect();
                prop_assert!(file.start == 0 || ends.contains(&file.start));
                prop_assert!(ends.contains(&file.end));
            }
        }
    }
}
