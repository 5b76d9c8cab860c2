//! `squish quantize`: a checkpoint whose matrices are in another format.

use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;
use squish_model::{
    Calibration, CalibrationMethod, CalibrationOptions, KvOptions, KvType, LoadOptions, Model,
    QuantizeOptions, Runner, RunnerOptions, Tokenizer, WeightMethod,
    calibration::{AwqSearch, Method, MseSearch},
    quantize_calibrated, quantize_with,
};

use crate::{
    args::{MethodName, QuantizeArgs},
    error::Error,
    output::{bytes, count, print, print_json, progress, table},
    texts,
};

/// The object of `--json`.
#[derive(Serialize)]
struct Report {
    out: String,
    format: String,
    tensors: usize,
    bytes: u64,
    bytes_read: u64,
    matrices: usize,
    bits_per_weight: Option<f64>,
    method: Option<String>,
    calibration_tokens: Option<u64>,
}

pub(crate) fn quantize(args: &QuantizeArgs) -> Result<(), Error> {
    let options = QuantizeOptions { head: args.head, ..QuantizeOptions::of(args.to) };
    let options = options.laid_out(args.layout);
    let calibrated = match (&args.calib, args.method.map(MethodName::method)) {
        (Some(file), Some(method)) => {
            method.check(&options)?;
            Some((record(args, file)?, method))
        }
        _ => None,
    };
    let bar = progress("bytes", 0);
    let mut on_progress = |progress: squish_model::Progress<'_>| {
        bar.set_length(progress.n_bytes);
        bar.set_position(progress.n_written);
    };
    let (model, out) = (&args.model, &args.out);
    let made = match &calibrated {
        None => quantize_with(model, out, &options, &mut on_progress)?,
        Some((calibration, method)) => {
            quantize_calibrated(model, out, &options, calibration, *method, &mut on_progress)?
        }
    };
    bar.finish_and_clear();
    let report = Report {
        out: args.out.display().to_string(),
        format: args.to.to_string(),
        tensors: made.n_tensors,
        bytes: made.n_bytes,
        bytes_read: made.n_bytes_read,
        matrices: made.n_matrices,
        bits_per_weight: (made.n_weights > 0).then(|| made.bits_per_weight()),
        method: args
            .method
            .and_then(|method| Some(method.to_possible_value()?.get_name().to_owned())),
        calibration_tokens: calibrated.as_ref().map(|(calibration, _)| calibration.n_tokens()),
    };
    if args.json {
        return print_json(&report);
    }
    let mut rows = table(["", "value"], &[1]);
    rows.add_row(["folder", &report.out]);
    rows.add_row(["format", &report.format]);
    if let (Some(method), Some(n_tokens)) = (&report.method, report.calibration_tokens) {
        rows.add_row(["method", method]);
        rows.add_row(["tokens of calibration", &count(n_tokens as usize)]);
    }
    rows.add_row(["matrices changed", &count(report.matrices)]);
    if let Some(bits) = report.bits_per_weight {
        rows.add_row(["bits per weight of these", &format!("{bits:.2}")]);
    }
    rows.add_row(["tensors", &count(report.tensors)]);
    rows.add_row(["bytes", &bytes(report.bytes as usize)]);
    rows.add_row(["bytes before", &bytes(report.bytes_read as usize)]);
    print(rows)
}

/// What the model's matrices multiply in the texts of `file`: of weights as they are stored, with nothing rounded.
fn record(args: &QuantizeArgs, file: &Path) -> Result<Calibration, Error> {
    let tokenizer = Tokenizer::from_file(args.model.join("tokenizer.json"))?;
    let texts = texts::read(file, args.calib_limit)?;
    let texts: Vec<Vec<u32>> =
        texts.iter().map(|text| tokenizer.encode(text)).collect::<Result<_, _>>()?;
    if texts.iter().all(Vec::is_empty) {
        return Err(Error::NoText { path: file.to_owned(), n_tokens: 1 });
    }
    let model = Model::open(&args.model, &LoadOptions::default().exact())?;
    let options = CalibrationOptions { window: args.calib_window, ..CalibrationOptions::default() };
    let n_tokens = options.window_of(model.config().max_position_embeddings);
    let kv = KvOptions { kv_type: KvType::F32, n_tokens, ..KvOptions::default() };
    let mut runner = Runner::new(model, &RunnerOptions { kv, ..RunnerOptions::default() })?;
    let bar = progress("texts", texts.len() as u64);
    let read = texts.iter().map(|text| {
        bar.inc(1);
        &text[..]
    });
    let calibration = Calibration::record(&mut runner, read, options)?;
    bar.finish_and_clear();
    Ok(calibration)
}

impl MethodName {
    fn method(self) -> CalibrationMethod {
        match self {
            Self::Awq => CalibrationMethod::Weights(WeightMethod::Awq(AwqSearch::default())),
            Self::Smooth => CalibrationMethod::Weights(WeightMethod::Smooth { alpha: 0.5 }),
            Self::Minmax => CalibrationMethod::Inputs(Method::MinMax),
            Self::Percentile => CalibrationMethod::Inputs(Method::Percentile(99.99)),
            Self::Mse => CalibrationMethod::Inputs(Method::Mse(MseSearch::default())),
            Self::Entropy => CalibrationMethod::Inputs(Method::Entropy),
        }
    }
}
