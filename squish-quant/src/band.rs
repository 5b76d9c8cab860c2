//! Walking matrices by bands and runs: what the codecs of this crate share.
//!
//! A *band* is a number of whole rows with their codes and scales, the unit that a thread takes. A *run* is a
//! contiguous part of a band with whole blocks, small enough to stay in L1 between the pass that looks for the largest
//! magnitudes and the one that encodes.

use std::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use squish_kernels::blocks::abs_max_blocks_into;

use crate::{
    error::{Error, Result},
    granularity::NonFinite,
    parallel::{Rows, for_bands},
};

/// Elements of a run, 16 KiB of `f32`: half of the smallest L1, since codes and scales want room too.
const RUN_ELEMENTS: usize = 4096;

/// Blocks of a run at most, so that their factors fit in an array on the stack.
pub(crate) const RUN_BLOCKS: usize = 256;

/// Rows to encode, with the buffers for their codes, scales and zero points.
pub(crate) struct EncodeBand<'a, S> {
    pub(crate) first_row: usize,
    pub(crate) x: ArrayView2<'a, f32>,
    pub(crate) codes: &'a mut [u8],
    pub(crate) scales: &'a mut [S],
    /// One per scale, if there are any.
    pub(crate) zero_points: Option<&'a mut [i8]>,
    /// Rows and columns of a block.
    pub(crate) block: [usize; 2],
}

impl<'a, S> EncodeBand<'a, S> {
    /// All rows of `x`; the buffers have the lengths that its shape implies.
    pub(crate) fn new(
        x: ArrayView2<'a, f32>,
        codes: &'a mut [u8],
        scales: &'a mut [S],
        block: [usize; 2],
    ) -> Self {
        Self { first_row: 0, x, codes, scales, zero_points: None, block }
    }
}

impl<S: Send> Rows for EncodeBand<'_, S> {
    fn n_rows(&self) -> usize {
        self.x.nrows()
    }

    fn split_at_row(self, n: usize) -> (Self, Self) {
        let Self { first_row, x, codes, scales, zero_points, block } = self;
        let n_scales = n / block[0] * x.ncols().div_ceil(block[1]);
        let (codes, codes_rest) = codes.split_at_mut(codes.len() / x.nrows() * n);
        let (scales, scales_rest) = scales.split_at_mut(n_scales);
        let (zero_points, zero_points_rest) =
            zero_points.map(|zero_points| zero_points.split_at_mut(n_scales)).unzip();
        let (x, x_rest) = x.split_at(Axis(0), n);
        (
            Self { first_row, x, codes, scales, zero_points, block },
            Self {
                first_row: first_row + n,
                x: x_rest,
                codes: codes_rest,
                scales: scales_rest,
                zero_points: zero_points_rest,
                block,
            },
        )
    }
}

/// Rows to encode with scales that are there.
pub(crate) struct CastBand<'a> {
    pub(crate) first_row: usize,
    pub(crate) x: ArrayView2<'a, f32>,
    pub(crate) codes: &'a mut [u8],
}

impl Rows for CastBand<'_> {
    fn n_rows(&self) -> usize {
        self.x.nrows()
    }

    fn split_at_row(self, n: usize) -> (Self, Self) {
        let Self { first_row, x, codes } = self;
        let (codes, codes_rest) = codes.split_at_mut(codes.len() / x.nrows() * n);
        let (x, x_rest) = x.split_at(Axis(0), n);
        (
            Self { first_row, x, codes },
            Self { first_row: first_row + n, x: x_rest, codes: codes_rest },
        )
    }
}

/// Rows to decode into.
struct DecodeBand<'a> {
    first_row: usize,
    out: ArrayViewMut2<'a, f32>,
}

impl Rows for DecodeBand<'_> {
    fn n_rows(&self) -> usize {
        self.out.nrows()
    }

    fn split_at_row(self, n: usize) -> (Self, Self) {
        let Self { first_row, out } = self;
        let (out, rest) = out.split_at(Axis(0), n);
        (Self { first_row, out }, Self { first_row: first_row + n, out: rest })
    }
}

