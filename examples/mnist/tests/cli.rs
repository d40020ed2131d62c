//! The program from outside: help, exit codes, and messages that name what is wrong.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use assert_cmd::assert::Assert;

/// The program in an environment that names no data.
fn mnist() -> Command {
    let mut command = Command::cargo_bin("mnist").expect("the program is built with its tests");
    command.env_remove("SWIGLU_DATA").env("XDG_CACHE_HOME", "/nonexistent");
    command
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn stdout(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

/// Four legal files of one sample each.
fn write_data(folder: &Path) {
    let images = [&[0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28][..], &[0; 784]].concat();
    for set in ["train", "t10k"] {
        fs::write(folder.join(format!("{set}-images-idx3-ubyte")), &images)
            .expect("a temporary folder takes files");
        fs::write(folder.join(format!("{set}-labels-idx1-ubyte")), [0, 0, 8, 1, 0, 0, 0, 1, 7])
            .expect("a temporary folder takes files");
    }
}

#[test]
fn help_names_every_flag() {
    let help = stdout(&mnist().arg("--help").assert().success());
    for flag in [
        "--device",
        "--data",
        "--download",
        "--epochs",
        "--batch-size",
        "--hidden",
        "--lr",
        "--seed",
        "--threads",
        "--weight-grad",
        "--unfused",
        "--save",
        "--load",
        "--metrics",
        "--plot",
        "--quiet",
    ] {
        assert!(help.contains(flag), "{flag} is missing in:\n{help}");
    }
}

#[test]
fn usage_errors_exit_with_2() {
    for words in [
        &["--batch-size", "0"][..],
        &["--hidden", "0"],
        &["--lr", "0"],
        &["--lr", "-1"],
        &["--lr", "nan"],
        &["--device", "tpu"],
        &["--device", "cuda:x"],
        &["--weight-grad", "none"],
        &["--epochs"],
        &["--no-such-flag"],
        &["word"],
    ] {
        mnist().args(words).assert().code(2);
    }
}

#[test]
fn a_folder_without_data_exits_with_3() {
    let empty = folder();
    for path in [empty.path().to_owned(), empty.path().join("none")] {
        let assert = mnist().arg("--data").arg(&path).assert().code(3);
        assert!(stderr(&assert).contains(&path.display().to_string()), "{}", stderr(&assert));
        mnist().env("SWIGLU_DATA", &path).assert().code(3);
    }
}

#[test]
fn a_cut_file_exits_with_3() {
    let data = folder();
    write_data(data.path());
    fs::write(data.path().join("t10k-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 1])
        .expect("a file to change");
    let assert = mnist().arg("--data").arg(data.path()).assert().code(3);
    let message = stderr(&assert);
    assert!(message.contains("t10k-labels-idx1-ubyte") && message.contains("expected 1 bytes"), "{message}");
}

#[test]
fn outputs_that_cannot_be_written_exit_with_3() {
    let data = folder();
    write_data(data.path());
    // Below a file: refused to every user, root included.
    let below = data.path().join("t10k-labels-idx1-ubyte").join("below");
    for flag in ["--metrics", "--plot", "--save"] {
        let assert = mnist().arg("--data").arg(data.path()).arg(flag).arg(&below).assert().code(3);
        assert!(stderr(&assert).contains("cannot write"), "{flag}: {}", stderr(&assert));
    }
}

#[test]
fn a_model_that_cannot_be_read_exits_with_3() {
    let data = folder();
    write_data(data.path());
    let not_a_model = data.path().join("t10k-labels-idx1-ubyte");
    for path in [not_a_model, data.path().join("none")] {
        let assert = mnist().arg("--data").arg(data.path()).arg("--load").arg(&path).assert().code(3);
        assert!(stderr(&assert).contains("checkpoint"), "{}", stderr(&assert));
    }
}

#[test]
fn a_download_below_a_file_exits_with_3() {
    let data = folder();
    let file = data.path().join("file");
    fs::write(&file, "").expect("a temporary folder takes files");
    mnist().arg("--download").arg("--data").arg(file.join("below")).assert().code(3);
}

#[test]
fn the_source_of_the_data_is_printed() {
    let data = folder();
    write_data(data.path());
    let assert =
        mnist().args(["--epochs", "0", "--device", "cpu", "--data"]).arg(data.path()).assert().success();
    let line = format!("data: IDX files in {}; 1 training and 1 test images", data.path().display());
    assert!(stdout(&assert).contains(&line), "{}", stdout(&assert));

    let assert = mnist().args(["--epochs", "0", "--device", "cpu"]).assert().success();
    assert!(stdout(&assert).contains("digits drawn in code"), "{}", stdout(&assert));
}
