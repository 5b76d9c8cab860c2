//! Integer weights as compressed-tensors (vLLM, llm-compressor) stores them, read from and written to bytes.
//!
//! | `pack-quantized`, for a weight of `[rows, cols]` | type | shape |
//! |---|---|---|
//! | `weight_packed` | I32 | `[rows, cols · bits / 32]`; element `j` of a word in bits `j · bits..`, stored as `code + 2^(bits - 1)` |
//! | `weight_scale` | BF16, F16 or F32 | `[rows, groups]`; `[rows, 1]` per channel, `[1]` per tensor |
//! | `weight_zero_point`, if asymmetric | I32 | `[⌈rows · bits / 32⌉, groups]`, packed the same way along the rows |
//! | `weight_shape` | I64 | `[2]`: `rows, cols` |
//!
//! | `int-quantized` | type | shape |
//! |---|---|---|
//! | `weight` | I8 | `[rows, cols]` |
//! | `weight_scale` | BF16, F16 or F32 | as above |
//! | `weight_zero_point`, if asymmetric | I8 | the shape of the scales |
//!
//! The bytes of little-endian words of eight 4-bit codes are the bytes of [`IntTensor`], so that INT4 is read where it
//! lies. Eight-bit codes differ in the top bit from those of `int-quantized` and are copied. Rows must be whole words:
//! the library pads others with the code -8, which no checkpoint of a linear layer has shown. An order of the groups by
//! activation (`weight_g_idx`) is not covered, and zero points of a whole tensor are refused in `pack-quantized`, because
//! the library does not pack them.
//!
//! Shapes do not tell the size of the groups: two groups of 32 columns may be 16 and 16 elements or 24 and 8. Readers ask
//! for the [`Granularity`], which the `quantization_config` of a checkpoint has as `strategy` and `group_size`.
//!
//! The library makes zero points from `f32` scales, rounds the scales to their type, and then makes codes with the
//! rounded scales. [`encode`] does the same.
//!
//! Source: compressed-tensors 0.20, `compressors/pack_quantized` and `compressors/naive_quantized`.

use std::borrow::Cow;

use ndarray::ArrayView2;

use crate::{
    band::all_scales,
    error::{Error, Result},
    granularity::Granularity,
    int::{IntFormat, IntQuantizer, IntTensor, IntView},
    scales::{ScaleBytes, ScaleType},
};

/// A matrix whose codes are borrowed from a checkpoint if its layout allows.
pub type IntCow<'a> = IntTensor<Cow<'a, [u8]>, Vec<f32>, Vec<i8>>;

/// The tensors of a `pack-quantized` weight, as bytes.
#[derive(Clone, Copy, Debug)]
pub struct PackQuantized<'a> {
    /// Bits of a code.
    pub format: IntFormat,
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// The numbers in `weight_shape`.
    pub shape: [usize; 2],
    /// Words of codes.
    pub weight_packed: &'a [u8],
    /// Scales.
    pub weight_scale: ScaleBytes<'a>,
    /// Shape of the scales, `[1, 1]` for one scale of all.
    pub scale_shape: [usize; 2],
    /// Words of zero points.
    pub weight_zero_point: Option<&'a [u8]>,
}

/// The tensors of an `int-quantized` weight, as bytes.
#[derive(Clone, Copy, Debug)]
pub struct IntQuantized<'a> {
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// Shape of the weight.
    pub shape: [usize; 2],
    /// Codes.
    pub weight: &'a [u8],
    /// Scales.
    pub weight_scale: ScaleBytes<'a>,
    /// Shape of the scales, `[1, 1]` for one scale of all.
    pub scale_shape: [usize; 2],
    /// Zero points.
    pub weight_zero_point: Option<&'a [u8]>,
}

/// The tensors of a `pack-quantized` weight, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedWeight {
    /// Bits of a code.
    pub format: IntFormat,
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// What `weight_shape` holds.
    pub shape: [usize; 2],
    /// Words of codes.
    pub weight_packed: Vec<u8>,
    /// Scales of `scale_type`.
    pub weight_scale: Vec<u8>,
    /// Type of the scales.
    pub scale_type: ScaleType,
    /// Shape of the scales.
    pub scale_shape: [usize; 2],
    /// Words of zero points.
    pub weight_zero_point: Option<Vec<u8>>,
}

