//! Store paths: `<store dir>/<hash part>-<name>`, and how Nix computes the hash part.

use std::fmt;
use std::sync::Arc;

use sha2::Digest;

use super::base32;
use super::hash::Sha256;

/// The longest name that Nix gives a store path: with the hash part, a dash, `.lock` or a similar suffix and
/// room to spare, it stays a file name (`StorePath::MaxPathLen` in Nix).
pub const NAME_MAX: usize = 211;

/// A text that is not a store path, or not a store directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// A full path that is not directly below the store directory.
    #[error("“{path}” is not directly in the store directory “{dir}”")]
    Outside {
        /// The path as it was given.
        path: String,
        /// The store directory.
        dir: StoreDir,
    },
    /// The first 32 characters are no hash, or no dash follows them.
    #[error("“{0}” does not begin with a store path's hash (32 base32 digits) and a dash")]
    HashPart(String),
    /// The name is empty, too long, or has a character that store paths cannot have.
    #[error(
        "“{0}” is not a store path's name: 1 to {NAME_MAX} letters, digits and “+-._?=”, the part before the first \
         dash not “.” or “..”"
    )]
    Name(String),
    /// The text is not an absolute path in its plain form.
    #[error("“{0}” is not a store directory: it must be an absolute path with no “.”, “..” or empty part")]
    Dir(String),
}

/// The first 32 digits of a store path's basename: what clients ask for. `Display` gives the digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePathHash(pub [u8; StorePathHash::LEN]);

impl StorePathHash {
    /// Bytes in a hash part.
    pub const LEN: usize = 20;
    /// Base32 digits in a hash part.
    pub const DIGITS: usize = base32::encoded_len(Self::LEN);

    /// Reads exactly 32 base32 digits.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        base32::decode(digits).map(Self)
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A store path without its store directory: the basename `<hash part>-<name>`, known to be well formed.
/// Ordered by the bytes of the basename, as Nix orders references. A clone shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    basename: Arc<str>,
    hash: StorePathHash,
}

impl StorePath {
    /// Reads a basename.
    ///
    /// Names that begin with a dot are taken, as Nix 2.21 does again: a store that holds one must be served.
    ///
    /// # Errors
    /// [`StorePathError::HashPart`] or [`StorePathError::Name`].
    pub fn from_basename(basename: &str) -> Result<Self, StorePathError> {
        let hash = || {
            let hash = StorePathHash::parse(basename.as_bytes().get(..StorePathHash::DIGITS)?)?;
            Some((hash, basename[StorePathHash::DIGITS..].strip_prefix('-')?))
        };
        let (hash, name) = hash().ok_or_else(|| StorePathError::HashPart(basename.to_owned()))?;
        check_name(name)?;
        Ok(Self { basename: basename.into(), hash })
    }

    /// The path of a hash part and a name.
    ///
    /// # Errors
    /// [`StorePathError::Name`].
    pub fn from_parts(hash: StorePathHash, name: &str) -> Result<Self, StorePathError> {
        check_name(name)?;
        Ok(Self { basename: format!("{hash}-{name}").into(), hash })
    }

    /// The hash part.
    pub fn hash(&self) -> StorePathHash {
        self.hash
    }

    /// What follows the hash part and its dash.
    pub fn name(&self) -> &str {
        &self.basename[StorePathHash::DIGITS + 1..]
    }

    /// The whole basename.
    pub fn as_str(&self) -> &str {
        &self.basename
    }

    /// Whether this is a derivation (`.drv`).
    pub fn is_derivation(&self) -> bool {
        self.basename.ends_with(".drv")
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.basename)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.basename)
    }
}

/// A store directory, such as `/nix/store`: absolute, with no slash at the end. A clone shares the text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoreDir(Arc<str>);

