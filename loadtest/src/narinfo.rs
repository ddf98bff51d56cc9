//! What of Nix's formats the tool needs, written for it alone: base32, narinfo, `nix-cache-info`, store path names.

/// The alphabet of Nix's base32: no e, o, t, u.
const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
/// Digits of a store path's hash part.
pub const HASH_DIGITS: usize = 32;

/// Nix's base32: least significant digit last.
pub fn base32(bytes: &[u8]) -> String {
    let count = (bytes.len() * 8).div_ceil(5);
    let digit = |index: usize| {
        let bit = index * 5;
        let (byte, shift) = (bit / 8, bit % 8);
        let low = u16::from(bytes[byte]);
        let high = bytes.get(byte + 1).map_or(0, |&byte| u16::from(byte));
        char::from(DIGITS[usize::from(((low | (high << 8)) >> shift) & 31)])
    };
    (0..count).rev().map(digit).collect()
}

/// A SHA-256 as narinfos have it: `sha256:` and base32, base16, or nothing that is known here.
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:")?;
    let mut bytes = [0; 32];
    match digits.len() {
        52 => {
            for (index, digit) in digits.bytes().rev().enumerate() {
                let value = DIGITS.iter().position(|&known| known == digit)?;
                let (byte, shift) = (index * 5 / 8, index * 5 % 8);
                let wide = value << shift;
                bytes[byte] |= (wide & 0xff) as u8;
                match bytes.get_mut(byte + 1) {
                    Some(next) => *next |= (wide >> 8) as u8,
                    None if wide >> 8 != 0 => return None,
                    None => {}
                }
            }
        }
        64 => {
            for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
                *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
            }
        }
        _ => return None,
    }
    Some(bytes)
}

/// The hash part of a store path, of its basename, or of itself.
pub fn hash_part(path: &str) -> Option<&str> {
    let name = path.trim_end_matches('/').rsplit('/').next()?;
    let hash = name.get(..HASH_DIGITS)?;
    let rest = &name[HASH_DIGITS..];
    let known = hash.bytes().all(|digit| DIGITS.contains(&digit));
    (known && (rest.is_empty() || rest.starts_with('-'))).then_some(hash)
}

/// What the tool uses of a narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// Of the NAR, relative to the cache.
    pub url: String,
    /// Bytes on the way, where it tells: a cache that compresses as it sends does not know yet.
    pub size: Option<u64>,
    /// Of the bytes on the way: FileHash where the file is compressed, else NarHash.
    pub sha256: Option<[u8; 32]>,
    /// The NAR's hash and size in bytes, where the file is zstd's and is to be decompressed to it.
    pub packed: Option<([u8; 32], u64)>,
    /// Hash parts of the references, a self-reference included.
    pub references: Vec<String>,
}

/// Why a narinfo cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// It is not UTF-8.
    #[error("narinfo is not text")]
    Text,
    /// A line without `: `.
    #[error("narinfo line without a colon")]
    Line,
    /// StorePath, URL, NarHash, NarSize or References is missing.
    #[error("narinfo lacks a field")]
    Missing,
    /// A field is not of its form.
    #[error("narinfo field malformed")]
    Field,
    /// It is about another store path than was asked for.
    #[error("narinfo of another path")]
    OtherPath,
    /// Its URL leads out of the cache.
    #[error("narinfo url leads elsewhere")]
    Elsewhere,
}

impl NarInfo {
    /// Parses the narinfo that a cache gave for the path with this hash part.
    pub fn parse(bytes: &[u8], asked: &str) -> Result<Self, NarInfoError> {
        let text = std::str::from_utf8(bytes).map_err(|_| NarInfoError::Text)?;
        let (mut path, mut url, mut compression) = (None, None, "bzip2");
        let (mut nar_hash, mut file_hash, mut nar_size, mut file_size, mut references) =
            (None, None, None, None, None);
        for line in text.lines() {
            let (name, value) = line.split_once(": ").ok_or(NarInfoError::Line)?;
            match name {
                "StorePath" => path = Some(value),
                "URL" => url = Some(value),
                "Compression" => compression = value,
                "NarHash" => nar_hash = Some(parse_sha256(value)),
                "FileHash" => file_hash = parse_sha256(value),
                "NarSize" => nar_size = Some(value.parse().map_err(|_| NarInfoError::Field)?),
                "FileSize" => file_size = Some(value.parse().map_err(|_| NarInfoError::Field)?),
                "References" => references = Some(value),
                _ => {}
            }
        }
        let missing = NarInfoError::Missing;
        let url = url.ok_or(missing)?;
        let (nar_hash, nar_size) = (nar_hash.ok_or(missing)?, nar_size.ok_or(missing)?);
        if hash_part(path.ok_or(missing)?) != Some(asked) {
            return Err(NarInfoError::OtherPath);
        }
        if url.is_empty() || url.starts_with('/') || url.contains(":/") || url.contains([' ', '#']) {
            return Err(NarInfoError::Elsewhere);
        }
        let references = references.ok_or(missing)?.split(' ').filter(|name| !name.is_empty());
        let references: Option<_> = references.map(|name| hash_part(name).map(str::to_owned)).collect();
        let plain = compression == "none";
        Ok(Self {
            url: url.to_owned(),
            size: if plain { Some(nar_size) } else { file_size },
            packed: nar_hash.filter(|_| compression == "zstd").map(|hash| (hash, nar_size)),
            sha256: if plain { nar_hash } else { file_hash },
            references: references.ok_or(NarInfoError::Field)?,
        })
    }
}

