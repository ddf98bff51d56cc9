//! The cache that load is put on: its address, and the requests written to it.

use std::net::{SocketAddr, ToSocketAddrs as _};

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Only plain HTTP is spoken.
    #[error("{0}: only http:// is spoken here; to measure a server behind TLS, ask its plain port")]
    Scheme(String),
    /// There is no host in it, or its port is no number.
    #[error("{0}: not of the form http://HOST[:PORT][/PREFIX]")]
    Form(String),
    /// The host's name is not known.
    #[error("cannot find {host}: {source}")]
    Resolve { host: String, source: std::io::Error },
}

/// A binary cache reached over plain HTTP.
#[derive(Debug, Clone)]
pub struct Target {
    pub address: SocketAddr,
    /// As in the `Host` field.
    authority: String,
    /// Before every path: empty, or `/…` without a slash at its end.
    prefix: String,
}

impl Target {
    /// Parses `http://HOST[:PORT][/PREFIX]` and finds the host; its first address is taken, IPv4 before IPv6, as
    /// a server on `localhost` often listens on IPv4 alone.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let Some(rest) = url.strip_prefix("http://") else {
            return Err(TargetError::Scheme(url.to_owned()));
        };
        let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let bad = || TargetError::Form(url.to_owned());
        if authority.is_empty() || prefix.contains(['?', '#', ' ']) || authority.contains('@') {
            return Err(bad());
        }
        let bracket = authority.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match authority[bracket..].rfind(':') {
            Some(at) => {
                let (host, port) = authority.split_at(bracket + at);
                (host, port[1..].parse().map_err(|_| bad())?)
            }
            None => (authority, 80),
        };
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let resolved = (name, port).to_socket_addrs();
        let mut found: Vec<SocketAddr> =
            resolved.map_err(|source| TargetError::Resolve { host: host.to_owned(), source })?.collect();
        found.sort_by_key(SocketAddr::is_ipv6);
        let address = *found.first().ok_or_else(bad)?;
        Ok(Self { address, authority: authority.to_owned(), prefix: prefix.trim_end_matches('/').to_owned() })
    }

    /// A GET of a path that is relative to the cache (`nix-cache-info`, `nar/….nar`).
    pub fn get(&self, path: &str, from: Option<u64>, close: bool) -> Vec<u8> {
        let mut request = Vec::with_capacity(160 + path.len());
        for part in ["GET ", &self.prefix, "/", path, " HTTP/1.1\r\nHost: ", &self.authority] {
            request.extend_from_slice(part.as_bytes());
        }
        request.extend_from_slice(b"\r\nUser-Agent: loadtest\r\nAccept: */*\r\n");
        if let Some(from) = from {
            request.extend_from_slice(format!("Range: bytes={from}-\r\n").as_bytes());
        }
        if close {
            request.extend_from_slice(b"Connection: close\r\n");
        }
        request.extend_from_slice(b"\r\n");
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let target = Target::parse("http://127.0.0.1:5000/cache/").unwrap();
        assert_eq!(target.address.to_string(), "127.0.0.1:5000");
        let request = String::from_utf8(target.get("nix-cache-info", Some(7), true)).unwrap();
        assert!(
            request.starts_with("GET /cache/nix-cache-info HTTP/1.1\r\nHost: 127.0.0.1:5000\r\n"),
            "{request}"
        );
        assert!(request.contains("\r\nRange: bytes=7-\r\nConnection: close\r\n\r\n"), "{request}");
        assert_eq!(Target::parse("http://[::1]:81").unwrap().address.to_string(), "[::1]:81");
        assert_eq!(Target::parse("http://[::1]").unwrap().address.to_string(), "[::1]:80");
    }

    #[test]
    fn other_urls_are_refused() {
        assert!(matches!(Target::parse("https://a"), Err(TargetError::Scheme(_))));
        for url in ["http://", "http://a:b", "http://u@a", "http://a/?x"] {
            assert!(matches!(Target::parse(url), Err(TargetError::Form(_))), "{url}");
        }
    }
}
