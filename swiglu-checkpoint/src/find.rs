//! Which MLPs a set of tensors holds.

use std::cmp::Ordering;
use std::collections::HashMap;

use safetensors::Dtype as FileDtype;
use swiglu_core::Dtype;

use crate::names::{Family, Name, Naming, Part, Role};
use crate::problem::{Problem, Reason};
use crate::shard::{Span, Tensor};

/// The tensors of one MLP, or of all experts of a layer, whose shapes fit each other.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) prefix: String,
    pub(crate) family: Family,
    pub(crate) dtype: Dtype,
    pub(crate) in_features: usize,
    pub(crate) hidden: usize,
    pub(crate) out_features: usize,
    /// How many experts share each tensor.
    pub(crate) experts: Option<u64>,
    pub(crate) spans: Spans,
}

/// Where the parameters are. Lists are in the order of the packed matrix: gate, then up, or both in one.
#[derive(Debug)]
pub(crate) struct Spans {
    pub(crate) wf: Vec<Span>,
    pub(crate) bias: Vec<Span>,
    pub(crate) down: Span,
    pub(crate) down_bias: Option<Span>,
}

/// The tensors of one projection.
#[derive(Clone, Copy, Debug, Default)]
struct Projection<'a> {
    weight: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    quantised: Option<&'a Tensor>,
}

/// The tensors under one prefix.
#[derive(Clone, Copy, Debug, Default)]
struct Candidate<'a> {
    gate: Projection<'a>,
    up: Projection<'a>,
    gate_up: Projection<'a>,
    down: Projection<'a>,
}

/// The MLPs among `tensors`, and what looks like one but is none, both in natural order.
pub(crate) fn find(mut tensors: Vec<Tensor>) -> (Vec<Group>, Vec<Problem>) {
    fn key(tensor: &Tensor) -> Option<(&str, Naming)> {
        Name::parse(&tensor.name).map(|name| (name.prefix, name.naming))
    }
    // Sorted in place: a map would take many times the memory of the names in a hostile header.
    tensors.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    let (mut groups, mut problems) = (Vec::new(), Vec::new());
    for tensors in tensors.chunk_by(|a, b| key(a) == key(b)) {
        let Some((prefix, naming)) = tensors.first().and_then(key) else { continue };
        let candidate = Candidate::new(tensors);
        let family = candidate.family(naming);
        match (Judge { prefix, naming, family }).group(candidate) {
            Ok(group) => groups.push(group),
            Err(reason) => problems.push(Problem { prefix: prefix.to_owned(), family, reason }),
        }
    }
    let mut groups = with_own_names(groups, &mut problems);
    groups.sort_by(|a, b| natural(&a.prefix, &b.prefix));
    problems.sort_by(|a, b| natural(&a.prefix, &b.prefix));
    (groups, problems)
}

/// The groups whose MLPs have names that no other has; those that do not become problems. Two ways of naming may be under one
/// prefix, and an expert of a stack may be called what an MLP of its own is.
fn with_own_names(groups: Vec<Group>, problems: &mut Vec<Problem>) -> Vec<Group> {
    let (mut stacks, mut alone) = (HashMap::new(), HashMap::new());
    for (i, group) in groups.iter().enumerate().filter(|(_, group)| group.experts.is_some()) {
        stacks.insert(group.prefix.as_str(), i);
    }
    let mut others = vec![None; groups.len()];
    let mut meet = |i: usize, j: usize| {
        others[i] = Some(groups[j].family);
        others[j] = Some(groups[i].family);
    };
    for (i, group) in groups.iter().enumerate().filter(|(_, group)| group.experts.is_none()) {
        if let Some(same) = alone.insert(group.prefix.as_str(), i) {
            meet(i, same);
        }
        if let Some((prefix, expert)) = expert_of(&group.prefix)
            && let Some(&stack) = stacks.get(prefix)
            && groups[stack].experts.is_some_and(|experts| expert < experts)
        {
            meet(i, stack);
        }
    }
    let mut own = Vec::new();
    for (group, other) in groups.into_iter().zip(others) {
        match other {
            None => own.push(group),
            Some(other) => {
                let (prefix, family) = (group.prefix, group.family);
                problems.push(Problem { prefix, family, reason: Reason::SharedName { other } });
            }
        }
    }
    own
}

/// The stack and the number of an expert of this name.
pub(crate) fn expert_of(name: &str) -> Option<(&str, u64)> {
    let (prefix, number) = name.rsplit_once('.').unwrap_or(("", name));
    let expert = number.parse().ok().filter(|expert: &u64| expert.to_string() == number)?;
    Some((prefix, expert))
}

impl<'a> Projection<'a> {
    fn any(&self) -> Option<&'a Tensor> {
        self.weight.or(self.quantised).or(self.bias)
    }
}

