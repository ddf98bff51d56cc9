//! One NAR, fetched as a client does: measured, checked, and its middle asked for again.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use sha2::Digest as _;

use super::ask::{Cache, Reply};
use super::finding::{Finding, Transfer, millis};
use super::look::Look;
use crate::cache::decode;
use crate::cli::progress::size;
use crate::formats::hash::Sha256;
use crate::formats::narinfo::ParsedNarInfo;
use crate::limits;

/// What clients of Nix 2.14 and newer accept, by way of curl.
const ACCEPT: &str = "zstd, br, gzip, deflate";

/// Fetches the NAR of `path` for `longest` at the most, and says in `look` how it came.
pub fn try_nar(cache: &Cache, path: &str, narinfo: &ParsedNarInfo, longest: Duration, look: &mut Look) {
    if let Err(finding) = try_nar_until_trouble(cache, path, narinfo, longest, look) {
        look.findings.push(finding);
    }
}

fn try_nar_until_trouble(
    cache: &Cache,
    path: &str,
    narinfo: &ParsedNarInfo,
    longest: Duration,
    look: &mut Look,
) -> Result<(), Finding> {
    let Some(target) = target(cache, &narinfo.url) else {
        look.unseen.push(format!("the NAR of {path} is elsewhere, at {}: it was not fetched", narinfo.url));
        return Ok(());
    };
    let mut reply = asked(cache, target, &[("Accept-Encoding", ACCEPT)])?;
    let encoding = |reply: &Reply| {
        reply.header("content-encoding").filter(|name| *name != "identity").map(str::to_owned)
    };
    if let Some(encoding) = encoding(&reply) {
        look.findings.push(Transfer::Encoded { encoding }.into());
        reply = asked(cache, target, &[])?;
    }
    if let Some(encoding) = encoding(&reply) {
        look.unseen.push(format!(
            "the NAR comes as {encoding} though nobody asked for that: its hash was not checked"
        ));
        return Ok(());
    }
    let has_ranges = reply.header("accept-ranges") == Some("bytes");
    let expected = reply.header("content-length").and_then(|length| length.parse().ok());
    let mut meter = Meter::new(reply.body.as_reader(), longest);
    let contents = contents(&narinfo.compression, &mut meter);
    let Meter { received, taken, end, sample, hash, .. } = meter;
    let milliseconds = taken.as_millis() as u64;
    if taken >= limits::DOCTOR_RATE_TIME
        && received.saturating_mul(1000) / milliseconds.max(1) < limits::DOCTOR_SLOW
    {
        look.findings.push(Transfer::Slow { received, milliseconds }.into());
    }
    match end {
        Some(End::Cut(reason)) => {
            return Err(Transfer::Cut { path: path.to_owned(), received, expected, reason }.into());
        }
        Some(End::All) => {
            let file_hash = Sha256(hash.finalize().into());
            check(path, narinfo, received, file_hash, contents, look);
            look.seen.push(format!("the NAR of {path} came: {} in {}", size(received), millis(milliseconds)));
        }
        // It is time that ended it, or the decoder, which has its own finding.
        Some(End::Late) | None => match contents {
            Contents::Broken(reason) if end.is_none() => look.findings.push(broken(path, &reason)),
            _ => look.unseen.push(format!(
                "the NAR of {path} takes longer: {} came in {}, and its hash was not checked (more time: --seconds)",
                size(received),
                millis(milliseconds)
            )),
        },
    }
    match has_ranges {
        true => try_range(cache, target, &sample, look),
        false => Err(not_resumable("it has no “Accept-Ranges: bytes”")),
    }
}

/// What of a narinfo's URL follows the cache's own; nothing where it leads elsewhere.
fn target<'a>(cache: &Cache, url: &'a str) -> Option<&'a str> {
    match url.contains("://") {
        true => url.strip_prefix(&*cache.url)?.strip_prefix('/'),
        false => Some(url.trim_start_matches('/')),
    }
}

fn asked(cache: &Cache, target: &str, headers: &[(&str, &str)]) -> Result<Reply, Finding> {
    let reply = cache.get(target, headers)?;
    match reply.status {
        200 | 206 => Ok(reply),
        status => Err(Transfer::BadAnswer { target: target.to_owned(), status }.into()),
    }
}

fn not_resumable(reason: &str) -> Finding {
    Transfer::NotResumable { reason: reason.to_owned() }.into()
}

