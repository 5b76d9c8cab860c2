//! Perplexity of texts, one `{"text": …}` a line: `cargo run --release --example perplexity -- [JSONL] [FOLDER]`.
//!
//! By default the held-out prose and the trained checkpoint of this repository. Texts are cut into windows of the model's
//! context, as `squish_model::nll` says.

use std::{env, error::Error, fs, io::Write, path::Path};

use serde::Deserialize;
use squish_model::{Nll, Reference, Tokenizer, perplexity};

#[derive(Deserialize)]
struct Line {
    text: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny");
    let mut args = env::args().skip(1);
    let texts = args.next().unwrap_or_else(|| format!("{fixtures}/heldout/prose.jsonl"));
    let folder = args.next().unwrap_or_else(|| format!("{fixtures}/base"));

    let tokenizer = Tokenizer::from_file(Path::new(&folder).join("tokenizer.json"))?;
    let model = Reference::open(&folder)?;
    let context = model.config().max_position_embeddings;

    let mut out = std::io::stdout().lock();
    let (mut total, mut n_bytes) = (Nll::default(), 0);
    for (i, line) in fs::read_to_string(texts)?.lines().enumerate() {
        let Line { text } = serde_json::from_str(line)?;
        let nll = perplexity(&model, &tokenizer.encode(&text)?, context)?;
        total = total + nll;
        n_bytes += text.len();
        writeln!(
            out,
            "text {i}: {:.3} over {} tokens",
            nll.perplexity().unwrap_or(f64::NAN),
            nll.n_tokens
        )?;
    }
    let mean = total.perplexity().ok_or("no texts")?;
    let bits = total.nats / std::f64::consts::LN_2 / n_bytes as f64;
    writeln!(out, "all: {mean:.3} over {} tokens, about {bits:.3} bits per byte", total.n_tokens)?;
    Ok(())
}
