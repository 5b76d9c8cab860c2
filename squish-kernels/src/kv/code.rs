//! Loading floats of eight bits.
//!
//! Their values are `bf16` values too, whose two bytes are found in tables where there is an instruction for that (AVX-512), and computed
//! elsewhere. Interleaving the bytes puts the codes of sixteen bytes `16 j + 8 h + 2 i + o` into lane `4 j + i` of part `2 h + o`.

#[cfg(target_arch = "x86_64")]
use fearless_simd::Level;
use fearless_simd::{Simd, prelude::*};

use super::{E4M3, E5M2, load::MOST_PARTS};
#[cfg(target_arch = "x86_64")]
use crate::bytes::same;

/// A float of eight bits.
pub(super) trait Code {
    /// Of each code without its sign, the lower byte and the upper one of its `bf16`.
    #[cfg(target_arch = "x86_64")]
    const HALVES: &'static [[u8; 128]; 2];

    /// The values of codes in the lowest quarters of lanes.
    fn value<S: Simd>(simd: S, codes: S::u32s) -> S::f32s;
}

impl Code for E4M3 {
    #[cfg(target_arch = "x86_64")]
    const HALVES: &'static [[u8; 128]; 2] = &halves([3, 7], 0x7f);

    #[inline(always)]
    fn value<S: Simd>(simd: S, codes: S::u32s) -> S::f32s {
        let magnitude = codes & 0x7f;
        // The bias is 7, that of `f32` 127; a subnormal is its mantissa times 2^-9.
        let normal = (magnitude << 20) + S::u32s::splat(simd, 120 << 23);
        let is_nan = magnitude.simd_eq(S::u32s::splat(simd, 0x7f));
        let normal = is_nan.select(S::u32s::splat(simd, 0x7ff0_0000), normal);
        signed::<S>(codes, normal, 8, 1.0 / 512.0)
    }
}

impl Code for E5M2 {
    #[cfg(target_arch = "x86_64")]
    const HALVES: &'static [[u8; 128]; 2] = &halves([2, 15], 0x7c);

    #[inline(always)]
    fn value<S: Simd>(simd: S, codes: S::u32s) -> S::f32s {
        let magnitude = codes & 0x7f;
        let bits = magnitude << 21;
        // The bias is 15; a subnormal is its mantissa times 2^-16.
        let normal = bits + S::u32s::splat(simd, 112 << 23);
        let is_special = magnitude.simd_ge(S::u32s::splat(simd, 0x7c));
        let normal = is_special.select(bits | S::u32s::splat(simd, 0x7f80_0000), normal);
        signed::<S>(codes, normal, 4, 1.0 / 65536.0)
    }
}

/// The bytes of the `bf16` of each code without its sign, where `n_bits` of mantissa and so large a bias make the exponent and codes from
/// `first_special` on are infinite or NaN.
#[cfg(target_arch = "x86_64")]
const fn halves([n_bits, bias]: [u32; 2], first_special: u32) -> [[u8; 128]; 2] {
    let mut out = [[0; 128]; 2];
    let mut code = 0;
    while code < 128 {
        let (exponent, mantissa) = (code >> n_bits, code & ((1 << n_bits) - 1));
        let bits = if code >= first_special {
            0x7f80 | (mantissa << (7 - n_bits))
        } else if exponent > 0 {
            ((exponent + 127 - bias) << 7) | (mantissa << (7 - n_bits))
        } else if mantissa > 0 {
            // The highest bit is implied.
            let highest = mantissa.ilog2();
            let rest = (mantissa << (n_bits - highest)) & ((1 << n_bits) - 1);
            ((128 - bias - n_bits + highest) << 7) | (rest << (7 - n_bits))
        } else {
            0
        };
        let [low, high, ..] = bits.to_le_bytes();
        out[0][code as usize] = low;
        out[1][code as usize] = high;
        code += 1;
    }
    out
}

