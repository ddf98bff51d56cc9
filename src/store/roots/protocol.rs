//! The part of Nix's worker protocol that a temporary root needs: the handshake and `AddTempRoot`.
//!
//! From Nix's `worker-protocol.hh`: every number is 64 bits little-endian; a string is its length, its bytes,
//! and zeros up to a multiple of 8. The client names the highest version it speaks and both use the lower
//! one. Before each answer the daemon may send any number of log frames.

use std::io::{self, Read};

use thiserror::Error;

use crate::limits;

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const DAEMON_MAGIC: u64 = 0x6478_696f;

const FRAME_LOG: u64 = 0x6f6c_6d67;
const FRAME_WRITE: u64 = 0x6461_7416;
const FRAME_LAST: u64 = 0x616c_7473;
const FRAME_ERROR: u64 = 0x6378_7470;
const FRAME_START_ACTIVITY: u64 = 0x5354_5254;
const FRAME_STOP_ACTIVITY: u64 = 0x5354_4f50;
const FRAME_RESULT: u64 = 0x5253_4c54;

const ADD_TEMP_ROOT: u64 = 11;

/// A version of the protocol: the major in the second byte, the minor in the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u64);

impl Version {
    /// What this client says it speaks: 1.35, of Nix 2.15. Nix 2.8 answers with 1.34. Lower would do, but daemons
    /// give up old clients in time; from 1.38 on both sides would have to exchange lists of features.
    pub const OURS: Self = Self::new(1, 35);

    /// Nix 1.12, far below every daemon that is still in use; what is older has other frames.
    const OLDEST: Self = Self::new(1, 18);
    const STRUCTURED_ERRORS: Self = Self::new(1, 26);
    const DAEMON_RELEASE: Self = Self::new(1, 33);
    const TRUST: Self = Self::new(1, 35);

    /// The version `major.minor`.
    pub const fn new(major: u8, minor: u8) -> Self {
        Self((major as u64) << 8 | minor as u64)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 >> 8, self.0 & 0xff)
    }
}

/// Why a daemon gave no root.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// The connection failed, ended, or stayed silent too long.
    #[error("the Nix daemon does not answer; is this user among its allowed-users?")]
    Connection(#[from] io::Error),
    /// What answers is no Nix daemon.
    #[error("what listens there is no Nix daemon: it begins with {word:#x}")]
    NotADaemon {
        /// Its first word.
        word: u64,
    },
    /// The daemon speaks a version that this client does not.
    #[error("the Nix daemon speaks protocol {version}, this server 1.18 to 1.x")]
    Version {
        /// The daemon's version.
        version: Version,
    },
    /// The daemon answered the request with an error. It may end the connection after that.
    #[error("the Nix daemon refused: {message}")]
    Refused {
        /// The daemon's words.
        message: String,
    },
    /// The daemon sent what the protocol does not have here.
    #[error("the Nix daemon sent {word:#x} where it has no place")]
    Unexpected {
        /// The word that was read.
        word: u64,
    },
    /// The daemon sends more than any real answer has.
    #[error("the Nix daemon's answer is too long")]
    TooLong,
}

/// What the client sends first.
pub fn hello() -> [u8; 8] {
    CLIENT_MAGIC.to_le_bytes()
}

/// Reads the daemon's reply to [`hello`] and gives the version that both use.
///
/// # Errors
/// [`ProtocolError`] where no daemon that can be spoken to answers.
pub fn read_hello(from: &mut impl Read) -> Result<Version, ProtocolError> {
    let word = number(from)?;
    if word != DAEMON_MAGIC {
        return Err(ProtocolError::NotADaemon { word });
    }
    let version = Version(number(from)?);
    if version < Version::OLDEST || version.0 >> 8 != 1 {
        return Err(ProtocolError::Version { version });
    }
    Ok(version.min(Version::OURS))
}

