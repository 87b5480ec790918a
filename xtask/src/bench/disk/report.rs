//! Numbers as a table, and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::rows::{Count, Row};
use super::sample::Sample;

/// A line of the report.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What it is.
    pub name: String,
    /// Of both numbers.
    pub unit: &'static str,
    /// Ours.
    pub spindle: f64,
    /// The other's.
    pub peer: f64,
    /// Above 1 if ours is the better one.
    pub ratio: f64,
    /// The ratio that we want.
    pub goal: Option<f64>,
}

/// All lines.
#[derive(Default)]
pub struct Report {
    /// In the order of measurement.
    pub rows: Vec<Measured>,
}

/// The medians of a row's samples, as one line or two.
pub fn rows_of(row: &Row, spindle: &[Sample], peer: &[Sample]) -> Vec<Measured> {
    let medians = |value: fn(&Sample) -> f64| (median(spindle, value), median(peer, value));
    let (our_time, peer_time) = medians(|sample| sample.seconds);
    let line = |name: String, unit, (spindle, peer): (f64, f64), ratio, goal| Measured {
        name,
        unit,
        spindle,
        peer,
        ratio,
        goal,
    };
    let rate = |count: Count, seconds: f64| match count {
        Count::Requests(count) => f64::from(count) / seconds,
        Count::Time | Count::TimeAndMemory => seconds,
    };
    let ratio = peer_time / our_time;
    let name = row.name.to_owned();
    let both = (rate(row.spindle.count, our_time), rate(row.peer.count, peer_time));
    match row.spindle.count {
        Count::Requests(_) => vec![line(name, "requests/s", both, ratio, row.goal)],
        Count::Time => vec![line(name, "s", both, ratio, row.goal)],
        Count::TimeAndMemory => {
            let memory = medians(|sample| sample.memory.unwrap_or(f64::NAN));
            let of_memory = format!("{name}, peak memory");
            vec![
                line(name, "s", both, ratio, row.goal),
                line(of_memory, "MiB", memory, memory.1 / memory.0, None),
            ]
        }
    }
}

fn median(samples: &[Sample], value: fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

impl Report {
    /// Adds lines.
    pub fn add(&mut self, rows: Vec<Measured>) {
        self.rows.extend(rows);
    }

    /// A table that is Markdown, too.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
        let mut line = |cells: [&str; 6]| {
            let [name, unit, spindle, peer, ratio, goal] = cells;
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "| {name:width$} | {unit:10} | {spindle:>10} | {peer:>10} | {ratio:>6} | {goal:>6} |"
            );
        };
        line(["what", "unit", "spindle", "peer", "ratio", "goal"]);
        line([
            &"-".repeat(width),
            "----------",
            "---------:",
            "---------:",
            "-----:",
            "-----:",
        ]);
        for row in &self.rows {
            let goal = row.goal.map_or(String::new(), |goal| format!("{goal:.2}"));
            line([
                &row.name,
                row.unit,
                &number(row.spindle),
                &number(row.peer),
                &format!("{:.2}", row.ratio),
                &goal,
            ]);
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> String {
        let row = |row: &Measured| {
            json!({
                "name": row.name,
                "unit": row.unit,
                "spindle": row.spindle,
                "peer": row.peer,
                "ratio": row.ratio,
            })
        };
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        format!("{:#}\n", json!({ "rows": rows }))
    }
}

fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::disk::rows;

    fn samples(seconds: &[f64]) -> Vec<Sample> {
        let sample = |seconds: &f64| Sample {
            seconds: *seconds,
            memory: Some(*seconds),
        };
        seconds.iter().map(sample).collect()
    }

    fn row(name: &str) -> Row {
        rows::all()
            .into_iter()
            .find(|row| row.name.contains(name))
            .expect("a row")
    }

    #[test]
    fn twice_as_fast_is_a_ratio_of_two() {
        let lines = rows_of(
            &row("reads, mapped, depth 1"),
            &samples(&[1.0, 9.0, 2.0]),
            &samples(&[4.0, 4.0]),
        );
        assert_eq!(lines.len(), 1);
        assert_eq!(
            (lines[0].ratio, lines[0].spindle, lines[0].peer),
            (2.0, 50_000.0, 25_000.0)
        );
        let lines = rows_of(&row("check"), &samples(&[1.0]), &samples(&[3.0]));
        assert_eq!(lines.iter().map(|line| line.ratio).collect::<Vec<_>>(), [3.0, 3.0]);
    }

    #[test]
    fn json_has_the_fields_that_are_promised() {
        let mut report = Report::default();
        report.add(rows_of(&row("convert"), &samples(&[1.0]), &samples(&[2.0])));
        let value: Value = serde_json::from_str(&report.json()).expect("JSON");
        let row = &value["rows"][0];
        assert_eq!(row["ratio"], 2.0);
        for field in ["name", "unit", "spindle", "peer"] {
            assert!(!row[field].is_null(), "{field}");
        }
        assert!(report.table().lines().count() == 3, "{}", report.table());
    }
}
