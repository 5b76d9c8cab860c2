//! Folders of checkpoints that tests write.

use std::{cell::RefCell, fs, path::Path, sync::Arc};

use serde_json::{Value, json};
use squish_checkpoint::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use squish_model::{
    Config, Dense, DenseTensor, Error, LoadOptions, Model, Part, RandomCheckpoint, TensorSource,
    Wanted,
};

use crate::models::{bits_of, runner, text};

/// A small Llama whose inputs divide into groups of 128.
pub(crate) fn json(is_tied: bool) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 101, "max_position_embeddings": 256,
        "tie_word_embeddings": is_tied,
    })
}

/// A folder with that model.
pub(crate) fn write_model(folder: &Path, is_tied: bool) {
    let json = json(is_tied).to_string();
    let config = Config::from_json(json.as_bytes()).unwrap();
    write_tensors(folder, &tensors(&RandomCheckpoint { config, seed: 3 }));
    fs::write(folder.join("config.json"), json).unwrap();
}

/// A tensor: name, type, shape, bytes.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// The tensors that a model of random numbers has.
pub(crate) fn tensors(random: &RandomCheckpoint) -> Vec<Tensor> {
    let spy = Spy { random, seen: RefCell::default() };
    Model::load(&spy, &random.config, &LoadOptions::default()).unwrap();
    let mut seen = spy.seen.into_inner();
    seen.sort();
    seen.into_iter()
        .map(|(name, shape)| {
            let tensor = random.tensor(&name, &shape).unwrap();
            assert_eq!(tensor.dense(), Dense::Bf16);
            (name, Dtype::BF16, shape, tensor.bytes().to_vec())
        })
        .collect()
}

/// Writes `model.safetensors`.
pub(crate) fn write_tensors(folder: &Path, tensors: &[Tensor]) {
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, _)| TensorSpec::new(name.clone(), *dtype, shape.clone()))
        .collect();
    let mut writer = CheckpointWriter::create(folder, &specs, &WriterOptions::default()).unwrap();
    while let Some(name) = writer.next_tensor().map(|spec| spec.name.clone()) {
        let (.., bytes) = tensors.iter().find(|(tensor, ..)| *tensor == name).unwrap();
        writer.write(&name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// A source that remembers what it was asked for.
struct Spy<'a> {
    random: &'a RandomCheckpoint,
    seen: RefCell<Vec<(String, Vec<usize>)>>,
}

impl TensorSource for Spy<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        self.seen.borrow_mut().push((name.to_owned(), shape.to_vec()));
        self.random.tensor(name, shape)
    }

    fn has(&self, name: &str) -> bool {
        self.random.has(name)
    }
}

/// Bits of the logits of some text.
pub(crate) fn logits(folder: &Path, options: LoadOptions) -> Vec<Vec<u32>> {
    let model = Arc::new(Model::open(folder, &options).unwrap());
    let mut runner = runner(&model, &crate::common::exact_options());
    let id = runner.create().unwrap();
    let text = text(23, model.config().vocab_size, 1);
    let part = Part::new(id, &text).with_logits(Wanted::All);
    bits_of(runner.forward(&[part]).unwrap().logits().unwrap())
}

/// Names of all tensors, and their types.
pub(crate) fn listing(folder: &Path) -> Vec<(String, Dtype)> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut list: Vec<_> =
        checkpoint.iter().map(|info| (info.name().to_owned(), info.dtype())).collect();
    list.sort();
    list
}
