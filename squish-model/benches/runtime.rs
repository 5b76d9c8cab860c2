//! The whole model: decode alone and in a batch, and prefill, on a checkpoint of Llama-3.2-1B's shape with random weights; and its
//! feed-forward networks with inputs left out.

use std::{cell::RefCell, sync::Arc};

use squish_bench::{
    Aligned, Limit, Residency, Row, Suite, Target, Unchecked, Work, black_box, probe::pin,
};
use squish_kernels::{Isa, probe as kernels};
use squish_model::{
    Config, Hooks, KvLayout, KvOptions, KvType, LoadOptions, Model, Part, RandomCheckpoint,
    Recorder, Runner, RunnerOptions, SequenceId, Team, WeightFormat,
};

use common::{LeftOut, Magnitudes, Thresholds, share};

mod common;

const N_THREADS: usize = 2;

/// Tokens that sequences have before the one that is timed.
const CONTEXT: usize = 512;

/// Layers of the model whose prefill is timed: of all of them it takes seconds, twenty times.
const PREFILL_LAYERS: usize = 4;

/// Passes until thresholds leave out what they are to.
const THRESHOLD_ROUNDS: usize = 8;

/// Shares of inputs that are left out, in per cent.
const LEFT_OUT: [usize; 4] = [0, 25, 50, 75];

/// Formats of all matrices.
const FORMATS: [WeightFormat; 3] = [WeightFormat::Bf16, WeightFormat::Fp8E4M3, WeightFormat::MxFp4];

fn main() {
    let mut suite = Suite::new();
    let team = Team::with_hook(N_THREADS, |idx| {
        pin(idx);
    });
    let team = Arc::new(team.expect("threads"));
    pin(0);
    for format in FORMATS {
        let mut model = None;
        for n_sequences in [1, 16] {
            let row = decode_row(format, n_sequences);
            suite.row(row, |row| {
                let model = model.get_or_insert_with(|| load(format, row.size(16, 1), &row));
                decode(row, model, &team, n_sequences)
            });
        }
        drop(model);
        suite.row(prefill_row(format), |row| {
            let model = load(format, row.size(PREFILL_LAYERS, 1), &row);
            prefill(row, &model, &team)
        });
    }
    for format in [WeightFormat::Bf16, WeightFormat::Fp8E4M3] {
        let mut model = None;
        for left_out in LEFT_OUT {
            suite.row(mlp_row(format, left_out), |row| {
                let model = model.get_or_insert_with(|| load_mlps(format, &row));
                mlp(row, model, &team, left_out)
            });
        }
    }
    suite.finish();
}

/// The model with so many layers; where the benches run as tests, a narrow one.
fn load(format: WeightFormat, n_layers: usize, row: &Unchecked<'_>) -> Arc<Model> {
    let mut config = RandomCheckpoint::llama_3_2_1b();
    config.layers.truncate(n_layers);
    config.vocab_size = row.size(config.vocab_size, 512);
    config.hidden_size = row.size(config.hidden_size, 256);
    config.intermediate_size = row.size(config.intermediate_size, 512);
    let random = RandomCheckpoint { config, seed: 1 };
    Arc::new(
        Model::load(&random, &random.config, &LoadOptions::of(format)).expect("random weights"),
    )
}

/// The feed-forward networks of the model, with attention that is next to nothing.
fn mlp_config() -> Config {
    let mut config = RandomCheckpoint::llama_3_2_1b();
    (config.n_heads, config.n_kv_heads, config.vocab_size) = (1, 1, 512);
    config
}

/// A model of them, by output and by input.
fn load_mlps(format: WeightFormat, row: &Unchecked<'_>) -> Arc<Model> {
    let mut config = mlp_config();
    config.layers.truncate(row.size(16, 1));
    config.hidden_size = row.size(config.hidden_size, 256);
    config.intermediate_size = row.size(config.intermediate_size, 512);
    let random = RandomCheckpoint { config, seed: 1 };
    let options = LoadOptions { mlp_by_input: true, ..LoadOptions::of(format) };
    Arc::new(Model::load(&random, &random.config, &options).expect("random weights"))
}

/// Weights and norms of the model in a format, by the bits of its panels.
fn weight_bytes(format: WeightFormat, n_layers: usize, with_head: bool) -> u64 {
    bytes_of(&RandomCheckpoint::llama_3_2_1b(), format, n_layers, with_head)
}

