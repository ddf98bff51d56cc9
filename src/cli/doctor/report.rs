//! A look as people read it, and as programs do.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::finding::Finding;
use super::look::{Look, Note};
use super::place::Place;

/// A cache and what the look at it came to.
pub struct Report {
    /// Its URL, as the client's settings name it.
    pub url: String,
    /// What came of it.
    pub look: Look,
}

/// The text for people.
pub fn text(reports: &[Report], source: &str, place: &Place) -> String {
    let mut text = String::new();
    let mut put = |line: String| {
        // A string takes whatever is written to it.
        let _ = writeln!(text, "{line}");
    };
    put(format!("settings: {source}"));
    for Report { url, look } in reports {
        put(format!("\n{url}"));
        for seen in &look.seen {
            put(format!("  well     {seen}"));
        }
        for Note { message, remedy } in &look.notes {
            put(format!("  note     {message}"));
            put(format!("           → {remedy}"));
        }
        for unseen in &look.unseen {
            put(format!("  unseen   {unseen}"));
        }
        for finding in &look.findings {
            put(format!("  TROUBLE  {}", finding.to_string().replace('\n', "\n           ")));
            put(format!("           → {}", finding.remedy(place, url)));
        }
    }
    let findings = || reports.iter().flat_map(|report| &report.look.findings);
    let is_partial = reports.iter().any(|report| report.look.is_partial);
    put(match findings().count() {
        0 if is_partial => "\nNothing is wrong in what was looked at; but not all could be.".to_owned(),
        0 => "\nNothing is wrong.".to_owned(),
        1 => "\nOne thing is wrong.".to_owned(),
        count => format!("\n{count} things are wrong."),
    });
    if findings().any(Finding::is_of_client) || reports.iter().any(|report| !report.look.notes.is_empty()) {
        put(format!("After changing Nix's settings: {}.", place.afterwards()));
    }
    text
}

/// The same as JSON.
pub fn json(reports: &[Report], source: &str, place: &Place) -> Value {
    let cache = |Report { url, look }: &Report| {
        let finding = |finding: &Finding| {
            // An enum of plain values can always be written.
            let mut value = serde_json::to_value(finding).unwrap_or_default();
            value["message"] = finding.to_string().into();
            value["remedy"] = finding.remedy(place, url).into();
            value
        };
        json!({
            "url": url,
            "findings": look.findings.iter().map(finding).collect::<Vec<_>>(),
            "well": look.seen,
            "notes": look.notes,
            "unseen": look.unseen,
            "complete": !look.is_partial,
        })
    };
    json!({ "settings": source, "caches": reports.iter().map(cache).collect::<Vec<_>>() })
}
