//! Inputs of feed-forward networks that are left out: what benches record, leave out and count.

use std::cell::Cell;

use squish_model::{
    Adapter, Config, Projection, Recorder, Site, Sparsity,
    ndarray::{ArrayView2, ArrayViewMut2},
};
use squish_quant::{ActSparsityPredictor, SparsityOptions};

/// Counts magnitudes of what networks multiply.
pub(crate) struct Magnitudes(pub(crate) ActSparsityPredictor);

impl Magnitudes {
    pub(crate) fn new(config: &Config) -> Self {
        let widths = [config.hidden_size, config.intermediate_size].repeat(config.n_layers());
        let predictor = ActSparsityPredictor::new(&widths, SparsityOptions::default());
        Self(predictor.expect("a number near zero"))
    }
}

/// Where a site's inputs are counted, and thresholds stand.
fn place(site: Site) -> Option<usize> {
    match site.projection {
        Projection::Gate => Some(2 * site.layer),
        Projection::Down => Some(2 * site.layer + 1),
        _ => None,
    }
}

impl Recorder for Magnitudes {
    fn record(&mut self, site: Site, x: ArrayView2<'_, f32>) {
        if let Some(place) = place(site) {
            self.0.record(place, x).expect("as wide as the network");
        }
    }
}

/// A threshold for each place.
pub(crate) struct Thresholds(pub(crate) Vec<f32>);

impl Sparsity for Thresholds {
    fn threshold(&self, site: Site) -> f32 {
        place(site).map_or(0.0, |place| self.0[place])
    }
}

/// Counts what products multiply that is zero.
#[derive(Default)]
pub(crate) struct LeftOut {
    pub(crate) gate: Count,
    pub(crate) down: Count,
}

/// Zeros among numbers.
#[derive(Default)]
pub(crate) struct Count {
    n_zeros: Cell<usize>,
    n: Cell<usize>,
}

/// The share of zeros in all of `counts`.
pub(crate) fn share(counts: &[&Count]) -> f64 {
    let sum = |of: fn(&Count) -> usize| counts.iter().map(|count| of(count)).sum::<usize>() as f64;
    sum(|count| count.n_zeros.get()) / sum(|count| count.n.get())
}

impl Adapter for LeftOut {
    fn add(&self, site: Site, _: &[usize], x: ArrayView2<'_, f32>, _: ArrayViewMut2<'_, f32>) {
        let count = match site.projection {
            Projection::Gate => &self.gate,
            Projection::Down => &self.down,
            _ => return,
        };
        count.n_zeros.set(count.n_zeros.get() + x.iter().filter(|x| **x == 0.0).count());
        count.n.set(count.n.get() + x.len());
    }
}
