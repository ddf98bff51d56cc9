//! The log of requests: what is noted of one while it is answered, and the line that becomes of it.
//!
//! A worker notes and hands on; whoever prints makes the line. Where nobody reads the log, records are lost and counted,
//! and no request waits.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::config::Trusted;
use crate::http::{date, forwarded};
use crate::io::Peer;
use crate::limits;
use crate::mailbox::{self, Receiver, Sender};

/// Where workers hand their records to.
#[derive(Clone)]
pub struct Journal {
    sender: Sender<Record>,
    lost: Arc<AtomicU64>,
    /// Whether the user agent is of interest.
    agents: bool,
}

/// Whose word is taken for where a connection comes from.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Proxies.
    pub proxies: Arc<[Trusted]>,
    /// Whether they begin each connection with a header of the PROXY protocol.
    pub by_header: bool,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the answer ended.
    pub at: SystemTime,
    /// Whom it was for.
    pub client: Peer,
    /// The method and the target as they were sent; empty where no request could be read.
    pub line: Box<[u8]>,
    /// The status of the answer.
    pub status: u16,
    /// Bytes sent, the head included.
    pub bytes: u64,
    /// From the end of the request's head to the last byte of its answer.
    pub took: Duration,
    /// Whether all of the answer was sent.
    pub whole: bool,
    /// The user agent, where it is of interest and was sent.
    pub agent: Option<Box<[u8]>>,
}

/// A connection, as the log sees it.
#[derive(Debug)]
pub struct Visitor {
    client: Peer,
    proxies: Arc<[Trusted]>,
    trusted: bool,
    agents: bool,
    note: Note,
}

/// What is noted of the request that is being answered.
#[derive(Debug, Default)]
struct Note {
    /// Where a trusted proxy's request says so.
    client: Option<IpAddr>,
    line: Box<[u8]>,
    agent: Option<Box<[u8]>>,
    bytes: u64,
}

impl Journal {
    /// A journal, and where its records arrive.
    pub fn new(agents: bool) -> (Self, Receiver<Record>) {
        let (sender, receiver) = mailbox::bounded(limits::RECORDS, None);
        (Self { sender, lost: Arc::default(), agents }, receiver)
    }

    /// Begins to note what `peer` asks.
    pub fn visitor(&self, peer: Peer, trust: &Trust) -> Visitor {
        Visitor {
            client: peer,
            proxies: Arc::clone(&trust.proxies),
            trusted: trust.trusts(peer),
            agents: self.agents,
            note: Note::default(),
        }
    }

    /// Hands a record on, without waiting. One that finds no room is lost.
    pub fn hand_on(&self, record: Record) {
        if self.sender.try_send(record).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many records were lost, here or by whoever prints.
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }
}

impl Trust {
    /// Whether what `peer` says of others is believed.
    pub fn trusts(&self, peer: Peer) -> bool {
        match peer {
            Peer::Tcp(address) => trusts(&self.proxies, address),
            Peer::Unix => self.proxies.contains(&Trusted::Unix),
            Peer::Gone => false,
        }
    }
}

impl Visitor {
    /// A trusted proxy has said for whom the connection is.
    pub fn is(&mut self, client: IpAddr) {
        let client = client.to_canonical();
        self.client = Peer::Tcp(client);
        self.trusted = trusts(&self.proxies, client);
    }

    /// Notes a request, by its whole head.
    pub fn begin(&mut self, head: &[u8]) {
        let head = head.strip_prefix(b"\r\n").unwrap_or(head);
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        // Without the version.
        let end = memchr::memrchr(b' ', line).unwrap_or(line.len());
        let named = if self.trusted {
            forwarded::client(head, |address| trusts(&self.proxies, address))
        } else {
            None
        };
        let agent = if self.agents { forwarded::field(head, b"user-agent") } else { None };
        self.note = Note {
            client: named,
            line: line[..end.min(limits::LOGGED_LINE_MAX)].into(),
            agent: agent.map(|agent| agent[..agent.len().min(limits::AGENT_MAX)].into()),
            bytes: 0,
        };
    }

    /// So many bytes of the answer were sent.
    pub fn sent(&mut self, bytes: u64) {
        self.note.bytes += bytes;
    }

    /// The answer has ended.
    pub fn end(&mut self, status: u16, took: Duration, whole: bool, at: SystemTime) -> Record {
        let Note { client, line, agent, bytes } = std::mem::take(&mut self.note);
        let client = client.map_or(self.client, |client| Peer::Tcp(client.to_canonical()));
        Record { at, client, line, status, bytes, took, whole, agent }
    }
}

fn trusts(proxies: &[Trusted], address: IpAddr) -> bool {
    proxies.iter().any(|trusted| matches!(trusted, Trusted::Network(network) if network.contains(address)))
}

impl Record {
    /// Method and target, each empty where there was no request.
    fn parts(&self) -> (&[u8], &[u8]) {
        match memchr::memchr(b' ', &self.line) {
            Some(blank) => (&self.line[..blank], &self.line[blank + 1..]),
            None => (&[], &[]),
        }
    }