impl<'a> PackQuantized<'a> {
    /// The matrix, with the codes of INT4 borrowed.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`] if rows are no whole number of words, [`Error::Shape`] for a shape of scales that is not
    /// the granularity's, [`Error::Unsupported`] for zero points of a whole tensor, and as [`IntTensor::new`].
    pub fn read(self) -> Result<IntCow<'a>> {
        let Self {
            format, granularity, shape, weight_packed, scale_shape, weight_zero_point, ..
        } = self;
        check_words(format, shape)?;
        let n_scales = check_scale_shape(granularity, shape, scale_shape)?;
        check_packed_zero_points(granularity, weight_zero_point.is_some())?;
        let scales = self.weight_scale.to_f32(n_scales)?;
        let codes = match format {
            IntFormat::Int4 => Cow::Borrowed(weight_packed),
            IntFormat::Int8 => Cow::Owned(weight_packed.iter().map(|code| code ^ 0x80).collect()),
        };
        let zero_points =
            weight_zero_point.map(|words| unpack_rows(format, scale_shape, words)).transpose()?;
        IntTensor::new(format, granularity, shape, codes, scales, zero_points)
    }
}

impl<'a> IntQuantized<'a> {
    /// The matrix, with the codes borrowed.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a shape of scales that is not the granularity's, and as [`IntTensor::new`].
    pub fn read(self) -> Result<IntTensor<&'a [u8], Vec<f32>, &'a [i8]>> {
        let Self { granularity, shape, weight, weight_scale, scale_shape, weight_zero_point } =
            self;
        let scales = weight_scale.to_f32(check_scale_shape(granularity, shape, scale_shape)?)?;
        let zero_points = weight_zero_point.map(bytemuck::cast_slice);
        IntTensor::new(IntFormat::Int8, granularity, shape, weight, scales, zero_points)
    }
}

impl PackedWeight {
    /// The tensors of `matrix`, with its scales rounded to `scale_type`; [`encode`] makes codes that allow for that.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`] if rows are no whole number of words, [`Error::BadScale`] for a scale that becomes
    /// infinite, or zero where it was not, [`Error::Unsupported`] for zero points of a whole tensor.
    pub fn write(matrix: &IntView<'_>, scale_type: ScaleType) -> Result<Self> {
        let (format, granularity, shape) = (matrix.format(), matrix.granularity(), matrix.shape());
        check_words(format, shape)?;
        let scale_shape = granularity.scales_shape(shape)?;
        check_packed_zero_points(granularity, matrix.zero_points().is_some())?;
        check_rounded(matrix.scales(), scale_type)?;
        let weight_packed = match format {
            IntFormat::Int4 => matrix.codes().to_vec(),
            IntFormat::Int8 => matrix.codes().iter().map(|code| code ^ 0x80).collect(),
        };
        let weight_zero_point =
            matrix.zero_points().map(|zero_points| pack_rows(format, scale_shape, zero_points));
        Ok(Self {
            format,
            granularity,
            shape,
            weight_packed,
            weight_scale: scale_type.write(matrix.scales()),
            scale_type,
            scale_shape,
            weight_zero_point,
        })
    }

    /// The same tensors, borrowed for reading.
    #[must_use]
    pub fn view(&self) -> PackQuantized<'_> {
        PackQuantized {
            format: self.format,
            granularity: self.granularity,
            shape: self.shape,
            weight_packed: &self.weight_packed,
            weight_scale: self.scale_type.bytes(&self.weight_scale),
            scale_shape: self.scale_shape,
            weight_zero_point: self.weight_zero_point.as_deref(),
        }
    }

    /// The bytes of `weight_shape`, two I64.
    #[must_use]
    pub fn weight_shape(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (bytes, n) in bytes.as_chunks_mut().0.iter_mut().zip(self.shape) {
            *bytes = (n as i64).to_le_bytes();
        }
        bytes
    }
}

