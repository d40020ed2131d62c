//! The shapes of the ten digits: a few strokes each, in a unit square with y pointing down.
//!
//! A stroke is a list of control points, joined by straight lines or by a Catmull-Rom curve. Nothing here is random;
//! `digits` bends and moves the points. Only `+ - * /` are used, so the result has the same bits on every machine.

/// A place in the unit square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    /// From the left edge.
    pub(crate) x: f32,
    /// From the upper edge.
    pub(crate) y: f32,
}

/// One movement of the pen.
#[derive(Debug)]
pub(crate) struct Stroke {
    points: &'static [Point],
    curved: bool,
}

/// One way to write a digit.
pub(crate) type Glyph = &'static [Stroke];

/// Lines that each piece of a curve is cut into: at 20 pixels per unit a piece is about 5 pixels long.
const LINES_PER_PIECE: u8 = 5;

const fn p(x: f32, y: f32) -> Point {
    Point { x, y }
}

const fn line(points: &'static [Point]) -> Stroke {
    Stroke { points, curved: false }
}

const fn curve(points: &'static [Point]) -> Stroke {
    Stroke { points, curved: true }
}

impl Stroke {
    /// The stroke as a chain of straight lines, after `moved` has been applied to each of its control points.
    pub(crate) fn trace(&self, moved: impl Fn(Point) -> Point) -> Vec<Point> {
        let points: Vec<Point> = self.points.iter().map(|&point| moved(point)).collect();
        if self.curved { smooth(&points) } else { points }
    }
}

/// A Catmull-Rom curve through `points`; equal first and last points close it without a corner.
fn smooth(points: &[Point]) -> Vec<Point> {
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return Vec::new() };
    let closed = first == last && points.len() > 2;
    let before = if closed { points[points.len() - 2] } else { first };
    let after = if closed { points[1] } else { last };
    let mut padded = Vec::with_capacity(points.len() + 2);
    padded.push(before);
    padded.extend_from_slice(points);
    padded.push(after);

    let mut out = vec![first];
    for piece in padded.windows(4) {
        for step in 1..=LINES_PER_PIECE {
            let t = f32::from(step) / f32::from(LINES_PER_PIECE);
            out.push(Point { x: cubic(t, piece, |q| q.x), y: cubic(t, piece, |q| q.y) });
        }
    }
    out
}

/// One coordinate of the piece between the two middle points of `q`, at `t` in [0, 1].
fn cubic(t: f32, q: &[Point], coordinate: impl Fn(&Point) -> f32) -> f32 {
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| coordinate(&q[i]));
    let linear = c - a;
    let square = 2.0 * a - 5.0 * b + 4.0 * c - d;
    let cube = 3.0 * (b - c) + d - a;
    b + 0.5 * t * (linear + t * (square + t * cube))
}

/// The ways to write each digit; index is the digit.
pub(crate) static GLYPHS: [&[Glyph]; 10] = [ZERO, ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN, EIGHT, NINE];

static ZERO: &[Glyph] = &[
    &[curve(&[
        p(0.50, 0.06),
        p(0.72, 0.18),
        p(0.80, 0.50),
        p(0.72, 0.82),
        p(0.50, 0.94),
        p(0.28, 0.82),
        p(0.20, 0.50),
        p(0.28, 0.18),
        p(0.50, 0.06),
    ])],
    // Narrow, with an overlapping end.
    &[curve(&[
        p(0.60, 0.10),
        p(0.40, 0.14),
        p(0.28, 0.48),
        p(0.36, 0.84),
        p(0.56, 0.92),
        p(0.70, 0.60),
        p(0.64, 0.22),
        p(0.44, 0.06),
    ])],
];

static ONE: &[Glyph] = &[
    &[line(&[p(0.50, 0.06), p(0.50, 0.94)])],
    &[line(&[p(0.34, 0.26), p(0.52, 0.06), p(0.52, 0.94)])],
    &[line(&[p(0.36, 0.24), p(0.52, 0.06), p(0.52, 0.92)]), line(&[p(0.32, 0.92), p(0.72, 0.92)])],
];

static TWO: &[Glyph] = &[
    &[
        curve(&[
            p(0.22, 0.28),
            p(0.34, 0.11),
            p(0.56, 0.08),
            p(0.73, 0.22),
            p(0.68, 0.44),
            p(0.45, 0.68),
            p(0.20, 0.92),
        ]),
        line(&[p(0.20, 0.92), p(0.80, 0.90)]),
    ],
    // With a loop at the foot.
    &[curve(&[
        p(0.24, 0.22),
        p(0.46, 0.07),
        p(0.68, 0.18),
        p(0.66, 0.46),
        p(0.42, 0.80),
        p(0.22, 0.88),
        p(0.26, 0.74),
        p(0.46, 0.80),
        p(0.82, 0.92),
    ])],
];

static THREE: &[Glyph] = &[
    &[
        curve(&[p(0.22, 0.18), p(0.46, 0.06), p(0.70, 0.18), p(0.66, 0.38), p(0.42, 0.48)]),
        curve(&[p(0.42, 0.48), p(0.70, 0.56), p(0.77, 0.76), p(0.54, 0.93), p(0.20, 0.82)]),
    ],
    // With a flat top.
    &[
        line(&[p(0.24, 0.08), p(0.74, 0.08), p(0.46, 0.42)]),
        curve(&[p(0.46, 0.42), p(0.70, 0.52), p(0.76, 0.74), p(0.54, 0.93), p(0.22, 0.84)]),
    ],
];

