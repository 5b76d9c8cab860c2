//! Rotary position embedding, applied to rows of heads: [`rope_in_place`].
//!
//! Each pair `(a, b)` of a head turns by the angle of its row's position, `c` and `s` being its cosine and sine:
//!
//! ```text
//! a, b = a·c − b·s, b·c + a·s
//! ```
//!
//! | [`RopeLayout`] | pair `i` of `rotary_dim / 2` | models |
//! |---|---|---|
//! | `HalfSplit` | `(x[i], x[i + rotary_dim / 2])` | GPT-NeoX and Hugging Face's Llama, Qwen, Gemma, Phi |
//! | `Interleaved` | `(x[2 i], x[2 i + 1])` | GPT-J, Meta's Llama and its GGUF files, DeepSeek, GLM |
//!
//! (J. Su et al., arXiv 2104.09864.) Elements of a head from `rotary_dim` on stay as they are. Cosines and sines come from a
//! table, which `squish-attn` makes.
//!
//! The products are rounded before they are added, as transformers does, so that all levels give the same bits, those of
//! the definition; for `bf16` and `f16` the result is rounded once more, to the storage type. What happens to a row
//! depends on that row and its position alone.

use fearless_simd::{Simd, prelude::*};
use half::{bf16, f16};

use self::sealed::Rotation;
use crate::{
    Isa,
    isa::dispatch,
    lanes::load_partial,
    real::{Real, sealed::Lanes},
};

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Element `i` of the first half with element `i` of the second.
    #[default]
    HalfSplit,
    /// Neighbors.
    Interleaved,
}

/// Rotates all heads of `x` `[n_rows, n_heads, head_dim]`, row `i` by row `positions[i]` of `table`.
///
/// `table` is `[n_positions, rotary_dim]`: of each position `rotary_dim / 2` cosines, and then as many sines.
///
/// # Panics
///
/// If `rotary_dim` is zero, odd or more than `head_dim`; if `x` is not a whole number of heads for each of `positions`,
/// `table` is not a whole number of rows, or a position is none of them.
///
/// # Examples
///
/// ```
/// use squish_kernels::{RopeLayout, rope_in_place};
///
/// // A quarter turn of the first pair; the second is no part of the rotation.
/// let table = [1.0, 0.0, 0.0, 1.0]; // cosine and sine of position 0, then of position 1
/// let mut x = [3.0, 4.0, 5.0, 6.0];
/// rope_in_place(&mut x, 4, &table, 2, &[1], RopeLayout::HalfSplit);
/// assert_eq!(x, [-4.0, 3.0, 5.0, 6.0]);
/// ```
pub fn rope_in_place<T: Real>(
    x: &mut [T],
    head_dim: usize,
    table: &[f32],
    rotary_dim: usize,
    positions: &[usize],
    layout: RopeLayout,
) {
    rope_in_place_with(Isa::detect(), x, head_dim, table, rotary_dim, positions, layout);
}

#[doc(hidden)]
pub fn rope_in_place_with<T: Real>(
    isa: Isa,
    x: &mut [T],
    head_dim: usize,
    table: &[f32],
    rotary_dim: usize,
    positions: &[usize],
    layout: RopeLayout,
) {
    assert!(
        rotary_dim > 0 && rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim,
        "rope: {rotary_dim} elements of heads of {head_dim} are no pairs"
    );
    assert!(
        table.len().is_multiple_of(rotary_dim),
        "rope: {} elements are no whole number of rows of {rotary_dim}",
        table.len()
    );
    let (n_rows, n_positions) = (positions.len(), table.len() / rotary_dim);
    let row_len = x.len().checked_div(n_rows).unwrap_or(0);
    assert!(
        row_len * n_rows == x.len() && row_len.is_multiple_of(head_dim),
        "rope: {} elements are no whole number of heads of {head_dim} for each of {n_rows} rows",
        x.len()
    );
    let last = positions.iter().copied().max();
    assert!(
        last.is_none_or(|last| last < n_positions),
        "rope: position {} of a table of {n_positions}",
        last.unwrap_or_default()
    );
    if row_len > 0 {
        T::rotate(isa, x, Rotation { head_dim, row_len, table, rotary_dim, positions, layout });
    }
}

