//! INT8 and INT4 with `f32` scales per group: [`IntQuantizer`] and [`IntTensor`].
//!
//! ```text
//! symmetric    scale = amax / ((high - low) / 2)                       amax: largest |x| of the group
//! asymmetric   scale = (max - min) / (high - low)                      min and max widened to include 0
//!              zero_point = round(clamp(low - min / scale, low, high))
//! code         round(clamp(x / scale + zero_point, low, high))         a division; ties to even
//! value        (code - zero_point) · scale
//! ```
//!
//! | range | INT8 codes, divisor of `amax` | INT4 | used by |
//! |---|---|---|---|
//! | [`IntRange::Full`] | -128..=127, 127.5 | -8..=7, 7.5 | compressed-tensors (vLLM), PyTorch's observers |
//! | [`IntRange::Restricted`] | -127..=127, 127 | -7..=7, 7 | ONNX Runtime, `TensorRT`, most papers |
//!
//! `Full` uses every code, and rounds or saturates `amax` itself by half a step; `Restricted` represents it. No element
//! is off by more than half a step in either. On a Gaussian in groups of 32, INT4 keeps 20.47 dB with `Full` and
//! 20.28 dB with `Restricted`.
//!
//! A scale is at least 2^-126, so that quotients keep their precision, and a group of zeros has scale 1. Tools differ
//! there, to no effect on the values: compressed-tensors stores 2^-23 for a symmetric group of zeros and divides zero by
//! zero for an asymmetric one, ggml stores 0. Elements beyond 15/16 of the largest float may decode to infinity.
//!
//! | format | codes |
//! |---|---|
//! | [`IntFormat::Int8`] | one byte each in two's complement, `[rows, cols]`: compressed-tensors' `int-quantized` |
//! | [`IntFormat::Int4`] | `[rows, cols / 2]`, stored as `code + 8`; byte `j` has element `2j` in its low and `2j + 1` in its high half: the little-endian words of `pack-quantized` |
//!
//! Groups run along the rows and never straddle them; the last group of a row may be shorter. INT4 needs an even number
//! of columns, and groups of an even number of elements where a row has several.
//!
//! Source: B. Jacob et al., arXiv 1712.05877, equations 1 to 3; compressed-tensors 0.20, `calculate_qparams`.

use ndarray::ArrayView2;

use crate::{
    band::{check_divisors, check_finite, check_rows},
    error::{Error, Result},
    granularity::{Granularity, NonFinite, n_elements},
};

use codec::Codec;
pub use tensor::{IntTensor, IntView};

mod codec;
mod tensor;

/// Which integer format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IntFormat {
    /// Eight bits.
    #[default]
    Int8,
    /// Four bits, two codes in a byte.
    Int4,
}

impl IntFormat {
    /// The name, lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bits of a code.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// Least and greatest code in use.
    #[must_use]
    pub const fn limits(self, range: IntRange) -> [i8; 2] {
        match (self, range) {
            (Self::Int8, IntRange::Full) => [-128, 127],
            (Self::Int8, IntRange::Restricted) => [-127, 127],
            (Self::Int4, IntRange::Full) => [-8, 7],
            (Self::Int4, IntRange::Restricted) => [-7, 7],
        }
    }

    /// Bytes that hold the codes of `n` elements.
    fn n_bytes(self, n: usize) -> usize {
        n / (8 / self.bits())
    }
}

/// Whether zero has a code of its own choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Symmetry {
    /// Zero has code 0. For weights.
    #[default]
    Symmetric,
    /// Each group has a zero point, so that groups of one sign use all codes.
    Asymmetric,
}

/// Which codes are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IntRange {
    /// All of them.
    #[default]
    Full,
    /// As many negative as positive ones.
    Restricted,
}

