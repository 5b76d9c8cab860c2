//! How much attention each token receives.
//!
//! ```text
//! mass[j] = mean over rows i and heads h of  e^(s[i][h][j] − lse[i][h])        0 where row i does not see token j
//! ```
//!
//! Scores are those of attention, bit for bit. What is held at once are the scores of at most 64 rows, or of as many heads as share keys,
//! for all tokens: 256 bytes a token, and not the square of the tokens. So scores are computed once, and not again when the logarithm of a
//! row's sum is known. A row's weights are `f32`, and what a token receives is summed in `f64`, 64 rows at a time.

use ndarray::{ArrayView3, Axis};
use squish_kernels::{
    Isa,
    attention::{Alibi, Queries, TILE, padded, place, scores_into},
    dot::axpy_with,
    kv::KvSource,
    reduce::max_with,
    softmax::weigh_in_place_with,
};

use super::{
    Options, Sequence, check_options, check_source,
    gather::{Gathered, OfTokens, Walk},
    mask::Mask,
    plan::{Block, Plan},
    unit::end_of,
};
use crate::error::{AttnError, Result};

/// Room for the rows of a block.
#[derive(Debug, Default)]
pub(crate) struct MassScratch {
    plan: Plan,
    queries: Vec<f32>,
    alibi: Vec<Alibi>,
    visible: Vec<usize>,
    /// `[tiles, rows]`.
    scores: Vec<[f32; TILE]>,
    /// What the weights of each row are multiplied by.
    factors: Vec<f32>,
    of_tokens: OfTokens,
    /// Of each token of the source.
    sums: Vec<f64>,
}

/// A call, as its parts see it.
struct Call<'a, S> {
    isa: Isa,
    queries: ArrayView3<'a, f32>,
    sequence: Sequence<'a, S>,
    options: &'a Options<'a>,
    scale: f32,
    /// Query heads that share a head of keys.
    group: usize,
}

impl MassScratch {
    /// The mass of each token of `sequence`, into `mass`.
    pub(crate) fn run<S: KvSource>(
        &mut self,
        isa: Isa,
        queries: ArrayView3<'_, f32>,
        sequence: Sequence<'_, S>,
        options: &Options<'_>,
        mass: &mut [f32],
    ) -> Result<()> {
        let (n_rows, n_heads, key_dim) = queries.dim();
        let source = sequence.source;
        AttnError::check_axis("queries", "rows of the sequences", sequence.n_rows, n_rows)?;
        check_source(source, n_heads, key_dim)?;
        check_options(options, n_heads)?;
        AttnError::check_length("mass", source.len(), mass.len())?;
        let visibility = sequence.visibility(options);
        visibility.check()?;
        let kv_heads = source.n_heads();
        let call = Call {
            isa,
            queries,
            sequence,
            options,
            scale: options.scale.unwrap_or_else(|| 1.0 / (key_dim as f32).sqrt()),
            group: n_heads / kv_heads,
        };
        let mut plan = std::mem::take(&mut self.plan);
        plan.clear();
        plan.add(0, 0, &visibility, call.group);
        self.sums.clear();
        self.sums.resize(mass.len(), 0.0);
        for block in &plan.blocks {
            for head in 0..kv_heads {
                let n_tiles = self.score(&call, &plan, block, head);
                self.weigh(&call, head, n_tiles);
                self.add(&call, &plan, block, n_tiles);
            }
        }
        self.plan = plan;
        let n = (n_rows * n_heads).max(1) as f64;
        mass.iter_mut().zip(&self.sums).for_each(|(mass, sum)| *mass = (sum / n) as f32);
        Ok(())
    }

