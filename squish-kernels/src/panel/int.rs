//! The Q8 mode: integer products of blocks, scaled into chains of `f32`.
//!
//! Four inputs of an output stand in a 32-bit lane. One instruction (VNNI, NEON's dot product), or a few, multiply them
//! with four inputs of a row and add all to the lane's sum. The sum over a block is exact in whatever order. On x86-64
//! the instructions take one factor without a sign, so codes have a bias there, whose part of the sum is
//! `bias · sum(inputs)`, or `(bias + zero point) · sum(inputs)`; it is what a sum starts from. Bytes of INT8 have none on AVX2 without
//! VNNI: with it a sum of two products would exceed 16 bits, so that the input takes over the sign of the code.

use std::ops::Range;

use fearless_simd::{Level, Simd, prelude::*};

use super::{
    inputs::Tile,
    layout::{BLOCK, Code, PANEL, PanelLayout},
};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::bytes::same;
use crate::{Isa, bytes::widen_lanes, prefetch::Stream};

/// Steps of four inputs in a block.
pub(crate) const QUADS: usize = BLOCK / 4;

/// What the integer products of a level are made of.
pub(crate) trait Dot: Copy {
    /// The extension that has `sum + Σ w · x` as one instruction, where the level has none.
    fn native(self) -> Option<Native>;
}

/// What the level has of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Baseline;

/// Shows that the CPU has AVX-VNNI beside AVX2, or the dot product of NEON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Native(());

impl Native {
    /// The extension of a level, if the CPU has it.
    #[inline]
    pub(crate) fn of(isa: Isa) -> Option<Self> {
        let has = match isa.token() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => isa.has_vnni(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(_) => isa.has_dotprod(),
            _ => false,
        };
        has.then_some(Self(()))
    }
}

impl Dot for Baseline {
    #[inline(always)]
    fn native(self) -> Option<Native> {
        None
    }
}

impl Dot for Native {
    #[inline(always)]
    fn native(self) -> Option<Native> {
        Some(self)
    }
}

/// Whether codes have their bias when they are multiplied.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, reason = "other levels have one way for all codes")
)]
#[inline(always)]
fn biased<S: Simd>(simd: S, by: impl Dot, code: Code) -> bool {
    match simd.level() {
        #[cfg(target_arch = "aarch64")]
        Level::Neon(_) => false,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) if by.native().is_none() => code.bits() < 8,
        _ => true,
    }
}

/// What a code becomes: twice the value of E2M1, or its own, with the bias of the level.
#[derive(Clone, Copy)]
pub(crate) struct Table<S: Simd> {
    bytes: S::u8s,
}

impl<S: Simd> Table<S> {
    #[inline(always)]
    fn new(simd: S, by: impl Dot, code: Code) -> Self {
        const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
        let mut bytes = [0; 64];
        let bias = if biased(simd, by, code) { code.bias() } else { 0 };
        for (i, byte) in bytes.iter_mut().enumerate() {
            let value = if code == Code::E2M1 { E2M1[i % 16] } else { (i % 16) as i8 - 8 };
            *byte = (value as u8).wrapping_add(bias);
        }
        Self { bytes: S::u8s::from_slice(simd, &bytes[..S::u8s::LEN]) }
    }

    /// Of the lower and the upper halves of bytes.
    #[inline(always)]
    fn halves(self, codes: S::u8s) -> [S::u8s; 2] {
        let later = (codes.bitcast::<S::u16s>() >> 4).bitcast::<S::u8s>();
        [self.look_up(codes), self.look_up(later)]
    }

    /// Of the lower halves of bytes, whatever stands in the upper ones.
    #[inline(always)]
    fn look_up(self, codes: S::u8s) -> S::u8s {
        let simd = codes.token();
        match simd.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(token) => {
                same(simd, x86::look_up(token, same(token, self.bytes), same(token, codes)))
            }
            _ => self.bytes.swizzle_dyn_within_blocks(codes & S::u8s::splat(simd, 0xf)),
        }
    }
}

