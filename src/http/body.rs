//! Request bodies are read and dropped, to a bound, so that the next request on the connection is found.

use thiserror::Error;

use super::request::Body;
use super::target::hex_value;
use crate::limits::{BODY_DISCARD_MAX, CHUNK_EXTENSION_MAX};

/// A body on its way to nowhere. Holds no byte of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discard {
    state: State,
    /// What may still arrive, framing included.
    budget: u64,
}

/// How far the body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All bytes were body, and more belong to it.
    More,
    /// The body ended; the rest of the bytes is the next request.
    Done {
        /// How many of the bytes were body.
        used: usize,
    },
}

/// Why a body is not read to its end: the connection has to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// Longer than [`BODY_DISCARD_MAX`].
    #[error("request body too large")]
    TooLarge,
    /// Not chunks as RFC 9112 section 7.1 has them.
    #[error("malformed chunked body")]
    Malformed,
}

/// Where in the framing the next byte stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Plain bytes to the end of the body.
    Plain(u64),
    /// In a chunk size: its value, and whether it has a digit yet.
    Size { size: u64, digits: bool },
    /// After the `;` behind a size.
    Extension { size: u64, length: u32 },
    /// The LF after a size.
    SizeEnd { size: u64 },
    /// In a chunk.
    Data(u64),
    /// The CR after a chunk.
    DataReturn,
    /// The LF after a chunk.
    DataEnd,
    /// At the beginning of a trailer line, or of the empty line that ends the body.
    TrailerStart,
    /// In a trailer's name.
    TrailerName,
    /// In a trailer's value.
    TrailerValue,
    /// The LF after a trailer.
    TrailerEnd,
    /// The last LF.
    LastEnd,
    /// Nothing more belongs to the body.
    Ended,
}

impl Discard {
    /// Begins to drop `body`.
    ///
    /// # Errors
    /// A length beyond [`BODY_DISCARD_MAX`]: not worth reading.
    pub fn new(body: Body) -> Result<Self, BodyError> {
        let state = match body {
            Body::None => State::Ended,
            Body::Length(length) if length > BODY_DISCARD_MAX => return Err(BodyError::TooLarge),
            Body::Length(length) => State::Plain(length),
            Body::Chunked => State::Size { size: 0, digits: false },
        };
        Ok(Self { state, budget: BODY_DISCARD_MAX })
    }

    /// Takes what arrived; `Done { used: 0 }` at once where there is no body.
    ///
    /// # Errors
    /// Malformed chunks, or more than [`BODY_DISCARD_MAX`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, BodyError> {
        let mut used = 0;
        while self.state != State::Ended {
            let rest = &bytes[used..];
            let Some(&next) = rest.first() else { return Ok(Progress::More) };
            let step = match &mut self.state {
                State::Plain(left) => pass(left, rest),
                State::Data(left) => pass(left, rest),
                _ => 1,
            };
            self.budget = self.budget.checked_sub(step).ok_or(BodyError::TooLarge)?;
            self.advance(next)?;
            // Not beyond `rest`, so it fits.
            used += usize::try_from(step).map_err(|_| BodyError::TooLarge)?;
        }
        Ok(Progress::Done { used })
    }

    /// The state after a byte, or after what [`pass`] took off a run of bytes.
    fn advance(&mut self, byte: u8) -> Result<(), BodyError> {
        self.state = match (&self.state, byte) {
            (State::Plain(0), _) => State::Ended,
            (State::Plain(_) | State::Ended, _) => return Ok(()),

            (State::Size { size, digits: true }, b'\r') => State::SizeEnd { size: *size },
            (State::Size { size, digits: true }, b';') => State::Extension { size: *size, length: 0 },
            (State::Size { size, .. }, digit) => {
                let value = u64::from(hex_value(digit).ok_or(BodyError::Malformed)?);
                // Far below what would overflow; leading zeros count against the budget.
                let size = (size << 4) | value;
                if size > BODY_DISCARD_MAX {
                    return Err(BodyError::TooLarge);
                }
                State::Size { size, digits: true }
            }
            (State::Extension { size, .. }, b'\r') => State::SizeEnd { size: *size },
            (State::Extension { length: CHUNK_EXTENSION_MAX.., .. }, _) => return Err(BodyError::TooLarge),
            (State::Extension { size, length }, byte) if is_field_byte(byte) => {
                State::Extension { size: *size, length: length + 1 }
            }
            (State::SizeEnd { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeEnd { size }, b'\n') => State::Data(*size),

            (State::Data(0), _) => State::DataReturn,
            (State::Data(_), _) => return Ok(()),
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::Size { size: 0, digits: false },

            (State::TrailerStart, b'\r') => State::LastEnd,
            (State::TrailerStart | State::TrailerName, byte) if is_token_byte(byte) => State::TrailerName,
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerEnd,
            (State::TrailerValue, byte) if is_field_byte(byte) => State::TrailerValue,
            (State::TrailerEnd, b'\n') => State::TrailerStart,
            (State::LastEnd, b'\n') => State::Ended,
            _ => return Err(BodyError::Malformed),
        };
        Ok(())
    }
}

/// Takes as many of `bytes` off `left` as there are; says how many.
fn pass(left: &mut u64, bytes: &[u8]) -> u64 {
    let step = (*left).min(bytes.len() as u64);
    *left -= step;
    step
}

