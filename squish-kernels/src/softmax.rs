//! Normalized exponentials of a row: [`softmax_in_place`], [`log_softmax_in_place`].
//!
//! ```text
//! m = max x        softmax[i] = e^(x[i] − m) / Σ e^(x − m)
//! ```
//!
//! | row | softmax | log-softmax |
//! |---|---|---|
//! | `x[i] = −∞` (masked) | exactly 0 there | −∞ there |
//! | all masked, or empty | all 0: nothing has a weight | all −∞ |
//! | a NaN | all NaN | all NaN |
//! | a +∞, no NaN | all NaN: ∞ − ∞ | all NaN |
//!
//! Softmax of an all-masked row is the one departure from the formula, which is 0 / 0 there; attention over nothing
//! then is zero, and merging it with other parts changes nothing.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    exp::exp_normal_lanes,
    lanes::{fold, join, map_in_place, map_into, total},
};

/// Softmax of `x`, in place: non-negative numbers that sum to 1.
///
/// Relative error below `(16 + d) · 2^-23` where `d` is the distance of the element from the maximum; results below
/// 2^-126 times the largest are 0.
///
/// # Examples
///
/// ```
/// let mut x = [0.0, f32::NEG_INFINITY, 0.0];
/// squish_kernels::softmax_in_place(&mut x);
/// assert_eq!(x, [0.5, 0.0, 0.5]);
/// ```
pub fn softmax_in_place(x: &mut [f32]) {
    softmax_in_place_with(Isa::detect(), x);
}

/// [`softmax_in_place`] into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn softmax_into(x: &[f32], out: &mut [f32]) {
    softmax_into_with(Isa::detect(), x, out);
}

/// Logarithm of the softmax of `x`, in place: `x[i] − log_sum_exp(x)`.
///
/// Absolute error below `(16 + d) · 2^-23` where `d` is the distance of the element from the maximum.
///
/// # Examples
///
/// ```
/// let mut x = [1.0, 1.0];
/// squish_kernels::log_softmax_in_place(&mut x);
/// assert_eq!(x, [-std::f32::consts::LN_2; 2]);
/// ```
pub fn log_softmax_in_place(x: &mut [f32]) {
    log_softmax_in_place_with(Isa::detect(), x);
}

/// [`log_softmax_in_place`] into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn log_softmax_into(x: &[f32], out: &mut [f32]) {
    log_softmax_into_with(Isa::detect(), x, out);
}

#[doc(hidden)]
pub fn softmax_in_place_with(isa: Isa, x: &mut [f32]) {
    dispatch!(isa.token(), simd => softmax_lanes_in_place(simd, x));
}

#[doc(hidden)]
pub fn softmax_into_with(isa: Isa, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "softmax: lengths differ");
    dispatch!(isa.token(), simd => softmax_lanes(simd, x, out));
}

#[doc(hidden)]
pub fn log_softmax_in_place_with(isa: Isa, x: &mut [f32]) {
    dispatch!(isa.token(), simd => log_softmax_lanes_in_place(simd, x));
}

#[doc(hidden)]
pub fn log_softmax_into_with(isa: Isa, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "log_softmax: lengths differ");
    dispatch!(isa.token(), simd => log_softmax_lanes(simd, x, out));
}

/// Replaces each element by `e^(x − m)` and returns the sum of these: what softmax does to a part of a row whose largest element is `m`.
///
/// With an `m` of negative infinity the result is NaN.
#[doc(hidden)]
pub fn weigh_in_place_with(isa: Isa, m: f32, x: &mut [f32]) -> f32 {
    dispatch!(isa.token(), simd => weigh_block(simd, m, x))
}

