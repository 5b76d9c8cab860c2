//! Squared distances of tokens among themselves, from the products of all with all.
//!
//! ```text
//! c[i] = x[i] − mean                        distances stay, and what they are a difference of becomes small
//! G[i][j] = c[i] · c[j]                     symmetric; half of it is computed
//! |x[i] − x[j]|² = G[i][i] − 2 G[i][j] + G[j][j]
//! ```

use ndarray::{ArrayView2, Axis};
use squish_kernels::{Isa, dot::axpy_with, reduce::abs_max_with};

use super::{
    products::{Products, RowsOf, STRIP},
    selection::check_count,
};
use crate::{
    AttnError, Result,
    rows::{check_contiguous, contiguous},
};

/// The products of all centered tokens with all.
#[derive(Debug, Default)]
pub(super) struct Gram {
    mean: Vec<f32>,
    centered: Vec<f32>,
    products: Vec<f32>,
    squares: Vec<f32>,
    n_tokens: usize,
}

impl Gram {
    /// The products of `tokens`, `[n_tokens, dim]`, if rows are contiguous and their squares finite. Equal tokens have equal products.
    pub(super) fn compute(
        &mut self,
        isa: Isa,
        products: &mut Products,
        tokens: ArrayView2<'_, f32>,
    ) -> Result<()> {
        const WHAT: &str = "tokens";
        let (n_tokens, dim) = tokens.dim();
        check_count(n_tokens)?;
        check_contiguous(WHAT, tokens.insert_axis(Axis(1)))?;
        reserve("centered tokens", &mut self.centered, n_tokens.checked_mul(dim))?;
        reserve("products of tokens", &mut self.products, n_tokens.checked_mul(n_tokens))?;
        self.n_tokens = n_tokens;
        self.center(isa, tokens);
        self.products.resize(n_tokens * n_tokens, 0.0);
        let centered = ArrayView2::from_shape((n_tokens, dim), &self.centered)
            .expect("as many numbers as there are tokens");
        let rows = RowsOf::all(centered);
        // Of few tokens, too, little more than half is computed; a strip is whole blocks of rows.
        let strip = (n_tokens / 8).next_multiple_of(4).clamp(4, STRIP);
        for first in (0..n_tokens).step_by(strip) {
            let end = n_tokens.min(first + strip);
            let out = &mut self.products[first * n_tokens..];
            products.strip_into(isa, rows, first..end, rows, end, out, n_tokens);
        }
        self.squares.clear();
        self.squares.extend(self.products.iter().step_by(n_tokens + 1));
        if let Some(index) = self.squares.iter().position(|square| !square.is_finite()) {
            // A token that is not finite makes the mean so, and all that are centered by it.
            let is_odd = |row| !abs_max_with(isa, contiguous(row)).is_finite();
            let index = tokens.outer_iter().position(is_odd).unwrap_or(index);
            return Err(AttnError::NotFinite { what: WHAT, index });
        }
        self.mirror();
        Ok(())
    }

    /// The products of token `i` with all.
    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.products[i * self.n_tokens..(i + 1) * self.n_tokens]
    }

    /// The product of tokens `i` and `j`.
    pub(super) fn at(&self, i: usize, j: usize) -> f32 {
        self.products[i * self.n_tokens + j]
    }

    /// The products of tokens with themselves.
    pub(super) fn squares(&self) -> &[f32] {
        &self.squares
    }

    fn center(&mut self, isa: Isa, tokens: ArrayView2<'_, f32>) {
        let (n_tokens, dim) = tokens.dim();
        self.mean.clear();
        self.mean.resize(dim, 0.0);
        // Divided first, so that a sum of finite numbers is finite.
        let share = 1.0 / n_tokens.max(1) as f32;
        for row in tokens.outer_iter() {
            axpy_with(isa, share, contiguous(row), &mut self.mean);
        }
        self.centered.clear();
        for row in tokens.outer_iter() {
            let row = contiguous(row).iter().zip(&self.mean);
            self.centered.extend(row.map(|(x, mean)| x - mean));
        }
    }

    /// Copies what is below the diagonal to the places above it, block by block of what was computed.
    fn mirror(&mut self) {
        const BLOCK: usize = 16;
        let n = self.n_tokens;
        for first in (0..n).step_by(BLOCK) {
            let end = n.min(first + BLOCK);
            for column in (0..end).step_by(BLOCK) {
                for i in first..end {
                    for j in column..i.min(column + BLOCK) {
                        self.products[j * n + i] = self.products[i * n + j];
                    }
                }
            }
        }
    }
}

/// Room for so many numbers.
fn reserve(what: &'static str, of: &mut Vec<f32>, len: Option<usize>) -> Result<()> {
    let len = len.unwrap_or(usize::MAX);
    let missing = len.saturating_sub(of.len());
    of.try_reserve(missing)
        .map_err(|_| AttnError::Memory { what, bytes: len.saturating_mul(size_of::<f32>()) })
}
