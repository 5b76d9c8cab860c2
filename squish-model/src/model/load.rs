//! The tensors of a source, each held against the shape that the configuration implies, as the layers of a model.

use squish_quant::{ColumnMatrix, PackedMatrix};

use crate::{
    Config, DenseTensor, Error, Packed, TensorSource, WeightFormat, format::encode, source::width,
};

use super::{EMBEDDING, HEAD, Layer, Linear, LoadOptions, Projection};

/// What a model is made of.
pub(super) struct Loader<'a> {
    pub(super) source: &'a dyn TensorSource,
    pub(super) config: &'a Config,
    pub(super) options: &'a LoadOptions,
}

impl Loader<'_> {
    pub(super) fn layer(&self, idx: usize) -> Result<Layer, Error> {
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

    pub(super) fn linear(&self, projection: Projection, layer: usize) -> Result<Linear, Error> {
        let (shape, module) = (projection.shape(self.config), projection.module(layer));
        let is_head = projection == Projection::Head;
        let format = if is_head { self.options.head } else { self.options.weights };
        let (weights, columns) = if let Some(weights) = self.stored(&module, shape, format)? {
            (weights, None)
        } else {
            let name = format!("{module}.weight");
            let is_mlp = matches!(projection, Projection::Gate | Projection::Up | Projection::Down);
            let by_input = is_mlp && self.options.mlp_by_input;
            self.pack(&name, &self.matrix(&name, shape)?, shape, format, by_input)?
        };
        let bias = if projection.has_bias(self.config) {
            Some(self.vector(&format!("{module}.bias"), shape[0])?)
        } else {
            None
        };
        Ok(Linear { weights, columns, bias })
    }

    /// The embedding as a head, unless a head of its own is stored as something that is not dense.
    pub(super) fn tied_head(&self, embedding: &DenseTensor) -> Result<Linear, Error> {
        let (shape, format) = (Projection::Head.shape(self.config), self.options.head);
        for tensor in [HEAD, EMBEDDING] {
            let module = tensor.trim_end_matches(".weight");
            if self.source.has(tensor)
                && let Some(weights) = self.stored(module, shape, format)?
            {
                return Ok(Linear { weights, columns: None, bias: None });
            }
        }
        let (weights, columns) = self.pack(EMBEDDING, embedding, shape, format, false)?;
        Ok(Linear { weights, columns, bias: None })
    }

    /// Weights that the source has in a packed form, if that is what is asked for.
    fn stored(
        &self,
        module: &str,
        shape: [usize; 2],
        format: WeightFormat,
    ) -> Result<Option<Packed>, Error> {
        if format != WeightFormat::Stored {
            return Ok(None);
        }
        let packed = self.source.packed(module, shape, self.options.activation)?;
        match &packed {
            Some(packed) if packed.shape() != shape => {
                let (what, actual) = ("weights", packed.shape());
                let error = squish_quant::Error::Shape { what, expected: shape, actual };
                Err(Error::Pack { tensor: module.to_owned(), error })
            }
            _ => Ok(packed),
        }
    }

    /// The weights packed and, if asked for and there are such, by input.
    fn pack(
        &self,
        name: &str,
        tensor: &DenseTensor,
        shape: [usize; 2],
        format: WeightFormat,
        by_input: bool,
    ) -> Result<(Packed, Option<ColumnMatrix>), Error> {
        let packed = encode(tensor, shape, format, |weights| {
            let activation = self.options.activation.unwrap_or(weights.default_activation());
            let columns = match by_input.then(|| ColumnMatrix::pack(weights, activation)) {
                None | Some(Err(squish_quant::Error::Unsupported { .. })) => None,
                Some(columns) => Some(columns?),
            };
            Ok((PackedMatrix::pack(weights, activation)?.into(), columns))
        });
        packed.map_err(Error::pack(name))
    }

    pub(super) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<DenseTensor, Error> {
        self.tensor(name, &shape)
    }

    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
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
