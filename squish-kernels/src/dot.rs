//! Products of vectors: [`dot`], [`axpy`], [`scale_add`].
//!
//! | function | result |
//! |---|---|
//! | [`dot`] | `Σ a[i] · b[i]` |
//! | [`axpy`] | `y[i] ← a · x[i] + y[i]` |
//! | [`scale_add`] | `y[i] ← a · x[i] + b · y[i]` |
//!
//! Levels with a fused multiply-add (`avx2`, `avx512`, `neon`) round once per step, the others twice. NaN and
//! infinities follow IEEE 754.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    lanes::{fold2, load_partial, store_partial, total},
};

/// Sum of the products of `a` and `b`, accumulated in 8 chains of lanes; 0 for empty slices.
///
/// The result differs from the exact sum by at most `(len + 1) * EPSILON / 2 * sum(|a * b|)`, where no product underflows.
///
/// # Panics
///
/// If the lengths differ.
///
/// # Examples
///
/// ```
/// assert_eq!(squish_kernels::dot(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 32.0);
/// ```
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_with(Isa::detect(), a, b)
}

/// `a * x + y`, into `y`.
///
/// # Panics
///
/// If the lengths differ.
///
/// # Examples
///
/// ```
/// let mut y = [1.0, 2.0];
/// squish_kernels::axpy(2.0, &[10.0, 20.0], &mut y);
/// assert_eq!(y, [21.0, 42.0]);
/// ```
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    axpy_with(Isa::detect(), a, x, y);
}

/// `a * x + b * y`, into `y`; `b * y` is rounded first.
///
/// # Panics
///
/// If the lengths differ.
///
/// # Examples
///
/// ```
/// let mut y = [1.0, 2.0];
/// squish_kernels::scale_add(2.0, &[10.0, 20.0], 0.5, &mut y);
/// assert_eq!(y, [20.5, 41.0]);
/// ```
pub fn scale_add(a: f32, x: &[f32], b: f32, y: &mut [f32]) {
    scale_add_with(Isa::detect(), a, x, b, y);
}

#[doc(hidden)]
#[must_use]
pub fn dot_with(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot: lengths differ");
    dispatch!(isa.token(), simd => dot_lanes(simd, a, b))
}

#[doc(hidden)]
pub fn axpy_with(isa: Isa, a: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "axpy: lengths differ");
    dispatch!(isa.token(), simd => axpy_lanes(simd, a, x, y));
}

#[doc(hidden)]
pub fn scale_add_with(isa: Isa, a: f32, x: &[f32], b: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "scale_add: lengths differ");
    dispatch!(isa.token(), simd => scale_add_lanes(simd, a, x, b, y));
}

/// The definition of [`dot`].
#[doc(hidden)]
#[must_use]
pub fn dot_scalar(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Two units with a latency of four cycles take 8 chains to stay busy.
#[inline(always)]
fn dot_lanes<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let sums: [_; 8] = fold2(
        simd,
        a,
        b,
        0.0,
        S::f32s::splat(simd, 0.0),
        #[inline(always)]
        |sum, a, b| a.mul_add(b, sum),
    );
    total::<S, 8>(sums)
}

#[inline(always)]
fn axpy_lanes<S: Simd>(simd: S, a: f32, x: &[f32], y: &mut [f32]) {
    let a = S::f32s::splat(simd, a);
    update(
        simd,
        x,
        y,
        #[inline(always)]
        |x: S::f32s, y| a.mul_add(x, y),
    );
}

#[inline(always)]
fn scale_add_lanes<S: Simd>(simd: S, a: f32, x: &[f32], b: f32, y: &mut [f32]) {
    let (a, b) = (S::f32s::splat(simd, a), S::f32s::splat(simd, b));
    update(
        simd,
        x,
        y,
        #[inline(always)]
        |x: S::f32s, y| a.mul_add(x, b * y),
    );
}

/// `f(x, y)`, into `y`. Four vectors per step, which spreads the cost of the loop.
#[inline(always)]
fn update<S: Simd>(simd: S, x: &[f32], y: &mut [f32], f: impl Fn(S::f32s, S::f32s) -> S::f32s) {
    let lanes = S::f32s::LEN;
    let (mut x_blocks, mut y_blocks) = (x.chunks_exact(4 * lanes), y.chunks_exact_mut(4 * lanes));
    for (x, y) in (&mut x_blocks).zip(&mut y_blocks) {
        for i in 0..4 {
            let at = i * lanes..(i + 1) * lanes;
            update_vector(simd, &x[at.clone()], &mut y[at], &f);
        }
    }
    let mut x_vectors = x_blocks.remainder().chunks_exact(lanes);
    let mut y_vectors = y_blocks.into_remainder().chunks_exact_mut(lanes);
    for (x, y) in (&mut x_vectors).zip(&mut y_vectors) {
        update_vector(simd, x, y, &f);
    }
    let (x, y) = (x_vectors.remainder(), y_vectors.into_remainder());
    if !x.is_empty() {
        let result = f(load_partial(simd, x, 0.0), load_partial(simd, y, 0.0));
        store_partial::<S>(result, y);
    }
}

#[inline(always)]
fn update_vector<S: Simd>(
    simd: S,
    x: &[f32],
    y: &mut [f32],
    f: &impl Fn(S::f32s, S::f32s) -> S::f32s,
) {
    f(S::f32s::from_slice(simd, x), S::f32s::from_slice(simd, y)).store_slice(y);
}
