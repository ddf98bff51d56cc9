//! Which paths are valid: hash part → row id, in memory, so that a miss costs no SQL.
//!
//! The actor keeps an `Index` and publishes it as immutable [`Snapshot`]s: a large frozen table that all
//! share, and a small one with what was registered since. Row ids grow with each registration and are never
//! used again (`AUTOINCREMENT` in Nix's schema), so additions are the rows above the last id seen. Deletions do
//! not show that way: an entry says only that the path *was* registered, and a positive answer looks at its row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::rendered::Rendered;
use super::served::Served;
use crate::formats::store_path::StorePathHash;
use crate::limits;

/// What was valid when it was read. Shared by reference; never changes but for being retired.
#[derive(Debug)]
pub struct Snapshot {
    epoch: u64,
    complete: bool,
    base: Arc<Table>,
    delta: Arc<Table>,
    rendered: Arc<Rendered>,
    retired: AtomicBool,
}

impl Snapshot {
    fn new(epoch: u64, complete: bool, base: Arc<Table>, delta: Arc<Table>, rendered: Arc<Rendered>) -> Self {
        Self { epoch, complete, base, delta, rendered, retired: AtomicBool::new(false) }
    }

    /// A snapshot that knows nothing: every path must be asked for.
    pub fn unknown() -> Self {
        Self::new(0, false, Arc::default(), Arc::default(), Arc::new(Rendered::with_room(0)))
    }

    /// Grows with every change of the database or of what is told of it. Answers carry the epoch in which
    /// they were read.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The row that the path was registered with, if it was. The row may have been deleted since.
    pub fn find(&self, hash: &StorePathHash) -> Option<i64> {
        lookup(&self.delta, &self.base, hash)
    }

    /// What any worker was answered of the row `id` in this epoch or later, with the epoch.
    pub(super) fn rendered(&self, id: i64, hash: &StorePathHash) -> Option<(Arc<Served>, u64)> {
        self.rendered.get(id, hash, self.epoch)
    }

    /// Whether a path that is not found is not valid. False while a big database is still being read.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// How many entries there are, some of them perhaps deleted or replaced.
    pub fn len(&self) -> usize {
        self.base.len + self.delta.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a later snapshot was published.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

fn lookup(delta: &Table, base: &Table, hash: &StorePathHash) -> Option<i64> {
    match delta.get(hash).or_else(|| base.get(hash)) {
        None | Some(DELETED) => None,
        Some(id) => Some(i64::from(id)),
    }
}

/// The actor's own, growing form.
#[derive(Debug, Default)]
pub(super) struct Index {
    base: Arc<Table>,
    /// Copied by the first change after it was published, and only then.
    delta: Arc<Table>,
    /// The row with the highest id that was read, and its path's hash part if it is a store path.
    last: Option<(i64, Option<StorePathHash>)>,
    complete: bool,
    /// An id beyond what an entry holds was seen: the index cannot say any more what is absent.
    overflown: bool,
}

impl Index {
    /// The row with the highest id that was read, and its path's hash part.
    pub(super) fn last(&self) -> Option<(i64, Option<StorePathHash>)> {
        self.last
    }

    /// Whether every row has been read.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn find(&self, hash: &StorePathHash) -> Option<i64> {
        lookup(&self.delta, &self.base, hash)
    }

    /// Takes rows in the order of their ids, all of them above [`Self::last`]. A slice that is not full was
    /// the last one.
    pub(super) fn extend(&mut self, rows: &[(i64, Option<StorePathHash>)], full: bool) {
        for &(id, hash) in rows {
            if let Some(hash) = hash {
                self.learn(hash, id);
            }
        }
        if let Some(&row) = rows.last() {
            self.last = Some(row);
        }
        self.complete = !full;
    }

    /// The path has this row.
    pub(super) fn learn(&mut self, hash: StorePathHash, id: i64) {
        match u32::try_from(id) {
            Ok(id) if id != EMPTY && id != DELETED => Arc::make_mut(&mut self.delta).insert(hash, id),
            _ => self.overflown = true,
        }
    }

    /// The path has no row. Should it be registered again, its new row is above the last one and comes with
    /// the additions.
    pub(super) fn forget(&mut self, hash: StorePathHash) {
        Arc::make_mut(&mut self.delta).insert(hash, DELETED);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Makes room for so many paths, before the first of them is read: a table that grows while a million are read is
    /// copied five times, the last time for longer than a question should wait.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.len() == 0 {
            self.delta = Arc::new(Table::with_room_for(len));
        }
    }

