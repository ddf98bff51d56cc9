//! `harmonia cache warm`: has NARs compressed before anybody asks.
//!
//! It asks the server as a client would, for the heads of the compressed NARs: a head is told when the whole is there.
//! So there is one way in which NARs are compressed, with all that it minds; where no server runs, this starts one of
//! its own, on an address of this machine alone, for as long as it takes.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::CommandError;
use crate::cache::Cache;
use crate::cache::encode::Encoding;
use crate::cli::client::{Client, Place};
use crate::cli::progress::{Progress, size};
use crate::cli::serve;
use crate::cli::store::named_path;
use crate::config::{Config, Overrides};
use crate::io::listen::Address;
use crate::limits::ANSWER_TIME;
use crate::server::start::{CompressionPlan, Server};
use crate::store::valid::{Inquiry, Valid};

/// NARs that are asked for at a time, for each thread that compresses: while one is read to its end, its last chunks
/// keep one thread busy, and the others go on with the next.
const AHEAD: usize = 2;

/// How long one NAR may take, the waiting for others included. At level 19 a core makes some 3 MB a second.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// How long to wait after an answer that nothing can be had just now.
const PAUSE: Duration = Duration::from_secs(1);

/// How often in a row it may be answered at once that a NAR cannot be had just now, as by a server that compresses as
/// many as it can for others: half a minute. One whose cache is unusable says so for ever.
const REFUSALS: u32 = 30;

/// What is answered sooner was not waited for: a server that waits does so for as long as it may.
const AT_ONCE: Duration = ANSWER_TIME.checked_div(2).expect("two is not zero");

/// How often a broken connection is made again in a row.
const TRIES: u32 = 5;

/// The status where some NARs could not be compressed.
const INCOMPLETE: u8 = 1;

/// Compress NARs ahead of time, in the format that the settings offer.
///
/// The server that runs is asked for the head of each compressed NAR, which it answers when all of it is there; where
/// none runs, one is started for this alone. What is there already costs a question.
///
/// Exit code: 0 when all are there, 1 when some could not be had, 2 when it could not be done.
#[derive(Debug, clap::Args)]
pub(super) struct Warm {
    #[command(flatten)]
    which: Which,
    /// Where the server listens, if not where the settings say: HOST:PORT, [IPV6]:PORT or unix:/PATH.
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<String>,
    #[command(flatten)]
    settings: super::Settings,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// This path and all that it needs.
    #[arg(long, value_name = "PATH")]
    closure: Option<PathBuf>,
    /// Every valid path.
    #[arg(long)]
    all: bool,
    /// Paths registered since then: 7d, 12h, 30m.
    #[arg(long, value_name = "TIME", value_parser = period)]
    recent: Option<Duration>,
}

/// Reads a number with a unit: minutes, hours, days or weeks.
fn period(text: &str) -> Result<Duration, String> {
    let unit = |unit| match unit {
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(24 * 3600),
        'w' => Some(7 * 24 * 3600),
        _ => None,
    };
    let read = || {
        let unit = unit(text.chars().last()?)?;
        let number: u64 = text[..text.len() - 1].parse().ok()?;
        Some(Duration::from_secs(number.checked_mul(unit)?))
    };
    read().ok_or_else(|| "a whole number and m, h, d or w: 7d".to_owned())
}

pub(super) fn run(command: &Warm, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let overrides = Overrides { bind: command.bind.iter().cloned().collect(), ..Overrides::default() };
    let config = super::load(&command.settings)?.with(&overrides)?;
    let plan = serve::compression(&config.compression);
    let encoding = encoding(&plan).ok_or(CommandError::NotCompressed)?;
    let paths = choose(&config, &command.which)?;
    let (place, own) = find_server(&config)?;
    let outcome = warm_all(&paths, &place, encoding, plan.threads * AHEAD);
    if let Some(server) = own {
        server.drain();
        server.wait().map_err(|source| CommandError::Server { place, source })?;
    }
    report(&outcome?, out)
}

