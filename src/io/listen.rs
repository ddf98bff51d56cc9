//! Listening sockets: TCP and unix.

use std::fmt;
use std::io::{self, ErrorKind, Result};
use std::net::SocketAddr;
#[cfg(not(target_vendor = "apple"))]
use std::os::fd::FromRawFd;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockAddr, Type};

use super::socket::Socket;
use super::tls::Tls;
use crate::limits;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IPv4 or IPv6 address and a port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl Address {
    /// As a client writes it.
    pub fn url(&self, is_encrypted: bool) -> String {
        match self {
            Self::Tcp(address) if is_encrypted => format!("https://{address}"),
            Self::Tcp(address) => format!("http://{address}"),
            Self::Unix(_) => self.to_string(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who may connect to a unix socket, by the rights of its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// The file's mode; `None` leaves what the process's umask makes of it.
    pub mode: Option<u32>,
    /// Its owner.
    pub user: Option<u32>,
    /// Its group.
    pub group: Option<u32>,
}

/// A listening socket. The file of a unix socket that it made is removed with it.
pub struct Listener {
    socket: Kind,
    address: Address,
    /// Who started the process made it, and listens on when this process ends.
    is_inherited: bool,
}

/// A descriptor that was inherited, and is not what it was given as.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// What announces descriptors makes no sense.
    #[error("{ANNOUNCED_BY}: {0}")]
    Announced(io::Error),
    /// There is no such descriptor, or it cannot be used.
    #[error("descriptor {number} ({name}) of socket activation: {source}")]
    Unusable {
        /// The descriptor.
        number: i32,
        /// Its name, `FileDescriptorName=` of the socket unit.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A socket that no connection can be accepted from.
    #[error(
        "descriptor {number} ({name}) of socket activation is no listening stream socket: the socket unit needs \
         ListenStream=, and Accept=no"
    )]
    NotListening {
        /// The descriptor.
        number: i32,
        /// Its name.
        name: String,
    },
}

enum Kind {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

impl Listener {
    /// Listens at `address`. `[::]` takes IPv4 connections as well. A unix socket that nobody listens on
    /// any more is replaced, a live one is not; its file gets these rights before anybody can connect.
    ///
    /// # Errors
    /// As the system says: `AddrInUse` when somebody listens there already.
    pub fn bind(address: &Address, rights: &Rights) -> Result<Self> {
        match address {
            Address::Tcp(address) => Self::bind_tcp(*address),
            Address::Unix(path) => Self::bind_unix(path, rights),
        }
    }

    /// The sockets that the service manager opened, as systemd does for socket units (`$LISTEN_FDS`) and launchd for
    /// the sockets of a job, each with its name; none where it opened none. To be called once, before anything else
    /// opens descriptors by number.
    ///
    /// # Errors
    /// When what was announced is not there, or is no listening stream socket.
    pub fn inherited() -> std::result::Result<Vec<(Self, String)>, InheritError> {
        let announced = announced().map_err(InheritError::Announced)?;
        announced.into_iter().map(|(socket, name)| Ok((Self::inherit(socket, &name)?, name))).collect()
    }

    fn inherit(socket: OwnedFd, name: &str) -> std::result::Result<Self, InheritError> {
        let number = socket.as_raw_fd();
        let unusable = |source| InheritError::Unusable { number, name: name.to_owned(), source };
        let socket = socket2::Socket::from(socket);
        let is_stream = socket.r#type().map_err(unusable)? == Type::STREAM;
        if !is_stream || !is_listener(&socket).map_err(unusable)? {
            return Err(InheritError::NotListening { number, name: name.to_owned() });
        }
        socket.set_nonblocking(true).map_err(unusable)?;
        let bound = socket.local_addr().map_err(unusable)?;
        let (socket, address) = match bound.as_socket() {
            Some(address) => {
                (Kind::Tcp(mio::net::TcpListener::from_std(socket.into())), Address::Tcp(address))
            }
            None => {
                // A name in Linux's abstract space has no path.
                let path = bound.as_pathname().unwrap_or(Path::new("(abstract)")).to_owned();
                let listener = OwnedFd::from(socket).into();
                (Kind::Unix(mio::net::UnixListener::from_std(listener)), Address::Unix(path))
            }
        };
        Ok(Self { socket, address, is_inherited: true })
    }

    fn bind_tcp(address: SocketAddr) -> Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A server that restarts must not wait for its old connections to be forgotten.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&SockAddr::from(address))?;
        socket.listen(limits::BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener = mio::net::TcpListener::from_std(socket.into());
        let address = Address::Tcp(listener.local_addr()?);
        Ok(Self { socket: Kind::Tcp(listener), address, is_inherited: false })
    }

    fn bind_unix(path: &Path, rights: &Rights) -> Result<Self> {
        remove_stale(path)?;
        let listener = if *rights == Rights::default() {
            listen_unix(path)?
        } else {
            // Under another name until the rights are right: who is quick must not come in by the umask's.
            let making = beside(path);
            let _ = std::fs::remove_file(&making);
            let listener = listen_unix(&making)?;
            let placed = rights.give(&making).and_then(|()| std::fs::rename(&making, path));
            if let Err(error) = placed {
                let _ = std::fs::remove_file(&making);
                return Err(error);
            }
            listener
        };
        let address = Address::Unix(path.to_owned());
        Ok(Self { socket: Kind::Unix(listener), address, is_inherited: false })
    }

    /// Where it listens; with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Takes the next connection, made non-blocking; encrypted with `tls` if it came by TCP.
    ///
    /// # Errors
    /// `WouldBlock` when none waits; otherwise as `accept`.
    pub fn accept(&self, tls: Option<&Tls>) -> Result<Socket> {
        let descriptor: OwnedFd = match &self.socket {
            Kind::Tcp(listener) => listener.accept()?.0.into(),
            Kind::Unix(listener) => listener.accept()?.0.into(),
        };
        if matches!(self.address, Address::Unix(_)) {
            return Ok(Socket::new(descriptor));
        }
        let socket = match tls {
            Some(tls) => Socket::encrypted(descriptor, tls)?,
            None => Socket::new(descriptor),
        };
        socket.send_at_once();
        Ok(socket)
    }

    /// Whether a connection waits to be taken.
    pub fn has_waiting(&self) -> bool {
        let descriptor = match &self.socket {
            Kind::Tcp(listener) => listener.as_fd(),
            Kind::Unix(listener) => listener.as_fd(),
        };
        let mut watched = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        // Where the system cannot say, taking one will.
        poll(&mut watched, Some(&Timespec::default())).map_or(true, |ready| ready > 0)
    }

    fn source(&mut self) -> &mut dyn Source {
        match &mut self.socket {
            Kind::Tcp(listener) => listener,
            Kind::Unix(listener) => listener,
        }
    }
}

impl Rights {
    fn give(&self, path: &Path) -> Result<()> {
        let failed = |what, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        if self.user.is_some() || self.group.is_some() {
            std::os::unix::fs::chown(path, self.user, self.group)
                .map_err(|error| failed("socket_owner cannot be given to the socket's file", error))?;
        }
        if let Some(mode) = self.mode {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
                .map_err(|error| failed("socket_mode cannot be given to the socket's file", error))?;
        }
        Ok(())
    }
}

fn listen_unix(path: &Path) -> Result<mio::net::UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(limits::BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(mio::net::UnixListener::from_std(OwnedFd::from(socket).into()))
}

/// A name in the same folder, no longer than need be: the system takes some hundred bytes for a socket's path.
fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}", std::process::id()))
}