/// The definition: one head, `cos` and `sin` being those of its position.
#[doc(hidden)]
pub fn rope_scalar<T: Real>(head: &mut [T], cos: &[f32], sin: &[f32], layout: RopeLayout) {
    for (i, (c, s)) in cos.iter().zip(sin).enumerate() {
        let (first, second) = match layout {
            RopeLayout::HalfSplit => (i, i + cos.len()),
            RopeLayout::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (head[first].to_f32(), head[second].to_f32());
        head[first] = T::from_f32(a * c - b * s);
        head[second] = T::from_f32(b * c + a * s);
    }
}

pub(crate) mod sealed {
    use super::RopeLayout;
    use crate::Isa;

    /// What is done to the rows, whose lengths are known to fit.
    #[derive(Clone, Copy, Debug)]
    pub struct Rotation<'a> {
        pub(crate) head_dim: usize,
        pub(crate) row_len: usize,
        pub(crate) table: &'a [f32],
        pub(crate) rotary_dim: usize,
        pub(crate) positions: &'a [usize],
        pub(crate) layout: RopeLayout,
    }

    /// The loop over rows, compiled once for each storage type.
    pub trait Rotate: Sized {
        fn rotate(isa: Isa, x: &mut [Self], rotation: Rotation<'_>);
    }
}

macro_rules! rotate_of {
    ($($T:ty),*) => {$(
        impl sealed::Rotate for $T {
            fn rotate(isa: Isa, x: &mut [$T], rotation: Rotation<'_>) {
                match rotation.layout {
                    RopeLayout::HalfSplit => dispatch!(isa.token(), simd => for_each_row(
                        x,
                        rotation,
                        #[inline(always)]
                        |row, cos, sin| rotate_halves(simd, row, rotation.head_dim, cos, sin),
                    )),
                    RopeLayout::Interleaved => dispatch!(isa.token(), simd => for_each_row(
                        x,
                        rotation,
                        #[inline(always)]
                        |row, cos, sin| rotate_neighbors(simd, row, rotation.head_dim, cos, sin),
                    )),
                }
            }
        }
    )*};
}

rotate_of!(f32, bf16, f16);

/// Calls `rotate` with each row, its cosines and its sines.
#[inline(always)]
fn for_each_row<T>(x: &mut [T], rotation: Rotation<'_>, rotate: impl Fn(&mut [T], &[f32], &[f32])) {
    let Rotation { row_len, table, rotary_dim, positions, .. } = rotation;
    for (row, &position) in x.chunks_exact_mut(row_len).zip(positions) {
        let (cos, sin) = table[position * rotary_dim..][..rotary_dim].split_at(rotary_dim / 2);
        rotate(row, cos, sin);
    }
}

/// Most elements that a step takes of each half, at the widest level.
const MAX_PAIR: usize = 32;

/// Steps of two vectors of each half, as many elements as a vector of 16-bit lanes has.
///
/// Heads are the inner loop: the cosines and sines of a step stay in registers for all of them.
#[inline(always)]
fn rotate_halves<S: Simd, T: Real>(
    simd: S,
    row: &mut [T],
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
) {
    let (pair, half) = (2 * S::f32s::LEN, cos.len());
    let (mut cos_steps, mut sin_steps) = (cos.chunks_exact(pair), sin.chunks_exact(pair));
    let mut at = 0;
    for (cos, sin) in (&mut cos_steps).zip(&mut sin_steps) {
        let (cos, sin) = (f32::load(simd, cos), f32::load(simd, sin));
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            rotate_step(simd, &mut low[at..at + pair], &mut high[at..at + pair], cos, sin);
        }
        at += pair;
    }
    let (cos, sin) = (cos_steps.remainder(), sin_steps.remainder());
    if cos.is_empty() {
        return;
    }
    let (cos, sin) = (f32::load(simd, &padded(cos)[..pair]), f32::load(simd, &padded(sin)[..pair]));
    for head in row.chunks_exact_mut(head_dim) {
        let (low, high) = head.split_at_mut(half);
        let (low, high) = (&mut low[at..], &mut high[at..half]);
        let (mut a, mut b) = (padded(low), padded(high));
        rotate_step(simd, &mut a[..pair], &mut b[..pair], cos, sin);
        low.copy_from_slice(&a[..low.len()]);
        high.copy_from_slice(&b[..high.len()]);
    }
}

