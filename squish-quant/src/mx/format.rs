//! The microscaling formats and their fields.

use squish_kernels::element::{E2M1, E2M3, E3M2, E4M3, E5M2, Element};

use super::MX_BLOCK;
use crate::{
    error::{Error, Result},
    granularity::n_elements,
};

/// Which microscaling format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MxFormat {
    /// Elements of four bits, E2M1.
    #[default]
    MxFp4,
    /// Elements of eight bits, E4M3: the finer steps.
    MxFp8E4M3,
    /// Elements of eight bits, E5M2: the wider range.
    MxFp8E5M2,
    /// Elements of six bits, E3M2: the wider range.
    MxFp6E3M2,
    /// Elements of six bits, E2M3: the finer steps.
    MxFp6E2M3,
    /// Integers of eight bits, in units of 1/64.
    MxInt8,
}

impl MxFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [
        Self::MxFp4,
        Self::MxFp8E4M3,
        Self::MxFp8E5M2,
        Self::MxFp6E3M2,
        Self::MxFp6E2M3,
        Self::MxInt8,
    ];

    /// The specification's name, lower case, and that of the element where the format has two.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MxFp4 => "mxfp4",
            Self::MxFp8E4M3 => "mxfp8_e4m3",
            Self::MxFp8E5M2 => "mxfp8_e5m2",
            Self::MxFp6E3M2 => "mxfp6_e3m2",
            Self::MxFp6E2M3 => "mxfp6_e2m3",
            Self::MxInt8 => "mxint8",
        }
    }

    /// Bits of a code.
    #[must_use]
    pub const fn code_bits(self) -> usize {
        match self {
            Self::MxFp4 => 4,
            Self::MxFp6E3M2 | Self::MxFp6E2M3 => 6,
            Self::MxFp8E4M3 | Self::MxFp8E5M2 | Self::MxInt8 => 8,
        }
    }

    /// Largest value of an element that encoding gives: 127/64 for integers, whose code -128 it leaves unused.
    #[must_use]
    pub const fn max(self) -> f32 {
        match self {
            Self::MxFp4 => E2M1::MAX,
            Self::MxFp8E4M3 => E4M3::MAX,
            Self::MxFp8E5M2 => E5M2::MAX,
            Self::MxFp6E3M2 => E3M2::MAX,
            Self::MxFp6E2M3 => E2M3::MAX,
            Self::MxInt8 => 127.0 / 64.0,
        }
    }

    /// Exponent of the largest value, `emax`.
    pub(super) const fn max_exponent(self) -> u8 {
        ((self.max().to_bits() >> 23) - 127) as u8
    }

    /// Bits of the mantissa of the largest value.
    pub(super) const fn mantissa_bits(self) -> u32 {
        match self {
            Self::MxFp4 => 1,
            Self::MxFp8E5M2 | Self::MxFp6E3M2 => 2,
            Self::MxFp8E4M3 | Self::MxFp6E2M3 => 3,
            Self::MxInt8 => 6,
        }
    }

    /// Bytes of the codes of a block.
    pub(crate) const fn block_bytes(self) -> usize {
        MX_BLOCK / 8 * self.code_bits()
    }

    /// Bytes of codes and of scales of a matrix of `shape`.
    pub(crate) fn lengths(self, shape: [usize; 2]) -> Result<[usize; 2]> {
        if !shape[1].is_multiple_of(MX_BLOCK) {
            return Err(Error::BlockAlign { len: shape[1], block: MX_BLOCK });
        }
        let n_blocks = n_elements(shape)? / MX_BLOCK;
        Ok([n_blocks * self.block_bytes(), n_blocks])
    }
}
