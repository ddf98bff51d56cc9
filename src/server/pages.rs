//! The pages for people: from what the server knows to what [`crate::web`] writes.

use super::Site;
use super::exchange::Exchange;
use super::route::Route;
use crate::http::target::encode_segment;
use crate::store::index::Snapshot;
use crate::store::serve::{EntryKind, Folder};
use crate::web;

/// The landing page, as it is reached by `host`; `paths` is what is known to be valid.
pub fn landing(site: &Site, host: Option<&str>, paths: &Snapshot) -> String {
    let url = host.map(|host| format!("{}://{host}", site.scheme));
    web::landing(&web::Landing {
        url: url.as_deref(),
        store_dir: site.store_dir.as_str(),
        // While a big database is still being read, nobody knows.
        paths: paths.complete().then(|| paths.len()),
        priority: site.priority,
        public_keys: &site.public_keys,
    })
}

/// The page of a folder inside a store path.
pub fn folder(exchange: &Exchange, folder: &Folder) -> String {
    let entries = folder.entries.iter().map(|entry| web::Entry {
        name: &entry.name,
        kind: match entry.kind {
            EntryKind::Folder => web::EntryKind::Folder,
            EntryKind::File { .. } => web::EntryKind::File(entry.size),
            EntryKind::Link => web::EntryKind::Link,
        },
    });
    web::folder(&place(exchange), entries, folder.cut)
}

/// Where a folder that was asked for without a slash is, relative to its own URL.
pub fn with_slash(exchange: &Exchange) -> String {
    let place = place(exchange);
    let last = place.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    format!("{}/", encode_segment(last))
}

/// The hash part and what follows it in a `/serve` URL, decoded, without a slash at the end.
fn place(exchange: &Exchange) -> Vec<u8> {
    let Route::Serve { path, inner } = &exchange.route else { return Vec::new() };
    let mut place = path.to_string().into_bytes();
    place.extend_from_slice(inner.strip_suffix(b"/").unwrap_or(inner));
    place
}
