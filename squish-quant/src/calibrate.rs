//! Scales from what passes through a model: [`QuantAwareCalibrator`] sees batches of activations, and gives one scale per channel.
//!
//! ```text
//! scale[c] = clip[c] / target.max()
//! ```
//!
//! | [`Method`] | `clip` of a channel | from |
//! |---|---|---|
//! | `MinMax` | its largest magnitude | — |
//! | `Percentile(p)` | the p-th percentile of its magnitudes, interpolated linearly as `numpy.percentile` does | — |
//! | `Mse(search)` | what gives the least error `E \|x − decode(encode(x))\|^norm` | [`MseSearch`] |
//! | `Entropy` | what loses the least information: the Kullback-Leibler divergence of `TensorRT`'s calibration | [`entropy`](self#entropy) |
//!
//! All are computed from one statistic per channel, whatever the number of batches: minimum, maximum, numbers of zeros and of what is not
//! finite, and a histogram of magnitudes with 32 bins an octave over the 24 octaves below the largest
//! ([`squish_kernels::histogram`]); 3.2 KB in all. It is a function of the set of elements alone: batches in any order, and calibrators of parts
//! [merged](QuantAwareCalibrator::merge) in any order, give the same bits.
//!
//! A percentile lies in the right bin, so that it is off by less than 1/32, and on data with a density by less than 1 %. The error of a
//! candidate clip is the integral over each bin, whose elements count as spread evenly.
//!
//! | channel | scale |
//! |---|---|
//! | all zeros | 1 |
//! | one value | its magnitude divided by `target.max()`, by every method |
//! | nothing finite, or no rows at all | [`Error::NoData`] |
//! | a percentile of zero, most elements being zeros | as by `MinMax` |
//! | a percentile less than 2^-23 of the maximum | of the lowest magnitude in the histogram |
//! | so small that its reciprocal would be infinite | 2^-126 |
//!
//! # Entropy
//!
//! Magnitudes are counted in 2048 bins of equal width; of the clips at every 16th bin from 128 on that is chosen for which the distribution, the
//! clipped elements being in its last bin, is nearest to the one after quantization, in which bins that share a code share their sum. Zeros
//! say nothing about a clip: the first bin counts as many as the second.
//!
//! Sources: S. Migacz, "8-bit inference with `TensorRT`", 2017; H. Wu et al., arXiv 2004.09602, section 5, compares the methods.

use ndarray::{ArrayView2, Axis};

use squish_kernels::{
    columns::{ColumnRange, column_range},
    histogram::{BINS, SLOTS, count_columns, floor_of, rebase},
};

use crate::{
    band::check_rows,
    error::{Error, Result},
    parallel::{Rows, for_bands},
};

pub use target::Target;

pub(crate) use bins::Bins;
use search::Search;

mod bins;
mod entropy;
mod search;
mod target;

/// What is kept of each channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// Range and histogram, 3.2 KB a channel: for every method.
    #[default]
    Histogram,
    /// The range alone, 32 bytes a channel: for [`Method::MinMax`], at the speed of memory.
    MinMax,
}

/// What to make of NaN and infinities in a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NonFiniteBatch {
    /// Count them, and leave them out of everything else.
    #[default]
    Count,
    /// Refuse the batch with [`Error::NonFinite`], and record nothing of it.
    Refuse,
}

/// What a [`QuantAwareCalibrator`] keeps and refuses. Default: histograms, and what is not finite is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CalibratorOptions {
    /// What is kept of each channel.
    pub statistic: Statistic,
    /// What to make of NaN and infinities.
    pub non_finite: NonFiniteBatch,
}

/// How the clip of a channel is chosen; see the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Method {
    /// The largest magnitude.
    #[default]
    MinMax,
    /// A percentile of the magnitudes, 0 to 100; 99.9 and 99.99 are common.
    Percentile(f64),
    /// The least error.
    Mse(MseSearch),
    /// The least divergence.
    Entropy,
}

