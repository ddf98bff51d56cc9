//! An answer on its way out: what is left of its head, the segments that are ready, and where more come
//! from. No socket here: [`Transfer::output`] says what to send next, [`Transfer::sent`] what has gone.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cache::{Interest, Stream};
use crate::http::{Method, Status, response};
use crate::limits;
use crate::metrics::Route as Label;
use crate::nar::{Cursor, Segment};
use crate::store::logs::LogReader;
use crate::store::roots::Lease;

/// Where segments come from that are not ready yet. An actor has it while it fetches.
#[derive(Debug)]
pub enum Source {
    /// A NAR, or a part of one.
    Nar(Cursor),
    /// A compressed NAR, or a part of one.
    Compressed(Box<Stream>),
    /// A build log that is decoded as it goes.
    Log(LogReader),
}

impl Source {
    /// Whether there is anything left to fetch. A NAR's cursor at its end is kept all the same: it can go
    /// back for a reader that stops.
    fn has_more(&self) -> bool {
        match self {
            Self::Nar(cursor) => cursor.remaining() > 0,
            Self::Compressed(stream) => stream.left() != Some(0),
            Self::Log(_) => true,
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// None: a HEAD, a 304.
    Empty,
    /// All of it, in memory and shared.
    Bytes(Bytes),
    /// A range of an open file.
    File(Segment),
    /// Segments that an actor delivers. The lease keeps the store path from being collected meanwhile.
    Awaited(Source, Option<Lease>),
}

/// How the peer knows where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its length in bytes, which the head has said.
    Length(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection: an HTTP/1.0 client and a body of unknown length.
    ToClose,
}

/// What an answer is accounted under when it has ended.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// The route, for the metrics' label.
    pub route: Label,
    /// The request's method.
    pub method: Method,
    /// The status that the head carried.
    pub status: Status,
    /// When the request's head was complete.
    pub started: Instant,
}

/// What to do next for a transfer.
#[derive(Debug)]
pub enum Output<'t> {
    /// Write these bytes; whether more follow at once.
    Write(&'t [u8], bool),
    /// Send this range of a file.
    File(&'t Arc<File>, u64, u64),
    /// Nothing to send until the source has delivered.
    Await,
    /// All has been sent.
    Done,
    /// The source delivered other than was promised: the connection must be aborted.
    Broken,
}

/// What an actor was asked for, with the serial of the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    /// More of the source, which it has meanwhile.
    Source(u32),
    /// The bytes that the first ready file begins with.
    Range(u32),
}

/// An answer on its way out.
#[derive(Debug)]
pub struct Transfer {
    /// What it is accounted under.
    pub account: Account,
    /// Whether the connection goes on afterwards.
    pub keep_alive: bool,
    head: Bytes,
    ready: VecDeque<Segment>,
    /// Bytes in `ready`.
    ready_bytes: u64,
    framing: Framing,
    /// Bytes that have not been put in `ready` yet, where the length is known.
    unfetched: u64,
    source: Option<Source>,
    /// What an actor was asked for.
    asked: Asked,
    /// The last that the source gave came from an actor: what comes next is asked for ahead of time.
    cold: bool,
    /// Keeps the store path from being collected until the transfer ends.
    _lease: Option<Lease>,
    /// Has what is sent compressed before what nobody waits for.
    interest: Option<Arc<Interest>>,
    /// Since when nothing could be sent; `None` while it flows.
    blocked: Option<Instant>,
    /// Since when an actor must answer before anything can be sent.
    waits: Option<Instant>,
    /// How long that may be.
    patience: Duration,
    /// The stretch in which enough must be sent: since when, and how much was.
    window: (Instant, u64),
}

impl Transfer {
    /// A transfer that has sent nothing yet. `head` may be empty when it has gone already.
    pub fn new(account: Account, keep_alive: bool, head: Bytes, body: Body, framing: Framing) -> Self {
        let mut transfer = Self {
            account,
            keep_alive,
            head,
            ready: VecDeque::new(),
            ready_bytes: 0,
            framing,
            unfetched: match framing {
                Framing::Length(length) => length,
                Framing::Chunked | Framing::ToClose => 0,
            },
            source: None,
            asked: Asked::Nothing,
            cold: true,
            _lease: None,
            interest: None,
            blocked: None,
            waits: None,
            patience: match &body {
                Body::Awaited(Source::Compressed(_), _) => limits::FRAME_TIME,
                _ => limits::FETCH_TIME,
            },
            window: (account.started, 0),
        };
        match body {
            Body::Empty => {}
            Body::Bytes(bytes) => transfer.ready(Segment::Bytes(bytes)),
            Body::File(segment) => transfer.ready(segment),
            Body::Awaited(source, lease) => {
                transfer.source = Some(source);
                transfer._lease = lease;
            }
        }
        transfer
    }

