//! OCP microscaling: [`MxQuantizer`] and [`MxTensor`].
//!
//! Blocks of 32 elements along a row share a power of two, `2^(X - 127)`, stored as the E8M0 byte `X`:
//!
//! ```text
//! X     = exponent(amax · rule) - emax        clamped to 0..=254; emax = 2 for E2M1; zero blocks have X = 0
//! code  = E2M1(x · 2^(127 - X))               to nearest, ties to even, saturated
//! value = E2M1 value · 2^(X - 127)            X = 255 makes the whole block NaN
//! ```
//!
//! | format | element | bits per weight | codes `[rows, cols / 2]` | scales `[rows, cols / 32]` |
//! |---|---|---|---|---|
//! | [`MxFormat::MxFp4`] | E2M1 | 4.25 | low half of byte `j`: element `2j` | E8M0 |
//!
//! That is the layout of PyTorch's `float4_e2m1fn_x2` with `float8_e8m0fnu` scales (torchao), and of the `*_blocks` and
//! `*_scales` tensors of gpt-oss; [`crate::ggml`] repacks to and from the 17-byte blocks of ggml. Decoding is the same
//! for all; what differs between tools is the scale, chosen by [`ScaleRule`]. For the block's largest magnitude
//! `amax = 1.f · 2^e`:
//!
//! | rule | `X - 127` | tools |
//! |---|---|---|
//! | `Floor` | `e - 2` | the specification, ggml, torchao's default |
//! | `Even` | `e - 2`, plus 1 where `1.f` rounds up to 2 with one bit of mantissa (`1.f ≥ 1.75`) | compressed-tensors, torchao |
//! | `Ceil` | `e - 2`, plus 1 unless `1.f = 1` | torchao |
//! | `RoundUp` | `⌈log2(amax / 6)⌉`: the smallest without saturation | NVIDIA (RCEIL), modelopt |
//! | `MinMse` | that of `e - 2` and `e - 1` with the smaller squared error, summed in `f64`; `e - 2` of equals | ours |
//!
//! Exponents are read from the bits, never from a rounded logarithm. A subnormal `amax` counts as zero exponent, so
//! that its block has `X = 0`. Values next to `f32::MAX` that round up to 2^128 decode to infinity.
//!
//! Source: OCP Microscaling Formats (MX) 1.0, sections 5.3 and 6.3; B. D. Rouhani et al., arXiv 2310.10537.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use squish_kernels::{
    Isa,
    element::E8M0,
    nibble::{decode_e2m1_blocks_to, encode_e2m1_blocks_to},
    stream::Stores,
};

use crate::{
    band::{
        EncodeBand, RUN_BLOCKS, Run, check_finite, check_out, check_rows, decode_rows,
        finite_abs_max, rows_of, runs,
    },
    error::{Error, Result},
    granularity::{NonFinite, n_elements},
    parallel::for_bands,
};

/// Elements that share a scale.
pub const MX_BLOCK: usize = 32;

/// Which microscaling format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MxFormat {
    /// Elements of four bits, E2M1.
    #[default]
    MxFp4,
}

impl MxFormat {
    /// The specification's name, lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MxFp4 => "mxfp4",
        }
    }
}

/// How the scale of a block follows from its largest magnitude; see the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// The specification's: the largest magnitudes saturate if they exceed 6 times the scale.
    #[default]
    Floor,
    /// The largest magnitude is rounded as an element before its exponent is taken.
    Even,
    /// The next power of two.
    Ceil,
    /// The smallest scale at which nothing saturates.
    RoundUp,
    /// The better of two by squared error.
    MinMse,
}

/// How to make an [`MxTensor`]. Default: MXFP4, the specification's scales, non-finite inputs refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MxQuantizer {
    /// Format of the elements.
    pub format: MxFormat,
    /// How scales are chosen.
    pub rule: ScaleRule,
    /// What to make of NaN and infinities. [`NonFinite::Poison`] gives their block the scale NaN.
    pub non_finite: NonFinite,
}

/// A matrix in a microscaling format. `C` and `S` own or borrow codes and scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MxTensor<C = Vec<u8>, S = Vec<u8>> {
    format: MxFormat,
    shape: [usize; 2],
    codes: C,
    scales: S,
}

/// A matrix in a microscaling format over somebody else's bytes.
pub type MxView<'a> = MxTensor<&'a [u8], &'a [u8]>;

