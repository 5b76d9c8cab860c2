use half::{bf16, f16};
use proptest::prelude::*;
use squish_eval::{EvalError, Logits, Real, nll, token_nll};

use crate::common::numbers;

/// `ln Σ e^(z − z[t])` in f64.
fn exact(logits: &[f32], target: usize) -> f64 {
    let m = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| (f64::from(z) - f64::from(m)).exp()).sum();
    sum.ln() + f64::from(m) - f64::from(logits[target])
}

const BOUND: f64 = 1.0 / (1 << 20) as f64;

#[test]
fn closed_forms_come_out() {
    let cases: [(&[f32], u32, f64); 8] = [
        (&[0.3; 4], 2, 1.386_294_361_119_890_6),
        (&[0.0, 1.0, 2.0, 3.0], 3, 0.440_189_698_561_195_3),
        (&[0.0, 1.0, 2.0, 3.0], 0, 3.440_189_698_561_195_3),
        (&[88.0, 89.0, 90.0], 0, 2.407_605_964_444_386),
        (&[1e4, 0.0, -1e4], 0, 0.0),
        (&[1e4, 0.0, -1e4], 1, 1e4),
        (&[3.4e38, -3.4e38], 0, 0.0),
        (&[0.0, f32::NEG_INFINITY, 0.0], 0, std::f64::consts::LN_2),
    ];
    for (logits, target, want) in cases {
        let got = token_nll(logits, target).expect("a distribution");
        assert!((got - want).abs() <= BOUND, "{logits:?} {target}: {got} {want}");
    }
    assert_eq!(token_nll(&[-7.25_f32], 0), Ok(0.0));
    assert_eq!(token_nll(&[0.0, f32::NEG_INFINITY], 1), Ok(f64::INFINITY));
    assert_eq!(token_nll(&[3.4e38_f32, -3.4e38], 1), Ok(f64::from(3.4e38_f32) * 2.0));
}

proptest! {
    #[test]
    fn rows_of_every_type_are_within_the_bound_of_the_definition(
        len in 1..3000_usize, seed: u64, scale in 0.1..80.0_f32, offset in -300.0..300.0_f32,
    ) {
        fn check<T: Real>(logits: &[f32], target: usize) {
            let rounded: Vec<T> = logits.iter().map(|&z| T::from_f32(z)).collect();
            let back: Vec<f32> = rounded.iter().map(|z| z.to_f32()).collect();
            let got = token_nll(&rounded, target as u32).expect("a distribution");
            let want = exact(&back, target);
            assert!(got >= 0.0 && (got - want).abs() <= BOUND, "{got} {want}");
        }
        let logits: Vec<f32> = numbers(len, seed).iter().map(|z| z * scale + offset).collect();
        let target = seed as usize % len;
        check::<f32>(&logits, target);
        check::<bf16>(&logits, target);
        check::<f16>(&logits, target);
    }

    #[test]
    fn rows_sum_to_the_same_bits_in_one_call_and_one_by_one(n_rows in 0..20_usize, vocab_size in 1..70_usize, seed: u64) {
        let data = numbers(n_rows * vocab_size, seed);
        let logits = Logits::new(&data, vocab_size).expect("whole rows");
        // Every fourth row has no target.
        let targets: Vec<Option<u32>> =
            (0..n_rows).map(|i| (i % 4 != 3).then_some((i * 7 % vocab_size) as u32)).collect();
        let whole = nll(logits, &targets).expect("finite");
        let parts = logits.rows().zip(&targets).map(|(row, target)| {
            nll(Logits::new(row, vocab_size).expect("a row"), &[*target]).expect("finite")
        });
        prop_assert_eq!(whole, parts.sum());
        prop_assert_eq!(whole.n_tokens() as usize, targets.iter().flatten().count());
    }
}

#[test]
fn rows_that_are_no_distribution_are_refused_by_their_number() {
    let none = f32::NEG_INFINITY;
    let rows = |second: [f32; 3]| [[0.0, 1.0, 2.0], second].concat();
    let score = |data: &[f32], targets: &[Option<u32>]| nll(Logits::new(data, 3)?, targets);
    for (row, error) in [
        ([0.0, f32::NAN, 0.0], EvalError::Nan { row: 1 }),
        ([none, f32::NAN, f32::INFINITY], EvalError::Nan { row: 1 }),
        ([0.0, f32::INFINITY, none], EvalError::Infinite { row: 1 }),
        ([none; 3], EvalError::AllMasked { row: 1 }),
    ] {
        assert_eq!(score(&rows(row), &[Some(0), Some(2)]), Err(error));
        assert!(score(&rows(row), &[Some(0), None]).is_ok(), "a row without target");
    }
    let data = rows([0.0; 3]);
    let target = EvalError::Target { row: 1, target: 3, vocab_size: 3 };
    assert_eq!(score(&data, &[None, Some(3)]), Err(target));
    assert_eq!(
        score(&data, &[None, Some(u32::MAX)]).unwrap_err().to_string(),
        "the target of row 1 is token 4294967295, of 3"
    );
    let length = EvalError::Length { what: "targets", expected: 2, actual: 1 };
    assert_eq!(score(&data, &[None]), Err(length));
    assert_eq!(
        token_nll::<f32>(&[], 0),
        Err(EvalError::Target { row: 0, target: 0, vocab_size: 0 })
    );
    for (data, vocab_size) in [(&data[..5], 3), (&data[..], 0)] {
        let error = Logits::new(data, vocab_size).expect_err("no whole rows");
        assert_eq!(
            error,
            EvalError::Length { what: "data", expected: vocab_size, actual: data.len() }
        );
    }
}

#[test]
fn no_rows_and_rows_without_targets_have_no_perplexity() {
    for (data, targets) in [(&[][..], &[][..]), (&[1.0, 2.0][..], &[None][..])] {
        let nll =
            nll(Logits::new(data, 2).expect("whole rows"), targets).expect("nothing to refuse");
        assert_eq!((nll.n_tokens(), nll.perplexity()), (0, None));
    }
}
