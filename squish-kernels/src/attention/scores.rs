//! The scores of rows for a tile.

#[cfg(target_arch = "x86_64")]
use fearless_simd::{Level, f32x16};
use fearless_simd::{Simd, prelude::*};

use super::{CHAINS, TILE, Tile, sum_of_chains};
#[cfg(target_arch = "x86_64")]
use crate::bytes::same;
use crate::{kv::KvElement, prefetch};

/// The scores of all rows for all tokens, without scales.
#[inline(always)]
pub(super) fn scores_into<S: Simd, E: KvElement, const N: usize>(
    simd: S,
    tile: &Tile<'_, E>,
    queries: &[f32],
    scores: &mut [[f32; TILE]],
) {
    let width = queries.len() / scores.len();
    let mut row = 0;
    while row < scores.len() {
        // Memory is asked for along with the first rows.
        let ahead = if row == 0 { tile.ahead[0] } else { &[] };
        let (queries, scores) = (&queries[row * width..], &mut scores[row..]);
        // As many sums as registers hold: on the widest vectors sixteen, elsewhere four of several vectors.
        row += match (scores.len(), N) {
            (4.., 1) => block::<S, E, 4, 4, 16, N>(simd, tile.keys, ahead, queries, scores),
            (2.., 1) => block::<S, E, 2, 8, 16, N>(simd, tile.keys, ahead, queries, scores),
            (_, 1) => block::<S, E, 1, 16, 16, N>(simd, tile.keys, ahead, queries, scores),
            (4.., _) => block::<S, E, 4, 1, 4, N>(simd, tile.keys, ahead, queries, scores),
            (2.., _) => block::<S, E, 2, 2, 4, N>(simd, tile.keys, ahead, queries, scores),
            (..) => block::<S, E, 1, 4, 4, N>(simd, tile.keys, ahead, queries, scores),
        };
    }
}

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
    keys: &[&[E]],
    ahead: &[&[E]],
    queries: &[f32],
    scores: &mut [[f32; TILE]],
) -> usize {
    let (lanes, key_dim) = (S::f32s::LEN, keys[0].len());
    let (width, whole) = (key_dim.next_multiple_of(CHAINS), key_dim / CHAINS * CHAINS);
    let mut rows = [&queries[..0]; ROWS];
    for r in 0..ROWS {
        rows[r] = &queries[r * width..(r + 1) * width];
    }
    for first in (0..keys.len()).step_by(TOKENS) {
        // The last tokens stand for those that are not there.
        let mut tokens = [keys[0]; TOKENS];
        for t in 0..TOKENS {
            tokens[t] = keys[(first + t).min(keys.len() - 1)];
        }
        for row in ahead.iter().skip(first).take(TOKENS) {
            prefetch::lines(E::as_bytes(row), 0);
        }
        let mut sums = [[S::f32s::splat(simd, 0.0); N]; SUMS];
        for at in (0..whole).step_by(CHAINS) {
            for v in 0..N {
                let at = at + v * lanes..at + (v + 1) * lanes;
                step::<S, E, ROWS, TOKENS, SUMS, N>(simd, &rows, &tokens, at, v, &mut sums);
            }
        }
        if whole < key_dim {
            let mut tails = [[E::default(); CHAINS]; TOKENS];
            for t in 0..TOKENS {
                tails[t][..key_dim - whole].copy_from_slice(&tokens[t][whole..]);
            }
            let (mut ends, mut tail_rows) = ([&tails[0][..]; TOKENS], rows);
            for t in 0..TOKENS {
                ends[t] = &tails[t];
            }
            for r in 0..ROWS {
                tail_rows[r] = &rows[r][whole..];
            }
            for v in 0..N {
                let at = v * lanes..(v + 1) * lanes;
                step::<S, E, ROWS, TOKENS, SUMS, N>(simd, &tail_rows, &ends, at, v, &mut sums);
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

/// One vector of each row and token, into vector `v` of their sums.
#[inline(always)]
fn step<
    S: Simd,
    E: KvElement,
    const ROWS: usize,
    const TOKENS: usize,
    const SUMS: usize,
    const N: usize,
>(
    simd: S,
    rows: &[&[f32]; ROWS],
    tokens: &[&[E]; TOKENS],
    at: std::ops::Range<usize>,
    v: usize,
    sums: &mut [[S::f32s; N]; SUMS],
) {
    let mut q = [S::f32s::splat(simd, 0.0); ROWS];
    for r in 0..ROWS {
        q[r] = S::f32s::from_slice(simd, &rows[r][at.clone()]);
    }
    for t in 0..TOKENS {
        let k = E::load(simd, &tokens[t][at.clone()]);
        for r in 0..ROWS {
            let sum = &mut sums[r * TOKENS + t][v];
            *sum = q[r].mul_add(k, *sum);
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
            // Halves: the sums of a, then those of b.
            let halves = |a: __m512, b: __m512| {
                let low = _mm512_shuffle_f32x4::<0x44>(a, b);
                _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xee>(a, b))
            };
            // Quarters: those of both of a, then those of both of b.
            let quarters = |a: __m512, b: __m512| {
                let even = _mm512_shuffle_f32x4::<0x88>(a, b);
                _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(a, b))
            };
            // Neighbors of a and b, in each quarter.
            let neighbors = |a: __m512, b: __m512| {
                let even = _mm512_shuffle_ps::<0x88>(a, b);
                _mm512_add_ps(even, _mm512_shuffle_ps::<0xdd>(a, b))
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
            let p = quarters(halves(v[0], v[4]), halves(v[8], v[12]));
            let q = quarters(halves(v[1], v[5]), halves(v[9], v[13]));
            let r = quarters(halves(v[2], v[6]), halves(v[10], v[14]));
            let s = quarters(halves(v[3], v[7]), halves(v[11], v[15]));
            neighbors(neighbors(p, q), neighbors(r, s)).simd_into(token)
        }
    );
}
