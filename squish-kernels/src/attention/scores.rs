//! The scores of rows for a tile.

#[cfg(target_arch = "x86_64")]
use fearless_simd::{Level, f32x8, f32x16};
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
    later: &mut Option<Later<'_, E>>,
) {
    const SIDE: usize = SIDE_BY_SIDE;
    let width = queries.len() / scores.len();
    let mut row = 0;
    while row < scores.len() {
        let (queries, scores) = (&queries[row * width..], &mut scores[row..]);
        // Memory is asked for along with the first rows.
        let later = if row == 0 { &mut *later } else { &mut None };
        // As many sums as registers hold: on the widest vectors sixteen, on those of half the width eight of one half of the chains, elsewhere
        // four of several vectors.
        row += match N {
            1 => match scores.len() {
                4.. => block::<S, E, 4, 4, SIDE, 16, 1, N>(simd, keys, queries, scores, later),
                2.. => block::<S, E, 2, 8, SIDE, 16, 1, N>(simd, keys, queries, scores, later),
                _ => block::<S, E, 1, 16, SIDE, 16, 1, N>(simd, keys, queries, scores, later),
            },
            2 => match scores.len() {
                4.. => block::<S, E, 4, 2, 2, 8, 1, N>(simd, keys, queries, scores, later),
                2.. => block::<S, E, 2, 4, SIDE, 8, 1, N>(simd, keys, queries, scores, later),
                _ => block::<S, E, 1, 8, SIDE, 8, 2, N>(simd, keys, queries, scores, later),
            },
            _ => match scores.len() {
                4.. => block::<S, E, 4, 1, 1, 4, N, N>(simd, keys, queries, scores, later),
                _ => block::<S, E, 1, 4, SIDE, 4, N, N>(simd, keys, queries, scores, later),
            },
        };
    }
}

/// Of the first `ROWS` rows, with `TOKENS` tokens at a time, which are `SUMS` scores. `SIDE` of the tokens are read side by side, and meet
/// `WIDTH` of the vectors of chains, then the others: half of the chains at least. Returns the number of rows.
fn block<
    S: Simd,
    E: KvElement,
    const ROWS: usize,
    const TOKENS: usize,
    const SIDE: usize,
    const SUMS: usize,
    const WIDTH: usize,
    const N: usize,
