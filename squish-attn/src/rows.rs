//! Walking the rows of arrays: all at once where they lie contiguously, else one by one.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView3, ArrayViewMut1, ArrayViewMut3, Axis};

use crate::{AttnError, Result};

/// `Ok` if the elements of each row `[n_heads, head_dim]` of `x` are contiguous. Rows may lie anywhere.
pub(crate) fn check_contiguous<T>(what: &'static str, x: ArrayView3<'_, T>) -> Result<()> {
    if x.is_empty() || x.index_axis(Axis(0), 0).is_standard_layout() {
        return Ok(());
    }
    let strides = x.strides();
    Err(AttnError::Layout {
        what,
        shape: x.dim().into(),
        strides: [strides[0], strides[1], strides[2]],
    })
}

/// Calls `f` with blocks of contiguous rows of `x`, which [`check_contiguous`] has seen, and which rows they are.
pub(crate) fn for_each_block<T>(
    mut x: ArrayViewMut3<'_, T>,
    mut f: impl FnMut(Range<usize>, &mut [T]),
) {
    let n_rows = x.len_of(Axis(0));
    if let Some(all) = x.as_slice_mut() {
        return f(0..n_rows, all);
    }
    for (i, row) in x.outer_iter_mut().enumerate() {
        f(i..i + 1, row.into_slice().expect(CONTIGUOUS));
    }
}

/// A row of an array that [`check_contiguous`] has seen.
pub(crate) fn contiguous<T>(row: ArrayView1<'_, T>) -> &[T] {
    row.to_slice().expect(CONTIGUOUS)
}

/// A row of an array that [`check_contiguous`] has seen.
pub(crate) fn contiguous_mut<T>(row: ArrayViewMut1<'_, T>) -> &mut [T] {
    row.into_slice().expect(CONTIGUOUS)
}

const CONTIGUOUS: &str = "rows were checked to be contiguous";
