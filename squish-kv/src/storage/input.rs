//! New tokens as they come.

use std::ops::Range;

use ndarray::{ArrayView3, Axis};
use squish_kernels::{abs_max, kv::Rows};

use crate::error::{Error, Result};

/// Rows `[tokens, heads, width]`. Those of a token lie in one piece; tokens may lie apart, as in the output of a fused projection.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    what: &'static str,
    view: ArrayView3<'a, f32>,
    /// All of them, where they lie in one piece.
    whole: Option<&'a [f32]>,
}

impl<'a> Input<'a> {
    /// `view`, if it has this shape and layout.
    #[inline]
    pub(crate) fn new(
        what: &'static str,
        view: ArrayView3<'a, f32>,
        [n_tokens, n_heads, width]: [usize; 3],
    ) -> Result<Self> {
        let (tokens, heads, actual) = view.dim();
        Error::check_axis(what, "tokens", n_tokens, tokens)?;
        Error::check_axis(what, "heads", n_heads, heads)?;
        Error::check_axis(what, "width", width, actual)?;
        let whole = view.to_slice();
        if whole.is_none() && !view.index_axis(Axis(0), 0).is_standard_layout() {
            let strides = view.strides();
            return Err(Error::Layout {
                what,
                shape: [n_tokens, n_heads, width],
                strides: [strides[0], strides[1], strides[2]],
            });
        }
        Ok(Self { what, view, whole })
    }

    /// `Ok` if all numbers are finite, which `element` asks for.
    pub(crate) fn check_finite(&self, element: &'static str) -> Result<()> {
        if self.whole.is_some_and(|all| abs_max(all).is_finite()) {
            return Ok(());
        }
        let (n_tokens, n_heads, _) = self.view.dim();
        for token in 0..n_tokens {
            for head in 0..n_heads {
                if !abs_max(self.row(token, head)).is_finite() {
                    return Err(Error::NotFinite { what: self.what, element, token, head });
                }
            }
        }
        Ok(())
    }

    /// Calls `f` with the rows of a head in pieces, and which of the tokens they are.
    #[inline]
    pub(crate) fn for_each_piece(
        &self,
        head: usize,
        tokens: Range<usize>,
        mut f: impl FnMut(Range<usize>, Rows<'a, f32>),
    ) {
        let (_, n_heads, width) = self.view.dim();
        if let Some(all) = self.whole {
            let stride = n_heads * width;
            let data = &all[tokens.start * stride + head * width..];
            return f(tokens, Rows { data, stride, scales: None });
        }
        for token in tokens {
            f(token..token + 1, Rows { data: self.row(token, head), stride: width, scales: None });
        }
    }

    fn row(&self, token: usize, head: usize) -> &'a [f32] {
        let width = self.view.dim().2;
        let heads = self.view.index_axis_move(Axis(0), token);
        &heads.to_slice().expect("the rows of a token lie in one piece")[head * width..][..width]
    }
}
