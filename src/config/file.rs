//! The settings file: TOML → typed values, each with the line it stands at.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use super::{
    COMPRESSION_LEVEL, Cold, Compression, ConfigError, Format, LineForm, Network, Owner, Place, Precompress,
    RequestLog, TlsFiles, Trusted, absolute,
};
use crate::limits::{KEEP_DAYS_MAX, WORKERS_MAX};

/// Every key, in the order of the documentation.
const KEYS: [&str; 31] = [
    "bind",
    "socket_mode",
    "socket_owner",
    "workers",
    "max_connection_rate",
    "max_connections",
    "priority",
    "enable_compression",
    "virtual_nix_store",
    "real_nix_store",
    "nix_db_path",
    "sign_key_paths",
    "sign_key_path",
    "tls_cert_path",
    "tls_key_path",
    "daemon_socket",
    "roots_dir",
    "keep_served",
    "cache_dir",
    "cache_max_size",
    "compression",
    "compression_level",
    "compression_threads",
    "compression_cold",
    "precompress",
    "transport_compression",
    "zstd",
    "request_log",
    "request_log_agent",
    "trusted_proxies",
    "proxy_protocol",
];

/// The keys of `[zstd]`.
const ZSTD_KEYS: [&str; 4] = ["level", "long_distance_matching", "window_log", "max_ldm_encoders_per_worker"];

/// `cache_max_size` where nothing sets it, in bytes: the packs of a store of some 150 GB.
const CACHE_MAX_SIZE: u64 = 20 << 30;

/// What a file says. Derived defaults are not here yet.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) bind: Option<(Vec<String>, Place)>,
    pub(super) socket_mode: Option<u32>,
    pub(super) socket_owner: Option<Owner>,
    pub(super) workers: Option<(u64, Place)>,
    pub(super) connections_per_worker: NonZeroUsize,
    pub(super) priority: i32,
    pub(super) virtual_nix_store: Option<(String, Place)>,
    pub(super) real_nix_store: Option<PathBuf>,
    pub(super) nix_db_path: Option<PathBuf>,
    pub(super) daemon_socket: Option<PathBuf>,
    pub(super) roots_dir: Option<PathBuf>,
    pub(super) keep_served: Option<Duration>,
    pub(super) cache_dir: Option<PathBuf>,
    pub(super) cache_max_size: u64,
    pub(super) compression: Compression,
    pub(super) sign_key_paths: Vec<PathBuf>,
    pub(super) request_log: Option<RequestLog>,
    pub(super) trusted_proxies: Vec<Trusted>,
    pub(super) proxy_protocol: bool,
    tls_cert: Option<(String, Place)>,
    tls_key: Option<(String, Place)>,
    warnings: Vec<String>,
}

impl Settings {
    /// Understands `text`, which stands in the file `path`.
    pub(super) fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            place: place(path, text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let mut reader = Reader { path, text, table: document.into_inner() };
        reader.refuse_unknown(&KEYS)?;
        let mut warnings = Vec::new();
        let connections_per_worker = reader.connections(&mut warnings)?;
        let priority = reader.integer("priority", "a whole number of 32 bits", i32::try_from)?;
        let sign_key_paths = reader.sign_key_paths(&mut warnings)?;
        let compression = reader.compression(&mut warnings)?;
        let request_log = reader.request_log()?;
        let trusted_proxies = reader.trusted_proxies()?;
        let proxy_protocol = reader.boolean("proxy_protocol")?.unwrap_or(false);
        if proxy_protocol && trusted_proxies.is_empty() {
            warnings.push("`proxy_protocol` has no effect without `trusted_proxies`".to_owned());
        }
        let settings = Self {
            bind: reader.texts("bind")?,
            socket_mode: reader.mode("socket_mode")?,
            socket_owner: reader.owner("socket_owner")?,
            workers: reader.integer("workers", "a whole number from 1 to 1024", u64::try_from)?,
            connections_per_worker,
            priority: priority.map_or(30, |(priority, _)| priority),
            virtual_nix_store: reader.text("virtual_nix_store")?,
            real_nix_store: reader.path("real_nix_store")?,
            nix_db_path: reader.path("nix_db_path")?,
            daemon_socket: reader.path("daemon_socket")?,
            roots_dir: reader.path("roots_dir")?,
            keep_served: reader.days("keep_served")?,
            cache_dir: reader.path("cache_dir")?,
            cache_max_size: reader.size("cache_max_size")?.unwrap_or(CACHE_MAX_SIZE),
            compression,
            sign_key_paths,
            request_log,
            trusted_proxies,
            proxy_protocol,
            tls_cert: reader.text("tls_cert_path")?,
            tls_key: reader.text("tls_key_path")?,
            warnings,
        };
        debug_assert!(reader.table.is_empty(), "a known key that nothing reads: {:?}", reader.table);
        Ok(settings)
    }

