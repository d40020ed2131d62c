//! Faults that a test can force on a real device.

use libtest_mimic::{Failed, Trial};
use swiglu_core::{
    Backend, Dims, Dtype, Error, FusedSwiGLU, Options, Orientation, Pass, Problem, SwiGLU, Tile,
};
use swiglu_cuda::{Cuda, Search, Unavailable};

use crate::cuda;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("faults::out_of_memory_names_the_bytes_and_passes", out_of_memory),
        Trial::test("faults::an_unknown_device_is_unavailable", unknown_device),
        Trial::test("faults::a_shape_that_overflows_is_refused", overflow),
        Trial::test("faults::no_nvrtc_is_unavailable", no_nvrtc),
        Trial::test("faults::plans_name_their_kernels", plans),
    ]
}

fn out_of_memory() -> Result<(), Failed> {
    let cuda = cuda()?;
    let (_, total) = cuda.memory()?;
    match cuda.zeros::<u32>(2, total / 4) {
        Err(Error::OutOfMemory { bytes }) if bytes >= total => {}
        other => return Err(format!("{other:?}").into()),
    }
    // The next smaller call works.
    let layer = FusedSwiGLU::<f32, _>::init(&cuda, 8, 8, 1)?;
    layer.forward(&cuda.zeros(2, 8)?)?;
    Ok(cuda.synchronize()?)
}

fn unknown_device() -> Result<(), Failed> {
    match Cuda::new(4096) {
        Err(Error::Unavailable { device, .. }) if device == "cuda:4096" => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Search paths of the system cannot be hidden from its loader, so the search is given none.
fn no_nvrtc() -> Result<(), Failed> {
    let driver = cuda()?.preflight().driver.path.clone();
    // SAFETY: the path is that of the driver which this process already uses.
    let search = unsafe { Search::from_paths(vec![driver], vec![]) };
    match search.preflight(0) {
        Err(Unavailable::NvrtcMissing { tried }) if tried.is_empty() => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn overflow() -> Result<(), Failed> {
    let refused = cuda()?.zeros::<f32>(usize::MAX, 2);
    match refused {
        Err(Error::Overflow { .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn plans() -> Result<(), Failed> {
    let cuda = cuda()?;
    let dims = Dims { batch: 8192, in_features: 4096, hidden: 14336 };
    for tile in [Tile::Auto, Tile::T32, Tile::T64, Tile::T128] {
        let options = Options::new().tile(tile);
        let problem =
            Problem::dense(Pass::Forward { save: true }, Dtype::Bf16, dims, Orientation::InOut, options);
        let plan = SwiGLU::<f32>::plan(&cuda, &problem)?;
        println!("{plan}");
        if plan.launches.len() != 1 {
            return Err(format!("a forward is one launch, not {plan}").into());
        }
    }
    Ok(())
}
