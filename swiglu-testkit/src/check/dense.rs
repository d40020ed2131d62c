//! What stands around the op: products, bias, sums, the gate alone, loss, optimizer.

mod loss;
mod optimizer;
mod refusals;

use half::{bf16, f16};
use ndarray::Array2;
use swiglu_core::{Dense, Dtype, Element, Error, Gate, Op};

use crate::arrange::place;
use crate::bits::Value;
use crate::bounds::{Grade, Model, bias_gradient_input};
use crate::case::{Case, Data, How};
use crate::config::Config;
use crate::data::{Draws, narrow, real};
use crate::guarded::Guarded;
use crate::judge::{Expected, judge};
use crate::oracle::{Real, column_sums, cotangents, output, product, transposed};
use crate::part::{beside, column_halves};
use crate::report::{Failure, Report, ensure};
use crate::suite::Complete;
use loss::cross_entropy;
use optimizer::adamw;
pub(super) use refusals::refusals;

/// Shapes (m, k, n): inside of a tile, at its edges, across several.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (3, 5, 2),
    (7, 33, 9),
    (17, 15, 31),
    (32, 32, 32),
    (65, 63, 64),
    (129, 17, 33),
    (2, 257, 129),
    (0, 4, 3),
];

/// One element type of a backend, its configuration, and the random numbers for it.
struct Bench<'a, B> {
    backend: &'a B,
    config: &'a Config,
    seed: u64,
}

impl<B> Bench<'_, B> {
    /// Normal numbers in an element type; `stream` tells operands apart.
    fn normal<T: Element>(&self, stream: u64, shape: (usize, usize)) -> Array2<T> {
        let mut draws = Draws::new(self.seed, 5000 + stream);
        narrow(&Real::from_shape_simple_fn(shape, || draws.normal()))
    }

    fn model(&self, dtype: Dtype) -> Model {
        self.config.model(&Case { data: Data::Normal, ..Case::new(0, 0, 0, dtype) })
    }
}

/// Every way to write or add a result.
const HOWS: [How; 4] = [
    How { add: false, wide: false },
    How { add: true, wide: false },
    How { add: false, wide: true },
    How { add: true, wide: true },
];

fn kind<T: Element>(how: How) -> Dtype {
    if how.wide { Dtype::F32 } else { T::DTYPE }
}

fn matmul<T: Value, B: Dense<T>>(bench: &Bench<'_, B>, report: &mut Report) -> Result<(), Failure> {
    let (backend, model) = (bench.backend, bench.model(T::DTYPE));
    // The last two are what a GPU cuts along k.
    for (m, k, n) in SHAPES.into_iter().chain([(4, 0, 5), (4, 3, 0), (40, 1100, 72), (9, 2100, 33)]) {
        for how in HOWS {
            for (op_a, op_b) in [(Op::N, Op::N), (Op::N, Op::T), (Op::T, Op::N), (Op::T, Op::T)] {
                let a: Array2<T> = bench.normal(0, op_a.shape((m, k)));
                let b: Array2<T> = bench.normal(1, op_b.shape((k, n)));
                let old: Array2<T> = bench.normal(2, (m, n));
                let placed = (
                    Guarded::new(backend, "left factor", &a, 1)?,
                    Guarded::new(backend, "right factor", &b, 2)?,
                );
                let mut c = place(backend, "product", &old, if how.add { 3 } else { 0 }, how)?;
                backend.matmul((placed.0.view(), op_a), (placed.1.view(), op_b), c.target(how.add))?;
                let got = c.read(backend)?;
                placed.0.unchanged(backend)?;
                placed.1.unchanged(backend)?;

                let turn = |a: Real, op| if op == Op::T { transposed(&a) } else { a };
                let (a, b) = (turn(real(&a), op_a), turn(real(&b), op_b));
                let old = how.add.then(|| real(&old));
                let mut value = product(&a, &b);
                if let Some(old) = &old {
                    value += old;
                }
                let expected = Expected::new(value, |grade, value| {
                    model.matmul(grade, (&a, &b), (value, old.as_ref()), kind::<T>(how))
                });
                let name = format!("{} matmul {op_a:?}{op_b:?} {how:?} of ({m}, {k}, {n})", T::DTYPE);
                judge(&name, &got, &expected, kind::<T>(how), bench.config, report)?;
            }
        }
    }
    Ok(())
}