/// `sum + Σ w · x` over the four bytes of each lane of two vectors, with `w` as [`biased`] says and signed `x`.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, reason = "other levels have one way for all codes")
)]
#[inline(always)]
fn dots<S: Simd>(
    by: impl Dot,
    code: Code,
    sum: S::i32s,
    [v, w]: [S::u8s; 2],
    [x, y]: [S::u8s; 2],
) -> S::i32s {
    let simd = sum.token();
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) => {
            let first = x86::dot_512(token, same(token, sum), same(token, v), same(token, x));
            same(simd, x86::dot_512(token, first, same(token, w), same(token, y)))
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => {
            let (sum, v, x) = (same(token, sum), same(token, v), same(token, x));
            let (w, y) = (same(token, w), same(token, y));
            let sum = match by.native() {
                Some(native) => {
                    let first = x86::dot_vnni(native, token, sum, v, x);
                    x86::dot_vnni(native, token, first, w, y)
                }
                None if code.bits() == 8 => {
                    let first = x86::dot_signed(token, sum, v, x);
                    x86::dot_signed(token, first, w, y)
                }
                None => x86::dots_biased(token, sum, [v, w], [x, y]),
            };
            same(simd, sum)
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon(token) => {
            let (sum, v, x) = (same(token, sum), same(token, v), same(token, x));
            let (w, y) = (same(token, w), same(token, y));
            let sum = match by.native() {
                Some(native) => {
                    let first = neon::dot_native(native, token, sum, v, x);
                    neon::dot_native(native, token, first, w, y)
                }
                None => neon::dot(token, neon::dot(token, sum, v, x), w, y),
            };
            same(simd, sum)
        }
        _ => {
            let mut out = sum;
            for (w, x) in [(v, x), (w, y)] {
                let lanes =
                    w.as_slice().as_chunks::<4>().0.iter().zip(x.as_slice().as_chunks::<4>().0);
                for (out, (w, x)) in out.as_mut_slice().iter_mut().zip(lanes) {
                    *out += (0..4).map(|i| i32::from(w[i]) * i32::from(x[i] as i8)).sum::<i32>();
                }
            }
            out
        }
    }
}

/// Codes of a panel that kernels multiply as bytes.
pub(crate) trait ByteCodes {
    /// Which ones.
    const CODE: Code;
    /// Bytes of a block of all outputs.
    const BLOCK_BYTES: usize;

    /// The bytes of a vector of outputs for two steps of a block, `2 * i` and the next. Asks for memory ahead along with each
    /// load: many requests at once hold up what follows.
    fn decode<S: Simd>(
        simd: S,
        by: impl Dot,
        table: Table<S>,
        stream: Stream,
        block: &[u8],
        i: usize,
        vector: usize,
    ) -> [S::u8s; 2];
}

/// E2M1 and INT4.
pub(crate) struct Nibbles<const E2M1: bool>;

impl<const E2M1: bool> ByteCodes for Nibbles<E2M1> {
    const CODE: Code = if E2M1 { Code::E2M1 } else { Code::Int4 };
    const BLOCK_BYTES: usize = BLOCK / 2 * PANEL;

    #[inline(always)]
    fn decode<S: Simd>(
        simd: S,
        _: impl Dot,
        table: Table<S>,
        stream: Stream,
        block: &[u8],
        i: usize,
        vector: usize,
    ) -> [S::u8s; 2] {
        let codes = &block[i * 4 * PANEL + vector * S::u8s::LEN..][..S::u8s::LEN];
        stream.lines(codes);
        table.halves(S::u8s::from_slice(simd, codes))
    }
}

/// INT8, or the element of MXINT8.
pub(crate) struct Int8<const MX: bool>;

