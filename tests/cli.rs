//! The command line from outside: output, exit codes, help, and messages that say what to do.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use serde_json::Value;

/// A case of the testkit.
const CASE: &str = "m7k33d5 bf16 OutIn split pad3 geglu-erf bias pre dx+ dwf32 normal s42";

/// The program, where no instruction set is forced.
fn swiglu(words: &[&str]) -> Command {
    let mut command = Command::cargo_bin("swiglu").expect("the program is built with its tests");
    command.env_remove("SWIGLU_ISA").args(words);
    command
}

fn stdout(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

/// The one object that a command prints.
fn json(assert: &Assert) -> Value {
    let text = stdout(assert);
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in:\n{text}"));
    assert!(value.is_object(), "not an object:\n{text}");
    value
}

/// Compares help with the committed file; `SWIGLU_BLESS=1` rewrites the file.
fn check_help(name: &str, words: &[&str]) {
    let help = stdout(&swiglu(words).env_remove("COLUMNS").assert().success());
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cli/help").join(format!("{name}.txt"));
    if std::env::var_os("SWIGLU_BLESS").is_some() {
        std::fs::write(&file, &help).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(help, expected, "{name}: SWIGLU_BLESS=1 writes the help that is meant");
}

#[test]
fn help_is_what_was_agreed() {
    check_help("swiglu", &["--help"]);
    for subcommand in ["doctor", "plan", "inspect", "verify", "bench"] {
        check_help(subcommand, &[subcommand, "--help"]);
    }
}

#[test]
fn usage_errors_exit_with_2() {
    for words in [
        &[][..],
        &["no-such-command"],
        &["doctor", "word"],
        &["plan"],
        &["plan", "--shape", "1,2"],
        &["plan", "--shape", "1,2,0"],
        &["plan", "--shape", "1,2,3", "--dtype", "f64"],
        &["plan", "--shape", "1,2,3", "--device", "gpu"],
        &["plan", "--shape", "1,2,3", "--down", "0", "--pass", "backward"],
        &["plan", "--shape", "1,2,3", "--down", "4"],
        &["inspect"],
        &["bench", "--rounds", "0"],
        &["bench", "--shape", "1,2"],
        &["verify", "--cases", "0"],
        &["verify", "--check", "everything"],
        &["verify", "--case", "nonsense"],
        &["verify", "--case", CASE, "--seed", "1"],
        &["verify", "--device", "cpu", "--check", "dx_f32", "--case", CASE],
        &["verify", "--case", "m4097k1d1 f32 InOut packed pad0 swiglu infer normal s0"],
    ] {
        let assert = swiglu(words).assert().code(2);
        assert!(stderr(&assert).contains("--help"), "{words:?}: {}", stderr(&assert));
    }
}

#[test]
fn doctor_finds_the_cpu_and_needs_no_gpu() {
    let assert = swiglu(&["doctor"]).env("CUDA_VISIBLE_DEVICES", "").assert().success();
    let text = stdout(&assert);
    for part in ["PASS   processor", "PASS   instruction set", "PASS   cpu self-test", "WARN   cuda:0", "-> "]
    {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert!(!text.contains("ERROR"), "{text}");
}

#[test]
fn doctor_says_the_same_as_json() {
    let report = json(&swiglu(&["doctor", "--json"]).env("CUDA_VISIBLE_DEVICES", "").assert().success());
    assert_eq!(report["status"], "warn");
    assert!(report["cpu"]["cores"].as_u64() >= Some(1), "{report}");
    assert!(
        report["cpu"]["isas"].as_array().is_some_and(|isas| isas.contains(&"portable".into())),
        "{report}"
    );
    let cpu = &report["devices"][0];
    assert_eq!((&cpu["device"], &cpu["status"]), (&"cpu".into(), &"pass".into()));
    assert_eq!(cpu["kernels"].as_array().map(Vec::len), Some(3));
    assert_eq!(cpu["self_test"]["status"], "pass");
    assert!(cpu["self_test"]["worst_error_over_bound"].as_f64().is_some_and(|worst| worst < 1.0), "{report}");
    assert!(report["devices"][1]["advice"].is_string(), "{report}");
}

#[test]
fn doctor_warns_of_a_forced_instruction_set_and_refuses_an_absent_one() {
    let assert = swiglu(&["doctor"]).env("SWIGLU_ISA", "portable").assert().success();
    assert!(stdout(&assert).contains("portable, forced by SWIGLU_ISA"), "{}", stdout(&assert));
    let assert = swiglu(&["doctor"]).env("SWIGLU_ISA", "sse9").assert().code(1);
    let text = stdout(&assert);
    assert!(text.contains("ERROR  instruction set") && text.contains("-> unset it"), "{text}");
}

#[test]
fn plan_names_the_kernels() {
    let plan = ["plan", "--device", "cpu", "--shape", "128,784,512"];
    let text = stdout(&swiglu(&plan).assert().success());
    assert!(text.contains("128,784,512") && text.contains("f32") && text.contains("  1. "), "{text}");

    let backward = ["--dtype", "bf16", "--orientation", "out-in", "--pass", "recompute", "--down", "784"];
    let text = stdout(&swiglu(&[&plan[..], &backward].concat()).assert().success());
    assert!(text.contains("bf16") && text.contains("  3. "), "{text}");

    let options =
        ["--tf32", "--tile", "64", "--route", "composed", "--gate", "swiglu-clamped", "--pass", "save"];
    swiglu(&[&plan[..], &options].concat()).assert().success();
}

#[test]
fn a_plan_that_cannot_be_made_says_what_to_do() {
    let assert = swiglu(&["plan", "--shape", "1,2,3", "--device", "cuda:4096"]).assert().code(1);
    let message = stderr(&assert);
    assert!(
        message.starts_with("swiglu: cuda:4096 is unavailable") && message.contains("doctor"),
        "{message}"
    );

    let huge = format!("{},2,2", usize::MAX);
    let assert = swiglu(&["plan", "--device", "cpu", "--shape", &huge]).assert().code(1);
    assert!(stderr(&assert).contains("overflows; try a smaller shape"), "{}", stderr(&assert));
}

/// A checkpoint of one layer in LLaMA's names, and of one that lacks its up projection.
fn checkpoint() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("model.safetensors");
    let zeros = [0; 24 * 16 * 2];
    let view = |shape: [usize; 2]| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.to_vec(), &zeros)
            .expect("a tensor")
    };
    let tensors = [
        ("layers.0.mlp.gate_proj.weight", view([24, 16])),
        ("layers.0.mlp.up_proj.weight", view([24, 16])),
        ("layers.0.mlp.down_proj.weight", view([16, 24])),
        ("layers.1.mlp.gate_proj.weight", view([24, 16])),
        ("layers.1.mlp.down_proj.weight", view([16, 24])),
    ];
    safetensors::serialize_to_file(tensors, None, &file).expect("a temporary folder takes files");
    (folder, file)
}

