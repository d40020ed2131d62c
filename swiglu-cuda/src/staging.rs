//! Copies between host and device.
//!
//! Data goes to the device through page-locked buffers: the caller's memory is free again when a copy returns, and the
//! copy itself runs in stream order. Data comes back directly, and has arrived when the call returns.

use std::ptr::NonNull;

use cudarc::driver::sys::{self, CUevent_flags_enum};
use cudarc::driver::{CudaEvent, DriverError};
use swiglu_core::{Host, MatMut, MatRef, Memory, Result, Scalar};

use crate::launch::{End, RowCopy, Side, Stream};
use crate::memory::{CudaMemory, CudaPtr};

/// Two of these let the host fill one while the other is on its way. 1 MiB takes 20 us over PCIe 5, several times the
/// cost of a call.
const CHUNK: usize = 1 << 20;

/// Page-locked buffers of one stream.
pub(crate) struct Staging {
    chunks: Vec<Chunk>,
    next: usize,
}

struct Chunk {
    memory: NonNull<u8>,
    /// When the last copy from here is done.
    free: CudaEvent,
}

// SAFETY: page-locked memory belongs to the process, and a `Chunk` is the only owner of its block.
unsafe impl Send for Chunk {}

impl Drop for Chunk {
    fn drop(&mut self) {
        // A failure, of this or of the next call, means that the context is lost, and the memory with it.
        let _ = self.free.synchronize();
        // SAFETY: the block came from cuMemAllocHost and is freed once; the event says that no copy reads it any more.
        let _ = unsafe { sys::cuMemFreeHost(self.memory.as_ptr().cast()) };
    }
}

impl Chunk {
    fn new(stream: &Stream) -> Result<Self> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: the out-pointer is to a live local; `bind` made the context current.
        let code = unsafe { sys::cuMemAllocHost_v2(&raw mut memory, CHUNK) };
        stream.done("cuMemAllocHost", code.result())?;
        let event = stream.raw().context().new_event(Some(CUevent_flags_enum::CU_EVENT_DISABLE_TIMING));
        let free = match event {
            Ok(event) => event,
            Err(DriverError(code)) => {
                // SAFETY: allocated above, and nobody else has seen it.
                let _ = unsafe { sys::cuMemFreeHost(memory) };
                return Err(stream
                    .done("cuEventCreate", Err(DriverError(code)))
                    .err()
                    .unwrap_or_else(|| swiglu_core::Error::OutOfMemory { bytes: CHUNK }));
            }
        };
        match NonNull::new(memory.cast()) {
            Some(memory) => Ok(Self { memory, free }),
            None => Err(swiglu_core::Error::OutOfMemory { bytes: CHUNK }),
        }
    }
}

impl Staging {
    /// Nothing is allocated before the first copy.
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new(), next: 0 }
    }

    /// A chunk that no copy reads any more.
    fn chunk(&mut self, stream: &Stream) -> Result<&mut Chunk> {
        if self.chunks.len() < 2 {
            self.chunks.push(Chunk::new(stream)?);
        }
        self.next = (self.next + 1) % self.chunks.len();
        let chunk = &mut self.chunks[self.next];
        stream.done("cuEventSynchronize", chunk.free.synchronize())?;
        Ok(chunk)
    }

    /// Enqueues a copy of a host matrix.
    pub(crate) fn copy_in<T: Scalar>(
        &mut self,
        stream: &Stream,
        from: MatRef<'_, T, Host>,
        to: &MatMut<'_, T, CudaMemory>,
    ) -> Result<()> {
        let row_bytes = from.cols() * size_of::<T>();
        let to = end::<T>(to.ptr(), to.row_stride());
        if from.rows() == 0 || row_bytes == 0 {
            return Ok(());
        }
        stream.bind()?;
        let rows_at_once = CHUNK / row_bytes;
        let mut row = 0;
        while row < from.rows() {
            if rows_at_once > 0 {
                let rows = rows_at_once.min(from.rows() - row);
                self.rows(stream, from, row, rows, to.row(row))?;
                row += rows;
            } else {
                self.long_row(stream, bytes_of(from.row(row).unwrap_or_default()), to.row(row))?;
                row += 1;
            }
        }
        Ok(())
    }

    /// Enqueues a copy of as many rows as fit into a chunk.
    fn rows<T: Scalar>(
        &mut self,
        stream: &Stream,
        from: MatRef<'_, T, Host>,
        first: usize,
        rows: usize,
        to: End,
    ) -> Result<()> {
        let chunk = self.chunk(stream)?;
        let bytes = from.cols() * size_of::<T>();
        for row in 0..rows {
            chunk.fill(row * bytes, bytes_of(from.row(first + row).unwrap_or_default()));
        }
        chunk.send(stream, to, rows, bytes)
    }

    /// Enqueues copies of the parts of a row that is longer than a chunk.
    fn long_row(&mut self, stream: &Stream, row: &[u8], to: End) -> Result<()> {
        for (index, part) in row.chunks(CHUNK).enumerate() {
            let chunk = self.chunk(stream)?;
            chunk.fill(0, part);
            let to = End { address: to.address + (index * CHUNK) as u64, ..to };
            chunk.send(stream, to, 1, part.len())?;
        }
        Ok(())
    }
}

