//! The tokens that are left, in the order of their ids, and what cuts them off.

use squish_kernels::{max, softmax_into};

use super::{BLOCK, block_sum};
use crate::Error;

/// Tokens with their scores, and scratch memory for as many as there are.
#[derive(Clone, Debug)]
pub(super) struct Candidates {
    /// Ascending.
    pub(super) ids: Vec<u32>,
    /// One for each of `ids`.
    pub(super) scores: Vec<f32>,
    /// Room for a number of each token: its probability, where nothing else is said.
    pub(super) probs: Vec<f32>,
    keys: Vec<u64>,
}

impl Candidates {
    pub(super) fn new(vocab_size: usize) -> Self {
        Self {
            ids: Vec::with_capacity(vocab_size),
            scores: Vec::with_capacity(vocab_size),
            probs: vec![0.0; vocab_size],
            keys: Vec::with_capacity(vocab_size),
        }
    }

    /// All tokens.
    pub(super) fn fill(&mut self, logits: &[f32]) {
        self.ids.clear();
        self.ids.extend(0..logits.len() as u32);
        self.scores.clear();
        self.scores.extend_from_slice(logits);
    }

    /// The largest score, if all are numbers or negative infinity and one is finite.
    pub(super) fn check(&self) -> Result<f32, Error> {
        let largest = max(&self.scores);
        if largest == f32::NEG_INFINITY {
            return Err(Error::NoToken { vocab_size: self.scores.len() });
        }
        if !largest.is_finite() {
            let is_bad = |&score: &f32| score.is_nan() || score == f32::INFINITY;
            let index = self.scores.iter().position(is_bad).expect("one made the maximum so");
            return Err(Error::Logit { token: index as u32, logit: self.scores[index] });
        }
        Ok(largest)
    }

    /// Scores over `temperature`, where `largest` is the largest score.
    pub(super) fn divide(&mut self, largest: f32, temperature: f64) -> Result<(), Error> {
        if temperature == 1.0 {
            return Ok(());
        }
        let divisor = temperature as f32;
        if !(largest / divisor).is_finite() {
            let expected = "0, or so large that logits divided by it are finite";
            return Err(Error::Sampling { field: "temperature", actual: temperature, expected });
        }
        for score in &mut self.scores {
            *score /= divisor;
        }
        Ok(())
    }

    /// The `k`-th largest score, of at least `k`.
    pub(super) fn kth_largest(&mut self, k: usize) -> f32 {
        let scratch = &mut self.probs[..self.scores.len()];
        scratch.copy_from_slice(&self.scores);
        *scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }

    /// Keeps tokens whose score is at least `threshold` and no negative infinity.
    pub(super) fn keep_from(&mut self, threshold: f32) {
        self.probs[..self.scores.len()].copy_from_slice(&self.scores);
        self.keep(threshold.max(f32::MIN), |_, _| true);
    }

    /// Keeps tokens above the least probable ones whose probabilities sum to at most `1 − top_p`.
    pub(super) fn keep_top_p(&mut self, top_p: f64) {
        let n = self.scores.len();
        let probs = &mut self.probs[..n];
        softmax_into(&self.scores, probs);
        let total: f64 = probs.chunks(BLOCK).map(block_sum).sum();
        let limit = (1.0 - top_p) as f32;

        // `n` such tokens sum to less than the limit; the margin is for the roundings of that sum. The limit is at most 1 and
        // the largest probability at least `1 / n`, so that one is left.
        let negligible = (f64::from(limit) / n as f64 * 0.999) as f32;
        self.keys.clear();
        for (block_idx, block) in probs.chunks(BLOCK).enumerate() {
            if !any_at_least(block, negligible) {
                continue;
            }
            for (i, &prob) in block.iter().enumerate() {
                if prob > negligible {
                    self.keys.push(key(prob, self.ids[block_idx * BLOCK + i]));
                }
            }
        }
        let most = *self.keys.iter().max().expect("a probability is at least their mean");

        // Invariant: `least` is kept, and so is all above `keys`, which sums to `above`.
        let (mut keys, mut above, mut least) = (&mut self.keys[..], 0.0, most);
        while !keys.is_empty() {
            let middle = keys.len() / 2;
            let (upper, pivot, lower) = keys.select_nth_unstable_by(middle, |a, b| b.cmp(a));
            let upper_sum = above + upper.iter().map(|&key| prob_of(key)).sum::<f64>();
            if (total - upper_sum) as f32 > limit {
                (least, above) = (*pivot, upper_sum + prob_of(*pivot));
                keys = lower;
            } else {
                keys = upper;
            }
        }
        self.keep(prob_of(least) as f32, |prob, id| key(prob, id) >= least);
    }

    /// Keeps tokens whose probability is at least `min_p` of the largest.
    pub(super) fn keep_min_p(&mut self, min_p: f64) {
        let probs = &mut self.probs[..self.scores.len()];
        softmax_into(&self.scores, probs);
        let threshold = min_p as f32 * max(probs);
        self.keep(threshold, |_, _| true);
    }

    /// Keeps tokens whose number in `probs` is at least `threshold` and for which `holds(number, id)`.
    fn keep(&mut self, threshold: f32, holds: impl Fn(f32, u32) -> bool) {
        let (n, mut n_kept) = (self.scores.len(), 0);
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            if !any_at_least(&self.probs[start..end], threshold) {
                continue;
            }
            for i in start..end {
                if self.probs[i] >= threshold && holds(self.probs[i], self.ids[i]) {
                    self.scores[n_kept] = self.scores[i];
                    self.ids[n_kept] = self.ids[i];
                    n_kept += 1;
                }
            }
        }
        self.scores.truncate(n_kept);
        self.ids.truncate(n_kept);
    }
}

/// Whether a number of a block is as large. Most blocks have none, and a loop without a branch is one of vectors.
fn any_at_least(block: &[f32], threshold: f32) -> bool {
    block.iter().map(|&x| u32::from(x >= threshold)).sum::<u32>() > 0
}

/// A number whose order is that of probabilities, and of ids where these are equal.
fn key(prob: f32, id: u32) -> u64 {
    u64::from(prob.to_bits()) << 32 | u64::from(id)
}

fn prob_of(key: u64) -> f64 {
    f64::from(f32::from_bits((key >> 32) as u32))
}
