//! When nats per token have risen: [`Detector`], [`Baseline`], [`Alert`].
//!
//! ```text
//! z = (mean of the record − mean of the baseline) / (deviation of a token / √tokens of the record)
//! ratio   s = rolling perplexity / e^(mean of the baseline)      raised: s > raise        cleared: s < clear
//! EWMA    s ← λ z + (1 − λ) s                                    raised: s > L √(λ / (2 − λ))
//! CUSUM   s ← max(0, s + z − k)                                  raised: s > h
//! ```
//!
//! (S. W. Roberts, Technometrics 1, 1959; E. S. Page, Biometrika 41, 1954. The Page-Hinkley test is the CUSUM.) EWMA and CUSUM are
//! cleared when `s` is 0 or below. They stop at their limit after it was passed, so that a rise is over as soon after a long time as after a
//! short one. A record with an impossible token has an infinite `z`.

use crate::{
    Nll,
    error::{EvalError, Result},
};

/// How a rise is noticed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Detector {
    /// The rolling perplexity is a multiple of the baseline's.
    Ratio {
        /// Raised above this.
        raise: f64,
        /// Cleared below this.
        clear: f64,
    },
    /// An average of records, later ones weighing more.
    Ewma {
        /// The weight of the last record, above 0, 1 at most.
        lambda: f64,
        /// The limit, in deviations of the average.
        limit: f64,
    },
    /// The sum of what records are above the baseline.
    Cusum {
        /// What is no rise, in deviations of a record's mean: half of the rise to be noticed.
        slack: f64,
        /// The limit of the sum.
        limit: f64,
    },
}

impl Default for Detector {
    /// The CUSUM with slack 0.25 and limit 15. Of records of 64 independent tokens with gamma-distributed nats (mean 2.3, deviation 2.5), it takes
    /// some 20 000 on average to a false alert; half of the rises of 0.1 nat, a tenth of the perplexity, are noticed within 123 records, of those
    /// of 0.3 within 21.
    fn default() -> Self {
        Self::Cusum { slack: 0.25, limit: 15.0 }
    }
}

/// What nats per token are while all is well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Baseline {
    mean: f64,
    std_dev: f64,
}

impl Baseline {
    /// A mean and a standard deviation of tokens, in nats.
    ///
    /// # Errors
    ///
    /// [`EvalError::Value`] of numbers that are not finite, of a mean below 0 or a deviation that is not above it.
    pub fn new(mean: f64, std_dev: f64) -> Result<Self> {
        EvalError::check_value("mean", mean, mean.is_finite() && mean >= 0.0, "0 or more")?;
        let holds = std_dev.is_finite() && std_dev > 0.0;
        EvalError::check_value("std_dev", std_dev, holds, "above 0")?;
        Ok(Self { mean, std_dev })
    }

    /// Those of tokens that were scored.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), without tokens, too, and with an impossible one.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_eval::{Baseline, Nll};
    ///
    /// let mut nll = Nll::default();
    /// nll.record(1.0)?;
    /// nll.record(3.0)?;
    /// assert_eq!(Baseline::of(nll)?, Baseline::new(2.0, 1.0)?);
    /// # Ok::<(), squish_eval::EvalError>(())
    /// ```
    pub fn of(nll: Nll) -> Result<Self> {
        let std_dev = nll.variance().map_or(f64::NAN, f64::sqrt);
        Self::new(nll.mean().unwrap_or(f64::NAN), std_dev)
    }

    /// `e` to the mean.
    pub fn perplexity(self) -> f64 {
        self.mean.exp()
    }
}

/// A rise that begins or ends.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Alert {
    /// Which of both.
    pub edge: Edge,
    /// The record, counted from 0.
    pub record: u64,
    /// What was compared with the limit.
    pub statistic: f64,
    /// The rolling perplexity.
    pub rolling: f64,
    /// The baseline's.
    pub baseline: f64,
}

/// The begin or the end of a rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edge {
    /// The statistic has passed the limit.
    Raised,
    /// It is back.
    Cleared,
}

/// A detector at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    detector: Detector,
    statistic: f64,
    is_raised: bool,
}

impl Watch {
    /// # Errors
    ///
    /// [`EvalError::Value`] of limits that make no sense.
    pub(crate) fn new(detector: Detector) -> Result<Self> {
        let check = EvalError::check_value;
        let is_above = |x: f64| x.is_finite() && x > 0.0;
        match detector {
            Detector::Ratio { raise, clear } => {
                check("raise", raise, is_above(raise), "above 0")?;
                check(
                    "clear",
                    clear,
                    is_above(clear) && clear <= raise,
                    "above 0, `raise` at most",
                )?;
            }
            Detector::Ewma { lambda, limit } => {
                check("lambda", lambda, lambda > 0.0 && lambda <= 1.0, "above 0, 1 at most")?;
                check("limit", limit, is_above(limit), "above 0")?;
            }
            Detector::Cusum { slack, limit } => {
                check("slack", slack, slack.is_finite() && slack >= 0.0, "0 or more")?;
                check("limit", limit, is_above(limit), "above 0")?;
            }
        }
        Ok(Self { detector, statistic: 0.0, is_raised: false })
    }

    pub(crate) fn is_raised(self) -> bool {
        self.is_raised
    }

    /// Back to the beginning.
    pub(crate) fn reset(&mut self) {
        (self.statistic, self.is_raised) = (0.0, false);
    }

    /// Takes one record, which has tokens: the edge and the statistic there, if there is one.
    pub(crate) fn step(
        &mut self,
        baseline: Baseline,
        record: Nll,
        rolling: f64,
    ) -> Option<(Edge, f64)> {
        let mean = record.mean()?;
        let z = (mean - baseline.mean) / baseline.std_dev * (record.n_tokens() as f64).sqrt();
        let (statistic, limit) = match self.detector {
            Detector::Ratio { raise, .. } => (rolling / baseline.perplexity(), raise),
            Detector::Ewma { lambda, limit } => {
                let statistic = lambda * z + (1.0 - lambda) * self.statistic;
                (statistic, limit * (lambda / (2.0 - lambda)).sqrt())
            }
            Detector::Cusum { slack, limit } => ((self.statistic + z - slack).max(0.0), limit),
        };
        let is_back = match self.detector {
            Detector::Ratio { clear, .. } => statistic < clear,
            Detector::Ewma { .. } | Detector::Cusum { .. } => statistic <= 0.0,
        };
        self.statistic = statistic.min(limit);
        let edge = match self.is_raised {
            false if statistic > limit => Edge::Raised,
            true if is_back => Edge::Cleared,
            _ => return None,
        };
        self.is_raised = edge == Edge::Raised;
        Some((edge, statistic))
    }
}
