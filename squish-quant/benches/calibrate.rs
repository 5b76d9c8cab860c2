//! Calibration, activation sparsity and rotations: the seed's shapes, and those of a layer of 4096 channels. One thread.

use squish_bench::{Limit, Residency, Row, Target, Work, black_box, input};
use squish_kernels::histogram::SLOTS;
use squish_quant::{
    ActSparsityPredictor, CalibratorOptions, IntFormat, IntRange, Method, QuantAwareCalibrator,
    SparseFfnGate, SparsityOptions, SparsityStatistic, Statistic, Target as Format, hadamard_block,
    hadamard_in_place, ndarray::ArrayView2,
};

use common::at_most;

mod common;

const INT8: Format = Format::Int(IntFormat::Int8, IntRange::Restricted);

/// Rows of a batch and channels.
const SEED: [usize; 2] = [16, 32];
const LAYER: [usize; 2] = [2048, 4096];

static RECORD: Row = Row {
    id: "calibrate/record",
    module: "QuantAwareCalibrator",
    operation: "record(), histograms",
    shape: "16x32",
    targets: &[at_most(26.0)],
    ..Row::SEED
};

static COMPUTE_SCALES: Row = Row {
    id: "calibrate/compute_scales",
    operation: "scales_into(), percentile",
    shape: "32",
    targets: &[at_most(14.0)],
    ..RECORD
};

static RECORD_RANGE: Row = Row {
    id: "calibrate/record_range",
    module: "QuantAwareCalibrator",
    operation: "record(), minima and maxima",
    shape: "2048x4096",
    work: Work::bytes(4 * (LAYER[0] * LAYER[1]) as u64, 0),
    limit: Limit::Read(Residency::Dram),
    targets: &[Target::AtLeastShareOfProbe { probe: "read", share: 0.5 }],
    ..Row::LLM
};

static RECORD_HISTOGRAM: Row = Row {
    id: "calibrate/record_histogram",
    operation: "record(), histograms",
    targets: &[],
    ..RECORD_RANGE
};

static SPARSITY_RECORD: Row = Row {
    id: "act_sparsity/record",
    module: "ActSparsityPredictor",
    operation: "record(), counts",
    shape: "16x256",
    work: Work::bytes(4 * 16 * 256, 0),
    limit: Limit::Read(Residency::L1),
    targets: &[at_most(1.6)],
    ..Row::SEED
};

static SPARSITY_CALIBRATE: Row = Row {
    id: "act_sparsity/calibrate",
    module: "ActSparsityPredictor",
    operation: "sparsity_map()",
    shape: "4",
    ..Row::SEED
};

static SPARSITY_GATE: Row = Row {
    id: "act_sparsity/gate",
    module: "SparseFfnGate",
    operation: "apply_in_place()",
    work: Work::bytes(4 * 16 * 256, 4 * 16 * 256),
    limit: Limit::Copy(Residency::L1),
    ..SPARSITY_RECORD
};

static SELECT: Row = Row {
    id: "act_sparsity/select",
    module: "SparseFfnGate",
    operation: "select_into(), half of the elements",
    shape: "14336",
    work: Work::bytes(4 * 14336, 4 * 14336),
    limit: Limit::Copy(Residency::L2),
    ..Row::LLM
};

const fn hadamard(shape: &'static str, n: usize) -> Row {
    Row {
        id: "quant/hadamard",
        module: "squish-quant",
        operation: "hadamard_in_place(x)",
        shape,
        work: Work::bytes(4 * n as u64, 4 * n as u64),
        limit: Limit::Copy(Residency::L1),
        ..Row::LLM
    }
}

static HADAMARD: [Row; 3] =
    [hadamard("4096", 4096), hadamard("11008", 11008), hadamard("14336", 14336)];

