//! The pages for people: from what the server knows to what [`crate::web`] writes.

use std::time::{Duration, UNIX_EPOCH};

use super::Site;
use super::exchange::Exchange;
use super::route::Route;
use crate::http::DateCache;
use crate::http::target::encode_segment;
use crate::limits;
use crate::store::browse::{About, Found, Neighbour, Overview, Search};
use crate::store::index::Snapshot;
use crate::store::serve::{EntryKind, Folder};
use crate::store::served::Served;
use crate::web;

/// The landing page, as `exchange` reached it, with the public `keys`; `paths` is what is known to be valid.
pub fn landing(
    site: &Site,
    exchange: &Exchange,
    keys: &[String],
    paths: &Snapshot,
    overview: Option<&Overview>,
) -> String {
    web::landing(&web::Landing {
        url: url(site, exchange).as_deref(),
        store_dir: site.store_dir.as_str(),
        // While a big database is still being read, nobody knows.
        paths: paths.complete().then(|| paths.len()),
        nar_bytes: overview.and_then(|overview| overview.nar_bytes),
        priority: site.priority,
        public_keys: keys,
        activity: overview.map(|Overview { recent, .. }| web::Activity {
            requests_a_second: recent.requests_a_second,
            requests: recent.requests,
            bytes_a_second: recent.bytes_a_second,
            bytes: recent.bytes,
            connections: recent.connections,
        }),
    })
}

/// The page of a search; without `found` nothing was looked for yet.
pub fn found(search: &Search, found: Option<&Found>) -> String {
    web::search(&web::SearchPage {
        words: &search.words,
        derivations: search.derivations,
        continued: search.after.is_some(),
        found: found.map(|found| items(&found.paths)),
        count: found.map_or(0, |found| found.count),
        more: found.is_some_and(|found| found.more),
    })
}

/// The page of a path, with the public `keys`.
pub fn path(site: &Site, exchange: &Exchange, keys: &[String], served: &Served, about: &About) -> String {
    let info = &served.info;
    let registered = UNIX_EPOCH + Duration::from_secs(u64::try_from(info.registration_time).unwrap_or(0));
    let (count, _) = about.closure;
    web::path(&web::PathPage {
        url: url(site, exchange).as_deref(),
        store_dir: site.store_dir.as_str(),
        public_keys: keys,
        path: &info.path,
        nar_size: info.nar_size,
        nar_hash: &format!("sha256:{}", info.nar_hash.to_base32()),
        closure: about.closure,
        closure_cut: count >= limits::CLOSURE_PATHS,
        registered: &String::from_utf8_lossy(DateCache::new().at(registered)),
        deriver: info.deriver.as_ref().map(|drv| (drv, about.has_deriver)),
        ca: info.ca.as_deref(),
        log: about.log.as_ref(),
        references: items(&about.references),
        referrers: items(&about.referrers),
        referrer_count: about.referrer_count,
        signatures: &served.signatures,
    })
}

fn items(paths: &[Neighbour]) -> Vec<web::Item<'_>> {
    paths.iter().map(|Neighbour { path, nar_size }| web::Item { path, nar_size: *nar_size }).collect()
}

/// Where the client has found this server. What could be no host is not repeated: it stands in commands that people copy.
fn url(site: &Site, exchange: &Exchange) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let host = exchange.host.as_deref().filter(|host| !host.is_empty() && host.bytes().all(is_plain))?;
    let scheme =
        exchange.is_encrypted.map_or(site.scheme, |is_encrypted| if is_encrypted { "https" } else { "http" });
    Some(format!("{scheme}://{host}"))
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
    let name = exchange.served.as_ref().map(|served| served.info.path.name());
    web::folder(&place(exchange), name, entries, folder.cut)
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
