//! Elements as bit patterns, and the pattern around operands.

use half::{bf16, f16};
use ndarray::Array2;
use swiglu_core::{Element, Scalar};

/// A scalar with its bits.
pub trait Bits: Scalar {
    /// The pattern.
    fn bits(self) -> u32;

    /// What stands around operands and in outputs before a call: a quiet NaN whose payload tells positions apart.
    fn canary(position: usize) -> Self;
}

impl Bits for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }

    fn canary(position: usize) -> Self {
        f32::from_bits(0x7fc0_0000 | (mixed(position) & 0x003f_ffff))
    }
}

impl Bits for f16 {
    fn bits(self) -> u32 {
        u32::from(self.to_bits())
    }

    fn canary(position: usize) -> Self {
        f16::from_bits(0x7e00 | (mixed(position) & 0x01ff) as u16)
    }
}

impl Bits for bf16 {
    fn bits(self) -> u32 {
        u32::from(self.to_bits())
    }

    fn canary(position: usize) -> Self {
        bf16::from_bits(0x7fc0 | (mixed(position) & 0x003f) as u16)
    }
}

impl Bits for u32 {
    fn bits(self) -> u32 {
        self
    }

    fn canary(position: usize) -> Self {
        0xdead_0000 ^ mixed(position)
    }
}

/// Spreads neighbouring positions over the payload (Knuth's multiplicative hash).
fn mixed(position: usize) -> u32 {
    (position as u32).wrapping_mul(2_654_435_761) >> 9
}

/// An element type that the checks can compare bit by bit: every [`Element`].
pub trait Value: Element + Bits {}
impl<T: Element + Bits> Value for T {}

/// The first position where two arrays differ in bits.
pub(crate) fn difference<T: Bits>(a: &Array2<T>, b: &Array2<T>) -> Option<String> {
    if a.dim() != b.dim() {
        return Some(format!("shapes {:?} and {:?}", a.dim(), b.dim()));
    }
    let differing = a.indexed_iter().zip(b).find(|((_, a), b)| a.bits() != b.bits());
    differing.map(|(((row, col), a), b)| {
        format!("[{row}, {col}]: {a:?} ({:#x}) and {b:?} ({:#x})", a.bits(), b.bits())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_are_nan_and_differ_from_neighbours() {
        for position in 0..1000 {
            assert!(f32::canary(position).is_nan() && f16::canary(position).is_nan());
            assert!(bf16::canary(position).is_nan());
            assert_ne!(f32::canary(position).bits(), f32::canary(position + 1).bits());
            assert_ne!(f16::canary(position).bits(), f16::canary(position + 1).bits());
        }
    }
}
