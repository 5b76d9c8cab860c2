//! The BF16 mode on CPUs with a fast instruction for pairs of BF16 (`vdpbf16ps`).
//!
//! The instruction adds the product of the second inputs of a pair and then that of the first, each as a fused
//! multiply-add to which subnormal numbers are zeros.

use core::arch::x86_64::*;

use fearless_simd::{Avx512, Level, f32x16, prelude::*, u8x64, u32x16};

use super::{
    float,
    layout::{BLOCK, Code, PANEL},
};
use crate::{
    Isa,
    bytes::{zip_bytes, zip_words},
    float8::Float8,
    prefetch::{self, AHEAD, Ahead, Stream},
};

/// Shows that the CPU has the level of AVX-512, and prefers its instruction for pairs of BF16.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16Dot(Avx512);

impl Bf16Dot {
    /// Of a level that has and prefers it.
    #[inline]
    pub(super) fn of(isa: Isa) -> Option<Self> {
        match isa.token() {
            Level::Avx512(token) if isa.prefers_bf16_dot() => Some(Self(token)),
            _ => None,
        }
    }

    /// The level alone.
    #[inline(always)]
    pub(super) const fn level(self) -> Avx512 {
        self.0
    }
}

/// Gives a function all features that [`Bf16Dot`] shows: one that has fewer does not inline the SIMD library's operations.
macro_rules! with_bf16_dot {
    ($function:item) => {
        #[target_feature(
            enable = "fxsr,adx,aes,avx512bitalg,avx512bw,avx512cd,avx512dq,avx512f,avx512ifma,avx512vbmi,avx512vbmi2,avx512vl,avx512vnni,avx512vpopcntdq,bmi1,bmi2,cmpxchg16b,fma,gfni,lzcnt,movbe,pclmulqdq,popcnt,rdrand,rdseed,sha,vaes,vpclmulqdq,xsave,xsavec,xsaveopt,xsaves,avx512bf16"
        )]
        $function
    };
}
pub(super) use with_bf16_dot;

/// Vectors of outputs of a panel.
const VECTORS: usize = PANEL / 16;

/// Weights of a panel as pairs of BF16.
pub(super) trait Pairs {
    /// Bytes of two inputs of all outputs.
    const PAIR_BYTES: usize;

    /// What decoding takes besides the codes.
    type Tables: Copy;

    fn tables(token: Avx512) -> Self::Tables;

    /// Two inputs of half of the outputs.
    fn decode(token: Avx512, tables: Self::Tables, pair: &[u8], half: usize) -> [__m512i; 2];

    /// Pairs of what stands at the same place in halves of two others, the second ones in front. Within each block of sixteen bytes of a
    /// half's BF16, those of its lower half are in one vector and those of its upper in the next.
    fn zip(token: Avx512, tables: Self::Tables, halves: [&[u8]; 2]) -> [__m512i; 4];
}

/// BF16 as it is.
pub(super) struct Stored;

impl Pairs for Stored {
    const PAIR_BYTES: usize = 4 * PANEL;
    type Tables = ();

    #[inline(always)]
    fn tables(_: Avx512) {}

    #[inline(always)]
    fn decode(token: Avx512, (): (), pair: &[u8], half: usize) -> [__m512i; 2] {
        let pair = &pair[half * 2 * PANEL..(half + 1) * 2 * PANEL];
        [bytes(token, &pair[..64]), bytes(token, &pair[64..])]
    }

    #[inline(always)]
    fn zip(token: Avx512, (): (), halves: [&[u8]; 2]) -> [__m512i; 4] {
        let [(a, b), (c, d)] = [0, 64].map(
            #[inline(always)]
            |at| {
                let [first, second] = halves.map(
                    #[inline(always)]
                    |half| u8x64::from_slice(token, &half[at..at + 64]).bitcast(),
                );
                zip_words::<Avx512>(second, first)
            },
        );
        [a.into(), b.into(), c.into(), d.into()]
    }
}

/// The bytes of the BF16 of every code are looked up.
impl<const EXPONENT: u32> Pairs for Float8<EXPONENT> {
    const PAIR_BYTES: usize = 2 * PANEL;
    type Tables = [[__m512i; 2]; 2];

