//! The cache: getting frames, putting them, and evicting them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::appender::{Appender, Taken};
use super::error::failed;
use super::inventory::{Batch, Inventory};
use super::volume::{self, RECORD, Volume};
use super::{CacheError, Frame, Key, ManifestKey};
use crate::limits::{CACHE_CARRIED_PART, CACHE_FRAME_MAX, CACHE_VOLUME_MIN, CACHE_VOLUMES};
use crate::metrics::CacheMetrics;

/// The file that says that a process has the folder open.
pub(super) const LOCK: &str = "lock";

/// A folder of frames and manifests, under a bound on its size. It may be used from several threads; all of its
/// methods wait for disks and locks, so workers use none of them.
///
/// **Writing.** A frame is appended to the last volume, and can be had at once. From time to time the volume is
/// forced to the disk and the frames' places are written to the inventory, in this order. What a crash keeps from
/// the inventory is found again in the volume when the cache is next opened.
///
/// **Evicting.** When the volume is full and there is no room for another, the oldest one is removed whole. Frames
/// in it that were of use since they were written, or last carried over, are carried over into the new one, those of
/// most use first, up to a part of its size ([`CACHE_CARRIED_PART`]).
///
/// The bound is on the volumes. The inventory comes on top, with about 150 bytes a frame, and so do evicted volumes
/// until the last answer that is sent from them has ended.
pub struct Cache {
    folder: PathBuf,
    sizes: Sizes,
    known: Mutex<Known>,
    /// Only read from: in this journal mode, whoever writes does not hold it up.
    reader: Mutex<Inventory>,
    /// Taken before `appender` by whoever needs both, and before `known`.
    inventory: Mutex<Inventory>,
    appender: Mutex<Appender>,
    /// Locked as long as the cache is open.
    lock: Mutex<File>,
    metrics: Arc<CacheMetrics>,
}

/// The bounds that a cache keeps to, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// All volumes together.
    pub(super) whole: u64,
    /// A new volume.
    pub(super) volume: u64,
}

/// What this process knows without asking the inventory.
#[derive(Debug, Default)]
struct Known {
    /// By number: the lowest is the oldest.
    volumes: BTreeMap<u64, Arc<Volume>>,
    /// Those that were put, or got and checked, since the cache was opened.
    frames: HashMap<Key, Frame>,
    /// Those that are not in the inventory yet.
    manifests: HashMap<ManifestKey, Bytes>,
}

/// What becomes of the frames in a volume that is evicted.
#[derive(Clone, Copy, Debug)]
enum Carry {
    /// They are gone: after a start, nobody knows of any use.
    Nothing,
    /// Those of use are carried over into the last volume.
    Used,
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// How many frames there are.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
    /// How many volumes there are.
    pub volumes: u64,
    /// Their bytes.
    pub volume_bytes: u64,
}

impl Cache {
    /// Opens the cache in `folder`, which is made where it is not there, with a bound of `max_size` bytes.
    ///
    /// # Errors
    /// When another process has it open, the folder cannot be written to, or the bound is below what
    /// [`CACHE_VOLUME_MIN`] allows.
    pub fn open(folder: &Path, max_size: u64, metrics: Arc<CacheMetrics>) -> Result<Self, CacheError> {
        let least = 2 * CACHE_VOLUME_MIN;
        if max_size < least {
            return Err(CacheError::TooSmall { size: max_size, least });
        }
        let volume = (max_size / CACHE_VOLUMES).max(CACHE_VOLUME_MIN);
        Self::open_with(folder, Sizes { whole: max_size, volume }, metrics)
    }

    pub(super) fn open_with(
        folder: &Path,
        sizes: Sizes,
        metrics: Arc<CacheMetrics>,
    ) -> Result<Self, CacheError> {
        fs::create_dir_all(folder).map_err(failed(folder, "create"))?;
        let lock = lock_folder(folder)?;
        let (inventory, is_new) = Inventory::open(folder)?;
        let cache = Self {
            folder: folder.to_owned(),
            sizes,
            known: Mutex::default(),
            reader: Mutex::new(Inventory::connect(folder)?),
            inventory: Mutex::new(inventory),
            appender: Mutex::default(),
            lock: Mutex::new(lock),
            metrics,
        };
        let last = cache.recover(&mut self::lock(&cache.inventory), is_new)?;
        cache.appender().volume = last;
        Ok(cache)
    }

