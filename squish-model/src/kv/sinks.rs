//! First tokens that stay while a window moves on, at positions in the cache: `StreamingLLM` (arXiv 2309.17453, section 3.2).
//!
//! Tokens count as if those that a row sees stood side by side, so in a window of `W` tokens no row stands behind position `W - 1`. Distances are
//! all that a rotation tells: between a row and the tokens that are not sinks they are those in the sequence, and between a row at position
//! `p` and sinks those of a row at `min(p, W - 1)`. So keys stay rotated by their positions in the sequence, and queries are rotated twice: as
//! they meet sinks, and as they meet others. Both results are merged by the sums of their weights.

use squish_attn::{RopeLayout, RopeTable};
use squish_kv::{KvElement, KvSource, RingView};
use squish_quant::ndarray::{ArrayView3, ArrayViewMut2, ArrayViewMut3};

use crate::{
    Error,
    batch::{Batch, Rows},
    forward::{heads, heads_mut},
};

/// A window whose sinks are met at positions in the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheRelative {
    pub(crate) n_sinks: usize,
    pub(crate) window: usize,
}

/// Queries as they meet sinks, and what comes of it.
#[derive(Debug, Default)]
pub(crate) struct SinkBuffers {
    positions: Vec<usize>,
    queries: Vec<f32>,
    attended: Vec<f32>,
    lse: [Vec<f32>; 2],
}

/// Views of a [`SinkBuffers`].
pub(super) struct SinkRows<'a> {
    pub(super) queries: ArrayView3<'a, f32>,
    pub(super) attended: ArrayViewMut3<'a, f32>,
    /// Of sinks and of others.
    pub(super) lse: [ArrayViewMut2<'a, f32>; 2],
}

impl SinkBuffers {
    /// Rotates a copy of queries `[rows, heads, width]` that are not rotated yet.
    pub(crate) fn rotate(
        &mut self,
        q: &[f32],
        [n_heads, width]: [usize; 2],
        batch: &Batch<'_>,
        rope: &RopeTable,
        sinks: CacheRelative,
    ) -> Result<(), Error> {
        self.queries.clear();
        self.queries.extend_from_slice(q);
        self.attended.resize(q.len(), 0.0);
        for lse in &mut self.lse {
            lse.resize(q.len() / width, 0.0);
        }
        self.positions.clear();
        self.positions.extend(batch.positions.iter().map(|&p| p.min(sinks.window - 1)));
        let queries = heads_mut(&mut self.queries, n_heads, width);
        rope.apply_in_place(queries, &self.positions, RopeLayout::HalfSplit)?;
        Ok(())
    }

    /// For queries of this many heads and this width.
    pub(super) fn rows(&mut self, [n_heads, width]: [usize; 2]) -> SinkRows<'_> {
        let Self { queries, attended, lse, .. } = self;
        let lse = lse.each_mut().map(|lse| {
            ArrayViewMut2::from_shape((lse.len() / n_heads, n_heads), &mut lse[..])
                .expect("a number for each head of a row")
        });
        let queries = heads(queries, n_heads, width);
        SinkRows { queries, attended: heads_mut(attended, n_heads, width), lse }
    }
}

/// The position of a token of a view as a row of the step sees it: a node of a tree stands at its depth.
pub(super) fn position_of<E: KvElement>(
    view: &RingView<'_, E>,
    rows: &Rows<'_>,
    token: usize,
) -> usize {
    if let Some(node) = token.checked_sub(view.len() - rows.n) {
        return rows.n_before + rows.depths[node];
    }
    let run = view.run(view.run_of(token));
    run.position + (token - run.start)
}
