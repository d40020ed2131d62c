//! A case as a line of words, and back.

use std::fmt;
use std::str::FromStr;

use swiglu_core::{Dtype, Gate, Orientation, Route, Tile};

use super::{Case, Data, DownCase, How, Keep, Packing, Pads};

/// A line that is not a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseCaseError {
    line: String,
    why: String,
}

impl fmt::Display for ParseCaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a test case: {}", self.line, self.why)
    }
}

impl std::error::Error for ParseCaseError {}

const DATA: [(&str, Data); 7] = [
    ("normal", Data::Normal),
    ("uniform", Data::Uniform),
    ("loguniform", Data::LogUniform),
    ("sparse", Data::Sparse),
    ("onehot", Data::OneHot),
    ("cancelling", Data::Cancelling),
    ("integers", Data::Integers),
];
const DTYPES: [(&str, Dtype); 3] = [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::Bf16)];
const ORIENTATIONS: [(&str, Orientation); 2] = [("InOut", Orientation::InOut), ("OutIn", Orientation::OutIn)];
const PACKINGS: [(&str, Packing); 3] =
    [("packed", Packing::Packed), ("split", Packing::Split), ("interleaved", Packing::Interleaved)];
const KEEPS: [(&str, Keep); 3] =
    [("infer", Keep::Nothing), ("pre", Keep::PreActivations), ("input", Keep::Input)];
const TILES: [(&str, Tile); 4] =
    [("auto", Tile::Auto), ("t32", Tile::T32), ("t64", Tile::T64), ("t128", Tile::T128)];
const GATES: [(&str, Gate); 5] = [
    ("swiglu", Gate::Swiglu),
    ("geglu-tanh", Gate::GegluTanh),
    ("geglu-erf", Gate::GegluErf),
    ("reglu", Gate::Reglu),
    ("glu", Gate::Glu),
];

fn word<T: PartialEq>(table: &'static [(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|(_, v)| v == value).map_or("?", |(word, _)| word)
}

fn value<T: Copy>(table: &[(&str, T)], word: &str) -> Option<T> {
    table.iter().find(|(w, _)| *w == word).map(|(_, value)| *value)
}

impl fmt::Display for Pads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = self.list();
        if list.iter().all(|pad| *pad == list[0]) {
            return write!(f, "pad{}", list[0]);
        }
        let [x, w, z, dx, dwf] = list;
        write!(f, "pad{x}.{w}.{z}.{dx}.{dwf}")
    }
}

impl fmt::Display for DownCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let turned = if self.orientation == Orientation::OutIn { "t" } else { "" };
        write!(f, "o{}{turned}.{}", self.out_features, self.pad)
    }
}

