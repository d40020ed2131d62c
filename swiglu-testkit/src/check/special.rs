//! NaN, infinities, signed zeros, subnormals, overflow and empty dimensions.

use half::{bf16, f16};
use ndarray::Array2;
use swiglu_core::{Dense, Dtype, Gate, Orientation, SwiGLU};

use super::differential::{Olds, check_case, run_both, run_forward};
use crate::bits::Value;
use crate::case::{Case, How, Keep};
use crate::config::Config;
use crate::data::Inputs;
use crate::guarded::Guarded;
use crate::report::{Failure, Report, ensure};
use crate::suite::Complete;

/// Shapes inside of one tile and across several.
const SHAPES: [(usize, usize, usize); 3] = [(1, 1, 1), (5, 9, 7), (35, 67, 34)];

fn places((rows, cols): (usize, usize)) -> Vec<(usize, usize)> {
    let mut places = vec![(0, 0), (rows / 2, cols / 2), (rows - 1, cols - 1)];
    places.dedup();
    places
}

/// NaN where `poisoned` says so, the bits of `clean` elsewhere.
fn spreads<T: Value>(
    what: &str,
    got: &Array2<T>,
    clean: &Array2<T>,
    poisoned: impl Fn(usize, usize) -> bool,
) -> Result<(), Failure> {
    for (((i, j), got), clean) in got.indexed_iter().zip(clean) {
        if poisoned(i, j) {
            ensure(got.to_f32().is_nan(), || format!("{what}[{i}, {j}] is {got:?}, expected NaN"))?;
        } else {
            ensure(got.bits() == clean.bits(), || {
                format!("{what}[{i}, {j}] is {got:?}, expected {clean:?} as without the NaN")
            })?;
        }
    }
    Ok(())
}

/// A NaN reaches every z that reads it and nothing else. Half of the other operand is zeros: 0 * NaN is NaN.
fn nan_in_inputs<T: Value, B: SwiGLU<T>>(backend: &B, case: &Case) -> Result<(), Failure> {
    let nan = T::from_f32(f32::NAN);
    let mut inputs = Inputs::<T>::draw(case);
    for a in [&mut inputs.x, &mut inputs.gate_weights, &mut inputs.up_weights] {
        a.iter_mut().step_by(2).for_each(|v| *v = T::default());
    }
    let clean = run_forward(backend, case, &inputs)?.z;
    for (row, col) in places(inputs.x.dim()) {
        let mut inputs = inputs.clone();
        inputs.x[[row, col]] = nan;
        let z = run_forward(backend, case, &inputs)?.z;
        spreads(&format!("NaN in x[{row}, {col}]: z"), &z, &clean, |i, _| i == row)?;
    }
    for (row, col) in places(inputs.gate_weights.dim()) {
        for up in [false, true] {
            let mut inputs = inputs.clone();
            let half = if up { &mut inputs.up_weights } else { &mut inputs.gate_weights };
            half[[row, col]] = nan;
            let z = run_forward(backend, case, &inputs)?.z;
            let name = if up { "up" } else { "gate" };
            spreads(&format!("NaN in {name} weights[{row}, {col}]: z"), &z, &clean, |_, j| j == col)?;
        }
    }
    if let Some((gate, up)) = &inputs.bias {
        let last = gate.ncols() - 1;
        for half in 0..2 {
            let mut both = (gate.clone(), up.clone());
            if half == 0 {
                both.0[[0, last]] = nan;
            } else {
                both.1[[0, last]] = nan;
            }
            let inputs = Inputs { bias: Some(both), ..inputs.clone() };
            let z = run_forward(backend, case, &inputs)?.z;
            spreads(&format!("NaN in the bias, half {half}: z"), &z, &clean, |_, j| j == last)?;
        }
    }
    Ok(())
}

