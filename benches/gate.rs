//! Counts the instructions of the hot paths under valgrind's callgrind, and compares them with the baseline in
//! `benches/gate.txt`. A count is the same on every run and beside any load, where a time is not: this is what
//! CI can fail on. `scripts/gate` runs it.
//!
//! One program does it: as `check` or `update` it runs itself once more under callgrind, as `cases`. Callgrind
//! begins at zero with each call of [`measured`] and writes a dump at its end, so that the n-th dump is the n-th
//! case. It needs nothing but valgrind; gungraun would add a runner of its own version to install, for the same
//! counts.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program of its own, which reports")]

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use harmonia::formats::narinfo::PathInfo;
use harmonia::formats::signature::SecretKey;
use harmonia::formats::store_path::{StoreDir, StorePath};
use harmonia::http::{HeadReader, parse, range};
use harmonia::mailbox::bounded;
use harmonia::nar::Plan;
use harmonia::server::route::Route;
use harmonia::store::served::Served;

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;
use support::{ABSENT, Warm, hash, parsed};

/// How often a case goes, so that what surrounds it does not count.
const ROUNDS: u64 = 100;

/// By how much a count may grow. It is exact for one compiler and one C library; the rest is for the places
/// where inlining is decided anew by an unrelated change.
const GROWTH_MAX: f64 = 0.03;

/// The same, where the baseline was made by another compiler or for other instruction sets, or the work is a library's:
/// still less than an allocation or a copy adds to the small cases.
const GROWTH_ELSEWHERE: f64 = 0.15;

/// The case that is mostly the work of a library in assembly. What this project compiles of it varies by 3 % with how
/// unrelated code was laid out: whether a buffer of the library's is zeroed before it is filled.
const MOSTLY_A_LIBRARY: &str = "store/render and sign";

/// Growth of no more than so many instructions is none: a case of fifty is a few registers saved or not. An allocation
/// or a copy adds more.
const GROWTH_LEAST: f64 = 25.0;

type Error = Box<dyn std::error::Error>;

/// Instructions of one go, by case.
type Counts = BTreeMap<String, f64>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("update") => update(),
        Some("check") => check(),
        Some("cases") => {
            cases(&mut |name, work| {
                work();
                println!("{name}");
                measured(work);
            });
            Ok(true)
        }
        // `cargo test`: once through, so that it cannot rot.
        _ => {
            cases(&mut |_, work| work());
            Ok(true)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// What is counted: callgrind knows this function by its name.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    for _ in 0..ROUNDS {
        work();
    }
}

/// Has the compiler believe that the value is wanted; then it is dropped, as its user would.
fn spent<T>(value: T) {
    black_box(value);
}

/// Hands over every case with its name.
fn cases(run: &mut dyn FnMut(&str, &mut dyn FnMut())) {
    let mut warm = Warm::new();
    let now = Instant::now();
    let hit = Warm::request(&format!("/{}.narinfo", warm.present));
    let miss = Warm::request(&format!("/{ABSENT}.narinfo"));
    run("http/parse", &mut || spent(parse(black_box(&hit))));
    let mut heads = HeadReader::default();
    spent(heads.read(&hit));
    run("http/read a head as before", &mut || spent(heads.read(black_box(&hit))));
    let request = parsed(&hit);
    run("server/route", &mut || spent(Route::of(black_box(&request.target))));
    run("server/answer a cached narinfo", &mut || spent(warm.answer(black_box(&hit), now)));
    run("server/answer a miss", &mut || spent(warm.answer(black_box(&miss), now)));

    let (present, absent) = (hash(&warm.present), hash(ABSENT));
    let view = &mut warm.view;
    run("store/index hit", &mut || spent(view.snapshot().find(black_box(&present))));
    run("store/index miss", &mut || spent(view.snapshot().find(black_box(&absent))));
    run("store/find hit", &mut || spent(view.find(black_box(&present))));
    run("store/look", &mut || spent(view.look()));

    let etag = "\"1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\"";
    run("http/range", &mut || {
        let resumed = Some(&b"bytes=4096-"[..]);
        spent(range::resolve(black_box(resumed), Some(etag.as_bytes()), etag, 1 << 30));
    });
    let (sender, receiver) = bounded::<u64>(16, None);
    run("mailbox/send and receive", &mut || {
        let sent = sender.try_send(black_box(1)).is_ok();
        spent((sent, receiver.try_recv()));
    });

    let (dir, keys, info) = signed();
    run("store/render", &mut || {
        spent(Served::new(&dir, black_box(info.clone()), &[]));
    });
    run(MOSTLY_A_LIBRARY, &mut || {
        spent(Served::new(&dir, black_box(info.clone()), &keys));
    });

    let folder = tempfile::tempdir().expect("a scratch folder");
    let root = folder.path().join("tree");
    tree(&root);
    let plan = Arc::new(Plan::build(&root, false).expect("the tree was just made"));
    run("nar/plan", &mut || spent(Plan::build(black_box(&root), false)));
    let mut position = 0;
    run("nar/find a byte", &mut || {
        position = (position + 1_003) % plan.size();
        spent(plan.file_at(Path::new(""), position));
    });
}

