//! Softmax, RMS norm and rotary embedding by candle, on one thread. Its operations allocate their result, as a user of candle would have it.

use std::hint::black_box;

use candle_core::{Device, Result, Tensor};
use candle_nn::{ops, rotary_emb};

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

pub(crate) fn rope() -> Result<()> {
    let (seq_len, heads, dim) = (512, 4, 64);
    let half = dim / 2;
    let peer =
        Peer { row: "rope/ntk_apply", shape: format!("{seq_len}x{heads}x{dim}"), name: NAME };
    // Candle has heads before positions.
    let x = normal(heads * seq_len * dim, 1.0, 6);
    let base = 1e4 * 4_f64.powf(dim as f64 / (dim - 2) as f64);
    let angle = |i: usize| (i / half) as f64 * base.powf(-((2 * (i % half)) as f64) / dim as f64);
    let table = |f: fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f32> = (0..seq_len * half).map(|i| f(angle(i)) as f32).collect();
        Tensor::from_slice(&values, (seq_len, half), &Device::Cpu)
    };
    let input = Tensor::from_slice(&x, (1, heads, seq_len, dim), &Device::Cpu)?;
    let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
    let got = rotary_emb::rope(&input, &cos, &sin)?.flatten_all()?.to_vec1::<f32>()?;
    for (row, (x, got)) in x.chunks(dim).zip(got.chunks(dim)).enumerate() {
        for i in 0..half {
            let (s, c) = angle(row % seq_len * half + i).sin_cos();
            let (a, b) = (f64::from(x[i]), f64::from(x[i + half]));
            let errors =
                [f64::from(got[i]) - (a * c - b * s), f64::from(got[i + half]) - (b * c + a * s)];
            assert!(
                errors.iter().all(|error| error.abs() <= 1e-5),
                "row {row}, pair {i}: {errors:?}"
            );
        }
    }
    peer.time(|| {
        drop(black_box(rotary_emb::rope(black_box(&input), black_box(&cos), black_box(&sin))))
    });
    Ok(())
}
