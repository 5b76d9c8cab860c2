//! Continues a text: `cargo run --release --example generate -- [PROMPT] [FOLDER] [WEIGHTS]`.
//!
//! FOLDER holds a checkpoint with its tokenizer; by default the trained one of this repository, which has seen the documentation and the
//! sources of Rust's standard library, and can say little else. WEIGHTS is the name of a format, such as int8.

use std::{env, error::Error, io::Write, path::Path, time::Instant};

use squish_model::{
    GenerateOptions, Generation, GenerationConfig, KvOptions, LoadOptions, Model, Runner,
    RunnerOptions, Tokenizer, WeightFormat,
};

/// Tokens to generate at most.
const N_NEW: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let prompt = args.next().unwrap_or_else(|| "Returns the number of elements in the".to_owned());
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");
    let folder = args.next().unwrap_or_else(|| fixture.to_owned());
    let format: WeightFormat = args.next().map_or(Ok(WeightFormat::Stored), |name| name.parse())?;

    let tokenizer = Tokenizer::from_file(Path::new(&folder).join("tokenizer.json"))?;
    let model = Model::open(&folder, &LoadOptions::of(format))?;
    let prompt_tokens = tokenizer.encode(&prompt)?;
    let n_tokens = prompt_tokens.len() + N_NEW;
    let kv = KvOptions { n_tokens, ..KvOptions::default() };
    let mut runner = Runner::new(model, &RunnerOptions { kv, ..RunnerOptions::default() })?;

    // As the model wants to be sampled: greedily, if it says nothing.
    let wanted = GenerationConfig::open(&folder)?;
    let options = GenerateOptions {
        sampling: wanted.sampling(),
        max_new_tokens: N_NEW,
        eos_token_ids: &wanted.eos_token_ids,
        ..GenerateOptions::default()
    };

    let mut out = std::io::stdout().lock();
    write!(out, "{prompt}")?;
    let start = Instant::now();
    let mut generation = Generation::new(&mut runner, &tokenizer, &prompt_tokens, &options)?;
    let mut text = String::new();
    while generation.step(&mut text)?.is_some() {
        write!(out, "{text}")?;
        out.flush()?;
        text.clear();
    }
    let n_new = generation.tokens().len();
    let seconds = start.elapsed().as_secs_f64();
    writeln!(out, "\n\n{n_new} tokens after {} in {seconds:.2} s", prompt_tokens.len())?;
    Ok(())
}
