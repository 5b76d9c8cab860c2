//! Blocks to codes and back, with scales that are there.

use squish_kernels::{
    Isa,
    bits::{pack_with, unpack_with},
    cast::{decode_blocks_to, encode_blocks_to},
    element::{E2M3, E3M2, E4M3, E5M2, E8M0, Element, Overflow},
    integer::{Blocks, decode_i8_blocks_to, encode_i8_blocks_to},
    nibble::{decode_e2m1_blocks_to, encode_e2m1_blocks_to},
    stream::Stores,
};

use super::{MX_BLOCK, MxFormat};
use crate::band::RUN_BLOCKS;

/// Elements of six bits that are cast before they are packed: what they need stays in L1 beside a run.
const PIECE: usize = 64 * MX_BLOCK;

/// Codes of -128 have no positive counterpart, and are left unused, as in microxcaling and modelopt.
const INT8_LIMITS: [i8; 2] = [-127, 127];

/// Encodes and decodes up to [`RUN_BLOCKS`] blocks at a time.
pub(super) struct Coder {
    isa: Isa,
    stores: Stores,
    format: MxFormat,
    factors: [f32; RUN_BLOCKS],
    /// Codes of six bits, one per byte.
    bytes: [u8; PIECE],
}

impl Coder {
    pub(super) fn new(format: MxFormat, stores: Stores) -> Self {
        let isa = Isa::detect();
        Self { isa, stores, format, factors: [0.0; RUN_BLOCKS], bytes: [0; PIECE] }
    }

    /// Codes of the blocks of `x`, which have these scales, none of them NaN, into `codes`.
    pub(super) fn encode(&mut self, x: &[f32], scales: &[u8], codes: &mut [u8]) {
        let Self { isa, stores, format, factors, bytes } = self;
        let (isa, stores, factors) = (*isa, *stores, &mut factors[..scales.len()]);
        if *format == MxFormat::MxInt8 {
            int8_units_into(scales, factors);
        } else {
            for (factor, &scale) in factors.iter_mut().zip(scales) {
                *factor = reciprocal(scale);
            }
        }
        match format {
            MxFormat::MxFp4 => encode_e2m1_blocks_to::<MX_BLOCK>(isa, stores, x, factors, codes),
            MxFormat::MxFp8E4M3 => encode_bytes::<E4M3>(isa, stores, x, factors, codes),
            MxFormat::MxFp8E5M2 => encode_bytes::<E5M2>(isa, stores, x, factors, codes),
            MxFormat::MxFp6E3M2 => encode_sixes::<E3M2>(isa, x, factors, bytes, codes),
            MxFormat::MxFp6E2M3 => encode_sixes::<E2M3>(isa, x, factors, bytes, codes),
            MxFormat::MxInt8 => {
                // A division, which is exact for powers of two, subnormal ones included.
                let codes = bytemuck::cast_slice_mut(codes);
                encode_i8_blocks_to(isa, stores, x, blocks(factors), INT8_LIMITS, codes);
            }
        }
    }

    /// The values of whole blocks of codes with these scales, into `out`.
    pub(super) fn decode(&mut self, codes: &[u8], scales: &[u8], out: &mut [f32]) {
        let Self { isa, stores, format, factors, bytes } = self;
        let (isa, stores, factors) = (*isa, *stores, &mut factors[..scales.len()]);
        if *format == MxFormat::MxInt8 {
            int8_units_into(scales, factors);
        } else {
            for (factor, &scale) in factors.iter_mut().zip(scales) {
                *factor = E8M0::from_bits(scale).to_f32();
            }
        }
        match format {
            MxFormat::MxFp4 => decode_e2m1_blocks_to::<MX_BLOCK>(isa, stores, codes, factors, out),
            MxFormat::MxFp8E4M3 => decode_bytes::<E4M3>(isa, stores, codes, factors, out),
            MxFormat::MxFp8E5M2 => decode_bytes::<E5M2>(isa, stores, codes, factors, out),
            MxFormat::MxFp6E3M2 => decode_sixes::<E3M2>(isa, stores, codes, factors, bytes, out),
            MxFormat::MxFp6E2M3 => decode_sixes::<E2M3>(isa, stores, codes, factors, bytes, out),
            MxFormat::MxInt8 => {
                decode_i8_blocks_to(isa, stores, bytemuck::cast_slice(codes), blocks(factors), out);
            }
        }
    }
}

/// Blocks of integers with these units.
fn blocks(units: &[f32]) -> Blocks<'_> {
    Blocks { block: MX_BLOCK, scales: units, zero_points: None }
}

/// What a unit of each block's integers stands for, `2^(scale - 127) / 64`: exact, though subnormal for small scales.
fn int8_units_into(scales: &[u8], units: &mut [f32]) {
    for (unit, &scale) in units.iter_mut().zip(scales) {
        *unit = E8M0::from_bits(scale).to_f32() * (1.0 / 64.0);
    }
}

/// `2^(127 - scale)`, exactly; below the normal range for the largest scale.
fn reciprocal(scale: u8) -> f32 {
    E8M0::from_bits(254 - scale.min(254)).to_f32()
}

fn encode_bytes<E: Element>(
    isa: Isa,
    stores: Stores,
    x: &[f32],
    factors: &[f32],
    codes: &mut [u8],
) {
    let codes: &mut [E] = bytemuck::cast_slice_mut(codes);
    encode_blocks_to(isa, stores, x, MX_BLOCK, factors, codes, Overflow::Saturate);
}

fn decode_bytes<E: Element>(
    isa: Isa,
    stores: Stores,
    codes: &[u8],
    factors: &[f32],
    out: &mut [f32],
) {
    let codes: &[E] = bytemuck::cast_slice(codes);
    decode_blocks_to(isa, stores, codes, MX_BLOCK, factors, out);
}

/// By way of one code per byte, piece by piece.
fn encode_sixes<E: Element>(
    isa: Isa,
    x: &[f32],
    factors: &[f32],
    bytes: &mut [u8; PIECE],
    codes: &mut [u8],
) {
    let pieces = x.chunks(PIECE).zip(factors.chunks(PIECE / MX_BLOCK));
    for ((x, factors), codes) in pieces.zip(codes.chunks_mut(PIECE / 8 * 6)) {
        let bytes = &mut bytes[..x.len()];
        encode_bytes::<E>(isa, Stores::Cached, x, factors, bytes);
        pack_with::<6>(isa, bytes, codes);
    }
}

/// As [`encode_sixes`].
fn decode_sixes<E: Element>(
    isa: Isa,
    stores: Stores,
    codes: &[u8],
    factors: &[f32],
    bytes: &mut [u8; PIECE],
    out: &mut [f32],
) {
    let pieces = codes.chunks(PIECE / 8 * 6).zip(factors.chunks(PIECE / MX_BLOCK));
    for ((codes, factors), out) in pieces.zip(out.chunks_mut(PIECE)) {
        let bytes = &mut bytes[..out.len()];
        unpack_with::<6>(isa, codes, bytes);
        decode_bytes::<E>(isa, stores, bytes, factors, out);
    }
}
