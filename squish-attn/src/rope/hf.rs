//! Rotary embeddings from a Hugging Face `config.json`: [`RopeConfig::from_hf_json`].
//!
//! | what | where it is looked for, first to last |
//! |---|---|
//! | parameters | `rope_scaling` unless null or empty, `rope_parameters`; there by layer type, if it holds objects |
//! | kind | `rope_type`, `type`; `default` |
//! | base | `rope_theta` in the parameters, `rope_theta`, `rotary_emb_base`; 10000 |
//! | head width | `global_head_dim` of layers of type `full_attention`; `qk_rope_head_dim`, `head_dim`, `hidden_size / num_attention_heads` |
//! | rotated part | `partial_rotary_factor` in the parameters, `partial_rotary_factor`, `rotary_pct`; `rotary_dim`; all |
//! | context of pretraining | `original_max_position_embeddings` (within parameters by layer type, there alone); `max_position_embeddings` |
//!
//! What transformers 5.23 makes of older files is kept: `su`, and `yarn` in files of Phi-3, are LongRoPE; `rope_local_base_freq` is the
//! base of Gemma 3's layers of type `sliding_attention`, which are not scaled; Hunyuan's `alpha` is static NTK; a factor of YaRN that is null
//! is the ratio of the contexts, a beta that is null or 0 the default; `truncate` is read beside parameters by layer type, not within. Sections
//! of multimodal positions are ignored, which is right for text.

use serde_json::{Map, Value};

use super::{Llama3, LongRope, RopeConfig, RopeScaling, Yarn};
use crate::{AttnError, Result};

type Object = Map<String, Value>;

impl RopeConfig {
    /// The rotary embedding of a model whose layers all have the same, from the bytes of its `config.json`.
    ///
    /// # Errors
    ///
    /// [`AttnError::Json`]; [`AttnError::Unsupported`] of another kind of embedding, or if it depends on the type of a layer; those of
    /// [`check`](Self::check).
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::{RopeConfig, RopeScaling};
    ///
    /// let json = br#"{"hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 131072, "rope_theta": 500000.0,
    ///     "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    ///     "original_max_position_embeddings": 8192}}"#;
    /// let config = RopeConfig::from_hf_json(json)?;
    /// assert_eq!((config.head_dim, config.base), (128, 500000.0));
    /// assert_eq!(config.scaling, RopeScaling::Llama3(Default::default()));
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn from_hf_json(json: &[u8]) -> Result<Self> {
        read(json, None)
    }

    /// The rotary embedding of layers of `layer_type`, such as `full_attention` or `sliding_attention`.
    ///
    /// Where a file has one for all layers, that is it.
    ///
    /// # Errors
    ///
    /// As [`from_hf_json`](Self::from_hf_json); [`AttnError::Unsupported`] of a layer type that the file does not have.
    pub fn from_hf_json_of(json: &[u8], layer_type: &str) -> Result<Self> {
        read(json, Some(layer_type))
    }
}

fn read(json: &[u8], layer_type: Option<&str>) -> Result<RopeConfig> {
    let value: Value = serde_json::from_slice(json).map_err(|error| reason(&error.to_string()))?;
    let outer = value.as_object().ok_or_else(|| reason("not an object"))?;
    // Models of text and images have the language model's configuration within.
    let model = Fields(Some(outer.get("text_config").and_then(Value::as_object).unwrap_or(outer)));
    let parameters = Parameters::of(model, layer_type)?;
    let kind = parameters.kind()?;
    let base = parameters.base()?;
    let head_dim = model.head_dim(layer_type)?;
    let max_position_embeddings = model.count("max_position_embeddings")?.unwrap_or(2048);
    let part = parameters.rotated_part()?;
    let scaling = parameters.scaling(kind, part, max_position_embeddings)?;
    let rotary_dim = match (&scaling, part) {
        (RopeScaling::Proportional { .. }, _) => head_dim,
        (_, Some(part)) => (head_dim as f64 * part) as usize,
        (_, None) => model.count("rotary_dim")?.unwrap_or(head_dim),
    };
    let config = RopeConfig { head_dim, rotary_dim, base, max_position_embeddings, scaling };
    config.check()?;
    Ok(config)
}

