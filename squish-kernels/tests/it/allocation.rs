use half::bf16;
use squish_bench::alloc::count_allocations;
use squish_kernels::{
    Gelu, Isa, RmsVariant, RopeLayout, Team, abs_max, add_layer_norm_in_place,
    add_rms_norm_in_place, add_rms_norm_into, argmax, axpy, dot, exp_in_place, exp_into,
    gelu_in_place, kl_divergence, layer_norm_into, log_softmax_in_place, log_sum_exp,
    log_sum_exp_f64, max, min, rms_norm_in_place, rms_norm_into, rope_in_place, scale_add,
    silu_in_place, soft_cap_in_place, softmax_in_place, softmax_into, sum, top_k,
    top_k_scratch_len,
};

use crate::common::numbers;

#[test]
fn kernels_allocate_nothing() {
    // The first call reads the environment.
    let _ = Isa::detect();
    // Rows of 37 have a tail, 2960 elements more than one block.
    let (x, mut y, mut out) = (numbers(2960, 1), numbers(2960, 2), vec![0.0; 2960]);
    let (w, half) = (numbers(37, 3), vec![bf16::ONE; 37]);
    let (mut values, mut indices) = ([0.0; 40], [0; 40]);
    let mut scratch = vec![0; top_k_scratch_len(40)];
    let mut half_out = half.clone();
    let ((), n) = count_allocations(|| {
        let _ = (dot(&x, &y), sum(&x), max(&x), min(&x), abs_max(&x), argmax(&x), log_sum_exp(&x));
        let _ = kl_divergence(&x, log_sum_exp_f64(&x), &y, log_sum_exp_f64(&half));
        axpy(0.5, &x, &mut y);
        scale_add(0.5, &x, 0.5, &mut y);
        top_k(&x, &mut values, &mut indices, &mut scratch);
        exp_into(&x, &mut out);
        exp_in_place(&mut out);
        softmax_into(&x, &mut out);
        softmax_in_place(&mut out);
        log_softmax_in_place(&mut out);
        silu_in_place(&mut out);
        gelu_in_place(&mut out, Gelu::Erf);
        gelu_in_place(&mut out, Gelu::Tanh);
        soft_cap_in_place(&mut out, 30.0);
        rms_norm_into(&x, &w, 1e-5, RmsVariant::Llama, &mut out);
        rms_norm_in_place(&mut out, &w, 1e-5, RmsVariant::Gemma);
        add_rms_norm_in_place(&mut out, &mut y, &w, 1e-5, RmsVariant::GptOss);
        add_rms_norm_into(&x, &mut y, &w, 1e-5, RmsVariant::GptOss, &mut out);
        layer_norm_into(&x, &w, &w, 1e-5, &mut out);
        add_layer_norm_in_place(&mut out, &mut y, &w, &w, 1e-5);
        rope_in_place(&mut out, 37, &x[..72], 36, &[0, 1, 1, 0], RopeLayout::HalfSplit);
        rope_in_place(&mut out, 37, &x[..72], 36, &[0, 1, 1, 0], RopeLayout::Interleaved);
        rms_norm_into(&half, &half, 1e-5, RmsVariant::Llama, &mut half_out);
    });
    assert_eq!(n, 0);
}

#[test]
fn regions_of_a_team_allocate_nothing_on_the_calling_thread() {
    let team = Team::new(3).expect("three threads");
    let mut items = [0; 16];
    let ((), n) = count_allocations(|| {
        for round in 0..100 {
            team.for_each(&mut items, |x| *x += 1);
            // Regions meet workers that spin and workers that are parked.
            if round % 20 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        }
    });
    assert_eq!((n, items), (0, [100; 16]));
}
