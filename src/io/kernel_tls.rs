//! TLS by Linux itself: after the handshake the kernel has the keys, makes the records and reads them, so that
//! `sendfile` carries files as on a plain socket. rustls shakes hands; what comes after it in a connection is here.
//!
//! Both directions are the kernel's: rustls gives its keys away once, for both, and keeps nothing that could go on
//! reading. What is not data it tells by a control message, one record at a time.
//!
//! <https://docs.kernel.org/networking/tls.html>

use std::io::{self, ErrorKind, IoSlice, Result};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion, ServerConnection, SupportedCipherSuite};
use zeroize::Zeroizing;

use super::socket::NO_SIGNAL;
use crate::limits;

/// Why TLS stays in user space. The message goes on after "because".
#[derive(Debug, thiserror::Error)]
pub enum NoKernelTls {
    /// Another system than Linux.
    #[error("only Linux has it in the kernel")]
    OtherSystem,
    /// What would have it is not loaded; loading it takes rights that a server has not.
    #[error("the kernel's module tls is not loaded (as root: modprobe tls)")]
    NotLoaded,
    /// Something that clients may ask for, the kernel has not.
    #[error("the kernel has no {cipher} of {version}: {source}")]
    Lacks {
        /// The cipher.
        cipher: &'static str,
        /// The version of TLS.
        version: &'static str,
        /// What it says.
        source: io::Error,
    },
    /// It could not be tried.
    #[error("it could not be tried on a connection of this machine with itself: {0}")]
    Untried(io::Error),
}

/// Finds out whether the kernel can do all that clients are offered: each version with each cipher, both ways, on
/// connections of this process with itself. All or nothing: a connection whose keys were given away cannot come back.
///
/// # Errors
/// Why it cannot.
pub(super) fn probe() -> std::result::Result<(), NoKernelTls> {
    if !cfg!(target_os = "linux") {
        return Err(NoKernelTls::OtherSystem);
    }
    // Never accepted: the backlog has room for them.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(NoKernelTls::Untried)?;
    let address = listener.local_addr().map_err(NoKernelTls::Untried)?;
    for (version, number) in [("TLS 1.2", TLS_1_2), ("TLS 1.3", TLS_1_3)] {
        for cipher in [&AES_128_GCM, &AES_256_GCM, &CHACHA20_POLY1305] {
            let socket =
                TcpStream::connect_timeout(&address, limits::TLS_PROBE).map_err(NoKernelTls::Untried)?;
            if let Err(source) = system::attach(socket.as_fd()) {
                return Err(match source.kind() {
                    ErrorKind::NotFound => NoKernelTls::NotLoaded,
                    _ => NoKernelTls::Untried(source),
                });
            }
            let info = cipher.info(number, &[0; 32][..cipher.key_len], [0; 12], 0);
            system::set_sending(socket.as_fd(), &info)
                .and_then(|()| system::set_receiving(socket.as_fd(), &info))
                .map_err(|source| NoKernelTls::Lacks { cipher: cipher.name, version, source })?;
        }
    }
    Ok(())
}

/// Whether the kernel takes this connected socket on: from then on it can be given keys. Until then nothing changes.
pub(super) fn attach(socket: BorrowedFd<'_>) -> bool {
    // A peer that has ended its side already is refused, and is served as before.
    system::attach(socket).is_ok()
}

/// A connection whose keys the kernel has. The default has no key, and sends nothing.
#[derive(Debug, Default)]
pub(super) struct KernelTls {
    /// How many more records may be encrypted with the key before it is worn out.
    records: u64,
    /// The peer has said goodbye.
    has_ended: bool,
}

