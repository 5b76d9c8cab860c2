//! RMS norms of a model: [`FusedRmsNorm`], and those of queries and keys, [`QkNorm`].
//!
//! ```text
//! n = x / √(mean(x²) + eps)                 y = n · w
//! fused     h = x + residual; residual ← h; y = norm(h)
//! ```
//!
//! (B. Zhang, R. Sennrich, arXiv 1910.07467.) Where models round and what the weight is an offset from is the [`RmsVariant`].
//! The arithmetic is that of [`squish_kernels::norm`]: statistics in `f32`, a row's result depends on that row alone.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, ArrayViewMut3, Axis};
use squish_kernels::{
    Real, RmsVariant, add_rms_norm_in_place, add_rms_norm_into, rms_norm_in_place, rms_norm_into,
};

use crate::{
    AttnError, Result,
    rows::{check_contiguous, contiguous, contiguous_mut, for_each_block},
};

/// An RMS norm with its weight, and a residual added in the same pass where there is one.
///
/// # Examples
///
/// ```
/// use squish_attn::{FusedRmsNorm, RmsVariant, ndarray::array};
///
/// let norm = FusedRmsNorm::new(vec![1.0_f32, 1.0], 0.0, RmsVariant::Llama)?;
/// let (mut x, mut residual) = (array![[1.0, 4.0]], array![[2.0, 0.0]]);
/// norm.add_forward_in_place(x.view_mut(), residual.view_mut())?;
/// assert_eq!(residual, array![[3.0, 4.0]]);
/// assert!((x[[0, 0]] - 3.0 / 12.5_f32.sqrt()).abs() < 1e-6);
/// # Ok::<(), squish_attn::AttnError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct FusedRmsNorm<T> {
    weight: Vec<T>,
    eps: f32,
    variant: RmsVariant,
}

impl<T: Real> FusedRmsNorm<T> {
    /// The norm of rows as long as `weight`.
    ///
    /// # Errors
    ///
    /// [`AttnError::Length`] of an empty weight; [`AttnError::Value`] of an `eps` that is negative or not finite.
    pub fn new(weight: Vec<T>, eps: f32, variant: RmsVariant) -> Result<Self> {
        if weight.is_empty() {
            return Err(AttnError::Length { what: "weight", expected: 1, actual: 0 });
        }
        let holds = eps.is_finite() && eps >= 0.0;
        AttnError::check_value("eps", f64::from(eps), holds, "finite and at least 0")?;
        Ok(Self { weight, eps, variant })
    }

    /// The norm of each row of `x` `[n_rows, hidden_size]`.
    ///
    /// # Errors
    ///
    /// [`AttnError::Axis`].
    pub fn forward(&self, x: ArrayView2<'_, T>) -> Result<Array2<T>> {
        let mut out = x.as_standard_layout().into_owned();
        self.forward_in_place(out.view_mut())?;
        Ok(out)
    }

    /// [`forward`](Self::forward) into `out`, shaped as `x`. Allocates nothing, as the others below.
    ///
    /// # Errors
    ///
    /// [`AttnError::Axis`]; [`AttnError::Layout`] if a row of either is not contiguous.
    pub fn forward_into(&self, x: ArrayView2<'_, T>, mut out: ArrayViewMut2<'_, T>) -> Result<()> {
        let n_rows = x.dim().0;
        self.check("x", n_rows, x)?;
        self.check("out", n_rows, out.view())?;
        if let (Some(x), Some(out)) = (x.as_slice(), out.as_slice_mut()) {
            rms_norm_into(x, &self.weight, self.eps, self.variant, out);
            return Ok(());
        }
        for (x, out) in x.outer_iter().zip(out.outer_iter_mut()) {
            let (x, out) = (contiguous(x), contiguous_mut(out));
            rms_norm_into(x, &self.weight, self.eps, self.variant, out);
        }
        Ok(())
    }

    /// [`forward`](Self::forward) over its input.
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_in_place(&self, x: ArrayViewMut2<'_, T>) -> Result<()> {
        self.check("x", x.dim().0, x.view())?;
        for_each_block(x.insert_axis(Axis(1)), |_, x| {
            rms_norm_in_place(x, &self.weight, self.eps, self.variant);
        });
        Ok(())
    }

