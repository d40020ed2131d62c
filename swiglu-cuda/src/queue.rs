//! A handle's stream, and what calls on it share. One call at a time enqueues: the workspace of one call is free for
//! the next only in stream order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use swiglu_core::Result;

use crate::arena::Arena;
use crate::cublas::{Handle, workspace_bytes};
use crate::device::{Device, Facts};
use crate::error::CudaError;
use crate::hopper::Boxed;
use crate::kernel::{Grid, Kernel};
use crate::launch::{Stream, allocate};
use crate::memory::{Block, stream_id};
use crate::params::{KernelParams, TensorMap};
use crate::parking::ParkingLot;
use crate::staging::Staging;

/// A stream of a device.
pub(crate) struct Queue {
    pub(crate) device: Arc<Device>,
    pub(crate) stream: Stream,
    pub(crate) lot: Arc<ParkingLot>,
    shared: Mutex<Shared>,
}

struct Shared {
    arena: Arena,
    staging: Staging,
    /// A zero that kernels count their blocks with, and leave as a zero.
    ticket: Option<Block<u32>>,
    /// From the first product on that goes through cuBLAS.
    cublas: Option<Handle>,
}

impl Queue {
    pub(crate) fn new(device: Arc<Device>, stream: Stream) -> Self {
        let lot = device.lot(stream_id(stream.raw()));
        let shared = Shared { arena: Arena::default(), staging: Staging::new(), ticket: None, cublas: None };
        Self { device, stream, lot, shared: Mutex::new(shared) }
    }

    pub(crate) fn capturing(&self) -> bool {
        self.lot.capturing()
    }

    /// An error while a graph is being captured.
    pub(crate) fn outside_capture(&self, what: &'static str) -> Result<()> {
        if self.capturing() { Err(CudaError::NotWarm { what }.into()) } else { Ok(()) }
    }

    /// Begins a call that needs `workspace_bytes`.
    pub(crate) fn call(&self, workspace_bytes: usize) -> Result<Call<'_>> {
        let mut shared = self.shared();
        self.stream.bind()?;
        shared.arena.grow(&self.stream, &self.lot, workspace_bytes, self.capturing())?;
        let workspace = shared.arena.start().unwrap_or_default();
        Ok(Call { queue: self, shared, workspace })
    }

    /// Runs a copy from the host.
    pub(crate) fn with_staging(&self, copy: impl FnOnce(&mut Staging) -> Result<()>) -> Result<()> {
        copy(&mut self.shared().staging)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue {
    /// A graph that another handle on the stream captured may still use what calls on this one did.
    fn drop(&mut self) {
        let shared = self.shared.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = shared.arena.take() {
            self.lot.free(block);
        }
        if let Some(handle) = shared.cublas.take() {
            self.lot.free(handle);
        }
    }
}

/// A call that is being enqueued.
pub(crate) struct Call<'q> {
    queue: &'q Queue,
    shared: MutexGuard<'q, Shared>,
    workspace: u64,
}

impl Call<'_> {
    /// What is known of the device.
    pub(crate) fn facts(&self) -> &Facts {
        &self.queue.device.facts
    }

    /// The address of a part of the workspace.
    pub(crate) fn at(&self, offset: usize) -> u64 {
        self.workspace + offset as u64
    }

    /// Fills a part of the workspace with zeros.
    pub(crate) fn clear(&self, offset: usize, bytes: usize) -> Result<()> {
        self.queue.stream.clear(self.at(offset), bytes)
    }

    /// Fills rows of a part of the workspace with zeros, so many bytes in each, which are `pitch` apart.
    pub(crate) fn clear_rows(&self, offset: usize, rows: (usize, usize), pitch: usize) -> Result<()> {
        self.queue.stream.clear_rows(self.at(offset), rows, pitch)
    }

    /// Starts a kernel on a matrix of `rows` by `cols`.
    pub(crate) fn launch_on<P: KernelParams>(
        &self,
        kernel: Kernel,
        rows: i64,
        cols: i64,
        params: &P,
    ) -> Result<()> {
        self.launch(kernel, kernel.grid(rows as u64, cols as u64, &self.queue.device.facts), params)
    }

    /// Starts a kernel with `depth` copies of the grid for a matrix.
    pub(crate) fn launch_copies<P: KernelParams>(
        &self,
        kernel: Kernel,
        (rows, cols, depth): (i64, i64, u32),
        params: &P,
    ) -> Result<()> {
        let grid = kernel.grid(rows as u64, cols as u64, &self.queue.device.facts);
        self.launch(kernel, Grid { depth, ..grid }, params)
    }

    /// What TMA needs to know of a matrix.
    pub(crate) fn tensor_map(&self, boxed: &Boxed) -> Result<TensorMap> {
        self.queue.stream.tensor_map(boxed)
    }

    /// Starts a kernel.
    pub(crate) fn launch<P: KernelParams>(&self, kernel: Kernel, grid: Grid, params: &P) -> Result<()> {
        let Queue { device, stream, .. } = self.queue;
        let function = device.function(kernel, self.queue.capturing())?;
        stream.launch(&kernel, (function, kernel.shared_bytes(&device.facts)), grid, params)
    }

    /// cuBLAS on this stream.
    pub(crate) fn cublas(&mut self) -> Result<&mut Handle> {
        let Queue { device, stream, .. } = self.queue;
        let handle = match self.shared.cublas.take() {
            Some(handle) => handle,
            None => {
                self.queue.outside_capture("cuBLAS had to be set up")?;
                Handle::new(device.cublas()?, stream, workspace_bytes(device.facts.capability))?
            }
        };
        Ok(self.shared.cublas.insert(handle))
    }

    /// The address of a counter that is zero between kernels.
    pub(crate) fn ticket(&mut self) -> Result<u64> {
        if let Some(ticket) = &self.shared.ticket {
            return Ok(ticket.start().address());
        }
        self.queue.outside_capture("a counter had to be allocated")?;
        let stream = &self.queue.stream;
        let slice = crate::launch::retype::<u32>(stream, allocate(stream, size_of::<u32>())?, 1);
        let ticket = Block::new(slice, self.queue.lot.clone());
        let address = ticket.start().address();
        stream.clear(address, size_of::<u32>())?;
        self.shared.ticket = Some(ticket);
        Ok(address)
    }
}
