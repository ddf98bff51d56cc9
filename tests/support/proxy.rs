//! A TCP proxy that cuts connections after a random number of bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::Random;

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    random: Mutex<Random>,
    /// Connections still to be cut.
    cuts: AtomicU64,
    /// A cut comes below this many bytes of what the server sends.
    below: u64,
    /// Requests seen that resume.
    resumed: AtomicU64,
    stop: AtomicBool,
}

impl Proxy {
    /// Cuts the first `cuts` connections that live long enough, each after less than `below` bytes sent by
    /// the server; every other one with a reset, and each that is cut within a head: curl takes the beginning of a head
    /// for an answer without a body where the connection ends as if all was well, which no server does there.
    pub fn start(upstream: SocketAddr, seed: u64, cuts: u64, below: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream,
            random: Mutex::new(Random(seed)),
            cuts: AtomicU64::new(cuts),
            below,
            resumed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let state = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if state.stop.load(Ordering::Relaxed) {
                    return;
                }
                let state = Arc::clone(&state);
                if let Ok(client) = client {
                    thread::spawn(move || state.carry(client));
                }
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections that are still to be cut.
    pub fn cuts_left(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// How many requests with a Range went through.
    pub fn resumed(&self) -> u64 {
        self.shared.resumed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The accepting thread sees the flag with the next connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn carry(self: Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.upstream) else { return };
        let (budget, reset) = {
            let mut random = self.random.lock().expect("no holder panics");
            (random.below(self.below), random.below(2) == 0)
        };
        let (mut from_client, mut to_server) = (copy(&client), copy(&server));
        let state = Arc::clone(&self);
        let requests = thread::spawn(move || {
            pass(&mut from_client, &mut to_server, |bytes| {
                let ranges = bytes.windows(13).filter(|window| window.eq_ignore_ascii_case(b"range: bytes="));
                state.resumed.fetch_add(ranges.count() as u64, Ordering::Relaxed);
                bytes.len()
            });
        });
        let (mut from_server, mut to_client) = (copy(&server), copy(&client));
        let (mut sent, mut within_head) = (0, false);
        pass(&mut from_server, &mut to_client, |bytes| {
            let room = budget.saturating_sub(sent);
            sent += bytes.len() as u64;
            if sent <= budget || !self.claim_cut() {
                return bytes.len();
            }
            within_head = ends_within_head(&bytes[..room as usize]);
            room as usize
        });
        let _ = server.shutdown(Shutdown::Both);
        if reset || within_head {
            // Closed with no time to linger and nothing said before, it is a reset.
            let _ = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
            let _ = client.shutdown(Shutdown::Read);
        } else {
            let _ = client.shutdown(Shutdown::Both);
        }
        drop((client, from_server, to_client));
        let _ = requests.join();
    }

    /// Takes one of the cuts that are left.
    fn claim_cut(&self) -> bool {
        self.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// Whether a head begins in these bytes and does not end: a server writes one at once.
fn ends_within_head(bytes: &[u8]) -> bool {
    let last = memchr::memmem::rfind(bytes, b"HTTP/1.1 ");
    last.is_some_and(|at| memchr::memmem::find(&bytes[at..], b"\r\n\r\n").is_none())
}

/// Passes bytes on until either side ends, or `allow` lets fewer through than there are.
fn pass(from: &mut TcpStream, to: &mut TcpStream, mut allow: impl FnMut(&[u8]) -> usize) {
    let mut part = [0; 16 * 1024];
    loop {
        let length = match from.read(&mut part) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let allowed = allow(&part[..length]);
        if to.write_all(&part[..allowed]).is_err() || allowed < length {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn copy(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a descriptor can be had")
}