    /// Merges the small table into the large one if it has grown enough. Returns whether it did.
    pub(super) fn merge(&mut self) -> bool {
        let due = self.complete && self.delta.len > limits::INDEX_DELTA;
        if due {
            // What was read into a table of its size becomes the large one as it is.
            let fits = self.base.len == 0 && self.delta.fits();
            let delta = std::mem::take(&mut self.delta);
            self.base = if fits { delta } else { Arc::new(Table::merged(&self.base, &delta)) };
        }
        due
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.base.len + self.delta.len
    }

    pub(super) fn snapshot(&self, epoch: u64, rendered: &Arc<Rendered>) -> Snapshot {
        let rendered = Arc::clone(rendered);
        if self.complete && !self.overflown {
            Snapshot::new(epoch, true, Arc::clone(&self.base), Arc::clone(&self.delta), rendered)
        } else {
            Snapshot::new(epoch, false, Arc::default(), Arc::default(), rendered)
        }
    }
}

/// Marks a free place. Row ids begin at 1.
const EMPTY: u32 = 0;

/// Marks a path known to have no row any more, over an older entry.
const DELETED: u32 = u32::MAX;

/// 24 bytes. Nix gives no row id near 2³²; one that is turns the index off rather than wrong.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: StorePathHash,
    id: u32,
}

const FREE: Entry = Entry { hash: StorePathHash([0; StorePathHash::LEN]), id: EMPTY };

const _: () = assert!(size_of::<Entry>() == 24);

/// An open-addressing table with linear probing. Hash parts are uniformly distributed already, so their first
/// bytes say where to begin; at most two thirds of the places are taken, for some five entries, or two cache
/// lines, a miss.
#[derive(Clone, Debug, Default)]
struct Table {
    places: Box<[Entry]>,
    len: usize,
}

impl Table {
    fn with_room_for(len: usize) -> Self {
        Self { places: vec![FREE; len + len / 2 + 2].into_boxed_slice(), len: 0 }
    }

    /// Whether it takes about as much memory as what is in it needs.
    fn fits(&self) -> bool {
        self.places.len() <= self.len * 2
    }

    fn get(&self, hash: &StorePathHash) -> Option<u32> {
        if self.places.is_empty() {
            return None;
        }
        let entry = &self.places[self.place(hash)];
        (entry.id != EMPTY).then_some(entry.id)
    }

    fn insert(&mut self, hash: StorePathHash, id: u32) {
        if (self.len + 1) * 3 > self.places.len() * 2 {
            self.grow();
        }
        let entry = &mut self.places[self.place(&hash)];
        self.len += usize::from(entry.id == EMPTY);
        *entry = Entry { hash, id };
    }

    /// Where the hash part is, or where it would be put. There is always a free place, so the search ends.
    fn place(&self, hash: &StorePathHash) -> usize {
        let [a, b, c, d, e, f, g, h, ..] = hash.0;
        let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        // The upper half of the product is `first` scaled to the table's length.
        let scaled = (u128::from(first) * self.places.len() as u128) >> 64;
        let mut place = scaled as usize;
        loop {
            let entry = &self.places[place];
            if entry.id == EMPTY || entry.hash == *hash {
                return place;
            }
            place += 1;
            if place == self.places.len() {
                place = 0;
            }
        }
    }

    fn grow(&mut self) {
        let mut larger = Self::with_room_for((self.len * 2).max(64));
        for entry in self.entries() {
            larger.insert(entry.hash, entry.id);
        }
        *self = larger;
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.places.iter().filter(|entry| entry.id != EMPTY)
    }