fn add_bias<T: Value, B: Dense<T>>(bench: &Bench<'_, B>, report: &mut Report) -> Result<(), Failure> {
    let (backend, model) = (bench.backend, bench.model(T::DTYPE));
    for (m, _, n) in SHAPES {
        let (bias, c): (Array2<T>, Array2<T>) = (bench.normal(3, (1, n)), bench.normal(4, (m, n)));
        let placed = Guarded::new(backend, "bias", &bias, 1)?;
        let mut sum = Guarded::new(backend, "sum", &c, 2)?;
        backend.add_bias(placed.view(), sum.view_mut())?;
        let got = sum.read(backend)?;
        placed.unchanged(backend)?;
        let value = real(&c) + &real(&bias);
        let expected = Expected::new(value, |_, value| {
            value.mapv(|v| model.stored(T::DTYPE, v, model.sum(Grade::Hard, 1, v.abs(), 0.0)))
        });
        judge(
            &format!("{} add_bias of ({m}, {n})", T::DTYPE),
            &got,
            &expected,
            T::DTYPE,
            bench.config,
            report,
        )?;
    }
    Ok(())
}

fn sums<T: Value, B: Dense<T>>(bench: &Bench<'_, B>, report: &mut Report) -> Result<(), Failure> {
    let (backend, model) = (bench.backend, bench.model(T::DTYPE));
    for (m, _, n) in SHAPES {
        for how in HOWS {
            let (a, old): (Array2<T>, Array2<T>) = (bench.normal(5, (m, n)), bench.normal(6, (1, n)));
            let placed = Guarded::new(backend, "matrix", &a, 2)?;
            let mut to = place(backend, "column sums", &old, 1, how)?;
            backend.column_sums(placed.view(), to.target(how.add))?;
            let got = to.read(backend)?;
            placed.unchanged(backend)?;
            let (a, old) = (real(&a), how.add.then(|| real(&old)));
            let mut value = column_sums(&a);
            if let Some(old) = &old {
                value += old;
            }
            let ones = transposed(&bias_gradient_input(m));
            let expected = Expected::new(value, |grade, value| {
                model.matmul(grade, (&ones, &a), (value, old.as_ref()), kind::<T>(how))
            });
            let name = format!("{} column sums {how:?} of ({m}, {n})", T::DTYPE);
            judge(&name, &got, &expected, kind::<T>(how), bench.config, report)?;
        }
    }
    Ok(())
}

fn gates<T: Value, B: Dense<T>>(bench: &Bench<'_, B>, report: &mut Report) -> Result<(), Failure> {
    let (backend, model) = (bench.backend, bench.model(T::DTYPE));
    let all = Gate::ALL.into_iter().chain([Gate::SwigluClamped { alpha: 1.0, limit: 1.25 }]);
    for (index, gate) in all.enumerate() {
        for (m, _, n) in SHAPES {
            // From the middle of the gate to both of its tails.
            let scale = [0.5f32, 3.0, 20.0][(index + m) % 3];
            let pre: Array2<T> = bench.normal(7, (m, 2 * n)).mapv(|v: T| T::from_f32(scale * v.to_f32()));
            let dz: Array2<T> = bench.normal(8, (m, n));
            let placed = Guarded::new(backend, "pre-activations", &pre, 2)?;
            let mut z = Guarded::<T, _>::unwritten(backend, "z", (m, n), 1)?;
            backend.gate(gate, placed.view(), z.view_mut())?;
            let z = z.read(backend)?;
            placed.unchanged(backend)?;
            let (g, u) = column_halves(&real(&pre));
            let exact = Real::zeros(g.dim());
            let (at_g, at_u) = ((&g, &exact), (&u, &exact));
            let expected = Expected::new(output(gate, &g, &u), |_, _| model.output(gate, at_g, at_u));
            let name = format!("{} {gate} of ({m}, {n})", T::DTYPE);
            judge(&name, &z, &expected, T::DTYPE, bench.config, report)?;

            let placed_dz = Guarded::new(backend, "dz", &dz, 3)?;
            let mut dab = Guarded::new(backend, "pre-activations", &pre, 2)?;
            backend.gate_backward(gate, placed_dz.view(), dab.view_mut())?;
            let dab = dab.read(backend)?;
            placed_dz.unchanged(backend)?;
            let dz = real(&dz);
            let d = cotangents(gate, &g, &u, &dz);
            let error = model.cotangents(gate, at_g, at_u, (&dz, None));
            let stored = |value: &Real, (e, _): (&Real, &Real)| {
                Real::from_shape_fn(value.dim(), |at| model.stored(T::DTYPE, value[at], e[at]))
            };
            let bound = beside(&stored(&d.gate, error.gate()), &stored(&d.up, error.up()));
            let expected = Expected::new(beside(&d.gate, &d.up), |_, _| bound.clone());
            let name = format!("{} gradient of {gate} of ({m}, {n})", T::DTYPE);
            judge(&name, &dab, &expected, T::DTYPE, bench.config, report)?;
        }
    }
    Ok(())
}

