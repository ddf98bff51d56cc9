//! The settings file: TOML → typed values, each with the line it stands at.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::derive::absolute;
use super::keys::{KEYS, ZSTD_KEYS};
use super::reader::{Reader, place, wrong};
use super::{
    COMPRESSION_LEVEL, Cold, Compression, ConfigError, Format, LineForm, Network, Owner, Place, Precompress,
    RequestLog, TlsFiles, Trusted,
};
use crate::limits::WORKERS_MAX;

/// `cache_max_size` where nothing sets it, in bytes: the packs of a store of some 100 GB.
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
        let priority = reader.integer("priority", i32::try_from)?;
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
            workers: reader.integer("workers", u64::try_from)?,
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

impl Reader<'_> {
    fn request_log(&mut self) -> Result<Option<RequestLog>, ConfigError> {
        let forms = [("none", None), ("text", Some(LineForm::Text)), ("json", Some(LineForm::Json))];
        let form = self.one_of("request_log", &forms)?.flatten();
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
                found: format!("{text:?}"),
            }),
        };
        texts.iter().map(read).collect()
    }

    /// `max_connections`, where it is set and not 0, takes the place of `max_connection_rate`; both count the
    /// connections that one worker holds at a time.
    fn connections(&mut self, warnings: &mut Vec<String>) -> Result<NonZeroUsize, ConfigError> {
        let narrow = |number| usize::try_from(number).ok().and_then(NonZeroUsize::new).ok_or(());
        let rate = self.integer("max_connection_rate", narrow)?;
        let most = self.integer("max_connections", usize::try_from)?;
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
        let format = self.one_of("compression", &formats)?;
        let format = format.unwrap_or(is_enabled.then_some(Format::Zstd));
        let zstd_level = self.zstd(warnings)?;
        let levels = match format {
            Some(Format::Xz) => 0..=9,
            _ => 1..=22,
        };
        let narrow = |level| i32::try_from(level).ok().filter(|level| levels.contains(level)).ok_or(());
        let level = self.integer("compression_level", narrow)?.map(|(level, _)| level);
        let threads = self.integer("compression_threads", |threads| {
            usize::try_from(threads)
                .ok()
                .filter(|threads| *threads <= WORKERS_MAX)
                .and_then(NonZeroUsize::new)
                .ok_or(())
        })?;
        let colds = [("stream", Cold::Stream), ("identity", Cold::Identity)];
        let cold = self.one_of("compression_cold", &colds)?;
        let in_transport = self.boolean("transport_compression")?.unwrap_or(false);
        let aheads = [("none", Precompress::Nothing), ("recent", Precompress::Recent)];
        let precompress = self.one_of("precompress", &aheads)?;
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
            Some((value, place)) => return Err(wrong(place, "zstd", &value)),
        };
        let mut zstd = Reader { table, ..*self };
        zstd.refuse_unknown(&ZSTD_KEYS)?;
        let set = ZSTD_KEYS.iter().map(|key| key.name);
        let set = set.filter(|key| *key != "level" && zstd.table.contains_key(*key));
        let set: Vec<&str> = set.collect();
        let level = zstd.integer("level", i32::try_from)?;
        zstd.boolean("long_distance_matching")?;
        zstd.integer("window_log", u32::try_from)?;
        zstd.integer("max_ldm_encoders_per_worker", u32::try_from)?;
        if !set.is_empty() {
            warnings.push(format!("[zstd] has no effect but for `level`: {}", set.join(", ")));
        }
        Ok(level.map(|(level, _)| level))
    }
}
