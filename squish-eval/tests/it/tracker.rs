use std::collections::VecDeque;

use proptest::prelude::*;
use squish_bench::input::Rng;
use squish_eval::{
    Alert, Baseline, Detector, Edge, EvalError, Logits, Nll, PplTracker, TrackerOptions, Weighting,
};

fn nll(nats: &[f64]) -> Nll {
    let mut sum = Nll::default();
    for &nats in nats {
        sum.record(nats).expect("0 or more");
    }
    sum
}

fn tracker(window: usize, weighting: Weighting, detector: Detector) -> PplTracker {
    PplTracker::new(TrackerOptions { window, weighting, detector }).expect("sensible options")
}

/// A stream of records of equal tokens against a baseline of mean 2 and deviation 1; the edges with their records.
fn edges(detector: Detector, stream: impl IntoIterator<Item = f64>) -> Vec<(u64, Edge)> {
    let mut tracker = tracker(10, Weighting::Tokens, detector);
    tracker.set_baseline(Baseline::new(2.0, 1.0).expect("a baseline"));
    let alerts = stream.into_iter().filter_map(|nats| tracker.record_nll(nll(&[nats; 4])));
    alerts.map(|alert| (alert.record, alert.edge)).collect()
}

const CUSUM: Detector = Detector::Cusum { slack: 0.25, limit: 15.0 };
const EWMA: Detector = Detector::Ewma { lambda: 0.2, limit: 3.0 };
const RATIO: Detector = Detector::Ratio { raise: 1.5, clear: 1.2 };

proptest! {
    #[test]
    fn rolling_is_what_would_be_computed_anew_bit_for_bit(
        window in 1..12_usize,
        records in prop::collection::vec(prop::collection::vec(prop_oneof![9 => 0.0..30.0_f64, 1 => Just(f64::INFINITY)], 0..5), 0..60),
    ) {
        let mut by_tokens = tracker(window, Weighting::Tokens, CUSUM);
        let mut by_records = tracker(window, Weighting::Records, CUSUM);
        let mut kept: VecDeque<Nll> = VecDeque::new();
        for record in records.iter().map(|record| nll(record)) {
            by_tokens.record_nll(record);
            by_records.record_nll(record);
            if record.n_tokens() > 0 {
                kept.push_back(record);
            }
            if kept.len() > window {
                kept.pop_front();
            }
            let sum: Nll = kept.iter().copied().sum();
            prop_assert_eq!(by_tokens.rolling(), sum);
            prop_assert_eq!(by_tokens.rolling_perplexity(), sum.perplexity());
            let mut anew = tracker(window, Weighting::Records, CUSUM);
            for &record in kept.iter().rev() {
                anew.record_nll(record);
            }
            prop_assert_eq!(by_records.rolling_perplexity(), anew.rolling_perplexity());
        }
    }

    #[test]
    fn cusum_is_raised_where_the_closed_form_says(shift in 0.3..3.0_f64, before in 0..20_usize) {
        // Records of 4 tokens have half of the deviation, so that z is twice the shift.
        let z: f64 = 2.0 * shift;
        let index = before as u64 + (15.0 / (z - 0.25)).floor() as u64;
        let stream = std::iter::repeat_n(2.0, before).chain(std::iter::repeat_n(2.0 + shift, 100));
        // Where the sum ends on the limit, rounding decides.
        prop_assume!((15.0 / (z - 0.25)).fract() > 1e-6);
        prop_assert_eq!(edges(CUSUM, stream), [(index, Edge::Raised)]);
    }
}

#[test]
fn tokens_weigh_alike_and_records_only_if_asked() {
    let (short, long) = (nll(&[1000_f64.ln()]), nll(&[2_f64.ln(); 99]));
    for (weighting, want) in [(Weighting::Tokens, 2.1282), (Weighting::Records, 44.7214)] {
        let mut tracker = tracker(100, weighting, CUSUM);
        assert_eq!(tracker.rolling_perplexity(), None);
        tracker.record_nll(short);
        tracker.record_nll(long);
        let got = tracker.rolling_perplexity().expect("records");
        assert!((got - want).abs() < 1e-4, "{weighting:?}: {got}");
    }
}

