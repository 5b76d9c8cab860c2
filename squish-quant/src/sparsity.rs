//! Which activations need no work: statistics of layers ([`ActSparsityPredictor`]), and the choice within a row ([`SparseFfnGate`]).
//!
//! ```text
//! active(x)        |x| ≥ threshold, or x is NaN
//! threshold        of a layer, for a target sparsity s: the s-quantile of |x| over all elements that were recorded      (TEAL)
//! hot neurons      those that were active most often                                                                 (PowerInfer)
//! ```
//!
//! A product whose inputs are not active is saved by [`gemv_sparse_into`](crate::PackedMatrix::gemv_sparse_into), which reads the weights of the
//! others alone.
//!
//! Counting near-zero elements takes one pass at the speed of memory. The histogram of magnitudes, one per layer, is that of
//! [`squish_kernels::histogram`]; thresholds need it, and lie within 1/32 of the exact quantile.
//!
//! Sources: J. Liu et al., TEAL, arXiv 2408.14690, section 4; Y. Song et al., `PowerInfer`, arXiv 2312.12456; D. Lee et al., CATS, arXiv
//! 2404.08763, whose gate has the same form.

use ndarray::ArrayView2;
use squish_kernels::{
    abs_max,
    columns::count_active,
    histogram::{BINS, SLOTS, count_magnitudes, floor_of},
    select_into, zero_below_in_place,
};

use crate::{
    band::check_rows,
    calibrate::{Bins, PANEL_ROWS, panel},
    error::{Error, Result},
};

/// What is kept of each layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SparsityStatistic {
    /// How often each neuron was active, and a histogram of magnitudes.
    #[default]
    Histogram,
    /// How often each neuron was active: for everything but thresholds.
    Counts,
}

/// What an [`ActSparsityPredictor`] counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparsityOptions {
    /// Elements of a smaller magnitude count as near zero: 0.01 by default.
    pub near_zero: f32,
    /// What is kept of each layer.
    pub statistic: SparsityStatistic,
}

impl Default for SparsityOptions {
    fn default() -> Self {
        Self { near_zero: 0.01, statistic: SparsityStatistic::default() }
    }
}

/// Streaming statistics of the activations of layers; see the [module](self).
///
/// Two predictors are equal if they have the same options and have seen the same elements in each neuron.
#[derive(Clone, Debug)]
pub struct ActSparsityPredictor {
    options: SparsityOptions,
    layers: Vec<Layer>,
    /// Of the rows being recorded; zeros between calls.
    counts: Vec<[u32; SLOTS]>,
}

/// What is known of a layer.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    n_rows: u64,
    n_active: Vec<u32>,
    /// Of the histogram, if there is one.
    magnitudes: Option<Magnitudes>,
}

#[derive(Clone, Debug, PartialEq)]
struct Magnitudes {
    floor: i32,
    counts: Vec<u64>,
    n_zero: u64,
    abs_max: f32,
}

impl PartialEq for ActSparsityPredictor {
    fn eq(&self, other: &Self) -> bool {
        self.options == other.options && self.layers == other.layers
    }
}

impl ActSparsityPredictor {
    /// A predictor of layers with as many neurons as `widths` says.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if `near_zero` is negative or not finite.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::{ActSparsityPredictor, SparsityOptions, ndarray::array};
    ///
    /// let mut predictor = ActSparsityPredictor::new(&[4], SparsityOptions::default())?;
    /// predictor.record(0, array![[0.0, 0.5, -0.001, 2.0], [0.0, -0.25, 0.002, 1.0]].view())?;
    /// assert_eq!(predictor.sparsity_map()?, [0.5]);
    /// assert_eq!(predictor.hot_neurons(0, 0.5)?, [1, 3]);
    /// let threshold = predictor.thresholds(0.5)?[0];
    /// assert!(threshold > 0.002 && threshold < 0.25);
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn new(widths: &[usize], options: SparsityOptions) -> Result<Self> {
        check_threshold("near_zero", options.near_zero)?;
        let has_histogram = options.statistic == SparsityStatistic::Histogram;
        let magnitudes = has_histogram.then(|| Magnitudes {
            floor: floor_of(0.0),
            counts: vec![0; BINS + 2],
            n_zero: 0,
            abs_max: 0.0,
        });
        let layer = |&width: &usize| Layer {
            n_rows: 0,
            n_active: vec![0; width],
            magnitudes: magnitudes.clone(),
        };
        let n_counts = if has_histogram { 4 } else { 0 };
        Ok(Self {
            options,
            layers: widths.iter().map(layer).collect(),
            counts: vec![[0; SLOTS]; n_counts],
        })
    }

