//! What holds of vision tokens of all kinds.

use ndarray::Array2;
use proptest::prelude::*;
use squish_attn::{
    Assignment, Keep, Mixture, Selection, TokensWorkspace, ndarray,
    tokens::{
        ClassToken, DpcKnn, KMeans, Merge, PruKeep, PruMerge, Start, Supplement, gather_into,
        merge_into,
    },
};
use squish_kernels::Isa;

/// Tokens of small whole numbers, so that many are equal or equally far from others.
fn tokens() -> impl Strategy<Value = Array2<f32>> {
    (0..80_usize, 0..20_usize).prop_flat_map(|(n, dim)| {
        let numbers = prop::collection::vec((-2..3_i8).prop_map(f32::from), n * dim);
        numbers.prop_map(move |x| Array2::from_shape_vec((n, dim), x).expect("a matrix"))
    })
}

fn scores(n: usize, seed: u64) -> Vec<f32> {
    super::attention::numbers(n, seed).into_iter().map(|x| (8.0 * x).round() / 8.0).collect()
}

/// Each token in one group, no group without its target.
fn assert_partition(groups: &Assignment, n_tokens: usize, n_groups: usize) {
    assert_eq!((groups.n_tokens(), groups.n_groups()), (n_tokens, n_groups));
    let again = Assignment::new(groups.groups(), groups.targets());
    assert_eq!(again.as_ref(), Ok(groups));
}

proptest! {
    #[test]
    fn groups_are_as_many_as_asked_for_and_sizes_add_up(
        x in tokens(), k in 1..90_usize, r in 0..60_usize, seed in 0..5_u64, class in any::<bool>(),
    ) {
        let n = x.nrows();
        for isa in Isa::available() {
            let (mut workspace, mut groups) = (TokensWorkspace::new_with(isa), Assignment::default());
            for start in [Start::FarthestFirst, Start::PlusPlus { seed }] {
                workspace.k_means_into(x.view(), k, KMeans { start, ..KMeans::default() }, &mut groups).expect("finite");
                assert_partition(&groups, n, k.min(n));
                prop_assert!(groups.targets().is_sorted());
            }
            workspace.dpc_knn_into(x.view(), k, DpcKnn::default(), &mut groups).expect("finite");
            assert_partition(&groups, n, k.min(n));
            let attention = scores(n, seed);
            workspace.vision_zip_into(&attention, x.view(), r, k, &mut groups).expect("finite");
            let dominant = r.min(n);
            assert_partition(&groups, n, dominant + k.min(n - dominant));
            let (class, n_protected) = if class { (ClassToken::First, 1) } else { (ClassToken::Absent, 0) };
            workspace.tome_into(x.view(), r, class, &mut groups).expect("finite");
            assert_partition(&groups, n, n - r.min(n.saturating_sub(n_protected) / 2));
            if class == ClassToken::First && n > 0 {
                prop_assert_eq!((groups.groups()[0], groups.counts()[0]), (0, 1));
            }

            let sizes: Vec<f32> = (0..n).map(|i| (i % 3 + 1) as f32).collect();
            for how in [Merge::Mean, Merge::TargetPlusMean] {
                let mut out = Array2::zeros((groups.n_groups(), x.ncols()));
                let mut out_sizes = vec![0.0; groups.n_groups()];
                merge_into(x.view(), Some(&sizes), &groups, how, out.view_mut(), &mut out_sizes).expect("fits");
                prop_assert_eq!(out_sizes.iter().sum::<f32>(), sizes.iter().sum::<f32>());
                if how == Merge::Mean {
                    // What all tokens add up to stays.
                    for (column, of_out) in x.columns().into_iter().zip(out.columns()) {
                        let before: f32 = column.iter().zip(&sizes).map(|(x, size)| x * size).sum();
                        let after: f32 = of_out.iter().zip(&out_sizes).map(|(x, size)| x * size).sum();
                        prop_assert!((before - after).abs() <= 1e-4 * n as f32, "{before} {after}");
                    }
                }
            }
        }
    }

    #[test]
    fn selections_ascend_and_hold_no_less_than_what_they_leave(
        n in 0..300_usize, share in 0.0..=1.0_f64, seed in any::<u64>(),
    ) {
        let scores = scores(n, seed);
        let (mut workspace, mut kept) = (TokensWorkspace::new(), Selection::default());
        workspace.largest_into(&scores, Keep::Share(share), &mut kept).expect("finite");
        prop_assert_eq!(kept.len(), (n as f64 * share).round() as usize);
        prop_assert!(kept.indices().windows(2).all(|pair| pair[0] < pair[1]));
        let mut order: Vec<u32> = (0..n as u32).collect();
        // Zeros of both signs are equal, and there are some.
        order.sort_by(|&i, &j| scores[j as usize].partial_cmp(&scores[i as usize]).expect("numbers"));
        order.truncate(kept.len());
        order.sort_unstable();
        prop_assert_eq!(kept.indices(), &order);
        let column = Array2::from_shape_vec((n, 1), scores.clone()).expect("a column");
        let mut out = Array2::zeros((kept.len(), 1));
        gather_into(column.view(), &kept, out.view_mut()).expect("fits");
        prop_assert!(out.iter().zip(kept.indices()).all(|(x, &i)| *x == scores[i as usize]));
    }

    #[test]
    fn sums_hold_each_token_that_is_kept_once_and_the_rest_in_the_last(
        x in tokens(), k in 0..90_usize, neighbors in 0..40_usize, spaced in any::<bool>(), seed in any::<u64>(),
    ) {
        let n = x.nrows();
        // No weight is 1, by which a token's own term is told from others.
        let attention: Vec<f32> = scores(n, seed).iter().map(|x| 0.5 * x).collect();
        let supplement = if spaced { Supplement::Spaced } else { Supplement::Nothing };
        let options = PruMerge { keep: PruKeep::Largest(Keep::Tokens(k)), neighbors, supplement };
        let mut sums = Mixture::default();
        TokensWorkspace::new().pru_merge_into(&attention, x.view(), options, &mut sums).expect("finite");
        let n_kept = (0..sums.len()).filter(|&i| sums.terms(i).first().is_some_and(|term| term.1 == 1.0)).count();
        let mut kept: Vec<u32> = (0..n_kept).map(|i| sums.terms(i)[0].0).collect();
        prop_assert!(n_kept >= k.min(n));
        for i in 0..n_kept.min(k) {
            prop_assert_eq!(sums.terms(i).len(), 1 + neighbors.min(n - 1));
        }
        kept.sort_unstable();
        let all_kept = kept.len();
        kept.dedup();
        prop_assert_eq!(kept.len(), all_kept);
        if n_kept < n {
            let rest = sums.terms(sums.len() - 1);
            prop_assert_eq!((sums.len(), rest.len()), (n_kept + 1, n - n_kept));
            prop_assert!(rest.iter().all(|&(token, weight)| weight == attention[token as usize] && !kept.contains(&token)));
        }
    }
}
