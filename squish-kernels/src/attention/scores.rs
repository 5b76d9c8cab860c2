//! The scores of rows for a tile.

#[cfg(target_arch = "x86_64")]
use fearless_simd::{Level, f32x16};
use fearless_simd::{Simd, prelude::*};

use super::{
    CHAINS, TILE, padded, sum_of_chains,
    tile::{Later, SIDE_BY_SIDE},
};
#[cfg(target_arch = "x86_64")]
use crate::bytes::same;
use crate::{
    isa::outlined,
    kv::{KvElement, MOST_PARTS},
};

/// The keys of a tile.
pub(super) struct Keys<'a, E> {
    pub(super) rows: &'a [&'a [E]; TILE],
    pub(super) n_tokens: usize,
    pub(super) dim: usize,
}

/// The scores of all rows for all tokens, without scales.
#[inline(always)]
pub(super) fn scores_into<S: Simd, E: KvElement, const N: usize>(
    simd: S,
    keys: &Keys<'_, E>,
    queries: &[f32],
    scores: &mut [[f32; TILE]],
    later: &mut Option<Later<'_, '_>>,
) {
    let width = queries.len() / scores.len();
    let mut row = 0;
    while row < scores.len() {
        let (queries, scores) = (&queries[row * width..], &mut scores[row..]);
        // Memory is asked for along with the first rows.
        let later = if row == 0 { &mut *later } else { &mut None };
        // As many sums as registers hold: on the widest vectors sixteen, elsewhere four of several vectors.
        row += match N {
            1 => match scores.len() {
                4.. => block::<S, E, 4, 4, SIDE_BY_SIDE, 16, N>(simd, keys, queries, scores, later),
                2.. => block::<S, E, 2, 8, SIDE_BY_SIDE, 16, N>(simd, keys, queries, scores, later),
                _ => block::<S, E, 1, 16, SIDE_BY_SIDE, 16, N>(simd, keys, queries, scores, later),
            },
            _ => match scores.len() {
                4.. => block::<S, E, 4, 1, 1, 4, N>(simd, keys, queries, scores, later),
                _ => block::<S, E, 1, 4, SIDE_BY_SIDE, 4, N>(simd, keys, queries, scores, later),
            },
        };
    }
}

/// Of the first `ROWS` rows, with `TOKENS` tokens at a time, `SIDE` of them side by side: `SUMS` in all. Returns the number of rows.
fn block<
    S: Simd,
    E: KvElement,
    const ROWS: usize,
    const TOKENS: usize,
    const SIDE: usize,
    const SUMS: usize,
    const N: usize,
>(
    simd: S,
    keys: &Keys<'_, E>,
    queries: &[f32],
    scores: &mut [[f32; TILE]],
    later: &mut Option<Later<'_, '_>>,
) -> usize {
    outlined(
        simd,
        #[inline(always)]
        || {
            let width = padded::<E>(keys.dim);
            let mut rows = [&queries[..0]; ROWS];
            for r in 0..ROWS {
                rows[r] = &queries[r * width..(r + 1) * width];
            }
            for first in (0..keys.n_tokens).step_by(TOKENS) {
                let mut sums = [[S::f32s::splat(simd, 0.0); N]; SUMS];
                for side in (0..TOKENS).step_by(SIDE) {
                    let tokens =
                        keys.rows[first + side..].first_chunk().expect("tiles are whole blocks");
                    let of_side =
                        chains::<S, E, ROWS, SIDE, N>(simd, &rows, tokens, keys.dim, later);
                    for r in 0..ROWS {
                        for t in 0..SIDE {
                            sums[r * TOKENS + side + t] = of_side[r][t];
                        }
                    }
                    if first + side + SIDE >= keys.n_tokens {
                        break;
                    }
                }
                let sums = sums_of::<S, SUMS, N>(sums);
                // All tokens have room, those that are not there as well: a copy of a constant length is no call.
                for r in 0..ROWS {
                    let own: &[f32; TOKENS] =
                        sums[r * TOKENS..].first_chunk().expect("the sums of a row");
                    let place =
                        scores[r][first..].first_chunk_mut().expect("tiles are whole blocks");
                    *place = *own;
                }
            }
        },
    );
    ROWS
}