/// Whether these bytes are a `nix-cache-info`: they name a store directory.
pub fn is_cache_info(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| {
        text.lines().any(|line| line.strip_prefix("StoreDir: ").is_some_and(|dir| !dir.is_empty()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `nix copy --to 'file://…?compression=none'` of Nix 2.8.
    const WRITTEN_BY_NIX: &str = "StorePath: /nix/store/2wnhz6w3mjfx2fvvibsfz19kxxmww3qp-hostname\n\
        URL: nar/04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w.nar\n\
        Compression: none\n\
        FileHash: sha256:04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w\n\
        FileSize: 152\n\
        NarHash: sha256:04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w\n\
        NarSize: 152\n\
        References: \n\
        CA: fixed:r:sha256:04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w\n";
    const ASKED: &str = "2wnhz6w3mjfx2fvvibsfz19kxxmww3qp";

    #[test]
    fn both_spellings_of_a_hash_are_one() {
        // The same hash, as Nix's database and its narinfo have it.
        let hex = "sha256:bcfc1a2d3fcc29a318e1ed9d31e57718f7b16731ac624a48d0ef5ec177372411";
        let digits = "04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w";
        let bytes = parse_sha256(hex).unwrap();
        assert_eq!(base32(&bytes), digits);
        assert_eq!(parse_sha256(&format!("sha256:{digits}")), Some(bytes));
        assert_eq!(parse_sha256(&format!("sha256:z{}", &digits[1..])), None);
        assert_eq!(parse_sha256("sha256:00"), None);
    }

    #[test]
    fn a_narinfo_is_read() {
        let info = NarInfo::parse(WRITTEN_BY_NIX.as_bytes(), ASKED).unwrap();
        assert_eq!(info.url, "nar/04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w.nar");
        assert_eq!((info.size, info.packed), (Some(152), None));
        assert!(info.sha256.is_some() && info.references.is_empty());
    }

    #[test]
    fn the_hash_of_a_compressed_file_is_the_files() {
        let text = WRITTEN_BY_NIX
            .replace("Compression: none", "Compression: xz")
            .replace("FileSize: 152", "FileSize: 90")
            .replace("FileHash: sha256:0", "FileHash: sha256:1");
        let info = NarInfo::parse(text.as_bytes(), ASKED).unwrap();
        assert_eq!((info.size, info.packed), (Some(90), None));
        assert_ne!(info.sha256, NarInfo::parse(WRITTEN_BY_NIX.as_bytes(), ASKED).unwrap().sha256);
    }

    #[test]
    fn what_is_still_to_be_compressed_has_no_size() {
        let text = WRITTEN_BY_NIX.replace("Compression: none", "Compression: zstd");
        let lines = text.lines().filter(|line| !line.starts_with("File")).map(|line| format!("{line}\n"));
        let info = NarInfo::parse(lines.collect::<String>().as_bytes(), ASKED).unwrap();
        let plain = NarInfo::parse(WRITTEN_BY_NIX.as_bytes(), ASKED).unwrap();
        assert_eq!((info.size, info.sha256), (None, None));
        assert_eq!(info.packed, plain.sha256.map(|hash| (hash, 152)));
    }

    #[test]
    fn wrong_narinfos_are_refused_by_cause() {
        let refused = |from: &str, to: &str| {
            assert!(WRITTEN_BY_NIX.contains(from));
            NarInfo::parse(WRITTEN_BY_NIX.replace(from, to).as_bytes(), ASKED).unwrap_err()
        };
        assert_eq!(refused("2wnhz6", "3wnhz6"), NarInfoError::OtherPath);
        assert_eq!(refused("URL: nar", "URL: /nar"), NarInfoError::Elsewhere);
        assert_eq!(refused("URL: nar", "URL: http://a/nar"), NarInfoError::Elsewhere);
        assert_eq!(refused("References: \n", "References:\n"), NarInfoError::Line);
        assert_eq!(refused("NarSize: 152", "NarSize: x"), NarInfoError::Field);
        assert_eq!(refused("NarSize: 152\n", ""), NarInfoError::Missing);
    }

    #[test]
    fn hash_parts_are_found() {
        for path in [format!("/nix/store/{ASKED}-a"), format!("{ASKED}-a"), ASKED.to_owned()] {
            assert_eq!(hash_part(&path), Some(ASKED));
        }
        for path in ["", "/nix/store/abc", "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-a"] {
            assert_eq!(hash_part(path), None);
        }
        assert_eq!(hash_part(&format!("{ASKED}x")), None);
    }
}
