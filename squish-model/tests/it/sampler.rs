//! Sampling against transformers and against its definition, and that a draw depends on nothing but its arguments.

use proptest::prelude::*;
use serde_json::Value;
use squish_bench::{Golden, alloc::count_allocations, input::Rng};
use squish_kernels::Isa;
use squish_model::{
    Error, Sampler, Sampling,
    sampler::{Context, MAX_TOP_LOGPROBS, TokenLogprob, uniform},
};

const NONE: f32 = f32::NEG_INFINITY;
const UNSET: TokenLogprob = TokenLogprob { token: u32::MAX, logprob: 1.0 };

fn process(logits: &[f32], context: Context<'_>, sampling: Sampling) -> Result<Vec<f32>, Error> {
    let mut scores = vec![f32::NAN; logits.len()];
    Sampler::new(logits.len()).process_into(logits, context, sampling, &mut scores)?;
    Ok(scores)
}

/// The steps as transformers documents them, with sorts, and nothing but `f32` between them.
fn by_definition(logits: &[f32], context: Context<'_>, sampling: Sampling) -> Vec<f32> {
    let mut x = logits.to_vec();
    for &(token, bias) in context.logit_bias {
        x[token as usize] += bias;
    }
    for (i, x) in x.iter_mut().enumerate() {
        let is = |&&token: &&u32| token as usize == i;
        let n_generated = context.generated.iter().filter(is).count();
        if n_generated + context.prompt.iter().filter(is).count() > 0 {
            let penalty = sampling.repetition_penalty as f32;
            *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
        }
        if n_generated > 0 {
            *x -= sampling.frequency_penalty as f32 * n_generated as f32;
            *x -= sampling.presence_penalty as f32;
        }
    }
    if sampling.is_greedy() {
        return x;
    }
    for x in &mut x {
        *x /= sampling.temperature as f32;
    }
    if sampling.top_k > 0 {
        let mut sorted = x.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let kth = sorted[sampling.top_k.min(x.len()) - 1];
        x.iter_mut().filter(|x| **x < kth).for_each(|x| *x = NONE);
    }
    if sampling.top_p < 1.0 {
        let probs = softmax(&x);
        let mut ascending: Vec<usize> = (0..x.len()).collect();
        ascending.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
        let mut sum = 0.0;
        for &i in &ascending[..x.len() - 1] {
            sum += probs[i];
            if sum <= 1.0 - sampling.top_p {
                x[i] = NONE;
            }
        }
    }
    if sampling.min_p > 0.0 {
        let probs = softmax(&x);
        let most = probs.iter().fold(0.0, |a: f64, &b| a.max(b));
        for (x, prob) in x.iter_mut().zip(probs) {
            if prob < sampling.min_p * most {
                *x = NONE;
            }
        }
    }
    x
}

fn softmax(x: &[f32]) -> Vec<f64> {
    let most = f64::from(x.iter().copied().fold(NONE, f32::max));
    let exps: Vec<f64> = x.iter().map(|&x| (f64::from(x) - most).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|x| x / sum).collect()
}

/// Whether a small change of `top_p` or `min_p` would keep other tokens, so that roundings decide.
fn is_near(logits: &[f32], context: Context<'_>, sampling: Sampling) -> bool {
    let n_kept = |sampling| {
        let scores = by_definition(logits, context, sampling);
        scores.into_iter().filter(|&score| score > NONE).count()
    };
    let moved = |by: f64| {
        let top_p = (sampling.top_p + if sampling.top_p < 1.0 { by } else { 0.0 }).min(1.0);
        n_kept(Sampling { top_p, min_p: sampling.min_p * (1.0 + by), ..sampling })
    };
    let here = moved(0.0);
    [1e-4, -1e-4].into_iter().any(|by| moved(by) != here)
}