/// A NaN in dz reaches its row of dx, its columns of dwf and dbias, and nothing else.
fn nan_in_dz<T: Value, B: SwiGLU<T>>(backend: &B, case: &Case) -> Result<(), Failure> {
    let wide = Some(How { add: false, wide: true });
    let case = &Case { dwf: wide, dbias: wide, ..case.all_gradients() };
    let (inputs, olds) = (Inputs::<T>::draw(case), Olds::draw(case));
    let (_, clean) = run_both(backend, case, &inputs, &olds)?;
    for (row, col) in places(inputs.dz.dim()) {
        let mut inputs = inputs.clone();
        inputs.dz[[row, col]] = T::from_f32(f32::NAN);
        let (_, got) = run_both(backend, case, &inputs, &olds)?;
        let at = format!("NaN in dz[{row}, {col}]");
        if let (Some(got), Some(clean)) = (&got.dx, &clean.dx) {
            spreads(&format!("{at}: dx"), got, clean, |i, _| i == row)?;
        }
        if let (Some(got), Some(clean)) = (&got.dwf, &clean.dwf) {
            spreads(&format!("{at}: dwf gate"), &got.0, &clean.0, |_, j| j == col)?;
            spreads(&format!("{at}: dwf up"), &got.1, &clean.1, |_, j| j == col)?;
        }
        if let (Some(got), Some(clean)) = (&got.dbias, &clean.dbias) {
            spreads(&format!("{at}: dbias"), got, clean, |_, j| j % case.hidden == col)?;
        }
    }
    Ok(())
}

/// What h should be at points where at least one argument is special.
fn special_points() -> Vec<(f32, f32)> {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let mut points = vec![(nan, 1.0), (1.0, nan), (nan, nan), (nan, 0.0), (0.0, nan)];
    for g in [inf, -inf, 0.0, -0.0, 1.5, -1.5, 100.0, -200.0] {
        for u in [inf, -inf, 0.0, -0.0, 2.0, -2.0] {
            points.push((g, u));
        }
    }
    points
}

/// a(g), the limits at infinities included, a'(g) likewise; `None` for an ordinary g.
fn limits(gate: Gate, g: f32) -> Option<(f32, f32)> {
    let right = g > 0.0;
    if g.is_nan() {
        return Some((g, g));
    }
    if g.is_infinite() {
        return Some(match gate {
            Gate::Glu => (if right { 1.0 } else { 0.0 }, 0.0),
            Gate::Reglu => {
                if right {
                    (g, 1.0)
                } else {
                    (0.0, 0.0)
                }
            }
            Gate::SwigluClamped { alpha, limit } if right => (limit / (1.0 + (-alpha * limit).exp()), 0.0),
            _ if right => (g, 1.0),
            _ => (-0.0, 0.0),
        });
    }
    match gate {
        // Both zeros: silu(+-0) = +-0.
        Gate::Swiglu | Gate::GegluTanh | Gate::GegluErf if g == 0.0 => Some((g, 0.5)),
        Gate::Reglu if g == 0.0 => Some((0.0, 0.0)),
        _ => None,
    }
}

/// b(u) and b'(u).
fn up(gate: Gate, u: f32) -> (f32, f32) {
    match gate {
        Gate::SwigluClamped { limit, .. } if !u.is_nan() => {
            (u.clamp(-limit, limit) + 1.0, if u.abs() > limit { 0.0 } else { 1.0 })
        }
        _ => (u, 1.0),
    }
}

/// Special results agree in kind and sign; ordinary ones to the precision of a 16-bit type.
fn agrees(got: f32, expected: f32, signed_zero: bool) -> bool {
    if expected.is_nan() {
        return got.is_nan();
    }
    if expected == 0.0 {
        return got == 0.0 && (!signed_zero || got.is_sign_negative() == expected.is_sign_negative());
    }
    if expected.is_infinite() {
        return got == expected;
    }
    (got - expected).abs() <= 0.01 * expected.abs()
}

/// Special values through the gate alone, where both zeros can be told apart.
fn through_the_gate<T: Value, B: Dense<T>>(backend: &B, gate: Gate) -> Result<(), Failure> {
    let points = special_points();
    let n = points.len();
    let pre = Array2::from_shape_fn((1, 2 * n), |(_, j)| {
        T::from_f32(if j < n { points[j].0 } else { points[j - n].1 })
    });
    let placed = Guarded::new(backend, "pre-activations", &pre, 3)?;
    let mut z = Guarded::unwritten(backend, "z", (1, n), 1)?;
    backend.gate(gate, placed.view(), z.view_mut())?;
    let z: Array2<T> = z.read(backend)?;
    let ones = Guarded::new(backend, "dz", &Array2::from_elem((1, n), T::from_f32(1.0)), 2)?;
    let mut dab = Guarded::new(backend, "pre-activations", &pre, 3)?;
    backend.gate_backward(gate, ones.view(), dab.view_mut())?;
    let dab = dab.read(backend)?;
    for (j, &(g, u)) in points.iter().enumerate() {
        let Some((a, slope)) = limits(gate, g) else { continue };
        let ((b, b_slope), at) = (up(gate, u), |name: &str| format!("{gate}: {name} at g = {g}, u = {u}"));
        let (got, expected) = (z[[0, j]].to_f32(), a * b);
        ensure(agrees(got, expected, true), || format!("{} is {got}, expected {expected}", at("h")))?;
        // Where a slope of 0 meets an infinite u the product is NaN by the formula and 0 by the limit.
        if u.is_finite() {
            let (got, expected) = (dab[[0, j]].to_f32(), slope * b);
            ensure(agrees(got, expected, false), || {
                format!("{} is {got}, expected {expected}", at("dh/dg"))
            })?;
            let (got, expected) = (dab[[0, n + j]].to_f32(), a * b_slope);
            ensure(agrees(got, expected, false), || {
                format!("{} is {got}, expected {expected}", at("dh/du"))
            })?;
        }
    }
    Ok(())
}

