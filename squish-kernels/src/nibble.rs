//! Slice casts between `f32` and [`E2M1`] with two codes in a byte, one factor per block.
//!
//! Byte `j` holds element `2j` in its low and element `2j + 1` in its high half: the order of PyTorch's
//! `float4_e2m1fn_x2` and of the `*_blocks` tensors of gpt-oss.
//!
//! Blocks have 32 elements, as in MXFP4, or 16, as in NVFP4 (another `BLOCK` does not compile), so that no vector of any
//! level straddles two of them. Encoding is that of
//! [`crate::cast`] with saturation; decoding puts codes where an `f32` has its fields and multiplies.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    cast::{self, move_lanes, power_of_two, widen_lanes},
    element::{E2M1, sealed::Format},
    stream::{self, Stores, TILE},
};

/// `E2M1(x · factors[i / BLOCK])`, rounded to nearest, ties to even, and saturated, two codes per byte.
///
/// `x.len()` is a multiple of `BLOCK`, and `out` half as long.
///
/// # Panics
///
/// If `x` is no multiple of `BLOCK`, `out` not half as long as `x`,
/// or if there are fewer factors than blocks.
pub fn encode_e2m1_blocks_into<const BLOCK: usize>(x: &[f32], factors: &[f32], out: &mut [u8]) {
    encode_e2m1_blocks_with::<BLOCK>(Isa::detect(), x, factors, out);
}

/// The value of each code times its block's factor, rounded once.
///
/// `out.len()` is a multiple of `BLOCK`, and `packed` half as long.
///
/// # Panics
///
/// As [`encode_e2m1_blocks_into`], with `out` in the place of `x`.
pub fn decode_e2m1_blocks_into<const BLOCK: usize>(
    packed: &[u8],
    factors: &[f32],
    out: &mut [f32],
) {
    decode_e2m1_blocks_with::<BLOCK>(Isa::detect(), packed, factors, out);
}

#[doc(hidden)]
pub fn encode_e2m1_blocks_with<const BLOCK: usize>(
    isa: Isa,
    x: &[f32],
    factors: &[f32],
    out: &mut [u8],
) {
    let stores = Stores::for_bytes(size_of_val(x) + out.len());
    encode_e2m1_blocks_to::<BLOCK>(isa, stores, x, factors, out);
}

#[doc(hidden)]
pub fn encode_e2m1_blocks_to<const BLOCK: usize>(
    isa: Isa,
    stores: Stores,
    x: &[f32],
    factors: &[f32],
    out: &mut [u8],
) {
    assert_blocks::<BLOCK>(x.len(), out.len(), factors.len());
    match BLOCK {
        16 => encode_16(isa, stores, x, factors, out),
        _ => encode_32(isa, stores, x, factors, out),
    }
}

#[doc(hidden)]
pub fn decode_e2m1_blocks_with<const BLOCK: usize>(
    isa: Isa,
    packed: &[u8],
    factors: &[f32],
    out: &mut [f32],
) {
    let stores = Stores::for_bytes(packed.len() + size_of_val(out));
    decode_e2m1_blocks_to::<BLOCK>(isa, stores, packed, factors, out);
}

#[doc(hidden)]
pub fn decode_e2m1_blocks_to<const BLOCK: usize>(
    isa: Isa,
    stores: Stores,
    packed: &[u8],
    factors: &[f32],
    out: &mut [f32],
) {
    assert_blocks::<BLOCK>(out.len(), packed.len(), factors.len());
    match BLOCK {
        16 => decode_16(isa, stores, packed, factors, out),
        _ => decode_32(isa, stores, packed, factors, out),
    }
}

// The kernels are compiled here, once, and not in every crate that names a `BLOCK`.

fn encode_16(isa: Isa, stores: Stores, x: &[f32], factors: &[f32], out: &mut [u8]) {
    dispatch!(isa.token(), simd => encode::<_, 16>(simd, stores, x, factors, out));
}

fn encode_32(isa: Isa, stores: Stores, x: &[f32], factors: &[f32], out: &mut [u8]) {
    dispatch!(isa.token(), simd => encode::<_, 32>(simd, stores, x, factors, out));
}