#[test]
fn scores_are_those_of_transformers() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "sampling");
    let json = |name: &str| serde_json::from_slice::<Value>(&golden.u8(name)).unwrap();
    let (logits, lengths) = (golden.f32("logits"), golden.i64("lengths"));
    let history: Vec<u32> = golden.i64("history").iter().map(|&t| t as u32).collect();
    let history_lengths = golden.i64("history_lengths");
    // Ranges of the rows and of the tokens before them.
    let (mut rows, mut at, mut history_at) = (Vec::new(), 0, 0);
    for (&n, &n_before) in lengths.iter().zip(&history_lengths) {
        rows.push((at..at + n as usize, history_at..history_at + n_before as usize));
        (at, history_at) = (at + n as usize, history_at + n_before as usize);
    }
    let mut n_compared = 0;
    for case in json("cases").as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let number = |field: &str| case[field].as_f64();
        // What is not offered: more than one token that stays whatever it takes, and a `top_p` of 0.
        if case.get("min_tokens_to_keep").is_some() || number("top_p") == Some(0.0) {
            continue;
        }
        let sampling = Sampling {
            repetition_penalty: number("repetition_penalty").unwrap_or(1.0),
            temperature: number("temperature").unwrap_or(1.0),
            top_k: number("top_k").unwrap_or(0.0) as usize,
            top_p: number("top_p").unwrap_or(1.0),
            min_p: number("min_p").unwrap_or(0.0),
            ..Sampling::default()
        };
        let stages = ["repetition_penalty", "temperature", "top_k", "top_p", "min_p"];
        let mut applied = stages.iter().filter(|stage| {
            case.get(**stage).is_some() && !(**stage == "top_p" && sampling.top_p == 1.0)
        });
        let want = applied
            .next_back()
            .map_or(logits.clone(), |stage| golden.f32(&format!("{name}.{stage}")));
        let certain = golden.u8(&format!("{name}.certain"));
        for (row_idx, (row, before)) in rows.iter().enumerate() {
            let (prompt, generated) = history[before.clone()].split_at(before.len() / 2);
            let context = Context { prompt, generated, ..Context::default() };
            let got = process(&logits[row.clone()], context, sampling).unwrap();
            let want = &want[row.clone()];
            let n_left = |scores: &[f32]| scores.iter().filter(|&&score| score > NONE).count();
            if certain[row_idx] >= 1 {
                assert_eq!(n_left(&got), n_left(want), "{name} {row_idx}");
            }
            if certain[row_idx] == 2 {
                // Bits, but for the sign of zero.
                assert_eq!(got, want, "{name} {row_idx}");
                n_compared += 1;
            }
            // A draw at each part of the distribution takes the token of that part.
            let probs = &golden.f64(&format!("{name}.probs"))[row.clone()];
            if certain[row_idx] == 2 {
                draws_follow(&logits[row.clone()], context, sampling, probs);
            }
        }
    }
    assert!(n_compared > 200, "{n_compared}");
}

/// Draws in the middle of each token's part of the distribution.
fn draws_follow(logits: &[f32], context: Context<'_>, sampling: Sampling, probs: &[f64]) {
    let mut sampler = Sampler::new(logits.len());
    let mut below = 0.0;
    for (token, &prob) in probs.iter().enumerate() {
        if prob > 1e-5 {
            let next = sampler.sample(logits, context, below + prob / 2.0, sampling).unwrap();
            assert_eq!(next.token as usize, token);
            assert!((f64::from(next.logprob) - prob.ln()).abs() < 1e-4, "{next:?} {}", prob.ln());
        }
        below += prob;
    }
}

#[test]
fn penalties_are_those_of_the_definition() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "sampling");
    let penalties: Value = serde_json::from_slice(&golden.u8("penalties")).unwrap();
    let (logits, lengths) = (golden.f32("logits"), golden.i64("lengths"));
    let history: Vec<u32> = golden.i64("history").iter().map(|&t| t as u32).collect();
    let history_lengths = golden.i64("history_lengths");
    for penalty in penalties.as_array().unwrap() {
        let want = golden.f64(&format!("{}.scores", penalty["name"].as_str().unwrap()));
        let sampling = Sampling {
            presence_penalty: penalty["presence"].as_f64().unwrap(),
            frequency_penalty: penalty["frequency"].as_f64().unwrap(),
            ..Sampling::default()
        };
        let (mut at, mut history_at) = (0, 0);
        for (&n, &n_before) in lengths.iter().zip(&history_lengths) {
            let row = at..at + n as usize;
            let generated = &history[history_at..history_at + n_before as usize];
            let context = Context { prompt: &[0, 1], generated, ..Context::default() };
            let got = process(&logits[row.clone()], context, sampling).unwrap();
            for (&got, &want) in got.iter().zip(&want[row]) {
                let bound = 1e-6 * (1.0 + want.abs());
                assert!(f64::from(got) == want || (f64::from(got) - want).abs() < bound);
            }
            (at, history_at) = (at + n as usize, history_at + n_before as usize);
        }
    }
}

