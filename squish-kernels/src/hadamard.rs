//! The normalized Walsh-Hadamard transform of rows, in place: [`hadamard_in_place`].
//!
//! ```text
//! y = H x / √n        H of order n: entries ±1, symmetric, H H = n I
//! H(2^k)              = H(2) ⊗ … ⊗ H(2), H(2) = [1 1; 1 −1]                  (Sylvester)
//! H(2 (q + 1) · 2^k)  = (C ⊗ [1 1; 1 −1] + I ⊗ [1 −1; −1 −1]) ⊗ H(2^k)        (Paley's second construction)
//! C                   = [0 1ᵀ; 1 Q], Q[i, j] = χ(aᵢ − aⱼ) over the elements a of GF(q)
//! ```
//!
//! | order | q | for rows of |
//! |---|---|---|
//! | 2^k | — | 4096, 8192 |
//! | 12 · 2^k | 5 | 3072, 6144 |
//! | 20 · 2^k | 9, elements a + b √−1 with a, b modulo 3 | 2560, 5120, 10240 |
//! | 28 · 2^k | 13 | 3584, 7168, 14336 = 28 · 512 |
//!
//! `χ` is 1 for squares, −1 for others, 0 for 0. All matrices are symmetric, which Paley's first construction does not give, so that every
//! transform is its own inverse. A length without a transform is rotated in blocks of the largest order that divides it
//! ([`hadamard_block`]): 11008 = 43 · 256 in blocks of 256.
//!
//! How the code departs from the formula:
//! 1. Of the factors the one for the lowest bit of the index comes first. The scale is applied before all.
//! 2. Bits within two vectors: even and odd elements are taken apart, added and subtracted, and left there, so that the bits of the index rotate.
//!    After as many rounds as there are bits every element is back in its place.
//! 3. Bits above are taken two at a time, which halves the passes over a row.
//! 4. For Paley's matrix the sums and differences of the pairs are made once; a row of `C` then adds them with its signs.
//!
//! Every sum has the same order on all levels, and so the same bits.
//!
//! Source: J. J. Sylvester 1867; R. Paley, "On orthogonal matrices", 1933, lemma 2. Use in quantization: S. Ashkboos et al., `QuaRot`, arXiv
//! 2404.00456.

use fearless_simd::{Simd, prelude::*};

use crate::{
    Isa,
    isa::dispatch,
    lanes::{load_partial, store_partial},
};

/// Transforms each row of `x`, `[rows, n]`, with the symmetric orthonormal Hadamard matrix of order `n`. Twice gives `x` again,
/// within `(4 + log2(n)) · 2^-22` of the norm of a row.
///
/// A NaN or an infinity spreads over its row.
///
/// # Panics
///
/// If there is no transform of order `n`: [`hadamard_block`] of it is not `n`; or if `x` is no whole number of rows.
///
/// # Examples
///
/// ```
/// let mut x = [3.0, 1.0, 0.0, 0.0];
/// squish_kernels::hadamard_in_place(&mut x, 4);
/// assert_eq!(x, [2.0, 1.0, 2.0, 1.0]);
/// ```
pub fn hadamard_in_place(x: &mut [f32], n: usize) {
    hadamard_in_place_with(Isa::detect(), x, n);
}

/// The largest order of a transform that divides `n`: `n` itself if there is one of that order; 1 for 0.
///
/// ```
/// use squish_kernels::hadamard::hadamard_block;
///
/// assert_eq!([4096, 14336, 11008, 7].map(hadamard_block), [4096, 14336, 256, 1]);
/// ```
#[must_use]
pub const fn hadamard_block(n: usize) -> usize {
    if n == 0 {
        return 1;
    }
    let power = 1 << n.trailing_zeros();
    let odd = n / power;
    match power {
        4.. if odd.is_multiple_of(7) => 7 * power,
        4.. if odd.is_multiple_of(5) => 5 * power,
        4.. if odd.is_multiple_of(3) => 3 * power,
        _ => power,
    }
}

#[doc(hidden)]
pub fn hadamard_in_place_with(isa: Isa, x: &mut [f32], n: usize) {
    assert!(n > 0 && hadamard_block(n) == n, "hadamard: no transform of order {n}");
    assert!(x.len().is_multiple_of(n), "hadamard: {} elements are no rows of {n}", x.len());
    dispatch!(isa.token(), simd => {
        for row in x.chunks_exact_mut(n) {
            transform(simd, row);
        }
    });
}

