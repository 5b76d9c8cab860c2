//! How a text becomes windows for a model: [`Recipe`], [`Window`].
//!
//! One model and text have as many perplexities as there are ways to cut the text, and published ones differ by half. So the
//! recipe is part of a result. Windows of 10 tokens where a window has 4, as `[begin, end)` with the number scored:
//!
//! | recipe | windows | added | scored |
//! |---|---|---|---|
//! | [`Strided`](Recipe::Strided), stride 2 | 0-4: 3, 2-6: 2, 4-8: 2, 6-10: 2 | a prefix once, if asked for | every token that has one before it |
//! | `Strided`, stride 4 | 0-4: 3, 3-8: 4, 7-10: 2 | | the same |
//! | [`HfDoc`](Recipe::HfDoc), stride 4 | 0-4: 3, 4-8: 3, 8-10: 1 | nothing | all but the first of a window |
//! | [`LlamaCpp`](Recipe::LlamaCpp) | 0-4: 1, 4-8: 1 | BOS in place of the first token of each | the second half of each |
//! | [`LmEvalRolling`](Recipe::LmEvalRolling) | 0-4: 4, 3-8: 4, 5-10: 2 | a prefix before the first window | every token once |
//!
//! All tokens of a window but the last are fed to the model, so that windows of 5 tokens above feed 4.
//!
//! - `HfDoc` is the code of transformers' page on perplexity: a window's mean counts as often as it has new tokens, less one. Only in
//!   the first window is one less scored, where strides overlap, so that the result is off; `Strided` is what it means. Windows that
//!   score nothing, of which that code's loss is NaN, are left out.
//! - `LlamaCpp` is `llama-perplexity` without a stride: texts of two windows at least, what does not fill one is dropped.
//! - `LmEvalRolling` is `loglikelihood_rolling` of lm-evaluation-harness 0.4: the last window backs up for a full context.

use std::{fmt, ops::Range};

use crate::error::{EvalError, Result};

/// How a text is cut into windows, and what of each is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recipe {
    /// Windows of `max_len` tokens that begin `stride` apart, and score what the one before did not; exactly, one token after the other.
    Strided {
        /// Tokens of a window.
        max_len: usize,
        /// Tokens from the start of one to that of the next, `max_len` at most.
        stride: usize,
        /// A token before the first one, such as BOS, where the text does not begin with it.
        prefix: Option<u32>,
    },
    /// The code of the page on perplexity in the documentation of transformers, with its weights.
    HfDoc {
        /// Tokens of a window.
        max_len: usize,
        /// Tokens from the start of one to that of the next, `max_len` at most.
        stride: usize,
    },
    /// `llama-perplexity` of llama.cpp.
    LlamaCpp {
        /// Tokens of a window.
        n_ctx: usize,
        /// The token in place of the first of each window, if the vocabulary adds one.
        bos: Option<u32>,
    },
    /// `loglikelihood_rolling` of lm-evaluation-harness.
    LmEvalRolling {
        /// Most tokens that are fed at once.
        max_len: usize,
        /// Tokens that a window has before the ones that it scores, at least; 1 in that program.
        context_len: usize,
        /// The token before the first one: BOS, or EOS where there is none.
        prefix: u32,
    },
}

/// A window of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Tokens of the text in it. All but the last are fed.
    pub tokens: Range<usize>,
    /// Tokens of the text that are scored.
    pub scored: Range<usize>,
    /// What is fed beside them.
    pub lead: Lead,
    /// How often the window's mean counts: as often as tokens are scored, but for [`Recipe::HfDoc`].
    pub weight: usize,
}

/// The token that a window begins with, where that is not the text's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lead {
    /// The text's.
    Text,
    /// This one, and then the text's.
    Before(u32),
    /// This one, and the text's first one is not fed.
    InPlaceOfFirst(u32),
}

impl Recipe {
    /// The windows of a text of `n_tokens`, in order.
    ///
    /// # Errors
    ///
    /// [`EvalError::Value`] if the recipe's numbers make no sense; [`EvalError::TooFewTokens`].
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_eval::Recipe;
    ///
    /// let recipe = Recipe::LlamaCpp { n_ctx: 4, bos: Some(1) };
    /// let scored: Vec<_> = recipe.windows(10)?.map(|window| window.scored).collect();
    /// assert_eq!(scored, [3..4, 7..8]);
    /// # Ok::<(), squish_eval::EvalError>(())
    /// ```
    pub fn windows(&self, n_tokens: usize) -> Result<Windows> {
        let least = self.check()?;
        if n_tokens < least {
            return Err(EvalError::TooFewTokens { expected: least, actual: n_tokens });
        }
        Ok(Windows::new(*self, n_tokens))
    }

    /// The least number of tokens of a text, if the recipe's numbers make sense.
    fn check(&self) -> Result<usize> {
        let check = |what, actual: usize, range: Range<usize>, expected| {
            EvalError::check_value(what, actual as f64, range.contains(&actual), expected)
        };
        match *self {
            Self::Strided { max_len, stride, prefix } => {
                check("max_len", max_len, 1..usize::MAX, "1 or more")?;
                check("stride", stride, 1..max_len + 1, "1 to `max_len`")?;
                Ok(if prefix.is_some() { 1 } else { 2 })
            }
            Self::HfDoc { max_len, stride } => {
                check("max_len", max_len, 2..usize::MAX, "2 or more")?;
                check("stride", stride, 1..max_len + 1, "1 to `max_len`")?;
                Ok(2)
            }
            Self::LlamaCpp { n_ctx, .. } => {
                check("n_ctx", n_ctx, 3..usize::MAX, "3 or more")?;
                Ok(n_ctx.saturating_mul(2))
            }
            Self::LmEvalRolling { max_len, context_len, .. } => {
                check("max_len", max_len, 1..usize::MAX, "1 or more")?;
                check("context_len", context_len, 1..max_len + 1, "1 to `max_len`")?;
                Ok(1)
            }
        }
    }
}

