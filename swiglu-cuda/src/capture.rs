//! Graphs: a sequence of calls, enqueued at once as often as one likes.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, DriverError};
use swiglu_core::{Replay, Result};

use crate::backend::Cuda;
use crate::error::CudaError;
use crate::launch::Captured;
use crate::queue::Queue;

/// Calls that were captured, to be run again by one launch: same operands, same addresses, new contents.
///
/// While it lives, blocks and workspaces of its stream that are dropped or replaced stay allocated, so a run never
/// touches memory of somebody else.
///
/// ```no_run
/// use swiglu_core::{Backend, FusedSwiGLU};
/// use swiglu_cuda::Cuda;
///
/// let cuda = Cuda::new(0)?;
/// let layer = FusedSwiGLU::<f32, _>::init(&cuda, 64, 128, 1)?;
/// let (x, mut z) = (cuda.zeros(8, 64)?, cuda.zeros(8, 128)?);
/// layer.forward_into(x.view(), z.view_mut())?; // warm: compiled, workspace in place
/// let mut graph = cuda.capture(|| layer.forward_into(x.view(), z.view_mut()))?;
/// graph.launch()?;
/// cuda.synchronize()?;
/// # Ok::<(), swiglu_core::Error>(())
/// ```
pub struct Graph {
    graph: Captured,
    queue: Arc<Queue>,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

impl Graph {
    /// Enqueues all of it.
    ///
    /// # Errors
    /// [`Error::Device`](swiglu_core::Error::Device).
    pub fn launch(&mut self) -> Result<()> {
        self.queue.outside_capture("a graph had to be launched")?;
        self.queue.stream.bind()?;
        self.queue.stream.done("cuGraphLaunch", self.graph.0.launch())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.queue.lot.leave();
    }
}

impl Cuda {
    /// Captures what `work` enqueues on this handle, without running it.
    ///
    /// Every call in it must be warm: made once before, so that its kernels are compiled and the workspace is large
    /// enough. [Tuning](Cuda::tune) a shape may change its kernels: a call on a handle that takes what was tuned is to be
    /// made once more after it. Operands that are dropped keep their memory for as long as the graph lives; foreign memory
    /// ([`MatRef::from_raw`](swiglu_core::MatRef::from_raw)) must be kept by its owner.
    ///
    /// # Errors
    /// What `work` returns; [`CudaError::NotWarm`] for a call that had to compile, allocate or copy from or to the host,
    /// and while another capture of this stream is under way; [`CudaError::Capture`] when the driver gives no graph.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let recording = Recording::begin(self.shared_queue())?;
        work()?;
        recording.end()
    }
}

/// A capture under way. Dropped without an end, after an error or a panic, it leaves the stream as it was.
struct Recording {
    queue: Arc<Queue>,
    open: bool,
}

impl Recording {
    fn begin(queue: Arc<Queue>) -> Result<Self> {
        queue.outside_capture("another capture had to begin")?;
        queue.stream.bind()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        queue.stream.done("cuStreamBeginCapture", queue.stream.raw().begin_capture(mode))?;
        queue.lot.set_capturing(true);
        // From now on a dropped block may be one that the graph uses.
        queue.lot.enter();
        Ok(Self { queue, open: true })
    }

    /// The driver's end of the capture.
    fn close(&mut self) -> Result<Option<CudaGraph>, DriverError> {
        self.open = false;
        self.queue.lot.set_capturing(false);
        self.queue.stream.raw().end_capture(CUgraphInstantiate_flags(0))
    }

    fn end(mut self) -> Result<Graph> {
        let ended = self.close();
        let queue = self.queue.clone();
        match ended {
            Ok(Some(graph)) => {
                // On top of the recording's own entry, which ends with it.
                queue.lot.enter();
                Ok(Graph { graph: Captured(graph), queue })
            }
            Ok(None) => Err(CudaError::Capture { reason: "the driver gave no graph" }.into()),
            Err(DriverError(code)) => Err(queue.device.health.failed("cuStreamEndCapture", code)),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.open {
            // What was captured is not wanted, and a failure to say so leaves nothing to be done.
            let _ = self.close();
        }
        self.queue.lot.leave();
    }
}

impl Replay for Graph {
    fn launch(&mut self) -> Result<()> {
        Graph::launch(self)
    }
}

impl Cuda {
    /// Blocks that were dropped while graphs of this handle live, and wait for the last of them.
    pub fn parked(&self) -> usize {
        self.queue().lot.parked()
    }
}
