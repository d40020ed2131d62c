//! What a packed panel holds: words of 32 bits, each with all that one step of a kernel multiplies for one row or column.
//!
//! A word is an f32, or two bf16 that are adjacent in k, as bits. So both have the same panels, and one driver.

use swiglu_core::Element;

/// One kind of word.
pub(crate) trait Word: 'static {
    /// Elements along k in a word.
    const STEP: usize;

    /// The words of a run along k. The last one is filled up with zeros.
    fn along<T: Element>(run: &[T], to: &mut [f32]);

    /// The words of adjacent runs across k: of `first` alone, or of both, where a missing `second` counts as zeros.
    fn across<T: Element>(first: &[T], second: &[T], to: &mut [f32]);
}

/// One f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Single;

impl Word for Single {
    const STEP: usize = 1;

    #[inline(always)]
    fn along<T: Element>(run: &[T], to: &mut [f32]) {
        T::widen(run, to);
    }

    #[inline(always)]
    fn across<T: Element>(first: &[T], _: &[T], to: &mut [f32]) {
        T::widen(first, to);
    }
}

/// Two bf16, the first in the lower half. Elements of any other type would be cut off, and never come here.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only a kernel for x86-64 multiplies pairs")
)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair;

#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only a kernel for x86-64 multiplies pairs")
)]
impl Pair {
    /// The bits of a bf16 whose f32 this is.
    #[inline(always)]
    fn half<T: Element>(v: T) -> u32 {
        v.to_f32().to_bits() >> 16
    }
}

impl Word for Pair {
    const STEP: usize = 2;

    #[inline(always)]
    fn along<T: Element>(run: &[T], to: &mut [f32]) {
        let (pairs, rest) = run.as_chunks::<2>();
        for (to, [first, second]) in to.iter_mut().zip(pairs) {
            *to = f32::from_bits(Self::half(*first) | Self::half(*second) << 16);
        }
        if let (Some(to), Some(last)) = (to.get_mut(pairs.len()), rest.first()) {
            *to = f32::from_bits(Self::half(*last));
        }
    }

    #[inline(always)]
    fn across<T: Element>(first: &[T], second: &[T], to: &mut [f32]) {
        if second.len() < first.len() {
            for (to, first) in to.iter_mut().zip(first) {
                *to = f32::from_bits(Self::half(*first));
            }
            return;
        }
        for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
            *to = f32::from_bits(Self::half(*first) | Self::half(*second) << 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::bf16;

    fn bf16s(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|v| bf16::from_f32(*v)).collect()
    }

    fn halves(word: f32) -> [f32; 2] {
        let bits = word.to_bits();
        [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)]
    }

    #[test]
    fn a_pair_holds_neighbours_and_ends_with_zero() {
        let mut words = [f32::NAN; 2];
        Pair::along(&bf16s(&[1.0, -2.0, 3.0]), &mut words);
        assert_eq!(words.map(halves), [[1.0, -2.0], [3.0, 0.0]]);
    }

    #[test]
    fn pairs_across_take_one_of_each_run() {
        let (first, second) = (bf16s(&[1.0, 2.0]), bf16s(&[-3.0, f32::INFINITY]));
        let mut words = [f32::NAN; 2];
        Pair::across(&first, &second, &mut words);
        assert_eq!(words.map(halves), [[1.0, -3.0], [2.0, f32::INFINITY]]);
        Pair::across(&first, &[], &mut words);
        assert_eq!(words.map(halves), [[1.0, 0.0], [2.0, 0.0]]);
    }

    #[test]
    fn a_single_is_the_element() {
        let mut words = [0.0; 3];
        Single::along(&bf16s(&[1.0, 2.0, 3.0]), &mut words);
        assert_eq!(words, [1.0, 2.0, 3.0]);
        Single::across(&bf16s(&[4.0, 5.0]), &[], &mut words[..2]);
        assert_eq!(words, [4.0, 5.0, 3.0]);
    }
}