    /// Adds `x` to `residual`, both `[n_rows, hidden_size]`, and writes the norm of the sum over `x`.
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into).
    pub fn add_forward_in_place(
        &self,
        mut x: ArrayViewMut2<'_, T>,
        mut residual: ArrayViewMut2<'_, T>,
    ) -> Result<()> {
        let n_rows = x.dim().0;
        self.check("x", n_rows, x.view())?;
        self.check("residual", n_rows, residual.view())?;
        if let (Some(x), Some(residual)) = (x.as_slice_mut(), residual.as_slice_mut()) {
            add_rms_norm_in_place(x, residual, &self.weight, self.eps, self.variant);
            return Ok(());
        }
        for (x, residual) in x.outer_iter_mut().zip(residual.outer_iter_mut()) {
            let (x, residual) = (contiguous_mut(x), contiguous_mut(residual));
            add_rms_norm_in_place(x, residual, &self.weight, self.eps, self.variant);
        }
        Ok(())
    }

    /// [`add_forward_in_place`](Self::add_forward_in_place) into `out`, which leaves `x` as it is.
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into).
    pub fn add_forward_into(
        &self,
        x: ArrayView2<'_, T>,
        mut residual: ArrayViewMut2<'_, T>,
        mut out: ArrayViewMut2<'_, T>,
    ) -> Result<()> {
        let n_rows = x.dim().0;
        self.check("x", n_rows, x)?;
        self.check("residual", n_rows, residual.view())?;
        self.check("out", n_rows, out.view())?;
        if let (Some(x), Some(residual), Some(out)) =
            (x.as_slice(), residual.as_slice_mut(), out.as_slice_mut())
        {
            add_rms_norm_into(x, residual, &self.weight, self.eps, self.variant, out);
            return Ok(());
        }
        let rows = residual.outer_iter_mut().zip(out.outer_iter_mut());
        for (x, (residual, out)) in x.outer_iter().zip(rows) {
            let (x, residual, out) = (contiguous(x), contiguous_mut(residual), contiguous_mut(out));
            add_rms_norm_into(x, residual, &self.weight, self.eps, self.variant, out);
        }
        Ok(())
    }

    /// The weight, `[hidden_size]`.
    #[must_use]
    pub fn weight(&self) -> &[T] {
        &self.weight
    }

    /// Added to the mean square under the root.
    #[must_use]
    pub fn eps(&self) -> f32 {
        self.eps
    }

    /// Where it rounds.
    #[must_use]
    pub fn variant(&self) -> RmsVariant {
        self.variant
    }

    fn check(&self, what: &'static str, n_rows: usize, x: ArrayView2<'_, T>) -> Result<()> {
        AttnError::check_axis(what, "n_rows", n_rows, x.dim().0)?;
        AttnError::check_axis(what, "hidden_size", self.weight.len(), x.dim().1)?;
        check_contiguous(what, x.insert_axis(Axis(1)))
    }
}

/// The norms of queries and keys, taken before they are rotated: of each head, or of all heads together.
///
/// A weight as long as a head belongs to each head (Qwen3, Gemma 3), one as long as all heads to a row (`OLMo` 2).
#[derive(Clone, Debug, PartialEq)]
pub struct QkNorm<T> {
    q: FusedRmsNorm<T>,
    k: FusedRmsNorm<T>,
}

impl<T: Real> QkNorm<T> {
    /// Both norms.
    ///
    /// # Errors
    ///
    /// As [`FusedRmsNorm::new`].
    pub fn new(q_weight: Vec<T>, k_weight: Vec<T>, eps: f32, variant: RmsVariant) -> Result<Self> {
        let q = FusedRmsNorm::new(q_weight, eps, variant)?;
        Ok(Self { q, k: FusedRmsNorm::new(k_weight, eps, variant)? })
    }

    /// Norms queries `[n_rows, n_heads, head_dim]` and keys `[n_rows, n_kv_heads, head_dim]`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`AttnError::Axis`] if a weight is neither as long as a head nor as all; [`AttnError::Layout`]. Then neither is changed.
    pub fn forward_in_place(&self, q: ArrayViewMut3<'_, T>, k: ArrayViewMut3<'_, T>) -> Result<()> {
        check_heads("q", &self.q, &q)?;
        check_heads("k", &self.k, &k)?;
        for (norm, x) in [(&self.q, q), (&self.k, k)] {
            for_each_block(x, |_, x| rms_norm_in_place(x, &norm.weight, norm.eps, norm.variant));
        }
        Ok(())
    }
}

fn check_heads<T>(
    what: &'static str,
    norm: &FusedRmsNorm<T>,
    x: &ArrayViewMut3<'_, T>,
) -> Result<()> {
    let (_, n_heads, head_dim) = x.dim();
    if norm.weight.len() != n_heads * head_dim {
        AttnError::check_axis(what, "head_dim", norm.weight.len(), head_dim)?;
    }
    check_contiguous(what, x.view())
}
