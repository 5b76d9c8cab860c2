//! Scalings of rotary embeddings beyond the trained length, without further training.

use squish_attn::Yarn;
use squish_bench::{Cell, Format, Section};
use squish_eval::{CausalLm, Nll, Prompt, token_nll};
use squish_model::{KvOptions, KvType, RopeLength, RopeScaling, Runner, RunnerOptions};

use crate::setup::{Setup, load, ppl};

/// Lengths, as multiples of the trained one.
const MULTIPLES: [usize; 4] = [1, 2, 4, 8];

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    let context = setup.effort.context;
    let (n_scored, streams) = (context / 2, setup.streams());
    let note = format!(
        "Perplexity of the last {n_scored} tokens of {} texts of {} tokens (held-out texts one behind the other, prose and code in turn; {} tokens \
         scored), read with so many tokens of context in all, the scored ones included: every column scores the same tokens. The model \
         was trained for {context} positions and not again. The factor of a scaling is the multiple of that length; dynamic NTK is made \
         for the length of the column, which with that factor stretches more than the static one. Documents are cut to 6000 characters, \
         so that what lies more than some 1700 tokens back is another document: what a scaling can show here is that a longer context does \
         no harm. Weights as stored, f32 inputs, keys and values.",
        streams.len(),
        setup.effort.stream_len(),
        streams.len() * n_scored,
    );
    let lengths: Vec<String> =
        MULTIPLES.iter().map(|i| format!("{} tokens", i * context)).collect();
    let mut columns = vec![("scaling", Format::Text)];
    columns.extend(lengths.iter().map(|length| (length.as_str(), Format::Fixed(2))));
    let mut section = Section::new("rope", "Beyond the trained length", note, &columns);
    for (name, scaling) in scalings(setup) {
        let ppls = MULTIPLES.map(|multiple| {
            let mut runner = runner(setup, scaling(multiple as f64), multiple * context);
            let of_stream = |stream: &&[u32]| {
                nll_of_last(&mut runner, &stream[stream.len() - multiple * context..], n_scored)
            };
            Cell::from(ppl(streams.iter().map(of_stream).sum()))
        });
        section.push([name.into()].into_iter().chain(ppls));
    }
    vec![section]
}

/// A scaling by its factor.
type Scaling = Box<dyn Fn(f64) -> RopeScaling>;

fn scalings(setup: &Setup) -> [(&'static str, Scaling); 5] {
    let trained = setup.config.max_position_embeddings;
    [
        ("none", Box::new(|_| RopeScaling::Default)),
        ("position interpolation", Box::new(|factor| RopeScaling::Linear { factor })),
        ("NTK-aware", Box::new(|factor| RopeScaling::NtkAware { factor })),
        ("dynamic NTK", Box::new(|factor| RopeScaling::DynamicNtk { factor })),
        ("YaRN", Box::new(move |factor| RopeScaling::Yarn(Yarn::new(factor, trained)))),
    ]
}

/// The model for this length, whose rotary embedding still knows that it was trained for another one.
fn runner(setup: &Setup, scaling: RopeScaling, len: usize) -> Runner {
    let mut config = setup.config.clone();
    config.max_position_embeddings = len;
    for rope in &mut config.ropes {
        rope.scaling = scaling.clone();
    }
    let model = load(setup.source(), &config);
    let kv = KvOptions { kv_type: KvType::F32, n_tokens: len, ..KvOptions::default() };
    let rope_length = RopeLength::Pinned(len);
    let options = RunnerOptions { kv, rope_length, ..RunnerOptions::default() };
    setup.runner_with(model, &options)
}

/// The likelihood of the last tokens of a text.
fn nll_of_last(runner: &mut Runner, text: &[u32], n_scored: usize) -> Nll {
    let (fed, first) = (text.len() - 1, text.len() - 1 - n_scored);
    let mut nll = Nll::default();
    let prompt = Prompt { tokens: &text[..fed], wanted: first..fed };
    let scored =
        runner.logits(prompt, &mut |row, logits| nll.record(token_nll(logits, text[row + 1])?));
    scored.expect("the text fits the model");
    nll
}
