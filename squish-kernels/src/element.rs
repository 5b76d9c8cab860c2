//! The 8-, 6- and 4-bit floating-point formats of OCP FP8 and OCP MX, one code per byte.
//!
//! A finite value is `(-1)^s · 2^(max(e, 1) - bias) · (m / 2^M + [e > 0])` for the fields sign `s`, exponent `e` and
//! mantissa `m` of `M` bits. Codes of fewer than 8 bits lie in the low bits of their byte; the bits above are ignored
//! by decoding and zero after encoding.
//!
//! | type | s/e/m | bias | largest | smallest normal | smallest | NaN | infinity |
//! |---|---|---|---|---|---|---|---|
//! | [`E4M3`] | 1/4/3 | 7 | 448 | 2^-6 | 2^-9 | `0x7f`, `0xff` | none |
//! | [`E5M2`] | 1/5/2 | 15 | 57344 | 2^-14 | 2^-16 | `0x7d..=0x7f`, `0xfd..=0xff` | `0x7c`, `0xfc` |
//! | [`E3M2`] | 1/3/2 | 3 | 28 | 0.25 | 0.0625 | none | none |
//! | [`E2M3`] | 1/2/3 | 1 | 7.5 | 1 | 0.125 | none | none |
//! | [`E2M1`] | 1/2/1 | 1 | 6 | 1 | 0.5 | none | none |
//! | [`E8M0`] | 0/8/0 | 127 | 2^127 | 2^-127 | 2^-127 | `0xff` | none, no zero |
//!
//! Encoding rounds to nearest, ties to the even code. What lies beyond the largest value, infinities included, follows
//! [`Overflow`]. NaN keeps its sign and becomes `0x7f` in the formats that have a NaN; in the others it becomes the zero
//! of the opposite sign, as in ml_dtypes. Decoding a NaN gives the quiet NaN `0x7fc0_0000` with the code's sign.
//!
//! Source: OCP 8-bit Floating Point Specification (OFP8) 1.0, sections 5.1 to 5.3; OCP Microscaling Formats (MX) 1.0,
//! section 5.3.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use crate::{
    Isa,
    cast::{self, Runs},
    stream::Stores,
};

/// What encoding makes of values beyond the largest finite one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The largest finite value, for infinities too.
    #[default]
    Saturate,
    /// Infinity where the format has one, else NaN where it has one, else the largest finite value. Values that round
    /// to the largest one do not overflow.
    Ieee,
}

/// A format with sign, exponent and mantissa in at most 8 bits.
pub trait Element: sealed::Format + Pod + Eq + fmt::Debug + Send + Sync {
    /// Name in the specification's spelling, lower case: `e4m3`.
    const NAME: &'static str;
    /// Bits of a code, the sign included.
    const BITS: u32;
    /// Largest finite value.
    const MAX: f32;
    /// Exponent of the largest finite value: `floor(log2(MAX))`.
    const MAX_EXPONENT: i32;

    /// The element with this code.
    #[must_use]
    fn from_bits(bits: u8) -> Self;

    /// The code.
    #[must_use]
    fn to_bits(self) -> u8;

    /// The nearest element, ties to the even code.
    #[must_use]
    fn from_f32(x: f32, overflow: Overflow) -> Self {
        Self::from_bits(encode_scalar::<Self>(x, overflow) as u8)
    }

    /// The value, exactly.
    #[must_use]
    fn to_f32(self) -> f32 {
        decode_scalar::<Self>(u32::from(self.to_bits()))
    }

    /// Whether the code is a NaN.
    #[must_use]
    fn is_nan(self) -> bool {
        self.to_f32().is_nan()
    }
}

/// The fields of a format as the kernels use them. Sealed: kernels rely on the values being right.
pub(crate) mod sealed {
    use super::Overflow;
    #[cfg(doc)]
    use crate::cast;
    use crate::{Isa, cast::Runs, stream::Stores};

