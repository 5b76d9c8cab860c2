//! The activations of feed-forward layers, element by element.

use proptest::prelude::*;
use squish_bench::golden::Golden;
use squish_kernels::{
    Gelu, Isa,
    activation::{
        gelu_erf_scalar, gelu_in_place_with, gelu_into_with, gelu_tanh_scalar, silu_in_place_with,
        silu_into_with, silu_scalar,
    },
    gelu_into, silu_into,
};

use crate::common::{edge_lengths, numbers, ulps};

const SILU_ULPS: f64 = 4.0;
const GELU_ERF_ULPS: f64 = 6.0;

/// What rounding a subnormal exponential may cost, as documented.
fn underflow(x: f32) -> f64 {
    f64::from(x.abs()) * 2.0_f64.powi(-149)
}

/// The error of `y` in ULP, less what is allowed for underflow.
fn ulps_beyond_underflow(x: f32, y: f32, want: f64) -> f64 {
    let error = (f64::from(y) - want).abs();
    if error == 0.0 { 0.0 } else { ulps(y, want) * (1.0 - underflow(x) / error).max(0.0) }
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
                let bound = relative * want.abs() + 1e-15 * f64::from(x.abs()) + underflow(*x);
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
            let error = ulps_beyond_underflow(x, y, want);
            assert!(error <= SILU_ULPS, "{isa:?}: silu({x:e}) is {y:e}, {error} ULP off");
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
            let bound = tanh_error(x) * want.abs() + underflow(x);
            assert!(error <= bound, "{isa:?}: gelu({x:e}) is {y:e}, not {want:e}");
        }
    }
}

#[test]
fn gelu_keeps_its_digits_far_below_zero() {
    let x = arguments(14.5);
    for isa in Isa::available() {
        let mut y = x.clone();
        gelu_in_place_with(isa, &mut y, Gelu::Erf);
        for (&x, &y) in x.iter().zip(&y) {
            let want = gelu_erf_scalar(x);
            let error = ulps_beyond_underflow(x, y, want);
            assert!(error <= GELU_ERF_ULPS, "{isa:?}: gelu({x:e}) is {y:e}, {error} ULP off");
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
#[should_panic(expected = "silu: lengths differ")]
fn silu_refuses_different_lengths() {
    silu_into(&[0.0; 3], &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "gelu: lengths differ")]
fn gelu_refuses_different_lengths() {
    gelu_into(&[0.0; 3], &mut [0.0; 4], Gelu::Erf);
}