/// Rows with ties, masks and steep and flat parts.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![
        6 => -8.0_f32..8.0,
        3 => (-6_i8..6).prop_map(|i| f32::from(i) / 2.0),
        1 => Just(NONE),
        1 => -200.0_f32..90.0,
    ];
    (prop::collection::vec(score, 1..300), any::<prop::sample::Index>(), -5.0_f32..5.0).prop_map(
        |(mut row, at, score)| {
            let at = at.index(row.len());
            row[at] = score;
            row
        },
    )
}

fn options() -> impl Strategy<Value = Sampling> {
    (
        prop_oneof![Just(1.0), 0.5..2.0],
        prop_oneof![Just(0.0), -2.0..2.0],
        prop_oneof![Just(0.0), -2.0..2.0],
        prop_oneof![Just(1.0), Just(0.0), 0.1..3.0],
        prop_oneof![Just(0_usize), 1_usize..400],
        prop_oneof![Just(1.0), 0.01..1.0, Just(1e-9), Just(0.5)],
        prop_oneof![Just(0.0), 0.0..1.0, Just(1.0)],
    )
        .prop_map(|(repetition, presence, frequency, temperature, top_k, top_p, min_p)| {
            Sampling {
                repetition_penalty: repetition,
                presence_penalty: presence,
                frequency_penalty: frequency,
                temperature,
                top_k,
                top_p,
                min_p,
            }
        })
}

fn tokens() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn scores_are_those_of_the_definition(
        row in row(), sampling in options(), prompt in tokens(), generated in tokens(), bias in tokens(),
        uniform in 0.0_f64..1.0,
    ) {
        let of = |indices: &[prop::sample::Index]| -> Vec<u32> {
            indices.iter().map(|index| index.index(row.len()) as u32).collect()
        };
        let bias: Vec<(u32, f32)> =
            of(&bias).into_iter().enumerate().map(|(i, token)| (token, i as f32 / 8.0 - 1.0)).collect();
        let (prompt, generated) = (of(&prompt), of(&generated));
        let context = Context { prompt: &prompt, generated: &generated, logit_bias: &bias };
        let want = by_definition(&row, context, sampling);
        let mut sampler = Sampler::new(row.len());
        let mut got = vec![0.0; row.len()];
        sampler.process_into(&row, context, sampling, &mut got).unwrap();
        if !is_near(&row, context, sampling) {
            prop_assert_eq!(&got, &want);
        }

        // A draw is one of what is left, with its probability; a greedy one the first of the largest.
        let next = sampler.sample(&row, context, uniform, sampling).unwrap();
        let score = got[next.token as usize];
        prop_assert!(score > NONE);
        let prob = softmax(&got)[next.token as usize];
        prop_assert!((f64::from(next.logprob) - prob.ln()).abs() < 1e-5 * (1.0 + prob.ln().abs()), "{next:?} {}", prob.ln());
        prop_assert!(next.logprob <= 0.0);
        if sampling.is_greedy() {
            let most = got.iter().copied().fold(NONE, f32::max);
            prop_assert_eq!(got.iter().position(|&x| x == most), Some(next.token as usize));
        } else {
            let probs = softmax(&got);
            let below: f64 = probs[..next.token as usize].iter().sum();
            prop_assert!(below < uniform + 1e-6 && uniform - 1e-6 < below + prob, "{next:?}");
        }

        // The most probable tokens, in order.
        let mut top = [UNSET; 7];
        let n = sampler.top_logprobs(&mut top);
        let mut order: Vec<usize> = (0..got.len()).filter(|&i| got[i] > NONE).collect();
        order.sort_by(|&a, &b| got[b].total_cmp(&got[a]).then(a.cmp(&b)));
        prop_assert_eq!(n, order.len().min(7));
        for (top, &token) in top[..n].iter().zip(&order) {
            prop_assert!(top.token as usize == token || got[top.token as usize] == got[token]);
            prop_assert!(top.logprob == next.logprob || got[top.token as usize] != score);
        }
        prop_assert_eq!(top[n..].iter().filter(|&&top| top != UNSET).count(), 0);
    }

    #[test]
    fn a_call_depends_on_its_arguments_alone(rows in prop::collection::vec((row(), options()), 1..6), seed in any::<u64>()) {
        let mut shared = Sampler::new(300);
        for (position, (row, sampling)) in rows.iter().enumerate() {
            let mut row = row.clone();
            row.resize(300, 0.25);
            let context = Context { prompt: &[3, 1], generated: &[1, 1, 2], logit_bias: &[(2, 0.5)] };
            let u = uniform(seed, position);
            let alone = Sampler::new(300).sample(&row, context, u, *sampling).unwrap();
            prop_assert_eq!(shared.sample(&row, context, u, *sampling).unwrap(), alone);
            let _ = shared.sample(&[f32::NAN; 300], context, u, *sampling).unwrap_err();
        }
    }
}

