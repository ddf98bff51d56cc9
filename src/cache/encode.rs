//! Chunks into frames: zstd frames and xz streams that stand alone, and one after another make a file that every
//! client takes.

use std::fmt;

use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};
use zstd_safe::{CCtx, CParameter};

use super::Key;
use crate::limits::{CHUNK_MAX, ENCODED_LEVEL};

/// The number of the rules in [`super::layout`]: part of every encoding id.
pub(super) const LAYOUT: u32 = 1;

/// The version of the bundled liblzma, which gives it to C only.
const XZ_VERSION: &str = "5.8.4";

/// What a compressed NAR is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `.nar.zst`
    Zstd,
    /// `.nar.xz`
    Xz,
}

impl Format {
    /// As narinfos and settings call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }

    /// What the file's name ends in, after `.nar.`.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Zstd => "zst",
            Self::Xz => "xz",
        }
    }

    /// The levels that there are.
    pub fn levels(self) -> std::ops::RangeInclusive<i32> {
        match self {
            // The negative ones hardly compress, and nobody asks for them here.
            Self::Zstd => 1..=22,
            Self::Xz => 0..=9,
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::Zstd => zstd_safe::version_string(),
            Self::Xz => XZ_VERSION,
        }
    }
}

/// How chunks are compressed. Its id, as [`Display`](fmt::Display) writes it, stands for every byte of the result:
/// format, version of the library, level, and the rules by which NARs are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Encoding {
    format: Format,
    level: i32,
}

impl Encoding {
    /// An encoding; the level is brought within [`Format::levels`].
    pub fn new(format: Format, level: i32) -> Self {
        let levels = format.levels();
        Self { format, level: level.clamp(*levels.start(), *levels.end()) }
    }

    /// The encoding that an id stands for, if this program writes its bytes.
    pub fn of_id(id: &str) -> Option<Self> {
        let mut parts = id.split('-');
        let format = [Format::Zstd, Format::Xz].into_iter().find(|format| id.starts_with(format.name()))?;
        let encoding = Self::new(format, parts.nth(2)?.parse().ok()?);
        (encoding.to_string() == id).then_some(encoding)
    }

    /// Its format.
    pub fn format(self) -> Format {
        self.format
    }

    /// The key of the frame that `chunk` becomes: the rules of cutting have no part in it.
    pub fn key(self, chunk: &[u8]) -> Key {
        Key::of(&format!("{}-{}-{}", self.format.name(), self.format.version(), self.level), chunk)
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{LAYOUT}", self.format.name(), self.format.version(), self.level)
    }
}

/// The library did not compress. It has no reason to but want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot compress: {0}")]
pub struct EncodeError(&'static str);

/// Compresses chunks, one after another. Its memory is used again: some 10 MB for zstd at its default level, 95 MB for
/// xz.
pub struct Encoder {
    encoding: Encoding,
    zstd: Option<CCtx<'static>>,
}

impl Encoder {
    /// An encoder for `encoding`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(encoding: Encoding) -> Result<Self, EncodeError> {
        let zstd = match encoding.format {
            Format::Xz => None,
            Format::Zstd => {
                let mut context = CCtx::try_create().ok_or(EncodeError("no memory"))?;
                context.set_parameter(CParameter::CompressionLevel(encoding.level)).map_err(zstd_error)?;
                context.set_parameter(CParameter::ContentSizeFlag(true)).map_err(zstd_error)?;
                Some(context)
            }
        };
        Ok(Self { encoding, zstd })
    }

    /// How it compresses.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The frame that `chunk` becomes: the same bytes each time.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn encode(&mut self, chunk: &[u8]) -> Result<Vec<u8>, EncodeError> {
        let mut frame = match &mut self.zstd {
            Some(context) => {
                let mut frame = Vec::with_capacity(zstd_safe::compress_bound(chunk.len()));
                context.compress2(&mut frame, chunk).map_err(zstd_error)?;
                frame
            }
            None => xz(self.encoding.level, chunk).map_err(|_| EncodeError("no memory for xz"))?,
        };
        frame.shrink_to_fit();
        Ok(frame)
    }
}

/// A document, or a part of one, as a zstd frame that stands alone; `None` where there is no memory for it.
pub fn document(plain: &[u8]) -> Option<Vec<u8>> {
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    zstd_safe::compress(&mut frame, plain, ENCODED_LEVEL).ok()?;
    frame.shrink_to_fit();
    Some(frame)
}

fn zstd_error(code: zstd_safe::ErrorCode) -> EncodeError {
    EncodeError(zstd_safe::get_error_name(code))
}

