//! Weights of one layout as weights of the other: [`permute_rows`].
//!
//! Rotating neighbors or halves gives the same scores if the rows of `W_q` and `W_k` that make a head are in another order. What the halves
//! layout has at `i` and `i + rotary_dim / 2`, the layout of neighbors has at `2 i` and `2 i + 1`; so do biases and QK-norm weights.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use squish_kernels::RopeLayout;

use crate::{AttnError, Result};

/// The rows of `w` `[n_heads * head_dim, n_in]`, which are of the other layout, in the order of layout `to`.
///
/// # Errors
///
/// As [`permute_rows_into`].
///
/// # Examples
///
/// ```
/// use squish_attn::{RopeLayout, ndarray::array, rope::permute_rows};
///
/// // One head of 5, of which 4 are rotated.
/// let neighbors = array![[0.0], [0.5], [1.0], [1.5], [9.0]];
/// let halves = permute_rows(neighbors.view(), 5, 4, RopeLayout::HalfSplit)?;
/// assert_eq!(halves, array![[0.0], [1.0], [0.5], [1.5], [9.0]]);
/// assert_eq!(permute_rows(halves.view(), 5, 4, RopeLayout::Interleaved)?, neighbors);
/// # Ok::<(), squish_attn::AttnError>(())
/// ```
pub fn permute_rows<T: Clone>(
    w: ArrayView2<'_, T>,
    head_dim: usize,
    rotary_dim: usize,
    to: RopeLayout,
) -> Result<Array2<T>> {
    let mut out = w.to_owned();
    permute_rows_into(w, head_dim, rotary_dim, to, out.view_mut())?;
    Ok(out)
}

/// [`permute_rows`] into `out`, shaped as `w`.
///
/// # Errors
///
/// [`AttnError::Value`] if `rotary_dim` is odd or above `head_dim`, or `w` is no whole number of heads; [`AttnError::Axis`].
pub fn permute_rows_into<T: Clone>(
    w: ArrayView2<'_, T>,
    head_dim: usize,
    rotary_dim: usize,
    to: RopeLayout,
    mut out: ArrayViewMut2<'_, T>,
) -> Result<()> {
    let (n_rows, n_in) = w.dim();
    let pairs = rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim;
    let check = AttnError::check_value;
    check("rotary_dim", rotary_dim as f64, pairs, "even, and at most `head_dim`")?;
    let wholes = head_dim > 0 && n_rows.is_multiple_of(head_dim);
    check("n_rows", n_rows as f64, wholes, "a multiple of `head_dim`")?;
    AttnError::check_axis("out", "n_rows", n_rows, out.dim().0)?;
    AttnError::check_axis("out", "n_in", n_in, out.dim().1)?;
    for (i, mut row) in out.outer_iter_mut().enumerate() {
        let (head, within) = (i / head_dim, i % head_dim);
        let source = if within < rotary_dim { source_of(within, rotary_dim, to) } else { within };
        row.assign(&w.row(head * head_dim + source));
    }
    Ok(())
}

/// Where the other layout has what layout `to` has at `i`.
fn source_of(i: usize, rotary_dim: usize, to: RopeLayout) -> usize {
    let half = rotary_dim / 2;
    match to {
        RopeLayout::HalfSplit => 2 * (i % half) + i / half,
        RopeLayout::Interleaved => i / 2 + i % 2 * half,
    }
}
