//! A tree that is not what the database says.

use super::Origin;
use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePath;

/// A store path whose NAR was read to its end and has not the hash that the database has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The store path.
    pub path: StorePath,
    /// The hash of the database.
    pub registered: Sha256,
    /// The hash that the tree's NAR has.
    pub found: Sha256,
    /// The tree: once it is another, this says nothing of it.
    pub origin: Origin,
}
