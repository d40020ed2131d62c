//! Tensors on NVIDIA GPUs: candle's device memory as core's, on candle's stream. The only file of this crate with
//! `unsafe`.

use std::any::Any;
use std::cell::RefCell;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::DeviceId;
use candle_core::{CudaDevice, CudaStorage, Result, Storage, bail};
use swiglu_core::{MatRef, Matrix, Memory, Saved};
use swiglu_cuda::cudarc::driver::{DevicePtr, DevicePtrMut};
use swiglu_cuda::{Cuda, CudaMemory, CudaPtr};

use crate::operand::Place;
use crate::storage::{DeviceStorage, Kind, failed};

/// Handles that a thread keeps. A program has a device for each GPU; more than these are a test's.
const HANDLES: usize = 16;

thread_local! {
    /// The handles of this thread, the oldest first. candle's stream of a device is CUDA's per-thread one, another for
    /// each thread under one name, and a handle's workspace passes from call to call in the order of one stream.
    static OPENED: RefCell<Vec<(DeviceId, Cuda)>> = const { RefCell::new(Vec::new()) };
}

/// A handle on the stream of a device.
fn handle(device: &CudaDevice) -> Result<Cuda> {
    OPENED.with_borrow_mut(|opened| {
        if let Some((_, cuda)) = opened.iter().find(|(id, _)| *id == device.id()) {
            return Ok(cuda.clone());
        }
        let cuda = Cuda::on_stream(device.cuda_stream()).map_err(failed)?;
        if opened.len() == HANDLES {
            opened.remove(0);
        }
        opened.push((device.id(), cuda.clone()));
        Ok(cuda)
    })
}

impl DeviceStorage for CudaStorage {
    type Backend = Cuda;

    fn backend(&self) -> Result<Cuda> {
        handle(self.device())
    }

    fn view<T: Kind>(&self, Place { offset, layout }: Place) -> Result<MatRef<'_, T, CudaMemory>> {
        let slice = self.as_cuda_slice::<T>()?;
        let layout = layout.within(slice.len().saturating_sub(offset)).map_err(failed)?;
        let start = CudaMemory::offset::<T>(CudaPtr::of(slice), offset);
        // SAFETY: `within` keeps the layout inside of the slice, which the view borrows; candle has enqueued on the slice's
        // stream whatever initialises it. A view is used by calls on that stream alone (core refuses those of another),
        // and whatever writes or frees the slice later is enqueued on it after them.
        Ok(unsafe { MatRef::from_raw(start, layout) })
    }

    fn was_read<T: Kind>(&self) -> Result<()> {
        let slice = self.as_cuda_slice::<T>()?;
        // Dropping what comes with the address records the event that writes on another stream wait for.
        let (_, read) = slice.device_ptr(slice.stream());
        drop(read);
        Ok(())
    }

    fn adopt<T: Kind>(&self, matrix: Matrix<T, CudaMemory>) -> Result<Self> {
        let Ok(mut slice) = matrix.into_owned().into_slice() else {
            bail!("swiglu: a graph captured from this stream still uses the memory of the result");
        };
        let stream = slice.stream().clone();
        // As above, for reads on another stream.
        let (_, written) = slice.device_ptr_mut(&stream);
        drop(written);
        Ok(Self::wrap_cuda_slice(slice, self.device().clone()))
    }

    fn keep<T: Kind>(saved: Saved<T, CudaMemory>) -> Box<dyn Any + Send> {
        Box::new(saved)
    }

    fn erase(self) -> Storage {
        Storage::Cuda(self)
    }
}
