//! Matrices of more than 2^32 elements, one operand at a time: x, w, z, dx and dWf, each on every family that accepts
//! it.
//!
//! Every number is a small integer and the gate is ReLU, so the oracle is exact: no sum reaches 2^24, where f32 stops
//! holding every integer, whatever the order of its terms, and dG and dU are at most 4, integers of bf16. What is left
//! is one rounding of a product to f32 (the host has the same one) and one to bf16, so results are compared for
//! equality. A bound with gamma_k and u = 2^-23 would be 0.8 % of the sum of magnitudes at k = 65541, and pass a kernel
//! that reads half of the rows in place of others.
//!
//! Huge inputs repeat a block of rows. The periods are primes that 2^31 and 2^32 elements are no multiple of, so that an
//! address that wrapped around would read other values.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libtest_mimic::{Failed, Trial};
use swiglu_core::{
    Backend, Dims, Dtype, Gate, GradientKind, Gradients, Host, MatMut, Matrix, Options, Orientation, Out,
    Pass, Problem, Result, Save, SwiGLU, Target, Weights, bf16,
};
use swiglu_cuda::{ComputeCapability, Cuda, CudaMemory, Family};

use crate::cuda;

/// Rows and columns, and elements from row to row, of the huge matrices. The pads keep rows at multiples of 16 bytes,
/// which `mma` needs, with lengths that are none.
const TALL: Huge = Huge { rows: (1 << 22) + 5, cols: 1027, stride: 1032 };
const SQUARE: Huge = Huge { rows: 65541, cols: 65541, stride: 65552 };
/// Both halves of weights, and of their gradient, side by side.
const PACKED: Huge = Huge { rows: 65541, cols: 65552, stride: 65560 };

/// Units in every dimension that is small.
const FEW: usize = 8;
/// A batch that is too large for `gemv`, and not for `decode`.
const BATCH: usize = 16;
/// What lies beside an output.
const CANARY: f32 = 77.0;

#[derive(Clone, Copy)]
struct Huge {
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Huge {
    /// Bytes of it and of one row more.
    const fn bytes(self) -> usize {
        (self.rows + 1) * self.stride * size_of::<bf16>()
    }
}

const _: () = {
    assert!(TALL.rows * TALL.stride > 1 << 32);
    assert!(SQUARE.rows * SQUARE.stride > 1 << 32);
    assert!(PACKED.rows * PACKED.stride > 1 << 32);
};

/// Trials; those that the free memory of the device is too small for are ignored, and say so.
pub(crate) fn trials() -> Vec<Trial> {
    type Test = fn() -> Result<(), Failed>;
    let cases: [(&str, usize, Test); 5] = [
        ("large::x", TALL.bytes(), x),
        ("large::w", PACKED.bytes(), w),
        ("large::z", SQUARE.bytes(), z),
        ("large::dx", 2 * TALL.bytes(), dx),
        ("large::dwf", 2 * PACKED.bytes(), dwf),
    ];
    // Without a device all trials are ignored anyway.
    let free = cuda().ok().and_then(|cuda| cuda.memory().ok()).map(|(free, _)| free);
    cases
        .into_iter()
        .map(|(name, bytes, test)| {
            // Small operands, workspace and the context.
            let needed = bytes + (1 << 30);
            let short = free.filter(|&free| free < needed);
            if let Some(free) = short {
                eprintln!("{name} is ignored: {needed} bytes of device memory are needed, {free} are free");
            }
            Trial::test(name, test).with_ignored_flag(short.is_some())
        })
        .collect()
}

/// One of these tests at a time: together they could need more memory than there is.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A matrix of integers from -2 to 2 that repeats its first `period` rows.
struct Pattern {
    period: usize,
    cols: usize,
    block: Vec<i8>,
}

impl Pattern {
    fn new(salt: u64, period: usize, cols: usize) -> Self {
        let value = |index: usize| {
            // SplitMix64, see Steele, Lea and Flood, "Fast splittable pseudorandom number generators".
            let mut bits = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.rotate_left(40);
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((bits ^ (bits >> 31)) % 5) as i8 - 2
        };
        Self { period, cols, block: (0..period * cols).map(value).collect() }
    }

