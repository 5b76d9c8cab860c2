//! Checkpoints whose weights are quantized: read as they are, without another rounding.
//!
//! What a linear layer `X` has instead of a dense `X.weight` of `[rows, cols]`, by the `quantization_config` of `config.json`:
//!
//! | `quant_method` | format | tensors |
//! |---|---|---|
//! | `fp8` (DeepSeek, Qwen) | | `weight` `F8_E4M3`, `weight_scale_inv` `[⌈rows / a⌉, ⌈cols / b⌉]`, where `[a, b]` is `weight_block_size`; `[]` or `[1]` without |
//! | `compressed-tensors` | `float-quantized` | `weight` `F8_E4M3`, `weight_scale` |
//! | | `int-quantized` | `weight` I8, `weight_scale`, `weight_zero_point` I8 |
//! | | `naive-quantized` | either of the two |
//! | | `pack-quantized` of 4 or 8 bits | `weight_packed` I32, `weight_scale`, `weight_zero_point` I32, `weight_shape` I64 |
//! | | `mxfp4-pack-quantized` | `weight_packed` U8 `[rows, cols / 2]`, `weight_scale` U8 or `F8_E8M0` `[rows, cols / 32]` |
//! | `mxfp4` (gpt-oss, without experts) | | `weight_blocks` U8 `[rows, cols / 32, 16]`, `weight_scales` U8 `[rows, cols / 32]` |
//! | `squish` | version 1 | `weight_panels` U8 `[n]`: see [`quantize`](crate::quantize()) |
//!
//! Scales are F32, BF16 or F16; those of `fp8` may be `F8_E8M0`. [`squish_quant::compressed_tensors`] has what is in them. Their shape
//! follows from the strategy:
//!
//! | `strategy` | shape of the scales |
//! |---|---|
//! | `tensor` | `[1]`, or `[]` |
//! | `channel` | `[rows, 1]` |
//! | `group` of `group_size` | `[rows, ⌈cols / group_size⌉]` |
//! | `block` of `block_structure`, FP8 | `[⌈rows / a⌉, ⌈cols / b⌉]` |
//!
//! Which layers these are, compressed-tensors says by `targets` and `ignore` ([`Quantization`] has the rules). With the other methods the
//! tensors say it: a layer whose `weight` is a float is dense.
//!
//! Ignored, because it says what to do with numbers other than weights, which [`LoadOptions::activation`](crate::LoadOptions) and
//! [`KvOptions`](crate::KvOptions) do here: `input_activations`, `activation_scheme`, `kv_cache_scheme`, and the scales of these.
//! Refused, because it changes the result: activation order (`actorder` of `group`, `weight_g_idx`), sparse formats, `transform_config`,
//! `output_activations`, `format: dense` for weights that are to be rounded on the way.
//!
//! Source: compressed-tensors 0.20 and transformers 5.23 (`integrations/finegrained_fp8.py`, `integrations/mxfp4.py`).

use squish_checkpoint::Checkpoint;
use squish_quant::{Activation, Dense, PackedMatrix, Verify, Weights};

use crate::{DenseTensor, Error, Packed, TensorSource};

mod compressed_tensors;
mod config;
mod read;
mod targets;

pub use config::Quantization;
pub(crate) use config::VERSION;
pub(crate) use read::PANELS;
use read::{Reader, Scheme};

/// A checkpoint whose weights are quantized in one of the ways that [`Quantization`] has.
///
/// As a source of dense tensors it has the values of quantized weights, in `f32`.
///
/// # Examples
///
/// ```
/// use squish_model::{
///     Checkpoint, Config, LoadOptions, Model, Quantization, QuantizeOptions, QuantizedCheckpoint, WeightFormat, quantize,
/// };
///
/// # let folder = tempfile::tempdir()?;
/// # let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");
/// # let int4 = folder.path().join("int4");
/// quantize(base, &int4, &QuantizeOptions::of(WeightFormat::Int4))?;
///
/// // What `Model::open(&int4, &LoadOptions::default())` does:
/// let (config, quantization) = (Config::open(&int4)?, Quantization::open(&int4)?.expect("it is quantized"));
/// assert_eq!(quantization.method(), "compressed-tensors");
/// let source = QuantizedCheckpoint::new(Checkpoint::open(&int4)?, quantization, Default::default());
/// let model = Model::load(&source, &config, &LoadOptions::default())?;
/// # assert_eq!(model.n_bytes(), Model::open(&int4, &LoadOptions::default())?.n_bytes());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct QuantizedCheckpoint {
    checkpoint: Checkpoint,
    quantization: Quantization,
    verify: Verify,
}

impl QuantizedCheckpoint {
    /// The tensors of `checkpoint`, read as `quantization` says. `verify` is about panels that are used where they lie.
    pub fn new(checkpoint: Checkpoint, quantization: Quantization, verify: Verify) -> Self {
        Self { checkpoint, quantization, verify }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// How the weights of `module` are stored.
    fn scheme(&self, module: &str) -> Scheme {
        self.quantization.scheme(module, &self.checkpoint)
    }

    fn reader<'a>(&'a self, module: &'a str, shape: [usize; 2]) -> Reader<'a> {
        Reader { checkpoint: &self.checkpoint, module, shape }
    }
}

impl TensorSource for QuantizedCheckpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let dense = || TensorSource::tensor(&self.checkpoint, name, shape);
        let (Some(module), &[rows, cols]) = (name.strip_suffix(".weight"), shape) else {
            return dense();
        };
        match self.scheme(module) {
            Scheme::Dense => dense(),
            scheme => {
                let reader = self.reader(module, [rows, cols]);
                let values = reader.read(scheme, |weights| Ok(decode(weights)))?;
                let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
                Ok(DenseTensor::new(Dense::F32, bytes))
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        let is_quantized = |module| {
            Scheme::CODES.iter().any(|codes| self.has_tensor(&format!("{module}.{codes}")))
        };
        self.has_tensor(name) || name.strip_suffix(".weight").is_some_and(is_quantized)
    }

    fn packed(
        &self,
        module: &str,
        shape: [usize; 2],
        activation: Option<Activation>,
    ) -> Result<Option<Packed>, Error> {
        let reader = self.reader(module, shape);
        match self.scheme(module) {
            Scheme::Dense => Ok(None),
            Scheme::Panels => reader.panels(activation, self.verify).map(Some),
            scheme => {
                let pack = |weights: Weights<'_>| {
                    let activation = activation.unwrap_or(weights.default_activation());
                    PackedMatrix::pack(weights, activation)
                };
                Ok(Some(reader.read(scheme, pack)?.into()))
            }
        }
    }
}

impl QuantizedCheckpoint {
    fn has_tensor(&self, name: &str) -> bool {
        self.checkpoint.get(name).is_some()
    }
}

/// The values of weights, row-major.
pub(crate) fn decode(weights: Weights<'_>) -> Vec<f32> {
    let values = match weights {
        Weights::Fp8(tensor) => tensor.decode(),
        Weights::Mx(tensor) => tensor.decode(),
        Weights::NvFp4(tensor) => tensor.decode(),
        Weights::Smx(tensor) => tensor.decode(),
        Weights::Int(tensor) => tensor.decode(),
        Weights::Dense { dense, bytes, .. } => {
            return DenseTensor::new(dense, bytes.to_vec()).to_f32();
        }
    };
    values.into_raw_vec_and_offset().0
}
