//! What people and programs read: the progress line, the tables, JSON.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::Progress;
use crate::stats::{Run, Series, Usage};

/// Of the JSON's shape; a change of meaning raises it.
pub const JSON_VERSION: u32 = 1;
/// Threads of the server that are told of, those that did the most.
const THREADS_MAX: usize = 8;
/// Bytes of a GiB.
pub const GIB: f64 = (1u64 << 30) as f64;

/// The line that is written over while a run goes on. Nothing where nobody looks.
pub struct ProgressLine {
    shown: bool,
    last: (Duration, u64, u64),
    written: bool,
}

impl ProgressLine {
    /// On standard error, if that is a terminal, or else if it is wanted, as lines.
    pub fn new(quiet: bool) -> Self {
        Self { shown: !quiet && io::stderr().is_terminal(), last: (Duration::ZERO, 0, 0), written: false }
    }

    pub fn tell(&mut self, name: &str, progress: Progress) {
        if !self.shown {
            return;
        }
        if progress.elapsed < self.last.0 {
            self.last = (Duration::ZERO, 0, 0);
        }
        let span = (progress.elapsed - self.last.0).as_secs_f64().max(1e-3);
        let rate = progress.requests.saturating_sub(self.last.1) as f64 / span;
        let bytes = progress.bytes.saturating_sub(self.last.2) as f64 / span;
        self.last = (progress.elapsed, progress.requests, progress.bytes);
        self.written = true;
        // A terminal that went away is no reason to stop.
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{name}: {:.0} s, {} requests, {:.0}/s, {}/s, {} errors, {} in flight",
            progress.elapsed.as_secs_f64(),
            progress.requests,
            rate,
            size(bytes),
            progress.errors,
            progress.in_flight,
        );
    }

    /// Clears the line, so that a table may follow.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.written) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// The table of runs.
pub fn table(runs: &[Run]) -> String {
    let head = [
        "run", "series", "conn.", "requests", "per s", "bytes", "per s", "p50", "p90", "p99", "p99.9", "max",
        "errors",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for run in runs {
        for (index, series) in run.series.iter().enumerate() {
            let first = if index == 0 { run.name.clone() } else { String::new() };
            rows.push(row(first, run, series));
        }
    }
    let mut text = aligned(&rows, 2);
    for run in runs {
        for line in remarks(run) {
            let _ = writeln!(text, "{}: {line}", run.name);
        }
    }
    text
}

fn row(name: String, run: &Run, series: &Series) -> Vec<String> {
    let seconds = run.wall.as_secs_f64().max(1e-9);
    let mut row = vec![
        name,
        series.name.to_owned(),
        run.connections.to_string(),
        series.requests.to_string(),
        format!("{:.0}", series.requests as f64 / seconds),
        size(series.bytes as f64),
        size(series.bytes as f64 / seconds),
    ];
    let measured = !series.latency.is_empty();
    let shown = |value: f64| if measured { time(value) } else { "–".to_owned() };
    row.extend([0.5, 0.9, 0.99, 0.999].map(|share| shown(series.percentile_us(share))));
    row.push(shown(series.max_us()));
    row.push(series.error_count().to_string());
    row
}

/// What a table's columns do not hold.
fn remarks(run: &Run) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(usage) = &run.server {
        remarks.push(format!(
            "server {}, {} peak memory",
            cost(usage.cpu, run),
            size(usage.peak_memory as f64)
        ));
        remarks.push(format!("client {}", cost(run.client_cpu, run)));
        let busy = usage.threads.iter().filter(|(_, _, cpu)| *cpu * 50 > usage.cpu).take(THREADS_MAX);
        let busy: Vec<_> = busy.map(|(_, name, cpu)| format!("{name} {:.3} s", cpu.as_secs_f64())).collect();
        if busy.len() > 1 {
            remarks.push(format!("server's threads: {}", busy.join(", ")));
        }
    }
    for series in &run.series {
        for (kind, count) in &series.errors {
            remarks.push(format!("{count} × {kind} ({})", series.name));
        }
    }
    if run.wrong > 0 {
        remarks.push(format!("WRONG ANSWERS: {}", run.wrong));
    }
    if run.reconnects > 0 {
        remarks.push(format!("{} requests sent again, their connection having been closed", run.reconnects));
    }
    remarks.extend(run.notes.iter().filter(|note| !note.is_empty()).cloned());
    if run.interrupted {
        remarks.push("interrupted: what was measured until then".to_owned());
    }
    remarks
}

fn cost(cpu: Duration, run: &Run) -> String {
    let mut text = format!("{:.3} s of processor time", cpu.as_secs_f64());
    if let Some(each) = per_request_us(cpu, run) {
        let _ = write!(text, ", {each:.2} µs a request");
    }
    if let Some(each) = per_gib(cpu, run).filter(|_| run.bytes() > 1 << 20) {
        let _ = write!(text, ", {each:.3} s a GiB");
    }
    text
}