/// How to make an [`IntTensor`]. Default: INT8, one scale per row, symmetric, all codes, non-finite inputs refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IntQuantizer {
    /// Format of the codes.
    pub format: IntFormat,
    /// Which elements share a scale. [`Granularity::Block2d`] is refused: no integer checkpoint has it.
    pub granularity: Granularity,
    /// Whether groups have zero points.
    pub symmetry: Symmetry,
    /// Which codes are used.
    pub range: IntRange,
    /// What to make of NaN and infinities. With [`NonFinite::Saturate`] they count in no scale, NaN becomes zero and
    /// infinities the outermost codes; [`NonFinite::Poison`] is refused, because integers have no NaN.
    pub non_finite: NonFinite,
}

impl Default for IntQuantizer {
    fn default() -> Self {
        Self {
            format: IntFormat::Int8,
            granularity: Granularity::Channel,
            symmetry: Symmetry::Symmetric,
            range: IntRange::Full,
            non_finite: NonFinite::Error,
        }
    }
}

impl IntQuantizer {
    /// `x`, `[rows, cols]`, quantized with scales made from it.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] as the quantizer says, [`Error::BlockAlign`] and [`Error::Unsupported`] for groups that the
    /// format does not have, [`Error::ZeroBlock`].
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::{Granularity, IntFormat, IntQuantizer, IntRange, ndarray::array};
    ///
    /// let weight = array![[0.5, -3.5, 1.25, 2.0], [1.0, 2.0, 14.0, 6.0]];
    /// let quantizer = IntQuantizer { format: IntFormat::Int4, range: IntRange::Restricted, ..Default::default() };
    /// let tensor = quantizer.encode(weight.view())?;
    /// assert_eq!(tensor.scales(), [0.5, 2.0]);
    /// assert_eq!(tensor.codes(), [0x19, 0xca, 0x98, 0xbf]); // 1, -7; 2, 4; 0, 1; 7, 3, each plus 8
    /// assert_eq!(tensor.decode(), array![[0.5, -3.5, 1.0, 2.0], [0.0, 2.0, 14.0, 6.0]]);
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn encode(self, x: ArrayView2<'_, f32>) -> Result<IntTensor> {
        let mut tensor = self.zeros(x.dim().into())?;
        let x = x.as_standard_layout();
        let IntTensor { codes, scales, zero_points, .. } = &mut tensor;
        Codec::new(self, &x.view())?.encode(x.view(), codes, scales, zero_points.as_deref_mut())?;
        Ok(tensor)
    }

    /// [`IntQuantizer::encode`] into `codes`, `[rows, cols]` or `[rows, cols / 2]`, `scales`, of
    /// [`scales_shape`](Granularity::scales_shape), and as many `zero_points`, which symmetric quantizers do not have.
    /// Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`IntQuantizer::encode`], [`Error::Length`], and [`Error::Layout`] if rows of `x` are not contiguous. Then
    /// nothing is written.
    pub fn encode_into(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [f32],
        zero_points: Option<&mut [i8]>,
    ) -> Result<()> {
        self.check(&x, codes.len(), scales.len(), zero_points.as_deref())?;
        if self.non_finite == NonFinite::Error {
            check_finite(x)?;
        }
        Codec::new(self, &x)?.encode(
            x,
            codes,
            scales,
            zero_points.filter(|_| self.has_zero_points()),
        )
    }

    /// `x` with the given scales and zero points, saturated: for scales that were calibrated, rounded or are static.
    ///
    /// # Errors
    ///
    /// As [`IntQuantizer::encode`], [`Error::Length`], [`Error::BadScale`] for scales that are not positive and finite,
    /// or so small that their reciprocal is infinite, [`Error::BadCode`] for zero points that are no codes.
    pub fn encode_with_scales(
        self,
        x: ArrayView2<'_, f32>,
        scales: &[f32],
        zero_points: Option<&[i8]>,
    ) -> Result<IntTensor> {
        let mut tensor = self.zeros(x.dim().into())?;
        let x = x.as_standard_layout();
        self.encode_with_scales_into(x.view(), scales, zero_points, &mut tensor.codes)?;
        tensor.scales.copy_from_slice(scales);
        // A symmetric tensor has none, and those of an empty matrix may have been left out.
        if let (Some(to), Some(from)) = (&mut tensor.zero_points, zero_points) {
            to.copy_from_slice(from);
        }
        Ok(tensor)
    }

