//! AMX: eight tile registers of sixteen rows of 64 bytes, and an instruction that multiplies two of them.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and TDPBF16PS in volume 2. The
//! intrinsics are not stable, so this is assembly.
//!
//! A property of this kernel, and of the instruction: subnormal factors and sums count as 0. Of each [`GROUP`] pairs
//! along k, the first halves are one chain of multiply-adds and the second halves another; their sum is added to the
//! element.
//!
//! [`GROUP`]: Kernel::GROUP

use std::arch::asm;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use swiglu_core::{Element, Host, MatRef, bf16};

use super::tile::check;
use super::{
    Avx512, Block, Dots, DotsVisitor, EDGE, Kernel, Panel, PanelOrder, Runs, prefetch, prefetch_near,
};
use crate::pack::pack_steps;
use crate::word::Pair;

/// Proof that this machine has AMX-BF16, that the system lets this process use it, and all that [`Avx512`] needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx {
    base: Avx512,
}

impl Amx {
    pub(crate) fn detect() -> Option<Self> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        let base = Avx512::detect()?;
        PERMITTED.get_or_init(|| is_there() && is_permitted()).then_some(Self { base })
    }
}

/// CPUID leaf 7: AMX-BF16 is bit 22 of EDX, AMX-TILE bit 24.
fn is_there() -> bool {
    const BITS: u32 = 1 << 22 | 1 << 24;
    #[allow(unused_unsafe, reason = "safe in newer compilers than the oldest supported")]
    // SAFETY: every x86-64 has CPUID, and `base` was detected from this very leaf.
    let leaf = unsafe { std::arch::x86_64::__cpuid_count(7, 0) };
    leaf.edx & BITS == BITS
}

/// Asks Linux for the state of the tile registers, which a process has to do once. It refuses where the system, a hypervisor
/// or the size of a thread's signal stack does not allow for it.
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Tile registers of the current thread, in the shape that this kernel takes them in. Stays on its thread.
#[derive(Debug)]
pub(crate) struct Tiles(PhantomData<*const ()>);

