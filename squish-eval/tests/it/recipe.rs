use std::ops::Range;

use proptest::prelude::*;
use squish_eval::{EvalError, Lead, Recipe, Window};

use crate::common::golden;

fn windows(recipe: Recipe, n_tokens: usize) -> Vec<Window> {
    recipe.windows(n_tokens).unwrap_or_else(|error| panic!("{recipe}: {error}")).collect()
}

/// Windows and what they score.
fn spans(recipe: Recipe, n_tokens: usize) -> Vec<(Range<usize>, usize)> {
    windows(recipe, n_tokens).into_iter().map(|w| (w.tokens, w.scored.len())).collect()
}

/// The sizes in a golden's name.
fn sizes(name: &str) -> [usize; 3] {
    let numbers: Vec<usize> =
        name.split('.').skip(2).map(|n| n.parse().expect("a number")).collect();
    numbers.try_into().expect("three")
}

#[test]
fn the_published_windows_come_out() {
    let strided = |stride| Recipe::Strided { max_len: 4, stride, prefix: None };
    assert_eq!(spans(strided(2), 10), [(0..4, 3), (2..6, 2), (4..8, 2), (6..10, 2)]);
    assert_eq!(spans(strided(4), 10), [(0..4, 3), (3..8, 4), (7..10, 2)]);
    let doc = |stride| Recipe::HfDoc { max_len: 4, stride };
    assert_eq!(spans(doc(4), 10), [(0..4, 3), (4..8, 3), (8..10, 1)]);
    assert_eq!(spans(Recipe::LlamaCpp { n_ctx: 4, bos: None }, 10), [(0..4, 1), (4..8, 1)]);
    assert_eq!(spans(Recipe::LlamaCpp { n_ctx: 5, bos: None }, 10), [(0..5, 2), (5..10, 2)]);
    let llama = windows(Recipe::LlamaCpp { n_ctx: 512, bos: Some(1) }, 1024 + 511);
    assert!(llama.len() == 2 && llama.iter().all(|window| window.scored.len() == 255));
    let rolling = |context_len| Recipe::LmEvalRolling { max_len: 4, context_len, prefix: 0 };
    assert_eq!(spans(rolling(1), 10), [(0..4, 4), (3..8, 4), (5..10, 2)]);
    assert_eq!(spans(rolling(2), 10), [(0..4, 4), (2..7, 3), (5..10, 3)]);
}

