//! Normalization of rows: [`rms_norm_into`], [`layer_norm_into`], and both with a fused residual add.
//!
//! ```text
//! RMS norm      n = x / √(mean(x²) + eps)                    y = n · w
//! layer norm    n = (x − mean x) / √(var x + eps)            y = n · w + b        biased variance
//! fused         h = x + residual, rounded to the storage type; residual ← h; y = norm(h)
//! ```
//!
//! (B. Zhang, R. Sennrich, arXiv 1910.07467; J. L. Ba et al., arXiv 1607.06450.) Statistics are `f32` whatever the storage
//! type, and eps stands inside the root. For `bf16` and `f16` models differ in where the RMS norm rounds:
//!
//! | [`RmsVariant`] | models | order |
//! |---|---|---|
//! | `Llama` | Llama, Mistral, Qwen, T5 | `round(round(n) · w)`: the product is one of the storage type |
//! | `Gemma` | Gemma 1 to 3 | `round(n · (1 + w))` |
//! | `GptOss` | gpt-oss, Gemma 3n | `round(n · w)` |
//!
//! A row's result depends on that row alone: sums run over 4 chains of pairs of vectors in an order that depends on the
//! row's length and the SIMD level, whatever the number of rows. Levels agree to the error of a sum in `f32`, which the
//! rounding to 16 bits hides but for values next to a tie.

use crate::{Isa, real::Real, rows::sealed::Scale};

/// Where an RMS norm rounds, and what its weight is an offset from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RmsVariant {
    /// `round(round(n) · w)`.
    #[default]
    Llama,
    /// `round(n · (1 + w))`.
    Gemma,
    /// `round(n · w)`.
    GptOss,
}

/// RMS norm of each row of `x` `[n_rows, hidden_size]` with weight `w` `[hidden_size]`, into `out`, shaped as `x`.
///
/// # Panics
///
/// If `w` is empty, `x` is not a whole number of rows, or `out` differs from `x` in length.
///
/// # Examples
///
/// ```
/// use squish_kernels::{RmsVariant, rms_norm_into};
///
/// let mut y = [0.0; 2];
/// rms_norm_into(&[3.0, 4.0], &[1.0, 2.0], 0.0, RmsVariant::Llama, &mut y);
/// let rms = 12.5_f32.sqrt();
/// assert!((y[0] - 3.0 / rms).abs() < 1e-6 && (y[1] - 8.0 / rms).abs() < 1e-6);
/// ```
pub fn rms_norm_into<T: Real>(x: &[T], w: &[T], eps: f32, variant: RmsVariant, out: &mut [T]) {
    rms_norm_into_with(Isa::detect(), x, w, eps, variant, out);
}

/// [`rms_norm_into`], over its input.
///
/// # Panics
///
/// If `w` is empty or `x` is not a whole number of rows.
pub fn rms_norm_in_place<T: Real>(x: &mut [T], w: &[T], eps: f32, variant: RmsVariant) {
    rms_norm_in_place_with(Isa::detect(), x, w, eps, variant);
}

/// Adds `x` to `residual`, both `[n_rows, hidden_size]`, and writes the RMS norm of the sum over `x`.
///
/// The sum is rounded to the storage type before it is normalized.
///
/// # Panics
///
/// If `w` is empty, `x` is not a whole number of rows, or `residual` differs from `x` in length.
///
/// # Examples
///
/// ```
/// use squish_kernels::{RmsVariant, add_rms_norm_in_place};
///
/// let (mut x, mut residual) = ([1.0, 4.0], [2.0, 0.0]);
/// add_rms_norm_in_place(&mut x, &mut residual, &[1.0, 1.0], 0.0, RmsVariant::Llama);
/// assert_eq!(residual, [3.0, 4.0]);
/// assert!((x[0] - 3.0 / 12.5_f32.sqrt()).abs() < 1e-6);
/// ```
pub fn add_rms_norm_in_place<T: Real>(
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
) {
    add_rms_norm_in_place_with(Isa::detect(), x, residual, w, eps, variant);
}

/// [`add_rms_norm_in_place`] into `out`, which leaves `x` as it is.
///
/// # Panics
///
/// If `w` is empty, `x` is not a whole number of rows, or `residual` or `out` differ from `x` in length.
pub fn add_rms_norm_into<T: Real>(
    x: &[T],
    residual: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
    out: &mut [T],
) {
    add_rms_norm_into_with(Isa::detect(), x, residual, w, eps, variant, out);
}

/// Layer norm of each row of `x` `[n_rows, hidden_size]` with weight `w` and bias `b` `[hidden_size]`, into `out`, shaped
/// as `x`. Rounded once.
///
/// # Panics
///
/// If `w` is empty, `b` differs from it in length, `x` is not a whole number of rows, or `out` differs from `x` in length.
///
/// # Examples
///
/// ```
/// let mut y = [0.0; 2];
/// squish_kernels::layer_norm_into(&[1.0, 3.0], &[1.0, 1.0], &[0.0, 10.0], 0.0, &mut y);
/// assert_eq!(y, [-1.0, 11.0]);
/// ```
pub fn layer_norm_into<T: Real>(x: &[T], w: &[T], b: &[T], eps: f32, out: &mut [T]) {
    layer_norm_into_with(Isa::detect(), x, w, b, eps, out);
}

