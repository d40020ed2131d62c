//! Rates as bars: a panel for each operation, a group of bars for each shape, a bar for each contender.

use std::io;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{Error, Result};
use crate::measure::{Entry, Outcome};
use crate::workload::Contender;

const WIDTH: i32 = 1080;
const LEGEND_HEIGHT: i32 = 36;
const PANEL_HEIGHT: i32 = 260;
/// Space around the bars of a panel.
const LEFT: i32 = 64;
const RIGHT: i32 = 16;
const TOP: i32 = 48;
const BOTTOM: i32 = 34;
const FONT: &str = "sans-serif";
const TICKS: i32 = 4;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

fn color(contender: Contender) -> RGBColor {
    match contender {
        Contender::Fused => RGBColor(118, 185, 0),
        Contender::Gemms => RGBColor(110, 110, 110),
        Contender::Packed => RGBColor(70, 130, 200),
        Contender::Linears => RGBColor(225, 145, 50),
    }
}

/// Draws what was measured. `path` is for errors.
pub(crate) fn to_svg(outcomes: &[Outcome], path: &Path) -> Result<String> {
    let panels = panels(outcomes);
    let places = places(&panels);
    let height = places.last().map_or(LEGEND_HEIGHT, |last| last.top + PANEL_HEIGHT);
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
    let drawn = draw(&area, &panels, &places);
    drop(area);
    drawn.map_err(|error| Error::Output {
        path: path.to_path_buf(),
        source: io::Error::other(error.to_string()),
    })?;
    Ok(svg)
}

/// Outcomes that differ in nothing but the shape, in the order in which they were measured.
fn panels(outcomes: &[Outcome]) -> Vec<Vec<&Outcome>> {
    let mut panels: Vec<Vec<&Outcome>> = Vec::new();
    for outcome in outcomes {
        let title = outcome.job.title();
        match panels.iter_mut().find(|panel| panel[0].job.title() == title) {
            Some(panel) => panel.push(outcome),
            None => panels.push(vec![outcome]),
        }
    }
    panels
}

/// Where a panel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    left: i32,
    top: i32,
    width: i32,
}

/// Panels below each other; two of few shapes share a row.
fn places(panels: &[Vec<&Outcome>]) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for panel in panels {
        let width = if panel.len() > 2 { WIDTH } else { WIDTH / 2 };
        let place = match places.last() {
            None => Place { left: 0, top: LEGEND_HEIGHT, width },
            Some(last) if last.left == 0 && last.width + width <= WIDTH => {
                Place { left: last.width, top: last.top, width }
            }
            Some(last) => Place { left: 0, top: last.top + PANEL_HEIGHT, width },
        };
        places.push(place);
    }
    places
}

fn draw(area: &Area<'_>, panels: &[Vec<&Outcome>], places: &[Place]) -> Drawn {
    area.fill(&WHITE)?;
    for (index, contender) in Contender::ALL.into_iter().enumerate() {
        let left = LEFT + index as i32 * 240;
        bar(area, [left, 12, left + 14, 26], color(contender))?;
        text(area, contender.label(), (left + 20, 19), 14, HPos::Left)?;
    }
    for (panel, place) in panels.iter().zip(places) {
        draw_panel(area, panel, *place)?;
    }
    area.present()
}

fn draw_panel(area: &Area<'_>, panel: &[&Outcome], place: Place) -> Drawn {
    let job = &panel[0].job;
    let (bottom, top) = (place.top + PANEL_HEIGHT - BOTTOM, place.top + TOP);
    let (first, last) = (place.left + LEFT, place.left + place.width - RIGHT);
    let unit = if job.is_memory_bound() { "TB/s" } else { "TFLOP/s" };
    text(area, &format!("{}: {unit}", job.title()), (first, place.top + 16), 15, HPos::Left)?;
    let rates = panel.iter().flat_map(|outcome| outcome.entries.iter().map(|entry| rate(outcome, entry)));
    let step = nice(rates.fold(0.0, f64::max) / f64::from(TICKS));
    let height = |rate: f64| (f64::from(bottom - top) * rate / (step * f64::from(TICKS))) as i32;
    for tick in 0..=TICKS {
        let value = step * f64::from(tick);
        let at = bottom - height(value);
        area.draw(&PathElement::new(vec![(first, at), (last, at)], RGBColor(220, 220, 220)))?;
        text(area, &label(value), (first - 6, at), 12, HPos::Right)?;
    }
    let group = (last - first) / panel.len() as i32;
    for (index, outcome) in panel.iter().enumerate() {
        let left = first + index as i32 * group;
        let width = (group * 4 / 5 / outcome.entries.len().max(1) as i32).clamp(1, 48);
        let start = left + (group - width * outcome.entries.len() as i32) / 2;
        for (index, entry) in outcome.entries.iter().enumerate() {
            let (x, rate) = (start + index as i32 * width, rate(outcome, entry));
            let tip = bottom - height(rate);
            bar(area, [x, tip, x + width - 1, bottom], color(entry.contender))?;
            text(area, &short(rate), (x + width / 2, tip - 7), 9, HPos::Center)?;
        }
        text(area, &outcome.job.shape.to_string(), (left + group / 2, bottom + 14), 11, HPos::Center)?;
    }
    Ok(())
}