/// The candidates of [`Method::Mse`], and their measure.
///
/// `n_candidates` clips are tried from all of the largest magnitude down to `least` times it, each the same multiple of the one before; then 14
/// between the neighbors of the best. A candidate is taken only if its error is less than that of all before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MseSearch {
    /// The power of the error: 2 by default, 2.4 in llm-compressor.
    pub norm: f64,
    /// Number of candidates: 64 by default.
    pub n_candidates: usize,
    /// The least candidate, as a share of the largest magnitude. 1/16 by default: INT4 of a normal distribution is best clipped at half of its
    /// maximum, and much lower where a few elements are far out.
    pub least: f64,
}

impl Default for MseSearch {
    fn default() -> Self {
        Self { norm: 2.0, n_candidates: 64, least: 1.0 / 16.0 }
    }
}

/// Numbers of elements in all channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CalibrationStats {
    /// Rows recorded.
    pub n_rows: u64,
    /// Elements of all channels.
    pub n_elements: u64,
    /// How many of them are zero.
    pub n_zero: u64,
    /// How many are NaN or infinite, and so left out.
    pub n_non_finite: u64,
}

/// What is known of a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChannelStats {
    /// Least element, a zero being +0; +∞ if there is none.
    pub min: f32,
    /// Greatest element; −∞ if there is none.
    pub max: f32,
    /// Largest magnitude; 0 if there is no element.
    pub abs_max: f32,
    /// Number of finite elements.
    pub n_finite: u64,
    /// How many of them are zero.
    pub n_zero: u64,
    /// How many others there were.
    pub n_non_finite: u64,
}

/// Streaming statistics of channels, and the scales that follow from them; see the [module](self).
///
/// Two calibrators are equal if they have the same options and have seen the same elements in each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantAwareCalibrator {
    options: CalibratorOptions,
    n_rows: u64,
    ranges: Ranges,
    /// Floors of the windows of the histograms; none without histograms.
    floors: Vec<i32>,
    /// Histograms, `[channels, SLOTS]`.
    counts: Vec<u32>,
    /// The ranges of the batch that is being recorded; between calls those of nothing.
    batch: Ranges,
}

/// Ranges of all channels.
#[derive(Clone, Debug, PartialEq)]
struct Ranges {
    min: Vec<f32>,
    max: Vec<f32>,
    n_zero: Vec<u32>,
    n_non_finite: Vec<u32>,
}

impl Ranges {
    fn of_nothing(n: usize) -> Self {
        let (min, max) = (vec![f32::INFINITY; n], vec![f32::NEG_INFINITY; n]);
        Self { min, max, n_zero: vec![0; n], n_non_finite: vec![0; n] }
    }

    fn clear(&mut self) {
        self.min.fill(f32::INFINITY);
        self.max.fill(f32::NEG_INFINITY);
        self.n_zero.fill(0);
        self.n_non_finite.fill(0);
    }

    fn record(&mut self, rows: &[&[f32]]) {
        let Self { min, max, n_zero, n_non_finite } = self;
        column_range(rows, &mut ColumnRange { min, max, n_zero, n_non_finite });
    }

    fn merge(&mut self, other: &Self) {
        self.min.iter_mut().zip(&other.min).for_each(|(a, &b)| *a = a.min(b));
        self.max.iter_mut().zip(&other.max).for_each(|(a, &b)| *a = a.max(b));
        self.n_zero.iter_mut().zip(&other.n_zero).for_each(|(a, &b)| *a += b);
        self.n_non_finite.iter_mut().zip(&other.n_non_finite).for_each(|(a, &b)| *a += b);
    }

    /// 0 for a channel of which nothing is known.
    fn abs_max(&self, channel: usize) -> f32 {
        let (min, max) = (self.min[channel], self.max[channel]);
        if min > max { 0.0 } else { max.max(-min) }
    }
}