>(
    simd: S,
    keys: &Keys<'_, E>,
    queries: &[f32],
    scores: &mut [[f32; TILE]],
    later: &mut Option<Later<'_, E>>,
) -> usize {
    outlined(
        simd,
        #[inline(always)]
        || {
            let (width, block) = (padded::<E>(keys.dim), CHAINS * E::PARTS);
            let whole = keys.dim / block * block;
            // Whole blocks, and what is left.
            let mut rows = [[&queries[..0]; 2]; ROWS];
            for r in 0..ROWS {
                rows[r] = queries[r * width..(r + 1) * width].split_at(whole).into();
            }
            // Several blocks where one is little work beside what is counted for it.
            let at_once = if WIDTH < N { MOST_PARTS / E::PARTS } else { 1 };
            for first in (0..keys.n_tokens).step_by(TOKENS) {
                let mut sums = [[S::f32s::splat(simd, 0.0); WIDTH]; SUMS];
                for side in 0..TOKENS / SIDE {
                    let tokens = keys.rows[first + side * SIDE..]
                        .first_chunk()
                        .expect("tiles are whole blocks");
                    for part in 0..N / WIDTH {
                        // Memory is asked for along with the first chains.
                        let later = if part == 0 { &mut *later } else { &mut None };
                        let own = chains::<S, E, ROWS, SIDE, WIDTH>(
                            simd,
                            &rows,
                            tokens,
                            keys.dim,
                            part * WIDTH,
                            at_once,
                            later,
                        );
                        for r in 0..ROWS {
                            for t in 0..SIDE {
                                for v in 0..WIDTH {
                                    let sum = &mut sums[r * TOKENS + side * SIDE + t][v];
                                    *sum =
                                        if part == 0 { own[r][t][v] } else { *sum + own[r][t][v] };
                                }
                            }
                        }
                    }
                    if first + (side + 1) * SIDE >= keys.n_tokens {
                        break;
                    }
                }
                let sums = sums_of::<S, SUMS, WIDTH>(sums);
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

/// The chains of some rows, which stand in whole blocks and a rest, and some tokens, in `WIDTH` vectors from number `vector` on, which are few
/// enough for registers: `at_once` blocks at a time.
#[inline(always)]
fn chains<S: Simd, E: KvElement, const ROWS: usize, const SIDE: usize, const WIDTH: usize>(
    simd: S,
    rows: &[[&[f32]; 2]; ROWS],
    tokens: &[&[E]; SIDE],
    dim: usize,
    vector: usize,
    at_once: usize,
    later: &mut Option<Later<'_, E>>,
) -> [[[S::f32s; WIDTH]; SIDE]; ROWS] {
    let block = CHAINS * E::PARTS;
    let n_blocks = dim / block;
    let whole = n_blocks * block;
    let mut of_tokens = [&tokens[0][..0]; SIDE];
    for t in 0..SIDE {
        of_tokens[t] = &tokens[t][..whole];
    }
    let mut sums = [[[S::f32s::splat(simd, 0.0); WIDTH]; SIDE]; ROWS];
    let mut i = 0;
    while i < n_blocks {
        // What does not fill all is taken one by one.
        let n = if i + at_once <= n_blocks { at_once } else { 1 };
        if let Some(later) = later {
            later.ask(SIDE * n * block * size_of::<E>());
        }
        let part = i * block..(i + n) * block;
        let mut of_rows = [&rows[0][0][..0]; ROWS];
        for r in 0..ROWS {
            of_rows[r] = &rows[r][0][part.clone()];
        }
        let mut of_part = [&tokens[0][..0]; SIDE];
        for t in 0..SIDE {
            of_part[t] = &of_tokens[t][part.clone()];
        }
        if n == at_once {
            for j in 0..at_once {
                add_block::<S, E, ROWS, SIDE, WIDTH>(
                    simd,
                    &of_rows,
                    &of_part,
                    j * block,
                    vector,
                    &mut sums,
                );
            }
        } else {
            add_block::<S, E, ROWS, SIDE, WIDTH>(simd, &of_rows, &of_part, 0, vector, &mut sums);
        }
        i += n;
    }
    if whole < dim {
        if let Some(later) = later {
            later.ask(SIDE * (dim - whole) * size_of::<E>());
        }
        let mut of_rows = [&rows[0][0][..0]; ROWS];
        for r in 0..ROWS {
            of_rows[r] = rows[r][1];
        }
        let mut tails = [[E::default(); CHAINS * MOST_PARTS]; SIDE];
        let mut of_tokens = [&[][..]; SIDE];
        for (t, tail) in tails.iter_mut().enumerate() {
            tail[..dim - whole].copy_from_slice(&tokens[t][whole..]);
            of_tokens[t] = &tail[..block];
        }
        add_block::<S, E, ROWS, SIDE, WIDTH>(simd, &of_rows, &of_tokens, 0, vector, &mut sums);
    }
    sums
}

/// A block of the chains in `WIDTH` vectors from number `vector` on, which stands in rows and tokens from `at` on.
#[inline(always)]
fn add_block<S: Simd, E: KvElement, const ROWS: usize, const SIDE: usize, const WIDTH: usize>(
    simd: S,
    rows: &[&[f32]; ROWS],
    tokens: &[&[E]; SIDE],
    at: usize,
    vector: usize,
    sums: &mut [[[S::f32s; WIDTH]; SIDE]; ROWS],
) {
    let lanes = S::f32s::LEN;
    let unit = lanes * E::PARTS;
    for v in 0..WIDTH {
        let mut keys = [[S::f32s::splat(simd, 0.0); MOST_PARTS]; SIDE];
        for t in 0..SIDE {
            let first = at + (vector + v) * unit;
            keys[t] = E::load(simd, &tokens[t][first..first + unit]);
        }
        for part in 0..E::PARTS {
            let first = at + part * CHAINS + (vector + v) * lanes;
            for r in 0..ROWS {
                let q = S::f32s::from_slice(simd, &rows[r][first..first + lanes]);
                for t in 0..SIDE {
                    sums[r][t][v] = q.mul_add(keys[t][part], sums[r][t][v]);
                }
            }
        }
    }
}

/// The sum of the lanes of each.
#[inline(always)]
fn sums_of<S: Simd, const SUMS: usize, const WIDTH: usize>(
    sums: [[S::f32s; WIDTH]; SUMS],
) -> [f32; SUMS] {
    let mut out = [0.0; SUMS];
    match (sums[0][0].token().level(), SUMS) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512(token), 16) => {
            let mut all = [f32x16::splat(token, 0.0); 16];
            for i in 0..16 {
                all[i] = same(token, sums[i][0]);
            }
            x86::sums_of_sixteen(token, all).store_slice(&mut out);
        }
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2(token), 8) => {
            let mut all = [f32x8::splat(token, 0.0); 8];
            for i in 0..8 {
                let mut sum = sums[i][0];
                for v in 1..WIDTH {
                    sum += sums[i][v];
                }
                all[i] = same(token, sum);
            }
            x86::sums_of_eight(token, all).store_slice(&mut out);
        }
        _ => {
            for i in 0..SUMS {
                out[i] = sum_of_chains::<S, WIDTH>(sums[i]);
            }
        }
    }
    out
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Avx2, Avx512, f32x8, f32x16, kernel, prelude::*};

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

    kernel!(
        /// Lane `i` is the sum of the lanes of vector `i`.
        #[inline(always)]
        pub(super) fn sums_of_eight(token: Avx2, v: [f32x8<Avx2>; 8]) -> f32x8<Avx2> {
            // As above, but for the last steps: a shuffle of both costs no more than a blend here.
            let fourths = |a: __m256, b: __m256| {
                let crossing = _mm256_permute2f128_ps::<0x21>(a, b);
                _mm256_add_ps(_mm256_blend_ps::<0xf0>(a, b), crossing)
            };
            let neighbors = |a: __m256, b: __m256| {
                _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b))
            };
            let of = |i: usize| fourths(v[i].into(), v[i + 4].into());
            neighbors(neighbors(of(0), of(1)), neighbors(of(2), of(3))).simd_into(token)
        }
    );
}
