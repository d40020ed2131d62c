//! Calls into the driver that move data and start kernels. All of the backend's unsafe code on device memory is here.
//!
//! Three facts carry the soundness, and the SAFETY comments name them:
//! - *Checked operands.* Addresses come from views that core checked: in bounds, on this device and stream, outputs
//!   disjoint from everything else. What a kernel may access is stated beside its struct in `kernels/params.cuh`.
//! - *Stream order.* A block is freed on the stream that its accesses are enqueued on, so after them.
//! - *Current context.* [`Stream::bind`] has made the context current on this thread.

use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream, DriverError};
use swiglu_core::{Dtype, Error, Result};

use crate::ComputeCapability;
use crate::device::Device;
use crate::error::CudaError;
use crate::health::Health;
use crate::hopper::Boxed;
use crate::kernel::Grid;
use crate::params::{KernelParams, TensorMap};

/// A kernel that was loaded into a context. Never unloaded: the context keeps it until the process ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(sys::CUfunction);

// SAFETY: a function handle is an immutable reference into a loaded module, which the driver lets any thread use.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Loads a cubin into the current context of `context`, and takes its one kernel. `all_shared`: multiprocessors are
    /// to make as much of their memory shared as they can.
    pub(crate) fn load(
        context: &CudaContext,
        cubin: &[u8],
        shared_bytes: u32,
        all_shared: bool,
    ) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let name = CString::from(c"swiglu_kernel");
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the cubin was made by NVRTC from a source of this crate, in this process or before (the cache checks
        // its hash); the driver copies it. The out-pointers are to live locals, and the name is a C string.
        unsafe {
            sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()).result()?;
            sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()).result()?;
            if shared_bytes > 48 * 1024 {
                let attribute =
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                sys::cuFuncSetAttribute(function, attribute, shared_bytes as i32).result()?;
            }
            if all_shared {
                let attribute =
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
                sys::cuFuncSetAttribute(function, attribute, 100).result()?;
            }
        }
        Ok(Self(function))
    }
}

/// The driver's limit on bytes from row to row: CU_DEVICE_ATTRIBUTE_MAX_PITCH, 2^31 - 1 on every device so far.
const MAX_PITCH: usize = i32::MAX as usize;
/// gridDim.x is at most this; see the table of technical specifications in the CUDA programming guide.
const MAX_BLOCKS: u64 = (1 << 31) - 1;

/// Hopper, the first whose kernels can wait for the one before them themselves.
const OVERLAPS: ComputeCapability = ComputeCapability { major: 9, minor: 0 };

/// A stream of a device, and the device's health.
#[derive(Clone)]
pub(crate) struct Stream {
    raw: Arc<CudaStream>,
    health: Arc<Health>,
    /// Whether a kernel is started while the one before it runs. An H100 takes 0.65 us for each empty kernel of a graph
    /// that way and 0.95 without, and the host 2.7 us for a launch and 4.1.
    overlaps: bool,
}

impl Stream {
    pub(crate) fn new(raw: Arc<CudaStream>, device: &Device) -> Self {
        let overlaps = device.facts.capability >= OVERLAPS;
        Self { raw, health: device.health.clone(), overlaps }
    }

    pub(crate) fn raw(&self) -> &Arc<CudaStream> {
        &self.raw
    }

    /// Makes the context current on this thread, unless it is lost.
    pub(crate) fn bind(&self) -> Result<()> {
        self.health.check()?;
        self.done("cuCtxSetCurrent", self.raw.context().bind_to_thread())
    }

    /// The outcome of a call: remembers a lost context.
    pub(crate) fn done(&self, call: &str, outcome: Result<(), DriverError>) -> Result<()> {
        outcome.map_err(|DriverError(code)| self.health.failed(call, code))
    }

