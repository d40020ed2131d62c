//! The promise of equal bits: any number of threads, any split of the batch, any tile.

use ndarray::{Array2, s};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiglu_core::{
    Dense, Element, Gradients, MatMut, MatRef, Op, Options, Orientation, Out, Save, SwiGLU, Target, Tile,
    Weights, bf16, f16,
};
use swiglu_cpu::Cpu;

/// Random matrices of one call, in the element type.
struct Inputs<T> {
    x: Array2<T>,
    wf: Array2<T>,
    bias: Array2<T>,
    dz: Array2<T>,
    orientation: Orientation,
}

/// Everything that a training call leaves behind.
#[derive(PartialEq)]
struct Outputs<T> {
    z: Array2<T>,
    pre: Array2<T>,
    dx: Array2<T>,
    dwf: Array2<T>,
    dbias: Array2<f32>,
}

fn random<T: Element>(rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> Array2<T> {
    Array2::from_shape_simple_fn((rows, cols), || {
        T::from_f32((rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0)
    })
}

fn inputs<T: Element>(
    [batch, in_features, hidden]: [usize; 3],
    orientation: Orientation,
    seed: u64,
) -> Inputs<T> {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let (rows, cols) = orientation.packed_shape(in_features, hidden);
    Inputs {
        x: random(batch, in_features, rng),
        wf: random(rows, cols, rng),
        bias: random(1, 2 * hidden, rng),
        dz: random(batch, hidden, rng),
        orientation,
    }
}

/// A training call on `batch` rows of the inputs.
fn run<T: Element>(
    cpu: &Cpu,
    inputs: &Inputs<T>,
    batch: std::ops::Range<usize>,
    options: Options,
) -> Outputs<T>
where
    Cpu: SwiGLU<T>,
{
    try_run(cpu, inputs, batch, options).unwrap_or_else(|e| panic!("{e}"))
}

fn try_run<T: Element>(
    cpu: &Cpu,
    inputs: &Inputs<T>,
    batch: std::ops::Range<usize>,
    options: Options,
) -> swiglu_core::Result<Outputs<T>>
where
    Cpu: SwiGLU<T>,
{
    let x = MatRef::try_from(inputs.x.slice(s![batch.clone(), ..]))?;
    let dz = MatRef::try_from(inputs.dz.slice(s![batch.clone(), ..]))?;
    let w = Weights::packed(MatRef::try_from(&inputs.wf)?, inputs.orientation)?
        .bias(MatRef::try_from(&inputs.bias)?)?;
    let (z, mut saved) = cpu.forward_train(x, w, Save::PreActivations, options)?;
    let pre = saved.pre_activations().map(|pre| pre.array().to_owned()).unwrap_or_default();
    let mut dx = Array2::from_elem((batch.len(), w.in_features()), T::default());
    let mut dwf = Array2::from_elem(w.packed_shape(), T::default());
    let mut dbias = Array2::zeros((1, 2 * w.hidden()));
    let gradients = Gradients::new()
        .dx(Out::write(MatMut::try_from(&mut dx)?))
        .dwf(Target::write(MatMut::try_from(&mut dwf)?))
        .dbias(Target::write_f32(MatMut::try_from(&mut dbias)?));
    cpu.backward(x, w, dz, &mut saved, gradients, options)?;
    Ok(Outputs { z: z.into_array(), pre, dx, dwf, dbias })
}

fn threads(n: usize) -> Cpu {
    Cpu::new().with_threads(n).unwrap_or_else(|e| panic!("{e}"))
}

/// Shapes on both sides of every tile and block edge of the kernels.
fn shapes() -> impl Iterator<Item = [usize; 3]> {
    let batches = [1, 3, 14, 15, 64, 131];
    let widths =
        [(1, 1), (17, 33), (193, 127), (256, 65), (400, 130), (31, 300), (784, 10), (5, 513), (192, 16)];
    let all = batches.into_iter().flat_map(move |batch| widths.into_iter().map(move |(i, d)| [batch, i, d]));
    // dX of few rows takes k in parts of 4096 elements.
    all.chain([[15, 35, 4101], [17, 35, 4101]])
}

fn agree_on_any_number_of_threads<T: Element>()
where
    Cpu: SwiGLU<T>,
{
    let handles = [1, 2, 3, 8].map(threads);
    let mut compared = 0;
    for (seed, shape) in shapes().enumerate() {
        for orientation in [Orientation::InOut, Orientation::OutIn] {
            let inputs = inputs::<T>(shape, orientation, seed as u64);
            let [one, others @ ..] =
                handles.each_ref().map(|cpu| run(cpu, &inputs, 0..shape[0], Options::new()));
            for other in &others {
                assert!(*other == one, "{shape:?} {orientation:?}: other bits on other threads");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 56 * 2 * 3, "comparisons made");
}

#[test]
fn threads_do_not_change_bits_f32() {
    agree_on_any_number_of_threads::<f32>();
}

#[test]
fn threads_do_not_change_bits_bf16() {
    agree_on_any_number_of_threads::<bf16>();
}

#[test]
fn threads_do_not_change_bits_f16() {
    agree_on_any_number_of_threads::<f16>();
}

/// Few rows go along weights that are not packed, more through panels: the bits are those of one chain along k.
fn no_split_of_64_rows_changes_bits<T: Element>()
where
    Cpu: SwiGLU<T>,
{
    let cpu = threads(2);
    // Along k, more than two of the runs that few rows read together; and in dX more than one of its parts.
    let shapes = [
        (Orientation::InOut, 211, 75),
        (Orientation::InOut, 35, 4_101),
        (Orientation::OutIn, 330, 40),
        (Orientation::OutIn, 1_100, 24),
    ];
    for (orientation, in_features, hidden) in shapes {
        let inputs = inputs::<T>([64, in_features, hidden], orientation, 5);
        let whole = run(&cpu, &inputs, 0..64, Options::new());
        for at in 0..=64 {
            for rows in [0..at, at..64] {
                let part = run(&cpu, &inputs, rows.clone(), Options::new());
                let same = part.z == whole.z.slice(s![rows.clone(), ..])
                    && part.pre == whole.pre.slice(s![rows.clone(), ..])
                    && part.dx == whole.dx.slice(s![rows.clone(), ..]);
                assert!(same, "{orientation:?}, rows {rows:?} of 64: other bits");
            }
        }
    }
}

#[test]
fn no_split_of_64_rows_changes_bits_f32() {
    no_split_of_64_rows_changes_bits::<f32>();
}

#[test]
fn no_split_of_64_rows_changes_bits_bf16() {
    no_split_of_64_rows_changes_bits::<bf16>();
}

#[test]
fn no_split_of_64_rows_changes_bits_f16() {
    no_split_of_64_rows_changes_bits::<f16>();
}

fn no_tile_changes_bits<T: Element>()
where
    Cpu: SwiGLU<T>,
{
    let cpu = threads(3);
    for (batch, orientation) in
        [(100, Orientation::InOut), (100, Orientation::OutIn), (20, Orientation::OutIn)]
    {
        let inputs = inputs::<T>([batch, 300, 90], orientation, 6);
        let automatic = run(&cpu, &inputs, 0..batch, Options::new());
        for tile in [Tile::T32, Tile::T64, Tile::T128] {
            let tiled = run(&cpu, &inputs, 0..batch, Options::new().tile(tile));
            assert!(tiled == automatic, "{batch} rows, {orientation:?}, {tile:?}: other bits");
        }
    }
}

#[test]
fn no_tile_changes_bits_f32() {
    no_tile_changes_bits::<f32>();
}

#[test]
fn no_tile_changes_bits_bf16() {
    no_tile_changes_bits::<bf16>();
}

/// Rows of a product that is large enough for its left factor to be packed once, and of products that are not.
fn rows_packed_once_or_for_each_block_give_the_same_bits<T: Element>()
where
    Cpu: Dense<T>,
{
    let (cpu, rng) = (threads(3), &mut ChaCha8Rng::seed_from_u64(9));
    let (m, n, k) = (300, 130, 420);
    for op in [Op::N, Op::T] {
        let shape = op.shape((m, k));
        let (a, b) = (random::<T>(shape.0, shape.1, rng), random::<T>(k, n, rng));
        let product = |rows: std::ops::Range<usize>| -> swiglu_core::Result<Array2<T>> {
            let mut c = Array2::from_elem((rows.len(), n), T::default());
            let a = match op {
                Op::N => a.slice(s![rows, ..]),
                Op::T => a.slice(s![.., rows]),
            };
            let b = (MatRef::try_from(&b)?, Op::N);
            cpu.matmul((MatRef::try_from(a)?, op), b, Target::write(MatMut::try_from(&mut c)?))?;
            Ok(c)
        };
        let product = |rows| product(rows).unwrap_or_else(|e| panic!("{e}"));
        let whole = product(0..m);
        for rows in [0..40, 100..150, 240..300] {
            assert!(product(rows.clone()) == whole.slice(s![rows.clone(), ..]), "{op:?}, rows {rows:?}");
        }
    }
}

#[test]
fn rows_packed_once_or_for_each_block_give_the_same_bits_f32() {
    rows_packed_once_or_for_each_block_give_the_same_bits::<f32>();
}

#[test]
fn rows_packed_once_or_for_each_block_give_the_same_bits_bf16() {
    rows_packed_once_or_for_each_block_give_the_same_bits::<bf16>();
}

#[test]
fn sixteen_callers_of_one_handle_get_the_same_bits() {
    let cpu = threads(2);
    let inputs = inputs::<f32>([40, 100, 30], Orientation::InOut, 7);
    let expected = run(&cpu, &inputs, 0..40, Options::new());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert!(
                        run(&cpu, &inputs, 0..40, Options::new()) == expected,
                        "other bits under contention"
                    );
                }
            });
        }
    });
}

#[test]
fn a_call_from_inside_a_pool_of_one_thread_returns() {
    let inputs = inputs::<f32>([40, 100, 30], Orientation::InOut, 8);
    let outside = run(&threads(2), &inputs, 0..40, Options::new());
    let inside = threads(1).install(|| run(&Cpu::new(), &inputs, 0..40, Options::new()));
    assert!(inside == outside, "other bits inside of a pool");
}