impl KernelTls {
    /// Gives the keys of a connection whose handshake is over to the kernel, which has taken the socket on. Nothing
    /// may have been read beyond the handshake, and nothing may be left to send.
    ///
    /// # Errors
    /// The connection is of no use then.
    pub(super) fn new(connection: ServerConnection, socket: BorrowedFd<'_>) -> Result<Self> {
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => TLS_1_2,
            Some(ProtocolVersion::TLSv1_3) => TLS_1_3,
            _ => return Err(ErrorKind::Unsupported.into()),
        };
        let limit = match connection.negotiated_cipher_suite() {
            Some(SupportedCipherSuite::Tls12(suite)) => suite.common.confidentiality_limit,
            Some(SupportedCipherSuite::Tls13(suite)) => suite.common.confidentiality_limit,
            None => 0,
        };
        let secrets = connection.dangerous_extract_secrets().map_err(io::Error::other)?;
        let info = |(sequence, secrets): &(u64, ConnectionTrafficSecrets)| {
            let (cipher, key, iv) = match secrets {
                ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
                ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
                ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
                _ => return Err(ErrorKind::Unsupported),
            };
            let iv = <[u8; 12]>::try_from(iv.as_ref()).map_err(|_| ErrorKind::Unsupported)?;
            if key.as_ref().len() != cipher.key_len {
                return Err(ErrorKind::Unsupported);
            }
            Ok(cipher.info(version, key.as_ref(), iv, *sequence))
        };
        system::set_sending(socket, &info(&secrets.tx)?)?;
        system::set_receiving(socket, &info(&secrets.rx)?)?;
        Ok(Self { records: limit.saturating_sub(secrets.tx.0), has_ended: false })
    }

    /// Reads until `into` is full or the socket is empty, as [`super::Io::read`] wants it.
    pub(super) fn read(&mut self, socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < into.len() && !self.has_ended {
            let (count, kind) = match system::receive(socket, &mut into[filled..]) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock && filled > 0 => break,
                Err(error) => return Err(self.refuse_unreadable(socket, error)),
            };
            match understood(kind, &into[filled..][..count]) {
                Record::Data => filled += count,
                Record::End => self.has_ended = true,
                Record::Refused(refused) => {
                    if let Some(alert) = refused.alert() {
                        self.fail(socket, alert);
                    }
                    return Err(io::Error::new(ErrorKind::InvalidData, refused));
                }
            }
        }
        Ok(filled)
    }

    /// Sends the parts as records of their own. What the kernel takes it sends by itself.
    ///
    /// That more follows is not passed on: a record that waits for more waits for ever, where for plain bytes a clock
    /// of the kernel runs.
    pub(super) fn write(&mut self, socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<usize> {
        self.send(|| Ok(rustix::net::sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), NO_SIGNAL)?))
    }

    /// Makes a call that sends as much as it says, if the key may still be used.
    pub(super) fn send(&mut self, call: impl FnOnce() -> Result<usize>) -> Result<usize> {
        if self.records == 0 {
            return Err(io::Error::other("the key of this connection may encrypt no more"));
        }
        let count = call()?;
        // The last one may be less than full, and so may one that an earlier call left open.
        self.records = self.records.saturating_sub((count / RECORD_BYTES) as u64 + 2);
        Ok(count)
    }

    /// Whether what was sent is on its way. The kernel takes a record more than fits into the socket's buffer, and
    /// forgets it if the connection is closed then. Where the socket is writable again there is room for it.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<()> {
        let mut watched = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
        match poll(&mut watched, Some(&Timespec::default()))? {
            0 => Err(ErrorKind::WouldBlock.into()),
            // A broken connection too: whoever reads or writes next is told.
            _ => Ok(()),
        }
    }

    /// Says goodbye, so that the peer knows that nothing was cut off.
    pub(super) fn end(&mut self, socket: BorrowedFd<'_>) {
        self.alert(socket, [WARNING, CLOSE_NOTIFY]);
    }

    /// Says why the connection ends, and sends no more.
    fn fail(&mut self, socket: BorrowedFd<'_>, description: u8) {
        self.alert(socket, [FATAL, description]);
        self.records = 0;
    }

    fn alert(&mut self, socket: BorrowedFd<'_>, alert: [u8; 2]) {
        if self.records > 0 {
            // What the socket does not take now, nobody waits for.
            let _ = system::send_alert(socket, alert);
        }
    }

    /// Tells the peer of a record that cannot be read, and the caller in the words of rustls' way.
    fn refuse_unreadable(&mut self, socket: BorrowedFd<'_>, error: io::Error) -> io::Error {
        let alert = match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::BADMSG) => BAD_RECORD_MAC,
            Some(rustix::io::Errno::MSGSIZE) => RECORD_OVERFLOW,
            _ => return error,
        };
        self.fail(socket, alert);
        io::Error::new(ErrorKind::InvalidData, error)
    }
}

