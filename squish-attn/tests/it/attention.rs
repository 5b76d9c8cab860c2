//! Attention against its definition in f64, and the promise that a row has the same bits in every company.

use std::sync::Arc;

use half::{bf16, f16};
use ndarray::{Array3, ArrayView3, Axis, s};
use proptest::prelude::*;
use squish_attn::{
    AttnError, BitMask, KvArrays, KvElement, KvSource, Mask, Options, Rows, Run, Sequence, Team,
    Workspace, merge_in_place,
};

/// Numbers between -1 and 1, the same each time.
pub(crate) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// Keys and values `[heads, tokens, width]`.
pub(crate) struct Cache<E> {
    pub(crate) keys: Vec<E>,
    pub(crate) values: Vec<E>,
    pub(crate) n_heads: usize,
    pub(crate) n_tokens: usize,
    pub(crate) dims: [usize; 2],
}

impl<E: KvElement> Cache<E> {
    pub(crate) fn new(
        encode: impl Fn(f32) -> E,
        n_heads: usize,
        n_tokens: usize,
        dims: [usize; 2],
    ) -> Self {
        let all =
            |dim, seed| numbers(n_heads * n_tokens * dim, seed).into_iter().map(&encode).collect();
        Self { keys: all(dims[0], 1), values: all(dims[1], 2), n_heads, n_tokens, dims }
    }

    pub(crate) fn plain(&self) -> KvArrays<'_, E> {
        KvArrays::new([&self.keys, &self.values], self.n_heads, self.n_tokens, self.dims)
            .expect("fits")
    }

    /// The first tokens alone.
    pub(crate) fn first(&self, n_tokens: usize) -> Cut<E> {
        Cut::new(self, &[n_tokens], n_tokens)
    }

    pub(crate) fn row(&self, kind: usize, head: usize, token: usize) -> &[E] {
        let (data, dim) = ([&self.keys, &self.values][kind], self.dims[kind]);
        &data[(head * self.n_tokens + token) * dim..][..dim]
    }
}

/// Tokens in runs of given lengths, each stored somewhere else, with room between rows.
pub(crate) struct Cut<E> {
    runs: Vec<Run>,
    /// Of each run, `[heads, tokens, stride]`.
    data: Vec<[Vec<E>; 2]>,
    n_heads: usize,
    dims: [usize; 2],
}

impl<E: KvElement> Cut<E> {
    pub(crate) fn new(cache: &Cache<E>, lengths: &[usize], n_tokens: usize) -> Self {
        let (mut runs, mut data, mut start) = (Vec::new(), Vec::new(), 0);
        for len in lengths.iter().copied().cycle() {
            let len = len.min(n_tokens - start);
            if len == 0 {
                break;
            }
            data.push([0, 1].map(|kind| {
                let mut rows = Vec::new();
                for (head, token) in
                    (0..cache.n_heads).flat_map(|head| (start..start + len).map(move |t| (head, t)))
                {
                    rows.extend_from_slice(cache.row(kind, head, token));
                    rows.extend([E::default(); 3]);
                }
                rows
            }));
            runs.push(Run { start, len, position: start });
            start += len;
        }
        Self { runs, data, n_heads: cache.n_heads, dims: cache.dims }
    }

    fn rows(&self, kind: usize, head: usize, run: usize) -> Rows<'_, E> {
        let stride = self.dims[kind] + 3;
        let n = self.runs[run].len * stride;
        Rows { data: &self.data[run][kind][head * n..(head + 1) * n], stride, scales: None }
    }
}

impl<E: KvElement> KvSource for Cut<E> {
    type Element = E;

    fn n_heads(&self) -> usize {
        self.n_heads
    }

    fn key_dim(&self) -> usize {
        self.dims[0]
    }

    fn value_dim(&self) -> usize {
        self.dims[1]
    }

    fn len(&self) -> usize {
        self.runs.last().map_or(0, |run| run.start + run.len)
    }

    fn n_runs(&self) -> usize {
        self.runs.len()
    }

    fn run(&self, run: usize) -> Run {
        self.runs[run]
    }

    fn run_of(&self, index: usize) -> usize {
        self.runs.partition_point(|run| run.start + run.len <= index)
    }

