//! `harmonia store verify`: whether store paths are what the database says.

use std::collections::HashMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::output;
use super::progress::{Progress, size};
use super::serve::store_settings;
use crate::causes::with_causes;
use crate::config::{Config, ConfigError};
use crate::formats::store_path::{StoreDir, StorePath, StorePathError};
use crate::nar::{self, CASE_HACK, Evidence, NarError, Origin, Plan};
use crate::store::named::{self, NamedError};
use crate::store::quarantine::{Folder, Found, Mark};
use crate::store::valid::{Inquiry, Valid};
use crate::store::{Settings, StoreError};

/// What may wait to be told: enough that nobody who reads waits for a slow terminal.
const TOLD: usize = 1024;

/// The status for paths that are damaged.
const DAMAGED: u8 = 1;

/// The status where something could not be looked at, or not be told to the server.
const FAILED: u8 = 2;

/// Look after the store that is served.
#[derive(Debug, clap::Args)]
pub struct Store {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Verify(Verify),
}

/// Read store paths and compare them with the Nix database.
///
/// Paths that are not what the database says are quarantined: the server answers for them with 404, one that runs within
/// a second, until they are repaired. The mark of a path that is found sound is cleared.
///
/// Exit code: 0 when all are sound, 1 when some are damaged, 2 when something could not be looked at.
#[derive(Debug, clap::Args)]
struct Verify {
    /// Which ones; a file within one names it, too [default: every valid path]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The settings; without it $CONFIG_FILE, ./settings.toml, /etc/harmonia/settings.toml or defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why nothing was verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store directory is wrong.
    #[error("virtual_nix_store: {0}")]
    StoreDir(#[from] StorePathError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was named is no store path.
    #[error(transparent)]
    Named(#[from] NamedError),
    /// A store path that was named is not registered.
    #[error("{path} is not valid: the Nix database does not have it")]
    NotValid {
        /// The path.
        path: StorePath,
    },
    /// Standard output cannot be written to.
    #[error("cannot write to standard output: {0}")]
    Stdout(#[from] io::Error),
}

/// Runs the command: results to standard output, what went wrong to standard error.
pub fn run(store: &Store) -> ExitCode {
    let Command::Verify(command) = &store.command;
    verify(command, &mut output::standard()).unwrap_or_else(|error| {
        complain(&with_causes(&error));
        ExitCode::from(FAILED)
    })
}

fn verify(command: &Verify, out: &mut dyn Write) -> Result<ExitCode, VerifyError> {
    let config = Config::load(command.config.as_deref(), &|name| std::env::var(name).ok())?;
    let settings = store_settings(&config)?;
    let mut inquiry = Inquiry::new(settings.clone());
    let paths = match &*command.paths {
        [] => inquiry.all()?,
        named => {
            named.iter().map(|path| named_path(&settings, &mut inquiry, path)).collect::<Result<_, _>>()?
        }
    };
    let marks = Folder::new(config.quarantine);
    let marked = marks.read()?.into_iter().map(|mark| (mark.path.clone(), mark)).collect();
    let counts = Counts::default();
    let mut report = Report { store_dir: settings.store_dir, marks, marked, inquiry, out, counts };
    let bytes = verify_all(&paths, &settings.real_store, |progress, path, verdict| {
        progress.hide();
        report.add(path, verdict)
    })?;
    report.end(paths.len(), bytes)
}

/// The valid path that somebody names.
pub(super) fn named_path(
    settings: &Settings,
    inquiry: &mut Inquiry,
    named: &Path,
) -> Result<Valid, VerifyError> {
    let path = named::resolve(settings, named)?;
    inquiry.one(&path)?.ok_or(VerifyError::NotValid { path })
}

/// What was found of one path.
enum Verdict {
    /// A tree, and what its NAR is: its hash, or a size that is not the one registered.
    Read(Evidence, Origin),
    /// It cannot be read, or is not there.
    Unreadable(NarError),
}

/// Looks at all paths, on every core, and calls `found` for each. Gives the number of bytes read.
fn verify_all(
    paths: &[Valid],
    real_store: &Path,
    mut found: impl FnMut(&mut Progress, &Valid, Verdict) -> Result<(), VerifyError>,
) -> Result<u64, VerifyError> {
    enum Told {
        Read(u64),
        Verdict(usize, Verdict),
    }
    let mut progress = Progress::new(paths.iter().map(|path| path.nar_size).sum());
    let next = AtomicUsize::new(0);
    let (sender, told) = mpsc::sync_channel(TOLD);
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 0..cores {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some((index, path)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    paths.get(index).map(|path| (index, path))
                } {
                    // Once nobody listens any more, there is nothing left to do.
                    let verdict = look_at(path, real_store, |read| drop(sender.send(Told::Read(read))));
                    if sender.send(Told::Verdict(index, verdict)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut done = 0;
        for told in told {
            match told {
                Told::Read(read) => done += read,
                Told::Verdict(index, verdict) => found(&mut progress, &paths[index], verdict)?,
            }
            progress.at(done);
        }
        progress.hide();
        Ok(done)
    })
}

/// Reads one path; `seen` is told how many bytes at a time.
fn look_at(valid: &Valid, real_store: &Path, seen: impl Fn(u64)) -> Verdict {
    let root = real_store.join(valid.path.as_str());
    let look = || {
        let plan = Arc::new(Plan::build(&root, CASE_HACK)?);
        let (origin, planned) = (plan.origin(), plan.size());
        let found = match valid.nar_size {
            registered if registered != 0 && registered != planned => Evidence::Size { planned, registered },
            _ => Evidence::Hash(nar::plan_hash(plan, &root, |read| seen(read as u64))?),
        };
        Ok((found, origin))
    };
    look().map_or_else(Verdict::Unreadable, |(found, origin)| Verdict::Read(found, origin))
}

/// What is said of each path, and what is done about it.
struct Report<'o> {
    store_dir: StoreDir,
    marks: Folder,
    /// Those that were marked when it began.
    marked: HashMap<StorePath, Mark>,
    inquiry: Inquiry,
    out: &'o mut dyn Write,
    counts: Counts,
}

/// How many paths came to what.
#[derive(Default)]
struct Counts {
    damaged: usize,
    unreadable: usize,
    /// Collected meanwhile.
    gone: usize,
    /// Whose mark could not be set or cleared.
    unmarked: usize,
}

impl Report<'_> {
    fn add(&mut self, valid: &Valid, verdict: Verdict) -> Result<(), VerifyError> {
        if matches!(verdict, Verdict::Read(Evidence::Hash(hash), _) if hash == valid.nar_hash) {
            return self.sound(&valid.path);
        }
        // By now it may have been collected, or been registered anew: what was read at the start is hours old.
        let Some(valid) = self.inquiry.one(&valid.path)? else {
            self.counts.gone += 1;
            return Ok(());
        };
        let (registered, nar_size) = (valid.nar_hash, valid.nar_size);
        match verdict {
            Verdict::Read(Evidence::Hash(hash), _) if hash == registered => self.sound(&valid.path),
            Verdict::Read(evidence @ Evidence::Hash(hash), origin) => {
                let what = format!("hashes to {hash}, registered as {registered}");
                self.damaged(valid, Found::Tree { origin, evidence }, &what)
            }
            Verdict::Read(Evidence::Size { planned, .. }, _) if [0, planned].contains(&nar_size) => {
                self.counts.unreadable += 1;
                let path = self.store_dir.display(&valid.path);
                complain(&format!("{path}: was registered anew meanwhile, and not read: look at it again"));
                Ok(())
            }
            Verdict::Read(Evidence::Size { planned, .. }, origin) => {
                let what = format!("{planned} bytes, registered with {nar_size}");
                let evidence = Evidence::Size { planned, registered: nar_size };
                self.damaged(valid, Found::Tree { origin, evidence }, &what)
            }
            Verdict::Unreadable(NarError::Missing { .. }) => {
                self.damaged(valid, Found::Nothing, "no such path on disk")
            }
            Verdict::Unreadable(error @ NarError::Changed { .. }) => {
                self.counts.damaged += 1;
                Ok(writeln!(self.out, "{}: {error}", self.store_dir.display(&valid.path))?)
            }
            Verdict::Unreadable(error) => {
                self.counts.unreadable += 1;
                complain(&format!("{}: {error}", self.store_dir.display(&valid.path)));
                Ok(())
            }
        }
    }

    fn sound(&mut self, path: &StorePath) -> Result<(), VerifyError> {
        // Not one that was set since: it may be of a tree that nobody has looked at here.
        if let Some(mark) = self.marked.get(path)
            && self.done(self.marks.end(mark))
        {
            writeln!(self.out, "{}: sound, no longer quarantined", self.store_dir.display(path))?;
        }
        Ok(())
    }

    fn damaged(&mut self, valid: Valid, found: Found, what: &str) -> Result<(), VerifyError> {
        self.counts.damaged += 1;
        let mark = Mark { path: valid.path, registered: valid.nar_hash, found };
        let is_set = self.done(self.marks.set(&mark).map(|()| true));
        let set = if is_set { "quarantined" } else { "not quarantined" };
        Ok(writeln!(self.out, "{}: {what}; {set}", self.store_dir.display(&mark.path))?)
    }

    /// Counts and tells what could not be done; otherwise whether there was anything to do.
    fn done(&mut self, result: Result<bool, StoreError>) -> bool {
        result.unwrap_or_else(|error| {
            self.counts.unmarked += 1;
            complain(&with_causes(&error));
            false
        })
    }

    fn end(self, paths: usize, bytes: u64) -> Result<ExitCode, VerifyError> {
        let Counts { damaged, unreadable, gone, unmarked } = self.counts;
        let paths = paths - gone;
        let noun = if paths == 1 { "path" } else { "paths" };
        write!(self.out, "{paths} {noun}, {} read: ", size(bytes))?;
        match (damaged, unreadable) {
            (0, 0) => writeln!(self.out, "all sound")?,
            (damaged, 0) => writeln!(self.out, "{damaged} damaged; nix-store --repair-path mends them")?,
            (damaged, unreadable) => {
                writeln!(self.out, "{damaged} damaged, {unreadable} could not be read")?;
            }
        }
        Ok(match (damaged, unreadable + unmarked) {
            (0, 0) => ExitCode::SUCCESS,
            (_, 0) => ExitCode::from(DAMAGED),
            _ => ExitCode::from(FAILED),
        })
    }
}

/// Says what went wrong; there is nobody to tell where standard error is closed.
fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "harmonia: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::hash::Sha256;
    use crate::store::add::Writer;
    use std::fs;

    /// A run takes hours, and paths are registered and collected meanwhile.
    #[test]
    fn what_was_registered_anew_meanwhile_is_compared_with_its_new_row() {
        let scratch = tempfile::tempdir().expect("a folder");
        let base = scratch.path();
        let settings = Settings {
            store_dir: StoreDir::new("/nix/store").expect("it is one"),
            real_store: base.join("store"),
            database: base.join("var/db/db.sqlite"),
            state_dir: base.join("var"),
            log_dir: base.join("log"),
            daemon_socket: base.join("daemon"),
        };
        fs::write(base.join("source"), "contents").expect("the folder is ours");
        let mut writer = Writer::open(settings.clone()).expect("an empty folder");
        let path = writer.add_source(&base.join("source"), "path").expect("added").path;
        let mut inquiry = Inquiry::new(settings.clone());
        let now = inquiry.one(&path).expect("readable").expect("it was just registered");
        let before = Valid { nar_hash: Sha256::of(b"before"), ..now.clone() };
        let origin = Origin::of(&settings.real_store.join(path.as_str())).expect("it is there");
        let marks = Folder::new(base.join("marks"));
        let mut out = Vec::new();
        let mut report = Report {
            store_dir: settings.store_dir,
            marks: marks.clone(),
            marked: HashMap::new(),
            inquiry,
            out: &mut out,
            counts: Counts::default(),
        };
        report.add(&before, Verdict::Read(Evidence::Hash(now.nar_hash), origin)).expect("told");
        assert_eq!((report.counts.damaged, marks.read().expect("readable")), (0, vec![]));
        let spoilt = Evidence::Hash(Sha256::of(b"spoilt"));
        report.add(&before, Verdict::Read(spoilt, origin)).expect("told");
        let set = marks.read().expect("readable");
        assert_eq!((report.counts.damaged, set.len(), set[0].registered), (1, 1, now.nar_hash));
        assert!(matches!(set[0].found, Found::Tree { evidence, .. } if evidence == spoilt));
        // Its size is the right one now, and its hash nobody knows.
        let other = Evidence::Size { planned: now.nar_size, registered: 1 };
        report.add(&Valid { nar_size: 1, ..before.clone() }, Verdict::Read(other, origin)).expect("told");
        assert_eq!((report.counts.damaged, report.counts.unreadable), (1, 1));
        // Collected meanwhile.
        assert!(marks.end(&set[0]).expect("writable"));
        writer.forget(&path).expect("it is there");
        report.add(&now, Verdict::Read(spoilt, origin)).expect("told");
        assert_eq!((report.counts.damaged, report.counts.gone), (1, 1));
        assert_eq!(marks.read().expect("readable"), []);
    }
}
