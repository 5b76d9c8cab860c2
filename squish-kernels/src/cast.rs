//! Slice casts between `f32` and the 8-, 6- and 4-bit formats, with one factor per run of elements.
//!
//! | function | result |
//! |---|---|
//! | [`encode_into`] | `E(x)` |
//! | [`encode_blocks_into`] | `E(x · factors[i / block])` |
//! | [`decode_into`] | `f32(code)` |
//! | [`decode_blocks_into`] | `f32(code) · factors[i / block]` |
//! | [`encode_bf16_into`], [`decode_bf16_into`] | the same from and to `bf16` |
//! | [`widen_into`], [`narrow_into`] | `f32` from and to `bf16` and `f16` |
//!
//! All levels give the bits of the scalar definition in [`crate::element`], for every one of the 2^32 inputs.
//!
//! Encoding adds a magic number instead of looking at mantissa bits. For `|x|` in the binade `e`, the sum
//! `|x| + 2^(e - M + 23)` has the step `2^(e - M)` as its last place, so the adder itself rounds `|x|` to a multiple of
//! the step, ties to even, and the low bits of the sum count the steps:
//!
//! ```text
//! e     = max(exponent field of |x|, emin)              emin puts subnormals in the binade above them
//! steps = bits(|x| + f32(e + (23 - M))) - bits(f32(e + (23 - M)))
//! code  = steps + (e - emin) · 2^M                      a carry out of the mantissa is a carry into the exponent
//! ```
//!
//! Decoding moves exponent and mantissa to their places in the upper half of an `f32`, as two bytes, and adds to each what
//! a table of 16 entries says: the difference of the biases for most codes, and for subnormals, infinities and NaN what
//! makes them the `f32` that they stand for.
//!
//! ```text
//! moved = magnitude · 2^(7 - M)                         bits 16 to 31 of an f32, with the bias of the code
//! value = moved + correction(entry)                     byte by byte
//! entry = max(min(magnitude, 2^M), magnitude - 0x70)    2^M for all normal codes; above it, specials
//! ```
//!
//! A product with `2^(127 - bias)` would take fewer instructions and be exact, since subnormal codes are moved to where the
//! subnormals of `f32` are. But a vector with one of those takes ten cycles more to multiply on Zen 5, and a fifth of the
//! vectors have one when E4M3 codes come from standard normal numbers, where the casts were half as fast.

use std::marker::PhantomData;

use crate::isa::dispatch;
use bytemuck::Pod;
use fearless_simd::{Select, Simd, prelude::*};
use half::{bf16, f16};

use crate::{
    Isa,
    bytes::{narrow_with_signs, spread_dwords, zip_bytes, zip_words},
    element::{Element, Overflow, encode_scalar, sealed::Format},
    real::{Real, sealed::Lanes},
    stream::{self, Stores, Stream, TILE, Tile},
};

/// `E(x)` for each element, into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn encode_into<E: Element>(x: &[f32], out: &mut [E], overflow: Overflow) {
    encode_blocks_into(x, x.len().max(1), &[1.0], out, overflow);
}

/// `E(x · factor)` for each element, where run `i` of `block` elements has `factors[i]`; the last run may be shorter.
///
/// The product is rounded to `f32` before it is encoded. `factors` may hold more than is used.
///
/// # Panics
///
/// If `x` and `out` differ in length, `block` is zero, or `factors` has fewer than `x.len() / block` entries, rounded up.
pub fn encode_blocks_into<E: Element>(
    x: &[f32],
    block: usize,
    factors: &[f32],
    out: &mut [E],
    overflow: Overflow,
) {
    let stores = Stores::for_bytes(size_of_val(x) + out.len());
    encode_blocks_to(Isa::detect(), stores, x, block, factors, out, overflow);
}

/// The value of each code, into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn decode_into<E: Element>(codes: &[E], out: &mut [f32]) {
    decode_blocks_into(codes, codes.len().max(1), &[1.0], out);
}

/// The value of each code times its run's factor, rounded once; run `i` of `block` elements has `factors[i]`.
///
/// # Panics
///
/// If `codes` and `out` differ in length, `block` is zero, or `factors` has fewer than `codes.len() / block` entries,
/// rounded up.
pub fn decode_blocks_into<E: Element>(codes: &[E], block: usize, factors: &[f32], out: &mut [f32]) {
    let stores = Stores::for_bytes(codes.len() + size_of_val(out));
    decode_blocks_to(Isa::detect(), stores, codes, block, factors, out);
}

/// `E(x)` for each `bf16`, into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn encode_bf16_into<E: Element>(x: &[bf16], out: &mut [E], overflow: Overflow) {
    encode_bf16_with(Isa::detect(), x, out, overflow);
}

