//! What a packed panel holds: words of 32 bits, each with all that one step of a kernel multiplies for one row or column.
//!
//! A word is an f32, or two bf16 that are adjacent in k, as bits. So both have the same panels, and one driver.

use swiglu_core::{Element, bf16};
use zerocopy::IntoBytes;

/// Bytes of a vector, and of a cache line.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels for x86-64 multiply pairs"))]
const LINE: usize = 64;

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

/// Two bf16, the first in the lower half. Elements of any other type never come here, and would count as zeros.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels for x86-64 multiply pairs"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair;

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels for x86-64 multiply pairs"))]
impl Pair {
    #[inline(always)]
    fn of(first: bf16, second: bf16) -> f32 {
        f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
    }
}

impl Word for Pair {
    const STEP: usize = 2;

    /// Neighbours along k are neighbours in memory, the first in the lower half of a word of a little-endian machine.
    #[inline(always)]
    fn along<T: Element>(run: &[T], to: &mut [f32]) {
        let run = T::as_bf16(run).unwrap_or_default().as_bytes();
        if let Some(last) = to.get_mut(run.len() / size_of::<f32>()) {
            *last = 0.0;
        }
        let (lines, rest) = run.as_chunks::<LINE>();
        let (to_lines, to_rest) = to.as_mut_bytes().as_chunks_mut::<LINE>();
        for (to, line) in to_lines.iter_mut().zip(lines) {
            *to = *line;
        }
        let to = to_lines.get_mut(lines.len()).map_or(to_rest, |line| line.as_mut_slice());
        if let Some(to) = to.get_mut(..rest.len()) {
            to.copy_from_slice(rest);
        }
    }

    #[inline(always)]
    fn across<T: Element>(first: &[T], second: &[T], to: &mut [f32]) {
        let (first, second) = (T::as_bf16(first).unwrap_or_default(), T::as_bf16(second).unwrap_or_default());
        if second.len() < first.len() {
            for (to, &first) in to.iter_mut().zip(first) {
                *to = Self::of(first, bf16::ZERO);
            }
            return;
        }
        // Sixteen at a time are one vector; a loop of unknown length stays one of single elements.
        let ((firsts, first), (seconds, second)) = (first.as_chunks::<16>(), second.as_chunks::<16>());
        let (to, rest) = to.split_at_mut((16 * firsts.len()).min(to.len()));
        for ((to, first), second) in to.as_chunks_mut::<16>().0.iter_mut().zip(firsts).zip(seconds) {
            *to = std::array::from_fn(|lane| Self::of(first[lane], second[lane]));
        }
        for ((to, &first), &second) in rest.iter_mut().zip(first).zip(second) {
            *to = Self::of(first, second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // Longer runs go by vectors; what is left of one has its place behind them, however much room there is.
        let (first, second) = (bf16s(&[1.0; 19]), bf16s(&[2.0; 19]));
        let mut words = [0.0; 40];
        Pair::across(&first, &second, &mut words);
        let halves = words.map(halves);
        assert!(halves[..19].iter().all(|word| *word == [1.0, 2.0]), "{halves:?}");
        assert!(halves[19..].iter().all(|word| *word == [0.0, 0.0]), "{halves:?}");
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