/// The operand of LDTILECFG.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight registers have sixteen rows of 64 bytes.
static SHAPE: Shape = Shape {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Tiles {
    fn load(_: Amx) -> Self {
        // SAFETY: AMX is there and permitted, and the operand is as the manual lays it out. Compiled code uses no tile
        // registers, so none is lost.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(nostack, readonly)) }
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there is a `Tiles`, so AMX is there. Its state is back to what costs nothing at a change of threads.
        unsafe { asm!("tilerelease", options(nomem, nostack)) }
    }
}

/// Floats of a row of sixteen in bytes: from one row of A to the next.
const RUN: usize = 64;

/// The loop of a tile: `c` comes in, or zeros; `groups` times the panels are multiplied; `c` goes out.
macro_rules! multiply {
    ($groups:expr, $a:expr, $b:expr, $c:expr, $first:expr,
     load [$($load:literal)*], zero [$($zero:literal)*], step [$($step:literal)*], store [$($store:literal)*]) => {
        asm!(
            "test {first}, {first}",
            "jnz 2f",
            $($load,)*
            "jmp 3f",
            "2:",
            $($zero,)*
            "3:",
            "test {groups}, {groups}",
            "jz 5f",
            ".p2align 4",
            "4:",
            $($step,)*
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {groups}",
            "jnz 4b",
            "5:",
            $($store,)*
            first = in(reg) usize::from($first),
            groups = inout(reg) $groups => _,
            a = inout(reg) $a => _,
            b = inout(reg) $b => _,
            c = in(reg) $c,
            run = in(reg) RUN,
            row = in(reg) 2 * RUN,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Two by two registers of accumulators.
///
/// # Safety
/// - The current thread holds [`Tiles`].
/// - `a` is readable for `groups * 32` rows of 16 words, `b` for `groups * 16` rows of 32, and `c` is writable for 32 rows
///   of 32.
unsafe fn whole(groups: usize, a: *const f32, b: *const f32, c: *mut f32, first: bool) {
    // SAFETY: the caller's contract; the second half of the rows of a group of `a` lies 1 KiB behind the first, that of `c`
    // 2 KiB, the second half of the columns of `b` and `c` 64 bytes.
    unsafe {
        multiply!(
            groups, a, b, c, first,
            load [
                "tileloadd tmm0, [{c} + {row}]" "tileloadd tmm1, [{c} + {row} + 64]"
                "tileloadd tmm2, [{c} + {row} + 2048]" "tileloadd tmm3, [{c} + {row} + 2112]"
            ],
            zero ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
            step [
                "tileloadd tmm6, [{b} + {row}]" "tileloadd tmm4, [{a} + {run}]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm7, [{b} + {row} + 64]" "tdpbf16ps tmm1, tmm4, tmm7"
                "tileloadd tmm5, [{a} + {run} + 1024]" "tdpbf16ps tmm2, tmm5, tmm6"
                "tdpbf16ps tmm3, tmm5, tmm7"
            ],
            store [
                "tilestored [{c} + {row}], tmm0" "tilestored [{c} + {row} + 64], tmm1"
                "tilestored [{c} + {row} + 2048], tmm2" "tilestored [{c} + {row} + 2112], tmm3"
            ]
        );
    }
}

/// The same for at most sixteen rows: the lower half is not computed.
///
/// # Safety
/// As [`whole`].
unsafe fn upper(groups: usize, a: *const f32, b: *const f32, c: *mut f32, first: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        multiply!(
            groups, a, b, c, first,
            load ["tileloadd tmm0, [{c} + {row}]" "tileloadd tmm1, [{c} + {row} + 64]"],
            zero ["tilezero tmm0" "tilezero tmm1"],
            step [
                "tileloadd tmm6, [{b} + {row}]" "tileloadd tmm4, [{a} + {run}]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm7, [{b} + {row} + 64]" "tdpbf16ps tmm1, tmm4, tmm7"
            ],
            store ["tilestored [{c} + {row}], tmm0" "tilestored [{c} + {row} + 64], tmm1"]
        );
    }
}

impl Kernel for Amx {
    const NAME: &'static str = "x86_64-amx-bf16-32x32";
    /// Two by two registers of accumulators; two hold A and two hold B.
    const MR: usize = 32;
    const NR: usize = 32;
    /// 128 x 32 words are 16 KiB, a third of the 48 KiB of L1 of every machine with AMX; a panel of A is another third.
    const KC: usize = 128;
    const A_STRIDE: usize = 32;
    const A_ORDER: PanelOrder = PanelOrder::Runs;
    /// A panel of A is read in the time of 512 cycles, so all of a block, and its accumulators, have to be in 2 MB of L2:
    /// 256 KiB of A, as much of B, 1 MiB of accumulators.
    const BLOCK_ROWS: usize = 512;
    const BLOCK_COLS: usize = 512;
    const GROUP: usize = 16;
    type Word = Pair;
    type Held = Tiles;
    type Strips = Avx512;

    fn hold(self) -> Tiles {
        Tiles::load(self)
    }

    /// Rows of B are no tile: two of them have to be made into one of pairs first, which is what packing does. It takes 16 ms
    /// at 16, 4096, 11008 for 41 with pairs made in L1 and accumulators loaded for each group.
    fn strips(self) -> Option<Avx512> {
        None
    }

    fn tile(self, _: &Tiles, a: Panel<'_>, b: &[f32], c: &mut [f32], first: bool) {
        check::<Self>(a, b, c);
        let Panel { rows, depth, floats } = a;
        let there = floats.len() >= depth * Self::A_STRIDE && c.len() >= Self::MR * Self::NR;
        assert!(depth.is_multiple_of(Self::GROUP) && there, "whole registers of a tile, depth {depth}");
        let (groups, a, b, c) = (depth / Self::GROUP, floats.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        if !first {
            // The accumulators of the tile that comes next lie right behind; it starts by loading them.
            for line in (0..Self::MR * Self::NR).step_by(EDGE) {
                prefetch_near(c.wrapping_add(Self::MR * Self::NR + line));
            }
        }
        // SAFETY: `check` and the assertion compared the lengths with whole registers; there are `Tiles`.
        unsafe { if rows > EDGE { whole(groups, a, b, c, first) } else { upper(groups, a, b, c, first) } }
    }

    const DOT_ROWS: usize = Self::MR;

    #[inline(always)]
    fn with_dots<V: DotsVisitor>(self, visitor: V) -> Option<V::Output> {
        Some(visitor.visit(self))
    }

    #[inline(always)]
    fn transpose(self, block: &Block, to: &mut [f32], stride: usize) {
        self.base.transpose(block, to, stride);
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        self.base.vectorize(f)
    }
}

/// Groups of k that are prefetched at a time: 512 bytes of each of thirty-two rows of weights. Two at a time, as far ahead,
/// take as long.
const CHUNK: usize = 8;

/// Sixteen rows of 32 elements that do not lie in memory as a tile register takes them.
#[derive(Default)]
#[repr(align(64))]
struct Copied([[bf16; 2 * EDGE]; EDGE]);

/// Accumulators of two matrices with at most twice sixteen rows of A: `[matrix][half]`, each turned.
#[derive(Default)]
#[repr(align(64))]
struct Sums([[Block; 2]; 2]);

/// Sixteen rows of two matrices each, `stride` bytes from one to the next.
#[derive(Clone, Copy)]
struct Factors {
    first: [*const bf16; 2],
    stride: usize,
}

/// `sums += b . a` for `groups` groups of k: the rows of both matrices are the first operand as they lie.
///
/// # Safety
/// - The current thread holds [`Tiles`].
/// - Sixteen rows of each matrix are readable for `32 * groups` elements.
/// - `a` is readable for `groups * halves` blocks of sixteen by sixteen words, and `halves` is 1 or 2.
unsafe fn add_dots(groups: usize, b: Factors, (a, halves): (*const f32, usize), sums: &mut Sums) {
    let sums = &raw mut *sums;
    // SAFETY: the caller's contract; a `Block` of the sums is sixteen rows of 64 bytes, and they lie 1 KiB apart.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {run}]",
            "tileloadd tmm1, [{c} + {run} + 2048]",
            "tileloadd tmm2, [{c} + {run} + 1024]",
            "tileloadd tmm3, [{c} + {run} + 3072]",
            "2:",
            "tileloadd tmm4, [{gate} + {stride}]",
            "tileloadd tmm5, [{up} + {stride}]",
            "tileloadd tmm6, [{a} + {run}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm5, tmm6",
            "cmp {step}, 1024",
            "je 3f",
            "tileloadd tmm7, [{a} + {run} + 1024]",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "3:",
            "add {gate}, 64",
            "add {up}, 64",
            "add {a}, {step}",
            "dec {groups}",
            "jnz 2b",
            "tilestored [{c} + {run}], tmm0",
            "tilestored [{c} + {run} + 2048], tmm1",
            "tilestored [{c} + {run} + 1024], tmm2",
            "tilestored [{c} + {run} + 3072], tmm3",
            groups = inout(reg) groups => _,
            gate = inout(reg) b.first[0] => _,
            up = inout(reg) b.first[1] => _,
            a = inout(reg) a => _,
            step = in(reg) 1024 * halves,
            stride = in(reg) b.stride,
            run = in(reg) RUN,
            c = in(reg) sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Sixteen rows of each of two matrices, when all of them lie evenly.
fn even<T: Element>(b: &[Runs<'_, T>; 2]) -> Option<Factors> {
    let row = |half: usize, at: usize| {
        let (matrix, rows) = &b[half];
        let row = (at < rows.len()).then(|| matrix.row(rows.start + at)).flatten()?;
        T::as_bf16(row).map(<[bf16]>::as_ptr)
    };
    let stride = row(0, 1)?.addr().checked_sub(row(0, 0)?.addr())?;
    for half in 0..2 {
        for at in 0..EDGE {
            if row(half, at)?.addr() != row(half, 0)?.addr() + at * stride {
                return None;
            }
        }
    }
    Some(Factors { first: [row(0, 0)?, row(1, 0)?], stride })
}

/// A group of k of rows that do not lie evenly, or end in it.
fn copied<T: Element>((matrix, rows): &Runs<'_, T>, ks: Range<usize>) -> Copied {
    let mut copied = Copied::default();
    for (to, row) in copied.0.iter_mut().zip(rows.clone()) {
        let row =
            matrix.row(row).and_then(T::as_bf16).and_then(|row| row.get(ks.clone())).unwrap_or_default();
        to[..row.len()].copy_from_slice(row);
    }
    copied
}

impl Dots for Amx {
    #[inline(always)]
    fn pack_dots<T: Element>(self, matrix: MatRef<'_, T, Host>, to: &mut [f32]) {
        pack_steps(self, matrix, to);
    }

    fn dots<T: Element>(
        self,
        _: &Tiles,
        (_, a): (usize, &[f32]),
        b: [Runs<'_, T>; 2],
        (c, first): (&mut [f32], bool),
    ) {
        debug_assert!(first, "sums start here");
        const WIDTH: usize = 2 * EDGE;
        let k = b[0].0.cols();
        let groups = k.div_ceil(WIDTH);
        let halves = a.len().checked_div(groups * EDGE * EDGE).unwrap_or(1);
        let there = a.len() == groups * halves * EDGE * EDGE && b[1].0.cols() == k;
        assert!(there && (1..=2).contains(&halves) && c.len() == Self::MR * Self::NR, "operands of dots");
        let mut sums = Sums::default();
        let mut done = 0;
        if let Some(factors) = even(&b) {
            while done < k / WIDTH {
                let chunk = CHUNK.min(k / WIDTH - done);
                let at = |first: *const bf16, group: usize| first.wrapping_add(group * WIDTH);
                for first in factors.first {
                    for row in 0..EDGE {
                        let next = at(first, done + CHUNK).wrapping_byte_add(row * factors.stride);
                        for line in 0..CHUNK {
                            prefetch(next.wrapping_byte_add(line * RUN));
                        }
                    }
                }
                let b = Factors { first: factors.first.map(|first| at(first, done)), ..factors };
                let a = a[done * halves * EDGE * EDGE..].as_ptr();
                // SAFETY: `even` found sixteen rows of k elements in both matrices at these addresses, and this chunk of groups
                // ends before k; the assertion counted the blocks of `a`; there are `Tiles`.
                unsafe { add_dots(chunk, b, (a, halves), &mut sums) };
                done += chunk;
            }
        }
        for group in done..groups {
            let ks = group * WIDTH..k.min((group + 1) * WIDTH);
            let [gate, up] = b.each_ref().map(|runs| copied(runs, ks.clone()));
            let b = Factors { first: [gate.0.as_ptr().cast(), up.0.as_ptr().cast()], stride: RUN };
            let a = a[group * halves * EDGE * EDGE..].as_ptr();
            // SAFETY: both copies are sixteen rows of 64 bytes; the rest as above.
            unsafe { add_dots(1, b, (a, halves), &mut sums) };
        }
        for (matrix, sums) in sums.0.iter().enumerate() {
            for (half, block) in sums.iter().enumerate() {
                let to = &mut c[half * EDGE * Self::NR + matrix * EDGE..];
                self.transpose(block, to, Self::NR);
            }
        }
    }
}
