//! Blocks of shared microexponents: 16 integers of `BITS` bits under one exponent, with a bit for each pair that halves its
//! step.
//!
//! ```text
//! block = [E][t][codes]                             2 + 2 · BITS bytes; the codes as in [`crate::bits`], two's complement
//! E     = exponent field of the largest magnitude
//! t     = bit j: both exponents of pair j are below E; subnormals count as zeros
//! code  = x · 2^(127 - E) · 2^(BITS - 2 + t)        to nearest, ties to even, clamped to ±(2^(BITS - 1) - 1)
//! value = code · 2^(1 - t) · 2^(E - 127 - BITS + 1)
//! ```
//!
//! The value is the product of an exact integer, of at most nine bits, with a power of two, so that it is rounded once where it
//! is subnormal, and all levels give the same bits.
//!
//! Source: arXiv 2302.08007, section 3; the bytes are those of squish-quant's `smx`.

use fearless_simd::{Simd, prelude::*, u8x16};

use crate::{
    Isa, bits,
    bytes::narrow_lanes,
    isa::dispatch,
    stream::{self, Stores, TILE, Tile},
};

/// Elements of a block.
pub const SMX_BLOCK: usize = 16;

/// Bytes of a block before its codes.
const HEADER: usize = 2;

/// Bytes of a block with codes of `n_bits`.
#[must_use]
pub const fn smx_block_bytes(n_bits: usize) -> usize {
    HEADER + SMX_BLOCK / 8 * n_bits
}

/// Blocks of codes of `BITS` bits, 2 to 8, from `x`, given the largest magnitude of each block.
///
/// Blocks with an element that is not finite have codes without meaning.
///
/// # Panics
///
/// If `x` is not `largest.len()` blocks, or `out` not as many.
pub fn encode_smx_into<const BITS: usize>(x: &[f32], largest: &[f32], out: &mut [u8]) {
    let stores = Stores::for_bytes(size_of_val(x) + out.len());
    encode_smx_to::<BITS>(Isa::detect(), stores, x, largest, out);
}

/// The values of `blocks` of codes of `BITS` bits, 2 to 8.
///
/// # Panics
///
/// If `out` is not as many blocks as `blocks`, or either is no whole number of them.
pub fn decode_smx_into<const BITS: usize>(blocks: &[u8], out: &mut [f32]) {
    let stores = Stores::for_bytes(blocks.len() + size_of_val(out));
    decode_smx_to::<BITS>(Isa::detect(), stores, blocks, out);
}

/// `stores` says whether what is encoded next is asked for: blocks are so small that they are always stored in the caches.
#[doc(hidden)]
pub fn encode_smx_to<const BITS: usize>(
    isa: Isa,
    stores: Stores,
    x: &[f32],
    largest: &[f32],
    out: &mut [u8],
) {
    assert_blocks::<BITS>(x.len(), out.len());
    assert_eq!(largest.len(), x.len() / SMX_BLOCK, "smx: largest magnitudes of the blocks");
    let ahead = stream::ahead(stores, x.len());
    dispatch!(isa.token(), simd => encode::<_, BITS>(simd, ahead, x, largest, out));
}

#[doc(hidden)]
pub fn decode_smx_to<const BITS: usize>(isa: Isa, stores: Stores, blocks: &[u8], out: &mut [f32]) {
    assert_blocks::<BITS>(out.len(), blocks.len());
    dispatch!(isa.token(), simd => decode::<_, BITS>(simd, stores, blocks, out));
}

fn assert_blocks<const BITS: usize>(n_elements: usize, n_bytes: usize) {
    const { assert!(BITS >= 2 && BITS <= 8, "smx: BITS is 2 to 8") }
    assert!(n_elements.is_multiple_of(SMX_BLOCK), "smx: {n_elements} elements are no blocks");
    let n_blocks = n_elements / SMX_BLOCK;
    assert_eq!(n_bytes, n_blocks * smx_block_bytes(BITS), "smx: bytes of {n_blocks} blocks");
}

/// `1.5 · 2^23`, to which the sum with a small number is rounded to an integer, in two's complement in its low bits.
const ROUNDER: f32 = 12_582_912.0;

/// Elements of the widest step, whose codes are a vector of bytes.
const MAX_STEP: usize = 64;

/// Blocks of the widest step.
const MAX_BLOCKS: usize = MAX_STEP / SMX_BLOCK;

