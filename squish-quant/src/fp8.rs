//! FP8 with `f32` scales: [`Fp8Quantizer`] and [`Fp8Tensor`].
//!
//! ```text
//! scale = max(amax, 2^-126 · MAX) / MAX      amax: largest finite |x| of the elements that share the scale; 1 if amax = 0
//! code  = E(x · (1 / scale))                  one f32 product, rounded to the nearest code, ties to even, saturated
//! value = f32(code) · scale                   one f32 product
//! ```
//!
//! `MAX` is 448 for E4M3 and 57344 for E5M2; [`Granularity`] says which elements share a scale. PyTorch and vLLM
//! multiply by the reciprocal as well; dividing by the scale differs in the last place of rare ties.
//!
//! | layout in checkpoints | codes | scales | here |
//! |---|---|---|---|
//! | compressed-tensors `float-quantized`, per channel | `weight`: `F8_E4M3` `[rows, cols]` | `weight_scale`: `[rows, 1]`, BF16 or F32 | `Channel` |
//! | compressed-tensors, per tensor | the same | `weight_scale`: `[1]` | `Tensor` |
//! | DeepSeek-V3, Qwen3 FP8 | `F8_E4M3` `[rows, cols]` | `weight_scale_inv`: F32 `[⌈rows / 128⌉, ⌈cols / 128⌉]` | `Block2d` |
//!
//! `weight_scale_inv` multiplies, despite its name. [`Fp8View`] reads codes and `f32` scales where they lie;
//! [`Fp8Tensor::from_bytes`] takes scales as bytes of any float type, and reads the codes where they lie, too.
//!
//! Source: OFP8 1.0; N. Micikevicius et al., arXiv 2209.05433; DeepSeek-V3, arXiv 2412.19437, section 3.3.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use squish_kernels::{
    Isa,
    cast::{decode_blocks_to, encode_blocks_to},
    element::{E4M3, E5M2, Element, Overflow},
    stream::Stores,
};

use crate::{
    band::{
        CastBand, EncodeBand, RUN_BLOCKS, Run, check_divisors, check_finite, check_out, check_rows,
        check_scales, decode_rows, finite_abs_max, finite_abs_max_of_all, rows_of, runs,
    },
    error::{Error, Result},
    granularity::{Granularity, NonFinite, n_elements},
    parallel::for_bands,
    scales::ScaleBytes,
};

/// Which FP8 format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fp8Format {
    /// Largest value 448, three bits of mantissa, NaN but no infinity: weights and activations.
    #[default]
    E4M3,
    /// Largest value 57344, two bits of mantissa, NaN and infinities: the range of `f16`.
    E5M2,
}

impl Fp8Format {
    /// Largest finite value.
    #[must_use]
    pub const fn max(self) -> f32 {
        match self {
            Self::E4M3 => E4M3::MAX,
            Self::E5M2 => E5M2::MAX,
        }
    }

    /// The specification's name, lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::E4M3 => E4M3::NAME,
            Self::E5M2 => E5M2::NAME,
        }
    }
}

/// How to make an [`Fp8Tensor`]. Default: E4M3, one scale per row, non-finite inputs refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fp8Quantizer {
    /// Format of the codes.
    pub format: Fp8Format,
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// What to make of NaN and infinities.
    pub non_finite: NonFinite,
}

impl Default for Fp8Quantizer {
    fn default() -> Self {
        Self {
            format: Fp8Format::E4M3,
            granularity: Granularity::Channel,
            non_finite: NonFinite::Error,
        }
    }
}

/// A matrix in FP8, with all that decoding it needs. `C` and `S` own or borrow codes and scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fp8Tensor<C = Vec<u8>, S = Vec<f32>> {
    format: Fp8Format,
    granularity: Granularity,
    shape: [usize; 2],
    codes: C,
    scales: S,
}

/// A matrix in FP8 over somebody else's bytes.
pub type Fp8View<'a> = Fp8Tensor<&'a [u8], &'a [f32]>;

impl Fp8Quantizer {
    /// `x` in FP8, with scales made from it.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] as the quantizer says, [`Error::ZeroBlock`].
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::{Fp8Quantizer, ndarray::array};
    ///
    /// let weight = array![[0.5, -448.0, 3.25], [1e-3, 2e-3, -7e-3]];
    /// let tensor = Fp8Quantizer::default().encode(weight.view())?;
    /// assert_eq!(tensor.scales(), [1.0, 7e-3 / 448.0]);
    /// assert_eq!(tensor.codes()[..3], [0x30, 0xfe, 0x45]); // 0.5, -448, 3.25
    /// assert_eq!(tensor.decode().row(0), array![0.5, -448.0, 3.25]);
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn encode(self, x: ArrayView2<'_, f32>) -> Result<Fp8Tensor> {
        let mut tensor = self.zeros(x.dim().into())?;
        let x = x.as_standard_layout();
        self.encode_rows(x.view(), &mut tensor.codes, &mut tensor.scales)?;
        Ok(tensor)
    }

