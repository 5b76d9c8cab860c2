//! The BF16 mode on CPUs with an instruction for pairs of BF16 (`vdpbf16ps`).
//!
//! The instruction adds the product of the second inputs of a pair and then that of the first, each as a fused
//! multiply-add to which subnormal numbers are zeros.

use core::arch::x86_64::*;

use fearless_simd::{Avx512, f32x16, prelude::*, u8x64, u32x16};

use super::{
    float::{self, AHEAD},
    layout::{Code, PANEL},
};
use crate::stream::prefetch_lines;

/// Vectors of outputs of a panel.
const VECTORS: usize = PANEL / 16;

/// Weights of a panel as pairs of BF16.
pub(super) trait Pairs {
    /// Bytes of two inputs of all outputs.
    const PAIR_BYTES: usize;

    /// What decoding takes besides the codes.
    type Tables: Copy;

    fn tables(token: Avx512) -> Self::Tables;

    /// Two inputs of all outputs.
    fn decode(token: Avx512, tables: Self::Tables, pair: &[u8]) -> [__m512i; VECTORS];
}

/// BF16 as it is.
pub(super) struct Stored;

impl Pairs for Stored {
    const PAIR_BYTES: usize = 4 * PANEL;
    type Tables = ();

    #[inline(always)]
    fn tables(_: Avx512) {}

    #[inline(always)]
    fn decode(token: Avx512, (): (), pair: &[u8]) -> [__m512i; VECTORS] {
        let vectors = pair.as_chunks::<64>().0;
        [0, 1, 2, 3].map(
            #[inline(always)]
            |i| u8x64::from_slice(token, &vectors[i]).into(),
        )
    }
}

/// 8-bit floats with `EXPONENT` bits of exponent: the bytes of the BF16 of every code are looked up.
pub(super) struct Float8<const EXPONENT: u32>;

/// The lower and the upper byte of the BF16 of every code without its sign.
const fn table(exponent: u32) -> [[u8; 128]; 2] {
    let mut out = [[0; 128]; 2];
    let bias = (1 << (exponent - 1)) - 1;
    let mantissa_bits = 7 - exponent;
    let mut code = 0_u32;
    while code < 128 {
        let (field, mantissa) = (code >> mantissa_bits, code & ((1 << mantissa_bits) - 1));
        let special = if exponent == 4 { code == 0x7f } else { code >= 0x7c };
        let bits = if special {
            // The mantissa of E4M3's NaN is not zero, E5M2's infinity has none.
            0x7f80 | mantissa << (7 - mantissa_bits)
        } else if field > 0 {
            (field + 127 - bias) << 7 | mantissa << (7 - mantissa_bits)
        } else if mantissa > 0 {
            // Subnormal: the highest bit of the mantissa becomes the implicit one.
            let shift = mantissa.leading_zeros() - (31 - mantissa_bits);
            let normal = (mantissa << shift) & ((1 << mantissa_bits) - 1);
            (128 - bias - shift) << 7 | normal << (7 - mantissa_bits)
        } else {
            0
        };
        out[0][code as usize] = bits as u8;
        out[1][code as usize] = (bits >> 8) as u8;
        code += 1;
    }
    out
}

impl<const EXPONENT: u32> Float8<EXPONENT> {
    const TABLE: [[u8; 128]; 2] = table(EXPONENT);
}

impl<const EXPONENT: u32> Pairs for Float8<EXPONENT> {
    const PAIR_BYTES: usize = 2 * PANEL;
    type Tables = [[__m512i; 2]; 2];

    #[inline(always)]
    fn tables(token: Avx512) -> Self::Tables {
        Self::TABLE.map(
            #[inline(always)]
            |bytes| {
                let (low, high) = bytes.split_at(64);
                [u8x64::from_slice(token, low).into(), u8x64::from_slice(token, high).into()]
            },
        )
    }

    #[inline(always)]
    fn decode(token: Avx512, tables: Self::Tables, pair: &[u8]) -> [__m512i; VECTORS] {
        let halves = pair.as_chunks::<64>().0;
        let [a, b] = [0, 1].map(
            #[inline(always)]
            |i| {
                let codes: __m512i = u8x64::from_slice(token, &halves[i]).into();
                interleaved(token, codes, tables)
            },
        );
        let [[a, b], [c, d]] = [a, b].map(
            #[inline(always)]
            |[low, high]: [u32x16<Avx512>; 2]| [low.into(), high.into()],
        );
        [a, b, c, d]
    }
}

