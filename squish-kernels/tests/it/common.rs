//! Inputs and measures that the modules share.

use proptest::prelude::*;

/// All lengths up to two blocks of the narrowest level, and those around the blocks of the wider ones.
pub(crate) fn edge_lengths() -> impl Iterator<Item = usize> {
    let around = [96, 128, 192, 256, 384, 512, 640, 1024, 2048, 4096];
    (0..=70).chain(around.into_iter().flat_map(|n| n - 2..=n + 2))
}

/// Lengths at block edges or anywhere below 3000.
pub(crate) fn length() -> impl Strategy<Value = usize> {
    let edges: Vec<usize> = edge_lengths().collect();
    prop_oneof![prop::sample::select(edges), 0..3000_usize]
}

/// `len` numbers of both signs spread over some binades, the same for the same `seed`.
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 24) as f32
    };
    (0..len).map(|_| (next() * 2.0 - 1.0) * 4.0_f32.powf(next() * 4.0 - 2.0)).collect()
}

/// The distance of `got` from `want` in places of an `f32` at `want`; 0 if both are NaN or the same infinity.
pub(crate) fn ulps(got: f32, want: f64) -> f64 {
    let rounded = want as f32;
    if got.is_nan() && want.is_nan() || rounded.is_infinite() && got == rounded {
        return 0.0;
    }
    let exponent = want.abs().log2().floor().clamp(-126.0, 127.0);
    (f64::from(got) - want).abs() / (exponent - 23.0).exp2()
}
