//! Rotary embeddings: the seed's frequencies and heads `[seq_len, n_heads, head_dim]`, other layouts and types, one decode step, tables.
//!
//! Heads are rotated in place, beside a `memcpy` whose two buffers are together as large as the heads and the table: both stay in L2.

use half::bf16;
use squish_attn::{
    InvFreq, LengthRule, RopeConfig, RopeLayout, RopeMode, RopeOptions, RopeScaling, RopeTable,
    ndarray::ArrayViewMut3,
};
use squish_bench::{
    Aligned, Checked, Limit, Residency, Row, Suite, Target, Unchecked, Work, black_box, input,
};
use squish_kernels::{Real, SimdLevel, rope::rope_in_place_with};

const SEQ_LEN: usize = 512;
const N_HEADS: usize = 4;
const HEAD_DIM: usize = 64;

/// Heads of elements of `size` bytes are read and written, the table is read.
const fn work(size: usize) -> Work {
    let heads = (SEQ_LEN * N_HEADS * HEAD_DIM * size) as u64;
    Work::bytes(heads + (4 * SEQ_LEN * HEAD_DIM) as u64, heads)
}

const TARGETS: &[Target] = &[
    Target::AtLeastShareOfProbe { probe: "memcpy", share: 0.6 },
    Target::AtLeastTimesPeer { peer: "torch", times: 8.0 },
];

static NTK_FREQS: Row = Row {
    id: "rope/ntk_freqs",
    module: "RopeConfig",
    operation: "inv_freq_into() NTK-aware",
    shape: "d64",
    work: Work::bytes(0, 8 * 32),
    note: "to be at most 0.5 µs",
    ..Row::SEED
};
static NTK_APPLY: Row = Row {
    id: "rope/ntk_apply",
    module: "RopeTable",
    operation: "apply_in_place() halves",
    shape: "512x4x64",
    work: work(4),
    limit: Limit::Copy(Residency::L2),
    targets: TARGETS,
    release_profile: true,
    ..Row::SEED
};
static INTERLEAVED: Row = Row {
    id: "rope/apply_interleaved",
    operation: "apply_in_place() neighbors",
    targets: &[Target::AtLeastShareOfProbe { probe: "memcpy", share: 0.6 }],
    table: Row::LLM.table,
    release_profile: false,
    ..NTK_APPLY
};
static BF16: Row = Row {
    id: "rope/apply_bf16",
    operation: "apply_in_place() halves, bf16",
    work: work(2),
    targets: &[],
    ..INTERLEAVED
};
static DECODE: Row = Row {
    id: "rope/apply_qk",
    operation: "apply_qk_in_place() of one token, 32 and 8 heads",
    shape: "1x40x128",
    work: Work::bytes(4 * 41 * 128, 4 * 40 * 128),
    limit: Limit::Copy(Residency::L1),
    targets: &[],
    ..INTERLEAVED
};
static EXTEND: Row = Row {
    id: "rope/extend",
    operation: "extend_to() of an empty table",
    shape: "4096x64",
    work: Work::bytes(0, 4 * 4096 * 64),
    limit: Limit::None,
    targets: &[],
    ..INTERLEAVED
};

fn config() -> RopeConfig {
    RopeConfig {
        scaling: RopeScaling::NtkAware { factor: 4.0 },
        ..RopeConfig::new(HEAD_DIM, 10000.0, 4096)
    }
}

fn table(config: RopeConfig, seq_len: usize) -> RopeTable {
    let options = RopeOptions { mode: RopeMode::HfF32, length: LengthRule::Longest };
    let mut table = RopeTable::new(config, options).expect("a valid configuration");
    table.extend_to(seq_len).expect("memory for a small table");
    table
}

fn positions() -> Vec<usize> {
    (0..SEQ_LEN).collect()
}

fn view<T>(x: &mut [T], n_heads: usize, head_dim: usize) -> ArrayViewMut3<'_, T> {
    let n_rows = x.len() / (n_heads * head_dim);
    ArrayViewMut3::from_shape((n_rows, n_heads, head_dim), x).expect("whole rows")
}

/// Asserts that `got` is `x`, of position 0 on, rotated by the formula in `f64`, within `error` of the size of a pair.
fn assert_rotated<T: Real>(x: &[T], got: &[T], layout: RopeLayout, error: f64) {
    let half = HEAD_DIM / 2;
    let base = 10000.0 * 4f64.powf(HEAD_DIM as f64 / (HEAD_DIM - 2) as f64);
    let heads = x.chunks(HEAD_DIM).zip(got.chunks(HEAD_DIM)).enumerate();
    for (head_idx, (x, got)) in heads {
        for i in 0..half {
            let angle =
                (head_idx / N_HEADS) as f64 * base.powf(-((2 * i) as f64) / HEAD_DIM as f64);
            let (first, second) = match layout {
                RopeLayout::HalfSplit => (i, i + half),
                RopeLayout::Interleaved => (2 * i, 2 * i + 1),
            };
            let [a, b] = [x[first], x[second]].map(|x| f64::from(x.to_f32()));
            let want = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
            let size = a.hypot(b);
            for (got, want) in [got[first], got[second]].into_iter().zip(want) {
                assert!((f64::from(got.to_f32()) - want).abs() <= error * size);
            }
        }
    }
}

