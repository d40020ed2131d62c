//! What this build can run on here, and which kernels a shape would get.

use swiglu::{Device, Dims, Dtype, Options, Orientation, Pass, Problem, Result, SwiGLU};

fn main() -> Result<()> {
    for entry in Device::available() {
        match entry.state {
            Ok(name) => println!("{:8} {name}", entry.device.to_string()),
            Err(reason) => println!("{:8} {reason}", entry.device.to_string()),
        }
    }
    let dims = Dims { batch: 128, in_features: 784, hidden: 512 };
    let pass = Pass::Backward { saved: true, dx: None, dwf: Some(gradient()), dbias: Some(gradient()) };
    let problem = Problem::dense(pass, Dtype::F32, dims, Orientation::InOut, Options::new());
    println!("{}", SwiGLU::<f32>::plan(&swiglu::Cpu::new(), &problem)?);
    Ok(())
}

fn gradient() -> swiglu::GradientKind {
    swiglu::GradientKind { dtype: Dtype::F32, add: false }
}
