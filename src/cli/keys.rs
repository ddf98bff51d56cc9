//! `harmonia keys`: signing keys as `nix-store --generate-binary-cache-key` makes them, and what they sign.

mod files;
mod rotate;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use self::files::{ExposedKey, LoadedKey, load_secret_key};
use self::files::{read, replace};
use super::output;
use crate::formats::narinfo::{self, NarInfoError, ParsedNarInfo};
use crate::formats::signature::{KeyError, PublicKey, SecretKey, Signature};
use crate::formats::store_path::StoreDir;

/// Exit status where a narinfo is not signed by a trusted key.
const NOT_VERIFIED: u8 = 1;
/// Exit status where something could not be done at all, as clap's for a wrong command line.
const FAILED: u8 = 2;

/// Make signing keys, and sign and verify narinfos with them.
#[derive(Debug, clap::Args)]
pub struct Keys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key pair: the secret key into a file that only you can read, the public key also to standard output.
    Generate {
        /// The name that clients know the key by, such as cache.example.org-1.
        name: String,
        /// Where the secret key goes; a file that is there already is never touched [default: NAME.secret].
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
        /// Where the public key goes, likewise [default: NAME.public, beside the secret one].
        #[arg(long, value_name = "FILE")]
        public_file: Option<PathBuf>,
    },
    /// Make the key that takes the place of another, and say step by step what to change, and when.
    ///
    /// NAME-2 comes after NAME-1. Run again, it makes nothing and says the steps again.
    Rotate(rotate::Rotate),
    /// Print the public key of a secret one, for trusted-public-keys in nix.conf.
    Public {
        /// The secret key's file.
        file: PathBuf,
    },
    /// Add a signature of each key to narinfo files, in place.
    Sign {
        /// The secret key's file; may be given several times.
        #[arg(long = "key", value_name = "FILE", required = true)]
        keys: Vec<PathBuf>,
        /// Write the one signed narinfo to standard output, and leave its file as it is.
        #[arg(long)]
        stdout: bool,
        /// The narinfo files.
        #[arg(value_name = "NARINFO", required = true)]
        narinfos: Vec<PathBuf>,
    },
    /// Say of each narinfo file which trusted key signed it; exits 0 if all are, 1 if one is not, 2 if one is unreadable.
    Verify {
        /// A public key, name:base64; may be given several times, or several in one, separated by blanks.
        #[arg(long, value_name = "KEY", required = true)]
        trusted: Vec<String>,
        /// The narinfo files.
        #[arg(value_name = "NARINFO", required = true)]
        narinfos: Vec<PathBuf>,
    },
}

/// Runs the command: results to standard output, what went wrong to standard error.
pub fn run(keys: &Keys) -> ExitCode {
    let mut out = output::standard();
    let done = match &keys.command {
        Command::Generate { name, secret_file, public_file } => {
            generate(name, secret_file.as_deref(), public_file.as_deref(), &mut out)
        }
        Command::Rotate(arguments) => rotate::run(arguments, &mut out),
        Command::Public { file } => public(file, &mut out),
        Command::Sign { keys, stdout, narinfos } => sign(keys, *stdout, narinfos, &mut out),
        Command::Verify { trusted, narinfos } => verify(trusted, narinfos, &mut out),
    };
    done.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(FAILED)
    })
}

