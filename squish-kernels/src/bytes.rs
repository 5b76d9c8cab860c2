//! Between vectors of bytes and vectors of 32-bit lanes, in the order of the elements.
//!
//! Vectors wider than 128 bits are made of *blocks* of 128 bits. Instructions that widen or narrow across blocks cost
//! two or three times as much as those that work within each, so [`widen_lanes`] moves bytes across blocks once, to
//! where interleaving within blocks brings them in order, and [`narrow_lanes`] moves them once afterwards.

#[cfg(target_arch = "x86_64")]
use fearless_simd::Level;
use fearless_simd::{Simd, prelude::*};

/// Bytes to 32-bit lanes, in order.
#[inline(always)]
pub(crate) fn widen_lanes<S: Simd>(bytes: S::u8s) -> [S::u32s; 4] {
    let zero = S::u8s::splat(bytes.token(), 0);
    let (low, high) = zip_bytes::<S>(spread_dwords::<S>(bytes), zero);
    let zero = zero.bitcast::<S::u16s>();
    let (a, b) = zip_words::<S>(low.bitcast(), zero);
    let (c, d) = zip_words::<S>(high.bitcast(), zero);
    [a.bitcast(), b.bitcast(), c.bitcast(), d.bitcast()]
}

/// The low bytes of four vectors of 32-bit lanes, each below 256, in order.
#[inline(always)]
pub(crate) fn narrow_lanes<S: Simd>([a, b, c, d]: [S::u32s; 4]) -> S::u8s {
    match a.token().level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => {
            let lanes = [a, b, c, d].map(
                #[inline(always)]
                |lanes| same(token, lanes),
            );
            same(a.token(), x86::narrow_lanes(token, lanes))
        }
        _ => a.relaxed_narrow(b).relaxed_narrow(c.relaxed_narrow(d)),
    }
}

/// [`narrow_lanes`], with the signs of `x` as the uppermost of the `n_bits` of each byte.
#[inline(always)]
pub(crate) fn narrow_with_signs<S: Simd>(
    lanes: [S::u32s; 4],
    x: [S::f32s; 4],
    n_bits: u32,
) -> S::u8s {
    let simd = x[0].token();
    match simd.level() {
        // Saturation keeps signs, so that they narrow as they are, and are put in place once for all four vectors.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => {
            let lanes = lanes.map(
                #[inline(always)]
                |lanes| same(token, lanes),
            );
            let x = x.map(
                #[inline(always)]
                |x| same(token, x),
            );
            same(simd, x86::narrow_with_signs(token, lanes, x, n_bits))
        }
        _ => {
            let [a, b, c, d] = lanes;
            let [x_a, x_b, x_c, x_d] = x;
            narrow_lanes::<S>([
                with_sign::<S>(a, x_a, n_bits),
                with_sign::<S>(b, x_b, n_bits),
                with_sign::<S>(c, x_c, n_bits),
                with_sign::<S>(d, x_d, n_bits),
            ])
        }
    }
}

#[inline(always)]
fn with_sign<S: Simd>(lanes: S::u32s, x: S::f32s, n_bits: u32) -> S::u32s {
    let sign = S::u32s::splat(x.token(), 1 << (n_bits - 1));
    lanes | ((x.bitcast::<S::u32s>() >> (32 - n_bits)) & sign)
}

/// The bytes, four at a time, where [`zip_bytes`] and then [`zip_words`] give them in order.
#[inline(always)]
pub(crate) fn spread_dwords<S: Simd>(bytes: S::u8s) -> S::u8s {
    match bytes.token().level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => same(bytes.token(), x86::spread_dwords(token, same(token, bytes))),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) => {
            same(bytes.token(), x86::spread_dwords_512(token, same(token, bytes)))
        }
        _ => bytes,
    }
}

