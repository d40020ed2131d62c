//! Random cases. Shapes cross tile edges in every dimension independently; only their product is bounded.

use proptest::prelude::*;
use proptest::sample::select;
use swiglu_core::{Dtype, Gate, Orientation, Route, Tile};

use super::{Case, Data, DownCase, How, Keep, Packing, Pads, Pass};

/// Dimensions, in the order of shrinking: nothing, powers of two and their neighbours, primes.
const DIMS: [usize; 36] = [
    0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 23, 31, 32, 33, 47, 48, 63, 64, 65, 95, 96, 97, 101, 127,
    128, 129, 191, 193, 255, 256, 257, 509,
];

/// Multiply-adds of most cases, and of a few.
const VOLUME: (usize, usize) = (60_000, 1_000_000);

/// Which cases to draw.
#[derive(Clone, Debug)]
pub struct Space {
    /// Element type.
    pub dtype: Dtype,
    /// The pass that they test.
    pub pass: Pass,
    /// Routes to draw from; not empty.
    pub routes: Vec<Route>,
    /// Distributions to draw from; not empty.
    pub data: Vec<Data>,
    /// Whether the few large cases are drawn too.
    pub large: bool,
}

impl Space {
    /// Every distribution of random data; both routes.
    pub fn new(dtype: Dtype, pass: Pass) -> Self {
        Self {
            dtype,
            pass,
            routes: vec![Route::Fused, Route::Composed],
            data: vec![
                Data::Normal,
                Data::Uniform,
                Data::LogUniform,
                Data::Sparse,
                Data::OneHot,
                Data::Cancelling,
                Data::Integers,
            ],
            large: true,
        }
    }
}

/// Steps one dimension after the other down the list until the volume is right; which goes first depends on `turn`.
fn bounded(mut dims: [usize; 3], most: usize, turn: usize) -> [usize; 3] {
    let mut turn = turn;
    while dims.iter().product::<usize>() > most {
        let dim = &mut dims[turn % 3];
        if let Some(smaller) = DIMS.iter().rev().find(|d| **d < *dim && **d >= 8) {
            *dim = *smaller;
        }
        turn += 1;
    }
    dims
}

fn shape(large: bool) -> impl Strategy<Value = [usize; 3]> {
    let dim = || prop_oneof![1 => Just(0usize), 60 => select(&DIMS[1..])];
    let most = if large {
        prop_oneof![60 => Just(VOLUME.0), 1 => Just(VOLUME.1)].boxed()
    } else {
        Just(VOLUME.0 / 4).boxed()
    };
    ([dim(), dim(), dim()], most, 0..3usize).prop_map(|(dims, most, turn)| bounded(dims, most, turn))
}

fn pads() -> impl Strategy<Value = Pads> {
    let pad = || select(vec![0u16, 1, 2, 3, 4, 7, 8, 16]);
    prop_oneof![
        3 => Just(Pads::all(0)),
        2 => pad().prop_map(Pads::all),
        3 => [pad(), pad(), pad(), pad(), pad()].prop_map(|[x, w, z, dx, dwf]| Pads { x, w, z, dx, dwf }),
    ]
}

fn gate() -> impl Strategy<Value = Gate> {
    let mut gates = Gate::ALL.to_vec();
    // A limit that ordinary data reach, on both sides.
    gates.push(Gate::SwigluClamped { alpha: 1.0, limit: 1.25 });
    select(gates)
}

/// Orientation and packing.
fn arrangement() -> impl Strategy<Value = (Orientation, Packing)> {
    select(vec![
        (Orientation::InOut, Packing::Packed),
        (Orientation::OutIn, Packing::Packed),
        (Orientation::InOut, Packing::Split),
        (Orientation::OutIn, Packing::Split),
        (Orientation::OutIn, Packing::Interleaved),
    ])
}

fn how(wide: bool) -> impl Strategy<Value = How> {
    let wides = if wide { vec![false, true] } else { vec![false] };
    (select(vec![false, true]), select(wides)).prop_map(|(add, wide)| How { add, wide })
}

/// A down projection in a fifth of the cases, with outputs around the depths of k blocks.
fn down(pass: Pass) -> BoxedStrategy<Option<DownCase>> {
    let out_features = select(vec![1u16, 2, 7, 8, 16, 17, 33, 64, 65, 72, 128, 136]);
    let orientation = select(vec![Orientation::InOut, Orientation::OutIn]);
    let down = (out_features, orientation, select(vec![0u16, 1, 2, 8]))
        .prop_map(|(out_features, orientation, pad)| DownCase { out_features, orientation, pad });
    match pass {
        Pass::Forward => Just(None).boxed(),
        Pass::Dx | Pass::Dwf => prop::option::weighted(0.2, down).boxed(),
    }
}