/// The entry of the matrix of order `n` in `row` and `col`, 1 or −1.
#[doc(hidden)]
#[must_use]
pub fn hadamard_entry(n: usize, row: usize, col: usize) -> f32 {
    let base = base(n);
    let width = n / base;
    let sylvester = |row: usize, col: usize| 1.0 - 2.0 * ((row & col).count_ones() % 2) as f32;
    let (i, j) = (row / width, col / width);
    let paley = match base {
        12 => paley(&SIGNS_12, i, j),
        20 => paley(&SIGNS_20, i, j),
        28 => paley(&SIGNS_28, i, j),
        _ => 1.0,
    };
    paley * sylvester(row % width, col % width)
}

/// The entry of Paley's matrix.
fn paley<const P: usize>(signs: &[[f32; P]; P], row: usize, col: usize) -> f32 {
    let (sign, at) = (signs[row / 2][col / 2], (row % 2, col % 2));
    match (sign, at) {
        (0.0, (0, 0)) => 1.0,
        (0.0, _) => -1.0,
        (_, (1, 1)) => -sign,
        _ => sign,
    }
}

/// The order of Paley's factor, or 1.
const fn base(n: usize) -> usize {
    match n >> n.trailing_zeros() {
        3 => 12,
        5 => 20,
        7 => 28,
        _ => 1,
    }
}

static SIGNS_12: [[f32; 6]; 6] = conference();
static SIGNS_20: [[f32; 10]; 10] = conference();
static SIGNS_28: [[f32; 14]; 14] = conference();

/// The matrix `C` of order `P = q + 1`.
const fn conference<const P: usize>() -> [[f32; P]; P] {
    let mut signs = [[0.0; P]; P];
    let mut i = 0;
    while i < P {
        let mut j = 0;
        while j < P {
            if i != j {
                let is_square = i == 0 || j == 0 || is_square_difference(P - 1, i - 1, j - 1);
                signs[i][j] = if is_square { 1.0 } else { -1.0 };
            }
            j += 1;
        }
        i += 1;
    }
    signs
}

/// Whether the difference of two elements of GF(q), which are not the same, is a square.
const fn is_square_difference(q: usize, i: usize, j: usize) -> bool {
    if q == 9 {
        // An element of GF(9) is a square if its norm is one in GF(3), where 1 is the only square.
        let (a, b) = ((i % 3 + 3 - j % 3) % 3, (i / 3 + 3 - j / 3) % 3);
        return (a * a + b * b) % 3 == 1;
    }
    let difference = (i + q - j) % q;
    let mut root = 1;
    while root < q {
        if root * root % q == difference {
            return true;
        }
        root += 1;
    }
    false
}

#[inline(always)]
fn transform<S: Simd>(simd: S, x: &mut [f32]) {
    let n = x.len();
    let scale = (1.0 / (n as f64).sqrt()) as f32;
    let base = base(n);
    let width = n / base;
    for part in x.chunks_exact_mut(width) {
        walsh(simd, part, scale);
    }
    match base {
        12 => combine(simd, x, width, &SIGNS_12),
        20 => combine(simd, x, width, &SIGNS_20),
        28 => combine(simd, x, width, &SIGNS_28),
        _ => {}
    }
}

/// `scale · H x` for a power of two of elements.
#[inline(always)]
fn walsh<S: Simd>(simd: S, x: &mut [f32], scale: f32) {
    let (n, lanes) = (x.len(), S::f32s::LEN);
    let pair = 2 * lanes;
    if n < pair {
        return walsh_scalar(x, scale);
    }
    let scale = S::f32s::splat(simd, scale);
    for x in x.chunks_exact_mut(pair) {
        let (low, high) = x.split_at_mut(lanes);
        let mut a = S::f32s::from_slice(simd, low) * scale;
        let mut b = S::f32s::from_slice(simd, high) * scale;
        for _ in 0..pair.trailing_zeros() {
            let (even, odd) = (a.unzip_low(b), a.unzip_high(b));
            (a, b) = (even + odd, even - odd);
        }
        a.store_slice(low);
        b.store_slice(high);
    }
    let mut step = pair;
    while 4 * step <= n {
        for x in x.chunks_exact_mut(4 * step) {
            four(simd, x);
        }
        step *= 4;
    }
    if step < n {
        two(simd, x);
    }
}