/// The same points as weights of a product with x = 1: what surrounds them (padding, other tiles) must not leak in.
fn through_the_op<T: Value, B: SwiGLU<T>>(backend: &B, case: &Case) -> Result<(), Failure> {
    let points = special_points();
    let case = &Case { batch: 2, in_features: 1, hidden: points.len(), bias: false, ..*case };
    let row = |pick: fn(&(f32, f32)) -> f32| {
        Array2::from_shape_fn((1, points.len()), |(_, j)| T::from_f32(pick(&points[j])))
    };
    let inputs = Inputs {
        x: Array2::from_elem((2, 1), T::from_f32(1.0)),
        gate_weights: row(|p| p.0),
        up_weights: row(|p| p.1),
        bias: None,
        dz: Array2::from_elem((2, points.len()), T::default()),
        projected: None,
    };
    let z = run_forward(backend, case, &inputs)?.z;
    for ((i, j), got) in z.indexed_iter() {
        let (g, u) = points[j];
        let Some((a, _)) = limits(case.gate, g) else { continue };
        let (got, expected) = (got.to_f32(), a * up(case.gate, u).0);
        // A sum that starts from +0 has no negative zero, so zeros of g and u have lost their sign.
        let signed_zero = g != 0.0 && u != 0.0;
        ensure(agrees(got, expected, signed_zero), || {
            format!("z[{i}, {j}] is {got} at g = {g}, u = {u}, expected {expected}")
        })?;
    }
    Ok(())
}

fn one_unit<T: Value>(x: &[f32], gate: &[f32], up: &[f32]) -> Inputs<T> {
    let row = |v: &[f32]| Array2::from_shape_fn((1, v.len()), |(_, k)| T::from_f32(v[k]));
    let column = |v: &[f32]| Array2::from_shape_fn((v.len(), 1), |(k, _)| T::from_f32(v[k]));
    Inputs {
        x: row(x),
        gate_weights: column(gate),
        up_weights: column(up),
        bias: None,
        dz: Array2::from_elem((1, 1), T::from_f32(1.0)),
        projected: None,
    }
}

/// Subnormals survive the product and the gate, unless the backend says that it flushes them.
fn subnormals<T: Value, B: SwiGLU<T>>(backend: &B, case: &Case, config: &Config) -> Result<(), Failure> {
    if config.flushes.contains(&T::DTYPE) {
        return Ok(());
    }
    let least = match T::DTYPE {
        Dtype::F32 => f32::from_bits(1),
        Dtype::F16 => f16::from_bits(1).to_f32(),
        Dtype::Bf16 => bf16::from_bits(1).to_f32(),
    };
    let case = &Case { batch: 1, in_features: 2, hidden: 1, gate: Gate::Reglu, bias: false, ..*case };
    for value in [least, 3.0 * least, 37.0 * least] {
        let z =
            run_forward(backend, case, &one_unit::<T>(&[value, 1.0], &[1.0, 0.0], &[0.0, 1.0]))?.z[[0, 0]];
        ensure(z.to_f32() == value, || format!("subnormal {value:e} became {z:?}"))?;
    }
    Ok(())
}

/// What is too large for the element type becomes an infinity of the right sign, never the largest number.
fn overflow<T: Value, B: SwiGLU<T>>(backend: &B, case: &Case) -> Result<(), Failure> {
    let large = if T::DTYPE == Dtype::F16 { 300.0 } else { 1e20 };
    let case = &Case { batch: 1, in_features: 1, hidden: 1, gate: Gate::Reglu, bias: false, ..*case };
    for sign in [1.0, -1.0] {
        let z = run_forward(backend, case, &one_unit::<T>(&[large], &[1.0], &[sign]))?.z[[0, 0]].to_f32();
        ensure(z == sign * f32::INFINITY, || format!("{large} * {} became {z}", sign * large))?;
    }
    Ok(())
}

