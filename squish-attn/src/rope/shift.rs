//! Rotating keys that are rotated already: [`RopeShift`].
//!
//! A rotation by `α` after one by `β` is one by `α + β`, so that a key need not be kept as it was before. Moving it takes a rotation by the
//! difference of the angles; the length, to which the attention factor was applied, stays but for the ratio of the two factors:
//!
//! | moved | angle of pair `i` |
//! |---|---|
//! | by `delta` positions | `delta · inv_freq[i]` |
//! | from position `p` to `q` | `angle(q) − angle(p)`, each as the mode computes it |
//! | to other frequencies | `angle'(p) − angle(p)` |
//!
//! Cosine and sine are of the difference in `f64`, rounded once. Each rotation rounds a key once more, by 1e-7 of its size in `f32`.

use ndarray::ArrayViewMut3;
use squish_kernels::{Real, RopeLayout, rope_in_place};

use super::{
    InvFreq,
    table::{check_heads, rotate},
};
use crate::{AttnError, Result, rows::for_each_block};

/// A rotation of cached keys, made once and applied to the keys of every layer.
///
/// # Examples
///
/// Keys move up by two positions, as when two tokens before them leave the cache.
///
/// ```
/// use squish_attn::{RopeConfig, RopeLayout, RopeOptions, RopeTable, ndarray::Array3};
///
/// let mut table = RopeTable::new(RopeConfig::new(64, 10000.0, 4096), RopeOptions::default())?;
/// table.extend_to(8)?;
/// let (mut moved, mut fresh) = (Array3::<f32>::ones([3, 2, 64]), Array3::<f32>::ones([3, 2, 64]));
/// table.apply_in_place(moved.view_mut(), &[5, 6, 7], RopeLayout::HalfSplit)?;
/// table.rotate_by(-2).apply_in_place(moved.view_mut(), RopeLayout::HalfSplit)?;
/// table.apply_in_place(fresh.view_mut(), &[3, 4, 5], RopeLayout::HalfSplit)?;
/// assert!(moved.iter().zip(&fresh).all(|(a, b)| (a - b).abs() < 1e-6));
/// # Ok::<(), squish_attn::AttnError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RopeShift {
    head_dim: usize,
    rotary_dim: usize,
    /// `[1, rotary_dim]`, or `[n_keys, rotary_dim]`
    rows: Vec<f32>,
    /// The rows of the keys, if they have rows of their own.
    own_rows: Option<Vec<usize>>,
}

impl RopeShift {
    pub(super) fn uniform(freqs: &InvFreq, head_dim: usize, delta: isize) -> Self {
        let rotary_dim = 2 * freqs.values().len();
        let mut rows = vec![0.0; rotary_dim];
        fill_row(&mut rows, freqs.values().iter().map(|value| delta as f64 * value), 1.0);
        Self { head_dim, rotary_dim, rows, own_rows: None }
    }

    pub(super) fn between(
        (from, from_positions): (&InvFreq, &[usize]),
        (to, to_positions): (&InvFreq, &[usize]),
        head_dim: usize,
    ) -> Result<Self> {
        let (n_keys, n_freqs) = (from_positions.len(), to.values().len());
        AttnError::check_length("to", n_keys, to_positions.len())?;
        AttnError::check_length("from", n_freqs, from.values().len())?;
        let mut rows = vec![0.0; n_keys * 2 * n_freqs];
        let scale = to.attention_factor() / from.attention_factor();
        let positions = from_positions.iter().zip(to_positions);
        for (row, (&p, &q)) in rows.chunks_exact_mut(2 * n_freqs).zip(positions) {
            fill_row(row, to.angles(q).zip(from.angles(p)).map(|(to, from)| to - from), scale);
        }
        Ok(Self { head_dim, rotary_dim: 2 * n_freqs, rows, own_rows: Some((0..n_keys).collect()) })
    }

    /// Rotates keys `[n_keys, n_kv_heads, head_dim]`. Allocates nothing where they are contiguous.
    ///
    /// # Errors
    ///
    /// [`AttnError::Axis`], of another number of keys than the rotation was made for, too; [`AttnError::Layout`].
    pub fn apply_in_place<T: Real>(
        &self,
        k: ArrayViewMut3<'_, T>,
        layout: RopeLayout,
    ) -> Result<()> {
        let n_keys = self.own_rows.as_ref().map_or(k.dim().0, Vec::len);
        check_heads("k", &k, n_keys, self.head_dim)?;
        match &self.own_rows {
            Some(rows) => rotate(k, self.head_dim, &self.rows, self.rotary_dim, rows, layout),
            // All heads of all keys are those of one row.
            None => for_each_block(k, |_, block| {
                rope_in_place(block, self.head_dim, &self.rows, self.rotary_dim, &[0], layout);
            }),
        }
        Ok(())
    }
}

fn fill_row(row: &mut [f32], angles: impl Iterator<Item = f64>, scale: f64) {
    let (cos, sin) = row.split_at_mut(row.len() / 2);
    for ((cos, sin), angle) in cos.iter_mut().zip(sin).zip(angles) {
        let (s, c) = angle.sin_cos();
        *cos = (c * scale) as f32;
        *sin = (s * scale) as f32;
    }
}
