//! The trained checkpoint against transformers' `LlamaForCausalLM` in f32.

use squish_kernels::{RmsVariant, argmax, rms_norm_into};
use squish_model::{perplexity, token_nll};

use crate::common::{GOLDEN, MODEL, tokens};

/// Largest difference of logits between two implementations in f32.
const LOGITS: f32 = 2e-4;

fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_transformers() {
    let vocab_size = MODEL.config().vocab_size;
    for i in 0..12 {
        let logits = MODEL.logits(&tokens(&format!("prompt.{i}"))).unwrap();
        let rows = GOLDEN.i64(&format!("rows.{i}"));
        let want = GOLDEN.f32(&format!("logits.{i}"));
        assert_eq!(want.len(), rows.len() * vocab_size);
        for (row, want) in rows.into_iter().zip(want.chunks_exact(vocab_size)) {
            let got = &logits[usize::try_from(row).unwrap() * vocab_size..][..vocab_size];
            let difference = largest_difference(got, want);
            assert!(difference <= LOGITS, "prompt {i}, row {row}: {difference}");
        }
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let prompt = &tokens("prompt.0")[..16];
    let states = MODEL.hidden_states(prompt).unwrap();
    assert_eq!(states.len(), MODEL.config().n_layers + 1);
    let weights = MODEL.weights();
    let norm = weights.tensors().find(|tensor| tensor.name() == "model.norm.weight").unwrap();
    let last = states.last().unwrap();
    let mut normed = vec![0.0; last.len()];
    let eps = MODEL.config().rms_norm_eps;
    rms_norm_into(last, norm.data(), eps, RmsVariant::Llama, &mut normed);
    let named = states.iter().enumerate().map(|(i, state)| (i.to_string(), state));
    for (i, got) in named.chain([("norm".to_owned(), &normed)]) {
        let want = GOLDEN.f32(&format!("hidden.{i}"));
        let largest = want.iter().fold(0_f32, |most, x| most.max(x.abs()));
        let difference = largest_difference(got, &want);
        assert!(
            difference <= 2e-6 * largest,
            "layer {i}: {difference} where values reach {largest}"
        );
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for j in 0..20 {
        let want = tokens(&format!("greedy.{j}"));
        let margins = GOLDEN.f32(&format!("greedy_margin.{j}"));
        let mut session = MODEL.session();
        let mut logits = session.extend(&tokens(&format!("greedy_prompt.{j}"))).unwrap();
        for (step, (&want, margin)) in want.iter().zip(margins).enumerate() {
            let got = argmax(logits).unwrap() as u32;
            assert_eq!(got, want, "prompt {j}, step {step}, margin {margin}");
            logits = session.step(got).unwrap();
        }
        assert_eq!(session.len(), GOLDEN.shape(&format!("greedy_prompt.{j}"))[0] + 64);
    }
}

#[test]
fn token_losses_and_their_sums_are_those_of_transformers() {
    for text in ["prose0", "prose1", "prose2", "code0", "code1", "code2"] {
        let tokens = tokens(&format!("text.{text}"));
        let want = GOLDEN.f64(&format!("nll.{text}"));
        assert_eq!(want.len(), tokens.len() - 1);
        MODEL
            .for_each_logits(&tokens[..want.len()], |i, logits| {
                let got = token_nll(logits, tokens[i + 1]).unwrap();
                let difference = (got - want[i]).abs();
                assert!(
                    difference <= f64::from(LOGITS),
                    "{text}, token {i}: {got} is not {}",
                    want[i]
                );
                Ok(())
            })
            .unwrap();

        let total = perplexity(&MODEL, &tokens, 512).unwrap();
        let mean = want.iter().sum::<f64>() / want.len() as f64;
        assert_eq!(total.n_tokens, want.len() as u64);
        let relative = total.perplexity().unwrap() / mean.exp() - 1.0;
        assert!(relative.abs() <= 2e-6, "{text}: perplexity is off by {relative}");
    }
}
