//! Slice casts between `f32` and 8- and 4-bit integers, with one scale and one zero point per block of elements.
//!
//! ```text
//! code  = round(clamp(x / scale + zero_point, low, high))      round to nearest, ties to even; NaN counts as 0 / scale
//! value = (code - zero_point) · scale                           the difference is exact, the product rounded once
//! ```
//!
//! | function | codes |
//! |---|---|
//! | [`encode_i8_blocks_into`], [`decode_i8_blocks_into`] | one per byte |
//! | [`encode_i4_blocks_into`], [`decode_i4_blocks_into`] | two per byte, stored as `code + 8`: byte `j` holds element `2j` in its low and `2j + 1` in its high half |
//!
//! All levels give the bits of [`encode_scalar`] and [`decode_scalar`]. The quotient is a division, not a product with a
//! reciprocal, because that is how compressed-tensors and PyTorch quantize, and the two differ next to ties.
//!
//! Both directions let the adder round. The sum `v + 1.5 · 2^23` has one as its last place, so that its low bits are `v`
//! rounded to an integer, in two's complement; and `2^23 + u` has the bits of `u < 2^23` in the place of its mantissa, so
//! that putting an unsigned code there and subtracting `2^23 + bias + zero_point` gives `code - zero_point` exactly.
//!
//! A step takes a vector of code bytes. Where blocks are a power of two and short, a step looks scale and zero point up,
//! vector by vector if a block is less than a step; where blocks are long, both stay in registers for a block; blocks
//! that are neither, which no format in use has, end in a padded step each.

use bytemuck::Pod;
use fearless_simd::{Select, Simd, prelude::*};

use crate::{
    Isa,
    bytes::{narrow_lanes, widen_lanes},
    isa::dispatch,
    nibble::pair,
    stream::{self, Stores, Stream, TILE, Tile},
};

/// The scale and the zero point of each run of `block` elements; the last run may be shorter.
///
/// There may be more of either than is used.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// Elements that share a scale.
    pub block: usize,
    /// One per block.
    pub scales: &'a [f32],
    /// One per block, or none, which counts as zeros.
    pub zero_points: Option<&'a [i8]>,
}

impl Blocks<'_> {
    fn assert_cover(self, len: usize) {
        assert!(self.block > 0, "integer: `block` is zero");
        let n_blocks = len.div_ceil(self.block);
        assert!(
            n_blocks <= self.scales.len(),
            "integer: {} scales for {n_blocks} blocks",
            self.scales.len()
        );
        let n_zero_points = self.zero_points.map_or(n_blocks, <[i8]>::len);
        assert!(
            n_blocks <= n_zero_points,
            "integer: {n_zero_points} zero points for {n_blocks} blocks"
        );
    }

    fn assert_cover_pairs(self, len: usize) {
        self.assert_cover(len);
        let whole = self.block.is_multiple_of(2) || self.block >= len;
        assert!(
            whole && len.is_multiple_of(2),
            "integer: blocks of {} of {len} elements do not end with a byte",
            self.block
        );
    }

    /// Scale and zero point of block `i`. The padding after the last block has any.
    #[inline(always)]
    fn get(self, i: usize) -> (f32, f32) {
        let scale = self.scales.get(i).copied().unwrap_or(1.0);
        let zero_point =
            self.zero_points.and_then(|zero_points| zero_points.get(i)).copied().unwrap_or(0);
        (scale, f32::from(zero_point))
    }
}

/// The code of each element, between `limits[0]` and `limits[1]`.
///
/// # Panics
///
/// If `x` and `out` differ in length, `blocks` has a block of zero elements or too few scales or zero points,
/// or if the limits are not in order.
pub fn encode_i8_blocks_into(x: &[f32], blocks: Blocks<'_>, limits: [i8; 2], out: &mut [i8]) {
    let stores = Stores::for_bytes(size_of_val(x) + out.len());
    encode_i8_blocks_to(Isa::detect(), stores, x, blocks, limits, out);
}

