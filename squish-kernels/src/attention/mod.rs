//! Attention of a few query rows to one tile of keys and values.
//!
//! A row's state is `m`, the largest score so far, `l`, the sum of the weights, and `o`, the sum of the weighted values. A tile of up to
//! [`TILE`] tokens changes it to
//!
//! ```text
//! s[j] = Σ q[e] · k[j][e]                     16 chains of fused multiply-adds, then their sum
//! s[j] = cap · tanh(s[j] · ks[j] / cap)       where there are scales and a cap
//! s[j] = fma(slope, position[j] - own, s[j])  where there is ALiBi
//! m'   = max(m, max s)
//! p[j] = e^(s[j] - m'),  a = e^(m - m')
//! l    = a · l + Σ p                          16 chains, token j to chain j mod 16
//! o    = a · o + Σ p[j] · vs[j] · v[j]        one chain for each column, tokens in order
//! ```
//!
//! (T. Dao: FlashAttention-2, 2023, section 3.1.) The sum of 16 chains adds chain `i` and `i + 8`, then `i` and `i + 4`, then neighbors,
//! twice. Which chain an element `e` of a score belongs to is a matter of the type: `f32`, `f16` and `i8` have chain `e mod 16`. Of `bf16`, pairs
//! are loaded at once, and 32 elements go to the chains `e / 2`. Of floats of eight bits, 64 elements `16 j + 8 h + 2 i + o` go to the chains
//! `4 j + i`. Queries and states stand in the order in which elements are loaded, [`place`]: block after block of 16, 32 or 64, the first
//! element of each chain, then the second of each, and so on.
//!
//! Nothing depends on how many rows are computed together, or on where rows lie: a row's state has the same bits in every company.
//! The levels differ in `fma` alone, which rounds once, but twice at the scalar level and SSE4.2. Tokens that a row does not see are left
//! out, and not multiplied by zero.

mod scores;
mod tile;
mod values;
mod weights;

use fearless_simd::{Simd, prelude::*};

use half::{bf16, f16};

use crate::{
    Isa,
    element::{E4M3, E5M2},
    exp::exp_normal_lanes,
    isa::{dispatch, outlined},
    kv::{KvElement, sealed},
};

use scores::Keys;
use tile::Kind;
pub use tile::{Part, Tile};

/// Most tokens of a tile.
pub const TILE: usize = 64;

/// Chains of a score and of a sum of weights.
pub const CHAINS: usize = 16;

/// Width of queries and states for rows of `dim` numbers: whole blocks of one, two or four numbers a chain.
#[must_use]
#[inline]
pub fn padded<E: KvElement>(dim: usize) -> usize {
    dim.next_multiple_of(CHAINS * E::PARTS)
}

/// Where number `e` of a row stands in a query or a state.
#[must_use]
#[inline]
pub fn place<E: KvElement>(e: usize) -> usize {
    E::place(e)
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
    /// `[rows, width]`, times the scale, where the width is that of keys, [`padded`] with zeros, and numbers stand in their [`place`].
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
    /// `o`, `[rows, width]`, where the width is that of values, [`padded`], and numbers stand in their [`place`]: 0 before the first tile.
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
    E::attend(isa, tile, queries, states, scores);
}

/// Writes the scores of all rows for the tokens of a tile, of which [`attend`] makes weights, to `scores`, `[rows][TILE]`: negative
/// infinity for tokens that a row does not see, and past the last one.
///
/// Without scales, cap and ALiBi they are products of rows, with the same bits whichever of two rows is the query: of `f32` that share
/// their width, say, for the similarities of vectors among themselves.
///
/// # Panics
///
/// If lengths do not fit each other.
pub fn scores_into<E: KvElement>(
    isa: Isa,
    tile: &Tile<'_, E>,
    queries: &Queries<'_>,
    scores: &mut [[f32; TILE]],
) {
    E::scores_into(isa, tile, queries, scores);
}

/// Compiles [`attend`] and [`scores_into`] here, once, and not wherever they are called.
macro_rules! attend {
    ($($type:ty),*) => {$(
        impl sealed::Attend for $type {
            fn attend(
                isa: Isa,
                tile: &Tile<'_, Self>,
                queries: &Queries<'_>,
                states: &mut States<'_>,
                scores: &mut [[f32; TILE]],
            ) {
                on_level(isa, tile, queries, states, scores);
            }

            fn scores_into(
                isa: Isa,
                tile: &Tile<'_, Self>,
                queries: &Queries<'_>,
                scores: &mut [[f32; TILE]],
            ) {
                scores_on_level(isa, tile, queries, scores);
            }
        }
    )*};
}
attend!(f32, bf16, f16, i8, E4M3, E5M2);

