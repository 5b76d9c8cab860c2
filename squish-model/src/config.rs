//! What a model computes: the numbers of a Hugging Face `config.json`, with the differences of families spelled out.
//!
//! The forward pass knows no families. What sets one apart is a field here:
//!
//! | family | differs from Llama in |
//! |---|---|
//! | Llama 2, 3 | — |
//! | Mistral | [`LayerConfig::window`] of all layers |
//! | Qwen2, Qwen2.5 | [`qkv_bias`](Config::qkv_bias); windows of the later layers, if they are on |
//! | Qwen3 | [`qk_norm`](Config::qk_norm) |
//! | Gemma 2 | [`post_norms`](Config::post_norms), norms by `1 + w`, GELU, scaled embeddings, soft caps, windows of every other layer |
//! | Gemma 3 | as Gemma 2 with `qk_norm` instead of soft caps; layers with windows have a RoPE of their own |
//!
//! Fields can be changed before a model is loaded with them: another RoPE, other windows.

use std::fmt;

use squish_attn::{RmsVariant, RopeConfig};
use squish_quant::Gate;

use crate::Error;

mod hf;

/// Where the definition of a model comes from: the `architectures` of its `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
    /// `Gemma2ForCausalLM`.
    Gemma2,
    /// `Gemma3ForCausalLM`, text alone.
    Gemma3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Gemma3];

    /// Its name among `architectures`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    pub(crate) const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.architecture().trim_end_matches("ForCausalLM"))
    }
}

/// What one layer has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LayerConfig {
    /// Tokens that a row sees at most, itself included.
    pub window: Option<usize>,
    /// Which of [`Config::ropes`] turns its heads.
    pub rope: usize,
}

/// The numbers that define a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a field of the file, or what sets a family apart"
)]
pub struct Config {
    /// The family that it was read for.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the matrices of the MLP.
    pub intermediate_size: usize,
    /// `num_attention_heads`: heads of queries.
    pub n_heads: usize,
    /// `num_key_value_heads`: heads of keys and values, each shared by `n_heads / n_kv_heads` heads of queries.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// The longest context.
    pub max_position_embeddings: usize,
    /// Added to the mean square under the root of a norm.
    pub rms_norm_eps: f32,
    /// Whether norms multiply by their weight or by one more.
    pub norm: RmsVariant,
    /// Whether the embedding is the output head, too.
    pub tie_word_embeddings: bool,
    /// Whether the projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the projection of attention's output has a bias.
    pub o_bias: bool,
    /// Whether the matrices of the MLP have biases.
    pub mlp_bias: bool,
    /// Whether heads of queries and keys are normed before they are turned.
    pub qk_norm: bool,
    /// Whether the outputs of attention and of the MLP are normed before they are added to the residual stream.
    pub post_norms: bool,
    /// What the gate of the MLP goes through.
    pub gate: Gate,
    /// What embeddings are multiplied by.
    pub embedding_scale: f32,
    /// What products of queries and keys are multiplied by.
    pub attention_scale: f32,
    /// Scores of attention are squashed between minus and plus this.
    pub attention_softcap: Option<f32>,
    /// Logits are squashed between minus and plus this.
    pub logit_softcap: Option<f32>,
    /// Each layer.
    pub layers: Vec<LayerConfig>,
    /// The rotary embeddings of the layers, at least one.
    pub ropes: Vec<RopeConfig>,
}

impl Config {
    /// A Llama of this shape with tied embeddings, the default RoPE of base 10000, and no bias: to be changed where a model differs.
    #[allow(clippy::too_many_arguments, reason = "each is a number of the shape")]
    pub fn llama(
        hidden_size: usize,
        intermediate_size: usize,
        n_layers: usize,
        [n_heads, n_kv_heads, head_dim]: [usize; 3],
        vocab_size: usize,
        max_position_embeddings: usize,
    ) -> Self {
        Self {
            family: Family::Llama,
            hidden_size,
            intermediate_size,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab_size,
            max_position_embeddings,
            rms_norm_eps: 1e-5,
            norm: RmsVariant::Llama,
            tie_word_embeddings: true,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            post_norms: false,
            gate: Gate::Silu,
            embedding_scale: 1.0,
            attention_scale: (head_dim as f64).sqrt().recip() as f32,
            attention_softcap: None,
            logit_softcap: None,
            layers: vec![LayerConfig::default(); n_layers],
            ropes: vec![RopeConfig::new(head_dim, 1e4, max_position_embeddings)],
        }
    }

    /// The number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
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
    ///
    /// # Errors
    ///
    /// [`Error::ConfigValue`], [`Error::NotDivisible`], [`Error::Overflow`], [`Error::Attention`] of a rotary embedding.
    pub fn check(&self) -> Result<(), Error> {
        self.check_sizes()?;
        self.check_floats()?;
        for LayerConfig { window, rope } in &self.layers {
            let in_range = [
                ("sliding_window", window.unwrap_or(1), window != &Some(0), "at least 1"),
                ("ropes", *rope, *rope < self.ropes.len(), "a rotary embedding of the model"),
            ];
            for (field, actual, holds, expected) in in_range {
                if !holds {
                    return Err(Error::ConfigValue { field, actual: actual as f64, expected });
                }
            }
        }
        for rope in &self.ropes {
            rope.check()?;
            if rope.head_dim != self.head_dim {
                let actual = rope.head_dim as f64;
                let expected = "`head_dim` of the model";
                return Err(Error::ConfigValue { field: "ropes.head_dim", actual, expected });
            }
        }
        Ok(())
    }

    /// Whether sizes are none of them 0, divide each other and have products.
    fn check_sizes(&self) -> Result<(), Error> {
        let heads = ("num_attention_heads", self.n_heads);
        let kv_heads = ("num_key_value_heads", self.n_kv_heads);
        let (hidden, head_dim) = (("hidden_size", self.hidden_size), ("head_dim", self.head_dim));
        let intermediate = ("intermediate_size", self.intermediate_size);
        let vocab = ("vocab_size", self.vocab_size);
        let layers = ("num_hidden_layers", self.layers.len());
        let context = ("max_position_embeddings", self.max_position_embeddings);
        for (field, value) in
            [hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, context]
        {
            if value == 0 {
                return Err(Error::ConfigValue { field, actual: 0.0, expected: "at least 1" });
            }
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
        Ok(())
    }

    fn check_floats(&self) -> Result<(), Error> {
        let eps = f64::from(self.rms_norm_eps);
        let not_negative = [("rms_norm_eps", eps)];
        let positive = [
            ("embedding_scale", Some(self.embedding_scale)),
            ("attention_scale", Some(self.attention_scale)),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ];
        for (field, actual) in not_negative {
            if !(actual.is_finite() && actual >= 0.0) {
                let expected = "finite and at least 0";
                return Err(Error::ConfigValue { field, actual, expected });
            }
        }
        for (field, actual) in positive {
            let Some(actual) = actual else { continue };
            if !(actual.is_finite() && actual > 0.0) {
                let (actual, expected) = (f64::from(actual), "finite and above 0");
                return Err(Error::ConfigValue { field, actual, expected });
            }
        }
        Ok(())
    }
}

pub(crate) type Field = (&'static str, usize);

pub(crate) fn divides(
    (field, actual): Field,
    (divisor_field, divisor): Field,
) -> Result<(), Error> {
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
