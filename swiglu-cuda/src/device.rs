//! A device: what all handles on it share. One context, one set of loaded kernels, one state of health.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{CudaContext, DriverError};
use swiglu_core::{Error, Result, StreamId};

use crate::cache::DiskCache;
use crate::compile::{Compiler, Target, cubin};
use crate::cublas::Cublas;
use crate::driver::check_cudarc;
use crate::error::{CudaError, is_sticky};
use crate::health::Health;
use crate::kernel::Kernel;
use crate::launch::Function;
use crate::parking::ParkingLot;
use crate::tune::Tuner;
use crate::{ComputeCapability, Preflight, Search};

/// What planning needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Facts {
    pub(crate) capability: ComputeCapability,
    pub(crate) multiprocessors: u32,
    /// Shared memory that one block can be given, in bytes.
    pub(crate) shared_bytes: u32,
}

/// Devices that tests plan for.
#[cfg(test)]
impl Facts {
    pub(crate) const H100: Self = Self {
        capability: ComputeCapability { major: 9, minor: 0 },
        multiprocessors: 132,
        shared_bytes: 227 * 1024,
    };
    pub(crate) const A100: Self = Self {
        capability: ComputeCapability { major: 8, minor: 0 },
        multiprocessors: 108,
        shared_bytes: 163 * 1024,
    };
}

/// Hashes a [`Kernel`], which nobody picks to collide with others: a multiplication for each field. The standard hasher
/// takes 60 of the 300 ns that a call costs besides the driver.
#[derive(Default)]
struct KernelHasher(u64);

impl Hasher for KernelHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 over the golden ratio: each bit of a field reaches the upper ones, which the rotation brings down.
        self.0 = (self.0.rotate_left(29) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(32)
    }
}

type Loaded = HashMap<Kernel, Function, BuildHasherDefault<KernelHasher>>;

/// A device and its context.
pub(crate) struct Device {
    pub(crate) found: Preflight,
    pub(crate) facts: Facts,
    pub(crate) context: Arc<CudaContext>,
    pub(crate) health: Arc<Health>,
    compiler: Compiler,
    cache: DiskCache,
    pub(crate) tuner: Tuner,
    target: Target,
    /// Kernels that were used, ready to be used again.
    loaded: Mutex<Loaded>,
    /// What graphs ask of each stream that some handle is on.
    lots: Mutex<Vec<(StreamId, Weak<ParkingLot>)>>,
    /// Once it was needed.
    cublas: OnceLock<Arc<Cublas>>,
}

/// Devices that some handle is on.
static DEVICES: Mutex<Vec<(usize, Weak<Device>)>> = Mutex::new(Vec::new());

impl Device {
    /// The device with this ordinal; the one that other handles are on, if there are any.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Self>> {
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let open =
            devices.iter().filter(|(other, _)| *other == ordinal).find_map(|(_, device)| device.upgrade());
        if let Some(device) = open {
            return Ok(device);
        }
        let device = Arc::new(Self::new(ordinal)?);
        devices.retain(|(_, device)| device.strong_count() > 0);
        devices.push((ordinal, Arc::downgrade(&device)));
        Ok(device)
    }

    fn new(ordinal: usize) -> Result<Self> {
        let health = Health::of(ordinal);
        health.check()?;
        let search = Search::system();
        let unavailable = |reason: String| Error::Unavailable { device: format!("cuda:{ordinal}"), reason };
        let found = search.preflight(ordinal).map_err(|reason| unavailable(reason.to_string()))?;
        check_cudarc().map_err(|reason| unavailable(reason.to_string()))?;
        let compiler = Compiler::open(&search).map_err(|reason| unavailable(reason.to_string()))?;
        // A lost context is not a missing device: nobody may take the CPU in its place without being told.
        let start = |DriverError(code)| match is_sticky(code) {
            true => health.failed("cuDevicePrimaryCtxRetain", code),
            false => unavailable(format!("its context could not be made: {code:?}")),
        };
        let context = CudaContext::new(ordinal).map_err(start)?;
        crate::launch::without_events(&context);
        let attribute = |which| context.attribute(which).map(|value| value.max(0) as u32).map_err(start);
        let facts = Facts {
            capability: found.gpu.compute_capability,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        let target = compiler
            .target(facts.capability, found.driver.version)
            .map_err(|reason| unavailable(reason.to_string()))?;
        let cache = DiskCache::from_env();
        let tuner = Tuner::new(&found, facts, &context);
        Ok(Self {
            found,
            facts,
            context,
            health,
            compiler,
            cache,
            tuner,
            target,
            loaded: Mutex::default(),
            lots: Mutex::default(),
            cublas: OnceLock::new(),
        })
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kernel, ready to be launched. Compiles and loads it when it is used for the first time, which a call that is
    /// being captured (`capturing`) must not do.
    pub(crate) fn function(&self, kernel: Kernel, capturing: bool) -> Result<Function> {
        if let Some(&function) = self.loaded().get(&kernel) {
            return Ok(function);
        }
        if capturing {
            return Err(CudaError::NotWarm { what: "a kernel had to be compiled" }.into());
        }
        // Unlocked: two threads that need one kernel at the same time compile it twice, to the same effect.
        let defines = kernel.defines(&self.facts);
        let code = cubin(&self.compiler, &self.cache, kernel.source(), &self.target, &defines)
            .map_err(CudaError::Compile)?;
        let function =
            Function::load(&self.context, &code, kernel.shared_bytes(&self.facts), kernel.fills_shared())
                .map_err(|DriverError(code)| self.health.failed(&format!("loading of {kernel}"), code))?;
        Ok(*self.loaded().entry(kernel).or_insert(function))
    }

    /// The parking lot of a stream; the one of other handles on it, if there are any.
    pub(crate) fn lot(&self, stream: StreamId) -> Arc<ParkingLot> {
        let mut lots = self.lots.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lots.iter().filter(|(other, _)| *other == stream).find_map(|(_, lot)| lot.upgrade());
        known.unwrap_or_else(|| {
            let lot = Arc::<ParkingLot>::default();
            lots.retain(|(_, lot)| lot.strong_count() > 0);
            lots.push((stream, Arc::downgrade(&lot)));
            lot
        })
    }

    /// cuBLAS, looked for until it is found.
    pub(crate) fn cublas(&self) -> Result<Arc<Cublas>, CudaError> {
        if let Some(cublas) = self.cublas.get() {
            return Ok(cublas.clone());
        }
        let cublas = Arc::new(Cublas::open(&Search::cublas(self.found.driver.version))?);
        Ok(self.cublas.get_or_init(|| cublas).clone())
    }

    /// Where compiled kernels are kept, how many were found there and how many were not, and why it is of less use than
    /// it could be.
    pub(crate) fn cache(&self) -> &DiskCache {
        &self.cache
    }

    /// Free and total memory, in bytes.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|DriverError(code)| self.health.failed("cuMemGetInfo", code))
    }
}
