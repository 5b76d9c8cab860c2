//! Chains of `f32` multiply-adds: the F32 mode, and the BF16 mode where its instruction is absent or slow.
//!
//! One row of inputs meets the panel's codes in the order of the bytes, each decoded in registers ([`one_row`]), and so do few rows
//! ([`few_rows_of_codes`] on the widest level, [`tile_of_codes`] on vectors of 256 bits). More rows meet weights that were decoded into `f32`
//! before ([`tile_into`]), two vectors of outputs at a time.

use fearless_simd::{Simd, prelude::*};

use half::f16;

use super::layout::{BLOCK, Code, PANEL};
pub(crate) use crate::float8::Float8;
use crate::{
    prefetch::{Ahead, Stream},
    real::bf16_pairs,
};

/// Codes of a panel that become `f32` in registers, two inputs of all outputs at a time.
pub(crate) trait PairCodes {
    /// Bytes of two inputs.
    const PAIR_BYTES: usize;

    /// The two vectors of outputs of step `i` of `n / 2`, where a panel has `n` vectors of outputs.
    fn vectors(i: usize, n: usize) -> [usize; 2];

    /// Their weights, `[vector][input]`, without scales.
    fn decode<S: Simd>(simd: S, pair: &[u8], i: usize, n: usize) -> [[S::f32s; 2]; 2];
}

/// Vector `i` of `bytes`.
#[inline(always)]
fn f32s<S: Simd>(simd: S, bytes: &[u8], i: usize) -> S::f32s {
    S::u8s::from_slice(simd, &bytes[i * S::u8s::LEN..(i + 1) * S::u8s::LEN]).bitcast()
}

/// `f32` as it is.
pub(crate) struct F32;

impl PairCodes for F32 {
    const PAIR_BYTES: usize = 8 * PANEL;

    #[inline(always)]
    fn vectors(i: usize, _: usize) -> [usize; 2] {
        [2 * i, 2 * i + 1]
    }

    #[inline(always)]
    fn decode<S: Simd>(simd: S, pair: &[u8], i: usize, n: usize) -> [[S::f32s; 2]; 2] {
        [
            [f32s(simd, pair, 2 * i), f32s(simd, pair, n + 2 * i)],
            [f32s(simd, pair, 2 * i + 1), f32s(simd, pair, n + 2 * i + 1)],
        ]
    }
}

/// Pairs of BF16: the upper halves of `f32`.
pub(crate) struct Bf16;

impl PairCodes for Bf16 {
    const PAIR_BYTES: usize = 4 * PANEL;

    #[inline(always)]
    fn vectors(i: usize, _: usize) -> [usize; 2] {
        [2 * i, 2 * i + 1]
    }

    #[inline(always)]
    fn decode<S: Simd>(simd: S, pair: &[u8], i: usize, _: usize) -> [[S::f32s; 2]; 2] {
        let [first, second] = [2 * i, 2 * i + 1];
        [
            bf16_pairs::<S>(f32s(simd, pair, first).bitcast()),
            bf16_pairs::<S>(f32s(simd, pair, second).bitcast()),
        ]
    }
}

impl<const EXPONENT: u32> PairCodes for Float8<EXPONENT> {
    const PAIR_BYTES: usize = 2 * PANEL;

    /// Of each half of the outputs, one from its first and one from its second half.
    #[inline(always)]
    fn vectors(i: usize, n: usize) -> [usize; 2] {
        let quarter = n / 4;
        let low = i / quarter * 2 * quarter + i % quarter;
        [low, low + quarter]
    }

    #[inline(always)]
    fn decode<S: Simd>(simd: S, pair: &[u8], i: usize, _: usize) -> [[S::f32s; 2]; 2] {
        Self::values::<S>(S::u8s::from_slice(simd, &pair[i * S::u8s::LEN..][..S::u8s::LEN]))
    }
}

