//! The Nix client of this machine, as this user has it: its settings, and what of them the daemon heeds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, access};

use super::finding::{Finding, Listing};
use super::nix_conf::{self, Settings};
use super::place::Place;
use crate::formats::signature::PublicKey;

/// What `$NAME` is, if it is set.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// cache.nixos.org's own priority, by its nix-cache-info: what clients have where no setting says another.
const NIXOS_PRIORITY: i64 = 40;
const NIXOS_HOST: &str = "cache.nixos.org";

/// A Nix client.
#[derive(Clone, Debug)]
pub struct Client {
    /// All settings, the user's own among them.
    settings: Settings,
    /// What the daemon heeds where it does not trust the user.
    restriction: Option<Restriction>,
    /// The store directory.
    pub store_dir: String,
    /// Where its files are.
    pub real_store: PathBuf,
    /// What Nix said where it refuses its settings.
    refusal: Option<String>,
    /// Where its settings are changed.
    pub place: Place,
    /// How the settings became known, in words.
    pub source: String,
}

/// A daemon does what this user may not change.
#[derive(Clone, Debug)]
struct Restriction {
    user: String,
    /// The settings of the system, which the daemon has.
    system: Settings,
}

impl Client {
    /// Looks at this machine; nothing where no Nix is.
    pub fn of_this_machine(env: Env<'_>) -> Option<Self> {
        let folder = env("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from);
        let file = folder.join("nix.conf");
        let mut system = Settings::defaults();
        let text = nix_conf::apply_file(&mut system, &file);
        let mut all = system.clone();
        for file in nix_conf::user_files(env) {
            nix_conf::apply_file(&mut all, &file);
        }
        if let Some(text) = env("NIX_CONFIG") {
            all.apply(&text, &|file| std::fs::read_to_string(file).ok());
        }
        // Each of them is what the other is called in other Nixes.
        let answers = ["config show", "show-config"].map(shown_by_nix);
        let mut refusal = answers.iter().find_map(|answer| answer.as_ref().err().cloned().flatten());
        let shown = answers.into_iter().find_map(Result::ok);
        let (settings, source) = match (shown, &text) {
            (Some((settings, command)), _) => {
                refusal = None;
                (settings, format!("nix {command}"))
            }
            (None, Some(_)) => (all, file.display().to_string()),
            (None, None) if env("NIX_CONFIG").is_some() => (all, "$NIX_CONFIG".to_owned()),
            (None, None) => return None,
        };
        let restriction = restriction(&settings, system, env);
        let store_dir = env("NIX_STORE_DIR").unwrap_or_else(|| "/nix/store".to_owned());
        let (store_dir, real_store) = store(settings.text("store").unwrap_or("auto"), store_dir);
        Some(Self {
            settings,
            restriction,
            store_dir,
            real_store,
            refusal,
            place: Place::of(&file, &text.unwrap_or_default()),
            source,
        })
    }

    /// The URLs of the substituters that are asked by HTTP.
    pub fn http_substituters(&self) -> Vec<String> {
        let is_http = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        self.settings.words("substituters").into_iter().filter(is_http).collect()
    }

    /// The keys that count, as an untrusted user's own do not; and what is no key among them.
    pub fn keys(&self) -> (Vec<PublicKey>, Vec<Finding>) {
        let (mut keys, mut broken) = (Vec::new(), Vec::new());
        for word in self.heeded().words("trusted-public-keys") {
            match PublicKey::parse(&word) {
                Ok(key) => keys.push(key),
                Err(error) => {
                    // What follows the colon may be a secret.
                    let name = word.split(':').next().unwrap_or_default().to_owned();
                    broken.push(Listing::BadTrustedKey { name, reason: error.to_string() }.into());
                }
            }
        }
        (keys, broken)
    }

    /// The settings that decide on what is taken.
    fn heeded(&self) -> &Settings {
        self.restriction.as_ref().map_or(&self.settings, |restriction| &restriction.system)
    }

    /// Whether the user's own settings, which the daemon ignores, have the key of this name.
    pub fn has_ignored_key(&self, name: &str) -> bool {
        let has = |key: &String| key.split(':').next() == Some(name);
        self.restriction.is_some() && self.settings.words("trusted-public-keys").iter().any(has)
    }

    /// The setting by which this client takes what the cache at `url` has without a trusted key's signature.
    pub fn takes_unsigned(&self, url: &str) -> Option<&'static str> {
        if !self.heeded().is_on("require-sigs") {
            return Some("require-sigs = false");
        }
        let substituters = self.settings.words("substituters");
        let listed = substituters.iter().find(|listed| is_same(listed, url))?;
        let is_trusted = matches!(parameter(listed, "trusted"), Some("1" | "true" | "yes"));
        is_trusted.then_some("“trusted” in the substituter's URL")
    }

