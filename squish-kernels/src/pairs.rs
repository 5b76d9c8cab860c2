//! Walking rows of any storage type in pairs of vectors, as many elements as a vector of 16-bit lanes has.
//!
//! The tail is one pair whose last elements are filled in, as in [`crate::lanes`].

use fearless_simd::{Simd, prelude::*};

use crate::real::Real;

/// States of a fold: four pairs in flight hide the latency of the adder.
pub(crate) const STATES: usize = 8;

/// Elements of a pair at the widest level.
const MAX_PAIR: usize = 32;

/// Elements of a pair.
#[inline(always)]
fn pair<S: Simd>() -> usize {
    2 * S::f32s::LEN
}

/// The elements of `x` and then zeros, in a whole pair.
#[inline(always)]
fn padded<T: Real>(x: &[T]) -> [T; MAX_PAIR] {
    let mut padded = [T::default(); MAX_PAIR];
    padded[..x.len()].copy_from_slice(x);
    padded
}

/// `lanes`, the first of a pair or with `at` the later ones, with `fill` in those that stand at `len` or after.
#[inline(always)]
fn filled<S: Simd>(simd: S, lanes: S::f32s, at: usize, len: usize, fill: f32) -> S::f32s {
    let places = S::f32s::from_fn(
        simd,
        #[inline(always)]
        |i| (at + i) as f32,
    );
    places.simd_lt(S::f32s::splat(simd, len as f32)).select(lanes, S::f32s::splat(simd, fill))
}

/// Folds the vectors of `x` into [`STATES`] sums that begin at 0, as [`fold_states`] does.
#[inline(always)]
pub(crate) fn fold<S: Simd, T: Real>(
    simd: S,
    x: &[T],
    fill: f32,
    step: impl Fn(S::f32s, S::f32s) -> S::f32s,
) -> [S::f32s; STATES] {
    fold_states(simd, x, fill, S::f32s::splat(simd, 0.0), step)
}

/// Folds the vectors of `x` into `N` states, an even number: vector `i` of a block of `N` goes to state `i`. Lanes past
/// the end hold `fill`, which must leave a state as it is.
#[inline(always)]
pub(crate) fn fold_states<S: Simd, T: Real, A: Copy, const N: usize>(
    simd: S,
    x: &[T],
    fill: f32,
    start: A,
    step: impl Fn(A, S::f32s) -> A,
) -> [A; N] {
    const { assert!(N.is_multiple_of(2)) };
    let pair = pair::<S>();
    let mut states = [start; N];
    let mut blocks = x.chunks_exact(N / 2 * pair);
    for block in &mut blocks {
        for (i, states) in states.as_chunks_mut().0.iter_mut().enumerate() {
            let [a, b] = T::load(simd, &block[i * pair..(i + 1) * pair]);
            *states = [step(states[0], a), step(states[1], b)];
        }
    }
    fold_rest(simd, states, blocks.remainder(), fill, &step)
}

/// What [`fold_states`] does with the elements after the last whole block.
#[inline(always)]
fn fold_rest<S: Simd, T: Real, A: Copy, const N: usize>(
    simd: S,
    states: [A; N],
    x: &[T],
    fill: f32,
    step: &impl Fn(A, S::f32s) -> A,
) -> [A; N] {
    let pair = pair::<S>();
    // A copy, because the indices below are not constants and would keep the states of the loop before in memory.
    let mut ends = states;
    let mut wholes = x.chunks_exact(pair);
    for (states, x) in ends.as_chunks_mut::<2>().0.iter_mut().zip(&mut wholes) {
        let [a, b] = T::load(simd, x);
        *states = [step(states[0], a), step(states[1], b)];
    }
    let rest = wholes.remainder();
    if !rest.is_empty() {
        let [a, b] = T::load(simd, &padded(rest)[..pair]);
        let a = filled(simd, a, 0, rest.len(), fill);
        let b = filled(simd, b, pair / 2, rest.len(), fill);
        ends[N - 2] = step(ends[N - 2], a);
        ends[N - 1] = step(ends[N - 1], b);
    }
    ends
}

