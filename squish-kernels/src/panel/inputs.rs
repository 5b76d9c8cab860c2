//! Inputs of a product, rounded to the mode of its layout and arranged as kernels read them.
//!
//! Rows are taken in *tiles*. Of floats a tile has so many as have their sums in registers at once, and the inputs of all
//! its rows at one step stand side by side: one `f32` each, or a pair of BF16. A tile of INT8 has all rows of a call, and
//! the 32 inputs of a row's block stand together.

use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use super::{
    layout::{Activation, BLOCK, PanelLayout},
    product::MOST_ROWS,
};
use crate::{Isa, SimdLevel, bytes::narrow_lanes, isa::dispatch};

/// Most rows of a tile of floats on any level.
pub(crate) const MAX_TILE: usize = 12;

/// How the rows of an input are split, and what room they need.
#[derive(Clone, Copy, Debug)]
pub struct InputPlan {
    isa: Isa,
    activation: Activation,
    n_inputs: usize,
    padded: usize,
    n_rows: usize,
    n_tiles: usize,
    sums_per_block: usize,
}

/// What a step of a tile holds for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// An `f32`.
    Float,
    /// An `f32` that has been rounded to BF16, the second of each pair of inputs before the first.
    Rounded,
    /// Two BF16, as the instruction for pairs takes them.
    Pair,
    /// Four INT8.
    Quad,
}

impl Step {
    pub(crate) fn of(isa: Isa, activation: Activation) -> Self {
        match activation {
            Activation::F32 => Self::Float,
            Activation::Bf16 if isa.prefers_bf16_dot() => Self::Pair,
            Activation::Bf16 => Self::Rounded,
            Activation::Q8 => Self::Quad,
        }
    }

    /// Inputs of a step.
    pub(crate) const fn n_inputs(self) -> usize {
        match self {
            Self::Float | Self::Rounded => 1,
            Self::Pair => 2,
            Self::Quad => 4,
        }
    }
}

/// Most rows of a tile. Of floats two vectors of sums for each row fill the registers, with room for weights and inputs.
fn most_rows(isa: Isa, step: Step) -> usize {
    match (step, isa.level()) {
        (Step::Quad, _) => MOST_ROWS,
        (_, SimdLevel::Avx512 | SimdLevel::Neon) => MAX_TILE,
        (_, SimdLevel::Scalar) => 4,
        _ => 6,
    }
}

impl InputPlan {
    /// For `n_rows` rows into panels of `layout` on `isa`.
    #[must_use]
    pub fn new(isa: Isa, layout: &PanelLayout, n_rows: usize) -> Self {
        let (activation, padded) = (layout.activation(), layout.padded_inputs());
        let n_tiles = n_rows.div_ceil(most_rows(isa, Step::of(isa, activation)));
        let sums_per_block = layout.parts_per_block();
        let n_inputs = layout.n_inputs();
        Self { isa, activation, n_inputs, padded, n_rows, n_tiles, sums_per_block }
    }

    /// Number of rows.
    #[must_use]
    pub const fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Number of tiles.
    #[must_use]
    pub const fn n_tiles(&self) -> usize {
        self.n_tiles
    }

    /// Rows of a tile: as many as of any other, or one fewer.
    ///
    /// # Panics
    ///
    /// If there is no tile at all.
    #[must_use]
    pub fn tile(&self, idx: usize) -> Range<usize> {
        let start = |idx| idx * self.n_rows / self.n_tiles;
        start(idx)..start(idx + 1)
    }

    /// Rows of some tiles.
    #[must_use]
    pub fn rows(&self, tiles: &Range<usize>) -> Range<usize> {
        if tiles.is_empty() {
            0..0
        } else {
            self.tile(tiles.start).start..self.tile(tiles.end - 1).end
        }
    }

    /// All tiles, in the calls that their products take: so many that they have [`MOST_ROWS`](super::MOST_ROWS) rows at most.
    pub fn calls(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let n_tiles = self.n_tiles;
        let at_once = MOST_ROWS / most_rows(self.isa, self.step());
        (0..n_tiles).step_by(at_once).map(move |tile| tile..n_tiles.min(tile + at_once))
    }