/// Reads from a socket, never beyond the record in hand: what comes after the handshake must still be in the socket
/// when the kernel takes over.
#[derive(Debug, Default)]
pub(super) struct Records {
    header: [u8; 5],
    /// How much of the header has been read.
    known: usize,
    /// How much of the record is left after it.
    left: usize,
}

impl Records {
    /// Reads a part of a record.
    pub(super) fn read(&mut self, socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
        let wanted = if self.left > 0 { self.left } else { self.header.len() - self.known };
        let wanted = wanted.min(into.len());
        let (count, _) = rustix::net::recv(socket, &mut into[..wanted], RecvFlags::empty())?;
        if self.left > 0 {
            self.left -= count;
            return Ok(count);
        }
        self.header[self.known..][..count].copy_from_slice(&into[..count]);
        self.known += count;
        if self.known == self.header.len() {
            self.left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
            self.known = 0;
        }
        Ok(count)
    }
}

/// What a record means.
#[derive(Debug, PartialEq, Eq)]
enum Record {
    /// Bytes for HTTP; none are the end of the connection.
    Data,
    /// The peer sends nothing more.
    End,
    /// The connection ends here.
    Refused(Refused),
}

/// Why a connection ends at a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    /// The peer's word that it gives up.
    #[error("the peer sent the alert {0}")]
    Alert(u8),
    /// TLS 1.3's change of keys, which kernels before 6.14 cannot follow.
    #[error("the peer changed its key, which TLS by the kernel does not follow")]
    KeyUpdate,
    /// Nothing that a client sends after the handshake.
    #[error("the peer sent a record of type {0} after the handshake")]
    Unexpected(u8),
}

impl Refused {
    /// What the peer is told; nothing where it spoke last.
    fn alert(&self) -> Option<u8> {
        match self {
            Self::Alert(_) => None,
            Self::KeyUpdate => Some(INTERNAL_ERROR),
            Self::Unexpected(_) => Some(UNEXPECTED_MESSAGE),
        }
    }
}

/// What a record of this type with this content means.
fn understood(kind: u8, content: &[u8]) -> Record {
    match (kind, content) {
        (APPLICATION_DATA, [_, ..]) => Record::Data,
        // The socket's own end, without goodbye: requests have their own end, so nothing is lost.
        (_, []) => Record::End,
        // A goodbye, or a word before it; what is worse is fatal.
        (ALERT, [WARNING, ..]) => Record::End,
        (ALERT, [.., description]) => Record::Refused(Refused::Alert(*description)),
        (HANDSHAKE, [KEY_UPDATE, ..]) => Record::Refused(Refused::KeyUpdate),
        (kind, _) => Record::Refused(Refused::Unexpected(kind)),
    }
}

// RFC 8446, sections 4, 5.1 and 6.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const KEY_UPDATE: u8 = 24;
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const INTERNAL_ERROR: u8 = 80;
/// How much a full record carries.
const RECORD_BYTES: usize = 16 << 10;

// As in the kernel's `linux/tls.h`.
const TLS_1_2: u16 = 0x0303;
const TLS_1_3: u16 = 0x0304;

/// A cipher as the kernel knows it.
struct Cipher {
    name: &'static str,
    number: u16,
    key_len: usize,
    /// How much of rustls' IV is the kernel's salt.
    salt_len: usize,
}

const AES_128_GCM: Cipher = Cipher { name: "AES-128-GCM", number: 51, key_len: 16, salt_len: 4 };
const AES_256_GCM: Cipher = Cipher { name: "AES-256-GCM", number: 52, key_len: 32, salt_len: 4 };
const CHACHA20_POLY1305: Cipher = Cipher { name: "CHACHA20-POLY1305", number: 54, key_len: 32, salt_len: 0 };

