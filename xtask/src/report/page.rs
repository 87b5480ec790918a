//! The page: self-contained HTML, no scripts, nothing from the network.

use std::fmt::Write;

use disk::failpoint;
use serde_json::Value;

use super::chart::{Bar, bars};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}\
h1,h2,h3{line-height:1.2}h2{margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}\
table{border-collapse:collapse;margin:.8rem 0}th,td{border:1px solid #ccc;padding:.2rem .6rem;text-align:left;vertical-align:top}\
td.n{text-align:right;font-variant-numeric:tabular-nums}th{background:#f3f3f3}.bad{background:#ffd9d6}.good{background:#dcf3dc}\
svg{width:100%;font:12px system-ui,sans-serif}.failpoint{fill:#b3541e}.random{fill:#3f6fa8}\
pre{white-space:pre-wrap;background:#f6f6f6;padding:.6rem;font-size:13px}p.note{color:#555}";

/// The page of these parts: a name of a campaign, and its JSON.
pub(super) fn render(parts: &[(&str, Value)]) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>spindle: what survives</title>",
    );
    let _ = write!(
        page,
        "<style>{STYLE}</style></head><body><h1>spindle: what survives a crash</h1>"
    );
    page.push_str(
        "<p>K: after SIGKILL of the VMM, every write that the guest saw complete reads back. P: after a power loss of the host, all that \
         completed before the last completed flush reads back, and nothing shows that was not written there. After both the image \
         opens, without corruption, and without leaks once it was opened.</p>",
    );
    page.push_str("<h2>What was run</h2>");
    runs(&mut page, parts);
    for (name, value) in parts {
        match *name {
            "simulate" => simulation(&mut page, value),
            "crash" => crash(&mut page, &value["results"]),
            _ => power(&mut page, &value["results"]),
        }
    }
    page.push_str("</body></html>\n");
    page
}

/// `text` as text of the page.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn runs(page: &mut String, parts: &[(&str, Value)]) {
    let rows = parts.iter().map(|(name, value)| {
        let run = &value["run"];
        let either = |first: &str, second: &str| {
            text(if run[first].is_null() {
                &run[second]
            } else {
                &run[first]
            })
        };
        vec![
            (*name).to_owned(),
            either("command", "command_line"),
            text(&run["date"]),
            either("revision", "git_revision"),
            text(&run["kernel"]),
            text(&run["cpu"]),
            either("cpus", "threads"),
        ]
    });
    table(
        page,
        &["campaign", "command", "date", "revision", "kernel", "CPU", "CPUs"],
        rows,
    );
}

fn simulation(page: &mut String, value: &Value) {
    page.push_str("<h2>Simulation</h2><p>The disk engine on a deterministic simulated disk; one seed decides workload, order of completion and crash.</p>");
    let crashes = &value["crashes"];
    if let Some(kill) = crashes["kill"].as_object() {
        let power = &crashes["power_loss"];
        let rows = kill
            .iter()
            .map(|(phase, states)| vec![phase.clone(), text(states), text(&power[phase])]);
        table(
            page,
            &[
                "phase of the crash",
                "states after a kill (K)",
                "states after a power loss (P)",
            ],
            rows,
        );
        let _ = write!(
            page,
            "<p>{} crash states of {} seeds.</p>",
            text(&crashes["states"]),
            text(&crashes["seeds"])
        );
    }
    if let Some(bugs) = value["planted_bugs"]["bugs"].as_array() {
        page.push_str("<h3>Bugs planted on purpose</h3>");
        let rows = bugs.iter().map(|bug| {
            vec![
                text(&bug["place"]),
                text(&bug["what"]),
                text(&bug["caught"]),
                text(&bug["scripts"]),
            ]
        });
        table(page, &["where", "what", "caught", "in scripts"], rows);
    }
    for part in ["lives", "crashes"] {
        if !value[part]["failure"].is_null() {
            let failure = &value[part]["failure"];
            let _ = write!(
                page,
                "<p class=\"bad\">{part}, seed {}: {}</p>",
                text(&failure["seed"]),
                text(&failure["message"])
            );
            let _ = write!(page, "<pre>{}</pre>", text(&failure["test"]));
        }
    }
}

fn crash(page: &mut String, results: &Value) {
    page.push_str("<h2>Kills of the real thing</h2>");
    let empty = Vec::new();
    let tallies = results.as_array().unwrap_or(&empty);
    const ROWS: [(&str, &str); 12] = [
        ("kills", "processes killed"),
        ("random_kills", "at a random moment"),
        ("failpoint_kills", "at a failpoint"),
        ("kills_during_open", "during open or recovery"),
        ("images", "images"),
        ("checks", "found free of corruption and leaks by qemu-img check"),
        ("acknowledged", "acknowledged sectors or transactions looked for"),
        ("in_flight", "requests in flight at the kill"),
        ("slices_recovered", "metadata slices taken up from cache files"),
        ("leaks_reclaimed", "leaked clusters reclaimed"),
        ("seed", "seed"),
        ("seconds", "seconds"),
    ];
    let rows = ROWS.iter().map(|(key, label)| {
        let values = tallies.iter().map(|tally| number(&tally[*key]));
        std::iter::once((*label).to_owned()).chain(values).collect()
    });
    let guests = tallies.iter().filter_map(|tally| tally["guest"].as_str());
    let head: Vec<&str> = std::iter::once("under the guest").chain(guests).collect();
    table(page, &head, rows);
    page.push_str("<h3>Recovery</h3><p class=\"note\">From the start of the process to the guest's first instruction, in milliseconds.</p>");
    let times = tallies.iter().flat_map(|tally| {
        let kinds = [("recovery", "after a kill"), ("clean_open", "after a clean end")];
        let measured = kinds
            .into_iter()
            .filter(|(key, _)| tally[*key]["count"].as_u64() != Some(0));
        measured.map(|(key, label)| {
            let spread = &tally[key];
            let values = ["count", "median", "p99", "longest"].map(|name| number(&spread[name]));
            std::iter::once(format!("{}, {label}", text(&tally["guest"])))
                .chain(values)
                .collect()
        })
    });
    table(page, &["", "measured", "median", "99 %", "longest"], times);
    for tally in tallies {
        let _ = write!(page, "<h3>Where the kills fell: {} guest</h3>", text(&tally["guest"]));
        page.push_str("<p class=\"note\">Points in the order of open, request, write-back and close; each kill counts for the last one that the process had passed.</p>");
        page.push_str(&bars(&kills(&tally["points"])));
        failures(page, &tally["failures"]);
    }
}

/// All points, in the order of the write path.
fn kills(points: &Value) -> Vec<Bar> {
    let names = std::iter::once("start").chain(failpoint::NAMES.iter().copied());
    names
        .map(|name| Bar {
            name: name.to_owned(),
            random: points[name]["random"].as_u64().unwrap_or(0),
            failpoint: points[name]["failpoint"].as_u64().unwrap_or(0),
        })
        .collect()
}

fn power(page: &mut String, results: &Value) {
    page.push_str("<h2>Power loss under the whole VMM</h2><p>The image lies on a recording file system; crash states have all that was synced and any part of the rest, torn at 512 bytes. A state under the Linux guest must have what the guest had acknowledged. QEMU runs the bare-metal guest with the same script; a kill of QEMU's leaves all that it had written.</p>");
    let empty = Vec::new();
    let columns = results.as_array().unwrap_or(&empty);
    const ROWS: [(&str, &str); 12] = [
        ("guest", "guest"),
        ("model", "model"),
        ("recordings", "recorded workloads"),
        ("events", "writes, holes and syncs in them"),
        ("syncs", "of these, syncs"),
        ("states", "crash states"),
        ("lost", "states with a sector or a file that is not what it must be"),
        ("corrupt", "states that qemu-img check calls corrupt"),
        ("refused", "states that do not open"),
        ("leaky", "states with leaks"),
        ("acknowledged", "acknowledged transactions and files looked for"),
        ("seconds", "seconds"),
    ];
    let mut head = vec![""];
    head.extend(
        columns
            .iter()
            .map(|column| column["hypervisor"].as_str().unwrap_or("?")),
    );
    let rows = ROWS.iter().map(|(key, label)| {
        let values = columns.iter().map(|column| number(&column[*key]));
        std::iter::once((*label).to_owned()).chain(values).collect()
    });
    table(page, &head, rows);
    for column in columns {
        let _ = write!(
            page,
            "<h3>{}, {} guest, {}</h3>",
            text(&column["hypervisor"]),
            text(&column["guest"]),
            text(&column["model"])
        );
        failures(page, &column["failures"]);
    }
}

fn failures(page: &mut String, failures: &Value) {
    let empty = Vec::new();
    let failures = failures.as_array().unwrap_or(&empty);
    if failures.is_empty() {
        page.push_str("<p class=\"good\">Nothing failed.</p>");
        return;
    }
    for failure in failures {
        let _ = write!(
            page,
            "<pre class=\"bad\">seed {}, {}\n{}</pre>",
            text(&failure["seed"]),
            text(&failure["place"]),
            text(&failure["what"])
        );
    }
}

fn table(page: &mut String, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    page.push_str("<table><tr>");
    for cell in head {
        let _ = write!(page, "<th>{}</th>", escaped(cell));
    }
    page.push_str("</tr>");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            let is_number = cell.starts_with(|first: char| first.is_ascii_digit());
            let class = if is_number { " class=\"n\"" } else { "" };
            let _ = write!(page, "<td{class}>{cell}</td>");
        }
        page.push_str("</tr>");
    }
    page.push_str("</table>");
}

