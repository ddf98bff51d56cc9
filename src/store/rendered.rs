//! What was rendered of rows lately. The actor alone puts it there; workers read it, so that what one of them was
//! answered none of the others has to ask for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::rows::Row;
use super::served::Served;
use crate::formats::store_path::StorePathHash;

/// Rendered rows by row id, bounded.
pub(super) struct Rendered(Cache<i64, Arc<Rendering>, Weight>);

/// What a rendered row weighs in the middle: a path with some ten references.
pub(super) const TYPICAL_BYTES: u64 = 2048;

/// What was made of a row.
struct Rendering {
    row: Row,
    served: Arc<Served>,
    /// The last epoch in which the row was read and was this: see [`super::view`].
    epoch: AtomicU64,
}

impl Rendered {
    /// Nothing yet; room for so many bytes.
    pub(super) fn with_room(bytes: u64) -> Self {
        Self(Cache::with_weighter(
            usize::try_from(bytes / TYPICAL_BYTES).unwrap_or(usize::MAX),
            bytes,
            Weight,
        ))
    }

    /// What was made of the row `id`, if that is known to be so in `epoch` and is the path with this hash part. A row of
    /// another database may have the same id.
    pub(super) fn get(&self, id: i64, hash: &StorePathHash, epoch: u64) -> Option<(Arc<Served>, u64)> {
        let rendering = self.0.get(&id)?;
        let read = rendering.epoch.load(Ordering::Acquire);
        let holds = read >= epoch && rendering.served.info.path.hash() == *hash;
        holds.then(|| (Arc::clone(&rendering.served), read))
    }

    /// Whether the row was rendered as it is.
    pub(super) fn has(&self, row: &Row) -> bool {
        self.0.peek(&row.id).is_some_and(|rendering| rendering.row == *row)
    }

    /// What was made of the row, which was read in `epoch` and has not changed.
    pub(super) fn confirm(&self, row: &Row, epoch: u64) -> Option<Arc<Served>> {
        let rendering = self.0.get(&row.id).filter(|rendering| rendering.row == *row)?;
        rendering.epoch.store(epoch, Ordering::Release);
        Some(Arc::clone(&rendering.served))
    }

    /// Keeps what was made of a row that was read in `epoch`.
    pub(super) fn keep(&self, row: Row, served: Arc<Served>, epoch: u64) {
        self.0.insert(row.id, Arc::new(Rendering { row, served, epoch: AtomicU64::new(epoch) }));
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.0.clear();
    }
}

impl std::fmt::Debug for Rendered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rendered").field("rows", &self.0.len()).finish()
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<i64, Arc<Rendering>> for Weight {
    fn weight(&self, _: &i64, rendering: &Arc<Rendering>) -> u64 {
        let row = &rendering.row;
        let texts = [&row.deriver, &row.sigs, &row.ca].into_iter().flatten().map(String::len).sum::<usize>();
        let row = size_of::<Rendering>() + row.path.len() + row.hash.len() + texts;
        row as u64 + rendering.served.weight()
    }
}