static FOUR: &[Glyph] = &[
    &[line(&[p(0.32, 0.08), p(0.22, 0.56), p(0.82, 0.54)]), line(&[p(0.66, 0.22), p(0.62, 0.94)])],
    &[line(&[p(0.82, 0.64), p(0.18, 0.64), p(0.62, 0.06), p(0.62, 0.94)])],
];

static FIVE: &[Glyph] = &[
    &[
        line(&[p(0.76, 0.08), p(0.32, 0.09), p(0.28, 0.44)]),
        curve(&[p(0.28, 0.44), p(0.52, 0.38), p(0.74, 0.54), p(0.74, 0.78), p(0.50, 0.93), p(0.20, 0.82)]),
    ],
    // Without a corner, as an s.
    &[curve(&[
        p(0.74, 0.10),
        p(0.44, 0.08),
        p(0.30, 0.26),
        p(0.44, 0.44),
        p(0.68, 0.56),
        p(0.70, 0.80),
        p(0.48, 0.93),
        p(0.22, 0.84),
    ])],
];

static SIX: &[Glyph] = &[
    &[curve(&[
        p(0.66, 0.06),
        p(0.40, 0.26),
        p(0.25, 0.58),
        p(0.32, 0.85),
        p(0.54, 0.93),
        p(0.75, 0.78),
        p(0.68, 0.56),
        p(0.48, 0.51),
        p(0.28, 0.66),
    ])],
    // With a straight back.
    &[curve(&[
        p(0.40, 0.06),
        p(0.30, 0.40),
        p(0.28, 0.74),
        p(0.46, 0.93),
        p(0.68, 0.84),
        p(0.68, 0.64),
        p(0.48, 0.56),
        p(0.29, 0.70),
    ])],
];

static SEVEN: &[Glyph] = &[
    &[line(&[p(0.20, 0.09), p(0.78, 0.09), p(0.42, 0.94)])],
    &[line(&[p(0.22, 0.10), p(0.78, 0.08), p(0.46, 0.94)]), line(&[p(0.36, 0.50), p(0.76, 0.48)])],
    &[
        line(&[p(0.22, 0.24), p(0.24, 0.10)]),
        curve(&[p(0.24, 0.10), p(0.74, 0.10), p(0.58, 0.44), p(0.50, 0.94)]),
    ],
];

static EIGHT: &[Glyph] = &[
    &[
        curve(&[
            p(0.50, 0.06),
            p(0.69, 0.15),
            p(0.68, 0.36),
            p(0.50, 0.47),
            p(0.32, 0.36),
            p(0.31, 0.15),
            p(0.50, 0.06),
        ]),
        curve(&[
            p(0.50, 0.47),
            p(0.75, 0.60),
            p(0.74, 0.83),
            p(0.50, 0.94),
            p(0.26, 0.83),
            p(0.25, 0.60),
            p(0.50, 0.47),
        ]),
    ],
    // In one movement.
    &[curve(&[
        p(0.70, 0.14),
        p(0.46, 0.07),
        p(0.32, 0.22),
        p(0.48, 0.44),
        p(0.70, 0.66),
        p(0.66, 0.90),
        p(0.40, 0.92),
        p(0.30, 0.74),
        p(0.48, 0.48),
        p(0.72, 0.20),
    ])],
];

static NINE: &[Glyph] = &[
    &[
        curve(&[
            p(0.73, 0.28),
            p(0.56, 0.08),
            p(0.32, 0.15),
            p(0.27, 0.38),
            p(0.46, 0.51),
            p(0.68, 0.42),
            p(0.73, 0.22),
        ]),
        line(&[p(0.73, 0.22), p(0.66, 0.94)]),
    ],
    // With a hooked tail.
    &[curve(&[
        p(0.70, 0.24),
        p(0.48, 0.07),
        p(0.28, 0.24),
        p(0.40, 0.46),
        p(0.64, 0.36),
        p(0.72, 0.18),
        p(0.72, 0.62),
        p(0.58, 0.90),
        p(0.28, 0.88),
    ])],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stroke_stays_in_the_unit_square() {
        for (digit, glyphs) in GLYPHS.iter().enumerate() {
            for stroke in glyphs.iter().flat_map(|glyph| glyph.iter()) {
                for Point { x, y } in stroke.trace(|point| point) {
                    assert!(
                        (0.0..=1.0).contains(&x) && (0.0..=1.0).contains(&y),
                        "digit {digit}: ({x}, {y})"
                    );
                }
            }
        }
    }

    #[test]
    fn curves_pass_through_their_control_points() {
        static POINTS: [Point; 3] = [p(0.0, 0.0), p(0.5, 1.0), p(1.0, 0.0)];
        let stroke = curve(&POINTS);
        let traced = stroke.trace(|point| point);
        assert_eq!(traced.len(), 1 + 2 * usize::from(LINES_PER_PIECE), "number of points");
        for wanted in stroke.points {
            assert!(traced.contains(wanted), "{wanted:?} is not on the curve");
        }
    }
}
