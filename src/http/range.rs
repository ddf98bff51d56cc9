//! Range, If-Range, If-Match and If-None-Match (RFC 9110 sections 13 and 14). Nothing here has a date of its last change:
//! so If-Modified-Since and If-Unmodified-Since say nothing (sections 13.1.3 and 13.1.4).
//!
//! One range is served. Several in one header get the whole with 200: a server may ignore Range
//! (section 14.2), nobody fetches NARs that way, and `multipart/byteranges` is a way to ask for much with
//! little. Overlong numbers are understood, never wrapped.

/// What to send for a request, in answer to its Range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeOutcome {
    /// The whole representation, with 200.
    Whole,
    /// `start..end` of it, never empty, with 206.
    Part {
        /// The first byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// 416, with `Content-Range: bytes */<length>`.
    Unsatisfiable,
}

/// Decides what to send of a representation of `len` bytes whose strong entity tag is `etag`, quotes
/// included (empty where it has none: then no If-Range matches). For GET: with another method Range means nothing.
///
/// A header that is not understood is ignored, as RFC 9110 section 14.2 allows: unknown units, several
/// ranges, bad syntax. On an empty representation `bytes=0-` and a suffix get the whole, which is what they
/// asked for: a 416 ends a Nix client's download.
pub fn resolve(range: Option<&[u8]>, if_range: Option<&[u8]>, etag: &str, len: u64) -> RangeOutcome {
    let Some(spec) = range.and_then(single_range) else { return RangeOutcome::Whole };
    // A date never matches: no Last-Modified is sent. Neither does a weak tag (section 13.1.5).
    if if_range.is_some_and(|tag| etag.is_empty() || tag != etag.as_bytes()) {
        return RangeOutcome::Whole;
    }
    spec.of(len)
}

/// Which bytes that will be, from and up to, as far as it is known without the length: those beyond the end do not count.
/// `None` where only the length tells.
pub fn foresee(range: Option<&[u8]>, if_range: Option<&[u8]>, etag: &str) -> Option<(u64, u64)> {
    // The longest there can be: what is cut off by its end is so whatever the length is.
    match resolve(range, if_range, etag, u64::MAX) {
        RangeOutcome::Whole => Some((0, u64::MAX)),
        RangeOutcome::Part { start, end } => {
            let is_suffix = matches!(range.and_then(single_range), Some(Spec::Suffix(_)));
            (!is_suffix).then_some((start, end))
        }
        RangeOutcome::Unsatisfiable => None,
    }
}

/// Whether If-None-Match matches a representation whose entity tag is `etag`, quotes included: then the
/// answer is 304, before Range is looked at. A list or `*`; tags compare weakly (section 13.1.2).
pub fn none_match(header: &[u8], etag: &str) -> bool {
    names(header, etag, true)
}

/// Whether If-Match holds for a representation whose entity tag is `etag`, quotes included: if not, the answer is 412.
/// A list or `*`; tags compare strongly (section 13.1.1).
pub fn if_match(header: &[u8], etag: &str) -> bool {
    names(header, etag, false)
}

/// Whether a list of entity tags has this one; as a weak one too, where that counts.
fn names(header: &[u8], etag: &str, weakly: bool) -> bool {
    if header == b"*" {
        return true;
    }
    let mut rest = header;
    loop {
        rest = trim_start(rest, b" \t,");
        let weak = rest.strip_prefix(b"W/");
        let tag = weak.unwrap_or(rest);
        let Some(opaque) = tag.strip_prefix(b"\"") else { return false };
        let Some(close) = memchr::memchr(b'"', opaque) else { return false };
        if &tag[..close + 2] == etag.as_bytes() && (weakly || weak.is_none()) {
            return true;
        }
        rest = &opaque[close + 1..];
    }
}

/// One byte range as it was asked for; numbers beyond 64 bits stand at the top, behind any representation.
#[derive(Clone, Copy)]
enum Spec {
    From { first: u64, last: u64 },
    Suffix(u64),
}

impl Spec {
    fn of(self, len: u64) -> RangeOutcome {
        match self {
            Self::Suffix(0) => RangeOutcome::Unsatisfiable,
            Self::Suffix(_) | Self::From { first: 0, .. } if len == 0 => RangeOutcome::Whole,
            Self::Suffix(count) => RangeOutcome::Part { start: len.saturating_sub(count), end: len },
            Self::From { first, .. } if first >= len => RangeOutcome::Unsatisfiable,
            Self::From { first, last } => {
                RangeOutcome::Part { start: first, end: last.saturating_add(1).min(len) }
            }
        }
    }
}

