//! The device: time between events, a cold L2, the best product of cuBLASLt, and what the device can do at most.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

use serde::Serialize;
use swiglu_core::{Backend, Element, MatRef, Matrix, Op, Precision};
use swiglu_cuda::cudarc::driver::CudaEvent;
use swiglu_cuda::cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
use swiglu_cuda::cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
use swiglu_cuda::{Cuda, CudaMemory};

use crate::cublaslt::{Key, Lt, Plan, Product};
use crate::error::{Error, Result};
use crate::job::kind;
use crate::noise::Noise;
use crate::stats::median;

/// What [`Gpu::flush`] copies: several times the L2 of any device.
const FLUSH_BYTES: usize = 256 << 20;

/// What the bandwidth is measured with.
const COPY_BYTES: usize = 1 << 30;

/// Edge of the product whose rate counts as the peak.
const PEAK_EDGE: usize = 8192;

/// Algorithms that are measured again, in turns, once all have been measured.
const FINALISTS: usize = 4;

/// A GPU, and cuBLASLt on it.
pub(crate) struct Gpu {
    pub(crate) cuda: Cuda,
    lt: Lt,
    /// The fastest algorithm of each product so far.
    best: RefCell<HashMap<Key, Plan>>,
    scratch: RefCell<[Matrix<u32, CudaMemory>; 2]>,
    pub(crate) l2_bytes: usize,
}

/// A rate of products, by element type.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Peak {
    /// `bf16`, `f16`, `f32` or `tf32`.
    pub(crate) kind: String,
    pub(crate) flops_per_second: f64,
}

/// The two events around something.
pub(crate) struct Span {
    start: CudaEvent,
    end: CudaEvent,
}

impl Span {
    /// Waits for it.
    pub(crate) fn seconds(&self) -> Result<f64> {
        Ok(f64::from(self.start.elapsed_ms(&self.end)?) * 1e-3)
    }
}

impl Gpu {
    pub(crate) fn open(ordinal: usize) -> Result<Self> {
        let cuda = Cuda::new(ordinal)?;
        let lt = Lt::open(&cuda)?;
        let l2_bytes = cuda.cuda_stream().context().attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let half = || cuda.zeros(1, FLUSH_BYTES / size_of::<u32>());
        let scratch = RefCell::new([half()?, half()?]);
        let best = RefCell::default();
        Ok(Self { lt, best, scratch, l2_bytes: usize::try_from(l2_bytes).unwrap_or(0), cuda })
    }

    /// What the program runs on.
    pub(crate) fn describe(&self) -> Result<String> {
        let (found, cublas) = (self.cuda.preflight(), self.cuda.cublas()?);
        Ok(format!("{found}; {cublas}; {}; L2 {:.0} MB", self.lt.describe(), self.l2_bytes as f64 / 1e6))
    }

    /// Enqueues a copy that leaves nothing else in L2, and that lasts long enough for the host to get ahead of the
    /// device: otherwise two events would measure how fast the host enqueues.
    pub(crate) fn flush(&self) -> Result<()> {
        let [from, to] = &mut *self.scratch.borrow_mut();
        Ok(self.cuda.copy(from.view(), to.view_mut())?)
    }

    /// Enqueues `work` between two events.
    pub(crate) fn span(&self, work: impl FnOnce() -> Result<()>) -> Result<Span> {
        let stream = self.cuda.cuda_stream();
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        work()?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        Ok(Span { start, end })
    }

    /// Seconds of a call, from an L2 without its operands.
    fn time(&self, calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
        self.flush()?;
        let span = self.span(|| (0..calls).try_for_each(|_| call()))?;
        Ok(span.seconds()? / calls as f64)
    }

    /// Enqueues a product by the fastest of cuBLASLt's candidates, which are measured when the product is a new one. The
    /// result is then that of several calls.
    pub(crate) fn multiply<T: Element>(&self, mut product: Product<'_, T>) -> Result<()> {
        let key = product.key()?;
        if let Some(plan) = self.best.borrow().get(&key) {
            return self.lt.run(plan, &mut product);
        }
        let plan = self.fastest(&key, &mut product)?;
        self.lt.run(&plan, &mut product)?;
        self.best.borrow_mut().insert(key, plan);
        Ok(())
    }