    #[inline(always)]
    fn tables(token: Avx512) -> Self::Tables {
        Self::look_up_tables(token)
    }

    #[inline(always)]
    fn decode(token: Avx512, tables: Self::Tables, pair: &[u8], half: usize) -> [__m512i; 2] {
        let codes = u8x64::from_slice(token, &pair[half * 64..half * 64 + 64]);
        let [a, b] = Self::look_up(token, codes, tables);
        [a.into(), b.into()]
    }

    #[inline(always)]
    fn zip(token: Avx512, tables: Self::Tables, halves: [&[u8]; 2]) -> [__m512i; 4] {
        let [first, second] = halves.map(
            #[inline(always)]
            |half| u8x64::from_slice(token, half),
        );
        // Interleaved before they are looked up: the lookup interleaves once more, bytes of the same BF16.
        let (low, high) = zip_bytes::<Avx512>(second, first);
        let [a, b] = Self::look_up(token, low, tables);
        let [c, d] = Self::look_up(token, high, tables);
        [a.into(), b.into(), c.into(), d.into()]
    }
}

/// As [`super::float::one_row`], with pairs of BF16.
#[inline(always)]
pub(super) fn one_row<'a, P: Pairs>(
    bf16_dot: Bf16Dot,
    pairs: impl Iterator<Item = (&'a [u8], u32)>,
    sums: &mut [f32; PANEL],
) {
    let token = bf16_dot.level();
    let tables = P::tables(token);
    let mut acc = [zero(token); VECTORS];
    for v in 0..VECTORS {
        acc[v] = load(token, &sums[16 * v..16 * v + 16]);
    }
    for (pair, x) in pairs {
        let x = u32x16::splat(token, x).into();
        let [a, b] = P::decode(token, tables, pair, 0);
        let [c, d] = P::decode(token, tables, pair, 1);
        acc = four_dots(bf16_dot, acc, [a, b, c, d], x);
    }
    for v in 0..VECTORS {
        store(token, acc[v], &mut sums[16 * v..16 * v + 16]);
    }
}

/// Decodes as many pairs of a group's codes as `out` has room for.
#[inline(always)]
pub(super) fn decode_into<P: Pairs>(token: Avx512, codes: &[u8], out: &mut [[u32; PANEL]]) {
    let tables = P::tables(token);
    for (pair, out) in codes.chunks_exact(P::PAIR_BYTES).zip(out) {
        prefetch::far_lines(pair, AHEAD);
        for half in 0..2 {
            let [a, b] = P::decode(token, tables, pair, half);
            let [a, b]: [u32x16<Avx512>; 2] = [a.simd_into(token), b.simd_into(token)];
            a.store_slice(&mut out[32 * half..32 * half + 16]);
            b.store_slice(&mut out[32 * half + 16..32 * half + 32]);
        }
    }
}

/// Decodes the codes that have no [`Pairs`] through `f32`, which is exact: all of their values are BF16.
#[inline(always)]
pub(super) fn decode_plain(
    code: Code,
    codes: &[u8],
    offsets: &[u8; PANEL],
    half_scales: Option<&[[f32; PANEL]; 2]>,
    out: &mut [[u32; PANEL]],
) {
    // A block, whose values stay in the first-level cache.
    const AT_ONCE: usize = BLOCK / 2;
    let mut values = [[0.0; PANEL]; 2 * AT_ONCE];
    let bytes_at_once = 2 * AT_ONCE * PANEL * code.bits() / 8;
    for (codes, out) in codes.chunks(bytes_at_once).zip(out.chunks_mut(AT_ONCE)) {
        let values = &mut values[..2 * out.len()];
        float::decode_plain(code, codes, offsets, values);
        if let Some(scales) = half_scales {
            float::scale_halves(scales, values);
        }
        for ([first, second], out) in values.as_chunks::<2>().0.iter().zip(out) {
            for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
                *out = first.to_bits() >> 16 | second.to_bits();
            }
        }
    }
}

/// Rows whose sums of all outputs are in registers at once.
const MOST_ROWS_AT_ONCE: usize = 6;

/// Steps that a tile of so many rows takes for each pair of inputs.
pub(super) const fn n_steps(n_rows: usize) -> usize {
    if n_rows <= MOST_ROWS_AT_ONCE { 1 } else { 2 }
}

