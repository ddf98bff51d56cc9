//! The page of a folder inside a store path.

use maud::{Markup, html};

use super::{Frame, bytes, document, shown};
use crate::http::target::encode_segment;

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

/// The page of a folder of a store path. `place` is the store path's hash part and what is below it, decoded, such
/// as `<hash>/share/doc`, and `name` the store path's own name, if that is known. `cut` says that there are more entries than these.
///
/// Links are relative: the page must be asked for with a slash at the end of its address.
pub fn folder<'a>(
    place: &[u8],
    name: Option<&str>,
    entries: impl IntoIterator<Item = Entry<'a>>,
    cut: bool,
) -> String {
    let up = place.split(|byte| *byte == b'/').count();
    let root = "../".repeat(up + 1);
    let hash = place.split(|byte| *byte == b'/').next().unwrap_or_default();
    let shown_place = shown(place);
    // Among the tabs of a browser a hash says nothing.
    let below = shown(&place[hash.len()..]);
    let title = name.map_or_else(|| shown_place.to_string(), |name| format!("{name}{below}"));
    let body = html! {
        h1 { (shown_place) }
        p { a href={ (root) "path/" (encode_segment(hash)) } { "About this store path" } }
        table {
            caption.hidden { "What is in this folder" }
            thead { tr { th scope="col" { "Name" } th scope="col" { "Size" } } }
            tbody {
                @if up > 1 { tr { td { a href="../" { "../" } } td {} } }
                @for entry in entries { (row(entry)) }
            }
        }
        @if cut { p { "There are more; the list was cut." } }
    };
    // What is served from a store path gets no right to send forms.
    document(&Frame { title: &title, root: &root, form: false, listed: false }, &body)
}

fn row(entry: Entry<'_>) -> Markup {
    let slash = if entry.kind == EntryKind::Folder { "/" } else { "" };
    html! {
        tr {
            td { a href={ (encode_segment(entry.name)) (slash) } { (shown(entry.name)) (slash) } }
            td {
                @match entry.kind {
                    EntryKind::Folder => {},
                    EntryKind::File(size) => (bytes(size)),
                    EntryKind::Link => "link",
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names() {
        let entry = |name, kind| Entry { name, kind };
        let page = folder(
            b"00000000000000000000000000000000/<i>",
            Some("hello-2.12"),
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
            "<h1>00000000000000000000000000000000/&lt;i&gt;</h1>",
            "<title>hello-2.12/&lt;i&gt;</title>",
            "<a href=\"../\">../</a>",
            "<a class=\"brand\" href=\"../../../\">",
            "<a href=\"../../../path/00000000000000000000000000000000\">",
            "<a href=\"a%20b%26%22%3Cscript%3E\">a b&amp;&quot;&lt;script&gt;</a></td><td>1.21 KiB</td>",
            "<a href=\"caf%E9\">caf\u{fffd}</a></td><td>link</td>",
            "<a href=\"javascript%3Ax/\">javascript:x/</a></td><td></td>",
            "<a href=\"a%3Fb%23c%252f\">a?b#c%2f</a></td><td>0 B</td>",
            "<a href=\"gpj.%E2%80%AEexe\">gpj.\u{fffd}exe</a>",
            "the list was cut",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
        assert!(!folder(b"0", None, [], false).contains(">../<"), "nothing is above a store path");
    }
}