/// Asks for the second half of what began the file.
fn try_range(cache: &Cache, target: &str, sample: &[u8], look: &mut Look) -> Result<(), Finding> {
    let middle = sample.len() / 2;
    if middle == 0 {
        return Ok(());
    }
    let range = format!("bytes={middle}-{}", sample.len() - 1);
    let mut reply = cache.get(target, &[("Range", &range)])?;
    if reply.status != 206 {
        return Err(not_resumable(&format!("a request with “Range: {range}” is answered {}", reply.status)));
    }
    let mut again = Vec::new();
    let read = reply.body.as_reader().take(sample.len() as u64).read_to_end(&mut again);
    if read.is_err() || again != sample[middle..] {
        return Err(not_resumable("a range of it has other bytes than the whole"));
    }
    look.seen.push("a download that is cut can be resumed".to_owned());
    Ok(())
}

/// What the compressed bytes were made from.
enum Contents {
    Read {
        size: u64,
        hash: Sha256,
    },
    /// They cannot be decoded, or did not all come.
    Broken(String),
    /// Nothing here decodes them.
    Unknown,
}

/// Reads all that `meter` gives, decoded where that can be.
fn contents(compression: &str, meter: &mut Meter<impl Read>) -> Contents {
    let read = |from: &mut dyn Read| {
        let mut hashed = Hashed { hash: sha2::Sha256::new() };
        let size = io::copy(from, &mut hashed)?;
        Ok(Contents::Read { size, hash: Sha256(hashed.hash.finalize().into()) })
    };
    let decoded = decode::decoder(compression, &mut *meter)
        .and_then(|decoder| decoder.map(|mut decoder| read(&mut decoder)).transpose());
    let done = match decoded {
        Ok(Some(contents)) => Ok(contents),
        Ok(None) => read(meter).map(|_| Contents::Unknown),
        Err(error) => Err(error),
    };
    done.unwrap_or_else(|error: io::Error| Contents::Broken(error.to_string()))
}

/// Compares what came with what the narinfo says.
fn check(path: &str, narinfo: &ParsedNarInfo, size: u64, hash: Sha256, contents: Contents, look: &mut Look) {
    let mut compare = |what, expected: String, found: String| {
        let is_same = expected == found;
        if !is_same {
            let path = path.to_owned();
            look.findings.push(Transfer::WrongBytes { path, what, expected, found }.into());
        }
        is_same
    };
    let file =
        narinfo.file_size.is_none_or(|expected| compare("file size", expected.to_string(), size.to_string()))
            && narinfo
                .file_hash
                .is_none_or(|expected| compare("file hash", expected.to_string(), hash.to_string()));
    match contents {
        // A file that is wrong is not worth two findings.
        _ if !file => {}
        Contents::Read { size, hash } => {
            let info = &narinfo.info;
            if compare("NAR size", info.nar_size.to_string(), size.to_string()) {
                compare("NAR hash", info.nar_hash.to_string(), hash.to_string());
            }
        }
        Contents::Broken(reason) => look.findings.push(broken(path, &reason)),
        Contents::Unknown => look.unseen.push(format!(
            "the NAR of {path} is compressed by {}, which is not decoded here: only its file's hash was checked",
            narinfo.compression
        )),
    }
}

fn broken(path: &str, reason: &str) -> Finding {
    let found = format!("something that cannot be decoded: {reason}");
    Transfer::WrongBytes { path: path.to_owned(), what: "file", expected: "a compressed NAR".into(), found }
        .into()
}

/// Hashes what is written to it.
struct Hashed {
    hash: sha2::Sha256,
}

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a download ended.
enum End {
    All,
    /// It took longer than it may.
    Late,
    Cut(String),
}

/// Counts, hashes and times what is read, and ends it when it takes too long.
struct Meter<R> {
    from: R,
    longest: Duration,
    begun: Option<Instant>,
    /// From the first byte to the last, so that what the server does before does not count.
    taken: Duration,
    received: u64,
    hash: sha2::Sha256,
    /// The first bytes.
    sample: Vec<u8>,
    end: Option<End>,
}

impl<R: Read> Meter<R> {
    fn new(from: R, longest: Duration) -> Self {
        let hash = sha2::Sha256::new();
        Self {
            from,
            longest,
            begun: None,
            taken: Duration::ZERO,
            received: 0,
            hash,
            sample: Vec::new(),
            end: None,
        }
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken >= self.longest {
            self.end = Some(End::Late);
            return Err(ErrorKind::TimedOut.into());
        }
        let result = self.from.read(into);
        let begun = *self.begun.get_or_insert_with(Instant::now);
        self.taken = begun.elapsed();
        match &result {
            Ok(0) if !into.is_empty() => self.end = Some(End::All),
            Ok(count) => {
                self.received += *count as u64;
                self.hash.update(&into[..*count]);
                let room = limits::DOCTOR_SAMPLE_BYTES.saturating_sub(self.sample.len()).min(*count);
                self.sample.extend_from_slice(&into[..room]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => self.end = Some(End::Cut(error.to_string())),
        }
        result
    }
}