/// The one range of the header; `None` where it has another unit, several ranges, or no meaning.
fn single_range(header: &[u8]) -> Option<Spec> {
    let (unit, set) = header.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    // Empty list elements are skipped (section 5.6.1.2).
    let mut specs = set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|spec| !spec.is_empty());
    let only = specs.next()?;
    if specs.next().is_some() {
        return None;
    }
    let dash = memchr::memchr(b'-', only)?;
    match (&only[..dash], &only[dash + 1..]) {
        (b"", count) => Some(Spec::Suffix(number(count)?)),
        (first, b"") => Some(Spec::From { first: number(first)?, last: u64::MAX }),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::From { first, last })
        }
    }
}

/// A decimal number of digits alone; the largest value where it does not fit.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        digits
            .iter()
            .fold(0u64, |value, digit| value.saturating_mul(10).saturating_add(u64::from(digit - b'0'))),
    )
}

fn trim_start<'b>(bytes: &'b [u8], skip: &[u8]) -> &'b [u8] {
    let start = bytes.iter().position(|byte| !skip.contains(byte)).unwrap_or(bytes.len());
    &bytes[start..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use RangeOutcome::{Part, Unsatisfiable, Whole};
    use proptest::prelude::*;

    fn of(header: &str, len: u64) -> RangeOutcome {
        resolve(Some(header.as_bytes()), None, "\"tag\"", len)
    }

    #[test]
    fn single_suffix_and_open() {
        assert_eq!(of("bytes=0-0", 10), Part { start: 0, end: 1 });
        assert_eq!(of("bytes=3-5", 10), Part { start: 3, end: 6 });
        assert_eq!(of("BYTES=3-", 10), Part { start: 3, end: 10 });
        assert_eq!(of("bytes=0-", 10), Part { start: 0, end: 10 });
        assert_eq!(of("bytes=9-200", 10), Part { start: 9, end: 10 });
        assert_eq!(of("bytes=-4", 10), Part { start: 6, end: 10 });
        assert_eq!(of("bytes=-40", 10), Part { start: 0, end: 10 });
        assert_eq!(of("bytes= 1-2 ,", 10), Part { start: 1, end: 3 });
        assert_eq!(of("bytes=10-", 10), Unsatisfiable);
        assert_eq!(of("bytes=-0", 10), Unsatisfiable);
    }

    #[test]
    fn numbers_beyond_64_bits() {
        let huge = "99999999999999999999999999";
        assert_eq!(of(&format!("bytes={huge}-"), 10), Unsatisfiable);
        assert_eq!(of(&format!("bytes=4-{huge}"), 10), Part { start: 4, end: 10 });
        assert_eq!(of(&format!("bytes=-{huge}"), 10), Part { start: 0, end: 10 });
        assert_eq!(of("bytes=0-18446744073709551615", u64::MAX), Part { start: 0, end: u64::MAX });
        assert_eq!(of("bytes=18446744073709551614-", u64::MAX), Part { start: u64::MAX - 1, end: u64::MAX });
    }

    #[test]
    fn what_is_not_understood_gets_the_whole() {
        for header in [
            "bytes=0-1,3-4",
            "bytes=5-2",
            "bytes=",
            "bytes=-",
            "bytes=a-",
            "bytes=+1-2",
            "bytes=1",
            "bytes=1--2",
            "bytes=0x1-2",
            "bytes=1 - 2",
            "items=0-1",
            "bytes 0-1",
            "bytes",
            "",
            "bytes=,",
        ] {
            assert_eq!(of(header, 10), Whole, "{header}");
        }
        assert_eq!(resolve(None, None, "\"tag\"", 10), Whole);
    }

    #[test]
    fn an_empty_representation() {
        assert_eq!(of("bytes=0-", 0), Whole);
        assert_eq!(of("bytes=0-5", 0), Whole);
        assert_eq!(of("bytes=-5", 0), Whole);
        assert_eq!(of("bytes=1-", 0), Unsatisfiable);
        assert_eq!(of("bytes=-0", 0), Unsatisfiable);
    }

    #[test]
    fn if_range_wants_the_very_tag() {
        let with = |if_range: &str| resolve(Some(b"bytes=5-"), Some(if_range.as_bytes()), "\"tag\"", 10);
        assert_eq!(with("\"tag\""), Part { start: 5, end: 10 });
        for other in ["W/\"tag\"", "\"other\"", "tag", "", "Sun, 06 Nov 1994 08:49:37 GMT"] {
            assert_eq!(with(other), Whole, "{other}");
        }
        assert_eq!(resolve(Some(b"bytes=5-"), Some(b""), "", 10), Whole);
        // Without If-Range matching, even what cannot be satisfied gets the whole.
        assert_eq!(resolve(Some(b"bytes=50-"), Some(b"\"old\""), "\"tag\"", 10), Whole);
    }

    #[test]
    fn if_none_match_lists() {
        for matching in ["\"tag\"", "W/\"tag\"", "*", "\"a\", \"tag\"", "\"a,b\",W/\"tag\"", ",, \"tag\" ,"] {
            assert!(none_match(matching.as_bytes(), "\"tag\""), "{matching}");
        }
        for other in ["", "\"other\"", "tag", "\"tag", "W/tag", "\"a\" tag", "\"x\"tag\"", "**"] {
            assert!(!none_match(other.as_bytes(), "\"tag\""), "{other}");
        }
    }

    #[test]
    fn if_match_compares_strongly() {
        for (header, holds) in [
            ("\"tag\"", true),
            ("*", true),
            ("\"a\", \"tag\"", true),
            ("W/\"tag\", \"tag\"", true),
            ("W/\"tag\"", false),
            ("\"other\"", false),
            ("", false),
            ("tag", false),
        ] {
            assert_eq!(if_match(header.as_bytes(), "\"tag\""), holds, "{header}");
        }
    }

    /// Says it as RFC 9110 does, byte position by byte position.
    fn naive(first: Option<u64>, last: Option<u64>, len: u64) -> RangeOutcome {
        let wanted: Vec<u64> = match (first, last) {
            (Some(first), last) => {
                (0..len).filter(|at| *at >= first && last.is_none_or(|l| *at <= l)).collect()
            }
            (None, Some(count)) => (0..len).rev().take(usize::try_from(count).expect("small")).collect(),
            (None, None) => return Whole,
        };
        match (wanted.iter().min(), wanted.iter().max()) {
            (Some(start), Some(last)) => Part { start: *start, end: last + 1 },
            _ => Unsatisfiable,
        }
    }

    #[test]
    fn what_can_be_foreseen_is_what_is_sent() {
        let foresee =
            |header: &str, if_range: Option<&[u8]>| foresee(Some(header.as_bytes()), if_range, "\"tag\"");
        assert_eq!(super::foresee(None, None, ""), Some((0, u64::MAX)));
        assert_eq!(foresee("bytes=5-", None), Some((5, u64::MAX)));
        assert_eq!(foresee("bytes=5-9", Some(b"\"tag\"")), Some((5, 10)));
        assert_eq!(foresee("bytes=5-9", Some(b"\"other\"")), Some((0, u64::MAX)));
        assert_eq!(foresee("bytes=5-9, 20-", None), Some((0, u64::MAX)));
        assert_eq!(foresee("bytes=-9", None), None);
        assert_eq!(foresee("bytes=99999999999999999999-", None), None);
    }

    proptest! {
        #[test]
        fn nothing_is_foreseen_that_is_not_sent(first: u8, last in proptest::option::of(any::<u8>()), len in 1u64..300) {
            let header = format!("bytes={first}-{}", last.map_or(String::new(), |last| last.to_string()));
            let foreseen = foresee(Some(header.as_bytes()), None, "\"tag\"");
            if let Part { start, end } = of(&header, len) {
                prop_assert_eq!(foreseen.map(|(first, last)| (first, last.min(len))), Some((start, end)));
            }
        }

        #[test]
        fn as_the_naive_model(first in proptest::option::of(0u64..40), last in proptest::option::of(0u64..40), len in 1u64..30) {
            // The other way round has no meaning, and is tested above.
            let (first, last) = match (first, last) {
                (Some(first), Some(last)) => (Some(first.min(last)), Some(first.max(last))),
                other => other,
            };
            let text = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
            let header = format!("bytes={}-{}", text(first), text(last));
            prop_assert_eq!(of(&header, len), naive(first, last, len));
        }

        #[test]
        fn a_part_lies_inside(header in "bytes=[0-9,\\- ]{0,50}", len in any::<u64>()) {
            if let Part { start, end } = of(&header, len) {
                prop_assert!(start < end && end <= len);
            }
        }

        #[test]
        fn never_panics(header in proptest::collection::vec(any::<u8>(), 0..60), len in any::<u64>()) {
            let _ = resolve(Some(&header), Some(&header), "\"tag\"", len);
            let _ = none_match(&header, "\"tag\"");
        }
    }
}