/// Decodes the codes that have no [`PairCodes`], as many inputs as `out` has room for, `[inputs, outputs]`: maps that the compiler
/// turns into vector instructions.
#[inline(always)]
pub(crate) fn decode_plain(
    code: Code,
    codes: &[u8],
    offsets: &[u8; PANEL],
    out: &mut [[f32; PANEL]],
) {
    match code {
        Code::F16 => {
            for (codes, out) in codes.as_chunks::<{ 2 * PANEL }>().0.iter().zip(out) {
                for (code, out) in codes.as_chunks::<2>().0.iter().zip(out) {
                    *out = f16::from_le_bytes(*code).to_f32();
                }
            }
        }
        Code::Int8 => {
            for (codes, out) in codes.as_chunks::<PANEL>().0.iter().zip(out) {
                for ((code, offset), out) in codes.iter().zip(offsets).zip(out) {
                    *out = (i32::from(code ^ 0x80) - i32::from(*offset)) as f32;
                }
            }
        }
        Code::MxInt8 => {
            for (codes, out) in codes.as_chunks::<PANEL>().0.iter().zip(out) {
                for (code, out) in codes.iter().zip(out) {
                    *out = f32::from(*code as i8) * (1.0 / 64.0);
                }
            }
        }
        Code::Int4 => {
            nibbles(codes, out, |code, lane| (code as i32 - i32::from(offsets[lane])) as f32);
        }
        Code::E2M1 => nibbles(codes, out, |code, _| {
            // The bits at the place that `f32` has them, and the difference of the biases.
            f32::from_bits((code & 7) << 22 | (code & 8) << 28) * f32::from_bits(0x7e80_0000)
        }),
        Code::F32 | Code::Bf16 | Code::E4M3 | Code::E5M2 => unreachable!("these are `PairCodes`"),
    }
}

/// Multiplies the weights of a block, or the first ones of it, by the scales of its halves.
#[inline(always)]
pub(crate) fn scale_halves(scales: &[[f32; PANEL]; 2], out: &mut [[f32; PANEL]]) {
    for (out, scales) in out.chunks_mut(BLOCK / 2).zip(scales) {
        for out in out {
            for (out, scale) in out.iter_mut().zip(scales) {
                *out *= scale;
            }
        }
    }
}

#[inline(always)]
fn nibbles(codes: &[u8], out: &mut [[f32; PANEL]], value: impl Fn(u32, usize) -> f32) {
    let pairs = codes.as_chunks::<PANEL>().0.iter().zip(out.as_chunks_mut::<2>().0);
    for (codes, [first, second]) in pairs {
        for lane in 0..PANEL {
            first[lane] = value(u32::from(codes[lane] & 0xf), lane);
            second[lane] = value(u32::from(codes[lane] >> 4), lane);
        }
    }
}

/// In which order a chain takes the two inputs of a pair, and whether weights are scaled before.
pub(crate) trait Chain {
    /// The second input first, as the instruction for pairs of BF16 does.
    const SECOND_FIRST: bool;
    /// Weights are multiplied by their scale, and the product is rounded.
    const SCALED: bool;
}

/// The F32 mode without scales.
pub(crate) struct Plain;
/// The F32 mode with scales.
pub(crate) struct Scaled;
/// The BF16 mode, whose sums are scaled.
pub(crate) struct Rounded;

impl Chain for Plain {
    const SECOND_FIRST: bool = false;
    const SCALED: bool = false;
}

impl Chain for Scaled {
    const SECOND_FIRST: bool = false;
    const SCALED: bool = true;
}

impl Chain for Rounded {
    const SECOND_FIRST: bool = true;
    const SCALED: bool = false;
}

