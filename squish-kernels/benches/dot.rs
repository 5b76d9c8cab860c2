//! Dot product, axpy and sum.

use squish_bench::{Limit, Residency, Row, Suite, Target, Work, black_box, input};
use squish_kernels::{SimdLevel, axpy, dot, dot::dot_with, sum};

const N: usize = 4096;
const BYTES: u64 = 4 * N as u64;

static DOT: Row = Row {
    id: "kernels/dot",
    module: "squish-kernels",
    operation: "dot(a, b)",
    shape: "4096",
    work: Work::bytes(2 * BYTES, 0).with_flops(2 * N as u64),
    limit: Limit::Read(Residency::L1),
    targets: &[Target::AtLeastShareOfLimit { share: 0.85 }],
    ..Row::LLM
};

static AXPY: Row = Row {
    id: "kernels/axpy",
    operation: "y += a * x",
    work: Work::bytes(2 * BYTES, BYTES).with_flops(2 * N as u64),
    limit: Limit::Copy(Residency::L1),
    targets: &[],
    ..DOT
};

static SUM: Row = Row {
    id: "kernels/sum",
    operation: "sum(x)",
    work: Work::bytes(BYTES, 0).with_flops(N as u64),
    targets: &[],
    ..DOT
};

fn main() {
    let mut suite = Suite::new();
    suite.row(&DOT, |row| {
        let (a, b) = (input::normal(N, 1), input::normal(N, 2));
        let read: [&[f32]; 2] = [&a, &b];
        row.check(|| {
            let exact: f64 = a.iter().zip(&*b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-3);
        })
        .ours_and_read(&read, || dot(black_box(&a), black_box(&b)))
        .at_level(SimdLevel::Avx2, |isa, bench| {
            bench.iter(|| dot_with(isa, black_box(&a), black_box(&b)));
        })
    });
    suite.row(&AXPY, |row| {
        let (x, mut y) = (input::normal(N, 1), input::normal(N, 2));
        row.check(|| {
            let mut got = y.to_vec();
            axpy(0.5, &x, &mut got);
            assert!(
                got.iter()
                    .zip(&*x)
                    .zip(&*y)
                    .all(|((got, x), y)| (got - (0.5 * x + y)).abs() < 1e-6)
            );
        })
        .ours(|bench| bench.iter(|| axpy(1e-9, black_box(&x), black_box(&mut y))))
    });
    suite.row(&SUM, |row| {
        let x = input::normal(N, 1);
        row.check(|| {
            let exact: f64 = x.iter().map(|&x| f64::from(x)).sum();
            assert!((f64::from(sum(&x)) - exact).abs() < 1e-3);
        })
        .ours(|bench| bench.iter(|| sum(black_box(&x))))
    });
    suite.finish();
}