impl QuantAwareCalibrator {
    /// A calibrator of `n_channels` that has seen nothing.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if the histograms of so many channels cannot be addressed.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::{CalibratorOptions, Method, QuantAwareCalibrator, Target, IntFormat, IntRange, ndarray::array};
    ///
    /// let mut calibrator = QuantAwareCalibrator::new(2, CalibratorOptions::default())?;
    /// calibrator.record(array![[1.0, -127.0], [-2.0, 3.0]].view())?;
    /// calibrator.record(array![[0.5, f32::NAN]].view())?;
    /// let int8 = Target::Int(IntFormat::Int8, IntRange::Restricted);
    /// assert_eq!(calibrator.scales(Method::MinMax, int8)?, [2.0 / 127.0, 1.0]);
    /// assert_eq!(calibrator.stats().n_non_finite, 1);
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn new(n_channels: usize, options: CalibratorOptions) -> Result<Self> {
        let (n_floors, n_counts) = match options.statistic {
            Statistic::MinMax => (0, Some(0)),
            Statistic::Histogram => (n_channels, n_channels.checked_mul(SLOTS)),
        };
        let too_large = Error::TooLarge { shape: [n_channels, SLOTS] };
        let n_counts = n_counts
            .filter(|&n| isize::try_from(n).is_ok_and(|n| n <= isize::MAX / 4))
            .ok_or(too_large)?;
        Ok(Self {
            options,
            n_rows: 0,
            ranges: Ranges::of_nothing(n_channels),
            floors: vec![floor_of(0.0); n_floors],
            counts: vec![0; n_counts],
            batch: Ranges::of_nothing(n_channels),
        })
    }

    /// Adds the rows of `batch`, `[rows, channels]`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another number of channels, [`Error::Layout`] if rows are not contiguous, [`Error::TooManyRows`] beyond 2^32 − 1 rows
    /// in all, and [`Error::NonFinite`] if that is asked for. Then nothing is recorded.
    pub fn record(&mut self, batch: ArrayView2<'_, f32>) -> Result<()> {
        let [n_rows, n_channels] = batch.dim().into();
        if n_channels != self.n_channels() {
            let expected = [n_rows, self.n_channels()];
            return Err(Error::Shape { what: "batch", expected, actual: [n_rows, n_channels] });
        }
        check_rows("batch", batch.dim(), batch.strides())?;
        let total = self.n_rows_with(n_rows as u64)?;
        if n_channels > 0 {
            let mut rows = [&[][..]; PANEL_ROWS];
            for first in (0..n_rows).step_by(PANEL_ROWS) {
                self.batch.record(panel(&batch, first, &mut rows));
            }
            if self.options.non_finite == NonFiniteBatch::Refuse
                && self.batch.n_non_finite.iter().any(|&n| n > 0)
            {
                self.batch.clear();
                return Err(first_non_finite(&batch));
            }
            self.ranges.merge(&self.batch);
            self.batch.clear();
            if self.options.statistic == Statistic::Histogram {
                self.raise_windows();
                for first in (0..n_rows).step_by(PANEL_ROWS) {
                    count_columns(panel(&batch, first, &mut rows), &self.floors, &mut self.counts);
                }
            }
        }
        self.n_rows = total;
        Ok(())
    }

