//! SHA-256, the one hash of a binary cache, and the ways in which Nix writes it.

use std::fmt;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use sha2::Digest;

use super::{base32, base64};

/// A SHA-256 hash. `Display` is the form of a narinfo: `sha256:` and 52 base32 digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256(pub [u8; Sha256::LEN]);

/// A text that is not a SHA-256 hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The text names another algorithm, or none.
    #[error("“{0}” is not a SHA-256 hash: it begins with neither “sha256:” nor “sha256-”")]
    Algorithm(String),
    /// What follows the algorithm is not 32 bytes in base16, base32 or base64.
    #[error(
        "“{0}” is not a SHA-256 hash: 64 hexadecimal, 52 base32 or 44 base64 digits must follow the type"
    )]
    Digits(String),
}

impl Sha256 {
    /// Bytes in a hash.
    pub const LEN: usize = 32;

    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Reads `sha256:` with hexadecimal (Nix's database), base32 (narinfo) or base64 digits, or the SRI form
    /// `sha256-` with base64.
    ///
    /// # Errors
    /// Another algorithm or none; digits of another length or alphabet.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let hash = if let Some(digits) = text.strip_prefix("sha256:") {
            from_digits(digits)
        } else if let Some(digits) = text.strip_prefix("sha256-") {
            from_base64(digits)
        } else {
            return Err(HashError::Algorithm(text.to_owned()));
        };
        hash.map(Self).ok_or_else(|| HashError::Digits(text.to_owned()))
    }

    /// Reads 52 base32 digits with no algorithm before them, as in a NAR's URL.
    pub fn from_base32(digits: &str) -> Option<Self> {
        base32::decode(digits.as_bytes()).map(Self)
    }

    /// 64 lower-case hexadecimal digits, with no algorithm before them.
    pub fn to_hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// 52 base32 digits, with no algorithm before them.
    pub fn to_base32(&self) -> String {
        base32::encode(&self.0)
    }

    /// The form of Subresource Integrity: `sha256-` and base64.
    pub fn to_sri(&self) -> String {
        format!("sha256-{}", base64::encode(&self.0))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_base32())
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The SRI form of a hash of any algorithm that a content address may have, given as `<algorithm>:<digits>`.
pub fn to_sri(text: &str) -> Option<String> {
    let (algorithm, digits) = text.split_once(':')?;
    let bytes = match algorithm {
        "md5" => from_digits::<16>(digits)?.to_vec(),
        "sha1" => from_digits::<20>(digits)?.to_vec(),
        "sha256" | "blake3" => from_digits::<32>(digits)?.to_vec(),
        "sha512" => from_digits::<64>(digits)?.to_vec(),
        _ => return None,
    };
    Some(format!("{algorithm}-{}", base64::encode(&bytes)))
}

/// Nix tells the encodings of a hash apart by their length.
fn from_digits<const N: usize>(digits: &str) -> Option<[u8; N]> {
    if digits.len() == 2 * N {
        HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?.try_into().ok()
    } else {
        base32::decode(digits.as_bytes()).or_else(|| from_base64(digits))
    }
}

/// With its padding, always: Nix goes by the length.
fn from_base64<const N: usize>(digits: &str) -> Option<[u8; N]> {
    if digits.len() == N.div_ceil(3) * 4 { base64::decode(digits)?.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The hash of nothing, as `nix-hash` writes it in each encoding.
    const EMPTY: [&str; 4] = [
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
        "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    ];

    #[test]
    fn every_encoding_is_the_same_hash() {
        let empty = Sha256::of(b"");
        for text in EMPTY {
            assert_eq!(Sha256::parse(text), Ok(empty), "{text}");
        }
        assert_eq!(format!("sha256:{}", empty.to_hex()), EMPTY[0]);
        assert_eq!(empty.to_string(), EMPTY[1]);
        assert_eq!(empty.to_sri(), EMPTY[3]);
        assert_eq!(Sha256::parse(&EMPTY[0].replace("sha256:e3b0c442", "sha256:E3B0C442")), Ok(empty));
    }

    #[test]
    fn refuses_other_texts() {
        for text in ["", "sha256", "sha512:00", &EMPTY[0][7..], "SHA256:00"] {
            assert_eq!(Sha256::parse(text), Err(HashError::Algorithm(text.to_owned())));
        }
        let digits = ["sha256:", "sha256-", &EMPTY[0][..70], &EMPTY[1][..58], &EMPTY[3][..50]];
        for text in
            digits.into_iter().chain([&*EMPTY[0].replace('e', "é"), &EMPTY[0].replace("sha256:", "sha256-")])
        {
            assert_eq!(Sha256::parse(text), Err(HashError::Digits(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn round_trip(bytes: [u8; 32]) {
            let hash = Sha256(bytes);
            prop_assert_eq!(Sha256::parse(&hash.to_string()), Ok(hash));
            prop_assert_eq!(Sha256::parse(&hash.to_sri()), Ok(hash));
            prop_assert_eq!(Sha256::parse(&format!("sha256:{}", hash.to_hex())), Ok(hash));
            prop_assert_eq!(Sha256::from_base32(&hash.to_base32()), Some(hash));
        }

        #[test]
        fn never_panics(text: String) {
            let _ = Sha256::parse(&text);
            let _ = Sha256::parse(&format!("sha256:{text}"));
        }
    }
}
