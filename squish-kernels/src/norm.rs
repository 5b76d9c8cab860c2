//! Normalization of rows: [`rms_norm_into`], [`layer_norm_into`], and both with a fused residual add.
//!
//! ```text
//! RMS norm      n = x / √(mean(x²) + eps)                    y = n · w
//! layer norm    n = (x − mean x) / √(var x + eps)            y = n · w + b        biased variance
//! fused         h = x + residual, rounded to the storage type; residual ← h; y = norm(h)
//! ```
//!
//! (B. Zhang, R. Sennrich, arXiv 1910.07467; J. L. Ba et al., arXiv 1607.06450.) Statistics are `f32` whatever the storage
//! type, and eps stands inside the root. For `bf16` and `f16` models differ in where the RMS norm rounds:
//!
//! | [`RmsVariant`] | models | order |
//! |---|---|---|
//! | `Llama` | Llama, Mistral, Qwen, T5 | `round(round(n) · w)`: the product is one of the storage type |
//! | `Gemma` | Gemma 1 to 3 | `round(n · (1 + w))` |
//! | `GptOss` | gpt-oss, Gemma 3n | `round(n · w)` |
//!
//! A row's result depends on that row alone: sums run over 4 chains of pairs of vectors in an order that depends on the
//! row's length and the SIMD level, whatever the number of rows. Levels agree to the error of a sum in `f32`, which the
//! rounding to 16 bits hides but for values next to a tie.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};
use half::{bf16, f16};

use self::sealed::Scale;
use crate::{Isa, lanes::total, pairs, real::Real};

/// Where an RMS norm rounds, and what its weight is an offset from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RmsVariant {
    /// `round(round(n) · w)`.
    #[default]
    Llama,
    /// `round(n · (1 + w))`.
    Gemma,
    /// `round(n · w)`.
    GptOss,
}

/// RMS norm of each row of `x` `[n_rows, hidden_size]` with weight `w` `[hidden_size]`, into `out`, shaped as `x`.
///
/// # Panics
///
/// If `w` is empty, `x` is not a whole number of rows, or `out` differs from `x` in length.
///
/// # Examples
///
/// ```
/// use squish_kernels::{RmsVariant, rms_norm_into};
///
/// let mut y = [0.0; 2];
/// rms_norm_into(&[3.0, 4.0], &[1.0, 2.0], 0.0, RmsVariant::Llama, &mut y);
/// let rms = 12.5_f32.sqrt();
/// assert!((y[0] - 3.0 / rms).abs() < 1e-6 && (y[1] - 8.0 / rms).abs() < 1e-6);
/// ```
pub fn rms_norm_into<T: Real>(x: &[T], w: &[T], eps: f32, variant: RmsVariant, out: &mut [T]) {
    rms_norm_into_with(Isa::detect(), x, w, eps, variant, out);
}

/// [`rms_norm_into`], over its input.
///
/// # Panics
///
/// If `w` is empty or `x` is not a whole number of rows.
pub fn rms_norm_in_place<T: Real>(x: &mut [T], w: &[T], eps: f32, variant: RmsVariant) {
    rms_norm_in_place_with(Isa::detect(), x, w, eps, variant);
}

/// Adds `x` to `residual`, both `[n_rows, hidden_size]`, and writes the RMS norm of the sum over `x`.
///
/// The sum is rounded to the storage type before it is normalized.
///
/// # Panics
///
/// If `w` is empty, `x` is not a whole number of rows, or `residual` differs from `x` in length.
///
/// # Examples
///
/// ```
/// use squish_kernels::{RmsVariant, add_rms_norm_in_place};
///
/// let (mut x, mut residual) = ([1.0, 4.0], [2.0, 0.0]);
/// add_rms_norm_in_place(&mut x, &mut residual, &[1.0, 1.0], 0.0, RmsVariant::Llama);
/// assert_eq!(residual, [3.0, 4.0]);
/// assert!((x[0] - 3.0 / 12.5_f32.sqrt()).abs() < 1e-6);
/// ```
pub fn add_rms_norm_in_place<T: Real>(
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
) {
    add_rms_norm_in_place_with(Isa::detect(), x, residual, w, eps, variant);
}

