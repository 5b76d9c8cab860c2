//! How far a model is from a base model, token by token: [`KlStats`], [`KlReport`].
//!
//! ```text
//! KL(base ‖ other) = Σ p_base · (ln p_base − ln p_other)        of the distributions of one token
//! Δp = p_other(target) − p_base(target)
//! ln(perplexity of other / of base) = mean nll of other − of base, with error √(se² + se_base² − 2 cov)
//! ```
//!
//! The statistics are those of llama.cpp's `llama-perplexity --kl-divergence`. A model that was quantized foresees much as it did, so
//! that likelihoods of both correlate: the ratio of perplexities is known far better than either. KL and Δp of every token are kept, 16 bytes
//! of each, so that percentiles are exact, and a report does not depend on the order of tokens.

use squish_kernels::{argmax, dot, exp_in_place, kl_divergence, max};

use crate::{
    Nll,
    error::{EvalError, Result},
    logits::nll_and_log_sum,
    nll::{fixed, float, product},
};

/// What was seen of two models on the same tokens.
///
/// # Examples
///
/// ```
/// use squish_eval::KlStats;
///
/// let mut stats = KlStats::default();
/// stats.push(&[0.0, 1.0, 0.5], &[0.0, 1.1, 0.5], 1)?;
/// stats.push(&[2.0, 1.0, 0.5], &[0.0, 1.1, 0.5], 0)?;
/// let report = stats.report().expect("two tokens");
/// assert_eq!(report.same_top.value, 0.5);
/// assert!(report.kl.percentile(0.0) < 0.01 && report.kl.percentile(1.0) > 0.2);
/// # Ok::<(), squish_eval::EvalError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct KlStats {
    kl: Vec<f64>,
    delta_p: Vec<f64>,
    base: Nll,
    other: Nll,
    /// Sum of the products of the likelihoods of both, in units of 2^-40 nat².
    products: u128,
    n_same_top: u64,
}

/// A number and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Its error, as if tokens were independent; `None` of a single token, or where something is infinite.
    pub std_err: Option<f64>,
}

/// One number of every token.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// The mean.
    pub mean: Estimate,
    sorted: Vec<f64>,
}

/// How far a model is from a base model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KlReport {
    /// Divergence of each token, in nats; infinite where only the other model excludes a token.
    pub kl: Distribution,
    /// Probability of the target by the other model less that by the base.
    pub delta_p: Distribution,
    /// Root of the mean square of that.
    pub delta_p_rms: Estimate,
    /// Share of tokens where both models prefer the same token; of several that are as likely, the first.
    pub same_top: Estimate,
    /// Likelihoods by the base model.
    pub base: Nll,
    /// Likelihoods by the other model.
    pub other: Nll,
    /// The perplexities' ratio and difference; `None` if a target was impossible to either.
    pub perplexities: Option<Perplexities>,
}

/// How the perplexities of two models compare, given that their likelihoods correlate.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Perplexities {
    /// ln(perplexity of the other / of the base).
    pub log_ratio: Estimate,
    /// Perplexity of the other / of the base.
    pub ratio: Estimate,
    /// Perplexity of the other, less that of the base.
    pub difference: Estimate,
    /// Correlation of the likelihoods of a token; `None` where either does not vary.
    pub correlation: Option<f64>,
}

impl KlStats {
    /// Room for `n_tokens`, up to which nothing is allocated.
    #[must_use]
    pub fn with_capacity(n_tokens: usize) -> Self {
        let [kl, delta_p] = [(); 2].map(|()| Vec::with_capacity(n_tokens));
        Self { kl, delta_p, ..Self::default() }
    }

    /// Takes rows of logits `[vocab_size]` of both models that are to foresee `target`.
    ///
    /// # Errors
    ///
    /// [`EvalError::Length`], [`EvalError::Target`]; [`EvalError::Nan`], [`EvalError::Infinite`] or [`EvalError::AllMasked`] of either row.
    pub fn push(&mut self, base: &[f32], other: &[f32], target: u32) -> Result<()> {
        EvalError::check_length("other", base.len(), other.len())?;
        let row = self.kl.len();
        let (base_nll, base_log_sum) = nll_and_log_sum(row, base, target)?;
        let (other_nll, other_log_sum) = nll_and_log_sum(row, other, target)?;
        let kl = kl_divergence(base, base_log_sum, other, other_log_sum);
        self.record(kl, [base_nll, other_nll], argmax(base) == argmax(other))
    }

