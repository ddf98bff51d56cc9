//! `/metrics`, read by Prometheus's own parser for Python.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::store::hash_of;
use support::{Connection, Kind, Server, Store, noise, poll, wait_until, write};

/// How long the server may take for something, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Prints the families as JSON; whatever the parser refuses ends it with an error.
const SCRIPT: &str = "
import json, sys
from prometheus_client.parser import text_string_to_metric_families as parse
print(json.dumps([
    {'name': f.name, 'type': f.type, 'help': f.documentation,
     'samples': [{'name': s.name, 'labels': s.labels, 'value': s.value} for s in f.samples]}
    for f in parse(sys.stdin.read())]))
";

/// A python3 that has the parser: another may come first in PATH.
fn python() -> &'static str {
    let has_parser = |python: &&str| {
        let import = ["-c", "import prometheus_client.parser"];
        Command::new(python).args(import).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let found = ["/usr/bin/python3", "python3"].into_iter().find(has_parser);
    found.expect("python3 with prometheus_client is needed: scripts/test installs it")
}

fn families(server: &Server) -> Vec<Value> {
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let scratch = support::Scratch::new();
    let file = scratch.path().join("metrics");
    write(&file, &answer.body);
    let mut command = Command::new(python());
    command.args(["-c", SCRIPT]).stdin(std::fs::File::open(&file).expect("it was just written"));
    let output = command.output().expect("python3 runs");
    assert!(output.status.success(), "{}\n{}", support::lossy(&output.stderr), answer.text());
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

/// The families, once so many requests other than for them are counted: whoever has an answer may ask another worker
/// before the one that sent it has counted it.
fn families_after(server: &Server, requests: f64) -> Vec<Value> {
    poll("the requests to be counted", LIMIT, || {
        let families = families(server);
        let value = |name: &str, labels: &[(&str, &str)]| value(&families, name, labels);
        let all = value("harmonia_http_requests_total", &[]);
        let others = all - value("harmonia_http_requests_total", &[("path", "/metrics")]);
        let timed = value("harmonia_http_request_duration_seconds_count", &[]);
        // What is counted while the families are put together is in some and not in others.
        (others == requests && timed == all).then_some(families)
    })
}

/// The sum of a sample over the series that have these labels.
fn value(families: &[Value], name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = families.iter().flat_map(|family| family["samples"].as_array().expect("a list"));
    let wanted = samples.filter(|sample| {
        sample["name"] == name && labels.iter().all(|(key, value)| sample["labels"][key] == *value)
    });
    wanted.map(|sample| sample["value"].as_f64().expect("a number")).sum()
}

#[test]
fn the_metrics_tell_what_happened() {
    let store = Store::new(Kind::Chroot);
    let path = store.add("measured", |tree| write(tree.join("large"), noise(1, 10_000_000)));
    let (secret, _) = store.key("cache.example-1");
    let server = support::server::Settings::of(&store).keys(&[&secret]).start();
    let hash = hash_of(&path);
    let url = server.nar_url(&path);
    let nar = server.get(&url).body;
    server.get(&format!("/{}.narinfo", "0".repeat(32)));
    server.get("/a/raw/path/that/must/not/be/a/label");
    server.connect().request("PUT", "/x.narinfo", &[]).read("PUT");

    let families = families_after(&server, 5.0);
    let requests = "harmonia_http_requests_total";
    let get = ("method", "GET");
    assert_eq!(value(&families, requests, &[get, ("path", "/{hash}.narinfo"), ("status", "200")]), 1.0);
    assert_eq!(value(&families, requests, &[get, ("path", "/{hash}.narinfo"), ("status", "404")]), 1.0);
    assert_eq!(value(&families, requests, &[get, ("path", "/nar/{file}"), ("status", "200")]), 1.0);
    assert_eq!(value(&families, requests, &[("status", "405")]), 1.0);
    assert_eq!(value(&families, "harmonia_narinfo_total", &[("result", "hit")]), 1.0);
    assert_eq!(value(&families, "harmonia_narinfo_total", &[("result", "miss")]), 1.0);
    assert_eq!(value(&families, "harmonia_signatures_total", &[]), 1.0);
    assert!(value(&families, "harmonia_http_sent_bytes_total", &[]) > nar.len() as f64);
    assert!(value(&families, "harmonia_database_queries_total", &[]) >= 1.0);
    assert!(value(&families, "harmonia_connections", &[]) >= 1.0);
    assert!(value(&families, "harmonia_connections_accepted_total", &[]) >= 6.0);

    let name = "harmonia_http_request_duration_seconds";
    let counted = value(&families, &format!("{name}_count"), &[]);
    assert_eq!(counted, value(&families, requests, &[]), "each request is counted and timed");
    assert_eq!(counted, value(&families, &format!("{name}_bucket"), &[("le", "+Inf")]));
    let histogram = families.iter().find(|family| family["name"] == name).expect("it is there");
    assert_eq!(histogram["type"], "histogram");
    let bounds = histogram["samples"].as_array().expect("a list").iter();
    let largest = bounds.filter_map(|sample| sample["labels"]["le"].as_str()?.parse::<f64>().ok());
    assert!(largest.filter(|bound| bound.is_finite()).fold(0.0, f64::max) >= 60.0, "buckets reach minutes");

    for family in &families {
        assert_ne!(family["help"], "", "{}", family["name"]);
        assert_ne!(family["type"], "unknown", "{}", family["name"]);
        for sample in family["samples"].as_array().expect("a list") {
            let path = sample["labels"]["path"].as_str().unwrap_or("");
            assert!(!path.contains("raw") && !path.contains(hash), "{path}");
        }
    }
}

/// It is the peer who closes after an answer that ends the connection, as he does when he has enough.
#[test]
fn connections_are_counted_by_what_ended_them() {
    let store = Store::new(Kind::Chroot);
    let server = Server::of(&store);
    let closed = |cause| server.metric("harmonia_connections_closed_total", &[&format!("cause=\"{cause}\"")]);
    for (header, cause) in [("Connection: close", "finished"), ("Connection: keep-alive", "peer")] {
        let before = closed(cause);
        let answer = server.connect().request("GET", "/health", &[header]).read("GET");
        assert_eq!(answer.status, 200);
        // Each question comes by a connection of its own, which ends as well.
        wait_until(cause, LIMIT, || closed(cause) > before);
    }
    assert_eq!(closed("finished"), 1.0);
}

/// A transfer is counted with its last byte, and one that is cut as such.
#[test]
fn a_transfer_is_counted_when_it_has_ended() {
    let store = Store::new(Kind::Chroot);
    let path = store.add("slow", |tree| write(tree.join("large"), noise(1, 30_000_000)));
    let server = Server::of(&store);
    let url = server.nar_url(&path);
    let mut slow = Connection::narrow(server.address);
    let length = slow.request("GET", &url, &[]).read_head().content_length().expect("a NAR has a length");
    let series = ("path", "/nar/{file}");
    let mut taken = 0;
    for _ in 0..20 {
        taken += slow.take(1000).expect("it goes on").len() as u64;
        assert_eq!(value(&families(&server), "harmonia_http_requests_total", &[series]), 0.0);
    }
    slow.widen();
    assert_eq!(slow.stream_body(length - taken, |_| {}), length - taken);
    wait_until("the transfer to be counted", LIMIT, || {
        value(&families(&server), "harmonia_http_requests_total", &[series]) == 1.0
    });

    let mut cut = Connection::narrow(server.address);
    cut.request("GET", &url, &[]).read_head();
    drop(cut);
    wait_until("the abort to be counted", LIMIT, || {
        value(&families(&server), "harmonia_nar_aborts_total", &[]) >= 1.0
    });
}

/// Every query of the dashboard: those of its panels, and those that its variables are read by.
fn dashboard_queries() -> Vec<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/grafana.json"));
    let dashboard: Value = serde_json::from_str(&text.expect("it is there")).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("a list").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut queries: Vec<String> =
        targets.map(|target| target["expr"].as_str().expect("a query").to_owned()).collect();
    assert!(queries.len() > 20, "the panels have queries");
    let variables = dashboard["templating"]["list"].as_array().expect("a list").iter();
    let asked = variables.filter(|variable| variable["type"] == "query");
    queries.extend(asked.map(|variable| variable["query"].as_str().expect("a query").to_owned()));
    queries
}

