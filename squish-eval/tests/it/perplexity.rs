use proptest::prelude::*;
use squish_eval::{CausalLm, EvalError, Prompt, Recipe, RowSink, for_each_row, perplexity};

use crate::common::{Fading, Stubborn, as_tokens, golden};

/// The recipes of the golden file, by name.
fn recipes() -> [(&'static str, Recipe); 8] {
    let (max_len, prefix) = (32, 0);
    [
        ("hf_doc", Recipe::HfDoc { max_len, stride: 16 }),
        ("hf_doc_disjoint", Recipe::HfDoc { max_len, stride: 32 }),
        ("strided", Recipe::Strided { max_len, stride: 16, prefix: None }),
        ("strided_disjoint", Recipe::Strided { max_len, stride: 32, prefix: None }),
        ("strided_prefix", Recipe::Strided { max_len, stride: 16, prefix: Some(prefix) }),
        ("llama_cpp", Recipe::LlamaCpp { n_ctx: max_len, bos: None }),
        ("llama_cpp_bos", Recipe::LlamaCpp { n_ctx: max_len, bos: Some(prefix) }),
        ("rolling", Recipe::LmEvalRolling { max_len, context_len: 1, prefix }),
    ]
}

#[test]
fn every_recipe_has_the_perplexity_of_its_reference() {
    let golden = golden();
    let tokens = as_tokens(&golden.i64("tokens"));
    let mut model = Fading::new(&golden);
    for (name, recipe) in recipes() {
        let got = perplexity(&mut model, &tokens, recipe).expect("finite");
        let want = golden.f64(&format!("{name}.mean"))[0];
        assert!((got.mean - want).abs() <= 2e-6, "{got}, not {}", want.exp());
        assert!((got.value() / want.exp() - 1.0).abs() <= 1e-5, "{got}, not {}", want.exp());
        assert_eq!(got.recipe, recipe);
    }
    let rolling = perplexity(&mut model, &tokens, recipes()[7].1).expect("finite");
    let got = rolling.nll.bits_per_byte(3 * tokens.len() as u64).expect("tokens");
    assert!((got - golden.f64("rolling.bits_per_byte")[0]).abs() < 1e-6);
}

proptest! {
    #[test]
    fn batches_change_neither_a_bit_nor_an_order(max_batch in 0..9_usize, which in 0..8_usize) {
        let golden = golden();
        let tokens = as_tokens(&golden.i64("tokens"));
        let mut model = Fading::new(&golden);
        let recipe = recipes()[which].1;
        let one_by_one = perplexity(&mut model, &tokens, recipe).expect("finite");
        model.max_batch = max_batch;
        prop_assert_eq!(perplexity(&mut model, &tokens, recipe), Ok(one_by_one));
        let mut last = None;
        for_each_row(&mut model, &tokens, recipe, |row| {
            assert!(last < Some(row.index) && tokens[row.index] == row.token);
            last = Some(row.index);
            Ok(())
        }).expect("finite");
    }
}

#[test]
fn nothing_is_fed_that_no_row_needs() {
    let golden = golden();
    let tokens = as_tokens(&golden.i64("tokens"));
    let mut model = Fading::new(&golden);
    perplexity(&mut model, &tokens, Recipe::LlamaCpp { n_ctx: 32, bos: None }).expect("finite");
    // The last token of a window is scored and not fed.
    assert_eq!(model.n_fed, 6 * 31);
}

#[test]
fn the_error_over_windows_is_that_of_their_means() {
    let golden = golden();
    let tokens = as_tokens(&golden.i64("tokens"));
    let mut model = Fading::new(&golden);
    // Six windows with as many tokens each: the plain standard error of six numbers.
    let recipe = Recipe::LlamaCpp { n_ctx: 32, bos: None };
    let mut means = [0.0; 6];
    for_each_row(&mut model, &tokens, recipe, |row| {
        means[row.window] += squish_eval::token_nll(row.logits, row.token)? / 15.0;
        Ok(())
    })
    .expect("finite");
    let got = perplexity(&mut model, &tokens, recipe).expect("finite");
    let mean = means.iter().sum::<f64>() / 6.0;
    let want = (means.iter().map(|each| (each - mean).powi(2)).sum::<f64>() / 5.0 / 6.0).sqrt();
    assert!((got.window_std_err.expect("six windows") - want).abs() < 1e-9 && got.n_windows == 6);
    let one = perplexity(&mut model, &tokens[..20], recipes()[7].1).expect("finite");
    assert_eq!((one.n_windows, one.window_std_err), (1, None));
}

#[test]
fn a_perplexity_prints_with_its_recipe() {
    let golden = golden();
    let tokens = as_tokens(&golden.i64("tokens"));
    let mut model = Fading::new(&golden);
    let shown = perplexity(&mut model, &tokens, recipes()[6].1).expect("finite").to_string();
    assert_eq!(
        shown,
        "940.3543 ± 327.5318 over 90 tokens in 6 windows (llama.cpp, 32, token 0 first)"
    );
    let names: Vec<String> = recipes().iter().map(|(_, recipe)| recipe.to_string()).collect();
    assert_eq!(names[0], "transformers' documentation, 32 by 16");
    assert_eq!(names[4], "strided, 32 by 16, after token 0");
    assert_eq!(names[7], "lm-eval rolling, 32 after 1, after token 0");
}

#[test]
fn what_the_model_cannot_take_is_refused_before_it_is_fed() {
    let golden = golden();
    let mut model = Fading::new(&golden);
    let recipe = Recipe::Strided { max_len: 8, stride: 4, prefix: None };
    let token = EvalError::Token { index: 2, token: 50, vocab_size: 50 };
    assert_eq!(perplexity(&mut model, &[1, 2, 50], recipe), Err(token));
    let prefix = Recipe::LmEvalRolling { max_len: 8, context_len: 1, prefix: 77 };
    let token = EvalError::Token { index: 0, token: 77, vocab_size: 50 };
    assert_eq!(perplexity(&mut model, &[1, 2, 3], prefix), Err(token));
    model.max_seq_len = 6;
    // Windows of 8 feed 7.
    let context = EvalError::Context { n_tokens: 7, max_seq_len: 6 };
    assert_eq!(perplexity(&mut model, &[1; 20], recipe), Err(context));
    assert!(perplexity(&mut model, &[1; 5], recipe).is_ok(), "a text that is short enough");
    let short = EvalError::TooFewTokens { expected: 2, actual: 1 };
    assert_eq!(perplexity(&mut model, &[1], recipe), Err(short));
    assert!(model.n_fed <= 5);
}

#[test]
fn a_model_that_does_not_do_as_asked_is_found_out() {
    // Two windows, whose rows are 0 and 1 of each.
    let (recipe, tokens) = (Recipe::HfDoc { max_len: 3, stride: 3 }, [0; 6]);
    let run = |order: &[(usize, usize)], width| {
        perplexity(&mut Stubborn { order: order.to_vec(), width }, &tokens, recipe)
            .map(|ppl| ppl.value())
    };
    let all = [(0, 0), (0, 1), (1, 0), (1, 1)];
    assert!((run(&all, 4).expect("as asked") - 4.0).abs() < 1e-5);
    let error = |expected, actual| Err(EvalError::Rows { expected, actual });
    assert_eq!(run(&all[..3], 4), error(Some((1, 1)), None));
    assert_eq!(run(&[(0, 1)], 4), error(Some((0, 0)), Some((0, 1))));
    assert_eq!(run(&[(0, 0), (1, 0)], 4), error(Some((0, 1)), Some((1, 0))));
    assert_eq!(run(&[&all[..], &[(1, 2)]].concat(), 4), error(None, Some((1, 2))));
    assert_eq!(run(&all, 5), Err(EvalError::Length { what: "logits", expected: 4, actual: 5 }));
}

/// A model of two tokens, the second of which is masked after token 1; NaN after two of those.
struct Masking;

impl CausalLm for Masking {
    type Error = EvalError;

    fn vocab_size(&self) -> usize {
        2
    }

    fn max_seq_len(&self) -> usize {
        100
    }

    fn logits(&mut self, prompt: Prompt<'_>, sink: &mut RowSink<'_>) -> Result<(), EvalError> {
        for row in prompt.wanted {
            let last = &prompt.tokens[row.saturating_sub(1)..=row];
            let masked = if last == [1, 1] { f32::NAN } else { f32::NEG_INFINITY };
            sink(row, &[0.0, if prompt.tokens[row] == 1 { masked } else { 0.0 }])?;
        }
        Ok(())
    }
}

#[test]
fn an_impossible_token_is_counted_and_a_nan_names_the_token() {
    let recipe = Recipe::HfDoc { max_len: 4, stride: 2 };
    let got = perplexity(&mut Masking, &[0, 1, 1, 0, 0, 0, 1, 0], recipe);
    assert_eq!(got, Err(EvalError::Nan { row: 3 }));
    for recipe in [recipe, Recipe::Strided { max_len: 4, stride: 2, prefix: None }] {
        let got = perplexity(&mut Masking, &[0, 0, 0, 1, 1], recipe).expect("no NaN");
        assert_eq!((got.nll.n_impossible(), got.value()), (1, f64::INFINITY));
        assert_eq!((got.window_std_err, got.std_err()), (None, None));
    }
}
