//! Scales of input channels that go into weights and into what makes the inputs: [`Scaled`].
//!
//! ```text
//! W x = (W diag(s)) (diag(s)⁻¹ x)
//! ```
//!
//! | matrices | their input is made by | which takes `diag(s)⁻¹` |
//! |---|---|---|
//! | q, k, v | the norm before attention | its weight, of Gemma `1 + weight` |
//! | o, if there are as many heads of keys as of queries | the values, weighed | the rows of v, and its bias |
//! | gate, up | the norm before the MLP | its weight |
//! | down | what is gated | the rows of up, and its bias |
//!
//! What the model computes stays as it is, up to roundings of `f32`, although norms keep the type that they are stored in: of the norm's
//! weight `n` first `n' = round(n / s)` is made, and columns are then multiplied by `n / n'` instead of `s`. Matrices and biases that change
//! are in `f32`.
//!
//! | channel | scale |
//! |---|---|
//! | `n` or `n'` zero, or `n / n'` no normal number | 1, and `n` stays |
//!
//! Each input has scales of its own, made with the weights as they are in the checkpoint, by all matrices that multiply it together. Sources:
//! [`squish_quant::smooth`], [`squish_quant::awq`].

use std::collections::HashMap;

use squish_attn::RmsVariant;
use squish_quant::{
    AwqSearch, Dense, awq_scales,
    ndarray::{Array2, ArrayView2, ArrayViewMut2},
    smooth::column_abs_max,
    smooth_scales,
};

use super::{Calibration, Inputs};
use crate::{
    Config, DenseTensor, Error, Projection, Site, TensorSource, WeightFormat,
    format::{narrowed, pass_through},
};

/// How the scales of input channels are found.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum WeightMethod {
    /// `SmoothQuant`'s, which share the outliers of inputs and weights.
    Smooth {
        /// How much of them the weights get: 0 to 1, 0.5 in the paper.
        alpha: f32,
    },
    /// Those of AWQ, with which the products of weights in a format are nearest to what they were, on the sample.
    Awq(AwqSearch),
}

/// The scales of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupScales {
    /// Whose input; of several matrices the first.
    pub site: Site,
    /// What columns of the weights are multiplied by, `[inputs]`.
    pub scales: Vec<f32>,
    /// Of AWQ the mean squared error of the outputs on the sample, without scales and with those that were found: the second is never
    /// larger.
    pub errors: Option<[f64; 2]>,
}

/// A model's tensors with scales of input channels in the weights; see the [module](self). Holds the scales, and makes tensors when they
/// are asked for.
pub struct Scaled<'a> {
    source: &'a dyn TensorSource,
    groups: Vec<GroupScales>,
    /// Of modules whose columns are multiplied, the group.
    columns: HashMap<String, usize>,
    /// Of modules whose rows, and biases, are divided.
    rows: HashMap<String, usize>,
    /// Weights of norms that changed, by name.
    norms: HashMap<String, DenseTensor>,
}

/// What makes an input.
#[derive(Clone, Copy, Debug)]
enum Maker {
    Norm(&'static str),
    Rows(Projection),
}

impl<'a> Scaled<'a> {
    /// The tensors of `source`, a model with `config`, scaled for weights in `format`.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] of another model; those of the source; [`Error::Length`]; [`Error::Pack`] with what the method refuses: an `alpha` or a number of
    /// ratios that is none, and with AWQ weights and samples that are not finite.
    pub fn new(
        source: &'a dyn TensorSource,
        config: &Config,
        calibration: &Calibration,
        method: WeightMethod,
        format: WeightFormat,
    ) -> Result<Self, Error> {
        let (columns, rows, norms) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut scaled = Self { source, groups: Vec::new(), columns, rows, norms };
        for layer in 0..config.n_layers() {
            for (matrices, maker) in groups(config) {
                let site = Site { layer, projection: matrices[0] };
                let inputs = calibration.inputs(site, config)?;
                let weights = scaled.stacked(config, layer, matrices)?;
                let group = group(site, inputs, weights.view(), method, format)
                    .map_err(Error::pack(&site.projection.module(layer)))?;
                scaled.fold(config, group, matrices, maker)?;
            }
        }
        Ok(scaled)
    }

