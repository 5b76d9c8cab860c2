//! RMS norm with and without the fused residual add, and layer norm.

use squish_bench::{Aligned, Limit, Residency, Row, Suite, Target, Work, black_box, input};
use squish_kernels::{
    RmsVariant, SimdLevel, add_rms_norm_in_place, add_rms_norm_into, layer_norm_into,
    norm::{
        add_rms_norm_in_place_with, layer_norm_scalar, rms_norm_in_place_with, rms_norm_scalar,
    },
    rms_norm_in_place, rms_norm_into,
};

const EPS: f32 = 1e-5;
const VARIANT: RmsVariant = RmsVariant::Llama;

const fn bytes(rows: u64, cols: u64) -> u64 {
    4 * rows * cols
}

/// Of the residual form: input and residual are read, residual and result written.
const fn residual_work(rows: u64, cols: u64) -> Work {
    Work::bytes(2 * bytes(rows, cols), 2 * bytes(rows, cols))
}

// With weight and result, even 16 rows of 256 exceed an L1 of 32 KiB, so that L2 is the limit of both small shapes.
static FORWARD_B16: Row = Row {
    id: "rmsnorm/forward_b16",
    module: "squish-kernels",
    operation: "add_rms_norm_into(x, residual, w)",
    shape: "16x256",
    work: residual_work(16, 256),
    limit: Limit::Copy(Residency::L2),
    targets: &[Target::AtLeastShareOfLimit { share: 0.55 }],
    ..Row::SEED
};
static FORWARD_B64: Row =
    Row { id: "rmsnorm/forward_b64", shape: "64x256", work: residual_work(64, 256), ..FORWARD_B16 };
static FUSED_ADD_B16: Row = Row {
    id: "rmsnorm/fused_add_b16",
    operation: "add_rms_norm_in_place(x, residual, w)",
    ..FORWARD_B16
};

static RMS_16: Row = Row {
    id: "kernels/rms_norm",
    operation: "rms_norm_into(x, w)",
    work: Work::bytes(bytes(16, 256), bytes(16, 256)),
    table: Row::LLM.table,
    ..FORWARD_B16
};
static RMS_64: Row =
    Row { shape: "64x256", work: Work::bytes(bytes(64, 256), bytes(64, 256)), ..RMS_16 };
static RMS_512: Row = Row {
    operation: "rms_norm_in_place(x, w)",
    shape: "512x4096",
    work: Work::bytes(bytes(512, 4096), bytes(512, 4096)),
    limit: Limit::Copy(Residency::L3),
    targets: &[Target::AtLeastShareOfProbe { probe: "memcpy", share: 0.8 }],
    note: "`into` writes to a second buffer, whose lines are read from L3 first",
    ..RMS_16
};
static ADD_512: Row = Row {
    id: "kernels/rms_norm_add",
    operation: "add_rms_norm_in_place(x, residual, w)",
    work: residual_work(512, 4096),
    note: "",
    ..RMS_512
};
static LAYER_512: Row = Row {
    id: "kernels/layer_norm",
    operation: "layer_norm_into(x, w, b)",
    targets: &[],
    note: "",
    ..RMS_512
};

struct Inputs {
    x: Aligned<f32>,
    residual: Aligned<f32>,
    w: Aligned<f32>,
    out: Aligned<f32>,
}

fn inputs(rows: usize, cols: usize) -> Inputs {
    Inputs {
        x: input::normal(rows * cols, 1),
        residual: input::normal(rows * cols, 2),
        // Of magnitude 1: a norm in place is repeated on its own result, which other weights would drive to zero.
        w: Aligned::from_fn(cols, |i| if i % 3 == 0 { -1.0 } else { 1.0 }),
        out: Aligned::zeroed(rows * cols),
    }
}

fn assert_rows(h: &[f32], w: &[f32], got: &[f32]) {
    for (h, got) in h.chunks(w.len()).zip(got.chunks(w.len())) {
        let want = rms_norm_scalar(h, w, EPS, VARIANT);
        assert!(
            got.iter()
                .zip(&want)
                .all(|(got, want)| (got - want).abs() <= 1e-5 * (1.0 + want.abs()))
        );
    }
}

/// Checks both residual forms.
fn check_residual(Inputs { x, residual, w, .. }: &Inputs) {
    let h: Vec<f32> = x.iter().zip(&**residual).map(|(x, r)| x + r).collect();
    let (mut apart, mut sum) = (vec![0.0; h.len()], residual.to_vec());
    add_rms_norm_into(x, &mut sum, w, EPS, VARIANT, &mut apart);
    assert_eq!(sum, h);
    assert_rows(&h, w, &apart);
    let (mut place, mut sum) = (x.to_vec(), residual.to_vec());
    add_rms_norm_in_place(&mut place, &mut sum, w, EPS, VARIANT);
    assert_eq!((sum, place), (h, apart));
}