/// Why a command about keys failed. No message holds any part of a secret key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {error}{}", path.display(), missing_folder(path))]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A new key's file cannot be given to whom the old one's belongs.
    #[error("see to it that the server can read {}, as it can the key in use: {error}", path.display())]
    Share {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A file to be made is there already.
    #[error("{} is there already and is left as it is: name another file", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file that holds no secret key.
    #[error("{} holds no signing key: {error}; “harmonia keys generate NAME” makes one", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        error: KeyError,
    },
    /// A key that cannot be made.
    #[error("cannot make a key of this name: {0}")]
    Generate(KeyError),
    /// A word of `--trusted` that is no public key.
    #[error("“{text}” is not a public key: {error}")]
    Trusted {
        /// The word, with what follows a colon left out: it may be a secret key.
        text: String,
        /// What is wrong with it.
        error: KeyError,
    },
    /// `--trusted` without any key.
    #[error("--trusted names no key, so nothing can be verified")]
    NoneTrusted,
    /// A file that is no narinfo.
    #[error("{} is not a narinfo: {error}", path.display())]
    NarInfo {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        error: NarInfoError,
    },
    /// A file that holds another key than the one that was named.
    #[error("{} holds the key {found}, not {wanted}", path.display())]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// The name of the key in it.
        found: String,
        /// The name that was given.
        wanted: String,
    },
    /// `--stdout` with several narinfos.
    #[error("--stdout takes one narinfo: several would run into each other")]
    SeveralToStdout,
    /// Standard output cannot be written to.
    #[error("cannot write to standard output: {0}")]
    Stdout(io::Error),
}

/// What to do first, where a file cannot be made as its folder is not there.
fn missing_folder(file: &Path) -> String {
    match file.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        Some(folder) => format!("; make the folder {} first", folder.display()),
        None => String::new(),
    }
}

fn generate(
    name: &str,
    secret_file: Option<&Path>,
    public_file: Option<&Path>,
    out: &mut dyn Write,
) -> Result<ExitCode, KeysError> {
    let key = SecretKey::generate(name).map_err(KeysError::Generate)?;
    let secret_file = secret_file.map_or_else(|| format!("{name}.secret").into(), Path::to_owned);
    let beside = || secret_file.with_file_name(format!("{name}.public"));
    let public_file = public_file.map_or_else(beside, Path::to_owned);
    files::write_pair(&key, secret_file, public_file)?;
    writeln!(out, "{}", key.public()).map_err(KeysError::Stdout)?;
    Ok(ExitCode::SUCCESS)
}

fn public(file: &Path, out: &mut dyn Write) -> Result<ExitCode, KeysError> {
    let key = load_and_warn(file)?;
    writeln!(out, "{}", key.public()).map_err(KeysError::Stdout)?;
    Ok(ExitCode::SUCCESS)
}

fn sign(
    keys: &[PathBuf],
    stdout: bool,
    narinfos: &[PathBuf],
    out: &mut dyn Write,
) -> Result<ExitCode, KeysError> {
    if stdout && narinfos.len() > 1 {
        return Err(KeysError::SeveralToStdout);
    }
    let keys = keys.iter().map(|file| load_and_warn(file)).collect::<Result<Vec<_>, _>>()?;
    each(narinfos, |path| {
        let file = read_narinfo(path)?;
        let (signed, added) = file.signed_by(&keys);
        if stdout {
            out.write_all(signed.as_bytes()).map_err(KeysError::Stdout)?;
            return Ok(ExitCode::SUCCESS);
        }
        if !added.is_empty() {
            replace(path, &signed)?;
        }
        let path = path.display();
        let done = match &*added.join(", ") {
            "" => writeln!(out, "{path}: was signed already"),
            names => writeln!(out, "{path}: signed by {names}"),
        };
        done.map_err(KeysError::Stdout)?;
        Ok(ExitCode::SUCCESS)
    })
}

