//! The `config_groups` of compressed-tensors.
//!
//! | field of `weights` | default | read as |
//! |---|---|---|
//! | `num_bits` | 8 | |
//! | `type` | `int` | `int` or `float` |
//! | `symmetric` | true | whether there are no zero points |
//! | `strategy` | by `group_size`: absent `tensor`, -1 `channel`, else `group` | which weights share a scale |
//! | `block_structure` | | of `block`: `[rows, cols]`, or a text as `128x128` |
//! | `actorder` | | `weight` and `static` concern nobody but who made the codes |
//! | `dynamic` | false | |
//!
//! The type of scales and zero points is that of their tensors.

use serde::Deserialize;
use serde_json::{Map, Value};
use squish_quant::{Granularity, IntFormat};

use super::{
    config::{from_value, unsupported},
    read::Scheme,
    targets::Targets,
};
use crate::Error;

/// Which layers are quantized how.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    targets: Targets<Scheme>,
    ignore: Targets<()>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    config_groups: Map<String, Value>,
    format: Option<Value>,
    ignore: Option<Vec<String>>,
    sparsity_config: Option<Value>,
    transform_config: Option<Value>,
}

#[derive(Deserialize)]
struct Group {
    targets: Vec<String>,
    weights: Option<Args>,
    output_activations: Option<Value>,
    format: Option<Value>,
}

#[derive(Deserialize)]
struct Args {
    num_bits: Option<Value>,
    r#type: Option<Value>,
    symmetric: Option<bool>,
    group_size: Option<Value>,
    strategy: Option<Value>,
    block_structure: Option<Value>,
    dynamic: Option<Value>,
    actorder: Option<Value>,
}

impl Groups {
    pub(super) fn new(fields: &Value) -> Result<Self, Error> {
        let raw: Raw = from_value(fields)?;
        let is_empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
        if let Some(sparsity) = raw.sparsity_config.as_ref().filter(|value| !is_empty(value)) {
            let format = sparsity.get("format");
            if format.is_none_or(|format| format != "dense") {
                let field = "quantization_config.sparsity_config.format";
                return Err(unsupported(field, format, "`dense`"));
            }
        }
        if let Some(transform) = raw
            .transform_config
            .as_ref()
            .filter(|value| !is_empty(value) && !value.get("config_groups").is_some_and(is_empty))
        {
            let field = "quantization_config.transform_config";
            return Err(unsupported(field, Some(transform), "none"));
        }
        let (mut targets, mut ignore) = (Targets::new(), Targets::new());
        for value in raw.config_groups.values() {
            if !value.is_object() {
                let (field, supported) = ("quantization_config.config_groups", "groups in full");
                return Err(unsupported(field, Some(value), supported));
            }
            let group: Group = from_value(value)?;
            let scheme = group.scheme(raw.format.as_ref())?;
            for target in &group.targets {
                targets.insert(target, scheme)?;
            }
        }
        for target in raw.ignore.iter().flatten() {
            ignore.insert(target, ())?;
        }
        Ok(Self { targets, ignore })
    }

    pub(super) fn scheme(&self, module: &str) -> Scheme {
        match self.targets.of(module) {
            Some(scheme) if self.ignore.of(module).is_none() => scheme,
            _ => Scheme::Dense,
        }
    }
}

