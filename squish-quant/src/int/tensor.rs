//! A matrix of integer codes and its decoding.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};
use squish_kernels::{
    Isa,
    integer::{Blocks, decode_i4_blocks_to, decode_i8_blocks_to},
    stream::Stores,
};

use super::{IntFormat, IntRange, check_zero_points, lengths};
use crate::{
    band::{check_out, check_scales, decode_rows, rows_of},
    error::{Error, Result},
    granularity::Granularity,
};

/// A matrix of integer codes, with all that decoding it needs. `C`, `S` and `Z` own or borrow codes, scales and zero
/// points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntTensor<C = Vec<u8>, S = Vec<f32>, Z = Vec<i8>> {
    pub(super) format: IntFormat,
    pub(super) granularity: Granularity,
    pub(super) shape: [usize; 2],
    pub(super) codes: C,
    pub(super) scales: S,
    pub(super) zero_points: Option<Z>,
}

/// A matrix of integer codes over somebody else's bytes.
pub type IntView<'a> = IntTensor<&'a [u8], &'a [f32], &'a [i8]>;

impl<C: AsRef<[u8]>, S: AsRef<[f32]>, Z: AsRef<[i8]>> IntTensor<C, S, Z> {
    /// A matrix of `shape` from its `codes`, `[rows, cols]` or `[rows, cols / 2]`, its `scales`, of
    /// [`scales_shape`](Granularity::scales_shape), and as many `zero_points` unless it is symmetric.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if a buffer is too short or too long, [`Error::BadScale`] for a scale that is NaN, infinite or
    /// negative, [`Error::BadCode`] for a zero point that is no code, [`Error::BlockAlign`] and [`Error::Unsupported`]
    /// for groups that the format does not have, [`Error::ZeroBlock`], [`Error::TooLarge`].
    pub fn new(
        format: IntFormat,
        granularity: Granularity,
        shape: [usize; 2],
        codes: C,
        scales: S,
        zero_points: Option<Z>,
    ) -> Result<Self> {
        let [n_codes, n_scales] = lengths(format, granularity, shape)?;
        Error::check_length("codes", n_codes, codes.as_ref().len())?;
        Error::check_length("scales", n_scales, scales.as_ref().len())?;
        check_scales(scales.as_ref())?;
        if let Some(zero_points) = &zero_points {
            Error::check_length("zero_points", n_scales, zero_points.as_ref().len())?;
            check_zero_points(Some(zero_points.as_ref()), format.limits(IntRange::Full))?;
        }
        Ok(Self { format, granularity, shape, codes, scales, zero_points })
    }

    /// Format of the codes.
    pub fn format(&self) -> IntFormat {
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

    /// `[rows, cols]` bytes of INT8 in two's complement, `[rows, cols / 2]` of INT4 plus 8.
    pub fn codes(&self) -> &[u8] {
        self.codes.as_ref()
    }

    /// The scales, of [`scales_shape`](Granularity::scales_shape).
    pub fn scales(&self) -> &[f32] {
        self.scales.as_ref()
    }

    /// One per scale, unless the matrix is symmetric.
    pub fn zero_points(&self) -> Option<&[i8]> {
        self.zero_points.as_ref().map(AsRef::as_ref)
    }

    /// The same matrix, borrowed.
    pub fn view(&self) -> IntView<'_> {
        let &Self { format, granularity, shape, .. } = self;
        IntTensor {
            format,
            granularity,
            shape,
            codes: self.codes(),
            scales: self.scales(),
            zero_points: self.zero_points(),
        }
    }

    /// Bytes of codes, scales and zero points, one byte each of the latter.
    pub fn n_bytes(&self) -> usize {
        self.codes().len() + size_of_val(self.scales()) + self.zero_points().map_or(0, <[i8]>::len)
    }

    /// Bits per element, scales and zero points included; NaN for an empty matrix.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.n_bytes() as f64 / (self.shape[0] * self.shape[1]) as f64
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

impl IntView<'_> {
    /// The values of the rows from `first_row` on.
    fn decode_rows(self, first_row: usize, out: ArrayViewMut2<'_, f32>) {
        let bytes = size_of::<f32>() * out.len() + self.format.n_bytes(out.len());
        let stores = Stores::for_bytes(bytes);
        let joined = self.granularity.joins_rows(self.shape);
        decode_rows(first_row, out, joined, bytes, |first_row, out| {
            self.decode_line(stores, first_row, out);
        });
    }

    /// The values of a row, or of several that are joined, from `first_row` on.
    fn decode_line(self, stores: Stores, first_row: usize, out: &mut [f32]) {
        let format = self.format;
        let codes =
            &self.codes[format.n_bytes(first_row * self.shape[1])..][..format.n_bytes(out.len())];
        let (block, first) = self.granularity.line(self.shape, first_row, out.len());
        let zero_points = self.zero_points.map(|zero_points| &zero_points[first..]);
        let blocks = Blocks { block, scales: &self.scales[first..], zero_points };
        match self.format {
            IntFormat::Int8 => {
                decode_i8_blocks_to(
                    Isa::detect(),
                    stores,
                    bytemuck::cast_slice(codes),
                    blocks,
                    out,
                );
            }
            IntFormat::Int4 => decode_i4_blocks_to(Isa::detect(), stores, codes, blocks, out),
        }
    }
}
