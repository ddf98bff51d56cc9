//! Packs: a NAR's framing and small files end to end, so that they are sent by `sendfile` instead of being opened
//! and read each time.
//!
//! The first request for a NAR is served from the store, and a pack made behind it, at leisure: nobody ever waits for one.
//!
//! **A pack is right for good.** All of the NAR is read and hashed while it is packed, large files too, and there is a
//! pack only where the hash is the database's. It is of the very bytes that were hashed, and found by that hash: what
//! becomes of the tree says nothing of it. A tree that has another hash is reported.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::Digest;

use super::{Cache, CacheError, Frame, Key, ManifestKey};
use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePath;
use crate::limits::{
    PACK_DELAY, PACK_FRAME, PACK_MAX_SHARE, PACK_REST, PACK_SLICE, SENDFILE_MIN, WARNING_PAUSE,
};
use crate::mailbox::{Receiver, Sender, Silence};
use crate::metrics::PackMetrics;
use crate::nar::{Cursor, Damage, NarError, Pack, Plan, Reader, Segment};

/// How frames of packs are encoded: not at all. A part of their keys.
const PLAIN: &str = "plain";

/// How much is read at a time, in bytes.
const READ: usize = 128 * 1024;

/// A NAR that is sent without a pack.
#[derive(Debug)]
pub struct Request {
    /// The store path, for messages.
    pub path: StorePath,
    /// The hash that the NAR must have.
    pub nar_hash: Sha256,
    /// Anywhere in it.
    pub nar: Cursor,
    /// When it was asked for.
    pub asked: Instant,
}

/// The actor that makes packs.
pub struct Packer {
    cache: Arc<Cache>,
    max_size: u64,
    /// Hears of paths that are not what the database says.
    damages: Option<Sender<Damage>>,
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
    /// An actor that keeps packs in `cache`, which may hold `max_size` bytes. Who receives `damages` hears of paths that
    /// turned out not to be what the database says.
    pub fn new(
        cache: Arc<Cache>,
        max_size: u64,
        damages: Option<Sender<Damage>>,
        metrics: Arc<PackMetrics>,
    ) -> Self {
        Self { cache, max_size, damages, metrics, rests: None }
    }

    /// Sees to packs for what is asked until every sender is gone; gives a pack up that is in the making when the
    /// sender of `lives` is.
    pub fn run(mut self, requests: &Receiver<Request>, lives: &Receiver<Infallible>) {
        let ends_within = |time| lives.recv_timeout(time) == Err(Silence::Closed);
        while let Some(request) = requests.recv() {
            if self.rests.is_some_and(|until| Instant::now() < until) || !self.wants(request.nar.plan()) {
                continue;
            }
            let packed = self.pack(&request, &ends_within).and_then(|()| match requests.depth() {
                0 => Ok(self.cache.sync()?),
                _ => Ok(()),
            });
            match packed {
                Ok(()) => self.rests = None,
                Err(PackError::Ending) => return,
                Err(error) => self.failed(&request, &error),
            }
        }
    }

    /// Whether a pack would be of use: it may have been made since it was asked for, and one that takes much of the
    /// cache would cost all others their place.
    fn wants(&self, plan: &Plan) -> bool {
        plan.has_small_files() && !plan.is_packed() && plan.packed_size() <= self.max_size / PACK_MAX_SHARE
    }