/// The value of each code, into `out`. Exact: every format here fits in a `bf16`.
///
/// # Panics
///
/// If the lengths differ.
pub fn decode_bf16_into<E: Element>(codes: &[E], out: &mut [bf16]) {
    decode_bf16_with(Isa::detect(), codes, out);
}

/// The value of each `bf16` or `f16`, exactly, into `out`.
///
/// # Panics
///
/// If the lengths differ.
pub fn widen_into<T: Real>(x: &[T], out: &mut [f32]) {
    widen_with(Isa::detect(), x, out);
}

/// The nearest `bf16` or `f16` of each element, ties to even, into `out`; overflow gives infinities, NaN stays NaN.
///
/// # Panics
///
/// If the lengths differ.
pub fn narrow_into<T: Real>(x: &[f32], out: &mut [T]) {
    narrow_with(Isa::detect(), x, out);
}

#[doc(hidden)]
pub fn widen_with<T: Real>(isa: Isa, x: &[T], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "widen: `x` and `out` differ in length");
    T::widen(isa, x, out);
}

#[doc(hidden)]
pub fn narrow_with<T: Real>(isa: Isa, x: &[f32], out: &mut [T]) {
    assert_eq!(x.len(), out.len(), "narrow: `x` and `out` differ in length");
    T::narrow(isa, x, out);
}

#[doc(hidden)]
pub fn encode_blocks_to<E: Element>(
    isa: Isa,
    stores: Stores,
    x: &[f32],
    block: usize,
    factors: &[f32],
    out: &mut [E],
    overflow: Overflow,
) {
    assert_eq!(x.len(), out.len(), "encode: `x` and `out` differ in length");
    assert_factors(x.len(), block, factors.len());
    E::encode_runs(
        isa,
        stores,
        x,
        Runs { block, factors },
        bytemuck::cast_slice_mut(out),
        overflow,
    );
}

#[doc(hidden)]
pub fn decode_blocks_to<E: Element>(
    isa: Isa,
    stores: Stores,
    codes: &[E],
    block: usize,
    factors: &[f32],
    out: &mut [f32],
) {
    assert_eq!(codes.len(), out.len(), "decode: `codes` and `out` differ in length");
    assert_factors(codes.len(), block, factors.len());
    E::decode_runs(isa, stores, bytemuck::cast_slice(codes), Runs { block, factors }, out);
}

#[doc(hidden)]
pub fn encode_bf16_with<E: Element>(isa: Isa, x: &[bf16], out: &mut [E], overflow: Overflow) {
    assert_eq!(x.len(), out.len(), "encode: `x` and `out` differ in length");
    let mut tile = [0.0; TILE];
    for (x, out) in x.chunks(TILE).zip(out.chunks_mut(TILE)) {
        let tile = &mut tile[..x.len()];
        widen_with(isa, x, tile);
        encode_blocks_to(isa, Stores::Cached, tile, TILE, &[1.0], out, overflow);
    }
}

#[doc(hidden)]
pub fn decode_bf16_with<E: Element>(isa: Isa, codes: &[E], out: &mut [bf16]) {
    assert_eq!(codes.len(), out.len(), "decode: `codes` and `out` differ in length");
    let mut tile = [0.0; TILE];
    for (codes, out) in codes.chunks(TILE).zip(out.chunks_mut(TILE)) {
        let tile = &mut tile[..codes.len()];
        decode_blocks_to(isa, Stores::Cached, codes, TILE, &[1.0], tile);
        narrow_with(isa, tile, out);
    }
}

fn assert_factors(len: usize, block: usize, n_factors: usize) {
    assert!(block > 0, "cast: `block` is zero");
    let n_blocks = len.div_ceil(block);
    assert!(n_blocks <= n_factors, "cast: {n_factors} factors for {n_blocks} blocks");
}

/// One factor per run of `block` elements.
#[derive(Clone, Copy, Debug)]
pub struct Runs<'a> {
    block: usize,
    factors: &'a [f32],
}

impl Runs<'_> {
    /// Whether a step of `step` elements holds several runs, each of one or two of its four vectors: the blocks of 32 and 16
    /// on the widest levels.
    fn share_a_step(self, step: usize) -> bool {
        self.block == step / 2 || self.block == step / 4
    }

    /// Whether the codes of a run are less than a line of the cache, and a tile holds whole runs. Such runs go around the
    /// caches together.
    fn share_a_tile(self) -> bool {
        self.block < 64 && TILE.is_multiple_of(self.block)
    }

    /// `Some(n)` if every one of the runs of `len` elements is `2^n` whole steps of `step` elements, and those are few.
    fn whole_steps(self, step: usize, len: usize) -> Option<u32> {
        let n_steps = self.block / step;
        let is_whole = self.block.is_multiple_of(step) && len.is_multiple_of(self.block);
        (is_whole && n_steps.is_power_of_two() && n_steps <= 16).then(|| n_steps.trailing_zeros())
    }
}

