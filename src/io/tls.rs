//! TLS 1.2 and 1.3 by rustls, over a socket that never blocks. Clients are offered `http/1.1` and nothing else. Where
//! the kernel can, it goes on after the handshake (see [`super::kernel_tls`]).

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Result, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{RecvFlags, SendAncillaryBuffer};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::{InconsistentKeys, ServerConfig, ServerConnection};

use super::files::read_whole;
use super::kernel_tls::{self, KernelTls, NoKernelTls, Records};
use super::socket::NO_SIGNAL;
use crate::limits;

/// Why there is no TLS. Nothing of a key is in the messages.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read, or is no PEM.
    #[error("{}: {}", file.display(), told(reason))]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: pem::Error,
    },
    /// A PEM file without what it should have.
    #[error("{}: no {wanted} is in it", file.display())]
    Lacks {
        /// The file.
        file: PathBuf,
        /// What was looked for.
        wanted: &'static str,
    },
    /// The two do not go together, or are of a kind that cannot be used.
    #[error("{} and {}: {}", certificate.display(), key.display(), why(reason))]
    Unusable {
        /// The file of the certificates.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong.
        reason: rustls::Error,
    },
}

/// A certificate with its key, as new connections use it. Clones share it, so that it can be replaced.
#[derive(Clone)]
pub struct Tls {
    config: Arc<Mutex<Arc<ServerConfig>>>,
    in_user_space: Option<Arc<NoKernelTls>>,
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and the key of that one; both PEM. Finds out whether the
    /// kernel can encrypt, which then holds for good.
    ///
    /// # Errors
    /// When a file is not what it should be, or they do not go together.
    pub fn load(certificate: &Path, key: &Path) -> std::result::Result<Self, TlsError> {
        let in_user_space = kernel_tls::probe().err().map(Arc::new);
        let config = read(certificate, key, in_user_space.is_none())?;
        Ok(Self { config: Arc::new(Mutex::new(config)), in_user_space })
    }

    /// Reads both files again. Connections that are open go on with what they have.
    ///
    /// # Errors
    /// As [`Tls::load`]; new connections then go on with the old ones.
    pub fn reload(&self, certificate: &Path, key: &Path) -> std::result::Result<(), TlsError> {
        let config = read(certificate, key, self.in_user_space.is_none())?;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Why this process encrypts, and not the kernel; none where the kernel does.
    pub fn in_user_space(&self) -> Option<&NoKernelTls> {
        self.in_user_space.as_deref()
    }

    /// The server's side of a connection that has just been accepted.
    pub(super) fn session(&self) -> Result<Session> {
        // Nothing panics with the lock, and nobody holds it for longer than this.
        let config = Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        connection.set_buffer_limit(Some(limits::TLS_BUFFER));
        let records = self.in_user_space.is_none().then(Records::default);
        Ok(Session { connection, records, is_heard: false })
    }
}

fn read(
    certificate: &Path,
    key: &Path,
    for_kernel: bool,
) -> std::result::Result<Arc<ServerConfig>, TlsError> {
    let file = |file: &Path, wanted| {
        let file = file.to_owned();
        move |source| match source {
            pem::Error::NoItemsFound => TlsError::Lacks { file, wanted },
            reason => TlsError::File { file, reason },
        }
    };
    let bytes = |path: &Path| {
        let read = File::open(path).and_then(|file| read_whole(&file, limits::FILE_BYTES));
        read.map_err(|error| TlsError::File { file: path.to_owned(), reason: pem::Error::Io(error) })
    };
    let chain = CertificateDer::pem_slice_iter(&bytes(certificate)?)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(file(certificate, "certificate"))?;
    if chain.is_empty() {
        return Err(TlsError::Lacks { file: certificate.to_owned(), wanted: "certificate" });
    }
    let secret = PrivateKeyDer::from_pem_slice(&bytes(key)?).map_err(file(key, "private key"))?;
    let unusable =
        |reason| TlsError::Unusable { certificate: certificate.to_owned(), key: key.to_owned(), reason };
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.enable_secret_extraction = for_kernel;
    Ok(Arc::new(config))
}

/// What a reader of PEM says, in the words of the system where a file is concerned.
fn told(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        error => format!("not understood as PEM: {error}"),
    }
}

/// What rustls says, in words where it is what people meet.
fn why(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "the certificate is of another key".to_owned()
        }
        error => error.to_string(),
    }
}

/// One connection's TLS.
pub(super) struct Session {
    connection: ServerConnection,
    /// How far the record in hand has been read, where the kernel is to take over after the handshake.
    records: Option<Records>,
    /// Whether anything has come yet.
    is_heard: bool,
}

/// What somebody is told who speaks HTTP without TLS.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    This port speaks TLS: begin its URL with https:// in place of http://.\n";

