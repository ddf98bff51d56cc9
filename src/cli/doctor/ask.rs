//! Asking a cache over HTTP, and what is said of a cache that cannot be asked.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::CertificateError;
use ureq::config::AutoHeaderValue;
use ureq::http::{HeaderMap, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::certificate;
use super::client;
use super::finding::{CertificateReason, Reach};
use crate::limits;

/// Why a URL cannot be asked at all.
#[derive(Debug, thiserror::Error)]
#[error("“{0}” is not the URL of a cache: it must be http://HOST:PORT or https://HOST:PORT")]
pub struct NoUrl(String);

/// A cache, and what asks it.
pub struct Cache {
    /// Its URL without parameters and without a slash at the end.
    pub url: String,
    host: String,
    port: u16,
    is_secure: bool,
    /// The file of the authorities that the client trusts.
    authorities: Option<PathBuf>,
    patience: Duration,
    /// Whether it is told that these are looks, which are not to count as a client's asking.
    is_own: bool,
    /// The text of `authorities`.
    roots: Vec<u8>,
    agent: RefCell<Agent>,
}

/// An answer of the cache; its body is still to come.
pub struct Reply {
    /// The status code.
    pub status: u16,
    headers: HeaderMap,
    /// The body.
    pub body: Body,
}

impl Reply {
    /// A header's value, if it is there and text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text, cut where it is longer than any that a cache has to send.
    pub fn text(mut self) -> io::Result<String> {
        let mut text = Vec::new();
        let mut reader = io::Read::take(self.body.as_reader(), limits::DOCTOR_TEXT_BYTES);
        io::Read::read_to_end(&mut reader, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Cache {
    /// A cache that is asked with `patience` for each answer. Certificates are checked with the file of the Nix
    /// client, since it is the client that must trust them.
    ///
    /// # Errors
    /// A text that is no `http` or `https` URL.
    pub fn new(url: &str, authorities: Option<&Path>, patience: Duration) -> Result<Self, NoUrl> {
        let bare = client::bare(url);
        let parsed: Uri = bare.parse().map_err(|_| NoUrl(url.to_owned()))?;
        let is_secure = match parsed.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(NoUrl(url.to_owned())),
        };
        let host = parsed.host().filter(|host| !host.is_empty()).ok_or_else(|| NoUrl(url.to_owned()))?;
        let roots = authorities.and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: parsed.port_u16().unwrap_or(if is_secure { 443 } else { 80 }),
            is_secure,
            authorities: authorities.map(Path::to_owned),
            patience,
            is_own: false,
            agent: RefCell::new(agent(tls(&roots, true), patience)),
            roots,
            url: bare,
        })
    }

    /// The same cache, known to be the Harmonia of this machine: it does not keep a path (`keep_served`) that a look asks
    /// for.
    pub fn of_this_machine(self) -> Self {
        Self { is_own: true, ..self }
    }

    /// Whether this machine finds the name. A proxy would look it up itself.
    ///
    /// # Errors
    /// Where it does not.
    pub fn resolve(&self) -> Result<(), Reach> {
        let agent = self.agent.borrow();
        let proxy = agent.config().proxy();
        if proxy.is_some_and(|proxy| self.url.parse().is_ok_and(|url| !proxy.is_no_proxy(&url))) {
            return Ok(());
        }
        let unknown = |reason: String| Reach::NameUnknown { host: self.host.clone(), reason };
        match (&*self.host, self.port).to_socket_addrs().map(|mut found| found.next()) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(unknown("it has no address".to_owned())),
            Err(error) => Err(unknown(error.to_string())),
        }
    }

    /// The answer to a GET of what is below the cache's URL. Errors that HTTP has a status for are answers.
    ///
    /// # Errors
    /// Where there is no answer.
    pub fn get(&self, target: &str, headers: &[(&str, &str)]) -> Result<Reply, Reach> {
        let mark = match (self.is_own, target.contains('?')) {
            (false, _) => "",
            (true, false) => "?look",
            (true, true) => "&look",
        };
        let call = || {
            let request = self.agent.borrow().get(format!("{}/{target}{mark}", self.url));
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).call()
        };
        let answer = match call() {
            Err(error) if tls_error(&error).is_some_and(certificate::is_of_authority) => {
                self.trust_itself()?;
                call()
            }
            answer => answer,
        };
        let (parts, body) = answer.map_err(|error| self.trouble(error))?.into_parts();
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// From now on takes the certificate that is an authority's, if the client does.
    fn trust_itself(&self) -> Result<(), Reach> {
        let looked = certificate::is_itself_trusted(&self.host, self.port, &self.roots, self.patience);
        looked.map_err(|error| self.trouble(ureq::Error::Io(error)))?;
        // That it is the one has been seen; an agent cannot be told to take this one alone. Nothing is told to it that others
        // may not know.
        *self.agent.borrow_mut() = agent(tls(&[], false), self.patience);
        Ok(())
    }

    fn trouble(&self, error: ureq::Error) -> Reach {
        let (host, port) = (self.host.clone(), self.port);
        let late = || format!("nothing came within {} s", self.patience.as_secs());
        if let Some(error) = tls_error(&error) {
            return self.refused_by_tls(error);
        }
        match error {
            ureq::Error::HostNotFound => Reach::NameUnknown { host, reason: "it has no address".to_owned() },
            ureq::Error::Timeout(_) => Reach::NoAnswer { host, port, reason: late() },
            ureq::Error::Io(error) => match error.kind() {
                ErrorKind::ConnectionRefused => Reach::PortClosed { host, port },
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Reach::NoAnswer { host, port, reason: late() },
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                    Reach::NoAnswer { host, port, reason: error.to_string() }
                }
                _ => self.no_http(error.to_string()),
            },
            error => self.no_http(error.to_string()),
        }
    }

    /// What does not answer a plain request may want TLS.
    fn no_http(&self, reason: String) -> Reach {
        self.wants_tls().unwrap_or_else(|| Reach::NotHttp {
            host: self.host.clone(),
            port: self.port,
            reason,
        })
    }

    /// The finding that it speaks TLS, where the URL says http and that is so: it is tried.
    pub fn wants_tls(&self) -> Option<Reach> {
        if self.is_secure {
            return None;
        }
        // Whoever it is: nothing is told to it, and nothing it says is believed.
        let agent = agent(tls(&[], false), self.patience);
        let secure = self.url.replacen("http", "https", 1);
        agent.get(format!("{secure}/nix-cache-info")).call().ok()?;
        Some(Reach::WantsTls { host: self.host.clone(), port: self.port })
    }

    fn refused_by_tls(&self, error: &rustls::Error) -> Reach {
        let (host, port) = (self.host.clone(), self.port);
        let reason = match error {
            rustls::Error::InvalidMessage(_) => return Reach::NotTls { host, port },
            rustls::Error::InvalidCertificate(error) => reason(error),
            error => return Reach::NotHttp { host, port, reason: error.to_string() },
        };
        let authorities = self.authorities.as_ref().map(|file| file.display().to_string());
        Reach::Certificate { host, port, reason, authorities }
    }
}