    /// The scales, in the order of the forward pass.
    pub fn groups(&self) -> &[GroupScales] {
        &self.groups
    }

    /// Whether a tensor is another one than the source's.
    pub(crate) fn changes(&self, name: &str) -> bool {
        let [columns, rows] = self.scales_of(name);
        columns.is_some() || rows.is_some() || self.norms.contains_key(name)
    }

    /// What the columns of a tensor are multiplied by, and what its rows are divided by.
    fn scales_of(&self, name: &str) -> [Option<&[f32]>; 2] {
        let of = |modules: &HashMap<String, usize>, module: Option<&str>| {
            modules.get(module?).map(|&idx| &self.groups[idx].scales[..])
        };
        let weight = name.strip_suffix(".weight");
        [of(&self.columns, weight), of(&self.rows, weight.or(name.strip_suffix(".bias")))]
    }

    /// The rows of matrices with one input, as they are in the source.
    fn stacked(
        &self,
        config: &Config,
        layer: usize,
        matrices: &[Projection],
    ) -> Result<Array2<f32>, Error> {
        let [_, width] = matrices[0].shape(config);
        let mut rows = Vec::new();
        for matrix in matrices {
            let (tensor, shape) =
                (format!("{}.weight", matrix.module(layer)), matrix.shape(config));
            let values = self.source.tensor(&tensor, &shape)?.to_f32();
            let (expected, actual) = (shape.iter().product(), values.len());
            if actual != expected {
                return Err(Error::Length { tensor, shape: shape.to_vec(), expected, actual });
            }
            rows.extend(values);
        }
        let shape = [rows.len() / width, width];
        Ok(Array2::from_shape_vec(shape, rows).expect("matrices of one width"))
    }

    fn fold(
        &mut self,
        config: &Config,
        mut group: GroupScales,
        matrices: &[Projection],
        maker: Maker,
    ) -> Result<(), Error> {
        let (layer, idx) = (group.site.layer, self.groups.len());
        if let Maker::Norm(name) = maker {
            let name = format!("model.layers.{layer}.{name}.weight");
            let norm = self.source.tensor(&name, &[config.hidden_size])?;
            let norm = divide_norm(&norm, config.norm, &mut group.scales);
            self.norms.insert(name, norm);
        }
        if group.scales.iter().any(|&scale| scale != 1.0) {
            let modules = matrices.iter().map(|matrix| (matrix.module(layer), idx));
            self.columns.extend(modules);
            if let Maker::Rows(projection) = maker {
                self.rows.insert(projection.module(layer), idx);
            }
        }
        self.groups.push(group);
        Ok(())
    }
}

impl TensorSource for Scaled<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let tensor = self.source.tensor(name, shape)?;
        if let Some(norm) = self.norms.get(name) {
            return Ok(norm.clone());
        }
        let [columns, rows] = self.scales_of(name);
        if columns.is_none() && rows.is_none() {
            return Ok(tensor);
        }
        let mut values = tensor.to_f32();
        let width = shape[1..].iter().product::<usize>().max(1);
        if let Some(scales) = columns {
            for row in values.chunks_exact_mut(width) {
                row.iter_mut().zip(scales).for_each(|(x, scale)| *x *= scale);
            }
        }
        if let Some(scales) = rows {
            for (row, scale) in values.chunks_exact_mut(width).zip(scales) {
                for x in row {
                    *x /= scale;
                }
            }
        }
        Ok(DenseTensor::new(Dense::F32, narrowed(&values, Dense::F32)))
    }

    fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    fn packed(
        &self,
        module: &str,
        shape: [usize; 2],
        activation: Option<crate::Activation>,
    ) -> Result<Option<crate::Packed>, Error> {
        if self.changes(&format!("{module}.weight")) {
            return Ok(None);
        }
        self.source.packed(module, shape, activation)
    }
}