/// A path with ten references, as most have some, and a key.
fn signed() -> (StoreDir, [SecretKey; 1], PathInfo) {
    let path = |number| {
        StorePath::from_basename(&format!("{ABSENT}-library-1.{number}")).expect("it is a well-formed name")
    };
    let info = PathInfo {
        path: path(10),
        nar_hash: harmonia::formats::hash::Sha256::of(b"a NAR"),
        nar_size: 123_456,
        references: (0..10).map(path).collect(),
        deriver: Some(path(11)),
        signatures: Vec::new(),
        ca: None,
        registration_time: 1,
    };
    let key = SecretKey::generate("cache.example.org-1").expect("the system gives randomness");
    (StoreDir::new("/nix/store").expect("it is one"), [key], info)
}

/// A folder in each folder, with one file each: however the file system orders names, there is nothing to
/// sort, which would count differently from machine to machine.
fn tree(root: &Path) {
    let mut folder = root.to_owned();
    for depth in 0..6 {
        fs::create_dir(&folder).expect("the scratch folder is ours");
        fs::write(folder.join("file"), vec![b'x'; depth * 997]).expect("the scratch folder is ours");
        folder.push("inner");
    }
}

/// Writes the baseline.
fn update() -> Result<bool, Error> {
    let counts = count()?;
    let mut text = format!(
        "# Instructions of one go of each hot path, counted by callgrind. Written by `scripts/gate --update`.\n\
         {}\n",
        circumstances()?
    );
    for (name, count) in &counts {
        text.push_str(&format!("{count:>10.1}  {name}\n"));
    }
    fs::write(baseline_file(), &text)?;
    print!("{text}");
    Ok(true)
}

/// Compares with the baseline; says what has grown.
fn check() -> Result<bool, Error> {
    let text = fs::read_to_string(baseline_file())?;
    let mut lines = text.lines().filter(|line| !line.starts_with("# "));
    let (made, here) = (lines.next().unwrap_or_default(), circumstances()?);
    let baseline = lines.map(read_line).collect::<Option<Counts>>().ok_or("the baseline is not readable")?;
    let mut bound = GROWTH_MAX;
    if made != here {
        bound = GROWTH_ELSEWHERE;
        println!("The baseline was made with\n  {made}\nand this is\n  {here}\nso the bound is wider.");
    }
    let counts = count()?;
    println!("{:>12}  {:>12}  {:>7}", "baseline", "now", "change");
    let mut grown = Vec::new();
    for (name, now) in &counts {
        let Some(before) = baseline.get(name) else {
            grown.push(format!("{name}: not in the baseline"));
            continue;
        };
        let change = now / before - 1.0;
        let bound = if name == MOSTLY_A_LIBRARY { GROWTH_ELSEWHERE } else { bound };
        println!("{before:>12.1}  {now:>12.1}  {:>+6.1}%  {name}", change * 100.0);
        if change > bound && now - before > GROWTH_LEAST {
            grown.push(format!("{name}: {:+.1} %", change * 100.0));
        }
    }
    grown.extend(
        baseline.keys().filter(|name| !counts.contains_key(*name)).map(|name| format!("{name}: is gone")),
    );
    if grown.is_empty() {
        println!("No hot path has grown by more than what is allowed.");
        return Ok(true);
    }
    eprintln!(
        "\nHot paths that cost more than {:.0} % over the baseline (where a library does most, {:.0} %):",
        bound * 100.0,
        GROWTH_ELSEWHERE * 100.0
    );
    grown.iter().for_each(|line| eprintln!("  {line}"));
    eprintln!(
        "Where that is meant, run `scripts/gate --update` and commit benches/gate.txt with the reason."
    );
    Ok(false)
}

fn baseline_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gate.txt")
}

/// A line of the baseline: the count, and the case's name.
fn read_line(line: &str) -> Option<(String, f64)> {
    let (count, name) = line.trim_start().split_once("  ")?;
    Some((name.to_owned(), count.parse().ok()?))
}

/// What else a count depends on: the compiler, and the instruction sets that libraries choose among at run
/// time. Valgrind shows the program no more than it knows (AVX2, not AVX-512 or SHA), so that most processors
/// look the same in it.
fn circumstances() -> Result<String, Error> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output()?;
    let version = String::from_utf8(version.stdout)?;
    #[cfg(target_arch = "x86_64")]
    let sets = if std::is_x86_feature_detected!("avx2") { " with AVX2" } else { "" };
    #[cfg(not(target_arch = "x86_64"))]
    let sets = "";
    Ok(format!("{}, {}{sets}", version.trim(), std::env::consts::ARCH))
}

/// Runs the cases under callgrind.
fn count() -> Result<Counts, Error> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("counts");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", "--dump-line=no"]);
    valgrind.args(["--zero-before=gate::measured", "--dump-after=gate::measured"]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    let output = valgrind.arg(std::env::current_exe()?).arg("cases").output();
    let output = output.map_err(|error| format!("cannot run valgrind: {error}"))?;
    if !output.status.success() {
        return Err(format!("valgrind failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let mut counts = Counts::new();
    for (index, name) in String::from_utf8(output.stdout)?.lines().enumerate() {
        let dump = fs::read_to_string(folder.path().join(format!("counts.{}", index + 1)))
            .map_err(|error| format!("callgrind's dump of {name}: {error}"))?;
        let total = dump.lines().find_map(|line| line.strip_prefix("summary: "));
        let total: f64 = total.ok_or("callgrind's dump has no sum")?.trim().parse()?;
        counts.insert(name.to_owned(), total / ROUNDS as f64);
    }
    Ok(counts)
}
