//! The picture of where the kills fell: one bar for each point of the write path, as SVG within the page.

use std::fmt::Write;

use super::page::escaped;

/// A point, and the kills right behind it.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) random: u64,
    pub(super) failpoint: u64,
}

const ROW: u64 = 18;
const LABELS: u64 = 210;
const WIDTH: u64 = 620;

/// Bars on a scale of square roots, so that the rare ones can be seen beside the many.
pub(super) fn bars(bars: &[Bar]) -> String {
    let most = bars
        .iter()
        .map(|bar| bar.random + bar.failpoint)
        .max()
        .unwrap_or(0)
        .max(1);
    let height = ROW * (bars.len() as u64 + 2);
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg viewBox=\"0 0 {} {height}\" role=\"img\" aria-label=\"Kills by the last point passed\">",
        LABELS + WIDTH + 120
    );
    let legend = [
        (LABELS, "failpoint", "exactly there, by failpoint"),
        (LABELS + 230, "random", "at a random moment behind it"),
    ];
    for (x, class, text) in legend {
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{x}\" y=\"4\" width=\"12\" height=\"12\"/><text x=\"{}\" y=\"14\">{text}</text>",
            x + 18
        );
    }
    for (row, bar) in (2..).zip(bars) {
        let y = row * ROW;
        let total = bar.random + bar.failpoint;
        let length = (WIDTH as f64 * (total as f64 / most as f64).sqrt()) as u64;
        let fatal = (length * bar.failpoint).checked_div(total).unwrap_or(0);
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LABELS - 8,
            y + 12,
            escaped(&bar.name)
        );
        let _ = write!(
            svg,
            "<rect class=\"failpoint\" x=\"{LABELS}\" y=\"{}\" width=\"{fatal}\" height=\"13\"/>",
            y + 1
        );
        let _ = write!(
            svg,
            "<rect class=\"random\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"13\"/>",
            LABELS + fatal,
            y + 1,
            length - fatal
        );
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\">{total}</text>",
            LABELS + length + 6,
            y + 12
        );
    }
    svg.push_str("</svg>");
    svg
}
