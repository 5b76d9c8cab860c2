//! A whole model by candle's quantized Llama, on two threads: decode alone, and prefill of its first layers.
//!
//! It reads the GGUF files that `model.py` writes, and knows no scaling of the rotary embedding: its answer is held against that of a model
//! without. Matrices in bf16 become f32 when they are read. Its cache cannot be cut, so that each step of decode sees one token more.

use std::{fs::File, path::Path};

use candle_core::{Device, Result, Tensor, bail, quantized::gguf_file, safetensors, utils};
use candle_transformers::models::quantized_llama::ModelWeights;

use crate::timing::{Peer, measure};

const NAME: &str = "candle 0.11.1";
const N_THREADS: usize = 2;
/// Tokens of the prompt.
const CONTEXT: usize = 512;

/// Format in shapes, name of the file, what products read, and the least correlation of the logits with those expected.
struct Format(&'static str, &'static str, &'static str, f64);

const FORMATS: [Format; 2] =
    [Format("bf16", "bf16", "bf16 widened to f32", 0.999), Format("fp4", "q4_0", "q4_0", 0.8)];

/// All rows, of the checkpoint in a folder.
pub(crate) fn all(folder: &Path) -> Result<()> {
    if utils::get_num_threads() != N_THREADS {
        bail!("candle takes its threads from `RAYON_NUM_THREADS`, which has to be {N_THREADS}");
    }
    // In candle's own threads, as its documentation has it.
    Device::Cpu.with_context(|| {
        for format in &FORMATS {
            decode(folder, format)?;
        }
        // In Q4_0 it multiplies row by row, which takes minutes for all samples.
        prefill(folder, &FORMATS[0])
    })
}

fn decode(folder: &Path, &Format(short, file, form, least): &Format) -> Result<()> {
    let shape = format!("{short}_m1_t{N_THREADS}");
    let peer = Peer { row: "runtime/decode", shape, name: NAME };
    if !peer.is_selected() {
        return Ok(());
    }
    let mut model = load(&folder.join(format!("{file}.gguf")))?;
    let prompt = prompt(folder)?;
    let token = prompt.narrow(1, 0, 1)?;
    model.forward(&prompt, 0)?;
    check(folder, "decode_unscaled", &model.forward(&token, CONTEXT)?, least)?;
    let mut outcome = Ok(());
    let mut position = CONTEXT;
    let figures = measure(|| {
        position += 1;
        if let Err(error) = model.forward(&token, position) {
            outcome = Err(error);
        }
    });
    peer.print_of(figures, N_THREADS, form);
    outcome
}

fn prefill(folder: &Path, &Format(short, file, form, least): &Format) -> Result<()> {
    let peer = Peer { row: "runtime/prefill", shape: format!("{short}_t{N_THREADS}"), name: NAME };
    if !peer.is_selected() {
        return Ok(());
    }
    let mut model = load(&folder.join(format!("{file}-prefill.gguf")))?;
    let prompt = prompt(folder)?;
    check(folder, "prefill_unscaled", &model.forward(&prompt, 0)?, least)?;
    let mut outcome = Ok(());
    // At position 0 it forgets what it had.
    let figures = measure(|| {
        if let Err(error) = model.forward(&prompt, 0) {
            outcome = Err(error);
        }
    });
    peer.print_of(figures, N_THREADS, form);
    outcome
}

fn load(path: &Path) -> Result<ModelWeights> {
    let mut file = File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    ModelWeights::from_gguf(content, &mut file, &Device::Cpu)
}

/// The bench's prompt, `[1, CONTEXT]`.
fn prompt(folder: &Path) -> Result<Tensor> {
    let vocab_size = expected(folder, "decode")?.len();
    let tokens: Vec<u32> = (0..CONTEXT).map(|i| (i * 7919 % vocab_size) as u32).collect();
    Tensor::from_vec(tokens, (1, CONTEXT), &Device::Cpu)
}

/// Logits that the writer of the checkpoint computed.
fn expected(folder: &Path, name: &str) -> Result<Vec<f32>> {
    let mut all = safetensors::load(folder.join("expected.safetensors"), &Device::Cpu)?;
    all.remove(name).map_or_else(|| bail!("no `{name}` is expected"), |logits| logits.to_vec1())
}

/// Refuses logits whose correlation with those expected is less than `least`.
fn check(folder: &Path, name: &str, logits: &Tensor, least: f64) -> Result<()> {
    let (got, want) = (logits.flatten_all()?.to_vec1::<f32>()?, expected(folder, name)?);
    let centered = |x: &[f32]| -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        x.iter().map(|&x| f64::from(x) - mean).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (a, b) = (centered(&got), centered(&want));
    let correlation = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    if got.len() == want.len() && correlation >= least {
        return Ok(());
    }
    bail!("`{name}`: logits have a correlation of {correlation} with the expected ones")
}