/// Where the parameters of a layer's embedding stand.
struct Parameters<'a> {
    model: Fields<'a>,
    /// Without a base of its own where the file is of Gemma 3's old form.
    own: Fields<'a>,
    is_by_layer: bool,
    /// `truncate` of YaRN, which stands beside parameters by layer type.
    truncate: bool,
    /// `rope_local_base_freq`, of the layers that have it.
    local_base: Option<f64>,
}

impl<'a> Parameters<'a> {
    fn of(model: Fields<'a>, layer_type: Option<&str>) -> Result<Self> {
        let object = |name| model.raw(name).and_then(Value::as_object).filter(|o| !o.is_empty());
        let found = object("rope_scaling").or_else(|| object("rope_parameters"));
        let truncate = Fields(found).raw("truncate") != Some(&Value::Bool(false));
        let layers: Vec<(&str, &Object)> = found
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_object()?)))
            .collect();
        let new = |own, local_base, is_by_layer| Self {
            model,
            own: Fields(own),
            is_by_layer,
            truncate,
            local_base,
        };
        let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
        if let Some((_, first)) = layers.first() {
            let alike = layers.iter().all(|(_, other)| other == first).then_some(*first);
            let of_type = |name| layers.iter().find(|layer| layer.0 == name).map(|layer| layer.1);
            let own = layer_type.map_or(alike, of_type);
            return match own {
                Some(own) => Ok(new(Some(own), None, true)),
                None => Err(ambiguous("rope_parameters", &names)),
            };
        }
        match (model.number("rope_local_base_freq")?, layer_type) {
            (Some(_), None) => {
                let names = ["full_attention", "sliding_attention"];
                Err(ambiguous("rope_local_base_freq", &names))
            }
            (Some(base), Some("sliding_attention")) => Ok(new(None, Some(base), false)),
            _ => Ok(new(found, None, false)),
        }
    }

    /// `rope_type`, under the name that it has today.
    fn kind(&self) -> Result<&'a str> {
        let named = match self.own.text("rope_type")? {
            Some(kind) => kind,
            None => self.own.text("type")?.unwrap_or("default"),
        };
        let is_phi3 = self.model.text("model_type")?.is_some_and(|name| name.starts_with("phi3"));
        Ok(match named {
            "su" => "longrope",
            "yarn" if is_phi3 => "longrope",
            "mrope" => "default",
            other => other,
        })
    }

    fn base(&self) -> Result<f64> {
        let model = self.model;
        let first = match self.local_base {
            Some(base) => Some(base),
            None => self.own.number("rope_theta")?,
        };
        let places = [first, model.number("rope_theta")?, model.number("rotary_emb_base")?];
        Ok(places.into_iter().flatten().next().unwrap_or(10000.0))
    }

    /// The part of a head that is rotated, if one is named.
    fn rotated_part(&self) -> Result<Option<f64>> {
        let model = self.model;
        let places = [
            self.own.number("partial_rotary_factor")?,
            model.number("partial_rotary_factor")?,
            model.number("rotary_pct")?,
        ];
        Ok(places.into_iter().flatten().next())
    }

    fn original(&self, max_position_embeddings: usize) -> Result<usize> {
        let name = "original_max_position_embeddings";
        let outside = if self.is_by_layer { None } else { self.model.count(name)? };
        Ok(match outside {
            Some(original) => original,
            None => self.own.count(name)?.unwrap_or(max_position_embeddings),
        })
    }

    fn scaling(&self, kind: &str, part: Option<f64>, longest: usize) -> Result<RopeScaling> {
        let own = self.own;
        Ok(match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: own.required("factor")? },
            "dynamic" => match own.truthy("alpha")? {
                Some(factor) => RopeScaling::NtkAware { factor },
                None => RopeScaling::DynamicNtk { factor: own.required("factor")? },
            },
            "yarn" => RopeScaling::Yarn(self.yarn(longest)?),
            "longrope" => RopeScaling::LongRope(LongRope {
                short_factor: own.numbers("short_factor")?,
                long_factor: own.numbers("long_factor")?,
                original_max_position_embeddings: self.original(longest)?,
                factor: own.number("factor")?,
                attention_factor: own.number("attention_factor")?,
            }),
            "llama3" => RopeScaling::Llama3(Llama3 {
                factor: own.required("factor")?,
                low_freq_factor: own.required("low_freq_factor")?,
                high_freq_factor: own.required("high_freq_factor")?,
                original_max_position_embeddings: self.original(longest)?,
            }),
            "proportional" => RopeScaling::Proportional {
                factor: own.number("factor")?.unwrap_or(1.0),
                partial_rotary_factor: part.unwrap_or(1.0),
            },
            other => {
                return Err(AttnError::Unsupported {
                    field: "rope_type",
                    actual: clip(other),
                    supported: "default, linear, dynamic, yarn, longrope, llama3, proportional",
                });
            }
        })
    }

    fn yarn(&self, longest: usize) -> Result<Yarn> {
        let own = self.own;
        let original = self.original(longest)?;
        let ratio = longest as f64 / original as f64;
        let default = Yarn::new(own.number("factor")?.unwrap_or(ratio), original);
        Ok(Yarn {
            beta_fast: own.truthy("beta_fast")?.unwrap_or(default.beta_fast),
            beta_slow: own.truthy("beta_slow")?.unwrap_or(default.beta_slow),
            truncate: self.truncate,
            mscale: own.truthy("mscale")?,
            mscale_all_dim: own.truthy("mscale_all_dim")?,
            attention_factor: own.number("attention_factor")?,
            ..default
        })
    }
}