fn bytes_of(config: &Config, format: WeightFormat, n_layers: usize, with_head: bool) -> u64 {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let of_layer = [
        (config.q_dim() + 2 * config.kv_dim(), hidden),
        (hidden, config.q_dim()),
        (2 * inner, hidden),
        (hidden, inner),
    ];
    let bytes = |(n_outputs, n_inputs): (usize, usize)| match format {
        WeightFormat::Bf16 => 2 * n_outputs * n_inputs,
        WeightFormat::Fp8E4M3 => n_outputs * n_inputs + 4 * n_outputs,
        _ => n_outputs * n_inputs * 17 / 32,
    };
    let layers = n_layers * of_layer.into_iter().map(bytes).sum::<usize>();
    (layers + if with_head { bytes((config.vocab_size, hidden)) } else { 0 }) as u64
}

/// Weights that a token is multiplied with, in the layers and, if wanted, in the head.
fn n_weights(n_layers: usize, with_head: bool) -> u64 {
    weight_bytes(WeightFormat::Bf16, n_layers, with_head) / 2
}

fn decode_row(format: WeightFormat, n_sequences: usize) -> &'static Row {
    let config = RandomCheckpoint::llama_3_2_1b();
    let of_context = config.n_layers() * KvType::Bf16.n_bytes(&config) * (CONTEXT + 1);
    let read = weight_bytes(format, config.n_layers(), true) + (n_sequences * of_context) as u64;
    let alone = Target::AtLeastShareOfProbe { probe: "read", share: 0.80 };
    let mut targets = match (format, n_sequences) {
        (WeightFormat::MxFp4, 1) => {
            vec![alone, Target::AtMostTimesShape { shape: "bf16_m1_t2", times: 1.0 / 3.0 }]
        }
        (_, 1) => vec![alone],
        (WeightFormat::MxFp4, _) => {
            vec![Target::AtMostTimesShape { shape: "fp4_m1_t2", times: 16.0 / 4.0 }]
        }
        (WeightFormat::Bf16, _) => {
            vec![Target::AtMostTimesShape { shape: "bf16_m1_t2", times: 16.0 / 6.0 }]
        }
        _ => vec![Target::AtMostTimesShape { shape: "fp8_m1_t2", times: 16.0 / 6.0 }],
    };
    targets.extend(faster_than(match (format, n_sequences) {
        (WeightFormat::Bf16, 1) => &[("llama.cpp", 1.0), ("candle", 2.0), ("transformers", 2.0)],
        (WeightFormat::MxFp4, 1) => &[("llama.cpp", 1.0), ("candle", 2.0)],
        (WeightFormat::Bf16 | WeightFormat::MxFp4, _) => &[("llama.cpp", 1.0)],
        // No peer has FP8.
        _ => &[],
    }));
    // It lives as long as the process, which ends with the suite.
    Box::leak(Box::new(Row {
        id: "runtime/decode",
        module: "Runner",
        operation: "decode, Llama-3.2-1B, 512 tokens of context",
        shape: Box::leak(format!("{}_m{n_sequences}_t{N_THREADS}", short(format)).into_boxed_str()),
        work: Work::bytes(read, 0)
            .with_flops(2 * n_sequences as u64 * n_weights(config.n_layers(), true)),
        limit: Limit::Read(Residency::Dram),
        threads: N_THREADS,
        targets: Box::leak(targets.into_boxed_slice()),
        note: match n_sequences {
            1 => "keys and values in bf16, blocks of 32",
            _ => "keys and values in bf16, a block for each sequence",
        },
        ..Row::LLM
    }))
}

fn prefill_row(format: WeightFormat) -> &'static Row {
    let limit = match format {
        WeightFormat::MxFp4 => Limit::Int8Dot,
        _ => Limit::Bf16Dot,
    };
    let config = RandomCheckpoint::llama_3_2_1b();
    // Queries meet half of the keys and values on average.
    let attention = 2 * 2 * CONTEXT * CONTEXT / 2 * config.q_dim() * PREFILL_LAYERS;
    let flops = 2 * CONTEXT as u64 * n_weights(PREFILL_LAYERS, false) + attention as u64;
    let mut targets = vec![Target::AtLeastShareOfLimit { share: 0.55 }];
    targets.extend(faster_than(match format {
        WeightFormat::Bf16 => &[("llama.cpp", 0.8), ("transformers", 2.0)],
        WeightFormat::MxFp4 => &[("llama.cpp", 0.8)],
        _ => &[],
    }));
    Box::leak(Box::new(Row {
        id: "runtime/prefill",
        module: "Runner",
        operation: "prefill of 512 tokens, 4 layers of Llama-3.2-1B",
        shape: Box::leak(format!("{}_t{N_THREADS}", short(format)).into_boxed_str()),
        work: Work::bytes(weight_bytes(format, PREFILL_LAYERS, true), 0).with_flops(flops),
        limit,
        threads: N_THREADS,
        targets: Box::leak(targets.into_boxed_slice()),
        note: "with the logits of the last token",
        ..Row::LLM
    }))
}