impl Cipher {
    /// The kernel's `struct tls12_crypto_info_…` of this cipher: version, cipher, IV, key, salt, sequence number.
    /// `sequence` is that of the next record.
    fn info(&self, version: u16, key: &[u8], iv: [u8; 12], sequence: u64) -> Zeroizing<Vec<u8>> {
        let (salt, nonce) = iv.split_at(self.salt_len);
        // What rustls sent explicitly for each record of TLS 1.2 with GCM was this number, exclusive-or the record's.
        // The kernel counts up from the one that it is given, and must never come to one that was used before.
        let nonce = match <[u8; 8]>::try_from(nonce) {
            Ok(nonce) if version == TLS_1_2 => {
                let used = sequence.next_power_of_two() - 1;
                (u64::from_be_bytes(nonce) | used).wrapping_add(1).to_be_bytes().to_vec()
            }
            _ => nonce.to_vec(),
        };
        // Of the size that it will have: growing would leave a copy of the key behind.
        let mut info = Zeroizing::new(Vec::with_capacity(4 + 12 + key.len() + 8));
        info.extend_from_slice(&version.to_ne_bytes());
        info.extend_from_slice(&self.number.to_ne_bytes());
        info.extend_from_slice(&nonce);
        info.extend_from_slice(key);
        info.extend_from_slice(salt);
        info.extend_from_slice(&sequence.to_be_bytes());
        info
    }
}

