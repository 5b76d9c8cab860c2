//! A model with its tokenizer.

use std::sync::Arc;

use squish_model::{KvOptions, KvType, LoadOptions, Model, Runner, RunnerOptions, Tokenizer};

use crate::{args::ModelArgs, error::Error};

/// The model of a command.
pub(crate) struct Loaded {
    pub(crate) model: Arc<Model>,
    pub(crate) tokenizer: Tokenizer,
}

impl Loaded {
    pub(crate) fn open(args: &ModelArgs) -> Result<Self, Error> {
        // The smaller file first, so that a wrong folder is found out at once.
        let tokenizer = Tokenizer::from_file(args.model.join("tokenizer.json"))?;
        let model = Model::open(&args.model, &load_options(args))?;
        Ok(Self { model: Arc::new(model), tokenizer })
    }
}

pub(crate) fn load_options(args: &ModelArgs) -> LoadOptions {
    let options = LoadOptions { weights: args.weights, head: args.head, ..LoadOptions::default() };
    if args.exact { options.exact() } else { options }
}

pub(crate) fn kv_type(args: &ModelArgs) -> KvType {
    if args.exact { KvType::F32 } else { args.kv }
}

/// A runner for sequences of `n_tokens` together.
pub(crate) fn runner(
    args: &ModelArgs,
    model: &Arc<Model>,
    n_tokens: usize,
    n_sequences: usize,
) -> Result<Runner, Error> {
    let kv = KvOptions { kv_type: kv_type(args), n_tokens, n_sequences, ..KvOptions::default() };
    let mut options = RunnerOptions { kv, ..RunnerOptions::default() };
    options.n_threads = args.threads.unwrap_or(options.n_threads);
    Ok(Runner::new(Arc::clone(model), &options)?)
}
