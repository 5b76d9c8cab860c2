//! Shared microexponents, the MX4, MX6 and MX9 of ISCA'23: [`SmxQuantizer`] and [`SmxTensor`].
//!
//! Blocks of 16 elements along a row share an exponent, pairs of them one bit that halves the step, and elements are
//! integers of `m` bits and a sign. That is another family than [`crate::mx`], which shares the name and nothing else.
//!
//! ```text
//! E     = largest exponent field of the block, biased by 127; subnormals count as zeros
//! t     = 1 for a pair whose exponents are both less than E, else 0
//! step  = 2^(E - 127 - t - (m - 1))
//! code  = x / step                       to nearest, ties to even, clamped to ±(2^m - 1)
//! value = code · step
//! ```
//!
//! | format | name in the paper | `m` | bits per weight | bytes of a block |
//! |---|---|---|---|---|
//! | [`SmxFormat::Smx4`] | MX4 | 2 | 4 | 8 |
//! | [`SmxFormat::Smx6`] | MX6 | 4 | 6 | 12 |
//! | [`SmxFormat::Smx9`] | MX9 | 7 | 9 | 18 |
//!
//! The paper defines no bytes, and no tool has any. These are ours, version 1: `[E][t][codes]`, where bit `j` of `t` is that
//! of elements `2j` and `2j + 1`, and the codes are a stream of 16 integers of `1 + m` bits in two's complement, the lowest
//! bit first: bit `k` of the stream is bit `k % 8` of byte `k / 8`. Rows are `[cols / 16]` blocks. The code `-2^m` has no
//! use, and is refused.
//!
//! There is no NaN and no infinity; `E = 255`, which encoding never gives, is an exponent like others, and values beyond
//! `f32` are infinite.
//!
//! Source: B. D. Rouhani et al., "With Shared Microexponents, A Little Shifting Goes a Long Way", ISCA 2023, arXiv
//! 2302.08007, section 3.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use squish_kernels::{
    Isa,
    bits::unpack_into,
    smx::{decode_smx_to, encode_smx_to},
    stream::Stores,
};

use crate::{
    band::{
        CastBand, RUN_BLOCKS, check_finite, check_out, check_rows, decode_rows, finite_abs_max,
        rows_of, runs,
    },
    error::{Error, Result},
    granularity::{NonFinite, n_elements},
    parallel::for_bands,
};

/// Elements that share an exponent.
pub const SMX_BLOCK: usize = 16;

/// Bytes of a block before its codes.
const HEADER: usize = 2;

/// Which format of shared microexponents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SmxFormat {
    /// Two bits and a sign: MX4.
    Smx4,
    /// Four bits and a sign: MX6.
    Smx6,
    /// Seven bits and a sign: MX9.
    #[default]
    Smx9,
}

impl SmxFormat {
    /// All formats.
    pub const ALL: [Self; 3] = [Self::Smx4, Self::Smx6, Self::Smx9];

    /// The name, lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smx4 => "smx4",
            Self::Smx6 => "smx6",
            Self::Smx9 => "smx9",
        }
    }

    /// Bits of a code, the sign included.
    #[must_use]
    pub const fn code_bits(self) -> usize {
        match self {
            Self::Smx4 => 3,
            Self::Smx6 => 5,
            Self::Smx9 => 8,
        }
    }

    /// Bytes of a block of 16 elements.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        HEADER + SMX_BLOCK / 8 * self.code_bits()
    }

    /// Bytes of a matrix of `shape`.
    fn n_bytes(self, shape: [usize; 2]) -> Result<usize> {
        if !shape[1].is_multiple_of(SMX_BLOCK) {
            return Err(Error::BlockAlign { len: shape[1], block: SMX_BLOCK });
        }
        // A block of 18 bytes holds 16 elements, so that what fits as elements may not as bytes.
        let n_bytes = (n_elements(shape)? / SMX_BLOCK).checked_mul(self.block_bytes());
        match n_bytes {
            Some(n) if isize::try_from(n).is_ok() => Ok(n),
            _ => Err(Error::TooLarge { shape }),
        }
    }
}

/// How to make an [`SmxTensor`]. Default: MX9, non-finite inputs refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SmxQuantizer {
    /// Which format.
    pub format: SmxFormat,
    /// What to make of NaN and infinities. [`NonFinite::Poison`] is refused, since the formats have neither;
    /// [`NonFinite::Saturate`] makes infinities the largest value of their block, which is zero where nothing else is in it.
    pub non_finite: NonFinite,
}

/// A matrix in shared microexponents. `B` owns or borrows its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmxTensor<B = Vec<u8>> {
    format: SmxFormat,
    shape: [usize; 2],
    blocks: B,
}