    /// The file of the authorities that are trusted, as Nix looks for it.
    pub fn authorities(&self, env: Env<'_>) -> Option<PathBuf> {
        let set = self.settings.text("ssl-cert-file").map(PathBuf::from);
        set.or_else(|| authorities(env))
    }

    /// What keeps this client from asking the cache at `url`, or from asking it first. `priority` is the cache's own,
    /// `others` what other substituters answered for theirs.
    pub fn listing(&self, url: &str, priority: Option<i64>, others: &[(String, i64)]) -> Vec<Finding> {
        let (_, mut findings) = self.keys();
        findings
            .extend(self.refusal.iter().map(|message| Listing::Refused { message: message.clone() }.into()));
        if !self.settings.is_on("substitute") {
            findings.push(Listing::SubstituteOff.into());
        }
        let substituters = self.settings.words("substituters");
        let Some(own) = substituters.iter().position(|listed| is_same(listed, url)) else {
            let alike = substituters.into_iter().find(|listed| host(listed) == host(url));
            findings.push(Listing::NotListed { alike }.into());
            return findings;
        };
        if let Some(Restriction { user, system }) = &self.restriction {
            let heeded = [system.words("substituters"), system.words("trusted-substituters")].concat();
            if !heeded.iter().any(|listed| is_same(listed, url)) {
                findings.push(Listing::NotAllowed { user: user.clone() }.into());
            }
        }
        let ours = set_priority(&substituters[own]).or(priority);
        findings.extend(ours.and_then(|ours| self.asked_later(own, &substituters, ours, others)));
        findings
    }

    /// Whether the substituter at `own` in the list is asked after cache.nixos.org.
    fn asked_later(
        &self,
        own: usize,
        listed: &[String],
        ours: i64,
        others: &[(String, i64)],
    ) -> Option<Finding> {
        let at = listed.iter().position(|url| host(url) == NIXOS_HOST).filter(|&at| at != own)?;
        let other = &listed[at];
        let answered = others.iter().find(|(url, _)| is_same(url, other)).map(|(_, priority)| *priority);
        let (theirs, known) = match (set_priority(other), answered) {
            (Some(set), _) => (set, "by this client's settings"),
            (None, Some(answered)) => (answered, "as it says"),
            (None, None) => (NIXOS_PRIORITY, "unless it has changed"),
        };
        // Equal ones are asked in the order of the list.
        (ours > theirs || ours == theirs && own > at)
            .then(|| Listing::Priority { other: other.clone(), theirs, known, ours }.into())
    }
}

/// The file of authorities where no setting names one.
pub fn authorities(env: Env<'_>) -> Option<PathBuf> {
    let named = ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"].into_iter().find_map(env).map(PathBuf::from);
    let usual = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/nix/var/nix/profiles/default/etc/ssl/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
    ];
    named.or_else(|| usual.into_iter().map(PathBuf::from).find(|file| file.exists()))
}

/// The settings as Nix shows them, and by which command; or what Nix has against them, where it is that.
fn shown_by_nix(words: &'static str) -> Result<(Settings, &'static str), Option<String>> {
    let mut command = Command::new("nix");
    command.args(["--extra-experimental-features", "nix-command"]).args(words.split(' '));
    let output = command.stdin(Stdio::null()).output().map_err(|_| None)?;
    let settings = Settings::shown(&String::from_utf8_lossy(&output.stdout));
    match output.status.success() && settings.text("store").is_some() {
        true => Ok((settings, words)),
        false => Err(refusal(&String::from_utf8_lossy(&output.stderr))),
    }
}

/// What Nix says it stopped at; nothing where it only does not know the command.
fn refusal(said: &str) -> Option<String> {
    let message = said.lines().find_map(|line| line.strip_prefix("error: "))?.trim();
    (!message.contains("is not a recognised command")).then(|| message.to_owned())
}

