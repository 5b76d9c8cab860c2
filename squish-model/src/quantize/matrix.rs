//! One matrix on its way from floats to the tensors of another form.

use std::io;

use serde_json::{Value, json};
use squish_checkpoint::{Dtype, TensorSpec};
use squish_quant::{
    Activation, Dense, Error as QuantError, Fp8Quantizer, Fp8Tensor, Granularity, IntFormat,
    IntQuantizer, PackedMatrix, ScaleType,
    compressed_tensors::{PackedWeight, encode},
    ndarray::ArrayView2,
};

use super::{QuantizeOptions, SavedLayout};
use crate::{
    DenseTensor, Error, TensorSource, WeightFormat,
    format::{MX_QUANTIZER, int_group, narrowed, pack, packed_sizes},
    quantized::PANELS,
};

/// A matrix that is not copied as it is.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    /// Name of the layer.
    pub(super) module: String,
    /// Name of the tensor that it is read from.
    pub(super) tensor: String,
    pub(super) shape: [usize; 2],
    form: Form,
    scales: ScaleType,
    /// That of its inputs, if they have one.
    input_scale: Option<f32>,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Dense(Dense),
    Fp8,
    MxFp4,
    /// INT8 in bytes, with a scale for each output: what is multiplied with INT8 inputs.
    Int8,
    Int(IntFormat, Granularity),
    Panels {
        format: WeightFormat,
        activation: Option<Activation>,
        n_bytes: usize,
    },
}

/// One of the tensors of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Codes,
    Scales,
    Shape,
    InputScale,
}

/// What takes the bytes of a tensor, piece by piece.
pub(super) type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), Error> + 'a;

impl Matrix {
    /// The matrix of `module` in `format`, which is read from `tensor`, with a scale of its inputs if they have one; none if it stays as it
    /// is.
    pub(super) fn new(
        source: &dyn TensorSource,
        module: String,
        tensor: String,
        shape: [usize; 2],
        format: WeightFormat,
        options: QuantizeOptions,
        input_scale: Option<f32>,
    ) -> Result<Option<Self>, Error> {
        let dense = source.tensor(&tensor, &shape)?.dense();
        let int = |int: IntFormat| {
            let group = int_group(int);
            let divides = shape[1].is_multiple_of(group);
            Form::Int(int, if divides { Granularity::Block1d(group) } else { Granularity::Channel })
        };
        let form = match (options.layout, format) {
            (SavedLayout::Squish, _) => {
                let activation = options.activation;
                let sizes = packed_sizes(dense, shape, format, activation);
                let [_, n_bytes] = sizes.map_err(Error::pack(&tensor))?;
                Form::Panels { format, activation, n_bytes }
            }
            (_, WeightFormat::Stored) => return Ok(None),
            (_, WeightFormat::F32) => Form::Dense(Dense::F32),
            (_, WeightFormat::Bf16) => Form::Dense(Dense::Bf16),
            (_, WeightFormat::F16) => Form::Dense(Dense::F16),
            (_, WeightFormat::Fp8E4M3) => Form::Fp8,
            (_, WeightFormat::MxFp4) => Form::MxFp4,
            (_, WeightFormat::Int8) if input_scale.is_some() => Form::Int8,
            (_, WeightFormat::Int8) => int(IntFormat::Int8),
            (_, WeightFormat::Int4) => int(IntFormat::Int4),
            _ => {
                let (field, actual) = ("format", format.name().to_owned());
                let supported =
                    "f32, bf16, f16, fp8-e4m3, mxfp4, int8 and int4, or the layout `squish`";
                return Err(Error::Unsupported { field, actual, supported });
            }
        };
        if matches!(form, Form::Dense(to) if to == dense) {
            return Ok(None);
        }
        Ok(Some(Self { module, tensor, shape, form, scales: options.scales, input_scale }))
    }

    /// Its tensors.
    pub(super) fn specs(&self) -> Vec<(Part, TensorSpec)> {
        let [rows, cols] = self.shape;
        let spec = |part: &str, dtype, shape: &[usize]| {
            TensorSpec::new(format!("{}.{part}", self.module), dtype, shape)
        };
        let scale_type = match self.scales {
            ScaleType::F32 => Dtype::F32,
            ScaleType::Bf16 => Dtype::BF16,
            ScaleType::F16 => Dtype::F16,
        };
        let mut specs = match self.form {
            Form::Dense(dense) => {
                vec![(Part::Codes, spec("weight", dtype(dense), &[rows, cols]))]
            }
            Form::Fp8 => vec![
                (Part::Codes, spec("weight", Dtype::F8E4M3, &[rows, cols])),
                (Part::Scales, spec("weight_scale", scale_type, &[rows, 1])),
            ],
            Form::Int8 => vec![
                (Part::Codes, spec("weight", Dtype::I8, &[rows, cols])),
                (Part::Scales, spec("weight_scale", scale_type, &[rows, 1])),
            ],
            Form::MxFp4 => vec![
                (Part::Codes, spec("weight_packed", Dtype::U8, &[rows, cols.div_ceil(2)])),
                (Part::Scales, spec("weight_scale", Dtype::U8, &[rows, cols.div_ceil(32)])),
            ],
            Form::Int(format, granularity) => {
                let words = (cols * format.bits()).div_ceil(32);
                let groups = match granularity {
                    Granularity::Block1d(group) => cols / group,
                    _ => 1,
                };
                vec![
                    (Part::Codes, spec("weight_packed", Dtype::I32, &[rows, words])),
                    (Part::Scales, spec("weight_scale", scale_type, &[rows, groups])),
                    (Part::Shape, spec("weight_shape", Dtype::I64, &[2])),
                ]
            }
            Form::Panels { n_bytes, .. } => {
                vec![(Part::Codes, spec(PANELS, Dtype::U8, &[n_bytes]))]
            }
        };
        if self.input_scale.is_some() {
            specs.push((Part::InputScale, spec("input_scale", Dtype::F32, &[1])));
        }
        specs
    }

