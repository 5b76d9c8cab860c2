use std::sync::Arc;

use ndarray::{Array2, Array3, s};
use squish_attn::{
    Assignment, FusedRmsNorm, Keep, KvArrays, Mask, Mixture, Options, QkNorm, RmsVariant,
    RopeConfig, RopeLayout, RopeMode, RopeOptions, RopeTable, Selection, Sequence, Team,
    TokensWorkspace, Workspace, ndarray,
    tokens::{
        ClassToken, DpcKnn, KMeans, Merge, PruKeep, PruMerge, Start, Supplement, gather_into,
        merge_into, mix_into, widen_keys_into, widen_queries_into,
    },
};
use squish_bench::alloc::{count_allocations, held_bytes};
use squish_kernels::Isa;

#[test]
fn a_step_allocates_nothing() {
    // The first call reads the environment.
    let _ = Isa::detect();
    let config = RopeConfig::new(64, 10000.0, 4096);
    let mut table = RopeTable::new(config.clone(), RopeOptions::default()).expect("valid");
    table.extend_to(4096).expect("memory");
    let shift = table.rotate_by(-3);
    let (mut q, mut k) = (Array3::<f32>::ones((2, 8, 64)), Array3::<f32>::ones((2, 2, 64)));
    let norm = FusedRmsNorm::new(vec![1.0_f32; 512], 1e-5, RmsVariant::Llama).expect("a weight");
    let qk_norm =
        QkNorm::new(vec![1.0_f32; 64], vec![1.0; 64], 1e-5, RmsVariant::Llama).expect("weights");
    let (mut x, mut residual) = (Array2::<f32>::ones((2, 512)), Array2::<f32>::ones((2, 512)));
    let (mut out, mut freqs) = (x.clone(), [0.0; 32]);
    let (result, n) = count_allocations(|| {
        config.inv_freq_into(4096, RopeMode::HfF32, &mut freqs)?;
        for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
            table.extend_to(4096)?;
            table.apply_qk_in_place(q.view_mut(), k.view_mut(), &[4094, 4095], layout)?;
            shift.apply_in_place(k.view_mut(), layout)?;
        }
        norm.forward_into(x.view(), out.view_mut())?;
        norm.forward_in_place(out.view_mut())?;
        norm.add_forward_in_place(x.view_mut(), residual.view_mut())?;
        norm.add_forward_into(x.view(), residual.view_mut(), out.view_mut())?;
        qk_norm.forward_in_place(q.view_mut(), k.view_mut())
    });
    assert_eq!((result, n), (Ok(()), 0));
}

#[test]
fn attention_allocates_nothing_after_a_call_as_large() {
    let (keys, values) = (vec![0.5_f32; 2 * 1100 * 32], vec![1.0_f32; 2 * 1100 * 32]);
    let source = KvArrays::new([&keys, &values], 2, 1100, [32, 32]).expect("as many numbers");
    let parents = [None, Some(0), Some(0)];
    let batch = [
        Sequence::causal(&source, 1),
        Sequence::causal(&source, 40),
        Sequence { source: &source, n_rows: 3, mask: Mask::Tree(&parents) },
    ];
    let queries = Array3::<f32>::ones((44, 4, 32));
    let mut out = Array3::<f32>::zeros((44, 4, 32));
    let mut workspace = Workspace::new(Arc::new(Team::new(1).expect("one thread")));
    let mut attend = || {
        let options = Options { window: Some(1090), ..Options::default() };
        workspace.attend_into(queries.view(), &batch, &options, out.view_mut())
    };
    attend().expect("fits");
    assert_eq!(count_allocations(attend), (Ok(()), 0));
}

#[test]
fn vision_tokens_allocate_nothing_after_a_call_as_large() {
    // Rows that are whole blocks are read where they lie, and others are copied.
    for dim in [20, 32] {
        allocate_nothing(dim);
    }
}