#[test]
fn an_impossible_token_leaves_with_its_record() {
    for weighting in [Weighting::Tokens, Weighting::Records] {
        let mut tracker = tracker(3, weighting, CUSUM);
        tracker.record_nll(nll(&[1.0, f64::INFINITY]));
        tracker.record_nll(nll(&[1.0]));
        tracker.record_nll(nll(&[1.0]));
        assert_eq!(tracker.rolling_perplexity(), Some(f64::INFINITY), "{weighting:?}");
        tracker.record_nll(nll(&[1.0]));
        assert_eq!(tracker.rolling_perplexity(), Some(1_f64.exp()), "{weighting:?}");
    }
}

#[test]
fn rows_of_logits_are_recorded_or_refused_without_a_trace() {
    let mut tracker = tracker(4, Weighting::Tokens, CUSUM);
    let logits = [0.0_f32; 8];
    let rows = Logits::new(&logits, 4).expect("two rows");
    assert_eq!(tracker.record(rows, &[Some(3), None]), Ok(None));
    assert!((tracker.rolling_perplexity().expect("a record") - 4.0).abs() < 1e-6);
    let before = tracker.rolling();
    assert!(tracker.record(rows, &[Some(0), Some(4)]).is_err());
    let nan = [f32::NAN; 4];
    let error = tracker.record(Logits::new(&nan, 4).expect("a row"), &[Some(0)]);
    assert_eq!(error, Err(EvalError::Nan { row: 0 }));
    // Nor do records without a token count.
    assert_eq!(tracker.record(rows, &[None, None]), Ok(None));
    assert_eq!((tracker.rolling(), tracker.n_records()), (before, 1));
}

#[test]
fn without_a_rise_or_a_baseline_there_is_no_alert() {
    for detector in [CUSUM, EWMA, RATIO] {
        assert_eq!(edges(detector, vec![2.0; 1000]), []);
        let mut tracker = tracker(5, Weighting::Tokens, detector);
        for _ in 0..100 {
            assert_eq!(tracker.record_nll(nll(&[50.0])), None, "{detector:?}");
        }
        // What is in the window becomes the baseline.
        tracker.record_nll(nll(&[40.0, 60.0]));
        tracker.set_baseline(Baseline::of(tracker.rolling()).expect("tokens"));
        assert_eq!(tracker.record_nll(nll(&[50.0])), None, "{detector:?}");
        assert!(!tracker.is_raised());
    }
}

#[test]
fn a_rise_has_one_alert_when_it_begins_and_one_when_it_ends() {
    use Edge::{Cleared, Raised};

    // A rise of 3 deviations of a record over 50 records, twice.
    let stream = || {
        let normal = std::iter::repeat_n(2.0, 150);
        let raised = std::iter::repeat_n(3.5, 50);
        normal.clone().chain(raised.clone()).chain(normal.clone()).chain(raised).chain(normal)
    };
    // CUSUM: 15 / 2.75 records up, 15 / 0.25 down.
    assert_eq!(
        edges(CUSUM, stream()),
        [(155, Raised), (259, Cleared), (355, Raised), (459, Cleared)]
    );
    // The ratio of windows of 10 records passes 1.5 with 3 raised ones, and is below 1.2 with 1.
    assert_eq!(
        edges(RATIO, stream()),
        [(152, Raised), (208, Cleared), (352, Raised), (408, Cleared)]
    );
    // EWMA: 3 (1 − 0.8^n) above 1 with 2 records. It comes down to 0 and not below: a little less is over.
    let stream = stream().map(|nats| if nats == 2.0 { 1.999 } else { nats });
    let got = edges(EWMA, stream);
    assert_eq!(
        got.iter().map(|edge| edge.1).collect::<Vec<_>>(),
        [Raised, Cleared, Raised, Cleared]
    );
    assert_eq!((got[0].0, got[2].0), (151, 351));
    assert!(got[1].0 < 240, "{got:?}");
}

#[test]
fn an_alert_says_what_was_compared() {
    let mut tracker = tracker(10, Weighting::Tokens, RATIO);
    tracker.set_baseline(Baseline::new(2.0, 1.0).expect("a baseline"));
    tracker.record_nll(nll(&[2.0]));
    let alert = tracker.record_nll(nll(&[4.0])).expect("a rise");
    let near = |got: f64, want: f64| (got - want).abs() < 1e-9;
    let Alert { edge, record, statistic, rolling, baseline, .. } = alert;
    assert_eq!((edge, record), (Edge::Raised, 1));
    assert!(
        near(statistic, 1_f64.exp()) && near(rolling, 3_f64.exp()) && near(baseline, 2_f64.exp())
    );
}

