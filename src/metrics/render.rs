//! The text that Prometheus reads: exposition format 0.0.4.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::Metrics;
use super::actors::{STATUSES, WorkerMetrics};
use super::counter::{BUCKETS, Times};
use super::labels::{Actor, Closed, Kept, Label, Method, NarAbort, Query, Route, STATUS_CODES, Way};
use super::names::{self, Kind, Name};

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A label and its value.
type Pair<'a> = (&'a str, &'a str);

impl Metrics {
    /// Everything, as text; reads each counter once, allocates as it likes.
    pub fn render(&self) -> String {
        let mut text = Text(String::with_capacity(16 * 1024));
        text.begin(names::BUILD_INFO);
        text.sample(names::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.render_answers(&mut text);
        self.render_connections(&mut text);
        self.render_nars(&mut text);
        self.render_packs(&mut text);
        self.render_compression(&mut text);
        self.render_store(&mut text);
        self.render_mailboxes(&mut text);
        text.0
    }

    fn sum(&self, of: impl Fn(&WorkerMetrics) -> u64) -> u64 {
        self.workers.iter().map(|worker| of(worker)).sum()
    }

    /// Only combinations that were seen: the table has hundreds.
    fn render_answers(&self, text: &mut Text) {
        let mut seen = Vec::new();
        for &route in Route::ALL {
            for &method in Method::ALL {
                for status in 0..STATUSES {
                    let mut times = Times::default();
                    self.workers
                        .iter()
                        .for_each(|worker| worker.answers.add_to(route, method, status, &mut times));
                    if times.count() > 0 {
                        seen.push((route, method, status, times));
                    }
                }
            }
        }
        let statuses: Vec<String> =
            STATUS_CODES.iter().map(u16::to_string).chain(["other".to_owned()]).collect();
        let labels = |route: Route, method: Method, status: usize| {
            [("method", method.text()), ("path", route.text()), ("status", statuses[status].as_str())]
        };
        text.begin(names::REQUESTS);
        for (route, method, status, times) in &seen {
            text.sample(names::REQUESTS, &labels(*route, *method, *status), times.count());
        }
        text.begin(names::REQUEST_SECONDS);
        for (route, method, status, times) in &seen {
            text.histogram(names::REQUEST_SECONDS, &labels(*route, *method, *status), times);
        }
    }

    fn render_connections(&self, text: &mut Text) {
        text.single(names::SENT_BYTES, self.sum(|worker| worker.sent.get()));
        text.single(names::CONNECTIONS, self.sum(|worker| worker.connections.get()));
        text.single(names::CONNECTIONS_ACCEPTED, self.listener.accepted.get());
        text.single(names::CONNECTIONS_REFUSED, self.listener.refused.get());
        text.by(names::CONNECTIONS_CLOSED, "cause", |cause: Closed| {
            self.sum(|worker| worker.closed.get(cause))
        });
        text.single(names::ACCEPT_PAUSES, self.listener.pauses.get());
        text.single(names::UNLOGGED, self.unlogged.load(Ordering::Relaxed));
    }

    fn render_nars(&self, text: &mut Text) {
        text.begin(names::NARINFOS);
        let (hits, misses) =
            (self.sum(|worker| worker.narinfo_hits.get()), self.sum(|worker| worker.narinfo_misses.get()));
        text.sample(names::NARINFOS, &[("result", "hit")], hits);
        text.sample(names::NARINFOS, &[("result", "miss")], misses);
        text.by(names::ABORTS, "cause", |cause: NarAbort| self.sum(|worker| worker.aborts.get(cause)));
        text.begin(names::PLANS);
        text.sample(names::PLANS, &[("result", "found")], self.nar.plans_found.get());
        text.sample(names::PLANS, &[("result", "made")], self.nar.plans_made.get());
    }

    fn render_packs(&self, text: &mut Text) {
        text.begin(names::PACKS);
        text.sample(names::PACKS, &[("result", "made")], self.pack.made.get());
        text.sample(names::PACKS, &[("result", "found")], self.pack.found.get());
        text.sample(names::PACKS, &[("result", "failed")], self.pack.failed.get());
        text.single(names::PACKED_BYTES, self.pack.bytes.get());
    }

    fn render_compression(&self, text: &mut Text) {
        let compress = &self.compress;
        let (begun, ended) = (compress.begun.get(), compress.ended.get());
        text.begin(names::COMPRESSED);
        let hits = self.sum(|worker| worker.compressed_hits.get());
        text.sample(names::COMPRESSED, &[("result", "hit")], hits);
        let misses = self.sum(|worker| worker.compressed_misses.get());
        text.sample(names::COMPRESSED, &[("result", "miss")], misses);
        text.begin(names::COMPRESSIONS);
        text.sample(names::COMPRESSIONS, &[("result", "begun")], begun);
        text.sample(names::COMPRESSIONS, &[("result", "shared")], compress.shared.get());
        // Read one after the other, so that one may have ended whose beginning was not seen.
        text.single(names::COMPRESSING, begun.saturating_sub(ended));
        text.single(names::SAVED_BYTES, compress.saved_bytes.get());
        text.single(names::EVICTIONS, self.cache.evicted.get());
        text.single(names::REINSERTIONS, self.cache.carried.get());
        text.single(names::CACHE_FAILURES, compress.cache_failed.get());
        text.begin(names::CHUNK_BYTES);
        text.sample(names::CHUNK_BYTES, &[("chunks", "compressed")], compress.plain_bytes.get());
        text.sample(names::CHUNK_BYTES, &[("chunks", "found")], compress.found_bytes.get());
        text.single(names::FRAME_BYTES, compress.made_bytes.get());
        text.begin(names::COMPRESS_SECONDS);
        text.sample(names::COMPRESS_SECONDS, &[], Seconds(compress.nanoseconds.get()));
    }

    fn render_store(&self, text: &mut Text) {
        let (store, roots) = (&self.store, &self.roots);
        text.single(names::SIGNATURES, store.signatures.get());
        text.begin(names::SIGNING_SECONDS);
        text.sample(names::SIGNING_SECONDS, &[], Seconds(store.signing.get()));
        text.by(names::QUERIES, "kind", |kind: Query| store.queries.get(kind));
        text.single(names::REFRESHES, store.refreshes.get());
        text.single(names::DATABASE_BUSY, store.busy.get());
        text.single(names::DATABASE_UNAVAILABLE, store.unavailable.get());
        text.single(names::QUARANTINED, store.quarantined.get());
        text.begin(names::ROOTS);
        for &way in Way::ALL {
            text.sample(names::ROOTS, &[("way", way.text()), ("result", "taken")], roots.taken.get(way));
            text.sample(names::ROOTS, &[("way", way.text()), ("result", "failed")], roots.failed.get(way));
        }
        text.single(names::UNROOTED, roots.unrooted.get());
        text.by(names::KEPT_ROOTS, "result", |kept: Kept| self.keep.kept.get(kept));
    }

    fn render_mailboxes(&self, text: &mut Text) {
        text.by(names::MAILBOX_DEPTH, "actor", |actor: Actor| {
            let of_actor = self.depths.iter().filter(|(found, _)| *found == actor);
            of_actor.map(|(_, depth)| depth() as u64).sum()
        });
    }
}

/// The text as far as it is written.
struct Text(String);

impl Text {
    /// The two lines before a metric's samples.
    fn begin(&mut self, metric: Name) {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.write(format_args!("# HELP {0} {1}\n# TYPE {0} {kind}\n", metric.name, metric.help));
    }

