//! Files that are cut off, lie, or mean harm: a typed error, and allocations in proportion to the file.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `SWIGLU_CASES` | random files of each kind | 2000 |
//! | `SWIGLU_SEED` | seed of the generators | 0 |
//!
//! A failure prints the seed of its case and where the file is: keep it in `tests/corpus`, with its outcome in the table.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use common::with_header;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use swiglu_checkpoint::{Checkpoint, Error, Mlp, Packing};
use swiglu_core::{Dtype, bf16, f16};

/// Counts the bytes of each thread by itself, so that tests do not see each other's.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends frees after its counters are gone.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        PEAK.try_with(|peak| peak.set(peak.get().max(live.get())))
    });
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may be live while the contents move.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `work` had allocated at once.
fn peak<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

/// What the crate's documentation promises for each byte of a header.
const HEADER: usize = 8;
/// And for each byte of an index.
const INDEX: usize = 16;
/// A buffer of 64 KiB between file and matrix, and error messages.
const SLACK: usize = 72 << 10;

/// Bytes that a file has for a header; all of it where its length is a lie.
fn header_bytes(file: &[u8]) -> usize {
    let length = file.first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes));
    usize::try_from(length).map_or(file.len(), |length| length.min(file.len()))
}

/// Opens what lies at `path`, loads what it has, and says what it was: the error, or the list of MLPs and problems.
///
/// `budget` is what opening may allocate.
fn probe(path: &Path, budget: usize) -> Result<String, Error> {
    let (checkpoint, opening) = peak(|| Checkpoint::open(path));
    assert!(opening <= budget + SLACK, "opening took {opening} bytes, expected {budget} and {SLACK} at most");
    let checkpoint = checkpoint?;
    for mlp in checkpoint.mlps().take(4) {
        load(&mlp)?;
    }
    Ok(checkpoint.to_string())
}

fn load(mlp: &Mlp<'_>) -> Result<(), Error> {
    let (i, d, o) = (mlp.in_features(), mlp.hidden(), mlp.out_features());
    let biases = 2 * d * usize::from(mlp.has_bias()) + o * usize::from(mlp.has_down_bias());
    let elements = 2 * d * i + d * o + biases;
    let sorted = if mlp.packing() == Packing::InterleavedColumns { 2 } else { 1 };
    let (loaded, bytes) = peak(|| match mlp.dtype() {
        Dtype::F32 => mlp.load::<f32>().map(drop),
        Dtype::F16 => mlp.load::<f16>().map(drop),
        Dtype::Bf16 => mlp.load::<bf16>().map(drop),
    });
    assert!(bytes <= sorted * elements * mlp.dtype().bytes() + SLACK, "{elements} elements took {bytes}");
    let (widened, bytes) = peak(|| mlp.load_widened().map(drop));
    assert!(bytes <= sorted * elements * 4 + SLACK, "{elements} widened elements took {bytes}");
    loaded.and(widened)
}

/// Error messages with the name of the file for its path.
fn outcome(path: &Path, budget: usize) -> String {
    let folder = format!("{}{}", path.parent().unwrap_or(path).display(), std::path::MAIN_SEPARATOR);
    probe(path, budget).unwrap_or_else(|error| error.to_string()).replace(&folder, "")
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Each file of the corpus, and what opening and loading it says: the lines of `outcomes.txt`.
#[test]
fn every_file_of_the_corpus_has_its_outcome() {
    let mut got = Vec::new();
    for entry in fs::read_dir(corpus()).expect("the corpus is a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension != "txt") {
            let name = path.file_name().expect("a file").display().to_string();
            let budget = INDEX * fs::read(&path).expect("a file").len();
            got.push(format!("{name}: {}", outcome(&path, budget).trim_end().replace('\n', " / ")));
        }
    }
    got.sort();
    let expected = fs::read_to_string(corpus().join("outcomes.txt")).expect("the outcomes are a text");
    let expected: Vec<&str> = expected.lines().collect();
    assert!(got == expected, "expected in outcomes.txt:\n{}", got.join("\n"));
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => default,
    }
}

