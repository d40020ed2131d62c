//! Elements as files hold them: little-endian, whatever the machine.

use half::{bf16, f16};
use swiglu_core::Element;

/// An element type that files hold: every [`Element`].
pub trait Stored: Element {
    /// Elements from their bytes, as many as there are of both.
    fn decode(bytes: &[u8], to: &mut [Self]);

    /// Appends the bytes of elements.
    fn encode(from: &[Self], to: &mut Vec<u8>);
}

macro_rules! stored {
    ($type:ty) => {
        impl Stored for $type {
            fn decode(bytes: &[u8], to: &mut [Self]) {
                for (to, &bytes) in to.iter_mut().zip(bytes.as_chunks().0) {
                    *to = Self::from_le_bytes(bytes);
                }
            }

            fn encode(from: &[Self], to: &mut Vec<u8>) {
                to.extend(from.iter().flat_map(|element| element.to_le_bytes()));
            }
        }
    };
}

stored!(f32);
stored!(f16);
stored!(bf16);

/// How bytes of a file become elements of a matrix.
pub(crate) type Decode<T> = fn(&[u8], &mut [T]);

/// Elements of a file, each as the `f32` of the same value.
pub(crate) fn widen<T: Stored>(bytes: &[u8], to: &mut [f32]) {
    /// Elements that are on their way: few enough for the stack.
    const AT_ONCE: usize = 512;
    let mut elements = [T::default(); AT_ONCE];
    for (bytes, to) in bytes.chunks(AT_ONCE * size_of::<T>()).zip(to.chunks_mut(AT_ONCE)) {
        T::decode(bytes, &mut elements);
        T::widen(&elements, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_pattern_survives() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        fn round_trip<T: Stored>(bytes: &[u8]) -> Vec<u8> {
            let mut elements = vec![T::default(); bytes.len() / size_of::<T>()];
            T::decode(bytes, &mut elements);
            let mut back = Vec::new();
            T::encode(&elements, &mut back);
            back
        }
        assert_eq!(round_trip::<f16>(&bytes), bytes, "f16");
        assert_eq!(round_trip::<bf16>(&bytes), bytes, "bf16");
        assert_eq!(round_trip::<f32>(&bytes), bytes, "f32, NaNs with payloads among them");
        let mut swapped = bytes;
        swapped.chunks_exact_mut(4).for_each(|word| word.swap(0, 3));
        assert_eq!(round_trip::<f32>(&swapped), swapped, "f32, other words");
    }

    #[test]
    fn widening_keeps_values() {
        let elements: Vec<f16> = (0..1500).map(|bits| f16::from_bits(bits * 17)).collect();
        let mut bytes = Vec::new();
        f16::encode(&elements, &mut bytes);
        let mut wide = vec![0.0; elements.len()];
        widen::<f16>(&bytes, &mut wide);
        let expected: Vec<f32> = elements.iter().map(|element| element.to_f32()).collect();
        assert_eq!(wide, expected);
    }
}
