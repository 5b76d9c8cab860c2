//! Steps allocate nothing.
//!
//! Allocations are counted on the calling thread. What workers of a team do is the same work, shared out by chance, and with one thread all of
//! it is the caller's.

use squish_bench::alloc::count_allocations;
use squish_model::{
    Activation, Config, Error, Hooks, KvLayout, KvOptions, KvType, LoadOptions, Part, Runner,
    RunnerOptions, SequenceId, Site, Sparsity, StreamingSinks, WeightFormat, Windows,
};

use crate::models::{VOCAB, biased, gemma, llama, load, mistral, runner, text};

const RING: Windows = Windows::Ring { sinks: None };

/// Tokens of a sequence: of a prompt, and those that are decoded, past the ends of blocks and tiles.
const PROMPT: usize = 30;
const N_STEPS: usize = 120;

fn options(n_sequences: usize, n_threads: usize, kv: KvOptions) -> RunnerOptions {
    let n_tokens = n_sequences * (PROMPT + N_STEPS + 1);
    let kv = KvOptions { n_tokens, n_sequences, ..kv };
    RunnerOptions { kv, n_threads, chunk: PROMPT, ..RunnerOptions::default() }
}

/// One token of each sequence and their logits.
fn step(runner: &mut Runner, parts: &[Part<'_>], hooks: &mut Hooks<'_>) -> Result<f32, Error> {
    let mut output = runner.forward_with(parts, hooks)?;
    let sum = output.logits()?.sum();
    output.commit()?;
    Ok(sum)
}

/// Allocations of the steps behind a prompt and one step.
fn n_allocations(runner: &mut Runner, n_sequences: usize, hooks: &mut Hooks<'_>) -> u64 {
    let ids: Vec<SequenceId> = (0..n_sequences).map(|_| runner.create().unwrap()).collect();
    for (i, &id) in ids.iter().enumerate() {
        runner.extend(id, &text(PROMPT - i, VOCAB, i as u64)).unwrap();
    }
    let tokens = text(N_STEPS, VOCAB, 1);
    let parts_of = |at: usize| -> Vec<Part<'_>> {
        ids.iter().map(|&id| Part::new(id, &tokens[at..=at])).collect()
    };
    step(runner, &parts_of(0), hooks).unwrap();
    let mut n_allocations = 0;
    for at in 1..N_STEPS {
        let parts = parts_of(at);
        let (sum, n) = count_allocations(|| step(runner, &parts, hooks));
        assert!(sum.unwrap().is_finite());
        n_allocations += n;
    }
    n_allocations
}

fn check(what: &str, config: &Config, weights: LoadOptions, kv: KvOptions) {
    let model = load(config.clone(), weights);
    for n_threads in [1, 2] {
        for n_sequences in [1, 8] {
            let mut runner = runner(&model, &options(n_sequences, n_threads, kv));
            let n = n_allocations(&mut runner, n_sequences, &mut Hooks::default());
            let what = format!("{what}, {n_threads} threads, {n_sequences} sequences");
            assert_eq!(n, 0, "{what}");
        }
    }
}

#[test]
fn steps_allocate_nothing_whatever_the_weights() {
    for format in [WeightFormat::Bf16, WeightFormat::MxFp4] {
        for config in [llama(64), biased(16), gemma(16)] {
            let options = LoadOptions::of(format);
            check(&format!("{format}"), &config, options, KvOptions::default());
        }
    }
    let exact = LoadOptions { activation: Some(Activation::F32), ..LoadOptions::default() };
    check("exact", &llama(16), exact, KvOptions::default());
}

#[test]
fn steps_allocate_nothing_whatever_the_cache() {
    for config in [gemma(16), mistral(16)] {
        for layout in [KvLayout::Paged { block_size: 4 }, KvLayout::Contiguous] {
            for windows in
                [Windows::Paged, RING, Windows::Ring { sinks: Some(StreamingSinks::default()) }]
            {
                for kv_type in [KvType::Bf16, KvType::Int8] {
                    let kv = KvOptions { kv_type, layout, windows, ..KvOptions::default() };
                    check(&format!("{kv:?}"), &config, LoadOptions::default(), kv);
                }
            }
        }
    }
}

struct Threshold(f32);

impl Sparsity for Threshold {
    fn threshold(&self, _: Site) -> f32 {
        self.0
    }
}

#[test]
fn sparse_steps_allocate_nothing() {
    for format in [WeightFormat::Bf16, WeightFormat::MxFp4] {
        let model = load(llama(16), LoadOptions::of(format));
        for n_threads in [1, 2] {
            let mut runner = runner(&model, &options(1, n_threads, KvOptions::default()));
            // None is left out, so that buffers have their full size from the first step on.
            let mut hooks = Hooks { sparsity: Some(&Threshold(0.0)), ..Hooks::default() };
            let n = n_allocations(&mut runner, 1, &mut hooks);
            assert_eq!(n, 0, "{format}, {n_threads} threads");
        }
    }
}

#[test]
fn verifying_a_tree_allocates_nothing() {
    let (tokens, parents) = ([1, 2, 3, 4, 5, 6], [None, None, Some(0), Some(0), Some(1), Some(2)]);
    for config in [llama(64), gemma(16)] {
        let model = load(config, LoadOptions::default());
        for (windows, n_threads) in [(Windows::Paged, 1), (Windows::Paged, 2), (RING, 1)] {
            let kv = KvOptions { windows, ..KvOptions::default() };
            let mut runner = runner(&model, &options(1, n_threads, kv));
            let id = runner.create().unwrap();
            runner.extend(id, &text(PROMPT, VOCAB, 1)).unwrap();
            let mut verify = || {
                let mut output = runner.forward(&[Part::tree(id, &tokens, &parents)])?;
                let sum = output.logits()?.sum();
                output.accept(0, &[0, 2, 5])?;
                output.commit()?;
                Ok::<_, Error>(sum)
            };
            verify().unwrap();
            let mut n_allocations = 0;
            for _ in 0..30 {
                let (sum, n) = count_allocations(&mut verify);
                assert!(sum.unwrap().is_finite());
                n_allocations += n;
            }
            assert_eq!(n_allocations, 0, "{windows:?}, {n_threads} threads");
        }
    }
}
