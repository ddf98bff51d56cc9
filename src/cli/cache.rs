//! `harmonia cache`: what is kept of NARs, looked at, filled and emptied.

mod warm;

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::client::{Client, Place};
use super::output;
use super::progress::size;
use super::serve::ServeError;
use super::store::VerifyError;
use crate::cache::{self, CacheError, Survey};
use crate::causes::with_causes;
use crate::config::{Config, ConfigError};

/// The status where something could not be done at all, as clap's for a wrong command line.
const FAILED: u8 = 2;

/// Look at, fill and empty the folder in which what is made of NARs is kept.
///
/// All of these may be run beside the server that uses the folder.
#[derive(Debug, clap::Args)]
pub struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Warm(warm::Warm),
    /// Say how much is kept, how far sharing makes it smaller, and what it has been worth.
    ///
    /// The last comes from the server, since its start, if one answers where the settings say that it listens.
    Status(Settings),
    /// Remove all that is kept; what is asked for is made again.
    ///
    /// Marks of damaged paths stay. A server that runs finishes what it sends, and frees the space within seconds.
    Clear(Settings),
}

/// Which cache is meant.
#[derive(Debug, clap::Args)]
struct Settings {
    /// The settings; without it $CONFIG_FILE, ./settings.toml, /etc/harmonia/settings.toml or defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why a command could not do what it should.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nothing is kept.
    #[error("nothing is kept: cache_max_size is 0")]
    NoCache,
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No cache can be where the settings say.
    #[error("cache_dir: nothing can be kept in {}: {source}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// NARs are sent as they are.
    #[error("nothing is compressed: set compression to \"zstd\" or \"xz\"")]
    NotCompressed,
    /// A path that was named is no valid path, or the database cannot be read.
    #[error(transparent)]
    Path(#[from] VerifyError),
    /// The server cannot be asked.
    #[error("the server speaks TLS alone: add a unix:/… address to bind, where it can be asked")]
    Encrypted,
    /// A server has the folder, but not where it was looked for.
    #[error("{source}; it does not answer at {place}: name its address with --bind")]
    Elsewhere {
        /// Where it was looked for.
        place: Place,
        /// What says that there is one.
        source: CacheError,
    },
    /// The folder, or the one that it would be made in, is somebody else's.
    #[error(
        "{} belongs to user {owner}, whose server could not open what is made here by another: run this as that user, \
         with sudo -u '#{owner}'", .folder.display()
    )]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// The number of its owner.
        owner: u32,
    },
    /// The server has said too often, and at once, that it cannot.
    #[error(
        "the server at {place} answers each time that it can keep no compressed NAR now: its log says why"
    )]
    Refused {
        /// Where it is.
        place: Place,
    },
    /// No server could be started for this.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The server went away.
    #[error("the server at {place}: {source}")]
    Server {
        /// Where it was.
        place: Place,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output cannot be written to.
    #[error("cannot write to standard output: {0}")]
    Stdout(#[from] io::Error),
}

/// Runs the command: results to standard output, what went wrong to standard error.
pub fn run(cache: &Cache) -> ExitCode {
    let out = &mut output::standard();
    let done = match &cache.command {
        Command::Warm(command) => warm::run(command, out),
        Command::Status(settings) => status(settings, out),
        Command::Clear(settings) => clear(settings, out),
    };
    done.unwrap_or_else(|error| {
        // Nobody to tell where standard error is closed; the exit code says it.
        let _ = writeln!(io::stderr(), "harmonia: {}", with_causes(&error));
        ExitCode::from(FAILED)
    })
}

fn load(settings: &Settings) -> Result<Config, ConfigError> {
    Config::load(settings.config.as_deref(), &|name| std::env::var(name).ok())
}

/// Whether the folder is there; where it is not, a server makes it.
///
/// # Errors
/// Where it is something else, cannot be looked at, or is below what is no folder.
pub(super) fn is_made(dir: &Path) -> io::Result<bool> {
    for place in dir.ancestors() {
        match fs::metadata(place) {
            Ok(found) if found.is_dir() => return Ok(place == dir),
            Ok(_) => return Err(ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn status(settings: &Settings, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let config = load(settings)?;
    let kept = config.cache.as_ref().ok_or(CommandError::NoCache)?;
    let is_made =
        is_made(&kept.dir).map_err(|source| CommandError::Folder { dir: kept.dir.clone(), source })?;
    let survey = cache::survey(&kept.dir)?.unwrap_or_default();
    let Survey { volumes, volume_bytes, frames, frame_bytes, nars, nar_bytes, file_bytes, unique_bytes } =
        survey;
    let note = if is_made { "" } else { ", which is not there: a server makes it" };
    let noun = if volumes == 1 { "volume" } else { "volumes" };
    writeln!(out, "folder      {}{note}", kept.dir.display())?;
    writeln!(out, "size        {} of {}, {volumes} {noun}", size(volume_bytes), size(kept.max_size))?;
    writeln!(out, "frames      {frames}, {}", size(frame_bytes))?;
    writeln!(out, "NARs        {nars}, {}, compressed to {}", size(nar_bytes), size(file_bytes))?;
    writeln!(
        out,
        "shared      {}: {} where each frame is kept once",
        ratio(file_bytes, unique_bytes),
        size(unique_bytes)
    )?;
    match Place::of(&config).and_then(|place| Client::connect(&place).ok()?.get("/metrics").ok()) {
        Some((200, metrics)) => {
            let hits = sample(&metrics, "harmonia_compressed_nars_total{result=\"hit\"}");
            let misses = sample(&metrics, "harmonia_compressed_nars_total{result=\"miss\"}");
            let saved = sample(&metrics, "harmonia_compressed_saved_bytes_total");
            let part = (100 * hits).checked_div(hits + misses);
            let part = part.map_or(String::new(), |percent| format!(", {percent} %"));
            writeln!(
                out,
                "hits        {hits} of {} compressed NARs asked for{part}, since the server's start",
                hits + misses
            )?;
            writeln!(out, "saved       {} that clients did not have to fetch", size(saved))?;
        }
        _ => writeln!(out, "hits        unknown: no server answers where the settings say that it listens")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How many times the first is the second.
fn ratio(whole: u64, part: u64) -> String {
    if part == 0 { "1.00 : 1".to_owned() } else { format!("{:.2} : 1", whole as f64 / part as f64) }
}

/// The value of one series in the metrics' text.
fn sample(metrics: &str, series: &str) -> u64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    value.unwrap_or(0)
}

fn clear(settings: &Settings, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let config = load(settings)?;
    let kept = config.cache.as_ref().ok_or(CommandError::NoCache)?;
    let bytes = cache::clear(&kept.dir)?;
    writeln!(out, "removed {} from {}", size(bytes), kept.dir.display())?;
    Ok(ExitCode::SUCCESS)
}