    fn keys(&self, head: usize, run: usize) -> Rows<'_, E> {
        self.rows(0, head, run)
    }

    fn values(&self, head: usize, run: usize) -> Rows<'_, E> {
        self.rows(1, head, run)
    }
}

pub(crate) fn queries(n_rows: usize, n_heads: usize, dim: usize) -> Array3<f32> {
    Array3::from_shape_vec((n_rows, n_heads, dim), numbers(n_rows * n_heads * dim, 3))
        .expect("fits")
}

pub(crate) fn workspace(n_threads: usize) -> Workspace {
    Workspace::new(Arc::new(Team::new(n_threads).expect("fits")))
}

pub(crate) fn attend<S: KvSource>(
    workspace: &mut Workspace,
    queries: ArrayView3<'_, f32>,
    sequences: &[Sequence<'_, S>],
    options: &Options<'_>,
) -> Array3<f32> {
    let (n_rows, n_heads, _) = queries.dim();
    let value_dim = sequences[0].source.value_dim();
    let mut out = Array3::from_elem((n_rows, n_heads, value_dim), f32::NAN);
    workspace.attend_into(queries, sequences, options, out.view_mut()).expect("fits");
    out
}

pub(crate) fn bits<'a>(x: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    x.into_iter().map(|x| x.to_bits()).collect()
}

/// The definition in f64 for one row and head: the result and the logarithm of the sum.
fn exact<E: KvElement>(
    cache: &Cache<E>,
    query: &[f32],
    head: usize,
    group: usize,
    position: usize,
    tokens: impl Iterator<Item = usize>,
    options: &Options<'_>,
) -> (Vec<f64>, f64) {
    let scale = options.scale.map_or_else(|| 1.0 / (query.len() as f64).sqrt(), f64::from);
    let mut terms: Vec<(f64, Vec<f64>)> = tokens
        .map(|token| {
            let keys = cache.row(0, head / group, token);
            let dot: f64 =
                query.iter().zip(keys).map(|(q, k)| f64::from(*q) * f64::from(k.to_f32())).sum();
            let mut score = scale * dot;
            if let Some(cap) = options.softcap.map(f64::from) {
                score = cap * (score / cap).tanh();
            }
            if let Some(slopes) = options.alibi {
                score += f64::from(slopes[head]) * (token as f64 - position as f64);
            }
            let values = cache.row(1, head / group, token);
            (score, values.iter().map(|v| f64::from(v.to_f32())).collect())
        })
        .collect();
    if let Some(sinks) = options.sinks {
        terms.push((f64::from(sinks[head]), vec![0.0; cache.dims[1]]));
    }
    let most = terms.iter().map(|term| term.0).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = terms.iter().map(|term| (term.0 - most).exp()).sum();
    let mut out = vec![0.0; cache.dims[1]];
    for (score, values) in terms {
        for (out, value) in out.iter_mut().zip(values) {
            *out += (score - most).exp() / sum * value;
        }
    }
    (out, most + sum.ln())
}

/// All rows are within 2e-6 of the definition, values being at most 1.
fn assert_exact<E: KvElement>(
    cache: &Cache<E>,
    n_rows: usize,
    group: usize,
    mask: Mask<'_>,
    visible: impl Fn(usize) -> Vec<usize>,
    options: &Options<'_>,
) {
    let n_heads = cache.n_heads * group;
    let queries = queries(n_rows, n_heads, cache.dims[0]);
    let source = cache.plain();
    let sequences = [Sequence { source: &source, n_rows, mask }];
    let mut out = Array3::zeros((n_rows, n_heads, cache.dims[1]));
    let mut lse = ndarray::Array2::zeros((n_rows, n_heads));
    workspace(1)
        .attend_with_lse_into(queries.view(), &sequences, options, out.view_mut(), lse.view_mut())
        .expect("fits");
    for (row, head) in (0..n_rows).flat_map(|row| (0..n_heads).map(move |head| (row, head))) {
        let tokens = visible(row).into_iter();
        let query = queries.slice(s![row, head, ..]).to_vec();
        let position = cache.n_tokens - n_rows + row;
        let (want, want_lse) = exact(cache, &query, head, group, position, tokens, options);
        for (got, want) in out.slice(s![row, head, ..]).iter().zip(&want) {
            assert!(
                (f64::from(*got) - want).abs() <= 2e-6,
                "row {row} head {head}: {got} is not {want}"
            );
        }
        let got = f64::from(lse[[row, head]]);
        assert!(
            (got - want_lse).abs() <= 1e-5 * want_lse.abs().max(1.0),
            "{got} is not {want_lse}"
        );
    }
}

