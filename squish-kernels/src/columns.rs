//! Statistics of the columns of a matrix whose rows come one after the other: what calibration keeps of activations.
//!
//! ```text
//! range      min[c], max[c]       over the finite elements of column c; a zero of either sign is +0
//!            n_zero[c]            how many are zero
//!            n_non_finite[c]      how many are NaN or infinite
//! activity   n_active[c]          how many have |x| ≥ threshold, or are NaN
//! ```
//!
//! Lanes are columns, so that the results of all levels are the same bits, and no order of rows matters. Four rows are
//! taken together: the counters of many columns do not fit in registers, and are then loaded and stored once for four
//! vectors of the matrix.

use bytemuck::cast_slice;
use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    isa::dispatch,
    lanes::{load_partial, store_partial},
    prefetch,
};

/// What is known of each column, all slices being of one length, the number of columns.
///
/// A column of which nothing is known yet has the minimum +∞, the maximum −∞ and no counts.
#[derive(Debug)]
pub struct ColumnRange<'a> {
    /// Least finite element.
    pub min: &'a mut [f32],
    /// Greatest finite element.
    pub max: &'a mut [f32],
    /// Number of zeros.
    pub n_zero: &'a mut [u32],
    /// Number of elements that are NaN or infinite.
    pub n_non_finite: &'a mut [u32],
}

/// Adds `rows`, each of `[columns]`, to what is known of the columns. Counts wrap around.
///
/// # Panics
///
/// If a row or a slice of `range` does not have as many elements as the others.
///
/// # Examples
///
/// ```
/// use squish_kernels::columns::{ColumnRange, column_range};
///
/// let (mut min, mut max) = ([f32::INFINITY; 2], [f32::NEG_INFINITY; 2]);
/// let (mut n_zero, mut n_non_finite) = ([0; 2], [0; 2]);
/// let mut range = ColumnRange {
///     min: &mut min,
///     max: &mut max,
///     n_zero: &mut n_zero,
///     n_non_finite: &mut n_non_finite,
/// };
/// column_range(&[&[1.0, -2.0], &[-0.0, f32::NAN]], &mut range);
/// assert_eq!((min, max, n_zero, n_non_finite), ([0.0, -2.0], [1.0, -2.0], [1, 0], [0, 1]));
/// ```
pub fn column_range(rows: &[&[f32]], range: &mut ColumnRange<'_>) {
    column_range_with(Isa::detect(), rows, range);
}

/// Adds to `n_active`, `[columns]`, how many elements of each column of `rows` have at least the magnitude
/// `threshold`, or are NaN. Counts wrap around.
///
/// # Panics
///
/// If a row does not have as many elements as `n_active`.
pub fn count_active(rows: &[&[f32]], threshold: f32, n_active: &mut [u32]) {
    count_active_with(Isa::detect(), rows, threshold, n_active);
}

#[doc(hidden)]
pub fn column_range_with(isa: Isa, rows: &[&[f32]], range: &mut ColumnRange<'_>) {
    let n = range.min.len();
    assert!(
        range.max.len() == n && range.n_zero.len() == n && range.n_non_finite.len() == n,
        "columns: the slices of `range` differ in length"
    );
    check_rows(rows, n);
    dispatch!(isa.token(), simd => {
        let (fours, rest) = rows.as_chunks::<4>();
        for (i, rows) in fours.iter().enumerate() {
            range_of(simd, *rows, *fours.get(i + 1).unwrap_or(rows), range);
        }
        for row in rest {
            range_of(simd, [*row], [*row], range);
        }
    });
}

#[doc(hidden)]
pub fn count_active_with(isa: Isa, rows: &[&[f32]], threshold: f32, n_active: &mut [u32]) {
    check_rows(rows, n_active.len());
    dispatch!(isa.token(), simd => {
        let (eights, rest) = rows.as_chunks::<8>();
        for rows in eights {
            active_of::<_, 8>(simd, *rows, threshold, n_active);
        }
        for row in rest {
            active_of::<_, 1>(simd, [*row], threshold, n_active);
        }
    });
}

fn check_rows(rows: &[&[f32]], n: usize) {
    assert!(rows.iter().all(|row| row.len() == n), "columns: a row has not one element per column");
}

/// The state of some columns in registers.
#[derive(Clone, Copy)]
struct State<S: Simd> {
    min: S::f32s,
    max: S::f32s,
    n_zero: S::u32s,
    n_non_finite: S::u32s,
}

impl<S: Simd> State<S> {
    #[inline(always)]
    fn add(&mut self, simd: S, x: S::f32s) {
        let splat = |x: f32| S::f32s::splat(simd, x);
        let (zero, one) = (S::u32s::splat(simd, 0), S::u32s::splat(simd, 1));
        // The sum with +0 is +0 for −0, which a minimum may or may not take for the lesser one.
        let x = x + splat(0.0);
        let finite = x.abs().simd_lt(splat(f32::INFINITY));
        self.min = self.min.min(finite.select(x, splat(f32::INFINITY)));
        self.max = self.max.max(finite.select(x, splat(f32::NEG_INFINITY)));
        self.n_zero += x.simd_eq(splat(0.0)).select(one, zero);
        self.n_non_finite += finite.select(zero, one);
    }
}

