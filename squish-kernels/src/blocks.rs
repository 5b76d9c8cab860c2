//! The largest magnitude, or the extremes, of each block of a slice: what scales and zero points are made from.
//!
//! Magnitudes compare as integers, since the bits of positive floats ascend with their values. NaN ends up above
//! infinity and infinity above all numbers, so that one comparison of the result finds a block that is not finite.
//!
//! Each block is reduced to one vector. As many blocks as a vector has lanes are then reduced together: taking the
//! maximum of the even and the odd lanes of two vectors halves both and joins them, and after `log2(lanes)` rounds lane
//! `i` is the maximum of block `i`. That costs three instructions per block, where a reduction of its own costs nine.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::Isa;

/// The largest `|x|` of each run of `block` elements; the last may be shorter. NaN counts as larger than infinity.
///
/// # Panics
///
/// If `block` is zero, or `out` has not one element per block.
pub fn abs_max_blocks_into(x: &[f32], block: usize, out: &mut [f32]) {
    abs_max_blocks_with(Isa::detect(), x, block, out);
}

/// The least and the greatest element of each run of `block` elements; the last may be shorter.
///
/// NaN with a clear sign bit counts as more than infinity, NaN with a set one as less than minus infinity: a block has
/// two finite results exactly if all its elements are finite. A negative zero is less than a positive one.
///
/// # Panics
///
/// If `block` is zero, or `mins` or `maxs` has not one element per block.
pub fn min_max_blocks_into(x: &[f32], block: usize, mins: &mut [f32], maxs: &mut [f32]) {
    min_max_blocks_with(Isa::detect(), x, block, mins, maxs);
}

#[doc(hidden)]
pub fn abs_max_blocks_with(isa: Isa, x: &[f32], block: usize, out: &mut [f32]) {
    maxima_into::<Magnitude>(isa, x, block, out);
}

#[doc(hidden)]
pub fn min_max_blocks_with(isa: Isa, x: &[f32], block: usize, mins: &mut [f32], maxs: &mut [f32]) {
    maxima_into::<Descending>(isa, x, block, mins);
    maxima_into::<Ascending>(isa, x, block, maxs);
}

fn maxima_into<K: Key>(isa: Isa, x: &[f32], block: usize, out: &mut [f32]) {
    assert!(block > 0, "blocks: `block` is zero");
    assert_eq!(out.len(), x.len().div_ceil(block), "blocks: one result per block of {block}");
    dispatch!(isa.token(), simd => maxima::<_, K>(simd, x, block, out));
}

/// An order of floats, as integers: the element that comes last in it is looked for.
trait Key {
    /// The keys of a vector.
    fn of<S: Simd>(x: S::f32s) -> S::i32s;

    /// The elements with these keys.
    fn back<S: Simd>(keys: S::i32s) -> S::f32s;
}

/// By magnitude. The largest one is found, not its element.
enum Magnitude {}

impl Key for Magnitude {
    #[inline(always)]
    fn of<S: Simd>(x: S::f32s) -> S::i32s {
        x.bitcast::<S::i32s>() & S::i32s::splat(x.token(), i32::MAX)
    }

    #[inline(always)]
    fn back<S: Simd>(keys: S::i32s) -> S::f32s {
        keys.bitcast()
    }
}

/// By value: the bits of negative floats descend with their values, so that all but the sign are turned over.
enum Ascending {}

impl Key for Ascending {
    #[inline(always)]
    fn of<S: Simd>(x: S::f32s) -> S::i32s {
        let bits = x.bitcast::<S::i32s>();
        bits ^ ((bits >> 31) & S::i32s::splat(x.token(), i32::MAX))
    }

    #[inline(always)]
    fn back<S: Simd>(keys: S::i32s) -> S::f32s {
        Self::of::<S>(keys.bitcast()).bitcast()
    }
}

/// By value, from the greatest to the least.
enum Descending {}

impl Key for Descending {
    #[inline(always)]
    fn of<S: Simd>(x: S::f32s) -> S::i32s {
        !Ascending::of::<S>(x)
    }

    #[inline(always)]
    fn back<S: Simd>(keys: S::i32s) -> S::f32s {
        Ascending::back::<S>(!keys)
    }
}

/// Lanes of the widest vector of `f32`.
const MAX_LANES: usize = 16;

#[inline(always)]
fn maxima<S: Simd, K: Key>(simd: S, x: &[f32], block: usize, out: &mut [f32]) {
    let lanes = S::i32s::LEN;
    let group = block.saturating_mul(lanes);
    for (x, out) in x.chunks(group).zip(out.chunks_mut(lanes)) {
        // The blocks of the MX formats are two or four vectors: without a loop they cost half.
        let blocks = if x.len() == group && block == 2 * lanes {
            short::<S, K, 2>(simd, x)
        } else if x.len() == group && block == 4 * lanes {
            short::<S, K, 4>(simd, x)
        } else {
            let mut blocks = [S::i32s::splat(simd, 0); MAX_LANES];
            for (largest, x) in blocks.iter_mut().zip(x.chunks(block)) {
                *largest = block_maxima::<S, K>(simd, x);
            }
            blocks
        };
        let largest = K::back::<S>(join_blocks::<S>(blocks));
        if out.len() == lanes {
            largest.store_slice(out);
        } else {
            out.copy_from_slice(&largest.as_slice()[..out.len()]);
        }
    }
}

