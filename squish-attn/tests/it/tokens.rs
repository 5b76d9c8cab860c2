//! Vision tokens against scalar definitions in f64, on every SIMD level; what is degenerate; what is refused.

use ndarray::{Array2, Array3, ArrayView2, array, s};
use squish_attn::{
    Assignment, AttnError, BitMask, Keep, KvElement, KvSource, Mask, Mixture, Options, Selection,
    Sequence, TokensWorkspace, Workspace, ndarray,
    tokens::{
        ClassToken, DpcKnn, KMeans, Merge, PruKeep, PruMerge, Start, Supplement, gather_into,
        merge_into, mix_into, widen_keys_into, widen_queries_into,
    },
};
use squish_bench::input;
use squish_kernels::{Isa, SimdLevel};

use super::attention::{Cache, Cut, numbers};

/// Tokens and widths at the edges of strips, tiles and chains.
const SHAPES: [(usize, usize); 7] =
    [(2, 1), (3, 16), (20, 24), (64, 32), (65, 17), (130, 40), (193, 8)];

fn tokens(n: usize, dim: usize) -> Array2<f32> {
    let seed = (1000 * n + dim) as u64;
    Array2::from_shape_vec((n, dim), input::normal(n * dim, seed).to_vec()).expect("a matrix")
}

fn wide(x: ArrayView2<'_, f32>) -> Array2<f64> {
    x.mapv(f64::from)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The cosine of all pairs of rows.
fn cosines(x: ArrayView2<'_, f32>) -> impl Fn(usize, usize) -> f64 {
    let x: Vec<Vec<f64>> = wide(x).outer_iter().map(|row| row.to_vec()).collect();
    move |i, j| dot(&x[i], &x[j]) / (dot(&x[i], &x[i]) * dot(&x[j], &x[j])).sqrt()
}

/// The squared distance of all pairs of rows.
fn distances(x: ArrayView2<'_, f32>) -> impl Fn(usize, usize) -> f64 {
    let x: Vec<Vec<f64>> = wide(x).outer_iter().map(|row| row.to_vec()).collect();
    move |i, j| x[i].iter().zip(&x[j]).map(|(a, b)| (a - b).powi(2)).sum()
}

/// The indices of the `k` largest, the largest first, and of equal ones the first.
fn largest(x: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&i, &j| x[j].total_cmp(&x[i]));
    order.truncate(k);
    order
}

/// The first of the largest.
fn argmax(x: impl IntoIterator<Item = f64>) -> usize {
    let x: Vec<f64> = x.into_iter().collect();
    largest(&x, 1)[0]
}

fn merged(
    x: ArrayView2<'_, f32>,
    sizes: Option<&[f32]>,
    groups: &Assignment,
    how: Merge,
) -> (Array2<f32>, Vec<f32>) {
    let mut out = Array2::from_elem((groups.n_groups(), x.ncols()), f32::NAN);
    let mut out_sizes = vec![f32::NAN; groups.n_groups()];
    merge_into(x, sizes, groups, how, out.view_mut(), &mut out_sizes).expect("fits");
    (out, out_sizes)
}

/// Groups and targets of the matching, by its definition.
fn tome_defined(x: ArrayView2<'_, f32>, r: usize, class: bool) -> (Vec<u32>, Vec<u32>) {
    let (n, cosine) = (x.nrows(), cosines(x));
    let r = r.min((n - usize::from(class)) / 2);
    if r == 0 {
        return ((0..n as u32).collect(), (0..n as u32).collect());
    }
    let (a, b): (Vec<usize>, Vec<usize>) = (0..n).partition(|i| i % 2 == 0);
    let partner: Vec<usize> = a.iter().map(|&i| argmax(b.iter().map(|&j| cosine(i, j)))).collect();
    let best = a
        .iter()
        .zip(&partner)
        .map(|(&i, &p)| if class && i == 0 { f64::NEG_INFINITY } else { cosine(i, b[p]) });
    let order = largest(&best.collect::<Vec<_>>(), a.len());
    let (merged, left) = order.split_at(r);
    let mut left = left.to_vec();
    if class {
        left.sort_unstable();
    }
    let targets: Vec<usize> = left.iter().map(|&i| a[i]).chain(b.iter().copied()).collect();
    let mut groups = vec![0; n];
    for (group, &target) in targets.iter().enumerate() {
        groups[target] = group as u32;
    }
    for &i in merged {
        groups[a[i]] = (left.len() + partner[i]) as u32;
    }
    (groups, targets.into_iter().map(|t| t as u32).collect())
}

#[test]
fn tome_is_its_definition() {
    for (n, dim) in SHAPES.into_iter().filter(|shape| shape.1 > 1) {
        let x = tokens(n, dim);
        for isa in Isa::available() {
            let (mut workspace, mut got) = (TokensWorkspace::new_with(isa), Assignment::default());
            for r in [0, 1, n / 4, n / 2, n] {
                for class in [ClassToken::Absent, ClassToken::First] {
                    workspace.tome_into(x.view(), r, class, &mut got).expect("fits");
                    let (groups, targets) = tome_defined(x.view(), r, class == ClassToken::First);
                    let want = Assignment::new(&groups, &targets).expect("groups");
                    assert_eq!(got, want, "{isa:?} {n}x{dim} {r} {class:?}");
                }
            }
        }
    }
}

