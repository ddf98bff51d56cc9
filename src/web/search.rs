//! The page of a search over names.

use maud::{Markup, html};

use super::{Frame, Item, document, grouped, path_table, search_form};
use crate::formats::store_path::StorePath;
use crate::http::target::encode_segment;

/// What the page of a search says.
#[derive(Clone, Debug)]
pub struct SearchPage<'a> {
    /// What was looked for.
    pub words: &'a str,
    /// Whether derivations were wanted too.
    pub derivations: bool,
    /// Whether the list begins after another page.
    pub continued: bool,
    /// What was found on this page; `None` where nothing was looked for yet.
    pub found: Option<Vec<Item<'a>>>,
    /// How many there are in all.
    pub count: usize,
    /// Whether more follow.
    pub more: bool,
}

/// The page at `/search`.
pub fn search(page: &SearchPage<'_>) -> String {
    let body = html! {
        h1 { "Search" }
        (form(page))
        @if let Some(found) = &page.found { (results(page, found)) }
    };
    let title = if page.words.is_empty() { "Search".to_owned() } else { format!("{} - search", page.words) };
    document(&Frame { title: &title, root: "./", form: false, listed: false }, &body)
}

fn form(page: &SearchPage<'_>) -> Markup {
    let derivations = html! {
        label { input type="checkbox" name="drv" value="1" checked[page.derivations]; " with derivations" }
    };
    search_form("./", page.words, &derivations)
}

fn results(page: &SearchPage<'_>, found: &[Item<'_>]) -> Markup {
    html! {
        p role="status" {
            @match page.count {
                0 => "Nothing here is called so. All the words must be in the name; a store path or its hash works too.",
                1 => "One store path",
                count => { (grouped(count)) " store paths" },
            }
        }
        @if !found.is_empty() { (path_table("Store paths that were found", "path/", found.iter().copied())) }
        @if page.continued || page.more {
            nav aria-label="Pages" {
                ul.links {
                    @if page.continued { li { a href=(address(page, None)) { "First page" } } }
                    @if let (true, Some(last)) = (page.more, found.last()) {
                        li { a href=(address(page, Some(last.path))) rel="next" { "Next page" } }
                    }
                }
            }
        }
    }
}

/// The address of the part of the list after a path.
fn address(page: &SearchPage<'_>, after: Option<&StorePath>) -> String {
    let words = encode_segment(page.words.as_bytes());
    let derivations = if page.derivations { "&drv=1" } else { "" };
    let after =
        after.map_or(String::new(), |path| format!("&after={}", encode_segment(path.as_str().as_bytes())));
    format!("search?q={words}{derivations}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_lead_to_each_other() {
        let path = StorePath::from_basename("00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12").expect("a path");
        let found = Some(vec![Item { path: &path, nar_size: Some(2048) }]);
        let page = SearchPage {
            words: "he <llo>&",
            derivations: true,
            continued: true,
            found,
            count: 1234,
            more: true,
        };
        let text = search(&page);
        for part in [
            "value=\"he &lt;llo&gt;&amp;\"",
            "value=\"1\" checked",
            "1\u{2009}234 store paths",
            "<a href=\"path/00bgd045z0d4icpbc2yyz4gx48ak44la\">hello-2.12</a>",
            "<td>2.00 KiB</td>",
            "<a href=\"search?q=he%20%3Cllo%3E%26&amp;drv=1\">First page</a>",
            "<a href=\"search?q=he%20%3Cllo%3E%26&amp;drv=1&amp;after=00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12\" \
             rel=\"next\">Next page</a>",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let none = search(&SearchPage {
            words: "",
            derivations: false,
            continued: false,
            found: None,
            count: 0,
            more: false,
        });
        assert!(!none.contains("Nothing here") && !none.contains("checked") && !none.contains("<nav"));
    }
}
