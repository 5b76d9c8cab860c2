//! Slice casts between `f32` and [`E2M1`] with two codes in a byte, one factor per block.
//!
//! Byte `j` holds element `2j` in its low and element `2j + 1` in its high half: the order of PyTorch's
//! `float4_e2m1fn_x2` and of the `*_blocks` tensors of gpt-oss.
//!
//! Blocks have 32 elements, as in MXFP4, or 16, as in NVFP4 (another `BLOCK` does not compile), so that no vector of any
//! level straddles two of them. Encoding is that of
//! [`crate::cast`] with saturation; decoding looks the upper two bytes of each code's `f32` up in two tables.

use crate::isa::dispatch;
use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    bytes::{spread_words, zip_bytes, zip_words},
    cast,
    element::E2M1,
    stream::{self, Stores, TILE, Tile},
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
    let stores = Stores::for_bytes(size_of_val(x) + out.len());
    encode_e2m1_blocks_to::<BLOCK>(Isa::detect(), stores, x, factors, out);
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
    let stores = Stores::for_bytes(packed.len() + size_of_val(out));
    decode_e2m1_blocks_to::<BLOCK>(Isa::detect(), stores, packed, factors, out);
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

/// Blocks of the widest step.
const MAX_BLOCKS: usize = MAX_STEP / 16;

#[inline(always)]
fn encode<S: Simd, const BLOCK: usize>(
    simd: S,
    stores: Stores,
    x: &[f32],
    factors: &[f32],
    out: &mut [u8],
) {
    let ahead = stream::ahead(stores, x.len());
    let Some(stream) = stores.stream() else {
        return encode_tile::<S, BLOCK>(simd, ahead, x, factors, out);
    };
    let mut tile = Tile::new();
    let tiles = x.chunks(2 * TILE).zip(out.chunks_mut(TILE)).zip(factors.chunks(2 * TILE / BLOCK));
    for ((x, out), factors) in tiles {
        let tile = tile.first(out.len());
        encode_tile::<S, BLOCK>(simd, ahead, x, factors, tile);
        stream.copy(simd, tile, out);
    }
}

/// Whole steps, then one padded with zeros that holds the rest.
#[inline(always)]
fn encode_tile<S: Simd, const BLOCK: usize>(
    simd: S,
    ahead: usize,
    x: &[f32],
    factors: &[f32],
    out: &mut [u8],
) {
    let step = 2 * S::u8s::LEN;
    let whole = x.len() - x.len() % step;
    let (x, x_rest) = x.split_at(whole);
    let (out, out_rest) = out.split_at_mut(whole / 2);
    let (factors, factors_rest) = factors.split_at(whole / BLOCK);
    let steps = x
        .chunks_exact(step)
        .zip(out.chunks_exact_mut(step / 2))
        .zip(factors.chunks_exact(step / BLOCK));
    for ((x, out), factors) in steps {
        stream::prefetch(x, ahead);
        encode_step::<S, BLOCK>(simd, x, factors, out);
    }
    if !x_rest.is_empty() {
        let (mut padded, mut padded_factors) = ([0.0; MAX_STEP], [0.0; MAX_BLOCKS]);
        let mut packed = [0; MAX_STEP / 2];
        padded[..x_rest.len()].copy_from_slice(x_rest);
        let n_blocks = x_rest.len() / BLOCK;
        padded_factors[..n_blocks].copy_from_slice(&factors_rest[..n_blocks]);
        encode_step::<S, BLOCK>(
            simd,
            &padded[..step],
            &padded_factors[..step / BLOCK],
            &mut packed[..step / 2],
        );
        out_rest.copy_from_slice(&packed[..out_rest.len()]);
    }
}

#[inline(always)]
fn encode_step<S: Simd, const BLOCK: usize>(simd: S, x: &[f32], factors: &[f32], out: &mut [u8]) {
    let (low, high) = x.split_at(S::u8s::LEN);
    let low = encode_bytes::<S, BLOCK>(simd, low, factors, 0);
    let high = encode_bytes::<S, BLOCK>(simd, high, factors, S::u8s::LEN);
    pair::<S>(low).relaxed_narrow(pair::<S>(high)).store_slice(out);
}

/// Codes of as many elements as a vector has bytes, one per byte. They start at element `at` of the step.
#[inline(always)]
fn encode_bytes<S: Simd, const BLOCK: usize>(
    simd: S,
    x: &[f32],
    factors: &[f32],
    at: usize,
) -> S::u8s {
    let len = S::f32s::LEN;
    let [a, b, c, d] = cast::quarters::<S>(simd, x);
    cast::encode_step::<S, E2M1, true>([
        a * factor::<S, BLOCK>(simd, factors, at),
        b * factor::<S, BLOCK>(simd, factors, at + len),
        c * factor::<S, BLOCK>(simd, factors, at + 2 * len),
        d * factor::<S, BLOCK>(simd, factors, at + 3 * len),
    ])
}

/// The factor of the vector at element `at` of a step.
#[inline(always)]
fn factor<S: Simd, const BLOCK: usize>(simd: S, factors: &[f32], at: usize) -> S::f32s {
    S::f32s::splat(simd, factors[at / BLOCK])
}

