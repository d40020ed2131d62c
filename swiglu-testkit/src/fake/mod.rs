//! A fake device: memory of its own that the host cannot address, handles bound to a stream, faults that surface
//! late. What a test needs of a GPU where there is none.
//!
//! It computes nothing: each launch copies its operands to the host, strides included, calls an engine there through
//! the public checked methods, and copies the results back. So `Fake<E>` gives the bits of `E`.

mod dense;
mod fault;
mod memory;
mod slip;
mod staged;

use swiglu_core::ops::{Backward, Copy, CopyIn, CopyOut, Forward};
use swiglu_core::{
    Backend, Checked, DeviceId, Element, Error, Gradients, Host, Matrix, Out, Plan, Problem, Result, Save,
    Saved, Scalar, StreamId, SwiGLU,
};

pub use fault::Fault;
pub use memory::{FakeBlock, FakeMemory, FakePtr};
pub use slip::Slip;

use fault::Faults;
use staged::{Staged, StagedHalves, StagedTarget, StagedUpstream, StagedWeights};

/// A handle on one fake device and one stream of it.
///
/// ```
/// use swiglu_core::{Backend, Error};
/// use swiglu_testkit::{Fake, Fault, Naive};
///
/// let fake = Fake::new(Naive::new(), 0);
/// fake.inject(Fault::Launch);
/// let host = Naive::new().zeros::<f32>(2, 2)?;
/// let matrix = fake.upload(&host)?; // enqueued, and fails on the device
/// assert!(matches!(fake.synchronize(), Err(Error::Device(_))));
/// assert!(matches!(fake.download(&matrix), Err(Error::Device(_))));
/// # Ok::<(), swiglu_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Fake<E> {
    engine: E,
    ordinal: u32,
    stream: StreamId,
    faults: Faults,
    slip: Option<Slip>,
}

impl<E: Backend<Memory = Host>> Fake<E> {
    /// Stream 1 of the device with this ordinal, computing by `engine`. Each call makes a device with a health of its
    /// own; two of one ordinal share an address space.
    pub fn new(engine: E, ordinal: u32) -> Self {
        Self { engine, ordinal, stream: StreamId::new(1), faults: Faults::default(), slip: None }
    }

    /// Another stream of the same device: another handle. Stream 0 is that of memory bound to no stream.
    #[must_use]
    pub fn on_stream(&self, stream: u64) -> Self {
        Self { stream: StreamId::new(stream), ..self.clone() }
    }

    /// With a bug in how it accesses memory.
    #[must_use]
    pub fn with_slip(self, slip: Slip) -> Self {
        Self { slip: Some(slip), ..self }
    }

    /// Makes the device fail; every handle on it, on every stream, notices.
    pub fn inject(&self, fault: Fault) {
        self.faults.inject(fault);
    }

    /// Whether an injected [`Fault::Allocation`] has not come to pass yet: how a loop over n-th failures ends.
    pub fn allocation_fault_pending(&self) -> bool {
        self.faults.allocation_pending()
    }

    /// Blocks alive on devices of this ordinal, for leak tests.
    pub fn live_blocks(&self) -> usize {
        memory::live(self.device())
    }

    /// Runs `work` unless the device has failed; a failed launch changes nothing and says nothing.
    fn launch(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.faults.launch()? { work() } else { Ok(()) }
    }
}

impl<E: Backend<Memory = Host>> Backend for Fake<E> {
    type Memory = FakeMemory;

    fn name(&self) -> String {
        let slip = self.slip.map_or(String::new(), |slip| format!(" with {slip:?}"));
        format!("fake {} over {}{slip}", self.ordinal, self.engine.name())
    }

    fn device(&self) -> DeviceId {
        DeviceId::new(self.ordinal)
    }

    fn stream(&self) -> StreamId {
        self.stream
    }

    fn zeros<T: Scalar>(&self, rows: usize, cols: usize) -> Result<Matrix<T, FakeMemory>> {
        self.faults.allocate(rows.saturating_mul(cols).saturating_mul(size_of::<T>()))?;
        Matrix::from_owned(FakeBlock::zeros(rows, cols, self.device(), self.stream)?, rows, cols)
    }

    fn synchronize(&self) -> Result<()> {
        self.faults.synchronize()
    }

    fn reserve(&self, plan: &Plan) -> Result<()> {
        self.engine.reserve(plan)
    }

    fn run_copy<T: Scalar>(&self, call: Checked<Copy<'_, T, FakeMemory>>) -> Result<()> {
        let Copy { from, to } = call.into_inner();
        self.launch(|| {
            let mut staged = Staged::read(to.view(), None)?;
            self.engine.copy(Staged::read(from, None)?.view()?, staged.view_mut()?)?;
            staged.write(to)
        })
    }

    fn run_copy_in<T: Scalar>(&self, call: Checked<CopyIn<'_, T, FakeMemory>>) -> Result<()> {
        let CopyIn { from, to } = call.into_inner();
        self.launch(|| {
            let mut staged = Staged::read(to.view(), None)?;
            self.engine.copy_in(from, staged.view_mut()?)?;
            staged.write(to)
        })
    }

