//! Rotations: products that stay, and what they do for four bits.

use squish_bench::alloc::count_allocations;
use squish_quant::{
    Error, Granularity, IntFormat, IntQuantizer, error_stats, hadamard_block, hadamard_in_place,
    ndarray::Array2,
};

use crate::int::normal;

#[test]
fn products_of_rotated_matrices_are_the_products() {
    for n in [64, 96, 160, 224] {
        let (x, w) = (normal(3, n), normal(5, n));
        let want = x.dot(&w.t());
        let [mut x, mut w] = [x, w];
        for matrix in [&mut x, &mut w] {
            hadamard_in_place(matrix.as_slice_mut().unwrap(), hadamard_block(n)).unwrap();
        }
        let got = x.dot(&w.t());
        let bound = 1e-5 * n as f32;
        assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() < bound), "{n}");
    }
}

#[test]
fn lengths_of_models_have_blocks() {
    for (n, block) in
        [(4096, 4096), (14336, 14336), (11008, 256), (5120, 5120), (3072, 3072), (18944, 512)]
    {
        assert_eq!(hadamard_block(n), block, "{n}");
        let mut x = normal(1, n);
        let before = x.clone();
        let x = x.as_slice_mut().unwrap();
        let ((), n_allocations) = count_allocations(|| hadamard_in_place(x, block).unwrap());
        assert_eq!(n_allocations, 0);
        hadamard_in_place(x, block).unwrap();
        assert!(before.iter().zip(x).all(|(a, b)| (a - *b).abs() < 1e-4), "{n}");
    }
}

#[test]
fn rotated_rows_with_outliers_lose_less_in_four_bits() {
    let mut x = normal(16, 1024);
    for (i, mut row) in x.rows_mut().into_iter().enumerate() {
        row[31 * i + 5] = 60.0;
    }
    let int4 = IntQuantizer {
        format: IntFormat::Int4,
        granularity: Granularity::Channel,
        ..IntQuantizer::default()
    };
    let snr = |x: &Array2<f32>| {
        let decoded = int4.encode(x.view()).unwrap().decode();
        error_stats(x.as_slice().unwrap(), decoded.as_slice().unwrap()).unwrap().snr_db
    };
    let before = snr(&x);
    hadamard_in_place(x.as_slice_mut().unwrap(), 1024).unwrap();
    let after = snr(&x);
    assert!(after > before + 6.0, "{before} dB, {after} dB");
}

#[test]
fn orders_without_a_transform_and_parts_of_rows_are_refused() {
    let mut x = [1.0; 44];
    assert_eq!(hadamard_in_place(&mut x, 44), Err(Error::Hadamard { n: 44, block: 4 }));
    assert_eq!(hadamard_in_place(&mut x, 0), Err(Error::Hadamard { n: 0, block: 1 }));
    assert_eq!(hadamard_in_place(&mut x, 8), Err(Error::BlockAlign { len: 44, block: 8 }));
    assert_eq!(x, [1.0; 44]);
    assert_eq!(hadamard_in_place(&mut [], 8), Ok(()));
}
