//! The tensors of a model in `f32`, each under its name in the checkpoint.
//!
//! | tensor | shape |
//! |---|---|
//! | `model.embed_tokens` | `[vocab_size, hidden_size]` |
//! | `model.layers.I.input_layernorm`, `post_attention_layernorm` | `[hidden_size]` |
//! | `model.layers.I.self_attn.q_proj` | `[n_heads * head_dim, hidden_size]` |
//! | `model.layers.I.self_attn.k_proj`, `v_proj` | `[n_kv_heads * head_dim, hidden_size]` |
//! | `model.layers.I.self_attn.o_proj` | `[hidden_size, n_heads * head_dim]` |
//! | `model.layers.I.mlp.gate_proj`, `up_proj` | `[intermediate_size, hidden_size]` |
//! | `model.layers.I.mlp.down_proj` | `[hidden_size, intermediate_size]` |
//! | `model.norm` | `[hidden_size]` |
//! | `lm_head`, unless tied | `[vocab_size, hidden_size]` |
//!
//! Each name ends in `.weight`. Matrices are `[n_out, n_in]` in row-major order, so that an output is the dot product of
//! the input and a row.

use std::collections::BTreeSet;

use half::{bf16, f16};
use squish_checkpoint::{Checkpoint, Dtype, TensorView};
use squish_kernels::cast::widen_into;

use crate::{Config, Error};

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Rows of it are the inputs of the first layer; of a tied model also the head.
    Embedding,
    /// Weight of an RMS norm.
    Norm,
    /// A matrix of a layer: what weight formats are for.
    Linear,
    /// The output head of a model that is not tied.
    Head,
}

/// A named tensor, widened to `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    name: String,
    kind: Kind,
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Tensor {
    /// Its name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its dimensions, `[n_out, n_in]` of a matrix and `[hidden_size]` of a norm.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements in row-major order.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Its elements, to be overwritten: by what a format keeps of them, for example.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Row `row_idx` of a matrix, `[n_in]`.
    pub(crate) fn row(&self, row_idx: usize) -> &[f32] {
        let n_in = self.shape[1];
        &self.data[row_idx * n_in..][..n_in]
    }
}

/// The tensors of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layer {
    pub(crate) input_layernorm: Tensor,
    pub(crate) q_proj: Tensor,
    pub(crate) k_proj: Tensor,
    pub(crate) v_proj: Tensor,
    pub(crate) o_proj: Tensor,
    pub(crate) post_attention_layernorm: Tensor,
    pub(crate) gate_proj: Tensor,
    pub(crate) up_proj: Tensor,
    pub(crate) down_proj: Tensor,
}

/// All tensors of a model, of the shapes that its configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    pub(crate) config: Config,
    pub(crate) embed_tokens: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    /// `None` where the embedding is the head.
    pub(crate) lm_head: Option<Tensor>,
    surplus: Vec<String>,
}

