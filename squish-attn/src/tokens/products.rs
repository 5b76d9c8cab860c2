//! Products of rows with all tokens, a strip of rows at a time.

use std::ops::Range;

use arrayvec::ArrayVec;
use ndarray::{ArrayView2, Axis};
use squish_kernels::{
    Isa,
    attention::{Part, Queries, TILE, Tile, padded, scores_into},
};

use crate::rows::contiguous;

/// Rows that meet a tile of tokens together: of a thousand numbers each, both fit the second-level cache.
pub(super) const STRIP: usize = 64;

/// Room for a strip.
#[derive(Debug, Default)]
pub(super) struct Products {
    rows: Vec<f32>,
    scores: Vec<[f32; TILE]>,
    /// Products of a strip of rows with all tokens.
    strip: Vec<f32>,
}

/// Some rows of a matrix, which are contiguous.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowsOf<'a> {
    pub(super) matrix: ArrayView2<'a, f32>,
    pub(super) named: Named<'a>,
}

/// Which rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Named<'a> {
    /// From `first` on, one of `step`.
    Every { first: usize, step: usize },
    /// Those at these indices.
    At(&'a [u32]),
}

impl<'a> RowsOf<'a> {
    /// All rows.
    pub(super) const fn all(matrix: ArrayView2<'a, f32>) -> Self {
        Self { matrix, named: Named::Every { first: 0, step: 1 } }
    }

    /// The rows at these indices.
    pub(super) const fn at(matrix: ArrayView2<'a, f32>, indices: &'a [u32]) -> Self {
        Self { matrix, named: Named::At(indices) }
    }

    fn len(self) -> usize {
        match self.named {
            Named::Every { first, step } => {
                self.matrix.nrows().saturating_sub(first).div_ceil(step)
            }
            Named::At(indices) => indices.len(),
        }
    }

    fn row(self, i: usize) -> &'a [f32] {
        let index = match self.named {
            Named::Every { first, step } => first + i * step,
            Named::At(indices) => indices[i] as usize,
        };
        contiguous(self.matrix.index_axis_move(Axis(0), index))
    }

    /// Some rows as one slice, if they lie one behind the other.
    fn together(self, rows: Range<usize>) -> Option<&'a [f32]> {
        let Named::Every { first, step: 1 } = self.named else { return None };
        let dim = self.matrix.ncols();
        self.matrix.to_slice()?.get((first + rows.start) * dim..(first + rows.end) * dim)
    }
}

/// Multiplies each product of a row with tokens by a factor of the token: the inverse of its norm, say.
pub(super) fn scale(products: &mut [f32], factors: &[f32]) {
    products.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
}

impl Products {
    /// Calls `f` with the place of each of `rows` and its products with all of `tokens`.
    pub(super) fn each_row(
        &mut self,
        isa: Isa,
        rows: RowsOf<'_>,
        tokens: RowsOf<'_>,
        mut f: impl FnMut(usize, &mut [f32]),
    ) {
        let (n_rows, n_tokens) = (rows.len(), tokens.len());
        let mut out = std::mem::take(&mut self.strip);
        out.resize(STRIP * n_tokens, 0.0);
        for first in (0..n_rows).step_by(STRIP) {
            let strip = first..n_rows.min(first + STRIP);
            self.strip_into(isa, rows, strip.clone(), tokens, n_tokens, &mut out, n_tokens);
            for (row, products) in strip.zip(out.chunks_exact_mut(n_tokens.max(1))) {
                f(row, products);
            }
        }
        self.strip = out;
    }

    /// The products of the rows in `strip`, [`STRIP`] at most, with the first `n_tokens` of `tokens`: that of row `i` of the strip and
    /// token `j` at `i * stride + j` of `out`.
    ///
    /// A product has the same bits whatever others are computed with it, and whichever of its two vectors is the row.
    pub(super) fn strip_into(
        &mut self,
        isa: Isa,
        rows: RowsOf<'_>,
        strip: Range<usize>,
        tokens: RowsOf<'_>,
        n_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let (dim, n_rows) = (rows.matrix.ncols(), strip.len());
        let width = padded::<f32>(dim);
        let in_place = if width == dim { rows.together(strip.clone()) } else { None };
        let rows = in_place.unwrap_or_else(|| {
            // Numbers that pad a row are zeros.
            if width != dim {
                self.rows.clear();
            }
            self.rows.resize(n_rows * width, 0.0);
            for (i, place) in strip.zip(self.rows.chunks_exact_mut(width.max(1))) {
                place[..dim].copy_from_slice(rows.row(i));
            }
            &self.rows
        });
        self.scores.resize(n_rows.max(self.scores.len()), [0.0; TILE]);
        let scores = &mut self.scores[..n_rows];
        for first in (0..n_tokens).step_by(TILE) {
            let n_here = TILE.min(n_tokens - first);
            let parts: ArrayVec<_, TILE> = (first..first + n_here)
                .map(|i| Part { keys: tokens.row(i), values: &[], strides: [dim, 0], n_tokens: 1 })
                .collect();
            let tile = Tile {
                parts: &parts,
                dims: [dim, 0],
                key_scales: None,
                value_scales: None,
                positions: &[0.0; TILE],
                ahead: None,
            };
            let visible = &[n_here; STRIP][..n_rows];
            let queries = Queries { rows, visible, softcap: None, alibi: None };
            scores_into(isa, &tile, &queries, scores);
            for (row, scores) in scores.iter().enumerate() {
                let at = row * stride + first;
                out[at..at + n_here].copy_from_slice(&scores[..n_here]);
            }
        }
    }
}
