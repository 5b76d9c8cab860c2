//! A model that is ready to compute: its configuration and its weights, packed.
//!
//! | tensor | shape | if |
//! |---|---|---|
//! | `model.embed_tokens.weight` | `[vocab_size, hidden_size]` | |
//! | `model.layers.I.input_layernorm.weight` | `[hidden_size]` | |
//! | `model.layers.I.self_attn.q_proj.weight` | `[n_heads * head_dim, hidden_size]` | |
//! | `….k_proj.weight`, `v_proj` | `[n_kv_heads * head_dim, hidden_size]` | |
//! | `….q_proj.bias`, `k_proj`, `v_proj` | as many as outputs | `qkv_bias` |
//! | `….q_norm.weight`, `k_norm` | `[head_dim]` | `qk_norm` |
//! | `….o_proj.weight`, `.bias` | `[hidden_size, n_heads * head_dim]` | the bias: `o_bias` |
//! | `model.layers.I.post_attention_layernorm.weight` | `[hidden_size]` | |
//! | `model.layers.I.pre_feedforward_layernorm.weight`, `post_feedforward_layernorm` | `[hidden_size]` | `post_norms` |
//! | `model.layers.I.mlp.gate_proj.weight`, `up_proj`, `.bias` | `[intermediate_size, hidden_size]` | biases: `mlp_bias` |
//! | `….down_proj.weight`, `.bias` | `[hidden_size, intermediate_size]` | |
//! | `model.norm.weight` | `[hidden_size]` | |
//! | `lm_head.weight` | `[vocab_size, hidden_size]` | not tied |

use std::{fmt, path::Path};

use squish_checkpoint::Checkpoint;
use squish_quant::{Activation, ColumnMatrix, Epilogue, Product, Verify, ndarray::ArrayViewMut2};

use crate::{
    Config, DenseTensor, Error, Packed, Quantization, QuantizedCheckpoint, TensorSource,
    WeightFormat, error::read,
};

mod load;

use load::Loader;

/// A matrix of a layer, or the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Projection {
    /// To queries.
    Q,
    /// To keys.
    K,
    /// To values.
    V,
    /// Of attention's output.
    O,
    /// Of the MLP: what gates.
    Gate,
    /// Of the MLP: what is gated.
    Up,
    /// Of the MLP: back to the residual stream.
    Down,
    /// To logits.
    Head,
}

impl Projection {
    /// Those of a layer, in the order of the forward pass.
    pub const OF_LAYER: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Outputs and inputs.
    pub fn shape(self, config: &Config) -> [usize; 2] {
        let hidden = config.hidden_size;
        match self {
            Self::Q => [config.q_dim(), hidden],
            Self::K | Self::V => [config.kv_dim(), hidden],
            Self::O => [hidden, config.q_dim()],
            Self::Gate | Self::Up => [config.intermediate_size, hidden],
            Self::Down => [hidden, config.intermediate_size],
            Self::Head => [config.vocab_size, hidden],
        }
    }

    /// The first of those that multiply the same input, at which hooks are shown it.
    #[must_use]
    pub fn sharing(self) -> Self {
        match self {
            Self::K | Self::V => Self::Q,
            Self::Up => Self::Gate,
            other => other,
        }
    }

    /// Name of the module that holds it in a checkpoint, in `layer` unless it is the head.
    pub fn module(self, layer: usize) -> String {
        let part = match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
            Self::Head => return "lm_head".to_owned(),
        };
        format!("model.layers.{layer}.{part}")
    }

    pub(crate) fn has_bias(self, config: &Config) -> bool {
        match self {
            Self::Q | Self::K | Self::V => config.qkv_bias,
            Self::O => config.o_bias,
            Self::Gate | Self::Up | Self::Down => config.mlp_bias,
            Self::Head => false,
        }
    }
}

/// How weights are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Format of the matrices of layers.
    pub weights: WeightFormat,
    /// Format of the head. Rows of the embedding are read where the checkpoint has them.
    pub head: WeightFormat,
    /// What the inputs of products are rounded to; by default what the format of each matrix has by default.
    /// [`Activation::F32`] is exact, and every format has it.
    pub activation: Option<Activation>,
    /// Whether panels that are used where a file is mapped are held against their checksum, which reads all of them.
    pub verify: Verify,
    /// Whether gate, up and down are held by input, too ([`ColumnMatrix`]), in as much memory again: for rows of which a
    /// [`Sparsity`](crate::Sparsity) leaves inputs out, whose weights then are not read. Without, little of that is saved. Of f32, bf16 and FP8
    /// with scales by output that are packed while loading; others are as without.
    pub mlp_by_input: bool,
}

impl LoadOptions {
    /// Layers and head in one format, inputs rounded as it has them by default.
    pub fn of(format: WeightFormat) -> Self {
        Self { weights: format, head: format, ..Self::default() }
    }

    /// Inputs that are not rounded.
    #[must_use]
    pub fn exact(self) -> Self {
        Self { activation: Some(Activation::F32), ..self }
    }
}

/// A matrix with its bias.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) weights: Packed,
    /// The weights by input.
    pub(crate) columns: Option<ColumnMatrix>,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// `out = W x + b`.
    pub(crate) fn product<'a>(&'a self, out: ArrayViewMut2<'a, f32>) -> Product<'a> {
        let (weights, bias) = (self.weights.view(), self.bias.as_deref());
        Product { weights, bias, epilogue: Epilogue::Store, out }
    }
}