/// Adds `rows` while `next` is asked for: among streams as many as there are rows and counters, the CPU alone finds few.
#[inline(always)]
fn range_of<S: Simd, const N: usize>(
    simd: S,
    rows: [&[f32]; N],
    next: [&[f32]; N],
    range: &mut ColumnRange<'_>,
) {
    let (lanes, n) = (S::f32s::LEN, range.min.len());
    // Slices of a length that the compiler sees.
    let rows = rows.map(
        #[inline(always)]
        |row| &row[..n],
    );
    let ColumnRange { min, max, n_zero, n_non_finite } = range;
    let (min, max) = (&mut min[..n], &mut max[..n]);
    let (n_zero, n_non_finite) = (&mut n_zero[..n], &mut n_non_finite[..n]);
    let whole = n - n % lanes;
    for first in (0..whole).step_by(lanes) {
        let at = first..first + lanes;
        let mut state = State::<S> {
            min: S::f32s::from_slice(simd, &min[at.clone()]),
            max: S::f32s::from_slice(simd, &max[at.clone()]),
            n_zero: S::u32s::from_slice(simd, &n_zero[at.clone()]),
            n_non_finite: S::u32s::from_slice(simd, &n_non_finite[at.clone()]),
        };
        for (row, next) in rows.into_iter().zip(next) {
            prefetch::far_line_at(cast_slice(next), first * size_of::<f32>());
            state.add(simd, S::f32s::from_slice(simd, &row[at.clone()]));
        }
        state.min.store_slice(&mut min[at.clone()]);
        state.max.store_slice(&mut max[at.clone()]);
        state.n_zero.store_slice(&mut n_zero[at.clone()]);
        state.n_non_finite.store_slice(&mut n_non_finite[at]);
    }
    if whole < n {
        let mut state = State::<S> {
            min: load_partial(simd, &min[whole..], 0.0),
            max: load_partial(simd, &max[whole..], 0.0),
            n_zero: load_counts(simd, &n_zero[whole..]),
            n_non_finite: load_counts(simd, &n_non_finite[whole..]),
        };
        for row in rows {
            state.add(simd, load_partial(simd, &row[whole..], 0.0));
        }
        store_partial::<S>(state.min, &mut min[whole..]);
        store_partial::<S>(state.max, &mut max[whole..]);
        store_counts::<S>(state.n_zero, &mut n_zero[whole..]);
        store_counts::<S>(state.n_non_finite, &mut n_non_finite[whole..]);
    }
}

#[inline(always)]
fn active_of<S: Simd, const N: usize>(
    simd: S,
    rows: [&[f32]; N],
    threshold: f32,
    n_active: &mut [u32],
) {
    let (lanes, n) = (S::f32s::LEN, n_active.len());
    let rows = rows.map(
        #[inline(always)]
        |row| &row[..n],
    );
    let threshold = S::f32s::splat(simd, threshold);
    let whole = n - n % lanes;
    for first in (0..whole).step_by(lanes) {
        let at = first..first + lanes;
        let mut count = S::u32s::from_slice(simd, &n_active[at.clone()]);
        for row in rows {
            count += active(simd, S::f32s::from_slice(simd, &row[at.clone()]), threshold);
        }
        count.store_slice(&mut n_active[at]);
    }
    if whole < n {
        let mut count = load_counts(simd, &n_active[whole..]);
        for row in rows {
            count += active(simd, load_partial(simd, &row[whole..], 0.0), threshold);
        }
        store_counts::<S>(count, &mut n_active[whole..]);
    }
}

/// 1 in the lanes that are not below the threshold, and so for NaN.
#[inline(always)]
fn active<S: Simd>(simd: S, x: S::f32s, threshold: S::f32s) -> S::u32s {
    let (zero, one) = (S::u32s::splat(simd, 0), S::u32s::splat(simd, 1));
    x.abs().simd_lt(threshold).select(zero, one)
}

/// The elements of `x` in the first lanes, zero in the others.
#[inline(always)]
fn load_counts<S: Simd>(simd: S, x: &[u32]) -> S::u32s {
    let mut vector = S::u32s::splat(simd, 0);
    vector.as_mut_slice()[..x.len()].copy_from_slice(x);
    vector
}

/// The first lanes of `vector`, into the whole of `out`.
#[inline(always)]
fn store_counts<S: Simd>(vector: S::u32s, out: &mut [u32]) {
    out.copy_from_slice(&vector.as_slice()[..out.len()]);
}
