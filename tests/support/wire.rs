//! HTTP as bytes on a socket, so that a test sees exactly what was sent and may send what no client would.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Nothing the server owes takes longer on a slow and busy machine.
const READ_LIMIT: Duration = Duration::from_secs(60);

pub struct Connection {
    stream: TcpStream,
    /// Read but not yet part of an answer.
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// As they came, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header, whatever its case; a header sent twice is a mistake.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} was sent twice: {:?}", self.headers);
        value
    }

    /// The body of an answer that must have gone well, as text.
    pub fn text(&self) -> String {
        assert_eq!(self.status, 200, "{:?} {}", self.headers, super::lossy(&self.body));
        super::lossy(&self.body)
    }

    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length").map(|value| value.parse().expect("Content-Length is a number"))
    }
}

/// Why an answer could not be read to its end.
#[derive(Debug)]
pub enum Cut {
    /// Closed before the first byte of an answer.
    Closed,
    /// Closed or reset within one; what had come of its body.
    Within(Vec<u8>),
}

impl Connection {
    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(READ_LIMIT)).expect("it is a plain setting");
        stream.set_write_timeout(Some(READ_LIMIT)).expect("it is a plain setting");
        stream.set_nodelay(true).expect("it is a plain setting");
        Self { stream, buffer: Vec::new() }
    }

    /// A connection that takes in little at a time: the kernel holds at most a few KiB for it.
    pub fn narrow(address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)
            .expect("a socket can be had");
        socket.set_recv_buffer_size(4096).expect("it is a plain setting");
        socket.connect(&address.into()).expect("the server listens");
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(READ_LIMIT)).expect("it is a plain setting");
        Self { stream, buffer: Vec::new() }
    }

    /// Takes in as much at a time as others do.
    pub fn widen(&self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_recv_buffer_size(4 << 20).expect("it is a plain setting");
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends bytes as they are; the server may have closed already.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        match self.stream.write_all(bytes.as_ref()) {
            Ok(()) => {}
            Err(error) if is_gone(error.kind()) => {}
            Err(error) => panic!("sending: {error}"),
        }
        self
    }

    /// Sends a request with these further header lines.
    pub fn request(&mut self, method: &str, target: &str, headers: &[&str]) -> &mut Self {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: cache.example\r\n");
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        self.send(head + "\r\n")
    }

    pub fn get(&mut self, target: &str) -> Response {
        self.get_with(target, &[])
    }

    pub fn get_with(&mut self, target: &str, headers: &[&str]) -> Response {
        self.request("GET", target, headers).read("GET")
    }

    pub fn head(&mut self, target: &str, headers: &[&str]) -> Response {
        self.request("HEAD", target, headers).read("HEAD")
    }

    /// No more will be sent.
    pub fn finish(&mut self) -> &mut Self {
        let _ = self.stream.shutdown(Shutdown::Write);
        self
    }

    /// The whole answer to a request with `method`, which must come.
    pub fn read(&mut self, method: &str) -> Response {
        self.try_read(method).unwrap_or_else(|cut| match cut {
            Cut::Closed => panic!("the connection was closed instead of an answer"),
            Cut::Within(body) => panic!("the answer was cut after {} bytes of its body", body.len()),
        })
    }

    /// The whole answer, or how far it came.
    pub fn try_read(&mut self, method: &str) -> Result<Response, Cut> {
        let mut response = self.try_read_head()?;
        let bodiless = method == "HEAD" || response.status == 304 || response.status < 200;
        if !bodiless {
            response.body = match response.content_length() {
                Some(length) => self.take(length as usize)?,
                None if response.header("transfer-encoding") == Some("chunked") => self.take_chunks()?,
                None => self.take_all(),
            };
        }
        Ok(response)
    }

    /// The head alone; its body is for [`Connection::take`].
    pub fn read_head(&mut self) -> Response {
        self.try_read_head().expect("an answer comes")
    }

    fn try_read_head(&mut self) -> Result<Response, Cut> {
        let end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            if !self.fill() {
                return if self.buffer.is_empty() { Err(Cut::Closed) } else { Err(Cut::Within(Vec::new())) };
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let text = String::from_utf8(head[..end].to_vec()).expect("heads are ASCII");
        let mut lines = text.split("\r\n");
        let status_line = lines.next().expect("split gives at least one part");
        assert!(status_line.starts_with("HTTP/1."), "not a status line: {status_line:?}");
        let status = status_line[9..12].parse().expect("a status is three digits");
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("not a header: {line:?}"));
            (name.to_owned(), value.to_owned())
        });
        Ok(Response { status, headers: headers.collect(), body: Vec::new() })
    }

    /// Exactly `length` bytes of a body.
    pub fn take(&mut self, length: usize) -> Result<Vec<u8>, Cut> {
        while self.buffer.len() < length {
            if !self.fill() {
                return Err(Cut::Within(std::mem::take(&mut self.buffer)));
            }
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// A body of `length` bytes, given piece by piece to `each`; how many came.
    pub fn stream_body(&mut self, length: u64, mut each: impl FnMut(&[u8])) -> u64 {
        let mut done = 0;
        while done < length {
            if self.buffer.is_empty() && !self.fill() {
                break;
            }
            let part = (self.buffer.len() as u64).min(length - done) as usize;
            each(&self.buffer[..part]);
            self.buffer.drain(..part);
            done += part as u64;
        }
        done
    }

    fn take_chunks(&mut self) -> Result<Vec<u8>, Cut> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = find(&self.buffer, b"\r\n") {
                    break end;
                }
                if !self.fill() {
                    return Err(Cut::Within(body));
                }
            };
            let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let digits = std::str::from_utf8(&line[..end]).expect("a chunk's size is hexadecimal");
            let size = usize::from_str_radix(digits, 16).expect("a chunk's size is hexadecimal");
            match self.take(size + 2) {
                Ok(chunk) => body.extend_from_slice(&chunk[..size]),
                Err(_) => return Err(Cut::Within(body)),
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn take_all(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }

    /// Whether the server closes without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill()
    }

    /// Whether the server closes within `limit`; what it sends until then is dropped.
    pub fn closes_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut scrap = [0; 4096];
        while Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).expect("it is a plain setting");
            match self.stream.read(&mut scrap) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if is_gone(error.kind()) => return true,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("receiving: {error}"),
            }
        }
        self.stream.set_read_timeout(Some(READ_LIMIT)).expect("it is a plain setting");
        false
    }

    /// Reads some more; false at the end of what the server sends.
    fn fill(&mut self) -> bool {
        let mut part = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => return false,
                Ok(length) => {
                    self.buffer.extend_from_slice(&part[..length]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_gone(error.kind()) => return false,
                Err(error) => panic!("receiving, after {:?}: {error}", super::lossy(&self.buffer)),
            }
        }
    }
}

fn is_gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