    /// How compressed-tensors describes it; none if it is dense.
    pub(super) fn scheme(&self) -> Option<Value> {
        let scheme = |format: &str, bits: usize, kind: &str, granularity: Granularity| {
            let (strategy, group_size) = match granularity {
                Granularity::Block1d(group) => ("group", Some(group)),
                _ => ("channel", None),
            };
            json!({
                "format": format,
                "input_activations": self.input_scale.map(|_| json!({
                    "num_bits": 8,
                    "type": kind,
                    "symmetric": true,
                    "strategy": "tensor",
                    "dynamic": false,
                })),
                "output_activations": null,
                "weights": {
                    "num_bits": bits,
                    "type": kind,
                    "symmetric": true,
                    "strategy": strategy,
                    "group_size": group_size,
                    "dynamic": false,
                },
            })
        };
        match self.form {
            Form::Dense(_) | Form::Panels { .. } => None,
            Form::Fp8 => Some(scheme("float-quantized", 8, "float", Granularity::Channel)),
            Form::Int8 => Some(scheme("int-quantized", 8, "int", Granularity::Channel)),
            Form::MxFp4 => {
                let group = Granularity::Block1d(squish_quant::MX_BLOCK);
                let mut scheme = scheme("mxfp4-pack-quantized", 4, "float", group);
                scheme["weights"]["scale_dtype"] = json!("torch.uint8");
                Some(scheme)
            }
            Form::Int(format, granularity) => {
                Some(scheme("pack-quantized", format.bits(), "int", granularity))
            }
        }
    }

    /// Hands the bytes of one of its tensors to `sink`.
    pub(super) fn write(
        &self,
        source: &dyn TensorSource,
        part: Part,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        if let (Part::InputScale, Some(scale)) = (part, self.input_scale) {
            return sink(&scale.to_le_bytes());
        }
        let dense = source.tensor(&self.tensor, &self.shape)?;
        if let Form::Panels { format, activation, .. } = self.form {
            let packed = pack(&dense, self.shape, format, activation);
            return write_panels(&packed.map_err(Error::pack(&self.tensor))?, sink);
        }
        match self.bytes(&dense, part) {
            Ok(bytes) => sink(&bytes),
            Err(error) => Err(Error::pack(&self.tensor)(error)),
        }
    }

    /// The bytes of one of its tensors, which are no panels.
    fn bytes(&self, tensor: &DenseTensor, part: Part) -> Result<Vec<u8>, QuantError> {
        let values = tensor.to_f32();
        let x = || {
            ArrayView2::from_shape(self.shape, &values).expect("as many numbers as the shape has")
        };
        let bytes = match self.form {
            Form::Panels { .. } => unreachable!("panels are written as they are made"),
            Form::Dense(dense) => narrowed(&values, dense),
            Form::Fp8 => {
                let tensor = fp8(x(), self.scales)?;
                match part {
                    Part::Codes => tensor.codes().to_vec(),
                    _ => self.scales.write(tensor.scales()),
                }
            }
            Form::Int8 => {
                let tensor = encode(IntQuantizer::default(), x(), self.scales)?;
                match part {
                    Part::Codes => tensor.codes().to_vec(),
                    _ => self.scales.write(tensor.scales()),
                }
            }
            Form::MxFp4 => {
                let tensor = MX_QUANTIZER.encode(x())?;
                let bytes = if part == Part::Codes { tensor.codes() } else { tensor.scales() };
                bytes.to_vec()
            }
            Form::Int(format, granularity) => {
                let quantizer = IntQuantizer { format, granularity, ..IntQuantizer::default() };
                let tensor = encode(quantizer, x(), self.scales)?;
                let packed = PackedWeight::write(&tensor.view(), self.scales)?;
                match part {
                    Part::Codes => packed.weight_packed,
                    Part::Scales => packed.weight_scale,
                    Part::Shape | Part::InputScale => packed.weight_shape().to_vec(),
                }
            }
        };
        Ok(bytes)
    }
}

/// How a checkpoint calls it.
pub(super) fn dtype(dense: Dense) -> Dtype {
    match dense {
        Dense::F32 => Dtype::F32,
        Dense::Bf16 => Dtype::BF16,
        Dense::F16 => Dtype::F16,
    }
}

/// `x` in E4M3 with a scale for each row, which `scale_type` has.
fn fp8(x: ArrayView2<'_, f32>, scale_type: ScaleType) -> Result<Fp8Tensor, QuantError> {
    let quantizer = Fp8Quantizer::default();
    let tensor = quantizer.encode(x)?;
    let scales: Vec<f32> = tensor.scales().iter().map(|&scale| scale_type.round(scale)).collect();
    if scales == tensor.scales() { Ok(tensor) } else { quantizer.encode_with_scales(x, &scales) }
}

fn write_panels(packed: &PackedMatrix, sink: &mut Sink<'_>) -> Result<(), Error> {
    /// A sink as what bytes are written to, with the error that a writer cannot hand on.
    struct Writer<'a, 'b>(&'a mut Sink<'b>, Option<Error>);

    impl io::Write for Writer<'_, '_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match (self.0)(bytes) {
                Ok(()) => Ok(bytes.len()),
                Err(error) => {
                    self.1 = Some(error);
                    Err(io::ErrorKind::Other.into())
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut writer = Writer(sink, None);
    match packed.write(&mut writer) {
        Ok(()) => Ok(()),
        Err(_) => Err(writer.1.expect("no write fails otherwise")),
    }
}
