//! Activation functions of feed-forward layers: [`silu_in_place`], [`gelu_in_place`].
//!
//! | function | definition |
//! |---|---|
//! | SiLU (swish) | `x · σ(x)`, `σ(x) = 1 / (1 + e^−x)` |
//! | GELU, [`Gelu::Erf`] | `x · Φ(x)`, `Φ` the normal distribution: `(1 + erf(x / √2)) / 2` |
//! | GELU, [`Gelu::Tanh`] | `x · (1 + tanh u) / 2 = x · σ(2 u)`, `u = √(2/π) · (x + 0.044715 x³)` |
//!
//! (D. Hendrycks, K. Gimpel, arXiv 1606.08415; S. Elfwing et al., arXiv 1702.03118.)
//!
//! At −∞ and +∞ all give their limits, −0 and +∞; NaN gives NaN. How the code departs from the formulas:
//!
//! 1. Only `e^−|v|` is computed, which cannot overflow: `σ(v)` is `1 / (1 + e^−|v|)` or, for negative `v`,
//!    `e^−|v| / (1 + e^−|v|)`. Results far below zero so keep their digits instead of becoming 0.
//! 2. `Φ(−a) = e^(−a²/2) · R(a)` with a polynomial of degree 9 in `1 / (1 + 0.35 a)` for `R` (relative error 3e-8 up to
//!    a = 15), for the same reason: `1 + erf` cancels. The square is taken in two parts, or its rounding would be
//!    magnified by the exponential.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    exp::{exp_lanes, exp_sum_lanes},
    lanes::{map_in_place, map_into},
};

/// Which GELU a model was trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gelu {
    /// The definition: `gelu` in most frameworks.
    Erf,
    /// The approximation by a hyperbolic tangent: `gelu_pytorch_tanh`, `gelu_new`.
    Tanh,
}

/// SiLU of each element, in place, within 4 ULP and `|x| · 2^-149`; the second matters where `e^−|x|` is subnormal.
///
/// # Examples
///
/// ```
/// let mut x = [0.0, 1.0, f32::NEG_INFINITY];
/// squish_kernels::silu_in_place(&mut x);
/// assert!((x[1] - 0.731_058_6).abs() < 1e-6 && x[0] == 0.0 && x[2] == 0.0);
/// ```
pub fn silu_in_place(x: &mut [f32]) {
    silu_in_place_with(Isa::detect(), x);
}

/// [`silu_in_place`] into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn silu_into(x: &[f32], out: &mut [f32]) {
    silu_into_with(Isa::detect(), x, out);
}

/// GELU of each element, in place, within `|x| · 2^-149` and, for [`Gelu::Erf`], 6 ULP or, for [`Gelu::Tanh`], a
/// relative error of `(4 + 8 |u|) · 2^-24`, `u` being the argument of its tangent.
///
/// # Examples
///
/// ```
/// use squish_kernels::{Gelu, gelu_in_place};
///
/// let mut x = [1.0];
/// gelu_in_place(&mut x, Gelu::Erf);
/// assert!((x[0] - 0.841_344_8).abs() < 1e-6);
/// ```
pub fn gelu_in_place(x: &mut [f32], form: Gelu) {
    gelu_in_place_with(Isa::detect(), x, form);
}

/// [`gelu_in_place`] into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn gelu_into(x: &[f32], out: &mut [f32], form: Gelu) {
    gelu_into_with(Isa::detect(), x, out, form);
}

