//! Device memory as core sees it: blocks that own it, and plain addresses.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use swiglu_core::{DeviceId, Memory, Place, Scalar, StreamId};

use crate::parking::ParkingLot;

/// The address space of CUDA devices.
///
/// ```
/// use swiglu_core::Matrix;
/// use swiglu_cuda::CudaMemory;
///
/// fn bytes(m: &Matrix<f32, CudaMemory>) -> usize {
///     m.rows() * m.cols() * 4
/// }
/// ```
#[derive(Debug)]
pub enum CudaMemory {}

/// Owns a block of device memory, and gives it back to its stream when dropped: after the work enqueued so far.
///
/// While a captured graph of its stream lives, a dropped block is kept for it: the graph may use it in its next run.
///
/// ```
/// use swiglu_cuda::Block;
///
/// fn elements(block: Block<f32>) -> Option<usize> {
///     let slice = block.into_slice().ok()?; // a `cudarc::driver::CudaSlice`, for candle or other kernels
///     Some(slice.len())
/// }
/// ```
pub struct Block<T: Scalar> {
    /// `None` only while being dropped or taken.
    slice: Option<CudaSlice<T>>,
    start: CudaPtr,
    len: usize,
    lot: Arc<ParkingLot>,
}

impl<T: Scalar> Block<T> {
    /// Takes a block over. Its memory is freed on the stream that it was allocated on.
    pub(crate) fn new(slice: CudaSlice<T>, lot: Arc<ParkingLot>) -> Self {
        let (start, len) = (CudaPtr::of(&slice), slice.len());
        Self { slice: Some(slice), start, len, lot }
    }

    /// The memory as cudarc owns it.
    ///
    /// # Errors
    /// The block itself while graphs of its stream live: they may use it, and nothing would keep the memory for them.
    pub fn into_slice(mut self) -> Result<CudaSlice<T>, Self> {
        match self.slice.take() {
            Some(slice) if !self.lot.is_busy() => Ok(slice),
            kept => {
                self.slice = kept;
                Err(self)
            }
        }
    }

    pub(crate) fn start(&self) -> CudaPtr {
        self.start
    }
}

impl<T: Scalar> Drop for Block<T> {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.lot.free(slice);
        }
    }
}

impl<T: Scalar> fmt::Debug for Block<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("start", &self.start).field("len", &self.len).finish_non_exhaustive()
    }
}

/// An address on a device, and the stream within which accesses to it are ordered.
///
/// ```
/// use swiglu_cuda::CudaPtr;
///
/// fn address(ptr: CudaPtr) -> u64 {
///     ptr.address()
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaPtr {
    address: u64,
    device: DeviceId,
    stream: StreamId,
}

impl CudaPtr {
    /// The start of a block of cudarc's, for [`MatRef::from_raw`](swiglu_core::MatRef::from_raw).
    pub fn of<T>(slice: &CudaSlice<T>) -> Self {
        let stream = slice.stream();
        Self {
            address: slice.device_ptr(stream).0,
            device: device_id(slice.context().ordinal()),
            stream: stream_id(stream),
        }
    }

    /// The address on the device.
    pub fn address(self) -> u64 {
        self.address
    }
}

/// Core's name of a device.
pub(crate) fn device_id(ordinal: usize) -> DeviceId {
    DeviceId::new(ordinal as u32)
}

/// Core's name of a stream: its handle. The legacy default stream's is null, which core gives to memory of no stream;
/// `CU_STREAM_LEGACY` is another name of it.
pub(crate) fn stream_id(stream: &CudaStream) -> StreamId {
    const LEGACY: u64 = 1;
    match stream.cu_stream() as u64 {
        0 => StreamId::new(LEGACY),
        handle => StreamId::new(handle),
    }
}

impl Memory for CudaMemory {
    type Owned<T: Scalar> = Block<T>;
    type Ptr<T: Scalar> = CudaPtr;

    fn len<T: Scalar>(owned: &Block<T>) -> usize {
        owned.len
    }

    fn ptr<T: Scalar>(owned: &Block<T>) -> CudaPtr {
        owned.start
    }

    fn ptr_mut<T: Scalar>(owned: &mut Block<T>) -> CudaPtr {
        owned.start
    }

    fn offset<T: Scalar>(ptr: CudaPtr, elements: usize) -> CudaPtr {
        let bytes = (elements as u64).wrapping_mul(size_of::<T>() as u64);
        CudaPtr { address: ptr.address.wrapping_add(bytes), ..ptr }
    }

    fn place<T: Scalar>(ptr: CudaPtr) -> Place {
        Place { device: ptr.device, stream: ptr.stream, address: ptr.address }
    }
}
