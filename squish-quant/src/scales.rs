//! Scales as checkpoints hold them: bytes of several float types.
//!
//! | [`ScaleBytes`] | bytes each, little-endian | written as |
//! |---|---|---|
//! | `Bf16` | 2 | [`ScaleType::Bf16`] |
//! | `F16` | 2 | [`ScaleType::F16`] |
//! | `F32` | 4 | [`ScaleType::F32`] |
//! | `E8M0` | 1, a power of two | — |

use half::{bf16, f16};
use squish_kernels::element::E8M0;

use crate::error::{Error, Result};

/// Scales as little-endian bytes of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub enum ScaleBytes<'a> {
    /// Two bytes each.
    Bf16(&'a [u8]),
    /// Two bytes each.
    F16(&'a [u8]),
    /// Four bytes each.
    F32(&'a [u8]),
    /// One byte each, powers of two.
    E8M0(&'a [u8]),
}

/// Type of the scales in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// That of most checkpoints.
    #[default]
    Bf16,
    /// Half precision.
    F16,
    /// Not rounded.
    F32,
}

impl ScaleType {
    /// The nearest number that the type has, ties to even.
    #[must_use]
    pub fn round(self, scale: f32) -> f32 {
        match self {
            Self::Bf16 => bf16::from_f32(scale).to_f32(),
            Self::F16 => f16::from_f32(scale).to_f32(),
            Self::F32 => scale,
        }
    }

    /// The bytes of `scales`, each rounded to nearest, ties to even.
    #[must_use]
    pub fn write(self, scales: &[f32]) -> Vec<u8> {
        let scales = scales.iter().copied();
        match self {
            Self::Bf16 => scales.flat_map(|scale| bf16::from_f32(scale).to_le_bytes()).collect(),
            Self::F16 => scales.flat_map(|scale| f16::from_f32(scale).to_le_bytes()).collect(),
            Self::F32 => scales.flat_map(f32::to_le_bytes).collect(),
        }
    }

    /// `bytes` as scales of this type.
    #[must_use]
    pub const fn bytes(self, bytes: &[u8]) -> ScaleBytes<'_> {
        match self {
            Self::Bf16 => ScaleBytes::Bf16(bytes),
            Self::F16 => ScaleBytes::F16(bytes),
            Self::F32 => ScaleBytes::F32(bytes),
        }
    }
}

impl ScaleBytes<'_> {
    /// The `n` scales, or an error before anything is allocated if the bytes are fewer or more.
    pub(crate) fn to_f32(self, n: usize) -> Result<Vec<f32>> {
        match self {
            Self::Bf16(bytes) => read(bytes, n, |x| bf16::from_le_bytes(x).to_f32()),
            Self::F16(bytes) => read(bytes, n, |x| f16::from_le_bytes(x).to_f32()),
            Self::F32(bytes) => read(bytes, n, f32::from_le_bytes),
            Self::E8M0(bytes) => read(bytes, n, |[x]| E8M0::from_bits(x).to_f32()),
        }
    }
}

fn read<const WIDTH: usize>(
    bytes: &[u8],
    n: usize,
    scale: impl Fn([u8; WIDTH]) -> f32,
) -> Result<Vec<f32>> {
    // No slice has `usize::MAX` bytes.
    Error::check_length("bytes of the scales", n.saturating_mul(WIDTH), bytes.len())?;
    Ok(bytes.as_chunks().0.iter().map(|&x| scale(x)).collect())
}
