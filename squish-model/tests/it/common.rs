//! Models that the tests share: the trained fixture, and one of random numbers that is small in every dimension.

use std::sync::LazyLock;

use squish_bench::{Golden, input::Rng};
use squish_model::{Config, Kind, Reference, Weights};

/// Folder of the trained checkpoint.
pub(crate) const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");

/// The trained checkpoint.
pub(crate) static MODEL: LazyLock<Reference> = LazyLock::new(|| Reference::open(FIXTURE).unwrap());

/// What transformers computed from it.
pub(crate) static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| Golden::load(env!("CARGO_MANIFEST_DIR"), "reference"));

/// An i64 tensor of tokens.
pub(crate) fn tokens(name: &str) -> Vec<u32> {
    GOLDEN.i64(name).into_iter().map(|token| u32::try_from(token).unwrap()).collect()
}

/// A configuration whose sizes all differ: 2 layers, 6 heads of 4 on 3 heads of keys, hidden 20, no tied head.
pub(crate) const SMALL: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 20, "intermediate_size": 28,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4, "vocab_size": 50,
    "max_position_embeddings": 24, "hidden_act": "silu"}"#;

pub(crate) fn small_config() -> Config {
    Config::from_json(SMALL.as_bytes()).unwrap()
}

/// A model of random weights: norms around 1, matrices that keep the size of what they multiply.
pub(crate) fn small_weights(seed: u64) -> Weights {
    let mut rng = Rng::new(seed);
    let mut weights = Weights::from_fn(&small_config(), |_, shape| {
        let n_in = *shape.last().unwrap();
        let std = 1.0 / (n_in as f32).sqrt();
        Ok((0..shape.iter().product()).map(|_| rng.normal() * std).collect())
    })
    .unwrap();
    for tensor in weights.tensors_mut().filter(|tensor| tensor.kind() == Kind::Norm) {
        for x in tensor.data_mut() {
            *x += 1.0;
        }
    }
    weights
}
