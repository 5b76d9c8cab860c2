//! Logarithm of the sum of exponentials of a row: [`log_sum_exp`], and [`log_sum_exp_f64`] of any [`Real`].
//!
//! ```text
//! m = max x        log_sum_exp = m + ln Σ e^(x − m)
//! ```
//!
//! | row | log-sum-exp |
//! |---|---|
//! | `x[i] = −∞` (masked) | adds nothing |
//! | all masked, or empty | −∞ |
//! | a NaN | NaN |
//! | a +∞, no NaN | +∞ |
//!
//! Memory is read once, which is what counts at the size of a vocabulary. Pseudo-code, and where it departs from the
//! formula:
//!
//! ```text
//! m ← max of the first block, total ← 0
//! for each block:
//!     s, most ← Σ e^(x − m), max x           in one pass over the block
//!     if most − m > 8:                       1. m need not be the maximum: sums of e^8 are far from overflow, and
//!         total ← total · e^(m − most)          a larger m only moves the scale of the sum. Only a jump beyond
//!         m ← most, s ← Σ e^(x − m)             that costs a second pass, over a block that is still in the cache.
//!     total ← total + s                      2. the total is an f64, so that its error does not grow with the row.
//! m + ln total
//! ```

use fearless_simd::{Simd, prelude::*};
use half::{bf16, f16};

use crate::{Isa, exp::add_exp_lanes, isa::dispatch, lanes::join, pairs::fold_states, real::Real};

/// `ln Σ e^x`, rounded to an `f32`; −∞ for an empty slice.
///
/// Error below `2^-20` plus the rounding of the result.
///
/// # Examples
///
/// ```
/// let logits = [1000.0, 1000.0];
/// assert_eq!(squish_kernels::log_sum_exp(&logits), 1000.0 + std::f32::consts::LN_2);
/// ```
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> f32 {
    log_sum_exp_with(Isa::detect(), x)
}

/// `ln Σ e^x`; −∞ for an empty slice.
///
/// Error below `2^-20`, whatever the size of the result: `log_sum_exp_f64(x) − x[i]` is good to that.
///
/// # Examples
///
/// ```
/// use squish_kernels::log_sum_exp_f64;
///
/// let surprisal = log_sum_exp_f64(&[1e4_f32, 1e4, -1e4]) - 1e4;
/// assert!((surprisal - std::f64::consts::LN_2).abs() < 1e-6);
/// ```
#[must_use]
pub fn log_sum_exp_f64<T: Real>(x: &[T]) -> f64 {
    log_sum_exp_f64_with(Isa::detect(), x)
}

#[doc(hidden)]
#[must_use]
pub fn log_sum_exp_with(isa: Isa, x: &[f32]) -> f32 {
    log_sum_exp_f64_with(isa, x) as f32
}

#[doc(hidden)]
#[must_use]
pub fn log_sum_exp_f64_with<T: Real>(isa: Isa, x: &[T]) -> f64 {
    T::log_sum_exp(isa, x)
}

/// The definition of [`log_sum_exp`], in `f64`.
#[doc(hidden)]
#[must_use]
pub fn log_sum_exp_scalar(x: &[f32]) -> f64 {
    let m = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
    if x.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    if m.is_infinite() {
        return m;
    }
    m + x.iter().map(|&x| (f64::from(x) - m).exp()).sum::<f64>().ln()
}

pub(crate) mod sealed {
    use crate::Isa;

    /// The kernel, compiled once for each storage type.
    pub trait LogSumExp: Sized {
        fn log_sum_exp(isa: Isa, x: &[Self]) -> f64;
    }
}

macro_rules! log_sum_exp_of {
    ($($T:ty),*) => {$(
        impl sealed::LogSumExp for $T {
            fn log_sum_exp(isa: Isa, x: &[$T]) -> f64 {
                dispatch!(isa.token(), simd => log_sum_exp_lanes(simd, x))
            }
        }
    )*};
}

log_sum_exp_of!(f32, bf16, f16);

/// Elements per block: up to 4 KiB of `f32`, so that a block which is read twice is read from L1, and enough that its end costs little.
///
/// Each of a block's sums has [`ADDED`] elements on every level: the error of an `f32` sum grows with them.
const fn block_len(lanes: usize) -> usize {
    ADDED * SUMS * lanes
}

/// Elements of each lane of a sum.
const ADDED: usize = 16;

/// Vectors of sums.
const SUMS: usize = 4;

/// How far an element may lie above the reference before the reference moves. The exponential's relative error grows with
/// the distance.
const HEADROOM: f32 = 8.0;

#[inline(always)]
fn log_sum_exp_lanes<S: Simd, T: Real>(simd: S, x: &[T]) -> f64 {
    // −∞ cannot be subtracted; what follows masked elements moves the reference.
    let block_len = block_len(S::f32s::LEN);
    let first = largest(simd, &x[..x.len().min(block_len)]);
    let mut m = if first == f32::NEG_INFINITY { 0.0 } else { first };
    let mut sum = 0.0_f64;
    for block in x.chunks(block_len) {
        let (mut added, most) = sum_and_max(simd, m, block);
        // Below the reference only while all before was masked, and the reference stands for nothing.
        let is_first = sum == 0.0 && most > f32::NEG_INFINITY;
        if most - m > HEADROOM || is_first && most < m {
            if sum > 0.0 {
                sum *= (f64::from(m) - f64::from(most)).exp();
            }
            m = most;
            added = sum_and_max(simd, m, block).0;
        }
        sum += f64::from(added);
    }
    if sum.is_nan() {
        let is_nan = x.iter().any(|x| x.to_f32().is_nan());
        return if is_nan { f64::NAN } else { f64::INFINITY };
    }
    f64::from(m) + sum.ln()
}

#[inline(always)]
fn largest<S: Simd, T: Real>(simd: S, x: &[T]) -> f32 {
    let states: [_; 8] = fold_states(
        simd,
        x,
        f32::NEG_INFINITY,
        S::f32s::splat(simd, f32::NEG_INFINITY),
        #[inline(always)]
        |most, x| x.max(most),
    );
    join(states, S::f32s::max).reduce_max()
}

/// `Σ e^(x − m)` and the largest element; the sum is meaningless where an element exceeds `m` by more than the headroom.
#[inline(always)]
fn sum_and_max<S: Simd, T: Real>(simd: S, m: f32, x: &[T]) -> (f32, f32) {
    let m = S::f32s::splat(simd, m);
    let states: [_; SUMS] = fold_states(
        simd,
        x,
        f32::NEG_INFINITY,
        (S::f32s::splat(simd, 0.0), S::f32s::splat(simd, f32::NEG_INFINITY)),
        #[inline(always)]
        |(sum, most): (S::f32s, S::f32s), x| (add_exp_lanes(simd, sum, x - m), x.max(most)),
    );
    let (sum, most) = join(
        states,
        #[inline(always)]
        |(a, a_most), (b, b_most)| (a + b, a_most.max(b_most)),
    );
    (sum.reduce_sum(), most.reduce_max())
}
