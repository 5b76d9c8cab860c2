//! The next token of a text: logits, what changes them, what cuts them off, and a draw.
//!
//! ```text
//! x[i] += bias of i                                              logit bias
//! x[i] = x[i] < 0 ? x[i] · r : x[i] / r                          repetition, i in the prompt or generated
//! x[i] = (x[i] − n(i) · f) − p                                   frequency, presence; i generated n(i) > 0 times
//! x = x / T                                                      temperature; 0 is greedy and ends here
//! drop i with x[i] < the k-th largest                            top-k, ties with the k-th stay
//! drop i with Σ { P[j] : j up to i in ascending order } ≤ 1 − p  top-p, P = softmax(x); the last one stays
//! drop i with P[i] < m · max P                                   min-p, P = softmax(x) of what is left
//! token = the first i with Σ { P[j] : j ≤ i } > u · Σ P          P = softmax(x) of what is left
//! ```
//!
//! These are transformers' processors in transformers' order (version 5.23: `SequenceBias`, `RepetitionPenalty`, `Temperature`,
//! `TopK`, `TopP` and `MinP` of `generation/logits_process.py`), with the presence and frequency penalties of `OpenAI`'s API, which
//! transformers does not have, between its penalties and its warpers. Scores are `f32`, each step one rounding, as there; options
//! are `f64`, the numbers of JSON, because `1 − top_p` is rounded after the subtraction.
//!
//! Of equal scores at the edge of top-p the one with the higher id stays, which is what an ascending stable sort does; greedy
//! decoding and lists of the most probable tokens take the lower id.
//!
//! **The draw** is by the inverse of the cumulative distribution, in the order of ids, in `f64`. The uniform `u` is an argument;
//! [`uniform`] makes it from a seed and a position, without state. So a sequence draws the same tokens whatever else is in a batch,
//! however its steps are cut, and whether a position is computed once or again.
//!
//! How the code departs from the formulas: nothing is sorted. The k-th largest comes from a selection in one pass; the cut of
//! top-p from halving, with the sum of the upper half, what is left of tokens that are not negligible: tokens of a
//! probability up to `(1 − p) / n` have no more than `1 − p` together, and so all go.

mod candidates;
mod penalty;
mod philox;

pub use philox::uniform;

use squish_kernels::{argmax, softmax_into, top_k, top_k_scratch_len};

use crate::Error;
use candidates::Candidates;

/// How the next token is chosen. The default is to draw from the model's own distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides logits that are positive, and multiplies others, of tokens in the prompt or generated. Above 0; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Subtracted from the logits of generated tokens once. 0 changes nothing.
    pub presence_penalty: f64,
    /// Subtracted from the logits of generated tokens as often as they were generated. 0 changes nothing.
    pub frequency_penalty: f64,
    /// Divides logits; at 0 the largest logit is taken and nothing below applies.
    pub temperature: f64,
    /// Keeps as many of the most probable tokens, and those with the logit of the last of them. 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most probable tokens whose probabilities sum to at least this. Above 0, at most 1, which keeps all.
    pub top_p: f64,
    /// Keeps tokens whose probability is at least this part of the largest. From 0, which keeps all, to 1.
    pub min_p: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

impl Sampling {
    /// The token with the largest logit, of equal ones that with the lowest id; no penalties.
    ///
    /// ```
    /// use squish_model::{Sampler, Sampling, sampler::Context};
    ///
    /// let mut sampler = Sampler::new(3);
    /// let next = sampler.sample(&[0.5, 2.0, 2.0], Context::default(), 0.9, Sampling::greedy())?;
    /// assert_eq!(next.token, 1);
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the uniform does not matter.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether every option is in its range.
    ///
    /// # Errors
    ///
    /// [`Error::Sampling`] of the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        for (field, actual, holds, expected) in [
            (
                "repetition_penalty",
                self.repetition_penalty,
                positive(self.repetition_penalty),
                "finite and above 0",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                self.presence_penalty.is_finite(),
                "a finite number",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                self.frequency_penalty.is_finite(),
                "a finite number",
            ),
            (
                "temperature",
                self.temperature,
                positive(self.temperature) || self.temperature == 0.0,
                "finite and at least 0",
            ),
            ("top_p", self.top_p, positive(self.top_p) && self.top_p <= 1.0, "above 0, at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
        ] {
            if !holds {
                return Err(Error::Sampling { field, actual, expected });
            }
        }
        Ok(())
    }
}

/// What besides the logits decides about the next token of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Context<'a> {
    /// The tokens that were given. Only the repetition penalty looks at them.
    pub prompt: &'a [u32],
    /// The tokens generated so far.
    pub generated: &'a [u32],
    /// Added to logits, by token, one after the other; negative infinity forbids a token.
    pub logit_bias: &'a [(u32, f32)],
}

/// A token and the logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability, at most 0.
    pub logprob: f32,
}

