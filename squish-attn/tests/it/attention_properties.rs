//! What must hold of attention whatever the numbers are: symmetries, companies, rings, merges, and numbers that are none.

use std::sync::Arc;

use ndarray::{Array2, Array3, ArrayView3, Axis, concatenate, s};
use proptest::prelude::*;
use squish_attn::{
    AttnError, BitMask, KvArrays, KvSource, Mask, Options, Rows, Run, SPLIT, Sequence, Team,
    Workspace, attention::merge_in_place_with, ndarray,
};
use squish_kernels::Isa;

use super::attention::{Cache, Cut, assert_same_bits, attend, bits, numbers, queries, workspace};

fn on(isa: Isa) -> Workspace {
    Workspace::new_with(isa, Arc::new(Team::new(1).expect("one thread")))
}

/// Results with logarithms of sums.
fn attend_with_lse<S: KvSource>(
    isa: Isa,
    queries: ArrayView3<'_, f32>,
    sequence: Sequence<'_, S>,
    options: &Options<'_>,
) -> (Array3<f32>, Array2<f32>) {
    let (n_rows, n_heads, _) = queries.dim();
    let mut out = Array3::from_elem((n_rows, n_heads, sequence.source.value_dim()), f32::NAN);
    let mut lse = Array2::from_elem((n_rows, n_heads), f32::NAN);
    on(isa)
        .attend_with_lse_into(queries, &[sequence], options, out.view_mut(), lse.view_mut())
        .expect("fits");
    (out, lse)
}

/// The last tokens of a cache as a ring has them: at `first` of its slots and on, then from its first slot on.
struct Ring<'a> {
    keys: Vec<f32>,
    values: Vec<f32>,
    cache: &'a Cache<f32>,
    len: usize,
    first: usize,
}

impl<'a> Ring<'a> {
    fn new(cache: &'a Cache<f32>, len: usize, first: usize) -> Self {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (head, slot) in
            (0..cache.n_heads).flat_map(|head| (0..len).map(move |slot| (head, slot)))
        {
            let token = cache.n_tokens - len + (slot + len - first) % len;
            keys.extend_from_slice(cache.row(0, head, token));
            values.extend_from_slice(cache.row(1, head, token));
        }
        Self { keys, values, cache, len, first }
    }

    fn rows<'b>(&self, data: &'b [f32], dim: usize, head: usize, run: usize) -> Rows<'b, f32> {
        let slots = if run == 0 { self.first..self.len } else { 0..self.first };
        let data = &data[head * self.len * dim..][slots.start * dim..slots.end * dim];
        Rows { data, stride: dim, scales: None }
    }
}

impl KvSource for Ring<'_> {
    type Element = f32;

    fn n_heads(&self) -> usize {
        self.cache.n_heads
    }

    fn key_dim(&self) -> usize {
        self.cache.dims[0]
    }

    fn value_dim(&self) -> usize {
        self.cache.dims[1]
    }

    fn len(&self) -> usize {
        self.len
    }

    fn n_runs(&self) -> usize {
        1 + usize::from(self.first > 0)
    }

    fn run(&self, run: usize) -> Run {
        let n_first = self.len - self.first;
        let (start, len) = if run == 0 { (0, n_first) } else { (n_first, self.first) };
        Run { start, len, position: self.cache.n_tokens - self.len + start }
    }

    fn run_of(&self, index: usize) -> usize {
        usize::from(index >= self.len - self.first)
    }

    fn keys(&self, head: usize, run: usize) -> Rows<'_, f32> {
        self.rows(&self.keys, self.cache.dims[0], head, run)
    }

    fn values(&self, head: usize, run: usize) -> Rows<'_, f32> {
        self.rows(&self.values, self.cache.dims[1], head, run)
    }
}

#[test]
fn rows_have_the_same_bits_in_every_company_for_every_width_and_odd_group() {
    for dim in [32, 64, 80, 96, 128, 256] {
        for group in [1, 3, 5, 7] {
            let cache = Cache::new(|x| x, 1, 131, [dim, dim]);
            assert_same_bits(&cache, 4, group, &Options::default());
        }
    }
}

