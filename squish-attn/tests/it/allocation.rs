use std::sync::Arc;

use ndarray::{Array2, Array3, s};
use squish_attn::{
    Assignment, FusedRmsNorm, Keep, KvArrays, Mask, Mixture, Options, QkNorm, RmsVariant,
    RopeConfig, RopeLayout, RopeMode, RopeOptions, RopeTable, Selection, Sequence, Team,
    TokensWorkspace, Workspace, ndarray,
    tokens::{
        ClassToken, DpcKnn, KMeans, Merge, PruKeep, PruMerge, gather_into, merge_into, mix_into,
    },
};
use squish_bench::alloc::count_allocations;
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
    let x = Array2::from_shape_fn((90, 20), |(i, j)| ((i * 20 + j) as f32).sin());
    let attention: Vec<f32> = (0..90).map(|i| (i as f32).cos()).collect();
    let (keys, values) = (vec![0.5_f32; 2 * 90 * 32], vec![1.0_f32; 2 * 90 * 32]);
    let source = KvArrays::new([&keys, &values], 2, 90, [32, 32]).expect("as many numbers");
    let queries = Array3::<f32>::ones((40, 4, 32));
    let (mut workspace, mut kept) = (TokensWorkspace::new(), Selection::default());
    let (mut groups, mut sums) = (Assignment::default(), Mixture::default());
    let (mut mass, mut sizes) = (vec![0.0; 90], vec![0.0; 90]);
    let mut out = Array2::zeros((90, 20));
    let mut run = || {
        let sequence = Sequence::causal(&source, 40);
        workspace.attention_mass_into(queries.view(), sequence, &Options::default(), &mut mass)?;
        workspace.fast_v_into(&attention, 10..80, Keep::Share(0.5), &mut kept)?;
        workspace.outliers_into(&attention, &mut kept)?;
        workspace.magnitude_into(x.view(), Keep::Tokens(45), &mut kept)?;
        gather_into(x.view(), &kept, out.slice_mut(s![..45, ..]))?;
        let options = PruMerge { keep: PruKeep::Largest(Keep::Tokens(9)), ..PruMerge::default() };
        workspace.pru_merge_into(&attention, x.view(), options, &mut sums)?;
        mix_into(x.view(), &sums, out.slice_mut(s![..sums.len(), ..]))?;
        workspace.dpc_knn_into(x.view(), 9, DpcKnn::default(), &mut groups)?;
        workspace.k_means_into(x.view(), 9, KMeans::default(), &mut groups)?;
        workspace.vision_zip_into(&attention, x.view(), 20, 5, &mut groups)?;
        workspace.tome_into(x.view(), 30, ClassToken::First, &mut groups)?;
        let (out, sizes) = (out.slice_mut(s![..60, ..]), &mut sizes[..60]);
        merge_into(x.view(), None, &groups, Merge::Mean, out, sizes)
    };
    run().expect("fits");
    assert_eq!(count_allocations(run), (Ok(()), 0));
}
