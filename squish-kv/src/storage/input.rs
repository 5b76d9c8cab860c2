//! New tokens as they come.

use ndarray::{ArrayView3, Axis};
use squish_kernels::{abs_max, kv::Rows};

use crate::error::{Error, Result};

/// Rows `[tokens, heads, width]`. Those of a token lie in one piece; tokens may lie apart, as in the output of a fused projection.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    what: &'static str,
    view: &'a ArrayView3<'a, f32>,
    /// All of them, where they lie in one piece.
    whole: Option<&'a [f32]>,
    n_heads: usize,
    width: usize,
}

impl<'a> Input<'a> {
    /// `view`, if it has this shape and layout.
    #[inline(always)]
    pub(crate) fn new(
        what: &'static str,
        view: &'a ArrayView3<'a, f32>,
        [n_tokens, n_heads, width]: [usize; 3],
    ) -> Result<Self> {
        let (tokens, heads, actual) = view.dim();
        Error::check_axis(what, "tokens", n_tokens, tokens)?;
        Error::check_axis(what, "heads", n_heads, heads)?;
        Error::check_axis(what, "width", width, actual)?;
        let whole = view.to_slice();
        if whole.is_none() && !view.index_axis(Axis(0), 0).is_standard_layout() {
            let strides = view.strides();
            let (shape, strides) = (view.dim().into(), [strides[0], strides[1], strides[2]]);
            return Err(Error::Layout { what, shape, strides });
        }
        Ok(Self { what, view, whole, n_heads, width })
    }

    /// `Ok` if all numbers are finite, which `element` asks for.
    pub(crate) fn check_finite(&self, element: &'static str) -> Result<()> {
        if self.whole.is_some_and(|all| abs_max(all).is_finite()) {
            return Ok(());
        }
        for token in 0..self.view.dim().0 {
            for head in 0..self.n_heads {
                if !abs_max(self.row(token, head)).is_finite() {
                    return Err(Error::NotFinite { what: self.what, element, token, head });
                }
            }
        }
        Ok(())
    }

    /// Whether tokens lie one after the other.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// The rows of a head from a token on: all of them where tokens lie one after the other, else one.
    #[inline]
    pub(crate) fn rows(&self, token: usize, head: usize) -> Rows<'a, f32> {
        let stride = self.n_heads * self.width;
        let data = match self.whole {
            Some(all) => &all[token * stride + head * self.width..],
            None => self.row(token, head),
        };
        Rows { data, stride, scales: None }
    }

    fn row(&self, token: usize, head: usize) -> &'a [f32] {
        let heads = self.view.index_axis(Axis(0), token);
        let all = heads.to_slice().expect("the rows of a token lie in one piece");
        &all[head * self.width..][..self.width]
    }
}
