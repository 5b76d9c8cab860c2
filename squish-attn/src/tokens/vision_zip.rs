//! `VisionZip`: dominant tokens, and contextual ones that the others are merged into (arXiv 2412.04467, section 3).
//!
//! ```text
//! dominant     the tokens with most attention, in their original order
//! targets      of the others, in order, one of every max(1, n / contextual), as many as are asked for
//! contextual   each target, and all other tokens that it is the most similar target of, by the cosine of keys
//! ```
//!
//! A contextual token is the target plus the mean of the others, as in the released code (the paper's equation averages the target in):
//! [`Merge::TargetPlusMean`](super::Merge::TargetPlusMean), or [`Merge::Mean`](super::Merge::Mean). That code puts the class token before
//! all, which is no part of this.
//!
//! Of equal attention the lowest index is dominant, and of equal similarities the first target is taken. Keys that are zero, or whose
//! square is, go to the first target.

use ndarray::ArrayView2;

use super::{
    TokensWorkspace,
    products::RowsOf,
    select::{check_scores, squares_into},
    selection::Assignment,
    tome::inverse_norm,
};
use crate::{AttnError, Result};

/// Room for lists of tokens.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) kept: Vec<u32>,
    pub(super) targets: Vec<u32>,
    pub(super) others: Vec<u32>,
    /// The most similar target of each of the others, as its place among targets, and how similar it is.
    nearest: Vec<(u32, f32)>,
}

impl TokensWorkspace {
    /// Groups tokens by the attention that each receives, `[n_tokens]`: that of the class token at the encoder's last layer but one, summed
    /// over heads, or the mean over all tokens where there is no class token. `keys`, `[n_tokens, dim]`, are the means over heads of the
    /// same layer.
    ///
    /// The first groups are the dominant tokens, one each, the others the contextual ones; there are fewer of either if there are fewer
    /// tokens.
    ///
    /// # Errors
    ///
    /// [`AttnError::Axis`]; [`AttnError::NotFinite`] of attention, or of a key that is not finite or whose square is not;
    /// [`AttnError::Layout`] if rows are not contiguous; [`AttnError::Value`] if tokens are left and no contextual ones are asked for: the
    /// dominant ones alone are [`largest_into`](Self::largest_into).
    pub fn vision_zip_into(
        &mut self,
        attention: &[f32],
        keys: ArrayView2<'_, f32>,
        dominant: usize,
        contextual: usize,
        out: &mut Assignment,
    ) -> Result<()> {
        let Self { isa, products, squares, top, lists, .. } = self;
        let n_tokens = attention.len();
        AttnError::check_axis("keys", "rows", n_tokens, keys.nrows())?;
        squares_into("keys", *isa, keys, squares)?;
        check_scores("attention", *isa, attention, 0)?;
        let dominant = dominant.min(n_tokens);
        let n_rest = n_tokens - dominant;
        let holds = n_rest == 0 || contextual > 0;
        AttnError::check_value("contextual", contextual as f64, holds, "at least 1")?;
        let Lists { kept, targets, others, nearest } = lists;
        kept.clear();
        kept.extend_from_slice(top.largest(*isa, attention, dominant));
        kept.sort_unstable();
        targets.clear();
        others.clear();
        let step = n_rest.checked_div(contextual).unwrap_or(0).max(1);
        for (i, token) in rest(n_tokens, kept).enumerate() {
            let is_target = i % step == 0 && i / step < contextual;
            if is_target { targets.push(token) } else { others.push(token) }
        }
        out.begin(n_tokens);
        for &token in kept.iter().chain(&*targets) {
            out.add_group(token);
        }
        nearest.clear();
        nearest.resize(others.len(), (0, f32::NEG_INFINITY));
        // The few are the rows, since these are copied, and the many are read where they lie.
        let (of_targets, of_others) = (RowsOf::at(keys, targets), RowsOf::at(keys, others));
        products.each_row(*isa, of_targets, of_others, |target, products| {
            let inverse = inverse_norm(squares[targets[target] as usize]);
            for (nearest, product) in nearest.iter_mut().zip(products) {
                let similarity = *product * inverse;
                if similarity > nearest.1 {
                    *nearest = (target as u32, similarity);
                }
            }
        });
        for (&other, &(target, _)) in others.iter().zip(&*nearest) {
            out.assign(other, dominant as u32 + target);
        }
        out.finish();
        Ok(())
    }
}

/// The tokens that are not in `kept`, which is ascending.
pub(super) fn rest(n_tokens: usize, kept: &[u32]) -> impl Iterator<Item = u32> {
    let mut kept = kept.iter().copied().peekable();
    (0..n_tokens as u32).filter(move |&token| kept.next_if_eq(&token).is_none())
}