impl<'a> Candidate<'a> {
    fn new(tensors: &'a [Tensor]) -> Self {
        let mut candidate = Self::default();
        for tensor in tensors {
            if let Some(Name { role, part, .. }) = Name::parse(&tensor.name) {
                let projection = match role {
                    Role::Gate => &mut candidate.gate,
                    Role::Up => &mut candidate.up,
                    Role::GateUp => &mut candidate.gate_up,
                    Role::Down => &mut candidate.down,
                };
                match part {
                    Part::Weight => projection.weight = Some(tensor),
                    Part::Bias => projection.bias = Some(tensor),
                    Part::Quantised => projection.quantised = Some(tensor),
                }
            }
        }
        candidate
    }

    fn family(&self, naming: Naming) -> Family {
        match naming {
            Naming::Stacked => Family::GptOss,
            Naming::Numbers => Family::Meta,
            Naming::Modules if self.gate_up.any().is_some() => Family::Phi3,
            Naming::Modules => Family::Llama,
        }
    }

    fn all(&self) -> [Projection<'a>; 4] {
        [self.gate, self.up, self.gate_up, self.down]
    }
}

/// Tensors whose shapes fit each other.
struct Matched<'a> {
    wf: Vec<&'a Tensor>,
    bias: Vec<&'a Tensor>,
    down: &'a Tensor,
    down_bias: Option<&'a Tensor>,
    in_features: u64,
    hidden: u64,
    out_features: u64,
    experts: Option<u64>,
}

/// Checks the tensors under one prefix against each other.
struct Judge<'a> {
    prefix: &'a str,
    naming: Naming,
    family: Family,
}

impl Judge<'_> {
    fn group(&self, candidate: Candidate<'_>) -> Result<Group, Reason> {
        if let Some(tensor) = candidate.all().into_iter().find_map(|p| p.quantised) {
            return Err(Reason::Quantised { tensor: tensor.name.clone() });
        }
        let dtype = common_dtype(&candidate)?;
        let matched = match self.family {
            Family::Llama | Family::Meta => self.split(candidate)?,
            Family::Phi3 => self.packed(candidate)?,
            Family::GptOss => self.stacked(candidate)?,
        };
        let spans = |tensors: &[&Tensor]| tensors.iter().map(|tensor| tensor.span).collect();
        Ok(Group {
            prefix: self.prefix.to_owned(),
            family: self.family,
            dtype,
            in_features: address(matched.in_features, matched.wf[0])?,
            hidden: address(matched.hidden, matched.wf[0])?,
            out_features: address(matched.out_features, matched.down)?,
            experts: matched.experts,
            spans: Spans {
                wf: spans(&matched.wf),
                bias: spans(&matched.bias),
                down: matched.down.span,
                down_bias: matched.down_bias.map(|tensor| tensor.span),
            },
        })
    }

    fn split<'a>(&self, candidate: Candidate<'a>) -> Result<Matched<'a>, Reason> {
        let Candidate { gate, up, down, .. } = candidate;
        let gate_weight = self.need(gate.weight, Role::Gate, Part::Weight)?;
        let up_weight = self.need(up.weight, Role::Up, Part::Weight)?;
        let down_weight = self.need(down.weight, Role::Down, Part::Weight)?;
        let [hidden, in_features] = dimensions(gate_weight)?;
        expect_shape(up_weight, &[hidden, in_features])?;
        let [out_features, _] = dimensions(down_weight)?;
        expect_shape(down_weight, &[out_features, hidden])?;
        let bias = match (gate.bias, up.bias) {
            (None, None) => Vec::new(),
            (gate, up) => {
                vec![self.need(gate, Role::Gate, Part::Bias)?, self.need(up, Role::Up, Part::Bias)?]
            }
        };
        expect_shapes(bias.iter().copied(), &[hidden])?;
        expect_shapes(down.bias, &[out_features])?;
        let wf = vec![gate_weight, up_weight];
        Ok(Matched {
            wf,
            bias,
            down: down_weight,
            down_bias: down.bias,
            in_features,
            hidden,
            out_features,
            experts: None,
        })
    }

    fn packed<'a>(&self, candidate: Candidate<'a>) -> Result<Matched<'a>, Reason> {
        if let Some(tensor) = candidate.gate.any().or(candidate.up.any()) {
            return Err(Reason::PackedAndSplit { tensor: tensor.name.clone() });
        }
        let Candidate { gate_up, down, .. } = candidate;
        let wf = self.need(gate_up.weight, Role::GateUp, Part::Weight)?;
        let down_weight = self.need(down.weight, Role::Down, Part::Weight)?;
        let [width, in_features] = dimensions(wf)?;
        let hidden = half(wf, width)?;
        let [out_features, _] = dimensions(down_weight)?;
        expect_shape(down_weight, &[out_features, hidden])?;
        expect_shapes(gate_up.bias, &[width])?;
        expect_shapes(down.bias, &[out_features])?;
        Ok(Matched {
            wf: vec![wf],
            bias: gate_up.bias.into_iter().collect(),
            down: down_weight,
            down_bias: down.bias,
            in_features,
            hidden,
            out_features,
            experts: None,
        })
    }

    fn stacked<'a>(&self, candidate: Candidate<'a>) -> Result<Matched<'a>, Reason> {
        let Candidate { gate_up, down, .. } = candidate;
        let wf = self.need(gate_up.weight, Role::GateUp, Part::Weight)?;
        let down_weight = self.need(down.weight, Role::Down, Part::Weight)?;
        let Some(bias) = gate_up.bias else {
            return Err(Reason::UnknownHalves { tensor: wf.name.clone() });
        };
        let [experts, in_features, width] = dimensions(wf)?;
        let hidden = half(wf, width)?;
        let [_, _, out_features] = dimensions(down_weight)?;
        expect_shape(down_weight, &[experts, hidden, out_features])?;
        expect_shape(bias, &[experts, width])?;
        expect_shapes(down.bias, &[experts, out_features])?;
        Ok(Matched {
            wf: vec![wf],
            bias: vec![bias],
            down: down_weight,
            down_bias: down.bias,
            in_features,
            hidden,
            out_features,
            experts: Some(experts),
        })
    }

    fn need<'a>(&self, tensor: Option<&'a Tensor>, role: Role, part: Part) -> Result<&'a Tensor, Reason> {
        tensor.ok_or_else(|| Reason::Missing { tensor: self.naming.tensor(self.prefix, role, part) })
    }
}