impl<const MX: bool> ByteCodes for Int8<MX> {
    const CODE: Code = if MX { Code::MxInt8 } else { Code::Int8 };
    const BLOCK_BYTES: usize = BLOCK * PANEL;

    #[inline(always)]
    fn decode<S: Simd>(
        simd: S,
        by: impl Dot,
        _: Table<S>,
        stream: Stream,
        block: &[u8],
        i: usize,
        vector: usize,
    ) -> [S::u8s; 2] {
        // The upper bit is the bias.
        let bias = S::u8s::splat(simd, if biased(simd, by, Self::CODE) { 0x80 } else { 0 });
        let first = &block[2 * i * 4 * PANEL + vector * S::u8s::LEN..][..S::u8s::LEN];
        let second = &block[(2 * i + 1) * 4 * PANEL + vector * S::u8s::LEN..][..S::u8s::LEN];
        stream.lines(first);
        stream.lines(second);
        [S::u8s::from_slice(simd, first) ^ bias, S::u8s::from_slice(simd, second) ^ bias]
    }
}

/// What the sum of a block's inputs is multiplied by for its products to start from, without zero points: the bias, taken off.
#[inline(always)]
pub(crate) fn start_offset<S: Simd>(simd: S, by: impl Dot, code: Code) -> i32 {
    if biased(simd, by, code) { -i32::from(code.bias()) } else { 0 }
}

/// [`start_offset`] of each output, with its zero point plus bias.
#[inline(always)]
pub(crate) fn start_offsets<S: Simd>(
    simd: S,
    by: impl Dot,
    code: Code,
    offsets: &[u8; PANEL],
) -> [i32; PANEL] {
    let bias = start_offset(simd, by, code) + i32::from(code.bias());
    let mut out = [bias; PANEL];
    for (out, offset) in out.iter_mut().zip(offsets) {
        *out -= i32::from(*offset);
    }
    out
}

/// The scales in the header of a group.
pub(crate) trait BlockScales {
    /// Whether there are zero points.
    const ZERO: bool = false;
    /// How many scales an output has in a block: one, or one for each half.
    const PARTS: usize = 1;

    /// Those of the outputs, in vectors of outputs; the same twice if there is one.
    fn decode<S: Simd, const N: usize>(simd: S, header: &[u8]) -> [[S::f32s; N]; 2];
}

/// `f32`, and zero points if `Z`.
pub(crate) struct F32Scales<const Z: bool>;

impl<const Z: bool> BlockScales for F32Scales<Z> {
    const ZERO: bool = Z;

    #[inline(always)]
    fn decode<S: Simd, const N: usize>(simd: S, header: &[u8]) -> [[S::f32s; N]; 2] {
        let mut out = [S::f32s::splat(simd, 0.0); N];
        for v in 0..N {
            let bytes = &header[v * S::u8s::LEN..(v + 1) * S::u8s::LEN];
            out[v] = S::u8s::from_slice(simd, bytes).bitcast();
        }
        [out; 2]
    }
}

/// Powers of two.
pub(crate) struct E8M0Scales;

impl BlockScales for E8M0Scales {
    #[inline(always)]
    fn decode<S: Simd, const N: usize>(simd: S, header: &[u8]) -> [[S::f32s; N]; 2] {
        let mut out = [S::f32s::splat(simd, 0.0); N];
        for i in 0..N / 4 {
            let bytes = S::u8s::from_slice(simd, &header[i * S::u8s::LEN..(i + 1) * S::u8s::LEN]);
            let lanes = widen_lanes::<S>(bytes);
            for j in 0..4 {
                out[4 * i + j] = e8m0::<S>(lanes[j]);
            }
        }
        [out; 2]
    }
}

/// 8-bit floats of both halves.
pub(crate) struct E4M3Scales;

impl BlockScales for E4M3Scales {
    const PARTS: usize = 2;

