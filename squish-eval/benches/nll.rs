//! Negative log-likelihood of rows with the vocabulary of a large model.

use half::bf16;
use squish_bench::{Limit, Residency, Row, Suite, Target, Work, black_box, input};
use squish_eval::{Logits, nll};
use squish_kernels::log_sum_exp::log_sum_exp_scalar;

const ROWS: usize = 64;
const VOCAB: usize = 151_936;

static NLL: Row = Row {
    id: "eval/nll",
    module: "squish-eval",
    operation: "nll(logits, targets)",
    shape: "64x151936",
    work: Work::bytes(4 * (ROWS * VOCAB) as u64, 0),
    limit: Limit::Read(Residency::Dram),
    targets: &[
        Target::AtLeastShareOfProbe { probe: "read", share: 0.8 },
        Target::AtLeastTimesPeer { peer: "torch", times: 4.0 },
    ],
    ..Row::LLM
};

static NLL_BF16: Row = Row {
    id: "eval/nll_bf16",
    work: Work::bytes(2 * (ROWS * VOCAB) as u64, 0),
    limit: Limit::None,
    targets: &[],
    ..NLL
};

/// Targets spread over the vocabulary, and their likelihood by definition.
fn targets_and_nats(logits: &[f32], vocab: usize) -> (Vec<Option<u32>>, f64) {
    let target = |i: usize| (i * 2_654_435_761) % vocab;
    let nats = logits.chunks(vocab).enumerate();
    let nats = nats.map(|(i, row)| log_sum_exp_scalar(row) - f64::from(row[target(i)])).sum();
    ((0..logits.len() / vocab).map(|i| Some(target(i) as u32)).collect(), nats)
}

fn main() {
    let mut suite = Suite::new();
    suite.row(&NLL, |row| {
        let (rows, vocab) = (row.size(ROWS, 3), row.size(VOCAB, 3001));
        let data = input::logits(rows * vocab, 1);
        let logits = Logits::new(&data, vocab).expect("whole rows");
        let (targets, want) = targets_and_nats(&data, vocab);
        row.check(|| {
            let got = nll(logits, &targets).expect("finite");
            assert!((got.nats() - want).abs() < 1e-5 * rows as f64);
        })
        .ours_and_read(&[&data], || nll(black_box(logits), &targets))
    });
    suite.row(&NLL_BF16, |row| {
        let (rows, vocab) = (row.size(ROWS, 3), row.size(VOCAB, 3001));
        let data: Vec<bf16> =
            input::logits(rows * vocab, 1).iter().map(|&z| bf16::from_f32(z)).collect();
        let wide: Vec<f32> = data.iter().map(|z| z.to_f32()).collect();
        let logits = Logits::new(&data, vocab).expect("whole rows");
        let (targets, want) = targets_and_nats(&wide, vocab);
        row.check(|| {
            let got = nll(logits, &targets).expect("finite");
            assert!((got.nats() - want).abs() < 1e-5 * rows as f64);
        })
        .ours(|bench| bench.iter(|| nll(black_box(logits), &targets)))
    });
    suite.finish();
}
