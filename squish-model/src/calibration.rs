//! What the matrices of a model multiply, over texts, and what follows from it: scales of weights' columns and of inputs.
//!
//! [`Calibration::record`] lets a model read texts, and keeps of the inputs of each matrix, by [`Site`]:
//!
//! | statistic | bytes | for |
//! |---|---|---|
//! | least and greatest number of each channel | 32 a channel | [`WeightMethod::Smooth`] |
//! | one histogram of the magnitudes in all channels | 3.2 K | [`StaticScales`] |
//! | some rows, spread evenly over all of them | 4 a channel and row | [`WeightMethod::Awq`] |
//!
//! Queries, keys and values have one input, and so have gate and up, so that a layer has four sites; the head has none. Memory does not depend
//! on how much is read: at 128 rows 544 bytes a channel, of a model of 8 billion weights 0.5 GB.
//!
//! The rows are a sample without replacement in which each row of all texts is equally likely (A. Waterman's algorithm R in J. Vitter, ACM TOMS
//! 11, 1985), the same ones at each site. The choice depends on the number of a row alone: the same texts in the same order give the same calibration,
//! whatever the runner's pieces.
//!
//! | part | does |
//! |---|---|
//! | [`WeightMethod`], [`Scaled`] | scales of input channels that change weights, and nothing that is computed: `SmoothQuant`, AWQ |
//! | [`StaticScales`] | one scale of the inputs of each matrix, of [`squish_quant::Method`]: [`Rounding`](crate::Rounding) |

use std::collections::{HashMap, hash_map::Entry};

use squish_quant::{
    CalibratorOptions, QuantAwareCalibrator, Statistic,
    ndarray::{Array2, ArrayView2, Axis},
};

use crate::{Config, Error, Hooks, Part, Projection, Recorder, Runner, Site};

pub mod fold;
mod inputs;

pub use fold::{GroupScales, Scaled, WeightMethod};
pub use inputs::StaticScales;
pub use squish_quant::{AwqSearch, Method, MseSearch, Target};

/// How texts are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationOptions {
    /// Tokens of a window: longer texts are cut. By default the model's context, 2048 at most.
    pub window: Option<usize>,
    /// Rows that are kept of each site: 128 by default.
    pub n_rows: usize,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        Self { window: None, n_rows: 128 }
    }
}

impl CalibrationOptions {
    /// Tokens of a window of a model whose context is `context`: as many as a runner has to have room for.
    pub fn window_of(self, context: usize) -> usize {
        self.window.unwrap_or(2048).min(context)
    }
}

/// Statistics of the inputs of a model's matrices; see the [module](self).
#[derive(Clone, Debug)]
pub struct Calibration {
    sites: HashMap<Site, Inputs>,
    n_texts: usize,
    n_tokens: u64,
    n_rows: usize,
}

/// What is known of the inputs of one site.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// Ranges of channels.
    channels: QuantAwareCalibrator,
    /// All channels as one, with a histogram.
    all: QuantAwareCalibrator,
    /// Of the rows that were seen some: `[n_rows, channels]`, of which the first `n_kept` are filled.
    sample: Array2<f32>,
    n_seen: u64,
}