    /// Adds what `other` has seen. The order of merges has no effect on the result.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] for another number of channels, [`Error::Unsupported`] for another statistic, [`Error::TooManyRows`]. Then nothing is
    /// added.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Error::check_length("channels", self.n_channels(), other.n_channels())?;
        if self.options.statistic != other.options.statistic {
            return Err(Error::Unsupported {
                format: "merging of calibrators",
                what: "different statistics",
            });
        }
        let total = self.n_rows_with(other.n_rows)?;
        self.ranges.merge(&other.ranges);
        self.raise_windows();
        let (counts, others) =
            (self.counts.as_chunks_mut::<SLOTS>().0, other.counts.as_chunks::<SLOTS>().0);
        for (i, (counts, other_counts)) in counts.iter_mut().zip(others).enumerate() {
            // This window is that of the larger maximum, and so not below the other one.
            let rise = (self.floors[i] - other.floors[i]) as usize;
            for (slot, count) in other_counts.iter().enumerate().take(BINS + 1) {
                counts[slot.saturating_sub(rise)] += count;
            }
            counts[BINS + 1] += other_counts[BINS + 1];
        }
        self.n_rows = total;
        Ok(())
    }

    /// One scale per channel, as [`IntQuantizer`](crate::IntQuantizer) and [`Fp8Quantizer`](crate::Fp8Quantizer) take them.
    ///
    /// # Errors
    ///
    /// [`Error::NoData`] for a channel without a finite element, [`Error::Unsupported`] for a method that needs histograms where there are none,
    /// [`Error::Value`] for a percentile or a search that is none.
    pub fn scales(&self, method: Method, target: Target) -> Result<Vec<f32>> {
        let mut scales = vec![0.0; self.n_channels()];
        self.scales_into(method, target, &mut scales)?;
        Ok(scales)
    }

    /// [`QuantAwareCalibrator::scales`] into `scales`, `[channels]`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`QuantAwareCalibrator::scales`], and [`Error::Length`]. Then nothing is written.
    pub fn scales_into(&self, method: Method, target: Target, scales: &mut [f32]) -> Result<()> {
        Error::check_length("scales", self.n_channels(), scales.len())?;
        self.check_method(method)?;
        if let Some(channel) = (0..self.n_channels()).find(|&i| self.n_finite(i) == 0) {
            return Err(Error::NoData { what: "channel", index: channel });
        }
        let search = match method {
            Method::Mse(options) => Some(Search::new(target, options)?),
            _ => None,
        };
        let bytes = if method == Method::MinMax { 0 } else { size_of_val(&self.counts[..]) };
        for_bands(Channels { first: 0, scales }, 1, bytes, &|Channels { first, scales }| {
            for (i, scale) in scales.iter_mut().enumerate() {
                let clip = self.clip(first + i, method, target, search.as_ref());
                *scale = if clip == 0.0 {
                    1.0
                } else {
                    ((clip / f64::from(target.max())) as f32).max(f32::MIN_POSITIVE)
                };
            }
            Ok(())
        })
    }

    /// The `p`-th percentile of the magnitudes of a channel, as [`Method::Percentile`] takes it.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a channel that is not there, and as [`QuantAwareCalibrator::scales`].
    pub fn percentile(&self, channel: usize, p: f64) -> Result<f32> {
        Error::check_index("channel", channel, self.n_channels())?;
        self.check_method(Method::Percentile(p))?;
        if self.n_finite(channel) == 0 {
            return Err(Error::NoData { what: "channel", index: channel });
        }
        Ok(self.bins(channel).quantile(self.n_finite(channel), p / 100.0) as f32)
    }

    /// The largest magnitude of each channel, 0 if it has no finite element: what [`smooth_scales`](crate::smooth_scales) takes.
    pub fn abs_max(&self) -> Vec<f32> {
        (0..self.n_channels()).map(|channel| self.ranges.abs_max(channel)).collect()
    }

    /// What is known of a channel, if it is there.
    pub fn channel(&self, channel: usize) -> Option<ChannelStats> {
        Some(ChannelStats {
            min: *self.ranges.min.get(channel)?,
            max: self.ranges.max[channel],
            abs_max: self.ranges.abs_max(channel),
            n_finite: self.n_finite(channel),
            n_zero: self.ranges.n_zero[channel].into(),
            n_non_finite: self.ranges.n_non_finite[channel].into(),
        })
    }

    /// Numbers of elements in all channels.
    pub fn stats(&self) -> CalibrationStats {
        let sum = |counts: &[u32]| counts.iter().map(|&n| u64::from(n)).sum();
        CalibrationStats {
            n_rows: self.n_rows,
            n_elements: self.n_rows * self.n_channels() as u64,
            n_zero: sum(&self.ranges.n_zero),
            n_non_finite: sum(&self.ranges.n_non_finite),
        }
    }

    /// Number of channels.
    pub fn n_channels(&self) -> usize {
        self.ranges.min.len()
    }

    /// What is kept and refused.
    pub fn options(&self) -> CalibratorOptions {
        self.options
    }

    /// Bytes of memory that the statistics take, for ever.
    pub fn memory_bytes(&self) -> usize {
        let ranges = 2 * self.n_channels() * 4 * size_of::<u32>();
        ranges + size_of_val(&self.floors[..]) + size_of_val(&self.counts[..])
    }

    /// The number of rows with `more` of them, which the counters have to hold.
    fn n_rows_with(&self, more: u64) -> Result<u64> {
        let n = self.n_rows.saturating_add(more);
        if n > u64::from(u32::MAX) {
            return Err(Error::TooManyRows { n, capacity: u32::MAX.into() });
        }
        Ok(n)
    }

    fn n_finite(&self, channel: usize) -> u64 {
        self.n_rows - u64::from(self.ranges.n_non_finite[channel])
    }

    /// Moves the histograms whose largest magnitude has grown.
    fn raise_windows(&mut self) {
        let counts = self.counts.as_chunks_mut::<SLOTS>().0;
        for (i, (floor, counts)) in self.floors.iter_mut().zip(counts).enumerate() {
            let risen = floor_of(self.ranges.abs_max(i));
            if risen > *floor {
                rebase(counts, (risen - *floor) as usize);
                *floor = risen;
            }
        }
    }

    fn check_method(&self, method: Method) -> Result<()> {
        if let Method::Percentile(p) = method
            && !(0.0..=100.0).contains(&p)
        {
            return Err(Error::Value { what: "percentile", value: p, expected: "0 to 100" });
        }
        if method != Method::MinMax && self.options.statistic == Statistic::MinMax {
            return Err(Error::Unsupported {
                format: "a statistic of minima and maxima",
                what: "methods other than `MinMax`",
            });
        }
        Ok(())
    }

    /// The clip of a channel with finite elements, 0 if all are zeros.
    fn clip(&self, channel: usize, method: Method, target: Target, search: Option<&Search>) -> f64 {
        let abs_max = f64::from(self.ranges.abs_max(channel));
        if abs_max == 0.0 || self.ranges.min[channel] == self.ranges.max[channel] {
            return abs_max;
        }
        match (method, search) {
            (Method::Percentile(p), _) => {
                let clip = self.bins(channel).quantile(self.n_finite(channel), p / 100.0);
                if clip == 0.0 { abs_max } else { clip }
            }
            (Method::Mse(_), Some(search)) => search.clip(&self.bins(channel)),
            (Method::Entropy, _) => entropy::clip(&self.bins(channel), target),
            _ => abs_max,
        }
    }

    /// The histogram of a channel, if there are histograms.
    fn bins(&self, channel: usize) -> Bins<'_, u32> {
        Bins {
            floor: self.floors[channel],
            counts: &self.counts[channel * SLOTS..(channel + 1) * SLOTS],
            n_zero: self.ranges.n_zero[channel].into(),
            abs_max: self.ranges.abs_max(channel),
        }
    }
}