/// Encodes with the kernel of `E`. Formats call this from [`Format::encode_runs`], so that the kernels are compiled
/// once, in this crate, and not again in every crate that casts.
pub(crate) fn encode_runs<E: Element>(
    isa: Isa,
    stores: Stores,
    x: &[f32],
    runs: Runs<'_>,
    out: &mut [u8],
    overflow: Overflow,
) {
    // Formats without NaN and infinity have one way to overflow.
    if overflow == Overflow::Saturate || E::NAN_CODE.is_none() {
        dispatch!(isa.token(), simd => encode_each_run::<_, E, true>(simd, stores, x, runs, out));
    } else {
        dispatch!(isa.token(), simd => encode_each_run::<_, E, false>(simd, stores, x, runs, out));
    }
}

/// Decodes with the kernel of `E`, as [`encode_runs`] encodes.
pub(crate) fn decode_runs<E: Element>(
    isa: Isa,
    stores: Stores,
    codes: &[u8],
    runs: Runs<'_>,
    out: &mut [f32],
) {
    dispatch!(isa.token(), simd => decode_each_run::<_, E>(simd, stores, codes, runs, out));
}

/// Kernels between `f32` and a storage type, compiled here as those of the formats are.
pub(crate) mod sealed {
    use super::Isa;

    pub trait Convert: Sized {
        fn widen(isa: Isa, x: &[Self], out: &mut [f32]);
        fn narrow(isa: Isa, x: &[f32], out: &mut [Self]);
    }
}

macro_rules! convert {
    ($($type:ty),*) => {$(
        impl sealed::Convert for $type {
            fn widen(isa: Isa, x: &[Self], out: &mut [f32]) {
                widen(isa, x, out);
            }

            fn narrow(isa: Isa, x: &[f32], out: &mut [Self]) {
                narrow(isa, x, out);
            }
        }
    )*};
}
convert!(f32, bf16, f16);

/// Widens with the kernel of `T`.
fn widen<T: Real>(isa: Isa, x: &[T], out: &mut [f32]) {
    dispatch!(isa.token(), simd => widen_all(simd, x, out));
}

/// Narrows with the kernel of `T`.
fn narrow<T: Real>(isa: Isa, x: &[f32], out: &mut [T]) {
    dispatch!(isa.token(), simd => narrow_all(simd, x, out));
}

/// Codes of a vector of bytes come from four vectors of `f32`, at most this many elements.
const MAX_STEP: usize = 64;

/// One step of a cast: a vector of bytes on the side of the codes.
///
/// A trait and not a closure, because a function can be told to be inlined into the code of the chosen level.
trait Step<A: Copy + Default, B: Copy + Default>: Copy {
    fn step(self, from: &[A], to: &mut [B]);

    /// Whole steps of `step` elements, then one padded with zeros that holds the rest.
    #[inline(always)]
    fn run(self, step: usize, from: &[A], to: &mut [B]) {
        let whole = from.len() - from.len() % step;
        let (from, from_rest) = from.split_at(whole);
        let (to, to_rest) = to.split_at_mut(whole);
        for (from, to) in from.chunks_exact(step).zip(to.chunks_exact_mut(step)) {
            self.step(from, to);
        }
        if !from_rest.is_empty() {
            let (mut padded, mut result) = ([A::default(); MAX_STEP], [B::default(); MAX_STEP]);
            padded[..from_rest.len()].copy_from_slice(from_rest);
            self.step(&padded[..step], &mut result[..step]);
            to_rest.copy_from_slice(&result[..to_rest.len()]);
        }
    }

    /// [`Step::run`], by way of `tile` and around the caches.
    #[inline(always)]
    fn run_streamed(
        self,
        simd: impl Simd,
        step: usize,
        from: &[A],
        to: &mut [B],
        stream: &Stream,
        tile: &mut Tile<B>,
    ) where
        B: Pod,
    {
        for (from, to) in from.chunks(TILE).zip(to.chunks_mut(TILE)) {
            let tile = tile.first(from.len());
            self.run(step, from, tile);
            stream.copy(simd, tile, to);
        }
    }
}

/// Runs of `2^shift` steps each, as one sequence of steps: a loop per run costs a row of 128 elements a third.
#[inline(always)]
fn run_flat<A, B, K>(
    step: usize,
    shift: u32,
    from: &[A],
    factors: &[f32],
    to: &mut [B],
    make: impl Fn(f32) -> K,
) where
    A: Copy + Default,
    B: Copy + Default,
    K: Step<A, B>,
{
    for (i, (from, to)) in from.chunks_exact(step).zip(to.chunks_exact_mut(step)).enumerate() {
        make(factors[i >> shift]).step(from, to);
    }
}