/// Has `decode` write the rows of `out`, of which the first is row `first_row` of the matrix, on all threads if `bytes`
/// read and written pay for them.
///
/// `decode` gets the index of a row and whole rows of `out` from there on that follow each other in memory, one row at a
/// time unless `joined`.
pub(crate) fn decode_rows(
    first_row: usize,
    out: ArrayViewMut2<'_, f32>,
    joined: bool,
    bytes: usize,
    decode: impl Fn(usize, &mut [f32]) + Sync,
) {
    // Rows without elements may be more than anyone can count.
    if out.is_empty() {
        return;
    }
    for_bands(DecodeBand { first_row, out }, 1, bytes, &|DecodeBand { first_row, mut out }| {
        if joined && let Some(out) = out.as_slice_mut() {
            decode(first_row, out);
        } else {
            for (i, mut row) in out.rows_mut().into_iter().enumerate() {
                let row = row.as_slice_mut().expect("rows were checked to be contiguous");
                decode(first_row + i, row);
            }
        }
        Ok(())
    })
    .expect("decoding has no errors");
}

/// Part of the rows of a band that lies contiguously and begins with a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// Elements of the band before it.
    pub(crate) element: usize,
    /// Blocks of the band before it, where every row of blocks counts those of its columns.
    pub(crate) block: usize,
    pub(crate) x: &'a [f32],
}

/// The runs of `x`, whose rows are contiguous, in order. Rows that follow each other in memory and are whole blocks
/// are walked as one.
pub(crate) fn runs<'a>(
    x: &ArrayView2<'a, f32>,
    block_cols: usize,
) -> impl Iterator<Item = Run<'a>> {
    let [rows, cols] = x.dim().into();
    let one_line = if cols.is_multiple_of(block_cols) { x.to_slice() } else { None };
    let (n_lines, line_len) = if one_line.is_some() { (1, rows * cols) } else { (rows, cols) };
    let run_len = block_cols.saturating_mul((RUN_ELEMENTS / block_cols).clamp(1, RUN_BLOCKS));
    let x = *x;
    (0..n_lines).flat_map(move |line| {
        let row = || {
            x.index_axis_move(Axis(0), line).to_slice().expect("rows were checked to be contiguous")
        };
        let data = one_line.unwrap_or_else(row);
        let first_block = line * line_len.div_ceil(block_cols);
        data.chunks(run_len).enumerate().map(move |(i, x)| Run {
            element: line * line_len + i * run_len,
            block: first_block + i * (run_len / block_cols),
            x,
        })
    })
}

/// `Ok` if each row of `x` is contiguous.
pub(crate) fn check_rows(what: &'static str, dim: (usize, usize), strides: &[isize]) -> Result<()> {
    if strides[1] == 1 || dim.1 <= 1 || dim.0 == 0 {
        Ok(())
    } else {
        Err(Error::Layout { what, stride: strides[1] })
    }
}

/// `Ok` if `out` can take the values of a matrix of `shape`.
pub(crate) fn check_out(shape: [usize; 2], out: &ArrayViewMut2<'_, f32>) -> Result<()> {
    let actual = out.dim().into();
    if shape != actual {
        return Err(Error::Shape { what: "out", expected: shape, actual });
    }
    check_rows("out", out.dim(), out.strides())
}

/// `Ok` if every scale can decode: a number that is not negative and not infinite.
pub(crate) fn check_scales(scales: &[f32]) -> Result<()> {
    all_scales(scales, |scale| scale >= 0.0 && scale.is_finite())
}

/// `Ok` if every scale can encode: positive and finite, as is its reciprocal.
pub(crate) fn check_divisors(scales: &[f32]) -> Result<()> {
    all_scales(scales, |scale| scale > 0.0 && scale.is_finite() && scale.recip().is_finite())
}

