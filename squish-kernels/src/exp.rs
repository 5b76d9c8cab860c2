//! `e^x` of a slice: [`exp_in_place`], [`exp_into`].
//!
//! ```text
//! n = round(x / ln 2)                     by adding 1.5 · 2^23, whose last place is 1
//! r = x − n · ln 2                        |r| ≤ ln 2 / 2; ln 2 in two parts, the first short enough that n · part is exact
//! e^x = 2^n · (1 + r + r² · q(r))         q of degree 4, relative error 3e-9
//! ```
//!
//! (W. J. Cody, W. Waite: Software Manual for the Elementary Functions, 1980, chapter 6.) `2^n` is applied as two normal
//! factors, so that results that are subnormal are rounded once and the others not at all.
//!
//! Softmax and its kin know that the argument is not large and want no subnormal results, and so use a shorter form
//! in base 2, `2^(d · log2 e)`. A sum of many needs fewer digits still: with AVX-512 a table in a register leaves a polynomial of degree 2.

#[cfg(target_arch = "x86_64")]
use fearless_simd::Level;
use fearless_simd::{Simd, prelude::*};

#[cfg(target_arch = "x86_64")]
use crate::bytes::same;
use crate::{
    Isa,
    isa::dispatch,
    lanes::{map_in_place, map_into},
};

/// `e^x` of each element, in place, within 1.01 ULP: the largest error over all floats.
///
/// The whole range: results below the smallest subnormal round to 0, those beyond the largest float are +∞, NaN stays NaN.
///
/// # Examples
///
/// ```
/// let mut x = [0.0, 1.0, f32::NEG_INFINITY, 1000.0];
/// squish_kernels::exp_in_place(&mut x);
/// assert_eq!(x, [1.0, std::f32::consts::E, 0.0, f32::INFINITY]);
/// ```
pub fn exp_in_place(x: &mut [f32]) {
    exp_in_place_with(Isa::detect(), x);
}

/// [`exp_in_place`] into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn exp_into(x: &[f32], out: &mut [f32]) {
    exp_into_with(Isa::detect(), x, out);
}

#[doc(hidden)]
pub fn exp_in_place_with(isa: Isa, x: &mut [f32]) {
    dispatch!(isa.token(), simd => {
        map_in_place::<_, _, 4>(simd, x, 0.0, (), #[inline(always)] |(), x| exp_lanes(simd, x));
    });
}

#[doc(hidden)]
pub fn exp_into_with(isa: Isa, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "exp: lengths differ");
    dispatch!(isa.token(), simd => {
        map_into::<_, _, 4>(simd, x, out, 0.0, (), #[inline(always)] |(), x| exp_lanes(simd, x));
    });
}

/// 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// ln(2^-126).
const LOWEST_NORMAL: f32 = -87.336_5;

/// `e^x` over the whole range.
#[inline(always)]
pub(crate) fn exp_lanes<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    exp_sum_lanes(simd, x, None)
}

