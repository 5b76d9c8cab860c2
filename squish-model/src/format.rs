//! In which format the matrices of a model are packed.

use half::{bf16, f16};
use squish_kernels::{cast::narrow_into, panel::PANEL};
use squish_quant::{
    Activation, Dense, Fp8Format, Fp8Quantizer, Granularity, IntFormat, IntQuantizer, MxFormat,
    MxQuantizer, NonFinite, NvFp4Quantizer, PackedMatrix, ScaleRule, Weights,
    ndarray::{ArrayView2, ArrayViewMut2},
};

use crate::{DenseTensor, Error, quantized::decode, source::width};

/// A format of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// That of the checkpoint.
    #[default]
    Stored,
    /// 32 bits.
    F32,
    /// 16 bits: bfloat16.
    Bf16,
    /// 16 bits: half precision.
    F16,
    /// 8 bits: E4M3 with a scale for each output.
    Fp8E4M3,
    /// 8 bits: E5M2 with a scale for each output.
    Fp8E5M2,
    /// 4 bits: E2M1 with a power of two for each 32 inputs, chosen by squared error.
    MxFp4,
    /// 8 bits: E4M3 with a power of two for each 32 inputs.
    MxFp8E4M3,
    /// 8 bits: E5M2 with a power of two for each 32 inputs.
    MxFp8E5M2,
    /// 6 bits: E3M2 with a power of two for each 32 inputs; products read 8.
    MxFp6E3M2,
    /// 6 bits: E2M3 with a power of two for each 32 inputs; products read 8.
    MxFp6E2M3,
    /// 8 bits: integers with a power of two for each 32 inputs.
    MxInt8,
    /// 4 bits: E2M1 with an E4M3 scale for each 16 inputs, and one of all.
    NvFp4,
    /// 8 bits: integers with a scale for each 128 inputs.
    Int8,
    /// 4 bits: integers with a scale for each 32 inputs.
    Int4,
}

impl WeightFormat {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Stored,
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::Fp8E4M3,
        Self::Fp8E5M2,
        Self::MxFp4,
        Self::MxFp8E4M3,
        Self::MxFp8E5M2,
        Self::MxFp6E3M2,
        Self::MxFp6E2M3,
        Self::MxInt8,
        Self::NvFp4,
        Self::Int8,
        Self::Int4,
    ];

    /// Its name, lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Fp8E4M3 => "fp8-e4m3",
            Self::Fp8E5M2 => "fp8-e5m2",
            Self::MxFp4 => "mxfp4",
            Self::MxFp8E4M3 => "mxfp8-e4m3",
            Self::MxFp8E5M2 => "mxfp8-e5m2",
            Self::MxFp6E3M2 => "mxfp6-e3m2",
            Self::MxFp6E2M3 => "mxfp6-e2m3",
            Self::MxInt8 => "mxint8",
            Self::NvFp4 => "nvfp4",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// `tensor`, a matrix of `shape`, in `format`, for inputs that are rounded to `activation` or, without one, to the default of the format.
///
/// # Errors
///
/// Those of the quantizer, of weights that are not finite or rows that are no multiple of a block, and of
/// [`PackedMatrix::pack`].
pub(crate) fn pack(
    tensor: &DenseTensor,
    shape: [usize; 2],
    format: WeightFormat,
    activation: Option<Activation>,
) -> Result<PackedMatrix, squish_quant::Error> {
    encode(tensor, shape, format, |weights| {
        PackedMatrix::pack(weights, activation.unwrap_or(weights.default_activation()))
    })
}

/// What numbers become in `format`: encoded and decoded.
///
/// # Errors
///
/// As [`pack`], but for those of packing.
pub(crate) fn pass_through(
    mut x: ArrayViewMut2<'_, f32>,
    format: WeightFormat,
) -> Result<(), squish_quant::Error> {
    let shape = x.dim().into();
    let bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let values =
        encode(&DenseTensor::new(Dense::F32, bytes), shape, format, |weights| Ok(decode(weights)))?;
    x.iter_mut().zip(values).for_each(|(x, value)| *x = value);
    Ok(())
}

