//! Every metric is counted somewhere, and every status in its place; checked by reading the source.

use std::fs;
use std::path::{Path, PathBuf};

use harmonia::http::Status;
use harmonia::metrics::STATUS_CODES;

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
    let counting = source.lines().filter_map(|line| {
        let method = line.trim().strip_prefix("pub fn ")?;
        Some(method.split_once("(&self")?.0.to_owned())
    });
    let uncounted = counting.filter(|method| !code.contains(&format!("metrics.{method}(")));
    let unused = variants(&labels).into_iter().filter(|(set, variant)| {
        // Routes come under another name, beside the server's own.
        let names = if set == "Route" { vec!["Route", "Label"] } else { vec![set.as_str()] };
        !names.iter().any(|name| names_whole(&code, &format!("{name}::{variant}")))
    });
    let missing: Vec<String> =
        uncounted.chain(unused.map(|(set, variant)| format!("{set}::{variant}"))).collect();
    assert!(missing.is_empty(), "counted nowhere: {}", missing.join(", "));
}

/// Whether `name` stands in the code, and not only as the beginning of a longer name.
fn names_whole(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| !code[at + name.len()..].starts_with(char::is_alphanumeric))
}

/// All code outside `src/metrics`, without tests, comments and white space.
fn product_code() -> String {
    let mut folders = vec![root().join("src")];
    let mut code = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("is a folder") {
            let path: PathBuf = entry.expect("is readable").path();
            let name = path.file_name().expect("has one").to_string_lossy().into_owned();
            if path.is_dir() && name != "metrics" {
                folders.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                let text = fs::read_to_string(&path).expect("is text");
                let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                let lines = product.lines().map(|line| line.split("//").next().unwrap_or_default());
                code.extend(lines.flat_map(str::split_whitespace));
            }
        }
    }
    code
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

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