/// The value of each code.
///
/// # Panics
///
/// If `codes` and `out` differ in length, or `blocks` has a block of zero elements or too few scales or zero points.
pub fn decode_i8_blocks_into(codes: &[i8], blocks: Blocks<'_>, out: &mut [f32]) {
    let stores = Stores::for_bytes(codes.len() + size_of_val(out));
    decode_i8_blocks_to(Isa::detect(), stores, codes, blocks, out);
}

/// The code of each element, between `limits[0]` and `limits[1]`, two per byte.
///
/// # Panics
///
/// As [`encode_i8_blocks_into`], with `out` half as long as `x`; and if `x.len()` is odd, a block that is not the last
/// has an odd number of elements, or the limits exceed -8 or 7.
pub fn encode_i4_blocks_into(x: &[f32], blocks: Blocks<'_>, limits: [i8; 2], out: &mut [u8]) {
    let stores = Stores::for_bytes(size_of_val(x) + out.len());
    encode_i4_blocks_to(Isa::detect(), stores, x, blocks, limits, out);
}

/// The value of each code, two codes per byte.
///
/// # Panics
///
/// As [`decode_i8_blocks_into`], with `packed` half as long as `out`; and if `out.len()` is odd or a block that is not
/// the last has an odd number of elements.
pub fn decode_i4_blocks_into(packed: &[u8], blocks: Blocks<'_>, out: &mut [f32]) {
    let stores = Stores::for_bytes(packed.len() + size_of_val(out));
    decode_i4_blocks_to(Isa::detect(), stores, packed, blocks, out);
}

/// The definition of encoding.
#[must_use]
pub fn encode_scalar(x: f32, scale: f32, zero_point: i8, limits: [i8; 2]) -> i8 {
    let code = x / scale + f32::from(zero_point);
    let code = if code.is_nan() { f32::from(zero_point) } else { code };
    code.clamp(f32::from(limits[0]), f32::from(limits[1])).round_ties_even() as i8
}

/// The definition of decoding.
#[must_use]
pub fn decode_scalar(code: i8, scale: f32, zero_point: i8) -> f32 {
    f32::from(i16::from(code) - i16::from(zero_point)) * scale
}

#[doc(hidden)]
pub fn encode_i8_blocks_to(
    isa: Isa,
    stores: Stores,
    x: &[f32],
    blocks: Blocks<'_>,
    limits: [i8; 2],
    out: &mut [i8],
) {
    assert_eq!(x.len(), out.len(), "integer: `x` and `out` differ in length");
    assert!(limits[0] <= limits[1], "integer: limits {limits:?} are not in order");
    blocks.assert_cover(x.len());
    let (ahead, out) = (stream::ahead(stores, x.len()), bytemuck::cast_slice_mut(out));
    dispatch!(isa.token(), simd => walk(Encode::<_, false>::new(simd, limits, ahead), stores, x, blocks, out));
}

#[doc(hidden)]
pub fn decode_i8_blocks_to(
    isa: Isa,
    stores: Stores,
    codes: &[i8],
    blocks: Blocks<'_>,
    out: &mut [f32],
) {
    assert_eq!(codes.len(), out.len(), "integer: `codes` and `out` differ in length");
    blocks.assert_cover(codes.len());
    let codes = bytemuck::cast_slice(codes);
    dispatch!(isa.token(), simd => walk(Decode::<_, false>(simd), stores, codes, blocks, out));
}

