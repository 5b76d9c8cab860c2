//! Rows of `f32` into rows of a cache, and back.
//!
//! | element | code | value |
//! |---|---|---|
//! | `f32`, `bf16`, `f16` | nearest to `x`, ties to even | `code`, times the row's scale if it has one |
//! | `i8` | `round(x / scale)`, between -127 and 127 | `code · scale` |
//! | `E4M3`, `E5M2` | `E(x · (1 / scale))` | `code · scale` |
//!
//! ```text
//! scale = max(amax, 2^-126 · LARGEST) / LARGEST      amax: largest |x| of the row; 1 if amax = 0, NaN if it is not finite
//! ```
//!
//! [`KvElement::LARGEST`] is 127, 448 and 57344. A row of which a number is not finite has a scale of NaN, and so is NaN as a whole: a
//! score of such keys is NaN anyhow, and no type of 8 bits has room for an infinity beside numbers of another size.
//!
//! Under a scale that is given, finite numbers beyond the largest code saturate. Of others E4M3 makes NaN, E5M2 infinities and NaN;
//! int8 has no code for them, and stores the largest one for an infinity and 0 for NaN: look for them first.
//!
//! Nothing depends on the other rows of a call, and all levels give the same bits.

use super::{KvElement, Rows};
use crate::{Isa, element::Overflow, reduce::abs_max_with};

/// How rows are scaled before they are rounded.
#[derive(Debug)]
pub enum RowScales<'a> {
    /// Not at all.
    None,
    /// Each is divided by this.
    Given(f32),
    /// Each is divided by the scale that its largest magnitude asks for, which is stored here: one for each row.
    PerRow(&'a mut [f32]),
}

/// Rows of `f32` into `out`, `[n_rows, width]`. What scales `rows` has itself is left aside.
///
/// # Panics
///
/// If `rows` has fewer rows than `n_rows` or overlapping ones, `out` is not as long, there are not as many scales, or `E` is a type whose rows
/// are not scaled and a scale is asked for.
pub fn encode_rows_into<E: KvElement>(
    rows: Rows<'_, f32>,
    [n_rows, width]: [usize; 2],
    scales: RowScales<'_>,
    out: &mut [E],
) {
    encode_rows_with(Isa::detect(), rows, [n_rows, width], scales, out);
}

/// The values of rows, times their scales if they have any, into `out`, `[n_rows, width]`.
///
/// # Panics
///
/// If `rows` has fewer rows or scales than `n_rows` or overlapping ones, or `out` is not as long.
pub fn decode_rows_into<E: KvElement>(
    rows: Rows<'_, E>,
    [n_rows, width]: [usize; 2],
    out: &mut [f32],
) {
    decode_rows_with(Isa::detect(), rows, [n_rows, width], out);
}

#[doc(hidden)]
#[inline]
pub fn encode_rows_with<E: KvElement>(
    isa: Isa,
    rows: Rows<'_, f32>,
    dims: [usize; 2],
    scales: RowScales<'_>,
    out: &mut [E],
) {
    check(&rows, dims, out.len());
    let [n_rows, width] = dims;
    // Numbers that are not scaled are rounded one by one, and so may be rows in one piece. Apart from the others, whose iterator divides: a
    // tenth of the time in which a token is appended to a cache.
    if matches!(scales, RowScales::None)
        && E::LARGEST.is_none()
        && (n_rows == 1 || rows.stride == width)
    {
        return E::encode(isa, &rows.data[..n_rows * width], 1.0, Overflow::Ieee, out);
    }
    let pairs = out.chunks_exact_mut(width.max(1)).enumerate();
    let row = |i: usize| &rows.data[i * rows.stride..][..width];
    match (scales, E::LARGEST) {
        (RowScales::None, None) => {
            pairs.for_each(|(i, out)| E::encode(isa, row(i), 1.0, Overflow::Ieee, out));
        }
        (RowScales::PerRow(scales), Some(largest)) => {
            assert_eq!(scales.len(), n_rows, "encode: scales of {n_rows} rows");
            for ((i, out), scale) in pairs.zip(scales) {
                *scale = scale_of(abs_max_with(isa, row(i)), largest);
                E::encode(isa, row(i), *scale, Overflow::Saturate, out);
            }
        }
        (RowScales::None, Some(_)) => {
            pairs.for_each(|(i, out)| encode_given(isa, row(i), 1.0, out));
        }
        (RowScales::Given(scale), Some(_)) => {
            pairs.for_each(|(i, out)| encode_given(isa, row(i), scale, out));
        }
        (_, None) => panic!("encode: rows of {} have no scales", E::NAME),
    }
}

#[doc(hidden)]
#[inline]
pub fn decode_rows_with<E: KvElement>(
    isa: Isa,
    rows: Rows<'_, E>,
    dims: [usize; 2],
    out: &mut [f32],
) {
    check(&rows, dims, out.len());
    let [n_rows, width] = dims;
    let scales = rows.scales.map(|scales| &scales[..n_rows]);
    if n_rows == 1 || rows.stride == width {
        return E::decode(isa, &rows.data[..n_rows * width], width, scales, out);
    }
    for (i, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
        let x = &rows.data[i * rows.stride..][..width];
        E::decode(isa, x, width, scales.map(|scales| &scales[i..=i]), out);
    }
}

/// A row under a scale that was given. Whether a number may overflow to what is not finite is up to the row alone.
fn encode_given<E: KvElement>(isa: Isa, x: &[f32], scale: f32, out: &mut [E]) {
    let is_finite = abs_max_with(isa, x).is_finite();
    let overflow = if is_finite { Overflow::Saturate } else { Overflow::Ieee };
    E::encode(isa, x, scale, overflow, out);
}

/// The scale of a row with this largest magnitude, such that its reciprocal is finite.
fn scale_of(amax: f32, largest: f32) -> f32 {
    if amax == 0.0 {
        1.0
    } else if amax.is_finite() {
        amax.max(f32::MIN_POSITIVE * largest) / largest
    } else {
        f32::NAN
    }
}

#[inline]
fn check<E>(rows: &Rows<'_, E>, [n_rows, width]: [usize; 2], len: usize) {
    assert!(n_rows.checked_mul(width) == Some(len), "{len} elements for {n_rows} rows of {width}");
    if n_rows > 1 {
        assert!(rows.stride >= width, "rows of {width} at a stride of {} overlap", rows.stride);
    }
}
