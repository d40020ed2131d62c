//! The cache against damage, strangers and races: the worst that may come of them is a compilation.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

use super::{DiskCache, Key, place};

const BODY: &[u8] = b"machine code, or so";

fn key(name: &str) -> Key {
    Key::of(&[name])
}

fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn parts_divided_elsewhere_have_another_key() {
    let keys = [Key::of(&["ab", "c"]), Key::of(&["a", "bc"]), Key::of(&["abc"]), Key::of(&["ab", "c", ""])];
    assert!((1..keys.len()).all(|i| !keys[..i].contains(&keys[i])));
}

#[test]
fn the_variables_choose_the_place() {
    let value = |text: &str| Some(OsString::from(text));
    let chosen = |named, xdg, home| place(named, xdg, home);
    let path = |text: &str| Ok(Some(PathBuf::from(text)));
    assert_eq!(chosen(None, None, value("/home/me")), path("/home/me/.cache/swiglu/cubin/v1"));
    assert_eq!(chosen(None, value("/xdg"), value("/home/me")), path("/xdg/swiglu/cubin/v1"));
    assert_eq!(chosen(None, value("relative"), value("/home/me")), path("/home/me/.cache/swiglu/cubin/v1"));
    assert_eq!(chosen(value(""), value("/xdg"), None), path("/xdg/swiglu/cubin/v1"));
    assert_eq!(chosen(value("/named"), value("/xdg"), value("/home/me")), path("/named"));
    assert_eq!(chosen(value("off"), value("/xdg"), value("/home/me")), Ok(None));
    for home in [None, value(""), value("relative")] {
        assert!(chosen(None, None, home).unwrap_err().contains("HOME"));
    }
    for named in ["relative", "./off", "OFF", "~/cache"] {
        let note = chosen(value(named), None, value("/home/me")).unwrap_err();
        assert!(note.contains(named) && note.contains("SWIGLU_CUDA_CACHE"), "{note}");
    }
}

/// The environment of a running test cannot be changed safely, so the test runs again in a process of its own.
#[test]
fn the_environment_is_read() {
    const NAME: &str = "cache::tests::the_environment_is_read";
    if env::var_os("SWIGLU_CUDA_CACHE").is_none_or(|value| value != "relative/to/what") {
        let mut again = Command::new(env::current_exe().unwrap());
        again.args(["--exact", NAME]).env("SWIGLU_CUDA_CACHE", "relative/to/what");
        let output = again.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
        return;
    }
    let cache = DiskCache::from_env();
    cache.store(&key("a"), BODY);
    assert_eq!(cache.load(&key("a")), None);
    assert!(cache.note().unwrap().contains("relative/to/what"));
    assert!(!fs::exists("relative").unwrap());
}

#[test]
fn without_a_folder_nothing_is_found_and_nothing_is_wrong() {
    let cache = DiskCache::default();
    cache.store(&key("a"), BODY);
    assert_eq!((cache.load(&key("a")), cache.note()), (None, None));
    assert_eq!((cache.hits(), cache.misses()), (0, 1));
}

#[cfg(not(unix))]
#[test]
fn a_system_without_owners_has_no_cache_and_says_so() {
    let folder = scratch();
    let cache = DiskCache::at(folder.path().to_path_buf());
    cache.store(&key("a"), BODY);
    assert_eq!(cache.load(&key("a")), None);
    assert!(cache.note().unwrap().contains("Unix"));
}

#[cfg(unix)]
mod unix {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Barrier;
    use std::{env, thread};

    use super::super::entry::LARGEST_ENTRY;
    use super::super::{DiskCache, Key};
    use super::{BODY, key, scratch};

    fn at(path: &Path) -> DiskCache {
        DiskCache::at(path.to_path_buf())
    }

