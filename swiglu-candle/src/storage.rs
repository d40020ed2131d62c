//! Storages of candle as memory of core: what CPU and CUDA have in common, and the CPU.

use std::any::Any;
use std::sync::LazyLock;

use candle_core::{CpuStorage, Error, Result, Storage, WithDType};
use swiglu_core::{Backend, Element, Host, MatRef, Matrix, Saved, SwiGLU, bf16, f16};
use swiglu_cpu::Cpu;

use crate::operand::Place;

/// An element type that candle and core share.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Kind: Element + WithDType {}
/// An element type that candle and core share.
#[cfg(feature = "cuda")]
pub(crate) trait Kind: Element + WithDType + candle_core::cuda_backend::CudaDType {}

impl Kind for f32 {}
impl Kind for f16 {}
impl Kind for bf16 {}

/// A storage on a device that has a backend.
pub(crate) trait DeviceStorage: Sized {
    /// What runs on the device.
    type Backend: SwiGLU<f32> + SwiGLU<f16> + SwiGLU<bf16>;

    /// A handle on the device, and on the stream of this storage.
    fn backend(&self) -> Result<Self::Backend>;

    /// A part of the storage, in place.
    fn view<T: Kind>(&self, place: Place) -> Result<MatRef<'_, T, MemoryOf<Self>>>;

    /// To be called when a call that reads the storage has been enqueued.
    fn was_read<T: Kind>(&self) -> Result<()>;

    /// A storage on the same device that takes over what a call that has been enqueued writes.
    fn adopt<T: Kind>(&self, matrix: Matrix<T, MemoryOf<Self>>) -> Result<Self>;

    /// What a forward saved, to be kept in an op.
    fn keep<T: Kind>(saved: Saved<T, MemoryOf<Self>>) -> Box<dyn Any + Send>;

    /// The same storage, whatever its device.
    fn erase(self) -> Storage;
}

/// The address space of a storage's device.
pub(crate) type MemoryOf<S> = <<S as DeviceStorage>::Backend as Backend>::Memory;

/// An error of core as candle has it.
pub(crate) fn failed(error: swiglu_core::Error) -> Error {
    Error::wrap(error)
}

/// One handle, so that calls share workspaces.
static CPU: LazyLock<Cpu> = LazyLock::new(Cpu::new);

impl DeviceStorage for CpuStorage {
    type Backend = Cpu;

    fn backend(&self) -> Result<Cpu> {
        Ok(CPU.clone())
    }

    fn view<T: Kind>(&self, Place { offset, layout }: Place) -> Result<MatRef<'_, T, Host>> {
        let elements = self.as_slice::<T>()?.get(offset..).unwrap_or_default();
        MatRef::from_slice(elements, layout).map_err(failed)
    }

    fn was_read<T: Kind>(&self) -> Result<()> {
        Ok(())
    }

    fn adopt<T: Kind>(&self, matrix: Matrix<T, Host>) -> Result<Self> {
        Ok(T::to_cpu_storage_owned(matrix.into_owned()))
    }

    fn keep<T: Kind>(saved: Saved<T, Host>) -> Box<dyn Any + Send> {
        Box::new(saved)
    }

    fn erase(self) -> Storage {
        Storage::Cpu(self)
    }
}