/// Adds `x` to `residual`, both `[n_rows, hidden_size]`, and writes the layer norm of the sum over `x`.
///
/// The sum is rounded to the storage type before it is normalized.
///
/// # Panics
///
/// If `w` is empty, `b` differs from it in length, `x` is not a whole number of rows, or `residual` differs from `x` in
/// length.
pub fn add_layer_norm_in_place<T: Real>(
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    b: &[T],
    eps: f32,
) {
    add_layer_norm_in_place_with(Isa::detect(), x, residual, w, b, eps);
}

#[doc(hidden)]
pub fn rms_norm_into_with<T: Real>(
    isa: Isa,
    x: &[T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
    out: &mut [T],
) {
    assert_rows("rms_norm", x.len(), w.len(), &[("out", out.len())]);
    T::rms_rows(isa, x, Scale { w, eps, variant }, out);
}

#[doc(hidden)]
pub fn rms_norm_in_place_with<T: Real>(
    isa: Isa,
    x: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
) {
    assert_rows("rms_norm", x.len(), w.len(), &[]);
    T::rms_rows_in_place(isa, x, Scale { w, eps, variant });
}

#[doc(hidden)]
pub fn add_rms_norm_in_place_with<T: Real>(
    isa: Isa,
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
) {
    assert_rows("add_rms_norm", x.len(), w.len(), &[("residual", residual.len())]);
    T::add_rms_rows_in_place(isa, x, residual, Scale { w, eps, variant });
}

#[doc(hidden)]
pub fn add_rms_norm_into_with<T: Real>(
    isa: Isa,
    x: &[T],
    residual: &mut [T],
    w: &[T],
    eps: f32,
    variant: RmsVariant,
    out: &mut [T],
) {
    let others = [("residual", residual.len()), ("out", out.len())];
    assert_rows("add_rms_norm", x.len(), w.len(), &others);
    T::add_rms_rows(isa, x, residual, Scale { w, eps, variant }, out);
}

#[doc(hidden)]
pub fn layer_norm_into_with<T: Real>(isa: Isa, x: &[T], w: &[T], b: &[T], eps: f32, out: &mut [T]) {
    assert_rows("layer_norm", x.len(), w.len(), &[("out", out.len())]);
    assert_eq!(b.len(), w.len(), "layer_norm: `b` and `w` differ in length");
    T::layer_rows(isa, x, w, b, eps, out);
}

#[doc(hidden)]
pub fn add_layer_norm_in_place_with<T: Real>(
    isa: Isa,
    x: &mut [T],
    residual: &mut [T],
    w: &[T],
    b: &[T],
    eps: f32,
) {
    assert_rows("add_layer_norm", x.len(), w.len(), &[("residual", residual.len())]);
    assert_eq!(b.len(), w.len(), "add_layer_norm: `b` and `w` differ in length");
    T::add_layer_rows_in_place(isa, x, residual, w, b, eps);
}

fn assert_rows(name: &str, len: usize, width: usize, others: &[(&str, usize)]) {
    assert!(width > 0, "{name}: `w` is empty");
    assert!(
        len.is_multiple_of(width),
        "{name}: {len} elements are no whole number of rows of {width}"
    );
    for (other, other_len) in others {
        assert!(*other_len == len, "{name}: `{other}` has {other_len} elements, `x` has {len}");
    }
}

/// The definition of an RMS norm's row.
#[doc(hidden)]
#[must_use]
pub fn rms_norm_scalar<T: Real>(x: &[T], w: &[T], eps: f32, variant: RmsVariant) -> Vec<T> {
    let squares: f64 = x.iter().map(|x| f64::from(x.to_f32()).powi(2)).sum();
    let inverse = 1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt();
    let normed = |x: &T| (f64::from(x.to_f32()) * inverse) as f32;
    let scale = |(x, w): (&T, &T)| match variant {
        RmsVariant::Llama => T::from_f32(T::from_f32(normed(x)).to_f32() * w.to_f32()),
        RmsVariant::Gemma => T::from_f32(normed(x) * (1.0 + w.to_f32())),
        RmsVariant::GptOss => T::from_f32(normed(x) * w.to_f32()),
    };
    x.iter().zip(w).map(scale).collect()
}

/// The definition of a layer norm's row, in `f64`.
#[doc(hidden)]
#[must_use]
pub fn layer_norm_scalar<T: Real>(x: &[T], w: &[T], b: &[T], eps: f32) -> Vec<f64> {
    let wide = |x: &T| f64::from(x.to_f32());
    let n = x.len() as f64;
    let mean = x.iter().map(wide).sum::<f64>() / n;
    let variance = x.iter().map(|x| (wide(x) - mean).powi(2)).sum::<f64>() / n;
    let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
    x.iter()
        .zip(w)
        .zip(b)
        .map(|((x, w), b)| (wide(x) - mean) * inverse * wide(w) + wide(b))
        .collect()
}
