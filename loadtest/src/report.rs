//! The page with plots: one file, its drawings inline, nothing fetched from anywhere.

use std::fmt::Write as _;

use serde_json::Value;

use crate::output::{size, time};

/// Of a plot, in the units of its drawing.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
/// Left of the axis: room for its labels.
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 36.0;
/// A bar's row.
const ROW: f64 = 24.0;
/// Lines in one plot; more cannot be told apart.
const LINES_MAX: usize = 10;
/// As far apart for eyes that do not tell red from green as ten can be (Tol's "muted" scheme and black).
const COLOURS: [&str; LINES_MAX] = [
    "#332288", "#cc6677", "#117733", "#ddcc77", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499",
    "#000000",
];
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
    color:#222;background:#fff}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}\
    th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd}\
    th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}svg{width:100%;height:auto}\
    .key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:13px}.key i{display:inline-block;width:1.2em;\
    height:.25em;margin-right:.4em;vertical-align:middle}.bad{color:#a00;font-weight:bold}\
    .wide{overflow-x:auto}";

/// The percentiles drawn, as the JSON names them and as people do.
const PERCENTILES: [(&str, &str); 5] =
    [("p50", "50 %"), ("p90", "90 %"), ("p99", "99 %"), ("p99_9", "99.9 %"), ("max", "max")];

/// The page for what [`to_json`](crate::output::to_json) gives.
pub fn page(measured: &Value) -> String {
    let runs = measured["runs"].as_array().map_or(&[][..], Vec::as_slice);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>Load test</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>Load test of {}</h1>\n<p>{}</p>\n",
        escape(text(&measured["target"])),
        escape(text(&measured["program"])),
    );
    if measured["comparison"].is_object() {
        section(&mut page, "Ratios", &ratios(&measured["comparison"]));
    }
    let drawn = drawn(runs);
    section(&mut page, "Latency", &latencies(&drawn));
    section(
        &mut page,
        "Requests over time",
        &timelines(&drawn, "requests", &|value| format!("{value:.0}/s")),
    );
    section(&mut page, "Bytes over time", &timelines(&drawn, "bytes", &|value| format!("{}/s", size(value))));
    section(&mut page, "Runs", &table(runs));
    page.push_str("</body></html>\n");
    page
}

fn section(page: &mut String, title: &str, content: &str) {
    if !content.is_empty() {
        let _ = write!(page, "<h2>{title}</h2>\n{content}\n");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            char => escaped.push(char),
        }
    }
    escaped
}

/// The runs that are drawn: of a comparison, whose runs are called `scenario, side, pair`, the last pair of each
/// scenario.
fn drawn(runs: &[Value]) -> Vec<&Value> {
    let sort = |run: &Value| {
        let (sort, pair) = text(&run["name"]).rsplit_once(", ")?;
        sort.contains(", ").then(|| (sort.to_owned(), pair.parse::<u64>().ok()))
    };
    let is_last = |(at, run): &(usize, &Value)| {
        let Some((own, Some(_))) = sort(run) else { return true };
        !runs[at + 1..].iter().filter_map(sort).any(|(later, _)| later == own)
    };
    runs.iter().enumerate().filter(is_last).map(|(_, run)| run).collect()
}

/// Each series that was measured, with its run's name, and the run.
fn series<'a>(runs: &[&'a Value]) -> impl Iterator<Item = (String, &'a Value, &'a Value)> {
    runs.iter().copied().flat_map(|run| {
        let all = run["series"].as_array().map_or(&[][..], Vec::as_slice);
        let several = all.iter().filter(|series| number(&series["requests"]) > 0.0).count() > 1;
        all.iter().map(move |series| {
            let (name, own) = (text(&run["name"]), text(&series["name"]));
            (if several { format!("{name}: {own}") } else { name.to_owned() }, series, run)
        })
    })
}

/// A line of a plot: its name, and points in units of the data.
type Line = (String, Vec<(f64, f64)>);

fn latencies(runs: &[&Value]) -> String {
    let line = |(name, series, _): (String, &Value, &Value)| {
        let points = PERCENTILES.iter().enumerate();
        let value =
            |(at, (key, _)): (usize, &(&str, &str))| (at as f64, number(&series["latency_us"][key]).max(1.0));
        (name, points.map(value).collect())
    };
    let measured = series(runs).filter(|(_, series, _)| number(&series["requests"]) > 0.0);
    let lines: Vec<Line> = measured.map(line).collect();
    let marks: Vec<_> =
        PERCENTILES.iter().enumerate().map(|(at, (_, name))| (at as f64, (*name).to_owned())).collect();
    plot(&lines, &marks, Scale::Logarithmic, &time)
}

