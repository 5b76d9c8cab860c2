//! Packed weights and rounded inputs: the formats and modes that a model can be loaded with.

use std::sync::Arc;

use squish_bench::{Format, Section};
use squish_model::{Activation, Config, Error, KvType, LoadOptions, Model, WeightFormat};

use crate::setup::{Kind, Setup, cells_of};

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    let mut sections = Kind::ALL.map(|kind| section(setup, kind));
    let base = {
        let mut runner = setup.runner(setup.exact_model(), KvType::F32);
        Kind::ALL.map(|kind| setup.logits(&mut runner, kind))
    };
    for (format, activation, model) in models(setup) {
        let (bits, n_bytes) = (bits_per_weight(&model), model.n_bytes());
        let mut runner = setup.runner(Arc::new(model), KvType::F32);
        for ((section, kind), base) in sections.iter_mut().zip(Kind::ALL).zip(&base) {
            let report = setup.compare(&mut runner, kind, base);
            check(format, activation, bits, report.kl.mean.value);
            let names = [format.name().into(), activation.name().into()];
            let sizes = [bits.into(), n_bytes.into()];
            section.push(names.into_iter().chain(sizes).chain(cells_of(&report)));
        }
    }
    sections.into()
}

fn section(setup: &Setup, kind: Kind) -> Section {
    let note = format!(
        "All matrices, the head included, in a format, and what inputs of products are rounded to; f32 keys and values. Compared with \
         the stored weights, which are bf16, and f32 inputs, on {}. Bytes are those that a token reads of the weights: packed matrices, \
         scales and padding, and norms. Errors are standard errors over tokens, those of differences with the covariance.",
        setup.texts_note(&[kind])
    );
    let title = format!("Formats of weights: {}", kind.name());
    Section::new(
        &format!("weights-{}", kind.name()),
        &title,
        note,
        &[
            ("weights", Format::Text),
            ("inputs", Format::Text),
            ("bits per weight", Format::Fixed(2)),
            ("bytes", Format::Count),
            ("perplexity", Format::Fixed(3)),
            ("difference", Format::Signed(4)),
            ("mean KL, nats", Format::Scientific),
            ("same top token, %", Format::Percent(2)),
        ],
    )
}

/// Every format in every mode that it has; the stored format is one of the others.
fn models(setup: &Setup) -> impl Iterator<Item = (WeightFormat, Activation, Model)> {
    let formats = WeightFormat::ALL.into_iter().filter(|&format| format != WeightFormat::Stored);
    let modes = formats.flat_map(|format| Activation::ALL.map(|activation| (format, activation)));
    modes.filter_map(|(format, activation)| {
        let options = LoadOptions { activation: Some(activation), ..LoadOptions::of(format) };
        match Model::load(setup.source(), &setup.config, &options) {
            Ok(model) => Some((format, activation, model)),
            Err(Error::Pack { error: squish_quant::Error::Unsupported { .. }, .. }) => None,
            Err(error) => panic!("{format} with inputs in {activation:?}: {error}"),
        }
    })
}

/// Bits of a weight of the matrices, scales and padding included.
fn bits_per_weight(model: &Model) -> f64 {
    let n_norms = n_norm_weights(model.config());
    let n_weights = model.config().n_parameters() - n_norms;
    8.0 * (model.n_bytes() - size_of::<f32>() * n_norms) as f64 / n_weights as f64
}

/// Weights of norms of a Llama.
fn n_norm_weights(config: &Config) -> usize {
    config.hidden_size * (2 * config.n_layers() + 1)
}

/// What holds for every format worth its bits, so that a fault shows before it gets into a table.
fn check(format: WeightFormat, activation: Activation, bits: f64, kl: f64) {
    let most = match activation {
        _ if bits < 6.0 => 0.2,
        Activation::F32 if bits >= 16.0 => 1e-6,
        _ => 0.05,
    };
    assert!(kl < most, "{format} with inputs in {activation:?}: {kl} nats at {bits} bits");
}