    /// Adds the rows of `batch`, `[rows, neurons]`, to what is known of a layer. Allocates nothing.
    ///
    /// NaN is active; what is not finite counts in no histogram.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a layer that is not there, [`Error::Shape`] for another number of neurons, [`Error::Layout`] if rows are not
    /// contiguous, [`Error::TooManyRows`] beyond 2^32 − 1 rows in all. Then nothing is recorded.
    pub fn record(&mut self, layer: usize, batch: ArrayView2<'_, f32>) -> Result<()> {
        Error::check_index("layer", layer, self.layers.len())?;
        let layer = &mut self.layers[layer];
        let [n_rows, width] = batch.dim().into();
        if width != layer.n_active.len() {
            let expected = [n_rows, layer.n_active.len()];
            return Err(Error::Shape { what: "batch", expected, actual: [n_rows, width] });
        }
        check_rows("batch", batch.dim(), batch.strides())?;
        let total = layer.n_rows_with(n_rows as u64)?;
        if width > 0 {
            let mut rows = [&[][..]; PANEL_ROWS];
            for first in (0..n_rows).step_by(PANEL_ROWS) {
                let rows = panel(&batch, first, &mut rows);
                count_active(rows, self.options.near_zero, &mut layer.n_active);
                if let (Some(magnitudes), Some(counts)) =
                    (&mut layer.magnitudes, self.counts.first_chunk_mut())
                {
                    magnitudes.record(rows, counts);
                }
            }
        }
        layer.n_rows = total;
        Ok(())
    }

    /// Adds what `other` has seen. The order of merges has no effect on the result.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] for other layers, [`Error::Unsupported`] for other options, [`Error::TooManyRows`]. Then nothing is added.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Error::check_length("layers", self.layers.len(), other.layers.len())?;
        if self.options != other.options {
            let (format, what) = ("merging of predictors", "different options");
            return Err(Error::Unsupported { format, what });
        }
        for (layer, other) in self.layers.iter().zip(&other.layers) {
            Error::check_length("neurons", layer.n_active.len(), other.n_active.len())?;
            layer.n_rows_with(other.n_rows)?;
        }
        for (layer, other) in self.layers.iter_mut().zip(&other.layers) {
            layer.n_rows += other.n_rows;
            layer.n_active.iter_mut().zip(&other.n_active).for_each(|(n, other)| *n += other);
            if let (Some(magnitudes), Some(other)) = (&mut layer.magnitudes, &other.magnitudes) {
                magnitudes.merge(other);
            }
        }
        Ok(())
    }

    /// The threshold of each layer below which a share `sparsity`, 0 to 1, of the recorded elements lies, as TEAL chooses it.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for another share, [`Error::NoData`] for a layer without finite elements, [`Error::Unsupported`] without histograms.
    pub fn thresholds(&self, sparsity: f64) -> Result<Vec<f32>> {
        check_share("sparsity", sparsity)?;
        let of_layer = |(index, layer): (usize, &Layer)| {
            let Some(magnitudes) = &layer.magnitudes else {
                return Err(Error::Unsupported { format: "counting alone", what: "thresholds" });
            };
            let n: u64 = magnitudes.counts[..=BINS].iter().sum();
            if n == 0 {
                return Err(Error::NoData { what: "layer", index });
            }
            Ok(if sparsity == 0.0 { 0.0 } else { magnitudes.bins().quantile(n, sparsity) as f32 })
        };
        self.layers.iter().enumerate().map(of_layer).collect()
    }

    /// The share of the elements of each layer that were near zero.
    ///
    /// # Errors
    ///
    /// [`Error::NoData`] for a layer without elements.
    pub fn sparsity_map(&self) -> Result<Vec<f64>> {
        let of_layer = |(index, layer): (usize, &Layer)| {
            let n = layer.n_rows as f64 * layer.n_active.len() as f64;
            if n == 0.0 {
                return Err(Error::NoData { what: "layer", index });
            }
            let n_active: u64 = layer.n_active.iter().map(|&n| u64::from(n)).sum();
            Ok(1.0 - n_active as f64 / n)
        };
        self.layers.iter().enumerate().map(of_layer).collect()
    }

    /// The neurons of a layer that were active most often, a share `fraction` of them, 0 to 1, ascending. Of equally active ones the first are
    /// taken.
    ///
    /// # Errors
    ///
    /// [`Error::Index`], [`Error::Value`].
    pub fn hot_neurons(&self, layer: usize, fraction: f64) -> Result<Vec<u32>> {
        Error::check_index("layer", layer, self.layers.len())?;
        check_share("fraction", fraction)?;
        let n_active = &self.layers[layer].n_active;
        let mut neurons: Vec<u32> = (0..n_active.len() as u32).collect();
        neurons.sort_by_key(|&i| std::cmp::Reverse(n_active[i as usize]));
        neurons.truncate((fraction * n_active.len() as f64).round() as usize);
        neurons.sort_unstable();
        Ok(neurons)
    }

    /// How often each neuron of a layer was active, if the layer is there.
    pub fn n_active(&self, layer: usize) -> Option<&[u32]> {
        self.layers.get(layer).map(|layer| &layer.n_active[..])
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }
}

