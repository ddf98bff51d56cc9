//! Which answer a request target asks for. Pure: nothing is looked up here.

use std::borrow::Cow;

use crate::cache::encode::Format;
use crate::formats::hash::Sha256;
use crate::formats::realisation::OutputId;
use crate::formats::store_path::{StorePath, StorePathHash};
use crate::http::Target;
use crate::http::target::{decode_field, decode_segment, is_dot_segment};
use crate::limits;
use crate::metrics::Route as Label;
use crate::store::browse::Search;
use crate::store::debuginfo::BuildId;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`
    Landing,
    /// `/nix-cache-info`
    CacheInfo,
    /// `/version`
    Version,
    /// `/health`
    Health,
    /// `/metrics`
    Metrics,
    /// `/<hash>.narinfo`, as text or as JSON.
    Narinfo {
        /// The hash part of the store path.
        path: StorePathHash,
        /// `?json`
        json: bool,
    },
    /// `/search?q=<words>`, with `&drv=1` and `&after=<basename>`
    Search(Search),
    /// `/path/<hash>`, also with the name behind it: the page of a path.
    Path(StorePathHash),
    /// A NAR under any of its URLs.
    Nar {
        /// The hash part of the store path.
        path: StorePathHash,
        /// The NAR hash in the URL; nix-serve's short form has none.
        nar_hash: Option<Sha256>,
    },
    /// A compressed NAR.
    Compressed {
        /// The hash part of the store path.
        path: StorePathHash,
        /// The NAR hash in the URL.
        nar_hash: Sha256,
        /// What the file's name says that it is compressed with.
        format: Format,
        /// The id of the encoding, as far as it can be one.
        encoding: String,
    },
    /// `/<hash>.ls`
    Listing(StorePathHash),
    /// `/log/<drv>`
    Log(LogName),
    /// `/realisations/<id>.doi`, of clients up to 2.34, or `/build-trace-v2/<drv>/<output>.doi`, of clients
    /// since 2.35.
    Realisation(OutputId),
    /// `/serve/<hash>/<path>`
    Serve {
        /// The hash part of the store path.
        path: StorePathHash,
        /// The path inside it, decoded: empty, or a slash and names with single slashes between them; with a
        /// slash at the end where the URL has one.
        inner: Vec<u8>,
    },
    /// `/debuginfo/<build-id>`, also with `.debug`.
    DebugInfo(BuildId),
    /// Nothing that can exist; the route it looks like.
    Absent(Label),
}

/// The name a build log is asked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogName {
    /// A derivation or an output, by its whole name.
    Path(StorePath),
    /// Either, by its hash part alone.
    Hash(StorePathHash),
}

impl Route {
    /// The route of a target.
    pub fn of(target: &Target<'_>) -> Self {
        let path = target.path();
        let mut segments = target.segments();
        // A target begins with a slash, so there is a first segment.
        let first = segments.next().unwrap_or_default();
        let Some(second) = segments.next() else { return Self::top(first, target) };
        let third = segments.next();
        let more = segments.next().is_some();
        match (first, third) {
            (b"nar", None) => Self::nar(second, target),
            (b"path", None) => page_of(second).map_or(Self::Absent(Label::Path), Self::Path),
            (b"log", None) => log_name(second).map_or(Self::Absent(Label::Log), Self::Log),
            (b"realisations", None) => {
                realisation(second).map_or(Self::Absent(Label::Realisation), Self::Realisation)
            }
            (b"build-trace-v2", Some(output)) if !more => {
                build_trace(second, output).map_or(Self::Absent(Label::BuildTrace), Self::Realisation)
            }
            (b"debuginfo", None) => build_id(second).map_or(Self::Absent(Label::DebugInfo), Self::DebugInfo),
            (b"serve", _) => {
                // The path below `/serve/<hash>`, as it stands.
                let inner = &path[b"/serve/".len() + second.len()..];
                serve(second, inner).unwrap_or(Self::Absent(Label::Serve))
            }
            _ => Self::Absent(Label::Other),
        }
    }

    /// The label of this route in the metrics: never a raw path.
    pub fn label(&self) -> Label {
        match self {
            Self::Landing => Label::Landing,
            Self::CacheInfo => Label::CacheInfo,
            Self::Version => Label::Version,
            Self::Health => Label::Health,
            Self::Metrics => Label::Metrics,
            Self::Narinfo { .. } => Label::Narinfo,
            Self::Search(_) => Label::Search,
            Self::Path(_) => Label::Path,
            Self::Nar { .. } | Self::Compressed { .. } => Label::Nar,
            Self::Listing(_) => Label::Listing,
            Self::Log(_) => Label::Log,
            Self::Realisation(OutputId::Hashed { .. }) => Label::Realisation,
            Self::Realisation(OutputId::Trace { .. }) => Label::BuildTrace,
            Self::Serve { .. } => Label::Serve,
            Self::DebugInfo(_) => Label::DebugInfo,
            Self::Absent(label) => *label,
        }
    }

    /// Whether it is what a client fetches a path by, and no look that a person or a crawler takes. A client that has
    /// the narinfo counts on the NAR for 30 days.
    pub fn is_fetch(&self) -> bool {
        matches!(self, Self::Narinfo { .. } | Self::Nar { .. } | Self::Compressed { .. })
    }

    fn top(segment: &[u8], target: &Target<'_>) -> Self {
        if let Some(digits) = segment.strip_suffix(b".narinfo") {
            return match StorePathHash::parse(digits) {
                Some(path) => Self::Narinfo { path, json: target.parameter(b"json").is_some() },
                None => Self::Absent(Label::Narinfo),
            };
        }
        if let Some(digits) = segment.strip_suffix(b".ls") {
            return StorePathHash::parse(digits).map_or(Self::Absent(Label::Listing), Self::Listing);
        }
        match segment {
            b"" => Self::Landing,
            b"nix-cache-info" => Self::CacheInfo,
            b"version" => Self::Version,
            b"health" => Self::Health,
            b"metrics" => Self::Metrics,
            b"search" => search(target).map_or(Self::Absent(Label::Search), Self::Search),
            _ => Self::Absent(Label::Other),
        }
    }

    /// `<narhash>.nar?hash=<outhash>`, or as nix-serve wrote it `<outhash>-<narhash>.nar` and
    /// `<outhash>.nar`.
    fn nar(name: &[u8], target: &Target<'_>) -> Self {
        let absent = Self::Absent(Label::Nar);
        for format in [Format::Zstd, Format::Xz] {
            let stem = name.strip_suffix(format.extension().as_bytes());
            if let Some(stem) = stem.and_then(|stem| stem.strip_suffix(b".nar.")) {
                return Self::compressed(stem, format, target).unwrap_or(absent);
            }
        }
        let Some(stem) = name.strip_suffix(b".nar") else { return absent };
        let parts = match stem.len() {
            NAR_HASH_DIGITS => target.parameter(b"hash").map(|path| (path, Some(stem))),
            StorePathHash::DIGITS => Some((stem, None)),
            BOTH_DIGITS if stem[StorePathHash::DIGITS] == b'-' => {
                Some((&stem[..StorePathHash::DIGITS], Some(&stem[StorePathHash::DIGITS + 1..])))
            }
            _ => None,
        };
        let Some((path, nar_hash)) = parts else { return absent };
        let Some(path) = StorePathHash::parse(path) else { return absent };
        match nar_hash.map(parse_nar_hash) {
            None => Self::Nar { path, nar_hash: None },
            Some(Some(hash)) => Self::Nar { path, nar_hash: Some(hash) },
            Some(None) => absent,
        }
    }

    /// `<narhash>.nar.<extension>?hash=<outhash>&e=<encoding id>`
    fn compressed(stem: &[u8], format: Format, target: &Target<'_>) -> Option<Self> {
        let nar_hash = parse_nar_hash(stem)?;
        let path = StorePathHash::parse(target.parameter(b"hash")?)?;
        let id = target.parameter(b"e").filter(|id| id.len() <= ENCODING_ID_MAX)?;
        let is_id = id.starts_with(format.name().as_bytes())
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(byte));
        let encoding = String::from_utf8(id.to_vec()).ok().filter(|_| is_id && !id.is_empty())?;
        Some(Self::Compressed { path, nar_hash, format, encoding })
    }
}

/// The longest id of an encoding, in bytes. Those of today have under 20; what is longer never was one.
const ENCODING_ID_MAX: usize = 64;

/// Base-32 digits of a SHA-256 hash.
const NAR_HASH_DIGITS: usize = 52;
const BOTH_DIGITS: usize = StorePathHash::DIGITS + 1 + NAR_HASH_DIGITS;

fn parse_nar_hash(digits: &[u8]) -> Option<Sha256> {
    Sha256::from_base32(std::str::from_utf8(digits).ok()?)
}

/// A decoded segment that is UTF-8.
fn text(segment: &[u8]) -> Option<Cow<'_, str>> {
    match decode_segment(segment).ok()? {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

/// What the form on the pages sends.
fn search(target: &Target<'_>) -> Option<Search> {
    let raw = target.parameter(b"q").unwrap_or_default();
    let words = decode_field(raw).ok().filter(|words| words.len() <= limits::SEARCH_BYTES)?;
    let after = match target.parameter(b"after") {
        Some(raw) => Some(StorePath::from_basename(&text(raw)?).ok()?),
        None => None,
    };
    Some(Search { words, derivations: target.parameter(b"drv").is_some(), after })
}

fn page_of(segment: &[u8]) -> Option<StorePathHash> {
    let (digits, rest) = segment.split_at_checked(StorePathHash::DIGITS)?;
    StorePathHash::parse(digits).filter(|_| rest.is_empty() || rest.starts_with(b"-"))
}

fn log_name(segment: &[u8]) -> Option<LogName> {
    let name = text(segment)?;
    match StorePathHash::parse(name.as_bytes()) {
        Some(hash) => Some(LogName::Hash(hash)),
        None => StorePath::from_basename(&name).ok().map(LogName::Path),
    }
}

fn realisation(segment: &[u8]) -> Option<OutputId> {
    OutputId::parse_hashed(text(segment)?.strip_suffix(".doi")?)
}

fn build_trace(drv: &[u8], output: &[u8]) -> Option<OutputId> {
    OutputId::parse_trace(&text(drv)?, text(output)?.strip_suffix(".doi")?)
}

fn build_id(segment: &[u8]) -> Option<BuildId> {
    BuildId::parse(&decode_segment(segment).ok()?)
}

/// `inner` begins with a slash, or is empty where the URL ends after the hash.
fn serve(digits: &[u8], inner: &[u8]) -> Option<Route> {
    let path = StorePathHash::parse(digits)?;
    let mut decoded = Vec::with_capacity(inner.len());
    for segment in inner.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty()) {
        let segment = decode_segment(segment).ok()?;
        if is_dot_segment(&segment) {
            return None;
        }
        decoded.push(b'/');
        decoded.extend_from_slice(&segment);
    }
    if inner.ends_with(b"/") {
        decoded.push(b'/');
    }
    Some(Route::Serve { path, inner: decoded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Parsed, parse};
    use proptest::prelude::*;

    const PATH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
    const NAR: &str = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";

    fn route(target: &str) -> Route {
        let head = format!("GET {target} HTTP/1.1\r\nHost: cache\r\n\r\n");
        match parse(head.as_bytes()).expect("a good head") {
            Parsed::Complete { request, .. } => Route::of(&request.target),
            Parsed::Partial => panic!("a whole head"),
        }
    }

    fn path() -> StorePathHash {
        StorePathHash::parse(PATH.as_bytes()).expect("a hash part")
    }

    #[test]
    fn the_plain_ones() {
        assert_eq!(route("/"), Route::Landing);
        assert_eq!(route("/nix-cache-info"), Route::CacheInfo);
        assert_eq!(route("/version"), Route::Version);
        assert_eq!(route("/health"), Route::Health);
        assert_eq!(route("/metrics"), Route::Metrics);
        assert_eq!(route("/favicon.ico"), Route::Absent(Label::Other));
        assert_eq!(route("/a/b/c/d"), Route::Absent(Label::Other));
    }

    #[test]
    fn narinfos_and_listings() {
        assert_eq!(route(&format!("/{PATH}.narinfo")), Route::Narinfo { path: path(), json: false });
        assert_eq!(route(&format!("/{PATH}.narinfo?json")), Route::Narinfo { path: path(), json: true });
        assert_eq!(route(&format!("/{PATH}.ls")), Route::Listing(path()));
        for wrong in ["/.narinfo", "/abc.narinfo", "/EEbgd045z0d4icpbc2yyz4gx48ak44la.narinfo"] {
            assert_eq!(route(wrong), Route::Absent(Label::Narinfo), "{wrong}");
        }
    }

    #[test]
    fn every_form_of_a_nar_url() {
        let nar_hash = Sha256::from_base32(NAR);
        assert!(nar_hash.is_some());
        let whole = Route::Nar { path: path(), nar_hash };
        assert_eq!(route(&format!("/nar/{NAR}.nar?hash={PATH}")), whole);
        assert_eq!(route(&format!("/nar/{PATH}-{NAR}.nar")), whole);
        assert_eq!(route(&format!("/nar/{PATH}.nar")), Route::Nar { path: path(), nar_hash: None });
        for wrong in [
            format!("/nar/{NAR}.nar"),
            format!("/nar/{NAR}.nar?hash=short"),
            format!("/nar/{NAR}"),
            format!("/nar/{PATH}_{NAR}.nar"),
            format!("/nar/{NAR}.nar.zst?hash={PATH}"),
            format!("/nar/{NAR}.nar.zst?hash={PATH}&e="),
            format!("/nar/{NAR}.nar.zst?hash={PATH}&e=a/b"),
            format!("/nar/{NAR}.nar.zst?hash={PATH}&e={}", "a".repeat(65)),
            format!("/nar/{NAR}.nar.zst?e=zstd-1.5.7-6-1"),
            format!("/nar/{NAR}.nar.gz?hash={PATH}&e=gzip"),
            format!("/nar/{PATH}.nar.zst?hash={PATH}&e=zstd-1.5.7-6-1"),
            "/nar/.nar".to_owned(),
            "/nar/".to_owned(),
        ] {
            assert_eq!(route(&wrong), Route::Absent(Label::Nar), "{wrong}");
        }
    }

    #[test]
    fn compressed_nars_by_encoding() {
        let nar_hash = Sha256::from_base32(NAR).expect("a hash");
        for (format, extension) in [(Format::Zstd, "zst"), (Format::Xz, "xz")] {
            let encoding = format!("{}-1.0_then", format.name());
            let found = route(&format!("/nar/{NAR}.nar.{extension}?hash={PATH}&e={encoding}"));
            assert_eq!(found, Route::Compressed { path: path(), nar_hash, format, encoding });
            // What is behind the id of another format is no file of this one.
            let other = route(&format!("/nar/{NAR}.nar.{extension}?hash={PATH}&e=gzip-1.0"));
            assert_eq!(other, Route::Absent(Label::Nar));
        }
    }

    #[test]
    fn logs_by_name_and_by_hash() {
        let drv = StorePath::from_basename(&format!("{PATH}-hello-1.0.drv")).expect("a name");
        assert_eq!(route(&format!("/log/{PATH}-hello-1.0.drv")), Route::Log(LogName::Path(drv)));
        assert_eq!(route(&format!("/log/{PATH}")), Route::Log(LogName::Hash(path())));
        assert_eq!(route("/log/../../etc/passwd"), Route::Absent(Label::Other));
        assert_eq!(route("/log/..%2f..%2fetc%2fpasswd"), Route::Absent(Label::Log));
    }

    #[test]
    fn realisations_raw_and_encoded() {
        let digits = "ab".repeat(32);
        let id = OutputId::parse_hashed(&format!("sha256:{digits}!out")).expect("an id");
        assert_eq!(route(&format!("/realisations/sha256:{digits}!out.doi")), Route::Realisation(id.clone()));
        assert_eq!(route(&format!("/realisations/sha256%3A{digits}%21out.doi")), Route::Realisation(id));
        assert_eq!(route(&format!("/realisations/sha256:{digits}!out")), Route::Absent(Label::Realisation));
        let id = OutputId::parse_trace(&format!("{PATH}-a.drv"), "out").expect("an id");
        assert_eq!(route(&format!("/build-trace-v2/{PATH}-a.drv/out.doi")), Route::Realisation(id));
        for wrong in
            [format!("{PATH}-a/out.doi"), format!("{PATH}-a.drv/out"), format!("{PATH}-a.drv/../x.doi")]
        {
            let label = route(&format!("/build-trace-v2/{wrong}"));
            assert!(matches!(label, Route::Absent(_)), "{wrong}: {label:?}");
        }
    }

    #[test]
    fn searches_and_pages_of_paths() {
        let search = |words: &str, derivations, after: Option<&str>| {
            let after = after.map(|path| StorePath::from_basename(path).expect("a name"));
            Route::Search(Search { words: words.to_owned(), derivations, after })
        };
        assert_eq!(route("/search"), search("", false, None));
        assert_eq!(route("/search?q=hello+w%C3%B6rld%2Fx&drv=1"), search("hello wörld/x", true, None));
        let after = format!("{PATH}-hello");
        assert_eq!(route(&format!("/search?q=h&after={after}")), search("h", false, Some(&after)));
        for wrong in ["q=%", "q=%00", "q=a&after=b", &format!("q={}", "a".repeat(513))] {
            assert_eq!(route(&format!("/search?{wrong}")), Route::Absent(Label::Search), "{wrong}");
        }
        assert_eq!(route(&format!("/path/{PATH}")), Route::Path(path()));
        assert_eq!(route(&format!("/path/{PATH}-hello-1.0")), Route::Path(path()));
        for wrong in ["", "short", &format!("{PATH}x"), &format!("{PATH}/")] {
            let found = route(&format!("/path/{wrong}"));
            assert!(matches!(found, Route::Absent(_)), "{wrong}: {found:?}");
        }
    }

    #[test]
    fn build_ids() {
        let id = BuildId::parse(b"00ab").expect("an id");
        assert_eq!(route("/debuginfo/00ab.debug"), Route::DebugInfo(id));
        assert_eq!(route("/debuginfo/00ab"), Route::DebugInfo(id));
        for wrong in ["/debuginfo/0", "/debuginfo/00AB", "/debuginfo/..", "/debuginfo/abc"] {
            assert_eq!(route(wrong), Route::Absent(Label::DebugInfo), "{wrong}");
        }
    }

    #[test]
    fn served_files_never_climb() {
        let served = |inner: &str| Route::Serve { path: path(), inner: inner.into() };
        assert_eq!(route(&format!("/serve/{PATH}")), served(""));
        assert_eq!(route(&format!("/serve/{PATH}/")), served("/"));
        assert_eq!(route(&format!("/serve/{PATH}/a%20b/c")), served("/a b/c"));
        assert_eq!(route(&format!("/serve/{PATH}//a//b/")), served("/a/b/"));
        for wrong in ["../x", "a/../b", "a/%2e%2e/b", "a%2fb", "%00", "./a"] {
            assert_eq!(route(&format!("/serve/{PATH}/{wrong}")), Route::Absent(Label::Serve), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_target_has_a_route(target in "/[!-\"$-~]{0,120}") {
            let _ = route(&target).label();
        }
    }
}
