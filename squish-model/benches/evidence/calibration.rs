//! Calibration: static scales of inputs by method, and scales of input channels in weights.

use squish_bench::{Cell, Format, Section};
use squish_eval::KlReport;
use squish_model::{
    Calibration, CalibrationOptions, Dense, DenseTensor, Error, Hooked, Hooks, KvType, LoadOptions,
    Model, Projection, Rounding, Scaled, Site, StaticScales, TensorSource, WeightFormat,
    WeightMethod,
    calibration::{AwqSearch, Method, MseSearch, Target},
    ndarray::ArrayViewMut2,
};
use squish_quant::{IntFormat, IntRange, hadamard_block, hadamard_in_place};

use crate::setup::{Kind, Setup, cells_of, load};

/// Kinds of text that are scored.
const KINDS: [Kind; 2] = [Kind::Prose, Kind::Code];

/// Formats that inputs are rounded to as well, with a scale for each matrix.
const STATIC: [(WeightFormat, Target); 2] = [
    (WeightFormat::Int8, Target::Int(IntFormat::Int8, IntRange::Full)),
    (WeightFormat::Fp8E4M3, Target::E4M3),
];

/// Formats of weights alone.
const WEIGHTS: [WeightFormat; 3] = [WeightFormat::Int4, WeightFormat::MxFp4, WeightFormat::NvFp4];

const SMOOTH: WeightMethod = WeightMethod::Smooth { alpha: 0.5 };

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    let base =
        KINDS.map(|kind| setup.logits(&mut setup.runner(setup.exact_model(), KvType::F32), kind));
    let mut bench = Bench { setup, base, rows: Vec::new() };
    let calibration = bench.record(setup.source());
    for (format, target) in STATIC {
        bench.inputs(&calibration, format, target);
    }
    for format in WEIGHTS {
        bench.weights(&calibration, format);
    }
    vec![bench.section()]
}