/// Calls `$body` with the [`PairCodes`] of a layout's codes as `$codes` and the [`Chain`] of its mode as `$chain`, or `$other`
/// where the codes have none.
macro_rules! with_codes {
    ($layout:expr, $codes:ident, $chain:ident => $body:expr, _ => $other:expr) => {
        with_codes!(@match $layout, $codes, $chain, $body, $other,
            (Code::F32, _) => F32, Plain;
            (Code::Bf16, false) => Bf16, Plain;
            (Code::Bf16, true) => Bf16, Rounded;
            (Code::E4M3, false) => Float8<4>, Scaled;
            (Code::E4M3, true) => Float8<4>, Rounded;
            (Code::E5M2, false) => Float8<5>, Scaled;
            (Code::E5M2, true) => Float8<5>, Rounded;)
    };
    (@match $layout:expr, $codes:ident, $chain:ident, $body:expr, $other:expr,
        $($case:pat => $c:ident $(<$n:literal>)?, $m:ident;)*) => {
        match ($layout.code(), $layout.activation() == Activation::Bf16) {
            $($case => {
                type $codes = float::$c $(<$n>)?;
                type $chain = float::$m;
                $body
            })*
            _ => $other,
        }
    };
}
pub(super) use with_codes;

/// The weights of a pair of inputs in the order of the chain, and scaled if they are.
#[inline(always)]
fn in_order<S: Simd, M: Chain>(simd: S, [a, b]: [S::f32s; 2], scales: &[f32]) -> [S::f32s; 2] {
    let [a, b] = if M::SCALED {
        let scale = S::f32s::from_slice(simd, scales);
        [a * scale, b * scale]
    } else {
        [a, b]
    };
    if M::SECOND_FIRST { [b, a] } else { [a, b] }
}

/// Adds the products of pairs of inputs and their codes to `sums`; the order of a pair is that of the steps, so that the
/// second input may stand first. `N` is the number of vectors of a panel.
#[inline(always)]
pub(crate) fn one_row<'a, S: Simd, C: PairCodes, M: Chain, const N: usize>(
    simd: S,
    pairs: impl Iterator<Item = (&'a [u8], [f32; 2])>,
    scales: &[f32; PANEL],
    sums: &mut [f32; PANEL],
) {
    let lanes = S::f32s::LEN;
    let mut acc = [S::f32s::splat(simd, 0.0); N];
    for v in 0..N {
        acc[v] = S::f32s::from_slice(simd, &sums[v * lanes..(v + 1) * lanes]);
    }
    for (pair, x) in pairs {
        let (first, second) = (S::f32s::splat(simd, x[0]), S::f32s::splat(simd, x[1]));
        for i in 0..N / 2 {
            let vectors = C::vectors(i, N);
            let weights = C::decode(simd, pair, i, N);
            for j in 0..2 {
                let v = vectors[j];
                let [a, b] =
                    in_order::<S, M>(simd, weights[j], &scales[v * lanes..(v + 1) * lanes]);
                acc[v] = b.mul_add(second, a.mul_add(first, acc[v]));
            }
        }
    }
    for v in 0..N {
        acc[v].store_slice(&mut sums[v * lanes..(v + 1) * lanes]);
    }
}

/// The sums of all outputs of some rows, as vectors.
#[inline(always)]
fn load_all<S: Simd, const N: usize, const ROWS: usize>(
    simd: S,
    sums: &[[f32; PANEL]; ROWS],
) -> [[S::f32s; N]; ROWS] {
    let lanes = S::f32s::LEN;
    let mut out = [[S::f32s::splat(simd, 0.0); N]; ROWS];
    for row in 0..ROWS {
        for v in 0..N {
            out[row][v] = S::f32s::from_slice(simd, &sums[row][v * lanes..(v + 1) * lanes]);
        }
    }
    out
}

/// Stores what [`load_all`] loads.
#[inline(always)]
fn store_all<S: Simd, const N: usize, const ROWS: usize>(
    vectors: &[[S::f32s; N]; ROWS],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let lanes = S::f32s::LEN;
    for row in 0..ROWS {
        for v in 0..N {
            vectors[row][v].store_slice(&mut sums[row][v * lanes..(v + 1) * lanes]);
        }
    }
}

