//! Vision tokens: the seed's two selections, and the published methods at the 576 tokens of 1024 numbers of a picture of 336 pixels.

use squish_attn::{
    Assignment, Keep, KvArrays, Mask, Mixture, Options, Selection, Sequence, TokensWorkspace,
    ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayView3, Axis},
    tokens::{ClassToken, DpcKnn, KMeans, Merge, PruKeep, PruMerge, gather_into, merge_into},
};
use squish_bench::{
    Aligned, Checked, Limit, Residency, Row, Suite, Target, Unchecked, Work, black_box, input,
};

const N_TOKENS: usize = 576;
const DIM: usize = 1024;
/// Clusters, and new tokens of the other methods: a tenth.
const K: usize = 58;
const MERGED: usize = 256;
const N_HEADS: usize = 16;
const HEAD_DIM: usize = 64;

/// Multiply-adds of `pairs` products of `dim` numbers.
const fn products(pairs: usize, dim: usize) -> u64 {
    (2 * pairs * dim) as u64
}

const fn of_limit(share: f64) -> Target {
    Target::AtLeastShareOfLimit { share }
}

static ATTENTION: Row = Row {
    id: "vision/attention",
    module: "TokensWorkspace",
    operation: "largest_into(), gather_into()",
    shape: "50x768_25",
    work: Work::bytes(4 * (50 + 25 * 768), 4 * 25 * 768),
    limit: Limit::Copy(Residency::L2),
    // 3 µs.
    targets: &[of_limit(0.44)],
    release_profile: true,
    ..Row::SEED
};
static CLUSTERING: Row = Row {
    id: "vision/clustering",
    operation: "k_means_into() to convergence, gather_into() of the medoids",
    shape: "20x768_10",
    work: Work::bytes(4 * 20 * 768, 4 * 10 * 768).with_flops(products(20 * 20 / 2, 768)),
    limit: Limit::Fma,
    // 20 µs.
    targets: &[of_limit(0.13)],
    note: "the limit is that of the products, each pair once",
    ..ATTENTION
};
static MAGNITUDE: Row = Row {
    id: "vision/magnitude",
    operation: "magnitude_into(), gather_into()",
    work: Work::bytes(4 * (50 * 768 + 25 * 768), 4 * 25 * 768),
    targets: &[],
    table: Row::LLM.table,
    release_profile: false,
    ..ATTENTION
};
static K_MEANS: Row = Row {
    id: "vision/k_means",
    operation: "k_means_into() to convergence",
    shape: "576x1024_58",
    work: Work::bytes((4 * N_TOKENS * DIM) as u64, 0)
        .with_flops(products(N_TOKENS * N_TOKENS / 2, DIM)),
    limit: Limit::Fma,
    // 10 ms.
    targets: &[of_limit(0.29)],
    note: "the limit is that of the products, each pair once",
    ..MAGNITUDE
};
static DPC_KNN: Row =
    Row { id: "vision/dpc_knn", operation: "dpc_knn_into()", targets: &[], ..K_MEANS };
static TOME: Row = Row {
    id: "vision/tome",
    operation: "tome_into(), merge_into()",
    shape: "576x1024_r256",
    work: Work::bytes((4 * N_TOKENS * DIM) as u64, (4 * (N_TOKENS - MERGED) * DIM) as u64)
        .with_flops(products(N_TOKENS / 2 * N_TOKENS / 2, DIM)),
    // 3 ms, and what torch needs.
    targets: &[of_limit(0.48), Target::AtLeastTimesPeer { peer: "torch", times: 1.5 }],
    note: "the limit is that of the products",
    ..K_MEANS
};
static VISION_ZIP: Row = Row {
    id: "vision/vision_zip",
    operation: "vision_zip_into(), merge_into()",
    shape: "576x1024_48_10",
    work: Work::bytes((4 * N_TOKENS * DIM) as u64, (4 * K * DIM) as u64)
        .with_flops(products((N_TOKENS - K) * 10, DIM)),
    ..PRU_MERGE
};
static PRU_MERGE: Row = Row {
    id: "vision/pru_merge",
    operation: "pru_merge_into()",
    shape: "576x1024_58",
    work: Work::bytes((4 * N_TOKENS * DIM) as u64, 0).with_flops(products(N_TOKENS * K, DIM)),
    targets: &[],
    note: "the limit is that of the products",
    ..K_MEANS
};
static MASS: Row = Row {
    id: "vision/attention_mass",
    operation: "attention_mass_into() of all rows",
    shape: "16h_576x64",
    work: Work::bytes((8 * N_TOKENS * DIM) as u64, (4 * N_TOKENS) as u64)
        .with_flops(products(N_HEADS * N_TOKENS * N_TOKENS, HEAD_DIM)),
    targets: &[],
    note: "the limit is that of the scores",
    ..K_MEANS
};

