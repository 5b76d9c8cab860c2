use proptest::prelude::*;
use squish_eval::{EvalError, KlReport, KlStats};

use crate::common::{as_tokens, golden, numbers};

/// Rows, the other model's, and targets.
type Rows = (Vec<Vec<f32>>, Vec<Vec<f32>>, Vec<u32>);

fn golden_rows() -> Rows {
    let golden = golden();
    let width = golden.shape("kl.base")[1];
    let rows = |name| golden.f32(name).chunks(width).map(<[f32]>::to_vec).collect();
    (rows("kl.base"), rows("kl.other"), as_tokens(&golden.i64("kl.targets")))
}

fn stats((base, other, targets): &Rows) -> KlStats {
    let mut stats = KlStats::default();
    for ((base, other), target) in base.iter().zip(other).zip(targets) {
        stats.push(base, other, *target).expect("distributions");
    }
    stats
}

fn report(rows: &Rows) -> KlReport {
    stats(rows).report().expect("rows")
}

#[test]
fn divergences_of_the_golden_rows_are_torch_s() {
    let golden = golden();
    let rows = golden_rows();
    let values = golden.f64("kl.values");
    let deltas = golden.f64("kl.delta_p");
    for (i, (&want, &delta)) in values.iter().zip(&deltas).enumerate() {
        let one = (vec![rows.0[i].clone()], vec![rows.1[i].clone()], vec![rows.2[i]]);
        let got = report(&one);
        let kl = got.kl.mean.value;
        // Absolute and small beside the steps of llama.cpp's file; relative where the rows hardly differ.
        assert!(
            (kl - want).abs() <= 1e-5 * want + 1e-9 * want.sqrt() + 1e-12,
            "row {i}: {kl} {want}"
        );
        assert!((got.delta_p.mean.value - delta).abs() < 1e-6, "row {i}");
    }
}

#[test]
fn the_report_of_the_golden_rows_is_numpy_s() {
    let golden = golden();
    let got = report(&golden_rows());
    let percentiles = [0.1, 1.0, 5.0, 10.0, 50.0, 90.0, 95.0, 99.0, 99.9];
    let perplexities = got.perplexities.expect("no target is impossible");
    let figures = percentiles.map(|percent| got.kl.percentile(percent / 100.0));
    let figures = figures.into_iter().chain([
        got.kl.mean.value,
        got.kl.mean.std_err.expect("rows"),
        got.delta_p_rms.value,
        perplexities.log_ratio.value,
        perplexities.log_ratio.std_err.expect("rows"),
        perplexities.correlation.expect("rows that differ"),
    ]);
    for (i, (got, want)) in figures.zip(golden.f64("kl.summary")).enumerate() {
        assert!((got - want).abs() <= 1e-5 * want.abs() + 1e-7, "{i}: {got} {want}");
    }
    let ratio = perplexities.ratio;
    assert!((ratio.value - perplexities.log_ratio.value.exp()).abs() < 1e-12);
    let (base, other) = (got.base.perplexity().unwrap(), got.other.perplexity().unwrap());
    assert!((perplexities.difference.value - (other - base)).abs() < 1e-9);
    assert!((ratio.value - other / base).abs() < 1e-9);
}

