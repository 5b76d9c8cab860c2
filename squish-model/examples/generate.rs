//! Continues a text greedily: `cargo run --release --example generate -- [PROMPT] [FOLDER]`.
//!
//! FOLDER holds a Llama-type checkpoint with its tokenizer; by default the trained one of this repository, which has seen the
//! documentation and the sources of Rust's standard library, and can say little else.

use std::{env, error::Error, fs, io::Write, path::Path};

use serde_json::Value;
use squish_kernels::argmax;
use squish_model::{Reference, Tokenizer};

/// Tokens to generate at most.
const N_NEW: usize = 128;

/// The tokens that end a text: `eos_token_id`, a number or a list, of `generation_config.json` or else of `config.json`.
fn end_tokens(folder: &Path) -> Result<Vec<u32>, Box<dyn Error>> {
    for file in ["generation_config.json", "config.json"] {
        let Ok(json) = fs::read(folder.join(file)) else { continue };
        let config: Value = serde_json::from_slice(&json)?;
        return Ok(match &config["eos_token_id"] {
            Value::Null => continue,
            list @ Value::Array(_) => serde_json::from_value(list.clone())?,
            id => vec![serde_json::from_value(id.clone())?],
        });
    }
    Ok(Vec::new())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let prompt = args.next().unwrap_or_else(|| "Returns the number of elements in the".to_owned());
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");
    let folder = args.next().unwrap_or_else(|| fixture.to_owned());

    let tokenizer = Tokenizer::from_file(Path::new(&folder).join("tokenizer.json"))?;
    let model = Reference::open(&folder)?;
    let mut tokens = tokenizer.encode(&prompt)?;
    let ends = end_tokens(Path::new(&folder))?;

    let mut out = std::io::stdout().lock();
    write!(out, "{prompt}")?;
    let mut session = model.session();
    let mut logits = session.extend(&tokens)?;
    let mut shown = tokenizer.decode(&tokens)?.len();
    for _ in 0..N_NEW.min(model.config().max_position_embeddings - tokens.len()) {
        let next = argmax(logits).ok_or("all logits are NaN")? as u32;
        if ends.contains(&next) {
            break;
        }
        tokens.push(next);
        // Decoded as a whole, because a character may be made of several tokens; it is shown once it is complete.
        let text = tokenizer.decode(&tokens)?;
        if let Some(new) = text.get(shown..).filter(|new| !new.ends_with('\u{fffd}')) {
            write!(out, "{new}")?;
            out.flush()?;
            shown = text.len();
        }
        logits = session.step(next)?;
    }
    writeln!(out)?;
    Ok(())
}
