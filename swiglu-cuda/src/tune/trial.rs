//! Candidates for a product against each other on the device, on operands of the trial's own.
//!
//! Operands are random numbers: zeros draw less power and run faster. Calls take several sets of inputs in turn, so that
//! none of them is in L2 from the call before. In each round every candidate is measured once, and the first one is another
//! in each: what the clocks do meanwhile happens to all. The fastest then has to beat the analytic choice once more.

use std::cell::Cell;

use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
use cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaEvent, DriverError};
use swiglu_core::{Backend, Dtype, Host, MatRef, Matrix, Result, bf16, f16};

use crate::backend::Cuda;
use crate::gemm::{Gemm, Product};
use crate::hopper;
use crate::kernel::Kernel;
use crate::memory::CudaMemory;
use crate::params::{GemmParams, Operand};
use crate::passes::launch_gemm;
use crate::realign::padded;

use super::choices::Asked;
use super::variant::Variant;

/// Rounds of all candidates, and again of the fastest and the analytic one. Odd, for a median.
const ROUNDS: usize = 9;
/// By how much a candidate must beat the analytic choice: medians of two such trials differ by up to 1 %.
const MARGIN: f64 = 1.02;
/// Seconds between two events, so that these do not count, and calls at most.
const SPAN: f64 = 1e-3;
const CALLS: f64 = 64.0;
/// Sets of inputs at most.
const SETS: usize = 16;
/// Rows of each result of which the bits are compared.
const SAMPLED_ROWS: usize = 64;

/// What came of a trial.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    /// Of a call, by candidate: medians.
    pub(super) seconds: Vec<f64>,
    /// Whether a candidate gave the bits of the first.
    pub(super) same_bits: Vec<bool>,
    /// The candidate to take.
    pub(super) chosen: usize,
    /// How many times as long as the fastest the first one takes.
    pub(super) speedup: f64,
}

/// Times candidates, of which the first is the analytic choice. `cuda` is a stream on which nothing else runs.
pub(super) fn measure(cuda: &Cuda, asked: &Asked, candidates: &[Variant]) -> Result<Outcome> {
    let mut trial = Trial::new(cuda, asked)?;
    // Compiles, too.
    let same_bits = trial.compare(candidates)?;
    let Some(&first) = candidates.first() else {
        return Ok(Outcome { seconds: Vec::new(), same_bits, chosen: 0, speedup: 1.0 });
    };
    let calls = (SPAN / trial.seconds(first, 1)?.max(1e-7)).clamp(1.0, CALLS) as usize;
    let rounds = trial.rounds(candidates, calls)?;
    let seconds: Vec<f64> = rounds.iter().map(|seconds| median(seconds.clone())).collect();
    let best = fastest(&seconds, &same_bits);
    if best == 0 {
        return Ok(Outcome { seconds, same_bits, chosen: 0, speedup: 1.0 });
    }
    let again = trial.rounds(&[first, candidates[best]], calls)?;
    let speedup = median(again[0].iter().zip(&again[1]).map(|(first, best)| first / best).collect());
    let chosen = if speedup >= MARGIN { best } else { 0 };
    Ok(Outcome { seconds, same_bits, chosen, speedup })
}

/// The fastest of those with the same bits.
fn fastest(seconds: &[f64], same_bits: &[bool]) -> usize {
    let eligible = (0..seconds.len()).filter(|&index| same_bits[index]);
    eligible.min_by(|&a, &b| seconds[a].total_cmp(&seconds[b])).unwrap_or(0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A row-major matrix whose rows start at multiples of 16 bytes: several parts beside each other, or one below the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    rows: usize,
    /// Elements.
    stride: usize,
    /// Elements from part to part.
    part: usize,
    dtype: Dtype,
}

impl Stored {
    fn beside(parts: usize, (rows, cols): (usize, usize), dtype: Dtype) -> Self {
        let part = padded(cols, dtype);
        Self { rows, stride: part.saturating_mul(parts), part, dtype }
    }

    fn below(parts: usize, (rows, cols): (usize, usize), dtype: Dtype) -> Self {
        let stride = padded(cols, dtype);
        Self { rows: rows.saturating_mul(parts), stride, part: rows.saturating_mul(stride), dtype }
    }

    /// Whole ones: rows are multiples of 16 bytes.
    fn words(&self) -> usize {
        self.rows.saturating_mul(self.row_words())
    }

    fn row_words(&self) -> usize {
        self.stride.saturating_mul(self.dtype.bytes()) / size_of::<u32>()
    }

    fn operand(&self, matrix: &Words, part: usize) -> Operand {
        let offset = (part * self.part * self.dtype.bytes()) as u64;
        Operand { data: matrix.view().ptr().address() + offset, stride: self.stride as i64 }
    }
}

/// How the operands of a product lie: as in a call with packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    a: Stored,
    b: Stored,
    dz: Option<Stored>,
    c: Stored,
    pre: Option<Stored>,
    /// Of B, or its segments, and of C.
    halves: [usize; 2],
}

