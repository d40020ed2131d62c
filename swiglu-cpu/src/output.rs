//! Epilogues: what happens to a tile of accumulators while it is still in L1.

use std::ops::Range;

use swiglu_core::{Element, Gate, Host, MatMut, MatRef};

use crate::gate;
use crate::gemm::Output;
use crate::kernels::Kernel;
use crate::rows::add_assign;

/// At least `NR` of every kernel: the longest row of accumulators.
const MAX_NR: usize = 32;
/// At least `MR x NR / 2` of every kernel: one half of a tile. A gate function runs over all of it at once, since its
/// chain is long, and only many elements side by side fill the pipeline.
const MAX_HALF: usize = 16 * MAX_NR / 2;

/// A split at a block boundary, which always lies inside.
fn split_rows<'a, T: Element>(
    m: MatMut<'a, T, Host>,
    at: usize,
) -> (MatMut<'a, T, Host>, MatMut<'a, T, Host>) {
    m.split_rows(at).expect("a block boundary lies inside of the output")
}

/// As [`split_rows`].
fn split_cols<'a, T: Element>(
    m: MatMut<'a, T, Host>,
    at: usize,
) -> (MatMut<'a, T, Host>, MatMut<'a, T, Host>) {
    m.split_cols(at).expect("a block boundary lies inside of the output")
}

/// As [`split_rows`], for something that is only read.
fn split_ref_rows<'a, T: Element>(
    m: MatRef<'a, T, Host>,
    at: usize,
) -> (MatRef<'a, T, Host>, MatRef<'a, T, Host>) {
    let cols = m.cols();
    let part = |rows| m.sub(rows, 0..cols).expect("a block boundary lies inside of the output");
    (part(0..at), part(at..m.rows()))
}

/// As [`split_cols`], for something that is only read.
fn split_ref_cols<'a, T: Element>(
    m: MatRef<'a, T, Host>,
    at: usize,
) -> (MatRef<'a, T, Host>, MatRef<'a, T, Host>) {
    let rows = m.rows();
    let part = |cols| m.sub(0..rows, cols).expect("a block boundary lies inside of the output");
    (part(0..at), part(at..m.cols()))
}

/// Columns `cols` of row `row`; the driver only asks for parts of its own block.
#[inline(always)]
fn part<'a, T: Element>(m: &'a mut MatMut<'_, T, Host>, row: usize, cols: Range<usize>) -> &'a mut [T] {
    m.row_mut(row).and_then(|row| row.get_mut(cols)).unwrap_or_default()
}

/// As [`part`].
#[inline(always)]
fn part_ref<'a, T: Element>(m: MatRef<'a, T, Host>, row: usize, cols: Range<usize>) -> &'a [T] {
    m.row(row).and_then(|row| row.get(cols)).unwrap_or_default()
}

/// A plain product: `to = c`, or `to += c`, rounded once.
pub(crate) struct Store<'a, S: Element> {
    pub(crate) to: MatMut<'a, S, Host>,
    pub(crate) add: bool,
}

/// Narrows as many of `from` as `to` holds. All of them is the rule, and then the length is a constant where this is
/// inlined: a vector store in place of a call to copy a few bytes.
#[inline(always)]
fn put_row<S: Element>(from: &[f32], to: &mut [S]) {
    if to.len() == from.len() { S::narrow(from, &mut to[..from.len()]) } else { S::narrow(from, to) }
}

/// As [`put_row`], added to what is there when `add` is set.
#[inline(always)]
fn store_row<S: Element>(from: &[f32], add: bool, to: &mut [S]) {
    if !add {
        return put_row(from, to);
    }
    let mut sum = [0.0; MAX_NR];
    let sum = &mut sum[..to.len()];
    S::widen(to, sum);
    for (sum, from) in sum.iter_mut().zip(from) {
        *sum += from;
    }
    S::narrow(sum, to);
}

impl<S: Element> Output for Store<'_, S> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let (upper, lower) = split_rows(self.to, at);
        (Self { to: upper, add: self.add }, Self { to: lower, add: self.add })
    }

    fn split_cols(self, at: usize) -> (Self, Self) {
        let (left, right) = split_cols(self.to, at);
        (Self { to: left, add: self.add }, Self { to: right, add: self.add })
    }

    #[inline(always)]
    fn store<K: Kernel>(&mut self, rows: Range<usize>, cols: Range<usize>, accumulators: &[f32]) {
        for (row, c) in rows.zip(accumulators.chunks_exact(K::NR)) {
            store_row(&c[..K::NR], self.add, part(&mut self.to, row, cols.clone()));
        }
    }
}

