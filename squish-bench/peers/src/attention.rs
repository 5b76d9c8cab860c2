//! Attention of decode steps in f32 by candle, on one thread. Its products of 16-bit floats go through f64, one by one, and are left out.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};

use crate::timing::{Peer, normal, pin};

const NAME: &str = "candle 0.11.1";

/// Bytes of all layers of keys and values that take turns: more than any last level of cache holds.
const ROTATED_BYTES: usize = 400_000_000;

/// Heads, heads of keys and values, tokens and width of a row.
struct Shape(usize, usize, usize, usize);

/// All rows.
pub(crate) fn all() -> Result<()> {
    decode("flash_decode/decode_seq512", "8x512x64", &Shape(8, 8, 512, 64))?;
    decode("attention/decode_f32", "32q8kv_8192x128", &Shape(32, 8, 8192, 128))
}

fn decode(
    row: &'static str,
    shape: &str,
    &Shape(heads, kv_heads, tokens, dim): &Shape,
) -> Result<()> {
    let peer = Peer { row, shape: shape.to_owned(), name: NAME };
    if !peer.is_selected() {
        return Ok(());
    }
    pin();
    let tensor = |n_rows: usize, n_heads: usize, seed| {
        let values = normal(n_rows * n_heads * dim, 1.0, seed);
        Tensor::from_vec(values, (1, n_rows, n_heads, dim), &Device::Cpu)
    };
    let (q, k, v) =
        (tensor(1, heads, 9)?, tensor(tokens, kv_heads, 10)?, tensor(tokens, kv_heads, 11)?);
    let layer_bytes = 2 * k.elem_count() * DType::F32.size_in_bytes();
    let n_layers = if layer_bytes < 32_000_000 { 1 } else { ROTATED_BYTES.div_ceil(layer_bytes) };
    let layers = (0..n_layers).map(|_| Ok((k.copy()?, v.copy()?))).collect::<Result<Vec<_>>>()?;
    let scale = 1.0 / (dim as f32).sqrt();
    let mut turn = layers.iter().cycle();
    let mut attend = || {
        let (k, v) = turn.next().expect("a layer");
        flash_attn::<f32>(&q, k, v, scale, AttnMask::None, None, None)
    };
    let got = attend()?.flatten_all()?.to_vec1::<f32>()?;
    let wide = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
    assert_head(&wide(&q)?, [&wide(&k)?, &wide(&v)?], &got, &Shape(heads, kv_heads, tokens, dim));
    peer.time(|| drop(std::hint::black_box(attend())));
    Ok(())
}

/// Asserts the last head, whose rows lie one token after another.
fn assert_head(
    q: &[f32],
    [k, v]: [&[f32]; 2],
    got: &[f32],
    &Shape(heads, kv_heads, tokens, dim): &Shape,
) {
    let (q, got) = (&q[(heads - 1) * dim..], &got[(heads - 1) * dim..]);
    let row = |data: &[f32], token: usize, e: usize| {
        f64::from(data[(token * kv_heads + kv_heads - 1) * dim + e])
    };
    let scores: Vec<f64> = (0..tokens)
        .map(|token| {
            let dot: f64 = (0..dim).map(|e| f64::from(q[e]) * row(k, token, e)).sum();
            (dot / (dim as f64).sqrt()).exp()
        })
        .collect();
    let sum: f64 = scores.iter().sum();
    for (e, got) in got.iter().enumerate() {
        let exact: f64 =
            scores.iter().enumerate().map(|(token, s)| s / sum * row(v, token, e)).sum();
        assert!((f64::from(*got) - exact).abs() < 1e-5, "column {e}: {got} is not {exact}");
    }
}
