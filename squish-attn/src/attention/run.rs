//! Computing attention: blocks of rows, units of work, and threads.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ndarray::{ArrayView3, ArrayViewMut3, Axis};
use squish_kernels::{
    Isa, Team,
    attention::{self, Alibi, CHAINS, Queries, States, TILE, Tile},
    kv::KvSource,
};

use super::{
    Options, Sequence,
    gather::{Gathered, Walk},
    mask::{Mask, Visibility},
    state::State,
};
use crate::error::Result;

/// Tokens whose state is computed apart from that of the others before all are merged in order: what threads share out.
pub const SPLIT: usize = 1024;

/// Rows of queries, times heads that share keys, that meet a tile together.
const MOST_ROWS: usize = 64;

/// States that are computed before they are finished: some megabytes.
const MOST_STATES: usize = 4096;

/// Most tasks of a parallel region, which stand on its caller's stack.
const MOST_TASKS: usize = 64;

/// Bytes of keys and values from which on memory is asked for ahead. What the caches hold is slower with it, by a tenth.
const FETCH_FROM: usize = 4 << 20;

/// Threads, and room for what they compute, which grows with the largest call.
pub struct Workspace {
    team: Arc<Team>,
    scratches: Vec<Mutex<Scratch>>,
    blocks: Vec<Block>,
    ranges: Vec<Range<usize>>,
    units: Vec<Unit>,
    maxima: Vec<f32>,
    sums: Vec<f32>,
    values: Vec<f32>,
}

/// What a thread needs for a unit.
#[derive(Debug, Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<[f32; TILE]>,
    visible: Vec<usize>,
    alibi: Vec<Alibi>,
    /// States of a split that is merged into what was before.
    maxima: Vec<f32>,
    sums: Vec<f32>,
    values: Vec<f32>,
}

/// Rows of one sequence that see the same tokens but for the last ones.
#[derive(Clone, Debug)]
struct Block {
    sequence: usize,
    /// First row of the sequence, among all.
    first_row: usize,
    /// Among the rows of the sequence.
    rows: Range<usize>,
    /// Where its ranges of tokens are.
    ranges: Range<usize>,
    /// Tokens that the first row sees; each next one sees one more, if `grows`.
    n_visible: usize,
    grows: bool,
}

impl Block {
    fn visible(&self, row: usize) -> usize {
        if self.grows { self.n_visible + row - self.rows.start } else { self.n_visible }
    }

    fn most_visible(&self) -> usize {
        self.visible(self.rows.end - 1)
    }

    fn n_splits(&self) -> usize {
        self.most_visible().div_ceil(SPLIT).max(1)
    }
}

/// Some splits of a block and a head of keys, whose states are merged into one.
#[derive(Clone, Debug)]
struct Unit {
    block: usize,
    head: usize,
    splits: Range<usize>,
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace")
            .field("n_threads", &self.scratches.len())
            .field("n_states", &self.sums.capacity())
            .finish_non_exhaustive()
    }
}

/// A call, as the threads see it.
struct Call<'a, S> {
    isa: Isa,
    queries: ArrayView3<'a, f32>,
    sequences: &'a [Sequence<'a, S>],
    options: &'a Options<'a>,
    scale: f32,
    /// Query heads that share a head of keys.
    group: usize,
    /// Of queries and of states.
    widths: [usize; 2],
    fetches: bool,
    blocks: &'a [Block],
    ranges: &'a [Range<usize>],
}

/// Units with the room for their states.
struct Task<'a> {
    units: &'a [Unit],
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
    values: &'a mut [f32],
}

impl Workspace {
    /// On the threads of `team`. Results do not depend on their number.
    #[must_use]
    pub fn new(team: Arc<Team>) -> Self {
        let scratches = (0..team.n_threads()).map(|_| Mutex::default()).collect();
        Self {
            team,
            scratches,
            blocks: Vec::new(),
            ranges: Vec::new(),
            units: Vec::new(),
            maxima: Vec::new(),
            sums: Vec::new(),
            values: Vec::new(),
        }
    }

