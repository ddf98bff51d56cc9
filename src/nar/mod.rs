//! A store path as a plan of segments, and the cold actors that walk trees.
//!
//! A store path never changes, so its NAR is a fixed list of [`Segment`]s: bytes, and ranges of files. A
//! [`Plan`] is that list in compact form, made by one walk of the tree and kept; a [`Cursor`] is a place in
//! one NAR, and [`Cursor::fetch`] gives what comes next. Nothing here streams, and nothing here guesses: a
//! file that is not what the plan says is an error, never padding.
//!
//! Framing and small files may have been packed end to end ([`Pack`]); then a cursor gives ranges of the pack
//! and of large files, and reads nothing.

pub mod actor;
mod cache;
mod damage;
mod error;
mod fetch;
mod measure;
mod opener;
mod pack;
mod plan;
mod read;
mod restore;
mod segment;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

pub use cache::Generation;
pub use damage::{Damage, Evidence};
pub use error::NarError;
pub use fetch::{Cursor, Fetcher};
pub use pack::Pack;
pub use plan::{Origin, Plan};
pub use read::{Hashing, Reader, nar_hash, plan_hash};
pub use restore::{RestoreError, restore, seal_folder};
pub use segment::Segment;

/// Whether Nix on this system gives names that differ in case only a suffix on disk, to be taken off in a
/// NAR.
pub const CASE_HACK: bool = cfg!(target_os = "macos");
