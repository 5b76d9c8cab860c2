//! Inputs of feed-forward networks that are left out: how many, and what that does to likelihoods.

use squish_bench::{Format, Section};
use squish_model::{Hooked, Hooks, KvType, Runner};
use squish_quant::ActSparsityPredictor;

use crate::{
    common::{LeftOut, Magnitudes, Thresholds, share},
    setup::{Kind, Setup, cells_of},
};

/// Shares of inputs that thresholds are made for.
const TARGETS: [f64; 7] = [0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9];

/// Kinds of text that are scored.
const KINDS: [Kind; 2] = [Kind::Prose, Kind::Code];

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    let note = format!(
        "Inputs of the matrices of feed-forward networks whose magnitude is below a threshold are left out (TEAL, arXiv 2408.14690): those of \
         gate and up, which are one, and those of down. Thresholds are quantiles of each layer's inputs, over {} held-out texts that are not \
         scored. A product by input does not read the weights of what is left out, so that the share of weights that are read is that of \
         the work; its time is `runtime/sparse_mlp` in BENCHMARKS.md. Weights as stored, f32 inputs, keys and values. Compared with all \
         inputs on {}. Errors are standard errors over tokens, those of differences with the covariance.",
        setup.unscored().len(),
        setup.texts_note(&KINDS)
    );
    let mut section = Section::new(
        "ffn-sparsity",
        "Inputs of feed-forward networks left out",
        note,
        &[
            ("text", Format::Text),
            ("wanted, %", Format::Percent(0)),
            ("left out of gate and up, %", Format::Percent(1)),
            ("of down, %", Format::Percent(1)),
            ("weights read, %", Format::Percent(1)),
            ("perplexity", Format::Fixed(3)),
            ("difference", Format::Signed(4)),
            ("mean KL, nats", Format::Scientific),
            ("same top token, %", Format::Percent(2)),
        ],
    );
    let mut runner = setup.runner(setup.exact_model(), KvType::F32);
    let predictor = recorded(setup, &mut runner);
    for kind in KINDS {
        let base = setup.logits(&mut runner, kind);
        for target in TARGETS {
            let thresholds = predictor.thresholds(target).expect("inputs were recorded");
            let thresholds = Thresholds(thresholds);
            let left_out = LeftOut::default();
            let hooks = Hooks {
                sparsity: (target > 0.0).then_some(&thresholds),
                adapter: Some(&left_out),
                ..Hooks::default()
            };
            let report = setup.compare(&mut Hooked { runner: &mut runner, hooks }, kind, &base);
            let [gate, down] = [&left_out.gate, &left_out.down].map(|count| share(&[count]));
            let read = 1.0 - (2.0 * gate + down) / 3.0;
            for share in [gate, down] {
                assert!((share - target).abs() < 0.1, "{share} left out, {target} wanted");
            }
            let names = [kind.name().into(), target.into()];
            let shares = [gate, down, read].map(squish_bench::Cell::from);
            section.push(names.into_iter().chain(shares).chain(cells_of(&report)));
        }
    }
    vec![section]
}

/// The magnitudes of what networks multiply in texts that are not scored.
fn recorded(setup: &Setup, runner: &mut Runner) -> ActSparsityPredictor {
    let mut magnitudes = Magnitudes::new(&setup.config);
    for text in setup.unscored() {
        let id = runner.create().expect("room for a sequence");
        let mut hooks = Hooks { recorder: Some(&mut magnitudes), ..Hooks::default() };
        let part = squish_model::Part::new(id, text);
        drop(runner.forward_with(&[part], &mut hooks).expect("texts fit the model"));
        runner.free(id).expect("it is there");
    }
    magnitudes.0
}
