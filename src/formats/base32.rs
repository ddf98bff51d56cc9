//! Nix's base32: digits without `e`, `o`, `u` and `t`, the least significant digit last.
//!
//! It is not RFC 4648's: the bytes are one little-endian number, written from its top digit down
//! (`BaseNix32` in Nix's `libutil`).

const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// What [`VALUES`] holds for a byte that is no digit: a bit that no digit has.
const NOT_A_DIGIT: u8 = 0x80;

/// The value of each byte as a digit.
const VALUES: [u8; 256] = {
    let mut values = [NOT_A_DIGIT; 256];
    let mut value = 0;
    while value < DIGITS.len() {
        values[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// How many digits `bytes` bytes take.
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// The digits of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    (0..encoded_len(bytes.len()))
        .rev()
        .map(|position| {
            let (index, shift) = place(position);
            let low = u16::from(bytes[index]);
            let high = bytes.get(index + 1).map_or(0, |&byte| u16::from(byte));
            char::from(DIGITS[usize::from((high << 8 | low) >> shift & 0x1f)])
        })
        .collect()
}

/// The `N` bytes that `digits` stand for; `None` where the length is another, a byte is no digit, or the
/// number does not fit (digits hold up to four bits more than the bytes do).
pub fn decode<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    if digits.len() != encoded_len(N) {
        return None;
    }
    let mut bytes = [0; N];
    let mut wrong = 0;
    // Eight digits are five bytes.
    for (digits, bytes) in digits.rchunks(8).zip(bytes.chunks_mut(5)) {
        let mut group = 0u64;
        for &digit in digits {
            let value = VALUES[usize::from(digit)];
            wrong |= value & NOT_A_DIGIT;
            group = group << 5 | u64::from(value);
        }
        let group = group.to_le_bytes();
        let (fits, rest) = group.split_at(bytes.len());
        bytes.copy_from_slice(fits);
        wrong |= rest.iter().fold(0, |all, byte| all | byte);
    }
    (wrong == 0).then_some(bytes)
}

/// Where the digit worth 32^`position` lies: the byte of its lowest bit, and that bit in the byte.
const fn place(position: usize) -> (usize, u32) {
    let bit = position * 5;
    (bit / 8, (bit % 8) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        // nix-hash --type sha256 --to-base32 <hex>; nix-hash --type sha1 --to-base32 <hex>
        let empty = data_encoding::HEXLOWER
            .decode(b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
            .unwrap();
        assert_eq!(encode(&empty), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
        let sha1 = data_encoding::HEXLOWER.decode(b"da39a3ee5e6b4b0d3255bfef95601890afd80709").unwrap();
        assert_eq!(encode(&sha1), "143xibwh31h9bvxzalr0sjvbbvpa6ffs");
        assert_eq!(encode(&[]), "");
        assert_eq!(decode::<0>(b""), Some([]));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        // 32 bytes are 256 bits, 52 digits 260: the top digit may only be 0 or 1.
        let mut digits = [b'0'; 52];
        digits[0] = b'1';
        assert!(decode::<32>(&digits).is_some());
        digits[0] = b'2';
        assert_eq!(decode::<32>(&digits), None);
        assert_eq!(decode::<1>(b"7z"), Some([0xff]));
        assert_eq!(decode::<1>(b"80"), None);
    }

    #[test]
    fn refuses_bytes_that_are_no_digits() {
        for byte in 0..=u8::MAX {
            let digits = [b'0', b'0', b'0', byte];
            assert_eq!(decode::<2>(&digits).is_some(), DIGITS.contains(&byte), "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(bytes: [u8; 20], long: [u8; 32]) {
            prop_assert_eq!(decode::<20>(encode(&bytes).as_bytes()), Some(bytes));
            prop_assert_eq!(decode::<32>(encode(&long).as_bytes()), Some(long));
        }

        #[test]
        fn one_text_a_value(digits: Vec<u8>) {
            if let Some(bytes) = decode::<3>(&digits) {
                prop_assert_eq!(encode(&bytes).into_bytes(), digits);
            }
        }
    }
}