/// Runs `case` on the file that `make` draws, for as many seeds as the environment says.
fn fuzz(name: &str, make: impl Fn(&mut ChaCha8Rng) -> Vec<u8>, case: impl Fn(&Path, &[u8])) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::copy(corpus().join("sound.safetensors"), folder.path().join("sound.safetensors")).expect("copied");
    let path = folder.path().join(name);
    let first = number("SWIGLU_SEED", 0);
    for seed in first..first + number("SWIGLU_CASES", 2000) {
        let bytes = make(&mut ChaCha8Rng::seed_from_u64(seed));
        fs::write(&path, &bytes).expect("the temporary folder can be written");
        if catch_unwind(AssertUnwindSafe(|| case(&path, &bytes))).is_err() {
            let kept = std::env::temp_dir().join(format!("seed-{seed}-{name}"));
            fs::write(&kept, &bytes).expect("the failing file can be kept");
            panic!("SWIGLU_SEED={seed} SWIGLU_CASES=1: see above; the file is {}", kept.display());
        }
    }
}

/// Whatever the safetensors crate refuses is refused here, but for what is skipped here and nested too deeply for it;
/// whatever it takes is taken, but for what it cannot see (a name twice) and what no program writes (65 dimensions).
fn check_file(path: &Path, bytes: &[u8]) {
    let outcome = probe(path, HEADER * header_bytes(bytes));
    let theirs = SafeTensors::deserialize(bytes).map(drop);
    match (&outcome, theirs) {
        (Ok(_), Ok(())) => {}
        (Ok(_), Err(theirs)) => {
            let theirs = theirs.to_string();
            assert!(theirs.contains("recursion limit exceeded"), "taken, but {theirs}");
        }
        (Err(Error::Duplicate { .. }), _) => {}
        (Err(Error::Header { source, .. }), Ok(())) => {
            assert!(source.to_string().starts_with("more than 64 dimensions"), "{source}");
        }
        (Err(error), theirs) => assert!(theirs.is_err(), "refused: {error}"),
    }
    if outcome.is_ok() {
        let copy = path.with_extension("copy");
        Checkpoint::open(path).and_then(|c| c.edit().save(&copy)).unwrap_or_else(|e| panic!("{e}"));
        assert!(fs::read(&copy).expect("saved") == bytes, "saved as it was");
    }
}

fn pick<'a, T: ?Sized>(rng: &mut ChaCha8Rng, from: &[&'a T]) -> &'a T {
    from[below(rng, from.len())]
}

fn below(rng: &mut ChaCha8Rng, end: usize) -> usize {
    (rng.next_u64() % end.max(1) as u64) as usize
}

/// A file of one of every family, sound.
fn sound() -> Vec<u8> {
    use safetensors::Dtype::{BF16, F16, F32};
    let tensors = [common::llama("a", F16, true), common::phi3("b", BF16, false), common::gpt_oss("c", F32)];
    common::serialize(&tensors.concat())
}

#[test]
fn random_bytes_are_refused_or_sound() {
    let make = |rng: &mut ChaCha8Rng| {
        let mut bytes = vec![0; below(rng, 200)];
        rng.fill_bytes(&mut bytes);
        // Half of them with a length that could be one.
        if bytes.len() > 8 && below(rng, 2) == 0 {
            let length = below(rng, bytes.len()) as u64;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        bytes
    };
    fuzz("random.safetensors", make, check_file);
}

#[test]
fn damaged_files_are_refused_or_sound() {
    let sound = sound();
    let files: Vec<Vec<u8>> = fs::read_dir(corpus())
        .expect("the corpus is a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| fs::read(path).expect("a file"))
        .collect();
    let make = |rng: &mut ChaCha8Rng| {
        let mut bytes = match below(rng, 4) {
            0 => files[below(rng, files.len())].clone(),
            _ => sound.clone(),
        };
        for _ in 0..=below(rng, 3) {
            damage(rng, &mut bytes);
        }
        bytes
    };
    fuzz("damaged.safetensors", make, check_file);
}

/// Cuts, flips, repeats, moves or rewrites a part of a file.
fn damage(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    // Mostly in the header, where bytes mean something.
    let end = if below(rng, 4) == 0 { bytes.len() } else { header_bytes(bytes).clamp(1, bytes.len()) };
    let at = below(rng, end);
    let length = below(rng, (bytes.len() - at).min(40)) + 1;
    match below(rng, 7) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << below(rng, 8),
        2 => bytes[at] = pick(rng, &[b"0", b"9", b"-", b"\"", b"{", b"}", b"[", b"]", b",", b"\\"])[0],
        3 => {
            let part = bytes[at..at + length].to_vec();
            let to = below(rng, bytes.len());
            bytes.splice(to..to, part);
        }
        4 => drop(bytes.drain(at..at + length)),
        5 => bytes.extend(std::iter::repeat_n(0, length)),
        _ => rewrite_a_number(rng, bytes),
    }
    // Most of the time the length still fits, or the damage would never get past it.
    if bytes.len() > 8 && below(rng, 4) != 0 {
        let header = bytes[8..].windows(2).position(|pair| pair == b"}}").map_or(0, |end| end + 2);
        bytes[..8].copy_from_slice(&(header as u64).to_le_bytes());
    }
}

const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "2",
    "3",
    "5",
    "4294967296",
    "1152921504606846976",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "1e3",
];

