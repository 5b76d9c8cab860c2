//! Clusters by density peaks and nearest neighbors (M. Du, S. Ding, H. Jia, 2016; for tokens arXiv 2204.08680, section 3.2).
//!
//! ```text
//! d[i][j] = |x[i] − x[j]| / √dim
//! ρ[i] = exp(−mean d[i][j]²)                over the k nearest tokens j, of which token i is the first
//! δ[i] = min d[i][j]                        over the tokens j of higher density; the largest of all distances if there is none
//! centers: the tokens with the largest ρ · δ; each token goes to the nearest center
//! ```
//!
//! Token `i` among its own neighbors, `√dim`, and the nearest center are those of the released code; the method of 2016 leaves these out,
//! and lets a token follow its nearest neighbor of higher density. That code adds noise to densities, so that none are equal; here the
//! lowest index counts as denser. Densities are compared by their logarithms, which do not underflow.

use ndarray::ArrayView2;

use super::{TokensWorkspace, gram::Gram, selection::Assignment};
use crate::{AttnError, Result};

/// Options of [`TokensWorkspace::dpc_knn_into`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DpcKnn {
    /// Nearest tokens whose distances make the density, the token itself included: at least 1, or all if there are fewer.
    pub neighbors: usize,
}

impl Default for DpcKnn {
    fn default() -> Self {
        Self { neighbors: 5 }
    }
}

/// Room for the search.
#[derive(Debug, Default)]
pub(super) struct DpcScratch {
    /// Mean squared distances to the nearest tokens: the smaller, the denser.
    spreads: Vec<f32>,
    nearest: Vec<f32>,
    /// Logarithms of `ρ · δ`.
    peaks: Vec<f32>,
    centers: Vec<u32>,
}

impl TokensWorkspace {
    /// Groups `tokens`, `[n_tokens, dim]`, around `k` density peaks, or as many as there are tokens. Groups are in the order of their
    /// centers, which are their targets. Memory is 4 bytes for each pair of tokens.
    ///
    /// Of equal peaks the lowest index is a center, and of equally near centers the first one is taken.
    ///
    /// # Errors
    ///
    /// [`AttnError::Value`] if `k` is 0 and there are tokens, or of no neighbors; [`AttnError::NotFinite`] of a token that is not finite,
    /// or whose square is not; [`AttnError::Layout`] if rows are not contiguous; [`AttnError::Memory`].
    pub fn dpc_knn_into(
        &mut self,
        tokens: ArrayView2<'_, f32>,
        k: usize,
        options: DpcKnn,
        out: &mut Assignment,
    ) -> Result<()> {
        let n_tokens = tokens.nrows();
        AttnError::check_value("k", k as f64, k > 0 || n_tokens == 0, "at least 1")?;
        let neighbors = options.neighbors;
        AttnError::check_value("neighbors", neighbors as f64, neighbors > 0, "at least 1")?;
        self.gram.compute(self.isa, &mut self.products, tokens)?;
        if k >= n_tokens {
            out.leave_all(n_tokens);
            return Ok(());
        }
        let DpcScratch { spreads, nearest, peaks, centers } = &mut self.dpc;
        let gram = &self.gram;
        let inverse_dim = 1.0 / tokens.ncols().max(1) as f32;
        nearest.resize(neighbors.min(n_tokens), 0.0);
        spreads.clear();
        let mut farthest = 0.0_f32;
        for i in 0..n_tokens {
            nearest.fill(f32::INFINITY);
            for square in squares(gram, i) {
                farthest = farthest.max(square);
                insert(nearest, square);
            }
            let sum: f32 = nearest.iter().sum();
            spreads.push(sum / nearest.len() as f32 * inverse_dim);
        }
        peaks.clear();
        for i in 0..n_tokens {
            let mut distance = f32::INFINITY;
            for (j, square) in squares(gram, i).enumerate() {
                let is_denser = spreads[j] < spreads[i] || spreads[j] == spreads[i] && j < i;
                if is_denser && square < distance {
                    distance = square;
                }
            }
            let distance = distance.min(farthest) * inverse_dim;
            peaks.push(0.5 * distance.ln() - spreads[i]);
        }
        centers.clear();
        centers.extend_from_slice(self.top.largest(self.isa, peaks, k));
        centers.sort_unstable();
        out.begin(n_tokens);
        for i in 0..n_tokens {
            let (mut center, mut least) = (0, f32::INFINITY);
            for (c, &j) in centers.iter().enumerate() {
                let square = square(gram, i, j as usize);
                if square < least {
                    (center, least) = (c, square);
                }
            }
            out.assign(i as u32, center as u32);
        }
        // Last, so that a center belongs to itself even if another one equals it.
        for &center in &*centers {
            out.add_group(center);
        }
        out.finish();
        Ok(())
    }
}

/// The squared distance of two tokens.
fn square(gram: &Gram, i: usize, j: usize) -> f32 {
    (gram.squares()[i] + gram.squares()[j] - 2.0 * gram.at(i, j)).max(0.0)
}

/// The squared distances of token `i` from all.
fn squares(gram: &Gram, i: usize) -> impl Iterator<Item = f32> {
    let own = gram.squares()[i];
    let pairs = gram.row(i).iter().zip(gram.squares());
    pairs.map(move |(product, other)| (own + other - 2.0 * product).max(0.0))
}

/// Puts a number in its place among the least ones so far, which ascend.
fn insert(least: &mut [f32], x: f32) {
    let Some((last, _)) = least.split_last() else { return };
    if x >= *last {
        return;
    }
    let at = least.partition_point(|&y| y <= x);
    least[at..].rotate_right(1);
    least[at] = x;
}