/// The tensors of one layer.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    /// Of heads of queries and of keys.
    pub(crate) qk_norms: Option<[Vec<f32>; 2]>,
    pub(crate) o: Linear,
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    pub(crate) mlp_norm: Vec<f32>,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) post_mlp_norm: Option<Vec<f32>>,
}

/// A model: what a [`Runner`](crate::Runner) computes with, and what several can share.
#[derive(Clone)]
pub struct Model {
    pub(crate) config: Config,
    pub(crate) embedding: DenseTensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    pub(crate) head: Linear,
}

impl Model {
    /// The model in a Hugging Face folder: `config.json` and safetensors files, which are mapped as long as the model lives (see
    /// [`Checkpoint::open`]). Of weights that are quantized there, those asked for as [`WeightFormat::Stored`] keep their codes; see
    /// [`Quantization`] for what is read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::InFile`] with those of [`Config::from_json`] and [`Quantization::from_json`]; those of
    /// [`Checkpoint::open`] and [`load`](Self::load).
    pub fn open(folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, Error> {
        let config = Config::open(&folder)?;
        let quantization = Quantization::open(&folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        match quantization {
            None => Self::load(&checkpoint, &config, options),
            Some(quantization) => {
                let source = QuantizedCheckpoint::new(checkpoint, quantization, options.verify);
                Self::load(&source, &config, options)
            }
        }
    }

    /// The model of this configuration with weights from `source`.
    ///
    /// # Errors
    ///
    /// Those of [`Config::check`]; [`Error::Checkpoint`] of a tensor that is missing, has another shape or cannot be read;
    /// [`Error::Dtype`] of one that is not `F32`, `F16` or `BF16`; [`Error::Pack`] of one that the format cannot hold.
    pub fn load(
        source: &dyn TensorSource,
        config: &Config,
        options: &LoadOptions,
    ) -> Result<Self, Error> {
        config.check()?;
        let loader = Loader { source, config, options };
        let embedding = loader.matrix(EMBEDDING, Projection::Head.shape(config))?;
        let layers = (0..config.n_layers()).map(|i| loader.layer(i)).collect::<Result<_, _>>()?;
        let norm = loader.vector("model.norm.weight", config.hidden_size)?;
        let head = if config.tie_word_embeddings {
            loader.tied_head(&embedding)?
        } else {
            loader.linear(Projection::Head, 0)?
        };
        Ok(Self { config: config.clone(), embedding, layers, norm, head })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes that a step reads of the weights, whatever the number of its tokens: all matrices and norms, and no row of the embedding.
    pub fn n_bytes(&self) -> usize {
        let norms = |norms: &[Option<&Vec<f32>>]| -> usize {
            norms.iter().flatten().map(|norm| size_of_val(&norm[..])).sum()
        };
        let of_layer = |layer: &Layer| {
            let [q_norm, k_norm] = match &layer.qk_norms {
                Some([q, k]) => [Some(q), Some(k)],
                None => [None; 2],
            };
            let matrices = layer.linears().map(Linear::n_bytes);
            matrices.iter().sum::<usize>()
                + norms(&[
                    Some(&layer.attention_norm),
                    layer.post_attention_norm.as_ref(),
                    Some(&layer.mlp_norm),
                    layer.post_mlp_norm.as_ref(),
                    q_norm,
                    k_norm,
                ])
        };
        let layers: usize = self.layers.iter().map(of_layer).sum();
        layers + norms(&[Some(&self.norm)]) + self.head.n_bytes()
    }

    /// Bytes of memory that weights take, those of a mapped checkpoint aside.
    pub fn n_own_bytes(&self) -> usize {
        let linears = || self.layers.iter().flat_map(Layer::linears).chain([&self.head]);
        let mapped = |linear: &Linear| linear.weights.n_bytes() - linear.weights.n_own_bytes();
        let columns = |linear: &Linear| linear.columns.as_ref().map_or(0, ColumnMatrix::n_bytes);
        self.n_bytes() - linears().map(mapped).sum::<usize>()
            + linears().map(columns).sum::<usize>()
            + self.embedding.n_own_bytes()
    }

    /// The embeddings of tokens, which are in the vocabulary, `[tokens, hidden_size]`.
    pub(crate) fn embed_into(&self, tokens: impl Iterator<Item = u32>, out: &mut [f32]) {
        let (hidden, scale) = (self.config.hidden_size, self.config.embedding_scale);
        for (token, out) in tokens.zip(out.chunks_exact_mut(hidden)) {
            self.embedding.widen_from(token as usize * hidden, out);
            if scale != 1.0 {
                for x in out {
                    *x *= scale;
                }
            }
        }
    }
}

impl Layer {
    fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }
}

impl Linear {
    fn n_bytes(&self) -> usize {
        self.weights.n_bytes() + self.bias.as_deref().map_or(0, size_of_val)
    }
}

impl Config {
    /// The configuration in a folder's `config.json`, whether or not the weights there are quantized.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::InFile`] with those of [`from_json`](Self::from_json), but that of quantized weights.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let path = folder.as_ref().join("config.json");
        let json = Quantization::remove_from(read(&path)?);
        Self::from_json(&json).map_err(Error::in_file(&path))
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("config", &self.config)
            .field("n_bytes", &self.n_bytes())
            .finish_non_exhaustive()
    }
}

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";
