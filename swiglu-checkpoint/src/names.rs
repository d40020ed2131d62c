//! The names under which checkpoints keep an MLP, and what each naming says about the layout.

use std::fmt;

use swiglu_core::{Gate, Orientation};

/// Models that name and arrange the tensors of an MLP alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// `gate_proj.weight`, `up_proj.weight` `[D, I]`, `down_proj.weight` `[O, D]`: LLaMA, Mistral, Qwen, Gemma.
    Llama,
    /// `gate_up_proj.weight` `[2D, I]`, gate rows first, `down_proj.weight` `[O, D]`: Phi-3, GLM-4.
    Phi3,
    /// `w1.weight` (gate), `w3.weight` (up) `[D, I]`, `w2.weight` (down) `[O, D]`: Meta's own files, Mixtral.
    Meta,
    /// `gate_up_proj` `[E, I, 2D]`, whose gate and up columns alternate, and `down_proj` `[E, D, O]`, both with a bias,
    /// for all experts in one tensor, and the clamped gate function: gpt-oss.
    GptOss,
}

/// How the gate and the up projection share tensors in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Packing {
    /// A tensor each.
    Split,
    /// One tensor, gate half first.
    Halves,
    /// One tensor whose columns alternate: g0, u0, g1, u1, ..
    InterleavedColumns,
}

impl Family {
    /// How gate and up share tensors.
    pub const fn packing(self) -> Packing {
        match self {
            Family::Llama | Family::Meta => Packing::Split,
            Family::Phi3 => Packing::Halves,
            Family::GptOss => Packing::InterleavedColumns,
        }
    }

    /// How each matrix lies in the file, the down projection included.
    pub const fn orientation(self) -> Orientation {
        match self {
            Family::Llama | Family::Meta | Family::Phi3 => Orientation::OutIn,
            Family::GptOss => Orientation::InOut,
        }
    }

    /// The gate function that these names stand for, but for Gemma: see the crate's documentation.
    pub const fn function(self) -> Gate {
        match self {
            Family::Llama | Family::Meta | Family::Phi3 => Gate::Swiglu,
            Family::GptOss => Gate::SwigluClamped { alpha: 1.702, limit: 7.0 },
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Llama => "gate_proj/up_proj/down_proj",
            Family::Phi3 => "gate_up_proj/down_proj",
            Family::Meta => "w1/w3/w2",
            Family::GptOss => "gpt-oss experts",
        })
    }
}

/// Which projection a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Gate,
    Up,
    GateUp,
    Down,
}

/// What a tensor is to its projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Weight,
    Bias,
    /// Packed integers or blocks, as quantisers write them instead of a weight.
    Quantised,
}

/// A way of naming: which tensors under one prefix belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Naming {
    /// `gate_proj.weight` and so on: modules.
    Modules,
    /// `w1.weight` and so on.
    Numbers,
    /// `gate_up_proj` and so on without `.weight`: one parameter for all experts.
    Stacked,
}

/// A tensor name of an MLP, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) naming: Naming,
    pub(crate) role: Role,
    pub(crate) part: Part,
}

const MODULES: [(&str, Naming, Role); 7] = [
    ("gate_proj", Naming::Modules, Role::Gate),
    ("up_proj", Naming::Modules, Role::Up),
    ("gate_up_proj", Naming::Modules, Role::GateUp),
    ("down_proj", Naming::Modules, Role::Down),
    ("w1", Naming::Numbers, Role::Gate),
    ("w3", Naming::Numbers, Role::Up),
    ("w2", Naming::Numbers, Role::Down),
];

/// The last is what GPTQ and AWQ write, the one before it what compressed-tensors does.
const MODULE_PARTS: [(&str, Part); 4] = [
    ("weight", Part::Weight),
    ("bias", Part::Bias),
    ("weight_packed", Part::Quantised),
    ("qweight", Part::Quantised),
];

const STACKED: [(&str, Role); 2] = [("gate_up_proj", Role::GateUp), ("down_proj", Role::Down)];

/// gpt-oss is published in MXFP4, as `_blocks` and `_scales`.
const STACKED_PARTS: [(&str, Part); 3] =
    [("", Part::Weight), ("_bias", Part::Bias), ("_blocks", Part::Quantised)];

