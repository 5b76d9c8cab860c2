//! Memory of a process that runs a model: what the system counts, beside the weights and caches that it is for.

use std::{fs, process::Command, sync::Arc};

use serde::{Deserialize, Serialize};
use squish_bench::{Cell, Format, Section};
use squish_model::{
    KvLayout, KvOptions, LoadOptions, Model, RandomCheckpoint, Runner, RunnerOptions, WeightFormat,
};

use crate::setup::{Effort, Setup};

/// Tokens of a block.
const BLOCK: usize = 32;

/// Tokens that are decoded behind a prompt of as many.
const N_TOKENS: usize = 64;

/// What the program is told to measure one format alone, and to print it: a process of its own has no memory that was freed before.
pub(crate) const ARGUMENT: &str = "--memory-of";

const FORMATS: [WeightFormat; 3] = [WeightFormat::Bf16, WeightFormat::Fp8E4M3, WeightFormat::MxFp4];

/// Bytes of a model, of its cache, and that a process holds for both.
#[derive(Debug, Serialize, Deserialize)]
struct Held {
    weights: usize,
    kv: usize,
    measured: Option<usize>,
}

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    let note = format!(
        "Llama-3.2-1B's shape with random weights, head and body in one format, keys and values in bf16, blocks of {BLOCK}, a context that \
         the caches are just large enough for. The embedding is in memory, too, in bf16; that of a checkpoint in a file is mapped, and counts \
         for nothing. Anonymous memory of a process after a prompt of {N_TOKENS} tokens and {N_TOKENS} steps, less that before the model \
         was loaded, as the system counts it (`RssAnon`; empty where it does not): what stays of all that loading, packing and computing \
         needed. At most 64 MiB beside weights and caches are wanted."
    );
    let columns = [
        ("weights", Format::Text),
        ("bytes of weights and embedding", Format::Count),
        ("bytes of keys and values", Format::Count),
        ("anonymous memory", Format::Count),
        ("beside, MiB", Format::Fixed(1)),
    ];
    let mut section = Section::new("memory", "Memory of a model at work", note, &columns);
    let is_test = setup.effort == Effort::TEST;
    for format in FORMATS {
        let Held { weights, kv, measured } =
            if is_test { held(format, true) } else { alone(format) };
        let beside =
            measured.map(|bytes| (bytes as f64 - (weights + kv) as f64) / f64::from(1 << 20));
        // Of a test's model the process has as much in stock.
        assert!(is_test || beside.is_none_or(|beside| beside <= 64.0), "{format}: {beside:?} MiB");
        section.push([
            format.to_string().into(),
            weights.into(),
            kv.into(),
            measured.map_or(Cell::Empty, Cell::from),
            beside.map_or(Cell::Empty, Cell::from),
        ]);
    }
    vec![section]
}

/// Measures in this process and prints it.
#[expect(clippy::print_stdout, reason = "the process that started this one reads it")]
pub(crate) fn print(format: &str) {
    let held = held(format.parse().expect("a format"), false);
    println!("{}", serde_json::to_string(&held).expect("numbers"));
}

/// Measures in another process.
fn alone(format: WeightFormat) -> Held {
    let program = std::env::current_exe().expect("this program has a name");
    let output = Command::new(program).args([ARGUMENT, &format.to_string()]).output();
    let output = output.expect("it starts again");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("what `print` writes")
}

fn held(format: WeightFormat, is_small: bool) -> Held {
    let mut config = RandomCheckpoint::llama_3_2_1b();
    if is_small {
        config.layers.truncate(1);
        (config.hidden_size, config.intermediate_size, config.vocab_size) = (128, 256, 512);
    }
    let random = RandomCheckpoint { config, seed: 1 };
    let before = anonymous_memory();
    let model = Model::load(&random, &random.config, &LoadOptions::of(format));
    let model = Arc::new(model.expect("random weights"));
    let runner = at_work(&model);
    let after = anonymous_memory();
    let of_token = random.config.n_layers() * KvOptions::default().kv_type.n_bytes(&random.config);
    let measured = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    drop(runner);
    Held { weights: model.n_own_bytes(), kv: 2 * N_TOKENS * of_token, measured }
}

/// A runner that has read a prompt and decoded.
fn at_work(model: &Arc<Model>) -> Runner {
    let layout = KvLayout::Paged { block_size: BLOCK };
    let kv = KvOptions { layout, n_tokens: 2 * N_TOKENS, ..KvOptions::default() };
    let options = RunnerOptions { kv, ..RunnerOptions::default() };
    let mut runner = Runner::new(Arc::clone(model), &options).expect("options of the model");
    let id = runner.create().expect("room");
    let tokens: Vec<u32> = (0..N_TOKENS as u32).collect();
    runner.extend(id, &tokens).expect("room");
    for token in &tokens {
        runner.extend(id, &[*token]).expect("room");
    }
    runner
}

/// Resident bytes of no file.
fn anonymous_memory() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kib| kib << 10)
}
