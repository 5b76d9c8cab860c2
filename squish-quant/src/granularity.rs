//! Which elements of a matrix share a scale.
//!
//! For a matrix of shape `[rows, cols]`, row-major:
//!
//! | granularity | scale of element `(r, c)` | shape of the scales | used by |
//! |---|---|---|---|
//! | `Tensor` | `0` | `[1, 1]` | static activation scales |
//! | `Channel` | `r` | `[rows, 1]` | compressed-tensors `channel` |
//! | `Block1d(b)` | `(r, c / b)` | `[rows, ⌈cols / b⌉]` | INT4 groups, DeepSeek activations |
//! | `Block2d { rows: a, cols: b }` | `(r / a, c / b)` | `[⌈rows / a⌉, ⌈cols / b⌉]` | DeepSeek weights, 128 x 128 |
//!
//! Blocks never straddle rows, and the last block of a row or column may be ragged.

use crate::error::{Error, Result};

/// Which elements of a matrix share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// All of them.
    Tensor,
    /// Those of a row: one output channel of a weight, one token of an activation.
    Channel,
    /// Runs of this many elements within a row.
    Block1d(usize),
    /// Rectangles.
    Block2d {
        /// Rows of a block.
        rows: usize,
        /// Columns of a block.
        cols: usize,
    },
}

/// What to make of NaN and infinite inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NonFinite {
    /// Refuse the call with [`Error::NonFinite`], and write nothing. For weights.
    #[default]
    Error,
    /// Make them decode to NaN: the elements where the format has a NaN, else their block by its scale. Refused by
    /// formats that have neither.
    Poison,
    /// Clamp infinities to the largest value and keep NaN where the format has one; else NaN becomes zero.
    Saturate,
}

impl Granularity {
    /// Shape of the scales of a matrix of `shape`.
    ///
    /// # Errors
    ///
    /// [`Error::ZeroBlock`].
    pub fn scales_shape(self, shape: [usize; 2]) -> Result<[usize; 2]> {
        let [rows, cols] = self.block(shape)?;
        Ok([shape[0].div_ceil(rows), shape[1].div_ceil(cols)])
    }

    /// Rows and columns of a block; an empty matrix has blocks of one element, and no scales.
    pub(crate) fn block(self, [rows, cols]: [usize; 2]) -> Result<[usize; 2]> {
        let [block_rows, block_cols] = match self {
            Self::Tensor => [rows.max(1), cols.max(1)],
            Self::Channel => [1, cols.max(1)],
            Self::Block1d(block) => [1, block],
            Self::Block2d { rows, cols } => [rows, cols],
        };
        if block_rows == 0 || block_cols == 0 {
            let what = if block_rows == 0 { "rows of a block" } else { "columns of a block" };
            return Err(Error::ZeroBlock { what });
        }
        Ok([block_rows, block_cols])
    }
}

/// Number of elements of a shape.
pub(crate) fn n_elements(shape: [usize; 2]) -> Result<usize> {
    shape[0].checked_mul(shape[1]).ok_or(Error::TooLarge { shape })
}
