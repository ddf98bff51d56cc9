//! What settings are, once they are read.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// TCP. `::` takes IPv4 connections as well.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port; 0 lets the system choose one.
        port: u16,
    },
    /// The absolute path of a unix socket.
    Unix(PathBuf),
}

impl Bind {
    /// Reads `host:port`, `[address]:port`, `unix:/path` or `unix:///path`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
        let host = match host.strip_prefix('[') {
            Some(bracketed) => {
                let address = bracketed.strip_suffix(']')?;
                address.parse::<std::net::Ipv6Addr>().ok()?;
                address
            }
            // Without brackets, nobody could tell the port of an IPv6 address from its last part.
            None => Some(host).filter(|host| !host.is_empty() && !host.contains([':', '/', ' ', ']']))?,
        };
        Some(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whose a file is: names, or numbers as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: Option<String>,
    /// The group.
    pub group: Option<String>,
}

impl Owner {
    /// Reads `user:group`, `user` or `:group`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let named = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
        let is_name = |name: &str| !name.contains(|char: char| char.is_whitespace() || char == ':');
        let owner = Self { user: named(user), group: group.and_then(named) };
        (is_name(user) && group.is_none_or(is_name) && owner != Self { user: None, group: None })
            .then_some(owner)
    }
}

/// The files that TLS needs; both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain of certificates, the server's own first.
    pub certificate: PathBuf,
    /// The key of the server's own.
    pub key: PathBuf,
}

/// Where what is made of NARs is kept, to be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The folder.
    pub dir: PathBuf,
    /// How much it may hold, in bytes.
    pub max_size: u64,
}

/// How NARs are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// What narinfos offer; `None` for NARs as they are.
    pub format: Option<Format>,
    /// The level, as the format counts them; of zstd where NARs are offered as they are.
    pub level: i32,
    /// How many threads compress; `None` for one a core.
    pub threads: Option<NonZeroUsize>,
    /// What becomes of a NAR that has not been compressed yet.
    pub cold: Cold,
    /// What is compressed before anybody asks.
    pub precompress: Precompress,
    /// NARs that are asked for as they are, are encoded on the way for clients that take that.
    pub in_transport: bool,
}

/// A format of compressed NARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// zstd
    Zstd,
    /// xz
    Xz,
}

/// How a NAR is offered that has not been compressed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cold {
    /// Compressed: it is sent as it is made.
    Stream,
    /// As it is, and compressed behind for whoever comes next.
    Identity,
}

/// How answered requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLog {
    /// The form of a line.
    pub form: LineForm,
    /// Whether a line has the client's user agent.
    pub agents: bool,
}

/// The form of a line about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineForm {
    /// Words.
    Text,
    /// A JSON object.
    Json,
}

/// What is compressed before anybody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precompress {
    /// Nothing.
    Nothing,
    /// Paths that are registered while the server runs.
    Recent,
}