fn decode_16(isa: Isa, stores: Stores, packed: &[u8], factors: &[f32], out: &mut [f32]) {
    dispatch!(isa.token(), simd => decode::<_, 16>(simd, stores, packed, factors, out));
}

fn decode_32(isa: Isa, stores: Stores, packed: &[u8], factors: &[f32], out: &mut [f32]) {
    dispatch!(isa.token(), simd => decode::<_, 32>(simd, stores, packed, factors, out));
}

fn assert_blocks<const BLOCK: usize>(len: usize, n_bytes: usize, n_factors: usize) {
    const { assert!(BLOCK == 16 || BLOCK == 32, "nibble: BLOCK is 16 or 32") }
    assert!(
        len.is_multiple_of(BLOCK),
        "nibble: {len} elements are no multiple of the block of {BLOCK}"
    );
    assert_eq!(n_bytes, len / 2, "nibble: bytes for {len} elements");
    assert!(len / BLOCK <= n_factors, "nibble: {n_factors} factors for {} blocks", len / BLOCK);
}

/// Elements of the widest step: the codes of two vectors of bytes go into one.
const MAX_STEP: usize = 128;

#[inline(always)]
fn encode<S: Simd, const BLOCK: usize>(
    simd: S,
    stores: Stores,
    x: &[f32],
    factors: &[f32],
    out: &mut [u8],
) {
    let ahead = stream::ahead(stores, x.len());
    let stream = stores.stream();
    let step = 2 * S::u8s::LEN;
    let (mut padded, mut packed) = ([0.0; MAX_STEP], [0; MAX_STEP / 2]);
    let packed = &mut packed[..step / 2];
    for (i, (x, out)) in x.chunks(step).zip(out.chunks_mut(step / 2)).enumerate() {
        let factors = Factors::<BLOCK> { factors, start: i * step };
        stream::prefetch(x, ahead);
        let x = if x.len() == step {
            x
        } else {
            padded[..x.len()].copy_from_slice(x);
            &padded[..step]
        };
        if stream.is_none() && out.len() == packed.len() {
            encode_step::<S, BLOCK>(simd, x, factors, out);
            continue;
        }
        encode_step::<S, BLOCK>(simd, x, factors, packed);
        match &stream {
            None => out.copy_from_slice(&packed[..out.len()]),
            Some(stream) => stream.copy(&packed[..out.len()], out),
        }
    }
}

#[inline(always)]
fn encode_step<S: Simd, const BLOCK: usize>(
    simd: S,
    x: &[f32],
    factors: Factors<'_, BLOCK>,
    out: &mut [u8],
) {
    let (low, high) = x.split_at(S::u8s::LEN);
    let low = encode_bytes::<S, BLOCK>(simd, low, factors, 0);
    let high = encode_bytes::<S, BLOCK>(simd, high, factors, S::u8s::LEN);
    pair::<S>(low).relaxed_narrow(pair::<S>(high)).store_slice(out);
}

/// Codes of as many elements as a vector has bytes, one per byte.
#[inline(always)]
fn encode_bytes<S: Simd, const BLOCK: usize>(
    simd: S,
    x: &[f32],
    factors: Factors<'_, BLOCK>,
    at: usize,
) -> S::u8s {
    let len = S::f32s::LEN;
    let [a, b, c, d] = cast::quarters::<S>(simd, x);
    cast::encode_step::<S, E2M1, true>([
        a * factors.at::<S>(simd, at),
        b * factors.at::<S>(simd, at + len),
        c * factors.at::<S>(simd, at + 2 * len),
        d * factors.at::<S>(simd, at + 3 * len),
    ])
}

/// The two codes in the bytes of a 16-bit lane, the later shifted by four bits, in the low byte of the lane.
#[inline(always)]
fn pair<S: Simd>(codes: S::u8s) -> S::u16s {
    let codes: S::u16s = codes.bitcast();
    (codes | (codes >> 4)) & S::u16s::splat(codes.token(), 0xff)
}