fn timelines(runs: &[&Value], what: &str, unit: &dyn Fn(f64) -> String) -> String {
    let line = |(name, series, run): (String, &Value, &Value)| {
        let timeline = &series["timeline"];
        let width = number(&timeline["bin_seconds"]).max(1e-3);
        let bins = timeline[what].as_array().map_or(&[][..], Vec::as_slice);
        // The run may end within the last of them.
        let span = |at: usize| (number(&run["seconds"]) - at as f64 * width).clamp(width / 10.0, width);
        let point = |(at, bin): (usize, &Value)| ((at as f64 + 0.5) * width, number(bin) / span(at));
        (name, bins.iter().enumerate().map(point).collect::<Vec<_>>())
    };
    let lines: Vec<Line> =
        series(runs).map(line).filter(|(_, points)| points.iter().any(|point| point.1 > 0.0)).collect();
    let end = lines.iter().flat_map(|(_, points)| points).fold(0.0, |end: f64, point| end.max(point.0));
    let marks: Vec<_> =
        (0..=5).map(|part| end * f64::from(part) / 5.0).map(|at| (at, format!("{at:.1} s"))).collect();
    plot(&lines, &marks, Scale::Linear, unit)
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Logarithmic,
}

/// Where the values lie on the vertical axis.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Axis {
    fn of(lines: &[Line], scale: Scale) -> Self {
        let values = || lines.iter().flat_map(|(_, points)| points).map(|point| point.1);
        let highest = values().fold(1e-9, f64::max);
        match scale {
            Scale::Linear => Self { scale, low: 0.0, high: highest * 1.05 },
            Scale::Logarithmic => {
                let lowest = values().fold(highest, f64::min).max(1e-3);
                let (low, high) = (lowest.log10().floor(), highest.log10().ceil());
                Self { scale, low, high: if high > low { high } else { low + 1.0 } }
            }
        }
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Logarithmic { value.max(1e-3).log10() } else { value };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn marks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => (0..=4).map(|part| self.high * f64::from(part) / 4.0).collect(),
            Scale::Logarithmic => (0..=(self.high - self.low) as i32)
                .map(|step| 10f64.powf(self.low + f64::from(step)))
                .collect(),
        }
    }
}

fn plot(lines: &[Line], marks: &[(f64, String)], scale: Scale, unit: &dyn Fn(f64) -> String) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines = &lines[..lines.len().min(LINES_MAX)];
    let axis = Axis::of(lines, scale);
    let end = marks.iter().fold(1e-9, |end: f64, mark| end.max(mark.0));
    let across = |at: f64| LEFT + at / end * (WIDTH - LEFT - RIGHT);
    let mut svg = open_svg(HEIGHT);
    for value in axis.marks() {
        let y = axis.place(value);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            escape(&unit(value)),
        );
    }
    for (at, name) in marks {
        let y = HEIGHT - BOTTOM + 18.0;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>",
            across(*at),
            escape(name)
        );
    }
    let mut key = String::from("<div class=\"key\">");
    for (index, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[index];
        let points: Vec<_> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), axis.place(*y))).collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        let _ = write!(key, "<span><i style=\"background:{colour}\"></i>{}</span>", escape(name));
    }
    format!("{svg}</svg>\n{key}</div>")
}

fn open_svg(height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" font-size=\"12\" font-family=\"system-ui,sans-serif\">"
    )
}

/// A bar a ratio, its ends marked; below the line at 1 the server is cheaper.
fn ratios(comparison: &Value) -> String {
    let mut bars = Vec::new();
    for scenario in comparison["scenarios"].as_array().map_or(&[][..], Vec::as_slice) {
        for ratio in scenario["ratios"].as_array().map_or(&[][..], Vec::as_slice) {
            // Null: no pair was complete, or the peer's cost was nothing that could be measured.
            let (Some(median), Some(min), Some(max)) =
                (ratio["ratio"].as_f64(), ratio["min"].as_f64(), ratio["max"].as_f64())
            else {
                continue;
            };
            let name = format!("{} {}", text(&scenario["scenario"]), text(&ratio["measure"]));
            bars.push((name, median, min, max));
        }
    }
    if bars.is_empty() {
        return String::new();
    }
    let left = LEFT + 60.0;
    let most = bars.iter().fold(1.0, |most: f64, bar| most.max(bar.3)) * 1.1;
    let across = |value: f64| left + (value / most).clamp(0.0, 1.0) * (WIDTH - left - 60.0);
    let height = bars.len() as f64 * ROW + TOP + 10.0;
    let mut svg = open_svg(height);
    for (index, (name, ratio, min, max)) in bars.iter().enumerate() {
        let y = TOP + index as f64 * ROW;
        let colour = if *ratio <= 1.0 { COLOURS[2] } else { COLOURS[1] };
        let middle = y + ROW / 2.0 - 3.0;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{left}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\" opacity=\"0.75\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#000\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{ratio:.2}</text>",
            left - 6.0,
            middle + 4.0,
            escape(name),
            across(*ratio) - left,
            ROW - 6.0,
            across(*min),
            across(*max),
            across(*max) + 6.0,
            middle + 4.0,
        );
    }
    let one = across(1.0);
    let _ = write!(
        svg,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"0\" y2=\"{height}\" stroke=\"#000\" stroke-dasharray=\"4 3\"/></svg>"
    );
    let peer = escape(text(&comparison["peer"]));
    format!("<p>The server's cost as a multiple of {peer}'s: median and ends of all pairs.</p>\n{svg}")
}