#[doc(hidden)]
pub fn encode_i4_blocks_to(
    isa: Isa,
    stores: Stores,
    x: &[f32],
    blocks: Blocks<'_>,
    limits: [i8; 2],
    out: &mut [u8],
) {
    assert_eq!(x.len(), 2 * out.len(), "integer: `out` is not half as long as `x`");
    assert!(
        -8 <= limits[0] && limits[0] <= limits[1] && limits[1] <= 7,
        "integer: limits {limits:?} of 4-bit codes"
    );
    blocks.assert_cover_pairs(x.len());
    let ahead = stream::ahead(stores, x.len());
    dispatch!(isa.token(), simd => walk(Encode::<_, true>::new(simd, limits, ahead), stores, x, blocks, out));
}

#[doc(hidden)]
pub fn decode_i4_blocks_to(
    isa: Isa,
    stores: Stores,
    packed: &[u8],
    blocks: Blocks<'_>,
    out: &mut [f32],
) {
    assert_eq!(2 * packed.len(), out.len(), "integer: `packed` is not half as long as `out`");
    blocks.assert_cover_pairs(out.len());
    dispatch!(isa.token(), simd => walk(Decode::<_, true>(simd), stores, packed, blocks, out));
}

/// Elements of the widest step.
const MAX_STEP: usize = 128;

/// A cast of one step: a vector of code bytes on one side.
///
/// A trait and not a closure, because only a function can be told to be inlined into the code of the chosen level.
trait Step<S: Simd, A: Pod, B: Pod>: Copy {
    /// Elements of a step, and how many items of either side hold them.
    const LEN: usize;
    const FROM: usize;
    const TO: usize;
    /// What is added to a zero point before use.
    const BIAS: f32;

    fn simd(self) -> S;

    fn step(self, scales: impl Scales<S>, from: &[A], to: &mut [B]);

    /// Whole steps, then one padded with zeros that holds the rest.
    #[inline(always)]
    fn run(self, scales: impl Scales<S>, from: &[A], to: &mut [B]) {
        let n_steps = from.len() / Self::FROM;
        let (from, from_rest) = from.split_at(n_steps * Self::FROM);
        let (to, to_rest) = to.split_at_mut(n_steps * Self::TO);
        for (i, (from, to)) in
            from.chunks_exact(Self::FROM).zip(to.chunks_exact_mut(Self::TO)).enumerate()
        {
            self.step(scales.of_step(i * Self::LEN), from, to);
        }
        if !from_rest.is_empty() {
            let (mut padded, mut result) = ([A::zeroed(); MAX_STEP], [B::zeroed(); MAX_STEP]);
            padded[..from_rest.len()].copy_from_slice(from_rest);
            self.step(
                scales.of_step(n_steps * Self::LEN),
                &padded[..Self::FROM],
                &mut result[..Self::TO],
            );
            to_rest.copy_from_slice(&result[..to_rest.len()]);
        }
    }

    /// [`Step::run`], by way of `tile` and around the caches if there is a stream.
    #[inline(always)]
    fn run_streamed(
        self,
        scales: impl Scales<S>,
        from: &[A],
        to: &mut [B],
        stream: Option<&Stream>,
        tile: &mut Tile<B>,
    ) {
        let Some(stream) = stream else { return self.run(scales, from, to) };
        let n_steps = TILE / Self::TO;
        let tiles = from.chunks(n_steps * Self::FROM).zip(to.chunks_mut(n_steps * Self::TO));
        for (i, (from, to)) in tiles.enumerate() {
            let tile = tile.first(to.len());
            self.run(scales.after(i * n_steps * Self::LEN), from, tile);
            stream.copy(self.simd(), tile, to);
        }
    }
}

/// Elements of the largest block whose scale is looked up: a loop, and a streamed tile, per block of 128 elements cost a
/// tenth of the rate.
const MAX_LOOKUP: usize = 512;

