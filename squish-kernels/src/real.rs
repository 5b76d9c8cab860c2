//! Storage types of activations and weights, [`Real`]: `f32`, [`bf16`], [`struct@f16`].
//!
//! Kernels compute in `f32` and round once, ties to even, where the result is stored. NaN stays NaN, made quiet, with the
//! upper bits of its payload; what exceeds the largest finite number becomes an infinity.

use fearless_simd::{Simd, prelude::*};
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::{cast, log_sum_exp, rope, rows};

/// A float type that rows are stored in.
pub trait Real:
    Copy
    + Default
    + PartialEq
    + Send
    + Sync
    + sealed::Lanes
    + cast::sealed::Convert
    + log_sum_exp::sealed::LogSumExp
    + rows::sealed::Rows
    + rope::sealed::Rotate
    + 'static
{
    /// Its value, exactly.
    fn to_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
}

pub(crate) mod sealed {
    use super::Simd;

    /// Loads and stores of two vectors of `f32` lanes at a time, as many elements as a vector of 16-bit lanes has.
    pub trait Lanes: Sized {
        fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; 2];
        fn store<S: Simd>(simd: S, lanes: [S::f32s; 2], out: &mut [Self]);
        /// What a load finds after a store.
        fn round<S: Simd>(simd: S, lanes: S::f32s) -> S::f32s;
    }
}

impl Real for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl sealed::Lanes for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; 2] {
        let (low, high) = x.split_at(S::f32s::LEN);
        [S::f32s::from_slice(simd, low), S::f32s::from_slice(simd, high)]
    }

    #[inline(always)]
    fn store<S: Simd>(_: S, [a, b]: [S::f32s; 2], out: &mut [Self]) {
        let (low, high) = out.split_at_mut(S::f32s::LEN);
        a.store_slice(low);
        b.store_slice(high);
    }

    #[inline(always)]
    fn round<S: Simd>(_: S, lanes: S::f32s) -> S::f32s {
        lanes
    }
}

impl Real for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl sealed::Lanes for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; 2] {
        let (low, high) = S::u16s::from_slice(simd, x.reinterpret_cast()).widen();
        [(low << 16).bitcast(), (high << 16).bitcast()]
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, [a, b]: [S::f32s; 2], out: &mut [Self]) {
        let (a, b) = (bf16_bits(simd, a) >> 16, bf16_bits(simd, b) >> 16);
        a.relaxed_narrow(b).store_slice(out.reinterpret_cast_mut());
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, lanes: S::f32s) -> S::f32s {
        (bf16_bits(simd, lanes) & 0xffff_0000).bitcast()
    }
}

/// The values of pairs of `bf16`: those in the lower halves of lanes and those in the upper ones.
#[inline(always)]
pub(crate) fn bf16_pairs<S: Simd>(pairs: S::u32s) -> [S::f32s; 2] {
    [(pairs << 16).bitcast(), (pairs & 0xffff_0000).bitcast()]
}

/// Bits whose upper half is the nearest bf16; the lower half is anything.
#[inline(always)]
fn bf16_bits<S: Simd>(simd: S, x: S::f32s) -> S::u32s {
    let bits = x.bitcast::<S::u32s>();
    let splat = |bits: u32| S::u32s::splat(simd, bits);
    // Half a last place, less where the tie is to go down. A carry into the exponent is right, up to infinity.
    let rounded = bits + ((bits >> 16) & splat(1)) + splat(0x7fff);
    x.simd_ne(x).select(bits | splat(0x0040_0000), rounded)
}

impl Real for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl sealed::Lanes for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; 2] {
        let (low, high) = S::u16s::from_slice(simd, x.reinterpret_cast()).widen();
        [f16_value(simd, low), f16_value(simd, high)]
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, [a, b]: [S::f32s; 2], out: &mut [Self]) {
        let (a, b) = (f16_code(simd, a), f16_code(simd, b));
        a.relaxed_narrow(b).store_slice(out.reinterpret_cast_mut());
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, lanes: S::f32s) -> S::f32s {
        f16_value(simd, f16_code(simd, lanes))
    }
}

/// Exponent and mantissa in their places in an `f32`, times 2^112 for the difference of the biases: exact for subnormals
/// too. Infinity and NaN get the exponent that stays.
#[inline(always)]
fn f16_value<S: Simd>(simd: S, code: S::u32s) -> S::f32s {
    let splat = |bits: u32| S::u32s::splat(simd, bits);
    let moved = (code & splat(0x7fff)) << 13;
    let special = moved.bitcast::<S::i32s>().simd_ge(S::i32s::splat(simd, 0x7c00 << 13));
    let magnitude = special.select(moved | splat(0x7f80_0000), moved);
    let sign = (code & splat(0x8000)) << 16;
    (magnitude | sign).bitcast::<S::f32s>()
        * S::f32s::splat(simd, f32::from_bits((112 + 127) << 23))
}