    #[inline(always)]
    fn decode<S: Simd, const N: usize>(simd: S, header: &[u8]) -> [[S::f32s; N]; 2] {
        let mut out = [[S::f32s::splat(simd, 0.0); N]; 2];
        for half in 0..2 {
            for i in 0..N / 4 {
                let at = half * PANEL + i * S::u8s::LEN;
                let lanes =
                    widen_lanes::<S>(S::u8s::from_slice(simd, &header[at..at + S::u8s::LEN]));
                for j in 0..4 {
                    out[half][4 * i + j] = e4m3::<S>(lanes[j]);
                }
            }
        }
        out
    }
}

/// The bits below the sign are moved to where `f32` has them, which divides by a power of two that a product restores.
#[inline(always)]
fn e4m3<S: Simd>(bytes: S::u32s) -> S::f32s {
    let simd = bytes.token();
    let magnitude = bytes & S::u32s::splat(simd, 0x7f);
    let sign = (bytes & S::u32s::splat(simd, 0x80)) << 24;
    let is_nan = magnitude.simd_eq(S::u32s::splat(simd, 0x7f));
    let bits = is_nan.select(S::u32s::splat(simd, 0x7fc0_0000), magnitude << 20) | sign;
    bits.bitcast::<S::f32s>() * S::f32s::splat(simd, f32::from_bits((127 + 120) << 23))
}

/// The powers of two of E8M0: the byte is the exponent, but zero is subnormal and 255 is NaN.
#[inline(always)]
fn e8m0<S: Simd>(bytes: S::u32s) -> S::f32s {
    let simd = bytes.token();
    let bits = (bytes << 23).max(S::u32s::splat(simd, 0x0040_0000));
    let is_nan = bytes.simd_eq(S::u32s::splat(simd, 0xff));
    is_nan.select(S::u32s::splat(simd, 0x7fc0_0000), bits).bitcast()
}

/// Adds the products of a panel's codes with a row to `sums`. `N` is the number of vectors of a panel.
#[inline(always)]
pub(crate) fn one_row<S: Simd, C: ByteCodes, K: BlockScales, const N: usize>(
    simd: S,
    by: impl Dot,
    layout: &PanelLayout,
    panel: &[u8],
    stream: Stream,
    x: Tile<'_>,
    sums: &mut [f32; PANEL],
) {
    let lanes = S::f32s::LEN;
    let table = Table::new(simd, by, C::CODE);
    let mut acc = [S::f32s::splat(simd, 0.0); N];
    let x_sums = x.sums.chunks_exact(K::PARTS);
    let mut inputs = x.words.as_chunks::<QUADS>().0.iter().zip(x.scales.iter().zip(x_sums));
    for group in layout.groups(panel) {
        stream.lines(group.header);
        let scales = K::decode::<S, N>(simd, group.header);
        let mut offsets = [0; PANEL];
        if K::ZERO {
            offsets = start_offsets(simd, by, C::CODE, &group.offsets(layout));
        }
        for block in group.codes.chunks_exact(C::BLOCK_BYTES) {
            let Some((quads, (&x_scale, x_sums))) = inputs.next() else { break };
            let x_scale = S::f32s::splat(simd, x_scale * C::CODE.unit());
            let mut x = [S::u8s::splat(simd, 0); QUADS];
            for i in 0..QUADS {
                x[i] = S::u32s::splat(simd, quads[i]).bitcast();
            }
            for part in 0..K::PARTS {
                let x_sum = x_sums[part];
                let mut sum = [S::i32s::splat(simd, x_sum * start_offset(simd, by, C::CODE)); N];
                if K::ZERO {
                    for v in 0..N {
                        let own = S::i32s::from_slice(simd, &offsets[v * lanes..(v + 1) * lanes]);
                        sum[v] = own * S::i32s::splat(simd, x_sum);
                    }
                }
                // In the order of the bytes.
                for i in steps::<K>(part) {
                    for v in 0..N {
                        let w = C::decode(simd, by, table, stream, block, i, v);
                        sum[v] = dots::<S>(by, C::CODE, sum[v], w, [x[2 * i], x[2 * i + 1]]);
                    }
                }
                for v in 0..N {
                    let scale = scales[part][v] * x_scale;
                    acc[v] = sum[v].to_float::<S::f32s>().mul_add(scale, acc[v]);
                }
            }
        }
    }
    for v in 0..N {
        acc[v].store_slice(&mut sums[v * lanes..(v + 1) * lanes]);
    }
}