    /// A cache in the folder `c` of `scratch`, with one entry; and the path of that entry.
    fn with_one_entry(scratch: &Path) -> (DiskCache, PathBuf) {
        let cache = at(&scratch.join("c"));
        cache.store(&key("a"), BODY);
        assert_eq!(cache.note(), None);
        (cache, scratch.join("c").join(key("a").file_name()))
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[track_caller]
    fn assert_useless(path: &Path, reason: &str) {
        let cache = at(path);
        assert_eq!(cache.load(&key("a")), None);
        cache.store(&key("a"), BODY);
        assert_eq!(cache.load(&key("a")), None);
        let note = cache.note().expect("there is a reason");
        assert!(note.contains(reason) && note.contains(&path.display().to_string()), "{note}");
        assert_eq!((cache.hits(), cache.misses()), (0, 2));
    }

    /// That a file which cannot be used is replaced by one which can.
    #[track_caller]
    fn assert_replaced(folder: &Path, reason: &str) {
        let cache = at(folder);
        assert_eq!(cache.load(&key("a")), None);
        let note = cache.note().expect("there is a reason").to_owned();
        assert!(note.contains(reason) && note.contains(&key("a").file_name()), "{note}");
        cache.store(&key("a"), BODY);
        assert_eq!(cache.load(&key("a")).as_deref(), Some(BODY));
        assert_eq!(cache.note(), Some(note.as_str()), "the first note stays");
    }

    #[test]
    fn what_is_stored_is_found() {
        let scratch = scratch();
        let folder = scratch.path().join("new").join("c");
        let cache = at(&folder);
        assert_eq!(cache.load(&key("a")), None);
        assert!(!folder.exists(), "looking makes no folder");
        for body in [BODY, b"", &[7; 100_000]] {
            cache.store(&key("a"), body);
            assert_eq!(cache.load(&key("a")).as_deref(), Some(body));
            assert_eq!(at(&folder).load(&key("a")).as_deref(), Some(body), "in another process");
        }
        assert_eq!(cache.load(&key("b")), None);
        assert_eq!((cache.hits(), cache.misses(), cache.note()), (3, 2, None));
    }

    #[test]
    fn folders_and_files_are_for_this_user_alone() {
        let scratch = scratch();
        let cache = at(&scratch.path().join("new").join("c"));
        cache.store(&key("a"), BODY);
        let mode = |path: &str| scratch.path().join(path).metadata().unwrap().mode() & 0o777;
        assert_eq!((mode("new"), mode("new/c")), (0o700, 0o700));
        assert_eq!(mode(&format!("new/c/{}", key("a").file_name())), 0o600);
        let names: Vec<_> =
            fs::read_dir(scratch.path().join("new/c")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [key("a").file_name().as_str()], "no other file is left");
    }

    #[test]
    fn a_truncated_or_prolonged_file_is_absent() {
        let scratch = scratch();
        let (cache, file) = with_one_entry(scratch.path());
        let whole = fs::read(&file).unwrap();
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            assert_eq!(cache.load(&key("a")), None, "{length} bytes");
        }
        fs::write(&file, [&whole[..], &[0]].concat()).unwrap();
        assert_replaced(&scratch.path().join("c"), "wrong length");
    }

