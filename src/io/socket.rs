//! Connected sockets, TCP or unix, as the worker uses them: never blocking, no signals.

use std::fs::File;
use std::io::{IoSlice, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use super::Peer;
use super::kernel_tls::KernelTls;
use super::tls::{Session, Tls};
use crate::limits;

/// A connected, non-blocking stream socket, encrypted or not.
#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
    tls: Encryption,
}

/// Who encrypts.
#[derive(Debug)]
enum Encryption {
    /// Nobody.
    None,
    /// This process; also the handshake of what the kernel goes on with.
    UserSpace(Box<Session>),
    /// The kernel.
    Kernel(KernelTls),
}

impl Socket {
    /// Takes over a connected socket that is already non-blocking.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor, tls: Encryption::None }
    }

    /// The same, encrypted; the peer begins the handshake.
    ///
    /// # Errors
    /// None that a peer causes.
    pub fn encrypted(descriptor: OwnedFd, tls: &Tls) -> Result<Self> {
        Ok(Self { descriptor, tls: Encryption::UserSpace(Box::new(tls.session()?)) })
    }

    /// Sends small answers at once instead of waiting to fill a packet. Without it 61 small paths took a
    /// client 2.96 s instead of 0.18 s. Not an error on a unix socket, which has no such delay.
    pub fn send_at_once(&self) {
        // A socket the peer has already reset refuses; the first read will tell.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&self.descriptor, true);
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        match socket2::SockRef::from(&self.descriptor).peer_addr() {
            Ok(address) if address.is_unix() => Peer::Unix,
            Ok(address) => address.as_socket().map_or(Peer::Gone, |peer| Peer::Tcp(peer.ip().to_canonical())),
            Err(_) => Peer::Gone,
        }
    }

    /// What comes next, before any encryption: left where it is, or taken.
    ///
    /// # Errors
    /// As [`Socket::read`].
    pub fn raw(&self, into: &mut [u8], take: bool) -> Result<usize> {
        let flags = if take { RecvFlags::empty() } else { RecvFlags::PEEK };
        let (read, _) = rustix::net::recv(&self.descriptor, into, flags)?;
        Ok(read)
    }

    /// Reads what is there; 0 is the peer's end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, `ConnectionReset` and its like; `InvalidData` for what is no TLS.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        if let Encryption::UserSpace(tls) = &mut self.tls
            && tls.is_for_kernel()
        {
            if !tls.shake_hands(self.descriptor.as_fd())? {
                return Ok(0);
            }
            if tls.attach(self.descriptor.as_fd()) {
                self.hand_over()?;
            }
        }
        match &mut self.tls {
            Encryption::None => {
                let (read, _) = rustix::net::recv(&self.descriptor, into, RecvFlags::empty())?;
                Ok(read)
            }
            Encryption::UserSpace(tls) => tls.read(self.descriptor.as_fd(), into),
            Encryption::Kernel(tls) => tls.read(self.descriptor.as_fd(), into),
        }
    }

    /// Gives the keys to the kernel. Where that fails, the socket sends nothing any more.
    fn hand_over(&mut self) -> Result<()> {
        let kernel = Encryption::Kernel(KernelTls::default());
        if let Encryption::UserSpace(tls) = std::mem::replace(&mut self.tls, kernel) {
            self.tls = Encryption::Kernel(tls.into_kernel(self.descriptor.as_fd())?);
        }
        Ok(())
    }

    /// Writes the parts in one call; `more` holds back the last packet for what follows at once.
    ///
    /// # Errors
    /// `WouldBlock` when the kernel's buffer is full, `BrokenPipe` and its like.
    pub fn write(&mut self, parts: &[IoSlice<'_>], more: bool) -> Result<usize> {
        match &mut self.tls {
            Encryption::None => {}
            Encryption::UserSpace(tls) => return tls.write(self.descriptor.as_fd(), parts),
            Encryption::Kernel(tls) => return tls.write(self.descriptor.as_fd(), parts),
        }
        let flags = if more { MORE } else { SendFlags::empty() } | NO_SIGNAL;
        if let [part] = parts {
            // The kernel need not read a message header and a list of parts first.
            return Ok(rustix::net::send(&self.descriptor, part, flags)?);
        }
        Ok(rustix::net::sendmsg(&self.descriptor, parts, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Sends up to `len` bytes of `file` from `offset`; 0 means that the file ends there. What this process encrypts is
    /// read into `plain` first.
    ///
    /// # Errors
    /// `WouldBlock` when the kernel's buffer is full, `BrokenPipe` and its like, or the file's own.
    pub fn send_file(&mut self, file: &File, offset: u64, len: u64, plain: &mut Vec<u8>) -> Result<usize> {
        let socket = self.descriptor.as_fd();
        let tls = match &mut self.tls {
            Encryption::None => return send_file(socket, file.as_fd(), offset, len),
            Encryption::Kernel(tls) => return tls.send(|| send_file(socket, file.as_fd(), offset, len)),
            Encryption::UserSpace(tls) => tls,
        };
        // Before anything is read that could not be sent.
        tls.flush(socket)?;
        plain.resize(limits::TLS_BUFFER, 0);
        let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(plain.len());
        match file.read_at(&mut plain[..wanted], offset)? {
            0 => Ok(0),
            read => tls.write(socket, &[IoSlice::new(&plain[..read])]),
        }
    }

    /// Sends what was encrypted and has not gone yet.
    ///
    /// # Errors
    /// As [`Socket::write`].
    pub fn flush(&mut self) -> Result<()> {
        match &mut self.tls {
            Encryption::None => Ok(()),
            Encryption::UserSpace(tls) => tls.flush(self.descriptor.as_fd()),
            Encryption::Kernel(tls) => tls.flush(self.descriptor.as_fd()),
        }
    }

    /// Ends the sending side.
    pub fn finish(&mut self) {
        self.part();
        if let Encryption::Kernel(_) = self.tls {
            // The goodbye is the end. A shutdown would overtake a record that the kernel has taken and not sent yet.
            return;
        }
        // It fails only when the peer is gone, and then there is nobody to tell.
        let _ = rustix::net::shutdown(&self.descriptor, Shutdown::Write);
    }

    /// Tells the peer that nothing more comes, where the encryption has a way to say so.
    pub fn part(&mut self) {
        match &mut self.tls {
            Encryption::None => {}
            Encryption::UserSpace(tls) => tls.end(self.descriptor.as_fd()),
            Encryption::Kernel(tls) => tls.end(self.descriptor.as_fd()),
        }
    }

    /// Makes the coming close a reset.
    pub fn reset_on_close(&self) {
        // A unix socket knows no reset; there every answer has a length, so a short one shows.
        let _ = rustix::net::sockopt::set_socket_linger(&self.descriptor, Some(Duration::ZERO));
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const MORE: SendFlags = SendFlags::MORE;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const MORE: SendFlags = SendFlags::empty();

// Apple has no such flag; Rust's runtime ignores SIGPIPE there as everywhere.
#[cfg(target_vendor = "apple")]
pub(super) const NO_SIGNAL: SendFlags = SendFlags::empty();
#[cfg(not(target_vendor = "apple"))]
pub(super) const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;

#[cfg(any(target_os = "linux", target_os = "android"))]
fn send_file(socket: BorrowedFd<'_>, file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<usize> {
    let mut offset = offset;
    // A count beyond usize cannot be asked for in one call; the caller asks again.
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    Ok(rustix::fs::sendfile(socket, file, Some(&mut offset), len)?)
}

#[cfg(target_vendor = "apple")]
fn send_file(socket: BorrowedFd<'_>, file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<usize> {
    use std::io::{Error, ErrorKind};

    if len == 0 {
        // To Apple's call no length means all the rest.
        return Ok(0);
    }
    let offset = libc::off_t::try_from(offset).map_err(|_| ErrorKind::InvalidInput)?;
    let mut sent = libc::off_t::try_from(len).unwrap_or(libc::off_t::MAX);
    // SAFETY: both descriptors are open for the call's length (they are borrowed), `sent` outlives it,
    // and no header or trailer is given. No safe wrapper of Apple's call exists in rustix.
    let outcome = unsafe {
        libc::sendfile(file.as_raw_fd(), socket.as_raw_fd(), offset, &mut sent, std::ptr::null_mut(), 0)
    };
    if outcome == 0 {
        return Ok(sent as usize);
    }
    let error = Error::last_os_error();
    match error.kind() {
        // With these two, and no others, it has said how much went out before.
        ErrorKind::WouldBlock | ErrorKind::Interrupted if sent > 0 => Ok(sent as usize),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Socket::new(ours.into()), theirs)
    }

    #[test]
    fn parts_and_a_file_range_arrive_in_order() {
        let (mut socket, mut peer) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(socket.write(&[IoSlice::new(b"he"), IoSlice::new(b"ad")], true).unwrap(), 4);
        assert_eq!(socket.send_file(&file, 2, 5, &mut Vec::new()).unwrap(), 5);
        assert_eq!(socket.send_file(&file, 10, 5, &mut Vec::new()).unwrap(), 0, "the file has ended");
        socket.finish();
        let mut got = String::new();
        peer.read_to_string(&mut got).unwrap();
        assert_eq!(got, "head23456");
    }

    #[test]
    fn nothing_to_read_would_block_and_the_end_is_zero() {
        let (mut socket, peer) = pair();
        let mut buffer = [0; 8];
        assert_eq!(socket.read(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        drop(peer);
        assert_eq!(socket.read(&mut buffer).unwrap(), 0);
        assert!(socket.write(&[IoSlice::new(b"x")], false).is_err());
    }
}
