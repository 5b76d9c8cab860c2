//! The weighted values of a tile.

use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use super::{
    CHAINS, TILE, Tile,
    tile::{Cursor, Kind, Later, fetch},
};
use crate::kv::{KvElement, MOST_PARTS};

/// Multiplies the values of rows, at most [`ROWS_AT_ONCE`](super::ROWS_AT_ONCE), by their factors and adds those of the tile by their weights.
#[inline(always)]
pub(super) fn add_values<S: Simd, E: KvElement, const N: usize>(
    simd: S,
    tile: &Tile<'_, E>,
    visible: &[usize],
    factors: &[f32],
    weights: &[[f32; TILE]],
    out: &mut [f32],
) {
    let width = out.len() / visible.len();
    let Some(common) = visible.iter().copied().min() else { return };
    let (rows, later) = (tile.rows(Kind::Values), tile.later_rows(Kind::Values));
    let values = Values { rows, later, dim: tile.dims[1], tokens: 0..common };
    let mut row = 0;
    while row < visible.len() {
        let (factors, weights) = (&factors[row..], &weights[row..]);
        let out = &mut out[row * width..];
        row += match visible.len() - row {
            4.. => columns::<S, E, 4, N>(simd, &values, factors, weights, &mut out[..4 * width]),
            2.. => columns::<S, E, 2, N>(simd, &values, factors, weights, &mut out[..2 * width]),
            _ => columns::<S, E, 1, N>(simd, &values, factors, weights, &mut out[..width]),
        };
    }
    for (row, &visible) in visible.iter().enumerate() {
        if visible > common {
            let mut rows = tile.rows(Kind::Values);
            rows.skip(common);
            let values = Values { rows, later: None, tokens: common..visible, ..values };
            let (weights, out) = (&weights[row..=row], &mut out[row * width..(row + 1) * width]);
            columns::<S, E, 1, N>(simd, &values, &[1.0], weights, out);
        }
    }
}

/// The values of some tokens.
struct Values<'a, E> {
    rows: Cursor<'a, E>,
    later: Option<Later<'a, E>>,
    dim: usize,
    tokens: Range<usize>,
}

/// Sums that registers hold on the widest vectors, beside what they are made of.
const MOST_SUMS: usize = 16;

/// All columns of `ROWS` rows. Returns their number.
#[inline(always)]
fn columns<S: Simd, E: KvElement, const ROWS: usize, const N: usize>(
    simd: S,
    values: &Values<'_, E>,
    factors: &[f32],
    weights: &[[f32; TILE]],
    out: &mut [f32],
) -> usize {
    let unit = S::f32s::LEN * E::PARTS;
    let (n_units, mut first) = (values.dim.div_ceil(unit), 0);
    while first < n_units {
        let n_left = values.dim / unit - first.min(values.dim / unit);
        // As many vectors of sums as there are registers for; a row alone has short work with each load.
        first += match (MOST_SUMS / N / ROWS).min(8) / E::PARTS {
            8 if n_left >= 8 => {
                sums::<S, E, ROWS, 8, N>(simd, values, factors, weights, first, out)
            }
            4 | 8 if n_left >= 4 => {
                sums::<S, E, ROWS, 4, N>(simd, values, factors, weights, first, out)
            }
            2 | 4 if n_left >= 2 => {
                sums::<S, E, ROWS, 2, N>(simd, values, factors, weights, first, out)
            }
            _ => sums::<S, E, ROWS, 1, N>(simd, values, factors, weights, first, out),
        };
    }
    ROWS
}

/// `UNITS` loads of columns of each token, from load number `first` on: a chain for each column over the tokens. Returns the number of
/// loads.
#[inline(always)]
fn sums<S: Simd, E: KvElement, const ROWS: usize, const UNITS: usize, const N: usize>(
    simd: S,
    values: &Values<'_, E>,
    factors: &[f32],
    weights: &[[f32; TILE]],
    first: usize,
    out: &mut [f32],
) -> usize {
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
    let mut of_rows = [&weights[0][..]; ROWS];
    for row in 0..ROWS {
        of_rows[row] = &weights[row][values.tokens.clone()];
    }
    let unit_len = lanes * E::PARTS;
    let (from, n) = (first * unit_len, UNITS * unit_len);
    let (mut rows, mut later) = (values.rows, values.later);
    let mut end = [E::default(); CHAINS * MOST_PARTS];
    for token in 0..values.tokens.len() {
        if let Some(later) = &mut later {
            fetch(later.next(), from, n);
        }
        let Some(row) = rows.next() else { break };
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
    UNITS
}
