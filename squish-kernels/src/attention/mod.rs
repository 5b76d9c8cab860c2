//! Attention of a few query rows to one tile of keys and values.
//!
//! A row's state is `m`, the largest score so far, `l`, the sum of the weights, and `o`, the sum of the weighted values. A tile of up to
//! [`TILE`] tokens changes it to
//!
//! ```text
//! s[j] = Σ q[e] · k[j][e]                     16 chains of fused multiply-adds, element e to chain e mod 16, then their sum
//! s[j] = cap · tanh(s[j] · ks[j] / cap)       where there are scales and a cap
//! s[j] = fma(slope, position[j] - own, s[j])  where there is ALiBi
//! m'   = max(m, max s)
//! p[j] = e^(s[j] - m'),  a = e^(m - m')
//! l    = a · l + Σ p                          16 chains, token j to chain j mod 16
//! o    = a · o + Σ p[j] · vs[j] · v[j]        one chain for each column, tokens in order
//! ```
//!
//! (T. Dao: FlashAttention-2, 2023, section 3.1.) The sum of 16 chains adds chain `i` and `i + 8`, then `i` and `i + 4`, then neighbors,
//! twice. Nothing depends on how many rows are computed together, or on where rows lie: a row's state has the same bits in every company.
//! The levels differ in `fma` alone, which rounds once, but twice at the scalar level and SSE4.2. Tokens that a row does not see are left
//! out, and not multiplied by zero.

mod scores;
mod values;
mod weights;

use fearless_simd::{Simd, prelude::*};

use crate::{Isa, exp::exp_normal_lanes, isa::dispatch, kv::KvElement};

/// Most tokens of a tile.
pub const TILE: usize = 64;

/// Chains of a score and of a sum of weights: queries and states are padded with zeros to a multiple of these.
pub const CHAINS: usize = 16;

/// Tokens that are attended to together.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a, E> {
    /// The row of keys of each token, at most [`TILE`].
    pub keys: &'a [&'a [E]],
    /// The row of values of each token.
    pub values: &'a [&'a [E]],
    /// What the keys of each token are multiplied by.
    pub key_scales: Option<&'a [f32; TILE]>,
    /// What the values of each token are multiplied by.
    pub value_scales: Option<&'a [f32; TILE]>,
    /// Position of each token, for ALiBi.
    pub positions: &'a [f32; TILE],
    /// Rows of keys and values that the next call reads, to ask memory for; or none.
    pub ahead: [&'a [&'a [E]]; 2],
}

/// ALiBi: a row's score of a token changes by `slope` times the distance of their positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alibi {
    /// Of the row's head.
    pub slope: f32,
    /// Position of the row.
    pub position: f32,
}

/// Query rows that attend to a tile.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[rows, width]`, times the scale, where the width is that of keys, padded to a multiple of [`CHAINS`] with zeros.
    pub rows: &'a [f32],
    /// How many tokens of the tile each row sees, the first ones.
    pub visible: &'a [usize],
    /// Scores are squashed to this on both sides.
    pub softcap: Option<f32>,
    /// ALiBi of each row, if there is.
    pub alibi: Option<&'a [Alibi]>,
}

/// States of rows.
#[derive(Debug)]
pub struct States<'a> {
    /// `m` of each row: negative infinity before the first tile.
    pub maxima: &'a mut [f32],
    /// `l` of each row: 0 before the first tile.
    pub sums: &'a mut [f32],
    /// `o`, `[rows, width]`, where the width is that of values, padded to a multiple of [`CHAINS`]: 0 before the first tile.
    pub values: &'a mut [f32],
}