    /// [`IntQuantizer::encode_with_scales`] into `codes`, `[rows, cols]` or `[rows, cols / 2]`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`IntQuantizer::encode_with_scales`], and [`Error::Layout`]. Then nothing is written.
    pub fn encode_with_scales_into(
        self,
        x: ArrayView2<'_, f32>,
        scales: &[f32],
        zero_points: Option<&[i8]>,
        codes: &mut [u8],
    ) -> Result<()> {
        self.check(&x, codes.len(), scales.len(), zero_points)?;
        check_divisors(scales)?;
        check_zero_points(zero_points, self.format.limits(self.range))?;
        if self.non_finite == NonFinite::Error {
            check_finite(x)?;
        }
        let zero_points = zero_points.filter(|_| self.has_zero_points());
        Codec::new(self, &x)?.cast_rows(x, scales, zero_points, codes)
    }

    fn zeros(self, shape: [usize; 2]) -> Result<IntTensor> {
        let Self { format, granularity, .. } = self;
        let [n_codes, n_scales] = self.lengths(shape)?;
        let zero_points = self.has_zero_points().then(|| vec![0; n_scales]);
        Ok(IntTensor {
            format,
            granularity,
            shape,
            codes: vec![0; n_codes],
            scales: vec![0.0; n_scales],
            zero_points,
        })
    }

    fn lengths(self, shape: [usize; 2]) -> Result<[usize; 2]> {
        if self.non_finite == NonFinite::Poison {
            return Err(Error::Unsupported {
                format: self.format.name(),
                what: "poisoned elements",
            });
        }
        lengths(self.format, self.granularity, shape)
    }

    fn has_zero_points(self) -> bool {
        self.symmetry == Symmetry::Asymmetric
    }

    /// `Ok` if the buffers have the lengths that `x` implies. No zero points and a slice of none are the same.
    fn check(
        self,
        x: &ArrayView2<'_, f32>,
        n_codes: usize,
        n_scales: usize,
        zero_points: Option<&[i8]>,
    ) -> Result<()> {
        check_rows("x", x.dim(), x.strides())?;
        let [codes_expected, scales_expected] = self.lengths(x.dim().into())?;
        let zero_points_expected = if self.has_zero_points() { scales_expected } else { 0 };
        Error::check_length("codes", codes_expected, n_codes)?;
        Error::check_length("scales", scales_expected, n_scales)?;
        Error::check_length("zero_points", zero_points_expected, zero_points.map_or(0, <[i8]>::len))
    }
}

/// Bytes of codes, and scales, of a matrix.
fn lengths(format: IntFormat, granularity: Granularity, shape: [usize; 2]) -> Result<[usize; 2]> {
    if let Granularity::Block2d { .. } = granularity {
        return Err(Error::Unsupported { format: format.name(), what: "blocks of several rows" });
    }
    let n_scales = granularity.n_scales(shape)?;
    let [_, block] = granularity.block(shape)?;
    let per_byte = 8 / format.bits();
    for (len, several) in [(shape[1], true), (block, block < shape[1])] {
        if several && !len.is_multiple_of(per_byte) {
            return Err(Error::BlockAlign { len, block: per_byte });
        }
    }
    Ok([format.n_bytes(n_elements(shape)?), n_scales])
}

fn check_zero_points(zero_points: Option<&[i8]>, [low, high]: [i8; 2]) -> Result<()> {
    let outside = |zero_points: &[i8]| zero_points.iter().position(|x| !(low..=high).contains(x));
    match zero_points
        .and_then(|zero_points| outside(zero_points).map(|index| (index, zero_points[index])))
    {
        None => Ok(()),
        Some((index, value)) => {
            Err(Error::BadCode { what: "zero_points", index, value: value.into() })
        }
    }
}
