//! Rows of a cache from floats and to floats.

use super::{E4M3, E5M2, bf16, element::sealed::Convert, f16};
use crate::{
    Isa,
    cast::{decode_blocks_to, encode_blocks_to, narrow_with, widen_with},
    element::Overflow,
    integer::{Blocks, decode_i8_blocks_to, encode_i8_blocks_to},
    stream::Stores,
};

/// Floats that are stored as they are.
macro_rules! convert_real {
    ($($type:ty),*) => {$(
        impl Convert for $type {
            #[inline]
            fn encode(isa: Isa, x: &[f32], _: f32, _: Overflow, out: &mut [Self]) {
                narrow_with(isa, x, out);
            }

            fn decode(isa: Isa, x: &[Self], width: usize, scales: Option<&[f32]>, out: &mut [f32]) {
                widen_with(isa, x, out);
                scale_rows(out, width, scales);
            }
        }
    )*};
}
convert_real!(bf16, f16);

/// Not by the kernels above, so that a copy of a few numbers is one.
impl Convert for f32 {
    #[inline]
    fn encode(_: Isa, x: &[f32], _: f32, _: Overflow, out: &mut [Self]) {
        out.copy_from_slice(x);
    }

    #[inline]
    fn decode(_: Isa, x: &[Self], width: usize, scales: Option<&[f32]>, out: &mut [f32]) {
        out.copy_from_slice(x);
        scale_rows(out, width, scales);
    }
}

#[inline]
fn scale_rows(rows: &mut [f32], width: usize, scales: Option<&[f32]>) {
    let Some(scales) = scales else { return };
    for (row, scale) in rows.chunks_exact_mut(width).zip(scales) {
        for x in row {
            *x *= scale;
        }
    }
}

impl Convert for i8 {
    fn encode(isa: Isa, x: &[f32], scale: f32, _: Overflow, out: &mut [Self]) {
        let blocks = Blocks { block: x.len().max(1), scales: &[scale], zero_points: None };
        encode_i8_blocks_to(isa, Stores::Cached, x, blocks, [-127, 127], out);
    }

    fn decode(isa: Isa, x: &[Self], width: usize, scales: Option<&[f32]>, out: &mut [f32]) {
        let (block, scales) = scales.map_or((x.len().max(1), &[1.0][..]), |scales| (width, scales));
        let blocks = Blocks { block, scales, zero_points: None };
        decode_i8_blocks_to(isa, Stores::Cached, x, blocks, out);
    }
}

macro_rules! convert_fp8 {
    ($($type:ty),*) => {$(
        impl Convert for $type {
            fn encode(isa: Isa, x: &[f32], scale: f32, overflow: Overflow, out: &mut [Self]) {
                let (block, factor) = (x.len().max(1), 1.0 / scale);
                encode_blocks_to(isa, Stores::Cached, x, block, &[factor], out, overflow);
            }

            fn decode(isa: Isa, x: &[Self], width: usize, scales: Option<&[f32]>, out: &mut [f32]) {
                let whole = || (x.len().max(1), &[1.0][..]);
                let (block, factors) = scales.map_or_else(whole, |scales| (width, scales));
                decode_blocks_to(isa, Stores::Cached, x, block, factors, out);
            }
        }
    )*};
}
convert_fp8!(E4M3, E5M2);
