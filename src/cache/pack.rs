//! Packs: a NAR's framing and small files end to end, so that they are sent by `sendfile` instead of being opened
//! and read each time.
//!
//! The first request for a NAR is served from the store, and a pack made behind it; nobody ever waits for one. A
//! pack holds for one tree: a path that was deleted and made again, or repaired, gets another.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Cache, CacheError, Frame, Key, ManifestKey};
use crate::formats::hash::Sha256;
use crate::limits::{PACK_DELAY, PACK_FRAME, PACK_MAX_SHARE, WARNING_PAUSE};
use crate::mailbox::{Receiver, Silence};
use crate::metrics::PackMetrics;
use crate::nar::{Cursor, Fetcher, NarError, Origin, Pack, Plan, Segment};

/// How frames of packs are encoded: not at all. A part of their keys.
const PLAIN: &str = "plain";

/// A NAR that is sent without a pack.
#[derive(Debug)]
pub struct Request {
    /// Anywhere in it.
    pub nar: Cursor,
    /// When it was asked for.
    pub asked: Instant,
}

/// The actor that makes packs.
pub struct Packer {
    cache: Arc<Cache>,
    max_size: u64,
    metrics: Arc<PackMetrics>,
    /// Nothing is made until then: the cache could not be used.
    rests: Option<Instant>,
}

/// Why there is no pack.
#[derive(Debug, thiserror::Error)]
enum PackError {
    #[error(transparent)]
    Nar(#[from] NarError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("the server ends")]
    Ending,
}

impl Packer {
    /// An actor that keeps packs in `cache`, which may hold `max_size` bytes.
    pub fn new(cache: Arc<Cache>, max_size: u64, metrics: Arc<PackMetrics>) -> Self {
        Self { cache, max_size, metrics, rests: None }
    }

    /// Sees to packs for what is asked until every sender is gone; gives a pack up that is in the making when the
    /// sender of `lives` is.
    pub fn run(mut self, requests: &Receiver<Request>, lives: &Receiver<Infallible>) {
        let ends_within = |time| lives.recv_timeout(time) == Err(Silence::Closed);
        while let Some(Request { nar, asked }) = requests.recv() {
            if self.rests.is_some_and(|until| Instant::now() < until) || !self.wants(nar.plan()) {
                continue;
            }
            let packed = self.pack(nar, asked, &ends_within).and_then(|()| match requests.depth() {
                0 => Ok(self.cache.sync()?),
                _ => Ok(()),
            });
            match packed {
                Ok(()) => self.rests = None,
                Err(PackError::Ending) => return,
                Err(error) => self.failed(&error),
            }
        }
    }

    /// Whether a pack would be of use: it may have been made since it was asked for, and one that takes much of the
    /// cache would cost all others their place.
    fn wants(&self, plan: &Plan) -> bool {
        plan.has_small_files() && !plan.is_packed() && plan.packed_size() <= self.max_size / PACK_MAX_SHARE
    }

    fn pack(
        &self,
        nar: Cursor,
        asked: Instant,
        ends_within: &dyn Fn(Duration) -> bool,
    ) -> Result<(), PackError> {
        let plan = Arc::clone(nar.plan());
        let key = manifest_key(&plan);
        let frames = match self.find(&key)? {
            Some(frames) => {
                self.metrics.found();
                frames
            }
            None => {
                // Not beside the very download that it was asked for: that one has the machine for itself.
                if ends_within((asked + PACK_DELAY).saturating_duration_since(Instant::now())) {
                    return Err(PackError::Ending);
                }
                let frames = self.make(nar, key, &|| ends_within(Duration::ZERO))?;
                self.metrics.made(plan.packed_size());
                frames
            }
        };
        plan.set_pack(Arc::new(Kept(frames)));
        Ok(())
    }

    /// The frames of a pack that was made before, if all are still there.
    fn find(&self, key: &ManifestKey) -> Result<Option<Vec<Frame>>, CacheError> {
        let Some(manifest) = self.cache.manifest(key)? else { return Ok(None) };
        let (keys, _) = manifest.as_chunks();
        keys.iter().map(|key| self.cache.get(&Key::from_bytes(*key))).collect()
    }

    /// Reads the small files and keeps them.
    fn make(
        &self,
        mut nar: Cursor,
        key: ManifestKey,
        is_ending: &dyn Fn() -> bool,
    ) -> Result<Vec<Frame>, PackError> {
        let size = nar.plan().size();
        nar.set_range(0, size);
        let (mut frames, mut manifest) = (Vec::new(), Vec::new());
        let mut bytes = Vec::with_capacity(PACK_FRAME.min(nar.plan().packed_size() as usize));
        let mut fetcher = Fetcher::batching();
        while nar.remaining() > 0 {
            for segment in nar.fetch_for_pack(&mut fetcher)? {
                // Large files, which would come open, are passed over.
                if let Segment::Bytes(part) = segment {
                    bytes.extend_from_slice(&part);
                }
            }
            if is_ending() {
                return Err(PackError::Ending);
            }
            while bytes.len() >= PACK_FRAME || (nar.remaining() == 0 && !bytes.is_empty()) {
                let frame = &bytes[..bytes.len().min(PACK_FRAME)];
                let key = Key::of(PLAIN, frame);
                frames.push(self.cache.put(&key, frame)?);
                manifest.extend_from_slice(key.as_bytes());
                bytes.drain(..frame.len());
            }
        }
        self.cache.put_manifest(key, Bytes::from(manifest))?;
        Ok(frames)
    }

    /// A path that cannot be read is told of where it is served; a cache that cannot be written to is told of here,
    /// and left alone for a while, as each try reads every small file for nothing.
    fn failed(&mut self, error: &PackError) {
        self.metrics.failed();
        match error {
            PackError::Cache(error) => {
                tracing::warn!(%error, "the cache cannot be used: NARs are read from the store each time");
                self.rests = Some(Instant::now() + WARNING_PAUSE);
            }
            error => tracing::debug!(%error, "no pack was made"),
        }
    }
}

/// A pack in the cache.
#[derive(Debug)]
struct Kept(Vec<Frame>);

impl Pack for Kept {
    fn hold(&self) -> Option<Vec<Segment>> {
        self.0.iter().map(|frame| frame.pin().filter(is_whole)).collect()
    }
}

/// Whether the volume still reaches to where the frame ends: one that was cut under the server would break every
/// transfer off.
fn is_whole(frame: &Segment) -> bool {
    match frame {
        Segment::File { file, offset, len } => file.metadata().is_ok_and(|found| found.len() >= offset + len),
        Segment::Bytes(_) => true,
    }
}

/// What a pack is found by: the tree, by its root on this machine, and its framing, which has every name and size. A
/// tree that is repaired has another root, so that damage does not outlive it in a pack.
fn manifest_key(plan: &Plan) -> ManifestKey {
    let Origin { device, inode, changed: (seconds, nanoseconds) } = plan.origin();
    let tree = format!("pack 1 of {device}:{inode}, {seconds}.{nanoseconds}");
    ManifestKey::of(&tree, &Sha256::of(plan.framing()))
}
