//! Workspace of a handle: grows, is reused, and is never shared between two calls at a time.

use std::sync::{Arc, Mutex, PoisonError};

use swiglu_core::{Error, Result};

/// A block of floats on a cache line boundary.
#[derive(Debug, Default)]
pub(crate) struct Block {
    floats: Vec<f32>,
}

impl Block {
    /// 64 bytes, so that vector loads of packed panels never straddle two lines.
    const LINE: usize = 16;

    /// Makes room for `len` floats.
    pub(crate) fn grow(&mut self, len: usize) -> Result<()> {
        let needed = len + Self::LINE;
        if self.floats.len() < needed {
            let more = needed - self.floats.len();
            let bytes = needed * size_of::<f32>();
            self.floats.try_reserve_exact(more).map_err(|_| Error::OutOfMemory { bytes })?;
            self.floats.resize(needed, 0.0);
        }
        Ok(())
    }

    /// The first `len` floats; contents are whatever the last call left.
    pub(crate) fn floats(&mut self, len: usize) -> &mut [f32] {
        let skip = self.floats.as_ptr().align_offset(Self::LINE * size_of::<f32>()).min(Self::LINE);
        &mut self.floats[skip..skip + len]
    }
}

/// Floats that a call works in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// Of each task.
    pub(crate) task: usize,
    /// That all tasks of a product read.
    pub(crate) shared: usize,
    /// That live for the whole call.
    pub(crate) call: usize,
}

impl Space {
    pub(crate) fn of_task(task: usize) -> Self {
        Self { task, ..Self::default() }
    }

    pub(crate) fn of_call(call: usize) -> Self {
        Self { call, ..Self::default() }
    }

    /// Enough for either of two products, one after the other.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            task: self.task.max(other.task),
            shared: self.shared.max(other.shared),
            call: self.call.max(other.call),
        }
    }

    /// Bytes of it on so many threads.
    pub(crate) fn bytes(self, threads: usize) -> usize {
        (threads * self.task + self.shared + self.call) * size_of::<f32>()
    }
}

/// What one call works in.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// Packed panels and accumulators, one block for each thread. A lock is held by the one task that works in the
    /// block, and never across a call into rayon.
    tasks: Vec<Mutex<Block>>,
    /// Panels that all tasks of a product read. The lock is held by the product, and products of a call run one after the
    /// other.
    shared: Mutex<Block>,
    /// Floats that live for the whole call.
    call: Block,
}

impl Workspace {
    /// Makes room for a call on `threads` threads.
    pub(crate) fn grow(&mut self, threads: usize, space: Space) -> Result<()> {
        if self.tasks.len() < threads {
            let bytes = threads * size_of::<Mutex<Block>>();
            self.tasks.try_reserve(threads - self.tasks.len()).map_err(|_| Error::OutOfMemory { bytes })?;
            self.tasks.resize_with(threads, Mutex::default);
        }
        for task in &mut self.tasks[..threads] {
            task.get_mut().unwrap_or_else(PoisonError::into_inner).grow(space.task)?;
        }
        self.shared.get_mut().unwrap_or_else(PoisonError::into_inner).grow(space.shared)?;
        self.call.grow(space.call)
    }

    /// What products work in, and the call's floats.
    pub(crate) fn parts(&mut self, call_len: usize) -> (Tasks<'_>, &mut [f32]) {
        (Tasks { own: &self.tasks, shared: &self.shared }, self.call.floats(call_len))
    }
}

/// Blocks for tasks to work in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tasks<'a> {
    own: &'a [Mutex<Block>],
    shared: &'a Mutex<Block>,
}

impl Tasks<'_> {
    /// Runs a task in a free block. There are as many blocks as threads and a task never waits for another, so one is
    /// always free; should a caller run more tasks than that, they queue at the first block.
    pub(crate) fn with<R>(self, len: usize, task: impl FnOnce(&mut [f32]) -> R) -> R {
        let free = self.own.iter().find_map(|block| block.try_lock().ok());
        let mut block = free.unwrap_or_else(|| self.own[0].lock().unwrap_or_else(PoisonError::into_inner));
        task(block.floats(len))
    }

    /// Runs a product whose tasks share `len` floats.
    pub(crate) fn sharing<R>(self, len: usize, product: impl FnOnce(&mut [f32]) -> R) -> R {
        product(self.shared.lock().unwrap_or_else(PoisonError::into_inner).floats(len))
    }
}

/// The workspaces of a handle and its clones. As many as calls that ever ran at the same time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arena {
    idle: Arc<Mutex<Vec<Workspace>>>,
}

impl Arena {
    /// Runs a call in a workspace of its own.
    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut Workspace) -> Result<R>) -> Result<R> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = idle.unwrap_or_default();
        let result = call(&mut workspace);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_keep_their_size() {
        let mut block = Block::default();
        for len in [1, 100, 50] {
            block.grow(len).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(block.floats(len).as_ptr().addr() % 64, 0, "alignment");
        }
    }

    #[test]
    fn an_impossible_size_is_an_error_and_the_arena_still_works() {
        let arena = Arena::default();
        let failed = arena.with(|workspace| workspace.grow(1, Space::of_task(isize::MAX as usize / 8)));
        assert!(matches!(failed, Err(Error::OutOfMemory { .. })), "{failed:?}");
        assert!(
            arena.with(|workspace| workspace.grow(2, Space { task: 100, shared: 10, call: 100 })).is_ok(),
            "after recovery"
        );
    }
}