    pub(super) fn run<S: KvSource>(
        &mut self,
        queries: ArrayView3<'_, f32>,
        sequences: &[Sequence<'_, S>],
        options: &Options<'_>,
        mut out: ArrayViewMut3<'_, f32>,
        mut lse: Option<&mut [f32]>,
    ) -> Result<()> {
        let (_, n_heads, key_dim) = queries.dim();
        let value_dim = out.dim().2;
        let Some(kv_heads) = sequences.first().map(|sequence| sequence.source.n_heads()) else {
            return Ok(());
        };
        let group = n_heads / kv_heads;
        self.blocks.clear();
        self.ranges.clear();
        let (mut first_row, mut n_bytes) = (0, 0);
        for (idx, sequence) in sequences.iter().enumerate() {
            let visibility = sequence.visibility(options);
            visibility.check()?;
            self.plan(idx, first_row, &visibility, (MOST_ROWS / group).max(1));
            first_row += sequence.n_rows;
            let token_bytes = (key_dim + value_dim) * kv_heads * size_of::<S::Element>();
            n_bytes += visibility.n_tokens * token_bytes;
        }
        let call = Call {
            isa: Isa::detect(),
            queries,
            sequences,
            options,
            scale: options.scale.unwrap_or_else(|| 1.0 / (key_dim as f32).sqrt()),
            group,
            widths: [key_dim, value_dim].map(|dim| dim.next_multiple_of(CHAINS)),
            fetches: n_bytes >= FETCH_FROM,
            blocks: &self.blocks,
            ranges: &self.ranges,
        };
        let n_threads = self.team.n_threads();
        let mut next = 0;
        while next < call.blocks.len() {
            // As many blocks as there is room for.
            let first = next;
            self.units.clear();
            let mut n_states = 0;
            while let Some(block) = call.blocks.get(next)
                && (next == first || n_states < MOST_STATES)
            {
                // A single row is short of work for many threads.
                let apart = n_threads > 1 && block.rows.len() == 1;
                let each = if apart { 1 } else { block.n_splits() };
                for head in 0..kv_heads {
                    for split in (0..block.n_splits()).step_by(each) {
                        let splits = split..(split + each).min(block.n_splits());
                        self.units.push(Unit { block: next, head, splits });
                        n_states += block.rows.len() * group;
                    }
                }
                next += 1;
            }
            self.maxima.resize(n_states, 0.0);
            self.sums.resize(n_states, 0.0);
            self.values.resize(n_states * call.widths[1], 0.0);
            let (maxima, sums) = (&mut self.maxima[..], &mut self.sums[..]);
            let values = &mut self.values[..];
            call.compute(&self.team, &self.scratches, &self.units, [&mut *maxima, sums, values]);
            call.finish(&self.units, [maxima, sums, values], &mut out, &mut lse);
        }
        Ok(())
    }

    /// Cuts the rows of a sequence into blocks.
    fn plan(
        &mut self,
        idx: usize,
        first_row: usize,
        visibility: &Visibility<'_>,
        most_rows: usize,
    ) {
        let mut row = 0;
        while row < visibility.n_rows {
            let most = most_rows.min(visibility.n_rows - row);
            let first_range = self.ranges.len();
            let (n_rows, grows) = match visibility.mask {
                Mask::Causal => {
                    let seen = visibility.causal(row);
                    let same =
                        (1..most).take_while(|i| visibility.causal(row + i).start == seen.start);
                    let n_rows = 1 + same.count();
                    self.ranges.push(seen.start..visibility.causal(row + n_rows - 1).end);
                    (n_rows, true)
                }
                Mask::Full if visibility.window.is_none() => {
                    self.ranges.push(0..visibility.n_tokens);
                    (most, false)
                }
                Mask::Full | Mask::Tree(_) | Mask::Custom(_) => {
                    visibility.ranges_into(row, &mut self.ranges);
                    (1, false)
                }
            };
            let ranges = first_range..self.ranges.len();
            let n_visible: usize = self.ranges[ranges.clone()].iter().map(Range::len).sum();
            let n_visible = if grows { n_visible + 1 - n_rows } else { n_visible };
            let rows = row..row + n_rows;
            self.blocks.push(Block { sequence: idx, first_row, rows, ranges, n_visible, grows });
            row += n_rows;
        }
    }
}

impl<S: KvSource> Call<'_, S> {
    /// The states of all units.
    fn compute(
        &self,
        team: &Team,
        scratches: &[Mutex<Scratch>],
        units: &[Unit],
        [mut maxima, mut sums, mut values]: [&mut [f32]; 3],
    ) {
        let mut tasks = [const { None }; MOST_TASKS];
        let mut n_tasks = 0;
        for (task, units) in
            tasks.iter_mut().zip(units.chunks(units.len().div_ceil(MOST_TASKS).max(1)))
        {
            let n: usize = units.iter().map(|unit| self.n_rows(unit)).sum();
            *task = Some(Task {
                units,
                maxima: maxima.split_off_mut(..n).unwrap_or_default(),
                sums: sums.split_off_mut(..n).unwrap_or_default(),
                values: values.split_off_mut(..n * self.widths[1]).unwrap_or_default(),
            });
            n_tasks += 1;
        }
        team.for_each(&mut tasks[..n_tasks], |task| {
            if let Some(task) = task {
                self.run(task, &mut free(scratches));
            }
        });
    }