impl Window {
    /// Tokens that the model is fed.
    pub fn n_fed(&self) -> usize {
        self.tokens.len() - 1 + usize::from(matches!(self.lead, Lead::Before(_)))
    }

    /// Of what is fed, the row whose logits foresee token `index` of the text.
    pub(crate) fn row_before(&self, index: usize) -> usize {
        self.n_fed() + index - self.tokens.end
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Strided { max_len, stride, prefix } => {
                write!(f, "strided, {max_len} by {stride}")?;
                prefix.map_or(Ok(()), |prefix| write!(f, ", after token {prefix}"))
            }
            Self::HfDoc { max_len, stride } => {
                write!(f, "transformers' documentation, {max_len} by {stride}")
            }
            Self::LlamaCpp { n_ctx, bos } => {
                write!(f, "llama.cpp, {n_ctx}")?;
                bos.map_or(Ok(()), |bos| write!(f, ", token {bos} first"))
            }
            Self::LmEvalRolling { max_len, context_len, prefix } => {
                write!(f, "lm-eval rolling, {max_len} after {context_len}, after token {prefix}")
            }
        }
    }
}

/// The windows of a text; see [`Recipe::windows`].
#[derive(Clone, Debug)]
pub struct Windows {
    recipe: Recipe,
    n_tokens: usize,
    /// Where the next window begins, in tokens with the prefix.
    begin: usize,
    /// Where the last one ended.
    end: usize,
}

impl Windows {
    /// Windows of a recipe that was checked, of a text of any length.
    pub(crate) fn new(recipe: Recipe, n_tokens: usize) -> Self {
        Self { recipe, n_tokens, begin: 0, end: 0 }
    }

    /// The next of windows of `max_len` that begin `stride` apart: where it begins and ends, and where the last one ended.
    fn stride(&mut self, max_len: usize, stride: usize, n_tokens: usize) -> Option<[usize; 3]> {
        let (begin, before) = (self.begin, self.end);
        let end = begin.saturating_add(max_len).min(n_tokens);
        (before < end).then(|| {
            (self.begin, self.end) = (begin + stride, end);
            [begin, end, before]
        })
    }

    fn strided(&mut self, max_len: usize, stride: usize, prefix: Option<u32>) -> Option<Window> {
        // The prefix is a token of the text here, until the end.
        let n_before = usize::from(prefix.is_some());
        loop {
            let [begin, end, before] = self.stride(max_len, stride, self.n_tokens + n_before)?;
            // A token that none stands before in its window gets the one before it: not to feed the last one leaves room.
            let begin = if before == begin { begin.saturating_sub(1) } else { begin };
            let scored = before.max(1)..end;
            if scored.is_empty() {
                continue;
            }
            let lead = prefix.filter(|_| begin == 0).map_or(Lead::Text, Lead::Before);
            let (weight, scored) = (scored.len(), scored.start - n_before..end - n_before);
            let tokens = begin.saturating_sub(n_before)..end - n_before;
            return Some(Window { tokens, scored, lead, weight });
        }
    }

    fn hf_doc(&mut self, max_len: usize, stride: usize) -> Option<Window> {
        loop {
            let [begin, end, before] = self.stride(max_len, stride, self.n_tokens)?;
            let scored = before.max(begin + 1)..end;
            if !scored.is_empty() {
                let weight = end - before - 1;
                return Some(Window { tokens: begin..end, scored, lead: Lead::Text, weight });
            }
        }
    }

    fn llama_cpp(&mut self, n_ctx: usize, bos: Option<u32>) -> Option<Window> {
        let begin = self.begin;
        let end = begin.checked_add(n_ctx).filter(|&end| end <= self.n_tokens)?;
        self.begin = end;
        let scored = begin + n_ctx / 2 + 1..end;
        let lead = bos.map_or(Lead::Text, Lead::InPlaceOfFirst);
        Some(Window { tokens: begin..end, lead, weight: scored.len(), scored })
    }

    fn rolling(&mut self, max_len: usize, context_len: usize, prefix: u32) -> Option<Window> {
        let before = self.end;
        let n_new = if before == 0 { max_len } else { max_len - context_len + 1 };
        let scored = before..before.saturating_add(n_new).min(self.n_tokens);
        if scored.is_empty() {
            return None;
        }
        self.end = scored.end;
        // After the first window there are more than `max_len` tokens up to here.
        let (begin, lead) = match before {
            0 => (0, Lead::Before(prefix)),
            _ => (scored.end - max_len - 1, Lead::Text),
        };
        Some(Window { tokens: begin..scored.end, lead, weight: scored.len(), scored })
    }
}

impl Iterator for Windows {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        match self.recipe {
            Recipe::Strided { max_len, stride, prefix } => self.strided(max_len, stride, prefix),
            Recipe::HfDoc { max_len, stride } => self.hf_doc(max_len, stride),
            Recipe::LlamaCpp { n_ctx, bos } => self.llama_cpp(n_ctx, bos),
            Recipe::LmEvalRolling { max_len, context_len, prefix } => {
                self.rolling(max_len, context_len, prefix)
            }
        }
    }
}
