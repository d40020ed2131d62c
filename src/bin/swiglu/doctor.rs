//! `swiglu doctor`: what this machine can run on, what is missing, and what to do about it.

use std::fmt;
use std::time::Instant;

use serde::Serialize;
use swiglu::{
    Availability, Complete, Cpu, Device, Dims, Dtype, Isa, Job, Options, Orientation, Pass, Problem,
};
use swiglu_testkit::{Case, Check, Failure as TestFailure, Report as TestReport};

use crate::cli::DoctorArgs;
use crate::failure::Outcome;
use crate::machine::Machine;
use crate::plan::Planning;
use crate::{print, print_json, promise};

/// Shape of a typical call, for the table of kernels: a few hundred tokens of a small layer.
const TYPICAL: Dims = Dims { batch: 512, in_features: 1024, hidden: 4096 };

/// Shapes of the self-test: one row, sizes that no tile divides, and sizes that they do.
const SELF_TEST: [(usize, usize, usize); 3] = [(1, 128, 96), (33, 65, 47), (64, 64, 128)];

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pass,
    /// It cannot be used; the rest can.
    Warn,
    /// It is broken.
    Error,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    status: Status,
    subject: String,
    detail: String,
    /// What to do, where it is not a pass.
    advice: Option<String>,
}

impl Finding {
    fn pass(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { status: Status::Pass, subject: subject.into(), detail: detail.into(), advice: None }
    }

    fn of(status: Status, subject: impl Into<String>, detail: impl Into<String>, advice: &str) -> Self {
        Self { status, advice: Some(advice.to_owned()), ..Self::pass(subject, detail) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:5}  {:16}  {}", self.status, self.subject, self.detail)?;
        match &self.advice {
            Some(advice) => write!(f, "\n{:25}-> {advice}", ""),
            None => Ok(()),
        }
    }
}

/// Everything, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
struct Report {
    version: &'static str,
    status: Status,
    cpu: Processor,
    devices: Vec<DeviceReport>,
    findings: Vec<Finding>,
}

/// The processor and what runs on it.
#[derive(Clone, Debug, Serialize)]
struct Processor {
    #[serde(flatten)]
    machine: Machine,
    /// The instruction set that runs; `None` when `SWIGLU_ISA` names one that cannot.
    isa: Option<String>,
    /// What `SWIGLU_ISA` says.
    isa_forced: Option<String>,
    /// What `SWIGLU_ISA` may say on this machine.
    isas: Vec<String>,
}

/// A device and what was found on it.
#[derive(Clone, Debug, Serialize)]
struct DeviceReport {
    device: String,
    status: Status,
    /// The backend's name, or why it cannot be used.
    detail: String,
    advice: Option<String>,
    libraries: Vec<Library>,
    kernels: Vec<Kernels>,
    self_test: Option<SelfTest>,
}

/// A library that a device is used through.
#[derive(Clone, Debug, Serialize)]
struct Library {
    name: &'static str,
    path: String,
    version: String,
}

/// What a typical forward runs.
#[derive(Clone, Debug, Serialize)]
struct Kernels {
    dtype: String,
    backend: String,
    launches: Vec<String>,
}

/// A few calls compared with the oracle.
#[derive(Clone, Debug, Serialize)]
struct SelfTest {
    status: Status,
    cases: u64,
    elements: u64,
    /// Worst error relative to the bound that is proved.
    worst_error_over_bound: f64,
    seconds: f64,
    /// The first case that failed, and how.
    failure: Option<String>,
}

pub(crate) fn run(args: &DoctorArgs) -> Outcome {
    let cpu = processor();
    let devices: Vec<DeviceReport> = Device::available().into_iter().map(device).collect();
    let findings = findings(&cpu, &devices);
    let status = findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Pass);
    if args.json {
        let version = env!("CARGO_PKG_VERSION");
        print_json(&Report { version, status, cpu, devices, findings })?;
    } else {
        for finding in &findings {
            print(finding)?;
        }
    }
    Ok(status != Status::Error)
}

fn processor() -> Processor {
    Processor {
        machine: Machine::here(),
        isa: Cpu::new().isa().ok().map(|isa| isa.to_string()),
        isa_forced: std::env::var("SWIGLU_ISA").ok(),
        isas: Isa::available().map(|isa| isa.to_string()).collect(),
    }
}

