//! Build logs: finding and decoding them.
//!
//! Nix keeps the log of a derivation in `drvs/<first two characters>/<the rest>` of its log folder, named by
//! the basename of the derivation's path, as it is or packed as `.bz2`. Before 2008 it was `drvs/<basename>`.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use bzip2::read::MultiBzDecoder;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::formats::store_path::{StorePath, StorePathHash};
use crate::limits;

/// Which log is wanted. An output path is not among them: the store actor knows its derivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogName {
    /// Of the derivation of this path.
    Derivation(StorePath),
    /// Of the derivation with this hash part.
    Hash(StorePathHash),
}

/// Encodes a part of a document so that it stands alone; `None` where there is no memory for it.
pub type Encode = fn(&[u8]) -> Option<Vec<u8>>;

/// A log that was found.
#[derive(Debug)]
pub enum LogBody {
    /// As it is. A build that still runs may make it longer; what is served is what was there.
    Plain {
        /// Open for reading.
        file: Arc<File>,
        /// How many bytes it had; may be 0.
        len: u64,
    },
    /// Packed, and so short that it is decoded already: nearly every log is. May be empty.
    Whole(Bytes),
    /// The same, encoded.
    Encoded(Bytes),
    /// Packed, longer than [`limits::LOG_PART`], and so of unknown length; or as it is, and to be encoded.
    Packed(LogReader),
}

/// A log that is decoded piece by piece, or encoded. It holds a decoder's memory, about 4 MB.
pub struct LogReader {
    decoder: Decoder,
    encode: Option<Encode>,
    path: PathBuf,
    /// The first piece, until it is asked for.
    first: Option<Bytes>,
    _turn: Turn,
}

/// What a log is read through.
enum Decoder {
    /// What `bzip2` packed.
    Packed(Box<MultiBzDecoder<File>>),
    /// As it is, up to the length that it had.
    Plain(io::Take<File>),
}

impl Decoder {
    /// At its beginning again, when so many bytes have come out of it.
    fn rewound(self, len: u64) -> io::Result<Self> {
        match self {
            Self::Packed(decoder) => {
                let mut file = decoder.into_inner();
                file.rewind()?;
                Ok(Self::Packed(Box::new(MultiBzDecoder::new(file))))
            }
            Self::Plain(file) => {
                let mut file = file.into_inner();
                file.rewind()?;
                Ok(Self::Plain(file.take(len)))
            }
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Packed(decoder) => decoder.read(into),
            Self::Plain(file) => file.read(into),
        }
    }
}

/// Bounds how many logs are being decoded. Clones share the bound.
#[derive(Clone, Debug, Default)]
pub struct Decoders(Arc<AtomicUsize>);

/// One log among those that are being decoded, as long as it lives.
struct Turn(Decoders);

impl Decoders {
    /// A turn, unless there are [`limits::LOG_DECODERS`] already. One too many is dropped, and so not counted.
    fn turn(&self) -> Option<Turn> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let turn = Turn(self.clone());
        (before < limits::LOG_DECODERS).then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a log cannot be read.
#[derive(Debug, Error)]
pub enum LogError {
    /// A file or folder cannot be read.
    #[error("cannot read {}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no whole bzip2 stream. What came before is right.
    #[error("the build log {} is damaged", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
    /// There is no memory to encode it.
    #[error("no memory to encode the build log {}", .path.display())]
    NoMemory {
        /// The file.
        path: PathBuf,
    },
    /// Its length is wanted, and it has more than [`limits::LOG_MEASURED`].
    #[error("the build log {} is too long to be measured", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// As many logs are being decoded as may be; this one can be asked for again.
    #[error("too many build logs are being read")]
    Busy,
}

/// Looks for a log in the log folder `log_dir`. One of [`limits::ENCODED_MIN`] or more bytes is encoded where `encode` is
/// given.
///
/// # Errors
/// [`LogError`] when it may be there but cannot be read, or is damaged near its beginning.
pub fn find(
    log_dir: &Path,
    name: &LogName,
    decoders: &Decoders,
    encode: Option<Encode>,
) -> Result<Option<LogBody>, LogError> {
    let drvs = log_dir.join("drvs");
    match name {
        LogName::Derivation(path) => open_any(&drvs, path.as_str(), decoders, encode),
        LogName::Hash(hash) => match find_name(&drvs, &hash.to_string())? {
            Some(basename) => open_any(&drvs, &basename, decoders, encode),
            None => Ok(None),
        },
    }
}

/// Whether there is a log of this derivation in the log folder `log_dir`.
pub fn is_there(log_dir: &Path, drv: &StorePath) -> bool {
    let places = places(&log_dir.join("drvs"), drv.as_str());
    places.iter().flatten().any(|place| place.symlink_metadata().is_ok_and(|found| found.is_file()))
}

impl LogReader {
    /// The next piece, of at most [`limits::LOG_PART`] bytes; a shorter one is the last.
    ///
    /// # Errors
    /// [`LogError`] when the file ends early or is damaged: what was read before is not the whole log.
    pub fn read(&mut self) -> Result<Bytes, LogError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let mut part = Vec::with_capacity(limits::LOG_PART);
        match (&mut self.decoder).take(limits::LOG_PART as u64).read_to_end(&mut part) {
            Ok(_) => Ok(part.into()),
            Err(source) => Err(self.error(source)),
        }
    }

