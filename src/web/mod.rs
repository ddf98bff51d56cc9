//! The pages people look at: values in, HTML out. No script, nothing from elsewhere, one inline style that
//! [`CONTENT_SECURITY_POLICY`] names by its hash.

use std::borrow::Cow;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::http::target::encode_segment;

/// The media type of the pages.
pub const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// The value of Content-Security-Policy for the pages: the style, by the hash of its text, and nothing else. A
/// test computes the hash again.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; \
    style-src 'sha256-otIReqyihhZjNSs8L+mOUfQq/qK86NTIjxkQUvXgZzc='; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// System fonts and colours; light or dark as the reader's system is.
const STYLE: &str = "\
:root{color-scheme:light dark}\
body{max-width:48rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}\
pre{padding:.75rem;overflow-x:auto;border:1px solid GrayText;border-radius:.25rem;user-select:all}\
dt{font-weight:bold}dd{margin:0 0 .5rem}\
table{border-collapse:collapse;width:100%}td,th{padding:.1rem .75rem .1rem 0;text-align:left}\
td:last-child,th:last-child{text-align:right;font-variant-numeric:tabular-nums}";

/// What the landing page says.
#[derive(Clone, Debug)]
pub struct Landing<'a> {
    /// Where clients reach this server, such as `http://cache.example:5000`, if that is known.
    pub url: Option<&'a str>,
    /// The store directory.
    pub store_dir: &'a str,
    /// How many store paths are valid, if that is known.
    pub paths: Option<usize>,
    /// Nix-cache-info's priority.
    pub priority: i32,
    /// The public keys of those that sign, as clients list them.
    pub public_keys: &'a [String],
}

/// The page at `/`.
pub fn landing(page: &Landing<'_>) -> String {
    let url = page.url.unwrap_or("http://this-server:5000");
    let body = html! {
        h1 { "Harmonia" }
        p { "A Nix binary cache. It serves this machine's store to Nix clients." }
        dl {
            dt { "Version" } dd { (env!("CARGO_PKG_VERSION")) }
            dt { "Store directory" } dd { code { (page.store_dir) } }
            @if let Some(paths) = page.paths { dt { "Store paths" } dd { (grouped(paths)) } }
            dt { "Priority" } dd { (page.priority) }
        }
        h2 { "Use it" }
        @if page.public_keys.is_empty() {
            p { "In " code { "nix.conf" } ":" }
            pre { code { "extra-substituters = " (url) } }
            p {
                "This cache does not sign. Clients take only paths that are signed already, by a key they trust, and "
                "content-addressed ones."
            }
        } @else {
            p { "In " code { "nix.conf" } ":" }
            pre { code {
                "extra-substituters = " (url) "\n"
                "extra-trusted-public-keys = " (page.public_keys.join(" "))
            } }
            h2 { @if page.public_keys.len() == 1 { "Public key" } @else { "Public keys" } }
            @for key in page.public_keys { pre { code { (key) } } }
        }
        h2 { "More" }
        ul {
            li { a href="nix-cache-info" { "nix-cache-info" } }
            li { a href="metrics" { "Metrics" } ", for Prometheus" }
        }
    };
    document("Harmonia", &body)
}

/// One name in a folder.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The name; any bytes but a slash and NUL.
    pub name: &'a [u8],
    /// What it is.
    pub kind: EntryKind,
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder.
    Folder,
    /// A file of so many bytes.
    File(u64),
    /// A symbolic link.
    Link,
}

/// The page of a folder of a store path. `place` is the store path's name and what is below it, decoded, such
/// as `<hash>-hello/share/doc`. `cut` says that there are more entries than these.
///
/// Links are relative: the page must be asked for with a slash at the end of its address.
pub fn folder<'a>(place: &[u8], entries: impl IntoIterator<Item = Entry<'a>>, cut: bool) -> String {
    let place = shown(place);
    let body = html! {
        h1 { (place) }
        table {
            thead { tr { th { "Name" } th { "Size" } } }
            tbody {
                @if place.contains('/') { tr { td { a href="../" { "../" } } td {} } }
                @for entry in entries { (row(entry)) }
            }
        }
        @if cut { p { "There are more; the list was cut." } }
    };
    document(&place, &body)
}