fn matrix(n_tokens: usize, dim: usize, seed: u64) -> Aligned<f32> {
    input::normal(n_tokens * dim, seed)
}

fn view(x: &[f32], dim: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((x.len() / dim, dim), x).expect("whole rows")
}

/// The index of the nearest target, which is a group.
fn nearest(x: ArrayView2<'_, f32>, token: usize, targets: &[u32]) -> usize {
    let square = |target: u32| -> f64 {
        let pairs = x.row(token).into_iter().zip(x.row(target as usize));
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    first(targets.len(), |group| square(targets[group]))
}

/// The first of `0..n` with the least cost.
fn first(n: usize, cost: impl Fn(usize) -> f64) -> usize {
    (0..n).map(|i| (i, cost(i))).min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i)
}

/// Lloyd's method from the farthest tokens first, over the tokens themselves.
fn lloyd(x: ArrayView2<'_, f32>, k: usize) -> Assignment {
    let (n, x) = (x.nrows(), x.mapv(f64::from));
    let square = |i: usize, mean: &Array1<f64>| -> f64 {
        x.row(i).iter().zip(mean).map(|(x, mean)| (x - mean).powi(2)).sum()
    };
    let mean = |members: &[usize]| x.select(Axis(0), members).mean_axis(Axis(0)).expect("members");
    let all: Vec<usize> = (0..n).collect();
    let mut means = vec![mean(&all)];
    let mut gaps: Vec<f64> = (0..n).map(|i| square(i, &means[0])).collect();
    for seed in 0..k {
        let farthest = mean(&[first(n, |i| -gaps[i])]);
        let nearer = (0..n).map(|i| square(i, &farthest));
        gaps = nearer.zip(&gaps).map(|(a, &b)| if seed > 0 { a.min(b) } else { a }).collect();
        means.push(farthest);
    }
    means.remove(0);
    let mut of_tokens = Vec::new();
    loop {
        let next: Vec<usize> = (0..n).map(|i| first(k, |c| square(i, &means[c]))).collect();
        let members = |c: usize| (0..n).filter(|&i| next[i] == c).collect::<Vec<_>>();
        let of_clusters: Vec<_> = (0..k).map(members).collect();
        means = of_clusters.iter().map(|members| mean(members)).collect();
        if next == of_tokens {
            let medoid = |(c, members): (usize, &Vec<usize>)| {
                (members[first(members.len(), |i| square(members[i], &means[c]))] as u32, c)
            };
            let mut medoids: Vec<_> = of_clusters.iter().enumerate().map(medoid).collect();
            medoids.sort_unstable();
            let place = |c| medoids.iter().position(|&(_, of)| of == c).expect("a cluster") as u32;
            let groups: Vec<u32> = next.into_iter().map(place).collect();
            let targets: Vec<u32> = medoids.iter().map(|&(medoid, _)| medoid).collect();
            return Assignment::new(&groups, &targets).expect("medoids are members");
        }
        of_tokens = next;
    }
}

fn main() {
    let mut suite = Suite::new();
    suite.row(&ATTENTION, attention);
    suite.row(&CLUSTERING, clustering);
    suite.row(&MAGNITUDE, magnitude);
    suite.row(&K_MEANS, k_means);
    suite.row(&DPC_KNN, dpc_knn);
    suite.row(&TOME, tome);
    suite.row(&VISION_ZIP, vision_zip);
    suite.row(&PRU_MERGE, pru_merge);
    suite.row(&MASS, mass);
    suite.finish();
}

