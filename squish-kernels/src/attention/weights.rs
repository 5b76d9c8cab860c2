//! From the scores of a row to its weights.

#[cfg(target_arch = "x86_64")]
use fearless_simd::Level;
use fearless_simd::{Simd, prelude::*};

use super::{CHAINS, Queries, ROWS_AT_ONCE, TILE, Tile, sum_of_chains};
#[cfg(target_arch = "x86_64")]
use crate::bytes::same;
use crate::{exp::exp_normal_lanes, kv::KvElement, soft_cap::soft_cap_lanes};

/// Turns the scores of rows, at most [`ROWS_AT_ONCE`], into weights, updates their largest scores and sums, and returns what their values
/// so far are multiplied by. `first` is the first row, in `queries`.
///
/// A NaN among the scores makes the sum NaN, and so the result; a score of negative infinity has the weight 0.
#[inline(always)]
pub(super) fn weigh<S: Simd, E: KvElement, const N: usize>(
    simd: S,
    tile: &Tile<'_, E>,
    queries: &Queries<'_>,
    first: usize,
    scores: &mut [[f32; TILE]],
    maxima: &mut [f32],
    sums: &mut [f32],
) -> [f32; ROWS_AT_ONCE] {
    // The factors of all rows are one vector.
    const { assert!(S::f32s::LEN >= ROWS_AT_ONCE) };
    let lanes = S::f32s::LEN;
    let splat = |x: f32| S::f32s::splat(simd, x);
    let visible = &queries.visible[first..first + scores.len()];
    // How far the largest score of each row rises, and the factor for that: of all rows at once.
    let mut rises = splat(0.0);
    for (row, (scores, max)) in scores.iter_mut().zip(&mut *maxima).enumerate() {
        let n = visible[row];
        let scores = &mut scores[..n.next_multiple_of(CHAINS)];
        adjust(simd, tile, queries, first + row, scores);
        scores[n..].fill(f32::NEG_INFINITY);
        let new_max = largest(simd, scores).max(*max);
        // Nothing came before, or nothing larger: exactly one.
        let stays = *max == new_max || *max == f32::NEG_INFINITY;
        rises.as_mut_slice()[row] = if stays { 0.0 } else { *max - new_max };
        *max = new_max;
    }
    let factors = exp_normal_lanes(simd, rises);
    for (row, ((scores, max), sum)) in scores.iter_mut().zip(&*maxima).zip(sums).enumerate() {
        let used = visible[row].next_multiple_of(CHAINS);
        let mut chains = [splat(0.0); N];
        for (i, weights) in scores[..used].chunks_exact_mut(lanes).enumerate() {
            let s = S::f32s::from_slice(simd, weights);
            let p = if *max == f32::NEG_INFINITY {
                // All scores are negative infinity, or NaN, which no comparison finds.
                s.simd_eq(splat(f32::NEG_INFINITY)).select(splat(0.0), splat(f32::NAN))
            } else {
                exp_normal_lanes(simd, s - splat(*max))
            };
            chains[i % N] += p;
            let scaled = match tile.value_scales {
                Some(scales) => p * S::f32s::from_slice(simd, &scales[i * lanes..(i + 1) * lanes]),
                None => p,
            };
            scaled.store_slice(weights);
        }
        *sum = *sum * factors.as_slice()[row] + sum_of_chains::<S, N>(chains);
    }
    *factors.as_slice().first_chunk().expect("a vector has as many lanes")
}

/// Scales, cap and ALiBi.
#[inline(always)]
pub(super) fn adjust<S: Simd, E: KvElement>(
    simd: S,
    tile: &Tile<'_, E>,
    queries: &Queries<'_>,
    row: usize,
    scores: &mut [f32],
) {
    let lanes = S::f32s::LEN;
    let splat = |x: f32| S::f32s::splat(simd, x);
    if let Some(scales) = tile.key_scales {
        for (scores, scales) in scores.chunks_exact_mut(lanes).zip(scales.chunks_exact(lanes)) {
            let s = S::f32s::from_slice(simd, scores) * S::f32s::from_slice(simd, scales);
            s.store_slice(scores);
        }
    }
    if let Some(cap) = queries.softcap {
        for scores in scores.chunks_exact_mut(lanes) {
            let s = S::f32s::from_slice(simd, scores);
            soft_cap_lanes(simd, s, cap).store_slice(scores);
        }
    }
    if let Some(alibi) = queries.alibi {
        let (slope, own) = (splat(alibi[row].slope), splat(alibi[row].position));
        for (scores, at) in scores.chunks_exact_mut(lanes).zip(tile.positions.chunks_exact(lanes)) {
            let s = S::f32s::from_slice(simd, scores);
            (S::f32s::from_slice(simd, at) - own).mul_add(slope, s).store_slice(scores);
        }
    }
}

/// The largest score that is not NaN, negative infinity if there is none.
#[inline(always)]
fn largest<S: Simd>(simd: S, scores: &[f32]) -> f32 {
    let mut most = S::f32s::splat(simd, f32::NEG_INFINITY);
    for scores in scores.chunks_exact(S::f32s::LEN) {
        let s = S::f32s::from_slice(simd, scores);
        most = s.simd_gt(most).select(s, most);
    }
    // No lane is NaN.
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) => x86::largest_512(token, same(token, most)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => x86::largest_256(token, same(token, most)),
        _ => most.as_slice().iter().copied().fold(f32::NEG_INFINITY, f32::max),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Avx2, Avx512, f32x8, f32x16, kernel};

    kernel!(
        #[inline(always)]
        pub(super) fn largest_512(_token: Avx512, x: f32x16<Avx512>) -> f32 {
            _mm512_reduce_max_ps(x.into())
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn largest_256(_token: Avx2, x: f32x8<Avx2>) -> f32 {
            let x: __m256 = x.into();
            let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    );
}