/// Runs of which several share a step, as a sequence of steps; what is no whole step is left. Returns the number of
/// elements done.
#[inline(always)]
fn run_shared<A, B, K>(
    step: usize,
    runs: Runs<'_>,
    from: &[A],
    to: &mut [B],
    make: impl Fn([f32; 4]) -> K,
) -> usize
where
    A: Copy + Default,
    B: Copy + Default,
    K: Step<A, B>,
{
    let n_runs = step / runs.block;
    let steps = from.chunks_exact(step).zip(to.chunks_exact_mut(step));
    for ((from, to), factors) in steps.zip(runs.factors.chunks_exact(n_runs)) {
        let of_quarter = |i: usize| factors[i * n_runs / 4];
        make([of_quarter(0), of_quarter(1), of_quarter(2), of_quarter(3)]).step(from, to);
    }
    from.len() - from.len() % step
}

#[inline(always)]
fn encode_each_run<S: Simd, E: Element, const SATURATE: bool>(
    simd: S,
    stores: Stores,
    x: &[f32],
    runs: Runs<'_>,
    out: &mut [u8],
) {
    let ahead = stream::ahead(stores, x.len());
    let Some(stream) = stores.stream() else {
        return encode_cached::<S, E, SATURATE>(simd, ahead, x, runs, out);
    };
    let mut tile = Tile::new();
    if runs.share_a_tile() {
        let factors = runs.factors.chunks(TILE / runs.block);
        for ((x, out), factors) in x.chunks(TILE).zip(out.chunks_mut(TILE)).zip(factors) {
            let tile = tile.first(x.len());
            encode_cached::<S, E, SATURATE>(simd, ahead, x, Runs { factors, ..runs }, tile);
            stream.copy(simd, tile, out);
        }
        return;
    }
    for ((x, out), &factor) in
        x.chunks(runs.block).zip(out.chunks_mut(runs.block)).zip(runs.factors)
    {
        let step = Encode::<S, E, SATURATE>::new(simd, [factor; 4], ahead);
        step.run_streamed(simd, S::u8s::LEN, x, out, &stream, &mut tile);
    }
}

/// The cast of whole runs and one that may be shorter, into the caches.
#[inline(always)]
fn encode_cached<S: Simd, E: Element, const SATURATE: bool>(
    simd: S,
    ahead: usize,
    x: &[f32],
    runs: Runs<'_>,
    out: &mut [u8],
) {
    let len = S::u8s::LEN;
    if let Some(shift) = runs.whole_steps(len, x.len()) {
        return run_flat(
            len,
            shift,
            x,
            runs.factors,
            out,
            #[inline(always)]
            |factor| Encode::<S, E, SATURATE>::new(simd, [factor; 4], ahead),
        );
    }
    let n_done = if runs.share_a_step(len) {
        run_shared(
            len,
            runs,
            x,
            out,
            #[inline(always)]
            |factors| Encode::<S, E, SATURATE>::new(simd, factors, ahead),
        )
    } else {
        0
    };
    let (x, out) = (&x[n_done..], &mut out[n_done..]);
    let factors = &runs.factors[n_done / runs.block..];
    for ((x, out), &factor) in x.chunks(runs.block).zip(out.chunks_mut(runs.block)).zip(factors) {
        Encode::<S, E, SATURATE>::new(simd, [factor; 4], ahead).run(len, x, out);
    }
}

#[inline(always)]
fn decode_each_run<S: Simd, E: Element>(
    simd: S,
    stores: Stores,
    codes: &[u8],
    runs: Runs<'_>,
    out: &mut [f32],
) {
    let Some(stream) = stores.stream() else {
        return decode_cached::<S, E>(simd, codes, runs, out);
    };
    let mut tile = Tile::new();
    if runs.share_a_tile() {
        let factors = runs.factors.chunks(TILE / runs.block);
        for ((codes, out), factors) in codes.chunks(TILE).zip(out.chunks_mut(TILE)).zip(factors) {
            let tile = tile.first(codes.len());
            decode_cached::<S, E>(simd, codes, Runs { factors, ..runs }, tile);
            stream.copy(simd, tile, out);
        }
        return;
    }
    for ((codes, out), &factor) in
        codes.chunks(runs.block).zip(out.chunks_mut(runs.block)).zip(runs.factors)
    {
        let step = Decode::<S, E>::new(simd, [factor; 4]);
        step.run_streamed(simd, S::u8s::LEN, codes, out, &stream, &mut tile);
    }
}

