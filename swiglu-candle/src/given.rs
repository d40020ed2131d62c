//! A tensor made of a storage: candle takes one only from an op.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout as Strides, Result, Shape, Storage, Tensor, bail,
};

/// The op that returns a storage it was given, whatever its argument.
struct Given {
    storage: Mutex<Option<Storage>>,
    shape: Shape,
}

/// A tensor of this storage and shape, on the device of `beside`; part of no graph.
pub(crate) fn tensor_of(storage: Storage, shape: Shape, beside: &Tensor) -> Result<Tensor> {
    beside.apply_op1_no_bwd(&Given { storage: Mutex::new(Some(storage)), shape })
}

impl Given {
    fn take(&self) -> Option<Storage> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl CustomOp1 for Given {
    fn name(&self) -> &'static str {
        "swiglu-gradient"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Strides) -> Result<(CpuStorage, Shape)> {
        match self.take() {
            Some(Storage::Cpu(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("{}: no storage of the CPU", self.name()),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Strides) -> Result<(CudaStorage, Shape)> {
        match self.take() {
            Some(Storage::Cuda(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("{}: no storage of a CUDA device", self.name()),
        }
    }
}
