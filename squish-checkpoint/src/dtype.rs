//! Element types of the safetensors format: their spelling, width and alignment.
//!
//! | spelling | bits | alignment | elements |
//! |---|---|---|---|
//! | `U64` `I64` `F64` | 64 | 8 | integers and IEEE 754 binary64 |
//! | `C64` | 64 | 4 | complex, two binary32 |
//! | `F32` `U32` `I32` | 32 | 4 | binary32 and integers |
//! | `BF16` `F16` `U16` `I16` | 16 | 2 | bfloat16, binary16, integers |
//! | `F8_E5M2FNUZ` `F8_E4M3FNUZ` | 8 | 1 | FP8 with one NaN and no negative zero (arXiv:2206.02915) |
//! | `F8_E8M0` | 8 | 1 | power-of-two scale of the OCP MX specification |
//! | `F8_E4M3` `F8_E5M2` | 8 | 1 | FP8 (arXiv:2209.05433) |
//! | `I8` `U8` `BOOL` | 8 | 1 | integers; a truth value per byte |
//! | `F6_E3M2` `F6_E2M3` | 6 | 1 | FP6 of the OCP MX specification |
//! | `F4` | 4 | 1 | FP4 (E2M1) of the OCP MX specification |
//!
//! Source: the safetensors format, as the `safetensors` crate 0.8 reads and writes it. The variants below stand in that
//! crate's order, because its writer sorts tensors by it.

use std::fmt;

/// The type of a tensor's elements.
///
/// `Ord` is the order of the official library, roughly that of width; its writer, and ours, lay out tensors in
/// descending order so that each starts aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// A truth value in one byte, 0 or 1.
    Bool,
    /// FP4 (E2M1), two elements per byte.
    F4,
    /// FP6 with 2 exponent bits, four elements in three bytes.
    F6E2M3,
    /// FP6 with 3 exponent bits, four elements in three bytes.
    F6E3M2,
    /// Unsigned 8-bit integer; also what most tools give to packed bytes of smaller types.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// FP8 with 5 exponent bits, with infinities.
    F8E5M2,
    /// FP8 with 4 exponent bits, without infinities ("fn").
    F8E4M3,
    /// An exponent without sign and fraction: the scale of an MX block.
    F8E8M0,
    /// E4M3 with bias 8, one NaN, no negative zero.
    F8E4M3Fnuz,
    /// E5M2 with bias 16, one NaN, no negative zero.
    F8E5M2Fnuz,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE 754 binary32.
    F32,
    /// Complex number of two binary32.
    C64,
    /// IEEE 754 binary64.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

impl Dtype {
    /// All types, in ascending order.
    pub const ALL: [Self; 22] = [
        Self::Bool,
        Self::F4,
        Self::F6E2M3,
        Self::F6E3M2,
        Self::U8,
        Self::I8,
        Self::F8E5M2,
        Self::F8E4M3,
        Self::F8E8M0,
        Self::F8E4M3Fnuz,
        Self::F8E5M2Fnuz,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::C64,
        Self::F64,
        Self::I64,
        Self::U64,
    ];

    /// Width of an element in bits.
    pub const fn bits(self) -> usize {
        match self {
            Self::F4 => 4,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::Bool
            | Self::U8
            | Self::I8
            | Self::F8E5M2
            | Self::F8E4M3
            | Self::F8E8M0
            | Self::F8E4M3Fnuz
            | Self::F8E5M2Fnuz => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 64,
        }
    }

    /// Width in bytes of the number that is stored in little-endian order: of an element, or of either part of a `C64`;
    /// 1 for elements that share a byte.
    pub const fn alignment(self) -> usize {
        match self {
            Self::C64 => 4,
            other => other.bits().div_ceil(8),
        }
    }

    /// The spelling in a safetensors header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::F4 => "F4",
            Self::F6E2M3 => "F6_E2M3",
            Self::F6E3M2 => "F6_E3M2",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E8M0 => "F8_E8M0",
            Self::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Self::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::C64 => "C64",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
        }
    }

    /// The type that a safetensors header spells `name`; case matters.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_holds_every_type_once_in_ascending_order() {
        assert!(Dtype::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Dtype::ALL.last(), Some(&Dtype::U64));
    }

    #[test]
    fn spelling_reads_back_and_nothing_else_does() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            assert_eq!(Dtype::from_name(&dtype.name().to_lowercase()), None);
            assert_eq!(format!("{dtype:>12}").trim_start(), dtype.name());
        }
        for bad in ["", "F8", "F8_E4M3FN", "bf16", "F32 "] {
            assert_eq!(Dtype::from_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn descending_order_never_grows_the_alignment_a_type_needs() {
        // What makes tensors laid out in descending order start aligned, C64 (parts of 4 bytes) included.
        assert!(Dtype::ALL.windows(2).all(|pair| pair[0].alignment() <= pair[1].alignment()));
        assert_eq!(Dtype::C64.alignment(), 4);
        assert_eq!(Dtype::F4.alignment(), 1);
    }
}