/// Adds the products of a group's codes with a tile's pairs of inputs to its sums, and asks for memory: for the codes that follow shortly as
/// `stream` says, and for what `ahead` does.
///
/// Of up to six rows all sums are in registers. More meet the outputs in halves: twelve rows have 24 sums, and a step of 24
/// instructions makes 14 loads.
#[inline(always)]
pub(super) fn tile_into<P: Pairs, const ROWS: usize>(
    bf16_dot: Bf16Dot,
    codes: &[u8],
    stream: Stream,
    ahead: &mut Ahead<'_>,
    x: &[u32],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let token = bf16_dot.level();
    let tables = P::tables(token);
    let inputs = x.as_chunks::<ROWS>().0;
    if ROWS <= MOST_ROWS_AT_ONCE {
        let mut acc = [[zero(token); VECTORS]; ROWS];
        for row in 0..ROWS {
            for v in 0..VECTORS {
                acc[row][v] = load(token, &sums[row][16 * v..16 * v + 16]);
            }
        }
        for (pair, x) in codes.chunks_exact(P::PAIR_BYTES).zip(inputs) {
            stream.lines(pair);
            ahead.step();
            let [a, b] = P::decode(token, tables, pair, 0);
            let [c, d] = P::decode(token, tables, pair, 1);
            for row in 0..ROWS {
                let x = u32x16::splat(token, x[row]).into();
                acc[row] = four_dots(bf16_dot, acc[row], [a, b, c, d], x);
            }
        }
        for row in 0..ROWS {
            for v in 0..VECTORS {
                store(token, acc[row][v], &mut sums[row][16 * v..16 * v + 16]);
            }
        }
        return;
    }
    for half in 0..2 {
        let (low, high) = (32 * half..32 * half + 16, 32 * half + 16..32 * half + 32);
        let mut acc = [[zero(token); 2]; ROWS];
        for row in 0..ROWS {
            acc[row][0] = load(token, &sums[row][low.clone()]);
            acc[row][1] = load(token, &sums[row][high.clone()]);
        }
        for (pair, x) in codes.chunks_exact(P::PAIR_BYTES).zip(inputs) {
            if half == 0 {
                stream.lines(pair);
            }
            ahead.step();
            let [a, b] = P::decode(token, tables, pair, half);
            for row in 0..ROWS {
                let x = u32x16::splat(token, x[row]).into();
                let [p, q] = acc[row];
                acc[row] = [dot(bf16_dot, p, a, x), dot(bf16_dot, q, b, x)];
            }
        }
        for row in 0..ROWS {
            store(token, acc[row][0], &mut sums[row][low.clone()]);
            store(token, acc[row][1], &mut sums[row][high.clone()]);
        }
    }
}

#[inline(always)]
fn bytes(token: Avx512, bytes: &[u8]) -> __m512i {
    u8x64::from_slice(token, bytes).into()
}

#[inline(always)]
pub(super) fn zero(token: Avx512) -> __m512 {
    f32x16::splat(token, 0.0).into()
}

#[inline(always)]
pub(super) fn load(token: Avx512, sums: &[f32]) -> __m512 {
    f32x16::from_slice(token, sums).into()
}

#[inline(always)]
pub(super) fn store(token: Avx512, acc: __m512, sums: &mut [f32]) {
    let acc: f32x16<Avx512> = acc.simd_into(token);
    acc.store_slice(sums);
}

#[inline(always)]
pub(super) fn dot(_: Bf16Dot, sum: __m512, weights: __m512i, x: __m512i) -> __m512 {
    // SAFETY: the token shows that the CPU has the instruction.
    unsafe { _mm512_dpbf16_ps(sum, bytemuck::cast(weights), bytemuck::cast(x)) }
}

/// Of all outputs.
#[inline(always)]
fn four_dots(
    bf16_dot: Bf16Dot,
    [p, q, r, s]: [__m512; VECTORS],
    [a, b, c, d]: [__m512i; VECTORS],
    x: __m512i,
) -> [__m512; VECTORS] {
    [dot(bf16_dot, p, a, x), dot(bf16_dot, q, b, x), dot(bf16_dot, r, c, x), dot(bf16_dot, s, d, x)]
}