#[test]
fn heads_that_share_keys_are_those_with_the_same_keys_of_their_own() {
    for (dim, group) in [(32, 3), (64, 5), (80, 7), (128, 8), (256, 2)] {
        let shared = Cache::new(|x| x, 2, 90, [dim, dim]);
        let repeated = |x: &[f32]| -> Vec<f32> {
            x.chunks(90 * dim).flat_map(|head| head.repeat(group)).collect()
        };
        let (keys, values) = (repeated(&shared.keys), repeated(&shared.values));
        let own = KvArrays::new([&keys, &values], 2 * group, 90, [dim, dim]).expect("fits");
        let source = shared.plain();
        for (n_rows, window) in [(1, None), (11, None), (11, Some(20))] {
            let queries = queries(n_rows, 2 * group, dim);
            let options = Options { window, ..Options::default() };
            for isa in Isa::available() {
                let of_shared = Sequence::causal(&source, n_rows);
                let of_own = Sequence::causal(&own, n_rows);
                let (want, want_lse) = attend_with_lse(isa, queries.view(), of_own, &options);
                let (got, lse) = attend_with_lse(isa, queries.view(), of_shared, &options);
                assert_eq!(bits(&got), bits(&want), "{isa:?}, groups of {group}");
                assert_eq!(bits(&lse), bits(&want_lse), "{isa:?}, groups of {group}");
            }
        }
    }
}

#[test]
fn a_ring_at_every_turn_is_the_window_of_the_whole_cache() {
    let cache = Cache::new(|x| x, 2, 150, [32, 16]);
    let slopes = [0.5, 0.25, 0.125, 0.06];
    for alibi in [None, Some(&slopes[..])] {
        let options = Options { alibi, ..Options::default() };
        let whole = cache.plain();
        for (window, n_rows) in [(1, 1), (7, 1), (70, 1), (7, 4), (64, 9), (20, 30)] {
            let queries = queries(n_rows, 4, 32);
            let windowed = Options { window: Some(window), ..options };
            let sequence = [Sequence::causal(&whole, n_rows)];
            let want = attend(&mut workspace(1), queries.view(), &sequence, &windowed);
            // What the first of the rows sees, and the rows after it.
            let len = window + n_rows - 1;
            for first in 0..len {
                let ring = Ring::new(&cache, len, first);
                let sequence = [Sequence::causal(&ring, n_rows)];
                let got = attend(&mut workspace(2), queries.view(), &sequence, &windowed);
                assert_eq!(bits(&got), bits(&want), "{len} slots, the first token in {first}");
                if n_rows == 1 {
                    // A ring has no more tokens than its window.
                    let got = attend(&mut workspace(1), queries.view(), &sequence, &options);
                    assert_eq!(bits(&got), bits(&want), "{len} slots, the first token in {first}");
                }
            }
        }
    }
}

#[test]
fn a_window_of_one_token_and_a_sequence_of_one_are_its_value() {
    let cache = Cache::new(|x| x, 2, 30, [16, 20]);
    let (source, first) = (cache.plain(), cache.first(1));
    let options = Options { window: Some(1), ..Options::default() };
    for isa in Isa::available() {
        let queries = queries(5, 6, 16);
        let (out, _) = attend_with_lse(isa, queries.view(), Sequence::causal(&source, 5), &options);
        for ((row, head), token) in
            (0..5).flat_map(|row| (0..6).map(move |head| ((row, head), 25 + row)))
        {
            let got = out.slice(s![row, head, ..]);
            assert_eq!(got.to_vec(), cache.row(1, head / 3, token), "{isa:?}");
        }
        let row = queries.slice(s![..1, .., ..]);
        let sequence = Sequence::causal(&first, 1);
        let (out, _) = attend_with_lse(isa, row, sequence, &Options::default());
        for head in 0..6 {
            assert_eq!(out.slice(s![0, head, ..]).to_vec(), cache.row(1, head / 3, 0), "{isa:?}");
        }
    }
}