/// The cast of a whole slice.
#[inline(always)]
fn walk<S: Simd, A: Pod, B: Pod, K: Step<S, A, B>>(
    kernel: K,
    stores: Stores,
    from: &[A],
    blocks: Blocks<'_>,
    to: &mut [B],
) {
    let stream = stores.stream();
    let mut tile = Tile::new();
    let (simd, block) = (kernel.simd(), blocks.block);
    if block.is_power_of_two() && (S::f32s::LEN..=MAX_LOOKUP).contains(&block) {
        let (bias, shift) = (K::BIAS, block.trailing_zeros());
        let scales = Lookup { simd, blocks, bias, shift, start: 0 };
        if block < K::LEN {
            kernel.run_streamed(scales, from, to, stream.as_ref(), &mut tile);
        } else {
            kernel.run_streamed(LookupSteps(scales), from, to, stream.as_ref(), &mut tile);
        }
        return;
    }
    // A block as long as the slice may be longer, and end within a byte.
    let n_elements = from.len().max(to.len());
    let block = block.min(n_elements.max(1)).next_multiple_of(K::LEN / K::FROM.min(K::TO));
    let (from_block, to_block) = (block / (K::LEN / K::FROM), block / (K::LEN / K::TO));
    for (i, (from, to)) in from.chunks(from_block).zip(to.chunks_mut(to_block)).enumerate() {
        let scales = Uniform(Scale::new(simd, blocks.get(i), K::BIAS));
        kernel.run_streamed(scales, from, to, stream.as_ref(), &mut tile);
    }
}

/// A scale and a biased zero point in all lanes.
#[derive(Clone, Copy)]
struct Scale<S: Simd> {
    scale: S::f32s,
    zero_point: S::f32s,
}

impl<S: Simd> Scale<S> {
    #[inline(always)]
    fn new(simd: S, (scale, zero_point): (f32, f32), bias: f32) -> Self {
        Self {
            scale: S::f32s::splat(simd, scale),
            zero_point: S::f32s::splat(simd, zero_point + bias),
        }
    }
}

/// The scales of a run of elements.
trait Scales<S: Simd>: Copy {
    /// Those of the elements from `n` on.
    fn after(self, n: usize) -> Self;

    /// Those of the step that starts at element `n`.
    #[inline(always)]
    fn of_step(self, n: usize) -> impl Scales<S> {
        self.after(n)
    }

    /// The scale of the vector that starts at element `at`.
    fn at(self, at: usize) -> Scale<S>;
}

/// One scale for all elements.
#[derive(Clone, Copy)]
struct Uniform<S: Simd>(Scale<S>);

impl<S: Simd> Scales<S> for Uniform<S> {
    #[inline(always)]
    fn after(self, _n: usize) -> Self {
        self
    }

    #[inline(always)]
    fn at(self, _at: usize) -> Scale<S> {
        self.0
    }
}

/// A scale for every `2^shift` elements, which are at least a vector of them. The run starts at element `start`.
#[derive(Clone, Copy)]
struct Lookup<'a, S> {
    simd: S,
    blocks: Blocks<'a>,
    bias: f32,
    shift: u32,
    start: usize,
}

impl<S: Simd> Scales<S> for Lookup<'_, S> {
    #[inline(always)]
    fn after(self, n: usize) -> Self {
        Self { start: self.start + n, ..self }
    }

    #[inline(always)]
    fn at(self, at: usize) -> Scale<S> {
        Scale::new(self.simd, self.blocks.get((self.start + at) >> self.shift), self.bias)
    }
}

/// The same for blocks of whole steps, looked up once a step.
#[derive(Clone, Copy)]
struct LookupSteps<'a, S>(Lookup<'a, S>);

impl<S: Simd> Scales<S> for LookupSteps<'_, S> {
    #[inline(always)]
    fn after(self, n: usize) -> Self {
        Self(self.0.after(n))
    }

    #[inline(always)]
    fn of_step(self, n: usize) -> impl Scales<S> {
        Uniform(self.0.at(n))
    }

    #[inline(always)]
    fn at(self, at: usize) -> Scale<S> {
        self.0.at(at)
    }
}