#[inline(always)]
pub(super) fn load<S: Simd, C: Code>(simd: S, x: &[u8]) -> [S::f32s; MOST_PARTS] {
    #[cfg(target_arch = "x86_64")]
    if let Level::Avx512(token) = simd.level() {
        let parts = x86::tables_512(token, x, C::HALVES);
        return [
            same(simd, parts[0]),
            same(simd, parts[1]),
            same(simd, parts[2]),
            same(simd, parts[3]),
        ];
    }
    let codes = parts(simd, x);
    [
        C::value(simd, codes[0]),
        C::value(simd, codes[1]),
        C::value(simd, codes[2]),
        C::value(simd, codes[3]),
    ]
}

/// The codes of each part in the lowest quarters of lanes.
#[inline(always)]
fn parts<S: Simd>(simd: S, x: &[u8]) -> [S::u32s; MOST_PARTS] {
    #[cfg(target_arch = "x86_64")]
    if let Level::Avx2(token) = simd.level() {
        let parts = x86::parts_256(token, x);
        return [
            same(simd, parts[0]),
            same(simd, parts[1]),
            same(simd, parts[2]),
            same(simd, parts[3]),
        ];
    }
    let part = |first: usize| {
        S::u32s::from_fn(
            simd,
            #[inline(always)]
            |lane| u32::from(x[lane / 4 * 16 + lane % 4 * 2 + first]),
        )
    };
    [part(0), part(1), part(8), part(9)]
}

/// The values of codes: the bits `normal` where the code without its sign is `n_subnormal` at least, else the code times `unit`; with the
/// sign.
#[inline(always)]
fn signed<S: Simd>(codes: S::u32s, normal: S::u32s, n_subnormal: u32, unit: f32) -> S::f32s {
    let simd = codes.token();
    let magnitude = codes & 0x7f;
    let small = magnitude.bitcast::<S::i32s>().to_float::<S::f32s>() * S::f32s::splat(simd, unit);
    let is_small = magnitude.simd_lt(S::u32s::splat(simd, n_subnormal));
    let bits = is_small.select(small.bitcast(), normal);
    (bits | ((codes & 0x80) << 24)).bitcast()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Avx2, Avx512, f32x16, kernel, prelude::*, u8x32, u8x64, u32x8};

    kernel!(
        #[inline(always)]
        pub(super) fn tables_512(
            token: Avx512,
            x: &[u8],
            halves: &[[u8; 128]; 2],
        ) -> [f32x16<Avx512>; 4] {
            let codes: __m512i = u8x64::from_slice(token, &x[..64]).into();
            let table = |bytes: &[u8; 128]| -> __m512i {
                let low = u8x64::from_slice(token, &bytes[..64]).into();
                _mm512_permutex2var_epi8(low, codes, u8x64::from_slice(token, &bytes[64..]).into())
            };
            let (low, high) = (table(&halves[0]), table(&halves[1]));
            // The upper byte, or the code's sign.
            let high = _mm512_ternarylogic_epi64::<0xf8>(high, codes, _mm512_set1_epi8(-128));
            let even = |words| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)).simd_into(token);
            let odd = |words| {
                let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                _mm512_castsi512_ps(_mm512_and_si512(words, upper)).simd_into(token)
            };
            let words = [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)];
            [even(words[0]), odd(words[0]), even(words[1]), odd(words[1])]
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn parts_256(token: Avx2, x: &[u8]) -> [u32x8<Avx2>; 4] {
            let codes: __m256i = u8x32::from_slice(token, &x[..32]).into();
            let zero = _mm256_setzero_si256();
            let even = |words| _mm256_and_si256(words, _mm256_set1_epi32(0xffff)).simd_into(token);
            let odd = |words| _mm256_srli_epi32::<16>(words).simd_into(token);
            let words = [_mm256_unpacklo_epi8(codes, zero), _mm256_unpackhi_epi8(codes, zero)];
            [even(words[0]), odd(words[0]), even(words[1]), odd(words[1])]
        }
    );
}
