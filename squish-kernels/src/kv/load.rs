//! Loading numbers of a cache as floats.

#[cfg(target_arch = "x86_64")]
use fearless_simd::Level;
use fearless_simd::{Simd, prelude::*};
use half::slice::HalfFloatSliceExt;

use super::{E4M3, E5M2, bf16, element::sealed::Load, f16};
#[cfg(target_arch = "x86_64")]
use crate::bytes::same;
use crate::{float8::Float8, real::bf16_pairs};

/// Most parts of a load.
pub(crate) const MOST_PARTS: usize = 4;

impl Load for f32 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        one::<S>(S::f32s::from_slice(simd, x))
    }
}

impl Load for bf16 {
    const PARTS: usize = 2;

    /// The even numbers and the odd ones: an instruction for either.
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        let pairs = S::u16s::from_slice(simd, x.reinterpret_cast());
        let [even, odd] = bf16_pairs::<S>(pairs.bitcast());
        [even, odd, even, odd]
    }
}

impl Load for f16 {
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
}

impl Load for i8 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        let codes = bytes(simd, bytemuck::cast_slice(x));
        one::<S>(((codes << 24).bitcast::<S::i32s>() >> 24).to_float())
    }
}

impl Load for E4M3 {
    const PARTS: usize = 4;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        float8::<S, 4>(simd, bytemuck::cast_slice(x))
    }
}

impl Load for E5M2 {
    const PARTS: usize = 4;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS] {
        float8::<S, 5>(simd, bytemuck::cast_slice(x))
    }
}

/// Of floats of eight bits: see [`Float8`].
#[inline(always)]
fn float8<S: Simd, const EXPONENT: u32>(simd: S, x: &[u8]) -> [S::f32s; MOST_PARTS] {
    let codes = S::u8s::from_slice(simd, &x[..S::u8s::LEN]);
    let [[a, b], [c, d]] = Float8::<EXPONENT>::values::<S>(codes);
    [a, b, c, d]
}

/// The one vector of a load that gives no more.
#[inline(always)]
fn one<S: Simd>(x: S::f32s) -> [S::f32s; MOST_PARTS] {
    [x; MOST_PARTS]
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
    use crate::{Isa, attention::CHAINS, isa::dispatch, kv::KvElement};

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
