//! Computing attention: threads, their shares of the work, and the results of all.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrayvec::ArrayVec;
use ndarray::{ArrayView3, ArrayViewMut3, Axis};
use squish_kernels::{
    Isa, Team,
    attention::{self, States},
    kv::KvSource,
};

use super::{
    Options, Sequence,
    gather::Gathered,
    plan::{Plan, Unit},
    state::{StateBuffer, state_of},
    unit::{Call, Scratch},
};
use crate::error::Result;

/// Tokens whose state is computed apart from that of the others before all are merged in order: what threads share out.
pub const SPLIT: usize = 1024;

/// States that are computed before they are finished: some megabytes.
const MOST_STATES: usize = 4096;

/// Most tasks of a parallel region, which stand on its caller's stack.
const MOST_TASKS: usize = 64;

/// Bytes of keys and values from which on memory is asked for ahead.
const FETCH_FROM: usize = 1 << 20;

/// Threads, and room for what they compute, which grows with the largest call.
pub struct Workspace {
    isa: Isa,
    team: Arc<Team>,
    scratches: Vec<Mutex<Scratch>>,
    plan: Plan,
    units: Vec<Unit>,
    states: StateBuffer,
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace")
            .field("n_threads", &self.scratches.len())
            .finish_non_exhaustive()
    }
}

/// Units with the room for their states.
struct Task<'a> {
    units: &'a [Unit],
    states: States<'a>,
}

impl Workspace {
    /// On the threads of `team`. Results do not depend on their number.
    #[must_use]
    pub fn new(team: Arc<Team>) -> Self {
        Self::new_with(Isa::detect(), team)
    }

    #[doc(hidden)]
    #[must_use]
    pub fn new_with(isa: Isa, team: Arc<Team>) -> Self {
        let scratches = (0..team.n_threads()).map(|_| Mutex::default()).collect();
        Self {
            isa,
            team,
            scratches,
            plan: Plan::default(),
            units: Vec::new(),
            states: StateBuffer::default(),
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
        let dims = [key_dim, out.dim().2];
        let Some(kv_heads) = sequences.first().map(|sequence| sequence.source.n_heads()) else {
            return Ok(());
        };
        let group = n_heads / kv_heads;
        self.plan.clear();
        let (mut first_row, mut n_tokens) = (0, 0);
        for (idx, sequence) in sequences.iter().enumerate() {
            let visibility = sequence.visibility(options);
            visibility.check()?;
            self.plan.add(idx, first_row, &visibility, group);
            first_row += sequence.n_rows;
            n_tokens += visibility.n_tokens;
        }
        let token_bytes = (dims[0] + dims[1]) * kv_heads * size_of::<S::Element>();
        let call = Call {
            isa: self.isa,
            queries,
            sequences,
            options,
            scale: options.scale.unwrap_or_else(|| 1.0 / (key_dim as f32).sqrt()),
            group,
            widths: dims.map(attention::padded::<S::Element>),
            fetches: n_tokens * token_bytes >= FETCH_FROM,
            plan: &self.plan,
        };
        let n_rows = call.plan.blocks.iter().map(|block| block.rows.len() * group).max();
        for scratch in &mut self.scratches {
            let scratch = scratch.get_mut().unwrap_or_else(PoisonError::into_inner);
            scratch.reserve(n_rows.unwrap_or(0), call.widths);
        }
        let n_threads = self.team.n_threads();
        let mut next = 0;
        while next < call.plan.blocks.len() {
            // As many blocks as there is room for.
            let first = next;
            self.units.clear();
            let mut n_states = 0;
            while let Some(block) = call.plan.blocks.get(next)
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
            self.states.clear(n_states, call.widths[1]);
            call.compute(&self.team, &self.scratches, &self.units, self.states.states());
            call.finish(&self.units, self.states.states(), &mut out, &mut lse);
        }
        Ok(())
    }
}

impl<S: KvSource> Call<'_, S> {
    /// The states of all units.
    fn compute(
        &self,
        team: &Team,
        scratches: &[Mutex<Scratch>],
        units: &[Unit],
        states: States<'_>,
    ) {
        let States { mut maxima, mut sums, mut values } = states;
        let mut tasks = ArrayVec::<_, MOST_TASKS>::new();
        for units in units.chunks(units.len().div_ceil(MOST_TASKS).max(1)) {
            let n: usize = units.iter().map(|unit| self.n_rows(unit)).sum();
            let states = States {
                maxima: maxima.split_off_mut(..n).unwrap_or_default(),
                sums: sums.split_off_mut(..n).unwrap_or_default(),
                values: values.split_off_mut(..n * self.widths[1]).unwrap_or_default(),
            };
            tasks.push(Task { units, states });
        }
        team.for_each(&mut tasks, |task| self.run_task(task, &mut free(scratches)));
    }

    fn run_task(&self, task: &mut Task<'_>, scratch: &mut Scratch) {
        let mut tiles = [Gathered::default(), Gathered::default()];
        let mut first = 0;
        for unit in task.units {
            let rows = first..first + self.n_rows(unit);
            first = rows.end;
            let values = rows.start * self.widths[1]..rows.end * self.widths[1];
            let mut states = States {
                maxima: &mut task.states.maxima[rows.clone()],
                sums: &mut task.states.sums[rows],
                values: &mut task.states.values[values],
            };
            self.run_unit(unit, &mut states, scratch, &mut tiles);
        }
    }

    /// Merges the states of splits, in order, and divides.
    fn finish(
        &self,
        units: &[Unit],
        states: States<'_>,
        out: &mut ArrayViewMut3<'_, f32>,
        lse: &mut Option<&mut [f32]>,
    ) {
        let (width, n_heads) = (self.widths[1], out.dim().1);
        let mut first = 0;
        for units in units.chunk_by(|a, b| (a.block, a.head) == (b.block, b.head)) {
            let [unit, ..] = units else { continue };
            let (block, n_rows) = (&self.plan.blocks[unit.block], self.n_rows(unit));
            let end = first + n_rows * units.len();
            let (own_maxima, later_maxima) = states.maxima[first..end].split_at_mut(n_rows);
            let (own_sums, later_sums) = states.sums[first..end].split_at_mut(n_rows);
            let (own_values, later_values) =
                states.values[first * width..end * width].split_at_mut(n_rows * width);
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
                if let Some(out) = out.index_axis_mut(Axis(0), head).as_slice_mut() {
                    state.finish_into::<S::Element>(out);
                }
                if let Some(lse) = lse {
                    lse[token * n_heads + head] = state.lse();
                }
            }
            first = end;
        }
    }
}

/// A scratch that no other thread has: there is one for each.
fn free(scratches: &[Mutex<Scratch>]) -> MutexGuard<'_, Scratch> {
    // A poisoned one was left by a panic; what it holds is written before it is read.
    let free = scratches.iter().find_map(|scratch| scratch.try_lock().ok());
    free.unwrap_or_else(|| scratches[0].lock().unwrap_or_else(PoisonError::into_inner))
}
