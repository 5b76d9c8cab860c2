//! States of attention over some of the tokens, and their merging.

use squish_kernels::{
    Isa,
    attention::{States, exp_normal, place},
    kv::KvElement,
    panel::Line,
};

/// Lines of `n_rows` rows of `width` numbers, a multiple of 16.
pub(super) fn lines(n_rows: usize, width: usize) -> usize {
    debug_assert!(width.is_multiple_of(16), "{width} numbers are no whole lines");
    n_rows * width * size_of::<f32>() / size_of::<Line>()
}

/// Room for the states of rows.
#[derive(Debug, Default)]
pub(super) struct StateBuffer {
    maxima: Vec<f32>,
    sums: Vec<f32>,
    /// `[rows, width]` of `f32`, on lines, so that no load of 64 bytes crosses one.
    values: Vec<Line>,
}

impl StateBuffer {
    /// Empty states of `n_rows` rows.
    pub(super) fn clear(&mut self, n_rows: usize, width: usize) {
        self.maxima.clear();
        self.maxima.resize(n_rows, f32::NEG_INFINITY);
        self.sums.clear();
        self.sums.resize(n_rows, 0.0);
        self.values.clear();
        self.values.resize(lines(n_rows, width), Line([0; 64]));
    }

    /// Room for so many rows without allocating.
    pub(super) fn reserve(&mut self, n_rows: usize, width: usize) {
        room(&mut self.maxima, n_rows);
        room(&mut self.sums, n_rows);
        room(&mut self.values, lines(n_rows, width));
    }

    pub(super) fn states(&mut self) -> States<'_> {
        let Self { maxima, sums, values } = self;
        States { maxima, sums, values: bytemuck::cast_slice_mut(values) }
    }

    /// The largest score, the sum and the values of a row.
    pub(super) fn row(&self, row: usize, width: usize) -> (f32, f32, &[f32]) {
        let values: &[f32] = bytemuck::cast_slice(&self.values);
        (self.maxima[row], self.sums[row], &values[row * width..(row + 1) * width])
    }
}

/// Makes a vector's room suffice for `len` elements.
pub(super) fn room<T>(buffer: &mut Vec<T>, len: usize) {
    buffer.reserve(len.saturating_sub(buffer.len()));
}

/// One of several states.
pub(super) fn state_of<'a>(states: &'a mut States<'_>, row: usize, width: usize) -> State<'a> {
    State {
        max: &mut states.maxima[row],
        sum: &mut states.sums[row],
        values: &mut states.values[row * width..(row + 1) * width],
    }
}

/// The state of a row: its largest score, the sum of its weights `e^(s - max)`, and its weighted values.
#[derive(Debug)]
pub(super) struct State<'a> {
    pub(super) max: &'a mut f32,
    pub(super) sum: &'a mut f32,
    pub(super) values: &'a mut [f32],
}

impl State<'_> {
    /// Adds the state of later tokens. An empty one changes nothing, and to an empty one the other is copied: the bits stay.
    pub(super) fn merge(&mut self, isa: Isa, max: f32, sum: f32, values: &[f32]) {
        let is_empty = |max: f32, sum: f32| max == f32::NEG_INFINITY && sum == 0.0;
        if is_empty(max, sum) {
            return;
        }
        if is_empty(*self.max, *self.sum) {
            (*self.max, *self.sum) = (max, sum);
            self.values.copy_from_slice(values);
            return;
        }
        let most = self.max.max(max);
        let [own, other] = exp_normal(isa, [*self.max - most, max - most]);
        *self.sum = *self.sum * own + sum * other;
        for (own_value, value) in self.values.iter_mut().zip(values) {
            *own_value = *own_value * own + value * other;
        }
        *self.max = most;
    }

    /// Adds a logit that has no value; negative infinity adds nothing, to an empty state neither.
    pub(super) fn add_sink(&mut self, isa: Isa, logit: f32) {
        if logit == f32::NEG_INFINITY {
            return;
        }
        let most = self.max.max(logit);
        let [own, sink] = exp_normal(isa, [*self.max - most, logit - most]);
        *self.sum = *self.sum * own + sink;
        self.values.iter_mut().for_each(|value| *value *= own);
        *self.max = most;
    }

    /// The mean of the values by their weights, zeros of an empty state.
    pub(super) fn finish_into<E: KvElement>(&self, out: &mut [f32]) {
        if *self.sum == 0.0 {
            out.fill(0.0);
            return;
        }
        let inverse = 1.0 / *self.sum;
        for (e, out) in out.iter_mut().enumerate() {
            *out = self.values[place::<E>(e)] * inverse;
        }
    }

    /// The logarithm of the sum of `e^s`: negative infinity of an empty state.
    pub(super) fn lse(&self) -> f32 {
        *self.max + self.sum.ln()
    }
}
