//! Products of f32 weights with rows of activations by `rten-gemm`, on one thread.
//!
//! It multiplies with weights that were packed beforehand; one row of activations also has a path of its own for weights as they are.
//! Where there are both, the faster one counts.

use std::hint::black_box;

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, GemmResult, PackedBMatrix};
use rten_tensor::{Matrix, NdTensorView};

use crate::timing::{Figures, Peer, measure, normal, pin};

/// Bytes of all copies of the weights: more than any last level of cache holds.
const ROTATED_BYTES: usize = 400_000_000;
/// Rows of weights that differ; a matrix repeats them, so that few need to be drawn and multiplied in f64.
const DISTINCT_ROWS: usize = 1024;
const K: usize = 4096;

/// Rows of activations, and rows of weights.
const SHAPES: [(usize, usize); 6] =
    [(1, 4096), (1, 14336), (4, 4096), (8, 4096), (16, 4096), (512, 4096)];

/// All products. The calling thread is pinned from here on.
pub(crate) fn products() -> GemmResult {
    for (m, n) in SHAPES {
        let peer = Peer { row: "product/f32", shape: format!("m{m}_{n}x{K}"), name: "rten 0.27.0" };
        if peer.is_selected() {
            pin();
            peer.print(product(m, n)?);
        }
    }
    Ok(())
}

/// Times activations `[m, K]` by weights `[n, K]`.
fn product(m: usize, n: usize) -> GemmResult<Figures> {
    let gemm = GemmExecutor::new();
    let (x, distinct) = (normal(m * K, 1.0, 6), normal(DISTINCT_ROWS * K, 0.02, 7));
    let weights = distinct.repeat(n / DISTINCT_ROWS);
    let n_copies = ROTATED_BYTES.div_ceil(size_of_val(&*weights));

    let packed: Vec<PackedBMatrix<f32>> =
        (0..n_copies).map(|_| gemm.prepack_b(transposed(&weights, n))).collect();
    let packed: Vec<_> = packed.iter().map(GemmInputB::Packed).collect();
    let of_packed = time(&gemm, &x, &distinct, &packed)?;
    if m > 1 {
        return Ok(of_packed);
    }
    let plain = vec![weights; n_copies];
    let plain: Vec<_> =
        plain.iter().map(|copy| GemmInputB::Unpacked(transposed(copy, n))).collect();
    let of_plain = time(&gemm, &x, &distinct, &plain)?;
    Ok(if of_plain.ns_min < of_packed.ns_min { of_plain } else { of_packed })
}

/// The weights as `[K, n]`.
fn transposed(weights: &[f32], n: usize) -> Matrix<'_, f32> {
    NdTensorView::from_data([n, K], weights).transposed()
}

/// Times one product, which takes the next copy of the weights each time.
fn time(
    gemm: &GemmExecutor,
    x: &[f32],
    distinct: &[f32],
    copies: &[GemmInputB<'_, f32>],
) -> GemmResult<Figures> {
    let input = GemmInputA::Unpacked(NdTensorView::from_data([x.len() / K, K], x));
    let mut y = vec![0.0; x.len() / K * copies[0].cols()];
    for copy in copies {
        gemm.gemm(&mut y, input, *copy, GemmOptions::default())?;
        assert_product(x, distinct, &y);
    }
    let mut copies = copies.iter().cycle();
    let mut outcome = Ok(());
    let figures = measure(|| {
        let copy = copies.next().expect("there is a copy");
        let result = gemm.gemm(black_box(&mut y), input, *copy, GemmOptions::default());
        if result.is_err() {
            outcome = result;
        }
    });
    outcome.map(|()| figures)
}

/// Asserts that `y` is the exact product up to the order of summation in f32. Of many rows of activations, 8 are looked at.
fn assert_product(x: &[f32], distinct: &[f32], y: &[f32]) {
    let m = x.len() / K;
    let n_checked = m.min(8);
    for row in (0..n_checked).map(|i| i * (m - 1) / (n_checked - 1).max(1)) {
        let y = &y[row * (y.len() / m)..(row + 1) * (y.len() / m)];
        for (i, weights) in distinct.chunks(K).enumerate() {
            let products =
                x[row * K..].iter().zip(weights).map(|(&a, &b)| f64::from(a) * f64::from(b));
            let (exact, magnitude) =
                products.fold((0.0, 0.0), |(sum, of_abs), p| (sum + p, of_abs + p.abs()));
            for got in y.iter().skip(i).step_by(DISTINCT_ROWS) {
                assert!(
                    (f64::from(*got) - exact).abs() <= 2e-6 * magnitude,
                    "row {row}, column {i} or one of its repetitions: {got} is not {exact}"
                );
            }
        }
    }
}
