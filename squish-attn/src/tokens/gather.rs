//! Moving rows: what a [`Selection`], an [`Assignment`] or a [`Mixture`] says, done to tokens.
//!
//! ```text
//! gather   out[i] = x[indices[i]]
//! merge    out[g] = Σ s[t] · x[t] / Σ s[t]                              tokens t of group g, in order; s the size of a token
//!          out[g] = x[target] + Σ s[t] · x[t] / Σ s[t]                  tokens t of group g but the target
//!          size[g] = Σ s[t]                                             all tokens t of group g
//! mix      out[i] = Σ w[t] · x[t]                                       the terms of new token i
//! ```
//!
//! A group of one is copied. Sums are in `f32`; each step rounds once where the level has a fused multiply-add, else twice.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use squish_kernels::axpy;

use super::selection::{Assignment, Mixture, Selection};
use crate::{
    AttnError, Result,
    rows::{check_contiguous, contiguous, contiguous_mut},
};

/// What becomes of a group of several tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// Their mean, by size: `ToMe`, and the centroids of clusters.
    #[default]
    Mean,
    /// The target plus the mean, by size, of the others: `VisionZip`'s contextual tokens, as its released code has them.
    TargetPlusMean,
}

/// Copies the rows of `tokens`, `[n_tokens, dim]`, that remain to `out`, `[selection.len(), dim]`. Allocates nothing.
///
/// # Errors
///
/// [`AttnError::Axis`]; [`AttnError::Layout`] if rows are not contiguous.
///
/// # Examples
///
/// ```
/// use squish_attn::{Keep, Selection, TokensWorkspace, ndarray::{Array2, array}, tokens::gather_into};
///
/// let mut kept = Selection::default();
/// TokensWorkspace::new().largest_into(&[0.2, 0.1, 0.7], Keep::Tokens(2), &mut kept)?;
/// let mut out = Array2::zeros((2, 2));
/// gather_into(array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]].view(), &kept, out.view_mut())?;
/// assert_eq!(out, array![[1.0, 2.0], [5.0, 6.0]]);
/// # Ok::<(), squish_attn::AttnError>(())
/// ```
pub fn gather_into<T: Copy>(
    tokens: ArrayView2<'_, T>,
    selection: &Selection,
    mut out: ArrayViewMut2<'_, T>,
) -> Result<()> {
    check(tokens, selection.n_tokens(), selection.len(), &out)?;
    for (mut out, &index) in out.outer_iter_mut().zip(selection.indices()) {
        let row = contiguous(tokens.index_axis_move(Axis(0), index as usize));
        contiguous_mut(out.view_mut()).copy_from_slice(row);
    }
    Ok(())
}

