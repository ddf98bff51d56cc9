//! One look at a cache: what is asked of it, in which order, and what comes of it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::ask::{Cache, Reply};
use super::client::Client;
use super::download;
use super::finding::{Finding, Reach, Transfer, Trust};
use super::trust::{self, Verdict};
use crate::formats::narinfo::{self, NarInfoError, ParsedNarInfo};
use crate::formats::signature::PublicKey;
use crate::formats::store_path::{StoreDir, StorePath};
use crate::http::date;
use crate::limits;

/// What a look at one cache came to.
#[derive(Debug, Default)]
pub struct Look {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// What is as it should be, in words.
    pub seen: Vec<String>,
    /// What is well for now and will not always be.
    pub notes: Vec<Note>,
    /// What was not looked at, and why, in words.
    pub unseen: Vec<String>,
    /// Whether so much was not that nobody can say that all is well.
    pub is_partial: bool,
}

/// Something that is to be done some day, with the line to change.
#[derive(Debug, Serialize)]
pub struct Note {
    /// What it is.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// What a cache says of itself.
#[derive(Debug)]
pub struct Info {
    store_dir: String,
    /// `None` where it says none, or none that is a number.
    pub priority: Option<i64>,
}

/// Who asks.
pub enum Side<'a> {
    /// A Nix client, if there is one on this machine.
    Client(Option<&'a Client>),
    /// The server's own machine: its store directory, and the public keys of its settings.
    Server { store_dir: &'a str, keys: &'a [PublicKey] },
}

/// The paths to ask for.
pub enum Paths<'a> {
    /// What is in this folder.
    In(&'a Path),
    /// The one that was named, as a basename that begins with a hash part.
    Named(StorePath),
}

/// Asks for nix-cache-info; what is to be said of that goes into `look`.
pub fn ask_info(cache: &Cache, look: &mut Look) -> Option<Info> {
    match cache_info(cache, look) {
        Ok(info) => {
            let priority = info.priority.map_or(String::new(), |priority| format!(", priority {priority}"));
            look.seen.push(format!("it answers, and is a binary cache for {}{priority}", info.store_dir));
            Some(info)
        }
        Err(finding) => {
            look.findings.push(finding.into());
            None
        }
    }
}

fn cache_info(cache: &Cache, look: &mut Look) -> Result<Info, Reach> {
    cache.resolve()?;
    // A proxy's copy would have an old date.
    let reply = cache.get("nix-cache-info", &[("Cache-Control", "no-cache")])?;
    let no_cache = |reason: String| Reach::NotACache { address: cache.url.clone(), reason };
    match reply.status {
        200 => {}
        status @ (401 | 403 | 407) => return Err(Reach::Denied { status }),
        status => {
            let reason = format!("it answers {status} for /nix-cache-info");
            // What speaks TLS may answer that much without it: this server does, and nginx.
            let secure = if status == 400 { cache.wants_tls() } else { None };
            return Err(secure.unwrap_or_else(|| no_cache(reason)));
        }
    }
    look.findings.extend(clock_skew(&reply, SystemTime::now()).map(Finding::from));
    let text = reply.text().map_err(|error| no_cache(error.to_string()))?;
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let store_dir =
        field("StoreDir").ok_or_else(|| no_cache("its /nix-cache-info has no StoreDir".to_owned()))?;
    let priority = field("Priority").map(|text| (text, text.parse()));
    if let Some((text, Err(_))) = priority {
        look.findings.push(Reach::BadPriority { text: text.to_owned() }.into());
    }
    Ok(Info { store_dir: store_dir.to_owned(), priority: priority.and_then(|(_, number)| number.ok()) })
}

fn clock_skew(reply: &Reply, now: SystemTime) -> Option<Reach> {
    // The answer of a cache in between is as old as it says.
    let age =
        reply.header("age").and_then(|age| age.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
    let theirs = date::parse(reply.header("date")?)?.checked_add(age)?;
    let (skew, ahead) = match theirs.duration_since(now) {
        Ok(ahead) => (ahead, true),
        Err(behind) => (behind.duration(), false),
    };
    (skew > limits::DOCTOR_CLOCK).then_some(Reach::ClockSkew { seconds: skew.as_secs(), ahead })
}

/// Looks at all that a cache with this `info` gives, for at most `longest` for the asking and for the download each.
pub fn examine(
    cache: &Cache,
    info: &Info,
    side: &Side<'_>,
    paths: &Paths<'_>,
    longest: Duration,
    look: &mut Look,
) {
    let client_dir = match side {
        Side::Client(client) => client.map(|client| &*client.store_dir),
        Side::Server { store_dir, .. } => Some(*store_dir),
    };
    if let Some(client_dir) = client_dir.filter(|dir| *dir != info.store_dir) {
        look.findings
            .push(Reach::StoreDir { cache: info.store_dir.clone(), client: client_dir.to_owned() }.into());
        look.unseen.push("no path was tried: none of this machine's can be in that cache".to_owned());
        return;
    }
    let Ok(dir) = StoreDir::new(&info.store_dir) else {
        let reason = format!("its StoreDir is {:?}", info.store_dir);
        look.findings.push(Reach::NotACache { address: cache.url.clone(), reason }.into());
        return;
    };
    let found = match find(cache, &dir, paths, longest, look) {
        Ok(found) => found,
        Err(finding) => return look.findings.push(finding),
    };
    look_at_keys(cache, &dir, &found, side, look);
    if let Some((path, narinfo)) = best(&found) {
        download::try_nar(cache, path, narinfo, longest, look);
    }
}

/// The keys that the cache's own page shows; none where it has no such page.
fn shown_keys(cache: &Cache) -> Vec<PublicKey> {
    let page = cache.get("", &[]).ok().filter(|reply| reply.status == 200);
    page.and_then(|reply| reply.text().ok()).map(|page| trust::keys_in(&page)).unwrap_or_default()
}

type Found = Vec<(String, ParsedNarInfo)>;

/// Narinfos of some paths that the cache has.
fn find(
    cache: &Cache,
    dir: &StoreDir,
    paths: &Paths<'_>,
    longest: Duration,
    look: &mut Look,
) -> Result<Found, Finding> {
    let candidates = match paths {
        Paths::Named(path) => vec![path.clone()],
        Paths::In(folder) => candidates(folder),
    };
    let mut found = Found::new();
    let begun = Instant::now();
    let mut asked = 0;
    for path in &candidates {
        if found.len() >= limits::DOCTOR_NARINFOS || begun.elapsed() > longest {
            break;
        }
        asked += 1;
        let target = format!("{}.narinfo", path.hash());
        let reply = cache.get(&target, &[])?;
        let full = dir.display(path).to_string();
        match (reply.status, paths) {
            (200, _) => match parse(dir, path, reply) {
                Ok(narinfo) => {
                    let path = dir.display(&narinfo.info.path).to_string();
                    found.push((path, narinfo));
                }
                Err(unfit) => {
                    return Err(Trust::BadNarInfo { path: full, reason: unfit.to_string() }.into());
                }
            },
            // Whoever may not see that something is missing is told that it may not.
            (404 | 403, Paths::Named(_)) => return Err(Transfer::PathAbsent { path: full }.into()),
            (404 | 403, Paths::In(_)) => {}
            (status, _) => return Err(Transfer::BadAnswer { target, status }.into()),
        }
    }
    if found.is_empty() {
        look.unseen.push(match (asked, paths) {
            (0, Paths::In(folder)) => format!(
                "no path could be tried: there is none in {} yet; name one that the cache has with --path",
                folder.display()
            ),
            _ => format!(
                "no path could be tried: the cache has none of the {asked} of this machine that it was asked for; name \
                 one with --path"
            ),
        });
    }
    Ok(found)
}

/// Why an answer is not the narinfo that was asked for.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    /// It broke off.
    #[error(transparent)]
    Reading(#[from] io::Error),
    /// It is none.
    #[error(transparent)]
    NarInfo(#[from] NarInfoError),
    /// It is another path's.
    #[error("it is of another path, {0}")]
    OtherPath(StorePath),
}

fn parse(dir: &StoreDir, path: &StorePath, reply: Reply) -> Result<ParsedNarInfo, Unfit> {
    let narinfo = narinfo::parse(dir, &reply.text()?)?;
    match narinfo.info.path.hash() == path.hash() {
        true => Ok(narinfo),
        false => Err(Unfit::OtherPath(narinfo.info.path)),
    }
}

/// Store paths of this machine, from all over its store.
fn candidates(folder: &Path) -> Vec<StorePath> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let path = |name: std::fs::DirEntry| StorePath::from_basename(name.file_name().to_str()?).ok();
    let mut paths: Vec<StorePath> = names.filter_map(path).filter(|path| !path.is_derivation()).collect();
    // Names begin with hashes, so that every so-manieth is a fair choice, and the same at each run.
    paths.sort_unstable();
    let step = paths.len().div_ceil(limits::DOCTOR_ASKED).max(1);
    paths.into_iter().step_by(step).collect()
}

/// What is best to download: the largest that is not too large, or else the smallest.
fn best(found: &Found) -> Option<&(String, ParsedNarInfo)> {
    let size = |(_, narinfo): &&(String, ParsedNarInfo)| narinfo.file_size.unwrap_or(narinfo.info.nar_size);
    let fitting = found.iter().filter(|found| size(found) <= limits::DOCTOR_FILE_BYTES).max_by_key(size);
    fitting.or_else(|| found.iter().min_by_key(size))
}

fn look_at_keys(cache: &Cache, dir: &StoreDir, found: &Found, side: &Side<'_>, look: &mut Look) {
    let shown = &shown_keys(cache);
    match side {
        Side::Server { keys, .. } => look_at_own_keys(dir, found, shown, keys, look),
        Side::Client(None) => {
            let signers = found.iter().filter_map(|(_, narinfo)| narinfo.verified_by(dir, shown));
            let mut keys: Vec<String> = signers.map(ToString::to_string).collect();
            keys.dedup();
            look.is_partial = found.is_empty();
            look.unseen.push(format!(
                "this machine has no Nix settings to compare with; a client must trust {}",
                if keys.is_empty() { "the key that signs".to_owned() } else { keys.join(" or ") }
            ));
        }
        Side::Client(Some(client)) => match client.takes_unsigned(&cache.url) {
            None if found.is_empty() => look_at_shown(client, shown, look),
            None => look_at_trust(dir, found, client, shown, look),
            Some(setting) => {
                look.unseen.push(format!("this client takes whatever comes, signed or not: {setting}"));
            }
        },
    }
}

/// Whether the client trusts what the cache's page shows, where there is no signature to look at.
fn look_at_shown(client: &Client, shown: &[PublicKey], look: &mut Look) {
    let (trusted, _) = client.keys();
    if shown.is_empty() {
        look.is_partial = true;
        look.unseen.push(
            "whether this client trusts the key that signs: there was no signature to check, and the cache's page shows no key"
                .to_owned(),
        );
    }
    match trust::of_shown(shown, &trusted) {
        Some(trust) => look.findings.push(heeded(trust, client).into()),
        None => name_keys("its page shows the key", shown.iter(), &trusted, client, look),
    }
}

/// Says of each key that the cache signs with whether this client trusts it; of some it does.
fn name_keys<'k>(
    what: &str,
    keys: impl Iterator<Item = &'k PublicKey>,
    trusted: &[PublicKey],
    client: &Client,
    look: &mut Look,
) {
    let (known, further): (Vec<_>, Vec<_>) = keys.partition(|key| trusted.contains(key));
    let names: Vec<&str> = known.iter().map(|key| key.name()).collect();
    if !names.is_empty() {
        look.seen.push(format!("{what} {}, which this client trusts", names.join(", ")));
    }
    look.notes.extend(further.into_iter().map(|key| Note {
        message: format!(
            "it signs with {} too, which this client does not trust and must before the other goes: {key}",
            key.name()
        ),
        remedy: client.place.line("extra-trusted-public-keys", &key.to_string()),
    }));
}

/// Whether the client takes what was found.
fn look_at_trust(dir: &StoreDir, found: &Found, client: &Client, shown: &[PublicKey], look: &mut Look) {
    let (trusted, _) = client.keys();
    let verdict = |(path, narinfo): &(String, ParsedNarInfo)| {
        (path.clone(), trust::judge(narinfo, dir, &trusted, shown))
    };
    let verdicts: Vec<(String, Verdict)> = found.iter().map(verdict).collect();
    let has_taken = |key: &&PublicKey| {
        verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::Trusted(name) if name == key.name()))
    };
    let mut keys: Vec<&PublicKey> = trusted.iter().filter(has_taken).collect();
    let refused = trust::sum_up(verdicts);
    if refused.is_empty() && keys.is_empty() {
        look.unseen.push(
            "no signature could be checked: what was looked at is content-addressed and needs none"
                .to_owned(),
        );
        look_at_shown(client, shown, look);
    } else if refused.is_empty() {
        for key in shown.iter().filter(|key| signs(dir, found, key)) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        name_keys("what it serves is signed by", keys.into_iter(), &trusted, client, look);
    }
    look.findings.extend(refused.into_iter().map(|trust| heeded(trust, client).into()));
}

