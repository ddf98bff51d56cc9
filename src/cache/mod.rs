//! What is made of NARs and kept on disk: frames in volumes, and manifests that say which frames make one NAR.
//!
//! A [`Cache`] is a folder of append-only volumes with an inventory of what lies where. It gives [`Frame`]s, which
//! are sent straight from their volume. All of it may be lost at any moment and only costs time: whoever asks for a
//! frame that is not there makes it again.
//!
//! **Never a wrong byte.** A frame is read back and checked before its first use in the life of a process, so that
//! neither a power failure nor a damaged disk is ever served. Afterwards a volume is looked at before each use: one that
//! something else has written to is given up. See [`Cache`] for what is written when.

pub mod actor;
mod again;
mod appender;
pub mod compress;
pub mod decode;
pub mod encode;
mod error;
mod folder;
mod frame;
mod inventory;
mod job;
mod key;
pub mod layout;
mod manifest;
pub mod pack;
mod plans;
mod stream;
mod survey;
#[cfg(test)]
mod tests;
mod volume;

pub use error::CacheError;
pub use folder::{Cache, Contents};
pub use frame::Frame;
pub use job::{CompressError, Interest, Job};
pub use key::{Key, ManifestKey};
pub use manifest::{Manifest, Part};
pub use stream::{Fetched, Stream, Tree};
pub use survey::{Survey, clear, survey};
