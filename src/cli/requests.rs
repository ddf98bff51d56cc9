//! The log of requests: one line each on standard output, written by a thread of its own.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::config::{LineForm, RequestLog};
use crate::limits;
use crate::mailbox::{self, Receiver};
use crate::server::journal::{Journal, Record};

/// The thread that writes the lines. What was answered before is written when it is dropped, if anybody reads it and the
/// server has ended.
pub struct Requests(Receiver<Infallible>);

impl Requests {
    /// Begins to write what arrives by the journal.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn begin(log: RequestLog) -> io::Result<(Journal, Self)> {
        let (journal, records) = Journal::new(log.agents);
        let lost = journal.lost();
        let (writing, ended) = mailbox::bounded(1, None);
        let write = move || {
            write_all(&records, &lost, log.form);
            drop(writing);
        };
        thread::Builder::new().name("requests".to_owned()).spawn(write)?;
        Ok((journal, Self(ended)))
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // Whichever it was, the wait is over.
        let _ = self.0.recv_timeout(limits::LOG_END_TIME);
    }
}

/// Writes until every worker is gone, many lines at a time where many wait. What cannot be written must not end the server.
fn write_all(records: &Receiver<Record>, lost: &AtomicU64, form: LineForm) {
    let (mut lines, mut warned, mut told, mut failed) = (String::new(), None::<Instant>, 0, None);
    while let Some(record) = records.recv() {
        lines.clear();
        write_line(&record, form, &mut lines);
        let mut count = 1;
        while lines.len() < limits::LOG_PART
            && let Some(record) = records.try_recv()
        {
            write_line(&record, form, &mut lines);
            count += 1;
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
        drop(out);
        if let Err(error) = written {
            lost.fetch_add(count, Ordering::Relaxed);
            failed = Some(error);
        }
        let all = lost.load(Ordering::Relaxed);
        if all > told && warned.is_none_or(|at| at.elapsed() >= limits::WARNING_PAUSE) {
            let missing = all - told;
            // Of what is told late, too: why it is missing, not whether writing works by now.
            match failed.take() {
                Some(error) => tracing::warn!("{missing} requests were not logged: standard output: {error}"),
                None => tracing::warn!("{missing} requests were not logged: nobody read the log fast enough"),
            }
            (told, warned) = (all, Some(Instant::now()));
        }
    }
}

fn write_line(record: &Record, form: LineForm, lines: &mut String) {
    match form {
        LineForm::Text => record.write_text(lines),
        LineForm::Json => record.write_json(lines),
    }
}
