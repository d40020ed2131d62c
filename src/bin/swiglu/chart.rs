//! Rates as bars, one below the other.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: i32 = 720;
/// Space around the bars.
const LEFT: i32 = 200;
const RIGHT: i32 = 190;
const TOP: i32 = 44;
const ROW: i32 = 34;
const BAR: i32 = 22;
const FONT: &str = "sans-serif";
const COLORS: [RGBColor; 3] = [RGBColor(118, 185, 0), RGBColor(225, 145, 50), RGBColor(70, 130, 200)];

/// One bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    /// Its length, relative to that of the other bars.
    pub(crate) rate: f64,
    /// What stands at its end.
    pub(crate) label: String,
}

/// Draws bars under a title.
///
/// # Errors
/// What the drawing library says.
pub(crate) fn to_svg(title: &str, bars: &[Bar]) -> Result<String, String> {
    let mut svg = String::new();
    let size = (WIDTH as u32, (TOP + ROW * bars.len() as i32 + 10) as u32);
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = draw(&area, title, bars).map_err(|error| error.to_string());
    drop(area);
    drawn.map(|()| svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(area: &Area<'_>, title: &str, bars: &[Bar]) -> Drawn {
    area.fill(&WHITE)?;
    text(area, title, (12, TOP / 2), HPos::Left)?;
    let longest = bars.iter().map(|bar| bar.rate).fold(f64::MIN_POSITIVE, f64::max);
    for (index, bar) in bars.iter().enumerate() {
        let top = TOP + ROW * index as i32;
        let right = LEFT + (f64::from(WIDTH - LEFT - RIGHT) * (bar.rate / longest)) as i32;
        let corners = [(LEFT, top), (right, top + BAR)];
        area.draw(&Rectangle::new(corners, COLORS[index % COLORS.len()].filled()))?;
        text(area, &bar.name, (LEFT - 8, top + BAR / 2), HPos::Right)?;
        text(area, &bar.label, (right + 8, top + BAR / 2), HPos::Left)?;
    }
    area.present()
}

/// Writes at a height that is the middle of the letters'.
fn text(area: &Area<'_>, words: &str, at: (i32, i32), side: HPos) -> Drawn {
    let style = TextStyle::from((FONT, 13)).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(words.to_owned(), at, style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_is_drawn() {
        let bar = |rate: f64| Bar { name: "fused".into(), rate, label: format!("{rate} GFLOP/s") };
        let svg = to_svg("a title", &[bar(2.0), bar(1.0)]).expect("a drawing");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        // The bars and the background.
        assert_eq!(svg.matches("<rect").count(), 2 + 1);
        assert!(svg.contains("a title") && svg.contains("1 GFLOP/s"), "{svg}");
    }

    #[test]
    fn nothing_and_odd_numbers_can_be_drawn() {
        assert!(to_svg("", &[]).is_ok(), "nothing");
        let bar = |rate| Bar { name: String::new(), rate, label: String::new() };
        assert!(to_svg("", &[bar(f64::NAN), bar(f64::INFINITY), bar(0.0), bar(-1.0)]).is_ok(), "odd numbers");
    }
}