#[test]
fn inspect_lists_mlps_and_the_calls_that_load_them() {
    let (folder, file) = checkpoint();
    for path in [&file, &folder.path().to_owned()] {
        let text = stdout(&swiglu(&["inspect"]).arg(path).assert().success());
        for part in [
            "in_features 16, hidden 24",
            "unusable: \"layers.1.mlp\"",
            "checkpoint.mlp(\"layers.0.mlp\")?.load::<swiglu::bf16>()?",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }
    let report = json(&swiglu(&["inspect", "--json"]).arg(&file).assert().success());
    let mlp = &report["mlps"][0];
    assert_eq!((&mlp["name"], &mlp["dtype"]), (&"layers.0.mlp".into(), &"bf16".into()));
    assert_eq!(
        (&mlp["in_features"], &mlp["hidden"], &mlp["out_features"]),
        (&16.into(), &24.into(), &16.into())
    );
    assert_eq!((&mlp["orientation"], &mlp["experts"]), (&"out_in".into(), &Value::Null));
    assert_eq!(report["problems"][0]["prefix"], "layers.1.mlp");
}

#[test]
fn inspect_refuses_what_is_no_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).expect("a temporary folder takes files");
        file
    };
    for path in [
        write("empty.safetensors", b""),
        write("endless.safetensors", &[255; 64]),
        write("cut.safetensors", b"\x40\0\0\0\0\0\0\0{\"a\":"),
        write("text.index.json", b"no index"),
        folder.path().join("none.safetensors"),
        folder.path().to_owned(),
    ] {
        let assert = swiglu(&["inspect"]).arg(&path).assert().code(1);
        let message = stderr(&assert);
        let named = message.starts_with("swiglu: ") && message.contains(&path.display().to_string());
        assert!(named && stdout(&assert).is_empty(), "{message}");
    }
}

