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

/// Rows of `f32`, each of `width` numbers, into `out`, `[rows, width]`. What scales `rows` has itself is left aside.
///
/// # Panics
///
/// If `width` is zero or does not divide the length of `out`, `rows` has fewer rows than `out` or overlapping ones, there are not as many
/// scales, or `E` is a type whose rows are not scaled and a scale is asked for.
pub fn encode_rows_into<E: KvElement>(
    rows: Rows<'_, f32>,
    width: usize,
    scales: RowScales<'_>,
    out: &mut [E],
) {
    encode_rows_with(Isa::detect(), rows, width, scales, out);
}

/// The values of rows of `width` numbers, times their scales if they have any, into `out`, `[rows, width]`.
///
/// # Panics
///
/// If `width` is zero or does not divide the length of `out`, or `rows` has fewer rows or scales than `out` has rows, or overlapping ones.
pub fn decode_rows_into<E: KvElement>(rows: Rows<'_, E>, width: usize, out: &mut [f32]) {
    decode_rows_with(Isa::detect(), rows, width, out);
}

#[doc(hidden)]
pub fn encode_rows_with<E: KvElement>(
    isa: Isa,
    rows: Rows<'_, f32>,
    width: usize,
    scales: RowScales<'_>,
    out: &mut [E],
) {
    let n_rows = check(&rows, width, out.len());
    if E::LARGEST.is_none() {
        assert!(matches!(scales, RowScales::None), "encode: rows of {} have no scales", E::NAME);
        if rows.stride == width {
            return E::encode(isa, &rows.data[..n_rows * width], 1.0, Overflow::Ieee, out);
        }
    }
    let pairs = each(&rows, width, n_rows).zip(out.chunks_exact_mut(width));
    let Some(largest) = E::LARGEST else {
        return pairs.for_each(|(x, out)| E::encode(isa, x, 1.0, Overflow::Ieee, out));
    };
    match scales {
        RowScales::PerRow(scales) => {
            assert_eq!(scales.len(), n_rows, "encode: scales of {n_rows} rows");
            for ((x, out), scale) in pairs.zip(scales) {
                *scale = scale_of(abs_max_with(isa, x), largest);
                E::encode(isa, x, *scale, Overflow::Saturate, out);
            }
        }
        RowScales::None => encode_all(isa, pairs, 1.0),
        RowScales::Given(scale) => encode_all(isa, pairs, scale),
    }
}

#[doc(hidden)]
pub fn decode_rows_with<E: KvElement>(isa: Isa, rows: Rows<'_, E>, width: usize, out: &mut [f32]) {
    let n_rows = check(&rows, width, out.len());
    let scales = rows.scales.map(|scales| &scales[..n_rows]);
    if rows.stride == width {
        return E::decode(isa, &rows.data[..n_rows * width], width, scales, out);
    }
    let pairs = each(&rows, width, n_rows).zip(out.chunks_exact_mut(width));
    for (i, (x, out)) in pairs.enumerate() {
        E::decode(isa, x, width, scales.map(|scales| &scales[i..=i]), out);
    }
}

/// Rows under one scale. Whether a number may overflow to what is not finite is looked up row by row: the other rows are not to matter.
fn encode_all<'x, E: KvElement>(
    isa: Isa,
    pairs: impl Iterator<Item = (&'x [f32], &'x mut [E])>,
    scale: f32,
) {
    for (x, out) in pairs {
        let is_finite = abs_max_with(isa, x).is_finite();
        let overflow = if is_finite { Overflow::Saturate } else { Overflow::Ieee };
        E::encode(isa, x, scale, overflow, out);
    }
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

fn each<'a, E>(
    rows: &Rows<'a, E>,
    width: usize,
    n_rows: usize,
) -> impl Iterator<Item = &'a [E]> + use<'a, E> {
    // A single row may have any stride.
    rows.data.chunks(rows.stride.max(width)).take(n_rows).map(move |row| &row[..width])
}

/// Number of rows of `out`, if `rows` has as many.
fn check<E>(rows: &Rows<'_, E>, width: usize, len: usize) -> usize {
    assert!(width > 0 && len.is_multiple_of(width), "rows of {width} in {len} elements");
    let n_rows = len / width;
    if n_rows > 1 {
        assert!(rows.stride >= width, "rows of {width} at a stride of {} overlap", rows.stride);
    }
    let has_all = n_rows == 0 || rows.data.len() >= (n_rows - 1) * rows.stride + width;
    assert!(has_all, "{} elements are fewer than {n_rows} rows", rows.data.len());
    n_rows
}