impl Form {
    fn of(asked: &Asked) -> Self {
        // Segments of A are beside each other, and those of B the other way round than halves of it.
        let segments = asked.segments.max(1) as usize;
        let (m, n, k) = asked.shape;
        let k = k / segments;
        let (dtype, a_trans, b_trans, product) = match asked.kernel {
            Kernel::Gemm(Gemm { dtype, a_trans, b_trans, product, .. }) => (dtype, a_trans, b_trans, product),
            Kernel::Decode(decode) => (decode.dtype, false, decode.b_trans, Product::Gate(decode.gate)),
            // Nothing else competes.
            _ => (Dtype::F32, false, false, Product::Store { out: Dtype::F32 }),
        };
        let products = asked.depth as usize;
        let (halves, out) = match product {
            Product::Store { out } => ([products.max(segments), products], out),
            Product::Gate(_) => ([2, 1], dtype),
            Product::GateGradient(_) => ([2, 2], dtype),
            // Does not compete either.
            Product::Cotangents(_) => ([1, 2], dtype),
        };
        let gradient = matches!(product, Product::GateGradient(_));
        Self {
            a: Stored::beside(segments, if a_trans { (k, m) } else { (m, k) }, dtype),
            b: match (b_trans, segments == 2) {
                (true, false) => Stored::below(halves[0], (n, k), dtype),
                (true, true) => Stored::beside(2, (n, k), dtype),
                (false, false) => Stored::beside(halves[0], (k, n), dtype),
                (false, true) => Stored::below(2, (k, n), dtype),
            },
            dz: gradient.then(|| Stored::beside(1, (m, n), dtype)),
            c: Stored::beside(halves[1], (m, n), out),
            pre: asked.saves.then(|| Stored::beside(2, (m, n), dtype)),
            halves,
        }
    }

    fn inputs(&self) -> impl Iterator<Item = Stored> {
        [Some(self.a), Some(self.b), self.dz].into_iter().flatten()
    }

    fn outputs(&self) -> impl Iterator<Item = Stored> {
        [Some(self.c), self.pre].into_iter().flatten()
    }

    /// As many sets of inputs as it takes until L2 cannot hold half of them, as far as half of the memory reaches.
    fn sets(&self, l2_bytes: usize, free_bytes: usize) -> usize {
        let bytes = |matrices: usize| matrices.saturating_mul(size_of::<u32>()).max(1);
        let inputs = bytes(self.inputs().map(|matrix| matrix.words()).fold(0, usize::saturating_add));
        let outputs = bytes(self.outputs().map(|matrix| matrix.words()).fold(0, usize::saturating_add));
        let wanted = l2_bytes.saturating_mul(2).div_ceil(inputs).clamp(2, SETS);
        wanted.min((free_bytes / 2).saturating_sub(outputs) / inputs).max(1)
    }
}

/// A matrix of any type on the device.
type Words = Matrix<u32, CudaMemory>;

struct Trial<'a> {
    cuda: &'a Cuda,
    asked: &'a Asked,
    form: Form,
    /// A, B and dz, where there is one.
    sets: Vec<Vec<Words>>,
    next: Cell<usize>,
    /// C, and pre-activations where they are saved.
    outputs: Vec<Words>,
    /// Twice as large as L2.
    flushed: Words,
}