/// `Ok` if every scale is `good`, else the first that is not.
pub(crate) fn all_scales(scales: &[f32], good: impl Fn(f32) -> bool) -> Result<()> {
    match scales.iter().position(|&scale| !good(scale)) {
        None => Ok(()),
        Some(index) => Err(Error::BadScale { index, value: scales[index] }),
    }
}

/// `out` as the given rows of a matrix of `shape`, if the matrix has them and `out` their length.
pub(crate) fn rows_of<'a>(
    rows: &Range<usize>,
    shape: [usize; 2],
    out: &'a mut [f32],
) -> Result<ArrayViewMut2<'a, f32>> {
    let (Range { start, end }, [n_rows, cols]) = (rows.clone(), shape);
    if start > end || end > n_rows {
        return Err(Error::Rows { start, end, n_rows });
    }
    Error::check_length("out", (end - start) * cols, out.len())?;
    // The length fits, so this cannot fail; the error is the one that it would be.
    ArrayViewMut2::from_shape([end - start, cols], out).map_err(|_| Error::TooLarge { shape })
}

/// `Ok` if every element is finite, else the first that is not.
pub(crate) fn check_finite(x: ArrayView2<'_, f32>) -> Result<()> {
    let mut largest = [0.0; RUN_BLOCKS];
    for run in runs(&x, RUN_ELEMENTS.min(x.ncols().max(1))) {
        let largest = &mut largest[..run.x.len().div_ceil(RUN_ELEMENTS)];
        abs_max_blocks_into(run.x, RUN_ELEMENTS, largest);
        if largest.iter().any(|x| !x.is_finite()) {
            return Err(first_non_finite(run.element, run.x));
        }
    }
    Ok(())
}

/// The error for the first element of `x` that is not finite, `x` being known to have one.
#[cold]
pub(crate) fn first_non_finite(first_element: usize, x: &[f32]) -> Error {
    let i = x.iter().position(|x| !x.is_finite()).expect("the largest magnitude is not finite");
    Error::NonFinite { index: first_element + i, value: x[i] }
}

/// Writes the largest finite magnitude of each block of `x`, and returns whether all elements are finite; or the error
/// for the first that is not, if that is asked for. `x` is preceded by `first_element` elements.
pub(crate) fn finite_abs_max(
    non_finite: NonFinite,
    first_element: usize,
    x: &[f32],
    block: usize,
    largest: &mut [f32],
) -> Result<bool> {
    abs_max_blocks_into(x, block, largest);
    // Without an early end, since a loop that has one compares one by one.
    if largest.iter().fold(true, |all, x| all & x.is_finite()) {
        return Ok(true);
    }
    if non_finite == NonFinite::Error {
        return Err(first_non_finite(first_element, x));
    }
    for (largest, x) in largest.iter_mut().zip(x.chunks(block)) {
        *largest = x.iter().filter(|x| x.is_finite()).fold(0.0, |largest, x| x.abs().max(largest));
    }
    Ok(false)
}

/// The largest finite magnitude of `x`, whose rows are contiguous, or an error if that is asked for.
pub(crate) fn finite_abs_max_of_all(non_finite: NonFinite, x: ArrayView2<'_, f32>) -> Result<f32> {
    // Magnitudes compare as their bits do, and a maximum does not depend on the order of the bands.
    let largest = AtomicU32::new(0);
    let (bytes, codes) = (size_of::<f32>() * x.len(), &mut [][..]);
    let band = CastBand { first_row: 0, x, codes };
    for_bands(band, 1, bytes, &|CastBand { first_row, x, .. }| {
        let cols = x.ncols();
        let mut of_band = 0f32;
        for run in runs(&x, cols.max(1)) {
            let mut of_run = [0.0];
            let first_element = first_row * cols + run.element;
            finite_abs_max(non_finite, first_element, run.x, run.x.len(), &mut of_run)?;
            of_band = of_band.max(of_run[0]);
        }
        largest.fetch_max(of_band.to_bits(), Ordering::Relaxed);
        Ok(())
    })?;
    Ok(f32::from_bits(largest.into_inner()))
}
