//! Quantized copies of a checkpoint: [`quantize`].
//!
//! | [`WeightFormat`] | in [`SavedLayout::CompressedTensors`] | tensors of a layer `X` |
//! |---|---|---|
//! | `Stored`, `F32`, `Bf16`, `F16` | no `quantization_config` | `weight` |
//! | `Fp8E4M3` | `float-quantized`, strategy `channel` | `weight` `F8_E4M3`, `weight_scale` `[rows, 1]` |
//! | `MxFp4` | `mxfp4-pack-quantized` | `weight_packed` U8, `weight_scale` U8 |
//! | `Int8` | `pack-quantized`: groups of 128, or `channel` if `cols` is no multiple | `weight_packed` I32, `weight_scale`, `weight_shape` I64 |
//! | `Int4` | `pack-quantized`: groups of 32, or `channel` if `cols` is no multiple | the same |
//!
//! The inputs of products are left alone: no `input_activations`, unless [`quantize_calibrated`] makes static scales of them. In [`SavedLayout::Squish`] every layer and the head, tied or not, has one
//! tensor `weight_panels`, U8, with the bytes of [`squish_quant::PackedMatrix::write`], which start on a line of 64 bytes of the file and
//! are used there; `config.json` gets
//!
//! ```json
//! "quantization_config": {"quant_method": "squish", "version": 1, "format": "int4", "head": "stored", "activation": "q8"}
//! ```
//!
//! of which a reader needs the first two. Norms, biases and the embedding stay as they are.
//!
//! **The folder** appears when it is whole. Everything is written to a folder beside it, `.NAME.squish-partial`, synced to disk, and then
//! given its name; whoever is killed before leaves that folder, and the next call replaces it. Two calls at once do not disturb each other:
//! the partial folder is locked, where the system has locks.
//!
//! **Memory** is that of one tensor, at most, in `f32`, with its codes. The order of tensors in a file is by type, so that the codes of a
//! layer and its scales are apart: a matrix is quantized for each of the two.

use std::path::Path;

use squish_checkpoint::{
    Alignment, Checkpoint, CheckpointWriter, TensorInfo, TensorSpec, WriterOptions,
};
use squish_quant::{Activation, IntFormat, IntRange, Method, ScaleType, Target};

use crate::{
    Calibration, Config, Error, Projection, Quantization, Scaled, Site, StaticScales, TensorSource,
    WeightFormat, WeightMethod, error::read,
};

mod folder;
mod json;
mod matrix;
mod plan;

use folder::PartialFolder;
#[cfg(feature = "chat")]
pub(crate) use folder::TEMPLATES;
use matrix::{Sink, dtype};
use plan::Plan;

/// How quantized weights are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SavedLayout {
    /// As compressed-tensors has it, for vLLM, transformers and this crate, which packs it again each time that it is loaded.
    #[default]
    CompressedTensors,
    /// As products read it: for this crate alone, which maps it.
    Squish,
}

/// What [`quantize`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// Format of the matrices of layers.
    pub format: WeightFormat,
    /// Format of the head; by default what it is. The embedding is no other, so that a head that is tied to it cannot be quantized, but in
    /// [`SavedLayout::Squish`], which gives it a copy.
    pub head: WeightFormat,
    /// The layout.
    pub layout: SavedLayout,
    /// Type of the scales of FP8 and integers in [`SavedLayout::CompressedTensors`]. With F32, as by default, weights are those that the
    /// same format has when it is packed at loading; codes are made for scales that are rounded to the other types.
    pub scales: ScaleType,
    /// What the inputs of products are rounded to, which [`SavedLayout::Squish`] depends on; by default what the format has by default.
    pub activation: Option<Activation>,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self {
            format: WeightFormat::default(),
            head: WeightFormat::default(),
            layout: SavedLayout::default(),
            scales: ScaleType::F32,
            activation: None,
        }
    }
}

impl QuantizeOptions {
    /// Layers in `format`, the head as it is, as compressed-tensors has it.
    pub fn of(format: WeightFormat) -> Self {
        Self { format, ..Self::default() }
    }

    /// The same in another layout.
    #[must_use]
    pub fn laid_out(self, layout: SavedLayout) -> Self {
        Self { layout, ..self }
    }
}

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The tensor that was just written.
    pub tensor: &'a str,
    /// Bytes of tensors that are written.
    pub n_written: u64,
    /// Bytes of all tensors.
    pub n_bytes: u64,
}

/// What was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Tensors that were written.
    pub n_tensors: usize,
    /// Their bytes.
    pub n_bytes: u64,
    /// Bytes of the tensors that were read.
    pub n_bytes_read: u64,
    /// Matrices that were not copied as they were.
    pub n_matrices: usize,
    /// Weights of these.
    pub n_weights: u64,
    /// Bytes that they take, with all that belongs to them.
    pub n_matrix_bytes: u64,
}