    fn code(&self, call: &str, code: CUresult) -> Result<()> {
        if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(self.health.failed(call, code)) }
    }

    /// Starts a kernel. `name` is for errors.
    pub(crate) fn launch<P: KernelParams>(
        &self,
        name: &dyn std::fmt::Display,
        (function, shared_bytes): (Function, u32),
        grid: Grid,
        params: &P,
    ) -> Result<()> {
        let Grid { blocks, depth, threads } = grid;
        if blocks == 0 || depth == 0 {
            return Ok(());
        }
        if blocks > MAX_BLOCKS {
            return Err(
                CudaError::GridTooLarge { kernel: name.to_string(), blocks, limit: MAX_BLOCKS }.into()
            );
        }
        let mut arguments = [std::ptr::from_ref(params).cast::<c_void>().cast_mut()];
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: blocks as u32,
            gridDimY: 1,
            gridDimZ: depth,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: self.raw.cu_stream(),
            attrs: &raw mut early,
            numAttrs: u32::from(self.overlaps),
        };
        // SAFETY: *Current context*; `KernelParams` are the structs that the kernels declare, and the driver copies the
        // argument and the attribute before it returns; *checked operands* for the addresses in it; *stream order* also
        // for a kernel that starts early, since every kernel of this crate waits for the one before it in
        // `follow`, and `Cuda::on_stream` asks the same of others.
        let code = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function.0, arguments.as_mut_ptr(), std::ptr::null_mut())
        };
        if code != CUresult::CUDA_SUCCESS {
            return Err(self.health.failed(&format!("launch of {name}"), code));
        }
        self.launched(name)
    }

    /// Describes a matrix to TMA, in the 128-byte swizzle.
    pub(crate) fn tensor_map(&self, boxed: &Boxed) -> Result<TensorMap> {
        let dtype = match boxed.dtype {
            Dtype::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            Dtype::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Dtype::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let (dimensions, strides) = ([boxed.cols, boxed.rows], [boxed.row_bytes()]);
        let (lens, steps) = ([boxed.columns(), boxed.box_rows], [1, 1]);
        let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
        // SAFETY: the arrays have the two dimensions that the call is told of, and one stride less; `map` is written
        // where the call succeeds. Nothing is read at the matrix's address.
        let map = unsafe {
            let code = sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                dtype,
                dimensions.len() as u32,
                boxed.matrix.data as *mut c_void,
                dimensions.as_ptr(),
                strides.as_ptr(),
                lens.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            );
            self.code("cuTensorMapEncodeTiled", code)?;
            map.assume_init()
        };
        Ok(TensorMap(map.opaque))
    }

    /// After a kernel was enqueued: waits for it where that was asked for.
    pub(crate) fn launched(&self, name: &dyn std::fmt::Display) -> Result<()> {
        if self.health.synchronous() { self.synchronize_after(name) } else { Ok(()) }
    }

    /// Waits for everything enqueued, and names what came before.
    fn synchronize_after(&self, name: &dyn std::fmt::Display) -> Result<()> {
        // SAFETY: *current context*; the stream is alive as long as `self`.
        let code = unsafe { sys::cuStreamSynchronize(self.raw.cu_stream()) };
        if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(self.health.failed(&name.to_string(), code)) }
    }

    /// Waits for everything enqueued.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.synchronize_after(&"cuStreamSynchronize")
    }

    /// Bytes of zeros at `address`.
    pub(crate) fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: *current context*; callers pass a block that they own, of at least this many bytes.
        self.code("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(address, 0, bytes, self.raw.cu_stream()) })
    }

    /// Zeros in `rows` rows from `address` on, so many bytes in each, which are `pitch` apart.
    pub(crate) fn clear_rows(&self, address: u64, (rows, bytes): (usize, usize), pitch: usize) -> Result<()> {
        if rows == 0 || bytes == 0 {
            return Ok(());
        }
        if pitch >= MAX_PITCH {
            return (0..rows).try_for_each(|row| self.clear(address + (row * pitch) as u64, bytes));
        }
        let stream = self.raw.cu_stream();
        // SAFETY: *current context*; callers pass rows of a block that they own.
        let code = unsafe { sys::cuMemsetD2D8Async(address, pitch, 0, bytes, rows, stream) };
        self.code("cuMemsetD2D8Async", code)
    }

    /// Enqueues a copy of rows.
    ///
    /// # Safety
    /// A host end must stay valid, and a host source unchanged, until the copy is done.
    pub(crate) unsafe fn copy(&self, rows: &RowCopy) -> Result<()> {
        let RowCopy { from, to, rows: count, bytes } = *rows;
        if count == 0 || bytes == 0 {
            return Ok(());
        }
        let whole = (from.stride == bytes && to.stride == bytes) || count == 1;
        if whole {
            // SAFETY: the caller's promise.
            return unsafe { self.copy_block(from, to, count * bytes, 1) };
        }
        if from.stride.max(to.stride) < MAX_PITCH {
            // SAFETY: the caller's promise.
            return unsafe { self.copy_block(from, to, bytes, count) };
        }
        for row in 0..count {
            // SAFETY: the caller's promise.
            unsafe { self.copy_block(from.row(row), to.row(row), bytes, 1) }?;
        }
        Ok(())
    }

    /// # Safety
    /// See [`Stream::copy`].
    unsafe fn copy_block(&self, from: End, to: End, bytes: usize, rows: usize) -> Result<()> {
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: from.kind(),
            srcHost: from.host() as *const c_void,
            srcDevice: from.device(),
            srcArray: std::ptr::null_mut(),
            srcPitch: if rows == 1 { bytes } else { from.stride },
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: to.kind(),
            dstHost: to.host() as *mut c_void,
            dstDevice: to.device(),
            dstArray: std::ptr::null_mut(),
            dstPitch: if rows == 1 { bytes } else { to.stride },
            WidthInBytes: bytes,
            Height: rows,
        };
        let stream = self.raw.cu_stream();
        // SAFETY: *current context*, *checked operands*, and the caller's promise on host memory.
        let code = unsafe {
            match (rows, from.side, to.side) {
                (1, Side::Host, Side::Device) => {
                    sys::cuMemcpyHtoDAsync_v2(to.address, from.address as *const c_void, bytes, stream)
                }
                (1, Side::Device, Side::Host) => {
                    sys::cuMemcpyDtoHAsync_v2(to.address as *mut c_void, from.address, bytes, stream)
                }
                (1, Side::Device, Side::Device) => {
                    sys::cuMemcpyDtoDAsync_v2(to.address, from.address, bytes, stream)
                }
                _ => sys::cuMemcpy2DAsync_v2(&raw const copy, stream),
            }
        };
        self.code("cuMemcpy2DAsync", code)
    }
}

