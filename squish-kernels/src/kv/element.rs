//! How keys and values are stored.

use fearless_simd::{Level, Simd, prelude::*};
use half::slice::HalfFloatSliceExt;

use super::{E4M3, E5M2, bf16, code, f16};
#[cfg(target_arch = "x86_64")]
use crate::bytes::same;
use crate::{
    Isa,
    attention::{self, CHAINS, Queries, States, TILE, Tile},
    cast::{decode_blocks_to, encode_blocks_to, narrow_with, widen_with},
    element::{Element, Overflow},
    integer::{Blocks, decode_i8_blocks_to, encode_i8_blocks_to},
    stream::Stores,
};

/// A number of a cache of keys and values: `f32`, `bf16`, `f16`, `i8`, `E4M3` or `E5M2`.
pub trait KvElement:
    Copy + Default + Send + Sync + sealed::Load + sealed::Convert + 'static
{
    /// Name of the type, in lower case.
    const NAME: &'static str;
    /// The largest finite code, for types whose rows are scaled such that their largest number becomes it.
    const LARGEST: Option<f32>;
    /// Whether a code stands for what is not a number.
    const HAS_NAN: bool;

    /// Its value, exactly.
    fn to_f32(self) -> f32;

    /// As they lie in memory.
    #[doc(hidden)]
    fn as_bytes(x: &[Self]) -> &[u8];

    /// Where number `e` of a row stands in a query or a state: see [`attention`](crate::attention).
    #[doc(hidden)]
    #[inline]
    fn place(e: usize) -> usize {
        let block = CHAINS * Self::PARTS;
        let (first, e) = (e / block * block, e % block);
        let (chain, part) = match Self::PARTS {
            1 => (e, 0),
            2 => (e / 2, e % 2),
            _ => (e / 16 * 4 + e % 8 / 2, e % 16 / 8 * 2 + e % 2),
        };
        first + part * CHAINS + chain
    }
}

/// Most parts of a load.
pub(crate) const MOST_PARTS: usize = 4;

pub(crate) mod sealed {
    use super::{Isa, MOST_PARTS, Overflow, Simd};
    use crate::attention::{Queries, States, TILE, Tile};

    pub trait Load: Sized {
        /// Vectors that a load gives, a divisor of [`MOST_PARTS`]. Of narrow numbers they are not consecutive ones, but those that instructions bring
        /// forth at once: see [`place`](super::KvElement::place).
        const PARTS: usize;

        /// The values of [`PARTS`](Self::PARTS) times as many elements as a vector has lanes; vectors beyond these mean nothing.
        fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS];

        /// [`attend`](crate::attention::attend), compiled here and not where it is called.
        fn attend(
            isa: Isa,
            tile: &Tile<'_, Self>,
            queries: &Queries<'_>,
            states: &mut States<'_>,
            scores: &mut [[f32; TILE]],
        );
    }

    /// Kernels over rows, which [`super::super::rows`] calls.
    pub trait Convert: Sized {
        /// The nearest code of each number, divided by `scale` if the type has scales.
        fn encode(isa: Isa, x: &[f32], scale: f32, overflow: Overflow, out: &mut [Self]);
        /// The values of rows of `width`, times their scales.
        fn decode(isa: Isa, x: &[Self], width: usize, scales: Option<&[f32]>, out: &mut [f32]);
    }
}

/// The one vector of a load that gives no more.
#[inline(always)]
fn one<S: Simd>(x: S::f32s) -> [S::f32s; MOST_PARTS] {
    [x; MOST_PARTS]
}

