//! The command line, and the table that it prints.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints a table")]

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::contenders::{ALL, Contender};
use crate::load::Load;

/// Keep-alive connections, each with one request in flight: a few Nix clients at once.
const CONNECTIONS: usize = 64;

/// A round that takes longer is cut, and counts for what it did.
const ROUND_TIME: Duration = Duration::from_secs(20);

const USAGE: &str = "usage: engines [--requests N] [--rounds N] [part of a contender's name …]";

/// Measures what was asked for.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("--serve") => serve(arguments.get(1).map_or("", String::as_str)),
        _ => Wanted::parse(&arguments).and_then(|wanted| measure_all(&wanted)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// This process is a contender.
fn serve(name: &str) -> io::Result<()> {
    let contender = ALL.iter().find(|contender| contender.name == name);
    contender.ok_or_else(|| io::Error::other(USAGE))?.serve()
}

struct Wanted {
    /// Requests a round.
    requests: u64,
    rounds: u32,
    contenders: Vec<&'static Contender>,
}

impl Wanted {
    fn parse(arguments: &[String]) -> io::Result<Self> {
        let usage = || io::Error::other(USAGE);
        let (mut requests, mut rounds, mut names) = (100_000, 3, Vec::new());
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut number = || arguments.next().and_then(|text| text.parse::<u32>().ok()).ok_or_else(usage);
            match argument.as_str() {
                "--requests" => requests = u64::from(number()?.max(1)),
                "--rounds" => rounds = number()?.max(1),
                // Cargo says it to every bench.
                "--bench" => {}
                option if option.starts_with('-') => return Err(usage()),
                name => names.push(name),
            }
        }
        let is_wanted = |contender: &&Contender| {
            names.is_empty() || names.iter().any(|name| contender.name.contains(name))
        };
        let contenders: Vec<_> = ALL.iter().filter(is_wanted).collect();
        if contenders.is_empty() {
            return Err(usage());
        }
        Ok(Self { requests, rounds, contenders })
    }
}

/// One contender's figures.
enum Figure {
    /// Processor time a request, in each round so far.
    Times(Vec<Duration>),
    Failed(io::Error),
}

/// Rounds go through all contenders, so that a disturbance of the machine does not meet one alone.
fn measure_all(wanted: &Wanted) -> io::Result<()> {
    let cores = Cores::choose()?;
    let mut figures: Vec<_> = wanted.contenders.iter().map(|_| Figure::Times(Vec::new())).collect();
    for _ in 0..wanted.rounds {
        for (contender, figure) in wanted.contenders.iter().zip(&mut figures) {
            let Figure::Times(times) = figure else { continue };
            match measure(contender, wanted.requests, &cores) {
                Ok(time) => times.push(time),
                Err(error) => *figure = Figure::Failed(error),
            }
        }
    }
    print(wanted, &mut figures);
    Ok(())
}

fn measure(contender: &Contender, requests: u64, cores: &Cores) -> io::Result<Duration> {
    sched_setaffinity(None, &cores.server)?;
    let started = contender.start();
    sched_setaffinity(None, &cores.load)?;
    let server = started?;
    let mut load = Load::connect(server.address, CONNECTIONS)?;
    // Caches, branch predictors and allocators learn before it counts.
    load.run(requests.div_ceil(10), ROUND_TIME)?;
    let before = server.processor_time()?;
    let answered = load.run(requests, ROUND_TIME)?;
    let took = server.processor_time()?.saturating_sub(before);
    let nanoseconds = took.as_nanos() / u128::from(answered.max(1));
    Ok(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
}

/// One core for the server and another for the load, of those that this process may use.
struct Cores {
    server: CpuSet,
    load: CpuSet,
}

impl Cores {
    fn choose() -> io::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        let first = cores.next().unwrap_or(0);
        let second = cores.next().unwrap_or(first);
        if first == second {
            eprintln!("only one core: server and load share it");
        }
        Ok(Self { server: only(second), load: only(first) })
    }
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

fn print(wanted: &Wanted, figures: &mut [Figure]) {
    let (requests, rounds) = (wanted.requests, wanted.rounds);
    println!("{CONNECTIONS} connections, {requests} requests a round, least and median of {rounds} rounds\n");
    println!("| engine | processor µs/request | median | ratio |\n|---|---|---|---|");
    let mut base = None;
    for (contender, figure) in wanted.contenders.iter().zip(figures) {
        let name = contender.name;
        match figure {
            Figure::Times(times) => {
                times.sort();
                let [least, median] = [times[0], times[times.len() / 2]].map(|time| time.as_secs_f64() * 1e6);
                let ratio = least / *base.get_or_insert(least);
                println!("| {name} | {least:.1} | {median:.1} | {ratio:.2} |");
            }
            Figure::Failed(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("| {name} | not installed | | |");
            }
            Figure::Failed(error) => println!("| {name} | failed: {error} | | |"),
        }
    }
}
