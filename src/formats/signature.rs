//! Ed25519 keys and signatures as Nix writes them: a name, a colon, and base64.
//!
//! `nix-store --generate-binary-cache-key` writes the same texts; a secret key is the 32-byte seed followed by
//! the 32-byte public key, as in libsodium.
//!
//! Keys are read, and signatures verified, by a library that can be as strict about weak keys as libsodium is; what TLS
//! brings along signs in half its time (25 µs against 48 µs, side by side), and every narinfo is signed once.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::Ed25519KeyPair;
use ed25519_dalek::{KEYPAIR_LENGTH, PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH, SecretKey as Seed};
use ed25519_dalek::{SigningKey, VerifyingKey};

use super::base64;

/// A text that is not a key or a signature. No message holds any of the text but a name known to be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no colon.
    #[error("there is no colon: it must be “name:base64”")]
    NoColon,
    /// The name before the colon is empty, or has a blank, a colon or a control character.
    #[error("the name before the colon is empty or has a blank, a colon or a control character in it")]
    Name,
    /// What follows the colon is not base64.
    #[error("what follows {} is not base64", colon(.name))]
    Base64 {
        /// The key's name; none where it may be the secret, as in a file with both the wrong way round.
        name: Option<String>,
    },
    /// What follows the colon has the wrong number of bytes.
    #[error("what follows {} is {len} bytes long, not {expected}{}", colon(.name), length_hint(*.expected, *.len))]
    Length {
        /// The key's name, as in [`KeyError::Base64`].
        name: Option<String>,
        /// How many bytes there are.
        len: usize,
        /// How many there must be.
        expected: usize,
    },
    /// The second half of a secret key is not the public key of its first.
    #[error("the secret key “{name}” is damaged: its public half does not belong to its secret half")]
    Halves {
        /// The key's name.
        name: String,
    },
    /// The bytes of a public key are not a point on the curve.
    #[error("the public key “{name}” is damaged: it is not an Ed25519 key")]
    NotAPoint {
        /// The key's name.
        name: String,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a new key: {0}")]
    NoRandomness(getrandom::Error),
}

fn colon(name: &Option<String>) -> String {
    name.as_ref().map_or_else(|| "the colon".to_owned(), |name| format!("“{name}:”"))
}

fn length_hint(expected: usize, len: usize) -> &'static str {
    match (expected, len) {
        (KEYPAIR_LENGTH, PUBLIC_KEY_LENGTH) => " (is it the public key? a secret one is needed)",
        (PUBLIC_KEY_LENGTH, KEYPAIR_LENGTH) => " (is it the secret key? the public one is needed)",
        _ => "",
    }
}

/// A named signing key. `Debug` shows the name alone; the key is wiped from memory when dropped.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    key: SigningKey,
    /// The same key, to sign with.
    signer: Arc<Ed25519KeyPair>,
}

