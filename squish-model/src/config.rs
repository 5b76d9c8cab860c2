//! The shape of a model, from a Hugging Face `config.json`.
//!
//! Read are the fields of transformers' `LlamaConfig`; fields that do not change the result are ignored. A field that
//! would change it to something which this crate does not compute is an error that names the field.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Error, error::clip};

/// The numbers that define a Llama-type model.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the matrices of the MLP.
    pub intermediate_size: usize,
    /// `num_hidden_layers`.
    pub n_layers: usize,
    /// `num_attention_heads`: heads of queries.
    pub n_heads: usize,
    /// `num_key_value_heads`: heads of keys and values, each shared by `n_heads / n_kv_heads` heads of queries.
    /// By default as many as heads of queries.
    pub n_kv_heads: usize,
    /// Width of a head; by default `hidden_size / n_heads`.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// The longest context, by default 2048.
    pub max_position_embeddings: usize,
    /// Added to the mean square under the root, by default 1e-6.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies, by default 10000.
    pub rope_theta: f32,
    /// Whether the embedding is the output head, too; by default it is not.
    pub tie_word_embeddings: bool,
}

/// The fields as they stand in the file.
#[derive(Deserialize)]
struct Raw {
    architectures: Option<Value>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    hidden_act: Option<Value>,
    attention_bias: Option<Value>,
    mlp_bias: Option<Value>,
    quantization_config: Option<Value>,
    tie_word_embeddings: Option<bool>,
}

impl Config {
    /// The configuration in the bytes of a `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigJson`]; [`Error::Unsupported`] of an architecture other than `LlamaForCausalLM`, scaled RoPE,
    /// biases, an activation other than SiLU, or quantized weights; [`Error::ConfigValue`] of a zero, an odd `head_dim`,
    /// a number that is not finite, or two bases of RoPE that differ; [`Error::NotDivisible`], [`Error::Overflow`].
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_model::Config;
    ///
    /// let json = br#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
    ///     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_scaling": null}"#;
    /// let config = Config::from_json(json)?;
    /// assert_eq!((config.head_dim, config.rope_theta, config.tie_word_embeddings), (16, 10000.0, false));
    ///
    /// let scaled = String::from_utf8_lossy(json).replace("null", r#"{"rope_type": "yarn", "factor": 4.0}"#);
    /// let error = Config::from_json(scaled.as_bytes()).unwrap_err();
    /// assert_eq!(error.to_string(), r#"`rope_scaling` is {"factor":4.0,"rope_type":"yarn"}, supported: the default RoPE"#);
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|error| Error::ConfigJson { reason: clip(&error.to_string()) })?;
        raw.check_support()?;
        let rope_theta = raw.rope_theta()?.unwrap_or(10000.0) as f32;
        // Zero heads are refused below, where the other zeros are.
        let derived_head_dim = raw.hidden_size.checked_div(raw.num_attention_heads).unwrap_or(1);
        if raw.head_dim.is_none() {
            divides(
                ("hidden_size", raw.hidden_size),
                ("num_attention_heads", raw.num_attention_heads),
            )?;
        }
        let config = Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            n_layers: raw.num_hidden_layers,
            n_heads: raw.num_attention_heads,
            n_kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw.head_dim.unwrap_or(derived_head_dim),
            vocab_size: raw.vocab_size,
            max_position_embeddings: raw.max_position_embeddings.unwrap_or(2048),
            rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        };
        config.check()?;
        Ok(config)
    }

    /// Width of all heads of queries together.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all heads of keys together, and of values.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Whether the numbers can be those of a model, and none of its shapes overflows.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let heads = ("num_attention_heads", self.n_heads);
        let kv_heads = ("num_key_value_heads", self.n_kv_heads);
        let (hidden, head_dim) = (("hidden_size", self.hidden_size), ("head_dim", self.head_dim));
        let intermediate = ("intermediate_size", self.intermediate_size);
        let vocab = ("vocab_size", self.vocab_size);
        let layers = ("num_hidden_layers", self.n_layers);
        let context = ("max_position_embeddings", self.max_position_embeddings);
        for (field, value) in
            [hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, context]
        {
            if value == 0 {
                return Err(Error::ConfigValue { field, actual: 0.0, expected: "at least 1" });
            }
        }
        if !self.head_dim.is_multiple_of(2) {
            let actual = self.head_dim as f64;
            return Err(Error::ConfigValue {
                field: "head_dim",
                actual,
                expected: "an even number, because RoPE turns pairs",
            });
        }
        divides(heads, kv_heads)?;
        let q_dim = product(heads, head_dim)?;
        for (first, second) in [
            (hidden, vocab),
            (hidden, intermediate),
            (hidden, ("num_attention_heads * head_dim", q_dim)),
        ] {
            product(first, second)?;
        }
        let eps = self.rms_norm_eps;
        if !(eps.is_finite() && eps >= 0.0) {
            let (field, actual) = ("rms_norm_eps", f64::from(eps));
            return Err(Error::ConfigValue { field, actual, expected: "finite and at least 0" });
        }
        let theta = self.rope_theta;
        if !(theta.is_finite() && theta > 0.0) {
            let (field, actual) = ("rope_theta", f64::from(theta));
            return Err(Error::ConfigValue { field, actual, expected: "finite and above 0" });
        }
        Ok(())
    }
}