/// As [`encode_cached`].
#[inline(always)]
fn decode_cached<S: Simd, E: Element>(simd: S, codes: &[u8], runs: Runs<'_>, out: &mut [f32]) {
    let len = S::u8s::LEN;
    if let Some(shift) = runs.whole_steps(len, codes.len()) {
        return run_flat(
            len,
            shift,
            codes,
            runs.factors,
            out,
            #[inline(always)]
            |factor| Decode::<S, E>::new(simd, [factor; 4]),
        );
    }
    let n_done = if runs.share_a_step(len) {
        run_shared(
            len,
            runs,
            codes,
            out,
            #[inline(always)]
            |factors| Decode::<S, E>::new(simd, factors),
        )
    } else {
        0
    };
    let (codes, out) = (&codes[n_done..], &mut out[n_done..]);
    let factors = &runs.factors[n_done / runs.block..];
    for ((codes, out), &factor) in
        codes.chunks(runs.block).zip(out.chunks_mut(runs.block)).zip(factors)
    {
        Decode::<S, E>::new(simd, [factor; 4]).run(len, codes, out);
    }
}

/// One step of encoding, with a factor for each of its four vectors.
#[derive(Clone, Copy)]
struct Encode<S: Simd, E, const SATURATE: bool> {
    factors: [S::f32s; 4],
    ahead: usize,
    format: PhantomData<E>,
}

impl<S: Simd, E, const SATURATE: bool> Encode<S, E, SATURATE> {
    #[inline(always)]
    fn new(simd: S, [a, b, c, d]: [f32; 4], ahead: usize) -> Self {
        let splat = S::f32s::splat;
        let factors = [splat(simd, a), splat(simd, b), splat(simd, c), splat(simd, d)];
        Self { factors, ahead, format: PhantomData }
    }
}

impl<S: Simd, E: Element, const SATURATE: bool> Step<f32, u8> for Encode<S, E, SATURATE> {
    #[inline(always)]
    fn step(self, x: &[f32], out: &mut [u8]) {
        stream::prefetch(x, self.ahead);
        let [f, g, h, i] = self.factors;
        let [a, b, c, d] = quarters::<S>(f.token(), x);
        encode_step::<S, E, SATURATE>([a * f, b * g, c * h, d * i]).store_slice(out);
    }
}

/// One step of decoding, with a factor for each of its four vectors.
#[derive(Clone, Copy)]
struct Decode<S: Simd, E> {
    factors: [S::f32s; 4],
    format: PhantomData<E>,
}

impl<S: Simd, E> Decode<S, E> {
    #[inline(always)]
    fn new(simd: S, [a, b, c, d]: [f32; 4]) -> Self {
        let splat = S::f32s::splat;
        let factors = [splat(simd, a), splat(simd, b), splat(simd, c), splat(simd, d)];
        Self { factors, format: PhantomData }
    }
}

impl<S: Simd, E: Element> Step<u8, f32> for Decode<S, E> {
    #[inline(always)]
    fn step(self, codes: &[u8], out: &mut [f32]) {
        let len = S::f32s::LEN;
        let [f, g, h, i] = self.factors;
        let [a, b, c, d] = decode_bytes::<S, E>(S::u8s::from_slice(f.token(), codes));
        (a * f).store_slice(&mut out[..len]);
        (b * g).store_slice(&mut out[len..2 * len]);
        (c * h).store_slice(&mut out[2 * len..3 * len]);
        (d * i).store_slice(&mut out[3 * len..]);
    }
}

/// Storage type to `f32`, two pairs of vectors a step.
#[derive(Clone, Copy)]
struct Widen<S>(S);

impl<S: Simd, T: Real> Step<T, f32> for Widen<S> {
    #[inline(always)]
    fn step(self, x: &[T], out: &mut [f32]) {
        let (x_low, x_high) = x.split_at(2 * S::f32s::LEN);
        let (out_low, out_high) = out.split_at_mut(2 * S::f32s::LEN);
        <f32 as Lanes>::store(self.0, T::load(self.0, x_low), out_low);
        <f32 as Lanes>::store(self.0, T::load(self.0, x_high), out_high);
    }
}

/// `f32` to storage type, two pairs of vectors a step.
#[derive(Clone, Copy)]
struct Narrow<S>(S);

impl<S: Simd, T: Real> Step<f32, T> for Narrow<S> {
    #[inline(always)]
    fn step(self, x: &[f32], out: &mut [T]) {
        let (x_low, x_high) = x.split_at(2 * S::f32s::LEN);
        let (out_low, out_high) = out.split_at_mut(2 * S::f32s::LEN);
        T::store(self.0, <f32 as Lanes>::load(self.0, x_low), out_low);
        T::store(self.0, <f32 as Lanes>::load(self.0, x_high), out_high);
    }
}

#[inline(always)]
fn widen_all<S: Simd, T: Real>(simd: S, x: &[T], out: &mut [f32]) {
    Widen(simd).run(4 * S::f32s::LEN, x, out);
}

