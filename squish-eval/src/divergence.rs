//! How far a model is from another on a text: [`divergence`].

use crate::{CausalLm, KlStats, Recipe, error::EvalError, perplexity::for_each_row_of};

/// Adds to `stats` every token of `tokens` that `recipe` scores, with the logits of `base` and of `other`.
///
/// The base's logits of a window are in memory while the other model computes its own: `4 * vocab_size` bytes for each token that the window
/// scores.
///
/// # Errors
///
/// As [`for_each_row`](crate::for_each_row) of either model; [`EvalError::Length`] of models with different vocabularies. Then what was
/// added before stays.
///
/// # Panics
///
/// Never: both models give the rows of a window, or are refused.
pub fn divergence<B, M>(
    base: &mut B,
    other: &mut M,
    tokens: &[u32],
    recipe: Recipe,
    stats: &mut KlStats,
) -> Result<(), M::Error>
where
    B: CausalLm<Error = M::Error>,
    M: CausalLm,
{
    let vocab_size = base.vocab_size();
    EvalError::check_length("vocabulary", vocab_size, other.vocab_size())?;
    let mut of_base: Vec<f32> = Vec::new();
    for window in recipe.windows(tokens.len())? {
        of_base.clear();
        let windows = std::iter::once(window);
        for_each_row_of(base, tokens, windows.clone(), |row| {
            of_base.extend_from_slice(row.logits);
            Ok(())
        })?;
        let mut of_base = of_base.chunks_exact(vocab_size);
        for_each_row_of(other, tokens, windows, |row| {
            let base = of_base.next().expect("both models give the rows of the window");
            stats.push(base, row.logits, row.token)
        })?;
    }
    Ok(())
}