/// A value as text of the page.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escaped(text),
        other => escaped(&other.to_string()),
    }
}

/// The same, fractions with one digit.
fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if !value.is_u64() => format!("{number:.1}"),
        _ => text(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_page_has_every_campaign_and_nothing_from_outside() {
        let tally = json!({
            "guest": "bare-metal", "kills": 7,
            "points": { "l2_update": { "random": 3, "failpoint": 4 } },
            "failures": [{ "seed": 5, "place": "here", "what": "a < b" }],
        });
        let page = render(&[
            (
                "simulate",
                json!({ "run": {}, "crashes": { "kill": { "write": 10 }, "power_loss": { "write": 20 } } }),
            ),
            (
                "crash",
                json!({ "run": { "command": "crash --kills 7" }, "results": [tally] }),
            ),
            (
                "power",
                json!({ "run": {}, "results": [{ "hypervisor": "QEMU", "model": "kill", "states": 9, "failures": [] }] }),
            ),
        ]);
        for expected in [
            "crash --kills 7",
            "l2_update",
            "a &lt; b",
            "QEMU",
            "<td class=\"n\">20</td>",
            "Nothing failed.",
        ] {
            assert!(page.contains(expected), "{expected}");
        }
        for forbidden in ["http:", "https:", "<script", "src=", "a < b"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }
}
