//! Histograms of magnitudes with bins of equal ratio: 32 in an octave, over the 24 octaves below the largest magnitude.
//!
//! ```text
//! key(x)   = bits of |x| >> 18                      exponent and the first 5 bits of the mantissa
//! slot(x)  = clamp(key(x) − floor, 0, 769)
//! ```
//!
//! | slot | counts |
//! |---|---|
//! | 0 | zeros, and magnitudes below the window |
//! | 1 to 768 | magnitudes from `edge(floor + slot)` up to the next edge, wider by 1/32 at most |
//! | 769 | NaN and infinities |
//! | up to 783 | nothing |
//!
//! The `floor` is that of the largest finite magnitude so far ([`floor_of`]), so that no finite one lies above the window. When it
//! rises, [`rebase`] moves the counts. A window only ever rises, and what lies in it has been in every window before: the counts are those
//! of the set of all elements, in whatever order and parts these came. Subnormals always count as below the window.
//!
//! A histogram with integer counts needs no sorting and merges by addition, and the error of a quantile relative to its value is bounded, as in
//! C. Masson et al., "`DDSketch`", arXiv 1908.10693, of which this is the fixed-size form with the logarithm replaced by the bits of a float.

use bytemuck::cast_slice;
use fearless_simd::{Simd, prelude::*};

use crate::{Isa, isa::dispatch, lanes::load_partial, prefetch};

/// Bins of an octave.
pub const OCTAVE_BINS: usize = 32;

/// Octaves of the window.
pub const OCTAVES: usize = 24;

/// Bins of the window.
pub const BINS: usize = OCTAVE_BINS * OCTAVES;

/// Counters of a histogram: 49 cache lines, a number with no factor in common with the sets of a cache, so that equal bins
/// of many histograms do not compete for one set.
pub const SLOTS: usize = 784;

/// The last slot in use.
const LAST: i32 = BINS as i32 + 1;

/// Bits of the mantissa that a key leaves out.
const SHIFT: u32 = 18;

/// The floor of the window for magnitudes up to `largest`, which is finite.
#[must_use]
pub const fn floor_of(largest: f32) -> i32 {
    let octave = (largest.to_bits() >> 23 & 0xff) as i32;
    let first = octave - (OCTAVES as i32 - 1);
    (if first < 1 { 1 } else { first }) * OCTAVE_BINS as i32 - 1
}

/// The least magnitude of the bin in `slot`, 1 to 768, and the supremum of the one before; +∞ for that above the largest float.
#[must_use]
pub const fn edge(floor: i32, slot: usize) -> f32 {
    f32::from_bits(((floor + slot as i32) as u32) << SHIFT)
}

/// Moves the counts of a histogram by as many bins as its floor rises.
pub fn rebase(counts: &mut [u32; SLOTS], rise: usize) {
    let rise = rise.min(BINS);
    let below: u32 = counts[1..=rise].iter().sum();
    counts[0] += below;
    counts.copy_within(1 + rise..=BINS, 1);
    counts[1 + BINS - rise..=BINS].fill(0);
}

/// Counts the elements of each column of `rows` in the histogram of the column, `counts`, `[columns, SLOTS]`, whose window
/// begins at its element of `floors`. Counts wrap around in release builds.
///
/// # Panics
///
/// If a row does not have as many elements as `floors`, or `counts` not [`SLOTS`] times as many.
pub fn count_columns(rows: &[&[f32]], floors: &[i32], counts: &mut [u32]) {
    count_columns_with(Isa::detect(), rows, floors, counts);
}

/// Counts the elements of `x` in four histograms of one window, of which the sums are meant: neighbors, which are often in
/// one bin, then wait less for each other. Counts wrap around in release builds.
pub fn count_magnitudes(x: &[f32], floor: i32, counts: &mut [[u32; SLOTS]; 4]) {
    count_magnitudes_with(Isa::detect(), x, floor, counts);
}