impl StoreDir {
    /// Reads a store directory; slashes at its end are dropped.
    ///
    /// # Errors
    /// [`StorePathError::Dir`]: a relative path, the root directory, a part that is empty, `.` or `..`, or a
    /// control character, which would break a narinfo's lines.
    pub fn new(dir: &str) -> Result<Self, StorePathError> {
        let plain = dir.trim_end_matches('/');
        let well_formed = plain.strip_prefix('/').is_some_and(|parts| {
            parts.split('/').all(|part| !matches!(part, "" | "." | "..")) && !parts.contains(char::is_control)
        });
        if well_formed { Ok(Self(plain.into())) } else { Err(StorePathError::Dir(dir.to_owned())) }
    }

    /// The directory as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full path of `path` in this directory, to be formatted.
    pub fn display<'a>(&'a self, path: &'a StorePath) -> impl fmt::Display + use<'a> {
        FullPath { dir: self, path }
    }

    /// Reads a full path in this directory.
    ///
    /// # Errors
    /// [`StorePathError::Outside`] where it is not directly below the directory; else as
    /// [`StorePath::from_basename`].
    pub fn parse(&self, full: &str) -> Result<StorePath, StorePathError> {
        let basename = full
            .strip_prefix(&*self.0)
            .and_then(|rest| rest.strip_prefix('/'))
            .filter(|basename| !basename.contains('/'))
            .ok_or_else(|| StorePathError::Outside { path: full.to_owned(), dir: self.clone() })?;
        StorePath::from_basename(basename)
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What [`StoreDir::display`] gives.
struct FullPath<'a> {
    dir: &'a StoreDir,
    path: &'a StorePath,
}

impl fmt::Display for FullPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.dir.0, self.path.basename)
    }
}

/// The store path for `inner`, the hash that stands for the contents, as `StoreDirConfig::makeStorePath`.
///
/// `kind` says what `inner` is of: `source` (a NAR; references follow, each after a colon), `text` (a file's
/// bytes; likewise), or `output:<output name>` (a derivation modulo its inputs).
///
/// # Errors
/// [`StorePathError::Name`].
pub fn make_store_path(
    dir: &StoreDir,
    kind: &str,
    inner: &Sha256,
    name: &str,
) -> Result<StorePath, StorePathError> {
    let digest = sha2::Sha256::digest(format!("{kind}:sha256:{}:{dir}:{name}", inner.to_hex()));
    let mut folded = [0; StorePathHash::LEN];
    for (index, byte) in digest.iter().enumerate() {
        folded[index % StorePathHash::LEN] ^= byte;
    }
    StorePath::from_parts(StorePathHash(folded), name)
}

/// The store path of a tree addressed by the SHA-256 of its NAR (`nix store add-path`, recursive fixed
/// outputs). With `self_reference`, `nar_hash` is the hash modulo that reference.
///
/// # Errors
/// [`StorePathError::Name`].
pub fn make_fixed_output_path(
    dir: &StoreDir,
    nar_hash: &Sha256,
    name: &str,
    references: &[StorePath],
    self_reference: bool,
) -> Result<StorePath, StorePathError> {
    let mut references: Vec<&StorePath> = references.iter().collect();
    references.sort_unstable();
    references.dedup();
    let mut kind = String::from("source");
    for reference in references {
        kind.push_str(&format!(":{}", dir.display(reference)));
    }
    if self_reference {
        kind.push_str(":self");
    }
    make_store_path(dir, &kind, nar_hash, name)
}

fn check_name(name: &str) -> Result<(), StorePathError> {
    if is_name(name) { Ok(()) } else { Err(StorePathError::Name(name.to_owned())) }
}

/// Whether the name of a store path can have this character.
pub fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte)
}

