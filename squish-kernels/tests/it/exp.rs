//! `exp` and the activations, element by element.

use proptest::prelude::*;
use squish_bench::golden::Golden;
use squish_kernels::{
    Gelu, Isa,
    activation::{
        gelu_in_place_with, gelu_into_with, gelu_tanh_scalar, silu_in_place_with, silu_into_with,
        silu_scalar,
    },
    exp::{exp_in_place_with, exp_into_with},
    exp_into, gelu_into, silu_into,
};

use crate::common::{edge_lengths, numbers, ulps};

const EXP_ULPS: f64 = 1.01;
const SILU_ULPS: f64 = 4.0;
const GELU_ERF_ULPS: f64 = 6.0;
/// Half a place of the smallest subnormal times a large argument: where `e^−|x|` is subnormal, so is the result.
const TINY: f64 = 1e-36;

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

type Activation = fn(Isa, &[f32], &mut [f32]);

#[test]
fn activations_of_the_golden_inputs_are_torch_s_f64_results() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "ops");
    let x = golden.f32("act.x");
    let cases: [(&str, Activation); 3] = [
        ("act.silu", silu_into_with),
        ("act.gelu_erf", |isa, x, out| gelu_into_with(isa, x, out, Gelu::Erf)),
        ("act.gelu_tanh", |isa, x, out| gelu_into_with(isa, x, out, Gelu::Tanh)),
    ];
    for (name, function) in cases {
        let want = golden.f64(name);
        for isa in Isa::available() {
            let mut got = vec![0.0; x.len()];
            function(isa, &x, &mut got);
            for ((x, got), want) in x.iter().zip(got).zip(&want) {
                // In f64 torch's own GELU cancels below zero.
                let error = (f64::from(got) - want).abs();
                let relative = if name == "act.gelu_tanh" { tanh_error(*x) } else { 4e-7 };
                let bound = relative * want.abs() + 1e-15 * f64::from(x.abs()) + TINY;
                assert!(error <= bound, "{isa:?} {name}({x:e}) is {got:e}, not {want:e}");
            }
        }
    }
}

/// The relative error that is documented for the GELU by a tangent.
fn tanh_error(x: f32) -> f64 {
    let x = f64::from(x.abs());
    let u = (2.0 / std::f64::consts::PI).sqrt() * x * (1.0 + 0.044715 * x * x);
    (4.0 + 8.0 * u) * 2.0_f64.powi(-24)
}

/// Inputs between `−range` and `range`, and tiny ones.
fn arguments(range: f32) -> Vec<f32> {
    let n = 1 << 18;
    let steps = (0..=n).map(|i| (i as f32 / n as f32 * 2.0 - 1.0) * range);
    steps.chain((0..400).map(|i| 2.0_f32.powf(i as f32 / 4.0 - 126.0))).collect()
}

#[test]
fn silu_keeps_its_digits_far_below_zero() {
    let x = arguments(100.0);
    for isa in Isa::available() {
        let mut y = x.clone();
        silu_in_place_with(isa, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let want = silu_scalar(x);
            let error = ulps(y, want);
            assert!(
                error <= SILU_ULPS || want.abs() < TINY,
                "{isa:?}: silu({x:e}) is {y:e}, {error} ULP off"
            );
        }
    }
}

#[test]
fn gelu_by_tanh_has_the_error_of_its_argument() {
    let x = arguments(12.0);
    for isa in Isa::available() {
        let mut y = x.clone();
        gelu_in_place_with(isa, &mut y, Gelu::Tanh);
        for (&x, &y) in x.iter().zip(&y) {
            let want = gelu_tanh_scalar(x);
            let error = (f64::from(y) - want).abs();
            let bound = tanh_error(x) * want.abs() + TINY;
            assert!(error <= bound, "{isa:?}: gelu({x:e}) is {y:e}, not {want:e}");
        }
    }
}