impl Report {
    /// Bits per weight of the matrices that were not copied; NaN if all were.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.n_matrix_bytes as f64 / self.n_weights as f64
    }
}

/// A copy of the checkpoint in the folder `from` with quantized weights, as the new folder `to`: configuration, tokenizer, chat template
/// and all. See the [module](self).
///
/// # Errors
///
/// Those of [`Config::from_json`] and [`Checkpoint::open`]; [`Error::Unsupported`] of weights that are quantized already, or of a format
/// that the layout does not have; [`Error::Checkpoint`] of a matrix that is missing or has another shape, of a folder `to` that exists
/// (`Exists`) or of a file that cannot be written; [`Error::Dtype`]; [`Error::Pack`] of weights that are not finite or do not divide into
/// blocks. Then nothing is left.
///
/// # Examples
///
/// ```
/// use squish_model::{LoadOptions, Model, QuantizeOptions, SavedLayout, WeightFormat, quantize};
///
/// # let folder = tempfile::tempdir()?;
/// # let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");
/// # let to = folder.path().join("mxfp4");
/// let report = quantize(base, &to, &QuantizeOptions::of(WeightFormat::MxFp4).laid_out(SavedLayout::Squish))?;
/// assert!(report.n_bytes < report.n_bytes_read / 2);
///
/// // Mapped, and used where it lies.
/// let model = Model::open(&to, &LoadOptions::default())?;
/// assert!(model.n_own_bytes() < model.n_bytes() / 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn quantize(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &QuantizeOptions,
) -> Result<Report, Error> {
    quantize_with(from, to, options, &mut |_| {})
}

/// [`quantize`], which says after each tensor how far it is.
///
/// # Errors
///
/// As there.
pub fn quantize_with(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    quantize_by(from.as_ref(), to.as_ref(), *options, None, progress)
}

/// What is made of a [`Calibration`].
///
/// | method | changes | formats |
/// |---|---|---|
/// | `Weights` | matrices, norms and biases, as [`Scaled`] has them | all |
/// | `Inputs` | adds `input_scale`, F32 `[1]`, to each matrix of a layer, and `input_activations` to its scheme | `Fp8E4M3`, `Int8`, in [`SavedLayout::CompressedTensors`] |
///
/// With static scales INT8 is `int-quantized`, with a scale for each output: `weight` I8, `weight_scale` `[rows, 1]`, as no program multiplies
/// groups of weights with inputs that have one scale. This crate reads such a checkpoint's weights, and rounds inputs as
/// [`LoadOptions::activation`](crate::LoadOptions) says; [`StaticScales`] computes what others do with them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CalibrationMethod {
    /// Scales of input channels, in the weights.
    Weights(WeightMethod),
    /// Scales that inputs are rounded with.
    Inputs(Method),
}

impl CalibrationMethod {
    /// Whether the method goes with these options, so that nothing is recorded in vain.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] of static scales for a format or a layout that does not have them.
    pub fn check(self, options: &QuantizeOptions) -> Result<(), Error> {
        match self {
            Self::Weights(_) => Ok(()),
            Self::Inputs(_) => input_target(*options).map(|_| ()),
        }
    }
}

/// [`quantize_with`], calibrated.
///
/// # Errors
///
/// As there; [`Error::Unsupported`] of static scales for a format or a layout that does not have them; those of [`Scaled::new`] and
/// [`StaticScales::new`].
///
/// # Examples
///
/// ```
/// use squish_model::{
///     Calibration, CalibrationMethod, CalibrationOptions, LoadOptions, Model, QuantizeOptions, Runner, RunnerOptions, WeightFormat,
///     WeightMethod, quantize_calibrated,
/// };
///
/// # let folder = tempfile::tempdir()?;
/// # let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");
/// # let to = folder.path().join("int4");
/// let model = Model::open(base, &LoadOptions::default().exact())?;
/// let mut runner = Runner::new(model, &RunnerOptions::default())?;
/// let texts: [&[u32]; 1] = [&[0, 5, 6, 7]];
/// let calibration = Calibration::record(&mut runner, texts, CalibrationOptions::default())?;
/// let method = CalibrationMethod::Weights(WeightMethod::Awq(Default::default()));
/// quantize_calibrated(base, &to, &QuantizeOptions::of(WeightFormat::Int4), &calibration, method, &mut |_| {})?;
/// # Model::open(&to, &LoadOptions::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn quantize_calibrated(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &QuantizeOptions,
    calibration: &Calibration,
    method: CalibrationMethod,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    quantize_by(from.as_ref(), to.as_ref(), *options, Some((calibration, method)), progress)
}

