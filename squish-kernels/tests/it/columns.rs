//! Ranges and activity of columns against their definitions.

use squish_bench::alloc::count_allocations;
use squish_kernels::{
    Isa,
    columns::{ColumnRange, column_range_with, count_active_with},
};

use crate::common::numbers;

/// Rows of `n` columns with zeros of both signs and what is not finite.
fn matrix(rows: usize, n: usize) -> Vec<f32> {
    let mut x = numbers(rows * n, 3);
    for (i, x) in x.iter_mut().enumerate() {
        match i % 23 {
            3 | 4 => *x = 0.0,
            5 | 11 => *x = -0.0,
            6 => *x = f32::NAN,
            12 => *x = f32::INFINITY,
            18 => *x = f32::NEG_INFINITY,
            19 => *x = -f32::from_bits(1),
            _ => {}
        }
    }
    x
}

struct Columns {
    min: Vec<f32>,
    max: Vec<f32>,
    n_zero: Vec<u32>,
    n_non_finite: Vec<u32>,
}

impl Columns {
    fn new(n: usize) -> Self {
        Self {
            min: vec![f32::INFINITY; n],
            max: vec![f32::NEG_INFINITY; n],
            n_zero: vec![0; n],
            n_non_finite: vec![0; n],
        }
    }

    fn add(&mut self, isa: Isa, rows: &[&[f32]]) {
        let Self { min, max, n_zero, n_non_finite } = self;
        column_range_with(isa, rows, &mut ColumnRange { min, max, n_zero, n_non_finite });
    }
}

#[test]
fn every_isa_gives_the_range_of_each_column_bit_for_bit() {
    for (n_rows, n) in
        [(0, 5), (1, 1), (3, 16), (4, 33), (5, 7), (9, 64), (16, 32), (66, 131), (7, 0)]
    {
        let x = matrix(n_rows, n);
        let rows: Vec<&[f32]> = (0..n_rows).map(|i| &x[i * n..(i + 1) * n]).collect();
        for isa in Isa::available() {
            let mut got = Columns::new(n);
            // In two parts, so that the second adds to what is there.
            let (first, second) = rows.split_at(n_rows / 3);
            let ((), n_allocations) = count_allocations(|| {
                got.add(isa, first);
                got.add(isa, second);
            });
            assert_eq!(n_allocations, 0);
            for c in 0..n {
                let column = || rows.iter().map(|row| row[c]);
                let finite =
                    || column().filter(|x| x.is_finite()).map(|x| if x == 0.0 { 0.0 } else { x });
                let min = finite().fold(f32::INFINITY, f32::min);
                let max = finite().fold(f32::NEG_INFINITY, f32::max);
                let bits = [got.min[c], got.max[c]].map(f32::to_bits);
                assert_eq!(bits, [min, max].map(f32::to_bits), "{isa:?}, {n_rows} x {n}, {c}");
                let counts = [got.n_zero[c], got.n_non_finite[c]];
                let want = [
                    column().filter(|&x| x == 0.0).count(),
                    column().filter(|x| !x.is_finite()).count(),
                ];
                assert_eq!(counts.map(|n| n as usize), want, "{isa:?}, {n_rows} x {n}, {c}");
            }
        }
    }
}

#[test]
fn every_isa_counts_what_reaches_the_threshold_and_nan() {
    for (n_rows, n) in [(1, 1), (4, 16), (5, 40), (16, 256), (6, 3)] {
        let x = matrix(n_rows, n);
        let rows: Vec<&[f32]> = (0..n_rows).map(|i| &x[i * n..(i + 1) * n]).collect();
        for threshold in [0.0, 0.7, x[0].abs(), f32::INFINITY] {
            for isa in Isa::available() {
                let mut got = vec![1; n];
                count_active_with(isa, &rows, threshold, &mut got);
                for (c, got) in got.iter().enumerate() {
                    let active =
                        rows.iter().filter(|row| row[c].abs() >= threshold || row[c].is_nan());
                    assert_eq!(
                        *got as usize,
                        1 + active.count(),
                        "{isa:?}, {threshold}, {n_rows} x {n}, {c}"
                    );
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "one element per column")]
fn a_row_of_another_length_is_refused() {
    count_active_with(Isa::detect(), &[&[1.0; 3], &[1.0; 4]], 0.5, &mut [0; 3]);
}