    /// The same for somebody who waits for what is compressed.
    pub fn with_interest(self, interest: Option<Arc<Interest>>) -> Self {
        Self { interest, ..self }
    }

    /// What is compressed is so as if nobody waited for it.
    pub fn lose_interest(&mut self) {
        self.interest = None;
    }

    /// What to send next.
    pub fn output(&self) -> Output<'_> {
        if !self.head.is_empty() {
            return Output::Write(&self.head, !self.ready.is_empty() || self.unfetched > 0);
        }
        match self.ready.front() {
            Some(Segment::File { .. }) if matches!(self.asked, Asked::Range(_)) => Output::Await,
            Some(Segment::Bytes(bytes)) => Output::Write(bytes, self.ready.len() > 1 || self.unfetched > 0),
            Some(Segment::File { file, offset, len }) => Output::File(file, *offset, *len),
            None if self.asked != Asked::Nothing || self.has_more() => Output::Await,
            None if self.unfetched > 0 => Output::Broken,
            None => Output::Done,
        }
    }

    /// `count` bytes of the last [`Transfer::output`] have gone.
    pub fn sent(&mut self, count: usize) {
        self.blocked = None;
        self.waits = None;
        self.window.1 += count as u64;
        if !self.head.is_empty() {
            let _ = self.head.split_to(count);
            return;
        }
        self.ready_bytes -= count as u64;
        let left = match self.ready.front_mut() {
            Some(Segment::Bytes(bytes)) => {
                let _ = bytes.split_to(count);
                bytes.len() as u64
            }
            Some(Segment::File { offset, len, .. }) => {
                *offset += count as u64;
                *len -= count as u64;
                *len
            }
            None => 0,
        };
        if left == 0 {
            self.ready.pop_front();
        }
    }

    /// Whether it is time for the source to give more: when nothing is ready, or earlier where it was cold, so that
    /// the wire does not wait for the disk.
    pub fn wants_more(&self) -> bool {
        let low = if self.cold { limits::FETCH_AHEAD } else { 0 };
        self.ready_bytes <= low
            && self.blocked.is_none()
            && self.asked == Asked::Nothing
            && self.has_more()
            && self.files_held() + limits::FETCH_FILES <= limits::TRANSFER_FILES
    }

    /// Gives what `fetch` has at once of the NAR that comes next, or what was fetched of a compressed one with the first
    /// look. Whether there was anything.
    ///
    /// # Errors
    /// As [`Transfer::deliver`].
    pub fn take_resident(
        &mut self,
        fetch: impl FnOnce(&mut Cursor) -> Vec<Segment>,
    ) -> Result<bool, TooMuch> {
        let segments = match &mut self.source {
            Some(Source::Nar(cursor)) => {
                let segments = fetch(cursor);
                self.cold = segments.is_empty();
                segments
            }
            // Only where the length is known is there any.
            Some(Source::Compressed(stream)) => stream.take_ready(),
            _ => Vec::new(),
        };
        let is_any = !segments.is_empty();
        for segment in segments {
            self.promised(segment.len())?;
            self.push(segment);
        }
        Ok(is_any)
    }

    /// The source, to be handed to its actor.
    pub fn take_source(&mut self, serial: u32) -> Option<Source> {
        let source = self.source.take()?;
        self.asked = Asked::Source(serial);
        Some(source)
    }

    /// Nothing can be sent before an actor has answered that is at work already.
    pub fn waits(&mut self, now: Instant) {
        self.waits.get_or_insert(now);
    }

    /// The range of the first ready file that an actor is to read, unless one is at work already.
    pub fn take_range(&mut self, serial: u32) -> Option<(Arc<File>, u64, u64)> {
        let Some(Segment::File { file, offset, len }) = self.ready.front() else { return None };
        if self.asked != Asked::Nothing {
            return None;
        }
        self.asked = Asked::Range(serial);
        Some((Arc::clone(file), *offset, (*len).min(limits::FETCH_BYTES)))
    }

    /// The bytes of the range that was taken, at least one and no more than that.
    pub fn deliver_range(&mut self, bytes: Bytes) {
        self.asked = Asked::Nothing;
        self.waits = None;
        if let Some(Segment::File { file, offset, len }) = self.ready.pop_front() {
            let read = (bytes.len() as u64).min(len);
            if len > read {
                self.ready.push_front(Segment::File { file, offset: offset + read, len: len - read });
            }
            self.ready.push_front(Segment::Bytes(bytes));
        }
    }