    pub(crate) fn step(&self) -> Step {
        Step::of(self.isa, self.activation)
    }

    pub(crate) const fn isa(&self) -> Isa {
        self.isa
    }

    /// Length of [`Inputs::words`] per row.
    #[must_use]
    pub fn words_per_row(&self) -> usize {
        self.padded / self.step().n_inputs()
    }

    /// Length of [`Inputs::scales`] per row.
    #[must_use]
    pub fn blocks_per_row(&self) -> usize {
        if self.step() == Step::Quad { self.padded / BLOCK } else { 0 }
    }

    /// Length of [`Inputs::sums`] per row.
    #[must_use]
    pub fn sums_per_row(&self) -> usize {
        self.sums_per_block * self.blocks_per_row()
    }

    pub(crate) const fn sums_per_block(&self) -> usize {
        self.sums_per_block
    }

    /// Rounds and arranges a tile, whose rows are `row(0)`, `row(1)` and so on, into the tile's part of each buffer.
    ///
    /// # Panics
    ///
    /// If a buffer is not as long as the plan says, or a row not as long as the layout's.
    pub fn prepare_tile<'x>(
        &self,
        idx: usize,
        row: impl Fn(usize) -> &'x [f32],
        words: &mut [u32],
        scales: &mut [f32],
        sums: &mut [i32],
    ) {
        let n_rows = self.tile(idx).len();
        assert_eq!(words.len(), n_rows * self.words_per_row(), "prepare_tile: words");
        assert_eq!(scales.len(), n_rows * self.blocks_per_row(), "prepare_tile: scales");
        assert_eq!(sums.len(), n_rows * self.sums_per_row(), "prepare_tile: sums");
        for i in 0..n_rows {
            let x = row(i);
            assert_eq!(x.len(), self.n_inputs, "prepare_tile: inputs of a row");
            let step = self.step();
            let to = Strided { words, scales, sums, n_rows, row: i };
            dispatch!(self.isa.token(), simd => prepare_row(simd, step, x, to));
        }
    }
}

/// Prepared rows.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// How they are split.
    pub plan: &'a InputPlan,
    /// Tile after tile, `[steps, rows of the tile]`, or `[blocks, rows of the tile, 8]` of INT8.
    pub words: &'a [u32],
    /// Tile after tile, `[blocks, rows of the tile]`.
    pub scales: &'a [f32],
    /// Sums of the codes of a block, likewise, or of its two halves, `[blocks, rows of the tile, 2]`.
    pub sums: &'a [i32],
}

impl<'a> Inputs<'a> {
    /// A tile from `first` on: its words, scales and sums, for `n` inputs. Both are multiples of [`BLOCK`].
    pub(crate) fn tile(&self, idx: usize, first: usize, n: usize) -> Tile<'a> {
        let rows = self.plan.tile(idx);
        let per_step = self.plan.step().n_inputs();
        let part = |per_row: usize, first: usize, n: usize| {
            let start = rows.start * per_row + first * rows.len();
            start..start + n * rows.len()
        };
        let words = part(self.plan.words_per_row(), first / per_step, n / per_step);
        let blocks = match self.plan.step() {
            Step::Quad => part(self.plan.blocks_per_row(), first / BLOCK, n / BLOCK),
            Step::Float | Step::Rounded | Step::Pair => 0..0,
        };
        let per_block = self.plan.sums_per_block;
        Tile {
            n_rows: rows.len(),
            words: &self.words[words],
            scales: &self.scales[blocks.clone()],
            sums: &self.sums[blocks.start * per_block..blocks.end * per_block],
        }
    }
}

/// Some inputs of the rows of a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile<'a> {
    pub(crate) n_rows: usize,
    /// `[steps, n_rows]`, or `[blocks, n_rows, 8]` of INT8.
    pub(crate) words: &'a [u32],
    /// `[blocks, n_rows]`
    pub(crate) scales: &'a [f32],
    /// `[blocks, n_rows]`, or `[blocks, n_rows, 2]` of halves of blocks.
    pub(crate) sums: &'a [i32],
}