/// Two bits: the parts of `x` are added and subtracted in pairs, then those of both pairs.
#[inline(always)]
fn four<S: Simd>(simd: S, x: &mut [f32]) {
    let (lanes, quarter) = (S::f32s::LEN, x.len() / 4);
    let (low, high) = x.split_at_mut(2 * quarter);
    let (a, b) = low.split_at_mut(quarter);
    let (c, d) = high.split_at_mut(quarter);
    let load = |x: &[f32]| S::f32s::from_slice(simd, x);
    for at in (0..quarter).step_by(lanes) {
        let at = at..at + lanes;
        let (a, b) = (&mut a[at.clone()], &mut b[at.clone()]);
        let (c, d) = (&mut c[at.clone()], &mut d[at]);
        let (sum_low, difference_low) = (load(a) + load(b), load(a) - load(b));
        let (sum_high, difference_high) = (load(c) + load(d), load(c) - load(d));
        (sum_low + sum_high).store_slice(a);
        (difference_low + difference_high).store_slice(b);
        (sum_low - sum_high).store_slice(c);
        (difference_low - difference_high).store_slice(d);
    }
}

/// The highest bit.
#[inline(always)]
fn two<S: Simd>(simd: S, x: &mut [f32]) {
    let (lanes, half) = (S::f32s::LEN, x.len() / 2);
    let (low, high) = x.split_at_mut(half);
    for (low, high) in low.chunks_exact_mut(lanes).zip(high.chunks_exact_mut(lanes)) {
        let (a, b) = (S::f32s::from_slice(simd, low), S::f32s::from_slice(simd, high));
        (a + b).store_slice(low);
        (a - b).store_slice(high);
    }
}

/// The same for rows of less than two vectors.
fn walsh_scalar(x: &mut [f32], scale: f32) {
    for x in &mut *x {
        *x *= scale;
    }
    let mut step = 1;
    while step < x.len() {
        for x in x.chunks_exact_mut(2 * step) {
            let (low, high) = x.split_at_mut(step);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        step *= 2;
    }
}

/// Paley's factor over `x`, `[2 P, width]`, whose `P` pairs of rows are columns of `signs`.
#[inline(always)]
fn combine<S: Simd, const P: usize>(simd: S, x: &mut [f32], width: usize, signs: &[[f32; P]; P]) {
    let lanes = S::f32s::LEN;
    let zero = S::f32s::splat(simd, 0.0);
    for first in (0..width).step_by(lanes) {
        let len = lanes.min(width - first);
        let at = |row: usize| row * width + first..row * width + first + len;
        let (mut sums, mut differences) = ([zero; P], [zero; P]);
        for i in 0..P {
            let (even, odd) = (&x[at(2 * i)], &x[at(2 * i + 1)]);
            let (even, odd) = if len == lanes {
                (S::f32s::from_slice(simd, even), S::f32s::from_slice(simd, odd))
            } else {
                (load_partial(simd, even, 0.0), load_partial(simd, odd, 0.0))
            };
            (sums[i], differences[i]) = (even + odd, even - odd);
        }
        // Two rows of `C` at a time, so that what is loaded serves twice. Products with 1, −1 and 0 are exact.
        for i in (0..P).step_by(2) {
            let mut y = [differences[i], -sums[i], differences[i + 1], -sums[i + 1]];
            for j in 0..P {
                let [a, b] = [signs[i][j], signs[i + 1][j]].map(
                    #[inline(always)]
                    |sign| S::f32s::splat(simd, sign),
                );
                y[0] = sums[j].mul_add(a, y[0]);
                y[1] = differences[j].mul_add(a, y[1]);
                y[2] = sums[j].mul_add(b, y[2]);
                y[3] = differences[j].mul_add(b, y[3]);
            }
            for (k, y) in y.into_iter().enumerate() {
                if len == lanes {
                    y.store_slice(&mut x[at(2 * i + k)]);
                } else {
                    store_partial::<S>(y, &mut x[at(2 * i + k)]);
                }
            }
        }
    }
}