impl Calibration {
    /// What the matrices of the runner's model multiply while it reads `texts`, each with nothing before it, in windows that do not overlap.
    ///
    /// For scales of a model's own inputs it should be loaded as it is stored, with inputs that are not rounded
    /// ([`LoadOptions::exact`](crate::LoadOptions::exact)).
    ///
    /// # Errors
    ///
    /// [`Error::TooFewTokens`] if there is no token in all texts; [`Error::Zero`] for no rows or a window of none; [`Error::Token`]; those of
    /// [`Runner::forward`]; [`Error::Product`] beyond 2^32 − 1 numbers of a site, with 14,336 channels after 299,000 tokens.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_model::{
    ///     Calibration, CalibrationOptions, Config, LoadOptions, Model, RandomCheckpoint, Runner, RunnerOptions,
    /// };
    ///
    /// let random = RandomCheckpoint { config: Config::llama(64, 96, 2, [4, 2, 16], 100, 32), seed: 7 };
    /// let model = Model::load(&random, &random.config, &LoadOptions::default().exact())?;
    /// let mut runner = Runner::new(model, &RunnerOptions::default())?;
    /// let texts: [&[u32]; 2] = [&[1, 2, 3], &[4; 50]];
    /// let calibration = Calibration::record(&mut runner, texts, CalibrationOptions::default())?;
    /// assert_eq!((calibration.n_texts(), calibration.n_tokens()), (2, 53));
    /// # Ok::<(), squish_model::Error>(())
    /// ```
    pub fn record<'t>(
        runner: &mut Runner,
        texts: impl IntoIterator<Item = &'t [u32]>,
        options: CalibrationOptions,
    ) -> Result<Self, Error> {
        let context = runner.config().max_position_embeddings;
        let window = options.window_of(context);
        for (what, n) in [("n_rows", options.n_rows), ("window", window)] {
            if n == 0 {
                return Err(Error::Zero { what });
            }
        }
        let (sites, n_rows) = (HashMap::new(), options.n_rows);
        let mut calibration = Self { sites, n_texts: 0, n_tokens: 0, n_rows };
        for text in texts {
            calibration.n_texts += 1;
            for tokens in text.chunks(window) {
                calibration.read(runner, tokens)?;
            }
        }
        if calibration.n_tokens == 0 {
            return Err(Error::TooFewTokens { expected: 1, actual: 0 });
        }
        Ok(calibration)
    }

    /// A window, in the runner's pieces.
    fn read(&mut self, runner: &mut Runner, tokens: &[u32]) -> Result<(), Error> {
        let id = runner.create()?;
        let result = tokens.chunks(runner.chunk()).try_for_each(|tokens| {
            self.n_tokens += tokens.len() as u64;
            let mut recording = Recording { calibration: self, result: Ok(()) };
            let mut hooks = Hooks { recorder: Some(&mut recording), ..Hooks::default() };
            runner.forward_with(&[Part::new(id, tokens)], &mut hooks)?.commit()?;
            Ok(recording.result?)
        });
        runner.free(id)?;
        result
    }

    fn add(&mut self, site: Site, x: ArrayView2<'_, f32>) -> Result<(), squish_quant::Error> {
        let inputs = match self.sites.entry(site) {
            Entry::Occupied(inputs) => inputs.into_mut(),
            Entry::Vacant(place) => place.insert(Inputs::new(x.ncols(), self.n_rows)?),
        };
        inputs.record(x)
    }

    /// Texts that were read.
    pub fn n_texts(&self) -> usize {
        self.n_texts
    }

    /// Tokens of these.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The largest magnitude of each channel of a site's inputs. None of a site that is not shown: of the matrices that share their input
    /// with [`Projection::Q`] or [`Projection::Gate`], of the head, and of layers that the model does not have.
    pub fn abs_max(&self, site: Site) -> Option<Vec<f32>> {
        self.sites.get(&site).map(Inputs::abs_max)
    }

    /// Some rows of a site's inputs, `[rows, channels]`; none as [`abs_max`](Self::abs_max).
    pub fn sample(&self, site: Site) -> Option<ArrayView2<'_, f32>> {
        self.sites.get(&site).map(Inputs::sample)
    }

    /// Whether it is of a model with `config`.
    pub(crate) fn check(&self, config: &Config) -> Result<(), Error> {
        for layer in 0..config.n_layers() {
            for projection in Projection::OF_LAYER.map(Projection::sharing) {
                self.inputs(Site { layer, projection }, config)?;
            }
        }
        Ok(())
    }

    /// What is known of a site that a model with `config` has.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if it is of another model.
    fn inputs(&self, site: Site, config: &Config) -> Result<&Inputs, Error> {
        let [_, expected] = site.projection.shape(config);
        let inputs = self.sites.get(&site);
        let actual = inputs.map_or(0, Inputs::len);
        inputs.filter(|_| actual == expected).ok_or_else(|| {
            let module = site.projection.module(site.layer);
            Error::Calibration { module, expected, actual }
        })
    }
}

/// A pass that is recorded, with what went wrong first.
struct Recording<'a> {
    calibration: &'a mut Calibration,
    result: Result<(), squish_quant::Error>,
}

impl Recorder for Recording<'_> {
    fn record(&mut self, site: Site, x: ArrayView2<'_, f32>) {
        if self.result.is_ok() {
            self.result = self.calibration.add(site, x);
        }
    }
}

impl Inputs {
    fn new(n_channels: usize, n_rows: usize) -> Result<Self, squish_quant::Error> {
        let ranges = CalibratorOptions { statistic: Statistic::MinMax, ..Default::default() };
        Ok(Self {
            channels: QuantAwareCalibrator::new(n_channels, ranges)?,
            all: QuantAwareCalibrator::new(1, CalibratorOptions::default())?,
            sample: Array2::zeros([n_rows, n_channels]),
            n_seen: 0,
        })
    }

    fn record(&mut self, x: ArrayView2<'_, f32>) -> Result<(), squish_quant::Error> {
        self.channels.record(x)?;
        let column = x.to_shape((x.len(), 1)).expect("the rows of a pass are contiguous");
        self.all.record(column.view())?;
        for row in x.rows() {
            let n_kept = self.sample.nrows() as u64;
            let place = if self.n_seen < n_kept { self.n_seen } else { place_of(self.n_seen) };
            if place < n_kept {
                self.sample.row_mut(place as usize).assign(&row);
            }
            self.n_seen += 1;
        }
        Ok(())
    }

    /// Number of channels.
    fn len(&self) -> usize {
        self.channels.n_channels()
    }

    fn abs_max(&self) -> Vec<f32> {
        self.channels.abs_max()
    }

    fn sample(&self) -> ArrayView2<'_, f32> {
        let n_kept = self.n_seen.min(self.sample.nrows() as u64) as usize;
        self.sample.view().split_at(Axis(0), n_kept).0
    }
}

/// Which row of a full sample row number `i` replaces, if the sample has so many: a number of 0 to `i`, each as likely.
fn place_of(i: u64) -> u64 {
    // SplitMix64's output function spreads the numbers of rows over 64 bits; the remainder is off by less than 2^-32.
    let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % (i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_kept_as_often_as_any_other() {
        // A sample of 8 of 64 rows, for many beginnings: how many are of each quarter.
        let (mut of_quarter, n_samples) = ([0; 4], 2000);
        for start in 0..n_samples {
            let mut kept: Vec<u64> = (0..8).collect();
            for i in 8..64 {
                // Another seed: rows that are as many multiples of the number of rows behind.
                let place = place_of(i + start * (i + 1) * 64) % (i + 1);
                if place < 8 {
                    kept[place as usize] = i;
                }
            }
            for i in kept {
                of_quarter[i as usize / 16] += 1;
            }
        }
        for n in of_quarter {
            assert!((3800..4200).contains(&n), "{of_quarter:?}");
        }
    }
}