/// Rotates heads of type `T`; `error` is that of its rounding and of angles in `f32`.
fn apply<T: Real>(row: Unchecked<'_>, layout: RopeLayout, error: f64) -> Checked<'_> {
    let (table, positions) = (table(config(), SEQ_LEN), positions());
    let numbers = input::normal(SEQ_LEN * N_HEADS * HEAD_DIM, 1);
    let mut x = Aligned::from_fn(numbers.len(), |i| T::from_f32(numbers[i]));
    // Two buffers of the copy.
    let copied = usize::midpoint(size_of_val(&*x), 4 * SEQ_LEN * HEAD_DIM);
    let rotate = |x: &mut [T]| {
        let heads = view(x, N_HEADS, HEAD_DIM);
        table.apply_in_place(heads, black_box(&positions), layout).expect("positions are ready");
    };
    row.check(|| {
        let mut got = x.clone();
        rotate(&mut got);
        assert_rotated(&x, &got, layout, error);
    })
    .ours_and_memcpy(copied, || rotate(black_box(&mut x)))
}

fn main() {
    let mut suite = Suite::new();
    suite.row(&NTK_FREQS, |row| {
        let (config, mut out) = (config(), [0.0; HEAD_DIM / 2]);
        row.check(|| {
            config.inv_freq_into(1, RopeMode::HfF32, &mut out).expect("a valid configuration");
            let last = 1e-4_f64.powf(31.0 / 32.0) / 4.0;
            assert!(out[0] == 1.0 && (out[31] / last - 1.0).abs() < 1e-6);
            let all = InvFreq::new(&config, 1, RopeMode::HfF32).expect("a valid configuration");
            assert_eq!(all.values(), out);
        })
        .ours(|bench| {
            bench
                .iter(|| black_box(&config).inv_freq_into(1, RopeMode::HfF32, black_box(&mut out)));
        })
    });
    suite.row(&NTK_APPLY, |row| {
        let table = table(config(), SEQ_LEN);
        let cos_sin: Vec<f32> = (0..SEQ_LEN)
            .filter_map(|position| table.row(position))
            .flat_map(|(cos, sin)| cos.iter().chain(sin).copied())
            .collect();
        let positions = positions();
        let mut x = input::normal(SEQ_LEN * N_HEADS * HEAD_DIM, 2);
        apply::<f32>(row, RopeLayout::HalfSplit, 1e-4).at_level(SimdLevel::Avx2, |isa, bench| {
            let layout = RopeLayout::HalfSplit;
            bench.iter(|| {
                let x = black_box(&mut x);
                rope_in_place_with(isa, x, HEAD_DIM, &cos_sin, HEAD_DIM, &positions, layout);
            });
        })
    });
    suite.row(&INTERLEAVED, |row| apply::<f32>(row, RopeLayout::Interleaved, 1e-4));
    suite.row(&BF16, |row| apply::<bf16>(row, RopeLayout::HalfSplit, 0.005));
    suite.row(&DECODE, |row| {
        let table = table(RopeConfig::new(128, 500000.0, 8192), 4096);
        let (mut q, mut k) = (input::normal(32 * 128, 1), input::normal(8 * 128, 2));
        let rotate = |q: &mut Aligned<f32>, k: &mut Aligned<f32>| {
            let (q, k) = (view(q, 32, 128), view(k, 8, 128));
            table
                .apply_qk_in_place(q, k, black_box(&[4095]), RopeLayout::HalfSplit)
                .expect("positions are ready");
        };
        row.check(|| {
            let before = (q[0], q[64]);
            rotate(&mut q, &mut k);
            let (sin, cos) = 4095_f32.sin_cos();
            assert!((q[0] - (before.0 * cos - before.1 * sin)).abs() < 1e-6);
        })
        .ours(|bench| bench.iter(|| rotate(black_box(&mut q), black_box(&mut k))))
    });
    suite.row(&EXTEND, |row| {
        let seq_len = row.size(4096, 64);
        let empty = RopeTable::new(config(), RopeOptions::default()).expect("valid");
        row.check(|| {
            let table = table(config(), seq_len);
            let (cos, sin) = table.row(seq_len - 1).expect("made ready");
            let (s, c) = ((seq_len - 1) as f32).sin_cos();
            assert!((cos[0] - c).abs() < 1e-6 && (sin[0] - s).abs() < 1e-6);
        })
        .ours(|bench| {
            bench.iter(|| {
                let mut table = black_box(&empty).clone();
                table.extend_to(seq_len).map(|_| table)
            });
        })
    });
    suite.finish();
}
