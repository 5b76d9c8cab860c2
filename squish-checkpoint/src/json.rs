//! The two JSON documents of a checkpoint, read with duplicate keys and limits checked while they are read.
//!
//! A header is `{"__metadata__": {key: text}, name: {"dtype": text, "shape": [n…], "data_offsets": [start, end]}…}`,
//! an index `{"metadata": …, "weight_map": {name: file}}`. Unknown fields are skipped, as the official reader does.
//!
//! `serde`'s errors are text. To keep ours typed, a visitor that finds a fault puts the [`Error`] into a [`Fault`] and
//! stops the parser with an empty message; the entry functions prefer the fault over the parser's text.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::limits::{self, Limits};
use crate::{Dtype, Error};

/// The key of a header that holds text about the file instead of a tensor.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// A header, before its offsets are checked.
#[derive(Debug, Default)]
pub(crate) struct RawHeader {
    pub(crate) metadata: BTreeMap<String, String>,
    /// In the header's order; names may repeat.
    pub(crate) tensors: Vec<RawTensor>,
}

/// A tensor as its header states it.
#[derive(Debug)]
pub(crate) struct RawTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Reads a header.
pub(crate) fn header(json: &[u8], limits: &Limits) -> Result<RawHeader, Error> {
    let fault = Fault::default();
    parse("header", json, &fault, Header(Context { limits, fault: &fault }))
}

/// Reads the `weight_map` of an index: tensor to file name.
pub(crate) fn index(json: &[u8], limits: &Limits) -> Result<BTreeMap<String, String>, Error> {
    let fault = Fault::default();
    parse("index", json, &fault, Index(Context { limits, fault: &fault }))
}

/// The typed error behind the parser's textual one.
type Fault = Cell<Option<Error>>;

fn parse<'de, S: DeserializeSeed<'de>>(
    what: &'static str,
    json: &'de [u8],
    fault: &Fault,
    seed: S,
) -> Result<S::Value, Error> {
    // The parser would not look at the text of a field that is skipped.
    let json =
        str::from_utf8(json).map_err(|error| Error::Json { what, reason: error.to_string() })?;
    let mut parser = serde_json::Deserializer::from_str(json);
    let parsed = seed.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    parsed.map_err(|error| {
        fault
            .take()
            .unwrap_or_else(|| Error::Json { what, reason: Error::clip(&error.to_string()) })
    })
}

/// What every visitor below carries.
#[derive(Clone, Copy)]
struct Context<'a> {
    limits: &'a Limits,
    fault: &'a Fault,
}

impl Context<'_> {
    /// Leaves the typed error and gives the one that stops the parser.
    fn fail<E: serde::de::Error>(self, error: Error) -> E {
        self.fault.set(Some(error));
        E::custom("")
    }

    fn check<E: serde::de::Error>(
        self,
        what: &'static str,
        actual: usize,
        max: u64,
    ) -> Result<(), E> {
        limits::check(what, actual as u64, max).map_err(|error| self.fail(error))
    }

    fn name<E: serde::de::Error>(self, name: &str) -> Result<(), E> {
        self.check("bytes of a tensor's name", name.len(), self.limits.name_bytes)
    }

    /// Fills `slot`, which must be empty.
    fn once<T, E: serde::de::Error>(
        self,
        slot: &mut Option<T>,
        key: &str,
        value: T,
    ) -> Result<(), E> {
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(self.fail(Error::DuplicateKey { key: Error::clip(key) })),
        }
    }
}

/// `{"__metadata__": {…}, name: {…}, …}`
struct Header<'a>(Context<'a>);

impl<'de> DeserializeSeed<'de> for Header<'_> {
    type Value = RawHeader;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<RawHeader, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let (mut metadata, mut tensors) = (None, Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            if key == METADATA_KEY {
                let text =
                    map.next_value_seed(TextMap { context: self.0, what: "entries of metadata" })?;
                self.0.once(&mut metadata, &key, text)?;
            } else {
                self.0.name(&key)?;
                self.0.check("tensors", tensors.len() + 1, self.0.limits.tensors)?;
                tensors.push(map.next_value_seed(Tensor { context: self.0, name: key })?);
            }
        }
        Ok(RawHeader { metadata: metadata.flatten().unwrap_or_default(), tensors })
    }
}

/// `{"dtype": …, "shape": […], "data_offsets": [start, end]}`
struct Tensor<'a> {
    context: Context<'a>,
    name: String,
}

impl<'de> DeserializeSeed<'de> for Tensor<'_> {
    type Value = RawTensor;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<RawTensor, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tensor<'_> {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
        let Self { context, name } = self;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "dtype" => context.once(&mut dtype, &key, map.next_value::<String>()?)?,
                "shape" => context.once(&mut shape, &key, map.next_value_seed(Shape(context))?)?,
                "data_offsets" => {
                    context.once(&mut offsets, &key, map.next_value::<(u64, u64)>()?)?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let dtype = dtype.ok_or_else(|| A::Error::missing_field("dtype"))?;
        let Some(dtype) = Dtype::from_name(&dtype) else {
            return Err(
                context.fail(Error::UnknownDtype { tensor: name, dtype: Error::clip(&dtype) })
            );
        };
        let shape = shape.ok_or_else(|| A::Error::missing_field("shape"))?;
        let (start, end) = offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?;
        Ok(RawTensor { name, dtype, shape, start, end })
    }
}

/// `[n, …]`, no longer than the limit: a shape is the one list of a header that could grow without one.
struct Shape<'a>(Context<'a>);

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = Vec<usize>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<usize>, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dim) = seq.next_element()? {
            shape.push(dim);
            self.0.check("dimensions of a tensor", shape.len(), self.0.limits.rank)?;
        }
        Ok(shape)
    }
}

/// `{key: text, …}`, or `null` for `None`.
struct TextMap<'a> {
    context: Context<'a>,
    /// What its entries are called when there are too many.
    what: &'static str,
}

impl<'de> DeserializeSeed<'de> for TextMap<'_> {
    type Value = Option<BTreeMap<String, String>>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextMap<'_> {
    type Value = Option<BTreeMap<String, String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut texts = BTreeMap::new();
        while let Some((key, text)) = map.next_entry::<String, String>()? {
            self.context.check(self.what, texts.len() + 1, self.context.limits.tensors)?;
            if texts.contains_key(&key) {
                return Err(self.context.fail(Error::DuplicateKey { key: Error::clip(&key) }));
            }
            texts.insert(key, text);
        }
        Ok(Some(texts))
    }
}

/// `{"weight_map": {…}, …}`
struct Index<'a>(Context<'a>);

impl<'de> DeserializeSeed<'de> for Index<'_> {
    type Value = BTreeMap<String, String>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Index<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut weights = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "weight_map" {
                let texts = map.next_value_seed(TextMap { context: self.0, what: "tensors" })?;
                self.0.once(&mut weights, &key, texts)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        weights.flatten().ok_or_else(|| A::Error::missing_field("weight_map"))
    }
}
