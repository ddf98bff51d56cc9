//! A client for commands that ask the server of this machine: plain HTTP, one request after another.
//!
//! ureq, which the doctor asks with, could do it too. For unix sockets it must be given a transport, whose interface it says
//! it may change in any version; with that, the client would be as long as this one.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Bind, Config};
use crate::limits::ANSWER_TIME;

/// How long a connection may take to be made. It is to this machine.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// The longest body that is read, in bytes: many times what the metrics come to.
const BODY_MAX: u64 = 16 << 20;

/// Where a server can be asked.
#[derive(Clone, Debug)]
pub enum Place {
    /// By TCP, unencrypted.
    Tcp {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl Place {
    /// Where the server of these settings can be asked, if it listens anywhere unencrypted.
    pub fn of(config: &Config) -> Option<Self> {
        let unix = config.bind.iter().find_map(|bind| match bind {
            Bind::Unix(path) => Some(Self::Unix(path.clone())),
            Bind::Tcp { .. } => None,
        });
        let is_encrypted = config.tls.is_some();
        let tcp = config.bind.iter().filter(|_| !is_encrypted).find_map(|bind| match bind {
            Bind::Tcp { host, port } => {
                // What stands for every address is reached by this machine's own.
                let is_any = matches!(host.as_str(), "::" | "0.0.0.0");
                let host = if is_any { "localhost".to_owned() } else { host.clone() };
                Some(Self::Tcp { host, port: *port })
            }
            Bind::Unix(_) => None,
        });
        unix.or(tcp)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection to a server.
pub struct Client {
    stream: BufReader<Box<dyn Wire>>,
}

/// What both kinds of socket can do.
trait Wire: Read + Write + Send {}

impl Wire for TcpStream {}
impl Wire for UnixStream {}

/// What comes before a body.
struct Head {
    status: u16,
    length: Option<u64>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(place: &Place) -> io::Result<Self> {
        // Longer than the server lets anybody wait.
        let patience = Some(ANSWER_TIME + CONNECT_TIME);
        let wire: Box<dyn Wire> = match place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(patience)?;
                Box::new(stream)
            }
            Place::Tcp { host, port } => {
                let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
                let mut addresses = (host.as_str(), *port).to_socket_addrs()?;
                let stream = addresses.find_map(|address| {
                    TcpStream::connect_timeout(&address, CONNECT_TIME).map_err(|error| failure = error).ok()
                });
                let stream = stream.ok_or(failure)?;
                stream.set_read_timeout(patience)?;
                Box::new(stream)
            }
        };
        Ok(Self { stream: BufReader::new(wire) })
    }

    /// The status of a HEAD, and the length that it tells.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no HTTP.
    pub fn head(&mut self, target: &str) -> io::Result<(u16, Option<u64>)> {
        let Head { status, length } = self.ask("HEAD", target)?;
        Ok((status, length))
    }

    /// The status and the body of a GET whose length is told.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no HTTP.
    pub fn get(&mut self, target: &str) -> io::Result<(u16, String)> {
        let Head { status, length } = self.ask("GET", target)?;
        let length = length.filter(|length| *length <= BODY_MAX).ok_or(io::ErrorKind::InvalidData)?;
        let mut body = Vec::new();
        (&mut self.stream).take(length).read_to_end(&mut body)?;
        if body.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    fn ask(&mut self, method: &str, target: &str) -> io::Result<Head> {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut head = Head { status: status.ok_or(io::ErrorKind::InvalidData)?, length: None };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { return Ok(head) };
            if name.eq_ignore_ascii_case("content-length") {
                head.length = value.trim().parse().ok();
            }
        }
    }

    /// One line, without its end.
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        // The head of a server of ours is shorter by far.
        (&mut self.stream).take(4096).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}
