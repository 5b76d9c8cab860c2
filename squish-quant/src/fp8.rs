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
//! [`Fp8Tensor::from_bytes`] takes scales as bytes of any float type.
//!
//! Source: OFP8 1.0; N. Micikevicius et al., arXiv 2209.05433; DeepSeek-V3, arXiv 2412.19437, section 3.3.

use std::ops::Range;

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use squish_kernels::{
    Isa,
    blocks::abs_max_blocks_into,
    cast::{decode_blocks_to, encode_blocks_to},
    element::{E4M3, E5M2, E8M0, Element, Overflow},
    stream::Stores,
};

use crate::{
    band::{
        CastBand, DecodeBand, EncodeBand, RUN_BLOCKS, Run, check_finite, check_out, check_rows,
        check_scales, finite_abs_max, first_non_finite, rows_of, runs,
    },
    error::{Error, Result},
    granularity::{Granularity, NonFinite, n_elements},
    parallel::for_bands,
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
    /// As [`Fp8Quantizer::encode`], [`Error::Length`], [`Error::BadScale`] for scales that are not positive and finite.
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
        if let Some(index) = scales.iter().position(|&scale| !(scale > 0.0 && scale.is_finite())) {
            return Err(Error::BadScale { index, value: scales[index] });
        }
        if self.non_finite == NonFinite::Error {
            check_finite(x)?;
        }
        let codec = Codec::new(self, &x)?;
        let [block_rows, block_cols] = codec.block;
        let n_blocks = codec.cols.div_ceil(block_cols);
        for_bands(
            CastBand { first_row: 0, x, codes },
            block_rows,
            codec.bytes,
            &|CastBand { first_row, x, codes }| {
                let scales = &scales[first_row / block_rows * n_blocks..];
                match self.format {
                    Fp8Format::E4M3 => codec.cast::<E4M3>(&x, scales, codes),
                    Fp8Format::E5M2 => codec.cast::<E5M2>(&x, scales, codes),
                }
                Ok(())
            },
        )
    }

    fn zeros(self, shape: [usize; 2]) -> Result<Fp8Tensor> {
        let codes = vec![0; n_elements(shape)?];
        let scales = vec![0.0; n_elements(self.granularity.scales_shape(shape)?)?];
        Ok(Fp8Tensor { format: self.format, granularity: self.granularity, shape, codes, scales })
    }

    fn check(self, x: &ArrayView2<'_, f32>, n_codes: usize, n_scales: usize) -> Result<()> {
        check_rows("x", x.dim(), x.strides())?;
        Error::check_length("codes", n_elements(x.dim().into())?, n_codes)?;
        Error::check_length(
            "scales",
            n_elements(self.granularity.scales_shape(x.dim().into())?)?,
            n_scales,
        )
    }

    /// Codes and scales of rows whose buffers have been checked. An error leaves them half written.
    fn encode_rows(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [f32],
    ) -> Result<()> {
        let codec = Codec::new(self, &x)?;
        for_bands(
            EncodeBand::new(x, codes, scales, codec.block),
            codec.block[0],
            codec.bytes,
            &|band| match self.format {
                Fp8Format::E4M3 => codec.encode_band::<E4M3>(band),
                Fp8Format::E5M2 => codec.encode_band::<E5M2>(band),
            },
        )
    }
}

impl Fp8Tensor {
    /// A matrix of `shape` from bytes as checkpoints hold them: `codes` are taken over, `scales` may be of any float
    /// type and alignment.
    ///
    /// # Errors
    ///
    /// As [`Fp8Tensor::new`].
    pub fn from_bytes(
        format: Fp8Format,
        granularity: Granularity,
        shape: [usize; 2],
        codes: Vec<u8>,
        scales: ScaleBytes<'_>,
    ) -> Result<Self> {
        Self::new(format, granularity, shape, codes, scales.to_f32())
    }
}

