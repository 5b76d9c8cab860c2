use proptest::prelude::*;
use squish_kernels::{
    Isa,
    reduce::{abs_max_with, argmax_scalar, argmax_with, max_with, min_with, sum_with},
};

use crate::common::{edge_lengths, length, numbers};

fn assert_extremes(x: &[f32]) {
    let has_nan = x.iter().any(|x| x.is_nan());
    let fold = |start: f32, pick: fn(f32, f32) -> f32| {
        if has_nan { f32::NAN } else { x.iter().fold(start, |a, &b| pick(a, b)) }
    };
    let same = |got: f32, want: f32| got == want || got.is_nan() && want.is_nan();
    for isa in Isa::available() {
        let cases = [
            ("max", max_with(isa, x), fold(f32::NEG_INFINITY, f32::max)),
            ("min", min_with(isa, x), fold(f32::INFINITY, f32::min)),
            ("abs_max", abs_max_with(isa, x), fold(0.0, |a, b| a.max(b.abs()))),
        ];
        for (name, got, want) in cases {
            assert!(same(got, want), "{name} {isa:?} {}: {got} {want}", x.len());
        }
        assert_eq!(argmax_with(isa, x), argmax_scalar(x), "{isa:?} {}", x.len());
    }
}

#[test]
fn extremes_are_found_wherever_they_stand() {
    for len in edge_lengths().filter(|&len| len > 0) {
        for at in [0, len / 3, len / 2, len - 1] {
            for value in [50.0, -50.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
                let mut x = numbers(len, 3);
                x[at] = value;
                assert_extremes(&x);
            }
        }
    }
}

#[test]
fn empty_masked_and_undefined_slices_follow_the_table() {
    assert_extremes(&[]);
    for len in [1, 15, 16, 17, 64, 1023, 1024, 1025, 3000] {
        assert_extremes(&vec![f32::NEG_INFINITY; len]);
        assert_extremes(&vec![f32::INFINITY; len]);
        assert_extremes(&vec![f32::NAN; len]);
        let mut x = vec![f32::NAN; len];
        x[len - 1] = f32::NEG_INFINITY;
        assert_extremes(&x);
    }
    assert!(
        Isa::available().all(|isa| argmax_with(isa, &[]).is_none() && sum_with(isa, &[]) == 0.0)
    );
}

#[test]
fn equal_elements_resolve_to_the_lowest_index_even_across_blocks() {
    for len in [40, 1024, 1030, 2048, 5000] {
        for first in [0, 1, 17, len / 2, len - 2] {
            let mut x = numbers(len, 4);
            for later in [first, first + 1, len - 1] {
                x[later] = 99.0;
            }
            for isa in Isa::available() {
                assert_eq!(argmax_with(isa, &x), Some(first), "{isa:?} {len}");
            }
        }
    }
    let zeros = [-1.0, -0.0, 0.0, -0.0];
    assert!(Isa::available().all(|isa| argmax_with(isa, &zeros) == Some(1)));
}

#[test]
fn sums_of_integers_are_exact_at_every_block_edge() {
    for len in edge_lengths() {
        let x: Vec<f32> = (0..len).map(|i| (i % 97) as f32 - 40.0).collect();
        let exact = x.iter().map(|&x| x as i64).sum::<i64>() as f32;
        assert!(Isa::available().all(|isa| sum_with(isa, &x) == exact), "{len}");
    }
}

proptest! {
    #[test]
    fn every_isa_agrees_with_the_definition(len in length(), seed: u64, coarse: bool) {
        let mut x = numbers(len, seed);
        if coarse {
            // Few values, and so many ties.
            x = x.into_iter().map(f32::round).collect();
        }
        assert_extremes(&x);
        let exact: f64 = x.iter().map(|&x| f64::from(x)).sum();
        let size: f64 = x.iter().map(|&x| f64::from(x.abs())).sum();
        for isa in Isa::available() {
            let error = (f64::from(sum_with(isa, &x)) - exact).abs();
            prop_assert!(error <= len as f64 * f64::from(f32::EPSILON) / 2.0 * size, "{isa:?}: {error}");
        }
    }
}
