//! Error statistics: closed forms, and what scaling and permuting leave as it is.

use proptest::prelude::*;
use squish_quant::{Error, error_stats};

#[test]
fn closed_forms_hold() {
    // An error of 1/8 on every element of a sine: SNR 10 log10(0.5 / (1/64)) over whole periods.
    let n = 4096;
    let x: Vec<f32> = (0..n)
        .map(|i| (std::f64::consts::TAU * 16.0 * f64::from(i) / f64::from(n)).sin() as f32)
        .collect();
    let y: Vec<f32> = x.iter().map(|x| x + 0.125).collect();
    let stats = error_stats(&x, &y).unwrap();
    assert!((stats.mse - 1.0 / 64.0).abs() < 1e-8, "{stats}");
    assert!((stats.snr_db - 10.0 * 32f64.log10()).abs() < 1e-5, "{stats}");
    assert!((stats.max_abs - 0.125).abs() < 1e-6, "{stats}");
    assert!((stats.cosine - (0.5f64 / (0.5 + 1.0 / 64.0)).sqrt()).abs() < 1e-6, "{stats}");

    let x = [1.0, -2.0, 4.0, -8.0, 16.0, 32.0, 0.5, 0.25, 128.0];
    let stats = error_stats(&x, &x.map(|x| x * 1.5)).unwrap();
    assert_eq!((stats.relative, stats.cosine, stats.max_abs), (0.5, 1.0, 64.0));
    assert!((stats.snr_db - 20.0 * 2f64.log10()).abs() < 1e-12, "{stats}");
}

#[test]
fn uniform_noise_of_a_step_has_the_variance_of_a_twelfth() {
    let step = 2f64.powi(-7);
    let x: Vec<f32> =
        (0..1 << 16).map(|i| (f64::from(i) * 0.618_033_988_749_895).fract() as f32).collect();
    let y: Vec<f32> = x.iter().map(|&x| ((f64::from(x) / step).round() * step) as f32).collect();
    let stats = error_stats(&x, &y).unwrap();
    assert!((stats.mse / (step * step / 12.0) - 1.0).abs() < 0.01, "{stats}");
    assert!(stats.max_abs <= step / 2.0 && stats.max_abs > 0.49 * step, "{stats}");
}

#[test]
fn nothing_zeros_and_equals_have_their_rules() {
    let stats = |x: &[f32], y: &[f32]| error_stats(x, y).unwrap();
    for equal in [stats(&[], &[]), stats(&[0.0; 9], &[-0.0; 9])] {
        assert_eq!(
            (equal.mse, equal.snr_db, equal.cosine, equal.max_abs, equal.relative),
            (0.0, f64::INFINITY, 1.0, 0.0, 0.0)
        );
    }
    let of_zeros = stats(&[0.0, 0.0], &[3.0, 0.0]);
    assert_eq!(
        (of_zeros.snr_db, of_zeros.cosine, of_zeros.relative, of_zeros.mse),
        (f64::NEG_INFINITY, 0.0, 0.0, 4.5)
    );
    let to_zeros = stats(&[3.0, -1.0], &[0.0, 0.0]);
    assert_eq!((to_zeros.snr_db, to_zeros.cosine, to_zeros.relative), (0.0, 0.0, 1.0));
    assert_eq!(stats(&[0.0, 2.0], &[1.0, 3.0]).relative, 0.5);
}

#[test]
fn unequal_lengths_and_what_is_not_finite_are_refused() {
    assert_eq!(
        error_stats(&[1.0], &[]),
        Err(Error::Length { what: "approximation", expected: 1, actual: 0 })
    );
    let infinite = Err(Error::NonFinite { index: 10, value: f32::INFINITY });
    let mut bad = [0.5; 11];
    bad[10] = f32::INFINITY;
    assert_eq!(error_stats(&bad, &[0.5; 11]), infinite);
    assert_eq!(error_stats(&[0.5; 11], &bad), infinite);
    bad[3] = f32::NAN;
    assert!(
        matches!(error_stats(&[0.5; 11], &bad), Err(Error::NonFinite { index: 3, value }) if value.is_nan())
    );
}

#[test]
fn the_largest_floats_do_not_overflow_the_sums() {
    let stats = error_stats(&[f32::MAX; 100], &[-f32::MAX; 100]).unwrap();
    assert_eq!(
        (stats.cosine, stats.relative, stats.max_abs),
        (-1.0, 2.0, 2.0 * f64::from(f32::MAX))
    );
    assert!((stats.snr_db + 20.0 * 2f64.log10()).abs() < 1e-9, "{stats}");
}

fn pairs() -> impl Strategy<Value = Vec<(f32, f32)>> {
    prop::collection::vec((-1e3f32..1e3, -1e3f32..1e3), 1..100)
}

proptest! {
    #[test]
    fn one_pass_gives_the_definitions(pairs in pairs()) {
        let (x, y): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        let stats = error_stats(&x, &y).unwrap();
        let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(&y).map(|(&x, &y)| f(x.into(), y.into())).sum::<f64>();
        let error = sum(&|x, y| (y - x).powi(2));
        let close = |got: f64, want: f64| (got - want).abs() <= 1e-12 * want.abs().max(1e-3);
        prop_assert!(close(stats.mse, error / x.len() as f64));
        prop_assert!(close(stats.snr_db, 10.0 * (sum(&|x, _| x * x) / error).log10()));
        prop_assert!(close(stats.relative, sum(&|x, y| ((y - x) / x).abs()) / x.len() as f64));
        let norms = (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();
        prop_assert!(close(stats.cosine, sum(&|x, y| x * y) / norms));
    }

    #[test]
    fn a_common_power_of_two_changes_only_absolute_errors(pairs in pairs(), exponent in -20i32..20) {
        let factor = (exponent as f32).exp2();
        let (x, y): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        let scaled = |x: &[f32]| x.iter().map(|x| x * factor).collect::<Vec<_>>();
        let (stats, after) = (error_stats(&x, &y).unwrap(), error_stats(&scaled(&x), &scaled(&y)).unwrap());
        prop_assert_eq!((stats.snr_db, stats.cosine, stats.relative), (after.snr_db, after.cosine, after.relative));
        prop_assert_eq!(stats.max_abs * f64::from(factor), after.max_abs);
        prop_assert_eq!(stats.mse * f64::from(factor).powi(2), after.mse);
    }
}
