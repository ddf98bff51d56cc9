//! The page of a store path.

use maud::{Markup, html};

use super::{Frame, Item, bytes, document, grouped, path_table, snippet};
use crate::formats::store_path::StorePath;
use crate::http::target::encode_segment;

/// What the page of a store path says.
#[derive(Clone, Debug)]
pub struct PathPage<'a> {
    /// Where clients reach this server, if that is known.
    pub url: Option<&'a str>,
    /// The store directory.
    pub store_dir: &'a str,
    /// The public keys of those that sign, as clients list them.
    pub public_keys: &'a [String],
    /// The path.
    pub path: &'a StorePath,
    /// Its NAR's size in bytes.
    pub nar_size: u64,
    /// Its NAR's hash, as text.
    pub nar_hash: &'a str,
    /// How many paths its closure has, and the size of their NARs in bytes.
    pub closure: (usize, u64),
    /// Whether the closure has more paths than were counted.
    pub closure_cut: bool,
    /// When it was registered, as text.
    pub registered: &'a str,
    /// What it was built by, and whether that is valid here.
    pub deriver: Option<(&'a StorePath, bool)>,
    /// Its content address.
    pub ca: Option<&'a str>,
    /// The derivation whose build log is there.
    pub log: Option<&'a StorePath>,
    /// What it refers to, itself left out.
    pub references: Vec<Item<'a>>,
    /// What refers to it, itself left out; not all of them, where they are many.
    pub referrers: Vec<Item<'a>>,
    /// How many refer to it.
    pub referrer_count: usize,
    /// Its signatures, `name:base64`.
    pub signatures: &'a [String],
}

/// The page at `/path/<hash>`.
pub fn path(page: &PathPage<'_>) -> String {
    let full = format!("{}/{}", page.store_dir, page.path);
    let hidden = page.referrer_count.saturating_sub(page.referrers.len());
    let body = html! {
        h1 { (page.path.name()) }
        (snippet("Store path", &full))
        (facts(page))
        (links(page))
        h2 { "Fetch it" }
        (commands(page, &full))
        h2 { "Refers to" }
        @if page.references.is_empty() { p.soft { "Nothing but itself, if that." } } @else {
            (path_table("What it refers to", "", page.references.iter().copied()))
        }
        h2 { "Is referred to by" }
        @if page.referrers.is_empty() { p.soft { "Nothing in this store." } } @else {
            (path_table("What refers to it", "", page.referrers.iter().copied()))
        }
        @if hidden > 0 { p.soft { "And " (grouped(hidden)) " more." } }
        h2 { "Signatures" }
        @if page.signatures.is_empty() {
            p.soft { "None. Clients take it only if it is content-addressed." }
        } @else {
            ul { @for signature in page.signatures { li { code { (signature) } } } }
        }
    };
    document(&Frame { title: page.path.name(), root: "../", form: true, listed: false }, &body)
}

/// The page in place of one about a path that is not there.
pub fn absent_path() -> String {
    let body = html! {
        h1 { "Not here" }
        p {
            "This store has no valid path of that name: it was never here, or the garbage collector has taken it. The "
            "search finds what is here by a part of its name."
        }
    };
    document(&Frame { title: "Not here", root: "../", form: true, listed: false }, &body)
}

fn facts(page: &PathPage<'_>) -> Markup {
    let (count, size) = page.closure;
    html! {
        dl.facts {
            div { dt { "NAR size" } dd { (bytes(page.nar_size)) } }
            div {
                dt { "With all it needs" }
                dd {
                    @if page.closure_cut { "over " }
                    (bytes(size)) " " small { (grouped(count)) @if count == 1 { " path" } @else { " paths" } }
                }
            }
        }
        dl.list {
            dt { "NAR hash" } dd { code { (page.nar_hash) } }
            dt { "Registered" } dd { (page.registered) }
            @if let Some((drv, is_here)) = page.deriver {
                dt { "Built by" }
                dd { @if is_here { a href=(drv.hash()) { code { (drv) } } } @else { code { (drv) } } }
            }
            @if let Some(ca) = page.ca { dt { "Content address" } dd { code { (ca) } } }
        }
    }
}

