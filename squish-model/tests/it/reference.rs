//! The forward pass: its definition in f64, sessions, and bad tokens.

use proptest::prelude::*;
use squish_model::{Config, Error, Reference, Weights};

use crate::common::{SMALL, small_config, small_weights};

/// The equations of `reference.rs` in f64, one token and one number at a time, without a cache.
fn logits_by_definition(weights: &Weights, tokens: &[u32]) -> Vec<f64> {
    let c = *weights.config();
    let find = |name: &str| {
        let tensor = weights.tensors().find(|tensor| tensor.name() == name).unwrap();
        let data: Vec<f64> = tensor.data().iter().map(|&x| f64::from(x)).collect();
        (data, tensor.shape().to_vec())
    };
    let times = |name: &str, x: &[f64]| -> Vec<f64> {
        let (w, shape) = find(name);
        assert_eq!(shape[1], x.len(), "{name}");
        w.chunks(shape[1]).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean_square + f64::from(c.rms_norm_eps)).sqrt();
        x.iter().zip(find(name).0).map(|(x, w)| x / root * w).collect()
    };
    let rope = |x: &[f64], position: usize| -> Vec<f64> {
        let (d, half) = (c.head_dim, c.head_dim / 2);
        (0..x.len())
            .map(|at| {
                let (head, i) = (at / d * d, at % d);
                let exponent = -2.0 * (i % half) as f64 / d as f64;
                let angle = position as f64 * f64::from(c.rope_theta).powf(exponent);
                let partner = if i < half { -x[head + i + half] } else { x[head + i - half] };
                x[at] * angle.cos() + partner * angle.sin()
            })
            .collect()
    };
    let embed = find("model.embed_tokens.weight").0;
    let mut xs: Vec<Vec<f64>> = tokens
        .iter()
        .map(|&token| embed[token as usize * c.hidden_size..][..c.hidden_size].to_vec())
        .collect();
    for layer in 0..c.n_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in xs.iter_mut().enumerate() {
            let n = norm(&name("input_layernorm"), x);
            let q = rope(&times(&name("self_attn.q_proj"), &n), position);
            keys.push(rope(&times(&name("self_attn.k_proj"), &n), position));
            values.push(times(&name("self_attn.v_proj"), &n));
            let mut a = vec![0.0; q.len()];
            for head in 0..c.n_heads {
                let kv = head * c.n_kv_heads / c.n_heads * c.head_dim;
                let q = &q[head * c.head_dim..][..c.head_dim];
                let weight = |k: &Vec<f64>| {
                    let score: f64 = q.iter().zip(&k[kv..]).map(|(q, k)| q * k).sum();
                    (score / (c.head_dim as f64).sqrt()).exp()
                };
                let total: f64 = keys.iter().map(weight).sum();
                for (k, v) in keys.iter().zip(&values) {
                    for i in 0..c.head_dim {
                        a[head * c.head_dim + i] += weight(k) / total * v[kv + i];
                    }
                }
            }
            for (x, o) in x.iter_mut().zip(times(&name("self_attn.o_proj"), &a)) {
                *x += o;
            }
            let m = norm(&name("post_attention_layernorm"), x);
            let up = times(&name("mlp.up_proj"), &m);
            let gate = times(&name("mlp.gate_proj"), &m);
            let inner: Vec<f64> =
                gate.iter().zip(up).map(|(g, up)| g / (1.0 + (-g).exp()) * up).collect();
            for (x, down) in x.iter_mut().zip(times(&name("mlp.down_proj"), &inner)) {
                *x += down;
            }
        }
    }
    let head = if c.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    xs.iter().flat_map(|x| times(head, &norm("model.norm.weight", x))).collect()
}

fn tokens(len: usize, seed: u64) -> Vec<u32> {
    let mut rng = squish_bench::input::Rng::new(seed);
    (0..len).map(|_| rng.below(50) as u32).collect()
}

