//! What the planner is told of measurements: a lookup, and nothing of how its answers came about.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use swiglu_core::Dtype;

use crate::device::Facts;
use crate::gemm::{Family, Gemm, Product, Schedule};
use crate::kernel::Kernel;

use super::variant::Variant;

/// A product that needs a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The analytic choice.
    pub(crate) kernel: Kernel,
    /// m, n (of one half in paired products) and k (of all segments together).
    pub(crate) shape: (usize, usize, usize),
    pub(crate) segments: u32,
    /// Independent products in one launch.
    pub(crate) depth: u32,
    /// Whether pre-activations are written too.
    pub(crate) saves: bool,
    /// Whether C is added to.
    pub(crate) add: bool,
}

/// Where the planner asks whether a kernel was measured to be faster than its own choice.
pub(crate) trait Choices: fmt::Debug {
    /// The kernel to take; `None` where nothing was measured.
    fn choose(&self, asked: &Asked) -> Option<Variant>;
}

/// Products that share a choice: those with the same analytic kernel, whatever the gate function, and with shapes that are
/// alike. Flags, then m, n and k.
///
/// Which of the three dimensions is the batch, which varies from call to call, differs from product to product: so each is
/// rounded up to three significant bits, to within a quarter. Widths of models mostly are such numbers (14336 is 7 * 2^11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Bucket(pub(super) [u64; 4]);

impl Bucket {
    pub(crate) fn of(asked: &Asked) -> Self {
        let (m, n, k) = asked.shape;
        Self([flags(asked), coarse(m), coarse(n), coarse(k)])
    }
}

/// Rounded up to three significant bits.
fn coarse(len: usize) -> u64 {
    let len = len as u64;
    let unit = 1u64 << (u64::BITS - len.leading_zeros()).saturating_sub(3);
    len.div_ceil(unit).saturating_mul(unit)
}

/// Everything but the shape, side by side.
fn flags(asked: &Asked) -> u64 {
    let kernel = match asked.kernel {
        Kernel::Gemm(gemm) => pack(0, gemm_fields(&gemm)),
        Kernel::Decode(decode) => pack(
            0,
            [
                (family_code(Family::Decode), 3),
                (dtype_code(decode.dtype), 2),
                (u64::from(decode.b_trans), 1),
                (u64::from(decode.rows), 8),
                (u64::from(decode.columns), 8),
            ],
        ),
        _ => 0,
    };
    let counts = [(u64::from(asked.depth), 2), (u64::from(asked.segments), 2)];
    pack(pack(kernel, counts), [(u64::from(asked.saves), 1), (u64::from(asked.add), 1)])
}

/// Values, and how many bits of each, behind those that are there.
fn pack<const N: usize>(before: u64, fields: [(u64, u32); N]) -> u64 {
    fields.into_iter().fold(before, |all, (value, bits)| (all << bits) | (value & ((1 << bits) - 1)))
}

fn gemm_fields(gemm: &Gemm) -> [(u64, u32); 15] {
    let product = match gemm.product {
        Product::Store { out } => dtype_code(out),
        Product::Gate(_) => 3,
        Product::GateGradient(_) => 4,
        Product::Cotangents(_) => 5,
    };
    let bit = |flag: bool| (u64::from(flag), 1);
    // Gate functions differ in how many rows a tile in turns can have.
    let turns = match gemm.turns() {
        Ok(Schedule::Turns { rows }) => u64::from(rows),
        Ok(Schedule::Together) | Err(_) => 0,
    };
    [
        (family_code(gemm.family), 3),
        (dtype_code(gemm.dtype), 2),
        (product, 3),
        (gemm.edge.len(), 8),
        (u64::from(gemm.hopper.group), 8),
        bit(gemm.tf32),
        bit(gemm.a_trans),
        bit(gemm.b_trans),
        bit(gemm.vectors.a),
        bit(gemm.vectors.b),
        bit(gemm.vectors.c),
        bit(gemm.hopper.pairs),
        bit(gemm.hopper.boxes),
        (turns, 8),
        bit(gemm.hopper.schedule != Schedule::Together),
    ]
}

const fn family_code(family: Family) -> u64 {
    match family {
        Family::Simt => 0,
        Family::Mma => 1,
        Family::Sm90 => 2,
        Family::Gemv => 3,
        Family::Decode => 4,
        Family::Sliced => 5,
        Family::Turns => 6,
    }
}

const fn dtype_code(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    }
}

/// What was measured, on one device.
#[derive(Debug)]
pub(crate) struct Table {
    facts: Facts,
    known: RwLock<HashMap<Bucket, Variant>>,
}

impl Table {
    pub(crate) fn new(facts: Facts) -> Self {
        Self { facts, known: RwLock::default() }
    }

    pub(crate) fn extend(&self, entries: impl IntoIterator<Item = (Bucket, Variant)>) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).extend(entries);
    }
}

impl Choices for Table {
    fn choose(&self, asked: &Asked) -> Option<Variant> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let variant = known.get(&Bucket::of(asked)).copied()?;
        // An entry comes from a file: what could not be launched, or had other bits, is as good as absent.
        asked.kernel.competes(variant, &self.facts).then_some(variant)
    }
}

/// Asks another, and remembers what was asked and answered.
#[derive(Debug)]
pub(crate) struct Told<'c> {
    inner: Option<&'c dyn Choices>,
    told: RefCell<Vec<(Asked, Option<Variant>)>>,
}

impl<'c> Told<'c> {
    pub(crate) fn by(inner: Option<&'c dyn Choices>) -> Self {
        Self { inner, told: RefCell::default() }
    }

    pub(crate) fn into_inner(self) -> Vec<(Asked, Option<Variant>)> {
        self.told.into_inner()
    }

    /// What a plan says of its measured choices.
    pub(crate) fn into_notes(self) -> impl Iterator<Item = String> {
        self.into_inner().into_iter().filter_map(|(Asked { kernel, .. }, variant)| {
            let (variant, default) = (variant?, kernel.variant()?);
            Some(match variant == default {
                true => format!("tuned: {kernel} by {variant}, as without tuning"),
                false => format!("tuned: {kernel} by {variant} in place of {default}"),
            })
        })
    }
}

impl Choices for Told<'_> {
    fn choose(&self, asked: &Asked) -> Option<Variant> {
        let variant = self.inner.and_then(|inner| inner.choose(asked));
        self.told.borrow_mut().push((*asked, variant));
        variant
    }
}

/// Asks another, and remembers whether an answer was missing. Allocates nothing.
#[derive(Debug)]
pub(crate) struct Missing<'c> {
    inner: &'c dyn Choices,
    missing: Cell<bool>,
}

impl<'c> Missing<'c> {
    pub(crate) fn of(inner: &'c dyn Choices) -> Self {
        Self { inner, missing: Cell::new(false) }
    }

    pub(crate) fn any(&self) -> bool {
        self.missing.get()
    }
}

impl Choices for Missing<'_> {
    fn choose(&self, asked: &Asked) -> Option<Variant> {
        let variant = self.inner.choose(asked);
        self.missing.set(self.missing.get() || variant.is_none());
        variant
    }
}