/// Fields of an object by type; null is as good as absent.
#[derive(Clone, Copy)]
struct Fields<'a>(Option<&'a Object>);

impl<'a> Fields<'a> {
    fn raw(self, name: &str) -> Option<&'a Value> {
        self.0?.get(name)
    }

    fn get<T>(
        self,
        name: &str,
        what: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.raw(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => convert(value)
                .map(Some)
                .ok_or_else(|| reason(&format!("`{name}` is {value}, expected {what}"))),
        }
    }

    fn number(self, name: &str) -> Result<Option<f64>> {
        self.get(name, "a number", Value::as_f64)
    }

    /// A number that is not 0.
    fn truthy(self, name: &str) -> Result<Option<f64>> {
        Ok(self.number(name)?.filter(|&number| number != 0.0))
    }

    fn required(self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| reason(&format!("no `{name}`")))
    }

    fn count(self, name: &str) -> Result<Option<usize>> {
        self.get(name, "a count", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn text(self, name: &str) -> Result<Option<&'a str>> {
        self.get(name, "a name", Value::as_str)
    }

    fn numbers(self, name: &str) -> Result<Vec<f64>> {
        let list = self.get(name, "a list of numbers", |value| {
            value.as_array()?.iter().map(Value::as_f64).collect()
        });
        list?.ok_or_else(|| reason(&format!("no `{name}`")))
    }

    fn head_dim(self, layer_type: Option<&str>) -> Result<usize> {
        if layer_type == Some("full_attention") {
            let is_gemma4 = self.text("model_type")?.is_some_and(|name| name.starts_with("gemma4"));
            let default = is_gemma4.then_some(512);
            if let Some(head_dim) = self.count("global_head_dim")?.or(default) {
                return Ok(head_dim);
            }
        }
        for name in ["qk_rope_head_dim", "head_dim"] {
            if let Some(head_dim) = self.count(name)? {
                return Ok(head_dim);
            }
        }
        let count = |name| self.count(name)?.ok_or_else(|| reason(&format!("no `{name}`")));
        let (hidden_size, n_heads) = (count("hidden_size")?, count("num_attention_heads")?);
        hidden_size.checked_div(n_heads).ok_or_else(|| reason("`num_attention_heads` is 0"))
    }
}

fn ambiguous(field: &'static str, layer_types: &[&str]) -> AttnError {
    let actual = clip(&format!("that of {}", layer_types.join(", ")));
    AttnError::Unsupported { field, actual, supported: "one of these layer types, by its name" }
}

fn reason(reason: &str) -> AttnError {
    AttnError::Json { reason: clip(reason) }
}

/// The first 200 characters, so that a message does not grow with a file.
fn clip(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