/// Tokens of which [`Sampler::top_logprobs`] can tell.
pub const MAX_TOP_LOGPROBS: usize = 1024;

/// The scratch memory of sampling from one vocabulary. Nothing of a call matters to the next one, so that all sequences can use one.
#[derive(Clone, Debug)]
pub struct Sampler {
    candidates: Candidates,
    counts: Vec<u32>,
    /// The largest score and its logprob.
    largest: (f32, f64),
    top_values: Vec<f32>,
    top_indices: Vec<u32>,
    top_scratch: Vec<u64>,
}

impl Sampler {
    /// A sampler for rows of `vocab_size` logits.
    #[must_use]
    pub fn new(vocab_size: usize) -> Self {
        Self {
            candidates: Candidates::new(vocab_size),
            counts: vec![0; vocab_size],
            largest: (f32::NEG_INFINITY, 0.0),
            top_values: vec![0.0; MAX_TOP_LOGPROBS],
            top_indices: vec![0; MAX_TOP_LOGPROBS],
            top_scratch: vec![0; top_k_scratch_len(MAX_TOP_LOGPROBS)],
        }
    }

    /// The number of logits in a row.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.counts.len()
    }

    /// The token that `uniform`, in `0.0..1.0`, draws after `context`, given `logits` `[vocab_size]`; with its logprob in the
    /// distribution that it was drawn from, after all steps. Greedy tokens have that of temperature 1.
    ///
    /// Logits of negative infinity are tokens that cannot be drawn. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Sampling`] of an option or a uniform out of range, or a temperature so low that logits overflow;
    /// [`Error::LogitCount`]; [`Error::Token`] of a context; [`Error::Logit`] of a NaN or a positive infinity, in the logits or after
    /// bias and penalties; [`Error::NoToken`] if all are negative infinity.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_model::{Sampler, Sampling, sampler::{Context, uniform}};
    ///
    /// let mut sampler = Sampler::new(4);
    /// let logits = [1.0, 3.0, 2.0, -1.0];
    /// let sampling = Sampling { temperature: 0.7, top_k: 2, ..Sampling::default() };
    /// let context = Context { prompt: &[0, 2], generated: &[1], ..Context::default() };
    /// let next = sampler.sample(&logits, context, uniform(42, 3), sampling)?;
    /// assert!([1, 2].contains(&next.token));
    /// assert!(next.logprob < 0.0);
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    #[expect(
        clippy::missing_panics_doc,
        reason = "it never does: a score is finite once they are checked"
    )]
    pub fn sample(
        &mut self,
        logits: &[f32],
        context: Context<'_>,
        uniform: f64,
        sampling: Sampling,
    ) -> Result<TokenLogprob, Error> {
        if !(0.0..1.0).contains(&uniform) {
            let expected = "at least 0, below 1";
            return Err(Error::Sampling { field: "uniform", actual: uniform, expected });
        }
        self.process(logits, context, sampling)?;
        let scores = &self.candidates.scores;
        let probs = &mut self.candidates.probs[..scores.len()];
        softmax_into(scores, probs);
        let first = argmax(scores).expect("a finite score");
        self.largest = (scores[first], f64::from(probs[first]).ln());
        let chosen = if sampling.is_greedy() { first } else { draw(probs, uniform) };
        Ok(self.token_logprob(chosen))
    }

    /// The candidate at `index`. Scores may be large and their differences are not, so that both are those from the largest.
    fn token_logprob(&self, index: usize) -> TokenLogprob {
        let Candidates { ids, scores, .. } = &self.candidates;
        let (largest, its_logprob) = self.largest;
        let logprob = f64::from(scores[index]) - f64::from(largest) + its_logprob;
        TokenLogprob { token: ids[index], logprob: logprob.min(0.0) as f32 }
    }

    /// Writes the most probable tokens of the distribution that the last call of [`sample`](Self::sample) drew from to `top`,
    /// in descending order, and returns how many: fewer than there is room for if fewer can be drawn, and at most
    /// [`MAX_TOP_LOGPROBS`]. Allocates nothing. After a call that failed, the result has no meaning.
    ///
    /// ```
    /// use squish_model::{Sampler, Sampling, sampler::{Context, TokenLogprob}};
    ///
    /// let mut sampler = Sampler::new(4);
    /// let sampling = Sampling { top_k: 2, ..Sampling::default() };
    /// sampler.sample(&[1.0, 2.0, 3.0, 2.5], Context::default(), 0.5, sampling)?;
    /// let mut top = [TokenLogprob { token: 0, logprob: 0.0 }; 3];
    /// assert_eq!(sampler.top_logprobs(&mut top), 2);
    /// assert_eq!((top[0].token, top[1].token), (2, 3));
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    pub fn top_logprobs(&mut self, top: &mut [TokenLogprob]) -> usize {
        let n = top.len().min(MAX_TOP_LOGPROBS);
        let (values, indices) = (&mut self.top_values[..n], &mut self.top_indices[..n]);
        let n_found = top_k(&self.candidates.scores, values, indices, &mut self.top_scratch);
        let finite = values[..n_found].iter().take_while(|&&score| score > f32::NEG_INFINITY);
        let n_written = finite.count();
        for (i, top) in top[..n_written].iter_mut().enumerate() {
            *top = self.token_logprob(self.top_indices[i] as usize);
        }
        n_written
    }

    /// The scores after all steps, into `scores` `[vocab_size]`: negative infinity for tokens that were cut off. Their softmax is
    /// the distribution that [`sample`](Self::sample) draws from, which a verifier of drafts asks for. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`sample`](Self::sample); then `scores` is as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_model::{Sampler, Sampling, sampler::Context};
    ///
    /// let mut scores = [0.0; 3];
    /// let sampling = Sampling { temperature: 0.5, top_k: 2, ..Sampling::default() };
    /// Sampler::new(3).process_into(&[1.0, 3.0, 2.0], Context::default(), sampling, &mut scores)?;
    /// assert_eq!(scores, [f32::NEG_INFINITY, 6.0, 4.0]);
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    pub fn process_into(
        &mut self,
        logits: &[f32],
        context: Context<'_>,
        sampling: Sampling,
        scores: &mut [f32],
    ) -> Result<(), Error> {
        check_len(scores.len(), self.vocab_size())?;
        self.process(logits, context, sampling)?;
        scores.fill(f32::NEG_INFINITY);
        for (&id, &score) in self.candidates.ids.iter().zip(&self.candidates.scores) {
            scores[id as usize] = score;
        }
        Ok(())
    }

    /// Leaves the tokens that can be drawn in `self.candidates`.
    fn process(
        &mut self,
        logits: &[f32],
        context: Context<'_>,
        sampling: Sampling,
    ) -> Result<(), Error> {
        sampling.check()?;
        check_len(logits.len(), self.vocab_size())?;
        penalty::check_tokens(&context, self.vocab_size())?;

        let candidates = &mut self.candidates;
        candidates.fill(logits);
        penalty::apply(&mut candidates.scores, &context, &sampling, &mut self.counts);
        let max = candidates.check()?;
        if sampling.is_greedy() {
            return Ok(());
        }
        candidates.divide(max, sampling.temperature)?;
        if (1..logits.len()).contains(&sampling.top_k) {
            let k = sampling.top_k;
            let threshold = if k <= MAX_TOP_LOGPROBS {
                let (values, indices) = (&mut self.top_values[..k], &mut self.top_indices[..k]);
                let n_found = top_k(&candidates.scores, values, indices, &mut self.top_scratch);
                values[n_found - 1]
            } else {
                candidates.kth_largest(k)
            };
            candidates.keep_from(threshold);
        }
        if sampling.top_p < 1.0 {
            candidates.keep_top_p(sampling.top_p);
        }
        if sampling.min_p > 0.0 {
            candidates.keep_min_p(sampling.min_p);
        }
        Ok(())
    }
}