/// Lane `i` of the result is the maximum of all lanes of `blocks[i]`.
#[inline(always)]
fn join_blocks<S: Simd>(mut blocks: [S::i32s; MAX_LANES]) -> S::i32s {
    if S::i32s::LEN >= 16 {
        halve::<S, 8>(&mut blocks);
    }
    if S::i32s::LEN >= 8 {
        halve::<S, 4>(&mut blocks);
    }
    halve::<S, 2>(&mut blocks);
    halve::<S, 1>(&mut blocks);
    blocks[0]
}

/// The first `2 * N` vectors to `N`, each with the pairwise maxima of two.
#[inline(always)]
fn halve<S: Simd, const N: usize>(blocks: &mut [S::i32s; MAX_LANES]) {
    for i in 0..N {
        let (a, b) = (blocks[2 * i], blocks[2 * i + 1]);
        blocks[i] = a.unzip_low(b).max(a.unzip_high(b));
    }
}

/// The maxima of as many blocks of `N` vectors as a vector has lanes.
#[inline(always)]
fn short<S: Simd, K: Key, const N: usize>(simd: S, x: &[f32]) -> [S::i32s; MAX_LANES] {
    let mut blocks = [S::i32s::splat(simd, 0); MAX_LANES];
    let lanes = S::f32s::LEN;
    // A length and a count that the compiler knows, so that no loop remains and the blocks stay in registers.
    let x = &x[..N * lanes * lanes];
    for i in 0..lanes {
        blocks[i] = keys::<S, K>(simd, &x[N * i * lanes..][..lanes]);
        for j in 1..N {
            blocks[i] = blocks[i].max(keys::<S, K>(simd, &x[(N * i + j) * lanes..][..lanes]));
        }
    }
    blocks
}

/// Four chains hide the latency of the maximum; a rest of less than a vector is one padded with its first element.
#[inline(always)]
fn block_maxima<S: Simd, K: Key>(simd: S, x: &[f32]) -> S::i32s {
    let lanes = S::f32s::LEN;
    let mut chains = [S::i32s::splat(simd, i32::MIN); 4];
    let fours = x.chunks_exact(4 * lanes);
    let rest = fours.remainder();
    for x in fours {
        for (i, chain) in chains.iter_mut().enumerate() {
            *chain = chain.max(keys::<S, K>(simd, &x[i * lanes..(i + 1) * lanes]));
        }
    }
    let ones = rest.chunks_exact(lanes);
    let tail = ones.remainder();
    for (x, chain) in ones.zip(&mut chains) {
        *chain = chain.max(keys::<S, K>(simd, x));
    }
    if let Some(&first) = tail.first() {
        let mut padded = [first; MAX_LANES];
        padded[..tail.len()].copy_from_slice(tail);
        chains[3] = chains[3].max(keys::<S, K>(simd, &padded[..lanes]));
    }
    chains[0].max(chains[1]).max(chains[2].max(chains[3]))
}

#[inline(always)]
fn keys<S: Simd, K: Key>(simd: S, x: &[f32]) -> S::i32s {
    K::of::<S>(S::f32s::from_slice(simd, x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_finds_the_largest_magnitude_of_every_block() {
        let x: Vec<f32> = (0..5000u32)
            .map(|i| match i % 977 {
                13 => f32::NAN,
                500 => f32::NEG_INFINITY,
                700 => -0.0,
                _ => f32::from_bits(i.wrapping_mul(0x9e37_79b9) & 0xbfff_ffff),
            })
            .collect();
        let larger = |a: f32, b: &f32| f32::from_bits(a.to_bits().max(b.abs().to_bits()));
        for block in [1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 300, 4999, 5000, 6000] {
            for len in [0, 1, 15, 16, 31, 32, 33, 512, 513, 1023, 5000] {
                let want: Vec<f32> =
                    x[..len].chunks(block).map(|x| x.iter().fold(0.0, larger)).collect();
                for isa in Isa::available() {
                    let mut got = vec![0.0; want.len()];
                    abs_max_blocks_with(isa, &x[..len], block, &mut got);
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&got), bits(&want), "{isa:?}, blocks of {block} in {len}");
                }
            }
        }
    }

    #[test]
    fn every_isa_finds_the_extremes_of_every_block() {
        let x: Vec<f32> = (0..1030u32)
            .map(|i| match i % 97 {
                13 => f32::NAN,
                50 => f32::NEG_INFINITY,
                70 => -0.0,
                _ => f32::from_bits(i.wrapping_mul(0x9e37_79b9) & 0xbfff_ffff),
            })
            .collect();
        let order = |x: &f32| x.to_bits() as i32 ^ ((x.to_bits() as i32 >> 31) & i32::MAX);
        for (len, block) in [0usize, 1, 7, 16, 33, 64, 999, 1030]
            .into_iter()
            .flat_map(|len| [1, 3, 16, 32, 33, 100, 2000].map(|block| (len, block)))
        {
            let n_blocks = len.div_ceil(block);
            for isa in Isa::available() {
                let (mut mins, mut maxs) = (vec![0.0; n_blocks], vec![0.0; n_blocks]);
                min_max_blocks_with(isa, &x[..len], block, &mut mins, &mut maxs);
                for (x, (min, max)) in x[..len].chunks(block).zip(mins.iter().zip(&maxs)) {
                    assert_eq!(Some(order(min)), x.iter().map(order).min(), "{isa:?}: {x:?}");
                    assert_eq!(Some(order(max)), x.iter().map(order).max(), "{isa:?}: {x:?}");
                    assert_eq!(
                        min.is_finite() && max.is_finite(),
                        x.iter().all(|x| x.is_finite()),
                        "{isa:?}: {x:?}"
                    );
                }
            }
        }
    }
}