/// [`add_rms_norm_in_place`] into `out`, which leaves `x` as it is.
///
/// # Panics
///
/// If `w` is empty, `x` is not a whole number of rows, or `residual` or `out` differ from `x` in length.
pub fn add_rms_norm_into<T: Real>(
    x: &[T],
    residual: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
    out: &mut [T],
) {
    add_rms_norm_into_with(Isa::detect(), x, residual, w, eps, variant, out);
}

/// Layer norm of each row of `x` `[n_rows, hidden_size]` with weight `w` and bias `b` `[hidden_size]`, into `out`, shaped
/// as `x`. Rounded once.
///
/// # Panics
///
/// If `w` is empty, `b` differs from it in length, `x` is not a whole number of rows, or `out` differs from `x` in length.
///
/// # Examples
///
/// ```
/// let mut y = [0.0; 2];
/// squish_kernels::layer_norm_into(&[1.0, 3.0], &[1.0, 1.0], &[0.0, 10.0], 0.0, &mut y);
/// assert_eq!(y, [-1.0, 11.0]);
/// ```
pub fn layer_norm_into<T: Real>(x: &[T], w: &[T], b: &[T], eps: f32, out: &mut [T]) {
    layer_norm_into_with(Isa::detect(), x, w, b, eps, out);
}

/// Adds `x` to `residual`, both `[n_rows, hidden_size]`, and writes the layer norm of the sum over `x`.
///
/// The sum is rounded to the storage type before it is normalized.
///
/// # Panics
///
/// If `w` is empty, `b` differs from it in length, `x` is not a whole number of rows, or `residual` differs from `x` in
/// length.
pub fn add_layer_norm_in_place<T: Real>(
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    b: &[T],
    eps: f32,
) {
    add_layer_norm_in_place_with(Isa::detect(), x, residual, w, b, eps);
}

