//! Digits drawn in code, for a run without data: deterministic, offline, and about as hard for a classifier as
//! handwriting.
//!
//! A sample is a glyph of `strokes` whose points go through a smooth random displacement and a random affine map;
//! the pen's width, the pressure and the noise are random too. Each sample has its own ChaCha8 stream, so the set
//! does not depend on the thread count. Only `+ - * /`, `sqrt` and rounding are used, which IEEE 754 fixes to the
//! bit: the set is the same on every machine.

use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::strokes::{GLYPHS, Glyph, Point};
use super::{CLASSES, PIXELS, SIDE, Split};

/// ChaCha streams of test samples start here; those of training samples start at zero.
const TEST_STREAMS: u64 = 1 << 32;

/// Pixels per unit of glyph space: digits fill a 20 x 20 box of the 28 x 28 image, as in MNIST.
const BOX: f32 = 20.0;
const MAX_SCALE_CHANGE: f32 = 0.20;
/// Tangent of half the largest rotation, about 17 degrees.
const MAX_HALF_ANGLE_TANGENT: f32 = 0.15;
const MAX_SHEAR: f32 = 0.30;
/// In pixels, in each direction.
const MAX_SHIFT: f32 = 2.0;
/// In units of glyph space, in each direction.
const MAX_BEND: f32 = 0.09;
/// Half the pen's width in pixels.
const PEN: [f32; 2] = [0.8, 1.7];
/// Width of the soft edge of a stroke in pixels.
const EDGE: f32 = 1.0;
const PRESSURE: [f32; 2] = [0.75, 1.0];
/// Largest change of a pixel by noise, where 1 is the full range.
const MAX_NOISE: f32 = 0.20;

/// Draws `train` training and `test` test samples; the classes take turns, so they are balanced.
pub(crate) fn generate(seed: u64, train: usize, test: usize) -> [Split; 2] {
    [draw_split(seed, 0, train), draw_split(seed, TEST_STREAMS, test)]
}

fn draw_split(seed: u64, first_stream: u64, count: usize) -> Split {
    let mut images = Array2::zeros((count, PIXELS));
    if let Some(pixels) = images.as_slice_mut() {
        pixels.par_chunks_exact_mut(PIXELS).enumerate().for_each(|(index, image)| {
            let mut random = Random::new(seed, first_stream + index as u64);
            draw(index % CLASSES, &mut random, image);
        });
    }
    let labels = (0..CLASSES as u8).cycle().take(count).collect();
    Split { images, labels }
}

/// Draws one sample of `digit` into a black `image`.
fn draw(digit: usize, random: &mut Random, image: &mut [u8]) {
    let glyph = random.pick(GLYPHS[digit]);
    let bend = Bend::new(random);
    let place = Affine::new(random);
    let pen = random.between(PEN);
    let pressure = random.between(PRESSURE);
    let distances = squared_distances(glyph, |point| place.apply(bend.apply(point)));
    for (pixel, squared) in image.iter_mut().zip(distances) {
        let ink = ((pen - squared.sqrt()) / EDGE + 0.5).clamp(0.0, 1.0) * pressure;
        let noisy = (ink + random.symmetric(MAX_NOISE)).clamp(0.0, 1.0);
        *pixel = (noisy * 255.0).round() as u8;
    }
}

/// The squared distance, in pixels, from each pixel to the nearest line of the glyph.
fn squared_distances(glyph: Glyph, moved: impl Fn(Point) -> Point) -> [f32; PIXELS] {
    let mut nearest = [f32::INFINITY; PIXELS];
    for stroke in glyph {
        let points = stroke.trace(&moved);
        for ends in points.windows(2) {
            mark_line(ends[0], ends[1], &mut nearest);
        }
    }
    nearest
}

/// Lowers the distances of the pixels that the pen could reach from the line `from`-`to`.
fn mark_line(from: Point, to: Point, nearest: &mut [f32; PIXELS]) {
    let reach = PEN[1] + EDGE;
    let columns = pixel_range(from.x.min(to.x) - reach, from.x.max(to.x) + reach);
    for row in pixel_range(from.y.min(to.y) - reach, from.y.max(to.y) + reach) {
        for column in columns.clone() {
            let pixel = Point { x: column as f32 + 0.5, y: row as f32 + 0.5 };
            let best = &mut nearest[row * SIDE + column];
            *best = best.min(squared_distance(pixel, from, to));
        }
    }
}

/// The pixels of one axis whose squares touch `low..high`, cut to the image.
fn pixel_range(low: f32, high: f32) -> std::ops::Range<usize> {
    // A float that is negative or too large saturates in `as`.
    (low.floor() as usize).min(SIDE)..(high.ceil() as usize).min(SIDE)
}

fn squared_distance(point: Point, from: Point, to: Point) -> f32 {
    let (along_x, along_y) = (to.x - from.x, to.y - from.y);
    let (x, y) = (point.x - from.x, point.y - from.y);
    let length = along_x * along_x + along_y * along_y;
    let t = if length > 0.0 { ((x * along_x + y * along_y) / length).clamp(0.0, 1.0) } else { 0.0 };
    let (x, y) = (x - t * along_x, y - t * along_y);
    x * x + y * y
}