/// Adds the power of two in whose binade an `f32` has the last place that the `f16` has here, so that the adder rounds.
#[inline(always)]
fn f16_code<S: Simd>(simd: S, x: S::f32s) -> S::u32s {
    let splat = |bits: i32| S::i32s::splat(simd, bits);
    let bits = x.bitcast::<S::i32s>();
    let magnitude = bits & splat(0x7fff_ffff);
    // 2^16 encodes to the code of infinity; what is larger must stay so and in range.
    let clamped = magnitude.min(splat(0x4780_0000));
    // Subnormals of f16 lie in the binade of 2^-14.
    let exponent = (clamped & splat(0x7f80_0000)).max(splat(113 << 23));
    let magic = exponent + splat(13 << 23);
    let sum = clamped.bitcast::<S::f32s>() + magic.bitcast::<S::f32s>();
    let steps = sum.bitcast::<S::i32s>() - magic;
    let code = steps + ((exponent - splat(113 << 23)) >> 13);
    let sign = (bits.bitcast::<S::u32s>() >> 16) & 0x8000;
    let quiet = ((magnitude >> 13) & splat(0x3ff)) | splat(0x7e00);
    let code = magnitude.simd_gt(splat(0x7f80_0000)).select(quiet, code);
    code.bitcast::<S::u32s>() | sign
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::{sealed::Lanes, *};
    use crate::Isa;

    /// Loads and stores of every element of `x`, whose length is a multiple of every pair, on every level.
    fn assert_round_trip<T: Real + std::fmt::Debug>(codes: &[T], bits: fn(T) -> u16, x: &[f32]) {
        for isa in Isa::available() {
            let mut values = vec![0.0; codes.len()];
            let (mut back, mut rounded) = (vec![T::default(); x.len()], vec![0.0; x.len()]);
            dispatch!(isa.token(), simd => convert(simd, codes, &mut values, x, &mut back, &mut rounded));
            for (&code, value) in codes.iter().zip(values) {
                let want = code.to_f32();
                assert!(
                    value == want || value.is_nan() && want.is_nan(),
                    "{isa:?}: {code:?} {value}"
                );
                assert_eq!(value.is_sign_negative(), want.is_sign_negative(), "{isa:?}: {code:?}");
            }
            for ((&x, back), rounded) in x.iter().zip(back).zip(rounded) {
                assert_eq!(
                    bits(back),
                    bits(T::from_f32(x)),
                    "{isa:?}: {x:e} {:#010x}",
                    x.to_bits()
                );
                let want = back.to_f32();
                assert!(rounded == want || rounded.is_nan() && want.is_nan(), "{isa:?}: {x:e}");
            }
        }
    }

    #[inline(always)]
    fn convert<S: Simd, T: Real>(
        simd: S,
        codes: &[T],
        values: &mut [f32],
        x: &[f32],
        back: &mut [T],
        rounded: &mut [f32],
    ) {
        let pair = 2 * S::f32s::LEN;
        for (codes, values) in codes.chunks_exact(pair).zip(values.chunks_exact_mut(pair)) {
            f32::store(simd, T::load(simd, codes), values);
        }
        let outs = back.chunks_exact_mut(pair).zip(rounded.chunks_exact_mut(pair));
        for (x, (back, rounded)) in x.chunks_exact(pair).zip(outs) {
            let lanes = f32::load(simd, x);
            T::store(simd, lanes, back);
            f32::store(simd, lanes.map(|lanes| T::round(simd, lanes)), rounded);
        }
    }

    /// All upper halves with lower halves that make and break ties of either type.
    fn boundaries() -> Vec<f32> {
        let lows = [0_u32, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0xffff];
        let bits = lows
            .into_iter()
            .flat_map(|low| (0..=u16::MAX).map(move |high| u32::from(high) << 16 | low));
        bits.map(f32::from_bits).collect()
    }

    #[test]
    fn bf16_lanes_convert_as_the_half_crate_does() {
        let codes: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        assert_round_trip(&codes, bf16::to_bits, &boundaries());
    }

    #[test]
    fn f16_lanes_convert_as_the_half_crate_does() {
        let codes: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        // 13 bits are rounded away, so that every pattern of the three above the lower half's ties occurs.
        assert_round_trip(&codes, f16::to_bits, &boundaries());
    }
}