/// Merges the groups of `tokens`, `[n_tokens, dim]`, into `out`, `[n_groups, dim]`, and their sizes into `out_sizes`, `[n_groups]`.
/// Allocates nothing.
///
/// `sizes`, `[n_tokens]`, says of how many original tokens each token was merged before: one, if there are none.
///
/// # Errors
///
/// [`AttnError::Axis`]; [`AttnError::Length`] of sizes; [`AttnError::Value`] of a size that is not above 0 and finite;
/// [`AttnError::Layout`] if rows are not contiguous.
///
/// # Examples
///
/// ```
/// use squish_attn::{Assignment, ndarray::{Array2, array}, tokens::{Merge, merge_into}};
///
/// let tokens = array![[0.0, 3.0], [1.0, 1.0], [4.0, 3.0]];
/// let assignment = Assignment::new(&[0, 1, 0], &[2, 1])?;
/// let (mut out, mut sizes) = (Array2::zeros((2, 2)), [0.0; 2]);
/// merge_into(tokens.view(), Some(&[3.0, 1.0, 1.0]), &assignment, Merge::Mean, out.view_mut(), &mut sizes)?;
/// assert_eq!((out, sizes), (array![[1.0, 3.0], [1.0, 1.0]], [4.0, 1.0]));
/// # Ok::<(), squish_attn::AttnError>(())
/// ```
pub fn merge_into(
    tokens: ArrayView2<'_, f32>,
    sizes: Option<&[f32]>,
    assignment: &Assignment,
    how: Merge,
    mut out: ArrayViewMut2<'_, f32>,
    out_sizes: &mut [f32],
) -> Result<()> {
    check(tokens, assignment.n_tokens(), assignment.n_groups(), &out)?;
    AttnError::check_length("out_sizes", assignment.n_groups(), out_sizes.len())?;
    if let Some(sizes) = sizes {
        AttnError::check_length("sizes", assignment.n_tokens(), sizes.len())?;
        check_sizes(sizes)?;
    }
    let (targets, counts) = (assignment.targets(), assignment.counts());
    let size_of = |token: usize| sizes.map_or(1.0, |sizes| sizes[token]);
    out_sizes.fill(0.0);
    for (token, &group) in assignment.groups().iter().enumerate() {
        let group = group as usize;
        let row = contiguous(tokens.index_axis_move(Axis(0), token));
        let out = contiguous_mut(out.index_axis_mut(Axis(0), group));
        if counts[group] == 1 {
            out.copy_from_slice(row);
            out_sizes[group] = size_of(token);
        } else if how == Merge::Mean || targets[group] as usize != token {
            // A size is above 0 once a token was added.
            if out_sizes[group] == 0.0 {
                out.fill(0.0);
            }
            axpy(size_of(token), row, out);
            out_sizes[group] += size_of(token);
        }
    }
    for (group, (&target, &count)) in targets.iter().zip(counts).enumerate() {
        if count == 1 {
            continue;
        }
        let out = contiguous_mut(out.index_axis_mut(Axis(0), group));
        let size = out_sizes[group];
        // A quotient, as a sum of equal numbers becomes that number again.
        for x in &mut *out {
            *x /= size;
        }
        if how == Merge::TargetPlusMean {
            let target = target as usize;
            axpy(1.0, contiguous(tokens.index_axis_move(Axis(0), target)), out);
            out_sizes[group] += size_of(target);
        }
    }
    Ok(())
}

/// Writes the weighted sums of `tokens`, `[n_tokens, dim]`, to `out`, `[mixture.len(), dim]`. Allocates nothing.
///
/// # Errors
///
/// [`AttnError::Axis`]; [`AttnError::Layout`] if rows are not contiguous.
pub fn mix_into(
    tokens: ArrayView2<'_, f32>,
    mixture: &Mixture,
    mut out: ArrayViewMut2<'_, f32>,
) -> Result<()> {
    check(tokens, mixture.n_tokens(), mixture.len(), &out)?;
    for (i, mut out) in out.outer_iter_mut().enumerate() {
        let out = contiguous_mut(out.view_mut());
        out.fill(0.0);
        for &(token, weight) in mixture.terms(i) {
            axpy(weight, contiguous(tokens.index_axis_move(Axis(0), token as usize)), out);
        }
    }
    Ok(())
}

/// `Ok` if all sizes are above 0 and finite.
pub(super) fn check_sizes(sizes: &[f32]) -> Result<()> {
    let odd = sizes.iter().find(|&&size| !(size > 0.0 && size.is_finite()));
    odd.map_or(Ok(()), |&size| {
        AttnError::check_value("size", f64::from(size), false, "finite and above 0")
    })
}

fn check<T>(
    tokens: ArrayView2<'_, T>,
    n_tokens: usize,
    n_out: usize,
    out: &ArrayViewMut2<'_, T>,
) -> Result<()> {
    AttnError::check_axis("tokens", "rows", n_tokens, tokens.nrows())?;
    AttnError::check_axis("out", "rows", n_out, out.nrows())?;
    AttnError::check_axis("out", "width", tokens.ncols(), out.ncols())?;
    check_contiguous("tokens", tokens.insert_axis(Axis(1)))?;
    check_contiguous("out", out.view().insert_axis(Axis(1)))
}