impl Weights {
    /// The weights of `checkpoint`, widened to `f32`, which is exact.
    ///
    /// Tensors that the configuration does not call for are not read; [`surplus`](Self::surplus) lists them.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] of a tensor that is missing, has another shape or cannot be read; [`Error::Dtype`] of one
    /// that is not `F32`, `F16` or `BF16`; those of [`Config::from_json`] if `config` was changed since.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self, Error> {
        let mut surplus: BTreeSet<&str> = checkpoint.names().collect();
        let mut weights = Self::from_fn(config, |name, shape| {
            surplus.remove(name);
            let tensor = checkpoint.get(name).map(|info| info.expect_shape(shape)).transpose();
            tensor
                .and_then(|_| checkpoint.tensor(name))
                .map_err(Error::from)
                .and_then(|t| widen(&t))
        })?;
        weights.surplus = surplus.into_iter().map(ToOwned::to_owned).collect();
        Ok(weights)
    }

    /// The weights that `element_source` returns for each name and shape, in the order of the forward pass.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if it returns another number of elements than the shape has; its own errors; those of
    /// [`Config::from_json`] if `config` was changed since.
    pub fn from_fn(
        config: &Config,
        mut element_source: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, Error>,
    ) -> Result<Self, Error> {
        config.check()?;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_dim, kv_dim, vocab) = (config.q_dim(), config.kv_dim(), config.vocab_size);
        let mut tensor = |kind, name: String, shape: &[usize]| {
            let data = element_source(&name, shape)?;
            let expected = shape.iter().product();
            let (shape, actual) = (shape.to_vec(), data.len());
            if actual != expected {
                return Err(Error::Length { tensor: name, shape, expected, actual });
            }
            Ok(Tensor { name, kind, shape, data })
        };

        let embed_tokens =
            tensor(Kind::Embedding, "model.embed_tokens.weight".to_owned(), &[vocab, hidden])?;
        let mut layers = Vec::new();
        for layer_idx in 0..config.n_layers {
            let name = |part: &str| format!("model.layers.{layer_idx}.{part}.weight");
            layers.push(Layer {
                input_layernorm: tensor(Kind::Norm, name("input_layernorm"), &[hidden])?,
                q_proj: tensor(Kind::Linear, name("self_attn.q_proj"), &[q_dim, hidden])?,
                k_proj: tensor(Kind::Linear, name("self_attn.k_proj"), &[kv_dim, hidden])?,
                v_proj: tensor(Kind::Linear, name("self_attn.v_proj"), &[kv_dim, hidden])?,
                o_proj: tensor(Kind::Linear, name("self_attn.o_proj"), &[hidden, q_dim])?,
                post_attention_layernorm: tensor(
                    Kind::Norm,
                    name("post_attention_layernorm"),
                    &[hidden],
                )?,
                gate_proj: tensor(Kind::Linear, name("mlp.gate_proj"), &[inner, hidden])?,
                up_proj: tensor(Kind::Linear, name("mlp.up_proj"), &[inner, hidden])?,
                down_proj: tensor(Kind::Linear, name("mlp.down_proj"), &[hidden, inner])?,
            });
        }
        let norm = tensor(Kind::Norm, "model.norm.weight".to_owned(), &[hidden])?;
        let lm_head = (!config.tie_word_embeddings)
            .then(|| tensor(Kind::Head, "lm_head.weight".to_owned(), &[vocab, hidden]))
            .transpose()?;
        Ok(Self { config: *config, embed_tokens, layers, norm, lm_head, surplus: Vec::new() })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Names of tensors of the checkpoint that the configuration does not call for, sorted: rotary tables of old
    /// checkpoints, the head of a tied model, biases.
    pub fn surplus(&self) -> &[String] {
        &self.surplus
    }

    /// All tensors, in the order of the forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(Layer::tensors);
        [&self.embed_tokens].into_iter().chain(layers).chain([&self.norm]).chain(&self.lm_head)
    }

    /// All tensors, in the order of the forward pass, with elements that can be overwritten. [`Tensor::kind`] and
    /// [`Tensor::name`] say which is which.
    ///
    /// ```
    /// # fn quantized(mut weights: squish_model::Weights) -> squish_model::Weights {
    /// use squish_model::Kind;
    ///
    /// // A coarse format: multiples of 1/64.
    /// for tensor in weights.tensors_mut().filter(|tensor| tensor.kind() == Kind::Linear) {
    ///     for x in tensor.data_mut() {
    ///         *x = (*x * 64.0).round() / 64.0;
    ///     }
    /// }
    /// # weights
    /// # }
    /// ```
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let layers = self.layers.iter_mut().flat_map(Layer::tensors_mut);
        [&mut self.embed_tokens]
            .into_iter()
            .chain(layers)
            .chain([&mut self.norm])
            .chain(&mut self.lm_head)
    }

    /// The matrix whose rows give the logits.
    pub(crate) fn head(&self) -> &Tensor {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

impl Layer {
    fn tensors(&self) -> [&Tensor; 9] {
        [
            &self.input_layernorm,
            &self.q_proj,
            &self.k_proj,
            &self.v_proj,
            &self.o_proj,
            &self.post_attention_layernorm,
            &self.gate_proj,
            &self.up_proj,
            &self.down_proj,
        ]
    }

    fn tensors_mut(&mut self) -> [&mut Tensor; 9] {
        [
            &mut self.input_layernorm,
            &mut self.q_proj,
            &mut self.k_proj,
            &mut self.v_proj,
            &mut self.o_proj,
            &mut self.post_attention_layernorm,
            &mut self.gate_proj,
            &mut self.up_proj,
            &mut self.down_proj,
        ]
    }
}

/// The elements of a tensor as `f32`.
fn widen(tensor: &TensorView<'_>) -> Result<Vec<f32>, Error> {
    let mut data = vec![0.0; tensor.info().n_elements()];
    match tensor.dtype() {
        Dtype::F32 => data.copy_from_slice(&tensor.to_cow()?),
        Dtype::F16 => widen_into::<f16>(&tensor.to_cow()?, &mut data),
        Dtype::BF16 => widen_into::<bf16>(&tensor.to_cow()?, &mut data),
        actual => return Err(Error::Dtype { tensor: tensor.name().to_owned(), actual }),
    }
    Ok(data)
}
