//! `model.safetensors.index.json`: which shard holds which tensor.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::header::Text;
use crate::shard::{check_names, open_regular, read_bytes};

/// An index, its bytes as they were, for saving them again.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) bytes: Vec<u8>,
    /// Names of the shards, each once.
    pub(crate) shards: Vec<String>,
    /// Position in `shards` of the shard of each tensor that was asked for.
    pub(crate) places: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Parsed<'a> {
    #[serde(borrow)]
    weight_map: WeightMap<'a>,
}

/// Tensor and shard, with duplicates.
struct WeightMap<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for WeightMap<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(tensor), Text(shard))) = map.next_entry()? {
                    entries.push((tensor, shard));
                }
                Ok(WeightMap(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Index {
    /// Reads an index; the places of the tensors for which `wanted` is true. Shards have plain names, but need not exist.
    pub(crate) fn open(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let (mut file, length) = open_regular(path)?;
        let bytes = read_bytes(&mut file, path, length)?;
        let Parsed { weight_map: WeightMap(mut entries) } = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Index { file: path.to_owned(), source })?;
        check_names(&mut entries, path)?;
        let (mut shards, mut positions, mut places) = (Vec::new(), HashMap::new(), HashMap::new());
        for (tensor, shard) in &entries {
            if !is_plain(shard) {
                let (tensor, shard) = (tensor.to_string(), shard.to_string());
                return Err(Error::ShardName { file: path.to_owned(), tensor, shard });
            }
            let position = *positions.entry(shard.as_ref()).or_insert_with(|| {
                shards.push(shard.to_string());
                shards.len() - 1
            });
            if wanted(tensor) {
                places.insert(tensor.to_string(), position);
            }
        }
        Ok(Self { bytes, shards, places })
    }
}

/// The name of a file in the folder of the index, and nothing that leads out of it.
fn is_plain(shard: &str) -> bool {
    let mut components = Path::new(shard).components();
    let first = components.next();
    matches!(first, Some(Component::Normal(name)) if name == shard) && components.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_the_folder_are_not_plain() {
        for name in ["model-00001-of-00002.safetensors", "a", "..a", "a b"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", ".", "..", "/", "/a", "../a", "a/b", "a/../b", "./a", "a/", "a/."] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
