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
use crate::nar::{self, CASE_HACK, Damage, NarError, Origin, Plan};
use crate::store::quarantine::Folder;
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
    /// A path that was named is no store path.
    #[error("{} is not in the store {}", path.display(), store.display())]
    Elsewhere {
        /// The path as it was named.
        path: PathBuf,
        /// Where store paths are.
        store: PathBuf,
    },
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
    let marked = marks.read()?.into_iter().map(|mark| (mark.path, mark.origin)).collect();
    let counts = Counts::default();
    let mut report = Report { store_dir: settings.store_dir, marks, marked, inquiry, out, counts };
    let bytes = verify_all(&paths, &settings.real_store, |progress, path, verdict| {
        progress.hide();
        report.add(path, verdict)
    })?;
    report.end(paths.len(), bytes)
}

/// The valid path that somebody names: as the database does, or by a file on this machine, also behind links.
pub(super) fn named_path(
    settings: &Settings,
    inquiry: &mut Inquiry,
    named: &Path,
) -> Result<Valid, VerifyError> {
    let elsewhere = || VerifyError::Elsewhere { path: named.to_owned(), store: settings.real_store.clone() };
    let below = |store: &Path, path: &Path| {
        let name = path.strip_prefix(store).ok()?.components().next()?;
        StorePath::from_basename(name.as_os_str().to_str()?).ok()
    };
    let on_disk = || {
        let store = settings.real_store.canonicalize().ok()?;
        below(&store, &named.canonicalize().ok()?)
    };
    let path = below(Path::new(settings.store_dir.as_str()), named).or_else(on_disk).ok_or_else(elsewhere)?;
    inquiry.one(&path)?.ok_or(VerifyError::NotValid { path })
}

/// What was found of one path.
enum Verdict {
    Sound,
    Damaged(Damage),
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
        let origin = plan.origin();
        let found = nar::plan_hash(plan, &root, |read| seen(read as u64))?;
        Ok((found, origin))
    };
    match look() {
        Ok((found, _)) if found == valid.nar_hash => Verdict::Sound,
        Ok((found, origin)) => {
            let (path, registered) = (valid.path.clone(), valid.nar_hash);
            Verdict::Damaged(Damage { path, registered, found, origin })
        }
        Err(error) => Verdict::Unreadable(error),
    }
}

/// What is said of each path, and what is done about it.
struct Report<'o> {
    store_dir: StoreDir,
    marks: Folder,
    /// Those that were marked when it began.
    marked: HashMap<StorePath, Origin>,
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
        let path = self.store_dir.display(&valid.path).to_string();
        match verdict {
            Verdict::Sound => {
                if self.marked.contains_key(&valid.path) && self.done(self.marks.clear(&valid.path)) {
                    writeln!(self.out, "{path}: sound, no longer quarantined")?;
                }
            }
            Verdict::Damaged(damage) => {
                self.counts.damaged += 1;
                let (found, registered) = (damage.found, damage.registered);
                let is_set = self.done(self.marks.set(&damage).map(|()| true));
                let what = if is_set { "quarantined" } else { "not quarantined" };
                writeln!(self.out, "{path}: hashes to {found}, registered as {registered}; {what}")?;
            }
            // Collected while this went on.
            Verdict::Unreadable(_) if self.inquiry.one(&valid.path)?.is_none() => self.counts.gone += 1,
            Verdict::Unreadable(error @ (NarError::Missing { .. } | NarError::Changed { .. })) => {
                self.counts.damaged += 1;
                writeln!(self.out, "{path}: {error}")?;
            }
            Verdict::Unreadable(error) => {
                self.counts.unreadable += 1;
                complain(&format!("{path}: {error}"));
            }
        }
        Ok(())
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
