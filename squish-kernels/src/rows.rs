//! The loops behind [`crate::norm`]: over rows, and over the vectors of a row.

use fearless_simd::{Simd, prelude::*};
use half::{bf16, f16};

use self::sealed::Scale;
use crate::{
    Isa,
    isa::{dispatch, outlined},
    lanes::total,
    norm::RmsVariant,
    pairs,
    real::Real,
};

pub(crate) mod sealed {
    use crate::{Isa, norm::RmsVariant};

    /// What an RMS norm does to a row, beside the row.
    #[derive(Clone, Copy, Debug)]
    pub struct Scale<'a, T> {
        pub(crate) w: &'a [T],
        pub(crate) eps: f32,
        pub(crate) variant: RmsVariant,
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