/// `1.5 · 2^23`, to which the sum with a small number is rounded to an integer.
const ROUNDER: f32 = 12_582_912.0;

/// `PACKED` says two codes per byte.
#[derive(Clone, Copy)]
struct Encode<S: Simd, const PACKED: bool> {
    low: S::f32s,
    high: S::f32s,
    rounder: S::f32s,
    ahead: usize,
}

impl<S: Simd, const PACKED: bool> Encode<S, PACKED> {
    #[inline(always)]
    fn new(simd: S, [low, high]: [i8; 2], ahead: usize) -> Self {
        let splat = |x: f32| S::f32s::splat(simd, x);
        let rounder = if PACKED { ROUNDER + 8.0 } else { ROUNDER };
        Self { low: splat(low.into()), high: splat(high.into()), rounder: splat(rounder), ahead }
    }

    /// Codes of as many elements as a vector has bytes, one per byte.
    #[inline(always)]
    fn bytes(self, scales: impl Scales<S>, x: &[f32], at: usize) -> S::u8s {
        stream::prefetch(x, self.ahead);
        let len = S::f32s::LEN;
        let a = self.lanes(scales.at(at), &x[..len]);
        let b = self.lanes(scales.at(at + len), &x[len..2 * len]);
        let c = self.lanes(scales.at(at + 2 * len), &x[2 * len..3 * len]);
        let d = self.lanes(scales.at(at + 3 * len), &x[3 * len..]);
        narrow_lanes::<S>([a, b, c, d])
    }

    /// Codes in the low bits of each lane.
    #[inline(always)]
    fn lanes(self, Scale { scale, zero_point }: Scale<S>, x: &[f32]) -> S::u32s {
        let code = S::f32s::from_slice(self.low.token(), x) / scale + zero_point;
        let code = code.simd_eq(code).select(code, zero_point);
        let rounded = code.max(self.low).min(self.high) + self.rounder;
        rounded.bitcast::<S::u32s>()
            & S::u32s::splat(self.low.token(), if PACKED { 0xf } else { 0xff })
    }
}

impl<S: Simd> Step<S, f32, u8> for Encode<S, false> {
    const LEN: usize = S::u8s::LEN;
    const FROM: usize = S::u8s::LEN;
    const TO: usize = S::u8s::LEN;
    const BIAS: f32 = 0.0;

    #[inline(always)]
    fn simd(self) -> S {
        self.low.token()
    }

    #[inline(always)]
    fn step(self, scales: impl Scales<S>, x: &[f32], out: &mut [u8]) {
        self.bytes(scales, x, 0).store_slice(out);
    }
}

impl<S: Simd> Step<S, f32, u8> for Encode<S, true> {
    const LEN: usize = 2 * S::u8s::LEN;
    const FROM: usize = 2 * S::u8s::LEN;
    const TO: usize = S::u8s::LEN;
    const BIAS: f32 = 0.0;

    #[inline(always)]
    fn simd(self) -> S {
        self.low.token()
    }

    #[inline(always)]
    fn step(self, scales: impl Scales<S>, x: &[f32], out: &mut [u8]) {
        let (first, second) = x.split_at(S::u8s::LEN);
        let first = pair::<S>(self.bytes(scales, first, 0));
        let second = pair::<S>(self.bytes(scales, second, S::u8s::LEN));
        first.relaxed_narrow(second).store_slice(out);
    }
}

/// `2^23`, whose mantissa has room for an unsigned code.
const HOLDER: f32 = 8_388_608.0;

/// `PACKED` says two codes per byte.
#[derive(Clone, Copy)]
struct Decode<S, const PACKED: bool>(S);

impl<S: Simd, const PACKED: bool> Decode<S, PACKED> {
    /// Values of the unsigned codes in each lane.
    #[inline(always)]
    fn lanes(self, Scale { scale, zero_point }: Scale<S>, codes: S::u32s) -> S::f32s {
        let held: S::f32s = (codes | S::u32s::splat(self.0, HOLDER.to_bits())).bitcast();
        (held - zero_point) * scale
    }

