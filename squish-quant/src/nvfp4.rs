//! NVFP4: [`NvFp4Quantizer`] and [`NvFp4Tensor`].
//!
//! Blocks of 16 elements along a row share a scale in E4M3, and all blocks share one `f32`, `g`:
//!
//! ```text
//! g     = amax / 2688                        largest finite |x|, over 448 · 6; at least 2^-117; 1 if amax = 0
//! s     = E4M3(amax of the block / 6 / g)    to nearest, ties to even, saturated
//! code  = E2M1(x · (1 / (s · g)))            each operation rounded to f32; zero in blocks with s = 0
//! value = E2M1 value · (s · g)               two f32 products
//! ```
//!
//! | part | bytes of a row | bits per weight |
//! |---|---|---|
//! | codes | two in a byte, `[cols / 2]`; element `2j` is the low half of byte `j` | 4 |
//! | block scales | a byte each, `[cols / 16]` | 0.5 |
//!
//! Checkpoints disagree about what the `f32` does, so that a [`GlobalScale`] says it:
//!
//! | layout | codes | block scales | `f32` |
//! |---|---|---|---|
//! | modelopt | `weight`: U8 | `weight_scale`: `F8_E4M3` | `weight_scale_2`: [`GlobalScale::Multiply`] by `g` |
//! | compressed-tensors `nvfp4-pack-quantized` | `weight_packed`: U8 | `weight_scale`: `F8_E4M3` | `weight_global_scale`: [`GlobalScale::Divide`] by `1 / g` |
//! | torchao | `qdata` | `scale` | `per_tensor_scale`: `Multiply` |
//! | ggml | [`crate::ggml`]'s blocks of 64 | in the block | a tensor of its own: `Multiply` |
//!
//! A divisor `d = 2688 / amax` takes the place of `g` in the same way: `s = E4M3(amax of the block / 6 · d)`, `value = E2M1
//! value · (s / d)`. Decoding is that of all these tools, bit for bit. Encoding differs at its edges: a block of zeros has
//! the scale byte `0x00` here and in ggml, `0x08` in torchao, which clamps scales to the smallest normal number, and
//! `0x38` in modelopt; and with tools that divide by the scale, in the last place of rare ties. Scales have no sign in use;
//! decoding takes one as E4M3 has it.
//!
//! Source: NVIDIA, "Introducing NVFP4" (2025); the named tools' code for their layouts.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use squish_kernels::{
    Isa,
    cast::{decode_blocks_to, encode_blocks_to},
    element::{E2M1, E4M3, Element, Overflow},
    nibble::{decode_e2m1_blocks_to, encode_e2m1_blocks_to},
    stream::Stores,
};

use crate::{
    band::{
        EncodeBand, RUN_BLOCKS, Run, check_finite, check_out, check_rows, decode_rows,
        finite_abs_max, finite_abs_max_of_all, rows_of, runs,
    },
    error::{Error, Result},
    granularity::{NonFinite, n_elements},
    parallel::for_bands,
};

/// Elements that share a block scale.
pub const NVFP4_BLOCK: usize = 16;

/// The `f32` that all blocks share, and what decoding does with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GlobalScale {
    /// Block scales are multiplied by it: modelopt, torchao, ggml.
    Multiply(f32),
    /// Block scales are divided by it: compressed-tensors.
    Divide(f32),
}

/// Which [`GlobalScale`] encoding makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GlobalDirection {
    /// A factor: modelopt, torchao, ggml.
    #[default]
    Multiply,
    /// A divisor: compressed-tensors.
    Divide,
}

/// How to make an [`NvFp4Tensor`]. Default: a factor for all blocks, non-finite inputs refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NvFp4Quantizer {
    /// What the `f32` of the tensor is.
    pub direction: GlobalDirection,
    /// What to make of NaN and infinities. [`NonFinite::Poison`] gives their block the scale NaN;
    /// [`NonFinite::Saturate`] makes infinities the largest value of their block, which is zero where nothing else is in it.
    pub non_finite: NonFinite,
}

/// A matrix in NVFP4. `C` and `S` own or borrow codes and block scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NvFp4Tensor<C = Vec<u8>, S = Vec<u8>> {
    shape: [usize; 2],
    codes: C,
    scales: S,
    global: GlobalScale,
}

/// A matrix in NVFP4 over somebody else's bytes.
pub type NvFp4View<'a> = NvFp4Tensor<&'a [u8], &'a [u8]>;

