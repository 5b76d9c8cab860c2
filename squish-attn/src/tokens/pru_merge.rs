//! `PruMerge`: tokens whose attention is an outlier, each with what is like it, and one more for the rest (arXiv 2403.15388).
//!
//! ```text
//! kept     tokens with attention a beyond the upper fence, most attention first
//! kept'    x[i] + Σ a[j] · x[j]               the 32 other tokens j, kept or not, most similar by the cosine of keys
//! rest     Σ a[j] · x[j]                      all tokens j that are not kept, as the last new token
//! plus     kept, too: tokens 0, s, 2 s, …, the last token left out; s = max(1, (n / n_outliers) / 3), whole numbers
//! ```
//!
//! As the released code, weights are attention as it is, and no means. Departures: the number of outliers is counted, where that code
//! multiplies its ratio again, and may lose one to rounding; where no outlier is found, it fails in `plus`, and here nothing is kept;
//! where no token is left for the rest, it adds a token of zeros, and here none is added.
//!
//! Of equal attention, and of equal similarities, the lowest index goes first; terms of a sum are added in the order of the tokens, the
//! token's own first. Keys that are zero, or whose square is, have similarity 0 with all.

use ndarray::ArrayView2;

use super::{
    TokensWorkspace,
    products::{RowsOf, scale},
    select::{Keep, check_scores, squares_into},
    selection::Mixture,
    tome::inverse_norm,
    vision_zip::{Lists, rest},
};
use crate::{AttnError, Result};

/// How `PruMerge` prunes and merges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PruMerge {
    /// Which tokens are kept.
    pub keep: PruKeep,
    /// How many others are added to each, or all if there are fewer.
    pub neighbors: usize,
    /// What is kept besides.
    pub supplement: Supplement,
}

impl Default for PruMerge {
    fn default() -> Self {
        Self { keep: PruKeep::Outliers, neighbors: 32, supplement: Supplement::Nothing }
    }
}

/// Which tokens `PruMerge` keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum PruKeep {
    /// As many as are outliers.
    #[default]
    Outliers,
    /// So many, those with most attention.
    Largest(Keep),
}

/// What `PruMerge` keeps besides the tokens with most attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Supplement {
    /// Nothing.
    #[default]
    Nothing,
    /// Tokens evenly spaced, in order, without those that are kept anyway: `PruMerge+`.
    Spaced,
}

impl TokensWorkspace {
    /// The sums of `PruMerge`, by the attention of the class token to each, `[n_tokens]`, and keys, `[n_tokens, dim]`, of one layer of the
    /// encoder, of all heads together. [`mix_into`](super::mix_into) computes them.
    ///
    /// # Errors
    ///
    /// [`AttnError::Axis`]; [`AttnError::NotFinite`] of attention, or of a key that is not finite or whose square is not;
    /// [`AttnError::Value`] of a share; [`AttnError::Layout`] if rows are not contiguous.
    pub fn pru_merge_into(
        &mut self,
        attention: &[f32],
        keys: ArrayView2<'_, f32>,
        options: PruMerge,
        out: &mut Mixture,
    ) -> Result<()> {
        let Self { isa, products, squares, inverses, top, lists, .. } = self;
        let n_tokens = attention.len();
        AttnError::check_axis("keys", "rows", n_tokens, keys.nrows())?;
        squares_into("keys", *isa, keys, squares)?;
        check_scores("attention", *isa, attention, 0)?;
        let n_largest = match options.keep {
            PruKeep::Largest(keep) => keep.of(n_tokens)?,
            PruKeep::Outliers => {
                let fences = top.fences(attention);
                attention.iter().filter(|&&a| f64::from(a) > fences.upper).count()
            }
        };
        // In the order of the result, and ascending.
        let Lists { targets: order, kept, .. } = lists;
        order.clear();
        order.extend_from_slice(top.largest(*isa, attention, n_largest));
        kept.clear();
        kept.extend_from_slice(order);
        kept.sort_unstable();
        if options.supplement == Supplement::Spaced && n_largest > 0 {
            let step = (n_tokens / n_largest / 3).max(1);
            let spaced = (0..(n_tokens - 1) as u32).step_by(step);
            order.extend(spaced.filter(|token| kept.binary_search(token).is_err()));
            kept.clear();
            kept.extend_from_slice(order);
            kept.sort_unstable();
        }
        inverses.clear();
        inverses.extend(squares.iter().map(|&square| inverse_norm(square)));
        out.begin(n_tokens);
        let n_neighbors = options.neighbors.min(n_tokens.saturating_sub(1));
        let (of_kept, all) = (RowsOf::at(keys, order), RowsOf::all(keys));
        products.each_row(*isa, of_kept, all, |row, products| {
            scale(products, inverses);
            let own = order[row];
            products[own as usize] = f32::NEG_INFINITY;
            let neighbors = top.largest(*isa, products, n_neighbors);
            neighbors.sort_unstable();
            out.add_term(own, 1.0);
            for &token in &*neighbors {
                out.add_term(token, attention[token as usize]);
            }
            out.end_token();
        });
        if kept.len() < n_tokens {
            for token in rest(n_tokens, kept) {
                out.add_term(token, attention[token as usize]);
            }
            out.end_token();
        }
        Ok(())
    }
}