#[test]
fn frequencies_of_draws_are_the_probabilities() {
    let logits = [0.5, 2.0, NONE, 1.0, -1.0, 2.0];
    let sampling = Sampling { temperature: 0.8, ..Sampling::default() };
    let probs = softmax(&process(&logits, Context::default(), sampling).unwrap());
    let mut sampler = Sampler::new(6);
    let (mut counts, n) = ([0_u32; 6], 200_000);
    for position in 0..n {
        let u = uniform(11, position);
        counts[sampler.sample(&logits, Context::default(), u, sampling).unwrap().token as usize] +=
            1;
    }
    for (count, prob) in counts.into_iter().zip(probs) {
        let deviation = (n as f64 * prob * (1.0 - prob)).sqrt();
        assert!((f64::from(count) - n as f64 * prob).abs() <= 4.0 * deviation, "{counts:?}");
    }
}

#[test]
fn uniforms_are_uniform_and_differ_by_seed_and_position() {
    let n = 1 << 16;
    for seed in [0, 1, u64::MAX] {
        let mut bins = [0_u32; 64];
        for position in 0..n {
            let u = uniform(seed, position);
            assert!((0.0..1.0).contains(&u));
            bins[(u * 64.0) as usize] += 1;
        }
        // Chi-squared of 63 degrees: mean 63, deviation 11.2.
        let expected = f64::from(n as u32) / 64.0;
        let chi: f64 = bins.iter().map(|&bin| (f64::from(bin) - expected).powi(2) / expected).sum();
        assert!((30.0..110.0).contains(&chi), "{chi}");
    }
    // All 64 bits of both count.
    assert_ne!(uniform(0, 5), uniform(1 << 40, 5));
    #[cfg(target_pointer_width = "64")]
    assert_ne!(uniform(0, 5), uniform(0, 5 + (1 << 40)));
}

#[test]
fn edges_of_the_distribution_are_drawn_by_edges_of_the_uniform() {
    let mut sampler = Sampler::new(200);
    let mut logits = [NONE; 200];
    logits[5] = 1.0;
    logits[130] = 1.0;
    let sampling = Sampling::default();
    let mut draw = |u: f64| sampler.sample(&logits, Context::default(), u, sampling).unwrap().token;
    let below_one = 1.0_f64.next_down();
    assert_eq!([draw(0.0), draw(0.49), draw(0.51), draw(below_one)], [5, 5, 130, 130]);
    // What underflows is not drawn.
    let logits = [0.0, -500.0, -500.0];
    let mut sampler = Sampler::new(3);
    for u in [0.0, 0.5, below_one] {
        let next = sampler.sample(&logits, Context::default(), u, sampling).unwrap();
        assert_eq!(next, TokenLogprob { token: 0, logprob: 0.0 });
    }
}