#[test]
fn vision_zip_is_its_definition() {
    for (n, dim) in SHAPES.into_iter().filter(|shape| shape.1 > 1) {
        let (x, attention) = (tokens(n, dim), input::normal(n, 5));
        let (cosine, scores) = (cosines(x.view()), attention.iter().map(|&a| f64::from(a)));
        let scores: Vec<f64> = scores.collect();
        for (dominant, contextual) in
            [(0, 1), (n / 3, n / 5 + 1), (n / 3, n), (n - 1, 3), (n + 1, 0), (1, n - 1)]
        {
            let mut kept = largest(&scores, dominant);
            kept.sort_unstable();
            let rest: Vec<usize> = (0..n).filter(|i| !kept.contains(i)).collect();
            let step = rest.len().checked_div(contextual).unwrap_or(1).max(1);
            let targets: Vec<usize> = rest.iter().copied().step_by(step).take(contextual).collect();
            let all: Vec<usize> = kept.iter().chain(&targets).copied().collect();
            let groups = (0..n).map(|i| {
                all.iter()
                    .position(|&t| t == i)
                    .unwrap_or_else(|| kept.len() + argmax(targets.iter().map(|&t| cosine(i, t))))
                    as u32
            });
            let all: Vec<u32> = all.iter().map(|&t| t as u32).collect();
            let want = Assignment::new(&groups.collect::<Vec<_>>(), &all).expect("groups");
            for isa in Isa::available() {
                let mut got = Assignment::default();
                TokensWorkspace::new_with(isa)
                    .vision_zip_into(&attention, x.view(), dominant, contextual, &mut got)
                    .expect("fits");
                assert_eq!(got, want, "{isa:?} {n}x{dim} {dominant} {contextual}");
            }
        }
    }
}

/// Groups and targets of density peaks, by their definition.
fn dpc_defined(x: ArrayView2<'_, f32>, k: usize, neighbors: usize) -> (Vec<u32>, Vec<u32>) {
    let (n, square) = (x.nrows(), distances(x));
    let distance = |i, j| (square(i, j) / x.ncols() as f64).sqrt();
    let density: Vec<f64> = (0..n)
        .map(|i| {
            let mut all: Vec<f64> = (0..n).map(|j| distance(i, j).powi(2)).collect();
            all.sort_by(f64::total_cmp);
            all.truncate(neighbors);
            (-all.iter().sum::<f64>() / all.len() as f64).exp()
        })
        .collect();
    let farthest = (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| distance(i, j));
    let farthest = farthest.fold(0.0, f64::max);
    let peaks: Vec<f64> = (0..n)
        .map(|i| {
            let denser =
                (0..n).filter(|&j| density[j] > density[i] || density[j] == density[i] && j < i);
            density[i] * denser.map(|j| distance(i, j)).fold(farthest, f64::min)
        })
        .collect();
    let mut centers = largest(&peaks, k);
    centers.sort_unstable();
    let groups = (0..n).map(|i| {
        let own = centers.iter().position(|&c| c == i);
        own.unwrap_or_else(|| argmax(centers.iter().map(|&c| -distance(i, c)))) as u32
    });
    (groups.collect(), centers.iter().map(|&c| c as u32).collect())
}

#[test]
fn density_peaks_are_their_definition() {
    for (n, dim) in SHAPES {
        let x = tokens(n, dim);
        for (k, neighbors) in [(1, 5), (n / 4 + 1, 5), (n / 2, 1), (n - 1, 3), (n, 5), (2, n + 9)] {
            let (groups, targets) = dpc_defined(x.view(), k, neighbors);
            let want = Assignment::new(&groups, &targets).expect("groups");
            for isa in Isa::available() {
                let mut got = Assignment::default();
                TokensWorkspace::new_with(isa)
                    .dpc_knn_into(x.view(), k, DpcKnn { neighbors }, &mut got)
                    .expect("fits");
                assert_eq!(got, want, "{isa:?} {n}x{dim} {k} {neighbors}");
            }
        }
    }
}

/// Groups and medoids of Lloyd's method from the farthest tokens first, over the tokens themselves.
fn k_means_defined(x: ArrayView2<'_, f32>, k: usize) -> (Vec<u32>, Vec<u32>) {
    let rows: Vec<Vec<f64>> = wide(x).outer_iter().map(|row| row.to_vec()).collect();
    let mean = |members: &[usize]| -> Vec<f64> {
        let sum = |e: usize| members.iter().map(|&i| rows[i][e]).sum::<f64>();
        (0..x.ncols()).map(|e| sum(e) / members.len() as f64).collect()
    };
    let gap = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let n = rows.len();
    let all: Vec<usize> = (0..n).collect();
    let middle = mean(&all);
    let mut seeds = vec![argmax(rows.iter().map(|row| gap(row, &middle)))];
    while seeds.len() < k {
        let near =
            |i: usize| seeds.iter().map(|&s| gap(&rows[i], &rows[s])).fold(f64::MAX, f64::min);
        seeds.push(argmax((0..n).map(near)));
    }
    let mut means: Vec<Vec<f64>> = seeds.iter().map(|&s| rows[s].clone()).collect();
    let mut of: Vec<usize> = vec![usize::MAX; n];
    loop {
        let next: Vec<usize> =
            (0..n).map(|i| argmax(means.iter().map(|m| -gap(&rows[i], m)))).collect();
        let members = |c: usize| (0..n).filter(|&i| next[i] == c).collect::<Vec<_>>();
        means = (0..k).map(|c| mean(&members(c))).collect();
        if next == of {
            break;
        }
        of = next;
    }
    let mut clusters: Vec<(usize, usize)> = (0..k)
        .map(|c| {
            let members: Vec<usize> = (0..n).filter(|&i| of[i] == c).collect();
            (members[argmax(members.iter().map(|&i| -gap(&rows[i], &means[c])))], c)
        })
        .collect();
    clusters.sort_unstable();
    let group =
        |i: usize| clusters.iter().position(|&(_, c)| c == of[i]).expect("a cluster") as u32;
    ((0..n).map(group).collect(), clusters.iter().map(|&(medoid, _)| medoid as u32).collect())
}

