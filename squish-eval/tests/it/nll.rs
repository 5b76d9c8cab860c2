use proptest::prelude::*;
use squish_eval::{EvalError, Nll};

fn nll(nats: &[f64]) -> Nll {
    let mut sum = Nll::default();
    for &nats in nats {
        sum.record(nats).expect("0 or more");
    }
    sum
}

/// Likelihoods of every size, impossible ones among them.
fn any_nats() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => 0.0..30.0_f64,
        1 => 0.0..9e6_f64,
        1 => prop::sample::select(vec![0.0, 1e-13, 8_388_607.999, 8_388_608.0, 1e300, f64::INFINITY]),
    ]
}

proptest! {
    #[test]
    fn sums_are_the_same_bits_in_every_order_and_grouping(
        (nats, order) in prop::collection::vec(any_nats(), 0..40)
            .prop_flat_map(|nats| (Just(nats.clone()), Just(nats).prop_shuffle())),
        cuts in prop::collection::vec(0..40_usize, 3),
    ) {
        let whole = nll(&nats);
        prop_assert_eq!(whole, nll(&order));
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (nats.len() + 1)).chain([0, nats.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<Nll> = cuts.windows(2).map(|cut| nll(&nats[cut[0]..cut[1]])).collect();
        let left = parts.iter().copied().sum::<Nll>();
        let right = parts.iter().rev().fold(Nll::default(), |sum, &part| part + sum);
        prop_assert_eq!((left, right), (whole, whole));
    }

    #[test]
    fn figures_are_those_of_the_plain_formulas(nats in prop::collection::vec(0.0..40.0_f64, 2..60)) {
        let got = nll(&nats);
        let n = nats.len() as f64;
        let mean = nats.iter().sum::<f64>() / n;
        let variance = nats.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let near = |got: Option<f64>, want: f64| (got.unwrap() - want).abs() <= 1e-9 * want.max(1.0);
        prop_assert!(near(got.mean(), mean) && near(got.perplexity(), mean.exp()));
        prop_assert!(near(got.bits_per_token(), mean / 2_f64.ln()));
        prop_assert!(near(got.bits_per_byte(77), mean * n / 77.0 / 2_f64.ln()));
        prop_assert!(near(got.byte_perplexity(77), (mean * n / 77.0).exp()));
        prop_assert!(near(got.word_perplexity(50), (mean * n / 50.0).exp()));
        prop_assert!((got.std_err().unwrap().powi(2) - variance / (n - 1.0)).abs() <= 1e-9);
    }
}

#[test]
fn an_impossible_token_makes_everything_infinite_but_the_nats() {
    let sum = nll(&[1.5, f64::INFINITY, 2.5]);
    assert_eq!((sum.n_tokens(), sum.n_impossible(), sum.nats()), (3, 1, 4.0));
    for figure in [sum.mean(), sum.perplexity(), sum.bits_per_token(), sum.bits_per_byte(4)] {
        assert_eq!(figure, Some(f64::INFINITY));
    }
    assert_eq!(sum.std_err(), None);
}

#[test]
fn tokens_are_impossible_from_2_to_the_23_nats_on() {
    for (nats, n_impossible) in [(8_388_607.999, 0), (8_388_608.0, 1), (f64::MAX, 1)] {
        assert_eq!(nll(&[nats]).n_impossible(), n_impossible, "{nats}");
    }
}

#[test]
fn nothing_has_no_figures_and_one_token_no_error() {
    let none = Nll::default();
    for figure in [none.mean(), none.perplexity(), none.bits_per_byte(5), none.std_err()] {
        assert_eq!(figure, None);
    }
    let one = nll(&[4_f64.ln()]);
    assert!(
        (one.perplexity().unwrap() - 4.0).abs() < 1e-9
            && (one.bits_per_token().unwrap() - 2.0).abs() < 1e-9
    );
    assert_eq!((one.std_err(), one.bits_per_byte(0), one.word_perplexity(0)), (None, None, None));
    assert_eq!(nll(&[2.0, 2.0]).std_err(), Some(0.0));
}

#[test]
fn what_is_no_likelihood_is_refused_and_leaves_the_sum_alone() {
    let mut sum = nll(&[1.0]);
    for bad in [f64::NAN, -1e-9, f64::NEG_INFINITY] {
        let error = sum.record(bad).expect_err("no likelihood");
        assert!(matches!(error, EvalError::Value { what: "nats", .. }), "{error:?}");
        assert_eq!(sum, nll(&[1.0]));
    }
    sum.record(-0.0).expect("zero");
}
