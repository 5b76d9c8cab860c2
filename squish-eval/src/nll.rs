//! Sums of negative log-likelihoods: [`Nll`], and what is made of them.
//!
//! ```text
//! perplexity = e^(Σ nll / n)        bits per token = Σ nll / (n · ln 2)        bits per byte = Σ nll / (bytes · ln 2)
//! standard error of the mean = √((Σ nll² / n − (Σ nll / n)²) / (n − 1))
//! ```
//!
//! Sums are kept in fixed point, in units of 2^-40 nat, so that they are the same in every order and grouping, and subtracting
//! what was added leaves no trace. A likelihood is rounded once, by 5e-13 nat at most.

use std::{
    iter::Sum,
    ops::{Add, AddAssign},
};

use crate::error::{EvalError, Result};

/// The negative log-likelihood of a number of tokens.
///
/// Sums of it are those of all their tokens, bit for bit in any order. Tokens of likelihood 0 (or below e^-8388608) are counted apart:
/// they make the perplexity infinite as long as they are in the sum, and leave the nats alone.
///
/// # Examples
///
/// ```
/// use squish_eval::Nll;
///
/// let mut nll = Nll::default();
/// nll.record(4_f64.ln())?;
/// nll.record(9_f64.ln())?;
/// assert!((nll.perplexity().unwrap() - 6.0).abs() < 1e-9);
/// assert_eq!(nll + nll, [nll, nll].into_iter().sum());
/// # Ok::<(), squish_eval::EvalError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Nll {
    /// Units of 2^-40 nat.
    nats: u128,
    /// Units of 2^-40 nat².
    squares: u128,
    n_possible: u64,
    n_impossible: u64,
}

/// Bits after the point.
const POINT: u32 = 40;

/// Nats from which a token counts as impossible; their fixed-point form has 63 bits.
const IMPOSSIBLE: f64 = (1 << 23) as f64;

/// `nats` in units of 2^-40, or `None` if they are those of an impossible token.
pub(crate) fn fixed(nats: f64) -> Option<u64> {
    (nats < IMPOSSIBLE).then(|| (nats * (1_u64 << POINT) as f64).round() as u64)
}

/// The number that `units` of 2^-40 stand for.
pub(crate) fn float(units: u128) -> f64 {
    units as f64 / (1_u64 << POINT) as f64
}

/// The product of two fixed-point numbers, rounded down.
pub(crate) fn product(a: u64, b: u64) -> u128 {
    (u128::from(a) * u128::from(b)) >> POINT
}

impl Nll {
    /// Adds one token.
    ///
    /// # Errors
    ///
    /// [`EvalError::Value`] of nats that are NaN or negative.
    pub fn record(&mut self, nats: f64) -> Result<()> {
        EvalError::check_value("nats", nats, nats >= 0.0, "0 or more")?;
        match fixed(nats) {
            Some(units) => {
                *self += Self {
                    nats: units.into(),
                    squares: product(units, units),
                    n_possible: 1,
                    n_impossible: 0,
                };
            }
            None => self.n_impossible = self.n_impossible.saturating_add(1),
        }
        Ok(())
    }

    /// Tokens, impossible ones included.
    pub fn n_tokens(self) -> u64 {
        self.n_possible.saturating_add(self.n_impossible)
    }

    /// Tokens that had no likelihood at all.
    pub fn n_impossible(self) -> u64 {
        self.n_impossible
    }

    /// The sum over all tokens but the impossible ones, in nats.
    pub fn nats(self) -> f64 {
        float(self.nats)
    }

    /// Nats per token; infinite with an impossible token, `None` without tokens.
    pub fn mean(self) -> Option<f64> {
        self.per(self.n_tokens())
    }

    /// `e` to the mean.
    pub fn perplexity(self) -> Option<f64> {
        self.mean().map(f64::exp)
    }

    /// Bits per token.
    pub fn bits_per_token(self) -> Option<f64> {
        self.mean().map(|nats| nats / std::f64::consts::LN_2)
    }

    /// Bits per byte of a text of `n_bytes`, the one number that compares across tokenizers.
    pub fn bits_per_byte(self, n_bytes: u64) -> Option<f64> {
        self.per(n_bytes).map(|nats| nats / std::f64::consts::LN_2)
    }

    /// `e` to the nats per byte.
    pub fn byte_perplexity(self, n_bytes: u64) -> Option<f64> {
        self.per(n_bytes).map(f64::exp)
    }

    /// `e` to the nats per word.
    pub fn word_perplexity(self, n_words: u64) -> Option<f64> {
        self.per(n_words).map(f64::exp)
    }

    /// Standard error of the mean, as if tokens were independent, which those of a text are not: it is too small.
    ///
    /// `None` of fewer than two tokens, or with an impossible one.
    pub fn std_err(self) -> Option<f64> {
        let n = self.n_possible as f64;
        (self.n_possible > 1).then_some(())?;
        self.variance().map(|variance| (variance / (n - 1.0)).sqrt())
    }

    /// Mean square less squared mean; `None` without tokens or with an impossible one.
    pub(crate) fn variance(self) -> Option<f64> {
        let mean = self.mean().filter(|mean| mean.is_finite())?;
        let n = self.n_possible as f64;
        Some((float(self.squares) / n - mean * mean).max(0.0))
    }

    /// Units of 2^-40 nat per possible token, rounded down; 0 without one.
    pub(crate) fn mean_units(self) -> u128 {
        self.nats.checked_div(self.n_possible.into()).unwrap_or(0)
    }

    /// The rest of a sum of which `part` is a part.
    pub(crate) fn without(self, part: Self) -> Self {
        Self {
            nats: self.nats - part.nats,
            squares: self.squares - part.squares,
            n_possible: self.n_possible - part.n_possible,
            n_impossible: self.n_impossible - part.n_impossible,
        }
    }

    fn per(self, n: u64) -> Option<f64> {
        let nats = if self.n_impossible > 0 { f64::INFINITY } else { self.nats() };
        (n > 0 && self.n_tokens() > 0).then(|| nats / n as f64)
    }
}

impl Add for Nll {
    type Output = Self;

    /// Counts stop at the largest number; the nats cannot overflow.
    fn add(self, other: Self) -> Self {
        Self {
            nats: self.nats.saturating_add(other.nats),
            squares: self.squares.saturating_add(other.squares),
            n_possible: self.n_possible.saturating_add(other.n_possible),
            n_impossible: self.n_impossible.saturating_add(other.n_impossible),
        }
    }
}

impl AddAssign for Nll {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Nll {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}
