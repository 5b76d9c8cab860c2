//! `e^x` of a slice: [`exp_in_place`], [`exp_into`].
//!
//! ```text
//! n = round(x / ln 2)                     by adding 1.5 · 2^23, whose last place is 1
//! r = x − n · ln 2                        |r| ≤ ln 2 / 2; ln 2 in two parts, the first short enough that n · part is exact
//! e^x = 2^n · (1 + r + r² · q(r))         q of degree 4, relative error 3e-9
//! ```
//!
//! (W. J. Cody, W. Waite: Software Manual for the Elementary Functions, 1980, chapter 6.) `2^n` is applied as two normal
//! factors, so that results that are subnormal are rounded once and the others not at all.
//!
//! Softmax and its kin know that the argument is not large and want no subnormal results, and so use a shorter form
//! in base 2, `2^(d · log2 e)`.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    lanes::{map_in_place, map_into},
};

/// `e^x` of each element, in place, within 1.01 ULP: the largest error over all floats.
///
/// The whole range: results below the smallest subnormal round to 0, those beyond the largest float are +∞, NaN stays NaN.
///
/// # Examples
///
/// ```
/// let mut x = [0.0, 1.0, f32::NEG_INFINITY, 1000.0];
/// squish_kernels::exp_in_place(&mut x);
/// assert_eq!(x, [1.0, std::f32::consts::E, 0.0, f32::INFINITY]);
/// ```
pub fn exp_in_place(x: &mut [f32]) {
    exp_in_place_with(Isa::detect(), x);
}

/// [`exp_in_place`] into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn exp_into(x: &[f32], out: &mut [f32]) {
    exp_into_with(Isa::detect(), x, out);
}

#[doc(hidden)]
pub fn exp_in_place_with(isa: Isa, x: &mut [f32]) {
    dispatch!(isa.token(), simd => {
        map_in_place::<_, _, 4>(simd, x, 0.0, (), #[inline(always)] |(), x| exp_lanes(simd, x));
    });
}

#[doc(hidden)]
pub fn exp_into_with(isa: Isa, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "exp: lengths differ");
    dispatch!(isa.token(), simd => {
        map_into::<_, _, 4>(simd, x, out, 0.0, (), #[inline(always)] |(), x| exp_lanes(simd, x));
    });
}

/// 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `e^x` over the whole range.
#[inline(always)]
pub(crate) fn exp_lanes<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    exp_sum_lanes(simd, x, None)
}

/// `e^(x + low)` for a `low` that is small beside 1: an argument with more digits than a float has.
#[inline(always)]
pub(crate) fn exp_sum_lanes<S: Simd>(simd: S, x: S::f32s, low: Option<S::f32s>) -> S::f32s {
    // Beyond these the result is 0 and infinite. Comparisons with a NaN are false, so that it goes on.
    const LOWEST: f32 = -104.0;
    const HIGHEST: f32 = 89.0;
    const LN_2_HIGH: f32 = 0.693_359_375; // 355 / 512
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let splat = |value: f32| S::f32s::splat(simd, value);
    let integers = |value: i32| S::i32s::splat(simd, value);

    let x = x.simd_lt(splat(LOWEST)).select(splat(LOWEST), x);
    let x = x.simd_gt(splat(HIGHEST)).select(splat(HIGHEST), x);
    let shifted = x.mul_add(splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = shifted - splat(ROUND);
    let r = n.mul_add(splat(-LN_2_HIGH), x);
    let r = n.mul_add(splat(-LN_2_LOW), r);
    let r = low.map_or(
        r,
        #[inline(always)]
        |low| r + low,
    );
    let q = splat(1.381_454e-3);
    let q = q.mul_add(r, splat(8.368_745e-3));
    let q = q.mul_add(r, splat(4.166_839e-2));
    let q = q.mul_add(r, splat(0.166_665_21));
    let q = q.mul_add(r, splat(0.499_999_94));
    let p = q.mul_add(r * r, r) + splat(1.0);

    let n = shifted.bitcast::<S::i32s>() - integers(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: S::i32s| ((n + integers(127)) << 23).bitcast::<S::f32s>();
    p * power(half) * power(n - half)
}

/// `e^d` for `d` at most 88, and 0 where that would be less than the smallest normal number.
///
/// The relative error is below `(2 + |d|) · 2^-23`, of which the subtraction that made `d` may cost as much. NaN gives
/// NaN; anything larger than the maximum gives any value.
///
/// Where two units multiply and two others add, as on Zen, the former are the limit. Hence the exponent is found by
/// additions alone.
#[inline(always)]
pub(crate) fn exp_normal_lanes<S: Simd>(simd: S, d: S::f32s) -> S::f32s {
    // ln(2^-126) is -87.3365.
    const LOWEST: f32 = -87.336_5;
    // The exponent bias is added in the same step.
    const ROUND_BIASED: f32 = ROUND + 127.0;
    let splat = |value: f32| S::f32s::splat(simd, value);

    let t = d * splat(std::f32::consts::LOG2_E);
    let shifted = t + splat(ROUND_BIASED);
    let f = t - (shifted - splat(ROUND_BIASED));
    // 2^f on [-1/2, 1/2], relative error 9e-8.
    let p = splat(1.326_469_9e-3);
    let p = p.mul_add(f, splat(9.671_533_5e-3));
    let p = p.mul_add(f, splat(5.550_734e-2));
    let p = p.mul_add(f, splat(0.240_222_42));
    let p = p.mul_add(f, splat(0.693_147_003_65));
    let p = p.mul_add(f, splat(1.0));
    let power = (shifted.bitcast::<S::u32s>() << 23).bitcast::<S::f32s>();
    d.simd_lt(splat(LOWEST)).select(splat(0.0), p * power)
}