/// How what is offered is made.
fn encoding(plan: &CompressionPlan) -> Option<Encoding> {
    [plan.zstd, plan.xz].into_iter().find(|encoding| Some(encoding.format()) == plan.offered)
}

fn choose(config: &Config, which: &Which) -> Result<Vec<Valid>, CommandError> {
    let settings = serve::store_settings(config).map_err(serve::ServeError::from)?;
    let mut inquiry = Inquiry::new(settings.clone());
    if let Some(path) = &which.closure {
        let path = named_path(&settings, &mut inquiry, path)?.path;
        return Ok(inquiry.closure(&path).map_err(super::VerifyError::from)?);
    }
    let mut paths = inquiry.all().map_err(super::VerifyError::from)?;
    if let Some(time) = which.recent {
        let since = SystemTime::now()
            .checked_sub(time)
            .and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
        let since = since.map_or(0, |since| since.as_secs());
        paths.retain(|path| u64::try_from(path.registered).is_ok_and(|registered| registered >= since));
    }
    Ok(paths)
}

/// The server that runs, or one of our own.
fn find_server(config: &Config) -> Result<(Place, Option<Server>), CommandError> {
    let place = Place::of(config).ok_or(CommandError::Encrypted)?;
    let store = format!("StoreDir: {}\n", config.virtual_nix_store);
    let answer = Client::connect(&place).and_then(|mut client| client.get("/nix-cache-info"));
    if answer.is_ok_and(|(status, text)| status == 200 && text.starts_with(&store)) {
        return Ok((place, None));
    }
    // What is wrong with the folder is better known before.
    let kept = config.cache.as_ref().ok_or(CommandError::NoCache)?;
    if let Some((folder, owner)) = foreign(&kept.dir) {
        return Err(CommandError::Foreign { folder, owner });
    }
    match Cache::open(&kept.dir, kept.max_size, Arc::default()) {
        Ok(cache) => drop(cache),
        Err(source @ crate::cache::CacheError::Locked { .. }) => {
            return Err(CommandError::Elsewhere { place, source });
        }
        Err(error) => return Err(error.into()),
    }
    let mut plan = serve::plan(config, None)?;
    plan.bind = vec![Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))];
    let server = Server::start(plan).map_err(serve::ServeError::from)?;
    let port = server.addresses().iter().find_map(|address| match address {
        Address::Tcp(address) => Some(address.port()),
        Address::Unix(_) => None,
    });
    let place = Place::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port: port.unwrap_or(0) };
    Ok((place, Some(server)))
}

/// The folder, and its owner, where that is not who runs this. Where it is yet to be made, only root makes it in
/// another's folder without being told: what others may do there the system says.
fn foreign(dir: &Path) -> Option<(PathBuf, u32)> {
    let user = rustix::process::geteuid();
    let (folder, found) = dir.ancestors().find_map(|folder| Some((folder, fs::metadata(folder).ok()?)))?;
    let is_foreign = found.uid() != user.as_raw() && (folder == dir || user.is_root());
    is_foreign.then(|| (folder.to_owned(), found.uid()))
}

/// What came of one NAR.
enum Outcome {
    /// It is there, with so many bytes.
    There(u64),
    /// It cannot be had: collected, or damaged.
    Absent,
    /// It was not there in time.
    Late,
    /// The server can keep none.
    Refused,
}

/// What came of all.
#[derive(Default)]
struct Total {
    there: usize,
    absent: usize,
    late: usize,
    nar_bytes: u64,
    file_bytes: u64,
}