fn rate(outcome: &Outcome, entry: &Entry) -> f64 {
    let rate =
        if outcome.job.is_memory_bound() { entry.bytes_per_second } else { entry.flops_per_second } / 1e12;
    if rate.is_finite() { rate.max(0.0) } else { 0.0 }
}

fn bar(area: &Area<'_>, [left, top, right, bottom]: [i32; 4], color: RGBColor) -> Drawn {
    area.draw(&Rectangle::new([(left, top), (right, bottom)], color.filled()))
}

/// Writes at a height that is the middle of the letters'.
fn text(area: &Area<'_>, words: &str, at: (i32, i32), size: i32, side: HPos) -> Drawn {
    let style = TextStyle::from((FONT, size)).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(words.to_owned(), at, style))
}

/// The next number of the form 1, 2, 2.5 or 5 times a power of ten; 1 for what is no size.
fn nice(value: f64) -> f64 {
    if !value.is_finite() || value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|factor| factor * power >= value);
    factor.unwrap_or(10.0) * power
}

/// A number without the digits that binary fractions leave behind.
fn label(value: f64) -> String {
    let rounded = format!("{value:.4}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Three digits or so.
fn short(rate: f64) -> String {
    if rate >= 99.5 {
        format!("{rate:.0}")
    } else if rate >= 9.95 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Op;
    use crate::report::samples;

    fn svg(outcomes: &[Outcome]) -> String {
        to_svg(outcomes, Path::new("chart.svg")).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn every_measurement_is_drawn() {
        let outcomes = samples::outcomes(&[Op::Forward, Op::Decode, Op::Mnist]);
        let text = svg(&outcomes);
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "not a whole SVG");
        for part in ["8192, 4096, 14336", "TB/s", "two linears + elementwise", "CUDA graph: TFLOP/s"] {
            assert!(text.contains(part), "{part} is missing");
        }
        assert_eq!(panels(&outcomes).len(), 1 + 1 + 2);
        // Bars, the legend's four and the background.
        assert_eq!(text.matches("<rect").count(), 4 * outcomes.len() + 4 + 1);
    }

    #[test]
    fn nothing_and_odd_numbers_can_be_drawn() {
        assert!(svg(&[]).contains("</svg>"), "nothing");
        let mut outcomes = samples::outcomes(&[Op::Mnist]);
        for (entry, odd) in outcomes[0].entries.iter_mut().zip([f64::NAN, f64::INFINITY, 0.0, -1.0]) {
            entry.flops_per_second = odd;
        }
        assert!(svg(&outcomes).contains("</svg>"), "odd numbers");
    }

    #[test]
    fn panels_of_few_shapes_share_a_row() {
        let outcomes = samples::outcomes(&[Op::Forward, Op::F32, Op::Mnist]);
        let places = places(&panels(&outcomes));
        let at: Vec<(i32, i32)> =
            places.iter().map(|place| (place.left, (place.top - LEGEND_HEIGHT) / PANEL_HEIGHT)).collect();
        let half = WIDTH / 2;
        assert_eq!(at, [(0, 0), (0, 1), (half, 1), (0, 2), (half, 2), (0, 3), (half, 3)]);
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!([190.0, 0.8, 3.0, 51.0].map(nice), [200.0, 1.0, 5.0, 100.0]);
        assert_eq!([f64::NAN, 0.0, -1.0].map(nice), [1.0; 3]);
        assert_eq!([0.30000000000000004, 200.0].map(label), ["0.3", "200"]);
        assert_eq!([742.4, 53.04, 2.914].map(short), ["742", "53.0", "2.91"]);
    }
}
