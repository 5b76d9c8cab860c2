//! Attention over merged tokens, in proportion to their sizes.
//!
//! ```text
//! softmax(scale · q · k[j] + ln size[j])                      arXiv 2210.09461, equation 1
//! ```
//!
//! A token that stands for three receives the attention of three. The logarithm is one more number of each key, which meets `1 / scale` in
//! each query: so it goes through any attention, of which this crate's needs to know nothing. With a softcap it would be squashed, too.

use ndarray::{ArrayView3, ArrayViewMut3};

use super::gather::check_sizes;
use crate::{
    AttnError, Result,
    rows::{check_contiguous, contiguous_mut},
};

/// Copies keys `[n_tokens, n_heads, dim]` to `out`, `[n_tokens, n_heads, dim + 1]`, with the logarithm of the size of each token,
/// `[n_tokens]`, behind them. Allocates nothing.
///
/// # Errors
///
/// [`AttnError::Axis`]; [`AttnError::Length`] of sizes; [`AttnError::Value`] of a size that is not above 0 and finite;
/// [`AttnError::Layout`] if rows of `out` are not contiguous.
///
/// # Examples
///
/// ```
/// use squish_attn::{ndarray::{Array3, array}, tokens::widen_keys_into};
///
/// let mut out = Array3::zeros((2, 1, 3));
/// widen_keys_into(array![[[1.0, 2.0]], [[3.0, 4.0]]].view(), &[1.0, 2.0], out.view_mut())?;
/// assert_eq!(out, array![[[1.0, 2.0, 0.0]], [[3.0, 4.0, 2f32.ln()]]]);
/// # Ok::<(), squish_attn::AttnError>(())
/// ```
pub fn widen_keys_into(
    keys: ArrayView3<'_, f32>,
    sizes: &[f32],
    out: ArrayViewMut3<'_, f32>,
) -> Result<()> {
    AttnError::check_length("sizes", keys.dim().0, sizes.len())?;
    check_sizes(sizes)?;
    widen_into("keys", keys, |token| sizes[token].ln(), out)
}

/// Copies queries `[n_rows, n_heads, dim]` to `out`, `[n_rows, n_heads, dim + 1]`, with `1 / scale` behind them: for keys of
/// [`widen_keys_into`] and attention with [`Options::scale`](crate::Options::scale) of `scale`, which would be `1 / sqrt(dim + 1)` by
/// default. Allocates nothing.
///
/// # Errors
///
/// [`AttnError::Axis`]; [`AttnError::Value`] of a scale that is not above 0 and finite; [`AttnError::Layout`] if rows of `out` are not
/// contiguous.
pub fn widen_queries_into(
    queries: ArrayView3<'_, f32>,
    scale: f32,
    out: ArrayViewMut3<'_, f32>,
) -> Result<()> {
    let holds = scale > 0.0 && scale.is_finite();
    AttnError::check_value("scale", f64::from(scale), holds, "finite and above 0")?;
    widen_into("queries", queries, |_| 1.0 / scale, out)
}

fn widen_into(
    what: &'static str,
    x: ArrayView3<'_, f32>,
    last: impl Fn(usize) -> f32,
    mut out: ArrayViewMut3<'_, f32>,
) -> Result<()> {
    let (n_rows, n_heads, dim) = x.dim();
    AttnError::check_axis("out", "rows", n_rows, out.dim().0)?;
    AttnError::check_axis("out", "heads", n_heads, out.dim().1)?;
    AttnError::check_axis("out", "width", dim + 1, out.dim().2)?;
    check_contiguous(what, x)?;
    check_contiguous("out", out.view())?;
    for (row, (x, mut out)) in x.outer_iter().zip(out.outer_iter_mut()).enumerate() {
        for (x, out) in x.outer_iter().zip(out.outer_iter_mut()) {
            let [out @ .., end] = contiguous_mut(out) else { continue };
            x.iter().zip(out).for_each(|(x, out)| *out = *x);
            *end = last(row);
        }
    }
    Ok(())
}