fn attention(row: Unchecked<'_>) -> Checked<'_> {
    let (x, scores) = (matrix(50, 768, 1), input::normal(50, 2));
    let (mut workspace, mut kept) = (TokensWorkspace::new(), Selection::default());
    let mut out = Array2::zeros((25, 768));
    let mut run = |kept: &mut Selection, out: &mut Array2<f32>| {
        workspace.largest_into(black_box(&scores), Keep::Share(0.5), kept)?;
        gather_into(view(black_box(&x), 768), kept, out.view_mut())
    };
    row.check(|| {
        assert_eq!(run(&mut kept, &mut out), Ok(()));
        let least = kept.indices().iter().map(|&i| scores[i as usize]).fold(f32::MAX, f32::min);
        let n_larger = scores.iter().filter(|&&s| s >= least).count();
        assert_eq!((n_larger, kept.len()), (25, 25));
        assert_eq!(out.row(24), view(&x, 768).row(kept.indices()[24] as usize));
    })
    .ours(|bench| bench.iter(|| run(&mut kept, &mut out)))
}

fn clustering(row: Unchecked<'_>) -> Checked<'_> {
    let x = matrix(20, 768, 3);
    let (mut workspace, mut kept) = (TokensWorkspace::new(), Selection::default());
    let (mut groups, mut out) = (Assignment::default(), Array2::zeros((10, 768)));
    let mut run = |groups: &mut Assignment, kept: &mut Selection, out: &mut Array2<f32>| {
        let x = view(black_box(&x), 768);
        workspace.k_means_into(x, 10, KMeans::default(), groups)?;
        groups.targets_into(kept);
        gather_into(x, kept, out.view_mut())
    };
    row.check(|| {
        assert_eq!(run(&mut groups, &mut kept, &mut out), Ok(()));
        assert_eq!(groups, lloyd(view(&x, 768), 10));
        assert_eq!(out.row(9), view(&x, 768).row(kept.indices()[9] as usize));
    })
    .ours(|bench| bench.iter(|| run(&mut groups, &mut kept, &mut out)))
}

fn magnitude(row: Unchecked<'_>) -> Checked<'_> {
    let x = matrix(50, 768, 4);
    let (mut workspace, mut kept) = (TokensWorkspace::new(), Selection::default());
    let mut out = Array2::zeros((25, 768));
    let mut run = |kept: &mut Selection| {
        workspace.magnitude_into(view(black_box(&x), 768), Keep::Share(0.5), kept)?;
        gather_into(view(black_box(&x), 768), kept, out.view_mut())
    };
    row.check(|| {
        assert_eq!(run(&mut kept), Ok(()));
        let norm = |i: usize| x[i * 768..(i + 1) * 768].iter().map(|x| x * x).sum::<f32>();
        let least = kept.indices().iter().map(|&i| norm(i as usize)).fold(f32::MAX, f32::min);
        assert_eq!((0..50).filter(|&i| norm(i) >= least).count(), 25);
    })
    .ours(|bench| bench.iter(|| run(&mut kept)))
}

fn k_means(row: Unchecked<'_>) -> Checked<'_> {
    let n_tokens = row.size(N_TOKENS, 100);
    let x = matrix(n_tokens, DIM, 5);
    let (mut workspace, mut groups) = (TokensWorkspace::new(), Assignment::default());
    let mut run = |groups: &mut Assignment| {
        workspace.k_means_into(view(black_box(&x), DIM), K, KMeans::default(), groups)
    };
    row.check(|| {
        assert_eq!(run(&mut groups), Ok(()));
        assert_eq!(groups, lloyd(view(&x, DIM), K));
    })
    .ours(|bench| bench.iter(|| run(&mut groups)))
}

fn dpc_knn(row: Unchecked<'_>) -> Checked<'_> {
    let n_tokens = row.size(N_TOKENS, 100);
    let x = matrix(n_tokens, DIM, 6);
    let (mut workspace, mut groups) = (TokensWorkspace::new(), Assignment::default());
    let mut run = |groups: &mut Assignment| {
        workspace.dpc_knn_into(view(black_box(&x), DIM), K, DpcKnn::default(), groups)
    };
    row.check(|| {
        assert_eq!(run(&mut groups), Ok(()));
        for (token, &group) in groups.groups().iter().enumerate().step_by(50) {
            assert_eq!(nearest(view(&x, DIM), token, groups.targets()), group as usize);
        }
    })
    .ours(|bench| bench.iter(|| run(&mut groups)))
}

fn tome(row: Unchecked<'_>) -> Checked<'_> {
    let x = matrix(N_TOKENS, DIM, 7);
    let (mut workspace, mut groups) = (TokensWorkspace::new(), Assignment::default());
    let n_left = N_TOKENS - MERGED;
    let (mut out, mut sizes) = (Array2::zeros((n_left, DIM)), vec![0.0; n_left]);
    let mut run = |groups: &mut Assignment, sizes: &mut [f32]| {
        let x = view(black_box(&x), DIM);
        workspace.tome_into(x, MERGED, ClassToken::Absent, groups)?;
        merge_into(x, None, groups, Merge::Mean, out.view_mut(), sizes)
    };
    row.check(|| {
        assert_eq!(run(&mut groups, &mut sizes), Ok(()));
        assert_eq!(sizes.iter().sum::<f32>(), N_TOKENS as f32);
        let cosine = |i: usize, j: usize| -> f64 {
            let [a, b] = [i, j].map(|i| view(&x, DIM).row(i).mapv(f64::from));
            a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt()
        };
        for token in (0..N_TOKENS).step_by(50) {
            let target = groups.targets()[groups.groups()[token] as usize] as usize;
            let own = cosine(token, target);
            let mut others = (1..N_TOKENS).step_by(2);
            assert!(target == token || others.all(|b| cosine(token, b) <= own + 1e-6));
        }
    })
    .ours(|bench| bench.iter(|| run(&mut groups, &mut sizes)))
}

fn vision_zip(row: Unchecked<'_>) -> Checked<'_> {
    let (x, attention) = (matrix(N_TOKENS, DIM, 8), input::normal(N_TOKENS, 9));
    let (mut workspace, mut groups) = (TokensWorkspace::new(), Assignment::default());
    let (mut out, mut sizes) = (Array2::zeros((K, DIM)), [0.0; K]);
    let mut run = |groups: &mut Assignment, sizes: &mut [f32]| {
        let x = view(black_box(&x), DIM);
        workspace.vision_zip_into(black_box(&attention), x, K - 10, 10, groups)?;
        merge_into(x, None, groups, Merge::TargetPlusMean, out.view_mut(), sizes)
    };
    row.check(|| {
        assert_eq!(run(&mut groups, &mut sizes), Ok(()));
        assert!(groups.n_groups() == K && groups.targets()[..K - 10].is_sorted());
        assert_eq!(sizes.iter().sum::<f32>(), N_TOKENS as f32);
    })
    .ours(|bench| bench.iter(|| run(&mut groups, &mut sizes)))
}

fn pru_merge(row: Unchecked<'_>) -> Checked<'_> {
    let (x, attention) = (matrix(N_TOKENS, DIM, 10), input::normal(N_TOKENS, 11));
    let (mut workspace, mut sums) = (TokensWorkspace::new(), Mixture::default());
    let options = PruMerge { keep: PruKeep::Largest(Keep::Tokens(K)), ..PruMerge::default() };
    let mut run = |sums: &mut Mixture| {
        let x = view(black_box(&x), DIM);
        workspace.pru_merge_into(black_box(&attention), x, options, sums)
    };
    row.check(|| {
        assert_eq!(run(&mut sums), Ok(()));
        assert_eq!((sums.len(), sums.terms(0).len(), sums.terms(K).len()), (59, 33, 518));
    })
    .ours(|bench| bench.iter(|| run(&mut sums)))
}

fn mass(row: Unchecked<'_>) -> Checked<'_> {
    let n_tokens = row.size(N_TOKENS, 96);
    let n = n_tokens * N_HEADS * HEAD_DIM;
    let (keys, queries) = (input::normal(n, 12), input::normal(n, 13));
    let source = KvArrays::new([&keys, &keys], N_HEADS, n_tokens, [HEAD_DIM; 2]);
    let source = source.expect("as many numbers as rows have");
    let queries = ArrayView3::from_shape((n_tokens, N_HEADS, HEAD_DIM), &queries);
    let queries = queries.expect("whole rows");
    let (mut workspace, mut mass) = (TokensWorkspace::new(), vec![0.0; n_tokens]);
    let mut run = |mass: &mut [f32]| {
        let sequence = Sequence { source: black_box(&source), n_rows: n_tokens, mask: Mask::Full };
        workspace.attention_mass_into(queries, sequence, &Options::default(), mass)
    };
    row.check(|| {
        assert_eq!(run(&mut mass), Ok(()));
        assert!((mass.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        let weight = |query: ArrayView1<'_, f32>, head: usize| {
            let score = |token: usize| {
                let key = &keys[(head * n_tokens + token) * HEAD_DIM..][..HEAD_DIM];
                let dot = query.iter().zip(key).map(|(q, k)| f64::from(q * k)).sum::<f64>();
                (dot / 8.0).exp()
            };
            score(0) / (0..n_tokens).map(score).sum::<f64>()
        };
        let rows = queries.outer_iter();
        let heads = rows.flat_map(|row| (0..N_HEADS).map(move |head| (row, head)));
        let sum: f64 =
            heads.map(|(row, head)| weight(row.index_axis_move(Axis(0), head), head)).sum();
        let want = sum / (n_tokens * N_HEADS) as f64;
        assert!((want - f64::from(mass[0])).abs() < 1e-7, "{want} {}", mass[0]);
    })
    .ours(|bench| bench.iter(|| run(&mut mass)))
}