fn causal(n_tokens: usize, n_rows: usize, window: usize) -> impl Fn(usize) -> Vec<usize> {
    move |row| {
        let end = n_tokens - n_rows + row + 1;
        (end.saturating_sub(window)..end).collect()
    }
}

#[test]
fn results_are_those_of_the_definition() {
    let slopes = [0.5, 0.25, 0.125, 0.0625, 0.03, 0.02];
    let sinks = [0.5, -1.0, 3.0, 0.0, -2.0, 1.0];
    let plain = Options::default();
    for options in [
        plain,
        Options { scale: Some(0.7), ..plain },
        Options { softcap: Some(1.5), ..plain },
        Options { sinks: Some(&sinks), ..plain },
        Options { alibi: Some(&slopes), ..plain },
    ] {
        let cache = Cache::new(|x| x, 2, 150, [32, 32]);
        assert_exact(&cache, 5, 3, Mask::Causal, causal(150, 5, 150), &options);
        let windowed = Options { window: Some(70), ..options };
        assert_exact(&cache, 90, 3, Mask::Causal, causal(150, 90, 70), &windowed);
        assert_exact(&cache, 2, 3, Mask::Full, |_| (0..150).collect(), &options);
    }
    for dims in [[64, 64], [80, 80], [96, 128], [128, 96], [256, 256], [4, 20]] {
        let cache = Cache::new(|x| x, 1, 70, dims);
        assert_exact(&cache, 3, 2, Mask::Causal, causal(70, 3, 70), &plain);
    }
    let (halves, bfloats) =
        (Cache::new(f16::from_f32, 2, 99, [64, 64]), Cache::new(bf16::from_f32, 2, 99, [64, 64]));
    assert_exact(&halves, 1, 4, Mask::Causal, causal(99, 1, 99), &plain);
    assert_exact(&bfloats, 1, 4, Mask::Causal, causal(99, 1, 99), &plain);
    // More than one split.
    let long = Cache::new(|x| x, 1, 2500, [32, 32]);
    assert_exact(&long, 2, 2, Mask::Causal, causal(2500, 2, 2500), &plain);
}

#[test]
fn a_custom_mask_lets_through_its_bits() {
    let cache = Cache::new(|x| x, 2, 200, [32, 32]);
    let is_visible =
        |row: usize, token: usize| !(row * 7 + token * token).is_multiple_of(3) && token != row;
    let mask = BitMask::from_fn(4, 200, is_visible);
    let visible = |row| (0..200).filter(|&token| is_visible(row, token)).collect();
    assert_exact(&cache, 4, 2, Mask::Custom(&mask), visible, &Options::default());
}

#[test]
fn a_row_that_sees_nothing_is_zero_and_has_no_weight() {
    let cache = Cache::new(|x| x, 1, 8, [16, 16]);
    let mask = BitMask::from_fn(2, 8, |row, _| row == 1);
    let source = cache.plain();
    let sequences = [Sequence { source: &source, n_rows: 2, mask: Mask::Custom(&mask) }];
    let queries = queries(2, 1, 16);
    let mut out = Array3::from_elem((2, 1, 16), f32::NAN);
    let mut lse = ndarray::Array2::zeros((2, 1));
    let options = Options::default();
    workspace(1)
        .attend_with_lse_into(queries.view(), &sequences, &options, out.view_mut(), lse.view_mut())
        .expect("fits");
    assert!(out.slice(s![0, .., ..]).iter().all(|&x| x == 0.0));
    assert_eq!(lse[[0, 0]], f32::NEG_INFINITY);
    assert!(out.slice(s![1, .., ..]).iter().all(|x| x.is_finite() && *x != 0.0));
    // With a sink all weight is its own.
    let options = Options { sinks: Some(&[0.25]), ..options };
    workspace(1)
        .attend_with_lse_into(queries.view(), &sequences, &options, out.view_mut(), lse.view_mut())
        .expect("fits");
    assert!(out.slice(s![0, .., ..]).iter().all(|&x| x == 0.0));
    assert_eq!(lse[[0, 0]], 0.25);
}