    fn pack(&self, request: &Request, ends_within: &dyn Fn(Duration) -> bool) -> Result<(), PackError> {
        let plan = request.nar.plan();
        let key = manifest_key(&request.nar_hash, plan);
        let frames = match self.find(&key)? {
            Some(frames) => {
                self.metrics.found();
                frames
            }
            None => {
                // Not beside the very download that it was asked for: that one has the machine for itself.
                if ends_within((request.asked + PACK_DELAY).saturating_duration_since(Instant::now())) {
                    return Err(PackError::Ending);
                }
                let frames = self.make(request, key, ends_within)?;
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
        let found = keys.iter().map(|key| self.cache.get(&Key::from_bytes(*key))).collect();
        match found {
            Err(error) if error.is_loss() => {
                tracing::warn!(%error, "a pack is made again");
                Ok(None)
            }
            found => found,
        }
    }

    /// Reads the NAR and keeps its framing and small files, if it has the right hash. Until that is known, there are
    /// frames that nothing leads to.
    fn make(
        &self,
        request: &Request,
        key: ManifestKey,
        ends_within: &dyn Fn(Duration) -> bool,
    ) -> Result<Vec<Frame>, PackError> {
        let mut nar = request.nar.clone().without_pack();
        nar.set_range(0, nar.plan().size());
        let (mut frames, mut manifest) = (Vec::new(), Vec::new());
        let mut bytes = Vec::with_capacity(PACK_FRAME.min(nar.plan().packed_size() as usize));
        let (mut reader, mut buffer, mut hasher) = (Reader::new(nar), vec![0; READ], sha2::Sha256::new());
        let mut rested = Instant::now();
        loop {
            let (read, is_large) = reader.fill_part(&mut buffer)?;
            hasher.update(&buffer[..read]);
            if !is_large {
                bytes.extend_from_slice(&buffer[..read]);
            }
            let worked = rested.elapsed();
            // Also at the end: many small NARs one after another are no less work than a large one.
            if worked >= PACK_SLICE || read == 0 {
                if ends_within(worked * PACK_REST) {
                    return Err(PackError::Ending);
                }
                rested = Instant::now();
            }
            while bytes.len() >= PACK_FRAME || (read == 0 && !bytes.is_empty()) {
                let frame = &bytes[..bytes.len().min(PACK_FRAME)];
                let key = Key::of(PLAIN, frame);
                frames.push(self.cache.put(&key, frame)?);
                manifest.extend_from_slice(key.as_bytes());
                bytes.drain(..frame.len());
            }
            if read == 0 {
                break;
            }
        }
        let (found, registered) = (Sha256(hasher.finalize().into()), request.nar_hash);
        if found != registered {
            return Err(NarError::HashMismatch { path: request.path.clone(), found, registered }.into());
        }
        self.cache.put_manifest(key, Bytes::from(manifest))?;
        Ok(frames)
    }

    /// A path that cannot be read is told of where it is served, and damage where it is marked; a cache that cannot be
    /// written to is told of here, and left alone for a while, as each try reads the whole NAR for nothing.
    fn failed(&mut self, request: &Request, error: &PackError) {
        self.metrics.failed();
        match error {
            PackError::Cache(error) => {
                tracing::warn!(%error, "the cache cannot be used: NARs are read from the store each time");
                self.rests = Some(Instant::now() + WARNING_PAUSE);
            }
            PackError::Nar(error) => {
                tracing::debug!(%error, "no pack was made");
                let damage = Damage::of_read(error, request.nar_hash, &request.nar);
                if let (Some(damage), Some(damages)) = (damage, &self.damages) {
                    // What a full mailbox refuses is found again with the next request for it.
                    let _ = damages.try_send(damage);
                }
            }
            PackError::Ending => {}
        }
    }
}

/// A pack in the cache.
#[derive(Debug)]
struct Kept(Vec<Frame>);

impl Pack for Kept {
    fn hold(&self) -> Option<Vec<Segment>> {
        self.0.iter().map(Frame::pin).collect()
    }
}

/// What a pack is found by: the NAR, the plan's framing, which has every name and size, and which files are in it. NAR and
/// framing belong together where the plan is right; by one that is not, no pack is found, whose bytes it would put in
/// wrong places.
fn manifest_key(nar_hash: &Sha256, plan: &Plan) -> ManifestKey {
    let of = format!("pack 2 of {nar_hash}, files below {SENDFILE_MIN}");
    ManifestKey::of(&of, &Sha256::of(plan.framing()))
}
