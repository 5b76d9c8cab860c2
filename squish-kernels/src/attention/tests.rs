//! Every level against the definition.

use half::{bf16, f16};

use super::*;
use crate::element::{E4M3, E5M2, Element, Overflow};

/// Numbers between -1 and 1, the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// A multiply-add as the level has it.
fn fma(isa: Isa, a: f32, b: f32, c: f32) -> f32 {
    let is_fused = !matches!(isa.level(), crate::SimdLevel::Scalar | crate::SimdLevel::Sse42);
    if is_fused { a.mul_add(b, c) } else { a * b + c }
}

fn sum(mut chains: [f32; CHAINS]) -> f32 {
    for half in [8, 4] {
        for i in 0..half {
            chains[i] += chains[i + half];
        }
    }
    (chains[0] + chains[1]) + (chains[2] + chains[3])
}

/// Row of keys or values of a token.
fn row<'a, E>(tile: &Tile<'a, E>, kind: usize, mut token: usize) -> &'a [E] {
    for part in tile.parts {
        if token < part.n_tokens {
            let data = [part.keys, part.values][kind];
            return &data[token * part.strides[kind]..][..tile.dims[kind]];
        }
        token -= part.n_tokens;
    }
    panic!("no such token")
}

/// The score of one token, from its definition.
fn score<E: KvElement>(
    isa: Isa,
    tile: &Tile<'_, E>,
    query: &[f32],
    token: usize,
    alibi: Option<Alibi>,
) -> f32 {
    let mut chains = [0.0; CHAINS];
    for (e, key) in row(tile, 0, token).iter().enumerate() {
        let chain = place::<E>(e) % CHAINS;
        let query = query[place::<E>(e)];
        chains[chain] = fma(isa, query, key.to_f32(), chains[chain]);
    }
    let mut score = sum(chains);
    if let Some(scales) = tile.key_scales {
        score *= scales[token];
    }
    if let Some(Alibi { slope, position }) = alibi {
        score = fma(isa, tile.positions[token] - position, slope, score);
    }
    score
}

/// The state `(m, l, o)` of one row after a tile, from its definition.
fn defined<E: KvElement>(
    isa: Isa,
    tile: &Tile<'_, E>,
    query: &[f32],
    visible: usize,
    alibi: Option<Alibi>,
    (max, total, out): (f32, f32, &[f32]),
) -> (f32, f32, Vec<f32>) {
    if visible == 0 {
        return (max, total, out.to_vec());
    }
    let scores: Vec<f32> =
        (0..visible).map(|token| score(isa, tile, query, token, alibi)).collect();
    let new_max = scores.iter().fold(max, |max, &s| max.max(s));
    let mut chains = [0.0; CHAINS];
    let factor = if max == f32::NEG_INFINITY { 1.0 } else { exp_normal(isa, [max - new_max])[0] };
    let mut out: Vec<f32> = out.iter().map(|o| o * factor).collect();
    for (token, score) in scores.into_iter().enumerate() {
        let [weight] = exp_normal(isa, [score - new_max]);
        chains[token % CHAINS] += weight;
        let weight = tile.value_scales.map_or(weight, |scales| weight * scales[token]);
        for (e, value) in row(tile, 1, token).iter().enumerate() {
            let out = &mut out[place::<E>(e)];
            *out = fma(isa, value.to_f32(), weight, *out);
        }
    }
    (new_max, total * factor + sum(chains), out)
}

fn check<E: KvElement>(encode: impl Fn(f32) -> E, key_dim: usize, value_dim: usize) {
    let mut numbers = Numbers((key_dim * 1000 + value_dim) as u64);
    let widths = [key_dim, value_dim].map(padded::<E>);
    for (n_tokens, n_rows) in [(1, 1), (5, 2), (16, 3), (33, 4), (63, 7), (64, 1), (64, 9)] {
        let encoded = |numbers: &mut Numbers, n: usize| -> Vec<E> {
            numbers.take(n).into_iter().map(&encode).collect()
        };
        // In parts of several lengths, keys close to each other and values with gaps.
        let strides = [key_dim, value_dim + 3];
        let keys = encoded(&mut numbers, n_tokens * strides[0]);
        let values = encoded(&mut numbers, n_tokens * strides[1]);
        let mut parts = Vec::new();
        let mut first = 0;
        while first < n_tokens {
            let n_tokens = (7 * parts.len() + 1).min(n_tokens - first);
            let (keys, values) = (&keys[first * strides[0]..], &values[first * strides[1]..]);
            parts.push(Part { keys, values, strides, n_tokens });
            first += n_tokens;
        }
        let scales = [0; 2].map(|_| std::array::from_fn(|_| 1.0 + 0.5 * numbers.next()));
        let positions = std::array::from_fn(|i| i as f32);
        let mut queries = vec![0.0; n_rows * widths[0]];
        for query in queries.chunks_mut(widths[0]) {
            for (e, x) in numbers.take(key_dim).into_iter().enumerate() {
                query[place::<E>(e)] = x;
            }
        }
        let visible: Vec<usize> = (0..n_rows).map(|row| (row * 23 + 1) % (n_tokens + 1)).collect();
        let alibi: Vec<Alibi> =
            (0..n_rows).map(|row| Alibi { slope: 0.01 * row as f32, position: 64.0 }).collect();
        for with_options in [false, true] {
            let tile = Tile {
                parts: &parts,
                dims: [key_dim, value_dim],
                key_scales: with_options.then_some(&scales[0]),
                value_scales: with_options.then_some(&scales[1]),
                positions: &positions,
                ahead: Some(&parts),
            };
            let alibi = with_options.then_some(&alibi[..]);
            let of_rows = Queries { rows: &queries, visible: &visible, softcap: None, alibi };
            for isa in Isa::available() {
                let mut maxima = vec![f32::NEG_INFINITY; n_rows];
                let mut sums = vec![0.0; n_rows];
                let mut out = vec![0.0; n_rows * widths[1]];
                let mut scores = vec![[f32::NAN; TILE]; n_rows];
                // Again and again, so that there is a state to begin with; with larger scores, so that it is scaled down; with smaller ones.
                let (mut want_m, mut want_l, mut want_o) =
                    (maxima.clone(), sums.clone(), out.clone());
                for times in [1.0, 1.5, 0.5] {
                    let queries: Vec<f32> = queries.iter().map(|q| q * times).collect();
                    let of_rows = Queries { rows: &queries, ..of_rows };
                    let mut states =
                        States { maxima: &mut maxima, sums: &mut sums, values: &mut out };
                    attend(isa, &tile, &of_rows, &mut states, &mut scores);
                    for row in 0..n_rows {
                        let own = row * widths[1]..(row + 1) * widths[1];
                        let state = (want_m[row], want_l[row], &want_o[own.clone()]);
                        let alibi = alibi.map(|alibi| alibi[row]);
                        let query = &queries[row * widths[0]..];
                        let (m, l, o) = defined(isa, &tile, query, visible[row], alibi, state);
                        (want_m[row], want_l[row]) = (m, l);
                        want_o[own].copy_from_slice(&o);
                    }
                }
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let what = format!("{isa:?} {} {n_tokens} tokens {n_rows} rows", E::NAME);
                assert_eq!(bits(&maxima), bits(&want_m), "{what}: maxima");
                assert_eq!(bits(&sums), bits(&want_l), "{what}: sums");
                assert_eq!(bits(&out), bits(&want_o), "{what}: values");
                scores_into(isa, &tile, &of_rows, &mut scores);
                for (row, scores) in scores.iter().enumerate() {
                    let query = &queries[row * widths[0]..];
                    let want: [f32; TILE] = std::array::from_fn(|token| {
                        let alibi = alibi.map(|alibi| alibi[row]);
                        let seen = token < visible[row];
                        if seen {
                            score(isa, &tile, query, token, alibi)
                        } else {
                            f32::NEG_INFINITY
                        }
                    });
                    assert_eq!(bits(scores), bits(&want), "{what}: scores of row {row}");
                }
            }
        }
    }
}

