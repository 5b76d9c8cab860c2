//! One unit of work: some rows of queries, one head of keys, some splits of its tokens.

use ndarray::{ArrayView3, Axis};
use squish_kernels::{
    Isa,
    attention::{self, Alibi, Queries, States, TILE},
    kv::{KvSource, Run},
    panel::Line,
};

use super::{
    Options, Sequence,
    gather::{Gathered, OfTokens, Walk},
    mask::Mask,
    plan::{Plan, Unit},
    run::SPLIT,
    state::{StateBuffer, lines, room, state_of},
};

/// A call, as the threads see it.
pub(super) struct Call<'a, S> {
    pub(super) isa: Isa,
    pub(super) queries: ArrayView3<'a, f32>,
    pub(super) sequences: &'a [Sequence<'a, S>],
    pub(super) options: &'a Options<'a>,
    pub(super) scale: f32,
    /// Query heads that share a head of keys.
    pub(super) group: usize,
    /// Of queries and of states.
    pub(super) widths: [usize; 2],
    /// Whether memory is asked for ahead.
    pub(super) fetches: bool,
    pub(super) plan: &'a Plan,
}

/// What a thread needs for a unit.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[rows, width]` of `f32`, on lines, so that no load of 64 bytes crosses one.
    queries: Vec<Line>,
    alibi: Vec<Alibi>,
    /// How many tokens of a tile each row sees.
    visible: Vec<usize>,
    /// `[rows, TILE]`, likewise.
    scores: Vec<Line>,
    /// Of the tile that is attended to, and of the next one.
    of_tokens: [OfTokens; 2],
    /// States of a split that is merged into what was before.
    later: StateBuffer,
}

impl Scratch {
    /// Makes room for units of so many rows of queries, so that none is made while threads work: which of them meets the largest unit, and
    /// in which call, is chance.
    pub(super) fn reserve(&mut self, n_rows: usize, widths: [usize; 2]) {
        room(&mut self.queries, lines(n_rows, widths[0]));
        room(&mut self.alibi, n_rows);
        room(&mut self.visible, n_rows);
        room(&mut self.scores, lines(n_rows, TILE));
        self.later.reserve(n_rows, widths[1]);
    }
}

impl<'a, S: KvSource> Call<'a, S> {
    /// Query rows of a unit, which are those of its block times the heads that share keys.
    pub(super) fn n_rows(&self, unit: &Unit) -> usize {
        self.plan.blocks[unit.block].rows.len() * self.group
    }

    /// The states of a unit. `tiles` is room for what is gathered.
    pub(super) fn run_unit(
        &self,
        unit: &Unit,
        states: &mut States<'_>,
        scratch: &mut Scratch,
        tiles: &mut [Gathered<'a, S::Element>; 2],
    ) {
        let n_rows = self.n_rows(unit);
        self.prepare(unit, scratch);
        self.run_split(unit, unit.splits.start, states, scratch, tiles);
        if unit.splits.len() == 1 {
            return;
        }
        let mut later = std::mem::take(&mut scratch.later);
        for split in unit.splits.clone().skip(1) {
            later.clear(n_rows, self.widths[1]);
            self.run_split(unit, split, &mut later.states(), scratch, tiles);
            for row in 0..n_rows {
                let (max, sum, values) = later.row(row, self.widths[1]);
                state_of(states, row, self.widths[1]).merge(self.isa, max, sum, values);
            }
        }
        scratch.later = later;
    }

    /// The scaled queries of a unit, and their ALiBi.
    fn prepare(&self, unit: &Unit, scratch: &mut Scratch) {
        let Scratch { queries, alibi, visible, scores, .. } = scratch;
        let (n_rows, width) = (self.n_rows(unit), self.widths[0]);
        let block = &self.plan.blocks[unit.block];
        visible.resize(n_rows, 0);
        scores.resize(lines(n_rows, TILE).max(scores.len()), Line([0; 64]));
        // Numbers that pad a row are zeros.
        if width != self.queries.dim().2 {
            queries.clear();
        }
        queries.resize(lines(n_rows, width), Line([0; 64]));
        alibi.clear();
        let heads = unit.head * self.group..(unit.head + 1) * self.group;
        let queries: &mut [f32] = bytemuck::cast_slice_mut(queries);
        let mut places = queries.chunks_exact_mut(width);
        for row in block.rows.clone() {
            let of_row = self.queries.index_axis(Axis(0), block.first_row + row);
            for (head, place) in heads.clone().zip(&mut places) {
                let query = of_row.index_axis(Axis(0), head);
                // The same twice, for the compiler: a slice becomes vectors.
                match query.to_slice() {
                    Some(query) => self.place(query, place),
                    None => self.place(query, place),
                }
            }
            if let Some(slopes) = self.options.alibi {
                let sequence = &self.sequences[block.sequence];
                let visibility = sequence.visibility(self.options);
                let position = visibility.position(row, end_of(sequence.source)) as f32;
                alibi.extend(slopes[heads.clone()].iter().map(|&slope| Alibi { slope, position }));
            }
        }
    }

    /// A query, scaled, in the order in which keys are loaded.
    fn place<'q>(&self, query: impl IntoIterator<Item = &'q f32>, out: &mut [f32]) {
        for (e, q) in query.into_iter().enumerate() {
            out[attention::place::<S::Element>(e)] = q * self.scale;
        }
    }