/// The places of one row in the buffers of a tile.
struct Strided<'a> {
    words: &'a mut [u32],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    n_rows: usize,
    row: usize,
}

#[inline(always)]
fn prepare_row<S: Simd>(simd: S, step: Step, x: &[f32], to: Strided<'_>) {
    let Strided { words, scales, sums, n_rows, row } = to;
    let steps_per_block = BLOCK / step.n_inputs();
    let blocks = words.chunks_exact_mut(steps_per_block * n_rows);
    for (i, words) in blocks.enumerate() {
        let mut padded = [0.0; BLOCK];
        let x: &[f32; BLOCK] = if let Some(x) = x.get(i * BLOCK..).and_then(<[f32]>::first_chunk) {
            x
        } else {
            let rest = x.get(i * BLOCK..).unwrap_or_default();
            padded[..rest.len()].copy_from_slice(rest);
            &padded
        };
        match step {
            Step::Float => scatter(bytemuck::cast_ref::<_, [u32; BLOCK]>(x), words, n_rows, row),
            Step::Rounded => {
                let mut bits = [0; BLOCK];
                for k in 0..BLOCK {
                    // A BF16 is the upper half of an `f32`.
                    bits[k] = bf16_bits(x[k ^ 1]) << 16;
                }
                scatter(&bits, words, n_rows, row);
            }
            Step::Pair => {
                let mut pairs = [0; BLOCK / 2];
                for i in 0..BLOCK / 2 {
                    pairs[i] = bf16_bits(x[2 * i]) | bf16_bits(x[2 * i + 1]) << 16;
                }
                scatter(&pairs, words, n_rows, row);
            }
            Step::Quad => {
                let words = &mut words[row * BLOCK / 4..(row + 1) * BLOCK / 4];
                let (scale, own) = quantize_lanes(simd, x, bytemuck::cast_slice_mut(words));
                if cfg!(target_endian = "big") {
                    for word in words {
                        *word = word.swap_bytes();
                    }
                }
                scales[i * n_rows + row] = scale;
                if sums.len() == scales.len() {
                    sums[i * n_rows + row] = own[0] + own[1];
                } else {
                    sums[2 * (i * n_rows + row)..][..2].copy_from_slice(&own);
                }
            }
        }
    }
}

#[inline(always)]
fn scatter(values: &[u32], words: &mut [u32], n_rows: usize, row: usize) {
    if n_rows == 1 {
        return words.copy_from_slice(values);
    }
    for (value, words) in values.iter().zip(words.chunks_exact_mut(n_rows)) {
        words[row] = *value;
    }
}

/// The nearest BF16, ties to even, as [`half::bf16::from_f32`], in a form that becomes vector instructions.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// A block as INT8 and a scale: `amax / 127`, and the nearest integers to `x · (1 / scale)`, ties to even.
///
/// A scale below the normal range is zero, with codes of zero. With an input that is not finite the scale is NaN.
pub(crate) fn quantize_block(x: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    // Magnitudes of floats are ordered as their bits, infinities and NaN last.
    let mut amax = 0;
    for x in x {
        amax = amax.max(x.to_bits() & 0x7fff_ffff);
    }
    let amax = f32::from_bits(amax);
    let scale = amax / 127.0;
    if !scale.is_normal() {
        return ([0; BLOCK], if amax.is_finite() { 0.0 } else { f32::NAN });
    }
    let inverse = 1.0 / scale;
    let mut codes = [0; BLOCK];
    for (code, x) in codes.iter_mut().zip(x) {
        // The sum with 1.5 · 2^23 has the rounded integer in its lowest bits.
        *code = (x * inverse + 12_582_912.0).to_bits() as i8;
    }
    (codes, scale)
}