#[inline(always)]
fn encode<S: Simd, const BITS: usize>(
    simd: S,
    ahead: usize,
    x: &[f32],
    largest: &[f32],
    mut out: &mut [u8],
) {
    let n_blocks = S::u8s::LEN / SMX_BLOCK;
    for (x, largest) in x.chunks(S::u8s::LEN).zip(largest.chunks(n_blocks)) {
        stream::prefetch(x, ahead);
        let mut padded = [0.0; MAX_STEP];
        let whole = if x.len() < S::u8s::LEN {
            padded[..x.len()].copy_from_slice(x);
            &padded[..S::u8s::LEN]
        } else {
            x
        };
        let mut of_step = [0.0; MAX_BLOCKS];
        of_step[..largest.len()].copy_from_slice(largest);
        let (halved, codes) = encode_step::<S, BITS>(simd, whole, of_step);
        for i in 0..largest.len() {
            out[0] = (largest[i].to_bits() >> 23) as u8;
            out[1] = halved[i];
            bits::store(codes[2 * i], BITS, &mut out[HEADER..]);
            bits::store(codes[2 * i + 1], BITS, &mut out[HEADER + BITS..]);
            out = &mut out[smx_block_bytes(BITS)..];
        }
    }
}

/// The bits of the pairs of each block, and its codes.
#[inline(always)]
fn encode_step<S: Simd, const BITS: usize>(
    simd: S,
    x: &[f32],
    largest: [f32; MAX_BLOCKS],
) -> ([u8; MAX_BLOCKS], [u64; 2 * MAX_BLOCKS]) {
    let lanes = S::f32s::LEN;
    let fields = largest.map(|x| x.to_bits() & 0x7f80_0000);
    let mut vectors = [S::f32s::splat(simd, 0.0); 4];
    let mut below = [0_u32; MAX_BLOCKS];
    for i in 0..4 {
        let (block, within) = (i * lanes / SMX_BLOCK, i * lanes % SMX_BLOCK);
        let x = S::f32s::from_slice(simd, &x[i * lanes..(i + 1) * lanes]);
        let field = x.bitcast::<S::u32s>() & S::u32s::splat(simd, 0x7f80_0000);
        below[block] |=
            (field.simd_lt(S::u32s::splat(simd, fields[block])).to_bitmask() as u32) << within;
        vectors[i] = field.simd_eq(S::u32s::splat(simd, 0)).select(S::f32s::splat(simd, 0.0), x);
    }
    let of_pairs = below.map(|below| below & below >> 1 & 0x5555);
    let steps = [BITS - 2, BITS - 1].map(|n| S::f32s::splat(simd, (1_u32 << n) as f32));
    let limit = S::f32s::splat(simd, ((1 << (BITS - 1)) - 1) as f32);
    let mut codes = [S::u32s::splat(simd, 0); 4];
    for i in 0..4 {
        let (block, within) = (i * lanes / SMX_BLOCK, i * lanes % SMX_BLOCK);
        // Products with powers of two are exact where they do not round to zero: the first lies below 2.
        let inverse = power_of_two(254 - (fields[block] >> 23) as i32);
        let own = (of_pairs[block] | of_pairs[block] << 1) >> within;
        let halved = S::mask32s::from_bitmask(simd, u64::from(own) & ((1 << lanes) - 1));
        let x = vectors[i] * S::f32s::splat(simd, inverse) * halved.select(steps[1], steps[0]);
        let rounded = x.min(limit).max(-limit) + S::f32s::splat(simd, ROUNDER);
        codes[i] = rounded.bitcast::<S::u32s>() & S::u32s::splat(simd, 0xff);
    }
    let mut bytes = [0_u64; 2 * MAX_BLOCKS];
    narrow_lanes::<S>(codes).store_slice(&mut bytemuck::cast_slice_mut(&mut bytes)[..S::u8s::LEN]);
    (of_pairs.map(every_other), bytes.map(bits::pack::<BITS>))
}

/// The even ones of 16 bits.
#[inline(always)]
fn every_other(bits: u32) -> u8 {
    let bits = (bits | bits >> 1) & 0x3333;
    let bits = (bits | bits >> 2) & 0x0f0f;
    (bits | bits >> 4) as u8
}

