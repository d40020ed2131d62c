//! The command line from outside: output, exit codes, help, and messages that say what to do.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use serde_json::Value;

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
    for subcommand in ["doctor", "plan"] {
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