impl std::fmt::Debug for Scaled<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scaled").field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// Matrices of a layer that multiply one input, with what makes it.
fn groups(config: &Config) -> impl Iterator<Item = (&'static [Projection], Maker)> {
    use Projection::{Down, Gate, K, O, Q, Up, V};
    let mlp_norm =
        if config.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
    let all: [(&[Projection], Maker); 4] = [
        (&[Q, K, V], Maker::Norm("input_layernorm")),
        (&[O], Maker::Rows(V)),
        (&[Gate, Up], Maker::Norm(mlp_norm)),
        (&[Down], Maker::Rows(Up)),
    ];
    // A row of v that several heads share has one scale for all of them.
    let is_shared = config.n_heads != config.n_kv_heads;
    all.into_iter().filter(move |(matrices, _)| !(is_shared && matrices[0] == O))
}

/// The scales of matrices whose rows are `weights`, before they are folded.
fn group(
    site: Site,
    inputs: &Inputs,
    weights: ArrayView2<'_, f32>,
    method: WeightMethod,
    format: WeightFormat,
) -> Result<GroupScales, squish_quant::Error> {
    let (scales, errors) = match method {
        WeightMethod::Smooth { alpha } => {
            (smooth_scales(&inputs.abs_max(), &column_abs_max(weights)?, alpha)?, None)
        }
        WeightMethod::Awq(search) => {
            let quantize = |weights: ArrayViewMut2<'_, f32>| pass_through(weights, format);
            let best = awq_scales(weights, inputs.sample(), quantize, search)?;
            (best.scales, Some([best.unscaled_error, best.error]))
        }
    };
    Ok(GroupScales { site, scales, errors })
}

/// A norm with its weights divided by `scales`, in its own type; `scales` become what exactly undoes that.
fn divide_norm(norm: &DenseTensor, variant: RmsVariant, scales: &mut [f32]) -> DenseTensor {
    let offset = if variant == RmsVariant::Gemma { 1.0 } else { 0.0 };
    let before = norm.to_f32();
    let divide = |(weight, scale): (&f32, &f32)| (offset + weight) / scale - offset;
    let divided: Vec<f32> = before.iter().zip(&*scales).map(divide).collect();
    let stored = |values: &[f32]| DenseTensor::new(norm.dense(), narrowed(values, norm.dense()));
    let mut after = stored(&divided).to_f32();
    for ((scale, before), after) in scales.iter_mut().zip(&before).zip(&mut after) {
        *scale = (offset + before) / (offset + *after);
        if !scale.is_normal() {
            (*scale, *after) = (1.0, *before);
        }
    }
    stored(&after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divided_norm_and_its_scales_give_the_norm_again() {
        let weights = [1.0_f32, 0.3, -2.0, 0.0, 1e-30, 3e38, -1.0];
        for dense in [Dense::Bf16, Dense::F16, Dense::F32] {
            for variant in [RmsVariant::Llama, RmsVariant::Gemma] {
                let weights = if dense == Dense::F16 { &weights[..4] } else { &weights };
                let norm = DenseTensor::new(dense, narrowed(weights, dense));
                let mut scales =
                    [3.7, 0.01, 123.4, 2.0, 1e20, 1e-20, 5.0][..weights.len()].to_vec();
                let divided = divide_norm(&norm, variant, &mut scales);
                assert_eq!(divided.dense(), dense);
                let offset = if variant == RmsVariant::Gemma { 1.0 } else { 0.0 };
                let both = norm.to_f32().into_iter().zip(divided.to_f32());
                for ((before, after), scale) in both.zip(&scales) {
                    let (before, got) = (before + offset, (after + offset) * scale);
                    assert!(
                        (got - before).abs() <= 1e-7 * before.abs(),
                        "{dense:?}: {got}, {before}"
                    );
                    assert!(scale.is_normal());
                }
                assert_ne!(scales[..3], [1.0; 3]);
                assert!(scales[3] == 1.0 || variant == RmsVariant::Gemma);
            }
        }
    }
}