#[inline(always)]
fn narrow_all<S: Simd, T: Real>(simd: S, x: &[f32], out: &mut [T]) {
    Narrow(simd).run(4 * S::f32s::LEN, x, out);
}

/// The four vectors of as many elements as a vector has bytes.
#[inline(always)]
pub(crate) fn quarters<S: Simd>(simd: S, x: &[f32]) -> [S::f32s; 4] {
    let (ab, cd) = x.split_at(2 * S::f32s::LEN);
    let ((a, b), (c, d)) = (ab.split_at(S::f32s::LEN), cd.split_at(S::f32s::LEN));
    let load = S::f32s::from_slice;
    [load(simd, a), load(simd, b), load(simd, c), load(simd, d)]
}

/// Codes of four vectors.
#[inline(always)]
pub(crate) fn encode_step<S: Simd, F: Format, const SATURATE: bool>(x: [S::f32s; 4]) -> S::u8s {
    let [a, b, c, d] = x;
    let largest = signed_max::<S>(
        signed_max::<S>(magnitude::<S>(a), magnitude::<S>(b)),
        signed_max::<S>(magnitude::<S>(c), magnitude::<S>(d)),
    );
    // NaN is rare, so that a step looks once and then chooses.
    if signed_gt::<S>(largest, S::u32s::splat(a.token(), 0x7f80_0000)).any_true() {
        return encode_scalar_step::<S, F>(
            x,
            if SATURATE { Overflow::Saturate } else { Overflow::Ieee },
        );
    }
    let codes = [
        encode_lanes::<S, F, SATURATE>(a),
        encode_lanes::<S, F, SATURATE>(b),
        encode_lanes::<S, F, SATURATE>(c),
        encode_lanes::<S, F, SATURATE>(d),
    ];
    narrow_with_signs::<S>(codes, x, F::CODE_BITS)
}

/// [`encode_step`] for vectors with a NaN.
#[inline(always)]
fn encode_scalar_step<S: Simd, F: Format>(x: [S::f32s; 4], overflow: Overflow) -> S::u8s {
    let (mut values, mut codes) = ([0.0; MAX_STEP], [0; MAX_STEP]);
    for (x, values) in x.into_iter().zip(values.chunks_exact_mut(S::f32s::LEN)) {
        x.store_slice(values);
    }
    encode_scalar_slice::<F>(&values, overflow, &mut codes);
    S::u8s::from_slice(x[0].token(), &codes[..S::u8s::LEN])
}

#[cold]
#[inline(never)]
fn encode_scalar_slice<F: Format>(x: &[f32], overflow: Overflow, codes: &mut [u8]) {
    for (x, code) in x.iter().zip(codes) {
        *code = encode_scalar::<F>(*x, overflow) as u8;
    }
}

/// Codes of the magnitudes of numbers and infinities, one per 32-bit lane.
#[inline(always)]
fn encode_lanes<S: Simd, F: Format, const SATURATE: bool>(x: S::f32s) -> S::u32s {
    let shift = 23 - F::MANTISSA_BITS;
    let splat = |bits: u32| S::u32s::splat(x.token(), bits);
    // Clamping keeps the magic number in range. What lies beyond the largest value needs only to stay beyond it.
    let clamp =
        if SATURATE { max_bits::<F>() } else { (max_bits::<F>() & 0x7f80_0000) + 0x0080_0000 };
    let clamped = signed_min::<S>(magnitude::<S>(x), splat(clamp));
    let exponent = signed_max::<S>(clamped & splat(0x7f80_0000), splat(smallest_exponent::<F>()));
    // The magic number is a product with a power of two, exact and hence the same fused with its addition or not: the
    // exponents add up, and the mantissa is that of `up`.
    let up = S::f32s::splat(x.token(), f32::from_bits(((127 + shift) << 23) + first_code::<F>()));
    let sum = exponent.bitcast::<S::f32s>().mul_add(up, clamped.bitcast::<S::f32s>());
    let sum = sum.bitcast::<S::u32s>();
    // The low byte of the sum counts steps; the exponents of both leave it alone. The count of the binades before this
    // one comes from the exponent, less what they count to below the smallest, which the magic number held.
    let code = sum + (exponent >> shift);
    if SATURATE {
        return code & splat(F::SIGN - 1);
    }
    let code = code & splat(2 * F::SIGN - 1);
    code.simd_gt(splat(F::MAX_CODE)).select(splat(F::OVERFLOW_CODE), code)
}

/// `f32` bits of the power of two below which codes are subnormal.
const fn smallest_exponent<F: Format>() -> u32 {
    ((128 - F::BIAS) as u32) << 23
}

