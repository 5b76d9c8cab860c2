//! How well a model foresees a text: negative log-likelihood and perplexity.
//!
//! ```text
//! nll_i = ln Σ e^z − z[t_i]        z: logits after the tokens before t_i, the maximum subtracted in the sum
//! perplexity = e^(Σ nll / n)       over n tokens, never a mean of perplexities
//! ```
//!
//! Perplexities compare only if they were measured alike. The recipe of [`perplexity`]: windows of `context` tokens that
//! do not overlap and know nothing of each other; each scores all of its tokens but the first; the last window may be
//! short. Nothing is added to the tokens, so a BOS token stands at the start of the first window if the text's
//! tokens begin with one, and nowhere else.

use std::{iter::Sum, ops::Add};

use squish_kernels::log_sum_exp;

use crate::{Error, Reference, reference::check_vocabulary};

/// The negative log-likelihood of a number of tokens. Sums of it are those of all their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Nll {
    /// The sum, in nats; infinite if a token had no probability at all.
    pub nats: f64,
    /// The number of tokens scored.
    pub n_tokens: u64,
}

impl Nll {
    /// `e` to the mean; `None` without tokens.
    pub fn perplexity(self) -> Option<f64> {
        (self.n_tokens > 0).then(|| (self.nats / self.n_tokens as f64).exp())
    }
}

impl Add for Nll {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nats: self.nats + other.nats, n_tokens: self.n_tokens + other.n_tokens }
    }
}

impl Sum for Nll {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

/// Negative log-likelihood of the token `target` under `logits` `[vocab_size]`, in nats.
///
/// Not below 0, and infinite where the target's logit is −∞ and another is not. The error is that of
/// [`log_sum_exp`]: `2^-21` plus the rounding of a number of the size of the largest logit.
///
/// # Errors
///
/// [`Error::Token`] if there is no such logit; [`Error::Logits`] if one is NaN or +∞, or all are −∞.
///
/// # Examples
///
/// ```
/// let uniform = [2.5; 4];
/// assert!((squish_model::token_nll(&uniform, 3)? - 4_f64.ln()).abs() < 1e-6);
/// # Ok::<(), squish_model::Error>(())
/// ```
pub fn token_nll(logits: &[f32], target: u32) -> Result<f64, Error> {
    let Some(&logit) = logits.get(target as usize) else {
        return Err(Error::Token { token: target, index: 0, vocab_size: logits.len() });
    };
    let log_sum_exp = log_sum_exp(logits);
    if !log_sum_exp.is_finite() {
        return Err(Error::Logits { log_sum_exp });
    }
    // The difference of two f32 may overflow one. It is negative only where the rounding of the logarithm makes it so.
    Ok((f64::from(log_sum_exp) - f64::from(logit)).max(0.0))
}

/// Negative log-likelihood of `tokens` in windows of `context`, by the recipe at the top of this module.
///
/// # Errors
///
/// [`Error::TooFewTokens`] if there are not two tokens, or a window does not have room for two; those of
/// [`Reference::logits`] and [`token_nll`].
pub fn perplexity(model: &Reference, tokens: &[u32], context: usize) -> Result<Nll, Error> {
    for actual in [tokens.len(), context] {
        if actual < 2 {
            return Err(Error::TooFewTokens { expected: 2, actual });
        }
    }
    // The last token of a window is scored and not fed, so that the forward pass does not see it.
    check_vocabulary(tokens, model.config())?;
    tokens
        .chunks(context)
        .filter(|window| window.len() > 1)
        .map(|window| score(model, window))
        .sum()
}

/// Negative log-likelihood of all tokens of `window` but the first.
fn score(model: &Reference, window: &[u32]) -> Result<Nll, Error> {
    let mut total = Nll::default();
    // The logits of the last token predict what is not in the window.
    model.for_each_logits(&window[..window.len() - 1], |i, logits| {
        total = total + Nll { nats: token_nll(logits, window[i + 1])?, n_tokens: 1 };
        Ok(())
    })?;
    Ok(total)
}
