//! One number of a slice: [`sum`], [`max`], [`min`], [`abs_max`], [`argmax`].
//!
//! | function | empty slice | NaN |
//! |---|---|---|
//! | [`sum`] | 0 | gives NaN |
//! | [`max`], [`min`] | −∞, +∞ | gives NaN |
//! | [`abs_max`] | 0 | gives NaN |
//! | [`argmax`] | `None` | is never chosen |
//!
//! All but [`sum`] give the same result on every level, up to the sign of a zero and the payload of a NaN.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    lanes::{fold, join, total},
};

/// Sum of `x`, accumulated in 8 chains of lanes; 0 for an empty slice.
///
/// The result differs from the exact sum by at most `len * EPSILON / 2 * sum(|x|)`.
///
/// # Examples
///
/// ```
/// assert_eq!(squish_kernels::sum(&[1.0, 2.0, 3.5]), 6.5);
/// ```
#[must_use]
pub fn sum(x: &[f32]) -> f32 {
    sum_with(Isa::detect(), x)
}

/// Largest element; −∞ for an empty slice, NaN if there is one. Of zeros of both signs either may be returned.
///
/// # Examples
///
/// ```
/// assert_eq!(squish_kernels::max(&[1.0, 4.0, 3.5]), 4.0);
/// assert!(squish_kernels::max(&[1.0, f32::NAN]).is_nan());
/// ```
#[must_use]
pub fn max(x: &[f32]) -> f32 {
    max_with(Isa::detect(), x)
}

/// Smallest element; +∞ for an empty slice, NaN if there is one. Of zeros of both signs either may be returned.
///
/// # Examples
///
/// ```
/// assert_eq!(squish_kernels::min(&[1.0, -4.0, 3.5]), -4.0);
/// ```
#[must_use]
pub fn min(x: &[f32]) -> f32 {
    min_with(Isa::detect(), x)
}

/// Largest magnitude; 0 for an empty slice. Not finite exactly if an element is not: NaN if there is one, else +∞.
///
/// # Examples
///
/// ```
/// assert_eq!(squish_kernels::abs_max(&[1.0, -4.0, 3.5]), 4.0);
/// assert!(squish_kernels::abs_max(&[f32::INFINITY, f32::NAN]).is_nan());
/// ```
#[must_use]
pub fn abs_max(x: &[f32]) -> f32 {
    abs_max_with(Isa::detect(), x)
}

/// Index of the largest element that is no NaN, the lowest such index; `None` if there is no such element.
///
/// Zeros of both signs are equal.
///
/// # Examples
///
/// ```
/// use squish_kernels::argmax;
///
/// assert_eq!(argmax(&[1.0, f32::NAN, 4.0, 4.0]), Some(2));
/// assert_eq!(argmax(&[f32::NAN]), None);
/// ```
#[must_use]
pub fn argmax(x: &[f32]) -> Option<usize> {
    argmax_with(Isa::detect(), x)
}

#[doc(hidden)]
#[must_use]
pub fn sum_with(isa: Isa, x: &[f32]) -> f32 {
    dispatch!(isa.token(), simd => sum_lanes(simd, x))
}

#[doc(hidden)]
#[must_use]
pub fn max_with(isa: Isa, x: &[f32]) -> f32 {
    dispatch!(isa.token(), simd => max_lanes(simd, x))
}

#[doc(hidden)]
#[must_use]
pub fn min_with(isa: Isa, x: &[f32]) -> f32 {
    dispatch!(isa.token(), simd => min_lanes(simd, x))
}

#[doc(hidden)]
#[must_use]
pub fn abs_max_with(isa: Isa, x: &[f32]) -> f32 {
    dispatch!(isa.token(), simd => abs_max_lanes(simd, x))
}

#[doc(hidden)]
#[must_use]
pub fn argmax_with(isa: Isa, x: &[f32]) -> Option<usize> {
    dispatch!(isa.token(), simd => argmax_lanes(simd, x))
}

/// The definition of [`argmax`].
#[doc(hidden)]
#[must_use]
pub fn argmax_scalar(x: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, &value) in x.iter().enumerate() {
        if !value.is_nan() && best.is_none_or(|best| value > x[best]) {
            best = Some(i);
        }
    }
    best
}

#[inline(always)]
fn sum_lanes<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let sums: [_; 8] = fold(
        simd,
        x,
        0.0,
        S::f32s::splat(simd, 0.0),
        #[inline(always)]
        |sum, x| sum + x,
    );
    total::<S, 8>(sums)
}