    /// Adds a line of words: time, client, method, target, status, bytes, seconds; `cut` where the answer was not sent to
    /// its end; the user agent in quotes. What could be taken for something else is escaped.
    pub fn write_text(&self, out: &mut String) {
        let (method, target) = self.parts();
        let word = |bytes: &[u8]| match bytes {
            [] => "-".to_owned(),
            bytes => bytes.escape_ascii().to_string(),
        };
        let Self { status, bytes, took, .. } = self;
        // Writing to a String never fails.
        let _ = write!(
            out,
            "{} {} {} {} {status} {bytes} {:.6}",
            date::rfc3339(self.at),
            self.client,
            word(method),
            word(target),
            took.as_secs_f64()
        );
        if !self.whole {
            out.push_str(" cut");
        }
        if let Some(agent) = &self.agent {
            let _ = write!(out, " \"{}\"", agent.escape_ascii());
        }
        out.push('\n');
    }

    /// Adds a line of JSON.
    pub fn write_json(&self, out: &mut String) {
        let (method, target) = self.parts();
        let mut object = serde_json::json!({
            "time": date::rfc3339(self.at),
            "client": self.client.to_string(),
            "method": String::from_utf8_lossy(method),
            "path": String::from_utf8_lossy(target),
            "status": self.status,
            "bytes": self.bytes,
            "seconds": self.took.as_secs_f64(),
            "whole": self.whole,
        });
        if let Some(agent) = &self.agent {
            object["agent"] = String::from_utf8_lossy(agent).into();
        }
        let _ = writeln!(out, "{object}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Network;
    use std::time::UNIX_EPOCH;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn trust(networks: &[&str]) -> Trust {
        let network = |text: &&str| Trusted::Network(Network::parse(text).expect("a network"));
        Trust { proxies: networks.iter().map(network).collect(), by_header: false }
    }

    fn noted(peer: &str, trust: &Trust, head: &str) -> Record {
        let (journal, _records) = Journal::new(true);
        let mut visitor = journal.visitor(Peer::Tcp(address(peer)), trust);
        visitor.begin(head.as_bytes());
        visitor.sent(100);
        visitor.sent(23);
        visitor.end(
            200,
            Duration::from_micros(1500),
            true,
            UNIX_EPOCH + Duration::from_millis(1_764_107_074_123),
        )
    }

    #[test]
    fn lines_of_both_forms() {
        let head = "GET /a%20b?x=\"y\" HTTP/1.1\r\nHost: h\r\nUser-Agent: \"Nix\" \u{e9}\u{7f}\r\n\r\n";
        let record = noted("192.0.2.1", &Trust::default(), head);
        let (mut text, mut json) = (String::new(), String::new());
        record.write_text(&mut text);
        assert_eq!(
            text,
            "2025-11-25T21:44:34.123Z 192.0.2.1 GET /a%20b?x=\\\"y\\\" 200 123 0.001500 \"\\\"Nix\\\" \\xc3\\xa9\\x7f\"\n"
        );
        record.write_json(&mut json);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["path"], "/a%20b?x=\"y\"");
        assert_eq!((&json["bytes"], &json["seconds"]), (&123.into(), &0.0015.into()));
        assert_eq!(json["agent"], "\"Nix\" \u{e9}\u{7f}");
        // What was no request.
        let mut text = String::new();
        let record = Record { line: Box::default(), client: Peer::Unix, whole: false, agent: None, ..record };
        record.write_text(&mut text);
        assert_eq!(text, "2025-11-25T21:44:34.123Z unix - - 200 123 0.001500 cut\n");
    }

    #[test]
    fn only_trusted_proxies_name_others() {
        let head = "GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.1.0.1\r\n\r\n";
        let client = |peer: &str, trust: &Trust| noted(peer, trust, head).client;
        assert_eq!(client("192.0.2.9", &trust(&["10.0.0.0/8"])), Peer::Tcp(address("192.0.2.9")));
        assert_eq!(client("10.0.0.1", &trust(&["10.0.0.0/8"])), Peer::Tcp(address("192.0.2.1")));
        assert_eq!(client("::ffff:10.0.0.1", &trust(&["10.0.0.0/8"])), Peer::Tcp(address("192.0.2.1")));
        assert_eq!(client("10.0.0.1", &trust(&["10.0.0.1"])), Peer::Tcp(address("10.1.0.1")));
        // Whom a PROXY header names is believed no more than if it had come itself.
        let (journal, _records) = Journal::new(false);
        let mut visitor = journal.visitor(Peer::Tcp(address("10.0.0.1")), &trust(&["10.0.0.1"]));
        visitor.is(address("192.0.2.5"));
        visitor.begin(head.as_bytes());
        assert_eq!(
            visitor.end(200, Duration::ZERO, true, UNIX_EPOCH).client,
            Peer::Tcp(address("192.0.2.5"))
        );
    }

    #[test]
    fn what_nobody_reads_is_lost_and_counted() {
        let (journal, records) = Journal::new(false);
        let record = noted("192.0.2.1", &Trust::default(), "GET / HTTP/1.1\r\n\r\n");
        (0..limits::RECORDS + 7).for_each(|_| journal.hand_on(record.clone()));
        assert_eq!((records.depth(), journal.lost().load(Ordering::Relaxed)), (limits::RECORDS, 7));
        assert_eq!(records.try_recv(), Some(record));
    }
}
