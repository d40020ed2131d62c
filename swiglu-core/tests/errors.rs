//! Every error variant, produced through the public interface, with its numbers; and that nothing was written.

use std::collections::BTreeSet;

use ndarray::{Array2, s};
use swiglu_core::{
    AdamW, Backend, Dense, Dims, Dtype, Error, FusedSwiGLU, Gate, Gradient, GradientKind, Gradients, Host,
    Layout, LossTargets, MatMut, MatRef, Matrix, Memory, Op, Options, Orientation, Out, Pass, Problem,
    Result, Save, SwiGLU, SwiGLUMlp, Target, Weights, bf16,
};
use swiglu_cpu::Cpu;
use swiglu_testkit::{Fake, Fault};

const B: usize = 3;
const I: usize = 5;
const D: usize = 4;

fn ok<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

fn zeros(rows: usize, cols: usize) -> Matrix<f32, Host> {
    ok(Matrix::host_zeros(rows, cols))
}

/// The error of a call that must be refused.
fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("accepted what must be refused"),
        Err(error) => error,
    }
}

/// Name of a variant, as its Debug output starts.
fn variant(error: &Error) -> String {
    format!("{error:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// Names of all variants, read off the source of the enum.
fn variants() -> BTreeSet<String> {
    let source = include_str!("../src/error.rs");
    let body = source.split("pub enum Error {").nth(1).unwrap_or_default();
    let body = body.split("\n}\n").next().unwrap_or_default();
    let starts_variant =
        |line: &&str| line.starts_with("    ") && line.chars().nth(4).is_some_and(char::is_uppercase);
    let name = |line: &str| line.trim().split([' ', '(', '{', ',']).next().unwrap_or_default().to_owned();
    body.lines().filter(starts_variant).map(name).collect()
}

fn shape_errors() -> Vec<Error> {
    let (cpu, wf, x) = (Cpu::new(), zeros(I, 2 * D), zeros(B, I));
    let w = ok(Weights::packed(wf.view(), Orientation::InOut));
    let short = zeros(B, I - 1);
    let mut z = zeros(B, D + 1);
    let e = refused(cpu.forward(short.view(), w, Options::new()));
    assert_eq!(e.to_string(), "x: expected [3, 5], got [3, 4]");
    let z_error = refused(cpu.forward_into(x.view(), w, z.view_mut(), Options::new()));
    assert_eq!(z_error.to_string(), "z: expected [3, 4], got [3, 5]");
    vec![
        e,
        z_error,
        refused(Weights::packed(zeros(I, 7).view(), Orientation::InOut).map(|_| ())),
        refused(Layout::strided(2, 5, 3)),
        refused(Layout::dense(5, 5).and_then(|layout| layout.within(24))),
        refused(x.view().sub(0..B + 1, 0..1)),
        refused(cpu.zeros::<f32>(usize::MAX, 2)),
        refused(cpu.zeros::<f32>(1 << 40, 1 << 18)),
    ]
}

fn array_errors() -> Vec<Error> {
    let a = Array2::<f32>::zeros((4, 6));
    vec![
        refused(MatRef::try_from(a.t()).map(|_| ())),
        refused(MatRef::try_from(a.slice(s![..;-1, ..])).map(|_| ())),
    ]
}

/// Views of one block that overlap by construction, which safe code cannot make.
fn overlap_errors() -> Vec<Error> {
    let (cpu, wf) = (Cpu::new(), zeros(I, 2 * D));
    let w = ok(Weights::packed(wf.view(), Orientation::InOut));
    let mut block = vec![7.0f32; 200];
    let ptr = Host::ptr_mut(&mut block);
    let view =
        |offset: usize, cols, stride| (Host::offset(ptr, offset), ok(Layout::strided(B, cols, stride)));
    let run = |(x, x_layout), (z, z_layout)| {
        // SAFETY: both views lie in `block`, which outlives the call; core refuses the call when they share an element.
        let (x, z) = unsafe { (MatRef::from_raw(x, x_layout), MatMut::from_raw(z, z_layout)) };
        cpu.forward_into(x, w, z, Options::new())
    };
    let overlapping = refused(run(view(0, I, I), view(4, D, D)));
    assert_eq!(overlapping.to_string(), "z overlaps x");
    ok(run(view(0, I, 20), view(I, D, 20)));
    assert!(
        matches!(run(view(0, I, 20), view(I - 1, D, 20)), Err(Error::Overlap { .. })),
        "one column shared"
    );
    drop(block);
    vec![overlapping]
}

fn saved_errors() -> Vec<Error> {
    let (cpu, wf, x, dz) = (Cpu::new(), zeros(I, 2 * D), zeros(B, I), zeros(B, D));
    let w = ok(Weights::packed(wf.view(), Orientation::InOut));
    let o = Options::new();
    let (_, mut saved) = ok(cpu.forward_train(x.view(), w, Save::PreActivations, o));
    let other_gate = cpu.backward(x.view(), w.gate(Gate::Glu), dz.view(), &mut saved, Gradients::new(), o);
    let mut wrong = zeros(B, I + 1);
    let wrong_dx = Gradients::new().dx(Out::write(&mut wrong));
    assert!(matches!(
        cpu.backward(x.view(), w, dz.view(), &mut saved, wrong_dx, o),
        Err(Error::Shape { .. })
    ));
    assert!(saved.is_armed(), "a refused backward spends nothing");
    let (mut same, mut wide) = (zeros(I, D), zeros(I, D));
    let mixed = Gradients::new().dwf_split(Target::write(&mut same), Target::add(&mut wide));
    let mixed = cpu.backward(x.view(), w, dz.view(), &mut saved, mixed, o);
    ok(cpu.backward(x.view(), w, dz.view(), &mut saved, Gradients::new(), o));
    let second = cpu.backward(x.view(), w, dz.view(), &mut saved, Gradients::new(), o);
    vec![refused(other_gate), refused(mixed), refused(second)]
}

fn option_errors() -> Vec<Error> {
    let (cpu, wf, x) = (Cpu::new(), zeros(I, 2 * D), zeros(B, I));
    let w = ok(Weights::packed(wf.view(), Orientation::InOut));
    for (alpha, limit) in
        [(f32::NAN, 7.0), (1.0, f32::INFINITY), (1.0, 0.0), (1.0, -1.0), (f32::INFINITY, 1.0)]
    {
        let result = cpu.forward(x.view(), w.gate(Gate::SwigluClamped { alpha, limit }), Options::new());
        assert!(matches!(result, Err(Error::InvalidOption { .. })), "alpha {alpha}, limit {limit}");
    }
    let (mut p, g) = (zeros(2, 2), zeros(2, 2));
    let mut optimizer = ok(Dense::<f32>::optimizer(&cpu, p.view()));
    let mut bad = Vec::new();
    let mut set: Vec<fn(&mut AdamW)> = Vec::new();
    set.extend([
        (|h| h.lr = f32::NAN) as fn(&mut AdamW),
        |h| h.beta1 = 1.0,
        |h| h.beta2 = -0.1,
        |h| h.epsilon = 0.0,
        |h| h.weight_decay = f32::INFINITY,
    ]);
    for set in set {
        let mut hyper = AdamW::new(1e-3);
        set(&mut hyper);
        bad.push(refused(cpu.adamw(hyper, Gradient::Same(g.view()), &mut optimizer, p.view_mut())));
    }
    let mut p16 = ok(cpu.zeros::<bf16>(2, 2));
    let foreign = cpu.adamw(AdamW::new(1e-3), Gradient::F32(g.view()), &mut optimizer, p16.view_mut());
    bad.push(refused(foreign));
    bad
}

fn dense_errors() -> Vec<Error> {
    let cpu = Cpu::new();
    let (logits, mut loss) = (zeros(2, 3), zeros(1, 1));
    let labels = ok(Matrix::try_from(ndarray::array![[2u32], [3]]));
    let targets = LossTargets { loss: loss.view_mut(), correct: None, dlogits: None };
    let label = refused(cpu.cross_entropy(logits.view(), labels.view(), targets));
    assert_eq!(label.to_string(), "label 3 in row 1, expected less than 3");
    let mut c = zeros(2, 2);
    let product = cpu.matmul((logits.view(), Op::N), (logits.view(), Op::N), Target::write(&mut c));
    let mut gathered = zeros(2, 3);
    let row = refused(cpu.gather_rows(logits.view(), labels.view(), gathered.view_mut()));
    assert_eq!(row.to_string(), "index 0 is row 2, expected less than 2");
    vec![label, row, refused(product)]
}

fn device_errors() -> Vec<Error> {
    let here = Fake::new(Cpu::new(), 0);
    let there = Fake::new(Cpu::new(), 1);
    let x = ok(here.zeros::<f32>(B, I));
    let layer = ok(FusedSwiGLU::<f32, _>::init(&there, I, D, 1));
    let wrong_device = refused(layer.forward(&x));
    let stream = here.on_stream(5);
    let layer = ok(FusedSwiGLU::<f32, _>::init(&stream, I, D, 1));
    let wrong_stream = refused(layer.forward(&x));
    here.inject(Fault::Launch);
    let layer = FusedSwiGLU::<f32, _>::init(&here, I, D, 1).and_then(|layer| layer.forward(&x));
    let late = refused(layer.and_then(|_| here.synchronize()));
    let absent = refused("not-an-isa".parse::<swiglu_cpu::Isa>());
    vec![wrong_device, wrong_stream, late, absent]
}

#[test]
fn every_variant_is_produced() {
    let produced: Vec<Error> = [
        shape_errors(),
        array_errors(),
        overlap_errors(),
        saved_errors(),
        option_errors(),
        dense_errors(),
        device_errors(),
    ]
    .into_iter()
    .flatten()
    .collect();
    for error in &produced {
        let text = error.to_string();
        assert!(text.chars().next().is_some_and(|c| !c.is_uppercase()) && !text.ends_with('.'), "{text}");
    }
    let names: BTreeSet<String> = produced.iter().map(variant).collect();
    assert_eq!(names, variants(), "variants produced, against variants of the enum");
}

#[test]
fn a_refused_call_writes_nothing() {
    let (cpu, wf, x) = (Cpu::new(), zeros(I, 2 * D), zeros(B, I));
    let w = ok(Weights::packed(wf.view(), Orientation::InOut));
    let mut z = ok(Matrix::try_from(Array2::from_elem((B + 1, D), 7.0f32)));
    assert!(cpu.forward_into(x.view(), w, z.view_mut(), Options::new()).is_err());
    assert!(z.into_array().iter().all(|&v| v == 7.0), "z after a refused forward");
    let mlp = ok(SwiGLUMlp::<f32, _>::init(&cpu, I, D, 1));
    let mut kept = ok(mlp.saved(B));
    let mut y = ok(Matrix::try_from(Array2::from_elem((B, I + 1), 7.0f32)));
    assert!(mlp.forward_train_into(x.view(), y.view_mut(), &mut kept).is_err());
    assert!(y.into_array().iter().all(|&v| v == 7.0), "y after a refused forward");
}

/// What an MLP keeps is refused like what the op keeps: by operand and shape, and before anything is computed.
#[test]
fn an_mlp_names_what_is_too_small() {
    let cpu = Cpu::new();
    let mut mlp = ok(SwiGLUMlp::<f32, _>::init(&cpu, I, D, 1));
    let (x, mut y, mut kept) = (zeros(4, I), zeros(4, I), ok(mlp.saved(3)));
    let error = refused(mlp.forward_train_into(x.view(), y.view_mut(), &mut kept));
    let expected = format!("saved z: expected [4, {D}], got [3, {D}]");
    assert_eq!(error.to_string(), expected);
    let error = refused(mlp.backward(x.view(), y.view(), &mut kept, None));
    assert!(matches!(error, Error::Spent), "{error}");
}

#[test]
fn a_problem_that_cannot_exist_has_no_plan() {
    let gradient = Some(GradientKind { dtype: Dtype::F32, add: false });
    let passes = [
        Pass::Forward { save: true },
        Pass::Backward { saved: false, dx: gradient, dwf: gradient, dbias: gradient },
    ];
    let sizes = [0, 1, 7, 1 << 20, isize::MAX as usize / 8, isize::MAX as usize, usize::MAX];
    let cpu = Cpu::new();
    let (mut planned, mut refused) = (0, 0);
    for (batch, in_features) in sizes.iter().flat_map(|&batch| sizes.map(|in_features| (batch, in_features)))
    {
        for (hidden, pass) in sizes.iter().flat_map(|&hidden| passes.map(|pass| (hidden, pass))) {
            let dims = Dims { batch, in_features, hidden };
            let problem = Problem::dense(pass, Dtype::Bf16, dims, Orientation::InOut, Options::new());
            match SwiGLU::<f32>::plan(&cpu, &problem) {
                Ok(_) => planned += 1,
                Err(Error::Overflow { .. }) => refused += 1,
                Err(other) => panic!("{dims:?}: {other}"),
            }
        }
    }
    assert!(planned > 0 && refused > 0, "{planned} planned, {refused} refused");
}
