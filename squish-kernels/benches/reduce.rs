//! The choice of a token: argmax and top-k over a vocabulary, and the largest magnitude that scales need.

use squish_bench::{Limit, Residency, Row, Suite, Work, black_box, input};
use squish_kernels::{
    SimdLevel, abs_max, argmax,
    reduce::{argmax_scalar, argmax_with},
    top_k,
    top_k::{top_k_scalar, top_k_with},
    top_k_scratch_len,
};

const VOCAB: usize = 131_072;
const K: usize = 64;

static ARGMAX: Row = Row {
    id: "kernels/argmax",
    module: "squish-kernels",
    operation: "argmax(logits)",
    shape: "131072",
    work: Work::bytes(4 * VOCAB as u64, 0),
    limit: Limit::Read(Residency::L2),
    ..Row::LLM
};

static TOP_K: Row =
    Row { id: "kernels/top_k", operation: "top_k(logits), k = 64", shape: "131072", ..ARGMAX };

static ABS_MAX: Row = Row {
    id: "kernels/abs_max",
    operation: "abs_max(x)",
    shape: "4096",
    work: Work::bytes(4 * 4096, 0),
    limit: Limit::Read(Residency::L1),
    ..ARGMAX
};

fn main() {
    let mut suite = Suite::new();
    suite.row(&ARGMAX, |row| {
        let logits = input::logits(row.size(VOCAB, 5000), 1);
        row.check(|| assert_eq!(argmax(&logits), argmax_scalar(&logits)))
            .ours(|bench| bench.iter(|| argmax(black_box(&logits))))
            .at_level(SimdLevel::Avx2, |isa, bench| {
                bench.iter(|| argmax_with(isa, black_box(&logits)));
            })
    });
    suite.row(&TOP_K, |row| {
        let logits = input::logits(row.size(VOCAB, 5000), 1);
        let (mut values, mut indices) = ([0.0; K], [0; K]);
        let mut scratch = vec![0; top_k_scratch_len(K)];
        let (mut other_values, mut other_indices) = (values, indices);
        let mut other_scratch = scratch.clone();
        row.check(|| {
            assert_eq!(top_k(&logits, &mut values, &mut indices, &mut scratch), K);
            assert_eq!(indices[..], top_k_scalar(&logits, K));
        })
        .ours(|bench| {
            bench.iter(|| top_k(black_box(&logits), &mut values, &mut indices, &mut scratch));
        })
        .at_level(SimdLevel::Avx2, |isa, bench| {
            let (values, indices) = (&mut other_values, &mut other_indices);
            bench.iter(|| top_k_with(isa, black_box(&logits), values, indices, &mut other_scratch));
        })
    });
    suite.row(&ABS_MAX, |row| {
        let x = input::normal(4096, 1);
        row.check(|| assert_eq!(abs_max(&x), x.iter().fold(0.0, |a, b| f32::max(a, b.abs()))))
            .ours(|bench| bench.iter(|| abs_max(black_box(&x))))
    });
    suite.finish();
}
