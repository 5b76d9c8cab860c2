//! `squish inspect`: what is in a checkpoint, and the memory that it takes.

use std::collections::BTreeMap;

use serde::Serialize;
use squish_checkpoint::{Checkpoint, Dtype, TensorInfo};
use squish_model::{Config, Dense, KvType, WeightFormat};

use crate::{
    args::InspectArgs,
    error::Error,
    load::{kv_type, load_options},
    output::{bytes, count, print, print_json, table},
};

/// The object of `--json`.
#[derive(Serialize)]
struct Report {
    family: String,
    parameters: usize,
    file_bytes: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    context: usize,
    windows: Vec<Option<usize>>,
    tied: bool,
    kinds: Vec<Kind>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<Tensor>,
    kv_bytes_per_token: BTreeMap<&'static str, usize>,
    memory: Memory,
}

/// Tensors of one name, layers aside.
#[derive(Serialize)]
struct Kind {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    number: usize,
    bytes: usize,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: usize,
}

/// What a runner takes.
#[derive(Serialize)]
struct Memory {
    weights: String,
    kv: &'static str,
    tokens: usize,
    weight_bytes: usize,
    kv_bytes: usize,
    total_bytes: usize,
    /// What a token reads.
    step_bytes: usize,
}

pub(crate) fn inspect(args: &InspectArgs) -> Result<(), Error> {
    let folder = &args.model.model;
    let config = Config::open(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let report = report(args, &config, &checkpoint)?;
    if args.json { print_json(&report) } else { show(&report) }
}

fn report(args: &InspectArgs, config: &Config, checkpoint: &Checkpoint) -> Result<Report, Error> {
    let tokens = args.context.unwrap_or(config.max_position_embeddings);
    let kv = kv_type(&args.model);
    // A window holds what it sees.
    let held = |window: Option<usize>| window.map_or(tokens, |window| window.min(tokens));
    let kv_bytes =
        config.layers.iter().map(|layer| held(layer.window) * kv.n_bytes(config)).sum::<usize>();
    let weight_bytes = weight_bytes(args, config, checkpoint)?;
    let per_token = |kv: KvType| (kv.name(), kv.n_bytes(config) * config.n_layers());
    Ok(Report {
        family: config.family.to_string(),
        parameters: config.n_parameters(),
        file_bytes: checkpoint.iter().map(TensorInfo::n_bytes).sum(),
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        layers: config.n_layers(),
        heads: config.n_heads,
        kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        context: config.max_position_embeddings,
        windows: config.layers.iter().map(|layer| layer.window).collect(),
        tied: config.tie_word_embeddings,
        kinds: kinds(checkpoint),
        tensors: if args.tensors { checkpoint.iter().map(tensor).collect() } else { Vec::new() },
        kv_bytes_per_token: KvType::ALL.map(per_token).into(),
        memory: Memory {
            weights: args.model.weights.to_string(),
            kv: kv.name(),
            tokens,
            weight_bytes,
            kv_bytes,
            total_bytes: weight_bytes + kv_bytes,
            step_bytes: weight_bytes + kv_bytes,
        },
    })
}

/// Matrices as they are packed; of a checkpoint that is quantized, and stays so, its bytes.
fn weight_bytes(
    args: &InspectArgs,
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<usize, Error> {
    let stored = match checkpoint.get("model.layers.0.mlp.down_proj.weight").map(TensorInfo::dtype)
    {
        Some(Dtype::F32) => Dense::F32,
        Some(Dtype::F16) => Dense::F16,
        Some(Dtype::BF16) => Dense::Bf16,
        _ if args.model.weights == WeightFormat::Stored => {
            return Ok(checkpoint.iter().map(TensorInfo::n_bytes).sum());
        }
        _ => Dense::Bf16,
    };
    Ok(config.packed_bytes(stored, &load_options(&args.model))?)
}

fn tensor(info: &TensorInfo) -> Tensor {
    Tensor {
        name: info.name().to_owned(),
        dtype: info.dtype().name().to_owned(),
        shape: info.shape().to_vec(),
        bytes: info.n_bytes(),
    }
}

/// Tensors that differ in the number of their layer alone are of one kind.
fn kinds(checkpoint: &Checkpoint) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for info in checkpoint {
        let part =
            |part: &str| if part.parse::<u32>().is_ok() { "*".to_owned() } else { part.to_owned() };
        let name = info.name().split('.').map(part).collect::<Vec<_>>().join(".");
        let (dtype, shape) = (info.dtype().name(), info.shape());
        let same =
            |kind: &&mut Kind| kind.name == name && kind.dtype == dtype && kind.shape == shape;
        if let Some(kind) = kinds.iter_mut().find(same) {
            kind.number += 1;
            kind.bytes += info.n_bytes();
        } else {
            kinds.push(Kind {
                name,
                dtype: dtype.to_owned(),
                shape: shape.to_vec(),
                number: 1,
                bytes: info.n_bytes(),
            });
        }
    }
    kinds.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    kinds
}

fn show(report: &Report) -> Result<(), Error> {
    let Report { family, layers, hidden_size, context, .. } = report;
    let tied = if report.tied { ", head tied to the embedding" } else { "" };
    print(format_args!(
        "{family}, {} parameters: {layers} layers of {hidden_size}, MLP of {}, {} heads on {} of keys, {} wide, vocabulary {}, context {context}{tied}",
        count(report.parameters),
        report.intermediate_size,
        report.heads,
        report.kv_heads,
        report.head_dim,
        count(report.vocab_size),
    ))?;
    let windows: Vec<usize> = report.windows.iter().copied().flatten().collect();
    if let Some(window) = windows.first() {
        print(format_args!("{} of the layers see {window} tokens at most", windows.len()))?;
    }
    if report.tensors.is_empty() {
        let mut kinds = table(["tensors", "type", "shape", "number", "bytes"], &[3, 4]);
        for Kind { name, dtype, shape, number, bytes: n } in &report.kinds {
            kinds.add_row([
                name.clone(),
                dtype.clone(),
                shown(shape),
                number.to_string(),
                bytes(*n),
            ]);
        }
        print(kinds)?;
    } else {
        let mut tensors = table(["tensor", "type", "shape", "bytes"], &[3]);
        for Tensor { name, dtype, shape, bytes: n } in &report.tensors {
            tensors.add_row([name.clone(), dtype.clone(), shown(shape), bytes(*n)]);
        }
        print(tensors)?;
    }
    let mut kv = table(["keys and values in", "bytes per token"], &[1]);
    for (name, n) in &report.kv_bytes_per_token {
        kv.add_row([(*name).to_owned(), count(*n)]);
    }
    print(kv)?;
    let Memory { weights, kv, tokens, weight_bytes, kv_bytes, total_bytes, step_bytes } =
        &report.memory;
    let mut memory = table(["memory", "bytes"], &[1]);
    memory.add_row([format!("weights, {weights}"), bytes(*weight_bytes)]);
    memory
        .add_row([format!("{} tokens of keys and values, {kv}", count(*tokens)), bytes(*kv_bytes)]);
    memory.add_row(["together".to_owned(), bytes(*total_bytes)]);
    memory.add_row(["read for a token at that length".to_owned(), bytes(*step_bytes)]);
    print(memory)
}

fn shown(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}
