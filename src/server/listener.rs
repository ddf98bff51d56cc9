//! The listener: accepts connections and hands each to the worker with most room.
//!
//! When all are full, the connection longest without an answer in flight makes room; when every one has
//! an answer in flight, or the process has no descriptor left, accepting pauses and the backlog waits.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::load::Load;
use super::worker;
use crate::io::listen::Listener;
use crate::io::poll::Poll;
use crate::io::socket::Socket;
use crate::io::tls::Tls;
use crate::io::{Event, Io};
use crate::limits;
use crate::mailbox::{Receiver, Refused, Sender};
use crate::metrics::ListenerMetrics;

/// What the listener is told.
#[derive(Debug)]
pub enum Message {
    /// A worker has room again, or has nothing to make room with: look again.
    Room,
    /// Stop listening and end.
    Drain,
    /// Show that turns are taken, by counting one up.
    Pulse(Arc<AtomicUsize>),
}

/// A worker, as the listener sees it.
pub struct Peer {
    /// How full it is.
    pub load: Arc<Load>,
    /// Its mailbox.
    pub mailbox: Sender<worker::Message<Socket>>,
}

/// The listening actor.
pub struct Acceptor {
    poll: Poll,
    listeners: Vec<Listener>,
    /// Encrypts what comes by TCP.
    tls: Option<Tls>,
    /// Which listeners may have connections waiting.
    ready: Vec<bool>,
    peers: Vec<Peer>,
    mailbox: Receiver<Message>,
    metrics: Arc<ListenerMetrics>,
    /// Descriptors ran out: no accepting before this.
    pause: Option<Instant>,
    /// A worker has been asked for room and has not answered.
    asked: bool,
    /// When the lack of descriptors was last logged.
    warned: Option<Instant>,
}

impl Acceptor {
    /// Watches the listeners.
    ///
    /// # Errors
    /// As the system's.
    pub fn new(
        poll: Poll,
        mut listeners: Vec<Listener>,
        tls: Option<Tls>,
        peers: Vec<Peer>,
        mailbox: Receiver<Message>,
        metrics: Arc<ListenerMetrics>,
    ) -> io::Result<Self> {
        for (number, listener) in listeners.iter_mut().enumerate() {
            poll.watch_listener(listener, number)?;
        }
        let ready = vec![true; listeners.len()];
        Ok(Self {
            poll,
            listeners,
            tls,
            ready,
            peers,
            mailbox,
            metrics,
            pause: None,
            asked: false,
            warned: None,
        })
    }

    /// Accepts until told to drain. The listening sockets close with it.
    ///
    /// # Errors
    /// When the poll fails; nothing that a client does causes that.
    pub fn run(mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let now = self.poll.now();
            let limit =
                self.pause.map(|until| until.saturating_duration_since(now).max(Duration::from_millis(1)));
            events.clear();
            self.poll.wait(&mut events, limit)?;
            while let Some(message) = self.mailbox.try_recv() {
                match message {
                    Message::Room => self.room(),
                    Message::Drain => return Ok(()),
                    Message::Pulse(beats) => {
                        beats.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            for event in &events {
                self.ready[event.key] = true;
            }
            if self.pause.is_some_and(|until| self.poll.now() >= until) {
                self.pause = None;
            }
            for number in 0..self.listeners.len() {
                if self.ready[number] {
                    self.accept_from(number);
                }
            }
        }
    }

    /// Takes connections from one listener while there are any and there is room.
    fn accept_from(&mut self, number: usize) {
        while self.pause.is_none() {
            let peer = match self.roomiest() {
                Some(peer) => peer,
                // Nobody is closed to make room for nobody.
                None if !self.listeners[number].has_waiting() => {
                    self.ready[number] = false;
                    return;
                }
                None => match self.ask_for_room() {
                    Some(peer) => peer,
                    None => return,
                },
            };
            match self.listeners[number].accept(self.tls.as_ref()) {
                Ok(socket) => self.hand_over(peer, socket),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => {
                        self.ready[number] = false;
                        return;
                    }
                    // Gone before it was taken: the next one.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted | ErrorKind::ConnectionReset => {}
                    _ => self.out_of_descriptors(&error),
                },
            }
        }
    }

    fn hand_over(&mut self, peer: usize, socket: Socket) {
        let Peer { load, mailbox } = &self.peers[peer];
        load.add();
        self.metrics.accepted();
        if let Err(Refused(_)) = mailbox.try_send(worker::Message::Connection(socket)) {
            // The worker is far behind. The connection closes here, and the client tries again.
            self.metrics.refused();
            if load.remove() {
                // Room was asked for here, and the worker does not know that any more: nobody else would say it.
                self.room();
            }
        }
    }

    fn roomiest(&self) -> Option<usize> {
        let rooms = self.peers.iter().map(|peer| peer.load.room()).enumerate();
        rooms.filter(|(_, room)| *room > 0).max_by_key(|(_, room)| *room).map(|(number, _)| number)
    }

    /// Something ended, and gave its place and its descriptor back.
    fn room(&mut self) {
        self.pause = None;
        self.asked = false;
        for peer in &self.peers {
            peer.load.want(false);
        }
    }

    /// Asks the worker whose connection has been longest without an answer in flight to close it; where
    /// there is none, every worker, for the first to become so. Gives a worker that has room after all.
    fn ask_for_room(&mut self) -> Option<usize> {
        if self.asked {
            return None;
        }
        self.asked = true;
        let oldest = self.peers.iter().filter_map(|peer| Some((peer.load.oldest_idle()?, peer)));
        match oldest.min_by_key(|(since, _)| *since) {
            Some((_, peer)) => {
                peer.load.want(true);
                // A full mailbox is as good a wake.
                let _ = peer.mailbox.try_send(worker::Message::MakeRoom);
            }
            None => {
                self.metrics.paused();
                self.peers.iter().for_each(|peer| peer.load.want(true));
            }
        }
        self.roomiest()
    }

    /// Pauses accepting, and asks for room so that idle connections give their descriptors back.
    fn out_of_descriptors(&mut self, error: &io::Error) {
        let now = self.poll.now();
        self.metrics.paused();
        if self.warned.is_none_or(|last| now.duration_since(last) >= limits::WARNING_PAUSE) {
            self.warned = Some(now);
            tracing::warn!(
                %error,
                "cannot accept connections; pausing. Raise the limit on open files (ulimit -n, LimitNOFILE=)"
            );
        }
        self.pause = Some(now + limits::ACCEPT_PAUSE);
        self.ask_for_room();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox;
    use std::os::unix::net::UnixStream;

    #[test]
    fn room_that_was_asked_for_is_not_forgotten_with_a_connection_that_is_refused() {
        let poll = Poll::new().unwrap();
        let load = Arc::new(Load::new(2, poll.now()));
        let (full, _worker) = mailbox::bounded(1, None);
        full.send(worker::Message::MakeRoom);
        let peers = vec![Peer { load: Arc::clone(&load), mailbox: full }];
        let (_room, inbox) = mailbox::bounded(1, None);
        let mut acceptor = Acceptor::new(poll, Vec::new(), None, peers, inbox, Arc::default()).unwrap();
        // As when descriptors had run out.
        acceptor.ask_for_room();
        assert!(acceptor.asked && load.wanted());
        let (ours, _theirs) = UnixStream::pair().unwrap();
        acceptor.hand_over(0, Socket::new(ours.into()));
        assert_eq!(load.connections(), 0);
        assert!(!acceptor.asked, "the worker has nothing to say any more, and would be waited for");
    }
}
