//! The ratios as a picture.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::Report;

const WIDTH: u32 = 900;
const ROW: u32 = 34;
const MARGIN: u32 = 50;
/// Where the bars begin, in pixels.
const LABELS: i32 = 430;

const BETTER: RGBColor = RGBColor(0x2a, 0x7f, 0x62);
const WORSE: RGBColor = RGBColor(0xb5, 0x4a, 0x3a);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);

/// Draws a bar for each line, with a mark at 1, and one at the goal.
pub fn draw(report: &Report, file: &Path) -> Result<()> {
    draw_bars(report, file).map_err(|error| anyhow!("Cannot draw {}: {error}", file.display()))
}

fn draw_bars(report: &Report, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let rows = &report.rows;
    let height = 2 * MARGIN + ROW * rows.len() as u32;
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let largest = rows.iter().map(|row| row.ratio).filter(|ratio| ratio.is_finite());
    let largest = largest.fold(1.5, f64::max);
    let room = f64::from(WIDTH as i32 - LABELS - 70);
    let at = |ratio: f64| LABELS + (room * ratio / largest) as i32;
    let text = |size: i32, horizontal| {
        ("sans-serif", size)
            .into_font()
            .color(&INK)
            .pos(Pos::new(horizontal, VPos::Center))
    };
    let title = "Ratio to the peer: longer is better, 1 is as good";
    area.draw(&Text::new(title, (LABELS, MARGIN as i32 / 2), text(15, HPos::Left)))?;
    for (index, row) in rows.iter().enumerate() {
        let middle = (MARGIN + ROW * index as u32 + ROW / 2) as i32;
        let label = (LABELS - 10, middle);
        area.draw(&Text::new(row.name.clone(), label, text(14, HPos::Right)))?;
        if !row.ratio.is_finite() {
            continue;
        }
        let color = if row.ratio >= row.goal.unwrap_or(1.0) {
            BETTER
        } else {
            WORSE
        };
        let bar = [(LABELS, middle - 10), (at(row.ratio), middle + 10)];
        area.draw(&Rectangle::new(bar, color.filled()))?;
        let number = (at(row.ratio) + 6, middle);
        area.draw(&Text::new(format!("{:.2}", row.ratio), number, text(14, HPos::Left)))?;
        if let Some(goal) = row.goal {
            let mark = vec![(at(goal), middle - 13), (at(goal), middle + 13)];
            area.draw(&PathElement::new(mark, INK.stroke_width(2)))?;
        }
    }
    let bottom = (MARGIN + ROW * rows.len() as u32) as i32;
    let one = vec![(at(1.0), MARGIN as i32), (at(1.0), bottom)];
    area.draw(&PathElement::new(one, INK.mix(0.4).stroke_width(1)))?;
    area.draw(&Text::new("1", (at(1.0), bottom + 14), text(13, HPos::Center)))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::disk::report::Measured;

    #[test]
    fn each_line_has_a_bar_and_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("ratios.svg");
        let row = |name: &str, ratio| Measured {
            name: name.to_owned(),
            unit: "s",
            spindle: 1.0,
            peer: ratio,
            ratio,
            goal: Some(1.3),
        };
        let report = Report {
            rows: vec![
                row("first row", 2.0),
                row("second row", 0.5),
                row("not a number", f64::NAN),
            ],
        };
        draw(&report, &file).expect("drawn");
        let svg = std::fs::read_to_string(file).expect("text");
        for text in ["<svg", "first row", "second row", "2.00", "0.50", "not a number"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }
}
