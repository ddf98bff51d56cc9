//! The page at `/`.

use maud::{Markup, html};

use super::{Frame, bytes, document, grouped, search_form, snippet};

/// What the landing page says.
#[derive(Clone, Debug)]
pub struct Landing<'a> {
    /// Where clients reach this server, such as `http://cache.example:5000`, if that is known.
    pub url: Option<&'a str>,
    /// The store directory.
    pub store_dir: &'a str,
    /// How many store paths are valid, if that is known.
    pub paths: Option<usize>,
    /// The NARs of all of them, in bytes, if that is known.
    pub nar_bytes: Option<u64>,
    /// Nix-cache-info's priority.
    pub priority: i32,
    /// The public keys of those that sign, as clients list them.
    pub public_keys: &'a [String],
    /// What the server does, if that is known.
    pub activity: Option<Activity>,
}

/// What the server does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activity {
    /// Answers a second, lately.
    pub requests_a_second: f64,
    /// Answers since the start.
    pub requests: u64,
    /// Bytes a second, lately.
    pub bytes_a_second: f64,
    /// Bytes since the start.
    pub bytes: u64,
    /// Connections that are open.
    pub connections: u64,
}

/// The page at `/`.
pub fn landing(page: &Landing<'_>) -> String {
    let body = html! {
        h1 { "Nix binary cache" }
        p {
            "It serves this machine's store, " code { (page.store_dir) } ", to Nix clients, with priority "
            (page.priority) "."
        }
        (search_form("./", "", &html! {}))
        (facts(page))
        @if page.activity.is_some() { p.soft { "Requests and bytes a second are those of the last minute." } }
        h2 { "Use it" }
        (instructions(page))
        h2 { "More" }
        ul {
            li { a href="nix-cache-info" { "nix-cache-info" } ", what a client reads first" }
            li { a href="metrics" { "Metrics" } ", for Prometheus" }
        }
    };
    document(&Frame { title: "Harmonia: a Nix binary cache", root: "./", form: false, listed: true }, &body)
}

fn facts(page: &Landing<'_>) -> Markup {
    html! {
        dl.facts {
            @if let Some(paths) = page.paths { div { dt { "Store paths" } dd { (grouped(paths)) } } }
            @if let Some(size) = page.nar_bytes { div { dt { "Size as NARs" } dd { (bytes(size)) } } }
            @if let Some(activity) = &page.activity {
                div {
                    dt { "Requests" }
                    dd { (rate(activity.requests_a_second)) "/s " small { (grouped(activity.requests)) " since the start" } }
                }
                div {
                    dt { "Sent" }
                    dd { (bytes(activity.bytes_a_second as u64)) "/s " small { (bytes(activity.bytes)) " since the start" } }
                }
                div { dt { "Connections" } dd { (grouped(activity.connections)) } }
            }
        }
    }
}

fn instructions(page: &Landing<'_>) -> Markup {
    let url = page.url.unwrap_or("http://this-server:5000");
    let keys = page.public_keys;
    if keys.is_empty() {
        return html! {
            p {
                "This cache does not sign. Clients take only paths that are signed already, by a key they trust, and "
                "content-addressed ones."
            }
            (snippet("nix.conf", &format!("extra-substituters = {url}\n")))
        };
    }
    let joined = keys.join(" ");
    let listed: String = keys.iter().map(|key| format!("    \"{key}\"\n")).collect();
    html! {
        (snippet(if keys.len() == 1 { "Public key" } else { "Public keys" }, &keys.join("\n")))
        (snippet("nix.conf", &format!("extra-substituters = {url}\nextra-trusted-public-keys = {joined}\n")))
        (snippet(
            "NixOS and nix-darwin",
            &format!(
                "nix.settings = {{\n  substituters = [ \"{url}\" ];\n  trusted-public-keys = [\n{listed}  ];\n}};\n"
            ),
        ))
        (snippet(
            "nix-darwin with Determinate's Nix, where nix.settings has no effect",
            &format!(
                "determinate-nix.customSettings = {{\n  extra-substituters = \"{url}\";\n  \
                 extra-trusted-public-keys = \"{joined}\";\n}};\n"
            ),
        ))
    }
}

/// A number of things a second.
fn rate(number: f64) -> String {
    if number < 10.0 { format!("{number:.1}") } else { grouped(number.round() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANDING: Landing<'_> = Landing {
        url: None,
        store_dir: "/nix/store",
        paths: Some(1_234_567),
        nar_bytes: Some(3 << 40),
        priority: 30,
        public_keys: &[],
        activity: None,
    };

    #[test]
    fn with_keys_and_without() {
        let unsigned = landing(&LANDING);
        assert!(unsigned.contains("does not sign") && !unsigned.contains("trusted-public-keys"));
        assert!(
            unsigned.contains("<dd>1\u{2009}234\u{2009}567</dd>") && unsigned.contains("<dd>3.00 TiB</dd>")
        );
        assert!(!unsigned.contains("last minute"), "what is not known is left out");
        let keys = ["a-1:AAAA=".to_owned(), "b-1:<B>=".to_owned()];
        let signed =
            landing(&Landing { url: Some("http://cache.example:5000"), public_keys: &keys, ..LANDING });
        for text in [
            "<code>a-1:AAAA=\nb-1:&lt;B&gt;=</code>",
            "extra-substituters = http://cache.example:5000\nextra-trusted-public-keys = a-1:AAAA= b-1:&lt;B&gt;=\n",
            "nix.settings = {\n  substituters = [ &quot;http://cache.example:5000&quot; ];\n  trusted-public-keys = [\n    \
             &quot;a-1:AAAA=&quot;\n    &quot;b-1:&lt;B&gt;=&quot;\n  ];\n};\n",
            "determinate-nix.customSettings = {\n  extra-substituters = &quot;http://cache.example:5000&quot;;\n  \
             extra-trusted-public-keys = &quot;a-1:AAAA= b-1:&lt;B&gt;=&quot;;\n};\n",
        ] {
            assert!(signed.contains(text), "{text} is not in\n{signed}");
        }
    }

    #[test]
    fn rates_and_sums() {
        let activity = Activity {
            requests_a_second: 1234.6,
            requests: 1_000_000,
            bytes_a_second: 3.5 * 1024.0 * 1024.0,
            bytes: 5 << 30,
            connections: 17,
        };
        let page = landing(&Landing { activity: Some(activity), ..LANDING });
        assert!(
            page.contains("<dd>1\u{2009}235/s <small>1\u{2009}000\u{2009}000 since the start</small></dd>"),
            "{page}"
        );
        assert!(page.contains("<dd>3.50 MiB/s <small>5.00 GiB since the start</small></dd>"));
        assert_eq!((rate(0.0), rate(9.94)), ("0.0".to_owned(), "9.9".to_owned()));
    }
}
