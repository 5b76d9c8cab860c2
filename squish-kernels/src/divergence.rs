//! How far the distribution of one row of logits is from that of another: [`kl_divergence`].
//!
//! ```text
//! ln p = base − ln Σ e^base        ln q = other − ln Σ e^other        KL = Σ p · (ln p − ln q)
//! ```
//!
//! (S. Kullback, R. A. Leibler, Annals of Mathematical Statistics 22, 1951.) The terms of this sum have both signs, and
//! where the rows hardly differ, they cancel to a millionth of their size. The code sums other terms, of which none is
//! negative:
//!
//! ```text
//! Δ = ln q − ln p        KL = Σ p · (e^Δ − 1 − Δ)        since Σ p · e^Δ = Σ q = 1 = Σ p
//! ```
//!
//! - For `|Δ| ≤ 1` the bracket is `Δ² · (1/2! + Δ/3! + Δ²/4! + …)`, else the term is `q − p − p · Δ`.
//! - A wrong log-sum moves every Δ by as much, which changes the sum by that times `Σ |q − p|` at most.
//! - `Δ = (other − base) − (ln Σ e^other − ln Σ e^base)`: where the rows are equal it is 0, and so is the result.
//!
//! | element | adds |
//! |---|---|
//! | `base = −∞`, or `p` below 2^-126 | `q`, the term's limit; nothing, if `q` is as small |
//! | `other = −∞` alone | +∞ |
//! | a NaN or +∞ | NaN or anything |

use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    exp::exp_normal_lanes,
    isa::dispatch,
    lanes::{fold2, total},
};

/// Kullback-Leibler divergence of the distribution of `other` from that of `base` `[vocab_size]`, in nats.
///
/// The log-sums are the [`log_sum_exp_f64`](crate::log_sum_exp_f64) of the rows. Neither may hold a NaN or +∞.
///
/// Never negative, 0 for equal rows. The error is below `2^-16 KL + e √(2 KL) + e²`, where `e` is that of the log-sums, and `2^-22` of their
/// difference.
///
/// # Panics
///
/// If the lengths differ.
///
/// # Examples
///
/// ```
/// use squish_kernels::{kl_divergence, log_sum_exp_f64};
///
/// let (base, other) = ([0.0, 0.0], [0.0, 3_f32.ln()]);
/// let kl = kl_divergence(&base, log_sum_exp_f64(&base), &other, log_sum_exp_f64(&other));
/// // ln(1/2 / 1/4) / 2 + ln(1/2 / 3/4) / 2
/// assert!((kl - 0.5 * (4.0_f64 / 3.0).ln()).abs() < 1e-6);
/// ```
#[must_use]
pub fn kl_divergence(base: &[f32], base_log_sum: f64, other: &[f32], other_log_sum: f64) -> f64 {
    kl_divergence_with(Isa::detect(), base, base_log_sum, other, other_log_sum)
}

#[doc(hidden)]
#[must_use]
pub fn kl_divergence_with(
    isa: Isa,
    base: &[f32],
    base_log_sum: f64,
    other: &[f32],
    other_log_sum: f64,
) -> f64 {
    assert_eq!(base.len(), other.len(), "kl_divergence: lengths differ");
    dispatch!(isa.token(), simd => kl_lanes(simd, base, base_log_sum, other, other_log_sum))
}

/// The definition of [`kl_divergence`], in `f64`.
#[doc(hidden)]
#[must_use]
pub fn kl_divergence_scalar(base: &[f32], other: &[f32]) -> f64 {
    let log_sum = |x: &[f32]| {
        let m = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
        m + x.iter().map(|&x| (f64::from(x) - m).exp()).sum::<f64>().ln()
    };
    let (base_log_sum, other_log_sum) = (log_sum(base), log_sum(other));
    let term = |(&base, &other): (&f32, &f32)| {
        let (ln_p, ln_q) = (f64::from(base) - base_log_sum, f64::from(other) - other_log_sum);
        if ln_p == f64::NEG_INFINITY { 0.0 } else { ln_p.exp() * (ln_p - ln_q) }
    };
    base.iter().zip(other).map(term).sum()
}

/// Elements that are summed in `f32` before an `f64` takes their sum, so that the error does not grow with the row.
const BLOCK: usize = 2048;

#[inline(always)]
fn kl_lanes<S: Simd>(
    simd: S,
    base: &[f32],
    base_log_sum: f64,
    other: &[f32],
    other_log_sum: f64,
) -> f64 {
    let splat = |x: f64| S::f32s::splat(simd, x as f32);
    let (base_shift, other_shift) = (splat(base_log_sum), splat(other_log_sum));
    let shift = splat(other_log_sum - base_log_sum);
    let mut sum = 0.0;
    for (base, other) in base.chunks(BLOCK).zip(other.chunks(BLOCK)) {
        let sums: [_; 4] = fold2(
            simd,
            base,
            other,
            f32::NEG_INFINITY,
            S::f32s::splat(simd, 0.0),
            #[inline(always)]
            |sum, base, other| {
                let p = exp_normal_lanes(simd, base - base_shift);
                let delta = (other - base) - shift;
                let near = p * near_bracket(simd, delta);
                // Of a model that differs little all are, and half of the work is left out.
                let is_near = delta.abs().simd_le(S::f32s::splat(simd, 1.0));
                if is_near.all_true() {
                    return sum + near;
                }
                let q = exp_normal_lanes(simd, other - other_shift);
                let far = p.mul_add(S::f32s::splat(simd, -1.0) - delta, q);
                let term = is_near.select(near, far);
                sum + p.simd_eq(S::f32s::splat(simd, 0.0)).select(q, term)
            },
        );
        sum += f64::from(total::<S, 4>(sums));
    }
    sum
}

/// `e^Δ − 1 − Δ` for `|Δ| ≤ 1`, relative error 3e-7; anything for others.
#[inline(always)]
fn near_bracket<S: Simd>(simd: S, delta: S::f32s) -> S::f32s {
    // From 1 / 9! on; what follows 1 / 10! is below 2^-23 of the sum.
    const FACTORIALS: [f32; 8] = [
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
    ];
    let mut series = S::f32s::splat(simd, 1.0 / 3_628_800.0);
    for factor in FACTORIALS {
        series = series.mul_add(delta, S::f32s::splat(simd, factor));
    }
    delta * delta * series
}
