//! OCP microscaling: [`MxQuantizer`] and [`MxTensor`].
//!
//! Blocks of 32 elements along a row share a power of two, `2^(X - 127)`, stored as the E8M0 byte `X`:
//!
//! ```text
//! X     = exponent(amax · rule) - emax        clamped to 0..=254; zero blocks have X = 0
//! code  = E(x · 2^(127 - X))                  to nearest, ties to even, saturated
//! value = E value · 2^(X - 127)               X = 255 makes the whole block NaN
//! ```
//!
//! | format | element `E` | largest | `emax` | bits per weight | codes of a row |
//! |---|---|---|---|---|---|
//! | [`MxFormat::MxFp8E4M3`] | E4M3 | 448 | 8 | 8.25 | a byte each, `[cols]` |
//! | [`MxFormat::MxFp8E5M2`] | E5M2 | 57344 | 15 | 8.25 | a byte each, `[cols]` |
//! | [`MxFormat::MxFp6E3M2`] | E3M2 | 28 | 4 | 6.25 | four in three bytes, `[cols / 4 · 3]` |
//! | [`MxFormat::MxFp6E2M3`] | E2M3 | 7.5 | 2 | 6.25 | four in three bytes, `[cols / 4 · 3]` |
//! | [`MxFormat::MxFp4`] | E2M1 | 6 | 2 | 4.25 | two in a byte, `[cols / 2]`; element `2j` is the low half of byte `j` |
//! | [`MxFormat::MxInt8`] | an integer `/ 64` | 127/64 | 0 | 8.25 | a byte each, `[cols]`, in two's complement |
//!
//! Scales are `[rows, cols / 32]`. Codes of six bits are a stream: code `i` takes bits `6i` to `6i + 5`, its lowest bit
//! first, and bit `k` is bit `k % 8` of byte `k / 8`; a block is 24 bytes. No specification orders them; AMD's CDNA4 packs
//! four codes in three bytes too. Encoding leaves the integer -128 unused, as microxcaling and modelopt do, and decoding
//! reads it as -2.
//!
//! The layout of MXFP4 is that of PyTorch's `float4_e2m1fn_x2` with `float8_e8m0fnu` scales (torchao), and of the `*_blocks`
//! and `*_scales` tensors of gpt-oss; [`crate::ggml`] repacks to and from the 17-byte blocks of ggml. MXFP8 is that of
//! torchao, which keeps codes of six bits in a byte each. Decoding is the same for all; what differs between tools is the
//! scale, chosen by [`ScaleRule`]. For the block's largest magnitude `amax = 1.f · 2^e`, elements with `M` bits of mantissa
//! (6 for integers) and the largest element `max`:
//!
//! | rule | `X - 127` | tools |
//! |---|---|---|
//! | `Floor` | `e - emax` | the specification, ggml, torchao's default |
//! | `Even` | `e - emax`, plus 1 where `1.f` rounds up to 2 with `M` bits (`1.f ≥ 2 - 2^-(M + 1)`) | compressed-tensors, torchao |
//! | `Ceil` | `e - emax`, plus 1 unless `1.f = 1` | torchao |
//! | `RoundUp` | `⌈log2(amax / max)⌉`: the smallest without saturation | NVIDIA (RCEIL), modelopt |
//! | `MinMse` | that of `e - emax` and one more with the smaller squared error, summed in `f64`; the smaller of equals | ours |
//!
//! Exponents are read from the bits, never from a rounded logarithm, and are those of subnormals too; all but the
//! largest of these give `X = 0`. Values next to `f32::MAX` that round up to 2^128 decode to infinity.
//!
//! Source: OCP Microscaling Formats (MX) 1.0, sections 5.3 and 6.3; B. D. Rouhani et al., arXiv 2310.10537.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use squish_kernels::{element::E8M0, stream::Stores};

use crate::{
    band::{
        EncodeBand, RUN_BLOCKS, Run, check_finite, check_out, check_rows, decode_rows,
        finite_abs_max, rows_of, runs,
    },
    error::{Error, Result},
    granularity::NonFinite,
    parallel::for_bands,
};
use coder::Coder;
pub use format::MxFormat;
pub use scale::ScaleRule;