impl Session {
    /// Reads until `into` is full or the socket is empty, as [`super::Io::read`] wants it; shakes hands on the way.
    pub(super) fn read(&mut self, socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        loop {
            match self.connection.reader().read(&mut into[filled..]) {
                Ok(0) => return Ok(filled),
                Ok(count) => filled += count,
                // Requests have their own end: whoever leaves without saying goodbye loses nothing.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(filled),
                Err(error) if error.kind() == ErrorKind::WouldBlock => match self.receive(socket) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock && filled > 0 => return Ok(filled),
                    received => received.map(drop)?,
                },
                Err(error) => return Err(error),
            }
            if filled == into.len() {
                return Ok(filled);
            }
        }
    }

    /// Whether the kernel is to take over after the handshake.
    pub(super) fn is_for_kernel(&self) -> bool {
        self.records.is_some()
    }

    /// Shakes hands, and reads nothing of what comes after. False is the peer's end.
    pub(super) fn shake_hands(&mut self, socket: BorrowedFd<'_>) -> Result<bool> {
        while self.connection.is_handshaking() {
            if self.receive(socket)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the kernel takes the socket on, now that the handshake is over. If not, all stays here for good.
    pub(super) fn attach(&mut self, socket: BorrowedFd<'_>) -> bool {
        self.records = None;
        !self.connection.wants_write() && kernel_tls::attach(socket)
    }

    /// Gives the keys to the kernel, which has taken the socket on.
    ///
    /// # Errors
    /// The connection is of no use then.
    pub(super) fn into_kernel(self, socket: BorrowedFd<'_>) -> Result<KernelTls> {
        KernelTls::new(self.connection, socket)
    }

    /// Takes what the socket has, and answers what of it is for TLS itself; 0 is the socket's end.
    fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<usize> {
        if !self.is_heard {
            refuse_plain_http(socket)?;
            self.is_heard = true;
        }
        let count = self.connection.read_tls(&mut Wire(socket, self.records.as_mut()))?;
        let processed = self.connection.process_new_packets();
        // A handshake's few kilobytes always fit in an empty socket; what is said later and does not fit goes with
        // the next answer.
        match self.flush(socket) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && !self.connection.is_handshaking() => {}
            flushed => flushed?,
        }
        processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(count)
    }

    /// Takes what there is room for of the parts, and sends it as far as the socket takes it. The rest goes with
    /// [`Session::flush`].
    pub(super) fn write(&mut self, socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<usize> {
        self.flush(socket)?;
        let count = self.connection.writer().write_vectored(parts)?;
        match self.flush(socket) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(count),
            flushed => flushed.map(|()| count),
        }
    }

    /// Sends what was taken and has not gone.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut Wire(socket, None))?;
        }
        Ok(())
    }

    /// Says goodbye, so that the peer knows that nothing was cut off.
    pub(super) fn end(&mut self, socket: BorrowedFd<'_>) {
        self.connection.send_close_notify();
        // What the socket does not take now, nobody waits for.
        let _ = self.flush(socket);
    }
}

/// Tells a peer who begins with a letter, as methods of HTTP do and no record of TLS does, to speak TLS: the alert that
/// rustls would send is noise to it.
///
/// # Errors
/// `InvalidData` where it was told; `WouldBlock` where nothing has come.
fn refuse_plain_http(socket: BorrowedFd<'_>) -> Result<()> {
    let mut first = [0];
    let (count, _) = rustix::net::recv(socket, &mut first, RecvFlags::PEEK)?;
    if count == 0 || !first[0].is_ascii_uppercase() {
        return Ok(());
    }
    // What is left unread at the close would be a reset, which overtakes the answer.
    let mut request = [0; 4096];
    while rustix::net::recv(socket, &mut request, RecvFlags::empty())
        .is_ok_and(|(count, _)| count == request.len())
    {}
    // An empty socket takes so little at once; a peer that is gone needs no answer.
    let _ = rustix::net::send(socket, SPEAK_TLS, NO_SIGNAL);
    Err(io::Error::new(ErrorKind::InvalidData, "HTTP without TLS"))
}

/// The socket, as rustls wants it; read record by record where somebody else is to go on.
struct Wire<'s>(BorrowedFd<'s>, Option<&'s mut Records>);

impl Read for Wire<'_> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        if let Some(records) = &mut self.1 {
            return records.read(self.0, into);
        }
        let (read, _) = rustix::net::recv(self.0, into, RecvFlags::empty())?;
        Ok(read)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> Result<usize> {
        Ok(rustix::net::sendmsg(self.0, parts, &mut SendAncillaryBuffer::default(), NO_SIGNAL)?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}
