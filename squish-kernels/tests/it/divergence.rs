use proptest::prelude::*;
use squish_kernels::{
    Isa,
    divergence::{kl_divergence_scalar, kl_divergence_with},
    kl_divergence,
    log_sum_exp::{log_sum_exp_f64_with, log_sum_exp_scalar},
};

use crate::common::{edge_lengths, length, numbers};

fn divergence(isa: Isa, base: &[f32], other: &[f32]) -> f64 {
    let [base_sum, other_sum] = [base, other].map(|x| log_sum_exp_f64_with(isa, x));
    kl_divergence_with(isa, base, base_sum, other, other_sum)
}

/// The documented error.
fn assert_rows(base: &[f32], other: &[f32]) {
    let want = kl_divergence_scalar(base, other);
    let difference = (log_sum_exp_scalar(base) - log_sum_exp_scalar(other)).abs();
    for isa in Isa::available() {
        let got = divergence(isa, base, other);
        let off = 2.0 * 2.0_f64.powi(-20) + difference * 2.0_f64.powi(-22);
        // The definition cancels: in f64, to some 1e-15 of its terms.
        let bound =
            2.0_f64.powi(-16) * want.abs() + off * (2.0 * want.abs()).sqrt() + off * off + 1e-13;
        assert!(got >= 0.0, "{isa:?}: {got}");
        assert!(got == want || (got - want).abs() <= bound, "{isa:?}: {got} {want}");
    }
}

#[test]
fn every_isa_agrees_with_the_definition_at_every_block_edge() {
    for len in edge_lengths().filter(|&len| len > 0) {
        assert_rows(&numbers(len, 1), &numbers(len, 2));
    }
}

proptest! {
    #[test]
    fn every_isa_agrees_with_the_definition_however_near_the_rows_are(
        len in length(), seed: u64, scale in 0.1..20.0_f32, distance in -20.0..3.0_f32, offset in -90.0..90.0_f32,
        masked in 0..4_usize,
    ) {
        let mut base: Vec<f32> = numbers(len + 1, seed).iter().map(|x| x * scale).collect();
        let noise = numbers(len + 1, seed ^ 1);
        let distance = distance.exp2();
        let other: Vec<f32> = base.iter().zip(noise).map(|(x, noise)| x + noise * distance + offset).collect();
        // The first one stays.
        base.iter_mut().skip(1).step_by(5 - masked).for_each(|x| *x = f32::NEG_INFINITY);
        assert_rows(&base, &other);
    }
}

#[test]
fn equal_rows_have_a_divergence_of_exactly_0() {
    for len in [1, 15, 16, 100, 4097] {
        let x: Vec<f32> = numbers(len, 3).iter().map(|x| x * 7.0).collect();
        for isa in Isa::available() {
            assert_eq!(divergence(isa, &x, &x), 0.0, "{isa:?} {len}");
        }
    }
}

#[test]
fn what_only_the_base_excludes_counts_and_what_only_the_other_excludes_is_infinitely_far() {
    let none = f32::NEG_INFINITY;
    for isa in Isa::available() {
        let got = divergence(isa, &[0.0, none], &[0.0, 0.0]);
        assert!((got - std::f64::consts::LN_2).abs() < 1e-6, "{isa:?}: {got}");
        assert_eq!(divergence(isa, &[0.0, 0.0], &[0.0, none]), f64::INFINITY, "{isa:?}");
        assert_eq!(divergence(isa, &[0.0, none, 1.0], &[0.0, none, 1.0]), 0.0, "{isa:?}");
        // Masked in both, in a row that has a tail.
        let mut x = vec![none; 37];
        x[36] = 3.0;
        assert_eq!(divergence(isa, &x, &x), 0.0, "{isa:?}");
    }
}

#[test]
#[should_panic(expected = "kl_divergence: lengths differ")]
fn different_lengths_are_refused() {
    let _ = kl_divergence(&[0.0; 3], 1.0, &[0.0; 4], 1.0);
}
