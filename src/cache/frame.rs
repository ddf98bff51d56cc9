//! Where a frame lies, for those who send it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use super::inventory::Place;
use super::volume::Volume;
use crate::limits::CACHE_USES_MAX;
use crate::nar::Segment;

/// A frame that was there when it was asked for. It holds neither memory nor a descriptor, and does not keep the
/// frame from being evicted: [`Frame::pin`] it when its bytes are wanted.
#[derive(Clone, Debug)]
pub struct Frame(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    volume: Weak<Volume>,
    place: Place,
    /// How often it was pinned of late, up to [`CACHE_USES_MAX`]: what eviction goes by.
    uses: AtomicU8,
}

impl Frame {
    pub(super) fn new(volume: &Arc<Volume>, place: Place, uses: u8) -> Self {
        Self(Arc::new(Inner { volume: Arc::downgrade(volume), place, uses: AtomicU8::new(uses) }))
    }

    /// Its length in bytes; never 0.
    #[allow(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> u64 {
        u64::from(self.0.place.len)
    }

    /// The frame's bytes, and a mark that they were of use. They stay readable as long as the segment is held, even
    /// when the frame is evicted meanwhile. `None` where it has been, or somebody has written to its volume: ask
    /// [`super::Cache::get`] again. Waits for no disk.
    pub fn pin(&self) -> Option<Segment> {
        let segment = self.pin_unmarked()?;
        let uses = &self.0.uses;
        // Reading first keeps the frames that everybody wants from being written to by every worker. Two that
        // count at once may go beyond the bound by their number, which says nothing wrong.
        if uses.load(Ordering::Relaxed) < CACHE_USES_MAX {
            uses.fetch_add(1, Ordering::Relaxed);
        }
        Some(segment)
    }

    /// As [`Frame::pin`], for whoever has made the frame: that it is wanted again has yet to be seen.
    pub(super) fn pin_unmarked(&self) -> Option<Segment> {
        let volume = self.volume().filter(|volume| volume.is_untouched())?;
        let Place { offset, .. } = self.0.place;
        Some(Segment::File { file: Arc::clone(volume.file()), offset, len: self.len() })
    }

    /// The volume, unless it was evicted.
    pub(super) fn volume(&self) -> Option<Arc<Volume>> {
        self.0.volume.upgrade()
    }

    pub(super) fn place(&self) -> Place {
        self.0.place
    }

    pub(super) fn uses(&self) -> u8 {
        self.0.uses.load(Ordering::Relaxed)
    }
}