#[doc(hidden)]
pub fn rms_norm_into_with<T: Real>(
    isa: Isa,
    x: &[T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
    out: &mut [T],
) {
    assert_rows("rms_norm", x.len(), w.len(), &[("out", out.len())]);
    T::rms_rows(isa, x, Scale { w, eps, variant }, out);
}

#[doc(hidden)]
pub fn rms_norm_in_place_with<T: Real>(
    isa: Isa,
    x: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
) {
    assert_rows("rms_norm", x.len(), w.len(), &[]);
    T::rms_rows_in_place(isa, x, Scale { w, eps, variant });
}

#[doc(hidden)]
pub fn add_rms_norm_in_place_with<T: Real>(
    isa: Isa,
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
) {
    assert_rows("add_rms_norm", x.len(), w.len(), &[("residual", residual.len())]);
    T::add_rms_rows_in_place(isa, x, residual, Scale { w, eps, variant });
}

#[doc(hidden)]
pub fn add_rms_norm_into_with<T: Real>(
    isa: Isa,
    x: &[T],
    residual: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
    out: &mut [T],
) {
    let others = [("residual", residual.len()), ("out", out.len())];
    assert_rows("add_rms_norm", x.len(), w.len(), &others);
    T::add_rms_rows(isa, x, residual, Scale { w, eps, variant }, out);
}

#[doc(hidden)]
pub fn layer_norm_into_with<T: Real>(isa: Isa, x: &[T], w: &[T], b: &[T], eps: f32, out: &mut [T]) {
    assert_rows("layer_norm", x.len(), w.len(), &[("out", out.len())]);
    assert_eq!(b.len(), w.len(), "layer_norm: `b` and `w` differ in length");
    T::layer_rows(isa, x, w, b, eps, out);
}

#[doc(hidden)]
pub fn add_layer_norm_in_place_with<T: Real>(
    isa: Isa,
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    b: &[T],
    eps: f32,
) {
    assert_rows("add_layer_norm", x.len(), w.len(), &[("residual", residual.len())]);
    assert_eq!(b.len(), w.len(), "add_layer_norm: `b` and `w` differ in length");
    T::add_layer_rows_in_place(isa, x, residual, w, b, eps);
}

fn assert_rows(name: &str, len: usize, width: usize, others: &[(&str, usize)]) {
    assert!(width > 0, "{name}: `w` is empty");
    assert!(
        len.is_multiple_of(width),
        "{name}: {len} elements are no whole number of rows of {width}"
    );
    for (other, other_len) in others {
        assert!(*other_len == len, "{name}: `{other}` has {other_len} elements, `x` has {len}");
    }
}

/// The definition of an RMS norm's row.
#[doc(hidden)]
#[must_use]
pub fn rms_norm_scalar<T: Real>(x: &[T], w: &[T], eps: f32, variant: RmsVariant) -> Vec<T> {
    let squares: f64 = x.iter().map(|x| f64::from(x.to_f32()).powi(2)).sum();
    let inverse = 1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt();
    let normed = |x: &T| (f64::from(x.to_f32()) * inverse) as f32;
    let scale = |(x, w): (&T, &T)| match variant {
        RmsVariant::Llama => T::from_f32(T::from_f32(normed(x)).to_f32() * w.to_f32()),
        RmsVariant::Gemma => T::from_f32(normed(x) * (1.0 + w.to_f32())),
        RmsVariant::GptOss => T::from_f32(normed(x) * w.to_f32()),
    };
    x.iter().zip(w).map(scale).collect()
}

/// The definition of a layer norm's row, in `f64`.
#[doc(hidden)]
#[must_use]
pub fn layer_norm_scalar<T: Real>(x: &[T], w: &[T], b: &[T], eps: f32) -> Vec<f64> {
    let wide = |x: &T| f64::from(x.to_f32());
    let n = x.len() as f64;
    let mean = x.iter().map(wide).sum::<f64>() / n;
    let variance = x.iter().map(|x| (wide(x) - mean).powi(2)).sum::<f64>() / n;
    let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
    x.iter()
        .zip(w)
        .zip(b)
        .map(|((x, w), b)| (wide(x) - mean) * inverse * wide(w) + wide(b))
        .collect()
}

pub(crate) mod sealed {
    use super::{Isa, RmsVariant};

    /// What an RMS norm does to a row, beside the row.
    #[derive(Clone, Copy, Debug)]
    pub struct Scale<'a, T> {
        pub(super) w: &'a [T],
        pub(super) eps: f32,
        pub(super) variant: RmsVariant,
    }

    /// The loops over rows, compiled once for each storage type: as generic functions they would be compiled again in
    /// every crate that calls them, for every level.
    pub trait Rows: Sized {
        fn rms_rows(isa: Isa, x: &[Self], scale: Scale<'_, Self>, out: &mut [Self]);
        fn rms_rows_in_place(isa: Isa, x: &mut [Self], scale: Scale<'_, Self>);
        fn add_rms_rows(
            isa: Isa,
            x: &[Self],
            residual: &mut [Self],
            scale: Scale<'_, Self>,
            out: &mut [Self],
        );
        fn add_rms_rows_in_place(
            isa: Isa,
            x: &mut [Self],
            residual: &mut [Self],
            scale: Scale<'_, Self>,
        );
        fn layer_rows(isa: Isa, x: &[Self], w: &[Self], b: &[Self], eps: f32, out: &mut [Self]);
        fn add_layer_rows_in_place(
            isa: Isa,
            x: &mut [Self],
            residual: &mut [Self],
            w: &[Self],
            b: &[Self],
            eps: f32,
        );
    }
}

macro_rules! rows_of {
    ($($T:ty),*) => {$(
        impl sealed::Rows for $T {
            fn rms_rows(isa: Isa, x: &[$T], scale: Scale<'_, $T>, out: &mut [$T]) {
                dispatch!(isa.token(), simd => rms_rows(simd, x, scale, out));
            }

            fn rms_rows_in_place(isa: Isa, x: &mut [$T], scale: Scale<'_, $T>) {
                dispatch!(isa.token(), simd => rms_rows_in_place(simd, x, scale));
            }

            fn add_rms_rows(
                isa: Isa,
                x: &[$T],
                residual: &mut [$T],
                scale: Scale<'_, $T>,
                out: &mut [$T],
            ) {
                dispatch!(isa.token(), simd => add_rms_rows(simd, x, residual, scale, out));
            }

            fn add_rms_rows_in_place(
                isa: Isa,
                x: &mut [$T],
                residual: &mut [$T],
                scale: Scale<'_, $T>,
            ) {
                dispatch!(isa.token(), simd => add_rms_rows_in_place(simd, x, residual, scale));
            }

            fn layer_rows(isa: Isa, x: &[$T], w: &[$T], b: &[$T], eps: f32, out: &mut [$T]) {
                dispatch!(isa.token(), simd => layer_rows(simd, x, w, b, eps, out));
            }

            fn add_layer_rows_in_place(
                isa: Isa,
                x: &mut [$T],
                residual: &mut [$T],
                w: &[$T],
                b: &[$T],
                eps: f32,
            ) {
                dispatch!(isa.token(), simd => add_layer_rows_in_place(simd, x, residual, w, b, eps));
            }
        }
    )*};
}

rows_of!(f32, bf16, f16);

/// While a row of `f32` is scaled, the squares of the next are summed: the sum's own chain and its root take as long as a
/// row of 256 takes to scale. Rows of 16 bits spend their time converting and gain nothing.
#[inline(always)]
fn rms_rows<S: Simd, T: Real>(simd: S, x: &[T], scale: Scale<'_, T>, out: &mut [T]) {
    let width = scale.w.len();
    let mut rows = x.chunks_exact(width);
    let Some(mut row) = rows.next() else { return };
    let mut squares = sum_of_squares(simd, row, 0.0);
    for out in out.chunks_exact_mut(width) {
        let inverse = inverse_rms(squares, width, scale.eps);
        let Some(next) = rows.next() else {
            return scale_row(simd, row, scale, inverse, out);
        };
        if size_of::<T>() == size_of::<f32>() {
            squares = scale_row_and_square_next(simd, row, scale, inverse, out, next);
        } else {
            scale_row(simd, row, scale, inverse, out);
            squares = sum_of_squares(simd, next, 0.0);
        }
        row = next;
    }
}

#[inline(always)]
fn rms_rows_in_place<S: Simd, T: Real>(simd: S, x: &mut [T], scale: Scale<'_, T>) {
    for x in x.chunks_exact_mut(scale.w.len()) {
        let inverse = inverse_rms(sum_of_squares(simd, x, 0.0), x.len(), scale.eps);
        scale_row_in_place(simd, x, scale, inverse);
    }
}

#[inline(always)]
fn add_rms_rows<S: Simd, T: Real>(
    simd: S,
    x: &[T],
    residual: &mut [T],
    scale: Scale<'_, T>,
    out: &mut [T],
) {
    let width = scale.w.len();
    let residuals = residual.chunks_exact_mut(width);
    for ((x, residual), out) in
        x.chunks_exact(width).zip(residuals).zip(out.chunks_exact_mut(width))
    {
        let inverse = inverse_rms(add_row(simd, x, residual), width, scale.eps);
        scale_row(simd, residual, scale, inverse, out);
    }
}

#[inline(always)]
fn add_rms_rows_in_place<S: Simd, T: Real>(
    simd: S,
    x: &mut [T],
    residual: &mut [T],
    scale: Scale<'_, T>,
) {
    let width = scale.w.len();
    for (x, residual) in x.chunks_exact_mut(width).zip(residual.chunks_exact_mut(width)) {
        let inverse = inverse_rms(add_row(simd, x, residual), width, scale.eps);
        scale_row(simd, residual, scale, inverse, x);
    }
}

#[inline(always)]
fn layer_rows<S: Simd, T: Real>(simd: S, x: &[T], w: &[T], b: &[T], eps: f32, out: &mut [T]) {
    for (x, out) in x.chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len())) {
        layer_row(simd, x, w, b, eps, out);
    }
}