/// The element type of all tensors.
fn common_dtype(candidate: &Candidate<'_>) -> Result<Dtype, Reason> {
    let mut common: Option<(Dtype, FileDtype)> = None;
    for tensor in candidate.all().into_iter().flat_map(|p| p.weight.into_iter().chain(p.bias)) {
        let (name, got) = (&tensor.name, tensor.dtype);
        let dtype =
            element(got).ok_or_else(|| Reason::Dtype { tensor: name.clone(), got: got.to_string() })?;
        match common {
            Some((_, expected)) if expected != got => {
                let (expected, got) = (expected.to_string(), got.to_string());
                return Err(Reason::MixedDtypes { tensor: name.clone(), expected, got });
            }
            _ => common = Some((dtype, got)),
        }
    }
    // A candidate without weights or biases has quantised tensors, which were refused before.
    Ok(common.map_or(Dtype::F32, |(dtype, _)| dtype))
}

fn element(dtype: FileDtype) -> Option<Dtype> {
    match dtype {
        FileDtype::F32 => Some(Dtype::F32),
        FileDtype::F16 => Some(Dtype::F16),
        FileDtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// The extents of a tensor of `N` dimensions, none of them 0.
fn dimensions<const N: usize>(tensor: &Tensor) -> Result<[u64; N], Reason> {
    let (name, got) = (|| tensor.name.clone(), || tensor.shape.clone());
    let extents = <[u64; N]>::try_from(tensor.shape.as_slice()).map_err(|_| Reason::Dimensions {
        tensor: name(),
        expected: N,
        got: got(),
    })?;
    if extents.contains(&0) { Err(Reason::Empty { tensor: name(), got: got() }) } else { Ok(extents) }
}

fn half(tensor: &Tensor, width: u64) -> Result<u64, Reason> {
    match width.is_multiple_of(2) {
        true => Ok(width / 2),
        false => Err(Reason::OddWidth { tensor: tensor.name.clone(), width }),
    }
}

fn expect_shapes<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, expected: &[u64]) -> Result<(), Reason> {
    tensors.into_iter().try_for_each(|tensor| expect_shape(tensor, expected))
}

fn expect_shape(tensor: &Tensor, expected: &[u64]) -> Result<(), Reason> {
    if tensor.shape == expected {
        return Ok(());
    }
    let (tensor, got) = (tensor.name.clone(), tensor.shape.clone());
    Err(Reason::Shape { tensor, expected: expected.to_vec(), got })
}

fn address(extent: u64, tensor: &Tensor) -> Result<usize, Reason> {
    usize::try_from(extent)
        .map_err(|_| Reason::TooLarge { tensor: tensor.name.clone(), got: tensor.shape.clone() })
}

/// Layer 2 before layer 10: parts between dots that are numbers compare as such, and come before other parts.
fn natural(a: &str, b: &str) -> Ordering {
    fn parts(name: &str) -> impl Iterator<Item = (bool, u64, &str)> {
        name.split('.').map(|part| part.parse().map_or((true, 0, part), |number| (false, number, "")))
    }
    parts(a).cmp(parts(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_come_in_the_order_of_their_numbers() {
        let mut names = ["m.10.mlp", "m.2.mlp", "m.2", "m.1.b", "m.1x", "m.01.a", ""];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["", "m.01.a", "m.1.b", "m.2", "m.2.mlp", "m.10.mlp", "m.1x"]);
    }
}