    fn fastest<T: Element>(&self, key: &Key, product: &mut Product<'_, T>) -> Result<Plan> {
        let mut timed = Vec::new();
        let mut refusal = None;
        for plan in self.lt.plans(product)? {
            // The first call loads the kernel. Some candidates are refused only here.
            match self.lt.run(&plan, product) {
                Ok(()) => {}
                Err(error @ Error::Lt { .. }) => {
                    refusal = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            }
            let once = self.time(1, || self.lt.run(&plan, product))?;
            // About a millisecond, as the span of a few microseconds is nothing to rely on.
            let calls = (1e-3 / once.max(1e-6)).clamp(1.0, 32.0) as usize;
            let seconds = if calls == 1 { once } else { self.time(calls, || self.lt.run(&plan, product))? };
            timed.push((seconds, calls, plan));
        }
        timed.sort_by(|a, b| a.0.total_cmp(&b.0));
        timed.truncate(FINALISTS);
        let mut rounds = vec![Vec::new(); timed.len()];
        for _ in 0..3 {
            for ((_, calls, plan), seconds) in timed.iter().zip(&mut rounds) {
                seconds.push(self.time(*calls, || self.lt.run(plan, product))?);
            }
        }
        let medians = rounds.iter().map(|seconds| median(seconds));
        let best = medians.zip(timed).min_by(|a, b| a.0.total_cmp(&b.0));
        match (best, refusal) {
            (Some((_, (_, _, plan))), _) => Ok(plan),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::NoAlgorithm(key.to_string())),
        }
    }

    /// Bytes a second, read and written, of a copy on the device.
    pub(crate) fn copy_rate(&self) -> Result<f64> {
        let cols = COPY_BYTES / size_of::<u32>();
        let (from, mut to) = (self.cuda.zeros::<u32>(1, cols)?, self.cuda.zeros::<u32>(1, cols)?);
        let mut seconds = Vec::new();
        for _ in 0..5 {
            seconds.push(self.time(2, || Ok(self.cuda.copy(from.view(), to.view_mut())?))?);
        }
        Ok(2.0 * COPY_BYTES as f64 / median(&seconds))
    }

    /// The best rate of cuBLASLt on square matrices, after `warm_up` seconds of it.
    pub(crate) fn peak<T: Element>(&self, precision: Precision, warm_up: f64) -> Result<Peak> {
        let noise = Noise::<T>::new(&self.cuda, 1.0)?;
        let (a, b) = (
            noise.matrix(&self.cuda, PEAK_EDGE, PEAK_EDGE)?,
            noise.matrix(&self.cuda, PEAK_EDGE, PEAK_EDGE)?,
        );
        let mut c = self.cuda.zeros::<T>(PEAK_EDGE, PEAK_EDGE)?;
        let mut call = || {
            let (a, b) = ((a.view(), Op::N), (b.view(), Op::N));
            self.multiply(Product { a, b, c: c.view_mut(), add: false, precision })
        };
        call()?;
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < warm_up {
            self.time(8, &mut call)?;
        }
        let mut seconds = Vec::new();
        for _ in 0..5 {
            seconds.push(self.time(4, &mut call)?);
        }
        let flops_per_second = 2.0 * (PEAK_EDGE as f64).powi(3) / median(&seconds);
        Ok(Peak { kind: kind(T::DTYPE, precision), flops_per_second })
    }

    /// Bytes of device memory that nobody uses.
    pub(crate) fn free_bytes(&self) -> Result<usize> {
        self.cuda.synchronize()?;
        Ok(self.cuda.memory()?.0)
    }

    /// A copy of a row on the host.
    pub(crate) fn row<T: Element>(&self, matrix: MatRef<'_, T, CudaMemory>, row: usize) -> Result<Vec<f32>> {
        let host = self.cuda.download(matrix.sub(row..row + 1, 0..matrix.cols())?)?;
        let mut wide = vec![0.0; matrix.cols()];
        T::widen(host.view().row(0).unwrap_or_default(), &mut wide);
        Ok(wide)
    }
}