    /// The frame with this key, if it is there. Before its first use in this process it is read and checked.
    ///
    /// # Errors
    /// When the inventory or a volume cannot be read, or the frame is damaged: then it is forgotten, so that this is
    /// said once. To the caller all of it means that the frame is not there.
    pub fn get(&self, key: &Key) -> Result<Option<Frame>, CacheError> {
        if let Some(frame) = self.known(key) {
            return match frame.volume().filter(|volume| !volume.is_untouched()) {
                Some(touched) => Err(self.touched(&touched)),
                None => Ok(Some(frame)),
            };
        }
        let Some(place) = lock(&self.reader).frame(key)? else { return Ok(None) };
        let Some(volume) = self.known_now().volumes.get(&place.volume).cloned() else { return Ok(None) };
        if let Err(error) = volume.read(key, place) {
            if !volume.is_untouched() {
                return Err(self.touched(&volume));
            }
            if let CacheError::Damaged { .. } = error {
                lock(&self.inventory).forget(key, place)?;
            }
            return Err(error);
        }
        let mut known = self.known_now();
        if !known.volumes.get(&place.volume).is_some_and(|known| Arc::ptr_eq(known, &volume)) {
            // Evicted while it was read. If it was carried over, its new place is known.
            return Ok(known.frames.get(key).cloned());
        }
        let frame = known.frames.entry(*key).or_insert_with(|| Frame::new(&volume, place, 0));
        Ok(Some(frame.clone()))
    }

    /// The frame with this key, if it was put, or got and checked, in this process. Waits for nothing.
    pub(super) fn known(&self, key: &Key) -> Option<Frame> {
        self.known_now().frames.get(key).cloned()
    }

    /// Whether a frame is there, as far as the inventory says.
    ///
    /// # Errors
    /// When the inventory cannot be read.
    pub fn has(&self, key: &Key) -> Result<bool, CacheError> {
        Ok(self.known_now().frames.contains_key(key) || lock(&self.reader).frame(key)?.is_some())
    }

    /// Keeps a frame. Where one with this key is there already, that one is given, and nothing is written.
    ///
    /// # Errors
    /// When it cannot be written. The cache stays usable, and whole.
    pub fn put(&self, key: &Key, bytes: &[u8]) -> Result<Frame, CacheError> {
        if bytes.is_empty() || bytes.len() > CACHE_FRAME_MAX {
            return Err(CacheError::FrameSize { len: bytes.len() });
        }
        // Whoever asked for it before this has said what is wrong with the one that was there.
        if let Ok(Some(frame)) = self.get(key) {
            return Ok(frame);
        }
        let (frame, is_due) = loop {
            if let Some(appended) = self.append(key, bytes)? {
                break appended;
            }
            self.begin_volume(bytes.len() as u64)?;
        };
        if is_due {
            self.sync()?;
        }
        Ok(frame)
    }

    /// The manifest with this key, if it is there.
    ///
    /// # Errors
    /// When the inventory cannot be read.
    pub fn manifest(&self, key: &ManifestKey) -> Result<Option<Bytes>, CacheError> {
        if let Some(body) = self.known_now().manifests.get(key) {
            return Ok(Some(body.clone()));
        }
        lock(&self.reader).manifest(key)
    }