#[test]
fn k_means_are_those_of_lloyd_over_the_tokens_themselves() {
    for (n, dim) in SHAPES.into_iter().filter(|shape| shape.0 > 3) {
        // Far from the origin, where products are large beside distances.
        let x = tokens(n, dim) + 50.0;
        for k in [1, 2, n / 4, n / 2] {
            let (groups, medoids) = k_means_defined(x.view(), k);
            let want = Assignment::new(&groups, &medoids).expect("groups");
            for isa in Isa::available() {
                let mut got = Assignment::default();
                TokensWorkspace::new_with(isa)
                    .k_means_into(x.view(), k, KMeans::default(), &mut got)
                    .expect("fits");
                assert_eq!(got, want, "{isa:?} {n}x{dim} {k}");
            }
        }
    }
}

#[test]
fn clusters_by_chance_are_a_fixed_point_and_the_same_for_a_seed() {
    let x = tokens(90, 6);
    let square = |i: usize, mean: &[f64]| {
        x.row(i).iter().zip(mean).map(|(&x, mean)| (f64::from(x) - mean).powi(2)).sum::<f64>()
    };
    let mut different = false;
    let mut first = None;
    for seed in 0..8 {
        let options = KMeans { start: Start::PlusPlus { seed }, ..KMeans::default() };
        let mut all = Isa::available().filter(|isa| isa.level() >= SimdLevel::Avx2).map(|isa| {
            let mut got = Assignment::default();
            TokensWorkspace::new_with(isa)
                .k_means_into(x.view(), 7, options, &mut got)
                .expect("fits");
            got
        });
        let Some(got) = all.next() else { return };
        assert!(all.all(|other| other == got), "levels differ for seed {seed}");
        let (means, _) = merged(x.view(), None, &got, Merge::Mean);
        let means: Vec<Vec<f64>> = wide(means.view()).outer_iter().map(|m| m.to_vec()).collect();
        for (i, &group) in got.groups().iter().enumerate() {
            let own = square(i, &means[group as usize]);
            assert!(means.iter().all(|mean| own <= square(i, mean) + 1e-5), "{seed} {i}");
        }
        different |= *first.get_or_insert_with(|| got.clone()) != got;
    }
    assert!(different, "seeds make no difference");
}

#[test]
fn the_largest_norms_remain() {
    for (n, dim) in SHAPES {
        let x = tokens(n, dim);
        let norms: Vec<f64> =
            wide(x.view()).outer_iter().map(|r| dot(&r.to_vec(), &r.to_vec())).collect();
        let mut want: Vec<u32> = largest(&norms, n / 2).into_iter().map(|i| i as u32).collect();
        want.sort_unstable();
        for isa in Isa::available() {
            let mut kept = Selection::default();
            TokensWorkspace::new_with(isa)
                .magnitude_into(x.view(), Keep::Tokens(n / 2), &mut kept)
                .expect("finite");
            assert_eq!(kept.indices(), want, "{isa:?} {n}x{dim}");
        }
    }
}

/// What each token receives by the whole matrix of weights, in f64.
fn mass_defined<E: KvElement>(
    cache: &Cache<E>,
    n_tokens: usize,
    queries: &Array3<f32>,
    sees: impl Fn(usize, usize) -> bool,
    options: &Options<'_>,
    position: impl Fn(usize) -> usize,
) -> Vec<f64> {
    let (n_rows, n_heads, dim) = queries.dim();
    let scale = options.scale.map_or(1.0 / (dim as f64).sqrt(), f64::from);
    let mut mass = vec![0.0; n_tokens];
    for row in 0..n_rows {
        for head in 0..n_heads {
            let query: Vec<f64> =
                queries.slice(s![row, head, ..]).iter().map(|&q| f64::from(q)).collect();
            let scores: Vec<f64> = (0..n_tokens)
                .map(|j| {
                    if !sees(row, j) {
                        return f64::NEG_INFINITY;
                    }
                    let key = cache.row(0, head * cache.n_heads / n_heads, j);
                    let key: Vec<f64> = key.iter().map(|k| f64::from(k.to_f32())).collect();
                    let mut score = scale * dot(&query, &key);
                    if let Some(cap) = options.softcap.map(f64::from) {
                        score = cap * (score / cap).tanh();
                    }
                    let slope = options.alibi.map_or(0.0, |slopes| f64::from(slopes[head]));
                    score + slope * (j as f64 - position(row) as f64)
                })
                .collect();
            let sink = options.sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
            let sum = scores.iter().map(|s| s.exp()).sum::<f64>() + sink;
            if sum > 0.0 {
                mass.iter_mut().zip(&scores).for_each(|(mass, s)| *mass += s.exp() / sum);
            }
        }
    }
    mass.iter().map(|mass| mass / (n_rows * n_heads).max(1) as f64).collect()
}

fn check_mass<S: KvSource>(
    source: &S,
    mask: Mask<'_>,
    queries: &Array3<f32>,
    options: &Options<'_>,
    want: &[f64],
    what: &str,
) {
    for isa in Isa::available() {
        let mut got = vec![f32::NAN; source.len()];
        let sequence = Sequence { source, n_rows: queries.dim().0, mask };
        TokensWorkspace::new_with(isa)
            .attention_mass_into(queries.view(), sequence, options, &mut got)
            .expect("fits");
        for (j, (&got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(got) - want).abs();
            assert!(error <= 2e-5 * want + 1e-30, "{isa:?} {what}, token {j}: {got} {want}");
        }
    }
}

/// Whether a row sees a token.
type Sees<'a> = dyn Fn(usize, usize) -> bool + 'a;

