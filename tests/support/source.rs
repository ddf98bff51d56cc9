//! The repository's sources, as tests that read them see them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A source file.
pub struct Source {
    /// From the repository's root.
    pub name: String,
    pub text: String,
    /// The text with comments, strings and character literals blanked out; lines stay where they are.
    pub code: String,
    /// It is compiled for tests alone.
    pub is_test: bool,
}

/// What tests at the end of a file begin with.
const TESTS: &str = "#[cfg(test)]\nmod tests {";

impl Source {
    /// The code before the file's tests; nothing of a file that is compiled for tests alone.
    pub fn product(&self) -> &str {
        if self.is_test {
            return "";
        }
        let tests = self.code.find(TESTS).unwrap_or(self.code.len());
        &self.code[..tests]
    }

    /// Where the modules are that this file declares for tests alone: their names without an ending.
    fn test_modules(&self) -> Vec<String> {
        let declared = self.code.split("#[cfg(test)]\n").skip(1).filter_map(|after| {
            let line = after.lines().next()?.strip_suffix(';')?;
            line.split_once("mod ").map(|(_, name)| name)
        });
        let stem = self.name.trim_end_matches(".rs");
        let folder = match stem.rsplit_once('/') {
            Some((folder, "mod" | "lib" | "main")) => folder,
            _ => stem,
        };
        declared.map(|name| format!("{folder}/{name}")).collect()
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below these folders (or this file) with this ending, target folders left out.
pub fn files(places: &[&str], endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> =
        places.iter().map(|place| root().join(place)).filter(|p| p.exists()).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let skipped = ["target", "corpus", "artifacts", ".git"];
            if skipped.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            let entries = fs::read_dir(&path).expect("the repository can be read");
            open.extend(entries.map(|entry| entry.expect("the repository can be read").path()));
        } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every source file below these folders.
pub fn sources(places: &[&str]) -> Vec<Source> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("sources are text");
        let name = path.strip_prefix(root()).expect("it is below").to_string_lossy().into_owned();
        Source { name, code: code_of(&text), text, is_test: false }
    };
    let mut sources: Vec<_> = files(places, &[".rs"]).into_iter().map(read).collect();
    let modules: BTreeSet<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let stem = source.name.trim_end_matches(".rs").trim_end_matches("/mod");
        // And what those declare themselves.
        let mut places = Path::new(stem).ancestors();
        source.is_test = places.any(|place| modules.contains(&*place.to_string_lossy()));
    }
    sources
}

/// Blanks out comments, strings and character literals.
pub fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest, code.chars().next_back()) {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len())
        } else if rest.starts_with('"') {
            quoted_end(rest, b'"')
        } else if is_character(rest) {
            quoted_end(rest, b'\'')
        } else {
            let char = rest.chars().next().expect("it is not empty");
            code.push(char);
            at += char.len_utf8();
            continue;
        };
        code.extend(rest[..end].chars().map(|char| if char == '\n' { '\n' } else { ' ' }));
        at += end;
    }
    code
}

/// How many `#` a raw string that begins here has.
fn raw_string(rest: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|char| char.is_alphanumeric() && char != 'b' || char == '_') {
        return None;
    }
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Where a literal that begins with `quote` ends.
fn quoted_end(rest: &str, quote: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Whether a character literal begins here, and not a lifetime.
fn is_character(rest: &str) -> bool {
    let Some(inner) = rest.strip_prefix('\'') else { return false };
    let mut chars = inner.chars();
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// The words of a piece of code, each with where it stands.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    code.split(move |char: char| !is_word(char))
        .filter(|word| !word.is_empty())
        .map(move |word| (word.as_ptr() as usize - code.as_ptr() as usize, word))
}

pub fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}