/// The definition of [`softmax_in_place`], in `f64`.
#[doc(hidden)]
#[must_use]
pub fn softmax_scalar(x: &[f32]) -> Vec<f64> {
    let m = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
    if m == f64::NEG_INFINITY && !x.iter().any(|x| x.is_nan()) {
        return vec![0.0; x.len()];
    }
    let weights: Vec<f64> = x.iter().map(|&x| (f64::from(x) - m).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

#[inline(always)]
fn softmax_lanes_in_place<S: Simd>(simd: S, x: &mut [f32]) {
    let m = shift(simd, x);
    let mut sum = 0.0;
    for block in x.chunks_mut(SUM_BLOCK) {
        sum += f64::from(weigh_block(simd, m, block));
    }
    normalize(simd, sum, x);
}

#[inline(always)]
fn weigh_block<S: Simd>(simd: S, m: f32, x: &mut [f32]) -> f32 {
    let m = S::f32s::splat(simd, m);
    let sums = map_in_place(
        simd,
        x,
        f32::NEG_INFINITY,
        S::f32s::splat(simd, 0.0),
        #[inline(always)]
        |sum, x| weigh(simd, m, sum, x),
    );
    total::<S, 4>(sums)
}

#[inline(always)]
fn softmax_lanes<S: Simd>(simd: S, x: &[f32], out: &mut [f32]) {
    let m = S::f32s::splat(simd, shift(simd, x));
    let mut sum = 0.0;
    for (block, out) in x.chunks(SUM_BLOCK).zip(out.chunks_mut(SUM_BLOCK)) {
        let sums = map_into(
            simd,
            block,
            out,
            f32::NEG_INFINITY,
            S::f32s::splat(simd, 0.0),
            #[inline(always)]
            |sum, x| weigh(simd, m, sum, x),
        );
        sum += f64::from(total::<S, 4>(sums));
    }
    normalize(simd, sum, out);
}

#[inline(always)]
fn log_softmax_lanes_in_place<S: Simd>(simd: S, x: &mut [f32]) {
    let (m, log_sum) = log_terms(simd, x);
    map_in_place::<S, _, 4>(
        simd,
        x,
        0.0,
        (),
        #[inline(always)]
        |(), x| (x - m) - log_sum,
    );
}

#[inline(always)]
fn log_softmax_lanes<S: Simd>(simd: S, x: &[f32], out: &mut [f32]) {
    let (m, log_sum) = log_terms(simd, x);
    map_into::<S, _, 4>(
        simd,
        x,
        out,
        0.0,
        (),
        #[inline(always)]
        |(), x| (x - m) - log_sum,
    );
}

/// The largest element, or 0 where that is −∞, so that subtracting it leaves −∞ as it is.
///
/// With a NaN among the elements it is any of them: the sum that follows is NaN all the same.
#[inline(always)]
fn shift<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let m = largest(simd, x);
    if m == f32::NEG_INFINITY { 0.0 } else { m }
}

#[inline(always)]
fn largest<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let states: [_; 8] = fold(
        simd,
        x,
        f32::NEG_INFINITY,
        S::f32s::splat(simd, f32::NEG_INFINITY),
        #[inline(always)]
        |most, x| x.max(most),
    );
    join(states, S::f32s::max).reduce_max()
}

/// `e^(x − m)`, which is also added to `sum`.
#[inline(always)]
fn weigh<S: Simd>(simd: S, m: S::f32s, sum: &mut S::f32s, x: S::f32s) -> S::f32s {
    let weight = exp_normal_lanes(simd, x - m);
    *sum += weight;
    weight
}

/// Divides the weights by their sum; where there are none, they stay 0.
#[inline(always)]
fn normalize<S: Simd>(simd: S, sum: f64, weights: &mut [f32]) {
    let factor = S::f32s::splat(simd, if sum == 0.0 { 0.0 } else { (1.0 / sum) as f32 });
    map_in_place::<S, _, 4>(
        simd,
        weights,
        0.0,
        (),
        #[inline(always)]
        |(), weight| weight * factor,
    );
}

/// The two numbers that log-softmax subtracts: the maximum, and the logarithm of the sum of what is then left.
#[inline(always)]
fn log_terms<S: Simd>(simd: S, x: &[f32]) -> (S::f32s, S::f32s) {
    let m = S::f32s::splat(simd, shift(simd, x));
    let mut sum = 0.0;
    for block in x.chunks(SUM_BLOCK) {
        let sums: [_; 4] = fold(
            simd,
            block,
            f32::NEG_INFINITY,
            S::f32s::splat(simd, 0.0),
            #[inline(always)]
            |mut sum, x| {
                weigh(simd, m, &mut sum, x);
                sum
            },
        );
        sum += f64::from(total::<S, 4>(sums));
    }
    let log_sum = if sum == 0.0 { 0.0 } else { sum.ln() as f32 };
    (m, S::f32s::splat(simd, log_sum))
}

/// Elements that are summed in `f32` before an `f64` takes their sum, so that the error does not grow with the row.
const SUM_BLOCK: usize = 2048;