/// Two products side by side in each tile: the gate and the up half of dWf.
pub(crate) struct StorePair<'a, S: Element> {
    pub(crate) gate: MatMut<'a, S, Host>,
    pub(crate) up: MatMut<'a, S, Host>,
    pub(crate) add: bool,
}

impl<S: Element> Output for StorePair<'_, S> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let ((g0, g1), (u0, u1)) = (split_rows(self.gate, at), split_rows(self.up, at));
        (Self { gate: g0, up: u0, add: self.add }, Self { gate: g1, up: u1, add: self.add })
    }

    fn split_cols(self, at: usize) -> (Self, Self) {
        let ((g0, g1), (u0, u1)) = (split_cols(self.gate, at), split_cols(self.up, at));
        (Self { gate: g0, up: u0, add: self.add }, Self { gate: g1, up: u1, add: self.add })
    }

    #[inline(always)]
    fn store<K: Kernel>(&mut self, rows: Range<usize>, cols: Range<usize>, accumulators: &[f32]) {
        for (row, c) in rows.zip(accumulators.chunks_exact(K::NR)) {
            let (g, u) = (&c[..K::NR / 2], &c[K::NR / 2..K::NR]);
            store_row(g, self.add, part(&mut self.gate, row, cols.clone()));
            store_row(u, self.add, part(&mut self.up, row, cols.clone()));
        }
    }
}

/// The two halves of a bias `[1, 2D]`, split along with the output.
#[derive(Clone, Copy)]
pub(crate) struct Bias<'a, T: Element> {
    gate: MatRef<'a, T, Host>,
    up: MatRef<'a, T, Host>,
}

impl<'a, T: Element> Bias<'a, T> {
    pub(crate) fn new(row: MatRef<'a, T, Host>) -> Self {
        let (gate, up) = split_ref_cols(row, row.cols() / 2);
        Self { gate, up }
    }

    fn split_cols(self, at: usize) -> (Self, Self) {
        let ((g0, g1), (u0, u1)) = (split_ref_cols(self.gate, at), split_ref_cols(self.up, at));
        (Self { gate: g0, up: u0 }, Self { gate: g1, up: u1 })
    }
}

/// Both halves of an optional bias, widened; zeros past the last column.
#[inline(always)]
fn load_bias<T: Element>(bias: Option<Bias<'_, T>>, cols: Range<usize>) -> Option<[[f32; MAX_NR / 2]; 2]> {
    let bias = bias?;
    let mut halves = [[0.0; MAX_NR / 2]; 2];
    T::widen(part_ref(bias.gate, 0, cols.clone()), &mut halves[0]);
    T::widen(part_ref(bias.up, 0, cols), &mut halves[1]);
    Some(halves)
}

/// Both halves of some rows of pre-activations, row after row: accumulators and bias.
#[inline(always)]
fn pre_activations<K: Kernel>(c: &[f32], bias: &Option<[[f32; MAX_NR / 2]; 2]>) -> [[f32; MAX_HALF]; 2] {
    let half = K::NR / 2;
    let [mut gate, mut up] = [[0.0; MAX_HALF]; 2];
    for ((c, g), u) in c.chunks_exact(K::NR).zip(gate.chunks_exact_mut(half)).zip(up.chunks_exact_mut(half)) {
        // Lengths that are constants: a vector each, and no call to copy 64 bytes.
        g[..half].copy_from_slice(&c[..half]);
        u[..half].copy_from_slice(&c[half..2 * half]);
        if let Some([gate, up]) = bias {
            add_assign(g, &gate[..half]);
            add_assign(u, &up[..half]);
        }
    }
    [gate, up]
}

/// The accumulators of as many rows at a time as one [`MAX_HALF`] holds, and the first of these rows.
#[inline(always)]
fn groups<K: Kernel>(rows: Range<usize>, accumulators: &[f32]) -> impl Iterator<Item = (usize, &[f32])> {
    let most = MAX_HALF / (K::NR / 2);
    rows.step_by(most).zip(accumulators.chunks(most * K::NR))
}

