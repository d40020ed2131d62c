//! Training from outside, on the drawn digits: what it prints, what it writes, and that runs repeat bit for bit.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use assert_cmd::Command;

/// The program in an environment that names no data, with a small network.
fn mnist(words: &[&str]) -> Command {
    let mut command = Command::cargo_bin("mnist").expect("the program is built with its tests");
    command.env_remove("SWIGLU_DATA").env("XDG_CACHE_HOME", "/nonexistent");
    command.args(["--hidden", "24"]).args(words);
    command
}

/// Standard output of a run that succeeds.
fn output(words: &[&str]) -> String {
    let assert = mnist(words).assert().success();
    String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
}

/// The last line, as a percentage.
fn accuracy(output: &str) -> f64 {
    let line = output.lines().last().expect("a last line");
    let percent = line.strip_prefix("test accuracy ").and_then(|rest| rest.split(" %").next());
    percent.and_then(|percent| percent.trim().parse().ok()).unwrap_or_else(|| panic!("last line: {line}"))
}

/// The metrics of each epoch, but for the times.
fn metrics(words: &[&str]) -> Vec<serde_json::Value> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("metrics.jsonl");
    let path_word = path.to_str().expect("a path in UTF-8").to_owned();
    output(&[words, &["--quiet", "--metrics", &path_word]].concat());
    let text = fs::read_to_string(&path).expect("the metrics were written");
    let parse = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let object = value.as_object_mut().expect("an object");
        object.remove("seconds");
        object.remove("samples_per_second");
        value
    };
    text.lines().map(parse).collect()
}

fn losses(metrics: &[serde_json::Value]) -> Vec<f64> {
    let of_epoch = |value: &serde_json::Value| value["losses"].as_array().cloned().unwrap_or_default();
    metrics.iter().flat_map(of_epoch).filter_map(|loss| loss.as_f64()).collect()
}

#[test]
fn two_epochs_learn_and_the_last_line_is_the_result() {
    let output = output(&["--epochs", "2"]);
    assert!(output.lines().next().is_some_and(|line| line.contains("drawn in code")), "it says so: {output}");
    assert!(output.contains("epoch   2  loss "), "a line for each epoch: {output}");
    assert!(accuracy(&output) > 85.0, "{output}");
    let last = output.lines().last().unwrap_or_default();
    assert!(last.ends_with("/4000)"), "{last}");
}

#[test]
fn runs_repeat_bit_for_bit_on_any_number_of_threads() {
    let first = metrics(&["--epochs", "1", "--threads", "1"]);
    assert_eq!(first.len(), 1, "epochs");
    for threads in ["1", "2", "3"] {
        assert_eq!(metrics(&["--epochs", "1", "--threads", threads]), first, "{threads} threads");
    }
    assert_ne!(metrics(&["--epochs", "1", "--seed", "2"]), first, "another seed");
}

#[test]
fn composed_and_unfused_follow_the_same_curve() {
    let fused = losses(&metrics(&["--epochs", "1"]));
    for words in [["--weight-grad", "composed"].as_slice(), &["--unfused"]] {
        let other = losses(&metrics(&[&["--epochs", "1"], words].concat()));
        assert_eq!(fused.len(), other.len(), "{words:?}: steps");
        for (step, (fused, other)) in fused.iter().zip(&other).enumerate() {
            assert!((fused - other).abs() <= 1e-2 * fused, "{words:?}, step {step}: {fused} and {other}");
        }
    }
}

#[test]
fn frozen_weights_train_the_head_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let save = |name: &str, epochs: &str| {
        let path = folder.path().join(name);
        let word = path.to_str().expect("a path in UTF-8").to_owned();
        output(&["--weight-grad", "frozen", "--epochs", epochs, "--quiet", "--save", &word]);
        fs::read(path).expect("a saved model")
    };
    let (before, after) = (save("before", "0"), save("after", "1"));
    assert_ne!(before, after, "the head learns");
    let wf = |bytes: &[u8]| {
        let tensors = safetensors::SafeTensors::deserialize(bytes).expect("a safetensors file");
        tensors.tensor("swiglu.wf").expect("the weights").data().to_vec()
    };
    assert_eq!(wf(&before), wf(&after), "the weights stay");
}

#[test]
fn a_saved_model_has_the_same_accuracy_when_it_is_loaded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let word = |name: &str| folder.path().join(name).to_str().expect("a path in UTF-8").to_owned();
    let (model, plot) = (word("model.safetensors"), word("curve.svg"));
    let trained = output(&["--epochs", "1", "--quiet", "--save", &model, "--plot", &plot]);
    let loaded = output(&["--epochs", "0", "--quiet", "--load", &model]);
    assert_eq!(trained, loaded);
    assert!(fs::read_to_string(Path::new(&plot)).is_ok_and(|svg| svg.contains("<svg")), "the curve");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let assert = mnist(&["--epochs", "0", "--device", "cuda:4096"]).assert().code(4);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.contains("cuda:4096"), "{text}");
}