/// [`quantize_block`] into `codes`; returns the scale and the sums of the codes of both halves.
#[inline(always)]
fn quantize_lanes<S: Simd>(simd: S, x: &[f32; BLOCK], codes: &mut [u8]) -> (f32, [i32; 2]) {
    let lanes = S::f32s::LEN;
    let mut amax = S::u32s::splat(simd, 0);
    for x in x.chunks_exact(lanes) {
        let bits = S::f32s::from_slice(simd, x).bitcast::<S::u32s>();
        amax = amax.max(bits & S::u32s::splat(simd, 0x7fff_ffff));
    }
    let amax = f32::from_bits(amax.reduce_max());
    let scale = amax / 127.0;
    if !scale.is_normal() {
        codes.fill(0);
        return (if amax.is_finite() { 0.0 } else { f32::NAN }, [0; 2]);
    }
    let inverse = S::f32s::splat(simd, 1.0 / scale);
    let magic = S::f32s::splat(simd, 12_582_912.0);
    let byte = S::u32s::splat(simd, 0xff);
    // Integers of at most seven bits: their sum is exact.
    let mut sums = [S::f32s::splat(simd, 0.0); 2];
    let mut rounded = [S::u32s::splat(simd, 0); BLOCK / 4];
    for (i, x) in x.chunks_exact(lanes).enumerate() {
        let shifted = S::f32s::from_slice(simd, x) * inverse + magic;
        sums[i * lanes / (BLOCK / 2)] += shifted - magic;
        rounded[i] = shifted.bitcast::<S::u32s>() & byte;
    }
    // Four vectors at a time; the widest are two.
    for (rounded, codes) in rounded.as_chunks::<4>().0.iter().zip(codes.chunks_mut(4 * lanes)) {
        let bytes = narrow_lanes::<S>(*rounded);
        codes.copy_from_slice(&bytes.as_slice()[..codes.len()]);
    }
    (scale, [sums[0].reduce_sum() as i32, sums[1].reduce_sum() as i32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        let edges = (0..=u16::MAX).flat_map(|high| {
            [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| u32::from(high) << 16 | low)
        });
        for bits in edges {
            let x = f32::from_bits(bits);
            assert_eq!(bf16_bits(x), u32::from(bf16::from_f32(x).to_bits()), "{bits:#x}");
        }
    }

    #[test]
    fn codes_of_a_block_are_the_nearest_and_reach_127() {
        let mut x = [0.0; BLOCK];
        for (i, x) in x.iter_mut().enumerate() {
            *x = (i as f32 - 15.5) * 0.37;
        }
        let (codes, scale) = quantize_block(&x);
        assert_eq!(scale, 15.5 * 0.37 / 127.0);
        assert!(codes.iter().any(|code| code.abs() == 127));
        for (code, x) in codes.iter().zip(x) {
            assert!((f32::from(*code) - x / scale).abs() <= 0.5001, "{code} {x}");
        }
        // 127 / 2 is a tie.
        let mut tie = [0.0; BLOCK];
        (tie[0], tie[1], tie[2]) = (127.0, 0.5, 1.5);
        assert_eq!(quantize_block(&tie).0[..3], [127, 0, 2]);
    }

    #[test]
    fn blocks_without_a_scale_are_zero_or_nan() {
        assert_eq!(quantize_block(&[0.0; BLOCK]), ([0; BLOCK], 0.0));
        assert_eq!(quantize_block(&[1e-39; BLOCK]), ([0; BLOCK], 0.0));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; BLOCK];
            x[7] = bad;
            assert!(quantize_block(&x).1.is_nan());
        }
    }

    #[test]
    fn tiles_cover_the_rows_and_differ_by_one_at_most() {
        let layout = PanelLayout::new(
            super::super::layout::Code::F32,
            Activation::F32,
            super::super::layout::PanelScale::Absent,
            64,
            64,
        )
        .expect("a layout");
        for isa in Isa::available() {
            for n_rows in 0..200 {
                let plan = InputPlan::new(isa, &layout, n_rows);
                let lens: Vec<usize> = (0..plan.n_tiles()).map(|i| plan.tile(i).len()).collect();
                assert_eq!(lens.iter().sum::<usize>(), n_rows);
                let (least, most) = (lens.iter().min(), lens.iter().max());
                assert!(most.copied() <= least.map(|n| n + 1), "{lens:?}");
                assert!(most.is_none_or(|&n| n <= MAX_TILE));
                assert!(plan.calls().all(|tiles| plan.rows(&tiles).len() <= MOST_ROWS));
            }
        }
    }
}
