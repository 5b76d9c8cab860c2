//! The rows of a tile, found in a source run by run.

use std::ops::Range;

use arrayvec::ArrayVec;
use squish_kernels::{
    attention::{Part, TILE, Tile},
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
    wants_positions: bool,
}

/// A run with the rows of the head.
struct OpenRun<'a, E> {
    run: Run,
    keys: Rows<'a, E>,
    values: Rows<'a, E>,
}

/// Where the rows of a tile are.
#[derive(Default)]
pub(super) struct Gathered<'a, E> {
    pub(super) n_tokens: usize,
    pub(super) parts: ArrayVec<Part<'a, E>, TILE>,
    has_scales: [bool; 2],
}

/// What goes with the tokens of a tile.
#[derive(Debug)]
pub(super) struct OfTokens {
    key_scales: [f32; TILE],
    value_scales: [f32; TILE],
    /// If they were wanted.
    pub(super) positions: [f32; TILE],
}

impl Default for OfTokens {
    fn default() -> Self {
        Self { key_scales: [1.0; TILE], value_scales: [1.0; TILE], positions: [0.0; TILE] }
    }
}

impl<E> Gathered<'_, E> {
    /// The tile, and what is read after it if memory is to be asked for ahead.
    pub(super) fn tile<'t>(
        &'t self,
        source: &impl KvSource,
        of_tokens: &'t OfTokens,
        ahead: Option<&'t [Part<'t, E>]>,
    ) -> Tile<'t, E> {
        Tile {
            parts: &self.parts,
            dims: [source.key_dim(), source.value_dim()],
            key_scales: self.has_scales[0].then_some(&of_tokens.key_scales),
            value_scales: self.has_scales[1].then_some(&of_tokens.value_scales),
            positions: &of_tokens.positions,
            ahead,
        }
    }
}

impl<'a, S: KvSource> Walk<'a, S> {
    /// From the visible token number `skipped` on.
    pub(super) fn new(
        source: &'a S,
        head: usize,
        mut ranges: &'a [Range<usize>],
        mut skipped: usize,
        wants_positions: bool,
    ) -> Self {
        while let [first, rest @ ..] = ranges
            && skipped >= first.len()
        {
            skipped -= first.len();
            ranges = rest;
        }
        Self { source, head, ranges, taken: skipped, run: None, wants_positions }
    }

    /// Takes the next `n` tokens, or those that are left.
    pub(super) fn next_into(
        &mut self,
        n: usize,
        out: &mut Gathered<'a, S::Element>,
        of_tokens: &mut OfTokens,
    ) {
        out.n_tokens = 0;
        out.parts.clear();
        while out.n_tokens < n
            && let [range, rest @ ..] = self.ranges
        {
            let at = range.start + self.taken;
            let n_taken = self.take(at, (n - out.n_tokens).min(range.end - at), out, of_tokens);
            self.taken += n_taken;
            if at + n_taken == range.end {
                (self.ranges, self.taken) = (rest, 0);
            }
        }
    }

    /// Takes tokens from `at` on that lie in one run, `most` at most. Returns their number.
    fn take(
        &mut self,
        at: usize,
        most: usize,
        out: &mut Gathered<'a, S::Element>,
        of_tokens: &mut OfTokens,
    ) -> usize {
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
        let n_tokens = most.min(run.len - first);
        out.parts.push(Part {
            keys: &keys.data[first * keys.stride..],
            values: &values.data[first * values.stride..],
            strides: [keys.stride, values.stride],
            n_tokens,
        });
        let (from, to) = (out.n_tokens, out.n_tokens + n_tokens);
        out.has_scales = [keys.scales.is_some(), values.scales.is_some()];
        if let Some(scales) = keys.scales {
            of_tokens.key_scales[from..to].copy_from_slice(&scales[first..first + n_tokens]);
        }
        if let Some(scales) = values.scales {
            of_tokens.value_scales[from..to].copy_from_slice(&scales[first..first + n_tokens]);
        }
        if self.wants_positions {
            for (i, position) in of_tokens.positions[from..to].iter_mut().enumerate() {
                *position = (run.position + first + i) as f32;
            }
        }
        out.n_tokens = to;
        n_tokens
    }
}
