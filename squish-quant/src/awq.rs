//! Scales of input channels that protect the weights which matter: the search of AWQ.
//!
//! ```text
//! m[j]   = mean |X[:, j]|
//! s(r)   = m^r / √(max m^r · min m^r)                      m no less than 1e-4
//! E(r)   = mean (X (Q(W diag(s)) diag(s)⁻¹ − W)ᵀ)²         Q: encode and decode
//! r*     = argmin E(r)   over r = 0, 1/19, …, 1
//! ```
//!
//! At `r = 0` nothing is scaled, so that the result is never worse than that, on this sample. Scales fold into weights and into what makes the inputs as
//! those of [`smooth`](crate::smooth) do.
//!
//! Source: J. Lin et al., arXiv 2306.00978, section 3.2 and equation 4. Its code tries 0, 1/20, …, 19/20.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use squish_kernels::dot;

use crate::{
    band::check_finite,
    error::{Error, Result},
};

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwqSearch {
    /// Number of powers from 0 to 1: 20 by default. With one, nothing is scaled.
    pub n_ratios: usize,
}

impl Default for AwqSearch {
    fn default() -> Self {
        Self { n_ratios: 20 }
    }
}

/// The best scales.
#[derive(Clone, Debug, PartialEq)]
pub struct AwqScales {
    /// One per input; all 1 if no scaling is best.
    pub scales: Vec<f32>,
    /// The power of the mean magnitudes.
    pub ratio: f64,
    /// Mean squared error of the outputs with them.
    pub error: f64,
    /// The same without scaling.
    pub unscaled_error: f64,
}

/// The scales of the inputs of `weight`, `[outputs, inputs]`, with which quantized weights multiply the sample `x`, `[rows, inputs]`, best.
///
/// `quantize` replaces a matrix of the shape of `weight` by what decoding its encoding gives. Without rows in the sample nothing is scaled. Keeps
/// one copy of the weights.
///
/// # Errors
///
/// [`Error::Shape`] if `x` has another number of columns, [`Error::NonFinite`] for a NaN or an infinity in `weight` or `x`, [`Error::Value`] for no
/// ratios, and what `quantize` returns.
///
/// # Examples
///
/// ```
/// use squish_quant::{AwqSearch, Granularity, IntFormat, IntQuantizer, awq_scales, ndarray::Array2};
///
/// let noise = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
/// let weight = Array2::from_shape_fn([32, 64], |(row, col)| 0.02 * noise(64 * row + col));
/// // A few inputs are much larger than the others.
/// let x = Array2::from_shape_fn([16, 64], |(row, col)| noise(5000 + 64 * row + col) * if col % 16 == 3 { 30.0 } else { 1.0 });
/// let int4 = IntQuantizer { format: IntFormat::Int4, granularity: Granularity::Block1d(32), ..Default::default() };
/// let best = awq_scales(weight.view(), x.view(), |w| int4.encode(w.view())?.decode_into(w), AwqSearch::default())?;
/// assert!(best.ratio > 0.0 && best.error < 0.9 * best.unscaled_error, "{} {}", best.error, best.unscaled_error);
/// # Ok::<(), squish_quant::Error>(())
/// ```
pub fn awq_scales(
    weight: ArrayView2<'_, f32>,
    x: ArrayView2<'_, f32>,
    mut quantize: impl FnMut(ArrayViewMut2<'_, f32>) -> Result<()>,
    search: AwqSearch,
) -> Result<AwqScales> {
    let [n_rows, n_inputs] = x.dim().into();
    if n_inputs != weight.ncols() {
        let expected = [n_rows, weight.ncols()];
        return Err(Error::Shape { what: "x", expected, actual: [n_rows, n_inputs] });
    }
    if search.n_ratios == 0 {
        return Err(Error::Value { what: "n_ratios", value: 0.0, expected: "1 or more" });
    }
    let (weight, x) = (weight.as_standard_layout(), x.as_standard_layout());
    check_finite(weight.view())?;
    check_finite(x.view())?;
    let means = mean_magnitudes(x.view());
    let mut work = Array2::zeros(weight.dim());
    let mut scales = vec![1.0; n_inputs];
    let unscaled_error = error(weight.view(), x.view(), &scales, &mut work, &mut quantize)?;
    let mut best =
        AwqScales { scales: scales.clone(), ratio: 0.0, error: unscaled_error, unscaled_error };
    for i in 1..search.n_ratios {
        let ratio = i as f64 / (search.n_ratios - 1) as f64;
        scales_of(&means, ratio, &mut scales);
        let error = error(weight.view(), x.view(), &scales, &mut work, &mut quantize)?;
        if error < best.error {
            best.scales.copy_from_slice(&scales);
            (best.ratio, best.error) = (ratio, error);
        }
    }
    Ok(best)
}

/// The mean of `|x|` of each column, at least 1e-4.
fn mean_magnitudes(x: ArrayView2<'_, f32>) -> Vec<f64> {
    let mut sums = vec![0.0; x.ncols()];
    for row in x.rows() {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.abs()));
    }
    let n = x.nrows().max(1) as f64;
    sums.iter().map(|sum| (sum / n).max(1e-4)).collect()
}

/// `m^r` with a geometric mean of 1 between the largest and the smallest.
fn scales_of(means: &[f64], ratio: f64, scales: &mut [f32]) {
    let powers = || means.iter().map(|mean| mean.powf(ratio));
    let (least, most) = powers()
        .fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), x| (least.min(x), most.max(x)));
    let middle = (least * most).sqrt();
    for (scale, power) in scales.iter_mut().zip(powers()) {
        *scale = (power / middle) as f32;
    }
}

/// The mean squared error of the outputs. `work` is room for the weights.
fn error(
    weight: ArrayView2<'_, f32>,
    x: ArrayView2<'_, f32>,
    scales: &[f32],
    work: &mut Array2<f32>,
    quantize: &mut impl FnMut(ArrayViewMut2<'_, f32>) -> Result<()>,
) -> Result<f64> {
    for (mut to, from) in work.rows_mut().into_iter().zip(weight.rows()) {
        to.iter_mut().zip(from).zip(scales).for_each(|((to, w), scale)| *to = w * scale);
    }
    quantize(work.view_mut())?;
    let mut sum = 0.0;
    for (mut to, from) in work.rows_mut().into_iter().zip(weight.rows()) {
        to.iter_mut().zip(from).zip(scales).for_each(|((to, w), scale)| *to = *to / scale - w);
        let off = to.into_slice().expect("an array of our own");
        for x in x.rows() {
            sum += f64::from(dot(x.as_slice().expect("standard layout"), off)).powi(2);
        }
    }
    Ok(sum / (weight.nrows() * x.nrows()).max(1) as f64)
}