/// Of the networks alone, which are 98 % of what their model reads.
fn mlp_row(format: WeightFormat, left_out: usize) -> &'static Row {
    let config = mlp_config();
    let read = bytes_of(&config, format, config.n_layers(), true);
    let share = (100 - left_out) as f64 / 100.0;
    let times = match left_out {
        0 => 1.15,
        50 => 0.6,
        _ => 1.15 * share,
    };
    let targets = vec![Target::AtMostTimesProbe { probe: "dense", times }];
    Box::leak(Box::new(Row {
        id: "runtime/sparse_mlp",
        module: "Runner",
        operation: "decode, feed-forward networks of Llama-3.2-1B, by input",
        shape: Box::leak(format!("{}_s{left_out}_t{N_THREADS}", short(format)).into_boxed_str()),
        work: Work::bytes((read as f64 * share) as u64, 0),
        limit: Limit::Read(Residency::Dram),
        threads: N_THREADS,
        targets: Box::leak(targets.into_boxed_slice()),
        note: "s: inputs left out, %, by thresholds of TEAL; `dense` is the same step with all of them",
        ..Row::LLM
    }))
}

/// A target for each peer: how many times as fast.
fn faster_than(peers: &[(&'static str, f64)]) -> impl Iterator<Item = Target> {
    peers.iter().map(|&(peer, times)| Target::AtLeastTimesPeer { peer, times })
}

fn short(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Bf16 => "bf16",
        WeightFormat::Fp8E4M3 => "fp8",
        _ => "fp4",
    }
}

/// Several sequences have a block each, so that their contexts can be copied instead of computed.
fn runner(model: &Arc<Model>, team: &Arc<Team>, n_sequences: usize) -> Runner {
    let of_sequence = 2 * CONTEXT;
    let n_tokens = n_sequences * of_sequence;
    let layout = match n_sequences {
        1 => KvLayout::default(),
        _ => KvLayout::Paged { block_size: of_sequence },
    };
    let kv = KvOptions { layout, n_tokens, n_sequences, ..KvOptions::default() };
    let options = RunnerOptions { kv, ..RunnerOptions::default() };
    Runner::with_team(Arc::clone(model), Arc::clone(team), &options).expect("room")
}

fn prompt(model: &Model, len: usize) -> Vec<u32> {
    (0..len).map(|i| (i * 7919 % model.config().vocab_size) as u32).collect()
}

/// A token for each sequence, undone afterwards: every step sees the same context.
fn step(runner: &mut Runner, ids: &[SequenceId], tokens: &[u32]) -> f32 {
    let parts: Vec<Part<'_>> =
        ids.iter().enumerate().map(|(i, &id)| Part::new(id, &tokens[i..=i])).collect();
    let mut output = runner.forward(&parts).expect("room for a token");
    output.logits().expect("a head")[[0, 0]]
}

fn decode<'s>(
    row: Unchecked<'s>,
    model: &Arc<Model>,
    team: &Arc<Team>,
    n_sequences: usize,
) -> squish_bench::Checked<'s> {
    let mut runner = runner(model, team, n_sequences);
    let prompt = prompt(model, row.size(CONTEXT, 40));
    let (last, before) = prompt.split_last().expect("tokens");
    let first = runner.create().expect("room");
    runner.extend(first, before).expect("room");
    let mut ids = vec![first];
    while ids.len() < n_sequences {
        ids.push(runner.fork(first).expect("room"));
    }
    // Each takes a copy of its block when it writes, the first one last: what sequences share would be read from the caches.
    for &id in ids.iter().rev() {
        runner.extend(id, &[*last]).expect("room");
    }
    let tokens = self::prompt(model, n_sequences);
    let row = row.check(|| {
        // As bits: alone and in the batch.
        let alone = step(&mut runner, &ids[..1], &tokens[..1]);
        assert!(alone.is_finite());
        assert_eq!(alone.to_bits(), step(&mut runner, &ids, &tokens).to_bits());
    });
    if n_sequences > 1 {
        return row.ours(|bench| bench.iter(|| step(&mut runner, &ids, &tokens)));
    }
    let of_context =
        prompt.len() * model.config().n_layers() * KvType::Bf16.n_bytes(model.config());
    let n_bytes = model.n_bytes() + of_context;
    // Read in rounds, so that it is not as large as the model.
    let buffer = Aligned::<u8>::from_fn(n_bytes.min(1 << 30), |i| i as u8);
    let isa = Isa::detect();
    row.ours_and_probe(
        "read",
        n_bytes as u64,
        || step(&mut runner, &ids, &tokens),
        || {
            let mut left = n_bytes;
            while left > 0 {
                let round = &buffer[..left.min(buffer.len())];
                let mut parts = [(&[][..], 0); 16];
                for (part, bytes) in parts.iter_mut().zip(round.chunks(round.len().div_ceil(16))) {
                    part.0 = bytes;
                }
                team.for_each(&mut parts, |(bytes, any)| {
                    *any = kernels::read_bytes(isa, black_box(bytes));
                });
                black_box(parts);
                left -= round.len();
            }
        },
    )
}