/// z = h(g, u), and the pre-activations when they are kept.
pub(crate) struct GateStore<'a, T: Element> {
    pub(crate) gate: Gate,
    pub(crate) bias: Option<Bias<'a, T>>,
    pub(crate) z: MatMut<'a, T, Host>,
    /// The gate and the up half.
    pub(crate) pre: Option<(MatMut<'a, T, Host>, MatMut<'a, T, Host>)>,
}

impl<T: Element> Output for GateStore<'_, T> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let Self { gate, bias, z, pre } = self;
        let (z0, z1) = split_rows(z, at);
        let (pre0, pre1) = match pre {
            Some((g, u)) => {
                let ((g0, g1), (u0, u1)) = (split_rows(g, at), split_rows(u, at));
                (Some((g0, u0)), Some((g1, u1)))
            }
            None => (None, None),
        };
        (Self { gate, bias, z: z0, pre: pre0 }, Self { gate, bias, z: z1, pre: pre1 })
    }

    fn split_cols(self, at: usize) -> (Self, Self) {
        let Self { gate, bias, z, pre } = self;
        let (z0, z1) = split_cols(z, at);
        let (bias0, bias1) = bias.map(|bias| bias.split_cols(at)).unzip();
        let (pre0, pre1) = match pre {
            Some((g, u)) => {
                let ((g0, g1), (u0, u1)) = (split_cols(g, at), split_cols(u, at));
                (Some((g0, u0)), Some((g1, u1)))
            }
            None => (None, None),
        };
        (Self { gate, bias: bias0, z: z0, pre: pre0 }, Self { gate, bias: bias1, z: z1, pre: pre1 })
    }

    #[inline(always)]
    fn store<K: Kernel>(&mut self, rows: Range<usize>, cols: Range<usize>, accumulators: &[f32]) {
        let half = K::NR / 2;
        let bias = load_bias(self.bias, cols.clone());
        for (first, c) in groups::<K>(rows, accumulators) {
            let [g, u] = pre_activations::<K>(c, &bias);
            let (len, mut h) = (c.len() / 2, [0.0; MAX_HALF]);
            gate::values(self.gate, &g[..len], &u[..len], &mut h[..len]);
            for (row, h) in (first..).zip(h[..len].chunks_exact(half)) {
                put_row(&h[..half], part(&mut self.z, row, cols.clone()));
            }
            let Some((pre_gate, pre_up)) = &mut self.pre else { continue };
            for ((row, g), u) in (first..).zip(g[..len].chunks_exact(half)).zip(u.chunks_exact(half)) {
                put_row(&g[..half], part(pre_gate, row, cols.clone()));
                put_row(&u[..half], part(pre_up, row, cols.clone()));
            }
        }
    }
}

/// dAB from accumulators that are dz: pre-activations become it where they are.
pub(crate) struct CotangentStore<'a, T: Element, S: Element> {
    pub(crate) gate: Gate,
    /// Of pre-activations that lack theirs.
    pub(crate) bias: Option<Bias<'a, T>>,
    pub(crate) dgate: MatMut<'a, S, Host>,
    pub(crate) dup: MatMut<'a, S, Host>,
}