/// The rows of a prefill, and of the same tokens one by one: alone, cut into runs, on threads, and in a batch.
pub(crate) fn assert_same_bits<E: KvElement>(
    cache: &Cache<E>,
    n_rows: usize,
    group: usize,
    options: &Options<'_>,
) {
    let n_tokens = cache.n_tokens;
    let queries = queries(n_rows, cache.n_heads * group, cache.dims[0]);
    let source = cache.plain();
    let whole = [Sequence::causal(&source, n_rows)];
    let want = attend(&mut workspace(1), queries.view(), &whole, options);
    for n_threads in 2..=4 {
        let got = attend(&mut workspace(n_threads), queries.view(), &whole, options);
        assert_eq!(bits(&got), bits(&want), "{n_threads} threads");
    }
    for lengths in [&[1][..], &[16], &[32], &[64], &[3, 100, 1, 63], &[n_tokens / 2 + 1, n_tokens]]
    {
        let cut = Cut::new(cache, lengths, n_tokens);
        let sequences = [Sequence::causal(&cut, n_rows)];
        let got = attend(&mut workspace(2), queries.view(), &sequences, options);
        assert_eq!(bits(&got), bits(&want), "runs of {lengths:?}");
    }
    // Decoded one by one, and then all of these steps as a batch.
    let steps: Vec<Cut<E>> =
        (0..n_rows).map(|row| cache.first(n_tokens - n_rows + row + 1)).collect();
    for (row, step) in steps.iter().enumerate() {
        let own = queries.slice(s![row..=row, .., ..]);
        let got = attend(&mut workspace(1), own, &[Sequence::causal(step, 1)], options);
        assert_eq!(bits(&got), bits(want.index_axis(Axis(0), row)), "step {row}");
    }
    let batch: Vec<_> = steps.iter().map(|step| Sequence::causal(step, 1)).collect();
    let got = attend(&mut workspace(3), queries.view(), &batch, options);
    assert_eq!(bits(&got), bits(&want), "a batch");
    // In chunks.
    let at = n_rows / 3;
    let first = cache.first(n_tokens - n_rows + at);
    if at > 0 {
        let got = attend(
            &mut workspace(1),
            queries.slice(s![..at, .., ..]),
            &[Sequence::causal(&first, at)],
            options,
        );
        assert_eq!(bits(&got), bits(want.slice(s![..at, .., ..])), "the first chunk");
    }
    let rest = [Sequence::causal(&source, n_rows - at)];
    let got = attend(&mut workspace(1), queries.slice(s![at.., .., ..]), &rest, options);
    assert_eq!(bits(&got), bits(want.slice(s![at.., .., ..])), "the second chunk");
    // As a tree of a single branch, and as bits.
    let parents: Vec<Option<u32>> = (0..n_rows as u32).map(|node| node.checked_sub(1)).collect();
    let tree = [Sequence { mask: Mask::Tree(&parents), ..whole[0] }];
    let got = attend(&mut workspace(2), queries.view(), &tree, options);
    assert_eq!(bits(&got), bits(&want), "a tree");
    let mask = BitMask::from_fn(n_rows, n_tokens, |row, token| token <= n_tokens - n_rows + row);
    let custom = [Sequence { mask: Mask::Custom(&mask), ..whole[0] }];
    let got = attend(&mut workspace(2), queries.view(), &custom, options);
    assert_eq!(bits(&got), bits(&want), "a custom mask");
}