#[test]
fn the_mass_is_the_mean_of_all_weights() {
    for (n_tokens, n_rows) in [(1, 1), (63, 1), (64, 64), (65, 3), (200, 200), (130, 0)] {
        let cache = Cache::new(|x| 3.0 * x, 2, n_tokens, [24, 8]);
        let queries = numbers(n_rows * 6 * 24, 9).into_iter().map(|q| 3.0 * q).collect();
        let queries = Array3::from_shape_vec((n_rows, 6, 24), queries).expect("queries");
        let before = n_tokens - n_rows;
        let slopes = [0.5, 0.25, 0.1, 0.0, 0.01, 0.02];
        let sinks = [0.0, -1.0, 2.0, 1.0, f32::NEG_INFINITY, 4.0];
        let bits = BitMask::from_fn(n_rows, n_tokens, |i, j| (i * 7 + j * 3) % 5 == 0);
        let all = [
            Options::default(),
            Options { scale: Some(0.3), softcap: Some(1.5), ..Options::default() },
            Options { alibi: Some(&slopes), ..Options::default() },
            Options { sinks: Some(&sinks), window: Some(17), ..Options::default() },
        ];
        for (i, options) in all.iter().enumerate() {
            let window = options.window.unwrap_or(usize::MAX);
            let near = move |row: usize, j: usize| j.saturating_add(window) > before + row;
            let masks: [(_, Box<Sees<'_>>); 3] = [
                (Mask::Causal, Box::new(move |row, j| j <= before + row && near(row, j))),
                (Mask::Full, Box::new(near)),
                (
                    Mask::Custom(&bits),
                    Box::new(move |row, j| (row * 7 + j * 3) % 5 == 0 && near(row, j)),
                ),
            ];
            for (mask, sees) in masks {
                let want =
                    mass_defined(&cache, n_tokens, &queries, sees, options, |row| before + row);
                let what = format!("{n_tokens} tokens, {n_rows} rows, options {i}, {mask:?}");
                check_mass(&cache.plain(), mask, &queries, options, &want, &what);
                let cut = Cut::new(&cache, &[5, 16, 3], n_tokens);
                check_mass(&cut, mask, &queries, options, &want, &what);
            }
        }
    }
}

#[test]
fn the_mass_of_a_tree_and_of_narrow_keys_is_as_exact() {
    let parents = [None, Some(0), Some(0), Some(2), None];
    let sees = |row: usize, j: usize| {
        let (mut node, mut seen) = (Some(row as u32), j < 75);
        while let Some(at) = node {
            seen |= j == 75 + at as usize;
            node = parents[at as usize];
        }
        seen
    };
    let depth = |row: usize| [0, 1, 1, 2, 0][row];
    let cache = Cache::new(half::bf16::from_f32, 1, 80, [40, 16]);
    let queries = Array3::from_shape_vec((5, 2, 40), numbers(400, 3)).expect("queries");
    let options = Options::default();
    let want = mass_defined(&cache, 80, &queries, sees, &options, |row| 75 + depth(row));
    check_mass(&cache.plain(), Mask::Tree(&parents), &queries, &options, &want, "tree of bf16");
}

#[test]
fn what_is_not_finite_goes_to_the_tokens_that_the_row_sees_and_no_further() {
    for odd in [f32::NAN, f32::INFINITY] {
        let (n_tokens, mut queries) = (70, Array3::<f32>::ones((70, 1, 16)));
        queries[[9, 0, 0]] = odd;
        let keys = vec![1.0; n_tokens * 16];
        let source = squish_attn::KvArrays::new([&keys, &keys], 1, n_tokens, [16, 16]);
        let source = source.expect("fits");
        for isa in Isa::available() {
            let (mut workspace, mut mass) = (TokensWorkspace::new_with(isa), vec![0.0; n_tokens]);
            let sequence = Sequence::causal(&source, n_tokens);
            workspace
                .attention_mass_into(queries.view(), sequence, &Options::default(), &mut mass)
                .expect("fits");
            assert!(mass[..10].iter().all(|m| m.is_nan()), "{isa:?} {odd}: {mass:?}");
            assert!(mass[10..].iter().all(|m| m.is_finite()), "{isa:?} {odd}: {mass:?}");
            // Such attention is refused where tokens are selected by it.
            let refused =
                workspace.fast_v_into(&mass, 5..40, Keep::Share(0.5), &mut Selection::default());
            assert_eq!(refused, Err(AttnError::NotFinite { what: "attention", index: 5 }));
        }
    }
}

#[test]
fn the_mass_of_no_tokens_is_none() {
    let source = squish_attn::KvArrays::<f32>::new([&[], &[]], 2, 0, [16, 16]).expect("fits");
    let queries = Array3::zeros((0, 4, 16));
    let got = TokensWorkspace::new().attention_mass_into(
        queries.view(),
        Sequence { source: &source, n_rows: 0, mask: Mask::Full },
        &Options::default(),
        &mut [],
    );
    assert_eq!(got, Ok(()));
}

#[test]
fn the_mass_of_the_last_row_is_what_fast_v_reads() {
    let cache = Cache::new(|x| 4.0 * x, 1, 100, [32, 32]);
    let queries = Array3::from_shape_vec((1, 4, 32), numbers(128, 4)).expect("queries");
    let mut mass = vec![0.0; 100];
    let mut workspace = TokensWorkspace::new();
    let source = cache.plain();
    let sequence = Sequence::causal(&source, 1);
    workspace
        .attention_mass_into(queries.view(), sequence, &Options::default(), &mut mass)
        .expect("fits");
    assert!((mass.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    let mut kept = Selection::default();
    workspace.fast_v_into(&mass, 10..90, Keep::Share(0.5), &mut kept).expect("finite");
    let least = |kept: bool, all: &Selection| {
        let image = (10..90).filter(|i| all.indices().contains(i) == kept);
        image.map(|i| mass[i as usize]).collect::<Vec<_>>()
    };
    let (kept_mass, lost) = (least(true, &kept), least(false, &kept));
    assert_eq!((kept.len(), kept_mass.len()), (60, 40));
    let smallest = kept_mass.iter().copied().fold(f32::INFINITY, f32::min);
    assert!(lost.iter().all(|&m| m <= smallest));
}

#[test]
fn a_merged_token_is_attended_to_like_those_that_it_stands_for() {
    // Tokens 1, 3 and 4 are the same, and so are 0 and 5.
    let (n_heads, dim, copies) = (2, 16, [0, 1, 2, 1, 1, 0]);
    let distinct = Array3::from_shape_vec((3, n_heads, dim), numbers(96, 1)).expect("keys");
    let values = Array3::from_shape_vec((3, n_heads, dim), numbers(96, 2)).expect("values");
    let many = |x: &Array3<f32>| {
        Array3::from_shape_fn((6, n_heads, dim), |(t, h, e)| x[[copies[t], h, e]])
    };
    let queries = Array3::from_shape_vec((4, n_heads, dim), numbers(128, 3)).expect("queries");
    let by_head =
        |x: &Array3<f32>| x.view().permuted_axes([1, 0, 2]).iter().copied().collect::<Vec<f32>>();
    let attend = |q: &Array3<f32>, k: &Array3<f32>, v: &Array3<f32>| {
        let (k_by_head, v_by_head) = (by_head(k), by_head(v));
        let widths = [k.dim().2, v.dim().2];
        let source =
            squish_attn::KvArrays::new([&k_by_head, &v_by_head], n_heads, k.dim().0, widths);
        let source = source.expect("fits");
        let sequence = Sequence { source: &source, n_rows: 4, mask: Mask::Full };
        let options = Options { scale: Some(0.25), ..Options::default() };
        let mut out = Array3::zeros((4, n_heads, dim));
        let team = std::sync::Arc::new(squish_attn::Team::new(1).expect("one thread"));
        Workspace::new(team)
            .attend_into(q.view(), &[sequence], &options, out.view_mut())
            .expect("fits");
        let mut mass = vec![0.0; k.dim().0];
        TokensWorkspace::new()
            .attention_mass_into(q.view(), sequence, &options, &mut mass)
            .expect("fits");
        (out, mass)
    };
    let (want, want_mass) = attend(&queries, &many(&distinct), &many(&values));
    let (mut q, mut k) =
        (Array3::zeros((4, n_heads, dim + 1)), Array3::zeros((3, n_heads, dim + 1)));
    widen_queries_into(queries.view(), 0.25, q.view_mut()).expect("fits");
    widen_keys_into(distinct.view(), &[2.0, 3.0, 1.0], k.view_mut()).expect("fits");
    let (got, got_mass) = attend(&q, &k, &values);
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= 1e-6, "{got} {want}");
    }
    for (token, &got) in got_mass.iter().enumerate() {
        let want: f32 = (0..6).filter(|&t| copies[t] == token).map(|t| want_mass[t]).sum();
        assert!((got - want).abs() <= 1e-6, "{token}: {got} {want}");
    }
}

#[test]
fn merging_is_by_size_and_merging_again_is_merging_at_once() {
    let x = array![[1.0, 8.0], [2.0, 4.0], [5.0, 2.0], [7.0, 1.0]];
    let pairs = Assignment::new(&[0, 1, 0, 1], &[0, 3]).expect("groups");
    let (out, sizes) = merged(x.view(), None, &pairs, Merge::Mean);
    assert_eq!((&out, &sizes[..]), (&array![[3.0, 5.0], [4.5, 2.5]], &[2.0, 2.0][..]));
    let (plus, sizes_of_plus) = merged(x.view(), None, &pairs, Merge::TargetPlusMean);
    assert_eq!((plus, sizes_of_plus), (array![[6.0, 10.0], [9.0, 5.0]], vec![2.0, 2.0]));

    let one = Assignment::new(&[0, 0], &[1]).expect("groups");
    let all = Assignment::new(&[0, 0, 0, 0], &[2]).expect("groups");
    let (again, size) = merged(out.view(), Some(&sizes), &one, Merge::Mean);
    assert_eq!((again, size), merged(x.view(), None, &all, Merge::Mean));
    // By size: a token of three is worth three.
    let (by_size, size) = merged(out.view(), Some(&[3.0, 1.0]), &one, Merge::Mean);
    assert_eq!((by_size, size), (array![[3.375, 4.375]], vec![4.0]));
    // Of the others alone.
    let triple = Assignment::new(&[0, 0, 0], &[1]).expect("groups");
    let sizes = [1.0, 7.0, 3.0];
    let (plus, size) = merged(x.slice(s![..3, ..]), Some(&sizes), &triple, Merge::TargetPlusMean);
    assert_eq!((plus, size), (array![[6.0, 7.5]], vec![11.0]));
}

#[test]
fn rows_that_lie_apart_are_the_same_tokens() {
    let wide = tokens(70, 30);
    let (apart, close) = (wide.slice(s![..;2, 3..20]), wide.slice(s![..;2, 3..20]).to_owned());
    let mut workspace = TokensWorkspace::new();
    let (mut a, mut b) = (Assignment::default(), Assignment::default());
    let both = [apart, close.view()];
    for (x, out) in both.into_iter().zip([&mut a, &mut b]) {
        workspace.tome_into(x, 9, ClassToken::Absent, out).expect("rows are contiguous");
    }
    assert_eq!(a, b);
    for (x, out) in both.into_iter().zip([&mut a, &mut b]) {
        workspace.k_means_into(x, 9, KMeans::default(), out).expect("rows are contiguous");
    }
    assert_eq!(a, b);
    assert_eq!(merged(apart, None, &a, Merge::Mean), merged(close.view(), None, &a, Merge::Mean));
    let mut kept = Selection::default();
    a.targets_into(&mut kept);
    let mut out = Array2::zeros((9, 40));
    gather_into(apart, &kept, out.slice_mut(s![.., 5..22])).expect("rows are contiguous");
    for (row, &index) in out.outer_iter().zip(kept.indices()) {
        assert_eq!(row.slice(s![5..22]), close.row(index as usize));
    }
}

#[test]
fn identical_tokens_are_ties_and_the_lowest_go_first() {
    let row = numbers(48, 8);
    for n in [2, 3, 20, 70] {
        let x = Array2::from_shape_fn((n, 48), |(_, e)| row[e] * 100.0);
        let same = vec![0.25_f32; n];
        for isa in Isa::available() {
            let mut workspace = TokensWorkspace::new_with(isa);
            let mut kept = Selection::default();
            let first: Vec<u32> = (0..n as u32 / 2).collect();
            workspace.largest_into(&same, Keep::Tokens(n / 2), &mut kept).expect("finite");
            assert_eq!(kept.indices(), first);
            workspace.magnitude_into(x.view(), Keep::Tokens(n / 2), &mut kept).expect("finite");
            assert_eq!(kept.indices(), first);
            workspace.outliers_into(&same, &mut kept).expect("finite");
            assert!(kept.is_empty());

            let mut groups = Assignment::default();
            workspace.tome_into(x.view(), 1, ClassToken::Absent, &mut groups).expect("fits");
            // Token 0 goes to token 1, the first of B.
            assert_eq!(groups.groups()[..2], [groups.groups()[1]; 2]);
            assert_eq!(
                (groups.n_groups(), groups.counts()[groups.groups()[1] as usize]),
                (n - 1, 2)
            );
            let k = (n / 2).max(1);
            workspace.dpc_knn_into(x.view(), k, DpcKnn::default(), &mut groups).expect("fits");
            assert_eq!(groups.targets(), (0..k as u32).collect::<Vec<_>>());
            assert_eq!(groups.counts()[0] as usize, n - k + 1);
            for start in [Start::FarthestFirst, Start::PlusPlus { seed: 3 }] {
                let options = KMeans { start, ..KMeans::default() };
                workspace.k_means_into(x.view(), k, options, &mut groups).expect("fits");
                assert_eq!(groups.n_groups(), k);
                assert_eq!(groups.counts().iter().sum::<u32>() as usize, n);
                assert!(groups.counts().iter().all(|&count| count > 0), "{groups:?}");
                let (means, _) = merged(x.view(), None, &groups, Merge::Mean);
                for (mean, want) in means.outer_iter().flatten().zip(row.iter().cycle()) {
                    assert!((mean - want * 100.0).abs() <= 1e-6 * 100.0 * n as f32);
                }
            }
            workspace.vision_zip_into(&same, x.view(), 1, 1, &mut groups).expect("fits");
            assert_eq!(groups.targets(), [0, 1]);

            let mut sums = Mixture::default();
            let options = PruMerge {
                keep: PruKeep::Largest(Keep::Tokens(1)),
                neighbors: 1,
                ..PruMerge::default()
            };
            workspace.pru_merge_into(&same, x.view(), options, &mut sums).expect("fits");
            assert_eq!(sums.terms(0), [(0, 1.0), (1, 0.25)]);
            workspace
                .pru_merge_into(&same, x.view(), PruMerge::default(), &mut sums)
                .expect("fits");
            // No outlier: all are the rest.
            assert_eq!((sums.len(), sums.terms(0).len()), (1, n));
        }
    }
}

#[test]
fn no_token_and_one_token_are_results() {
    let mut workspace = TokensWorkspace::new();
    for n in [0, 1] {
        let x = Array2::from_elem((n, 5), 2.0);
        let scores = vec![0.5; n];
        let (mut kept, mut groups, mut sums) =
            (Selection::default(), Assignment::default(), Mixture::default());
        for keep in [Keep::Tokens(3), Keep::Share(1.0)] {
            workspace.largest_into(&scores, keep, &mut kept).expect("finite");
            assert_eq!((kept.len(), kept.n_tokens()), (n, n));
            workspace.magnitude_into(x.view(), keep, &mut kept).expect("finite");
            assert_eq!(kept.len(), n);
        }
        workspace.outliers_into(&scores, &mut kept).expect("finite");
        assert!(kept.is_empty());
        for k in n..3 {
            workspace.k_means_into(x.view(), k, KMeans::default(), &mut groups).expect("fits");
            assert_eq!(groups.n_groups(), n);
            workspace.dpc_knn_into(x.view(), k, DpcKnn::default(), &mut groups).expect("fits");
            assert_eq!(groups.n_groups(), n);
            workspace.vision_zip_into(&scores, x.view(), 0, k, &mut groups).expect("fits");
            assert_eq!(groups.n_groups(), n);
        }
        for class in [ClassToken::Absent, ClassToken::First] {
            workspace.tome_into(x.view(), 8, class, &mut groups).expect("fits");
            assert_eq!(groups.groups(), (0..n as u32).collect::<Vec<_>>());
        }
        for supplement in [Supplement::Nothing, Supplement::Spaced] {
            let options = PruMerge { supplement, ..PruMerge::default() };
            workspace.pru_merge_into(&scores, x.view(), options, &mut sums).expect("fits");
            // No outlier; of one token the rest is a sum of one.
            assert_eq!(sums.len(), n);
        }
        let mut out = Array2::from_elem((n, 5), f32::NAN);
        mix_into(x.view(), &sums, out.view_mut()).expect("fits");
        assert!(out.iter().all(|&x| x == 1.0));
        assert_eq!(merged(x.view(), None, &groups, Merge::TargetPlusMean).0, x);
    }
}

#[test]
fn to_keep_all_changes_nothing_and_to_keep_none_is_a_result_of_selections() {
    let (x, mut workspace) = (tokens(9, 4), TokensWorkspace::new());
    let scores = x.column(0).to_vec();
    let mut kept = Selection::default();
    for keep in [Keep::Tokens(9), Keep::Tokens(usize::MAX), Keep::Share(1.0)] {
        workspace.largest_into(&scores, keep, &mut kept).expect("finite");
        let mut out = Array2::zeros((9, 4));
        gather_into(x.view(), &kept, out.view_mut()).expect("fits");
        assert_eq!(out, x);
    }
    for keep in [Keep::Tokens(0), Keep::Share(0.0)] {
        workspace.largest_into(&scores, keep, &mut kept).expect("finite");
        assert_eq!((kept.len(), kept.n_tokens()), (0, 9));
        gather_into(x.view(), &kept, Array2::zeros((0, 4)).view_mut()).expect("fits");
        workspace.fast_v_into(&scores, 2..5, keep, &mut kept).expect("finite");
        assert_eq!(kept.indices(), [0, 1, 5, 6, 7, 8]);
    }
    let mut groups = Assignment::default();
    for k in [9, 10, usize::MAX] {
        workspace.k_means_into(x.view(), k, KMeans::default(), &mut groups).expect("fits");
        assert_eq!(merged(x.view(), None, &groups, Merge::Mean).0, x);
        workspace.dpc_knn_into(x.view(), k, DpcKnn::default(), &mut groups).expect("fits");
        assert_eq!(merged(x.view(), None, &groups, Merge::Mean).0, x);
        workspace.vision_zip_into(&scores, x.view(), k, 0, &mut groups).expect("fits");
        assert_eq!(merged(x.view(), None, &groups, Merge::TargetPlusMean).0, x);
    }
    // Halves are rounded up, and not to even.
    assert_eq!([1, 3, 5].map(|n| Keep::Share(0.5).of(n)), [Ok(1), Ok(2), Ok(3)]);
}

#[test]
fn keys_of_zeros_are_like_nothing() {
    let mut keys = tokens(8, 4);
    for i in [0, 3, 4] {
        keys.row_mut(i).fill(0.0);
    }
    let (mut workspace, mut groups) = (TokensWorkspace::new(), Assignment::default());
    workspace.tome_into(keys.view(), 4, ClassToken::Absent, &mut groups).expect("fits");
    // Similarities of 0 with all: the first of B.
    assert_eq!(groups.groups()[0], groups.groups()[1]);
    assert_eq!(groups.groups()[4], groups.groups()[1]);
    workspace.vision_zip_into(&[0.1; 8], keys.view(), 0, 4, &mut groups).expect("fits");
    // Targets are tokens 0, 2, 4 and 6; of others, the one of zeros goes to the first.
    assert_eq!((groups.targets(), groups.groups()[3]), (&[0, 2, 4, 6][..], 0));
    let mut kept = Selection::default();
    workspace.magnitude_into(keys.view(), Keep::Tokens(5), &mut kept).expect("finite");
    assert_eq!(kept.indices(), [1, 2, 5, 6, 7]);
    let mut sums = Mixture::default();
    let attention = [9.0, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1];
    let options = PruMerge { neighbors: 2, ..PruMerge::default() };
    workspace.pru_merge_into(&attention, keys.view(), options, &mut sums).expect("fits");
    assert_eq!(sums.terms(0), [(0, 1.0), (1, 0.1), (2, 0.2)]);
    assert_eq!((sums.len(), sums.terms(1).len()), (2, 7));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let (x, mut workspace) = (tokens(6, 4), TokensWorkspace::new());
    let scores = [0.1, 0.2, f32::NAN, 0.3, f32::INFINITY, 0.4];
    let (mut kept, mut groups, mut sums) =
        (Selection::default(), Assignment::default(), Mixture::default());
    let not_finite = |what, index| Err(AttnError::NotFinite { what, index });
    let keep = Keep::Tokens(2);
    assert_eq!(workspace.largest_into(&scores, keep, &mut kept), not_finite("scores", 2));
    assert_eq!(workspace.outliers_into(&scores, &mut kept).map(|_| ()), not_finite("scores", 2));
    assert_eq!(workspace.fast_v_into(&scores, 3..6, keep, &mut kept), not_finite("attention", 4));
    assert_eq!(workspace.fast_v_into(&scores, 5..6, keep, &mut kept), Ok(()));
    let refused = workspace.vision_zip_into(&scores, x.view(), 1, 1, &mut groups);
    assert_eq!(refused, not_finite("attention", 2));
    let refused = workspace.pru_merge_into(&scores, x.view(), PruMerge::default(), &mut sums);
    assert_eq!(refused, not_finite("attention", 2));

    // NaN, infinity, and what has no square.
    for odd in [f32::NAN, f32::NEG_INFINITY, 1e30] {
        let mut x = x.clone();
        x[[4, 1]] = odd;
        let scores = [0.1; 6];
        let refused = [
            ("tokens", workspace.magnitude_into(x.view(), keep, &mut kept)),
            ("keys", workspace.tome_into(x.view(), 2, ClassToken::Absent, &mut groups)),
            ("keys", workspace.vision_zip_into(&scores, x.view(), 1, 1, &mut groups)),
            ("keys", workspace.pru_merge_into(&scores, x.view(), PruMerge::default(), &mut sums)),
        ];
        for (what, refused) in refused {
            assert_eq!(refused, not_finite(what, 4), "{odd}");
        }
        for refused in [
            workspace.k_means_into(x.view(), 2, KMeans::default(), &mut groups),
            workspace.dpc_knn_into(x.view(), 2, DpcKnn::default(), &mut groups),
        ] {
            // Of a token that is too large, others are as far from the mean.
            assert!(matches!(refused, Err(AttnError::NotFinite { what: "tokens", .. })), "{odd}");
            assert!(odd == 1e30 || refused == not_finite("tokens", 4), "{odd}");
        }
    }

    let value = |what: &str, result: Result<(), AttnError>| {
        assert!(matches!(result, Err(AttnError::Value { what: w, .. }) if w == what), "{what}");
    };
    let scores = [0.1; 6];
    value("k", workspace.k_means_into(x.view(), 0, KMeans::default(), &mut groups));
    value("k", workspace.dpc_knn_into(x.view(), 0, DpcKnn::default(), &mut groups));
    value("neighbors", workspace.dpc_knn_into(x.view(), 2, DpcKnn { neighbors: 0 }, &mut groups));
    value("contextual", workspace.vision_zip_into(&scores, x.view(), 5, 0, &mut groups));
    for share in [-0.1, 1.1, f64::NAN] {
        value("share", workspace.largest_into(&scores, Keep::Share(share), &mut kept));
    }
    value("end of `image`", workspace.fast_v_into(&scores, 2..7, keep, &mut kept));
    let backward = std::ops::Range { start: 4, end: 2 };
    value("end of `image`", workspace.fast_v_into(&scores, backward, keep, &mut kept));
    assert_eq!((kept.indices(), kept.n_tokens()), (&[0, 1, 2, 3, 4, 5][..], 6));
    assert_eq!((&groups, &sums), (&Assignment::default(), &Mixture::default()));

    let axis = |what, axis, expected, actual| Err(AttnError::Axis { what, axis, expected, actual });
    let refused = workspace.vision_zip_into(&scores[..5], x.view(), 1, 1, &mut groups);
    assert_eq!(refused, axis("keys", "rows", 5, 6));
    let refused = workspace.pru_merge_into(&scores[..5], x.view(), PruMerge::default(), &mut sums);
    assert_eq!(refused, axis("keys", "rows", 5, 6));
    let columns = x.t();
    let refused = workspace.tome_into(columns, 1, ClassToken::Absent, &mut groups);
    assert!(matches!(refused, Err(AttnError::Layout { what: "keys", .. })), "{refused:?}");
    let refused = workspace.k_means_into(columns, 1, KMeans::default(), &mut groups);
    assert!(matches!(refused, Err(AttnError::Layout { what: "tokens", .. })), "{refused:?}");

    let two = Assignment::new(&[0, 1, 0, 1, 0, 1], &[0, 1]).expect("groups");
    let mut out = Array2::from_elem((2, 4), 7.0);
    let mut merge = |x: ArrayView2<'_, f32>, sizes: Option<&[f32]>, n_sizes: usize| {
        let mut out_sizes = [7.0; 3];
        let result =
            merge_into(x, sizes, &two, Merge::Mean, out.view_mut(), &mut out_sizes[..n_sizes]);
        assert!(out.iter().chain(&out_sizes).all(|&x| x == 7.0), "written");
        result
    };
    assert_eq!(merge(x.slice(s![..5, ..]), None, 2), axis("tokens", "rows", 6, 5));
    assert_eq!(merge(x.slice(s![.., ..3]), None, 2), axis("out", "width", 3, 4));
    let length = |what, expected, actual| Err(AttnError::Length { what, expected, actual });
    assert_eq!(merge(x.view(), None, 3), length("out_sizes", 2, 3));
    assert_eq!(merge(x.view(), Some(&[1.0; 5]), 2), length("sizes", 6, 5));
    for size in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        value("size", merge(x.view(), Some(&[1.0, 1.0, size, 1.0, 1.0, 1.0]), 2));
    }
    value(
        "scale",
        widen_queries_into(
            Array3::zeros((1, 1, 2)).view(),
            0.0,
            Array3::zeros((1, 1, 3)).view_mut(),
        ),
    );
    let refused = widen_keys_into(
        Array3::zeros((1, 1, 2)).view(),
        &[1.0],
        Array3::zeros((1, 1, 2)).view_mut(),
    );
    assert_eq!(refused, axis("out", "width", 3, 2));
}