impl<T: Element, S: Element> Output for CotangentStore<'_, T, S> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let Self { gate, bias, dgate, dup } = self;
        let ((g0, g1), (u0, u1)) = (split_rows(dgate, at), split_rows(dup, at));
        (Self { gate, bias, dgate: g0, dup: u0 }, Self { gate, bias, dgate: g1, dup: u1 })
    }

    fn split_cols(self, at: usize) -> (Self, Self) {
        let Self { gate, bias, dgate, dup } = self;
        let ((g0, g1), (u0, u1)) = (split_cols(dgate, at), split_cols(dup, at));
        let (bias0, bias1) = bias.map(|bias| bias.split_cols(at)).unzip();
        (Self { gate, bias: bias0, dgate: g0, dup: u0 }, Self { gate, bias: bias1, dgate: g1, dup: u1 })
    }

    #[inline(always)]
    fn store<K: Kernel>(&mut self, rows: Range<usize>, cols: Range<usize>, accumulators: &[f32]) {
        let (half, width) = (K::NR / 2, cols.len());
        // The tile is as wide as two of the halves that a bias and a gate function take at a time.
        for (from, to) in [(0, width.min(half)), (half, width)] {
            if from >= to {
                continue;
            }
            let cols = cols.start + from..cols.start + to;
            let bias = load_bias(self.bias, cols.clone());
            for (first, c) in groups::<K>(rows.clone(), accumulators) {
                let [mut g, mut u] = [[0.0; MAX_HALF]; 2];
                let (len, mut dz) = (c.len() / 2, [0.0; MAX_HALF]);
                for (index, row) in (first..).take(len / half).enumerate() {
                    let at = index * half..(index + 1) * half;
                    dz[at.clone()].copy_from_slice(&c[index * K::NR + from..][..half]);
                    let (g, u) = (&mut g[at.clone()], &mut u[at]);
                    S::widen(part_ref(self.dgate.view(), row, cols.clone()), g);
                    S::widen(part_ref(self.dup.view(), row, cols.clone()), u);
                    if let Some([gate, up]) = &bias {
                        add_assign(g, &gate[..half]);
                        add_assign(u, &up[..half]);
                    }
                }
                gate::gradients(self.gate, &dz[..len], &mut g[..len], &mut u[..len]);
                for ((row, g), u) in (first..).zip(g[..len].chunks_exact(half)).zip(u.chunks_exact(half)) {
                    put_row(&g[..half], part(&mut self.dgate, row, cols.clone()));
                    put_row(&u[..half], part(&mut self.dup, row, cols.clone()));
                }
            }
        }
    }
}

/// dAB from pre-activations that are computed again: dz times both partial derivatives, in f32.
pub(crate) struct GateGradientStore<'a, T: Element> {
    pub(crate) gate: Gate,
    pub(crate) bias: Option<Bias<'a, T>>,
    pub(crate) dz: MatRef<'a, T, Host>,
    pub(crate) dgate: MatMut<'a, f32, Host>,
    pub(crate) dup: MatMut<'a, f32, Host>,
}

impl<T: Element> Output for GateGradientStore<'_, T> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let Self { gate, bias, dz, dgate, dup } = self;
        let ((g0, g1), (u0, u1)) = (split_rows(dgate, at), split_rows(dup, at));
        let (dz0, dz1) = split_ref_rows(dz, at);
        (Self { gate, bias, dz: dz0, dgate: g0, dup: u0 }, Self { gate, bias, dz: dz1, dgate: g1, dup: u1 })
    }

    fn split_cols(self, at: usize) -> (Self, Self) {
        let Self { gate, bias, dz, dgate, dup } = self;
        let ((g0, g1), (u0, u1)) = (split_cols(dgate, at), split_cols(dup, at));
        let (dz0, dz1) = split_ref_cols(dz, at);
        let (bias0, bias1) = bias.map(|bias| bias.split_cols(at)).unzip();
        (
            Self { gate, bias: bias0, dz: dz0, dgate: g0, dup: u0 },
            Self { gate, bias: bias1, dz: dz1, dgate: g1, dup: u1 },
        )
    }

    #[inline(always)]
    fn store<K: Kernel>(&mut self, rows: Range<usize>, cols: Range<usize>, accumulators: &[f32]) {
        let half = K::NR / 2;
        let bias = load_bias(self.bias, cols.clone());
        for (first, c) in groups::<K>(rows, accumulators) {
            let [mut g, mut u] = pre_activations::<K>(c, &bias);
            let (len, mut dz) = (c.len() / 2, [0.0; MAX_HALF]);
            for (row, dz) in (first..).zip(dz[..len].chunks_exact_mut(half)) {
                T::widen(part_ref(self.dz, row, cols.clone()), dz);
            }
            gate::gradients(self.gate, &dz[..len], &mut g[..len], &mut u[..len]);
            for ((row, g), u) in (first..).zip(g[..len].chunks_exact(half)).zip(u.chunks_exact(half)) {
                put_row(&g[..half], part(&mut self.dgate, row, cols.clone()));
                put_row(&u[..half], part(&mut self.dup, row, cols.clone()));
            }
        }
    }
}
