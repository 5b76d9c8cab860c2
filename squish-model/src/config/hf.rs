//! [`Config`] from the bytes of a `config.json`, with the defaults of transformers 5.23.
//!
//! Fields that do not change the result are ignored. One that would change it to something which this crate does not compute is an
//! error that names it.
//!
//! | which layers have a window | |
//! |---|---|
//! | Llama | none |
//! | Mistral | all, unless `sliding_window` is null |
//! | Qwen2, Qwen3 | if `use_sliding_window`: those of `layer_types`, else from `max_window_layers` on |
//! | Gemma 2 | those of `layer_types`, else every other one, from the first on |
//! | Gemma 3 | those of `layer_types`, else all but every sixth, or as `sliding_window_pattern` says |
//!
//! | Gemma 3's layers | base of their rotary embedding: first that of their `rope_parameters`, then | else |
//! |---|---|---|
//! | with a window | `rope_local_base_freq` | 10000 |
//! | without | `rope_theta` | 1000000 |

use serde::Deserialize;
use serde_json::{Map, Value, json};
use squish_attn::{RmsVariant, RopeConfig};
use squish_quant::Gate;

use super::{Config, Family, LayerConfig, divides};
use crate::{Error, error::clip};

/// The fields as they stand in the file. Of some, a null is not the same as no field.
#[derive(Deserialize)]
#[allow(clippy::option_option, reason = "no field, a null, or a number")]
struct Raw {
    architectures: Option<Value>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default, deserialize_with = "present")]
    num_key_value_heads: Option<Option<usize>>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    // Numbers are rounded from the 64 bits that Python has.
    rms_norm_eps: Option<f64>,
    hidden_act: Option<Value>,
    hidden_activation: Option<Value>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    sliding_window_pattern: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "present")]
    final_logit_softcapping: Option<Option<f64>>,
    use_bidirectional_attention: Option<bool>,
    quantization_config: Option<Value>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    rope_theta: Option<Value>,
    rope_local_base_freq: Option<Value>,
    partial_rotary_factor: Option<Value>,
    original_max_position_embeddings: Option<Value>,
}

/// A field that is there, null or not.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// What transformers takes for fields that a file lacks.
struct Defaults {
    /// As many as heads of queries, if none.
    n_kv_heads: Option<usize>,
    /// The part of the hidden size that each head has, if none.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

impl Family {
    const fn defaults(self) -> Defaults {
        let (n_kv_heads, head_dim, max_position_embeddings) = match self {
            Self::Llama => (None, None, 2048),
            Self::Mistral => (Some(8), None, 131072),
            Self::Qwen2 => (Some(32), None, 32768),
            Self::Qwen3 => (Some(32), Some(128), 32768),
            Self::Gemma2 => (Some(4), Some(256), 8192),
            Self::Gemma3 => (Some(4), Some(256), 131072),
        };
        let tie_word_embeddings = self.is_gemma();
        Defaults { n_kv_heads, head_dim, max_position_embeddings, tie_word_embeddings }
    }
}

impl Config {
    /// The configuration in the bytes of a `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigJson`]; [`Error::Unsupported`] of an architecture that is not among [`Family::ALL`], of an activation other than
    /// SiLU and GELU by the hyperbolic tangent, of a kind of layer, of heads that are turned in part, of weights that are to be quantized;
    /// [`Error::Attention`] of a rotary embedding; and as [`check`](Self::check).
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_model::{Config, Family};
    ///
    /// let json = br#"{"architectures": ["MistralForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
    ///     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 16}"#;
    /// let config = Config::from_json(json)?;
    /// assert_eq!((config.family, config.head_dim, config.ropes[0].base), (Family::Mistral, 16, 10000.0));
    /// assert!(config.layers.iter().all(|layer| layer.window == Some(16)));
    ///
    /// let other = String::from_utf8_lossy(json).replace("Mistral", "Mamba");
    /// let error = Config::from_json(other.as_bytes()).unwrap_err();
    /// assert!(error.to_string().starts_with(r#"`architectures` is ["MambaForCausalLM"], supported: a list with `LlamaForCausalLM`"#));
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|error| Error::ConfigJson { reason: clip(&error.to_string()) })?;
        let family = raw.family()?;
        raw.check_unsupported()?;
        let defaults = family.defaults();
        let n_heads = raw.num_attention_heads;
        let head_dim = if let Some(head_dim) = raw.head_dim.or(defaults.head_dim) {
            head_dim
        } else {
            divides(("hidden_size", raw.hidden_size), ("num_attention_heads", n_heads))?;
            raw.hidden_size / n_heads
        };
        let query_scalar = raw.query_pre_attn_scalar.filter(|_| family.is_gemma());
        let query_scalar =
            query_scalar.unwrap_or(if family.is_gemma() { 256.0 } else { head_dim as f64 });
        // Transformers reads Gemma 3's cap of attention, and does not apply it.
        let (attention_softcap, logit_softcap) = match family {
            Family::Gemma2 => (
                raw.attn_logit_softcapping.unwrap_or(Some(50.0)),
                raw.final_logit_softcapping.unwrap_or(Some(30.0)),
            ),
            Family::Gemma3 => (None, raw.final_logit_softcapping.flatten()),
            _ => (None, None),
        };
        let attention_bias = raw.attention_bias.unwrap_or(false);
        let has_bias_field = !matches!(family, Family::Mistral | Family::Qwen2);
        let mut config = Self {
            family,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            n_heads,
            n_kv_heads: raw.num_key_value_heads.unwrap_or(defaults.n_kv_heads).unwrap_or(n_heads),
            head_dim,
            vocab_size: raw.vocab_size,
            max_position_embeddings: raw
                .max_position_embeddings
                .unwrap_or(defaults.max_position_embeddings),
            rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6) as f32,
            norm: if family.is_gemma() { RmsVariant::Gemma } else { RmsVariant::Llama },
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(defaults.tie_word_embeddings),
            qkv_bias: family == Family::Qwen2 || has_bias_field && attention_bias,
            o_bias: has_bias_field && attention_bias,
            mlp_bias: family == Family::Llama && raw.mlp_bias.unwrap_or(false),
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
            post_norms: family.is_gemma(),
            gate: raw.gate(family)?,
            embedding_scale: if family.is_gemma() {
                (raw.hidden_size as f64).sqrt() as f32
            } else {
                1.0
            },
            attention_scale: query_scalar.sqrt().recip() as f32,
            attention_softcap: attention_softcap.map(|cap| cap as f32),
            logit_softcap: logit_softcap.map(|cap| cap as f32),
            layers: raw.layers(family)?,
            ropes: Vec::new(),
        };
        config.check_sizes()?;
        config.ropes = raw.ropes(&config)?;
        config.check()?;
        Ok(config)
    }
}