/// Rotates `low` and `high`, as long as a pair of vectors.
#[inline(always)]
fn rotate_step<S: Simd, T: Real>(
    simd: S,
    low: &mut [T],
    high: &mut [T],
    cos: [S::f32s; 2],
    sin: [S::f32s; 2],
) {
    let ([a0, a1], [b0, b1]) = (T::load(simd, low), T::load(simd, high));
    T::store(simd, [a0 * cos[0] - b0 * sin[0], a1 * cos[1] - b1 * sin[1]], low);
    T::store(simd, [b0 * cos[0] + a0 * sin[0], b1 * cos[1] + a1 * sin[1]], high);
}

/// Steps of a vector of angles, to which a pair of vectors of elements belongs.
///
/// A step is `x · (c, c) + swap(x) · (−s, s)`, `swap` exchanging neighbors: the angles, not the elements of each head, are brought
/// into the other's order. A product with `−s` that is added has the bits of one with `s` that is subtracted.
#[inline(always)]
fn rotate_neighbors<S: Simd, T: Real>(
    simd: S,
    row: &mut [T],
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
) {
    let (lanes, rotary_dim) = (S::f32s::LEN, 2 * cos.len());
    let (mut cos_steps, mut sin_steps) = (cos.chunks_exact(lanes), sin.chunks_exact(lanes));
    let mut at = 0;
    for (cos, sin) in (&mut cos_steps).zip(&mut sin_steps) {
        let (cos, sin) = (S::f32s::from_slice(simd, cos), S::f32s::from_slice(simd, sin));
        let (cos, sin) = (doubled::<S>(cos, cos), doubled::<S>(-sin, sin));
        for head in row.chunks_exact_mut(head_dim) {
            rotate_neighbors_step(simd, &mut head[at..at + 2 * lanes], cos, sin);
        }
        at += 2 * lanes;
    }
    let (cos, sin) = (cos_steps.remainder(), sin_steps.remainder());
    if cos.is_empty() {
        return;
    }
    let (cos, sin) = (load_partial(simd, cos, 0.0), load_partial(simd, sin, 0.0));
    let (cos, sin) = (doubled::<S>(cos, cos), doubled::<S>(-sin, sin));
    for head in row.chunks_exact_mut(head_dim) {
        let rest = &mut head[at..rotary_dim];
        let mut x = padded(rest);
        rotate_neighbors_step(simd, &mut x[..2 * lanes], cos, sin);
        rest.copy_from_slice(&x[..rest.len()]);
    }
}

/// Elements of `first` and `second` in turn.
#[inline(always)]
fn doubled<S: Simd>(first: S::f32s, second: S::f32s) -> [S::f32s; 2] {
    first.interleave(second).into()
}

/// Rotates neighbors in `x`, as long as a pair of vectors.
#[inline(always)]
fn rotate_neighbors_step<S: Simd, T: Real>(
    simd: S,
    x: &mut [T],
    cos: [S::f32s; 2],
    sin: [S::f32s; 2],
) {
    let swap = S::u8s::from_fn(
        simd,
        #[inline(always)]
        |i| ((i % 16) ^ 4) as u8,
    );
    let [low, high] = T::load(simd, x);
    let (swapped_low, swapped_high) =
        (low.swizzle_dyn_within_blocks(swap), high.swizzle_dyn_within_blocks(swap));
    let low = low * cos[0] + swapped_low * sin[0];
    T::store(simd, [low, high * cos[1] + swapped_high * sin[1]], x);
}

/// The elements of `x` and then zeros.
#[inline(always)]
fn padded<T: Real>(x: &[T]) -> [T; MAX_PAIR] {
    let mut padded = [T::default(); MAX_PAIR];
    padded[..x.len()].copy_from_slice(x);
    padded
}
