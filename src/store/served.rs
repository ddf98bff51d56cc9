//! A valid path as it is served: what is known of it, and the answers that are made of that once.

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use crate::formats::hash::Sha256;
use crate::formats::narinfo::{NarInfo, PathInfo, sign_all};
use crate::formats::signature::SecretKey;
use crate::formats::store_path::StoreDir;

/// A compressed NAR, as a narinfo offers it.
#[derive(Clone, Copy, Debug)]
pub struct File<'f> {
    /// Where it is, relative to the narinfo.
    pub url: &'f str,
    /// What it is compressed with.
    pub compression: &'f str,
    /// SHA-256 and size in bytes, where they are known yet.
    pub hash_and_size: Option<(Sha256, u64)>,
}

/// A valid path, ready to be served. Shared by reference; nothing of it that is served ever changes.
#[derive(Debug)]
pub struct Served {
    /// What the database says of the path.
    pub info: PathInfo,
    /// The database's signatures and one of each key, as the narinfo has them.
    pub signatures: Vec<String>,
    /// The narinfo, rendered and signed.
    pub narinfo: Bytes,
    /// Where its NAR is, relative to the narinfo: `nar/<NAR hash>.nar?hash=<hash part>`. The value of
    /// `Nix-Link`.
    pub nar_url: String,
    /// The NAR's strong entity tag, quotes included: its hash.
    pub nar_etag: String,
    /// The day on which it was last asked for, see [`Served::is_first_on`].
    asked: AtomicU32,
}

impl Served {
    /// Renders and signs.
    pub fn new(dir: &StoreDir, info: PathInfo, keys: &[SecretKey]) -> Self {
        let digits = info.nar_hash.to_base32();
        let signatures = sign_all(dir, &info, keys);
        let mut served = Self {
            nar_url: format!("nar/{digits}.nar?hash={}", info.path.hash()),
            nar_etag: format!("\"{digits}\""),
            info,
            signatures,
            narinfo: Bytes::new(),
            asked: AtomicU32::new(0),
        };
        served.narinfo = served.with_links().render(dir).into();
        served
    }

    /// Marks that it was asked for on this day, counted from 1970; whether nobody had on that day, as far as this
    /// process remembers. Two workers at the same moment may both be told so.
    pub fn is_first_on(&self, day: u32) -> bool {
        let is_first = self.asked.load(Ordering::Relaxed) != day;
        if is_first {
            self.asked.store(day, Ordering::Relaxed);
        }
        is_first
    }

    /// Forgets on which day it was asked for, so that the next request is the first again.
    pub fn forget_day(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    /// The narinfo's JSON form.
    pub fn json(&self, dir: &StoreDir) -> String {
        self.with_links().to_json(dir)
    }

    /// The narinfo with the NAR as it is at another URL, compressed; as text, or in its JSON form.
    pub fn offering(&self, dir: &StoreDir, file: &File<'_>, json: bool) -> String {
        let narinfo = NarInfo {
            url: file.url,
            compression: file.compression,
            file_hash: file.hash_and_size.map(|(hash, _)| hash),
            file_size: file.hash_and_size.map(|(_, size)| size),
            ..self.with_links()
        };
        if json { narinfo.to_json(dir) } else { narinfo.render(dir) }
    }

    /// What it takes in memory, in bytes, nearly.
    pub fn weight(&self) -> u64 {
        let texts = self.narinfo.len() + self.nar_url.len() + self.nar_etag.len();
        let paths = self.info.references.iter().map(|path| path.as_str().len() + 64).sum::<usize>();
        let signatures =
            self.signatures.iter().chain(&self.info.signatures).map(|text| text.len() + 32).sum::<usize>();
        (size_of::<Self>() + texts + paths + signatures) as u64
    }

    fn with_links(&self) -> NarInfo<'_> {
        NarInfo {
            info: &self.info,
            url: &self.nar_url,
            compression: "none",
            // Uncompressed, the file is the NAR; older tools want to read both of it.
            file_hash: Some(self.info.nar_hash),
            file_size: Some(self.info.nar_size),
            signatures: &self.signatures,
        }
    }
}