#[test]
fn assignments_that_are_none_are_refused() {
    let position =
        |what, index, position, len| Err(AttnError::Position { what, index, position, len });
    assert_eq!(Assignment::new(&[0, 2], &[0, 1]), position("groups", 1, 2, 2));
    assert_eq!(Assignment::new(&[0, 0], &[5]), position("targets", 0, 5, 2));
    // A target in another group, and so a group that is empty.
    assert!(matches!(
        Assignment::new(&[0, 0], &[0, 1]),
        Err(AttnError::Value { what: "target", .. })
    ));
    assert_eq!(Assignment::new(&[], &[]), Ok(Assignment::default()));
}

#[test]
fn masses_of_what_does_not_fit_are_refused() {
    let cache = Cache::new(|x| x, 2, 5, [8, 8]);
    let source = cache.plain();
    let mut workspace = TokensWorkspace::new();
    let mut mass = |heads: usize, width: usize, n_rows: usize, n: usize, window: Option<usize>| {
        let queries = Array3::zeros((2, heads, width));
        let sequence = Sequence { source: &source, n_rows, mask: Mask::Causal };
        let options = Options { window, ..Options::default() };
        let mut mass = vec![7.0; n];
        let result = workspace.attention_mass_into(queries.view(), sequence, &options, &mut mass);
        assert_eq!(mass.iter().all(|&m| m == 7.0), result.is_err());
        result
    };
    assert_eq!(mass(4, 8, 2, 5, None), Ok(()));
    assert_eq!(mass(3, 8, 2, 5, None), Err(AttnError::Heads { n_heads: 3, kv_heads: 2 }));
    assert!(matches!(mass(4, 7, 2, 5, None), Err(AttnError::Axis { what: "queries", .. })));
    assert!(matches!(mass(4, 8, 3, 5, None), Err(AttnError::Axis { what: "queries", .. })));
    assert!(matches!(mass(4, 8, 2, 6, None), Err(AttnError::Length { what: "mass", .. })));
    assert!(matches!(mass(4, 8, 2, 5, Some(0)), Err(AttnError::Value { what: "window", .. })));
}
