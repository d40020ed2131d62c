//! Cases that failed once, one line each, in a text file next to the tests. They run before the random ones.

use std::io::Write;
use std::path::Path;

use crate::case::Case;

/// What a new file starts with.
const HEAD: &str =
    "# Cases that failed once. The suite runs them first; keep this file in version control.\n";

/// The cases of a file; none when it does not exist.
///
/// # Panics
/// When a line is not a case.
pub(crate) fn read(file: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.parse().unwrap_or_else(|e| panic!("{}: {e}", file.display()))).collect()
}

/// Adds a case, unless it is there. A file that cannot be written is reported and otherwise ignored: the failure itself
/// matters more.
pub(crate) fn append(file: &Path, case: &Case) {
    if read(file).contains(case) {
        return;
    }
    let line = if file.exists() { format!("{case}\n") } else { format!("{HEAD}{case}\n") };
    let written = file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
        // One write call, so that tests which fail at the same time do not tear each other's lines.
        std::fs::OpenOptions::new().create(true).append(true).open(file)?.write_all(line.as_bytes())
    });
    if let Err(error) = written {
        println!("the case was not added to {}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use swiglu_core::Dtype;

    use super::*;

    #[test]
    fn cases_come_back_once() {
        let folder = std::env::temp_dir().join(format!("swiglu-testkit-{}", std::process::id()));
        let file = folder.join("regressions.txt");
        let (a, b) = (Case::new(1, 2, 3, Dtype::F32), Case::new(4, 5, 6, Dtype::Bf16));
        for case in [&a, &b, &a] {
            append(&file, case);
        }
        assert_eq!(read(&file), [a, b]);
        std::fs::remove_dir_all(&folder).unwrap_or_else(|e| panic!("{e}"));
    }
}
