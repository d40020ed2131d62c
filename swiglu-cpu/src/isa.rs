//! Which instruction set runs, decided once.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use swiglu_core::{Dtype, Error, Result};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::kernels::Amx;
#[cfg(target_arch = "aarch64")]
use crate::kernels::Neon;
#[cfg(target_arch = "x86_64")]
use crate::kernels::{Avx2, Avx512, Avx512Bf16};
use crate::kernels::{Kernel, KernelVisitor, Portable};

/// An instruction set that kernels exist for.
///
/// Results of one instruction set are the same bits on every machine that has it. Two of them differ in the last
/// bits: [`Isa::Portable`] rounds each product, [`Isa::Avx512Bf16`] and [`Isa::Amx`] sum some products of bf16 first, the
/// others fuse the multiply with the add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust; every machine has it.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same, with bf16 multiplied by AVX-512-BF16's dot product of pairs. It counts subnormals as 0. Chosen by
    /// itself only where it is faster than widening bf16 to f32: on AMD, not on Intel.
    Avx512Bf16,
    /// AVX-512, with bf16 multiplied in AMX's tile registers. It counts subnormals as 0. On Linux.
    Amx,
    /// NEON.
    Neon,
}

impl Isa {
    /// Most capable first.
    const ALL: [Isa; 6] = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable];

    /// What this machine has, the most capable first.
    ///
    /// ```
    /// use swiglu_cpu::Isa;
    /// assert!(Isa::available().any(|isa| isa == Isa::Portable));
    /// ```
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Avx512Bf16::detect().is_some(),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => Amx::detect().is_some(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Neon::detect().is_some(),
            #[allow(unreachable_patterns, reason = "which of them are left depends on the target")]
            _ => false,
        }
    }

    /// The best that this machine has, or the one that the environment variable `SWIGLU_ISA` names.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the named one is unknown or absent. It is never swapped for another.
    pub(crate) fn chosen() -> Result<Self> {
        static BEST: OnceLock<Isa> = OnceLock::new();
        match std::env::var("SWIGLU_ISA") {
            Ok(name) => name.parse::<Isa>()?.require(),
            Err(_) => {
                Ok(*BEST.get_or_init(|| Self::available().find(|isa| isa.is_fast()).unwrap_or(Isa::Portable)))
            }
        }
    }

    /// Whether a machine that has it is served best by it.
    fn is_fast(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Avx512Bf16::is_fast(),
            _ => true,
        }
    }

    /// The types whose products count subnormal numbers as 0.
    ///
    /// ```
    /// use swiglu_core::Dtype;
    /// use swiglu_cpu::Isa;
    /// assert_eq!(Isa::Amx.flushes_subnormals_of(), [Dtype::Bf16]);
    /// assert_eq!(Isa::Avx512.flushes_subnormals_of(), []);
    /// ```
    pub fn flushes_subnormals_of(self) -> &'static [Dtype] {
        match self {
            Isa::Avx512Bf16 | Isa::Amx => &[Dtype::Bf16],
            Isa::Portable | Isa::Avx2 | Isa::Avx512 | Isa::Neon => &[],
        }
    }

    /// This one, if the machine has it.
    pub(crate) fn require(self) -> Result<Self> {
        if self.is_available() {
            return Ok(self);
        }
        Err(Error::Unavailable {
            device: format!("cpu-{self}"),
            reason: "this machine does not have it".into(),
        })
    }

    /// Calls `visitor` with the kernel of this instruction set. One that the machine does not have cannot be reached
    /// (see [`require`](Isa::require)); the portable kernel would run.
    pub(crate) fn dispatch<V: KernelVisitor>(self, visitor: V) -> V::Output {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => match Avx512::detect_amx() {
                Some(kernel) => visitor.visit(kernel),
                None => visitor.visit(Portable),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => match Avx512::detect_bf16() {
                Some(kernel) => visitor.visit(kernel),
                None => visitor.visit(Portable),
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => match Neon::detect() {
                Some(kernel) => visitor.visit(kernel),
                None => visitor.visit(Portable),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => match Avx512::detect() {
                Some(kernel) => visitor.visit(kernel),
                None => visitor.visit(Portable),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => match Avx2::detect() {
                Some(kernel) => visitor.visit(kernel),
                None => visitor.visit(Portable),
            },
            _ => visitor.visit(Portable),
        }
    }

    /// Name and shape of the f32 kernel.
    pub fn kernel_name(self) -> &'static str {
        struct Name;
        impl KernelVisitor for Name {
            type Output = &'static str;
            fn visit<K: Kernel>(self, _: K) -> &'static str {
                K::NAME
            }
        }
        self.dispatch(Name)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
        })
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.to_string() == name).ok_or_else(|| Error::Unavailable {
            device: format!("cpu-{name}"),
            reason: "unknown instruction set, expected portable, avx2, avx512, avx512bf16, amx or neon"
                .into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse::<Isa>().ok(), Some(isa));
        }
        assert!(matches!("sse9".parse::<Isa>(), Err(Error::Unavailable { .. })));
    }

    #[test]
    fn a_forced_instruction_set_is_there() {
        if let Ok(name) = std::env::var("SWIGLU_ISA") {
            let isa = Isa::chosen().unwrap_or_else(|e| panic!("SWIGLU_ISA={name}: {e}"));
            assert_eq!(isa.to_string(), name, "the forced instruction set runs");
        }
    }
}