impl<'a> Trial<'a> {
    fn new(cuda: &'a Cuda, asked: &'a Asked) -> Result<Self> {
        let form = Form::of(asked);
        let l2_bytes = cuda.cuda_stream().context().attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
        let l2_bytes = l2_bytes.map_or(0, |bytes| bytes.max(0) as usize);
        let noise = Noise::new(cuda, form.a.dtype)?;
        let outputs =
            form.outputs().map(|matrix| cuda.zeros(1, matrix.words())).collect::<Result<Vec<_>>>()?;
        let flushed = cuda.zeros(1, 2 * l2_bytes / size_of::<u32>())?;
        let sets = (0..form.sets(l2_bytes, cuda.memory()?.0))
            .map(|set| {
                let inputs = form.inputs().enumerate();
                inputs.map(|(index, matrix)| noise.matrix(cuda, matrix.words(), 3 * set + index)).collect()
            })
            .collect::<Result<_>>()?;
        Ok(Self { cuda, asked, form, sets, next: Cell::new(0), outputs, flushed })
    }

    /// The argument for a set of inputs.
    fn params(&self, set: usize) -> GemmParams {
        let Form { a, b, dz, c, pre, halves } = self.form;
        let inputs = &self.sets[set % self.sets.len()];
        // Independent products have two of each, the halves of a projection share A.
        let parts = |matrix: Stored, words: &Words, count: usize| {
            [0, 1].map(|part| if part < count { matrix.operand(words, part) } else { Operand::NONE })
        };
        let (m, n, k) = self.asked.shape;
        let segments = self.asked.segments.max(1);
        let second = match (segments, self.asked.depth) {
            (2, _) => a.operand(&inputs[0], 1),
            (_, 2) => a.operand(&inputs[0], 0),
            _ => Operand::NONE,
        };
        GemmParams {
            a: [a.operand(&inputs[0], 0), second],
            b: parts(b, &inputs[1], halves[0]),
            c: parts(c, &self.outputs[0], halves[1]),
            pre: pre.map_or([Operand::NONE; 2], |pre| parts(pre, &self.outputs[1], 2)),
            dz: dz.map_or(Operand::NONE, |dz| dz.operand(&inputs[2], 0)),
            m: m as i64,
            n: n as i64,
            k: k as i64 / i64::from(segments),
            segments,
            add: u32::from(self.asked.add),
            ..GemmParams::default()
        }
    }

    fn launch(&self, variant: Variant, params: &GemmParams) -> Result<()> {
        let call = self.cuda.queue().call(0)?;
        match self.asked.kernel.with(variant) {
            Kernel::Gemm(gemm) => launch_gemm(&call, gemm, params),
            Kernel::Decode(decode) => hopper::launch_decode(&call, decode, params),
            _ => Ok(()),
        }
    }

    /// Which candidates give the same results as the first, in rows from the first to the last.
    fn compare(&mut self, candidates: &[Variant]) -> Result<Vec<bool>> {
        let params = self.params(0);
        let mut expected: Option<Vec<u32>> = None;
        candidates
            .iter()
            .map(|&variant| {
                for output in &mut self.outputs {
                    clear(self.cuda, output)?;
                }
                self.launch(variant, &params)?;
                let results = self.sampled()?;
                let same = expected.as_ref().is_none_or(|expected| *expected == results);
                expected.get_or_insert(results);
                Ok(same)
            })
            .collect()
    }

    /// Rows of every result, evenly.
    fn sampled(&self) -> Result<Vec<u32>> {
        let mut rows = Vec::new();
        for (matrix, words) in self.form.outputs().zip(&self.outputs) {
            let count = matrix.rows.min(SAMPLED_ROWS);
            for index in 0..count {
                let start = index * (matrix.rows - 1) / (count - 1).max(1) * matrix.row_words();
                let row = words.view().sub(0..1, start..start + matrix.row_words())?;
                rows.extend_from_slice(self.cuda.download(row)?.view().row(0).unwrap_or_default());
            }
        }
        Ok(rows)
    }