#[test]
fn an_impossible_token_raises_and_is_over() {
    for detector in [CUSUM, EWMA] {
        let stream = [2.0, f64::INFINITY].into_iter().chain(std::iter::repeat_n(1.9, 100));
        let got = edges(detector, stream);
        assert!(got.len() == 2 && got[0] == (1, Edge::Raised), "{detector:?}: {got:?}");
    }
    let stream = [2.0, f64::INFINITY].into_iter().chain(std::iter::repeat_n(2.0, 100));
    // Ten records later it leaves the window.
    assert_eq!(edges(RATIO, stream), [(1, Edge::Raised), (11, Edge::Cleared)]);
}

/// Nats of skewed tails as those of text have: a gamma distribution of shape 1 (mean and deviation `scale`).
fn exponential(rng: &mut Rng, scale: f64) -> f64 {
    -scale * (1.0 - f64::from(rng.uniform())).ln()
}

#[test]
fn the_default_detector_is_quiet_for_thousands_of_records_and_finds_a_tenth_of_a_nat() {
    let mut rng = Rng::new(5);
    let mut record = |shift: f64| {
        nll(&std::array::from_fn::<f64, 64, _>(|_| exponential(&mut rng, 2.3) + shift))
    };
    let (mut delays, mut n_false) = (Vec::new(), 0);
    for _ in 0..20 {
        let mut tracker = PplTracker::new(TrackerOptions::default()).expect("the default");
        tracker.set_baseline(Baseline::new(2.3, 2.3).expect("a baseline"));
        n_false += (0..500).filter_map(|_| tracker.record_nll(record(0.0))).count();
        let delay = (0..5000).position(|_| {
            tracker.record_nll(record(0.1)).is_some_and(|alert| alert.edge == Edge::Raised)
        });
        delays.push(delay.expect("a rise that is found"));
    }
    delays.sort_unstable();
    assert!(n_false <= 4, "{n_false} alerts in 10 000 records");
    assert!((20..300).contains(&delays[10]), "{delays:?}");
}

#[test]
fn a_reset_forgets_everything_but_the_baseline() {
    let mut tracker = tracker(3, Weighting::Records, CUSUM);
    tracker.set_baseline(Baseline::new(2.0, 1.0).expect("a baseline"));
    for _ in 0..9 {
        tracker.record_nll(nll(&[20.0]));
    }
    assert!(tracker.is_raised() && tracker.n_records() == 9);
    tracker.reset();
    assert!(!tracker.is_raised() && tracker.n_records() == 0);
    assert_eq!((tracker.rolling(), tracker.rolling_perplexity()), (Nll::default(), None));
    let alert = tracker.record_nll(nll(&[20.0])).expect("the baseline is still there");
    assert_eq!((alert.record, alert.edge), (0, Edge::Raised));
}

#[test]
fn options_and_baselines_that_make_no_sense_are_refused() {
    let refused = |window, detector| {
        let options = TrackerOptions { window, detector, ..TrackerOptions::default() };
        match PplTracker::new(options) {
            Err(EvalError::Value { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(0, CUSUM), "window");
    for (detector, what) in [
        (Detector::Ratio { raise: 0.0, clear: 0.0 }, "raise"),
        (Detector::Ratio { raise: 1.5, clear: 1.6 }, "clear"),
        (Detector::Ewma { lambda: 0.0, limit: 3.0 }, "lambda"),
        (Detector::Ewma { lambda: 1.1, limit: 3.0 }, "lambda"),
        (Detector::Ewma { lambda: 0.5, limit: f64::INFINITY }, "limit"),
        (Detector::Cusum { slack: -0.1, limit: 3.0 }, "slack"),
        (Detector::Cusum { slack: 0.5, limit: f64::NAN }, "limit"),
    ] {
        assert_eq!(refused(5, detector), what);
    }
    for (mean, std_dev) in [(f64::NAN, 1.0), (-1.0, 1.0), (2.0, 0.0), (2.0, f64::INFINITY)] {
        assert!(Baseline::new(mean, std_dev).is_err(), "{mean} {std_dev}");
    }
    for nats in [&[][..], &[2.0], &[2.0, 2.0], &[1.0, 2.0, f64::INFINITY]] {
        assert!(Baseline::of(nll(nats)).is_err(), "{nats:?}");
    }
}
