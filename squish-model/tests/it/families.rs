//! A tiny model of each family and rotary embedding against transformers in f32. Weights are made here and there by the same formula.

use std::sync::{Arc, LazyLock};

use squish_bench::Golden;
use squish_kernels::argmax;
use squish_model::{
    Config, Hooks, Model, Observer, Part, RandomCheckpoint, RopeLength, Runner, RunnerOptions,
    TensorSource, Wanted,
    ndarray::{ArrayView2, Axis},
};

use crate::common::{EXACT, exact_options, tokens};

static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| Golden::load(env!("CARGO_MANIFEST_DIR"), "families"));

/// Largest difference of logits, which reach 4.
const LOGITS: f32 = 1e-5;

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&GOLDEN.u8(name)).unwrap()
}

fn variants() -> Vec<String> {
    serde_json::from_value(json("variants")).unwrap()
}

fn model(variant: &str, config: &str) -> Arc<Model> {
    let mut config = Config::from_json(&GOLDEN.u8(&format!("{variant}.{config}"))).unwrap();
    // Lengths of some prompts lie beyond the context; what they do to frequencies is said by the runner's options.
    config.max_position_embeddings = config.max_position_embeddings.max(128);
    let seed = GOLDEN.i64(&format!("{variant}.seed"))[0] as u64;
    let random = RandomCheckpoint { config, seed };
    Arc::new(Model::load(&random, &random.config, &EXACT).unwrap())
}

fn runner(model: &Arc<Model>, length: RopeLength) -> Runner {
    let options = RunnerOptions { rope_length: length, ..exact_options() };
    Runner::new(Arc::clone(model), &options).unwrap()
}

/// Frequencies that depend on a length are those of the prompt's.
fn length_of(variant: &str, n_tokens: usize) -> RopeLength {
    if variant.contains("dynamic") || variant.contains("longrope") {
        RopeLength::Pinned(n_tokens)
    } else {
        RopeLength::Longest
    }
}

fn assert_close(what: &str, got: ArrayView2<'_, f32>, want: &[f32], most: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let width = got.ncols();
    for (row, (got, want)) in got.axis_iter(Axis(0)).zip(want.chunks_exact(width)).enumerate() {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() <= most, "{what}, row {row}, {i}: {got} is not {want}");
        }
    }
}

#[test]
fn generated_weights_are_those_of_the_golden_script() {
    for (i, of) in json("generator").as_array().unwrap().iter().enumerate() {
        let shape: Vec<usize> = serde_json::from_value(of["shape"].clone()).unwrap();
        let mut config = Config::llama(4, 4, 1, [1, 1, 4], 4, 4);
        if of["norm_offset"] == 0.0 {
            config.norm = squish_model::RmsVariant::Gemma;
        }
        let random = RandomCheckpoint { config, seed: of["seed"].as_u64().unwrap() };
        let tensor = random.tensor(of["name"].as_str().unwrap(), &shape).unwrap();
        let bits: Vec<u16> = tensor
            .bytes()
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| u16::from_le_bytes(*bytes))
            .collect();
        assert_eq!(bits, GOLDEN.u16(&format!("generator.{i}")), "{of}");
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for variant in variants() {
        let model = model(&variant, "config");
        for j in 0..2 {
            let prompt = tokens(&GOLDEN, &format!("prompt.{j}"));
            let mut runner = runner(&model, length_of(&variant, prompt.len()));
            let id = runner.create().unwrap();
            let part = Part::new(id, &prompt).with_logits(Wanted::All);
            let mut output = runner.forward(&[part]).unwrap();
            let want = GOLDEN.f32(&format!("{variant}.logits.{j}"));
            assert_close(
                &format!("{variant}, prompt {j}"),
                output.logits().unwrap(),
                &want,
                LOGITS,
            );
        }
    }
}

#[test]
fn configurations_of_older_files_mean_the_same() {
    let mut n = 0;
    for variant in variants() {
        if GOLDEN.has(&format!("{variant}.old_config")) {
            let [new, old] = ["config", "old_config"].map(|name| model(&variant, name));
            assert_eq!(new.config(), old.config(), "{variant}");
            n += 1;
        }
    }
    assert!(n >= 10, "{n} old configurations");
}

/// Compares the residual stream before each layer and after the last one.
struct Compare<'a>(&'a str, usize);

impl Observer for Compare<'_> {
    fn observe(&mut self, layer: usize, x: ArrayView2<'_, f32>) {
        let want = GOLDEN.f32(&format!("{}.hidden.{layer}", self.0));
        let largest = want.iter().fold(0_f32, |most, x| most.max(x.abs()));
        assert_close(&format!("{}, layer {layer}", self.0), x, &want, 2e-6 * largest.max(1.0));
        self.1 += 1;
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let prompt = tokens(&GOLDEN, "prompt.0");
    let variants = variants();
    let with_states = variants.iter().filter(|v| GOLDEN.has(&format!("{v}.hidden.0")));
    let mut n = 0;
    for variant in with_states {
        let model = model(variant, "config");
        let mut runner = runner(&model, RopeLength::Longest);
        let id = runner.create().unwrap();
        let mut compare = Compare(variant, 0);
        let mut hooks = Hooks { observer: Some(&mut compare), ..Hooks::default() };
        let part = Part::new(id, &prompt).with_logits(Wanted::All);
        let output = runner.forward_with(&[part], &mut hooks).unwrap();
        let want = GOLDEN.f32(&format!("{variant}.hidden.norm"));
        assert_close(&format!("{variant}, normed"), output.hidden(), &want, LOGITS);
        assert_eq!(compare.1, model.config().n_layers() + 1);
        n += 1;
    }
    assert!(n >= 5, "{n} variants with states");
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for variant in variants() {
        // Without a pinned length, transformers turns new keys by other frequencies than those in the cache.
        if variant.contains("longrope") || variant == "llama_dynamic" {
            continue;
        }
        let model = model(&variant, "config");
        for j in 0..2 {
            let prompt = tokens(&GOLDEN, &format!("prompt.{j}"));
            let mut runner = runner(&model, length_of(&variant, prompt.len()));
            let id = runner.create().unwrap();
            let mut logits = runner.extend(id, &prompt).unwrap().to_vec();
            for (step, want) in tokens(&GOLDEN, &format!("{variant}.greedy.{j}")).iter().enumerate()
            {
                if step == 31 {
                    let last = GOLDEN.f32(&format!("{variant}.last.{j}"));
                    let got = ArrayView2::from_shape((1, logits.len()), &logits).unwrap();
                    assert_close(&format!("{variant}, last of {j}"), got, &last, LOGITS);
                }
                let got = argmax(&logits).unwrap() as u32;
                assert_eq!(got, *want, "{variant}, prompt {j}, step {step}");
                logits = runner.extend(id, &[got]).unwrap().to_vec();
            }
        }
    }
}
