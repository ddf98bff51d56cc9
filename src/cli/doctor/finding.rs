//! What the doctor finds, in words: each finding has one message, and one remedy with the line to change.
//!
//! Findings are values; whoever prints them is [`super::report`]. As JSON each has its variant's name as `code`.

use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use super::place::Place;
use crate::cli::progress::size;

/// Something that is not as it should be. `Display` is its message.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(untagged)]
pub enum Finding {
    /// The cache cannot be asked, or what answers is none.
    #[error(transparent)]
    Reach(#[from] Reach),
    /// The client's settings do not let it ask the cache, or not first.
    #[error(transparent)]
    Listing(#[from] Listing),
    /// The client does not take what the cache signs.
    #[error(transparent)]
    Trust(#[from] Trust),
    /// What is fetched does not come as it should.
    #[error(transparent)]
    Transfer(#[from] Transfer),
    /// The server cannot do what its settings say.
    #[error(transparent)]
    Upkeep(#[from] Upkeep),
}

impl Finding {
    /// Whether the line to change is one of Nix's settings on the client.
    pub fn is_of_client(&self) -> bool {
        matches!(
            self,
            Self::Listing(_)
                | Self::Reach(Reach::Certificate { reason: CertificateReason::Authority, .. })
                | Self::Trust(Trust::KeyNotTrusted { .. } | Trust::KeyName { .. } | Trust::KeyBytes { .. })
        )
    }

    /// What to do about it. `place` is where the client's settings are, `url` how they name the cache.
    pub fn remedy(&self, place: &Place, url: &str) -> String {
        match self {
            Self::Reach(finding) => finding.remedy(place),
            Self::Listing(finding) => finding.remedy(place, url),
            Self::Trust(finding) => finding.remedy(place),
            Self::Transfer(finding) => finding.remedy(),
            Self::Upkeep(finding) => finding.remedy(),
        }
    }
}

/// The cache cannot be asked, or what answers is none.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Reach {
    /// The name stands for no address.
    #[error("the name {host} does not resolve: {reason}")]
    NameUnknown { host: String, reason: String },
    /// Nobody listens.
    #[error("nothing listens on port {port} of {host}: the connection is refused")]
    PortClosed { host: String, port: u16 },
    /// Nothing came back in time, or there is no way there.
    #[error("{host} does not answer on port {port}: {reason}")]
    NoAnswer { host: String, port: u16, reason: String },
    /// The connection broke, or what came is not HTTP.
    #[error("{host} takes the connection on port {port} and gives no HTTP answer: {reason}")]
    NotHttp { host: String, port: u16, reason: String },
    /// An `https` URL of a port that speaks plain HTTP.
    #[error("{host} does not speak TLS on port {port}, and the URL says https")]
    NotTls { host: String, port: u16 },
    /// An `http` URL of a port that wants TLS.
    #[error("{host} speaks TLS on port {port}, and the URL says http")]
    WantsTls { host: String, port: u16 },
    /// The client cannot trust the certificate.
    #[error("the TLS certificate of {host} is not accepted: {reason}")]
    Certificate {
        host: String,
        port: u16,
        #[serde(flatten)]
        reason: CertificateReason,
        authorities: Option<String>,
    },
    /// A login is asked for.
    #[error("the cache does not let this client in: it answers {status}")]
    Denied { status: u16 },
    /// Something else answers there.
    #[error("{address} is not a binary cache: {reason}")]
    NotACache { address: String, reason: String },
    /// The cache is of another store directory.
    #[error("the cache is for stores in {cache}, and this client's is in {client}")]
    StoreDir { cache: String, client: String },
    /// `Priority` is no number.
    #[error("the cache's nix-cache-info has the priority “{text}”, which is not a number: clients abort")]
    BadPriority { text: String },
    /// The clocks differ.
    #[error("the clock of the cache is {} {} this machine's", duration(*seconds), direction(*ahead))]
    ClockSkew { seconds: u64, ahead: bool },
}

/// Why a certificate is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum CertificateReason {
    /// No authority that the client trusts issued it, as far as the chain that was sent says.
    #[error("no authority that this client trusts issued it")]
    Authority,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYetValid,
    /// It is another name's.
    #[error("it is not for this name")]
    Name,
    /// Whatever else.
    #[error("{text}")]
    Other { text: String },
}

impl Reach {
    fn remedy(&self, place: &Place) -> String {
        match self {
            Self::NameUnknown { .. } => {
                "correct the name in the URL, or add it to the DNS, or to /etc/hosts".into()
            }
            Self::PortClosed { port, .. } => format!(
                "on the server: is it running (systemctl status harmonia)? `bind` in its settings must be \
                 \"[::]:{port}\"; 127.0.0.1 serves the server alone"
            ),
            Self::NoAnswer { port, .. } => format!(
                "a firewall may drop it: open TCP port {port} on the server; is the address the server's?"
            ),
            Self::NotHttp { .. } => {
                "is the port the cache's? Look at the server's log, and at proxies between".into()
            }
            Self::NotTls { .. } => {
                "write http:// in the URL, or set tls_cert_path and tls_key_path on the server".into()
            }
            Self::WantsTls { .. } => "write https:// in the URL".into(),
            Self::Certificate { host, port, reason, authorities } => {
                certificate_remedy(reason, authorities.as_deref(), &address(host, *port), place)
            }
            Self::Denied { .. } => {
                "put login and password for this host into the file that `netrc-file` names \
                 (/etc/nix/netrc: machine HOST login NAME password WORD); the doctor itself does not read it"
                    .into()
            }
            Self::NotACache { .. } => {
                "correct host, port and path of the URL: /nix-cache-info below it must \
                 have a StoreDir"
                    .into()
            }
            Self::StoreDir { client, .. } => format!(
                "in the server's settings: virtual_nix_store = {client:?}; or use a cache that is for {client}"
            ),
            Self::BadPriority { .. } => "in the server's settings: priority = 30".into(),
            Self::ClockSkew { .. } => "set the clock that is wrong: timedatectl set-ntp true, or on a Mac \
                 systemsetup -setusingnetworktime on"
                .into(),
        }
    }
}

fn certificate_remedy(
    reason: &CertificateReason,
    authorities: Option<&str>,
    address: &str,
    place: &Place,
) -> String {
    // Older Nixes know the variable alone.
    let named = || {
        let line = place.line("ssl-cert-file", "/path/to/authorities.pem");
        format!("{line}; or by NIX_SSL_CERT_FILE in the daemon's environment, which every Nix knows")
    };
    match (reason, authorities) {
        (CertificateReason::Authority, Some(file)) => format!(
            "on the server, tls_cert_path must hold the whole chain (fullchain.pem); an authority or a certificate of your \
             own must be in this client's {file}, or in the file that is set {}",
            named()
        ),
        (CertificateReason::Authority, None) => format!(
            "this machine has no file of authorities: install ca-certificates, or name one {}",
            named()
        ),
        (CertificateReason::Expired, _) => {
            "renew it: the server reads tls_cert_path again by itself. Is this machine's clock right?".into()
        }
        (CertificateReason::NotYetValid, _) => "is this machine's clock right?".into(),
        (CertificateReason::Name, _) => {
            "use a URL with a name that the certificate has, or issue one for this name".into()
        }
        (CertificateReason::Other { .. }, _) => {
            format!("look at it: openssl s_client -connect {address} -showcerts")
        }
    }
}

/// The client's settings do not let it ask the cache, or not first.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Listing {
    /// The cache is no substituter.
    #[error("the cache is not among this client's substituters{}", alike_one(alike.as_deref()))]
    NotListed { alike: Option<String> },
    /// The cache is named by a user whom the daemon does not trust.
    #[error(
        "the Nix daemon does not trust the user {user}, and ignores the substituters of {user}'s own settings"
    )]
    NotAllowed { user: String },
    /// Nix stops at its own settings.
    #[error("Nix itself refuses its settings, and does nothing until they are right: {message}")]
    Refused { message: String },
    /// `substitute = false`
    #[error("this client fetches nothing: substitute = false")]
    SubstituteOff,
    /// Another cache is asked first.
    #[error("{other} is asked before this cache: its priority is {theirs} ({known}), this one's {ours}")]
    Priority { other: String, theirs: i64, known: &'static str, ours: i64 },
    /// A word in `trusted-public-keys` that is no key.
    #[error("trusted-public-keys has “{name}”, which is not a key ({reason}): Nix refuses to work with it")]
    BadTrustedKey { name: String, reason: String },
}

impl Listing {
    fn remedy(&self, place: &Place, url: &str) -> String {
        match self {
            Self::NotListed { .. } => place.line("extra-substituters", url),
            Self::NotAllowed { user } => {
                format!(
                    "{}; or, for all settings: {}",
                    place.line("extra-trusted-substituters", url),
                    place.line("extra-trusted-users", user)
                )
            }
            Self::Refused { .. } => {
                "correct what it names; what is said here of settings is read from the files without it"
                    .into()
            }
            Self::SubstituteOff => place.line("substitute", "true"),
            Self::Priority { theirs, .. } => {
                let lower = theirs.saturating_sub(10).max(0);
                let line = place.line("extra-substituters", &format!("{url}?priority={lower}"));
                format!(
                    "the lowest comes first. In the server's settings: priority = {lower} (a client remembers \
                     the old number for up to 7 days); or {line}"
                )
            }
            Self::BadTrustedKey { name, .. } => {
                format!(
                    "write it as the server gives it, “name:base64” of 32 bytes: {}",
                    place.line("extra-trusted-public-keys", &format!("{name}:…"))
                )
            }
        }
    }
}

/// The client does not take what the cache signs. Keys are as clients list them, `name:base64`.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Trust {
    /// The key's name is none of those trusted.
    #[error(
        "the key that signs is not among the trusted keys\n  the cache signs with  {}\n  this client trusts    \
         {}",
        listed(cache),
        listed(client)
    )]
    KeyNotTrusted { cache: Vec<String>, client: Vec<String>, ignored: bool },
    /// The same key under another name.
    #[error(
        "the key that signs is trusted under another name, and Nix looks keys up by name\n  the cache signs as  \
         {signed_as}\n  this client trusts  {client}"
    )]
    KeyName { signed_as: String, cache: String, client: String },
    /// Another key under the same name.
    #[error(
        "the key that signs has the name of a trusted one and is another key\n  the cache signs with  {}\n  \
         this client trusts    {client}",
        key_or_not(cache.as_deref())
    )]
    KeyBytes { name: String, cache: Option<String>, client: String },
    /// No signature at all.
    #[error("{path} is not signed, and this client takes only what is")]
    Unsigned { path: String },
    /// A signature of the right key that is not one of this content.
    #[error(
        "the signature of {path} by {name} does not verify, and the key is right: the narinfo was changed"
    )]
    BadSignature { path: String, name: String },
    /// The server's settings name a key that does not sign.
    #[error("the running server does not sign with {key}, which its settings name")]
    KeyNotInUse { key: String },
    /// A narinfo that clients cannot read.
    #[error("the narinfo of {path} cannot be read: {reason}")]
    BadNarInfo { path: String, reason: String },
}