impl GlobalScale {
    /// The number, whatever it does.
    #[must_use]
    pub const fn value(self) -> f32 {
        match self {
            Self::Multiply(value) | Self::Divide(value) => value,
        }
    }

    /// That of a matrix with this largest magnitude.
    fn of(direction: GlobalDirection, amax: f32) -> Self {
        let amax = if amax == 0.0 { LARGEST } else { amax.max(LEAST_AMAX) };
        match direction {
            GlobalDirection::Multiply => Self::Multiply(amax / LARGEST),
            GlobalDirection::Divide => Self::Divide(LARGEST / amax),
        }
    }

    /// What the elements of a block with this scale are multiplied by.
    fn total(self, scale: f32) -> f32 {
        match self {
            Self::Multiply(factor) => scale * factor,
            Self::Divide(divisor) => scale / divisor,
        }
    }

    /// The scale of a block with this largest magnitude, before it is rounded to E4M3.
    fn scale_of(self, amax: f32) -> f32 {
        match self {
            Self::Multiply(factor) => amax / E2M1::MAX / factor,
            Self::Divide(divisor) => amax / E2M1::MAX * divisor,
        }
    }

    /// `Ok` if every scale decodes to a number.
    fn check_decodes(self) -> Result<()> {
        let value = self.value();
        let decodes = match self {
            Self::Multiply(factor) => factor >= 0.0,
            Self::Divide(divisor) => divisor > 0.0,
        };
        if decodes && value.is_finite() { Ok(()) } else { Err(Error::BadScale { index: 0, value }) }
    }

    /// `Ok` if the reciprocals of what all scales but zero stand for are normal numbers.
    fn check_encodes(self) -> Result<()> {
        let normal = self.total(LEAST_SCALE) >= f32::MIN_POSITIVE;
        if normal && self.total(E4M3::MAX).is_finite() {
            Ok(())
        } else {
            Err(Error::BadScale { index: 0, value: self.value() })
        }
    }
}

/// The largest scale times the largest element.
const LARGEST: f32 = E4M3::MAX * E2M1::MAX;

/// The smallest scale but zero, 2^-9.
const LEAST_SCALE: f32 = 1.0 / 512.0;

/// Magnitude below which matrices have the scale of one that reaches it: the smallest block scale times theirs is the
/// smallest normal number.
const LEAST_AMAX: f32 = LARGEST * (f32::MIN_POSITIVE / LEAST_SCALE);

impl NvFp4Quantizer {
    /// `x`, `[rows, cols]`, quantized with scales made from it.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`] if `cols` is no multiple of 16, [`Error::NonFinite`] as the quantizer says.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::{GlobalScale, NvFp4Quantizer, ndarray::Array2};
    ///
    /// let weight = Array2::from_shape_fn([2, 32], |(row, col)| (row * 32 + col) as f32 - 21.0);
    /// let tensor = NvFp4Quantizer::default().encode(weight.view())?;
    /// assert_eq!(tensor.global(), GlobalScale::Multiply(42.0 / 2688.0)); // 2^-6
    /// assert_eq!(tensor.scales(), [0x76, 0x6d, 0x79, 0x7e]); // 224, 104, 288, 448
    /// assert_eq!(tensor.decode()[[0, 0]], -21.0);
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn encode(self, x: ArrayView2<'_, f32>) -> Result<NvFp4Tensor> {
        let [n_codes, n_scales] = lengths(x.dim().into())?;
        let x = x.as_standard_layout();
        let global = self.global_of(x.view())?;
        let (mut codes, mut scales) = (vec![0; n_codes], vec![0; n_scales]);
        self.encode_rows(x.view(), global, &mut codes, &mut scales)?;
        Ok(NvFp4Tensor { shape: x.dim().into(), codes, scales, global })
    }

