//! What a model has to do to be measured: [`CausalLm`].
//!
//! Logits are handed over row by row, as `[seq_len, vocab_size]` of them would be 300 MB for 512 tokens of a large vocabulary. A model
//! is told before it begins which rows are wanted, so that it multiplies no other hidden state with its head, and it may ask for
//! several windows at once. Windows know nothing of each other: what a cache holds of one is of no use to the next.

use std::ops::Range;

use crate::error::{EvalError, Result};

/// A causal language model, whose logits after a token depend on the tokens up to it.
///
/// # Examples
///
/// A model that foresees the token one above the last, with 9 of 10 parts:
///
/// ```
/// use squish_eval::{CausalLm, EvalError, Prompt, Recipe, RowSink, perplexity};
///
/// struct CountsUp;
///
/// impl CausalLm for CountsUp {
///     type Error = EvalError;
///
///     fn vocab_size(&self) -> usize {
///         8
///     }
///
///     fn max_seq_len(&self) -> usize {
///         64
///     }
///
///     fn logits(&mut self, prompt: Prompt<'_>, sink: &mut RowSink<'_>) -> Result<(), EvalError> {
///         for row in prompt.wanted {
///             let mut logits = [0.0; 8];
///             logits[(prompt.tokens[row] as usize + 1) % 8] = 63_f32.ln();
///             sink(row, &logits)?;
///         }
///         Ok(())
///     }
/// }
///
/// let tokens: Vec<u32> = (0..50).map(|i| i % 8).collect();
/// let recipe = Recipe::Strided { max_len: 16, stride: 8, prefix: None };
/// let perplexity = perplexity(&mut CountsUp, &tokens, recipe)?;
/// assert!((perplexity.value() - 1.0 / 0.9).abs() < 1e-4);
/// assert_eq!(perplexity.nll.n_tokens(), 49);
/// # Ok::<(), EvalError>(())
/// ```
pub trait CausalLm {
    /// Why the model stopped. What a sink refuses passes through it.
    type Error: From<EvalError>;

    /// Elements of a row of logits.
    fn vocab_size(&self) -> usize;

    /// The most tokens that the model is fed at once.
    fn max_seq_len(&self) -> usize;

    /// Feeds the tokens of `prompt`, with nothing before them, and hands the wanted rows of logits to `sink`, in ascending order.
    ///
    /// # Errors
    ///
    /// The model's own, and those of `sink`, after which it is not called again.
    fn logits(
        &mut self,
        prompt: Prompt<'_>,
        sink: &mut RowSink<'_>,
    ) -> std::result::Result<(), Self::Error>;

    /// The most prompts that [`logits_of_batch`](Self::logits_of_batch) is called with.
    fn max_batch(&self) -> usize {
        1
    }

    /// [`logits`](Self::logits) of each of `prompts`, in order: what a model does that computes several at once, over the trunk, and then
    /// the head of one row after the other. `sink` takes the prompt's index, too.
    ///
    /// # Errors
    ///
    /// As above.
    fn logits_of_batch(
        &mut self,
        prompts: &[Prompt<'_>],
        sink: &mut BatchSink<'_>,
    ) -> std::result::Result<(), Self::Error> {
        for (i, prompt) in prompts.iter().enumerate() {
            self.logits(prompt.clone(), &mut |row, logits| sink(i, row, logits))?;
        }
        Ok(())
    }
}

/// What a model is fed, and what is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// Tokens, one at least and [`CausalLm::max_seq_len`] at most, each below [`CausalLm::vocab_size`].
    pub tokens: &'a [u32],
    /// Which of them are to be followed by their logits; the last token is always one.
    pub wanted: Range<usize>,
}

/// Takes a row of logits `[vocab_size]`, with its index among the tokens.
pub type RowSink<'a> = dyn FnMut(usize, &[f32]) -> Result<()> + 'a;

/// Takes a row of logits `[vocab_size]`, with the index of its prompt, and its index among that one's tokens.
pub type BatchSink<'a> = dyn FnMut(usize, usize, &[f32]) -> Result<()> + 'a;
