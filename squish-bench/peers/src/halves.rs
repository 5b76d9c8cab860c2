//! f32 to and from bf16 and f16, by the `half` crate's slice conversions.

use std::hint::black_box;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::timing::{Peer, normal};

const NAME: &str = "half 2.7";
const LEN: usize = 1 << 20;

fn peer(row: &'static str) -> Peer {
    Peer { row, shape: LEN.to_string(), name: NAME }
}

pub(crate) fn all() {
    let x = normal(LEN, 1.0, 2);

    let to_bf16 = peer("kernels/f32_to_bf16");
    let mut b = vec![bf16::ZERO; LEN];
    b.convert_from_f32_slice(&x);
    assert!(b.iter().zip(&x).all(|(b, x)| *b == bf16::from_f32(*x)));
    to_bf16.time(|| black_box(&mut b[..]).convert_from_f32_slice(black_box(&x)));

    let to_f16 = peer("kernels/f32_to_f16");
    let mut h = vec![f16::ZERO; LEN];
    h.convert_from_f32_slice(&x);
    assert!(h.iter().zip(&x).all(|(h, x)| *h == f16::from_f32(*x)));
    to_f16.time(|| black_box(&mut h[..]).convert_from_f32_slice(black_box(&x)));

    let mut out = vec![0.0; LEN];
    let from_bf16 = peer("kernels/bf16_to_f32");
    b.convert_to_f32_slice(&mut out);
    assert!(out.iter().zip(&b).all(|(x, b)| x.to_bits() == u32::from(b.to_bits()) << 16));
    from_bf16.time(|| black_box(&b[..]).convert_to_f32_slice(black_box(&mut out)));

    let from_f16 = peer("kernels/f16_to_f32");
    h.convert_to_f32_slice(&mut out);
    assert!(out.iter().zip(&h).all(|(x, h)| f16::from_f32(*x) == *h));
    from_f16.time(|| black_box(&h[..]).convert_to_f32_slice(black_box(&mut out)));
}
