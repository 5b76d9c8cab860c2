//! The weighted values of a tile.

use fearless_simd::{Simd, prelude::*};

use super::{
    CHAINS, TILE,
    tile::{Later, REQUEST},
};
use crate::{
    isa::outlined,
    kv::{KvElement, MOST_PARTS},
};

/// Multiplies the values of rows, at most [`ROWS_AT_ONCE`](super::ROWS_AT_ONCE), by their factors and adds those of the tile by their weights.
#[inline(always)]
pub(super) fn add_values<S: Simd, E: KvElement, const N: usize>(
    simd: S,
    rows: &[&[E]; TILE],
    dim: usize,
    visible: &[usize],
    factors: &[f32],
    weights: &[[f32; TILE]],
    out: &mut [f32],
    later: &mut Option<Later<'_, E>>,
) {
    let width = out.len() / visible.len();
    let mut row = 0;
    while row < visible.len() {
        let n_tokens = visible[row];
        let values = Values { rows: &rows[..n_tokens], dim };
        // Memory is asked for along with the first rows.
        let later = if row == 0 { &mut *later } else { &mut None };
        let (factors, weights) = (&factors[row..], &weights[row..]);
        let out = &mut out[row * width..];
        // Only rows that see the same tokens are taken together.
        row += match visible[row..].iter().take_while(|&&n| n == n_tokens).count() {
            4.. if const { most_rows(E::PARTS, N) == 4 } => {
                columns::<S, E, 4, N>(simd, &values, factors, weights, &mut out[..4 * width], later)
            }
            2.. => {
                columns::<S, E, 2, N>(simd, &values, factors, weights, &mut out[..2 * width], later)
            }
            _ => columns::<S, E, 1, N>(simd, &values, factors, weights, &mut out[..width], later),
        };
    }
}

/// The values of some tokens.
struct Values<'a, E> {
    rows: &'a [&'a [E]],
    dim: usize,
}

/// Rows at a time: on vectors of half the width, registers hold no sums of four rows for loads that give four vectors.
const fn most_rows(n_parts: usize, n: usize) -> usize {
    match (n, n_parts) {
        (2, 4) => 2,
        _ => 4,
    }
}

/// Vectors of columns at a time: as many as there are registers for their sums. A row alone has short work with each load.
const fn at_once(n_rows: usize, n: usize) -> usize {
    match (n, n_rows) {
        (1 | 2, 1) => 8,
        (1, _) | (2, 2) | (_, 1) => 4,
        (2, _) => 2,
        _ => 1,
    }
}

/// Tokens whose columns, of so many bytes, are few requests: at least two.
const fn tokens_of_request(n_bytes: usize) -> usize {
    if n_bytes < REQUEST / 2 { REQUEST / n_bytes } else { 2 }
}

/// All columns of `ROWS` rows. Returns their number.
#[inline(always)]
fn columns<S: Simd, E: KvElement, const ROWS: usize, const N: usize>(
    simd: S,
    values: &Values<'_, E>,
    factors: &[f32],
    weights: &[[f32; TILE]],
    out: &mut [f32],
    later: &mut Option<Later<'_, E>>,
) -> usize {
    let unit = S::f32s::LEN * E::PARTS;
    let (n_units, mut first) = (values.dim.div_ceil(unit), 0);
    while first < n_units {
        let n_whole = values.dim / unit - first.min(values.dim / unit);
        first += match const { at_once(ROWS, N) / E::PARTS } {
            8 if n_whole >= 8 => {
                sums::<S, E, ROWS, 8, N>(simd, values, factors, weights, first, out, later)
            }
            4 | 8 if n_whole >= 4 => {
                sums::<S, E, ROWS, 4, N>(simd, values, factors, weights, first, out, later)
            }
            2 | 4 | 8 if n_whole >= 2 => {
                sums::<S, E, ROWS, 2, N>(simd, values, factors, weights, first, out, later)
            }
            _ => sums::<S, E, ROWS, 1, N>(simd, values, factors, weights, first, out, later),
        };
    }
    ROWS
}

/// `UNITS` loads of columns of each token, from load number `first` on: a chain for each column over the tokens. Returns the number of
/// loads.
fn sums<S: Simd, E: KvElement, const ROWS: usize, const UNITS: usize, const N: usize>(
    simd: S,
    values: &Values<'_, E>,
    factors: &[f32],
    weights: &[[f32; TILE]],
    first: usize,
    out: &mut [f32],
    later: &mut Option<Later<'_, E>>,
) -> usize {
    outlined(
        simd,
        #[inline(always)]
        || {
            let (lanes, width) = (S::f32s::LEN, out.len() / ROWS);
            let place = |row: usize, unit: usize, part: usize| {
                let unit = first + unit;
                let at = row * width + (unit / N * E::PARTS + part) * CHAINS + unit % N * lanes;
                at..at + lanes
            };
            let mut sums = [[[S::f32s::splat(simd, 0.0); MOST_PARTS]; UNITS]; ROWS];
            for row in 0..ROWS {
                let factor = S::f32s::splat(simd, factors[row]);
                for unit in 0..UNITS {
                    for part in 0..E::PARTS {
                        let so_far = S::f32s::from_slice(simd, &out[place(row, unit, part)]);
                        sums[row][unit][part] = so_far * factor;
                    }
                }
            }
            let n_tokens = values.rows.len();
            let mut of_rows = [&weights[0][..]; ROWS];
            for row in 0..ROWS {
                of_rows[row] = &weights[row][..n_tokens];
            }
            let unit_len = lanes * E::PARTS;
            let (from, n) = (first * unit_len, UNITS * unit_len);
            let mut end = [E::default(); CHAINS * MOST_PARTS];
            let for_tokens =
                const { tokens_of_request(UNITS * S::f32s::LEN * E::PARTS * size_of::<E>()) };
            for token in 0..n_tokens {
                if token % for_tokens == 0
                    && let Some(later) = later
                {
                    later.ask(for_tokens * n * size_of::<E>());
                }
                let row = values.rows[token];
                let columns = if UNITS > 1 || from + n <= row.len() {
                    &row[from..from + n]
                } else {
                    end[..row.len() - from].copy_from_slice(&row[from..]);
                    &end[..n]
                };
                for unit in 0..UNITS {
                    let loaded = E::load(simd, &columns[unit * unit_len..(unit + 1) * unit_len]);
                    for row in 0..ROWS {
                        let weight = S::f32s::splat(simd, of_rows[row][token]);
                        for part in 0..E::PARTS {
                            let sum = &mut sums[row][unit][part];
                            *sum = loaded[part].mul_add(weight, *sum);
                        }
                    }
                }
            }
            for row in 0..ROWS {
                for unit in 0..UNITS {
                    for part in 0..E::PARTS {
                        sums[row][unit][part].store_slice(&mut out[place(row, unit, part)]);
                    }
                }
            }
        },
    );
    UNITS
}
