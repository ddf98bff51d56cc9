//! `cold`: dropping the page cache, and NARs that stream at a fixed pace.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::catalogue::Nar;
use crate::engine::{Judged, Outcome, Step, Verdict, Workload};
use crate::lane::Job;

/// So many streams of NARs, one after the other, at so many bytes a second each. Their bytes show, their requests do not
/// count.
pub struct Streams {
    size: usize,
    rate: u64,
    nars: Arc<[Nar]>,
    /// NARs begun, and those that came whole.
    begun: usize,
    served: u64,
}

impl Streams {
    pub fn new(size: usize, rate: u64, nars: Arc<[Nar]>) -> Self {
        Self { size, rate, nars, begun: 0, served: 0 }
    }
}

impl Workload for Streams {
    fn lanes(&self) -> usize {
        self.size
    }

    fn series(&self) -> Vec<&'static str> {
        vec!["streams"]
    }

    fn next(&mut self, _lane: usize, _now: Instant) -> Step {
        if self.nars.is_empty() {
            return Step::End;
        }
        let nar = &self.nars[self.begun % self.nars.len()];
        self.begun += 1;
        Step::Send(Job { background: true, read_rate: Some(self.rate), ..Job::get(0, nar.url.clone()) })
    }

    fn done(&mut self, _lane: usize, _job: Job, outcome: Outcome, _now: Instant) -> Verdict {
        match outcome {
            Ok(answer) => {
                self.served += u64::from(answer.status == 200);
                Judged::Quiet.into()
            }
            Err(failure) => Judged::Bad(failure.kind()).into(),
        }
    }

    fn notes(&mut self) -> Vec<String> {
        vec![format!("{} NARs streamed whole beside", self.served)]
    }
}

/// How the page cache was dropped.
pub fn drop_caches(store: Option<&Path>) -> String {
    if let Ok(()) = drop_all() {
        return "page cache dropped".to_owned();
    }
    match store {
        Some(folder) => match drop_below(&folder.join("nix/store")) {
            Ok(files) => format!("{files} files of the store dropped from the page cache"),
            Err(error) => format!("page cache NOT dropped: {error}"),
        },
        None => "page cache NOT dropped: it takes root, or --store".to_owned(),
    }
}

/// As root: everything that is clean.
fn drop_all() -> io::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "1")
}

#[cfg(target_os = "linux")]
fn drop_below(folder: &Path) -> io::Result<u64> {
    let mut dropped = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            dropped += drop_below(&entry.path())?;
        } else if kind.is_file() {
            let file = fs::File::open(entry.path())?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            dropped += 1;
        }
    }
    Ok(dropped)
}

#[cfg(not(target_os = "linux"))]
fn drop_below(_: &Path) -> io::Result<u64> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "not supported on this system"))
}