fn rewrite_a_number(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    let from = below(rng, bytes.len());
    let digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = bytes[from..].iter().position(digit).map(|start| from + start) else { return };
    let end = bytes[start..].iter().position(|byte| !digit(byte)).map_or(bytes.len(), |end| start + end);
    bytes.splice(start..end, pick(rng, &NUMBERS).bytes());
}

/// Headers of the right form with names that mean something, and wrong numbers.
#[test]
fn lying_headers_are_refused_or_sound() {
    const NAMES: [&str; 14] = [
        "gate_proj.weight",
        "up_proj.weight",
        "down_proj.weight",
        "gate_proj.bias",
        "up_proj.bias",
        "down_proj.bias",
        "gate_up_proj.weight",
        "gate_up_proj",
        "gate_up_proj_bias",
        "down_proj",
        "down_proj_blocks",
        "w1.weight",
        "w2.weight",
        "w3.weight",
    ];
    const DTYPES: [&str; 8] = ["F32", "F16", "BF16", "BF16", "BF16", "F4", "U8", "F64"];
    let make = |rng: &mut ChaCha8Rng| {
        let (mut header, mut end, mut names) = (String::new(), 0u64, BTreeSet::new());
        for _ in 0..below(rng, 8) {
            let name = format!("{}{}", pick(rng, &["", "m.", "m.1."]), pick(rng, &NAMES));
            if !names.insert(name.clone()) && below(rng, 8) != 0 {
                continue;
            }
            let extents: Vec<&str> = (0..below(rng, 4)).map(|_| extent(rng)).collect();
            let dtype = pick(rng, &DTYPES);
            let start = if below(rng, 20) == 0 { end + 1 } else { end };
            end = start + honest_bytes(dtype, &extents).unwrap_or(below(rng, 100) as u64);
            let shape = extents.join(",");
            header += &format!(
                r#","{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{end}]}}"#
            );
        }
        let header = format!("{{{}}}", header.trim_start_matches(','));
        let short = usize::from(below(rng, 10) == 0);
        with_header(&header, &vec![0; usize::try_from(end).unwrap_or(0).saturating_sub(short)])
    };
    fuzz("lying.safetensors", make, check_file);
}

/// Mostly small and even, so that some shapes fit each other.
fn extent(rng: &mut ChaCha8Rng) -> &'static str {
    if below(rng, 8) == 0 { pick(rng, &NUMBERS) } else { pick(rng, &["1", "2", "2", "2", "4", "4"]) }
}

/// What a tensor should take, where that is little enough to be written.
fn honest_bytes(dtype: &str, extents: &[&str]) -> Option<u64> {
    let bits = match dtype {
        "F64" => 64,
        "F32" => 32,
        "F16" | "BF16" => 16,
        "U8" => 8,
        _ => 4,
    };
    let mut numbers = extents.iter().map(|extent| extent.parse::<u64>().ok());
    let elements = numbers.try_fold(1u64, |product, extent| product.checked_mul(extent?))?;
    elements.checked_mul(bits).map(|bits| bits / 8).filter(|&bytes| bytes < 10_000)
}

