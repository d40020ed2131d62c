//! The backend: a handle on one device and one stream of it.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError};
use swiglu_core::ops::{Backward, Copy, CopyIn, CopyOut, Forward};
use swiglu_core::{
    Backend, Checked, DeviceId, Error, Matrix, Plan, Problem, Replay, Result, Route, Scalar, StreamId,
    SwiGLU, bf16, f16,
};

use crate::device::Device;
use crate::gemm::Family;
use crate::launch::{Stream, allocate, retype};
use crate::memory::{Block, CudaMemory, device_id, stream_id};
use crate::plan::Planner;
use crate::queue::Queue;
use crate::tune::Tuning;
use crate::{CublasInfo, Preflight, composed, passes, staging};

/// Fused SwiGLU on an NVIDIA GPU: a handle on one device and one stream.
///
/// Calls enqueue work and return: `Ok` means enqueued, and a fault of the device surfaces at
/// [`synchronize`](Backend::synchronize), at a download or in a later call. Clones share stream and workspace. The same
/// call gives the same bits on one device and one version of NVRTC.
///
/// ```
/// use swiglu_core::{Backend, FusedSwiGLU};
/// use swiglu_cuda::Cuda;
///
/// match Cuda::new(0) {
///     Ok(cuda) => {
///         let layer = FusedSwiGLU::<f32, _>::init(&cuda, 16, 32, 7)?;
///         assert_eq!(layer.forward(&cuda.zeros(4, 16)?)?.shape(), (4, 32));
///     }
///     Err(reason) => println!("{reason}"),
/// }
/// # Ok::<(), swiglu_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Cuda {
    queue: Arc<Queue>,
    family: Option<Family>,
    /// Whether dense products go through cuBLAS.
    cublas: bool,
    tuning: Tuning,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda")
            .field("name", &self.name())
            .field("stream", &self.stream())
            .field("family", &self.family)
            .field("cublas", &self.cublas)
            .field("tuning", &self.tuning)
            .finish_non_exhaustive()
    }
}

impl Cuda {
    /// A new stream on the device with this ordinal.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what is missing and what to do; [`Error::Device`] when the stream cannot be made.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::on_new_stream(Device::open(ordinal)?)
    }

    /// A stream of the caller's. Work is ordered with everything else on it. From compute capability 9.0 on, kernels of
    /// this crate let the next one start early (programmatic dependent launch), so a kernel of somebody else that is
    /// launched with that attribute on the stream has to wait for the one before it (`griddepcontrol.wait`), even where
    /// it needs nothing of it; without the attribute there is nothing to heed.
    ///
    /// The context must be the device's primary one, as `CudaContext::new` makes it.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let device = Device::open(context.ordinal())?;
        if context.cu_ctx() != device.context.cu_ctx() {
            return Err(Error::Unsupported {
                backend: "swiglu-cuda",
                what: "a context that is not the primary one",
            });
        }
        Ok(Self::with(device, stream))
    }

    fn on_new_stream(device: Arc<Device>) -> Result<Self> {
        let stream = device
            .context
            .new_stream()
            .map_err(|DriverError(code)| device.health.failed("cuStreamCreate", code))?;
        Ok(Self::with(device, stream))
    }

    fn with(device: Arc<Device>, stream: Arc<CudaStream>) -> Self {
        let stream = Stream::new(stream, &device);
        let tuning = device.tuner.of_env(device.cache());
        Self { queue: Arc::new(Queue::new(device, stream)), family: None, cublas: false, tuning }
    }

    /// Another stream of the same device: another handle.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn new_stream(&self) -> Result<Self> {
        let other = Self::on_new_stream(self.queue.device.clone())?;
        Ok(Self { family: self.family, cublas: self.cublas, tuning: self.tuning, ..other })
    }

    /// With this family of kernels wherever it accepts a problem; where it does not, the plan says why.
    #[must_use]
    pub fn with_family(mut self, family: Family) -> Self {
        self.family = Some(family);
        self
    }

    /// With [`Dense::matmul`](swiglu_core::Dense::matmul) by cuBLAS in place of this crate's kernels.
    ///
    /// That makes [`Unfused`](swiglu_core::Unfused) of this handle the baseline to measure against: NVIDIA's
    /// products, with elementwise kernels between them. The op itself goes through cuBLAS where a call asks for
    /// [`Route::Composed`], with or without this.
    ///
    /// The library is looked for at the first product: see [`Search`](crate::Search) for where, and
    /// [`CudaError::Cublas`](crate::CudaError::Cublas) for what happens where it is missing.
    ///
    /// ```no_run
    /// use swiglu_core::{FusedSwiGLU, Unfused};
    /// use swiglu_cuda::Cuda;
    ///
    /// let cuda = Cuda::new(0)?.with_cublas();
    /// println!("measured against {}", cuda.cublas()?);
    /// let baseline = FusedSwiGLU::<f32, _>::init(&Unfused(cuda), 64, 128, 1)?;
    /// # Ok::<(), swiglu_core::Error>(())
    /// ```
    #[must_use]
    pub fn with_cublas(mut self) -> Self {
        self.cublas = true;
        self
    }

    /// The cuBLAS that [`Route::Composed`] and [`Cuda::with_cublas`] use. Looks for it where nothing has used it so
    /// far.
    ///
    /// # Errors
    /// [`CudaError::Cublas`](crate::CudaError::Cublas), in [`Error::Device`].
    pub fn cublas(&self) -> Result<CublasInfo> {
        Ok(self.queue.device.cublas()?.info().clone())
    }

    /// The device and the libraries that are used.
    pub fn preflight(&self) -> &Preflight {
        &self.queue.device.found
    }

    /// Free and total memory of the device, in bytes.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.queue.stream.bind()?;
        self.queue.device.memory()
    }

    /// What came of the cache of compiled kernels on disk.
    pub fn cache_use(&self) -> CacheUse {
        let cache = self.queue.device.cache();
        CacheUse { hits: cache.hits(), misses: cache.misses(), note: cache.note().map(str::to_owned) }
    }

    /// The stream as cudarc has it.
    pub fn cuda_stream(&self) -> &Arc<CudaStream> {
        self.queue.stream.raw()
    }

    /// Takes a block of cudarc's over, for [`Matrix::from_owned`].
    pub fn adopt<T: Scalar>(&self, slice: CudaSlice<T>) -> Block<T> {
        Block::new(slice, self.queue.lot.clone())
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(crate) fn shared_queue(&self) -> Arc<Queue> {
        self.queue.clone()
    }

    pub(crate) fn has_cublas(&self) -> bool {
        self.cublas
    }

    pub(crate) fn tuning(&self) -> Tuning {
        self.tuning
    }

    pub(crate) fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
    }

    pub(crate) fn planner(&self) -> Planner<'_> {
        let device = &self.queue.device;
        let choices = (self.tuning != Tuning::Off).then(|| device.tuner.choices());
        Planner { facts: device.facts, forced: self.family, choices }
    }
}