fn check_len(actual: usize, expected: usize) -> Result<(), Error> {
    if actual == expected { Ok(()) } else { Err(Error::LogitCount { expected, actual }) }
}

/// The first index whose cumulative probability is above `uniform` times that of all.
fn draw(probs: &[f32], uniform: f64) -> usize {
    let target = uniform * probs.chunks(BLOCK).map(block_sum).sum::<f64>();
    // Whole blocks first: a sum one by one would wait for each addition.
    let mut below = 0.0;
    for (block_idx, block) in probs.chunks(BLOCK).enumerate() {
        let sum = block_sum(block);
        if below + sum > target {
            let mut cumulative = below;
            for (i, &prob) in block.iter().enumerate() {
                cumulative += f64::from(prob);
                if prob > 0.0 && cumulative > target {
                    return block_idx * BLOCK + i;
                }
            }
            // The two sums of a block round differently, so that its last token may miss the target by that.
            if let Some(i) = block.iter().rposition(|&prob| prob > 0.0) {
                return block_idx * BLOCK + i;
            }
        }
        below += sum;
    }
    probs.iter().rposition(|&prob| prob > 0.0).expect("a token has the largest score")
}

/// Tokens that are summed at once.
const BLOCK: usize = 64;

/// Sum of up to [`BLOCK`] probabilities in 4 chains; the order is fixed.
fn block_sum(block: &[f32]) -> f64 {
    let mut chains = [0.0_f64; 4];
    let (fours, rest) = block.as_chunks::<4>();
    for four in fours {
        for (chain, &prob) in chains.iter_mut().zip(four) {
            *chain += f64::from(prob);
        }
    }
    let rest: f64 = rest.iter().copied().map(f64::from).sum();
    (chains[0] + chains[1]) + (chains[2] + chains[3]) + rest
}
