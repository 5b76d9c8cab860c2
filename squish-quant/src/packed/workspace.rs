//! What products need besides their operands: threads, and room for prepared inputs.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ndarray::{ArrayView2, Axis};
use squish_kernels::{
    Isa, Team,
    panel::{
        InputPlan, Inputs, LiveColumns, LivePairs, MOST_ROWS, PANEL, PanelLayout, ProductScratch,
    },
};

/// Threads and buffers of products. Kept from call to call, it allocates only where a call is larger than all before.
///
/// Results depend neither on it nor on the number of threads.
pub struct Workspace {
    threads: Threads,
    words: Vec<u32>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    /// The inputs of a sparse product.
    pub(super) live: LivePairs,
    /// The same, by input.
    pub(super) live_columns: LiveColumns,
    /// Those of one that is computed as a whole.
    pub(super) dense: Vec<f32>,
    /// One for each thread, so that one is always free.
    scratches: Vec<Mutex<Scratch>>,
}

enum Threads {
    Global,
    Own(Arc<Team>),
}

impl Threads {
    fn team(&self) -> &Team {
        match self {
            Self::Global => Team::global(),
            Self::Own(team) => team,
        }
    }
}

/// What one thread needs for a panel.
pub(super) struct Scratch {
    pub(super) product: ProductScratch,
    /// The products of a panel.
    pub(super) sums: Vec<[f32; PANEL]>,
    /// Those of the panel that gates it.
    pub(super) gated: Vec<[f32; PANEL]>,
}

impl Default for Workspace {
    /// On the threads of [`Team::global`].
    fn default() -> Self {
        Self::of(Threads::Global, Team::global().n_threads())
    }
}

impl Workspace {
    /// On the threads of `team`.
    #[must_use]
    pub fn new(team: Arc<Team>) -> Self {
        let n_threads = team.n_threads();
        Self::of(Threads::Own(team), n_threads)
    }

    fn of(threads: Threads, n_threads: usize) -> Self {
        let scratch = || Scratch {
            product: ProductScratch::new(),
            sums: vec![[0.0; PANEL]; MOST_ROWS],
            gated: vec![[0.0; PANEL]; MOST_ROWS],
        };
        let scratches = (0..n_threads).map(|_| Mutex::new(scratch())).collect();
        Self {
            threads,
            words: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
            live: LivePairs::default(),
            live_columns: LiveColumns::default(),
            dense: Vec::new(),
            scratches,
        }
    }

    pub(super) fn team(&self) -> &Team {
        self.threads.team()
    }

    /// Rounds and arranges the rows of `x`, which are contiguous, for panels of `layout`.
    pub(super) fn prepare(
        &mut self,
        isa: Isa,
        layout: &PanelLayout,
        x: ArrayView2<'_, f32>,
    ) -> Prepared<'_> {
        let Self { threads, words, scales, sums, scratches, .. } = self;
        let team = threads.team();
        let plan = InputPlan::new(isa, layout, x.nrows());
        words.resize(x.nrows() * plan.words_per_row(), 0);
        scales.resize(x.nrows() * plan.blocks_per_row(), 0.0);
        sums.resize(x.nrows() * plan.sums_per_row(), 0);
        let (mut words_left, mut scales_left, mut sums_left) =
            (&mut words[..], &mut scales[..], &mut sums[..]);
        for first in (0..plan.n_tiles()).step_by(MOST_TILES) {
            let mut tiles = [const { None }; MOST_TILES];
            let n_tiles = MOST_TILES.min(plan.n_tiles() - first);
            for (i, tile) in tiles[..n_tiles].iter_mut().enumerate() {
                let n_rows = plan.tile(first + i).len();
                let n_blocks = n_rows * plan.blocks_per_row();
                *tile = Some(Tile {
                    idx: first + i,
                    words: words_left
                        .split_off_mut(..n_rows * plan.words_per_row())
                        .expect(RESIZED),
                    scales: scales_left.split_off_mut(..n_blocks).expect(RESIZED),
                    sums: sums_left.split_off_mut(..n_rows * plan.sums_per_row()).expect(RESIZED),
                });
            }
            let prepare = |tile: &mut Option<Tile<'_>>| {
                let Some(Tile { idx, words, scales, sums }) = tile else { return };
                let first_row = plan.tile(*idx).start;
                let row = |i| x.index_axis_move(Axis(0), first_row + i).to_slice();
                plan.prepare_tile(*idx, |i| row(i).expect("contiguous"), words, scales, sums);
            };
            if x.len() < PARALLEL {
                tiles.iter_mut().for_each(prepare);
            } else {
                team.for_each(&mut tiles[..n_tiles], prepare);
            }
        }
        Prepared { team, plan, words, scales, sums, scratches }
    }
}

/// Tiles that are prepared at once: they stand on the stack.
const MOST_TILES: usize = 64;

/// Inputs from which on the tiles of rows are shared out to threads: some ten microseconds of work.
const PARALLEL: usize = 1 << 15;

const RESIZED: &str = "the buffers have room for all tiles";

/// A tile to prepare, with its part of each buffer.
struct Tile<'a> {
    idx: usize,
    words: &'a mut [u32],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

/// Rows as kernels read them, with the threads to run them on.
pub(super) struct Prepared<'a> {
    pub(super) team: &'a Team,
    pub(super) plan: InputPlan,
    words: &'a [u32],
    scales: &'a [f32],
    sums: &'a [i32],
    scratches: &'a [Mutex<Scratch>],
}

impl Prepared<'_> {
    pub(super) fn inputs(&self) -> Inputs<'_> {
        Inputs { plan: &self.plan, words: self.words, scales: self.scales, sums: self.sums }
    }

    /// A scratch that no other thread has.
    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // A poisoned one was left by a panic; what it holds is written before it is read.
        let free = self.scratches.iter().find_map(|scratch| scratch.try_lock().ok());
        free.unwrap_or_else(|| self.scratches[0].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace")
            .field("n_threads", &self.scratches.len())
            .field("n_words", &self.words.capacity())
            .finish_non_exhaustive()
    }
}
