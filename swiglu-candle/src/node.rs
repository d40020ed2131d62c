//! The op as a node of candle's graph.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout as Strides, Result, Shape, Storage, Tensor, bail};
use swiglu_core::Orientation;

use crate::call::{Call, Each, Grads, Kept, Operand};
use crate::given::tensor_of;
use crate::operand::as_rows;
use crate::storage::DeviceStorage;

/// One call, and what its forward kept until a backward takes it.
pub(crate) struct Node {
    call: Call,
    kept: Mutex<Kept>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("call", &self.call).finish_non_exhaustive()
    }
}

/// Runs an expression with `$t` as the type of a dtype.
macro_rules! with_kind {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F16 => {
                type $t = swiglu_core::f16;
                $body
            }
            DType::BF16 => {
                type $t = swiglu_core::bf16;
                $body
            }
            dtype => bail!("swiglu: dtype {dtype:?}, expected F32, F16 or BF16"),
        }
    };
}

impl Node {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, kept: Mutex::new(None) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forward<S: DeviceStorage>(&self, dtype: DType, arguments: Each<Operand<'_, S>>) -> Result<(S, Shape)> {
        let (z, shape, kept) = with_kind!(dtype, T => self.call.forward::<T, S>(arguments))?;
        *self.kept() = kept;
        Ok((z, shape))
    }

    fn backward<S: DeviceStorage>(
        &self,
        dtype: DType,
        arguments: Each<Operand<'_, S>>,
        dz: Operand<'_, S>,
        wanted: Each<bool>,
    ) -> Result<Grads<Storage>> {
        let kept = self.kept().take();
        let grads = with_kind!(dtype, T => self.call.backward::<T, S>(arguments, dz, kept, wanted))?;
        Ok((grads.0.map(S::erase), grads.1.map(S::erase), grads.2.map(S::erase)))
    }

    /// The gradient of weights or of a bias.
    fn parameter(&self, grad: Storage, of: &Tensor) -> Result<Tensor> {
        match (of.dims(), self.call.orientation) {
            (&[rows, cols], Orientation::InOut) => tensor_of(grad, (cols, rows).into(), of)?.t(),
            _ => tensor_of(grad, of.shape().clone(), of),
        }
    }

    /// The gradients of the arguments that are wanted, on whatever device they are.
    fn gradients(
        &self,
        (x, second, third): Each<&Tensor>,
        dz: &Tensor,
        wanted: Each<bool>,
    ) -> Result<Grads<Storage>> {
        let dtype = x.dtype();
        let (x, second, third) =
            (x.storage_and_layout(), second.storage_and_layout(), third.storage_and_layout());
        let dz = dz.storage_and_layout();
        match (&*x.0, &*second.0, &*third.0, &*dz.0) {
            (Storage::Cpu(a), Storage::Cpu(b), Storage::Cpu(c), Storage::Cpu(d)) => {
                self.backward(dtype, ((a, x.1), (b, second.1), (c, third.1)), (d, dz.1), wanted)
            }
            #[cfg(feature = "cuda")]
            (Storage::Cuda(a), Storage::Cuda(b), Storage::Cuda(c), Storage::Cuda(d)) => {
                self.backward(dtype, ((a, x.1), (b, second.1), (c, third.1)), (d, dz.1), wanted)
            }
            _ => bail!("swiglu: the gradient of z is on another device than x and the weights"),
        }
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_strides: &Strides,
        second: &CpuStorage,
        second_strides: &Strides,
        third: &CpuStorage,
        third_strides: &Strides,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(x.dtype(), ((x, x_strides), (second, second_strides), (third, third_strides)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_strides: &Strides,
        second: &CudaStorage,
        second_strides: &Strides,
        third: &CudaStorage,
        third_strides: &Strides,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward(x.dtype(), ((x, x_strides), (second, second_strides), (third, third_strides)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        second: &Tensor,
        third: &Tensor,
        _: &Tensor,
        dz: &Tensor,
    ) -> Result<Each<Option<Tensor>>> {
        let wanted = (x.track_op(), second.track_op(), third.track_op());
        let grads = self.gradients((x, second, third), &as_rows(dz)?, wanted)?;
        Ok((
            grads.0.map(|dx| tensor_of(dx, x.shape().clone(), x)).transpose()?,
            grads.1.map(|grad| self.parameter(grad, second)).transpose()?,
            grads.2.map(|grad| self.parameter(grad, third)).transpose()?,
        ))
    }
}
