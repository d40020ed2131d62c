//! Choosing a device at run time.

use std::fmt;
use std::str::FromStr;

use swiglu_core::{Dense, Error, Result, SwiGLU, bf16, f16};

/// A device to run on.
///
/// ```
/// use swiglu::Device;
/// assert_eq!("cuda:1".parse::<Device>()?, Device::Cuda(1));
/// # Ok::<(), swiglu::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The first GPU that can be used, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this ordinal. Used or refused, never swapped for another.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `auto`, `cpu`, `cuda` (the first), `cuda:N`.
    fn from_str(name: &str) -> Result<Self> {
        let unknown = || Error::Unavailable {
            device: name.to_owned(),
            reason: "unknown device, expected auto, cpu, cuda or cuda:N".to_owned(),
        };
        match name {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => {
                let digits =
                    name.strip_prefix("cuda:").filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                digits.and_then(|digits| digits.parse().ok()).map(Device::Cuda).ok_or_else(unknown)
            }
        }
    }
}

/// Every element type, the op and what a training step needs: one bound for code that is written once.
pub trait Complete:
    SwiGLU<f32> + SwiGLU<f16> + SwiGLU<bf16> + Dense<f32> + Dense<f16> + Dense<bf16> + Send + Sync + 'static
{
}

impl<B> Complete for B where
    B: SwiGLU<f32>
        + SwiGLU<f16>
        + SwiGLU<bf16>
        + Dense<f32>
        + Dense<f16>
        + Dense<bf16>
        + Send
        + Sync
        + 'static
{
}

/// Work that runs on whichever backend a [`Device`] turns out to be. A closure cannot be generic; a job can.
pub trait Job {
    /// What it gives back.
    type Output;

    /// Runs on `backend`.
    fn run<B: Complete>(self, backend: B) -> Self::Output;
}

/// A device, and what runs on it or why nothing can.
#[derive(Debug)]
pub struct Availability {
    /// The device.
    pub device: Device,
    /// The backend's name, or [`Error::Unavailable`] with the reason.
    pub state: Result<String>,
}

impl Device {
    /// Every device that this build knows, and for each one that cannot be used the reason.
    ///
    /// ```
    /// use swiglu::Device;
    /// for entry in Device::available() {
    ///     match entry.state {
    ///         Ok(name) => println!("{}: {name}", entry.device),
    ///         Err(reason) => println!("{}: {reason}", entry.device),
    ///     }
    /// }
    /// ```
    pub fn available() -> Vec<Availability> {
        struct Name;
        impl Job for Name {
            type Output = String;
            fn run<B: Complete>(self, backend: B) -> String {
                backend.name()
            }
        }
        let entry = |device: Device| Availability { device, state: device.run(Name) };
        let gpus = (0..gpu_count().max(1)).map(Device::Cuda);
        std::iter::once(Device::Cpu).chain(gpus).map(entry).collect()
    }

    /// Runs a job on this device.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the device cannot be used. [`Device::Auto`] falls back to the CPU on that error
    /// alone.
    ///
    /// ```
    /// use swiglu::{Complete, Device, FusedSwiGLU, Job, Result};
    ///
    /// struct Shape;
    /// impl Job for Shape {
    ///     type Output = Result<(usize, usize)>;
    ///     fn run<B: Complete>(self, backend: B) -> Self::Output {
    ///         let layer = FusedSwiGLU::<f32, B>::init(&backend, 8, 16, 1)?;
    ///         Ok(layer.forward(&backend.zeros(4, 8)?)?.shape())
    ///     }
    /// }
    /// assert_eq!(Device::Cpu.run(Shape)??, (4, 16));
    /// # Ok::<(), swiglu::Error>(())
    /// ```
    pub fn run<J: Job>(self, job: J) -> Result<J::Output> {
        match self {
            Device::Cpu => run_cpu(job),
            Device::Cuda(ordinal) => run_cuda(ordinal, job).map_err(|(reason, _)| reason),
            Device::Auto => run_cuda(0, job).or_else(|(reason, job)| match reason {
                Error::Unavailable { .. } => run_cpu(job),
                other => Err(other),
            }),
        }
    }
}

#[cfg(feature = "cpu")]
fn run_cpu<J: Job>(job: J) -> Result<J::Output> {
    let cpu = swiglu_cpu::Cpu::new();
    cpu.isa()?;
    Ok(job.run(cpu))
}

#[cfg(not(feature = "cpu"))]
fn run_cpu<J: Job>(_: J) -> Result<J::Output> {
    Err(Error::Unavailable { device: "cpu".into(), reason: "this build lacks the feature `cpu`".into() })
}

#[cfg(feature = "cuda")]
fn gpu_count() -> usize {
    swiglu_cuda::probe().map_or(0, |gpus| gpus.len())
}

#[cfg(not(feature = "cuda"))]
fn gpu_count() -> usize {
    0
}

/// Runs a job on a GPU, or gives it back with the reason.
#[cfg(feature = "cuda")]
fn run_cuda<J: Job>(ordinal: usize, job: J) -> Result<J::Output, (Error, J)> {
    match swiglu_cuda::Cuda::new(ordinal) {
        Ok(cuda) => Ok(job.run(cuda)),
        Err(reason) => Err((reason, job)),
    }
}

#[cfg(not(feature = "cuda"))]
fn run_cuda<J: Job>(ordinal: usize, job: J) -> Result<J::Output, (Error, J)> {
    let device = format!("cuda:{ordinal}");
    Err((Error::Unavailable { device, reason: "this build lacks the feature `cuda`".into() }, job))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Name;

    impl Job for Name {
        type Output = String;
        fn run<B: Complete>(self, backend: B) -> String {
            backend.name()
        }
    }

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(17)] {
            assert_eq!(device.to_string().parse::<Device>().ok(), Some(device));
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "CPU", "cuda:99999999999999999999"] {
            assert!(matches!(name.parse::<Device>(), Err(Error::Unavailable { .. })), "{name}");
        }
    }

    #[test]
    fn a_named_device_is_used_or_refused() {
        let refused = Device::Cuda(4096).run(Name);
        assert!(
            matches!(refused, Err(Error::Unavailable { ref device, .. }) if device == "cuda:4096"),
            "{refused:?}"
        );
    }

    #[cfg(feature = "cpu")]
    #[test]
    fn auto_takes_the_first_gpu_or_else_the_cpu() {
        let name = Device::Auto.run(Name).unwrap_or_else(|e| panic!("{e}"));
        let available = Device::available();
        let of = |device| available.iter().find(|entry| entry.device == device).map(|entry| &entry.state);
        let Some(Ok(cpu)) = of(Device::Cpu) else { panic!("{available:?}") };
        match of(Device::Cuda(0)) {
            Some(Ok(gpu)) => assert_eq!(&name, gpu),
            Some(Err(Error::Unavailable { .. })) => assert_eq!(&name, cpu),
            other => panic!("{other:?}"),
        }
    }
}
