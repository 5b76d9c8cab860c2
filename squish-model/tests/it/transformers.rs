//! The trained checkpoint against transformers' `LlamaForCausalLM` in f32.

use squish_kernels::argmax;
use squish_model::{Error, Hooks, Observer, Part, Wanted, ndarray::ArrayView2};

use crate::common::{GOLDEN, MODEL, exact_runner, tokens};

/// Largest difference of logits between two implementations in f32.
const LOGITS: f32 = 2e-4;

fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_transformers() {
    let vocab_size = MODEL.config().vocab_size;
    let mut runner = exact_runner(&MODEL);
    for i in 0..12 {
        let id = runner.create().unwrap();
        let prompt = tokens(&GOLDEN, &format!("prompt.{i}"));
        let mut output =
            runner.forward(&[Part::new(id, &prompt).with_logits(Wanted::All)]).unwrap();
        let logits = output.logits().unwrap();
        let rows = GOLDEN.i64(&format!("rows.{i}"));
        let want = GOLDEN.f32(&format!("logits.{i}"));
        assert_eq!(want.len(), rows.len() * vocab_size);
        for (row, want) in rows.into_iter().zip(want.chunks_exact(vocab_size)) {
            let got = logits.row(usize::try_from(row).unwrap());
            let difference = largest_difference(got.as_slice().unwrap(), want);
            assert!(difference <= LOGITS, "prompt {i}, row {row}: {difference}");
        }
        drop(output);
        runner.free(id).unwrap();
    }
}

/// Keeps the residual stream.
#[derive(Default)]
struct States(Vec<Vec<f32>>);

impl Observer for States {
    fn observe(&mut self, layer: usize, x: ArrayView2<'_, f32>) {
        assert_eq!(layer, self.0.len());
        self.0.push(x.iter().copied().collect());
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let prompt = &tokens(&GOLDEN, "prompt.0")[..16];
    let mut runner = exact_runner(&MODEL);
    let id = runner.create().unwrap();
    let mut states = States::default();
    let mut hooks = Hooks { observer: Some(&mut states), ..Hooks::default() };
    let part = Part::new(id, prompt).with_logits(Wanted::All);
    let normed: Vec<f32> =
        runner.forward_with(&[part], &mut hooks).unwrap().hidden().iter().copied().collect();
    assert_eq!(states.0.len(), MODEL.config().n_layers() + 1);
    let named = states.0.iter().enumerate().map(|(i, state)| (i.to_string(), state));
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
    let mut runner = exact_runner(&MODEL);
    for j in 0..20 {
        let want = tokens(&GOLDEN, &format!("greedy.{j}"));
        let margins = GOLDEN.f32(&format!("greedy_margin.{j}"));
        let id = runner.create().unwrap();
        let prompt = tokens(&GOLDEN, &format!("greedy_prompt.{j}"));
        let mut got = argmax(runner.extend(id, &prompt).unwrap()).unwrap() as u32;
        for (step, (&want, margin)) in want.iter().zip(margins).enumerate() {
            assert_eq!(got, want, "prompt {j}, step {step}, margin {margin}");
            got = argmax(runner.extend(id, &[got]).unwrap()).unwrap() as u32;
        }
        assert_eq!(runner.len(id).unwrap(), prompt.len() + 64);
        runner.free(id).unwrap();
    }
}

#[test]
fn logits_row_by_row_are_those_of_all_at_once() {
    let prompt = tokens(&GOLDEN, "text.prose0");
    let mut runner = exact_runner(&MODEL);
    let id = runner.create().unwrap();
    let part = Part::new(id, &prompt[..100]).with_logits(Wanted::All);
    let mut output = runner.forward(&[part]).unwrap();
    let all = output.logits().unwrap().to_owned();
    let mut n_rows = 0;
    output
        .for_each_logits(|i, row| {
            assert!(all.row(i).iter().zip(row).all(|(a, b)| a.to_bits() == b.to_bits()), "{i}");
            n_rows += 1;
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(n_rows, 100);
}
