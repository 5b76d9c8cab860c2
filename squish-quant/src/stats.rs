//! What an approximation loses: [`error_stats`] of two slices.
//!
//! | field | definition, with `e = approximation - reference` | no elements |
//! |---|---|---|
//! | `mse` | mean of `e²` | 0 |
//! | `snr_db` | `10 · log10(Σ reference² / Σ e²)`; +∞ without error, −∞ for an error of a zero reference | +∞ |
//! | `cosine` | `Σ reference · approximation / (‖reference‖ · ‖approximation‖)`; 1 if both are zero, 0 if one is | 1 |
//! | `max_abs` | largest `\|e\|` | 0 |
//! | `relative` | mean of `\|e / reference\|` over the elements whose reference is not zero; 0 if there are none | 0 |
//!
//! Everything is summed in `f64`, in eight chains whose order depends on the length alone.

use std::fmt;

use crate::error::{Error, Result};

/// How far an approximation lies from its reference; see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ErrorStats {
    /// Mean squared error.
    pub mse: f64,
    /// Signal-to-noise ratio in decibels.
    pub snr_db: f64,
    /// Cosine of the angle between the two.
    pub cosine: f64,
    /// Largest absolute error.
    pub max_abs: f64,
    /// Mean relative error.
    pub relative: f64,
}

/// The errors of `approximation`, `[n]`, against `reference`, `[n]`.
///
/// # Errors
///
/// [`Error::Length`] if the lengths differ, [`Error::NonFinite`] for a NaN or an infinity in either.
///
/// # Examples
///
/// ```
/// use squish_quant::error_stats;
///
/// let stats = error_stats(&[1.0, -2.0, 4.0, 0.0], &[1.5, -2.0, 4.0, 0.0])?;
/// assert_eq!((stats.mse, stats.max_abs, stats.relative), (0.0625, 0.5, 0.5 / 3.0));
/// assert_eq!(stats.to_string(), "mse 6.250e-2, SNR 19.24 dB, cosine 0.994635, largest error 5.000e-1, relative error 16.6667 %");
/// # Ok::<(), squish_quant::Error>(())
/// ```
pub fn error_stats(reference: &[f32], approximation: &[f32]) -> Result<ErrorStats> {
    Error::check_length("approximation", reference.len(), approximation.len())?;
    for x in [reference, approximation] {
        if let Some((index, &value)) = x.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(Error::NonFinite { index, value });
        }
    }
    let mut sums = Sums::default();
    let (references, reference_rest) = reference.as_chunks();
    let (approximations, approximation_rest) = approximation.as_chunks();
    for (reference, approximation) in references.iter().zip(approximations) {
        sums.add(reference, approximation);
    }
    // Zeros on both sides change no sum.
    let (mut reference, mut approximation) = ([0.0; LANES], [0.0; LANES]);
    reference[..reference_rest.len()].copy_from_slice(reference_rest);
    approximation[..approximation_rest.len()].copy_from_slice(approximation_rest);
    sums.add(&reference, &approximation);
    Ok(sums.stats(references.len() * LANES + reference_rest.len()))
}

impl fmt::Display for ErrorStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mse, snr_db, cosine, max_abs, relative } = self;
        let percent = 100.0 * relative;
        write!(
            f,
            "mse {mse:.3e}, SNR {snr_db:.2} dB, cosine {cosine:.6}, largest error {max_abs:.3e}, relative error {percent:.4} %"
        )
    }
}

/// Chains of each sum, which hide the latency of an addition.
const LANES: usize = 8;

#[derive(Default)]
struct Sums {
    error: [f64; LANES],
    reference: [f64; LANES],
    approximation: [f64; LANES],
    product: [f64; LANES],
    relative: [f64; LANES],
    n_relative: [f64; LANES],
    max_abs: [f64; LANES],
}

impl Sums {
    fn add(&mut self, reference: &[f32; LANES], approximation: &[f32; LANES]) {
        for i in 0..LANES {
            let (x, y) = (f64::from(reference[i]), f64::from(approximation[i]));
            let error = (y - x).abs();
            self.error[i] += error * error;
            self.reference[i] += x * x;
            self.approximation[i] += y * y;
            self.product[i] += x * y;
            let (relative, counted) = if x == 0.0 { (0.0, 0.0) } else { (error / x.abs(), 1.0) };
            self.relative[i] += relative;
            self.n_relative[i] += counted;
            self.max_abs[i] = self.max_abs[i].max(error);
        }
    }

    fn stats(self, len: usize) -> ErrorStats {
        let sum = |lanes: [f64; LANES]| lanes.iter().sum::<f64>();
        let (error, reference, approximation) =
            (sum(self.error), sum(self.reference), sum(self.approximation));
        let cosine = match (reference == 0.0, approximation == 0.0) {
            (true, true) => 1.0,
            (false, false) => {
                (sum(self.product) / (reference.sqrt() * approximation.sqrt())).clamp(-1.0, 1.0)
            }
            _ => 0.0,
        };
        ErrorStats {
            mse: error / len.max(1) as f64,
            snr_db: if error == 0.0 { f64::INFINITY } else { 10.0 * (reference / error).log10() },
            cosine,
            max_abs: self.max_abs.into_iter().fold(0.0, f64::max),
            relative: sum(self.relative) / sum(self.n_relative).max(1.0),
        }
    }
}