/// Most rows whose sums of all outputs are in the registers of the widest level: 24 vectors.
pub(crate) const FEW_ROWS: usize = 6;

/// Adds the products of pairs of inputs, which are decoded in registers, with the inputs of `ROWS` rows, `[inputs, rows]`, to their sums: so
/// few rows that the sums of all outputs are in registers, too.
#[inline(always)]
pub(crate) fn few_rows_of_codes<
    S: Simd,
    C: PairCodes,
    M: Chain,
    const N: usize,
    const ROWS: usize,
>(
    simd: S,
    stream: Stream,
    codes: &[u8],
    scales: &[f32; PANEL],
    x: &[f32],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let lanes = S::f32s::LEN;
    let mut acc = load_all::<S, N, ROWS>(simd, sums);
    let inputs = x.as_chunks::<ROWS>().0.as_chunks::<2>().0;
    for (pair, [first, second]) in codes.chunks_exact(C::PAIR_BYTES).zip(inputs) {
        stream.lines(pair);
        for i in 0..N / 2 {
            let vectors = C::vectors(i, N);
            let weights = C::decode(simd, pair, i, N);
            for j in 0..2 {
                let v = vectors[j];
                let [a, b] =
                    in_order::<S, M>(simd, weights[j], &scales[v * lanes..(v + 1) * lanes]);
                for row in 0..ROWS {
                    let (x, y) =
                        (S::f32s::splat(simd, first[row]), S::f32s::splat(simd, second[row]));
                    acc[row][v] = b.mul_add(y, a.mul_add(x, acc[row][v]));
                }
            }
        }
    }
    store_all::<S, N, ROWS>(&acc, sums);
}

/// Adds the products of pairs of inputs, which are decoded in registers, with the inputs of `ROWS` rows, `[inputs, rows]`, to their sums. Two
/// vectors of outputs at a time, so that the sums of six rows are in 16 registers, and their codes nearly so.
#[inline(always)]
pub(crate) fn tile_of_codes<S: Simd, C: PairCodes, M: Chain, const N: usize, const ROWS: usize>(
    simd: S,
    codes: &[u8],
    scales: &[f32; PANEL],
    mut ahead: Ahead<'_>,
    x: &[f32],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let lanes = S::f32s::LEN;
    let inputs = x.as_chunks::<ROWS>().0.as_chunks::<2>().0;
    for i in 0..N / 2 {
        let at = C::vectors(i, N).map(
            #[inline(always)]
            |v| v * lanes..(v + 1) * lanes,
        );
        let mut acc = [[S::f32s::splat(simd, 0.0); 2]; ROWS];
        for row in 0..ROWS {
            for j in 0..2 {
                acc[row][j] = S::f32s::from_slice(simd, &sums[row][at[j].clone()]);
            }
        }
        for (pair, [first, second]) in codes.chunks_exact(C::PAIR_BYTES).zip(inputs) {
            ahead.step();
            let [low, high] = C::decode(simd, pair, i, N);
            let low = in_order::<S, M>(simd, low, &scales[at[0].clone()]);
            let high = in_order::<S, M>(simd, high, &scales[at[1].clone()]);
            // One input after the other: a step needs two weights beside the sums, and an input.
            for (k, x) in [first, second].into_iter().enumerate() {
                for row in 0..ROWS {
                    let x = S::f32s::splat(simd, x[row]);
                    let [p, q] = acc[row];
                    acc[row] = [low[k].mul_add(x, p), high[k].mul_add(x, q)];
                }
            }
        }
        for row in 0..ROWS {
            for j in 0..2 {
                acc[row][j].store_slice(&mut sums[row][at[j].clone()]);
            }
        }
    }
}