/// What `pack` makes of `tensor`, a matrix of `shape`, in `format`.
///
/// # Errors
///
/// Those of the quantizer, and of `pack`.
pub(crate) fn encode<R>(
    tensor: &DenseTensor,
    shape: [usize; 2],
    format: WeightFormat,
    pack: impl Fn(Weights<'_>) -> Result<R, squish_quant::Error>,
) -> Result<R, squish_quant::Error> {
    let stored = Weights::Dense { dense: tensor.dense(), shape, bytes: tensor.bytes() };
    let dense = match format {
        WeightFormat::Stored => return pack(stored),
        WeightFormat::F32 => Some(Dense::F32),
        WeightFormat::Bf16 => Some(Dense::Bf16),
        WeightFormat::F16 => Some(Dense::F16),
        _ => None,
    };
    if dense == Some(tensor.dense()) {
        return pack(stored);
    }
    let values = tensor.to_f32();
    if let Some(dense) = dense {
        let bytes = narrowed(&values, dense);
        return pack(Weights::Dense { dense, shape, bytes: &bytes });
    }
    let values = ArrayView2::from_shape(shape, &values).expect("as many numbers as the shape has");
    let mx = |format| pack((&MxQuantizer { format, ..MX_QUANTIZER }.encode(values)?).into());
    match format {
        WeightFormat::Fp8E4M3 => pack((&Fp8Quantizer::default().encode(values)?).into()),
        WeightFormat::Fp8E5M2 => {
            let quantizer = Fp8Quantizer { format: Fp8Format::E5M2, ..Fp8Quantizer::default() };
            pack((&quantizer.encode(values)?).into())
        }
        WeightFormat::MxFp4 => mx(MxFormat::MxFp4),
        WeightFormat::MxFp8E4M3 => mx(MxFormat::MxFp8E4M3),
        WeightFormat::MxFp8E5M2 => mx(MxFormat::MxFp8E5M2),
        WeightFormat::MxFp6E3M2 => mx(MxFormat::MxFp6E3M2),
        WeightFormat::MxFp6E2M3 => mx(MxFormat::MxFp6E2M3),
        WeightFormat::MxInt8 => mx(MxFormat::MxInt8),
        WeightFormat::NvFp4 => pack((&NvFp4Quantizer::default().encode(values)?).into()),
        _ => {
            let int = if format == WeightFormat::Int8 { IntFormat::Int8 } else { IntFormat::Int4 };
            let granularity = Granularity::Block1d(int_group(int));
            let quantizer = IntQuantizer { format: int, granularity, ..IntQuantizer::default() };
            pack((&quantizer.encode(values)?).into())
        }
    }
}

/// That of [`WeightFormat::MxFp4`] and, with another format, of the others of microscaling.
pub(crate) const MX_QUANTIZER: MxQuantizer =
    MxQuantizer { format: MxFormat::MxFp4, rule: ScaleRule::MinMse, non_finite: NonFinite::Error };

/// Inputs that share a scale.
pub(crate) const fn int_group(format: IntFormat) -> usize {
    match format {
        IntFormat::Int8 => 128,
        IntFormat::Int4 => 32,
    }
}

/// Bytes of what [`pack`] makes of a matrix of `shape`, and of what is saved of that, without packing it: all panels are as large as
/// one.
pub(crate) fn packed_sizes(
    dense: Dense,
    [rows, cols]: [usize; 2],
    format: WeightFormat,
    activation: Option<Activation>,
) -> Result<[usize; 2], squish_quant::Error> {
    let zeros = DenseTensor::new(dense, vec![0; width(dense) * cols]);
    let one = pack(&zeros, [1, cols], format, activation)?;
    let n_bytes = rows.div_ceil(PANEL) * one.n_bytes();
    Ok([n_bytes, one.n_saved_bytes() - one.n_bytes() + n_bytes])
}

/// The bytes of `values`, each rounded to nearest, ties to even.
pub(crate) fn narrowed(values: &[f32], dense: Dense) -> Vec<u8> {
    match dense {
        Dense::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dense::Bf16 => {
            let mut out = vec![bf16::ZERO; values.len()];
            narrow_into(values, &mut out);
            out.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        Dense::F16 => {
            let mut out = vec![f16::ZERO; values.len()];
            narrow_into(values, &mut out);
            out.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for WeightFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| Error::Name {
            what: "format of weights",
            actual: crate::error::clip(name),
            expected: "stored, f32, bf16, f16, fp8-e4m3, fp8-e5m2, mxfp4, mxfp8-e4m3, mxfp8-e5m2, mxfp6-e3m2, mxfp6-e2m3, mxint8, \
                nvfp4, int8 or int4",
        })
    }
}