/// Rows that are walked at once: so many that a block of histograms, once in cache, is used some times, and so few that the list of them
/// fits on the stack.
pub(crate) const PANEL_ROWS: usize = 64;

/// The rows of `x` from `first` on, at most as many as `rows` holds. `x` has columns, and its rows are contiguous.
pub(crate) fn panel<'a, 'r>(
    x: &ArrayView2<'a, f32>,
    first: usize,
    rows: &'r mut [&'a [f32]; PANEL_ROWS],
) -> &'r [&'a [f32]] {
    let [n_rows, n_cols] = x.dim().into();
    let n = PANEL_ROWS.min(n_rows - first);
    if let Some(all) = x.to_slice() {
        for (to, row) in rows.iter_mut().zip(all[first * n_cols..].chunks_exact(n_cols)) {
            *to = row;
        }
    } else {
        for (i, to) in rows[..n].iter_mut().enumerate() {
            let row = x.index_axis_move(Axis(0), first + i);
            *to = row.to_slice().expect("rows were checked to be contiguous");
        }
    }
    &rows[..n]
}

/// The error for the first element that is not finite, `x` being known to have one.
#[cold]
fn first_non_finite(x: &ArrayView2<'_, f32>) -> Error {
    let (index, &value) =
        x.iter().enumerate().find(|(_, x)| !x.is_finite()).expect("one was counted");
    Error::NonFinite { index, value }
}

/// Channels whose scales are wanted.
struct Channels<'a> {
    first: usize,
    scales: &'a mut [f32],
}

impl Rows for Channels<'_> {
    fn n_rows(&self) -> usize {
        self.scales.len()
    }

    fn split_at_row(self, n: usize) -> (Self, Self) {
        let (scales, rest) = self.scales.split_at_mut(n);
        (Self { first: self.first, scales }, Self { first: self.first + n, scales: rest })
    }
}
