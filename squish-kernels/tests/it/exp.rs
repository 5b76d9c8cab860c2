//! `exp`, element by element.

use proptest::prelude::*;
use squish_bench::golden::Golden;
use squish_kernels::{
    Isa,
    exp::{exp_in_place_with, exp_into_with},
    exp_into,
};

use crate::common::{edge_lengths, numbers, ulps};

const EXP_ULPS: f64 = 1.01;

/// The largest error of `exp` over `x`, in ULP, and where it is.
fn worst_exp(isa: Isa, x: &[f32]) -> (f64, f32) {
    let mut y = x.to_vec();
    exp_in_place_with(isa, &mut y);
    let errors = x.iter().zip(&y).map(|(&x, &y)| (ulps(y, f64::from(x).exp()), x));
    errors.fold(
        (0.0, 0.0),
        |worst, next| if next.0 > worst.0 || next.0.is_nan() { next } else { worst },
    )
}

#[test]
fn exp_is_within_1_01_ulp_on_every_isa_over_a_sample_of_all_floats() {
    // Both signs, all exponents, and mantissas that step through all of their bits.
    let x: Vec<f32> = (0..1_u32 << 20).map(|i| f32::from_bits(i.wrapping_mul(4093))).collect();
    for isa in Isa::available() {
        let (error, at) = worst_exp(isa, &x);
        assert!(error <= EXP_ULPS, "{isa:?}: {error} ULP at {at:e}");
    }
}

#[test]
fn exp_is_within_1_01_ulp_on_every_isa_where_results_are_finite() {
    let x: Vec<f32> = (0..2_000_000).map(|i| i as f32 * 1e-4 - 105.0).collect();
    for isa in Isa::available() {
        let (error, at) = worst_exp(isa, &x);
        assert!(error <= EXP_ULPS, "{isa:?}: {error} ULP at {at:e}");
    }
}

#[test]
#[ignore = "2^32 inputs on every level: some minutes"]
fn exp_of_every_float_is_within_1_01_ulp_on_every_isa() {
    for isa in Isa::available() {
        let mut worst = (0.0, 0.0);
        for high in 0..=u16::MAX {
            let bits = |low: u32| u32::from(high) << 16 | low;
            let x: Vec<f32> = (0..1 << 16).map(|low| f32::from_bits(bits(low))).collect();
            let next = worst_exp(isa, &x);
            assert!(next.0 <= EXP_ULPS, "{isa:?}: {} ULP at {:e}", next.0, next.1);
            worst = if next.0 > worst.0 { next } else { worst };
        }
        println!("exp at {isa:?}: at most {} ULP, at {:e}", worst.0, worst.1);
    }
}

#[test]
fn exp_of_the_golden_inputs_is_torch_s_f64_result() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "ops");
    let (x, want) = (golden.f32("exp.x"), golden.f64("exp.y"));
    for isa in Isa::available() {
        let mut got = vec![0.0; x.len()];
        exp_into_with(isa, &x, &mut got);
        for ((x, got), &want) in x.iter().zip(got).zip(&want) {
            assert!(ulps(got, want) <= EXP_ULPS, "{isa:?}: exp({x:e}) is {got:e}, not {want:e}");
        }
    }
}

proptest! {
    #[test]
    fn a_result_depends_on_its_element_alone(seed: u64, at in 0..200_usize) {
        let x = numbers(200, seed);
        for isa in Isa::available() {
            let (mut all, mut one) = (x.clone(), [x[at]]);
            exp_in_place_with(isa, &mut all);
            exp_in_place_with(isa, &mut one);
            prop_assert_eq!(all[at].to_bits(), one[0].to_bits(), "{:?} {}", isa, at);
        }
    }
}

#[test]
fn both_forms_give_the_same_bits_at_every_block_edge() {
    for len in edge_lengths() {
        let x = numbers(len, 8);
        let mut into = vec![0.0; len];
        for isa in Isa::available() {
            let mut place = x.clone();
            exp_in_place_with(isa, &mut place);
            exp_into_with(isa, &x, &mut into);
            assert_eq!(place, into, "{isa:?} {len}");
        }
    }
}

#[test]
#[should_panic(expected = "exp: lengths differ")]
fn exp_refuses_different_lengths() {
    exp_into(&[0.0; 3], &mut [0.0; 4]);
}