/// The store directory, and where its files are, of the store that Nix's setting `store` names; `dir` is the directory
/// where that does not say another.
fn store(url: &str, dir: String) -> (String, PathBuf) {
    let place = url.split('?').next().unwrap_or_default();
    let named = |name| parameter(url, name).filter(|value| !value.is_empty());
    let is_local = place == "local" || place.starts_with("local://") || place.starts_with('/');
    if !is_local {
        return (dir.clone(), dir.into());
    }
    let dir = named("store").map_or(dir, str::to_owned);
    let root = Some(place.trim_start_matches("local").trim_start_matches("://"));
    let root = root.filter(|root| !root.is_empty()).or_else(|| named("root"));
    let below = |root: &str| Path::new(root).join(dir.trim_start_matches('/'));
    let real = named("real").map(PathBuf::from).or_else(|| root.map(below));
    (dir.clone(), real.unwrap_or_else(|| dir.into()))
}

/// What the daemon keeps from this user, if there is one and it does not trust the user.
fn restriction(settings: &Settings, system: Settings, env: Env<'_>) -> Option<Restriction> {
    if !is_by_daemon(settings, env) {
        return None;
    }
    let user = said_by_id("-un")?;
    let groups = said_by_id("-Gn").unwrap_or_default();
    is_untrusted(&user, &groups, &system.words("trusted-users")).then_some(Restriction { user, system })
}

fn is_untrusted(user: &str, groups: &str, trusted: &[String]) -> bool {
    !trusted.iter().any(|entry| match entry.strip_prefix('@') {
        Some(group) => groups.split_whitespace().any(|own| own == group),
        None => entry == "*" || entry == user,
    })
}

/// Whether Nix works by way of its daemon: where it is told to, or may not write to the store's state itself.
fn is_by_daemon(settings: &Settings, env: Env<'_>) -> bool {
    let store = settings.text("store").unwrap_or("auto");
    if store != "auto" {
        return store == "daemon" || store.starts_with("unix:");
    }
    let state = env("NIX_STATE_DIR").map_or_else(|| PathBuf::from("/nix/var/nix"), PathBuf::from);
    let socket =
        env("NIX_DAEMON_SOCKET_PATH").map_or_else(|| state.join("daemon-socket/socket"), PathBuf::from);
    access(&state, Access::READ_OK | Access::WRITE_OK).is_err() && Path::new(&socket).exists()
}