    /// Seconds of a call of each candidate, round by round.
    fn rounds(&mut self, candidates: &[Variant], calls: usize) -> Result<Vec<Vec<f64>>> {
        let mut seconds = vec![Vec::with_capacity(ROUNDS); candidates.len()];
        for round in 0..ROUNDS {
            for index in 0..candidates.len() {
                let candidate = (round + index) % candidates.len();
                seconds[candidate].push(self.seconds(candidates[candidate], calls)?);
            }
        }
        Ok(seconds)
    }

    /// Seconds of a call, out of so many.
    fn seconds(&mut self, variant: Variant, calls: usize) -> Result<f64> {
        // Leaves nothing else in L2, and takes the device so long that the host gets ahead: or the events would measure
        // how fast the host enqueues.
        clear(self.cuda, &mut self.flushed)?;
        let start = self.event()?;
        for _ in 0..calls {
            let set = self.next.get();
            self.next.set(set.wrapping_add(1));
            self.launch(variant, &self.params(set))?;
        }
        let end = self.event()?;
        let milliseconds =
            start.elapsed_ms(&end).map_err(|error| self.failed("cuEventElapsedTime", error))?;
        Ok(f64::from(milliseconds) * 1e-3 / calls as f64)
    }

    fn event(&self) -> Result<CudaEvent> {
        let event = self.cuda.cuda_stream().record_event(Some(CU_EVENT_DEFAULT));
        event.map_err(|error| self.failed("cuEventRecord", error))
    }

    fn failed(&self, call: &str, DriverError(code): DriverError) -> swiglu_core::Error {
        self.cuda.queue().device.health.failed(call, code)
    }
}

/// Fills a matrix with zeros.
fn clear(cuda: &Cuda, matrix: &mut Words) -> Result<()> {
    let bytes = matrix.cols() * size_of::<u32>();
    cuda.queue().stream.clear(matrix.view_mut().ptr().address(), bytes)
}

/// Random numbers on the device, of which every input is made.
struct Noise(Words);

impl Noise {
    /// 8 MiB, and how much of it is copied at once: each part starts somewhere else.
    const LEN: usize = 1 << 21;
    const PART: usize = 1 << 20;

    fn new(cuda: &Cuda, dtype: Dtype) -> Result<Self> {
        let mut host = Matrix::<u32, Host>::host_zeros(1, Self::LEN)?;
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for word in host.view_mut().row_mut(0).unwrap_or_default() {
            *word = random_word(&mut state, dtype);
        }
        cuda.upload(&host).map(Self)
    }

    fn matrix(&self, cuda: &Cuda, words: usize, seed: usize) -> Result<Words> {
        let mut matrix: Words = cuda.zeros(1, words)?;
        for (index, first) in (0..words).step_by(Self::PART).enumerate() {
            let count = Self::PART.min(words - first);
            // A multiple of 4 words, and odd otherwise: matrices do not repeat each other.
            let offset = (index + 1).wrapping_mul(4 * (977 + 2 * seed)) % (Self::LEN - Self::PART);
            let from: MatRef<'_, u32, CudaMemory> = self.0.view().sub(0..1, offset..offset + count)?;
            cuda.copy(from, matrix.view_mut().sub(0..1, first..first + count)?)?;
        }
        Ok(matrix)
    }
}

