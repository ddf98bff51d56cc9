//! A cache that is not as it should be: between a client and a real server, it changes what the server says.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{Connection, Response, lossy};

/// What a client asked for.
pub struct Request {
    pub target: String,
    /// The header lines as they came.
    pub lines: Vec<String>,
}

impl Request {
    pub fn is_nar(&self) -> bool {
        self.target.starts_with("/nar/")
    }

    pub fn is_narinfo(&self) -> bool {
        self.target.ends_with(".narinfo")
    }

    fn header(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ String| {
            line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).is_some()
        };
        self.lines.iter().find(|line| value(line)).and_then(|line| Some(line.split_once(": ")?.1))
    }
}

/// How an answer is sent.
pub enum Sent {
    Whole(Response),
    /// So many bytes of the body, then the connection ends.
    Cut(Response, usize),
    /// So many bytes of the body each 20 ms.
    Dripping(Response, usize),
}

/// Gives each answer of the real server to `change`.
pub struct Fake {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Fake {
    pub fn of(
        upstream: SocketAddr,
        change: impl Fn(&Request, Response) -> Sent + Send + Sync + 'static,
    ) -> Self {
        Self::answering(move |request| {
            let lines: Vec<&str> = request.lines.iter().map(String::as_str).collect();
            let range = lines.into_iter().filter(|line| line.to_ascii_lowercase().starts_with("range:"));
            let response = Connection::to(upstream).get_with(&request.target, &range.collect::<Vec<_>>());
            change(request, response)
        })
    }

    /// A server of its own.
    pub fn answering(answer: impl Fn(&Request) -> Sent + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, answer) = (Arc::clone(&stop), Arc::new(answer));
        thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let answer = Arc::clone(&answer);
                thread::spawn(move || serve(client.expect("a connection comes"), &*answer));
            }
        });
        Self { address, stop }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

/// An answer of one's own.
pub fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Response { status, headers: headers.iter().map(owned).collect(), body: body.to_vec() }
}

/// One request a connection.
fn serve(mut client: TcpStream, answer: &dyn Fn(&Request) -> Sent) {
    let Some(request) = read(&mut client) else { return };
    // A client that has seen enough goes.
    let _ = match answer(&request) {
        Sent::Whole(response) => send(&mut client, &response, response.body.len()),
        Sent::Cut(response, count) => send(&mut client, &response, count),
        Sent::Dripping(response, count) => drip(&mut client, &response, count),
    };
    let _ = client.shutdown(Shutdown::Write);
}

fn read(client: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if std::io::Read::read(client, &mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let text = lossy(&head);
    let mut lines = text.trim_end().split("\r\n").map(str::to_owned);
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let request = Request { target, lines: lines.collect() };
    assert!(request.header("host").is_some(), "{:?}", request.lines);
    Some(request)
}

fn send(client: &mut TcpStream, response: &Response, count: usize) -> std::io::Result<()> {
    client.write_all(&head(response))?;
    client.write_all(&response.body[..count])
}

fn drip(client: &mut TcpStream, response: &Response, count: usize) -> std::io::Result<()> {
    client.write_all(&head(response))?;
    for part in response.body.chunks(count) {
        client.write_all(part)?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn head(response: &Response) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} Whatever\r\n", response.status);
    for (name, value) in &response.headers {
        if !["content-length", "connection", "transfer-encoding"].contains(&&*name.to_ascii_lowercase()) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str(&format!("Content-Length: {}\r\nConnection: close\r\n\r\n", response.body.len()));
    head.into_bytes()
}