#[test]
fn logits_are_those_of_the_equations_with_a_head_of_its_own_and_with_a_tied_one() {
    let tokens = tokens(24, 1);
    let untied = small_weights(2);
    let tied_json =
        SMALL.replace(r#""hidden_act""#, r#""tie_word_embeddings": true, "hidden_act""#);
    let tied_config = Config::from_json(tied_json.as_bytes()).unwrap();
    let tied = Weights::from_fn(&tied_config, |name, _| {
        Ok(untied.tensors().find(|tensor| tensor.name() == name).unwrap().data().to_vec())
    })
    .unwrap();
    for weights in [untied, tied] {
        let want = logits_by_definition(&weights, &tokens);
        let got = Reference::new(weights).logits(&tokens).unwrap();
        assert_eq!(got.len(), want.len());
        for (i, (&got, want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(got) - want).abs() < 1e-5, "logit {i}: {got} is not {want}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_row_of_logits_is_the_same_however_its_tokens_arrive(
        len in 1_usize..=24, cuts in prop::collection::vec(0_usize..24, 0..4), seed: u64,
    ) {
        let model = Reference::new(small_weights(seed));
        let vocab_size = model.config().vocab_size;
        let tokens = tokens(len, seed);
        let all = model.logits(&tokens).unwrap();

        let mut single = model.session();
        for (&token, want) in tokens.iter().zip(all.chunks_exact(vocab_size)) {
            prop_assert_eq!(single.step(token).unwrap(), want);
        }
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| 0 < cut && cut < len).chain([0, len]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut chunked = model.session();
        for pair in cuts.windows(2) {
            let got = chunked.extend(&tokens[pair[0]..pair[1]]).unwrap();
            prop_assert_eq!(got, &all[(pair[1] - 1) * vocab_size..][..vocab_size]);
        }
        let mut visited = Vec::new();
        model.for_each_logits(&tokens, |i, row| {
            assert_eq!(i * vocab_size, visited.len());
            visited.extend_from_slice(row);
            Ok(())
        }).unwrap();
        prop_assert_eq!(visited, all);
    }

    #[test]
    fn no_logit_depends_on_a_later_token(at in 0_usize..20, seed: u64) {
        let model = Reference::new(small_weights(seed));
        let vocab_size = model.config().vocab_size;
        let mut tokens = tokens(20, seed);
        let before = model.logits(&tokens).unwrap();
        tokens[at] = (tokens[at] + 1) % 50;
        let after = model.logits(&tokens).unwrap();
        let (same, changed) = (&after[..at * vocab_size], &after[at * vocab_size..]);
        prop_assert_eq!(same, &before[..same.len()]);
        for (i, (got, was)) in changed.chunks(vocab_size).zip(before[same.len()..].chunks(vocab_size)).enumerate() {
            prop_assert_ne!(got, was, "row {}", at + i);
        }
    }
}

#[test]
fn an_error_of_the_visitor_ends_the_walk() {
    let model = Reference::new(small_weights(3));
    let mut n_visited = 0;
    let result = model.for_each_logits(&[1; 20], |i, _| {
        n_visited += 1;
        if i == 17 { Err(Error::Logits { log_sum_exp: f32::NAN }) } else { Ok(()) }
    });
    assert!(matches!(result, Err(Error::Logits { .. })), "{result:?}");
    assert_eq!(n_visited, 18);
}

#[test]
fn bad_tokens_are_named_and_leave_a_session_as_it_was() {
    let model = Reference::new(small_weights(3));
    let empty = model.logits(&[]).unwrap_err();
    assert!(matches!(empty, Error::TooFewTokens { expected: 1, actual: 0 }), "{empty}");
    let outside = model.logits(&[1, 49, 50]).unwrap_err();
    assert_eq!(outside.to_string(), "token 50 at index 2 is outside the vocabulary of 50");
    assert!(matches!(
        model.logits(&[u32::MAX]),
        Err(Error::Token { token: u32::MAX, index: 0, .. })
    ));
    let long = model.hidden_states(&[0; 25]).unwrap_err();
    assert_eq!(long.to_string(), "25 tokens exceed the model's context of 24");

    let mut session = model.session();
    assert!(session.is_empty());
    session.extend(&[1, 2, 3]).unwrap();
    for (tokens, message) in [
        (&[][..], "0 tokens, expected at least 1"),
        (&[4, 77], "token 77 at index 1 is outside the vocabulary of 50"),
        (&[0; 22], "25 tokens exceed the model's context of 24"),
    ] {
        assert_eq!(session.extend(tokens).unwrap_err().to_string(), message);
        assert_eq!(session.len(), 3);
    }
    let vocab_size = small_config().vocab_size;
    let want = model.logits(&[1, 2, 3, 4]).unwrap();
    assert_eq!(session.step(4).unwrap(), &want[3 * vocab_size..]);
}

#[test]
fn a_folder_without_configuration_or_weights_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let error = Reference::open(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("config.json")), "{error}");
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let error = Reference::open(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::InFile { path, .. } if path.ends_with("config.json")),
        "{error}"
    );
    std::fs::write(folder.path().join("config.json"), SMALL).unwrap();
    let error = Reference::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("has neither `model.safetensors`"), "{error}");
}
