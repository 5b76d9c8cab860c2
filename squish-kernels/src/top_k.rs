//! The `k` largest elements of a slice, sorted: [`top_k`].
//!
//! ```text
//! floor ← −∞
//! for each x ≥ floor:                       a vector comparison, false for NaN and soon for almost everything
//!     append (x, index) to the scratch
//!     if the scratch is full:
//!         keep its k largest                quickselect, O(scratch)
//!         floor ← next float above the k-th what ties with it later has a higher index and loses
//! keep the k largest, sort them
//! ```
//!
//! The scratch holds at least `2 k` entries, so that a selection is paid for by the `k` appends since the one before:
//! `O(n + k log k)` whatever the order of the input. An entry is one `u64`, the value's rank above the complement of
//! the index, whose natural order is the order of the result.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::{Isa, lanes::load_partial};

/// Length of the scratch that [`top_k`] needs.
#[must_use]
pub const fn top_k_scratch_len(k: usize) -> usize {
    // At least one block of the widest level beyond the k that a selection keeps, and as many as make selections rare.
    2 * k + 256
}

/// Writes the largest elements of `x` in descending order to `values` and where they stand to `indices`, as many as
/// these are long (`k`), and returns how many there were: `k`, or fewer if `x` has fewer elements that are no NaN.
///
/// Of equal elements the one with the lower index comes first; zeros of both signs are equal. NaN is never chosen.
/// What lies past the returned count in `values` and `indices` is left as it was. Nothing is allocated.
///
/// # Panics
///
/// If `values` and `indices` differ in length, `scratch` is shorter than [`top_k_scratch_len`] of it, or `x` has more
/// than 2^32 elements.
///
/// # Examples
///
/// ```
/// use squish_kernels::{top_k, top_k_scratch_len};
///
/// let (mut values, mut indices) = ([0.0; 2], [0; 2]);
/// let mut scratch = vec![0; top_k_scratch_len(2)];
/// assert_eq!(top_k(&[0.5, 3.0, -1.0, 3.0], &mut values, &mut indices, &mut scratch), 2);
/// assert_eq!((values, indices), ([3.0, 3.0], [1, 3]));
/// ```
pub fn top_k(x: &[f32], values: &mut [f32], indices: &mut [u32], scratch: &mut [u64]) -> usize {
    top_k_with(Isa::detect(), x, values, indices, scratch)
}

#[doc(hidden)]
pub fn top_k_with(
    isa: Isa,
    x: &[f32],
    values: &mut [f32],
    indices: &mut [u32],
    scratch: &mut [u64],
) -> usize {
    let k = values.len();
    assert_eq!(k, indices.len(), "top_k: `values` and `indices` differ in length");
    assert!(scratch.len() >= top_k_scratch_len(k), "top_k: `scratch` is too short");
    assert!(x.len() as u64 <= 1 << 32, "top_k: `x` has more than 2^32 elements");
    if k == 0 {
        return 0;
    }
    let n_found = dispatch!(isa.token(), simd => candidates(simd, x, k, scratch));
    let found = &mut scratch[..n_found];
    found.sort_unstable_by(|a, b| b.cmp(a));
    for ((entry, value), index) in found.iter().zip(values).zip(indices) {
        *index = !(*entry as u32);
        *value = x[*index as usize];
    }
    n_found
}

/// The definition of [`top_k`], with the indices alone.
#[doc(hidden)]
#[must_use]
pub fn top_k_scalar(x: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..x.len() as u32).filter(|&i| !x[i as usize].is_nan()).collect();
    // A stable sort leaves equal elements in the order of their indices.
    order.sort_by(|&a, &b| x[b as usize].partial_cmp(&x[a as usize]).expect("no NaN is left"));
    order.truncate(k);
    order
}

/// Leaves the entries of the `k` largest elements in the front of `scratch`, in no order, and returns how many there are.
#[inline(always)]
fn candidates<S: Simd>(simd: S, x: &[f32], k: usize, scratch: &mut [u64]) -> usize {
    const STEP: usize = 4;
    let lanes = S::f32s::LEN;
    let mut kept = Kept { entries: scratch, len: 0, k, floor: f32::NEG_INFINITY };
    let mut blocks = x.chunks_exact(STEP * lanes);
    let mut first = 0;
    for block in &mut blocks {
        let floor = S::f32s::splat(simd, kept.floor);
        let mut masks = [S::mask32s::splat(simd, false); STEP];
        for (i, mask) in masks.iter_mut().enumerate() {
            *mask = S::f32s::from_slice(simd, &block[i * lanes..(i + 1) * lanes]).simd_ge(floor);
        }
        if (masks[0] | masks[1] | masks[2] | masks[3]).any_true() {
            for (i, mask) in masks.iter().enumerate() {
                kept.append(mask.to_bitmask(), &block[i * lanes..], first + i * lanes);
            }
        }
        first += STEP * lanes;
    }
    for chunk in blocks.remainder().chunks(lanes) {
        let floor = S::f32s::splat(simd, kept.floor);
        let mask = load_partial(simd, chunk, f32::NAN).simd_ge(floor);
        kept.append(mask.to_bitmask(), chunk, first);
        first += chunk.len();
    }
    if kept.len > k {
        kept.select();
    }
    kept.len
}

/// The entries that may still be among the `k` largest.
struct Kept<'a> {
    entries: &'a mut [u64],
    len: usize,
    k: usize,
    /// Elements below it are not among them.
    floor: f32,
}

impl Kept<'_> {
    /// Appends the elements of `x` whose bit is set; `first` is the index of `x[0]`.
    #[inline]
    fn append(&mut self, mut bits: u64, x: &[f32], first: usize) {
        while bits != 0 {
            let lane = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if self.len == self.entries.len() {
                self.select();
            }
            self.entries[self.len] = entry(x[lane], first + lane);
            self.len += 1;
        }
    }

    /// Keeps the `k` largest and raises the floor.
    #[cold]
    #[inline(never)]
    fn select(&mut self) {
        let (_, &mut last, _) =
            self.entries[..self.len].select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
        self.len = self.k;
        self.floor = value((last >> 32) as u32).next_up();
    }
}

/// Rank of `x` above the complement of `index`: the larger entry comes first in the result.
#[inline]
fn entry(x: f32, index: usize) -> u64 {
    // Adding zero turns −0 into +0.
    let bits = (x + 0.0).to_bits();
    let rank = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(rank) << 32 | u64::from(!(index as u32))
}

/// The float of a rank.
fn value(rank: u32) -> f32 {
    f32::from_bits(if rank >> 31 == 1 { rank & !(1 << 31) } else { !rank })
}
