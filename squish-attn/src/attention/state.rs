//! States of attention over some of the tokens, and their merging.

use squish_kernels::{Isa, attention::exp_normal};

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

    /// Adds a logit that has no value.
    pub(super) fn add_sink(&mut self, isa: Isa, logit: f32) {
        let most = self.max.max(logit);
        let [own, sink] = exp_normal(isa, [*self.max - most, logit - most]);
        *self.sum = *self.sum * own + sink;
        self.values.iter_mut().for_each(|value| *value *= own);
        *self.max = most;
    }

    /// The mean of the values by their weights, zeros of an empty state; and the logarithm of the sum of `e^s`.
    pub(super) fn finish_into(&self, out: &mut [f32]) -> f32 {
        if *self.sum == 0.0 {
            out.fill(0.0);
            return f32::NEG_INFINITY;
        }
        for (out, value) in out.iter_mut().zip(&*self.values) {
            *out = value / *self.sum;
        }
        *self.max + self.sum.ln()
    }
}
