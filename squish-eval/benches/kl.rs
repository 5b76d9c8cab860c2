//! Divergence of rows from those of a base model, with the likelihoods and the best tokens of both.

use squish_bench::{Limit, Row, Suite, Target, Work, black_box, input};
use squish_eval::{KlStats, LogitsReader, LogitsWriter};
use squish_kernels::{divergence::kl_divergence_scalar, kl_divergence, log_sum_exp_f64};

const ROWS: usize = 16;
const VOCAB: usize = 151_936;

static DIVERGENCE: Row = Row {
    id: "eval/kl_divergence",
    module: "squish-eval",
    operation: "log_sum_exp of both, kl_divergence(base, other)",
    shape: "16x151936",
    work: Work::bytes(8 * (ROWS * VOCAB) as u64, 0),
    limit: Limit::None,
    targets: &[Target::AtLeastTimesPeer { peer: "torch", times: 3.0 }],
    ..Row::LLM
};

static PUSH: Row = Row {
    id: "eval/kl_push",
    operation: "KlStats::push(base, other, target)",
    targets: &[],
    ..DIVERGENCE
};

static PUSH_FILE: Row = Row {
    id: "eval/kl_push_file",
    operation: "KlStats::push_log_probs of a row of llama.cpp's file",
    work: Work::bytes(6 * (ROWS * VOCAB) as u64, 0),
    ..PUSH
};

/// Rows of a model, and those of one that was quantized.
fn rows(n_rows: usize, vocab: usize) -> [Vec<f32>; 2] {
    let base = input::logits(n_rows * vocab, 1).to_vec();
    let noise = input::normal(n_rows * vocab, 2);
    let other = base.iter().zip(noise.iter()).map(|(z, noise)| z + 0.05 * noise).collect();
    [base, other]
}

fn divergence(base: &[f32], other: &[f32]) -> f64 {
    kl_divergence(base, log_sum_exp_f64(base), other, log_sum_exp_f64(other))
}

fn main() {
    let mut suite = Suite::new();
    suite.row(&DIVERGENCE, |row| {
        let vocab = row.size(VOCAB, 3001);
        let [base, other] = rows(ROWS, vocab);
        row.check(|| {
            for (base, other) in base.chunks(vocab).zip(other.chunks(vocab)) {
                let want = kl_divergence_scalar(base, other);
                assert!((divergence(base, other) - want).abs() < 1e-4 * want);
            }
        })
        .ours(|bench| {
            bench.iter(|| {
                let rows = black_box(&base).chunks(vocab).zip(black_box(&other).chunks(vocab));
                rows.map(|(base, other)| divergence(base, other)).sum::<f64>()
            });
        })
    });
    suite.row(&PUSH, |row| {
        let vocab = row.size(VOCAB, 3001);
        let [base, other] = rows(ROWS, vocab);
        let push_all = |base: &[f32], other: &[f32]| {
            let mut stats = KlStats::with_capacity(ROWS);
            for (i, (base, other)) in base.chunks(vocab).zip(other.chunks(vocab)).enumerate() {
                stats.push(base, other, i as u32).expect("distributions");
            }
            stats
        };
        row.check(|| {
            let rows = || base.chunks(vocab).zip(other.chunks(vocab));
            let want = rows().map(|(b, o)| kl_divergence_scalar(b, o)).sum::<f64>() / ROWS as f64;
            let got = push_all(&base, &other).report().expect("rows").kl.mean.value;
            assert!((got - want).abs() < 1e-4 * want);
        })
        .ours(|bench| bench.iter(|| push_all(black_box(&base), black_box(&other))))
    });
    suite.row(&PUSH_FILE, |row| {
        let vocab = row.size(VOCAB, 3001);
        let [base, other] = rows(ROWS, vocab);
        let tokens = vec![0; 2 * ROWS + 2];
        let mut writer =
            LogitsWriter::new(Vec::new(), 2 * ROWS + 2, vocab, &tokens).expect("a chunk");
        base.chunks(vocab).for_each(|base| writer.write_row(base).expect("a distribution"));
        let file = writer.finish().expect("all rows");
        let push_all = |file: &[u8], other: &[f32]| {
            let mut stats = KlStats::with_capacity(ROWS);
            let mut reader = LogitsReader::new(file).expect("a file");
            for other in other.chunks(vocab) {
                let row = reader.next_row().expect("whole").expect("a row");
                stats.push_log_probs(row.log_probs, other, row.token).expect("distributions");
            }
            stats
        };
        row.check(|| {
            let rows = || base.chunks(vocab).zip(other.chunks(vocab));
            let want = rows().map(|(b, o)| kl_divergence_scalar(b, o)).sum::<f64>() / ROWS as f64;
            let got = push_all(&file, &other).report().expect("rows").kl.mean.value;
            // What 16 nats below the largest add up to.
            assert!((got - want).abs() < 0.2 * want + 2e-3, "{got} {want}");
        })
        .ours(|bench| bench.iter(|| push_all(black_box(&file), black_box(&other))))
    });
    suite.finish();
}
