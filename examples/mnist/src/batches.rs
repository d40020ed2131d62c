//! Batches: a new order for each epoch, pixels to numbers from 0 to 1.

use ndarray::{Array2, ArrayViewMut2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::data::Split;

/// Samples of a split in some order.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    labels: &'a [u8],
    order: Vec<u32>,
}

impl<'a> Batches<'a> {
    /// In file order.
    pub(crate) fn new(split: &'a Split) -> Self {
        Self { labels: &split.labels, order: (0..split.labels.len() as u32).collect() }
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

    /// Puts samples and their labels into the first rows of `picks [_, 2]`.
    pub(crate) fn pick(&self, range: std::ops::Range<usize>, picks: &mut Array2<u32>) {
        for (&sample, mut pick) in self.order[range].iter().zip(picks.rows_mut()) {
            (pick[0], pick[1]) = (sample, u32::from(self.labels[sample as usize]));
        }
    }
}

/// The pixels of a split as the network reads them.
pub(crate) fn pixels(split: &Split) -> Array2<f32> {
    split.images.mapv(|pixel| f32::from(pixel) / 255.0)
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

/// The host's part of a batch: which samples, and their labels.
pub(crate) fn picks(batch_size: usize) -> Array2<u32> {
    Array2::zeros((batch_size, 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PIXELS;

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
    fn samples_and_labels_stay_together() {
        let split = split(30);
        let mut batches = Batches::new(&split);
        batches.shuffle(7, 1);
        let mut picks = picks(8);
        batches.pick(16..24, &mut picks);
        let pixels = pixels(&split);
        for pick in picks.rows() {
            let pixel = (pixels[[pick[0] as usize, 5]] * 255.0).round() as u32;
            assert_eq!(pixel % 10, pick[1], "{pick}");
        }
    }
}
