//! A tree that is not what the database says.

use super::{CASE_HACK, Cursor, NarError, Origin, Plan};
use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePath;

/// A store path whose NAR has not the hash or the size that the database has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The store path.
    pub path: StorePath,
    /// The hash of the database.
    pub registered: Sha256,
    /// What the tree was found to be.
    pub found: Evidence,
    /// The tree: once it is another, this says nothing of it.
    pub origin: Origin,
}

/// What shows that a tree is not what was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Its NAR was read to the end and has this hash.
    Hash(Sha256),
    /// Its NAR would have another size. It need not be read for that.
    Size {
        /// What the tree comes to, in bytes.
        planned: u64,
        /// narSize of the database.
        registered: u64,
    },
}

impl Damage {
    /// The damage that `error` speaks of, of the tree `origin` with the hash `registered` in the database; `None` where
    /// it says nothing that lasts of the tree.
    pub fn of(error: &NarError, registered: Sha256, origin: Origin) -> Option<Self> {
        let (path, found) = match error {
            NarError::HashMismatch { path, found, .. } => (path, Evidence::Hash(*found)),
            NarError::SizeMismatch { path, planned, registered } => {
                (path, Evidence::Size { planned: *planned, registered: *registered })
            }
            _ => return None,
        };
        Some(Self { path: path.clone(), registered, found, origin })
    }

    /// The same of a NAR that was read to its end by the plan that `nar` goes by, and found to have another hash than
    /// `registered`. That may be the plan's fault: the tree below its root was put right in place since it was made. So
    /// the plan is given up, and where the tree makes another one by now, nothing is known of it. Walks the tree.
    pub fn of_read(error: &NarError, registered: Sha256, nar: &Cursor) -> Option<Self> {
        let damage = Self::of(error, registered, nar.plan().origin())?;
        nar.plan().give_up();
        let now = Plan::build(nar.root(), CASE_HACK).ok()?;
        (now.framing() == nar.plan().framing()).then_some(damage)
    }
}