    /// The fields of a binary format of at most 16 bits.
    pub trait Format: Copy + 'static {
        /// Bits of the mantissa.
        const MANTISSA_BITS: u32;
        /// Bits of a code, the sign included.
        const CODE_BITS: u32;
        /// Exponent bias.
        const BIAS: i32;
        /// Code of the largest finite value.
        const MAX_CODE: u32;
        /// Code that overflow gives under `Overflow::Ieee`.
        const OVERFLOW_CODE: u32;
        /// Code of a NaN, if there is one.
        const NAN_CODE: Option<u32>;
        /// Code of infinity, if there is one.
        const INFINITY_CODE: Option<u32>;
        /// The sign bit.
        const SIGN: u32 = 1 << (Self::CODE_BITS - 1);

        /// [`cast::encode_runs`] for this format.
        fn encode_runs(
            isa: Isa,
            stores: Stores,
            x: &[f32],
            runs: Runs<'_>,
            out: &mut [u8],
            overflow: Overflow,
        );
        /// [`cast::decode_runs`] for this format.
        fn decode_runs(isa: Isa, stores: Stores, codes: &[u8], runs: Runs<'_>, out: &mut [f32]);
    }
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $spelling:literal, $bits:literal, mantissa $mantissa:literal, bias $bias:literal,
     max $max:literal = $max_code:literal, exponent $max_exponent:literal, overflow $overflow:expr, nan $nan:expr, infinity $infinity:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u8);

        // SAFETY: A transparent wrapper of `u8`, of which all bit patterns are values, zero included.
        unsafe impl Zeroable for $name {}
        // SAFETY: As above; one byte has no padding.
        unsafe impl Pod for $name {}

        impl sealed::Format for $name {
            const MANTISSA_BITS: u32 = $mantissa;
            const CODE_BITS: u32 = $bits;
            const BIAS: i32 = $bias;
            const MAX_CODE: u32 = $max_code;
            const OVERFLOW_CODE: u32 = $overflow;
            const NAN_CODE: Option<u32> = $nan;
            const INFINITY_CODE: Option<u32> = $infinity;

            fn encode_runs(isa: Isa, stores: Stores, x: &[f32], runs: Runs<'_>, out: &mut [u8], overflow: Overflow) {
                cast::encode_runs::<Self>(isa, stores, x, runs, out, overflow);
            }

            fn decode_runs(isa: Isa, stores: Stores, codes: &[u8], runs: Runs<'_>, out: &mut [f32]) {
                cast::decode_runs::<Self>(isa, stores, codes, runs, out);
            }
        }

        impl Element for $name {
            const NAME: &'static str = $spelling;
            const BITS: u32 = $bits;
            const MAX: f32 = $max;
            const MAX_EXPONENT: i32 = $max_exponent;

            #[inline]
            fn from_bits(bits: u8) -> Self {
                Self(bits)
            }

            #[inline]
            fn to_bits(self) -> u8 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#04x} = {})", $spelling, self.0, self.to_f32())
            }
        }
    };
}

element! {
    /// FP8 of the FN kind, for weights and activations: no infinity, one NaN per sign.
    E4M3, "e4m3", 8, mantissa 3, bias 7, max 448.0 = 0x7e, exponent 8, overflow 0x7f, nan Some(0x7f), infinity None
}
element! {
    /// FP8 with the range of half precision, for gradients and KV caches.
    E5M2, "e5m2", 8, mantissa 2, bias 15, max 57344.0 = 0x7b, exponent 15, overflow 0x7c, nan Some(0x7f), infinity Some(0x7c)
}
element! {
    /// FP6 with the wider range.
    E3M2, "e3m2", 6, mantissa 2, bias 3, max 28.0 = 0x1f, exponent 4, overflow 0x1f, nan None, infinity None
}
element! {
    /// FP6 with the finer steps.
    E2M3, "e2m3", 6, mantissa 3, bias 1, max 7.5 = 0x1f, exponent 2, overflow 0x1f, nan None, infinity None
}
element! {
    /// FP4, the element of MXFP4 and NVFP4.
    E2M1, "e2m1", 4, mantissa 1, bias 1, max 6.0 = 0x07, exponent 2, overflow 0x07, nan None, infinity None
}

