//! Perplexity of the last records of a stream, with alerts: [`PplTracker`].
//!
//! ```text
//! token-weighted   e^(Σ nats of all records / Σ tokens of all records)
//! per record       e^(mean over records of nats per token), the geometric mean of their perplexities
//! ```
//!
//! A record is what came at once: the tokens of a step or a reply. The window is a ring of records with their sum. As sums are in fixed
//! point, taking one away is exact: what is rolling equals what would be computed anew, bit for bit, after any number of records. A step and
//! a question cost the same for every window.

use squish_kernels::Real;

use crate::{
    Alert, Baseline, Detector, Logits, Nll,
    detector::Watch,
    error::{EvalError, Result},
    logits::nll,
    nll::float,
};

/// What a tracker keeps and how it looks at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrackerOptions {
    /// Records of the window.
    pub window: usize,
    /// How they are weighed.
    pub weighting: Weighting,
    /// How a rise is noticed, once there is a baseline.
    pub detector: Detector,
}

impl Default for TrackerOptions {
    /// 100 records, by their tokens, and the CUSUM.
    fn default() -> Self {
        let (weighting, detector) = (Weighting::default(), Detector::default());
        Self { window: 100, weighting, detector }
    }
}

/// How records weigh in the rolling perplexity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Weighting {
    /// As often as they have tokens.
    #[default]
    Tokens,
    /// Once each, so that one of a single token counts as much as one of a hundred.
    Records,
}

/// The perplexity of the last records of a stream.
///
/// # Examples
///
/// ```
/// use squish_eval::{Baseline, Edge, Logits, PplTracker, TrackerOptions};
///
/// let mut tracker = PplTracker::new(TrackerOptions::default())?;
/// tracker.set_baseline(Baseline::new(2.0, 2.5)?);
/// // Uniform over 1000 tokens: 6.9 nats, where 2 were foreseen.
/// let logits = vec![0.0_f32; 16 * 1000];
/// let mut alerts = Vec::new();
/// for _ in 0..10 {
///     alerts.extend(tracker.record(Logits::new(&logits, 1000)?, &[Some(7); 16])?);
/// }
/// assert!((tracker.rolling_perplexity().unwrap() - 1000.0).abs() < 1e-2);
/// assert!(alerts.len() == 1 && alerts[0].edge == Edge::Raised && alerts[0].record == 1);
/// # Ok::<(), squish_eval::EvalError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PplTracker {
    options: TrackerOptions,
    baseline: Option<Baseline>,
    watch: Watch,
    /// A ring once it is full, whose oldest record is at `oldest`.
    window: Vec<Nll>,
    oldest: usize,
    rolling: Nll,
    /// The sum of the means of the records, in fixed point.
    means: u128,
    n_records: u64,
}

impl PplTracker {
    /// A tracker without records and baseline, which allocates its window.
    ///
    /// # Errors
    ///
    /// [`EvalError::Value`] of an empty window or a detector whose limits make no sense.
    pub fn new(options: TrackerOptions) -> Result<Self> {
        let window = options.window;
        EvalError::check_value("window", window as f64, window > 0, "1 or more")?;
        Ok(Self {
            options,
            baseline: None,
            watch: Watch::new(options.detector)?,
            window: Vec::with_capacity(window),
            oldest: 0,
            rolling: Nll::default(),
            means: 0,
            n_records: 0,
        })
    }

    /// Records the likelihoods of `targets` `[n_rows]` under rows of `logits`; rows without a target are left out.
    ///
    /// # Errors
    ///
    /// Those of [`nll`].
    pub fn record<T: Real>(
        &mut self,
        logits: Logits<'_, T>,
        targets: &[Option<u32>],
    ) -> Result<Option<Alert>> {
        Ok(self.record_nll(nll(logits, targets)?))
    }

    /// Records likelihoods. Without a token nothing happens.
    ///
    /// An alert comes when a rise begins and when it ends, and not in between.
    pub fn record_nll(&mut self, nll: Nll) -> Option<Alert> {
        if nll.n_tokens() == 0 {
            return None;
        }
        self.push(nll);
        let record = self.n_records;
        self.n_records += 1;
        let (baseline, rolling) = (self.baseline?, self.rolling_perplexity()?);
        let (edge, statistic) = self.watch.step(baseline, nll, rolling)?;
        Some(Alert { edge, record, statistic, rolling, baseline: baseline.perplexity() })
    }

    /// All tokens of the window.
    pub fn rolling(&self) -> Nll {
        self.rolling
    }

    /// The perplexity of the window; `None` without a record, infinite as long as an impossible token is in it.
    pub fn rolling_perplexity(&self) -> Option<f64> {
        match self.options.weighting {
            Weighting::Tokens => self.rolling.perplexity(),
            Weighting::Records if self.rolling.n_impossible() > 0 => Some(f64::INFINITY),
            Weighting::Records => {
                let n = self.window.len();
                (n > 0).then(|| (float(self.means) / n as f64).exp())
            }
        }
    }

    /// Records since the beginning, or since [`reset`](Self::reset).
    pub fn n_records(&self) -> u64 {
        self.n_records
    }

    /// Whether a rise has begun and not ended.
    pub fn is_raised(&self) -> bool {
        self.watch.is_raised()
    }

    /// Watches from now on for rises above `baseline`: one of long ago, or `Baseline::of(tracker.rolling())` after a while.
    pub fn set_baseline(&mut self, baseline: Baseline) {
        self.baseline = Some(baseline);
        self.watch.reset();
    }

    /// Forgets all records; the baseline stays.
    pub fn reset(&mut self) {
        self.window.clear();
        (self.oldest, self.rolling) = (0, Nll::default());
        (self.means, self.n_records) = (0, 0);
        self.watch.reset();
    }

    fn push(&mut self, nll: Nll) {
        if self.window.len() < self.options.window {
            self.window.push(nll);
        } else {
            let oldest = std::mem::replace(&mut self.window[self.oldest], nll);
            self.oldest = (self.oldest + 1) % self.window.len();
            self.rolling = self.rolling.without(oldest);
            self.means -= oldest.mean_units();
        }
        self.rolling += nll;
        self.means += nll.mean_units();
    }
}