    #[test]
    fn a_flipped_bit_makes_a_file_absent() {
        let scratch = scratch();
        let cache = at(&scratch.path().join("c"));
        let body: Vec<u8> = (0..2000u32).map(|i| (i * 7) as u8).collect();
        cache.store(&key("a"), &body);
        let file = scratch.path().join("c").join(key("a").file_name());
        let whole = fs::read(&file).unwrap();
        // Each byte of the header, and every 37th byte of the body.
        for at in (0..80).chain((80..whole.len()).step_by(37)) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&file, damaged).unwrap();
            assert_eq!(cache.load(&key("a")), None, "byte {at}");
        }
        fs::write(&file, whole).unwrap();
        assert_eq!(cache.load(&key("a")), Some(body));
        assert!(cache.note().unwrap().contains("is damaged (not an entry of this version)"));
    }

    #[test]
    fn a_file_under_the_name_of_another_is_absent() {
        let scratch = scratch();
        let (cache, file) = with_one_entry(scratch.path());
        fs::copy(&file, file.with_file_name(key("b").file_name())).unwrap();
        assert_eq!(cache.load(&key("b")), None);
        assert!(cache.note().unwrap().contains("stored under another key"));
    }

    #[test]
    fn an_endless_file_is_not_read() {
        let scratch = scratch();
        let (_, file) = with_one_entry(scratch.path());
        File::options().write(true).open(&file).unwrap().set_len(LARGEST_ENTRY + 1).unwrap();
        let cache = at(&scratch.path().join("c"));
        assert_eq!(cache.load(&key("a")), None);
        assert!(cache.note().unwrap().contains("over the limit of"));
    }

    #[test]
    fn a_body_that_would_not_be_read_is_not_written() {
        let scratch = scratch();
        let cache = at(&scratch.path().join("c"));
        cache.store(&key("a"), &vec![0; (64 << 20) + 1]);
        assert!(cache.note().unwrap().contains("67108865 bytes is over the limit of 67108864"));
        assert!(!scratch.path().join("c").exists());
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_not_used() {
        for mode in [0o777, 0o770, 0o702, 0o720] {
            let scratch = scratch();
            let (_, file) = with_one_entry(scratch.path());
            set_mode(file.parent().unwrap(), mode);
            assert_useless(
                file.parent().unwrap(),
                &format!("it is writable by others (mode {mode:03o}): not used"),
            );
        }
    }

    #[test]
    fn a_file_that_others_may_write_to_is_not_used() {
        let scratch = scratch();
        let (_, file) = with_one_entry(scratch.path());
        set_mode(&file, 0o666);
        assert_replaced(&scratch.path().join("c"), "it is writable by others (mode 666): not used");
    }

    /// Root owns `/`, and root can give a folder away.
    #[test]
    fn a_folder_of_another_user_is_not_used() {
        let scratch = scratch();
        if !is_root() {
            return assert_useless(Path::new("/"), "it belongs to user 0");
        }
        let (_, file) = with_one_entry(scratch.path());
        let (folder, link) = (file.parent().unwrap(), scratch.path().join("link"));
        symlink(folder, &link).unwrap();
        chown(&file, Some(65534), None).unwrap();
        assert_replaced(folder, "it belongs to user 65534 and this process runs as user 0");
        chown(folder, Some(65534), None).unwrap();
        assert_useless(folder, "it belongs to user 65534 and this process runs as user 0: not used");
        assert_useless(&link, "it belongs to user 65534");
    }

    #[test]
    fn a_link_to_a_good_folder_is_good() {
        let scratch = scratch();
        let (_, file) = with_one_entry(scratch.path());
        let link = scratch.path().join("link");
        symlink(file.parent().unwrap(), &link).unwrap();
        assert_eq!(at(&link).load(&key("a")).as_deref(), Some(BODY));
        set_mode(file.parent().unwrap(), 0o777);
        assert_useless(&link, "writable by others");
    }

    #[test]
    fn a_linked_file_is_not_followed_and_a_pipe_not_waited_for() {
        let scratch = scratch();
        let (_, file) = with_one_entry(scratch.path());
        let elsewhere = scratch.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        let before = fs::read(&elsewhere).unwrap();
        assert_replaced(&scratch.path().join("c"), "is no regular file");
        assert_eq!(fs::read(&elsewhere).unwrap(), before, "the link was replaced, not what it led to");
        fs::remove_file(&file).unwrap();
        assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        assert_replaced(&scratch.path().join("c"), "is no regular file");
    }

    #[test]
    fn a_folder_in_place_of_a_file_is_left() {
        let scratch = scratch();
        let folder = scratch.path().join("c");
        let (_, file) = with_one_entry(scratch.path());
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_useless(&folder, "is no regular file");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_left() {
        let scratch = scratch();
        let path = scratch.path().join("file");
        fs::write(&path, "not a folder").unwrap();
        assert_useless(&path, "opening the folder failed");
        assert_useless(&path.join("below"), "opening the folder failed");
        assert_eq!(fs::read(&path).unwrap(), b"not a folder");
    }

    /// Root writes to a read-only folder all the same, and to nothing in `/proc`.
    #[test]
    fn a_read_only_folder_is_read() {
        let scratch = scratch();
        let (_, file) = with_one_entry(scratch.path());
        let folder = file.parent().unwrap();
        set_mode(folder, 0o500);
        let cache = at(folder);
        assert_eq!(cache.load(&key("a")).as_deref(), Some(BODY));
        if !is_root() {
            cache.store(&key("b"), BODY);
            assert!(cache.note().unwrap().contains("making a file failed"));
        }
        set_mode(folder, 0o700);
        if cfg!(target_os = "linux") {
            assert_useless(Path::new("/proc/self/fdinfo"), "making a file failed");
            assert_useless(Path::new("/proc/no-such-folder"), "making the folder failed");
        }
    }

    /// In a process that may write no more than 4 KiB (8 blocks of 512 bytes) to a file.
    #[test]
    fn a_full_disk_leaves_nothing_behind() {
        const NAME: &str = "cache::tests::unix::a_full_disk_leaves_nothing_behind";
        if env::var_os("SWIGLU_TEST_FULL").is_none() {
            let mut again = Command::new("sh");
            again.args(["-c", "trap '' XFSZ; ulimit -f 8 && exec \"$0\" --exact \"$1\""]);
            again.arg(env::current_exe().unwrap()).arg(NAME).env("SWIGLU_TEST_FULL", "1");
            let output = again.output().expect("there is a shell");
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
            return;
        }
        let scratch = scratch();
        let (cache, file) = with_one_entry(scratch.path());
        cache.store(&key("b"), &[7; 100_000]);
        assert_eq!(cache.load(&key("b")), None);
        assert!(cache.note().unwrap().contains("writing a file failed"), "{:?}", cache.note());
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(cache.load(&key("a")).as_deref(), Some(BODY), "what fitted stays");
    }

    /// A reader meets one writer's file or the other's, never a mixture or half of one.
    #[test]
    fn two_writers_and_a_reader_do_no_harm() {
        let scratch = scratch();
        let (cache, file) = with_one_entry(scratch.path());
        let bodies = [vec![1; 50_000], vec![2; 60_000]];
        let start = Barrier::new(3);
        thread::scope(|scope| {
            for body in &bodies {
                let (cache, start) = (&cache, &start);
                scope.spawn(move || {
                    start.wait();
                    (0..20).for_each(|_| cache.store(&key("a"), body));
                });
            }
            start.wait();
            for _ in 0..100 {
                let found = cache.load(&key("a")).expect("there is always a whole file");
                assert!(found == BODY || bodies.contains(&found));
            }
        });
        assert!(bodies.contains(&cache.load(&key("a")).unwrap()));
        assert_eq!((cache.note(), fs::read_dir(file.parent().unwrap()).unwrap().count()), (None, 1));
    }

    #[test]
    fn keys_are_names_and_not_paths() {
        let name = Key::of(&["../../etc/passwd"]).file_name();
        assert!(
            name.len() == 70 && name.strip_suffix(".cubin").unwrap().bytes().all(|b| b.is_ascii_hexdigit())
        );
    }
}
