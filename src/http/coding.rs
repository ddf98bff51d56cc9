//! Which content codings a client takes (RFC 9110, section 12.5.3).

/// Whether an Accept-Encoding field takes `coding` by its name. `*` does not count: it is sent by programs that hand on
/// whatever comes.
pub fn accepts(field: &[u8], coding: &str) -> bool {
    let mut members = field.split(|byte| *byte == b',');
    members.any(|member| {
        let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(coding.as_bytes()));
        is_named && !parts.any(is_zero_weight)
    })
}

/// `q=0`, with up to three zeros more: not acceptable.
fn is_zero_weight(parameter: &[u8]) -> bool {
    let weight = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
    weight.is_some_and(|weight| {
        weight.starts_with(b"0") && !weight.iter().any(|byte| (b'1'..=b'9').contains(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_named_and_not_refused() {
        for field in ["zstd", "br, ZSTD", "gzip;q=1, zstd;q=0.5", "zstd ; q=0.001", " zstd,"] {
            assert!(accepts(field.as_bytes(), "zstd"), "{field}");
        }
        for field in ["", "*", "identity", "zstd;q=0", "zstd; q=0.000", "xzstd", "zstd2", "gzip, br;q=1"] {
            assert!(!accepts(field.as_bytes(), "zstd"), "{field}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(field: Vec<u8>) {
            let _ = accepts(&field, "zstd");
        }
    }
}
