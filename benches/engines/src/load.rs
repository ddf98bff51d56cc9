//! The load: keep-alive connections on one thread, each with one request in flight.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// As long as a Nix client's.
const REQUEST: &[u8] =
    b"GET /file HTTP/1.1\r\nHost: localhost:5000\r\nUser-Agent: curl/8.14.1 Nix/2.31.2\r\n\
    Accept: */*\r\nAccept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n\r\n";

/// Connections to one server.
pub struct Load {
    poll: Poll,
    connections: Vec<Connection>,
    /// The length of an answer, head included: every answer is the same.
    answer: usize,
}

struct Connection {
    stream: TcpStream,
    received: usize,
}

impl Load {
    /// Connects so many times, and asks once to learn how long an answer is.
    ///
    /// # Errors
    /// Where the server cannot be reached, or answers something else than 200.
    pub fn connect(address: SocketAddr, count: usize) -> io::Result<Self> {
        let answer = probe(address)?;
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(count);
        for number in 0..count {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
            connections.push(Connection { stream, received: 0 });
        }
        Ok(Self { poll, connections, answer })
    }

    /// Sends so many requests, and returns how many were answered within the time: all, or the time is over.
    ///
    /// # Errors
    /// Where a connection ends or fails.
    pub fn run(&mut self, requests: u64, limit: Duration) -> io::Result<u64> {
        let deadline = Instant::now() + limit;
        let (mut asked, mut answered) = (0, 0);
        for connection in self.connections.iter_mut().take(usize::try_from(requests).unwrap_or(usize::MAX)) {
            connection.ask()?;
            asked += 1;
        }
        let mut events = Events::with_capacity(self.connections.len());
        let mut buffer = [0; 16 << 10];
        while answered < requests {
            let left = deadline.saturating_duration_since(Instant::now());
            self.poll.poll(&mut events, Some(left))?;
            if left.is_zero() {
                break;
            }
            for event in &events {
                let connection = &mut self.connections[event.token().0];
                if !connection.receive(&mut buffer, self.answer)? {
                    continue;
                }
                answered += 1;
                if asked < requests {
                    connection.ask()?;
                    asked += 1;
                }
            }
        }
        Ok(answered)
    }
}

impl Connection {
    fn ask(&mut self) -> io::Result<()> {
        self.received = 0;
        // Nothing else is on its way, so it fits.
        self.stream.write_all(REQUEST)
    }

    /// Reads once; says whether the answer is complete.
    fn receive(&mut self, buffer: &mut [u8], answer: usize) -> io::Result<bool> {
        match self.stream.read(buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.received += count;
                if self.received > answer {
                    return Err(io::Error::other("an answer longer than the others"));
                }
                Ok(self.received == answer)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The length of the server's answer, head included.
fn probe(address: SocketAddr) -> io::Result<usize> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(REQUEST)?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..count]);
        if let Some(length) = whole_length(&answer) {
            return Ok(length);
        }
        if count == 0 {
            return Err(io::Error::other("not an answer with a length"));
        }
    }
}

/// What head and Content-Length of a 200 add up to, once the head is there.
fn whole_length(answer: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(answer);
    let (head, _) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    lines.next().filter(|line| line.starts_with("HTTP/1.1 200"))?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    Some(head.len() + 4 + length)
}