/// Decodes codes in pairs of inputs, as many as `out` has room for, `[inputs, outputs]`.
#[inline(always)]
pub(crate) fn decode_into<S: Simd, C: PairCodes, M: Chain, const N: usize>(
    simd: S,
    codes: &[u8],
    scales: &[f32; PANEL],
    out: &mut [[f32; PANEL]],
) {
    let lanes = S::f32s::LEN;
    for (pair, out) in codes.chunks_exact(C::PAIR_BYTES).zip(out.as_chunks_mut::<2>().0) {
        for i in 0..N / 2 {
            let vectors = C::vectors(i, N);
            let weights = C::decode(simd, pair, i, N);
            for j in 0..2 {
                let at = vectors[j] * lanes..(vectors[j] + 1) * lanes;
                let [a, b] = in_order::<S, M>(simd, weights[j], &scales[at.clone()]);
                a.store_slice(&mut out[0][at.clone()]);
                b.store_slice(&mut out[1][at]);
            }
        }
    }
}

/// Adds the products of `weights`, `[inputs, outputs]`, with the inputs of `ROWS` rows, `[inputs, rows]`, to their sums.
///
/// Two vectors of outputs at a time: with twelve rows, 24 sums, two weights and an input are in the 32 registers, and a
/// step of 24 multiply-adds makes 14 loads.
#[inline(always)]
pub(crate) fn tile_into<S: Simd, const ROWS: usize>(
    simd: S,
    weights: &[[f32; PANEL]],
    mut ahead: Ahead<'_>,
    x: &[f32],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let lanes = S::f32s::LEN;
    if lanes == 16 && ROWS <= FEW_ROWS {
        return few_rows_of_weights(simd, weights, ahead, x, sums);
    }
    for column in (0..PANEL).step_by(2 * lanes) {
        let (low, high) = (column..column + lanes, column + lanes..column + 2 * lanes);
        let mut acc = [[S::f32s::splat(simd, 0.0); 2]; ROWS];
        for row in 0..ROWS {
            acc[row] = [
                S::f32s::from_slice(simd, &sums[row][low.clone()]),
                S::f32s::from_slice(simd, &sums[row][high.clone()]),
            ];
        }
        for (weights, x) in weights.iter().zip(x.as_chunks::<ROWS>().0) {
            ahead.step();
            let (a, b) = (
                S::f32s::from_slice(simd, &weights[low.clone()]),
                S::f32s::from_slice(simd, &weights[high.clone()]),
            );
            for row in 0..ROWS {
                let x = S::f32s::splat(simd, x[row]);
                acc[row] = [a.mul_add(x, acc[row][0]), b.mul_add(x, acc[row][1])];
            }
        }
        for row in 0..ROWS {
            acc[row][0].store_slice(&mut sums[row][low.clone()]);
            acc[row][1].store_slice(&mut sums[row][high.clone()]);
        }
    }
}

/// [`tile_into`] where the sums of all outputs are in registers: 24 vectors of six rows, on the widest level.
#[inline(always)]
fn few_rows_of_weights<S: Simd, const ROWS: usize>(
    simd: S,
    weights: &[[f32; PANEL]],
    mut ahead: Ahead<'_>,
    x: &[f32],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    const N: usize = 4;
    let lanes = S::f32s::LEN;
    let mut acc = load_all::<S, N, ROWS>(simd, sums);
    for (weights, x) in weights.iter().zip(x.as_chunks::<ROWS>().0) {
        // Half of the steps, with as much to ask for.
        ahead.step();
        ahead.step();
        let mut w = [S::f32s::splat(simd, 0.0); N];
        for v in 0..N {
            w[v] = S::f32s::from_slice(simd, &weights[v * lanes..(v + 1) * lanes]);
        }
        for row in 0..ROWS {
            let x = S::f32s::splat(simd, x[row]);
            for v in 0..N {
                acc[row][v] = w[v].mul_add(x, acc[row][v]);
            }
        }
    }
    store_all::<S, N, ROWS>(&acc, sums);
}