impl Trust {
    fn remedy(&self, place: &Place) -> String {
        match self {
            Self::KeyNotTrusted { cache, ignored: false, .. } => {
                place.line("extra-trusted-public-keys", &cache.join(" "))
            }
            Self::KeyNotTrusted { cache, ignored: true, .. } => format!(
                "the key is only in the user's own settings, which the daemon ignores: {}",
                place.line("extra-trusted-public-keys", &cache.join(" "))
            ),
            Self::KeyName { cache, client, .. } => {
                format!("{} in place of {client}", place.line("extra-trusted-public-keys", cache))
            }
            Self::KeyBytes { name, cache, client } => {
                let key = cache.clone().unwrap_or_else(|| format!("{name}:…"));
                let ask = if cache.is_some() {
                    ""
                } else {
                    " (`harmonia keys public FILE` on the server prints it)"
                };
                format!("{} in place of {client}{ask}", place.line("extra-trusted-public-keys", &key))
            }
            Self::Unsigned { .. } => {
                "in the server's settings: sign_key_paths = [\"/path/to/cache.secret\"]; \
                 `harmonia keys generate NAME` makes one"
                    .into()
            }
            Self::BadSignature { .. } => {
                "what stands between this client and the server, a proxy or a copy, changes \
                 what the server says: ask the server itself"
                    .into()
            }
            Self::KeyNotInUse { .. } => "harmonia reload, or send the server SIGHUP; its log says why a key \
                 cannot be used"
                .into(),
            Self::BadNarInfo { .. } => {
                "clients stop at it: ask the server itself, past all proxies; is it of a program \
                 that is up to date?"
                    .into()
            }
        }
    }
}