    /// The actor has delivered, and gives the source back; `None` when that has ended.
    ///
    /// # Errors
    /// When it is more than was promised: the connection must be aborted.
    pub fn deliver(&mut self, segments: Vec<Segment>, source: Option<Source>) -> Result<(), TooMuch> {
        self.asked = Asked::Nothing;
        self.waits = None;
        self.source = source;
        let ended = !self.has_more();
        for segment in segments {
            let len = segment.len();
            match self.framing {
                Framing::Length(_) => self.promised(len)?,
                Framing::Chunked => {
                    let mut size = Vec::new();
                    // A part of a log, or a frame: far below what memory holds.
                    response::begin_chunk(&mut size, len as usize);
                    self.push(Segment::Bytes(size.into()));
                }
                Framing::ToClose => {}
            }
            self.push(segment);
            if self.framing == Framing::Chunked {
                self.push(Segment::Bytes(Bytes::from_static(response::CHUNK_END)));
            }
        }
        if ended && self.framing == Framing::Chunked {
            self.push(Segment::Bytes(Bytes::from_static(response::LAST_CHUNK)));
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        self.source.as_ref().is_some_and(Source::has_more)
    }

    /// The socket took nothing more.
    pub fn blocked(&mut self, now: Instant) {
        self.blocked.get_or_insert(now);
    }

    /// The socket has room again.
    pub fn unblocked(&mut self) {
        self.blocked = None;
    }

    /// Called once a tick. Gives back what is held for a reader that has stopped, and says whether the
    /// reader, or the disk, is too slow for the transfer to be kept.
    pub fn tick(&mut self, now: Instant) -> Pace {
        if self.blocked.is_some_and(|since| now.duration_since(since) >= limits::SHED_TIME) {
            self.shed();
        }
        let waits = self.waits.is_some() || matches!(self.output(), Output::Await);
        if self.asked != Asked::Nothing && waits {
            let since = *self.waits.get_or_insert(now);
            if now.duration_since(since) >= self.patience {
                return Pace::Stalled;
            }
        }
        let (since, moved) = self.window;
        if self.blocked.is_none() || now.duration_since(since) < limits::SEND_WINDOW {
            return Pace::Fine;
        }
        self.window = (now, 0);
        if moved < limits::SEND_MIN_BYTES { Pace::TooSlow } else { Pace::Fine }
    }

    /// Whether this is the serial of the question to the actor that has the source.
    pub fn awaits_source(&self, serial: u32) -> bool {
        self.asked == Asked::Source(serial)
    }

    /// Whether this is the serial of the question to the actor that reads a range.
    pub fn awaits_range(&self, serial: u32) -> bool {
        self.asked == Asked::Range(serial)
    }

    /// How many different files are in `ready`. That is short: a fetch or two.
    fn files_held(&self) -> usize {
        let file = |segment: &Segment| match segment {
            Segment::File { file, .. } => Some(Arc::as_ptr(file)),
            Segment::Bytes(_) => None,
        };
        let files = || self.ready.iter().filter_map(file);
        files().enumerate().filter(|(at, file)| !files().take(*at).any(|earlier| earlier == *file)).count()
    }

    /// Drops the ready segments of a NAR, compressed or not, and puts its source back to the first unsent byte. What goes
    /// in chunks stays: it is one fetch, with the chunks' heads in between.
    fn shed(&mut self) {
        if !self.head.is_empty() || self.asked != Asked::Nothing {
            return;
        }
        let is_back = match &mut self.source {
            Some(Source::Nar(cursor)) => {
                cursor.seek(cursor.position() - self.ready_bytes);
                true
            }
            Some(Source::Compressed(stream)) => {
                matches!(self.framing, Framing::Length(_)) && stream.rewind(self.ready_bytes)
            }
            _ => false,
        };
        if is_back {
            self.unfetched += self.ready_bytes;
            self.ready_bytes = 0;
            self.ready = VecDeque::new();
        }
    }

    /// Takes `len` off what the head has promised and nobody has delivered.
    fn promised(&mut self, len: u64) -> Result<(), TooMuch> {
        self.unfetched = self.unfetched.checked_sub(len).ok_or(TooMuch)?;
        Ok(())
    }

    fn ready(&mut self, segment: Segment) {
        if segment.len() > 0 {
            self.unfetched = self.unfetched.saturating_sub(segment.len());
            self.push(segment);
        }
    }

    fn push(&mut self, segment: Segment) {
        self.ready_bytes += segment.len();
        self.ready.push_back(segment);
    }
}

/// A source delivered more bytes than the head promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

/// Whether a transfer keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It does.
    Fine,
    /// The reader took less than [`limits::SEND_MIN_BYTES`] in [`limits::SEND_WINDOW`].
    TooSlow,
    /// An actor was asked so long ago as it may take ([`limits::FETCH_TIME`], [`limits::FRAME_TIME`]), and nothing can be
    /// sent until it answers.
    Stalled,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn transfer(body: Body, framing: Framing) -> Transfer {
        let account =
            Account { route: Label::Nar, method: Method::Get, status: Status::Ok, started: Instant::now() };
        Transfer::new(account, true, Bytes::from_static(b"head"), body, framing)
    }

