//! A worker's slice of the connections: a slab, and a list of those without an answer in flight, longest
//! first, so that making room and closing idle ones cost the same however many there are.

use slab::Slab;

/// The end of the list in both directions.
const NONE: usize = usize::MAX;

/// Entries by key, some of them in the idle list.
#[derive(Debug)]
pub struct Slice<T> {
    slots: Slab<Slot<T>>,
    oldest: usize,
    newest: usize,
}

#[derive(Debug)]
struct Slot<T> {
    entry: T,
    /// Neighbours in the idle list; `None` when not in it.
    links: Option<Links>,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    older: usize,
    newer: usize,
}

impl<T> Default for Slice<T> {
    fn default() -> Self {
        Self { slots: Slab::new(), oldest: NONE, newest: NONE }
    }
}

impl<T> Slice<T> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Adds an entry, not idle, and gives its key.
    pub fn insert(&mut self, entry: T) -> usize {
        self.slots.insert(Slot { entry, links: None })
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: usize) -> Option<T> {
        self.leave_idle(key);
        self.slots.try_remove(key).map(|slot| slot.entry)
    }

    /// The entry of `key`.
    pub fn get(&self, key: usize) -> Option<&T> {
        self.slots.get(key).map(|slot| &slot.entry)
    }

    /// The entry of `key`, to change.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        self.slots.get_mut(key).map(|slot| &mut slot.entry)
    }

    /// The idle entry that has been so longest.
    pub fn oldest_idle(&self) -> Option<usize> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Whether an entry is in the idle list.
    pub fn is_idle(&self, key: usize) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.links.is_some())
    }

    /// Every key, in no order.
    pub fn keys(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots.iter().map(|(key, _)| key)
    }

    /// Puts an entry at the young end of the idle list, unless it is in it.
    pub fn become_idle(&mut self, key: usize) {
        let newest = self.newest;
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.links.is_some() {
            return;
        }
        slot.links = Some(Links { older: newest, newer: NONE });
        self.newest = key;
        match self.links_mut(newest) {
            Some(links) => links.newer = key,
            None => self.oldest = key,
        }
    }

    /// Takes an entry out of the idle list, if it is in it.
    pub fn leave_idle(&mut self, key: usize) {
        let Some(Links { older, newer }) = self.slots.get_mut(key).and_then(|slot| slot.links.take()) else {
            return;
        };
        match self.links_mut(older) {
            Some(links) => links.newer = newer,
            None => self.oldest = newer,
        }
        match self.links_mut(newer) {
            Some(links) => links.older = older,
            None => self.newest = older,
        }
    }

    fn links_mut(&mut self, key: usize) -> Option<&mut Links> {
        self.slots.get_mut(key).and_then(|slot| slot.links.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(slice: &Slice<u32>) -> Vec<usize> {
        let mut keys = Vec::new();
        let mut at = slice.oldest;
        while at != NONE {
            keys.push(at);
            at = slice.slots[at].links.unwrap().newer;
        }
        keys
    }

    proptest! {
        /// The list against a plain vector.
        #[test]
        fn the_idle_list_keeps_its_order(steps in prop::collection::vec((0u8..4, 0usize..12), 0..200)) {
            let mut slice = Slice::default();
            let mut model: Vec<usize> = Vec::new();
            let mut live: Vec<usize> = Vec::new();
            for (step, pick) in steps {
                let chosen = live.get(pick % live.len().max(1)).copied();
                match (step, chosen) {
                    (0, _) => live.push(slice.insert(0)),
                    (1, Some(key)) => {
                        slice.become_idle(key);
                        if !model.contains(&key) { model.push(key) }
                    }
                    (2, Some(key)) => {
                        slice.leave_idle(key);
                        model.retain(|other| *other != key);
                    }
                    (3, Some(key)) => {
                        prop_assert!(slice.remove(key).is_some());
                        model.retain(|other| *other != key);
                        live.retain(|other| *other != key);
                    }
                    _ => {}
                }
                prop_assert_eq!(order(&slice), model.clone());
                prop_assert_eq!(slice.oldest_idle(), model.first().copied());
                prop_assert_eq!(slice.len(), live.len());
            }
        }
    }

    #[test]
    fn a_key_that_is_gone_is_nothing() {
        let mut slice = Slice::default();
        let key = slice.insert(1);
        assert_eq!(slice.remove(key), Some(1));
        slice.become_idle(key);
        slice.leave_idle(key);
        assert_eq!(slice.remove(key), None);
        assert_eq!(slice.oldest_idle(), None);
        assert!(slice.is_empty());
    }
}