/// What the shifted bits of the smallest exponent count to, negated, as the low byte of a mantissa. It is even, so
/// that ties stay what they are.
const fn first_code<F: Format>() -> u32 {
    (smallest_exponent::<F>() >> (23 - F::MANTISSA_BITS)).wrapping_neg() & 0xff
}

#[inline(always)]
fn magnitude<S: Simd>(x: S::f32s) -> S::u32s {
    x.bitcast::<S::u32s>() & S::u32s::splat(x.token(), 0x7fff_ffff)
}

/// The values of a vector of codes.
#[inline(always)]
fn decode_bytes<S: Simd, F: Format>(codes: S::u8s) -> [S::f32s; 4] {
    let codes = spread_dwords::<S>(codes);
    let zero = S::u16s::splat(codes.token(), 0);
    let (low, high) = upper_halves::<S, F>(codes);
    let (ab, cd) = zip_bytes::<S>(low, high);
    let (a, b) = zip_words::<S>(zero, ab.bitcast());
    let (c, d) = zip_words::<S>(zero, cd.bitcast());
    [a.bitcast(), b.bitcast(), c.bitcast(), d.bitcast()]
}

/// The low and the high byte of the upper half of each code's `f32`; the lower half is zero.
#[inline(always)]
pub(crate) fn upper_halves<S: Simd, F: Format>(codes: S::u8s) -> (S::u8s, S::u8s) {
    let simd = codes.token();
    let splat = |byte: u32| S::u8s::splat(simd, byte as u8);
    let words = codes.bitcast::<S::u16s>();
    // Bytes are shifted two at a time, and what comes from the other one is masked.
    let shifted_up = |shift: u32, mask: u32| (words << shift).bitcast::<S::u8s>() & splat(mask);
    let low = shifted_up(7 - F::MANTISSA_BITS, 0xff << (7 - F::MANTISSA_BITS));
    let high = (words >> (1 + F::MANTISSA_BITS)).bitcast::<S::u8s>()
        & splat((F::SIGN - 1) >> (1 + F::MANTISSA_BITS));
    let sign =
        if F::CODE_BITS < 8 { shifted_up(8 - F::CODE_BITS, 0x80) } else { codes & splat(0x80) };
    let magnitude = codes & splat(F::SIGN - 1);
    let mut entry = magnitude.min(splat(1 << F::MANTISSA_BITS));
    if F::NAN_CODE.is_some() {
        entry = entry.max(magnitude.saturating_sub(splat(FIRST_SPECIAL)));
    }
    let [low_table, high_table] = const { &corrections::<F>() };
    let correction = |table: &[u8; 64]| {
        S::u8s::from_slice(simd, &table[..S::u8s::LEN]).swizzle_dyn_within_blocks(entry)
    };
    (low + correction(low_table), (high | sign) + correction(high_table))
}

/// Magnitude from which on entries of [`corrections`] are counted for infinity and NaN, the last of them entry 15.
const FIRST_SPECIAL: u32 = 0x70;

/// What is added to the low and to the high byte of a magnitude that was moved to its place, for each block of the widest
/// vector: entry `i` is for the subnormal of magnitude `i`, entry `2^M` for all normal codes, and the entries behind it are
/// for the magnitudes `0x70 + i`, of which some are infinity or NaN.
const fn corrections<F: Format>() -> [[u8; 64]; 2] {
    // So that the exponents differ by an even number, of which no bit falls into the low byte.
    const { assert!(F::BIAS % 2 == 1) }
    let (mut tables, mut i) = ([[0; 64]; 2], 0);
    while i < 64 {
        let entry = i as u32 % 16;
        let magnitude = if entry > 1 << F::MANTISSA_BITS { FIRST_SPECIAL + entry } else { entry };
        let moved = magnitude << (7 - F::MANTISSA_BITS);
        let [value_low, value_high] = (upper_bits::<F>(magnitude) as u16).to_le_bytes();
        let [moved_low, moved_high] = (moved as u16).to_le_bytes();
        tables[0][i] = value_low.wrapping_sub(moved_low);
        tables[1][i] = value_high.wrapping_sub(moved_high);
        i += 1;
    }
    tables
}

/// Upper half of the `f32` of a code without sign.
const fn upper_bits<F: Format>(magnitude: u32) -> u32 {
    if F::NAN_CODE.is_some() && magnitude > F::MAX_CODE {
        return match F::INFINITY_CODE {
            Some(code) if code == magnitude => 0x7f80,
            _ => 0x7fc0,
        };
    }
    let smallest = power_of_two(1 - F::BIAS - F::MANTISSA_BITS as i32);
    if magnitude < 1 << F::MANTISSA_BITS {
        return (magnitude as f32 * smallest).to_bits() >> 16;
    }
    (magnitude << (7 - F::MANTISSA_BITS)) + (((127 - F::BIAS) as u32) << 7)
}