    /// Query rows of a unit, which are those of its block times the heads that share keys.
    fn n_rows(&self, unit: &Unit) -> usize {
        self.blocks[unit.block].rows.len() * self.group
    }

    fn run(&self, task: &mut Task<'_>, scratch: &mut Scratch) {
        let mut first = 0;
        for unit in task.units {
            let rows = first..first + self.n_rows(unit);
            first = rows.end;
            let values = rows.start * self.widths[1]..rows.end * self.widths[1];
            let states = States {
                maxima: &mut task.maxima[rows.clone()],
                sums: &mut task.sums[rows],
                values: &mut task.values[values],
            };
            self.run_unit(unit, states, scratch);
        }
    }

    fn run_unit(&self, unit: &Unit, mut states: States<'_>, scratch: &mut Scratch) {
        let Scratch { queries, scores, visible, alibi, maxima, sums, values } = scratch;
        let block = &self.blocks[unit.block];
        let n_rows = self.n_rows(unit);
        self.prepare(unit, queries, alibi);
        scores.resize(n_rows.max(scores.len()), [0.0; TILE]);
        visible.resize(n_rows, 0);
        clear(&mut states);
        self.run_split(
            block,
            unit.head,
            unit.splits.start,
            queries,
            visible,
            alibi,
            scores,
            &mut states,
        );
        for split in unit.splits.clone().skip(1) {
            maxima.resize(n_rows, 0.0);
            sums.resize(n_rows, 0.0);
            values.resize(n_rows * self.widths[1], 0.0);
            let mut later = States { maxima, sums, values };
            clear(&mut later);
            self.run_split(block, unit.head, split, queries, visible, alibi, scores, &mut later);
            let States { maxima, sums, values } = later;
            let of_rows = maxima.iter().zip(&*sums).zip(values.chunks_exact(self.widths[1]));
            for (row, ((&max, &sum), values)) in of_rows.enumerate() {
                state_of(&mut states, row, self.widths[1]).merge(self.isa, max, sum, values);
            }
        }
    }

    /// The scaled queries of a unit, and their ALiBi.
    fn prepare(&self, unit: &Unit, queries: &mut Vec<f32>, alibi: &mut Vec<Alibi>) {
        let block = &self.blocks[unit.block];
        queries.clear();
        alibi.clear();
        let visibility = self.sequences[block.sequence].visibility(self.options);
        for row in block.rows.clone() {
            for head in unit.head * self.group..(unit.head + 1) * self.group {
                let query = self.queries.index_axis(Axis(0), block.first_row + row);
                let query = query.index_axis_move(Axis(0), head);
                queries.extend(query.iter().map(|x| x * self.scale));
                queries.resize(queries.len().next_multiple_of(CHAINS), 0.0);
                if let Some(slopes) = self.options.alibi {
                    let position = visibility.position(row, self.first_position(block)) as f32;
                    alibi.push(Alibi { slope: slopes[head], position });
                }
            }
        }
    }

