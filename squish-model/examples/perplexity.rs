//! Perplexity of texts, one `{"text": …}` a line: `cargo run --release --example perplexity -- [JSONL] [FOLDER] [WEIGHTS] [KV]`.
//!
//! By default the held-out prose and the trained checkpoint of this repository. WEIGHTS is the name of a format of weights, such as mxfp4,
//! KV that of a type of keys and values. A figure is one of its recipe, which is printed with it.

use std::{env, error::Error, fs, io::Write, path::Path};

use serde::Deserialize;
use squish_eval::{Nll, Recipe, perplexity};
use squish_model::{
    KvOptions, KvType, LoadOptions, Model, Runner, RunnerOptions, Tokenizer, WeightFormat,
};

#[derive(Deserialize)]
struct Line {
    text: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny");
    let mut args = env::args().skip(1);
    let texts = args.next().unwrap_or_else(|| format!("{fixtures}/heldout/prose.jsonl"));
    let folder = args.next().unwrap_or_else(|| format!("{fixtures}/base"));
    let format: WeightFormat = args.next().map_or(Ok(WeightFormat::Stored), |name| name.parse())?;
    let kv_type: KvType = args.next().map_or(Ok(KvType::default()), |name| name.parse())?;

    let tokenizer = Tokenizer::from_file(Path::new(&folder).join("tokenizer.json"))?;
    let model = Model::open(&folder, &LoadOptions { weights: format, ..LoadOptions::default() })?;
    let context = model.config().max_position_embeddings.min(2048);
    let kv = KvOptions { kv_type, n_tokens: context, ..KvOptions::default() };
    let mut runner = Runner::new(model, &RunnerOptions { kv, ..RunnerOptions::default() })?;

    // Each token with half a context before it, at least.
    let recipe = Recipe::Strided { max_len: context, stride: context / 2, prefix: None };
    let mut out = std::io::stdout().lock();
    let (mut total, mut n_bytes) = (Nll::default(), 0);
    for (i, line) in fs::read_to_string(texts)?.lines().enumerate() {
        let Line { text } = serde_json::from_str(line)?;
        let result = perplexity(&mut runner, &tokenizer.encode(&text)?, recipe)?;
        writeln!(out, "text {i}: {result}")?;
        total += result.nll;
        n_bytes += text.len() as u64;
    }
    let mean = total.perplexity().ok_or("no texts")?;
    let n_tokens = total.n_tokens();
    write!(
        out,
        "all: {mean:.4} over {n_tokens} tokens, weights {format}, keys and values {kv_type}"
    )?;
    match total.bits_per_byte(n_bytes) {
        Some(bits) => writeln!(out, ", about {bits:.3} bits per byte")?,
        None => writeln!(out)?,
    }
    Ok(())
}
