//! Batches: a new order for each epoch, pixels to numbers from 0 to 1.

use ndarray::{Array2, ArrayViewMut1, ArrayViewMut2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::data::{PIXELS, Split};

/// A task's rows take 5 us, about what it costs to wake a thread.
const ROWS_PER_TASK: usize = 16;

/// Samples of a split in some order.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    split: &'a Split,
    order: Vec<u32>,
    /// The number that each of the 256 pixel values stands for.
    scale: [f32; 256],
}

impl<'a> Batches<'a> {
    /// In file order.
    pub(crate) fn new(split: &'a Split) -> Self {
        let order = (0..split.labels.len() as u32).collect();
        let scale = std::array::from_fn(|pixel| pixel as f32 / 255.0);
        Self { split, order, scale }
    }

    /// Puts the samples into the order of an epoch (Fisher and Yates), the same on every machine.
    pub(crate) fn shuffle(&mut self, seed: u64, epoch: u32) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(epoch));
        for last in (1..self.order.len()).rev() {
            // The upper half of a 64-bit product: uniform up to 2^-32 * n.
            let other = (u64::from(rng.next_u32()) * (last as u64 + 1)) >> 32;
            self.order.swap(last, other as usize);
        }
    }

    /// Samples in all.
    pub(crate) fn samples(&self) -> usize {
        self.order.len()
    }

    /// First and one past the last sample of each batch.
    pub(crate) fn ranges(&self, batch_size: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let samples = self.order.len();
        (0..samples).step_by(batch_size).map(move |start| start..samples.min(start + batch_size))
    }

    /// Copies samples into the first rows of `x [_, 784]` and `labels [_, 1]`. By all threads: a step of a GPU takes less
    /// time than one thread needs for the pixels of the next.
    pub(crate) fn gather(
        &self,
        range: std::ops::Range<usize>,
        x: &mut Array2<f32>,
        labels: &mut Array2<u32>,
    ) {
        let samples = &self.order[range];
        for (&sample, label) in samples.iter().zip(labels.iter_mut()) {
            *label = u32::from(self.split.labels[sample as usize]);
        }
        let fill = |(mut row, &sample): (ArrayViewMut1<'_, f32>, &u32)| {
            for (value, &pixel) in row.iter_mut().zip(self.split.images.row(sample as usize)) {
                *value = self.scale[usize::from(pixel)];
            }
        };
        let rows = x.rows_mut().into_iter().zip(samples).collect::<Vec<_>>();
        rows.into_par_iter().with_min_len(ROWS_PER_TASK).for_each(fill);
    }
}

/// Weights drawn uniformly from +-1/sqrt(rows), as for a linear layer.
pub(crate) fn uniform(mut weights: ArrayViewMut2<'_, f32>, seed: u64) {
    let bound = 1.0 / (weights.nrows().max(1) as f32).sqrt();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for weight in &mut weights {
        let unit = (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
        *weight = (2.0 * unit - 1.0) * bound;
    }
}

/// Host buffers of one batch.
pub(crate) fn buffers(batch_size: usize) -> (Array2<f32>, Array2<u32>) {
    (Array2::zeros((batch_size, PIXELS)), Array2::zeros((batch_size, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(samples: usize) -> Split {
        let images = Array2::from_shape_fn((samples, PIXELS), |(sample, _)| sample as u8);
        Split { images, labels: (0..samples).map(|sample| (sample % 10) as u8).collect() }
    }

    #[test]
    fn an_epoch_sees_every_sample_once() {
        let split = split(103);
        let mut batches = Batches::new(&split);
        batches.shuffle(1, 1);
        let first = batches.order.clone();
        batches.shuffle(1, 2);
        assert_ne!(batches.order, first, "another order");
        let mut sorted = batches.order.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..103), "{sorted:?}");
        let lengths: Vec<usize> = batches.ranges(50).map(|range| range.len()).collect();
        assert_eq!(lengths, [50, 50, 3]);
    }

    #[test]
    fn pixels_and_labels_stay_together() {
        let split = split(30);
        let mut batches = Batches::new(&split);
        batches.shuffle(7, 1);
        let (mut x, mut labels) = buffers(8);
        batches.gather(16..24, &mut x, &mut labels);
        for row in 0..8 {
            let pixel = (x[[row, 5]] * 255.0).round() as u32;
            assert_eq!(pixel % 10, labels[[row, 0]], "row {row}");
        }
    }
}