/// Microseconds of processor time a request.
pub fn per_request_us(cpu: Duration, run: &Run) -> Option<f64> {
    (run.requests() > 0).then(|| cpu.as_secs_f64() * 1e6 / run.requests() as f64)
}

/// Seconds of processor time a GiB of bodies.
pub fn per_gib(cpu: Duration, run: &Run) -> Option<f64> {
    (run.bytes() > 0).then(|| cpu.as_secs_f64() * GIB / run.bytes() as f64)
}

/// Columns: the first `left` to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let fill = " ".repeat(widths[column] - cell.chars().count());
            let (before, after) = if column < left { ("", fill.as_str()) } else { (fill.as_str(), "") };
            let gap = if column == 0 { "" } else { "  " };
            let _ = write!(line, "{gap}{before}{cell}{after}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes, in the unit that suits.
pub fn size(bytes: f64) -> String {
    match bytes {
        b if b >= GIB => format!("{:.2} GiB", b / GIB),
        b if b >= 1048576.0 => format!("{:.1} MiB", b / 1048576.0),
        b if b >= 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b => format!("{b:.0} B"),
    }
}

/// Microseconds, in the unit that suits.
pub fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us => format!("{us:.1} µs"),
    }
}

/// All that was measured.
pub fn to_json(target: &str, runs: &[Run], comparison: Option<Value>) -> Value {
    let mut value = json!({
        "version": JSON_VERSION,
        "program": concat!("loadtest ", env!("CARGO_PKG_VERSION")),
        "target": target,
        "runs": runs.iter().map(run_to_json).collect::<Vec<_>>(),
    });
    if let Some(comparison) = comparison {
        value["comparison"] = comparison;
    }
    value
}

/// One run.
pub fn run_to_json(run: &Run) -> Value {
    let usage = |cpu: Duration| {
        json!({
            "cpu_seconds": cpu.as_secs_f64(),
            "cpu_us_per_request": per_request_us(cpu, run),
            "cpu_seconds_per_gib": per_gib(cpu, run),
        })
    };
    let server = run.server.as_ref().map(|Usage { cpu, threads, peak_memory }| {
        let mut value = usage(*cpu);
        value["peak_memory_bytes"] = json!(peak_memory);
        let thread = |(number, name, cpu): &(u32, String, Duration)| {
            json!({ "number": number, "name": name, "cpu_seconds": cpu.as_secs_f64() })
        };
        value["threads"] = threads.iter().map(thread).collect();
        value
    });
    json!({
        "name": run.name,
        "connections": run.connections,
        "seconds": run.wall.as_secs_f64(),
        "requests": run.requests(),
        "bytes": run.bytes(),
        "errors": run.errors(),
        "wrong": run.wrong,
        "connections_opened": run.opened,
        "sent_again": run.reconnects,
        "interrupted": run.interrupted,
        "server": server,
        "client": usage(run.client_cpu),
        "notes": run.notes,
        "series": run.series.iter().map(|series| series_to_json(run, series)).collect::<Vec<_>>(),
    })
}

fn series_to_json(run: &Run, series: &Series) -> Value {
    let seconds = run.wall.as_secs_f64().max(1e-9);
    let statuses: serde_json::Map<_, _> =
        series.statuses.iter().map(|(status, count)| (status.to_string(), json!(count))).collect();
    json!({
        "name": series.name,
        "requests": series.requests,
        "per_second": series.requests as f64 / seconds,
        "bytes": series.bytes,
        "bytes_per_second": series.bytes as f64 / seconds,
        "latency_us": {
            "p50": series.percentile_us(0.5),
            "p90": series.percentile_us(0.9),
            "p99": series.percentile_us(0.99),
            "p99_9": series.percentile_us(0.999),
            "max": series.max_us(),
            "mean": series.latency.mean() / 1e3,
        },
        "statuses": statuses,
        "errors": series.errors,
        "timeline": {
            "bin_seconds": series.timeline.width.as_secs_f64(),
            "requests": series.timeline.bins.iter().map(|bin| bin.requests).collect::<Vec<_>>(),
            "bytes": series.timeline.bins.iter().map(|bin| bin.bytes).collect::<Vec<_>>(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["a".to_owned(), "µ".to_owned()], vec!["bcd".to_owned(), "12".to_owned()]];
        assert_eq!(aligned(&rows, 1), "a     µ\nbcd  12\n");
    }

    #[test]
    fn units_suit() {
        assert_eq!(
            (size(10.0), size(2048.0), size(3.0 * GIB)),
            ("10 B".into(), "2.0 KiB".into(), "3.00 GiB".into())
        );
        assert_eq!(
            (time(1.5), time(2500.0), time(3e6)),
            ("1.5 µs".into(), "2.50 ms".into(), "3.00 s".into())
        );
    }
}