    /// Whether its pieces are to be encoded.
    pub fn is_encoded(&self) -> bool {
        self.encode.is_some()
    }

    /// A piece as it is sent: encoded by itself, where that is wanted.
    ///
    /// # Errors
    /// [`LogError::NoMemory`]
    pub fn encoded(&self, part: Bytes) -> Result<Bytes, LogError> {
        match self.encode.filter(|_| !part.is_empty()) {
            None => Ok(part),
            Some(encode) => match encode(&part) {
                Some(encoded) => Ok(encoded.into()),
                None => Err(LogError::NoMemory { path: self.path.clone() }),
            },
        }
    }

    /// The length of the whole log, of which nothing was read yet, by decoding all of it; and the reader as it was.
    ///
    /// # Errors
    /// As [`LogReader::read`]; [`LogError::TooLong`] beyond [`limits::LOG_MEASURED`].
    pub fn measured(mut self) -> Result<(u64, Self), LogError> {
        let mut len = 0;
        loop {
            let part = self.read()?.len();
            len += part as u64;
            if part < limits::LOG_PART {
                break;
            }
            if len > limits::LOG_MEASURED {
                return Err(LogError::TooLong { path: self.path });
            }
        }
        let Self { decoder, encode, path, _turn, .. } = self;
        match decoder.rewound(len) {
            Ok(decoder) => Ok((len, Self { decoder, encode, path, first: None, _turn })),
            Err(source) => Err(LogError::File { path, source }),
        }
    }

