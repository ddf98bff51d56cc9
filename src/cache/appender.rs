//! What was put into the cache and is not in its inventory yet.

use std::sync::Arc;
use std::time::Instant;

use super::ManifestKey;
use super::inventory::Batch;
use super::volume::Volume;
use crate::limits::{CACHE_MANIFESTS_UNSETTLED, CACHE_SYNC_BYTES, CACHE_SYNC_TIME};

/// The end of the last volume.
#[derive(Debug, Default)]
pub(super) struct Appender {
    /// `None` before the first volume is made, and after one was given up.
    pub(super) volume: Option<Arc<Volume>>,
    /// What is not in the inventory yet; all frames are in `volume`.
    pub(super) batch: Batch,
    /// Bytes of its frames.
    bytes: u64,
    /// Since when there is something in it.
    since: Option<Instant>,
}

/// What is to be settled, with the volume that its frames are in and where that ended when it was taken.
pub(super) struct Taken {
    pub(super) batch: Batch,
    pub(super) volume: Option<(Arc<Volume>, u64)>,
}

impl Appender {
    /// So many bytes were added to the batch; whether it is time to settle it.
    pub(super) fn added(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        let since = *self.since.get_or_insert_with(Instant::now);
        self.bytes >= CACHE_SYNC_BYTES || since.elapsed() >= CACHE_SYNC_TIME
    }

    pub(super) fn take(&mut self) -> Taken {
        self.bytes = 0;
        self.since = None;
        let volume = self.volume.clone().map(|volume| {
            let end = volume.end();
            (volume, end)
        });
        Taken { batch: std::mem::take(&mut self.batch), volume }
    }

    /// What was put meanwhile is newer. The next try is a while away. Gives the manifests that are too many to be held.
    pub(super) fn put_back(&mut self, batch: Batch) -> Vec<ManifestKey> {
        self.batch.frames.extend(batch.frames);
        for (key, body) in batch.manifests {
            self.batch.manifests.entry(key).or_insert(body);
        }
        self.since = Some(Instant::now());
        if self.batch.manifests.len() <= CACHE_MANIFESTS_UNSETTLED {
            return Vec::new();
        }
        std::mem::take(&mut self.batch.manifests).into_keys().collect()
    }
}