#[test]
fn states_are_those_of_the_definition_bit_for_bit_on_every_level() {
    for (key_dim, value_dim) in [(64, 64), (80, 80), (128, 32), (4, 4), (20, 72), (16, 130)] {
        check(|x| x, key_dim, value_dim);
        check(bf16::from_f32, key_dim, value_dim);
    }
    for (key_dim, value_dim) in [(64, 96), (20, 4)] {
        check(f16::from_f32, key_dim, value_dim);
        check(|x| (x * 127.0) as i8, key_dim, value_dim);
        check(|x| E4M3::from_f32(x, Overflow::Saturate), key_dim, value_dim);
        check(|x| E5M2::from_f32(x, Overflow::Saturate), key_dim, value_dim);
    }
}

#[test]
fn what_is_not_seen_does_not_count_even_if_it_is_not_finite() {
    let keys = [[0.5f32; 16], [f32::NAN; 16], [f32::INFINITY; 16]];
    let keys = keys.as_flattened();
    let parts = [Part { keys, values: keys, strides: [16; 2], n_tokens: 3 }];
    let positions = [0.0; TILE];
    let tile = Tile {
        parts: &parts,
        dims: [16; 2],
        key_scales: None,
        value_scales: None,
        positions: &positions,
        ahead: None,
    };
    for isa in Isa::available() {
        for (visible, is_finite) in [(1, true), (2, false), (3, false)] {
            let queries =
                Queries { rows: &[1.0; 16], visible: &[visible], softcap: None, alibi: None };
            let (mut max, mut sum, mut out) = ([f32::NEG_INFINITY], [0.0], [0.0; 16]);
            let mut states = States { maxima: &mut max, sums: &mut sum, values: &mut out };
            attend(isa, &tile, &queries, &mut states, &mut [[0.0; TILE]]);
            assert_eq!((sum[0] + out[0]).is_finite(), is_finite, "{isa:?} {visible}");
        }
    }
}

#[test]
fn the_cap_is_a_hyperbolic_tangent() {
    let positions = [0.0; TILE];
    for isa in Isa::available() {
        for i in -400..400 {
            let score = i as f32 / 20.0;
            // A second token of score 0 shows the first one's as the logarithm of their weights' ratio.
            let (mut keys, values) = ([[0.0; 16]; 2], [[1.0; 16], [0.0; 16]]);
            keys[0][3] = score;
            let (keys, values) = (keys.as_flattened(), values.as_flattened());
            let parts = [Part { keys, values, strides: [16; 2], n_tokens: 2 }];
            let tile = Tile {
                parts: &parts,
                dims: [16; 2],
                key_scales: None,
                value_scales: None,
                positions: &positions,
                ahead: None,
            };
            let queries =
                Queries { rows: &[1.0; 16], visible: &[2], softcap: Some(1.5), alibi: None };
            let (mut max, mut sum, mut out) = ([f32::NEG_INFINITY], [0.0], [0.0; 16]);
            let mut states = States { maxima: &mut max, sums: &mut sum, values: &mut out };
            attend(isa, &tile, &queries, &mut states, &mut [[0.0; TILE]]);
            let want = (1.5 * (f64::from(score) / 1.5).tanh()).exp();
            let got = f64::from(out[0]) / f64::from(sum[0] - out[0]);
            assert!((got / want - 1.0).abs() < 2e-6, "{isa:?} {score}: {got} is not {want}");
        }
    }
}