#[test]
fn rows_over_no_tokens_are_zeros_without_weight() {
    let source = KvArrays::<f32>::new([&[], &[]], 2, 0, [16, 8]).expect("nothing");
    let queries = queries(3, 4, 16);
    let none = BitMask::from_fn(3, 0, |_, _| true);
    let sinks = [0.5, -1.0, f32::NEG_INFINITY, 3.0];
    for isa in Isa::available() {
        for mask in [Mask::Full, Mask::Custom(&none)] {
            for window in [None, Some(1), Some(9)] {
                let sequence = Sequence { source: &source, n_rows: 3, mask };
                let options = Options { window, ..Options::default() };
                let (out, lse) = attend_with_lse(isa, queries.view(), sequence, &options);
                assert!(
                    out.iter().all(|&x| x == 0.0) && lse.iter().all(|&x| x == f32::NEG_INFINITY)
                );
                let options = Options { sinks: Some(&sinks), ..options };
                let (out, lse) = attend_with_lse(isa, queries.view(), sequence, &options);
                assert!(out.iter().all(|&x| x == 0.0), "{isa:?}");
                assert!(lse.outer_iter().all(|row| row.iter().eq(&sinks)), "{isa:?}: {lse}");
            }
        }
    }
    // Causal rows are tokens themselves.
    let mut out = Array3::from_elem((1, 4, 8), 7.0);
    let row = queries.slice(s![..1, .., ..]);
    let sequence = [Sequence::causal(&source, 1)];
    let result = workspace(1).attend_into(row, &sequence, &Options::default(), out.view_mut());
    assert_eq!(result, Err(AttnError::Rows { n_rows: 1, n_tokens: 0 }));
    // No rows, and no sequences.
    let mut nothing = Array3::zeros((0, 4, 8));
    let row = queries.slice(s![..0, .., ..]);
    for sequences in [&[][..], &[Sequence::causal(&source, 0)]] {
        let options = Options::default();
        let result = workspace(1).attend_into(row, sequences, &options, nothing.view_mut());
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn a_sink_of_negative_infinity_is_none() {
    let cache = Cache::new(|x| x, 1, 20, [16, 16]);
    let (source, queries) = (cache.plain(), queries(2, 2, 16));
    for isa in Isa::available() {
        let sequence = Sequence::causal(&source, 2);
        let (want, want_lse) = attend_with_lse(isa, queries.view(), sequence, &Options::default());
        let options = Options { sinks: Some(&[f32::NEG_INFINITY; 2]), ..Options::default() };
        let (got, lse) = attend_with_lse(isa, queries.view(), sequence, &options);
        assert_eq!((bits(&got), bits(&lse)), (bits(&want), bits(&want_lse)), "{isa:?}");
    }
}

/// What is not finite at `token` of a cache over the ends of a tile and of a split, with the head of keys that has it.
fn spoiled(kind: usize, token: usize, x: f32) -> Cache<f32> {
    let mut cache = Cache::new(|x| x, 2, SPLIT + 200, [16, 16]);
    let at = (cache.n_tokens + token) * 16 + 3;
    [&mut cache.keys, &mut cache.values][kind][at] = x;
    cache
}

#[test]
fn numbers_that_are_not_finite_reach_the_rows_and_columns_that_meet_them_and_no_others() {
    let queries = queries(1, 4, 16);
    for isa in Isa::available() {
        for token in [0, 63, 64, 700, SPLIT, SPLIT + 199] {
            let attend = |cache: &Cache<f32>, queries: &Array3<f32>| {
                let source = cache.plain();
                let sequence = Sequence::causal(&source, 1);
                attend_with_lse(isa, queries.view(), sequence, &Options::default())
            };
            let clean = spoiled(0, token, 0.5);
            let (want, want_lse) = attend(&clean, &queries);
            // In a key: all columns of the two heads that share it.
            for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                // Upward, so that a score of negative infinity, which is a weight of zero, is none of them.
                let mut queries = queries.clone();
                queries.slice_mut(s![.., .., 3]).fill(1.0_f32.copysign(x));
                let (want, _) = attend(&clean, &queries);
                let (out, lse) = attend(&spoiled(0, token, x), &queries);
                assert_eq!(bits(out.slice(s![.., ..2, ..])), bits(want.slice(s![.., ..2, ..])));
                assert!(
                    out.slice(s![.., 2.., ..]).iter().all(|x| x.is_nan()),
                    "{isa:?} {token} {x}"
                );
                assert!(lse.slice(s![.., 2..]).iter().all(|x| x.is_nan()), "{isa:?} {token} {x}");
            }
            // In a value: the one column.
            for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let clean = spoiled(1, token, 0.5);
                let (want, want_lse) = attend(&clean, &queries);
                let (out, lse) = attend(&spoiled(1, token, x), &queries);
                for ((index, &got), &want) in out.indexed_iter().zip(&want) {
                    let is_met = index.1 >= 2 && index.2 == 3;
                    let holds =
                        if is_met { got == x || got.is_nan() && x.is_nan() } else { got == want };
                    assert!(holds, "{isa:?} {token} {index:?}: {got}");
                }
                assert_eq!(bits(&lse), bits(&want_lse), "{isa:?} {token}");
            }
            // In a query: its own head.
            let mut spoiled = queries.clone();
            spoiled[[0, 1, 9]] = f32::NAN;
            let (out, lse) = attend(&clean, &spoiled);
            for head in 0..4 {
                let got = out.slice(s![0, head, ..]);
                if head == 1 {
                    assert!(got.iter().all(|x| x.is_nan()) && lse[[0, head]].is_nan(), "{isa:?}");
                } else {
                    assert_eq!(bits(got), bits(want.slice(s![0, head, ..])), "{isa:?}");
                    assert_eq!(lse[[0, head]], want_lse[[0, head]]);
                }
            }
        }
    }
}