/// A random map from glyph space to pixels: shear, scale, rotation and shift, about the middle of the image.
struct Affine {
    x: [f32; 3],
    y: [f32; 3],
}

impl Affine {
    fn new(random: &mut Random) -> Self {
        let width = BOX * (1.0 + random.symmetric(MAX_SCALE_CHANGE));
        let height = BOX * (1.0 + random.symmetric(MAX_SCALE_CHANGE));
        let shear = random.symmetric(MAX_SHEAR);
        // Cosine and sine from the tangent of half the angle need no library function.
        let t = random.symmetric(MAX_HALF_ANGLE_TANGENT);
        let (cos, sin) = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
        let middle = SIDE as f32 / 2.0;
        let shift = [(); 2].map(|()| middle + random.symmetric(MAX_SHIFT));
        Self {
            x: [width * cos, width * shear * cos - height * sin, shift[0]],
            y: [width * sin, width * shear * sin + height * cos, shift[1]],
        }
    }

    fn apply(&self, point: Point) -> Point {
        let (x, y) = (point.x - 0.5, point.y - 0.5);
        Point { x: self.x[0] * x + self.x[1] * y + self.x[2], y: self.y[0] * x + self.y[1] * y + self.y[2] }
    }
}

/// Random displacements at the knots of a grid over the unit square, blended smoothly in between.
struct Bend {
    knots: [[[f32; 2]; Self::KNOTS]; Self::KNOTS],
}

impl Bend {
    const KNOTS: usize = 4;

    fn new(random: &mut Random) -> Self {
        Self {
            knots: [(); Self::KNOTS]
                .map(|()| [(); Self::KNOTS].map(|()| [(); 2].map(|()| random.symmetric(MAX_BEND)))),
        }
    }

    fn apply(&self, point: Point) -> Point {
        let (column, x) = Self::cell(point.x);
        let (row, y) = Self::cell(point.y);
        let blend = |axis: usize| {
            let knot = |down: usize, right: usize| self.knots[row + down][column + right][axis];
            let upper = knot(0, 0) + x * (knot(0, 1) - knot(0, 0));
            let lower = knot(1, 0) + x * (knot(1, 1) - knot(1, 0));
            upper + y * (lower - upper)
        };
        Point { x: point.x + blend(0), y: point.y + blend(1) }
    }

    /// The grid cell that holds a coordinate, and the place in it with smooth ends (smoothstep).
    fn cell(coordinate: f32) -> (usize, f32) {
        let scaled = coordinate.clamp(0.0, 1.0) * (Self::KNOTS - 1) as f32;
        let cell = (scaled as usize).min(Self::KNOTS - 2);
        let t = scaled - cell as f32;
        (cell, t * t * (3.0 - 2.0 * t))
    }
}

/// Uniform numbers from the ChaCha8 stream of one sample.
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self(generator)
    }

    /// In [0, 1), a multiple of 2^-24.
    fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    fn between(&mut self, [low, high]: [f32; 2]) -> f32 {
        low + (high - low) * self.unit()
    }

    fn symmetric(&mut self, largest: f32) -> f32 {
        self.between([-largest, largest])
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.0.next_u32() as usize % choices.len()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_fixes_every_pixel_for_any_thread_count() {
        let draw = || generate(7, 200, 50);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().map(|pool| pool.install(draw)).ok();
        let three =
            rayon::ThreadPoolBuilder::new().num_threads(3).build().map(|pool| pool.install(draw)).ok();
        assert!(one.is_some() && one == three, "the same seed gave other digits");
    }

    #[test]
    fn another_seed_gives_other_digits() {
        assert_ne!(generate(1, 50, 10), generate(2, 50, 10), "two seeds gave the same digits");
    }

    #[test]
    fn classes_are_balanced() {
        for split in generate(1, 500, 100) {
            let per_class = split.labels.len() / CLASSES;
            for class in 0..CLASSES as u8 {
                let count = split.labels.iter().filter(|&&label| label == class).count();
                assert_eq!(count, per_class, "class {class}");
            }
        }
    }

    #[test]
    fn no_two_samples_are_equal() {
        let splits = generate(1, 1000, 1000);
        let distinct: HashSet<Vec<u8>> =
            splits.iter().flat_map(|split| split.images.outer_iter()).map(|image| image.to_vec()).collect();
        assert_eq!(distinct.len(), 2000, "a sample occurs twice");
    }

    #[test]
    fn the_first_images_keep_their_bits() {
        // FNV-1a over the pixels: a change of the generator must be a decision, because published accuracies rest on it.
        let [train, _] = generate(1, 10, 0);
        let hash = train.images.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &pixel| {
            (hash ^ u64::from(pixel)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        assert_eq!(hash, 0x45a5_aac6_64b5_e28c, "the first ten images hash to {hash:#018x}");
    }

    #[test]
    fn an_empty_set_is_legal() {
        let [train, test] = generate(1, 0, 0);
        assert_eq!((train.images.dim(), test.labels.len()), ((0, PIXELS), 0), "shape of an empty set");
    }
}
