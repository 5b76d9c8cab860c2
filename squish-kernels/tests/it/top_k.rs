use proptest::prelude::*;
use squish_kernels::{
    Isa, top_k,
    top_k::{top_k_scalar, top_k_with},
    top_k_scratch_len,
};

use crate::common::numbers;

fn assert_top_k(x: &[f32], k: usize) {
    let want = top_k_scalar(x, k);
    for isa in Isa::available() {
        let (mut values, mut indices) = (vec![7.0; k], vec![7; k]);
        let mut scratch = vec![0; top_k_scratch_len(k)];
        let n = top_k_with(isa, x, &mut values, &mut indices, &mut scratch);
        assert_eq!(indices[..n], want, "{isa:?}: {k} of {}", x.len());
        for (value, &index) in values.iter().zip(&want) {
            assert_eq!(value.to_bits(), x[index as usize].to_bits(), "{isa:?}: {k} of {}", x.len());
        }
        assert!(values[n..].iter().all(|&x| x == 7.0) && indices[n..].iter().all(|&i| i == 7));
    }
}

#[test]
fn every_order_of_a_vocabulary_gives_the_sorted_prefix() {
    let mut x = numbers(40_000, 5);
    for k in [0, 1, 5, 64, 1000, 40_000, 50_000] {
        assert_top_k(&x, k);
    }
    x.sort_by(f32::total_cmp);
    // Ascending input passes every floor: the worst case.
    assert_top_k(&x, 64);
    x.reverse();
    assert_top_k(&x, 64);
}

#[test]
fn ties_come_in_the_order_of_their_indices() {
    let x: Vec<f32> = (0..5000).map(|i| if i % 3 == 0 { 2.0 } else { (i % 2) as f32 }).collect();
    for k in [1, 10, 500, 2000, 4000] {
        assert_top_k(&x, k);
    }
    assert_top_k(&[-0.0, 0.0, -0.0, 0.0, -1.0], 3);
}

#[test]
fn nan_is_never_chosen_and_infinities_are_numbers() {
    let mut x = numbers(1000, 6);
    for (i, x) in x.iter_mut().enumerate() {
        match i % 7 {
            0 => *x = f32::NAN,
            1 => *x = -f32::NAN,
            2 => *x = f32::INFINITY,
            3 => *x = f32::NEG_INFINITY,
            _ => {}
        }
    }
    for k in [1, 100, 300, 714, 715, 1000] {
        assert_top_k(&x, k);
    }
    assert_top_k(&[f32::NAN; 100], 3);
    assert_top_k(&[], 3);
}

proptest! {
    #[test]
    fn every_isa_gives_the_sorted_prefix(len in 0..3000_usize, k in 0..200_usize, seed: u64, steps in 1..1000_u32) {
        let x: Vec<f32> = numbers(len, seed).iter().map(|x| (x * steps as f32).round()).collect();
        assert_top_k(&x, k);
    }
}

#[test]
#[should_panic(expected = "`scratch` is too short")]
fn a_short_scratch_is_refused() {
    top_k(&[1.0], &mut [0.0; 2], &mut [0; 2], &mut vec![0; top_k_scratch_len(2) - 1]);
}

#[test]
#[should_panic(expected = "differ in length")]
fn values_and_indices_of_different_lengths_are_refused() {
    top_k(&[1.0], &mut [0.0; 2], &mut [0; 3], &mut vec![0; top_k_scratch_len(3)]);
}