mod coder;
mod format;
mod scale;

/// Elements that share a scale.
pub const MX_BLOCK: usize = 32;

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
        let [n_codes, n_scales] = self.format.lengths(shape)?;
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

    /// [`MxQuantizer::encode`] into `codes` and `scales`, `[rows, cols / 32]`. Allocates nothing.
    ///
    /// Rows of `codes` are as long as the [module](self) says: `[rows, cols / 2]` for MXFP4.
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
        let [n_codes, n_scales] = self.format.lengths(x.dim().into())?;
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
        let (format, block_bytes) = (self.format, self.format.block_bytes());
        let mut coder = Coder::new(format, stores);
        let mut largest = [0.0; RUN_BLOCKS];
        for run in runs(&x, MX_BLOCK) {
            let n_blocks = run.x.len() / MX_BLOCK;
            let largest = &mut largest[..n_blocks];
            let scales = &mut scales[run.block..][..n_blocks];
            let codes = &mut codes[run.block * block_bytes..][..n_blocks * block_bytes];
            let first_element = first_row * x.ncols() + run.element;
            let all_finite =
                finite_abs_max(self.non_finite, first_element, run.x, MX_BLOCK, largest)?;
            self.rule.scales_into(format, run.x, largest, scales);
            coder.encode(run.x, scales, codes);
            if !all_finite && self.non_finite == NonFinite::Poison {
                poison(run, block_bytes, codes, scales);
            }
        }
        Ok(())
    }
}

/// Gives the blocks of a run that hold a NaN or an infinity the scale NaN, and codes of zero.
#[cold]
fn poison(run: Run<'_>, block_bytes: usize, codes: &mut [u8], scales: &mut [u8]) {
    let blocks = run.x.chunks_exact(MX_BLOCK).zip(codes.chunks_exact_mut(block_bytes)).zip(scales);
    for ((_, codes), scale) in blocks.filter(|((x, _), _)| x.iter().any(|x| !x.is_finite())) {
        codes.fill(0);
        *scale = E8M0::NAN.to_bits();
    }
}

impl<C: AsRef<[u8]>, S: AsRef<[u8]>> MxTensor<C, S> {
    /// A matrix of `shape` from its `codes`, with rows as the [module](self) says, and `scales`, `[rows, cols / 32]`.
    ///
    /// Any bytes are a matrix: all codes and all scales have a meaning.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`], [`Error::Length`] if a buffer is too short or too long, [`Error::TooLarge`].
    pub fn new(format: MxFormat, shape: [usize; 2], codes: C, scales: S) -> Result<Self> {
        let [n_codes, n_scales] = format.lengths(shape)?;
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

    /// The codes, in rows as the [module](self) says.
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
        let [rows, cols] = self.shape;
        8.0 * self.n_bytes() as f64 / (rows * cols) as f64
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
        let bytes = size_of::<f32>() * out.len() + out.len() / 8 * self.format.code_bits();
        let stores = Stores::for_bytes(bytes);
        decode_rows(first_row, out, true, bytes, |first_row, out| {
            self.decode_line(stores, first_row, out);
        });
    }

    /// The values of whole rows, from `first_row` on, that follow each other in `out`.
    fn decode_line(self, stores: Stores, first_row: usize, out: &mut [f32]) {
        let block_bytes = self.format.block_bytes();
        let first_block = first_row * (self.shape[1] / MX_BLOCK);
        let mut coder = Coder::new(self.format, stores);
        let codes = self.codes[first_block * block_bytes..].chunks(RUN_BLOCKS * block_bytes);
        let scales = self.scales[first_block..].chunks(RUN_BLOCKS);
        for ((codes, scales), out) in codes.zip(scales).zip(out.chunks_mut(RUN_BLOCKS * MX_BLOCK)) {
            let n_blocks = out.len() / MX_BLOCK;
            coder.decode(&codes[..n_blocks * block_bytes], &scales[..n_blocks], out);
        }
    }
}