/// Whether the key has signed all that was found.
fn signs(dir: &StoreDir, found: &Found, key: &PublicKey) -> bool {
    found.iter().all(|(_, narinfo)| narinfo.verified_by(dir, std::slice::from_ref(key)).is_some())
}

/// Says whether the key is there and ignored.
fn heeded(trust: Trust, client: &Client) -> Trust {
    match trust {
        Trust::KeyNotTrusted { cache, client: keys, .. } => {
            let name = |key: &String| key.split(':').next().unwrap_or_default().to_owned();
            let ignored = cache.iter().any(|key| client.has_ignored_key(&name(key)));
            Trust::KeyNotTrusted { cache, client: keys, ignored }
        }
        trust => trust,
    }
}

/// Whether the running server signs with every key that its settings name, as far as signatures or else its page say.
fn look_at_own_keys(dir: &StoreDir, found: &Found, shown: &[PublicKey], keys: &[PublicKey], look: &mut Look) {
    if found.is_empty() && shown.is_empty() {
        look.is_partial = true;
        look.unseen.push("whether it signs: no path was looked at, and its page shows no key".to_owned());
        return;
    }
    for key in keys {
        match if found.is_empty() { shown.contains(key) } else { signs(dir, found, key) } {
            true => look.seen.push(format!("it signs with {key}")),
            false => look.findings.push(Trust::KeyNotInUse { key: key.to_string() }.into()),
        }
    }
    let unsigned =
        found.iter().find(|(_, narinfo)| narinfo.info.signatures.is_empty() && narinfo.info.ca.is_none());
    if let Some((path, _)) = unsigned.filter(|_| keys.is_empty()) {
        look.findings.push(Trust::Unsigned { path: path.clone() }.into());
    }
}