    /// [`Fp8Quantizer::encode`] into `codes` of `[rows, cols]` and `scales` of
    /// [`scales_shape`](Granularity::scales_shape). Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`Fp8Quantizer::encode`], [`Error::Length`], and [`Error::Layout`] if rows of `x` are not contiguous. Then
    /// nothing is written.
    pub fn encode_into(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [f32],
    ) -> Result<()> {
        self.check(&x, codes.len(), scales.len())?;
        if self.non_finite == NonFinite::Error {
            check_finite(x)?;
        }
        self.encode_rows(x, codes, scales)
    }

    /// `x` in FP8 with the given scales, saturated: for scales that were calibrated or are static.
    ///
    /// # Errors
    ///
    /// As [`Fp8Quantizer::encode`], [`Error::Length`], [`Error::BadScale`] for scales that are not positive and finite,
    /// or so small that their reciprocal is infinite.
    pub fn encode_with_scales(self, x: ArrayView2<'_, f32>, scales: &[f32]) -> Result<Fp8Tensor> {
        let mut tensor = self.zeros(x.dim().into())?;
        let x = x.as_standard_layout();
        self.encode_with_scales_into(x.view(), scales, &mut tensor.codes)?;
        tensor.scales.copy_from_slice(scales);
        Ok(tensor)
    }

    /// [`Fp8Quantizer::encode_with_scales`] into `codes` of `[rows, cols]`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`Fp8Quantizer::encode_with_scales`], and [`Error::Layout`]. Then nothing is written.
    pub fn encode_with_scales_into(
        self,
        x: ArrayView2<'_, f32>,
        scales: &[f32],
        codes: &mut [u8],
    ) -> Result<()> {
        self.check(&x, codes.len(), scales.len())?;
        check_divisors(scales)?;
        if self.non_finite == NonFinite::Error {
            check_finite(x)?;
        }
        let codec = Codec::new(self, &x)?;
        match self.format {
            Fp8Format::E4M3 => codec.cast_rows::<E4M3>(x, scales, codes),
            Fp8Format::E5M2 => codec.cast_rows::<E5M2>(x, scales, codes),
        }
    }

    fn zeros(self, shape: [usize; 2]) -> Result<Fp8Tensor> {
        let codes = vec![0; n_elements(shape)?];
        let scales = vec![0.0; self.granularity.n_scales(shape)?];
        Ok(Fp8Tensor { format: self.format, granularity: self.granularity, shape, codes, scales })
    }

    fn check(self, x: &ArrayView2<'_, f32>, n_codes: usize, n_scales: usize) -> Result<()> {
        check_rows("x", x.dim(), x.strides())?;
        Error::check_length("codes", n_elements(x.dim().into())?, n_codes)?;
        Error::check_length("scales", self.granularity.n_scales(x.dim().into())?, n_scales)
    }

    /// Codes and scales of rows whose buffers have been checked. An error leaves them half written.
    fn encode_rows(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [f32],
    ) -> Result<()> {
        let codec = Codec::new(self, &x)?;
        match self.format {
            Fp8Format::E4M3 => codec.encode::<E4M3>(x, codes, scales),
            Fp8Format::E5M2 => codec.encode::<E5M2>(x, codes, scales),
        }
    }
}

impl<C: AsRef<[u8]>> Fp8Tensor<C> {
    /// A matrix of `shape` from bytes as checkpoints hold them: `codes` are taken over or borrowed, `scales` may be of
    /// any float type and alignment.
    ///
    /// # Errors
    ///
    /// As [`Fp8Tensor::new`].
    pub fn from_bytes(
        format: Fp8Format,
        granularity: Granularity,
        shape: [usize; 2],
        codes: C,
        scales: ScaleBytes<'_>,
    ) -> Result<Self> {
        let scales = scales.to_f32(granularity.n_scales(shape)?)?;
        Self::new(format, granularity, shape, codes, scales)
    }
}

