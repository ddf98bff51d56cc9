//! Compressed NARs read back: all that clients take as a narinfo's `Compression`, of one frame or stream or of several.

use std::io::{self, ErrorKind, Read};

use liblzma::read::XzDecoder;
use zstd_safe::{DCtx, InBuffer, OutBuffer};

use crate::limits::DECODE_BYTES;

/// A reader of what `compressed` was made from, for a narinfo's `Compression`; nothing for one that is not known here.
///
/// # Errors
/// When there is no memory for it.
pub fn decoder<'a>(compression: &str, compressed: impl Read + 'a) -> io::Result<Option<Box<dyn Read + 'a>>> {
    Ok(match compression {
        "none" => Some(Box::new(compressed)),
        "xz" => Some(Box::new(XzDecoder::new_multi_decoder(compressed))),
        "zstd" => Some(Box::new(Zstd::new(compressed)?)),
        _ => None,
    })
}

/// zstd frames, one after another.
struct Zstd<R> {
    compressed: R,
    context: DCtx<'static>,
    input: Box<[u8]>,
    /// What of `input` is still to be decoded.
    rest: std::ops::Range<usize>,
    /// The decoder had more to give than there was room for.
    has_more: bool,
    is_within_frame: bool,
}

impl<R: Read> Zstd<R> {
    fn new(compressed: R) -> io::Result<Self> {
        let context = DCtx::try_create().ok_or(ErrorKind::OutOfMemory)?;
        let input = vec![0; DECODE_BYTES].into_boxed_slice();
        Ok(Self { compressed, context, input, rest: 0..0, has_more: false, is_within_frame: false })
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !into.is_empty() {
            if self.rest.is_empty() && !self.has_more {
                self.rest = 0..self.compressed.read(&mut self.input)?;
                if self.rest.is_empty() {
                    return if self.is_within_frame { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(0) };
                }
            }
            let mut input = InBuffer::around(&self.input[self.rest.clone()]);
            let mut output = OutBuffer::around(&mut *into);
            let hint = self
                .context
                .decompress_stream(&mut output, &mut input)
                .map_err(|code| io::Error::new(ErrorKind::InvalidData, zstd_safe::get_error_name(code)))?;
            let count = output.pos();
            self.rest.start += input.pos();
            self.is_within_frame = hint != 0;
            self.has_more = self.is_within_frame && count == into.len();
            if count > 0 {
                return Ok(count);
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::{Encoder, Encoding, Format};
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 29) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    /// Gives a few bytes at a time, as a network does.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = into.len().min(7);
            self.0.read(&mut into[..count])
        }
    }

    fn decoded(compression: &str, compressed: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        decoder(compression, Trickle(compressed))?.expect("it is known").read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn frames_one_after_another_give_what_went_in() {
        let chunks = [noise(300_000), Vec::new(), noise(5), vec![7; 1_000_000]];
        for format in [Format::Zstd, Format::Xz] {
            let mut encoder = Encoder::new(Encoding::new(format, 1)).unwrap();
            let file: Vec<u8> = chunks.iter().flat_map(|chunk| encoder.encode(chunk).unwrap()).collect();
            assert!(decoded(format.name(), &file).unwrap() == chunks.concat(), "{}", format.name());
            assert!(decoded(format.name(), &file[..file.len() - 3]).is_err(), "cut: {}", format.name());
            assert!(decoded(format.name(), b"neither").is_err(), "{}", format.name());
        }
        assert_eq!(decoded("none", b"plain").unwrap(), b"plain");
        assert_eq!(decoded("zstd", b"").unwrap(), b"");
        assert!(decoder("lrzip", &b""[..]).unwrap().is_none());
    }
}