/// `e^(x + low)` for a `low` that is small beside 1: an argument with more digits than a float has.
#[inline(always)]
pub(crate) fn exp_sum_lanes<S: Simd>(simd: S, x: S::f32s, low: Option<S::f32s>) -> S::f32s {
    // Beyond these the result is 0 and infinite. Comparisons with a NaN are false, so that it goes on.
    const LOWEST: f32 = -104.0;
    const HIGHEST: f32 = 89.0;
    const LN_2_HIGH: f32 = 0.693_359_375; // 355 / 512
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let splat = |value: f32| S::f32s::splat(simd, value);
    let integers = |value: i32| S::i32s::splat(simd, value);

    let x = x.simd_lt(splat(LOWEST)).select(splat(LOWEST), x);
    let x = x.simd_gt(splat(HIGHEST)).select(splat(HIGHEST), x);
    let shifted = x.mul_add(splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = shifted - splat(ROUND);
    let r = n.mul_add(splat(-LN_2_HIGH), x);
    let r = n.mul_add(splat(-LN_2_LOW), r);
    let r = low.map_or(
        r,
        #[inline(always)]
        |low| r + low,
    );
    let q = splat(1.381_454e-3);
    let q = q.mul_add(r, splat(8.368_745e-3));
    let q = q.mul_add(r, splat(4.166_839e-2));
    let q = q.mul_add(r, splat(0.166_665_21));
    let q = q.mul_add(r, splat(0.499_999_94));
    let p = q.mul_add(r * r, r) + splat(1.0);

    let n = shifted.bitcast::<S::i32s>() - integers(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: S::i32s| ((n + integers(127)) << 23).bitcast::<S::f32s>();
    p * power(half) * power(n - half)
}

/// `e^d` for `d` at most 88, and 0 where that would be less than the smallest normal number.
///
/// The relative error is below `(2 + |d|) · 2^-23`, of which the subtraction that made `d` may cost as much. NaN gives
/// NaN; anything larger than the maximum gives any value.
///
/// Where two units multiply and two others add, as on Zen, the former are the limit. Hence the exponent is found by
/// additions alone.
#[inline(always)]
pub(crate) fn exp_normal_lanes<S: Simd>(simd: S, d: S::f32s) -> S::f32s {
    // The exponent bias is added in the same step.
    const ROUND_BIASED: f32 = ROUND + 127.0;
    let splat = |value: f32| S::f32s::splat(simd, value);

    let t = d * splat(std::f32::consts::LOG2_E);
    let shifted = t + splat(ROUND_BIASED);
    let f = t - (shifted - splat(ROUND_BIASED));
    // 2^f on [-1/2, 1/2], relative error 9e-8.
    let p = splat(1.326_469_9e-3);
    let p = p.mul_add(f, splat(9.671_533_5e-3));
    let p = p.mul_add(f, splat(5.550_734e-2));
    let p = p.mul_add(f, splat(0.240_222_42));
    let p = p.mul_add(f, splat(0.693_147_003_65));
    let p = p.mul_add(f, splat(1.0));
    let power = (shifted.bitcast::<S::u32s>() << 23).bitcast::<S::f32s>();
    d.simd_lt(splat(LOWEST_NORMAL)).select(splat(0.0), p * power)
}

/// `sum + e^d` for `d` as [`exp_normal_lanes`] takes it.
///
/// The relative error of `e^d` is below `2^-21 + |d| · 2^-23`; that of `e^0` is 0.
#[inline(always)]
pub(crate) fn add_exp_lanes<S: Simd>(simd: S, sum: S::f32s, d: S::f32s) -> S::f32s {
    #[cfg(target_arch = "x86_64")]
    if let Level::Avx512(token) = simd.level() {
        return same(simd, x86::add_exp(token, same(token, sum), same(token, d)));
    }
    sum + exp_normal_lanes(simd, d)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Avx512, f32x16, kernel, prelude::*};

    /// 1.5 · 2^19: the last place of a sum with it is 1/16.
    const ROUND: f32 = 786_432.0;
    /// Bits from a sixteenth in the sum to its place in an exponent and the four highest bits of a mantissa.
    const SHIFT: u32 = 19;

    /// The bits of `2^(i/16)`, less `i` at its place in the mantissa: the bits of the sum are added as they are.
    const POWERS: [i32; 16] = [
        0x3f80_0000 - (0 << SHIFT),
        0x3f85_aac3 - (1 << SHIFT),
        0x3f8b_95c2 - (2 << SHIFT),
        0x3f91_c3d3 - (3 << SHIFT),
        0x3f98_37f0 - (4 << SHIFT),
        0x3f9e_f532 - (5 << SHIFT),
        0x3fa5_fed7 - (6 << SHIFT),
        0x3fad_583f - (7 << SHIFT),
        0x3fb5_04f3 - (8 << SHIFT),
        0x3fbd_08a4 - (9 << SHIFT),
        0x3fc5_672a - (10 << SHIFT),
        0x3fce_248c - (11 << SHIFT),
        0x3fd7_44fd - (12 << SHIFT),
        0x3fe0_ccdf - (13 << SHIFT),
        0x3fea_c0c7 - (14 << SHIFT),
        0x3ff5_257d - (15 << SHIFT),
    ];

    kernel!(
        /// `d · log2 e` is rounded to sixteenths, of which the exponent and the table take care; 2^r for the rest has the relative error
        /// 4.3e-7 on [-1/32, 1/32], and none at 0.
        #[inline(always)]
        pub(super) fn add_exp(
            token: Avx512,
            sum: f32x16<Avx512>,
            d: f32x16<Avx512>,
        ) -> f32x16<Avx512> {
            let (sum, d): (__m512, __m512) = (sum.into(), d.into());
            let log2_e = _mm512_set1_ps(std::f32::consts::LOG2_E);
            let round = _mm512_set1_ps(ROUND);
            let shifted = _mm512_fmadd_ps(d, log2_e, round);
            let r = _mm512_fmsub_ps(d, log2_e, _mm512_sub_ps(shifted, round));
            let shifted = _mm512_castps_si512(shifted);
            let power = _mm512_permutexvar_epi32(shifted, bytemuck::cast(POWERS));
            let power = _mm512_add_epi32(power, _mm512_slli_epi32::<SHIFT>(shifted));
            let p = _mm512_fmadd_ps(r, _mm512_set1_ps(0.240_228_63), _mm512_set1_ps(0.693_187_8));
            let p = _mm512_fmadd_ps(r, p, _mm512_set1_ps(1.0));
            // True of a NaN.
            let counts = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(d, _mm512_set1_ps(super::LOWEST_NORMAL));
            _mm512_mask3_fmadd_ps(p, _mm512_castsi512_ps(power), sum, counts).simd_into(token)
        }
    );
}
