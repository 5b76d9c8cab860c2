//! Merging results over disjoint tokens.

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};
use squish_kernels::Isa;

use super::state::State;
use crate::{
    error::{AttnError, Result},
    rows::{check_contiguous, contiguous, contiguous_mut},
};

/// Turns results over some tokens, `out` of `[rows, heads, width]` with its `lse` of `[rows, heads]`, into those over these tokens and the
/// ones of `other`: a prefix that many sequences share, say, and what each has of its own.
///
/// ```text
/// lse = ln(e^lse + e^other_lse)      out = (e^lse · out + e^other_lse · other) / e^(new lse)
/// ```
///
/// A row that has seen nothing, whose `lse` is negative infinity, changes nothing, to the bit. The result differs from that of one call over
/// all tokens by rounding.
///
/// # Errors
///
/// If shapes do not fit each other, or heads are not contiguous; then nothing is written.
pub fn merge_in_place(
    out: ArrayViewMut3<'_, f32>,
    lse: ArrayViewMut2<'_, f32>,
    other: ArrayView3<'_, f32>,
    other_lse: ArrayView2<'_, f32>,
) -> Result<()> {
    merge_in_place_with(Isa::detect(), out, lse, other, other_lse)
}

#[doc(hidden)]
pub fn merge_in_place_with(
    isa: Isa,
    mut out: ArrayViewMut3<'_, f32>,
    mut lse: ArrayViewMut2<'_, f32>,
    other: ArrayView3<'_, f32>,
    other_lse: ArrayView2<'_, f32>,
) -> Result<()> {
    let (n_rows, n_heads, width) = out.dim();
    AttnError::check_axis("other", "rows", n_rows, other.dim().0)?;
    AttnError::check_axis("other", "heads", n_heads, other.dim().1)?;
    AttnError::check_axis("other", "width", width, other.dim().2)?;
    for (what, (rows, heads)) in [("lse", lse.dim()), ("other_lse", other_lse.dim())] {
        AttnError::check_axis(what, "rows", n_rows, rows)?;
        AttnError::check_axis(what, "heads", n_heads, heads)?;
    }
    check_contiguous("out", out.view())?;
    check_contiguous("other", other)?;
    for row in 0..n_rows {
        for head in 0..n_heads {
            let other =
                contiguous(other.index_axis_move(Axis(0), row).index_axis_move(Axis(0), head));
            let values = out.index_axis_mut(Axis(0), row);
            let values = contiguous_mut(values.index_axis_move(Axis(0), head));
            let (lse, other_lse) = (&mut lse[[row, head]], other_lse[[row, head]]);
            // A result is the state whose weights sum to one.
            let sum_of = |lse: f32| if lse == f32::NEG_INFINITY { 0.0 } else { 1.0 };
            let (mut max, mut sum) = (*lse, sum_of(*lse));
            let mut state = State { max: &mut max, sum: &mut sum, values };
            state.merge(isa, other_lse, sum_of(other_lse), other);
            if sum != 0.0 {
                for value in values {
                    *value /= sum;
                }
                *lse = max + sum.ln();
            }
        }
    }
    Ok(())
}