/// What is measured, and what came of it.
struct Bench<'a> {
    setup: &'a Setup,
    /// Logits of the model as it is, by kind.
    base: [Vec<f32>; 2],
    /// Format of weights, what happens to inputs, method, by kind how far it is from the base.
    rows: Vec<([&'static str; 3], [KlReport; 2])>,
}

impl Bench<'_> {
    /// What the matrices of a model with these tensors multiply in texts that are not scored.
    fn record(&self, source: &dyn TensorSource) -> Calibration {
        let mut runner = self.setup.runner(load(source, &self.setup.config), KvType::F32);
        let texts = self.setup.unscored().iter().map(|text| &text[..]);
        let calibration = Calibration::record(&mut runner, texts, CalibrationOptions::default());
        calibration.expect("texts of the model")
    }

    fn scaled<'s>(
        &'s self,
        calibration: &Calibration,
        method: WeightMethod,
        format: WeightFormat,
    ) -> Scaled<'s> {
        let (source, config) = (self.setup.source(), &self.setup.config);
        Scaled::new(source, config, calibration, method, format).expect("a model that was recorded")
    }

    /// Weights and inputs in one format.
    fn inputs(&mut self, calibration: &Calibration, format: WeightFormat, target: Target) {
        let of = |calibration: &Calibration, method| {
            StaticScales::new(calibration, method, target).expect("inputs were recorded")
        };
        let source = self.setup.source();
        let exact = self.measure(source, format, None);
        self.rows.push(([format.name(), "f32", "none"], exact));
        for (name, method) in [
            ("minmax", Method::MinMax),
            ("percentile 99.99", Method::Percentile(99.99)),
            ("percentile 99.9", Method::Percentile(99.9)),
            ("mse", Method::Mse(MseSearch::default())),
            ("entropy", Method::Entropy),
        ] {
            let reports = self.measure(source, format, Some(&of(calibration, method)));
            self.rows.push(([format.name(), format.name(), name], reports));
        }
        let reports = {
            let scaled = self.scaled(calibration, SMOOTH, format);
            let scales = of(&self.record(&scaled), Method::MinMax);
            self.measure(&scaled, format, Some(&scales))
        };
        self.rows.push(([format.name(), format.name(), "smooth 0.5, minmax"], reports));
    }

    /// Weights in a format, inputs as they are.
    fn weights(&mut self, calibration: &Calibration, format: WeightFormat) {
        let nearest = self.measure(self.setup.source(), format, None);
        let of = |method| self.measure(&self.scaled(calibration, method, format), format, None);
        let (smooth, awq) = (of(SMOOTH), of(WeightMethod::Awq(AwqSearch::default())));
        let rotated = self.measure(&Rotated(self.setup), format, Some(&Rotation));
        for (name, reports) in [
            ("none", nearest),
            ("smooth 0.5", smooth),
            ("awq", awq),
            ("Hadamard rotation", rotated),
        ] {
            self.rows.push(([format.name(), "f32", name], reports));
        }
    }

    /// How far a model is from the base whose layers are in a format and whose inputs are rounded.
    fn measure(
        &self,
        source: &dyn TensorSource,
        format: WeightFormat,
        rounding: Option<&dyn Rounding>,
    ) -> [KlReport; 2] {
        let options = LoadOptions { weights: format, ..LoadOptions::default() }.exact();
        let model = Model::load(source, &self.setup.config, &options).expect("a format of all");
        let mut runner = self.setup.runner(model, KvType::F32);
        let reports = [0, 1].map(|i| {
            let hooks = Hooks { rounding, ..Hooks::default() };
            let mut hooked = Hooked { runner: &mut runner, hooks };
            self.setup.compare(&mut hooked, KINDS[i], &self.base[i])
        });
        for report in &reports {
            let kl = report.kl.mean.value;
            // So that a fault shows before it gets into a table.
            assert!(kl < 0.5, "{format}: {kl} nats");
        }
        reports
    }

    fn section(self) -> Section {
        let of_calibration = self.setup.unscored();
        let note = format!(
            "Matrices of the layers in a format, the head and keys and values as they are, products in f32. Inputs in f32, or rounded to the \
             format with one static scale for each input of matrices, which saturates: what a program does that multiplies in eight bits \
             without looking at its inputs first. Scales are made from the first {} tokens at most of {} other held-out texts, prose, code \
             and tool calls ({} tokens in all), by the method: the largest magnitude, a percentile, the least squared error, the least \
             divergence, or the largest magnitude behind SmoothQuant's scales of channels (alpha 0.5). In weights alone SmoothQuant and AWQ \
             (20 ratios, 128 rows of inputs) scale channels; a Hadamard rotation turns the inputs of each matrix in blocks as large as \
             divide their number, and the weights against it, at run time. Compared with the stored weights and f32 inputs on {}. Errors \
             are standard errors over tokens, those of differences with the covariance.",
            self.setup.effort.context,
            of_calibration.len(),
            of_calibration.iter().map(Vec::len).sum::<usize>(),
            self.setup.texts_note(&KINDS)
        );
        let mut section = Section::new(
            "calibration",
            "Calibration",
            note,
            &[
                ("text", Format::Text),
                ("weights", Format::Text),
                ("inputs", Format::Text),
                ("method", Format::Text),
                ("perplexity", Format::Fixed(3)),
                ("difference", Format::Signed(4)),
                ("mean KL, nats", Format::Scientific),
                ("same top token, %", Format::Percent(2)),
            ],
        );
        for (i, kind) in KINDS.into_iter().enumerate() {
            for (names, reports) in &self.rows {
                let names = [kind.name()].into_iter().chain(*names).map(Cell::from);
                section.push(names.chain(cells_of(&reports[i])));
            }
        }
        section
    }
}

/// The checkpoint with the rows of the layers' matrices rotated.
struct Rotated<'a>(&'a Setup);

impl TensorSource for Rotated<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let tensor = self.0.source().tensor(name, shape)?;
        let is_of_layer = |projection: Projection| {
            let module = projection.module(0);
            name.ends_with(&format!("{}.weight", module.trim_start_matches("model.layers.0")))
        };
        if !Projection::OF_LAYER.into_iter().any(is_of_layer) {
            return Ok(tensor);
        }
        let mut values = tensor.to_f32();
        rotate(&mut values, shape[1]);
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(DenseTensor::new(Dense::F32, bytes))
    }

    fn has(&self, name: &str) -> bool {
        self.0.source().has(name)
    }
}

/// Rotates inputs as [`Rotated`] does the weights that multiply them.
struct Rotation;

impl Rounding for Rotation {
    fn round(&self, _: Site, mut x: ArrayViewMut2<'_, f32>) {
        let width = x.ncols();
        rotate(x.as_slice_mut().expect("the rows of a pass are contiguous"), width);
    }
}

/// Rotates rows of `width`, in blocks.
fn rotate(rows: &mut [f32], width: usize) {
    hadamard_in_place(rows, hadamard_block(width)).expect("blocks divide rows");
}