#[doc(hidden)]
pub fn silu_in_place_with(isa: Isa, x: &mut [f32]) {
    dispatch!(isa.token(), simd => {
        map_in_place::<_, _, 4>(simd, x, 0.0, (), #[inline(always)] |(), x| silu_lanes(simd, x));
    });
}

#[doc(hidden)]
pub fn silu_into_with(isa: Isa, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "silu: lengths differ");
    dispatch!(isa.token(), simd => {
        map_into::<_, _, 4>(simd, x, out, 0.0, (), #[inline(always)] |(), x| silu_lanes(simd, x));
    });
}

#[doc(hidden)]
pub fn gelu_in_place_with(isa: Isa, x: &mut [f32], form: Gelu) {
    match form {
        Gelu::Erf => dispatch!(isa.token(), simd => {
            map_in_place::<_, _, 4>(simd, x, 0.0, (), #[inline(always)] |(), x| gelu_erf_lanes(simd, x));
        }),
        Gelu::Tanh => dispatch!(isa.token(), simd => {
            map_in_place::<_, _, 4>(simd, x, 0.0, (), #[inline(always)] |(), x| gelu_tanh_lanes(simd, x));
        }),
    }
}

#[doc(hidden)]
pub fn gelu_into_with(isa: Isa, x: &[f32], out: &mut [f32], form: Gelu) {
    assert_eq!(x.len(), out.len(), "gelu: lengths differ");
    match form {
        Gelu::Erf => dispatch!(isa.token(), simd => {
            map_into::<_, _, 4>(simd, x, out, 0.0, (), #[inline(always)] |(), x| gelu_erf_lanes(simd, x));
        }),
        Gelu::Tanh => dispatch!(isa.token(), simd => {
            map_into::<_, _, 4>(simd, x, out, 0.0, (), #[inline(always)] |(), x| gelu_tanh_lanes(simd, x));
        }),
    }
}

/// The definition of [`silu_in_place`], in `f64`.
#[doc(hidden)]
#[must_use]
pub fn silu_scalar(x: f32) -> f64 {
    let x = f64::from(x);
    x / (1.0 + (-x).exp())
}

/// The definition of [`Gelu::Erf`], in `f64`: for `x < 0` by the tail, which does not cancel.
#[doc(hidden)]
#[must_use]
pub fn gelu_erf_scalar(x: f32) -> f64 {
    let a = f64::from(x.abs());
    let density = (-a * a / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let tail = if a < 3.0 {
        // Φ(a) − 1/2 = φ(a) Σ a^(2k+1) / (1 · 3 · … · (2k+1))
        let (mut term, mut sum) = (a, a);
        for k in 1..100 {
            term *= a * a / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 - density * sum
    } else {
        // Laplace's continued fraction.
        density / (1..200).rev().fold(a, |rest, k| a + f64::from(k) / rest)
    };
    f64::from(x) * if x < 0.0 { tail } else { 1.0 - tail }
}

/// The definition of [`Gelu::Tanh`], in `f64`.
#[doc(hidden)]
#[must_use]
pub fn gelu_tanh_scalar(x: f32) -> f64 {
    let x = f64::from(x);
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    x / (1.0 + (-2.0 * u).exp())
}

#[inline(always)]
fn silu_lanes<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = finite_below(simd, x);
    times_sigmoid(simd, x, x)
}

#[inline(always)]
fn gelu_tanh_lanes<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_1;
    const CUBE: f32 = 0.044715 * TWICE_SQRT_2_OVER_PI;
    let x = finite_below(simd, x);
    let factor =
        (x * x).mul_add(S::f32s::splat(simd, CUBE), S::f32s::splat(simd, TWICE_SQRT_2_OVER_PI));
    times_sigmoid(simd, x, x * factor)
}

/// `x · σ(v)`, where `v` has the sign of `x`.
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::f32s, v: S::f32s) -> S::f32s {
    let (zero, one) = (S::f32s::splat(simd, 0.0), S::f32s::splat(simd, 1.0));
    let e = exp_lanes(simd, -v.abs());
    let numerator = v.simd_lt(zero).select(e, one);
    x * numerator / (one + e)
}

#[inline(always)]
fn gelu_erf_lanes<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| S::f32s::splat(simd, value);
    let x = finite_below(simd, x);
    // Beyond 16 the tail is 0, and so it is at 16; squares of larger numbers overflow.
    let a = x.abs();
    let a = a.simd_gt(splat(16.0)).select(splat(16.0), a);
    // The upper half of the digits squares exactly.
    let high = (a.bitcast::<S::u32s>() & 0xffff_f000).bitcast::<S::f32s>();
    let minus_half = splat(-0.5);
    let e =
        exp_sum_lanes(simd, high * high * minus_half, Some((a - high) * (a + high) * minus_half));
    let t = splat(1.0) / a.mul_add(splat(0.35), splat(1.0));
    let r = splat(-0.029_163_796);
    let r = r.mul_add(t, splat(0.144_060_2));
    let r = r.mul_add(t, splat(-0.255_900_65));
    let r = r.mul_add(t, splat(0.159_391_57));
    let r = r.mul_add(t, splat(-0.023_262_955));
    let r = r.mul_add(t, splat(0.105_574_45));
    let r = r.mul_add(t, splat(0.119_815_58));
    let r = r.mul_add(t, splat(0.139_864_33));
    let r = r.mul_add(t, splat(0.139_621_26));
    let tail = e * (r * t);
    x * x.simd_lt(splat(0.0)).select(tail, splat(1.0) - tail)
}

/// `x`, with the least finite number for −∞: its product with 0 is 0.
#[inline(always)]
fn finite_below<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let least = S::f32s::splat(simd, f32::MIN);
    x.simd_lt(least).select(least, x)
}