impl Source for Listener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> Result<()> {
        self.source().register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> Result<()> {
        self.source().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> Result<()> {
        self.source().deregister(registry)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address
            && !self.is_inherited
        {
            // Somebody else may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What announces descriptors on this system.
const ANNOUNCED_BY: &str = if cfg!(target_vendor = "apple") { "launchd's sockets" } else { "$LISTEN_FDS" };

#[cfg(not(target_vendor = "apple"))]
fn announced() -> Result<Vec<(OwnedFd, String)>> {
    let own = |(number, name)| {
        // SAFETY: the service manager left this descriptor open for this process, which was checked when it was set
        // to close on exec; nothing else here knows its number, so nothing else closes it.
        (unsafe { OwnedFd::from_raw_fd(number) }, name)
    };
    Ok(sd_notify::listen_fds_with_names()?.map(own).collect())
}

/// The name in the job's property list, below `Sockets`, is the one that Apple's own documents use.
#[cfg(target_vendor = "apple")]
fn announced() -> Result<Vec<(OwnedFd, String)>> {
    let sockets = super::launchd::sockets(c"Listeners")?;
    Ok(sockets.into_iter().map(|socket| (socket, "Listeners".to_owned())).collect())
}

#[cfg(not(target_vendor = "apple"))]
fn is_listener(socket: &socket2::Socket) -> Result<bool> {
    socket.is_listener()
}

/// Apple's systems do not say; launchd's sockets listen unless the job says otherwise, and then the first accept fails.
#[cfg(target_vendor = "apple")]
fn is_listener(_: &socket2::Socket) -> Result<bool> {
    Ok(true)
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "a file is there that is not a socket; remove it or choose another path",
        )),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            Err(error) => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_waits_until_it_is_taken() {
        let listener =
            Listener::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap()), &Rights::default()).unwrap();
        assert!(!listener.has_waiting());
        let Address::Tcp(address) = listener.address() else { panic!("a TCP address") };
        let _client = std::net::TcpStream::connect(address).unwrap();
        assert!(listener.has_waiting());
        listener.accept(None).unwrap();
        assert!(!listener.has_waiting());
    }

    #[test]
    fn a_taken_port_is_in_use() {
        let first =
            Listener::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap()), &Rights::default()).unwrap();
        let error = Listener::bind(first.address(), &Rights::default()).err().expect("the port is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind");
        let live = Listener::bind(&Address::Unix(path.clone()), &Rights::default()).unwrap();
        let error =
            Listener::bind(&Address::Unix(path.clone()), &Rights::default()).err().expect("somebody listens");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn rights_are_given_before_the_socket_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let group = rustix::process::getegid().as_raw();
        let rights = Rights { mode: Some(0o620), user: None, group: Some(group) };
        let live = Listener::bind(&Address::Unix(path.clone()), &rights).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o620);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        live.accept(None).unwrap();
        let error = Listener::bind(&Address::Unix(path.clone()), &rights).err().expect("somebody listens");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
    }

    #[test]
    fn a_file_in_the_way_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(Listener::bind(&Address::Unix(path.clone()), &Rights::default()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn ipv6_any_takes_ipv4() {
        let listener = match Listener::bind(&Address::Tcp("[::]:0".parse().unwrap()), &Rights::default()) {
            Ok(listener) => listener,
            // A kernel without IPv6 has no such address; that it says so is what can be checked there.
            Err(error) => {
                assert!(error.raw_os_error().is_some());
                return;
            }
        };
        let Address::Tcp(address) = listener.address() else { panic!("a TCP address") };
        std::net::TcpStream::connect(("127.0.0.1", address.port())).unwrap();
    }
}