/// `x Φ(x)` for `x < 0` by the continued fraction of the tail, for others by the complement.
fn gelu_by_definition(x: f32) -> f64 {
    let a = f64::from(x.abs());
    let density = (-a * a / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let tail = if a < 3.0 {
        // Φ(a) − 1/2 = φ(a) Σ a^(2k+1) / (1 · 3 · … · (2k+1))
        let (mut term, mut sum) = (a, a);
        for k in 1..100 {
            term *= a * a / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 - density * sum
    } else {
        density / (1..200).rev().fold(a, |rest, k| a + f64::from(k) / rest)
    };
    f64::from(x) * if x < 0.0 { tail } else { 1.0 - tail }
}

#[test]
fn gelu_keeps_its_digits_far_below_zero() {
    let x = arguments(14.5);
    for isa in Isa::available() {
        let mut y = x.clone();
        gelu_in_place_with(isa, &mut y, Gelu::Erf);
        for (&x, &y) in x.iter().zip(&y) {
            let want = gelu_by_definition(x);
            let error = ulps(y, want);
            assert!(
                error <= GELU_ERF_ULPS || want.abs() < TINY,
                "{isa:?}: gelu({x:e}) is {y:e}, {error} ULP off"
            );
        }
    }
}

#[test]
fn activations_have_their_limits_at_the_infinities() {
    let ends = [f32::NEG_INFINITY, f32::MIN, -1e4, -0.0, 0.0, 1e4, f32::INFINITY, f32::NAN];
    for isa in Isa::available() {
        let (mut silu, mut erf, mut tanh) = (ends, ends, ends);
        silu_in_place_with(isa, &mut silu);
        gelu_in_place_with(isa, &mut erf, Gelu::Erf);
        gelu_in_place_with(isa, &mut tanh, Gelu::Tanh);
        for got in [silu, erf, tanh] {
            assert_eq!(got[..7], [0.0, 0.0, 0.0, 0.0, 0.0, 1e4, f32::INFINITY], "{isa:?}");
            assert!(got[7].is_nan() && got[0].is_sign_negative() && got[3].is_sign_negative());
        }
    }
}

proptest! {
    #[test]
    fn a_result_depends_on_its_element_alone(seed: u64, at in 0..200_usize) {
        let x = numbers(200, seed);
        for isa in Isa::available() {
            for function in [
                exp_in_place_with,
                silu_in_place_with,
                |isa, x: &mut [f32]| gelu_in_place_with(isa, x, Gelu::Erf),
                |isa, x: &mut [f32]| gelu_in_place_with(isa, x, Gelu::Tanh),
            ] {
                let (mut all, mut one) = (x.clone(), [x[at]]);
                function(isa, &mut all);
                function(isa, &mut one);
                prop_assert_eq!(all[at].to_bits(), one[0].to_bits(), "{:?} {}", isa, at);
            }
        }
    }
}

#[test]
fn both_forms_of_each_function_give_the_same_bits_at_every_block_edge() {
    for len in edge_lengths() {
        let x = numbers(len, 8);
        let mut into = vec![0.0; len];
        for isa in Isa::available() {
            let mut place = x.clone();
            exp_in_place_with(isa, &mut place);
            exp_into_with(isa, &x, &mut into);
            assert_eq!(place, into, "exp {isa:?} {len}");
            place.copy_from_slice(&x);
            silu_in_place_with(isa, &mut place);
            silu_into_with(isa, &x, &mut into);
            assert_eq!(place, into, "silu {isa:?} {len}");
            for form in [Gelu::Erf, Gelu::Tanh] {
                place.copy_from_slice(&x);
                gelu_in_place_with(isa, &mut place, form);
                gelu_into_with(isa, &x, &mut into, form);
                assert_eq!(place, into, "{form:?} {isa:?} {len}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "exp: lengths differ")]
fn exp_refuses_different_lengths() {
    exp_into(&[0.0; 3], &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "silu: lengths differ")]
fn silu_refuses_different_lengths() {
    silu_into(&[0.0; 3], &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "gelu: lengths differ")]
fn gelu_refuses_different_lengths() {
    gelu_into(&[0.0; 3], &mut [0.0; 4], Gelu::Erf);
}
