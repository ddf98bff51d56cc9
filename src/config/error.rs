//! Why there is no configuration, and where it stands.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::keys::kind;

/// Why there is no configuration. Messages say where, and what to do.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that was named is not readable.
    #[error("cannot read the settings file {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the TOML reader said.
        message: String,
    },
    /// A key that does not exist.
    #[error("{place}: there is no setting `{key}`{}", hint(*.nearest))]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key as it stands.
        key: String,
        /// The known key that is most like it.
        nearest: Option<&'static str>,
    },
    /// A value that cannot be.
    #[error("{place}: `{key}` must be {}, not {found}", kind(key))]
    Value {
        /// Where.
        place: Place,
        /// The key.
        key: &'static str,
        /// What it is.
        found: String,
    },
    /// One of the two TLS keys without the other.
    #[error("{place}: `{missing}` is missing: a certificate and its key are set together, or neither")]
    HalfTls {
        /// Where the other one is.
        place: Place,
        /// The key that is missing.
        missing: &'static str,
    },
    /// A relative path, and no current folder.
    #[error("`{key}` is relative, and the current folder cannot be found")]
    NoCurrentFolder {
        /// The key.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file, at a line counted from 1.
    File(PathBuf, usize),
    /// In an environment variable.
    Variable(&'static str),
    /// On the command line.
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |key| format!("; did you mean `{key}`?"))
}