/// A power of two: the block scale of the MX formats.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct E8M0(u8);

// SAFETY: A transparent wrapper of `u8`, of which all bit patterns are values, zero included.
unsafe impl Zeroable for E8M0 {}
// SAFETY: As above; one byte has no padding.
unsafe impl Pod for E8M0 {}

impl E8M0 {
    /// The code of NaN.
    pub const NAN: Self = Self(0xff);

    /// The scale with this code: `2^(bits - 127)`, NaN for `0xff`.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The code.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// The power of two nearest to `x`, ties upwards; what is below 2^-127, zero included, becomes 2^-127.
    ///
    /// NaN, infinities and negative numbers become NaN. Values that round to 2^128 follow `overflow`: 2^127 or NaN.
    /// Block scales of the MX formats are not made with this, but with the rule that the codec names.
    #[must_use]
    pub fn from_f32(x: f32, overflow: Overflow) -> Self {
        if x.is_nan() || x.is_infinite() || x < 0.0 {
            return Self::NAN;
        }
        // Half a binade above a normal power of two carries into the exponent field. Subnormals have no implied one:
        // the middle between 2^-127 (bit 22) and 2^-126 (bit 23) has bits 22 and 21 set.
        let bits = x.to_bits() & 0x7fff_ffff;
        let code = if bits < 0x0080_0000 {
            u32::from(bits >= 0x0060_0000)
        } else {
            (bits + 0x0040_0000) >> 23
        };
        match overflow {
            Overflow::Saturate => Self(code.min(0xfe) as u8),
            Overflow::Ieee => Self(code as u8),
        }
    }

    /// The value, exactly; 2^-127 is an `f32` subnormal.
    #[inline]
    #[must_use]
    pub const fn to_f32(self) -> f32 {
        // Without branches, so that slices of scales convert in vectors. The exponent fields 0 and 255 need the upper
        // bit of the mantissa: as the subnormal 2^-127, and as the quiet NaN.
        let is_edge = (self.0 == 0) as u32 | (self.0 == 0xff) as u32;
        f32::from_bits((self.0 as u32) << 23 | is_edge << 22)
    }

    /// Whether the code is NaN.
    #[must_use]
    pub const fn is_nan(self) -> bool {
        self.0 == Self::NAN.0
    }
}

impl fmt::Debug for E8M0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e8m0({:#04x} = {:e})", self.0, self.to_f32())
    }
}

/// The definition of encoding: the multiple of the binade's step that is nearest to `|x|`, counted in codes.
///
/// With `e = max(exponent(x), emin)` the step is `2^(e - M)`, and codes ascend by one per step through subnormals,
/// normals and across binades, so `code = (e - emin) · 2^M + round(|x| / step)`.
pub(crate) fn encode_scalar<F: sealed::Format>(x: f32, overflow: Overflow) -> u32 {
    let sign = if x.is_sign_negative() { F::SIGN } else { 0 };
    if x.is_nan() {
        return F::NAN_CODE.map_or(sign ^ F::SIGN, |code| code | sign);
    }
    let magnitude = f64::from(x.abs());
    let smallest_exponent = 1 - F::BIAS;
    let exponent = exponent_of(magnitude).max(smallest_exponent);
    let steps = (magnitude / 2f64.powi(exponent - F::MANTISSA_BITS as i32)).round_ties_even();
    let code = if magnitude > 65536.0 {
        u32::MAX // No format of this module reaches so far, and the count of steps need not fit.
    } else {
        (((exponent - smallest_exponent) as u32) << F::MANTISSA_BITS) + steps as u32
    };
    let code = match overflow {
        Overflow::Saturate => code.min(F::MAX_CODE),
        Overflow::Ieee if code > F::MAX_CODE => F::OVERFLOW_CODE,
        Overflow::Ieee => code,
    };
    code | sign
}

