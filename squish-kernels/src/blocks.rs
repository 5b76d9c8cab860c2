//! The largest magnitude of each block of a slice: what scales are made from.
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

#[doc(hidden)]
pub fn abs_max_blocks_with(isa: Isa, x: &[f32], block: usize, out: &mut [f32]) {
    assert!(block > 0, "blocks: `block` is zero");
    assert_eq!(out.len(), x.len().div_ceil(block), "blocks: one maximum per block of {block}");
    dispatch!(isa.token(), simd => maxima(simd, x, block, out));
}

/// Lanes of the widest vector of `f32`.
const MAX_LANES: usize = 16;

#[inline(always)]
fn maxima<S: Simd>(simd: S, x: &[f32], block: usize, out: &mut [f32]) {
    let lanes = S::i32s::LEN;
    for (x, out) in x.chunks(block.saturating_mul(lanes)).zip(out.chunks_mut(lanes)) {
        let blocks = if x.len() == block.saturating_mul(lanes) {
            // The blocks of the MX formats are two or four vectors: without a loop they cost half.
            match block / lanes {
                2 if block == 2 * lanes => short::<S, 2>(simd, x),
                4 if block == 4 * lanes => short::<S, 4>(simd, x),
                _ => long::<S>(simd, x, block),
            }
        } else {
            long::<S>(simd, x, block)
        };
        let largest = join_blocks::<S>(blocks).bitcast::<S::f32s>();
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

/// Four chains hide the latency of the maximum; a rest of less than four vectors is one padded with zeros.
#[inline(always)]
fn block_maxima<S: Simd>(simd: S, x: &[f32]) -> S::i32s {
    let lanes = S::f32s::LEN;
    let mut chains = [S::i32s::splat(simd, 0); 4];
    let fours = x.chunks_exact(4 * lanes);
    let rest = fours.remainder();
    for x in fours {
        for (i, chain) in chains.iter_mut().enumerate() {
            *chain = chain.max(magnitudes::<S>(simd, &x[i * lanes..(i + 1) * lanes]));
        }
    }
    let ones = rest.chunks_exact(lanes);
    let tail = ones.remainder();
    for (x, chain) in ones.zip(&mut chains) {
        *chain = chain.max(magnitudes::<S>(simd, x));
    }
    if !tail.is_empty() {
        let mut padded = [0.0; MAX_LANES];
        padded[..tail.len()].copy_from_slice(tail);
        chains[3] = chains[3].max(magnitudes::<S>(simd, &padded[..lanes]));
    }
    chains[0].max(chains[1]).max(chains[2].max(chains[3]))
}

/// The maxima of at most as many blocks as a vector has lanes.
#[inline(always)]
fn long<S: Simd>(simd: S, x: &[f32], block: usize) -> [S::i32s; MAX_LANES] {
    let mut blocks = [S::i32s::splat(simd, 0); MAX_LANES];
    for (largest, x) in blocks.iter_mut().zip(x.chunks(block)) {
        *largest = block_maxima::<S>(simd, x);
    }
    blocks
}

/// The maxima of as many blocks of `N` vectors as a vector has lanes.
#[inline(always)]
fn short<S: Simd, const N: usize>(simd: S, x: &[f32]) -> [S::i32s; MAX_LANES] {
    let mut blocks = [S::i32s::splat(simd, 0); MAX_LANES];
    let lanes = S::f32s::LEN;
    for i in 0..lanes {
        let x = &x[i * N * lanes..(i + 1) * N * lanes];
        let mut largest = magnitudes::<S>(simd, &x[..lanes]);
        for j in 1..N {
            largest = largest.max(magnitudes::<S>(simd, &x[j * lanes..(j + 1) * lanes]));
        }
        blocks[i] = largest;
    }
    blocks
}

#[inline(always)]
fn magnitudes<S: Simd>(simd: S, x: &[f32]) -> S::i32s {
    S::f32s::from_slice(simd, x).bitcast::<S::i32s>() & S::i32s::splat(simd, 0x7fff_ffff)
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
}
