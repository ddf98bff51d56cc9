//! Plans of trees of which frames are made again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::nar::{CASE_HACK, NarError, Origin, Plan};

/// The plans that somebody has, by tree: a plan takes megabytes, and whoever is sent the same tree shares one.
#[derive(Debug, Default)]
pub(super) struct Plans(Mutex<HashMap<Origin, Weak<Plan>>>);

impl Plans {
    /// A plan of the tree at `root`. Waits for the disk.
    pub(super) fn of(&self, root: &Path) -> Result<Arc<Plan>, NarError> {
        let origin = Origin::of(root)?;
        if let Some(plan) = self.plans().get(&origin).and_then(Weak::upgrade) {
            return Ok(plan);
        }
        let made = Arc::new(Plan::build(root, CASE_HACK)?);
        let mut plans = self.plans();
        plans.retain(|_, plan| plan.strong_count() > 0);
        // Somebody else may have made it meanwhile.
        if let Some(plan) = plans.get(&made.origin()).and_then(Weak::upgrade) {
            return Ok(plan);
        }
        plans.insert(made.origin(), Arc::downgrade(&made));
        Ok(made)
    }

    /// Nothing panics while it is locked, and it would be whole if something did.
    fn plans(&self) -> MutexGuard<'_, HashMap<Origin, Weak<Plan>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_shared_as_long_as_somebody_has_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        for root in [&one, &other] {
            std::fs::write(root, "contents").expect("written");
        }
        let plans = Plans::default();
        let of = |root| plans.of(root).expect("readable");
        let (first, second) = (of(&one), of(&one));
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &of(&other)));
        drop((first, second));
        let other = of(&other);
        assert_eq!(plans.plans().len(), 1, "nobody has the first any more");
        assert_eq!(Arc::strong_count(&other), 1);
    }
}