/// `x` quantized as `quantizer` says, with scales that `scale_type` has.
///
/// # Errors
///
/// As [`IntQuantizer::encode`], and [`Error::BadScale`] for a scale that the type rounds to zero or infinity.
///
/// # Examples
///
/// ```
/// use squish_quant::{
///     Granularity, IntFormat, IntQuantizer, ScaleType,
///     compressed_tensors::{PackedWeight, encode},
///     ndarray::Array2,
/// };
///
/// let weight = Array2::from_shape_fn([16, 64], |(row, col)| ((row * 64 + col) as f32).sin());
/// let quantizer = IntQuantizer { format: IntFormat::Int4, granularity: Granularity::Block1d(32), ..Default::default() };
/// let tensor = encode(quantizer, weight.view(), ScaleType::Bf16)?;
/// let packed = PackedWeight::write(&tensor.view(), ScaleType::Bf16)?;
/// assert_eq!(packed.weight_packed.len(), 16 * 64 / 2);
/// assert_eq!(packed.view().read()?.decode(), tensor.decode());
/// # Ok::<(), squish_quant::Error>(())
/// ```
pub fn encode(
    quantizer: IntQuantizer,
    x: ArrayView2<'_, f32>,
    scale_type: ScaleType,
) -> Result<IntTensor> {
    let tensor = quantizer.encode(x)?;
    check_rounded(tensor.scales(), scale_type)?;
    let scales: Vec<f32> = tensor.scales().iter().map(|&scale| scale_type.round(scale)).collect();
    quantizer.encode_with_scales(x, &scales, tensor.zero_points())
}

fn check_rounded(scales: &[f32], scale_type: ScaleType) -> Result<()> {
    all_scales(scales, |scale| {
        let rounded = scale_type.round(scale);
        rounded.is_finite() && (rounded == 0.0) == (scale == 0.0)
    })
}

fn check_words(format: IntFormat, [_, cols]: [usize; 2]) -> Result<()> {
    let per_word = 32 / format.bits();
    if cols.is_multiple_of(per_word) {
        Ok(())
    } else {
        Err(Error::BlockAlign { len: cols, block: per_word })
    }
}

/// The number of scales, if `scale_shape` is what the granularity implies.
fn check_scale_shape(
    granularity: Granularity,
    shape: [usize; 2],
    scale_shape: [usize; 2],
) -> Result<usize> {
    let expected = granularity.scales_shape(shape)?;
    if scale_shape != expected {
        return Err(Error::Shape { what: "weight_scale", expected, actual: scale_shape });
    }
    granularity.n_scales(shape)
}

/// `Ok` if the layout has a place for the zero points, should there be any.
fn check_packed_zero_points(granularity: Granularity, zero_points: bool) -> Result<()> {
    if zero_points && granularity == Granularity::Tensor {
        return Err(Error::Unsupported {
            format: "pack-quantized",
            what: "zero points of a whole tensor",
        });
    }
    Ok(())
}

/// Codes of `[rows, groups]` from words in which a column of codes runs on along the rows. There are not more codes than
/// [`isize::MAX`].
fn unpack_rows(format: IntFormat, [rows, groups]: [usize; 2], words: &[u8]) -> Result<Vec<i8>> {
    let per_word = 32 / format.bits();
    let n_words = rows.div_ceil(per_word) * groups;
    // No slice has `usize::MAX` bytes.
    Error::check_length("weight_zero_point", n_words.saturating_mul(4), words.len())?;
    // Rows without groups may be more than anyone can count.
    if n_words == 0 {
        return Ok(Vec::new());
    }
    let words: Vec<u32> =
        words.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
    let mask = (1 << format.bits()) - 1;
    let offset = 1 << (format.bits() - 1);
    let code = |row: usize, group: usize| {
        let word = words[row / per_word * groups + group];
        ((word >> (row % per_word * format.bits()) & mask) as i32 - offset) as i8
    };
    Ok((0..rows)
        .flat_map(|row| (0..groups).map(move |group| (row, group)))
        .map(|(row, group)| code(row, group))
        .collect())
}

/// The words that [`unpack_rows`] reads; rows past the last are zero bits.
fn pack_rows(format: IntFormat, [rows, groups]: [usize; 2], codes: &[i8]) -> Vec<u8> {
    let per_word = 32 / format.bits();
    let offset = 1 << (format.bits() - 1);
    let mut words = vec![0u32; rows.div_ceil(per_word) * groups];
    for (i, &code) in codes.iter().enumerate() {
        let (row, group) = (i / groups, i % groups);
        words[row / per_word * groups + group] |=
            ((i32::from(code) + offset) as u32) << (row % per_word * format.bits());
    }
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
