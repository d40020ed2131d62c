//! The backend: a handle on a thread pool, an instruction set and an arena.

use std::fmt;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use swiglu_core::ops::{Backward, Copy, CopyIn, CopyOut, Forward};
use swiglu_core::{
    Backend, Checked, DeviceId, Error, Host, Matrix, Plan, Problem, Result, Route, Scalar, SwiGLU, bf16, f16,
};

use crate::arena::{Arena, Workspace};
use crate::composed::{ComposedBackward, ComposedForward};
use crate::isa::Isa;
use crate::kernels::{Kernel, KernelVisitor};
use crate::passes::{BackwardPass, ForwardPass};
use crate::plan;

/// Fused SwiGLU on the CPU.
///
/// Runs on the current rayon thread pool unless it was given threads of its own. Clones share both pool and
/// workspace; calls from several threads at a time are fine, each works in a workspace of its own.
///
/// The same call gives the same bits on any number of threads.
///
/// ```
/// use swiglu_core::Backend;
/// use swiglu_cpu::Cpu;
/// let cpu = Cpu::new();
/// let x = cpu.zeros::<f32>(2, 3)?;
/// assert_eq!(cpu.download(&x)?.shape(), (2, 3));
/// # Ok::<(), swiglu_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Cpu {
    /// `None` when `SWIGLU_ISA` names one that cannot run: every call then says so.
    isa: Option<Isa>,
    pool: Option<Arc<ThreadPool>>,
    arena: Arena,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu")
            .field("isa", &self.isa)
            .field("threads", &self.threads())
            .finish_non_exhaustive()
    }
}

impl Cpu {
    /// The best instruction set of this machine, on the current rayon thread pool.
    ///
    /// The environment variable `SWIGLU_ISA` (`portable`, `avx2`, `avx512`, `avx512bf16`, `amx`, `neon`) forces one; if it
    /// cannot run, every call returns [`Error::Unavailable`].
    pub fn new() -> Self {
        Self { isa: Isa::chosen().ok(), pool: None, arena: Arena::default() }
    }

    /// With this instruction set.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the machine does not have it.
    pub fn with_isa(mut self, isa: Isa) -> Result<Self> {
        self.isa = Some(isa.require()?);
        Ok(self)
    }

    /// On `threads` threads of its own; 0 counts as 1.
    ///
    /// # Errors
    /// [`Error::Device`] when they cannot be started.
    pub fn with_threads(mut self, threads: usize) -> Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .build()
            .map_err(|e| Error::Device(e.into()))?;
        self.pool = Some(Arc::new(pool));
        Ok(self)
    }

    /// The instruction set that runs.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when `SWIGLU_ISA` names one that cannot.
    pub fn isa(&self) -> Result<Isa> {
        self.isa.map_or_else(Isa::chosen, Ok)
    }

    /// Threads that a call uses.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }

    /// Runs `job` on the handle's threads, or where we are. Inside of it, calls of this handle start no other threads.
    pub fn install<R: Send>(&self, job: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(job),
            None => job(),
        }
    }

    /// Runs a pass on the handle's threads, with the kernel of its instruction set and a workspace of its own.
    pub(crate) fn run(&self, pass: impl Pass) -> Result<()> {
        let isa = self.isa()?;
        let threads = self.threads();
        self.install(|| self.arena.with(|workspace| isa.dispatch(Run { pass, workspace, threads })))
    }
}

/// A checked call, ready to run.
pub(crate) trait Pass: Send {
    fn run<K: Kernel>(self, kernel: K, workspace: &mut Workspace, threads: usize) -> Result<()>;
}

struct Run<'w, P> {
    pass: P,
    workspace: &'w mut Workspace,
    threads: usize,
}

impl<P: Pass> KernelVisitor for Run<'_, P> {
    type Output = Result<()>;

    fn visit<K: Kernel>(self, kernel: K) -> Result<()> {
        self.pass.run(kernel, self.workspace, self.threads)
    }
}

impl Backend for Cpu {
    type Memory = Host;

    fn name(&self) -> String {
        let isa = self.isa.map_or_else(|| "unavailable".to_owned(), |isa| isa.to_string());
        format!("cpu-{isa} ({} threads)", self.threads())
    }

    fn device(&self) -> DeviceId {
        DeviceId::HOST
    }

    fn zeros<T: Scalar>(&self, rows: usize, cols: usize) -> Result<Matrix<T, Host>> {
        Matrix::host_zeros(rows, cols)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn run_copy<T: Scalar>(&self, call: Checked<Copy<'_, T, Host>>) -> Result<()> {
        let Copy { from, to } = call.into_inner();
        to.array_mut().assign(&from.array());
        Ok(())
    }

    fn run_copy_in<T: Scalar>(&self, call: Checked<CopyIn<'_, T, Host>>) -> Result<()> {
        let CopyIn { from, to } = call.into_inner();
        to.array_mut().assign(&from.array());
        Ok(())
    }

    fn run_copy_out<T: Scalar>(&self, call: Checked<CopyOut<'_, T, Host>>) -> Result<()> {
        let CopyOut { from, to } = call.into_inner();
        to.array_mut().assign(&from.array());
        Ok(())
    }
}

/// One implementation for each element type, not one that is generic: so the kernels are compiled here, once, and not
/// again in every crate that uses them.
macro_rules! swiglu {
    ($($t:ty),*) => {$(
        impl SwiGLU<$t> for Cpu {
            fn run_forward(&self, call: Checked<Forward<'_, $t, Host>>) -> Result<()> {
                let call = call.into_inner();
                match call.problem.options.route {
                    Route::Fused => self.run(ForwardPass(call)),
                    Route::Composed => self.run(ComposedForward(call)),
                }
            }

            fn run_backward(&self, call: Checked<Backward<'_, $t, Host>>) -> Result<()> {
                let call = call.into_inner();
                match call.problem.options.route {
                    Route::Fused => self.run(BackwardPass(call)),
                    Route::Composed => self.run(ComposedBackward(call)),
                }
            }

            fn plan(&self, problem: &Problem) -> Result<Plan> {
                problem.check()?;
                Ok(plan::plan(self.isa()?, self.threads(), problem))
            }
        }
    )*};
}
swiglu!(f32, f16, bf16);