fn main() {
    let mut suite = common::suite();
    suite.row(&RECORD, |row| {
        let x = input::normal(SEED[0] * SEED[1], 1);
        let mut calibrator = calibrator(SEED[1], Statistic::Histogram);
        // Started again before its counters are full.
        let (fresh, mut n_calls) = (calibrator.clone(), 0_u32);
        row.check(|| calibrator.record(batch(&x, SEED)).expect("a batch")).ours_and_memcpy(
            size_of_val(&x[..]),
            || {
                n_calls += 1;
                if n_calls > 1 << 27 {
                    calibrator.clone_from(&fresh);
                    n_calls = 0;
                }
                calibrator.record(black_box(batch(&x, SEED))).expect("a batch");
            },
        )
    });
    suite.row(&COMPUTE_SCALES, |row| {
        let [n_rows, n] = [4096, 32];
        let x = input::normal(n_rows * n, 1);
        let mut calibrator = calibrator(n, Statistic::Histogram);
        calibrator.record(batch(&x, [n_rows, n])).expect("a batch");
        let mut scales = [0.0; 32];
        let method = Method::Percentile(99.9);
        row.check(|| {
            calibrator.scales_into(method, INT8, &mut scales).expect("data");
            assert!(scales.iter().all(|s| (2.5..4.5).contains(&(s * 127.0))), "{scales:?}");
        })
        .ours_and_memcpy(4 * SLOTS * n, || {
            black_box(&calibrator).scales_into(method, INT8, &mut scales)
        })
    });
    for (row, statistic) in
        [(&RECORD_RANGE, Statistic::MinMax), (&RECORD_HISTOGRAM, Statistic::Histogram)]
    {
        suite.row(row, |row| {
            let shape = [row.size(LAYER[0], 8), row.size(LAYER[1], 64)];
            let x = input::normal(shape[0] * shape[1], 1);
            let mut calibrator = calibrator(shape[1], statistic);
            row.check(|| {
                calibrator.record(batch(&x, shape)).expect("a batch");
                let largest = x.iter().step_by(shape[1]).fold(0f32, |m, x| m.max(x.abs()));
                assert_eq!(calibrator.abs_max()[0], largest);
            })
            .ours_and_read(&[&x[..]], || calibrator.record(black_box(batch(&x, shape))))
        });
    }
    sparsity(&mut suite);
    for row in &HADAMARD {
        suite.row(row, |row_state| {
            let n = row.work.read as usize / 4;
            let mut x = input::normal(n, 1);
            let before = x.to_vec();
            let block = hadamard_block(n);
            row_state
                .check(|| {
                    hadamard_in_place(&mut x, block).expect("a block");
                    hadamard_in_place(&mut x, block).expect("a block");
                    assert!(x.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-4));
                })
                .ours(|bench| bench.iter(|| hadamard_in_place(black_box(&mut x), block)))
        });
    }
    suite.finish();
}

fn sparsity(suite: &mut squish_bench::Suite) {
    let shape = [16, 256];
    let options = SparsityOptions { statistic: SparsityStatistic::Counts, ..Default::default() };
    let predictor = || {
        let mut predictor = ActSparsityPredictor::new(&[256; 4], options).expect("options");
        for layer in 0..4 {
            predictor
                .record(layer, batch(&input::normal(16 * 256, layer as u64), shape))
                .expect("a batch");
        }
        predictor
    };
    suite.row(&SPARSITY_RECORD, |row| {
        let x = input::normal(16 * 256, 1);
        let mut predictor = predictor();
        let fresh = predictor.clone();
        let mut n_calls = 0_u32;
        row.check(|| {
            predictor.record(0, batch(&x, shape)).expect("a batch");
            assert!(predictor.sparsity_map().expect("data")[0] < 0.05);
        })
        .ours_and_memcpy(size_of_val(&x[..]), || {
            n_calls += 1;
            if n_calls > 1 << 27 {
                predictor.clone_from(&fresh);
                n_calls = 0;
            }
            predictor.record(0, black_box(batch(&x, shape))).expect("a batch");
        })
    });
    suite.row(&SPARSITY_CALIBRATE, |row| {
        let predictor = predictor();
        row.check(|| assert_eq!(predictor.sparsity_map().expect("data").len(), 4))
            .ours(|bench| bench.iter(|| black_box(&predictor).sparsity_map()))
    });
    suite.row(&SPARSITY_GATE, |row| {
        let mut x = input::normal(16 * 256, 1);
        let gate = SparseFfnGate::new(0.674).expect("a threshold");
        row.check(|| {
            let n = gate.apply_in_place(&mut x);
            assert!((1800..2300).contains(&n) && n == x.iter().filter(|x| **x != 0.0).count());
        })
        .ours_and_memcpy(4 * 16 * 256, || gate.apply_in_place(black_box(&mut x)))
    });
    suite.row(&SELECT, |row| {
        let x = input::normal(14336, 1);
        let gate = SparseFfnGate::new(0.674).expect("a threshold");
        let (mut indices, mut values) = (vec![0; 14336], vec![0.0; 14336]);
        row.check(|| {
            let n = gate.select_into(&x, &mut indices, &mut values).expect("lengths");
            let want = x.iter().filter(|x| x.abs() >= 0.674);
            assert!(values[..n].iter().eq(want));
        })
        .ours(|bench| bench.iter(|| gate.select_into(black_box(&x), &mut indices, &mut values)))
    });
}

fn calibrator(n_channels: usize, statistic: Statistic) -> QuantAwareCalibrator {
    let options = CalibratorOptions { statistic, ..Default::default() };
    QuantAwareCalibrator::new(n_channels, options).expect("few channels")
}

fn batch(x: &[f32], shape: [usize; 2]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape(shape, x).expect("data of that shape")
}