#[test]
fn probabilities_that_sum_to_the_limit_exactly_go() {
    // A quarter each: what is up to 1 - top_p goes, the lower ids first.
    for (top_p, want) in [
        (0.25, [NONE, NONE, NONE, 1.0]),
        (0.26, [NONE, NONE, 1.0, 1.0]),
        (0.5, [NONE, NONE, 1.0, 1.0]),
        (0.75, [NONE, 1.0, 1.0, 1.0]),
        (0.76, [1.0; 4]),
    ] {
        let sampling = Sampling { top_p, ..Sampling::default() };
        assert_eq!(process(&[1.0; 4], Context::default(), sampling).unwrap(), want, "{top_p}");
    }
    // What is exactly `min_p` of the largest stays.
    let sampling = Sampling { min_p: 1.0, ..Sampling::default() };
    assert_eq!(process(&[1.0, 0.5, 1.0], Context::default(), sampling).unwrap(), [1.0, NONE, 1.0]);
}

#[test]
fn flat_and_steep_rows_of_a_real_vocabulary_are_cut_as_defined() {
    let n = 131_072;
    let mut rng = Rng::new(5);
    let steep: Vec<f32> = (0..n).map(|_| 3.0 * rng.normal()).collect();
    let flat = vec![-2.5; n];
    let nearly: Vec<f32> = (0..n).map(|_| rng.normal() * 0.05).collect();
    for row in [&steep, &flat, &nearly] {
        for sampling in [
            Sampling { top_p: 0.9, ..Sampling::default() },
            Sampling { top_k: 50, top_p: 0.9, temperature: 0.7, ..Sampling::default() },
            Sampling { top_k: 5000, min_p: 0.05, ..Sampling::default() },
            Sampling { top_k: n - 1, top_p: 0.25, ..Sampling::default() },
        ] {
            let got = process(row, Context::default(), sampling).unwrap();
            let want = by_definition(row, Context::default(), sampling);
            let left = |scores: &[f32]| scores.iter().filter(|&&x| x > NONE).count() as f64;
            // Sums of a hundred thousand f32 probabilities round: a few tokens at the edge of top-p.
            let (got, want) = (left(&got), left(&want));
            assert!((got - want).abs() <= 1.0 + 1e-4 * want, "{sampling:?}: {got} {want}");
        }
    }
}

#[test]
fn sampling_allocates_nothing() {
    let n = 5000;
    let _ = Isa::detect();
    let mut rng = Rng::new(3);
    let logits: Vec<f32> = (0..n).map(|_| 3.0 * rng.normal()).collect();
    let mut sampler = Sampler::new(n);
    let mut scores = vec![0.0; n];
    let mut top = [UNSET; 20];
    let context = Context {
        prompt: &[1, 2, 3, 3],
        generated: &[4, 5, 5],
        logit_bias: &[(7, 1.0), (8, NONE)],
    };
    let full = Sampling {
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.3,
        temperature: 0.8,
        top_k: 50,
        top_p: 0.9,
        min_p: 0.01,
    };
    let all = [
        full,
        Sampling { top_k: 2000, ..full },
        Sampling { top_k: 0, ..full },
        Sampling::default(),
        Sampling::greedy(),
    ];
    let (result, n_allocations) = count_allocations(|| {
        for (position, sampling) in all.into_iter().enumerate() {
            sampler.sample(&logits, context, uniform(1, position), sampling)?;
            sampler.top_logprobs(&mut top);
            sampler.process_into(&logits, context, sampling, &mut scores)?;
        }
        Ok::<(), Error>(())
    });
    result.unwrap();
    assert_eq!(n_allocations, 0);
}

