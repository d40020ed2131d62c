//! A checkpoint: its files, and the MLPs that they hold.

use std::fmt;
use std::path::{Path, PathBuf};

use swiglu_core::{Dtype, Gate, Orientation};

use crate::error::{Error, Result};
use crate::find::{Group, expert_of, find};
use crate::index::Index;
use crate::names::{Family, Name, Packing};
use crate::problem::Problem;
use crate::shard::{Shard, Tensor};

const MODEL: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Safetensors files that hold MLPs. Headers are read when it is opened, tensors when an MLP is loaded.
#[derive(Debug)]
pub struct Checkpoint {
    /// What was opened: a file or an index.
    path: PathBuf,
    pub(crate) shards: Vec<Shard>,
    pub(crate) source: Source,
    groups: Vec<Group>,
    problems: Vec<Problem>,
}

/// What a checkpoint was opened as, and is saved as.
#[derive(Debug)]
pub(crate) enum Source {
    /// One file.
    File,
    /// A folder that holds one file.
    Folder,
    /// A folder of shards, with the bytes of its index.
    Sharded {
        /// Kept, so that they are saved as they were.
        index: Vec<u8>,
    },
}

impl Checkpoint {
    /// Opens a safetensors file, an index (`*.index.json`), or a folder that holds `model.safetensors` or
    /// `model.safetensors.index.json`.
    ///
    /// Only headers are read. What is allocated for one is bounded by its length, which is checked against the file
    /// before: see the [crate's documentation](crate).
    ///
    /// # Errors
    /// Every [`Error`] that names a file and not an MLP.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open_folder(path);
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_index(path);
        }
        Self::open_file(path, Source::File)
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let (model, index) = (folder.join(MODEL), folder.join(INDEX));
        match (model.exists(), index.exists()) {
            (true, false) => Self::open_file(&model, Source::Folder),
            (false, true) => Self::open_index(&index),
            (true, true) => Err(Error::TwoModels { folder: folder.to_owned() }),
            (false, false) => Err(Error::NoModel { folder: folder.to_owned() }),
        }
    }

    fn open_file(path: &Path, source: Source) -> Result<Self> {
        let (shard, tensors) = Shard::open(path, 0, is_wanted)?;
        Ok(Self::new(path, vec![shard], source, tensors))
    }

    fn open_index(path: &Path) -> Result<Self> {
        let Index { bytes, shards: names, mut places } = Index::open(path, is_wanted)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let (mut shards, mut tensors) = (Vec::new(), Vec::new());
        for (position, name) in names.iter().enumerate() {
            let file = folder.join(name);
            if !file.exists() {
                return Err(Error::MissingShard { file: path.to_owned(), shard: name.clone() });
            }
            let (shard, found) =
                Shard::open(&file, position, |tensor| places.get(tensor) == Some(&position))?;
            shards.push(shard);
            tensors.extend(found);
        }
        for Tensor { name, .. } in &tensors {
            places.remove(name);
        }
        match places.into_iter().min() {
            Some((tensor, position)) => {
                let (file, shard) = (path.to_owned(), names[position].clone());
                Err(Error::NotInShard { file, tensor, shard })
            }
            None => Ok(Self::new(path, shards, Source::Sharded { index: bytes }, tensors)),
        }
    }

    fn new(path: &Path, shards: Vec<Shard>, source: Source, tensors: Vec<Tensor>) -> Self {
        let (groups, problems) = find(tensors);
        Self { path: path.to_owned(), shards, source, groups, problems }
    }

    /// The file or index that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every MLP that can be loaded, each expert by itself, layer 2 before layer 10.
    pub fn mlps(&self) -> impl Iterator<Item = Mlp<'_>> {
        self.groups.iter().flat_map(move |group| {
            let experts = group.experts.map_or(0..1, |experts| 0..experts);
            experts.map(move |expert| Mlp { checkpoint: self, group, expert })
        })
    }

    /// What looks like an MLP but cannot be loaded, and why.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The MLP of this name: what the names of its tensors start with, and for experts that share a tensor their number,
    /// such as `model.layers.0.mlp` or `model.layers.0.mlp.experts.3`.
    ///
    /// # Errors
    /// [`Error::NoSuchMlp`]; [`Error::Unusable`] with the reason when there is one but it cannot be used.
    pub fn mlp(&self, name: &str) -> Result<Mlp<'_>> {
        if let Some(mlp) = self.find(name) {
            return Ok(mlp);
        }
        let file = self.path.clone();
        match self.problems.iter().find(|problem| problem.prefix == name) {
            Some(problem) => Err(Error::Unusable { file, problem: Box::new(problem.clone()) }),
            None => Err(Error::NoSuchMlp { file, mlp: name.to_owned() }),
        }
    }

    fn find(&self, name: &str) -> Option<Mlp<'_>> {
        let whole = self.groups.iter().find(|group| group.experts.is_none() && group.prefix == name);
        if let Some(group) = whole {
            return Some(Mlp { checkpoint: self, group, expert: 0 });
        }
        let (prefix, expert) = expert_of(name)?;
        let has_expert = |group: &&Group| group.experts.is_some_and(|experts| expert < experts);
        let group = self.groups.iter().filter(has_expert).find(|group| group.prefix == prefix)?;
        Some(Mlp { checkpoint: self, group, expert })
    }
}