/// `f32` bits of the largest finite value.
const fn max_bits<F: Format>() -> u32 {
    (F::MAX_CODE << (23 - F::MANTISSA_BITS)) + (((127 - F::BIAS) as u32) << 23)
}

/// `2^exponent`, for exponents of normal numbers.
pub(crate) const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

// Magnitudes have no sign bit, and signed comparison is one instruction on every level where unsigned is two or three.

#[inline(always)]
fn signed_min<S: Simd>(a: S::u32s, b: S::u32s) -> S::u32s {
    a.bitcast::<S::i32s>().min(b.bitcast::<S::i32s>()).bitcast()
}

#[inline(always)]
fn signed_max<S: Simd>(a: S::u32s, b: S::u32s) -> S::u32s {
    a.bitcast::<S::i32s>().max(b.bitcast::<S::i32s>()).bitcast()
}

#[inline(always)]
fn signed_gt<S: Simd>(a: S::u32s, b: S::u32s) -> S::mask32s {
    a.bitcast::<S::i32s>().simd_gt(b.bitcast::<S::i32s>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{E2M1, E2M3, E3M2, E4M3, E5M2};

    /// Compares the casts of `x` on every level with the definition.
    fn agree<E: Element>(x: &[f32]) {
        for overflow in [Overflow::Saturate, Overflow::Ieee] {
            let want: Vec<u8> = x.iter().map(|&x| encode_scalar::<E>(x, overflow) as u8).collect();
            encode_to::<E>(x, overflow, &want);
            let codes: Vec<E> = want.into_iter().map(E::from_bits).collect();
            let mut values = vec![0.0; x.len()];
            for isa in Isa::available() {
                decode_blocks_to(isa, Stores::Cached, &codes, x.len(), &[1.0], &mut values);
                for (value, code) in values.iter().zip(&codes) {
                    assert_eq!(value.to_bits(), code.to_f32().to_bits(), "{isa:?}: {code:?}");
                }
            }
        }
    }

    fn encode_to<E: Element>(x: &[f32], overflow: Overflow, want: &[u8]) {
        let mut codes = vec![E::from_bits(0); x.len()];
        for isa in Isa::available() {
            encode_blocks_to(isa, Stores::Cached, x, x.len(), &[1.0], &mut codes, overflow);
            let codes: &[u8] = bytemuck::cast_slice(&codes);
            if let Some(i) = codes.iter().zip(want).position(|(code, want)| code != want) {
                let (x, code, want) = (x[i], codes[i], want[i]);
                panic!("{isa:?} {} {overflow:?}: {x:e} is {code:#04x}, not {want:#04x}", E::NAME);
            }
        }
    }

    /// [`agree`] for the encoding of floats with the same upper 16 bits, in order. Rounding is monotone, so that where
    /// the ends have one code, all have; the definition is slow.
    fn agree_in_order<E: Element>(x: &[f32]) {
        for overflow in [Overflow::Saturate, Overflow::Ieee] {
            let code = |x: &f32| encode_scalar::<E>(*x, overflow) as u8;
            let ends = [x[0], x[x.len() - 1]];
            let want = if code(&ends[0]) == code(&ends[1]) && !ends[1].is_nan() {
                vec![code(&ends[0]); x.len()]
            } else {
                x.iter().map(code).collect()
            };
            encode_to::<E>(x, overflow, &want);
        }
    }

    #[test]
    #[ignore = "2^32 inputs, ten casts each, on every level: ten minutes of CPU time in release"]
    fn all_floats_encode_on_every_level_as_the_definition_says() {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for first in 0..n_threads {
                scope.spawn(move || {
                    for high in (first as u32..1 << 16).step_by(n_threads) {
                        let bits = |low: u16| high << 16 | u32::from(low);
                        let x: Vec<f32> =
                            (0..=u16::MAX).map(|low| f32::from_bits(bits(low))).collect();
                        agree_in_order::<E4M3>(&x);
                        agree_in_order::<E5M2>(&x);
                        agree_in_order::<E3M2>(&x);
                        agree_in_order::<E2M3>(&x);
                        agree_in_order::<E2M1>(&x);
                    }
                });
            }
        });
    }

    #[test]
    fn a_sample_of_all_floats_casts_on_every_level_as_the_definition_says() {
        // 65 536 inputs that differ in sign, exponent and the upper mantissa, with low bits that make and break ties.
        for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let x: Vec<f32> =
                (0..=u16::MAX).map(|high| f32::from_bits(u32::from(high) << 16 | low)).collect();
            agree::<E4M3>(&x);
            agree::<E5M2>(&x);
            agree::<E3M2>(&x);
            agree::<E2M3>(&x);
            agree::<E2M1>(&x);
        }
    }
}
