//! A device, its memory, and how data gets in and out.

use std::fmt;

use crate::checked::Checked;
use crate::element::Scalar;
use crate::error::{Error, Result};
use crate::footprint::Footprints;
use crate::host::Host;
use crate::memory::{DeviceId, MatMut, MatRef, Matrix, Memory, StreamId};
use crate::ops::{Copy, CopyIn, CopyOut};
use crate::problem::Plan;

/// Calls that were captured on a stream: see [`Backend::capture`].
pub trait Replay: Send {
    /// Enqueues all of them, on the same operands.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn launch(&mut self) -> Result<()>;
}

/// A handle on one device and one stream of it. Cheap to clone; another stream is another handle.
///
/// No element type: one handle serves buffers of every [`Scalar`]. Methods that start with `run_` are a backend's side
/// of the contract; call the ones without.
pub trait Backend: Clone + fmt::Debug {
    /// The address space.
    type Memory: Memory;

    /// What runs, for reports: `cpu-avx512 (2 threads)`.
    fn name(&self) -> String;

    /// The device.
    fn device(&self) -> DeviceId;

    /// The stream. Matrices of another stream are refused.
    fn stream(&self) -> StreamId {
        StreamId::NONE
    }

    /// A zeroed matrix.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::OutOfMemory`], [`Error::Device`].
    fn zeros<T: Scalar>(&self, rows: usize, cols: usize) -> Result<Matrix<T, Self::Memory>>;

    /// Waits until everything enqueued is done, and reports what failed.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn synchronize(&self) -> Result<()>;

    /// Makes room for a call of this plan, so that the call itself allocates nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn reserve(&self, plan: &Plan) -> Result<()> {
        let _ = plan;
        Ok(())
    }

    /// Captures what `work` enqueues, without running it, to be enqueued at once as often as one likes. `None`, with
    /// `work` not called, on a device that has no such thing: make the calls again instead.
    ///
    /// Every call in `work` must have been made once before, with operands of the same shapes.
    ///
    /// ```
    /// use swiglu_core::Backend;
    /// use swiglu_cpu::Cpu;
    /// assert!(Cpu::new().capture(|| unreachable!("a CPU captures nothing"))?.is_none());
    /// # Ok::<(), swiglu_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `work` returns; [`Error::Device`] when a call had to compile, allocate or wait.
    fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        let _ = work;
        Ok(None)
    }

    /// Copies checked operands on the device.
    #[doc(hidden)]
    fn run_copy<T: Scalar>(&self, call: Checked<Copy<'_, T, Self::Memory>>) -> Result<()>;

    /// Copies checked operands to the device.
    #[doc(hidden)]
    fn run_copy_in<T: Scalar>(&self, call: Checked<CopyIn<'_, T, Self::Memory>>) -> Result<()>;

    /// Copies checked operands from the device, after everything enqueued before.
    #[doc(hidden)]
    fn run_copy_out<T: Scalar>(&self, call: Checked<CopyOut<'_, T, Self::Memory>>) -> Result<()>;

    /// Copies a matrix of the device into another of the same shape.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Overlap`], [`Error::WrongDevice`], [`Error::WrongStream`], [`Error::Device`].
    fn copy<T: Scalar>(
        &self,
        from: MatRef<'_, T, Self::Memory>,
        to: MatMut<'_, T, Self::Memory>,
    ) -> Result<()> {
        same_shape(from.shape(), to.shape())?;
        Footprints::new().reads("source", from).writes("destination", &to).check(self)?;
        self.run_copy(Checked::new(Copy { from, to }))
    }

    /// Copies a host matrix into a matrix of the same shape.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::WrongDevice`], [`Error::WrongStream`], [`Error::Device`].
    fn copy_in<T: Scalar>(&self, from: MatRef<'_, T, Host>, to: MatMut<'_, T, Self::Memory>) -> Result<()> {
        same_shape(from.shape(), to.shape())?;
        Footprints::new().writes("destination", &to).check(self)?;
        self.run_copy_in(Checked::new(CopyIn { from, to }))
    }

    /// Copies a matrix into a host matrix of the same shape; the data has arrived when this returns.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::WrongDevice`], [`Error::WrongStream`], [`Error::Device`].
    fn copy_out<T: Scalar>(&self, from: MatRef<'_, T, Self::Memory>, to: MatMut<'_, T, Host>) -> Result<()> {
        same_shape(from.shape(), to.shape())?;
        Footprints::new().reads("source", from).check(self)?;
        self.run_copy_out(Checked::new(CopyOut { from, to }))
    }

    /// A copy of a host matrix on the device.
    ///
    /// # Errors
    /// As [`zeros`](Backend::zeros) and [`copy_in`](Backend::copy_in).
    fn upload<'a, T: Scalar>(&self, from: impl Into<MatRef<'a, T, Host>>) -> Result<Matrix<T, Self::Memory>> {
        let from = from.into();
        let mut matrix = self.zeros(from.rows(), from.cols())?;
        self.copy_in(from, matrix.view_mut())?;
        Ok(matrix)
    }

    /// A copy of a device matrix on the host.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and as [`copy_out`](Backend::copy_out).
    fn download<'a, T: Scalar>(&self, from: impl Into<MatRef<'a, T, Self::Memory>>) -> Result<Matrix<T, Host>>
    where
        Self::Memory: 'a,
    {
        let from = from.into();
        let mut matrix = Matrix::host_zeros(from.rows(), from.cols())?;
        self.copy_out(from, matrix.view_mut())?;
        Ok(matrix)
    }
}

fn same_shape(from: (usize, usize), to: (usize, usize)) -> Result<()> {
    if from == to { Ok(()) } else { Err(Error::Shape { operand: "destination", expected: from, got: to }) }
}
