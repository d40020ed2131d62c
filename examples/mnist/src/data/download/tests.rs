//! Verification and the handling of files, with answers made up here in place of a network.

use super::*;

/// A file of ten bytes, those of `RIGHT`.
const SMALL: Remote = Remote {
    name: "small",
    bytes: 10,
    sha256: "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882",
};
const RIGHT: &[u8] = b"0123456789";

type Answer = io::Result<Box<dyn Read>>;

fn bytes(contents: &'static [u8]) -> Answer {
    Ok(Box::new(contents))
}

fn dead() -> Answer {
    Err(io::ErrorKind::ConnectionRefused.into())
}

/// Fetches `SMALL` into `folder`; returns the result and the URLs that were asked for.
fn fetch_small(
    folder: &Path,
    mut answer: impl FnMut(&str) -> Answer,
) -> (Result<(), DownloadError>, Vec<String>) {
    let mut asked = Vec::new();
    let mut open = |url: &str| {
        asked.push(url.to_owned());
        answer(url)
    };
    let result = fetch(SMALL, folder, &mut open, &mut |_| ());
    (result, asked)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn the_right_bytes_are_kept_and_not_fetched_again() {
    let folder = folder();
    let (result, asked) = fetch_small(folder.path(), |_| bytes(RIGHT));
    result.expect("the right bytes");
    assert_eq!(asked, [format!("{}small", MIRRORS[0])], "the first mirror alone");
    assert_eq!(fs::read(folder.path().join("small")).expect("was written"), RIGHT, "contents");

    let (result, asked) = fetch_small(folder.path(), |_| dead());
    result.expect("the file is there");
    assert!(asked.is_empty(), "asked again: {asked:?}");
}

#[test]
fn the_second_mirror_stands_in_for_the_first() {
    let folder = folder();
    let (result, asked) =
        fetch_small(folder.path(), |url| if url.starts_with(MIRRORS[0]) { dead() } else { bytes(RIGHT) });
    result.expect("the second mirror delivers");
    assert_eq!(asked.len(), 2, "{asked:?}");
}

#[test]
fn a_damaged_file_is_fetched_again() {
    let folder = folder();
    fs::write(folder.path().join("small"), b"01234").expect("a temporary folder takes files");
    fetch_small(folder.path(), |_| bytes(RIGHT)).0.expect("the right bytes");
    assert_eq!(fs::read(folder.path().join("small")).expect("was written"), RIGHT, "contents");
}

#[test]
fn wrong_answers_are_told_apart_and_leave_nothing() {
    type Case = (&'static str, fn() -> Answer, fn(&DownloadError) -> bool);
    let cases: [Case; 4] = [
        ("dead", dead, |cause| matches!(cause, DownloadError::Network { .. })),
        (
            "short",
            || bytes(b"01234"),
            |cause| matches!(cause, DownloadError::Size { expected: 10, got: 5, .. }),
        ),
        (
            "endless",
            || Ok(Box::new(io::repeat(0))),
            |cause| matches!(cause, DownloadError::Size { got: 11, .. }),
        ),
        ("other", || bytes(b"0123456780"), |cause| matches!(cause, DownloadError::Hash { .. })),
    ];
    for (name, answer, check) in cases {
        let folder = folder();
        let error = fetch_small(folder.path(), |_| answer()).0.expect_err(name);
        let DownloadError::Mirrors { causes, .. } = &error else { panic!("{name}: {error}") };
        assert!(causes.len() == 2 && causes.iter().all(check), "{name}: {error}");
        assert_eq!(
            fs::read_dir(folder.path()).expect("a folder").count(),
            0,
            "{name}: a file was left behind"
        );
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a temporary folder takes files");
    let error = fetch_all(&file.join("below"), |_| dead(), |_| ()).expect_err("below a file");
    assert!(matches!(error, DownloadError::Folder { .. }), "{error}");
}

#[test]
fn a_file_that_cannot_be_written_is_an_error() {
    let folder = folder();
    fs::create_dir(folder.path().join("small")).expect("a temporary folder takes folders");
    let error = fetch_small(folder.path(), |_| bytes(RIGHT)).0.expect_err("a folder is in the way");
    assert!(matches!(error, DownloadError::Write(_)), "{error}");
}

#[test]
fn the_table_names_the_four_files() {
    for (file, name) in FILES.iter().zip(crate::data::files::NAMES) {
        assert_eq!(file.name, format!("{name}.gz"), "name");
        assert_eq!(file.sha256.len(), 64, "{name}: length of the hash");
    }
    assert!(MIRRORS.iter().all(|mirror| mirror.starts_with("https://")), "a mirror without https");
}

#[test]
fn plain_http_is_refused_before_anything_is_sent() {
    assert!(https("http://127.0.0.1:9/file").is_err(), "http");
}