#[test]
fn damaged_indices_are_refused_or_sound() {
    let sound = r#"{"metadata":{"total_size":14},"weight_map":{"gate_proj.weight":"sound.safetensors",
        "up_proj.weight":"sound.safetensors","down_proj.weight":"sound.safetensors"}}"#;
    let make = |rng: &mut ChaCha8Rng| {
        let mut bytes = sound.as_bytes().to_vec();
        for _ in 0..=below(rng, 3) {
            let at = below(rng, bytes.len());
            let length = below(rng, (bytes.len() - at).min(30)) + 1;
            match below(rng, 5) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] ^= 1 << below(rng, 8),
                2 => drop(bytes.splice(at..at + length, pick(rng, &["../", "/", ".", "\":\"", "a"]).bytes())),
                3 => {
                    let part = bytes[at..at + length].to_vec();
                    let to = below(rng, bytes.len());
                    bytes.splice(to..to, part);
                }
                _ if length < bytes.len() => drop(bytes.drain(at..at + length)),
                _ => {}
            }
        }
        bytes
    };
    fuzz("damaged.index.json", make, |path, bytes| drop(probe(path, INDEX * bytes.len())));
}

/// The texts of which a byte costs the most memory, at every length up to 100 kB: buffers double as they grow.
#[test]
fn the_dearest_headers_stay_in_proportion() {
    let tensors = |count: usize, shape: &str| {
        let entry = |i| format!(r#""{i:x}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}"#);
        (0..count).map(entry).collect::<Vec<_>>().join(",")
    };
    let modules = |count: usize| {
        let entry =
            |i| format!(r#""{i:x}.w1.bias":{{"dtype":"U8","shape":[],"data_offsets":[{i},{}]}}"#, i + 1);
        (0..count).map(entry).collect::<Vec<_>>().join(",")
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("dear.safetensors");
    for count in (1..2000).step_by(61) {
        let many = ["0,".repeat(63), "0".to_owned()].concat();
        let escaped = r#""\n":"\n","#.repeat(count * 10);
        for header in [
            format!("{{{}}}", tensors(count, "0")),
            format!("{{{}}}", tensors(count / 4, &many)),
            format!("{{{}}}", modules(count)),
            format!(r#"{{"__metadata__":{{{}"":""}}}}"#, escaped),
        ] {
            let bytes = with_header(&header, &vec![0; if header.contains("w1") { count } else { 0 }]);
            fs::write(&path, &bytes).expect("the temporary folder can be written");
            let outcome = probe(&path, HEADER * header.len());
            assert!(outcome.is_ok(), "{outcome:?}");
        }
    }
}

#[test]
fn the_dearest_indices_stay_in_proportion() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("dear.index.json");
    for count in (1..8000).step_by(241) {
        for ending in ["", ".w1.bias", r"\n"] {
            let entries = (0..count).map(|i| format!(r#""{i:x}{ending}":"a""#)).collect::<Vec<_>>().join(",");
            let text = format!(r#"{{"weight_map":{{{entries}}}}}"#);
            fs::write(&path, &text).expect("the temporary folder can be written");
            let outcome = probe(&path, INDEX * text.len());
            assert!(matches!(outcome, Err(Error::MissingShard { .. })), "{outcome:?}");
        }
    }
}

/// 100 MB and a byte, which takes no room on disk as nobody writes it.
#[test]
fn a_header_longer_than_any_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, header) in [("long.safetensors", true), ("long.index.json", false)] {
        let path = folder.path().join(name);
        fs::write(&path, 100_000_001u64.to_le_bytes()).expect("the temporary folder can be written");
        let file = fs::File::options().write(true).open(&path).expect("opened");
        file.set_len(if header { 200_000_000 } else { 100_000_001 }).expect("a sparse file");
        let outcome = probe(&path, 0);
        assert!(
            matches!(outcome, Err(Error::TooLarge { bytes: 100_000_001, limit: 100_000_000, .. })),
            "{outcome:?}"
        );
    }
}