fn row(entry: Entry<'_>) -> Markup {
    let slash = if entry.kind == EntryKind::Folder { "/" } else { "" };
    html! {
        tr {
            td { a href={ (encode_segment(entry.name)) (slash) } { (shown(entry.name)) (slash) } }
            td {
                @match entry.kind {
                    EntryKind::Folder => {},
                    EntryKind::File(size) => (grouped(size)),
                    EntryKind::Link => "link",
                }
            }
        }
    }
}

fn document(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main { (body) } }
        }
    }
    .into_string()
}

/// A name for people: bytes that are not UTF-8 become U+FFFD, and so do control characters, among them those
/// that turn the direction of text and could make one name look like another.
fn shown(name: &[u8]) -> Cow<'_, str> {
    let disguises = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let text = String::from_utf8_lossy(name);
    if text.contains(disguises) { Cow::Owned(text.replace(disguises, "\u{fffd}")) } else { text }
}

/// A number with a thin space after each three digits.
fn grouped(number: impl ToString) -> String {
    let digits = number.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    let groups: Vec<Cow<'_, str>> = groups.into_iter().map(String::from_utf8_lossy).collect();
    groups.join("\u{2009}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;
    use sha2::{Digest, Sha256};

    const LANDING: Landing<'_> =
        Landing { url: None, store_dir: "/nix/store", paths: Some(1234567), priority: 30, public_keys: &[] };

    #[test]
    fn the_policy_names_the_style() {
        let hash = format!("'sha256-{}'", BASE64.encode(&Sha256::digest(STYLE)));
        assert!(CONTENT_SECURITY_POLICY.contains(&hash), "the style's hash is {hash}");
        let page = landing(&LANDING);
        assert!(page.contains(&format!("<style>{STYLE}</style>")), "the browser hashes these very bytes");
        assert!(!page.contains("style=\"") && !page.contains("<script"));
    }

    #[test]
    fn landing_with_keys_and_without() {
        let unsigned = landing(&LANDING);
        assert!(unsigned.contains("does not sign") && !unsigned.contains("trusted-public-keys"));
        assert!(unsigned.contains("1\u{2009}234\u{2009}567"));
        let keys = ["a-1:AAAA=".to_owned(), "b-1:<B>=".to_owned()];
        let signed =
            landing(&Landing { url: Some("http://cache.example:5000"), public_keys: &keys, ..LANDING });
        assert!(signed.contains(
            "extra-substituters = http://cache.example:5000\nextra-trusted-public-keys = a-1:AAAA= b-1:&lt;B&gt;="
        ));
        assert!(signed.contains("<pre><code>a-1:AAAA=</code></pre>"));
    }

    #[test]
    fn odd_names() {
        let entry = |name, kind| Entry { name, kind };
        let page = folder(
            b"00000000000000000000000000000000-x/<i>",
            [
                entry(&b"a b&\"<script>"[..], EntryKind::File(1234)),
                entry(b"caf\xe9", EntryKind::Link),
                entry(b"javascript:x", EntryKind::Folder),
                entry(b"a?b#c%2f", EntryKind::File(0)),
                entry(b"gpj.\xe2\x80\xaeexe", EntryKind::File(1)),
            ],
            true,
        );
        for expected in [
            "<h1>00000000000000000000000000000000-x/&lt;i&gt;</h1>",
            "<a href=\"../\">../</a>",
            "<a href=\"a%20b%26%22%3Cscript%3E\">a b&amp;&quot;&lt;script&gt;</a></td><td>1\u{2009}234</td>",
            "<a href=\"caf%E9\">caf\u{fffd}</a></td><td>link</td>",
            "<a href=\"javascript%3Ax/\">javascript:x/</a></td><td></td>",
            "<a href=\"a%3Fb%23c%252f\">a?b#c%2f</a></td><td>0</td>",
            "<a href=\"gpj.%E2%80%AEexe\">gpj.\u{fffd}exe</a>",
            "the list was cut",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
        assert!(!folder(b"0-x", [], false).contains("../"), "nothing is above a store path");
    }
}
