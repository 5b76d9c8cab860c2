//! The transform against its matrix, which is symmetric and orthogonal.

use squish_bench::alloc::count_allocations;
use squish_kernels::{
    Isa,
    hadamard::{hadamard_block, hadamard_entry, hadamard_in_place_with},
};

use crate::common::numbers;

/// All orders up to 256, and some above.
fn orders() -> impl Iterator<Item = usize> {
    let large = [320, 384, 448, 512, 1024, 1280, 3584, 4096];
    (1..=256).filter(|&n| hadamard_block(n) == n).chain(large)
}

#[test]
fn the_orders_are_those_documented() {
    let orders: Vec<usize> = orders().take_while(|&n| n <= 128).collect();
    assert_eq!(orders, [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]);
}

#[test]
fn every_matrix_is_symmetric_and_its_rows_are_orthogonal() {
    for n in orders().filter(|&n| n <= 128) {
        for i in 0..n {
            for j in 0..n {
                assert_eq!(hadamard_entry(n, i, j).abs(), 1.0);
                assert_eq!(hadamard_entry(n, i, j), hadamard_entry(n, j, i), "{n}: {i}, {j}");
                let product: f32 =
                    (0..n).map(|k| hadamard_entry(n, i, k) * hadamard_entry(n, j, k)).sum();
                assert_eq!(product, if i == j { n as f32 } else { 0.0 }, "{n}: {i}, {j}");
            }
        }
    }
}

#[test]
fn every_isa_multiplies_with_the_matrix() {
    for n in orders().filter(|&n| n <= 512) {
        let x = numbers(2 * n, n as u64);
        for isa in Isa::available() {
            let mut y = x.clone();
            hadamard_in_place_with(isa, &mut y, n);
            for (x, y) in x.chunks(n).zip(y.chunks(n)) {
                let norm: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                for (i, &y) in y.iter().enumerate() {
                    let sum: f64 = x
                        .iter()
                        .enumerate()
                        .map(|(j, &x)| f64::from(x) * f64::from(hadamard_entry(n, i, j)))
                        .sum();
                    let want = sum / (n as f64).sqrt();
                    assert!(
                        (f64::from(y) - want).abs() <= 1e-6 * norm,
                        "{isa:?}, {n}, {i}: {y} {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_transform_is_its_own_inverse_and_all_levels_agree_bit_for_bit() {
    for n in orders().chain([6144, 14336]) {
        let x = numbers(3 * n, n as u64);
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut y = x.clone();
            hadamard_in_place_with(isa, &mut y, n);
            let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
            assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{isa:?}, {n}");
            hadamard_in_place_with(isa, &mut y, n);
            for (x, y) in x.chunks(n).zip(y.chunks(n)) {
                let norm: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let bound = (4.0 + (n as f64).log2()) * 2f64.powi(-22) * norm;
                for (x, y) in x.iter().zip(y) {
                    assert!(f64::from((x - y).abs()) <= bound, "{isa:?}, {n}: {x} {y}");
                }
            }
        }
    }
}

#[test]
fn an_outlier_is_spread_evenly() {
    for n in orders() {
        let mut x = vec![0.0; n];
        x[n / 3] = 1.0;
        hadamard_in_place_with(Isa::detect(), &mut x, n);
        let want = (1.0 / (n as f64).sqrt()) as f32;
        assert!(x.iter().all(|x| x.abs() == want), "{n}");
    }
}

#[test]
fn the_transform_allocates_nothing() {
    let mut x = numbers(2 * 3584, 1);
    let _ = Isa::detect();
    let ((), n) = count_allocations(|| hadamard_in_place_with(Isa::detect(), &mut x, 3584));
    assert_eq!(n, 0);
}

#[test]
fn blocks_are_the_largest_orders_that_divide() {
    for n in 1..3000_usize {
        let largest = (1..=n).rev().find(|&m| n.is_multiple_of(m) && hadamard_block(m) == m);
        assert_eq!(Some(hadamard_block(n)), largest, "{n}");
    }
    assert_eq!(hadamard_block(0), 1);
}

#[test]
#[should_panic(expected = "no transform of order 36")]
fn an_order_without_a_transform_is_refused() {
    hadamard_in_place_with(Isa::detect(), &mut [0.0; 36], 36);
}
