//! Memory that the host cannot address: a block is a key into a table of the process.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use swiglu_core::{DeviceId, Error, Host, Matrix, Memory, Place, Result, Scalar, StreamId};

/// Blocks start at multiples of this, so that addresses have the alignment of a GPU's allocator.
const ALIGNMENT: u64 = 256;

/// The address space of fake devices.
#[derive(Debug)]
pub enum FakeMemory {}

/// Owns a block on a fake device, and frees it when dropped.
pub struct FakeBlock<T: Scalar> {
    start: FakePtr<T>,
    len: usize,
}

/// An element of a block on a fake device.
pub struct FakePtr<T> {
    /// Address of the block: its key in the table.
    block: u64,
    offset: usize,
    device: DeviceId,
    stream: StreamId,
    element: PhantomData<T>,
}

impl<T> Clone for FakePtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for FakePtr<T> {}

impl<T> fmt::Debug for FakePtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} + {} on {:?}, {:?}", self.block, self.offset, self.device, self.stream)
    }
}

impl<T: Scalar> fmt::Debug for FakeBlock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeBlock").field("start", &self.start).field("len", &self.len).finish()
    }
}

impl Memory for FakeMemory {
    type Owned<T: Scalar> = FakeBlock<T>;
    type Ptr<T: Scalar> = FakePtr<T>;

    fn len<T: Scalar>(owned: &FakeBlock<T>) -> usize {
        owned.len
    }

    fn ptr<T: Scalar>(owned: &FakeBlock<T>) -> FakePtr<T> {
        owned.start
    }

    fn ptr_mut<T: Scalar>(owned: &mut FakeBlock<T>) -> FakePtr<T> {
        owned.start
    }

    fn offset<T: Scalar>(ptr: FakePtr<T>, elements: usize) -> FakePtr<T> {
        FakePtr { offset: ptr.offset.wrapping_add(elements), ..ptr }
    }

    fn place<T: Scalar>(ptr: FakePtr<T>) -> Place {
        let address = ptr.block.wrapping_add((ptr.offset as u64).wrapping_mul(size_of::<T>() as u64));
        Place { device: ptr.device, stream: ptr.stream, address }
    }
}

/// What the table holds for a block.
struct Entry {
    device: DeviceId,
    /// `Vec<T>`.
    data: Box<dyn Any + Send>,
    /// What the engine keeps for the block on the host; see [`FakePtr::keep`].
    kept: Option<Box<dyn Any + Send>>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<u64, Entry>,
    /// Where the last block ended. Addresses are never used twice, so a stale one is noticed.
    end: u64,
}

static TABLE: Mutex<Table> = Mutex::new(Table { entries: BTreeMap::new(), end: 0 });

/// The table; a panic of another test leaves it usable.
fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unmapped<T>(ptr: FakePtr<T>) -> Error {
    Error::Device(format!("no block at {ptr:?}").into())
}

/// Number of blocks alive on a device.
pub(super) fn live(device: DeviceId) -> usize {
    table().entries.values().filter(|entry| entry.device == device).count()
}

impl<T: Scalar> FakeBlock<T> {
    /// A zeroed block.
    pub(super) fn zeros(rows: usize, cols: usize, device: DeviceId, stream: StreamId) -> Result<Self> {
        let data = Matrix::<T, Host>::host_zeros(rows, cols)?.into_owned();
        let len = data.len();
        let bytes = (len * size_of::<T>()) as u64;
        let mut table = table();
        // One alignment between blocks, so that an access just past one of them hits none.
        let block = (table.end + ALIGNMENT).next_multiple_of(ALIGNMENT);
        table.end = block + bytes;
        table.entries.insert(block, Entry { device, data: Box::new(data), kept: None });
        Ok(Self { start: FakePtr { block, offset: 0, device, stream, element: PhantomData }, len })
    }
}

impl<T: Scalar> Drop for FakeBlock<T> {
    fn drop(&mut self) {
        // Dropped after the lock is gone: what was kept may own blocks itself.
        let entry = table().entries.remove(&self.start.block);
        drop(entry);
    }
}

impl<T: Scalar> FakePtr<T> {
    /// Elements before this one in its block.
    pub(super) fn offset(self) -> usize {
        self.offset
    }

    /// Runs `access` on the elements of the block.
    pub(super) fn with<R>(self, access: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        let mut table = table();
        let entry = table.entries.get_mut(&self.block);
        let data = entry.and_then(|entry| entry.data.downcast_mut::<Vec<T>>());
        data.map(|data| access(data)).ok_or_else(|| unmapped(self))
    }

    /// Keeps something of the engine's with the block, until the block is freed or it is [taken](Self::take).
    pub(super) fn keep<K: Any + Send>(self, kept: K) -> Result<()> {
        let mut table = table();
        let entry = table.entries.get_mut(&self.block).ok_or_else(|| unmapped(self))?;
        entry.kept = Some(Box::new(kept));
        Ok(())
    }

    /// What was kept with the block.
    pub(super) fn take<K: Any + Send>(self) -> Option<K> {
        let kept = table().entries.get_mut(&self.block)?.kept.take()?;
        kept.downcast().ok().map(|kept| *kept)
    }
}