    fn cursor(folder: &tempfile::TempDir, len: usize) -> Cursor {
        let file = folder.path().join("file");
        std::fs::write(&file, vec![7; len]).unwrap();
        let plan = crate::nar::Plan::build(&file, false).unwrap();
        Cursor::new(Arc::new(plan), file.into())
    }

    /// What comes out, by bytes at a time.
    fn drain(transfer: &mut Transfer, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while let Output::Write(bytes, _) = transfer.output() {
            let count = bytes.len().min(step);
            out.extend_from_slice(&bytes[..count]);
            transfer.sent(count);
        }
        out
    }

    #[test]
    fn head_and_body_in_any_pieces() {
        for step in 1..12 {
            let mut transfer = transfer(Body::Bytes(Bytes::from_static(b"body")), Framing::Length(4));
            assert_eq!(drain(&mut transfer, step), b"headbody");
            assert!(matches!(transfer.output(), Output::Done));
        }
    }

    #[test]
    fn less_than_promised_is_broken_and_more_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let source = || Source::Nar(cursor(&folder, 10));
        let mut short = transfer(Body::Awaited(source(), None), Framing::Length(9));
        assert!(short.take_source(1).is_some());
        short.deliver(vec![Segment::Bytes(Bytes::from_static(b"12345678"))], None).unwrap();
        drain(&mut short, 99);
        assert!(matches!(short.output(), Output::Broken));