impl Raw {
    /// Whether the fields that this crate does not act upon have the values that it computes.
    fn check_support(&self) -> Result<(), Error> {
        let llama = |value: Option<&Value>| {
            value
                .and_then(Value::as_array)
                .is_some_and(|list| list.iter().any(|name| name == "LlamaForCausalLM"))
        };
        let silu =
            |value: Option<&Value>| value.is_none_or(|value| value == "silu" || value == "swish");
        let off = |value: Option<&Value>| value.is_none_or(|value| *value == Value::Bool(false));
        let plain = |value: Option<&Value>| value.is_none_or(is_default_rope);
        let absent = |value: Option<&Value>| value.is_none();
        let is = |field, value: &Option<Value>, test: fn(Option<&Value>) -> bool, supported| {
            let value = value.as_ref();
            if test(value) {
                return Ok(());
            }
            let actual = value.map_or_else(|| "absent".to_owned(), |json| clip(&json.to_string()));
            Err(Error::Unsupported { field, actual, supported })
        };
        is("architectures", &self.architectures, llama, "a list with `LlamaForCausalLM`")?;
        is("hidden_act", &self.hidden_act, silu, "`silu`")?;
        is("rope_scaling", &self.rope_scaling, plain, "the default RoPE")?;
        is("rope_parameters", &self.rope_parameters, plain, "the default RoPE")?;
        is("attention_bias", &self.attention_bias, off, "false")?;
        is("mlp_bias", &self.mlp_bias, off, "false")?;
        is("quantization_config", &self.quantization_config, absent, "weights that are floats")
    }
}

impl Raw {
    /// The base of RoPE from the first of the three places where transformers 5 looks for it.
    ///
    /// The other places must agree: which of two bases a model was trained with depends on the version that wrote the file.
    fn rope_theta(&self) -> Result<Option<f64>, Error> {
        let within = |rope: &Option<Value>| rope.as_ref()?.get("rope_theta")?.as_f64();
        let mut first: Option<(&'static str, f64)> = None;
        for (field, as_expected, theta) in [
            ("rope_scaling.rope_theta", "that of `rope_scaling`", within(&self.rope_scaling)),
            (
                "rope_parameters.rope_theta",
                "that of `rope_parameters`",
                within(&self.rope_parameters),
            ),
            ("rope_theta", "", self.rope_theta),
        ] {
            let Some(actual) = theta else { continue };
            let (expected, theta) = *first.get_or_insert((as_expected, actual));
            if actual != theta {
                return Err(Error::ConfigValue { field, actual, expected });
            }
        }
        Ok(first.map(|(_, theta)| theta))
    }
}

/// Whether `rope` has a base at most: no type but `default`, no factor of any scaling.
fn is_default_rope(rope: &Value) -> bool {
    let plain = |rope: &Map<String, Value>| {
        rope.iter().all(|(key, value)| match key.as_str() {
            "rope_type" | "type" => value == "default",
            "rope_theta" => value.is_number(),
            _ => false,
        })
    };
    rope.as_object().is_some_and(plain)
}

type Field = (&'static str, usize);

fn divides((field, actual): Field, (divisor_field, divisor): Field) -> Result<(), Error> {
    if divisor == 0 {
        let expected = "at least 1";
        return Err(Error::ConfigValue { field: divisor_field, actual: 0.0, expected });
    }
    if actual.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(Error::NotDivisible { field, actual, divisor_field, divisor })
}

fn product((first_field, first): Field, (second_field, second): Field) -> Result<usize, Error> {
    // Bytes of the widened tensor have to fit, too.
    let bytes = first.checked_mul(second).and_then(|n| n.checked_mul(size_of::<f32>()));
    match bytes {
        Some(_) => Ok(first * second),
        None => Err(Error::Overflow { first_field, first, second_field, second }),
    }
}
