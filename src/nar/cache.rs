//! The plans that are kept, and who waits for one that is being made.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::{NarError, Origin, Plan};
use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePathHash;
use crate::limits::{PLAN_CACHE_BYTES, WAITING_MAX};

/// Counts the changes of what is known to be damaged; clones share the count. What is put right in place keeps its root,
/// and a plan has names, targets and modes: so a plan that was made before a mark was set or cleared is not used after.
#[derive(Clone, Debug, Default)]
pub struct Generation(Arc<AtomicU64>);

impl Generation {
    /// A mark was set or cleared.
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Which NAR of which tree a plan is of. A path that was deleted and made again has another root, so it is never served
/// by the plan of the old one; nor by the pack of another NAR, which is kept with the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The path's hash part.
    pub(super) path: StorePathHash,
    /// The NAR's hash in the database.
    pub(super) nar_hash: Sha256,
    /// Its size in the database.
    pub(super) size: u64,
    /// What the system says of the path's root.
    pub(super) origin: Origin,
    /// When it was asked for; see [`Generation`].
    pub(super) generation: u64,
}

/// A plan, or why there is none.
pub(super) type Planned = Result<Arc<Plan>, NarError>;

/// Plans by tree, bounded in memory; a plan is made once however many ask for it, and a failure is not kept.
/// Those who ask for a plan in the making are put on a list and answered by its maker, so that one slow tree
/// takes one thread.
pub(super) struct Plans<W>(Mutex<Table<W>>);

/// One cache under one lock, not one in shards: a shard's part of the memory may be too little for a large
/// tree's plan, which is the one that costs most to make again.
struct Table<W> {
    kept: Cache<Key, Arc<Plan>, ByMemory>,
    making: HashMap<Key, Vec<W>>,
}

/// What [`Plans::find`] has.
pub(super) enum Found<W> {
    /// The plan; the waiter is handed back.
    Kept(Arc<Plan>, W),
    /// Someone makes it; the waiter is on the list.
    InTheMaking,
    /// Someone makes it, and the list is full; the waiter is handed back.
    Crowded(W),
    /// The caller is to make it, and then to call [`Plans::made`]; the waiter is on the list.
    ToMake,
}

#[derive(Clone)]
struct ByMemory;

impl Weighter<Key, Arc<Plan>> for ByMemory {
    fn weight(&self, _: &Key, plan: &Arc<Plan>) -> u64 {
        plan.memory() as u64
    }
}

impl<W> Plans<W> {
    pub(super) fn new() -> Self {
        // A plan of a common path takes some 30 KiB; the number only sizes the first table.
        let plans = (PLAN_CACHE_BYTES / (32 * 1024)) as usize;
        let kept = Cache::with_weighter(plans, PLAN_CACHE_BYTES, ByMemory);
        Self(Mutex::new(Table { kept, making: HashMap::new() }))
    }

    /// The plan for `key`, or a place on the list of those who wait for it.
    pub(super) fn find(&self, key: &Key, waiter: W) -> Found<W> {
        let mut table = self.table();
        if let Some(plan) = table.kept.get(key).filter(|plan| !plan.is_given_up()) {
            return Found::Kept(Arc::clone(plan), waiter);
        }
        if let Some(waiting) = table.making.get_mut(key) {
            if waiting.len() >= WAITING_MAX {
                return Found::Crowded(waiter);
            }
            waiting.push(waiter);
            return Found::InTheMaking;
        }
        table.making.insert(*key, vec![waiter]);
        Found::ToMake
    }

    /// Keeps what was made for `key`, and gives back who waits for it.
    pub(super) fn made(&self, key: &Key, plan: &Planned) -> Vec<W> {
        let mut table = self.table();
        if let Ok(plan) = plan {
            table.kept.insert(*key, Arc::clone(plan));
        }
        table.making.remove(key).unwrap_or_default()
    }

    /// Nothing panics while it is locked, and it would be whole if something did.
    fn table(&self) -> MutexGuard<'_, Table<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