#[test]
fn what_cannot_be_sampled_is_an_error_with_its_numbers() {
    let logits = [0.0, 1.0, 2.0];
    let of = |sampling: Sampling| {
        process(&logits, Context::default(), sampling).unwrap_err().to_string()
    };
    let base = Sampling::default();
    let nan = f64::NAN;
    for (sampling, message) in [
        (
            Sampling { temperature: -0.5, ..base },
            "`temperature` is -0.5, expected finite and at least 0",
        ),
        (
            Sampling { temperature: nan, ..base },
            "`temperature` is NaN, expected finite and at least 0",
        ),
        (
            Sampling { temperature: f64::INFINITY, ..base },
            "`temperature` is inf, expected finite and at least 0",
        ),
        (
            Sampling { temperature: 1e-60, ..base },
            "`temperature` is 0.000000000000000000000000000000000000000000000000000000000001, expected 0, or so large that logits divided by it are finite",
        ),
        (Sampling { top_p: 0.0, ..base }, "`top_p` is 0, expected above 0, at most 1"),
        (Sampling { top_p: 1.5, ..base }, "`top_p` is 1.5, expected above 0, at most 1"),
        (Sampling { top_p: nan, ..base }, "`top_p` is NaN, expected above 0, at most 1"),
        (Sampling { min_p: -0.1, ..base }, "`min_p` is -0.1, expected from 0 to 1"),
        (Sampling { min_p: 1.1, ..base }, "`min_p` is 1.1, expected from 0 to 1"),
        (
            Sampling { repetition_penalty: 0.0, ..base },
            "`repetition_penalty` is 0, expected finite and above 0",
        ),
        (
            Sampling { presence_penalty: nan, ..base },
            "`presence_penalty` is NaN, expected a finite number",
        ),
        (
            Sampling { frequency_penalty: f64::INFINITY, ..base },
            "`frequency_penalty` is inf, expected a finite number",
        ),
    ] {
        assert_eq!(of(sampling), message);
    }

    let with = |logits: &[f32], context: Context<'_>| {
        process(logits, context, base).unwrap_err().to_string()
    };
    let none = Context::default();
    assert_eq!(
        with(&[0.0, f32::NAN, f32::INFINITY], none),
        "the logit of token 1 is NaN, expected a finite number or negative infinity"
    );
    assert_eq!(
        with(&[0.0, 1.0, f32::INFINITY], none),
        "the logit of token 2 is inf, expected a finite number or negative infinity"
    );
    assert_eq!(
        with(&[NONE; 3], none),
        "none of 3 tokens can be drawn: all logits are negative infinity"
    );
    let bias = |bias| with(&logits, Context { logit_bias: bias, ..none });
    assert_eq!(
        bias(&[(0, NONE), (1, NONE), (2, NONE)]),
        "none of 3 tokens can be drawn: all logits are negative infinity"
    );
    assert_eq!(
        bias(&[(1, f32::INFINITY)]),
        "the logit of token 1 is inf, expected a finite number or negative infinity"
    );
    assert_eq!(bias(&[(0, 1.0), (3, 1.0)]), "token 3 at index 1 is outside the vocabulary of 3");
    assert_eq!(
        with(&logits, Context { prompt: &[0, 1, 7], ..none }),
        "token 7 at index 2 is outside the vocabulary of 3"
    );
    assert_eq!(
        with(&logits, Context { generated: &[3], ..none }),
        "token 3 at index 0 is outside the vocabulary of 3"
    );

    let mut sampler = Sampler::new(3);
    let mut sample =
        |logits: &[f32], u: f64| sampler.sample(logits, none, u, base).unwrap_err().to_string();
    assert_eq!(sample(&logits[..2], 0.0), "2 logits, expected 3, one for each token");
    assert_eq!(sample(&logits, 1.0), "`uniform` is 1, expected at least 0, below 1");
    assert_eq!(sample(&logits, f64::NAN), "`uniform` is NaN, expected at least 0, below 1");
    let mut short = [7.0; 2];
    let error = sampler.process_into(&logits, none, base, &mut short).unwrap_err();
    assert!(matches!(error, Error::LogitCount { expected: 3, actual: 2 }));
    assert!(matches!(
        Sampler::new(0).sample(&[], none, 0.0, base),
        Err(Error::NoToken { vocab_size: 0 })
    ));
}

#[test]
fn as_many_top_logprobs_as_are_asked_for_are_written_up_to_the_limit() {
    let logits: Vec<f32> = (0..3000).map(|i| i as f32 / 500.0).collect();
    let mut sampler = Sampler::new(3000);
    sampler.sample(&logits, Context::default(), 0.5, Sampling::greedy()).unwrap();
    let mut top = vec![UNSET; 2000];
    assert_eq!(sampler.top_logprobs(&mut top), MAX_TOP_LOGPROBS);
    assert_eq!((top[0].token, top[1023].token, top[1024]), (2999, 2999 - 1023, UNSET));
    assert_eq!(sampler.top_logprobs(&mut []), 0);
}
