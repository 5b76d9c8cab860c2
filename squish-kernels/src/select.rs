//! The elements of a row that are far enough from zero: [`select_into`], [`zero_below_in_place`].
//!
//! An element is *active* if `|x| ≥ threshold`, or if it is NaN. Zeros are never active, whatever the threshold, since leaving them out of a
//! product changes nothing.

use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    isa::dispatch,
    lanes::{load_partial, store_partial},
};

/// Writes the indices of the active elements of `x`, which ascend, and their values to the front of `indices` and `values`, and returns how many
/// there are. What lies behind them is overwritten.
///
/// A threshold that is zero, negative or NaN leaves out zeros alone.
///
/// # Panics
///
/// If `indices` or `values` is not as long as `x`, or `x` has more than 2^32 elements.
///
/// # Examples
///
/// ```
/// use squish_kernels::select_into;
///
/// let (mut indices, mut values) = ([0; 4], [0.0; 4]);
/// let n = select_into(&[0.5, -2.0, 0.0, 1.0], 1.0, &mut indices, &mut values);
/// assert_eq!((&indices[..n], &values[..n]), (&[1, 3][..], &[-2.0, 1.0][..]));
/// ```
pub fn select_into(x: &[f32], threshold: f32, indices: &mut [u32], values: &mut [f32]) -> usize {
    select_into_with(Isa::detect(), x, threshold, indices, values)
}

/// Makes the elements of `x` that are not active +0, and returns how many are active.
///
/// # Examples
///
/// ```
/// let mut x = [0.5, -2.0, f32::NAN, 1.0];
/// assert_eq!(squish_kernels::zero_below_in_place(&mut x, 1.0), 3);
/// assert_eq!(x[..2], [0.0, -2.0]);
/// ```
pub fn zero_below_in_place(x: &mut [f32], threshold: f32) -> usize {
    zero_below_in_place_with(Isa::detect(), x, threshold)
}

#[doc(hidden)]
pub fn select_into_with(
    isa: Isa,
    x: &[f32],
    threshold: f32,
    indices: &mut [u32],
    values: &mut [f32],
) -> usize {
    assert_eq!(indices.len(), x.len(), "select: `indices` and `x` differ in length");
    assert_eq!(values.len(), x.len(), "select: `values` and `x` differ in length");
    assert!(x.len() as u64 <= 1 << 32, "select: `x` has more than 2^32 elements");
    let threshold = least(threshold);
    dispatch!(isa.token(), simd => select_lanes(simd, x, threshold, indices, values))
}

#[doc(hidden)]
pub fn zero_below_in_place_with(isa: Isa, x: &mut [f32], threshold: f32) -> usize {
    let threshold = least(threshold);
    dispatch!(isa.token(), simd => zero_lanes(simd, x, threshold))
}

/// The definition of an active element.
#[doc(hidden)]
#[must_use]
pub fn is_active_scalar(x: f32, threshold: f32) -> bool {
    x.is_nan() || x != 0.0 && (threshold.is_nan() || x.abs() >= threshold)
}

/// The least magnitude that is active: no zero.
fn least(threshold: f32) -> f32 {
    threshold.max(f32::from_bits(1))
}

#[inline(always)]
fn select_lanes<S: Simd>(
    simd: S,
    x: &[f32],
    threshold: f32,
    indices: &mut [u32],
    values: &mut [f32],
) -> usize {
    let lanes = S::f32s::LEN;
    let threshold = S::f32s::splat(simd, threshold);
    let mut ids = S::u32s::from_fn(
        simd,
        #[inline(always)]
        |lane| lane as u32,
    );
    let mut n = 0;
    let mut vectors = x.chunks_exact(lanes);
    for x in &mut vectors {
        let x = S::f32s::from_slice(simd, x);
        let active = !x.abs().simd_lt(threshold);
        // Whole vectors fit, since no more elements are active than were looked at.
        x.compress(active).store_slice(&mut values[n..n + lanes]);
        ids.compress(active).store_slice(&mut indices[n..n + lanes]);
        n += active.to_bitmask().count_ones() as usize;
        ids += lanes as u32;
    }
    let rest = vectors.remainder();
    // Zeros behind the end are not active.
    let x = load_partial(simd, rest, 0.0);
    let active = !x.abs().simd_lt(threshold);
    let n_active = active.to_bitmask().count_ones() as usize;
    store_partial::<S>(x.compress(active), &mut values[n..n + n_active]);
    let of_rest = ids.compress(active);
    indices[n..n + n_active].copy_from_slice(&of_rest.as_slice()[..n_active]);
    n + n_active
}

#[inline(always)]
fn zero_lanes<S: Simd>(simd: S, x: &mut [f32], threshold: f32) -> usize {
    let lanes = S::f32s::LEN;
    let threshold = S::f32s::splat(simd, threshold);
    let mut n = 0;
    let mut vectors = x.chunks_exact_mut(lanes);
    for x in &mut vectors {
        let (kept, n_active) = active_alone::<S>(S::f32s::from_slice(simd, x), threshold);
        kept.store_slice(x);
        n += n_active;
    }
    let rest = vectors.into_remainder();
    let (kept, n_active) = active_alone::<S>(load_partial(simd, rest, 0.0), threshold);
    store_partial::<S>(kept, rest);
    n + n_active
}

/// The active elements, with +0 in the place of the others, and how many there are.
///
/// By a product of bits: of a choice between the two the compiler makes a store under a mask, which takes 18 cycles on Zen 3.
#[inline(always)]
fn active_alone<S: Simd>(x: S::f32s, threshold: S::f32s) -> (S::f32s, usize) {
    let simd = x.token();
    let active = !x.abs().simd_lt(threshold);
    let bits = active.select(S::u32s::splat(simd, u32::MAX), S::u32s::splat(simd, 0));
    let kept = (x.bitcast::<S::u32s>() & bits).bitcast();
    (kept, active.to_bitmask().count_ones() as usize)
}