impl Raw {
    fn family(&self) -> Result<Family, Error> {
        let named = |family: &Family| {
            let list = self.architectures.as_ref().and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|name| name == family.architecture()))
        };
        Family::ALL.into_iter().find(named).ok_or_else(|| Error::Unsupported {
            field: "architectures",
            actual: shown(self.architectures.as_ref()),
            supported: "a list with `LlamaForCausalLM`, or that of Mistral, Qwen2, Qwen3, Gemma2 or Gemma3",
        })
    }

    fn check_unsupported(&self) -> Result<(), Error> {
        if self.use_bidirectional_attention == Some(true) {
            let (field, actual) = ("use_bidirectional_attention", "true".to_owned());
            return Err(Error::Unsupported { field, actual, supported: "false" });
        }
        if let Some(value) = &self.quantization_config {
            let (field, actual) = ("quantization_config", shown(Some(value)));
            return Err(Error::Unsupported { field, actual, supported: "weights that are floats" });
        }
        Ok(())
    }

    fn gate(&self, family: Family) -> Result<Gate, Error> {
        let (field, value, default) = if family.is_gemma() {
            ("hidden_activation", &self.hidden_activation, Gate::GeluTanh)
        } else {
            ("hidden_act", &self.hidden_act, Gate::Silu)
        };
        match value {
            None => Ok(default),
            Some(value) if value == "silu" || value == "swish" => Ok(Gate::Silu),
            Some(value) if value == "gelu_pytorch_tanh" => Ok(Gate::GeluTanh),
            Some(value) => Err(Error::Unsupported {
                field,
                actual: shown(Some(value)),
                supported: "`silu` and `gelu_pytorch_tanh`",
            }),
        }
    }

    fn layers(&self, family: Family) -> Result<Vec<LayerConfig>, Error> {
        let n_layers = self.num_hidden_layers;
        if n_layers > MOST_LAYERS {
            let (field, actual) = ("num_hidden_layers", n_layers as f64);
            return Err(Error::ConfigValue { field, actual, expected: "at most 10000" });
        }
        let pattern = self.sliding_window_pattern.unwrap_or(6);
        if pattern == 0 {
            let (field, actual) = ("sliding_window_pattern", 0.0);
            return Err(Error::ConfigValue { field, actual, expected: "at least 1" });
        }
        let window = match family {
            Family::Llama => None,
            Family::Qwen2 | Family::Qwen3 if self.use_sliding_window != Some(true) => None,
            _ => self.sliding_window.unwrap_or(Some(4096)),
        };
        let slides = |idx: usize| match (family, &self.layer_types) {
            (Family::Llama, _) => Ok(false),
            (Family::Mistral, _) => Ok(true),
            (_, Some(types)) => match types.get(idx).map(String::as_str) {
                Some("sliding_attention") => Ok(true),
                Some("full_attention" | "attention") => Ok(false),
                other => {
                    let actual = clip(other.unwrap_or("absent"));
                    Err(unsupported_layers(format!("{actual} at index {idx}")))
                }
            },
            (Family::Gemma2, None) => Ok(idx.is_multiple_of(2)),
            (Family::Gemma3, None) => Ok(!(idx + 1).is_multiple_of(pattern)),
            (Family::Qwen2 | Family::Qwen3, None) => {
                Ok(idx >= self.max_window_layers.unwrap_or(28))
            }
        };
        let layers: Vec<LayerConfig> = (0..n_layers)
            .map(|idx| {
                let slides = slides(idx)?;
                let rope = usize::from(family == Family::Gemma3 && slides);
                Ok(LayerConfig { window: window.filter(|_| slides), rope })
            })
            .collect::<Result<_, Error>>()?;
        let has_types = !matches!(family, Family::Llama | Family::Mistral);
        match &self.layer_types {
            Some(types) if has_types && types.len() > n_layers => {
                Err(unsupported_layers(format!("{} entries for {n_layers} layers", types.len())))
            }
            _ => Ok(layers),
        }
    }

    /// The rotary embeddings: of Gemma 3 first that of full attention, then that of windows.
    fn ropes(&self, config: &Config) -> Result<Vec<RopeConfig>, Error> {
        let is_by_layer = config.family == Family::Gemma3;
        let mut fields = json!({
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_position_embeddings,
            "partial_rotary_factor": self.partial_rotary_factor,
            "original_max_position_embeddings": self.original_max_position_embeddings,
        });
        if is_by_layer {
            fields["rope_parameters"] = self.parameters_by_layer();
        } else {
            fields["rope_theta"] = json!(self.rope_theta);
            fields["rope_scaling"] = json!(self.rope_scaling);
            fields["rope_parameters"] = json!(self.rope_parameters);
        }
        let json = fields.to_string();
        let ropes = if is_by_layer {
            [FULL, SLIDING]
                .map(|kind| RopeConfig::from_hf_json_of(json.as_bytes(), kind))
                .into_iter()
                .collect::<Result<_, _>>()?
        } else {
            vec![RopeConfig::from_hf_json(json.as_bytes())?]
        };
        for RopeConfig { rotary_dim, head_dim, .. } in &ropes {
            if rotary_dim != head_dim {
                return Err(Error::Unsupported {
                    field: "partial_rotary_factor",
                    actual: format!("such that {rotary_dim} of {head_dim} numbers are turned"),
                    supported: "heads that are turned as a whole",
                });
            }
        }
        Ok(ropes)
    }

    /// Gemma 3's parameters of both kinds of layer, each with its base.
    fn parameters_by_layer(&self) -> Value {
        let of = |kind: &str| {
            let found = self.rope_parameters.as_ref().and_then(|of| of.get(kind));
            // So that a scaling whose kind is called `type` is none, as in transformers.
            let default = || Map::from_iter([("rope_type".to_owned(), json!("default"))]);
            found.and_then(Value::as_object).cloned().unwrap_or_else(default)
        };
        let (mut full, mut sliding) = (of(FULL), of(SLIDING));
        full.extend(self.rope_scaling.clone().unwrap_or_default());
        for (parameters, base, default) in
            [(&mut full, &self.rope_theta, 1e6), (&mut sliding, &self.rope_local_base_freq, 1e4)]
        {
            let base = || base.clone().unwrap_or(json!(default));
            parameters.entry("rope_theta").or_insert_with(base);
        }
        json!({ FULL: full, SLIDING: sliding })
    }
}

/// What Gemma 3 calls its two rotary embeddings.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

fn unsupported_layers(actual: String) -> Error {
    let supported = "`full_attention` and `sliding_attention`, one for each layer";
    Error::Unsupported { field: "layer_types", actual, supported }
}

/// More layers than any model has; a file that says more must not take memory for them.
const MOST_LAYERS: usize = 10_000;

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "absent".to_owned(), |json| clip(&json.to_string()))
}