/// The kernel's calls.
#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{c_int, c_void};
    use std::io::{Error, Result};
    use std::mem::{size_of, zeroed};
    use std::os::fd::{AsRawFd, BorrowedFd};

    /// Room for a control message of one byte, aligned as its header must be.
    type Control = [u64; 4];

    const _: () = {
        // SAFETY: it is arithmetic; libc has it unsafe with all of its kind.
        let needed = unsafe { libc::CMSG_SPACE(1) } as usize;
        assert!(size_of::<Control>() >= needed && align_of::<Control>() >= align_of::<libc::cmsghdr>());
    };

    pub(super) fn attach(socket: BorrowedFd<'_>) -> Result<()> {
        set(socket, libc::SOL_TCP, libc::TCP_ULP, b"tls")
    }

    pub(super) fn set_sending(socket: BorrowedFd<'_>, info: &[u8]) -> Result<()> {
        set(socket, libc::SOL_TLS, libc::TLS_TX, info)
    }

    pub(super) fn set_receiving(socket: BorrowedFd<'_>, info: &[u8]) -> Result<()> {
        set(socket, libc::SOL_TLS, libc::TLS_RX, info)
    }

    fn set(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &[u8]) -> Result<()> {
        let len = value.len() as libc::socklen_t;
        // SAFETY: the descriptor is open (it is borrowed), and the kernel reads `len` bytes of `value`, which has
        // them. rustix has none of these options.
        let outcome =
            unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
        if outcome < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads of records of one type as much as there is room for, and says which; 0 bytes are the end.
    pub(super) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<(usize, u8)> {
        let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let mut control = Control::default();
        let mut message = message(&mut part, &mut control, size_of::<Control>());
        // SAFETY: the message names one part and one place for control messages with their true lengths; both
        // outlive the call and are not used otherwise during it. rustix knows no control message of TLS.
        let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
        let Ok(read) = usize::try_from(read) else { return Err(Error::last_os_error()) };
        // SAFETY: the kernel has filled in how much of `control` it wrote; there is room for one whole header at
        // least, and none is given where it wrote less than that.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: it is null or points into `control`, which is aligned for it and initialised.
        let kind = match unsafe { first.as_ref() } {
            Some(header)
                if header.cmsg_level == libc::SOL_TLS && header.cmsg_type == libc::TLS_GET_RECORD_TYPE =>
            {
                // SAFETY: it is not null, and points to a whole header.
                let data = unsafe { libc::CMSG_DATA(first) };
                // SAFETY: behind the header there is room for one byte, which the kernel wrote.
                unsafe { *data }
            }
            // The kernel says it of every record; only the end has none.
            _ => 0,
        };
        Ok((read, kind))
    }

    /// Sends a record of its own, an alert.
    pub(super) fn send_alert(socket: BorrowedFd<'_>, mut alert: [u8; 2]) -> Result<()> {
        let mut part = libc::iovec { iov_base: alert.as_mut_ptr().cast(), iov_len: alert.len() };
        let mut control = Control::default();
        // SAFETY: it is arithmetic.
        let space = unsafe { libc::CMSG_SPACE(1) } as usize;
        let message = message(&mut part, &mut control, space);
        // SAFETY: the message has room for a header.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: it is arithmetic: the place behind the header, for which there is room in `control`.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: as said; one byte.
        unsafe { data.write(super::ALERT) };
        // SAFETY: it points into `control`, which is aligned for it, initialised, and not used otherwise meanwhile.
        let header = unsafe { &mut *first };
        header.cmsg_level = libc::SOL_TLS;
        header.cmsg_type = libc::TLS_SET_RECORD_TYPE;
        // SAFETY: it is arithmetic.
        header.cmsg_len = unsafe { libc::CMSG_LEN(1) } as _;
        // SAFETY: part and control message are as long as the message says, and outlive the call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    /// A message of one part, with so much of `control`.
    fn message(part: &mut libc::iovec, control: &mut Control, space: usize) -> libc::msghdr {
        // SAFETY: it is a plain structure of numbers and pointers, for which zeros are numbers and null pointers. Its
        // padding, which differs between systems, leaves no other way to make one.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast::<c_void>();
        message.msg_controllen = space as _;
        message
    }
}

/// What stands in for the kernel's calls where there are none; [`probe`] has said so.
#[cfg(not(target_os = "linux"))]
mod system {
    use std::io::{ErrorKind, Result};
    use std::os::fd::BorrowedFd;

    pub(super) fn attach(_: BorrowedFd<'_>) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn set_sending(_: BorrowedFd<'_>, _: &[u8]) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn set_receiving(_: BorrowedFd<'_>, _: &[u8]) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn receive(_: BorrowedFd<'_>, _: &mut [u8]) -> Result<(usize, u8)> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn send_alert(_: BorrowedFd<'_>, _: [u8; 2]) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    const CIPHERS: [&Cipher; 3] = [&AES_128_GCM, &AES_256_GCM, &CHACHA20_POLY1305];

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn nothing_is_read_beyond_the_record_in_hand() {
        let (ours, mut theirs) = pair();
        let record = |kind: u8, content: &[u8]| {
            [&[kind, 3, 3], &(content.len() as u16).to_be_bytes()[..], content].concat()
        };
        let sent = [record(22, &[7; 300]), record(20, &[1]), record(23, &[]), record(23, &[9; 40])];
        theirs.write_all(&sent.concat()).unwrap();
        let mut records = Records::default();
        for record in &sent {
            let (mut got, mut buffer) = (Vec::new(), [0; 128]);
            while got.len() < record.len() {
                let count = records.read(ours.as_fd(), &mut buffer).unwrap();
                got.extend_from_slice(&buffer[..count]);
            }
            assert_eq!(&got, record, "no byte more, none less");
        }
        assert_eq!(records.read(ours.as_fd(), &mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
        theirs.write_all(&[22, 3]).unwrap();
        drop(theirs);
        assert_eq!(records.read(ours.as_fd(), &mut [0; 8]).unwrap(), 2);
        assert_eq!(records.read(ours.as_fd(), &mut [0; 8]).unwrap(), 0, "the end, in the middle of a header");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_keys_are_laid_out_as_the_kernel_has_them() {
        let key: Vec<u8> = (100..132).collect();
        let iv: [u8; 12] = std::array::from_fn(|at| at as u8);
        let sizes = [
            size_of::<libc::tls12_crypto_info_aes_gcm_128>(),
            size_of::<libc::tls12_crypto_info_aes_gcm_256>(),
            size_of::<libc::tls12_crypto_info_chacha20_poly1305>(),
        ];
        let numbers =
            [libc::TLS_CIPHER_AES_GCM_128, libc::TLS_CIPHER_AES_GCM_256, libc::TLS_CIPHER_CHACHA20_POLY1305];
        assert_eq!([TLS_1_2, TLS_1_3], [libc::TLS_1_2_VERSION, libc::TLS_1_3_VERSION]);
        for ((cipher, size), number) in CIPHERS.iter().zip(sizes).zip(numbers) {
            let info = cipher.info(TLS_1_3, &key[..cipher.key_len], iv, 0x0102);
            assert_eq!((info.len(), cipher.number), (size, number), "{}", cipher.name);
            assert_eq!(info[..4], [TLS_1_3.to_ne_bytes(), number.to_ne_bytes()].concat(), "{}", cipher.name);
            let (nonce, rest) = info[4..].split_at(12 - cipher.salt_len);
            let (its_key, rest) = rest.split_at(cipher.key_len);
            let (salt, sequence) = rest.split_at(cipher.salt_len);
            assert_eq!(([salt, nonce].concat(), its_key), (iv.to_vec(), &key[..cipher.key_len]));
            assert_eq!(sequence, [0, 0, 0, 0, 0, 0, 1, 2]);
        }
    }

    proptest! {
        #[test]
        fn no_explicit_nonce_of_rustls_is_used_again(nonce: u64, sequence in 0u64..70, later in 0u64..1000) {
            let mut iv = [0; 12];
            iv[4..].copy_from_slice(&nonce.to_be_bytes());
            let info = AES_128_GCM.info(TLS_1_2, &[0; 16], iv, sequence);
            let first = u64::from_be_bytes(info[4..12].try_into().unwrap());
            let used: Vec<u64> = (0..sequence).map(|record| nonce ^ record).collect();
            prop_assert!(!used.contains(&first.wrapping_add(later)));
        }
    }

    #[test]
    fn records_mean_what_they_say() {
        for (kind, content, wanted) in [
            (APPLICATION_DATA, &b"GET"[..], Record::Data),
            (0, &[], Record::End),
            (ALERT, &[WARNING, CLOSE_NOTIFY], Record::End),
            (ALERT, &[WARNING, 90], Record::End),
            // What had room for its first byte alone.
            (ALERT, &[WARNING], Record::End),
            (ALERT, &[FATAL, 40], Record::Refused(Refused::Alert(40))),
            (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1], Record::Refused(Refused::KeyUpdate)),
            (HANDSHAKE, &[1, 0, 0, 0], Record::Refused(Refused::Unexpected(HANDSHAKE))),
            (20, &[1], Record::Refused(Refused::Unexpected(20))),
            (0, b"bytes of no type", Record::Refused(Refused::Unexpected(0))),
        ] {
            assert_eq!(understood(kind, content), wanted, "{kind} {content:?}");
        }
    }

    #[test]
    fn without_a_key_and_with_a_worn_one_nothing_is_sent() {
        let (ours, mut theirs) = pair();
        let mut none = KernelTls::default();
        assert!(none.write(ours.as_fd(), &[IoSlice::new(b"secret")]).is_err());
        none.end(ours.as_fd());
        // One record of less than full size, and one that was open before.
        let mut worn = KernelTls { records: 2, has_ended: false };
        assert_eq!(worn.write(ours.as_fd(), &[IoSlice::new(b"last")]).unwrap(), 4);
        assert!(worn.write(ours.as_fd(), &[IoSlice::new(b"more")]).is_err());
        drop(ours);
        let mut got = String::new();
        theirs.read_to_string(&mut got).unwrap();
        assert_eq!(got, "last");
    }

    #[test]
    fn what_is_not_writable_has_not_gone() {
        let (ours, theirs) = pair();
        let mut tls = KernelTls { records: u64::MAX, has_ended: false };
        tls.flush(ours.as_fd()).unwrap();
        while tls.write(ours.as_fd(), &[IoSlice::new(&[0; 4096])]).is_ok() {}
        assert_eq!(tls.flush(ours.as_fd()).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(theirs);
        tls.flush(ours.as_fd()).expect("whoever writes next is told");
    }
}