    fn run_copy_out<T: Scalar>(&self, call: Checked<CopyOut<'_, T, FakeMemory>>) -> Result<()> {
        let CopyOut { from, to } = call.into_inner();
        self.faults.synchronize()?;
        self.engine.copy_out(Staged::read(from, None)?.view()?, to)
    }
}

impl<T: Element, E: SwiGLU<T, Memory = Host>> SwiGLU<T> for Fake<E> {
    fn run_forward(&self, call: Checked<Forward<'_, T, FakeMemory>>) -> Result<()> {
        let Forward { problem, x, w, z, pre } = call.into_inner();
        self.launch(|| {
            let (host_x, host_w) = (Staged::read(x, self.slip)?, StagedWeights::read(w, self.slip)?);
            let mut host_z = Staged::read(z.view(), self.slip)?;
            let (x_view, w_view, options) = (host_x.view()?, host_w.weights()?, problem.options);
            match pre {
                None => self.engine.forward_into(x_view, w_view, host_z.view_mut()?, options)?,
                Some(pre) => {
                    let mut saved = self.engine.saved(Save::PreActivations, x.rows(), w.hidden())?;
                    let z_view = host_z.view_mut()?;
                    self.engine.forward_train_into(x_view, w_view, z_view, &mut saved, options)?;
                    let mut host_pre = Staged::read(pre.view(), self.slip)?;
                    if let Some(values) = saved.pre_activations() {
                        self.engine.copy_in(values, host_pre.view_mut()?)?;
                    }
                    pre.ptr().keep(saved)?;
                    host_pre.write(pre)?;
                }
            }
            if self.slip == Some(Slip::ModifiesInput) && x.layout().span() > 0 {
                let mut scratch = Staged::read(x, None)?;
                scratch.view_mut()?.array_mut().fill(T::default());
                scratch.write_at(x.ptr())?;
            }
            host_z.write(z)
        })
    }

    fn run_backward(&self, call: Checked<Backward<'_, T, FakeMemory>>) -> Result<()> {
        let Backward { problem, x, w, upstream, pre, dx, dwf, dbias } = call.into_inner();
        self.launch(|| {
            let slip = self.slip;
            let (host_x, host_w) = (Staged::read(x, slip)?, StagedWeights::read(w, slip)?);
            let host_upstream = StagedUpstream::read(upstream, slip)?;
            let (x_view, w_view, options) = (host_x.view()?, host_w.weights()?, problem.options);
            let mut saved = match &pre {
                Some(pre) => self.saved_at(pre.ptr())?,
                None => {
                    let mut saved = self.engine.saved(Save::Input, x.rows(), w.hidden())?;
                    let mut z = self.engine.zeros(x.rows(), w.hidden())?;
                    self.engine.forward_train_into(x_view, w_view, z.view_mut(), &mut saved, options)?;
                    saved
                }
            };
            let mut host_dx = match &dx {
                Some(dx) => Some((Staged::read(dx.to.view(), slip)?, dx.add)),
                None => None,
            };
            let mut host_dwf = dwf.as_ref().map(|dwf| StagedHalves::read(dwf, slip)).transpose()?;
            let mut host_dbias = dbias.as_ref().map(|dbias| StagedTarget::read(dbias, slip)).transpose()?;
            let mut gradients = Gradients::new();
            if let Some((staged, add)) = &mut host_dx {
                gradients = gradients.dx(Out { to: staged.view_mut()?, add: *add });
            }
            if let Some(staged) = &mut host_dwf {
                gradients = gradients.dwf_split(staged.gate.target()?, staged.up.target()?);
            }
            if let Some(staged) = &mut host_dbias {
                gradients = gradients.dbias(staged.target()?);
            }
            let upstream = host_upstream.upstream()?;
            self.engine.backward(x_view, w_view, upstream, &mut saved, gradients, options)?;
            if let (Some((staged, _)), Some(dx)) = (host_dx, dx) {
                staged.write(dx.to)?;
            }
            if let (Some(staged), Some(dwf)) = (host_dwf, dwf) {
                staged.write(dwf)?;
            }
            if let (Some(staged), Some(dbias)) = (host_dbias, dbias) {
                staged.write(dbias)?;
            }
            Ok(())
        })
    }

    fn plan(&self, problem: &Problem) -> Result<Plan> {
        Ok(self.engine.plan(problem)?.note("operands and results are copied through the host"))
    }
}

impl<E: Backend<Memory = Host>> Fake<E> {
    /// What the engine saved in the forward that filled the block at `pre`. Only an engine's own forward can arm a
    /// [`Saved`], so it stays with the block.
    fn saved_at<T: Element>(&self, pre: FakePtr<T>) -> Result<Saved<T, Host>> {
        pre.take().ok_or_else(|| Error::Device("no forward has filled these pre-activations".into()))
    }
}