#[inline(always)]
fn max_lanes<S: Simd>(simd: S, x: &[f32]) -> f32 {
    extreme(
        simd,
        x,
        f32::NEG_INFINITY,
        #[inline(always)]
        |a, b| larger::<S>(a, b),
    )
    .map_or(f32::NAN, SimdBase::reduce_max)
}

#[inline(always)]
fn min_lanes<S: Simd>(simd: S, x: &[f32]) -> f32 {
    extreme(
        simd,
        x,
        f32::INFINITY,
        #[inline(always)]
        |a, b| b.simd_lt(a).select(b, a),
    )
    .map_or(f32::NAN, SimdBase::reduce_min)
}

/// The elements that `pick` prefers in each lane, or `None` if there is a NaN. `pick` returns its first argument where
/// the second is NaN.
///
/// What the vector maximum of a CPU does with a NaN differs, so that NaNs are looked for apart.
#[inline(always)]
fn extreme<S: Simd>(
    simd: S,
    x: &[f32],
    start: f32,
    pick: impl Fn(S::f32s, S::f32s) -> S::f32s,
) -> Option<S::f32s> {
    let none = S::mask32s::splat(simd, false);
    let states: [_; 4] = fold(
        simd,
        x,
        start,
        (S::f32s::splat(simd, start), none),
        #[inline(always)]
        |(best, nan): (S::f32s, S::mask32s), x| (pick(best, x), nan | x.simd_ne(x)),
    );
    let (best, nan) = join(
        states,
        #[inline(always)]
        |(a, a_nan), (b, b_nan)| (pick(a, b), a_nan | b_nan),
    );
    (!nan.any_true()).then_some(best)
}

/// `b` where it is larger, else `a`, and so `a` where `b` is NaN.
#[inline(always)]
fn larger<S: Simd>(a: S::f32s, b: S::f32s) -> S::f32s {
    b.simd_gt(a).select(b, a)
}

/// Without the sign, the order of floats is that of their bits, and NaN comes above infinity.
#[inline(always)]
fn abs_max_lanes<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let states: [S::i32s; 8] = fold(
        simd,
        x,
        0.0,
        S::i32s::splat(simd, 0),
        #[inline(always)]
        |most: S::i32s, x: S::f32s| most.max(x.abs().bitcast::<S::i32s>()),
    );
    let most = join(states, S::i32s::max);
    f32::from_bits(most.reduce_max() as u32)
}

/// Elements per block of the search: small, as the block that holds the maximum is read a second time, and large
/// beside the 4 vectors that each block ends with.
const ARGMAX_BLOCK: usize = 1024;

/// The maximum of each block, then a look for it in the first block that has the largest.
#[inline(always)]
fn argmax_lanes<S: Simd>(simd: S, x: &[f32]) -> Option<usize> {
    let (mut best, mut best_block) = (f32::NEG_INFINITY, None);
    for (i, block) in x.chunks(ARGMAX_BLOCK).enumerate() {
        let states: [_; 4] = fold(
            simd,
            block,
            f32::NEG_INFINITY,
            S::f32s::splat(simd, best),
            #[inline(always)]
            |a, b| larger::<S>(a, b),
        );
        let most = join(
            states,
            #[inline(always)]
            |a, b| larger::<S>(a, b),
        );
        // No lane is NaN, since every state began as a number.
        if most.simd_gt(S::f32s::splat(simd, best)).any_true() {
            best = most.reduce_max();
            best_block = Some(i * ARGMAX_BLOCK);
        }
    }
    // Where nothing exceeds −∞, any element may be the first −∞, and all may be NaN.
    let (start, end) =
        best_block.map_or((0, x.len()), |start| (start, x.len().min(start + ARGMAX_BLOCK)));
    find(simd, &x[start..end], best).map(|i| start + i)
}

/// Index of the first element equal to `value`.
#[inline(always)]
fn find<S: Simd>(simd: S, x: &[f32], value: f32) -> Option<usize> {
    let lanes = S::f32s::LEN;
    for (i, chunk) in x.chunks(lanes).enumerate() {
        let vector = crate::lanes::load_partial(simd, chunk, f32::NAN);
        let equal = vector.simd_eq(S::f32s::splat(simd, value));
        if equal.any_true() {
            return Some(i * lanes + equal.to_bitmask().trailing_zeros() as usize);
        }
    }
    None
}