/// The bytes, two at a time, where [`zip_bytes`] twice and then [`zip_words`] give twice as many in order.
#[inline(always)]
pub(crate) fn spread_words<S: Simd>(bytes: S::u8s) -> S::u8s {
    match bytes.token().level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => same(bytes.token(), x86::spread_words(token, same(token, bytes))),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) => {
            same(bytes.token(), x86::spread_words_512(token, same(token, bytes)))
        }
        _ => bytes,
    }
}

/// The bytes of `a` and `b` in turn, within each block: those of the lower halves and those of the upper.
#[inline(always)]
pub(crate) fn zip_bytes<S: Simd>(a: S::u8s, b: S::u8s) -> (S::u8s, S::u8s) {
    let simd = a.token();
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => {
            let (low, high) = x86::zip_bytes(token, same(token, a), same(token, b));
            (same(simd, low), same(simd, high))
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) => {
            let (low, high) = x86::zip_bytes_512(token, same(token, a), same(token, b));
            (same(simd, low), same(simd, high))
        }
        _ => (a.zip_low(b), a.zip_high(b)),
    }
}

/// The 16-bit lanes of `a` and `b` in turn, as [`zip_bytes`].
#[inline(always)]
pub(crate) fn zip_words<S: Simd>(a: S::u16s, b: S::u16s) -> (S::u16s, S::u16s) {
    let simd = a.token();
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => {
            let (low, high) = x86::zip_words(token, same(token, a), same(token, b));
            (same(simd, low), same(simd, high))
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) => {
            let (low, high) = x86::zip_words_512(token, same(token, a), same(token, b));
            (same(simd, low), same(simd, high))
        }
        _ => (a.zip_low(b), a.zip_high(b)),
    }
}