/// [`map_into`] of `x`, and [`fold`] of `next`, as long as `x` and filled with 0, in one loop.
///
/// What `next` waits for, its memory and then the end of its sum, hides behind the work on `x`.
#[inline(always)]
pub(crate) fn map_into_and_fold<S: Simd, T: Real>(
    simd: S,
    (x, w, out): (&[T], &[T], &mut [T]),
    next: &[T],
    f: impl Fn(S::f32s, S::f32s) -> S::f32s,
    step: impl Fn(S::f32s, S::f32s) -> S::f32s,
) -> [S::f32s; STATES] {
    let pair = pair::<S>();
    let block = STATES / 2 * pair;
    let mut sums = [S::f32s::splat(simd, 0.0); STATES];
    let (mut xs, mut ws) = (x.chunks_exact(block), w.chunks_exact(block));
    let (mut outs, mut nexts) = (out.chunks_exact_mut(block), next.chunks_exact(block));
    for (((x, w), out), next) in (&mut xs).zip(&mut ws).zip(&mut outs).zip(&mut nexts) {
        for (i, sums) in sums.as_chunks_mut().0.iter_mut().enumerate() {
            let at = i * pair..(i + 1) * pair;
            let [a, b] = T::load(simd, &next[at.clone()]);
            *sums = [step(sums[0], a), step(sums[1], b)];
            let lanes = map_pair(simd, &x[at.clone()], &w[at.clone()], &f);
            T::store(simd, lanes, &mut out[at]);
        }
    }
    map_into(simd, xs.remainder(), ws.remainder(), outs.into_remainder(), f);
    fold_rest(simd, sums, nexts.remainder(), 0.0, &step)
}

/// `f` of the vectors of `x` and `y`, into `y`, while sums are folded as in [`fold`]. Lanes past the end hold 0.
#[inline(always)]
pub(crate) fn update<S: Simd, T: Real>(
    simd: S,
    x: &[T],
    y: &mut [T],
    f: impl Fn(&mut S::f32s, S::f32s, S::f32s) -> S::f32s,
) -> [S::f32s; STATES] {
    let pair = pair::<S>();
    let mut sums = [S::f32s::splat(simd, 0.0); STATES];
    let mut x_blocks = x.chunks_exact(STATES / 2 * pair);
    let mut blocks = y.chunks_exact_mut(STATES / 2 * pair);
    for (x, y) in (&mut x_blocks).zip(&mut blocks) {
        for (i, sums) in sums.as_chunks_mut().0.iter_mut().enumerate() {
            let at = i * pair..(i + 1) * pair;
            update_pair(simd, sums, &x[at.clone()], &mut y[at], &f);
        }
    }
    let mut ends = sums;
    let mut x_wholes = x_blocks.remainder().chunks_exact(pair);
    let mut wholes = blocks.into_remainder().chunks_exact_mut(pair);
    for (sums, (x, y)) in ends.as_chunks_mut().0.iter_mut().zip((&mut x_wholes).zip(&mut wholes)) {
        update_pair(simd, sums, x, y, &f);
    }
    let (x, y) = (x_wholes.remainder(), wholes.into_remainder());
    if !x.is_empty() {
        let (x, mut result) = (padded(x), padded(y));
        let [.., a, b] = &mut ends;
        let mut sums = [*a, *b];
        update_pair(simd, &mut sums, &x[..pair], &mut result[..pair], &f);
        [*a, *b] = sums;
        y.copy_from_slice(&result[..y.len()]);
    }
    ends
}

#[inline(always)]
fn update_pair<S: Simd, T: Real>(
    simd: S,
    [sum0, sum1]: &mut [S::f32s; 2],
    x: &[T],
    y: &mut [T],
    f: &impl Fn(&mut S::f32s, S::f32s, S::f32s) -> S::f32s,
) {
    let ([x0, x1], [y0, y1]) = (T::load(simd, x), T::load(simd, y));
    T::store(simd, [f(sum0, x0, y0), f(sum1, x1, y1)], y);
}