/// A sequence of the tokens of `cut` by one of the kinds of masks, with as many rows as `n_rows` or tokens.
fn sequence<'a>(
    cut: &'a Cut<f32>,
    kind: usize,
    n_rows: usize,
    parents: &'a [Option<u32>],
    masks: &'a [BitMask],
) -> Sequence<'a, Cut<f32>> {
    let n_rows = n_rows.min(cut.len());
    let custom = masks.iter().find(|mask| mask.shape() == [n_rows, cut.len()]);
    let mask = match (kind, custom) {
        (0, _) => Mask::Full,
        (1, _) => Mask::Tree(&parents[..n_rows]),
        (2, Some(mask)) => Mask::Custom(mask),
        _ => Mask::Causal,
    };
    Sequence { source: cut, n_rows, mask }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_sequence_has_the_same_bits_whatever_is_in_its_batch(
        members in prop::collection::vec((0usize..5, 1usize..20, 1usize..200, 1usize..80), 1..7),
        n_threads in 1usize..4,
        window in prop::option::of(1usize..120),
    ) {
        let cache = Cache::new(|x| x, 2, 200, [16, 8]);
        let parents: Vec<Option<u32>> = (0..20_u32).map(|node| (node > 1).then(|| (node * 5 + 1) % node)).collect();
        let cuts: Vec<Cut<f32>> =
            members.iter().map(|&(_, _, n_tokens, len)| Cut::new(&cache, &[len], n_tokens)).collect();
        let masks: Vec<BitMask> = members
            .iter()
            .map(|&(_, n_rows, n_tokens, _)| {
                BitMask::from_fn(n_rows.min(n_tokens), n_tokens, |row, token| !(row * 3 + token * token).is_multiple_of(5))
            })
            .collect();
        let batch: Vec<_> = members
            .iter()
            .zip(&cuts)
            .map(|(&(kind, n_rows, _, _), cut)| sequence(cut, kind, n_rows, &parents, &masks))
            .collect();
        let queries = queries(batch.iter().map(|sequence| sequence.n_rows).sum(), 6, 16);
        let options = Options { window, ..Options::default() };
        let together = attend(&mut workspace(n_threads), queries.view(), &batch, &options);
        let mut first = 0;
        for (idx, sequence) in batch.iter().enumerate() {
            let rows = first..first + sequence.n_rows;
            first = rows.end;
            let own = queries.slice(s![rows.clone(), .., ..]);
            let alone = attend(&mut workspace(1), own, &[*sequence], &options);
            let got = together.slice(s![rows, .., ..]);
            prop_assert_eq!(bits(got), bits(&alone), "sequence {} of {:?}", idx, &members);
        }
    }

    #[test]
    fn a_constant_in_all_scores_changes_logarithms_alone(
        n_tokens in 1usize..150, n_rows in 1usize..6, constant in -30.0f32..30.0, sink in -2.0f32..2.0, seed in 0u64..1000,
    ) {
        let mut cache = Cache::new(|x| x, 1, n_tokens, [20, 16]);
        cache.values = numbers(n_tokens * 16, seed);
        // The last element of a query is the constant, that of keys is one.
        cache.keys.chunks_mut(20).for_each(|key| key[19] = 1.0);
        let n_rows = n_rows.min(n_tokens);
        let mut queries = queries(n_rows, 2, 20);
        let source = cache.plain();
        let mut results = Vec::new();
        for constant in [0.0, constant] {
            queries.slice_mut(s![.., .., 19]).fill(constant);
            let sinks = [sink + constant, f32::NEG_INFINITY];
            let options = Options { scale: Some(1.0), sinks: Some(&sinks), ..Options::default() };
            let of_isas = Isa::available().map(|isa| {
                (isa, attend_with_lse(isa, queries.view(), Sequence::causal(&source, n_rows), &options))
            });
            results.push(of_isas.collect::<Vec<_>>());
        }
        // Half a last place of each score, once in the product and once in the difference.
        let bound = 2e-6 + 2.0 * f32::EPSILON * constant.abs();
        for ((isa, (out, lse)), (_, (other, other_lse))) in results[0].iter().zip(&results[1]) {
            for (a, b) in out.iter().zip(other) {
                prop_assert!((a - b).abs() <= bound, "{isa:?}: {a} {b}");
            }
            for (a, b) in lse.iter().zip(other_lse) {
                prop_assert!((a + constant - b).abs() <= 2.0 * bound, "{isa:?}: {a} {b}");
            }
        }
    }

    #[test]
    fn parts_merge_in_any_order_and_grouping(
        part_of in prop::collection::vec(0usize..3, 1..150),
        order in Just([0usize, 1, 2]).prop_shuffle(),
        q_times in 1.0f32..8.0,
    ) {
        let n_tokens = part_of.len();
        let cache = Cache::new(|x| x, 1, n_tokens, [16, 16]);
        let source = cache.plain();
        let queries = queries(2, 2, 16).mapv(|q| q * q_times);
        for isa in Isa::available() {
            let attend = |mask: &BitMask| {
                let sequence = Sequence { source: &source, n_rows: 2, mask: Mask::Custom(mask) };
                attend_with_lse(isa, queries.view(), sequence, &Options::default())
            };
            let want = attend(&BitMask::from_fn(2, n_tokens, |_, _| true));
            let parts = order.map(|part| attend(&BitMask::from_fn(2, n_tokens, |_, token| part_of[token] == part)));
            let merged = |(out, lse): &(Array3<f32>, Array2<f32>), other: &(Array3<f32>, Array2<f32>)| {
                let (mut out, mut lse) = (out.clone(), lse.clone());
                merge_in_place_with(isa, out.view_mut(), lse.view_mut(), other.0.view(), other.1.view()).expect("fits");
                (out, lse)
            };
            let [a, b, c] = &parts;
            let left = merged(&merged(a, b), c);
            let right = merged(a, &merged(b, c));
            let swapped = merged(c, &merged(b, a));
            for (name, (out, lse)) in [("left", left), ("right", right), ("swapped", swapped)] {
                let close = |a: &f32, b: &f32| (a - b).abs() <= 2e-6 * b.abs().max(1.0);
                prop_assert!(out.iter().zip(&want.0).all(|(a, b)| close(a, b)), "{isa:?} {name}: {out} {}", want.0);
                prop_assert!(lse.iter().zip(&want.1).all(|(a, b)| close(a, b)), "{isa:?} {name}: {lse} {}", want.1);
            }
        }
    }
}

