//! Models that the tests share: the trained fixture, and small ones of random numbers.

use std::sync::{Arc, LazyLock};

use squish_bench::Golden;
use squish_model::{
    Activation, Config, KvOptions, KvType, LoadOptions, Model, RandomCheckpoint, Runner,
    RunnerOptions, Verify, WeightFormat,
};

/// Folder of the trained checkpoint.
pub(crate) const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");

/// Weights as they are, inputs that are not rounded.
pub(crate) const EXACT: LoadOptions = LoadOptions {
    weights: WeightFormat::Stored,
    head: WeightFormat::Stored,
    activation: Some(Activation::F32),
    verify: Verify::All,
    mlp_by_input: false,
};

/// The trained checkpoint.
pub(crate) static MODEL: LazyLock<Arc<Model>> =
    LazyLock::new(|| Arc::new(Model::open(FIXTURE, &EXACT).unwrap()));

/// What transformers computed from it.
pub(crate) static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| Golden::load(env!("CARGO_MANIFEST_DIR"), "reference"));

/// An i64 tensor of tokens.
pub(crate) fn tokens(golden: &Golden, name: &str) -> Vec<u32> {
    golden.i64(name).into_iter().map(|token| u32::try_from(token).unwrap()).collect()
}

/// Keys and values that are not rounded, one thread.
pub(crate) fn exact_options() -> RunnerOptions {
    let kv = KvOptions { kv_type: KvType::F32, n_tokens: 1024, ..KvOptions::default() };
    RunnerOptions { kv, n_threads: 1, ..RunnerOptions::default() }
}

/// A runner of one sequence with these.
pub(crate) fn exact_runner(model: &Arc<Model>) -> Runner {
    Runner::new(Arc::clone(model), &exact_options()).unwrap()
}

/// A configuration whose sizes all differ: 2 layers, 6 heads of 4 on 3 heads of keys, hidden 20, no tied head.
pub(crate) const SMALL: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 20, "intermediate_size": 28,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4, "vocab_size": 50,
    "max_position_embeddings": 24, "hidden_act": "silu"}"#;

/// The same with random weights.
pub(crate) fn small() -> RandomCheckpoint {
    RandomCheckpoint { config: Config::from_json(SMALL.as_bytes()).unwrap(), seed: 1 }
}

/// Prompts and texts of tokens by transformers.
#[cfg(any(feature = "chat", feature = "tokenizer"))]
pub(crate) static CHAT_GOLDEN: LazyLock<String> = LazyLock::new(|| {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/chat.json")).unwrap()
});