/// One f32, or two 16-bit numbers, uniformly from -1 to 1.
fn random_word(state: &mut u64, dtype: Dtype) -> u32 {
    let mut number = || {
        // Marsaglia's xorshift with 64 bits, of which the upper 24 are the number.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut two = |bits: fn(f32) -> u16| u32::from(bits(number())) << 16 | u32::from(bits(number()));
    match dtype {
        Dtype::F16 => two(|value| f16::from_f32(value).to_bits()),
        Dtype::Bf16 => two(|value| bf16::from_f32(value).to_bits()),
        Dtype::F32 => number().to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Edge, Family, GateCode, Hopper, Vectors};

    fn asked(product: Product, depth: u32, saves: bool, trans: (bool, bool)) -> Asked {
        let gemm = Gemm {
            family: Family::Sm90,
            dtype: Dtype::Bf16,
            tf32: false,
            a_trans: trans.0,
            b_trans: trans.1,
            product,
            edge: Edge::E128,
            vectors: Vectors::default(),
            hopper: Hopper::default(),
            parts: 1,
        };
        Asked { kernel: Kernel::Gemm(gemm), shape: (100, 60, 36), segments: 1, depth, saves, add: false }
    }

    #[test]
    fn operands_lie_as_in_a_call() {
        let gate = GateCode(0);
        let saving = Form::of(&asked(Product::Gate(gate), 1, true, (false, false)));
        // 36 and 60 bf16 are padded to 40 and 64.
        assert_eq!((saving.a.rows, saving.a.stride), (100, 40));
        assert_eq!((saving.b.rows, saving.b.stride, saving.b.part), (36, 128, 64));
        assert_eq!((saving.c.rows, saving.c.stride), (100, 64));
        assert_eq!(saving.pre.map(|pre| (pre.rows, pre.stride, pre.part)), Some((100, 128, 64)));
        assert_eq!((saving.dz, saving.halves), (None, [2, 1]));

        let gradient = Form::of(&asked(Product::GateGradient(gate), 1, false, (false, true)));
        assert_eq!((gradient.b.rows, gradient.b.stride, gradient.b.part), (120, 40, 60 * 40));
        assert_eq!((gradient.c.stride, gradient.halves), (128, [2, 2]));
        assert!(gradient.dz.is_some() && gradient.pre.is_none(), "{gradient:?}");

        let dwf = Form::of(&asked(Product::Store { out: Dtype::F32 }, 2, false, (true, false)));
        assert_eq!((dwf.a.rows, dwf.a.stride), (36, 104));
        assert_eq!((dwf.c.stride, dwf.c.part, dwf.c.dtype), (120, 60, Dtype::F32));
        assert_eq!(dwf.c.words(), 100 * 120);
        assert_eq!(dwf.inputs().count() + dwf.outputs().count(), 3);

        let dx = Asked { segments: 2, ..asked(Product::Store { out: Dtype::Bf16 }, 1, false, (false, true)) };
        let form = Form::of(&dx);
        // Two of 18, padded to 24.
        assert_eq!((form.a.rows, form.a.stride, form.a.part), (100, 48, 24));
        assert_eq!((form.b.rows, form.b.stride, form.b.part), (60, 48, 24));
        assert_eq!((form.c.stride, form.halves), (64, [2, 1]));
        let out_in =
            Asked { segments: 2, ..asked(Product::Store { out: Dtype::Bf16 }, 1, false, (false, false)) };
        let form = Form::of(&out_in);
        assert_eq!((form.b.rows, form.b.stride, form.b.part), (36, 64, 18 * 64));
    }

    #[test]
    fn sets_exceed_the_cache_and_fit_into_memory() {
        let form = Form::of(&asked(Product::Store { out: Dtype::Bf16 }, 1, false, (false, false)));
        // 8000 + 4608 bytes.
        let inputs = 100 * 40 * 2 + 36 * 64 * 2;
        assert_eq!(form.sets(4 * inputs, 1 << 30), 8);
        assert_eq!(form.sets(0, 1 << 30), 2);
        assert_eq!(form.sets(1 << 40, 1 << 30), SETS);
        assert_eq!(form.sets(1 << 40, 0), 1);
        let small = asked(Product::Store { out: Dtype::Bf16 }, 1, false, (true, true));
        let huge = Asked { shape: (1 << 50, 1 << 50, 3), ..small };
        assert_eq!(Form::of(&huge).sets(50 << 20, 78 << 30), 1);
    }

    #[test]
    fn the_fastest_has_the_same_bits() {
        assert_eq!(fastest(&[3.0, 1.0, 2.0], &[true, false, true]), 2);
        assert_eq!(fastest(&[1.0, 1.0], &[true, true]), 0);
        assert_eq!(fastest(&[], &[]), 0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn noise_is_neither_zero_nor_large() {
        let mut state = 1;
        for _ in 0..1000 {
            let word = random_word(&mut state, Dtype::Bf16);
            for half in [word >> 16, word & 0xffff] {
                assert!(bf16::from_bits(half as u16).to_f32().abs() <= 1.0);
            }
            assert!(f32::from_bits(random_word(&mut state, Dtype::F32)).abs() <= 1.0);
        }
    }
}
