//! Random matrices on the device. Zeros, or short periods, would toggle fewer bits, draw less power and run faster than
//! real data.

use std::f64::consts::TAU;
use std::sync::OnceLock;

use swiglu_core::{Backend, Element, Host, Layout, MatRef, Matrix};
use swiglu_cuda::{Block, Cuda, CudaMemory};

use crate::error::Result;

/// Random numbers that are made on the host: a few MB, which takes less than 0.1 s. Everything else is copies of parts.
const LEN: usize = 1 << 21;

/// Longest part that is copied at once, unless a row is longer.
const PART: usize = 1 << 20;

/// A block of normally distributed numbers on the device.
pub(crate) struct Noise<T: Element> {
    block: Block<T>,
}

impl<T: Element> Noise<T> {
    /// With this standard deviation.
    pub(crate) fn new(cuda: &Cuda, deviation: f32) -> Result<Self> {
        let mut host = Matrix::<T, Host>::host_zeros(1, LEN)?;
        for (to, value) in host.view_mut().row_mut(0).unwrap_or_default().iter_mut().zip(normals()) {
            *to = T::from_f32(value * deviation);
        }
        Ok(Self { block: cuda.upload(&host)?.into_owned() })
    }

    /// A matrix of such numbers.
    pub(crate) fn matrix(&self, cuda: &Cuda, rows: usize, cols: usize) -> Result<Matrix<T, CudaMemory>> {
        let mut matrix = cuda.zeros(rows, cols)?;
        self.fill(cuda, &mut matrix)?;
        Ok(matrix)
    }

    /// Fills a matrix, a few rows at a time.
    pub(crate) fn fill(&self, cuda: &Cuda, matrix: &mut Matrix<T, CudaMemory>) -> Result<()> {
        let (rows, cols) = matrix.shape();
        let step = (PART / cols.max(1)).max(1);
        for (index, first) in (0..rows).step_by(step).enumerate() {
            let count = step.min(rows - first);
            let offset = offset(index, LEN.saturating_sub(count * cols));
            let from = MatRef::of(&self.block, offset, Layout::dense(count, cols)?)?;
            let (_, rest) = matrix.view_mut().split_rows(first)?;
            let (part, _) = rest.split_rows(count)?;
            cuda.copy(from, part)?;
        }
        Ok(())
    }
}

/// The numbers themselves, made once.
fn normals() -> &'static [f32] {
    static NORMALS: OnceLock<Vec<f32>> = OnceLock::new();
    NORMALS.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        (0..LEN / 2).flat_map(|_| normal_pair(&mut state)).collect()
    })
}

/// Where the copy for a part begins, up to `limit`: not the same place for two parts in a row.
fn offset(part: usize, limit: usize) -> usize {
    let mut state = (part as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    next(&mut state) as usize % (limit + 1)
}

/// Marsaglia's xorshift with 64 bits.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Two independent numbers, by Box and Muller.
fn normal_pair(state: &mut u64) -> [f32; 2] {
    // From above 0 to 1.
    let mut uniform = || ((next(state) >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), TAU * uniform());
    [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_normal() {
        let values: Vec<f64> = normals().iter().copied().map(f64::from).collect();
        assert_eq!(values.len(), LEN);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.01, "mean {mean}, variance {variance}");
        assert!(values.iter().all(|v| v.is_finite() && v.abs() < 9.0), "an outlier");
    }

    #[test]
    fn parts_begin_at_different_places_inside() {
        let offsets: Vec<usize> = (0..1000).map(|part| offset(part, LEN - PART)).collect();
        assert!(offsets.iter().all(|&offset| offset <= LEN - PART), "outside");
        assert!(offsets.windows(2).all(|pair| pair[0] != pair[1]), "the same twice");
        assert_eq!(offset(3, 0), 0);
    }
}