/// What is fetched does not come as it should.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Transfer {
    /// The path that was named is not there.
    #[error("the cache does not have {path}")]
    PathAbsent { path: String },
    /// An answer that is an error.
    #[error("the cache answers {status} for {target}")]
    BadAnswer { target: String, status: u16 },
    /// The answer is compressed on its way.
    #[error("a NAR is sent with “Content-Encoding: {encoding}”: a download that is cut begins anew")]
    Encoded { encoding: String },
    /// Ranges are not taken.
    #[error("a download that is cut cannot be resumed: {reason}")]
    NotResumable { reason: String },
    /// Slower than [`crate::limits::DOCTOR_SLOW`].
    #[error("the download is slow: {} came in {}", size(*received), millis(*milliseconds))]
    Slow { received: u64, milliseconds: u64 },
    /// The connection ended before the NAR did.
    #[error("the download of {path} was cut after {}{}: {reason}", size(*received), of(*expected))]
    Cut { path: String, received: u64, expected: Option<u64>, reason: String },
    /// The bytes are not those that the narinfo says.
    #[error(
        "the {what} of {path} is not what its narinfo says\n  the narinfo says  {expected}\n  what came has     \
         {found}"
    )]
    WrongBytes { path: String, what: &'static str, expected: String, found: String },
}

