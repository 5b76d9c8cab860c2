//! Writes a checkpoint of Llama-3.2-1B's shape with the weights of the bench `runtime`, for programs that are timed beside it: `OUT`, a
//! folder.
//!
//! | file of OUT | |
//! |---|---|
//! | `config.json`, `model.safetensors` | the checkpoint, in bf16 |
//! | `expected.safetensors` | logits `[vocab_size]` that this crate computes of it in f32 |
//!
//! | logits | layers | tokens |
//! |---|---|---|
//! | `decode` | all | those of the bench's prompt, and the first of them again |
//! | `prefill` | the first 4 | those of the prompt |
//!
//! Those called `decode_unscaled` and `prefill_unscaled` are without the scaling of the rotary embedding, which not every program has.

use std::{cell::RefCell, error::Error, fs, path::Path};

use squish_checkpoint::{CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use squish_model::{
    Config, DenseTensor, KvOptions, KvType, LoadOptions, Model, RandomCheckpoint, RopeScaling,
    Runner, RunnerOptions, TensorSource, WeightFormat,
};

/// The bench's prompt, in tokens.
const CONTEXT: usize = 512;

/// Layers of the model whose prefill the bench times.
const PREFILL_LAYERS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [out] = &args[..] else { return Err("expected OUT".into()) };
    let random = RandomCheckpoint { config: RandomCheckpoint::llama_3_2_1b(), seed: 1 };
    write_checkpoint(&random, out.as_ref())?;
    write_expected(&random, out.as_ref())
}

fn write_checkpoint(random: &RandomCheckpoint, out: &Path) -> Result<(), Box<dyn Error>> {
    let config = &random.config;
    let RopeScaling::Llama3(scaling) = &config.ropes[0].scaling else {
        return Err("a rotary embedding of another kind".into());
    };
    let json = serde_json::to_vec_pretty(&serde_json::json!({
        "architectures": [config.family.architecture()],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layers(),
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.ropes[0].base,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        },
    }))?;
    if Config::from_json(&json)? != *config {
        return Err("config.json says something else than the configuration".into());
    }
    fs::create_dir_all(out)?;
    fs::write(out.join("config.json"), json)?;

    let specs = specs(random)?;
    let mut writer = CheckpointWriter::create(out, &specs, &WriterOptions::default())?;
    while let Some(TensorSpec { name, shape, .. }) = writer.next_tensor().cloned() {
        writer.write(&name, random.tensor(&name, &shape)?.bytes())?;
    }
    Ok(writer.finish()?)
}

/// The tensors that a model of the configuration asks for.
fn specs(random: &RandomCheckpoint) -> Result<Vec<TensorSpec>, squish_model::Error> {
    struct Listed<'a>(&'a RandomCheckpoint, RefCell<Vec<TensorSpec>>);
    impl TensorSource for Listed<'_> {
        fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, squish_model::Error> {
            self.1.borrow_mut().push(TensorSpec::new(name, Dtype::BF16, shape));
            self.0.tensor(name, shape)
        }

        fn has(&self, name: &str) -> bool {
            self.0.has(name)
        }
    }
    let listed = Listed(random, RefCell::default());
    Model::load(&listed, &random.config, &LoadOptions::of(WeightFormat::Bf16))?;
    Ok(listed.1.into_inner())
}

fn write_expected(random: &RandomCheckpoint, out: &Path) -> Result<(), Box<dyn Error>> {
    let vocab_size = random.config.vocab_size;
    let prompt: Vec<u32> = (0..CONTEXT).map(|i| (i * 7919 % vocab_size) as u32).collect();
    let with_next = [&prompt[..], &prompt[..1]].concat();
    let mut prefix = random.clone();
    prefix.config.layers.truncate(PREFILL_LAYERS);
    let mut expected = Vec::new();
    for (name, model, tokens) in [("decode", random, &with_next), ("prefill", &prefix, &prompt)] {
        let mut unscaled = model.clone();
        unscaled.config.ropes[0].scaling = RopeScaling::Default;
        expected.push((name.to_owned(), logits(model, tokens)?));
        expected.push((format!("{name}_unscaled"), logits(&unscaled, tokens)?));
    }
    let specs: Vec<TensorSpec> =
        expected.iter().map(|(name, _)| TensorSpec::new(name, Dtype::F32, [vocab_size])).collect();
    let options = WriterOptions { stem: "expected".to_owned(), ..WriterOptions::default() };
    let mut writer = CheckpointWriter::create(out, &specs, &options)?;
    for (name, logits) in &expected {
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        writer.write(name, &bytes)?;
    }
    Ok(writer.finish()?)
}

/// Logits after the last of the tokens, without rounding of activations, keys or values.
fn logits(random: &RandomCheckpoint, tokens: &[u32]) -> Result<Vec<f32>, squish_model::Error> {
    let options = LoadOptions::of(WeightFormat::Bf16).exact();
    let model = Model::load(random, &random.config, &options)?;
    let kv = KvOptions { kv_type: KvType::F32, ..KvOptions::default() };
    let mut runner = Runner::new(model, &RunnerOptions { kv, ..RunnerOptions::default() })?;
    let id = runner.create()?;
    Ok(runner.extend(id, tokens)?.to_vec())
}