/// The definition of decoding.
pub(crate) fn decode_scalar<F: sealed::Format>(code: u32) -> f32 {
    let sign = if code & F::SIGN == 0 { 1.0 } else { -1.0 };
    let magnitude = code & (F::SIGN - 1);
    if F::INFINITY_CODE == Some(magnitude) {
        return sign * f32::INFINITY;
    }
    if F::NAN_CODE.is_some() && magnitude > F::MAX_CODE {
        return f32::from_bits(0x7fc0_0000).copysign(sign);
    }
    let (exponent, mantissa) =
        (magnitude >> F::MANTISSA_BITS, magnitude & ((1 << F::MANTISSA_BITS) - 1));
    let implied_one = u32::from(exponent > 0) << F::MANTISSA_BITS;
    let power = (exponent.max(1) as i32) - F::BIAS - F::MANTISSA_BITS as i32;
    sign * (mantissa + implied_one) as f32 * 2f32.powi(power)
}

/// `floor(log2(x))` from the exponent field; zero and `f64` subnormals count as the smallest normal.
fn exponent_of(x: f64) -> i32 {
    ((x.to_bits() >> 52) as i32 & 0x7ff).max(1) - 1023
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's formula on a code's fields, as text of the format tells them.
    fn by_definition<E: Element>(code: u8) -> f64 {
        let (mantissa_bits, bias) = (E::MANTISSA_BITS, f64::from(E::BIAS));
        let code = u32::from(code);
        let sign = if code >> (E::BITS - 1) & 1 == 1 { -1.0 } else { 1.0 };
        let exponent =
            f64::from(code >> mantissa_bits & ((1 << (E::BITS - 1 - mantissa_bits)) - 1));
        let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
        let magnitude = if exponent == 0.0 {
            2f64.powf(1.0 - bias) * fraction
        } else {
            2f64.powf(exponent - bias) * (1.0 + fraction)
        };
        match (E::NAME, code & 0x7f) {
            ("e4m3", 0x7f) | ("e5m2", 0x7d..) => f64::NAN,
            ("e5m2", 0x7c) => sign * f64::INFINITY,
            _ => sign * magnitude,
        }
    }

    fn all_codes_decode_to_their_definition<E: Element>() {
        for code in 0..=u8::MAX >> (8 - E::BITS) {
            let (got, want) = (f64::from(E::from_bits(code).to_f32()), by_definition::<E>(code));
            assert!(
                got == want && got.is_sign_negative() == want.is_sign_negative()
                    || got.is_nan() && want.is_nan(),
                "{} {code:#04x}: {got} {want}",
                E::NAME
            );
        }
        assert_eq!(E::MAX.log2().floor() as i32, E::MAX_EXPONENT);
        assert_eq!(E::from_bits(E::MAX_CODE as u8).to_f32(), E::MAX);
    }

    #[test]
    fn all_codes_of_every_format_decode_to_their_definition() {
        all_codes_decode_to_their_definition::<E4M3>();
        all_codes_decode_to_their_definition::<E5M2>();
        all_codes_decode_to_their_definition::<E3M2>();
        all_codes_decode_to_their_definition::<E2M3>();
        all_codes_decode_to_their_definition::<E2M1>();
    }

    #[test]
    fn e8m0_is_the_nearest_power_of_two() {
        for code in 0..=254u8 {
            let x = E8M0::from_bits(code).to_f32();
            assert_eq!(f64::from(x), 2f64.powi(i32::from(code) - 127));
            assert_eq!(E8M0::from_f32(x, Overflow::Saturate).to_bits(), code);
            assert_eq!(
                E8M0::from_f32(x * 1.5, Overflow::Saturate).to_bits(),
                (code + 1).min(254),
                "tie above {x:e}"
            );
            assert_eq!(
                E8M0::from_f32((x * 1.5).next_down(), Overflow::Ieee).to_bits(),
                code,
                "below the tie above {x:e}"
            );
        }
        assert_eq!(E8M0::from_f32(0.0, Overflow::Saturate).to_bits(), 0);
        assert_eq!(E8M0::from_f32(f32::MAX, Overflow::Ieee), E8M0::NAN);
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            assert!(E8M0::from_f32(bad, Overflow::Saturate).is_nan());
        }
        assert!(E8M0::NAN.to_f32().is_nan());
    }
}
