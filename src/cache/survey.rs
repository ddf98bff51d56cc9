//! The cache's folder as a command sees it, beside a server that uses it or without one.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::error::failed;
use super::inventory::Inventory;
use super::manifest::Manifest;
use super::{CacheError, folder, inventory, volume};

/// What lies in a cache's folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// How many volumes there are.
    pub volumes: u64,
    /// Their bytes.
    pub volume_bytes: u64,
    /// How many frames the inventory knows.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
    /// How many compressed NARs are known.
    pub nars: u64,
    /// Their size in bytes, uncompressed.
    pub nar_bytes: u64,
    /// The same compressed, each by itself.
    pub file_bytes: u64,
    /// The same with each frame counted once, however many NARs it is in.
    pub unique_bytes: u64,
}

/// Looks at the cache in `folder`; `None` where there is none. Changes nothing.
///
/// # Errors
/// When the folder or the inventory cannot be read.
pub fn survey(folder: &Path) -> Result<Option<Survey>, CacheError> {
    let Some(inventory) = Inventory::open_to_read(folder)? else { return Ok(None) };
    let mut survey = Survey::default();
    for number in volume::list(folder)? {
        // One that is evicted meanwhile takes no room.
        if let Ok(found) = fs::metadata(volume::path(folder, number)) {
            survey.volumes += 1;
            survey.volume_bytes += found.len();
        }
    }
    (survey.frames, survey.frame_bytes) = inventory.totals()?;
    let mut seen = HashSet::new();
    inventory.each_manifest(|body| {
        // Those of packs are written otherwise.
        let Some(manifest) = Manifest::from_bytes(body) else { return };
        survey.nars += 1;
        survey.nar_bytes += manifest.nar_size();
        survey.file_bytes += manifest.file_size();
        let mut begin = 0;
        for part in manifest.parts() {
            if seen.insert(part.key) {
                survey.unique_bytes += part.file_end - begin;
            }
            begin = part.file_end;
        }
    })?;
    Ok(Some(survey))
}

/// Removes all that the cache keeps in `folder`, and gives the bytes that it had. A server that uses it sees that
/// within seconds, see [`super::Cache::look`], and begins anew; what it is sending it sends to the end.
///
/// # Errors
/// When something cannot be removed.
pub fn clear(folder: &Path) -> Result<u64, CacheError> {
    let mut bytes = 0;
    let numbers = match volume::list(folder) {
        Err(CacheError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(0);
        }
        numbers => numbers?,
    };
    for number in numbers {
        bytes += fs::metadata(volume::path(folder, number)).map_or(0, |found| found.len());
        volume::unlink(folder, number)?;
    }
    inventory::remove(&folder.join(inventory::NAME))?;
    // Last, as it is what a server goes by: until then it does not know of a new inventory.
    let lock = folder.join(folder::LOCK);
    match fs::remove_file(&lock) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&lock, "remove")(error)),
        _ => Ok(bytes),
    }
}
