//! What needs a GPU: every test again, and what streams ask for.

use candle_core::{DType, Device, Result, Tensor};
use libtest_mimic::Trial;

use crate::reference::{Case, Inputs, check};
use crate::{Test, everywhere, on};

const TESTS: &[Test] = &[
    ("threads_have_streams_of_their_own", threads),
    ("a_stream_of_its_own", own_stream),
    ("tensors_of_two_streams_are_refused", two_streams),
];

/// Every test on the first GPU, ignored where there is none.
pub(crate) fn trials() -> Vec<Trial> {
    let required = std::env::var_os("SWIGLU_REQUIRE_GPU").is_some_and(|value| value == "1");
    match Device::new_cuda(0) {
        Ok(device) => on("cuda", &device, everywhere().chain(TESTS.iter().copied())),
        Err(reason) => {
            eprintln!("no GPU: {reason}");
            let ignored = |(name, _): Test| {
                Trial::test(format!("cuda::{name}"), || Err("no GPU".into())).with_ignored_flag(!required)
            };
            everywhere().chain(TESTS.iter().copied()).map(ignored).collect()
        }
    }
}

/// candle's stream of a device is another one on each thread.
fn threads(device: &Device) -> Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|seed| {
                scope.spawn(move || {
                    (0..8).try_for_each(|_| {
                        let case = Case { seed, ..Case::new(40, 72, 56, DType::BF16) };
                        check(&case, &Inputs::draw(&case, device)?)
                    })
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker"))
    })
}

fn own_stream(_: &Device) -> Result<()> {
    let device = Device::new_cuda_with_stream(0)?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let case = Case::new(33, 64, 48, dtype);
        check(&case, &Inputs::draw(&case, &device)?)?;
    }
    Ok(())
}

fn two_streams(device: &Device) -> Result<()> {
    let other = Device::new_cuda_with_stream(0)?;
    let x = Tensor::ones((2, 3), DType::F32, device)?;
    let w = Tensor::ones((4, 3), DType::F32, &other)?;
    let message = swiglu_candle::swiglu(&x, &w, &w).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message.contains("gate weights belongs to stream"), "{message}");
    Ok(())
}