    /// [`push`](Self::push), with the base model's log-probabilities as llama.cpp's file has them, by its formula: they are not normalized
    /// again, and those of -16 or below are left out of the divergence.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn push_log_probs(&mut self, base: &[f32], other: &[f32], target: u32) -> Result<()> {
        EvalError::check_length("other", base.len(), other.len())?;
        let row = self.kl.len();
        let (other_nll, other_log_sum) = nll_and_log_sum(row, other, target)?;
        let most = max(base);
        if !most.is_finite() {
            return Err(match most {
                f32::NEG_INFINITY => EvalError::AllMasked { row },
                f32::INFINITY => EvalError::Infinite { row },
                _ => EvalError::Nan { row },
            });
        }
        let base_nll = f64::from(-base[target as usize]).max(0.0);
        let kl = coarse_kl(base, other, other_log_sum as f32);
        self.record(kl, [base_nll, other_nll], argmax(base) == argmax(other))
    }

    /// Takes all that `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        self.kl.extend(&other.kl);
        self.delta_p.extend(&other.delta_p);
        self.base += other.base;
        self.other += other.other;
        self.products += other.products;
        self.n_same_top += other.n_same_top;
    }

    /// What it comes to; `None` without tokens. llama.cpp prints none of fewer than 100, of which errors say little.
    #[must_use]
    pub fn report(&self) -> Option<KlReport> {
        let delta_p = Distribution::of(self.delta_p.clone())?;
        let squares = Distribution::of(self.delta_p.iter().map(|delta| delta * delta).collect())?;
        let rms = squares.mean.value.sqrt();
        // A zero has no error, where the formula has 0 / 0.
        let rms_err = |error: f64| if rms == 0.0 { 0.0 } else { 0.5 / rms * error };
        let n = self.kl.len() as f64;
        let share = self.n_same_top as f64 / n;
        let share_err = (n > 1.0).then(|| (share * (1.0 - share) / (n - 1.0)).sqrt());
        Some(KlReport {
            kl: Distribution::of(self.kl.clone())?,
            delta_p,
            delta_p_rms: Estimate { value: rms, std_err: squares.mean.std_err.map(rms_err) },
            same_top: Estimate { value: share, std_err: share_err },
            base: self.base,
            other: self.other,
            perplexities: self.perplexities(),
        })
    }

    fn record(&mut self, kl: f64, [base, other]: [f64; 2], is_same_top: bool) -> Result<()> {
        let mut sums = [self.base, self.other];
        sums[0].record(base)?;
        sums[1].record(other)?;
        [self.base, self.other] = sums;
        // An impossible target leaves no use for the sum.
        if let (Some(base), Some(other)) = (fixed(base), fixed(other)) {
            self.products += product(base, other);
        }
        self.kl.push(kl);
        self.delta_p.push((-other).exp() - (-base).exp());
        self.n_same_top += u64::from(is_same_top);
        Ok(())
    }

    fn perplexities(&self) -> Option<Perplexities> {
        let mean = |nll: Nll| nll.mean().filter(|mean| mean.is_finite());
        let (base, other) = (mean(self.base)?, mean(self.other)?);
        let n = self.kl.len() as f64;
        let errors = self.base.std_err().zip(self.other.std_err());
        let covariance = (float(self.products) / n - base * other) / (n - 1.0);
        // Rounding may take the root's argument below 0 where the models are the same.
        let std_err = |by_base: f64, by_other: f64| {
            let (base_err, other_err) = errors?;
            let (base_err, other_err) = (by_base * base_err, by_other * other_err);
            let square = base_err * base_err + other_err * other_err;
            Some((square - 2.0 * by_base * by_other * covariance).max(0.0).sqrt())
        };
        let (base_ppl, other_ppl, log_err) = (base.exp(), other.exp(), std_err(1.0, 1.0));
        let ratio = (other - base).exp();
        let varies = |&(base, other): &(f64, f64)| base > 0.0 && other > 0.0;
        Some(Perplexities {
            log_ratio: Estimate { value: other - base, std_err: log_err },
            ratio: Estimate { value: ratio, std_err: log_err.map(|error| ratio * error) },
            difference: Estimate {
                value: other_ppl - base_ppl,
                std_err: std_err(base_ppl, other_ppl),
            },
            correlation: errors
                .filter(varies)
                .map(|(base, other)| (covariance / (base * other)).clamp(-1.0, 1.0)),
        })
    }
}

impl Distribution {
    /// The number that a share of `fraction` of tokens is below, interpolated linearly; 0 is the least, 0.5 the median, 1 the largest.
    ///
    /// # Panics
    ///
    /// If `fraction` is not in 0 to 1.
    #[must_use]
    pub fn percentile(&self, fraction: f64) -> f64 {
        assert!((0.0..=1.0).contains(&fraction), "percentile: {fraction} is no fraction");
        let at = fraction * (self.sorted.len() - 1) as f64;
        let (low, part) = (self.sorted[at as usize], at.fract());
        let high = self.sorted[(at as usize + 1).min(self.sorted.len() - 1)];
        // Where both are infinite, the difference is NaN.
        if part == 0.0 || low == high { low } else { low + part * (high - low) }
    }

    /// All numbers, ascending.
    #[must_use]
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }

    /// `None` without numbers. Sums go over what is sorted, and so do not depend on the order.
    fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_unstable_by(f64::total_cmp);
        let n = numbers.len() as f64;
        let value = numbers.iter().sum::<f64>() / n;
        let squares: f64 = numbers.iter().map(|x| (x - value).powi(2)).sum();
        let std_err =
            (numbers.len() > 1 && value.is_finite()).then(|| (squares / n / (n - 1.0)).sqrt());
        (!numbers.is_empty()).then_some(Self { mean: Estimate { value, std_err }, sorted: numbers })
    }
}

/// `Σ p · (ln p − ln q)` over the tokens with `ln p > −16`.
fn coarse_kl(log_probs: &[f32], other: &[f32], other_log_sum: f32) -> f64 {
    const LEAST: f32 = -16.0;
    const BLOCK: usize = 1024;
    let (mut p, mut ratio) = ([0.0; BLOCK], [0.0; BLOCK]);
    let mut sum = 0.0;
    for (log_probs, other) in log_probs.chunks(BLOCK).zip(other.chunks(BLOCK)) {
        let (p, ratio) = (&mut p[..log_probs.len()], &mut ratio[..log_probs.len()]);
        p.copy_from_slice(log_probs);
        exp_in_place(p);
        for i in 0..p.len() {
            let counts = log_probs[i] > LEAST;
            p[i] = if counts { p[i] } else { 0.0 };
            ratio[i] = if counts { log_probs[i] - (other[i] - other_log_sum) } else { 0.0 };
        }
        sum += f64::from(dot(p, ratio));
    }
    sum
}