#[test]
fn a_row_has_the_same_bits_in_every_company() {
    let slopes: Vec<f32> = (0..14).map(|head| 0.02 * head as f32).collect();
    let plain = Options::default();
    let options = [
        plain,
        Options { window: Some(70), ..plain },
        Options { softcap: Some(2.0), sinks: Some(&slopes), alibi: Some(&slopes), ..plain },
    ];
    for (dim, group) in [(32, 7), (64, 1), (80, 3), (96, 2), (128, 4), (256, 5)] {
        let cache = Cache::new(|x| x, 2, 131, [dim, dim]);
        for options in &options {
            let n = 2 * group;
            let options = Options {
                sinks: options.sinks.map(|sinks| &sinks[..n]),
                alibi: options.alibi.map(|alibi| &alibi[..n]),
                ..*options
            };
            assert_same_bits(&cache, 19, group, &options);
        }
    }
    assert_same_bits(&Cache::new(bf16::from_f32, 1, 140, [64, 64]), 70, 2, &plain);
    assert_same_bits(&Cache::new(|x| (x * 127.0) as i8, 2, 100, [64, 48]), 5, 4, &plain);
    // Over the ends of splits.
    assert_same_bits(&Cache::new(|x| x, 1, 2060, [32, 32]), 20, 2, &plain);
}