/// Whether `name` can be the name of a store path, or of a derivation's output.
pub(super) fn is_name(name: &str) -> bool {
    // `.` and `..` are refused alone and before a dash, as in Nix.
    let first = name.split('-').next();
    (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(is_name_byte)
        && !matches!(first, Some("." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HELLO: &str = "1rby9w95yip84a74hdig0zkqr2j8awaj-hello.txt";

    fn nix_store() -> StoreDir {
        StoreDir::new("/nix/store").unwrap()
    }

    #[test]
    fn parts_of_a_basename() {
        let path = StorePath::from_basename(HELLO).unwrap();
        assert_eq!(path.hash().to_string(), &HELLO[..32]);
        assert_eq!(path.name(), "hello.txt");
        assert_eq!(path.to_string(), HELLO);
        assert!(!path.is_derivation());
        assert_eq!(StorePath::from_parts(path.hash(), "hello.txt"), Ok(path));
        assert!(
            StorePath::from_basename("1rby9w95yip84a74hdig0zkqr2j8awaj-hello.drv").unwrap().is_derivation()
        );
    }

    #[test]
    fn refuses_what_is_no_basename() {
        let hash = &HELLO[..32];
        for text in [
            "",
            hash,
            "hello.txt",
            &HELLO[1..],
            &HELLO.replace('1', "e"),
            &format!("{hash}_x"),
            &format!("{hash}é-x"),
        ] {
            assert_eq!(StorePath::from_basename(text), Err(StorePathError::HashPart(text.to_owned())));
        }
        let long = "x".repeat(212);
        for name in ["", ".", "..", ".-x", "..-x", "a b", "a/b", "a\n", "a\0", "é", "a%", &long] {
            let text = format!("{hash}-{name}");
            assert_eq!(StorePath::from_basename(&text), Err(StorePathError::Name(name.to_owned())));
        }
        for name in ["x", "...", ".x", "..x", ".git-1", "+-._?=", &long[1..]] {
            assert_eq!(StorePath::from_basename(&format!("{hash}-{name}")).unwrap().name(), name);
        }
    }

    #[test]
    fn ordered_by_the_bytes_of_the_basename() {
        let mut paths: Vec<StorePath> = ["z", "Z", "a-1", "a"]
            .map(|name| StorePath::from_basename(&format!("{}-{name}", &HELLO[..32])).unwrap())
            .into();
        paths.push(StorePath::from_basename("0rby9w95yip84a74hdig0zkqr2j8awaj-zz").unwrap());
        paths.sort();
        let names: Vec<&str> = paths.iter().map(StorePath::name).collect();
        assert_eq!(names, ["zz", "Z", "a", "a-1", "z"]);
    }

    #[test]
    fn store_directories() {
        assert_eq!(StoreDir::new("/nix/store//").unwrap().as_str(), "/nix/store");
        for dir in ["", "/", "nix/store", "/nix//store", "/nix/./store", "/nix/..", "/nix\n/store"] {
            assert_eq!(StoreDir::new(dir), Err(StorePathError::Dir(dir.to_owned())));
        }
    }

    #[test]
    fn full_paths() {
        let dir = nix_store();
        let path = StorePath::from_basename(HELLO).unwrap();
        let full = format!("/nix/store/{HELLO}");
        assert_eq!(dir.display(&path).to_string(), full);
        assert_eq!(dir.parse(&full), Ok(path));
        for outside in [
            "",
            HELLO,
            "/nix/store",
            &format!("/nix/stores/{HELLO}"),
            &format!("/nix/store{HELLO}"),
            &format!("{full}/bin"),
        ] {
            assert_eq!(
                dir.parse(outside),
                Err(StorePathError::Outside { path: outside.to_owned(), dir: dir.clone() })
            );
        }
        assert!(matches!(dir.parse("/nix/store/"), Err(StorePathError::HashPart(_))));
    }

    /// Against `nix-store --add hello.txt` of a file that holds `hello\n`, and `nix store add-path --name`.
    #[test]
    fn content_addressed_by_nar() {
        let nar = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0type\0\0\0\0\
            \x07\0\0\0\0\0\0\0regular\0\x08\0\0\0\0\0\0\0contents\x06\0\0\0\0\0\0\0hello\n\0\0\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0";
        let nar_hash = Sha256::of(nar);
        assert_eq!(nar_hash.to_hex(), "1c37d01af40be2e80691de3cc3df44377a699afbb17c68f080964b2fd071fc13");
        let path =
            |name| make_fixed_output_path(&nix_store(), &nar_hash, name, &[], false).unwrap().to_string();
        assert_eq!(path("hello.txt"), "i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt");
        assert_eq!(path("my-name"), "vx5xmysdfd1rxhcyrk72ljpw0qhi15nl-my-name");
    }

    /// Against `builtins.toFile`: `inner` holds `in`, `note` holds `hello <inner>\n`.
    #[test]
    fn content_addressed_text() {
        let dir = nix_store();
        let inner = make_store_path(&dir, "text", &Sha256::of(b"in"), "inner").unwrap();
        assert_eq!(inner.to_string(), "p1bsf9ilwf14lsv7yqzff0b6lk448baq-inner");
        let inner = dir.display(&inner);
        let note = Sha256::of(format!("hello {inner}\n").as_bytes());
        let note = make_store_path(&dir, &format!("text:{inner}"), &note, "note").unwrap();
        assert_eq!(note.to_string(), "851z8w9dkgffdb5pvfzhx2adp1qz07lb-note");
    }

    /// Against `nix store make-content-addressed` of a path that refers to itself and another, and the text of
    /// a derivation that refers to another.
    #[test]
    fn content_addressed_with_references() {
        let dir = StoreDir::new("/opt/nix/store").unwrap();
        let path = |basename| StorePath::from_basename(basename).unwrap();
        let hash = |digits| Sha256::from_base32(digits).unwrap();
        let dep = path("d3495d2zp30z8i7zfji1safppf3diwhm-dep");
        let dep_hash = hash("00kjynz8n03652qccs76ivsvark3pr3dfr6w1ba3x7bx83kcknvv");
        assert_eq!(make_fixed_output_path(&dir, &dep_hash, "dep", &[], false), Ok(dep.clone()));
        let self_hash = hash("15jk7yc2pz1qnbfjh2p9fb6hy2ly8n6hx4x32jsr51gw90vhljgg");
        assert_eq!(
            make_fixed_output_path(&dir, &self_hash, "self", &[dep], true),
            Ok(path("8k6vi2pskk2s1jzkr296whp45f2x21kb-self"))
        );
        let kind = "text:/opt/nix/store/rpmwqm7mdv2mbn2dym18w1di2di9sa2m-dep.drv";
        let drv_hash = hash("1lp7l5634b2c5rfg4iza2j5jhzsi628r66sgzxcfn8l1kn5wjwks");
        assert_eq!(
            make_store_path(&dir, kind, &drv_hash, "self.drv"),
            Ok(path("z19ssnaf249kixin0l28c3m6cdglg43g-self.drv"))
        );
    }

    #[test]
    fn references_are_ordered_and_self_comes_last() {
        let dir = nix_store();
        let one = StorePath::from_basename(HELLO).unwrap();
        let two = StorePath::from_parts(one.hash(), "z").unwrap();
        let hash = Sha256::of(b"");
        let made = make_fixed_output_path(&dir, &hash, "x", &[two.clone(), one.clone(), two.clone()], true);
        let kind = format!("source:{}:{}:self", dir.display(&one), dir.display(&two));
        assert_eq!(made, make_store_path(&dir, &kind, &hash, "x"));
    }

    proptest! {
        #[test]
        fn never_panics(text: String, tail: String) {
            let _ = StorePath::from_basename(&text);
            let _ = StorePath::from_basename(&format!("{}{tail}", &HELLO[..32]));
            let _ = nix_store().parse(&text);
            let _ = StoreDir::new(&text);
        }

        #[test]
        fn round_trip(hash: [u8; 20], name in "[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,210}") {
            let path = StorePath::from_parts(StorePathHash(hash), &name).unwrap();
            prop_assert_eq!(StorePath::from_basename(path.as_str()), Ok(path));
        }
    }
}
