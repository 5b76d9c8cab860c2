use proptest::prelude::*;
use squish_bench::golden::Golden;
use squish_kernels::{
    Isa, log_softmax_into,
    log_sum_exp::log_sum_exp_scalar,
    softmax::{
        log_softmax_in_place_with, log_softmax_into_with, softmax_in_place_with, softmax_into_with,
        softmax_scalar,
    },
    softmax_into,
};

use crate::common::{edge_lengths, length, numbers};

const PLACE: f64 = 1.0 / (1 << 23) as f64;

/// Softmax and log-softmax of `x` on every level, within the documented bounds of the exact ones.
fn assert_row(x: &[f32], softmax: &[f64], log_sum_exp: f64) {
    let most = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
    for isa in Isa::available() {
        let (mut y, mut z) = (vec![9.0; x.len()], vec![9.0; x.len()]);
        softmax_into_with(isa, x, &mut y);
        log_softmax_into_with(isa, x, &mut z);
        for (i, &x) in x.iter().enumerate() {
            if x == f32::NEG_INFINITY {
                assert!(y[i] == 0.0 && z[i] == x, "{isa:?}: {} {}", y[i], z[i]);
                continue;
            }
            let distance = most - f64::from(x);
            let bound = (16.0 + distance) * PLACE * softmax[i] + 2.0_f64.powi(-126);
            let error = (f64::from(y[i]) - softmax[i]).abs();
            assert!(error <= bound, "{isa:?}: softmax {} of {x}, not {}", y[i], softmax[i]);
            let error = (f64::from(z[i]) - (f64::from(x) - log_sum_exp)).abs();
            assert!(error <= (16.0 + distance) * PLACE, "{isa:?}: log {} of {x}", z[i]);
        }
        let mut place = x.to_vec();
        softmax_in_place_with(isa, &mut place);
        assert_eq!(place, y, "{isa:?}");
        place.copy_from_slice(x);
        log_softmax_in_place_with(isa, &mut place);
        assert_eq!(place, z, "{isa:?}");
    }
}

fn assert_by_definition(x: &[f32]) {
    assert_row(x, &softmax_scalar(x), log_sum_exp_scalar(x));
}

#[test]
fn golden_rows_are_torch_s_f64_results() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "ops");
    for set in ["4x256", "3x37", "wide"] {
        let tensor = |name| format!("rows.{set}.{name}");
        let width = golden.shape(&tensor("x"))[1];
        let (x, softmax) = (golden.f32(&tensor("x")), golden.f64(&tensor("softmax")));
        let sums = golden.f64(&tensor("logsumexp"));
        for ((x, softmax), sum) in x.chunks(width).zip(softmax.chunks(width)).zip(sums) {
            assert_row(x, softmax, sum);
        }
    }
}

#[test]
fn every_isa_agrees_with_the_definition_at_every_block_edge() {
    for len in edge_lengths() {
        assert_by_definition(&numbers(len, 9));
    }
}

proptest! {
    #[test]
    fn every_isa_agrees_with_the_definition(
        len in length(), seed: u64, scale in 0.1..50.0_f32, offset in -500.0..500.0_f32, masked in 0..4_usize,
    ) {
        let mut x: Vec<f32> = numbers(len, seed).iter().map(|x| x * scale + offset).collect();
        x.iter_mut().step_by(5 - masked).for_each(|x| *x = f32::NEG_INFINITY);
        assert_by_definition(&x);
    }
}

#[test]
fn masked_undefined_and_infinite_rows_follow_the_table() {
    for isa in Isa::available() {
        let softmax = |x: &[f32]| {
            let mut y = x.to_vec();
            softmax_in_place_with(isa, &mut y);
            y
        };
        let log_softmax = |x: &[f32]| {
            let mut y = x.to_vec();
            log_softmax_in_place_with(isa, &mut y);
            y
        };
        let all_nan = |x: Vec<f32>| x.iter().all(|x| x.is_nan());
        for len in [1, 7, 16, 33, 1024, 2500] {
            let masked = vec![f32::NEG_INFINITY; len];
            assert!(softmax(&masked).iter().all(|&x| x == 0.0), "{isa:?} {len}");
            assert_eq!(log_softmax(&masked), masked, "{isa:?} {len}");
            for at in [0, len / 2, len - 1] {
                // A payload in the low bits, where an exponent might be taken for it, and both signs.
                for nan in
                    [f32::NAN, -f32::NAN, f32::from_bits(0x7fc0_0155), f32::from_bits(0xffc0_0155)]
                {
                    for mut x in [numbers(len, 11), masked.clone(), vec![f32::INFINITY; len]] {
                        x[at] = nan;
                        assert!(all_nan(softmax(&x)), "{isa:?} {len} {at}");
                        assert!(all_nan(log_softmax(&x)), "{isa:?} {len} {at}");
                    }
                }
                let mut x = numbers(len, 12);
                x[at] = f32::INFINITY;
                assert!(all_nan(softmax(&x)) && all_nan(log_softmax(&x)), "{isa:?} {len} {at}");
            }
        }
        assert!(softmax(&[]).is_empty());
    }
}

#[test]
fn a_softmax_sums_to_one() {
    for len in [1, 50, 2048, 131_072] {
        for isa in Isa::available() {
            let mut x = numbers(len, 13);
            softmax_in_place_with(isa, &mut x);
            let sum: f64 = x.iter().map(|&x| f64::from(x)).sum();
            assert!(
                (sum - 1.0).abs() < 1e-5 && x.iter().all(|&x| x >= 0.0),
                "{isa:?} {len}: {sum}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "softmax: lengths differ")]
fn softmax_refuses_different_lengths() {
    softmax_into(&[0.0; 3], &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "log_softmax: lengths differ")]
fn log_softmax_refuses_different_lengths() {
    log_softmax_into(&[0.0; 3], &mut [0.0; 4]);
}
