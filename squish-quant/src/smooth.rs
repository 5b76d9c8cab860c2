//! Moving outliers of activations into weights: `SmoothQuant`'s scales.
//!
//! ```text
//! W x = (W diag(s)) (diag(s)⁻¹ x)        s[j] = amax(X[:, j])^α / amax(W[:, j])^(1 − α)
//! ```
//!
//! With `α = 1/2` inputs and weights of channel `j` then have the same maximum, `√(amax(X[:, j]) · amax(W[:, j]))`. The maxima of inputs come from
//! [`QuantAwareCalibrator::abs_max`](crate::QuantAwareCalibrator::abs_max); those of weights are of all matrices that multiply the same input, as
//! queries, keys and values do.
//!
//! | channel | scale |
//! |---|---|
//! | no input, or no weight, other than zero | 1: nothing to balance |
//! | beyond 2^±126 | 2^±126, so that scale and reciprocal are normal numbers |
//!
//! Source: G. Xiao et al., arXiv 2211.10438, equation 4. Its code raises small maxima to 1e-5 instead.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::{
    band::{all_scales, check_divisors},
    calibrate::{CalibratorOptions, QuantAwareCalibrator, Statistic},
    error::{Error, Result},
};

/// One scale per input from the largest magnitudes of inputs and of weights, both of `[inputs]`, and `alpha`, 0 to 1.
///
/// # Errors
///
/// [`Error::Length`], [`Error::BadScale`] for a maximum that is NaN, infinite or negative, [`Error::Value`] for `alpha`.
///
/// # Examples
///
/// ```
/// use squish_quant::smooth_scales;
///
/// assert_eq!(smooth_scales(&[16.0, 1.0, 0.0], &[1.0, 4.0, 2.0], 0.5)?, [4.0, 0.5, 1.0]);
/// # Ok::<(), squish_quant::Error>(())
/// ```
pub fn smooth_scales(x_abs_max: &[f32], w_abs_max: &[f32], alpha: f32) -> Result<Vec<f32>> {
    let mut scales = vec![0.0; x_abs_max.len()];
    smooth_scales_into(x_abs_max, w_abs_max, alpha, &mut scales)?;
    Ok(scales)
}

/// [`smooth_scales`] into `scales`, `[inputs]`. Allocates nothing.
///
/// # Errors
///
/// As [`smooth_scales`]. Then nothing is written.
pub fn smooth_scales_into(
    x_abs_max: &[f32],
    w_abs_max: &[f32],
    alpha: f32,
    scales: &mut [f32],
) -> Result<()> {
    Error::check_length("w_abs_max", x_abs_max.len(), w_abs_max.len())?;
    Error::check_length("scales", x_abs_max.len(), scales.len())?;
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::Value { what: "alpha", value: alpha.into(), expected: "0 to 1" });
    }
    for maxima in [x_abs_max, w_abs_max] {
        all_scales(maxima, |x| x >= 0.0 && x.is_finite())?;
    }
    let (least, alpha) = (f64::from(f32::MIN_POSITIVE), f64::from(alpha));
    for (scale, (&x, &w)) in scales.iter_mut().zip(x_abs_max.iter().zip(w_abs_max)) {
        let ratio = f64::from(x).powf(alpha) / f64::from(w).powf(1.0 - alpha);
        *scale = if x == 0.0 || w == 0.0 { 1.0 } else { ratio.clamp(least, least.recip()) as f32 };
    }
    Ok(())
}

/// The largest magnitude of each column of `weight`, `[outputs, inputs]`.
///
/// # Errors
///
/// [`Error::NonFinite`] for a NaN or an infinity.
pub fn column_abs_max(weight: ArrayView2<'_, f32>) -> Result<Vec<f32>> {
    let options = CalibratorOptions {
        statistic: Statistic::MinMax,
        non_finite: crate::NonFiniteBatch::Refuse,
    };
    let mut calibrator = QuantAwareCalibrator::new(weight.ncols(), options)?;
    calibrator.record(weight.as_standard_layout().view())?;
    Ok(calibrator.abs_max())
}

/// Multiplies the columns of `weight`, `[outputs, inputs]`, with `scales`, `[inputs]`: `W diag(s)`.
///
/// # Errors
///
/// [`Error::Length`], [`Error::BadScale`] for a scale that is not positive and finite, as its reciprocal. Then nothing is written.
pub fn fold_into_weight(mut weight: ArrayViewMut2<'_, f32>, scales: &[f32]) -> Result<()> {
    Error::check_length("scales", weight.ncols(), scales.len())?;
    check_divisors(scales)?;
    for mut row in weight.rows_mut() {
        row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
    }
    Ok(())
}

/// Divides what makes the inputs, the weights of a norm or a bias, `[inputs]`, by `scales`: `diag(s)⁻¹ x`.
///
/// # Errors
///
/// As [`fold_into_weight`]. Then nothing is written.
pub fn fold_into_norm(norm: &mut [f32], scales: &[f32]) -> Result<()> {
    Error::check_length("scales", norm.len(), scales.len())?;
    check_divisors(scales)?;
    norm.iter_mut().zip(scales).for_each(|(x, s)| *x /= s);
    Ok(())
}