impl SecretKey {
    /// Reads `name:base64` of 64 bytes; blanks around it are skipped, as a key file often ends in a newline.
    ///
    /// # Errors
    /// Any [`KeyError`] that concerns a secret key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, pair) = split::<KEYPAIR_LENGTH>(text.trim(), false)?;
        let key =
            SigningKey::from_keypair_bytes(&pair).map_err(|_| KeyError::Halves { name: name.to_owned() })?;
        Self::of(name, key)
    }

    /// A new key of the system's random bytes.
    ///
    /// # Errors
    /// [`KeyError::Name`] or [`KeyError::NoRandomness`].
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        check_name(name)?;
        let mut seed = Seed::default();
        getrandom::fill(&mut seed).map_err(KeyError::NoRandomness)?;
        Self::of(name, SigningKey::from_bytes(&seed))
    }

    fn of(name: &str, key: SigningKey) -> Result<Self, KeyError> {
        let public = key.verifying_key();
        let signer = Ed25519KeyPair::from_seed_and_public_key(key.as_bytes(), public.as_bytes())
            .map_err(|_| KeyError::Halves { name: name.to_owned() })?;
        Ok(Self { name: name.to_owned(), key, signer: Arc::new(signer) })
    }

    /// The name before the colon, which clients look up among their trusted keys.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Signs `message`. Ed25519 is deterministic: the same message has the same signature each time.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut bytes = [0; SIGNATURE_LENGTH];
        bytes.copy_from_slice(self.signer.sign(message).as_ref());
        Signature { name: self.name.clone(), signature: ed25519_dalek::Signature::from_bytes(&bytes) }
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// The key file's content, with no newline. The only way in which the secret leaves this type.
    pub fn to_text(&self) -> String {
        format!("{}:{}", self.name, base64::encode(&self.key.to_keypair_bytes()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({}:…)", self.name)
    }
}

/// A named key that verifies signatures, as in `trusted-public-keys`. `Display` is the form it is read in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PublicKey {
    /// Reads `name:base64` of 32 bytes; blanks around it are skipped.
    ///
    /// # Errors
    /// Any [`KeyError`] that concerns a public key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split::<PUBLIC_KEY_LENGTH>(text.trim(), true)?;
        let key =
            VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NotAPoint { name: name.to_owned() })?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// The name before the colon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` carries this key's name and is its signature of `message`; weak keys never verify,
    /// as in libsodium.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        self.name == signature.name && self.made(message, signature)
    }

    /// As [`PublicKey::verify`], whatever name the signature carries: Nix would not take it under another one.
    pub fn made(&self, message: &[u8], signature: &Signature) -> bool {
        self.key.verify_strict(message, &signature.signature).is_ok()
    }

    /// Whether both are the same key, whatever their names are.
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// The same key under another name.
    pub fn renamed(&self, name: &str) -> Self {
        Self { name: name.to_owned(), key: self.key }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, base64::encode(self.key.as_bytes()))
    }
}

/// A signature and the name of its key. `Display` is the form of a narinfo's `Sig` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    name: String,
    signature: ed25519_dalek::Signature,
}

impl Signature {
    /// Reads `name:base64` of 64 bytes.
    ///
    /// # Errors
    /// Any [`KeyError`] that concerns a signature.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split::<SIGNATURE_LENGTH>(text, true)?;
        Ok(Self { name: name.to_owned(), signature: ed25519_dalek::Signature::from_bytes(&bytes) })
    }

    /// The name of the key that made it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The 64 bytes in base64, without the name: the `sig` of the structured JSON forms.
    pub fn to_base64(&self) -> String {
        base64::encode(&self.signature.to_bytes())
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.to_base64())
    }
}

/// The name and the `N` bytes of `name:base64`. `named` says whether an error may tell the name.
fn split<const N: usize>(text: &str, named: bool) -> Result<(&str, [u8; N]), KeyError> {
    let (name, digits) = text.split_once(':').ok_or(KeyError::NoColon)?;
    check_name(name)?;
    let told = || named.then(|| name.to_owned());
    let bytes = base64::decode(digits).ok_or_else(|| KeyError::Base64 { name: told() })?;
    let len = bytes.len();
    let bytes = bytes.try_into().map_err(|_| KeyError::Length { name: told(), len, expected: N })?;
    Ok((name, bytes))
}