impl<'a> Name<'a> {
    /// Takes a tensor's name apart; `None` when it is not one of an MLP.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let (rest, last) = split_last(name);
        Self::module(rest, last).or_else(|| Self::stacked(rest, last))
    }

    fn module(rest: &'a str, last: &str) -> Option<Self> {
        let &(_, part) = MODULE_PARTS.iter().find(|(text, _)| *text == last)?;
        let (prefix, module) = split_last(rest);
        let &(_, naming, role) = MODULES.iter().find(|(text, ..)| *text == module)?;
        Some(Self { prefix, naming, role, part })
    }

    fn stacked(prefix: &'a str, last: &str) -> Option<Self> {
        STACKED.iter().find_map(|&(stem, role)| {
            let ending = last.strip_prefix(stem)?;
            let &(_, part) = STACKED_PARTS.iter().find(|(text, _)| *text == ending)?;
            Some(Self { prefix, naming: Naming::Stacked, role, part })
        })
    }
}

impl Naming {
    /// The name of a tensor that belongs to an MLP.
    pub(crate) fn tensor(self, prefix: &str, role: Role, part: Part) -> String {
        let module = MODULES.iter().find(|(_, naming, of)| *naming == self && *of == role);
        let dot = if prefix.is_empty() { "" } else { "." };
        match (module, part) {
            (Some((module, ..)), Part::Bias) => format!("{prefix}{dot}{module}.bias"),
            (Some((module, ..)), _) => format!("{prefix}{dot}{module}.weight"),
            (None, part) => {
                let stem = if role == Role::Down { "down_proj" } else { "gate_up_proj" };
                let ending = if part == Part::Bias { "_bias" } else { "" };
                format!("{prefix}{dot}{stem}{ending}")
            }
        }
    }
}

/// What stands before the last dot, and after it.
fn split_last(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> Option<(&str, Naming, Role, Part)> {
        Name::parse(name).map(|name| (name.prefix, name.naming, name.role, name.part))
    }

    #[test]
    fn names_of_every_family_are_taken_apart() {
        use {Naming::*, Part::*, Role::*};
        for (name, expected) in [
            ("model.layers.0.mlp.gate_proj.weight", ("model.layers.0.mlp", Modules, Gate, Weight)),
            ("model.layers.0.mlp.up_proj.bias", ("model.layers.0.mlp", Modules, Up, Bias)),
            ("down_proj.weight", ("", Modules, Down, Weight)),
            ("a.gate_up_proj.weight", ("a", Modules, GateUp, Weight)),
            ("layers.3.feed_forward.w1.weight", ("layers.3.feed_forward", Numbers, Gate, Weight)),
            ("block_sparse_moe.experts.7.w3.weight", ("block_sparse_moe.experts.7", Numbers, Up, Weight)),
            ("w2.bias", ("", Numbers, Down, Bias)),
            ("mlp.experts.gate_up_proj", ("mlp.experts", Stacked, GateUp, Weight)),
            ("mlp.experts.gate_up_proj_bias", ("mlp.experts", Stacked, GateUp, Bias)),
            ("mlp.experts.down_proj", ("mlp.experts", Stacked, Down, Weight)),
            ("mlp.experts.down_proj_blocks", ("mlp.experts", Stacked, Down, Quantised)),
            ("mlp.gate_proj.qweight", ("mlp", Modules, Gate, Quantised)),
            ("mlp.w1.weight_packed", ("mlp", Numbers, Gate, Quantised)),
        ] {
            assert_eq!(parsed(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn other_names_are_left_alone() {
        for name in [
            "",
            ".",
            "weight",
            "model.norm.weight",
            "mlp.gate.weight",
            "mlp.gate_proj",
            "mlp.gate_proj.lora_A.weight",
            "mlp.my_gate_proj.weight",
            "mlp.gate_proj.weight.grad",
            "mlp.down_proj_scales",
            "mlp.w4.weight",
        ] {
            assert_eq!(parsed(name), None, "{name}");
        }
    }

    #[test]
    fn names_are_put_together_as_they_were() {
        for name in
            ["a.b.gate_proj.weight", "w3.bias", "x.gate_up_proj.weight", "x.down_proj_bias", "down_proj"]
        {
            let parts = Name::parse(name).unwrap_or_else(|| panic!("{name} is a name"));
            assert_eq!(parts.naming.tensor(parts.prefix, parts.role, parts.part), name);
        }
    }
}