#[inline(always)]
fn on_level<E: KvElement>(
    isa: Isa,
    tile: &Tile<'_, E>,
    queries: &Queries<'_>,
    states: &mut States<'_>,
    scores: &mut [[f32; TILE]],
) {
    let (n_rows, n_tokens) = (queries.visible.len(), tile.n_tokens());
    assert!(n_tokens <= TILE && tile.is_whole(), "attend: {n_tokens} tokens");
    assert!(queries.visible.iter().all(|&n| n <= n_tokens), "attend: tokens that are visible");
    assert!(states.maxima.len() == n_rows && states.sums.len() == n_rows, "attend: states");
    assert!(queries.alibi.is_none_or(|alibi| alibi.len() == n_rows), "attend: ALiBi");
    assert!(scores.len() >= n_rows, "attend: room for scores");
    if n_rows == 0 || n_tokens == 0 {
        return;
    }
    let widths = tile.dims.map(padded::<E>);
    assert_eq!(queries.rows.len(), n_rows * widths[0], "attend: width of queries");
    assert_eq!(states.values.len(), n_rows * widths[1], "attend: width of states");
    let scores = &mut scores[..n_rows];
    dispatch!(isa.token(), simd => match lanes(simd) {
        16 => run::<_, E, 1>(simd, tile, queries, states, scores),
        8 => run::<_, E, 2>(simd, tile, queries, states, scores),
        _ => run::<_, E, 4>(simd, tile, queries, states, scores),
    });
}

#[inline(always)]
fn scores_on_level<E: KvElement>(
    isa: Isa,
    tile: &Tile<'_, E>,
    queries: &Queries<'_>,
    scores: &mut [[f32; TILE]],
) {
    let (n_rows, n_tokens) = (queries.visible.len(), tile.n_tokens());
    assert!(n_tokens <= TILE && tile.is_whole(), "scores: {n_tokens} tokens");
    assert!(queries.visible.iter().all(|&n| n <= n_tokens), "scores: tokens that are visible");
    assert!(queries.alibi.is_none_or(|alibi| alibi.len() == n_rows), "scores: ALiBi");
    assert_eq!(scores.len(), n_rows, "scores: rows");
    let width = padded::<E>(tile.dims[0]);
    assert_eq!(queries.rows.len(), n_rows * width, "scores: width of queries");
    if n_rows == 0 {
        return;
    }
    if n_tokens == 0 {
        return scores.fill([f32::NEG_INFINITY; TILE]);
    }
    dispatch!(isa.token(), simd => match lanes(simd) {
        16 => run_scores::<_, E, 1>(simd, tile, queries, scores),
        8 => run_scores::<_, E, 2>(simd, tile, queries, scores),
        _ => run_scores::<_, E, 4>(simd, tile, queries, scores),
    });
}

#[inline(always)]
fn run_scores<S: Simd, E: KvElement, const N: usize>(
    simd: S,
    tile: &Tile<'_, E>,
    queries: &Queries<'_>,
    scores: &mut [[f32; TILE]],
) {
    let mut rows = [&[][..]; TILE];
    tile.rows_into(Kind::Keys, &mut rows);
    let keys = Keys { rows: &rows, n_tokens: tile.n_tokens(), dim: tile.dims[0] };
    scores::scores_into::<S, E, N>(simd, &keys, queries.rows, scores, &mut None);
    for (row, scores) in scores.iter_mut().enumerate() {
        weights::adjust(simd, tile, queries, row, scores);
        scores[queries.visible[row]..].fill(f32::NEG_INFINITY);
    }
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
    let (n_tokens, [key_dim, value_dim]) = (tile.n_tokens(), tile.dims);
    let mut rows = [&[][..]; TILE];
    tile.rows_into(Kind::Keys, &mut rows);
    let keys = Keys { rows: &rows, n_tokens, dim: key_dim };
    let mut later = tile.ahead.map(|next_tile| tile.later(next_tile));
    scores::scores_into::<S, E, N>(simd, &keys, queries.rows, scores, &mut later);
    tile.rows_into(Kind::Values, &mut rows);
    let width = states.values.len() / scores.len();
    for first in (0..scores.len()).step_by(ROWS_AT_ONCE) {
        let end = scores.len().min(first + ROWS_AT_ONCE);
        // Memory is asked for along with the first rows.
        let later = if first == 0 { &mut later } else { &mut None };
        let factors = outlined(
            simd,
            #[inline(always)]
            || {
                weights::weigh::<S, E, N>(
                    simd,
                    tile,
                    queries,
                    first,
                    &mut scores[first..end],
                    &mut states.maxima[first..end],
                    &mut states.sums[first..end],
                )
            },
        );
        values::add_values::<S, E, N>(
            simd,
            &rows,
            value_dim,
            &queries.visible[first..end],
            &factors[..end - first],
            &scores[first..end],
            &mut states.values[first * width..end * width],
            later,
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
