//! The log: information to standard output, warnings and errors to standard error, written by a thread of its own. Where
//! standard output is the log of requests, all of it goes to standard error: what reads one line a request meets no other.
//!
//! A log's reader may stop reading: a pipe is full, a terminal is held, a disk hangs. Whoever has something to say
//! must not wait for that, least of all a worker. So lines go through a mailbox; one that finds it full is lost,
//! and how many were lost is said when the reader goes on.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::limits;
use crate::mailbox::{self, Receiver, Sender};

/// Writes the log as long as it lives; what was said before is written when it ends, if anybody reads it.
pub struct Log(Sender<Message>);

enum Message {
    Line(Stream, Vec<u8>),
    /// Everything before this is written: says so by dropping it.
    Written(Sender<Infallible>),
}

/// A standard stream.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

impl Log {
    /// Begins to write what is logged; `RUST_LOG` filters. `information` is where that goes.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn begin(information: Stream) -> io::Result<Self> {
        let (sender, receiver) = mailbox::bounded(limits::LOG_LINES, None);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Lines { sender: sender.clone(), lost: Arc::clone(&lost), information };
        thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&receiver, &lost))?;
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        // Set already in a test that runs several commands in one process.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(lines)
            .with_target(false)
            .with_ansi(false)
            .log_internal_errors(false)
            .try_init();
        Ok(Self(sender))
    }

    /// Waits until what was said is written, or for [`limits::LOG_END_TIME`] where nobody reads.
    pub fn flush(&self) {
        let (sender, receiver) = mailbox::bounded(1, None);
        if self.0.try_send(Message::Written(sender)).is_ok() {
            // Whichever it was, the wait is over.
            let _ = receiver.recv_timeout(limits::LOG_END_TIME);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Gives each event a writer that hands its line over.
struct Lines {
    sender: Sender<Message>,
    lost: Arc<AtomicU64>,
    information: Stream,
}

struct Line<'a> {
    lines: &'a Lines,
    stream: Stream,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: self, stream: self.information }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        let stream = if *metadata.level() <= Level::WARN { Stream::Error } else { self.information };
        Line { lines: self, stream }
    }
}

impl Write for Line<'_> {
    /// An event comes as one piece.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Lines { sender, lost, .. } = self.lines;
        if sender.try_send(Message::Line(self.stream, bytes.to_vec())).is_err() {
            lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines until nobody is left to say any. One that cannot be written, for a full disk or a closed pipe, must
/// not end the server.
fn write_all(lines: &Receiver<Message>, lost: &AtomicU64) {
    while let Some(message) = lines.recv() {
        match message {
            Message::Line(Stream::Output, line) => drop(io::stdout().lock().write_all(&line)),
            Message::Line(Stream::Error, line) => drop(io::stderr().lock().write_all(&line)),
            Message::Written(waits) => drop(waits),
        }
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            count => {
                drop(writeln!(io::stderr(), "harmonia: {count} lines of the log were lost: nobody read it"))
            }
        }
    }
}