    /// The scores of a block for all tokens that one of its rows sees. Returns the number of tiles.
    fn score<S: KvSource>(
        &mut self,
        call: &Call<'_, S>,
        plan: &Plan,
        block: &Block,
        head: usize,
    ) -> usize {
        let Self { queries, alibi, visible, scores, of_tokens, .. } = self;
        let (source, group) = (call.sequence.source, call.group);
        call.prepare(block, head, queries, alibi);
        let n_rows = block.rows.len() * group;
        let n_tiles = block.most_visible().div_ceil(TILE);
        visible.resize(n_rows, 0);
        scores.resize((n_tiles * n_rows).max(scores.len()), [0.0; TILE]);
        let has_alibi = call.options.alibi.is_some();
        let ranges = &plan.ranges[block.ranges.clone()];
        let mut walk = Walk::new(source, head, ranges, 0, has_alibi);
        let mut gathered = Gathered::default();
        for (i, scores) in scores.chunks_exact_mut(n_rows.max(1)).take(n_tiles).enumerate() {
            let at = i * TILE;
            walk.next_into(TILE, &mut gathered, of_tokens);
            if let (Mask::Tree(_), Some(alibi)) = (call.sequence.mask, alibi.first()) {
                // What a node sees stands at one position after another, its siblings aside.
                let first = alibi.position - (block.n_visible - 1) as f32;
                let positions = of_tokens.positions.iter_mut().enumerate();
                positions.for_each(|(i, position)| *position = first + (at + i) as f32);
            }
            for (visible, row) in visible.chunks_exact_mut(group).zip(block.rows.clone()) {
                visible.fill(block.visible(row).saturating_sub(at).min(gathered.n_tokens));
            }
            let of_rows = Queries {
                rows: queries,
                visible,
                softcap: call.options.softcap,
                alibi: has_alibi.then_some(&alibi[..]),
            };
            scores_into(call.isa, &gathered.tile(source, of_tokens, None), &of_rows, scores);
        }
        n_tiles
    }

    /// Turns the scores of rows into `e^(s - max)`, and finds what these are multiplied by.
    fn weigh<S: KvSource>(&mut self, call: &Call<'_, S>, head: usize, n_tiles: usize) {
        let Self { visible, scores, factors, .. } = self;
        let (isa, n_rows) = (call.isa, visible.len());
        factors.clear();
        for row in 0..n_rows {
            let tiles = || (0..n_tiles).map(move |tile| tile * n_rows + row);
            let sink = call.options.sinks.map(|sinks| sinks[head * call.group + row % call.group]);
            let max = tiles().map(|at| max_with(isa, &scores[at])).fold(f32::NEG_INFINITY, larger);
            let max = larger(max, sink.unwrap_or(f32::NEG_INFINITY));
            if !max.is_finite() {
                // What it sees, if anything, has no weight that is a number, and what it does not see has none.
                let unknown =
                    |s: &mut f32| *s = if *s == f32::NEG_INFINITY { 0.0 } else { f32::NAN };
                tiles().for_each(|at| scores[at].iter_mut().for_each(unknown));
                factors.push(1.0);
                continue;
            }
            let mut sum = sink.map_or(0.0, |sink| f64::from(sink - max).exp());
            for at in tiles() {
                sum += f64::from(weigh_in_place_with(isa, max, &mut scores[at]));
            }
            factors.push((1.0 / sum) as f32);
        }
    }

    /// Adds the weights of a block to the sums of its tokens.
    fn add<S: KvSource>(&mut self, call: &Call<'_, S>, plan: &Plan, block: &Block, n_tiles: usize) {
        let Self { scores, factors, sums, .. } = self;
        let mut tokens = plan.ranges[block.ranges.clone()].iter().cloned().flatten();
        let rows = scores.chunks_exact(factors.len().max(1)).take(n_tiles);
        for weights in rows {
            let mut of_tile = [0.0; TILE];
            for (weights, &factor) in weights.iter().zip(&*factors) {
                axpy_with(call.isa, factor, weights, &mut of_tile);
            }
            // No more tokens than there are: the zip takes none that is not added.
            for (&mass, token) in of_tile.iter().zip(&mut tokens) {
                sums[token] += f64::from(mass);
            }
        }
    }
}

impl<S: KvSource> Call<'_, S> {
    /// The scaled queries of a block, in the order in which keys are loaded, and their ALiBi.
    fn prepare(&self, block: &Block, head: usize, queries: &mut Vec<f32>, alibi: &mut Vec<Alibi>) {
        let width = padded::<S::Element>(self.queries.dim().2);
        queries.clear();
        queries.resize(block.rows.len() * self.group * width, 0.0);
        alibi.clear();
        let heads = head * self.group..(head + 1) * self.group;
        let mut places = queries.chunks_exact_mut(width);
        for row in block.rows.clone() {
            let of_row = self.queries.index_axis(Axis(0), row);
            for (head, out) in heads.clone().zip(&mut places) {
                for (e, q) in of_row.index_axis(Axis(0), head).iter().enumerate() {
                    out[place::<S::Element>(e)] = q * self.scale;
                }
            }
            if let Some(slopes) = self.options.alibi {
                let visibility = self.sequence.visibility(self.options);
                let position = visibility.position(row, end_of(self.sequence.source)) as f32;
                alibi.extend(slopes[heads.clone()].iter().map(|&slope| Alibi { slope, position }));
            }
        }
    }
}

/// The larger number, and NaN if one is.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}