/// What TLS had against it, if it was that.
fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn reason(error: &CertificateError) -> CertificateReason {
    match error {
        CertificateError::UnknownIssuer => CertificateReason::Authority,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateReason::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            CertificateReason::NotYetValid
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateReason::Name
        }
        // The wrapping is for programmers.
        CertificateError::Other(cause) => CertificateReason::Other { text: cause.0.to_string() },
        error => CertificateReason::Other { text: error.to_string() },
    }
}

/// TLS as the server speaks it too; `pem` is the text of the authorities that are trusted.
fn tls(pem: &[u8], is_verified: bool) -> TlsConfig {
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .root_certs(RootCerts::from(ureq::tls::parse_pem(pem).filter_map(certificate)))
        .disable_verification(!is_verified)
        .build()
}

fn agent(tls: TlsConfig, patience: Duration) -> Agent {
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .user_agent(concat!("harmonia-doctor/", env!("CARGO_PKG_VERSION")))
        .accept_encoding(AutoHeaderValue::None)
        .timeout_connect(Some(patience))
        .timeout_recv_response(Some(patience))
        .timeout_per_read(Some(patience))
        .build()
        .new_agent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_and_port() {
        let of = |url: &str| {
            let cache = Cache::new(url, None, Duration::from_secs(1)).ok()?;
            Some((cache.url, cache.host, cache.port))
        };
        let some = |url: &str, host: &str, port| Some((url.to_owned(), host.to_owned(), port));
        assert_eq!(of("http://Cache.example/?priority=3"), some("http://cache.example", "cache.example", 80));
        assert_eq!(of("https://cache.example/nix/"), some("https://cache.example/nix", "cache.example", 443));
        assert_eq!(of("http://[::1]:5000"), some("http://[::1]:5000", "::1", 5000));
        for wrong in ["", "cache.example", "ftp://cache.example", "http://", "http:// x", "file:///nix"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn certificates_are_refused_for_a_reason() {
        assert_eq!(reason(&CertificateError::UnknownIssuer), CertificateReason::Authority);
        assert_eq!(reason(&CertificateError::NotValidYet), CertificateReason::NotYetValid);
        let other = reason(&CertificateError::Revoked);
        assert!(matches!(other, CertificateReason::Other { .. }) && !other.to_string().is_empty());
    }
}