    /// Adds the tokens of a split, tile by tile, to states that are empty.
    fn run_split(
        &self,
        unit: &Unit,
        split: usize,
        states: &mut States<'_>,
        scratch: &mut Scratch,
        tiles: &mut [Gathered<'a, S::Element>; 2],
    ) {
        let Scratch { queries, alibi, visible, scores, of_tokens, .. } = scratch;
        let queries: &[f32] = bytemuck::cast_slice(queries);
        let scores: &mut [[f32; TILE]] = bytemuck::cast_slice_mut(scores);
        let block = &self.plan.blocks[unit.block];
        let sequence = &self.sequences[block.sequence];
        let has_alibi = self.options.alibi.is_some();
        let (mut at, end) = (split * SPLIT, block.most_visible().min((split + 1) * SPLIT));
        let ranges = &self.plan.ranges[block.ranges.clone()];
        let mut walk = Walk::new(sequence.source, unit.head, ranges, at, has_alibi);
        // One is attended to while the other, which memory is asked for, waits its turn.
        let ([tile, next], [of_tile, of_next]) = (tiles, of_tokens);
        let ((mut tile, mut of_tokens), (mut next, mut of_next)) =
            ((tile, of_tile), (next, of_next));
        walk.next_into(TILE.min(end - at), tile, of_tokens);
        while tile.n_tokens > 0 {
            let after = at + tile.n_tokens;
            walk.next_into(TILE.min(end - after), next, of_next);
            if let (Mask::Tree(_), Some(alibi)) = (sequence.mask, alibi.first()) {
                // What a node sees stands at one position after another, its siblings aside.
                let first = alibi.position - (block.n_visible - 1) as f32;
                let positions = of_tokens.positions.iter_mut().enumerate();
                positions.for_each(|(i, position)| *position = first + (at + i) as f32);
            }
            for (visible, row) in visible.chunks_exact_mut(self.group).zip(block.rows.clone()) {
                visible.fill(block.visible(row).saturating_sub(at).min(tile.n_tokens));
            }
            // The first rows may have seen all that they see.
            let first = visible.iter().take_while(|&&n| n == 0).count();
            let ahead = self.fetches.then_some(&next.parts[..]);
            let of_tile = tile.tile(sequence.source, of_tokens, ahead);
            let of_rows = Queries {
                rows: &queries[first * self.widths[0]..],
                visible: &visible[first..],
                softcap: self.options.softcap,
                alibi: has_alibi.then(|| &alibi[first..]),
            };
            let mut states = States {
                maxima: &mut states.maxima[first..],
                sums: &mut states.sums[first..],
                values: &mut states.values[first * self.widths[1]..],
            };
            attention::attend(self.isa, &of_tile, &of_rows, &mut states, scores);
            at = after;
            ((tile, of_tokens), (next, of_next)) = ((next, of_next), (tile, of_tokens));
        }
    }
}

/// The position behind the last token.
pub(super) fn end_of(source: &impl KvSource) -> usize {
    source.n_runs().checked_sub(1).map_or(0, |last| {
        let Run { position, len, .. } = source.run(last);
        position + len
    })
}