    /// Values of the two codes in each lane, in order.
    #[inline(always)]
    fn pairs(self, scales: impl Scales<S>, codes: S::u32s, at: usize, out: &mut [f32]) {
        let mask = S::u32s::splat(self.0, 0xf);
        let (low, high) = (codes & mask, codes >> 4);
        let holder = S::u32s::splat(self.0, HOLDER.to_bits());
        let (low, high): (S::f32s, S::f32s) = ((low | holder).bitcast(), (high | holder).bitcast());
        let (first, second) = low.interleave(high);
        let (first_scale, second_scale) = (scales.at(at), scales.at(at + S::f32s::LEN));
        let (first_out, second_out) = out.split_at_mut(S::f32s::LEN);
        ((first - first_scale.zero_point) * first_scale.scale).store_slice(first_out);
        ((second - second_scale.zero_point) * second_scale.scale).store_slice(second_out);
    }
}

impl<S: Simd> Step<S, u8, f32> for Decode<S, false> {
    const LEN: usize = S::u8s::LEN;
    const FROM: usize = S::u8s::LEN;
    const TO: usize = S::u8s::LEN;
    const BIAS: f32 = HOLDER + 128.0;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn step(self, scales: impl Scales<S>, codes: &[u8], out: &mut [f32]) {
        let len = S::f32s::LEN;
        let [a, b, c, d] =
            widen_lanes::<S>(S::u8s::from_slice(self.0, codes) ^ S::u8s::splat(self.0, 0x80));
        self.lanes(scales.at(0), a).store_slice(&mut out[..len]);
        self.lanes(scales.at(len), b).store_slice(&mut out[len..2 * len]);
        self.lanes(scales.at(2 * len), c).store_slice(&mut out[2 * len..3 * len]);
        self.lanes(scales.at(3 * len), d).store_slice(&mut out[3 * len..]);
    }
}

