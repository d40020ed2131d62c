//! What tuning found, on disk beside the cubins and under their rules: one file for each device and version of the
//! kernels. No trouble with it is ever an error: what cannot be read is measured again.
//!
//! A line for each bucket: its four numbers and the three of the variant, in hexadecimal.

use std::collections::BTreeMap;
use std::sync::Mutex;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;

use crate::Preflight;
use crate::cache::{DiskCache, Key};
use crate::device::Facts;
use crate::kernel::competing_files;

use super::choices::Bucket;
use super::variant::Variant;

/// What a choice depends on besides its bucket.
pub(crate) fn key(found: &Preflight, facts: &Facts, context: &CudaContext) -> Key {
    // 0 where a driver does not say.
    let attribute = |which| context.attribute(which).unwrap_or(0).to_string();
    let numbers = [
        facts.capability.to_string(),
        facts.multiprocessors.to_string(),
        facts.shared_bytes.to_string(),
        found.gpu.memory_bytes.to_string(),
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE),
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE),
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
        found.driver.version.to_string(),
        found.nvrtc.version.to_string(),
    ];
    let mut parts = vec![env!("CARGO_PKG_VERSION"), found.gpu.name.as_str()];
    parts.extend(numbers.iter().map(String::as_str));
    parts.extend(competing_files().flat_map(|(name, text)| [name, text]));
    Key::of_choices(&parts)
}

/// The file of one device.
#[derive(Debug)]
pub(crate) struct Store {
    key: Key,
    /// Writers of this process take turns. One of another process may overwrite what this one adds at the same moment,
    /// which is then measured again by whoever next needs it.
    writing: Mutex<()>,
}

impl Store {
    pub(crate) fn new(key: Key) -> Self {
        Self { key, writing: Mutex::default() }
    }

    /// What is stored, as far as it can be read.
    pub(crate) fn load(&self, cache: &DiskCache) -> BTreeMap<Bucket, Variant> {
        cache.find(&self.key).map_or_else(BTreeMap::new, |body| decode(&body))
    }

    /// Adds entries to what is stored.
    pub(crate) fn add(&self, cache: &DiskCache, entries: &[(Bucket, Variant)]) {
        let _turn = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut all = self.load(cache);
        all.extend(entries.iter().copied());
        cache.store(&self.key, encode(&all).as_bytes());
    }
}

fn encode(entries: &BTreeMap<Bucket, Variant>) -> String {
    let line = |(bucket, variant): (&Bucket, &Variant)| {
        let numbers = bucket.0.into_iter().chain(variant.to_numbers());
        numbers.map(|number| format!("{number:x}")).collect::<Vec<_>>().join(" ") + "\n"
    };
    entries.iter().map(line).collect()
}

/// A line that is none of [`encode`]'s is left out.
fn decode(body: &[u8]) -> BTreeMap<Bucket, Variant> {
    let line = |line: &str| {
        let numbers = line.split(' ').map(|number| u64::from_str_radix(number, 16));
        let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
        let [flags, m, n, k, kind, first, second] = numbers.try_into().ok()?;
        Some((Bucket([flags, m, n, k]), Variant::of_numbers([kind, first, second])?))
    };
    String::from_utf8_lossy(body).lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Edge;

    const ENTRIES: [(Bucket, Variant); 4] = [
        (Bucket([u64::MAX, 8192, 14336, 4096]), Variant::Hopper { pairs: false, group: 16 }),
        (Bucket([1, 2, 3, 4]), Variant::Tile(Edge::E64)),
        (Bucket([1, 2, 3, 5]), Variant::Decode { columns: 64 }),
        (Bucket([0; 4]), Variant::Hopper { pairs: true, group: 8 }),
    ];

    fn in_folder(path: &std::path::Path) -> (DiskCache, Store) {
        (DiskCache::at(path.to_path_buf()), Store::new(Key::of_choices(&["a device"])))
    }

    #[test]
    fn what_is_stored_comes_back_and_is_added_to() -> std::io::Result<()> {
        let scratch = tempfile::tempdir()?;
        let (cache, store) = in_folder(&scratch.path().join("c"));
        assert!(store.load(&cache).is_empty());
        store.add(&cache, &ENTRIES[..2]);
        let changed = (ENTRIES[0].0, Variant::Hopper { pairs: true, group: 4 });
        store.add(&cache, &[ENTRIES[2], changed]);
        // Another process finds it too, and it does not count as a kernel.
        let (cache, store) = in_folder(&scratch.path().join("c"));
        let expected = BTreeMap::from([changed, ENTRIES[1], ENTRIES[2]]);
        assert_eq!(store.load(&cache), if cfg!(unix) { expected } else { BTreeMap::new() });
        assert_eq!((cache.hits(), cache.misses()), (0, 0));
        // Another device has a file of its own.
        assert!(Store::new(Key::of_choices(&["another"])).load(&cache).is_empty());
        Ok(())
    }

    #[test]
    fn text_and_entries_are_one() {
        let entries = BTreeMap::from(ENTRIES);
        assert_eq!(decode(encode(&entries).as_bytes()), entries);
        assert_eq!(encode(&BTreeMap::new()), "");
    }

    #[test]
    fn lines_of_nonsense_are_left_out() {
        let good = "1 2 3 4 1 40 0";
        for bad in [
            "",
            "1 2 3 4 1 40",
            "1 2 3 4 1 40 0 0",
            "1 2 3 4 1 41 0",
            "1 2 3 4 0 2 8",
            "1 2 3 4 0 1 7",
            "1 2 3 4 2 20 0",
            "1 2 3 4 3 0 0",
            "x 2 3 4 1 40 0",
            "10000000000000000 2 3 4 1 40 0",
            "\u{fffd}",
        ] {
            assert!(decode(bad.as_bytes()).is_empty(), "{bad}");
            assert_eq!(decode(format!("{bad}\n{good}\n").as_bytes()).len(), 1, "{bad}");
        }
        assert!(decode(&[0xff, 0xfe, b'\n']).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn damage_and_strangers_are_as_good_as_nothing() -> std::io::Result<()> {
        use std::fs::{self, Permissions};
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir()?;
        let path = scratch.path().join("c");
        let (cache, store) = in_folder(&path);
        store.add(&cache, &ENTRIES);
        let file = fs::read_dir(&path)?.next().ok_or(std::io::ErrorKind::NotFound)??.path();
        assert!(file.extension().is_some_and(|extension| extension == "tuned"), "{file:?}");
        let whole = fs::read(&file)?;
        for at in [0, 20, 41, 60, whole.len() - 2] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&file, damaged)?;
            let (cache, store) = in_folder(&path);
            assert!(store.load(&cache).is_empty(), "byte {at}");
            assert!(cache.note().is_some_and(|note| note.contains("damaged")), "{:?}", cache.note());
        }
        // What is written next is whole again.
        store.add(&cache, &ENTRIES[..1]);
        assert_eq!(store.load(&cache).len(), 1);
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        let (cache, store) = in_folder(&path);
        assert!(store.load(&cache).is_empty());
        store.add(&cache, &ENTRIES);
        assert!(cache.note().is_some_and(|note| note.contains("writable by others")), "{:?}", cache.note());
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        assert_eq!(store.load(&in_folder(&path).0).len(), 1, "nothing was written");
        Ok(())
    }
}