    /// [`NvFp4Quantizer::encode`] into `codes`, `[rows, cols / 2]`, and `scales`, `[rows, cols / 16]`; the scale of the tensor
    /// is returned. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`NvFp4Quantizer::encode`], [`Error::Length`], and [`Error::Layout`] if rows of `x` are not contiguous. Then
    /// nothing is written.
    pub fn encode_into(
        self,
        x: ArrayView2<'_, f32>,
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Result<GlobalScale> {
        check(&x, codes.len(), scales.len())?;
        let global = self.global_of(x)?;
        self.encode_rows(x, global, codes, scales)?;
        Ok(global)
    }

    /// `x`, `[rows, cols]`, quantized with a scale of the tensor that is there: calibrated, or shared by several matrices.
    /// Blocks that it is too small for saturate.
    ///
    /// # Errors
    ///
    /// As [`NvFp4Quantizer::encode`], and [`Error::BadScale`] if `global` is not positive, or so small or large that block
    /// scales times it have no finite reciprocal.
    pub fn encode_with_global(
        self,
        x: ArrayView2<'_, f32>,
        global: GlobalScale,
    ) -> Result<NvFp4Tensor> {
        let [n_codes, n_scales] = lengths(x.dim().into())?;
        global.check_encodes()?;
        let x = x.as_standard_layout();
        let (mut codes, mut scales) = (vec![0; n_codes], vec![0; n_scales]);
        self.encode_rows(x.view(), global, &mut codes, &mut scales)?;
        Ok(NvFp4Tensor { shape: x.dim().into(), codes, scales, global })
    }

    /// [`NvFp4Quantizer::encode_with_global`] into `codes`, `[rows, cols / 2]`, and `scales`, `[rows, cols / 16]`. Allocates
    /// nothing.
    ///
    /// # Errors
    ///
    /// As [`NvFp4Quantizer::encode_with_global`] and [`NvFp4Quantizer::encode_into`]. Then nothing is written.
    pub fn encode_with_global_into(
        self,
        x: ArrayView2<'_, f32>,
        global: GlobalScale,
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Result<()> {
        check(&x, codes.len(), scales.len())?;
        global.check_encodes()?;
        if self.non_finite == NonFinite::Error {
            check_finite(x)?;
        }
        self.encode_rows(x, global, codes, scales)
    }

    /// The scale of a matrix, or an error if it is not finite and that is asked for.
    fn global_of(self, x: ArrayView2<'_, f32>) -> Result<GlobalScale> {
        Ok(GlobalScale::of(self.direction, finite_abs_max_of_all(self.non_finite, x)?))
    }

    /// Codes and scales of rows whose buffers have been checked. An error leaves them half written.
    fn encode_rows(
        self,
        x: ArrayView2<'_, f32>,
        global: GlobalScale,
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Result<()> {
        let bytes = size_of::<f32>() * x.len() + codes.len() + scales.len();
        let stores = Stores::for_bytes(bytes);
        for_bands(EncodeBand::new(x, codes, scales, [1, NVFP4_BLOCK]), 1, bytes, &|band| {
            self.encode_band(global, stores, band)
        })
    }

    fn encode_band(
        self,
        global: GlobalScale,
        stores: Stores,
        band: EncodeBand<'_, u8>,
    ) -> Result<()> {
        let EncodeBand { first_row, x, codes, scales, .. } = band;
        let isa = Isa::detect();
        let mut largest = [0.0; RUN_BLOCKS];
        for run in runs(&x, NVFP4_BLOCK) {
            let n_blocks = run.x.len() / NVFP4_BLOCK;
            let largest = &mut largest[..n_blocks];
            let scales = &mut scales[run.block..][..n_blocks];
            let codes = &mut codes[run.element / 2..][..run.x.len() / 2];
            let first_element = first_row * x.ncols() + run.element;
            let all_finite =
                finite_abs_max(self.non_finite, first_element, run.x, NVFP4_BLOCK, largest)?;
            for x in &mut *largest {
                *x = global.scale_of(*x);
            }
            encode_blocks_to::<E4M3>(
                isa,
                Stores::Cached,
                largest,
                n_blocks,
                &[1.0],
                bytemuck::cast_slice_mut(scales),
                Overflow::Saturate,
            );
            let factors = largest;
            factors_into(isa, global, scales, factors);
            for factor in &mut *factors {
                *factor = if *factor == 0.0 { 0.0 } else { factor.recip() };
            }
            encode_e2m1_blocks_to::<NVFP4_BLOCK>(isa, stores, run.x, factors, codes);
            if !all_finite && self.non_finite == NonFinite::Poison {
                poison(run, codes, scales);
            }
        }
        Ok(())
    }
}

/// What the elements of blocks with these scales are multiplied by.
fn factors_into(isa: Isa, global: GlobalScale, scales: &[u8], factors: &mut [f32]) {
    let scales: &[E4M3] = bytemuck::cast_slice(scales);
    decode_blocks_to(isa, Stores::Cached, scales, scales.len().max(1), &[1.0], factors);
    for factor in factors {
        *factor = global.total(*factor);
    }
}

/// Gives the blocks of a run that hold a NaN or an infinity the scale NaN, and codes of zero.
#[cold]
fn poison(run: Run<'_>, codes: &mut [u8], scales: &mut [u8]) {
    let blocks = run.x.chunks_exact(NVFP4_BLOCK).zip(codes.chunks_exact_mut(NVFP4_BLOCK / 2));
    for ((x, codes), scale) in blocks.zip(scales) {
        if x.iter().any(|x| !x.is_finite()) {
            codes.fill(0);
            *scale = E4M3::from_f32(f32::NAN, Overflow::Saturate).to_bits();
        }
    }
}

impl<C: AsRef<[u8]>, S: AsRef<[u8]>> NvFp4Tensor<C, S> {
    /// A matrix of `shape` from its `codes`, `[rows, cols / 2]`, block scales, `[rows, cols / 16]`, and the scale of the
    /// tensor.
    ///
    /// Any bytes are a matrix: all codes and all block scales have a meaning.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`], [`Error::Length`] if a buffer is too short or too long, [`Error::BadScale`] for a `global` that
    /// is NaN, infinite or negative, or a divisor of zero, [`Error::TooLarge`].
    pub fn new(shape: [usize; 2], codes: C, scales: S, global: GlobalScale) -> Result<Self> {
        let [n_codes, n_scales] = lengths(shape)?;
        Error::check_length("codes", n_codes, codes.as_ref().len())?;
        Error::check_length("scales", n_scales, scales.as_ref().len())?;
        global.check_decodes()?;
        Ok(Self { shape, codes, scales, global })
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Two codes per byte, `[rows, cols / 2]`.
    pub fn codes(&self) -> &[u8] {
        self.codes.as_ref()
    }

    /// E4M3 block scales, `[rows, cols / 16]`.
    pub fn scales(&self) -> &[u8] {
        self.scales.as_ref()
    }

    /// The scale of the tensor.
    pub fn global(&self) -> GlobalScale {
        self.global
    }

    /// The same matrix, borrowed.
    pub fn view(&self) -> NvFp4View<'_> {
        NvFp4Tensor {
            shape: self.shape,
            codes: self.codes(),
            scales: self.scales(),
            global: self.global,
        }
    }

    /// Bytes of codes and scales, with four for that of the tensor.
    pub fn n_bytes(&self) -> usize {
        self.codes().len() + self.scales().len() + size_of::<f32>()
    }

    /// Bits per element, 4.5 and what the scale of the tensor comes to; infinite for an empty matrix.
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

impl NvFp4View<'_> {
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
        let codes = self.codes[first / 2..].chunks(RUN_BLOCKS * NVFP4_BLOCK / 2);
        let scales = self.scales[first / NVFP4_BLOCK..].chunks(RUN_BLOCKS);
        let parts = codes.zip(scales).zip(out.chunks_mut(RUN_BLOCKS * NVFP4_BLOCK));
        for ((codes, scales), out) in parts {
            let n_blocks = out.len() / NVFP4_BLOCK;
            let factors = &mut factors[..n_blocks];
            factors_into(isa, self.global, &scales[..n_blocks], factors);
            let codes = &codes[..out.len() / 2];
            decode_e2m1_blocks_to::<NVFP4_BLOCK>(isa, stores, codes, factors, out);
        }
    }
}

/// `Ok` if rows of `x` are contiguous, and the buffers have the lengths that its shape implies.
fn check(x: &ArrayView2<'_, f32>, n_codes: usize, n_scales: usize) -> Result<()> {
    check_rows("x", x.dim(), x.strides())?;
    let [codes, scales] = lengths(x.dim().into())?;
    Error::check_length("codes", codes, n_codes)?;
    Error::check_length("scales", scales, n_scales)
}

/// Bytes of codes and of block scales of a matrix.
pub(crate) fn lengths(shape: [usize; 2]) -> Result<[usize; 2]> {
    if !shape[1].is_multiple_of(NVFP4_BLOCK) {
        return Err(Error::BlockAlign { len: shape[1], block: NVFP4_BLOCK });
    }
    let len = n_elements(shape)?;
    Ok([len / 2, len / NVFP4_BLOCK])
}