    /// A metric without labels.
    fn single(&mut self, metric: Name, value: u64) {
        self.begin(metric);
        self.sample(metric, &[], value);
    }

    /// A metric with one label, a sample for each of its values.
    fn by<L: Label>(&mut self, metric: Name, label: &str, value: impl Fn(L) -> u64) {
        self.begin(metric);
        for &of in L::ALL {
            self.sample(metric, &[(label, of.text())], value(of));
        }
    }

    fn sample(&mut self, metric: Name, labels: &[Pair<'_>], value: impl std::fmt::Display) {
        self.line(metric.name, "", labels, None, value);
    }

    fn histogram(&mut self, metric: Name, labels: &[Pair<'_>], times: &Times) {
        let mut below = 0;
        for (cell, (_, bound)) in times.cells.iter().zip(&BUCKETS) {
            below += cell;
            self.line(metric.name, "_bucket", labels, Some(("le", bound)), below);
        }
        self.line(metric.name, "_bucket", labels, Some(("le", "+Inf")), times.count());
        self.line(metric.name, "_sum", labels, None, Seconds(times.nanoseconds));
        self.line(metric.name, "_count", labels, None, times.count());
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[Pair<'_>],
        last: Option<Pair<'_>>,
        value: impl std::fmt::Display,
    ) {
        self.write(format_args!("{name}{suffix}"));
        let mut separator = '{';
        for (label, of) in labels.iter().copied().chain(last) {
            self.write(format_args!("{separator}{label}=\"{of}\""));
            separator = ',';
        }
        let close = if separator == ',' { "}" } else { "" };
        self.write(format_args!("{close} {value}\n"));
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a String never fails.
        let _ = self.0.write_fmt(arguments);
    }
}

/// Nanoseconds, written in seconds.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn counted() -> Metrics {
        let mut metrics = Metrics::new(2);
        metrics.watch(Actor::Worker, || 3);
        metrics.watch(Actor::Worker, || 4);
        for worker in metrics.workers() {
            worker.request(Method::Get, Route::Narinfo, 404, Duration::from_micros(200));
            worker.sent(1000);
            worker.connections(5);
            worker.closed(Closed::Evicted);
            worker.narinfo_miss();
            worker.compressed_hit();
            worker.aborted(NarAbort::ByPeer);
        }
        metrics.workers()[0].request(Method::Head, Route::Nar, 299, Duration::from_secs(301));
        metrics.listener().accepted();
        metrics.store().signed(2, Duration::from_micros(28));
        metrics.store().queried(Query::Info);
        metrics.roots().failed(Way::Daemon);
        metrics.keep().kept(Kept::Made);
        metrics.nar().plan_made();
        metrics.pack().made(4096);
        metrics.compress().begun();
        metrics.compress().cache_failed();
        metrics.compress().saved(100, 30);
        metrics.cache().evicted(5);
        metrics.cache().carried_over(2);
        metrics.compress().compressed(100, 30, Duration::from_millis(2));
        metrics
    }

    #[test]
    fn samples() {
        let text = counted().render();
        for line in [
            "harmonia_http_requests_total{method=\"GET\",path=\"/{hash}.narinfo\",status=\"404\"} 2",
            "harmonia_http_requests_total{method=\"HEAD\",path=\"/nar/{file}\",status=\"other\"} 1",
            "harmonia_http_request_duration_seconds_bucket{method=\"GET\",path=\"/{hash}.narinfo\",status=\"404\",le=\"0.0001\"} 0",
            "harmonia_http_request_duration_seconds_bucket{method=\"GET\",path=\"/{hash}.narinfo\",status=\"404\",le=\"0.0003\"} 2",
            "harmonia_http_request_duration_seconds_bucket{method=\"HEAD\",path=\"/nar/{file}\",status=\"other\",le=\"300\"} 0",
            "harmonia_http_request_duration_seconds_bucket{method=\"HEAD\",path=\"/nar/{file}\",status=\"other\",le=\"+Inf\"} 1",
            "harmonia_http_request_duration_seconds_sum{method=\"GET\",path=\"/{hash}.narinfo\",status=\"404\"} 0.000400000",
            "harmonia_http_sent_bytes_total 2000",
            "harmonia_connections 10",
            "harmonia_connections_closed_total{cause=\"evicted\"} 2",
            "harmonia_connections_closed_total{cause=\"idle\"} 0",
            "harmonia_narinfo_total{result=\"miss\"} 2",
            "harmonia_nar_aborts_total{cause=\"peer\"} 2",
            "harmonia_packs_total{result=\"made\"} 1",
            "harmonia_packed_bytes_total 4096",
            "harmonia_compressions_total{result=\"begun\"} 1",
            "harmonia_compressing 1",
            "harmonia_compressed_nars_total{result=\"hit\"} 2",
            "harmonia_compressed_saved_bytes_total 70",
            "harmonia_cache_evictions_total 5",
            "harmonia_cache_reinsertions_total 2",
            "harmonia_cache_failures_total 1",
            "harmonia_compress_chunk_bytes_total{chunks=\"compressed\"} 100",
            "harmonia_compress_frame_bytes_total 30",
            "harmonia_compress_seconds_total 0.002000000",
            "harmonia_signatures_total 2",
            "harmonia_signing_seconds_total 0.000028000",
            "harmonia_database_queries_total{kind=\"info\"} 1",
            "harmonia_temporary_roots_total{way=\"daemon\",result=\"failed\"} 1",
            "harmonia_kept_roots_total{result=\"made\"} 1",
            "harmonia_mailbox_messages{actor=\"worker\"} 7",
            "harmonia_mailbox_messages{actor=\"store\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_name_once_and_in_order() {
        let text = counted().render();
        let typed: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(typed, names::ALL.map(|metric| metric.name));
        for metric in names::ALL {
            assert!(metric.name.starts_with("harmonia_"));
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(!metric.help.contains(['\n', '\\']) && metric.help.ends_with('.'));
        }
    }
}
