//! Base64 as Nix reads it.

use data_encoding::{BASE64, BASE64_NOPAD};

/// The text of `bytes`, padded.
pub fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// The bytes of `text`. As in Nix, line ends inside are skipped (key files are sometimes wrapped) and the
/// padding may be missing.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.trim_end_matches('=').bytes().filter(|&byte| byte != b'\n').collect();
    BASE64_NOPAD.decode(&digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_nix_does() {
        assert_eq!(encode(b"ab"), "YWI=");
        assert_eq!(decode("YWI="), Some(b"ab".to_vec()));
        assert_eq!(decode("YWI"), Some(b"ab".to_vec()));
        assert_eq!(decode("Y\nWI="), Some(b"ab".to_vec()));
        assert_eq!(decode("YW I="), None);
        assert_eq!(decode("YWI=YWI="), None);
    }
}
