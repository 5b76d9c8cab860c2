//! [`Quantization`]: what a `config.json` says about how weights are stored.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use squish_checkpoint::{Checkpoint, Dtype};
use squish_quant::Granularity;

use super::{
    compressed_tensors::Groups,
    read::{PANELS, Scheme},
};
use crate::{
    Error,
    error::{clip, read},
};

/// Fields of a `config.json` that say how weights are stored, the first before the second.
const FIELDS: [&str; 2] = ["quantization_config", "compression_config"];

/// Version of the layout of our own.
pub(crate) const VERSION: u32 = 1;

/// How the weights of a checkpoint are quantized: `quantization_config` of its `config.json`, or `compression_config`.
///
/// Of compressed-tensors a layer is quantized if one of the `targets` means it and none of `ignore` does. A target is a name, or `re:` and a
/// regular expression that matches from the start of a name on, or a class: `Linear`, `Embedding`, `Module`. Where several mean a layer,
/// a name counts before an expression and that before a class, and of expressions the first by their text; of equal targets, that of the
/// last group. Expressions are those of [`regex_lite`], which has no look-around.
///
/// # Examples
///
/// ```
/// use squish_model::Quantization;
///
/// let json = br#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}"#;
/// assert_eq!(Quantization::from_json(json)?.expect("it is quantized").method(), "fp8");
/// assert!(Quantization::from_json(b"{}")?.is_none());
///
/// let error = Quantization::from_json(br#"{"quantization_config": {"quant_method": "gptq"}}"#).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     r#"`quantization_config.quant_method` is "gptq", supported: `compressed-tensors`, `fp8`, `mxfp4` and `squish`"#
/// );
/// # Ok::<(), squish_model::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Quantization(Method);

#[derive(Clone, Debug)]
enum Method {
    CompressedTensors(Groups),
    Fp8(Granularity),
    MxFp4,
    Squish,
}

/// The fields of `fp8` that are about weights.
#[derive(Deserialize)]
struct Fp8 {
    #[serde(default = "Fp8::default_block")]
    weight_block_size: Option<[usize; 2]>,
}

impl Fp8 {
    /// That of transformers.
    #[allow(clippy::unnecessary_wraps, reason = "a null is another value of the field")]
    fn default_block() -> Option<[usize; 2]> {
        Some([128, 128])
    }
}

impl Quantization {
    /// What the `config.json` of a folder says; none if weights are floats.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::InFile`] with those of [`from_json`](Self::from_json).
    pub fn open(folder: impl AsRef<Path>) -> Result<Option<Self>, Error> {
        let path = folder.as_ref().join("config.json");
        Self::from_json(&read(&path)?).map_err(Error::in_file(&path))
    }

    /// What the bytes of a `config.json` say; none if weights are floats.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigJson`]; [`Error::Unsupported`] of a method, a format or a field that is not read, or would change what weights mean;
    /// [`Error::ConfigValue`] of a block without elements; [`Error::Pattern`].
    pub fn from_json(json: &[u8]) -> Result<Option<Self>, Error> {
        let config: Map<String, Value> = from_slice(json)?;
        let found = FIELDS.iter().find_map(|field| config.get(*field).filter(|v| !v.is_null()));
        let Some(found) = found else { return Ok(None) };
        // Early files of compressed-tensors have it one level deeper.
        let fields = found.get("quantization_config").filter(|inner| inner.is_object());
        let fields = fields.unwrap_or(found);
        let method = fields.get("quant_method").filter(|method| !method.is_null());
        let method = match method.and_then(Value::as_str) {
            Some("compressed-tensors") => Method::CompressedTensors(Groups::new(fields)?),
            None if method.is_none() && fields.get("config_groups").is_some() => {
                Method::CompressedTensors(Groups::new(fields)?)
            }
            Some("fp8") => Method::Fp8(fp8_granularity(fields)?),
            Some("mxfp4") => Method::MxFp4,
            Some("squish") => {
                let version = fields.get("version");
                if version != Some(&VERSION.into()) {
                    return Err(unsupported("quantization_config.version", version, "1"));
                }
                Method::Squish
            }
            _ => {
                let supported = "`compressed-tensors`, `fp8`, `mxfp4` and `squish`";
                return Err(unsupported("quantization_config.quant_method", method, supported));
            }
        };
        Ok(Some(Self(method)))
    }

    /// Its `quant_method`.
    pub fn method(&self) -> &'static str {
        match self.0 {
            Method::CompressedTensors(_) => "compressed-tensors",
            Method::Fp8(_) => "fp8",
            Method::MxFp4 => "mxfp4",
            Method::Squish => "squish",
        }
    }

    /// How the weights of `module` are stored.
    pub(super) fn scheme(&self, module: &str, checkpoint: &Checkpoint) -> Scheme {
        let tensor = |part: &str| checkpoint.get(&format!("{module}.{part}"));
        match &self.0 {
            Method::CompressedTensors(groups) => groups.scheme(module),
            Method::Fp8(granularity) => {
                let is_fp8 = tensor("weight").is_some_and(|info| info.dtype() == Dtype::F8E4M3);
                let (granularity, scales) = (*granularity, "weight_scale_inv");
                if is_fp8 { Scheme::Fp8 { granularity, scales } } else { Scheme::Dense }
            }
            Method::MxFp4 if tensor("weight_blocks").is_some() => Scheme::MxFp4Blocks,
            Method::Squish if tensor(PANELS).is_some() => Scheme::Panels,
            Method::MxFp4 | Method::Squish => Scheme::Dense,
        }
    }

    /// A `config.json` without what it says about quantization.
    pub(crate) fn remove_from(json: Vec<u8>) -> Vec<u8> {
        // What is no JSON is left to the next reader.
        let Ok(mut config) = serde_json::from_slice::<Map<String, Value>>(&json) else {
            return json;
        };
        let is_there = FIELDS.map(|field| config.remove(field).is_some());
        if is_there == [false; 2] { json } else { Value::Object(config).to_string().into_bytes() }
    }

    /// The scheme that compressed-tensors would have for `module`, for tests of it.
    #[doc(hidden)]
    pub fn describe(&self, module: &str) -> String {
        match &self.0 {
            Method::CompressedTensors(groups) => format!("{:?}", groups.scheme(module)),
            other => format!("{other:?}"),
        }
    }
}

fn fp8_granularity(fields: &Value) -> Result<Granularity, Error> {
    let Fp8 { weight_block_size } = from_value(fields)?;
    let Some([rows, cols]) = weight_block_size else { return Ok(Granularity::Tensor) };
    if rows == 0 || cols == 0 {
        let (field, expected) = ("quantization_config.weight_block_size", "at least 1");
        return Err(Error::ConfigValue { field, actual: 0.0, expected });
    }
    Ok(Granularity::Block2d { rows, cols })
}

pub(super) fn from_slice<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|error| config_json(&error))
}

pub(super) fn from_value<T: for<'a> Deserialize<'a>>(value: &Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|error| config_json(&error))
}

fn config_json(error: &serde_json::Error) -> Error {
    Error::ConfigJson { reason: clip(&error.to_string()) }
}

pub(super) fn unsupported(
    field: &'static str,
    actual: Option<&Value>,
    supported: &'static str,
) -> Error {
    let actual = actual.map_or_else(|| "absent".to_owned(), |json| clip(&json.to_string()));
    Error::Unsupported { field, actual, supported }
}
