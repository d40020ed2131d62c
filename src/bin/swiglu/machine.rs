//! The processor: its name, cores and caches, as far as the system says.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

const CPUINFO: &str = "/proc/cpuinfo";
const CACHES: &str = "/sys/devices/system/cpu/cpu0/cache";

/// The processor.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Its name; `None` where the system does not say.
    pub(crate) model: Option<String>,
    /// Logical cores that this process may use.
    pub(crate) cores: usize,
    /// The caches of the first core.
    pub(crate) caches: Vec<Cache>,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cache {
    /// 1 is nearest to the core.
    pub(crate) level: u32,
    /// `data`, `instruction` or `unified`.
    pub(crate) kind: String,
    /// Its size.
    pub(crate) bytes: u64,
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Self {
        Self {
            model: fs::read_to_string(CPUINFO).ok().and_then(|text| model(&text)),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            caches: caches(Path::new(CACHES)),
        }
    }
}

/// The first processor's name in the text of `/proc/cpuinfo`; ARM has none there.
fn model(cpuinfo: &str) -> Option<String> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let names = fields.filter(|(key, _)| key.trim() == "model name");
    names.map(|(_, name)| name.trim().to_owned()).find(|name| !name.is_empty())
}

/// The caches in a folder with one folder, `index0` and so on, for each.
fn caches(folder: &Path) -> Vec<Cache> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut caches: Vec<Cache> = entries.filter_map(|entry| cache(&entry.path())).collect();
    caches.sort_by(|a, b| (a.level, &a.kind).cmp(&(b.level, &b.kind)));
    caches
}

fn cache(folder: &Path) -> Option<Cache> {
    let read = |name| fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned());
    let level = read("level")?.parse().ok()?;
    Some(Cache { level, kind: read("type")?.to_lowercase(), bytes: bytes(&read("size")?)? })
}

/// `32K` or `1M` as bytes.
fn bytes(size: &str) -> Option<u64> {
    let (digits, unit) = match size.as_bytes().last()? {
        b'K' => (&size[..size.len() - 1], 1 << 10),
        b'M' => (&size[..size.len() - 1], 1 << 20),
        _ => (size, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// `L1 data 32 KiB`.
impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, kind, bytes } = self;
        write!(f, "L{level}")?;
        if kind != "unified" {
            write!(f, " {kind}")?;
        }
        match bytes {
            bytes if bytes % (1 << 20) == 0 => write!(f, " {} MiB", bytes >> 20),
            bytes => write!(f, " {} KiB", bytes >> 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_counts() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2.00GHz\n\nprocessor\t: 1\nmodel name\t: B\n";
        assert_eq!(model(text).as_deref(), Some("A CPU @ 2.00GHz"));
        assert_eq!(model("processor : 0\nmodel name :\n"), None);
        assert_eq!(model(""), None);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(["32K", "1M", "64"].map(bytes), [Some(32 << 10), Some(1 << 20), Some(64)]);
        assert_eq!(["", "K", "much", "99999999999999999999M"].map(bytes), [None; 4]);
    }

    #[test]
    fn caches_are_those_of_the_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |index: &str, name: &str, text: &str| {
            let cache = folder.path().join(index);
            fs::create_dir_all(&cache).expect("a temporary folder takes folders");
            fs::write(cache.join(name), text).expect("a temporary folder takes files");
        };
        for (index, level, kind, size) in
            [("index1", "2", "Unified", "1024K"), ("index0", "1", "Data", "48K")]
        {
            write(index, "level", &format!("{level}\n"));
            write(index, "type", &format!("{kind}\n"));
            write(index, "size", &format!("{size}\n"));
        }
        write("index2", "level", "3\n");
        let texts: Vec<String> = caches(folder.path()).iter().map(Cache::to_string).collect();
        assert_eq!(texts, ["L1 data 48 KiB", "L2 1 MiB"]);
        assert_eq!(caches(&folder.path().join("none")), []);
    }
}
