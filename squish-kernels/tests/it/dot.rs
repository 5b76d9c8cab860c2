use proptest::prelude::*;
use squish_kernels::{
    Isa, axpy, dot,
    dot::{axpy_with, dot_scalar, dot_with, scale_add_with},
    scale_add,
};

use crate::common::{edge_lengths, length, numbers};

fn assert_close_to_the_exact_sum(a: &[f32], b: &[f32]) {
    let products = || a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    let exact: f64 = products().sum();
    let bound = (a.len() + 1) as f64 * f64::from(f32::EPSILON) / 2.0
        * products().map(f64::abs).sum::<f64>();
    for (name, got) in Isa::available()
        .map(|isa| (format!("{isa:?}"), dot_with(isa, a, b)))
        .chain([("definition".to_owned(), dot_scalar(a, b))])
    {
        assert!((f64::from(got) - exact).abs() <= bound, "{name}, {}: {got} {exact}", a.len());
    }
}

#[test]
fn every_isa_agrees_with_the_exact_sum_at_every_block_edge() {
    for len in edge_lengths() {
        assert_close_to_the_exact_sum(&numbers(len, 1), &numbers(len, 2));
    }
}

#[test]
fn products_of_small_integers_are_summed_exactly() {
    // Every element has a weight of its own, so that one left out or taken twice shows.
    for len in edge_lengths() {
        let a: Vec<f32> = (0..len).map(|i| (i % 61) as f32 + 1.0).collect();
        let b: Vec<f32> = (0..len).map(|i| (i % 7) as f32 - 3.0).collect();
        let exact = a.iter().zip(&b).map(|(&a, &b)| a as i64 * b as i64).sum::<i64>() as f32;
        for isa in Isa::available() {
            assert_eq!(dot_with(isa, &a, &b), exact, "{isa:?} {len}");
        }
    }
}

proptest! {
    #[test]
    fn every_isa_agrees_with_the_exact_sum(len in length(), seed: u64, scale in -60..60_i32) {
        let a: Vec<f32> = numbers(len, seed).iter().map(|x| x * 2.0_f32.powi(scale)).collect();
        assert_close_to_the_exact_sum(&a, &numbers(len, !seed));
    }

    #[test]
    fn updates_round_as_their_formulas_say(len in length(), seed: u64, a in -4.0..4.0_f32, b in -4.0..4.0_f32) {
        let (x, y) = (numbers(len, seed), numbers(len, !seed));
        for isa in Isa::available() {
            let (mut sum, mut mix) = (y.clone(), y.clone());
            axpy_with(isa, a, &x, &mut sum);
            scale_add_with(isa, a, &x, b, &mut mix);
            for i in 0..len {
                let (fused, apart) = (a.mul_add(x[i], y[i]), a * x[i] + y[i]);
                prop_assert!(sum[i] == fused || sum[i] == apart, "{isa:?} {i} of {len}: {} {fused}", sum[i]);
                let (fused, apart) = (a.mul_add(x[i], b * y[i]), a * x[i] + b * y[i]);
                prop_assert!(mix[i] == fused || mix[i] == apart, "{isa:?} {i} of {len}: {} {fused}", mix[i]);
            }
        }
    }
}

#[test]
fn not_a_number_and_infinities_follow_ieee_754() {
    for len in [1, 16, 17, 200] {
        for at in [0, len / 2, len - 1] {
            let ones = vec![1.0; len];
            let mut x = ones.clone();
            x[at] = f32::NAN;
            assert!(Isa::available().all(|isa| dot_with(isa, &x, &ones).is_nan()));
            x[at] = f32::INFINITY;
            assert!(Isa::available().all(|isa| dot_with(isa, &x, &ones) == f32::INFINITY));
        }
    }
}

#[test]
#[should_panic(expected = "dot: lengths differ")]
fn dot_refuses_different_lengths() {
    let _ = dot(&[0.0; 3], &[0.0; 4]);
}

#[test]
#[should_panic(expected = "axpy: lengths differ")]
fn axpy_refuses_different_lengths() {
    axpy(1.0, &[0.0; 3], &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "scale_add: lengths differ")]
fn scale_add_refuses_different_lengths() {
    scale_add(1.0, &[0.0; 3], 1.0, &mut [0.0; 4]);
}