/// Space, tab, printable ASCII and what is above it: never a control character.
fn is_field_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// A byte of a field name (RFC 9110 section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunked(bytes: &[u8]) -> Result<Progress, BodyError> {
        Discard::new(Body::Chunked).expect("has no length").feed(bytes)
    }

    #[test]
    fn no_body_and_plain_bodies() {
        let mut none = Discard::new(Body::None).expect("is nothing");
        assert_eq!(none.feed(b"GET"), Ok(Progress::Done { used: 0 }));
        let mut plain = Discard::new(Body::Length(5)).expect("is short");
        assert_eq!(plain.feed(b"ab"), Ok(Progress::More));
        assert_eq!(plain.feed(b""), Ok(Progress::More));
        assert_eq!(plain.feed(b"cdeGET"), Ok(Progress::Done { used: 3 }));
        assert_eq!(plain.feed(b"GET"), Ok(Progress::Done { used: 0 }));
        let mut longest = Discard::new(Body::Length(BODY_DISCARD_MAX)).expect("is just short enough");
        let bytes = vec![0; BODY_DISCARD_MAX as usize];
        assert_eq!(longest.feed(&bytes), Ok(Progress::Done { used: bytes.len() }));
        assert_eq!(Discard::new(Body::Length(BODY_DISCARD_MAX + 1)), Err(BodyError::TooLarge));
    }

    #[test]
    fn chunks_and_trailers() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A\r\n0123456789\r\n00a;x=\"y z\"\r\n0123456789\r\n000\r\n\r\n",
            "1;\r\n\r\r\n0\r\nChecksum: abc\r\nX:\r\n\r\n",
        ] {
            let bytes = format!("{body}GET /");
            assert_eq!(chunked(bytes.as_bytes()), Ok(Progress::Done { used: body.len() }), "{body:?}");
        }
    }

    #[test]
    fn what_is_no_chunk() {
        for body in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1 \r\n",
            "1 ;x\r\n",
            ";x\r\n",
            "1\n",
            "1;x\n",
            "1;\0\r\n",
            "1\r\r",
            "1\r\nab",
            "1\r\na\n",
            "1\r\na\r\r",
            "1\r\na\r\n\r\n",
            "0\r\n\n",
            "0\r\nX\r\n",
            "0\r\nX : y\r\n",
            "0\r\n: y\r\n",
            "0\r\n X: y\r\n",
            "0\r\nX: y\n",
            "0\r\nX: \0\r\n",
            "0\r\n\rX",
        ] {
            assert_eq!(chunked(body.as_bytes()), Err(BodyError::Malformed), "{body:?}");
        }
    }

    #[test]
    fn bounds() {
        assert_eq!(chunked(b"10001\r\n"), Err(BodyError::TooLarge));
        assert_eq!(chunked(b"ffffffffffffffffffffff\r\n"), Err(BodyError::TooLarge));
        let extension = |length| format!("0;{}\r\n\r\n", "x".repeat(length));
        let most = CHUNK_EXTENSION_MAX as usize;
        assert!(chunked(extension(most).as_bytes()).is_ok());
        assert_eq!(chunked(extension(most + 1).as_bytes()), Err(BodyError::TooLarge));
        // Framing counts: neither zeros, nor small chunks, nor trailers go on for ever.
        for (start, again) in [("", "0"), ("", "1\r\nx\r\n"), ("0\r\n", "X: y\r\n")] {
            let mut body = Discard::new(Body::Chunked).expect("has no length");
            assert_eq!(body.feed(start.as_bytes()), Ok(Progress::More));
            let outcome = (0..=BODY_DISCARD_MAX).find_map(|_| body.feed(again.as_bytes()).err());
            assert_eq!(outcome, Some(BodyError::TooLarge), "{again:?}");
        }
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => (proptest::collection::vec(any::<u8>(), 1..40), "(;[a-z=]{0,5})?").prop_map(|(data, extension)| {
                let mut chunk = format!("{:x}{extension}\r\n", data.len()).into_bytes();
                chunk.extend_from_slice(&data);
                chunk.extend_from_slice(b"\r\n");
                chunk
            }),
            1 => proptest::collection::vec(any::<u8>(), 0..4),
        ]
    }

    proptest! {
        /// However the bytes arrive, the outcome is the same.
        #[test]
        fn cuts_do_not_matter(
            pieces in proptest::collection::vec(piece(), 0..6),
            cuts in proptest::collection::vec(0usize..200, 0..6),
        ) {
            let mut bytes = pieces.concat();
            bytes.extend_from_slice(b"0\r\nX: y\r\n\r\nGET /");
            let whole = chunked(&bytes);

            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut body = Discard::new(Body::Chunked).expect("has no length");
            let mut outcome = Ok(Progress::More);
            for window in cuts.windows(2) {
                outcome = match body.feed(&bytes[window[0]..window[1]]) {
                    Ok(Progress::More) => Ok(Progress::More),
                    Ok(Progress::Done { used }) => Ok(Progress::Done { used: window[0] + used }),
                    error => error,
                };
                if outcome != Ok(Progress::More) {
                    break;
                }
            }
            prop_assert_eq!(outcome, whole);
        }
    }
}