fn quantize_by(
    from: &Path,
    to: &Path,
    options: QuantizeOptions,
    calibrated: Option<(&Calibration, CalibrationMethod)>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    let path = from.join("config.json");
    let json = read(&path)?;
    if let Some(quantization) = Quantization::from_json(&json).map_err(Error::in_file(&path))? {
        let (field, supported) = ("quantization_config", "weights that are floats");
        let actual = format!("of method `{}`", quantization.method());
        return Err(Error::Unsupported { field, actual, supported });
    }
    let config = Config::open(from)?;
    let checkpoint = Checkpoint::open(from)?;
    let (mut scaled, mut inputs) = (None, None);
    match calibrated {
        Some((calibration, CalibrationMethod::Weights(method))) => {
            let format = options.format;
            scaled = Some(Scaled::new(&checkpoint, &config, calibration, method, format)?);
        }
        Some((calibration, CalibrationMethod::Inputs(method))) => {
            let target = input_target(options)?;
            calibration.check(&config)?;
            inputs = Some(StaticScales::new(calibration, method, target)?);
        }
        None => {}
    }
    let source =
        Source { checkpoint: &checkpoint, scaled: scaled.as_ref(), inputs: inputs.as_ref() };
    let plan = Plan::new(source, &config, options)?;
    let json = json::with_quantization(&json, plan.quantization_config(options))?;

    let partial = PartialFolder::create(to)?;
    let report = write_tensors(&partial, source, &plan, options.layout, progress)?;
    partial.write("config.json", &json)?;
    partial.copy_texts(from)?;
    partial.finish()?;
    Ok(report)
}

/// What the inputs of products are rounded to with static scales.
fn input_target(options: QuantizeOptions) -> Result<Target, Error> {
    match (options.layout, options.format) {
        (SavedLayout::CompressedTensors, WeightFormat::Fp8E4M3) => Ok(Target::E4M3),
        (SavedLayout::CompressedTensors, WeightFormat::Int8) => {
            Ok(Target::Int(IntFormat::Int8, IntRange::Full))
        }
        (layout, format) => {
            let (field, actual) = ("format", format!("{format} in the layout {layout}"));
            let supported = "with static scales of inputs `fp8-e4m3` and `int8` in the layout `compressed-tensors`";
            Err(Error::Unsupported { field, actual, supported })
        }
    }
}

/// What tensors are made of.
#[derive(Clone, Copy)]
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    scaled: Option<&'a Scaled<'a>>,
    inputs: Option<&'a StaticScales>,
}

impl<'a> Source<'a> {
    fn tensors(self) -> &'a dyn TensorSource {
        match self.scaled {
            Some(scaled) => scaled,
            None => self.checkpoint,
        }
    }

    /// Of a tensor that is no matrix in another format.
    fn spec(self, info: &TensorInfo) -> Result<TensorSpec, Error> {
        let Some(scaled) = self.scaled.filter(|scaled| scaled.changes(info.name())) else {
            return Ok(info.into());
        };
        let dense = scaled.tensor(info.name(), info.shape())?.dense();
        Ok(TensorSpec::new(info.name(), dtype(dense), info.shape()))
    }

    fn write(self, name: &str, sink: &mut Sink<'_>) -> Result<(), Error> {
        let tensor = self.checkpoint.tensor(name)?;
        match self.scaled.filter(|scaled| scaled.changes(name)) {
            Some(scaled) => sink(scaled.tensor(name, tensor.shape())?.bytes()),
            None => sink(tensor.bytes()),
        }
    }

    /// That of a matrix.
    fn input_scale(self, layer: usize, projection: Projection) -> Option<f32> {
        let projection = projection.sharing();
        self.inputs?.scale(Site { layer, projection })
    }
}

fn write_tensors(
    partial: &PartialFolder,
    source: Source<'_>,
    plan: &Plan,
    layout: SavedLayout,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    let writer_options = WriterOptions {
        metadata: source.checkpoint.metadata().clone(),
        alignment: match layout {
            SavedLayout::CompressedTensors => Alignment::Elements,
            SavedLayout::Squish => Alignment::Line,
        },
        ..WriterOptions::default()
    };
    let mut writer = CheckpointWriter::create(partial.path(), &plan.specs(), &writer_options)?;
    let n_bytes = plan.report().n_bytes;
    let mut n_written = 0;
    while let Some(spec) = writer.next_tensor().cloned() {
        plan.write(source, &spec.name, &mut |piece| {
            n_written += piece.len() as u64;
            Ok(writer.write_part(&spec.name, piece)?)
        })?;
        progress(Progress { tensor: &spec.name, n_written, n_bytes });
    }
    writer.finish()?;
    Ok(plan.report())
}

impl SavedLayout {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::CompressedTensors, Self::Squish];

    /// Its name, lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CompressedTensors => "compressed-tensors",
            Self::Squish => "squish",
        }
    }
}

impl std::fmt::Display for SavedLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for SavedLayout {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|layout| layout.name() == name).ok_or_else(|| Error::Name {
            what: "layout of quantized weights",
            actual: crate::error::clip(name),
            expected: "compressed-tensors or squish",
        })
    }
}
