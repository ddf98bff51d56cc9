//! Which known word somebody meant.

/// The known word most like `word`, if any is like it at all.
pub(super) fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let distances = known.iter().map(|candidate| (distance(word, candidate), *candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    // More than two letters wrong in five make another word.
    (distance * 5 <= 2 * word.chars().count().max(candidate.len())).then_some(candidate)
}

/// How many letters must be put in, taken out, changed or exchanged with their neighbour to make one of the other
/// (optimal string alignment), hyphens read as underscores and case ignored.
fn distance(from: &str, to: &str) -> usize {
    let normal = |text: &str| -> Vec<char> { text.to_lowercase().replace('-', "_").chars().collect() };
    let (from, to) = (normal(from), normal(to));
    // The two lines before this one; the first has none, and nothing is exchanged there.
    let (mut before, mut last): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..=to.len()).collect());
    for (line, letter) in from.iter().enumerate() {
        let mut row = vec![line + 1];
        for (column, other) in to.iter().enumerate() {
            let changed = last[column] + usize::from(letter != other);
            let mut least = changed.min(row[column] + 1).min(last[column + 1] + 1);
            if line > 0 && column > 0 && *letter == to[column - 1] && from[line - 1] == *other {
                least = least.min(before[column - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (from, to, expected) in
            [("", "", 0), ("a", "", 1), ("bind", "bind", 0), ("bnid", "bind", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
            assert_eq!(distance(to, from), expected, "{to} {from}");
        }
        assert_eq!(distance("Sign-Key-Paths", "sign_key_paths"), 0);
    }

    #[test]
    fn only_what_is_like_it() {
        let known = ["bind", "workers", "priority", "sign_key_path", "sign_key_paths"];
        assert_eq!(nearest("worker", &known), Some("workers"));
        assert_eq!(nearest("signkeypath", &known), Some("sign_key_path"));
        assert_eq!(nearest("binds", &known), Some("bind"));
        assert_eq!(nearest("bnid", &known), Some("bind"));
        assert_eq!(nearest("database", &known), None);
        assert_eq!(nearest("\u{1f980}", &known), None);
    }
}