fn verify(trusted: &[String], narinfos: &[PathBuf], out: &mut dyn Write) -> Result<ExitCode, KeysError> {
    let words = trusted.iter().flat_map(|words| words.split_whitespace());
    let trusted = words
        .map(|word| {
            let text = || word.split_once(':').map_or(word, |(name, _)| name).to_owned();
            PublicKey::parse(word).map_err(|error| KeysError::Trusted { text: text(), error })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if trusted.is_empty() {
        return Err(KeysError::NoneTrusted);
    }
    each(narinfos, |path| {
        let verdict = read_narinfo(path)?.verdict(&trusted);
        writeln!(out, "{}: {verdict}", path.display()).map_err(KeysError::Stdout)?;
        Ok(match verdict {
            Verdict::SignedBy(_) => ExitCode::SUCCESS,
            Verdict::Wrong(_) | Verdict::Untrusted(_) => ExitCode::from(NOT_VERIFIED),
        })
    })
}

/// Does something to each file, goes on where one fails, and gives the gravest status: 2, then 1, then 0.
fn each(
    paths: &[PathBuf],
    mut act: impl FnMut(&Path) -> Result<ExitCode, KeysError>,
) -> Result<ExitCode, KeysError> {
    let mut gravest = ExitCode::SUCCESS;
    for path in paths {
        match act(path) {
            Ok(code) if gravest == ExitCode::SUCCESS => gravest = code,
            Ok(_) => {}
            Err(error @ KeysError::Stdout(_)) => return Err(error),
            Err(error) => {
                complain(&error);
                gravest = ExitCode::from(FAILED);
            }
        }
    }
    Ok(gravest)
}

/// What a narinfo's signatures are worth.
enum Verdict {
    /// The trusted key of this name signed it.
    SignedBy(String),
    /// There is a signature under a trusted key's name, but the key did not sign this.
    Wrong(String),
    /// No signature has a trusted key's name; these are there.
    Untrusted(Vec<String>),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SignedBy(name) => write!(f, "signed by {name}"),
            Self::Wrong(name) => {
                write!(f, "NOT verified: the signature of {name} is of another key or for another content")
            }
            Self::Untrusted(names) if names.is_empty() => write!(f, "NOT verified: there is no signature"),
            Self::Untrusted(names) => {
                write!(f, "NOT verified: signed only by {}, not trusted", names.join(", "))
            }
        }
    }
}

/// A narinfo, with the text it was read from.
struct NarInfoFile {
    dir: StoreDir,
    text: String,
    parsed: ParsedNarInfo,
}

impl NarInfoFile {
    /// The text with a signature of each key, and the names of the keys that had none there.
    fn signed_by<'a>(&self, keys: &'a [SecretKey]) -> (String, Vec<&'a str>) {
        let fingerprint = narinfo::fingerprint(&self.dir, &self.parsed.info);
        let mut signatures = Vec::new();
        let mut names = Vec::new();
        for key in keys {
            let signature = key.sign(fingerprint.as_bytes()).to_string();
            if !self.parsed.info.signatures.contains(&signature) && !signatures.contains(&signature) {
                signatures.push(signature);
                names.push(key.name());
            }
        }
        (narinfo::add_signatures(&self.text, &signatures), names)
    }

    fn verdict(&self, trusted: &[PublicKey]) -> Verdict {
        if let Some(key) = self.parsed.verified_by(&self.dir, trusted) {
            return Verdict::SignedBy(key.name().to_owned());
        }
        let signatures = &self.parsed.info.signatures;
        let named = |text: &String| Signature::parse(text).map(|signature| signature.name().to_owned()).ok();
        let names: Vec<String> = signatures.iter().filter_map(named).collect();
        match names.iter().find(|name| trusted.iter().any(|key| key.name() == *name)) {
            Some(name) => Verdict::Wrong(name.clone()),
            None => Verdict::Untrusted(names),
        }
    }
}

fn read_narinfo(path: &Path) -> Result<NarInfoFile, KeysError> {
    let (text, _) = read(path)?;
    let wrong = |error| KeysError::NarInfo { path: path.to_owned(), error };
    let dir = narinfo::store_dir(&text).map_err(wrong)?;
    let parsed = narinfo::parse(&dir, &text).map_err(wrong)?;
    Ok(NarInfoFile { dir, text, parsed })
}

fn load_and_warn(path: &Path) -> Result<SecretKey, KeysError> {
    let LoadedKey { key, warning } = load_secret_key(path, None)?;
    if let Some(warning) = warning {
        complain(&warning);
    }
    Ok(key)
}

/// Says what went wrong, or may; there is nobody to tell where standard error is closed.
fn complain(message: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "harmonia: {message}");
}
