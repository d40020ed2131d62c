//! Folders and indices: an MLP whose tensors lie in several files, and saving all of them.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Tensor, bytes_of, gpt_oss, llama, tensor, write};
use safetensors::Dtype::{BF16, F16};
use swiglu_checkpoint::Checkpoint;
use swiglu_core::bf16;
use tempfile::TempDir;

/// Tensors in turn in two shards, with an index as `transformers` writes it.
fn sharded(tensors: &[Tensor]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut lines = Vec::new();
    for position in 0..2 {
        let name = format!("model-0000{}-of-00002.safetensors", position + 1);
        let part: Vec<Tensor> = tensors.iter().skip(position).step_by(2).cloned().collect();
        write(&folder.path().join(&name), &part);
        lines.extend(part.iter().map(|tensor| format!("    \"{}\": \"{name}\"", tensor.name)));
    }
    lines.sort();
    let index = format!(
        "{{\n  \"metadata\": {{\n    \"total_size\": 1\n  }},\n  \"weight_map\": {{\n{}\n  }}\n}}\n",
        lines.join(",\n")
    );
    fs::write(folder.path().join("model.safetensors.index.json"), index).expect("written");
    folder
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| {
            (path.file_name().expect("a name").display().to_string(), fs::read(&path).expect("a file"))
        })
        .collect()
}

fn model() -> Vec<Tensor> {
    let mut tensors = llama("model.layers.0.mlp", BF16, true);
    tensors.extend(gpt_oss("model.layers.1.mlp.experts", BF16));
    tensors.push(tensor("lm_head.weight", F16, &[3, 4]));
    tensors
}

#[test]
fn shards_are_loaded_and_saved_bit_for_bit() {
    let folder = sharded(&model());
    for path in [folder.path().to_owned(), folder.path().join("model.safetensors.index.json")] {
        let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((checkpoint.mlps().count(), checkpoint.problems()), (4, [].as_slice()));
        let whole = model();
        let of = |name: &str| &whole.iter().find(|tensor| tensor.name == name).expect("a tensor").bytes;
        let loaded: Vec<_> = checkpoint
            .mlps()
            .map(|mlp| (mlp.name(), mlp.load::<bf16>().unwrap_or_else(|e| panic!("{e}"))))
            .collect();
        let halves =
            ["gate_proj", "up_proj"].map(|name| of(&format!("model.layers.0.mlp.{name}.weight")).as_slice());
        assert_eq!(bytes_of(&loaded[0].1.wf), halves.concat());

        let mut edit = checkpoint.edit();
        for (name, weights) in &loaded {
            edit.put(name, weights).unwrap_or_else(|e| panic!("{e}"));
        }
        let copy = tempfile::tempdir().expect("a temporary folder");
        let to = copy.path().join("new").join("folder");
        edit.save(&to).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(files(&to), files(folder.path()));
        let before = files(folder.path());
        edit.save(folder.path()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(files(folder.path()), before, "in place");
    }
}

#[test]
fn a_folder_of_one_file_is_saved_as_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(&folder.path().join("model.safetensors"), &model());
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    let copy = tempfile::tempdir().expect("a temporary folder");
    checkpoint.edit().save(copy.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(files(copy.path()), files(folder.path()));
}

#[test]
fn a_tensor_that_the_index_places_elsewhere_does_not_count() {
    let folder = sharded(&model());
    // Shard 1 gets a second, other up_proj, which the index says is in shard 2.
    let first = folder.path().join("model-00001-of-00002.safetensors");
    let mut tensors: Vec<Tensor> = model().into_iter().step_by(2).collect();
    tensors.push(tensor("model.layers.0.mlp.up_proj.weight", F16, &[1, 1]));
    write(&first, &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((checkpoint.mlps().count(), checkpoint.problems()), (4, [].as_slice()));
}

#[test]
fn a_shard_that_cannot_be_saved_leaves_all_as_they_were() {
    let folder = sharded(&model());
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    let second = folder.path().join("model-00002-of-00002.safetensors");
    fs::File::options().write(true).open(second).and_then(|file| file.set_len(50)).expect("cut off");
    let target = sharded(&[]);
    let before = files(target.path());
    assert!(checkpoint.edit().save(target.path()).is_err(), "a shard is cut off");
    assert_eq!(files(target.path()), before);
}