/// `a` as the vector type that it is on the level of `simd`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn same<S, T, A, B>(simd: T, a: A) -> B
where
    S: Simd,
    T: Simd,
    A: SimdBase<S>,
    B: SimdBase<T, Element = A::Element>,
{
    B::from_slice(simd, a.as_slice())
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{
        Avx2, Avx512, f32x8, kernel, prelude::*, u8x32, u8x64, u16x16, u16x32, u32x8,
    };

    kernel!(
        #[inline(always)]
        pub(super) fn narrow_lanes(token: Avx2, lanes: [u32x8<Avx2>; 4]) -> u8x32<Avx2> {
            let [a, b, c, d] = lanes;
            let low = _mm256_packus_epi32(a.into(), b.into());
            let high = _mm256_packus_epi32(c.into(), d.into());
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn narrow_with_signs(
            token: Avx2,
            lanes: [u32x8<Avx2>; 4],
            x: [f32x8<Avx2>; 4],
            n_bits: u32,
        ) -> u8x32<Avx2> {
            let [a, b, c, d] = lanes;
            let low = _mm256_packus_epi32(a.into(), b.into());
            let high = _mm256_packus_epi32(c.into(), d.into());
            let codes = _mm256_packus_epi16(low, high);
            let [a, b, c, d] = x;
            let low =
                _mm256_packs_epi32(_mm256_castps_si256(a.into()), _mm256_castps_si256(b.into()));
            let high =
                _mm256_packs_epi32(_mm256_castps_si256(c.into()), _mm256_castps_si256(d.into()));
            let signs = _mm256_packs_epi16(low, high);
            let signs = _mm256_srl_epi16(signs, _mm_cvtsi32_si128(8 - n_bits as i32));
            let signs = _mm256_and_si256(signs, _mm256_set1_epi8((1_u32 << (n_bits - 1)) as i8));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_permutevar8x32_epi32(_mm256_or_si256(codes, signs), order).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn spread_dwords(token: Avx2, bytes: u8x32<Avx2>) -> u8x32<Avx2> {
            let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
            _mm256_permutevar8x32_epi32(bytes.into(), order).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn spread_dwords_512(token: Avx512, bytes: u8x64<Avx512>) -> u8x64<Avx512> {
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, bytes.into()).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn spread_words(token: Avx2, bytes: u8x32<Avx2>) -> u8x32<Avx2> {
            // Even words to the lower half of each block, odd ones to the upper; then the halves to their blocks.
            let order = _mm256_setr_epi8(
                0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2,
                3, 6, 7, 10, 11, 14, 15,
            );
            let halves = _mm256_shuffle_epi8(bytes.into(), order);
            _mm256_permute4x64_epi64::<0b11_01_10_00>(halves).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn spread_words_512(token: Avx512, bytes: u8x64<Avx512>) -> u8x64<Avx512> {
            let order = _mm512_set_epi16(
                31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2, 29, 25, 21, 17, 13, 9,
                5, 1, 28, 24, 20, 16, 12, 8, 4, 0,
            );
            _mm512_permutexvar_epi16(order, bytes.into()).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn zip_bytes(
            token: Avx2,
            a: u8x32<Avx2>,
            b: u8x32<Avx2>,
        ) -> (u8x32<Avx2>, u8x32<Avx2>) {
            (
                _mm256_unpacklo_epi8(a.into(), b.into()).simd_into(token),
                _mm256_unpackhi_epi8(a.into(), b.into()).simd_into(token),
            )
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn zip_bytes_512(
            token: Avx512,
            a: u8x64<Avx512>,
            b: u8x64<Avx512>,
        ) -> (u8x64<Avx512>, u8x64<Avx512>) {
            (
                _mm512_unpacklo_epi8(a.into(), b.into()).simd_into(token),
                _mm512_unpackhi_epi8(a.into(), b.into()).simd_into(token),
            )
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn zip_words(
            token: Avx2,
            a: u16x16<Avx2>,
            b: u16x16<Avx2>,
        ) -> (u16x16<Avx2>, u16x16<Avx2>) {
            (
                _mm256_unpacklo_epi16(a.into(), b.into()).simd_into(token),
                _mm256_unpackhi_epi16(a.into(), b.into()).simd_into(token),
            )
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn zip_words_512(
            token: Avx512,
            a: u16x32<Avx512>,
            b: u16x32<Avx512>,
        ) -> (u16x32<Avx512>, u16x32<Avx512>) {
            (
                _mm512_unpacklo_epi16(a.into(), b.into()).simd_into(token),
                _mm512_unpackhi_epi16(a.into(), b.into()).simd_into(token),
            )
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, isa::dispatch};

    #[inline(always)]
    fn assert_order<S: Simd>(simd: S) {
        let bytes: Vec<u8> = (0..S::u8s::LEN as u8).map(|i| i.wrapping_mul(37)).collect();
        let vector = S::u8s::from_slice(simd, &bytes);
        let lanes = widen_lanes::<S>(vector);
        let widened: Vec<u32> =
            lanes.iter().flat_map(|lanes| lanes.as_slice().iter().copied()).collect();
        assert!(widened.iter().copied().eq(bytes.iter().copied().map(u32::from)), "{widened:?}");
        assert_eq!(narrow_lanes::<S>(lanes).as_slice(), bytes);

        // Bytes i and i again, each followed by its complement: four vectors that count in order.
        let (low, high) = zip_bytes::<S>(spread_words::<S>(vector), !spread_words::<S>(vector));
        let mut zipped = Vec::new();
        for half in [low, high] {
            let (a, b) = zip_bytes::<S>(half, half);
            for quarter in [a, b] {
                let (a, b) = zip_words::<S>(quarter.bitcast(), quarter.bitcast());
                zipped.extend([a.bitcast::<S::u32s>(), b.bitcast::<S::u32s>()]);
            }
        }
        let zipped: Vec<u32> =
            zipped.iter().flat_map(|lanes| lanes.as_slice().iter().copied()).collect();
        let want = bytes.iter().flat_map(|&byte| [byte, !byte].map(|b| u32::from(b) * 0x0101_0101));
        assert!(zipped.iter().copied().eq(want), "{zipped:x?}");
    }

    #[test]
    fn lanes_keep_the_order_of_the_bytes_on_every_level() {
        for isa in Isa::available() {
            dispatch!(isa.token(), simd => assert_order(simd));
        }
    }
}
