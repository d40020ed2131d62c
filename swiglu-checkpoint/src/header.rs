//! The header of a safetensors file: parsed without trust.
//!
//! Its JSON is read in one pass into a list that keeps duplicates, so that they are seen; names are borrowed from the
//! header's bytes, so that the list stays in proportion to them.

use std::borrow::Cow;
use std::fmt;

use safetensors::Dtype;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// PyTorch and NumPy have no more dimensions. Bounds what a short text of `[1,1,1,..]` can allocate.
const MAX_DIMENSIONS: usize = 64;

/// What the header says about one tensor.
#[derive(Debug, Deserialize)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Shape,
    pub(crate) data_offsets: (u64, u64),
}

/// Extents, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape(pub(crate) Vec<u64>);

/// Every tensor, in the order of the header.
#[derive(Debug)]
pub(crate) struct Header<'a>(pub(crate) Vec<(Cow<'a, str>, Entry)>);

/// A text that is borrowed where it has no escapes.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// A map of texts to texts, checked and dropped: a file is saved by copying it.
#[derive(Debug)]
struct Texts;

impl Entry {
    /// Bytes that shape and element type come to; `None` when that is no whole number, or does not fit.
    pub(crate) fn bytes(&self) -> Option<u64> {
        let elements = self.shape.0.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent))?;
        let bits = elements.checked_mul(u64::try_from(self.dtype.bitsize()).ok()?)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// Parses the bytes of a header. All of them must be UTF-8, also those that are skipped.
pub(crate) fn parse(bytes: &[u8]) -> Result<Header<'_>, serde_json::Error> {
    serde_json::from_str(std::str::from_utf8(bytes).map_err(serde_json::Error::custom)?)
}

impl<'de: 'a, 'a> Deserialize<'de> for Header<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header<'de>, A::Error> {
                let (mut tensors, mut metadata) = (Vec::new(), None);
                while let Some(Text(name)) = map.next_key()? {
                    if name != "__metadata__" {
                        tensors.push((name, map.next_value()?));
                    } else if metadata.replace(map.next_value::<Option<Texts>>()?).is_some() {
                        return Err(A::Error::duplicate_field("__metadata__"));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Extents;
        impl<'de> Visitor<'de> for Extents {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of extents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut extents = Vec::new();
                while let Some(extent) = seq.next_element()? {
                    if extents.len() == MAX_DIMENSIONS {
                        return Err(A::Error::custom(format_args!("more than {MAX_DIMENSIONS} dimensions")));
                    }
                    extents.push(extent);
                }
                extents.shrink_to_fit();
                Ok(Shape(extents))
            }
        }
        deserializer.deserialize_seq(Extents)
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Discard;
        impl<'de> Visitor<'de> for Discard {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings to strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                while map.next_entry::<Text<'de>, Text<'de>>()?.is_some() {}
                Ok(Texts)
            }
        }
        deserializer.deserialize_map(Discard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_and_order_are_kept() {
        let text = r#"{"b":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"__metadata__":{"a":"b"},
            "\u0061":{"dtype":"F16","shape":[],"data_offsets":[4,6]},"b":{"dtype":"F16","shape":[0],"data_offsets":[6,6]}}"#;
        let Header(tensors) = parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_ref()).collect();
        assert_eq!(names, ["b", "a", "b"]);
        let bytes: Vec<_> = tensors.iter().map(|(_, entry)| entry.bytes()).collect();
        assert_eq!(bytes, [Some(4), Some(2), Some(0)]);
    }

    #[test]
    fn sizes_that_do_not_fit_are_none() {
        for (dtype, shape) in
            [("F4", "[3]"), ("F32", "[4611686018427387904]"), ("U8", "[4294967296,4294967296]")]
        {
            let text = format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,0]}}"#);
            let entry: Entry = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(entry.bytes(), None, "{text}");
        }
    }

    #[test]
    fn dimensions_are_bounded() {
        let shape = |rank: usize| serde_json::from_str::<Shape>(&format!("[{}]", vec!["1"; rank].join(",")));
        assert!(shape(MAX_DIMENSIONS).is_ok(), "as many as PyTorch has");
        let e = shape(MAX_DIMENSIONS + 1).map_err(|e| e.to_string());
        assert!(e.as_ref().is_err_and(|e| e.starts_with("more than 64 dimensions")), "{e:?}");
    }
}