#[inline(always)]
fn add_layer_rows_in_place<S: Simd, T: Real>(
    simd: S,
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    b: &[T],
    eps: f32,
) {
    for (x, residual) in x.chunks_exact_mut(w.len()).zip(residual.chunks_exact_mut(w.len())) {
        add_row(simd, x, residual);
        layer_row(simd, residual, w, b, eps, x);
    }
}

/// Calls one of the loops below, which the six functions above share.
///
/// For `f32` it becomes part of the caller, as a call costs a tenth of a row of 256. Conversions from and to 16 bits make the
/// loops several times as long and as slow: there each is a function of its own.
#[inline(always)]
fn enter<S: Simd, T, R>(simd: S, body: impl FnOnce() -> R) -> R {
    if size_of::<T>() == size_of::<f32>() { body() } else { outlined(simd, body) }
}

#[inline(never)]
fn outlined<S: Simd, R>(simd: S, body: impl FnOnce() -> R) -> R {
    simd.vectorize(body)
}

/// What [`scale_row`] does to a vector of a row: `n · (w + offset)`, with `n` rounded where the variant says so.
#[inline(always)]
fn scaled<S: Simd, T: Real, const ROUND_FIRST: bool>(
    simd: S,
    normed: S::f32s,
    w: S::f32s,
    offset: S::f32s,
) -> S::f32s {
    if ROUND_FIRST { T::round(simd, normed) * w } else { normed * (w + offset) }
}