/// Asks for all of them, `lanes` at a time.
fn warm_all(paths: &[Valid], place: &Place, encoding: Encoding, lanes: usize) -> Result<Total, CommandError> {
    let mut progress = Progress::new(paths.iter().map(|path| path.nar_size).sum());
    let next = AtomicUsize::new(0);
    let (sender, told) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..lanes.min(paths.len()) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let mut lane = Lane { place, client: None };
                while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = lane.ask(path, encoding);
                    let has_failed = matches!(outcome, Err(_) | Ok(Outcome::Refused));
                    // Once nobody listens any more, there is nothing left to do.
                    if sender.send((path, outcome)).is_err() || has_failed {
                        // The others need not go on without a server.
                        next.store(paths.len(), Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut total, mut done) = (Total::default(), 0);
        loop {
            // Now and then without news, so that time goes on.
            let (path, outcome) = match told.recv_timeout(PAUSE) {
                Ok(told) => told,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    progress.at(done);
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            done += path.nar_size;
            match outcome.map_err(|source| CommandError::Server { place: place.clone(), source })? {
                Outcome::There(bytes) => {
                    total.there += 1;
                    total.nar_bytes += path.nar_size;
                    total.file_bytes += bytes;
                }
                Outcome::Absent => {
                    progress.hide();
                    total.absent += 1;
                    // The server's log says why.
                    let _ = writeln!(io::stderr(), "harmonia: {}: cannot be had", path.path);
                }
                Outcome::Late => total.late += 1,
                Outcome::Refused => return Err(CommandError::Refused { place: place.clone() }),
            }
            progress.at(done);
        }
        progress.hide();
        Ok(total)
    })
}

/// One connection, and what is asked on it.
struct Lane<'p> {
    place: &'p Place,
    client: Option<Client>,
}

impl Lane<'_> {
    fn ask(&mut self, path: &Valid, encoding: Encoding) -> io::Result<Outcome> {
        let (digits, hash) = (path.nar_hash.to_base32(), path.path.hash());
        let extension = encoding.format().extension();
        let target = format!("/nar/{digits}.nar.{extension}?hash={hash}&e={encoding}");
        let (begun, mut broken, mut refused) = (Instant::now(), 0, 0);
        while begun.elapsed() < PATIENCE {
            let asked = Instant::now();
            match self.head(&target) {
                Ok((200, Some(bytes))) => return Ok(Outcome::There(bytes)),
                // What has no length is made anew for whoever asks, and kept for nobody.
                Ok((200, None)) => return Ok(Outcome::Refused),
                Ok((404, _)) => return Ok(Outcome::Absent),
                // It goes on being made, or nobody makes it.
                Ok(_) => {
                    broken = 0;
                    refused = if asked.elapsed() < AT_ONCE { refused + 1 } else { 0 };
                    if refused == REFUSALS {
                        return Ok(Outcome::Refused);
                    }
                }
                Err(error) => {
                    self.client = None;
                    broken += 1;
                    if broken == TRIES {
                        return Err(error);
                    }
                }
            }
            thread::sleep(PAUSE);
        }
        Ok(Outcome::Late)
    }

    fn head(&mut self, target: &str) -> io::Result<(u16, Option<u64>)> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(self.place)?,
        };
        self.client.insert(client).head(target)
    }
}

fn report(total: &Total, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let Total { there, absent, late, nar_bytes, file_bytes } = total;
    let noun = if *there == 1 { "NAR" } else { "NARs" };
    write!(out, "{there} {noun} of {}, compressed to {}", size(*nar_bytes), size(*file_bytes))?;
    if absent + late == 0 {
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "; {absent} could not be had, {late} not in time")?;
    Ok(ExitCode::from(INCOMPLETE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_units() {
        let seconds = |text| period(text).map(|time| time.as_secs()).ok();
        let texts = ["7d", "12h", "30m", "2w", "", "d", "7", "-1d", "7 d", "99999999999999999999d", "1é"];
        let expected = [Some(604_800), Some(43_200), Some(1800), Some(1_209_600)];
        assert_eq!(texts.map(seconds), [&expected[..], &[None; 7]].concat()[..]);
    }
}