/// Part of an MLP, by its name.
fn is_wanted(tensor: &str) -> bool {
    Name::parse(tensor).is_some()
}

/// An MLP of a checkpoint that can be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Mlp<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) group: &'a Group,
    /// 0 where tensors hold one MLP each.
    pub(crate) expert: u64,
}

impl<'a> Mlp<'a> {
    /// The name that [`Checkpoint::mlp`] takes.
    pub fn name(&self) -> String {
        let prefix = &self.group.prefix;
        match self.group.experts {
            Some(_) if prefix.is_empty() => self.expert.to_string(),
            Some(_) => format!("{prefix}.{}", self.expert),
            None => prefix.clone(),
        }
    }

    /// What the names of its tensors start with.
    pub fn prefix(&self) -> &'a str {
        &self.group.prefix
    }

    /// Which models name their tensors so.
    pub fn family(&self) -> Family {
        self.group.family
    }

    /// How gate and up share tensors in the file.
    pub fn packing(&self) -> Packing {
        self.family().packing()
    }

    /// How each matrix lies in the file.
    pub fn orientation(&self) -> Orientation {
        self.family().orientation()
    }

    /// The gate function that the names stand for.
    pub fn function(&self) -> Gate {
        self.family().function()
    }

    /// The element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.group.dtype
    }

    /// I.
    pub fn in_features(&self) -> usize {
        self.group.in_features
    }

    /// D.
    pub fn hidden(&self) -> usize {
        self.group.hidden
    }

    /// O.
    pub fn out_features(&self) -> usize {
        self.group.out_features
    }

    /// Which expert this is, where its tensors hold several.
    pub fn expert(&self) -> Option<u64> {
        self.group.experts.map(|_| self.expert)
    }

    /// Whether gate and up have a bias.
    pub fn has_bias(&self) -> bool {
        !self.group.spans.bias.is_empty()
    }

    /// Whether the down projection has a bias.
    pub fn has_down_bias(&self) -> bool {
        self.group.spans.down_bias.is_some()
    }
}

impl fmt::Display for Mlp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.name(), self.group)
    }
}

/// What is the same for every expert of a layer.
impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, dtype, in_features, hidden, out_features, spans, .. } = self;
        write!(f, "({family}): {dtype}, in_features {in_features}, hidden {hidden}, ")?;
        write!(f, "out_features {out_features}")?;
        if !spans.bias.is_empty() {
            f.write_str(", bias")?;
        }
        if spans.down_bias.is_some() {
            f.write_str(", down bias")?;
        }
        Ok(())
    }
}

/// What was found: a line for each MLP, or for all experts that share tensors, and one for each problem.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in &self.groups {
            write!(f, "{:?} {group}", group.prefix)?;
            match group.experts {
                Some(experts) => writeln!(f, ", {experts} experts")?,
                None => writeln!(f)?,
            }
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "unusable: {problem}"))
    }
}