/// The chains of some rows and some tokens: few enough for registers.
#[inline(always)]
fn chains<S: Simd, E: KvElement, const ROWS: usize, const SIDE: usize, const N: usize>(
    simd: S,
    rows: &[&[f32]; ROWS],
    tokens: &[&[E]; SIDE],
    dim: usize,
    later: &mut Option<Later<'_, '_>>,
) -> [[[S::f32s; N]; SIDE]; ROWS] {
    let block = CHAINS * E::PARTS;
    let n_blocks = dim / block;
    let whole = n_blocks * block;
    let mut sums = [[[S::f32s::splat(simd, 0.0); N]; SIDE]; ROWS];
    let mut whole_rows = [&rows[0][..0]; ROWS];
    for r in 0..ROWS {
        whole_rows[r] = &rows[r][..whole];
    }
    let mut whole_tokens = [&tokens[0][..0]; SIDE];
    for t in 0..SIDE {
        whole_tokens[t] = &tokens[t][..whole];
    }
    for i in 0..n_blocks {
        if let Some(later) = later {
            later.ask_beside_reads(SIDE * block * size_of::<E>());
        }
        let mut of_tokens = [&[][..]; SIDE];
        for t in 0..SIDE {
            of_tokens[t] = &whole_tokens[t][i * block..(i + 1) * block];
        }
        add_block::<S, E, ROWS, SIDE, N>(simd, &whole_rows, &of_tokens, i * block, &mut sums);
    }
    if whole < dim {
        if let Some(later) = later {
            later.ask_beside_reads(SIDE * (dim - whole) * size_of::<E>());
        }
        let mut tails = [[E::default(); CHAINS * MOST_PARTS]; SIDE];
        let mut of_tokens = [&[][..]; SIDE];
        for (t, tail) in tails.iter_mut().enumerate() {
            tail[..dim - whole].copy_from_slice(&tokens[t][whole..]);
            of_tokens[t] = &tail[..block];
        }
        add_block::<S, E, ROWS, SIDE, N>(simd, rows, &of_tokens, whole, &mut sums);
    }
    sums
}

/// A block of all chains, which stands in the rows from `at` on.
#[inline(always)]
fn add_block<S: Simd, E: KvElement, const ROWS: usize, const SIDE: usize, const N: usize>(
    simd: S,
    rows: &[&[f32]; ROWS],
    tokens: &[&[E]; SIDE],
    at: usize,
    sums: &mut [[[S::f32s; N]; SIDE]; ROWS],
) {
    let lanes = S::f32s::LEN;
    let unit = lanes * E::PARTS;
    for v in 0..N {
        for t in 0..SIDE {
            let k = E::load(simd, &tokens[t][v * unit..(v + 1) * unit]);
            for part in 0..E::PARTS {
                let of_row = at + part * CHAINS + v * lanes;
                for r in 0..ROWS {
                    let q = S::f32s::from_slice(simd, &rows[r][of_row..of_row + lanes]);
                    sums[r][t][v] = q.mul_add(k[part], sums[r][t][v]);
                }
            }
        }
    }
}

/// The sum of the chains of each.
#[inline(always)]
fn sums_of<S: Simd, const SUMS: usize, const N: usize>(sums: [[S::f32s; N]; SUMS]) -> [f32; SUMS] {
    let mut out = [0.0; SUMS];
    #[cfg(target_arch = "x86_64")]
    if let (Level::Avx512(token), 16) = (sums[0][0].token().level(), SUMS) {
        let mut all = [f32x16::splat(token, 0.0); 16];
        for i in 0..16 {
            all[i] = same(token, sums[i][0]);
        }
        x86::sums_of_sixteen(token, all).store_slice(&mut out);
        return out;
    }
    for i in 0..SUMS {
        out[i] = sum_of_chains::<S, N>(sums[i]);
    }
    out
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Avx512, f32x16, kernel, prelude::*};

    kernel!(
        /// Lane `i` is the sum of the lanes of vector `i`: sixteen sums in the instructions of five.
        #[inline(always)]
        pub(super) fn sums_of_sixteen(token: Avx512, v: [f32x16<Avx512>; 16]) -> f32x16<Avx512> {
            // Each step adds the two halves of what two vectors hold, and its result holds the sums of both. What stays in its lanes is
            // blended; only what crosses is shuffled, of which there is half as much.
            let eighths = |a: __m512, b: __m512| {
                let crossing = _mm512_shuffle_f32x4::<0x4e>(a, b);
                _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), crossing)
            };
            let fourths = |a: __m512, b: __m512| {
                let from =
                    _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
                let crossing = _mm512_permutex2var_ps(a, from, b);
                _mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, a, b), crossing)
            };
            let neighbors = |a: __m512, b: __m512| {
                let from =
                    _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
                let crossing = _mm512_permutex2var_ps(a, from, b);
                _mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, a, b), crossing)
            };
            let pairs = |a: __m512, b: __m512| {
                let crossing = _mm512_shuffle_ps::<0x4e>(a, b);
                _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b), crossing)
            };
            let v: [__m512; 16] = [
                v[0].into(),
                v[1].into(),
                v[2].into(),
                v[3].into(),
                v[4].into(),
                v[5].into(),
                v[6].into(),
                v[7].into(),
                v[8].into(),
                v[9].into(),
                v[10].into(),
                v[11].into(),
                v[12].into(),
                v[13].into(),
                v[14].into(),
                v[15].into(),
            ];
            let of = |i: usize| fourths(eighths(v[i], v[i + 8]), eighths(v[i + 4], v[i + 12]));
            pairs(neighbors(of(0), of(1)), neighbors(of(2), of(3))).simd_into(token)
        }
    );
}