        let mut long = transfer(Body::Awaited(source(), None), Framing::Length(2));
        assert!(long.take_source(1).is_some());
        assert_eq!(long.deliver(vec![Segment::Bytes(Bytes::from_static(b"123"))], None), Err(TooMuch));
    }

    #[test]
    fn chunks_frame_each_part_and_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut chunked = transfer(Body::Awaited(Source::Nar(cursor(&folder, 1)), None), Framing::Chunked);
        let source = chunked.take_source(1);
        chunked.deliver(vec![Segment::Bytes(Bytes::from(vec![b'x'; 17]))], source).unwrap();
        assert_eq!(drain(&mut chunked, 99), b"head11\r\nxxxxxxxxxxxxxxxxx\r\n");
        assert!(matches!(chunked.output(), Output::Await));
        assert!(chunked.take_source(2).is_some());
        chunked.deliver(Vec::new(), None).unwrap();
        assert_eq!(drain(&mut chunked, 99), b"0\r\n\r\n");
        assert!(matches!(chunked.output(), Output::Done));
    }

    #[test]
    fn what_is_held_for_a_reader_that_stopped_is_given_back_and_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let whole = cursor(&folder, 1000);
        let length = whole.remaining();
        let mut held = transfer(Body::Awaited(Source::Nar(whole), None), Framing::Length(length));
        let fetch = |held: &mut Transfer| {
            let Some(Source::Nar(mut cursor)) = held.take_source(1) else { panic!("a cursor") };
            let segments = cursor.fetch().unwrap();
            held.deliver(segments, Some(Source::Nar(cursor))).unwrap();
        };
        fetch(&mut held);
        held.sent(4);
        held.sent(300);
        let now = Instant::now();
        held.blocked(now);
        assert_eq!(held.tick(now + limits::SHED_TIME / 2), Pace::Fine);
        assert_eq!(held.ready_bytes, length - 300);
        assert_eq!(held.tick(now + limits::SHED_TIME), Pace::Fine);
        assert_eq!(held.ready_bytes, 0, "nothing is held");
        assert!(matches!(held.output(), Output::Await));
        held.unblocked();
        fetch(&mut held);
        assert_eq!(drain(&mut held, 77).len() as u64, length - 300);
    }

    /// However large files lie one behind the other, and however little of each is left.
    #[test]
    fn no_more_files_are_held_than_are_counted_on() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        for name in 0..20 {
            std::fs::write(tree.join(format!("{name:02}")), vec![7; limits::SENDFILE_MIN as usize]).unwrap();
        }
        let whole = Cursor::new(Arc::new(crate::nar::Plan::build(&tree, false).unwrap()), tree.into());
        let length = whole.remaining();
        let mut sent = transfer(Body::Awaited(Source::Nar(whole), None), Framing::Length(length));
        sent.sent(4);
        let (mut moved, mut most) = (0, 0);
        while moved < length {
            while sent.wants_more() {
                let Some(Source::Nar(mut cursor)) = sent.take_source(1) else { panic!("a cursor") };
                let segments = cursor.fetch().unwrap();
                sent.deliver(segments, Some(Source::Nar(cursor))).unwrap();
            }
            most = most.max(sent.files_held());
            let count = match sent.output() {
                Output::Write(bytes, _) => bytes.len(),
                Output::File(_, _, len) => len.div_ceil(2) as usize,
                other => panic!("{other:?} after {moved} bytes"),
            };
            sent.sent(count);
            moved += count as u64;
        }
        assert!(matches!(sent.output(), Output::Done));
        assert!((2..=limits::TRANSFER_FILES).contains(&most), "{most} files at once");
    }

    #[test]
    fn a_disk_that_delivers_nothing_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let whole = cursor(&folder, 10);
        let length = whole.remaining();
        let mut waits = transfer(Body::Awaited(Source::Nar(whole), None), Framing::Length(length));
        let source = waits.take_source(1);
        let begun = waits.account.started + 2 * limits::FETCH_TIME;
        assert_eq!(waits.tick(begun), Pace::Fine, "the head has not gone yet");
        waits.sent(4);
        assert_eq!(waits.tick(begun), Pace::Fine, "it waits since now");
        assert_eq!(waits.tick(begun + limits::FETCH_TIME - limits::TICK), Pace::Fine);
        assert_eq!(waits.tick(begun + limits::FETCH_TIME), Pace::Stalled);

        waits.deliver(vec![Segment::Bytes(Bytes::from_static(b"some"))], source).unwrap();
        assert_eq!(waits.tick(begun + limits::FETCH_TIME), Pace::Fine, "it was delivered");
    }

    #[test]
    fn a_range_that_was_read_goes_before_the_rest_of_its_file() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let segment = Segment::of_file(file, 1_000_000).unwrap();
        let mut ranged = transfer(Body::File(segment), Framing::Length(1_000_000));
        ranged.sent(4);
        let (_, offset, len) = ranged.take_range(1).expect("a range");
        assert_eq!((offset, len), (0, limits::FETCH_BYTES));
        assert!(matches!(ranged.output(), Output::Await), "nothing is sent from the file meanwhile");
        assert!(ranged.take_range(2).is_none(), "nor asked again");
        assert!(ranged.awaits_range(1) && !ranged.awaits_range(2) && !ranged.awaits_source(1));
        ranged.deliver_range(Bytes::from(vec![7; 1000]));
        assert_eq!(ranged.ready_bytes, 1_000_000);
        assert!(matches!(ranged.output(), Output::Write(bytes, true) if bytes.len() == 1000));
        ranged.sent(1000);
        assert!(matches!(ranged.output(), Output::File(_, 1000, 999_000)));
    }

    #[test]
    fn a_reader_is_too_slow_only_when_it_blocks_for_a_whole_stretch() {
        let mut slow = transfer(Body::Bytes(Bytes::from(vec![0; 100_000])), Framing::Length(100_000));
        let begun = slow.account.started;
        assert_eq!(slow.tick(begun + limits::SEND_WINDOW), Pace::Fine, "it is not the reader that is slow");
        slow.blocked(begun);
        assert_eq!(slow.tick(begun + limits::SEND_WINDOW - Duration::from_secs(1)), Pace::Fine);
        assert_eq!(slow.tick(begun + limits::SEND_WINDOW), Pace::TooSlow);

        let mut steady = transfer(Body::Bytes(Bytes::from(vec![0; 100_000])), Framing::Length(100_000));
        steady.sent(4);
        steady.sent(limits::SEND_MIN_BYTES as usize);
        steady.blocked(begun);
        assert_eq!(steady.tick(begun + limits::SEND_WINDOW), Pace::Fine);
    }
}