impl Layer {
    /// The number of rows with `more` of them, which the counters have to hold.
    fn n_rows_with(&self, more: u64) -> Result<u64> {
        let n = self.n_rows.saturating_add(more);
        if n > u64::from(u32::MAX) {
            return Err(Error::TooManyRows { n, capacity: u32::MAX.into() });
        }
        Ok(n)
    }
}

impl Magnitudes {
    /// Counts `rows`. `counts` is room for them, zeros before and after.
    fn record(&mut self, rows: &[&[f32]], counts: &mut [[u32; SLOTS]; 4]) {
        let mut largest = self.abs_max;
        for row in rows {
            let of_row = abs_max(row);
            let finite = |x: &&f32| x.is_finite();
            largest = if of_row.is_finite() {
                largest.max(of_row)
            } else {
                row.iter().filter(finite).fold(largest, |m, x| m.max(x.abs()))
            };
            self.n_zero += row.iter().map(|&x| u64::from(x == 0.0)).sum::<u64>();
        }
        self.raise_window(largest);
        for row in rows {
            count_magnitudes(row, self.floor, counts);
        }
        for of_four in counts {
            self.counts.iter_mut().zip(&*of_four).for_each(|(n, &more)| *n += u64::from(more));
            of_four.fill(0);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.raise_window(other.abs_max);
        let rise = (self.floor - other.floor) as usize;
        for (slot, count) in other.counts[..=BINS].iter().enumerate() {
            self.counts[slot.saturating_sub(rise)] += count;
        }
        self.counts[BINS + 1] += other.counts[BINS + 1];
        self.n_zero += other.n_zero;
    }

    /// Moves the histogram if `largest` is above its window.
    fn raise_window(&mut self, largest: f32) {
        self.abs_max = self.abs_max.max(largest);
        let floor = floor_of(self.abs_max);
        let rise = ((floor - self.floor) as usize).min(BINS);
        if rise > 0 {
            let below: u64 = self.counts[1..=rise].iter().sum();
            self.counts[0] += below;
            self.counts.copy_within(1 + rise..=BINS, 1);
            self.counts[1 + BINS - rise..=BINS].fill(0);
            self.floor = floor;
        }
    }

    fn bins(&self) -> Bins<'_, u64> {
        let Self { floor, counts, n_zero, abs_max } = self;
        Bins { floor: *floor, counts, n_zero: *n_zero, abs_max: *abs_max }
    }
}

/// Which elements of a row are worth multiplying.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseFfnGate {
    threshold: f32,
}

impl SparseFfnGate {
    /// A gate that keeps magnitudes of at least `threshold`, and NaN. Zeros are never kept.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if the threshold is negative or not finite.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::SparseFfnGate;
    ///
    /// let gate = SparseFfnGate::new(0.5)?;
    /// let mut x = [0.1, -0.75, 0.5, 0.0];
    /// let (mut indices, mut values) = ([0; 4], [0.0; 4]);
    /// let n = gate.select_into(&x, &mut indices, &mut values)?;
    /// assert_eq!((&indices[..n], &values[..n]), (&[1, 2][..], &[-0.75, 0.5][..]));
    /// assert_eq!(gate.apply_in_place(&mut x), 2);
    /// assert_eq!(x, [0.0, -0.75, 0.5, 0.0]);
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn new(threshold: f32) -> Result<Self> {
        check_threshold("threshold", threshold)?;
        Ok(Self { threshold })
    }

    /// The least magnitude that is kept.
    pub fn threshold(self) -> f32 {
        self.threshold
    }

    /// Writes the ascending indices of the active elements of `x`, and their values, to the front of `indices` and `values`, each as long as
    /// `x`, and returns how many there are: what [`gemv_sparse_into`](crate::PackedMatrix::gemv_sparse_into) takes. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::TooLarge`] for more than 2^32 elements. Then nothing is written.
    pub fn select_into(self, x: &[f32], indices: &mut [u32], values: &mut [f32]) -> Result<usize> {
        Error::check_length("indices", x.len(), indices.len())?;
        Error::check_length("values", x.len(), values.len())?;
        if x.len() as u64 > 1 << 32 {
            return Err(Error::TooLarge { shape: [1, x.len()] });
        }
        Ok(select_into(x, self.threshold, indices, values))
    }

    /// Makes the elements of `x`, of any shape, that are not active zero, and returns how many are active.
    pub fn apply_in_place(self, x: &mut [f32]) -> usize {
        zero_below_in_place(x, self.threshold)
    }
}

fn check_threshold(what: &'static str, value: f32) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::Value {
        what,
        value: value.into(),
        expected: "a finite number that is not negative",
    })
}

fn check_share(what: &'static str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::Value { what, value, expected: "0 to 1" })
}
