//! Walking slices of `f32` in native vectors: the loops that the kernels of this crate share.
//!
//! Every loop has the same three parts: blocks of several vectors, whole vectors, and one vector whose last lanes are
//! filled in. The body is the same closure in all three, so that there is no second algorithm for the tail. Which
//! element meets which accumulator depends on the length and the level alone.
//!
//! Closures passed in say `#[inline(always)]`: they must become part of the function that has the target features.

use fearless_simd::{Simd, prelude::*};

/// The elements of `x` in the first lanes, `fill` in the others. `x` is at most as long as a vector.
#[inline(always)]
pub(crate) fn load_partial<S: Simd>(simd: S, x: &[f32], fill: f32) -> S::f32s {
    let mut vector = S::f32s::splat(simd, fill);
    vector.as_mut_slice()[..x.len()].copy_from_slice(x);
    vector
}

/// The first lanes of `vector`, into the whole of `out`.
#[inline(always)]
pub(crate) fn store_partial<S: Simd>(vector: S::f32s, out: &mut [f32]) {
    out.copy_from_slice(&vector.as_slice()[..out.len()]);
}

/// Folds the vectors of `x` into `N` states, block by block: vector `i` of a block goes to state `i`.
///
/// The lanes past the end of `x` hold `fill`, which must leave a state as it is.
#[inline(always)]
pub(crate) fn fold<S: Simd, A: Copy, const N: usize>(
    simd: S,
    x: &[f32],
    fill: f32,
    start: A,
    step: impl Fn(A, S::f32s) -> A,
) -> [A; N] {
    let lanes = S::f32s::LEN;
    let mut states = [start; N];
    let mut blocks = x.chunks_exact(N * lanes);
    for block in &mut blocks {
        for (i, state) in states.iter_mut().enumerate() {
            *state = step(*state, S::f32s::from_slice(simd, &block[i * lanes..(i + 1) * lanes]));
        }
    }
    // A copy, because the indices below are not constants and would keep the states of the loop above in memory.
    let mut ends = states;
    let mut vectors = blocks.remainder().chunks_exact(lanes);
    for (state, vector) in ends.iter_mut().zip(&mut vectors) {
        *state = step(*state, S::f32s::from_slice(simd, vector));
    }
    let rest = vectors.remainder();
    if !rest.is_empty() {
        ends[N - 1] = step(ends[N - 1], load_partial(simd, rest, fill));
    }
    ends
}

/// [`fold`] over two slices of equal length.
#[inline(always)]
pub(crate) fn fold2<S: Simd, A: Copy, const N: usize>(
    simd: S,
    x: &[f32],
    y: &[f32],
    fill: f32,
    start: A,
    step: impl Fn(A, S::f32s, S::f32s) -> A,
) -> [A; N] {
    let lanes = S::f32s::LEN;
    let load = |x: &[f32]| S::f32s::from_slice(simd, x);
    let mut states = [start; N];
    let (mut x_blocks, mut y_blocks) = (x.chunks_exact(N * lanes), y.chunks_exact(N * lanes));
    for (x, y) in (&mut x_blocks).zip(&mut y_blocks) {
        for (i, state) in states.iter_mut().enumerate() {
            let at = i * lanes..(i + 1) * lanes;
            *state = step(*state, load(&x[at.clone()]), load(&y[at]));
        }
    }
    let mut ends = states;
    let mut x_vectors = x_blocks.remainder().chunks_exact(lanes);
    let mut y_vectors = y_blocks.remainder().chunks_exact(lanes);
    for (state, (x, y)) in ends.iter_mut().zip((&mut x_vectors).zip(&mut y_vectors)) {
        *state = step(*state, load(x), load(y));
    }
    let (x, y) = (x_vectors.remainder(), y_vectors.remainder());
    if !x.is_empty() {
        ends[N - 1] = step(ends[N - 1], load_partial(simd, x, fill), load_partial(simd, y, fill));
    }
    ends
}

/// One state out of `N`, a power of two, by halves: state `i` meets state `i + N / 2`, and so on.
#[inline(always)]
pub(crate) fn join<A: Copy, const N: usize>(mut states: [A; N], join: impl Fn(A, A) -> A) -> A {
    const { assert!(N.is_power_of_two()) };
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            states[i] = join(states[i], states[i + half]);
        }
        half /= 2;
    }
    states[0]
}

/// The sum of all lanes of `N` vectors.
#[inline(always)]
pub(crate) fn total<S: Simd, const N: usize>(states: [S::f32s; N]) -> f32 {
    join(
        states,
        #[inline(always)]
        |a, b| a + b,
    )
    .reduce_sum()
}

/// `f` of each vector of `x`, into `out`, which is equally long, while `N` states are folded as in [`fold`].
#[inline(always)]
pub(crate) fn map_into<S: Simd, A: Copy, const N: usize>(
    simd: S,
    x: &[f32],
    out: &mut [f32],
    fill: f32,
    start: A,
    f: impl Fn(&mut A, S::f32s) -> S::f32s,
) -> [A; N] {
    let lanes = S::f32s::LEN;
    let mut states = [start; N];
    let (mut x_blocks, mut blocks) = (x.chunks_exact(N * lanes), out.chunks_exact_mut(N * lanes));
    for (x, out) in (&mut x_blocks).zip(&mut blocks) {
        for (i, state) in states.iter_mut().enumerate() {
            let at = i * lanes..(i + 1) * lanes;
            f(state, S::f32s::from_slice(simd, &x[at.clone()])).store_slice(&mut out[at]);
        }
    }
    let mut ends = states;
    let mut x_vectors = x_blocks.remainder().chunks_exact(lanes);
    let mut vectors = blocks.into_remainder().chunks_exact_mut(lanes);
    for (state, (x, out)) in ends.iter_mut().zip((&mut x_vectors).zip(&mut vectors)) {
        f(state, S::f32s::from_slice(simd, x)).store_slice(out);
    }
    let x = x_vectors.remainder();
    if !x.is_empty() {
        let result = f(&mut ends[N - 1], load_partial(simd, x, fill));
        store_partial::<S>(result, vectors.into_remainder());
    }
    ends
}

/// [`map_into`], over its input.
#[inline(always)]
pub(crate) fn map_in_place<S: Simd, A: Copy, const N: usize>(
    simd: S,
    x: &mut [f32],
    fill: f32,
    start: A,
    f: impl Fn(&mut A, S::f32s) -> S::f32s,
) -> [A; N] {
    let lanes = S::f32s::LEN;
    let mut states = [start; N];
    let mut blocks = x.chunks_exact_mut(N * lanes);
    for block in &mut blocks {
        for (i, state) in states.iter_mut().enumerate() {
            let x = &mut block[i * lanes..(i + 1) * lanes];
            f(state, S::f32s::from_slice(simd, x)).store_slice(x);
        }
    }
    let mut ends = states;
    let mut vectors = blocks.into_remainder().chunks_exact_mut(lanes);
    for (state, x) in ends.iter_mut().zip(&mut vectors) {
        f(state, S::f32s::from_slice(simd, x)).store_slice(x);
    }
    let rest = vectors.into_remainder();
    if !rest.is_empty() {
        let result = f(&mut ends[N - 1], load_partial(simd, rest, fill));
        store_partial::<S>(result, rest);
    }
    ends
}