impl<C: AsRef<[u8]>, S: AsRef<[f32]>> Fp8Tensor<C, S> {
    /// A matrix of `shape` from its `codes`, `[rows, cols]`, and `scales`, of
    /// [`scales_shape`](Granularity::scales_shape).
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if a buffer is too short or too long, [`Error::BadScale`] for a scale that is NaN, infinite or
    /// negative, [`Error::ZeroBlock`], [`Error::TooLarge`].
    pub fn new(
        format: Fp8Format,
        granularity: Granularity,
        shape: [usize; 2],
        codes: C,
        scales: S,
    ) -> Result<Self> {
        Error::check_length("codes", n_elements(shape)?, codes.as_ref().len())?;
        Error::check_length("scales", granularity.n_scales(shape)?, scales.as_ref().len())?;
        check_scales(scales.as_ref())?;
        Ok(Self { format, granularity, shape, codes, scales })
    }

    /// Format of the codes.
    pub fn format(&self) -> Fp8Format {
        self.format
    }

    /// Which elements share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// One byte per element, `[rows, cols]`.
    pub fn codes(&self) -> &[u8] {
        self.codes.as_ref()
    }

    /// The scales, of [`scales_shape`](Granularity::scales_shape).
    pub fn scales(&self) -> &[f32] {
        self.scales.as_ref()
    }

    /// The same matrix, borrowed.
    pub fn view(&self) -> Fp8View<'_> {
        let Self { format, granularity, shape, codes, scales } = self;
        Fp8Tensor {
            format: *format,
            granularity: *granularity,
            shape: *shape,
            codes: codes.as_ref(),
            scales: scales.as_ref(),
        }
    }

    /// Bytes of codes and scales.
    pub fn n_bytes(&self) -> usize {
        self.codes().len() + size_of_val(self.scales())
    }

    /// Bits per element, the scales included; NaN for an empty matrix.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.n_bytes() as f64 / self.codes().len() as f64
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

impl Fp8View<'_> {
    /// The values of the rows from `first_row` on.
    fn decode_rows(self, first_row: usize, out: ArrayViewMut2<'_, f32>) {
        let bytes = 5 * out.len();
        let stores = Stores::for_bytes(bytes);
        let joined = self.granularity.joins_rows(self.shape);
        decode_rows(first_row, out, joined, bytes, |first_row, out| match self.format {
            Fp8Format::E4M3 => self.decode_line::<E4M3>(stores, first_row, out),
            Fp8Format::E5M2 => self.decode_line::<E5M2>(stores, first_row, out),
        });
    }

    /// The values of a row, or of several that are joined, from `first_row` on.
    fn decode_line<E: Element>(self, stores: Stores, first_row: usize, out: &mut [f32]) {
        let codes = &self.codes[first_row * self.shape[1]..][..out.len()];
        let (block, first) = self.granularity.line(self.shape, first_row, out.len());
        decode_blocks_to::<E>(
            Isa::detect(),
            stores,
            bytemuck::cast_slice(codes),
            block,
            &self.scales[first..],
            out,
        );
    }
}

/// An encoding call whose arguments have been checked.
#[derive(Clone, Copy)]
struct Codec {
    isa: Isa,
    stores: Stores,
    quantizer: Fp8Quantizer,
    block: [usize; 2],
    cols: usize,
    bytes: usize,
}

impl Codec {
    fn new(quantizer: Fp8Quantizer, x: &ArrayView2<'_, f32>) -> Result<Self> {
        let (block, bytes) = (quantizer.granularity.block(x.dim().into())?, 5 * x.len());
        Ok(Self {
            isa: Isa::detect(),
            stores: Stores::for_bytes(bytes),
            quantizer,
            block,
            cols: x.ncols(),
            bytes,
        })
    }

    /// Codes and scales of rows. An error leaves them half written.
    fn encode<E: Element>(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [f32],
    ) -> Result<()> {
        if self.quantizer.granularity == Granularity::Tensor {
            self.tensor_scale::<E>(x, scales)?;
            return self.cast_rows::<E>(x, scales, codes);
        }
        let band = EncodeBand::new(x, codes, scales, self.block);
        for_bands(band, self.block[0], self.bytes, &|band| self.encode_band::<E>(band))
    }

    /// Codes of rows, with scales that are there.
    fn cast_rows<E: Element>(
        self,
        x: ArrayView2<'_, f32>,
        scales: &[f32],
        codes: &mut [u8],
    ) -> Result<()> {
        let [block_rows, block_cols] = self.block;
        let n_blocks = self.cols.div_ceil(block_cols);
        // The one scale of a tensor is at hand wherever its rows are split.
        let is_tensor = self.quantizer.granularity == Granularity::Tensor;
        let unit = if is_tensor { 1 } else { block_rows };
        for_bands(
            CastBand { first_row: 0, x, codes },
            unit,
            self.bytes,
            &|CastBand { first_row, x, codes }| {
                self.cast::<E>(&x, &scales[first_row / block_rows * n_blocks..], codes);
                Ok(())
            },
        )
    }