/// Floats that are stored as they are.
macro_rules! convert_real {
    ($($type:ty),*) => {$(
        impl sealed::Convert for $type {
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
impl sealed::Convert for f32 {
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

impl sealed::Convert for i8 {
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
        impl sealed::Convert for $type {
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

impl KvElement for f32 {
    const NAME: &'static str = "f32";
    const LARGEST: Option<f32> = None;
    const HAS_NAN: bool = true;

    fn to_f32(self) -> f32 {
        self
    }

    fn as_bytes(x: &[Self]) -> &[u8] {
        bytemuck::cast_slice(x)
    }
}

impl sealed::Load for f32 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        one::<S>(S::f32s::from_slice(simd, x))
    }

    fn attend(
        isa: Isa,
        tile: &Tile<'_, Self>,
        queries: &Queries<'_>,
        states: &mut States<'_>,
        scores: &mut [[f32; TILE]],
    ) {
        attention::on_level(isa, tile, queries, states, scores);
    }
}
impl KvElement for bf16 {
    const NAME: &'static str = "bf16";
    const LARGEST: Option<f32> = None;
    const HAS_NAN: bool = true;

    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    fn as_bytes(x: &[Self]) -> &[u8] {
        bytemuck::cast_slice(x.reinterpret_cast())
    }
}

impl sealed::Load for bf16 {
    const PARTS: usize = 2;

    /// The even numbers and the odd ones: an instruction for either.
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        let pairs = S::u16s::from_slice(simd, x.reinterpret_cast()).bitcast::<S::u32s>();
        let (even, odd) = ((pairs << 16).bitcast(), (pairs & 0xffff_0000).bitcast());
        [even, odd, even, odd]
    }

    fn attend(
        isa: Isa,
        tile: &Tile<'_, Self>,
        queries: &Queries<'_>,
        states: &mut States<'_>,
        scores: &mut [[f32; TILE]],
    ) {
        attention::on_level(isa, tile, queries, states, scores);
    }
}
impl KvElement for f16 {
    const NAME: &'static str = "f16";
    const LARGEST: Option<f32> = None;
    const HAS_NAN: bool = true;

    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    fn as_bytes(x: &[Self]) -> &[u8] {
        bytemuck::cast_slice(x.reinterpret_cast())
    }
}

impl sealed::Load for f16 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        one::<S>(match simd.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(token) => same(simd, x86::halves_512(token, x.reinterpret_cast())),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(token) => same(simd, x86::halves_256(token, x.reinterpret_cast())),
            _ => S::f32s::from_fn(
                simd,
                #[inline(always)]
                |i| x[i].to_f32(),
            ),
        })
    }

    fn attend(
        isa: Isa,
        tile: &Tile<'_, Self>,
        queries: &Queries<'_>,
        states: &mut States<'_>,
        scores: &mut [[f32; TILE]],
    ) {
        attention::on_level(isa, tile, queries, states, scores);
    }
}
impl KvElement for i8 {
    const NAME: &'static str = "int8";
    const LARGEST: Option<f32> = Some(127.0);
    const HAS_NAN: bool = false;

    fn to_f32(self) -> f32 {
        f32::from(self)
    }

    fn as_bytes(x: &[Self]) -> &[u8] {
        bytemuck::cast_slice(x)
    }
}

impl sealed::Load for i8 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        let codes = bytes(simd, bytemuck::cast_slice(x));
        one::<S>(((codes << 24).bitcast::<S::i32s>() >> 24).to_float())
    }

    fn attend(
        isa: Isa,
        tile: &Tile<'_, Self>,
        queries: &Queries<'_>,
        states: &mut States<'_>,
        scores: &mut [[f32; TILE]],
    ) {
        attention::on_level(isa, tile, queries, states, scores);
    }
}
impl KvElement for E4M3 {
    const NAME: &'static str = "e4m3";
    const LARGEST: Option<f32> = Some(448.0);
    const HAS_NAN: bool = true;

    fn to_f32(self) -> f32 {
        Element::to_f32(self)
    }

    fn as_bytes(x: &[Self]) -> &[u8] {
        bytemuck::cast_slice(x)
    }
}

impl sealed::Load for E4M3 {
    const PARTS: usize = 4;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        code::load::<S, Self>(simd, bytemuck::cast_slice(x))
    }

    fn attend(
        isa: Isa,
        tile: &Tile<'_, Self>,
        queries: &Queries<'_>,
        states: &mut States<'_>,
        scores: &mut [[f32; TILE]],
    ) {
        attention::on_level(isa, tile, queries, states, scores);
    }
}

impl code::Code for E4M3 {
    const HALVES: &'static [[u8; 128]; 2] = &code::halves([3, 7], 0x7f);

    #[inline(always)]
    fn value<S: Simd>(simd: S, codes: S::u32s) -> S::f32s {
        let magnitude = codes & 0x7f;
        // The bias is 7, that of `f32` 127; a subnormal is its mantissa times 2^-9.
        let normal = (magnitude << 20) + S::u32s::splat(simd, 120 << 23);
        let is_nan = magnitude.simd_eq(S::u32s::splat(simd, 0x7f));
        let normal = is_nan.select(S::u32s::splat(simd, 0x7ff0_0000), normal);
        code::signed::<S>(codes, normal, 8, 1.0 / 512.0)
    }
}

impl KvElement for E5M2 {
    const NAME: &'static str = "e5m2";
    const LARGEST: Option<f32> = Some(57344.0);
    const HAS_NAN: bool = true;