/// Which memory an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Device,
}

/// One end of a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) side: Side,
    pub(crate) address: u64,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
}

impl End {
    fn kind(self) -> sys::CUmemorytype {
        match self.side {
            Side::Host => sys::CUmemorytype_enum::CU_MEMORYTYPE_HOST,
            Side::Device => sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE,
        }
    }

    fn host(self) -> u64 {
        if self.side == Side::Host { self.address } else { 0 }
    }

    fn device(self) -> u64 {
        if self.side == Side::Device { self.address } else { 0 }
    }

    /// The end that starts at a row.
    pub(crate) fn row(self, row: usize) -> Self {
        Self { address: self.address + (row * self.stride) as u64, ..self }
    }
}

/// Rows of `bytes` bytes, from one place to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowCopy {
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

/// Allocates on the stream. The contents are unspecified.
pub(crate) fn allocate(stream: &Stream, bytes: usize) -> Result<cudarc::driver::CudaSlice<u8>> {
    stream.bind()?;
    // SAFETY: any bytes are valid u8, and the block is written before it is read: by a memset, or as workspace.
    // An empty block would be an error of the driver.
    unsafe { stream.raw().alloc::<u8>(bytes.max(1)) }.map_err(|DriverError(code)| match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { bytes },
        code => stream.health.failed("cuMemAllocAsync", code),
    })
}

/// The same block with elements of another type.
pub(crate) fn retype<T: swiglu_core::Scalar>(
    stream: &Stream,
    bytes: cudarc::driver::CudaSlice<u8>,
    len: usize,
) -> cudarc::driver::CudaSlice<T> {
    // SAFETY: the block has at least `len` elements (`allocate` was asked for that many bytes), every bit pattern is a
    // valid `Scalar`, and its owner is replaced by the new one.
    unsafe { stream.raw().upgrade_device_ptr::<T>(bytes.leak(), len) }
}

/// Turns off cudarc's own events: a matrix belongs to one stream, which core checks, so there is nothing to wait for.
pub(crate) fn without_events(context: &CudaContext) {
    // SAFETY: asks that nobody relies on the events for ordering between streams; this context object is the crate's
    // own, and matrices of another stream are refused.
    unsafe { context.disable_event_tracking() };
}

/// A captured graph.
pub(crate) struct Captured(pub(crate) CudaGraph);

// SAFETY: the driver asks for accesses to a graph to be serialised; `Graph` has it behind `&mut` or drops it.
unsafe impl Send for Captured {}