/// The queries of the alerts, read as lines: `expr: QUERY`, or `expr: >-` and what is indented below it.
fn alert_queries() -> Vec<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/alerts.yml"));
    let text = text.expect("it is there");
    let queries = text.split("\n        expr: ").skip(1).map(|rest| {
        let folded = rest.strip_prefix(">-\n").map(|rest| {
            let lines = rest.lines().take_while(|line| line.starts_with("          "));
            lines.map(str::trim).collect::<Vec<_>>().join(" ")
        });
        folded.unwrap_or_else(|| rest.lines().next().expect("a line").to_owned())
    });
    let queries: Vec<String> = queries.collect();
    assert_eq!(queries.len(), text.matches("- alert: ").count(), "each alert has a query");
    // The one that is about the server's absence asks for Prometheus's own metric.
    queries.into_iter().filter(|query| !query.starts_with("up{")).collect()
}

/// The alerts that the page describes are those that there are.
#[test]
fn every_alert_is_described() {
    let read = |name: &str| std::fs::read_to_string(format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR")));
    let (alerts, page) =
        (read("alerts.yml").expect("it is there"), read("monitoring.md").expect("it is there"));
    let names: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let described = page.lines().filter_map(|line| line.strip_prefix("| `Harmonia")?.split('`').next());
    let described: Vec<String> = described.map(|rest| format!("Harmonia{rest}")).collect();
    assert_eq!(names, described);
}

/// The names and label matchers of each metric in a query: what stands before it, its name, what is in its braces.
fn selectors(query: &str) -> Vec<(&str, &str, &str)> {
    let starts = query.match_indices("harmonia_").map(|(start, _)| start);
    let found = starts.map(|start| {
        let rest = &query[start..];
        let end =
            rest.find(|char: char| !(char.is_ascii_alphanumeric() || char == '_')).unwrap_or(rest.len());
        let matchers = rest[end..].strip_prefix('{').map_or("", |inside| {
            // Values have braces too, and are quoted.
            let mut quoted = false;
            let close = inside.find(|char| {
                quoted ^= char == '"';
                char == '}' && !quoted
            });
            &inside[..close.expect("braces close")]
        });
        (&query[..start], &rest[..end], matchers)
    });
    found.collect()
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_and_labels_that_exist() {
    let store = Store::new(Kind::Chroot);
    let path = store.add("shown", |tree| write(tree.join("file"), "contents"));
    let server = Server::of(&store);
    let url = server.nar_url(&path);
    server.get(&url);
    let families = families_after(&server, 2.0);
    let samples: Vec<&Value> =
        families.iter().flat_map(|family| family["samples"].as_array().expect("a list")).collect();
    // Prometheus's own, which every series gets when it is read.
    let has_label = |sample: &Value, label: &str| label == "instance" || !sample["labels"][label].is_null();
    let alerts = alert_queries();
    assert!(alerts.len() > 5, "there are alerts");
    for query in dashboard_queries().into_iter().chain(alerts) {
        let selectors = selectors(&query);
        assert!(!selectors.is_empty(), "{query}");
        for (before, name, matchers) in selectors {
            let series: Vec<_> = samples.iter().filter(|sample| sample["name"] == name).collect();
            assert!(!series.is_empty(), "there is no {name}: {query}");
            let is_counter = name.ends_with("_total") || name.ends_with("_bucket");
            assert_eq!(before.ends_with("rate("), is_counter, "a counter is asked for its rate: {query}");
            for matcher in matchers.split(", ").filter(|matcher| !matcher.is_empty()) {
                let (label, value) = matcher.split_once('=').expect("a matcher has a value");
                assert!(
                    series.iter().all(|sample| has_label(sample, label)),
                    "{name} has no {label}: {query}"
                );
                // What is not a pattern is a value that some series has.
                let exact = value.strip_prefix('"').map(|value| value.trim_end_matches('"'));
                assert!(
                    exact.is_none_or(|value| series.iter().any(|sample| sample["labels"][label] == value)),
                    "no {name} has {matcher}: {query}"
                );
            }
            let by = before.rsplit_once("by (").and_then(|(_, rest)| rest.split_once(')'));
            for label in by.into_iter().flat_map(|(labels, _)| labels.split(", ")) {
                assert!(
                    series.iter().all(|sample| has_label(sample, label)),
                    "{name} has no {label}: {query}"
                );
            }
        }
    }
}