/// Products that are just below the largest number are as exact as others: those of parts of factors do not overflow sooner.
fn close_to_overflow<T: Value, B: SwiGLU<T>>(backend: &B, case: &Case) -> Result<(), Failure> {
    let scale = 2f64.powi(if T::DTYPE == Dtype::F16 { 7 } else { 63 });
    let case = &Case { batch: 1, in_features: 2, hidden: 1, gate: Gate::Reglu, bias: false, ..*case };
    // What a sum of two is off by on tensor cores, twice 4 roundings of f32, and one to T.
    let off = 16.0 * Dtype::F32.unit_roundoff() + T::DTYPE.unit_roundoff();
    for (left, right) in
        [(1.566_269_4, 1.143_595_6), (1.558_052_9, 1.182_278_6), (1.0039, 1.77), (1.9, 1.029)]
    {
        let x = T::from_f32((left * scale) as f32).to_f32();
        let weight = T::from_f32((right * 2.0 * scale) as f32).to_f32();
        let z = run_forward(backend, case, &one_unit::<T>(&[x, 1.0], &[weight, 0.0], &[0.0, 1.0]))?.z[[0, 0]];
        let expected = f64::from(x) * f64::from(weight);
        ensure((f64::from(z.to_f32()) - expected).abs() <= off * expected, || {
            format!("{x:e} * {weight:e} became {z:?}, expected {expected:e}")
        })?;
    }
    Ok(())
}

/// Sums over nothing are 0: written where a gradient is written, nothing where it is added.
fn empty<T: Value, B: SwiGLU<T>>(backend: &B, config: &Config, report: &mut Report) -> Result<(), Failure> {
    for (batch, in_features, hidden) in [
        (0, 3, 4),
        (2, 0, 4),
        (2, 3, 0),
        (0, 0, 0),
        (0, 0, 5),
        (0, 5, 0),
        (5, 0, 0),
        (40, 0, 70),
        (40, 0, 72),
    ] {
        for (keep, add, wide, bias) in [
            (Keep::PreActivations, false, false, true),
            (Keep::PreActivations, true, true, false),
            (Keep::Input, false, true, false),
            (Keep::Input, true, false, true),
        ] {
            for orientation in [Orientation::InOut, Orientation::OutIn] {
                for route in config.routes {
                    let case = Case {
                        bias,
                        keep,
                        orientation,
                        route: *route,
                        dx: Some(How { add, wide: false }),
                        dwf: Some(How { add, wide }),
                        dbias: Some(How { add, wide }),
                        ..Case::new(batch, in_features, hidden, T::DTYPE)
                    };
                    report.merge(&check_case::<T, B>(backend, &case, config)?);
                    report.merge(&check_case::<T, B>(backend, &case.forward_only(), config)?);
                }
            }
        }
    }
    Ok(())
}

fn one_type<T: Value, B: SwiGLU<T> + Dense<T>>(
    backend: &B,
    config: &Config,
    report: &mut Report,
) -> Result<(), Failure> {
    empty::<T, B>(backend, config, report)?;
    for gate in Gate::ALL {
        through_the_gate::<T, B>(backend, gate)?;
        for orientation in [Orientation::InOut, Orientation::OutIn] {
            for route in config.routes {
                for (batch, in_features, hidden) in SHAPES {
                    let case = Case {
                        gate,
                        orientation,
                        route: *route,
                        bias: hidden != 1,
                        ..Case::new(batch, in_features, hidden, T::DTYPE)
                    };
                    let all = || {
                        nan_in_inputs::<T, B>(backend, &case)?;
                        nan_in_dz::<T, B>(backend, &case)?;
                        through_the_op::<T, B>(backend, &case)?;
                        subnormals::<T, B>(backend, &case, config)?;
                        overflow::<T, B>(backend, &case)?;
                        close_to_overflow::<T, B>(backend, &case)
                    };
                    all().map_err(|failure| failure.of_case(&case))?;
                    *report = std::mem::take(report).of_case(&case);
                }
            }
        }
    }
    Ok(())
}

/// Every special value on every gate, orientation, route and element type.
///
/// # Errors
/// A [`Failure`] that names the value and the element that is wrong.
pub fn special_values<B: Complete>(backend: &B, config: &Config) -> Result<Report, Failure> {
    let mut report = Report::default();
    one_type::<f32, B>(backend, config, &mut report)?;
    one_type::<f16, B>(backend, config, &mut report)?;
    one_type::<bf16, B>(backend, config, &mut report)?;
    Ok(report)
}