/// Pairs of steps of a part of a block.
#[inline(always)]
fn steps<K: BlockScales>(part: usize) -> Range<usize> {
    let n = QUADS / 2 / K::PARTS;
    part * n..(part + 1) * n
}

/// Adds the products of a panel's codes with the rows of a tile to their sums.
///
/// Each vector of outputs has its block decoded in registers, and meets all rows; a row's sums are in the first-level cache
/// meanwhile, a load and a store for eight products.
#[inline(always)]
pub(crate) fn rows<S: Simd, C: ByteCodes, K: BlockScales, const N: usize>(
    simd: S,
    by: impl Dot,
    layout: &PanelLayout,
    panel: &[u8],
    x: Tile<'_>,
    sums: &mut [[f32; PANEL]],
) {
    let lanes = S::f32s::LEN;
    // Of each block, one vector of outputs is read after the other.
    let stream = Stream::Asked;
    let table = Table::new(simd, by, C::CODE);
    let mut offsets = [0; PANEL];
    let inputs = x.words.as_chunks::<QUADS>().0.chunks_exact(x.n_rows);
    let x_sums = x.sums.chunks_exact(x.n_rows * K::PARTS);
    let mut inputs = inputs.zip(x.scales.chunks_exact(x.n_rows).zip(x_sums));
    for group in layout.groups(panel) {
        stream.lines(group.header);
        let scales = K::decode::<S, N>(simd, group.header);
        if K::ZERO {
            offsets = start_offsets(simd, by, C::CODE, &group.offsets(layout));
        }
        for block in group.codes.chunks_exact(C::BLOCK_BYTES) {
            let Some((x, (x_scales, x_sums))) = inputs.next() else { break };
            for v in 0..N {
                let at = v * lanes..(v + 1) * lanes;
                let mut w = [S::u8s::splat(simd, 0); QUADS];
                for i in 0..QUADS / 2 {
                    [w[2 * i], w[2 * i + 1]] = C::decode(simd, by, table, stream, block, i, v);
                }
                let own = S::i32s::from_slice(simd, &offsets[at.clone()]);
                let of_x = x.iter().zip(x_scales.iter().zip(x_sums.chunks_exact(K::PARTS)));
                for ((quads, (&x_scale, x_sums)), sums) in of_x.zip(sums.iter_mut()) {
                    let x_scale = S::f32s::splat(simd, x_scale * C::CODE.unit());
                    let sums = &mut sums[at.clone()];
                    let mut sum = S::f32s::from_slice(simd, sums);
                    for part in 0..K::PARTS {
                        let x_sum = x_sums[part];
                        let mut of_block = if K::ZERO {
                            own * S::i32s::splat(simd, x_sum)
                        } else {
                            S::i32s::splat(simd, x_sum * start_offset(simd, by, C::CODE))
                        };
                        for i in steps::<K>(part) {
                            let i = 2 * i;
                            let x = [quads[i], quads[i + 1]].map(
                                #[inline(always)]
                                |quad| S::u32s::splat(simd, quad).bitcast(),
                            );
                            of_block = dots::<S>(by, C::CODE, of_block, [w[i], w[i + 1]], x);
                        }
                        let scale = scales[part][v] * x_scale;
                        sum = of_block.to_float::<S::f32s>().mul_add(scale, sum);
                    }
                    sum.store_slice(sums);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Avx2, Avx512, i32x8, i32x16, kernel, prelude::*, u8x32, u8x64};

    use super::Native;

    kernel!(
        /// The index is the lower six bits, and the table of 16 stands in all quarters: what is above the lower four does not
        /// matter.
        #[inline(always)]
        pub(super) fn look_up(
            token: Avx512,
            table: u8x64<Avx512>,
            codes: u8x64<Avx512>,
        ) -> u8x64<Avx512> {
            _mm512_permutexvar_epi8(codes.into(), table.into()).simd_into(token)
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn dot_512(
            token: Avx512,
            sum: i32x16<Avx512>,
            w: u8x64<Avx512>,
            x: u8x64<Avx512>,
        ) -> i32x16<Avx512> {
            _mm512_dpbusd_epi32(sum.into(), w.into(), x.into()).simd_into(token)
        }
    );

    kernel!(
        /// For `w` up to 64: a sum of four products fits into 16 bits.
        #[inline(always)]
        pub(super) fn dots_biased(
            token: Avx2,
            sum: i32x8<Avx2>,
            w: [u8x32<Avx2>; 2],
            x: [u8x32<Avx2>; 2],
        ) -> i32x8<Avx2> {
            let first = _mm256_maddubs_epi16(w[0].into(), x[0].into());
            let pairs = _mm256_add_epi16(first, _mm256_maddubs_epi16(w[1].into(), x[1].into()));
            let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            _mm256_add_epi32(sum.into(), quads).simd_into(token)
        }
    );

    kernel!(
        /// For signed `w`, and `x` from -127 on: magnitudes are at most 128 and 127, so that a sum of two products fits into 16 bits.
        #[inline(always)]
        pub(super) fn dot_signed(
            token: Avx2,
            sum: i32x8<Avx2>,
            w: u8x32<Avx2>,
            x: u8x32<Avx2>,
        ) -> i32x8<Avx2> {
            let (w, x): (__m256i, __m256i) = (w.into(), x.into());
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            _mm256_add_epi32(sum.into(), quads).simd_into(token)
        }
    );

    /// The instruction of AVX-VNNI, which the level does not include.
    #[inline(always)]
    pub(super) fn dot_vnni(
        _: Native,
        token: Avx2,
        sum: i32x8<Avx2>,
        w: u8x32<Avx2>,
        x: u8x32<Avx2>,
    ) -> i32x8<Avx2> {
        // SAFETY: a `Native` of this level shows that the CPU has AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sum.into(), w.into(), x.into()) }.simd_into(token)
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use core::arch::{aarch64::*, asm};

    use fearless_simd::{Neon, i32x4, kernel, prelude::*, u8x16};

    use super::Native;

    kernel!(
        /// Products as 16-bit integers, which two of them do not overflow as a sum of pairs in 32 bits.
        #[inline(always)]
        pub(super) fn dot(
            token: Neon,
            sum: i32x4<Neon>,
            w: u8x16<Neon>,
            x: u8x16<Neon>,
        ) -> i32x4<Neon> {
            let (w, x) = (vreinterpretq_s8_u8(w.into()), vreinterpretq_s8_u8(x.into()));
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
            let high = vpaddlq_s16(vmull_high_s8(w, x));
            vaddq_s32(sum.into(), vpaddq_s32(low, high)).simd_into(token)
        }
    );

    /// `sdot`, written out because its intrinsic is not stable at our minimum Rust version.
    #[inline(always)]
    pub(super) fn dot_native(
        _: Native,
        token: Neon,
        sum: i32x4<Neon>,
        w: u8x16<Neon>,
        x: u8x16<Neon>,
    ) -> i32x4<Neon> {
        let (mut sum, w, x): (int32x4_t, uint8x16_t, uint8x16_t) = (sum.into(), w.into(), x.into());
        // SAFETY: the block reads and writes the registers that it names, and a `Native` shows that the CPU has the instruction.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum.simd_into(token)
    }
}