fn forward(suite: &mut Suite, row: &'static Row, rows: usize) {
    suite.row(row, |row| {
        let mut all = inputs(rows, 256);
        row.check(|| check_residual(&all)).ours(|bench| {
            let Inputs { x, residual, w, out } = &mut all;
            // Small, or the residual would grow over millions of calls.
            x.iter_mut().for_each(|x| *x *= 1e-6);
            bench.iter(|| {
                add_rms_norm_into(
                    black_box(x),
                    black_box(residual),
                    w,
                    EPS,
                    VARIANT,
                    black_box(out),
                );
            });
        })
    });
}

fn main() {
    let mut suite = Suite::new();
    forward(&mut suite, &FORWARD_B16, 16);
    forward(&mut suite, &FORWARD_B64, 64);
    suite.row(&FUSED_ADD_B16, |row| {
        let (mut all, mut other) = (inputs(16, 256), inputs(16, 256));
        row.check(|| check_residual(&all))
            .ours(|bench| {
                let Inputs { x, residual, w, .. } = &mut all;
                bench.iter(|| {
                    add_rms_norm_in_place(black_box(x), black_box(residual), w, EPS, VARIANT);
                });
            })
            .at_level(SimdLevel::Avx2, |isa, bench| {
                let Inputs { x, residual, w, .. } = &mut other;
                bench.iter(|| {
                    add_rms_norm_in_place_with(
                        isa,
                        black_box(x),
                        black_box(residual),
                        w,
                        EPS,
                        VARIANT,
                    );
                });
            })
    });
    for (row, rows) in [(&RMS_16, 16), (&RMS_64, 64)] {
        suite.row(row, |row| {
            let Inputs { x, w, mut out, .. } = inputs(rows, 256);
            row.check(|| {
                let mut got = vec![0.0; x.len()];
                rms_norm_into(&x, &w, EPS, VARIANT, &mut got);
                assert_rows(&x, &w, &got);
            })
            .ours(|bench| {
                bench.iter(|| rms_norm_into(black_box(&x), &w, EPS, VARIANT, black_box(&mut out)));
            })
        });
    }
    suite.row(&RMS_512, |row| {
        let rows = row.size(512, 2);
        let Inputs { x, residual: mut place, w, mut out } = inputs(rows, 4096);
        let mut other = input::normal(rows * 4096, 4);
        row.check(|| {
            let mut got = x.to_vec();
            rms_norm_in_place(&mut got, &w, EPS, VARIANT);
            assert_rows(&x, &w, &got);
        })
        .ours_and_memcpy(4 * rows * 4096, || {
            rms_norm_in_place(black_box(&mut place), &w, EPS, VARIANT);
        })
        .variant("into", |bench| {
            bench.iter(|| rms_norm_into(black_box(&x), &w, EPS, VARIANT, black_box(&mut out)));
        })
        .at_level(SimdLevel::Avx2, |isa, bench| {
            bench.iter(|| rms_norm_in_place_with(isa, black_box(&mut other), &w, EPS, VARIANT));
        })
    });
    suite.row(&ADD_512, |row| {
        let rows = row.size(512, 2);
        let mut all = inputs(rows, 4096);
        let row = row.check(|| check_residual(&all));
        let Inputs { x, residual, w, .. } = &mut all;
        row.ours_and_memcpy(4 * rows * 4096, || {
            add_rms_norm_in_place(black_box(x), black_box(residual), w, EPS, VARIANT);
        })
    });
    suite.row(&LAYER_512, |row| {
        let rows = row.size(512, 2);
        let Inputs { x, w, mut out, .. } = inputs(rows, 4096);
        row.check(|| {
            let mut got = vec![0.0; x.len()];
            layer_norm_into(&x, &w, &w, EPS, &mut got);
            for (x, got) in x.chunks(4096).zip(got.chunks(4096)) {
                let want = layer_norm_scalar(x, &w, &w, EPS);
                assert!(
                    got.iter().zip(want).all(|(&got, want)| (f64::from(got) - want).abs() < 1e-4)
                );
            }
        })
        .ours(|bench| {
            bench.iter(|| layer_norm_into(black_box(&x), &w, &w, EPS, black_box(&mut out)));
        })
    });
    suite.finish();
}