impl Transfer {
    fn remedy(&self) -> String {
        match self {
            Self::PathAbsent { .. } => {
                "it is not valid on the server (nix-store --check-validity there), or \
                 was built from another input, which gives another path"
                    .into()
            }
            Self::BadAnswer { .. } => "the server's log says why".into(),
            Self::Encoded { .. } => {
                "switch off compression of answers in the proxy before the server (nginx: gzip off; Caddy: no \
                 encode), or `transport_compression` in the server's own settings; compress with \
                 `compression = \"zstd\"` there"
                    .into()
            }
            Self::NotResumable { .. } => {
                "a proxy before the server must pass Range and Accept-Ranges on; where \
                 there is none, the server itself cannot: use one that can"
                    .into()
            }
            Self::Slow { .. } => "look at the network and proxies between; compare with the doctor on the \
                 server. On a slow link, compression = \"zstd\" in the server's settings sends a third"
                .into(),
            Self::Cut { .. } => {
                "the server's log says whether it ended it (“a NAR broke off”: a damaged store: \
                 nix-store --verify --check-contents); if not, a proxy's limit on time or size did"
                    .into()
            }
            Self::WrongBytes { .. } => {
                "if the doctor finds it on the server too, its store is damaged: nix-store \
                 --verify --check-contents --repair there; else what stands between changes it"
                    .into()
            }
        }
    }
}

/// The server cannot do what its settings say.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Upkeep {
    /// No cache can be where it is to be.
    #[error("nothing can be kept in the cache_dir {dir}: {reason}")]
    CacheDir { dir: String, reason: String },
}

impl Upkeep {
    fn remedy(&self) -> String {
        match self {
            Self::CacheDir { .. } => {
                "in the server's settings: cache_dir = a folder that the server may write to, or cache_max_size = 0 where \
                 nothing is to be kept"
                    .into()
            }
        }
    }
}

/// Host and port as they stand in a URL.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn alike_one(url: Option<&str>) -> String {
    url.map_or(String::new(), |url| format!(" ({url} is)"))
}

fn of(expected: Option<u64>) -> String {
    expected.map_or(String::new(), |all| format!(" of {}", size(all)))
}

fn key_or_not(key: Option<&str>) -> &str {
    key.unwrap_or("(another key of this name, or the narinfo was changed: the cache does not show its keys)")
}

fn listed(keys: &[String]) -> String {
    if keys.is_empty() { "no key".to_owned() } else { keys.join("\n                        ") }
}

/// Milliseconds as people read them.
pub fn millis(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} ms"),
        _ => format!("{:.1} s", Duration::from_millis(count).as_secs_f64()),
    }
}

fn direction(ahead: bool) -> &'static str {
    if ahead { "ahead of" } else { "behind" }
}

/// Seconds in the largest unit that says something.
fn duration(seconds: u64) -> String {
    match seconds {
        0..600 => format!("{seconds} s"),
        600..172_800 => format!("{} min", seconds / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}
