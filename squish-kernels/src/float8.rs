//! Floats of eight bits, by the bits that their values have as `bf16`.
//!
//! The two bytes of a `bf16` are looked up where there is an instruction for that (AVX-512), and found as casts find them elsewhere, without
//! products whose operands are subnormal, which take ten cycles or more. Interleaving both within each block of sixteen codes gives pairs: the
//! codes `16 j + 8 h + 2 i` and `16 j + 8 h + 2 i + 1` stand in lane `4 j + i` of vector `h`.

#[cfg(target_arch = "x86_64")]
use fearless_simd::Level;
use fearless_simd::{Simd, prelude::*};

#[cfg(target_arch = "x86_64")]
use crate::bytes::same;
use crate::{
    bytes::zip_bytes,
    cast::upper_halves,
    element::{E4M3, E5M2},
    real::bf16_pairs,
};

/// Those with `EXPONENT` bits of exponent: E4M3 or E5M2.
pub(crate) struct Float8<const EXPONENT: u32>;

impl<const EXPONENT: u32> Float8<EXPONENT> {
    /// The values of a vector of codes: of vector `h` of pairs, the first of each and the second.
    #[inline(always)]
    pub(crate) fn values<S: Simd>(codes: S::u8s) -> [[S::f32s; 2]; 2] {
        #[cfg(target_arch = "x86_64")]
        let simd = codes.token();
        #[cfg(target_arch = "x86_64")]
        if let Level::Avx512(token) = simd.level() {
            let tables = Self::look_up_tables(token);
            let [low, high] = Self::look_up(token, same(token, codes), tables);
            return [bf16_pairs::<S>(same(simd, low)), bf16_pairs::<S>(same(simd, high))];
        }
        let (lower, upper) = match EXPONENT {
            4 => upper_halves::<S, E4M3>(codes),
            _ => upper_halves::<S, E5M2>(codes),
        };
        let (low, high) = zip_bytes::<S>(lower, upper);
        [bf16_pairs::<S>(low.bitcast()), bf16_pairs::<S>(high.bitcast())]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Avx512, prelude::*, u8x64, u32x16};

    use super::Float8;

    /// The lower and the upper byte of the BF16 of every code without its sign, two vectors each.
    pub(crate) type Tables = [[__m512i; 2]; 2];

    impl<const EXPONENT: u32> Float8<EXPONENT> {
        const TABLE: [[u8; 128]; 2] = table(EXPONENT);

        /// What [`look_up`](Self::look_up) takes, for registers.
        #[inline(always)]
        pub(crate) fn look_up_tables(token: Avx512) -> Tables {
            [0, 1].map(
                #[inline(always)]
                |byte| {
                    [0, 64].map(
                        #[inline(always)]
                        |at| u8x64::from_slice(token, &Self::TABLE[byte][at..at + 64]).into(),
                    )
                },
            )
        }

        /// Pairs of BF16.
        #[inline(always)]
        pub(crate) fn look_up(
            token: Avx512,
            codes: u8x64<Avx512>,
            tables: Tables,
        ) -> [u32x16<Avx512>; 2] {
            interleaved(token, codes, tables)
        }
    }

    fearless_simd::kernel!(
        #[inline(always)]
        fn interleaved(token: Avx512, codes: u8x64<Avx512>, tables: Tables) -> [u32x16<Avx512>; 2] {
            let (codes, [low, high]): (__m512i, _) = (codes.into(), tables);
            let low = _mm512_permutex2var_epi8(low[0], codes, low[1]);
            let high = _mm512_permutex2var_epi8(high[0], codes, high[1]);
            // high | (codes & 0x80): the lookup leaves the sign out.
            let high = _mm512_ternarylogic_epi32::<0xf8>(high, codes, _mm512_set1_epi8(-128));
            [
                _mm512_unpacklo_epi8(low, high).simd_into(token),
                _mm512_unpackhi_epi8(low, high).simd_into(token),
            ]
        }
    );

    /// The bytes of [`Tables`].
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
}
