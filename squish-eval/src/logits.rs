//! How well rows of logits foresee tokens: [`token_nll`] of one row, [`nll`] of many.
//!
//! ```text
//! nll = ln Σ e^z − z[target]
//! ```
//!
//! A row is read once, by [`log_sum_exp_f64`]; the difference is taken in `f64`, where no two logits overflow it.
//!
//! | row | result |
//! |---|---|
//! | another logit is −∞ (masked) | as if it were not there |
//! | the target's is −∞ | +∞ nats: [`Nll`] counts the token as impossible |
//! | all are −∞ | [`EvalError::AllMasked`] |
//! | one is +∞, one is NaN | [`EvalError::Infinite`], [`EvalError::Nan`] |

use squish_kernels::{Real, log_sum_exp_f64};

use crate::{
    Nll,
    error::{EvalError, Result},
};

/// Rows of logits `[n_rows, vocab_size]`.
///
/// # Examples
///
/// ```
/// use squish_eval::Logits;
///
/// let logits = Logits::new(&[0.0_f32, 1.0, 2.0, 3.0], 2)?;
/// assert_eq!(logits.n_rows(), 2);
/// # Ok::<(), squish_eval::EvalError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a, T = f32> {
    data: &'a [T],
    vocab_size: usize,
}

impl<'a, T: Real> Logits<'a, T> {
    /// The rows that lie one after another in `data`.
    ///
    /// # Errors
    ///
    /// [`EvalError::Length`] if `data` is not a whole number of rows, or rows would have no element.
    pub fn new(data: &'a [T], vocab_size: usize) -> Result<Self> {
        if vocab_size == 0 || !data.len().is_multiple_of(vocab_size) {
            let (expected, actual) = (vocab_size, data.len());
            return Err(EvalError::Length { what: "data", expected, actual });
        }
        Ok(Self { data, vocab_size })
    }

    /// The number of rows.
    pub fn n_rows(self) -> usize {
        self.data.len() / self.vocab_size
    }

    /// Elements of a row.
    pub fn vocab_size(self) -> usize {
        self.vocab_size
    }

    /// The rows, each `[vocab_size]`.
    pub fn rows(self) -> impl ExactSizeIterator<Item = &'a [T]> {
        self.data.chunks_exact(self.vocab_size)
    }
}

/// Negative log-likelihood of the token `target` under one row of `logits` `[vocab_size]`, in nats.
///
/// Within 2^-20 of the exact one, and not below 0; +∞ where the target's logit is −∞ and another is not.
///
/// # Errors
///
/// [`EvalError::Target`] if there is no such logit; [`EvalError::Nan`], [`EvalError::Infinite`] or [`EvalError::AllMasked`] of a row
/// that is no distribution.
///
/// # Examples
///
/// ```
/// let nats = squish_eval::token_nll(&[2.5_f32; 4], 3)?;
/// assert!((nats - 4_f64.ln()).abs() < 1e-6);
/// # Ok::<(), squish_eval::EvalError>(())
/// ```
pub fn token_nll<T: Real>(logits: &[T], target: u32) -> Result<f64> {
    nll_of_row(0, logits, target)
}

/// Sum of the negative log-likelihoods of `targets` `[n_rows]` under rows of `logits`; rows without a target are left out.
///
/// # Errors
///
/// [`EvalError::Length`] if there are not as many targets as rows; those of [`token_nll`], with the row.
///
/// # Examples
///
/// ```
/// use squish_eval::{Logits, nll};
///
/// let logits = Logits::new(&[0.0_f32, 0.0, 5.0, 5.0], 2)?;
/// let nll = nll(logits, &[Some(1), None])?;
/// assert_eq!(nll.n_tokens(), 1);
/// assert!((nll.perplexity().unwrap() - 2.0).abs() < 1e-6);
/// # Ok::<(), squish_eval::EvalError>(())
/// ```
pub fn nll<T: Real>(logits: Logits<'_, T>, targets: &[Option<u32>]) -> Result<Nll> {
    EvalError::check_length("targets", logits.n_rows(), targets.len())?;
    let mut sum = Nll::default();
    for (i, (row, target)) in logits.rows().zip(targets).enumerate() {
        if let Some(target) = *target {
            sum.record(nll_of_row(i, row, target)?)?;
        }
    }
    Ok(sum)
}

/// [`token_nll`], with the row's number for errors.
pub(crate) fn nll_of_row<T: Real>(row: usize, logits: &[T], target: u32) -> Result<f64> {
    Ok(nll_and_log_sum(row, logits, target)?.0)
}

/// Negative log-likelihood of `target`, and the log-sum of the row, which is finite.
pub(crate) fn nll_and_log_sum<T: Real>(
    row: usize,
    logits: &[T],
    target: u32,
) -> Result<(f64, f64)> {
    let Some(&logit) = logits.get(target as usize) else {
        return Err(EvalError::Target { row, target, vocab_size: logits.len() });
    };
    let log_sum = log_sum_exp_f64(logits);
    if log_sum.is_nan() {
        return Err(EvalError::Nan { row });
    }
    if log_sum.is_infinite() {
        let above = log_sum > 0.0;
        return Err(if above { EvalError::Infinite { row } } else { EvalError::AllMasked { row } });
    }
    // Negative only where rounding makes it so.
    Ok(((log_sum - f64::from(logit.to_f32())).max(0.0), log_sum))
}