impl Group {
    fn scheme(&self, of_all: Option<&Value>) -> Result<Scheme, Error> {
        if self.output_activations.is_some() {
            let (field, actual) = ("output_activations", self.output_activations.as_ref());
            return Err(unsupported(field, actual, "none"));
        }
        let Some(weights) = &self.weights else { return Ok(Scheme::Dense) };
        if let Some(dynamic) = weights.dynamic.as_ref().filter(|value| **value != false) {
            return Err(unsupported("weights.dynamic", Some(dynamic), "false"));
        }
        weights.check_order()?;
        if self.format.as_ref().is_some_and(|format| format == "dense") {
            return Ok(Scheme::Dense);
        }
        let format = self.format.as_ref().or(of_all);
        match (format.and_then(Value::as_str), weights.is_float()?) {
            (Some("float-quantized" | "naive-quantized"), true) => weights.fp8(),
            (Some("int-quantized" | "naive-quantized"), false) => weights.int(),
            (Some("pack-quantized"), false) => weights.packed_int(),
            (Some("mxfp4-pack-quantized"), true) => weights.mxfp4(),
            (
                Some(
                    "float-quantized" | "int-quantized" | "pack-quantized" | "mxfp4-pack-quantized",
                ),
                _,
            ) => {
                let supported = "the kind of numbers that the format has";
                Err(unsupported("weights.type", weights.r#type.as_ref(), supported))
            }
            _ => Err(unsupported(
                "quantization_config.format",
                format,
                "`float-quantized`, `int-quantized`, `naive-quantized`, `pack-quantized` and `mxfp4-pack-quantized`",
            )),
        }
    }
}

impl Args {
    fn check_order(&self) -> Result<(), Error> {
        let changes = |value: &Value| {
            let harmless = ["weight", "static"];
            *value != false && !value.as_str().is_some_and(|text| harmless.contains(&text))
        };
        match self.actorder.as_ref().filter(|value| changes(value)) {
            None => Ok(()),
            Some(value) => {
                let supported = "null, `weight` and `static`";
                Err(unsupported("weights.actorder", Some(value), supported))
            }
        }
    }

    fn is_float(&self) -> Result<bool, Error> {
        match lower(self.r#type.as_ref()).as_deref() {
            None if self.r#type.is_none() => Ok(false),
            Some("int") => Ok(false),
            Some("float") => Ok(true),
            _ => Err(unsupported("weights.type", self.r#type.as_ref(), "`int` and `float`")),
        }
    }

    fn bits(&self, among: &[u64], supported: &'static str) -> Result<u64, Error> {
        let bits = self.num_bits.as_ref().map_or(Some(8), Value::as_u64);
        match bits.filter(|bits| among.contains(bits)) {
            Some(bits) => Ok(bits),
            None => Err(unsupported("weights.num_bits", self.num_bits.as_ref(), supported)),
        }
    }

    fn check_symmetric(&self) -> Result<(), Error> {
        if self.symmetric.unwrap_or(true) {
            return Ok(());
        }
        Err(unsupported("weights.symmetric", Some(&false.into()), "true"))
    }

    fn fp8(&self) -> Result<Scheme, Error> {
        self.bits(&[8], "8")?;
        self.check_symmetric()?;
        Ok(Scheme::Fp8 { granularity: self.granularity(true)?, scales: "weight_scale" })
    }

    fn int(&self) -> Result<Scheme, Error> {
        // Of whatever number of bits, a code has a byte.
        self.bits(&[1, 2, 3, 4, 5, 6, 7, 8], "1 to 8")?;
        let has_zero_points = !self.symmetric.unwrap_or(true);
        Ok(Scheme::Int { granularity: self.granularity(false)?, has_zero_points })
    }

    fn packed_int(&self) -> Result<Scheme, Error> {
        let bits = self.bits(&[4, 8], "4 and 8")?;
        let format = if bits == 4 { IntFormat::Int4 } else { IntFormat::Int8 };
        let has_zero_points = !self.symmetric.unwrap_or(true);
        Ok(Scheme::PackedInt { format, granularity: self.granularity(false)?, has_zero_points })
    }

    fn mxfp4(&self) -> Result<Scheme, Error> {
        self.bits(&[4], "4")?;
        self.check_symmetric()?;
        if self.granularity(false)? != Granularity::Block1d(32) {
            return Err(unsupported("weights.group_size", self.group_size.as_ref(), "32"));
        }
        Ok(Scheme::MxFp4)
    }

    fn granularity(&self, has_blocks: bool) -> Result<Granularity, Error> {
        let group_size = self.group_size.as_ref().map(|size| (size.as_i64(), size));
        let strategy = match (lower(self.strategy.as_ref()), group_size) {
            (Some(strategy), _) => strategy,
            (None, None) => "tensor".to_owned(),
            (None, Some((Some(-1), _))) => "channel".to_owned(),
            (None, Some(_)) => "group".to_owned(),
        };
        match (strategy.as_str(), group_size) {
            ("tensor", _) => Ok(Granularity::Tensor),
            ("channel", _) => Ok(Granularity::Channel),
            ("group", Some((Some(size @ 1..), _))) => {
                Ok(Granularity::Block1d(usize::try_from(size).unwrap_or(usize::MAX)))
            }
            ("group", size) => {
                Err(unsupported("weights.group_size", size.map(|(_, value)| value), "at least 1"))
            }
            ("block", _) if has_blocks => self.block(),
            _ => {
                let supported = "`tensor`, `channel`, `group` and, of FP8, `block`";
                Err(unsupported("weights.strategy", self.strategy.as_ref(), supported))
            }
        }
    }

    fn block(&self) -> Result<Granularity, Error> {
        let value = self.block_structure.as_ref();
        let sides: Option<Vec<usize>> = match value {
            Some(Value::String(text)) => text.split('x').map(|n| n.trim().parse().ok()).collect(),
            Some(value) => from_value(value).ok(),
            None => None,
        };
        match sides.as_deref() {
            Some(&[rows, cols]) if rows > 0 && cols > 0 => Ok(Granularity::Block2d { rows, cols }),
            _ => Err(unsupported("weights.block_structure", value, "rows and columns")),
        }
    }
}

fn lower(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).map(str::to_ascii_lowercase)
}