fn links(page: &PathPage<'_>) -> Markup {
    let hash = page.path.hash();
    html! {
        ul.links {
            li { a href={ "../serve/" (hash) "/" } { "Browse its files" } }
            @if let Some(drv) = page.log {
                li { a href={ "../log/" (encode_segment(drv.as_str().as_bytes())) } { "Build log" } }
            }
            li { a href={ "../" (hash) ".narinfo" } { "narinfo" } }
            li { a href={ "../" (hash) ".ls" } { "Listing" } }
        }
    }
}

fn commands(page: &PathPage<'_>, full: &str) -> Markup {
    let url = page.url.unwrap_or("http://this-server:5000");
    let key = match page.public_keys {
        [] => String::new(),
        keys => format!(" \\\n  --option extra-trusted-public-keys '{}'", keys.join(" ")),
    };
    html! {
        (snippet("With what it needs, where the cache's key is in nix.conf", &format!("nix --extra-experimental-features nix-command copy --from {url} {full}\n")))
        (snippet(
            "The same for a trusted user, with nothing in nix.conf",
            &format!("nix-store --realise {full} \\\n  --option extra-substituters {url}{key}\n"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_there_and_links_lead_there() {
        let parse = |text| StorePath::from_basename(text).expect("a path");
        let hello = parse("00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12");
        let glibc = parse("0c0gjb1jrqqpc3xkm3wbqd3cjgi5pcsy-glibc-2.35");
        let drv = parse("7rjj86a15146cq1d3qy068lml7n8ykzm-hello?2.12.drv");
        let signatures = ["cache-1:<sig>".to_owned()];
        let page = PathPage {
            url: Some("http://cache:5000"),
            store_dir: "/nix/store",
            public_keys: &["cache-1:AAAA=".to_owned()],
            path: &hello,
            nar_size: 1024,
            nar_hash: "sha256:0abc",
            closure: (3, 4096),
            closure_cut: false,
            registered: "Wed, 25 Nov 2026 21:44:34 GMT",
            deriver: Some((&drv, true)),
            ca: None,
            log: Some(&drv),
            references: vec![Item { path: &glibc, nar_size: Some(3072) }],
            referrers: vec![Item { path: &drv, nar_size: None }],
            referrer_count: 1001,
            signatures: &signatures,
        };
        let text = path(&page);
        for part in [
            "<h1>hello-2.12</h1>",
            "<code>/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12</code>",
            "<dd>1.00 KiB</dd>",
            "4.00 KiB <small>3 paths</small>",
            "<a href=\"0c0gjb1jrqqpc3xkm3wbqd3cjgi5pcsy\">glibc-2.35</a>",
            "<td>3.00 KiB</td>",
            "And 1\u{2009}000 more.",
            "<a href=\"7rjj86a15146cq1d3qy068lml7n8ykzm\"><code>7rjj86a15146cq1d3qy068lml7n8ykzm-hello?2.12.drv</code>",
            "<a href=\"../log/7rjj86a15146cq1d3qy068lml7n8ykzm-hello%3F2.12.drv\">",
            "<a href=\"../serve/00bgd045z0d4icpbc2yyz4gx48ak44la/\">",
            "<a href=\"../00bgd045z0d4icpbc2yyz4gx48ak44la.narinfo\">",
            "nix --extra-experimental-features nix-command copy --from http://cache:5000 /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12\n",
            "-hello-2.12 \\\n  --option extra-substituters http://cache:5000 \\\n  --option extra-trusted-public-keys \
             'cache-1:AAAA='\n",
            "<li><code>cache-1:&lt;sig&gt;</code></li>",
            "action=\"../search\"",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let cut =
            path(&PathPage { closure_cut: true, deriver: Some((&drv, false)), signatures: &[], ..page });
        assert!(
            cut.contains("over 4.00 KiB")
                && !cut.contains("<a href=\"7rjj86a15146cq1d3qy068lml7n8ykzm\"><code>")
        );
    }
}
