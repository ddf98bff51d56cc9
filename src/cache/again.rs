//! Frames that are gone and made again, where the manifest says what they were.
//!
//! Each is made by one of the threads that compress, once however many ask for it at the same time. Nothing else of its
//! NAR is read or compressed for that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Key;
use super::encode::Encoding;
use super::job::{CompressError, Waiter};
use crate::nar::{Cursor, NarError, Reader, Segment};

/// A frame that is gone.
#[derive(Debug)]
pub(super) struct Missing {
    /// What its chunk and encoding must come to.
    pub(super) key: Key,
    /// Its length in bytes.
    pub(super) len: u64,
    pub(super) encoding: Encoding,
    /// Confined to its chunk.
    pub(super) nar: Cursor,
}

/// One that is being made.
#[derive(Debug, Default)]
pub(super) struct Remaking(Mutex<Output>);

#[derive(Default)]
struct Output {
    ended: Option<Result<Segment, CompressError>>,
    waiters: Vec<Waiter>,
}

/// What a thread is to do about one.
#[derive(Debug)]
pub(super) struct Again {
    pub(super) missing: Missing,
    pub(super) remaking: Arc<Remaking>,
}

impl Missing {
    /// The plain bytes of its chunk. Waits for the disk.
    pub(super) fn read(&self) -> Result<Vec<u8>, NarError> {
        // No chunk is longer than its limit.
        let mut chunk = vec![0; self.nar.remaining() as usize];
        let mut reader = Reader::new(self.nar.clone());
        let mut filled = 0;
        while filled < chunk.len() {
            // The reader gives as many bytes as the plan has, or an error.
            filled += reader.fill(&mut chunk[filled..])?;
        }
        Ok(chunk)
    }

    /// The frame, if it is what it was.
    pub(super) fn check(&self, (key, segment): (Key, Segment)) -> Result<Segment, CompressError> {
        if (key, segment.len()) == (self.key, self.len) {
            return Ok(segment);
        }
        Err(NarError::Changed { file: self.nar.root().to_path_buf() }.into())
    }
}

impl Remaking {
    /// The frame; or, for the waiter that is taken then, a place among those who wait for it.
    pub(super) fn end(&self, waiter: &mut Option<Waiter>) -> Option<Result<Segment, CompressError>> {
        let mut output = self.output();
        if output.ended.is_none() {
            output.waiters.extend(waiter.take());
        }
        output.ended.clone()
    }

    /// It has been made, or cannot be. Calls those who wait.
    pub(super) fn ended(&self, result: Result<Segment, CompressError>) {
        let mut output = self.output();
        output.ended.get_or_insert(result);
        let waiters = std::mem::take(&mut output.waiters);
        drop(output);
        waiters.into_iter().for_each(|waiter| waiter());
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("ended", &self.ended).finish_non_exhaustive()
    }
}