impl MxQuantizer {
    /// `x`, `[rows, cols]`, quantized.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`] if `cols` is no multiple of 32, [`Error::NonFinite`] as the quantizer says.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::{MxQuantizer, ndarray::Array2};
    ///
    /// let weight = Array2::from_shape_fn([2, 64], |(row, col)| (row * 64 + col) as f32 / 10.0 - 5.0);
    /// let tensor = MxQuantizer::default().encode(weight.view())?;
    /// assert_eq!(tensor.scales(), [127, 125, 127, 127]); // 2^0, 2^-2, 2^0, 2^0
    /// assert_eq!(tensor.decode()[[0, 0]], -4.0); // -5 is half way between -4 and -6
    /// assert_eq!(tensor.bits_per_weight(), 4.25);
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn encode(self, x: ArrayView2<'_, f32>) -> Result<MxTensor> {
        let shape = x.dim().into();
        let [n_codes, n_scales] = lengths(shape)?;
        let mut tensor = MxTensor {
            format: self.format,
            shape,
            codes: vec![0; n_codes],
            scales: vec![0; n_scales],
        };
        let x = x.as_standard_layout();
        self.encode_rows(x.view(), &mut tensor.codes, &mut tensor.scales)?;
        Ok(tensor)
    }

    /// [`MxQuantizer::encode`] into `codes`, `[rows, cols / 2]`, and `scales`, `[rows, cols / 32]`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`MxQuantizer::encode`], [`Error::Length`], and [`Error::Layout`] if rows of `x` are not contiguous. Then
    /// nothing is written.
    pub fn encode_into(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Result<()> {
        check_rows("x", x.dim(), x.strides())?;
        let [n_codes, n_scales] = lengths(x.dim().into())?;
        Error::check_length("codes", n_codes, codes.len())?;
        Error::check_length("scales", n_scales, scales.len())?;
        if self.non_finite == NonFinite::Error {
            check_finite(x)?;
        }
        self.encode_rows(x, codes, scales)
    }

    /// Codes and scales of rows whose buffers have been checked. An error leaves them half written.
    fn encode_rows(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Result<()> {
        let bytes = size_of::<f32>() * x.len() + codes.len() + scales.len();
        let stores = Stores::for_bytes(bytes);
        for_bands(EncodeBand::new(x, codes, scales, [1, MX_BLOCK]), 1, bytes, &|band| {
            self.encode_band(stores, band)
        })
    }

    fn encode_band(self, stores: Stores, band: EncodeBand<'_, u8>) -> Result<()> {
        let EncodeBand { first_row, x, codes, scales, .. } = band;
        let isa = Isa::detect();
        let mut largest = [0.0; RUN_BLOCKS];
        let mut factors = [0.0; RUN_BLOCKS];
        for run in runs(&x, MX_BLOCK) {
            let n_blocks = run.x.len() / MX_BLOCK;
            let (largest, factors) = (&mut largest[..n_blocks], &mut factors[..n_blocks]);
            let scales = &mut scales[run.block..][..n_blocks];
            let codes = &mut codes[run.element / 2..][..run.x.len() / 2];
            let first_element = first_row * x.ncols() + run.element;
            let all_finite =
                finite_abs_max(self.non_finite, first_element, run.x, MX_BLOCK, largest)?;
            self.rule.scales_into(isa, run.x, largest, scales);
            reciprocals_into(scales, factors);
            encode_e2m1_blocks_to::<MX_BLOCK>(isa, stores, run.x, factors, codes);
            if !all_finite && self.non_finite == NonFinite::Poison {
                poison(run, codes, scales);
            }
        }
        Ok(())
    }
}

impl ScaleRule {
    /// Scales of the blocks of `x`, whose largest magnitudes are `largest`.
    fn scales_into(self, isa: Isa, x: &[f32], largest: &[f32], scales: &mut [u8]) {
        // What is added to the bits of `amax` carries into the exponent from where the rule begins to round up.
        let carry = match self {
            Self::Floor => 0,
            Self::Even => 0x0020_0000,
            Self::Ceil => 0x007f_ffff,
            Self::RoundUp => 0x003f_ffff,
            Self::MinMse => return min_mse_scales_into(isa, x, largest, scales),
        };
        for (scale, amax) in scales.iter_mut().zip(largest) {
            *scale = (((amax.to_bits() + carry) >> 23) as u8).saturating_sub(2);
        }
    }
}

/// Blocks of which [`min_mse_scales_into`] tries the scales at once: what it needs for them stays in L1 beside the run.
const TRIAL_BLOCKS: usize = 32;

/// Scales by the smaller squared error, of the specification's and the next larger.
fn min_mse_scales_into(isa: Isa, x: &[f32], largest: &[f32], scales: &mut [u8]) {
    let mut trial = Trial {
        factors: [0.0; TRIAL_BLOCKS],
        codes: [0; TRIAL_BLOCKS * MX_BLOCK / 2],
        values: [0.0; TRIAL_BLOCKS * MX_BLOCK],
    };
    let (mut of_floor, mut of_next) = ([0.0; TRIAL_BLOCKS], [0.0; TRIAL_BLOCKS]);
    let blocks = x.chunks(TRIAL_BLOCKS * MX_BLOCK).zip(largest.chunks(TRIAL_BLOCKS));
    for ((x, largest), scales) in blocks.zip(scales.chunks_mut(TRIAL_BLOCKS)) {
        ScaleRule::Floor.scales_into(isa, x, largest, scales);
        trial.squared_errors_into(isa, x, scales, &mut of_floor);
        for scale in &mut *scales {
            *scale += 1;
        }
        trial.squared_errors_into(isa, x, scales, &mut of_next);
        for ((scale, floor), next) in scales.iter_mut().zip(of_floor).zip(of_next) {
            *scale -= u8::from(floor <= next);
        }
    }
}

/// Buffers for encoding some blocks and decoding them again.
struct Trial {
    factors: [f32; TRIAL_BLOCKS],
    codes: [u8; TRIAL_BLOCKS * MX_BLOCK / 2],
    values: [f32; TRIAL_BLOCKS * MX_BLOCK],
}

impl Trial {
    /// What each block loses with its scale, as [`squared_error`].
    fn squared_errors_into(&mut self, isa: Isa, x: &[f32], scales: &[u8], errors: &mut [f64]) {
        let factors = &mut self.factors[..scales.len()];
        let (codes, values) = (&mut self.codes[..x.len() / 2], &mut self.values[..x.len()]);
        reciprocals_into(scales, factors);
        encode_e2m1_blocks_to::<MX_BLOCK>(isa, Stores::Cached, x, factors, codes);
        factors_into(scales, factors);
        decode_e2m1_blocks_to::<MX_BLOCK>(isa, Stores::Cached, codes, factors, values);
        let blocks = x.as_chunks().0.iter().zip(values.as_chunks().0);
        for (error, (x, values)) in errors.iter_mut().zip(blocks) {
            *error = squared_error(x, values);
        }
    }
}

/// Chains of [`squared_error`], which hide the latency of an addition.
const ERROR_LANES: usize = 8;

/// Sum of `(x - value)²` over the elements of a block that are finite: element `i` in lane `i % 8`, then the lanes in
/// order.
fn squared_error(x: &[f32; MX_BLOCK], values: &[f32; MX_BLOCK]) -> f64 {
    let mut sums = [0.0; ERROR_LANES];
    let steps = x.as_chunks::<ERROR_LANES>().0.iter().zip(values.as_chunks::<ERROR_LANES>().0);
    for (x, values) in steps {
        for i in 0..ERROR_LANES {
            // The difference is exact in `f32`: a value is zero, or within a factor of two of what it stands for. The
            // mask is what a branch would be; with one, the compiler does not use vectors.
            let finite = u32::from(x[i].is_finite()).wrapping_neg();
            let error = f64::from(f32::from_bits((x[i] - values[i]).to_bits() & finite));
            sums[i] += error * error;
        }
    }
    sums.into_iter().sum()
}

/// What the elements of each block are multiplied by in decoding.
fn factors_into(scales: &[u8], factors: &mut [f32]) {
    for (factor, &scale) in factors.iter_mut().zip(scales) {
        *factor = E8M0::from_bits(scale).to_f32();
    }
}

/// What the elements of each block are multiplied by in encoding.
fn reciprocals_into(scales: &[u8], factors: &mut [f32]) {
    for (factor, &scale) in factors.iter_mut().zip(scales) {
        *factor = reciprocal(scale);
    }
}

/// `2^(127 - scale)`, exactly; below the normal range for the largest scale.
fn reciprocal(scale: u8) -> f32 {
    E8M0::from_bits(254 - scale.min(254)).to_f32()
}

/// Gives the blocks of a run that hold a NaN or an infinity the scale NaN, and codes of zero.
#[cold]
fn poison(run: Run<'_>, codes: &mut [u8], scales: &mut [u8]) {
    let blocks = run.x.chunks_exact(MX_BLOCK).zip(codes.chunks_exact_mut(MX_BLOCK / 2)).zip(scales);
    for ((_, codes), scale) in blocks.filter(|((x, _), _)| x.iter().any(|x| !x.is_finite())) {
        codes.fill(0);
        *scale = E8M0::NAN.to_bits();
    }
}

impl<C: AsRef<[u8]>, S: AsRef<[u8]>> MxTensor<C, S> {
    /// A matrix of `shape` from its `codes`, `[rows, cols / 2]`, and `scales`, `[rows, cols / 32]`.
    ///
    /// Any bytes are a matrix: all codes and all scales have a meaning.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`], [`Error::Length`] if a buffer is too short or too long, [`Error::TooLarge`].
    pub fn new(format: MxFormat, shape: [usize; 2], codes: C, scales: S) -> Result<Self> {
        let [n_codes, n_scales] = lengths(shape)?;
        Error::check_length("codes", n_codes, codes.as_ref().len())?;
        Error::check_length("scales", n_scales, scales.as_ref().len())?;
        Ok(Self { format, shape, codes, scales })
    }

    /// Format of the elements.
    pub fn format(&self) -> MxFormat {
        self.format
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Two codes per byte, `[rows, cols / 2]`.
    pub fn codes(&self) -> &[u8] {
        self.codes.as_ref()
    }

    /// E8M0 scales, `[rows, cols / 32]`.
    pub fn scales(&self) -> &[u8] {
        self.scales.as_ref()
    }

    /// The same matrix, borrowed.
    pub fn view(&self) -> MxView<'_> {
        MxTensor {
            format: self.format,
            shape: self.shape,
            codes: self.codes(),
            scales: self.scales(),
        }
    }

    /// Bytes of codes and scales.
    pub fn n_bytes(&self) -> usize {
        self.codes().len() + self.scales().len()
    }

    /// Bits per element, the scales included; NaN for an empty matrix.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.n_bytes() as f64 / (2 * self.codes().len()) as f64
    }

    /// The values, `[rows, cols]`.
    pub fn decode(&self) -> Array2<f32> {
        let mut out = Array2::zeros(self.shape);
        self.view().decode_rows(0, out.view_mut());
        out
    }

    /// The values into `out`, `[rows, cols]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], and [`Error::Layout`] if rows of `out` are not contiguous. Then nothing is written.
    pub fn decode_into(&self, out: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_out(self.shape, &out)?;
        self.view().decode_rows(0, out);
        Ok(())
    }

    /// The values of `rows` into `out`, `[rows.len(), cols]`.
    ///
    /// # Errors
    ///
    /// [`Error::Rows`] if there are not so many rows, [`Error::Length`]. Then nothing is written.
    pub fn decode_rows_into(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let out = rows_of(&rows, self.shape, out)?;
        self.view().decode_rows(rows.start, out);
        Ok(())
    }
}

impl MxView<'_> {
    /// The values of the rows from `first_row` on.
    fn decode_rows(self, first_row: usize, out: ArrayViewMut2<'_, f32>) {
        let bytes = size_of::<f32>() * out.len() + out.len() / 2;
        let stores = Stores::for_bytes(bytes);
        decode_rows(first_row, out, true, bytes, |first_row, out| {
            self.decode_line(stores, first_row, out);
        });
    }

    /// The values of whole rows, from `first_row` on, that follow each other in `out`.
    fn decode_line(self, stores: Stores, first_row: usize, out: &mut [f32]) {
        let isa = Isa::detect();
        let first = first_row * self.shape[1];
        let mut factors = [0.0; RUN_BLOCKS];
        let codes = self.codes[first / 2..].chunks(RUN_BLOCKS * MX_BLOCK / 2);
        let scales = self.scales[first / MX_BLOCK..].chunks(RUN_BLOCKS);
        for ((codes, scales), out) in codes.zip(scales).zip(out.chunks_mut(RUN_BLOCKS * MX_BLOCK)) {
            factors_into(scales, &mut factors);
            decode_e2m1_blocks_to::<MX_BLOCK>(isa, stores, &codes[..out.len() / 2], &factors, out);
        }
    }
}

/// Bytes of codes and of scales of a matrix.
pub(crate) fn lengths(shape: [usize; 2]) -> Result<[usize; 2]> {
    if !shape[1].is_multiple_of(MX_BLOCK) {
        return Err(Error::BlockAlign { len: shape[1], block: MX_BLOCK });
    }
    let len = n_elements(shape)?;
    Ok([len / 2, len / MX_BLOCK])
}