#[test]
fn a_node_of_a_tree_is_its_branch_decoded_alone() {
    let cache = Cache::new(|x| x, 2, 140, [64, 64]);
    let parents =
        [None, Some(0), Some(0), Some(1), None, Some(4), Some(2), Some(3), Some(3), Some(5)];
    let (n_rows, n_before) = (parents.len(), 130);
    let queries = queries(n_rows, 4, 64);
    let slopes = [0.1, 0.2, 0.3, 0.4];
    for window in [None, Some(3), Some(66)] {
        let options = Options { window, alibi: Some(&slopes), ..Options::default() };
        let source = cache.plain();
        let tree = [Sequence { source: &source, n_rows, mask: Mask::Tree(&parents) }];
        let want = attend(&mut workspace(2), queries.view(), &tree, &options);
        for row in 0..n_rows {
            let mut branch = vec![row];
            while let Some(parent) = parents[branch[branch.len() - 1]] {
                branch.push(parent as usize);
            }
            let tokens = (0..n_before).chain(branch.iter().rev().map(|node| n_before + node));
            let tokens: Vec<usize> = tokens.collect();
            let mut alone = Cache {
                keys: Vec::new(),
                values: Vec::new(),
                n_tokens: tokens.len(),
                ..Cache::new(|x| x, 2, 0, [64, 64])
            };
            for (head, &token) in
                (0..2).flat_map(|head| tokens.iter().map(move |token| (head, token)))
            {
                alone.keys.extend_from_slice(cache.row(0, head, token));
                alone.values.extend_from_slice(cache.row(1, head, token));
            }
            let source = alone.plain();
            let own = queries.slice(s![row..=row, .., ..]);
            let got = attend(&mut workspace(1), own, &[Sequence::causal(&source, 1)], &options);
            assert_eq!(
                bits(&got),
                bits(want.index_axis(Axis(0), row)),
                "node {row}, window {window:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn runs_cut_anywhere_give_the_same_bits(
        lengths in prop::collection::vec(1usize..90, 1..6),
        n_tokens in 1usize..300,
        rows in 1usize..40,
        window in prop::option::of(1usize..120),
    ) {
        let cache = Cache::new(|x| x, 1, n_tokens, [16, 32]);
        let n_rows = rows.min(n_tokens);
        let queries = queries(n_rows, 2, 16);
        let options = Options { window, ..Options::default() };
        let (source, cut) = (cache.plain(), Cut::new(&cache, &lengths, n_tokens));
        let want = attend(&mut workspace(1), queries.view(), &[Sequence::causal(&source, n_rows)], &options);
        let got = attend(&mut workspace(1), queries.view(), &[Sequence::causal(&cut, n_rows)], &options);
        prop_assert_eq!(bits(&got), bits(&want));
    }

    #[test]
    fn results_lie_between_the_values_that_are_seen(n_tokens in 1usize..100, seed in 0u64..1000) {
        let mut cache = Cache::new(|x| x, 1, n_tokens, [16, 16]);
        cache.values = numbers(n_tokens * 16, seed);
        let source = cache.plain();
        let queries = queries(1, 1, 16);
        let out = attend(&mut workspace(1), queries.view(), &[Sequence::causal(&source, 1)], &Options::default());
        for (column, &got) in out.iter().enumerate() {
            let of_column = (0..n_tokens).map(|token| cache.row(1, 0, token)[column]);
            let (least, most) = of_column.fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
            prop_assert!(got >= least - 1e-6 && got <= most + 1e-6);
        }
    }
}

/// The example that the definitions were checked with: two query heads share a head of keys of five tokens.
#[test]
fn the_small_example_comes_out() {
    let r#gen = |a: i32, b: i32, n: usize| -> Vec<f32> {
        (0..n as i32).map(|i| (((a * i + b) % 64) - 32) as f32 / 32.0).collect()
    };
    let twice = |x: Vec<f32>| -> Vec<f32> { x.into_iter().map(|x| 2.0 * x).collect() };
    let q = Array3::from_shape_vec((1, 2, 4), twice(r#gen(37, 11, 8))).expect("fits");
    let (k, v) = (twice(r#gen(23, 3, 20)), r#gen(19, 9, 20));
    let source = KvArrays::new([&k, &v], 1, 5, [4, 4]).expect("fits");
    let plain = Options { scale: Some(0.5), ..Options::default() };
    let check = |options: Options<'_>, want: [f64; 8], want_lse: Option<[f64; 2]>| {
        let mut out = Array3::zeros((1, 2, 4));
        let mut lse = ndarray::Array2::zeros((1, 2));
        let sequences = [Sequence::causal(&source, 1)];
        workspace(1)
            .attend_with_lse_into(q.view(), &sequences, &options, out.view_mut(), lse.view_mut())
            .expect("fits");
        for (got, want) in out.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{options:?}: {got} is not {want}");
        }
        for (got, want) in lse.iter().zip(want_lse.into_iter().flatten()) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{options:?}: {got} is not {want}");
        }
    };
    check(
        plain,
        [
            0.0249239709856,
            -0.336073966577,
            0.249473505376,
            -0.193826029014,
            -0.137419433711,
            0.205393227528,
            -0.260116189505,
            -0.356169433711,
        ],
        Some([2.13317880439, 2.63167092979]),
    );
    check(
        Options { sinks: Some(&[0.5, -1.0]), ..plain },
        [
            0.0208515097212,
            -0.281161039113,
            0.208710691629,
            -0.162155754818,
            -0.133875493074,
            0.200096295458,
            -0.25340799468,
            -0.3469841002,
        ],
        None,
    );
    check(
        Options { softcap: Some(1.5), ..plain },
        [
            0.0391991734127,
            -0.329332900061,
            0.200036586075,
            -0.179550826587,
            -0.113326048726,
            0.0796263626679,
            -0.150409388419,
            -0.332076048726,
        ],
        None,
    );
    check(
        Options { window: Some(3), ..plain },
        [
            0.473520727777,
            -0.915693031337,
            -0.338979272223,
            0.254770727777,
            0.160934873936,
            0.371631965811,
            -0.651565126064,
            -0.0578151260638,
        ],
        None,
    );
}

#[test]
fn what_does_not_fit_is_an_error_and_nothing_is_written() {
    let cache = Cache::new(|x| x, 2, 5, [16, 16]);
    let source = cache.plain();
    let refuse = |n_rows: usize,
                  n_heads: usize,
                  dims: [usize; 2],
                  sequences: &[Sequence<'_, KvArrays<'_, f32>>],
                  options: &Options<'_>| {
        let queries = queries(n_rows, n_heads, dims[0]);
        let mut out = Array3::from_elem((n_rows, n_heads, dims[1]), 7.0);
        let result = workspace(1).attend_into(queries.view(), sequences, options, out.view_mut());
        assert!(out.iter().all(|&x| x == 7.0));
        result.expect_err("does not fit")
    };
    let plain = Options::default();
    let causal = |n_rows| [Sequence::causal(&source, n_rows)];
    let error = refuse(1, 3, [16, 16], &causal(1), &plain);
    assert!(matches!(error, AttnError::Heads { n_heads: 3, kv_heads: 2 }), "{error}");
    let error = refuse(1, 4, [16, 8], &causal(1), &plain);
    assert!(
        matches!(error, AttnError::Axis { axis: "width", expected: 16, actual: 8, .. }),
        "{error}"
    );
    let error = refuse(6, 4, [16, 16], &causal(6), &plain);
    assert!(matches!(error, AttnError::Rows { n_rows: 6, n_tokens: 5 }), "{error}");
    let error = refuse(2, 4, [16, 16], &causal(1), &plain);
    assert!(
        matches!(error, AttnError::Axis { what: "queries", expected: 1, actual: 2, .. }),
        "{error}"
    );
    let error = refuse(1, 4, [16, 16], &causal(1), &Options { sinks: Some(&[0.0]), ..plain });
    assert!(matches!(error, AttnError::Length { what: "sinks", .. }), "{error}");
    let parents = [None, Some(1)];
    let tree = [Sequence { source: &source, n_rows: 2, mask: Mask::Tree(&parents) }];
    let error = refuse(2, 4, [16, 16], &tree, &plain);
    assert!(matches!(error, AttnError::Parent { node: 1, parent: 1 }), "{error}");
    let mask = BitMask::from_fn(2, 4, |_, _| true);
    let custom = [Sequence { source: &source, n_rows: 2, mask: Mask::Custom(&mask) }];
    let error = refuse(2, 4, [16, 16], &custom, &plain);
    assert!(matches!(error, AttnError::Mask { .. }), "{error}");
}

#[test]
fn what_is_not_finite_goes_on_to_the_result() {
    let mut cache = Cache::new(|x| x, 1, 70, [16, 16]);
    cache.keys[3 * 16] = f32::NAN;
    cache.values[69 * 16 + 5] = f32::INFINITY;
    let source = cache.plain();
    let out = attend(
        &mut workspace(1),
        queries(1, 1, 16).view(),
        &[Sequence::causal(&source, 1)],
        &Options::default(),
    );
    assert!(out.iter().all(|x| x.is_nan()));
    // The token with the NaN has left the window.
    let options = Options { window: Some(60), ..Options::default() };
    let out = attend(
        &mut workspace(1),
        queries(1, 1, 16).view(),
        &[Sequence::causal(&source, 1)],
        &options,
    );
    assert!(out.iter().enumerate().all(|(i, x)| x.is_infinite() == (i == 5)));
}

#[test]
fn results_over_two_parts_merge_to_that_over_all_tokens() {
    let cache = Cache::new(|x| x, 2, 150, [32, 16]);
    let (source, queries) = (cache.plain(), queries(3, 4, 32));
    let part = |tokens: std::ops::Range<usize>| {
        let mask = BitMask::from_fn(3, 150, |row, token| row < 2 && tokens.contains(&token));
        let sequences = [Sequence { source: &source, n_rows: 3, mask: Mask::Custom(&mask) }];
        let mut out = Array3::zeros((3, 4, 16));
        let mut lse = ndarray::Array2::zeros((3, 4));
        let options = Options::default();
        workspace(1)
            .attend_with_lse_into(
                queries.view(),
                &sequences,
                &options,
                out.view_mut(),
                lse.view_mut(),
            )
            .expect("fits");
        (out, lse)
    };
    let (want, want_lse) = part(0..150);
    for at in [1, 64, 149] {
        for (first, second) in [(0..at, at..150), (at..150, 0..at)] {
            let (mut out, mut lse) = part(first);
            let (other, other_lse) = part(second);
            merge_in_place(out.view_mut(), lse.view_mut(), other.view(), other_lse.view())
                .expect("fits");
            let close = |a: &f32, b: &f32| (a - b).abs() <= 2e-6 || a == b;
            assert!(out.iter().zip(&want).all(|(a, b)| close(a, b)));
            assert!(lse.iter().zip(&want_lse).all(|(a, b)| close(a, b)));
        }
    }
    // Nothing is neutral on both sides.
    let (nothing, nothing_lse) = part(0..0);
    let (mut out, mut lse) = part(0..150);
    merge_in_place(out.view_mut(), lse.view_mut(), nothing.view(), nothing_lse.view())
        .expect("fits");
    assert_eq!((bits(&out), bits(&lse)), (bits(&want), bits(&want_lse)));
    let (mut out, mut lse) = (nothing, nothing_lse);
    merge_in_place(out.view_mut(), lse.view_mut(), want.view(), want_lse.view()).expect("fits");
    assert_eq!((bits(&out), bits(&lse)), (bits(&want), bits(&want_lse)));
    let error =
        merge_in_place(out.view_mut(), lse.view_mut(), want.view(), want_lse.slice(s![..2, ..]));
    assert!(matches!(
        error,
        Err(AttnError::Axis { what: "other_lse", expected: 3, actual: 2, .. })
    ));
}