/// Scales as little-endian bytes of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub enum ScaleBytes<'a> {
    /// Four bytes each.
    F32(&'a [u8]),
    /// Two bytes each.
    Bf16(&'a [u8]),
    /// Two bytes each.
    F16(&'a [u8]),
    /// One byte each, powers of two.
    E8M0(&'a [u8]),
}

impl ScaleBytes<'_> {
    /// The scales; bytes after the last whole one are left to the check of their number.
    pub(crate) fn to_f32(self) -> Vec<f32> {
        match self {
            Self::F32(bytes) => {
                bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect()
            }
            Self::Bf16(bytes) => {
                bytes.as_chunks().0.iter().map(|&x| bf16::from_le_bytes(x).to_f32()).collect()
            }
            Self::F16(bytes) => {
                bytes.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x).to_f32()).collect()
            }
            Self::E8M0(bytes) => bytes.iter().map(|&x| E8M0::from_bits(x).to_f32()).collect(),
        }
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
        Error::check_length(
            "scales",
            n_elements(granularity.scales_shape(shape)?)?,
            scales.as_ref().len(),
        )?;
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
        self.decode_rows(0, out.view_mut());
        out
    }

    /// The values into `out`, `[rows, cols]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], and [`Error::Layout`] if rows of `out` are not contiguous. Then nothing is written.
    pub fn decode_into(&self, out: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_out(self.shape, &out)?;
        self.decode_rows(0, out);
        Ok(())
    }

    /// The values of `rows` into `out`, `[rows.len(), cols]`.
    ///
    /// # Errors
    ///
    /// [`Error::Rows`] if there are not so many rows, [`Error::Length`]. Then nothing is written.
    pub fn decode_rows_into(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let out = rows_of(&rows, self.shape, out)?;
        self.decode_rows(rows.start, out);
        Ok(())
    }

    /// The values of the rows from `first_row` on.
    fn decode_rows(&self, first_row: usize, out: ArrayViewMut2<'_, f32>) {
        let tensor = self.view();
        let bytes = 5 * out.len();
        let stores = Stores::for_bytes(bytes);
        for_bands(DecodeBand { first_row, out }, 1, bytes, &|band| {
            match tensor.format {
                Fp8Format::E4M3 => tensor.decode_band::<E4M3>(stores, band),
                Fp8Format::E5M2 => tensor.decode_band::<E5M2>(stores, band),
            }
            Ok(())
        })
        .expect("decoding has no errors");
    }
}

impl Fp8View<'_> {
    fn decode_band<E: Element>(
        self,
        stores: Stores,
        DecodeBand { first_row, mut out }: DecodeBand<'_>,
    ) {
        let isa = Isa::detect();
        let cols = self.shape[1];
        let [block_rows, block_cols] =
            self.granularity.block(self.shape).expect("the granularity was checked");
        let n_blocks = cols.div_ceil(block_cols);
        let codes = bytemuck::cast_slice(&self.codes[first_row * cols..]);
        if let Some(out) = out.as_slice_mut()
            && block_rows == 1
            && cols.is_multiple_of(block_cols)
        {
            return decode_blocks_to::<E>(
                isa,
                stores,
                &codes[..out.len()],
                block_cols,
                &self.scales[first_row * n_blocks..],
                out,
            );
        }
        for (i, (mut out, codes)) in
            out.rows_mut().into_iter().zip(codes.chunks(cols.max(1))).enumerate()
        {
            let scales = &self.scales[(first_row + i) / block_rows * n_blocks..];
            let out = out.as_slice_mut().expect("rows were checked to be contiguous");
            decode_blocks_to::<E>(isa, stores, codes, block_cols, scales, out);
        }
    }
}

/// An encoding call whose arguments have been checked.
#[derive(Clone, Copy)]
struct Codec {
    isa: Isa,
    stores: Stores,
    non_finite: NonFinite,
    block: [usize; 2],
    cols: usize,
    bytes: usize,
}

impl Codec {
    fn new(quantizer: Fp8Quantizer, x: &ArrayView2<'_, f32>) -> Result<Self> {
        let (block, bytes) = (quantizer.granularity.block(x.dim().into())?, 5 * x.len());
        let stores = Stores::for_bytes(bytes);
        Ok(Self {
            isa: Isa::detect(),
            stores,
            non_finite: quantizer.non_finite,
            block,
            cols: x.ncols(),
            bytes,
        })
    }

    /// Makes scales and codes of a band.
    fn encode_band<E: Element>(self, band: EncodeBand<'_, f32>) -> Result<()> {
        let EncodeBand { first_row, x, codes, scales, block: [block_rows, block_cols] } = band;
        if block_rows == 1 {
            for run in runs(&x, block_cols) {
                let scales = &mut scales[run.block..][..run.x.len().div_ceil(block_cols)];
                self.abs_max(first_row * self.cols + run.element, run.x, scales)?;
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
                self.abs_max(
                    first_row * self.cols + first_element + run.element,
                    run.x,
                    run_maxima,
                )?;
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

    /// The largest finite magnitude of each block of a run, or an error if that is asked for.
    fn abs_max(self, first_element: usize, x: &[f32], largest: &mut [f32]) -> Result<()> {
        let block = self.block[1];
        abs_max_blocks_into(x, block, largest);
        if largest.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        if self.non_finite == NonFinite::Error {
            return Err(first_non_finite(first_element, x));
        }
        for (largest, x) in largest.iter_mut().zip(x.chunks(block)) {
            *largest = finite_abs_max(x);
        }
        Ok(())
    }

    /// Codes of rows that share one row of scales, or have one each if blocks have one row.
    fn cast<E: Element>(self, x: &ArrayView2<'_, f32>, scales: &[f32], codes: &mut [u8]) {
        let [block_rows, block_cols] = self.block;
        let n_blocks = self.cols.div_ceil(block_cols).max(1);
        let mut run_scales = [0.0; RUN_BLOCKS];
        for run in runs(x, block_cols) {
            let run_scales = &mut run_scales[..run.x.len().div_ceil(block_cols)];
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
        if self.non_finite == NonFinite::Poison {
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
