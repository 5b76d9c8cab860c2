use half::{bf16, f16};
use proptest::prelude::*;
use squish_bench::golden::Golden;
use squish_kernels::{
    Isa, Real,
    log_sum_exp::{log_sum_exp_f64_with, log_sum_exp_scalar, log_sum_exp_with},
};

use crate::common::{edge_lengths, length, numbers};

/// The documented error of the `f64`.
const BOUND: f64 = 1.0 / (1 << 20) as f64;

/// Both forms of `x` on every level, and the wide form of `x` rounded to 16 bits, within the documented bounds of the exact result.
fn assert_row(x: &[f32], want: f64) {
    for isa in Isa::available() {
        let (wide, narrow) = (log_sum_exp_f64_with(isa, x), log_sum_exp_with(isa, x));
        assert!(wide == want || (wide - want).abs() <= BOUND, "{isa:?}: {wide} {want}");
        assert_eq!(narrow, wide as f32, "{isa:?}");
        assert_rounded::<bf16>(isa, x);
        assert_rounded::<f16>(isa, x);
    }
}

fn assert_rounded<T: Real>(isa: Isa, x: &[f32]) {
    let rounded: Vec<T> = x.iter().map(|&x| T::from_f32(x)).collect();
    let back: Vec<f32> = rounded.iter().map(|x| x.to_f32()).collect();
    // In an f16 a large number is infinite.
    let (got, want) = (log_sum_exp_f64_with(isa, &rounded), log_sum_exp_scalar(&back));
    assert!(got == want || (got - want).abs() <= BOUND, "{isa:?}: {got} {want}");
}

#[test]
fn golden_rows_are_torch_s_f64_results() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "ops");
    for set in ["4x256", "3x37", "wide"] {
        let (x, want) = (format!("rows.{set}.x"), format!("rows.{set}.logsumexp"));
        let width = golden.shape(&x)[1];
        for (x, want) in golden.f32(&x).chunks(width).zip(golden.f64(&want)) {
            assert_row(x, want);
        }
    }
}

#[test]
fn every_isa_agrees_with_the_definition_at_every_block_edge() {
    for len in edge_lengths() {
        let x = numbers(len, 9);
        assert_row(&x, log_sum_exp_scalar(&x));
    }
}

proptest! {
    #[test]
    fn every_isa_agrees_with_the_definition(
        len in length(), seed: u64, scale in 0.1..50.0_f32, offset in -500.0..500.0_f32, masked in 0..4_usize,
    ) {
        let mut x: Vec<f32> = numbers(len, seed).iter().map(|x| x * scale + offset).collect();
        x.iter_mut().step_by(5 - masked).for_each(|x| *x = f32::NEG_INFINITY);
        assert_row(&x, log_sum_exp_scalar(&x));
    }
}

#[test]
fn log_sum_exp_follows_a_maximum_that_rises_or_falls_by_any_amount() {
    for step in [1.0_f32, 30.0, 39.9, 40.1, 41.0, 100.0, 1e4, 1e30] {
        for sign in [1.0, -1.0] {
            // One level per block of 1024, and one level per element.
            for block in [1, 700, 1024] {
                let x: Vec<f32> = (0..5000).map(|i| sign * step * (i / block) as f32).collect();
                let want = log_sum_exp_scalar(&x);
                for isa in Isa::available() {
                    let got = log_sum_exp_f64_with(isa, &x);
                    assert!(
                        (got - want).abs() <= BOUND,
                        "{isa:?} {step} {sign} {block}: {got} {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_follows_masked_blocks_counts_in_full() {
    for level in [-1e30_f32, -2000.0, -80.0, 0.0, 80.0, 2000.0] {
        for masked in [1, 1023, 1024, 1025, 3000] {
            let mut x = vec![f32::NEG_INFINITY; masked];
            x.extend(numbers(1500, 10).iter().map(|x| x + level));
            let want = log_sum_exp_scalar(&x);
            for isa in Isa::available() {
                let got = log_sum_exp_f64_with(isa, &x);
                assert!((got - want).abs() <= BOUND, "{isa:?} {level} {masked}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_long_row_of_equal_logits_sums_without_drift() {
    let x = vec![3.25; 300_000];
    let want = 3.25 + 300_000.0_f64.ln();
    for isa in Isa::available() {
        let got = log_sum_exp_f64_with(isa, &x);
        assert!((got - want).abs() <= BOUND, "{isa:?}: {got} {want}");
    }
}

#[test]
fn masked_undefined_and_infinite_rows_follow_the_table() {
    for isa in Isa::available() {
        assert_eq!(log_sum_exp_f64_with::<f32>(isa, &[]), f64::NEG_INFINITY);
        for len in [1, 7, 16, 33, 1024, 2500] {
            let masked = vec![f32::NEG_INFINITY; len];
            assert_eq!(log_sum_exp_f64_with(isa, &masked), f64::NEG_INFINITY, "{isa:?} {len}");
            for at in [0, len / 2, len - 1] {
                // A payload in the low bits, where an exponent might be taken for it, and both signs.
                for nan in
                    [f32::NAN, -f32::NAN, f32::from_bits(0x7fc0_0155), f32::from_bits(0xffc0_0155)]
                {
                    for mut x in [numbers(len, 11), masked.clone(), vec![f32::INFINITY; len]] {
                        x[at] = nan;
                        assert!(log_sum_exp_f64_with(isa, &x).is_nan(), "{isa:?} {len} {at}");
                    }
                }
                for mut x in [numbers(len, 12), masked.clone()] {
                    x[at] = f32::INFINITY;
                    assert_eq!(log_sum_exp_f64_with(isa, &x), f64::INFINITY, "{isa:?} {len} {at}");
                }
            }
        }
    }
}

#[test]
fn rows_of_16_bits_have_their_own_infinities_and_nans() {
    for isa in Isa::available() {
        for len in [1, 31, 70, 1500] {
            let mut x = vec![f16::ONE; len];
            x[len - 1] = f16::INFINITY;
            assert_eq!(log_sum_exp_f64_with(isa, &x), f64::INFINITY, "{isa:?} {len}");
            x[0] = f16::NAN;
            assert!(log_sum_exp_f64_with(isa, &x).is_nan(), "{isa:?} {len}");
            let masked = vec![bf16::NEG_INFINITY; len];
            assert_eq!(log_sum_exp_f64_with(isa, &masked), f64::NEG_INFINITY, "{isa:?} {len}");
        }
    }
}

#[test]
fn a_difference_that_no_f32_holds_is_kept() {
    for isa in Isa::available() {
        assert_eq!(log_sum_exp_f64_with(isa, &[1e4_f32, 0.0, -1e4]), 1e4, "{isa:?}");
        let most = 3.4e38_f32;
        assert_eq!(log_sum_exp_f64_with(isa, &[most, -most]), f64::from(most), "{isa:?}");
        let pair = log_sum_exp_f64_with(isa, &[1e6_f32, 1e6]) - 1e6;
        assert!((pair - std::f64::consts::LN_2).abs() <= BOUND, "{isa:?}: {pair}");
    }
}