/// Use of the disk cache of compiled kernels, by all handles on a device. `SWIGLU_CUDA_CACHE` moves the cache (an
/// absolute path) or turns it off (`off`).
///
/// ```
/// if let Ok(cuda) = swiglu_cuda::Cuda::new(0) {
///     println!("{} kernels came from disk", cuda.cache_use().hits);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheUse {
    /// Kernels that were found on disk.
    pub hits: u64,
    /// Kernels that were compiled.
    pub misses: u64,
    /// Why the cache is of less use than it could be, if there is a reason.
    pub note: Option<String>,
}

impl Backend for Cuda {
    type Memory = CudaMemory;

    fn name(&self) -> String {
        let gpu = &self.queue.device.found.gpu;
        let family = self.family.map_or(String::new(), |family| format!(" ({family})"));
        let products = if self.cublas { " (dense products by cuBLAS)" } else { "" };
        format!("cuda:{} {}{family}{products}", gpu.ordinal, gpu.name)
    }

    fn device(&self) -> DeviceId {
        device_id(self.queue.device.found.gpu.ordinal)
    }

    fn stream(&self) -> StreamId {
        stream_id(self.queue.stream.raw())
    }

    fn zeros<T: Scalar>(&self, rows: usize, cols: usize) -> Result<Matrix<T, CudaMemory>> {
        let len = rows.checked_mul(cols).ok_or(Error::Overflow { what: "elements", a: rows, b: cols })?;
        let bytes = len
            .checked_mul(size_of::<T>())
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or(Error::Overflow { what: "bytes", a: len, b: size_of::<T>() })?;
        self.queue.outside_capture("a matrix had to be allocated")?;
        let stream = &self.queue.stream;
        let slice = retype::<T>(stream, allocate(stream, bytes)?, len);
        let block = self.adopt(slice);
        stream.clear(block.start().address(), bytes)?;
        Matrix::from_owned(block, rows, cols)
    }

    fn synchronize(&self) -> Result<()> {
        self.queue.outside_capture("the stream had to be waited for")?;
        self.queue.stream.synchronize()
    }

    fn reserve(&self, plan: &Plan) -> Result<()> {
        self.queue.call(plan.workspace_bytes).map(drop)
    }

    fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        Ok(Some(Box::new(Cuda::capture(self, work)?)))
    }

    fn run_copy<T: Scalar>(&self, call: Checked<Copy<'_, T, CudaMemory>>) -> Result<()> {
        let Copy { from, to } = call.into_inner();
        staging::copy(&self.queue.stream, from, &to)
    }

    fn run_copy_in<T: Scalar>(&self, call: Checked<CopyIn<'_, T, CudaMemory>>) -> Result<()> {
        let CopyIn { from, to } = call.into_inner();
        self.queue.outside_capture("host memory had to be copied")?;
        self.queue.with_staging(|staging| staging.copy_in(&self.queue.stream, from, &to))
    }

    fn run_copy_out<T: Scalar>(&self, call: Checked<CopyOut<'_, T, CudaMemory>>) -> Result<()> {
        let CopyOut { from, to } = call.into_inner();
        self.queue.outside_capture("host memory had to be copied")?;
        staging::copy_out(&self.queue.stream, from, to)
    }
}

/// One implementation for each element type, not one that is generic: so it is compiled here, once.
macro_rules! swiglu {
    ($($t:ty),*) => {$(
        impl SwiGLU<$t> for Cuda {
            fn run_forward(&self, call: Checked<Forward<'_, $t, CudaMemory>>) -> Result<()> {
                let call = call.into_inner();
                match call.problem.options.route {
                    Route::Fused => {
                        self.tune_first_use(&call.problem)?;
                        passes::forward(self.queue(), self.planner(), call)
                    }
                    Route::Composed => composed::forward(self.queue(), call),
                }
            }

            fn run_backward(&self, call: Checked<Backward<'_, $t, CudaMemory>>) -> Result<()> {
                let call = call.into_inner();
                match call.problem.options.route {
                    Route::Fused => {
                        self.tune_first_use(&call.problem)?;
                        passes::backward(self.queue(), self.planner(), call)
                    }
                    Route::Composed => composed::backward(self.queue(), call),
                }
            }

            fn plan(&self, problem: &Problem) -> Result<Plan> {
                problem.check()?;
                self.planner().describe(self.name(), problem)
            }
        }
    )*};
}
swiglu!(f32, f16, bf16);
