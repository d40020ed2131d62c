//! What the machine can do at best: multiply-adds on registers alone, and reads of memory that no cache holds.

use std::hint::black_box;
use std::time::Instant;

use swiglu_cpu::Isa;

/// Steps of a peak loop: some milliseconds, long enough to time and short enough to repeat beside every call.
const STEPS: usize = 1 << 20;

/// Independent chains of a loop: latency times issue width is at most 6 x 2 on the machines in use.
const CHAINS: usize = 15;

/// Peak loops of the instruction sets that kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loop {
    /// 512-bit multiply-adds of f32.
    Avx512,
    /// 512-bit dot products of bf16 pairs.
    Avx512Bf16,
    /// Products of bf16 in tile registers.
    Amx,
    /// 256-bit multiply-adds of f32.
    Avx2,
}

impl Loop {
    /// Whether this machine can run it.
    pub(crate) fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Loop::Avx512 => is_x86_feature_detected!("avx512f"),
            Loop::Avx512Bf16 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
            Loop::Amx => Isa::Amx.is_available(),
            Loop::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Floating-point operations of one step: accumulators x lanes x 2, twice that for pairs.
    fn operations(self) -> usize {
        match self {
            Loop::Avx512 => CHAINS * 16 * 2,
            Loop::Avx512Bf16 => CHAINS * 16 * 4,
            Loop::Amx => 4 * 16 * 16 * 32 * 2,
            Loop::Avx2 => CHAINS * 8 * 2,
        }
    }

    /// A step of tiles is 64 cycles, one of vectors eight.
    fn steps(self) -> usize {
        if self == Loop::Amx { STEPS / 8 } else { STEPS }
    }

    fn run(self) {
        assert!(self.is_available(), "{self:?} on a machine without it");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above found the instruction set of each arm.
        unsafe {
            match self {
                Loop::Avx512 => x86::avx512(self.steps()),
                Loop::Avx512Bf16 => x86::avx512_bf16(self.steps()),
                Loop::Amx => x86::amx(self.steps()),
                Loop::Avx2 => x86::avx2(self.steps()),
            }
        }
    }

    /// Operations per second on every thread of the pool at once.
    pub(crate) fn rate(self) -> f64 {
        let start = Instant::now();
        rayon::broadcast(|_| self.run());
        let total = rayon::current_num_threads() * self.steps() * self.operations();
        total as f64 / start.elapsed().as_secs_f64()
    }
}

/// Bytes per second that all threads together read from memory.
pub(crate) fn read_rate(buffer: &[f32]) -> f64 {
    let share = buffer.len().div_ceil(rayon::current_num_threads());
    let start = Instant::now();
    rayon::broadcast(|context| {
        let part = buffer.chunks(share).nth(context.index()).unwrap_or_default();
        black_box(sum(part))
    });
    size_of_val(buffer) as f64 / start.elapsed().as_secs_f64()
}

/// One float of each cache line, along eight streams at a time: more than that only adds instructions.
fn sum(part: &[f32]) -> f32 {
    const LINE: usize = 16;
    let (mut sums, stream) = ([0.0; 8], part.len() / 8);
    for at in (0..stream).step_by(LINE) {
        for (s, sum) in sums.iter_mut().enumerate() {
            *sum += part[s * stream + at];
        }
    }
    sums.iter().sum()
}

/// In assembly: a compiler finds that all chains are alike, and then times its own moves.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// `steps` times `acc += factor * factor` on fifteen registers, all of them zeros.
    macro_rules! chains {
        ($name:ident, $op:literal, $register:literal) => {
            /// # Safety
            /// The machine has the instruction.
            pub(super) unsafe fn $name(steps: usize) {
                // SAFETY: the caller's contract; nothing but the registers listed is touched.
                unsafe {
                    chains!(@ steps, $op, $register, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
                }
            }
        };
        (@ $steps:ident, $op:literal, $register:literal, [$($n:literal)*]) => {
            asm!(
                "vzeroall",
                "2:",
                $(concat!($op, " ", $register, $n, ", ", $register, "15, ", $register, "15"),)*
                "dec {steps}",
                "jnz 2b",
                "vzeroupper",
                steps = inout(reg) $steps => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nomem, nostack),
            )
        };
    }
    /// The operand of LDTILECFG: eight registers of sixteen rows of 64 bytes.
    #[repr(C, align(64))]
    struct Shape {
        palette: [u8; 16],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// `steps` times four products of tile registers, all of them zeros.
    ///
    /// # Safety
    /// The machine has AMX-BF16 and the process its permission.
    pub(super) unsafe fn amx(steps: usize) {
        let mut shape = Shape { palette: [0; 16], row_bytes: [0; 16], rows: [0; 16] };
        shape.palette[0] = 1;
        shape.row_bytes[..8].fill(64);
        shape.rows[..8].fill(16);
        // SAFETY: the caller's contract; the operand is as the manual lays it out.
        unsafe {
            asm!(
                "ldtilecfg [{shape}]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                "tilerelease",
                shape = in(reg) &raw const shape,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(readonly, nostack),
            );
        }
    }

    chains!(avx512, "vfmadd231ps", "zmm");
    chains!(avx512_bf16, "vdpbf16ps", "zmm");
    chains!(avx2, "vfmadd231ps", "ymm");
}