/// A name with a blank could be neither in `trusted-public-keys` nor among the database's signatures, both
/// separated by blanks; one with a line end would break a narinfo.
fn check_name(name: &str) -> Result<(), KeyError> {
    let breaks = |character: char| character == ':' || character.is_whitespace() || character.is_control();
    if name.is_empty() || name.contains(breaks) { Err(KeyError::Name) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A pair that `nix-store --generate-binary-cache-key test-1` made.
    const SECRET: &str =
        "test-1:s0v16/BM4lai2VuGQ8CB4ScKlAr1jwrSLM4uJcP3ZwYXcnQ6Q7/t3MQaMIbcdYIf+Fcob4Yk9eFcGbF7ZH9rgw==";
    const PUBLIC: &str = "test-1:F3J0OkO/7dzEGjCG3HWCH/hXKG+GJPXhXBmxe2R/a4M=";

    #[test]
    fn reads_and_writes_keys_as_nix_does() {
        let secret = SecretKey::parse(SECRET).unwrap();
        assert_eq!(secret.name(), "test-1");
        assert_eq!(secret.to_text(), SECRET);
        assert_eq!(secret.public().to_string(), PUBLIC);
        assert_eq!(PublicKey::parse(PUBLIC), Ok(secret.public()));
        assert_eq!(SecretKey::parse(&format!("{SECRET}\n")).unwrap().to_text(), SECRET);
    }

    #[test]
    fn a_signature_verifies_for_its_message_and_its_name_only() {
        let secret = SecretKey::generate("cache.example.org-1").unwrap();
        let public = secret.public();
        let signature = Signature::parse(&secret.sign(b"message").to_string()).unwrap();
        assert!(public.verify(b"message", &signature));
        assert!(!public.verify(b"messagf", &signature));
        let renamed = Signature { name: "other".to_owned(), ..signature.clone() };
        assert!(!public.verify(b"message", &renamed));
        let other = SecretKey::generate("cache.example.org-1").unwrap();
        assert_ne!(other.to_text(), secret.to_text());
        assert!(!other.public().verify(b"message", &signature));
    }

    #[test]
    fn signs_what_the_other_library_would() {
        use ed25519_dalek::Signer as _;
        for length in [0, 1, 600, 100_000] {
            let (secret, message) = (SecretKey::generate("k").unwrap(), vec![7; length]);
            assert_eq!(secret.sign(&message).signature, secret.key.sign(&message));
        }
    }

    #[test]
    fn says_what_is_wrong_and_never_the_key() {
        let damaged = SECRET.replace("test-1:s0v1", "test-1:t0v1");
        let reversed = format!("{}:test-1", &SECRET[7..]);
        let reversed_base64 = format!("{}:test", &SECRET[7..]);
        let cases = [
            (reversed.as_str(), KeyError::Base64 { name: None }),
            (&reversed_base64, KeyError::Length { name: None, len: 3, expected: 64 }),
            ("", KeyError::NoColon),
            (&SECRET[7..], KeyError::NoColon),
            (&SECRET[6..], KeyError::Name),
            ("a b:AAAA", KeyError::Name),
            ("test-1:&&&", KeyError::Base64 { name: None }),
            (PUBLIC, KeyError::Length { name: None, len: 32, expected: 64 }),
            (&SECRET[..79], KeyError::Length { name: None, len: 54, expected: 64 }),
            (&damaged, KeyError::Halves { name: "test-1".to_owned() }),
        ];
        for (text, expected) in cases {
            let error = SecretKey::parse(text).unwrap_err();
            assert_eq!(error, expected, "{text}");
            let message = error.to_string();
            assert!(!message.contains("s0v1") && !message.contains("Xcn"), "{message}");
        }
        assert!(SecretKey::parse(PUBLIC).unwrap_err().to_string().contains("is it the public key?"));
        assert!(PublicKey::parse(SECRET).unwrap_err().to_string().contains("is it the secret key?"));
        let secret = SecretKey::parse(SECRET).unwrap();
        assert_eq!(format!("{secret:?}"), "SecretKey(test-1:…)");
        for name in ["", "a b", "a:b", "a\n"] {
            assert_eq!(SecretKey::generate(name).unwrap_err(), KeyError::Name);
        }
    }

    #[test]
    fn a_signature_has_64_bytes() {
        assert_eq!(
            Signature::parse(PUBLIC),
            Err(KeyError::Length { name: Some("test-1".to_owned()), len: 32, expected: 64 })
        );
        let text = format!("k:{}", base64::encode(&[7; 64]));
        assert_eq!(Signature::parse(&text).unwrap().to_string(), text);
    }

    proptest! {
        #[test]
        fn never_panics(text: String, bytes: Vec<u8>) {
            for text in [text, format!("k:{}", base64::encode(&bytes))] {
                let _ = SecretKey::parse(&text);
                let _ = PublicKey::parse(&text);
                let _ = Signature::parse(&text);
            }
        }

        #[test]
        fn any_public_key_is_read_or_refused(bytes: [u8; 32], message: Vec<u8>) {
            let text = format!("k:{}", base64::encode(&bytes));
            if let Ok(key) = PublicKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text);
                let signature = Signature::parse(&format!("k:{}", base64::encode(&[0; 64]))).unwrap();
                prop_assert!(!key.verify(&message, &signature));
            }
        }
    }
}