/// `f` of the vectors of `x` and `w`, into `out`.
#[inline(always)]
pub(crate) fn map_into<S: Simd, T: Real>(
    simd: S,
    x: &[T],
    w: &[T],
    out: &mut [T],
    f: impl Fn(S::f32s, S::f32s) -> S::f32s,
) {
    let pair = pair::<S>();
    let (mut xs, mut ws) = (x.chunks_exact(pair), w.chunks_exact(pair));
    let mut outs = out.chunks_exact_mut(pair);
    for ((x, w), out) in (&mut xs).zip(&mut ws).zip(&mut outs) {
        T::store(simd, map_pair(simd, x, w, &f), out);
    }
    let (x, w, out) = (xs.remainder(), ws.remainder(), outs.into_remainder());
    if !x.is_empty() {
        let mut result = [T::default(); MAX_PAIR];
        let lanes = map_pair(simd, &padded(x)[..pair], &padded(w)[..pair], &f);
        T::store(simd, lanes, &mut result[..pair]);
        out.copy_from_slice(&result[..out.len()]);
    }
}

#[inline(always)]
fn map_pair<S: Simd, T: Real>(
    simd: S,
    x: &[T],
    w: &[T],
    f: &impl Fn(S::f32s, S::f32s) -> S::f32s,
) -> [S::f32s; 2] {
    let ([x0, x1], [w0, w1]) = (T::load(simd, x), T::load(simd, w));
    [f(x0, w0), f(x1, w1)]
}

/// [`map_into`], over its input.
#[inline(always)]
pub(crate) fn map_in_place<S: Simd, T: Real>(
    simd: S,
    x: &mut [T],
    w: &[T],
    f: impl Fn(S::f32s, S::f32s) -> S::f32s,
) {
    let pair = pair::<S>();
    let (mut xs, mut ws) = (x.chunks_exact_mut(pair), w.chunks_exact(pair));
    for (x, w) in (&mut xs).zip(&mut ws) {
        T::store(simd, map_pair(simd, x, w, &f), x);
    }
    let (x, w) = (xs.into_remainder(), ws.remainder());
    if !x.is_empty() {
        let mut result = padded(x);
        let lanes = map_pair(simd, &result[..pair], &padded(w)[..pair], &f);
        T::store(simd, lanes, &mut result[..pair]);
        x.copy_from_slice(&result[..x.len()]);
    }
}

/// [`map_into`] with two vectors beside `x`.
#[inline(always)]
pub(crate) fn map2_into<S: Simd, T: Real>(
    simd: S,
    x: &[T],
    w: &[T],
    b: &[T],
    out: &mut [T],
    f: impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s,
) {
    let pair = pair::<S>();
    let (mut xs, mut ws) = (x.chunks_exact(pair), w.chunks_exact(pair));
    let (mut bs, mut outs) = (b.chunks_exact(pair), out.chunks_exact_mut(pair));
    for (((x, w), b), out) in (&mut xs).zip(&mut ws).zip(&mut bs).zip(&mut outs) {
        T::store(simd, map2_pair(simd, x, w, b, &f), out);
    }
    let (x, w, b) = (xs.remainder(), ws.remainder(), bs.remainder());
    let out = outs.into_remainder();
    if !x.is_empty() {
        let (x, w, b) = (padded(x), padded(w), padded(b));
        let mut result = [T::default(); MAX_PAIR];
        let lanes = map2_pair(simd, &x[..pair], &w[..pair], &b[..pair], &f);
        T::store(simd, lanes, &mut result[..pair]);
        out.copy_from_slice(&result[..out.len()]);
    }
}

#[inline(always)]
fn map2_pair<S: Simd, T: Real>(
    simd: S,
    x: &[T],
    w: &[T],
    b: &[T],
    f: &impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s,
) -> [S::f32s; 2] {
    let ([x0, x1], [w0, w1]) = (T::load(simd, x), T::load(simd, w));
    let [b0, b1] = T::load(simd, b);
    [f(x0, w0, b0), f(x1, w1, b1)]
}