/// One xz stream. liblzma's contexts cannot be used again from here; at its speed that does not show.
fn xz(level: i32, chunk: &[u8]) -> Result<Vec<u8>, liblzma::stream::Error> {
    // A level is 0 to 9.
    let mut options = LzmaOptions::new_preset(level.unsigned_abs())?;
    // The higher levels differ by windows larger than a chunk, which would only cost clients memory.
    let window = chunk.len().clamp(4096, CHUNK_MAX).next_power_of_two();
    let preset = XZ_WINDOWS[level.unsigned_abs().min(9) as usize];
    options.dict_size(preset.min(window as u32));
    let mut stream = Stream::new_stream_encoder(Filters::new().lzma2(&options), Check::Crc64)?;
    // The bound of liblzma's own documentation for bytes that do not compress, and some.
    let mut frame = Vec::with_capacity(chunk.len() + chunk.len() / 1024 + 1024);
    match stream.process_vec(chunk, &mut frame, Action::Finish)? {
        Status::StreamEnd => Ok(frame),
        _ => Err(liblzma::stream::Error::Mem),
    }
}

/// The windows of xz's levels, in bytes.
const XZ_WINDOWS: [u32; 10] =
    [1 << 18, 1 << 20, 1 << 21, 1 << 22, 1 << 22, 1 << 23, 1 << 23, 1 << 24, 1 << 25, 1 << 26];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Bytes that compress: text with numbers in it.
    fn text(len: usize) -> Vec<u8> {
        let lines = (0u64..).map(|number| format!("line {} of a file like any other\n", number * number));
        let mut text: Vec<u8> = Vec::with_capacity(len + 100);
        for line in lines {
            if text.len() >= len {
                break;
            }
            text.extend_from_slice(line.as_bytes());
        }
        text.truncate(len);
        text
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    /// What a program makes of what it reads.
    fn through(program: &str, argument: &str, input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .arg(argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/test installs it");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("no panic").expect("it reads all");
        assert!(output.status.success(), "{program} {argument}");
        output.stdout
    }

    #[test]
    fn frames_one_after_another_are_a_file_that_the_programs_take() {
        let chunks = [text(1_000_000), noise(300_000), text(1), vec![0; CHUNK_MAX], text(70)];
        for (encoding, program) in [
            (Encoding::new(Format::Zstd, 6), "zstd"),
            (Encoding::new(Format::Zstd, 1), "zstd"),
            (Encoding::new(Format::Xz, 0), "xz"),
            (Encoding::new(Format::Xz, 6), "xz"),
        ] {
            let mut encoder = Encoder::new(encoding).expect("memory");
            let frames: Vec<_> = chunks.iter().map(|chunk| encoder.encode(chunk).expect("memory")).collect();
            assert!(frames.iter().all(|frame| !frame.is_empty()));
            let file = frames.concat();
            through(program, "-t", &file);
            assert!(through(program, "-dc", &file) == chunks.concat(), "{encoding}");
            let again = Encoder::new(encoding).expect("memory").encode(&chunks[4]).expect("memory");
            assert_eq!(again, frames[4], "{encoding}: the same whatever came before");
        }
    }

    #[test]
    fn what_does_not_compress_grows_a_little_at_most() {
        let chunk = noise(1 << 20);
        for format in [Format::Zstd, Format::Xz] {
            let frame = Encoder::new(Encoding::new(format, 1)).expect("memory").encode(&chunk);
            assert!(frame.expect("memory").len() <= chunk.len() + (chunk.len() >> 7));
        }
    }

    #[test]
    fn ids_say_everything_and_levels_are_kept_in_bounds() {
        let ids = [(Format::Zstd, 6), (Format::Zstd, 99), (Format::Xz, -3)]
            .map(|(format, level)| Encoding::new(format, level).to_string());
        assert_eq!(ids, ["zstd-1.5.7-6-1", "zstd-1.5.7-22-1", "xz-5.8.4-0-1"]);
        for id in &ids {
            assert_eq!(Encoding::of_id(id).map(|encoding| encoding.to_string()).as_ref(), Some(id));
        }
        for other in [
            "",
            "zstd",
            "zstd-1.5.6-6-1",
            "zstd-1.5.7-06-1",
            "zstd-1.5.7-23-1",
            "xz-1.5.7-6-1",
            "zstd-1.5.7-6-2",
        ] {
            assert_eq!(Encoding::of_id(other), None, "{other}");
        }
        let chunk = b"chunk";
        let keys: Vec<_> = [(Format::Zstd, 6), (Format::Zstd, 7), (Format::Xz, 6)]
            .map(|(format, level)| Encoding::new(format, level).key(chunk))
            .into();
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    }

    /// An id stands for bytes. Should a library of the same version write other ones, its version here must change.
    #[test]
    fn the_bytes_behind_an_id_stay_the_same() {
        let chunk = text(200_000);
        let hash = |format| {
            let frame = Encoder::new(Encoding::new(format, 6)).expect("memory").encode(&chunk);
            blake3::hash(&frame.expect("memory")).to_hex()[..16].to_owned()
        };
        assert_eq!([hash(Format::Zstd), hash(Format::Xz)], ["dc242b0475181d7b", "4ef85d78204daa0a"]);
    }
}