/// Whether the normed row is rounded before it is scaled. For `f32` that is no rounding.
fn rounds_first<T>(variant: RmsVariant) -> bool {
    variant == RmsVariant::Llama && size_of::<T>() < size_of::<f32>()
}

fn offset(variant: RmsVariant) -> f32 {
    if variant == RmsVariant::Gemma { 1.0 } else { 0.0 }
}

/// The normed and scaled row, from the row and its inverse RMS.
#[inline(always)]
fn scale_row<S: Simd, T: Real>(simd: S, x: &[T], scale: Scale<'_, T>, inverse: f32, out: &mut [T]) {
    enter::<S, T, _>(
        simd,
        #[inline(always)]
        || {
            let inverse = S::f32s::splat(simd, inverse);
            let offset = S::f32s::splat(simd, offset(scale.variant));
            if rounds_first::<T>(scale.variant) {
                pairs::map_into(
                    simd,
                    x,
                    scale.w,
                    out,
                    #[inline(always)]
                    |x, w| scaled::<S, T, true>(simd, x * inverse, w, offset),
                );
            } else {
                pairs::map_into(
                    simd,
                    x,
                    scale.w,
                    out,
                    #[inline(always)]
                    |x, w| scaled::<S, T, false>(simd, x * inverse, w, offset),
                );
            }
        },
    );
}

