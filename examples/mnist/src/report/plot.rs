//! The learning curves as SVG: training loss per step above, test accuracy per epoch below.

use std::io;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::output::{self, OutputError};

const SIZE: (u32, u32) = (900, 680);
/// A longer curve is averaged down to this many points: more than this many pixels are not there to show them.
const MAX_POINTS: usize = 1000;
const FONT: &str = "sans-serif";

/// What is drawn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Curves {
    /// The loss of each training step.
    pub(crate) losses: Vec<f32>,
    /// The fraction of right answers after each epoch.
    pub(crate) test_accuracy: Vec<f64>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

impl Curves {
    /// Draws the curves into a file.
    pub(crate) fn save(&self, path: &Path) -> Result<(), OutputError> {
        let svg =
            self.to_svg().map_err(|error| OutputError::new(path, io::Error::other(error.to_string())))?;
        output::replace(path, svg.as_bytes())
    }

    fn to_svg(&self) -> Result<String, DrawingAreaErrorKind<io::Error>> {
        let mut svg = String::new();
        self.draw(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area())?;
        Ok(svg)
    }

    fn draw(&self, area: &Area<'_>) -> Drawn {
        area.fill(&WHITE)?;
        let (upper, lower) = area.split_vertically(SIZE.1 / 2);
        let losses = thinned(&self.losses);
        let highest = losses.iter().fold(0.0_f64, |highest, point| highest.max(point.1));
        let top = if highest > 0.0 { highest * 1.05 } else { 1.0 };
        Panel { x: "step", y: "training loss", color: BLUE, bottom: 0.0, top }.draw(&upper, &losses)?;

        let percent = |fraction: f64| fraction * 100.0;
        let accuracies: Vec<(f64, f64)> = (1..=self.test_accuracy.len())
            .zip(&self.test_accuracy)
            .map(|(epoch, &fraction)| (epoch as f64, percent(fraction)))
            .filter(|point| point.1.is_finite())
            .collect();
        let lowest = accuracies.iter().fold(100.0_f64, |lowest, point| lowest.min(point.1));
        let bottom = (lowest - 2.0).max(0.0).floor();
        Panel { x: "epoch", y: "test accuracy, %", color: RED, bottom, top: 100.0 }
            .draw(&lower, &accuracies)?;
        area.present()
    }
}

/// One chart.
struct Panel {
    x: &'static str,
    y: &'static str,
    color: RGBColor,
    bottom: f64,
    top: f64,
}

impl Panel {
    fn draw(&self, area: &Area<'_>, points: &[(f64, f64)]) -> Drawn {
        let last = points.last().map_or(1.0, |point| point.0);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..last.max(1.0), self.bottom..self.top)?;
        chart
            .configure_mesh()
            // At most one label per step or epoch.
            .x_labels((last as usize + 1).clamp(2, 11))
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&label)
            .y_label_formatter(&label)
            .label_style((FONT, 14))
            .axis_desc_style((FONT, 16))
            .light_line_style(TRANSPARENT)
            .draw()?;
        chart.draw_series(LineSeries::new(points.iter().copied(), self.color.stroke_width(2)))?;
        chart.draw_series(self.marks(points))?;
        Ok(())
    }

    /// Short curves get a mark per point: a line through one point would show nothing.
    fn marks(&self, points: &[(f64, f64)]) -> Vec<Circle<(f64, f64), i32>> {
        const MAX_MARKS: usize = 50;
        let marked = if points.len() <= MAX_MARKS { points } else { &[] };
        marked.iter().map(|&point| Circle::new(point, 3, self.color.filled())).collect()
    }
}

/// A number without the digits that binary fractions leave behind.
fn label(value: &f64) -> String {
    let rounded = format!("{value:.4}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The losses by step, averaged over stretches of equal length; those that are no numbers are left out.
fn thinned(losses: &[f32]) -> Vec<(f64, f64)> {
    let stretch = losses.len().div_ceil(MAX_POINTS).max(1);
    let middle = |index: usize, length: usize| (index * stretch) as f64 + (length as f64 + 1.0) / 2.0;
    let mean = |part: &[f32]| part.iter().map(|&loss| f64::from(loss)).sum::<f64>() / part.len() as f64;
    losses
        .chunks(stretch)
        .enumerate()
        .map(|(index, part)| (middle(index, part.len()), mean(part)))
        .filter(|point| point.1.is_finite())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(losses: Vec<f32>, test_accuracy: Vec<f64>) -> String {
        Curves { losses, test_accuracy }.to_svg().expect("memory takes a drawing")
    }

    #[test]
    fn both_curves_are_drawn() {
        let text = svg((1..500).map(|step| 2.3 / step as f32).collect(), vec![0.9, 0.95, 0.97]);
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "not a whole SVG");
        for part in ["training loss", "test accuracy, %", "polyline", "circle"] {
            assert!(text.contains(part), "{part} is missing");
        }
    }

    #[test]
    fn any_numbers_can_be_drawn() {
        let odd =
            [0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE];
        for losses in [vec![], vec![0.0], vec![f32::MAX; 3], vec![f32::NAN; 3], odd.to_vec()] {
            for accuracies in [vec![], vec![1.0], vec![0.0, f64::NAN], vec![f64::NEG_INFINITY]] {
                assert!(svg(losses.clone(), accuracies).ends_with("</svg>\n"), "{losses:?}");
            }
        }
    }

    #[test]
    fn long_curves_are_thinned() {
        let points = thinned(&vec![1.5; 10 * MAX_POINTS + 1]);
        assert!(
            points.len() <= MAX_POINTS && points.iter().all(|point| point.1 == 1.5),
            "{} points",
            points.len()
        );
        assert_eq!(thinned(&[1.0, 3.0]), [(1.0, 1.0), (2.0, 3.0)], "short curves stay as they are");
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(
            [0.0, 0.30000000000000004, 97.0, 1500.0].map(|value| label(&value)),
            ["0", "0.3", "97", "1500"]
        );
    }
}
