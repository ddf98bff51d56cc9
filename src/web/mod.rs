//! The pages people look at: values in, HTML out. No script, nothing from elsewhere, one inline style that
//! [`CONTENT_SECURITY_POLICY`] names by its hash.
//!
//! Links are relative to the page, so that the site may lie below any path of a proxy's.

mod folder;
mod landing;
mod path;
mod search;

use std::borrow::Cow;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::formats::store_path::StorePath;

pub use folder::{Entry, EntryKind, folder};
pub use landing::{Activity, Landing, landing};
pub use path::{PathPage, absent_path, path};
pub use search::{SearchPage, search};

/// The media type of the pages.
pub const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// The value of Content-Security-Policy for the pages: the style, by the hash of its text, a form that asks this very
/// server, and nothing else. A test computes the hash again.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; \
    style-src 'sha256-YGdr3qLj3kvzmLIC+3BeyzyccZ10VC+zsez9PlZooYo='; base-uri 'none'; \
    form-action 'self'; frame-ancestors 'none'";

/// System fonts; light or dark as the reader's system is.
const STYLE: &str = include_str!("style.css");

/// A store path in a list.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// The path.
    pub path: &'a StorePath,
    /// The size of its NAR in bytes, if that is known.
    pub nar_size: Option<u64>,
}

/// What stands around every page.
struct Frame<'a> {
    title: &'a str,
    /// What leads from the page to the root of the site: `./`, `../` …
    root: &'a str,
    /// Whether the search form is in the header: a page that has its own needs no second one.
    form: bool,
    /// Whether search engines may list it: one page of this site is enough.
    listed: bool,
}

fn document(frame: &Frame<'_>, body: &Markup) -> String {
    let Frame { title, root, form, listed } = frame;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                @if !listed { meta name="robots" content="noindex, nofollow"; }
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a.brand href=(root) { "Harmonia" }
                    @if *form { (search_form(root, "", &html! {})) }
                }
                main #main { (body) }
                footer { "Harmonia " (env!("CARGO_PKG_VERSION")) ", a Nix binary cache" }
            }
        }
    }
    .into_string()
}

/// The form that asks for names. `more` stands behind its button.
fn search_form(root: &str, words: &str, more: &Markup) -> Markup {
    html! {
        form role="search" action={ (root) "search" } method="get" {
            label.hidden for="q" { "Name of a store path" }
            input #q type="search" name="q" value=(words) placeholder="Name of a store path" spellcheck="false"
                autocapitalize="none";
            button type="submit" { "Search" }
            (more)
        }
    }
}

/// Text to be copied: one click selects it all.
fn snippet(label: &str, text: &str) -> Markup {
    html! {
        figure {
            figcaption { (label) }
            pre { code { (text) } }
        }
    }
}

/// Store paths as links to their pages. `below` leads from this page to where those lie.
fn path_table<'a>(caption: &str, below: &str, items: impl IntoIterator<Item = Item<'a>>) -> Markup {
    html! {
        table {
            caption.hidden { (caption) }
            thead { tr { th scope="col" { "Name" } th scope="col" { "NAR size" } } }
            tbody {
                @for Item { path, nar_size } in items {
                    tr {
                        td {
                            a href={ (below) (path.hash()) } { (path.name()) }
                            span.soft { code { (path.hash()) } }
                        }
                        td { @if let Some(size) = nar_size { (bytes(size)) } }
                    }
                }
            }
        }
    }
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

/// A size with its unit and three digits, nearly: `512 B`, `1.25 KiB`, `31.4 GiB`.
fn bytes(size: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = size as f64;
    if size < 1024 {
        return format!("{size} B");
    }
    for unit in units {
        value /= 1024.0;
        // What would be written as 1024 of one unit is one of the next.
        if value < 1023.5 || unit == "EiB" {
            let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
            return format!("{value:.digits$} {unit}");
        }
    }
    unreachable!("the last unit takes everything")
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_policy_names_the_style() {
        let hash = format!("'sha256-{}'", BASE64.encode(&Sha256::digest(STYLE)));
        assert!(CONTENT_SECURITY_POLICY.contains(&hash), "the style's hash is {hash}");
        let frame = Frame { title: "a <title>", root: "./", form: true, listed: false };
        let page = document(&frame, &html! { h1 { "x" } });
        assert!(page.contains(&format!("<style>{STYLE}</style>")), "the browser hashes these very bytes");
        assert!(!page.contains("style=\"") && !page.contains("<script"));
        assert!(page.contains("<title>a &lt;title&gt;</title>"));
        assert!(page.contains("content=\"noindex, nofollow\""));
    }

    #[test]
    fn sizes_have_three_digits() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_235, "10.0 KiB"),
            (102_348, "99.9 KiB"),
            (102_399, "100 KiB"),
            (1_048_063, "1023 KiB"),
            (1_048_064, "1.00 MiB"),
            (33_715_493_273, "31.4 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(size), text, "{size}");
        }
    }

    /// How bright a colour looks, by WCAG 2.
    fn luminance(colour: &str) -> f64 {
        let digits = colour.trim_start_matches('#');
        let long: String = match digits.len() {
            3 => digits.chars().flat_map(|digit| [digit, digit]).collect(),
            _ => digits.to_owned(),
        };
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&long[at..at + 2], 16).expect("two digits")) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(0) + 0.7152 * channel(2) + 0.0722 * channel(4)
    }

    #[test]
    fn text_stands_out_from_what_is_behind_it() {
        let themes: Vec<&str> = STYLE.split(":root{").skip(1).collect();
        assert_eq!(themes.len(), 2, "light and dark");
        for theme in themes {
            let colour = |name: &str| {
                let (_, after) = theme.split_once(&format!("--{name}:")).expect("it is set");
                luminance(after.split([';', '}']).next().expect("a value"))
            };
            let contrast = |front: &str, back: &str| {
                let (front, back) = (colour(front), colour(back));
                (front.max(back) + 0.05) / (front.min(back) + 0.05)
            };
            for back in ["back", "card", "code"] {
                for front in ["text", "soft", "link"] {
                    let found = contrast(front, back);
                    assert!(found >= 4.5, "--{front} on --{back}: {found:.1}");
                }
            }
            assert!(contrast("card", "link") >= 4.5, "a button's text");
        }
    }
}