impl<S: Simd> Step<S, u8, f32> for Decode<S, true> {
    const LEN: usize = 2 * S::u8s::LEN;
    const FROM: usize = S::u8s::LEN;
    const TO: usize = 2 * S::u8s::LEN;
    const BIAS: f32 = HOLDER + 8.0;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn step(self, scales: impl Scales<S>, packed: &[u8], out: &mut [f32]) {
        let len = S::f32s::LEN;
        let [a, b, c, d] = widen_lanes::<S>(S::u8s::from_slice(self.0, packed));
        let (ab, cd) = out.split_at_mut(4 * len);
        let ((out_a, out_b), (out_c, out_d)) = (ab.split_at_mut(2 * len), cd.split_at_mut(2 * len));
        self.pairs(scales, a, 0, out_a);
        self.pairs(scales, b, 2 * len, out_b);
        self.pairs(scales, c, 4 * len, out_c);
        self.pairs(scales, d, 6 * len, out_d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENS: [usize; 14] = [0, 2, 14, 16, 18, 32, 62, 64, 66, 128, 130, 256, 300, 1030];
    const BLOCKS: [usize; 13] = [2, 6, 8, 16, 24, 32, 48, 64, 128, 192, 256, 1030, 2001];

    /// Numbers of all sizes, ties of small scales, NaN and infinities.
    fn inputs(len: usize) -> Vec<f32> {
        (0..len as u32)
            .map(|i| match (i.wrapping_mul(0x9e37_79b9), i % 7) {
                (_, 0) => f32::from(i as i16) * 0.5,
                (bits, 1) => f32::from_bits(bits),
                (_, 2) if i % 91 == 2 => {
                    [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i as usize / 91 % 3]
                }
                (bits, _) => (bits >> 8) as f32 / 1e6 - 8.0,
            })
            .collect()
    }

    fn scales(n: usize) -> (Vec<f32>, Vec<i8>) {
        let scale = |i: usize| [1.0, 0.5, 0.037, 1e-39, 3e37, 0.1][i % 6];
        ((0..n).map(scale).collect(), (0..n).map(|i| (i * 37 % 16) as i8 - 8).collect())
    }

    fn for_each_case(mut check: impl FnMut(Isa, Stores, &[f32], Blocks<'_>)) {
        let x = inputs(1030);
        let (scales, zero_points) = scales(1030);
        for isa in Isa::available() {
            for (len, block) in LENS.into_iter().flat_map(|len| BLOCKS.map(|block| (len, block))) {
                for zero_points in [None, Some(&zero_points[..])] {
                    let blocks = Blocks { block, scales: &scales, zero_points };
                    check(isa, Stores::Cached, &x[..len], blocks);
                    check(isa, Stores::Streamed, &x[..len], blocks);
                }
            }
        }
    }

    fn block_of(blocks: Blocks<'_>, i: usize) -> (f32, i8) {
        let i = i / blocks.block;
        (blocks.scales[i], blocks.zero_points.map_or(0, |zero_points| zero_points[i]))
    }

    #[test]
    fn every_isa_casts_int8_as_the_definition_says() {
        for_each_case(|isa, stores, x, blocks| {
            for limits in [[-128, 127], [-127, 127], [-3, 5]] {
                let mut codes = vec![99; x.len()];
                encode_i8_blocks_to(isa, stores, x, blocks, limits, &mut codes);
                let mut values = vec![99.0; x.len()];
                decode_i8_blocks_to(isa, stores, &codes, blocks, &mut values);
                for (i, (&x, (&code, value))) in x.iter().zip(codes.iter().zip(values)).enumerate()
                {
                    let (scale, zero_point) = block_of(blocks, i);
                    assert_eq!(
                        code,
                        encode_scalar(x, scale, zero_point, limits),
                        "{isa:?}: {x:e} / {scale} + {zero_point}"
                    );
                    let want = decode_scalar(code, scale, zero_point);
                    assert_eq!(
                        value.to_bits(),
                        want.to_bits(),
                        "{isa:?}: {code} with {scale} and {zero_point}"
                    );
                }
            }
        });
    }

    #[test]
    fn every_isa_casts_int4_as_the_definition_says() {
        for_each_case(|isa, stores, x, blocks| {
            for limits in [[-8, 7], [-7, 7]] {
                let mut packed = vec![99; x.len() / 2];
                encode_i4_blocks_to(isa, stores, x, blocks, limits, &mut packed);
                let mut values = vec![99.0; x.len()];
                decode_i4_blocks_to(isa, stores, &packed, blocks, &mut values);
                for (i, (&x, value)) in x.iter().zip(values).enumerate() {
                    let (scale, zero_point) = block_of(blocks, i);
                    let code = (packed[i / 2] >> (4 * (i % 2)) & 0xf) as i8 - 8;
                    assert_eq!(
                        code,
                        encode_scalar(x, scale, zero_point, limits),
                        "{isa:?}: {x:e} / {scale} + {zero_point}"
                    );
                    let want = decode_scalar(code, scale, zero_point);
                    assert_eq!(
                        value.to_bits(),
                        want.to_bits(),
                        "{isa:?}: {code} with {scale} and {zero_point}"
                    );
                }
            }
        });
    }

    #[test]
    fn every_code_decodes_with_every_zero_point_on_every_isa() {
        let codes: Vec<i8> = (i8::MIN..=i8::MAX).collect();
        let packed: Vec<u8> = (0..=u8::MAX).collect();
        for (isa, zero_point) in
            Isa::available().flat_map(|isa| codes.iter().map(move |&zero_point| (isa, zero_point)))
        {
            let blocks = Blocks { block: 512, scales: &[0.3], zero_points: Some(&[zero_point]) };
            let mut values = vec![0.0; 256];
            decode_i8_blocks_to(isa, Stores::Cached, &codes, blocks, &mut values);
            for (&code, value) in codes.iter().zip(values) {
                assert_eq!(value, (f32::from(code) - f32::from(zero_point)) * 0.3, "{isa:?}");
            }
            let mut values = vec![0.0; 512];
            decode_i4_blocks_to(isa, Stores::Cached, &packed, blocks, &mut values);
            for (byte, values) in packed.iter().zip(values.as_chunks::<2>().0) {
                let want = [byte & 0xf, byte >> 4]
                    .map(|code| (f32::from(code) - 8.0 - f32::from(zero_point)) * 0.3);
                assert_eq!(*values, want, "{isa:?}: {byte:#04x}");
            }
        }
    }

    #[test]
    fn results_that_go_around_the_caches_are_the_same_wherever_they_start() {
        let x = inputs(1030);
        let (scales, zero_points) = scales(1030);
        for (isa, start) in
            Isa::available().flat_map(|isa| [1, 3, 16, 61].map(|start| (isa, start)))
        {
            for block in [32, 128, 300] {
                let blocks = Blocks { block, scales: &scales, zero_points: Some(&zero_points) };
                let (mut codes, mut packed) = (vec![0; start + 1030], vec![0; start + 515]);
                let mut values = vec![0.0; start + 1030];
                let stores = Stores::Streamed;
                encode_i8_blocks_to(isa, stores, &x, blocks, [-128, 127], &mut codes[start..]);
                decode_i8_blocks_to(isa, stores, &codes[start..], blocks, &mut values[start..]);
                for (i, x) in x.iter().enumerate() {
                    let (scale, zero_point) = block_of(blocks, i);
                    let (code, value) = (codes[start + i], values[start + i]);
                    assert_eq!(code, encode_scalar(*x, scale, zero_point, [-128, 127]));
                    assert_eq!(value.to_bits(), decode_scalar(code, scale, zero_point).to_bits());
                }
                encode_i4_blocks_to(isa, stores, &x, blocks, [-8, 7], &mut packed[start..]);
                decode_i4_blocks_to(isa, stores, &packed[start..], blocks, &mut values[start..]);
                for (i, x) in x.iter().enumerate() {
                    let (scale, zero_point) = block_of(blocks, i);
                    let code = (packed[start + i / 2] >> (4 * (i % 2)) & 0xf) as i8 - 8;
                    assert_eq!(code, encode_scalar(*x, scale, zero_point, [-8, 7]));
                    let want = decode_scalar(code, scale, zero_point);
                    assert_eq!(values[start + i].to_bits(), want.to_bits());
                }
                assert!(codes[..start].iter().all(|&x| x == 0));
                assert!(packed[..start].iter().all(|&x| x == 0));
                assert!(values[..start].iter().all(|&x| x == 0.0));
            }
        }
    }

    #[test]
    #[should_panic(expected = "do not end with a byte")]
    fn blocks_that_end_within_a_byte_are_refused() {
        encode_i4_blocks_into(
            &[0.0; 6],
            Blocks { block: 3, scales: &[1.0; 2], zero_points: None },
            [-8, 7],
            &mut [0; 3],
        );
    }

    #[test]
    #[should_panic(expected = "3 scales for 4 blocks")]
    fn missing_scales_are_refused() {
        decode_i8_blocks_into(
            &[0; 100],
            Blocks { block: 32, scales: &[1.0; 3], zero_points: None },
            &mut [0.0; 100],
        );
    }

    #[test]
    #[should_panic(expected = "limits [-9, 7] of 4-bit codes")]
    fn limits_of_more_than_four_bits_are_refused() {
        encode_i4_blocks_into(
            &[0.0; 2],
            Blocks { block: 2, scales: &[1.0], zero_points: None },
            [-9, 7],
            &mut [0],
        );
    }
}
