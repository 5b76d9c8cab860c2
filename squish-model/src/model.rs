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
use squish_quant::{Activation, PackedMatrix, Product, ndarray::ArrayViewMut2};

use crate::{
    Config, DenseTensor, Error, TensorSource, WeightFormat, error::read, format::pack,
    source::width,
};

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

    fn has_bias(self, config: &Config) -> bool {
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
}

impl LoadOptions {
    /// Layers and head in one format, inputs rounded as it has them by default.
    pub fn of(format: WeightFormat) -> Self {
        Self { weights: format, head: format, activation: None }
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
    pub(crate) weights: PackedMatrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// `out = W x + b`.
    pub(crate) fn product<'a>(&'a self, out: ArrayViewMut2<'a, f32>) -> Product<'a> {
        let mut product = Product::new(&self.weights, out);
        product.bias = self.bias.as_deref();
        product
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
    /// [`Checkpoint::open`]).
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::InFile`] with those of [`Config::from_json`]; those of [`Checkpoint::open`] and [`load`](Self::load).
    pub fn open(folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, Error> {
        let config = Config::open(&folder)?;
        Self::load(&Checkpoint::open(folder)?, &config, options)
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
        let layers: Result<Vec<_>, _> = (0..config.n_layers()).map(|i| loader.layer(i)).collect();
        let norm = loader.vector("model.norm.weight", config.hidden_size)?;
        let head = if config.tie_word_embeddings {
            let shape = Projection::Head.shape(config);
            let weights = loader.pack(EMBEDDING, &embedding, shape, options.head)?;
            Linear { weights, bias: None }
        } else {
            loader.linear(Projection::Head, 0)?
        };
        Ok(Self { config: config.clone(), embedding, layers: layers?, norm, head })
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
            let matrices = layer.linears().map(|linear| linear.n_bytes());
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
        self.n_bytes() + self.embedding.n_own_bytes()
    }

    /// The embeddings of tokens, which are in the vocabulary, `[tokens, hidden_size]`.
    pub(crate) fn embed_into(&self, tokens: impl Iterator<Item = u32>, out: &mut [f32]) {
        let (hidden, scale) = (self.config.hidden_size, self.config.embedding_scale);
        for (token, out) in tokens.zip(out.chunks_exact_mut(hidden)) {
            self.embedding.widen_from(token as usize * hidden, out);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
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
    /// The configuration in a folder's `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::InFile`] with those of [`from_json`](Self::from_json).
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let path = folder.as_ref().join("config.json");
        Self::from_json(&read(&path)?).map_err(Error::in_file(&path))
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

const EMBEDDING: &str = "model.embed_tokens.weight";

struct Loader<'a> {
    source: &'a dyn TensorSource,
    config: &'a Config,
    options: &'a LoadOptions,
}

impl Loader<'_> {
    fn layer(&self, idx: usize) -> Result<Layer, Error> {
        let config = self.config;
        let norm = |name: &str| {
            self.vector(&format!("model.layers.{idx}.{name}.weight"), config.hidden_size)
        };
        let head_norm = |name: &str| {
            self.vector(&format!("model.layers.{idx}.self_attn.{name}.weight"), config.head_dim)
        };
        // With norms on both sides, the name of the middle one is that of the first of two.
        let (post_attention_norm, mlp_norm, post_mlp_norm) = if config.post_norms {
            (
                Some(norm("post_attention_layernorm")?),
                norm("pre_feedforward_layernorm")?,
                Some(norm("post_feedforward_layernorm")?),
            )
        } else {
            (None, norm("post_attention_layernorm")?, None)
        };
        let qk_norms =
            if config.qk_norm { Some([head_norm("q_norm")?, head_norm("k_norm")?]) } else { None };
        Ok(Layer {
            attention_norm: norm("input_layernorm")?,
            q: self.linear(Projection::Q, idx)?,
            k: self.linear(Projection::K, idx)?,
            v: self.linear(Projection::V, idx)?,
            qk_norms,
            o: self.linear(Projection::O, idx)?,
            post_attention_norm,
            mlp_norm,
            gate: self.linear(Projection::Gate, idx)?,
            up: self.linear(Projection::Up, idx)?,
            down: self.linear(Projection::Down, idx)?,
            post_mlp_norm,
        })
    }

    fn linear(&self, projection: Projection, layer: usize) -> Result<Linear, Error> {
        let (shape, module) = (projection.shape(self.config), projection.module(layer));
        let name = format!("{module}.weight");
        let format =
            if projection == Projection::Head { self.options.head } else { self.options.weights };
        let weights = self.pack(&name, &self.matrix(&name, shape)?, shape, format)?;
        let bias = if projection.has_bias(self.config) {
            Some(self.vector(&format!("{module}.bias"), shape[0])?)
        } else {
            None
        };
        Ok(Linear { weights, bias })
    }

    fn pack(
        &self,
        name: &str,
        tensor: &DenseTensor,
        shape: [usize; 2],
        format: WeightFormat,
    ) -> Result<PackedMatrix, Error> {
        pack(tensor, shape, format, self.options.activation)
            .map_err(|error| Error::Pack { tensor: name.to_owned(), error })
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<DenseTensor, Error> {
        self.tensor(name, &shape)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        Ok(self.tensor(name, &[len])?.to_f32())
    }

    /// A tensor that has as many numbers as its shape says, whatever the source.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let tensor = self.source.tensor(name, shape)?;
        let expected = shape.iter().product();
        let actual = tensor.bytes().len() / width(tensor.dense());
        if actual == expected {
            return Ok(tensor);
        }
        let (tensor, shape) = (name.to_owned(), shape.to_vec());
        Err(Error::Length { tensor, shape, expected, actual })
    }
}
