//! Negative log-likelihood: closed forms, numbers that are none, and the windows of the recipe.

use std::f32::consts::LN_2;

use squish_model::{Error, Nll, Reference, perplexity, token_nll};

use crate::common::small_weights;

#[test]
fn losses_are_those_of_closed_forms() {
    for (logits, target, want) in [
        (&[0.0; 4][..], 2, 1.386_294_361_119_890_6),
        (&[0.0, 1.0, 2.0, 3.0], 3, 0.440_189_698_561_195_3),
        (&[0.0, 1.0, 2.0, 3.0], 0, 3.440_189_698_561_195_3),
        (&[88.0, 89.0, 90.0], 0, 2.407_605_964_444_386),
        (&[1e4, 0.0, -1e4], 0, 0.0),
        (&[1e4, 0.0, -1e4], 1, 1e4),
        (&[3.4e38, -3.4e38], 0, 0.0),
        (&[0.0, f32::NEG_INFINITY, 0.0], 0, f64::from(LN_2)),
        (&[7.25], 0, 0.0),
    ] {
        let got = token_nll(logits, target).unwrap();
        let bound = 5e-7 + f64::from(f32::EPSILON) * f64::from(logits[0].abs().max(1.0));
        assert!((got - want).abs() <= bound.min(1e-5), "{logits:?} {target}: {got} is not {want}");
    }
    let far = token_nll(&[3.4e38, -3.4e38], 1).unwrap();
    assert!((far / 6.8e38 - 1.0).abs() < 1e-6, "{far}");
    assert_eq!(token_nll(&[0.0, f32::NEG_INFINITY], 1).unwrap(), f64::INFINITY);
}

#[test]
fn logits_without_a_probability_and_targets_without_a_logit_are_errors() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    for logits in [&[nan, 0.0][..], &[0.0, nan], &[inf, 0.0], &[-inf, -inf]] {
        assert!(matches!(token_nll(logits, 0), Err(Error::Logits { .. })), "{logits:?}");
    }
    let error = token_nll(&[0.0; 3], 3).unwrap_err();
    assert_eq!(error.to_string(), "token 3 at index 0 is outside the vocabulary of 3");
    assert!(matches!(token_nll(&[], 0), Err(Error::Token { vocab_size: 0, .. })));
}

#[test]
fn a_sum_of_losses_is_the_loss_of_all_tokens() {
    let parts = [Nll { nats: 3.0, n_tokens: 2 }, Nll::default(), Nll { nats: 1.0, n_tokens: 6 }];
    let total: Nll = parts.into_iter().sum();
    assert_eq!(total, Nll { nats: 4.0, n_tokens: 8 });
    assert_eq!(total.perplexity(), Some(0.5_f64.exp()));
    assert_eq!(Nll::default().perplexity(), None);
}

#[test]
fn windows_do_not_overlap_and_score_all_but_their_first_token() {
    let model = Reference::new(small_weights(11));
    let tokens: Vec<u32> = (0..17).map(|i| i * 7 % 50).collect();
    for (context, windows) in [
        (24, &[(0, 17)][..]),
        (17, &[(0, 17)]),
        // A last window of one token scores nothing.
        (16, &[(0, 16)]),
        (7, &[(0, 7), (7, 14), (14, 17)]),
        (2, &[(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14), (14, 16)]),
    ] {
        let mut want = Nll::default();
        for &(begin, end) in windows {
            let logits = model.logits(&tokens[begin..end]).unwrap();
            let rows = logits.chunks_exact(50).zip(&tokens[begin + 1..end]);
            let nats = rows.map(|(row, &target)| token_nll(row, target).unwrap());
            want = nats.fold(want, |sum, nats| sum + Nll { nats, n_tokens: 1 });
        }
        let got = perplexity(&model, &tokens, context).unwrap();
        assert_eq!(got.n_tokens, want.n_tokens, "context {context}");
        assert!((got.nats - want.nats).abs() < 1e-9, "context {context}: {got:?} is not {want:?}");
    }
}

#[test]
fn texts_and_windows_of_one_token_are_errors_and_so_are_bad_tokens() {
    let model = Reference::new(small_weights(11));
    for (tokens, context, actual) in
        [(&[][..], 8, 0), (&[1], 8, 1), (&[1, 2], 1, 1), (&[1, 2], 0, 0)]
    {
        let error = perplexity(&model, tokens, context).unwrap_err();
        assert_eq!(error.to_string(), format!("{actual} tokens, expected at least 2"));
    }
    // Context 26 feeds 25 tokens to a model that has room for 24.
    assert!(matches!(
        perplexity(&model, &[0; 26], 26),
        Err(Error::Context { actual: 25, max: 24 })
    ));
    for at in 0..4 {
        let mut tokens = [1; 4];
        tokens[at] = 50;
        for context in [2, 3, 8] {
            let error = perplexity(&model, &tokens, context).unwrap_err();
            assert!(
                matches!(error, Error::Token { token: 50, index, .. } if index == at),
                "{error:?}"
            );
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_an_error_and_no_number() {
    let mut weights = small_weights(11);
    weights.tensors_mut().nth(3).unwrap().data_mut()[0] = f32::NAN;
    let error = perplexity(&Reference::new(weights), &[1, 2, 3], 8).unwrap_err();
    assert!(matches!(error, Error::Logits { log_sum_exp } if log_sum_exp.is_nan()), "{error:?}");
}