#[test]
fn a_prefill_in_chunks_of_any_size_is_the_whole() {
    let cache = Cache::new(|x| x, 2, 100, [32, 32]);
    let queries = queries(100, 6, 32);
    let source = cache.plain();
    for window in [None, Some(33)] {
        let options = Options { window, ..Options::default() };
        let whole = [Sequence::causal(&source, 100)];
        let want = attend(&mut workspace(1), queries.view(), &whole, &options);
        for size in [1, 7, 32, 64, 99] {
            let chunks: Vec<Array3<f32>> = (0..100)
                .step_by(size)
                .map(|start| {
                    let end = (start + size).min(100);
                    let seen = cache.first(end);
                    let sequence = [Sequence::causal(&seen, end - start)];
                    let own = queries.slice(s![start..end, .., ..]);
                    attend(&mut workspace(1), own, &sequence, &options)
                })
                .collect();
            let chunks: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
            let got = concatenate(Axis(0), &chunks).expect("as wide");
            assert_eq!(bits(&got), bits(&want), "chunks of {size}, window {window:?}");
        }
    }
}

#[test]
fn queries_lie_anywhere_and_rows_of_results_apart() {
    let cache = Cache::new(|x| x, 2, 40, [16, 8]);
    let (source, options) = (cache.plain(), Options::default());
    let wide = queries(3, 10, 32);
    let strided = wide.slice(s![..;-1, 2..6, ..;2]);
    let batch = [Sequence::causal(&source, 3)];
    let want = attend(&mut workspace(1), strided.to_owned().view(), &batch, &options);
    let mut all = Array3::from_elem((3, 9, 8), 7.0);
    let out = all.slice_mut(s![.., 3..7, ..]);
    workspace(2).attend_into(strided, &batch, &options, out).expect("contiguous rows");
    assert_eq!(all.slice(s![.., 3..7, ..]), want);
    assert!(all.slice(s![.., ..3, ..]).iter().chain(all.slice(s![.., 7.., ..])).all(|&x| x == 7.0));

    // Elements of a row that lie apart are refused, and so are logarithms.
    let mut columns = Array3::from_elem((3, 8, 4), 7.0);
    let out = columns.view_mut().permuted_axes([0, 2, 1]);
    let error = workspace(1).attend_into(strided, &batch, &options, out).expect_err("columns");
    let (shape, strides) = ([3, 4, 8], [32, 1, 4]);
    assert_eq!(error, AttnError::Layout { what: "out", shape, strides });
    let (mut out, mut lse) = (Array3::from_elem((3, 4, 8), 7.0), Array2::from_elem((4, 3), 7.0));
    let of_columns = lse.view_mut().reversed_axes();
    let error = workspace(1)
        .attend_with_lse_into(strided, &batch, &options, out.view_mut(), of_columns)
        .expect_err("columns");
    let (shape, strides) = ([1, 3, 4], [1, 1, 3]);
    assert_eq!(error, AttnError::Layout { what: "lse", shape, strides });
    assert!(columns.iter().chain(&out).chain(&lse).all(|&x| x == 7.0));
}

