//! E4M3 casts, and E4M3 with one scale per row, by the `float8` crate's conversions in a loop.

use std::hint::black_box;

use float8::F8E4M3;

use crate::timing::{Peer, normal};

const NAME: &str = "float8 0.7";
const MAX: f32 = 448.0;

fn encode_rows(x: &[f32], cols: usize, codes: &mut [F8E4M3], scales: &mut [f32]) {
    for ((row, codes), scale) in x.chunks(cols).zip(codes.chunks_mut(cols)).zip(scales) {
        let amax = row.iter().fold(0.0_f32, |amax, v| amax.max(v.abs()));
        *scale = if amax > 0.0 { amax / MAX } else { 1.0 };
        let inverse = 1.0 / *scale;
        for (code, v) in codes.iter_mut().zip(row) {
            *code = F8E4M3::from_f32(v * inverse);
        }
    }
}

fn decode_rows(codes: &[F8E4M3], cols: usize, scales: &[f32], out: &mut [f32]) {
    for ((codes, out), scale) in codes.chunks(cols).zip(out.chunks_mut(cols)).zip(scales) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = code.to_f32() * scale;
        }
    }
}

/// The value of a code by the format's formula; `None` for the two NaNs.
fn value(code: u8) -> Option<f32> {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => return None,
        (0, _) => mantissa / 8.0 * 2.0_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    Some(if sign == 1 { -magnitude } else { magnitude })
}

/// Asserts that no code lies nearer to the scaled value than the chosen one.
fn assert_nearest(x: &[f32], cols: usize, codes: &[F8E4M3], scales: &[f32]) {
    for i in (0..x.len()).step_by(x.len() / 1024) {
        let scaled = x[i] * (1.0 / scales[i / cols]);
        let got = value(codes[i].to_bits()).expect("finite inputs have finite codes");
        let best =
            (0..=255).filter_map(value).map(|v| (v - scaled).abs()).fold(f32::INFINITY, f32::min);
        assert_eq!((got - scaled).abs(), best, "{scaled} became {got}");
    }
}

/// Codes of the values as they are.
fn cast(x: &[f32], codes: &mut [F8E4M3]) {
    for (code, v) in codes.iter_mut().zip(x) {
        *code = F8E4M3::from_f32(*v);
    }
}

/// Values of the codes.
fn cast_back(codes: &[F8E4M3], out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = code.to_f32();
    }
}

/// All FP8 rows on matrices of `n` by `n`.
pub(crate) fn all(n: usize) {
    let peer = |row| Peer { row, shape: format!("{n}x{n}"), name: NAME };
    // Without a scale, weights of deviation 0.02 would mostly be subnormal; with one, of any deviation, they are not.
    let unit = normal(n * n, 1.0, 1);
    let x = normal(n * n, 0.02, 1);
    let (mut codes, mut scales, mut out) =
        (vec![F8E4M3::from_bits(0); n * n], vec![0.0; n], vec![0.0; n * n]);
    let sampled = || (0..n * n).step_by(n * n / 1024);

    cast(&unit, &mut codes);
    assert_nearest(&unit, n, &codes, &vec![1.0; n]);
    peer("fp8/cast_e4m3").time(|| cast(black_box(&unit), black_box(&mut codes)));
    cast_back(&codes, &mut out);
    assert!(sampled().all(|i| Some(out[i]) == value(codes[i].to_bits())));
    peer("fp8/cast_from_e4m3").time(|| cast_back(black_box(&codes), black_box(&mut out)));

    encode_rows(&x, n, &mut codes, &mut scales);
    assert_nearest(&x, n, &codes, &scales);
    peer("fp8/encode_e4m3_channel")
        .time(|| encode_rows(black_box(&x), n, black_box(&mut codes), black_box(&mut scales)));
    decode_rows(&codes, n, &scales, &mut out);
    assert!(
        sampled().all(|i| Some(out[i]) == value(codes[i].to_bits()).map(|v| v * scales[i / n]))
    );
    peer("fp8/decode_e4m3_channel")
        .time(|| decode_rows(black_box(&codes), n, black_box(&scales), black_box(&mut out)));
}