fn device(Availability { device, state }: Availability) -> DeviceReport {
    let report = |status, detail, advice| DeviceReport {
        device: device.to_string(),
        status,
        detail,
        advice,
        libraries: libraries(device),
        kernels: Vec::new(),
        self_test: None,
    };
    match state {
        Ok(name) => DeviceReport {
            kernels: DTYPES.into_iter().filter_map(|dtype| kernels(device, dtype)).collect(),
            self_test: device.run(SelfTesting).ok(),
            ..report(Status::Pass, name, None)
        },
        Err(reason) => {
            let (status, advice) = advice(device);
            report(status, reason.to_string(), Some(advice))
        }
    }
}

/// What a typical forward of this element type runs.
fn kernels(device: Device, dtype: Dtype) -> Option<Kernels> {
    let pass = Pass::Forward { save: false };
    let problem = Problem::dense(pass, dtype, TYPICAL, Orientation::OutIn, Options::new());
    let plan = device.run(Planning(problem)).ok()?.ok()?;
    Some(Kernels { dtype: dtype.to_string(), backend: plan.backend, launches: plan.launches })
}

/// Runs the self-test.
struct SelfTesting;

impl Job for SelfTesting {
    type Output = SelfTest;

    fn run<B: Complete>(self, backend: B) -> SelfTest {
        let start = Instant::now();
        let (report, failure) = self_test(&backend);
        SelfTest {
            status: if failure.is_some() { Status::Error } else { Status::Pass },
            cases: report.cases,
            elements: report.elements,
            worst_error_over_bound: report.hard.ratio,
            seconds: start.elapsed().as_secs_f64(),
            failure: failure.map(|failure| failure.to_string()),
        }
    }
}

/// Cases until one fails.
fn self_test<B: Complete>(backend: &B) -> (TestReport, Option<TestFailure>) {
    let config = promise::of(backend.device());
    let mut report = TestReport::default();
    for case in self_test_cases() {
        let pass = if case.is_backward() { swiglu_testkit::Pass::Dwf } else { swiglu_testkit::Pass::Forward };
        match Check::Differential(pass, case.dtype).case(backend, &case, &config) {
            Ok(one) => report.merge(&one),
            Err(failure) => return (report, Some(failure)),
        }
    }
    (report, None)
}

/// Inference, and a step with every gradient, in both orientations.
fn self_test_cases() -> impl Iterator<Item = Case> {
    let shapes = DTYPES.into_iter().flat_map(|dtype| {
        SELF_TEST
            .into_iter()
            .map(move |(batch, in_features, hidden)| Case::new(batch, in_features, hidden, dtype))
    });
    shapes.flat_map(|case| {
        let turned = Case { orientation: Orientation::OutIn, ..case };
        [case, turned, case.all_gradients(), turned.all_gradients()]
    })
}

fn findings(cpu: &Processor, devices: &[DeviceReport]) -> Vec<Finding> {
    let Machine { model, cores, caches } = &cpu.machine;
    let model = model.as_deref().unwrap_or("unknown processor");
    let caches: Vec<String> = caches.iter().map(ToString::to_string).collect();
    let caches = if caches.is_empty() { "unknown".to_owned() } else { caches.join(", ") };
    let mut findings = vec![
        Finding::pass("processor", format!("{model}, {cores} logical cores")),
        Finding::pass("caches", caches),
        instruction_set(cpu),
    ];
    for device in devices {
        findings.extend(device_findings(device));
    }
    findings
}

fn instruction_set(cpu: &Processor) -> Finding {
    let isas = cpu.isas.join(", ");
    match (&cpu.isa, &cpu.isa_forced) {
        (Some(isa), Some(_)) => {
            let advice = format!("unset SWIGLU_ISA to have the fastest of {isas}");
            Finding::of(Status::Warn, "instruction set", format!("{isa}, forced by SWIGLU_ISA"), &advice)
        }
        (Some(isa), None) => {
            Finding::pass("instruction set", format!("{isa} (SWIGLU_ISA forces one of {isas})"))
        }
        (None, forced) => {
            let forced = forced.as_deref().unwrap_or_default();
            let detail = format!("SWIGLU_ISA is {forced:?}, which this machine does not have");
            Finding::of(
                Status::Error,
                "instruction set",
                detail,
                &format!("unset it, or set it to one of {isas}"),
            )
        }
    }
}