/// Changes the states of all rows by a tile. `scores` is room for `[rows][TILE]`.
///
/// # Panics
///
/// If lengths do not fit each other.
pub fn attend<E: KvElement>(
    isa: Isa,
    tile: &Tile<'_, E>,
    queries: &Queries<'_>,
    states: &mut States<'_>,
    scores: &mut [[f32; TILE]],
) {
    let (n_rows, n_tokens) = (queries.visible.len(), tile.keys.len());
    assert!(n_tokens <= TILE && tile.values.len() == n_tokens, "attend: {n_tokens} tokens");
    assert!(queries.visible.iter().all(|&n| n <= n_tokens), "attend: tokens that are visible");
    assert!(states.maxima.len() == n_rows && states.sums.len() == n_rows, "attend: states");
    assert!(queries.alibi.is_none_or(|alibi| alibi.len() == n_rows), "attend: ALiBi");
    assert!(scores.len() >= n_rows, "attend: room for scores");
    if n_rows == 0 || n_tokens == 0 {
        return;
    }
    let (key_dim, value_dim) = (tile.keys[0].len(), tile.values[0].len());
    let widths = [key_dim, value_dim].map(|dim| dim.next_multiple_of(CHAINS));
    assert_eq!(queries.rows.len(), n_rows * widths[0], "attend: width of queries");
    assert_eq!(states.values.len(), n_rows * widths[1], "attend: width of states");
    let scores = &mut scores[..n_rows];
    dispatch!(isa.token(), simd => match lanes(simd) {
        16 => run::<_, E, 1>(simd, tile, queries, states, scores),
        8 => run::<_, E, 2>(simd, tile, queries, states, scores),
        _ => run::<_, E, 4>(simd, tile, queries, states, scores),
    });
}

/// `N` is the number of vectors of [`CHAINS`] lanes.
#[inline(always)]
fn run<S: Simd, E: KvElement, const N: usize>(
    simd: S,
    tile: &Tile<'_, E>,
    queries: &Queries<'_>,
    states: &mut States<'_>,
    scores: &mut [[f32; TILE]],
) {
    scores::scores_into::<S, E, N>(simd, tile, queries.rows, scores);
    let mut factors = [0.0; ROWS_AT_ONCE];
    let width = states.values.len() / scores.len();
    for first in (0..scores.len()).step_by(ROWS_AT_ONCE) {
        // Memory is asked for along with the first rows.
        let ahead = if first == 0 { tile.ahead } else { [&[][..]; 2] };
        let of_values = Tile { ahead, ..*tile };
        let end = scores.len().min(first + ROWS_AT_ONCE);
        for row in first..end {
            factors[row - first] = weights::weigh::<S, E, N>(
                simd,
                tile,
                queries,
                row,
                &mut scores[row],
                &mut states.maxima[row],
                &mut states.sums[row],
            );
        }
        values::add_values::<S, E>(
            simd,
            &of_values,
            &queries.visible[first..end],
            &factors[..end - first],
            &scores[first..end],
            &mut states.values[first * width..end * width],
        );
    }
}

/// Rows whose weights meet a load of values together.
const ROWS_AT_ONCE: usize = 4;

/// The sum of [`CHAINS`] chains.
#[inline(always)]
fn sum_of_chains<S: Simd, const N: usize>(chains: [S::f32s; N]) -> f32 {
    let lanes = S::f32s::LEN;
    let mut all = [0.0; CHAINS];
    for v in 0..N {
        chains[v].store_slice(&mut all[v * lanes..(v + 1) * lanes]);
    }
    let mut half = CHAINS / 2;
    while half >= 4 {
        for i in 0..half {
            all[i] += all[i + half];
        }
        half /= 2;
    }
    (all[0] + all[1]) + (all[2] + all[3])
}

fn lanes<S: Simd>(_: S) -> usize {
    S::f32s::LEN
}

/// `e^d` for `d` at most 0, as [`attend`] has it: 0 below the smallest normal number.
#[must_use]
pub fn exp_normal<const N: usize>(isa: Isa, d: [f32; N]) -> [f32; N] {
    dispatch!(isa.token(), simd => d.map(
        #[inline(always)]
        |d| exp_normal_lanes(simd, SimdBase::splat(simd, d)).as_slice()[0],
    ))
}

#[cfg(test)]
mod tests;
