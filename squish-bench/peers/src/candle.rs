//! Softmax and RMS norm by candle, on one thread. Its operations allocate their result, as a user of candle would have it.

use std::hint::black_box;

use candle_core::{Device, Result, Tensor};
use candle_nn::ops;

use crate::timing::{Peer, normal};

const NAME: &str = "candle 0.11.1";

fn assert_close(got: &[f32], want: impl Iterator<Item = f64>) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(*got) - want).abs() <= 1e-5 * want.abs() + 1e-7,
            "element {i}: {got} is not {want}"
        );
    }
}

pub(crate) fn softmax() -> Result<()> {
    let peer = Peer { row: "kernels/softmax", shape: "2048".to_owned(), name: NAME };
    let x = normal(2048, 2.0, 3);
    let input = Tensor::from_slice(&x, (1, 2048), &Device::Cpu)?;
    let total: f64 = x.iter().map(|&v| f64::from(v).exp()).sum();
    let got = ops::softmax_last_dim(&input)?.flatten_all()?.to_vec1::<f32>()?;
    assert_close(&got, x.iter().map(|&v| f64::from(v).exp() / total));
    peer.time(|| drop(black_box(ops::softmax_last_dim(black_box(&input)))));
    Ok(())
}

pub(crate) fn rms_norm() -> Result<()> {
    const EPSILON: f32 = 1e-5;
    let (rows, cols) = (64, 256);
    let peer = Peer { row: "kernels/rms_norm", shape: format!("{rows}x{cols}"), name: NAME };
    let (x, weight) = (normal(rows * cols, 1.0, 4), normal(cols, 1.0, 5));
    let input = Tensor::from_slice(&x, (rows, cols), &Device::Cpu)?;
    let alpha = Tensor::from_slice(&weight, cols, &Device::Cpu)?;
    let got = ops::rms_norm(&input, &alpha, EPSILON)?.flatten_all()?.to_vec1::<f32>()?;
    let want = x.chunks(cols).flat_map(|row| {
        let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
        let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
        row.iter()
            .zip(&weight)
            .map(move |(&v, &w)| f64::from(v) * scale * f64::from(w))
            .collect::<Vec<_>>()
    });
    assert_close(&got, want);
    peer.time(|| drop(black_box(ops::rms_norm(black_box(&input), black_box(&alpha), EPSILON))));
    Ok(())
}