/// Runs each method twice, and counts in the second run.
fn allocate_nothing(dim: usize) {
    let x = Array2::from_shape_fn((90, dim), |(i, j)| ((i * dim + j) as f32).sin());
    let mut attention: Vec<f32> = (0..90).map(|i| (i as f32).cos()).collect();
    attention[7] = 9.0;
    let (keys, values) = (vec![0.5_f32; 2 * 90 * 32], vec![1.0_f32; 2 * 90 * 32]);
    let source = KvArrays::new([&keys, &values], 2, 90, [32, 32]).expect("as many numbers");
    let queries = Array3::<f32>::ones((40, 4, 32));
    let heads = Array3::<f32>::ones((90, 2, 32));
    let mut wide = Array3::<f32>::zeros((90, 2, 33));
    let mut workspace = TokensWorkspace::new();
    let (mut kept, mut groups, mut sums) =
        (Selection::default(), Assignment::default(), Mixture::default());
    let (mut mass, mut sizes) = (vec![0.0; 90], vec![1.0; 90]);
    let mut out = Array2::zeros((90, dim));
    let mut run = |method: &str| {
        let x = x.view();
        match method {
            "mass" => {
                let (sequence, options) = (Sequence::causal(&source, 40), Options::default());
                workspace.attention_mass_into(queries.view(), sequence, &options, &mut mass)
            }
            "largest" => workspace.largest_into(&attention, Keep::Share(0.5), &mut kept),
            "fast_v" => workspace.fast_v_into(&attention, 10..80, Keep::Share(0.5), &mut kept),
            "outliers" => workspace.outliers_into(&attention, &mut kept).map(|_| ()),
            "magnitude" => workspace.magnitude_into(x, Keep::Tokens(45), &mut kept),
            "gather" => gather_into(x, &kept, out.slice_mut(s![..kept.len(), ..])),
            "pru_merge" => workspace.pru_merge_into(&attention, x, PruMerge::default(), &mut sums),
            "pru_merge+" => {
                let keep = PruKeep::Largest(Keep::Tokens(9));
                let options =
                    PruMerge { keep, supplement: Supplement::Spaced, ..PruMerge::default() };
                workspace.pru_merge_into(&attention, x, options, &mut sums)
            }
            "mix" => mix_into(x, &sums, out.slice_mut(s![..sums.len(), ..])),
            "dpc_knn" => workspace.dpc_knn_into(x, 9, DpcKnn::default(), &mut groups),
            "k_means" => workspace.k_means_into(x, 9, KMeans::default(), &mut groups),
            "k_means++" => {
                let start = Start::PlusPlus { seed: 1 };
                let options = KMeans { start, ..KMeans::default() };
                workspace.k_means_into(x, 9, options, &mut groups)
            }
            "targets" => {
                groups.targets_into(&mut kept);
                Ok(())
            }
            "vision_zip" => workspace.vision_zip_into(&attention, x, 20, 5, &mut groups),
            "tome" => workspace.tome_into(x, 30, ClassToken::First, &mut groups),
            "merge" | "merge to targets" => {
                let how = if method == "merge" { Merge::Mean } else { Merge::TargetPlusMean };
                let n = groups.n_groups();
                merge_into(x, None, &groups, how, out.slice_mut(s![..n, ..]), &mut sizes[..n])
            }
            "widen_queries" => widen_queries_into(heads.view(), 0.25, wide.view_mut()),
            "widen_keys" => widen_keys_into(heads.view(), &[2.0; 90], wide.view_mut()),
            _ => unreachable!("{method}"),
        }
    };
    for method in [
        "mass",
        "largest",
        "fast_v",
        "outliers",
        "magnitude",
        "gather",
        "pru_merge",
        "pru_merge+",
        "mix",
        "dpc_knn",
        "k_means",
        "k_means++",
        "targets",
        "vision_zip",
        "merge to targets",
        "tome",
        "merge",
        "widen_queries",
        "widen_keys",
    ] {
        run(method).expect("fits");
        assert_eq!(count_allocations(|| run(method)), (Ok(()), 0), "{method}, {dim} numbers");
    }
}

#[test]
fn the_mass_takes_256_bytes_a_token_and_no_matrix_of_rows_and_tokens() {
    const N: usize = 4096;
    let keys: Vec<f32> = (0..N * 16).map(|i| (i as f32).sin()).collect();
    let source = KvArrays::new([&keys, &keys], 1, N, [16, 16]).expect("as many numbers");
    let queries = Array3::from_shape_fn((N, 1, 16), |(i, _, e)| ((i + e) as f32).cos());
    let mut mass = vec![0.0; N];
    for mask in [Mask::Full, Mask::Causal] {
        let mut run = |workspace: &mut TokensWorkspace| {
            let sequence = Sequence { source: &source, n_rows: N, mask };
            workspace.attention_mass_into(queries.view(), sequence, &Options::default(), &mut mass)
        };
        let (mut workspace, held) = held_bytes(|| {
            let mut workspace = TokensWorkspace::new();
            run(&mut workspace).expect("fits");
            workspace
        });
        // The scores of 64 rows, a sum of eight bytes, and what does not grow with the tokens; the matrix would be 64 MiB.
        assert!(held < (264 * N + (1 << 18)) as i64, "{mask:?}: {held} bytes");
        // Nor was there anything that did not stay.
        assert_eq!(count_allocations(|| run(&mut workspace)), (Ok(()), 0), "{mask:?}");
        assert!((mass.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{mask:?}");
    }
}