    fn at(&self, row: usize, col: usize) -> i64 {
        i64::from(self.block[row % self.period * self.cols + col])
    }

    /// The block itself.
    fn host(&self) -> Result<Matrix<bf16, Host>> {
        let mut host = Matrix::host_zeros(self.period, self.cols)?;
        for (to, &value) in host.view_mut().array_mut().iter_mut().zip(&self.block) {
            *to = bf16::from_f32(f32::from(value));
        }
        Ok(host)
    }

    /// On the device, as often as it takes; rows are `stride` elements apart.
    fn upload(&self, cuda: &Cuda, rows: usize, stride: usize) -> Result<Matrix<bf16, CudaMemory>> {
        let (host, mut matrix) = (self.host()?, cuda.zeros(rows, stride)?);
        for start in (0..rows).step_by(self.period) {
            let rows = start..rows.min(start + self.period);
            let block = host.view().sub(0..rows.len(), 0..self.cols)?;
            cuda.copy_in(block, matrix.view_mut().sub(rows, 0..self.cols)?)?;
        }
        Ok(matrix)
    }
}

/// An output in the corner of a matrix with one row more, and its rows that are looked at.
struct Output {
    matrix: Matrix<bf16, CudaMemory>,
    huge: Huge,
    looked_at: Vec<usize>,
}

impl Output {
    /// With `count` rows that are looked at besides the first, the last, and those around powers of two.
    fn new(cuda: &Cuda, huge: Huge, count: usize) -> Result<Self> {
        let looked_at = rows(huge, count);
        let mut matrix = cuda.zeros(huge.rows + 1, huge.stride)?;
        let mut canary = Matrix::<bf16, Host>::host_zeros(1, huge.stride)?;
        canary.view_mut().array_mut().fill(bf16::from_f32(CANARY));
        let mut put = |row: usize, cols: Range<usize>| -> Result<()> {
            let to = matrix.view_mut().sub(row..row + 1, cols.clone())?;
            cuda.copy_in(canary.view().sub(0..1, cols)?, to)
        };
        for &row in &looked_at {
            put(row, huge.cols..huge.stride)?;
        }
        put(huge.rows, 0..huge.stride)?;
        Ok(Self { matrix, huge, looked_at })
    }

    fn view_mut(&mut self) -> Result<MatMut<'_, bf16, CudaMemory>> {
        self.matrix.view_mut().sub(0..self.huge.rows, 0..self.huge.cols)
    }

    /// Compares whole rows, and what lies beside them.
    fn check(&self, cuda: &Cuda, what: &str, expected: impl Fn(usize, usize) -> f32) -> Result<(), Failed> {
        let Huge { rows, cols, stride } = self.huge;
        for &row in self.looked_at.iter().chain([&rows]) {
            let got = cuda.download(self.matrix.view().sub(row..row + 1, 0..stride)?)?;
            for (col, got) in got.view().row(0).unwrap_or_default().iter().enumerate() {
                let outside = row == rows || col >= cols;
                let expected = if outside { CANARY } else { expected(row, col) };
                equal(what, (row, col), got.to_f32(), expected)?;
            }
        }
        println!("{what}: {} rows of {cols} as expected", self.looked_at.len());
        Ok(())
    }
}

/// Rows to look at: the first and last two, those that hold the elements around 2^30, 2^31 (bytes and elements wrap
/// there) and 2^32, and `count` others.
fn rows(huge: Huge, count: usize) -> Vec<usize> {
    let around = [30, 31, 32].into_iter().flat_map(|bits| {
        let row = (1usize << bits) / huge.stride;
        row - 1..row + 2
    });
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let others = (0..count).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % huge.rows as u64) as usize
    });
    let mut rows: Vec<usize> =
        [0, 1, huge.rows - 2, huge.rows - 1].into_iter().chain(around).chain(others).collect();
    rows.retain(|&row| row < huge.rows);
    rows.sort_unstable();
    rows.dedup();
    rows
}

