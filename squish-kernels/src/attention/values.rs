//! The weighted values of a tile.

use fearless_simd::{Simd, prelude::*};

use super::{CHAINS, TILE, Tile};
use crate::{kv::KvElement, prefetch};

/// Multiplies the values of rows, at most [`ROWS_AT_ONCE`](super::ROWS_AT_ONCE), by their factors and adds those of the tile by their weights.
#[inline(always)]
pub(super) fn add_values<S: Simd, E: KvElement>(
    simd: S,
    tile: &Tile<'_, E>,
    visible: &[usize],
    factors: &[f32],
    weights: &[[f32; TILE]],
    out: &mut [f32],
) {
    let width = out.len() / visible.len();
    let Some(common) = visible.iter().copied().min() else { return };
    let tokens = 0..common;
    match visible.len() {
        4 => columns::<S, E, 4>(simd, tile, tokens, factors, weights, out),
        3 => columns::<S, E, 3>(simd, tile, tokens, factors, weights, out),
        2 => columns::<S, E, 2>(simd, tile, tokens, factors, weights, out),
        _ => columns::<S, E, 1>(simd, tile, tokens, factors, weights, out),
    }
    for (row, &visible) in visible.iter().enumerate() {
        if visible > common {
            let (weights, out) = (&weights[row..=row], &mut out[row * width..(row + 1) * width]);
            columns::<S, E, 1>(simd, tile, common..visible, &[1.0], weights, out);
        }
    }
}

/// All columns of `ROWS` rows for some tokens.
#[inline(always)]
fn columns<S: Simd, E: KvElement, const ROWS: usize>(
    simd: S,
    tile: &Tile<'_, E>,
    tokens: std::ops::Range<usize>,
    factors: &[f32],
    weights: &[[f32; TILE]],
    out: &mut [f32],
) {
    let (lanes, width) = (S::f32s::LEN, out.len() / ROWS);
    let value_dim = tile.values[0].len();
    let whole = value_dim / lanes * lanes;
    let mut column = 0;
    // Four vectors of columns at a time where there are registers for the sums.
    let at_once = if lanes == 16 { 4 } else { 2 };
    while column + at_once * lanes <= whole {
        if at_once == 4 {
            chains::<S, E, ROWS, 4>(simd, tile, &tokens, factors, weights, column, width, out);
        } else {
            chains::<S, E, ROWS, 2>(simd, tile, &tokens, factors, weights, column, width, out);
        }
        column += at_once * lanes;
    }
    while column < whole {
        chains::<S, E, ROWS, 1>(simd, tile, &tokens, factors, weights, column, width, out);
        column += lanes;
    }
    if whole < value_dim {
        let n = value_dim - whole;
        let mut ends = [[E::default(); CHAINS]; TILE];
        let mut rows = [&[][..]; TILE];
        for (end, values) in ends.iter_mut().zip(tile.values) {
            end[..n].copy_from_slice(&values[whole..]);
        }
        for (row, end) in rows.iter_mut().zip(&ends) {
            *row = &end[..lanes];
        }
        let ends = Tile { values: &rows[..tile.values.len()], ahead: [&[]; 2], ..*tile };
        let mut part = [[0.0; CHAINS]; ROWS];
        for row in 0..ROWS {
            part[row][..lanes].copy_from_slice(&out[row * width + whole..][..lanes]);
        }
        let part = part.as_flattened_mut();
        chains::<S, E, ROWS, 1>(simd, &ends, &tokens, factors, weights, 0, CHAINS, part);
        for row in 0..ROWS {
            out[row * width + whole..][..lanes].copy_from_slice(&part[row * CHAINS..][..lanes]);
        }
    }
}

/// `VECTORS` vectors of columns from `column` on, each a chain over the tokens.
#[inline(always)]
fn chains<S: Simd, E: KvElement, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    tile: &Tile<'_, E>,
    tokens: &std::ops::Range<usize>,
    factors: &[f32],
    weights: &[[f32; TILE]],
    column: usize,
    width: usize,
    out: &mut [f32],
) {
    let lanes = S::f32s::LEN;
    let mut sums = [[S::f32s::splat(simd, 0.0); VECTORS]; ROWS];
    for row in 0..ROWS {
        let factor = S::f32s::splat(simd, factors[row]);
        for v in 0..VECTORS {
            let at = row * width + column + v * lanes;
            sums[row][v] = S::f32s::from_slice(simd, &out[at..at + lanes]) * factor;
        }
    }
    let columns = column..column + VECTORS * lanes;
    for token in tokens.clone() {
        let values = &tile.values[token][columns.clone()];
        if let Some(ahead) = tile.ahead[1].get(token) {
            prefetch::lines(E::as_bytes(&ahead[columns.clone()]), 0);
        }
        let mut loaded = [S::f32s::splat(simd, 0.0); VECTORS];
        for v in 0..VECTORS {
            loaded[v] = E::load(simd, &values[v * lanes..(v + 1) * lanes]);
        }
        for row in 0..ROWS {
            let weight = S::f32s::splat(simd, weights[row][token]);
            for v in 0..VECTORS {
                sums[row][v] = loaded[v].mul_add(weight, sums[row][v]);
            }
        }
    }
    for row in 0..ROWS {
        for v in 0..VECTORS {
            let at = row * width + column + v * lanes;
            sums[row][v].store_slice(&mut out[at..at + lanes]);
        }
    }
}