#[inline(always)]
fn decode<S: Simd, const BLOCK: usize>(
    simd: S,
    stores: Stores,
    packed: &[u8],
    factors: &[f32],
    out: &mut [f32],
) {
    let stream = stores.stream();
    let mut tile = [0.0; TILE];
    for (i, (packed, out)) in packed.chunks(TILE / 2).zip(out.chunks_mut(TILE)).enumerate() {
        let factors = Factors::<BLOCK> { factors, start: i * TILE };
        let values = if stream.is_some() { &mut tile[..out.len()] } else { &mut *out };
        decode_tile::<S, BLOCK>(simd, packed, factors, values);
        if let Some(stream) = &stream {
            stream.copy(&tile[..out.len()], out);
        }
    }
}

#[inline(always)]
fn decode_tile<S: Simd, const BLOCK: usize>(
    simd: S,
    packed: &[u8],
    factors: Factors<'_, BLOCK>,
    out: &mut [f32],
) {
    let step = S::u8s::LEN;
    for (i, (packed, out)) in packed.chunks(step).zip(out.chunks_mut(2 * step)).enumerate() {
        let factors = Factors { start: factors.start + 2 * i * step, ..factors };
        if packed.len() < step {
            let (mut padded, mut values) = ([0; MAX_STEP / 2], [0.0; MAX_STEP]);
            padded[..packed.len()].copy_from_slice(packed);
            decode_step::<S, BLOCK>(simd, &padded[..step], factors, &mut values[..2 * step]);
            out.copy_from_slice(&values[..out.len()]);
        } else {
            decode_step::<S, BLOCK>(simd, packed, factors, out);
        }
    }
}

#[inline(always)]
fn decode_step<S: Simd, const BLOCK: usize>(
    simd: S,
    packed: &[u8],
    factors: Factors<'_, BLOCK>,
    out: &mut [f32],
) {
    let len = S::f32s::LEN;
    let [a, b, c, d] = widen_lanes::<S>(S::u8s::from_slice(simd, packed));
    let (ab, cd) = out.split_at_mut(4 * len);
    let ((out_a, out_b), (out_c, out_d)) = (ab.split_at_mut(2 * len), cd.split_at_mut(2 * len));
    decode_pairs::<S, BLOCK>(simd, a, factors, 0, out_a);
    decode_pairs::<S, BLOCK>(simd, b, factors, 2 * len, out_b);
    decode_pairs::<S, BLOCK>(simd, c, factors, 4 * len, out_c);
    decode_pairs::<S, BLOCK>(simd, d, factors, 6 * len, out_d);
}

/// Values of the two codes in each lane, in order. Shifting the high code up leaves the low one's sign at the top.
#[inline(always)]
fn decode_pairs<S: Simd, const BLOCK: usize>(
    simd: S,
    codes: S::u32s,
    factors: Factors<'_, BLOCK>,
    at: usize,
    out: &mut [f32],
) {
    let power = S::f32s::splat(simd, power_of_two(127 - E2M1::BIAS));
    let low = move_lanes::<S, E2M1>(codes).bitcast::<S::f32s>() * power;
    let high = move_lanes::<S, E2M1>(codes >> 4).bitcast::<S::f32s>() * power;
    let (first, second) = low.interleave(high);
    (first * factors.at::<S>(simd, at)).store_slice(&mut out[..S::f32s::LEN]);
    (second * factors.at::<S>(simd, at + S::f32s::LEN)).store_slice(&mut out[S::f32s::LEN..]);
}

/// The factors of a slice that starts at element `start`.
#[derive(Clone, Copy)]
struct Factors<'a, const BLOCK: usize> {
    factors: &'a [f32],
    start: usize,
}

impl<const BLOCK: usize> Factors<'_, BLOCK> {
    /// The factor of the vector at element `at` of the slice; the padding after the last block has any.
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, at: usize) -> S::f32s {
        let i = (self.start + at) / BLOCK;
        S::f32s::splat(simd, self.factors.get(i).copied().unwrap_or(0.0))
    }
}