fn equal(what: &str, at: (usize, usize), got: f32, expected: f32) -> Result<(), Failed> {
    // As numbers: relu(g) * u may be a zero of either sign.
    if got == bf16::from_f32(expected).to_f32() {
        Ok(())
    } else {
        Err(format!("{what}: {got} at {at:?}, expected {expected}").into())
    }
}

/// relu(g) * u of exact sums.
fn gated(g: i64, u: i64) -> f32 {
    g.max(0) as f32 * u as f32
}

/// The handle for each family, with its name. Fails where the plan for such a call is of another one.
fn on(cuda: &Cuda, families: &[Family], pass: Pass, dims: Dims) -> Result<Vec<(Cuda, String)>, Failed> {
    let one = |family: Family| -> Result<(Cuda, String), Failed> {
        let cuda = cuda.clone().with_family(family);
        let mut problem = Problem::dense(pass, Dtype::Bf16, dims, Orientation::InOut, Options::new());
        let accesses = &mut problem.accesses;
        for access in [
            &mut accesses.x,
            &mut accesses.gate,
            &mut accesses.up,
            &mut accesses.z,
            &mut accesses.pre,
            &mut accesses.dx,
            &mut accesses.dwf_gate,
            &mut accesses.dwf_up,
        ] {
            access.align = 16;
        }
        let plan = SwiGLU::<bf16>::plan(&cuda, &problem)?;
        if plan.launches.iter().any(|launch| launch.starts_with(&family.to_string())) {
            return Ok((cuda, family.to_string()));
        }
        Err(format!("{family} does not run this: {plan}").into())
    };
    families.iter().map(|&family| one(family)).collect()
}

/// Those that multiply whole matrices.
fn families(cuda: &Cuda) -> Vec<Family> {
    let mut families = vec![Family::Simt, Family::Mma];
    families.extend(hopper(cuda).then_some(Family::Sm90));
    families
}

fn hopper(cuda: &Cuda) -> bool {
    cuda.preflight().gpu.compute_capability == ComputeCapability { major: 9, minor: 0 }
}

const FORWARD: Pass = Pass::Forward { save: false };

fn x() -> Result<(), Failed> {
    let (_alone, cuda) = (alone(), cuda()?);
    let (x, w) = (Pattern::new(1, 4093, TALL.cols), Pattern::new(2, TALL.cols, 2 * FEW));
    // Rows of z repeat as those of x do.
    let period = x.period;
    let product = |row: usize, col: usize| (0..TALL.cols).map(|i| x.at(row, i) * w.at(i, col)).sum::<i64>();
    let expected: Vec<f32> = (0..period * FEW)
        .map(|at| gated(product(at / FEW, at % FEW), product(at / FEW, at % FEW + FEW)))
        .collect();
    let dims = Dims { batch: TALL.rows, in_features: TALL.cols, hidden: FEW };
    let x = x.upload(&cuda, TALL.rows, TALL.stride)?;
    let wf = cuda.upload(&w.host()?)?;
    let w = Weights::packed(wf.view(), Orientation::InOut)?.gate(Gate::Reglu);
    for (cuda, family) in on(&cuda, &families(&cuda), FORWARD, dims)? {
        let what = format!("x, {family}");
        let z = cuda.forward(x.view().sub(0..TALL.rows, 0..TALL.cols)?, w, Options::new())?;
        for (row, got) in cuda.download(&z)?.view().array().rows().into_iter().enumerate() {
            for (col, got) in got.iter().enumerate() {
                let expected = expected[row % period * FEW + col];
                equal(&what, (row, col), got.to_f32(), expected)?;
            }
        }
    }
    Ok(())
}