    /// What `delta` says over what `base` says, without what is deleted.
    fn merged(base: &Self, delta: &Self) -> Self {
        let mut merged = Self::with_room_for(base.len + delta.len);
        for entry in base.entries().filter(|entry| delta.get(&entry.hash).is_none()) {
            merged.insert(entry.hash, entry.id);
        }
        for entry in delta.entries().filter(|entry| entry.id != DELETED) {
            merged.insert(entry.hash, entry.id);
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn none() -> Arc<Rendered> {
        Arc::new(Rendered::with_room(0))
    }

    fn hash(seed: u64) -> StorePathHash {
        // Four share each beginning, so that probing is met.
        let mut bytes = [0; StorePathHash::LEN];
        bytes[..8].copy_from_slice(&(seed / 4).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        bytes[12..].copy_from_slice(&seed.to_be_bytes());
        StorePathHash(bytes)
    }

    #[test]
    fn an_empty_index_finds_nothing() {
        assert_eq!(Index::default().find(&hash(1)), None);
        assert_eq!(Snapshot::unknown().find(&hash(1)), None);
        assert!(!Snapshot::unknown().complete());
    }

    #[test]
    fn rows_above_the_last_are_additions_and_a_short_slice_completes() {
        let mut index = Index::default();
        index.extend(&[(1, Some(hash(1))), (2, None)], true);
        assert!(!index.snapshot(1, &none()).complete());
        index.extend(&[(7, Some(hash(7)))], false);
        let snapshot = index.snapshot(2, &none());
        assert!(snapshot.complete());
        assert_eq!(snapshot.find(&hash(7)), Some(7));
        assert_eq!(index.last(), Some((7, Some(hash(7)))));
    }

    #[test]
    fn a_path_registered_again_has_its_new_row() {
        let mut index = Index::default();
        index.extend(&[(1, Some(hash(1)))], false);
        index.forget(hash(1));
        assert_eq!(index.find(&hash(1)), None);
        index.extend(&[(2, Some(hash(1)))], false);
        assert_eq!(index.snapshot(1, &none()).find(&hash(1)), Some(2));
    }

    #[test]
    fn an_id_too_large_leaves_the_index_asking() {
        let mut index = Index::default();
        index.extend(&[(i64::from(u32::MAX), Some(hash(1)))], false);
        assert!(!index.snapshot(1, &none()).complete());
    }

    #[test]
    fn what_was_read_into_room_made_for_it_is_not_copied() {
        let count = limits::INDEX_DELTA + 100;
        let rows: Vec<_> = (1..=count as i64).map(|id| (id, Some(hash(id as u64)))).collect();
        let mut index = Index::default();
        index.reserve(count);
        let places = index.delta.places.as_ptr();
        for (number, slice) in rows.chunks(100).enumerate() {
            index.extend(slice, (number + 1) * 100 < count);
        }
        assert!(index.merge());
        assert_eq!(index.base.places.as_ptr(), places);
        assert!(rows.iter().all(|&(id, hash)| index.find(&hash.unwrap()) == Some(id)));
        assert_eq!((index.len(), index.delta.len), (count, 0));
        // Room for ten times as many is not kept.
        let mut index = Index::default();
        index.reserve(10 * count);
        index.extend(&rows, false);
        assert!(index.merge() && index.base.fits());
        assert_eq!(index.len(), count);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn it_behaves_as_a_map(operations in prop::collection::vec((0u64..8000, 0u8..100), 0..20_000)) {
            let (mut index, mut model) = (Index::default(), HashMap::new());
            index.extend(&[], false);
            for (id, (seed, kind)) in operations.into_iter().enumerate() {
                if kind < 10 {
                    index.forget(hash(seed));
                    model.remove(&seed);
                } else {
                    let id = id as i64 + 1;
                    index.extend(&[(id, Some(hash(seed)))], false);
                    model.insert(seed, id);
                }
                if kind == 99 {
                    index.merge();
                }
            }
            let snapshot = index.snapshot(1, &none());
            for seed in 0..8000 {
                prop_assert_eq!(snapshot.find(&hash(seed)), model.get(&seed).copied());
            }
        }
    }
}