    /// What the file sets in vain.
    pub(super) fn without_effect(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// The files that TLS needs: both, or neither.
    pub(super) fn tls(&self) -> Result<Option<TlsFiles>, ConfigError> {
        let half = |place: &Place, missing| Err(ConfigError::HalfTls { place: place.clone(), missing });
        match (&self.tls_cert, &self.tls_key) {
            (None, None) => Ok(None),
            (Some((_, place)), None) => half(place, "tls_key_path"),
            (None, Some((_, place))) => half(place, "tls_cert_path"),
            (Some((certificate, _)), Some((key, _))) => Ok(Some(TlsFiles {
                certificate: absolute(Path::new(certificate), "tls_cert_path")?,
                key: absolute(Path::new(key), "tls_key_path")?,
            })),
        }
    }
}

/// A table from which the known keys are taken one by one.
struct Reader<'t> {
    path: &'t Path,
    text: &'t str,
    table: DeTable<'t>,
}

impl<'t> Reader<'t> {
    fn refuse_unknown(&self, known: &[&'static str]) -> Result<(), ConfigError> {
        let unknown = self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        // The first in the file, whatever order the table has.
        let Some(key) = unknown.min_by_key(|key| key.span().start) else { return Ok(()) };
        Err(ConfigError::UnknownKey {
            place: place(self.path, self.text, key.span().start),
            key: key.get_ref().to_string(),
            nearest: nearest(key.get_ref(), known),
        })
    }

    fn take(&mut self, key: &str) -> Option<(DeValue<'t>, Place)> {
        let value = self.table.remove(key)?;
        let place = place(self.path, self.text, value.span().start);
        Some((value.into_inner(), place))
    }

    fn text(&mut self, key: &'static str) -> Result<Option<(String, Place)>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some((DeValue::String(text), place)) if !text.is_empty() => Ok(Some((text.into_owned(), place))),
            Some((value, place)) => Err(wrong(place, key, "a text in quotes that is not empty", &value)),
        }
    }

    fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.text(key)?.map(|(text, _)| PathBuf::from(text)))
    }

    /// A text, or a list of texts.
    fn texts(&mut self, key: &'static str) -> Result<Option<(Vec<String>, Place)>, ConfigError> {
        let expected = "a text in quotes that is not empty, or a list of such";
        let read = |value, place| match value {
            DeValue::String(text) if !text.is_empty() => Ok(text.into_owned()),
            other => Err(wrong(place, key, expected, &other)),
        };
        let (path, text) = (self.path, self.text);
        let Some((value, begin)) = self.take(key) else { return Ok(None) };
        let texts = match value {
            DeValue::Array(values) => values
                .into_iter()
                .map(|value| {
                    let place = place(path, text, value.span().start);
                    read(value.into_inner(), place)
                })
                .collect::<Result<_, _>>()?,
            value => vec![read(value, begin.clone())?],
        };
        Ok(Some((texts, begin)))
    }

    /// A file's mode, as a text of octal digits.
    fn mode(&mut self, key: &'static str) -> Result<Option<u32>, ConfigError> {
        let Some((text, place)) = self.text(key)? else { return Ok(None) };
        let is_octal = text.len() <= 4 && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
        let expected = "a text of octal digits such as \"0660\"";
        mode.map(Some).ok_or_else(|| ConfigError::Value { place, key, expected, found: format!("{text:?}") })
    }

    fn owner(&mut self, key: &'static str) -> Result<Option<Owner>, ConfigError> {
        let Some((text, place)) = self.text(key)? else { return Ok(None) };
        let expected = "a text such as \"user:group\", \"user\" or \":group\"";
        let owner = Owner::parse(&text);
        owner.map(Some).ok_or_else(|| ConfigError::Value { place, key, expected, found: format!("{text:?}") })
    }

    fn request_log(&mut self) -> Result<Option<RequestLog>, ConfigError> {
        let forms = [("none", None), ("text", Some(LineForm::Text)), ("json", Some(LineForm::Json))];
        let form = self.one_of("request_log", "\"none\", \"text\" or \"json\"", &forms)?.flatten();
        let agents = self.boolean("request_log_agent")?.unwrap_or(false);
        Ok(form.map(|form| RequestLog { form, agents }))
    }

    fn trusted_proxies(&mut self) -> Result<Vec<Trusted>, ConfigError> {
        let Some((texts, place)) = self.texts("trusted_proxies")? else { return Ok(Vec::new()) };
        let read = |text: &String| match text.as_str() {
            "unix" => Ok(Trusted::Unix),
            text => Network::parse(text).map(Trusted::Network).ok_or_else(|| ConfigError::Value {
                place: place.clone(),
                key: "trusted_proxies",
                expected: "addresses, networks such as \"10.0.0.0/8\", or \"unix\"",
                found: format!("{text:?}"),
            }),
        };
        texts.iter().map(read).collect()
    }

    fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some((DeValue::Boolean(value), _)) => Ok(Some(value)),
            Some((value, place)) => Err(wrong(place, key, "true or false", &value)),
        }
    }

    /// A whole number that `narrow` takes.
    fn integer<N, E>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        narrow: impl Fn(i64) -> Result<N, E>,
    ) -> Result<Option<(N, Place)>, ConfigError> {
        let Some((value, place)) = self.take(key) else { return Ok(None) };
        let number = match &value {
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        match number.and_then(|number| narrow(number).ok()) {
            Some(number) => Ok(Some((number, place))),
            None => Err(wrong(place, key, expected, &value)),
        }
    }

    /// A number of bytes, or a text with a unit.
    fn size(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        let Some((value, place)) = self.take(key) else { return Ok(None) };
        let size = match &value {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            DeValue::String(text) => bytes(text),
            _ => None,
        };
        let expected =
            "a number of bytes or a text such as \"20G\" (units K, M, G, T of 1024 each; 0 for none)";
        size.map(Some).ok_or_else(|| wrong(place, key, expected, &value))
    }

    /// A text such as `30d` or `4w`; `None` for no time at all.
    fn days(&mut self, key: &'static str) -> Result<Option<Duration>, ConfigError> {
        let Some((value, place)) = self.take(key) else { return Ok(None) };
        let days = match &value {
            DeValue::Integer(digits) => (digits.as_str() == "0").then_some(0),
            DeValue::String(text) => days(text),
            _ => None,
        };
        let expected = "a text such as \"30d\" or \"4w\" (days or weeks, up to a hundred years; 0 for none)";
        let days = days.ok_or_else(|| wrong(place, key, expected, &value))?;
        Ok((days > 0).then(|| Duration::from_secs(days * 24 * 3600)))
    }

    /// `max_connections`, where it is set and not 0, takes the place of `max_connection_rate`; both count the
    /// connections that one worker holds at a time.
    fn connections(&mut self, warnings: &mut Vec<String>) -> Result<NonZeroUsize, ConfigError> {
        let expected = "a whole number of at least 1";
        let narrow = |number| usize::try_from(number).ok().and_then(NonZeroUsize::new).ok_or(());
        let rate = self.integer("max_connection_rate", expected, narrow)?;
        let most = self.integer("max_connections", "a whole number, 0 for none", usize::try_from)?;
        if let Some((most, _)) = most
            && let Some(most) = NonZeroUsize::new(most)
        {
            if rate.is_some() {
                warnings.push(format!(
                    "`max_connection_rate` has no effect beside `max_connections`: a worker holds at most {most} \
                     connections"
                ));
            }
            return Ok(most);
        }
        Ok(rate.map_or(NonZeroUsize::MIN.saturating_add(255), |(rate, _)| rate))
    }

    fn sign_key_paths(&mut self, warnings: &mut Vec<String>) -> Result<Vec<PathBuf>, ConfigError> {
        let (mut paths, _) = self.texts("sign_key_paths")?.unzip();
        if let Some((path, _)) = self.text("sign_key_path")? {
            warnings
                .push("`sign_key_path` is deprecated: put the path in the list `sign_key_paths`".to_owned());
            paths.get_or_insert_default().push(path);
        }
        Ok(paths.unwrap_or_default().into_iter().map(PathBuf::from).collect())
    }

    /// `enable_compression` is for zstd, where `compression` does not say otherwise.
    fn compression(&mut self, warnings: &mut Vec<String>) -> Result<Compression, ConfigError> {
        let is_enabled = self.boolean("enable_compression")?.unwrap_or(false);
        let formats = [("none", None), ("zstd", Some(Format::Zstd)), ("xz", Some(Format::Xz))];
        let format = self.one_of("compression", "\"none\", \"zstd\" or \"xz\"", &formats)?;
        let format = format.unwrap_or(is_enabled.then_some(Format::Zstd));
        let zstd_level = self.zstd(warnings)?;
        let expected = match format {
            Some(Format::Xz) => "a whole number from 0 to 9, as xz has levels",
            _ => "a whole number from 1 to 22, as zstd has levels",
        };
        let levels = match format {
            Some(Format::Xz) => 0..=9,
            _ => 1..=22,
        };
        let narrow = |level| i32::try_from(level).ok().filter(|level| levels.contains(level)).ok_or(());
        let level = self.integer("compression_level", expected, narrow)?.map(|(level, _)| level);
        let threads = self.integer("compression_threads", "a whole number from 1 to 1024", |threads| {
            usize::try_from(threads)
                .ok()
                .filter(|threads| *threads <= WORKERS_MAX)
                .and_then(NonZeroUsize::new)
                .ok_or(())
        })?;
        let colds = [("stream", Cold::Stream), ("identity", Cold::Identity)];
        let cold = self.one_of("compression_cold", "\"stream\" or \"identity\"", &colds)?;
        let in_transport = self.boolean("transport_compression")?.unwrap_or(false);
        let aheads = [("none", Precompress::Nothing), ("recent", Precompress::Recent)];
        let precompress = self.one_of("precompress", "\"none\" or \"recent\"", &aheads)?;
        if format.is_none() {
            // The level is that of what is encoded on the way, too.
            let is_level_set = level.is_some_and(|level| level != COMPRESSION_LEVEL) && !in_transport;
            let set = [
                ("compression_level", is_level_set),
                ("precompress", precompress == Some(Precompress::Recent)),
            ];
            warnings.extend(set.iter().filter(|(_, is_set)| *is_set).map(|(key, _)| {
                format!("`{key}` has no effect without `compression = \"zstd\"` or `\"xz\"`")
            }));
        }
        let is_zstd = format != Some(Format::Xz);
        Ok(Compression {
            format,
            level: zstd_level.filter(|_| is_zstd).or(level).unwrap_or(COMPRESSION_LEVEL),
            threads: threads.map(|(threads, _)| threads),
            precompress: precompress.unwrap_or(Precompress::Nothing),
            in_transport,
            cold: cold.unwrap_or(if is_zstd { Cold::Stream } else { Cold::Identity }),
        })
    }

    /// The level in `[zstd]`, of existing files. What else is there is about a stream that is compressed anew for each
    /// client, and there is none.
    fn zstd(&mut self, warnings: &mut Vec<String>) -> Result<Option<i32>, ConfigError> {
        let table = match self.take("zstd") {
            None => return Ok(None),
            Some((DeValue::Table(table), _)) => table,
            Some((value, place)) => return Err(wrong(place, "zstd", "a table", &value)),
        };
        let mut zstd = Reader { table, ..*self };
        zstd.refuse_unknown(&ZSTD_KEYS)?;
        let whole = "a whole number";
        let set = ZSTD_KEYS.into_iter().filter(|key| *key != "level" && zstd.table.contains_key(*key));
        let set: Vec<&str> = set.collect();
        let level = zstd.integer("level", whole, i32::try_from)?;
        zstd.boolean("long_distance_matching")?;
        zstd.integer("window_log", whole, u32::try_from)?;
        zstd.integer("max_ldm_encoders_per_worker", whole, u32::try_from)?;
        if !set.is_empty() {
            warnings.push(format!("[zstd] has no effect but for `level`: {}", set.join(", ")));
        }
        Ok(level.map(|(level, _)| level))
    }

    /// A text that is one of a few.
    fn one_of<T: Copy>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        values: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let Some((value, place)) = self.take(key) else { return Ok(None) };
        let found = match &value {
            DeValue::String(text) => values.iter().find(|(name, _)| name == text),
            _ => None,
        };
        found.map(|(_, found)| Some(*found)).ok_or_else(|| wrong(place, key, expected, &value))
    }
}