impl Chunk {
    /// Copies `bytes` to `offset`; callers keep `offset + bytes.len()` within a chunk.
    fn fill(&mut self, offset: usize, bytes: &[u8]) {
        debug_assert!(offset + bytes.len() <= CHUNK, "{offset} + {} bytes do not fit", bytes.len());
        // SAFETY: the chunk has CHUNK bytes (`rows_at_once` and `chunks` keep within), nobody else accesses it (`&mut`,
        // and the event was waited for).
        unsafe { self.memory.as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Enqueues the copy of the first `rows` rows of `bytes` bytes.
    fn send(&mut self, stream: &Stream, to: End, rows: usize, bytes: usize) -> Result<()> {
        let from = End { side: Side::Host, address: self.memory.as_ptr() as u64, stride: bytes };
        // SAFETY: the chunk stays valid, and unchanged until its event is reached: see `Staging::chunk` and `drop`.
        let copied = unsafe { stream.copy(&RowCopy { from, to, rows, bytes }) };
        // Even after a failure part of the copy may be under way.
        let recorded = stream.done("cuEventRecord", self.free.record(stream.raw()));
        copied.and(recorded)
    }
}

/// The bytes of a row. Scalars have no padding.
fn bytes_of<T: Scalar>(row: &[T]) -> &[u8] {
    // SAFETY: `Scalar` is sealed to f32, f16, bf16 and u32, of which each byte is initialised; the length is that of
    // the slice.
    unsafe { std::slice::from_raw_parts(row.as_ptr().cast(), size_of_val(row)) }
}

/// A matrix as an end of a copy.
fn end<T: Scalar>(ptr: CudaPtr, row_stride: usize) -> End {
    End { side: Side::Device, address: ptr.address(), stride: row_stride * size_of::<T>() }
}

/// Enqueues a copy within the device.
pub(crate) fn copy<T: Scalar>(
    stream: &Stream,
    from: MatRef<'_, T, CudaMemory>,
    to: &MatMut<'_, T, CudaMemory>,
) -> Result<()> {
    stream.bind()?;
    let (rows, bytes) = (from.rows(), from.cols() * size_of::<T>());
    let (from, to) = (end::<T>(from.ptr(), from.row_stride()), end::<T>(to.ptr(), to.row_stride()));
    // SAFETY: no end is on the host.
    unsafe { stream.copy(&RowCopy { from, to, rows, bytes }) }
}

/// Copies a device matrix into a host matrix, and waits for it.
pub(crate) fn copy_out<T: Scalar>(
    stream: &Stream,
    from: MatRef<'_, T, CudaMemory>,
    to: MatMut<'_, T, Host>,
) -> Result<()> {
    let bytes = from.cols() * size_of::<T>();
    if from.rows() == 0 || bytes == 0 {
        return stream.synchronize();
    }
    stream.bind()?;
    let stride = to.row_stride() * size_of::<T>();
    let address = Host::place(to.ptr()).address;
    let rows = RowCopy {
        from: end::<T>(from.ptr(), from.row_stride()),
        to: End { side: Side::Host, address, stride },
        rows: from.rows(),
        bytes,
    };
    // SAFETY: `to` is borrowed until this function returns, which is after the copy: it waits below, on failure too.
    let copied = unsafe { stream.copy(&rows) };
    let waited = stream.synchronize();
    copied.and(waited)
}