fn w() -> Result<(), Failed> {
    let (_alone, cuda) = (alone(), cuda()?);
    let hidden = PACKED.cols / 2;
    let (x, w) = (Pattern::new(3, BATCH, PACKED.rows), Pattern::new(4, 61, PACKED.cols));
    // Rows of w repeat, so what they are multiplied by can be added first.
    let sums: Vec<i64> = (0..BATCH * w.period)
        .map(|at| (at % w.period..PACKED.rows).step_by(w.period).map(|i| x.at(at / w.period, i)).sum())
        .collect();
    let product =
        |row: usize, col: usize| (0..w.period).map(|i| sums[row * w.period + i] * w.at(i, col)).sum::<i64>();
    let expected: Vec<f32> = (0..BATCH * hidden)
        .map(|at| gated(product(at / hidden, at % hidden), product(at / hidden, at % hidden + hidden)))
        .collect();
    let dims = Dims { batch: BATCH, in_features: PACKED.rows, hidden };
    let few = Dims { batch: 4, ..dims };
    let x = x.upload(&cuda, BATCH, PACKED.rows.next_multiple_of(FEW))?;
    let wf = w.upload(&cuda, PACKED.rows, PACKED.stride)?;
    let wf = wf.view().sub(0..PACKED.rows, 0..PACKED.cols)?;
    let w = Weights::packed(wf, Orientation::InOut)?.gate(Gate::Reglu);
    let mut handles = on(&cuda, &families(&cuda), FORWARD, dims)?;
    handles.extend(on(&cuda, &[Family::Gemv], FORWARD, few)?);
    handles.extend(on(&cuda, if hopper(&cuda) { &[Family::Decode] } else { &[] }, FORWARD, dims)?);
    for (cuda, family) in handles {
        let (what, batch) = (format!("w, {family}"), if family == "gemv" { few.batch } else { BATCH });
        let z = cuda.forward(x.view().sub(0..batch, 0..PACKED.rows)?, w, Options::new())?;
        for (row, got) in cuda.download(&z)?.view().array().rows().into_iter().enumerate() {
            for (col, got) in got.iter().enumerate() {
                equal(&what, (row, col), got.to_f32(), expected[row * hidden + col])?;
            }
        }
    }
    Ok(())
}

fn z() -> Result<(), Failed> {
    let (_alone, cuda) = (alone(), cuda()?);
    let Huge { rows: batch, cols: hidden, stride } = SQUARE;
    let (x, w) = (Pattern::new(5, batch, FEW), Pattern::new(6, FEW, 2 * stride));
    let dims = Dims { batch, in_features: FEW, hidden };
    let (device_x, wf) = (cuda.upload(&x.host()?)?, cuda.upload(&w.host()?)?);
    let half = |first: usize| wf.view().sub(0..FEW, first..first + hidden);
    let split = Weights::split(half(0)?, half(stride)?, Orientation::InOut)?.gate(Gate::Reglu);
    for (cuda, family) in on(&cuda, &families(&cuda), FORWARD, dims)? {
        let mut z = Output::new(&cuda, SQUARE, 200)?;
        cuda.forward_into(device_x.view(), split, z.view_mut()?, Options::new())?;
        z.check(&cuda, &format!("z, {family}"), |row, col| {
            let product = |col: usize| (0..FEW).map(|i| x.at(row, i) * w.at(i, col)).sum::<i64>();
            gated(product(col), product(stride + col))
        })?;
    }
    Ok(())
}

/// What a backward through weights of zeros, or inputs of zeros, starts from: g and u are the bias.
struct Cotangents {
    bias: Pattern,
    dz: Pattern,
}

impl Cotangents {
    fn gate(&self, row: usize, col: usize) -> i64 {
        let active = self.bias.at(0, col) > 0;
        if active { self.dz.at(row, col) * self.bias.at(0, self.dz.cols + col) } else { 0 }
    }

