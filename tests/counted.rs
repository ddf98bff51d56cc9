//! Every metric is counted somewhere, and every status in its place; checked by reading the source.

#[allow(dead_code, reason = "another test reads more of it")]
#[path = "support/source.rs"]
mod source;

use std::fs;

use harmonia::http::Status;
use harmonia::metrics::STATUS_CODES;
use source::{root, sources};

#[test]
fn every_status_has_its_place() {
    let codes: Vec<u16> = Status::ALL.iter().map(|status| status.code()).collect();
    assert_eq!(codes, STATUS_CODES);
}

/// A number that nothing moves is worse than none: it says that all is well.
#[test]
fn everything_is_counted_somewhere() {
    let source = fs::read_to_string(root().join("src/metrics/actors.rs")).expect("is there");
    let labels = fs::read_to_string(root().join("src/metrics/labels.rs")).expect("is there");
    let code = product_code();
    let methods = counting(&source);
    let uncounted = methods.iter().filter(|(actor, method)| {
        let is_shared = methods.iter().any(|(other, name)| name == method && other != actor);
        let call = format!("metrics.{method}(");
        // Of two with one name, each is counted where its own actor is named.
        !code.iter().any(|file| file.contains(&call) && (!is_shared || names_whole(file, actor)))
    });
    let uncounted = uncounted.map(|(actor, method)| format!("{actor}::{method}"));
    let unused = variants(&labels).into_iter().filter(|(set, variant)| {
        // Routes come under another name, beside the server's own.
        let names = if set == "Route" { vec!["Route", "Label"] } else { vec![set.as_str()] };
        !names.iter().any(|name| code.iter().any(|file| names_whole(file, &format!("{name}::{variant}"))))
    });
    let missing: Vec<String> =
        uncounted.chain(unused.map(|(set, variant)| format!("{set}::{variant}"))).collect();
    assert!(missing.is_empty(), "counted nowhere: {}", missing.join(", "));
}

/// What counts: the actor's counters by the name of their type, and the method.
fn counting(source: &str) -> Vec<(String, String)> {
    let (mut found, mut actor) = (Vec::new(), String::new());
    for line in source.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("impl ") {
            actor = name.trim_end_matches(" {").to_owned();
        } else if let Some(method) = line.strip_prefix("pub fn ").and_then(|line| line.split_once("(&self")) {
            found.push((actor.clone(), method.0.to_owned()));
        }
    }
    assert!(found.contains(&("PackMetrics".to_owned(), "found".to_owned())), "{found:?}");
    found
}

/// Whether `name` stands in the code, and not only as the beginning of a longer name.
fn names_whole(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| !code[at + name.len()..].starts_with(char::is_alphanumeric))
}

/// The code of each file outside `src/metrics`, without tests, comments and white space.
fn product_code() -> Vec<String> {
    let sources = sources(&["src"]);
    let counting = sources.iter().filter(|source| !source.name.starts_with("src/metrics/"));
    counting.map(|source| source.product().split_whitespace().collect()).collect()
}

/// The sets of labels and their values, as the file defines them.
fn variants(labels: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut set = String::new();
    for line in labels.lines().map(str::trim) {
        let word = line.split(' ').next().unwrap_or_default();
        if line.ends_with(" {") && line.split(' ').count() == 2 {
            set = word.to_owned();
        } else if line.ends_with("\",") && line.contains(" = \"") {
            found.push((set.clone(), word.to_owned()));
        }
    }
    assert!(found.contains(&("Actor".to_owned(), "Files".to_owned())), "{found:?}");
    found
}