/// A matrix in shared microexponents over somebody else's bytes.
pub type SmxView<'a> = SmxTensor<&'a [u8]>;

impl SmxQuantizer {
    /// `x`, `[rows, cols]`, quantized.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`] if `cols` is no multiple of 16, [`Error::NonFinite`] as the quantizer says,
    /// [`Error::Unsupported`] for [`NonFinite::Poison`], [`Error::TooLarge`].
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::{SmxFormat, SmxQuantizer, ndarray::Array2};
    ///
    /// let weight = Array2::from_shape_fn([1, 16], |(_, col)| col as f32 - 8.0);
    /// let quantizer = SmxQuantizer { format: SmxFormat::Smx4, ..SmxQuantizer::default() };
    /// let tensor = quantizer.encode(weight.view())?;
    /// assert_eq!(tensor.blocks()[..2], [130, 0b1111_1110]); // 2^3, and all pairs but that of -8 have half the step of 4
    /// let first: Vec<f32> = tensor.decode().iter().copied().take(4).collect();
    /// assert_eq!(first, [-8.0, -8.0, -6.0, -4.0]); // -7 rounds to -8; -5 is half way between -4 and -6
    /// assert_eq!(tensor.bits_per_weight(), 4.0);
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn encode(self, x: ArrayView2<'_, f32>) -> Result<SmxTensor> {
        self.check()?;
        let shape = x.dim().into();
        let mut blocks = vec![0; self.format.n_bytes(shape)?];
        self.encode_rows(x.as_standard_layout().view(), &mut blocks)?;
        Ok(SmxTensor { format: self.format, shape, blocks })
    }

    /// [`SmxQuantizer::encode`] into `blocks`, `[rows, cols / 16]` of [`block_bytes`](SmxFormat::block_bytes) each. Allocates
    /// nothing.
    ///
    /// # Errors
    ///
    /// As [`SmxQuantizer::encode`], [`Error::Length`], and [`Error::Layout`] if rows of `x` are not contiguous. Then nothing is
    /// written.
    pub fn encode_into(self, x: ArrayView2<'_, f32>, blocks: &mut [u8]) -> Result<()> {
        self.check()?;
        check_rows("x", x.dim(), x.strides())?;
        Error::check_length("blocks", self.format.n_bytes(x.dim().into())?, blocks.len())?;
        if self.non_finite == NonFinite::Error {
            check_finite(x)?;
        }
        self.encode_rows(x, blocks)
    }

    fn check(self) -> Result<()> {
        if self.non_finite == NonFinite::Poison {
            return Err(Error::Unsupported {
                format: self.format.name(),
                what: "poisoned elements",
            });
        }
        Ok(())
    }

    /// Blocks of rows whose buffers have been checked. An error leaves them half written.
    fn encode_rows(self, x: ArrayView2<'_, f32>, blocks: &mut [u8]) -> Result<()> {
        let bytes = size_of::<f32>() * x.len() + blocks.len();
        let stores = Stores::for_bytes(bytes);
        for_bands(
            CastBand { first_row: 0, x, codes: blocks },
            1,
            bytes,
            &|band| match self.format {
                SmxFormat::Smx4 => self.encode_band::<3>(stores, band),
                SmxFormat::Smx6 => self.encode_band::<5>(stores, band),
                SmxFormat::Smx9 => self.encode_band::<8>(stores, band),
            },
        )
    }

    fn encode_band<const BITS: usize>(self, stores: Stores, band: CastBand<'_>) -> Result<()> {
        let CastBand { first_row, x, codes: blocks } = band;
        let (isa, block_bytes) = (Isa::detect(), self.format.block_bytes());
        let mut largest = [0.0; RUN_BLOCKS];
        for run in runs(&x, SMX_BLOCK) {
            let n_blocks = run.x.len() / SMX_BLOCK;
            let largest = &mut largest[..n_blocks];
            let blocks = &mut blocks[run.block * block_bytes..][..n_blocks * block_bytes];
            let first_element = first_row * x.ncols() + run.element;
            let all_finite =
                finite_abs_max(self.non_finite, first_element, run.x, SMX_BLOCK, largest)?;
            encode_smx_to::<BITS>(isa, stores, run.x, largest, blocks);
            if !all_finite {
                let each = run.x.as_chunks::<SMX_BLOCK>().0.iter().zip(largest.chunks(1));
                for ((x, largest), block) in each.zip(blocks.chunks_exact_mut(block_bytes)) {
                    let x = saturated(x, largest[0]);
                    encode_smx_to::<BITS>(isa, Stores::Cached, &x, largest, block);
                }
            }
        }
        Ok(())
    }
}