    /// Keeps a manifest, in place of one with the same key. Of too many, the oldest are dropped
    /// ([`crate::limits::CACHE_MANIFESTS`]).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_manifest(&self, key: ManifestKey, body: Bytes) -> Result<(), CacheError> {
        let is_due = {
            let mut appender = self.appender();
            appender.batch.manifests.insert(key, body.clone());
            self.known_now().manifests.insert(key, body.clone());
            appender.added(body.len() as u64)
        };
        if is_due { self.sync() } else { Ok(()) }
    }

    /// Forgets a manifest, if it is there.
    ///
    /// # Errors
    /// When the inventory cannot be written.
    pub fn forget_manifest(&self, key: &ManifestKey) -> Result<(), CacheError> {
        let inventory = lock(&self.inventory);
        self.appender().batch.manifests.remove(key);
        self.known_now().manifests.remove(key);
        inventory.forget_manifest(key)
    }

    /// Makes what was put so far survive a power failure. Happens by itself when there is much of it or some time
    /// has passed; worth a call when nothing more is to be put for a while.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn sync(&self) -> Result<(), CacheError> {
        let mut inventory = lock(&self.inventory);
        let mut appender = self.appender();
        let taken = appender.take();
        drop(appender);
        // Others go on appending meanwhile.
        let settled = self.settle(&mut inventory, &taken);
        settled.map_err(|error| self.unsettled(&mut inventory, &mut self.appender(), taken, error))
    }

    /// What it holds.
    ///
    /// # Errors
    /// When the inventory cannot be written or read.
    pub fn contents(&self) -> Result<Contents, CacheError> {
        self.sync()?;
        let (frames, frame_bytes) = lock(&self.reader).totals()?;
        let known = self.known_now();
        Ok(Contents {
            frames,
            frame_bytes,
            volumes: known.volumes.len() as u64,
            volume_bytes: known.volumes.values().map(|volume| volume.end()).sum(),
        })
    }

    /// Looks whether the folder was cleared or deleted by somebody else; then all is forgotten, so that its space is
    /// free, and begun anew. Costs one call of the system.
    ///
    /// # Errors
    /// When it cannot be begun anew. What was there stays usable, and the next look tries again.
    pub fn look(&self) -> Result<(), CacheError> {
        if !self.is_gone() {
            return Ok(());
        }
        let mut inventory = lock(&self.inventory);
        let mut appender = self.appender();
        let mut reader = lock(&self.reader);
        // Somebody else may have seen it as well.
        if !self.is_gone() {
            return Ok(());
        }
        tracing::info!("{}: the cache was cleared or deleted, and is begun anew", self.folder.display());
        inventory.abandon();
        reader.abandon();
        fs::create_dir_all(&self.folder).map_err(failed(&self.folder, "create"))?;
        let lock = lock_folder(&self.folder)?;
        let (opened, is_new) = Inventory::open(&self.folder)?;
        *reader = Inventory::connect(&self.folder)?;
        *inventory = opened;
        *appender = Appender::default();
        *self.known_now() = Known::default();
        *self::lock(&self.lock) = lock;
        appender.volume = self.recover(&mut inventory, is_new)?;
        Ok(())
    }

    /// Whether the file that is locked is not the one in the folder any more.
    fn is_gone(&self) -> bool {
        let id = |found: fs::Metadata| (found.dev(), found.ino());
        let held = lock(&self.lock).metadata().map(id);
        match (held, fs::metadata(self.folder.join(LOCK)).map(id)) {
            (Ok(held), Ok(there)) => held != there,
            (_, Err(error)) => error.kind() == io::ErrorKind::NotFound,
            (Err(_), _) => false,
        }
    }

    /// Brings inventory and folder to agree, whatever the last process left. Gives the volume to append to.
    fn recover(&self, inventory: &mut Inventory, is_new: bool) -> Result<Option<Arc<Volume>>, CacheError> {
        let indexed: HashMap<u64, u64> = inventory.volumes()?.into_iter().collect();
        let present = volume::list(&self.folder)?;
        for (&number, &known) in indexed.iter().filter(|(number, _)| !present.contains(number)) {
            self.tell_lost(number, known, "it is gone");
            inventory.evict(number, &[])?;
        }
        for number in present {
            // The inventory forgets a volume before it is removed, and knows it before it is made.
            let is_wanted = is_new || indexed.contains_key(&number);
            let opened = if is_wanted { Volume::open(&self.folder, number)? } else { None };
            let mut from = indexed.get(&number).copied().unwrap_or(0);
            let Some(volume) = opened else {
                self.tell_lost(number, from, "it does not begin as a volume does");
                inventory.evict(number, &[])?;
                volume::unlink(&self.folder, number)?;
                continue;
            };
            if is_new || from > volume.end() {
                // Frames that the inventory knows are gone: what is left is looked through from the start.
                self.tell_lost(number, from, "it ends early");
                inventory.add_volume(number)?;
                from = 0;
            }
            if from < volume.end() {
                let frames = volume.recover(from)?;
                let batch = Batch { frames, ..Batch::default() };
                inventory.commit(&batch, Some((number, volume.end())))?;
            }
            self.known_now().volumes.insert(number, Arc::new(volume));
        }
        let last = self.known_now().volumes.last_key_value().map(|(_, volume)| Arc::clone(volume));
        // A longer one is of a time with a higher bound, and nothing is appended to it.
        let last = last.filter(|last| last.end() <= self.sizes.volume);
        self.make_room(inventory, last.as_ref(), Carry::Nothing)?;
        Ok(last)
    }

    /// Says that a volume with frames up to byte `known` is lost. One without any is what a killed process leaves.
    fn tell_lost(&self, number: u64, known: u64, found: &str) {
        if known == 0 {
            return;
        }
        let volume = volume::path(&self.folder, number);
        tracing::warn!("{}: {found}; what was in it is made again", volume.display());
    }

    /// Appends to the last volume, unless it has no room. Also says whether it is time to sync.
    fn append(&self, key: &Key, bytes: &[u8]) -> Result<Option<(Frame, bool)>, CacheError> {
        let mut appender = self.appender();
        // Somebody else may have put the same just now.
        if let Some(frame) = self.known_now().frames.get(key) {
            return Ok(Some((frame.clone(), false)));
        }
        let len = bytes.len() as u64;
        let Some(volume) = appender.volume.clone().filter(|volume| self.takes(volume, len)) else {
            return Ok(None);
        };
        let place = volume.append(key, bytes)?;
        let frame = Frame::new(&volume, place, 0);
        self.known_now().frames.insert(*key, frame.clone());
        appender.batch.frames.push((*key, place));
        Ok(Some((frame, appender.added(len))))
    }

    /// Whether a frame of `len` bytes can be appended to a volume: there is room, and nobody has touched it.
    fn takes(&self, volume: &Volume, len: u64) -> bool {
        volume.end() + RECORD + len <= self.sizes.volume && volume.is_untouched()
    }

    /// Begins another volume for a frame of `len` bytes, and evicts what is beyond the bound.
    fn begin_volume(&self, len: u64) -> Result<(), CacheError> {
        let mut inventory = lock(&self.inventory);
        let mut appender = self.appender();
        match appender.volume.clone() {
            Some(volume) if self.takes(&volume, len) => return Ok(()),
            Some(volume) if !volume.is_untouched() => {
                self.give_up(&mut inventory, &mut appender, &volume);
                tracing::warn!("{}", CacheError::Touched { file: volume.path().to_owned() });
            }
            _ => {}
        }
        let taken = appender.take();
        if let Err(error) = self.settle(&mut inventory, &taken) {
            return Err(self.unsettled(&mut inventory, &mut appender, taken, error));
        }
        let last = self.known_now().volumes.last_key_value().map(|(&number, _)| number);
        let on_disk = volume::list(&self.folder)?.into_iter().max();
        let number = last.max(on_disk).map_or(0, |number| number + 1);
        inventory.add_volume(number)?;
        let volume = match Volume::create(&self.folder, number) {
            Ok(volume) => Arc::new(volume),
            Err(error) => {
                // Should this fail as well, the next process finds that there is no such file.
                let _ = inventory.evict(number, &[]);
                let _ = volume::unlink(&self.folder, number);
                return Err(error);
            }
        };
        self.known_now().volumes.insert(number, Arc::clone(&volume));
        appender.volume = Some(Arc::clone(&volume));
        self.make_room(&mut inventory, Some(&volume), Carry::Used)
    }

    /// Evicts the oldest volumes until all others are within the bound together with what `last` may become.
    fn make_room(
        &self,
        inventory: &mut Inventory,
        last: Option<&Arc<Volume>>,
        carry: Carry,
    ) -> Result<(), CacheError> {
        let reserved = last.map_or(0, |_| self.sizes.volume);
        while let Some(oldest) = self.oldest_beyond(reserved, last) {
            let moved = match (carry, last) {
                (Carry::Used, Some(into)) => self.carry_over(&oldest, into)?,
                _ => Vec::new(),
            };
            let rows: Vec<_> = moved.iter().map(|(key, frame)| (*key, frame.place())).collect();
            let evicted = inventory.evict(oldest.number(), &rows)?;
            self.metrics.evicted(evicted);
            self.metrics.carried_over(rows.len() as u64);
            let mut known = self.known_now();
            known.frames.retain(|_, frame| frame.place().volume != oldest.number());
            known.frames.extend(moved);
            known.volumes.remove(&oldest.number());
            drop(known);
            oldest.unlink()?;
        }
        Ok(())
    }

    /// The oldest volume, where all but `last` come to more than the bound leaves beside `reserved` bytes.
    fn oldest_beyond(&self, reserved: u64, last: Option<&Arc<Volume>>) -> Option<Arc<Volume>> {
        let known = self.known_now();
        let is_other = |volume: &&Arc<Volume>| last.is_none_or(|last| last.number() != volume.number());
        let held: u64 = known.volumes.values().filter(is_other).map(|volume| volume.end()).sum();
        let oldest = known.volumes.values().find(is_other);
        oldest.filter(|_| held + reserved > self.sizes.whole).cloned()
    }

    /// Copies the frames of most use from one volume to another. What cannot be read or written is left behind: it
    /// will be made again.
    fn carry_over(&self, from: &Volume, into: &Arc<Volume>) -> Result<Vec<(Key, Frame)>, CacheError> {
        let mut used: Vec<(Key, Frame)> = {
            let known = self.known_now();
            let is_used = |frame: &Frame| frame.place().volume == from.number() && frame.uses() > 0;
            let used = known.frames.iter().filter(|(_, frame)| is_used(frame));
            used.map(|(key, frame)| (*key, frame.clone())).collect()
        };
        used.sort_unstable_by_key(|(_, frame)| (Reverse(frame.uses()), frame.place().offset));
        let most = self.sizes.volume / CACHE_CARRIED_PART;
        let mut moved = Vec::new();
        for (key, frame) in used {
            if into.end() + RECORD + frame.len() > most {
                continue;
            }
            let copied = from.read(&key, frame.place()).and_then(|bytes| into.append(&key, &bytes));
            if let Ok(place) = copied {
                moved.push((key, Frame::new(into, place, frame.uses() - 1)));
            }
        }
        if !moved.is_empty() {
            into.file().sync_data().map_err(failed(into.path(), "force to the disk"))?;
        }
        Ok(moved)
    }

    /// Forces frames to the disk, then writes where they are.
    fn settle(&self, inventory: &mut Inventory, taken: &Taken) -> Result<(), CacheError> {
        let Taken { batch, volume } = taken;
        if batch.is_empty() {
            return Ok(());
        }
        if let Some((volume, _)) = volume.as_ref().filter(|_| !batch.frames.is_empty()) {
            volume.file().sync_data().map_err(failed(volume.path(), "force to the disk"))?;
        }
        inventory.commit(batch, volume.as_ref().map(|(volume, end)| (volume.number(), *end)))?;
        let mut known = self.known_now();
        for (key, body) in &batch.manifests {
            if known.manifests.get(key) == Some(body) {
                known.manifests.remove(key);
            }
        }
        Ok(())
    }

    /// What could not be settled is kept for the next time; but a volume that could not be forced to the disk is
    /// given up: the system may have dropped what it could not write, and read something else there later.
    fn unsettled(
        &self,
        inventory: &mut Inventory,
        appender: &mut Appender,
        taken: Taken,
        error: CacheError,
    ) -> CacheError {
        let Taken { mut batch, volume } = taken;
        if let (CacheError::File { .. }, Some((volume, _))) = (&error, volume) {
            batch.frames.clear();
            self.give_up(inventory, appender, &volume);
        }
        let too_many = appender.put_back(batch);
        let mut known = self.known_now();
        too_many.iter().for_each(|key| drop(known.manifests.remove(key)));
        error
    }

    /// Somebody has written to a volume, or cut it, and it is given up: nobody knows what of it is as it was.
    fn touched(&self, volume: &Arc<Volume>) -> CacheError {
        let mut inventory = lock(&self.inventory);
        self.give_up(&mut inventory, &mut self.appender(), volume);
        CacheError::Touched { file: volume.path().to_owned() }
    }

    /// Forgets a volume with all that is in it, unless that was done.
    fn give_up(&self, inventory: &mut Inventory, appender: &mut Appender, volume: &Arc<Volume>) {
        let number = volume.number();
        if appender.volume.as_ref().is_some_and(|last| Arc::ptr_eq(last, volume)) {
            appender.volume = None;
            appender.batch.frames.clear();
        }
        let mut known = self.known_now();
        if !known.volumes.get(&number).is_some_and(|known| Arc::ptr_eq(known, volume)) {
            return;
        }
        known.volumes.remove(&number);
        known.frames.retain(|_, frame| frame.place().volume != number);
        drop(known);
        // Whether or not these succeed, this process has forgotten it; what led here is the error to tell.
        let _ = inventory.evict(number, &[]);
        let _ = volume.unlink();
    }

    fn known_now(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    fn appender(&self) -> MutexGuard<'_, Appender> {
        lock(&self.appender)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // What is lost by an error here is found again in the volumes.
        let _ = self.sync();
        if self.is_gone() {
            lock(&self.inventory).abandon();
            lock(&self.reader).abandon();
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn lock_folder(folder: &Path) -> Result<File, CacheError> {
    let path = folder.join(LOCK);
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(failed(&path, "open"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CacheError::Locked { folder: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(&path, "lock")(error)),
    }
}

/// Nothing panics while it holds one of these, and what they guard would be whole if something did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