#[doc(hidden)]
pub fn count_columns_with(isa: Isa, rows: &[&[f32]], floors: &[i32], counts: &mut [u32]) {
    let n = floors.len();
    assert!(
        rows.iter().all(|row| row.len() == n),
        "histogram: a row has not one element per column"
    );
    assert_eq!(counts.len(), n * SLOTS, "histogram: the counters of {n} columns");
    let (counts, _) = counts.as_chunks_mut();
    dispatch!(isa.token(), simd => count_blocks(simd, rows, floors, counts));
}

#[doc(hidden)]
pub fn count_magnitudes_with(isa: Isa, x: &[f32], floor: i32, counts: &mut [[u32; SLOTS]; 4]) {
    dispatch!(isa.token(), simd => count_lanes(simd, x, floor, counts));
}

/// The definition of a slot.
#[doc(hidden)]
#[must_use]
pub fn slot_scalar(x: f32, floor: i32) -> usize {
    let key = (x.abs().to_bits() >> SHIFT) as i32;
    (key - floor).clamp(0, LAST) as usize
}

#[inline(always)]
fn slots<S: Simd>(simd: S, x: S::f32s, floor: S::i32s) -> S::i32s {
    let bits = x.bitcast::<S::i32s>() & S::i32s::splat(simd, i32::MAX);
    let key = bits >> SHIFT;
    (key - floor).max(S::i32s::splat(simd, 0)).min(S::i32s::splat(simd, LAST))
}

/// Columns whose histograms are filled together. The lines in use of 32 of them, some 8 each, stay in L1.
const BLOCK: usize = 32;

/// How many rows ahead a block of columns is asked for, since rows of a wide matrix are far from each other.
const ROWS_AHEAD: usize = 12;

#[inline(always)]
fn count_blocks<S: Simd>(simd: S, rows: &[&[f32]], floors: &[i32], counts: &mut [[u32; SLOTS]]) {
    let lanes = S::f32s::LEN;
    for (i, (floors, counts)) in floors.chunks(BLOCK).zip(counts.chunks_mut(BLOCK)).enumerate() {
        let (first, len) = (i * BLOCK, floors.len());
        let mut block_floors = [0; BLOCK];
        block_floors[..len].copy_from_slice(floors);
        let (mut padded, mut block_slots) = ([0.0; BLOCK], [0; BLOCK]);
        for (row_idx, row) in rows.iter().enumerate() {
            if let Some(later) = rows.get(row_idx + ROWS_AHEAD) {
                prefetch::lines(cast_slice(&later[first..first + len]), 0);
            }
            let mut x = &row[first..first + len];
            if len < BLOCK {
                padded[..len].copy_from_slice(x);
                x = &padded;
            }
            for at in (0..BLOCK).step_by(lanes) {
                let x = S::f32s::from_slice(simd, &x[at..at + lanes]);
                let floor = S::i32s::from_slice(simd, &block_floors[at..at + lanes]);
                slots::<S>(simd, x, floor).store_slice(&mut block_slots[at..at + lanes]);
            }
            if let Some(counts) = counts.first_chunk_mut::<BLOCK>() {
                // A length that the compiler knows, so that no loop remains.
                for (counts, slot) in counts.iter_mut().zip(block_slots) {
                    counts[slot as usize] += 1;
                }
            } else {
                for (counts, &slot) in counts.iter_mut().zip(&block_slots) {
                    counts[slot as usize] += 1;
                }
            }
        }
    }
}

#[inline(always)]
fn count_lanes<S: Simd>(simd: S, x: &[f32], floor: i32, counts: &mut [[u32; SLOTS]; 4]) {
    let lanes = S::f32s::LEN;
    let floor = S::i32s::splat(simd, floor);
    let mut vectors = x.chunks_exact(lanes);
    for x in &mut vectors {
        let slots = slots::<S>(simd, S::f32s::from_slice(simd, x), floor);
        for four in slots.as_slice().as_chunks::<4>().0 {
            for (counts, &slot) in counts.iter_mut().zip(four) {
                counts[slot as usize] += 1;
            }
        }
    }
    let rest = vectors.remainder();
    let slots = slots::<S>(simd, load_partial(simd, rest, 0.0), floor);
    for (i, &slot) in slots.as_slice()[..rest.len()].iter().enumerate() {
        counts[i % 4][slot as usize] += 1;
    }
}
