//! Element types: what a buffer holds and what the op computes on.

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for u32 {}
}

/// What a buffer can hold: `f32`, `f16`, `bf16`, and `u32` (labels and counters). Sealed.
///
/// Every bit pattern is a valid value and all-zero bytes are zero, which is what lets a backend move and clear
/// buffers as bytes.
pub trait Scalar: sealed::Sealed + Copy + Default + PartialEq + Send + Sync + fmt::Debug + 'static {}
impl<T: sealed::Sealed + Copy + Default + PartialEq + Send + Sync + fmt::Debug + 'static> Scalar for T {}

/// Run-time name of an [`Element`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Unit roundoff: half the distance from 1 to the next number.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            Dtype::F32 => 1.0 / (1u64 << 24) as f64,
            Dtype::F16 => 1.0 / (1u64 << 11) as f64,
            Dtype::Bf16 => 1.0 / (1u64 << 8) as f64,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        })
    }
}

/// An element type of the op: `f32`, `f16` or `bf16`. Accumulation is `f32` for each of them.
pub trait Element: Scalar {
    /// The run-time name of this type.
    const DTYPE: Dtype;

    /// The same value in `f32`; exact.
    fn to_f32(self) -> f32;

    /// The nearest value of this type, ties to even; overflow gives an infinity.
    fn from_f32(value: f32) -> Self;

    /// [`to_f32`](Element::to_f32) for a slice. Converts `min(from.len(), to.len())` elements.
    fn widen(from: &[Self], to: &mut [f32]);

    /// [`from_f32`](Element::from_f32) for a slice. Converts `min(from.len(), to.len())` elements.
    fn narrow(from: &[f32], to: &mut [Self]);

    /// The slice itself, where the elements are `f32` already: what need not be widened.
    ///
    /// ```
    /// use swiglu_core::{Element, bf16};
    /// assert_eq!(f32::as_f32(&[1.0]), Some([1.0].as_slice()));
    /// assert_eq!(bf16::as_f32(&[bf16::ONE]), None);
    /// ```
    #[inline(always)]
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    /// The slice itself when this type is bf16.
    #[inline(always)]
    fn as_bf16(_: &[Self]) -> Option<&[bf16]> {
        None
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        Self::widen(from, to);
    }

    #[inline(always)]
    fn as_f32(slice: &[Self]) -> Option<&[f32]> {
        Some(slice)
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        let n = from.len().min(to.len());
        from[..n].convert_to_f32_slice(&mut to[..n]);
    }

    fn narrow(from: &[f32], to: &mut [Self]) {
        let n = from.len().min(to.len());
        to[..n].convert_from_f32_slice(&from[..n]);
    }
}

/// Elements that are converted together: one vector of the widest instruction set. A loop of unknown length around it may
/// stay one of single elements where this is inlined.
const LANES: usize = 16;

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Branch-free, so that loops over it vectorise: adding 0x7fff plus the lowest kept bit rounds half to even; a
    /// NaN is kept quiet.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        let n = from.len().min(to.len());
        let (vectors, from) = from[..n].as_chunks::<LANES>();
        let (to_vectors, to) = to[..n].as_chunks_mut::<LANES>();
        for (to, from) in to_vectors.iter_mut().zip(vectors) {
            *to = from.map(Element::to_f32);
        }
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to_f32();
        }
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        let n = from.len().min(to.len());
        let (vectors, from) = from[..n].as_chunks::<LANES>();
        let (to_vectors, to) = to[..n].as_chunks_mut::<LANES>();
        for (to, from) in to_vectors.iter_mut().zip(vectors) {
            *to = from.map(Element::from_f32);
        }
        for (to, from) in to.iter_mut().zip(from) {
            *to = Element::from_f32(*from);
        }
    }

    #[inline(always)]
    fn as_bf16(slice: &[Self]) -> Option<&[bf16]> {
        Some(slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_agrees_with_half_for_every_upper_half() {
        for upper in 0..=u16::MAX {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits((u32::from(upper) << 16) | lower);
                let ours: bf16 = Element::from_f32(value);
                let theirs = bf16::from_f32(value);
                assert!(
                    ours == theirs || (ours.is_nan() && theirs.is_nan()),
                    "{value:?}: {ours:?} {theirs:?}"
                );
            }
        }
    }

    #[test]
    fn slices_convert_as_single_values_do() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 1.37e-3).collect();
        let mut narrow = vec![f16::ZERO; 1000];
        f16::narrow(&values, &mut narrow);
        let mut wide = vec![0.0; 1000];
        f16::widen(&narrow, &mut wide);
        for ((value, narrow), wide) in values.iter().zip(&narrow).zip(&wide) {
            assert_eq!(*narrow, f16::from_f32(*value), "narrowed");
            assert_eq!(*wide, f16::to_f32(*narrow), "widened");
        }
    }
}