/// Gradients: those of the pass always, the others sometimes.
fn gradients(pass: Pass) -> BoxedStrategy<(Option<How>, Option<How>, Option<How>)> {
    let maybe = |chance, wide| prop::option::weighted(chance, how(wide));
    match pass {
        Pass::Forward => Just((None, None, None)).boxed(),
        Pass::Dx => (how(false).prop_map(Some), maybe(0.2, true), maybe(0.2, true)).boxed(),
        Pass::Dwf => prop_oneof![
            4 => (maybe(0.2, false), how(true).prop_map(Some), maybe(0.5, true)),
            1 => (maybe(0.2, false), Just(None), how(true).prop_map(Some)),
        ]
        .boxed(),
    }
}

/// Bytes that vector accesses, and tensor cores, want rows to start at multiples of.
const VECTOR: usize = 16;

/// The same case with every row at a multiple of [`VECTOR`] bytes, whatever its length; and with whole vectors of hidden
/// units where there are that many, without which the second half of a packed matrix is not aligned.
fn aligned(case: Case) -> Case {
    let unit = VECTOR / case.dtype.bytes();
    let hidden = if case.hidden < unit { case.hidden } else { case.hidden / unit * unit };
    let pad = |cols: usize| (cols.next_multiple_of(unit) - cols) as u16;
    let w = match (case.orientation, case.packing) {
        (Orientation::OutIn, _) => pad(case.in_features),
        (Orientation::InOut, Packing::Split) => pad(hidden),
        (Orientation::InOut, _) => pad(2 * hidden),
    };
    let pads = Pads { x: pad(case.in_features), w, z: pad(hidden), dx: pad(case.in_features), dwf: w };
    let down = case.down.map(|down| DownCase { pad: pad(down.out_features.into()), ..down });
    Case { hidden, pads, down, ..case }
}

/// Random cases of a space. A third of them have aligned rows, so that kernels which need those are tested too.
pub fn cases(space: &Space) -> BoxedStrategy<Case> {
    let align = prop_oneof![2 => Just(false), 1 => Just(true)];
    (any_cases(space), align).prop_map(|(case, align)| if align { aligned(case) } else { case }).boxed()
}

fn any_cases(space: &Space) -> impl Strategy<Value = Case> + use<> {
    let Space { dtype, pass, .. } = *space;
    let keeps = match pass {
        Pass::Forward => vec![Keep::PreActivations, Keep::Nothing, Keep::Input],
        Pass::Dx | Pass::Dwf => vec![Keep::PreActivations, Keep::Input],
    };
    let tiles = vec![Tile::Auto, Tile::Auto, Tile::T32, Tile::T64, Tile::T128];
    let how = (select(space.routes.clone()), select(tiles), select(keeps), select(space.data.clone()));
    let what = (arrangement(), pads(), gate(), select(vec![false, true]), (gradients(pass), down(pass)));
    (shape(space.large), what, how, any::<u32>().no_shrink()).prop_map(
        move |([batch, in_features, hidden], what, how, seed)| {
            let ((orientation, packing), pads, gate, bias, ((dx, dwf, dbias), down)) = what;
            let (route, tile, keep, data) = how;
            Case {
                batch,
                in_features,
                hidden,
                dtype,
                orientation,
                packing,
                pads,
                gate,
                bias,
                keep,
                down,
                dx,
                dwf,
                dbias,
                data,
                tile,
                route,
                seed: u64::from(seed),
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_bounded_and_keep_crossing_tiles() {
        for turn in 0..3 {
            let dims = bounded([509, 509, 509], VOLUME.0, turn);
            assert!(dims.iter().product::<usize>() <= VOLUME.0, "{dims:?}");
            assert!(dims.iter().all(|d| *d >= 8), "{dims:?}");
        }
        assert_eq!(bounded([0, 509, 509], VOLUME.0, 1), [0, 509, 509]);
    }

    proptest! {
        #[test]
        fn lines_round_trip(
            case in prop_oneof![
                cases(&Space::new(Dtype::F32, Pass::Forward)),
                cases(&Space::new(Dtype::F16, Pass::Dx)),
                cases(&Space::new(Dtype::Bf16, Pass::Dwf)),
            ]
        ) {
            prop_assert_eq!(case.to_string().parse::<Case>(), Ok(case));
            prop_assert!(case.volume() <= VOLUME.1);
        }
    }
}