#[inline(always)]
fn scale_row_in_place<S: Simd, T: Real>(simd: S, x: &mut [T], scale: Scale<'_, T>, inverse: f32) {
    enter::<S, T, _>(
        simd,
        #[inline(always)]
        || {
            let inverse = S::f32s::splat(simd, inverse);
            let offset = S::f32s::splat(simd, offset(scale.variant));
            if rounds_first::<T>(scale.variant) {
                pairs::map_in_place(
                    simd,
                    x,
                    scale.w,
                    #[inline(always)]
                    |x, w| scaled::<S, T, true>(simd, x * inverse, w, offset),
                );
            } else {
                pairs::map_in_place(
                    simd,
                    x,
                    scale.w,
                    #[inline(always)]
                    |x, w| scaled::<S, T, false>(simd, x * inverse, w, offset),
                );
            }
        },
    );
}

/// [`scale_row`] without a first rounding, and the sum of squares of another row of the same length.
#[inline(always)]
fn scale_row_and_square_next<S: Simd, T: Real>(
    simd: S,
    x: &[T],
    scale: Scale<'_, T>,
    inverse: f32,
    out: &mut [T],
    next: &[T],
) -> f32 {
    enter::<S, T, _>(
        simd,
        #[inline(always)]
        || {
            let inverse = S::f32s::splat(simd, inverse);
            let offset = S::f32s::splat(simd, offset(scale.variant));
            let sums = pairs::map_into_and_fold(
                simd,
                (x, scale.w, out),
                next,
                #[inline(always)]
                |x, w| scaled::<S, T, false>(simd, x * inverse, w, offset),
                #[inline(always)]
                |sum, x| x.mul_add(x, sum),
            );
            total::<S, { pairs::STATES }>(sums)
        },
    )
}

fn inverse_rms(squares: f32, len: usize, eps: f32) -> f32 {
    1.0 / (squares / len as f32 + eps).sqrt()
}

/// `Σ (x − center)²`.
#[inline(always)]
fn sum_of_squares<S: Simd, T: Real>(simd: S, x: &[T], center: f32) -> f32 {
    enter::<S, T, _>(
        simd,
        #[inline(always)]
        || {
            let centers = S::f32s::splat(simd, center);
            let sums = pairs::fold(
                simd,
                x,
                center,
                #[inline(always)]
                |sum, x| {
                    let d = x - centers;
                    d.mul_add(d, sum)
                },
            );
            total::<S, { pairs::STATES }>(sums)
        },
    )
}

/// `residual ← x + residual`, and the sum of its squares.
#[inline(always)]
fn add_row<S: Simd, T: Real>(simd: S, x: &[T], residual: &mut [T]) -> f32 {
    enter::<S, T, _>(
        simd,
        #[inline(always)]
        || {
            let sums = pairs::update(
                simd,
                x,
                residual,
                #[inline(always)]
                |sum, x, residual| {
                    let h = T::round(simd, x + residual);
                    *sum = h.mul_add(h, *sum);
                    h
                },
            );
            total::<S, { pairs::STATES }>(sums)
        },
    )
}

/// Three passes over a row, of which only the first can miss L1: the mean, the squares of what differs from it, the result.
#[inline(always)]
fn layer_row<S: Simd, T: Real>(simd: S, x: &[T], w: &[T], b: &[T], eps: f32, out: &mut [T]) {
    let mean = sum(simd, x) / x.len() as f32;
    let inverse = inverse_rms(sum_of_squares(simd, x, mean), x.len(), eps);
    enter::<S, T, _>(
        simd,
        #[inline(always)]
        || {
            let (mean, inverse) = (S::f32s::splat(simd, mean), S::f32s::splat(simd, inverse));
            pairs::map2_into(
                simd,
                x,
                w,
                b,
                out,
                #[inline(always)]
                |x, w, b| ((x - mean) * inverse).mul_add(w, b),
            );
        },
    );
}

#[inline(always)]
fn sum<S: Simd, T: Real>(simd: S, x: &[T]) -> f32 {
    enter::<S, T, _>(
        simd,
        #[inline(always)]
        || {
            let sums = pairs::fold(
                simd,
                x,
                0.0,
                #[inline(always)]
                |sum, x| sum + x,
            );
            total::<S, { pairs::STATES }>(sums)
        },
    )
}