    /// Position of the first token of a block's source.
    fn first_position(&self, block: &Block) -> usize {
        let source = self.sequences[block.sequence].source;
        if source.is_empty() { 0 } else { source.run(0).position }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a scratch that are borrowed apart")]
    fn run_split(
        &self,
        block: &Block,
        head: usize,
        split: usize,
        queries: &[f32],
        visible: &mut [usize],
        alibi: &[Alibi],
        scores: &mut [[f32; TILE]],
        states: &mut States<'_>,
    ) {
        let sequence = &self.sequences[block.sequence];
        let (mut at, end) = (split * SPLIT, block.most_visible().min((split + 1) * SPLIT));
        let mut walk = Walk::new(sequence.source, head, &self.ranges[block.ranges.clone()], at);
        // One is attended to while the other, which memory is asked for, waits its turn.
        let mut tiles = [Gathered::new(), Gathered::new()];
        if at < end {
            walk.next_into(TILE.min(end - at), &mut tiles[0]);
        }
        for turn in 0.. {
            let [even, odd] = &mut tiles;
            let (tile, next) = if turn % 2 == 0 { (even, odd) } else { (odd, even) };
            if at >= end || tile.len == 0 {
                break;
            }
            let after = at + tile.len;
            next.len = 0;
            if after < end {
                walk.next_into(TILE.min(end - after), next);
            }
            if let (Mask::Tree(_), Some(alibi)) = (sequence.mask, alibi.first()) {
                // What a node sees stands at one position after another, its siblings aside.
                let first = alibi.position - (block.n_visible - 1) as f32;
                let positions = tile.positions.iter_mut().enumerate();
                positions.for_each(|(i, position)| *position = first + (at + i) as f32);
            }
            for (visible, row) in visible.chunks_exact_mut(self.group).zip(block.rows.clone()) {
                visible.fill(block.visible(row).saturating_sub(at).min(tile.len));
            }
            // The first rows may have seen all that they see.
            let first = visible.iter().take_while(|&&n| n == 0).count();
            let ahead = if self.fetches { [next.keys(), next.values()] } else { [&[][..]; 2] };
            let of_tile = Tile {
                keys: tile.keys(),
                values: tile.values(),
                key_scales: tile.has_scales[0].then_some(&tile.key_scales),
                value_scales: tile.has_scales[1].then_some(&tile.value_scales),
                positions: &tile.positions,
                ahead,
            };
            let of_rows = Queries {
                rows: &queries[first * self.widths[0]..],
                visible: &visible[first..],
                softcap: self.options.softcap,
                alibi: self.options.alibi.map(|_| &alibi[first..]),
            };
            let mut states = States {
                maxima: &mut states.maxima[first..],
                sums: &mut states.sums[first..],
                values: &mut states.values[first * self.widths[1]..],
            };
            attention::attend(self.isa, &of_tile, &of_rows, &mut states, scores);
            at = after;
        }
    }

    /// Merges the states of splits, in order, and divides.
    fn finish(
        &self,
        units: &[Unit],
        [maxima, sums, values]: [&mut [f32]; 3],
        out: &mut ArrayViewMut3<'_, f32>,
        lse: &mut Option<&mut [f32]>,
    ) {
        let (width, n_heads) = (self.widths[1], out.dim().1);
        let mut first = 0;
        for units in units.chunk_by(|a, b| (a.block, a.head) == (b.block, b.head)) {
            let [unit, ..] = units else { continue };
            let (block, n_rows) = (&self.blocks[unit.block], self.n_rows(unit));
            let end = first + n_rows * units.len();
            let (own_maxima, later_maxima) = maxima[first..end].split_at_mut(n_rows);
            let (own_sums, later_sums) = sums[first..end].split_at_mut(n_rows);
            let (own_values, later_values) =
                values[first * width..end * width].split_at_mut(n_rows * width);
            let mut own = States { maxima: own_maxima, sums: own_sums, values: own_values };
            for row in 0..n_rows {
                let mut state = state_of(&mut own, row, width);
                for later in (row..later_maxima.len()).step_by(n_rows) {
                    let values = &later_values[later * width..(later + 1) * width];
                    state.merge(self.isa, later_maxima[later], later_sums[later], values);
                }
                let head = unit.head * self.group + row % self.group;
                if let Some(sinks) = self.options.sinks {
                    state.add_sink(self.isa, sinks[head]);
                }
                let token = block.first_row + block.rows.start + row / self.group;
                let mut out = out.index_axis_mut(Axis(0), token);
                let mut out = out.index_axis_mut(Axis(0), head);
                if let Some(out) = out.as_slice_mut() {
                    let of_row = state.finish_into(out);
                    if let Some(lse) = lse {
                        lse[token * n_heads + head] = of_row;
                    }
                }
            }
            first = end;
        }
    }
}

fn clear(states: &mut States<'_>) {
    states.maxima.fill(f32::NEG_INFINITY);
    states.sums.fill(0.0);
    states.values.fill(0.0);
}

fn state_of<'a>(states: &'a mut States<'_>, row: usize, width: usize) -> State<'a> {
    State {
        max: &mut states.maxima[row],
        sum: &mut states.sums[row],
        values: &mut states.values[row * width..(row + 1) * width],
    }
}

/// A scratch that no other thread has: there is one for each.
fn free(scratches: &[Mutex<Scratch>]) -> MutexGuard<'_, Scratch> {
    // A poisoned one was left by a panic; what it holds is written before it is read.
    let free = scratches.iter().find_map(|scratch| scratch.try_lock().ok());
    free.unwrap_or_else(|| scratches[0].lock().unwrap_or_else(PoisonError::into_inner))
}
