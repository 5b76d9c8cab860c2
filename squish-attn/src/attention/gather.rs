//! The rows of a tile, taken from a source run by run.

use std::ops::Range;

use squish_kernels::{
    attention::TILE,
    kv::{KvSource, Rows, Run},
};

/// Walks the tokens that a row sees, tile by tile.
pub(super) struct Walk<'a, S: KvSource> {
    source: &'a S,
    head: usize,
    /// What is left of the ranges of tokens; the first one is under way.
    ranges: &'a [Range<usize>],
    /// Tokens of the first range that were taken.
    taken: usize,
    /// The run of the latest token.
    run: Option<OpenRun<'a, S::Element>>,
}

/// A run with the rows of the head.
struct OpenRun<'a, E> {
    run: Run,
    keys: Rows<'a, E>,
    values: Rows<'a, E>,
}

/// The rows of a tile, and what is multiplied with them.
pub(super) struct Gathered<'a, E> {
    pub(super) len: usize,
    keys: [&'a [E]; TILE],
    values: [&'a [E]; TILE],
    pub(super) key_scales: [f32; TILE],
    pub(super) value_scales: [f32; TILE],
    pub(super) has_scales: [bool; 2],
    pub(super) positions: [f32; TILE],
}

impl<'a, E> Gathered<'a, E> {
    pub(super) const fn new() -> Self {
        Self {
            len: 0,
            keys: [&[]; TILE],
            values: [&[]; TILE],
            key_scales: [1.0; TILE],
            value_scales: [1.0; TILE],
            has_scales: [false; 2],
            positions: [0.0; TILE],
        }
    }

    pub(super) fn keys(&self) -> &[&'a [E]] {
        &self.keys[..self.len]
    }

    pub(super) fn values(&self) -> &[&'a [E]] {
        &self.values[..self.len]
    }
}

impl<'a, S: KvSource> Walk<'a, S> {
    /// From the visible token number `skipped` on.
    pub(super) fn new(
        source: &'a S,
        head: usize,
        mut ranges: &'a [Range<usize>],
        mut skipped: usize,
    ) -> Self {
        while let [first, rest @ ..] = ranges
            && skipped >= first.len()
        {
            skipped -= first.len();
            ranges = rest;
        }
        Self { source, head, ranges, taken: skipped, run: None }
    }

    /// Takes the next `n` tokens, or those that are left.
    pub(super) fn next_into(&mut self, n: usize, out: &mut Gathered<'a, S::Element>) {
        out.len = 0;
        while out.len < n
            && let [range, rest @ ..] = self.ranges
        {
            let at = range.start + self.taken;
            let n_taken = (n - out.len).min(range.end - at);
            let n_taken = self.take(at, n_taken, out);
            self.taken += n_taken;
            if at + n_taken == range.end {
                (self.ranges, self.taken) = (rest, 0);
            }
        }
    }

    /// Takes tokens from `at` on that lie in one run, `most` at most. Returns their number.
    fn take(&mut self, at: usize, most: usize, out: &mut Gathered<'a, S::Element>) -> usize {
        let holds = |open: &OpenRun<'a, S::Element>| {
            (open.run.start..open.run.start + open.run.len).contains(&at)
        };
        if !self.run.as_ref().is_some_and(holds) {
            let idx = self.source.run_of(at);
            self.run = Some(OpenRun {
                run: self.source.run(idx),
                keys: self.source.keys(self.head, idx),
                values: self.source.values(self.head, idx),
            });
        }
        let Some(OpenRun { run, keys, values }) = &self.run else { return 0 };
        let first = at - run.start;
        let n = most.min(run.len - first);
        let (from, to) = (out.len, out.len + n);
        let dims = [self.source.key_dim(), self.source.value_dim()];
        fill(&mut out.keys[from..to], *keys, first, dims[0]);
        fill(&mut out.values[from..to], *values, first, dims[1]);
        out.has_scales = [keys.scales.is_some(), values.scales.is_some()];
        if let Some(scales) = keys.scales {
            out.key_scales[from..to].copy_from_slice(&scales[first..first + n]);
        }
        if let Some(scales) = values.scales {
            out.value_scales[from..to].copy_from_slice(&scales[first..first + n]);
        }
        for (i, position) in out.positions[from..to].iter_mut().enumerate() {
            *position = (run.position + first + i) as f32;
        }
        out.len = to;
        n
    }
}

/// The rows from `first` on.
#[inline]
fn fill<'a, E>(out: &mut [&'a [E]], rows: Rows<'a, E>, first: usize, dim: usize) {
    let data = &rows.data[first * rows.stride..];
    for (out, row) in out.iter_mut().zip(data.chunks(rows.stride)) {
        *out = &row[..dim];
    }
}