fn said_by_id(option: &str) -> Option<String> {
    let output = Command::new("id").arg(option).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// A substituter's URL without what does not tell caches apart: its parameters, a slash at its end, and case in scheme
/// and host.
pub fn bare(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default().trim_end_matches('/');
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    format!("{}://{}{path}", scheme.to_ascii_lowercase(), host.to_ascii_lowercase())
}

fn is_same(one: &str, other: &str) -> bool {
    bare(one) == bare(other)
}

/// The host of a URL, without its port.
fn host(url: &str) -> String {
    let url = bare(url);
    let authority =
        url.split_once("://").map_or(&*url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    host.rsplit_once(':').map_or(host, |(host, _)| host).to_owned()
}

/// The priority that a substituter's URL sets.
fn set_priority(url: &str) -> Option<i64> {
    parameter(url, "priority")?.parse().ok()
}

fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    let (_, parameters) = url.split_once('?')?;
    parameters.split('&').find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(own: &str, system: Option<&str>) -> Client {
        let of = |text: &str| {
            let mut settings = Settings::defaults();
            settings.apply(text, &|_| None);
            settings
        };
        Client {
            settings: of(own),
            restriction: system.map(|text| Restriction { user: "alice".to_owned(), system: of(text) }),
            store_dir: "/nix/store".to_owned(),
            real_store: "/nix/store".into(),
            refusal: None,
            place: Place::NixOs,
            source: String::new(),
        }
    }

    #[test]
    fn a_cache_must_be_listed_and_heeded() {
        let url = "http://cache.example:5000";
        let other = client("substituters = https://cache.example/", None);
        assert_eq!(
            other.listing("http://Cache.example", Some(30), &[]),
            [Listing::NotListed { alike: Some("https://cache.example/".into()) }.into()]
        );
        // cache.nixos.org's, under another name.
        let key = "k-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let own = &*format!("extra-substituters = {url}/?priority=10\nextra-trusted-public-keys = {key}");
        assert_eq!(client(own, None).listing(url, Some(50), &[]), []);
        let refused = client(own, Some(""));
        assert_eq!(
            refused.listing(url, Some(30), &[]),
            [Listing::NotAllowed { user: "alice".into() }.into()]
        );
        assert!(refused.has_ignored_key("k-1") && !refused.has_ignored_key("k-2"));
        let names =
            |client: &Client| client.keys().0.iter().map(|key| key.name().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&refused), ["cache.nixos.org-1"]);
        let broken = client(&format!("{own} broken:key"), None).listing(url, Some(30), &[]);
        let reason = "what follows “broken:” is not base64".into();
        assert_eq!(broken, [Listing::BadTrustedKey { name: "broken".into(), reason }.into()]);
        let allowed = client(own, Some("trusted-substituters = http://cache.example:5000"));
        assert_eq!(allowed.listing(url, Some(30), &[]), []);
        assert_eq!(client(own, None).takes_unsigned(url), None);
        let careless = client("substituters = http://cache.example:5000?trusted=1", None);
        assert!(careless.takes_unsigned(url).is_some() && careless.takes_unsigned("http://b").is_none());
        let off = client(&format!("{own}\nsubstitute = false"), None);
        assert_eq!(off.listing(url, Some(30), &[]), [Listing::SubstituteOff.into()]);
    }

    #[test]
    fn priorities_are_compared_and_not_assumed() {
        let url = "http://cache.example:5000";
        let asked = |settings: &str, ours, others: &[(String, i64)]| match &client(settings, None).listing(
            url,
            Some(ours),
            others,
        )[..]
        {
            [] => None,
            [Finding::Listing(Listing::Priority { theirs, ours, .. })] => Some((*ours, *theirs)),
            other => panic!("{other:?}"),
        };
        let behind = "substituters = https://cache.nixos.org http://cache.example:5000";
        let before = "substituters = http://cache.example:5000 https://cache.nixos.org";
        assert_eq!(asked(behind, 30, &[]), None);
        assert_eq!(asked(behind, 50, &[]), Some((50, 40)));
        assert_eq!(asked(behind, 40, &[]), Some((40, 40)), "equal ones are asked in their order");
        assert_eq!(asked(before, 40, &[]), None);
        assert_eq!(
            asked(&format!("{behind}?priority=60"), 30, &[]),
            Some((60, 40)),
            "the client's word counts"
        );
        let set = "substituters = https://cache.nixos.org?priority=20 http://cache.example:5000";
        assert_eq!(asked(set, 30, &[]), Some((30, 20)));
        assert_eq!(asked(behind, 30, &[("https://cache.nixos.org/".into(), 10)]), Some((30, 10)));
        assert_eq!(asked("substituters = http://cache.example:5000", 90, &[]), None, "there is no other");
    }

    #[test]
    fn a_store_elsewhere_has_its_files_elsewhere() {
        let of = |url: &str| store(url, "/nix/store".to_owned());
        let at = |dir: &str, real: &str| (dir.to_owned(), PathBuf::from(real));
        for url in ["auto", "daemon", "unix:///s", "local", "ssh://host?root=/x"] {
            assert_eq!(of(url), at("/nix/store", "/nix/store"), "{url}");
        }
        for url in ["/x", "local?root=/x", "local:///x", "/x?priority=3"] {
            assert_eq!(of(url), at("/nix/store", "/x/nix/store"), "{url}");
        }
        assert_eq!(of("local?store=/a/store"), at("/a/store", "/a/store"));
        assert_eq!(of("local?store=/a/store&real=/b&root=/x"), at("/a/store", "/b"));
    }

    #[test]
    fn what_nix_stops_at_is_told_apart_from_an_unknown_command() {
        assert_eq!(refusal("error: 'config' is not a recognised command\nTry 'nix --help'"), None);
        let said = "warning: x\nerror: illegal configuration line 'foo bar' in '/etc/nix/nix.conf'\nTry";
        let expected = "illegal configuration line 'foo bar' in '/etc/nix/nix.conf'";
        assert_eq!(refusal(said).as_deref(), Some(expected));
        assert_eq!(refusal(""), None);
    }

    #[test]
    fn users_are_trusted_by_name_group_or_all() {
        let trusted = |text: &str| !is_untrusted("alice", "staff wheel", &[text.to_owned()]);
        assert!(trusted("alice") && trusted("@wheel") && trusted("*"));
        assert!(!trusted("bob") && !trusted("@admin") && !trusted("wheel"));
    }

    #[test]
    fn urls_are_compared_without_what_does_not_matter() {
        assert_eq!(bare("HTTP://Cache.Example:5000/Path/?priority=1"), "http://cache.example:5000/Path");
        assert_eq!(host("https://user@cache.example:8443/path"), "cache.example");
        assert_eq!(set_priority("http://a?trusted=1&priority=7"), Some(7));
        assert_eq!(set_priority("http://a"), None);
    }
}