/// Copies on the device: every bit, and nothing beside.
fn copies<T: Value, B: Dense<T>>(bench: &Bench<'_, B>) -> Result<(), Failure> {
    let backend = bench.backend;
    for (m, _, n) in SHAPES {
        let content: Array2<T> = bench.normal(9, (m, n));
        let from = Guarded::new(backend, "source", &content, 3)?;
        let mut to = Guarded::<T, _>::unwritten(backend, "destination", (m, n), 1)?;
        backend.copy(from.view(), to.view_mut())?;
        from.unchanged(backend)?;
        let same = to.read(backend)?.iter().zip(&content).all(|(to, from)| to.bits() == from.bits());
        if !same {
            return Err(Failure::new(format!("{} copy of ({m}, {n}) differs", T::DTYPE)));
        }
    }
    Ok(())
}

/// Rows in any order, some twice: every bit, and nothing beside. An index past the last row is an error that names it, or
/// makes its row NaN.
fn gathers<T: Value, B: Dense<T>>(bench: &Bench<'_, B>) -> Result<(), Failure> {
    let backend = bench.backend;
    for (index, (m, all, n)) in SHAPES.into_iter().enumerate() {
        let content: Array2<T> = bench.normal(10, (all, n));
        let mut draws = Draws::new(bench.seed, 8000 + index as u64);
        let rows = Array2::from_shape_simple_fn((m, 1), || draws.below(all) as u32);
        let from = Guarded::new(backend, "source", &content, 3)?;
        let placed = Guarded::new(backend, "row indices", &rows, 1)?;
        let mut to = Guarded::<T, _>::unwritten(backend, "gathered rows", (m, n), 2)?;
        backend.gather_rows(from.view(), placed.view(), to.view_mut())?;
        from.unchanged(backend)?;
        placed.unchanged(backend)?;
        let same = to
            .read(backend)?
            .indexed_iter()
            .all(|((i, j), to)| to.bits() == content[[rows[[i, 0]] as usize, j]].bits());
        ensure(same, || format!("{} rows of ({all}, {n}) differ", T::DTYPE))?;
    }
    // Nothing to read, and nothing to copy.
    for (all, n) in [(0, 3), (4, 0)] {
        let from = Guarded::new(backend, "source", &bench.normal::<T>(12, (all, n)), 0)?;
        let none = Guarded::new(backend, "row indices", &Array2::<u32>::zeros((0, 1)), 0)?;
        let mut to = Guarded::<T, _>::unwritten(backend, "gathered rows", (0, n), 0)?;
        backend.gather_rows(from.view(), none.view(), to.view_mut())?;
    }
    bad_row::<T, B>(bench)
}

fn bad_row<T: Value, B: Dense<T>>(bench: &Bench<'_, B>) -> Result<(), Failure> {
    let backend = bench.backend;
    let content: Array2<T> = bench.normal(11, (4, 9));
    let from = Guarded::new(backend, "source", &content, 0)?;
    for bad in [4, u32::MAX] {
        let rows =
            Array2::from_shape_vec((3, 1), vec![3, bad, 0]).map_err(|e| Failure::new(e.to_string()))?;
        let rows = Guarded::new(backend, "row indices", &rows, 0)?;
        let mut to = Guarded::<T, _>::unwritten(backend, "gathered rows", (3, 9), 0)?;
        match backend.gather_rows(from.view(), rows.view(), to.view_mut()) {
            Err(Error::Row { index: 1, row, rows: 4 }) if row == bad => to.unchanged(backend)?,
            Err(error) => return Err(Failure::new(format!("row {bad} of 4 gave {error:?}"))),
            Ok(()) => {
                let to = to.read(backend)?;
                let right = to.indexed_iter().all(|((i, j), to)| match i {
                    1 => to.to_f32().is_nan(),
                    _ => to.bits() == content[[3 - 3 * (i / 2), j]].bits(),
                });
                ensure(right, || format!("row {bad} of 4 gave {to:?}"))?;
            }
        }
    }
    Ok(())
}

fn one_type<T: Value, B: Dense<T>>(bench: &Bench<'_, B>, report: &mut Report) -> Result<(), Failure> {
    matmul::<T, B>(bench, report)?;
    add_bias::<T, B>(bench, report)?;
    sums::<T, B>(bench, report)?;
    gates::<T, B>(bench, report)?;
    cross_entropy::<T, B>(bench, report)?;
    copies::<T, B>(bench)?;
    gathers::<T, B>(bench)?;
    adamw::<T, B>(bench, report)
}

/// Every operation of [`Dense`], on every element type, against f64.
///
/// # Errors
/// A [`Failure`] that names the operation and the first element that is wrong.
pub fn dense<B: Complete>(backend: &B, config: &Config, seed: u64) -> Result<Report, Failure> {
    let mut report = Report::default();
    let bench = Bench { backend, config, seed };
    one_type::<f32, B>(&bench, &mut report)?;
    one_type::<f16, B>(&bench, &mut report)?;
    one_type::<bf16, B>(&bench, &mut report)?;
    report.cases = 24;
    Ok(report)
}