/// What the client sends after [`read_hello`]: its version, no processor affinity, no reserved space.
pub fn introduction() -> Vec<u8> {
    [Version::OURS.0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Reads what ends the handshake.
///
/// # Errors
/// As [`read_added`].
pub fn read_welcome(from: &mut impl Read, version: Version) -> Result<(), ProtocolError> {
    if version >= Version::DAEMON_RELEASE {
        string(from)?;
    }
    if version >= Version::TRUST {
        number(from)?;
    }
    read_frames(from, version)
}

/// The request that adds a temporary root for the full store path `path`.
pub fn add_temp_root(path: &str) -> Vec<u8> {
    let mut request = Vec::with_capacity(24 + path.len());
    request.extend(ADD_TEMP_ROOT.to_le_bytes());
    request.extend((path.len() as u64).to_le_bytes());
    request.extend(path.as_bytes());
    request.resize(request.len() + padding(path.len()), 0);
    request
}

/// Reads the answer to [`add_temp_root`].
///
/// # Errors
/// [`ProtocolError::Refused`] with the daemon's words; after any error the connection is not to be used again.
pub fn read_added(from: &mut impl Read, version: Version) -> Result<(), ProtocolError> {
    read_frames(from, version)?;
    match number(from)? {
        1 => Ok(()),
        word => Err(ProtocolError::Unexpected { word }),
    }
}

/// Reads log frames up to the last; what they say is the daemon's affair.
fn read_frames(from: &mut impl Read, version: Version) -> Result<(), ProtocolError> {
    for _ in 0..limits::ROOT_FRAMES {
        match number(from)? {
            FRAME_LAST => return Ok(()),
            FRAME_ERROR => return Err(read_error(from, version)?),
            FRAME_LOG | FRAME_WRITE => drop(string(from)?),
            FRAME_START_ACTIVITY => {
                skip_numbers(from, 3)?;
                string(from)?;
                skip_fields(from)?;
                number(from)?;
            }
            FRAME_STOP_ACTIVITY => drop(number(from)?),
            FRAME_RESULT => {
                skip_numbers(from, 2)?;
                skip_fields(from)?;
            }
            word => return Err(ProtocolError::Unexpected { word }),
        }
    }
    Err(ProtocolError::TooLong)
}

/// The error that an error frame carries.
fn read_error(from: &mut impl Read, version: Version) -> Result<ProtocolError, ProtocolError> {
    if version < Version::STRUCTURED_ERRORS {
        let message = plain(&string(from)?);
        number(from)?; // the exit status that the client should use
        return Ok(ProtocolError::Refused { message });
    }
    string(from)?; // the type, always "Error"
    number(from)?; // the level
    string(from)?; // a name, no longer used
    let message = plain(&string(from)?);
    number(from)?; // whether there is a position; never
    for _ in 0..count(from)? {
        number(from)?; // as above
        string(from)?; // a line of the trace
    }
    Ok(ProtocolError::Refused { message })
}

/// A message without its colours, which the daemon sends whoever asks.
fn plain(message: &str) -> String {
    let mut pieces = message.split("\x1b[");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + piece.split_once('m').map_or(piece, |(_, rest)| rest))
}

fn skip_fields(from: &mut impl Read) -> Result<(), ProtocolError> {
    for _ in 0..count(from)? {
        match number(from)? {
            0 => drop(number(from)?),
            1 => drop(string(from)?),
            word => return Err(ProtocolError::Unexpected { word }),
        }
    }
    Ok(())
}

fn skip_numbers(from: &mut impl Read, count: usize) -> Result<(), ProtocolError> {
    for _ in 0..count {
        number(from)?;
    }
    Ok(())
}

/// A number of things that follow, within reason.
fn count(from: &mut impl Read) -> Result<u64, ProtocolError> {
    match number(from)? {
        count if count <= u64::from(limits::ROOT_FRAMES) => Ok(count),
        _ => Err(ProtocolError::TooLong),
    }
}

fn number(from: &mut impl Read) -> Result<u64, ProtocolError> {
    let mut word = [0; 8];
    from.read_exact(&mut word)?;
    Ok(u64::from_le_bytes(word))
}

fn string(from: &mut impl Read) -> Result<String, ProtocolError> {
    let len = usize::try_from(number(from)?).unwrap_or(usize::MAX);
    if len > limits::ROOT_TEXT {
        return Err(ProtocolError::TooLong);
    }
    let mut bytes = vec![0; len + padding(len)];
    from.read_exact(&mut bytes)?;
    bytes.truncate(len);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn padding(len: usize) -> usize {
    len.next_multiple_of(8) - len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Builds what a daemon sends.
    #[derive(Default)]
    struct Script(Vec<u8>);

    impl Script {
        fn number(mut self, word: u64) -> Self {
            self.0.extend(word.to_le_bytes());
            self
        }

        fn string(mut self, text: &str) -> Self {
            self = self.number(text.len() as u64);
            self.0.extend(text.as_bytes());
            self.0.resize(self.0.len() + padding(text.len()), 0);
            self
        }
    }

    fn hello_of(major: u8, minor: u8) -> Vec<u8> {
        Script::default().number(DAEMON_MAGIC).number(Version::new(major, minor).0).0
    }

    #[test]
    fn the_lower_version_is_used() {
        assert_eq!(read_hello(&mut &*hello_of(1, 34)).unwrap(), Version::new(1, 34));
        assert_eq!(read_hello(&mut &*hello_of(1, 38)).unwrap(), Version::OURS);
        for (major, minor) in [(1, 17), (0, 99), (2, 0)] {
            let error = read_hello(&mut &*hello_of(major, minor)).unwrap_err();
            assert!(matches!(error, ProtocolError::Version { .. }), "{major}.{minor}: {error}");
        }
        let error = read_hello(&mut &b"HTTP/1.1 400 Bad"[..]).unwrap_err();
        assert!(matches!(error, ProtocolError::NotADaemon { .. }));
    }

    #[test]
    fn the_welcome_depends_on_the_version() {
        let old = Script::default().number(FRAME_LAST).0;
        let named = Script::default().string("2.8.0").number(FRAME_LAST).0;
        let trusting = Script::default().string("2.31.1").number(1).number(FRAME_LAST).0;
        for (minor, bytes) in [(21, old), (34, named), (35, trusting)] {
            let mut rest = &*bytes;
            read_welcome(&mut rest, Version::new(1, minor)).unwrap();
            assert!(rest.is_empty(), "1.{minor} leaves {} bytes", rest.len());
        }
    }

    #[test]
    fn a_request_is_padded() {
        let request = add_temp_root("/nix/store/abc");
        assert_eq!(request.len(), 8 + 8 + 16);
        assert_eq!(request[..16], [11, 0, 0, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&request[16..], b"/nix/store/abc\0\0");
    }

    #[test]
    fn log_frames_are_passed_over() {
        let script = Script::default()
            .number(FRAME_LOG)
            .string("copying")
            .number(FRAME_START_ACTIVITY)
            .number(7)
            .number(3)
            .number(101)
            .string("querying")
            .number(2)
            .number(0)
            .number(5)
            .number(1)
            .string("field")
            .number(0)
            .number(FRAME_RESULT)
            .number(7)
            .number(105)
            .number(1)
            .number(0)
            .number(9)
            .number(FRAME_STOP_ACTIVITY)
            .number(7)
            .number(FRAME_WRITE)
            .string("output")
            .number(FRAME_LAST)
            .number(1);
        let mut rest = &*script.0;
        read_added(&mut rest, Version::OURS).unwrap();
        assert!(rest.is_empty());
    }

    #[test]
    fn an_error_keeps_the_daemons_words() {
        let old =
            Script::default().number(FRAME_ERROR).string("not in the \x1b[35;1mstore\x1b[0m").number(1).0;
        let new = Script::default()
            .number(FRAME_ERROR)
            .string("Error")
            .number(0)
            .string("Error")
            .string("not in the store")
            .number(0)
            .number(1)
            .number(0)
            .string("while adding")
            .0;
        for (minor, bytes) in [(25, old), (34, new)] {
            let mut rest = &*bytes;
            let error = read_added(&mut rest, Version::new(1, minor)).unwrap_err();
            assert!(rest.is_empty());
            assert_eq!(error.to_string(), "the Nix daemon refused: not in the store");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let endless = Script::default().number(FRAME_LOG).number(u64::MAX).0;
        assert!(matches!(read_added(&mut &*endless, Version::OURS), Err(ProtocolError::TooLong)));
        let chatter = Script::default().number(FRAME_STOP_ACTIVITY).number(1).0;
        let mut chatter = chatter.repeat(limits::ROOT_FRAMES as usize + 1);
        chatter.extend(FRAME_LAST.to_le_bytes());
        assert!(matches!(read_added(&mut &*chatter, Version::OURS), Err(ProtocolError::TooLong)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail_otherwise_than_with_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), minor in 18u8..36
        ) {
            let version = Version::new(1, minor);
            let _ = read_hello(&mut &*bytes);
            let _ = read_welcome(&mut &*bytes, version);
            let _ = read_added(&mut &*bytes, version);
        }
    }
}