fn how(name: &str, how: Option<How>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match how {
        None => Ok(()),
        Some(How { add, wide }) => {
            write!(f, " {name}{}{}", if wide { "32" } else { "" }, if add { "+" } else { "" })
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (orientation, packing) = (word(&ORIENTATIONS, &self.orientation), word(&PACKINGS, &self.packing));
        write!(f, "m{}k{}d{} {}", self.batch, self.in_features, self.hidden, self.dtype)?;
        write!(f, " {orientation} {packing} {} {}", self.pads, self.gate)?;
        if self.bias {
            f.write_str(" bias")?;
        }
        write!(f, " {}", word(&KEEPS, &self.keep))?;
        if let Some(down) = self.down {
            write!(f, " {down}")?;
        }
        how("dx", self.dx, f)?;
        how("dwf", self.dwf, f)?;
        how("dbias", self.dbias, f)?;
        write!(f, " {}", word(&DATA, &self.data))?;
        if self.tile != Tile::Auto {
            write!(f, " {}", word(&TILES, &self.tile))?;
        }
        if self.route == Route::Composed {
            f.write_str(" composed")?;
        }
        write!(f, " s{}", self.seed)
    }
}

fn dims(word: &str) -> Option<(usize, usize, usize)> {
    let (m, rest) = word.strip_prefix('m')?.split_once('k')?;
    let (k, d) = rest.split_once('d')?;
    Some((m.parse().ok()?, k.parse().ok()?, d.parse().ok()?))
}

fn pads(word: &str) -> Option<Pads> {
    let list: Vec<u16> =
        word.strip_prefix("pad")?.split('.').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    match list[..] {
        [pad] => Some(Pads::all(pad)),
        [x, w, z, dx, dwf] => Some(Pads { x, w, z, dx, dwf }),
        _ => None,
    }
}

fn gate(word: &str) -> Option<Gate> {
    if let Some(parameters) = word.strip_prefix("swiglu-clamped(") {
        let (alpha, limit) = parameters.strip_suffix(')')?.split_once(',')?;
        return Some(Gate::SwigluClamped { alpha: alpha.parse().ok()?, limit: limit.parse().ok()? });
    }
    value(&GATES, word)
}

fn down(word: &str) -> Option<DownCase> {
    let (out, pad) = word.strip_prefix('o')?.split_once('.')?;
    let (out, orientation) =
        out.strip_suffix('t').map_or((out, Orientation::InOut), |out| (out, Orientation::OutIn));
    Some(DownCase { out_features: out.parse().ok()?, orientation, pad: pad.parse().ok()? })
}

fn gradient(word: &str, name: &str) -> Option<How> {
    let rest = word.strip_prefix(name)?;
    let (rest, add) = rest.strip_suffix('+').map_or((rest, false), |rest| (rest, true));
    match rest {
        "" => Some(How { add, wide: false }),
        "32" => Some(How { add, wide: true }),
        _ => None,
    }
}

impl FromStr for Case {
    type Err = ParseCaseError;

    /// Words in any order; those left out have the value of [`Case::new`].
    fn from_str(line: &str) -> Result<Self, ParseCaseError> {
        let error = |why: String| ParseCaseError { line: line.to_owned(), why };
        let mut case = Case::new(0, 0, 0, Dtype::F32);
        let mut shaped = false;
        for word in line.split_whitespace() {
            if let Some((batch, in_features, hidden)) = dims(word) {
                (case.batch, case.in_features, case.hidden) = (batch, in_features, hidden);
                shaped = true;
            } else if let Some(dtype) = value(&DTYPES, word) {
                case.dtype = dtype;
            } else if let Some(orientation) = value(&ORIENTATIONS, word) {
                case.orientation = orientation;
            } else if let Some(packing) = value(&PACKINGS, word) {
                case.packing = packing;
            } else if let Some(pads) = pads(word) {
                case.pads = pads;
            } else if let Some(gate) = gate(word) {
                case.gate = gate;
            } else if let Some(keep) = value(&KEEPS, word) {
                case.keep = keep;
            } else if let Some(down) = down(word) {
                case.down = Some(down);
            } else if let Some(how) = gradient(word, "dx") {
                case.dx = Some(how);
            } else if let Some(how) = gradient(word, "dwf") {
                case.dwf = Some(how);
            } else if let Some(how) = gradient(word, "dbias") {
                case.dbias = Some(how);
            } else if let Some(data) = value(&DATA, word) {
                case.data = data;
            } else if let Some(tile) = value(&TILES, word) {
                case.tile = tile;
            } else if let Some(seed) = word.strip_prefix('s').and_then(|seed| seed.parse().ok()) {
                case.seed = seed;
            } else if word == "bias" {
                case.bias = true;
            } else if word == "composed" {
                case.route = Route::Composed;
            } else {
                return Err(error(format!("{word:?} is no word of it")));
            }
        }
        if !shaped {
            return Err(error("it has no shape like m7k33d5".to_owned()));
        }
        if case.packing == Packing::Interleaved && case.orientation == Orientation::InOut {
            return Err(error("interleaved rows need OutIn".to_owned()));
        }
        if case.is_backward() && case.keep == Keep::Nothing {
            return Err(error("gradients need pre or input".to_owned()));
        }
        if case.down.is_some() && !case.is_backward() {
            return Err(error("a forward has no dz".to_owned()));
        }
        if case.dx.is_some_and(|dx| dx.wide) {
            return Err(error("dx has the element type".to_owned()));
        }
        Ok(case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_case_are_refused() {
        for line in [
            "",
            "f32",
            "m1k2d3 f64",
            "m1k2d3 InOut interleaved",
            "m1k2d3 infer dx",
            "m1k2d3 pre dx32",
            "m1k2 f32",
            "m1k2d3 pad1.2",
            "m1k2d3 s-1",
            "m1k2d3 pre dx o4",
            "m1k2d3 infer o4.0",
        ] {
            assert!(line.parse::<Case>().is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_shape_is_enough() {
        assert_eq!("m1k2d3".parse(), Ok(Case::new(1, 2, 3, Dtype::F32)));
    }

    #[test]
    fn every_word_survives() {
        let line = "m1k2d3 f16 OutIn interleaved pad0.1.2.3.4 swiglu-clamped(1.702,7) bias input o9t.3 dx+ dwf32+ dbias32 \
                    loguniform t64 composed s18446744073709551615";
        let case: Case = line.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(case.to_string(), line);
    }
}
