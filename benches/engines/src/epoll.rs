//! Readiness, directly: the engine that the server is built on.

use std::io::{self, ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::contenders::{ANY_PORT, announce, is_request};

const LISTENER: Token = Token(usize::MAX);

/// Serves with one `epoll` loop.
///
/// # Errors
/// Where the poll or the listening socket fails.
pub fn serve(answer: &'static [u8]) -> io::Result<()> {
    let mut listener = TcpListener::bind(ANY_PORT.into())?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    announce(listener.local_addr()?)?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Events::with_capacity(256);
    let mut buffer = [0; 4096];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut connections)?;
            } else if let Some(place) = connections.get_mut(event.token().0)
                && place.as_mut().is_some_and(|stream| !is_alive(stream, &mut buffer, answer))
            {
                *place = None;
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, connections: &mut Vec<Option<TcpStream>>) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let token = Token(connections.len());
                poll.registry().register(&mut stream, token, Interest::READABLE)?;
                connections.push(Some(stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Reads once and answers; says whether the connection goes on. What comes next is a new event: no client
/// sends before it is answered.
fn is_alive(stream: &mut TcpStream, buffer: &mut [u8], answer: &[u8]) -> bool {
    match stream.read(buffer) {
        Ok(0) => false,
        Ok(count) => !is_request(&buffer[..count]) || stream.write_all(answer).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