fn table(runs: &[Value]) -> String {
    let mut rows = String::new();
    for run in runs {
        for series in run["series"].as_array().map_or(&[][..], Vec::as_slice) {
            let latency = &series["latency_us"];
            // A latency that was measured is never 0.
            let measured = number(&latency["max"]) > 0.0;
            let waited = |key: &str| if measured { time(number(&latency[key])) } else { "–".to_owned() };
            let errors: f64 =
                series["errors"].as_object().map_or(0.0, |kinds| kinds.values().map(number).sum());
            let cells = [
                escape(text(&run["name"])),
                escape(text(&series["name"])),
                run["connections"].to_string(),
                series["requests"].to_string(),
                format!("{:.0}", number(&series["per_second"])),
                size(number(&series["bytes"])),
                waited("p50"),
                waited("p99"),
                waited("p99_9"),
                waited("max"),
                run["server"]["cpu_us_per_request"].as_f64().map_or_else(|| "–".to_owned(), time),
                if errors > 0.0 { format!("<span class=\"bad\">{errors}</span>") } else { "0".to_owned() },
            ];
            let _ = writeln!(rows, "<tr><td>{}</td></tr>", cells.join("</td><td>"));
        }
    }
    let head = [
        "run",
        "series",
        "conn.",
        "requests",
        "per s",
        "bytes",
        "p50",
        "p99",
        "p99.9",
        "max",
        "server cpu/request",
        "errors",
    ];
    format!("<div class=\"wide\"><table><tr><th>{}</th></tr>\n{rows}</table></div>", head.join("</th><th>"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::output::to_json;
    use crate::stats::{Run, Series};

    fn run_of(series: Series) -> Run {
        Run {
            name: "<narinfo> & co".to_owned(),
            connections: 4,
            wall: Duration::from_secs(5),
            series: vec![series],
            server: None,
            client_cpu: Duration::ZERO,
            opened: 4,
            reconnects: 0,
            wrong: 0,
            notes: Vec::new(),
            interrupted: false,
        }
    }

    fn measured() -> Value {
        let mut series = Series::new("narinfo");
        for at in 0..500u64 {
            series.answered(200, Duration::from_micros(100 + at), Duration::from_millis(at * 10));
            series.received(1000, Duration::from_millis(at * 10));
        }
        series.failed("timed out");
        let run = run_of(series);
        let ratio = json!({ "measure": "cpu", "ratio": 0.9, "min": 0.8, "max": 1.2 });
        let comparison =
            json!({ "peer": "nginx", "scenarios": [{ "scenario": "nar@16", "ratios": [ratio] }] });
        to_json("http://a/<x>", &[run], Some(comparison))
    }

    #[test]
    fn the_page_fetches_nothing() {
        let page = page(&measured());
        // The target is named, not linked; nothing else has a scheme, and nothing names a place to load from.
        let rest = page.replace("http://a/&lt;x&gt;", "");
        for word in ["://", "src=", "href", "url(", "@import", "<script", "<link", "<img", "<iframe"] {
            assert!(!rest.contains(word), "{word}");
        }
    }

    #[test]
    fn what_was_measured_is_drawn_and_escaped() {
        let page = page(&measured());
        assert_eq!(page.matches("<polyline").count(), 3);
        assert!(page.contains("&lt;narinfo&gt; &amp; co") && !page.contains("<narinfo>"));
        assert!(page.contains(">0.90</text>") && page.contains("class=\"bad\">1<"));
        for tag in ["svg", "div", "table", "tr", "text", "h2", "p", "body", "html"] {
            let opened =
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf,"));
    }

    #[test]
    fn of_a_comparison_the_last_pair_is_drawn() {
        let names = [
            "nar@1, server, 1",
            "nar@1, nginx, 1",
            "nar@1, server, 2",
            "nar@1, nginx, 2",
            "nar, 4",
            "nar, 16",
        ];
        let runs = names.map(|name| json!({ "name": name }));
        let left: Vec<_> = drawn(&runs).into_iter().map(|run| text(&run["name"])).collect();
        assert_eq!(left, names[2..]);
    }

    #[test]
    fn a_series_without_answers_has_no_latencies() {
        let measured = measured();
        assert!(!table(measured["runs"].as_array().unwrap()).contains(">–</td><td>–<"));
        let json = to_json("http://a", &[run_of(Series::new("slow"))], None);
        let table = table(json["runs"].as_array().unwrap());
        assert!(!table.contains("µs"), "{table}");
        assert!(table.contains("<td>–</td><td>–</td><td>–</td><td>–</td>"), "{table}");
    }

    #[test]
    fn ratios_of_no_pair_are_not_drawn() {
        let none = json!({ "measure": "cpu", "ratio": null, "min": null, "max": null });
        let comparison =
            json!({ "peer": "nginx", "scenarios": [{ "scenario": "nar@16", "ratios": [none] }] });
        assert_eq!(ratios(&comparison), "");
    }

    #[test]
    fn nothing_measured_is_a_page_too() {
        let page = page(&json!({ "target": "x", "runs": [] }));
        assert!(page.contains("</html>") && !page.contains("<svg"));
    }
}