fn mlp<'s>(
    row: Unchecked<'s>,
    model: &Arc<Model>,
    team: &Arc<Team>,
    left_out: usize,
) -> squish_bench::Checked<'s> {
    let config = model.config();
    let step = |runner: &mut Runner, ids: &[SequenceId], hooks: &mut Hooks<'_>| {
        let parts: Vec<Part<'_>> = ids.iter().map(|&id| Part::new(id, &[7])).collect();
        let mut output = runner.forward_with(&parts, hooks).expect("room");
        output.logits_with(hooks).expect("a head").row(0).to_vec()
    };
    let mut runner = runner(model, team, 2);
    let ids = [(); 2].map(|()| runner.create().expect("room"));
    let one = &ids[..1];
    // The least positive threshold leaves out zeros alone: all columns are read.
    let mut thresholds = Thresholds(vec![f32::MIN_POSITIVE; 2 * config.n_layers()]);
    // What is left out before changes what comes after.
    for _ in 0..THRESHOLD_ROUNDS {
        let mut seen = Magnitudes::new(config);
        let recorder: Option<&mut dyn Recorder> = Some(&mut seen);
        let mut hooks = Hooks { recorder, sparsity: Some(&thresholds), ..Hooks::default() };
        step(&mut runner, one, &mut hooks);
        thresholds.0 = seen.0.thresholds(left_out as f64 / 100.0).expect("a share");
        thresholds.0.iter_mut().for_each(|at| *at = at.max(f32::MIN_POSITIVE));
    }
    let zeros = LeftOut::default();
    let sparse = || Hooks { sparsity: Some(&thresholds), ..Hooks::default() };
    let row = row.check(|| {
        let got = step(&mut runner, one, &mut Hooks { adapter: Some(&zeros), ..sparse() });
        let share = 100.0 * share(&[&zeros.gate, &zeros.down]);
        assert!((share - left_out as f64).abs() < 3.0, "{share} % left out, not {left_out}");
        // Two rows are multiplied as a whole, with zeros.
        assert_eq!(got, step(&mut runner, &ids, &mut sparse()));
        let is_dense = got == step(&mut runner, one, &mut Hooks::default());
        assert_eq!(is_dense, left_out == 0);
    });
    let runner = RefCell::new(runner);
    let timed = |hooks: &mut Hooks<'_>| step(&mut runner.borrow_mut(), one, hooks);
    let n_bytes = model.n_bytes() as u64;
    row.ours_and_probe("dense", n_bytes, || timed(&mut sparse()), || timed(&mut Hooks::default()))
}

fn prefill<'s>(
    row: Unchecked<'s>,
    model: &Arc<Model>,
    team: &Arc<Team>,
) -> squish_bench::Checked<'s> {
    let mut runner = runner(model, team, 1);
    let prompt = prompt(model, row.size(CONTEXT, 40));
    let id = runner.create().expect("room");
    let mut whole = || {
        let mut output = runner.forward(&[Part::new(id, &prompt)]).expect("room");
        output.logits().expect("a head").row(0).to_vec()
    };
    let expected = whole();
    let row = row.check(|| {
        // The same in pieces.
        let mut pieces = self::runner(model, team, 1);
        let id = pieces.create().expect("room");
        for piece in prompt.chunks(100) {
            pieces.extend(id, piece).expect("room");
        }
        pieces.truncate(id, prompt.len() - 1).expect("shorter");
        let last = pieces.extend(id, &prompt[prompt.len() - 1..]).expect("room");
        assert_eq!(expected, last);
    });
    row.ours(|bench| bench.iter(&mut whole))
}
