use std::sync::Arc;

use ndarray::{Array2, Array3};
use squish_attn::{
    FusedRmsNorm, KvArrays, Mask, Options, QkNorm, RmsVariant, RopeConfig, RopeLayout, RopeMode,
    RopeOptions, RopeTable, Sequence, Team, Workspace, ndarray,
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