/// The two codes in the bytes of a 16-bit lane, the later shifted by four bits, in the low byte of the lane.
#[inline(always)]
pub(crate) fn pair<S: Simd>(codes: S::u8s) -> S::u16s {
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
    let Some(stream) = stores.stream() else {
        return decode_tile::<S, BLOCK>(simd, packed, factors, out);
    };
    let mut tile = Tile::new();
    let tiles = packed.chunks(TILE / 2).zip(out.chunks_mut(TILE)).zip(factors.chunks(TILE / BLOCK));
    for ((packed, out), factors) in tiles {
        let tile = tile.first(out.len());
        decode_tile::<S, BLOCK>(simd, packed, factors, tile);
        stream.copy(simd, tile, out);
    }
}

/// Whole steps, then one padded with zeros that holds the rest.
#[inline(always)]
fn decode_tile<S: Simd, const BLOCK: usize>(
    simd: S,
    packed: &[u8],
    factors: &[f32],
    out: &mut [f32],
) {
    let step = 2 * S::u8s::LEN;
    let whole = out.len() - out.len() % step;
    let (packed, packed_rest) = packed.split_at(whole / 2);
    let (out, out_rest) = out.split_at_mut(whole);
    let (factors, factors_rest) = factors.split_at(whole / BLOCK);
    let tables = Tables::<S>::new(simd);
    let steps = packed
        .chunks_exact(step / 2)
        .zip(out.chunks_exact_mut(step))
        .zip(factors.chunks_exact(step / BLOCK));
    for ((packed, out), factors) in steps {
        tables.decode_step::<BLOCK>(packed, factors, out);
    }
    if !out_rest.is_empty() {
        let (mut padded, mut padded_factors) = ([0; MAX_STEP / 2], [0.0; MAX_BLOCKS]);
        let mut values = [0.0; MAX_STEP];
        padded[..packed_rest.len()].copy_from_slice(packed_rest);
        let n_blocks = out_rest.len() / BLOCK;
        padded_factors[..n_blocks].copy_from_slice(&factors_rest[..n_blocks]);
        tables.decode_step::<BLOCK>(
            &padded[..step / 2],
            &padded_factors[..step / BLOCK],
            &mut values[..step],
        );
        out_rest.copy_from_slice(&values[..out_rest.len()]);
    }
}

/// Magnitudes by code.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Byte `BYTE` of the `f32` of every code, for each block of the widest vector.
const fn table<const BYTE: usize>() -> [u8; 64] {
    let (mut out, mut i) = ([0; 64], 0);
    while i < out.len() {
        let sign = if i % 16 < 8 { 0 } else { 0x8000_0000 };
        out[i] = (MAGNITUDES[i % 8].to_bits() | sign).to_le_bytes()[BYTE];
        i += 1;
    }
    out
}

/// The upper two bytes of the `f32` of every code. The lower two are zero.
#[derive(Clone, Copy)]
struct Tables<S: Simd> {
    low: S::u8s,
    high: S::u8s,
}

impl<S: Simd> Tables<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        const LOW: [u8; 64] = table::<2>();
        const HIGH: [u8; 64] = table::<3>();
        Self {
            low: S::u8s::from_slice(simd, &LOW[..S::u8s::LEN]),
            high: S::u8s::from_slice(simd, &HIGH[..S::u8s::LEN]),
        }
    }

    #[inline(always)]
    fn decode_step<const BLOCK: usize>(self, packed: &[u8], factors: &[f32], out: &mut [f32]) {
        let packed = spread_words::<S>(S::u8s::from_slice(self.low.token(), packed));
        let low_half = S::u8s::splat(self.low.token(), 0xf);
        let later = (packed.bitcast::<S::u16s>() >> 4).bitcast::<S::u8s>() & low_half;
        let (first, second) = zip_bytes::<S>(packed & low_half, later);
        let (out_first, out_second) = out.split_at_mut(S::u8s::LEN);
        self.decode_bytes::<BLOCK>(first, factors, 0, out_first);
        self.decode_bytes::<BLOCK>(second, factors, S::u8s::LEN, out_second);
    }

    /// Values of a vector of codes, which starts at element `at` of the step.
    #[inline(always)]
    fn decode_bytes<const BLOCK: usize>(
        self,
        codes: S::u8s,
        factors: &[f32],
        at: usize,
        out: &mut [f32],
    ) {
        let simd = codes.token();
        let len = S::f32s::LEN;
        let zero = S::u16s::splat(simd, 0);
        let low = self.low.swizzle_dyn_within_blocks(codes);
        let high = self.high.swizzle_dyn_within_blocks(codes);
        let (ab, cd) = zip_bytes::<S>(low, high);
        let (a, b) = zip_words::<S>(zero, ab.bitcast());
        let (c, d) = zip_words::<S>(zero, cd.bitcast());
        let factor = |i: usize| factor::<S, BLOCK>(simd, factors, at + i * len);
        (a.bitcast::<S::f32s>() * factor(0)).store_slice(&mut out[..len]);
        (b.bitcast::<S::f32s>() * factor(1)).store_slice(&mut out[len..2 * len]);
        (c.bitcast::<S::f32s>() * factor(2)).store_slice(&mut out[2 * len..3 * len]);
        (d.bitcast::<S::f32s>() * factor(3)).store_slice(&mut out[3 * len..]);
    }
}