/// `20G`, `1.5T` or `512 MiB` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let unit = text.find(|char: char| char.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..unit].trim(), &text[unit..]);
    let shift = match unit.trim_end_matches("B").trim_end_matches("i") {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift);
    }
    let (whole, fraction) = number.split_once('.')?;
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    // More digits than that are below a byte of the largest unit.
    if fraction.is_empty() || fraction.len() > 12 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let part = u128::from(fraction.parse::<u64>().ok()?) << shift;
    // Less than one unit, so it fits.
    whole.checked_add((part / 10_u128.pow(fraction.len() as u32)) as u64)
}

/// `30d` or `4 w` in days.
fn days(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let days = match unit {
        "d" => 1,
        "w" => 7,
        _ => return None,
    };
    let number = number.trim_end();
    let number = number.bytes().all(|digit| digit.is_ascii_digit()).then(|| number.parse::<u64>().ok())??;
    number.checked_mul(days).filter(|days| *days <= KEEP_DAYS_MAX)
}

/// A value that cannot be, described by what it is.
fn wrong(place: Place, key: &'static str, expected: &'static str, value: &DeValue<'_>) -> ConfigError {
    let found = match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(digits) => digits.to_string(),
        DeValue::Float(digits) => digits.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    ConfigError::Value { place, key, expected, found }
}

/// The line of a byte of the file.
fn place(path: &Path, text: &str, byte: usize) -> Place {
    let before = &text.as_bytes()[..byte.min(text.len())];
    Place::File(path.to_owned(), memchr::memchr_iter(b'\n', before).count() + 1)
}