#[inline(always)]
fn decode<S: Simd, const BITS: usize>(simd: S, stores: Stores, blocks: &[u8], out: &mut [f32]) {
    let Some(stream) = stores.stream() else {
        return decode_tile::<S, BITS>(simd, blocks, out);
    };
    let mut tile = Tile::new();
    let at_once = TILE / SMX_BLOCK * smx_block_bytes(BITS);
    for (blocks, out) in blocks.chunks(at_once).zip(out.chunks_mut(TILE)) {
        let tile = tile.first(out.len());
        decode_tile::<S, BITS>(simd, blocks, tile);
        stream.copy(simd, tile, out);
    }
}

#[inline(always)]
fn decode_tile<S: Simd, const BITS: usize>(simd: S, blocks: &[u8], out: &mut [f32]) {
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let blocks = &blocks[i * smx_block_bytes(BITS)..];
        if let Some(block) = blocks.get(..const { read::<BITS>() }) {
            decode_block::<S, BITS>(simd, block, out);
        } else {
            let mut padded = [0; MAX_READ];
            padded[..blocks.len()].copy_from_slice(blocks);
            decode_block::<S, BITS>(simd, &padded, out);
        }
    }
}

/// Bytes of a block of vectors.
const WINDOW: usize = 16;

/// Where in a block the window with its codes begins: with the header, where there is room for both.
const fn window_start<const BITS: usize>() -> usize {
    if smx_block_bytes(BITS) <= WINDOW { 0 } else { HEADER }
}

/// Bytes that are read of a block, and maybe of what follows it.
const fn read<const BITS: usize>() -> usize {
    window_start::<BITS>() + WINDOW
}

/// The same, of the longest blocks.
const MAX_READ: usize = read::<8>();

/// Where the codes of a block are: for each element four bytes, of which the first two have its code, and by how much they are to be shifted so
/// that its sign is the highest bit.
const fn places<const BITS: usize>() -> ([u8; 4 * SMX_BLOCK], [i32; SMX_BLOCK]) {
    let (mut bytes, mut shifts) = ([0; 4 * SMX_BLOCK], [0; SMX_BLOCK]);
    let mut i = 0;
    while i < SMX_BLOCK {
        let bit = 8 * (HEADER - window_start::<BITS>()) + i * BITS;
        bytes[4 * i] = (bit / 8) as u8;
        bytes[4 * i + 1] = if bit / 8 + 1 < WINDOW { bit / 8 + 1 } else { 0 } as u8;
        shifts[i] = (32 - BITS - bit % 8) as i32;
        i += 1;
    }
    (bytes, shifts)
}

/// The bit of each element's pair, in the header as an integer.
const PAIR_BITS: [u32; SMX_BLOCK] = {
    let mut bits = [0; SMX_BLOCK];
    let mut i = 0;
    while i < SMX_BLOCK {
        bits[i] = 1 << (8 + i / 2);
        i += 1;
    }
    bits
};

/// What a code stands for in a pair with its bit set, for each exponent field.
const fn units<const BITS: usize>() -> [f32; 256] {
    let mut units = [0.0; 256];
    let mut field = 0;
    while field < 256 {
        units[field] = power_of_two(field as i32 - (BITS as i32 - 1));
        field += 1;
    }
    units
}

#[inline(always)]
fn decode_block<S: Simd, const BITS: usize>(simd: S, block: &[u8], out: &mut [f32; SMX_BLOCK]) {
    let lanes = S::f32s::LEN;
    let (bytes, shifts) = const { &places::<BITS>() };
    let window = u8x16::from_slice(simd, &block[window_start::<BITS>()..read::<BITS>()]);
    let window = S::u8s::block_splat(window);
    let unit = S::f32s::splat(simd, const { &units::<BITS>() }[usize::from(block[0])]);
    let header = S::u32s::splat(simd, u16::from_le_bytes([block[0], block[1]]).into());
    for first in (0..SMX_BLOCK).step_by(lanes) {
        let bytes = S::u8s::from_slice(simd, &bytes[4 * first..4 * (first + lanes)]);
        let code = window.swizzle_dyn_within_blocks(bytes).bitcast::<S::i32s>();
        let shifts = &shifts[first..first + lanes];
        let code = match S::f32s::LEN {
            // SSE has no shift by a count for each lane.
            4 => {
                code * S::i32s::from_fn(
                    simd,
                    #[inline(always)]
                    |i| 1 << shifts[i],
                )
            }
            _ => code << S::i32s::from_slice(simd, shifts),
        };
        // With copies of the sign before it.
        let code = code >> (32 - BITS as u32);
        let own_bit = S::u32s::from_slice(simd, &PAIR_BITS[first..first + lanes]);
        let halved = (own_bit & header).simd_eq(own_bit);
        let code = halved.select(code, code + code);
        (code.to_float::<S::f32s>() * unit).store_slice(&mut out[first..first + lanes]);
    }
}

