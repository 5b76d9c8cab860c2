//! The scores of rows for a tile.

#[cfg(target_arch = "x86_64")]
use fearless_simd::{Level, f32x16};
use fearless_simd::{Simd, prelude::*};

use super::{
    CHAINS, TILE, Tile, padded, sum_of_chains,
    tile::{Kind, fetch},
};
#[cfg(target_arch = "x86_64")]
use crate::bytes::same;
use crate::kv::{KvElement, MOST_PARTS};

/// The scores of all rows for all tokens, without scales.
#[inline(always)]
pub(super) fn scores_into<S: Simd, E: KvElement, const N: usize>(
    simd: S,
    tile: &Tile<'_, E>,
    n_tokens: usize,
    queries: &[f32],
    scores: &mut [[f32; TILE]],
) {
    let width = queries.len() / scores.len();
    let mut row = 0;
    while row < scores.len() {
        let (queries, scores) = (&queries[row * width..], &mut scores[row..]);
        // Memory is asked for along with the first rows.
        let tile = Tile { ahead: tile.ahead.filter(|_| row == 0), ..*tile };
        // As many sums as registers hold: on the widest vectors sixteen, elsewhere four of several vectors.
        row += match N {
            1 => match scores.len() {
                4.. => block::<S, E, 4, 4, 16, N>(simd, &tile, n_tokens, queries, scores),
                2.. => block::<S, E, 2, 8, 16, N>(simd, &tile, n_tokens, queries, scores),
                _ => block::<S, E, 1, 16, 16, N>(simd, &tile, n_tokens, queries, scores),
            },
            _ => match scores.len() {
                4.. => block::<S, E, 4, 1, 4, N>(simd, &tile, n_tokens, queries, scores),
                _ => block::<S, E, 1, 4, 4, N>(simd, &tile, n_tokens, queries, scores),
            },
        };
    }
}

/// Tokens whose rows are read side by side: few, so that memory is read nearly in order.
const SIDE_BY_SIDE: usize = 4;

/// Of the first `ROWS` rows, with `TOKENS` tokens at a time: `SUMS` in all. Returns the number of rows.
#[inline(always)]
fn block<
    S: Simd,
    E: KvElement,
    const ROWS: usize,
    const TOKENS: usize,
    const SUMS: usize,
    const N: usize,
>(
    simd: S,
    tile: &Tile<'_, E>,
    n_tokens: usize,
    queries: &[f32],
    scores: &mut [[f32; TILE]],
) -> usize {
    let (lanes, key_dim, width) = (S::f32s::LEN, tile.dims[0], padded::<E>(tile.dims[0]));
    let whole = key_dim / (CHAINS * E::PARTS) * (CHAINS * E::PARTS);
    let mut rows = [&queries[..0]; ROWS];
    for r in 0..ROWS {
        rows[r] = &queries[r * width..(r + 1) * width];
    }
    let (mut keys, mut later_keys) = (tile.rows(Kind::Keys), tile.later_rows(Kind::Keys));
    let mut tokens = [&[][..]; SIDE_BY_SIDE];
    for first in (0..n_tokens).step_by(TOKENS) {
        let mut sums = [[S::f32s::splat(simd, 0.0); N]; SUMS];
        for side in (0..TOKENS).step_by(SIDE_BY_SIDE) {
            let n = TOKENS.min(SIDE_BY_SIDE);
            for t in 0..n {
                // The latest token stands for those that are not there.
                tokens[t] = keys.next().unwrap_or(tokens[t.saturating_sub(1)]);
            }
            let mut later = [&[][..]; SIDE_BY_SIDE];
            if let Some(later_keys) = &mut later_keys {
                for t in 0..n {
                    later[t] = later_keys.next();
                }
            }
            let fetches = later_keys.is_some();
            let mut tails = [[E::default(); CHAINS * MOST_PARTS]; SIDE_BY_SIDE];
            if whole < key_dim {
                for t in 0..n {
                    tails[t][..key_dim - whole].copy_from_slice(&tokens[t][whole..]);
                }
            }
            for at in (0..width).step_by(CHAINS * E::PARTS) {
                for t in 0..n {
                    if fetches {
                        fetch(later[t], at, CHAINS * E::PARTS);
                    }
                    let token = if at < whole { &tokens[t][at..] } else { &tails[t] };
                    for v in 0..N {
                        let unit = lanes * E::PARTS;
                        let k = E::load(simd, &token[v * unit..(v + 1) * unit]);
                        for part in 0..E::PARTS {
                            let of_row = at + part * CHAINS + v * lanes;
                            for r in 0..ROWS {
                                let q = S::f32s::from_slice(simd, &rows[r][of_row..of_row + lanes]);
                                let sum = &mut sums[r * TOKENS + side + t][v];
                                *sum = q.mul_add(k[part], *sum);
                            }
                        }
                    }
                }
            }
            if first + side + n >= n_tokens {
                break;
            }
        }
        let sums = sums_of::<S, SUMS, N>(sums);
        // All tokens have room, those that are not there as well: a copy of a constant length is no call.
        for r in 0..ROWS {
            let own: &[f32; TOKENS] = sums[r * TOKENS..].first_chunk().expect("the sums of a row");
            let place = scores[r][first..].first_chunk_mut().expect("tiles are whole blocks");
            *place = *own;
        }
    }
    ROWS
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