#[test]
fn numbers_out_of_their_ranges_are_refused_and_nothing_is_written() {
    let cache = Cache::new(|x| x, 2, 5, [16, 16]);
    let source = cache.plain();
    let refuse = |sequences: &[Sequence<'_, KvArrays<'_, f32>>], dims: [usize; 3], options| {
        let queries = queries(1, dims[0], dims[1]);
        let mut out = Array3::from_elem((1, dims[0], dims[2]), 7.0);
        let result = workspace(1).attend_into(queries.view(), sequences, &options, out.view_mut());
        assert!(out.iter().all(|&x| x == 7.0));
        result.expect_err("out of range").to_string()
    };
    let plain = Options::default();
    let one = [Sequence::causal(&source, 1)];
    for (options, message) in [
        (Options { scale: Some(f32::NAN), ..plain }, "`scale` is NaN, expected finite"),
        (Options { softcap: Some(0.0), ..plain }, "`softcap` is 0, expected finite and above 0"),
        (
            Options { softcap: Some(f32::INFINITY), ..plain },
            "`softcap` is inf, expected finite and above 0",
        ),
        (Options { window: Some(0), ..plain }, "`window` is 0, expected at least 1"),
    ] {
        assert_eq!(refuse(&one, [4, 16, 16], options), message);
    }
    assert_eq!(refuse(&one, [0, 16, 16], plain), "0 heads of queries for 2 of keys and values");
    let headless = KvArrays::new([&[], &[]], 0, 5, [16, 16]).expect("nothing");
    let sequences = [Sequence::causal(&headless, 1)];
    assert_eq!(
        refuse(&sequences, [4, 16, 16], plain),
        "4 heads of queries for 0 of keys and values"
    );
    for (dims, message) in [
        ([0, 16], "`width of keys` is 0, expected at least 1"),
        ([16, 0], "`width of values` is 0, expected at least 1"),
    ] {
        let zeros = dims.map(|dim| vec![0.0; 2 * 5 * dim]);
        let narrow = KvArrays::new([&zeros[0], &zeros[1]], 2, 5, dims).expect("fits");
        let sequences = [Sequence::causal(&narrow, 1)];
        assert_eq!(refuse(&sequences, [4, dims[0], dims[1]], plain), message);
    }
    // Numbers of rows whose sum is one, but for an overflow.
    let sequences = [Sequence::causal(&source, usize::MAX), Sequence::causal(&source, 2)];
    assert_eq!(
        refuse(&sequences, [4, 16, 16], plain),
        format!("`queries` has rows of the sequences 1, expected {}", usize::MAX)
    );
}