/// Pairs of BF16 of 32 outputs from a half of a pair's codes: the first 16 outputs, and the others.
#[inline(always)]
fn interleaved(token: Avx512, codes: __m512i, tables: [[__m512i; 2]; 2]) -> [u32x16<Avx512>; 2] {
    fearless_simd::kernel!(
        #[inline(always)]
        fn look_up(
            token: Avx512,
            codes: __m512i,
            tables: [[__m512i; 2]; 2],
        ) -> [u32x16<Avx512>; 2] {
            let [low, high] = tables;
            let low = _mm512_permutex2var_epi8(low[0], codes, low[1]);
            let high = _mm512_permutex2var_epi8(high[0], codes, high[1]);
            // high | (codes & 0x80): the lookup leaves the sign out.
            let sign = _mm512_set1_epi8(-128);
            let high = _mm512_ternarylogic_epi32::<0xf8>(high, codes, sign);
            [
                _mm512_unpacklo_epi8(low, high).simd_into(token),
                _mm512_unpackhi_epi8(low, high).simd_into(token),
            ]
        }
    );
    look_up(token, codes, tables)
}

/// Adds the products of a group's codes with a row's pairs of inputs to `sums`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) fn one_row<P: Pairs>(token: Avx512, codes: &[u8], x: &[u32], sums: &mut [f32; PANEL]) {
    let mut acc = sums_of(token, sums);
    let tables = P::tables(token);
    for (pair, &x) in codes.chunks_exact(P::PAIR_BYTES).zip(x) {
        prefetch_lines(pair, AHEAD);
        let x = u32x16::splat(token, x);
        for (acc, weights) in acc.iter_mut().zip(P::decode(token, tables, pair)) {
            *acc = dot(*acc, weights, x.into());
        }
    }
    for (sums, acc) in sums.as_chunks_mut::<16>().0.iter_mut().zip(acc) {
        let acc: f32x16<Avx512> = acc.simd_into(token);
        acc.store_slice(sums);
    }
}

/// Decodes as many pairs of a group's codes as `out` has room for.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn decode_into<P: Pairs>(token: Avx512, codes: &[u8], out: &mut [[u32; PANEL]]) {
    let tables = P::tables(token);
    for (pair, out) in codes.chunks_exact(P::PAIR_BYTES).zip(out) {
        prefetch_lines(pair, AHEAD);
        for (out, weights) in out.as_chunks_mut::<16>().0.iter_mut().zip(P::decode(token, tables, pair)) {
            let weights: u32x16<Avx512> = weights.simd_into(token);
            weights.store_slice(out);
        }
    }
}

/// Decodes the codes that have no [`Pairs`] through `f32`, which is exact: all of their values are BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn decode_plain(
    code: Code,
    codes: &[u8],
    offsets: &[u8; PANEL],
    out: &mut [[u32; PANEL]],
) {
    // So many that the values stay in the first-level cache.
    const AT_ONCE: usize = 8;
    let mut values = [[0.0; PANEL]; 2 * AT_ONCE];
    let bytes_at_once = 2 * AT_ONCE * PANEL * code.bits() / 8;
    for (codes, out) in codes.chunks(bytes_at_once).zip(out.chunks_mut(AT_ONCE)) {
        float::decode_plain(code, codes, offsets, &mut values[..2 * out.len()]);
        for ([first, second], out) in values.as_chunks::<2>().0.iter().zip(out) {
            for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
                *out = first.to_bits() >> 16 | second.to_bits();
            }
        }
    }
}

/// As [`super::float::tile_into`], with pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) fn tile_into<const ROWS: usize>(
    token: Avx512,
    weights: &[[u32; PANEL]],
    fetch: bool,
    x: &[u32],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    for column in [0, 32] {
        let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
        for (acc, sums) in acc.iter_mut().zip(sums.iter()) {
            let sums = &sums[column..column + 32];
            *acc = [
                f32x16::from_slice(token, &sums[..16]).into(),
                f32x16::from_slice(token, &sums[16..]).into(),
            ];
        }
        for (weights, x) in weights.iter().zip(x.as_chunks::<ROWS>().0) {
            if fetch && column == 0 {
                prefetch_lines(bytemuck::cast_slice(weights), AHEAD);
            }
            let weights = &weights[column..column + 32];
            let a: __m512i = u32x16::from_slice(token, &weights[..16]).into();
            let b: __m512i = u32x16::from_slice(token, &weights[16..]).into();
            for (acc, &x) in acc.iter_mut().zip(x) {
                let x: __m512i = u32x16::splat(token, x).into();
                *acc = [dot(acc[0], a, x), dot(acc[1], b, x)];
            }
        }
        for (acc, sums) in acc.into_iter().zip(sums.iter_mut()) {
            let [a, b]: [f32x16<Avx512>; 2] = [acc[0].simd_into(token), acc[1].simd_into(token)];
            a.store_slice(&mut sums[column..column + 16]);
            b.store_slice(&mut sums[column + 16..column + 32]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sums_of(token: Avx512, sums: &[f32; PANEL]) -> [__m512; VECTORS] {
    let vectors = sums.as_chunks::<16>().0;
    [0, 1, 2, 3].map(|i| f32x16::from_slice(token, &vectors[i]).into())
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot(sum: __m512, weights: __m512i, x: __m512i) -> __m512 {
    _mm512_dpbf16_ps(sum, bytemuck::cast(weights), bytemuck::cast(x))
}