    fn to_f32(self) -> f32 {
        Element::to_f32(self)
    }

    fn as_bytes(x: &[Self]) -> &[u8] {
        bytemuck::cast_slice(x)
    }
}

impl sealed::Load for E5M2 {
    const PARTS: usize = 4;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        code::load::<S, Self>(simd, bytemuck::cast_slice(x))
    }

    fn attend(
        isa: Isa,
        tile: &Tile<'_, Self>,
        queries: &Queries<'_>,
        states: &mut States<'_>,
        scores: &mut [[f32; TILE]],
    ) {
        attention::on_level(isa, tile, queries, states, scores);
    }
}

impl code::Code for E5M2 {
    const HALVES: &'static [[u8; 128]; 2] = &code::halves([2, 15], 0x7c);

    #[inline(always)]
    fn value<S: Simd>(simd: S, codes: S::u32s) -> S::f32s {
        let magnitude = codes & 0x7f;
        let bits = magnitude << 21;
        // The bias is 15; a subnormal is its mantissa times 2^-16.
        let normal = bits + S::u32s::splat(simd, 112 << 23);
        let is_special = magnitude.simd_ge(S::u32s::splat(simd, 0x7c));
        let normal = is_special.select(bits | S::u32s::splat(simd, 0x7f80_0000), normal);
        code::signed::<S>(codes, normal, 4, 1.0 / 65536.0)
    }
}

/// Bytes in the lowest quarters of lanes.
#[inline(always)]
fn bytes<S: Simd>(simd: S, x: &[u8]) -> S::u32s {
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) => same(simd, x86::bytes_512(token, x)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => same(simd, x86::bytes_256(token, x)),
        _ => S::u32s::from_fn(
            simd,
            #[inline(always)]
            |i| u32::from(x[i]),
        ),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{
        Avx2, Avx512, f32x8, f32x16, kernel, prelude::*, u8x16, u16x8, u16x16, u32x8, u32x16,
    };

    kernel!(
        #[inline(always)]
        pub(super) fn halves_512(token: Avx512, x: &[u16]) -> f32x16<Avx512> {
            _mm512_cvtph_ps(u16x16::from_slice(token, &x[..16]).into()).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn halves_256(token: Avx2, x: &[u16]) -> f32x8<Avx2> {
            _mm256_cvtph_ps(u16x8::from_slice(token, &x[..8]).into()).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn bytes_512(token: Avx512, x: &[u8]) -> u32x16<Avx512> {
            _mm512_cvtepu8_epi32(u8x16::from_slice(token, &x[..16]).into()).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn bytes_256(token: Avx2, x: &[u8]) -> u32x8<Avx2> {
            let x = i64::from_le_bytes([x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]]);
            _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(x)).simd_into(token)
        }
    );
}

#[cfg(test)]
mod tests {
    use half::slice::HalfBitsSliceExt;

    use super::*;
    use crate::isa::dispatch;

    /// Every code of a type, loaded on every level, is its value, and in its place.
    fn all_codes<E: KvElement>(codes: &[E]) {
        for isa in Isa::available() {
            dispatch!(isa.token(), simd => {
                let lanes = simd_lanes(simd);
                let mut loaded = vec![0.0; codes.len()];
                for (i, codes) in codes.chunks_exact(E::PARTS * lanes).enumerate() {
                    let (block, chain) = (i * lanes / CHAINS, i * lanes % CHAINS);
                    for (part, values) in E::load(simd, codes)[..E::PARTS].iter().enumerate() {
                        let at = (block * E::PARTS + part) * CHAINS + chain;
                        values.store_slice(&mut loaded[at..at + lanes]);
                    }
                }
                for (e, code) in codes.iter().enumerate() {
                    let (got, want) = (loaded[E::place(e)], code.to_f32());
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(same, "{isa:?} {}: {got} is not {want}", E::NAME);
                }
            });
        }
    }

    fn simd_lanes<S: Simd>(_: S) -> usize {
        S::f32s::LEN
    }

    #[test]
    fn every_code_is_loaded_as_its_value() {
        let bytes: Vec<u8> = (0..=255).collect();
        all_codes::<i8>(bytemuck::cast_slice(&bytes));
        all_codes::<E4M3>(bytemuck::cast_slice(&bytes));
        all_codes::<E5M2>(bytemuck::cast_slice(&bytes));
        let words: Vec<u16> = (0..=u16::MAX).collect();
        all_codes::<bf16>(words.reinterpret_cast());
        all_codes::<f16>(words.reinterpret_cast());
    }
}