#[test]
fn windows_of_transformers_are_those_of_its_code() {
    let golden = golden();
    for name in [
        "windows.hf.10.4.2",
        "windows.hf.10.4.4",
        "windows.hf.11.4.3",
        "windows.hf.4.4.4",
        "windows.hf.5.4.4",
        "windows.hf.9.4.4",
        "windows.hf.3.8.8",
        "windows.hf.2.4.1",
        "windows.hf.203.32.16",
        "windows.hf.100.7.1",
    ] {
        let [n_tokens, max_len, stride] = sizes(name);
        let got: Vec<i64> = windows(Recipe::HfDoc { max_len, stride }, n_tokens)
            .into_iter()
            .flat_map(|w| [w.tokens.start, w.tokens.end, w.weight + 1, w.scored.len()])
            .map(|n| n as i64)
            .collect();
        let want = golden.i64(name);
        // Those without a label have a loss of NaN there.
        let want: Vec<i64> = want.chunks(4).filter(|w| w[3] > 0).flatten().copied().collect();
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn windows_of_lm_eval_are_those_of_its_functions() {
    let golden = golden();
    for name in [
        "windows.rolling.10.4.1",
        "windows.rolling.10.4.2",
        "windows.rolling.10.4.4",
        "windows.rolling.1.4.1",
        "windows.rolling.4.4.1",
        "windows.rolling.5.4.1",
        "windows.rolling.203.32.1",
        "windows.rolling.100.7.3",
        "windows.rolling.3.1.1",
    ] {
        let [n_tokens, max_len, context_len] = sizes(name);
        let recipe = Recipe::LmEvalRolling { max_len, context_len, prefix: 9 };
        let got: Vec<i64> = windows(recipe, n_tokens)
            .into_iter()
            .flat_map(|w| {
                // With the prefix at 0, tokens stand one higher.
                let first = if w.lead == Lead::Before(9) { 0 } else { w.tokens.start + 1 };
                [first, first + w.n_fed(), w.scored.start, w.scored.end]
            })
            .map(|n| n as i64)
            .collect();
        assert_eq!(got, golden.i64(name), "{name}");
    }
}

fn any_recipe() -> impl Strategy<Value = Recipe> {
    (1..40_usize, 1..40_usize, prop::option::of(0..9_u32), 0..4_usize).prop_map(
        |(max_len, part, token, which)| {
            let part = 1 + part % max_len;
            match which {
                0 => Recipe::Strided { max_len, stride: part, prefix: token },
                1 => Recipe::HfDoc { max_len: max_len + 1, stride: part },
                2 => Recipe::LlamaCpp { n_ctx: max_len + 2, bos: token },
                _ => Recipe::LmEvalRolling { max_len, context_len: part, prefix: 7 },
            }
        },
    )
}

proptest! {
    #[test]
    fn windows_are_in_order_and_score_no_token_twice_nor_one_that_nothing_is_before(
        recipe in any_recipe(), n_tokens in 0..200_usize,
    ) {
        let Ok(windows) = recipe.windows(n_tokens) else { return Ok(()) };
        let max_fed = match recipe {
            Recipe::Strided { max_len, .. } | Recipe::LmEvalRolling { max_len, .. } => max_len,
            Recipe::HfDoc { max_len, .. } => max_len - 1,
            Recipe::LlamaCpp { n_ctx, .. } => n_ctx - 1,
            _ => unreachable!("no other recipe is made"),
        };
        let mut end = 0;
        for window in windows {
            let first_fed = if matches!(window.lead, Lead::Before(_)) { 0 } else { window.tokens.start + 1 };
            prop_assert!(window.scored.start >= first_fed.max(end), "{recipe} {window:?}");
            prop_assert!(!window.scored.is_empty() && window.scored.end <= window.tokens.end);
            prop_assert!(window.tokens.end <= n_tokens && (1..=max_fed).contains(&window.n_fed()), "{recipe} {window:?}");
            let has_own_weights = matches!(recipe, Recipe::HfDoc { .. });
            prop_assert!(window.weight == window.scored.len() || has_own_weights);
            end = window.scored.end;
        }
    }

    #[test]
    fn strides_score_every_token_once_and_keep_the_context_that_they_promise(
        max_len in 1..40_usize, stride in 1..40_usize, prefix in prop::option::of(0..9_u32), n_tokens in 2..200_usize,
    ) {
        let stride = 1 + stride % max_len;
        let n_before = usize::from(prefix.is_some());
        let mut next = 1 - n_before;
        for window in windows(Recipe::Strided { max_len, stride, prefix }, n_tokens) {
            prop_assert_eq!(window.scored.start, next);
            let lead = usize::from(window.lead != Lead::Text);
            for token in window.scored.clone() {
                let context = token - window.tokens.start + lead;
                prop_assert!(context >= (token + n_before).min(max_len - stride).max(1), "{window:?} {token}");
            }
            next = window.scored.end;
        }
        prop_assert_eq!(next, n_tokens);
    }

    #[test]
    fn rolling_scores_every_token_once_and_keeps_its_context(
        max_len in 1..40_usize, context in 1..40_usize, n_tokens in 1..200_usize,
    ) {
        let context_len = 1 + context % max_len;
        let mut next = 0;
        for window in windows(Recipe::LmEvalRolling { max_len, context_len, prefix: 0 }, n_tokens) {
            prop_assert_eq!(window.scored.start, next);
            if next > 0 {
                prop_assert!(window.n_fed() == max_len && window.scored.start - window.tokens.start >= context_len);
            }
            next = window.scored.end;
        }
        prop_assert_eq!(next, n_tokens);
    }
}

#[test]
fn strides_without_overlap_are_lm_eval_s_windows_but_for_the_last() {
    let strided = windows(Recipe::Strided { max_len: 16, stride: 16, prefix: None }, 160);
    for window in &strided[1..] {
        assert_eq!((window.n_fed(), window.scored.len()), (16, 16));
        assert_eq!(window.scored, window.tokens.start + 1..window.tokens.end);
    }
}

#[test]
fn numbers_that_make_no_sense_and_texts_that_are_too_short_are_refused() {
    let value = |recipe: Recipe| match recipe.windows(1000) {
        Err(EvalError::Value { what, .. }) => what,
        other => panic!("{recipe}: {other:?}"),
    };
    assert_eq!(value(Recipe::Strided { max_len: 0, stride: 1, prefix: None }), "max_len");
    assert_eq!(value(Recipe::Strided { max_len: 4, stride: 5, prefix: None }), "stride");
    assert_eq!(value(Recipe::Strided { max_len: 4, stride: 0, prefix: None }), "stride");
    assert_eq!(value(Recipe::Strided { max_len: usize::MAX, stride: 1, prefix: None }), "max_len");
    assert_eq!(value(Recipe::HfDoc { max_len: 1, stride: 1 }), "max_len");
    assert_eq!(value(Recipe::HfDoc { max_len: 2, stride: 3 }), "stride");
    assert_eq!(value(Recipe::LlamaCpp { n_ctx: 2, bos: None }), "n_ctx");
    assert_eq!(
        value(Recipe::LmEvalRolling { max_len: 3, context_len: 4, prefix: 0 }),
        "context_len"
    );
    assert_eq!(
        value(Recipe::LmEvalRolling { max_len: 3, context_len: 0, prefix: 0 }),
        "context_len"
    );
    for (recipe, least) in [
        (Recipe::Strided { max_len: 4, stride: 4, prefix: None }, 2),
        (Recipe::Strided { max_len: 4, stride: 4, prefix: Some(0) }, 1),
        (Recipe::HfDoc { max_len: 4, stride: 4 }, 2),
        (Recipe::LlamaCpp { n_ctx: 512, bos: None }, 1024),
        (Recipe::LmEvalRolling { max_len: 4, context_len: 1, prefix: 0 }, 1),
    ] {
        let error = EvalError::TooFewTokens { expected: least, actual: least - 1 };
        assert_eq!(recipe.windows(least - 1).expect_err("too short"), error);
        assert!(recipe.windows(least).expect("long enough").next().is_some(), "{recipe}");
    }
    let huge = Recipe::LlamaCpp { n_ctx: usize::MAX / 2 + 2, bos: None };
    assert!(matches!(huge.windows(9), Err(EvalError::TooFewTokens { .. })));
}