#[test]
fn a_file_without_mlps_is_no_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("none.safetensors");
    std::fs::write(&file, b"\x02\0\0\0\0\0\0\0{}").expect("a temporary folder takes files");
    assert!(stdout(&swiglu(&["inspect"]).arg(&file).assert().success()).contains("no MLP"), "says so");
}

#[test]
fn verify_runs_every_check() {
    let assert = swiglu(&["verify", "--device", "cpu", "--cases", "4", "--seed", "1"]).assert().success();
    let text = stdout(&assert);
    assert_eq!(text.matches("PASS").count(), 16, "{text}");
    assert!(text.contains("forward_f32") && text.contains("worst 0."), "{text}");
}

#[test]
fn verify_runs_one_case() {
    let text = stdout(&swiglu(&["verify", "--device", "cpu", "--case", CASE]).assert().success());
    assert!(text.contains("dx_bf16") && text.contains(CASE) && !text.contains("forward"), "{text}");
    let words = ["verify", "--device", "cpu", "--check", "dwf_bf16", "--case", CASE];
    assert_eq!(stdout(&swiglu(&words).assert().success()).matches("PASS").count(), 1);
}

#[test]
fn verify_refuses_a_device_that_is_not_there() {
    let assert = swiglu(&["verify", "--device", "cuda:4096"]).assert().code(1);
    assert!(stderr(&assert).starts_with("swiglu: cuda:4096 is unavailable"), "{}", stderr(&assert));
}

#[test]
fn bench_compares_with_the_unfused_op() {
    let bench = ["bench", "--device", "cpu", "--shape", "8,32,16", "--rounds", "2"];
    let text = stdout(&swiglu(&bench).assert().success());
    for part in ["8,32,16", "fused", "two linears + elementwise", "% peak", "best square product"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let words =
        [&bench[..], &["--pass", "step", "--dtype", "bf16", "--orientation", "out-in", "--json"]].concat();
    let report = json(&swiglu(&words).assert().success());
    assert_eq!((&report["dtype"], &report["pass"]), (&"bf16".into(), &"step".into()));
    assert_eq!(report["flop"], 3.0 * 4.0 * f64::from(8 * 32 * 16));
    let entries = report["entries"].as_array().expect("a list");
    assert!(entries.len() >= 2, "{report}");
    for entry in entries {
        let number = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
        let median = &entry["seconds"]["median"];
        assert!(number(median) && number(&entry["percent_of_peak"]), "{report}");
    }
    assert_eq!(entries[0]["time_over_fused"]["median"], 1.0);
}

#[test]
fn bench_draws_what_it_measured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("rates.svg");
    let bench = ["bench", "--device", "cpu", "--shape", "8,32,16", "--rounds", "1", "--svg"];
    swiglu(&bench).arg(&file).assert().success();
    let svg = std::fs::read_to_string(&file).expect("the drawing");
    assert!(svg.starts_with("<svg") && svg.contains("two linears + elementwise"), "{svg}");

    // Below a file: refused to every user, root included.
    let assert = swiglu(&bench).arg(file.join("below")).assert().code(1);
    assert!(stderr(&assert).starts_with("swiglu: cannot write"), "{}", stderr(&assert));
}

#[test]
fn a_bench_that_cannot_run_says_what_to_do() {
    let assert = swiglu(&["bench", "--device", "cuda:4096"]).assert().code(1);
    assert!(stderr(&assert).starts_with("swiglu: cuda:4096 is unavailable"), "{}", stderr(&assert));
    let huge = format!("{},2,2", usize::MAX);
    let assert = swiglu(&["bench", "--device", "cpu", "--shape", &huge]).assert().code(1);
    assert!(stderr(&assert).contains("try a smaller shape"), "{}", stderr(&assert));
}