#[test]
fn the_published_rows_have_the_published_figures() {
    let base = [
        [2.0, 0.5, -1.0, 0.0, -3.0, 1.5, -20.0],
        [0.0; 7],
        [10.0, -10.0, 0.0, 3.0, 3.0, -30.0, 1.0],
    ];
    let change = [
        [0.1, -0.2, 0.0, 0.3, 0.0, -0.1, 5.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1],
        [-0.5, 0.5, 0.0, 0.0, 0.25, 0.0, 0.0],
    ];
    let expected =
        [(0.0090596, -0.0223742, 1.0), (0.00062695, 0.0126875, 0.0), (0.00049293, 0.0005878, 1.0)];
    for (i, (kl, delta, top)) in expected.into_iter().enumerate() {
        let other: Vec<f32> = base[i].iter().zip(change[i]).map(|(a, b)| a + b).collect();
        let rows = (vec![base[i].to_vec()], vec![other], vec![[1, 6, 3][i]]);
        let got = report(&rows);
        assert!((got.kl.mean.value - kl).abs() < 5e-8, "{i}: {}", got.kl.mean.value);
        assert!((got.delta_p.mean.value - delta).abs() < 1e-6, "{i}");
        assert_eq!(got.same_top.value, top, "{i}");
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let (base, _, targets) = golden_rows();
    let got = report(&(base.clone(), base, targets));
    assert_eq!(
        (got.kl.percentile(1.0), got.delta_p_rms.value, got.same_top.value),
        (0.0, 0.0, 1.0)
    );
    assert_eq!((got.kl.mean.std_err, got.delta_p_rms.std_err), (Some(0.0), Some(0.0)));
    let perplexities = got.perplexities.expect("no target is impossible");
    assert_eq!((perplexities.log_ratio.value, perplexities.difference.value), (0.0, 0.0));
    assert!(perplexities.log_ratio.std_err.expect("rows") < 1e-6);
    assert!((perplexities.correlation.expect("rows that differ") - 1.0).abs() < 1e-6);
}

proptest! {
    #[test]
    fn reports_are_the_same_bits_in_every_order_and_grouping(seed: u64, cut in 0..30_usize) {
        let row = |i| numbers(17, seed.wrapping_add(i)).iter().map(|z| z * 4.0).collect::<Vec<f32>>();
        let rows: Rows = ((0..30).map(row).collect(), (100..130).map(row).collect(), (0..30).map(|i| i % 17).collect());
        let mut back = rows.clone();
        back.0.reverse();
        back.1.reverse();
        back.2.reverse();
        let whole = report(&rows);
        prop_assert_eq!(&report(&back), &whole);
        let part = |range: std::ops::Range<usize>| stats(&(rows.0[range.clone()].to_vec(), rows.1[range.clone()].to_vec(), rows.2[range].to_vec()));
        let mut merged = part(cut..30);
        merged.merge(&part(0..cut));
        prop_assert_eq!(merged.report(), Some(whole));
    }
}

#[test]
fn what_is_impossible_to_one_model_is_infinitely_far() {
    let mut stats = KlStats::default();
    stats.push(&[0.0, 0.0], &[0.0, 0.0], 0).expect("distributions");
    stats.push(&[0.0, 0.0], &[0.0, f32::NEG_INFINITY], 1).expect("distributions");
    let report = stats.report().expect("tokens");
    assert_eq!((report.kl.mean.value, report.kl.mean.std_err), (f64::INFINITY, None));
    assert_eq!((report.kl.percentile(0.0), report.kl.percentile(1.0)), (0.0, f64::INFINITY));
    assert!((report.delta_p.mean.value - -0.25).abs() < 1e-6);
    assert_eq!((report.perplexities, report.other.n_impossible()), (None, 1));
}

#[test]
fn ties_have_the_same_top_only_where_the_first_of_them_is_the_same() {
    let top = |base: &[f32], other: &[f32]| {
        let mut stats = KlStats::default();
        stats.push(base, other, 0).expect("distributions");
        stats.report().expect("a token").same_top.value
    };
    assert_eq!(top(&[1.0, 1.0, 0.0], &[1.0, 1.0, 0.5]), 1.0);
    assert_eq!(top(&[1.0, 1.0, 0.0], &[0.9, 1.0, 0.5]), 0.0);
    assert_eq!(top(&[0.0, -0.0], &[-0.0, 0.0]), 1.0);
}

#[test]
fn one_token_has_no_errors_and_none_no_report() {
    assert_eq!(KlStats::with_capacity(5).report(), None);
    let mut stats = KlStats::default();
    stats.push(&[0.0, 1.0], &[0.5, 1.0], 0).expect("distributions");
    let report = stats.report().expect("a token");
    let perplexities = report.perplexities.expect("possible");
    let errors = [
        report.kl.mean,
        report.same_top,
        report.delta_p_rms,
        perplexities.ratio,
        perplexities.difference,
    ];
    assert!(errors.iter().all(|estimate| estimate.std_err.is_none() && estimate.value.is_finite()));
    assert_eq!((perplexities.correlation, report.kl.sorted().len()), (None, 1));
    assert_eq!(report.kl.percentile(0.3), report.kl.mean.value);
}

#[test]
fn rows_that_are_refused_leave_no_trace() {
    let mut stats = KlStats::default();
    stats.push(&[0.0, 1.0], &[0.5, 1.0], 0).expect("distributions");
    let before = stats.report();
    let nan = EvalError::Nan { row: 1 };
    let good = [0.0, 1.0];
    assert_eq!(stats.push(&[f32::NAN, 0.0], &good, 0), Err(nan));
    assert_eq!(stats.push(&good, &[f32::NAN, 0.0], 0), Err(nan));
    assert_eq!(stats.push_log_probs(&[f32::NAN, 0.0], &good, 0), Err(nan));
    let infinite = EvalError::Infinite { row: 1 };
    assert_eq!(stats.push(&good, &[f32::INFINITY, 0.0], 0), Err(infinite));
    assert_eq!(stats.push_log_probs(&[f32::INFINITY, 0.0], &good, 0), Err(infinite));
    let masked = EvalError::AllMasked { row: 1 };
    assert_eq!(stats.push(&good, &[f32::NEG_INFINITY; 2], 0), Err(masked));
    assert_eq!(stats.push_log_probs(&[f32::NEG_INFINITY; 2], &good, 0), Err(masked));
    let length = EvalError::Length { what: "other", expected: 2, actual: 1 };
    assert_eq!(stats.push(&good, &[0.0], 0), Err(length));
    assert_eq!(stats.push_log_probs(&good, &[0.0], 0), Err(length));
    let target = EvalError::Target { row: 1, target: 2, vocab_size: 2 };
    assert_eq!(stats.push(&good, &good, 2), Err(target));
    assert_eq!(stats.push_log_probs(&good, &good, 2), Err(target));
    assert_eq!(stats.report(), before);
}

#[test]
#[should_panic(expected = "percentile: 1.5 is no fraction")]
fn a_percentile_beyond_the_numbers_is_a_mistake() {
    let mut stats = KlStats::default();
    stats.push(&[0.0], &[0.0], 0).expect("distributions");
    let _ = stats.report().expect("a token").kl.percentile(1.5);
}