/// `2^(field - 127)`, for fields of -22 to 254.
#[inline(always)]
const fn power_of_two(field: i32) -> f32 {
    f32::from_bits(if field > 0 { (field as u32) << 23 } else { 1 << (22 + field) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of an element of a block, as the module says.
    fn code(n_bits: usize, block: &[u8], i: usize) -> i32 {
        let bit = |k: usize| i32::from(block[HEADER + k / 8] >> (k % 8) & 1);
        let code = (0..n_bits).fold(0, |code, j| code | bit(i * n_bits + j) << j);
        code - (code >> (n_bits - 1) << n_bits)
    }

    fn halved(block: &[u8], i: usize) -> i32 {
        i32::from(block[1] >> (i / 2) & 1)
    }

    /// Bits of any pattern.
    fn noise(n: usize) -> impl Iterator<Item = u32> {
        (1..=n as u32).map(|i| (u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 21) as u32)
    }

    fn agrees<const BITS: usize>() {
        for (n_blocks, isa) in [0, 1, 2, 3, 4, 5, 15, 16, 17, 40]
            .into_iter()
            .flat_map(|n| Isa::available().map(move |isa| (n, isa)))
        {
            let block_bytes = smx_block_bytes(BITS);
            let blocks: Vec<u8> = noise(n_blocks * block_bytes).map(|x| x as u8).collect();
            for stores in [Stores::Cached, Stores::Streamed] {
                let mut out = vec![f32::NAN; n_blocks * SMX_BLOCK];
                decode_smx_to::<BITS>(isa, stores, &blocks, &mut out);
                for (j, out) in out.iter().enumerate() {
                    let (block, i) = (&blocks[j / SMX_BLOCK * block_bytes..], j % SMX_BLOCK);
                    let exponent = i32::from(block[0]) - 127 - halved(block, i) - (BITS as i32 - 2);
                    let want = f64::from(code(BITS, block, i)) * f64::from(exponent).exp2();
                    assert_eq!(*out, want as f32, "{isa:?} {BITS} bits: element {j}");
                }
            }
            // Magnitudes within and below the reach of a block, zeros and subnormals among them.
            let x: Vec<f32> = noise(n_blocks * SMX_BLOCK)
                .enumerate()
                .map(|(j, x)| {
                    let field = (j / SMX_BLOCK * 13 % 250) as u32 + (x >> 24) % 5;
                    f32::from_bits(x & 0x807f_ffff | field << 23)
                })
                .collect();
            let of_block = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let largest: Vec<f32> = x.chunks(SMX_BLOCK).map(of_block).collect();
            let mut blocks = vec![0xaa; n_blocks * block_bytes];
            encode_smx_to::<BITS>(isa, Stores::Cached, &x, &largest, &mut blocks);
            for (x, block) in x.chunks(SMX_BLOCK).zip(blocks.chunks(block_bytes)) {
                let field = |x: f32| (x.to_bits() >> 23 & 0xff) as i32;
                let shared = x.iter().map(|x| field(*x)).max().expect("elements");
                assert_eq!(i32::from(block[0]), shared);
                for (i, x) in x.iter().enumerate() {
                    let t = halved(block, i);
                    let step = f64::from(shared - 127 - t - (BITS as i32 - 2)).exp2();
                    let x = if field(*x) == 0 { 0.0 } else { f64::from(*x) };
                    let limit = f64::from((1 << (BITS - 1)) - 1);
                    let want = (x / step).round_ties_even().clamp(-limit, limit);
                    assert_eq!(f64::from(code(BITS, block, i)), want, "{isa:?} {BITS} bits: {x}");
                }
                for (j, pair) in x.chunks(2).enumerate() {
                    let both_below = pair.iter().all(|x| field(*x) < shared);
                    assert_eq!(halved(block, 2 * j) == 1, both_below, "{isa:?}: pair {j}");
                }
            }
        }
    }

    #[test]
    fn every_isa_encodes_and_decodes_as_the_definition_says() {
        agrees::<3>();
        agrees::<5>();
        agrees::<8>();
    }
}