    fn up(&self, row: usize, col: usize) -> i64 {
        self.dz.at(row, col) * self.bias.at(0, col).max(0)
    }
}

fn backward_of(dx: bool, dwf: bool) -> Pass {
    let kind = |asked: bool| asked.then_some(GradientKind { dtype: Dtype::Bf16, add: false });
    Pass::Backward { saved: true, dx: kind(dx), dwf: kind(dwf), dbias: None }
}

fn dx() -> Result<(), Failed> {
    let (_alone, cuda) = (alone(), cuda()?);
    let Huge { rows: batch, cols: in_features, stride } = TALL;
    let d = Cotangents { bias: Pattern::new(7, 1, 2 * FEW), dz: Pattern::new(8, 4093, FEW) };
    let w = Pattern::new(9, in_features, 2 * FEW);
    let dims = Dims { batch, in_features, hidden: FEW };
    let x = cuda.zeros::<bf16>(batch, stride)?;
    let x = x.view().sub(0..batch, 0..in_features)?;
    let (wf, bias) = (cuda.upload(&w.host()?)?, cuda.upload(&d.bias.host()?)?);
    let weights = Weights::packed(wf.view(), Orientation::InOut)?.bias(bias.view())?.gate(Gate::Reglu);
    let dz = d.dz.upload(&cuda, batch, FEW)?;
    for (cuda, family) in on(&cuda, &families(&cuda), backward_of(true, false), dims)? {
        let (_, mut saved) = cuda.forward_train(x, weights, Save::PreActivations, Options::new())?;
        let mut dx = Output::new(&cuda, TALL, 4000)?;
        let gradients = Gradients::new().dx(Out::write(dx.view_mut()?));
        cuda.backward(x, weights, dz.view(), &mut saved, gradients, Options::new())?;
        dx.check(&cuda, &format!("dx, {family}"), |row, col| {
            let term = |i: usize| d.gate(row, i) * w.at(col, i) + d.up(row, i) * w.at(col, FEW + i);
            (0..FEW).map(term).sum::<i64>() as f32
        })?;
    }
    Ok(())
}

fn dwf() -> Result<(), Failed> {
    let (_alone, cuda) = (alone(), cuda()?);
    let Huge { rows: in_features, cols, stride } = PACKED;
    let hidden = cols / 2;
    let d = Cotangents { bias: Pattern::new(10, 1, cols), dz: Pattern::new(11, BATCH, hidden) };
    let x = Pattern::new(12, BATCH, in_features);
    let dims = Dims { batch: BATCH, in_features, hidden };
    let device_x = x.upload(&cuda, BATCH, in_features.next_multiple_of(FEW))?;
    let device_x = device_x.view().sub(0..BATCH, 0..in_features)?;
    let (wf, bias) = (cuda.zeros::<bf16>(in_features, stride)?, cuda.upload(&d.bias.host()?)?);
    let wf = wf.view().sub(0..in_features, 0..cols)?;
    let weights = Weights::packed(wf, Orientation::InOut)?.bias(bias.view())?.gate(Gate::Reglu);
    let dz = cuda.upload(&d.dz.host()?)?;
    for (cuda, family) in on(&cuda, &families(&cuda), backward_of(false, true), dims)? {
        let (_, mut saved) = cuda.forward_train(device_x, weights, Save::PreActivations, Options::new())?;
        let mut dwf = Output::new(&cuda, PACKED, 200)?;
        let gradients = Gradients::new().dwf(Target::write(dwf.view_mut()?));
        cuda.backward(device_x, weights, dz.view(), &mut saved, gradients, Options::new())?;
        dwf.check(&cuda, &format!("dwf, {family}"), |row, col| {
            let d = |batch: usize| if col < hidden { d.gate(batch, col) } else { d.up(batch, col - hidden) };
            (0..BATCH).map(|batch| x.at(batch, row) * d(batch)).sum::<i64>() as f32
        })?;
    }
    Ok(())
}