    fn error(&self, source: io::Error) -> LogError {
        let path = self.path.clone();
        match source.raw_os_error() {
            Some(_) => LogError::File { path, source },
            None => LogError::Damaged { path, source },
        }
    }
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Where the log of the derivation `basename` may be, in the order in which Nix looks: as it is, then packed. A basename
/// is ASCII without a slash, and longer than two characters: each of them lies in `drvs`.
fn places(drvs: &Path, basename: &str) -> [[PathBuf; 2]; 2] {
    let (first, rest) = basename.split_at(2);
    let in_folder = |folder: &Path, name: &str| [folder.join(name), folder.join(format!("{name}.bz2"))];
    [in_folder(&drvs.join(first), rest), in_folder(drvs, basename)]
}

/// Opens the log of the derivation `basename`.
fn open_any(
    drvs: &Path,
    basename: &str,
    decoders: &Decoders,
    encode: Option<Encode>,
) -> Result<Option<LogBody>, LogError> {
    for [plain, packed] in places(drvs, basename) {
        if let Some((file, len)) = open(&plain)? {
            if encode.is_some()
                && len >= limits::ENCODED_MIN as u64
                && let Some(turn) = decoders.turn()
            {
                let decoder = Decoder::Plain(file.take(len));
                let reader = LogReader { decoder, encode, path: plain, first: None, _turn: turn };
                return Ok(Some(LogBody::Packed(reader)));
            }
            return Ok(Some(LogBody::Plain { file: Arc::new(file), len }));
        }
        if let Some((file, _)) = open(&packed)? {
            return begin(file, packed, decoders, encode).map(Some);
        }
    }
    Ok(None)
}

/// Decodes the beginning of a packed log.
fn begin(
    file: File,
    path: PathBuf,
    decoders: &Decoders,
    encode: Option<Encode>,
) -> Result<LogBody, LogError> {
    let turn = decoders.turn().ok_or(LogError::Busy)?;
    let decoder = Decoder::Packed(Box::new(MultiBzDecoder::new(file)));
    let mut reader = LogReader { decoder, encode, path, first: None, _turn: turn };
    let first = reader.read()?;
    if first.len() < limits::LOG_PART {
        let is_worth_it = reader.is_encoded() && first.len() >= limits::ENCODED_MIN;
        return Ok(match is_worth_it {
            true => LogBody::Encoded(reader.encoded(first)?),
            false => LogBody::Whole(first),
        });
    }
    reader.first = Some(first);
    Ok(LogBody::Packed(reader))
}

/// Opens a regular file and gives its length. Anything else is no log: a link could lead anywhere, and a
/// FIFO would keep the thread.
fn open(path: &Path) -> Result<Option<(File, u64)>, LogError> {
    let failed = |source| LogError::File { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let metadata = file.metadata().map_err(failed)?;
    Ok(metadata.is_file().then_some((file, metadata.len())))
}

/// The basename of the derivation with the hash part `hash` that has a log; the first one if several do, as
/// can be for what was made on several machines.
fn find_name(drvs: &Path, hash: &str) -> Result<Option<String>, LogError> {
    let (first, rest) = hash.split_at(2);
    for (folder, given) in [(drvs.join(first), first), (drvs.to_owned(), "")] {
        let wanted = if given.is_empty() { hash } else { rest };
        let names = names_with_prefix(&folder, &format!("{wanted}-"))?;
        if let Some(name) = names.iter().map(|name| name.strip_suffix(".bz2").unwrap_or(name)).min() {
            return Ok(Some(format!("{given}{name}")));
        }
    }
    Ok(None)
}

fn names_with_prefix(folder: &Path, prefix: &str) -> Result<Vec<String>, LogError> {
    let failed = |source| LogError::File { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries.take(limits::LOG_NAMES) {
        let name = entry.map_err(failed)?.file_name();
        if !name.as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        if let Ok(name) = name.into_string()
            && name.is_ascii()
        {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const BASENAME: &str = "s9a2pbzbinqwdkmdz30zpx50j5ms9b4c-hello-2.12.drv";

    fn derivation() -> LogName {
        LogName::Derivation(StorePath::from_basename(BASENAME).unwrap())
    }

    fn by_hash() -> LogName {
        LogName::Hash(StorePathHash::parse(&BASENAME.as_bytes()[..32]).unwrap())
    }

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn find(log_dir: &Path, name: &LogName) -> Result<Option<LogBody>, LogError> {
        super::find(log_dir, name, &Decoders::default(), None)
    }

    /// A log folder with one file.
    fn folder_with(place: &str, contents: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drvs").join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        folder
    }

    fn read_all(body: LogBody) -> Result<Vec<u8>, LogError> {
        let mut all = Vec::new();
        match body {
            LogBody::Plain { file, len } => {
                (&*file).read_to_end(&mut all).unwrap();
                assert_eq!(len, all.len() as u64);
            }
            LogBody::Whole(bytes) | LogBody::Encoded(bytes) => all.extend_from_slice(&bytes),
            LogBody::Packed(mut reader) => {
                let mut part = reader.read()?;
                while part.len() == limits::LOG_PART {
                    all.extend_from_slice(&part);
                    part = reader.read()?;
                }
                assert!(part.len() < limits::LOG_PART);
                all.extend_from_slice(&part);
            }
        }
        Ok(all)
    }

    #[test]
    fn a_log_is_found_in_each_of_its_places() {
        let log = b"building\n".repeat(20_000);
        let split = format!("{}/{}", &BASENAME[..2], &BASENAME[2..]);
        for (place, contents) in [
            (split.clone(), log.clone()),
            (format!("{split}.bz2"), pack(&log)),
            (BASENAME.to_owned(), log.clone()),
            (format!("{BASENAME}.bz2"), pack(&log)),
        ] {
            let folder = folder_with(&place, &contents);
            for name in [derivation(), by_hash()] {
                let body = find(folder.path(), &name).unwrap();
                assert_eq!(read_all(body.expect(&place)).unwrap(), log, "{place}");
            }
        }
    }

    #[test]
    fn what_is_absent_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find(folder.path(), &derivation()).unwrap().is_none());
        assert!(find(folder.path(), &by_hash()).unwrap().is_none());
        let other = BASENAME.replace("s9a2", "s9a3");
        let folder = folder_with(&format!("{}/{}", &other[..2], &other[2..]), b"other");
        assert!(find(folder.path(), &derivation()).unwrap().is_none());
        assert!(find(folder.path(), &by_hash()).unwrap().is_none());
    }

    #[test]
    fn only_regular_files_are_logs() {
        let folder = folder_with("elsewhere", b"secret");
        let place = folder.path().join("drvs").join(BASENAME);
        std::os::unix::fs::symlink(folder.path().join("drvs/elsewhere"), &place).unwrap();
        assert!(find(folder.path(), &derivation()).unwrap().is_none());
        assert!(find(folder.path(), &by_hash()).unwrap().is_none());
        fs::remove_file(&place).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&place).status().unwrap().success());
        assert!(find(folder.path(), &derivation()).unwrap().is_none());
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        assert!(find(folder.path(), &derivation()).unwrap().is_none());
    }

    #[test]
    fn streams_one_after_the_other_are_one_log() {
        let packed = [pack(b"first\n"), pack(b""), pack(b"second\n")].concat();
        let folder = folder_with(&format!("{BASENAME}.bz2"), &packed);
        let body = find(folder.path(), &derivation()).unwrap().unwrap();
        assert_eq!(read_all(body).unwrap(), b"first\nsecond\n");
    }

    #[test]
    fn a_log_of_any_length_comes_whole() {
        for len in [0, 1, limits::LOG_PART - 1, limits::LOG_PART, limits::LOG_PART + 1, 2 * limits::LOG_PART]
        {
            let log = vec![b'x'; len];
            let folder = folder_with(&format!("{BASENAME}.bz2"), &pack(&log));
            let body = find(folder.path(), &derivation()).unwrap().unwrap();
            assert_eq!(matches!(body, LogBody::Whole(_)), len < limits::LOG_PART, "{len}");
            assert!(read_all(body).unwrap() == log, "{len}");
        }
    }

    #[test]
    fn a_log_is_measured_before_it_is_read() {
        let log = b"building\n".repeat(20_000);
        let packed = [pack(&log), pack(&log)].concat();
        let folder = folder_with(&format!("{BASENAME}.bz2"), &packed);
        let decoders = Decoders::default();
        let Ok(Some(LogBody::Packed(reader))) = super::find(folder.path(), &derivation(), &decoders, None)
        else {
            panic!("a long log")
        };
        let (len, reader) = reader.measured().unwrap();
        assert_eq!(len, 2 * log.len() as u64);
        assert_eq!(decoders.0.load(Ordering::Relaxed), 1, "it counts as one");
        assert!(read_all(LogBody::Packed(reader)).unwrap() == log.repeat(2));
        let folder = folder_with(&format!("{BASENAME}.bz2"), &packed[..packed.len() - 10]);
        let Ok(Some(LogBody::Packed(reader))) = find(folder.path(), &derivation()) else {
            panic!("a long log")
        };
        assert!(matches!(reader.measured(), Err(LogError::Damaged { .. })), "before any head");
        let long = pack(&vec![b'x'; limits::LOG_MEASURED as usize + limits::LOG_PART]);
        let folder = folder_with(&format!("{BASENAME}.bz2"), &long);
        let Ok(Some(LogBody::Packed(reader))) = find(folder.path(), &derivation()) else {
            panic!("a long log")
        };
        assert!(matches!(reader.measured(), Err(LogError::TooLong { .. })));
    }

    #[test]
    fn only_so_many_are_decoded_at_a_time() {
        let folder = folder_with(&format!("{BASENAME}.bz2"), &pack(&vec![b'x'; 2 * limits::LOG_PART]));
        let decoders = Decoders::default();
        let find = || super::find(folder.path(), &derivation(), &decoders, None);
        let mut bodies: Vec<_> = (0..limits::LOG_DECODERS).map(|_| find().unwrap()).collect();
        assert!(matches!(find(), Err(LogError::Busy)));
        bodies.pop();
        assert!(find().is_ok());
    }

    #[test]
    fn a_damaged_log_is_an_error_and_never_an_end() {
        let log: Vec<u8> = (0..400_000_u32).flat_map(|number| number.to_le_bytes()).collect();
        let whole = pack(&log);
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let cut = whole[..whole.len() / 2].to_vec();
        let followed = [&whole[..], b"and more"].concat();
        for (what, contents) in
            [("flipped", flipped), ("cut", cut), ("followed", followed), ("empty", Vec::new())]
        {
            let folder = folder_with(&format!("{BASENAME}.bz2"), &contents);
            let body = find(folder.path(), &derivation());
            let error = body.and_then(|body| read_all(body.unwrap())).expect_err(what);
            assert!(matches!(error, LogError::Damaged { .. }), "{what}: {error:?}");
        }
    }
}