    /// Makes the one scale of a matrix, if it has any elements.
    fn tensor_scale<E: Element>(self, x: ArrayView2<'_, f32>, scales: &mut [f32]) -> Result<()> {
        scales.fill(finite_abs_max_of_all(self.quantizer.non_finite, x)?);
        scales.iter_mut().for_each(to_scale::<E>);
        Ok(())
    }

    /// Makes scales and codes of a band.
    fn encode_band<E: Element>(self, band: EncodeBand<'_, f32>) -> Result<()> {
        let EncodeBand { first_row, x, codes, scales, block: [block_rows, block_cols], .. } = band;
        if block_rows == 1 {
            for run in runs(&x, block_cols) {
                let scales = &mut scales[run.block..][..run.x.len().div_ceil(block_cols)];
                self.abs_max(first_row * self.cols + run.element, run.x, block_cols, scales)?;
                scales.iter_mut().for_each(to_scale::<E>);
                self.cast_run::<E>(run, scales, &mut codes[run.element..]);
            }
            return Ok(());
        }
        let n_blocks = self.cols.div_ceil(block_cols).max(1);
        let mut run_maxima = [0.0; RUN_BLOCKS];
        for (i, (x, scales)) in
            x.axis_chunks_iter(Axis(0), block_rows).zip(scales.chunks_mut(n_blocks)).enumerate()
        {
            let first_element = i * block_rows * self.cols;
            scales.fill(0.0);
            for run in runs(&x, block_cols) {
                let run_maxima = &mut run_maxima[..run.x.len().div_ceil(block_cols)];
                let first_element = first_row * self.cols + first_element + run.element;
                self.abs_max(first_element, run.x, block_cols, run_maxima)?;
                for (j, &largest) in run_maxima.iter().enumerate() {
                    let scale = &mut scales[(run.block + j) % n_blocks];
                    *scale = scale.max(largest);
                }
            }
            scales.iter_mut().for_each(to_scale::<E>);
            self.cast::<E>(&x, scales, &mut codes[first_element..]);
        }
        Ok(())
    }

    /// The largest finite magnitude of each block of `x`, or an error if that is asked for.
    fn abs_max(
        self,
        first_element: usize,
        x: &[f32],
        block: usize,
        largest: &mut [f32],
    ) -> Result<()> {
        finite_abs_max(self.quantizer.non_finite, first_element, x, block, largest).map(drop)
    }

    /// Codes of rows that share one row of scales, or have one each if blocks have one row.
    fn cast<E: Element>(self, x: &ArrayView2<'_, f32>, scales: &[f32], codes: &mut [u8]) {
        let [block_rows, block_cols] = self.block;
        let n_blocks = self.cols.div_ceil(block_cols).max(1);
        let mut run_scales = [0.0; RUN_BLOCKS];
        for run in runs(x, block_cols) {
            let run_scales = &mut run_scales[..run.x.len().div_ceil(block_cols)];
            if block_rows == 1 {
                let scales = &scales[run.block..][..run_scales.len()];
                self.cast_run::<E>(run, scales, &mut codes[run.element..]);
                continue;
            }
            for (j, scale) in run_scales.iter_mut().enumerate() {
                let block = run.block + j;
                *scale = scales[block / n_blocks / block_rows * n_blocks + block % n_blocks];
            }
            self.cast_run::<E>(run, run_scales, &mut codes[run.element..]);
        }
    }

    /// Codes of a run, with one scale per block.
    fn cast_run<E: Element>(self, run: Run<'_>, scales: &[f32], codes: &mut [u8]) {
        let mut factors = [0.0; RUN_BLOCKS];
        for (factor, scale) in factors.iter_mut().zip(scales) {
            *factor = scale.recip();
        }
        let codes: &mut [E] = bytemuck::cast_slice_mut(&mut codes[..run.x.len()]);
        encode_blocks_to(
            self.isa,
            self.stores,
            run.x,
            self.block[1],
            &factors[..scales.len()],
            codes,
            Overflow::Saturate,
        );
        if self.quantizer.non_finite == NonFinite::Poison {
            for (x, code) in run.x.iter().zip(codes).filter(|(x, _)| !x.is_finite()) {
                *code = E::from_f32(*x, Overflow::Ieee);
            }
        }
    }
}

/// The largest magnitude of some elements to their scale, of which the reciprocal is finite.
fn to_scale<E: Element>(x: &mut f32) {
    *x = if *x == 0.0 { 1.0 } else { (*x / E::MAX).max(f32::MIN_POSITIVE) };
}