fn device_findings(report: &DeviceReport) -> Vec<Finding> {
    let DeviceReport { device, status, detail, advice, .. } = report;
    let mut findings = vec![Finding {
        status: *status,
        subject: device.clone(),
        detail: detail.clone(),
        advice: advice.clone(),
    }];
    let libraries = report.libraries.iter().map(|Library { name, path, version }| {
        Finding::pass(format!("{device} {name}"), format!("{path} (CUDA {version})"))
    });
    findings.extend(libraries);
    let kernels = report
        .kernels
        .iter()
        .map(|kernels| Finding::pass(format!("{device} {}", kernels.dtype), kernels.launches.join("; ")));
    findings.extend(kernels);
    findings.extend(report.self_test.iter().map(|test| self_test_finding(device, test)));
    findings
}

fn self_test_finding(device: &str, test: &SelfTest) -> Finding {
    let subject = format!("{device} self-test");
    match &test.failure {
        None => {
            let SelfTest { cases, elements, worst_error_over_bound, seconds, .. } = test;
            let detail = format!(
                "{cases} cases, {elements} elements, worst error {worst_error_over_bound:.4} of its bound, {seconds:.1} s"
            );
            Finding::pass(subject, detail)
        }
        Some(failure) => {
            let advice = format!("run `swiglu verify --device {device}` and report what it prints");
            Finding::of(Status::Error, subject, failure.replace('\n', ";"), &advice)
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use swiglu::cuda::{Unavailable, preflight, probe};

    use super::{Device, Library, Status};

    /// The libraries that a GPU is used through, and where they were found.
    pub(super) fn libraries(ordinal: usize) -> Vec<Library> {
        let Ok(found) = preflight(ordinal) else { return Vec::new() };
        let library = |name, library: swiglu::cuda::Library| Library {
            name,
            path: library.path.display().to_string(),
            version: library.version.to_string(),
        };
        vec![library("driver", found.driver), library("NVRTC", found.nvrtc)]
    }

    /// How bad it is that a GPU cannot be used, and what to do. The reason itself says it too, with the numbers.
    pub(super) fn advice(ordinal: usize) -> (Status, String) {
        let Err(reason) = preflight(ordinal) else {
            let smi =
                format!("check with `nvidia-smi` that {} is healthy and not held", Device::Cuda(ordinal));
            return (Status::Error, smi);
        };
        let status = if probe().is_ok() && !matches!(reason, Unavailable::ComputeCapability { .. }) {
            Status::Error
        } else {
            Status::Warn
        };
        (status, what_to_do(&reason).to_owned())
    }

    fn what_to_do(reason: &Unavailable) -> &'static str {
        match reason {
            Unavailable::DriverMissing { .. } => {
                "to use a GPU, install the NVIDIA driver, or start the container with GPU access (--gpus all)"
            }
            Unavailable::DriverBroken { .. } | Unavailable::DriverFailed { .. } => {
                "check that `nvidia-smi` works; reinstall the NVIDIA driver if it does not"
            }
            Unavailable::DriverTooOld { .. } => "install a newer NVIDIA driver",
            Unavailable::NoDevice { .. } | Unavailable::UnknownDevice { .. } => {
                "check CUDA_VISIBLE_DEVICES, and that this process or container has access to a GPU"
            }
            Unavailable::NvrtcMissing { .. } => {
                "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc` and set SWIGLU_NVRTC to the path of its \
                 libnvrtc.so"
            }
            Unavailable::NvrtcBroken { .. }
            | Unavailable::NvrtcFailed { .. }
            | Unavailable::NvrtcArchitecture { .. } => {
                "set SWIGLU_NVRTC to the path of another libnvrtc.so, such as that of `pip install nvidia-cuda-nvrtc`"
            }
            Unavailable::ComputeCapability { .. } => "use a GPU of compute capability 7.0 or newer",
            _ => "check that `nvidia-smi` works",
        }
    }
}

#[cfg(feature = "cuda")]
fn libraries(device: Device) -> Vec<Library> {
    match device {
        Device::Cuda(ordinal) => cuda::libraries(ordinal),
        _ => Vec::new(),
    }
}

#[cfg(not(feature = "cuda"))]
fn libraries(_: Device) -> Vec<Library> {
    Vec::new()
}

/// How bad it is that a device cannot be used, and what to do.
fn advice(device: Device) -> (Status, String) {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => cuda::advice(ordinal),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => (
            Status::Warn,
            "to use a GPU, build with `--features cli,cuda`; no CUDA toolkit is needed".to_owned(),
        ),
        _ => (Status::Error, "unset SWIGLU_ISA, or set it to an instruction set of this machine".to_owned()),
    }
}