/// The elements of a block, with NaN as zero and infinities as what has the largest code that the largest finite element
/// leaves.
#[cold]
fn saturated(x: &[f32; SMX_BLOCK], largest: f32) -> [f32; SMX_BLOCK] {
    let limit = f32::from_bits(largest.to_bits() | 0x007f_ffff);
    x.map(|x| if x.is_nan() { 0.0 } else { x.clamp(-limit, limit) })
}

/// The codes of a block.
fn codes<const BITS: usize>(block: &[u8]) -> [i8; SMX_BLOCK] {
    let mut codes = [0; SMX_BLOCK];
    unpack_into::<BITS>(&block[HEADER..], &mut codes);
    // The sign bit goes to the top and, with copies of it behind, back.
    codes.map(|code| (code << (8 - BITS)) as i8 >> (8 - BITS))
}

impl<B: AsRef<[u8]>> SmxTensor<B> {
    /// A matrix of `shape` from its `blocks`, `[rows, cols / 16]` of [`block_bytes`](SmxFormat::block_bytes) each. Reads them
    /// all.
    ///
    /// # Errors
    ///
    /// [`Error::BlockAlign`], [`Error::Length`] if there are too few or too many bytes, [`Error::BadCode`] for a code of
    /// `-2^m`, [`Error::TooLarge`].
    pub fn new(format: SmxFormat, shape: [usize; 2], blocks: B) -> Result<Self> {
        Error::check_length("blocks", format.n_bytes(shape)?, blocks.as_ref().len())?;
        match format {
            SmxFormat::Smx4 => check_codes::<3>(format, blocks.as_ref())?,
            SmxFormat::Smx6 => check_codes::<5>(format, blocks.as_ref())?,
            SmxFormat::Smx9 => check_codes::<8>(format, blocks.as_ref())?,
        }
        Ok(Self { format, shape, blocks })
    }

    /// Which format.
    pub fn format(&self) -> SmxFormat {
        self.format
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The blocks, `[rows, cols / 16]`, as the [module](self) lays them out.
    pub fn blocks(&self) -> &[u8] {
        self.blocks.as_ref()
    }

    /// The same matrix, borrowed.
    pub fn view(&self) -> SmxView<'_> {
        SmxTensor { format: self.format, shape: self.shape, blocks: self.blocks() }
    }

    /// Bytes of the blocks.
    pub fn n_bytes(&self) -> usize {
        self.blocks().len()
    }

    /// Bits per element, exponents included; NaN for an empty matrix.
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

impl SmxView<'_> {
    /// The values of a block.
    pub(crate) fn decode_block(self, idx: usize, out: &mut [f32; SMX_BLOCK]) {
        let (isa, stores, n) = (Isa::detect(), Stores::for_bytes(0), self.format.block_bytes());
        let block = &self.blocks[idx * n..(idx + 1) * n];
        match self.format {
            SmxFormat::Smx4 => decode_smx_to::<3>(isa, stores, block, out),
            SmxFormat::Smx6 => decode_smx_to::<5>(isa, stores, block, out),
            SmxFormat::Smx9 => decode_smx_to::<8>(isa, stores, block, out),
        }
    }

    /// The values of the rows from `first_row` on.
    fn decode_rows(self, first_row: usize, out: ArrayViewMut2<'_, f32>) {
        let bytes =
            size_of::<f32>() * out.len() + out.len() / SMX_BLOCK * self.format.block_bytes();
        let stores = Stores::for_bytes(bytes);
        decode_rows(first_row, out, true, bytes, |first_row, out| match self.format {
            SmxFormat::Smx4 => self.decode_line::<3>(stores, first_row, out),
            SmxFormat::Smx6 => self.decode_line::<5>(stores, first_row, out),
            SmxFormat::Smx9 => self.decode_line::<8>(stores, first_row, out),
        });
    }

    /// The values of whole rows, from `first_row` on, that follow each other in `out`.
    fn decode_line<const BITS: usize>(self, stores: Stores, first_row: usize, out: &mut [f32]) {
        let [first, n] = [first_row * self.shape[1], out.len()]
            .map(|n| n / SMX_BLOCK * self.format.block_bytes());
        decode_smx_to::<BITS>(Isa::detect(), stores, &self.blocks[first..first + n], out);
    }
}

/// `Ok` if no block has the code without a positive counterpart.
fn check_codes<const BITS: usize>(format: SmxFormat, blocks: &[u8]) -> Result<()> {
    let unused = -1 << (BITS - 1);
    for (i, block) in blocks.chunks_exact(format.block_bytes()).enumerate() {
        if let Some(j) = codes::<BITS>(block).iter().position(|&code| i32::from(code) == unused) {
            let index = i * SMX_BLOCK + j;
            return Err(Error::BadCode { what: "blocks", index, value: unused });
        }
    }
    Ok(())
}
