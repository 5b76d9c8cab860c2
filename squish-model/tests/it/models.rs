//! Small models of random numbers, and the logits of texts as bits.

use std::sync::Arc;

use squish_model::{
    Config, Gate, KvOptions, KvType, LayerConfig, LoadOptions, Model, Part, RandomCheckpoint,
    RmsVariant, RopeConfig, Runner, RunnerOptions, Wanted, ndarray::ArrayView2,
};

/// Of the models below.
pub(crate) const VOCAB: usize = 101;

/// Tokens that a row of the layers with windows sees.
pub(crate) const WINDOW: usize = 12;

/// 2 layers of 4 heads on 2, as Llama.
pub(crate) fn llama(head_dim: usize) -> Config {
    Config::llama(64, 96, 2, [4, 2, head_dim], VOCAB, 2048)
}

/// With every bias, and a head of its own.
pub(crate) fn biased(head_dim: usize) -> Config {
    let mut config = llama(head_dim);
    (config.qkv_bias, config.o_bias, config.mlp_bias) = (true, true, true);
    config.tie_word_embeddings = false;
    config
}

/// With norms of heads and a head of its own, as Qwen3.
pub(crate) fn qwen3(head_dim: usize) -> Config {
    let mut config = llama(head_dim);
    (config.qk_norm, config.tie_word_embeddings) = (true, false);
    config
}

/// With all that sets Gemma 2 and 3 apart: a window and a RoPE of its own in the first layer, soft caps, norms on the way out.
pub(crate) fn gemma(head_dim: usize) -> Config {
    let mut config = llama(head_dim);
    config.norm = RmsVariant::Gemma;
    (config.qk_norm, config.post_norms, config.gate) = (true, true, Gate::GeluTanh);
    config.embedding_scale = 8.0;
    (config.attention_softcap, config.logit_softcap) = (Some(5.0), Some(3.0));
    config.ropes.push(RopeConfig::new(head_dim, 500.0, 2048));
    config.layers[0] = LayerConfig { window: Some(WINDOW), rope: 1 };
    config
}

/// With a window in both layers, as Mistral.
pub(crate) fn mistral(head_dim: usize) -> Config {
    let mut config = llama(head_dim);
    config.layers.fill(LayerConfig { window: Some(WINDOW), rope: 0 });
    config
}

/// The model of a configuration.
pub(crate) fn load(config: Config, options: LoadOptions) -> Arc<Model> {
    let random = RandomCheckpoint { config, seed: 5 };
    Arc::new(Model::load(&random, &random.config, &options).unwrap())
}

/// `n` tokens that depend on `seed`.
pub(crate) fn text(n: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut token = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % vocab_size as u64) as u32
    };
    (0..n).map(|_| token()).collect()
}

/// One thread, room for 4 sequences of 200 tokens, which may come in one piece.
pub(crate) fn options(kv_type: KvType) -> RunnerOptions {
    let kv = KvOptions { kv_type, n_tokens: 800, n_sequences: 4, ..KvOptions::default() };
    RunnerOptions { kv, n_threads: 1, chunk: 200, ..RunnerOptions::default() }
}

pub(crate) fn runner(model: &Arc<Model>, options: &RunnerOptions) -> Runner {
    Runner::new(Arc::clone(model), options).unwrap()
}

pub(crate) fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// The bits of each row.
pub(crate) fn bits_of(rows: ArrayView2<'_, f32>) -> Vec<Vec<u32>> {
    rows.outer_iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

/// The logits behind each token of `text`, which is decoded token by token: what every other way is compared to.
pub(crate) fn decoded(model: &Arc<Model>, options: &RunnerOptions, text: &[u32]) -> Vec<Vec<u32>> {
    let mut runner = runner(model, options);
    let id = runner.create().unwrap();
    text.iter().map(|&token| bits(runner.extend(id, &[token]).unwrap())).collect()
}

/// The logits behind each token of `text`, which comes in one piece.
pub(crate) fn at_once(model: &Arc<Model>, options: &RunnerOptions, text: &[u32]) -> Vec<Vec<u32>> {
    let mut runner = runner(model, options);
    let id = runner.create().unwrap();
    let mut output = runner.forward(&[Part::new(id, text).with_logits(Wanted::All)]).unwrap();
    bits_of(output.logits().unwrap())
}

/// Panics if rows differ in a bit, and says where.
pub(crate) fn assert_same(what: &str, got: &[Vec<u32>], want: &[Vec<u32>]) {
    assert_eq!(got.len(), want.len(), "{what}: rows");
    for (row, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len(), "{what}: row {row}");
        let differs = |(got, want): (&u32, &u32)| got != want;
        if let Some(i) = got.iter().zip(want).position(differs) {
            let (got, want) = (f32::from_bits(got[i]), f32::from_bits(want[i]));
            panic!("{what}: row {row}, logit {i} is {got:?}, expected {want:?}");
        }
    }
}
