//! How far a long command is: a line that is written over on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the line on a terminal changes.
const DRAWN: Duration = Duration::from_millis(200);

/// How often a line is added elsewhere: an hour's work is then a page of log.
const LOGGED: Duration = Duration::from_secs(60);

/// The length of the bar, in characters.
const BAR: usize = 24;

/// Erases the line and goes to its start.
const ERASE: &str = "\r\x1b[K";

/// Tells on standard error how much of `total` bytes is done.
pub struct Progress {
    total: u64,
    begun: Instant,
    told: Instant,
    is_terminal: bool,
    is_drawn: bool,
}

impl Progress {
    /// Nothing of `total` bytes is done yet.
    pub fn new(total: u64) -> Self {
        let now = Instant::now();
        let is_terminal = io::stderr().is_terminal();
        Self { total, begun: now, told: now, is_terminal, is_drawn: false }
    }

    /// So many bytes are done. Says so if it is time to.
    pub fn at(&mut self, done: u64) {
        let pause = if self.is_terminal { DRAWN } else { LOGGED };
        if self.told.elapsed() < pause {
            return;
        }
        self.told = Instant::now();
        let text = describe(done, self.total, self.begun.elapsed());
        // Nobody to tell where standard error is closed; the work goes on.
        let _ = match self.is_terminal {
            true => write!(io::stderr(), "{ERASE}{} {text}", bar(done, self.total)),
            false => writeln!(io::stderr(), "{text}"),
        };
        self.is_drawn = self.is_terminal;
    }

    /// Makes place for a line of another kind.
    pub fn hide(&mut self) {
        if self.is_drawn {
            let _ = write!(io::stderr(), "{ERASE}");
            self.is_drawn = false;
        }
    }
}

fn bar(done: u64, total: u64) -> String {
    let filled = (BAR as u64 * done.min(total)).checked_div(total).unwrap_or(0) as usize;
    format!("[{}{}]", "#".repeat(filled), " ".repeat(BAR - filled))
}

/// Part, rate and time left.
fn describe(done: u64, total: u64, took: Duration) -> String {
    let percent = (100 * done.min(total)).checked_div(total).unwrap_or(100);
    let rate = done as f64 / took.as_secs_f64().max(1e-3);
    let left = match rate > 0.0 {
        true => duration((total.saturating_sub(done)) as f64 / rate),
        false => "unknown time".to_owned(),
    };
    format!("{percent} %, {} of {}, {}/s, {left} left", size(done), size(total), size(rate as u64))
}

/// A number of bytes as people read it, in units of 1024, as the settings and the pages have them.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while amount >= 1023.5 && units.len() > 0 {
        amount /= 1024.0;
        unit = units.next();
    }
    let digits = if amount < 9.95 { 1 } else { 0 };
    format!("{amount:.digits$} {}", unit.unwrap_or(&"EiB"))
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        let sizes = [0, 1023, 1024, 10_180, 12_345_678, 1_073_300_000, 20 << 30, u64::MAX];
        let texts = ["0 B", "1023 B", "1.0 KiB", "9.9 KiB", "12 MiB", "1.0 GiB", "20 GiB", "16 EiB"];
        assert_eq!(sizes.map(size), texts);
        assert_eq!([0.2, 59.5, 61.0, 7261.0].map(duration), ["1 s", "1 min 0 s", "1 min 1 s", "2 h 1 min"]);
    }

    #[test]
    fn how_far_it_is() {
        let text = describe(250_000_000, 1_000_000_000, Duration::from_secs(2));
        assert_eq!(text, "25 %, 238 MiB of 954 MiB, 119 MiB/s, 6 s left");
        assert_eq!(describe(0, 0, Duration::ZERO), "100 %, 0 B of 0 B, 0 B/s, unknown time left");
        assert_eq!(bar(1, 2).matches('#').count(), BAR / 2);
        assert_eq!(bar(5, 0), bar(0, 5));
    }
}
