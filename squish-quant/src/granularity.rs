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
    /// Make NaN decode to NaN, and infinities to infinities where the format has them (E5M2), else to NaN. In microscaling
    /// formats and NVFP4 the scale makes their whole block NaN. Refused by formats that have no NaN.
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

    /// Number of scales of a matrix of `shape`, which is not [too large](n_elements).
    pub(crate) fn n_scales(self, shape: [usize; 2]) -> Result<usize> {
        n_elements(shape)?;
        n_elements(self.scales_shape(shape)?)
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

    /// Whether rows of a matrix of `shape` that follow each other in memory are one line of blocks.
    pub(crate) fn joins_rows(self, [_, cols]: [usize; 2]) -> bool {
        match self {
            Self::Tensor | Self::Channel => true,
            Self::Block1d(block) => cols.is_multiple_of(block),
            Self::Block2d { rows, cols: block } => rows == 1 && cols.is_multiple_of(block),
        }
    }

    /// Length of the blocks in `len` elements that begin with row `first_row` of a matrix of `shape`, and the index of
    /// the first one's scale. The elements are those of a row, or of several if these are [joined](Self::joins_rows).
    pub(crate) fn line(self, shape: [usize; 2], first_row: usize, len: usize) -> (usize, usize) {
        if self == Self::Tensor {
            return (len, 0);
        }
        let [rows, cols] = self.block(shape).expect("the granularity was checked");
        (cols, first_row / rows * shape[1].div_ceil(cols))
    }
}

/// Number of elements of a shape. As in `ndarray`, an empty one has no side beyond [`isize::MAX`] either.
pub(crate) fn n_elements(shape: [usize; 2]) -> Result<usize> {
    let [rows, cols] = shape;
    match rows.max(1).checked_mul(cols.max(1)) {
        Some(n) if isize::try_from(n).is_ok() => Ok(rows * cols),
        _ => Err(Error::TooLarge { shape }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_ndarray_refuses_are_too_large() {
        const MAX: usize = isize::MAX as usize;
        for shape in [[0, 0], [MAX, 0], [0, MAX], [MAX, 1], [1, MAX], [2, MAX / 2]] {
            assert_eq!(n_elements(shape), Ok(shape[0] * shape[1]));
        }
        for shape in
            [[MAX + 1, 0], [0, usize::MAX], [1, MAX + 1], [usize::MAX, 2], [2, MAX / 2 + 1]]
        {
            assert_eq!(n_elements(shape), Err(Error::TooLarge { shape }));
        }
    }
}
