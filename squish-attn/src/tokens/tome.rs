//! `ToMe`: bipartite soft matching (arXiv 2210.09461, section 3).
//!
//! ```text
//! A, B = tokens 0, 2, 4, … and tokens 1, 3, 5, …
//! each token of A: its most similar one of B, by the cosine of keys
//! the r tokens of A with the largest similarities are merged into those of B
//! new tokens: what is left of A, most similar first, then B
//! ```
//!
//! With a class token, the first one, that one stays, and what is left of A is in its original order. As the released code, `r` is at most
//! half of the tokens that may be merged, and with `r` of 0 tokens stay as they are.
//!
//! Of equal similarities the lowest index of B is taken, and the lowest of A goes first. The released code divides keys by their norms
//! before it multiplies them, which rounds otherwise; keys that are zero, or whose square is, have similarity 0 with all, and not NaN.

use ndarray::ArrayView2;
use squish_kernels::reduce::argmax_with;

use super::{
    TokensWorkspace,
    products::{Named, RowsOf, scale},
    select::squares_into,
    selection::Assignment,
};
use crate::Result;

/// Whether the first token is one that must stay as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassToken {
    /// All tokens are alike.
    #[default]
    Absent,
    /// The first token is that of the class.
    First,
}

/// Room for the matching.
#[derive(Debug, Default)]
pub(super) struct TomeScratch {
    /// Of each token of A.
    similarities: Vec<f32>,
    /// The most similar token of B.
    partners: Vec<u32>,
    /// Tokens of A, most similar first.
    order: Vec<u32>,
}

impl TokensWorkspace {
    /// Merges `r` tokens into others, by `keys`, `[n_tokens, dim]`: the mean of a layer's keys over heads in the paper.
    ///
    /// The target of a group is its token of B, or the only one. New tokens are made by [`merge_into`](super::merge_into) with
    /// [`Merge::Mean`](super::Merge::Mean), from the sizes of the layer before, and attention after it is in proportion to the new sizes:
    /// [`widen_keys_into`](super::widen_keys_into).
    ///
    /// # Errors
    ///
    /// [`AttnError::NotFinite`](crate::AttnError::NotFinite) of a key that is not finite, or whose square is not;
    /// [`AttnError::Layout`](crate::AttnError::Layout) if rows are not contiguous.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::{Assignment, TokensWorkspace, ndarray::array, tokens::ClassToken};
    ///
    /// let keys = array![[1.0, 0.0], [0.0, 1.0], [0.1, 2.0], [0.5, 0.0]];
    /// let mut groups = Assignment::default();
    /// TokensWorkspace::new().tome_into(keys.view(), 1, ClassToken::Absent, &mut groups)?;
    /// // Token 0 became part of token 3, the last one.
    /// assert_eq!((groups.groups(), groups.targets()), (&[2, 1, 0, 2][..], &[2, 1, 3][..]));
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn tome_into(
        &mut self,
        keys: ArrayView2<'_, f32>,
        r: usize,
        class_token: ClassToken,
        out: &mut Assignment,
    ) -> Result<()> {
        let Self { isa, products, squares, inverses, tome, .. } = self;
        squares_into("keys", *isa, keys, squares)?;
        let n_tokens = keys.nrows();
        let n_protected = usize::from(class_token == ClassToken::First);
        let r = r.min(n_tokens.saturating_sub(n_protected) / 2);
        if r == 0 {
            out.leave_all(n_tokens);
            return Ok(());
        }
        let (n_a, n_b) = (n_tokens.div_ceil(2), n_tokens / 2);
        let TomeScratch { similarities, partners, order } = tome;
        inverses.clear();
        inverses.extend(squares.iter().skip(1).step_by(2).map(|&square| inverse_norm(square)));
        similarities.clear();
        partners.clear();
        let every_other = |first| RowsOf { matrix: keys, named: Named::Every { first, step: 2 } };
        products.each_row(*isa, every_other(0), every_other(1), |a, products| {
            scale(products, inverses);
            let b = argmax_with(*isa, products).unwrap_or(0);
            // Adding zero makes one of the zeros of both signs.
            similarities.push(products[b] * inverse_norm(squares[2 * a]) + 0.0);
            partners.push(b as u32);
        });
        if class_token == ClassToken::First {
            similarities[0] = f32::NEG_INFINITY;
        }
        order.clear();
        order.extend(0..n_a as u32);
        order.sort_unstable_by(|&i, &j| {
            similarities[j as usize].total_cmp(&similarities[i as usize]).then(i.cmp(&j))
        });
        let (merged, left) = order.split_at_mut(r);
        if class_token == ClassToken::First {
            left.sort_unstable();
        }
        out.begin(n_tokens);
        for &a in &*left {
            out.add_group(2 * a);
        }
        let first_of_b = left.len() as u32;
        for b in 0..n_b as u32 {
            out.add_group(2 * b + 1);
        }
        for &a in &*merged {
            out.assign(2 * a, first_of_b + partners[a as usize]);
        }
        out.finish();
        Ok(())
    }
}

/// What a vector is multiplied by to have norm 1; 0 if it has none.
pub(super) fn inverse_norm(square: f32) -> f32 {
    if square == 0.0 { 0.0 } else { 1.0 / square.sqrt() }
}
