//! Softmax of a row of attention scores, log-sum-exp of logits.

use squish_bench::{Aligned, Limit, Row, Suite, Target, Work, black_box, input};
use squish_kernels::{
    SimdLevel, log_softmax_into, log_sum_exp,
    log_sum_exp::{log_sum_exp_scalar, log_sum_exp_with},
    softmax::{softmax_into_with, softmax_scalar},
    softmax_into,
};

const N: usize = 2048;
const ROWS: usize = 16;
const VOCAB: usize = 131_072;

static SOFTMAX: Row = Row {
    id: "kernels/softmax",
    module: "squish-kernels",
    operation: "softmax_into(x)",
    shape: "2048",
    work: Work::bytes(4 * N as u64, 4 * N as u64),
    limit: Limit::None,
    targets: &[Target::AtLeastTimesPeer { peer: "torch", times: 4.0 }],
    ..Row::LLM
};

static LOG_SOFTMAX: Row =
    Row { id: "kernels/log_softmax", operation: "log_softmax_into(x)", targets: &[], ..SOFTMAX };

static LOG_SUM_EXP: Row = Row {
    id: "kernels/logsumexp",
    operation: "log_sum_exp(logits) of each row",
    shape: "16x131072",
    work: Work::bytes(4 * (ROWS * VOCAB) as u64, 0),
    targets: &[Target::AtLeastTimesPeer { peer: "torch", times: 3.5 }],
    ..SOFTMAX
};

fn main() {
    let mut suite = Suite::new();
    suite.row(&SOFTMAX, |row| {
        let (x, mut out) = (input::normal(N, 1), Aligned::<f32>::zeroed(N));
        let mut other = Aligned::<f32>::zeroed(N);
        row.check(|| {
            let mut got = vec![0.0; N];
            softmax_into(&x, &mut got);
            let want = softmax_scalar(&x);
            assert!(
                got.iter()
                    .zip(want)
                    .all(|(&got, want)| (f64::from(got) - want).abs() < 1e-6 * want)
            );
        })
        .ours(|bench| bench.iter(|| softmax_into(black_box(&x), black_box(&mut out))))
        .at_level(SimdLevel::Avx2, |isa, bench| {
            bench.iter(|| softmax_into_with(isa, black_box(&x), black_box(&mut other)));
        })
    });
    suite.row(&LOG_SOFTMAX, |row| {
        let (x, mut out) = (input::normal(N, 1), Aligned::<f32>::zeroed(N));
        row.check(|| {
            let mut got = vec![0.0; N];
            log_softmax_into(&x, &mut got);
            let want = softmax_scalar(&x);
            assert!(
                got.iter().zip(want).all(|(&got, want)| (f64::from(got) - want.ln()).abs() < 1e-5)
            );
        })
        .ours(|bench| bench.iter(|| log_softmax_into(black_box(&x), black_box(&mut out))))
    });
    suite.row(&LOG_SUM_EXP, |row| {
        let vocab = row.size(VOCAB, 3000);
        let logits = input::logits(ROWS * vocab, 1);
        row.check(|| {
            for x in logits.chunks(vocab) {
                assert!((f64::from(log_sum_exp(x)) - log_sum_exp_scalar(x)).abs() < 1e-5);
            }
        })
        .ours(|bench| {
            bench.iter(|| black_box(&logits).chunks(vocab).map(log_sum_exp).fold(0.0, f32::max));
        })
        .at_level(SimdLevel::Avx2, |isa, bench| {
            let rows = |logits: &[f32]| {
                logits.chunks(vocab).map(|x| log_sum_exp_with(isa, x)).fold(0.0, f32::max)
            };
            bench.iter(|| rows(black_box(&logits)));
        })
    });
    suite.finish();
}
