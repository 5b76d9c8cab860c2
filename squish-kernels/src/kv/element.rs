//! How keys and values are stored.

use half::slice::HalfFloatSliceExt;

use super::{E4M3, E5M2, bf16, f16, load::MOST_PARTS};
use crate::{attention::CHAINS, element::Element};

/// A number of a cache of keys and values: `f32`, `bf16`, `f16`, `i8`, `E4M3` or `E5M2`.
pub trait KvElement:
    Copy + Default + Send + Sync + sealed::Load + sealed::Convert + sealed::Attend + 'static
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

    /// The same, to be filled: any bytes are numbers.
    #[doc(hidden)]
    fn as_bytes_mut(x: &mut [Self]) -> &mut [u8];

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

pub(crate) mod sealed {
    use fearless_simd::Simd;

    use super::MOST_PARTS;
    use crate::{
        Isa,
        attention::{Queries, States, TILE, Tile},
        element::Overflow,
    };

    /// What [`load`](super::super::load) does.
    pub trait Load: Sized {
        /// Vectors that a load gives, a divisor of [`MOST_PARTS`]. Of narrow numbers they are not consecutive ones, but those that
        /// instructions bring forth at once: see [`place`](super::KvElement::place).
        const PARTS: usize;

        /// The values of [`PARTS`](Self::PARTS) times as many elements as a vector has lanes; vectors beyond these mean nothing.
        fn load<S: Simd>(simd: S, x: &[Self]) -> [S::f32s; MOST_PARTS];
    }

    /// Kernels over rows, which [`rows`](super::super::rows) calls.
    pub trait Convert: Sized {
        /// The nearest code of each number, divided by `scale` if the type has scales.
        fn encode(isa: Isa, x: &[f32], scale: f32, overflow: Overflow, out: &mut [Self]);
        /// The values of rows of `width`, times their scales.
        fn decode(isa: Isa, x: &[Self], width: usize, scales: Option<&[f32]>, out: &mut [f32]);
    }

    /// The kernels of [`attention`](crate::attention).
    pub trait Attend: Sized {
        fn attend(
            isa: Isa,
            tile: &Tile<'_, Self>,
            queries: &Queries<'_>,
            states: &mut States<'_>,
            scores: &mut [[f32; TILE]],
        );
        fn scores_into(
            isa: Isa,
            tile: &Tile<'_, Self>,
            queries: &Queries<'_>,
            scores: &mut [[f32; TILE]],
        );
    }
}

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

    fn as_bytes_mut(x: &mut [Self]) -> &mut [u8] {
        bytemuck::cast_slice_mut(x)
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

    fn as_bytes_mut(x: &mut [Self]) -> &mut [u8] {
        bytemuck::cast_slice_mut(x.reinterpret_cast_mut())
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

    fn as_bytes_mut(x: &mut [Self]) -> &mut [u8] {
        bytemuck::cast_slice_mut(x.reinterpret_cast_mut())
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

    fn as_bytes_mut(x: &mut [Self]) -> &mut [u8] {
        bytemuck::cast_slice_mut(x)
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

    fn as_bytes_mut(x: &mut [Self]) -> &mut [u8] {
        bytemuck::cast_slice_mut(x)
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

    fn as_bytes_mut(x: &mut [Self]) -> &mut [u8] {
        bytemuck::cast_slice_mut(x)
    }
}
